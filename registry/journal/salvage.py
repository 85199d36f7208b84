"""A damaged journal: set aside as it is, and what can still be trusted of it kept in a new one, or answered from.

Nothing is deleted. Kept are the rows from the first on, up to the one before the first that cannot be read
or does not match its hash, of a file whose end is cut off, too; of a compacted journal none where what it begins
with is not as it was written. The new one is whole before it gets the name: killed at any moment, the next registry
finds the damaged one, the new one, or none and goes by what it remembers beside the journal.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing, suppress
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from registry.journal import anchor as anchors
from registry.journal.anchor import Anchor
from registry.journal.errors import JournalDamaged, JournalError
from registry.journal.opening import Connection, ask, is_cut, open_copy
from registry.journal.read import Chain, checked_anchor, row_pages
from registry.journal.rows import Row
from registry.journal.schema import COLUMNS, CREATE, UNREADABLE, complaint_of


class Salvaged(NamedTuple):
    """Where the damaged file is now, and the first and the last event that were kept of it."""

    aside: Path
    first: int
    last: int

    def told(self, path: Path) -> str:
        """What became of the journal that was at `path`."""
        now = f"The damaged journal is now {self.aside}"
        match self.last - self.first:
            case -1:
                return f"{now}; none of its events could be kept, and {path} is a new one"
            case 0:
                return f"{now}; event {self.last} of it is kept in {path}"
            case _:
                return f"{now}; events {self.first} to {self.last} of it are kept in {path}"


def salvage(path: Path) -> Salvaged:
    """Set the journal at `path` aside, and make one of what could be read. Raises JournalError."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside = path.with_name(f"{path.name}.damaged-{stamp}")
    fresh = path.with_name(f"{path.name}.new")
    try:
        for suffix in ("", "-journal"):  # what is left of one that was killed
            fresh.with_name(fresh.name + suffix).unlink(missing_ok=True)
        with (
            closing(sqlite3.connect(fresh, isolation_level=None)) as new,
            closing(_opened(path)) as old,
        ):
            first, last = _copy_rows(old, new)
        for suffix in ("", "-wal", "-shm"):
            part = path.with_name(path.name + suffix)
            if part.exists():
                part.rename(aside.with_name(aside.name + suffix))
        fresh.rename(path)
        return Salvaged(aside, first, last)
    except (OSError, *UNREADABLE) as error:
        raise JournalError(
            f"the journal {path} is damaged, and cannot be set aside: {error}; move it away yourself"
        ) from None


class Part(NamedTuple):
    """What can be trusted of a journal, as one of its own: events `first` to `last`. It is to be closed."""

    journal: Connection
    first: int
    last: int


def trusted_part(journal: Connection) -> Part:
    """What can be trusted of an open journal, which stays as it is. Raises JournalError."""
    part = sqlite3.connect("", isolation_level=None)  # in a file that has no name
    try:
        return Part(part, *_copy_rows(journal, part))
    except UNREADABLE as error:
        part.close()
        raise JournalError(
            f"what can be trusted of it cannot be copied: {complaint_of(error)};"
            " SQLITE_TMPDIR names the folder for it"
        ) from None


def _copy_rows(old: Connection, new: Connection) -> tuple[int, int]:
    new.executescript(f"BEGIN IMMEDIATE;{CREATE}COMMIT;")
    marks = ", ".join("?" * len(COLUMNS))
    begin, kept, rows = _trusted(old)
    new.execute("BEGIN IMMEDIATE")
    if begin is not None:
        new.execute(anchors.PUT, begin.row())
    new.executemany(f"INSERT INTO events VALUES ({marks})", [*kept, *rows])
    new.execute("COMMIT")
    first = begin.seq + 1 if begin is not None else 1
    return first, rows[-1][0] if rows else first - 1


def _opened(source: Path) -> Connection:
    """Of a file whose end is cut off a copy that SQLite reads, if any can be."""
    if is_cut(source):
        with suppress(JournalDamaged, *UNREADABLE):
            return open_copy(source)
    return sqlite3.connect(source, isolation_level=None)


def _trusted(connection: Connection) -> tuple[Anchor | None, list[Row], list[Row]]:
    """What it begins with, and the rows before the first trouble. All in memory: a rare and sad occasion."""
    begin, kept, trusted = None, [], []
    with suppress(JournalError):
        begin = checked_anchor(connection)
        if begin is not None:
            kept = ask(connection, anchors.KEPT, (anchors.numbers(begin.kept),))
        rows = Chain(begin)
        for row in chain.from_iterable(row_pages(connection)):
            if rows.trouble_of(row) is not None:
                break
            trusted.append(row)
    return begin, kept, trusted
