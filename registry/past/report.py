"""Reading what reports are made of: a stretch of the journal, and what is known of the time after it."""

from __future__ import annotations

from collections.abc import Collection

from registry.core.events import Now, Record, RegistryStarted
from registry.journal.opening import Connection
from registry.past.stretch import life_after, records, state_before, stretch
from registry.questions.elapsed import Elapsed
from registry.questions.moments import Moment
from registry.questions.report import Known, Ledger, Report, nothing


def report(
    journal: Connection,
    names: Collection[str] = (),
    *,
    since: Moment | None = None,
    until: Moment | None = None,
    now: Now | None = None,
) -> Report:
    """How available services were between two times: those named, or, where none is, all.

    `now` is given where the journal's registry runs: what its last event left is so still. Raises JournalError.
    """
    span = stretch(journal, since, until, now)
    if span.beginning is None:
        return nothing(span.first_ns, span.last_ns)
    ledger = Ledger(state_before(journal, span), span.beginning, names, span.lead_ns)
    ledger.fold(records(journal, span.after, span.last, names))
    following = life_after(journal, span.last)
    if until is None and following is None and now is not None:
        return ledger.close(span.last_ns, ledger.elapsed.until_ns(now), Known.ALL)
    tail_ns, known = _tail(ledger.elapsed, following, span.last_ns, now)
    return ledger.close(span.last_ns, tail_ns, known)


def _tail(
    elapsed: Elapsed, following: Record | None, last_ns: int, now: Now | None
) -> tuple[int, Known]:
    """How much of the period comes after its last event, and what is known of that."""
    asked_ns = elapsed.utc_until_ns(last_ns)
    if following is not None:
        known = Known.RESTING if isinstance(following.event, RegistryStarted) else Known.ALL
        return min(asked_ns, elapsed.passed_ns(following)), known
    if now is not None:
        return min(asked_ns, elapsed.until_ns(now)), Known.ALL
    return asked_ns, Known.NOTHING
