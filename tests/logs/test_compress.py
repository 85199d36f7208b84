"""What compression promises: the same bytes, wherever it is killed, and a reader who keeps his place."""

from __future__ import annotations

import gzip
import os
import select
from contextlib import suppress
from pathlib import Path

import pytest

from registry.logs import compress
from registry.logs.compress import Compression, waiting
from registry.logs.files import LogFile
from registry.logs.names import rotated, rotated_all
from registry.logs.read import Follower, Selection, tail, tail_and_follow
from registry.logs.read import select as select_lines

pytestmark = pytest.mark.platform("linux")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "web.log")


def write(log: LogFile, output, text: str) -> None:
    output.write(text)
    with suppress(BlockingIOError):
        while log.move(output.reader, 1):
            pass


def fill(path: str, output, count: int = 40) -> LogFile:
    """A log of `count` numbered lines, five in a file."""
    log = LogFile(path, 50, 100)
    for number in range(count):
        write(log, output, f"line {number:04}\n")
    return log


def run(path: str) -> Compression:
    """Compress the next file, up to where it has only to be put in place."""
    source = waiting(path)
    assert source is not None
    begun = Compression(path, source)
    assert select.select([begun], [], [], 10)[0]
    return begun


def compress_all(path: str) -> None:
    while waiting(path):
        assert run(path).finish()


def everything(path: str) -> list[str]:
    return [f"line {n:04}" for n in range(40)]


def names(path: str) -> list[str]:
    return [os.path.basename(name) for _, name in rotated(path)]


def test_the_newest_rotated_file_stays_plain_and_the_rest_can_be_read_by_gzip(path, output) -> None:
    fill(path, output).close()
    before = {number: Path(name).read_bytes() for number, name in rotated(path)}
    compress_all(path)
    assert names(path) == ["web.log.1", *(f"web.log.{n}.gz" for n in range(2, 8))]
    for number, name in rotated(path)[1:]:
        assert gzip.decompress(Path(name).read_bytes()) == before[number]
        assert os.stat(name).st_mode & 0o777 == 0o640


def test_tail_and_follow_and_select_read_compressed_files(path, output) -> None:
    fill(path, output).close()
    compress_all(path)
    assert tail(Path(path), 1000) == everything(path)
    lines, follower = tail_and_follow(Path(path), 33)
    follower.close()
    assert lines == everything(path)[-33:]
    assert [line.text for line in select_lines(Path(path), 99, Selection(run=1))] == everything(
        path
    )
    follower = Follower(Path(path))
    assert follower.read_new() == everything(path)
    follower.close()


def test_a_follower_keeps_its_place_when_its_file_is_compressed(path, output) -> None:
    log = fill(path, output, 3)
    lines, follower = tail_and_follow(Path(path), 99)
    for number in range(3, 40):
        write(log, output, f"line {number:04}\n")
        compress_all(path)
    lines += follower.read_new()
    follower.close()
    log.close()
    assert lines == everything(path)


def test_rotation_meanwhile_takes_the_compressed_file_along(path, output) -> None:
    log = fill(path, output, 15)
    begun = run(path)
    for number in range(15, 40):
        write(log, output, f"line {number:04}\n")
    assert begun.finish()
    log.close()
    assert "web.log.7.gz" in names(path)
    assert tail(Path(path), 1000) == everything(path)


def test_a_file_removed_meanwhile_leaves_nothing_behind(path, output) -> None:
    fill(path, output).close()
    begun = run(path)
    os.unlink(f"{path}.2")
    assert begun.finish()
    assert names(path) == ["web.log.1", *(f"web.log.{n}" for n in range(3, 8))]
    assert not list(Path(path).parent.glob("*.tmp"))


def test_killed_before_the_rename_the_plain_file_is_still_there(path, output) -> None:
    fill(path, output).close()
    begun = run(path)
    begun._close()
    os.waitpid(begun._pid, 0)
    assert tail(Path(path), 1000) == everything(path)
    assert list(Path(path).parent.glob("*.gz.tmp"))
    log = LogFile(path, 50, 100)
    write(log, output, "")
    write(log, output, "line 0040\n")
    log.close()
    assert not list(Path(path).parent.glob("*.gz.tmp"))


def test_killed_between_rename_and_unlink_nothing_is_read_twice(path, output, monkeypatch) -> None:
    fill(path, output).close()
    begun = run(path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", lambda _name: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            begun.finish()
    assert Path(f"{path}.2").exists()
    assert Path(f"{path}.2.gz").exists()
    assert tail(Path(path), 1000) == everything(path)
    log = LogFile(path, 50, 100)
    write(log, output, "line 0040\n")
    log.close()
    assert len(rotated_all(path)) == len(rotated(path))
    assert tail(Path(path), 1000) == [*everything(path), "line 0040"]


def test_a_compression_that_fails_leaves_the_file_as_it_was(path, output, monkeypatch) -> None:
    fill(path, output).close()
    monkeypatch.setattr(compress, "_PROGRAM", "raise SystemExit(3)")
    assert not run(path).finish()
    assert names(path) == [f"web.log.{n}" for n in range(1, 8)]
    assert not list(Path(path).parent.glob("*.tmp"))


def test_the_bound_on_files_holds_for_compressed_ones(path, output) -> None:
    log = LogFile(path, 50, 4)
    for number in range(40):
        write(log, output, f"line {number:04}\n")
        compress_all(path)
    assert names(path) == ["web.log.1", "web.log.2.gz", "web.log.3.gz"]
    log.files_max = 2
    for number in range(40, 46):
        write(log, output, f"line {number:04}\n")
    log.close()
    assert names(path) == ["web.log.1"]
    assert len(list(Path(path).parent.glob("web.log*"))) == 4, "two files and their indexes"


def test_a_damaged_compressed_file_ends_where_the_damage_begins(path, output) -> None:
    fill(path, output).close()
    compress_all(path)
    oldest = Path(f"{path}.7.gz")
    oldest.write_bytes(oldest.read_bytes()[:40])
    assert tail(Path(path), 1000)[-34:] == everything(path)[6:]
    oldest.write_bytes(b"nonsense")
    assert tail(Path(path), 1000) == everything(path)[5:]
    assert [x.text for x in select_lines(Path(path), 99, Selection(first_ns=0))] == everything(
        path
    )[5:]


def test_on_a_full_disk_compressed_files_go_first_too(path, output, monkeypatch) -> None:
    """The oldest file is the one that makes room, whatever it is; nothing else is lost for it."""
    log = fill(path, output)
    compress_all(path)
    real = os.splice
    refused = iter([28, 28])  # ENOSPC, twice

    def full(*arguments: int, **named: int) -> int:
        if number := next(refused, 0):
            raise OSError(number, os.strerror(number))
        return real(*arguments, **named)

    monkeypatch.setattr(os, "splice", full)
    write(log, output, "line 0040\n")
    log.close()
    assert log.dropped == 0
    assert "web.log.7.gz" not in names(path)
    assert not Path(f"{path}.8.index").exists()
    assert tail(Path(path), 1000) == [*everything(path), "line 0040"][10:]


def test_without_room_to_compress_the_plain_file_stays(path, output, monkeypatch) -> None:
    fill(path, output).close()
    program = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10)); "
    monkeypatch.setattr(compress, "_PROGRAM", program + compress._PROGRAM)
    assert not run(path).finish()
    assert tail(Path(path), 1000) == everything(path)
    assert not list(Path(path).parent.glob("*.tmp"))
