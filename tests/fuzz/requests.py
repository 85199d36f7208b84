"""What clients of the control socket send: any bytes, in any pieces, to the production connection and handlers."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import msgspec

from registry.api.access import Access, Peer
from registry.api.actions import ACTIONS
from registry.api.growth import LogLine, Source
from registry.api.handlers import Handlers
from registry.api.journal import JournalHandlers
from registry.api.protocol import BATCH_MAX
from registry.api.server import Limits, Server, _Connection
from registry.core import events as ev
from registry.core.definition import Check, Definition
from registry.core.dependencies import Graph
from registry.core.events import TYPES
from registry.core.lifecycle import State
from registry.core.projection import Projection
from registry.core.service import Service
from registry.host.capabilities import Capabilities
from registry.journal import JournalError
from registry.questions.plan import Plan
from registry.registry import Accepted
from tests.fuzz.chunks import chance_of, pieces
from tests.fuzz.harness import Judge, Target, failed
from tests.fuzz.mutate import Recipe

LINE_MAX = 1 << 13
"""Bytes of a request here: so small that many are too long."""
TURNS_MAX = 3000
"""Turns of the loop after which every answer is there."""
SERVICES = ("web", "worker", "db", "x@1", "x@2")

_decode = msgspec.json.Decoder().decode


def recipe() -> Recipe:
    """One request of every kind, in both forms, and words of the protocol."""
    seeds = [b"\n".join(_seeds())]
    seeds += [line + b"\n" for line in _seeds()]
    names = [*ACTIONS, *SERVICES, *TYPES, "all", "tag:a", "x", "w*", "[a-", "SIGHUP"]
    fields = {field for action in ACTIONS.values() for field in action.params.__struct_fields__}
    words = [json.dumps(name).encode() for name in [*names, *fields]]
    words += [
        b'"jsonrpc":"2.0"',
        b'"id":',
        b'"method":',
        b'"params":',
        b'"action":',
        b"-1",
        b"5m ago",
    ]
    return Recipe(seeds, words, _fresh)


def _seeds() -> Iterator[bytes]:
    for name in ACTIONS:
        yield json.dumps({"action": name, "service": "web"}).encode()
        yield json.dumps({"action": name, "id": 1}).encode()
        yield json.dumps({"jsonrpc": "2.0", "method": name, "params": ["web"], "id": "a"}).encode()
    yield b'[{"jsonrpc":"2.0","method":"status","params":["web"],"id":1},{"jsonrpc":"2.0","method":"version"},1]'
    yield b'{"action":"logs","service":["web","db"],"since":"5m ago","run":-1,"stamps":true,"follow":true}'
    yield b'{"action":"events","since":-3,"follow":true,"service":"x","type":"exited","limit":2}'
    yield b'{"action":"stop","service":["all"],"with_dependents":true,"wait":true,"timeout":1.5}'


def _fresh(chance: Random) -> bytes:
    return b"\n".join(_line(chance) for _ in range(chance.choice((1, 1, 2, 5))))


def _line(chance: Random) -> bytes:
    match chance.randrange(8):
        case 0:
            entries = [_request(chance) for _ in range(chance.choice((0, 1, 3, BATCH_MAX + 1)))]
            return json.dumps(entries).encode()
        case 1:
            return json.dumps(_value(chance, 0)).encode(errors="replace")
        case 2:
            return b" " * chance.choice((1, LINE_MAX + 1))
        case _:
            return json.dumps(_request(chance)).encode()


def _request(chance: Random) -> Any:
    name = chance.choice([*ACTIONS, "nothing"])
    known = ACTIONS[name].params.__struct_fields__ if name in ACTIONS else ("service",)
    params: Any = {field: _value(chance, 0) for field in known if chance.random() < 0.7}
    request: dict[str, Any] = {}
    if chance.random() < 0.5:
        params = list(params.values()) if chance.random() < 0.3 else params
        request = {"jsonrpc": "2.0", "method": name, "params": params}
    else:
        request = {**params, "action": name}
    if chance.random() < 0.6:
        request["id"] = _value(chance, 2)
    return request if chance.random() < 0.95 else _value(chance, 0)


def _value(chance: Random, depth: int) -> Any:
    match chance.randrange(9 if depth > 1 else 11):
        case 0:
            return chance.choice((None, True, False))
        case 1:
            return chance.choice((0, 1, -1, 2**31, 2**63, -(2**64), 10**30))
        case 2:
            return chance.choice((0.0, -1.5, 1e-300, 1e308, 60.0))
        case 9:
            return [_value(chance, depth + 1) for _ in range(chance.randrange(4))]
        case 10:
            return {str(n): _value(chance, depth + 1) for n in range(chance.randrange(3))}
        case _:
            words = [
                *SERVICES,
                "all",
                "tag:a",
                "*",
                "HUP",
                "9",
                "03:14",
                "2 h ago",
                "a\u2028\x1b",
                "[!",
            ]
            return chance.choice(words)


# --- what answers ---------------------------------------------------------------------------------


class _Desk:
    """The registry as the handlers see it: five services, and every command granted at once."""

    def __init__(self) -> None:
        self.committed = Projection()
        self._records: list[ev.Record] = []
        checks = (Check("beat", "heartbeat:"), Check("http", "http://127.0.0.1:8/"))
        definitions = [
            Definition(name, ("./x",), n, checks=checks, tags=("a",), logs=None if n else _LOGS)
            for n, name in enumerate(SERVICES)
        ]
        for seq, each in enumerate(definitions, 1):
            moved = {"source": State.STOPPED, "dest": State.STOPPED, "reason": "defined"}
            defined = msgspec.convert(
                {**moved, "definition": msgspec.to_builtins(each), "digest": "d"}, ev.Defined
            )
            self._records.append(
                ev.Record(seq, seq, seq, seq, each.name, None, None, None, defined)
            )
        self.committed.fold(self._records)
        self.graph = Graph(definitions)
        self.tallies: dict[Any, Any] = {}
        self.closing = False
        self.degraded_since_ns = None
        self.trouble = ""
        self.seq = len(definitions)
        self.as_of = (0, self.seq)

    async def command(self, steps: Sequence[tuple[str, Any]], _before: Any = None) -> Accepted:
        return Accepted(steps[0][0], 7, State.RUNNING, False)

    async def until(self, is_so: Any) -> None:
        if not is_so():
            raise TimeoutError

    async def next_commit(self) -> None:
        await asyncio.Event().wait()

    def recent_since(self, seq: int) -> list[ev.Record] | None:
        return self._records[max(0, seq) :]

    def moved_since(self, _as_of: tuple[int, int]) -> list[ev.Record] | None:
        return None

    def beginning(self) -> Projection:
        return Projection()

    async def read(self, **_how: Any) -> list[ev.Record]:
        return []

    async def ask(self, _question: str, _params: Any) -> msgspec.Raw:
        return msgspec.Raw(b"{}")

    async def follow(self, _sources: Sequence[Source], lines: int) -> AsyncGenerator[list[LogLine]]:
        yield [LogLine("web", None, None, "a line")][:lines]

    async def plan(self) -> Plan:
        return Plan()

    async def apply(self, _actor: Any) -> Plan:
        return Plan()

    async def upgrade(self) -> str | None:
        return "not here"

    def shut_down(self, *, keep_services: bool) -> None:
        return None

    async def check_once(self, _service: Service) -> list[Any]:
        return []


class _NoJournal:
    """What removes events, of a journal that cannot be read: nothing of these requests reaches a file."""

    keep_s: float | None = 60.0
    max_size: int | None = None

    def __init__(self) -> None:
        self.busy = asyncio.Lock()

    async def _refuse(self, *_given: Any) -> Any:
        raise JournalError("cannot read the journal /nowhere/registry.db")

    compact = older_than = last_at = describe = _refuse


_ABLE = Capabilities(**dict.fromkeys(Capabilities.__struct_fields__, True))
_LOGS = Definition("", ()).logs


class _AtOnce(ThreadPoolExecutor):
    """Work for threads, done by the caller: quick, and the same every time."""

    def submit(self, work: Any, /, *given: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*given, **named))
        except Exception as error:
            future.set_exception(error)
        return future


def _handlers() -> dict[str, Any]:
    desk: Any = _Desk()
    made = Handlers(
        desk,
        desk,
        desk,
        _ABLE,
        journal_path=Path("/nowhere/registry.db"),
        beat=lambda _service, _check: True,
        describe=lambda _service: {},
        check_once=desk.check_once,
        past=desk,
        administration=desk,
    )
    journal = JournalHandlers(desk, _NoJournal(), Path("/nowhere/registry.db"))
    return {**made.table(), **journal.table()}


class _Wire(asyncio.Transport):
    """What the connection writes to: a client that takes everything at once."""

    def __init__(self) -> None:
        super().__init__({"socket": SimpleNamespace(fileno=lambda: -1, setsockopt=lambda *_: None)})
        self.sent = bytearray()
        self.closed = False
        self.paused = False

    def write(self, data: Any) -> None:
        self.sent += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        return None

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


# --- what is judged -------------------------------------------------------------------------------


@contextmanager
def judging() -> Iterator[Judge]:
    """A server without a socket."""
    loop = asyncio.new_event_loop()
    loop.set_default_executor(_AtOnce())
    loop.set_exception_handler(lambda _loop, what: failed(_error(what)))
    access = Access(os.getuid(), lambda _pid: None)
    handlers = _handlers()
    server = Server("/nowhere", 0o600, None, ACTIONS, handlers, access, Limits(line_max=LINE_MAX))
    server._listener = cast(socket.socket, SimpleNamespace())  # else it is about to close
    strangers = (Peer(os.getuid(), os.getgid(), 1, "x"), Peer(4711, 4711, None, None))

    def judge(data: bytes) -> None:
        chance = chance_of(data)
        peer = strangers[chance.random() < 0.1]
        sent = loop.run_until_complete(_talk(server, peer, data, chance))
        expected = sum(answers_to(line) for line in _lines(data))
        lines = sent.split(b"\n")
        assert lines.pop() == b"", "an answer without an end"
        for line in lines:
            _judge_answer(line)
        assert len(lines) == expected, f"{len(lines)} answers to {expected} requests"

    unreadable = JournalError("cannot read the journal /nowhere/registry.db")
    try:
        with mock.patch("registry.api.journal.export", side_effect=unreadable):
            yield judge
    finally:
        loop.close()


def _error(what: dict[str, Any]) -> BaseException:
    error = what.get("exception")
    return error if isinstance(error, BaseException) else RuntimeError(str(what.get("message")))


async def _talk(server: Server, peer: Peer, data: bytes, chance: Random) -> bytes:
    wire, connection = _Wire(), _Connection(server, peer)
    connection.connection_made(wire)
    for piece in pieces(data, chance):
        connection.data_received(piece)
        assert len(connection._received) <= LINE_MAX + len(piece), "it holds more than a request"
        for _ in range(TURNS_MAX):
            if not wire.paused or connection._ended:
                break
            await asyncio.sleep(0)
        if connection._ended:
            break
        if chance.random() < 0.2:
            await asyncio.sleep(0)
    connection.eof_received()
    for _ in range(TURNS_MAX):
        busy = connection._in_flight > len(connection._streams) or connection._received
        if wire.closed or not busy:
            break
        await asyncio.sleep(0)
    for _ in range(10):  # the first page of a stream
        await asyncio.sleep(0)
    if not wire.closed:
        assert connection._streams, "the connection stays open, and nothing is under way"
        connection.finish()
        for _ in range(TURNS_MAX):
            if wire.closed:
                break
            await asyncio.sleep(0)
    assert wire.closed, "the connection does not end"
    connection.connection_lost(None)
    for _ in range(TURNS_MAX):
        if not server._tasks:
            break
        await asyncio.sleep(0)
    assert not server._tasks, "work goes on for a client that is gone"
    assert not server._connections
    return bytes(wire.sent)


def _lines(data: bytes) -> Iterator[bytes]:
    for line in data.split(b"\n"):
        if line.strip() or len(line) > LINE_MAX:
            yield line
        if len(line) > LINE_MAX:
            return


def answers_to(line: bytes) -> int:
    """How many answers a line has: one, or none where it is nothing but notifications."""
    if len(line) > LINE_MAX:
        return 1
    try:
        message = _decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return 1
    if isinstance(message, list):
        return int(not 0 < len(message) <= BATCH_MAX or not all(map(_is_notification, message)))
    return int(not _is_notification(message))


def _is_notification(message: Any) -> bool:
    """Whether it is a valid JSON-RPC request without an id: section 4.1 of the specification."""
    return (
        isinstance(message, dict)
        and message.get("jsonrpc") == "2.0"
        and "id" not in message
        and isinstance(message.get("method"), str)
        and isinstance(message.get("params", {}), dict | list)
    )


def _judge_answer(line: bytes) -> None:
    answer = json.loads(line)
    for each in answer if isinstance(answer, list) else [answer]:
        if "jsonrpc" in each:
            assert each["jsonrpc"] == "2.0"
            assert len(each.keys() & {"result", "error", "method"}) == 1
            error = each.get("error")
            assert error is None or error["data"]["code"] != "internal_error", line
        else:
            assert not isinstance(answer, list)
            assert each["ok"] is True or each["error"]["message"]
            assert each["ok"] or each["error"]["code"] != "internal_error", line


TARGET = Target(
    "requests",
    "each whole request has exactly one well-formed answer, a notification none; nothing raises, and the connection"
    " ends with nothing under way",
    recipe,
    judging,
    {
        "lines": lambda size: b'{"action":"version"}\n' * (size // 21),
        "empty lines": lambda size: b"\n" * size,
        "half a request": lambda size: (
            (b'{"action":"list_services","id":"' + b"a" * 900 + b'"}\n') * (size // 950)
        ),
        "brackets": lambda size: (b"[" * 8000 + b"\n") * (size // 8001),
    },
)
