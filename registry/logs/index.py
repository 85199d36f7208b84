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
from typing import NamedTuple

MAGIC = b"CircleLogIndex1\n"
RESOLUTION_NS = 10_000_000
"""Output that comes closer together than this shares a record."""

FREE = 1 << 16
"""Bytes that an index may have however small its file is; beyond, an eighth of the file's size."""

SIZE_MAX = 1 << 24
"""Bytes that are read of an index at most."""

_HEADER = struct.Struct("<16sQQ")
_RECORD = struct.Struct("<QqqQ")
_SIZE = _RECORD.size


class Span(NamedTuple):
    """The bytes from `start` to `end` of a file: when they were written, and by which run.

    Without an index `run` is None, and so is `first_ns` where no older file says when this one began.
    """

    start: int
    end: int
    first_ns: int | None
    last_ns: int
    run: int | None


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
        self._last: Span | None = None

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
        header = os.pread(self._fd, _SIZE, 0)
        if len(header) < _SIZE or _owner(header) != self._inode:
            self._begin()
            return
        self._end = found.st_size - found.st_size % _SIZE
        latest = _records(os.pread(self._fd, _SIZE, self._end - _SIZE)) if self._end > _SIZE else []
        if latest and latest[0].start > size:
            self._begin()

    def _begin(self) -> None:
        os.ftruncate(self._fd, 0)
        self._end = os.pwrite(self._fd, _HEADER.pack(MAGIC, self._inode, 0), 0)
        self._last = None

    def _note(self, offset: int, run: int, now_ns: int) -> None:
        last = self._last
        if last is not None and offset < last.start:  # somebody truncated the log
            self._begin()
            last = None
        if last is None or last.run != run:
            self._append(Span(offset, offset, now_ns, now_ns, run))
        elif 0 <= now_ns - last.last_ns < RESOLUTION_NS:
            return
        elif self._end <= FREE + offset // 8:
            self._append(Span(offset, offset, now_ns, now_ns, run))
        else:
            assert last.first_ns is not None
            first_ns, last_ns = min(last.first_ns, now_ns), max(last.last_ns, now_ns)
            self._end -= _SIZE
            self._append(last._replace(first_ns=first_ns, last_ns=last_ns))

    def _append(self, span: Span) -> None:
        record = _RECORD.pack(span.start, span.first_ns, span.last_ns, span.run)
        if os.pwrite(self._fd, record, self._end) != _SIZE:
            raise OSError("written in part")
        self._end += _SIZE
        self._last = span

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
    return _owner(_read(path, _SIZE))


def _owner(data: bytes) -> int | None:
    if len(data) < _SIZE:
        return None
    magic, inode, _ = _HEADER.unpack_from(data)
    return int(inode) if magic == MAGIC else None


def spans(path: str, number: int, inode: int, size: int) -> list[Span]:
    """What is known of the first `size` bytes of a file; beginning with the first that is known.

    A rotation may be under way, or have been killed: then its index lies beside a neighbour.
    """
    for candidate in (number, number + 1, number - 1):
        if candidate < 0:
            continue
        data = _read(index_path(path, candidate), SIZE_MAX)
        if _owner(data) == inode:
            return _joined(_records(data[_SIZE:]), size)
    return []


def _records(data: bytes) -> list[Span]:
    whole = memoryview(data)[: len(data) - len(data) % _SIZE]
    return [
        Span(offset, offset, first_ns, last_ns, run)
        for offset, first_ns, last_ns, run in _RECORD.iter_unpack(whole)
    ]


def _joined(records: list[Span], size: int) -> list[Span]:
    """The records as far as they make sense, each up to the beginning of the next."""
    sound: list[Span] = []
    for record in records:
        backwards = bool(sound) and record.start < sound[-1].start
        if backwards or record.start > size or record.last_ns < (record.first_ns or 0):
            break
        sound.append(record)
    ends = [*(record.start for record in sound[1:]), size]
    return [record._replace(end=end) for record, end in zip(sound, ends, strict=False)]


def _read(path: str, most: int) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.pread(fd, most, 0)
    except OSError:
        return b""
    finally:
        os.close(fd)
