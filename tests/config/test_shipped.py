"""The file that is shipped is valid, and the programs that it runs do what their checks ask for."""

from __future__ import annotations

import json
import select
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from registry.config import load
from registry.validate import machine_complaints

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "etc" / "examples"
PATIENCE_S = 8

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start Python among the examples; whatever still runs at the end is killed."""
    running: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str | Path, env: dict[str, str] | None = None):
        command = [sys.executable, *arguments]
        process = subprocess.Popen(
            command,
            bufsize=0,
            cwd=EXAMPLES,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[bytes]) -> str:
    """The next line of its output, which is not buffered: `select` sees all there is."""
    stream: IO[bytes] | None = process.stdout
    assert stream is not None
    assert select.select([stream], [], [], PATIENCE_S)[0]
    return stream.readline().decode()


def stop(process: subprocess.Popen[bytes]) -> int:
    """Ask it to end; its exit code."""
    process.send_signal(signal.SIGTERM)
    return process.wait(PATIENCE_S)


def test_the_file_is_valid_and_every_program_is_there():
    config = load(ROOT / "etc" / "services.toml")
    assert [each.name for each in config.definitions] == ["web", "echo", "worker", "beat"]
    schemes = [each.checks[0].target.partition(":")[0] for each in config.definitions]
    assert schemes == ["http", "unix", "cmd", "heartbeat"]
    assert machine_complaints(config, {"PATH": str(Path(sys.executable).parent)}) == ()


def test_echo_takes_over_a_stale_socket_answers_and_ends_at_once(start: Start, short_dir: Path):
    path = short_dir / "run" / "echo.sock"
    crashed = start("echo.py", path)
    assert line(crashed) == f"listening on {path}\n"
    crashed.kill()
    crashed.wait()
    assert path.exists()

    echo = start("echo.py", path)
    assert line(echo) == f"listening on {path}\n"
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE_S)
        client.connect(str(path))
        client.sendall(b"hello\n")
        assert client.recv(99) == b"hello\n"
        second = start("echo.py", path)
        assert second.wait(PATIENCE_S) == 1
        assert stop(echo) == 0
    assert not path.exists()


def test_echo_ends_well_when_somebody_removed_its_socket(start: Start, short_dir: Path):
    echo = start("echo.py", short_dir / "e")
    line(echo)
    (short_dir / "e").unlink()
    assert stop(echo) == 0


def test_the_worker_s_check_tells_a_note_that_is_fresh_from_one_that_is_not(
    start: Start, tmp_path: Path
):
    note = tmp_path / "run" / "note"
    worker = start("worker.py", note)
    assert line(worker) == "worked 0 times\n"
    assert start("worker.py", note, "60").wait(PATIENCE_S) == 0
    assert start("worker.py", note, "0").wait(PATIENCE_S) == 1
    assert stop(worker) == 0


def test_beat_says_that_it_is_well_as_soon_as_it_runs(start: Start, short_dir: Path):
    path = short_dir / "r.sock"
    with socket.socket(socket.AF_UNIX) as registry:
        registry.settimeout(PATIENCE_S)
        registry.bind(str(path))
        registry.listen()
        beat = start("beat.py", "me", env={"CIRCLEOSD_SOCKET": str(path)})
        client, _ = registry.accept()
        with client, client.makefile("rw") as stream:
            assert json.loads(stream.readline()) == {"action": "heartbeat", "service": "me"}
            stream.write('{"ok": false, "error": "x"}\n')
        assert line(beat).startswith("a heartbeat every")
        assert line(beat).startswith("heartbeat refused")
    assert stop(beat) == 0


def test_beat_outlives_a_registry_that_is_away(start: Start, short_dir: Path):
    beat = start("beat.py", "me", env={"CIRCLEOSD_SOCKET": str(short_dir / "none")})
    line(beat)
    assert line(beat).startswith("no registry at")
    assert beat.poll() is None
    assert stop(beat) == 0


def test_the_web_server_serves_the_examples_and_nothing_else_of_the_checkout(start: Start):
    (web,) = (each for each in load(ROOT / "etc/services.toml").definitions if each.name == "web")
    _, *arguments, _ = (word.replace("etc/examples", ".") for word in web.cmd)
    assert "etc/examples" in web.cmd
    assert web.checks[0].target == f"http://127.0.0.1:{web.cmd[-1]}/"
    url = line(start(*arguments, "0")).split("(")[1].split(")")[0]
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
        assert b"echo.py" in answer.read()
