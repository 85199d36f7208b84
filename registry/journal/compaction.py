"""Removing the oldest events of an open journal, in steps none of which keeps its writer waiting.

First it is found what the journal is to begin with instead: the anchor. Its digest is committed as an event by whoever
numbers events; then it is put in its place, and from there on nothing up to it counts. Only then are rows removed, a
few at a time. Killed in between, the next one goes on with that. The pages of the file are used again: it grows no
more, and does not shrink.
"""

from __future__ import annotations

from typing import NamedTuple

from registry.core.events import JournalCompacted
from registry.journal import anchor, snapshots
from registry.journal.anchor import Anchor
from registry.journal.errors import Compacted, JournalError
from registry.journal.journal import Journal
from registry.journal.rows import Row
from registry.journal.schema import SCHEMA_VERSION

BATCH = 500
"""Rows that are removed by one transaction: a few milliseconds of the writer's time."""
STRIDE = 20_000
"""Rows that are looked through by one question."""
LATE_CAUSES = 10_000
"""Events after the anchor whose causes are looked for: what has to wait in between names nothing older."""


class Size(NamedTuple):
    """Bytes of the file, and of those the bytes that are in use."""

    file: int
    used: int


class Description(NamedTuple):
    """How a journal is: its file, its first and last event, what it begins with."""

    schema: int
    size: Size
    first: int
    first_ns: int
    last: int
    last_ns: int
    hash: str
    anchor: Anchor | None
    snapshots: int


class Compaction:
    """What can be removed of one open journal, and removes it."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._looked_at = 0

    async def describe(self) -> Description:
        """How the journal is. Raises JournalError."""
        journal = self._journal
        ((kept,),) = await journal.ask("SELECT count(*) FROM snapshots")
        ends = "SELECT (SELECT at_ns FROM events WHERE seq = ?), (SELECT at_ns FROM events WHERE seq = ?)"
        first, last, hash_ = journal.first, journal.seq, journal.hash
        ((first_ns, last_ns),) = await journal.ask(ends, (first, last))
        return Description(
            SCHEMA_VERSION,
            await self.size(),
            first,
            first_ns or 0,
            last,
            last_ns or 0,
            hash_,
            journal.anchor,
            kept,
        )

    # --- how far ----------------------------------------------------------------------------------

    async def size(self) -> Size:
        """How large it is, without its -wal."""
        page, pages, free = [
            int(row[0])
            for name in ("page_size", "page_count", "freelist_count")
            for row in await self._journal.ask(f"PRAGMA {name}")
        ]
        return Size(page * pages, page * (pages - free))

    async def older_than(self, at_ns: int) -> int:
        """The last event before the first one that is of `at_ns` (UTC) or later; whole decisions only."""
        journal = self._journal
        last, question = (
            journal.first - 1,
            (
                "SELECT min(seq) FILTER (WHERE at_ns >= ?), max(seq) FROM events WHERE seq > ? AND seq <= ?"
            ),
        )
        while last < journal.seq:
            ((young, reached),) = await journal.ask(question, (at_ns, last, last + STRIDE))
            if young is not None:
                return await self._decided(young - 1)
            last = reached or last + STRIDE
        return await self._decided(last)

    async def last_at(self, at_ns: int) -> int:
        """The last event in sequence that is not later than `at_ns` (UTC). Raises Compacted, JournalError."""
        first = self._journal.first
        question = "SELECT seq FROM events WHERE at_ns <= ? AND seq >= ? ORDER BY seq DESC LIMIT 1"
        for (seq,) in await self._journal.ask(question, (at_ns, first)):
            return int(seq)
        raise Compacted(f"there is no event of then: the journal begins with event {first}", first)

    async def beyond(self, bytes_max: int) -> int:
        """The last of the oldest events without which the rest would be about as large as that."""
        first, last, used = self._journal.first, self._journal.seq, (await self.size()).used
        share = max(0.0, 1 - bytes_max / used) if used else 0.0
        return await self._decided(first - 1 + int((last - first + 1) * share))

    async def _decided(self, seq: int) -> int:
        """`seq`, or the event before the decision in the midst of which it is."""
        for (decision,) in await self._journal.ask(
            "SELECT decision FROM events WHERE seq = ?", (seq + 1,)
        ):
            return min(seq, max(int(decision), self._journal.first) - 1)
        return seq

    # --- what the journal is to begin with --------------------------------------------------------

    async def anchor_after(self, seq: int) -> Anchor:
        """What the journal is to begin with in place of its events up to `seq`. Raises JournalError."""
        journal = self._journal
        projection = await journal.fold_to(seq)
        head = list(await journal.ask("SELECT hash, at_ns FROM events WHERE seq = ?", (seq,)))
        if projection.seq != seq or not head:
            raise JournalError(f"the journal {journal.path} has no event {seq}")
        roots = anchor.roots(projection)
        for question, values in (
            (anchor.READY, (anchor.numbers(sorted(roots)),)),
            (anchor.CAUSES_AFTER, (seq, seq + LATE_CAUSES, seq)),
        ):
            roots |= {row[0] for row in await journal.ask(question, values) if row[0] is not None}
        hash_, at_ns = head[0]
        return anchor.make(projection, hash_, at_ns, await self._chains(roots, seq))

    async def _chains(self, roots: set[int], seq: int) -> list[Row]:
        """The events up to `seq` that lead to `roots`; a run whose beginning is among them has its end there, too."""
        while True:
            chains = await self._journal.ask(anchor.CHAINS, (anchor.numbers(sorted(roots)), seq))
            rows = [tuple(row) for row in chains]
            kept = anchor.numbers([row[0] for row in rows])
            ends = {row[0] for row in await self._journal.ask(anchor.ENDS, (kept,))} - {None}
            if ends <= roots:
                return rows
            roots = roots | ends

    def event(self, new: Anchor) -> JournalCompacted:
        """What is to be committed before it is put in its place."""
        old = self._journal.anchor
        gone = new.seq - len(new.kept) - (old.seq - len(old.kept) if old else 0)
        return JournalCompacted(
            through=new.seq, hash=new.hash, digest=new.digest, events=max(gone, 0)
        )

    async def put(self, new: Anchor) -> None:
        """From here on the journal begins with it. Raises JournalError; then it does not."""
        await self._journal.change(anchor.PUT, new.row())
        self._journal.anchor = new
        self._looked_at = 0

    # --- removing ---------------------------------------------------------------------------------

    async def remove_some(self) -> bool:
        """Remove a few rows that do not count any more; False where there are none. Raises JournalError."""
        present = self._journal.anchor
        if present is None:
            return False
        for statement in (snapshots.REMOVE, snapshots.REMOVE_TIMES):
            if await self._journal.change(statement, (present.seq,)):
                return True
        question = "SELECT seq FROM events WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?"
        rows = await self._journal.ask(question, (self._looked_at, present.seq, BATCH))
        seqs = [int(row[0]) for row in rows]
        if not seqs:
            return False
        kept = sorted(set(seqs).intersection(present.kept))
        if len(kept) < len(seqs):
            await self._journal.change(
                "DELETE FROM events WHERE seq BETWEEN ? AND ?"
                " AND seq NOT IN (SELECT value FROM json_each(?))",
                (seqs[0], seqs[-1], anchor.numbers(kept)),
            )
        self._looked_at = seqs[-1]
        return True
