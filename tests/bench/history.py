"""A long journal of a hundred services that were killed and started again, decided by the core and chained as ever.

A restart of each is decided; these are then repeated with other numbers, so that ten million events take minutes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import msgspec

from registry import house
from registry.apply import digest
from registry.config import Config, load, with_digests
from registry.core import events as ev
from registry.core import inputs as inp
from registry.core.decision import decide
from registry.core.lifecycle import Reason
from registry.core.place import Place
from registry.core.service import Service
from registry.journal.rows import NO_HASH, Row, chain_hash, to_rows
from registry.journal.schema import COLUMNS, CREATE, SCHEMA_VERSION

BEGIN_NS = 1_767_322_800_000_000_000
STEP_NS = 50_000_000
SERVICES = 100
ROUNDS = 1
JOURNAL_ID = "feedfacefeedface"
CHUNK = 20_000
SEQ, AT, MONO, DECISION, _SERVICE, RUN, _TYPE, CAUSE = range(8)


class _Writer:
    """Decides for services, one input after the other, on a clock of its own."""

    def __init__(self) -> None:
        self.seq = 0
        self._ns = 0

    def now(self) -> ev.Now:
        self._ns += STEP_NS
        return ev.Now(BEGIN_NS + self._ns, self._ns)

    def tell(self, event: ev.Event) -> ev.Record:
        self.seq += 1
        now = self.now()
        return ev.Record(self.seq, now.at_ns, now.mono_ns, self.seq, None, None, None, None, event)

    def decide(self, service: Service, *given: inp.Input) -> list[ev.Record]:
        records: list[ev.Record] = []
        now = self.now()
        for each in given:
            decision = records[0].decision if records else None
            place = Place(now, self.seq + 1, JOURNAL_ID, decision)
            decided = decide(service, each, place)
            self.seq += len(decided)
            records += decided
        return records


def write(configuration: Path, journal: Path, events: int) -> int:
    """Write a journal of about `events` events that ended orderly; how many they are."""
    config = load(configuration)
    journal.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(journal, isolation_level=None)
    try:
        connection.executescript(f"PRAGMA journal_mode=WAL;BEGIN IMMEDIATE;{CREATE}COMMIT;")
        connection.execute("PRAGMA synchronous=OFF")
        marks = ", ".join("?" * len(COLUMNS))
        last = 0
        rows = _rows(with_digests(config, house.digest_key(journal.parent)), journal.parent, events)
        while chunk := list(islice(rows, CHUNK)):
            connection.execute("BEGIN")
            connection.executemany(f"INSERT INTO events VALUES ({marks})", chunk)
            connection.execute("COMMIT")
            last = chunk[-1][SEQ]
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return last
    finally:
        connection.close()


def _rows(config: Config, folder: Path, events: int) -> Iterator[Row]:
    writer = _Writer()
    services = [Service(definition) for definition in config.definitions]
    key = house.digest_key(folder)
    beginning = [
        writer.tell(ev.JournalCreated(journal_id=JOURNAL_ID, schema=SCHEMA_VERSION)),
        writer.tell(_started()),
    ]
    for service in services:
        defined = inp.Define(
            definition=service.definition, digest=digest(service.definition, key), cause=2
        )
        beginning += writer.decide(service, defined, inp.Start(), _spawned(service, 1))
        beginning += writer.decide(service, inp.GateOpened(run=service.run))
    previous = NO_HASH
    for row in to_rows(beginning, previous):
        previous = row[-1]
        yield row
    cycle = to_rows(_restarts(writer, services), NO_HASH)
    before = _Shift(0, 0, 0)
    for at in range(max(1, (events - len(beginning)) // len(cycle))):
        before = _Shift(at * len(cycle), at * ROUNDS * SERVICES * 2 * STEP_NS, at * ROUNDS)
        for row in before.of(cycle, previous):
            previous = row[-1]
            yield row
    yield from before.of(to_rows(_ending(writer, services), NO_HASH), previous)


class _Shift(msgspec.Struct, frozen=True):
    """By how much the numbers, times and runs of repeated rows are larger."""

    seq: int
    ns: int
    runs: int

    def of(self, rows: Iterable[Row], previous: str) -> Iterator[Row]:
        """The rows, later in the story, chained to `previous`."""
        for row in rows:
            columns = [*row[:-1]]
            columns[SEQ] += self.seq
            columns[AT] += self.ns
            columns[MONO] += self.ns
            columns[DECISION] += self.seq
            if columns[RUN] is not None:
                columns[RUN] += self.runs
            if columns[CAUSE] is not None:
                columns[CAUSE] += self.seq
            previous = chain_hash(previous, tuple(columns))
            yield (*columns, previous)


def _restarts(writer: _Writer, services: list[Service]) -> list[ev.Record]:
    """Each is killed ROUNDS times, and is at once up again."""
    records: list[ev.Record] = []
    for _round in range(ROUNDS):
        for service in services:
            ended = inp.ProcessExited(run=service.run, signal=9, usage=ev.Usage(0.01, 0.01, 2**20))
            records += writer.decide(service, ended, _spawned(service, service.run + 1))
            records += writer.decide(service, inp.GateOpened(run=service.run))
    return records


def _ending(writer: _Writer, services: list[Service]) -> list[ev.Record]:
    records: list[ev.Record] = []
    for service in services:
        ended = inp.ProcessExited(run=service.run, signal=15)
        records += writer.decide(service, inp.Stop(reason=Reason.SHUTDOWN), ended)
    return [*records, writer.tell(ev.RegistryStopped(kept=False))]


def _spawned(service: Service, run: int) -> inp.SpawnSucceeded:
    return inp.SpawnSucceeded(run=run, pid=4711, start_time=1, digest=service.digest)


def _started() -> ev.RegistryStarted:
    return ev.RegistryStarted(
        boot_id="another boot",
        pid_namespace="",
        pid=1,
        version="0",
        fresh=True,
        path="",
        device=0,
        inode=0,
    )
