"""A damaged journal: set aside as it is, and what can still be trusted of it kept in a new one.

Nothing is deleted. Kept are the rows from the first on, up to the one before the first that cannot be read
or does not match its hash. The new one is whole before it gets the name: killed at any moment, the next
registry finds the damaged one, the new one, or none and goes by what it remembers beside the journal.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing, suppress
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from registry.journal.errors import JournalError
from registry.journal.read import row_pages, trouble_of
from registry.journal.rows import NO_HASH, Row
from registry.journal.schema import COLUMNS, CREATE


class Salvaged(NamedTuple):
    """Where the damaged file is now, and the last event that was kept of it."""

    aside: Path
    seq: int


def salvage(path: Path) -> Salvaged:
    """Set the journal at `path` aside, and make one of what could be read. Raises JournalError."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside = path.with_name(f"{path.name}.damaged-{stamp}")
    fresh = path.with_name(f"{path.name}.new")
    try:
        for suffix in ("", "-journal"):  # what is left of one that was killed
            fresh.with_name(fresh.name + suffix).unlink(missing_ok=True)
        seq = _copy_rows(path, fresh)
        for suffix in ("", "-wal", "-shm"):
            part = path.with_name(path.name + suffix)
            if part.exists():
                part.rename(aside.with_name(aside.name + suffix))
        fresh.rename(path)
        return Salvaged(aside, seq)
    except (OSError, sqlite3.Error) as error:
        raise JournalError(
            f"the journal {path} is damaged, and cannot be set aside: {error}; move it away yourself"
        ) from None


def _copy_rows(source: Path, target: Path) -> int:
    seq = 0
    with (
        closing(sqlite3.connect(target, isolation_level=None)) as new,
        closing(sqlite3.connect(source, isolation_level=None)) as old,
    ):
        new.executescript(f"BEGIN IMMEDIATE;{CREATE}COMMIT;")
        marks = ", ".join("?" * len(COLUMNS))
        new.execute("BEGIN IMMEDIATE")
        for row in _trusted(old):
            new.execute(f"INSERT INTO events VALUES ({marks})", row)
            seq = row[0]
        new.execute("COMMIT")
    return seq


def _trusted(connection: sqlite3.Connection) -> list[Row]:
    """The rows before the first trouble. All in memory: this is a rare and sad occasion."""
    trusted: list[Row] = []
    previous = NO_HASH
    with suppress(JournalError, sqlite3.Error):
        for row in chain.from_iterable(row_pages(connection)):
            if trouble_of(row, len(trusted), previous) is not None:
                break
            trusted.append(row)
            previous = row[-1]
    return trusted
