"""An event loop whose time is virtual: it jumps to whatever is due next, and never sleeps.

Law 1: time passes only where nothing is ready. Law 2: what is due at the same instant happens in the order in
which it was asked for. So the same callbacks give the same course of things, on every Python.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context
from heapq import heappop, heappush
from typing import Any

NS = 1_000_000_000
STEPS_AT_ONCE_MAX = 20_000
"""Steps without any time passing; beyond, whatever goes on will not end."""


class Deadlock(Exception):
    """Nothing is ready and nothing is due."""


class Livelock(Exception):
    """Something is always ready, and time stands still."""


class VirtualLoop(asyncio.BaseEventLoop):
    """`after_step` is called after each round of callbacks, `failed` with each exception that nobody caught."""

    _ready: deque[asyncio.Handle]

    def __init__(self) -> None:
        super().__init__()
        self.now_ns = 0
        self.steps = 0
        self.after_step: Callable[[], None] = lambda: None
        self.failed: Callable[[BaseException | None, str], None] = lambda _error, _what: None
        self._agenda: list[tuple[int, int, asyncio.TimerHandle]] = []
        self._asked = 0
        self._standing = 0

    def time(self) -> float:
        """Seconds since the beginning."""
        return self.now_ns / NS

    def at(self, due_ns: int, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        """Call `callback` once it is `due_ns`, or now."""
        handle = asyncio.TimerHandle(due_ns / NS, callback, args, self, None)
        self._asked += 1
        heappush(self._agenda, (max(due_ns, self.now_ns), self._asked, handle))
        return handle

    def after(
        self, delay_s: float, callback: Callable[..., object], *args: Any
    ) -> asyncio.TimerHandle:
        """Call `callback` in `delay_s` seconds."""
        return self.at(self.now_ns + int(delay_s * NS), callback, *args)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As asyncio's."""
        return self.at(round(when * NS), callback, *args)

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As asyncio's."""
        return self.after(delay, callback, *args)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """What nobody caught is told to whoever watches this world."""
        self.failed(context.get("exception"), context["message"])

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """A handle that was called off is passed over when its time comes."""

    def _run_once(self) -> None:
        if not self._ready:
            self._pass_time()
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            if not handle.cancelled():
                handle._run()
        self.steps += 1
        self._standing += 1
        if self._standing > STEPS_AT_ONCE_MAX:
            raise Livelock
        self.after_step()

    def _pass_time(self) -> None:
        while self._agenda:
            due_ns, _asked, handle = heappop(self._agenda)
            if handle.cancelled():
                continue
            if due_ns > self.now_ns:
                self.now_ns, self._standing = due_ns, 0
            self._ready.append(handle)
            return
        raise Deadlock
