"""Reading what a history is made of: the events of one service from the begin of its earliest run that is asked for."""

from __future__ import annotations

from registry.core.events import Now, Record
from registry.journal.anchor import LINKS_MAX
from registry.journal.opening import Connection
from registry.journal.read import (
    fold,
    last_seq,
    last_seq_at,
    record_up_to,
    records_of,
    run_before,
)
from registry.past.stretch import begin_of, records
from registry.questions.history import History, Runs
from registry.questions.moments import Moment


def history(
    journal: Connection,
    name: str,
    *,
    since: Moment | None = None,
    until: Moment | None = None,
    limit: int | None = None,
) -> History:
    """The runs of a service some part of which lies between two times, the latest `limit`. Raises JournalError."""
    begin = begin_of(journal)
    if begin is None or (until is not None and until.last_ns < begin.at_ns):
        return History(name)
    last = last_seq_at(journal, until.last_ns) if until is not None else last_seq(journal)
    if since is not None and since.first_ns <= begin.at_ns:
        since = None
    before = record_up_to(journal, _seq_before(journal, name, since, last, limit))
    from_ = before or begin
    projection = fold(journal, from_.seq)
    service = projection.services.get(name)
    runs = Runs(
        name,
        projection,
        Now(from_.at_ns, from_.mono_ns),
        began=_causes(journal, service.spawned_seq if service is not None else None),
        led=_causes(journal, service.cause if service is not None else None),
    )
    runs.fold(records(journal, from_.seq, last, (name,)))
    return runs.answer(
        records_of(journal, sorted(runs.causes)),
        first_ns=since.first_ns if since is not None else None,
        last_ns=until.last_ns if until is not None else None,
        limit=limit,
    )


def _causes(journal: Connection, seq: int | None) -> list[Record]:
    """An event, what led to it, and so on, as far as a compacted journal keeps that."""
    found: list[Record] = []
    while seq is not None and len(found) <= LINKS_MAX:
        record = records_of(journal, (seq,)).get(seq)
        if record is None:
            break
        found.append(record)
        seq = record.cause
    return found


def _seq_before(
    journal: Connection, name: str, since: Moment | None, last: int, limit: int | None
) -> int:
    """The event before that from which on to read; 0 for the first there is.

    One run more than is asked for, for what the definition was before. Of a time all runs that began in it, and the
    two before: one of them may have gone on.
    """
    if since is not None:
        return max(0, run_before(journal, name, last_seq_at(journal, since.first_ns), 1) - 1)
    if limit is None:
        return 0
    return max(0, run_before(journal, name, last, limit) - 1)
