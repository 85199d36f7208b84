"""The disk under the journal: rows that survive everything, written by the production row and hash code.

A batch is durable or not at all. It is durable before its append returns; in between the daemon may die.
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
from registry.journal.rows import NO_HASH, Row, to_record, to_rows
from registry.journal.schema import APPEND, CREATE
from tests.simulation.loop import NS, VirtualLoop


class Disk:
    """The rows of one journal, and how the disk is: full, slow, or well."""

    def __init__(self, loop: VirtualLoop, chance: Random) -> None:
        self.loop = loop
        self.chance = chance
        self.rows: list[Row] = []
        self.full = False
        self.slow = False
        self.appends = 0
        self.failures = 0

    @property
    def head(self) -> str:
        """The hash of the last row."""
        return self.rows[-1][-1] if self.rows else NO_HASH

    def latency_s(self) -> float:
        """How long one append takes."""
        if self.slow:
            return self.chance.uniform(0.01, 1.5)
        return self.chance.uniform(0.0002, 0.001)

    def records(self) -> list[ev.Record]:
        """All rows, read back."""
        return [to_record(row) for row in self.rows]

    def digest(self) -> str:
        """One SHA-256 over every column of every row."""
        return hashlib.sha256(msgspec.json.encode(self.rows)).hexdigest()

    def verified_by_sqlite(self) -> str | None:
        """What the production verification finds wrong with these rows in a real table; None where nothing."""
        connection = sqlite3.connect(":memory:", isolation_level=None)
        try:
            connection.executescript(CREATE)
            connection.execute(APPEND, (msgspec.json.encode(self.rows).decode(),))
            return verify(connection).trouble
        finally:
            connection.close()


class DiskJournal:
    """The journal as one life of the daemon has it. `at_point` is called where it may die."""

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

    async def append(self, records: Sequence[ev.Record]) -> None:
        """Commit records as one transaction. Raises JournalError; then nothing of them is there."""
        assert not self.busy, "two appends at a time"
        self.busy = True
        rows = to_rows(records, self._disk.head)
        done: Any = self._disk.loop.create_future()
        try:
            self._at_point("append")
            due_ns = self._disk.loop.now_ns + int(self._disk.latency_s() * NS)
            self._disk.loop.at(due_ns, self._write, rows, done)
            await done
        finally:
            self.busy = False

    def _write(self, rows: list[Row], done: Any) -> None:
        if self._is_dead():
            return
        disk = self._disk
        disk.appends += 1
        if disk.full:
            disk.failures += 1
            if not done.done():
                done.set_exception(JournalError("cannot write to the journal: disk is full"))
            return
        disk.rows += rows
        self._appended(rows)
        self._at_point("appended")
        if not done.done():
            done.set_result(None)
