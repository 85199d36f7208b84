"""The registry killed at any moment: no service is interrupted, started twice or forgotten."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

SLEEP = 'cmd = ["sleep", "1000"]'
ONCE_MORE = 'cmd = ["sh", "-c", "echo run $$ >> runs; exec sleep 1000"]'


def service(name: str, keys: str) -> str:
    return f'[[service]]\nname = "{name}"\n{keys}\n'


def knows_exits() -> bool:
    """Whether this kernel tells how a process ended that somebody else reaped (Linux 6.15)."""
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int("".join(filter(str.isdigit, minor)))) >= (6, 15)


def wait_gone(box, pid: int) -> None:
    box.wait_for(lambda: not box.is_running(pid), f"process {pid} has ended")


def wait_reaped(box, pid: int) -> None:
    """Until whoever inherited it has reaped it: some do it at once, some every few seconds."""
    box.wait_for(lambda: not Path(f"/proc/{pid}").exists(), f"process {pid} is reaped")


IS_ALIVE = """
def is_alive(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
"""


# What an engineer's machine has, and what an older kernel lacks: adoption works in each.
@pytest.mark.parametrize(
    "without", ["", "pidfd_exit", "pidfd_group", "pidfd", "subreaper", "proc_children,splice"]
)
def test_after_kill_9_the_same_processes_are_supervised_on(box, without):
    box.configure(service("one", ONCE_MORE) + service("two", SLEEP))
    box.start(CIRCLEOSD_WITHOUT=without)
    before = {name: box.wait_status(name, "Running")["pid"] for name in ("one", "two")}
    box.kill()
    assert all(box.is_running(pid) for pid in before.values())
    box.start(CIRCLEOSD_WITHOUT=without)
    for name, pid in before.items():
        record = box.wait_status(name, "Running")
        assert (record["pid"], record["run"], record["restarts"]) == (pid, 1, 0)
        assert box.last(name, "adopted")["data"] == {"pid": pid}
    assert len(box.lines("runs")) == 1
    box.wait_said(f"[INFO] Adopted one (PID {before['one']})")
    os.kill(before["one"], signal.SIGKILL)
    record = box.wait_status("one", "Running", run=2)
    assert record["restarts"] == 1
    assert len(box.wait_lines("runs", 2)) == 2
    (record,) = box.data("stop", service="two", wait=True)
    assert record["status"] == "Stopped"
    wait_gone(box, before["two"])
    box.verify()


def test_what_was_stopped_stays_stopped_and_numbers_go_on(box):
    box.configure(
        service("up", SLEEP)
        + service("down", SLEEP)
        + service("lazy", f"{SLEEP}\nautostart = false")
    )
    box.start()
    os.kill(box.wait_status("up", "Running")["pid"], signal.SIGKILL)
    box.wait_status("up", "Running", run=2)
    box.data("stop", service="down", wait=True)
    box.data("start", service="lazy", wait=True)
    seq = box.verify()
    for _ in range(2):
        box.kill()
        box.start()
        assert box.service("down")["status"] == "Stopped"
        assert box.service("down")["wanted"] == "down"
        assert (box.service("up")["run"], box.service("up")["restarts"]) == (2, 1)
        assert (box.service("lazy")["status"], box.service("lazy")["wanted"]) == ("Running", "up")
    os.kill(box.service("up")["pid"], signal.SIGKILL)
    box.wait_status("up", "Running", run=3, restarts=2)
    assert box.verify() > seq


def test_after_an_orderly_end_autostart_decides_again(box):
    box.configure(service("auto", SLEEP) + service("lazy", f"{SLEEP}\nautostart = false"))
    box.start()
    box.data("stop", service="auto", wait=True)
    box.data("start", service="lazy", wait=True)
    assert box.stop() == 0
    box.start()
    assert box.wait_status("auto", "Running")["run"] == 2
    assert (box.service("lazy")["status"], box.service("lazy")["wanted"]) == ("Stopped", "down")


ENDS = {
    "exit 0": (0, None),
    "exit 42": (42, None),
    "exit 111": (111, None),
    "kill -9 $$": (None, 9),
}


@pytest.mark.skipif(not knows_exits(), reason="needs Linux 6.15")
@pytest.mark.parametrize("end", ENDS)
def test_how_a_service_ended_while_the_registry_was_down_is_found_out(box, end):
    command = (
        f'cmd = ["sh", "-c", "echo run >> runs; while ! test -e go; do sleep 0.02; done; {end}"]'
    )
    box.configure(service("job", f'{command}\nrestart = "Never"'))
    box.start()
    pid = box.wait_status("job", "Running")["pid"]
    box.wait_lines("runs", 1)
    box.kill()
    (box.folder / "go").touch()
    (wait_reaped if end == "exit 42" else wait_gone)(box, pid)
    box.start()
    code, number = ENDS[end]
    record = box.wait_status("job", "Stopped" if code == 0 else "Failed")
    assert record["reason"] == ("completed" if code == 0 else "signal" if number else "exit_code")
    last = box.data("status", service="job")["last_exit"]
    assert (last["run"], last["exit_code"], last["signal"]) == (1, code, number)
    assert len(box.lines("runs")) == 1, "it ran, so Never means never"
    box.verify()


@pytest.mark.skipif(not knows_exits(), reason="needs Linux 6.15")
@pytest.mark.parametrize("end", ["exit 42", "exit 111"])
def test_how_an_adopted_service_ends_is_seen(box, end):
    command = (
        f'cmd = ["sh", "-c", "echo run >> runs; while ! test -e go; do sleep 0.02; done; {end}"]'
    )
    box.configure(service("job", f'{command}\nrestart = "Never"'))
    box.start()
    box.wait_status("job", "Running")
    box.wait_lines("runs", 1)
    box.kill()
    box.start()
    (box.folder / "go").touch()
    box.wait_status("job", "Failed", reason="exit_code")
    assert box.last("job", "exited")["data"]["exit_code"] == int(end.split()[1])
    assert len(box.lines("runs")) == 1


def test_an_end_that_nobody_saw_counts_as_a_failure(box):
    command = 'cmd = ["sh", "-c", "test -e go && exec sleep 1000; while ! test -e go; do sleep 0.02; done"]'
    box.configure(service("job", f'{command}\nrestart = "OnFailure"'))
    box.start(CIRCLEOSD_WITHOUT="pidfd_exit")
    pid = box.wait_status("job", "Running")["pid"]
    box.kill()
    (box.folder / "go").touch()
    wait_reaped(box, pid)
    box.start(CIRCLEOSD_WITHOUT="pidfd_exit")
    box.wait_status("job", "Running", run=2)
    last = box.data("status", service="job")["last_exit"]
    assert (last["exit_code"], last["signal"], last["reason"]) == (None, None, "lost")
    box.wait_said("[WARN] job ended while nobody watched")


def test_what_a_run_left_while_the_registry_was_down_is_gone_before_the_next_run(box):
    text = (
        IS_ALIVE
        + """
import os, sys, time
if os.path.exists("left"):
    alive = is_alive(open("left").read())
    open("verdict", "w").write("alive" if alive else "gone")
    time.sleep(1000)
read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    with open("left", "w") as file:
        file.write(str(os.getpid()))
    os.write(write, b"x")
    time.sleep(1000)
os.read(read, 1)
while not os.path.exists("go"):
    time.sleep(0.01)
sys.exit(1)
"""
    )
    box.configure(service("parent", f'cmd = {box.python("parent", text)}\nstop = "500ms"'))
    box.start()
    pid = box.wait_status("parent", "Running")["pid"]
    left = int(box.wait_lines("left", 1)[0])
    box.kill()
    (box.folder / "go").touch()
    wait_gone(box, pid)
    assert box.is_running(left)
    box.start()
    box.wait_status("parent", "Running", run=2)
    assert box.wait_lines("verdict", 1) == ["gone"]
    box.verify()


def test_a_crash_loop_goes_on_where_it_was(box):
    box.configure(
        service("bad", 'cmd = ["false"]\nrestart = { delay = "600ms", limit = 50, within = "1h" }')
    )
    box.start()
    before = box.wait_status("bad", "Restarting", reason="crash_looping")
    box.kill()
    box.start()
    after = box.service("bad")
    if after["run"] == before["run"]:  # its time had not come yet
        assert (after["status"], after["next_restart_at"]) == (
            "Restarting",
            before["next_restart_at"],
        )
    box.wait_for(lambda: len(box.events("bad", "restart_scheduled")) >= 3, "it goes on")
    attempts = [event["data"]["attempt"] for event in box.events("bad", "restart_scheduled")]
    assert attempts[:3] == [1, 2, 3]


def test_a_stop_under_way_is_completed(box):
    command = """cmd = ["sh", "-c", "trap '' TERM; touch up; while :; do sleep 0.05; done"]"""
    box.configure(service("deaf", f'{command}\nstop = "600ms"'))
    box.start()
    pid = box.wait_status("deaf", "Running")["pid"]
    box.wait_for((box.folder / "up").exists, "it runs")
    box.data("stop", service="deaf")
    box.kill()
    assert box.is_running(pid)
    box.start()
    record = box.wait_status("deaf", "Stopped")
    assert (record["wanted"], record["run"]) == ("down", 1)
    wait_gone(box, pid)
    box.verify()


def test_a_restart_under_way_is_completed(box):
    command = """cmd = ["sh", "-c", "trap '' TERM; touch up; while :; do sleep 0.05; done"]"""
    box.configure(service("deaf", f'{command}\nstop = "500ms"'))
    box.start()
    pid = box.wait_status("deaf", "Running")["pid"]
    box.wait_for((box.folder / "up").exists, "it runs")
    box.data("restart", service="deaf")
    box.kill()
    wait_dead = box.is_running(pid)
    box.start()
    record = box.wait_status("deaf", "Running", run=2)
    assert wait_dead
    assert record["pid"] != pid
    wait_gone(box, pid)


def test_a_service_no_longer_declared_is_stopped_and_forgotten(box):
    box.configure(service("kept", SLEEP) + service("gone", SLEEP))
    box.start()
    pid = box.wait_status("gone", "Running")["pid"]
    box.kill()
    box.configure(service("new", SLEEP) + service("kept", SLEEP))
    box.start()
    box.wait_for(lambda: len(box.data("list_services")) == 2, "it is forgotten")
    assert [record["name"] for record in box.data("list_services")] == ["new", "kept"]
    wait_gone(box, pid)
    assert box.ask("status", service="gone")["error"]["code"] == "unknown_service"
    assert box.types("gone")[-1] == "removed", "its history stays"
    box.wait_status("new", "Running")
    assert box.service("kept")["run"] == 1
    box.verify()


def test_of_those_no_longer_declared_dependents_are_gone_before_what_they_need_is_stopped(box):
    slow = """cmd = ["sh", "-c", "trap 'sleep 0.2; exit' TERM; while :; do sleep 0.01; done"]"""
    names = [f"db{number}" for number in range(4)]
    pairs = [
        service(name, SLEEP) + service(f"app-{name}", f'{slow}\ndepends_on = ["{name}"]')
        for name in names
    ]
    box.configure("".join(pairs))
    box.start()
    for name in names:
        box.wait_status(f"app-{name}", "Running")
    box.kill()
    box.configure("")
    box.start()
    box.wait_for(lambda: not box.data("list_services"), "all are forgotten")
    for name in names:
        removed, exited = box.last(f"app-{name}", "removed"), box.last(name, "exited")
        assert removed["seq"] < exited["seq"], name


def test_a_number_of_a_run_is_never_used_again(box):
    box.configure(service("here", SLEEP) + service("there", SLEEP))
    box.start()
    box.wait_status("there", "Running", run=1)
    assert box.stop() == 0
    box.configure(service("here", SLEEP))
    box.start()
    box.wait_status("here", "Running", run=2)
    assert box.stop() == 0
    box.configure(service("here", SLEEP) + service("there", SLEEP))
    box.start()
    box.wait_status("there", "Running", run=2)
    box.verify()


def test_a_changed_definition_is_journaled_and_counts_from_the_next_run(box):
    box.configure(service("a", f'{SLEEP}\nenv = {{ MODE = "old" }}'))
    box.start()
    pid = box.wait_status("a", "Running")["pid"]
    box.kill()
    box.configure(service("a", f'{ONCE_MORE}\nenv = {{ MODE = "new" }}'))
    box.start()
    assert box.service("a")["pid"] == pid
    assert box.types("a").count("redefined") == 1
    box.data("restart", service="a", wait=True)
    assert len(box.wait_lines("runs", 1)) == 1
    digests = [event["data"]["digest"] for event in box.events("a", "spawned")]
    assert len(set(digests)) == 2
    box.kill()
    box.start()
    assert box.types("a").count("redefined") == 1, "what has not changed is not journaled again"


@pytest.mark.parametrize(
    ("broken", "mended"),
    [
        ('cmd = ["no-such-program"]', 'cmd = ["sleep", "1000"]'),
        ('cmd = ["false"]\nrestart = "Never"', 'cmd = ["sleep", "1000"]'),
    ],
    ids=["could not be launched", "exited"],
)
def test_what_had_failed_is_tried_again_where_it_was_mended_while_no_registry_ran(
    box, broken, mended
):
    box.configure(f'[[service]]\nname = "app"\n{broken}\n')
    box.start()
    box.wait_status("app", "Failed")
    box.kill()
    box.start()
    assert box.service("app")["status"] == "Failed", "nothing has changed"
    box.kill()
    box.configure(f'[[service]]\nname = "app"\n{mended}\n')
    box.start()
    box.wait_status("app", "Running")
    assert box.last("app", "start_requested")["reason"] == "redefined"
    box.verify()


def test_logs_go_on_over_the_registrys_death_without_a_gap(box):
    text = """
import time
n = 0
while True:
    n += 1
    print(n, flush=True)
    time.sleep(0.002)
"""
    box.configure(service("count", f"cmd = {box.python('count', text)}"))
    box.start()
    box.wait_for(lambda: box.log("count").count("\n") > 20, "it counts")
    box.kill()
    seen = box.log("count").count("\n")
    box.wait_for(
        lambda: box.log("count").count("\n") > seen + 50, "it is logged while nobody supervises"
    )
    box.start()
    seen = box.log("count").count("\n")
    box.wait_for(lambda: box.log("count").count("\n") > seen + 20, "it is logged on")
    box.data("stop", service="count", wait=True)
    numbers = box.log("count").split()
    assert numbers == [str(n) for n in range(1, len(numbers) + 1)]


def test_health_goes_on_after_adoption(box):
    """Sick while nobody looked: found by the next registry, and restarted."""
    check = 'health_check = { target = "cmd:test ! -e sick", interval = "50ms" }'
    box.configure(service("app", f'{SLEEP}\n{check}\nstop = "500ms"'))
    box.start()
    pid = box.wait_status("app", "Running", health="healthy")["pid"]
    box.kill()
    box.start()
    assert box.wait_status("app", "Running", health="healthy")["pid"] == pid
    (box.folder / "sick").touch()
    box.wait_for(lambda: box.events("app", "became_unhealthy"), "it is sick")
    (box.folder / "sick").unlink()
    box.wait_status("app", "Running", run=2, health="healthy")


# --- between spawn and gate -----------------------------------------------------------------------

KILLED_AT_THE_GATE = """
import os, signal, sys
from registry.host import gate, proc

def hold_what_waits_there():
    waits = []
    while not waits:  # the kernel lets its maker go on a moment before it has the gate's name
        waits = [pid for pid in proc.children(os.getpid()) if proc.stat(pid).comm == gate.GATE]
    for pid in waits:
        os.kill(pid, signal.SIGSTOP)

def open_gate(_gate):
    {before}
    os.kill(os.getpid(), signal.SIGKILL)

gate.open_gate = open_gate
from registry.__main__ import main
main()
"""


def kill_at_the_gate(box, before: str = "pass") -> None:
    """Run a registry that dies when the first run is in the journal and its gate is still shut."""
    script = box.program("killed_at_the_gate", KILLED_AT_THE_GATE.format(before=before))
    box.daemon = box.spawn("--config", "etc/services.toml", program=(str(script),))
    assert box.daemon.wait(10) == -signal.SIGKILL


@pytest.mark.skipif(not knows_exits(), reason="needs Linux 6.15")
@pytest.mark.parametrize("policy", ["Always", "Never"])
def test_killed_between_spawn_and_gate_the_process_never_executes_and_the_next_starts_it_once(
    box, policy
):
    box.configure(service("job", f'{ONCE_MORE}\nrestart = "{policy}"'))
    kill_at_the_gate(box)
    box.wait_for(lambda: len(box.left()) <= 1, "the process at the gate has ended")
    assert not box.lines("runs")
    box.start()
    record = box.wait_status("job", "Running", run=2)
    assert record["restarts"] == 0, "what never ran is not charged"
    first, second = box.events("job", "spawned")
    assert not box.is_running(first["data"]["pid"])
    assert len(box.wait_lines("runs", 1)) == 1
    assert box.lines("runs") == [f"run {second['data']['pid']}"]
    exited = box.last("job", "exited")
    assert (exited["data"]["exit_code"], exited["data"]["never_ran"]) == (111, True)
    assert exited["reason"] == "never_ran"
    box.verify()


@pytest.mark.skipif(not knows_exits(), reason="needs Linux 6.15")
def test_a_process_still_at_its_gate_when_the_next_registry_comes_is_started_once(box):
    """The shell at the gate is slow to notice: it is held by SIGSTOP until the next registry has found it."""
    box.configure(service("job", f'{ONCE_MORE}\nrestart = "Never"'))
    kill_at_the_gate(box, before="hold_what_waits_there()")
    box.start()
    (first,) = box.events("job", "spawned")
    assert box.types("job")[-1] == "adopted"
    os.kill(first["data"]["pid"], signal.SIGCONT)
    record = box.wait_status("job", "Running", run=2)
    assert record["restarts"] == 0
    assert len(box.wait_lines("runs", 1)) == 1
    box.verify()


def test_killed_right_after_the_gate_the_run_is_kept(box):
    """The gate is open and nothing more is in the journal: the run executes, and is adopted as it is."""
    box.configure(service("job", f'{ONCE_MORE}\nrestart = "Never"'))
    kill_at_the_gate(box, before="os.write(_gate, b'\\n')")
    box.wait_lines("runs", 1)
    box.start()
    record = box.wait_status("job", "Running", run=1)
    assert box.lines("runs") == [f"run {record['pid']}"]


def test_a_process_let_through_that_is_slow_to_execute_is_kept_too(box):
    """It has its line but has not run yet when the next registry looks: it becomes Running as soon as it does."""
    box.configure(service("job", f'{ONCE_MORE}\nrestart = "Never"'))
    kill_at_the_gate(box, before="hold_what_waits_there(); os.write(_gate, b'\\n')")
    box.start()
    (spawned,) = box.events("job", "spawned")
    os.kill(spawned["data"]["pid"], signal.SIGCONT)
    box.wait_lines("runs", 1)
    record = box.wait_status("job", "Running", run=1)
    assert box.lines("runs") == [f"run {record['pid']}"]


@pytest.mark.parametrize("moment", range(3))
def test_killed_at_any_moment_of_a_restart_storm_nothing_is_doubled_or_forgotten(box, moment):
    """Each run takes a lock that only one process can hold; whoever finds it held writes it down."""
    text = """
import fcntl, os, time
lock = open("lock", "w")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    open("doubled", "w").close()
time.sleep(0.01)
"""
    keys = f'cmd = {box.python("storm", text)}\nrestart = {{ delay = "0ms", delay_max = "1ms" }}'
    box.configure(service("storm", keys))
    for turn in range(2):
        box.start()
        seen = len(box.events("storm", "spawned"))
        box.wait_for(lambda seen=seen: len(box.events("storm", "spawned")) > seen + 3, "it storms")
        time.sleep(0.004 * (moment + turn))  # the moments differ: that is the point
        box.kill()
    box.start()
    seen = box.service("storm")["run"]
    box.wait_for(lambda: box.service("storm")["run"] > seen, "it goes on")
    box.data("stop", service="storm", wait=True)
    assert not (box.folder / "doubled").exists()
    box.verify()


# --- at every commit ------------------------------------------------------------------------------

KILLED_AT_A_COMMIT = """
import os, signal
from registry.journal.journal import Journal
append, left = Journal.append, {number}

async def append_or_die(self, records):
    global left
    left -= 1
    if left == 0 and not {after}:
        os.kill(os.getpid(), signal.SIGKILL)
    await append(self, records)
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

Journal.append = append_or_die
from registry.__main__ import main
main()
"""


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_before_or_after_any_commit_nothing_is_doubled_or_forgotten(box, after):
    """One life after the other dies at its first, second, third ... commit; each goes on where the last one was."""
    text = """
import fcntl, time
lock = open("lock", "w")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    open("doubled", "w").close()
time.sleep(0.02)
raise SystemExit(1)
"""
    keys = f'cmd = {box.python("storm", text)}\nrestart = {{ delay = "1ms", delay_max = "1ms" }}'
    box.configure(service("storm", keys) + service("calm", ONCE_MORE))
    for number in range(1, 8):
        script = box.program(
            "killed_at_a_commit", KILLED_AT_A_COMMIT.format(number=number, after=after)
        )
        box.daemon = box.spawn("--config", "etc/services.toml", program=(str(script),))
        assert box.daemon.wait(10) == -signal.SIGKILL
    box.start()
    record = box.wait_status("calm", "Running")
    assert box.lines("runs") == [f"run {record['pid']}"], (
        "it was started once and never interrupted"
    )
    seen = box.service("storm")["run"]
    box.wait_for(lambda: box.service("storm")["run"] > seen, "it goes on")
    box.data("stop", service="storm", wait=True)
    assert not (box.folder / "doubled").exists()
    runs = [event["run"] for event in box.events("storm", "spawned")]
    assert runs == sorted(set(runs)), "no number twice"
    box.verify()
