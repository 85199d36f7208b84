"""Processes below this one, as /proc shows them: whose they are, what they cost, and how they are ended."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

TICKS_A_S = os.sysconf("SC_CLK_TCK")
KILL_S = 30.0


class Stat(NamedTuple):
    """What /proc/PID/stat tells. CPU in ticks; `waited` is that of children that were waited for."""

    state: str
    parent: int
    utime: int
    stime: int
    waited: int


class Cost(NamedTuple):
    """What processes have used so far: CPU (s), the same with ended children, voluntary switches, ticks of CPU."""

    cpu_s: float
    with_children_s: float
    switches: int
    ticks: int

    def since(self, before: Cost) -> Cost:
        """What was used between two moments."""
        return Cost(
            self.cpu_s - before.cpu_s,
            self.with_children_s - before.with_children_s,
            self.switches - before.switches,
            self.ticks - before.ticks,
        )


class Start(NamedTuple):
    """What a service reported: its pid, and when it executed its first instruction."""

    name: str
    pid: int
    at_ns: int


# --- what runs ------------------------------------------------------------------------------------

_helpers: set[int] = set()


def spawn(
    command: list[str], folder: Path, environment: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own; what it says goes into `folder`/said."""
    with (folder / "said").open("ab") as said:
        return subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )


@contextlib.contextmanager
def helper(command: list[str], folder: Path, **options: int) -> Iterator[subprocess.Popen[bytes]]:
    """A program of the bench's own, which no supervisor answers for; its output can be read. Ended with the block."""
    with subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
        **options,  # type: ignore[call-overload]
    ) as process:
        _helpers.add(process.pid)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            _helpers.discard(process.pid)


def stat(pid: int) -> Stat | None:
    """None where there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    utime, stime, waited_utime, waited_stime = map(int, fields[11:15])
    return Stat(fields[0].decode(), int(fields[1]), utime, stime, waited_utime + waited_stime)


def below(root: int) -> dict[int, Stat]:
    """Every process below `root`, ended ones included, and not the bench's own helpers."""
    found = {int(name): stat(int(name)) for name in os.listdir("/proc") if name.isdigit()}
    children: dict[int, list[int]] = {}
    for pid, each in found.items():
        if each is not None:
            children.setdefault(each.parent, []).append(pid)
    result: dict[int, Stat] = {}
    waiting = [root]
    while waiting:
        for pid in children.get(waiting.pop(), ()):
            each = found[pid]
            if pid not in _helpers and pid not in result and each is not None:
                result[pid] = each
                waiting.append(pid)
    return result


def split(program: Path) -> tuple[list[int], list[int]]:
    """The living processes below us: those that execute the service's `program`, and its supervisors."""
    services: list[int] = []
    supervisors: list[int] = []
    for pid, each in below(os.getpid()).items():
        if each.state not in "ZX":
            (services if _executes(pid, program) else supervisors).append(pid)
    return services, supervisors


def _executes(pid: int, program: Path) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/exe") == str(program)
    except OSError:
        return False


def end_all(root: int) -> None:
    """End everything below `root`, again until nothing is; raise TimeoutError where something does not end."""
    deadline = time.monotonic() + KILL_S
    while living := [pid for pid, each in below(root).items() if each.state not in "ZX"]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"left running: {living}")
        for pid in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        reap_orphans()
        time.sleep(0.02)
    reap_orphans()


def reap_orphans() -> None:
    """Take what ended and was left to us; a Popen of ours finds out by itself."""
    for pid, each in below(os.getpid()).items():
        if each.state == "Z" and each.parent == os.getpid():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


class Ends:
    """Waits for the ends of processes by their pidfds."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._poll = select.poll()
        self._left: set[int] = set()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                self._left.add(pidfd)
                self._poll.register(pidfd, select.POLLIN)

    def wait(self, timeout_s: float) -> int:
        """How many are left when all have ended, or the time is over."""
        deadline = time.monotonic() + timeout_s
        while self._left and (left_s := deadline - time.monotonic()) > 0:
            for pidfd, _event in self._poll.poll(left_s * 1000):
                self._poll.unregister(pidfd)
                os.close(pidfd)
                self._left.discard(pidfd)
        left = len(self._left)
        for pidfd in self._left:
            os.close(pidfd)
        self._left.clear()
        return left


# --- what they cost -------------------------------------------------------------------------------


def cost(pids: Iterable[int]) -> Cost:
    """Of all their threads together."""
    nanoseconds = ticks = switches = waited = 0
    for pid in pids:
        if (each := stat(pid)) is None:
            continue
        ticks += each.utime + each.stime
        waited += each.waited
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                folder = Path(f"/proc/{pid}/task/{task}")
                nanoseconds += int((folder / "schedstat").read_text().split()[0])
                switches += _field(folder / "status", "voluntary_ctxt_switches:")
    return Cost(nanoseconds / 1e9, nanoseconds / 1e9 + waited / TICKS_A_S, switches, ticks)


def pss_kib(pids: Iterable[int]) -> int:
    """Memory of all of them, what they share counted once."""
    return sum(_field(Path(f"/proc/{pid}/smaps_rollup"), "Pss:") for pid in pids)


def _field(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)


# --- what services report -------------------------------------------------------------------------


class Observer:
    """Takes the reports of services, on a thread of its own."""

    def __init__(self, path: Path) -> None:
        self.starts: list[Start] = []
        self.last: dict[str, Start] = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.bind(str(path))
        self._arrived = threading.Condition()
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def _take(self) -> None:
        while text := self._socket.recv(512):
            name, pid, at_ns = text.decode().split()
            start = Start(name, int(pid), int(at_ns))
            with self._arrived:
                self.starts.append(start)
                self.last[name] = start
                self._arrived.notify_all()

    def wait_for(self, number: int, timeout_s: float) -> bool:
        """Whether that many services have reported in time."""
        with self._arrived:
            return self._arrived.wait_for(lambda: len(self.last) >= number, timeout_s)

    def wait_for_new(self, name: str, old: int, timeout_s: float) -> Start | None:
        """The report of a service's next process after the one with the pid `old`."""
        with self._arrived:
            self._arrived.wait_for(lambda: self.last[name].pid != old, timeout_s)
            start = self.last[name]
        return start if start.pid != old else None

    def close(self) -> None:
        """What services report from now on goes nowhere."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()
