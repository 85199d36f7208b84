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
from registry.config.complaints import Sheet
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
        "http://[ cmd:x cmd:' heartbeat: x: / ./a",
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
        "service": st.lists(TABLES, max_size=3),
        "x": VALUES,
    },
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file to write to, the same for every example."""
    with tempfile.TemporaryDirectory(dir=tmp_path_factory.getbasetemp()) as folder:
        yield Path(folder, "services.toml")


@settings(deadline=None)
@given(data=FILES)
def test_any_tables_are_a_configuration_or_complaints_of_a_line_each(
    file: Path, data: dict[str, Any]
):
    sheet = Sheet(file, "")
    config = interpret(sheet, file, "", data)
    if complaints := sheet.complaints():
        assert len("\n".join(map(str, complaints)).splitlines()) == len(complaints)
        return
    assert len(with_digests(config, b"key").definitions) == len(data.get("service", []))
    for definition in config.definitions:
        journaled = msgspec.json.encode(definition)
        assert msgspec.json.decode(journaled, type=Definition) == definition


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
