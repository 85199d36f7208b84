"""The past of a running registry: asked over the socket, answered by a process beside it."""

from __future__ import annotations

import json
import os
import pwd
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


# --- why ------------------------------------------------------------------------------------------

TROUBLED = """
[[service]]
name = "db"
cmd = ["sleep", "1000"]

[[service]]
name = "web"
cmd = ["sleep", "1000"]
depends_on = ["db"]

[[service]]
name = "stubborn"
cmd = ["sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.05; done"]
stop = "300ms"

[[service]]
name = "crashing"
cmd = ["sh", "-c", "echo no luck >&2; exit 3"]
restart = "Never"

[[service]]
name = "missing"
cmd = ["./not-there"]
"""


def why(box, name: str, *more: str) -> list[str]:
    done = circlectl(box, "why", name, *more)
    assert done.returncode == 0, done.stderr
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ|\d\d:\d\d:\d\dZ", "TIME", done.stdout)
    return re.sub(r"event \d+", "event N", re.sub(r"pid \d+", "pid P", text)).splitlines()


def test_why_on_real_processes(box) -> None:
    box.configure(TROUBLED)
    box.start()
    box.wait_status("web", "Running")
    box.wait_status("crashing", "Failed")
    box.wait_for(lambda: "output_ended" in box.types("crashing"), "its last words are journaled")
    who = rf"by uid {os.getuid()} \({pwd.getpwuid(os.getuid()).pw_name}, \S+, pid P\)"
    assert why(box, "crashing") == [
        "crashing is Failed since TIME",
        "  because it exited with code 3 (run 1) (event N, TIME)",
        "said last, run 1:",
        "  | no luck",
        "next: nothing until circlectl start crashing: its restart policy is Never",
    ]
    missing = why(box, "missing")
    assert missing[0] == "missing is Failed since TIME"
    assert re.match(
        r"  because it could not be started: .*not-there.* \(event N, TIME\)$", missing[1]
    )
    assert missing[-1] == "next: nothing until that is mended, and circlectl start missing"
    box.wait_status("stubborn", "Running")
    box.wait_for(lambda: box.data("logs", service="stubborn"), "it is deaf by now")
    box.data("stop", service="stubborn", wait=True)
    stubborn = why(box, "stubborn")
    assert "only by the registry's SIGKILL" in stubborn[1] or (
        "SIGKILL from the registry, after its stop timeout of 0.3 s" in stubborn[1]
    )
    asked = rf"  because it was stopped {who} \(event N, TIME\)$"
    assert any(re.match(asked, line) for line in stubborn), stubborn


def test_why_after_the_registry_was_killed(box) -> None:
    box.configure(SERVICES)
    box.start()
    box.wait_status("web", "Running")
    pid = box.service("web")["pid"]
    box.daemon.kill()
    box.daemon.wait()
    box.start()
    box.wait_status("web", "Running")
    subject, *because = why(box, "web")
    assert subject == (
        "web is Running since TIME (the registry that took over found it alive at TIME)"
    )
    assert because[:2] == [
        "  because it became ready (run 1) (event N, TIME)",
        "  because what it waited for was there (event N, TIME)",
    ]
    assert because[2].startswith("  because db, on which web depends, ")
    os.kill(pid, 9)
    box.wait_status("web", "Running", restarts=1)
    assert any("was ended by SIGKILL, not sent by the registry" in line for line in why(box, "web"))
    seq = box.last("web", "exited")["seq"]
    assert why(box, f"seq:{seq}")[0].startswith("event N of web, TIME: it was ended by SIGKILL")


def test_who_waits_is_told_for_whom_and_why(box) -> None:
    box.configure(SERVICES.replace('["sleep", "1000"]', '["./gone"]', 1))
    box.start()
    box.wait_status("db", "Failed")
    box.wait_status("web", "Stopped", reason="waiting")
    web = why(box, "web")
    assert web[:3] == [
        "web is Stopped, and waits, since TIME",
        "  because it waits for db to be ready (it failed: program missing) (event N, TIME)",
        "  because db, on which web depends, is Failed (event N, TIME)",
    ]
    assert web[3].startswith("  because it could not be started: ")
    assert web[-1] == "next: it is started as soon as that is so"


def test_graph_tells_who_depends_on_whom_now_and_then(box, stopped) -> None:
    now = circlectl(box, "graph").stdout.splitlines()
    assert now == ["web: Stopped, as requested", "└─ db ready: Running"]
    then = circlectl(box, "graph", "web", "--at", f"seq:{stopped}").stdout.splitlines()
    assert then[1:] == ["web: Running", "└─ db ready: Running"]
