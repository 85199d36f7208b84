"""Every question about the past, each once: what it takes (`asked.py`), and what answers it from an open journal.

One table for the running registry, which asks in a process of its own (`asking.py`), and for replay, which reads a
file. Who adds a question adds a row. What is read is read here, what follows from it is for registry/questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from registry.core.events import Record
from registry.core.service import Service
from registry.journal.errors import Compacted, JournalError
from registry.journal.opening import Connection
from registry.journal.query import Refused, query
from registry.journal.read import Selection, fold, last_seq, latest
from registry.past.asked import (
    BootOf,
    DiffOf,
    GraphThen,
    HistoryOf,
    ListThen,
    Names,
    Query,
    ReportOf,
    StatusThen,
    WhyThen,
)
from registry.past.boot import boot
from registry.past.difference import changes
from registry.past.history import history
from registry.past.report import report
from registry.past.then import seq_of, then
from registry.past.why import why, why_seq
from registry.questions import names
from registry.questions.boot import Boot
from registry.questions.difference import Difference
from registry.questions.graph import graph
from registry.questions.history import History
from registry.questions.records import (
    EVENTS_LOOKED_AT,
    NOT_JOURNALED,
    check_then,
    service_detail,
    service_record,
)
from registry.questions.refusal import INVALID, OUT_OF_RANGE, TIMED_OUT, UNREADABLE, Refusal
from registry.questions.report import Report
from registry.questions.why import Why

_encode = msgspec.json.Encoder().encode


# --- list, status ---------------------------------------------------------------------------------


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


def _graph(journal: Connection, asked: GraphThen) -> dict[str, Any]:
    state = then(journal, asked.at)
    chosen = None
    if asked.service is not None:
        chosen = [state.find(name).name for name in names.select(asked.service, state.projection)]
    return {"moment": state.told(), "services": graph(chosen, state.projection)}


# --- why ------------------------------------------------------------------------------------------


def _why(journal: Connection, asked: WhyThen) -> Why:
    if asked.service is None:
        return why_seq(journal, then(journal, asked.seq))
    return why(journal, then(journal, asked.at), asked.service)


# --- history, diff, report ------------------------------------------------------------------------


def _history(journal: Connection, asked: HistoryOf) -> list[History]:
    chosen = _named(journal, asked.service)
    return [
        history(journal, name, since=asked.since, until=asked.until, limit=asked.limit)
        for name in chosen
    ]


def _diff(journal: Connection, asked: DiffOf) -> Difference:
    since, until = seq_of(journal, asked.since), seq_of(journal, asked.until)
    return changes(journal, since, until, _chosen(journal, asked.service))


def _report(journal: Connection, asked: ReportOf) -> Report:
    chosen = _chosen(journal, asked.service)
    return report(journal, chosen, since=asked.since, until=asked.until, now=asked.now)


def _boot(journal: Connection, asked: BootOf) -> Boot:
    chosen = _chosen(journal, asked.service, of_now=True)
    if len(chosen) > 1:
        raise Refusal(INVALID, "service: the longest way leads to one service; name one")
    last = seq_of(journal, asked.at) if asked.at is not None else last_seq(journal)
    return boot(journal, last, chosen[0] if chosen else None)


def _chosen(journal: Connection, given: Names, *, of_now: bool = False) -> list[str]:
    """The names that are meant; none where all are."""
    if given in (None, names.ALL, [names.ALL]):
        return []
    return _named(journal, given or [], of_now=of_now)


def _named(journal: Connection, given: str | list[str], *, of_now: bool = False) -> list[str]:
    """The names that are meant, of services that are declared or were; a glob `of_now` means none that were.

    Raises Refusal.
    """
    projection = fold(journal, last_seq(journal))
    gone = projection.last_runs
    meant = names.select(given, projection, () if of_now else gone)
    for name in meant:
        if name not in projection.services and name not in gone:
            raise names.unknown(name, projection)
    return meant


# --- query ----------------------------------------------------------------------------------------


def _query(journal: Connection, asked: Query) -> dict[str, Any]:
    return query(journal, asked.sql, asked.limit)._asdict()


# --- the table ------------------------------------------------------------------------------------


class Question(NamedTuple):
    """What a question takes, and what answers it."""

    params: type[msgspec.Struct]
    answer: Callable[[Connection, Any], Any]


QUESTIONS: dict[str, Question] = {
    "list": Question(ListThen, _list),
    "status": Question(StatusThen, _status),
    "graph": Question(GraphThen, _graph),
    "why": Question(WhyThen, _why),
    "history": Question(HistoryOf, _history),
    "diff": Question(DiffOf, _diff),
    "report": Question(ReportOf, _report),
    "boot": Question(BootOf, _boot),
    "query": Question(Query, _query),
}


def answer(journal: Connection, question: str, params: bytes | msgspec.Raw) -> bytes:
    """The answer as one line of JSON, without a newline. Raises Refusal."""
    asked = QUESTIONS[question]
    try:
        return _encode(asked.answer(journal, msgspec.json.decode(params, type=asked.params)))
    except Compacted as error:
        raise Refusal(OUT_OF_RANGE, f"the journal: {error}") from None
    except Refused as error:
        raise Refusal(TIMED_OUT if error.is_late else INVALID, str(error)) from None
    except JournalError as error:
        raise Refusal(UNREADABLE, f"the journal: {error}") from None
