"""The orderly end: SIGTERM and SIGINT stop everything, exit 0 and leave nothing; a second one hurries."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess

import pytest

SLEEP = 'cmd = ["sleep", "1000"]'
DEAF = """cmd = ["sh", "-c", "trap '' TERM; touch up; while :; do sleep 0.05; done"]"""


def service(name: str, keys: str) -> str:
    return f'[[service]]\nname = "{name}"\n{keys}\n'


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_every_service_and_leaves_nothing(box, number):
    services = [
        service("up", SLEEP),
        service("family", 'cmd = ["sh", "-c", "sleep 1000 & setsid sleep 1000 & wait"]'),
        service("loop", 'cmd = ["false"]\nrestart = { delay = "10m", delay_max = "10m" }'),
        service("failed", 'cmd = ["false"]\nrestart = "Never"'),
        service("missing", 'cmd = ["./nowhere"]'),
        service("down", f"{SLEEP}\nautostart = false"),
        service(
            "checked", f'{SLEEP}\nhealth_check = {{ target = "cmd:sleep 1000", interval = "50ms" }}'
        ),
    ]
    box.configure("".join(services))
    box.start()
    for name, status in (
        ("up", "Running"),
        ("family", "Running"),
        ("failed", "Failed"),
        ("missing", "Failed"),
    ):
        box.wait_status(name, status)
    box.wait_status("loop", "Restarting", reason="crash_looping")
    box.daemon.send_signal(number)
    assert box.daemon.wait(10) == 0
    box.wait_for(lambda: not box.left(), "nothing is left, nor the keeper")
    assert not box.socket.exists()
    assert not (box.folder / "var" / "keeper.sock").exists()
    told = box.errors.read_text()
    assert "Traceback" not in told
    assert told.endswith("[INFO] Service registry stopped\n")
    box.verify()
    assert not box.journal.with_name("registry.db-wal").exists(), "the journal is one file again"
    leftovers = {path.name for path in (box.folder / "var").iterdir()}
    expected = {"registry.db", "registry.lock", "registry.id", "digest.key"}
    expected |= {"svc-gate", "native", "log", "keeper.log"}
    assert leftovers <= expected, leftovers - expected


def test_a_folder_that_does_not_answer_keeps_nobody_from_the_end(box, far):
    """Nobody needs it: its service does not start by itself."""
    box.configure(
        service("up", SLEEP) + service("report", f'{SLEEP}\ncwd = "/far"\nautostart = false')
    )
    box.start(program=far)
    box.wait_status("up", "Running")
    box.wait_lines("asked", 1)
    assert box.stop() == 0
    box.wait_for(lambda: not box.left(), "nothing is left")
    assert "Traceback" not in box.errors.read_text()


def test_the_end_is_in_the_journal_with_its_reason(box):
    box.configure(service("up", SLEEP))
    box.start()
    box.wait_status("up", "Running")
    assert box.stop() == 0
    box.start()
    requested, exited, emptied = (
        box.events("up", t)[0] for t in ("stop_requested", "exited", "group_emptied")
    )
    assert requested["reason"] == "shutdown"
    assert (exited["cause"], emptied["cause"]) == (requested["seq"], exited["seq"])
    assert len(box.events(type="registry_stopped")) == 1
    assert box.events(type="registry_started")[1]["data"]["fresh"] is True


def test_a_second_sigterm_hurries_what_ignores_the_first(box):
    box.configure(service("deaf", f'{DEAF}\nstop = "60s"'))
    box.start()
    box.wait_for((box.folder / "up").exists, "it runs")
    box.daemon.terminate()
    box.wait_said("Stopping deaf")
    assert box.daemon.poll() is None
    box.daemon.terminate()
    assert box.daemon.wait(10) == 0
    box.wait_for(lambda: not box.left(), "nothing is left")
    box.verify()


def test_a_second_sigterm_hurries_what_was_told_to_stop_before(box):
    box.configure(service("deaf", f'{DEAF}\nstop = "60s"') + service("other", SLEEP))
    box.start()
    box.wait_for((box.folder / "up").exists, "it runs")
    box.data("stop", service="deaf")
    box.daemon.send_signal(signal.SIGINT)
    box.wait_said("Stopped other")
    box.daemon.send_signal(signal.SIGINT)
    assert box.daemon.wait(10) == 0
    box.wait_for(lambda: not box.left(), "nothing is left")


def test_signals_before_it_is_up_end_it_too(box):
    """Two at once, right after its start, at whatever moment of it."""
    box.configure(service("up", SLEEP))
    for delay_s in (0.12, 0.16, 0.2, 0.24):
        daemon = box.daemon = box.spawn("--config", "etc/services.toml")
        with pytest.raises(subprocess.TimeoutExpired):
            daemon.wait(delay_s)
        daemon.terminate()
        daemon.terminate()
        assert daemon.wait(10) in (0, -signal.SIGTERM, -signal.SIGINT)
        box.wait_for(lambda: not box.left(), "nothing is left")
    assert "Traceback" not in box.errors.read_text()


def test_commands_during_the_end_are_refused_and_questions_answered(box):
    box.configure(service("deaf", f'{DEAF}\nstop = "800ms"') + service("other", SLEEP))
    box.start()
    box.wait_for((box.folder / "up").exists, "it runs")
    box.daemon.terminate()
    box.wait_status("other", "Stopped")
    assert box.ask("start", service="other")["error"]["code"] == "shutting_down"
    assert box.ask("shutdown")["error"]["code"] == "shutting_down"
    assert box.service("deaf")["status"] == "Stopping"
    assert box.daemon.wait(10) == 0
    box.wait_for(lambda: not box.left(), "nothing is left")


def test_an_end_with_nobody_reading_its_log_is_an_orderly_end(box):
    """Its stderr is a pipe that is full: supervision and the end do not wait for it."""
    box.configure(
        service("chatty", 'cmd = ["true"]\nrestart = { delay = "1ms", delay_max = "1ms" }')
    )
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    try:
        box.start(stderr=writer)
        box.wait_for(lambda: box.service("chatty")["run"] > 20, "it supervises")
        assert box.stop() == 0
        box.wait_for(lambda: not box.left(), "nothing is left")
        box.verify()
    finally:
        os.close(reader)
        os.close(writer)
