"""A registry that answers as it is told, and circlectl run against it."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

Run = Callable[..., "Ended"]


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


class Refusal(NamedTuple):
    """An answer of the kind `ok: false`."""

    code: str
    message: str
    data: Any = None


class Stream(NamedTuple):
    """Pages, after which the connection is closed, or stays open until the registry ends."""

    pages: list[Any]
    stays: bool = False


class FakeRegistry:
    """Listens on a socket; `answers` has for an action what to answer, the last of them for good."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.answers: dict[str, list[Any]] = {"version": [{"degraded_since": None}]}
        self.requests: list[dict[str, Any]] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        """End like a registry does: no socket is left."""
        os.unlink(self.path)
        self._closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def asked(self, action: str) -> list[dict[str, Any]]:
        """The parameters of every request for `action`."""
        return [request for request in self.requests if request["action"] == action]

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, client.makefile("rwb") as lines:
                self._converse(lines)

    def _converse(self, lines: Any) -> None:
        for line in lines:
            request = json.loads(line)
            id_ = {"id": request.pop("id")} if "id" in request else {}
            self.requests.append(request)
            queue = self.answers[request["action"]]
            answer = queue.pop(0) if len(queue) > 1 else queue[0]
            if isinstance(answer, Stream):
                for page in answer.pages:
                    _send(lines, {"ok": True, "data": page})
                if answer.stays:
                    self._closing.wait()
                return
            _send(lines, _envelope(answer) | id_)


def _envelope(answer: Any) -> dict[str, Any]:
    if isinstance(answer, Refusal):
        return {"ok": False, "error": answer._asdict()}
    return {"ok": True, "data": answer}


def _send(lines: Any, message: dict[str, Any]) -> None:
    lines.write(json.dumps(message).encode() + b"\n")
    lines.flush()


@pytest.fixture
def refusal() -> type[Refusal]:
    return Refusal


@pytest.fixture
def stream() -> type[Stream]:
    return Stream


@pytest.fixture
def listen(short_dir: Path) -> Iterator[Callable[[], FakeRegistry]]:
    """Start a registry on the socket; it can be closed and started again."""
    made: list[FakeRegistry] = []

    def start() -> FakeRegistry:
        made.append(FakeRegistry(str(short_dir / "s")))
        return made[-1]

    yield start
    for fake in made:
        if Path(fake.path).exists() and fake is made[-1]:
            fake.close()


@pytest.fixture
def fake(listen: Callable[[], FakeRegistry]) -> FakeRegistry:
    return listen()


@pytest.fixture
def circlectl(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Run:
    """Run circlectl in this process, by default against the socket of `fake`."""
    from circlectl import cli

    monkeypatch.setenv("CIRCLEOSD_SOCKET", str(short_dir / "s"))
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["circlectl", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Ended(int(ended.value.code or 0), *capfd.readouterr())

    return run


@pytest.fixture
def record() -> Callable[..., dict[str, Any]]:
    """A service record, changed where the test says so."""

    def make(name: str = "web", **changes: Any) -> dict[str, Any]:
        return {
            "name": name,
            "status": "Running",
            "since": "2026-01-02T03:04:05.678901Z",
            "reason": "ready",
            "wanted": "up",
            "pid": 4711,
            "run": 3,
            "health": None,
            "restarts": 2,
            "waiting_for": None,
            "next_restart_at": None,
            "message": None,
            **changes,
        }

    return make


@pytest.fixture
def event() -> Callable[..., dict[str, Any]]:
    """An event record, changed where the test says so."""

    def make(seq: int, **changes: Any) -> dict[str, Any]:
        return {
            "seq": seq,
            "at": "2026-01-02T03:04:05.678901Z",
            "service": "web",
            "run": 3,
            "type": "became_ready",
            "source": "Starting",
            "dest": "Running",
            "reason": "ready",
            "cause": None,
            "decision": seq,
            "actor": None,
            "data": {},
            **changes,
        }

    return make


@pytest.fixture
def screen_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let circlectl believe that it writes to a terminal of so many columns."""

    def set_up(columns: int, **environment: str) -> None:
        monkeypatch.setattr("circlectl.session.standard", lambda: _screen(columns, environment))

    return set_up


def _screen(columns: int, environment: dict[str, str]) -> Any:
    from circlectl.screen import Screen

    class Terminal:
        encoding = environment.pop("ENCODING", "utf-8")

        def isatty(self) -> bool:
            return True

    return Screen(Terminal(), {"COLUMNS": str(columns), **environment})  # type: ignore[arg-type]
