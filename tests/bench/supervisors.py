"""What the bench asks of every supervisor; the registry itself, and the floor that is no supervisor but a loop in C."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import registry
from tests.bench import processes
from tests.bench.client import Client
from tests.bench.figures import FLOOR, KEEPING_FLOOR, OURS

ROOT = Path(__file__).resolve().parents[2]
FAST, DEFAULT = "fast", "default"
"""How a supervisor is configured: the quickest restart that it allows, or its own defaults with "always restart"."""

Query = Callable[[], int]
"""One question for the state of every service; how many services the answer tells of."""


class Service(NamedTuple):
    """One service: a name and what is executed. `keys` are further lines of its definition, of the registry only."""

    name: str
    command: list[str]
    keys: str = ""


class Supervisor:
    """One that can be measured. A life of it has a `folder` of its own, and begins with `prepare`."""

    name = ""
    services_max = 100_000
    restarts_by_tick = False
    """It looks every second or less often: then samples are killed at random, and few of them are enough."""

    def __init__(self) -> None:
        self.folder = Path()
        self.process: subprocess.Popen[bytes] | None = None

    def trouble(self) -> str | None:
        """Why it cannot be measured here; None where it can."""
        return None

    def version(self) -> str:
        """Of the program that is measured."""
        return ""

    def prepare(self, services: list[Service], profile: str) -> None:
        """Write its configuration into `folder`. No log is kept."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """The daemon, in the foreground where it can."""
        raise NotImplementedError

    def status(self) -> list[str] | None:
        """The command that shows every service."""
        return None

    def query(self) -> Query | list[str] | None:
        """The same asked as its own protocol allows; or a program that prints {"us": [...], "n": N}."""
        return None

    def environment(self) -> dict[str, str]:
        """What the daemon and its commands are given."""
        return dict(os.environ)

    def start(self) -> None:
        """Execute the daemon."""
        self.process = processes.spawn(self.command(), self.folder, self.environment())

    def main_pid(self) -> int:
        """The daemon's."""
        assert self.process is not None
        return self.process.pid

    def ask_to_stop(self) -> None:
        """Ask for an orderly end of everything; does not wait."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.main_pid(), signal.SIGTERM)

    def said(self, characters: int = 400) -> str:
        """The last of what it printed."""
        with contextlib.suppress(OSError):
            return (self.folder / "said").read_text(errors="replace")[-characters:]
        return ""

    def write(self, name: str, text: str, mode: int = 0o644) -> Path:
        """Write a file of its configuration."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path


def installed(variable: str, name: str) -> str:
    """The program that an environment variable names, or the one of that name on PATH; "" where there is none."""
    named = os.environ.get(variable)
    folders = [named] if named else os.environ.get("PATH", "").split(":")
    for folder in folders:
        path = Path(folder) / name
        if os.access(path, os.X_OK):
            return str(path)
    return ""


def printed(command: list[str]) -> str:
    """What a command prints, or why it cannot be run."""
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (done.stdout or done.stderr).strip()


class Registry(Supervisor):
    """Ourselves, of this checkout: journal on, durability full. `head` is further configuration."""

    name = OURS

    def __init__(self, head: str = "", logs: bool = False) -> None:
        super().__init__()
        self._head = head
        self._logs = logs
        self._client: Client | None = None

    def version(self) -> str:
        return f"{registry.__version__}, Python {sys.version.split()[0]}"

    @property
    def socket(self) -> Path:
        """The control socket."""
        return self.folder / "s"

    @property
    def journal(self) -> Path:
        """The journal."""
        return self.folder / "var" / "registry.db"

    def prepare(self, services: list[Service], profile: str) -> None:
        policy = '"Always"'
        if profile == FAST:
            policy = '{ policy = "Always", delay = 0, delay_max = 0 }'
        head = (
            f'[registry]\nsocket = "{self.socket}"\n[journal]\npath = "{self.journal}"\n'
            'max_size = "unlimited"\n'
            f"[defaults]\nlogs = {str(self._logs).lower()}\nrestart = {policy}\n{self._head}\n"
        )
        sections = [
            f'[[service]]\nname = "{each.name}"\ncmd = {json.dumps(each.command)}\n{each.keys}\n'
            for each in services
        ]
        self.write("etc/services.toml", head + "".join(sections))

    def command(self) -> list[str]:
        configuration = str(self.folder / "etc" / "services.toml")
        return [sys.executable, "-P", "-m", "registry", "--config", configuration]

    def environment(self) -> dict[str, str]:
        # compiled once, as what is installed is, whatever the shell that we were called from prefers
        own = {
            name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
        }
        return {**own, "PYTHONPATH": str(ROOT)}

    def status(self) -> list[str]:
        # the command as it is installed; elsewhere the package lies beside us
        script = Path(sys.executable).with_name("circlectl")
        program = [str(script)] if script.exists() else [sys.executable, "-P", "-m", "circlectl"]
        return [*program, "--socket", str(self.socket), "list"]

    def query(self) -> Query:
        client = Client(str(self.socket))
        return lambda: client.ask(b'{"action":"list_services"}\n').count(b'"name":')


class Floor(Supervisor):
    """A loop of pidfd, vfork and exec in C: what the kernel alone costs; if it `keeps`, with gate and commit."""

    name = FLOOR

    def __init__(self, program: Path | None, *, keeps: bool = False) -> None:
        super().__init__()
        self._program = program
        self._keeps = keeps
        self._arguments: list[str] = []
        if keeps:
            self.name = KEEPING_FLOOR

    def trouble(self) -> str | None:
        return None if self._program else "no C compiler (cc)"

    def version(self) -> str:
        return "pidfd, vfork, exec in C" + (", a gate, two pages synced" if self._keeps else "")

    def prepare(self, services: list[Service], profile: str) -> None:
        _name, (program, _service, address, *_mode), _keys = services[0]
        kept = [str(self.folder / "journal")] if self._keeps else []
        self._arguments = [str(len(services)), program, address, *kept]

    def command(self) -> list[str]:
        return [str(self._program), *self._arguments]
