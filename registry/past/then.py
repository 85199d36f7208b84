"""The services at a moment, as the fold of the journal until then has them."""

from __future__ import annotations

from typing import Any, NamedTuple

from registry.core.projection import Projection
from registry.core.service import Service
from registry.journal.opening import Connection
from registry.journal.read import at_of, fold, last_seq, last_seq_at
from registry.questions import names
from registry.questions.moments import At, Moment
from registry.questions.records import rfc3339
from registry.questions.refusal import INVALID, UNKNOWN, Refusal


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


def then(journal: Connection, at: At | None) -> Then:
    """The services at a moment, or after the event of a number, or now. Raises Refusal, JournalError."""
    projection = fold(journal, seq_of(journal, at))
    at_ns = at_of(journal, projection.seq)
    asked_ns = at.last_ns if isinstance(at, Moment) else at_ns
    return Then(projection.seq, at_ns, asked_ns, projection)


def seq_of(journal: Connection, at: At | None) -> int:
    """The number of the last event that had happened then; 0 where none had. Raises Refusal, JournalError."""
    if isinstance(at, Moment):
        return last_seq_at(journal, at.last_ns)
    last = last_seq(journal)
    if at is None:
        return last
    if at > last:
        raise Refusal(INVALID, f"there is no event {at}: the last is event {last}")
    return at
