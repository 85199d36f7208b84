"""Reading a log: its last lines, and what comes after them, across rotation.

The file and its rotated predecessors are one stream of bytes; a line is what stands between two
newlines in that stream, wherever a file ends. Reading never disturbs the writer and takes no lock.
"""

from __future__ import annotations

import os
from pathlib import Path

from registry.logs.files import rotated_numbers

BLOCK = 1 << 16
TAIL_MAX = 1 << 23
"""Bytes that a tail looks back at most, however many lines were asked for."""

READ_MAX = 1 << 18
"""Bytes that one `read_new` returns at most."""

LINE_MAX = 1 << 16
"""A line without an end is given out in pieces of this many bytes."""

_TRIES = 5
"""Rotations in a row that may spoil one look at the files; each takes well under a millisecond."""


def tail(path: Path, lines: int) -> list[str]:
    """The last `lines` lines, the unfinished one included; [] where there is no log."""
    fds = _open_all(path)
    try:
        data, _ = _last_bytes(fds, lines)
    finally:
        _close(fds)
    whole, partial = _split(data)
    return _last([*whole, partial] if partial else whole, lines)


def tail_and_follow(path: Path, lines: int) -> tuple[list[str], Follower]:
    """The last `lines` finished lines, and a Follower that goes on right after them."""
    fds = _open_all(path)
    try:
        data, offset = _last_bytes(fds, lines)
        newest = os.dup(fds[0]) if fds else -1
    finally:
        _close(fds)
    whole, partial = _split(data)
    return _last(whole, lines), Follower(path, fd=newest, offset=offset, held=partial)


class Follower:
    """What is added to the log at `path`, from where it is told, by default from the first line.

    `behind` is True when the last `read_new` stopped at its bound and more is there already.
    """

    def __init__(self, path: Path, *, fd: int = -1, offset: int = 0, held: bytes = b"") -> None:
        self.behind = False
        self._path = path
        self._fd = fd
        self._offset = offset
        self._held = held

    def read_new(self) -> list[str]:
        """The lines finished since the last call, READ_MAX bytes of them at most."""
        data = self._read(READ_MAX)
        self.behind = len(data) == READ_MAX
        whole, self._held = _split(self._held + data)
        if len(self._held) >= LINE_MAX:
            whole.append(self._held)
            self._held = b""
        return [line.decode(errors="replace") for line in whole]

    def close(self) -> None:
        """Give back the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read(self, most: int) -> bytes:
        blocks: list[bytes] = []
        while most > 0:
            block = self._read_here(most) or self._read_next(most)
            if not block:
                break
            blocks.append(block)
            most -= len(block)
        return b"".join(blocks)

    def _read_here(self, most: int) -> bytes:
        if self._fd < 0:
            return b""
        block = os.pread(self._fd, most, self._offset)
        self._offset += len(block)
        return block

    def _read_next(self, most: int) -> bytes:
        """At the end of this file: go on with the one that came after it, if one did."""
        following = self._open_following()
        if following < 0:
            self._notice_truncation()
            return b""
        # What was written between the last read and the rename is still in the old file.
        block = self._read_here(most)
        if block:
            os.close(following)
            return block
        self.close()
        self._fd, self._offset = following, 0
        return self._read_here(most)

    def _open_following(self) -> int:
        fds = _open_all(self._path)
        wanted = self._position_after_ours(fds)
        following = fds.pop(wanted) if wanted >= 0 else -1
        _close(fds)
        return following

    def _position_after_ours(self, fds: list[int]) -> int:
        """Which of `fds` (newest first) holds what follows our file; -1 when ours is the newest."""
        if self._fd < 0:
            return len(fds) - 1
        ours = os.fstat(self._fd)
        stats = [os.fstat(fd) for fd in fds]
        for position, found in enumerate(stats):
            if os.path.samestat(found, ours):
                return position - 1
        # Ours was removed: what was written to since then is new.
        return sum(found.st_mtime_ns >= ours.st_mtime_ns for found in stats) - 1

    def _notice_truncation(self) -> None:
        if self._fd >= 0 and os.fstat(self._fd).st_size < self._offset:
            self._offset = 0


def _open_all(path: Path) -> list[int]:
    """The log's files, newest first, as they stood at one moment (a rotation spoils a look)."""
    for _ in range(_TRIES - 1):
        fds = _open_once(path)
        if _identities(path) == [_identity(os.fstat(fd)) for fd in fds]:
            return fds
        _close(fds)
    return _open_once(path)


def _open_once(path: Path) -> list[int]:
    fds = []
    for name in _names(path):
        try:
            fds.append(os.open(name, os.O_RDONLY | os.O_CLOEXEC))
        except FileNotFoundError:
            continue
        except OSError:
            _close(fds)
            raise
    return fds


def _names(path: Path) -> list[str]:
    return [str(path), *(f"{path}.{number}" for number in rotated_numbers(str(path)))]


def _identities(path: Path) -> list[tuple[int, int]]:
    found = []
    for name in _names(path):
        try:
            found.append(_identity(os.stat(name)))
        except FileNotFoundError:
            continue
    return found


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _last_bytes(fds: list[int], lines: int) -> tuple[bytes, int]:
    """The end of the stream, far enough back for `lines` lines; and the newest file's size."""
    blocks: list[bytes] = []
    sizes = [os.fstat(fd).st_size for fd in fds]
    newlines = total = 0
    for fd, size in zip(fds, sizes, strict=True):
        end = size
        # One newline more than lines: what stands before the first is a line cut in half.
        while end > 0 and newlines <= lines and total < TAIL_MAX:
            start = max(0, end - BLOCK)
            block = os.pread(fd, end - start, start)
            blocks.append(block)
            newlines += block.count(b"\n")
            total += len(block)
            end = start
    return b"".join(reversed(blocks)), sizes[0] if sizes else 0


def _split(data: bytes) -> tuple[list[bytes], bytes]:
    """The finished lines of `data`, and the rest."""
    *whole, rest = data.split(b"\n")
    return whole, rest


def _last(whole: list[bytes], lines: int) -> list[str]:
    return [line.decode(errors="replace") for line in whole[-lines:]] if lines > 0 else []
