"""The files of one log, open for reading: one stream of bytes, plain or compressed.

They are opened as they stood at one moment; what a writer does afterwards changes nothing about them.
A damaged compressed file ends where the damage begins.
"""

from __future__ import annotations

import errno
import os
import stat
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from registry.logs import compress
from registry.logs.names import GZ, rotated
from registry.logs.spans import SIZE_MAX, Span, spans

BLOCK = 1 << 16
_TRIES = 5
"""Rotations in a row that may spoil one look at the files; each takes well under a millisecond."""

_GZIP = 16 + zlib.MAX_WBITS


class Part:
    """One of the files. `number` is the one in its name, 0 for the newest; `size` is what it had when opened."""

    def __init__(self, path: Path, number: int, name: str) -> None:
        self._path = str(path)
        self.number = number
        self._fd, self.stat = _opened(name)
        self._unpacker = _Unpacker(self._fd) if name.endswith(GZ) else None
        self.size = self._unpacked_size() if self._unpacker else self.stat.st_size

    def close(self) -> None:
        """Give back the file."""
        os.close(self._fd)

    def read(self, offset: int, most: int) -> bytes:
        """At most `most` bytes from `offset`, nothing at the end. Quick where compressed only if read in order."""
        if self._unpacker:
            return self._unpacker.read(offset, most)
        return os.pread(self._fd, most, offset)

    def backwards(self, most: int) -> Iterator[bytes]:
        """Blocks from the end to the beginning, `most` bytes in all, or a little more."""
        if self._unpacker:
            yield from self._unpacker.last_blocks(most)
            return
        end = self.size
        while end > max(0, self.size - most):
            start = max(0, end - BLOCK)
            yield os.pread(self._fd, end - start, start)
            end = start

    @property
    def is_plain(self) -> bool:
        """Whether it is not compressed."""
        return self._unpacker is None

    def present_stat(self) -> os.stat_result:
        """What the file is like now."""
        return os.fstat(self._fd)

    def is_same(self, earlier: Part) -> bool:
        """Whether this is the file that was opened earlier and is still held, or was compressed from it."""
        if os.path.samestat(self.stat, earlier.stat):
            return True
        # Not the other way round: of a compressed file, the plain one's inode is free to be another's.
        return earlier.is_plain and not self.is_plain and self.inode == earlier.inode

    @property
    def inode(self) -> int | None:
        """The inode that it has, or had before it was compressed: by it its index knows it."""
        return compress.inode_of(self._fd) if self._unpacker else self.stat.st_ino

    def spans(self, before: Part | None, most: int = SIZE_MAX) -> list[Span]:
        """When and by whom its bytes were written; where no index says so, as far as file times tell.

        Only the last `most` bytes of the index are looked at.
        """
        inode = self.inode
        found = [] if inode is None else spans(self._path, self.number, inode, self.size, most)
        if found and found[-1].run is None:
            found[-1] = found[-1]._replace(last_ns=max(found[-1].last_ns, self.stat.st_mtime_ns))
        known_from = found[0].start if found else self.size
        if known_from == 0:
            return found
        since_ns = before.stat.st_mtime_ns if before else None
        until_ns = found[0].first_ns if found else None
        until_ns = self.stat.st_mtime_ns if until_ns is None else until_ns
        return [Span(0, known_from, since_ns, until_ns, None), *found]

    def _unpacked_size(self) -> int:
        """What the last four bytes say (RFC 1952), which is right below 4 GiB."""
        return int.from_bytes(os.pread(self._fd, 4, max(0, self.stat.st_size - 4)), "little")


class _Unpacker:
    """Reads a compressed file in order; going back begins anew."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._begin()

    def _begin(self) -> None:
        self._zlib = zlib.decompressobj(_GZIP)
        self._position = self._read = 0
        self._is_over = False

    def read(self, offset: int, most: int) -> bytes:
        if offset < self._position:
            self._begin()
        while self._position < offset:
            if not self._more(min(BLOCK, offset - self._position)):
                return b""
        return self._more(most)

    def last_blocks(self, most: int) -> Iterator[bytes]:
        blocks: deque[bytes] = deque()
        total = 0
        self._begin()
        while block := self._more(BLOCK):
            blocks.append(block)
            total += len(block)
            while total - len(blocks[0]) >= most:
                total -= len(blocks.popleft())
        yield from reversed(blocks)

    def _more(self, most: int) -> bytes:
        data = b""
        while not data and not self._is_over:
            packed = self._zlib.unconsumed_tail or os.pread(self._fd, BLOCK, self._read)
            if not self._zlib.unconsumed_tail:
                self._read += len(packed)
            try:
                data = self._zlib.decompress(packed, most)
            except zlib.error:
                self._is_over = True
            self._is_over |= self._zlib.eof or (not packed and not data)
        self._position += len(data)
        return data


def open_all(path: Path) -> list[Part]:
    """The log's files, newest first, as they stood at one moment (a rotation spoils a look)."""
    for _ in range(_TRIES - 1):
        parts = _open_once(path)
        if _identities(path) == [_identity(part.stat) for part in parts]:
            return parts
        close_all(parts)
    return _open_once(path)


def _opened(name: str) -> tuple[int, os.stat_result]:
    """A file, and what it is like; raises OSError where it is none, and never waits for a FIFO's writer."""
    fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", name)
    return fd, found


def close_all(parts: list[Part]) -> None:
    """Close them."""
    for part in parts:
        part.close()


def _open_once(path: Path) -> list[Part]:
    parts: list[Part] = []
    for number, name in _names(path):
        try:
            parts.append(Part(path, number, name))
        except FileNotFoundError:
            continue
        except OSError:
            close_all(parts)
            raise
    return parts


def _names(path: Path) -> list[tuple[int, str]]:
    return [(0, str(path)), *rotated(str(path))]


def _identities(path: Path) -> list[tuple[int, int]]:
    found = []
    for _, name in _names(path):
        try:
            found.append(_identity(os.stat(name)))
        except FileNotFoundError:
            continue
    return found


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
