"""A real registry for each test that asks: its own folder, socket and journal, ended and cleaned up after."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.journal.opening import open_for_reading
from registry.journal.read import verify

DEADLINE_S = 10.0
LINES_TOLD = 60
ROOT = Path(__file__).parents[2]


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

    wait_for = staticmethod(wait_for)
    is_running = staticmethod(is_running)

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

    def program(self, name: str, text: str) -> Path:
        """Write a Python program beside the configuration; its path."""
        path = self.folder / f"{name}.py"
        path.write_text(text)
        return path

    def python(self, name: str, text: str) -> str:
        """The `cmd` of a service that is this Python program: standard library only, so that it starts fast."""
        return json.dumps([sys.executable, "-I", "-S", str(self.program(name, text))])

    def spawn(
        self,
        *arguments: str,
        program: tuple[str, ...] = ("-m", "registry"),
        stderr: Any = None,
        **environment: str,
    ) -> subprocess.Popen[bytes]:
        """A process of the registry in this folder, whatever becomes of it."""
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        with self.errors.open("ab") as errors:
            return subprocess.Popen(
                [sys.executable, *program, *arguments],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": path, **environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors if stderr is None else stderr,
            )

    def start(self, *arguments: str, **how: Any) -> int:
        """Start the registry and wait until it answers; its pid."""
        daemon = self.daemon = self.spawn("--config", "etc/services.toml", *arguments, **how)
        wait_for(lambda: self._answers() or daemon.poll() is not None, "the registry answers")
        assert daemon.poll() is None, self.errors.read_text()
        return daemon.pid

    def run(self, *arguments: str, **environment: Any) -> tuple[int, str]:
        """Run the registry where it is expected to end by itself: its exit status, and its stderr."""
        process = self.spawn(*arguments, stderr=subprocess.PIPE, **environment)
        try:
            _, errors = process.communicate(timeout=DEADLINE_S)
        finally:
            process.kill()
            process.communicate()
        return process.returncode, errors.decode()

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

    def wait_said(self, text: str) -> None:
        """Wait until the registry's log holds a text: it is written beside what it tells of, not before."""
        self.wait_for(lambda: text in self.errors.read_text(), f"the log says {text!r}")

    def wait_status(self, name: str, status: str, **also: Any) -> dict[str, Any]:
        """Wait until a service has a status (and further values); its record."""

        def is_so() -> dict[str, Any] | None:
            record = self.service(name)
            wanted = {"status": status, **also}
            return record if all(record[key] == value for key, value in wanted.items()) else None

        return wait_for(is_so, f"{name} is {status} {also}")

    def events(self, service: str | None = None, type: str | None = None) -> list[dict[str, Any]]:
        """All events, of one service or type where named."""
        return self.data("events", service=service, type=type)

    def last(self, service: str, type: str) -> dict[str, Any]:
        """The latest event of a type."""
        return self.events(service, type)[-1]

    def types(self, service: str) -> list[str]:
        """The types of a service's events, in order."""
        return [event["type"] for event in self.events(service)]

    def verify(self) -> int:
        """Check the whole journal; the number of its last event."""
        connection = open_for_reading(self.journal)
        try:
            verdict = verify(connection)
        finally:
            connection.close()
        assert verdict.trouble is None, verdict.trouble
        return verdict.seq

    def stream(self, action: str, **parameters: Any) -> Iterator[Any]:
        """The pages of an action with `follow`; close the generator to end it."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(DEADLINE_S)
            client.connect(str(self.socket))
            client.sendall(
                json.dumps({"action": action, "follow": True, **parameters}).encode() + b"\n"
            )
            with client.makefile("rb") as answers:
                for line in answers:
                    answer = json.loads(line)
                    assert answer["ok"], answer
                    yield answer["data"]

    def lines(self, name: str) -> list[str]:
        """The lines of a file that a service of this folder wrote."""
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def wait_lines(self, name: str, count: int) -> list[str]:
        """Wait until a file has so many lines; those that it has then."""
        wait_for(lambda: len(self.lines(name)) >= count, f"{count} lines in {name}")
        return self.lines(name)

    def keeper_pid(self) -> int:
        """The keeper of this folder: the process whose command line names its socket."""
        wanted = str(self.folder / "var" / "keeper.sock").encode()

        def found() -> int | None:
            pids = filter(str.isdigit, os.listdir("/proc"))
            return next((int(pid) for pid in pids if wanted in _words(int(pid))), None)

        return int(wait_for(found, "a keeper runs"))

    def kill_keeper(self) -> None:
        """End the keeper as a crash would, and wait until the registry has another, that holds the same."""
        assert self.daemon is not None
        before = self.keeper_pid()
        held = _open_files(before) & _open_files(self.daemon.pid)
        os.kill(before, signal.SIGKILL)
        wait_for(
            lambda: (now := self.keeper_pid()) != before and held <= _open_files(now),
            "another keeper holds what this one did",
        )

    def upgrade(self) -> None:
        """Ask for it, and wait until the next program of the same process answers."""
        before = self.data("version")["started_at"]
        self.data("upgrade")
        wait_for(lambda: self._began_after(before), "it has begun anew")

    def _began_after(self, before: str) -> bool:
        with contextlib.suppress(OSError, ValueError):  # an answer that never came: it had ended
            return bool(self.data("version")["started_at"] != before)
        return False

    def left(self) -> list[int]:
        """What runs of this folder's registry: services, their children, the keeper, the registry itself."""
        return [
            pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._is_mine(pid)
        ]

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
        if self.daemon is not None:
            self.daemon.kill()
            self.daemon.wait(DEADLINE_S)
        wait_for(lambda: not self._kill_left(), "nothing is left")

    def told(self) -> str:
        """What the registry said last, and the last of its journal."""
        said = self.errors.read_text().splitlines() if self.errors.exists() else []
        rows: list[str] = []
        with contextlib.suppress(sqlite3.Error, OSError):
            connection = sqlite3.connect(self.journal)
            found = connection.execute(
                "SELECT * FROM events ORDER BY seq DESC LIMIT ?", (LINES_TOLD,)
            )
            rows = [" ".join(map(str, row[:-1])) for row in found]
            connection.close()
        return "\n".join([*said[-LINES_TOLD:], *reversed(rows)])

    def _kill_left(self) -> list[int]:
        left = self.left()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return left

    def _is_mine(self, pid: int) -> bool:
        here = str(self.folder)
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            command = Path(f"/proc/{pid}/cmdline").read_text()
            command += os.readlink(f"/proc/{pid}/cwd")  # nginx writes its title over both
        except OSError:
            return False
        ours = f"CIRCLEOSD_SOCKET={self.socket}".encode() in environment.split(b"\0")
        return (ours or here in command) and pid != os.getpid() and is_running(pid)


def _words(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _open_files(pid: int) -> set[str]:
    """What the descriptors of a process are open on."""
    found = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.add(os.readlink(path))
    return found


_HAS_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let the fixtures of a test know that it has failed."""
    report = yield
    if report.failed:
        item.stash[_HAS_FAILED] = True
    return report


@pytest.fixture
def box(short_dir: Path, request: pytest.FixtureRequest) -> Iterator[Box]:
    """A folder with a registry to be. A test that fails shows what its registry said and did last."""
    made = Box(short_dir)
    yield made
    made.clean_up()
    if request.node.stash.get(_HAS_FAILED, False):
        print(made.told())


FAR = """
import os, time
from registry.__main__ import main

isdir = os.path.isdir

def is_folder(path):
    if path == "/far":
        print("asked", file=open("asked", "a"))
        while True:
            time.sleep(1)
    return isdir(path)

os.path.isdir = is_folder
main()
"""


@pytest.fixture
def far(box: Box) -> tuple[str]:
    """A registry for whose looks the folder /far never answers; each has a line in the file `asked`."""
    return (str(box.program("far", FAR)),)
