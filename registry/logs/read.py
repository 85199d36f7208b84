"""Reading a log: its last lines, those of a time or a run, and what comes after them, across rotation.

The file and its rotated predecessors are one stream of bytes; a line is what stands between two
newlines in that stream, wherever a file ends. When and by which run a line was written is what the
index says of its first byte. Reading never disturbs the writer and takes no lock.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from registry.logs.index import RESOLUTION_NS, Span
from registry.logs.parts import BLOCK, Part, close_all, open_all

TAIL_MAX = 1 << 23
"""Bytes that an answer holds at most, however many lines were asked for."""

READ_MAX = 1 << 18
"""Bytes that one `read_new` returns at most."""

LINE_MAX = 1 << 16
"""A line without an end is given out in pieces of this many bytes."""


class Selection(NamedTuple):
    """Which lines: written from `first_ns` to `last_ns` (UTC), by `run`; None does not choose."""

    first_ns: int | None = None
    last_ns: int | None = None
    run: int | None = None

    def takes(self, span: Span) -> bool:
        """Whether bytes of the span may have been written then, and were by that run."""
        begins_late = (
            self.last_ns is not None and span.first_ns is not None and span.first_ns > self.last_ns
        )
        ends_early = self.first_ns is not None and span.last_ns + RESOLUTION_NS <= self.first_ns
        return not begins_late and not ends_early and self.run in (None, span.run)


class Line(NamedTuple):
    """A line of a log; `at_ns` (UTC) and `run` are None where no index says when, and who wrote it."""

    text: str
    at_ns: int | None
    run: int | None


class _Place(NamedTuple):
    """A position in the stream: which of the files, oldest first, and where in it."""

    part: int
    offset: int


class _Log:
    """The files of a log as one stream, oldest first, as they stood when opened."""

    def __init__(self, newest_first: list[Part]) -> None:
        self.parts = newest_first[::-1]
        self._spans: dict[int, list[Span]] = {}

    def spans(self, number: int) -> list[Span]:
        if number not in self._spans:
            before = self.parts[number - 1] if number else None
            self._spans[number] = self.parts[number].spans(before)
        return self._spans[number]

    def lines(self, start: _Place) -> Iterator[tuple[bytes, Span, bool]]:
        """The lines that begin at `start` or later, each with the span it began in, and whether it ended."""
        place = self._before(start)
        held, began = b"", None
        is_first = place != start
        while place.part < len(self.parts):
            block = self._block(place)
            if not block:
                place = _Place(place.part + 1, 0)
                continue
            at = place.offset
            for piece in block.splitlines_keepends():
                began = began or self._span_at(_Place(place.part, at))
                at += len(piece)
                held += piece
                if piece.endswith(b"\n"):
                    if not is_first:
                        yield held[:-1], began, True
                    held, began, is_first = b"", None, False
            place = _Place(place.part, at)
        if held and began is not None and not is_first:
            yield held, began, False
