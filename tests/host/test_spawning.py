"""The thread that spawns: its children are ours, but not listed among the orphans that are left to us."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.host import proc
from registry.host.spawning import Spawning

pytestmark = pytest.mark.platform("linux")
SH = "/bin/sh"


@pytest.fixture
def spawning() -> Iterator[Spawning]:
    made = Spawning(apart=True)
    yield made
    made.close()


def spawn(spawning: Spawning, script: str, output: int = 1) -> int:
    actions = [(os.POSIX_SPAWN_DUP2, output, 1)]
    return spawning.do(os.posix_spawn, SH, [SH, "-c", script], {}, file_actions=actions)


@pytest.mark.usefixtures("_subreaper")
def test_orphans_are_listed_and_what_left_them_is_not(spawning):
    read, write = os.pipe()
    parent = spawn(spawning, "sleep 1000 >/dev/null & echo $!", write)
    os.close(write)
    with os.fdopen(read) as told:
        orphan = int(told.read())
    assert os.waitid(os.P_PID, parent, os.WEXITED | os.WNOWAIT)
    assert parent not in proc.own_children()
    assert os.waitpid(parent, 0) == (parent, 0)
    assert orphan in proc.own_children()
    os.kill(orphan, 9)
    assert os.waitpid(orphan, 0) == (orphan, 9)


@pytest.mark.parametrize("apart", [True, False])
def test_what_it_cannot_do_is_raised_where_it_was_asked_for(apart):
    spawning = Spawning(apart=apart)
    with pytest.raises(FileNotFoundError):
        spawning.do(os.posix_spawn, "/nothing/here", ["x"], {})
    with pytest.raises(FileNotFoundError):
        spawning.execv("/nothing/here", ["x"])
    assert spawning.do(int, "7") == 7
    spawning.close()
    assert spawning.do(int, "7") == 7  # nobody waits for who is not there


def test_what_it_leaves_behind_at_its_end_is_still_ours(spawning):
    pid = spawn(spawning, "exec sleep 1000")
    spawning.close()
    os.kill(pid, 9)
    assert os.waitpid(pid, 0) == (pid, 9)


async def test_while_others_wait_the_loop_goes_on(spawning):
    spawning.others_wait = lambda: True
    goes_on = threading.Event()
    asyncio.get_running_loop().call_soon(goes_on.set)
    assert await spawning.do_meanwhile(goes_on.wait, 10.0)
    with pytest.raises(ZeroDivisionError):
        await spawning.do_meanwhile(divmod, 1, 0)


async def test_where_nobody_waits_it_is_done_at_once(spawning):
    begun = threading.Event()
    asyncio.get_running_loop().call_soon(begun.set)
    assert await spawning.do_meanwhile(begun.is_set) is False


def test_no_signal_wakes_it(spawning):
    with pytest.raises(FileNotFoundError):
        spawning.execv("/nothing/here", ["x"])  # which has another mask for a moment
    thread = spawning.do(threading.get_native_id)
    lines = Path(f"/proc/self/task/{thread}/status").read_text().splitlines()
    (blocked,) = (line.split()[1] for line in lines if line.startswith("SigBlk:"))
    assert int(blocked, 16) >> 16 & 1  # SIGCHLD
