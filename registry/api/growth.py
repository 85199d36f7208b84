"""Who waits for more of a service's log: told by the keeper, so nobody has to look."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from registry.logs.read import tail_and_follow


class Growth:
    """Wakes those who follow a log. `watch` and `unwatch` tell the keeper whose growth matters."""

    def __init__(self, watch: Callable[[str], None], unwatch: Callable[[str], None]) -> None:
        self._watch = watch
        self._unwatch = unwatch
        self._waiting: dict[str, set[asyncio.Event]] = {}

    def grew(self, service: str) -> None:
        """There is more of a service's log."""
        for event in self._waiting.get(service, ()):
            event.set()

    async def follow(self, service: str, path: Path, lines: int) -> AsyncIterator[list[str]]:
        """The last lines of a log, then whatever comes after them, in pages, without an end."""
        grown = asyncio.Event()
        self._enter(service, grown)
        try:
            page, follower = await asyncio.to_thread(tail_and_follow, path, lines)
            try:
                yield page
                while True:
                    grown.clear()
                    while page := await asyncio.to_thread(follower.read_new):
                        yield page
                    await grown.wait()
            finally:
                follower.close()
        finally:
            self._leave(service, grown)

    def _enter(self, service: str, grown: asyncio.Event) -> None:
        waiting = self._waiting.setdefault(service, set())
        waiting.add(grown)
        if len(waiting) == 1:
            self._watch(service)

    def _leave(self, service: str, grown: asyncio.Event) -> None:
        waiting = self._waiting[service]
        waiting.discard(grown)
        if not waiting:
            del self._waiting[service]
            self._unwatch(service)
