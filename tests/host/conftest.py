"""A runner on real processes: what it sees goes into a queue, what it keeps to a keeper that only holds."""

from __future__ import annotations

import asyncio
import ctypes
import os
import selectors
import signal
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from registry.core.definition import Logs
from registry.core.inputs import Observation
from registry.host import proc
from registry.host.capabilities import PR_SET_CHILD_SUBREAPER, Capabilities, detect
from registry.host.clock import NS, mono_ns
from registry.host.launch import Launch
from registry.host.process import Runner
from registry.host.spawning import Spawning
from registry.logs.target import LogTarget
from tests.coroutines import at_once

SH = "/bin/sh"
LOGS = Logs(dir="/nowhere", size_max=1, files_max=1)


class HoldingKeeper:
    """Holds what it is handed, as the real one does."""

    def __init__(self) -> None:
        self.outputs: dict[tuple[str, int], int] = {}
        self.pidfds: dict[tuple[str, int], int] = {}
        self.targets: dict[tuple[str, int], LogTarget | None] = {}
        self.released: list[tuple[str, int]] = []
        self.refuses: OSError | None = None
        self.is_told = True

    def keep(
        self,
        service: str,
        run: int,
        output_fd: int | None,
        pidfd: int | None,
        log: LogTarget | None,
    ) -> None:
        if self.refuses is not None:
            raise self.refuses
        try:
            if output_fd is not None:
                self.outputs[service, run] = os.dup(output_fd)
            if pidfd is not None:
                self.pidfds[service, run] = os.dup(pidfd)
        except OSError:
            self.drop(service, run)
            raise
        self.targets[service, run] = log
        self.is_told = False

    def flush(self) -> None:
        self.is_told = True

    def redirect(self, service: str, run: int, log: LogTarget) -> None:
        self.targets[service, run] = log

    def release(self, service: str, run: int) -> None:
        self.released.append((service, run))
        self.drop(service, run)

    def drop(self, service: str, run: int) -> None:
        for held in (self.outputs, self.pidfds):
            descriptor = held.pop((service, run), None)
            if descriptor is not None:
                os.close(descriptor)

    def close(self) -> None:
        for service, run in {*self.outputs, *self.pidfds}:
            self.drop(service, run)


class Host:
    """One runner and what it saw."""

    def __init__(self, folder: Path, capabilities: Capabilities) -> None:
        self.folder = folder
        self.capabilities = capabilities
        self.keeper = HoldingKeeper()
        self.seen: asyncio.Queue[tuple[str, Observation]] = asyncio.Queue()
        self.spawning = Spawning(apart=True)
        self.runner = Runner(folder, capabilities, self.keeper, self._observe, self.spawning)
        self.runner.listen()
        self.pids: list[int] = []
        self._name = uuid.uuid4().hex
        self._rest = b""
        self._is_closed = False

    def _observe(self, service: str, given: Observation) -> None:
        self.seen.put_nowait((service, given))

    def mark(self, service: str = "s", run: int = 1) -> str:
        """What a run is known by: another one in each test, also of another run of the tests."""
        return f"{self._name}/{service}/{run}"

    def launch(self, *argv: str, **fields: Any) -> Launch:
        """A launch of `argv`, by default of the present user in /."""
        given = {"env": {}, "cwd": "/", "umask": 0o22, "uid": None, "gid": None, "groups": ()}
        return Launch(argv=argv, **{**given, **fields})

    def spawn(
        self, *argv: str, service: str = "s", run: int = 1, logs: Logs | None = LOGS, **fields: Any
    ) -> int:
        """Put `argv` behind a gate; its pid."""
        mark = self.mark(service, run)
        fields["env"] = {proc.MARK: mark, **fields.get("env", {})}
        launch = self.launch(*argv, **fields)
        spawned = at_once(self.runner.spawn(service, run, mark, launch, logs))
        self.pids.append(spawned.pid)
        return spawned.pid

    def start(self, *argv: str, service: str = "s", run: int = 1, **fields: Any) -> int:
        """Spawn it and open its gate."""
        pid = self.spawn(*argv, service=service, run=run, **fields)
        assert self.runner.open_gate(service, run)
        return pid

    def script(self, text: str, **fields: Any) -> int:
        """Start a shell script."""
        return self.start(SH, "-c", text, **fields)

    def stop(self, timeout_s: float = 100.0, name: str = "SIGTERM", run: int = 1) -> None:
        """Stop service s, SIGKILL after `timeout_s`."""
        self.runner.stop("s", run, name, mono_ns() + int(timeout_s * NS))

    async def next(self) -> Observation:
        """The next thing seen."""
        return (await self.seen.get())[1]

    async def line(self, service: str = "s", run: int = 1) -> str:
        """The next line of the output."""
        descriptor = self.keeper.outputs[service, run]
        while b"\n" not in self._rest:
            await readable(descriptor)
            self._rest += os.read(descriptor, 65536)
        line, self._rest = self._rest.split(b"\n", 1)
        return line.decode()

    def executed(self, pid: int, name: str = "sleep") -> int:
        """Wait until `pid` is that program, with its environment: in the midst of an exec it has none."""
        while proc.program(pid) != name or proc.mark(pid) is None:
            os.sched_yield()
        return pid

    def close(self) -> None:
        """Close the runner: its processes go on."""
        if not self._is_closed:
            self._is_closed = True
            self.runner.close()
            self.spawning.close()
            self.keeper.close()


async def readable(descriptor: int) -> None:
    """Wait until a descriptor can be read."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


async def wait_gone(pid: int) -> None:
    """Wait until a process has ended (it may be a zombie yet)."""
    with suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            await readable(pidfd)
        finally:
            os.close(pidfd)


@pytest.fixture
def gone() -> Callable[[int], Awaitable[None]]:
    return wait_gone


def _be_subreaper(wanted: int) -> None:
    assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, wanted, 0, 0, 0) == 0


@pytest.fixture
def _subreaper() -> Iterator[None]:
    """Orphans come to us, as to the daemon, and all are ended and reaped with the test."""
    for name in os.listdir(
        "/dev/fd"
    ):  # what we were started with is not to reach a service, either
        if int(name) > 2:
            with suppress(OSError):
                os.set_inheritable(int(name), False)
    before = set(proc.children(os.getpid()))
    _be_subreaper(1)
    try:
        yield
        left = set(proc.children(os.getpid())) - before
        while left:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            for pid in left:
                os.waitpid(pid, 0)
            left = set(proc.children(os.getpid())) - before
    finally:
        _be_subreaper(0)


@pytest.fixture
def capabilities() -> Capabilities:
    """All that this machine can do."""
    return detect({})


@pytest.fixture
def without(capabilities: Capabilities) -> Callable[..., Capabilities]:
    """The machine's capabilities less the ones named."""

    def less(names: Sequence[str]) -> Capabilities:
        return msgspec.structs.replace(capabilities, **dict.fromkeys(names, False))

    return less


@pytest.fixture
async def make_host(
    _subreaper: None, tmp_path: Path, capabilities: Capabilities
) -> AsyncIterator[Callable[..., Host]]:
    made: list[Host] = []

    def make(given: Capabilities | None = None) -> Host:
        made.append(Host(tmp_path / "var", given or capabilities))
        return made[-1]

    yield make
    for host in made:
        host.close()


@pytest.fixture
async def host(make_host: Callable[..., Host]) -> Host:
    """A runner with all that the machine can do."""
    return make_host()


class VirtualClock(selectors.SelectSelector):
    """Never waits: what would be waited for has passed. Counts how often the loop woke up."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.wake_ups = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everything waits and nothing is due"
        self.now_s += max(timeout, 0.0)
        self.wake_ups += timeout > 0.0
        return []


@pytest.fixture
def on_virtual_time() -> Callable[[Callable[[VirtualClock], Coroutine[Any, Any, None]]], None]:
    """Runs a scene on a loop whose time is a clock's."""

    def play(scene: Callable[[VirtualClock], Coroutine[Any, Any, None]]) -> None:
        clock = VirtualClock()

        def virtual_loop() -> asyncio.AbstractEventLoop:
            loop = asyncio.SelectorEventLoop(clock)
            loop.time = lambda: clock.now_s  # type: ignore[method-assign]
            return loop

        with asyncio.Runner(loop_factory=virtual_loop) as runner:
            runner.run(scene(clock))

    return play
