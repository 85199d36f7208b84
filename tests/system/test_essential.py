"""`essential = true`: when such a service is finally gone, the others are stopped and the daemon exits with 10."""

from __future__ import annotations

import os
import signal

import pytest

SLEEP = 'cmd = ["sleep", "1000"]'
EX_ESSENTIAL = 10


def service(name: str, keys: str) -> str:
    return f'[[service]]\nname = "{name}"\n{keys}\n'


def when_told(end: str) -> str:
    """A program that ends so once there is a file `go`."""
    return f'cmd = ["sh", "-c", "while ! test -e go; do sleep 0.01; done; {end}"]\nessential = true'


GONE = {
    "completed": (when_told("exit 0") + '\nrestart = "Never"', "completed"),
    "clean, and restarted only on failure": (
        when_told("exit 0") + '\nrestart = "OnFailure"',
        "completed",
    ),
    "failed for good": (when_told("exit 3") + '\nrestart = "Never"', "exited with an error"),
    "killed": (when_told("kill -9 $$") + '\nrestart = "Never"', "killed by a signal"),
    "gave up": (
        when_told("exit 1") + '\nrestart = { delay = "1ms", limit = 3, within = "1m" }',
        "restart limit reached",
    ),
}


@pytest.mark.parametrize("how", GONE)
def test_when_it_is_finally_gone_the_others_stop_orderly_and_the_status_is_10(box, how):
    keys, reason = GONE[how]
    box.configure(
        service("main", keys)
        + service("aside", SLEEP)
        + service("off", f"{SLEEP}\nautostart = false")
    )
    box.start()
    box.wait_status("main", "Running")
    aside = box.wait_status("aside", "Running")["pid"]
    (box.folder / "go").touch()
    assert box.daemon.wait(10) == EX_ESSENTIAL
    assert not box.is_running(aside)
    box.wait_for(lambda: not box.left(), "nothing is left")
    told = box.errors.read_text()
    assert f"[ERROR] Essential service main is gone ({reason})" in told
    assert "Traceback" not in told
    box.verify()
    (box.folder / "go").unlink()
    box.start()
    assert box.wait_status("main", "Running")["wanted"] == "up"
    stopped = box.last("aside", "stop_requested")
    assert stopped["reason"] == "shutdown"


def test_one_that_cannot_be_started_ends_it_too(box):
    box.configure(
        service("main", 'cmd = ["./nowhere"]\nessential = true') + service("aside", SLEEP)
    )
    box.daemon = box.spawn("--config", "etc/services.toml")
    assert box.daemon.wait(10) == EX_ESSENTIAL
    box.wait_said("Essential service main is gone (program missing)")
    box.wait_for(lambda: not box.left(), "nothing is left")


def test_one_that_is_gone_when_nobody_supervised_ends_the_next(box):
    box.configure(
        service("main", when_told("exit 4") + '\nrestart = "Never"') + service("aside", SLEEP)
    )
    box.start()
    pid = box.wait_status("main", "Running")["pid"]
    aside = box.wait_status("aside", "Running")["pid"]
    box.kill()
    (box.folder / "go").touch()
    box.wait_for(lambda: not box.is_running(pid), "it has ended")
    box.daemon = box.spawn("--config", "etc/services.toml")
    assert box.daemon.wait(10) == EX_ESSENTIAL
    assert not box.is_running(aside)


def test_an_operator_may_stop_and_restart_it(box):
    box.configure(service("main", f"{SLEEP}\nessential = true") + service("aside", SLEEP))
    box.start()
    box.wait_status("main", "Running")
    (record,) = box.data("stop", service="main", wait=True)
    assert record["status"] == "Stopped"
    assert box.service("aside")["status"] == "Running"
    box.data("start", service="main", wait=True)
    box.data("restart", service="main", wait=True)
    assert box.wait_status("main", "Running")["run"] == 3
    assert box.daemon.poll() is None
    assert box.stop() == 0, "that is no failure"


def test_restarts_by_policy_do_not_end_it(box):
    restart = 'restart = { delay = "50ms", limit = 3, within = "1m" }'
    box.configure(service("main", f"{SLEEP}\nessential = true\n{restart}"))
    box.start()
    for run in (1, 2, 3):
        os.kill(box.wait_status("main", "Running", run=run)["pid"], signal.SIGKILL)
    assert box.wait_status("main", "Running", run=4)["restarts"] == 3
    assert box.daemon.poll() is None


def test_a_restart_for_a_failed_check_does_not_end_it(box):
    check = 'health_check = { target = "cmd:test ! -e sick", interval = "30ms", failures = 1 }'
    box.configure(service("main", f"{SLEEP}\nessential = true\n{check}"))
    box.start()
    box.wait_status("main", "Running", health="healthy")
    (box.folder / "sick").touch()
    box.wait_for(lambda: box.events("main", "became_unhealthy"), "it is sick")
    (box.folder / "sick").unlink()
    box.wait_status("main", "Running", run=2)
    assert box.daemon.poll() is None


def test_a_gone_one_that_is_not_essential_ends_nothing(box):
    box.configure(service("job", 'cmd = ["true"]\nrestart = "Never"') + service("up", SLEEP))
    box.start()
    box.wait_status("job", "Stopped", reason="completed")
    box.wait_status("up", "Running")
    assert box.daemon.poll() is None
