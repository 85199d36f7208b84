"""Who needs whom: the names in `depends_on` become services, and what can never come true is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

import msgspec

from registry.config.complaints import Sheet, suggestion
from registry.config.keys import Need, Service
from registry.config.lines import Place
from registry.config.services import Declared
from registry.core.definition import Condition, Definition, Dependency, Policy

_TOLD_MAX = 8
"""Steps of a circle that are told one by one."""


def resolve(sheet: Sheet, declared: Sequence[Declared]) -> list[Service]:
    """Every service with its dependencies; a name declared with instances stands for all of them."""
    by_name = services_by_name(declared)
    services = [service for each in declared for service in _resolved(sheet, each, by_name)]
    _refuse_circles(sheet, declared, by_name)
    return services


def services_by_name(declared: Sequence[Declared]) -> dict[str, Declared]:
    """Who is meant by a name: that of a `[[service]]`, or of one of its instances."""
    by_name: dict[str, Declared] = {}
    for each in declared:
        for name in (each.name, *each.names()):
            by_name.setdefault(name, each)
    by_name.pop("", None)
    return by_name


def nobody(name: str, by_name: Mapping[str, Declared]) -> str:
    """The sentence for a name that no service has."""
    known = [known for known in by_name if "@" in name or "@" not in known]
    hint = suggestion(name, known, otherwise="; declare it or leave it out")
    return f"there is no service {json.dumps(name)}{hint}"


def _resolved(sheet: Sheet, owner: Declared, by_name: Mapping[str, Declared]) -> list[Service]:
    faults = len(sheet)
    resolved = []
    for service in owner.services:
        needed: dict[str, Dependency] = {}
        for need in service.needs:
            _add(sheet, owner, need, by_name, needed)
        definition = msgspec.structs.replace(service.definition, depends_on=tuple(needed.values()))
        resolved.append(msgspec.structs.replace(service, definition=definition))
        if len(sheet) > faults:
            break  # it speaks for all instances
    return resolved


def _add(
    sheet: Sheet,
    owner: Declared,
    need: Need,
    by_name: Mapping[str, Declared],
    needed: dict[str, Dependency],
) -> None:
    """What `need` comes to, into `needed`; or a complaint."""
    other = by_name.get(need.service)
    if other is None:
        base = by_name.get(need.service.partition("@")[0])
        if base is None or base.is_sound:
            sheet.refuse(need.place, owner.name, nobody(need.service, by_name))
    elif other is owner:
        sheet.refuse(need.place, owner.name, "a service cannot wait for itself; leave it out")
    else:
        condition = _condition(sheet, owner, need, other)
        for name in other.names() if need.service == other.name else (need.service,):
            if name in needed:
                sheet.refuse(need.place, owner.name, f"names '{name}' twice; once is enough")
            needed[name] = Dependency(name, condition, need.restart)


def _condition(sheet: Sheet, owner: Declared, need: Need, other: Declared) -> Condition:
    """What is waited for; a complaint where that can never come true."""
    definition = other.services[0].definition
    condition = need.condition
    if condition is None:
        condition = Condition.COMPLETED if definition.oneshot else Condition.READY
    never = _never(other.name, definition, condition) if other.is_sound else None
    if never:
        sheet.refuse(need.place, owner.name, never)
    return condition


def _never(name: str, definition: Definition, condition: Condition) -> str | None:
    if condition is Condition.HEALTHY and not definition.checks:
        return f'\'{name}\' has no health_check, so it is never "healthy"; write "ready"'
    if (
        condition is Condition.COMPLETED
        and not definition.oneshot
        and definition.restart.policy is Policy.ALWAYS
    ):
        return (
            f"'{name}' is always started again, so it is never \"completed\"; "
            'write "ready", or give it oneshot = true'
        )
    return None


def _refuse_circles(
    sheet: Sheet, declared: Sequence[Declared], by_name: Mapping[str, Declared]
) -> None:
    """Complain about every circle once, at the service in it that is declared first."""
    needs = {each.name: _needs(each, by_name) for each in reversed(declared) if each.name}
    order = {name: number for number, name in enumerate(reversed(needs))}
    while circle := _circle({name: list(of) for name, of in needs.items()}):
        start = circle.index(min(circle, key=order.__getitem__))
        circle = circle[start:] + circle[:start]
        pairs = list(zip(circle, [*circle[1:], circle[0]], strict=True))
        told = f"{_spelled_out(pairs)}: break the circle"
        sheet.refuse(needs[circle[0]][pairs[0][1]], circle[0], told)
        for name, needed in pairs:
            needs[name].pop(needed, None)


def _spelled_out(pairs: Sequence[tuple[str, str]]) -> str:
    """Who needs whom; of many the first ones and the last."""
    told = [f"{name} needs {needed}" for name, needed in pairs]
    if len(told) > _TOLD_MAX:
        told = [*told[: _TOLD_MAX - 1], f"... ({len(told) - _TOLD_MAX} more)", told[-1]]
    return ", ".join(told)


def _needs(declared: Declared, by_name: Mapping[str, Declared]) -> dict[str, Place]:
    """Whom a `[[service]]` needs, and where it says so."""
    places: dict[str, Place] = {}
    for need in (need for service in declared.services for need in service.needs):
        other = by_name.get(need.service)
        if other is not None and other.name != declared.name:
            places.setdefault(other.name, need.place)
    return places


def _circle(needs: Mapping[str, Sequence[str]]) -> list[str] | None:
    """Names each of which needs the next, and the last the first; None where there is no circle."""
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        names: list[str] = error.args[1]
        return names[:0:-1]
    return None
