"""The thread that spawns, and does nothing else, so that what we spawn is not listed among the orphans left to us.

The kernel lists children by the thread that made them, and leaves orphans to a process's first thread (Linux:
find_new_reaper, kernel/exit.c). That one's list, in which each end looks for what a run has left behind, has orphans
alone then: with a thousand services it took 0.7 ms, with more the more. The hand-over takes 0.02 to 0.06 ms.

Where others wait for their turn they have it meanwhile: what is spawned takes a quarter of a millisecond.

Who asked to die with his parent means the thread that made him (prctl(2), PR_SET_PDEATHSIG). So it is the thread that
becomes the next program at an upgrade. It is that one's first thread then, and as such spawns, and upgrades, itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
Outcome = tuple[Any, BaseException | None]
"""What was returned, or else raised."""


class Spawning:
    """Who spawns: a thread `apart`, until `close`, or whoever calls, who is the first thread.

    `others_wait` says whether anybody could use the time.
    """

    def __init__(self, *, apart: bool) -> None:
        self.others_wait: Callable[[], bool] = lambda: False
        self._work: SimpleQueue[tuple[Callable[[], Any], Callable[[Outcome], object]] | None]
        self._work = SimpleQueue()
        self._outcomes: SimpleQueue[Outcome] = SimpleQueue()
        self._thread: threading.Thread | None = None
        if apart:
            self._thread = threading.Thread(target=self._run, name="spawning", daemon=True)
            self._thread.start()

    def do(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `work` returns or raises, done by the thread while the caller waits."""
        if self._thread is None:
            return work(*args, **kwargs)
        self._work.put((partial(work, *args, **kwargs), self._outcomes.put))
        return _result(self._outcomes.get())  # type: ignore[no-any-return]

    async def do_meanwhile(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same while the loop goes on; where nobody needs it, the caller waits, which takes less."""
        if self._thread is None or not self.others_wait():
            return self.do(work, *args, **kwargs)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Outcome] = loop.create_future()

        def tell(outcome: Outcome) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(_settle, done, outcome)

        self._work.put((partial(work, *args, **kwargs), tell))
        return _result(await done)  # type: ignore[no-any-return]

    def execv(self, program: str, arguments: list[str]) -> None:
        """Become another program, with the caller's signal mask; raises OSError where that cannot be."""
        self.do(_execv, program, arguments, signal.pthread_sigmask(signal.SIG_BLOCK, ()))

    def close(self) -> None:
        """End the thread; its children are the first thread's then, and whoever calls spawns."""
        if self._thread is not None:
            self._work.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        # the kernel tells the parent's thread first: a SIGCHLD is for the loop, not to wake this one
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while (item := self._work.get()) is not None:
            work, tell = item
            try:
                outcome: Outcome = work(), None
            except BaseException as error:
                outcome = None, error
            tell(outcome)


def _settle(done: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not done.done():  # nobody waits any more
        done.set_result(outcome)


def _result(outcome: Outcome) -> Any:
    result, error = outcome
    if error is not None:
        raise error
    return result


def _execv(program: str, arguments: list[str], mask: set[signal.Signals | int]) -> None:
    before = signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        os.execv(program, arguments)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
