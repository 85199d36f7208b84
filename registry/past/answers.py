"""Every question about the past, each once: what it takes, and what answers it from an open journal.

One table for the running registry, which asks in a process of its own (`asking.py`), and for replay, which reads a
file. Who adds a question adds a row. What is read is read here, what follows from it is for registry/questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from registry.core.events import Record
from registry.core.projection import Projection
from registry.core.service import Service
from registry.journal.errors import JournalError
from registry.journal.read import (
    Connection,
    Selection,
    at_of,
    fold,
    last_seq,
    last_seq_at,
    latest,
)
from registry.questions import names
from registry.questions.moments import At, Moment
from registry.questions.records import (
    EVENTS_LOOKED_AT,
    NOT_JOURNALED,
    check_then,
    rfc3339,
    service_detail,
    service_record,
)
from registry.questions.refusal import INVALID, UNKNOWN, UNREADABLE, Refusal

_encode = msgspec.json.Encoder().encode


class Then(NamedTuple):
    """All services as event `seq`, which happened at `at_ns` (UTC), left them; `seq` 0 is before the first.

    `asked_ns` is the time that was asked for, or that of the event whose number was; 0 where that is none.
    """

    seq: int
    at_ns: int
    asked_ns: int
    projection: Projection

    def told(self) -> dict[str, Any]:
        """When that was, as every answer says it; `supervised` tells whether a registry was running."""
        return {
            "seq": self.seq,
            "at": rfc3339(self.at_ns) if self.seq else None,
            "asked": rfc3339(self.asked_ns) if self.asked_ns else None,
            "supervised": not self.projection.orderly,
        }

    def find(self, name: str) -> Service:
        """The service called `name`. Raises Refusal."""
        if name in self.projection.services:
            return self.projection.services[name]
        refusal = names.unknown(name, self.projection)
        when = f"after event {self.seq}, {rfc3339(self.at_ns)}" if self.seq else "before all events"
        raise Refusal(UNKNOWN, f"{when}: {refusal.message}")


def then(journal: Connection, at: At) -> Then:
    """The services at a moment, or after the event of a number. Raises Refusal, JournalError."""
    projection = fold(journal, seq_of(journal, at))
    at_ns = at_of(journal, projection.seq)
    asked_ns = at.last_ns if isinstance(at, Moment) else at_ns
    return Then(projection.seq, at_ns, asked_ns, projection)


def seq_of(journal: Connection, at: At) -> int:
    """The number of the last event that had happened then; 0 where none had. Raises Refusal, JournalError."""
    if isinstance(at, Moment):
        return last_seq_at(journal, at.last_ns)
    if at > (last := last_seq(journal)):
        raise Refusal(INVALID, f"there is no event {at}: the last is event {last}")
    return at


# --- list, status ---------------------------------------------------------------------------------


class ListThen(msgspec.Struct, frozen=True):
    """The services that `service` means, all where it is null, as they were."""

    at: At
    service: str | list[str] | None = None


class StatusThen(msgspec.Struct, frozen=True):
    """One service in detail, as it was."""

    at: At
    service: str


def _list(journal: Connection, asked: ListThen) -> dict[str, Any]:
    state = then(journal, asked.at)
    services = state.projection.services
    chosen: Sequence[Service] = list(state.projection.in_order())
    if asked.service is not None:
        chosen = [state.find(name) for name in names.select(asked.service, state.projection)]
    found = [service_record(service, services) for service in chosen]
    return {"moment": state.told(), "services": found}


def _status(journal: Connection, asked: StatusThen) -> dict[str, Any]:
    state = then(journal, asked.at)
    service = state.find(asked.service)
    selection = Selection(last=state.seq, services=(service.name,))
    events: list[Record] = latest(journal, selection, EVENTS_LOOKED_AT)
    told = service_detail(
        service,
        state.projection.services,
        events,
        checks=[check_then(service, check) for check in service.definition.checks],
        machine=NOT_JOURNALED,
    )
    return {**told, "moment": state.told()}


# --- the table ------------------------------------------------------------------------------------


class Question(NamedTuple):
    """What a question takes, and what answers it."""

    params: type[msgspec.Struct]
    answer: Callable[[Connection, Any], Any]


QUESTIONS: dict[str, Question] = {
    "list": Question(ListThen, _list),
    "status": Question(StatusThen, _status),
}


def answer(journal: Connection, question: str, params: bytes | msgspec.Raw) -> bytes:
    """The answer as one line of JSON, without a newline. Raises Refusal."""
    asked = QUESTIONS[question]
    try:
        return _encode(asked.answer(journal, msgspec.json.decode(params, type=asked.params)))
    except JournalError as error:
        raise Refusal(UNREADABLE, f"the journal: {error}") from None
