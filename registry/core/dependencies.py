"""Who waits for whom: whether a dependency is as it is needed, and in what order services start and stop.

Rule 1: a service starts once each of its dependencies is as it asks. Rule 2: one that is to stop waits until
those that depend on it and are stopping, too, are gone. Rule 3: with `restart = true` a dependent follows
its dependency's restarts and stops. All three look at states alone, so they can be asked again at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

import msgspec

from registry.core.definition import Condition, Definition, Dependency
from registry.core.lifecycle import Reason, State
from registry.core.service import HAS_RUN, UP, Service

Services = Mapping[str, Service]


class Around(msgspec.Struct, frozen=True):
    """What a service's neighbours mean for it.

    `waits`: a dependency is not as it is needed. `held`: dependents of it are stopping. `follows`: a dependency
    that it follows was restarted, or stopped by somebody, since its run began.
    """

    waits: bool = False
    held: bool = False
    follows: bool = False


ALONE = Around()


class Graph:
    """Who depends on whom, both ways, by what is declared."""

    def __init__(self, definitions: Iterable[Definition] = ()) -> None:
        self._needs: dict[str, tuple[Dependency, ...]] = {}
        self._dependents: dict[str, dict[str, None]] = {}
        for definition in definitions:
            self.declare(definition)

    def declare(self, definition: Definition) -> None:
        """Take in what a service depends on, instead of what it did."""
        self.forget(definition.name)
        if definition.depends_on:
            self._needs[definition.name] = definition.depends_on
        for dependency in definition.depends_on:
            self._dependents.setdefault(dependency.service, {})[definition.name] = None

    def forget(self, name: str) -> None:
        """It depends on nothing any more."""
        for dependency in self._needs.pop(name, ()):
            dependents = self._dependents.get(dependency.service, {})
            dependents.pop(name, None)
            if not dependents:
                self._dependents.pop(dependency.service, None)

    def dependents(self, name: str) -> Collection[str]:
        """Those that depend on it directly."""
        return self._dependents.get(name, {}).keys()

    def dependencies(self, name: str) -> Iterator[str]:
        """Those that it depends on directly."""
        return (dependency.service for dependency in self._needs.get(name, ()))

    def needing(self, name: str, services: Services) -> Iterator[str]:
        """Those that depend on it, directly or through oneshots at rest."""
        return _reached(name, self.dependents, services)

    def neighbours(self, name: str, services: Services) -> Iterator[str]:
        """Those that depend on it, and those that it depends on, directly or through oneshots at rest."""
        yield from self.needing(name, services)
        yield from _reached(name, self.dependencies, services)

    def stop_order(self, names: Iterable[str]) -> list[str]:
        """`names` and whoever depends on them, directly or not; each before what it depends on."""
        order: dict[str, None] = {}
        waiting = [(name, False) for name in reversed(list(names))]
        while waiting:
            name, are_dependents_done = waiting.pop()
            if are_dependents_done:
                order[name] = None
            elif name not in order:
                waiting.append((name, True))
                waiting += [(each, False) for each in self.dependents(name) if each not in order]
        return list(order)

    def depth(self) -> int:
        """How many services the longest chain of dependencies has."""
        depths: dict[str, int] = {}
        for name in reversed(self.stop_order(self._needs)):
            depths[name] = 1 + max(
                (depths.get(each, 1) for each in self.dependencies(name)), default=0
            )
        return max(depths.values(), default=1)


def _reached(
    name: str, next_to: Callable[[str], Iterable[str]], services: Services
) -> Iterator[str]:
    """Whom one gets to from a service, a oneshot at rest being no end: it passes on what it needed."""
    seen = {name}
    waiting = list(next_to(name))[::-1]
    while waiting:
        each = waiting.pop()
        if each in seen:
            continue
        seen.add(each)
        yield each
        if (service := services.get(each)) is not None and _is_done(service):
            waiting += list(next_to(each))[::-1]


def _is_done(service: Service) -> bool:
    """A oneshot at rest."""
    return service.definition.oneshot and service.state not in HAS_RUN


def is_met(dependency: Dependency, services: Services) -> bool:
    """Whether the service that is depended on is as `dependency` asks."""
    target = services.get(dependency.service)
    if target is None:
        return False
    is_to_run = (
        target.wanted and target.reason is Reason.WAITING
    )  # again: what it did before does not count
    has_completed = target.completed and target.state not in HAS_RUN and not is_to_run
    if dependency.condition is Condition.COMPLETED or target.definition.oneshot:
        return has_completed
    if not target.wanted:
        return False
    if dependency.condition is Condition.STARTED:
        return target.state in UP and target.pid is not None
    if target.state is not State.RUNNING:
        return False
    return dependency.condition is Condition.READY or _is_healthy(target)


def _is_healthy(service: Service) -> bool:
    return all(
        (state := service.checks.get(check.name)) is not None and state.healthy
        for check in service.definition.checks
    )


def unmet(service: Service, services: Services) -> list[Dependency]:
    """The dependencies that are not as they are needed, in the order of the definition.

    A oneshot that has completed passes on what it depends on: who needs a migration needs its database, too.
    """
    missing: list[Dependency] = []
    seen: set[str] = set()
    waiting = list(service.definition.depends_on)[::-1]
    while waiting:
        each = waiting.pop()
        if not is_met(each, services):
            missing.append(each)
        elif (target := services[each.service]).definition.oneshot and target.name not in seen:
            seen.add(target.name)
            waiting += target.definition.depends_on[::-1]
    return missing


def around(service: Service, services: Services, graph: Graph) -> Around:
    """What the neighbours of a service mean for it."""
    dependents = graph.dependents(service.name)
    if not dependents and not service.definition.depends_on:
        return ALONE
    held_by = graph.needing(service.name, services)
    return Around(
        waits=bool(unmet(service, services)),
        held=any(is_ending(services[name]) for name in held_by if name in services),
        follows=any(_has_moved_on(each, service, services) for each in _followed(service)),
    )


def is_ending(service: Service) -> bool:
    """Whether it is stopping, or is to."""
    return service.state is State.STOPPING or (service.state in UP and not service.wanted)


def _followed(service: Service) -> Iterator[Dependency]:
    """The dependencies that its run follows: a new `restart = true` counts from the next run on."""
    declared = service.definition.depends_on
    begun = service.run_definition.depends_on if service.run_definition else declared
    names = {each.service for each in begun if each.restart}
    return (each for each in declared if each.restart and each.service in names)


def _has_moved_on(dependency: Dependency, service: Service, services: Services) -> bool:
    target = services.get(dependency.service)
    if target is None:
        return False
    is_as_needed = is_met(dependency, services)
    if not target.wanted and not is_as_needed:  # a reset only forgets: it stops nobody
        return not target.definition.oneshot and target.reason is not Reason.RESET
    is_newer = (target.spawned_seq or 0) > (service.spawned_seq or 0) > 0
    return is_newer and is_as_needed


def needs(service: Service, services: Services) -> list[Service]:
    """What has to be started for `service` to start: nearest first, each once."""
    found: list[Service] = []
    seen = {service.name}
    waiting = unmet(service, services)[::-1]
    while waiting:
        target = services.get(waiting.pop().service)
        if target is None or target.name in seen:
            continue
        seen.add(target.name)
        if _is_down(target):
            found.append(target)
        waiting += unmet(target, services)[::-1]
    return found


def _is_down(service: Service) -> bool:
    """Down, with nothing under way that would bring it up."""
    rests = service.state in (State.STOPPED, State.FAILED) and service.reason is not Reason.WAITING
    return rests or not service.wanted


def is_settled(service: Service, services: Services) -> bool:
    """Whether a service has what its definition asks for now, or waits for one that will not come by itself."""
    seen: set[str] = set()
    asked = [service]
    while asked:
        each = asked.pop()
        if each.name in seen:
            continue
        seen.add(each.name)
        if each.reason is Reason.WAITING and each.wanted:
            missing = unmet(each, services)
            if not missing:
                return False
            if any(_is_awaited(need, services) for need in missing):
                return False
            asked += [services[need.service] for need in missing if need.service in services]
        elif not _rests(each):
            return False
    return True


def _is_awaited(need: Dependency, services: Services) -> bool:
    """Whether it runs, and a check of it that is needed has not spoken yet."""
    target = services.get(need.service)
    if (
        target is None
        or need.condition is not Condition.HEALTHY
        or target.state is not State.RUNNING
    ):
        return False
    states = [target.checks.get(check.name) for check in target.definition.checks]
    return any(state is None or state.healthy is None for state in states)


def _rests(service: Service) -> bool:
    if service.state is State.RUNNING:
        return service.wanted and not service.definition.oneshot
    return service.state in (State.STOPPED, State.FAILED)
