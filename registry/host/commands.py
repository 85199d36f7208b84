"""Commands beside the services, run to their end or a time limit: of checks, reloads and hooks.

Each leads a group of its own. Until it is reaped, which only the runner does, its number is nobody else's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from registry.host import gate
from registry.host.gate import Gated
from registry.host.launch import Launch, LaunchError

SAID_MAX = 4096
_PIPE = 65_536
"""Bytes that a pipe holds: pipe(7)."""


class Commands:
    """The commands under way. `spawn` takes a launch, its input and the path of its output; `fifo` is that of `Kept`.

    `led` are the leaders that live.
    """

    def __init__(
        self,
        folder: Path,
        spawn: Callable[[Launch, int | None, str], Gated],
        fifo: Callable[[int | None], AbstractContextManager[tuple[str, int]]],
        led: set[int],
    ) -> None:
        self._folder = folder
        self._spawn = spawn
        self._fifo = fifo
        self._led = led
        self._running: dict[int, asyncio.Future[int]] = {}

    async def run(
        self, launch: Launch, timeout_s: float, stdin: bytes | None, said: bytearray | None = None
    ) -> int:
        """Run a command to its end: its exit code, negative for a signal. Raises TimeoutError, LaunchError.

        Into `said` goes the last of its output, SAID_MAX bytes at most; without it none is read.
        """
        launch = msgspec.structs.replace(launch, descriptors=(), own_pid=())
        if said is None:
            return await self._run(
                launch, self._spawn_reading(launch, stdin, os.devnull), timeout_s
            )
        try:
            with self._fifo(launch.uid) as (path, output):
                gated = self._spawn_reading(launch, stdin, path)
        except OSError as error:
            raise gate.refusal(error) from None
        with _heard(output, said):
            return await self._run(launch, gated, timeout_s)

    async def _run(self, launch: Launch, gated: Gated, timeout_s: float) -> int:
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._running[gated.pid] = ended
        self._led.add(gated.pid)
        try:
            gate.constrain(gated.pid, launch)
        except LaunchError:
            os.close(gated.gate)  # it ends, and is reaped
            raise
        gate.open_gate(gated.gate)
        try:
            async with asyncio.timeout(timeout_s):
                return await ended
        finally:
            if gated.pid in self._running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(gated.pid, signal.SIGKILL)

    def _spawn_reading(self, launch: Launch, stdin: bytes | None, output: str) -> Gated:
        if stdin is None:
            return self._spawn(launch, None, output)
        import tempfile  # here as elsewhere: with it come compressors and more, 1 MB

        try:
            # a file, not a pipe: a command that does not read must not make us wait
            with tempfile.TemporaryFile(dir=self._folder, buffering=0) as file:
                file.write(stdin)
                file.seek(0)
                return self._spawn(launch, file.fileno(), output)
        except OSError as error:
            raise gate.refusal(error) from None

    def reaped(self, pid: int, code: int) -> bool:
        """Take the end of a child that was reaped; False where that was no command."""
        ended = self._running.pop(pid, None)
        if ended is None:
            return False
        self._led.discard(pid)
        if not ended.done():
            ended.set_result(code)
        return True


@contextlib.contextmanager
def _heard(output: int, said: bytearray) -> Iterator[None]:
    """Read all that comes to `output` within the block, so that nobody waits for it; the last of it is in `said`."""
    loop = asyncio.get_running_loop()

    def read() -> None:
        with contextlib.suppress(BlockingIOError):
            data = os.read(output, _PIPE)
            said.extend(data)
            del said[:-SAID_MAX]
            if not data:
                loop.remove_reader(output)

    loop.add_reader(output, read)
    try:
        yield
    finally:
        read()
        loop.remove_reader(output)
        os.close(output)
