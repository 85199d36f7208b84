"""A stretch of the journal, read for questions that fold it: where it begins, its events, what is known of its end.

Of a few services only their own events are read, and what tells how time passed and when a registry ran.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator
from itertools import chain
from typing import NamedTuple

from registry.core.events import (
    JournalCopied,
    JournalCreated,
    Now,
    Record,
    RegistryStarted,
    Resynced,
)
from registry.core.projection import Projection
from registry.journal.opening import Connection
from registry.journal.read import (
    Selection,
    anchor_of,
    fold,
    last_seq,
    last_seq_at,
    own_records,
    pages,
    record_after,
    record_up_to,
    seen_before,
)
from registry.questions.moments import Moment

_FEW = 8
"""Of more services than this, reading everything is quicker."""


class Begin(NamedTuple):
    """The event after which all events are there, and when it happened: the first, or the last that was removed."""

    seq: int
    at_ns: int
    mono_ns: int


class Stretch(NamedTuple):
    """From `beginning`, when event `after` was the last one, up to event `last`; its times in UTC.

    `lead_ns` of it lie before the journal. It is empty where the journal, or all of it, lies elsewhere: then
    `beginning` is None.
    """

    after: int
    last: int
    beginning: Now | None
    first_ns: int
    last_ns: int
    lead_ns: int = 0


def stretch(
    journal: Connection, since: Moment | None, until: Moment | None, now: Now | None
) -> Stretch:
    """What lies between two times: by default all of the journal, up to `now` where its registry runs."""
    begin = begin_of(journal)
    newest = record_up_to(journal, last_seq(journal))
    if begin is None or newest is None:
        at_ns = now.at_ns if now is not None else 0
        first_ns = since.first_ns if since is not None else at_ns
        return Stretch(0, 0, None, first_ns, max(first_ns, until.last_ns if until else at_ns))
    last_ns = until.last_ns if until is not None else now.at_ns if now is not None else newest.at_ns
    if now is not None:
        last_ns = min(last_ns, now.at_ns)
    first_ns = since.first_ns if since is not None else begin.at_ns
    if max(first_ns, last_ns) < begin.at_ns:
        return Stretch(0, 0, None, first_ns, max(first_ns, last_ns))
    last = last_seq_at(journal, last_ns) if until is not None else newest.seq
    if first_ns <= begin.at_ns:
        return _from_the_begin(begin, first_ns, last, last_ns)
    before = record_up_to(journal, last_seq_at(journal, first_ns - 1)) or begin
    beginning = Now(first_ns, before.mono_ns + first_ns - before.at_ns)
    return Stretch(before.seq, max(last, before.seq), beginning, first_ns, max(first_ns, last_ns))


def _from_the_begin(begin: Begin, first_ns: int, last: int, last_ns: int) -> Stretch:
    beginning = Now(begin.at_ns, begin.mono_ns)
    last_ns = max(begin.at_ns, last_ns)
    return Stretch(begin.seq, last, beginning, first_ns, last_ns, begin.at_ns - first_ns)


def state_before(journal: Connection, span: Stretch) -> Projection:
    """What the journal comes to at the beginning of a stretch."""
    return fold(journal, span.after)


def records(
    journal: Connection, after: int, last: int, names: Collection[str] = ()
) -> Iterator[Record]:
    """The events above `after` up to `last`, in order; where services are named, those that concern them.

    With these comes what was written last before each start of the registry, and the last event of all: they tell how
    much time passed.
    """
    if not names or len(names) > _FEW:
        yield from chain.from_iterable(pages(journal, Selection(after=after, last=last)))
        return
    theirs = [
        chain.from_iterable(pages(journal, Selection(after=after, last=last, services=(name,))))
        for name in names
    ]
    own = own_records(journal, after, last)
    for record in heapq.merge(own, *theirs, key=lambda record: record.seq):
        if isinstance(record.event, RegistryStarted | Resynced):
            before = seen_before(journal, record)
            if before is not None and before.seq > after and _is_of_others(before, names):
                yield before
        yield record
    final = record_up_to(journal, last)
    if final is not None and final.seq > after and _is_of_others(final, names):
        yield final


def begin_of(journal: Connection) -> Begin | None:
    """Where the journal begins; None where it holds no event.

    The time since boot of an event that was removed is reckoned from that of the next: one in another boot tells
    nothing of it, and is not measured by it either.
    """
    first, anchor = record_after(journal, 0), anchor_of(journal)
    if first is None:
        return None
    if anchor is None:
        return Begin(first.seq, first.at_ns, first.mono_ns)
    following = life_after(journal, anchor.seq) or first
    passed_ns = max(0, following.at_ns - anchor.at_ns)
    return Begin(anchor.seq, anchor.at_ns, following.mono_ns - passed_ns)


def life_after(journal: Connection, seq: int) -> Record | None:
    """The first event above a number that tells of which boot it is; None where there is none."""
    following = record_after(journal, seq)
    while following is not None and isinstance(following.event, JournalCreated | JournalCopied):
        following = record_after(journal, following.seq)
    return following


def _is_of_others(record: Record, names: Collection[str]) -> bool:
    return record.service is not None and record.service not in names
