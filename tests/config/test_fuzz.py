"""Whatever is in the file: a configuration, or a ConfigError with lines that people can read."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from registry.config import ConfigError, load, with_digests
from registry.config.complaints import Sheet, Source
from registry.config.file import interpret
from registry.core.definition import Definition

WORDS = st.sampled_from(
    re.findall(
        r"\S+",
        "registry journal defaults service socket socket_mode socket_group root path durability "
        "name cmd restart health_check cwd env env_file user group umask autostart "
        "success_exit_codes stop start_timeout logs policy delay delay_max limit within target "
        "interval timeout failures successes on_failure signal dir size_max files_max enabled "
        "Always Never full normal report web all SIGTERM 0600 022 5s 10MB -1s unix:a http://h/ "
        "http://[ cmd:x cmd:' heartbeat: x: / ./a "
        "ready oneshot depends_on instances tags sockets reload limits groups nice oom_score_adj "
        "no_new_privs capabilities condition started healthy completed notify health spawn "
        "nofile core cpu_max memory_max pids_max unlimited CAP_KILL access observe admin user:a "
        "hook on services gave_up tag:a {instance} web@1 h:1 [::1]:1 tcp:h:1 http+unix:a:/b",
    )
)
SCALARS = st.one_of(
    WORDS,
    st.text(max_size=5),
    st.booleans(),
    st.integers(),
    st.integers(-1, 300),
    st.floats(),
    st.datetimes(),
    st.dates(),
    st.times(),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=6),
    max_leaves=12,
)
TABLES = st.dictionaries(WORDS, VALUES, max_size=12)
FILES = st.fixed_dictionaries(
    {},
    optional={
        "registry": TABLES,
        "journal": TABLES,
        "defaults": TABLES,
        "access": TABLES,
        "service": st.lists(TABLES, max_size=3),
        "hook": st.lists(TABLES, max_size=2),
        "x": VALUES,
    },
)
DROP_INS = st.fixed_dictionaries(
    {}, optional={"service": st.lists(TABLES, max_size=1), "hook": VALUES, "registry": SCALARS}
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file to write to, the same for every example."""
    with tempfile.TemporaryDirectory(dir=tmp_path_factory.getbasetemp()) as folder:
        yield Path(folder, "services.toml")


@settings(deadline=None)
@given(data=FILES, drop_in=DROP_INS)
def test_any_tables_are_a_configuration_or_complaints_of_a_line_each(
    file: Path, data: dict[str, Any], drop_in: dict[str, Any]
):
    sources = [Source(file, ""), Source(file.with_name("drop-in"), "")]
    sheet = Sheet(*sources)
    config = interpret(sheet, sources, [data, drop_in])
    if complaints := sheet.complaints():
        assert len("\n".join(map(str, complaints)).splitlines()) == len(complaints)
        return
    tables = [*data.get("service", []), *drop_in.get("service", [])]
    assert len(config.definitions) == sum(table.get("instances", 1) for table in tables)
    assert len(with_digests(config, b"key").definitions) == len(config.definitions)
    for definition in config.definitions:
        journaled = msgspec.json.encode(definition)
        assert msgspec.json.decode(journaled, type=Definition) == definition


OF_A_SERVICE = {
    "instances": st.integers(1, 3),
    "depends_on": st.lists(st.sampled_from(["a", "b", "c", "a@1", "b@{instance}"]), max_size=2)
    | st.dictionaries(
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(["started", "ready", "healthy", "completed", {"restart": True}, {}]),
        max_size=2,
    ),
    "oneshot": st.booleans(),
    "restart": st.sampled_from(["Always", "OnFailure", "Never", {"memory_max": "1GB"}]),
    "ready": st.sampled_from(["notify", "health", "spawn"]),
    "health_check": st.sampled_from(["heartbeat:", ["tcp:h:8{instance}"], []]),
    "sockets": st.sampled_from([{}, {"x": "h:1"}, {"x": "h:2{instance}"}]),
}
SERVICES = st.lists(st.fixed_dictionaries({}, optional=OF_A_SERVICE), min_size=3, max_size=3).map(
    lambda tables: [{"name": n, "cmd": ["x"], **t} for n, t in zip("abc", tables, strict=True)]
)


@settings(deadline=None)
@given(services=SERVICES)
def test_what_is_accepted_can_all_be_started_in_some_order(
    file: Path, services: list[dict[str, Any]]
):
    source = Source(file, "")
    sheet = Sheet(source)
    config = interpret(sheet, [source], [{"service": services}])
    if sheet.complaints():
        return
    assert [each.position for each in config.definitions] == list(range(len(config.definitions)))
    names = {each.name for each in config.definitions}
    assert names == config.places.keys() == config.environments.keys()
    started: set[str] = set()
    while waiting := [each for each in config.definitions if each.name not in started]:
        free = [e for e in waiting if all(d.service in started for d in e.depends_on)]
        assert free
        started.update(each.name for each in free)
    addresses = [socket.address for each in config.definitions for socket in each.sockets]
    assert len(addresses) == len(set(addresses))
    assert "{instance}" not in msgspec.json.encode(config.definitions).decode()


@settings(deadline=None)
@given(data=st.binary(max_size=200))
@example(b"\xef\xbb\xbf")
@example(b"a = 1979-13-45")
@example(b"a." * 2000 + b"b = 1")
def test_any_bytes_are_a_configuration_or_a_config_error(file: Path, data: bytes):
    file.write_bytes(data)
    with contextlib.suppress(ConfigError):
        load(file)


MARKS = """[ ] [[service]] [registry] { } = , # " ' \"\"\" name cmd . 1 inf 1979-05-27 \\ \x7f é"""
PIECES = st.sampled_from([*MARKS.split(" "), "\n", "\r\n", " "])


@settings(deadline=None)
@given(pieces=st.lists(PIECES, max_size=40))
def test_anything_like_toml_is_a_configuration_or_a_config_error(file: Path, pieces: list[str]):
    file.write_text("".join(pieces), encoding="utf-8", newline="")
    with contextlib.suppress(ConfigError):
        load(file)
