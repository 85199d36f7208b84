"""The thread that spawns, and does nothing else, so that what we spawn is not listed among the orphans left to us.

The kernel lists children by the thread that made them, and leaves orphans to a process's first thread (Linux:
find_new_reaper, kernel/exit.c). That one's list, in which each end looks for what a run has left behind, has orphans
alone then: with a thousand services it took 0.7 ms, with more the more. The hand-over takes 0.02 to 0.06 ms.

Who asked to die with his parent means the thread that made him (prctl(2), PR_SET_PDEATHSIG). So it is the thread that
becomes the next program at an upgrade. It is that one's first thread then, and as such spawns, and upgrades, itself.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Spawning:
    """Who spawns: a thread `apart`, until `close`, or whoever calls, who is the first thread."""

    def __init__(self, *, apart: bool) -> None:
        self._work: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self._outcomes: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        if apart:
            self._thread = threading.Thread(target=self._run, name="spawning", daemon=True)
            self._thread.start()

    def do(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `work` returns or raises, done by the thread while the caller waits."""
        if self._thread is None:
            return work(*args, **kwargs)
        self._work.put(lambda: work(*args, **kwargs))
        result, error = self._outcomes.get()
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

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
        while (work := self._work.get()) is not None:
            try:
                self._outcomes.put((work(), None))
            except BaseException as error:
                self._outcomes.put((None, error))


def _execv(program: str, arguments: list[str], mask: set[signal.Signals | int]) -> None:
    before = signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        os.execv(program, arguments)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
