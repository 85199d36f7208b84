"""A folder of logs read from end to end: every line once, with what its index says, also where it was copied."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tracemalloc
from pathlib import Path

import pytest

from registry.logs import compress
from registry.logs.archive import Log, WrittenLine, names
from registry.logs.files import LogFile
from registry.logs.index import FREE, SIZE, index_path

S = 1_000_000_000
BEGIN_NS = 1_700_000_000 * S


@pytest.fixture
def folder(tmp_path: Path, output, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log of 30 lines, ten of each of three runs, a second apart, in four files, two of them compressed."""
    now_ns = BEGIN_NS
    monkeypatch.setattr("registry.logs.files.time.time_ns", lambda: now_ns)
    folder = tmp_path / "log"
    folder.mkdir()
    log = LogFile(str(folder / "web.log"), 150, 9)
    for number in range(30):
        output.write(f"line {number:2} of the log\n")
        log.move(output.reader, 1 + number // 10)
        now_ns += S
    log.close()
    while source := compress.waiting(str(folder / "web.log")):
        compression = compress.Compression(str(folder / "web.log"), source)
        assert compression.finish()
    return folder


def lines(folder: Path, **selection: int) -> list[WrittenLine]:
    log = Log(folder / "web.log")
    try:
        return list(log.lines(**selection))
    finally:
        log.close()


def expected(number: int) -> WrittenLine:
    at_ns = BEGIN_NS + number * S
    return WrittenLine(f"line {number:2} of the log", at_ns, False, 1 + number // 10, at_ns)


def test_every_line_comes_once_with_its_time_and_run(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} >= {"web.log", "web.log.1", "web.log.2.gz"}
    assert lines(folder) == [expected(number) for number in range(30)]


def test_a_copied_folder_says_the_same_and_that_its_indexes_go_by_their_names(
    folder: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile))
    assert lines(copy) == lines(folder)
    there, copied = Log(folder / "web.log"), Log(copy / "web.log")
    assert (there.is_by_name, copied.is_by_name) == (False, True)
    there.close()
    copied.close()


def test_a_copied_file_that_got_the_inode_of_one_compressed_before_has_its_own_index(
    folder: Path, tmp_path: Path
) -> None:
    """The kernel gives a free inode to the next file: mostly the copy of the first plain one."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile))
    inode = struct.pack("<Q", (copy / "web.log.1").stat().st_ino)
    for path, offset in (
        (copy / "web.log.2.gz", 16),
        (Path(index_path(str(copy / "web.log"), 2)), 16),
    ):
        data = bytearray(path.read_bytes())
        data[offset : offset + 8] = inode
        path.write_bytes(data)
    assert lines(copy) == lines(folder)


def test_a_time_chooses_lines(folder: Path) -> None:
    found = lines(folder, first_ns=BEGIN_NS + 7 * S, last_ns=BEGIN_NS + 12 * S)
    assert found == [expected(number) for number in range(7, 13)]


def test_without_an_index_a_line_has_no_time_and_stands_after_the_files_before(
    folder: Path,
) -> None:
    os.unlink(index_path(str(folder / "web.log"), 1))
    log = Log(folder / "web.log")
    found = list(log.lines())
    log.close()
    untimed = [line for line in found if line.at_ns is None]
    assert [line.text for line in found] == [f"line {number:2} of the log" for number in range(30)]
    assert 0 < log.untimed == len(untimed) < 30
    assert {(line.run, line.is_hint) for line in untimed} == {(None, False)}
    assert [line.order_ns for line in found] == sorted(line.order_ns for line in found)


def test_an_index_that_ends_early_or_is_damaged_costs_only_times(folder: Path) -> None:
    path = Path(index_path(str(folder / "web.log")))
    whole = path.read_bytes()
    for damaged in (b"", whole[: SIZE + 5], whole[:SIZE] + b"\xff" * SIZE, b"x" * len(whole)):
        path.write_bytes(damaged)
        assert [line.text for line in lines(folder)] == [expected(n).text for n in range(30)]


def test_an_index_that_is_another_files_of_the_same_log_is_not_taken_by_name(folder: Path) -> None:
    """As a rotation leaves it that was killed between two renames."""
    first, newest = (index_path(str(folder / "web.log"), number) for number in (1, 0))
    shutil.copyfile(first, newest)
    found = lines(folder)
    last = [line for line in found if line.at_ns is None]
    assert last == found[-len(last) :]
    assert last


def test_what_an_index_knows_only_roughly_is_a_hint(folder: Path) -> None:
    path = Path(index_path(str(folder / "web.log")))
    data = bytearray(path.read_bytes())
    data[SIZE + 16 : SIZE + 24] = (BEGIN_NS + 100 * S).to_bytes(8, "little")
    path.write_bytes(bytes(data))
    assert [line.is_hint for line in lines(folder)].count(True) == 1


def test_a_line_is_whole_where_files_meet_and_one_without_an_end_comes_too(tmp_path: Path) -> None:
    (tmp_path / "web.log.1").write_bytes(b"one\r\ntw")
    (tmp_path / "web.log").write_bytes(b"o\n\xffthree")
    assert [line.text for line in lines(tmp_path)] == ["one\r", "two", "\ufffdthree"]


def test_a_damaged_compressed_file_ends_where_the_damage_begins(folder: Path) -> None:
    path = next(folder.glob("web.log.*.gz"))
    path.write_bytes(path.read_bytes()[:40])
    found = {line.text for line in lines(folder)}
    assert expected(29).text in found
    assert len(found) < 30


def test_names_are_those_of_logs_and_of_nothing_else(tmp_path: Path) -> None:
    for name in (
        "a.log",
        "b.log.1",
        "c.log.2.gz",
        "a.log.index",
        "d.log.01",
        "e.txt",
        ".log",
        "f.log.1.gz",
    ):
        (tmp_path / name).touch()
    (tmp_path / "x.log.y.log").touch()
    assert names(tmp_path) == ["a", "b", "c", "x.log.y"]


def test_a_long_log_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    path = tmp_path / "web.log"
    path.write_bytes(b"x" * 99 + b"\n")
    subprocess.run(
        ["sh", "-c", 'for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17; do cat "$0" "$0" > t; mv t "$0"; done', path],
        cwd=tmp_path,
        check=True,
    )  # fmt: skip
    log = Log(path)
    tracemalloc.start()
    try:
        count = sum(1 for _ in log.lines())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        log.close()
    assert count == 1 << 17
    assert path.stat().st_size > 10 * peak
    assert peak > FREE // 8, "it was measured at all"
