"""Processes made ahead, several at once: those that are asked for are there, the others have never been."""

from __future__ import annotations

import os
import signal
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from registry.core.definition import Definition, Socket
from registry.core.inputs import ProcessExited, SpawnSucceeded
from registry.host import gate, proc
from registry.host.gated import Wanted
from registry.host.launch import LaunchError
from registry.host.machine import Machine
from registry.logs.target import LogTarget
from registry.passed import SCM_MAX_FD
from tests.coroutines import at_once
from tests.host.conftest import LOGS, SH, Host

pytestmark = pytest.mark.platform("linux")


def wanted(host: Host, run: int, text: str = "exit 0", logs=None, **fields) -> Wanted:
    """A run that is probably asked for, which has its mark."""
    fields = {"env": {proc.MARK: host.mark(run=run)}, **fields}
    return Wanted(("s", run), host.launch(SH, "-c", text, **fields), logs)


def spawn(host: Host, of: Wanted) -> int:
    """Ask for a run; the pid of its process."""
    service, run = of.key
    mark = host.mark(service, run)
    return at_once(host.runner.spawn(service, run, mark, of.launch, of.logs)).pid


def children() -> list[int]:
    return sorted(proc.children(os.getpid()))


def at_gates(count: int) -> set[int]:
    """Those of them that wait at a gate, as many as there must be: the kernel lets who made one go on a moment before
    it gives it the gate's name.
    """
    while len(found := {pid for pid in children() if proc.program(pid) == gate.GATE}) < count:
        time.sleep(0.001)
    return found


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


async def test_what_is_asked_for_is_there_already_and_waits(host, tmp_path):
    before = children()
    runs = [wanted(host, run, f"echo {run} >>{tmp_path}/ran") for run in (1, 2, 3)]
    async with host.runner.ahead(runs):
        made = sorted({*children()} - {*before})
        assert at_gates(3) == {*made}
        assert sorted(spawn(host, each) for each in runs) == made
    assert sorted({*children()} - {*before}) == made
    assert not (tmp_path / "ran").exists()
    for run in (1, 2, 3):
        assert host.runner.open_gate("s", run)
        assert (await host.next()).exit_code == 0
        assert (tmp_path / "ran").read_text() == "".join(f"{n}\n" for n in range(1, run + 1))


async def test_what_nobody_asks_for_is_undone(host, gone, tmp_path):
    before, descriptors = children(), open_descriptors()
    runs = [wanted(host, run, f"echo ran >{tmp_path}/ran", LOGS) for run in (1, 2)]
    async with host.runner.ahead(runs):
        made = {*children()} - {*before}
        pid = spawn(host, runs[1])
    (undone,) = made - {pid}
    await gone(undone)
    host.runner.reap()
    assert {*children()} == {*before, pid}
    assert not (tmp_path / "ran").exists()
    host.runner.stop("s", 2, "SIGKILL", 0)
    await host.next()
    host.keeper.drop("s", 2)
    assert open_descriptors() == descriptors
    assert not {"output.0", "output.1"} & {*os.listdir(host.folder)}


async def test_another_launch_than_the_one_foreseen_gets_a_process_of_its_own(host, gone):
    foreseen, meant = wanted(host, 1, "exit 3"), wanted(host, 1, "exit 4")
    async with host.runner.ahead([foreseen, wanted(host, 2)]):
        made = at_gates(2)
        assert spawn(host, meant) not in made
    for pid in made:
        await gone(pid)
    assert host.runner.open_gate("s", 1)
    assert (await host.next()).exit_code == 4


def machine_of(host: Host) -> Machine:
    """One whose runs are given nothing."""
    around = SimpleNamespace(begin=lambda *_run: None, equip=lambda _definition, launch: launch)
    return Machine(
        runner=host.runner,
        prober=cast(Any, None),
        surroundings=cast(Any, around),
        observe=host._observe,
        capabilities=host.capabilities,
        journal_id=host.mark().partition("/")[0],
        environments={},
        socket_path="",
    )


async def test_no_process_made_ahead_has_a_copy_of_a_listening_socket(host):
    """One that is undone would keep the address from others until it has ended."""
    sockets = (Socket("http", "127.0.0.1:0"),)
    runs = [(Definition("s", (SH, "-c", "exit 0"), sockets=sockets), 1)]
    runs += [(Definition(name, (SH, "-c", "exit 0")), 1) for name in ("a", "b")]
    async with machine_of(host).ahead(runs):
        assert [host.runner.is_ahead(each.name, 1) for each, _run in runs] == [False, True, True]


async def test_a_definition_that_is_another_by_then_gets_a_process_of_its_own(host):
    machine = machine_of(host)
    before, after = (
        Definition(name, (SH, "-c", f"exit {code}")) for name, code in (("s", 3), ("s", 4))
    )
    other = Definition("other", (SH, "-c", "exit 0"))
    async with machine.ahead([(before, 1), (other, 1)]):
        made = at_gates(2)
        assert len(made) == 2
        spawned = [await machine.spawn(each, 1, "digest") for each in (after, other)]
    pids = [each.pid for each in spawned if isinstance(each, SpawnSucceeded)]
    assert [pid in made for pid in pids] == [False, True]
    assert machine.open_gate("s", 1)
    assert (await host.next()).exit_code == 4


async def test_what_cannot_be_made_ahead_is_told_when_it_is_asked_for(host):
    too_long = wanted(host, 1, "x" * 200_000)
    fine = wanted(host, 2, "exit 7")
    async with host.runner.ahead([too_long, fine]):
        made = {*children()}
        with pytest.raises(LaunchError, match="no process could be made: Argument list too long"):
            spawn(host, too_long)
        assert spawn(host, fine) in made
    assert host.runner.open_gate("s", 2)
    assert (await host.next()).exit_code == 7


async def test_where_the_descriptors_of_all_are_too_many_for_one_message_there_are_several(
    host, gone
):
    descriptors, before = open_descriptors(), children()
    given = os.open("/dev/null", os.O_RDONLY)
    counts = (100, SCM_MAX_FD, 100, 100, 50)  # with its gate the second has one too many, alone
    runs = [wanted(host, run, descriptors=(given,) * n) for run, n in enumerate(counts)]
    async with host.runner.ahead(runs):
        assert [host.runner.is_ahead(*each.key) for each in runs] == [True, False, True, True, True]
        made = {*children()} - {*before}
        pid = spawn(host, runs[3])
        assert pid in made
        with pytest.raises(LaunchError):
            spawn(host, runs[1])
    for each in made - {pid}:
        await gone(each)
    assert host.runner.open_gate("s", 3)
    assert (await host.next()).exit_code == 0
    os.close(given)
    host.keeper.drop("s", 3)
    assert open_descriptors() == descriptors


async def test_each_has_its_own_descriptors_and_output(host):
    ends = [os.pipe() for _ in range(2)]
    runs = [
        wanted(host, run, f"echo {run} >&3; echo out {run}", LOGS, descriptors=(write,))
        for run, (_read, write) in enumerate(ends)
    ]
    async with host.runner.ahead(runs):
        for each in runs:
            spawn(host, each)
    for run, (read, write) in enumerate(ends):
        os.close(write)
        assert host.keeper.targets["s", run] == LogTarget.of(LOGS, "s")
        assert host.runner.open_gate("s", run)
        assert await host.line(run=run) == f"out {run}"
        assert os.read(read, 100) == f"{run}\n".encode()
        os.close(read)
        assert (await host.next()).exit_code == 0


async def test_one_that_dies_before_it_is_asked_for_is_told_of_after_it_was(host):
    runs = [wanted(host, 1), wanted(host, 2)]
    async with host.runner.ahead(runs):
        for pid in at_gates(2):
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        host.runner._signals.told()
        for each in runs:
            spawn(host, each)
    seen = [await host.next() for _ in runs]
    assert all(isinstance(each, ProcessExited) and each.signal == signal.SIGKILL for each in seen)


async def test_the_pipes_that_a_killed_daemon_has_left_are_removed(make_host, tmp_path):
    folder = tmp_path / "var"
    folder.mkdir()
    for number in (0, 7, 63):
        os.mkfifo(folder / f"output.{number}")
    for name in ("output.1", "output.txt"):
        (folder / name).write_text("not ours")
    make_host()
    assert sorted(path.name for path in folder.glob("output*")) == ["output.1", "output.txt"]
