"""After the daemon's own death: what lives is taken up, how the rest ended is found out, strangers are left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from registry.core.definition import Definition
from registry.core.inputs import GateOpened, GroupGone, ProcessExited, ProcessFound, ProcessLost
from registry.core.lifecycle import State
from registry.core.service import Service
from registry.host import adoption, gate, proc
from registry.host.health import Prober
from registry.host.machine import Machine
from registry.host.surroundings import Surroundings

PARENT = """
import os, sys
from pathlib import Path
from registry.host import gate, proc
from registry.host.launch import Launch
folder, mark, script = sys.argv[1:]
launch = Launch(("/bin/sh", "-c", script), {proc.MARK: mark}, "/", 0o22, None, None, ())
output = os.open("output", os.O_RDWR)
with gate.approach(gate.prepare(Path(folder)), launch, None, "output") as made:
    gated = made.gated(made.spawn(*made.fds))
print(gated.pid, proc.stat(gated.pid).start_time, flush=True)
for line in sys.stdin:
    match line.strip():
        case "open":
            gate.open_gate(gated.gate)
        case "close":
            os.close(gated.gate)
        case "reap":
            os.waitpid(gated.pid, 0)
    print("done", flush=True)
"""


def stat_of(pid: int) -> Any:
    """What /proc says of a process that is there."""
    return proc.stat(pid)


class Earlier:
    """The daemon before us: parent of one service. Nothing is reaped unless it is told so."""

    def __init__(self, folder: Path, mark: str, script: str) -> None:
        os.mkfifo(folder / "output")
        self._output = os.open(folder / "output", os.O_RDWR)
        argv = [sys.executable, "-c", PARENT, str(folder), mark, script]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, cwd=folder, text=True)
        self.pid, self.start_time = map(int, self._line().split())
        self.pidfd = os.pidfd_open(self.pid)

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def tell(self, *words: str) -> None:
        assert self.process.stdin is not None
        for word in words:
            self.process.stdin.write(f"{word}\n")
            self.process.stdin.flush()
            assert self._line() == "done\n"

    def word(self) -> str:
        """The next short line that the service wrote."""
        line = b""
        while not line.endswith(b"\n"):
            line += os.read(self._output, 1)
        return line.decode().strip()

    def close(self) -> None:
        os.close(self._output)
        os.close(self.pidfd)
        self.process.kill()
        with self.process:
            pass


@pytest.fixture
def earlier(host, tmp_path: Path) -> Iterator[Callable[..., Earlier]]:
    made: list[Earlier] = []

    def make(script: str, *words: str) -> Earlier:
        folder = tmp_path / f"earlier{len(made)}"
        folder.mkdir()
        made.append(Earlier(folder, host.mark(), script))
        made[-1].tell(*words)
        return made[-1]

    yield make
    for each in made:
        each.close()


def adopt(
    host,
    pid: int | None,
    start_time: int | None = None,
    *,
    pidfd: int | None = None,
    same_boot: bool = True,
    state: State = State.STARTING,
):
    """What a daemon with this journal sees at its start."""
    machine = Machine(
        runner=host.runner,
        prober=cast(Prober, None),
        surroundings=cast(
            Surroundings,
            SimpleNamespace(begin=lambda *_run, **_also: None, listen=lambda *_definition: None),
        ),
        observe=lambda service, given: host.seen.put_nowait((service, given)),
        capabilities=host.capabilities,
        journal_id=host.mark().split("/")[0],
        environments={},
        socket_path="",
    )
    service = Service(Definition("s", ("/bin/true",)), run=1, pid=pid, start_time=start_time)
    service.state = state
    service.running_ns = 1 if state is State.RUNNING else None
    if pidfd is not None:
        host.runner.kept("s", 1)  # it comes from the keeper
    return machine.adopt(service, pidfd, same_boot=same_boot)


def adopted(pid: int) -> list[object]:
    return [ProcessFound(run=1, pid=pid), GateOpened(run=1)]


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


# what lives


NO_PIDFDS = ["pidfd", "pidfd_group", "pidfd_exit"]


@pytest.fixture(params=[[], ["pidfd_group"], NO_PIDFDS], ids=["all", "no pidfd_group", "no pidfd"])
async def weak_host(request, make_host, without):
    """Runners with and without pidfds."""
    return make_host(without(request.param))


async def test_a_living_service_is_adopted_and_its_end_is_seen(weak_host, earlier, host):
    there = earlier("echo ready; exec sleep 1000", "open")
    weak_host._name = host._name
    assert there.word() == "ready"
    assert adopt(weak_host, there.pid, there.start_time) == adopted(there.pid)
    os.kill(there.pid, signal.SIGINT)
    assert await weak_host.next() == ProcessExited(run=1, signal=signal.SIGINT)


async def test_an_adopted_service_is_stopped_to_the_last_process(weak_host, earlier, host):
    stray = "setsid -f sh -c 'trap \"\" TERM; echo $$; exec sleep 1000'; "
    there = earlier(f"{stray} trap '' TERM; echo ready; exec sleep 1000", "open")
    weak_host._name = host._name
    words = {there.word(), there.word()} - {"ready"}
    stray = host.executed(int(words.pop()))
    host.executed(there.pid)
    assert adopt(weak_host, there.pid, there.start_time) == adopted(there.pid)
    weak_host.stop(timeout_s=0.05)
    ended = await weak_host.next()
    assert ended.signal == signal.SIGKILL
    last = ended if ended.group_empty else await weak_host.next()
    assert last.killed == 2
    assert proc.stat(stray) is None or not stat_of(stray).is_alive
    assert weak_host.seen.empty()


async def test_a_pidfd_of_the_keeper_is_identity_enough_and_is_taken_over(host, earlier):
    before = open_descriptors()
    there = earlier("echo ready; exec sleep 1000", "open")
    assert there.word() == "ready"
    with_ours = open_descriptors()
    assert adopt(host, there.pid, None, pidfd=os.dup(there.pidfd)) == adopted(there.pid)
    os.kill(there.pid, signal.SIGKILL)
    assert await host.next() == ProcessExited(run=1, signal=signal.SIGKILL)
    assert open_descriptors() == with_ours
    assert before < with_ours


async def test_a_service_that_is_our_child_is_watched_as_one(host, make_host):
    """After an upgrade in place the daemon has another program and the same children."""
    pid = host.script("echo ready; exec sleep 1000")
    assert await host.line() == "ready"
    start_time = stat_of(pid).start_time
    host.close()
    heir = make_host()
    assert adopt(heir, pid, start_time) == adopted(pid)
    os.kill(pid, signal.SIGKILL)
    exited = await heir.next()
    assert (exited.signal, exited.group_empty, exited.usage is None) == (
        signal.SIGKILL,
        True,
        False,
    )
    assert proc.stat(pid) is None


async def test_when_its_parent_is_killed_a_service_is_adopted(host, earlier):
    there = earlier("echo ready; exec sleep 1000", "open")
    assert there.word() == "ready"
    there.process.kill()
    there.process.wait()
    assert adopt(host, there.pid, there.start_time) == adopted(there.pid)
    os.kill(there.pid, signal.SIGTERM)
    assert (await host.next()).signal == signal.SIGTERM


def take_over(heir, host) -> None:
    """Orphans come to this process: only one of its runners may reap."""
    host.close()
    heir._name = host._name
    heir.runner.listen()


TWO = "sh -c 'echo $$; exec sleep 1000' & exec sleep 1001"


@pytest.mark.parametrize("script", [TWO, f"setsid -f {TWO}"], ids=["in its session", "apart"])
async def test_a_service_with_another_main_process_is_adopted_whole(
    weak_host, earlier, host, script
):
    """It has named another main process in an earlier life: the journal has that one's number."""
    there = earlier(script, "open")
    take_over(weak_host, host)
    main = host.executed(int(there.word()))
    host.executed(there.pid)
    assert adopt(weak_host, main, stat_of(main).start_time) == adopted(main)
    os.kill(main, signal.SIGKILL)
    seen = await weak_host.next()
    assert (seen.signal, seen.group_empty) == (signal.SIGKILL, False)
    weak_host.stop()
    assert await weak_host.next() == GroupGone(run=1)
    assert not stat_of(there.pid).is_alive


async def test_the_session_of_another_main_process_is_known_without_a_mark(
    weak_host, earlier, host
):
    """The leader is gone, and the third has no mark: only the session tells."""
    script = "env -i sh -c 'echo $$; exec sleep 1000' & sh -c 'echo $$; exec sleep 1001' & wait"
    there = earlier(script, "open")
    take_over(weak_host, host)
    pids = [host.executed(int(there.word())) for _process in range(2)]
    main, bare = sorted(pids, key=lambda pid: proc.mark(pid) == "")
    os.kill(there.pid, signal.SIGKILL)
    there.tell("reap")
    assert adopt(weak_host, main, stat_of(main).start_time) == adopted(main)
    os.kill(main, signal.SIGKILL)
    assert (await weak_host.next()).group_empty is False
    weak_host.stop()
    assert await weak_host.next() == GroupGone(run=1)
    assert proc.stat(bare) is None or not stat_of(bare).is_alive


async def test_of_a_dead_main_process_the_rest_is_found_by_its_mark(weak_host, earlier, host, gone):
    there = earlier(TWO, "open")
    take_over(weak_host, host)
    main = host.executed(int(there.word()))
    host.executed(there.pid)
    start_time = stat_of(main).start_time
    os.kill(main, signal.SIGKILL)
    await gone(main)
    (seen,) = adopt(weak_host, main, start_time)
    assert seen.group_empty is False
    weak_host.stop()
    assert await weak_host.next() == GroupGone(run=1)
    assert not stat_of(there.pid).is_alive


async def test_a_pidfd_of_a_main_process_that_the_journal_does_not_know_is_not_the_run_s(
    host, earlier
):
    """Killed between the keeper's holding the new main process and the commit that names it."""
    there = earlier(TWO, "open")
    other = host.executed(int(there.word()))
    host.executed(there.pid)
    pidfd = os.pidfd_open(other)
    start_time = stat_of(there.pid).start_time
    assert adopt(host, there.pid, start_time, pidfd=pidfd) == adopted(there.pid)
    os.kill(there.pid, signal.SIGKILL)
    there.tell("reap")
    assert (await host.next()).run == 1
    host.stop()
    assert await host.next() == GroupGone(run=1)


async def test_a_child_of_ours_may_have_another_main_process(host, make_host):
    """After an upgrade in place: the leader is ours, the main process its child."""
    leader = host.script(TWO)
    main = host.executed(int(await host.line()))
    host.executed(leader)
    host.close()
    heir = make_host()
    heir._name = host._name
    assert adopt(heir, main, stat_of(main).start_time) == adopted(main)
    heir.stop()
    ended = await heir.next()
    assert ended.signal == signal.SIGTERM
    assert ended.group_empty or await heir.next() == GroupGone(run=1)
    assert heir.seen.empty()


# at the gate


async def test_what_is_at_its_gate_is_found_and_its_end_there_is_never_ran(host, earlier):
    there = earlier("exit 0")
    assert adopt(host, there.pid, there.start_time) == [ProcessFound(run=1, pid=there.pid)]
    there.tell("close")
    exited = await host.next()
    assert (exited.exit_code, exited.never_ran) == (gate.NEVER_RAN, True)


async def test_what_was_let_through_in_the_last_moment_is_seen_to_leave_its_gate(
    weak_host, earlier, host
):
    there = earlier("exec sleep 1000")
    assert adopt(weak_host, there.pid, there.start_time) == [ProcessFound(run=1, pid=there.pid)]
    there.tell("open")
    assert await weak_host.next() == GateOpened(run=1)
    os.kill(there.pid, signal.SIGKILL)
    assert await weak_host.next() == ProcessExited(run=1, signal=signal.SIGKILL)


async def test_what_keeps_the_gates_name_is_at_last_taken_for_through(host, earlier, monkeypatch):
    """bash becomes a script without #! itself, and keeps the name that it was started by."""
    monkeypatch.setattr("registry.host.process.RECHECK_S", 0.0)
    there = earlier("exit 0")
    assert adopt(host, there.pid, there.start_time) == [ProcessFound(run=1, pid=there.pid)]
    assert await host.next() == GateOpened(run=1)


@pytest.mark.parametrize(("state", "never_ran"), [(State.STARTING, True), (State.RUNNING, False)])
async def test_111_of_a_service_that_was_running_is_its_own(host, earlier, state, never_ran):
    there = earlier("exit 0", "close", "reap")
    (seen,) = adopt(host, there.pid, there.start_time, pidfd=os.dup(there.pidfd), state=state)
    assert (seen.exit_code, seen.never_ran) == (gate.NEVER_RAN, never_ran)


async def test_111_of_a_zombie_that_had_left_its_gate_is_its_own(host, earlier, gone):
    there = earlier("exit 111", "open")
    await gone(there.pid)
    assert adopt(host, there.pid, there.start_time) == [ProcessExited(run=1, exit_code=111)]


# what has ended


async def test_an_end_is_known_by_a_pidfd_held_since_before(host, capabilities, earlier):
    if not capabilities.pidfd_exit:
        pytest.fail("the tests need Linux 6.15 to show what it can do")
    for script, expected in (("exit 42", (42, None)), ("kill -9 $$", (None, 9))):
        there = earlier(script, "open", "reap")
        before = open_descriptors()
        seen = adopt(host, there.pid, there.start_time, pidfd=os.dup(there.pidfd))
        assert seen == [ProcessExited(run=1, exit_code=expected[0], signal=expected[1])]
        assert open_descriptors() == before


@pytest.mark.parametrize("names", [["pidfd_exit"], NO_PIDFDS])
async def test_an_end_is_known_from_a_zombie(make_host, without, earlier, gone, names):
    host = make_host(without(names))
    there = earlier("exit 42", "open")
    await gone(there.pid)
    assert adopt(host, there.pid, there.start_time) == [ProcessExited(run=1, exit_code=42)]


async def test_an_end_that_nobody_saw_is_lost(make_host, without, host, earlier):
    there = earlier("exit 42", "open", "reap")
    assert adopt(host, there.pid, there.start_time) == [ProcessLost(run=1)]
    weak = make_host(without(["pidfd_exit"]))
    seen = adopt(weak, there.pid, there.start_time, pidfd=os.dup(there.pidfd))
    assert seen == [ProcessLost(run=1)]


@pytest.mark.parametrize("names", [[], ["pidfd_exit"]])
async def test_an_adopted_one_that_is_reaped_before_we_look_is_known_where_it_can_be(
    make_host, without, earlier, host, names
):
    weak = make_host(without(names))
    weak._name = host._name
    there = earlier("echo ready; exec sleep 1000", "open")
    assert there.word() == "ready"
    assert adopt(weak, there.pid, there.start_time) == adopted(there.pid)
    os.kill(there.pid, signal.SIGKILL)
    there.tell("reap")
    known = ProcessExited(run=1, signal=signal.SIGKILL)
    assert await weak.next() == (ProcessLost(run=1) if names else known)


# leftovers


LEFT = "sh -c 'trap \"\" TERM; echo $$; exec sleep 1000' & "
STRAY = "setsid -f sh -c 'trap \"\" TERM; echo $$; exec sleep 1000'; "


@pytest.mark.parametrize("script", [LEFT, STRAY], ids=["in its session", "by its mark"])
async def test_leftovers_of_a_dead_leader_are_found_and_stopped(weak_host, earlier, host, script):
    weak_host._name = host._name
    there = earlier(f"{script} wait; exit 3", "open")
    left = host.executed(int(there.word()))
    os.kill(there.pid, signal.SIGKILL)
    there.tell("reap")
    assert adopt(weak_host, there.pid, there.start_time) == [ProcessLost(run=1, group_empty=False)]
    weak_host.stop(timeout_s=0.05)
    assert await weak_host.next() == GroupGone(run=1, killed=1)
    assert proc.stat(left) is None or not stat_of(left).is_alive


async def test_leftovers_without_a_mark_are_found_by_the_keepers_pidfd(host, earlier):
    there = earlier("env -i sh -c 'echo $$; exec sleep 1000' & wait", "open")
    left = int(there.word())
    os.kill(there.pid, signal.SIGKILL)
    there.tell("reap")
    seen = adopt(host, there.pid, there.start_time, pidfd=os.dup(there.pidfd))
    assert seen == [ProcessExited(run=1, signal=signal.SIGKILL, group_empty=False)]
    host.stop()
    assert await host.next() == GroupGone(run=1)
    assert proc.stat(left) is None or not stat_of(left).is_alive


@pytest.mark.parametrize("script", [LEFT, STRAY], ids=["in its session", "by its mark"])
@pytest.mark.parametrize("has_pidfd", [True, False])
async def test_leftovers_are_stopped_where_the_leaders_pid_is_forgotten(
    host, earlier, script, has_pidfd
):
    """Its end was journaled, then the daemon died while it stopped the rest."""
    there = earlier(f"{script} wait", "open")
    left = host.executed(int(there.word()))
    os.kill(there.pid, signal.SIGKILL)
    there.tell("reap")
    pidfd = os.dup(there.pidfd) if has_pidfd else None
    assert adopt(host, None, None, pidfd=pidfd, state=State.STOPPING) == []
    host.stop(timeout_s=0.05)
    assert await host.next() == GroupGone(run=1, killed=1)
    assert proc.stat(left) is None or not stat_of(left).is_alive


async def test_where_nothing_is_left_of_a_stop_its_end_is_told_at_once(host, earlier):
    """Threads of the kernel have neither group nor session, and are nobody's leftovers."""
    there = earlier("exit 0", "open", "reap")
    before = open_descriptors()
    assert adopt(host, None, None, pidfd=os.dup(there.pidfd), state=State.STOPPING) == []
    host.stop()
    assert await host.next() == GroupGone(run=1)
    assert open_descriptors() == before


# strangers


async def test_a_stranger_with_the_same_pid_is_neither_adopted_nor_signalled(weak_host, earlier):
    stranger = earlier("echo ready; exec sleep 1000", "open")
    assert stranger.word() == "ready"
    assert weak_host.mark() != proc.mark(stranger.pid)
    assert adopt(weak_host, stranger.pid, stranger.start_time - 1) == [ProcessLost(run=1)]
    weak_host.stop(timeout_s=0)
    assert await weak_host.next() == GroupGone(run=1)
    assert adopt(weak_host, stranger.pid, None) == [ProcessLost(run=1)]
    assert adoption.lives(stranger.pid, stranger.start_time)


async def test_a_stranger_in_whose_session_a_leftover_seems_to_be_is_left_alone(
    weak_host, earlier, host
):
    """The leader's number has gone to another, and a stray of the run lives: only that is stopped."""
    weak_host._name = host._name
    there = earlier(f"{STRAY} wait; exec sleep 1000", "open")
    stray = host.executed(int(there.word()))
    weak_host.script("echo $$; exec sleep 1000", service="other")
    other = int(await weak_host.line("other"))
    os.kill(there.pid, signal.SIGKILL)
    there.tell("reap")
    seen = adopt(weak_host, other, stat_of(other).start_time - 1)
    assert seen == [ProcessLost(run=1, group_empty=False)]
    weak_host.stop(timeout_s=0)
    assert await weak_host.next() == GroupGone(run=1, killed=1)
    assert proc.stat(stray) is None or not stat_of(stray).is_alive
    assert stat_of(other).is_alive


@pytest.mark.parametrize("state", [State.STARTING, State.STOPPING])
async def test_of_another_boot_nothing_is_adopted(host, earlier, state):
    there = earlier("echo ready; exec sleep 1000", "open")
    assert there.word() == "ready"
    before = open_descriptors()
    given = {"pidfd": os.dup(there.pidfd), "same_boot": False, "state": state}
    assert adopt(host, there.pid, there.start_time, **given) == [ProcessLost(run=1)]
    assert adopt(host, None, None, same_boot=False, state=state) == []
    assert open_descriptors() == before
    host.stop(timeout_s=0)
    assert await host.next() == GroupGone(run=1)
    assert adoption.lives(there.pid, there.start_time)


async def test_without_proc_nothing_is_adopted(make_host, without, earlier):
    host = make_host(without(["proc"]))
    there = earlier("echo ready; exec sleep 1000", "open")
    assert adopt(host, there.pid, there.start_time) == [ProcessLost(run=1)]


def test_a_pidfd_is_only_of_the_process_that_is_meant(host, earlier):
    there = earlier("exec sleep 1000", "open")
    before = open_descriptors()
    assert adoption.pidfd_of(there.pid, there.start_time + 1) is None
    assert adoption.pidfd_of(there.pid, None) is None
    assert adoption.pidfd_of(2**22, 1) is None
    assert open_descriptors() == before
    pidfd = adoption.pidfd_of(there.pid, there.start_time)
    assert pidfd is not None
    assert not adoption.has_ended(pidfd)
    os.kill(there.pid, signal.SIGKILL)
    there.tell("reap")
    assert adoption.has_ended(pidfd)
    os.close(pidfd)
