"""The journal of a running registry: one writer that appends, one reader beside it that never blocks it.

A batch is one statement, so one transaction: it is there whole or not at all, and never renumbered.
No `wait_for` around an append: a cancelled wait would not cancel the statement.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import aiosqlite
import msgspec

from registry.core.events import Record
from registry.journal.errors import JournalError
from registry.journal.read import refuse_stranger
from registry.journal.rows import NO_HASH, to_record, to_rows
from registry.journal.schema import APPEND, CREATE, SELECT

_encode = msgspec.json.Encoder().encode
_WAL_BYTES_KEPT = 16_777_216


class Journal:
    """An open journal. Use `Journal.open`, and close it."""

    def __init__(self, path: Path, writer: aiosqlite.Connection, reader: aiosqlite.Connection) -> None:
        self.path = path
        self.seq = 0
        self.hash = NO_HASH
        self._writer = writer
        self._reader = reader

    @classmethod
    async def open(cls, path: Path, *, durability: str = "full") -> Journal:
        """Open or create the journal at `path`. Raises JournalError in one sentence."""
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            writer = await aiosqlite.connect(path, isolation_level=None)
            try:
                await _prepare(writer, path, durability)
                reader = await aiosqlite.connect(
                    f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None
                )
            except BaseException:
                await writer.close()
                raise
        except sqlite3.Error as error:
            raise JournalError(
                f"cannot open the journal {path}: {error};"
                " check the file and its folder, or name another in [journal] path"
            ) from None
        journal = cls(path, writer, reader)
        await journal._find_head()
        return journal

    async def _find_head(self) -> None:
        rows = await self._reader.execute_fetchall(f"{SELECT} ORDER BY seq DESC LIMIT 1")
        for row in rows:
            self.seq, self.hash = row[0], row[-1]

    async def fold_into(self, fold: Callable[[list[Record]], None]) -> None:
        """Hand every record to `fold`, a page at a time."""
        since = 0
        while records := await self.read(since=since):
            fold(records)
            since = records[-1].seq
            await asyncio.sleep(0)

    async def append(self, records: Sequence[Record]) -> None:
        """Commit records as one transaction. Raises JournalError; then nothing of them is there."""
        rows = to_rows(records, self.hash)
        try:
            await self._writer.execute(APPEND, (_encode(rows).decode(),))
        except sqlite3.Error as error:
            raise JournalError(f"cannot write to the journal {self.path}: {error}") from None
        self.seq, self.hash = rows[-1][0], rows[-1][-1]

    async def read(
        self,
        *,
        since: int = 0,
        service: str | None = None,
        type: str | None = None,  # noqa: A002  the column's name
        limit: int = 1000,
    ) -> list[Record]:
        """Records above `since`, oldest first; the last `-since` of them where it is negative."""
        conditions, values = ["seq > ?"], [max(since, 0)]
        for column, value in (("service", service), ("type", type)):
            if value is not None:
                conditions.append(f"{column} = ?")
                values.append(value)  # type: ignore[arg-type]
        newest = since < 0
        rows = await self._reader.execute_fetchall(
            f"{SELECT} WHERE {' AND '.join(conditions)} ORDER BY seq {'DESC' if newest else 'ASC'} LIMIT ?",
            (*values, min(limit, -since) if newest else limit),
        )
        records = [to_record(tuple(row)) for row in rows]
        return records[::-1] if newest else records

    async def close(self) -> None:
        """Move the WAL into the file and close; whatever was being written is written first."""
        await self._reader.close()
        try:
            await self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            await self._writer.close()


async def _prepare(writer: aiosqlite.Connection, path: Path, durability: str) -> None:
    if sqlite3.sqlite_version_info < (3, 38):
        raise JournalError(
            f"SQLite {sqlite3.sqlite_version} is too old: the journal needs 3.38 or later"
        )
    await writer.execute("PRAGMA busy_timeout = 5000")
    await writer.execute("PRAGMA journal_mode = WAL")
    await writer.execute(f"PRAGMA synchronous = {'NORMAL' if durability == 'normal' else 'FULL'}")
    await writer.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES_KEPT}")
    if await _number(writer, "SELECT count(*) FROM sqlite_schema") == 0:
        await writer.executescript(f"BEGIN IMMEDIATE;{CREATE}COMMIT;")
    refuse_stranger(
        path,
        application=await _number(writer, "PRAGMA application_id"),
        version=await _number(writer, "PRAGMA user_version"),
    )


async def _number(connection: aiosqlite.Connection, question: str) -> int:
    async with connection.execute(question) as cursor:
        row = await cursor.fetchone()
    return int(row[0]) if row is not None else 0
