"""Hooks of a running registry: what they are told, which events they get, and that they delay and end nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

TELL = Path(__file__).parents[2] / "etc" / "examples" / "tell.py"
SLEEP = 'cmd = ["sleep", "1000"]'
GIVES_UP = 'cmd = ["sh", "-c", "echo the disk is gone; exit 3"]\nrestart = { delay = "1ms", limit = 1, within = "1h" }'

WRITES = """
import json, os, sys
told = {"stdin": sys.stdin.read(), "env": dict(os.environ), "cwd": os.getcwd(), "words": sys.argv[1:]}
with open("told", "a") as file:
    file.write(json.dumps(told) + "\\n")
"""
"""A hook that writes down what it is told."""


def service(name: str, keys: str = SLEEP) -> str:
    return f'[[service]]\nname = "{name}"\n{keys}\n'


def hook(box, on: list[str], keys: str = "", word: str = "-") -> str:
    """A hook that writes to `told`."""
    cmd = [*json.loads(box.python("writes", WRITES)), word]
    return f"[[hook]]\non = {json.dumps(on)}\ncmd = {json.dumps(cmd)}\n{keys}\n"


def hanging(on: list[str], keys: str = "") -> str:
    """A hook that writes its pid to `hangs`, and hangs, with a child."""
    cmd = json.dumps(["sh", "-c", "sleep 1000 & echo $! >>hangs; echo $$ >>hangs; wait"])
    return f"[[hook]]\non = {json.dumps(on)}\ncmd = {cmd}\n{keys}\n"


def told(box) -> list[Any]:
    """All that hooks were told, with the event decoded."""
    found = [json.loads(line) for line in box.lines("told")]
    return [{**each, **json.loads(each["stdin"])} for each in found]


def wait_told(box, count: int) -> list[Any]:
    box.wait_lines("told", count)
    return told(box)


def warnings(box) -> list[str]:
    """What the daemon's log says of hooks."""
    return [line for line in box.errors.read_text().splitlines() if "[[hook]]" in line]


# --- what and when --------------------------------------------------------------------------------


def test_a_hook_reads_the_event_as_events_shows_it_in_an_environment_of_its_own(box):
    box.configure(service("bad", GIVES_UP) + hook(box, ["gave_up"]))
    box.start(SECRET="x")
    (given,) = wait_told(box, 1)
    assert given["stdin"].endswith("}\n")
    assert given["stdin"].count("\n") == 1
    assert given["event"] == box.last("bad", "gave_up")
    assert given["event"]["reason"] == "restart_limit"
    assert given["host"] == socket.gethostname()
    assert given["cwd"] == str(box.folder)
    env = given["env"]
    journal = box.events()[0]["data"]["journal_id"]
    assert env.pop("CIRCLEOSD_RUN").startswith(f"{journal}/hook/0/")
    assert {name: env[name] for name in env if name.startswith("CIRCLEOSD_")} == {
        "CIRCLEOSD_EVENT": "gave_up",
        "CIRCLEOSD_SERVICE": "bad",
        "CIRCLEOSD_SOCKET": str(box.socket),
    }
    assert "SECRET" not in env
    assert env["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize(
    ("services", "expected"),
    [
        ("[]", {"web@1", "web@2", "db", "api", None}),
        ('["web"]', {"web@1", "web@2"}),
        ('["web@2", "db"]', {"web@2", "db"}),
        ('["w*", "?b"]', {"web@1", "web@2", "db"}),
        ('["tag:front"]', {"web@1", "web@2", "api"}),
    ],
)
def test_a_hook_is_told_of_the_services_that_it_names(box, services, expected):
    """What is of no service is for hooks that name none."""
    box.configure(
        service("web", f'{SLEEP}\ninstances = 2\ntags = ["front"]')
        + service("db")
        + service("api", f'{SLEEP}\ntags = ["front", "http"]')
        + hook(box, ["registry_started", "became_ready"], f"services = {services}")
    )
    box.start()
    assert {each["event"]["service"] for each in wait_told(box, len(expected))} == expected
    box.stop()
    assert len(told(box)) == len(expected)


def test_an_event_of_the_registry_itself_is_told_without_a_service(box):
    box.configure(service("web") + hook(box, ["registry_started"]))
    box.start()
    (given,) = wait_told(box, 1)
    assert given["event"]["service"] is None
    assert given["env"]["CIRCLEOSD_EVENT"] == "registry_started"
    assert "CIRCLEOSD_SERVICE" not in given["env"]


def test_what_an_earlier_registry_saw_is_not_told_again(box):
    box.configure(service("bad", GIVES_UP) + hook(box, ["gave_up", "registry_started"]))
    box.start()
    wait_told(box, 2)
    box.kill()
    box.start()
    # hooks run at once, each at its own pace: what they wrote is in no order
    events = sorted((each["event"] for each in wait_told(box, 3)), key=lambda event: event["seq"])
    types = [event["type"] for event in events]
    assert types == ["registry_started", "gave_up", "registry_started"]


def test_hooks_are_exchanged_by_apply(box):
    def configure(word: str, on: str) -> None:
        box.configure(service("web") + hook(box, [on], word=word))

    configure("old", "stop_requested")
    box.start()
    box.data("stop", service="web", wait=True)
    wait_told(box, 1)
    configure("new", "start_requested")
    box.data("apply")
    box.data("start", service="web", wait=True)
    box.data("stop", service="web", wait=True)
    box.stop()
    assert [(each["words"], each["event"]["type"]) for each in told(box)] == [
        (["old"], "stop_requested"),
        (["new"], "start_requested"),
    ]


def test_the_end_of_an_essential_service_is_told_before_the_registry_ends(box):
    """Though it takes the hook a while."""
    slow = json.dumps(["sh", "-c", "sleep 0.5; cat >>told"])
    box.configure(
        service("core", 'cmd = ["sh", "-c", "exit 3"]\nrestart = "Never"\nessential = true')
        + f'[[hook]]\non = ["exited"]\ncmd = {slow}\n'
    )
    box.daemon = box.spawn("--config", "etc/services.toml")
    assert box.daemon.wait(10) == 10
    (line,) = box.lines("told")
    event = json.loads(line)["event"]
    assert (event["service"], event["data"]["exit_code"]) == ("core", 3)


# --- trouble --------------------------------------------------------------------------------------


def test_hooks_that_hang_delay_nothing_and_are_killed_with_their_children_at_their_timeout(box):
    names = ["one", "two", "three", "four", "five"]
    box.configure(
        "".join(map(service, names))
        + hanging(["became_ready"], 'timeout = "3s"\nservices = ["one", "two", "three", "four"]')
        + hook(box, ["exited"])
    )
    box.start()
    hung = [int(pid) for pid in box.wait_lines("hangs", 8)]
    begun = time.monotonic()
    first = box.wait_status("five", "Running")["pid"]
    os.kill(first, signal.SIGKILL)
    box.wait_status("five", "Running", run=2)
    assert time.monotonic() - begun < 1
    assert not told(box), "four run, so the fifth waits"
    assert all(map(box.is_running, hung))
    assert wait_told(box, 1)[0]["event"]["service"] == "five"
    box.wait_for(lambda: not any(map(box.is_running, hung)), "they are gone, with their children")
    box.wait_for(lambda: len(warnings(box)) == 4, "each is said")
    assert all("was killed: it took longer than 3 s" in line for line in warnings(box))


@pytest.mark.parametrize(
    ("cmd", "trouble"),
    [
        (["sh", "-c", "exit 3", "s3cret"], "ended with exit code 3"),
        (
            ["sh", "-c", "echo out; echo no such address >&2; exit 3"],
            "ended with exit code 3, said last: no such address",
        ),
        (["sh", "-c", "kill -9 $$", "s3cret"], "was ended by signal 9"),
        (["/no/such/program", "s3cret"], "could not be run: there is no program /no/such/program"),
    ],
)
def test_a_hook_that_fails_is_one_line_of_warning_without_its_arguments(box, cmd, trouble):
    """And it keeps no other from its turn."""
    box.configure(
        service("bad", GIVES_UP)
        + f'[[hook]]\non = ["gave_up"]\ncmd = {json.dumps(cmd)}\n'
        + hook(box, ["gave_up"])
    )
    box.start()
    wait_told(box, 1)
    box.wait_for(lambda: warnings(box), "the log says so")
    seq = box.last("bad", "gave_up")["seq"]
    box.stop()
    (line,) = warnings(box)
    place = "etc/services.toml:8"
    assert line == f"[WARN] {place}: [[hook]] ({cmd[0]}; gave_up of bad, event {seq}) {trouble}"


def test_a_hook_that_reads_nothing_and_writes_much_is_a_hook_like_any_other(box):
    cmd = json.dumps(["sh", "-c", "exec 0<&-; yes | head -c 300000; echo done >done"])
    box.configure(service("web") + f'[[hook]]\non = ["became_ready"]\ncmd = {cmd}\n')
    box.start()
    box.wait_lines("done", 1)
    assert not warnings(box)


def test_a_hook_of_a_registry_that_was_killed_is_ended_by_the_next(box):
    box.configure(service("web") + hanging(["became_ready"], 'timeout = "100s"'))
    box.start()
    hung = [int(pid) for pid in box.wait_lines("hangs", 2)]
    box.kill()
    box.start()
    box.wait_for(lambda: not any(map(box.is_running, hung)), "the hook is gone, with its child")
    assert box.service("web")["run"] == 1


@pytest.mark.parametrize(
    ("action", "how"), [("upgrade", {}), ("shutdown", {"keep_services": True})]
)
def test_while_a_hook_is_given_its_time_at_an_end_the_services_that_stay_are_supervised(
    box, action, how
):
    slow = json.dumps(["sh", "-c", "while ! test -e go; do sleep 0.02; done; echo >>done"])
    box.configure(service("web") + f'[[hook]]\non = ["became_ready"]\ncmd = {slow}\n')
    box.start()
    pid = box.wait_status("web", "Running")["pid"]
    box.data(action, **how)
    os.kill(pid, signal.SIGKILL)
    box.wait_status("web", "Running", run=2)
    assert not box.lines("done")
    (box.folder / "go").touch()
    box.wait_lines("done", 2)
    if action == "shutdown":
        assert box.daemon.wait(10) == 0
        box.start()
    else:
        box.wait_for(lambda: box.errors.read_text().count("Adopted web") == 1, "the next has begun")
    assert box.last("web", "spawned")["seq"] < box.events(type="registry_stopped")[-1]["seq"]


# --- the example ----------------------------------------------------------------------------------


class Chat(HTTPServer):
    """Takes what is posted."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Post)
        self.posted: list[Any] = []
        self.url = f"http://127.0.0.1:{self.server_port}/hook"


class Post(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Chat)
        length = int(self.headers["Content-Length"])
        self.server.posted.append((self.path, json.loads(self.rfile.read(length))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def chat() -> Iterator[Chat]:
    with Chat() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_example_posts_the_last_lines_of_a_service_that_gave_up(box, chat):
    cmd = json.dumps([sys.executable, str(TELL), chat.url])
    box.configure(service("bad", GIVES_UP) + f'[[hook]]\non = ["gave_up"]\ncmd = {cmd}\n')
    box.start()
    box.wait_for(lambda: chat.posted, "it has posted")
    ((path, body),) = chat.posted
    assert path == "/hook"
    assert body["event"] == box.last("bad", "gave_up")
    assert body["lines"][-1] == "the disk is gone"
    assert body["text"].splitlines()[0] == f"bad on {socket.gethostname()}: gave_up (restart_limit)"
    box.stop()
    assert not warnings(box)
