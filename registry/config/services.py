"""From `[defaults]` and every `[[service]]` to definitions: names, instances, what two services cannot share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from registry.config import values
from registry.config.complaints import Sheet
from registry.config.keys import Service, read_own, read_shared
from registry.config.lines import Place
from registry.config.section import (
    Item,
    Section,
    Table,
    expand,
    instance_places,
    merge,
    table_of,
    with_instance,
)
from registry.core.definition import Definition

INSTANCES_MAX = 1000
NAME_MAX = 64
"""Characters in a service's name, `@` and the number of an instance included."""

OF_ONE = ("name", "cmd", "instances", "depends_on", "sockets")
_OF_ONE = frozenset(OF_ONE)


class Defaults(NamedTuple):
    """The keys of `[defaults]`, and what a service is that has none of its own that it could share.

    `alone` is None where each has to be read: the defaults differ by instance, or deserve complaints.
    """

    keys: Table
    alone: Service | None


class Declared(msgspec.Struct, frozen=True):
    """One `[[service]]` and what it was read to. `instances` is None where it declares none.

    Without `is_sound` there are complaints about it, and its definitions are not what was meant.
    """

    name: str
    place: Place
    instances: int | None
    services: tuple[Service, ...]
    is_sound: bool

    def names(self) -> tuple[str, ...]:
        """The names of its services."""
        if self.instances is None:
            return (self.name,)
        return tuple(f"{self.name}@{number}" for number in range(1, self.instances + 1))


def read_defaults(sheet: Sheet, item: Item, root: Path) -> Table:
    """The keys of `[defaults]`, complained about once and not once per service."""
    keys = expand(table_of(item) or {})
    for key in OF_ONE:
        if foreign := keys.pop(key, None):
            sheet.refuse(foreign.place, None, "belongs to one service; write it in its [[service]]")
    section = Section(sheet, Item(keys, item.place) if isinstance(item.value, dict) else item)
    if isinstance(item.value, dict):
        section = Section(sheet, with_instance(Item(keys, item.place), 1))
    read_shared(section, Definition(name="", cmd=()), root)
    section.close()
    return keys


def read_services(
    sheet: Sheet, lists: Sequence[Item], defaults: Table, root: Path
) -> list[Declared]:
    """Every `[[service]]` of every file, in order."""
    declared: list[Declared] = []
    shared = Defaults(defaults, _alone(defaults, root))
    position = 0
    for item in (each for list_ in lists for each in elements(sheet, list_, "service")):
        service = _declared(sheet, item, shared, root, position)
        declared.append(service)
        position += len(service.services)
    _refuse_same_names(sheet, declared)
    _refuse_same_addresses(sheet, declared)
    return declared


def _alone(defaults: Table, root: Path) -> Service | None:
    unheard = Sheet()
    keys = Item(merge(defaults, {}), ("service", 0))
    service = read_shared(Section(unheard, keys), Definition(name="", cmd=()), root)
    return None if len(unheard) or instance_places(keys) else service


def elements(sheet: Sheet, item: Item, key: str) -> list[Item]:
    """The tables of a list of tables, each with its place."""
    if isinstance(item.value, list):
        return [Item(value, (*item.place, number)) for number, value in enumerate(item.value)]
    shown = values.found(item.value)
    sheet.refuse(item.place, None, f"found {shown}; write [[{key}]] above each {key}")
    return []


def _declared(sheet: Sheet, item: Item, shared: Defaults, root: Path, position: int) -> Declared:
    own = table_of(item)
    number = item.place[-1]
    assert isinstance(number, int)
    shown = _usable_name(own or {}) or f"#{number + 1}"
    alone = shared.alone if (own or {}).keys() <= _OF_ONE else None
    keys = item
    if own is not None:
        keys = Item(own if alone else merge(shared.keys, expand(own)), item.place)
    faults = len(sheet)
    head = Section(sheet, keys, shown)
    if own is None:
        return Declared("", item.place, None, (), is_sound=False)
    name = head.take("name", values.service_name, "")
    instances = head.take("instances", values.whole(1, INSTANCES_MAX), None)
    if len(f"{name}@{instances}") > NAME_MAX and instances is not None:
        head.refuse(f"is longer than {NAME_MAX} characters with '@{instances}'; shorten it", "name")
    if not head.given("instances"):
        _refuse_placeholders(sheet, keys, shown)
    services: list[Service] = []
    for instance in range(1, (instances or 1) + 1):
        plain = Definition(name=name, cmd=(), position=position + instance - 1)
        if instances is not None:
            plain = _as_instance(plain, instance)
        # without instances nothing is to be replaced, unless it was complained of: once is enough
        is_literal = instances is None and len(sheet) == faults
        given = keys if is_literal else with_instance(keys, instance)
        services.append(_service(sheet, given, shown, plain, root, alone))
        if len(sheet) > faults:
            break  # it speaks for all of them
    return Declared(name, item.place, instances, tuple(services), len(sheet) == faults)


def _as_instance(plain: Definition, instance: int) -> Definition:
    name = f"{plain.name}@{instance}"
    return msgspec.structs.replace(plain, name=name, instance_of=plain.name, instance=instance)


def _usable_name(own: Table) -> str | None:
    try:
        return values.label(own["name"].value) if "name" in own else None
    except values.Wrong:
        return None


def _refuse_placeholders(sheet: Sheet, keys: Item, shown: str) -> None:
    for place in instance_places(keys):
        owner = f", and service '{shown}' has none" if place[0] == "defaults" else ""
        remedy = "add for example instances = 2 or write it out"
        sheet.refuse(place, shown, f"{{instance}} is for services with instances{owner}; {remedy}")


def _service(
    sheet: Sheet, keys: Item, shown: str, plain: Definition, root: Path, alone: Service | None
) -> Service:
    section = Section(sheet, keys, shown)
    section.item("name")
    section.item("instances")
    section.need("name", 'name = "..."')
    section.need("cmd", 'cmd = ["program", "argument"]')
    own = {"cmd": section.take("cmd", values.command(root), plain.cmd)}
    if alone is None:
        shared = read_shared(section, msgspec.structs.replace(plain, **own), root)
    else:
        own |= {key: getattr(plain, key) for key in ("name", "position", "instance_of", "instance")}
        definition = msgspec.structs.replace(alone.definition, **own)
        shared = msgspec.structs.replace(alone, definition=definition)
    service = read_own(section, shared, root)
    section.close()
    return service


def _refuse_same_names(sheet: Sheet, declared: Sequence[Declared]) -> None:
    first: dict[str, Declared] = {}
    for each in declared:
        other = first.setdefault(each.name, each)
        if each.name and other is not each:
            there = sheet.where((*other.place, "name"))
            message = f"the service at {there} has this name, too; choose another"
            sheet.refuse((*each.place, "name"), each.name, message)


def _refuse_same_addresses(sheet: Sheet, declared: Sequence[Declared]) -> None:
    first: dict[str, tuple[Declared, Place]] = {}
    told: set[Place] = set()
    for each in declared:
        for socket in (s for service in each.services for s in service.definition.sockets):
            place = (*each.place, "sockets", socket.name)
            if socket.address not in first:
                first[socket.address] = (each, place)
            elif place not in told:
                told.add(place)
                message = _same_address(sheet, socket.address, place, *first[socket.address])
                sheet.refuse(place, each.name, message)


def _same_address(
    sheet: Sheet, address: str, place: Place, other: Declared, other_place: Place
) -> str:
    if place == other_place:
        return f"every instance would listen at {address}; write {{instance}} into the address"
    where = sheet.where(other_place)
    return f"service '{other.name}' listens at {address}, too ({where}); choose another"
