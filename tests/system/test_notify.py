"""What services say by sd_notify: what follows from it, from whom it counts, and that none of it gets lost.

The service here carries out orders (Python, on a socket), so that each test says what it is about.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import datetime

import pytest

pytestmark = [pytest.mark.platform("linux"), pytest.mark.timeout(30)]

needs_root = pytest.mark.skipif(
    os.getuid() != 0, reason="only root can start other users' programs"
)

SPEAKER = """
import os, signal, socket, sys, time

path, opening = sys.argv[1:]

def say(text, *fds):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(os.environ["NOTIFY_SOCKET"])
        socket.send_fds(sock, [text.encode()], fds)

def serve():
    if os.path.exists(path):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    while True:
        client, _address = listener.accept()
        with client:
            given = {**globals(), "answer": None}
            exec(client.makefile().read(), given)
            client.sendall(repr(given["answer"]).encode())

exec(opening)
serve()
"""

DAEMON = """
def daemonize(who_says):
    learnt, tells = os.pipe()
    if os.fork():
        pid = int(os.read(learnt, 20))
        if who_says == "parent":
            say(f"MAINPID={pid}\\nREADY=1")
        os._exit(0)
    os.setsid()
    between = os.getpid()
    if os.fork():
        os._exit(0)
    while os.getppid() == between:
        time.sleep(0.001)
    if who_says == "daemon":
        say(f"MAINPID={os.getpid()}\\nREADY=1")
        answered, barrier = os.pipe()
        say("BARRIER=1", barrier)
        os.close(barrier)
        os.read(answered, 1)
    os.write(tells, str(os.getpid()).encode())
    serve()
"""
"""The classic way: fork, setsid, fork, and who was started ends at once."""


def speaker(box, keys: str = "", opening: str = "", name: str = "speaker") -> str:
    """A service that carries out orders, and says nothing unless ordered to."""
    program = json.loads(box.python(name, SPEAKER))
    command = json.dumps([*program, str(box.folder / f"{name}.sock"), opening])
    return f'[[service]]\nname = "{name}"\nready = "notify"\ncmd = {command}\n{keys}\n'


def order(box, code: str, name: str = "speaker") -> str:
    """Have the service carry this out, once it can; what `answer` is then."""

    def reach() -> socket.socket | None:
        client = socket.socket(socket.AF_UNIX)
        try:
            client.connect(str(box.folder / f"{name}.sock"))
        except OSError:
            client.close()
            return None
        return client

    with box.wait_for(reach, f"{name} takes orders") as client:
        client.settimeout(10)
        client.sendall(code.encode())
        client.shutdown(socket.SHUT_WR)
        with client.makefile() as answer:
            return str(answer.read())


def say(box, text: str, name: str = "speaker") -> None:
    order(box, f"say({text!r})", name)


def begin(box, keys: str = "", opening: str = "", **how) -> int:
    """The registry with a service that is Starting, but where its `opening` says more; the service's pid."""
    box.configure(speaker(box, keys, opening))
    box.start(**how)
    return int(box.wait_for(lambda: box.service("speaker")["pid"], "it has been started"))


def told(box) -> dict:
    """What `status` shows of what it said."""
    status = box.data("status", service="speaker")
    return {key: status[key] for key in ("status_text", "errno")}


def at(event: dict) -> float:
    return datetime.fromisoformat(event["at"]).timestamp()


# --- what it says ---------------------------------------------------------------------------------


def test_it_is_running_when_it_says_so_and_not_before(box):
    pid = begin(box)
    say(box, "STATUS=loading")
    box.wait_for(lambda: told(box)["status_text"] == "loading", "the status is shown")
    assert box.service("speaker")["status"] == "Starting"
    say(box, "READY=1")
    record = box.wait_status("speaker", "Running", reason="ready")
    assert (record["pid"], record["run"]) == (pid, 1)
    say(box, "READY=1\nX_UNKNOWN=1\nnonsense\nSTATUS=twice")
    box.wait_for(lambda: told(box)["status_text"] == "twice", "the status is shown")
    assert box.types("speaker").count("became_ready") == 1


def test_status_and_errno_are_shown_but_not_journaled_and_a_new_run_begins_without_them(box):
    begin(box)
    say(box, "READY=1")
    box.wait_status("speaker", "Running")
    before = len(box.events("speaker"))
    say(box, "STATUS=half of it\nERRNO=2")
    box.wait_for(
        lambda: told(box) == {"status_text": "half of it", "errno": 2}, "status and errno are shown"
    )
    assert len(box.events("speaker")) == before
    box.data("restart", service="speaker")
    box.wait_status("speaker", "Starting", run=2)
    assert told(box) == {"status_text": None, "errno": None}


def test_reloading_is_shown_until_it_is_ready_again(box):
    begin(box)
    say(box, "READY=1")
    box.wait_status("speaker", "Running")
    say(box, "RELOADING=1")
    box.wait_for(lambda: told(box)["status_text"] == "reloading", "it reloads")
    say(box, "READY=1")
    box.wait_for(lambda: told(box)["status_text"] is None, "it has reloaded")
    assert box.service("speaker")["status"] == "Running"
    assert box.types("speaker").count("became_ready") == 1


def test_who_says_that_it_stops_and_does_not_is_stopped(box):
    check = 'health_check = { target = "heartbeat:", interval = "50ms", timeout = "50ms" }'
    begin(box, f'stop = {{ timeout = "300ms" }}\n{check}', "say('READY=1')")
    box.wait_status("speaker", "Running")
    say(box, "STOPPING=1")
    box.wait_status("speaker", "Starting", run=2)
    announced, timed_out = (box.last("speaker", t) for t in ("stop_announced", "stop_timed_out"))
    assert at(timed_out) - at(announced) >= 0.29
    assert timed_out["reason"] == "stop_timeout"
    types = box.types("speaker")
    assert "became_unhealthy" not in types[types.index("stop_announced") :], "its checks have ended"


@pytest.mark.parametrize("policy", ["Always", "OnFailure"])
def test_who_says_that_it_stops_and_does_ends_by_itself(box, policy):
    begin(box, f'restart = "{policy}"')
    say(box, "READY=1")
    box.wait_status("speaker", "Running")
    order(box, "say('STOPPING=1'); os._exit(0)")
    if policy == "Always":
        box.wait_status("speaker", "Starting", run=2)
    else:
        assert box.wait_status("speaker", "Stopped")["reason"] == "completed"
    assert box.last("speaker", "exited")["data"]["exit_code"] == 0
    assert "stop_timed_out" not in box.types("speaker")
    assert "stop_announced" in box.types("speaker")


def test_what_it_says_last_is_heard_although_it_has_ended(box):
    box.configure(speaker(box, 'restart = "Never"', "say('READY=1'); os._exit(3)"))
    box.start()
    box.wait_status("speaker", "Failed", reason="exit_code")
    types = box.types("speaker")
    assert types.index("became_ready") < types.index("exited")


def test_without_ready_it_fails_at_its_start_timeout(box):
    begin(box, 'start_timeout = "300ms"\nrestart = "Never"')
    box.wait_status("speaker", "Failed", reason="start_timeout")
    spawned, timed_out = (box.last("speaker", t) for t in ("spawned", "start_timed_out"))
    assert 0.29 <= at(timed_out) - at(spawned) < 5


def test_more_time_to_start_counts_from_when_it_asks(box):
    keys = 'start_timeout = "500ms"\nrestart = "Never"'
    begin(box, keys, "say('EXTEND_TIMEOUT_USEC=1200000')")
    box.wait_status("speaker", "Failed", reason="start_timeout")
    extended, timed_out = (box.last("speaker", t) for t in ("timeout_extended", "start_timed_out"))
    assert 1.19 <= at(timed_out) - at(extended) < 5


def test_more_time_to_stop_counts_from_when_it_asks(box):
    deaf = "signal.signal(15, lambda *_: say('EXTEND_TIMEOUT_USEC=1000000')); say('READY=1')"
    begin(box, 'stop = { timeout = "300ms" }', deaf)
    box.wait_status("speaker", "Running")
    box.data("stop", service="speaker", wait=True)
    asked, gone = (box.last("speaker", t) for t in ("timeout_extended", "group_emptied"))
    assert 0.99 <= at(gone) - at(asked) < 5
    assert gone["data"]["killed"] == 1


def test_more_time_after_it_said_that_it_stops(box):
    begin(box, 'stop = { timeout = "300ms" }\nrestart = "Never"', "say('READY=1')")
    box.wait_status("speaker", "Running")
    say(box, "STOPPING=1\nEXTEND_TIMEOUT_USEC=1000000")
    box.wait_status("speaker", "Failed", reason="stop_timeout")
    announced, timed_out = (box.last("speaker", t) for t in ("stop_announced", "stop_timed_out"))
    assert 0.99 <= at(timed_out) - at(announced) < 5


# --- another main process -------------------------------------------------------------------------


def daemon(box, who_says: str, keys: str = 'restart = "Never"') -> int:
    """A service that became a daemon; the daemon's pid."""
    box.configure(speaker(box, keys, f"{DAEMON}\ndaemonize({who_says!r})"))
    box.start()
    record = box.wait_status("speaker", "Running")
    assert box.last("speaker", "main_changed")["data"]["pid"] == record["pid"]
    assert box.last("speaker", "spawned")["data"]["pid"] != record["pid"]
    assert order(box, "answer = os.getpid()") == str(record["pid"])
    return int(record["pid"])


@pytest.mark.parametrize("who_says", ["parent", "daemon"])
def test_a_daemon_is_running_after_its_parent_has_ended_and_its_end_is_the_run_s(box, who_says):
    pid = daemon(box, who_says)
    spawned = box.last("speaker", "spawned")["data"]["pid"]
    box.wait_for(lambda: not box.is_running(spawned), "who was started has ended")
    say(box, "STATUS=alone")
    box.wait_for(lambda: told(box)["status_text"] == "alone", "it is heard")
    assert (box.service("speaker")["run"], box.service("speaker")["pid"]) == (1, pid)
    order(box, "os._exit(7)")
    record = box.wait_status("speaker", "Failed", run=1)
    assert record["reason"] == "exit_code"
    assert box.last("speaker", "exited")["data"]["exit_code"] == 7


@pytest.mark.parametrize("who_says", ["parent", "daemon"])
def test_a_daemon_s_violent_end_is_seen_and_it_begins_anew(box, who_says):
    pid = daemon(box, who_says, "")
    os.kill(pid, signal.SIGKILL)
    record = box.wait_status("speaker", "Running", run=2)
    assert record["pid"] != pid
    assert box.last("speaker", "exited")["data"]["signal"] == signal.SIGKILL


def test_a_daemon_is_adopted_and_still_heard_and_stopped(box):
    pid = daemon(box, "parent")
    box.kill()
    say(box, "STATUS=said meanwhile")
    box.start()
    record = box.wait_status("speaker", "Running")
    assert (record["pid"], record["run"], record["restarts"]) == (pid, 1, 0)
    box.wait_for(lambda: told(box)["status_text"] == "said meanwhile", "it was heard")
    say(box, "STATUS=said later")
    box.wait_for(lambda: told(box)["status_text"] == "said later", "it is heard")
    box.data("stop", service="speaker", wait=True)
    assert not box.is_running(pid)
    assert box.data("status", service="speaker")["last_exit"]["signal"] == signal.SIGTERM
    box.verify()


def test_a_daemon_that_ends_while_the_registry_is_down_has_ended(box):
    pid = daemon(box, "parent")
    box.kill()
    os.kill(pid, signal.SIGKILL)
    box.wait_for(lambda: not box.is_running(pid), "it has ended")
    box.start()
    assert box.wait_status("speaker", "Failed", run=1)["reason"] in ("signal", "lost")


def test_who_names_another_main_process_in_a_second_breath_and_ends_is_followed(box):
    """The second is read though the first still waits for its commit; which of both it is, is a race."""
    opening = "pid = os.fork()\nif pid: say('READY=1'); say(f'MAINPID={pid}'); os._exit(0)"
    names = [f"speaker{number}" for number in range(5)]
    keys = 'restart = "Never"'
    box.configure("".join(speaker(box, keys, opening, name) for name in names))
    box.start()
    for name in names:
        box.wait_for(lambda name=name: box.events(name, "main_changed"), f"{name} is followed")
        assert order(box, "answer = os.getpid()", name) == str(
            box.wait_status(name, "Running")["pid"]
        )


def test_who_is_named_main_process_while_the_registry_is_down_is_taken_up(box):
    begin(box, 'restart = "Never"')
    say(box, "READY=1")
    before = box.wait_status("speaker", "Running")["pid"]
    box.kill()
    order(
        box,
        "pid = os.fork()\n"
        "if pid: say(f'MAINPID={pid}'); os._exit(0)\n"
        "os.unlink(path); os.closerange(3, 100); serve()",
    )
    box.wait_for(lambda: not box.is_running(before), "who was the main process has ended")
    pid = int(order(box, "answer = os.getpid()"))
    box.start()
    assert box.wait_status("speaker", "Running", pid=pid)["run"] == 1
    order(box, "os._exit(7)")
    assert box.wait_status("speaker", "Failed")["reason"] in ("exit_code", "lost")
    box.verify()


def test_the_pid_of_a_stranger_is_nobody_s_main_process(box):
    pid = begin(box)
    say(box, f"MAINPID={os.getpid()}\nREADY=1")
    assert box.wait_status("speaker", "Running")["pid"] == pid
    assert "main_changed" not in box.types("speaker")


# --- heartbeats -----------------------------------------------------------------------------------

BEAT = 'target = "heartbeat:", failures = 1'


def beaten(box, keys: str, opening: str = "say('READY=1\\nWATCHDOG=1')") -> int:
    """A service with a heartbeat check, that has beaten once; its pid."""
    box.configure(speaker(box, f'restart = "Never"\nhealth_check = {{ {BEAT}, {keys} }}', opening))
    box.start()
    box.wait_status("speaker", "Running")
    return int(box.wait_status("speaker", "Running", health="healthy")["pid"])


def test_who_beats_no_more_ends_by_the_signal_of_the_check(box):
    beaten(box, 'interval = "500ms", timeout = "100ms", signal = "SIGABRT"')
    box.wait_status("speaker", "Failed", reason="unhealthy")
    assert box.last("speaker", "exited")["data"]["signal"] == signal.SIGABRT
    beat, unhealthy = (box.last("speaker", t) for t in ("became_healthy", "became_unhealthy"))
    assert 0.5 <= at(unhealthy) - at(beat) < 5


def test_a_trigger_ends_it_at_once_however_many_failures_it_may_have(box):
    beaten(box, 'interval = "100s", signal = "SIGABRT"'.replace("failures = 1", "failures = 9"))
    say(box, "WATCHDOG=trigger")
    box.wait_status("speaker", "Failed", reason="unhealthy")
    assert box.last("speaker", "exited")["data"]["signal"] == signal.SIGABRT
    assert "said that it is not well" in box.last("speaker", "became_unhealthy")["data"]["error"]


def test_it_may_say_itself_how_often_its_beats_are_due(box):
    beaten(box, 'interval = "100s", timeout = "50ms"')
    say(box, "WATCHDOG_USEC=200000\nWATCHDOG=1")
    box.wait_status("speaker", "Failed", reason="unhealthy")
    assert box.last("speaker", "watchdog_changed")["data"]["interval_s"] == 0.2


def test_how_often_its_beats_are_due_counts_after_a_crash_of_the_registry(box):
    beaten(box, 'interval = "100s", timeout = "50ms"')
    box.kill()
    say(box, "WATCHDOG_USEC=200000\nWATCHDOG=1")
    box.start()
    box.wait_status("speaker", "Failed", reason="unhealthy")


def test_it_may_turn_its_watchdog_off(box):
    pid = beaten(
        box,
        'interval = "300ms", timeout = "50ms"',
        "say('WATCHDOG=1\\nREADY=1'); say('WATCHDOG_USEC=0')",
    )
    time.sleep(1.0)  # more than the interval: nothing is to happen
    record = box.service("speaker")
    assert (record["status"], record["pid"]) == ("Running", pid)


@needs_root
@pytest.mark.parametrize(
    "keys", ["", 'user = "nobody"\n', 'no_new_privs = true\nenv."a.b" = "c"\n']
)
def test_the_watchdog_s_pid_and_interval_are_in_its_environment(box, keys):
    box.folder.chmod(0o777)
    keys += f'health_check = {{ {BEAT}, interval = "2s" }}'
    box.configure(speaker(box, keys, "say('READY=1')"))
    box.start()
    pid = box.wait_status("speaker", "Running")["pid"]
    asked = "answer = [os.environ[n] for n in ('WATCHDOG_PID', 'WATCHDOG_USEC')] + [os.getpid()]"
    assert order(box, asked) == repr([str(pid), "2000000", pid])


# --- who says it ----------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("systemd-notify") is None, reason="needs systemd-notify")
@pytest.mark.parametrize("user", ["", pytest.param('user = "nobody"', marks=needs_root)])
def test_a_script_says_it_by_systemd_notify_which_has_ended_before_it_counts(box, user):
    box.folder.chmod(0o711)
    script = "systemd-notify --ready --status='by a script' && exec sleep 1000"
    command = json.dumps(["sh", "-c", script])
    box.configure(
        f'[[service]]\nname = "speaker"\nready = "notify"\ncmd = {command}\n'
        f'start_timeout = "8s"\n{user}'
    )
    box.start()
    record = box.wait_status("speaker", "Running")
    pid = record["pid"]
    assert (record["run"], record["restarts"]) == (1, 0)
    assert told(box)["status_text"] == "by a script"
    box.wait_for(lambda: b"sleep" in cmdline(pid), "systemd-notify did not wait for long")


def cmdline(pid: int) -> bytes:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read()


def test_a_barrier_is_lifted_when_all_before_it_is_done(box):
    begin(box)
    barrier = (
        "say('READY=1'); a, b = os.pipe(); say('BARRIER=1', b); os.close(b); answer = os.read(a, 1)"
    )
    assert order(box, barrier) == "b''"
    assert box.service("speaker")["status"] == "Running"


SAYS = """
import socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sock.connect(sys.argv[1])
sock.send(sys.argv[2].encode())
"""


def stranger(box, text: str, user: str | None = None) -> subprocess.CompletedProcess[str]:
    """A process that is none of the service's says something on its socket."""
    where = str(box.folder / "var" / "notify" / "speaker")
    command = [sys.executable, "-I", "-S", "-c", SAYS, where, text]
    if user is not None:
        command = ["setpriv", f"--reuid={user}", "--clear-groups", *command]
    return subprocess.run(command, check=False, cwd="/", capture_output=True, text=True, timeout=10)


def test_what_a_stranger_says_is_ignored_though_he_is_root(box):
    begin(box)
    assert stranger(box, "READY=1").returncode == 0
    box.wait_said("not one of its own")
    say(box, "STATUS=still starting")
    box.wait_for(lambda: told(box)["status_text"], "it is heard after the stranger")
    assert box.service("speaker")["status"] == "Starting"


def test_what_a_stranger_says_to_the_keeper_is_ignored(box):
    begin(box)
    box.kill()
    assert stranger(box, "READY=1").returncode == 0
    say(box, "STATUS=still starting")
    box.start()
    box.wait_for(lambda: told(box)["status_text"], "it is heard after the stranger")
    assert box.service("speaker")["status"] == "Starting"


@needs_root
def test_another_user_cannot_even_reach_the_socket(box):
    begin(box)
    for folder in (box.folder, box.folder / "var"):
        folder.chmod(0o711)
    assert "PermissionError" in stranger(box, "READY=1", user="nobody").stderr


@needs_root
def test_a_service_of_another_user_reaches_its_socket(box):
    box.folder.chmod(0o777)
    pid = begin(box, 'user = "nobody"')
    assert order(box, "answer = os.getuid()") == str(pwd.getpwnam("nobody").pw_uid)
    say(box, "READY=1")
    assert box.wait_status("speaker", "Running")["pid"] == pid


# --- and the registry is killed -------------------------------------------------------------------


def test_ready_and_a_beat_count_though_the_registry_is_dead(box):
    check = f'health_check = {{ {BEAT}, interval = "100s" }}'
    pid = begin(box, check)
    box.kill()
    say(box, "READY=1")
    say(box, "WATCHDOG=1")
    box.start()
    record = box.wait_status("speaker", "Running", health="healthy")
    assert (record["pid"], record["run"], record["restarts"]) == (pid, 1, 0)
    box.verify()


def test_nothing_waits_however_much_it_says_while_the_registry_is_dead(box):
    """More than the ten that the kernel queues, and than the keeper holds: it forgets what matters least."""
    pid = begin(box)
    box.kill()
    order(box, "say('READY=1')\nfor n in range(100): say(f'STATUS=step {n}')")
    box.start()
    record = box.wait_status("speaker", "Running")
    assert (record["pid"], record["run"]) == (pid, 1)
    box.wait_for(lambda: told(box)["status_text"] == "step 99", "what it said last is shown")


def test_what_was_said_to_the_keeper_outlives_a_second_crash(box):
    begin(box)
    box.kill()
    say(box, "READY=1")
    program = (str(box.program("dying", DYING)),)
    box.daemon = box.spawn("--config", "etc/services.toml", program=program, CRASH="before")
    assert box.daemon.wait(10) == -signal.SIGKILL
    box.start()
    box.wait_status("speaker", "Running")
    assert box.types("speaker").count("became_ready") == 1


DYING = """
import os, signal
from registry.__main__ import main
from registry.core.events import BecameReady
from registry.journal.journal import Journal

append, when = Journal.append, os.environ.pop("CRASH")

async def dying(journal, records):
    dies = any(isinstance(record.event, BecameReady) for record in records)
    if dies and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    await append(journal, records)
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)

Journal.append = dying
main()
"""
"""A registry that is killed at the commit of READY=1."""


@pytest.mark.parametrize("when", ["before", "after"])
def test_ready_counts_once_though_the_registry_is_killed_at_its_commit(box, when):
    pid = begin(box, program=(str(box.program("dying", DYING)),), CRASH=when)
    say(box, "READY=1")
    assert box.daemon.wait(10) == -signal.SIGKILL
    box.start()
    record = box.wait_status("speaker", "Running")
    assert (record["pid"], record["run"], record["restarts"]) == (pid, 1, 0)
    assert box.types("speaker").count("became_ready") == 1
    box.verify()


def test_sockets_are_held_though_the_keeper_is_killed(box):
    pid = begin(box)
    box.kill_keeper()
    say(box, "STATUS=after the keeper")
    box.wait_for(lambda: told(box)["status_text"], "it is heard")
    box.kill()
    say(box, "READY=1")
    box.start()
    assert box.wait_status("speaker", "Running")["pid"] == pid


def test_a_service_is_heard_again_when_registry_and_keeper_were_both_killed(box):
    pid = begin(box)
    keeper = box.keeper_pid()
    box.kill()
    os.kill(keeper, signal.SIGKILL)
    box.wait_for(lambda: not box.is_running(keeper), "the keeper has ended")
    box.start()
    say(box, "READY=1")
    assert box.wait_status("speaker", "Running")["pid"] == pid


def test_who_changes_his_mind_without_end_waits_for_himself_and_his_last_word_counts(box):
    check = f'health_check = {{ {BEAT}, interval = "100s", timeout = "100s" }}'
    box.configure(speaker(box, check, "say('READY=1')") + speaker(box, "", "", "other"))
    box.start()
    box.wait_status("speaker", "Running")
    before = len(box.events("speaker"))
    order(box, "for n in range(30): say(f'WATCHDOG_USEC={90_000_000 + n}')")
    say(box, "READY=1", "other")
    box.wait_status("other", "Running")
    assert len(box.events("speaker")) - before <= 25
    box.kill()
    box.start()

    def last_s() -> float:
        return float(box.last("speaker", "watchdog_changed")["data"]["interval_s"])

    box.wait_for(lambda: last_s() == 90.000029, "the last one counts")


def test_an_upgrade_hears_what_comes_before_and_after_it(box):
    pid = begin(box)
    say(box, "STATUS=before")
    box.upgrade()
    say(box, "READY=1\nSTATUS=after")
    assert box.wait_status("speaker", "Running")["pid"] == pid
    assert told(box)["status_text"] == "after"


def test_the_socket_goes_with_its_service(box):
    path = box.folder / "var" / "notify" / "speaker"
    begin(box)
    box.data("restart", service="speaker")
    box.wait_status("speaker", "Starting", run=2)
    assert path.is_socket()
    box.configure("")
    box.data("apply")
    box.wait_for(lambda: not box.data("list_services"), "it is removed")
    box.wait_for(lambda: not path.exists(), "its socket is removed")


# --- descriptors ----------------------------------------------------------------------------------

KEEPS = """
given = dict(zip(os.environ.get("LISTEN_FDNAMES", "").split(":"), range(3, 1000)))

def store(name):
    file = os.memfd_create(name)
    os.write(file, name.encode())
    say(f"FDSTORE=1\\nFDNAME={name}", file)

def found():
    return {name: os.pread(fd, 99, 0).decode() for name, fd in given.items() if name}

say("READY=1")
"""


def found(box, run: int) -> str:
    """What a run was given."""
    box.wait_status("speaker", "Running", run=run)
    return order(box, "answer = found()")


def restart(box) -> None:
    box.data("restart", service="speaker", wait=True)


def test_stored_descriptors_outlive_the_service_and_the_registry_until_they_are_removed(box):
    box.configure(speaker(box, "", KEEPS))
    box.start()
    assert found(box, 1) == "{}"
    order(box, "store('one')")
    box.kill()
    order(box, "store('two'); store('three'); say('FDSTOREREMOVE=1\\nFDNAME=one')")
    box.start()
    restart(box)
    assert found(box, 2) == repr({"two": "two", "three": "three"})
    box.kill()
    order(box, "os._exit(1)")
    box.start()
    assert found(box, 3) == repr({"two": "two", "three": "three"})
    say(box, "FDSTOREREMOVE=1\nFDNAME=two")
    restart(box)
    assert found(box, 4) == repr({"three": "three"})
    box.kill()
    order(box, "store('last'); os._exit(1)")
    box.start()
    assert found(box, 5) == repr({"three": "three", "last": "last"})


SLOW = """
import asyncio
from registry.__main__ import main
from registry.core.events import StopAnnounced
from registry.journal.journal import Journal

append = Journal.append

async def slow(journal, records):
    if any(isinstance(record.event, StopAnnounced) for record in records):
        await asyncio.sleep(0.3)
    await append(journal, records)

Journal.append = slow
main()
"""
"""A registry whose disk is slow when STOPPING=1 is to be written."""


def test_what_is_stored_right_after_it_said_that_it_stops_is_given_to_its_next_run(box):
    box.configure(speaker(box, "", KEEPS))
    box.start(program=(str(box.program("slow", SLOW)),))
    found(box, 1)
    order(box, "say('STOPPING=1'); store('one'); os._exit(0)")
    assert found(box, 2) == repr({"one": "one"})


def test_stored_descriptors_are_forgotten_when_it_is_down_for_good(box):
    box.configure(speaker(box, "", KEEPS))
    box.start()
    found(box, 1)
    order(box, "store('one')")
    box.data("stop", service="speaker", wait=True)
    box.data("start", service="speaker", wait=True)
    assert found(box, 2) == "{}"
