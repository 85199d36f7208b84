"""Questions in SQL of whoever asks, read only, and bounded in rows, bytes, time and memory.

For a process of its own: what bounds memory bounds all of SQLite in it.
"""

from __future__ import annotations

import math
import sqlite3
import time
from typing import Any, NamedTuple

import msgspec

from registry.journal import anchor, views
from registry.journal.errors import JournalError
from registry.journal.opening import Connection
from registry.journal.schema import ANCHOR

ROWS, ROWS_MAX = 1000, 100_000
"""Rows that are answered where no limit is asked for, and at most."""
TIME_S = 30.0
BYTES_MAX = 8_000_000
"""Of the rows of an answer, as they are answered: as JSON."""
HEAP_MAX = 512_000_000
VALUE_MAX = 10_000_000
_TOO_MUCH = f"this takes more than {HEAP_MAX // 10**6} MB of memory; ask for less"
_STEPS = 10_000
"""Steps of SQLite between two looks at the clock: some tens of microseconds."""
_ALLOWED = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}

_encode = msgspec.json.Encoder().encode


class Answer(NamedTuple):
    """The names of the columns, and the rows; `is_cut` says that there are more, `cut_by` what keeps them out:
    the "limit" that was asked for, or the most "rows" or the "size" that any answer has.
    """

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    is_cut: bool
    cut_by: str | None = None


class Refused(JournalError):
    """The question is wrong, forbidden or too much, in one sentence. `is_late`: it takes too long."""

    def __init__(self, message: str, *, is_late: bool = False) -> None:
        super().__init__(message)
        self.is_late = is_late


def query(connection: Connection, sql: str, limit: int = ROWS, time_s: float = TIME_S) -> Answer:
    """What a question is answered. The connection is of no other use afterwards. Raises Refused."""
    _prepare(connection, time_s)
    try:
        cursor = connection.execute(sql)
        if cursor.description is None:
            raise Refused("this asks nothing; write a select")
        columns = tuple(column[0] for column in cursor.description)
        return Answer(columns, *_rows(cursor, min(max(limit, 0), ROWS_MAX)))
    except MemoryError:
        raise Refused(
            f"this takes more than {HEAP_MAX // 10**6} MB of memory; ask for less"
        ) from None
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        raise _refused(error, time_s) from None


def _prepare(connection: Connection, time_s: float) -> None:
    """Views as this version has them, whatever the file has; from then on nothing but reading."""
    connection.text_factory = lambda text: text.decode(errors="replace")
    connection.execute(f"PRAGMA hard_heap_limit = {HEAP_MAX}")
    connection.execute("PRAGMA temp_store = MEMORY")
    if not connection.execute(anchor.IS_THERE).fetchall():  # of schema 1
        connection.execute(ANCHOR.replace("CREATE TABLE", "CREATE TEMP TABLE"))
    for name, view in views.VIEWS.items():
        connection.execute(f"DROP VIEW IF EXISTS temp.{name}")
        connection.execute(view.strip().replace("CREATE VIEW", "CREATE TEMP VIEW", 1))
    connection.execute("PRAGMA query_only = ON")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, VALUE_MAX)
    connection.set_authorizer(_judge)
    due = time.monotonic() + time_s
    connection.set_progress_handler(lambda: time.monotonic() > due, _STEPS)


def _judge(action: int, _first: str | None, name: str | None, *_more: str | None) -> int:
    is_loading = action == sqlite3.SQLITE_FUNCTION and name == "load_extension"
    if action in _ALLOWED and not is_loading:
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


def _rows(cursor: sqlite3.Cursor, limit: int) -> tuple[list[tuple[Any, ...]], bool, str | None]:
    rows: list[tuple[Any, ...]] = []
    size = 0
    for row in cursor:
        if len(rows) == limit:
            return rows, True, "rows" if limit == ROWS_MAX else "limit"
        plain = tuple(map(_plain, row))
        size += len(_encode(plain)) + len(",")
        if size > BYTES_MAX:
            return rows, True, "size"
        rows.append(plain)
    return rows, False, None


def _plain(value: Any) -> Any:
    """As JSON has it: bytes in hexadecimal, null for what is no finite number."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.hex() if isinstance(value, bytes) else value


def _refused(error: Exception, time_s: float) -> Refused:
    code = getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_INTERRUPT:
        return Refused(
            f"this takes more than {time_s:g} s; ask for less, or ask a copy of the journal",
            is_late=True,
        )
    if code in (sqlite3.SQLITE_AUTH, sqlite3.SQLITE_READONLY):
        return Refused("only questions are answered: one select, of this journal alone")
    if code == sqlite3.SQLITE_NOMEM:
        return Refused(_TOO_MUCH)
    return Refused(f"this is no question that SQLite understands: {error}")
