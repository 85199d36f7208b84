"""Who depends on whom, under which condition, and whether that holds: as a tree, for Graphviz, for Mermaid."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from registry.core.dependencies import is_met
from registry.core.projection import Projection
from registry.core.service import Service

_COLOURS = {
    "Running": "#2e7d32",
    "Starting": "#b26a00",
    "Stopping": "#b26a00",
    "Restarting": "#b26a00",
    "Failed": "#c62828",
    "Stopped": "#616161",
}


class Need(msgspec.Struct, frozen=True):
    """What a service depends on: the condition, whether it follows restarts, and whether the condition is met."""

    service: str
    condition: str
    restart: bool
    met: bool


class Node(msgspec.Struct, frozen=True):
    """A service as the graph shows it."""

    name: str
    status: str
    reason: str
    wanted: str
    needs: tuple[Need, ...]


class Branch(msgspec.Struct, frozen=True):
    """A line of the tree: `need` is how the line above it depends on it; `again` where it is told of further up."""

    prefix: str
    node: Node
    need: Need | None
    again: bool


def graph(names: Sequence[str] | None, projection: Projection) -> list[Node]:
    """All services, or those named with whatever they depend on, in the order of the file."""
    services = projection.services
    meant = set(services) if names is None else set(_with_needs(names, services))
    return [_node(each, services) for each in projection.in_order() if each.name in meant]


def _with_needs(names: Sequence[str], services: Mapping[str, Service]) -> list[str]:
    found: dict[str, None] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in services and name not in found:
            found[name] = None
            waiting += [each.service for each in services[name].definition.depends_on]
    return list(found)


def _node(service: Service, services: Mapping[str, Service]) -> Node:
    needs = tuple(
        Need(each.service, each.condition.value, each.restart, is_met(each, services))
        for each in service.definition.depends_on
    )
    wanted = "up" if service.wanted else "down"
    return Node(service.name, service.state.value, service.reason.value, wanted, needs)


def tree(
    nodes: Sequence[Node], *, last: str = "└─ ", other: str = "├─ ", pipe: str = "│  "
) -> Iterator[Branch]:
    """Each service on which nobody depends, and below it what it needs; a subtree is told once."""
    by_name = {node.name: node for node in nodes}
    needed = {need.service for node in nodes for need in node.needs}
    told: set[str] = set()
    waiting: list[tuple[str, str, Node, Need | None]] = [
        ("", "", node, None) for node in reversed(nodes) if node.name not in needed
    ]
    while waiting:
        prefix, margin, node, need = waiting.pop()
        again = node.name in told and bool(node.needs)
        yield Branch(prefix, node, need, again)
        if again:
            continue
        told.add(node.name)
        below = [each for each in node.needs if each.service in by_name]
        for number, each in reversed(list(enumerate(below))):
            is_last = number == len(below) - 1
            branch, beneath = (last, " " * len(pipe)) if is_last else (other, pipe)
            waiting.append((margin + branch, margin + beneath, by_name[each.service], each))


def dot(nodes: Sequence[Node]) -> str:
    """The graph for Graphviz: an arrow leads from who depends to what it needs, dashed where that is not met."""
    lines = ["digraph services {", "  rankdir=LR;", "  node [shape=box];"]
    for node in nodes:
        label = json.dumps(f"{node.name}\n{node.status}")
        colour = _COLOURS.get(node.status, "#616161")
        lines.append(f'  {json.dumps(node.name)} [label={label}, color="{colour}"];')
    for node in nodes:
        for need in node.needs:
            style = "" if need.met else ", style=dashed"
            arrow = f"{json.dumps(node.name)} -> {json.dumps(need.service)}"
            lines.append(f"  {arrow} [label={json.dumps(_label(need))}{style}];")
    return "\n".join([*lines, "}"])


def mermaid(nodes: Sequence[Node]) -> str:
    """The same for Mermaid. Nodes have numbers, as names may hold what Mermaid reads as its own."""
    number = {node.name: f"s{index}" for index, node in enumerate(nodes)}
    lines = ["flowchart LR"]
    lines += [
        f'    {number[node.name]}["{node.name}<br/>{node.status}"]:::{node.status}'
        for node in nodes
    ]
    for node in nodes:
        for need in node.needs:
            if need.service in number:
                arrow = "-->" if need.met else "-.->"
                ends = number[node.name], number[need.service]
                lines.append(f'    {ends[0]} {arrow}|"{_label(need)}"| {ends[1]}')
    statuses = sorted({node.status for node in nodes})
    colours = [f"    classDef {each} stroke:{_COLOURS.get(each, '#616161')}" for each in statuses]
    return "\n".join([*lines, *colours])


def _label(need: Need) -> str:
    return f"{need.condition}{', follows' if need.restart else ''}{'' if need.met else ', not met'}"
