"""Damage to files as bytes of a script: what bad disks, half writes and other programs do to them.

A script is a row of steps of STEP bytes: what is done, to which file, where, with which byte, how much.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from random import Random

from tests.fuzz.mutate import Recipe

_STEP = struct.Struct("<BBIBB")
STEP = _STEP.size
STEPS_MAX = 12
PAGE = 4096
KINDS = 9


def recipe(files: int, seeds: int = 40) -> Recipe:
    """Scripts of one to a few steps for so many files."""

    def fresh(chance: Random) -> bytes:
        steps = chance.choice((1, 1, 1, 2, 3, 6))
        return b"".join(
            _STEP.pack(
                chance.randrange(KINDS),
                chance.randrange(files),
                chance.choice((chance.randrange(200), chance.getrandbits(32))),
                chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256))),
                chance.randrange(256),
            )
            for _ in range(steps)
        )

    return Recipe([fresh(Random(number)) for number in range(seeds)], (), fresh)


def damage(script: bytes, files: list[bytes]) -> list[bytes]:
    """The files after the script; a step that is cut short is none."""
    damaged = [bytearray(each) for each in files]
    for begin in range(0, min(len(script), STEPS_MAX * STEP) - STEP + 1, STEP):
        kind, which, where, value, much = _STEP.unpack_from(script, begin)
        data = damaged[which % len(damaged)]
        other = damaged[(which + 1 + much) % len(damaged)]
        _step(kind % KINDS, data, other, where % (len(data) + 1), value, much)
    return [bytes(each) for each in damaged]


def _step(kind: int, data: bytearray, other: bytearray, at: int, value: int, much: int) -> None:
    page = at // PAGE * PAGE
    match kind:
        case 0 if at < len(data):
            data[at] ^= 1 << value % 8
        case 1 if at < len(data):
            data[at] = value
        case 2:
            data[at : at + much] = bytes([value]) * min(much, len(data) - at)
        case 3:
            del data[at:]
        case 4:
            data += bytes([value]) * much * 16
        case 5:  # a page that was never written, or is another's
            data[page : page + PAGE] = bytes([value]) * min(PAGE, len(data) - page)
        case 6:
            source = much * PAGE % (len(other) + 1)
            data[page : page + PAGE] = other[source : source + PAGE]
        case 7:
            del data[at : at + much]
        case 8:
            data[at:at] = Random(value << 8 | much).randbytes(much)


def put(path: Path, data: bytes) -> None:
    """Write a file in its place: it stays the same inode."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def step(kind: int, which: int, where: int, value: int, much: int) -> bytes:
    """One step: see `_step` for the kinds."""
    return _STEP.pack(kind, which, where, value, much)
