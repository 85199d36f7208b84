"""What a budget of worlds has to visit: every row of the lifecycle's table, left alone and killed before and after.

Before the commit: the row was in the batch that was being appended, and the daemon died before it was durable.
After it: the daemon died right after the commit, before anything was done about it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from registry.core.lifecycle import MOVES
from tests.simulation.disk import Move

LEAST = 100
"""Visits that a budget owes to each row in each way."""
WAYS = ("not killed", "killed before", "killed after")

IMPOSSIBLE: dict[Move, str] = {
    ("adopted", "Running", "Starting"): (
        "a service that runs has a pid; where the journal is behind, its run is `lost` in the same decision,"
        " before the later one is adopted from Failed"
    ),
}
"""Rows that no world can visit, each with its reason."""

SELDOM: frozenset[Move] = frozenset(
    {
        ("adopted", "Failed", "Starting"),
        ("adopted", "Restarting", "Starting"),
        ("adopted", "Stopped", "Starting"),
        ("adopted", "Stopping", "Starting"),
        ("became_unhealthy", "Running", "Running"),
        ("became_unhealthy", "Running", "Stopping"),
        ("dependents_gone", "Running", "Stopping"),
        ("dependents_gone", "Starting", "Stopping"),
        ("gave_up", "Stopped", "Failed"),
        ("lost", "Running", "Stopping"),
        ("lost", "Starting", "Stopping"),
        ("reset_requested", "Restarting", "Restarting"),
        ("restart_requested", "Failed", "Stopped"),
        ("restart_requested", "Restarting", "Stopped"),
        ("start_requested", "Restarting", "Stopped"),
        ("start_requested", "Running", "Running"),
        ("start_requested", "Starting", "Starting"),
        ("stop_announced", "Running", "Running"),
        ("stop_requested", "Running", "Running"),
        ("stop_requested", "Starting", "Starting"),
        ("stop_timed_out", "Running", "Stopping"),
        ("stop_timed_out", "Starting", "Stopping"),
    }
)
"""Rows that come seldom whatever is done for them: steered, two of three visits are killed, one before, one after."""


def rows() -> list[Move]:
    """Every row of the table that can be visited: event type, state before, state after."""
    every = (
        (kind, source.value, dest.value)
        for (kind, source), dests in MOVES.items()
        for dest in sorted(dests)
    )
    return [row for row in every if row not in IMPOSSIBLE]


class Coverage:
    """How often each row was visited, in each of WAYS."""

    def __init__(self) -> None:
        self._visits: dict[str, Counter[Move]] = {way: Counter() for way in WAYS}

    def add(self, moves: dict[Move, int], before: dict[Move, int], after: dict[Move, int]) -> None:
        """What one world visited; `after` is a part of `moves`."""
        alone, killed_before, killed_after = self._visits.values()
        alone.update(moves)
        alone.subtract(after)
        killed_before.update(before)
        killed_after.update(after)

    def least(self) -> list[tuple[int, str, Move]]:
        """All rows in all ways, the least visited first."""
        return sorted(self._all())

    def impossible(self) -> Iterable[Move]:
        """What was visited and cannot be."""
        return [row for row in IMPOSSIBLE if any(way[row] for way in self._visits.values())]

    def _all(self) -> Iterator[tuple[int, str, Move]]:
        for way, visits in self._visits.items():
            for row in rows():
                yield visits[row], way, row
