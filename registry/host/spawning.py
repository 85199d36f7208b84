"""The thread that spawns, and does nothing else, so that what we spawn is not listed among the orphans left to us.

The kernel lists children by the thread that made them, and leaves orphans to a process's first thread (Linux:
find_new_reaper, kernel/exit.c). That one's list, in which each end looks for what a run has left behind, has orphans
alone then, and what an upgrade in place took over: with a thousand services it took 0.7 ms, with more the more. The
hand-over takes 0.02 to 0.06 ms. A service that asked to die with its parent (PR_SET_PDEATHSIG) dies with the thread.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Spawning:
    """The thread, until `close`: its children are our first thread's then, and still ours."""

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self._outcomes: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="spawning", daemon=True)
        self._thread.start()

    def do(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `work` returns or raises, done by the thread while the caller waits; after `close` by the caller."""
        if not self._thread.is_alive():
            return work(*args, **kwargs)
        self._work.put(lambda: work(*args, **kwargs))
        result, error = self._outcomes.get()
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the thread."""
        self._work.put(None)
        self._thread.join()

    def _run(self) -> None:
        # the kernel tells the parent's thread first: a SIGCHLD is for the loop, not to wake this one
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while (work := self._work.get()) is not None:
            try:
                self._outcomes.put((work(), None))
            except BaseException as error:
                self._outcomes.put((None, error))
