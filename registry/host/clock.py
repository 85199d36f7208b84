"""The clocks: UTC for people, CLOCK_BOOTTIME for every rule, and timers by it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from registry.core.events import Now

NS = 1_000_000_000
# macOS has no CLOCK_BOOTTIME; its monotonic clock stands still while the machine sleeps
_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def mono_ns() -> int:
    """Nanoseconds since the machine started, sleep included."""
    return time.clock_gettime_ns(_BOOTTIME)


class Clock:
    """The real clock of a running registry."""

    def now(self) -> Now:
        """Both clocks at once."""
        return Now(at_ns=time.time_ns(), mono_ns=mono_ns())

    def call_at(self, due_ns: int, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """Call `callback` once when CLOCK_BOOTTIME has reached `due_ns`, never before."""
        loop = asyncio.get_running_loop()
        # a timer of the loop may fire up to its own resolution early: a millisecond covers that
        delay_s = max(0.0, (due_ns - mono_ns()) / NS)
        return loop.call_later(delay_s + 0.001 if delay_s else 0.0, callback)
