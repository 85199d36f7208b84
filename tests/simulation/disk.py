"""The disk under the journal: rows that survive everything, written by the production row and hash code.

A batch is durable or not at all. It is durable before its append returns; in between the daemon may die. Years of
rows do not fit into memory: the latest are kept, all of them are in the digest.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from registry.core import events as ev
from registry.journal import JournalError
from registry.journal.read import verify
from registry.journal.rows import NO_HASH, Row, to_rows
from registry.journal.schema import CREATE, appending
from tests.simulation.loop import NS, VirtualLoop

ROWS_KEPT = 40_000
"""Rows kept, at least the latest half of them; a world that has no more than these is verified by SQLite, too."""

_encode = msgspec.json.Encoder().encode

Move = tuple[str, str, str]
"""Event type, state before, state after: a row of the lifecycle's table."""


class Disk:
    """The rows of one journal, and how the disk is: full, slow, or well."""

    def __init__(self, loop: VirtualLoop, chance: Random) -> None:
        self.loop = loop
        self.chance = chance
        self.rows: list[Row] = []
        self.dropped = 0
        self.decisions = 0
        self.head = NO_HASH
        self.full = False
        self.slow = False
        self._sum = hashlib.sha256()

    def latency_s(self) -> float:
        """How long one append takes."""
        if self.slow:
            return self.chance.uniform(0.01, 1.5)
        return self.chance.uniform(0.0002, 0.001)

    @property
    def count(self) -> int:
        """How many rows there are."""
        return self.dropped + len(self.rows)

    def take(self, rows: list[Row]) -> None:
        """Rows are durable."""
        latest = self.rows[-1][3] if self.rows else 0
        for row in rows:
            self._sum.update(_encode(row))
            self.decisions += row[3] != latest
            latest = row[3]
        self.rows += rows
        self.head = rows[-1][-1]
        if len(self.rows) > ROWS_KEPT:
            excess = len(self.rows) - ROWS_KEPT // 2
            del self.rows[:excess]
            self.dropped += excess

    def digest(self) -> str:
        """One SHA-256 over every column of every row."""
        return self._sum.hexdigest()

    def verified_by_sqlite(self) -> str | None:
        """What the production verification finds wrong with all rows in a real table; None where nothing."""
        if self.dropped:
            return None
        connection = sqlite3.connect(":memory:", isolation_level=None)
        try:
            connection.executescript(CREATE)
            connection.execute(*appending(self.rows))
            return verify(connection).trouble
        finally:
            connection.close()


class DiskJournal:
    """The journal as one life of the daemon has it. `at_point` is called where it may die.

    `moved` is who moves in the batch under way, and how; `is_durable` says whether it is already.
    """

    path = Path("/simulated/registry.db")

    def __init__(
        self,
        disk: Disk,
        is_dead: Callable[[], bool],
        at_point: Callable[[str], None],
        appended: Callable[[list[Row]], None],
    ) -> None:
        self._disk = disk
        self._is_dead = is_dead
        self._at_point = at_point
        self._appended = appended
        self.busy = False
        self.is_durable = False
        self.moved: list[tuple[str, Move]] = []

    @property
    def moves(self) -> list[Move]:
        """The moves of the batch under way."""
        return [move for _service, move in self.moved]

    async def append(self, records: Sequence[ev.Record]) -> None:
        """Commit records as one transaction. Raises JournalError; then nothing of them is there."""
        assert not self.busy, "two appends at a time"
        self.busy, self.is_durable = True, False
        self.moved = [move for record in records if (move := move_of(record)) is not None]
        rows = to_rows(records, self._disk.head)
        done: Any = self._disk.loop.create_future()
        try:
            self._at_point("append")
            due_ns = self._disk.loop.now_ns + int(self._disk.latency_s() * NS)
            self._disk.loop.at(due_ns, self._write, rows, done)
            await done
        finally:
            self.busy, self.moved = False, []

    def _write(self, rows: list[Row], done: Any) -> None:
        if self._is_dead():
            return
        disk = self._disk
        if disk.full:
            self.moved = []
            if not done.done():
                done.set_exception(JournalError("cannot write to the journal: disk is full"))
            return
        disk.take(rows)
        self._appended(rows)
        self.is_durable = True
        self._at_point("appended")
        if not done.done():
            done.set_result(None)


def move_of(record: ev.Record) -> tuple[str, Move] | None:
    """The service, and the row of the lifecycle's table that a record was made by; None where it moves nothing."""
    event = record.event
    if not isinstance(event, ev.Moved) or record.service is None:
        return None
    return record.service, (record.type, event.source.value, event.dest.value)
