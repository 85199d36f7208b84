"""Reading a journal file that may be live, a copy, or read-only: opening, pages, verification.

Nothing is changed where the journal lies, no file is made beside it, and never is it opened with
immutable=1, which leaves the -wal out. Read in pages and hold no cursor between them: a long reader
would pin the WAL. Whatever SQLite complains of is a JournalError.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from registry.core.events import (
    Adopted,
    JournalCopied,
    JournalCreated,
    Moved,
    Record,
    RegistryStarted,
    RegistryStopped,
    Resynced,
    Spawned,
)
from registry.core.lifecycle import is_legal
from registry.core.projection import FOLD, Projection
from registry.journal import snapshots
from registry.journal.errors import JournalError
from registry.journal.rows import NO_HASH, Row, chain_hash, to_record
from registry.journal.schema import APPLICATION_ID, SCHEMA_VERSION, SELECT

Connection = sqlite3.Connection
"""An open journal, for those who know no SQL: to be handed back to this module, and closed."""

PAGE = 1000
_COPIES_MAX = 5
_INTEGER_MIN, _INTEGER_MAX = -(2**63), 2**63 - 1
# https://www.sqlite.org/fileformat2.html: "File format read version", 2 for WAL; and the -wal's header
_READ_VERSION_OFFSET, _READ_VERSION_WAL = 19, b"\x02"
_WAL_HEADER_BYTES = 32


# --- opening --------------------------------------------------------------------------------------


def open_for_reading(path: Path) -> Connection:
    """A read-only connection to a journal. Raises JournalError in one sentence.

    SQLite makes a -wal and a -shm where they are missing, and leaves them there. So the file itself is
    read only where both exist, as beside every live journal; else a private copy is.
    """
    try:
        _refuse_other_than_a_file(path)
        return _open_in_place(path) or _open_copy(path)
    except sqlite3.Error as error:
        raise JournalError(f"{path}: it cannot be read as a journal: {error}") from None
    except OSError as error:
        raise JournalError(f"{path}: it cannot be read: {error.strerror}") from None


def _refuse_other_than_a_file(path: Path) -> None:
    try:
        found = path.stat()
    except FileNotFoundError:
        raise JournalError(f"{path}: there is no such file; name a journal") from None
    if stat.S_ISDIR(found.st_mode):
        raise JournalError(f"{path}: this is a folder; name a journal, which is a file")
    if not stat.S_ISREG(found.st_mode):
        raise JournalError(f"{path}: this is no ordinary file; name a journal")
    if found.st_size == 0:
        raise JournalError(f"{path}: this file is empty, so it is not a journal")


def _open_in_place(path: Path) -> Connection | None:
    """None where that would make files beside the journal, or is not possible."""
    if _is_in_wal_mode(path) and not all(_beside(path, name).exists() for name in ("-wal", "-shm")):
        return None
    try:
        return _connect(path, path)
    except sqlite3.OperationalError:  # a -shm that may not be used
        return None


def _open_copy(path: Path) -> Connection:
    """A connection to a copy; once SQLite has it open, the copy needs no name any more."""
    try:
        with tempfile.TemporaryDirectory(prefix="circle-replay-") as folder:
            copy = Path(folder) / "journal.db"
            _copy_whole(path, copy)
            return _connect(copy, path)
    except OSError as error:
        raise JournalError(
            f"{path}: no copy of it can be made to read: {error.strerror} ({error.filename});"
            " TMPDIR names the folder for it"
        ) from None


def _connect(file: Path, path: Path) -> Connection:
    uri = f"{file.absolute().as_uri()}?mode=ro"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None)
    try:
        check_schema(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _copy_whole(path: Path, copy: Path) -> None:
    """Copy a journal and its -wal as they were between two checkpoints of whoever writes them."""
    for _ in range(_COPIES_MAX):
        before = _generation(path)
        for suffix in ("", "-wal"):
            _copy_or_remove(_beside(path, suffix), _beside(copy, suffix))
        if _generation(path) == before:
            return
    raise JournalError(
        f"{path}: it changes while it is copied;"
        " read it as a user who may use its -shm, or copy it while it is quiet"
    )


def _copy_or_remove(source: Path, copy: Path) -> None:
    try:
        shutil.copyfile(source, copy)
    except FileNotFoundError:
        copy.unlink(missing_ok=True)


def _generation(path: Path) -> tuple[int, int, bytes]:
    """What differs after a checkpoint; frames appended to the same -wal do no harm to a copy."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size, _bytes(_beside(path, "-wal"), 0, _WAL_HEADER_BYTES)


def _is_in_wal_mode(path: Path) -> bool:
    return _bytes(path, _READ_VERSION_OFFSET, 1) == _READ_VERSION_WAL


def _bytes(path: Path, offset: int, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            return os.pread(file.fileno(), count, offset)
    except FileNotFoundError:
        return b""


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def check_schema(connection: Connection, path: Path) -> None:
    """Raise JournalError unless this is a journal of a version that we know."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application == tables == 0:
        raise JournalError(
            f"{path}: this SQLite file holds nothing, as a young journal does without its -wal;"
            f" copy {path.name}-wal along, or name another journal"
        )
    refuse_stranger(path, application=application, version=version)


def refuse_stranger(path: Path, *, application: int, version: int) -> None:
    """Raise JournalError for a file of another program, or of a later version of this one."""
    if application != APPLICATION_ID:
        raise JournalError(f"{path}: this SQLite file is not a journal of the Service Registry")
    if version > SCHEMA_VERSION:
        raise JournalError(
            f"{path}: written by a newer version (schema {version}, this one knows {SCHEMA_VERSION});"
            " use that version, or name another journal"
        )


def doubt(connection: Connection, path: Path) -> str | None:
    """A sentence where newer events may be missing: the -wal that would hold them is not there.

    A live journal has one, as has one whose registry was killed; after an orderly stop none is needed.
    """
    if not _is_in_wal_mode(path) or _bytes(_beside(path, "-wal"), 0, 1):
        return None
    rows = _ask(connection, "SELECT type FROM events ORDER BY seq DESC LIMIT 1")
    if rows == [(RegistryStopped.TYPE,)]:
        return None
    name = _beside(path, "-wal").name
    return f"no {name} beside it: if it was copied without, newer events may be missing"


# --- pages ----------------------------------------------------------------------------------------


class Selection(NamedTuple):
    """Which rows: above `after` up to `last`, from `first_ns` to `last_ns` (UTC), of `services` if named."""

    after: int = 0
    last: int = _INTEGER_MAX
    first_ns: int = _INTEGER_MIN
    last_ns: int = _INTEGER_MAX
    services: tuple[str, ...] = ()


EVERYTHING = Selection()


def row_pages(connection: Connection, selection: Selection = EVERYTHING) -> Iterator[list[Row]]:
    """The rows of a selection in order, a page at a time; where one cannot be read, all those before it."""
    after, *bounds, services = selection
    question = (
        f"{SELECT} WHERE seq > ? AND seq <= ? AND at_ns BETWEEN ? AND ?{_among(services)}"
        " ORDER BY seq LIMIT ?"
    )
    size = PAGE
    while True:
        try:
            rows = _ask(connection, question, (after, *bounds, *services, size), after=after)
        except JournalError:
            if size == 1:
                raise
            size = 1
            continue
        if not rows:
            return
        yield rows
        after = rows[-1][0]


def _among(services: tuple[str, ...]) -> str:
    """One service is looked up in the index; for several (the +) that would sort all rows for each page."""
    if len(services) == 1:
        return " AND service = ?"
    return f" AND +service IN ({', '.join('?' * len(services))})" if services else ""


def pages(connection: Connection, selection: Selection = EVERYTHING) -> Iterator[list[Record]]:
    """The records of a selection in order, a page at a time; what is readable before an error comes first."""
    for rows in row_pages(connection, selection):
        records: list[Record] = []
        try:
            for row in rows:
                records.append(to_record(row))  # noqa: PERF401  a comprehension would lose them
        except JournalError:
            yield records
            raise
        yield records


def latest(connection: Connection, selection: Selection, count: int) -> list[Record]:
    """The last `count` records of a selection, oldest first."""
    after, *bounds, services = selection
    question = (
        f"{SELECT} WHERE seq > ? AND seq <= ? AND at_ns BETWEEN ? AND ?{_among(services)}"
        " ORDER BY seq DESC LIMIT ?"
    )
    rows = _ask(connection, question, (after, *bounds, *services, count))
    return [to_record(row) for row in reversed(rows)]


def fold(connection: Connection, last: int) -> Projection:
    """The fold of every event up to number `last`, from the nearest snapshot on.

    Raises JournalError, also for an event that does not follow from those before it.
    """
    projection = _snapshot(connection, last) or Projection()
    for records in pages(connection, Selection(after=projection.seq, last=last)):
        try:
            projection.fold(records)
        # no registry wrote this: an event of a service that was never defined, say
        except (KeyError, AssertionError):
            raise JournalError(
                f"event {projection.seq + 1} does not follow from those before it; --verify says more"
            ) from None
    return projection


def _snapshot(connection: Connection, last: int) -> Projection | None:
    if not _ask(
        connection, snapshots.ARE_THERE
    ):  # of a version that knew none, or somebody dropped them
        return None
    rows = _ask(connection, snapshots.NEAREST, (last, FOLD))
    return snapshots.decode(rows[0][0]) if rows else None


def at_of(connection: Connection, seq: int) -> int:
    """When event number `seq` happened (UTC); 0 where there is none."""
    return _number(_ask(connection, "SELECT at_ns FROM events WHERE seq = ?", (seq,)))


def service_names(connection: Connection) -> list[str]:
    """Every service that the journal tells of."""
    question = "SELECT DISTINCT service FROM events WHERE service IS NOT NULL ORDER BY service"
    return [name for (name,) in _ask(connection, question)]


def last_seq(connection: Connection) -> int:
    """The number of the last event; 0 where there is none."""
    return _number(_ask(connection, "SELECT max(seq) FROM events"))


def first_seq_at(connection: Connection, at_ns: int) -> int:
    """The number of the first event in sequence that is not earlier than `at_ns` (UTC); 0 where none is."""
    question = "SELECT seq FROM events WHERE at_ns >= ? ORDER BY seq LIMIT 1"
    return _number(_ask(connection, question, (at_ns,)))


def last_seq_at(connection: Connection, at_ns: int) -> int:
    """The number of the last event in sequence that is not later than `at_ns` (UTC); 0 where none is.

    Times need not follow the order of events, so all that comes after it has to be known to be later.
    """
    below = _INTEGER_MAX
    for seq, after, first_ns in _times(connection):
        if seq > below:
            continue
        if found := _last_between(connection, seq, below, at_ns):
            return found
        below = seq
        if first_ns > at_ns:
            below = after
    return _last_between(connection, _INTEGER_MIN, below, at_ns)


def _last_between(connection: Connection, after: int, last: int, at_ns: int) -> int:
    question = (
        "SELECT seq FROM events WHERE seq > ? AND seq <= ? AND at_ns <= ? ORDER BY seq DESC LIMIT 1"
    )
    return _number(_ask(connection, question, (after, last, at_ns)))


def _times(connection: Connection) -> list[Row]:
    if not _ask(connection, snapshots.TIMES_ARE_THERE):
        return []
    return _ask(connection, snapshots.TIMES)


def _number(rows: list[Row]) -> int:
    return rows[0][0] or 0 if rows else 0


def _ask(
    connection: Connection, question: str, values: tuple[Any, ...] = (), *, after: int = 0
) -> list[Row]:
    try:
        return connection.execute(question, values).fetchall()
    except sqlite3.Error as error:
        where = f"after event {after} " if after > 0 else ""
        raise JournalError(f"{where}the file cannot be read: {error}") from None


# --- single records -------------------------------------------------------------------------------


def record_after(connection: Connection, seq: int) -> Record | None:
    """The first record above a number; None where there is none."""
    return _one(connection, "WHERE seq > ? ORDER BY seq LIMIT 1", (seq,))


def record_up_to(connection: Connection, seq: int) -> Record | None:
    """The last record up to a number; None where there is none."""
    return _one(connection, "WHERE seq <= ? ORDER BY seq DESC LIMIT 1", (seq,))


def records_of(connection: Connection, seqs: Iterable[int]) -> dict[int, Record]:
    """Records by their numbers; those that are not there are left out."""
    found = (_one(connection, "WHERE seq = ?", (seq,)) for seq in seqs)
    return {record.seq: record for record in found if record is not None}


def own_records(connection: Connection, after: int, last: int) -> Iterator[Record]:
    """The events of the registry itself above `after` up to `last`, in order."""
    question = f"{SELECT} WHERE service IS NULL AND seq > ? AND seq <= ? ORDER BY seq LIMIT ?"
    while rows := _ask(connection, question, (after, last, PAGE), after=after):
        yield from map(to_record, rows)
        after = rows[-1][0]


def start_up_to(connection: Connection, seq: int) -> Record | None:
    """The latest start of the registry up to an event; None where there is none."""
    where = "WHERE service IS NULL AND type = ? AND seq <= ? ORDER BY seq DESC LIMIT 1"
    return _one(connection, where, (RegistryStarted.TYPE, seq))


def seen_before(connection: Connection, record: Record) -> Record | None:
    """The last record from before a time of which not all was written: that before a start of the registry, or
    before events of which only the outcome was kept.
    """
    if isinstance(record.event, Resynced):
        where = "WHERE seq < ? AND mono_ns < ? ORDER BY seq DESC LIMIT 1"
        return _one(connection, where, (record.seq, record.mono_ns))
    where = "WHERE seq < ? AND type NOT IN (?, ?) ORDER BY seq DESC LIMIT 1"
    return _one(connection, where, (record.seq, JournalCreated.TYPE, JournalCopied.TYPE))


def run_before(connection: Connection, service: str, last: int, count: int) -> int:
    """The number of the first event of the run of a service that is `count` runs before the latest up to event
    `last`; 0 where there are not so many, or what became of them between two events is not written.
    """
    question = (
        "SELECT seq, run FROM events WHERE service = ? AND seq < ? AND type IN (?, ?, ?)"
        " ORDER BY seq DESC LIMIT ?"
    )
    kinds = (Spawned.TYPE, Adopted.TYPE, Resynced.TYPE)
    runs: list[int] = []
    seq = 0
    before = last + 1
    while rows := _ask(connection, question, (service, before, *kinds, PAGE)):
        for before, run in rows:
            if run not in runs:
                if len(runs) > count:
                    return seq
                runs.append(run)
            seq = before
    return 0


def asked_for(
    connection: Connection,
    after: int,
    last: int,
    services: Collection[str],
    types: Iterable[str],
    count: int,
) -> list[Record]:
    """The last `count` records above `after` up to `last` that somebody asked for, or of one of `types`, oldest first.

    Where services are named, only theirs, and those of the registry itself.
    """
    kinds = tuple(types)
    chosen = f" AND (service IS NULL OR +service IN ({', '.join('?' * len(services))}))"
    question = (
        f"{SELECT} WHERE seq > ? AND seq <= ?{chosen if services else ''}"
        f" AND (actor IS NOT NULL OR type IN ({', '.join('?' * len(kinds))}))"
        " ORDER BY seq DESC LIMIT ?"
    )
    rows = _ask(connection, question, (after, last, *services, *kinds, count))
    return [to_record(row) for row in reversed(rows)]


def _one(connection: Connection, where: str, values: tuple[Any, ...]) -> Record | None:
    rows = _ask(connection, f"{SELECT} {where}", values)
    return to_record(rows[0]) if rows else None


# --- verification ---------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """What verification found: events 1 to `seq`, the last with `hash`, are as they were written.

    `trouble` says what is wrong after that, None when nothing is. `head_seq` is the event whose hash was
    asked for, None when none of these has it.
    """

    seq: int
    hash: str
    trouble: str | None
    head_seq: int | None = None


def verify(connection: Connection, head: str | None = None) -> Verdict:
    """Check every row: no gap, an unbroken chain of hashes, a readable body, a legal move.

    A cut tail leaves a chain that is whole, as does a rewrite of everything: only a `head`, the hash of
    some event noted elsewhere, shows them.
    """
    seq, previous, head_seq = 0, NO_HASH, None
    try:
        for row in chain.from_iterable(row_pages(connection, Selection(after=_INTEGER_MIN))):
            trouble = trouble_of(row, seq, previous)
            if trouble is not None:
                return Verdict(seq, previous, trouble, head_seq)
            seq, previous = row[0], row[-1]
            if previous == head:
                head_seq = seq
        trouble = _damage(connection) or _false_snapshot(connection) or _false_times(connection)
    except JournalError as error:
        trouble = str(error)
    return Verdict(seq, previous, trouble, head_seq)


def _damage(connection: Connection) -> str | None:
    ((finding,),) = _ask(connection, "PRAGMA integrity_check(1)")
    return None if finding == "ok" else f"beside the events SQLite finds damage: {finding}"


def _false_snapshot(connection: Connection) -> str | None:
    """The hashes say nothing of snapshots: each has to be what the events come to."""
    if not _ask(connection, snapshots.ARE_THERE):
        return None
    projection = Projection()
    for (seq,) in _ask(connection, snapshots.OURS, (FOLD,)):
        for records in pages(connection, Selection(after=projection.seq, last=seq)):
            projection.fold(records)
        if _snapshot(connection, seq) != projection:
            return f"the snapshot at event {seq} is not what the events come to: delete it from snapshots"
    return None


def _false_times(connection: Connection) -> str | None:
    for seq, after, first_ns in _times(connection):
        question = "SELECT 1 FROM events WHERE seq > ? AND seq <= ? AND at_ns < ? LIMIT 1"
        if _ask(connection, question, (after, seq, first_ns)):
            return f"an event is earlier than the row {seq} of times says: delete it from times"
    return None


def trouble_of(row: Row, seq: int, previous: str) -> str | None:
    """What is wrong with a row that ought to follow event `seq` with the hash `previous`; None if nothing."""
    if row[0] < 1:
        return f"a row has the number {row[0]}, and numbers begin with 1"
    if row[0] != seq + 1:
        return f"event {seq + 1} is missing: what comes next is event {row[0]}"
    if chain_hash(previous, row[:-1]) != row[-1]:
        return f"event {row[0]} was changed: its hash does not match its row and the one before"
    try:
        record = to_record(row)
    except JournalError as error:
        return str(error)
    event = record.event
    if isinstance(event, Moved) and not is_legal(event.TYPE, event.source, event.dest):
        return f"event {row[0]}: no rule leads from {event.source} to {event.dest} by {event.TYPE}"
    return None
