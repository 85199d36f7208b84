"""Real keepers, daemons' sides and services' outputs, all gone after the test."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from registry.keeper import client
from registry.keeper.client import Keeper, Note, OutputEnded

PROGRAM = str(Path(client.__file__).with_name("__main__.py"))


class Output:
    """One run's output. `writer` stands for the child's end, `reader` for the daemon's."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.writer = os.open(path, os.O_RDWR)
        self.reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def write(self, text: str) -> None:
        os.write(self.writer, text.encode())

    def end(self) -> None:
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def close(self) -> None:
        self.end()
        os.close(self.reader)


class Ear:
    """A service's notification socket, as a registry makes it; `tell` is what a process does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.socket.bind(str(path))

    def fileno(self) -> int:
        return self.socket.fileno()

    def tell(self, *texts: str, fds: list[int] | None = None) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect(str(self.path))
            for text in texts:
                socket.send_fds(sender, [text.encode()], fds or [])

    @property
    def has_unread(self) -> bool:
        return bool(select.select([self.socket], [], [], 0)[0])

    def wait_until_read(self) -> None:
        """Somebody has taken all that was told."""
        while self.has_unread:
            os.sched_yield()


class Side(Keeper):
    """A daemon's side that notes what it hears."""

    def __init__(self, socket_path: Path, *, hears: bool = True, **named: Any) -> None:
        self.hears = hears
        self.grown: asyncio.Queue[str] = asyncio.Queue()
        self.ended: asyncio.Queue[tuple[str, int, int]] = asyncio.Queue()
        self.said: asyncio.Queue[str] = asyncio.Queue()
        self.told: asyncio.Queue[list[Note]] = asyncio.Queue()
        self.processes: dict[int, int] = {}
        super().__init__(
            socket_path,
            on_grew=self.grown.put_nowait,
            on_output_ended=self._note_end,
            log=self.said.put_nowait,
            on_notes=self.told.put_nowait,
            **named,
        )

    def _note_end(self, ended: OutputEnded) -> None:
        self.ended.put_nowait((ended.service, ended.run, ended.dropped))
        if self.hears:
            self.heard(ended.service, ended.run)

    def _meet(self, pid: int) -> None:
        if pid not in self.processes:
            self.processes[pid] = os.pidfd_open(pid)
        super()._meet(pid)


def wait_dead(pid: int, timeout_s: float = 5.0) -> None:
    """Wait for the end of any process."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ready, _, _ = select.select([pidfd], [], [], timeout_s)
    os.close(pidfd)
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    assert ready, f"process {pid} is still there"


@pytest.fixture
def folder(short_dir: Path) -> Path:
    """Where the keeper's socket and its log lie."""
    return short_dir


@pytest.fixture
def make_output(folder: Path) -> Iterator[Callable[[], Output]]:
    made: list[Output] = []

    def make() -> Output:
        made.append(Output(folder / f"fifo{len(made)}"))
        return made[-1]

    yield make
    for output in made:
        output.close()


@pytest.fixture
def make_ear(folder: Path) -> Iterator[Callable[[], Ear]]:
    made: list[Ear] = []

    def make() -> Ear:
        made.append(Ear(folder / f"notify{len(made)}"))
        return made[-1]

    yield make
    for ear in made:
        ear.socket.close()


@pytest.fixture
def make_side(folder: Path) -> Iterator[Callable[..., Side]]:
    made: list[Side] = []

    def make(**named: Any) -> Side:
        made.append(Side(folder / "keeper.sock", **named))
        return made[-1]

    yield make
    for side in made:
        side.close()
    for pid, pidfd in [each for side in made for each in side.processes.items()]:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
        wait_dead(pid)


@pytest.fixture
def start_keeper(folder: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """A keeper started by hand, which binds its socket itself."""
    made: list[subprocess.Popen[bytes]] = []

    def start(*more: str) -> subprocess.Popen[bytes]:
        named = ["--socket", str(folder / "keeper.sock"), "--log", str(folder / "keeper.log")]
        process = subprocess.Popen([sys.executable, "-I", "-S", PROGRAM, *named, *more])
        made.append(process)
        while not (folder / "keeper.sock").exists():
            assert process.poll() is None
            os.sched_yield()
        return process

    yield start
    for process in made:
        process.kill()
        process.wait()


@pytest.fixture
def is_dead() -> Callable[[int], None]:
    return wait_dead


@pytest.fixture
def program() -> str:
    """The file by which a keeper is started."""
    return PROGRAM
