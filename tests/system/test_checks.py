"""Health checks on real services: readiness, sickness, what they cost the journal, heartbeats and who may send them."""

from __future__ import annotations

import os
import pwd
import stat
import time
from pathlib import Path

import pytest

# Answers 200 on /health, 500 while the file `sick` is there; on a TCP port or a Unix socket.
HTTP = """
import os, signal, socket, sys
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
server = socket.create_server(("127.0.0.1", 0))
with open("port.new", "w") as file:
    file.write(str(server.getsockname()[1]))
os.rename("port.new", "port")
with open("runs", "a") as file:
    file.write("run\\n")
while True:
    client, _ = server.accept()
    client.recv(4096)
    sick = os.path.exists("sick")
    word = "500 Sick" if sick else "200 OK"
    client.sendall(f"HTTP/1.1 {word}\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n".encode())
    client.close()
"""

BEAT = """
import json, os, socket, sys, time
while True:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.environ["CIRCLEOSD_SOCKET"])
        request = {"action": "heartbeat", "service": os.environ["CIRCLEOSD_SERVICE"]}
        client.sendall(json.dumps(request).encode() + b"\\n")
        answer = json.loads(client.makefile().readline())
        assert answer == {"ok": True, "data": None}, answer
    with open("beats", "a") as file:
        file.write("beat\\n")
    if os.path.exists("silent"):
        time.sleep(1000)
    time.sleep(0.02)
"""


def free_port() -> int:
    """A port that nobody has; a service binds it at once."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def http_service(box, keys: str = "", check: str = "", restart: str = "Always") -> str:
    """A service with /health on a port of its own."""
    port = free_port()
    text = HTTP.replace('("127.0.0.1", 0)', f'("127.0.0.1", {port})')
    target = f'target = "http://127.0.0.1:{port}/health", interval = "50ms", timeout = "2s"'
    return f"""[[service]]
name = "web"
cmd = {box.python("web", text)}
restart = "{restart}"
stop = "500ms"
health_check = {{ {target}{check} }}
{keys}
"""


def head(box) -> int:
    return box.data("events", since=-1)[-1]["seq"]


def test_a_service_with_a_check_is_starting_until_its_first_success(box):
    target = f"unix:{box.folder}/app.sock"
    text = f"""
import os, socket, time
while not os.path.exists("open"):
    time.sleep(0.01)
server = socket.socket(socket.AF_UNIX)
server.bind("{box.folder}/app.sock")
server.listen()
while True:
    server.accept()[0].close()
"""
    check = f'health_check = {{ target = "{target}", interval = "50ms" }}'
    box.configure(f'[[service]]\nname = "app"\ncmd = {box.python("app", text)}\n{check}')
    box.start()
    record = box.wait_status("app", "Starting", run=1)
    assert (record["pid"] is not None, record["health"]) == (True, "unknown")
    box.wait_for(lambda: box.events("app", "probe_changed"), "a failed probe")
    for _ in range(4):  # failures before it is ready count for nothing
        last_at = box.data("health")[0]["checks"][0]["last_at"]
        box.wait_for(
            lambda seen=last_at: box.data("health")[0]["checks"][0]["last_at"] != seen, "a probe"
        )
    assert box.service("app")["status"] == "Starting"
    assert not box.events("app", "became_unhealthy")
    (box.folder / "open").touch()
    assert box.wait_status("app", "Running", health="healthy")["run"] == 1
    box.wait_said("[INFO] Health OK: app")
    (answer,) = box.data("health", service="app")
    assert list(answer) == ["name", "health", "since", "checks"]
    assert (answer["name"], answer["health"]) == ("app", "healthy")
    assert answer["since"].endswith("Z")
    (check,) = answer["checks"]
    assert list(check) == ["name", "target", "health", "last_at", "latency_ms", "error"]
    assert (check["target"], check["health"], check["error"]) == (target, "healthy", None)
    assert check["latency_ms"] >= 0


@pytest.mark.parametrize("policy", ["Always", "OnFailure"])
def test_a_service_whose_health_turns_500_is_restarted_as_failed_whatever_its_exit_code(
    box, policy
):
    box.configure(http_service(box, restart=policy))
    box.start()
    first = box.wait_status("web", "Running", health="healthy")
    (box.folder / "sick").touch()
    box.wait_for(lambda: box.events("web", "became_unhealthy"), "it is sick")
    (box.folder / "sick").unlink()
    second = box.wait_status("web", "Running", run=2, health="healthy")
    assert (second["restarts"], second["pid"] != first["pid"]) == (1, True)
    unhealthy = box.last("web", "became_unhealthy")
    assert (unhealthy["source"], unhealthy["dest"], unhealthy["reason"]) == (
        "Running",
        "Stopping",
        "unhealthy",
    )
    assert unhealthy["data"]["failures"] == 3
    assert "500" in unhealthy["data"]["error"]
    exited = box.last("web", "exited")
    assert (exited["data"].get("exit_code"), exited["reason"]) == (0, "unhealthy")
    emptied = box.last("web", "group_emptied")
    assert (emptied["dest"], emptied["reason"]) == ("Failed", "unhealthy")
    box.wait_said("[WARN] web unhealthy, restarting...")
    box.verify()


def test_a_sick_service_that_never_restarts_is_failed(box):
    box.configure(http_service(box, restart="Never", check=", failures = 2"))
    box.start()
    box.wait_status("web", "Running")
    (box.folder / "sick").touch()
    record = box.wait_status("web", "Failed", reason="unhealthy")
    assert (record["pid"], record["wanted"], record["restarts"]) == (None, "up", 0)
    assert box.last("web", "became_unhealthy")["data"]["failures"] == 2


def test_a_check_that_only_reports_leaves_the_service_alone(box):
    box.configure(http_service(box, check=', on_failure = "report", successes = 2'))
    box.start()
    first = box.wait_status("web", "Running", health="healthy")
    (box.folder / "sick").touch()
    record = box.wait_status("web", "Running", health="unhealthy")
    assert (record["pid"], record["run"]) == (first["pid"], 1)
    box.wait_said("[WARN] web unhealthy, only reported")
    (box.folder / "sick").unlink()
    record = box.wait_status("web", "Running", health="healthy")
    assert (record["pid"], record["restarts"]) == (first["pid"], 0)
    assert box.last("web", "became_healthy")["data"]["successes"] == 2


def test_a_steady_service_adds_no_events_however_often_it_is_asked(box):
    box.configure(http_service(box))
    box.start()
    box.wait_status("web", "Running", health="healthy")
    before = head(box)
    seen: set[str] = set()

    def ten_probes() -> bool:
        seen.add(box.data("health")[0]["checks"][0]["last_at"])
        return len(seen) > 10

    box.wait_for(ten_probes, "ten probes")
    assert head(box) == before


def test_a_change_is_journaled_with_the_streak_that_it_ended(box):
    box.configure(http_service(box, check=', on_failure = "report"'))
    box.start()
    box.wait_status("web", "Running", health="healthy")
    (box.folder / "sick").touch()
    box.wait_status("web", "Running", health="unhealthy")
    (box.folder / "sick").unlink()
    box.wait_status("web", "Running", health="healthy")
    changes = [event["data"] for event in box.events("web", "probe_changed")]
    changes = [change for change in changes if change.get("ended")]
    good, bad = changes[-2:]
    assert (good["ok"], good["ended"]["ok"], bad["ok"], bad["ended"]["ok"]) == (
        False,
        True,
        True,
        False,
    )
    assert bad["ended"]["count"] >= 3
    assert bad["ended"]["first_at_ns"] < bad["ended"]["last_at_ns"]


def test_a_cmd_check_runs_in_the_services_place_and_is_killed_with_its_group_in_time(box):
    """The probe writes who it is; while `hang` is there, it and its child hang."""
    probe = box.program(
        "probe",
        """
import os, subprocess, sys, time
with open("probe.new", "w") as file:
    file.write(os.environ["MODE"] + " " + os.getcwd())
os.rename("probe.new", "probe.seen")
if os.path.exists("hang"):
    child = subprocess.Popen(["sleep", "1000"])
    with open("hung", "a") as file:
        file.write(f"{os.getpid()} {child.pid}\\n")
    time.sleep(1000)
""",
    )
    import sys

    folder = box.folder / "place"
    folder.mkdir()
    target = f"cmd:{sys.executable} -I -S {probe}"
    box.configure(f"""[[service]]
name = "app"
cmd = ["sleep", "1000"]
cwd = "place"
env = {{ MODE = "live" }}
health_check = {{ target = "{target}", interval = "50ms", timeout = "700ms", failures = 1, on_failure = "report" }}
""")
    box.start()
    box.wait_status("app", "Running", health="healthy")
    assert box.lines("place/probe.seen") == [f"live {folder}"]
    (folder / "hang").touch()
    box.wait_status("app", "Running", health="unhealthy")
    assert "timed out" in box.last("app", "became_unhealthy")["data"]["error"]
    (folder / "hang").unlink()
    pids = [int(pid) for line in box.lines("place/hung") for pid in line.split()]
    box.wait_status("app", "Running", health="healthy")
    box.wait_for(
        lambda: not any(map(box.is_running, pids[:2])), "the hung probe and its child are gone"
    )


def test_several_checks_are_all_needed_and_each_has_its_place_in_the_answer(box):
    target = f"unix:{box.folder}/none"
    keys = f'health_check = [{{ target = "cmd:true" }}, {{ name = "sock", target = "{target}", interval = "50ms" }}]'
    box.configure(f'[[service]]\nname = "app"\ncmd = ["sleep", "1000"]\n{keys}')
    box.start()
    box.wait_for(lambda: len(box.events("app", "probe_changed")) == 2, "both were asked")
    (answer,) = box.data("health")
    assert [check["target"] for check in answer["checks"]] == ["cmd:true", target]
    assert answer["checks"][1]["name"] == "sock"
    assert (answer["health"], answer["checks"][0]["health"]) == ("unknown", "healthy")
    assert "no such file" in answer["checks"][1]["error"]
    assert box.service("app")["status"] == "Starting"


def test_one_stuck_service_stalls_no_other(box):
    """It accepts and never answers; the other's probes go on meanwhile."""
    port = free_port()
    text = f"""
import socket, time
server = socket.create_server(("127.0.0.1", {port}))
held = []
while True:
    held.append(server.accept())
"""
    check = f'health_check = {{ target = "http://127.0.0.1:{port}/", interval = "50ms", timeout = "10s" }}'
    stuck = (
        f'[[service]]\nname = "stuck"\ncmd = {box.python("stuck", text)}\n{check}\nstop = "500ms"\n'
    )
    box.configure(stuck + http_service(box))
    box.start()
    box.wait_status("web", "Running", health="healthy")
    (box.folder / "sick").touch()
    box.wait_for(lambda: box.events("web", "became_unhealthy"), "the other is judged", 3.0)


def beating(box, keys: str = "") -> str:
    check = 'health_check = { target = "heartbeat:", interval = "100ms", timeout = "200ms", failures = 1 }'
    return f'[[service]]\nname = "heart"\ncmd = {box.python("heart", BEAT)}\n{check}\nstop = "500ms"\n{keys}\n'


def test_a_heartbeat_from_inside_the_service_keeps_it_well_and_silence_restarts_it(box):
    box.configure(beating(box))
    box.start()
    box.wait_status("heart", "Running", health="healthy")
    begun = time.monotonic()
    box.wait_for(
        lambda: time.monotonic() - begun > 0.6 and len(box.lines("beats")) > 5,
        "two windows and more",
    )
    assert box.service("heart")["run"] == 1
    (box.folder / "silent").touch()
    box.wait_for(lambda: box.events("heart", "became_unhealthy"), "silence is noticed")
    (box.folder / "silent").unlink()
    assert box.wait_status("heart", "Running", run=2)["restarts"] == 1
    assert "no heartbeat for" in box.last("heart", "became_unhealthy")["data"]["error"]


def test_a_heartbeat_for_what_does_not_listen_is_an_error(box):
    box.configure(f'{beating(box)}[[service]]\nname = "plain"\ncmd = ["sleep", "1000"]\n')
    box.start()
    assert box.ask("heartbeat", service="plain")["error"]["code"] == "unknown_check"
    assert box.ask("heartbeat", service="heart", check="none")["error"]["code"] == "unknown_check"
    assert box.ask("heartbeat", service="heart") == {"ok": True, "data": None}


ASKS = """
import json, os, socket, time

def ask(**request):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.environ["CIRCLEOSD_SOCKET"])
        client.sendall(json.dumps(request).encode() + b"\\n")
        answer = json.loads(client.makefile().readline())
        return "ok" if answer["ok"] else answer["error"]["code"]

def in_a_child(**request):
    # the beat of a service's own child: of its session, then of one of its own
    read, write = os.pipe()
    if os.fork() == 0:
        if request.pop("setsid", False):
            os.setsid()
        os.write(write, ask(**request).encode())
        os._exit(0)
    os.wait()
    return os.read(read, 100).decode()

print(os.getuid())
print(ask(action="heartbeat", service="guest"))
print(ask(action="heartbeat", service="heart"))
print(ask(action="list_services"))
print(ask(action="stop", service="guest"))
print(ask(action="nothing"))
print(in_a_child(action="heartbeat", service="guest"))
print(in_a_child(action="heartbeat", service="guest", setsid=True))
print("done", flush=True)
time.sleep(1000)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can run a service as another user")
def test_another_user_may_beat_for_the_service_that_holds_him_and_nothing_else(box):
    for folder in (box.folder, box.folder / "var", box.folder / "var" / "log"):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
    program = box.python("guest", ASKS)
    check = 'health_check = { target = "heartbeat:", interval = "10s" }'
    guest = f'[[service]]\nname = "guest"\ncmd = {program}\nuser = "nobody"\n{check}\n'
    box.configure(beating(box) + guest, settings='socket_mode = "0666"')
    box.start()
    assert stat.S_IMODE(box.socket.stat().st_mode) == 0o666
    box.wait_for(lambda: "done" in box.log("guest"), f"the guest has asked: {box.log('guest')}")
    uid, own, others, listing, stopping, unknown, child, grandchild, _done = box.log(
        "guest"
    ).split()
    assert int(uid) == pwd.getpwnam("nobody").pw_uid
    assert (own, others, listing, stopping) == ("ok", "forbidden", "forbidden", "forbidden")
    assert unknown in ("forbidden", "unknown_action")
    assert (child, grandchild) == ("ok", "ok")
    box.wait_status("guest", "Running", health="healthy")


def test_the_socket_is_for_its_owner_alone_unless_the_file_says_otherwise(box):
    box.configure('[[service]]\nname = "a"\ncmd = ["sleep", "1000"]')
    box.start()
    assert stat.S_IMODE(box.socket.stat().st_mode) == 0o600


def test_tls_is_loaded_where_a_check_asks_by_it_and_nowhere_else(box):
    def has_tls() -> bool:
        return "libssl" in Path(f"/proc/{pid}/maps").read_text()

    plain = http_service(box)
    box.configure(plain)
    pid = box.start()
    box.wait_status("web", "Running", health="healthy")
    assert not has_tls()
    box.configure(plain.replace("http://", "https://"))
    box.data("apply")
    box.wait_for(
        lambda: box.data("health")[0]["checks"][0]["error"] == "TLS failed: wrong version number",
        "it asks by TLS",
    )
    assert has_tls()
