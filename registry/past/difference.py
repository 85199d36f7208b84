"""Reading what a difference is made of: the state at two moments, and who asked for what in between."""

from __future__ import annotations

from collections.abc import Collection

from registry.journal.opening import Connection
from registry.journal.read import asked_for, at_of, fold
from registry.questions.difference import ACTS, Difference, difference, moment_after
from registry.questions.refusal import INVALID, Refusal

ACTS_MAX = 200
"""The latest events between the moments that are told."""


def changes(journal: Connection, since: int, until: int, names: Collection[str] = ()) -> Difference:
    """What changed between the moments after two events, of the services named or of all.

    Raises Refusal where the second is the earlier one, JournalError.
    """
    if since > until:
        message = (
            f"the first moment, after event {since}, is later than the second, after event {until}:"
            " write the earlier first"
        )
        raise Refusal(INVALID, message)
    kinds = [kind.TYPE for kind in ACTS]
    acts = asked_for(journal, since, until, names, kinds, ACTS_MAX + 1)
    return difference(
        moment_after(since, at_of(journal, since)),
        moment_after(until, at_of(journal, until)),
        fold(journal, since),
        fold(journal, until),
        acts[-ACTS_MAX:],
        names=names,
        is_cut=len(acts) > ACTS_MAX,
    )
