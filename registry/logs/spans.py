"""What an index says of its log file: which bytes were written when, and by which run."""

from __future__ import annotations

from typing import NamedTuple

from registry.logs.index import RECORD, SIZE, index_path, owner_of, read

SIZE_MAX = 1 << 24
"""Bytes that are read of an index at most."""


OFFSET_MAX = 1 << 40
"""No log file is as large: a record that begins beyond is none."""


class Span(NamedTuple):
    """The bytes from `start` to `end` of a file: when they were written, and by which run.

    Without an index `run` is None, and so is `first_ns` where no older file says when this one began;
    `lowest` to `highest` are then the runs that may have written it, as far as its neighbours tell.
    """

    start: int
    end: int
    first_ns: int | None
    last_ns: int
    run: int | None
    lowest: int = 0
    highest: int = 0


def spans(path: str, number: int, inode: int, size: int, most: int = SIZE_MAX) -> list[Span]:
    """What is known of the first `size` bytes of a file; beginning with the first that is known.

    Where a damaged record ends it, the last span is of nobody knows whom, and until when.

    Only the last `most` bytes of the index are looked at.

    A rotation may be under way, or have been killed: then its index lies beside a neighbour.
    """
    for candidate in (number, number + 1, number - 1):
        if candidate < 0:
            continue
        data = read(index_path(path, candidate), SIZE_MAX)
        if owner_of(data) == inode:
            whole = len(data) // SIZE * SIZE
            return _joined(data[max(SIZE, whole - most) : whole], size)
    return []


def _joined(data: bytes, size: int) -> list[Span]:
    """The records as far as they make sense, each up to the beginning of the next."""
    sound: list[Span] = []
    for start, first_ns, last_ns, run in RECORD.iter_unpack(data):
        backwards = bool(sound) and start < sound[-1].start
        if backwards or start > OFFSET_MAX or last_ns < first_ns:
            if sound:  # where it ends nobody knows
                sound[-1] = sound[-1]._replace(run=None)
            break
        if start > size:  # written since
            break
        sound.append(Span(start, size, first_ns, last_ns, run))
    ends = [*(span.start for span in sound[1:]), size]
    return [span._replace(end=end) for span, end in zip(sound, ends, strict=False)]
