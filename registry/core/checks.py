"""What the results of a check add up to: streaks of equal results. Volatile: only changes are journaled."""

from __future__ import annotations

import msgspec

from registry.core.events import Streak
from registry.core.inputs import Probed


class Tally(msgspec.Struct, frozen=True):
    """The streak that goes on, and what its last attempt took."""

    streak: Streak
    latency_ns: int


def count(
    before: Tally | None,
    *,
    run: int,
    check: str,
    ok: bool,
    error: str | None,
    latency_ns: int,
    at_ns: int,
) -> tuple[Tally, Probed]:
    """Add one result to a tally; the new tally, and the observation it makes."""
    streak = before.streak if before else None
    if streak is not None and streak.ok is ok:
        grown, ended = Streak(ok, streak.count + 1, streak.first_at_ns, at_ns, error), None
    else:
        grown, ended = Streak(ok, 1, at_ns, at_ns, error), streak
    given = Probed(run=run, check=check, ok=ok, count=grown.count, error=error, ended=ended)
    return Tally(grown, latency_ns), given
