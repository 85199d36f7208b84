"""How long events stay in the journal: its oldest are removed when they are older, or it is larger, than it is to be.

That is looked at when a life begins, once a day, and whenever the journal has grown by some. Where there is little to
remove nothing is, so a system at rest writes nothing. What is removed, and how, is the journal's affair.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress

from registry.config import JournalSettings
from registry.core.restarts import NS
from registry.journal import Journal, JournalError
from registry.journal.compaction import Compaction, Description
from registry.registry import NotCommitted, Registry, Unavailable

LOOK_EVERY_S = 86_400.0
LOOK_EVERY_EVENTS = 1000
EVENTS_MIN = 1000
"""So many are removed at once, at least, where nobody asked: each time costs an event."""
SHARE = 0.8
"""What is to be left of the largest size, so that it is not reached again at once."""
SHARE_OF_TIME, HURRY = 0.2, 0.5
"""The part of its time in which the journal's writer is kept busy with it, at most; and while it is too large."""

PAUSE_MAX_S = 0.25
"""The longest rest in between: on a busy machine most of that time was not the writer's."""

_log = logging.getLogger("registry")


class Retention:
    """What is removed of the journal of one life."""

    def __init__(self, journal: Journal, registry: Registry, settings: JournalSettings) -> None:
        self._journal = journal
        self._registry = registry
        self.keep_s, self.max_size = settings.keep_s, settings.max_size
        self._compaction = Compaction(journal)
        self._looked_at = 0
        self._has_grown = asyncio.Event()
        self.busy = asyncio.Lock()
        """Held while events are removed, or nobody may: they are being copied."""

    def grew(self) -> None:
        """Look again, if there are enough new events."""
        if self._registry.committed.seq - self._looked_at >= LOOK_EVERY_EVENTS:
            self._has_grown.set()

    async def run(self) -> None:
        """Look now and then, until cancelled."""
        while True:
            self._has_grown.clear()
            self._looked_at = self._registry.committed.seq
            try:
                await self._look()
            except (JournalError, Unavailable, NotCommitted) as error:
                _log.warning("The oldest events stay in the journal for now: %s", error)
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._has_grown.wait()

    async def _look(self) -> None:
        async with self.busy:
            if self._registry.degraded_since_ns is None:
                await self._remove()  # what the last life did not come to
                if await self._begin_after(await self._horizon(), EVENTS_MIN):
                    await self._remove()

    async def compact(self, horizon: int) -> int:
        """Let the journal begin after that event; how many go, which they do by and by. `busy` is to be held.

        Raises JournalError, Unavailable, NotCommitted.
        """
        await self._remove()
        removed = await self._begin_after(horizon, 1)
        self._has_grown.set()
        return removed

    async def describe(self) -> Description:
        """How the journal is. Raises JournalError."""
        return await self._compaction.describe()

    async def last_at(self, at_ns: int) -> int:
        """The last event that is not later than that (UTC). Raises Compacted, JournalError."""
        return await self._compaction.last_at(at_ns)

    async def older_than(self, keep_s: float) -> int:
        """The number of the last event that is older than that. Raises JournalError."""
        return await self._compaction.older_than(time.time_ns() - int(keep_s * NS))

    async def _horizon(self) -> int:
        """The last event that is not to stay."""
        found, most = 0, self.max_size
        if self.keep_s is not None:
            found = await self.older_than(self.keep_s)
        if most is not None and await self._is_too_large():
            found = max(found, await self._compaction.beyond(int(most * SHARE)))
        return found

    async def _begin_after(self, horizon: int, events_min: int) -> int:
        if horizon - self._journal.first + 1 < events_min:
            return 0
        anchor = await self._compaction.anchor_after(horizon)
        event = self._compaction.event(anchor)
        await self._registry.note(event)
        await self._compaction.put(anchor)
        return event.events

    async def _remove(self) -> None:
        """Remove what does not count any more, a little at a time."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while await self._compaction.remove_some():
            took = loop.time() - began
            share = HURRY if await self._is_too_large() else SHARE_OF_TIME
            await asyncio.sleep(min(took * (1 - share) / share, PAUSE_MAX_S))
            began = loop.time()

    async def _is_too_large(self) -> bool:
        return self.max_size is not None and (await self._compaction.size()).used > self.max_size
