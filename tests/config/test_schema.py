"""The JSON Schema and the table of keys: shipped as the code makes them, and true to what is read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli

from registry.config import Config
from registry.config.complaints import dotted
from registry.config.lines import Place
from registry.config.schema import key_table, keys, main, schema
from registry.config.section import Section
from registry.core.events import TYPES

ROOT = Path(__file__).parents[2]

EVERYTHING = """
[registry]
socket = "run/r.sock"
socket_mode = "0660"
[journal]
durability = "normal"
[access]
admin = ["user:ana", "gid:5"]
[defaults]
restart = { policy = "OnFailure", limit = 5, within = "1m" }
health_check = { interval = 5 }
reload = "HUP"
stop = "5s"
logs = { files_max = 3 }
limits = { nofile = 9 }
env = { B = "" }
[[hook]]
on = ["gave_up"]
cmd = ["tell"]
services = ["web", "tag:front"]
timeout = 1.5
[[service]]
name = "db"
cmd = ["db"]
stop = "1m"
logs = false
reload = "HUP"
health_check = ["heartbeat:", { target = "tcp:[::1]:1", signal = "SIGABRT" }]
[[service]]
name = "web"
cmd = ["x", ""]
instances = 2
tags = ["front"]
env = { A = "" }
user = 1000
groups = ["adm", 5]
depends_on = { db = "healthy", setup = { restart = true } }
sockets = { http = "127.0.0.1:808{instance}" }
reload = ["x", "y"]
limits = { nofile = 5, core = "unlimited", stack = "8MiB", cpu = "1m", cpu_max = 0.5 }
capabilities = ["CAP_KILL"]
success_exit_codes = [3, "SIGTERM"]
umask = "077"
health_check = "http+unix:a.sock:/"
[[service]]
name = "setup"
cmd = ["x"]
oneshot = true
depends_on = ["db"]
restart = "Never"
stop = { signal = "INT", timeout = 0 }
logs = { size_max = 5000 }
reload = { signal = "HUP" }
"""


def test_the_schema_that_is_shipped_is_what_the_code_makes(capsys: pytest.CaptureFixture[str]):
    main()
    made = capsys.readouterr().out
    shipped = (ROOT / "etc" / "services.schema.json").read_text()
    assert shipped == made, "python -m registry.config.schema > etc/services.schema.json"
    assert json.loads(shipped) == schema()


def test_the_schema_has_the_keys_that_are_read_and_no_others(
    read: Callable[[str], Config], monkeypatch: pytest.MonkeyPatch
):
    taken: set[str] = set()
    item = Section.item

    def record(section: Section, key: str):
        taken.add(re.sub(r"#\d+", "", written((*section.place, key))))
        return item(section, key)

    monkeypatch.setattr(Section, "item", record)
    read(EVERYTHING)
    of_one = {"name", "cmd", "instances", "depends_on", "sockets"}
    of_defaults = {f"defaults.{key}" for key in of_one}
    free = {"service.depends_on.setup.condition", "service.depends_on.setup.restart"}
    assert taken - free == keys().keys() - of_defaults
    assert not of_defaults & keys().keys()


def written(place: Place) -> str:
    """A path of keys as in the table of keys."""
    if place == ("service",):
        return "service"
    prefix = "service." if place[0] == "service" and len(place) > 2 else ""
    return prefix + dotted(place)


def test_every_key_has_a_sentence_and_a_row():
    rows = key_table().splitlines()
    assert len(rows) == 2 + len([path for path in keys() if not path.startswith("defaults.")])
    assert all(re.fullmatch(r"\|[^|]+\|[^|]+\|[^|]+\|[^|]+\|", row) for row in rows)
    for path, key in keys().items():
        assert key.meaning.endswith("."), path
        assert re.match(r"[A-Z`]|\d", key.meaning), path
    assert (
        '| `service.restart.delay` | duration | `"500ms"` | '
        "Before the second restart in a row; it doubles each time. |" in rows
    )


def test_what_the_schema_gives_as_a_default_is_what_holds_without_the_key(
    read: Callable[[str], Config],
):
    text = '[[service]]\nname = "a"\ncmd = ["x"]\nhealth_check = {{ target = "heartbeat:"{} }}\n{}'
    plain = read(text.format("", ""))
    for path, key in keys().items():
        if key.default is None or path.startswith("defaults."):
            continue
        table, _, name = path.rpartition(".")
        if table == "service.health_check":
            config = read(text.format(f", {name} = {key.default}", ""))
        elif table.startswith("service"):
            config = read(text.format("", f"{path.removeprefix('service.')} = {key.default}"))
        elif table == "hook":
            continue
        else:
            config = read(f"{path} = {key.default}\n" + text.format("", ""))
        assert (config.definitions, config.registry, config.journal, config.access) == (
            plain.definitions,
            plain.registry,
            plain.journal,
            plain.access,
        ), path


@pytest.mark.parametrize(
    "text",
    [EVERYTHING, (ROOT / "etc" / "services.toml").read_text()],
    ids=["everything", "shipped"],
)
def test_what_is_accepted_is_valid_by_the_schema(read: Callable[[str], Config], text: str):
    read(text)
    assert list(faults(schema(), tomli.loads(text))) == []


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("x = 1", ""),
        ("[registry]\nsocet = 'x'", "registry"),
        ("[[service]]\nname = 'a'", "service.0"),
        ("[[service]]\nname = 'a@1'\ncmd = ['x']", "service.0.name"),
        ("[[service]]\nname = 'a'\ncmd = ['x']\nrestart = 'always'", "service.0.restart"),
        ("[[service]]\nname = 'a'\ncmd = ['x']\nstop = '5 s'", "service.0.stop"),
        ("[[service]]\nname = 'a'\ncmd = ['x']\nlimits.nofiles = 1", "service.0.limits"),
        ("[[service]]\nname = 'a'\ncmd = ['x']\nhealth_check = 'x:y'", "service.0.health_check"),
        ("[defaults]\nname = 'a'", "defaults"),
        ("[[hook]]\non = ['lst']\ncmd = ['x']", "hook.0.on.0"),
        ("[access]\nadmin = ['ana']", "access.admin.0"),
    ],
)
def test_what_is_refused_is_not_valid_by_the_schema(
    refused: Callable[[str], list[str]], text: str, path: str
):
    assert refused(text)
    assert [found.removeprefix(".") for found in faults(schema(), tomli.loads(text))] == [path]


def test_the_events_of_a_hook_are_those_that_there_are():
    assert schema()["properties"]["hook"]["items"]["properties"]["on"]["items"] == {
        "enum": [name for name in TYPES if name != "registry_stopped"]  # nothing runs after it
    }


KINDS: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}


def faults(shape: dict[str, Any], value: Any, path: str = "") -> Iterator[str]:
    """Where `value` is not valid, by as much of JSON Schema as ours uses."""
    unknown = shape.keys() - USED
    assert not unknown, unknown
    if not is_valid_by_itself(shape, value):
        yield path
        return
    if isinstance(value, dict):
        yield from faults_of_keys(shape, value, path)
    if isinstance(value, list) and "items" in shape:
        for number, each in enumerate(value):
            yield from faults(shape["items"], each, f"{path}.{number}")


def faults_of_keys(shape: dict[str, Any], value: dict[str, Any], path: str) -> Iterator[str]:
    known = shape.get("properties", {})
    other = shape.get("additionalProperties", True)
    for key, each in value.items():
        if key in known:
            yield from faults(known[key], each, f"{path}.{key}")
        elif other is False:
            yield path
        elif other is not True:
            yield from faults(other, each, f"{path}.{key}")


CHECKS: dict[str, Callable[[Any, Any], bool]] = {
    "type": lambda kind, value: (
        isinstance(value, KINDS[kind]) and (kind == "boolean") == isinstance(value, bool)
    ),
    "enum": lambda words, value: value in words,
    "const": lambda word, value: value == word,
    "pattern": lambda pattern, value: re.search(pattern, value) is not None,
    "minLength": lambda least, value: len(value) >= least,
    "minItems": lambda least, value: len(value) >= least,
    "minimum": lambda least, value: value >= least,
    "maximum": lambda most, value: value <= most,
    "required": lambda needed, value: set(needed) <= value.keys(),
    "uniqueItems": lambda _, value: all(value.count(each) == 1 for each in value),
    "propertyNames": lambda shape, value: all(is_valid(shape, key) for key in value),
    "anyOf": lambda shapes, value: any(is_valid(shape, value) for shape in shapes),
}
USED = {
    *CHECKS,
    *("$schema", "title", "description", "default", "items", "properties", "additionalProperties"),
}


def is_valid_by_itself(shape: dict[str, Any], value: Any) -> bool:
    """Whether `value` is, whatever is in it."""
    return all(CHECKS[key](shape[key], value) for key in CHECKS if key in shape)


def is_valid(shape: dict[str, Any], value: Any) -> bool:
    return not list(faults(shape, value))
