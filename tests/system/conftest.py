"""A real registry for each test that asks: its own folder, socket and journal, ended and cleaned up after."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

DEADLINE_S = 10.0


def wait_for(is_so: Callable[[], Any], what: str, timeout_s: float = DEADLINE_S) -> Any:
    """Wait until a condition of the outside world holds; its value."""
    deadline = time.monotonic() + timeout_s
    while not (value := is_so()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.01)
    return value


def is_running(pid: int) -> bool:
    """Whether a process executes (a zombie does not)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


class Box:
    """A folder with a configuration, and the registry that runs on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "s"
        self.journal = folder / "var" / "registry.db"
        self.errors = folder / "stderr"
        self.daemon: subprocess.Popen[bytes] | None = None
        (folder / "etc").mkdir()

    def configure(self, services: str, settings: str = "") -> Path:
        """Write etc/services.toml: the socket is set, the rest is as given."""
        path = self.folder / "etc" / "services.toml"
        path.write_text(f'[registry]\nsocket = "{self.socket}"\n{settings}\n{services}')
        return path

    def start(self, *arguments: str, program: tuple[str, ...] = ("-m", "registry"), **environment: str) -> int:
        """Start the registry and wait until it answers; its pid."""
        with self.errors.open("ab") as errors:
            self.daemon = subprocess.Popen(
                [sys.executable, *program, "--config", "etc/services.toml", *arguments],
                cwd=self.folder,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stderr=errors,
            )
        wait_for(lambda: self._answers() or self.daemon.poll() is not None, "the registry answers")
        assert self.daemon.poll() is None, self.errors.read_text()
        return self.daemon.pid

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(self.ask("version"))
        return False

    def ask(self, action: str, **parameters: Any) -> Any:
        """One request on a connection of its own; the whole answer."""
        return self.send(json.dumps({"action": action, **parameters}).encode() + b"\n")

    def send(self, line: bytes) -> Any:
        """One line on a connection of its own; the answer that comes back."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(DEADLINE_S * 2)
            client.connect(str(self.socket))
            client.sendall(line)
            with client.makefile("rb") as answers:
                return json.loads(answers.readline())

    def data(self, action: str, **parameters: Any) -> Any:
        """The data of an answer that has to be well."""
        answer = self.ask(action, **parameters)
        assert answer["ok"], answer
        return answer["data"]

    def service(self, name: str) -> dict[str, Any]:
        """The record of one service."""
        return next(record for record in self.data("list_services") if record["name"] == name)

    def wait_status(self, name: str, status: str, **also: Any) -> dict[str, Any]:
        """Wait until a service has a status (and further values); its record."""

        def is_so() -> dict[str, Any] | None:
            record = self.service(name)
            wanted = {"status": status, **also}
            return record if all(record[key] == value for key, value in wanted.items()) else None

        return wait_for(is_so, f"{name} is {status} {also}")

    def events(self, service: str | None = None) -> list[dict[str, Any]]:
        """All events, of one service where named."""
        return self.data("events", service=service)

    def log(self, name: str) -> str:
        """What a service has written so far."""
        path = self.folder / "var" / "log" / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def stop(self) -> int:
        """End the registry orderly; its exit status."""
        assert self.daemon is not None
        self.daemon.terminate()
        return self.daemon.wait(DEADLINE_S * 2)

    def kill(self) -> None:
        """End the registry as a crash would."""
        assert self.daemon is not None
        self.daemon.kill()
        self.daemon.wait(DEADLINE_S)

    def clean_up(self) -> None:
        """Leave nothing running: the registry, its keeper, and whatever has its mark."""
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.terminate()
            try:
                self.daemon.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                self.daemon.kill()
                self.daemon.wait(DEADLINE_S)
        for pid in self._left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not self._left(), "nothing is left")

    def _left(self) -> list[int]:
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._is_mine(pid)]

    def _is_mine(self, pid: int) -> bool:
        here = str(self.folder)
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            command = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            return False
        ours = f"CIRCLEOSD_SOCKET={self.socket}".encode() in environment.split(b"\0")
        return (ours or here in command) and pid != os.getpid() and is_running(pid)


@pytest.fixture
def box(short_dir: Path) -> Iterator[Box]:
    """A folder with a registry to be."""
    made = Box(short_dir)
    yield made
    made.clean_up()
