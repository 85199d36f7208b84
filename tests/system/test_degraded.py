"""The journal cannot be written for a while: services run on, commands are refused, and afterwards it is whole."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3

import pytest

SLEEP = 'cmd = ["sleep", "1000"]'
# The registry as it is, but it waits for a locked journal for 100 ms instead of 5 s.
HASTY = """
from registry.journal import journal
prepare = journal._prepare

async def hasty(writer, *arguments):
    await prepare(writer, *arguments)
    await writer.execute("PRAGMA busy_timeout = 100")

journal._prepare = hasty
from registry.__main__ import main
main()
"""


@contextlib.contextmanager
def unwritable(box):
    """Hold the journal's write lock."""
    connection = sqlite3.connect(box.journal, isolation_level=None)
    try:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")
    finally:
        connection.close()


@pytest.fixture
def hasty(box):
    def begin(services: str):
        box.configure(services)
        box.start(program=(str(box.program("hasty", HASTY)),))
        return box

    return begin


def service(name: str, keys: str = SLEEP) -> str:
    return f'[[service]]\nname = "{name}"\n{keys}\n'


def wait_written(box) -> None:
    box.wait_for(lambda: box.data("version")["degraded_since"] is None, "it writes again")


def test_commands_are_answered_outcome_unknown_and_then_refused_until_it_writes_again(hasty):
    box = hasty(service("a") + service("b"))
    pids = {name: box.wait_status(name, "Running")["pid"] for name in ("a", "b")}
    with unwritable(box):
        answer = box.ask("restart", service="a")
        assert (answer["ok"], answer["error"]["code"]) == (False, "outcome_unknown")
        answer = box.ask("restart", service="b")
        assert (answer["ok"], answer["error"]["code"]) == (False, "journal_unavailable")
        assert box.service("b")["pid"] == pids["b"]
        assert box.is_running(pids["b"]), "services run on"
        assert box.data("version")["degraded_since"].endswith("Z")
        box.wait_said("[ERROR] cannot write to the journal")
    box.wait_status("a", "Running", run=2)
    box.wait_for(lambda: box.data("version")["degraded_since"] is None, "it writes again")
    assert box.service("b")["pid"] == pids["b"]
    box.wait_for(lambda: box.data("version")["degraded_since"] is None, "it writes again")
    (record,) = box.data("restart", service="b", wait=True)
    assert record["run"] == 2
    box.wait_said("The journal can be written again")
    box.verify()


def test_a_command_that_came_while_it_was_tried_is_answered_too(hasty):
    """Several at once, on connections of their own: none of them waits for as long as the trouble lasts."""
    box = hasty(service("a") + service("b") + service("c"))
    for name in ("a", "b", "c"):
        box.wait_status(name, "Running")
    clients = []
    try:
        with unwritable(box):
            for name in ("a", "b", "c"):
                client = socket.socket(socket.AF_UNIX)
                clients.append(client)
                client.settimeout(3)
                client.connect(str(box.socket))
                client.sendall(json.dumps({"action": "stop", "service": name}).encode() + b"\n")
            codes = [
                json.loads(client.makefile("rb").readline())["error"]["code"] for client in clients
            ]
    finally:
        for client in clients:
            client.close()
    assert set(codes) <= {"outcome_unknown", "journal_unavailable"}
    wait_written(box)
    for name, code in zip(("a", "b", "c"), codes, strict=True):
        if code == "outcome_unknown":
            box.wait_status(name, "Stopped")
    box.wait_for(lambda: box.data("version")["degraded_since"] is None, "it writes again")
    box.data("start", service="all", wait=True)
    assert {box.service(name)["run"] for name in ("a", "b", "c")} <= {1, 2}
    box.verify()


def test_what_dies_meanwhile_is_restarted_and_in_the_journal_afterwards(hasty):
    command = 'cmd = ["sh", "-c", "echo $$ >> runs; exec sleep 1000"]'
    box = hasty(service("a", command) + service("b"))
    pid = box.wait_status("a", "Running")["pid"]
    box.wait_lines("runs", 1)
    with unwritable(box):
        os.kill(pid, signal.SIGKILL)
        box.wait_lines("runs", 2)
        box.wait_said("cannot write to the journal")
    wait_written(box)
    record = box.wait_status("a", "Running", run=2)
    assert [int(line) for line in box.lines("runs")] == [pid, record["pid"]]
    chain = [event["type"] for event in box.events("a")[-5:]]
    assert chain == ["exited", "restart_scheduled", "restart_due", "spawned", "became_ready"]
    box.verify()


def test_killed_while_it_cannot_write_no_service_is_doubled_or_lost(hasty):
    command = 'cmd = ["sh", "-c", "echo $$ >> runs; exec sleep 1000"]'
    box = hasty(service("a", command) + service("b"))
    pid = box.wait_status("a", "Running")["pid"]
    other = box.wait_status("b", "Running")["pid"]
    box.wait_lines("runs", 1)
    with unwritable(box):
        os.kill(pid, signal.SIGKILL)
        box.wait_for(
            lambda: "cannot write to the journal" in box.errors.read_text(), "it is noticed"
        )
        box.wait_for(lambda: not box.is_running(pid), "run 1 is over")
        box.kill()
    box.start()
    record = box.wait_status("a", "Running", run=2)
    box.wait_lines("runs", 2)
    assert [int(line) for line in box.lines("runs")] == [pid, record["pid"]], (
        "one process for each run"
    )
    assert box.service("b")["pid"] == other
    box.data("stop", service="a", wait=True)
    assert not any(box.is_running(int(line)) for line in box.lines("runs"))
    box.verify()


def test_an_end_asked_for_meanwhile_comes_when_it_writes_again(hasty):
    box = hasty(service("a"))
    box.wait_status("a", "Running")
    with unwritable(box):
        box.daemon.terminate()
        box.wait_for(
            lambda: "cannot write to the journal" in box.errors.read_text(), "it is noticed"
        )
    assert box.daemon.wait(10) == 0
    box.wait_for(lambda: not box.left(), "nothing is left")
    box.verify()


def test_probe_results_that_pile_up_meanwhile_are_bounded(hasty):
    """A steady service says nothing new, however long the trouble lasts: afterwards it is healthy and the same."""
    check = f'{SLEEP}\nhealth_check = {{ target = "cmd:true", interval = "20ms" }}'
    box = hasty(service("a", check) + service("b"))
    pid = box.wait_status("a", "Running", health="healthy")["pid"]
    with unwritable(box):
        assert box.ask("restart", service="b")["error"]["code"] == "outcome_unknown"
        seen = set()

        def probes() -> bool:
            seen.add(box.data("health", service="a")[0]["checks"][0]["last_at"])
            return len(seen) > 20

        box.wait_for(probes, "twenty probes")
    box.wait_status("b", "Running", run=2)
    record = box.wait_status("a", "Running", health="healthy")
    assert record["pid"] == pid
    assert "became_unhealthy" not in box.types("a")
    box.verify()
