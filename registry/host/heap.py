"""The C library's heap: what is free of it goes back to the system once things have calmed down.

glibc gives every thread a heap of its own, and gives back only what lies at the end of one: a small object that
stays there keeps all that a burst of large answers took. Other C libraries need no such help, and get none.
"""

from __future__ import annotations

import asyncio
import ctypes

CALM_S = 2.0
"""So long after a use that free memory is given back: at most so often, and never while nothing happens."""
_M_ARENA_MAX = -8  # malloc.h of glibc
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)


def share() -> None:
    """Let all threads use one heap: Python lets one of them run at a time anyway. Before the first of them begins."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Give back what is free now, wherever it lies."""
    if _TRIM is not None:
        _TRIM(0)


class Heap:
    """This process's. `was_used` is for whoever has let go of memory."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None

    def was_used(self) -> None:
        """Something was done: look in a little while for what is free since."""
        if self._timer is None and _TRIM is not None:
            self._timer = asyncio.get_running_loop().call_later(CALM_S, self._give_back)

    def close(self) -> None:
        """Leave it as it is."""
        if self._timer is not None:
            self._timer.cancel()

    def _give_back(self) -> None:
        self._timer = None
        give_back()
