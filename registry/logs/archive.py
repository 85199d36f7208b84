"""A folder of log files, as it lies there or as it was copied: every line of a log, from the first to the last.

Of each log a block of its text and one of its index are held, however long they are. An index knows its file
by the inode, which a copy does not keep: where no index owns a file, the one that its name calls for is taken.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from registry.logs.index import RECORD, RESOLUTION_NS, SIZE, index_path, owner, read
from registry.logs.parts import BLOCK, Part, close_all, open_all
from registry.logs.read import LINE_MAX
from registry.logs.spans import Span

_NAME = re.compile(r"(.+)\.log(?:\.(?!1\.gz)[1-9]\d*(?:\.gz)?)?")
_INDEX_BLOCK = SIZE * 512


class WrittenLine(NamedTuple):
    """A line, and when and by which run it was written, as far as anything tells.

    `at_ns` (UTC) and `run` are None where no index does. `is_hint`: it is known only to lie between `at_ns` and
    some later time. `order_ns` never goes back within a log: by it the lines of several are put in order.
    """

    text: str
    at_ns: int | None
    is_hint: bool
    run: int | None
    order_ns: int


def names(folder: Path) -> list[str]:
    """Whose logs lie in a folder. Raises OSError."""
    found = map(_NAME.fullmatch, os.listdir(folder))
    return sorted({match[1] for match in found if match})


class Log:
    """The log at `path`, its files opened at once as they stand: to be read once, or closed. Raises OSError.

    `is_by_name`: an index was taken for its name. `untimed` counts the lines given out that no index knows.
    """

    def __init__(self, path: Path) -> None:
        self._parts = open_all(path)[::-1]
        owners = _Owners(
            {part.inode for part in self._parts},
            {part.inode for part in self._parts if not part.is_plain},
        )
        self._indexes = [_index_of(str(path), part, owners) for part in self._parts]
        self.is_by_name = any(index is not None and index.is_by_name for index in self._indexes)
        self.untimed = 0

    def close(self) -> None:
        """Give back the files."""
        close_all(self._parts)
        self._parts = []

    def lines(
        self, first_ns: int | None = None, last_ns: int | None = None
    ) -> Iterator[WrittenLine]:
        """The lines that may have been written from `first_ns` to `last_ns` (UTC), oldest first."""
        order_ns = 0
        for text, span in self._pieces():
            order_ns = max(order_ns, span.first_ns or 0)
            is_early = first_ns is not None and span.last_ns + RESOLUTION_NS <= first_ns
            is_late = last_ns is not None and (span.first_ns or 0) > last_ns
            if not is_early and not is_late:
                line = _line(text, span, order_ns)
                self.untimed += line.at_ns is None
                yield line

    def _pieces(self) -> Iterator[tuple[bytes, Span]]:
        """Each line with the span of its first byte; one that is too long, or has no end, in pieces."""
        held: list[bytes] = []
        length, begun = 0, None
        for piece, span in chain.from_iterable(map(self._pieces_of, range(len(self._parts)))):
            begun = begun or span
            held.append(piece)
            length += len(piece)
            if piece.endswith(b"\n") or length >= LINE_MAX:
                yield b"".join(held), begun
                held, length, begun = [], 0, None
        if begun:
            yield b"".join(held), begun

    def _pieces_of(self, number: int) -> Iterator[tuple[bytes, Span]]:
        """What one file holds, cut after every newline and wherever else it happens."""
        part = self._parts[number]
        spans = _spans(part, self._parts[number - 1] if number else None, self._indexes[number])
        span, following, offset = next(spans), next(spans, None), 0
        # a damaged compressed file may hold more than it says
        while offset < part.size and (block := part.read(offset, min(BLOCK, part.size - offset))):
            for piece in _cut(block):
                while following and following.start <= offset:
                    span, following = following, next(spans, None)
                yield piece, span
                offset += len(piece)


def _cut(block: bytes) -> Iterator[bytes]:
    *whole, rest = block.split(b"\n")
    yield from (line + b"\n" for line in whole)
    if rest:
        yield rest


def _line(text: bytes, span: Span, order_ns: int) -> WrittenLine:
    words = text.removesuffix(b"\n").decode(errors="replace")
    if span.run is None:
        return WrittenLine(words, None, False, None, order_ns)
    is_hint = span.last_ns - (span.first_ns or 0) > RESOLUTION_NS
    return WrittenLine(words, span.first_ns, is_hint, span.run, order_ns)


# --- the index of each file -----------------------------------------------------------------------


class _Index(NamedTuple):
    path: str
    is_by_name: bool


class _Owners(NamedTuple):
    """The inodes by which the files of a log are known, and those that compressed ones had when they were plain."""

    inodes: set[int | None]
    former: set[int | None]


def _index_of(log: str, part: Part, owners: _Owners) -> _Index | None:
    """The index that owns a file; else the one of its name, unless that is another's of these files.

    The inode that a compressed file had is free: a plain one that has it in a copy owns no other's index for that.
    """
    inode, named = part.inode, index_path(log, part.number)
    found = {
        path: owner(path)
        for number in (part.number, part.number + 1, part.number - 1)
        if number >= 0 and (path := index_path(log, number))
    }
    is_chance = part.is_plain and inode in owners.former
    for path, whose in found.items():
        if whose is not None and whose == inode and (path == named or not is_chance):
            return _Index(path, is_by_name=False)
    if found[named] is None or found[named] in owners.inodes:
        return None
    return _Index(named, is_by_name=True)


def _spans(part: Part, before: Part | None, index: _Index | None) -> Iterator[Span]:
    """What is known of a file from its first byte on; at first what the times of files tell. Ends are not told."""
    records = _records(index.path) if index else iter(())
    since_ns = before.stat.st_mtime_ns if before else None
    yield Span(0, part.size, since_ns, part.stat.st_mtime_ns, None)
    previous = 0
    for start, first_ns, last_ns, run in records:
        if start < previous or start > part.size or last_ns < first_ns:
            return
        yield Span(start, part.size, first_ns, last_ns, run)
        previous = start


def _records(path: str) -> Iterator[tuple[int, int, int, int]]:
    offset = SIZE
    while (block := read(path, _INDEX_BLOCK, offset)) and len(block) >= SIZE:
        whole = block[: len(block) // SIZE * SIZE]
        yield from RECORD.iter_unpack(whole)
        offset += len(whole)
