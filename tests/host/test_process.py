"""The runner: ends seen once and in full, groups stopped to the last process, commands, nothing left."""

from __future__ import annotations

import asyncio
import os
import resource
import select
import signal
import sys
import time
from typing import Any

import pytest

from registry.core.inputs import GroupGone, ProcessExited
from registry.host import gate, native_gate, proc
from registry.host import process as process_module
from registry.host.clock import mono_ns
from registry.host.launch import LaunchError
from registry.host.members import Process

SH = "/bin/sh"
# a process of its own session whose parents are gone: it can only be found by its mark
STRAY = "setsid -f sh -c 'trap \"{trap}\" TERM; echo stray $$; exec sleep 1000'; "

FALLBACKS = [
    pytest.param((), id="all"),
    pytest.param(("pidfd_group", "pidfd_exit"), id="no pidfd_group"),
    pytest.param(("pidfd", "pidfd_group", "pidfd_exit"), id="no pidfd"),
    pytest.param(("waitid",), id="no waitid"),
    pytest.param(("subreaper", "proc_children"), id="no subreaper"),
    pytest.param(("proc_children",), id="no proc_children"),
    pytest.param(("signalfd",), id="no signalfd"),
]


def stat_of(pid: int) -> Any:
    """What /proc says of a process that is there."""
    return proc.stat(pid)


def is_alive(pid: int) -> bool:
    stat = proc.stat(pid)
    return stat is not None and stat.is_alive


async def word(host, expected: str) -> int:
    """The pid that a process of the service tells by a line of its output."""
    name, pid = (await host.line()).split()
    assert name == expected
    return int(pid)


async def rest_of_output(host) -> None:
    """Nothing more was said until the last writer ended."""
    assert os.read(host.keeper.outputs["s", 1], 100) == b""


# ends


@pytest.mark.parametrize("code", [0, 1, 42, 255])
async def test_an_exit_code_is_seen_with_what_was_used(host, code):
    host.script(f"exit {code}")
    exited = await host.next()
    assert (exited.exit_code, exited.signal, exited.group_empty) == (code, None, True)
    assert exited.usage.memory_max is None, (
        "no more than what its parent held says nothing of its own"
    )
    assert exited.usage.user_s + exited.usage.system_s < 10


async def test_the_memory_that_it_held_at_most_is_seen(host):
    much = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + 50_000_000
    host.script(f"exec {sys.executable} -I -S -c 'bytearray({much})'")
    assert (await host.next()).usage.memory_max >= much


@pytest.mark.parametrize("name", ["SIGKILL", "SIGABRT", "SIGUSR1"])
async def test_a_signal_is_seen(host, name):
    host.script(f"kill -{name[3:]} $$")
    exited = await host.next()
    assert (exited.exit_code, exited.signal) == (None, signal.Signals[name])


async def test_200_ends_at_once_are_all_seen_once(host):
    for number in range(200):
        host.script("read x </dev/null; exit 7", service=f"s{number}", logs=None)
    seen = [await host.seen.get() for _end in range(200)]
    assert {service for service, _given in seen} == {f"s{number}" for number in range(200)}
    assert {given.exit_code for _service, given in seen} == {7}
    host.runner.reap()
    assert host.seen.empty()


@pytest.mark.parametrize(("name", "value"), [("REAP_MAX", 2), ("REAP_S", -1.0)])
async def test_more_ends_than_are_taken_at_once_are_all_seen(host, monkeypatch, name, value):
    monkeypatch.setattr(process_module, name, value)
    for number in range(9):
        host.spawn(SH, "-c", "exit 7", service=f"s{number}", logs=None)
    for pid in host.pids:
        os.kill(pid, signal.SIGKILL)
    for pid in host.pids:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert len({(await host.seen.get())[0] for _end in range(9)}) == 9


async def test_a_services_end_does_not_wait_for_orphans(host, monkeypatch):
    """A fork bomb leaves us more than are taken at once, and the kernel names those first."""
    monkeypatch.setattr(process_module, "REAP_MAX", 2)
    orphans = [os.posix_spawn(SH, [SH, "-c", "exit 0"], {}) for _ in range(9)]
    pid = host.start("/bin/false", logs=None)
    for each in (*orphans, pid):
        os.waitid(os.P_PID, each, os.WEXITED | os.WNOWAIT)
    host.runner.reap()
    assert host.seen.get_nowait()[1].exit_code == 1
    assert any(os.waitid(os.P_PID, each, os.WEXITED | os.WNOWAIT) for each in orphans[-1:])


async def test_one_who_is_named_is_taken_at_once_and_the_others_soon(host):
    """That there are no others the kernel finds out in a millisecond, among thousands."""
    for number in range(5):
        host.start("/bin/false", service=f"s{number}", logs=None)
    for pid in host.pids:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    host.runner._signals.told(host.pids[3])
    assert host.seen.get_nowait()[0] == "s3"
    assert host.seen.empty()
    assert {(await host.seen.get())[0] for _ in range(4)} == {"s0", "s1", "s2", "s4"}
    host.runner._signals.told(host.pids[3])  # who is gone is no trouble
    assert host.seen.empty()


async def test_without_proc_who_ended_with_the_main_process_is_reaped_before_it_is_looked_at(
    make_host, without
):
    """A zombie counts as a member there."""
    host = make_host(without(["proc"]))
    pid = host.script("sleep 1000 & echo child $!; exec sleep 1000")
    child = await word(host, "child")
    for each in (child, pid):  # the first is a zombie until the second has left it to us
        os.kill(each, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    host.runner._signals.told(pid)
    assert host.seen.get_nowait()[1].group_empty


async def test_however_many_signals_tell_of_ends_children_are_reaped_once_a_turn(host, monkeypatch):
    """Else each signal of a fork bomb would cost the others a share of time of its own."""
    reaped = []
    monkeypatch.setattr(host.runner._signals, "_reap", lambda: reaped.append("children"))
    for turn in range(1, 4):
        for _signal in range(100):
            host.runner._signals.told()
        assert len(reaped) == turn
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(reaped) == 4  # once more for those that came last
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(reaped) == 4


async def test_a_leader_that_leaves_children_says_so_and_their_end_is_seen(host):
    host.script("sh -c 'echo child $$; exec sleep 1000' & exit 0")
    child = await word(host, "child")
    exited = await host.next()
    assert (exited.exit_code, exited.group_empty) == (0, False)
    os.kill(child, signal.SIGKILL)
    assert await host.next() == GroupGone(run=1)


async def test_orphans_of_nobody_are_reaped(host, gone):
    """One that has neither session nor mark of its service is not ours to stop, but ours to reap."""
    leader = host.script(
        "setsid -f env -i X=1 sh -c 'echo stranger $$; exec sleep 1000'; exec sleep 1000"
    )
    stranger = await word(host, "stranger")
    os.kill(leader, signal.SIGKILL)
    assert (await host.next()).group_empty
    os.kill(stranger, signal.SIGKILL)
    await gone(stranger)
    host.runner.reap()
    assert list(proc.children(os.getpid())) == []
    assert host.seen.empty()


async def test_an_observer_may_call_back(host, monkeypatch):
    def start_next(service, given):
        host.seen.put_nowait((service, given))
        if isinstance(given, ProcessExited) and given.run == 1:
            host.script("exit 2", run=2)
            host.stop(run=1)

    monkeypatch.setattr(host.runner, "_observe", start_next)
    host.script("exit 1")
    assert (await host.next()).exit_code == 1
    assert await host.next() == GroupGone(run=1)
    assert (await host.next()).exit_code == 2


# stopping


async def test_a_service_that_ends_on_its_signal_is_not_killed(host):
    host.script("trap 'exit 5' INT; echo ready; while :; do sleep 0.01; done")
    assert await host.line() == "ready"
    host.stop(name="SIGINT")
    exited = await host.next()
    assert (exited.exit_code, exited.killed) == (5, 0)


@pytest.mark.parametrize("fallback", FALLBACKS)
async def test_a_service_is_stopped_with_its_group(make_host, without, fallback):
    host = make_host(without(fallback))
    host.script("sh -c 'echo child $$; sleep 1000' & wait")
    child = await word(host, "child")
    host.stop()
    exited = await host.next()
    assert exited.signal == signal.SIGTERM
    if not exited.group_empty:
        assert await host.next() == GroupGone(run=1, killed=0)
    assert not is_alive(child)
    assert host.seen.empty()


@pytest.mark.parametrize("fallback", FALLBACKS)
async def test_a_grandchild_that_left_the_group_is_ended_before_the_group_is_gone(
    make_host, without, fallback
):
    host = make_host(without(fallback))
    host.script(STRAY.format(trap="-") + "exec sleep 1000")
    stray = host.executed(await word(host, "stray"))
    host.stop()
    exited = await host.next()
    assert (exited.signal, exited.group_empty) == (signal.SIGTERM, False)
    assert await host.next() == GroupGone(run=1, killed=0)
    assert not is_alive(stray)


@pytest.mark.parametrize("fallback", FALLBACKS)
async def test_who_ignores_the_signal_is_killed_at_the_deadline_and_counted(
    make_host, without, fallback
):
    host = make_host(without(fallback))
    host.script(STRAY.format(trap="") + "trap '' TERM; echo leader $$; exec sleep 1000")
    found = {}
    for _process in range(2):
        name, pid = (await host.line()).split()
        found[name] = host.executed(int(pid))
    before_ns = mono_ns()
    host.stop(timeout_s=0.2)
    exited = await host.next()
    assert mono_ns() - before_ns > 0.2e9
    assert exited.signal == signal.SIGKILL
    last = exited
    if not exited.group_empty:
        last = await host.next()
        assert isinstance(last, GroupGone)
    assert last.killed == 2
    assert not is_alive(found["stray"])
    assert not is_alive(found["leader"])
    assert host.seen.empty()


async def test_leftovers_that_ignore_the_signal_are_killed_when_their_leader_ends_after_the_deadline(
    host,
):
    """The leader's end comes after SIGKILL was sent: what it shielded gets SIGKILL, nothing milder."""
    host.script(STRAY.format(trap="") + "trap '' TERM; sleep 1000")
    host.executed(await word(host, "stray"))
    host.stop(timeout_s=0)
    seen = await host.next()
    if not seen.group_empty:
        seen = await host.next()
    assert seen.killed >= 2


async def test_a_due_time_in_the_past_kills_at_once(host):
    host.script("trap '' TERM; echo ready; while :; do sleep 1000; done")
    assert await host.line() == "ready"
    host.runner.stop("s", 1, "SIGTERM", 0)
    assert (await host.next()).signal == signal.SIGKILL


async def test_the_group_gets_its_signal_once(host, tmp_path):
    """To many programs a second SIGTERM means: at once, and forget what you were doing."""
    heard = tmp_path / "heard"
    traps = f"trap 'echo term $$; : >{heard}' TERM; trap 'echo later $$' WINCH; "
    child = f"exec 2>/dev/null; {traps} echo child $$; while :; do sleep 0.01; done"
    end = f"while ! test -e {heard}; do sleep 0.01; done; exit 0"
    host.script(f'sh -c "$CHILD" & trap "{end}" TERM; wait', env={"CHILD": child})
    pid = await word(host, "child")
    host.stop()
    assert await word(host, "term") == pid
    assert (await host.next()).group_empty is False
    os.kill(pid, signal.SIGWINCH)  # a shell takes the higher number last
    assert await word(host, "later") == pid
    os.kill(pid, signal.SIGKILL)
    assert await host.next() == GroupGone(run=1)
    await rest_of_output(host)


async def test_a_stop_is_asked_once(host):
    host.script(
        "exec 2>/dev/null; trap 'echo term $$' TERM; echo ready; while :; do sleep 0.01; done"
    )
    assert await host.line() == "ready"
    host.stop()
    pid = await word(host, "term")
    host.stop()
    os.kill(pid, signal.SIGKILL)
    exited = await host.next()
    assert exited.killed == 0
    if not exited.group_empty:
        assert await host.next() == GroupGone(run=1, killed=0)
    await rest_of_output(host)


async def test_a_stop_that_is_asked_again_takes_the_new_time_for_its_sigkill(host):
    host.script("exec 2>/dev/null; trap '' TERM; echo ready; while :; do sleep 0.01; done")
    assert await host.line() == "ready"
    host.stop(timeout_s=60)
    host.stop(timeout_s=0)
    exited = await host.next()
    assert exited.signal == signal.SIGKILL
    if not exited.group_empty:
        await host.next()
    await rest_of_output(host)


async def test_stopping_what_is_not_there_is_answered(host):
    host.stop(run=3)
    assert await host.next() == GroupGone(run=3)


async def test_a_stop_before_the_gate_opened_means_that_nothing_ran(host, tmp_path):
    host.spawn(SH, "-c", f"echo ran >{tmp_path}/trace")
    host.stop()
    assert not host.runner.open_gate("s", 1)
    exited = await host.next()
    assert (exited.never_ran, exited.group_empty, exited.killed) == (True, True, 0)
    assert not (tmp_path / "trace").exists()


async def test_a_hurry_kills_what_is_being_stopped_and_what_will_be(host):
    text = "trap '' TERM; echo ready; while :; do sleep 1000; done"
    for run in (1, 2):
        host.script(text, run=run)
        assert await host.line(run=run) == "ready"
    host.stop(run=1)
    host.runner.hurry()
    assert (await host.next()).signal == signal.SIGKILL
    while not host.seen.empty() or not host.runner._processes.keys() <= {("s", 2)}:
        assert (await host.next()).run == 1
    host.stop(run=2)
    exited = await host.next()
    assert (exited.run, exited.signal) == (2, signal.SIGKILL)


async def test_leftovers_that_spawn_are_killed_to_the_last(host):
    """Each that is killed has a child by then: all are found again until none is left."""
    text = "trap '' TERM; echo ready; while :; do setsid -f sh -c 'trap \"\" TERM; sleep 1000'; sleep 0.01; done"
    host.script(text)
    assert await host.line() == "ready"
    host.stop(timeout_s=0.1)
    seen = await host.next()
    if not seen.group_empty:
        seen = await host.next()
    assert seen.killed >= 2
    assert not [pid for pid in proc.all_pids() if proc.mark(pid) == host.mark() and is_alive(pid)]


async def test_who_is_born_while_the_rest_is_killed_is_killed_as_well(host):
    leader = host.script(STRAY.format(trap="") + "exec sleep 1000")
    host.executed(await word(host, "stray"))
    os.kill(leader, signal.SIGKILL)
    assert (await host.next()).group_empty is False
    host.stop(timeout_s=100)
    host.runner.hurry()
    born = os.posix_spawn("/bin/sleep", ["sleep", "1000"], {proc.MARK: host.mark()}, setsid=True)
    host.executed(born)
    assert await host.next() == GroupGone(run=1, killed=2)
    assert not is_alive(born)


MAIN_THREAD_ENDS = """
import ctypes, os, threading, time
def tell():
    while open("/proc/self/stat").read().split()[2] != "Z":
        time.sleep(0.001)
    print("child", os.getpid(), flush=True)
    time.sleep(1000)
threading.Thread(target=tell).start()
ctypes.CDLL(None).syscall(60, 0)  # exit(2): ends the thread, not its process
"""


async def test_a_member_whose_main_thread_has_ended_still_counts(host):
    leader = host.script(
        f"""{sys.executable} -c "$PROGRAM" & exec sleep 1000""", env={"PROGRAM": MAIN_THREAD_ENDS}
    )
    await word(host, "child")
    os.kill(leader, signal.SIGKILL)
    assert (await host.next()).group_empty is False
    host.stop(timeout_s=0)
    assert isinstance(await host.next(), GroupGone)


async def test_without_proc_a_group_is_asked_by_signal(make_host, without):
    for names in (["proc"], ["proc", "pidfd", "pidfd_group", "pidfd_exit"]):
        host = make_host(without(names))
        host.script("trap '' TERM; sh -c 'echo child $$; sleep 1000' & wait; wait")
        child = await word(host, "child")
        host.stop(timeout_s=0.05)
        exited = await host.next()
        assert (exited.signal, exited.killed) == (signal.SIGKILL, 1)
        if not exited.group_empty:
            assert await host.next() == GroupGone(run=1, killed=1)
        assert not is_alive(child)
        host.close()


@pytest.mark.parametrize("names", [("waitid",), ("proc",)])
async def test_without_a_look_before_reaping_failures_are_known_by_their_codes(
    make_host, without, names
):
    host = make_host(without(names))
    host.start("/no/such/program")
    assert (await host.next()).launch_failure is not None
    host.script("exit 111", run=2)
    assert (await host.next()).never_ran is False  # its gate was opened
    host.spawn(SH, "-c", "exit 0", run=3)
    host.stop(run=3)
    assert (await host.next()).never_ran


# commands


async def test_a_command_gives_its_exit_code(host, tmp_path):
    launch = host.launch(SH, "-c", f"pwd -P >{tmp_path}/cwd; exit 3", cwd=str(tmp_path))
    assert await host.runner.run_command(launch, 100) == 3
    assert (tmp_path / "cwd").read_text() == f"{tmp_path}\n"
    assert await host.runner.run_command(host.launch(SH, "-c", "kill -9 $$"), 100) == -9


def sleeping(host, tmp_path):
    """A command with a child: its launch and a FIFO on which the child tells its pid."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    text = f"sh -c 'echo $$ >{fifo}; exec sleep 1000' & trap '' TERM; wait"
    return host.launch(SH, "-c", text), reader


async def first_line(reader: int) -> int:
    ready = asyncio.Event()
    asyncio.get_running_loop().add_reader(reader, ready.set)
    await ready.wait()
    asyncio.get_running_loop().remove_reader(reader)
    line = os.read(reader, 100)
    os.close(reader)
    return int(line)


async def all_reaped(host, gone) -> None:
    """Everything has ended, and been reaped."""
    for pid in list(proc.children(os.getpid())):
        await gone(pid)
    host.runner.reap()
    assert list(proc.children(os.getpid())) == []


async def test_a_command_that_takes_too_long_is_killed_with_its_group(host, tmp_path, gone):
    launch, reader = sleeping(host, tmp_path)
    with pytest.raises(TimeoutError):
        await host.runner.run_command(launch, 1)
    await gone(await first_line(reader))
    await all_reaped(host, gone)


async def test_a_cancelled_command_is_killed_and_keeps_its_number_until_reaped(
    host, tmp_path, gone
):
    launch, reader = sleeping(host, tmp_path)
    command = asyncio.create_task(host.runner.run_command(launch, 100))
    child = await first_line(reader)
    (leader,) = proc.children(os.getpid())
    command.cancel()
    with pytest.raises(asyncio.CancelledError):
        await command
    assert proc.stat(leader) is not None  # nobody else can have its number yet
    assert leader in host.runner._commands._running
    await gone(leader)
    await gone(child)
    await all_reaped(host, gone)
    assert host.runner._commands._running == {}
    assert host.runner._groups.led == set()


@pytest.mark.parametrize("names", [(), ("subreaper", "proc_children")])
async def test_a_probe_under_way_is_no_leftover_of_its_service(make_host, without, gone, names):
    host = make_host(without(names))
    pid = host.script("echo ready; exec sleep 1000")
    assert await host.line() == "ready"
    launch = host.launch("/bin/sleep", "1000", env={proc.MARK: host.mark()})
    probe = asyncio.create_task(host.runner.run_command(launch, 100))
    await asyncio.sleep(0)
    os.kill(pid, signal.SIGKILL)
    assert (await host.next()).group_empty
    probe.cancel()
    await asyncio.gather(probe, return_exceptions=True)
    await all_reaped(host, gone)


async def test_closing_leaves_services_alone_and_closes_gates(host, gone):
    running = host.script("echo ready; sleep 1000")
    assert await host.line() == "ready"
    waiting = host.spawn(SH, "-c", "exit 0", run=2)
    host.close()
    await gone(waiting)
    assert is_alive(running)


async def test_the_owner_of_a_process_is_found_by_session_and_descent(host):
    pid = host.script(
        "sh -c 'echo child $$; sleep 1000' & setsid sh -c 'echo far $$; sleep 1000' & wait"
    )
    found = dict([(await host.line()).split(), (await host.line()).split()])
    assert [host.runner.owner_of(int(each)) for each in (pid, found["child"], found["far"])] == [
        "s"
    ] * 3
    assert host.runner.owner_of(os.getpid()) is None
    assert host.runner.owner_of(2**22) is None


async def test_released_runs_are_told_to_the_keeper_once(host):
    for run in (1, 2, 3):
        host.script("exit 0", run=run)
        await host.next()
    host.runner.kept("other", 9)
    host.runner.release("s", 2)
    host.runner.release("s", 2)
    assert host.keeper.released == [("s", 1), ("s", 2)]
    host.runner.release("s", None)
    host.runner.release("other", None)
    assert host.keeper.released[2:] == [("s", 3), ("other", 9)]


async def test_what_cannot_be_looked_at_just_now_is_not_taken_for_gone(host, monkeypatch):
    host.script(STRAY.format(trap="-") + "exit 0")
    stray = host.executed(await word(host, "stray"))
    assert (await host.next()).group_empty is False

    def fail(_pid):
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(proc, "children", fail)
        host.runner.reap()
        assert host.seen.empty()
    host.stop()
    assert await host.next() == GroupGone(run=1)
    assert not is_alive(stray)


def looks_at_processes(monkeypatch) -> list[int]:
    """The pids that /proc is asked about from now on."""
    looked: list[int] = []
    stat = proc.stat

    def look(pid):
        looked.append(pid)
        return stat(pid)

    monkeypatch.setattr(proc, "stat", look)
    return looked


async def test_an_end_with_500_idle_neighbours_is_seen_without_a_scan_of_proc(host, monkeypatch):
    monkeypatch.setattr(proc, "all_pids", lambda: pytest.fail("every process was looked at"))
    for number in range(500):
        host.spawn(SH, "-c", "exit 0", service=f"idle{number}", logs=None)
    looked = looks_at_processes(monkeypatch)
    host.script("exit 0", logs=None)
    looked.clear()
    exited = await host.next()
    assert exited == ProcessExited(run=1, exit_code=0, usage=exited.usage)
    assert looked == []


async def test_an_end_is_seen_of_who_was_killed_before_it_was_known_whose_he_is(host, monkeypatch):
    """The loop goes on while a process is made, and hears of its end."""
    host.spawning.others_wait = lambda: True
    make = gate.Approach.spawn

    def make_and_kill(*given):
        made = make(*given)
        os.kill(made, signal.SIGKILL)
        assert os.waitid(os.P_PID, made, os.WEXITED | os.WNOWAIT)
        deadline = time.monotonic() + 10
        while not host.runner._signals._told_meanwhile:
            assert time.monotonic() < deadline, "the loop goes on"
            time.sleep(0.001)
        return made

    monkeypatch.setattr(gate.Approach, "spawn", make_and_kill)
    await host.runner.spawn("s", 1, host.mark(), host.launch(SH, "-c", "exit 0"), None)
    assert (await host.next()).signal == signal.SIGKILL


async def test_an_end_is_looked_at_where_it_may_be_that_of_the_gate(host, monkeypatch):
    looked = looks_at_processes(monkeypatch)
    pid = host.script("exit 127", logs=None)
    looked.clear()
    exited = await host.next()
    assert (exited.exit_code, exited.launch_failure) == (127, None)
    assert looked == [pid]


async def test_what_the_processes_of_others_leave_to_us_is_looked_at_once(host, monkeypatch):
    """A fork bomb may leave thousands; those of a run are among them nevertheless."""
    orphans = "for each in $(seq 50); do (sleep 1000 & sleep 1000 &); done; echo ready; "
    host.script(f"{orphans} exec sleep 1000", service="bomb")
    assert await host.line(service="bomb") == "ready"
    looked = looks_at_processes(monkeypatch)
    for run, most in ((1, 110), (2, 10)):
        looked.clear()
        host.script("exit 0", run=run, logs=None)
        assert (await host.next()).group_empty
        assert len(looked) <= most
    host.runner.stop("bomb", 1, "SIGTERM", mono_ns())
    while not getattr(last := await host.next(), "group_empty", isinstance(last, GroupGone)):
        continue
    assert not [pid for pid in proc.own_children() if (now := proc.stat(pid)) and now.is_alive]


# the input of a command


async def test_a_command_reads_the_text_it_is_given(host, tmp_path):
    text = b"x" * 1_000_000 + b"\n"
    launch = host.launch(SH, "-c", f"cat >{tmp_path}/got")
    assert await host.runner.run_command(launch, 10.0, stdin=text) == 0
    assert (tmp_path / "got").read_bytes() == text


async def test_a_command_that_does_not_read_its_input_holds_nobody_up(host):
    before = set(os.listdir("/proc/self/fd"))
    launch = host.launch(SH, "-c", "test $(ls /proc/self/fd | wc -l) = 4")
    assert await host.runner.run_command(launch, 10.0, stdin=b"x" * 1_000_000) == 0
    assert set(os.listdir("/proc/self/fd")) == before
    assert {path.name for path in host.folder.iterdir()} <= {gate.GATE, native_gate.FOLDER}


async def test_a_command_is_given_no_descriptors_of_its_service(host):
    launch = host.launch(SH, "-c", "test -e /dev/fd/3 && exit 9; read x; exit 7", descriptors=(2,))
    assert await host.runner.run_command(launch, 10.0) == 7  # at once: /dev/null has no line


async def test_a_command_has_the_limits_of_its_service(host):
    launch = host.launch(SH, "-c", "test $(ulimit -n) = 64", rlimits={"nofile": 64})
    assert await host.runner.run_command(launch, 10.0) == 0
    refused = host.launch(SH, "-c", "exit 0", rlimits={"nofile": None})
    with pytest.raises(LaunchError, match=r"limits\.nofile"):
        await host.runner.run_command(refused, 10.0)


# the main process


@pytest.mark.parametrize("fallback", [(), ("pidfd", "pidfd_group", "pidfd_exit")])
async def test_a_signal_for_the_main_process_reaches_it_alone(make_host, without, fallback):
    host = make_host(without(fallback))
    trap = "trap 'echo {0} got it' HUP; "
    loop = "while :; do sleep 1000 & wait $!; done"
    host.script(
        f"(trap 'echo child' HUP; sleep 1000 & wait) & {trap.format('main')} echo up; {loop}"
    )
    assert await host.line() == "up"
    host.runner.signal_main("s", 1, "SIGHUP")
    assert await host.line() == "main got it"
    host.runner.signal_main("s", 1, "SIGKILL")
    assert (await host.next()).signal == signal.SIGKILL


async def test_who_has_no_main_process_cannot_be_signalled(host):
    host.spawn(SH, "-c", "exit 0")
    with pytest.raises(ProcessLookupError, match="run 1 of s has no main process"):
        host.runner.signal_main("s", 1, "SIGHUP")  # at its gate it would only die
    with pytest.raises(ProcessLookupError, match="run 2 of s"):
        host.runner.signal_main("s", 2, "SIGHUP")
    host.script("sleep 1000 & exit 0", service="t")
    assert (await host.next()).group_empty is False
    with pytest.raises(ProcessLookupError, match="run 1 of t"):
        host.runner.signal_main("t", 1, "SIGHUP")


TWO = "sh -c 'echo other $$; exec sleep 1000' & exec sleep 1001"
APART = "setsid -f " + TWO


def kill_and_reap(host, pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    select.select([pidfd], [], [])
    os.close(pidfd)
    host.runner.reap()
    assert proc.stat(pid) is None


async def nobody_is_in_its_group(host, leader: int) -> None:
    """Whoever put another apart has ended, too."""
    while True:
        host.runner.reap()
        try:
            os.killpg(leader, 0)
        except ProcessLookupError:
            return
        await asyncio.sleep(0.001)


async def two(host, script: str = TWO) -> tuple[int, int]:
    """A main process and another of its run."""
    first = host.script(script)
    return first, host.executed(await word(host, "other"))


@pytest.mark.parametrize("fallback", FALLBACKS)
@pytest.mark.parametrize("script", [TWO, APART], ids=["in its session", "apart"])
async def test_the_end_of_another_main_process_is_the_runs(make_host, without, script, fallback):
    host = make_host(without(fallback))
    first, other = await two(host, script)
    assert host.runner.change_main("s", 1, other) == (other, stat_of(other).start_time)
    kill_and_reap(host, first)
    assert host.seen.empty()
    assert host.runner.owner_of(other) == "s"
    os.kill(other, signal.SIGUSR1)
    exited = await host.next()
    assert (exited.signal, exited.group_empty) == (signal.SIGUSR1, True)
    assert exited.usage  # it had come to us


async def test_another_main_process_ends_before_the_first(host):
    first, other = await two(host)
    assert host.runner.change_main("s", 1, other)
    os.kill(other, signal.SIGKILL)
    exited = await host.next()
    assert (exited.signal, exited.group_empty) == (signal.SIGKILL, False)
    host.stop()
    assert await host.next() == GroupGone(run=1)
    assert not is_alive(first)


@pytest.mark.parametrize("fallback", FALLBACKS)
@pytest.mark.parametrize("script", [TWO, APART], ids=["in its session", "apart"])
async def test_a_stop_reaches_the_main_process_wherever_it_is(make_host, without, script, fallback):
    host = make_host(without(fallback))
    first, other = await two(host, script)
    assert host.runner.change_main("s", 1, other)
    kill_and_reap(host, first)
    if script == APART:
        await nobody_is_in_its_group(host, first)
    host.stop()
    exited = await host.next()
    assert (exited.signal, exited.group_empty) == (signal.SIGTERM, True)


async def test_the_main_process_may_change_there_and_back(host, gone):
    before = set(os.listdir("/proc/self/fd"))
    first, other = await two(host)
    for pid in (other, first):
        os.close(host.keeper.pidfds.pop(("s", 1)))
        assert host.runner.change_main("s", 1, pid)
    os.kill(other, signal.SIGKILL)
    await gone(other)
    host.runner.signal_main("s", 1, "SIGTERM")
    exited = await host.next()
    assert (exited.signal, exited.group_empty) == (signal.SIGTERM, True)
    host.keeper.close()
    left = {
        os.readlink(f"/proc/self/fd/{each}") for each in set(os.listdir("/proc/self/fd")) - before
    }
    assert not any("pidfd" in each or "output" in each for each in left), left


async def test_only_a_living_member_becomes_the_main_process(host, gone):
    first, other = await two(host)
    stranger = host.start("/bin/sleep", "1000", service="stranger")
    os.kill(other, signal.SIGKILL)
    await gone(other)
    for pid in (first, other, stranger, os.getpid(), 1, 0, -1, 2**22):
        assert host.runner.change_main("s", 1, pid) is None
    assert host.runner.change_main("nobody", 1, first) is None
    assert host.runner.change_main("s", 2, first) is None


async def test_the_keeper_holds_the_new_main_process(host):
    _first, other = await two(host)
    output = host.keeper.outputs["s", 1]
    assert host.runner.change_main("s", 1, other)
    info = f"/proc/self/fdinfo/{host.keeper.pidfds['s', 1]}"
    with open(info) as file:
        assert f"Pid:\t{other}\n" in file
    assert host.keeper.outputs["s", 1] == output


async def test_what_was_said_last_is_heard_before_an_end_is_looked_at(host):
    """A daemon forks, names its child, and exits: the one who listens learns of both at once."""
    first, other = await two(host)
    host.runner.before_reap = lambda _service: host.runner.change_main("s", 1, other)
    kill_and_reap(host, first)
    assert host.seen.empty()
    os.kill(other, signal.SIGKILL)
    assert (await host.next()).signal == signal.SIGKILL


# memory


async def test_the_memory_of_all_processes_of_a_run_counts(host):
    text = "x = bytearray(50_000_000); print('up', flush=True); input()"
    command = f'{sys.executable} -c "{text}"'
    read, write = os.pipe()
    host.script(f"{command} <&3 & {command} <&3 & exec sleep 1000", descriptors=(read,))
    assert [await host.line(), await host.line()] == ["up", "up"]
    held = host.runner.memory("s", 1)
    assert 100_000_000 < held < 200_000_000
    assert host.runner.memory("s", 2) is None
    assert host.runner.tier("s", 1) == host.runner.tier("s", 2) == "session"
    os.close(read)
    os.close(write)


async def test_a_look_at_the_memory_of_an_adopted_run_looks_at_no_process_but_its_own(
    host, make_host, monkeypatch
):
    """With hundreds of them, looks at every process of the machine would be all that is done."""
    first, other = await two(host)
    host.close()
    heir = make_host()
    process = Process(
        service="s",
        run=1,
        pid=first,
        mark=host.mark(),
        start_time=stat_of(first).start_time,
        is_child=False,
        opened=True,
    )
    heir.runner.adopt(process, None)
    looked: list[int] = []

    def memory(pid: int) -> tuple[int, int]:
        looked.append(pid)
        return 1, 1

    monkeypatch.setattr(proc, "memory", memory)
    monkeypatch.setattr(heir.runner._groups, "look", lambda _process: pytest.fail("it scans"))
    assert heir.runner.memory("s", 1) == 3
    assert sorted(looked) == sorted([first, other])
