"""What a log file promises: exact bytes, rotation at a line's end, a bound, and no blocked service."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from registry.logs import files
from registry.logs.files import LockedError, LogFile
from registry.logs.names import rotated


@pytest.fixture(params=[True, False], ids=["splice", "read-write"])
def splice(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "log" / "web.log")


def write(log: LogFile, output, text: str) -> None:
    """Write `text` as a service and move all of it."""
    output.write(text)
    with suppress(BlockingIOError):
        while log.move(output.reader):
            pass


def rotated_numbers(path: str) -> list[int]:
    return [number for number, _ in rotated(path)]


def everything(path: str) -> list[bytes]:
    """The contents of all files, oldest first."""
    names = [f"{path}.{n}" for n in reversed(rotated_numbers(path))] + [path]
    return [Path(name).read_bytes() for name in names]


def test_bytes_arrive_exactly(path, output, splice) -> None:
    log = LogFile(path, 1 << 20, 3, splice=splice)
    data = bytes(range(256)) * 100
    os.write(output.writer, data)
    assert log.move(output.reader) == len(data)
    assert Path(path).read_bytes() == data
    assert log.dropped == 0
    log.close()


@pytest.mark.platform("linux")
def test_bytes_never_pass_through_the_process(path, output, monkeypatch) -> None:
    """What a process has read and not yet written dies with it; splice leaves no such moment."""
    log = LogFile(path, 100, 9)
    output.write("moved by the kernel alone\n" * 10)
    monkeypatch.setattr(os, "read", None)
    assert log.move(output.reader) == 260
    monkeypatch.undo()
    assert b"".join(everything(path)) == b"moved by the kernel alone\n" * 10
    log.close()


def test_the_end_is_zero_and_silence_is_an_error(path, output, splice) -> None:
    log = LogFile(path, 1000, 3, splice=splice)
    with pytest.raises(BlockingIOError):
        log.move(output.reader)
    output.write("last words")
    output.end()
    assert log.move(output.reader) == 10
    assert log.move(output.reader) == 0
    log.close()


def test_file_and_folder_are_not_for_everybody(path, output) -> None:
    log = LogFile(path, 1000, 3)
    write(log, output, "x\n")
    assert Path(path).stat().st_mode & 0o777 == 0o640
    assert Path(path).parent.stat().st_mode & 0o777 == 0o750
    log.close()


def test_a_new_writer_goes_on_at_the_end(path, output, splice) -> None:
    for text in ("one\n", "two\n"):
        log = LogFile(path, 1000, 3, splice=splice)
        write(log, output, text)
        log.close()
    assert everything(path) == [b"one\ntwo\n"]


def test_rotation_is_at_a_lines_end_and_bounded(path, output, splice) -> None:
    log = LogFile(path, 100, 3, splice=splice)
    for number in range(100):
        write(log, output, f"line {number:04}\n")
    log.close()
    contents = everything(path)
    assert len(contents) == 3
    assert all(content.endswith(b"\n") for content in contents)
    assert all(len(content) == 100 for content in contents[:-1])
    lines = b"".join(contents).splitlines()
    assert lines == [b"line %04d" % n for n in range(100 - len(lines), 100)]


def test_one_flood_is_rotated_line_by_line(path, output, splice) -> None:
    """A pipe full of lines at once is cut where a line ends, not where the splice happened to stop."""
    log = LogFile(path, 1000, 100, splice=splice)
    write(log, output, "".join(f"a line of some length {n:05}\n" for n in range(2000)))
    log.close()
    contents = everything(path)
    assert len(contents) > 50
    assert all(content.endswith(b"\n") and len(content) < 1030 for content in contents)
    numbers = [int(line[-5:]) for line in b"".join(contents).splitlines()]
    assert numbers == list(range(2000))


def test_a_line_without_end_is_cut_at_twice_the_size(path, output, splice) -> None:
    log = LogFile(path, 100, 9, splice=splice)
    write(log, output, "x" * 450)
    log.close()
    assert [len(content) for content in everything(path)] == [200, 200, 50]


def test_one_file_in_all_starts_anew(path, output) -> None:
    log = LogFile(path, 10, 1)
    write(log, output, "123456789\n")
    write(log, output, "next\n")
    log.close()
    assert everything(path) == [b"next\n"]


def test_a_lower_number_of_files_removes_the_oldest(path, output) -> None:
    log = LogFile(path, 10, 5)
    for _ in range(5):
        write(log, output, "123456789\n")
    log.files_max = 2
    write(log, output, "x\n")
    log.close()
    assert rotated_numbers(path) == [1]


def test_a_gap_left_by_a_killed_rotation_costs_no_file(path, output) -> None:
    log = LogFile(path, 10, 4)
    write(log, output, "current..\n")
    Path(f"{path}.2").write_text("second\n")
    Path(f"{path}.3").write_text("third\n")
    write(log, output, "new\n")
    log.close()
    assert everything(path) == [b"third\n", b"second\n", b"current..\n", b"new\n"]


def test_other_files_beside_the_log_are_left_alone(path, output) -> None:
    log = LogFile(path, 10, 2)
    write(log, output, "123456789\n")
    for name in ("web.log.gz", "web.log.1.gz", "web.log.old", "web.log.01", "web.logs.7"):
        (Path(path).parent / name).write_text("mine")
    write(log, output, "x\n")
    log.close()
    assert rotated_numbers(path) == [1]
    assert len(os.listdir(Path(path).parent)) == 9, "seven, and two indexes"


def test_a_removed_file_is_made_again(path, output, splice) -> None:
    log = LogFile(path, 1000, 3, splice=splice)
    write(log, output, "lost\n")
    os.unlink(path)
    write(log, output, "found\n")
    log.close()
    assert everything(path) == [b"found\n"]


def test_a_truncated_file_gets_no_hole(path, output) -> None:
    log = LogFile(path, 1000, 3)
    write(log, output, "before\n")
    os.truncate(path, 0)
    write(log, output, "after\n")
    log.close()
    assert everything(path) == [b"after\n"]


def test_there_is_one_writer_and_the_next_waits(path, output, monkeypatch) -> None:
    first, second = LogFile(path, 1000, 3), LogFile(path, 1000, 3)
    write(first, output, "one\n")
    output.write("two\n")
    with pytest.raises(LockedError):
        second.move(output.reader)
    first.close()
    assert second.move(output.reader) == 4
    assert everything(path) == [b"one\ntwo\n"]
    second.close()


def test_a_lock_that_is_never_given_up_blocks_no_service(path, output, monkeypatch) -> None:
    monkeypatch.setattr(files, "LOCK_WAIT_S", 0.0)
    os.makedirs(Path(path).parent)
    with open(path, "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        log = LogFile(path, 1000, 3)
        output.write("lost\n")
        assert log.move(output.reader) == 5
    assert log.dropped == 5
    assert "another process holds its lock" in log.trouble


def test_what_cannot_be_opened_is_dropped_and_counted(tmp_path, output, monkeypatch) -> None:
    monkeypatch.setattr(files, "OPEN_RETRY_S", 0.0)
    (tmp_path / "log").write_text("a file where the folder should be")
    log = LogFile(str(tmp_path / "log" / "web.log"), 1000, 3)
    write(log, output, "lost\n")
    assert log.dropped == 5
    assert log.trouble.startswith("cannot write ")
    os.unlink(tmp_path / "log")
    write(log, output, "kept\n")
    assert (log.dropped, log.trouble) == (5, "")
    assert everything(log.path) == [b"kept\n"]
    log.close()


def test_a_log_that_is_a_link_or_a_fifo_is_not_written(path, output, tmp_path) -> None:
    os.makedirs(Path(path).parent)
    os.symlink(tmp_path / "elsewhere", path)
    log = LogFile(path, 1000, 3)
    write(log, output, "lost\n")
    assert log.dropped == 5
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.platform("linux")
def test_splice_refused_falls_back_to_read_and_write(path, output, monkeypatch) -> None:
    def refuse(*_args: object, **_named: object) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "splice", refuse)
    log = LogFile(path, 1000, 3)
    write(log, output, "all the same\n")
    assert everything(path) == [b"all the same\n"]
    log.close()


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file system of 256 KiB; where nobody may mount one, writing behaves as if it were."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if (
        shutil.which("mount")
        and subprocess.run(mount, check=False, capture_output=True).returncode == 0
    ):
        yield folder
        subprocess.run(["umount", str(folder)], check=True)
        return
    if hasattr(os, "splice"):
        monkeypatch.setattr(os, "splice", _bounded(os.splice, 1, folder))
    monkeypatch.setattr(os, "write", _bounded(os.write, 0, folder))
    yield folder


def _bounded(real: Callable[..., int], target: int, folder: Path) -> Callable[..., int]:
    """`real`, failing where argument `target` is a file and the folder is full."""

    def write(*arguments: int, **named: int) -> int:
        used = sum(file.stat().st_size for file in folder.iterdir())
        if stat.S_ISREG(os.fstat(arguments[target]).st_mode) and used >= 256 << 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **named)

    return write


def test_on_a_full_disk_the_oldest_go_then_output_is_dropped(small_disk, output, splice) -> None:
    path = str(small_disk / "web.log")
    log = LogFile(path, 64 << 10, 10, splice=splice)
    line = "x" * 1023 + "\n"
    for _ in range(400):
        write(log, output, line)
    assert log.dropped == 0
    assert Path(f"{path}.1").exists()
    assert len(rotated_numbers(path)) < 4
    log.size_max = 1 << 20
    for _ in range(400):
        write(log, output, line)
    assert rotated_numbers(path) == []
    assert log.dropped > 0
    assert "No space left" in log.trouble
    assert os.path.getsize(path) + log.dropped > 400 * 1024
    log.close()


def test_a_file_size_limit_drops_and_keeps_what_is_there(path) -> None:
    """Any refusal to write is survived: here RLIMIT_FSIZE, which needs no special rights."""
    program = f"""
import os, resource
from registry.logs.files import LogFile
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
reader, writer = os.pipe()
os.set_blocking(reader, False)
log = LogFile({path!r}, 1 << 20, 3)
for _ in range(10):
    os.write(writer, b"x" * 1023 + b"\\n")
    assert log.move(reader) == 1024
print(log.dropped, os.path.getsize({path!r}), log.trouble)
"""
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith("6144 4096 cannot write ")
