"""The past of a running registry: asked over the socket, answered by a process beside it."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(60)

SERVICES = """
[[service]]
name = "db"
cmd = ["sleep", "1000"]

[[service]]
name = "web"
cmd = ["sleep", "1000"]
depends_on = ["db"]
stop = "1s"
"""


def circlectl(box, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "circlectl", "--socket", str(box.socket), *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def answering(box) -> list[int]:
    """The processes that answer questions about this registry's past."""
    found = []
    for task in Path(f"/proc/{box.daemon.pid}/task").iterdir():
        for pid in (task / "children").read_text().split():
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if b"registry.past" in command:
                found.append(int(pid))
    return found


@pytest.fixture
def stopped(box):
    """Both ran, then web was stopped: the number of the event before that was asked."""
    box.configure(SERVICES)
    box.start()
    box.wait_status("web", "Running")
    before = box.events()[-1]["seq"]
    box.data("stop", service="web", wait=True)
    return before


def test_list_and_status_tell_what_was_while_the_present_is_another(box, stopped) -> None:
    then = circlectl(box, "list", "--at", f"seq:{stopped}")
    assert then.returncode == 0, then.stderr
    assert re.search(rf"^as of .*Z, after event {stopped}$", then.stdout, re.MULTILINE)
    assert re.search(r"^web +Running ", then.stdout, re.MULTILINE)
    now = circlectl(box, "list", "--at", "0s ago")
    assert re.search(r"^web +Stopped ", now.stdout, re.MULTILINE)
    was = box.data("status", service="web", at=f"seq:{stopped}")
    assert (was["status"], was["moment"]["seq"]) == ("Running", stopped)
    assert box.data("status", service="web")["status"] == "Stopped"
    assert circlectl(box, "status", "web", "--at", "1h ago").returncode == 4
    assert circlectl(box, "list", "--at", "noon").returncode == 2


def test_every_moment_is_told_as_the_live_list_told_it(box) -> None:
    """What `list_services` says now, a question about the event that is the last one now says later."""
    box.configure(SERVICES)
    box.start()
    box.wait_status("web", "Running")
    told = {}
    for action, names in (("stop", "web"), ("start", "web"), ("restart", "db"), ("reset", "all")):
        box.data(action, service=names, wait=True)
        before = box.events()[-1]["seq"]
        records = box.data("list_services")
        if box.events()[-1]["seq"] == before:
            told[before] = records
    assert told
    for seq, records in told.items():
        assert box.data("list_services", at=f"seq:{seq}")["services"] == records


def test_whoever_goes_takes_the_process_along_that_answers_him(box, stopped) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(box.socket))
        client.sendall(json.dumps({"action": "list_services", "at": "seq:1"}).encode() + b"\n")
        box.wait_for(lambda: answering(box), "a process answers")
    box.wait_for(lambda: not answering(box), "it has ended, and is reaped")
    assert box.data("list_services", at="seq:1")["moment"]["seq"] == 1


def test_a_registry_that_is_killed_leaves_no_process_that_answers(box, stopped) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(box.socket))
        client.sendall(json.dumps({"action": "list_services", "at": "seq:1"}).encode() + b"\n")
        box.wait_for(lambda: answering(box), "a process answers")
        (pid,) = answering(box)
        box.daemon.kill()
        box.daemon.wait()
    box.wait_for(lambda: not box.is_running(pid), "it has ended, too")
    box.start()
