"""A folder with dozens of services of all habits, the registry that runs on it, and what /proc shows of both.

Nothing here asks the registry how it is: processes are found by CIRCLEOSD_RUN and CIRCLEOSD_SOCKET in
their environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.crash.launcher import VARIABLE

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DEADLINE_S = 10.0
STOP_TIMEOUT_S = 0.4
DELAY_MAX_S = 0.3
START_TIMEOUT_S = 1.5
"""Of those that are `late`: what they said dies where registry and keeper both do."""
SETTLED_WITHIN_S = STOP_TIMEOUT_S + DELAY_MAX_S * 1.1 + 5
"""What issue 3 promises: stop timeout + delay_max (with its jitter) + 5 s."""

Key = tuple[int, int]
"""A process as nothing else is: pid and start time."""


class Habit(NamedTuple):
    """How many services have a habit, what else their definition says, and what may be asked of them.

    `is_steady`: it never ends by itself. `processes` is how many a run has in the end.
    """

    number: int
    keys: str = ""
    is_steady: bool = True
    processes: int = 1


HABITS: dict[str, Habit] = {
    "once": Habit(6, 'restart = "Never"', is_steady=False),
    "rest": Habit(4),
    "write": Habit(4),
    "talk": Habit(2, is_steady=False),
    "flap": Habit(3, is_steady=False),
    "slow": Habit(3),
    "deaf": Habit(3),
    "fork": Habit(3, processes=3),
    "leave": Habit(2, is_steady=False),
    "listen": Habit(
        2, 'health_check = { target = "unix:at/{name}", interval = "300ms", failures = 20 }'
    ),
    "probed": Habit(
        2, 'health_check = { target = "cmd:test -d ran", interval = "500ms", failures = 20 }'
    ),
    "late": Habit(3, f'ready = "notify"\nstart_timeout = "{START_TIMEOUT_S * 1000:.0f}ms"'),
    "follow": Habit(2),
    "setup": Habit(1, 'oneshot = true\nrestart = "OnFailure"', is_steady=False),
    "needy": Habit(1),
}
PROGRAMS = {"probed": "rest", "follow": "rest", "needy": "rest"}
NEEDS: dict[str, tuple[str, ...]] = {
    "late-1": ("late-0",),
    "late-2": ("late-1",),
    "follow-0": ("late-0",),
    "follow-1": ("follow-0",),
    "needy-0": ("setup-0",),
}
"""What services depend on; those called `follow` with `restart = true`."""
SERVICES = {f"{name}-{n}": name for name, habit in HABITS.items() for n in range(habit.number)}


def follows(name: str) -> bool:
    """Whether it follows the restarts and stops of what it depends on."""
    return name.startswith("follow")


def kin(name: str) -> frozenset[str]:
    """Itself and all with whom it is connected by dependencies: who is started may start any of these."""
    found: set[str] = set()
    waiting = {name}
    while waiting:
        found |= waiting
        waiting = {
            other
            for pair in ((a, b) for a, needs in NEEDS.items() for b in needs)
            if found.intersection(pair)
            for other in pair
        } - found
    return frozenset(found)


def followed(name: str) -> tuple[str, ...]:
    """Itself, and whose restarts it follows, directly or not."""
    needs = NEEDS.get(name, ()) if follows(name) else ()
    return (name, *(each for need in needs for each in followed(need)))


def dependents(name: str) -> list[str]:
    """Those that depend on it, directly or not."""
    direct = [other for other, needs in NEEDS.items() if name in needs]
    return direct + [each for other in direct for each in dependents(other)]


class Seen(NamedTuple):
    """One living process of a service, as /proc shows it."""

    pid: int
    start_time: int
    session: int
    comm: str
    service: str
    run: int

    @property
    def is_main(self) -> bool:
        """Whether it is its run's main process, past the gate and no check's command."""
        return self.session == self.pid and self.comm.startswith("python")

    @property
    def key(self) -> Key:
        """What no other process has."""
        return self.pid, self.start_time


class World:
    """A folder and its registry. `root` is the checkout whose code runs."""

    def __init__(self, folder: Path, services: dict[str, str] = SERVICES) -> None:
        self.folder = folder
        self.services = services
        self.socket = folder / "s"
        self.journal = folder / "var" / "registry.db"
        self.errors = folder / "stderr"
        self.configuration = folder / "etc" / "services.toml"
        self.daemon: subprocess.Popen[bytes] | None = None
        self.made = time.monotonic()
        for name in ("etc", "lock", "ran", "said", "at", "met", "var"):
            (folder / name).mkdir(exist_ok=True)
        self.configuration.write_text(self._services())

    def _services(self) -> str:
        defaults = (
            f'stop = "{STOP_TIMEOUT_S * 1000:.0f}ms"\n'
            f'restart = {{ delay = "100ms", delay_max = "{DELAY_MAX_S * 1000:.0f}ms" }}\n'
            'logs = { size_max = "20KB", files_max = 100 }\n'
        )
        head = f'[registry]\nsocket = "{self.socket}"\n[defaults]\n{defaults}'
        return head + "".join(map(self._section, self.services.items()))

    def _section(self, service: tuple[str, str]) -> str:
        name, habit = service
        program = [sys.executable, "-I", "-S", str(HERE / "habits.py")]
        command = json.dumps([*program, PROGRAMS.get(habit, habit), str(self.folder)])
        keys = HABITS[habit].keys.replace("{name}", name)
        follow = str(follows(name)).lower()
        needs = ", ".join(f"{need} = {{ restart = {follow} }}" for need in NEEDS.get(name, ()))
        return (
            f'\n[[service]]\nname = "{name}"\ncmd = {command}\n{keys}\ndepends_on = {{ {needs} }}\n'
        )

    # --- the registry's lives ---------------------------------------------------------------------

    def start(self, point: str = "") -> subprocess.Popen[bytes]:
        """Start the registry, always by the same command; `point` is where it is to die."""
        with self.errors.open("ab") as errors:
            self.daemon = subprocess.Popen(
                [sys.executable, str(HERE / "launcher.py"), "--config", str(self.configuration)],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), VARIABLE: point},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        return self.daemon

    def is_up(self) -> bool:
        """Whether the registry runs; one that ended by itself is an error."""
        if self.daemon is None or (status := self.daemon.poll()) == -signal.SIGKILL:
            return False
        if status is not None:
            raise AssertionError(f"the registry ended by itself, status {status}:\n{self.said()}")
        return True

    def kill(self) -> None:
        """End the registry as a crash would."""
        if self.daemon is not None:
            self.daemon.kill()
            self.daemon.wait(DEADLINE_S)

    def end(self) -> int | None:
        """End the registry orderly; its exit status, None where it does not end in time."""
        assert self.daemon is not None
        self.daemon.terminate()
        try:
            return self.daemon.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            return None

    def kill_keeper(self) -> bool:
        """End the keeper as a crash would; whether there was one."""
        return _kill(self._with_argument(self.folder / "var" / "keeper.sock"))

    def _with_argument(self, path: Path) -> list[int]:
        wanted = os.fsencode(path)
        return [pid for pid in _pids() if wanted in _read(pid, "cmdline").split(b"\0")]

    def said(self, lines: int = 15) -> str:
        """The last lines of the registry's own log."""
        text = self.errors.read_text(errors="replace") if self.errors.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    # --- what is there ----------------------------------------------------------------------------

    def processes(self) -> list[Seen]:
        """Every living process that belongs to a service of this folder."""
        return [seen for pid in _pids() if (seen := self._seen(pid)) is not None]

    def _seen(self, pid: int) -> Seen | None:
        variables = dict(
            variable.partition(b"=")[::2] for variable in _read(pid, "environ").split(b"\0")
        )
        if variables.get(b"CIRCLEOSD_SOCKET") != os.fsencode(self.socket):
            return None
        text = _read(pid, "stat").decode(errors="replace")
        if not text:
            return None
        comm = text[text.index("(") + 1 : text.rindex(")")]
        state, _parent, _group, session, *rest = text[text.rindex(")") + 2 :].split()
        if state in "ZX":
            return None
        _id, service, run, *_command = variables[b"CIRCLEOSD_RUN"].decode().split("/")
        return Seen(pid, int(rest[15]), int(session), comm, service, int(run))

    def lines(self, name: str) -> list[str]:
        """The lines of a file that services wrote."""
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def executions(self, service: str) -> list[str]:
        """A line "MARK PID TICK" for each time that a service was executed."""
        return self.lines(f"ran/{service}")

    # --- the end ----------------------------------------------------------------------------------

    def clean_up(self) -> None:
        """Leave nothing running, not even a registry whose start was interrupted."""
        self.kill()
        wait_for(lambda: not self._kill_left(), "nothing is left running")

    def _kill_left(self) -> bool:
        registries = _kill(self._with_argument(self.configuration))
        services = _kill([seen.pid for seen in self.processes()])
        return self.kill_keeper() or services or registries


def wait_for(is_so: Callable[[], Any], what: str, timeout_s: float = DEADLINE_S) -> Any:
    """Wait until a condition of the outside world holds; its value."""
    deadline = time.monotonic() + timeout_s
    while not (value := is_so()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.01)
    return value


def _kill(pids: list[int]) -> bool:
    """End them as a crash would; whether there were any."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(pids)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
