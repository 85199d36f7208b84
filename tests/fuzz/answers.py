"""What probed services answer to a GET: any bytes, in any pieces, until the probe has made up its mind."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from random import Random
from typing import Any, cast

from registry.host.http_probe import _READ_BYTES, BODY_BYTES_MAX, HEAD_BYTES_MAX, _fault
from tests.fuzz.chunks import chance_of, pieces
from tests.fuzz.harness import Judge, Target
from tests.fuzz.mutate import Recipe

CLAUSE_MAX = 200
"""Characters of what is said of an answer."""

SEEDS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
    b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nTrailer: x\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 503 No\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n\x81\x05hello",
    b"HTTP/1.1 301 Moved\r\nLocation: /\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nX: " + b"a" * 5000 + b"\r\n\r\n",
    b"HTTP/2.0 999 \x1b[2J\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.2\r\n",
]
WORDS = [
    b"HTTP/1.1 ", b"HTTP/1.0 ", b"HTTP/1.1 100 \r\n\r\n", b"200 OK\r\n", b"Content-Length: ",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n", b"Connection: upgrade\r\n",
    b"Upgrade: h2c\r\n", b"\r\n\r\n", b"\r\n", b"\n\n", b"0\r\n\r\n",
    b"ffffffffffffffff\r\n", b"X:" + b"y" * 3000 + b"\r\n", b"gzip, chunked", b"999", b"000", b"-1", b"\r\n folded\r\n",
]  # fmt: skip


class _Stream:
    """A connection that brings pieces and then its end; counts what was taken of it."""

    def __init__(self, data: bytes, chance: Random) -> None:
        self._pieces = pieces(data, chance)
        self._rest = b""
        self.taken = 0

    async def read(self, most: int) -> bytes:
        data = self._rest or next(self._pieces, b"")
        self._rest = data[most:]
        self.taken += len(data[:most])
        return data[:most]


@contextmanager
def judging() -> Iterator[Judge]:
    """The reading half of a check, without a loop: nothing of it waits but for bytes."""

    def judge(data: bytes) -> None:
        chance = chance_of(data)
        verdict = _verdict(data, chance)
        if len(data) < BODY_BYTES_MAX:
            assert verdict == _verdict(data, Random(0)), "what it finds depends on the pieces"

    yield judge


def _verdict(data: bytes, chance: Random) -> str | None:
    stream = _Stream(data, chance)
    verdict = _at_once(_fault(partial(stream.read, _READ_BYTES)))
    assert stream.taken <= HEAD_BYTES_MAX + BODY_BYTES_MAX + 2 * 4096, "it reads without an end"
    if verdict is None:
        assert b"HTTP/" in data, "no HTTP, and all is well"
    else:
        assert verdict.isascii()
        assert verdict.isprintable()
        assert len(verdict) < CLAUSE_MAX
    return verdict


def _at_once(work: Coroutine[Any, Any, str | None]) -> str | None:
    try:
        work.send(None)
    except StopIteration as done:
        return cast("str | None", done.value)
    raise AssertionError("it waits for something else than bytes")


TARGET = Target(
    "answers",
    "an answer is right or wrong in one printable clause, whatever its pieces; no more of it is read than its bounds"
    " say, and nothing raises",
    lambda: Recipe(SEEDS, WORDS),
    judging,
    {
        "fields": lambda size: b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * (size // 6),
        "interim answers": lambda size: b"HTTP/1.1 100 Continue\r\n\r\n" * (size // 25),
        "chunks": lambda size: (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * (size // 6)
        ),
    },
)
