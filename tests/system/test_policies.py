"""Restart policies on real processes: what starts again, how soon, how often, and what is left of a run."""

from __future__ import annotations

import os
import signal
from datetime import datetime

import pytest

SLEEP = 'cmd = ["sleep", "1000"]'
ENDS: dict[str, tuple[str, int | None, int | None]] = {
    "exit 0": ("exit 0", None, 0),
    "exit 3": ("exit 3", None, 3),
    "kill -9": ("kill -9 $$", 9, None),
}


def service(name: str, keys: str) -> str:
    return f'[[service]]\nname = "{name}"\n{keys}\n'


def once(command: str) -> str:
    """A command that ends as told the first time and stays the second time."""
    return f"""cmd = ["sh", "-c", "test -e again && exec sleep 1000; touch again; {command}"]"""


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("policy", ["Always", "OnFailure", "Never"])
def test_each_policy_restarts_after_the_ends_that_it_names_and_no_others(box, policy, end):
    command, number, code = ENDS[end]
    box.configure(service("job", f'{once(command)}\nrestart = "{policy}"'))
    box.start()
    if policy == "Always" or (policy == "OnFailure" and end != "exit 0"):
        record = box.wait_status("job", "Running", run=2)
        assert (record["restarts"], record["wanted"]) == (1, "up")
    else:
        clean = end == "exit 0"
        record = box.wait_status("job", "Stopped" if clean else "Failed", run=1)
        assert record["reason"] == ("completed" if clean else "signal" if number else "exit_code")
        assert (record["pid"], record["restarts"], record["next_restart_at"]) == (None, 0, None)
        assert box.types("job")[-1] == "exited"
    last = box.data("status", service="job")["last_exit"]
    assert (last["run"], last["signal"], last["exit_code"]) == (1, number, code)


def test_success_exit_codes_make_another_code_a_clean_end(box):
    keys = 'cmd = ["sh", "-c", "exit 3"]\nrestart = "OnFailure"\nsuccess_exit_codes = [0, 3]'
    box.configure(service("job", keys))
    box.start()
    assert box.wait_status("job", "Stopped")["reason"] == "completed"


def test_a_killed_service_has_a_new_pid_within_a_second_by_one_decision(box):
    box.configure(service("web", SLEEP))
    box.start()
    first = box.wait_status("web", "Running")
    os.kill(first["pid"], signal.SIGKILL)
    second = box.wait_for(lambda: (now := box.service("web"))["run"] == 2 and now, "run 2", 1.0)
    assert second["pid"] not in (None, first["pid"])
    box.wait_status("web", "Running")
    exited, scheduled, due, spawned, ready = box.events("web")[-5:]
    chain = [exited, scheduled, due, spawned]
    assert [event["type"] for event in chain] == [
        "exited",
        "restart_scheduled",
        "restart_due",
        "spawned",
    ]
    assert {event["decision"] for event in chain} == {exited["seq"]}
    assert [event["cause"] for event in [*chain, ready]][1:] == [event["seq"] for event in chain]
    assert (ready["type"], ready["cause"]) == ("became_ready", spawned["seq"])
    assert exited["data"]["signal"] == signal.SIGKILL
    moved = [datetime.fromisoformat(event["at"]) for event in (exited, spawned)]
    assert (moved[1] - moved[0]).total_seconds() < 1


def test_a_crash_loop_waits_longer_each_time_and_says_when_the_next_attempt_comes(box):
    box.configure(service("bad", 'cmd = ["false"]\nrestart = { delay = "40ms", delay_max = "2m" }'))
    box.start()
    box.wait_for(lambda: len(box.events("bad", "restart_scheduled")) >= 5, "five restarts")
    delays = [event["data"]["delay_s"] for event in box.events("bad", "restart_scheduled")][:5]
    assert delays[0] == 0
    for delay, base in zip(delays[1:], (0.04, 0.08, 0.16, 0.32), strict=True):
        assert base <= delay <= base * 1.1
    record = box.wait_status("bad", "Restarting", reason="crash_looping")
    assert (record["pid"], record["wanted"]) == (None, "up")
    at = datetime.fromisoformat(record["next_restart_at"])
    assert at > datetime.fromisoformat(record["since"])
    box.wait_said("[WARN] bad crash-looping, attempt 2, next in 0.04")


def test_no_delay_is_longer_than_delay_max(box):
    box.configure(
        service("bad", 'cmd = ["false"]\nrestart = { delay = "20ms", delay_max = "20ms" }')
    )
    box.start()
    box.wait_for(lambda: len(box.events("bad", "restart_scheduled")) >= 6, "six restarts")
    delays = [event["data"]["delay_s"] for event in box.events("bad", "restart_scheduled")]
    assert max(delays) <= 0.022


def limited(limit: int) -> str:
    return f'restart = {{ delay = "10ms", limit = {limit}, within = "1m" }}'


def test_at_its_limit_a_service_is_failed_until_somebody_starts_it(box):
    box.configure(service("bad", f'cmd = ["sh", "-c", "echo run >> runs; exit 1"]\n{limited(2)}'))
    box.start()
    record = box.wait_status("bad", "Failed", reason="restart_limit")
    assert (record["run"], record["restarts"], record["next_restart_at"]) == (3, 2, None)
    assert box.last("bad", "gave_up")["data"] == {"restarts": 2, "within_s": 60.0}
    assert len(box.lines("runs")) == 3
    box.wait_said("[ERROR] bad gave up: 2 restarts within 60 s")
    box.data("start", service="bad")
    box.wait_status("bad", "Failed", reason="restart_limit", run=6)
    assert len(box.lines("runs")) == 6


def test_a_reset_forgets_the_failures_of_a_service_that_gave_up(box):
    box.configure(service("bad", f'cmd = ["false"]\n{limited(1)}'))
    box.start()
    box.wait_status("bad", "Failed", reason="restart_limit")
    (answer,) = box.data("reset", service="bad")
    assert answer["status"] == "Stopped"
    record = box.service("bad")
    assert (record["status"], record["reason"], record["restarts"]) == ("Stopped", "reset", 0)


def test_a_program_folder_user_or_env_file_that_is_missing_fails_that_service_alone(box):
    missing = {
        "program_missing": 'cmd = ["./nowhere"]',
        "cwd_missing": f'{SLEEP}\ncwd = "nowhere"',
        "user_missing": f'{SLEEP}\nuser = "nobody-has-this-name"',
        "group_missing": f'{SLEEP}\ngroup = "nobody-has-this-name"',
        "env_file_missing": f'{SLEEP}\nenv_file = "nowhere.env"',
        "program_not_executable": 'cmd = ["./plain.py"]',
        "exec_failed": 'cmd = ["./script.py"]',
    }
    box.program("plain", "")
    box.program("script", "#!/no/such/interpreter\n").chmod(0o755)
    services = [service(name.replace("_", "-"), keys) for name, keys in missing.items()]
    box.configure("".join([*services, service("good", SLEEP)]))
    box.start()
    box.wait_status("good", "Running")
    for reason in missing:
        record = box.wait_status(reason.replace("_", "-"), "Failed", reason=reason)
        assert (record["pid"], record["next_restart_at"]) == (None, None)
    for reason in missing:
        box.wait_said(f"service '{reason.replace('_', '-')}'")
        box.wait_said(f"{reason.replace('_', '-')} cannot start")
    assert [event["service"] for event in box.events(type="became_ready")] == ["good"]
    tries = [box.events(type="spawned"), box.events(type="spawn_failed")]
    box.data("status", service="program-missing")
    tried = [box.events(type="spawned"), box.events(type="spawn_failed")]
    assert tried == tries, "nothing is tried again by itself"


def test_what_was_missing_is_found_by_the_next_start(box):
    box.configure(service("late", 'cmd = ["./late.py"]'))
    box.start()
    box.wait_status("late", "Failed", reason="program_missing")
    box.program("late", "#!/bin/sh\nexec sleep 1000\n").chmod(0o755)
    (record,) = box.data("start", service="late", wait=True)
    assert (record["status"], record["run"]) == ("Running", 1)


def test_a_grandchild_is_gone_before_the_next_run_starts(box):
    """The second run looks for what the first one left: a process in a session of its own."""
    text = """
import os, sys, time
from pathlib import Path

if Path("left").exists():
    try:
        state = Path(f"/proc/{Path('left').read_text()}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        state = "gone"
    Path("verdict").write_text("gone" if state in ("Z", "X", "gone") else "alive")
    time.sleep(1000)
read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    Path("left").write_text(str(os.getpid()))
    os.write(write, b"x")
    time.sleep(1000)
os.read(read, 1)
sys.exit(1)
"""
    box.configure(service("parent", f'cmd = {box.python("parent", text)}\nstop = "500ms"'))
    box.start()
    box.wait_status("parent", "Running", run=2)
    assert box.wait_lines("verdict", 1) == ["gone"]
    assert "group_emptied" in box.types("parent")
    exited, emptied, spawned = (
        box.last("parent", t) for t in ("exited", "group_emptied", "spawned")
    )
    assert exited["data"]["group_empty"] is False
    assert exited["seq"] < emptied["seq"] < spawned["seq"]


def test_a_clean_end_with_leftovers_stays_a_clean_end(box):
    command = 'cmd = ["sh", "-c", "sleep 1000 & exit 0"]'
    box.configure(service("job", f'{command}\nrestart = "OnFailure"\nstop = "500ms"'))
    box.start()
    record = box.wait_status("job", "Stopped")
    assert (record["reason"], record["run"]) == ("completed", 1)
    assert box.data("status", service="job")["last_exit"]["reason"] == "completed"


def test_a_run_that_ignores_sigterm_is_killed_with_its_group_after_the_timeout(box):
    command = """cmd = ["sh", "-c", "trap '' TERM; (trap '' TERM; sleep 1000) & touch up; wait; sleep 1000"]"""
    box.configure(service("deaf", f'{command}\nstop = "200ms"'))
    box.start()
    box.wait_for((box.folder / "up").exists, "it runs")
    (record,) = box.data("stop", service="deaf", wait=True)
    assert (record["status"], record["pid"]) == ("Stopped", None)
    assert box.last("deaf", "group_emptied")["data"]["killed"] >= 2


def test_the_stop_signal_is_the_one_declared(box):
    text = """
import signal, sys, time
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(7))
open("up", "w").close()
time.sleep(1000)
"""
    keys = f'cmd = {box.python("polite", text)}\nstop = {{ signal = "SIGUSR1", timeout = "5s" }}'
    box.configure(service("polite", keys))
    box.start()
    box.wait_for((box.folder / "up").exists, "it runs")
    box.data("stop", service="polite", wait=True)
    assert box.last("polite", "exited")["data"]["exit_code"] == 7
    assert box.service("polite")["status"] == "Stopped"


def test_a_start_that_is_not_ready_in_time_is_a_failure_whatever_its_exit_code(box):
    text = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
time.sleep(1000)
"""
    check = f'health_check = {{ target = "unix:{box.folder}/none", interval = "50ms" }}'
    keys = f'cmd = {box.python("slow", text)}\nstart_timeout = "300ms"\n{check}'
    box.configure(
        service("slow", f'{keys}\nrestart = {{ policy = "OnFailure", limit = 1, within = "1m" }}')
    )
    box.start()
    record = box.wait_status("slow", "Failed", reason="restart_limit")
    assert (record["run"], record["restarts"]) == (2, 1)
    assert box.last("slow", "start_timed_out")["data"] == {"timeout_s": 0.3}
    assert box.last("slow", "exited")["data"]["exit_code"] == 0
    box.wait_said("[WARN] slow not ready within 0.3 s")


def test_a_crash_loop_obeys_start_stop_and_reset(box):
    command = 'cmd = ["sh", "-c", "test -e well && exec sleep 1000; exit 1"]'
    keys = f'{command}\nrestart = {{ delay = "10m", delay_max = "10m" }}'
    box.configure(service("bad", keys))
    box.start()
    assert box.wait_status("bad", "Restarting", reason="crash_looping")["run"] == 2
    (answer,) = box.data("reset", service="bad")
    record = box.service("bad")
    assert (answer["status"], record["restarts"]) == ("Restarting", 0)
    (answer,) = box.data("stop", service="bad", wait=True)
    assert (answer["status"], answer["next_restart_at"], answer["wanted"]) == (
        "Stopped",
        None,
        "down",
    )
    box.data("start", service="bad")
    assert box.wait_status("bad", "Restarting", reason="crash_looping")["run"] == 4, (
        "the first restart is at once again"
    )
    (box.folder / "well").touch()
    (record,) = box.data("restart", service="bad", wait=True)
    assert (record["status"], record["run"], record["next_restart_at"]) == ("Running", 5, None)


def test_a_service_killed_while_it_starts_starts_again(box):
    check = f'health_check = {{ target = "unix:{box.folder}/none", interval = "50ms" }}'
    box.configure(service("slow", f"{SLEEP}\n{check}"))
    box.start()
    os.kill(box.wait_status("slow", "Starting", run=1)["pid"], signal.SIGKILL)
    record = box.wait_status("slow", "Starting", run=2)
    assert record["restarts"] == 1
