"""The journal of a running registry: one writer that appends, one reader beside it that never blocks it.

A batch is one statement, so one transaction: it is there whole or not at all, and never renumbered.
No `wait_for` around an append: a cancelled wait would not cancel the statement.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import aiosqlite

from registry.core.events import Record
from registry.core.projection import FOLD, Projection
from registry.journal import anchor, snapshots, views
from registry.journal.anchor import Anchor
from registry.journal.errors import JournalDamaged, JournalError
from registry.journal.opening import refuse_stranger
from registry.journal.rows import NO_HASH, Row, to_record, to_rows
from registry.journal.schema import (
    CREATE,
    MIGRATIONS,
    SCHEMA_VERSION,
    SELECT,
    UNREADABLE,
    appending,
    complaint_of,
)

_WAL_BYTES_KEPT = 16_777_216
_WAL_PAGES, _WAL_HEADER_BYTES, _FRAME_BYTES = 1200, 32, 24 + 4096
"""It is moved into the file at 1,000 pages, and begun again: https://www.sqlite.org/fileformat2.html#walformat"""
WAL_BYTES_READY = _WAL_HEADER_BYTES + _WAL_PAGES * _FRAME_BYTES
"""A WAL is so long from its beginning on. For a commit that makes it longer the file system commits, too, and ext4
writes first what others have put into new blocks of their files: beside a flood of logs that took 5 ms of 6.
"""
_NEVER_NS = 2**63 - 1
_STEP = 100
"""Events that are read at once: more would keep a commit waiting, which needs the interpreter, too."""
_SMALL_CACHE = "PRAGMA cache_size = -500"
"""500 KiB of pages for each connection: with SQLite's 2 MB nothing is faster, as the system has them in memory, too."""
_STATEMENTS_KEPT = 16
"""Those of many rows are large."""


class Journal:
    """An open journal. Use `Journal.open`, and close it."""

    def __init__(
        self, path: Path, writer: aiosqlite.Connection, reader: aiosqlite.Connection
    ) -> None:
        self.path = path
        self.seq = 0
        self.hash = NO_HASH
        self.anchor: Anchor | None = None
        self._snapshot_seq = 0
        self._times_after = 0
        self._first_ns = self._batch_first_ns = _NEVER_NS
        self._writer = writer
        self._reader = reader
        self._appending = asyncio.Lock()
        self._had_company = False
        self._unfollowed: tuple[Sequence[Row], Sequence[Record]] | None = None
        self._waiting: list[tuple[Sequence[Record], asyncio.Future[None]]] = []
        self._append_task: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, path: Path, *, durability: str = "full", is_ours: bool = False) -> Journal:
        """Open or create the journal at `path`. Raises JournalError, JournalDamaged: one sentence.

        `is_ours`: it was a journal of ours, so it is damaged where it is no database at all.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise JournalError(
                f"cannot open the journal {path}: its folder cannot be made: {error.strerror};"
                " name another in [journal] path"
            ) from None
        # connections are threads: one that is left open would keep the process from ending
        async with AsyncExitStack() as opened:
            try:
                # what cannot be opened is told before there is a thread
                sqlite3.connect(path).close()
                writer = await aiosqlite.connect(
                    path, isolation_level=None, cached_statements=_STATEMENTS_KEPT
                )
                opened.push_async_callback(writer.close)
                await _prepare(writer, path, durability)
                uri = f"{path.absolute().as_uri()}?mode=ro"
                reader = await aiosqlite.connect(uri, uri=True, isolation_level=None)
                opened.push_async_callback(reader.close)
                await reader.execute(_SMALL_CACHE)
                journal = cls(path, writer, reader)
                await journal._find_head()
            except UNREADABLE as error:
                raise _complaint(error, is_ours=is_ours)(
                    f"cannot open the journal {path}: {complaint_of(error)};"
                    " check the file and its folder, or name another in [journal] path"
                ) from None
            opened.pop_all()
        return journal

    async def _find_head(self) -> None:
        for found in await self.ask(anchor.FIND):
            self.anchor = anchor.of(tuple(found))
            kept = await self.ask(anchor.KEPT, (anchor.numbers(self.anchor.kept),))
            anchor.check(self.anchor, [tuple(row) for row in kept])
            self.seq, self.hash = self.anchor.seq, self.anchor.hash
        for row in await self.ask(f"{SELECT} WHERE seq > ? ORDER BY seq DESC LIMIT 1", (self.seq,)):
            self.seq, self.hash = row[0], row[-1]
            self._times_after = self.seq
            if not isinstance(self.hash, str):  # whatever is appended would follow from nothing
                raise JournalDamaged(
                    f"the journal {self.path}: event {self.seq} has no hash;"
                    " tools/replay --verify shows how far it can be trusted"
                )

    @property
    def first(self) -> int:
        """The number of the first event that there is, or will be."""
        return self.anchor.seq + 1 if self.anchor else 1

    async def fold(self) -> Projection:
        """The fold of everything, from the latest snapshot on. Raises JournalError, JournalDamaged."""
        projection = await self._fold_begun(self.seq)
        self._snapshot_seq = self._times_after = projection.seq
        async for records in self._folding(projection, self.seq):
            self._note_times(records)
            await self.keep_snapshot(projection)
        return projection

    async def fold_to(self, last: int) -> Projection:
        """The fold of everything up to event `last`, which is not before the first. Raises as `fold` does."""
        projection = await self._fold_begun(last)
        async for _records in self._folding(projection, last):
            pass
        return projection

    async def _fold_begun(self, last: int) -> Projection:
        """From where the events up to `last` are to be folded: a snapshot, the anchor, or nothing."""
        begin = self.anchor.seq if self.anchor else 0
        for (state,) in await self.ask(snapshots.NEAREST, (last, begin, FOLD)):
            if (projection := snapshots.decode(state)) is not None:
                return projection
        return self.beginning()

    def beginning(self) -> Projection:
        """What there was before the first event that there is."""
        return self.anchor.projection() if self.anchor else Projection()

    async def _folding(self, projection: Projection, last: int) -> AsyncIterator[list[Record]]:
        """Fold page by page; what else there is to do has its turn in between."""
        while records := await self.read(
            since=projection.seq, limit=min(1000, last - projection.seq), step=1000
        ):
            try:
                projection.fold(records)
            # no registry wrote this: an event of a service that was never declared, say
            except (KeyError, AssertionError):
                raise JournalDamaged(
                    f"the journal {self.path}: event {projection.seq + 1} does not follow from those before it;"
                    " tools/replay --verify shows how far it can be trusted"
                ) from None
            yield records
            await asyncio.sleep(0)

    async def keep_snapshot(self, projection: Projection, *, at_end: bool = False) -> None:
        """Keep the fold for those who start later, where that is due and all of it is written.

        What cannot be kept is done without.
        """
        events = projection.seq - self._snapshot_seq
        is_due = snapshots.is_due(events, len(projection.services))
        if projection.seq > self.seq or not (is_due or (at_end and events >= snapshots.AT_END)):
            return
        self._snapshot_seq = projection.seq
        after, self._times_after = self._times_after, projection.seq
        # of the latest batch some may be beyond the projection, so it counts for what follows, too
        first_ns, self._first_ns = self._first_ns, self._batch_first_ns
        state = snapshots.encode(projection)
        with suppress(sqlite3.Error):
            await self._writer.execute(snapshots.KEEP, (FOLD, state, projection.seq))
            await self._writer.execute(snapshots.KEEP_TIMES, (after, first_ns, projection.seq))

    def _note_times(self, records: Sequence[Record]) -> None:
        self._batch_first_ns = min(record.at_ns for record in records)
        self._first_ns = min(self._first_ns, self._batch_first_ns)

    async def append(self, records: Sequence[Record]) -> None:
        """Commit records as one transaction, with what others append meanwhile. Raises JournalError; then nothing of
        them is there.
        """
        if not records:
            return
        if not self._had_company and not self._waiting and not self._appending.locked():
            # alone, as a rule: a task would take two turns of the loop more
            async with self._appending:
                await self._append(records)
            return
        loop = asyncio.get_running_loop()
        self._waiting.append((records, committed := loop.create_future()))
        if len(self._waiting) == 1:
            # a cancelled wait would not cancel the statement: it is carried out, and followed, all the same
            self._append_task = loop.create_task(self._append_waiting())
        await committed

    async def _append_waiting(self) -> None:
        """Commit what waits by now; who comes meanwhile is committed next, all of them together."""
        async with self._appending:
            batch, self._waiting = self._waiting, []
            # of many who append again and again the first to come would go alone
            self._had_company = len(batch) > 1
            failure = await self._failure([each for records, _ in batch for each in records])
            for records, committed in batch:
                failed = failure
                if failure is not None and len(batch) > 1:
                    # whose fault it is does the others no harm
                    failed = await self._failure(records)
                if committed.done():  # nobody waits any more
                    continue
                if failed is None:
                    committed.set_result(None)
                else:
                    committed.set_exception(failed)

    async def _failure(self, records: Sequence[Record]) -> Exception | None:
        """Append; why that failed, or None."""
        try:
            await self._append(records)
        except Exception as error:
            return error
        return None

    async def _append(self, records: Sequence[Record]) -> None:
        try:
            if self._unfollowed is not None:
                await self._follow(*self._unfollowed)
            rows = to_rows(records, self.hash)
            self._unfollowed = rows, records
            await self._writer.execute(*appending(rows))
        except UNREADABLE as error:
            raise JournalError(
                f"cannot write to the journal {self.path}: {complaint_of(error)}"
            ) from None
        self._appended(rows, records)

    def _appended(self, rows: Sequence[Row], records: Sequence[Record]) -> None:
        self.seq, self.hash = rows[-1][0], rows[-1][-1]
        self._note_times(records)
        self._unfollowed = None

    async def _follow(self, rows: Sequence[Row], records: Sequence[Record]) -> None:
        """What became of rows whose wait ended otherwise: where it is cancelled, the statement is not."""
        seq, hash_ = rows[-1][0], rows[-1][-1]
        found = await self._writer.execute_fetchall("SELECT hash FROM events WHERE seq = ?", (seq,))
        if [tuple(row) for row in found] == [(hash_,)]:
            self._appended(rows, records)
        self._unfollowed = None

    async def read(
        self,
        *,
        since: int = 0,
        service: str | None = None,
        type: str | Sequence[str] | None = None,
        limit: int = 1000,
        step: int = _STEP,
    ) -> list[Record]:
        """Records above `since`, oldest first; the last `-since` of them where it is negative. `step` at once."""
        while True:
            begun_with = self.anchor
            records = await self._read(since, service, type, limit, step)
            if self.anchor is begun_with:  # else some were removed meanwhile, it may be in between
                return records

    async def _read(
        self,
        since: int,
        service: str | None,
        type: str | Sequence[str] | None,
        limit: int,
        step: int,
    ) -> list[Record]:
        newest = since < 0
        most = min(limit, -since) if newest else limit
        at = _NEVER_NS if newest else max(since, self.first - 1 if service is None else 0)
        conditions = ["seq < ?" if newest else "seq > ?"]
        values: list[int | str] = []
        if self.anchor is not None and service is not None:
            # what is kept of before the first event counts, too
            conditions.append("(seq > ? OR seq IN (SELECT value FROM json_each(?)))")
            values += [self.anchor.seq, anchor.numbers(self.anchor.kept)]
        elif self.anchor is not None and newest:
            conditions.append("seq > ?")
            values.append(self.anchor.seq)
        for column, wanted in (("service", service), ("type", type)):
            if wanted is not None:
                some = [wanted] if isinstance(wanted, str) else wanted
                conditions.append(f"{column} IN ({', '.join('?' * len(some))})")
                values += some
        question = f"{SELECT} WHERE {' AND '.join(conditions)} ORDER BY seq {'DESC' if newest else 'ASC'} LIMIT ?"
        records: list[Record] = []
        while (left := most - len(records)) > 0:
            asked = min(left, step)
            rows = list(await self.ask(question, (at, *values, asked)))
            records += self._converted(rows)
            if rows:
                self._check_order(at, rows, newest=newest)
                at = records[-1].seq
            if len(rows) < asked:
                break
        return records[::-1] if newest else records

    def _check_order(self, at: int, rows: Sequence[sqlite3.Row], *, newest: bool) -> None:
        """Where pages of a damaged file form a ring, none is the last."""
        passed = at - rows[-1][0] if newest else rows[-1][0] - at
        if passed < len(rows):
            raise JournalDamaged(
                f"the journal {self.path}: beside event {at} its rows are in no order;"
                " tools/replay --verify shows how far it can be trusted"
            )

    def _converted(self, rows: Iterable[sqlite3.Row]) -> list[Record]:
        try:
            return [to_record(tuple(row)) for row in rows]
        except JournalError as error:
            raise error.__class__(f"the journal {self.path}: {error}") from None

    async def ask(self, question: str, values: tuple[object, ...] = ()) -> Iterable[sqlite3.Row]:
        """What a question in SQL is answered, beside the writer. Raises JournalError, JournalDamaged."""
        try:
            return await self._reader.execute_fetchall(question, values)
        except UNREADABLE as error:
            raise _complaint(error)(
                f"cannot read the journal {self.path}: {complaint_of(error)};"
                " tools/replay --verify shows how far it can be trusted"
            ) from None

    async def change(self, statement: str, values: tuple[object, ...] = ()) -> int:
        """Change what is no event, or remove events, as one transaction; how many rows. Raises JournalError."""
        return await asyncio.shield(asyncio.ensure_future(self._change(statement, values)))

    async def _change(self, statement: str, values: tuple[object, ...]) -> int:
        async with self._appending:
            try:
                cursor = await self._writer.execute(statement, values)
            except UNREADABLE as error:
                raise JournalError(
                    f"cannot write to the journal {self.path}: {complaint_of(error)}"
                ) from None
            return cursor.rowcount

    async def close(self) -> None:
        """Move the WAL into the file and close; whatever was being written is written first."""
        await self._reader.close()
        if self._append_task is not None:
            await self._append_task
        # a reader may hold it, or the disk be full: what is committed is safe in the WAL, too
        async with self._appending:
            with suppress(sqlite3.Error):
                await self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            await self._writer.close()


def _complaint(error: Exception, *, is_ours: bool = False) -> type[JournalError]:
    """Damage where SQLite says so, or where our own file lacks what we put there."""
    damage = [sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_TOOBIG]
    if is_ours:
        damage.append(sqlite3.SQLITE_NOTADB)
    if not isinstance(error, sqlite3.Error):
        return JournalDamaged
    code = getattr(error, "sqlite_errorcode", None)
    return JournalDamaged if code is not None and code & 0xFF in damage else JournalError


async def _prepare(writer: aiosqlite.Connection, path: Path, durability: str) -> None:
    if sqlite3.sqlite_version_info < (3, 38):
        raise JournalError(
            f"SQLite {sqlite3.sqlite_version} is too old: the journal needs 3.38 or later"
        )
    await writer.execute("PRAGMA busy_timeout = 5000")
    application = await _number(writer, "PRAGMA application_id")
    is_new = not application and not await _number(writer, "SELECT count(*) FROM sqlite_schema")
    version = SCHEMA_VERSION
    if not is_new:  # before anything of it is changed
        version = await _number(writer, "PRAGMA user_version")
        refuse_stranger(path, application=application, version=version)
    await writer.execute("PRAGMA journal_mode = WAL")
    await writer.execute(f"PRAGMA synchronous = {'NORMAL' if durability == 'normal' else 'FULL'}")
    await writer.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES_KEPT}")
    await writer.execute(_SMALL_CACHE)
    if is_new:
        await writer.executescript(f"BEGIN IMMEDIATE;{CREATE}COMMIT;")
    for earlier in range(version, SCHEMA_VERSION):
        await writer.executescript(f"BEGIN IMMEDIATE;{MIGRATIONS[earlier]}COMMIT;")
    await writer.execute(snapshots.CREATE)
    await writer.execute(snapshots.CREATE_TIMES)
    present = await writer.execute_fetchall(views.PRESENT)
    await writer.executescript(views.renewal([tuple(row) for row in present]))
    await asyncio.to_thread(_lengthen, path.with_name(f"{path.name}-wal"))


def _lengthen(wal: Path) -> None:
    """Zeros are no frame: whoever reads a WAL ends there. Where there is no room for them it grows as it needs to."""
    with suppress(OSError), wal.open("r+b") as file:
        length = file.seek(0, os.SEEK_END)
        file.write(bytes(max(0, WAL_BYTES_READY - length)))
        file.flush()
        os.fsync(file.fileno())


async def _number(connection: aiosqlite.Connection, question: str) -> int:
    async with connection.execute(question) as cursor:
        row = await cursor.fetchone()
    return int(row[0]) if row is not None else 0
