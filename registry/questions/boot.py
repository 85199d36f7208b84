"""How a start of the registry went: what took how long, and the chain of dependencies that took longest. Pure.

Times are seconds after the registry's own `registry_started`, by CLOCK_BOOTTIME. When a service had what a dependent
asks for is said by the rule that lets dependents start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from registry.core import events as ev
from registry.core.definition import Condition, Dependency
from registry.core.dependencies import is_met, is_settled
from registry.core.lifecycle import State
from registry.core.projection import Projection
from registry.core.service import Service
from registry.questions.records import rfc3339

_NS = 1_000_000_000


class ServiceStart(msgspec.Struct, frozen=True):
    """The first start of a service in this life of the registry; what did not come is null.

    `asked_s` is when it was to start, `began_s` when nothing held it back, `spawned_s` and `done_s` when it was
    ready (a oneshot: completed). `waited_s`, `spawn_s` and `ready_s` are the times in between, `took_s` the last two.
    `result` is what came of it: `ready`, `completed`, `adopted`, `failed`, `stopped`, `waiting` or `starting`.
    """

    service: str
    result: str
    asked_s: float | None
    began_s: float | None
    spawned_s: float | None
    done_s: float | None
    waited_s: float | None
    spawn_s: float | None
    ready_s: float | None
    took_s: float | None


class Link(msgspec.Struct, frozen=True):
    """A service of the critical chain: it began at `began_s`, took `took_s`, and had to be `condition` for the next."""

    service: str
    condition: str
    began_s: float
    took_s: float


class Boot(msgspec.Struct, frozen=True):
    """A start of the registry. `fresh`: services were started, not only taken over; `seconds`: until all were done.

    `services` are those that were to start, the slowest first, and then those taken over. `chain` ends with the
    service that was done last (or the one asked for); each link is what the next one waited for longest.
    """

    seq: int
    at: str
    version: str
    pid: int
    fresh: bool
    seconds: float | None
    services: tuple[ServiceStart, ...] = ()
    chain: tuple[Link, ...] = ()


class _Start(msgspec.Struct):
    """The first start of a service, as far as it is known: nanoseconds after the registry's."""

    asked_ns: int | None = None
    began_ns: int | None = None
    spawned_ns: int | None = None
    done_ns: int | None = None
    result: str | None = None
    met_ns: dict[Condition, int] = {}


class Beginning:
    """Folds the events of a life of the registry from its start on; `projection` is what they come to up to it.

    Raises AssertionError where `started` is no start.
    """

    def __init__(self, projection: Projection, started: ev.Record) -> None:
        assert isinstance(started.event, ev.RegistryStarted)
        self._started = started
        self._event = started.event
        self._projection = projection
        self._starts: dict[str, _Start] = {}
        self.is_over = False

    def fold(self, records: Iterable[ev.Record]) -> None:
        """Take in the next events, in order; of another life none."""
        for record in records:
            if self.is_over or isinstance(record.event, ev.RegistryStarted):
                self.is_over = True
                return
            self._projection.fold((record,))
            service = self._projection.services.get(record.service or "")
            if service is not None:
                self._take(record, service)
        services = self._projection.services
        self.is_over = all(is_settled(each, services) for each in services.values())

    def _take(self, record: ev.Record, service: Service) -> None:
        start = self._starts.setdefault(service.name, _Start())
        now_ns = record.mono_ns - self._started.mono_ns
        self._note_met(start, service, now_ns)
        if start.result is not None:
            return
        event = record.event
        match event:
            case ev.Adopted():
                start.result = "adopted"
            case ev.StartRequested() | ev.RestartRequested() if start.asked_ns is None:
                if record.actor is None:  # else it is no part of the start
                    start.asked_ns = now_ns
            case ev.Spawned() if start.asked_ns is not None:
                start.spawned_ns = now_ns
            case ev.BecameReady() if start.asked_ns is not None:
                if not service.definition.oneshot:
                    start.done_ns, start.result = now_ns, "ready"
            case ev.Moved() if start.asked_ns is not None and event.dest in _OVER:
                self._rest(start, service, now_ns)
        if start.asked_ns is not None and start.began_ns is None:
            start.began_ns = now_ns if service.state is State.STARTING else None

    def _rest(self, start: _Start, service: Service, now_ns: int) -> None:
        """It is down again, or does not come up."""
        if service.state is State.FAILED:
            start.result = "failed"
        elif service.completed:
            start.done_ns, start.result = now_ns, "completed"
        elif not service.wanted:
            start.result = "stopped"

    def _note_met(self, start: _Start, service: Service, now_ns: int) -> None:
        """Since when it is as dependents may ask."""
        for condition in Condition:
            if condition not in start.met_ns and is_met(
                Dependency(service.name, condition), self._projection.services
            ):
                start.met_ns[condition] = now_ns

    def answer(self, name: str | None = None) -> Boot:
        """What took how long; the chain ends with `name`, or with what was done last."""
        services = self._projection.services
        begun = {n: s for n, s in self._starts.items() if s.asked_ns is not None or s.result}
        told = [_told(n, s, services.get(n)) for n, s in begun.items()]
        told.sort(key=lambda each: (-(each.took_s or -1.0), each.service))
        done = {each.service: each.done_s for each in told if each.done_s is not None}
        last = name if name is not None else max(done, key=lambda n: done[n], default=None)
        return Boot(
            seq=self._started.seq,
            at=rfc3339(self._started.at_ns),
            version=self._event.version,
            pid=self._event.pid,
            fresh=self._event.fresh,
            seconds=max(done.values(), default=None),
            services=tuple(told),
            chain=tuple(_chain(last, begun, services)),
        )


_OVER = (State.FAILED, State.STOPPED, State.STOPPING)


def _told(name: str, start: _Start, service: Service | None) -> ServiceStart:
    return ServiceStart(
        service=name,
        result=start.result or _so_far(service),
        asked_s=_s(start.asked_ns),
        began_s=_s(start.began_ns),
        spawned_s=_s(start.spawned_ns),
        done_s=_s(start.done_ns),
        waited_s=_between(start.asked_ns, start.began_ns),
        spawn_s=_between(start.began_ns, start.spawned_ns),
        ready_s=_between(start.spawned_ns, start.done_ns),
        took_s=_between(start.began_ns, start.done_ns),
    )


def _so_far(service: Service | None) -> str:
    if service is None or not service.wanted:
        return "stopped"
    return "waiting" if service.state is State.STOPPED else "starting"


def _chain(
    last: str | None, starts: Mapping[str, _Start], services: Mapping[str, Service]
) -> list[Link]:
    """From the first that others waited for to `last`."""
    links: list[Link] = []
    condition = Condition.READY
    seen: set[str] = set()
    while last is not None and last not in seen and last in starts:
        seen.add(last)
        start = starts[last]
        done_ns = start.met_ns.get(condition, start.done_ns)
        if start.began_ns is None or done_ns is None:
            break
        took_ns = max(0, done_ns - start.began_ns)
        links.append(Link(last, condition.value, start.began_ns / _NS, took_ns / _NS))
        last, condition = _waited_for(last, start.began_ns, starts, services)
    return links[::-1]


def _waited_for(
    name: str, began_ns: int, starts: Mapping[str, _Start], services: Mapping[str, Service]
) -> tuple[str | None, Condition]:
    """The dependency that was the last to be as it was needed, of those that started in this life, too."""
    needs = services[name].definition.depends_on if name in services else ()
    met = [
        (at_ns, each)
        for each in needs
        if (start := starts.get(each.service)) is not None
        and start.asked_ns is not None
        and (at_ns := start.met_ns.get(each.condition)) is not None
        and at_ns <= began_ns
    ]
    if not met:
        return None, Condition.READY
    _, need = max(met, key=lambda each: each[0])
    return need.service, need.condition


def _s(at_ns: int | None) -> float | None:
    return at_ns / _NS if at_ns is not None else None


def _between(from_ns: int | None, to_ns: int | None) -> float | None:
    return (to_ns - from_ns) / _NS if from_ns is not None and to_ns is not None else None
