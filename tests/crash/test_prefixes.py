"""Wherever a journal ends, at the boundary of a decision: the next registry forgets no service."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from registry.core import events as ev
from registry.core.definition import Policy
from registry.core.duties import Duties, duties
from registry.core.lifecycle import FOR_A_PERSON, Reason, State
from registry.core.projection import Projection
from registry.core.service import Service
from registry.journal.opening import open_for_reading
from registry.journal.read import pages
from tests.crash.commander import Commander
from tests.crash.judge import wrong_restless, wrong_steady
from tests.crash.world import HABITS, NEEDS, ROOT, SETTLED_WITHIN_S, World, wait_for

SEED = 3
STARTED_FROM = 6
GOLDEN = ROOT / "tests" / "golden" / "journal-v1.db"
SERVICES = {f"{name}-0": name for name in HABITS}
COMMANDS = (ev.StartRequested, ev.RestartRequested, ev.StopRequested, ev.ResetRequested)


@contextmanager
def a_world() -> Iterator[World]:
    """A short folder with one service of each habit, and nothing left of it afterwards."""
    with tempfile.TemporaryDirectory(prefix="cr-", dir="/tmp") as folder:
        world = World(Path(folder), SERVICES)
        try:
            yield world
        finally:
            world.clean_up()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The journal of two lives of a registry, a second each, commanded all the time, both killed."""
    with a_world() as world:
        for life in range(2):
            commander = Commander(world, list(SERVICES), Random(life), 0.02)
            world.start()
            commander.start()
            commander.acknowledged.wait(10)
            wait_for(lambda: world.executions("flap-0"), "it runs")
            commander.join(1)
            world.kill()
            commander.stop()
        kept = tmp_path_factory.mktemp("recorded") / "registry.db"
        with (
            closing(sqlite3.connect(world.journal)) as journal,
            closing(sqlite3.connect(kept)) as copy,
        ):
            journal.backup(copy)
    return kept


def read(path: Path) -> list[ev.Record]:
    with closing(open_for_reading(path)) as journal:
        return [record for page in pages(journal) for record in page]


def ends_of_decisions(records: list[ev.Record]) -> list[int]:
    """How many rows each prefix has that ends with a whole decision."""
    return [n for n, (a, b) in enumerate(pairwise(records), 1) if a.decision != b.decision]


def forgotten(records: list[ev.Record], lengths: list[int]) -> list[tuple[int, str]]:
    """Of prefixes of these lengths: where the next registry would have nothing to do for a service it has to run."""
    projection, last, found, done = Projection(), {}, [], 0
    for length in lengths:
        for record in records[done:length]:
            if isinstance(record.event, COMMANDS):
                last[record.service or ""] = type(record.event)
        projection.fold(records[done:length])
        done = length
        for name, service in projection.services.items():
            was_stopped = last.get(name) in (ev.StopRequested, ev.ResetRequested)
            if not (is_looked_after(service) or (was_stopped and not service.wanted)):
                found.append((length, name))
    return found


def is_looked_after(service: Service) -> bool:
    """Whether something is to be done for it, or it ended as its definition accepts."""
    if service.autostart_due or duties(service) != Duties():
        return True
    if service.wanted and service.reason is Reason.WAITING:  # each life begins with another look
        return True
    if service.definition.oneshot and service.completed:
        return True
    if not service.wanted or service.state not in (State.STOPPED, State.FAILED):
        return False
    if service.reason is Reason.RESTART_LIMIT or service.reason in FOR_A_PERSON:
        return True
    policy, ran = service.definition.restart.policy, service.reason is not Reason.NEVER_RAN
    is_clean = service.state is State.STOPPED
    return ran and (policy is Policy.NEVER or (policy is Policy.ON_FAILURE and is_clean))


@pytest.mark.parametrize("source", ["recorded", "golden"])
def test_every_prefix_that_ends_with_a_decision_forgets_nothing(
    source: str, recorded: Path
) -> None:
    records = read(recorded if source == "recorded" else GOLDEN)
    lengths = ends_of_decisions(records)
    assert len(lengths) > 50
    assert forgotten(records, lengths) == []


def test_a_prefix_that_ends_within_a_decision_may_forget_something(recorded: Path) -> None:
    """So the test above can find what it looks for, and one decision has to be one transaction."""
    records = read(recorded)
    assert forgotten(records, list(range(1, len(records) + 1)))


@pytest.mark.timeout(120)
def test_a_registry_started_from_a_prefix_settles_every_service(recorded: Path) -> None:
    records = read(recorded)
    lengths = [1, 2, *Random(SEED).sample(ends_of_decisions(records), STARTED_FROM)]
    for length in lengths:
        with a_world() as world:
            cut(recorded, world.journal, length)
            world.start()
            deadline = time.monotonic() + SETTLED_WITHIN_S
            while wrong := unsettled(world, records[:length]):
                assert world.is_up()
                assert time.monotonic() < deadline, f"from {length} rows: {wrong}\n{world.said()}"
                time.sleep(0.03)
            assert not world.lines("doubled")


def cut(source: Path, target: Path, length: int) -> None:
    """The first rows of a journal as a journal of its own."""
    shutil.copyfile(source, target)
    with closing(sqlite3.connect(target)) as journal:
        journal.execute("DELETE FROM events WHERE seq > ?", (length,))
        journal.commit()


def unsettled(world: World, prefix: list[ev.Record]) -> dict[str, str]:
    """What is not as its definition and the last command in the prefix say, judged from processes."""
    running = world.processes()
    found = {}
    for name, habit in world.services.items():
        seen = [each for each in running if each.service == name]
        own = [record.event for record in prefix if record.service == name]
        wanted = frozenset({"down" if was_stopped(prefix, name) else "up"})
        runs = len(world.executions(name))
        if any(was_stopped(prefix, need) for need in NEEDS.get(name, ())):
            wanted |= {"down"}  # it may wait
        if habit in ("once", "setup"):
            never_began = not any(isinstance(event, ev.Spawned) for event in own)
            wrong = "it does not end" if seen else None
            if never_began and wanted == {"up"} and runs != 1:
                wrong = f"executed {runs} times"
        elif HABITS[habit].is_steady:
            wrong = wrong_steady(seen, wanted, habit)
        else:
            wrong = wrong_restless(seen, wanted, runs_on=runs > 1)
        if wrong is not None:
            found[name] = wrong
    return found


def was_stopped(prefix: list[ev.Record], name: str) -> bool:
    """Whether the last command for a service stops it."""
    commands = [each.event for each in prefix if each.service == name]
    last = next((event for event in reversed(commands) if isinstance(event, COMMANDS)), None)
    return isinstance(last, ev.StopRequested)
