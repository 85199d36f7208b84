"""Kills while services write and files are rotated and compressed: no line is lost, none is doubled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.logs.read import Selection, select, tail_and_follow
from registry.logs.target import LogTarget

pytestmark = pytest.mark.platform("linux")

WRITER = """
import os, sys
for number in range(int(sys.argv[2])):
    os.write(1, b"%s %d\\n" % (sys.argv[1].encode(), number))
"""
DAEMON = """
import asyncio, os, sys
from pathlib import Path
from registry.keeper.client import Keeper
from registry.logs.target import LogTarget

async def main():
    folder = Path(sys.argv[1])
    told = lambda _: print(keeper.pid, flush=True)
    keeper = Keeper(folder / "keeper.sock", on_grew=told, on_output_ended=told, log=lambda _: None)
    await keeper.connect()
    reader = os.open(folder / "fifo0", os.O_RDONLY | os.O_NONBLOCK)
    keeper.keep("web", 1, reader, None, LogTarget(str(folder / "log" / "web.log"), 64000, 1000))
    keeper.watch("web")
    await asyncio.sleep(60)

asyncio.run(main())
"""
LINES = 100_000
WRITERS = ("a", "b")


@pytest.fixture
def log(folder: Path) -> LogTarget:
    return LogTarget(str(folder / "log" / "web.log"), 64_000, 1000)


@pytest.fixture
def writers(make_output):
    """Numbered lines from two processes, on one output."""
    output = make_output()
    program = [sys.executable, "-I", "-S", "-c", WRITER]
    started = [
        subprocess.Popen([*program, name, str(LINES)], stdout=output.writer) for name in WRITERS
    ]
    output.end()
    yield output
    for process in started:
        process.kill()
        process.wait()


def check(log: LogTarget) -> None:
    """Every line is there once, over all files in order, and by the index all are of run 1."""
    lines, follower = tail_and_follow(Path(log.path), 10_000_000)
    follower.close()
    for name in WRITERS:
        assert [x for x in lines if x.startswith(f"{name} ")] == [
            f"{name} {i}" for i in range(LINES)
        ]
    assert len(lines) == LINES * len(WRITERS)
    chosen = select(Path(log.path), 10_000_000, Selection(run=1))
    assert [line.text for line in chosen] == lines


def compressed(log: LogTarget) -> list[Path]:
    return list(Path(log.path).parent.glob("*.gz"))


def wait_until(is_so: Callable[[], object]) -> None:
    """Wait for something that the keeper does by itself."""
    while not is_so():
        time.sleep(0.001)


async def grown(side) -> None:
    """The log has grown since this was asked."""
    while not side.grown.empty():
        side.grown.get_nowait()
    await side.grown.get()


async def test_kill_9_of_the_keeper_again_and_again(make_side, writers, log) -> None:
    side = make_side()
    await side.connect()
    side.watch("web")
    side.keep("web", 1, writers.reader, None, log)
    for _ in range(6):
        await grown(side)
        os.kill(side.pid, signal.SIGKILL)
        while "is gone" not in await side.said.get():
            pass
    assert (await side.ended.get())[:2] == ("web", 1)
    check(log)


async def test_kill_9_of_the_keeper_while_it_compresses(make_side, writers, log) -> None:
    side = make_side()
    await side.connect()
    side.watch("web")
    side.keep("web", 1, writers.reader, None, log)
    side.flush()
    for _ in range(4):
        wait_until(lambda: list(Path(log.path).parent.glob(f"*.{side.pid}.gz.tmp")))
        os.kill(side.pid, signal.SIGKILL)
        while "is gone" not in await side.said.get():
            pass
        await grown(side)
    assert (await side.ended.get())[:2] == ("web", 1)
    check(log)


def live_and_die(folder: Path, *, with_keeper: bool) -> None:
    """A daemon that finds or starts a keeper, hands it the output, and is killed when the log has grown."""
    daemon = subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert daemon.stdout is not None
    pids = [daemon.stdout.readline() for _ in range(2)]
    daemon.kill()
    daemon.wait()
    daemon.stdout.close()
    if with_keeper:
        os.kill(int(pids[-1]), signal.SIGKILL)


async def finish(side, writers, log: LogTarget) -> None:
    """A last daemon, which stays to the end."""
    for each in (await side.connect()).kept:
        each.close()
    side.keep("web", 1, writers.reader, None, log)
    assert (await side.ended.get())[:2] == ("web", 1)
    check(log)


async def test_kill_9_of_the_daemon_again_and_again(make_side, folder, writers, log) -> None:
    for _ in range(3):
        live_and_die(folder, with_keeper=False)
    await finish(make_side(), writers, log)


async def test_kill_9_of_daemon_and_keeper_one_after_the_other(
    make_side, folder, writers, log
) -> None:
    """What is in the FIFO stays there as long as somebody holds it: here the test, else the service."""
    for _ in range(3):
        live_and_die(folder, with_keeper=True)
    await finish(make_side(), writers, log)


async def test_in_the_end_all_but_the_newest_are_compressed(
    make_side, writers, log, is_dead
) -> None:
    side = make_side()
    await side.connect()
    side.keep("web", 1, writers.reader, None, log)
    await side.ended.get()
    rotated = len(
        [p for p in Path(log.path).parent.iterdir() if p.suffix not in (".index", ".tmp")]
    )
    wait_until(lambda: len(compressed(log)) == rotated - 2)
    check(log)
    before = len(compressed(log))
    assert before > 10
    pid = side.pid
    side.close()
    is_dead(pid)
    assert not list(Path(log.path).parent.glob("*.tmp"))
