"""Reading a log: its last lines, those of a time or a run, and what comes after them, across rotation.

The file and its rotated predecessors are one stream of bytes; a line is what stands between two
newlines in that stream, wherever a file ends. When and by which run a line was written is what the
index says of its first byte. Reading never disturbs the writer and takes no lock.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from registry.logs.index import RESOLUTION_NS
from registry.logs.parts import BLOCK, Part, close_all, open_all
from registry.logs.spans import SIZE_MAX, Span

TAIL_MAX = 1 << 23
"""Bytes that an answer holds at most, however many lines were asked for."""

READ_MAX = 1 << 18
"""Bytes that one `read_new` returns at most."""

LINE_MAX = 1 << 16
"""A line without an end is given out in pieces of this many bytes."""

RUN_MAX = (1 << 64) - 1
"""The highest number of a run that an index can hold."""

LAST_LINES = 20
LAST_BYTES = 4096
"""What is kept of a run that ended ill, in the journal."""

LAST_FILES = 2
LAST_INDEX = 1 << 16
"""So much is looked at for it, of the newest files and of each one's index."""


class Selection(NamedTuple):
    """Which lines: written from `first_ns` to `last_ns` (UTC), by `run`; None does not choose.

    Where no index tells, those are taken that may have been written then, or by that run.
    """

    first_ns: int | None = None
    last_ns: int | None = None
    run: int | None = None

    def takes(self, span: Span) -> bool:
        """Whether bytes of the span may have been written then, and by that run."""
        begins_late = (
            self.last_ns is not None and span.first_ns is not None and span.first_ns > self.last_ns
        )
        ends_early = self.first_ns is not None and span.last_ns + RESOLUTION_NS <= self.first_ns
        return not begins_late and not ends_early and self._takes_run(span)

    def _takes_run(self, span: Span) -> bool:
        if self.run is None or span.run is not None:
            return self.run in (None, span.run)
        return span.lowest <= self.run <= span.highest


class Line(NamedTuple):
    """A line of a log; `at_ns` (UTC) and `run` are None where no index says when, and who wrote it."""

    text: str
    at_ns: int | None
    run: int | None


class Follower:
    """What is added to the log at `path`, from where it is told, by default from the first line.

    `behind` is True when the last `read_new` stopped at its bound and more is there already.
    """

    def __init__(
        self, path: Path, *, part: Part | None = None, offset: int = 0, held: bytes = b""
    ) -> None:
        self.behind = False
        self._path = path
        self._part = part
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
        if self._part is not None:
            self._part.close()
            self._part = None

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
        if self._part is None:
            return b""
        block = self._part.read(self._offset, most)
        self._offset += len(block)
        return block

    def _read_next(self, most: int) -> bytes:
        """At the end of this file: go on with the one that came after it, if one did."""
        following = self._open_following()
        if following is None:
            self._notice_truncation()
            return b""
        # What was written between the last read and the rename is still in the old file.
        block = self._read_here(most)
        if block:
            following.close()
            return block
        self.close()
        self._part, self._offset = following, 0
        return self._read_here(most)

    def _open_following(self) -> Part | None:
        parts = open_all(self._path)
        wanted = self._position_after_ours(parts)
        following = parts.pop(wanted) if wanted >= 0 else None
        close_all(parts)
        return following

    def _position_after_ours(self, parts: list[Part]) -> int:
        """Which of `parts` (newest first) holds what follows our file; -1 when ours is the newest."""
        if self._part is None:
            return len(parts) - 1
        for position, part in enumerate(parts):
            if part.is_same(self._part):
                return position - 1
        # Ours was removed: what was written to since then is new.
        ours_ns = self._part.present_stat().st_mtime_ns
        return sum(part.stat.st_mtime_ns >= ours_ns for part in parts) - 1

    def _notice_truncation(self) -> None:
        part = self._part
        if part is not None and part.is_plain and part.present_stat().st_size < self._offset:
            self._offset = 0


def tail(path: Path, lines: int) -> list[str]:
    """The last `lines` lines, the unfinished one included; [] where there is no log."""
    parts = open_all(path)
    try:
        whole, partial = _split(_last_bytes(parts, lines))
    finally:
        close_all(parts)
    return _last([*whole, partial] if partial else whole, lines)


def tail_and_follow(path: Path, lines: int) -> tuple[list[str], Follower]:
    """The last `lines` finished lines, and a Follower that goes on right after them."""
    parts = open_all(path)
    try:
        whole, partial = _split(_last_bytes(parts, lines))
        follower = _follower(path, parts, partial)
    finally:
        close_all(parts)
    return _last(whole, lines), follower


def select(path: Path, lines: int, selection: Selection) -> list[Line]:
    """The last `lines` of the lines that were chosen, the unfinished one included; TAIL_MAX bytes at most."""
    parts = open_all(path)
    try:
        return _select(parts, lines, selection, with_unfinished=True)
    finally:
        close_all(parts)


def last_words(path: Path, run: int) -> list[str]:
    """The last lines of a run: LAST_LINES, and LAST_BYTES together, at most. [] where no index knows."""
    parts = open_all(path)
    try:
        newest, run_only = parts[:LAST_FILES], Selection(run=run)
        found = _select(newest, LAST_LINES, run_only, with_unfinished=True, index_most=LAST_INDEX)
    finally:
        close_all(parts)
    kept: list[str] = []
    room = LAST_BYTES
    for line in reversed(found):
        if room <= 0:
            break
        text = line.text.encode()[-room:].decode(errors="ignore")
        kept.append(text)
        room -= len(text.encode()) + 1
    return kept[::-1]


def select_and_follow(path: Path, lines: int, selection: Selection) -> tuple[list[Line], Follower]:
    """The last `lines` of the finished lines that were chosen, and a Follower that goes on after all."""
    parts = open_all(path)
    try:
        chosen = _select(parts, lines, selection, with_unfinished=False)
        follower = _follower(path, parts, _split(_last_bytes(parts, 0))[1])
    finally:
        close_all(parts)
    return chosen, follower


def _follower(path: Path, parts: list[Part], held: bytes) -> Follower:
    """A follower from the end of the newest part, which is the follower's from now on."""
    if not parts:
        return Follower(path)
    newest = parts.pop(0)
    return Follower(path, part=newest, offset=newest.size, held=held)


def _last_bytes(parts: list[Part], lines: int) -> bytes:
    """The end of the stream, far enough back for `lines` lines."""
    blocks: list[bytes] = []
    newlines = total = 0
    for block in (block for part in parts for block in part.backwards(TAIL_MAX)):
        blocks.append(block)
        newlines += block.count(b"\n")
        total += len(block)
        # One newline more than lines: what stands before the first is a line cut in half.
        if newlines > lines or total >= TAIL_MAX:
            break
    return b"".join(reversed(blocks))


def _split(data: bytes) -> tuple[list[bytes], bytes]:
    """The finished lines of `data`, and the rest."""
    *whole, rest = data.split(b"\n")
    return whole, rest


def _last(whole: list[bytes], lines: int) -> list[str]:
    return [line.decode(errors="replace") for line in whole[-lines:]] if lines > 0 else []


# --- by time and by run ---------------------------------------------------------------------------


def _select(
    parts: list[Part],
    lines: int,
    selection: Selection,
    *,
    with_unfinished: bool,
    index_most: int = SIZE_MAX,
) -> list[Line]:
    if lines <= 0:
        return []
    stream = _Stream(parts, index_most)
    if selection.run is not None and index_most == SIZE_MAX:
        stream.guess_runs()
    if selection == Selection():
        begin, end = stream.place_before_end(len(_last_bytes(parts, lines))), stream.end
    else:
        begin, end = stream.bounds(selection)
    chosen: deque[Line] = deque()
    total = 0
    for text, span, is_whole in stream.lines(begin, end):
        if not selection.takes(span) or not (is_whole or with_unfinished):
            continue
        chosen.append(line := _line(text, span))
        total += len(line.text)
        while total > TAIL_MAX or len(chosen) > lines:
            total -= len(chosen.popleft().text)
    return list(chosen)


def _line(text: bytes, span: Span) -> Line:
    at_ns = span.first_ns if span.run is not None else None
    return Line(text.decode(errors="replace"), at_ns, span.run)


class _Place(NamedTuple):
    """A position in the stream: which of the files, oldest first, and where in it."""

    part: int
    offset: int


class _Stream:
    """The files of a log as one stream, oldest first, as they were when opened."""

    def __init__(self, newest_first: list[Part], index_most: int) -> None:
        self._parts = newest_first[::-1]
        self._index_most = index_most
        self._spans: dict[int, list[Span]] = {}
        self.end = _Place(len(self._parts), 0)

    def place_before_end(self, count: int) -> _Place:
        """Where the last `count` bytes begin."""
        for number in reversed(range(len(self._parts))):
            size = self._parts[number].size
            if count <= size:
                return _Place(number, size - count)
            count -= size
        return _Place(0, 0)

    def bounds(self, selection: Selection) -> tuple[_Place, _Place]:
        """From where to where there may be chosen bytes."""
        taken = [
            (_Place(number, span.start), _Place(number, span.end))
            for number in range(len(self._parts))
            for span in self._spans_of(number)
            if selection.takes(span)
        ]
        return (taken[0][0], taken[-1][1]) if taken else (self.end, self.end)

    def guess_runs(self) -> None:
        """Say of bytes that no index knows between which runs they stand: those may have written them."""
        lowest, highest = 1, RUN_MAX
        for number in range(len(self._parts)):
            spans = self._spans_of(number)
            for place, span in enumerate(spans):
                lowest = span.run or lowest
                spans[place] = span._replace(lowest=lowest)
        for number in reversed(range(len(self._parts))):
            spans = self._spans_of(number)
            for place, span in reversed(list(enumerate(spans))):
                highest = span.run or highest
                # runs count from 1 again where the journal was taken away
                bounds = (span.lowest, highest) if span.lowest <= highest else (1, RUN_MAX)
                spans[place] = span._replace(lowest=bounds[0], highest=bounds[1])

    def lines(self, begin: _Place, end: _Place) -> Iterator[tuple[bytes, Span, bool]]:
        """The lines that begin in between: each with the span of its first byte, and whether it has ended."""
        held: list[bytes] = []
        span: Span | None = None
        is_cut = (first := self._step_back(begin)) != begin
        for piece, place in self._pieces(first):
            if span is None:
                if place >= end:
                    return
                span = self._span_at(place)
            held.append(piece)
            is_whole = piece.endswith(b"\n")
            if not is_whole and sum(map(len, held)) < LINE_MAX:
                continue
            if not is_cut:
                yield b"".join(held).removesuffix(b"\n"), span, True
            held, span, is_cut = [], None, is_cut and not is_whole
        if span is not None and not is_cut:
            yield b"".join(held), span, False

    def _step_back(self, place: _Place) -> _Place:
        """A byte before, which tells whether a line begins at `place`; the same at the beginning."""
        if place.offset:
            return place._replace(offset=place.offset - 1)
        for number in reversed(range(place.part)):
            if size := self._parts[number].size:
                return _Place(number, size - 1)
        return place

    def _pieces(self, place: _Place) -> Iterator[tuple[bytes, _Place]]:
        """What there is from `place` on, cut after every newline and wherever else it happens."""
        for number in range(place.part, len(self._parts)):
            part, offset = self._parts[number], place.offset if number == place.part else 0
            # a damaged compressed file may hold more than it says
            while offset < part.size and (
                block := part.read(offset, min(BLOCK, part.size - offset))
            ):
                for piece in _pieces_of(block):
                    yield piece, _Place(number, offset)
                    offset += len(piece)

    def _spans_of(self, number: int) -> list[Span]:
        if number not in self._spans:
            before = self._parts[number - 1] if number else None
            self._spans[number] = self._parts[number].spans(before, self._index_most)
        return self._spans[number]

    def _span_at(self, place: _Place) -> Span:
        spans = self._spans_of(place.part)
        return spans[bisect_right(spans, place.offset, key=_start) - 1]


def _start(span: Span) -> int:
    return span.start


def _pieces_of(block: bytes) -> Iterator[bytes]:
    *whole, rest = block.split(b"\n")
    for line in whole:
        yield line + b"\n"
    if rest:
        yield rest
