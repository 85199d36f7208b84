"""The thread that spawns: its children are not listed among the orphans left to us, nor given our descriptors."""

from __future__ import annotations

import asyncio
import os
import resource
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from registry.host import proc
from registry.host.spawning import Spawning
from registry.passed import SCM_MAX_FD

pytestmark = pytest.mark.platform("linux")
SH = "/bin/sh"


@pytest.fixture
def spawning() -> Iterator[Spawning]:
    made = Spawning(apart=True)
    yield made
    made.close()


def running(script: str) -> Callable[..., int]:
    """What spawns a shell with a script, whose output is the descriptor that is given, if any."""

    def work(*fds: int) -> int:
        actions = [(os.POSIX_SPAWN_DUP2, fd, 1) for fd in fds]
        return os.posix_spawn(SH, [SH, "-c", script], {}, file_actions=actions)

    return work


def nothing_here(*_fds: int) -> int:
    return os.posix_spawn("/nothing/here", ["x"], {})


def become_nothing(spawning: Spawning) -> None:
    spawning.execv("/nothing/here", ["x"], (), lambda: None)


@pytest.mark.usefixtures("_subreaper")
def test_orphans_are_listed_and_what_left_them_is_not(spawning):
    read, write = os.pipe()
    parent = spawning.do(running("sleep 1000 >/dev/null & echo $!"), [write])
    os.close(write)
    with os.fdopen(read) as told:
        orphan = int(told.read())
    assert os.waitid(os.P_PID, parent, os.WEXITED | os.WNOWAIT)
    assert parent not in proc.own_children()
    assert os.waitpid(parent, 0) == (parent, 0)
    assert orphan in proc.own_children()
    os.kill(orphan, 9)
    assert os.waitpid(orphan, 0) == (orphan, 9)


def files_of_its_own() -> list[str]:
    return sorted(os.listdir(f"/proc/self/task/{threading.get_native_id()}/fd"))


def test_it_has_no_descriptor_but_those_that_it_is_given(spawning, tmp_path):
    """A spawn copies the table of whoever spawns: with two a service that took more than all else."""
    held = [os.open(tmp_path, os.O_RDONLY) for _ in range(200)]
    try:
        given = spawning.do(lambda *fds: [os.fstat(fd).st_ino for fd in fds], held[:2])
        assert given == [tmp_path.stat().st_ino] * 2
        found = spawning.do(files_of_its_own)
        assert len(found) == 5, "the standard ones, its socket, and the one that lists"
    finally:
        for each in held:
            os.close(each)


def test_what_may_be_inherited_of_ours_is_not(spawning, tmp_path):
    leaking = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(leaking, True)
    read, write = os.pipe()
    try:
        pid = spawning.do(running("ls -l /proc/self/fd"), [write])
    finally:
        os.close(leaking)
        os.close(write)
    with os.fdopen(read) as told:
        assert str(tmp_path) not in told.read()
    os.waitpid(pid, 0)


def test_where_it_can_have_no_table_of_its_own_it_shares_ours(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "registry.host.spawning._CLOSE_RANGE", -1
    )  # no such call: an older kernel, or a filter
    spawning = Spawning(apart=True)
    before = len(os.listdir("/proc/self/fd"))
    folder = os.open(tmp_path, os.O_RDONLY)
    assert spawning.do(lambda fd: os.fstat(fd).st_ino, [folder]) == tmp_path.stat().st_ino
    assert spawning.do(os.fstat, [folder]).st_ino == tmp_path.stat().st_ino
    os.close(folder)
    assert len(os.listdir("/proc/self/fd")) == before, "copies are closed"
    spawning.close()


def test_what_cannot_be_sent_or_taken_is_refused_and_the_next_is_not(spawning):
    with pytest.raises(OSError, match="Bad file descriptor"):
        spawning.do(len, [10**6])
    with pytest.raises(OSError, match=f"more than {SCM_MAX_FD} descriptors"):
        spawning.do(len, [0] * (SCM_MAX_FD + 1))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (20, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            spawning.do(lambda *fds: len(fds), [0] * 50)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert spawning.do(partial(int, "7")) == 7


@pytest.mark.parametrize("apart", [True, False])
def test_what_it_cannot_do_is_raised_where_it_was_asked_for(apart):
    spawning = Spawning(apart=apart)
    with pytest.raises(FileNotFoundError):
        spawning.do(nothing_here)
    with pytest.raises(FileNotFoundError):
        become_nothing(spawning)
    assert spawning.do(partial(int, "7")) == 7
    spawning.close()
    assert spawning.do(partial(int, "7")) == 7  # nobody waits for who is not there


def test_what_it_leaves_behind_at_its_end_is_still_ours(spawning):
    pid = spawning.do(running("exec sleep 1000"))
    spawning.close()
    os.kill(pid, 9)
    assert os.waitpid(pid, 0) == (pid, 9)


async def test_while_others_wait_the_loop_goes_on(spawning):
    spawning.others_wait = lambda: True
    goes_on = threading.Event()
    asyncio.get_running_loop().call_soon(goes_on.set)
    assert await spawning.do_meanwhile(lambda: goes_on.wait(10.0))
    with pytest.raises(FileNotFoundError):
        await spawning.do_meanwhile(nothing_here)


async def test_who_waits_gets_what_is_his_while_another_goes_on(spawning):
    """A command of a check, beside the start of a service."""
    spawning.others_wait = lambda: True
    may_end = threading.Event()

    def first(*fds: int) -> Sequence[int]:
        assert may_end.wait(10.0)
        return [1, *fds]

    going_on = asyncio.create_task(spawning.do_meanwhile(first))
    await asyncio.sleep(0)  # it is under way
    may_end.set()
    assert spawning.do(partial(int, "2")) == 2
    assert await going_on == [1]


async def test_what_came_of_one_that_nobody_waits_for_is_not_taken_for_the_next(spawning):
    spawning.others_wait = lambda: True
    may_end = threading.Event()
    going_on = asyncio.create_task(spawning.do_meanwhile(lambda: may_end.wait(10.0)))
    await asyncio.sleep(0)  # it is under way
    going_on.cancel()
    await asyncio.gather(going_on, return_exceptions=True)
    may_end.set()
    for number in range(3):
        assert await asyncio.wait_for(spawning.do_meanwhile(partial(int, number)), 10) == number


async def test_where_nobody_waits_it_is_done_at_once(spawning):
    begun = threading.Event()
    asyncio.get_running_loop().call_soon(begun.set)
    assert await spawning.do_meanwhile(begun.is_set) is False


def test_no_signal_wakes_it(spawning):
    with pytest.raises(FileNotFoundError):
        become_nothing(spawning)  # which has another mask for a moment
    thread = spawning.do(threading.get_native_id)
    lines = Path(f"/proc/self/task/{thread}/status").read_text().splitlines()
    (blocked,) = (line.split()[1] for line in lines if line.startswith("SigBlk:"))
    assert int(blocked, 16) >> 16 & 1  # SIGCHLD
