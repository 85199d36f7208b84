"""Where a decision stands, and the records that it makes: each is folded at once, so that the next sees it."""

from __future__ import annotations

from typing import Any

import msgspec

from registry.core import events as ev
from registry.core.dependencies import ALONE, Around
from registry.core.lifecycle import Reason, move
from registry.core.service import Service, evolve


class Place(msgspec.Struct, frozen=True):
    """Where a decision stands: the clocks, the next sequence number, the neighbours, and what it continues, if
    anything.
    """

    now: ev.Now
    seq: int
    journal_id: str
    decision: int | None = None
    around: Around = ALONE


class Decision:
    """Records as they are decided: each is folded at once, so that the next step sees it."""

    def __init__(self, service: Service, place: Place, actor: ev.Actor | None = None) -> None:
        self.service = service
        self.place = place
        self.actor = actor
        self.records: list[ev.Record] = []

    def move(
        self,
        trigger: str,
        kind: type[ev.Moved],
        reason: Reason,
        *,
        given: object = None,
        cause: int | None = None,
        run: int | None = None,
        **fields: Any,
    ) -> bool:
        """Make the move if the table has it; what it journals is caused by `cause`, else by the step before."""
        source = self.service.state
        dest = move(self.service, trigger, given)
        if dest is None:
            return False
        self.add(kind(source=source, dest=dest, reason=reason, **fields), cause=cause, run=run)
        return True

    def add(self, event: ev.Event, *, cause: int | None = None, run: int | None = None) -> None:
        """Journal a fact; its cause is that of `move`. `run` 0 is none, None the present one."""
        seq = self.place.seq + len(self.records)
        record = ev.Record(
            seq=seq,
            at_ns=self.place.now.at_ns,
            mono_ns=self.place.now.mono_ns,
            decision=self.place.decision or self.place.seq,
            service=self.service.name,
            run=(self.service.run if run is None else run) or None,
            cause=self.records[-1].seq if self.records else cause,
            actor=self.actor,
            event=event,
        )
        evolve(self.service, record)
        self.records.append(record)
