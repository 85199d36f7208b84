"""A law of what-if: worlds of trouble, decided again under the same definitions, go as they went; others never fail."""

from __future__ import annotations

import logging
from itertools import pairwise
from pathlib import Path
from random import Random

import msgspec
import pytest

from registry.core.definition import Definition, OnFailure, Policy, Ready
from registry.core.events import Record
from registry.journal.opening import open_for_reading
from registry.journal.read import pages
from registry.journal.rows import to_record
from registry.questions.what_if import what_if
from tests.simulation.world import Task, World, _held_max

GOLDEN = Path(__file__).parents[1] / "golden"
SEEDS = 24
HOURS = 0.1


def journal_of(seed: int) -> list[Record]:
    """The journal of a world of trouble."""
    logging.getLogger("registry").setLevel(logging.CRITICAL + 1)
    world = World(Task(seed, HOURS, None, 1.0))
    with _held_max(world.trouble.held_max):
        world.run()
    assert not world.disk.dropped
    return [to_record(row) for row in world.disk.rows]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("first", range(1, SEEDS + 1, 6))
def test_under_the_same_definitions_a_world_of_trouble_goes_as_it_went(first: int) -> None:
    for seed in range(first, first + 6):
        answer = what_if(journal_of(seed))
        assert answer.rows == (), f"seed {seed}"
        for course in answer.courses:
            assert course.recorded == course.what_if, f"seed {seed}"
            assert not course.unknown_ns


@pytest.mark.parametrize("name", ["incident.db", "journal-v1-2026-11.db"])
def test_under_the_same_definitions_what_a_real_registry_wrote_is_decided_again(name: str) -> None:
    journal = open_for_reading(GOLDEN / name)
    records = [record for page in pages(journal) for record in page]
    journal.close()
    assert len(records) > 100
    assert what_if(records).rows == ()


CHANGES = (
    lambda d, c: {"restart": msgspec.structs.replace(d.restart, policy=c.choice(list(Policy)))},
    lambda d, c: {
        "restart": msgspec.structs.replace(d.restart, limit=c.randint(1, 4), within_s=60.0)
    },
    lambda d, c: {"restart": msgspec.structs.replace(d.restart, delay_s=c.choice([0.1, 5.0]))},
    lambda d, c: {
        "checks": tuple(msgspec.structs.replace(x, failures=c.randint(1, 5)) for x in d.checks)
    },
    lambda d, c: {
        "checks": tuple(msgspec.structs.replace(x, interval_s=3.0, timeout_s=1.0) for x in d.checks)
    },
    lambda d, c: {
        "checks": tuple(
            msgspec.structs.replace(x, on_failure=c.choice(list(OnFailure))) for x in d.checks
        )
    },
    lambda _d, _c: {"checks": ()},
    lambda d, c: {"stop": msgspec.structs.replace(d.stop, timeout_s=c.choice([0.5, 20.0]))},
    lambda _d, c: {"start_timeout_s": c.choice([0.5, 60.0])},
    lambda _d, _c: {"success_exit_codes": (0, 1, 2, 3)},
    lambda _d, _c: {"depends_on": ()},
    lambda _d, c: {"ready": c.choice(list(Ready))},
    lambda d, _c: {"autostart": not d.autostart},
    lambda _d, _c: {"cmd": ("another",)},
)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(1, 13))
def test_under_any_other_definitions_there_is_an_answer_that_adds_up(seed: int) -> None:
    records = journal_of(seed)
    differing = 0
    for number in range(8):
        chance = Random(seed * 100 + number)
        picks = {name: chance.randrange(2 * len(CHANGES)) for name in _names(records)}

        def declared(
            definition: Definition, picks: dict[str, int] = picks, chance: Random = chance
        ) -> Definition | None:
            pick = picks[definition.name]
            if pick >= len(CHANGES):
                return definition
            return msgspec.structs.replace(definition, **CHANGES[pick](definition, chance))

        answer = what_if(records, declared)
        differing += bool(answer.rows)
        span_ns = sum(max(0, b.mono_ns - a.mono_ns) for a, b in pairwise(records))
        for course in answer.courses:
            assert 0 <= course.unknown_ns + course.what_if.down_ns <= span_ns
            assert course.meanwhile.restarts <= course.recorded.restarts
            assert course.meanwhile.down_ns <= course.recorded.down_ns
        assert list(answer.rows) == sorted(answer.rows, key=lambda row: row.at_ns) or _jumps(
            records
        )
    assert differing


def _names(records: list[Record]) -> dict[str, None]:
    return dict.fromkeys(record.service for record in records if record.service)


def _jumps(records: list[Record]) -> bool:
    """Whether the clock of people was set back: then times do not follow the order of events."""
    return any(b.at_ns < a.at_ns for a, b in pairwise(records))
