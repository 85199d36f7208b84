"""A small table of actions, a dispatcher and a server for it, and clients that speak in raw lines."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from registry.api.access import Access, Peer
from registry.api.actions import Action, ApiError, ErrorCode, NoParams, Params, Role
from registry.api.protocol import Answer, Dispatcher, Handler, Later, Outcome, Pages
from registry.api.server import Limits, Server


class SubtractParams(Params, frozen=True):
    minuend: int
    subtrahend: int


class FiveParams(Params, frozen=True):
    a: int = 0
    b: int = 0
    c: int = 0
    d: int = 0
    e: int = 0


class NameParams(Params, frozen=True):
    name: str


class MixedParams(Params, frozen=True):
    service: str | list[str]
    wait: bool = False
    timeout: float = 60.0
    lines: int = 50


class BeatParams(Params, frozen=True):
    service: str


class SizeParams(Params, frozen=True):
    size: int


PARAMS: dict[str, type[Params]] = {
    # Those of section 7 of the JSON-RPC 2.0 specification.
    "subtract": SubtractParams,
    "sum": FiveParams,
    "update": FiveParams,
    "notify_hello": FiveParams,
    "notify_sum": FiveParams,
    "get_data": NoParams,
    # Ours.
    "restart": MixedParams,
    "hold": NameParams,
    "ponder": NameParams,
    "release": NameParams,
    "refuse": NoParams,
    "break": NoParams,
    "break_later": NoParams,
    "unsayable": NoParams,
    "raw": SizeParams,
    "follow": NameParams,
    "follow_later": NameParams,
    "follow_nothing": NoParams,
    "follow_and_refuse": SizeParams,
    "flood": SizeParams,
    "who": NoParams,
    "heartbeat": BeatParams,
}

ROLES = {"heartbeat": Role.SERVICE, "ponder": Role.OBSERVE}

ACTIONS = {
    name: Action(name, params, ROLES.get(name, Role.ADMIN), "", "")
    for name, params in PARAMS.items()
}


class Backstage:
    """What the handlers did, and the gates that the test opens for them."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.finished: list[str] = []
        self.closed: list[str] = []
        self.pulled = 0
        self._gates: dict[str, asyncio.Event] = {}
        self._queues: dict[str, asyncio.Queue[Any]] = {}
        self._changed = asyncio.Event()

    def gate(self, name: str) -> asyncio.Event:
        return self._gates.setdefault(name, asyncio.Event())

    def queue(self, name: str) -> asyncio.Queue[Any]:
        """Pages for `follow` streams of that name; None ends one."""
        return self._queues.setdefault(name, asyncio.Queue())

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait for something that a handler does."""
        async with asyncio.timeout(8):
            while not true():
                self._changed.clear()
                await self._changed.wait()

    def note(self, where: list[str], what: str) -> None:
        where.append(what)
        self._changed.set()

    def handlers(self) -> dict[str, Handler]:
        return {name: partial(self._do, name) for name in ACTIONS}

    def _do(self, name: str, params: Any, peer: Peer) -> Any:
        self.calls.append((name, params))
        self._changed.set()
        do = getattr(self, "do_" + name, None)
        return do(params, peer) if do is not None else None

    def do_subtract(self, params: SubtractParams, peer: Peer) -> int:
        return params.minuend - params.subtrahend

    def do_sum(self, params: FiveParams, peer: Peer) -> int:
        return params.a + params.b + params.c + params.d + params.e

    def do_get_data(self, params: Any, peer: Peer) -> list[Any]:
        return ["hello", 5]

    async def do_hold(self, params: NameParams, peer: Peer) -> str:
        await self.gate(params.name).wait()
        self.note(self.finished, params.name)
        return params.name

    async def do_ponder(self, params: NameParams, peer: Peer) -> str:
        """A question: nothing is lost where it is given up."""
        try:
            await self.gate(params.name).wait()
        except asyncio.CancelledError:
            self.note(self.closed, params.name)
            raise
        return params.name

    def do_release(self, params: NameParams, peer: Peer) -> str:
        self.gate(params.name).set()
        return "released"

    def do_refuse(self, params: Any, peer: Peer) -> None:
        raise ApiError(ErrorCode.UNKNOWN_SERVICE, "no service is called x", {"known": ["y"]})

    def do_break(self, params: Any, peer: Peer) -> None:
        raise RuntimeError("secret")

    async def do_break_later(self, params: Any, peer: Peer) -> None:
        raise RuntimeError("secret")

    def do_unsayable(self, params: Any, peer: Peer) -> Any:
        return {"bad": "\ud800"}

    def do_raw(self, params: SizeParams, peer: Peer) -> msgspec.Raw:
        return msgspec.Raw(b'"' + b"x" * (params.size - 2) + b'"')

    async def do_follow(self, params: NameParams, peer: Peer) -> AsyncIterator[Any]:
        try:
            while (page := await self.queue(params.name).get()) is not None:
                yield page
        finally:
            self.note(self.closed, params.name)

    async def do_follow_later(self, params: NameParams, peer: Peer) -> AsyncIterator[Any]:
        await asyncio.sleep(0)
        return self.do_follow(params, peer)

    async def do_follow_nothing(self, params: Any, peer: Peer) -> AsyncIterator[Any]:
        return
        yield

    async def do_follow_and_refuse(self, params: SizeParams, peer: Peer) -> AsyncIterator[Any]:
        for number in range(params.size):
            yield [number]
        raise ApiError(ErrorCode.NO_LOGS, "no more")

    async def do_flood(self, params: SizeParams, peer: Peer) -> AsyncIterator[Any]:
        page = ["x" * params.size]
        try:
            while True:
                self.pulled += 1
                yield page
        finally:
            self.note(self.closed, "flood")

    def do_who(self, params: Any, peer: Peer) -> dict[str, Any]:
        return {"uid": peer.uid, "gid": peer.gid, "pid": peer.pid, "program": peer.program}


@pytest.fixture
def backstage() -> Backstage:
    return Backstage()


@pytest.fixture
def me() -> Peer:
    return Peer(uid=os.getuid(), gid=os.getgid(), pid=os.getpid(), program="test")


@pytest.fixture
def dispatcher(backstage: Backstage) -> Dispatcher:
    return Dispatcher(ACTIONS, backstage.handlers(), Access(os.getuid(), lambda pid: None))


@pytest.fixture
def ask(dispatcher: Dispatcher, me: Peer) -> Callable[[bytes], Awaitable[list[Any]]]:
    """Hand a line to the dispatcher alone; gives every line that it answers, decoded."""

    async def lines_of(outcome: Outcome) -> list[bytes]:
        if isinstance(outcome, Answer):
            return [outcome.line]
        if isinstance(outcome, Later):
            outcome = await outcome.outcome  # type: ignore[assignment]
        if isinstance(outcome, Pages):
            try:
                return [line async for line in outcome.lines]
            finally:
                await outcome.close()
        return [] if outcome is None else [outcome]  # type: ignore[list-item]

    async def run(line: bytes) -> list[Any]:
        lines = await lines_of(dispatcher.answer(line, me))
        for answer in lines:
            assert answer.endswith(b"\n")
            assert answer.count(b"\n") == 1
        return [json.loads(answer) for answer in lines]

    return run


class Line:
    """A client that sends bytes and reads lines, so that a test sees exactly what goes over the socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, *messages: Any) -> None:
        for message in messages:
            data = message if isinstance(message, bytes) else json.dumps(message).encode()
            self.writer.write(data + b"\n")

    async def receive(self) -> Any:
        """The next answer; None at the end."""
        async with asyncio.timeout(8):
            try:
                line = await self.reader.readline()
            except ConnectionResetError:
                return None
        return json.loads(line) if line else None

    async def ask(self, message: Any) -> Any:
        self.send(message)
        return await self.receive()

    def half_close(self) -> None:
        self.writer.write_eof()

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


class Running:
    """A server under test, and its clients."""

    def __init__(self, server: Server, path: str) -> None:
        self.server = server
        self.path = path
        self._clients: list[Line] = []

    async def connect(self) -> Line:
        client = Line(*await asyncio.open_unix_connection(self.path, limit=2**26))
        self._clients.append(client)
        return client

    def silent(self) -> socket.socket:
        """A client that reads nothing, ever."""
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect(self.path)
        client.setblocking(False)
        return client

    async def close(self) -> None:
        for client in self._clients:
            await client.close()
        await self.server.close()


Serve = Callable[..., Awaitable[Running]]


@pytest.fixture
async def serve(short_dir: Path, backstage: Backstage) -> AsyncIterator[Serve]:
    """Start a server on the table above; keywords are its limits, `owner_of` apart."""
    running: list[Running] = []

    async def start(
        owner_of: Callable[[int], str | None] = lambda pid: None, **limits: Any
    ) -> Running:
        path = str(short_dir / f"{len(running)}.sock")
        access = Access(os.getuid(), owner_of)
        handlers = backstage.handlers()
        server = Server(path, 0o600, None, ACTIONS, handlers, access, Limits(**limits))
        await server.start()
        running.append(Running(server, path))
        return running[-1]

    yield start
    for each in running:
        await each.close()
