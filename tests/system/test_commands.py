"""Asking over the socket: the shell's lines, commands and their answers, names that are wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time

import pytest

KEYS = [
    "name",
    "status",
    "since",
    "reason",
    "wanted",
    "pid",
    "run",
    "health",
    "restarts",
    "waiting_for",
    "next_restart_at",
    "message",
]
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
SLEEP = 'cmd = ["sleep", "1000"]'
THREE = "".join(f'[[service]]\nname = "{name}"\n{SLEEP}\n' for name in ("zoe", "adam", "mia"))


@pytest.fixture
def three(box):
    """Three services that run, not in the order of the alphabet."""
    box.configure(THREE)
    box.start()
    for name in ("zoe", "adam", "mia"):
        box.wait_status(name, "Running")
    return box


def socat(box, line: str):
    if shutil.which("socat") is None:
        pytest.skip("socat is not installed")
    command = f"echo '{line}' | socat - UNIX-CONNECT:{box.socket}"
    told = subprocess.run(["sh", "-c", command], capture_output=True, check=True, timeout=10)
    (answer,) = told.stdout.splitlines()
    return answer.decode()


def test_the_issues_own_file_is_valid_and_runs_with_its_programs_missing(box):
    services = """
[[service]]
name = "auth-service"
cmd = ["./auth-service"]
restart = "Always"
health_check = "unix:/tmp/auth-service.sock"

[[service]]
name = "plugin-manager"
cmd = ["./plugin-manager"]
restart = "OnFailure"
health_check = "http://localhost:8000/health"
"""
    box.configure(f'{services}\n[[service]]\nname = "other"\n{SLEEP}')
    box.start()
    box.wait_status("other", "Running")
    auth, plugin = box.data("list_services")[:2]
    for record, name in ((auth, "auth-service"), (plugin, "plugin-manager")):
        assert (record["name"], record["status"], record["reason"]) == (
            name,
            "Failed",
            "program_missing",
        )
    place = "[WARN] etc/services.toml:7: service 'auth-service': cmd: there is no program"
    box.wait_said(f"{place} {box.folder}/auth-service")
    box.wait_said("[WARN] etc/services.toml:13: service 'plugin-manager': cmd: there is no program")
    box.wait_said("Loaded 3 services from etc/services.toml")
    assert box.stop() == 0
    assert box.errors.read_text().count("[WARN]") == 2


def test_list_services_from_a_shell(three):
    text = socat(three, '{"action":"list_services"}')
    answer = json.loads(text)
    assert list(answer) == ["ok", "data"]
    assert text.startswith('{"ok":true,"data":[{"name":"zoe","status":"Running",')
    assert [record["name"] for record in answer["data"]] == ["zoe", "adam", "mia"]
    for record in answer["data"]:
        assert list(record) == KEYS
        assert record["pid"] > 0
        assert (record["run"], record["restarts"], record["wanted"]) == (1, 0, "up")
        assert RFC3339.fullmatch(record["since"])
        nothing = ("health", "waiting_for", "next_restart_at", "message")
        assert [record[key] for key in nothing] == [None] * 4


def test_restart_from_a_shell(three):
    before = three.service("adam")["pid"]
    answer = json.loads(socat(three, '{"action":"restart","service":"adam"}'))
    (accepted,) = answer["data"]
    assert (answer["ok"], accepted["name"], accepted["status"]) == (True, "adam", "Stopping")
    (event,) = [event for event in three.events("adam") if event["seq"] == accepted["seq"]]
    assert event["type"] == "restart_requested"
    assert event["actor"]["program"] == "socat"
    record = three.wait_status("adam", "Running", run=2)
    assert record["pid"] != before
    assert record["restarts"] == 0, "an operator's restart is no failure"


def test_health_from_a_shell(three):
    answer = json.loads(socat(three, '{"action":"health"}'))
    expected: list[dict] = [
        {"name": name, "health": None, "since": None, "checks": []}
        for name in ("zoe", "adam", "mia")
    ]
    assert answer == {"ok": True, "data": expected}


def test_a_stopped_service_keeps_every_key(three):
    (record,) = three.data("stop", service="mia", wait=True)
    assert list(record) == [*KEYS, "dependents"]
    assert (record["status"], record["reason"], record["wanted"]) == (
        "Stopped",
        "requested",
        "down",
    )
    assert (record["pid"], record["run"]) == (None, 1)


def test_status_adds_definition_checks_last_exit_and_events(three):
    status = three.data("status", service="zoe")
    assert list(status)[: len(KEYS)] == KEYS
    assert status["definition"]["cmd"] == ["sleep", "1000"]
    assert (status["checks"], status["last_exit"]) == ([], None)
    assert [event["type"] for event in status["events"]][-2:] == ["spawned", "became_ready"]
    three.data("stop", service="zoe", wait=True)
    last = three.data("status", service="zoe")["last_exit"]
    assert (last["run"], last["exit_code"], last["signal"]) == (1, None, 15)
    assert RFC3339.fullmatch(last["at"])


def test_start_and_stop_answer_when_accepted_and_wait_until_they_are_done(three):
    (stopping,) = three.data("stop", service="zoe")
    assert (stopping["name"], stopping["status"]) == ("zoe", "Stopping")
    assert three.last("zoe", "stop_requested")["seq"] == stopping["seq"]
    three.wait_status("zoe", "Stopped")
    (record,) = three.data("start", service="zoe", wait=True, timeout=5)
    assert (record["status"], record["run"], record["wanted"]) == ("Running", 2, "up")
    assert list(record) == KEYS


def test_what_is_so_already_is_answered_already_and_journals_nothing(three):
    head = three.verify()
    (answer,) = three.data("start", service="zoe")
    assert (answer["already"], answer["status"]) == (True, "Running")
    assert three.verify() == head
    three.data("stop", service="zoe", wait=True)
    head = three.verify()
    (answer,) = three.data("stop", service="zoe")
    assert (answer["already"], answer["status"]) == (True, "Stopped")
    assert three.verify() == head


def test_restart_starts_what_is_stopped(three):
    three.data("stop", service="zoe", wait=True)
    (record,) = three.data("restart", service="zoe", wait=True)
    assert (record["status"], record["run"], record["wanted"]) == ("Running", 2, "up")


def test_a_list_of_names_and_all_are_answered_one_by_one(three):
    answer = three.data("stop", service=["mia", "zoe"], wait=True)
    assert [(record["name"], record["status"]) for record in answer] == [
        ("mia", "Stopped"),
        ("zoe", "Stopped"),
    ]
    assert three.service("adam")["status"] == "Running"
    answer = three.data("restart", service="all", wait=True)
    assert [record["name"] for record in answer] == ["zoe", "adam", "mia"]
    assert {(record["status"], record["run"]) for record in answer} == {("Running", 2)}


def test_a_partial_failure_tells_about_each_name(three):
    answer = three.ask("stop", service=["zoe", "adma"])
    assert (answer["ok"], answer["error"]["code"]) == (False, "partial_failure")
    good, bad = answer["error"]["data"]
    assert (good["name"], good["ok"], good["status"]) == ("zoe", True, "Stopping")
    assert (bad["name"], bad["ok"], bad["error"]["code"]) == ("adma", False, "unknown_service")
    assert "did you mean 'adam'?" in bad["error"]["message"]
    three.wait_status("zoe", "Stopped")


def test_a_command_without_a_service_is_an_error(three):
    for action in ("start", "stop", "restart", "reset"):
        answer = three.ask(action)
        assert (answer["ok"], answer["error"]["code"]) == (False, "invalid_params")
        assert "service" in answer["error"]["message"]
        assert three.ask(action, service=[])["error"]["code"] == "invalid_params"


def test_an_unknown_service_is_answered_with_the_name_that_was_meant(three):
    for action in ("status", "start", "stop", "health", "logs", "events", "heartbeat"):
        answer = three.ask(action, service="adma")
        assert (answer["ok"], answer["error"]["code"]) == (False, "unknown_service"), action
        assert "did you mean 'adam'?" in answer["error"]["message"]


def test_a_wait_that_takes_too_long_says_so_with_the_record(box):
    command = """["sh", "-c", "trap '' TERM; touch up; while :; do sleep 0.05; done"]"""
    box.configure(f'[[service]]\nname = "deaf"\ncmd = {command}\nstop = "1s"')
    box.start()
    box.wait_for((box.folder / "up").exists, "it runs")
    answer = box.ask("stop", service="deaf", wait=True, timeout=0.1)
    assert (answer["ok"], answer["error"]["code"]) == (False, "timed_out")
    assert [record["status"] for record in answer["error"]["data"]] == ["Stopping"]
    (again,) = box.data("restart", service="deaf")
    assert again["status"] == "Stopping", "the last word wins: bound for Starting"
    box.wait_status("deaf", "Running", run=2)


def test_the_last_word_wins_while_a_service_stops(box):
    command = """["sh", "-c", "trap '' TERM; touch up; while :; do sleep 0.05; done"]"""
    box.configure(f'[[service]]\nname = "deaf"\ncmd = {command}\nstop = "300ms"')
    box.start()
    box.wait_for((box.folder / "up").exists, "it runs")
    box.data("restart", service="deaf")
    (record,) = box.data("stop", service="deaf", wait=True)
    assert (record["status"], record["wanted"], record["run"]) == ("Stopped", "down", 1)


def test_autostart_false_waits_for_the_first_start(box):
    box.configure(f'[[service]]\nname = "lazy"\n{SLEEP}\nautostart = false')
    box.start()
    record = box.service("lazy")
    assert (record["status"], record["wanted"], record["run"]) == ("Stopped", "down", None)
    (record,) = box.data("start", service="lazy", wait=True)
    assert (record["status"], record["run"]) == ("Running", 1)


def test_one_connection_carries_both_forms_and_many_requests_in_flight(three):
    lines = [
        b'{"action":"version","id":1}\n',
        b'{"jsonrpc":"2.0","method":"status","params":{"service":"zoe"},"id":"a"}\n',
        b'{"jsonrpc":"2.0","method":"nothing","id":3}\n',
        b'{"action":"restart","service":"zoe","wait":true,"id":4}\n',
        b'[{"jsonrpc":"2.0","method":"version","id":5},{"jsonrpc":"2.0","method":"version","id":6}]\n',
    ]
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(three.socket))
        client.sendall(b"".join(lines))
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as file:
            answers = [json.loads(line) for line in file]
    batch = next(answer for answer in answers if isinstance(answer, list))
    by_id = {
        answer["id"]: answer for answer in [*batch, *(a for a in answers if isinstance(a, dict))]
    }
    assert set(by_id) == {1, "a", 3, 4, 5, 6}
    assert by_id[1]["data"]["pid"] == three.daemon.pid
    assert by_id["a"]["result"]["name"] == "zoe"
    assert by_id[3]["error"]["code"] == -32601
    assert by_id[4]["data"][0]["run"] == 2


@pytest.mark.parametrize("limit", [0, -1])
def test_a_number_of_events_that_is_none_is_refused(three, limit):
    for more in ({}, {"follow": True}):
        error = three.ask("events", limit=limit, **more)["error"]
        said = f"limit: {limit} is no number of events; write 1 or more"
        assert (error["code"], error["message"]) == ("invalid_params", said)


def test_version_names_the_journal_and_with_all_the_capabilities(three):
    version = three.data("version")
    assert version["journal"] == str(three.journal)
    assert RFC3339.fullmatch(version["started_at"])
    names = [capability["name"] for capability in three.data("version", all=True)["capabilities"]]
    assert {"pidfd", "pidfd_exit", "splice"} <= set(names)


def test_numbers_beyond_all_bounds_are_refused_in_one_sentence(three):
    for parameters in ({"since": 2**70}, {"since": -(2**70)}, {"limit": 2**70}, {"limit": -1}):
        answer = three.ask("events", **parameters)
        assert answer["ok"] or answer["error"]["code"] == "invalid_params", (parameters, answer)
    answer = three.ask("logs", service="zoe", lines=2**70)
    assert answer["ok"] or answer["error"]["code"] == "invalid_params"


def test_shutdown_is_answered_before_the_end_and_ends_like_sigterm(three):
    assert three.ask("shutdown") == {"ok": True, "data": None}
    assert three.daemon.wait(10) == 0
    three.wait_for(lambda: not three.left(), "nothing is left")
    three.verify()
    assert not os.path.exists(three.socket)


def test_an_answer_is_what_was_asked_for_once_it_is_durable(three):
    """Who asked reads what he wrote: at once, also from another connection, and from the file."""
    for turn in range(20):
        action = "stop" if turn % 2 == 0 else "start"
        (accepted,) = three.data(action, service="mia")
        assert three.verify() >= accepted["seq"]
        assert three.service("mia")["wanted"] == ("down" if action == "stop" else "up")
    begun = time.monotonic()
    three.data("stop", service="mia", wait=True)
    assert time.monotonic() - begun < 5
