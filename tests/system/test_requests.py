"""Signals, reloads and checks that somebody asks for, and whom a request means."""

from __future__ import annotations

import json
import os
import signal

import pytest

pytestmark = pytest.mark.timeout(30)

SLEEP = 'cmd = ["sleep", "1000"]'
# Tells each signal that it gets, and that it hears them now.
TELL = (
    'for s in HUP USR1 USR2; do trap "echo $CIRCLEOSD_SERVICE $s $CIRCLEOSD_RUN >> told" $s; done;'
    " echo up >> up; while :; do sleep 0.02; done"
)


def service(name: str, *keys: str) -> str:
    return "\n".join([f'[[service]]\nname = "{name}"', *(keys or (SLEEP,)), ""])


def shell(script: str) -> str:
    return f"cmd = {json.dumps(['sh', '-c', script])}"


def command(script: str) -> str:
    return f"reload = {json.dumps(['sh', '-c', script])}"


def begin(box, *services: str, **how) -> None:
    box.configure("".join(services))
    box.start(**how)


def told(box) -> list[str]:
    """Who told which signal, sorted: they tell side by side."""
    return sorted(" ".join(line.split()[:2]) for line in box.lines("told"))


def latest(box) -> int:
    return box.data("events", since=-1)[-1]["seq"]


def error(box, action: str, **parameters) -> tuple[str, str]:
    answer = box.ask(action, **parameters)["error"]
    return answer["code"], answer["message"]


# --- signal ---------------------------------------------------------------------------------------


def test_a_signal_by_name_or_number_reaches_the_main_process_and_is_journaled_with_who_asked(box):
    begin(box, service("web", shell(TELL)))
    box.wait_lines("up", 1)
    box.wait_status("web", "Running")
    seqs = []
    words = ["HUP", "SIGUSR1", str(int(signal.SIGUSR2)), "hup"]
    for count, word in enumerate(words, 1):
        (answer,) = box.data("signal", service="web", signal=word)
        assert (answer["name"], answer["status"], answer["already"]) == ("web", "Running", False)
        seqs.append(answer["seq"])
        box.wait_lines("told", count)
    assert told(box) == ["web HUP", "web HUP", "web USR1", "web USR2"]
    asked = box.events("web", "signal_requested")
    assert [event["seq"] for event in asked] == seqs
    names = [event["data"]["signal"] for event in asked]
    assert names == ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGHUP"]
    assert {(event["actor"]["uid"], event["actor"]["pid"]) for event in asked} == {
        (os.getuid(), os.getpid())
    }
    done = box.events("web", "request_done")
    assert [(event["data"], event["cause"], event["actor"]) for event in done] == [
        ({"request": seq}, seq, None) for seq in seqs
    ]
    assert box.service("web")["run"] == 1


def test_a_signal_that_ends_it_is_an_end_like_any_other(box):
    begin(box, service("web", SLEEP, 'restart = "Never"'))
    box.wait_status("web", "Running")
    box.data("signal", service="web", signal="KILL")
    box.wait_status("web", "Failed", reason="signal")


def test_a_signal_to_a_tag_a_glob_or_a_list_is_sent_to_each_of_them(box):
    tell = shell(TELL)
    begin(
        box,
        service("web", tell, "instances = 2", 'tags = ["front"]'),
        service("db", tell, 'tags = ["front"]'),
        service("cache", tell),
    )
    box.wait_lines("up", 4)
    for name in ("web@1", "web@2", "db", "cache"):
        box.wait_status(name, "Running")
    box.data("signal", service="tag:front", signal="HUP")
    box.data("signal", service="web@*", signal="USR1")
    box.data("signal", service=["cache", "db"], signal="USR2")
    box.wait_lines("told", 7)
    assert told(box) == [
        *("cache USR2", "db HUP", "db USR2"),
        *("web@1 HUP", "web@1 USR1", "web@2 HUP", "web@2 USR1"),
    ]


def test_what_does_not_run_is_sent_no_signal_and_of_several_each_is_told(box):
    begin(
        box,
        service("web", shell(TELL)),
        service("down", SLEEP, "autostart = false"),
        service("starting", SLEEP, 'health_check = "cmd:false"'),
    )
    box.wait_lines("up", 1)
    box.wait_status("web", "Running")
    box.wait_status("starting", "Starting")
    for name, status in (("down", "Stopped"), ("starting", "Starting")):
        assert error(box, "signal", service=name, signal="HUP") == (
            "service_not_running",
            f"service '{name}' is {status}, not Running",
        )
    answer = box.ask("signal", service="all", signal="HUP")["error"]
    assert answer["code"] == "partial_failure"
    assert {item["name"]: item["ok"] for item in answer["data"]} == {
        "web": True,
        "down": False,
        "starting": False,
    }
    box.wait_lines("told", 1)
    assert not box.events("down", "signal_requested")
    assert not box.events("starting", "signal_requested")


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("HUPP", "did you mean SIGHUP?"),
        ("sigterrm", "did you mean SIGTERM?"),
        ("", "write for example HUP"),
        ("0", "write for example HUP"),
        ("99", "write for example HUP"),
        ("9" * 5000, "write for example HUP"),
        ("-9", "write for example HUP"),
    ],
)
def test_a_signal_that_is_none_is_refused_with_a_hint(signals, word, hint):
    code, message = error(signals, "signal", service="web", signal=word)
    assert (code, message.startswith("signal: '")) == ("invalid_params", True)
    assert hint in message
    assert len(message) < 200
    assert not signals.events("web", "signal_requested")


@pytest.fixture(scope="module")
def signals(tmp_path_factory):
    """One registry for all that it refuses; see below."""
    return None
