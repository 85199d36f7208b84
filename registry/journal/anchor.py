"""The anchor: what a compacted journal begins with in place of the events that were removed.

It is truth, not a cache: what the fold of the removed events came to (as JSON, which later versions read, too), the
hash that the chain goes on from, and which earlier events are still there, because what happened since, or will yet,
leads back to them. Rows up to its event that it does not name count for nothing: they are being removed. An event of
the chain, `journal_compacted`, repeats its digest.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from registry.core.digest import blake2b
from registry.core.projection import Projection
from registry.journal.errors import JournalDamaged
from registry.journal.rows import Row
from registry.journal.schema import SELECT

LINKS_MAX = 64
"""Causes of a cause that are kept, at most."""

IS_THERE = "SELECT 1 FROM sqlite_schema WHERE name = 'anchor'"
FIND = "SELECT seq, hash, at_ns, state, kept, digest FROM anchor"
PUT = "INSERT OR REPLACE INTO anchor VALUES (1, ?, ?, ?, ?, ?, ?)"
KEPT = f"{SELECT} WHERE seq IN (SELECT value FROM json_each(?)) ORDER BY seq"
READY = """
SELECT (SELECT seq FROM events WHERE service = began.service AND seq > began.seq AND type = 'became_ready' LIMIT 1)
FROM events AS began WHERE seq IN (SELECT value FROM json_each(?))
"""
ENDS = """
SELECT (SELECT seq FROM events WHERE service = began.service AND run = began.run AND seq > began.seq
        AND type IN ('exited', 'lost') ORDER BY seq LIMIT 1)
FROM events AS began WHERE type = 'spawned' AND seq IN (SELECT value FROM json_each(?))
"""
CAUSES_AFTER = "SELECT DISTINCT cause FROM events WHERE seq > ? AND seq <= ? AND cause <= ?"
CHAINS = f"""
WITH RECURSIVE chain (seq, links) AS (
    SELECT value, 0 FROM json_each(?)
    UNION
    SELECT cause, links + 1 FROM chain JOIN events USING (seq)
    WHERE cause IS NOT NULL AND links < {LINKS_MAX}
)
{SELECT} WHERE seq IN (SELECT seq FROM chain) AND seq <= ? ORDER BY seq
"""

_encode = msgspec.json.Encoder().encode
_decode_state = msgspec.json.Decoder(Projection).decode
_decode_kept = msgspec.json.Decoder(tuple[int, ...]).decode


class Anchor(msgspec.Struct, frozen=True):
    """The state after event `seq`, which happened at `at_ns` (UTC) and had `hash`; `kept` are earlier events."""

    seq: int
    hash: str
    at_ns: int
    state: str
    kept: tuple[int, ...]
    digest: str

    def projection(self) -> Projection:
        """What the events up to it came to. Raises JournalDamaged."""
        try:
            return _decode_state(self.state)
        except msgspec.MsgspecError as error:
            raise JournalDamaged(f"what the journal begins with cannot be read: {error}") from None

    def row(self) -> Row:
        """Its columns."""
        return (self.seq, self.hash, self.at_ns, self.state, numbers(self.kept), self.digest)

    def counts(self, seq: int) -> bool:
        """Whether a row of this number is part of the journal."""
        return seq > self.seq or seq in self.kept


def numbers(seqs: Sequence[int]) -> str:
    """Sequence numbers as SQL is handed them."""
    return _encode(seqs).decode()


def make(projection: Projection, hash_: str, at_ns: int, kept: Sequence[Row]) -> Anchor:
    """The anchor at the event that a fold has come to, with the earlier rows that are kept."""
    state = _encode(projection).decode()
    digest = _digest((projection.seq, hash_, at_ns, state), kept)
    return Anchor(projection.seq, hash_, at_ns, state, tuple(row[0] for row in kept), digest)


def of(row: Row) -> Anchor:
    """The anchor that a row holds. Raises JournalDamaged."""
    try:
        fields = dict(zip(Anchor.__struct_fields__, row, strict=True))
        return msgspec.convert({**fields, "kept": _decode_kept(fields["kept"])}, Anchor)
    except (msgspec.MsgspecError, TypeError, ValueError) as error:
        raise JournalDamaged(f"what the journal begins with cannot be read: {error}") from None


def check(anchor: Anchor, kept: Sequence[Row]) -> None:
    """Raise JournalDamaged unless it is as it was written, and so are the rows that it keeps."""
    columns = (anchor.seq, anchor.hash, anchor.at_ns, anchor.state)
    if tuple(row[0] for row in kept) != anchor.kept or _digest(columns, kept) != anchor.digest:
        raise JournalDamaged(
            f"what the journal begins with, after event {anchor.seq}, was changed: it does not match its digest"
        )


def _digest(columns: Row, kept: Sequence[Row]) -> str:
    return blake2b(_encode((columns, kept)), digest_size=20).hexdigest()


def roots(projection: Projection) -> set[int]:
    """The events that whatever happens next may name as its cause, and those that began what runs."""
    found: set[int | None] = set()
    for service in projection.services.values():
        found |= {service.cause, service.spawned_seq}
        found |= {check.seq for check in service.checks.values()}
        found |= {request.seq for request in service.requests}
    return {seq for seq in found if seq is not None}
