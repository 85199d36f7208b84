"""SIGCHLD, told to the loop: by a signalfd, and by a handler where a thread takes the signal all the same."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from registry.host import child_signals
from registry.host.child_signals import ChildSignals

pytestmark = pytest.mark.platform("linux")


class Ends:
    """What is told of ends."""

    def __init__(self, *, by_signalfd: bool) -> None:
        self.told = asyncio.Event()
        self.signals = ChildSignals(lambda _pid: False, self.told.set, by_signalfd=by_signalfd)
        self.signals.listen()

    async def of_a_child(self) -> None:
        """Have a child end, and wait until that was told."""
        self.told.clear()
        pid = os.posix_spawn("/bin/true", ["true"], {})
        await self.told.wait()
        os.waitpid(pid, 0)


@pytest.fixture
def mask() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    assert signal.pthread_sigmask(signal.SIG_SETMASK, before) == before, "it is as it was"


@pytest.mark.usefixtures("mask")
@pytest.mark.parametrize("by_signalfd", [True, False])
async def test_each_end_is_told(by_signalfd):
    ends = Ends(by_signalfd=by_signalfd)
    for _ in range(3):
        await ends.of_a_child()
    ends.signals.close()


@pytest.mark.parametrize("by_signalfd", [True, False])
async def test_an_end_after_the_close_is_told_to_nobody_and_finds_a_handler(by_signalfd):
    ends = Ends(by_signalfd=by_signalfd)
    ends.signals.close()
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(pid, 0)
    for _ in range(3):  # turns of the loop, of which one takes what is there
        await asyncio.sleep(0)
    assert not ends.told.is_set()
    assert callable(signal.getsignal(signal.SIGCHLD))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


async def test_an_end_while_the_loop_is_closed_complains_to_nobody():
    """The loop has handlers of other signals then, and has closed what it is woken by before it forgets them."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, lambda: None)
    ends = Ends(by_signalfd=True)
    ends.signals.close()
    assert signal.set_wakeup_fd(-1) == -1, "nothing is written where nobody reads"
    loop.remove_signal_handler(signal.SIGUSR1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def test_where_every_thread_has_blocked_it_no_handler_is_called():
    script = """
import asyncio, os, signal
from registry.host.child_signals import ChildSignals

async def main():
    told = asyncio.Event()
    named, handled = [], []

    def take(pid):
        named.append(pid)
        return False

    signals = ChildSignals(take, told.set, by_signalfd=True)
    signals.listen()
    signal.signal(signal.SIGCHLD, lambda *_: handled.append(True))
    pid = os.posix_spawn("/bin/true", ["true"], {})
    await asyncio.wait_for(told.wait(), 30)
    os.waitpid(pid, 0)
    print(named == [pid], handled)

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "True []\n"


@pytest.mark.usefixtures("mask")
async def test_a_thread_that_takes_the_signal_does_no_harm():
    ends = Ends(by_signalfd=True)
    is_over = threading.Event()

    def take() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        is_over.wait()

    taking = threading.Thread(target=take)
    taking.start()
    try:
        for _ in range(20):
            await ends.of_a_child()
    finally:
        is_over.set()
        taking.join()
        ends.signals.close()


async def test_after_one_who_was_named_others_are_looked_for_without_a_further_signal():
    taken: list[int] = []
    reaped = asyncio.Event()

    def take(pid: int) -> bool:
        taken.append(pid)
        return True

    signals = ChildSignals(take, reaped.set, by_signalfd=True)
    signals.told(7)
    assert (taken, reaped.is_set()) == ([7], False)
    await asyncio.wait_for(reaped.wait(), 30)


@pytest.mark.usefixtures("mask")
def test_threads_made_after_it_is_blocked_leave_it_alone():
    child_signals.block()
    seen: list[set[int]] = []
    made = threading.Thread(
        target=lambda: seen.append(set(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
    )
    made.start()
    made.join()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    assert signal.SIGCHLD in seen[0]
