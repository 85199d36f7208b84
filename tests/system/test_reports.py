"""Histories, differences and reports of real services, asked of a running registry and of its journal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(90)

SERVICES = """
[[service]]
name = "db"
cmd = ["sleep", "1000"]

[[service]]
name = "setup"
cmd = ["true"]
oneshot = true
depends_on = ["db"]

[[service]]
name = "web"
cmd = ["sleep", "1000"]
depends_on = ["db", "setup"]
"""


def circlectl(box, *arguments: str) -> subprocess.CompletedProcess[str]:
    return _run("circlectl", "--socket", str(box.socket), *arguments)


def replay(box, *arguments: str) -> subprocess.CompletedProcess[str]:
    return _run("circle_replay", str(box.journal), *arguments)


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, timeout=60, check=False
    )


def asked(box, *arguments: str) -> Any:
    done = circlectl(box, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def running(box):
    """All of it is up."""
    box.configure(SERVICES)
    box.start()
    return box.wait_status("web", "Running")


def test_a_crash_is_one_run_more_in_the_history_and_an_outage_in_the_report(box, running) -> None:
    os.kill(running["pid"], signal.SIGKILL)
    box.wait_status("web", "Running", restarts=1)
    (web,) = asked(box, "history", "web")
    first, second = web["runs"]
    assert (first["signal"], first["ended_by"], second["ended"]) == (9, None, None)
    assert second["started_by"]["event"]["type"] == "restart_scheduled"
    assert first["started_by"]["event"]["type"] == "dependencies_met"
    assert first["started_by"]["after"]["service"] == "setup"
    (told,) = asked(box, "report", "web")["services"]
    assert (told["failures"], told["outages"], told["restarts"], told["runs"]) == (1, 1, 1, 2)
    assert 0 < told["availability"] < 1
    shown = circlectl(box, "report", "web").stdout.splitlines()
    assert shown[2].startswith("web ")
    assert shown[2].endswith("1 restart")


def test_who_stopped_it_is_in_the_history_and_in_the_difference(box, running) -> None:
    before = box.events()[-1]["seq"]
    assert circlectl(box, "stop", "web", "--wait").returncode == 0
    (web,) = asked(box, "history", "web")
    assert web["runs"][-1]["ended_by"]["event"]["actor"]["uid"] == os.getuid()
    found = asked(box, "diff", f"seq:{before}", "0s ago")
    (change,) = found["services"]
    assert (change["service"], change["after"]["status"]) == ("web", "Stopped")
    assert [act["type"] for act in found["acts"]] == ["stop_requested"]
    after = box.events()[-1]["seq"]
    shown = circlectl(box, "diff", f"seq:{before}", f"seq:{after}")
    assert "~ web  status Running -> Stopped, reason ready -> requested" in shown.stdout
    assert replay(box, "--diff", f"seq:{before}", f"seq:{after}").stdout == shown.stdout


def test_a_run_that_outlives_the_registry_was_up_all_the_time(box, running) -> None:
    box.kill()
    box.start()
    box.wait_status("web", "Running")
    (web,) = asked(box, "history", "web")
    assert [(run["adopted"], run["ended"]) for run in web["runs"]] == [(1, None)]
    report = asked(box, "report")
    told = {each["service"]: each for each in report["services"]}
    assert (told["web"]["unknown_s"], told["web"]["outages"]) == (0, 0)
    assert told["web"]["up_s"] == pytest.approx(told["web"]["states_s"]["Running"])
    for each in told.values():
        assert sum(each["states_s"].values()) == pytest.approx(report["period"]["seconds"])
    boot = asked(box, "report", "--boot")
    assert (boot["fresh"], boot["pid"]) == (False, box.daemon.pid)
    results = {each["service"]: each["result"] for each in boot["services"]}
    assert results == {"db": "adopted", "web": "adopted"}


def test_a_run_that_ends_while_no_registry_runs_ends_at_a_time_that_is_not_made_up(
    box, running
) -> None:
    box.kill()
    os.kill(running["pid"], signal.SIGKILL)
    box.wait_for(lambda: not box.is_running(running["pid"]), "web has ended")
    box.start()
    box.wait_status("web", "Running")
    (web,) = asked(box, "history", "web")
    first = web["runs"][0]
    assert first["ended_after"] < first["ended"]
    assert first["ran_s"] is None
    (told,) = asked(box, "report", "web")["services"]
    assert told["unknown_s"] > 0
    assert told["failures"] == 1
    shown = circlectl(box, "history", "web").stdout
    assert "ended while nobody watched, from " in shown


def test_a_start_is_told_by_what_took_how_long_and_by_its_longest_way(box, running) -> None:
    boot = asked(box, "report", "--boot")
    results = {each["service"]: each["result"] for each in boot["services"]}
    assert results == {"db": "ready", "setup": "completed", "web": "ready"}
    assert [link["service"] for link in boot["chain"]] == ["db", "setup", "web"]
    assert [link["condition"] for link in boot["chain"]] == ["ready", "completed", "ready"]
    told = circlectl(box, "report", "--boot").stdout
    assert "the longest way, its end first" in told
    box.stop()
    assert replay(box, "--report", "--boot").stdout == told


def test_a_changed_definition_is_told_by_its_keys_and_who_applied_it(box, running) -> None:
    before = box.events()[-1]["seq"]
    box.configure(
        SERVICES.replace('"sleep", "1000"]\ndepends_on = ["db", "setup"]', '"sleep", "999"]')
    )
    assert circlectl(box, "apply", "--wait").returncode == 0
    (web,) = asked(box, "history", "web")
    assert web["runs"][-1]["changed"] == ["cmd", "depends_on"]
    (change,) = asked(box, "diff", f"seq:{before}", "0s ago", "web")["services"]
    assert change["keys"] == ["cmd", "depends_on"]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["history", "wep"], 4, "there is no service 'wep', did you mean 'web'?"),
        (["report", "wep"], 4, "there is no service 'wep', did you mean 'web'?"),
        (["report", "--since", "soon"], 2, "since: 'soon' is not a time"),
        (["report", "--since", "03:15", "--until", "03:14"], 2, "since is later than until"),
        (["history", "web", "--since", "0s ago", "--until", "1s ago"], 2, "later than until"),
        (["diff", "seq:3", "seq:2"], 2, "write the earlier first"),
        (["diff", "seq:3", "noon"], 2, "until: 'noon' is no time and no event"),
        (["diff", "seq:3", "seq:99999"], 2, "there is no event 99999"),
        (["report", "--boot", "--at", "seq:1"], 2, "no start of the registry is in the journal"),
        (["report", "--boot", "web", "db"], 2, "name one"),
    ],
)
def test_what_cannot_be_answered_is_a_sentence(box, running, arguments, status, said) -> None:
    done = circlectl(box, *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr


def test_a_service_that_is_no_longer_declared_has_its_history(box, running) -> None:
    box.configure(SERVICES.split('[[service]]\nname = "web"', maxsplit=1)[0])
    assert circlectl(box, "apply", "--wait").returncode == 0
    box.wait_for(lambda: not any(r["name"] == "web" for r in box.data("list_services")), "gone")
    (web,) = asked(box, "history", "web")
    assert web["runs"][0]["ended_by"]["event"]["reason"] == "removed"
    (told,) = asked(box, "report", "web")["services"]
    assert told["declared"] is False
    assert [each["service"] for each in asked(box, "history", "w*b")] == ["web"]
    assert [each["service"] for each in asked(box, "report", "w?b")["services"]] == ["web"]
    gone, *because = circlectl(box, "why", "web").stdout.splitlines()
    assert gone.startswith("web is no longer declared since 20")
    assert because[0].startswith("  because it was removed (event ")
    assert f"by uid {os.getuid()} (" in because[-1]


def test_bad_parameters_are_refused_over_the_socket(box, running) -> None:
    for given in (
        {"action": "history", "service": "web", "limit": 0},
        {"action": "report", "boot": True, "since": "03:14"},
        {"action": "report", "at": "03:14"},
        {"action": "diff", "since": "03:14"},
    ):
        assert box.ask(**given)["error"]["code"] == "invalid_params"
