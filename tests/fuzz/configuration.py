"""What may stand in services.toml and its drop-ins: mutated files, and files made from the table of all keys."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from registry.api.access import Access
from registry.api.actions import Role
from registry.config import Config, ConfigError, Lines, load, with_digests
from registry.config.language import Key, language
from registry.core import inputs as inp
from registry.core.decision import Place, decide
from registry.core.definition import Definition
from registry.core.dependencies import Graph
from registry.core.events import Now, Record
from registry.core.restarts import NS
from registry.core.service import Service, start_due_ns, stop_due_ns
from registry.journal.rows import to_record, to_rows
from tests.fuzz.harness import Judge, Target
from tests.fuzz.mutate import Recipe

ROOT = Path(__file__).parents[2]
DROP_IN = b"\n#---- drop-in\n"
"""Stands between the main file and its drop-in."""

KEYS = language()
_WORDS = re.findall(
    r"\S+",
    """
web 5s 10MB 1.5 0 -1 99999999999999999999 1e400 nan inf SIGHUP SIGTERM notify health spawn Always OnFailure
Never heartbeat: tcp:h:1 tcp:[::1]:99999 http://h/ http://[ http://a@b/ http://h:99999/ https://é/ cmd:'x cmd:x
http+unix:/a:/b unix:/a unix:x {instance} a@1 tag:a all * CAP_KILL unlimited user:a uid:1 uid:99999999999 0777 08
1979-05-27 1979-13-45 12:30:00 /dev/null ./x .. 1ms 36500d 36501d root started healthy completed
""",
)


def recipe() -> Recipe:
    """The shipped file, one with every key, and words of the language."""
    shipped = [(ROOT / "etc" / "services.toml").read_bytes()]
    whole = [_all_keys(Random(number)) for number in range(12)]
    names = sorted(_names(KEYS))
    words = [*names, *_WORDS, *(json.dumps(word) for word in (*names, *_WORDS)), "[[service]]", "[[hook]]",
             "[registry]", "[defaults]", "'''", '"""', "\\u0000", "a.b.c = 1", "{ x = 1 }", "[[1], [2]]"]  # fmt: skip
    return Recipe([*shipped, *whole], [word.encode() for word in words] + [DROP_IN], _fresh)


def _names(table: dict[str, Key]) -> set[str]:
    return set(table) | {name for key in table.values() for name in _names(key.table)}


def _fresh(chance: Random) -> bytes:
    text = "\n".join(_section(chance, name, KEYS[name]) for name in _chosen(chance))
    return text.encode(errors="replace") + (
        DROP_IN + _fresh(chance) if chance.random() < 0.1 else b""
    )


def _chosen(chance: Random) -> list[str]:
    return [*chance.sample(sorted(KEYS), chance.randint(0, 3)), *["service"] * chance.randint(1, 3)]


def _all_keys(chance: Random) -> bytes:
    """A file that is nearly right, so that damage to it goes deep."""
    lines = []
    for number in range(3):
        lines += ["[[service]]", f'name = "s{number}"', 'cmd = ["./x", "y"]']
        chosen = {key for key in KEYS["service"].table if chance.random() < 0.3} - {"name", "cmd"}
        lines += [f"{key} = {value}" for key, value in _RIGHT.items() if key in chosen and value]
        if number and "depends_on" in chosen:
            lines.append(f'depends_on = {{ s{number - 1} = {{ condition = "started" }} }}')
    return "\n".join(lines).encode()


_RIGHT = {
    "tags": '["a", "b"]', "cwd": '"."', "env": '{ A = "1" }', "env_file": '"x.env"', "oneshot": "true",
    "logs": '{ dir = "l", size_max = "1MB", files_max = 3 }', "autostart": "false", "start_timeout": '"5s"',
    "restart": '{ policy = "Always", delay = "1s", delay_max = "1m", limit = 3, within = "1m", memory_max = "1GB" }',
    "stop": '{ signal = "SIGINT", timeout = "2s" }', "user": '"root"', "group": "0", "groups": "[1]", "umask": '"022"',
    "sockets": '{ http = "127.0.0.1:80" }', "limits": '{ nofile = 9, memory_max = "1GB", cpu_max = 0.5 }', "nice": "3",
    "health_check": '[{ name = "a", target = "http://h/", interval = "1s", on_failure = "report" }, "heartbeat:"]',
    "ready": '"health"', "instances": "2", "capabilities": '["CAP_KILL"]', "reload": '"SIGHUP"',
    "success_exit_codes": "[0, 3]", "oom_score_adj": "5", "no_new_privs": "true",
}  # fmt: skip


def _section(chance: Random, name: str, key: Key) -> str:
    head = f"[[{name}]]" if key.is_listed else f"[{name}]"
    lines = [f"{_key(chance, each)} = {_value(chance, key.table[each], 0)}" for each in key.table
             if key.table[each].needed or chance.random() < 0.12]  # fmt: skip
    return "\n".join([head, *lines])


def _key(chance: Random, name: str) -> str:
    if chance.random() < 0.95:
        return name
    return chance.choice(
        (json.dumps(name), f"{name}.x", f"x.{name}", name[:-1] or "x", f"'{name}'")
    )


def _value(chance: Random, key: Key, depth: int) -> str:
    pick = chance.random()
    if key.default and pick < 0.2:
        return key.default
    if key.table and depth < 3 and pick < 0.6:
        chosen = [each for each in key.table.items() if each[1].needed or chance.random() < 0.3]
        inner = ", ".join(
            f"{_key(chance, name)} = {_value(chance, each, depth + 1)}" for name, each in chosen
        )
        return f"{{ {inner} }}"
    if key.schema.get("type") == "array" and pick < 0.8:
        return f"[{', '.join(_scalar(chance) for _ in range(chance.randrange(4)))}]"
    if key.schema.get("enum") and pick < 0.9:
        return json.dumps(chance.choice(key.schema["enum"]))
    return _scalar(chance)


def _scalar(chance: Random) -> str:
    match chance.randrange(6):
        case 0:
            return chance.choice(
                ("true", "false", "[]", "{}", '""', "[[]]", "{ a = 1 }", "1979-05-27T07:32:00Z")
            )
        case 1:
            return chance.choice(
                (
                    "0",
                    "1",
                    "-1",
                    "300",
                    "1_000",
                    "0x1F",
                    "9223372036854775808",
                    "1.5",
                    "nan",
                    "-inf",
                )
            )
        case _:
            return json.dumps(chance.choice(_WORDS), ensure_ascii=False)


# --- what is judged -------------------------------------------------------------------------------


@contextmanager
def judging() -> Iterator[Judge]:
    """A folder with a main file, and at times a drop-in."""
    with tempfile.TemporaryDirectory(prefix="cr-") as folder:
        main, beside = Path(folder, "services.toml"), Path(folder, "services.d")

        def judge(data: bytes) -> None:
            text, mark, drop_in = data.partition(DROP_IN)
            main.write_bytes(text)
            if mark:
                beside.mkdir(exist_ok=True)
                Path(beside, "10.toml").write_bytes(drop_in)
            try:
                _judge(main)
            finally:
                if mark:
                    Path(beside, "10.toml").unlink()
                    beside.rmdir()

        yield judge


def _judge(main: Path) -> None:
    try:
        config = load(main)
    except ConfigError as error:
        _judge_refusal(error, main)
        return
    _judge_accepted(config)


def _judge_refusal(error: ConfigError, main: Path) -> None:
    assert error.complaints, "refused without a word"
    assert str(error).splitlines() == [str(each) for each in error.complaints]
    for each in error.complaints:
        assert each.file in (str(main), str(main.with_suffix(".d") / "10.toml"))
        lines = Path(each.file).read_bytes().count(b"\n") + 2
        assert 0 <= each.line <= lines, f"line {each.line} of {lines}: {each}"
        assert str(each).startswith(f"{each.file}:{each.line}: " if each.line else f"{each.file}: ")
        assert each.message


def _judge_accepted(config: Config) -> None:
    lines = Lines(config)
    keyed = with_digests(config, b"key")
    Graph(keyed.definitions).stop_order([each.name for each in keyed.definitions])
    granted = {Role(role): words for role, words in msgspec.structs.asdict(config.access).items()}
    Access(0, lambda _pid: None, granted)
    for definition in keyed.definitions:
        text = msgspec.json.encode(definition)
        assert msgspec.json.decode(text, type=Definition) == definition, (
            "it is journaled as another"
        )
        assert lines.of_key(definition.name, "cmd")[1] >= 1
        _judge_core(definition)


def _judge_core(definition: Definition) -> None:
    """Declare and begin it: what the core takes, the journal has to hold."""
    service, records = Service(definition=definition), list[Record]()
    steps: list[Any] = [
        inp.Define(definition=definition, digest="d"),
        inp.Start(),
        inp.SpawnSucceeded(run=1, pid=41, start_time=5, digest="d"),
        inp.GateOpened(run=1),
        inp.Stop(),
    ]
    for given in steps:
        place = Place(Now(NS, 1000 * NS), len(records) + 1, "journal")
        records += decide(service, given, place)
    assert [to_record(row) for row in to_rows(records, "")] == records
    assert start_due_ns(service) < 2**63
    assert stop_due_ns(service, 1000 * NS) < 2**63


def _deep(before: bytes, after: bytes) -> Any:
    return lambda size: b"x = " + before * (size // 2) + after * (size // 2)


TARGET = Target(
    "configuration",
    "files are a configuration whose definitions digest, core and journal take, or a ConfigError of lines that name"
    " file and line; nothing else is raised",
    recipe,
    judging,
    {
        "services": lambda size: b"".join(
            b'[[service]]\nname = "s%d"\ncmd = ["x"]\n' % number for number in range(size // 36)
        ),
        "wrong keys": lambda size: (
            b"[registry]\n" + b"".join(b"k%d = 1\n" % number for number in range(size // 10))
        ),
        "lists in lists": _deep(b"[", b"]"),
        "a long list": lambda size: b"x = [" + b"1, " * (size // 3) + b"]",
        "one long string": lambda size: b'x = "' + b"a" * size + b'"',
        "dots": lambda size: b"a" + b".a" * (size // 2) + b" = 1",
        "tables": lambda size: b"".join(b"[t%d]\n" % number for number in range(size // 8)),
    },
)
