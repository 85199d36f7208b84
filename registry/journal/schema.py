"""The journal's SQLite schema: an append-only table of events, and the anchor, which stands for what was removed.

Version 2; version 1 had no anchor. A change needs a migration and a golden file. `at_ns` is UTC for people,
`mono_ns` is CLOCK_BOOTTIME, the only clock that rules see.
"""

import sqlite3
from collections.abc import Sequence
from itertools import chain
from typing import Any

import msgspec

SQLITE_VERSION = sqlite3.sqlite_version
SCHEMA_VERSION = 2
APPLICATION_ID = 0x43534A31  # "CSJ1"

UNREADABLE = (sqlite3.Error, UnicodeDecodeError, MemoryError)
"""What reading a damaged file raises: a name or a text in it may be no UTF-8 any more, and a row may say that it is
longer than all memory.
"""


def complaint_of(error: Exception) -> str:
    """What SQLite says; of memory it says nothing."""
    return str(error) or "a row of it says that it is longer than all memory"


COLUMNS = (
    "seq",
    "at_ns",
    "mono_ns",
    "decision",
    "service",
    "run",
    "type",
    "cause",
    "actor",
    "body",
    "hash",
)

ANCHOR = """
CREATE TABLE anchor (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    seq    INTEGER NOT NULL,
    hash   TEXT NOT NULL,
    at_ns  INTEGER NOT NULL,
    state  TEXT NOT NULL,
    kept   TEXT NOT NULL,
    digest TEXT NOT NULL
) STRICT;
"""

CREATE = f"""
CREATE TABLE events (
    seq      INTEGER PRIMARY KEY,
    at_ns    INTEGER NOT NULL,
    mono_ns  INTEGER NOT NULL,
    decision INTEGER NOT NULL,
    service  TEXT,
    run      INTEGER,
    type     TEXT NOT NULL,
    cause    INTEGER,
    actor    TEXT,
    body     TEXT NOT NULL,
    hash     TEXT NOT NULL
) STRICT;

CREATE INDEX events_by_service ON events (service, seq);

{ANCHOR}
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""

MIGRATIONS = {1: f"{ANCHOR} PRAGMA user_version = 2;"}
"""What makes of each earlier version the one after it."""

VALUES_MAX = 128
"""Rows that are appended as values; beyond, SQLite would have too many of them to bind."""
_INSERT = f"INSERT INTO events ({', '.join(COLUMNS)}) "
_VALUES = f"({', '.join('?' * len(COLUMNS))})"
_FROM_JSON = (
    "SELECT "
    + ", ".join(f"value ->> {index}" for index in range(len(COLUMNS)))
    + " FROM json_each(?) ORDER BY key"
)


def appending(rows: Sequence[tuple[Any, ...]]) -> tuple[str, tuple[Any, ...]]:
    """The statement that appends rows, and its values: one, so one transaction and one hop to the connection's thread.

    Up to VALUES_MAX rows it takes their columns in turn, in half the time of all of them as one JSON array.
    """
    if len(rows) > VALUES_MAX:
        return _INSERT + _FROM_JSON, (msgspec.json.encode(rows).decode(),)
    values = ",".join([_VALUES] * len(rows))
    return f"{_INSERT}VALUES {values}", tuple(chain.from_iterable(rows))


SELECT = f"SELECT {', '.join(COLUMNS)} FROM events"
