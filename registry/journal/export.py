"""A journal, or its oldest part, as one self-contained file that replay reads: made while it is live.

Copied in many short reads, so that the WAL is not pinned; what is appended meanwhile is beyond the end that was fixed
at first. Nobody may remove events meanwhile. The file is private, whole before it has its name, and takes nobody's.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from registry.core.events import JournalCompacted
from registry.journal import anchor, views
from registry.journal.errors import Compacted, JournalError
from registry.journal.schema import COLUMNS, CREATE

STRIDE = 5000
"""Rows that are copied by one statement."""
_NAMES = ", ".join(COLUMNS)


class Exported(NamedTuple):
    """What a file holds: events from `first` to `last`, the latter with `hash`; and its size in bytes."""

    first: int
    last: int
    hash: str
    size: int


class Abandoned(Exception):
    """The copy is not wanted any more."""


def export(
    source: Path, target: Path, until: int | None, is_wanted: Callable[[], bool] = lambda: True
) -> Exported:
    """Copy the events up to number `until`, or all, into a new file. Raises JournalError in one sentence, Abandoned.

    It goes on to the event that records what the journal begins with: without it nobody could verify that.
    """
    import tempfile

    if os.path.lexists(target):
        raise JournalError(f"{target} exists already; name a file that does not")
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        os.close(descriptor)
        partial = Path(name)
        try:
            found = _fill(partial, source, until, is_wanted)
            _sync(partial)
            _give_name(partial, target)
            _sync(target.parent)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise JournalError(f"{target} cannot be written: {error.strerror}") from None
    except sqlite3.Error as error:
        raise JournalError(f"the journal cannot be copied to {target}: {error}") from None
    return found


def _give_name(partial: Path, target: Path) -> None:
    try:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        raise JournalError(f"{target} exists already; name a file that does not") from None
    partial.replace(target)  # ours: it was made a moment ago


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # not every file system can
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fill(
    partial: Path, source: Path, until: int | None, is_wanted: Callable[[], bool]
) -> Exported:
    with closing(sqlite3.connect(f"{partial.as_uri()}", uri=True, isolation_level=None)) as copy:
        copy.execute("PRAGMA journal_mode = OFF")
        copy.execute("PRAGMA synchronous = OFF")
        copy.executescript(f"BEGIN;{CREATE}COMMIT;{views.renewal([])}")
        copy.execute("ATTACH ? AS live", (f"{source.absolute().as_uri()}?mode=ro",))
        first = _copy_beginning(copy)
        (head,) = copy.execute("SELECT max(seq) FROM live.events").fetchone()
        last = _last(copy, first, head, until)
        _copy_rows(copy, first, last, is_wanted)
        copy.execute("DETACH live")
        (hash_,) = copy.execute("SELECT hash FROM events WHERE seq = ?", (last,)).fetchone()
    return Exported(first, last, hash_, partial.stat().st_size)


def _copy_beginning(copy: sqlite3.Connection) -> int:
    """Copy what the journal begins with, if it was compacted; the number of its first event."""
    rows = copy.execute(anchor.FIND.replace("anchor", "live.anchor")).fetchall()
    if not rows:
        return 1
    begin = anchor.of(rows[0])
    copy.execute(anchor.PUT, begin.row())
    copy.execute(
        f"INSERT INTO main.events SELECT {_NAMES} FROM live.events"
        " WHERE seq IN (SELECT value FROM json_each(?))",
        (anchor.numbers(begin.kept),),
    )
    return begin.seq + 1


def _last(copy: sqlite3.Connection, first: int, head: int, until: int | None) -> int:
    if until is None or until >= head:
        return head
    if until < first:
        raise Compacted(f"the journal begins with event {first}: nothing before it is left", first)
    question = (
        "SELECT min(seq) FROM live.events WHERE seq >= ? AND type = ? AND body ->> '$.through' = ?"
    )
    values = (first, JournalCompacted.TYPE, first - 1)
    (recorded,) = copy.execute(question, values).fetchone()
    return max(until, recorded or 0) if first > 1 else until


def _copy_rows(
    copy: sqlite3.Connection, first: int, last: int, is_wanted: Callable[[], bool]
) -> None:
    for begin in range(first, last + 1, STRIDE):
        if not is_wanted():
            raise Abandoned
        end = min(begin + STRIDE - 1, last)
        copy.execute(
            f"INSERT INTO main.events SELECT {_NAMES} FROM live.events"
            " WHERE seq BETWEEN ? AND ? ORDER BY seq",
            (begin, end),
        )
