"""In what two courses of services differ: what adds up on each side, and the moments at which they part. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from registry.core import events as ev
from registry.core.lifecycle import Reason, State
from registry.core.service import Service


class Side(msgspec.Struct):
    """What adds up of one service on one side: automatic restarts, how often it gave up, and for how long it was
    wanted up and not Running, in nanoseconds (0 for oneshots).
    """

    declared: bool = False
    restarts: int = 0
    gave_up: int = 0
    down_ns: int = 0


class Row(msgspec.Struct, frozen=True):
    """A moment at which the courses of a service differ: what was decided then, and what would have been.

    `state` is where it would have been after that. `note` says what became unknown, or known again.
    """

    at_ns: int
    service: str
    recorded: tuple[ev.Record, ...] = ()
    what_if: tuple[ev.Record, ...] = ()
    state: str = ""
    note: str = ""


class Course(msgspec.Struct):
    """One service: what was and what would have been, for how long that is unknown, and what was recorded meanwhile."""

    name: str
    recorded: Side
    what_if: Side
    unknown_ns: int = 0
    meanwhile: Side = msgspec.field(default_factory=Side)
    unknown: str = ""


class Answer(msgspec.Struct, frozen=True):
    """The whole: from when to when (UTC), the services, and in order of time the moments at which they differ."""

    from_ns: int
    to_ns: int
    courses: tuple[Course, ...]
    rows: tuple[Row, ...]


def add(side: Side, record: ev.Record) -> None:
    """Add what a record is to one side."""
    match record.event:
        case ev.RestartScheduled(reason=reason):
            side.restarts += reason is not Reason.NEVER_RAN
        case ev.RestartRequested(reason=Reason.DEPENDENCY):
            side.restarts += 1
        case ev.GaveUp():
            side.gave_up += 1


def is_down(service: Service) -> bool:
    """Whether it is wanted up and does not run; a oneshot never is."""
    is_up = service.state is State.RUNNING
    return service.wanted and not is_up and not service.definition.oneshot


def told(records: Iterable[ev.Record]) -> tuple[Any, ...]:
    """What two decisions have to have in common to be the same: the moves, but for mere reports."""
    return tuple(_move(each) for each in records if _is_move(each.event))


def _is_move(event: ev.Event) -> bool:
    if isinstance(event, ev.Defined | ev.Redefined) or not isinstance(event, ev.Moved):
        return False
    return not (isinstance(event, ev.BecameUnhealthy) and event.source is event.dest)


def _move(record: ev.Record) -> tuple[Any, ...]:
    event = record.event
    assert isinstance(event, ev.Moved)
    extra: tuple[Any, ...] = ()
    if isinstance(event, ev.RestartScheduled):
        extra = (event.attempt, round(event.delay_s, 3))
    return (event.TYPE, event.source, event.dest, event.reason, extra)
