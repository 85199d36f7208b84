"""Data in pieces, as a stream may bring it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from random import Random


def chance_of(data: bytes) -> Random:
    """The chance that belongs to an input: what is judged depends on nothing else."""
    return Random(zlib.crc32(data))


def pieces(data: bytes, chance: Random, most: int = 4096) -> Iterator[bytes]:
    """All of `data`, now byte by byte, now in halves, now at once."""
    step = chance.choice((1, 3, 17, 300, most))
    if len(data) > 64 * step:
        step = most
    at = 0
    while at < len(data):
        size = chance.randint(1, step)
        yield data[at : at + size]
        at += size
