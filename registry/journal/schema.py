"""The journal's SQLite schema: one append-only table, and views with plain names for people.

Version 1. A change needs a migration and a golden file. `at_ns` is UTC for people, `mono_ns` is
CLOCK_BOOTTIME, the only clock that rules see.
"""

import sqlite3
from collections.abc import Sequence
from itertools import chain
from typing import Any

import msgspec

SQLITE_VERSION = sqlite3.sqlite_version
SCHEMA_VERSION = 1
APPLICATION_ID = 0x43534A31  # "CSJ1"

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

_AT = "strftime('%Y-%m-%dT%H:%M:%fZ', {} / 1e9, 'unixepoch')"

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

CREATE VIEW transitions AS
SELECT seq, {_AT.format("at_ns")} AS at, service, run, type,
       body ->> '$.source' AS source, body ->> '$.dest' AS dest, body ->> '$.reason' AS reason,
       cause, actor ->> '$.uid' AS actor_uid, actor ->> '$.pid' AS actor_pid,
       actor ->> '$.program' AS actor_program
FROM events WHERE body ->> '$.source' IS NOT NULL;

CREATE VIEW runs AS
SELECT began.service, began.run, began.body ->> '$.pid' AS pid,
       {_AT.format("began.at_ns")} AS started,
       {_AT.format("ended.at_ns")} AS ended,
       (ended.mono_ns - began.mono_ns) / 1e9 AS duration_s,
       ended.body ->> '$.exit_code' AS exit_code, ended.body ->> '$.signal' AS signal,
       ended.body ->> '$.reason' AS reason
FROM events AS began
LEFT JOIN events AS ended
    ON ended.service = began.service AND ended.run = began.run AND ended.type IN ('exited', 'lost')
WHERE began.type = 'spawned';

PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""

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
