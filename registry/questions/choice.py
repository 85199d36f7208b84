"""Which events are asked for: by their types, those that somebody asked for, those that tell of a failure."""

from __future__ import annotations

from typing import NamedTuple

from registry.core import events as ev
from registry.core.lifecycle import Reason, State

FAILURES = (
    ev.SpawnFailed,
    ev.StartTimedOut,
    ev.StopTimedOut,
    ev.MemoryExceeded,
    ev.BecameUnhealthy,
    ev.Lost,
    ev.GaveUp,
)
"""The types of events that always tell of one."""


class Choice(NamedTuple):
    """Events of these types, with an actor, or that tell of a failure: of all that is asked for. Of nothing, all."""

    types: frozenset[str] = frozenset()
    actions: bool = False
    failures: bool = False

    def takes(self, record: ev.Record) -> bool:
        """Whether an event is asked for."""
        if not any(self):
            return True
        return (
            record.type in self.types
            or (self.actions and record.actor is not None)
            or (self.failures and is_failure(record.event))
        )


ALL = Choice()


def is_failure(event: ev.Event) -> bool:
    """Whether something went wrong: what always did, an end that nobody asked for and was not clean, its last words."""
    match event:
        case ev.Exited():
            return event.source is not State.STOPPING and event.reason is not Reason.COMPLETED
        case ev.OutputEnded():
            return bool(event.lines or event.dropped)
        case ev.RequestDone():
            return event.error is not None
        case _:
            return isinstance(event, FAILURES)
