"""Lines of keys: right for every layout that TOML allows."""

from __future__ import annotations

import json
from typing import Any

import tomli
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.config.lines import Place, line_of, lines_of

LAYOUT = (
    '''# a comment with [brackets] and "quotes
[registry]
socket = "/tmp/[not]a=table"

[defaults]
env = { A = "x", "B C" = "}" } # { comment
restart.delay = "1s"
[defaults.stop]
  signal = "SIGTERM"

[[service]]
name = "first"
cmd = [
  "program", # with ] a comment
  "an, argument",
  """
three
lines""",
]
"quoted key" = 1979-05-27 07:32:00
[service.restart]
policy = 'Always'

[[ service ]]
name = "second"
health_check = [
  { target = "unix:a" },

  { target = "unix:b",
    interval = 5 }, "unix:c",
]
[service.env]
X = '''
    + "'''a\n''''\n"
    + """Y = 1
[[service]]
"""
)


def test_the_line_of_each_key_in_an_ordinary_file():
    lines = lines_of(LAYOUT)
    assert {
        ("registry",): 2,
        ("registry", "socket"): 3,
        ("defaults",): 5,
        ("defaults", "env", "B C"): 6,
        ("defaults", "restart", "delay"): 7,
        ("defaults", "stop"): 8,
        ("defaults", "stop", "signal"): 9,
        ("service",): 11,
        ("service", 0): 11,
        ("service", 0, "name"): 12,
        ("service", 0, "cmd"): 13,
        ("service", 0, "cmd", 1): 15,
        ("service", 0, "cmd", 2): 16,
        ("service", 0, "quoted key"): 20,
        ("service", 0, "restart", "policy"): 22,
        ("service", 1): 24,
        ("service", 1, "health_check", 0, "target"): 27,
        ("service", 1, "health_check", 1, "interval"): 30,
        ("service", 1, "health_check", 2): 30,
        ("service", 1, "env", "X"): 33,
        ("service", 1, "env", "Y"): 35,
        ("service", 2): 36,
    }.items() <= lines.items()


def test_a_place_without_a_line_has_that_of_what_is_around_it():
    lines = lines_of("[a]\nb = { c = 1 }\n")
    assert line_of(lines, ("a", "b", "missing", 3)) == 2
    assert line_of(lines, ("elsewhere",)) == 0


def test_nesting_may_be_as_deep_as_the_parser_takes_it():
    text = "a = " + "[" * 390 + "]" * 390
    tomli.loads(text)
    assert lines_of(text)[("a",)] == 1


KEYS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=4)
VALUES = st.recursive(
    st.one_of(
        st.integers(-9, 9), st.booleans(), st.text(st.characters(exclude_categories=["Cs", "Cc"]))
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
GAPS = st.sampled_from(["", " ", "\n", " # ]}\"'\n", "\n\n"])


def written(draw: Any, value: Any, place: Place, told: list[Place]) -> str:
    """`value` as TOML in one of its layouts; every place on the way is told."""
    told.append(place)
    match value:
        case list():
            each = [written(draw, item, (*place, n), told) for n, item in enumerate(value)]
            return f"[{draw(GAPS)}" + f"{draw(GAPS)},{draw(GAPS)}".join(each) + f"{draw(GAPS)}]"
        case dict():
            pairs = [
                f"{json.dumps(key, ensure_ascii=False)} = {written(draw, item, (*place, key), told)}"
                for key, item in value.items()
            ]
            return "{ " + " , ".join(pairs) + " }"
        case _:
            return json.dumps(value, ensure_ascii=False)


@settings(deadline=None)
@given(st.data(), st.dictionaries(KEYS, st.dictionaries(KEYS, VALUES, max_size=3), max_size=3))
def test_every_key_of_every_file_has_the_line_on_which_it_begins(data, tables):
    text = ""
    expected: dict[Place, int] = {}
    for number, (table, values) in enumerate(tables.items()):
        text += f"[[{json.dumps(table, ensure_ascii=False)}]] # {number}\n"
        for key, value in values.items():
            expected[(table, 0, key)] = text.count("\n") + 1
            told: list[Place] = []
            text += json.dumps(key, ensure_ascii=False) + " = "
            text += written(data.draw, value, (table, 0, key), told) + "\n"
            expected.update({place: expected.get(place, 0) for place in told})
    assert tomli.loads(text) == {table: [values] for table, values in tables.items()}
    lines = lines_of(text)
    for place, line in expected.items():
        assert lines[place] == line or line == 0, (text, place)
