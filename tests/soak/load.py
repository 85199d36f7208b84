"""Clients of all bad habits, and operators who ask for anything: what a registry is under between two quiet moments.

Each client lives for a moment, on connections of its own; all of them are gone when `run` returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random
from typing import Any

from registry.client import AsyncClient, RegistryError
from tests.crash.world import ROOT
from tests.soak.world import Fleet

CLIENTS = 12
"""How many there are at any time."""
OPERATORS = 2
AWAY_S = 0.1
"""Before the next try where nobody is there to ask."""
ANSWER_S = 10.0
READ_MAX = 1024
"""Bytes that a client's side buffers: who does not read is soon noticed."""
QUESTIONS: tuple[dict[str, Any], ...] = (
    {"action": "list_services"},
    {"action": "status", "service": "rest-0"},
    {"action": "status", "service": "all"},
    {"action": "health"},
    {"action": "logs", "service": "flood-0", "lines": 100},
    {"action": "logs", "service": "all", "lines": 20, "stamps": True},
    {"action": "logs", "service": "flood-0", "run": -1},
    {"action": "events", "since": -200},
    {"action": "events", "since": 0, "limit": 50},
    {"action": "show", "service": "web-0"},
    {"action": "version", "all": True},
    {"action": "no_such_thing"},
    {"action": "status"},
    {"action": "status", "service": "nobody"},
    {"jsonrpc": "2.0", "method": "list_services", "id": 7},
    {"jsonrpc": "2.0", "method": "nothing", "id": "x"},
)
STREAMS: tuple[dict[str, Any], ...] = (
    {"action": "events", "since": -50, "follow": True},
    {"action": "events", "since": 0, "follow": True},
    {"action": "events", "since": -1, "service": "crash-0", "follow": True},
    {"action": "logs", "service": "flood-0", "follow": True},
    {"action": "logs", "service": "all", "lines": 5, "follow": True, "stamps": True},
)
WRONG = (
    b"\x00\xff\xfe\n",
    b"{" * 5000 + b"\n",
    b'{"action":"status","service":' + b"9" * 4000 + b"}\n",
    b"[]\n[[]]\nnull\n",
    b"\n\n\n\n",
    b'{"action":"events","since":"next tuesday"}\n',
)
SIGNALS = ("CONT", "USR1", "STOP", "TERM", "KILL", "HUP")
Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
Habit = Callable[[Random, Reader, Writer], Awaitable[None]]
GONE = (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError, ValueError)


class Load:
    """Clients and operators; `done` counts what they did, `told` hears of what belongs into the plot.

    `wrong` is how often a new configuration is one that is to be refused.
    """

    def __init__(self, fleet: Fleet, chance: Random, told: Callable[[str], None]) -> None:
        self.done: Counter[str] = Counter()
        self._fleet = fleet
        self._chance = chance
        self._told = told
        self.wrong = 0.0

    async def run(self, seconds: float) -> None:
        """So long, and then leave, in the middle of whatever it is."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), asyncio.TaskGroup() as tasks:
                for _ in range(CLIENTS):
                    tasks.create_task(self._go_on(self._any_client, 0.3))
                for _ in range(OPERATORS):
                    tasks.create_task(self._go_on(self._operator, 1.0))
                tasks.create_task(self._go_on(self._change, seconds / 4))
                tasks.create_task(self._go_on(self._kill, 1.0))
                tasks.create_task(self._go_on(self._command_line, 8.0))

    async def crowd(self, total_s: float) -> None:
        """Greedy clients, each kind as often at once as there are clients: by chance that comes late, or never.

        What memory a peak takes is taken early then, and what comes later is growth.
        """
        for habit in GREEDY:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(total_s / len(GREEDY)), asyncio.TaskGroup() as tasks:
                    for _ in range(CLIENTS):
                        tasks.create_task(self._go_on(partial(self._client, habit), 0))

    async def _go_on(self, habit: Callable[[], Awaitable[str]], pause_s: float) -> None:
        while True:
            await asyncio.sleep(self._chance.uniform(0, 2 * pause_s))
            try:
                async with asyncio.timeout(ANSWER_S * 2):
                    self.done[await habit()] += 1
            except RegistryError as error:
                self.done[f"refused: {error.code}"] += 1
            except GONE:
                self.done["gone"] += 1
                await asyncio.sleep(AWAY_S)

    # --- clients ----------------------------------------------------------------------------------

    async def _any_client(self) -> str:
        return await self._client(self._chance.choice(HABITS))

    async def _client(self, habit: Habit) -> str:
        reader, writer = await asyncio.open_unix_connection(self._fleet.socket, limit=READ_MAX)
        try:
            await habit(self._chance, reader, writer)
            return habit.__name__.strip("_")
        finally:
            # not in order: most go without a word
            writer.transport.abort() if self._chance.random() < 0.7 else writer.close()

    async def _command_line(self) -> str:
        """A circlectl that follows, killed while it does."""
        arguments = self._chance.choice(
            (["events", "-f"], ["logs", "all", "-f"], ["list"], ["status", "rest-0"])
        )
        program = await asyncio.create_subprocess_exec(
            sys.executable,
            *(str(ROOT / "tools" / "circlectl"), "--socket", str(self._fleet.socket), *arguments),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(self._chance.uniform(0.2, 4)):
                await program.wait()
        except TimeoutError:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                program.kill()
            await program.wait()
        return "circlectl"

    # --- operators --------------------------------------------------------------------------------

    async def _operator(self) -> str:
        verb = self._chance.choice(
            ("start", "start", "stop", "restart", "reset", "reload", "signal", "check")
        )
        count = self._chance.choice((1, 1, 1, 5))
        services = self._chance.sample(sorted(self._fleet.services), count)
        more: dict[str, Any] = {}
        if verb == "signal":
            more["signal"] = self._chance.choice(SIGNALS)
        if verb in ("start", "stop", "restart") and self._chance.random() < 0.3:
            more |= {"wait": True, "timeout": 2}
        if verb == "reload":
            more["wait"] = False
        async with AsyncClient(str(self._fleet.socket), ANSWER_S) as client:
            await client.call(verb, service=services, **more)
        return verb

    async def _change(self) -> str:
        """Another configuration, asked for over the socket or by a signal."""
        self._fleet.change(self._chance, wrong=self._chance.random() < self.wrong)
        self._told("apply")
        if self._chance.random() < 0.2 and self._fleet.daemon is not None:
            if await self._is_listening():  # before that nobody hears the signal
                os.kill(self._fleet.daemon.pid, signal.SIGHUP)
            return "apply"
        async with AsyncClient(str(self._fleet.socket), ANSWER_S) as client:
            if self._chance.random() < 0.5:
                await client.call("plan")
            wait = {"wait": True, "timeout": 3} if self._chance.random() < 0.3 else {}
            await client.call("apply", **wait)
        return "apply"

    async def _is_listening(self) -> bool:
        async with AsyncClient(str(self._fleet.socket), ANSWER_S) as client:
            return bool(await client.call("version"))

    async def _kill(self) -> str:
        self._fleet.kill_a_service(self._chance)
        return "kill of a service"


# --- what a client does ---------------------------------------------------------------------------


def _line(request: object) -> bytes:
    return json.dumps(request).encode() + b"\n"


async def _ask(chance: Random, reader: Reader, writer: Writer) -> None:
    """A few questions, each answer read."""
    for _ in range(chance.randint(1, 5)):
        writer.write(_line(chance.choice((*QUESTIONS, {"action": "plan"}))))
        await _read_line(reader)


async def _ask_much(chance: Random, reader: Reader, writer: Writer) -> None:
    """Many questions at once, a batch among them; some of the answers are read."""
    for number in range(chance.randint(10, 200)):
        writer.write(_line({**chance.choice(QUESTIONS), "id": number}))
    batch = [{"jsonrpc": "2.0", "method": "health", "id": each} for each in range(20)]
    writer.write(_line(batch))
    for _ in range(chance.randint(0, 20)):
        await _read_line(reader)


async def _follow(chance: Random, reader: Reader, writer: Writer) -> None:
    """Subscribe, read for a while, and be gone in the middle of a message."""
    writer.write(_line(chance.choice(STREAMS)))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(chance.uniform(0.1, 6)):
            while await reader.read(chance.randint(1, READ_MAX)):  # noqa: ASYNC110 - it reads slowly
                await asyncio.sleep(chance.choice((0, 0, 0.01)))


async def _never_read(chance: Random, _reader: Reader, writer: Writer) -> None:
    """Subscribe to all of it, and read nothing."""
    for each in STREAMS:
        writer.write(_line(each))
    await asyncio.sleep(chance.uniform(0.5, 15))


async def _send_half(chance: Random, _reader: Reader, writer: Writer) -> None:
    """Half a request, and perhaps the other half."""
    text = _line(chance.choice(QUESTIONS))
    half = chance.randrange(len(text))
    writer.write(text[:half])
    await asyncio.sleep(chance.uniform(0, 8))
    if chance.random() < 0.3:
        writer.write(text[half:])
        writer.write_eof()


async def _idle(chance: Random, _reader: Reader, _writer: Writer) -> None:
    """Connected, and that is all."""
    await asyncio.sleep(chance.uniform(0, 12))


async def _babble(chance: Random, reader: Reader, writer: Writer) -> None:
    """Nothing that could be understood."""
    writer.write(chance.choice((*WRONG, chance.randbytes(3000) + b"\n")))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            await _read_line(reader)


async def _shout(chance: Random, reader: Reader, writer: Writer) -> None:
    """A line that is longer than any may be."""
    for _ in range(chance.choice((3, 20))):
        writer.write(b"a" * 100_000)
        await writer.drain()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            await _read_line(reader)


async def _read_line(reader: Reader) -> None:
    """A line of any length, thrown away."""
    while data := await reader.read(1 << 16):
        if b"\n" in data:
            return


HABITS: tuple[Habit, ...] = (
    _ask, _ask_much, _follow, _follow, _never_read, _send_half, _idle, _babble, _shout,
)  # fmt: skip
GREEDY: tuple[Habit, ...] = (_never_read, _ask_much, _ask)
"""Those for whom the registry holds most."""
