"""What a keeper hears from who connects, and a daemon from its keeper: any bytes, with any descriptors."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Any

from registry.host.activation import Sockets
from registry.host.fd_store import FdStore
from registry.keeper.client import Found, Keeper
from registry.keeper.loop import Loop
from registry.keeper.protocol import LINE_MAX, Channel, Key
from registry.logs.files import LogFile
from tests.fuzz.chunks import chance_of, pieces
from tests.fuzz.harness import Judge, Target, failed
from tests.fuzz.mutate import Recipe

FDS_AT_ONCE = 8
"""Descriptors beside one piece at most."""
LOG = {"path": "/log", "size_max": 4096, "files_max": 3}
SAID: list[dict[str, Any]] = [
    {"type": "hello", "version": 2, "fds": 0},
    {"type": "hello", "version": 1, "fds": 0},
    {
        "type": "keep",
        "service": "web",
        "run": 1,
        "output": True,
        "pidfd": True,
        "log": LOG,
        "fds": 2,
    },
    {
        "type": "keep",
        "service": "db",
        "run": 1,
        "output": True,
        "pidfd": False,
        "log": None,
        "fds": 1,
    },
    {"type": "release", "service": "web", "run": 1, "fds": 0},
    {"type": "heard", "service": "web", "run": 1, "fds": 0},
    {"type": "watch", "service": "web", "fds": 0},
    {"type": "unwatch", "service": "web", "fds": 0},
    {"type": "hold", "service": "web", "slot": "notify", "meta": "", "fds": 1},
    {"type": "hold", "service": "web", "slot": "listen:http", "meta": "127.0.0.1:80", "fds": 1},
    {"type": "drop", "service": "web", "slot": "notify", "fds": 0},
    {"type": "noted", "at_mono_ns": 5, "fds": 0},
    {"type": "leave", "keep": True, "fds": 0},
]
TOLD: list[dict[str, Any]] = [
    {"type": "hello", "version": 2, "pid": 1, "fds": 0},
    {
        "type": "kept",
        "service": "web",
        "run": 1,
        "output": True,
        "pidfd": True,
        "log": LOG,
        "fds": 2,
    },
    {"type": "held", "service": "web", "slot": "listen:http", "meta": "unix:/x", "fds": 1},
    {"type": "held", "service": "web", "slot": "stored:3", "meta": "name", "fds": 1},
    {
        "type": "note",
        "service": "web",
        "pid": 9,
        "uid": 0,
        "session": 9,
        "at_mono_ns": 7,
        "text": "READY=1",
        "fds": 0,
    },
    {"type": "kept_all", "fds": 0},
    {"type": "grew", "service": "web", "fds": 0},
    {"type": "output_ended", "service": "web", "run": 1, "dropped": 0, "fds": 0},
    {"type": "replaced", "fds": 0},
]


def _recipe(messages: list[dict[str, Any]]) -> Recipe:
    lines = [json.dumps(message).encode() + b"\n" for message in messages]
    words = [
        json.dumps(word).encode() for message in messages for word in (*message, message["type"])
    ]

    def fresh(chance: Random) -> bytes:
        chosen = [dict(chance.choice(messages)) for _ in range(chance.randint(1, 6))]
        for message in chosen:
            if chance.random() < 0.4:
                message[chance.choice(list(message))] = chance.choice(
                    (
                        None,
                        True,
                        -1,
                        0,
                        2**63,
                        2**200,
                        1.5,
                        "",
                        "x" * 70,
                        "\ud800",
                        "\u0100",
                        [],
                        {},
                        LOG,
                    )
                )
        return b"".join(json.dumps(message).encode() + b"\n" for message in chosen)

    return Recipe([*lines, b"".join(lines)], words, fresh)


class _Descriptors:
    """Descriptors to send along: ends of pipes with something in them, with nothing, at their end; files."""

    def __init__(self, chance: Random, stack: ExitStack) -> None:
        self._chance = chance
        self._stack = stack

    def some(self) -> list[int]:
        return [self._one() for _ in range(self._chance.choice((0, 0, 1, 2, 3, FDS_AT_ONCE)))]

    def _one(self) -> int:
        if self._chance.random() < 0.3:
            one = os.open(os.devnull, os.O_RDWR)
        else:
            one, writer = os.pipe()
            os.write(writer, b"a line\n" * self._chance.randrange(3))
            os.close(writer)
        self._stack.callback(os.close, one)
        return one


def _send(ours: socket.socket, data: bytes, chance: Random, stack: ExitStack) -> Iterator[None]:
    """Piece after piece, with or without descriptors; in between it is the other side's turn."""
    given = _Descriptors(chance, stack)
    for piece in pieces(data, chance, 1 << 15):
        fds = given.some()
        sent = socket.send_fds(ours, [piece], fds) if fds else ours.send(piece)
        assert sent == len(piece)
        yield


# --- the keeper -----------------------------------------------------------------------------------


class _Boxed(Loop):
    """A keeper whose logs all lie in one folder, whatever their names, and are not compressed."""

    folder = ""

    def _log_for(self, key: Key, spec: object) -> LogFile | None:
        match spec:
            case {"path": str(path), **rest} if path.startswith("/"):
                name = hashlib.blake2b(path.encode(errors="replace"), digest_size=4).hexdigest()
                spec = {**rest, "path": f"{self.folder}/{name}"}
        return super()._log_for(key, spec)

    def _compress_next(self) -> None:
        self._to_compress.clear()


@contextmanager
def judging() -> Iterator[Judge]:
    """A keeper in this process, and a client that sends."""
    with tempfile.TemporaryDirectory(prefix="cr-") as folder:
        _Boxed.folder = folder
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(f"{folder}/k")
        listener.listen(8)

        def judge(data: bytes) -> None:
            said: list[str] = []
            with ExitStack() as stack:
                _keep(listener.dup(), data, said, stack)
            for text in said:
                assert len(text) <= 2 * LINE_MAX, "a complaint without a bound"
            for name in os.listdir(folder):
                if name != "k":
                    os.unlink(f"{folder}/{name}")

        try:
            yield judge
        finally:
            listener.close()


def _keep(listener: socket.socket, data: bytes, said: list[str], stack: ExitStack) -> None:
    loop, chance = _Boxed(listener, said.append), chance_of(data)
    stack.callback(loop.close)
    stack.callback(_let_go, loop)
    listener.setblocking(False)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    stack.enter_context(ours)
    loop._serve(Channel(theirs, said.append))
    for _ in _send(ours, data, chance, stack):
        loop._turn(0.0)
        if loop._client is None:
            return
    for _ in range(3):
        loop._turn(0.0)
    ours.close()
    loop._turn(0.0)
    assert loop.is_keeping in (True, False)


def _let_go(loop: Loop) -> None:
    """What it keeps is for the end of its process to close: here that is now."""
    loop._lose_client()
    for slot in list(loop._slots._slots):
        loop._slots.drop(slot)
    for notes in list(loop._slots._notes._notes):
        loop._slots._notes.forget(notes)
    for key, entry in loop._entries.items():
        loop._close_output(key, entry)
        if entry.pidfd is not None:
            os.close(entry.pidfd)


# --- the daemon's side ----------------------------------------------------------------------------


@contextmanager
def judging_told() -> Iterator[Judge]:
    """A daemon that has met its keeper, which sends; what it hands on is taken up as at a beginning."""
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(
        lambda _loop, what: failed(what.get("exception") or RuntimeError(what))
    )

    def judge(data: bytes) -> None:
        with ExitStack() as stack:
            loop.run_until_complete(_meet(data, stack))

    try:
        yield judge
    finally:
        loop.close()


class _Met(Keeper):
    """One that starts no process: a keeper that is lost stays so, and no process is looked at."""

    lost = False

    def _lose(self, reason: str) -> None:
        self.lost = True
        self._disconnect()
        self._set_first(Found())

    def _meet(self, pid: int) -> None:
        self._pid = pid

    def _forget_process(self) -> None:
        self._pid = None


async def _meet(data: bytes, stack: ExitStack) -> None:
    chance, said = chance_of(data), list[str]()
    client = _Met(
        Path("/nowhere"), on_grew=said.append, on_output_ended=lambda _ended: None, log=said.append
    )
    client._loop = asyncio.get_running_loop()
    client._first = client._loop.create_future()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    stack.enter_context(ours)
    stack.callback(client.close)
    client._channel = Channel(theirs, said.append)
    for _ in _send(ours, data, chance, stack):
        client._receive()
        if client._channel is None:
            break
    await asyncio.sleep(0)
    if client._first.done():
        _take_up(client._first.result())


def _take_up(found: Found) -> None:
    """What the daemon makes of slots that it is given back."""
    sockets, store = Sockets(_hold, _drop), FdStore(_hold, _drop)
    try:
        for each in found.held:
            if each.slot.startswith("listen:"):
                sockets.adopt(
                    each.service, each.slot.removeprefix("listen:"), each.meta, os.dup(each.fd)
                )
            else:
                store.adopt(each.service, each.slot, each.meta, os.dup(each.fd))
    finally:
        sockets.close()
        store.close()
        found.close()


def _hold(_service: str, _slot: str, _fd: int, /, *, meta: str) -> None:
    raise AssertionError(f"what was held is held anew: {meta}")


def _drop(_service: str, _slot: str) -> None:
    raise AssertionError("what was held is dropped")


TARGET = Target(
    "keeper",
    "whatever a client sends, with whatever descriptors, the keeper goes on, complains in bounded sentences and leaks"
    " none",
    lambda: _recipe(SAID),
    judging,
    {"messages": lambda size: b'{"type":"watch","service":"a","fds":0}\n' * (size // 39)},
)
TOLD_TARGET = Target(
    "told",
    "whatever its keeper sends, the daemon takes up what it understands and closes every other descriptor; nothing"
    " is raised",
    lambda: _recipe(TOLD),
    judging_told,
)
