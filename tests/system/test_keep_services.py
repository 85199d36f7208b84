"""An end that leaves the services running: asked for, or as `on_sigterm` says. The next registry takes them up."""

from __future__ import annotations

import os
import signal

import pytest

SLEEP = 'cmd = ["sleep", "1000"]'
COUNT = """
import sys, time
number = 0
while True:
    number += 1
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
    time.sleep(0.002)
"""


def service(name: str, keys: str) -> str:
    return f'[[service]]\nname = "{name}"\n{keys}\n'


def end_keeping(box, how: str) -> None:
    """End the registry without its services."""
    if how == "sigterm":
        box.daemon.terminate()
    else:
        box.data("shutdown", keep_services=True)
    assert box.daemon.wait(10) == 0
    assert not box.socket.exists()


KEEP = 'on_sigterm = "keep"'


@pytest.mark.parametrize("how", ["sigterm", "shutdown"])
def test_kept_services_run_on_are_logged_and_adopted(box, how):
    """Nothing of their output is lost, and nothing doubled."""
    box.configure(
        service("count", f"cmd = {box.python('count', COUNT)}") + service("two", SLEEP), KEEP
    )
    box.start()
    before = {name: box.wait_status(name, "Running")["pid"] for name in ("count", "two")}
    end_keeping(box, how)
    seen = box.log("count").count("\n")
    box.wait_for(lambda: box.log("count").count("\n") > seen + 50, "the keeper logs on")
    assert all(box.is_running(pid) for pid in before.values())
    box.start()
    for name, pid in before.items():
        record = box.service(name)
        assert (record["status"], record["pid"], record["run"]) == ("Running", pid, 1)
    box.data("stop", service="count", wait=True)
    numbers = box.log("count").split()
    assert numbers == [str(n) for n in range(1, len(numbers) + 1)]
    box.wait_said("kept")
    assert box.events(type="registry_stopped")[-1]["data"]["kept"] is True
    box.verify()


def test_what_is_wanted_survives(box):
    """Unlike an orderly end, after which `autostart` decides anew."""
    box.configure(
        service("up", SLEEP)
        + service("down", SLEEP)
        + service("lazy", f"{SLEEP}\nautostart = false")
    )
    box.start()
    box.data("start", service="lazy", wait=True)
    box.data("stop", service="down", wait=True)
    end_keeping(box, "shutdown")
    box.start()
    assert {name: box.service(name)["status"] for name in ("up", "down", "lazy")} == {
        "up": "Running",
        "down": "Stopped",
        "lazy": "Running",
    }
    assert box.service("lazy")["run"] == 1
    assert box.events(type="registry_started")[-1]["data"]["fresh"] is False


def test_a_stop_and_a_delayed_restart_under_way_are_completed_by_the_next(box):
    deaf = """cmd = ["sh", "-c", "trap '' TERM; touch up; while :; do sleep 0.05; done"]"""
    loop = 'cmd = ["false"]\nrestart = { delay = "600ms" }'
    box.configure(service("deaf", f'{deaf}\nstop = "900ms"') + service("loop", loop))
    box.start()
    box.wait_for((box.folder / "up").exists, "it runs")
    pid = box.wait_status("deaf", "Running")["pid"]
    box.wait_status("loop", "Restarting", reason="crash_looping")
    box.data("stop", service="deaf")
    end_keeping(box, "shutdown")
    assert box.is_running(pid)
    box.start()
    box.wait_status("deaf", "Stopped", wanted="down")
    assert not box.is_running(pid)
    box.wait_for(lambda: len(box.events("loop", "restart_scheduled")) >= 3, "it goes on")
    attempts = [event["data"]["attempt"] for event in box.events("loop", "restart_scheduled")]
    assert attempts[:3] == [1, 2, 3]
    box.verify()


def test_an_exit_before_the_next_registry_comes_is_judged_by_it(box):
    """Its policy applies then; its last lines are there."""
    command = 'cmd = ["sh", "-c", "while ! test -e go; do sleep 0.01; done; echo last; exit 3"]'
    box.configure(service("job", f'{command}\nrestart = "Never"') + service("up", SLEEP))
    box.start()
    pid = box.wait_status("job", "Running")["pid"]
    box.wait_status("up", "Running")
    end_keeping(box, "shutdown")
    (box.folder / "go").touch()
    box.wait_for(lambda: not box.is_running(pid), "it has ended")
    box.start()
    assert box.wait_status("job", "Failed")["wanted"] == "up"
    assert box.log("job") == "last\n"


def test_sigint_stops_the_services_all_the_same(box):
    box.configure(service("up", SLEEP), KEEP)
    box.start()
    pid = box.wait_status("up", "Running")["pid"]
    box.daemon.send_signal(signal.SIGINT)
    assert box.daemon.wait(10) == 0
    assert not box.is_running(pid)
    box.wait_for(lambda: not box.left(), "nothing is left")


def test_shutdown_stops_the_services_all_the_same(box):
    """A command says what it means: `on_sigterm` is about a signal."""
    box.configure(service("up", SLEEP), KEEP)
    box.start()
    pid = box.wait_status("up", "Running")["pid"]
    box.data("shutdown")
    assert box.daemon.wait(10) == 0
    assert not box.is_running(pid)
    box.wait_for(lambda: not box.left(), "nothing is left")


def test_a_killed_registry_after_a_kept_end_is_recovered_like_any_other(box):
    box.configure(service("up", SLEEP), KEEP)
    box.start()
    pid = box.wait_status("up", "Running")["pid"]
    end_keeping(box, "sigterm")
    box.start()
    box.kill()
    box.start()
    assert (box.service("up")["pid"], box.service("up")["run"]) == (pid, 1)
    os.kill(pid, signal.SIGKILL)
    assert box.wait_status("up", "Running", run=2)["restarts"] == 1
    box.verify()


def test_a_wrong_on_sigterm_is_refused(box):
    box.configure(service("up", SLEEP), 'on_sigterm = "ignore"')
    status, said = box.run("--config", "etc/services.toml")
    assert status == 78
    assert "on_sigterm" in said
