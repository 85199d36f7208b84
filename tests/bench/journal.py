"""The journal: durable events a second, the fold, starts on long journals, commits beside queries."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from registry.core import events as ev
from registry.core.events import Record
from registry.core.lifecycle import Reason, State
from registry.core.projection import Projection
from registry.journal import Journal
from registry.journal.opening import open_for_reading
from registry.journal.read import pages
from registry.journal.schema import CREATE
from tests.bench import history
from tests.bench.client import LIST, Client
from tests.bench.figures import FLOOR, OURS
from tests.bench.life import Bench, noted
from tests.bench.supervisors import FAST, Registry, Service

NAME = "journal"
PRODUCERS = 100
PRODUCED = f"durable events a second, {PRODUCERS} producers waiting for each"
BATCHED = "durable events a second, in batches of 64"
BATCH = 64
FOLDED = "events folded a second"
DURABLE_BOUND, FOLD_BOUND = 50_000, 1_000_000
START_BOUND_S, BLOCKED_BOUND_MS = 1.0, 5.0
START_BOUND_EVENTS = 10_000_000
THEN, THEN_BOUND_S, MOMENTS = "all services as of one of {} events", 1.0, 20
START_S, END_S = 900.0, 120.0
FOLD_EVENTS_MAX = 200_000
ROUNDS = 7
COMMIT_EVERY_S = 0.002


def run(bench: Bench) -> None:
    """All of it. The floor is what SQLite alone does, with rows of the same size and neither hash nor event."""
    bench.told("journal: durable events")
    _durable(bench)
    bench.told("journal: commits beside queries")
    asyncio.run(_beside_queries(bench))
    for events in bench.scale.history[-2:]:
        bench.told(f"journal: start on {events:,} events")
        with noted(bench, f"journal: start on {events:,} events"):
            starts = started(bench, events)
            add = bench.results.add
            add(NAME, f"start on {events:,} events, the journal alone", OURS, "s", [starts.bare_s])
            again = [starts.orderly_s, starts.killed_s]
            add(NAME, f"start on {events:,} events", OURS, "s", again, "after an end, a kill -9")
    _judge_start(bench)


# --- durable events -------------------------------------------------------------------------------


def _durable(bench: Bench) -> None:
    events = bench.scale.events
    folder = bench.new_folder()
    one_by_one = asyncio.run(_produce(folder / "produced.db", events, 1))
    batched = asyncio.run(_produce(folder / "batched.db", events, BATCH))
    add = bench.results.add
    add(NAME, PRODUCED, OURS, "/s", [one_by_one], f"{events:,} events, each an append of its own")
    add(NAME, PRODUCED, FLOOR, "/s", [_bare(folder / "g.db", events, PRODUCERS)], "grouped by 100")
    add(NAME, BATCHED, OURS, "/s", [batched])
    add(NAME, BATCHED, FLOOR, "/s", [_bare(folder / "b.db", events, BATCH)])
    bench.results.bound(NAME, PRODUCED, one_by_one, DURABLE_BOUND, "/s", at_least=True)


async def _produce(path: Path, events: int, batch: int) -> float:
    """Events a second, from producers of whom each waits until its `batch` is durable before the next one."""
    journal = await Journal.open(path)
    last = journal.seq

    async def produce(number: int) -> None:
        nonlocal last
        for _ in range(number):
            first, last = last + 1, last + batch
            await journal.append([_record(seq) for seq in range(first, last + 1)])

    each = max(1, events // PRODUCERS // batch)
    began = time.monotonic()
    await asyncio.gather(*(produce(each) for _ in range(PRODUCERS)))
    spent_s = time.monotonic() - began
    await journal.close()
    return each * PRODUCERS * batch / spent_s


def _record(seq: int) -> Record:
    event = ev.Spawned(
        source=State.STARTING,
        dest=State.STARTING,
        reason=Reason.POLICY,
        pid=4711,
        start_time=123_456,
        digest="0123456789abcdef",
    )
    return Record(
        seq, 1_767_322_800_000_000_000 + seq, seq, seq, "a-service", seq, seq, None, event
    )


def _bare(path: Path, events: int, batch: int) -> float:
    """The same from SQLite alone: one connection, FULL, so many rows a transaction."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(f"PRAGMA journal_mode=WAL;PRAGMA synchronous=FULL;{CREATE}")
    body = '{"pid":4711,"start_time":123456,"digest":"0123456789abcdef"}'
    row = (1, 1, 1, "a-service", 1, "spawned", 1, None, body, "0" * 40)
    question = "INSERT INTO events VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    transactions = max(1, events // batch)
    began = time.monotonic()
    for _ in range(transactions):
        connection.execute("BEGIN")
        connection.executemany(question, [row] * batch)
        connection.execute("COMMIT")
    spent_s = time.monotonic() - began
    connection.close()
    return transactions * batch / spent_s


# --- beside queries -------------------------------------------------------------------------------


async def _beside_queries(bench: Bench) -> None:
    """How much longer the slowest commit takes while pages of the journal are read, round by round."""
    path = bench.new_folder() / "j.db"
    await_s = min(1.0, bench.scale.window_s / 4)
    journal = await Journal.open(path)
    await journal.append([_record(seq) for seq in range(1, bench.scale.events + 1)])
    gc.freeze()  # as the daemon does
    quiet, beside = [], []
    for _ in range(ROUNDS):
        quiet.append(await _slowest_ms(journal, await_s))
        reading = asyncio.create_task(_read_on(journal))
        beside.append(await _slowest_ms(journal, await_s))
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading
    await journal.close()
    first = bench.results.add(NAME, "slowest commit of a round, alone", OURS, "ms", quiet)
    second = bench.results.add(
        NAME, "slowest commit of a round, beside queries", OURS, "ms", beside
    )
    longer = max(0.0, second.p50 - first.p50) if first and second else None
    name = "the slowest commit is longer beside queries by"
    bench.results.bound(NAME, name, longer, BLOCKED_BOUND_MS, "ms")


async def _slowest_ms(journal: Journal, seconds: float) -> float:
    slowest = 0.0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        await journal.append([_record(journal.seq + 1)])
        slowest = max(slowest, time.monotonic() - began)
        await asyncio.sleep(COMMIT_EVERY_S)
    return slowest * 1000


async def _read_on(journal: Journal) -> None:
    since = 0
    while True:
        records = await journal.read(since=since)
        since = records[-1].seq if records else 0


# --- long journals --------------------------------------------------------------------------------


class Starts(NamedTuple):
    """Seconds from the daemon's exec to its first answer, on a journal of `events`.

    `bare`: nothing but the journal is there; then after an orderly end, and after kill -9.
    """

    events: int
    bare_s: float
    orderly_s: float
    killed_s: float


def started(bench: Bench, events: int) -> Starts:
    """Three starts, one after the other, on a journal of about `events`. Notes the fold, too, once."""
    registry = Registry()
    registry.folder = bench.new_folder()
    never = [
        Service(f"s{at:04d}", ["/bin/false"], "autostart = false") for at in range(history.SERVICES)
    ]
    registry.prepare(never, FAST)
    written = history.write(registry.folder / "etc" / "services.toml", registry.journal, events)
    bench.told(f"journal: {written:,} events, {registry.journal.stat().st_size / 1e6:,.0f} MB")
    is_enough = events >= min(FOLD_EVENTS_MAX, bench.scale.history[-1])
    if is_enough and not bench.results.find(FOLDED, OURS):
        _fold(bench, registry.journal)
    try:
        bare_s = _life_s(registry, signal.SIGTERM)
        orderly_s = _life_s(registry, signal.SIGKILL)
        killed_s = _life_s(
            registry, signal.SIGTERM, lambda: _ask_of_then(bench, registry, events, written)
        )
        return Starts(written, bare_s, orderly_s, killed_s)
    finally:
        shutil.rmtree(registry.folder)  # it may be gigabytes


def _life_s(registry: Registry, end: int, then: Callable[[], None] = lambda: None) -> float:
    """Seconds to the first answer; then the daemon is ended by a signal, after what is to be done `then`."""
    began = time.monotonic()
    registry.start()
    assert registry.process is not None
    try:
        _first_answer(registry)
        taken_s = time.monotonic() - began
        then()
        return taken_s
    finally:
        registry.process.send_signal(end)
        registry.process.wait(END_S)


def _ask_of_then(bench: Bench, registry: Registry, events: int, written: int) -> None:
    """All services as they were after events here and there, up to right before a snapshot."""
    client, chance, taken = Client(str(registry.socket)), random.Random(events), []
    for _ in range(MOMENTS):
        asked = (
            f'{{"action":"list_services","at":"seq:{chance.randrange(written // 2, written)}"}}\n'
        )
        began = time.monotonic()
        answer = client.ask(asked.encode())
        taken.append(time.monotonic() - began)
        if not answer.startswith(b'{"ok":true'):
            raise ValueError(answer.decode())
    client.close()
    bench.results.add(NAME, THEN.format(f"{events:,}"), OURS, "s", taken, "after random ones")


def _first_answer(registry: Registry) -> None:
    deadline = time.monotonic() + START_S
    while True:
        assert registry.process is not None
        if registry.process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the registry did not begin: {registry.said()}")
        with suppress(OSError):
            client = Client(str(registry.socket))
            client.ask(LIST)
            client.close()
            return
        time.sleep(0.002)


def _fold(bench: Bench, journal: Path) -> None:
    """The fold of records that are in memory."""
    connection = open_for_reading(journal)
    records: list[Record] = []
    try:
        for page in pages(connection):
            records += page
            if len(records) >= FOLD_EVENTS_MAX:
                break
    finally:
        connection.close()
    os.sync()  # gigabytes of it were written just now
    rates = []
    gc.disable()  # as while the daemon begins
    for _ in range(3):
        projection = Projection()
        began = time.monotonic()
        projection.fold(records)
        rates.append(len(records) / (time.monotonic() - began))
    gc.enable()
    bench.results.add(NAME, FOLDED, OURS, "/s", rates, f"{len(records):,} events")
    bench.results.bound(NAME, FOLDED, max(rates), FOLD_BOUND, "/s", at_least=True)


def _judge_start(bench: Bench) -> None:
    name = f"start on {START_BOUND_EVENTS:,} events"
    figure = bench.results.find(name, OURS)
    why = "" if figure else "this scale has no journal of that length"
    measured = figure.most if figure else None
    bench.results.bound(NAME, name, measured, START_BOUND_S, "s", why=why)
    then = THEN.format(f"{START_BOUND_EVENTS:,}")
    figure = bench.results.find(then, OURS)
    bench.results.bound(NAME, then, figure.most if figure else None, THEN_BOUND_S, "s", why=why)
