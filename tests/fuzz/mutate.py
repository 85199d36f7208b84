"""Inputs out of chance: a corpus, words that matter, and damage of bytes and of structure.

Law: an input follows from target, seed and number alone, so that one line repeats it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random

LENGTH_MAX = 1 << 16
"""Bytes of an input at most: what growth costs is measured apart (`Target.growing`)."""

_TOKEN = re.compile(rb"[A-Za-z0-9_.+-]+|\"[^\"\n]*\"")
_NUMBER = re.compile(rb"[0-9]+")
_NUMBERS = [str(sign * (2**power + off)).encode() for sign in (1, -1) for off in (-1, 0, 1)
            for power in (0, 7, 8, 15, 16, 31, 32, 53, 63, 64, 128)]  # fmt: skip
_ODD = [
    b"\0", b"\n", b"\r\n", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc0\x80",
    b"\xe2\x80\xae", b"\xc2\xb2", b"\xd9\xa3", b"\xf0\x9f\x92\xa9", b"\\ud800", b"\\u0000", b"\x1b[2J",
    b"1e400", b"-0", b"NaN", b"0x10", b"1" * 5000, b"{", b"}", b"[", b"]", b'"', b"'", b",", b"=", b":",
    b"%s", b"../", b"*" * 40, b"null", b"true", b"", *_NUMBERS,
]  # fmt: skip


class Recipe:
    """How inputs of one target come about: `seeds` to damage, `words` to put in, and `fresh` ones."""

    def __init__(
        self,
        seeds: Sequence[bytes],
        words: Sequence[bytes] = (),
        fresh: Callable[[Random], bytes] | None = None,
    ) -> None:
        self.seeds = list(seeds)
        self._words = [*words, *_ODD] if words else list(_ODD)
        self._fresh = fresh

    def make(self, chance: Random) -> bytes:
        """One input; the same for the same chance."""
        if self._fresh is not None and chance.random() < 0.4:
            data = bytearray(self._fresh(chance))
            times = chance.choice((0, 0, 1, 2))
        else:
            data = bytearray(chance.choice(self.seeds))
            times = chance.choice((1, 1, 2, 3, 5, 9))
        for _ in range(times):
            self._damage(data, chance)
        return bytes(data[:LENGTH_MAX])

    def _damage(self, data: bytearray, chance: Random) -> None:
        kind = chance.randrange(len(_DAMAGES) + 3)
        if kind < len(_DAMAGES):
            _DAMAGES[kind](data, chance)
        elif kind == len(_DAMAGES):
            _splice(data, chance.choice(self.seeds), chance)
        else:
            _put(data, chance.choice(self._words), chance, instead=kind % 2 == 0)


def _span(data: bytearray, chance: Random, most: int = 64) -> slice:
    start = chance.randint(0, len(data))
    return slice(start, min(len(data), start + chance.randint(1, most)))


def _flip(data: bytearray, chance: Random) -> None:
    if data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _set(data: bytearray, chance: Random) -> None:
    if data:
        data[chance.randrange(len(data))] = chance.randrange(256)


def _insert(data: bytearray, chance: Random) -> None:
    at = chance.randint(0, len(data))
    data[at:at] = chance.randbytes(chance.randint(1, 16))


def _remove(data: bytearray, chance: Random) -> None:
    del data[_span(data, chance)]


def _cut(data: bytearray, chance: Random) -> None:
    del data[chance.randint(0, len(data)) :]


def _double(data: bytearray, chance: Random) -> None:
    span = _span(data, chance)
    data[span.stop : span.stop] = bytes(data[span]) * chance.choice((1, 1, 2, 50))


def _swap(data: bytearray, chance: Random) -> None:
    lines = bytes(data).split(b"\n")
    one, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    data[:] = b"\n".join(lines)


def _number(data: bytearray, chance: Random) -> None:
    found = list(_NUMBER.finditer(data))
    if found:
        data[slice(*chance.choice(found).span())] = chance.choice(_NUMBERS)


def _nest(data: bytearray, chance: Random) -> None:
    """Put a part of it into brackets, sometimes into many."""
    span, depth = _span(data, chance, 200), chance.choice((1, 2, 40, 2000))
    pair = chance.choice((b"[]", b"{}", b'""', b"()", b"''"))
    data[span] = pair[:1] * depth + bytes(data[span]) + pair[1:] * depth


_DAMAGES = (_flip, _set, _insert, _remove, _cut, _double, _swap, _number, _nest)


def _splice(data: bytearray, other: bytes, chance: Random) -> None:
    """Its beginning, and the end of another."""
    data[chance.randint(0, len(data)) :] = other[chance.randint(0, len(other)) :]


def _put(data: bytearray, word: bytes, chance: Random, *, instead: bool) -> None:
    """A word, anywhere or in the place of a token."""
    found = list(_TOKEN.finditer(data)) if instead else []
    at = chance.randint(0, len(data))
    data[slice(*chance.choice(found).span()) if found else slice(at, at)] = word


def shrink(data: bytes, fails: Callable[[bytes], bool], tries: int = 3000) -> bytes:
    """The least input found that still fails, by leaving out parts of it: halves first, single bytes last."""
    size = max(1, len(data) // 2)
    while size and tries > 0:
        at = 0
        while at < len(data) and tries > 0:
            tries -= 1
            shorter = data[:at] + data[at + size :]
            if fails(shorter):
                data = shorter
            else:
                at += size
        size //= 2
    return data
