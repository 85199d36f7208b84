"""The sidecar of a log file: when, and by which run, its bytes were written. A hint, never a truth.

Beside NAME.log lies NAME.log.index, beside NAME.log.1 and NAME.log.2.gz lie NAME.log.1.index and
NAME.log.2.index. It is a header and records of 32 bytes, little-endian:
    header  16 bytes MAGIC, the log file's inode (8), zeros (8)
    record  offset (8), first_ns (8), last_ns (8), run (8)
A record says that the bytes from `offset` up to the next record's were moved into the file between
`first_ns` and `last_ns` + RESOLUTION_NS (UTC), and that `run` wrote them. It is written before its bytes
are. The inode tells whose index it is, so that one left behind by a killed rotation misleads nobody.
What is missing, cut or wrong costs precision; it is never an error.
Standard library only: the keeper, which imports this, must stay small.
"""

from __future__ import annotations

import os
import stat
import struct

MAGIC = b"CircleLogIndex1\n"
RESOLUTION_NS = 10_000_000
"""Output that comes closer together than this shares a record."""

FREE = 1 << 16
"""Bytes that an index may have however small its file is; beyond, an eighth of the file's size."""

_HEADER = struct.Struct("<16sQQ")
RECORD = struct.Struct("<QqqQ")
SIZE = RECORD.size

Record = tuple[int, int, int, int]
"""offset, first_ns, last_ns, run."""


def index_path(path: str, number: int = 0) -> str:
    """Where the index of the log `path` lies, or that of its rotated file of this number."""
    return f"{path}.{number}.index" if number else f"{path}.index"


class Index:
    """The index of the file that is being written, on the writing side."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._inode = 0
        self._fd = -1
        self._end = 0
        self._last: Record | None = None

    def open(self, inode: int, size: int) -> None:
        """Go on with the index of the file with this inode and size, or begin one."""
        self.close()
        self._inode, self._end = inode, 0
        try:
            self._open(size)
        except OSError:
            self._give_up()

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._last = None

    def note(self, offset: int, run: int, now_ns: int) -> None:
        """The bytes that `run` writes from `offset` on are written from now on. To be said first."""
        if self._fd < 0:
            return
        try:
            self._note(offset, run, now_ns)
        except OSError:
            self._give_up()

    def is_crowded(self, size_max: int) -> bool:
        """Whether so many runs share the file that it should be rotated early, to bound its index."""
        return self._end > FREE + size_max // 4

    def _open(self, size: int) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o640)
        found = os.fstat(self._fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError("not a regular file")
        header = os.pread(self._fd, SIZE, 0)
        if len(header) < SIZE or owner_of(header) != self._inode:
            self._begin()
            return
        self._end = found.st_size - found.st_size % SIZE
        if self._end > SIZE:
            offset, *_ = RECORD.unpack(os.pread(self._fd, SIZE, self._end - SIZE))
            if offset > size:
                self._begin()

    def _begin(self) -> None:
        os.ftruncate(self._fd, 0)
        self._end = os.pwrite(self._fd, _HEADER.pack(MAGIC, self._inode, 0), 0)
        self._last = None

    def _note(self, offset: int, run: int, now_ns: int) -> None:
        if self._last is not None and offset < self._last[0]:  # somebody truncated the log
            self._begin()
        fresh = (offset, now_ns, now_ns, run)
        if self._last is None or self._last[3] != run:
            self._append(fresh)
            return
        start, first_ns, last_ns, _ = self._last
        if 0 <= now_ns - last_ns < RESOLUTION_NS:
            return
        if self._end <= FREE + offset // 8:
            self._append(fresh)
        else:
            self._end -= SIZE
            self._append((start, min(first_ns, now_ns), max(last_ns, now_ns), run))

    def _append(self, record: Record) -> None:
        if os.pwrite(self._fd, RECORD.pack(*record), self._end) != SIZE:
            raise OSError("written in part")
        self._end += SIZE
        self._last = record

    def _give_up(self) -> None:
        """Rather none than one that lacks a run: what follows would be taken for the run before it."""
        if self._fd < 0:
            return
        try:
            os.ftruncate(self._fd, 0)
        except OSError:
            pass
        finally:
            self.close()
            self._end = 0


def owner(path: str) -> int | None:
    """The inode of the log file that the index at `path` belongs to; None where it is no index."""
    return owner_of(read(path, SIZE))


def owner_of(data: bytes) -> int | None:
    """The same, from the beginning of an index."""
    if len(data) < SIZE:
        return None
    magic, inode, _ = _HEADER.unpack_from(data)
    return int(inode) if magic == MAGIC else None


def read(path: str, most: int, offset: int = 0) -> bytes:
    """At most `most` bytes of the index at `path` from `offset`; none where it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.pread(fd, most, offset)
    except OSError:
        return b""
    finally:
        os.close(fd)
