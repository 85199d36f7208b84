"""Looks how much memory watched runs hold, and tells which of them hold too much.

It samples: between two looks a run may hold what it likes; a cgroup's limit is for those who need a wall.

* A run is told of once, when it is beyond its most at two looks in a row: a process that has forked and not yet
  executed counts its parent's memory as its own, and such a short spike is no leak.
* Looks at one run are at least `every_s` apart. Those at different runs are spread over that time, so that many
  services begun at once are not all looked at at once. There is one timer for all, and none while nobody is watched.
* What cannot be measured is not beyond anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

LOOK_EVERY_S = 5.0

Measure = Callable[[str, int], int | None]
"""Takes service and run; the bytes that its processes hold together, None when nobody can say."""

Observe = Callable[[str, int, int], None]
"""Takes service, run, and the bytes that are too many."""


class MemoryWatch:
    """The runs that have a most, the one longest not looked at first."""

    def __init__(
        self, measure: Measure, observe: Observe, *, every_s: float = LOOK_EVERY_S
    ) -> None:
        self._measure = measure
        self._observe = observe
        self._every_s = every_s
        self._watched: dict[str, _Watched] = {}
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, service: str, run: int, memory_max: int) -> None:
        """Begin to look at a run, `memory_max` bytes being its most; an earlier run is forgotten."""
        self._watched.pop(service, None)
        self._watched[service] = _Watched(service, run, memory_max, self._now_s() + self._every_s)
        if self._timer is None:
            self._look_next(0.0)

    def forget(self, service: str, run: int) -> None:
        """Look no more at this run, if it is watched: nothing more is told of it."""
        watched = self._watched.get(service)
        if watched is not None and watched.run == run:
            self._drop(service)

    def close(self) -> None:
        """Look at nothing any more."""
        for service in list(self._watched):
            self._drop(service)

    def _drop(self, service: str) -> None:
        del self._watched[service]
        if not self._watched and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def _look_next(self, pause_s: float) -> None:
        """Sets the timer for the one whose turn is next, `pause_s` from now at the earliest."""
        due_s = max(next(iter(self._watched.values())).due_s, self._now_s() + pause_s)
        self._timer = asyncio.get_running_loop().call_at(due_s, self._look)

    def _look(self) -> None:
        watched = next(iter(self._watched.values()))
        if self._timer is not None and self._timer.when() < watched.due_s:
            self._look_next(0.0)  # the one that the timer was set for has been forgotten
            return
        watched.due_s = self._now_s() + self._every_s
        self._watched[watched.service] = self._watched.pop(watched.service)
        self._look_next(self._every_s / len(self._watched))  # first: a bug below ends no watch
        self._judge(watched)

    def _judge(self, watched: _Watched) -> None:
        held = self._measure(watched.service, watched.run) or 0
        is_beyond = held > watched.memory_max
        if is_beyond and watched.was_beyond:
            self._drop(watched.service)
            self._observe(watched.service, watched.run, held)
        watched.was_beyond = is_beyond


class _Watched(msgspec.Struct, eq=False):
    """A run, when to look at it next (the loop's time), and what the last look gave."""

    service: str
    run: int
    memory_max: int
    due_s: float
    was_beyond: bool = False
