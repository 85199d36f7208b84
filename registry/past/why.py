"""Reading why: the chain of causes by their numbers, and the events of a service, newest first."""

from __future__ import annotations

from collections.abc import Iterator

from registry.core.events import Record, Removed
from registry.journal.opening import Connection
from registry.journal.read import Selection, latest, records_of
from registry.past.then import Then
from registry.questions import names
from registry.questions.refusal import INVALID, UNKNOWN, Refusal
from registry.questions.why import Why, why_event, why_removed, why_service

_FEW = 50


class _Journal:
    """The journal up to event `last`, as evidence."""

    def __init__(self, connection: Connection, last: int) -> None:
        self._connection = connection
        self._last = last

    def record(self, seq: int) -> Record | None:
        return records_of(self._connection, [seq]).get(seq) if seq <= self._last else None

    def newest(self, service: str, last: int | None = None) -> Iterator[Record]:
        last, count = self._last if last is None else min(last, self._last), _FEW
        while found := latest(self._connection, Selection(last=last, services=(service,)), count):
            yield from reversed(found)
            last, count = found[0].seq - 1, 1000


def why(journal: Connection, state: Then, name: str) -> Why:
    """Why a service was as it was in `state`, or no longer declared. Raises Refusal, JournalError."""
    evidence, projection = _Journal(journal, state.seq), state.projection
    if name in projection.last_runs:
        records = evidence.newest(name)
        removed = next((each for each in records if isinstance(each.event, Removed)), None)
        if removed is None:
            message = f"service '{name}' was removed, and when is no longer in the journal"
            raise Refusal(UNKNOWN, message)
        return why_removed(removed, projection.services, evidence)
    return why_service(state.find(names.one(name, projection)), projection.services, evidence)


def why_seq(journal: Connection, state: Then) -> Why:
    """Why the event happened that `state` follows. Raises Refusal, JournalError."""
    evidence = _Journal(journal, state.seq)
    record = evidence.record(state.seq)
    if record is None:
        raise Refusal(INVALID, "there is no event 0: events are numbered from 1")
    return why_event(record, state.projection.services, evidence)
