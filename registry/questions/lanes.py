"""The lanes: what every service was through a stretch of events, as what changed, and what happened meanwhile.

The one source of the HTML report and of the still picture. Times are microseconds, UTC.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

import msgspec

from registry.core.definition import Dependency
from registry.core.dependencies import Graph
from registry.core.events import Defined, Moved, OutputEnded, ProbeChanged, Record, Redefined
from registry.core.lifecycle import State
from registry.core.projection import Projection
from registry.core.service import Service
from registry.questions.records import event_record, health
from registry.questions.timeline import happened
from registry.questions.waiting import waiting_for

_US = 1000
"""Nanoseconds in a microsecond."""

Value = str | int | None


class Field(NamedTuple):
    """One thing that a table of services shows. `kind` is `word`, `number` or `time` (microseconds, UTC)."""

    name: str
    kind: str


FIELDS = (
    Field("status", "word"),
    Field("health", "word"),
    Field("pid", "number"),
    Field("run", "number"),
    Field("restarts", "number"),
    Field("since", "time"),
    Field("reason", "word"),
    Field("wanted", "word"),
    Field("waiting_for", "word"),
    Field("next_restart_at", "time"),
    Field("message", "word"),
    Field("needs", "word"),
)
"""What is known of a service; `needs` are its dependencies, as in `db:ready cache:started`. A service that is not
declared has null for each of them.
"""
STATUS, HEALTH, WAITING_FOR, NEEDS = (
    [field.name for field in FIELDS].index(name)
    for name in ("status", "health", "waiting_for", "needs")
)
_UNDECLARED: tuple[Value, ...] = (None,) * len(FIELDS)


class Kind(StrEnum):
    """What an event is in a picture: the first eight are marked, or may be chosen by."""

    GAVE_UP = "gave_up"
    FAILED = "failed"
    UNHEALTHY = "unhealthy"
    RESTART = "restart"
    ASKED = "asked"
    HEALTHY = "healthy"
    READY = "ready"
    REGISTRY = "registry"
    OTHER = "other"


TROUBLE = frozenset({Kind.GAVE_UP, Kind.FAILED, Kind.UNHEALTHY})

_KINDS = {
    "gave_up": Kind.GAVE_UP,
    "spawn_failed": Kind.FAILED,
    "became_unhealthy": Kind.UNHEALTHY,
    "start_timed_out": Kind.UNHEALTHY,
    "stop_timed_out": Kind.UNHEALTHY,
    "memory_exceeded": Kind.UNHEALTHY,
    "restart_scheduled": Kind.RESTART,
    "restart_requested": Kind.RESTART,
    "became_healthy": Kind.HEALTHY,
    "became_ready": Kind.READY,
    "journal_created": Kind.REGISTRY,
    "journal_copied": Kind.REGISTRY,
    "registry_started": Kind.REGISTRY,
    "registry_stopped": Kind.REGISTRY,
    "adopted": Kind.REGISTRY,
}


def kind_of(record: Record) -> Kind:
    """What an event is in a picture: what came into Failed has failed, whatever the event is called."""
    event = record.event
    if record.actor is not None and record.type.endswith("_requested"):
        return Kind.ASKED
    if known := _KINDS.get(record.type):
        return known
    is_move = isinstance(event, Moved) and event.dest is State.FAILED is not event.source
    return Kind.FAILED if is_move else Kind.OTHER


class Happening(NamedTuple):
    """An event in words. `axis_us` never runs backwards: where the clock was set back it runs on."""

    seq: int
    at_us: int
    axis_us: int
    service: str | None
    run: int | None
    type: str
    kind: Kind
    text: str
    cause: int | None
    lines: tuple[str, ...]


Change = tuple[int, Value]
"""The index in Lanes.events of the event that left it so, and what it was from there on; -1: before the first."""


class Lane(msgspec.Struct):
    """One service: the changes of each of FIELDS, in order."""

    name: str
    position: int
    changes: tuple[list[Change], ...]
    now: tuple[Value, ...] = _UNDECLARED

    def become(self, index: int, row: tuple[Value, ...]) -> bool:
        """Take in what it is after event `index`; whether that is anything new."""
        if row == self.now:
            return False
        for changes, old, new in zip(self.changes, self.now, row, strict=True):
            if old != new:
                changes.append((index, new))
        self.now = row
        return True


class Lanes(msgspec.Struct):
    """A stretch of a journal. `elsewhere` are causes that lie before it, or are of services that were not chosen."""

    journal_id: str
    lanes: list[Lane]
    events: list[Happening]
    elsewhere: list[Happening]


Find = Callable[[Collection[int]], Iterable[Record]]
"""The records of some numbers."""


def lanes(
    before: Projection, records: Iterable[Record], find: Find, chosen: Collection[str] = ()
) -> Lanes:
    """The lanes of `chosen` services (all, where none is) from `before` on, which is folded along.

    Events of other services are among them where they changed what a chosen one waits for.
    Raises KeyError or AssertionError for an event that does not follow from those before it.
    """
    drawing = _Drawing(before, chosen)
    for record in records:
        drawing.take(record)
    found = drawing.finish()
    found.elsewhere = _causes(found.events, find, drawing.owed)
    return found


class _Drawing:
    """The fold, and what it is told as."""

    def __init__(self, projection: Projection, chosen: Collection[str]) -> None:
        self._projection = projection
        self._chosen = frozenset(chosen)
        self._graph = Graph(service.definition for service in projection.services.values())
        self._lanes: dict[str, Lane] = {}
        self._events: list[Happening] = []
        self._axis = _Axis()
        self.owed: dict[int, int] = {}
        self._look_at(projection.services, -1)

    def take(self, record: Record) -> None:
        self._projection.fold((record,))
        axis_us = self._axis.place(record)
        index = len(self._events)
        has_changed = self._look_at(self._concerned(record), index)
        has_changed |= self._look_at(self._waiting_otherwise(record.service), index)
        if (owed := self._owed_to(record)) is not None:
            self.owed[record.seq] = owed
        if has_changed or record.service is None or self._is_chosen(record.service):
            self._events.append(_happening(record, axis_us, owed))

    def _owed_to(self, record: Record) -> int | None:
        """What led to an event; that a check of a run succeeds is owed to that run's having been started."""
        event = record.event
        if record.cause is not None or not isinstance(event, ProbeChanged) or not event.ok:
            return record.cause
        service = self._projection.services.get(record.service or "")
        return service.spawned_seq if service is not None and service.run == record.run else None

    def finish(self) -> Lanes:
        in_order = sorted(self._lanes.values(), key=lambda lane: (lane.position, lane.name))
        return Lanes(self._projection.journal_id, in_order, self._events, [])

    def _concerned(self, record: Record) -> Iterable[str]:
        """The services that an event is about."""
        if record.service is None:
            return [*self._projection.services]
        if isinstance(record.event, Defined | Redefined):
            self._graph.declare(record.event.definition)
        elif record.service not in self._projection.services:
            self._graph.forget(record.service)
        return [record.service]

    def _waiting_otherwise(self, name: str | None) -> list[str]:
        """The neighbours of a service that no longer wait for what they did."""
        if name is None:
            return []
        services = self._projection.services
        return [
            each
            for each in self._graph.neighbours(name, services)
            if each in self._lanes
            and each in services
            and waiting_for(services[each], services) != self._lanes[each].now[WAITING_FOR]
        ]

    def _is_chosen(self, name: str) -> bool:
        return not self._chosen or name in self._chosen

    def _look_at(self, names: Iterable[str], index: int) -> bool:
        """Note what services are after event `index`; whether any of them changed."""
        found = False
        for name in names:
            if self._is_chosen(name) and (name in self._lanes or name in self._projection.services):
                found |= self._lane(name).become(index, self._row(name))
        return found

    def _lane(self, name: str) -> Lane:
        service = self._projection.services.get(name)
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = Lane(name, 0, tuple([] for _ in FIELDS))
        if service is not None:
            lane.position = service.definition.position
        return lane

    def _row(self, name: str) -> tuple[Value, ...]:
        services = self._projection.services
        service = services.get(name)
        return _row(service, services) if service is not None else _UNDECLARED


def _row(service: Service, services: dict[str, Service]) -> tuple[Value, ...]:
    restart_ns = service.restart_at_ns
    return (
        service.state.value,
        health(service),
        service.pid,
        service.run or None,
        service.restarts,
        service.since_ns // _US if service.since_ns else None,
        service.reason.value,
        "up" if service.wanted else "down",
        waiting_for(service, services),
        restart_ns // _US if restart_ns is not None else None,
        service.message,
        _needs(service.definition.depends_on),
    )


@lru_cache(maxsize=10_000)
def _needs(depends_on: tuple[Dependency, ...]) -> str | None:
    return " ".join(f"{need.service}:{need.condition.value}" for need in depends_on) or None


class _Axis:
    """Places on an axis that never runs backwards, as the clock may have: by the other clock it runs on."""

    def __init__(self) -> None:
        self._last_us: int | None = None
        self._last_mono_us = 0
        self._shift_us = 0

    def place(self, record: Record) -> int:
        at_us, mono_us = record.at_ns // _US, record.mono_ns // _US
        last_us = self._last_us
        if last_us is None or at_us >= last_us:
            self._shift_us = 0
        elif at_us + self._shift_us < last_us:
            self._shift_us = last_us + max(0, mono_us - self._last_mono_us) - at_us
        self._last_us, self._last_mono_us = at_us + self._shift_us, mono_us
        return self._last_us


def _happening(record: Record, axis_us: int, cause: int | None) -> Happening:
    event = record.event
    return Happening(
        record.seq,
        record.at_ns // _US,
        axis_us,
        record.service,
        record.run,
        record.type,
        kind_of(record),
        happened(event_record(record)),
        cause,
        event.lines if isinstance(event, OutputEnded) else (),
    )


def _causes(events: list[Happening], find: Find, owed: Mapping[int, int]) -> list[Happening]:
    """What led to these events, and to that, as far as it is not among them."""
    known = {event.seq for event in events}
    found: dict[int, Happening] = {}
    missing = {event.cause for event in events if event.cause is not None} - known
    while missing:
        new = [
            _happening(record, record.at_ns // _US, owed.get(record.seq, record.cause))
            for record in find(sorted(missing))
        ]
        found |= {event.seq: event for event in new}
        missing = {event.cause for event in new if event.cause is not None} - known - found.keys()
    return [found[seq] for seq in sorted(found)]


# --- what pictures are made of --------------------------------------------------------------------


class Stretch(NamedTuple):
    """One value from an axis time to another."""

    begin_us: int
    end_us: int
    value: Value


def stretches(found: Lanes, lane: Lane, field: int) -> Iterator[Stretch]:
    """How long each value of a field was so; what is null is left out."""
    end_us = found.events[-1].axis_us
    places = [found.events[max(index, 0)].axis_us for index, _ in lane.changes[field]]
    for (_, value), begin_us, until_us in zip(
        lane.changes[field], places, [*places[1:], end_us], strict=False
    ):
        if value is not None:
            yield Stretch(begin_us, until_us, value)
