"""Snapshots: what the fold of a journal came to at some events, so that not everything is folded again.

They are caches, as is `times`: one counts only where its event is still the one it was made at, and where it was
made by the fold of this version. Whoever deletes them changes no answer.
"""

from __future__ import annotations

import msgspec

from registry.core.projection import Projection

CREATE = """
CREATE TABLE IF NOT EXISTS snapshots (
    seq   INTEGER PRIMARY KEY,
    hash  TEXT NOT NULL,
    fold  INTEGER NOT NULL,
    state BLOB NOT NULL
) STRICT
"""
CREATE_TIMES = """
CREATE TABLE IF NOT EXISTS times (
    seq      INTEGER PRIMARY KEY,
    hash     TEXT NOT NULL,
    after    INTEGER NOT NULL,
    first_ns INTEGER NOT NULL
) STRICT
"""
"""Beside snapshots: no event above `after` up to `seq` is earlier (UTC) than `first_ns`, so that a time is found
without reading all that is later, though clocks are set back.
"""
KEEP_TIMES = "INSERT OR REPLACE INTO times SELECT seq, hash, ?, ? FROM events WHERE seq = ?"
TIMES = "SELECT seq, after, first_ns FROM times JOIN events USING (seq, hash) ORDER BY seq DESC"
TIMES_ARE_THERE = "SELECT 1 FROM sqlite_schema WHERE name = 'times'"
KEEP = "INSERT OR REPLACE INTO snapshots SELECT seq, hash, ?, ? FROM events WHERE seq = ?"
NEAREST = """
SELECT snapshots.state FROM snapshots JOIN events USING (seq, hash)
WHERE seq <= ? AND seq > ? AND fold = ? ORDER BY seq DESC LIMIT 1
"""
OURS = "SELECT seq FROM snapshots JOIN events USING (seq, hash) WHERE fold = ? AND seq > ? ORDER BY seq"
ARE_THERE = "SELECT 1 FROM sqlite_schema WHERE name = 'snapshots'"
REMOVE = "DELETE FROM snapshots WHERE seq = (SELECT min(seq) FROM snapshots WHERE seq <= ?)"
REMOVE_TIMES = "DELETE FROM times WHERE seq <= ?"

EVERY = 50_000
"""Events between two snapshots: folding that many takes a fraction of a second."""
EVERY_OF_ONE = 100
"""Events between two snapshots for each service: of many services a snapshot is large."""
AT_END = 1_000
"""Events that a life must have added for it to leave a snapshot when it ends."""

encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Projection).decode


def decode(state: bytes) -> Projection | None:
    """What a snapshot holds; None where that cannot be read."""
    try:
        return _decode(state)
    except msgspec.MsgspecError:
        return None


def is_due(events: int, services: int) -> bool:
    """Whether so many events since the last one ask for another."""
    return events >= max(EVERY, EVERY_OF_ONE * services)
