"""What a new configuration would change: services added, removed, changed (which keys), and who is started anew."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec

from registry.core.changes import changed_keys, keys_for_a_new_run
from registry.core.definition import Definition
from registry.core.lifecycle import State
from registry.core.service import UP, Service

_SILENT = frozenset({"position"})


class Change(msgspec.Struct, frozen=True):
    """One service. `change` is `add`, `remove` or `change`; `restarts` says why a run ends, or is null.

    `keys` are those that differ, `restart_keys` those of them that only a new run can take up, if need be its next.
    """

    service: str
    change: str
    keys: tuple[str, ...] = ()
    restart_keys: tuple[str, ...] = ()
    restarts: str | None = None


class Plan(msgspec.Struct, frozen=True):
    """All that an apply would do, in the order of the file; what was removed comes last.

    `settings` are those of the registry itself that change at once, `later` those that only its next start can
    take up. `warnings` are what stands in the way of services that are added or changed.
    """

    changes: tuple[Change, ...] = ()
    settings: tuple[str, ...] = ()
    later: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def plan(services: Mapping[str, Service], definitions: Iterable[Definition]) -> Plan:
    """Compare what is declared with what would be."""
    wanted = {definition.name: definition for definition in definitions}
    changes = {name: _change(services.get(name), new) for name, new in wanted.items()}
    removed = [
        Change(name, "remove", restarts="its run ends" if service.pid is not None else None)
        for name, service in services.items()
        if name not in wanted
    ]
    anew = {name for name, change in changes.items() if change is not None and change.restarts}
    followers = _followers(anew, services, wanted)
    for name, leader in followers.items():
        known = changes[name] or Change(name, "change")
        changes[name] = msgspec.structs.replace(known, restarts=f"follows {leader}")
    found = [change for change in changes.values() if change is not None]
    return Plan((*found, *removed))


def _change(service: Service | None, new: Definition) -> Change | None:
    if service is None or service.removing:
        return Change(new.name, "add")
    keys = [key for key in changed_keys(service.definition, new) if key not in _SILENT]
    runs_by = service.run_definition or service.definition
    anew = keys_for_a_new_run(runs_by, new)
    restarts = None
    if anew and _is_running(service):
        restarts = "its run ends, another begins"
    elif keys and service.state is State.FAILED and service.wanted:
        restarts = "it had failed, and is started"
    if not keys and restarts is None:  # a run that is ending need not take anything up
        return None
    return Change(new.name, "change", tuple(dict.fromkeys((*keys, *anew))), anew, restarts)


def _is_running(service: Service) -> bool:
    return service.state in UP and service.wanted and service.pid is not None


def _followers(
    anew: Collection[str], services: Mapping[str, Service], wanted: Mapping[str, Definition]
) -> dict[str, str]:
    """Who is restarted because one that it follows is: by name, each with the one that it follows."""
    found: dict[str, str] = {}
    waiting = list(anew)
    while waiting:
        leader = waiting.pop()
        for name, definition in wanted.items():
            is_new = name not in found and name not in anew
            if is_new and name in services and _follows(services[name], definition, leader):
                found[name] = leader
                waiting.append(name)
    return found


def _follows(service: Service, new: Definition, leader: str) -> bool:
    """Whether its run follows `leader`: a new `restart = true` counts from the next run on."""
    begun = service.run_definition or service.definition
    return _is_running(service) and all(
        any(each.service == leader and each.restart for each in definition.depends_on)
        for definition in (begun, new)
    )
