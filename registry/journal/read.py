"""Reading an open journal: pages, folds, single records, verification.

Read in pages and hold no cursor between them: a long reader would pin the WAL. Whatever SQLite complains of is a
JournalError.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

from registry.core.events import (
    Adopted,
    JournalCompacted,
    JournalCopied,
    JournalCreated,
    Moved,
    Record,
    RegistryStarted,
    Resynced,
    Spawned,
)
from registry.core.lifecycle import is_legal
from registry.core.projection import FOLD, Projection
from registry.journal import anchor as anchors
from registry.journal import snapshots
from registry.journal.anchor import Anchor
from registry.journal.errors import Compacted, JournalDamaged, JournalError
from registry.journal.opening import Connection, ask
from registry.journal.rows import NO_HASH, Row, chain_hash, to_record
from registry.journal.schema import SELECT
from registry.questions.records import rfc3339

PAGE = 1000
_FOLDS_MAX = 3
_INTEGER_MIN, _INTEGER_MAX = -(2**63), 2**63 - 1


# --- pages ----------------------------------------------------------------------------------------


class Selection(NamedTuple):
    """Which rows: above `after` up to `last`, from `first_ns` to `last_ns` (UTC), of `services` if named.

    Of services that are named, it is also what a compacted journal keeps of before its first event.
    """

    after: int = 0
    last: int = _INTEGER_MAX
    first_ns: int = _INTEGER_MIN
    last_ns: int = _INTEGER_MAX
    services: tuple[str, ...] = ()


EVERYTHING = Selection()


def row_pages(connection: Connection, selection: Selection = EVERYTHING) -> Iterator[list[Row]]:
    """The rows of a selection in order, a page at a time; where one cannot be read, all those before it."""
    begin = anchor_of(connection)
    if begin is None:
        yield from _row_pages(connection, selection)
        return
    if selection.services:
        for page in _row_pages(connection, selection._replace(last=min(selection.last, begin.seq))):
            if rows := [row for row in page if begin.counts(row[0])]:
                yield rows
    yield from _row_pages(connection, selection._replace(after=max(selection.after, begin.seq)))


def _row_pages(connection: Connection, selection: Selection) -> Iterator[list[Row]]:
    after, *bounds, services = selection
    question = (
        f"{SELECT} WHERE seq > ? AND seq <= ? AND at_ns BETWEEN ? AND ?{_among(services)}"
        " ORDER BY seq LIMIT ?"
    )
    size = PAGE
    while True:
        try:
            rows = _next_rows(connection, question, (after, *bounds, *services, size))
        except JournalError:
            if size == 1:
                raise
            size = 1
            continue
        if not rows:
            return
        yield rows
        after = rows[-1][0]


def _next_rows(connection: Connection, question: str, values: tuple[Any, ...]) -> list[Row]:
    """The rows after the event that is the first value: where pages of the file form a ring, none would be the last."""
    after = values[0]
    rows = ask(connection, question, values, after=after)
    if rows and rows[-1][0] - after < len(rows):
        raise JournalDamaged(
            f"after event {after} the file cannot be read: its rows are in no order"
        )
    return rows


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
            if records:
                yield records
            raise
        yield records


def latest(connection: Connection, selection: Selection, count: int) -> list[Record]:
    """The last `count` records of a selection, oldest first."""
    begin = anchor_of(connection)
    if begin is not None and not selection.services:
        selection = selection._replace(after=max(selection.after, begin.seq))
    after, *bounds, services = selection
    question = (
        f"{SELECT} WHERE seq > ? AND seq <= ? AND at_ns BETWEEN ? AND ?{_among(services)}"
        " ORDER BY seq DESC LIMIT ?"
    )
    rows = ask(connection, question, (after, *bounds, *services, count))
    counting = (row for row in reversed(rows) if begin is None or begin.counts(row[0]))
    return [to_record(row) for row in counting]


def fold(connection: Connection, last: int) -> Projection:
    """The fold of every event up to number `last`, from the nearest snapshot on.

    Raises JournalError, also for an event that does not follow from those before it; Compacted where it is
    before the first that there is.
    """
    for _ in range(_FOLDS_MAX):
        begin = anchor_of(connection)
        if begin is not None and last < begin.seq:
            raise _compacted(connection, begin)
        try:
            projection = _fold(connection, last, begin)
        except JournalError:
            if begin == anchor_of(connection):
                raise
            continue
        if begin == anchor_of(connection):  # else what was to be folded was removed meanwhile
            return projection
    raise JournalError("its oldest events are removed faster than they are read; try again")


def _fold(connection: Connection, last: int, begin: Anchor | None) -> Projection:
    projection = _snapshot(connection, last, begin) or beginning(begin)
    for records in pages(connection, Selection(after=projection.seq, last=last)):
        try:
            projection.fold(records)
        # no registry wrote this: an event of a service that was never defined, say
        except (KeyError, AssertionError):
            raise JournalError(
                f"event {projection.seq + 1} does not follow from those before it; --verify says more"
            ) from None
    return projection


def beginning(begin: Anchor | None) -> Projection:
    """What there was before the first event."""
    return begin.projection() if begin is not None else Projection()


def anchor_of(connection: Connection) -> Anchor | None:
    """What a compacted journal begins with; None where nothing was removed. Raises JournalDamaged."""
    if not ask(connection, anchors.IS_THERE):  # of schema 1
        return None
    rows = ask(connection, anchors.FIND)
    return anchors.of(rows[0]) if rows else None


def _begin_of(connection: Connection) -> int:
    """The number of the last event that was removed, or counts no more."""
    return first_seq(connection) - 1


def _compacted(connection: Connection, begin: Anchor) -> Compacted:
    first = begin.seq + 1
    return Compacted(f"what was before event {first} is not known: {shortened(connection)}", first)


def _snapshot(connection: Connection, last: int, begin: Anchor | None) -> Projection | None:
    if not ask(
        connection, snapshots.ARE_THERE
    ):  # of a version that knew none, or somebody dropped them
        return None
    rows = ask(connection, snapshots.NEAREST, (last, begin.seq if begin else 0, FOLD))
    return snapshots.decode(rows[0][0]) if rows else None


def at_of(connection: Connection, seq: int) -> int:
    """When event number `seq` happened (UTC); 0 where there is none."""
    begin = anchor_of(connection)
    if begin is not None and seq == begin.seq:
        return begin.at_ns
    return _number(ask(connection, "SELECT at_ns FROM events WHERE seq = ?", (seq,)))


def service_names(connection: Connection) -> list[str]:
    """Every service that the journal tells of."""
    question = "SELECT DISTINCT service FROM events WHERE service IS NOT NULL AND seq > ?"
    begin = anchor_of(connection)
    rows = ask(connection, question, (begin.seq if begin else 0,))
    names = {name for (name,) in rows if isinstance(name, str)}  # all are, but where it is damaged
    return sorted(names.union(beginning(begin).services))


def last_seq(connection: Connection) -> int:
    """The number of the last event; 0 where there is none."""
    begin = anchor_of(connection)
    newest = _number(ask(connection, "SELECT max(seq) FROM events"))
    return max(newest, begin.seq) if begin else newest


def first_seq(connection: Connection) -> int:
    """The number of the first event that there is, or will be."""
    begin = anchor_of(connection)
    return begin.seq + 1 if begin else 1


def first_seq_at(connection: Connection, at_ns: int) -> int:
    """The number of the first event in sequence that is not earlier than `at_ns` (UTC); 0 where none is."""
    question = "SELECT seq FROM events WHERE at_ns >= ? AND seq > ? ORDER BY seq LIMIT 1"
    return _number(ask(connection, question, (at_ns, _begin_of(connection))))


def last_seq_at(connection: Connection, at_ns: int) -> int:
    """The number of the last event in sequence that is not later than `at_ns` (UTC); 0 where none is.

    Times need not follow the order of events, so all that comes after it has to be known to be later. Raises
    Compacted where it is one that was removed.
    """
    found = _last_of_then(connection, at_ns)
    begin = anchor_of(connection)
    if found or begin is None:
        return found
    if begin.at_ns > at_ns:
        raise _compacted(connection, begin)
    return begin.seq


def _last_of_then(connection: Connection, at_ns: int) -> int:
    below, begin = _INTEGER_MAX, _begin_of(connection)
    for seq, after, first_ns in _times(connection):
        if seq > below:
            continue
        if found := _last_between(connection, max(seq, begin), below, at_ns):
            return found
        below = seq
        if first_ns > at_ns:
            below = after
    return _last_between(connection, begin, below, at_ns)


def _last_between(connection: Connection, after: int, last: int, at_ns: int) -> int:
    question = (
        "SELECT seq FROM events WHERE seq > ? AND seq <= ? AND at_ns <= ? ORDER BY seq DESC LIMIT 1"
    )
    return _number(ask(connection, question, (after, last, at_ns)))


def _times(connection: Connection) -> list[Row]:
    if not ask(connection, snapshots.TIMES_ARE_THERE):
        return []
    return ask(connection, snapshots.TIMES)


def _number(rows: list[Row]) -> int:
    return rows[0][0] or 0 if rows else 0


def shortened(connection: Connection) -> str | None:
    """A sentence where the oldest events were removed: with which one it begins."""
    if anchor_of(connection) is None:
        return None
    first = first_seq(connection)
    at = f", of {rfc3339(at_ns)}" if (at_ns := at_of(connection, first)) else ""
    return f"it begins with event {first}{at}: older ones were removed"


# --- single records -------------------------------------------------------------------------------


def record_after(connection: Connection, seq: int) -> Record | None:
    """The first record above a number; None where there is none."""
    after = max(seq, _begin_of(connection))
    return _one(connection, "WHERE seq > ? ORDER BY seq LIMIT 1", (after,))


def record_up_to(connection: Connection, seq: int) -> Record | None:
    """The last record up to a number; None where there is none."""
    where = "WHERE seq <= ? AND seq > ? ORDER BY seq DESC LIMIT 1"
    return _one(connection, where, (seq, _begin_of(connection)))


def records_of(connection: Connection, seqs: Iterable[int]) -> dict[int, Record]:
    """Records by their numbers, what a compacted journal keeps included; those that are not there are left out."""
    begin = anchor_of(connection)
    counting = (seq for seq in seqs if begin is None or begin.counts(seq))
    found = (_one(connection, "WHERE seq = ?", (seq,)) for seq in counting)
    return {record.seq: record for record in found if record is not None}


def own_records(connection: Connection, after: int, last: int) -> Iterator[Record]:
    """The events of the registry itself above `after` up to `last`, in order."""
    question = f"{SELECT} WHERE service IS NULL AND seq > ? AND seq <= ? ORDER BY seq LIMIT ?"
    after = max(after, _begin_of(connection))
    while rows := _next_rows(connection, question, (after, last, PAGE)):
        yield from map(to_record, rows)
        after = rows[-1][0]


def start_up_to(connection: Connection, seq: int) -> Record | None:
    """The latest start of the registry up to an event; None where there is none."""
    where = "WHERE service IS NULL AND type = ? AND seq <= ? AND seq > ? ORDER BY seq DESC LIMIT 1"
    return _one(connection, where, (RegistryStarted.TYPE, seq, _begin_of(connection)))


def seen_before(connection: Connection, record: Record) -> Record | None:
    """The last record from before a time of which not all was written: that before a start of the registry, or
    before events of which only the outcome was kept.
    """
    if isinstance(record.event, Resynced):
        where = "WHERE seq < ? AND seq > ? AND mono_ns < ? ORDER BY seq DESC LIMIT 1"
        return _one(connection, where, (record.seq, _begin_of(connection), record.mono_ns))
    where = "WHERE seq < ? AND seq > ? AND type NOT IN (?, ?) ORDER BY seq DESC LIMIT 1"
    kinds = (JournalCreated.TYPE, JournalCopied.TYPE)
    return _one(connection, where, (record.seq, _begin_of(connection), *kinds))


def run_before(connection: Connection, service: str, last: int, count: int) -> int:
    """The number of the first event of the run of a service that is `count` runs before the latest up to event
    `last`; 0 where there are not so many, or what became of them between two events is not written.
    """
    question = (
        "SELECT seq, run FROM events WHERE service = ? AND seq < ? AND seq > ? AND type IN (?, ?, ?)"
        " ORDER BY seq DESC LIMIT ?"
    )
    kinds = (Spawned.TYPE, Adopted.TYPE, Resynced.TYPE)
    runs: list[int] = []
    seq = 0
    before, begin = last + 1, _begin_of(connection)
    while rows := ask(connection, question, (service, before, begin, *kinds, PAGE)):
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
    after = max(after, _begin_of(connection))
    chosen = f" AND (service IS NULL OR +service IN ({', '.join('?' * len(services))}))"
    question = (
        f"{SELECT} WHERE seq > ? AND seq <= ?{chosen if services else ''}"
        f" AND (actor IS NOT NULL OR type IN ({', '.join('?' * len(kinds))}))"
        " ORDER BY seq DESC LIMIT ?"
    )
    rows = ask(connection, question, (after, last, *services, *kinds, count))
    return [to_record(row) for row in reversed(rows)]


def _one(connection: Connection, where: str, values: tuple[Any, ...]) -> Record | None:
    rows = ask(connection, f"{SELECT} {where}", values)
    return to_record(rows[0]) if rows else None


# --- verification ---------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """What verification found: events `first` to `seq`, the last with `hash`, are as they were written.

    `trouble` says what is wrong after that, None when nothing is. `head_seq` is the event whose hash was
    asked for, None when none of these has it. What a compacted journal begins with is what event
    `anchored_by` says.
    """

    seq: int
    hash: str
    trouble: str | None
    head_seq: int | None = None
    first: int = 1
    anchored_by: int | None = None


def verify(connection: Connection, head: str | None = None) -> Verdict:
    """Check every row: no gap, an unbroken chain of hashes, a readable body, a legal move, an earlier cause, and that
    it follows from those before it; and the anchor.

    A cut tail leaves a chain that is whole, as does a rewrite of everything: only a `head`, the hash of
    some event noted elsewhere, shows them.
    """
    rows, head_seq, anchored_by = Chain(), None, None
    after, first = _INTEGER_MIN, 1
    try:
        begin = checked_anchor(connection)
        if begin is not None:
            rows, after, first = Chain(begin), begin.seq, begin.seq + 1
            head_seq = begin.seq if begin.hash == head else None
        for row in chain.from_iterable(_row_pages(connection, Selection(after=after))):
            trouble = rows.trouble_of(row)
            if trouble is not None:
                return Verdict(rows.seq, rows.hash, trouble, head_seq, first, anchored_by)
            if rows.hash == head:
                head_seq = rows.seq
            if begin is not None and _is_of(row, begin):
                anchored_by = rows.seq
        trouble = _damage(connection)
        if trouble is None and begin is not None and anchored_by is None:
            trouble = f"what it begins with, after event {begin.seq}, is recorded by no event of it"
        trouble = trouble or _false_snapshot(connection, begin) or _false_times(connection)
    except JournalError as error:
        trouble = str(error)
    return Verdict(rows.seq, rows.hash, trouble, head_seq, first, anchored_by)


def checked_anchor(connection: Connection) -> Anchor | None:
    """As `anchor_of`, and with what it keeps as it was written: else raises JournalDamaged."""
    begin = anchor_of(connection)
    if begin is not None:
        kept = ask(connection, anchors.KEPT, (anchors.numbers(begin.kept),))
        anchors.check(begin, kept)
    return begin


def _is_of(row: Row, begin: Anchor) -> bool:
    """Whether a row says that this is what the journal begins with."""
    if row[6] != JournalCompacted.TYPE:
        return False
    event = to_record(row).event
    assert isinstance(event, JournalCompacted)
    return (event.through, event.hash, event.digest) == (begin.seq, begin.hash, begin.digest)


def _damage(connection: Connection) -> str | None:
    ((finding,),) = ask(connection, "PRAGMA integrity_check(1)")
    return None if finding == "ok" else f"beside the events SQLite finds damage: {finding}"


def _false_snapshot(connection: Connection, begin: Anchor | None) -> str | None:
    """The hashes say nothing of snapshots: each has to be what the events come to."""
    if not ask(connection, snapshots.ARE_THERE):
        return None
    projection = beginning(begin)
    for (seq,) in ask(connection, snapshots.OURS, (FOLD, projection.seq)):
        for records in pages(connection, Selection(after=projection.seq, last=seq)):
            projection.fold(records)
        if _snapshot(connection, seq, begin) != projection:
            return f"the snapshot at event {seq} is not what the events come to: delete it from snapshots"
    return None


def _false_times(connection: Connection) -> str | None:
    for seq, after, first_ns in _times(connection):
        question = "SELECT 1 FROM events WHERE seq > ? AND seq <= ? AND at_ns < ? LIMIT 1"
        if ask(connection, question, (after, seq, first_ns)):
            return f"an event is earlier than the row {seq} of times says: delete it from times"
    return None


class Chain:
    """The rows of a journal, as they come: event `seq`, with `hash`, is the last that can be trusted.

    Each has to follow from those before it, by its number, its hash and what it tells.
    """

    def __init__(self, begin: Anchor | None = None) -> None:
        self.seq, self.hash = (begin.seq, begin.hash) if begin is not None else (0, NO_HASH)
        self._projection = beginning(begin)

    def trouble_of(self, row: Row) -> str | None:
        """What is wrong with the next row; None if nothing, then it is taken in."""
        if row[0] < 1:
            return f"a row has the number {row[0]}, and numbers begin with 1"
        if row[0] != self.seq + 1:
            return f"event {self.seq + 1} is missing: what comes next is event {row[0]}"
        if chain_hash(self.hash, row[:-1]) != row[-1]:
            return f"event {row[0]} was changed: its hash does not match its row and the one before"
        try:
            record = to_record(row)
        except JournalError as error:
            return str(error)
        trouble = self._trouble_of(record)
        if trouble is None:
            self.seq, self.hash = record.seq, row[-1]
        return trouble

    def _trouble_of(self, record: Record) -> str | None:
        seq, event = record.seq, record.event
        if isinstance(event, Moved) and not is_legal(event.TYPE, event.source, event.dest):
            return f"event {seq}: no rule leads from {event.source} to {event.dest} by {event.TYPE}"
        if record.cause is not None and record.cause >= seq:
            return f"event {seq} names event {record.cause} as its cause, which is not before it"
        try:
            self._projection.fold((record,))
        except (KeyError, AssertionError):  # no registry wrote this
            return f"event {seq} does not follow from those before it"
        return None
