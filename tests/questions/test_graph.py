"""The graph of dependencies: what is in it, and its pictures."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from registry.core.definition import Condition, Definition, Dependency
from registry.core.projection import Projection
from registry.past.answers import answer
from registry.questions.graph import Need, dot, graph, mermaid, tree


def definition(name: str, position: int, *needs: Dependency) -> Definition:
    return Definition(name, ("x",), position, depends_on=needs)


@pytest.fixture
def projection() -> Projection:
    """web needs api and cache, api needs db and cache; lone needs nobody."""
    made = Projection()
    for each in (
        definition(
            "web", 0, Dependency("api", restart=True), Dependency("cache", Condition.STARTED)
        ),
        definition("api", 1, Dependency("cache", Condition.STARTED), Dependency("db")),
        definition("cache", 2, Dependency("db")),
        definition("db", 3),
        definition("lone", 4),
    ):
        made.add(each)
    return made


def test_each_service_has_its_needs_and_whether_they_are_met(projection):
    web = graph(None, projection)[0]
    assert web.needs == (
        Need("api", "ready", restart=True, met=False),
        Need("cache", "started", restart=False, met=False),
    )


def test_of_services_that_are_named_it_has_what_they_need(projection):
    assert [node.name for node in graph(["cache"], projection)] == ["cache", "db"]
    assert [node.name for node in graph(["lone"], projection)] == ["lone"]


def test_the_tree_tells_a_subtree_once(projection):
    told = [
        f"{each.prefix}{each.node.name}{' again' if each.again else ''}"
        for each in tree(graph(None, projection))
    ]
    assert told == [
        "web",
        "├─ api",
        "│  ├─ cache",
        "│  │  └─ db",
        "│  └─ db",
        "└─ cache again",
        "lone",
    ]


def test_a_deep_chain_is_no_recursion():
    made = Projection()
    for number in range(3000):
        needs = (Dependency(f"s{number - 1}"),) if number else ()
        made.add(definition(f"s{number}", number, *needs))
    assert len(list(tree(graph(None, made)))) == 3000


def test_dot_has_every_service_and_every_arrow(projection):
    text = dot(graph(None, projection))
    assert '  "web" [label="web\\nStopped", color="#616161"];' in text
    assert '  "web" -> "api" [label="ready, follows, not met", style=dashed];' in text
    if shutil.which("dot"):
        subprocess.run(["dot", "-Tsvg"], input=text, text=True, check=True, capture_output=True)


def test_mermaid_has_every_service_and_every_arrow(projection):
    lines = mermaid(graph(None, projection)).splitlines()
    assert lines[0] == "flowchart LR"
    assert '    s0["web<br/>Stopped"]:::Stopped' in lines
    assert '    s0 -.->|"ready, follows, not met"| s1' in lines
    assert lines[-1] == "    classDef Stopped stroke:#616161"


def test_a_journal_answers_as_it_was_then(golden, opened):
    journal = opened(golden)
    for seq in (5, 100, len(golden)):
        projection = Projection()
        projection.fold(golden[:seq])
        told = json.loads(answer(journal, "graph", b'{"at": %d}' % seq))
        assert told["moment"]["seq"] == seq
        assert [each["name"] for each in told["services"]] == [
            service.name for service in projection.in_order()
        ]
    app = next(each for each in told["services"] if each["name"] == "app")
    assert {need["service"]: need["restart"] for need in app["needs"]} == {
        "db": True,
        "setup": False,
    }
