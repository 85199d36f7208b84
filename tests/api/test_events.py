"""Who follows the events of a registry whose journal cannot be written waits, and misses nothing."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from registry.api import handlers
from registry.api.actions import EventsParams
from registry.core import events as ev


class Held:
    """A registry that holds 5,000 events, of which it remembers none, beside a journal that ends with event 10."""

    def __init__(self) -> None:
        self.committed = SimpleNamespace(seq=5010, services={})
        self.reads = 0
        self.is_written = False

    async def next_commit(self) -> None:
        await asyncio.Event().wait()

    def recent_since(self, seq: int) -> list[ev.Record] | None:
        return None if seq < self.committed.seq else []

    async def read(self, *, since: int, **_: Any) -> list[ev.Record]:
        self.reads += 1
        if not self.is_written:
            return []
        started = ev.RegistryStopped(kept=False)
        return [ev.Record(since + 1, 0, 0, since + 1, None, None, None, None, started)]


async def test_a_follower_does_not_ask_over_and_over_for_what_is_only_held(monkeypatch):
    monkeypatch.setattr(handlers, "RETRY_S", 0.05)
    held: Any = Held()
    answers = handlers.Handlers.__new__(handlers.Handlers)
    answers._registry = answers._journal = held
    pages: Any = answers._follow(EventsParams(since=10, follow=True), None)
    assert await anext(pages) == []
    following = asyncio.ensure_future(anext(pages))
    await asyncio.wait([following], timeout=0.2)
    assert 1 < held.reads < 10
    held.is_written = True
    assert [event.seq for event in await following] == [11]
    await pages.aclose()
