"""What a reader of logs is promised: the last lines, then every further one, each once."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from registry.logs import read
from registry.logs.files import LogFile
from registry.logs.read import Follower, tail, tail_and_follow


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "web.log"


def rotate(path: Path, count: int = 1) -> None:
    """Rename as the writer does, then begin a new file."""
    for number in range(count, 0, -1):
        older = Path(f"{path}.{number - 1}") if number > 1 else path
        if older.exists():
            older.rename(f"{path}.{number}")
    path.touch()


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_no_log_has_no_lines(path) -> None:
    assert tail(path, 5) == []


def test_tail_gives_the_last_lines_and_the_unfinished_one(path) -> None:
    path.write_text("a\nb\nc\nunfinished")
    assert tail(path, 2) == ["c", "unfinished"]
    assert tail(path, 99) == ["a", "b", "c", "unfinished"]
    assert tail(path, 0) == []


def test_tail_reaches_into_rotated_files(path) -> None:
    Path(f"{path}.10").write_text("1\n2\n")
    Path(f"{path}.2").write_text("3\n4\n")
    Path(f"{path}.1").write_text("5\n6\n")
    path.write_text("")
    assert tail(path, 5) == ["2", "3", "4", "5", "6"]


def test_a_line_cut_by_rotation_is_one_line(path) -> None:
    Path(f"{path}.1").write_text("first\nbegin")
    path.write_text("ning\nlast\n")
    assert tail(path, 3) == ["first", "beginning", "last"]


def test_tail_reads_backwards_over_many_blocks(path, monkeypatch) -> None:
    monkeypatch.setattr(read, "BLOCK", 7)
    path.write_text("".join(f"line {n}\n" for n in range(50)))
    assert tail(path, 3) == ["line 47", "line 48", "line 49"]


def test_tail_of_a_huge_line_is_bounded(path, monkeypatch) -> None:
    monkeypatch.setattr(read, "TAIL_MAX", 100_000)
    path.write_text("x" * 1_000_000)
    assert len(tail(path, 1)[0]) < 200_000


def test_what_is_not_utf8_is_shown_with_replacements(path) -> None:
    path.write_bytes(b"caf\xe9\n")
    assert tail(path, 1) == ["caf\ufffd"]


def test_following_begins_where_the_tail_ends(path) -> None:
    path.write_text("a\nb\nhalf")
    lines, follower = tail_and_follow(path, 1)
    assert lines == ["b"]
    assert follower.read_new() == []
    append(path, " whole\nc\n")
    assert follower.read_new() == ["half whole", "c"]
    follower.close()


def test_a_follower_may_come_before_the_log(path) -> None:
    lines, follower = tail_and_follow(path, 5)
    assert (lines, follower.read_new()) == ([], [])
    path.write_text("first\n")
    assert follower.read_new() == ["first"]
    follower.close()


def test_following_continues_across_rotations(path) -> None:
    path.write_text("a\n")
    _, follower = tail_and_follow(path, 0)
    append(path, "b\nhal")
    rotate(path, 1)
    append(path, "f\nc\n")
    rotate(path, 2)
    append(path, "d\n")
    rotate(path, 3)
    append(path, "e\n")
    assert follower.read_new() == ["b", "half", "c", "d", "e"]
    assert follower.read_new() == []
    follower.close()


def test_a_file_that_was_removed_is_followed_by_the_next(path) -> None:
    Path(f"{path}.1").write_text("old\n")
    os.utime(f"{path}.1", (0, 0))
    path.write_text("a\n")
    _, follower = tail_and_follow(path, 0)
    path.unlink()
    assert follower.read_new() == []
    path.write_text("b\n")
    assert follower.read_new() == ["b"]
    follower.close()


def test_a_truncated_file_is_read_from_its_beginning(path) -> None:
    path.write_text("a long line\n")
    _, follower = tail_and_follow(path, 0)
    os.truncate(path, 0)
    follower.read_new()
    append(path, "new\n")
    assert follower.read_new() == ["new"]
    follower.close()


def test_a_call_is_bounded_and_says_that_more_is_there(path, monkeypatch) -> None:
    monkeypatch.setattr(read, "READ_MAX", 10)
    path.write_text("12345678\n" * 5)
    follower = Follower(path)
    got, calls = follower.read_new(), 1
    assert follower.behind
    while follower.behind:
        got += follower.read_new()
        calls += 1
    assert got == ["12345678"] * 5
    assert calls == 5
    follower.close()


def test_a_line_without_end_comes_in_pieces(path) -> None:
    path.write_text("x" * (read.LINE_MAX + 5))
    follower = Follower(path)
    assert [len(line) for line in follower.read_new()] == [read.LINE_MAX + 5]
    follower.close()


def test_tail_and_follow_against_a_rotating_writer_lose_and_double_nothing(path) -> None:
    count = 20_000
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    log = LogFile(str(path), 20_000, 1000)

    def produce() -> None:
        for number in range(count):
            os.write(writer, b"%d\n" % number)
            with suppress(BlockingIOError):
                log.move(reader)

    thread = threading.Thread(target=produce)
    thread.start()
    lines, follower = tail_and_follow(path, count)
    while not lines or lines[-1] != str(count - 1):
        lines += follower.read_new()
    thread.join()
    assert lines == [str(number) for number in range(count)]
    follower.close()
    log.close()
    os.close(reader)
    os.close(writer)
