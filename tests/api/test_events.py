"""Who follows the events of a registry whose journal cannot be written waits, and misses nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from registry.api import events
from registry.api.actions import ApiError, EventsParams
from registry.core import events as ev
from registry.questions.records import event_record


class Held:
    """A registry that holds 5,000 events, of which it remembers none, beside a journal that ends with event 10."""

    def __init__(self) -> None:
        self.committed = SimpleNamespace(seq=5010, services={})
        self.as_of = (0, 5010)
        self.seq = 10
        self.first = 11
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
        seq = max(since + 1, self.first)
        event = ev.RegistryStopped(kept=False)
        return [ev.Record(seq, 0, 0, seq, None, None, None, None, event)]

    def write(self) -> None:
        self.is_written, self.seq = True, self.seq + 10


async def asked(held: Any, **params: Any) -> AsyncGenerator[Any, None]:
    """What a follower of this registry is told, as it arrives there."""
    async for page in events.Events(held, held)._follow(EventsParams(follow=True, **params), None):
        yield msgspec.json.decode(msgspec.json.encode(page))


async def test_a_follower_does_not_ask_over_and_over_for_what_is_only_held(monkeypatch):
    monkeypatch.setattr(events, "RETRY_S", 0.05)
    held: Any = Held()
    pages = asked(held, since=10)
    assert await anext(pages) == []
    following = asyncio.ensure_future(anext(pages))
    await asyncio.wait([following], timeout=0.2)
    assert held.reads == 1
    held.write()
    assert [event["seq"] for event in await following] == [11]
    await pages.aclose()


async def test_what_is_removed_while_a_follower_is_on_its_way_there_is_told_not_skipped():
    held: Any = Held()
    pages = asked(held, since=10)
    assert await anext(pages) == []
    held.first = 15
    held.write()
    with pytest.raises(ApiError) as refused:
        await anext(pages)
    assert refused.value.code == "out_of_range"
    assert refused.value.data == {"first": 15, "last": 20}
    assert refused.value.message == (
        "since: event 11 is no longer in the journal, which begins with event 15;"
        " since 14 is all that there is"
    )
    await pages.aclose()


async def test_a_follower_of_some_events_only_is_told_how_far_all_were_looked_at(monkeypatch):
    monkeypatch.setattr(events, "SEEN_EVERY_S", 0.0)
    held: Any = Held()
    held.write()
    pages = asked(held, since=10, type=["exited"], seen=True)
    assert await anext(pages) == {"seen": 11, "events": []}
    assert await anext(pages) == {"seen": 12, "events": []}
    await pages.aclose()


class Written(Held):
    """A journal of 5,000 events, all of them written."""

    def __init__(self) -> None:
        super().__init__()
        self.seq = 5000

    async def read(self, *, since: int, **asked_for: Any) -> list[ev.Record]:
        limit, event = asked_for["limit"], ev.RegistryStopped(kept=False)
        seqs = range(since + 1, min(since + limit, self.seq) + 1)
        return [ev.Record(seq, 0, 0, seq, None, None, None, None, event) for seq in seqs]


async def test_many_who_follow_from_far_back_leave_others_their_turn_and_share_the_work(
    monkeypatch,
):
    written: Any = Written()
    told, made, most = events.Events(written, written), 0, 0
    record = event_record

    def counted(given: ev.Record) -> Any:
        nonlocal made
        made += 1
        return record(given)

    monkeypatch.setattr(events, "event_record", counted)

    async def follow() -> list[int]:
        seen: list[int] = []
        async for page in told._follow(EventsParams(follow=True), None):
            seen += [event["seq"] for event in msgspec.json.decode(msgspec.json.encode(page))]
            if len(seen) == written.seq:
                break
        return seen

    following = asyncio.gather(*(follow() for _follower in range(50)))
    while not following.done():
        before = made
        await asyncio.sleep(0)
        most = max(most, made - before)
    assert await following == [list(range(1, written.seq + 1))] * 50
    assert 0 < most <= events.FOLLOWED_PAGE
    assert made < 2 * written.seq
