"""`depends_on`: what each form means, and what can never come true."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from registry.config import Config
from registry.core.definition import Condition, Dependency

Read = Callable[[str], Config]
Refused = Callable[[str], list[str]]


def services(**keys: str) -> str:
    """A file with these services, four lines each, the last with their keys."""
    return "".join(
        f'[[service]]\nname = "{name}"\ncmd = ["x"]\n{more}\n' for name, more in keys.items()
    )


@pytest.mark.parametrize(
    ("value", "dependency"),
    [
        ('["db"]', Dependency("db")),
        ('{ db = "started" }', Dependency("db", Condition.STARTED)),
        ('{ db = "healthy" }', Dependency("db", Condition.HEALTHY)),
        ("{ db = {} }", Dependency("db")),
        ("{ db = { restart = true } }", Dependency("db", Condition.READY, restart=True)),
        ('{ db = { condition = "started" } }', Dependency("db", Condition.STARTED)),
        ('["setup"]', Dependency("setup", Condition.COMPLETED)),
        ("{ setup = {} }", Dependency("setup", Condition.COMPLETED)),
        ('{ setup = "ready" }', Dependency("setup", Condition.READY)),
        ('{ once = "completed" }', Dependency("once", Condition.COMPLETED)),
    ],
)
def test_a_dependency_comes_to(read: Read, value: str, dependency: Dependency):
    text = services(
        web=f"depends_on = {value}",
        db='health_check = "heartbeat:"',
        setup="oneshot = true",
        once='restart = "OnFailure"',
    )
    assert read(text).definitions[0].depends_on == (dependency,)


def test_a_name_with_instances_stands_for_all_of_them(read: Read):
    text = services(
        web='depends_on = ["db", "cache@2", "setup"]', db="instances = 2", cache="instances = 3"
    ) + services(setup='oneshot = true\ninstances = 2\ndepends_on = ["cache@{instance}"]')
    by_name = {each.name: each for each in read(text).definitions}
    assert [(d.service, d.condition) for d in by_name["web"].depends_on] == [
        ("db@1", "ready"),
        ("db@2", "ready"),
        ("cache@2", "ready"),
        ("setup@1", "completed"),
        ("setup@2", "completed"),
    ]
    assert by_name["setup@2"].depends_on == (Dependency("cache@2"),)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ('["dbb"]', "depends_on: there is no service \"dbb\", did you mean 'db'?"),
        ('["zzz"]', 'depends_on: there is no service "zzz"; declare it or leave it out'),
        ('["many@4"]', 'there is no service "many@4", did you mean \'many@'),
        ('["db@1"]', 'there is no service "db@1"'),
        ('{ dbb = "ready" }', "depends_on.dbb: there is no service \"dbb\", did you mean 'db'?"),
        ('["web"]', "depends_on: a service cannot wait for itself; leave it out"),
        ('["db", "db"]', "depends_on: names 'db' twice; once is enough"),
        ('["many", "many@2"]', "depends_on: names 'many@2' twice; once is enough"),
        ('"db"', 'depends_on: found the string "db", want a list of names: ["db"]'),
        ("5", 'depends_on: found the number 5, want a list of names: ["db"]'),
        ("[1]", "depends_on: found the number 1, want the name of a service, or depends_on = {"),
        ('[""]', "depends_on: is empty"),
        ('{ db = "redy" }', "depends_on.db: found the string \"redy\", did you mean 'ready'?"),
        ("{ db = true }", "depends_on.db: found true, want one of started, ready, healthy"),
        ('{ db = { restart = "yes" } }', "depends_on.db.restart: found"),
        ('{ db = { conditon = "ready" } }', "did you mean 'condition'?"),
        ('{ db = "healthy" }', "'db' has no health_check, so it is never \"healthy\""),
        ('{ setup = "healthy" }', "'setup' has no health_check, so it is never \"healthy\""),
        (
            '{ db = "completed" }',
            "depends_on.db: 'db' is always started again, so it is never \"completed\"; "
            'write "ready", or give it oneshot = true',
        ),
    ],
)
def test_what_can_never_come_true_is_refused(refused: Refused, value: str, words: str):
    text = services(
        web=f"depends_on = {value}", db="", many="instances = 3", setup="oneshot = true"
    )
    (complaint,) = refused(text)
    assert complaint.startswith("4: service 'web': ")
    assert words in complaint


def test_instances_complain_of_their_dependencies_once(refused: Refused):
    text = services(web='instances = 4\ndepends_on = ["db@{instance}", "none"]', db="instances = 2")
    assert [line.split(", did")[0] for line in refused(text)] == [
        "5: service 'web': depends_on: there is no service \"none\"; declare it or leave it out"
    ]


def test_a_wrong_service_is_no_reason_to_complain_of_those_that_need_it(refused: Refused):
    text = services(
        web='depends_on = { db = "healthy", many = {}, "many@3" = {} }',
        db="health_check = 'htp://x'",
        many="instances = -1",
    )
    assert [line.split(":")[0] for line in refused(text)] == ["8", "12"]


def test_every_circle_is_spelled_out_once_at_its_first_service(refused: Refused):
    text = services(
        web='depends_on = ["db"]',
        db='depends_on = { cache = "started" }',
        cache='depends_on = ["web"]',
        a='depends_on = ["b", "db"]',
        b='instances = 2\ndepends_on = ["a"]',
    )
    assert refused(text) == [
        "4: service 'web': depends_on: web needs db, db needs cache, cache needs web: break the circle",
        "16: service 'a': depends_on: a needs b, b needs a: break the circle",
    ]


def test_a_long_chain_is_no_circle_and_a_long_circle_is_one(read: Read, refused: Refused):
    chain = {f"s{n}": f'depends_on = ["s{n + 1}"]' for n in range(2000)}
    assert len(read(services(**chain, s2000="")).definitions) == 2001
    (complaint,) = refused(services(**chain, s2000='depends_on = ["s0"]'))
    first, last = (
        "s0 needs s1, s1 needs s2, ",
        ", s6 needs s7, ... (1993 more), s2000 needs s0: break",
    )
    assert complaint.endswith(f"{last} the circle")
    assert f"depends_on: {first}" in complaint
