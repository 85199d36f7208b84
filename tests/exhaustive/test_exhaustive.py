"""All states of small systems, to a depth: every rule holds in each, and how many there are is known."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from registry.core import events as ev
from registry.core.lifecycle import MOVES
from tests.exhaustive.scenarios import every, some
from tests.exhaustive.search import Scenario, Search
from tests.exhaustive.states import Pool, Run, World
from tests.exhaustive.steps import Steps
from tests.exhaustive.writer import Writer


@pytest.mark.timeout(240)
def test_every_state_is_sound_and_comes_to_rest_and_every_near_row_is_visited() -> None:
    found = [Search(scenario).run(depth) for scenario, depth in some()]
    assert {each.scenario: (each.states, each.transitions, each.rests) for each in found} == COUNTS
    moves: Counter[tuple[str, str, str]] = Counter()
    for each in found:
        moves += each.moves
    rows = {(kind, source, dest) for (kind, source), dests in MOVES.items() for dest in dests}
    assert rows - set(moves) == FARTHER


@pytest.mark.parametrize("scenario", every()[::7], ids=lambda scenario: scenario.name)
def test_what_states_leave_out_makes_no_difference_to_any_decision(scenario: Scenario) -> None:
    chance = Random(scenario.name)
    for _ in range(3):
        short, exact = _Walk(scenario, is_exact=False), _Walk(scenario, is_exact=True)
        for _ in range(40):
            ways = short.look()
            exact_ways = exact.look()
            assert short.decided == exact.decided
            way = chance.choice(sorted(ways))
            short.world, exact.world = ways[way], exact_ways[way]


class _Walk:
    """One way through the states of a scenario; `decided` is all that could be decided where it is."""

    def __init__(self, scenario: Scenario, *, is_exact: bool) -> None:
        names = sorted({each.name for file in scenario.files for each in file})
        pool = Pool(names, is_exact=is_exact)
        writer = Writer(scenario.files, pool)
        writer.decided = self._decided
        self._steps = Steps(writer, scenario.troubles, scenario.batch_max)
        nobody = (-1,) * len(names)
        self.world = World(nobody, nobody, tuple(Run() for _ in names))
        self.decided: list[tuple[object, ...]] = []

    def look(self) -> dict[tuple[str, int], World]:
        """What may happen, by its name, and as the how manieth of that name."""
        self.decided = []
        seen: Counter[str] = Counter()
        ways = {}
        for step in self._steps.of(self.world):
            ways[step.what, seen[step.what]] = step.world
            seen[step.what] += 1
        return ways

    def _decided(self, records: list[ev.Record]) -> None:
        for record in records:
            event = record.event
            moved = (event.source, event.dest, event.reason) if isinstance(event, ev.Moved) else ()
            self.decided.append((record.service, record.type, *moved))


FARTHER: set[tuple[str, str, str]] = {
    ("adopted", "Restarting", "Starting"),
    ("adopted", "Running", "Starting"),
    ("dependents_gone", "Starting", "Stopping"),
    ("gave_up", "Failed", "Failed"),
    ("gave_up", "Stopped", "Failed"),
    ("lost", "Starting", "Stopping"),
    ("restart_requested", "Restarting", "Stopped"),
    ("start_requested", "Starting", "Starting"),
}
"""Moves of the table that need more steps than these depths have. Adopted from Running cannot be: it is lost first."""

COUNTS = {
    "one Always, spawn: commands": (703, 2737, 17),
    "one OnFailure, spawn, limit: commands": (4015, 14094, 114),
    "one Never, spawn: ends": (2811, 9931, 100),
    "one Always, notify: talk": (971, 3473, 28),
    "one OnFailure, notify: ends": (2493, 9126, 87),
    "one Always, health: talk": (1451, 5172, 29),
    "one Always, report: talk": (918, 3262, 21),
    "one OnFailure, oneshot: ends": (767, 2591, 37),
    "one, disk full": (8330, 32773, 84),
    "one, reboots": (764, 3026, 23),
    "one, redefined": (1191, 4501, 45),
    "one, redefined in place": (1788, 7003, 64),
    "one, manual": (259, 995, 14),
    "two, started": (1368, 6095, 67),
    "two, started, followed": (1368, 6215, 55),
    "two, ready": (1230, 5524, 76),
    "two, ready, followed": (1230, 5628, 65),
    "two, healthy": (1296, 5862, 76),
    "two, healthy, followed": (1296, 5959, 65),
    "two, completed": (842, 3272, 42),
    "two, completed, followed": (842, 3309, 39),
    "two, disk full": (1293, 5567, 53),
    "two, redefined": (1132, 5323, 72),
    "two, refused": (3584, 13145, 100),
    "two, unkilled": (6881, 25933, 145),
    "two, talk": (2093, 8993, 112),
}
"""States, transitions, and states at rest of each scenario: they change with every change of the rules."""
