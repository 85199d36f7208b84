"""A definition as `services.toml` says it: what `circlectl show` prints. Pure.

Short forms where they say all, and only what differs from the defaults unless everything is asked for.
A definition holds no value of a variable: there stands "***". `{instance}` is written out.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from typing import Any

Table = dict[str, Any]

WIDTH = 100
"""Columns up to which a value stands on one line."""

RESTART: Table = {
    "policy": "Always",
    "delay_s": 0.5,
    "delay_max_s": 30.0,
    "limit": None,
    "within_s": None,
    "memory_max": None,
}
STOP: Table = {"signal": "SIGTERM", "timeout_s": 10.0}
LOGS: Table = {"dir": None, "size_max": 10_000_000, "files_max": 5}
CHECK: Table = {
    "name": None,
    "target": None,
    "interval_s": 10.0,
    "timeout_s": 3.0,
    "failures": 3,
    "successes": 1,
    "on_failure": "restart",
    "signal": None,
}
PLAIN: Table = {
    "oneshot": False,
    "tags": [],
    "user": None,
    "group": None,
    "groups": None,
    "umask": 0o022,
    "env_file": None,
    "ready": None,
    "start_timeout_s": 90.0,
    "autostart": True,
    "essential": False,
    "success_exit_codes": [0],
    "nice": None,
    "oom_score_adj": None,
    "no_new_privs": False,
    "capabilities": None,
}
"""The keys of a service that have no table, and their defaults; None is a key that is not written."""

_SIZES = frozenset(["as", "core", "data", "fsize", "memlock", "msgqueue", "rss", "stack"])
"""The limits of setrlimit(2) that are sizes."""

_ORDER = (
    *("name", "cmd", "oneshot", "tags", "cwd", "user", "group", "groups", "umask", "env"),
    *("env_file", "depends_on", "sockets", "ready", "start_timeout", "health_check", "stop"),
    *("reload", "restart", "success_exit_codes", "autostart", "essential", "logs", "limits"),
)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_UNITS_S = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
_UNITS_B = {"GB": 10**9, "MB": 10**6, "KB": 10**3, "GiB": 2**30, "MiB": 2**20, "KiB": 2**10}


def lines(definition: Table, *, everything: bool = False, width: int = WIDTH) -> Iterator[str]:
    """The `[[service]]` of a definition, line by line."""
    keys = declared(definition, everything=everything)
    column = max(map(len, keys))
    below = []
    yield "[[service]]"
    for key, value in keys.items():
        line = f"{key:{column}} = {_toml(value)}"
        if isinstance(value, list) and (len(line) > width or _is_tables(value)):
            yield f"{key:{column}} = ["
            yield from (f"    {_toml(element)}," for element in value)
            yield "]"
        elif isinstance(value, dict) and len(line) > width:
            below += ["", f"[service.{key}]"]
            inner = max(len(_key(name)) for name in value)
            below += [f"{_key(name):{inner}} = {_toml(each)}" for name, each in value.items()]
        else:
            yield line
    yield from below


def declared(definition: Table, *, everything: bool = False) -> Table:
    """The keys of a service in the order in which people look for them."""
    keys = {
        "name": definition["instance_of"] or definition["name"],
        "cmd": definition["cmd"],
        "cwd": definition["cwd"],
        "env": dict.fromkeys(definition["env_names"], "***"),
        "depends_on": _depends_on(definition["depends_on"]),
        "sockets": {each["name"]: each["address"] for each in definition["sockets"]},
        "health_check": _health_check(definition["checks"], everything),
        "stop": _short(_table(definition["stop"], STOP, everything), "timeout"),
        "reload": _reload(definition["reload"]),
        "restart": _restart(definition, everything),
        "logs": _logs(definition["logs"], everything),
        "limits": _limits(definition["limits"]),
        **_plain(definition, everything),
    }
    said = {key: value for key, value in keys.items() if value not in (None, {})}
    return {key: said[key] for key in (*_ORDER, *said) if key in said}


def _plain(definition: Table, everything: bool) -> Table:
    table = _table({key: definition[key] for key in PLAIN}, PLAIN, everything)
    if "umask" in table:
        table["umask"] = f"{table['umask']:03o}"
    if "success_exit_codes" in table:
        codes = [code for code in table["success_exit_codes"] if code or everything]
        table["success_exit_codes"] = [_exit_code(code) for code in codes]
    if everything and "ready" not in table:
        table["ready"] = _readiness(definition)
    return table


def _readiness(definition: Table) -> str:
    return "health" if definition["checks"] and not definition["oneshot"] else "spawn"


def _exit_code(code: int) -> int | str:
    return code if code >= 0 else signal.Signals(-code).name


def _depends_on(dependencies: list[Table]) -> list[str] | Table:
    """By name alone where each has to be ready."""
    if all(each["condition"] == "ready" and not each["restart"] for each in dependencies):
        return [each["service"] for each in dependencies] or {}
    return {
        each["service"]: {"condition": each["condition"], "restart": True}
        if each["restart"]
        else each["condition"]
        for each in dependencies
    }


def _health_check(checks: list[Table], everything: bool) -> Any:
    taken: set[str] = set()
    tables = []
    for check in checks:
        named = {"name": _free_name(check["target"], taken)}
        taken.add(check["name"])
        table = _table(check, CHECK | named, everything)
        tables.append({"target": table.pop("target"), **table})
    if len(tables) == 1:
        return _short(tables[0], "target")
    return [_short(table, "target") for table in tables] or None


def _free_name(target: str, taken: set[str]) -> str:
    """How a check is called that is given no name."""
    scheme = target.partition(":")[0].replace("+", "-")
    name, number = scheme, 1
    while name in taken:
        number += 1
        name = f"{scheme}-{number}"
    return name


def _restart(definition: Table, everything: bool) -> Any:
    policy = "Never" if definition["oneshot"] else "Always"
    return _short(_table(definition["restart"], RESTART | {"policy": policy}, everything), "policy")


def _reload(reload: Table | None) -> Any:
    return reload and (reload["signal"] or reload["cmd"])


def _logs(logs: Table | None, everything: bool) -> Any:
    return False if logs is None else _table(logs, LOGS, everything)


def _limits(limits: Table) -> Table:
    rlimits = {
        name: "unlimited" if most is None else size(most) if name in _SIZES else most
        for name, most in limits["rlimits"].items()
    }
    rest = {key: value for key, value in limits.items() if key != "rlimits" and value is not None}
    if "memory_max" in rest:
        rest["memory_max"] = size(rest["memory_max"])
    return rlimits | rest


def _table(fields: Table, defaults: Table, everything: bool) -> Table:
    """Keys and values as they are written, without those that are as by default."""
    return {
        key.removesuffix("_s"): _written(key, value)
        for key, value in fields.items()
        if value is not None and (everything or value != defaults[key])
    }


def _written(key: str, value: Any) -> Any:
    if key.endswith("_s"):
        return duration(value)
    return size(value) if key in ("memory_max", "size_max") else value


def _short(table: Table, named: str) -> Any:
    """The short form where the table holds no more."""
    return table[named] if table.keys() == {named} else table


def duration(seconds: float) -> str | float:
    """Seconds as people write them."""
    for unit, length_s in _UNITS_S:
        if seconds >= length_s and seconds % length_s == 0:
            return f"{int(seconds / length_s)}{unit}"
    milliseconds = round(seconds * 1000, 6)
    return f"{int(milliseconds)}ms" if milliseconds == int(milliseconds) else seconds


def size(count: int) -> str | int:
    """Bytes as people write them: in the unit that needs the smallest number."""
    fitting = [
        (count // each, unit) for unit, each in _UNITS_B.items() if count and not count % each
    ]
    return "{}{}".format(*min(fitting)) if fitting else count


def _is_tables(value: list[Any]) -> bool:
    return any(isinstance(element, dict) for element in value)


def _toml(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return _string(value)
        case list():
            return f"[{', '.join(map(_toml, value))}]"
        case dict():
            inner = ", ".join(f"{_key(key)} = {_toml(each)}" for key, each in value.items())
            return f"{{ {inner} }}"
        case _:
            return str(value)


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _string(key)


def _string(text: str) -> str:
    """A basic string, in which nothing is raw that a terminal might obey."""
    return '"' + "".join(map(_character, text)) + '"'


def _character(c: str) -> str:
    if c in '"\\':
        return "\\" + c
    if c.isprintable():
        return c
    escape = f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}"
    return {"\n": "\\n", "\t": "\\t"}.get(c, escape)
