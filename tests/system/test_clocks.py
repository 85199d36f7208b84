"""Clocks that jump, time that nobody watched, and want of descriptors or processes: no service pays for it."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.platform("linux")

SLEEP = 'cmd = ["sleep", "1000"]'
DAY_S = 86_400
# The wall clock alone is as far off as the file `offset` says, in seconds; whoever reads it is in this process.
OFF = """
import time
real_ns = time.time_ns

def time_ns():
    try:
        with open("offset") as file:
            return real_ns() + int(file.read() or 0) * 1_000_000_000
    except FileNotFoundError:
        return real_ns()

time.time_ns = time_ns
time.time = lambda: time_ns() / 1e9
from registry.__main__ import main
main()
"""


def service(name: str, keys: str) -> str:
    return f'[[service]]\nname = "{name}"\n{keys}\n'


def jump(box, offset_s: int) -> None:
    fresh = box.folder / "offset.new"
    fresh.write_text(str(offset_s))
    fresh.replace(box.folder / "offset")


def start_off(box) -> int:
    return box.start(program=(str(box.program("off", OFF)),))


def rows(box, columns: str) -> list[tuple[int, ...]]:
    with contextlib.closing(sqlite3.connect(box.journal)) as connection:
        return connection.execute(f"SELECT {columns} FROM events ORDER BY seq").fetchall()


# --- the wall clock -------------------------------------------------------------------------------


@pytest.mark.parametrize("offset_s", [-DAY_S, 10 * DAY_S], ids=["a day back", "ten days forth"])
def test_a_clock_that_jumps_changes_no_timer(box, offset_s):
    """Neither restart delays, start timeouts, nor checks and heartbeats."""
    delay = 'restart = { delay = "400ms", delay_max = "400ms" }'
    never = 'health_check = { target = "cmd:false", interval = "1m" }'
    asked = 'health_check = { target = "cmd:sh -c \'echo >>asked\'", interval = "100ms" }'
    beat = 'health_check = { target = "heartbeat:", interval = "1m" }'
    far = 'restart = { delay = "1h", delay_max = "1h" }'
    box.configure(
        service("loop", f'cmd = ["false"]\n{delay}')
        + service("late", f'{SLEEP}\n{never}\nstart_timeout = "1500ms"\nrestart = "Never"')
        + service("asked", f"{SLEEP}\n{asked}")
        + service("beat", f"{SLEEP}\n{beat}")
        + service("far", f'cmd = ["false"]\n{far}')
    )
    start_off(box)
    box.data("heartbeat", service="beat")
    for name in ("asked", "beat"):
        box.wait_status(name, "Running", health="healthy")
    box.wait_status("far", "Restarting", reason="crash_looping")
    began_s, seq = time.monotonic(), box.verify()
    loops, asks = len(box.events("loop", "exited")), len(box.lines("asked"))
    jump(box, offset_s)
    box.wait_status("late", "Failed", reason="start_timeout")
    lasted_s = time.monotonic() - began_s
    spawned, timed_out = (box.last("late", type) for type in ("spawned", "start_timed_out"))
    assert 1.49 < (mono_s(box, timed_out["seq"]) - mono_s(box, spawned["seq"])) < 3
    assert 1 <= len(box.events("loop", "exited")) - loops <= lasted_s / 0.4 + 1
    assert 3 <= len(box.lines("asked")) - asks <= lasted_s / 0.1 + 1
    assert [event for event in box.events(type="became_unhealthy") if event["seq"] > seq] == []
    assert box.service("far")["status"] == "Restarting", "an hour has not passed"
    assert box.service("beat")["health"] == "healthy"
    box.verify()
    numbers = rows(box, "seq, mono_ns")
    assert [number for number, _mono in numbers] == list(range(1, len(numbers) + 1))
    assert [mono for _seq, mono in numbers] == sorted(mono for _seq, mono in numbers)
    times = [at for (at,) in rows(box, "at_ns")]
    assert (times[-1] - times[0]) / 1e9 == pytest.approx(offset_s, abs=30), "people see the jump"


def mono_s(box, seq: int) -> float:
    return next(mono for number, mono in rows(box, "seq, mono_ns") if number == seq) / 1e9


@pytest.mark.parametrize("offset_s", [-DAY_S, 10 * DAY_S], ids=["a day back", "ten days forth"])
def test_a_clock_that_jumps_while_the_registry_is_down_changes_no_timer(box, offset_s):
    far = 'restart = { delay = "1h", delay_max = "1h" }'
    near = 'restart = { delay = "1s", delay_max = "1s" }'
    box.configure(
        service("far", f'cmd = ["false"]\n{far}')
        + service("near", f'cmd = ["false"]\n{near}')
        + service("up", SLEEP)
    )
    start_off(box)
    pid = box.wait_status("up", "Running")["pid"]
    for name in ("far", "near"):
        box.wait_status(name, "Restarting", reason="crash_looping")
    runs, began_s = box.service("near")["run"], time.monotonic()
    box.kill()
    jump(box, offset_s)
    start_off(box)
    box.wait_for(lambda: box.service("near")["run"] > runs, "its second is over")
    assert time.monotonic() - began_s < 5
    assert box.service("far")["status"] == "Restarting"
    assert (box.service("up")["pid"], box.service("up")["run"]) == (pid, 1)
    box.verify()


def test_a_journal_whose_times_jump_is_replayed_in_its_order(box):
    box.configure(service("app", SLEEP))
    start_off(box)
    box.wait_status("app", "Running")
    jump(box, -DAY_S)
    box.data("stop", service="app", wait=True)
    jump(box, 10 * DAY_S)
    box.data("start", service="app", wait=True)
    types = box.types("app")
    assert box.stop() == 0
    done = subprocess.run(
        [sys.executable, "-m", "circle_replay", str(box.journal), "--service", "app", "--json"],
        check=False,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["type"] for event in events][: len(types)] == types
    assert [event["seq"] for event in events] == sorted(event["seq"] for event in events)


# --- time that nobody watched ---------------------------------------------------------------------


@contextlib.contextmanager
def standing_still(box, for_s: float) -> Iterator[None]:
    """The registry stopped, as by a debugger or a machine that stalls, for so long."""
    began_s = time.monotonic()
    box.daemon.send_signal(signal.SIGSTOP)
    stat = Path(f"/proc/{box.daemon.pid}/stat")
    box.wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "it stands still")
    try:
        yield
        time.sleep(max(0.0, for_s - (time.monotonic() - began_s)))
    finally:
        box.daemon.send_signal(signal.SIGCONT)


def test_a_start_timeout_that_passed_while_nobody_watched_is_not_charged(box):
    """It became ready meanwhile, but nobody was there to ask."""
    check = 'health_check = { target = "cmd:test -e ready", interval = "50ms" }'
    box.configure(service("app", f'{SLEEP}\n{check}\nstart_timeout = "900ms"'))
    box.start()
    box.wait_status("app", "Starting")
    with standing_still(box, 1.7):
        (box.folder / "ready").touch()
    box.wait_status("app", "Running", run=1)
    assert box.events("app", "start_timed_out") == []


def test_a_start_timeout_still_ends_what_is_not_ready_when_it_is_watched_again(box):
    check = 'health_check = { target = "cmd:false", interval = "50ms" }'
    box.configure(service("app", f'{SLEEP}\n{check}\nstart_timeout = "700ms"\nrestart = "Never"'))
    box.start()
    box.wait_status("app", "Starting")
    with standing_still(box, 1.4):
        pass
    box.wait_status("app", "Failed", reason="start_timeout")


def test_checks_and_heartbeats_are_not_charged_with_it(box):
    """One attempt is under way all the time, and would be over its limit; beats wait in the socket."""
    slow = 'health_check = { target = "cmd:sleep 0.2", interval = "10ms", timeout = "400ms", failures = 1 }'
    beat = 'health_check = { target = "heartbeat:", interval = "150ms", timeout = "150ms", failures = 1 }'
    text = """
import os, socket, time
client = socket.socket(socket.AF_UNIX)
client.connect(os.environ["CIRCLEOSD_SOCKET"])
while True:
    client.sendall(b'{"action":"heartbeat","service":"beat"}\\n')
    time.sleep(0.05)
"""
    box.configure(
        service("slow", f"{SLEEP}\n{slow}")
        + service("beat", f"cmd = {box.python('beat', text)}\n{beat}")
    )
    box.start()
    for name in ("slow", "beat"):
        box.wait_status(name, "Running", health="healthy")
    seq = box.verify()
    with standing_still(box, 1.5):
        pass
    box.wait_for(lambda: box.data("health"), "it answers")
    seen = box.data("health")
    box.wait_for(lambda: later(box.data("health"), seen), "all are asked again")
    for name in ("slow", "beat"):
        record = box.service(name)
        assert (record["status"], record["run"], record["health"]) == ("Running", 1, "healthy")
    assert [event for event in box.events(type="became_unhealthy") if event["seq"] > seq] == []


def later(now: list[dict], before: list[dict]) -> bool:
    """Whether each check was made again since."""
    pairs = zip(now, before, strict=True)
    return all(new["checks"][0]["last_at"] != old["checks"][0]["last_at"] for new, old in pairs)


def test_exits_while_it_stood_still_are_all_seen(box):
    names = [f"s{number}" for number in range(10)]
    command = (
        'cmd = ["sh", "-c", "while ! test -e go; do sleep 0.02; done; exit 3"]\nrestart = "Never"'
    )
    box.configure("".join(service(name, command) for name in names))
    box.start()
    pids = [box.wait_status(name, "Running")["pid"] for name in names]
    with standing_still(box, 0.1):
        (box.folder / "go").touch()
        box.wait_for(lambda: not any(map(box.is_running, pids)), "all have ended")
    for name in names:
        box.wait_status(name, "Failed", reason="exit_code")
        assert box.last(name, "exited")["data"]["exit_code"] == 3


# --- want of descriptors and processes --------------------------------------------------------------


class Client:
    """One connection for all its questions: it needs no new descriptor of the registry."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10)
        self._socket.connect(str(path))
        self._answers = self._socket.makefile("rb")

    def data(self, action: str, **parameters: object) -> object:
        line = json.dumps({"action": action, **parameters})
        self._socket.sendall(line.encode() + b"\n")
        answer = json.loads(self._answers.readline())
        assert answer["ok"], answer
        return answer["data"]

    def service(self, name: str) -> dict:
        records = self.data("list_services")
        assert isinstance(records, list)
        return next(record for record in records if record["name"] == name)

    def close(self) -> None:
        self._answers.close()
        self._socket.close()


@pytest.fixture
def client(box) -> Iterator[Client]:
    box.configure(
        service("app", f'{SLEEP}\nenv_file = "env"\nautostart = false')
        + service("other", SLEEP)
        + service(
            "unix",
            f"cmd = {box.python('unix', LISTENS)}\n"
            'health_check = { target = "unix:here", interval = "50ms", failures = 2 }',
        )
        + service(
            "cmd",
            f'{SLEEP}\nhealth_check = {{ target = "cmd:true", interval = "50ms", failures = 2 }}',
        )
    )
    (box.folder / "env").write_text("A=1\n")
    box.start(program=(str(box.program("short", SHORT)),))
    for name in ("other", "unix", "cmd"):
        box.wait_status(name, "Running")
    made = Client(box.socket)
    made.data("version")  # so that it has been accepted
    yield made
    made.close()


LISTENS = """
import socket
server = socket.socket(socket.AF_UNIX)
server.bind("here")
server.listen(100)
while True:
    server.accept()[0].close()
"""
# The machine has no more processes to give while there is a file `none`.
SHORT = """
import errno, os
from registry.host import gate
posix_spawn = gate.posix_spawn

def spawn_or_fail(*arguments, **more):
    if os.path.exists("none"):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return posix_spawn(*arguments, **more)

gate.posix_spawn = spawn_or_fail
from registry.__main__ import main
main()
"""


@contextlib.contextmanager
def no_descriptors(box) -> Iterator[None]:
    """The registry may open no more than it has."""
    pid = box.daemon.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def no_processes(box) -> Iterator[None]:
    (box.folder / "none").touch()
    try:
        yield
    finally:
        (box.folder / "none").unlink()


@pytest.mark.parametrize("want", [no_descriptors, no_processes])
def test_a_start_for_which_there_is_no_room_fails_alone_and_is_tried_again(box, client, want):
    """The others run on, and their checks, which cannot be made either, say nothing about them."""
    before = {name: client.service(name)["pid"] for name in ("other", "unix", "cmd")}
    with want(box):
        client.data("start", service="app")
        record = box.wait_for(lambda: has_failed(client, "app"), "it cannot be started")
        assert record["next_restart_at"] is not None
        failed = client.data("events", service="app", type="spawn_failed")
        assert failed[-1]["reason"] == "no_resources"
        began_s = time.monotonic()
        box.wait_for(lambda: time.monotonic() > began_s + 0.4, "several checks were due")
        for name, pid in before.items():
            assert (client.service(name)["pid"], client.service(name)["status"]) == (pid, "Running")
        assert client.data("events", type="became_unhealthy") == []
    box.wait_for(lambda: client.service("app")["status"] == "Running", "room is there again")
    assert client.service("app")["run"] == 1
    assert client.data("events", type="became_unhealthy") == []
    assert {name: client.service(name)["pid"] for name in before} == before
    assert "Traceback" not in box.errors.read_text()


def has_failed(client: Client, name: str) -> dict | None:
    record = client.service(name)
    return record if record["status"] == "Restarting" else None


def test_an_exit_while_there_are_no_descriptors_is_seen(box, client):
    """What cannot be looked at is not taken for gone; it is restarted when there is room."""
    pid = client.service("other")["pid"]
    with no_descriptors(box):
        subprocess.run(["kill", "-9", str(pid)], check=True)
        box.wait_for(lambda: client.service("other")["pid"] != pid, "its end is seen")
    box.wait_for(
        lambda: (
            (client.service("other")["status"], client.service("other")["run"]) == ("Running", 2)
        ),
        "it is restarted",
    )
    exited = client.data("events", service="other", type="exited")
    assert isinstance(exited, list)
    assert exited[-1]["data"]["signal"] == 9
    assert "Traceback" not in box.errors.read_text()
