"""When events are removed, and that the writer hardly notices."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from registry import retention
from registry.config import JournalSettings
from registry.core import events as ev
from registry.core.definition import Definition
from registry.core.lifecycle import Reason, State
from registry.journal import Journal, JournalError
from registry.journal.compaction import Compaction
from registry.journal.opening import open_for_reading
from registry.journal.read import verify
from registry.registry import Unavailable
from registry.retention import Retention

DAY_NS = 86_400 * 10**9
BODY = "x" * 400


class Writer:
    """What retention needs of the registry, over a real journal."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.degraded_since_ns: int | None = None
        self.committed = SimpleNamespace(seq=0)
        self.noted: list[ev.Event] = []
        self._adding = asyncio.Lock()

    async def note(self, event: ev.Event) -> None:
        if self.degraded_since_ns is not None:
            raise Unavailable("the disk is full")
        self.noted.append(event)
        await self.add([event])

    async def add(self, events: list[ev.Event], at_ns: int | None = None) -> None:
        """Events, each a decision."""
        async with self._adding:
            await self._add(events, at_ns)

    async def _add(self, events: list[ev.Event], at_ns: int | None) -> None:
        seq, at_ns = self.journal.seq, at_ns or time.time_ns()
        records = []
        for event in events:
            seq += 1
            name = "web" if not isinstance(event, ev.JournalCompacted) else None
            records.append(ev.Record(seq, at_ns, seq, seq, name, None, None, None, event))
        await self.journal.append(records)
        self.committed.seq = seq


def probes(count: int) -> list[ev.Event]:
    return [ev.ProbeChanged(check="a", ok=bool(n % 2), error=BODY) for n in range(count)]


@pytest.fixture
async def writer(tmp_path: Path) -> AsyncIterator[Writer]:
    """A journal with one service, declared a year ago."""
    journal = await Journal.open(tmp_path / "registry.db", durability="normal")
    found = Writer(journal)
    moved: dict[str, Any] = {
        "source": State.STOPPED,
        "dest": State.STOPPED,
        "reason": Reason.DEFINED,
    }
    defined = ev.Defined(definition=Definition("web", ("./web",)), digest="d", **moved)
    await found.add([defined], time.time_ns() - 365 * DAY_NS)
    yield found
    await journal.close()


def settings(keep_s: float | None = None, max_size: int | None = None) -> JournalSettings:
    return JournalSettings("", keep_s=keep_s, max_size=max_size)


@contextlib.asynccontextmanager
async def running(writer: Writer, *given: Any, **named: Any) -> AsyncIterator[Retention]:
    found = Retention(writer.journal, writer, settings(*given, **named))  # type: ignore[arg-type]
    task = asyncio.create_task(found.run())
    yield found
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def until(is_so: Any) -> None:
    async with asyncio.timeout(28):
        while not is_so():  # noqa: ASYNC110  it is about a file
            await asyncio.sleep(0.005)


def rows(journal: Journal) -> int:
    with contextlib.closing(open_for_reading(journal.path)) as connection:
        assert verify(connection).trouble is None
        (count,) = connection.execute("SELECT count(*) FROM events").fetchone()
        return int(count)


async def count(journal: Journal) -> int:
    """How many rows there are by now."""
    ((found,),) = await journal.ask("SELECT count(*) FROM events")
    return int(found)


async def test_what_is_older_than_it_is_to_stay_is_removed_at_the_start(writer):
    await writer.add(probes(1500), time.time_ns() - 91 * DAY_NS)
    await writer.add(probes(200))
    async with running(writer, keep_s=90 * 86400.0):
        await until(lambda: writer.journal.first == 1502)
        await until(lambda: rows(writer.journal) <= 204)


async def test_what_is_little_stays_where_nobody_asked_and_nothing_is_written(writer, monkeypatch):
    monkeypatch.setattr(retention, "LOOK_EVERY_S", 0.01)
    await writer.add(probes(900), time.time_ns() - 91 * DAY_NS)
    async with running(writer, keep_s=90 * 86400.0) as found:
        await asyncio.sleep(0.1)  # ten looks
        assert (writer.noted, writer.journal.first) == ([], 1)
        async with found.busy:
            assert (
                await found.compact(await found.older_than(90 * 86400.0)) == 899
            )  # that of its check is kept
            assert await found.compact(await found.older_than(90 * 86400.0)) == 0
    assert writer.journal.first == 902


async def test_at_rest_the_journal_does_not_grow_however_often_is_looked(writer, monkeypatch):
    monkeypatch.setattr(retention, "LOOK_EVERY_S", 0.001)
    await writer.add(probes(1500), time.time_ns() - 91 * DAY_NS)
    async with running(writer, keep_s=90 * 86400.0):
        await until(lambda: writer.journal.first == 1502)
        head = writer.journal.seq
        await asyncio.sleep(0.1)
        assert writer.journal.seq == head == 1502


async def test_the_file_stays_about_as_large_as_it_may_be(writer):
    most, compaction = 2_000_000, Compaction(writer.journal)
    sizes = []
    async with running(writer, max_size=most) as found:
        for _ in range(30):
            await writer.add(probes(500))
            found.grew()
            await until(lambda: not found._has_grown.is_set() and not found.busy.locked())
            sizes.append((await compaction.size()).file)
    assert len(writer.noted) >= 3
    assert max(sizes) < 1.6 * most  # it is looked at every thousand events
    assert max(sizes[-15:]) <= 1.05 * max(sizes[:-15]), "it grows no more"


async def test_while_the_journal_cannot_be_written_nothing_is_removed(writer):
    await writer.add(probes(1500), time.time_ns() - 91 * DAY_NS)
    writer.degraded_since_ns = 1
    async with running(writer, keep_s=90 * 86400.0) as found:
        await asyncio.sleep(0.05)
        assert writer.journal.anchor is None
        writer.degraded_since_ns = None
        found._has_grown.set()
        await until(lambda: writer.journal.anchor is not None)


async def test_what_fails_is_told_and_tried_again(writer, caplog, monkeypatch):
    await writer.add(probes(1500), time.time_ns() - 91 * DAY_NS)
    change = writer.journal.change

    async def full(*_given: Any) -> int:
        raise JournalError("cannot write to the journal: disk is full")

    monkeypatch.setattr(writer.journal, "change", full)
    caplog.set_level(logging.WARNING, "registry")
    async with running(writer, keep_s=90 * 86400.0) as found:
        await until(lambda: "The oldest events stay" in caplog.text)
        assert writer.journal.anchor is None
        monkeypatch.setattr(writer.journal, "change", change)
        found._has_grown.set()
        await until(lambda: writer.journal.first == 1502)


async def test_appends_go_on_while_much_is_removed(writer):
    """Between two batches of removals there is always room for what is decided."""
    await writer.add(probes(5_000), time.time_ns() - 91 * DAY_NS)
    async with running(writer, keep_s=90 * 86400.0):
        await until(lambda: writer.journal.anchor is not None)
        before, appended = await count(writer.journal), 0
        while await count(writer.journal) > 1000 + appended and appended < 10_000:
            await writer.add(probes(1))
            appended += 1
    assert before > 3_000
    assert appended > 5
