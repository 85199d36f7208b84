"""What led to an event: its recorded cause, or the order that decided what came of it.

An event has one recorded cause, that which let it happen then: of the end of a service that stops, say, the last order
that it was given. Where somebody's word decided what happened, that word is the cause that people ask for.
"""

from __future__ import annotations

from collections.abc import Iterator
from signal import Signals
from typing import Protocol

from registry.core import events as ev
from registry.core.lifecycle import State
from registry.questions.outlook import Services


class Evidence(Protocol):
    """The journal, up to the moment that is asked about."""

    def record(self, seq: int) -> ev.Record | None:
        """The event of a number."""

    def newest(self, service: str, last: int | None = None) -> Iterator[ev.Record]:
        """The events of a service, newest first, from event `last` on where that is given."""


def cause_of(record: ev.Record, services: Services, evidence: Evidence) -> ev.Record | None:
    """Whoever ordered what happened, else the recorded cause; None where there is neither."""
    if record.service is not None:
        before = evidence.newest(record.service, record.seq - 1)
        if (decided := _decided(record, before, services)) is not None:
            return decided
    return evidence.record(record.cause) if record.cause is not None else None


def latest_order(newest: Iterator[ev.Record]) -> ev.Record | None:
    """The last order to a service that was stopping already, by its events, newest first."""
    for record in newest:
        event = record.event
        if isinstance(event, ev.Moved) and event.source is not State.STOPPING:
            return None
        if isinstance(event, ev.StartRequested | ev.StopRequested | ev.RestartRequested):
            return record
    return None


def signal_name(number: int) -> str:
    """`SIGKILL`; of a real-time signal its number."""
    try:
        return Signals(number).name
    except ValueError:
        return f"signal {number}"


def _decided(
    record: ev.Record, before: Iterator[ev.Record], services: Services
) -> ev.Record | None:
    """What decided an event of a service, by the events before it, newest first."""
    event = record.event
    match event:
        case ev.GroupEmptied():  # where it goes then is for the last word of anybody to say
            return latest_order(before)
        case ev.DependentsGone():  # that is only what its stop waited for
            return next((each for each in before if isinstance(each.event, ev.StopRequested)), None)
        case ev.Exited(source=State.STOPPING) | ev.Lost(source=State.STOPPING):
            return next(filter(_stops, before), None)  # whatever was said to it meanwhile
        case ev.Exited() if event.signal is not None:
            return _sent(record, signal_name(event.signal), before, services)
        case ev.ProbeChanged() if event.ok:  # it is owed to its run's having been started
            run = record.run
            return next((each for each in before if _begins(each, run)), None)
        case _:
            return None


def _sent(
    ended: ev.Record, signal: str, before: Iterator[ev.Record], services: Services
) -> ev.Record | None:
    """The request by which the registry had sent a run the signal that it ended by."""
    service = services.get(ended.service or "")
    reload = service.definition.reload if service else None
    undone: set[int] = set()
    for record in before:
        if record.run != ended.run:
            return None
        match record.event:
            case ev.RequestDone(request=request, error=error) if error is not None:
                undone.add(request)
            case ev.SignalRequested(signal=asked) if asked == signal and record.seq not in undone:
                return record
            case ev.ReloadRequested() if reload is not None and reload.signal == signal:
                if record.seq not in undone:
                    return record
    return None


def _stops(record: ev.Record) -> bool:
    """Whether a service began to stop with it."""
    event = record.event
    return isinstance(event, ev.Moved) and event.source is not event.dest is State.STOPPING


def _begins(record: ev.Record, run: int | None) -> bool:
    return record.run == run and isinstance(record.event, ev.Spawned)
