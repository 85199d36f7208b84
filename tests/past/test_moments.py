"""At every event of a random journal the services are what the fold of that prefix comes to, whatever is cached."""

from __future__ import annotations

import asyncio
import json
import random
import runpy
import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry.core import events as ev
from registry.core import inputs as inp
from registry.core.definition import Check, Definition, Dependency, Policy, Restart
from registry.core.lifecycle import Reason
from registry.core.projection import Projection
from registry.journal import Journal, snapshots
from registry.journal.opening import open_for_reading
from registry.journal.read import fold, last_seq_at
from registry.past.answers import answer
from registry.questions.records import service_record

STORY = runpy.run_path(str(Path(__file__).parents[1] / "golden" / "make_journal_v1.py"))

pytestmark = pytest.mark.timeout(120)

NAMES = ("db", "web", "tool")
STEPS = ("start", "stop", "restart", "reset", "spawn", "exit", "kill", "probe", "redefine", "back")


def tell(steps: list[tuple[str, str, int]]) -> list[ev.Record]:
    """A journal made of random steps: whatever the core decides of them, on a clock that is set back, too."""
    story = STORY["Story"]()
    story.say(ev.JournalCreated("golden-1", 1))
    cause = story.begin("boot-1", 300, fresh=True)
    chance = random.Random(1)
    for position, name in enumerate(NAMES):
        story.define(definition(name, position, 0), cause)
    for step, name, number in steps:
        run = story.services[name].run
        match step:
            case "start":
                story.tell(name, inp.Start(reason=Reason.AUTOSTART, cause=cause))
            case "stop":
                story.tell(name, inp.Stop())
            case "restart":
                story.tell(name, inp.Restart())
            case "reset":
                story.tell(name, inp.Reset())
            case "spawn":
                story.spawn(name, 40 + number)
            case "exit" | "kill":
                how = {"signal": 9} if step == "kill" else {"exit_code": number % 2}
                story.end(name, **how)
                story.tell(name, inp.RestartTimerDue(run=run))
            case "probe":
                story.probe(name, "http", chance.choice(["+", "-", "---"]))
            case "redefine":
                story.define(definition(name, NAMES.index(name), number), len(story.records))
            case "back":
                story.set_clock_back(number)
        story.wait(1)
    records: list[ev.Record] = story.records
    return records


def definition(name: str, position: int, number: int) -> Definition:
    return Definition(
        name,
        (f"./{name}", str(number)),
        position,
        restart=Restart(Policy.ALWAYS, limit=2, within_s=60.0),
        checks=(Check("http", "http://127.0.0.1:1/", failures=2),),
        depends_on=(Dependency("db"),) if name == "web" else (),
    )


async def write(path: Path, records: list[ev.Record], every: int) -> None:
    """The records as a journal, with a snapshot after each `every` of them."""
    journal = await Journal.open(path)
    projection = Projection()
    for at in range(0, len(records), every):
        page = records[at : at + every]
        await journal.append(page)
        projection.fold(page)
        await journal.keep_snapshot(projection)
    await journal.close()


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(STEPS), st.sampled_from(NAMES), st.integers(0, 30)),
        min_size=5,
        max_size=25,
    ),
    every=st.integers(1, 20),
)
@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_at_every_event_the_answer_is_the_fold_of_that_prefix(tmp_path, monkeypatch, steps, every):
    monkeypatch.setattr(snapshots, "EVERY", 1)
    monkeypatch.setattr(snapshots, "EVERY_OF_ONE", 0)
    records = tell(steps)
    path = tmp_path / f"{random.getrandbits(64):x}.db"
    asyncio.run(write(path, records, every))
    prefixes = [told(records[:seq]) for seq in range(len(records) + 1)]
    times = sorted({record.at_ns + by for record in records for by in (-1, 0)})
    latest = [max((r.seq for r in records if r.at_ns <= at), default=0) for at in times]
    for forgotten in ("seq = 0", "seq % 2", "seq"):
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            for table in ("snapshots", "times"):
                connection.execute(f"DELETE FROM {table} WHERE {forgotten}")
        with closing(open_for_reading(path)) as journal:
            for seq, (projection, services) in enumerate(prefixes):
                assert fold(journal, seq) == projection
                answered = json.loads(answer(journal, "list", b'{"at": %d}' % seq))
                assert answered["services"] == services
            assert [last_seq_at(journal, at) for at in times] == latest
    path.unlink()


def told(records: list[ev.Record]) -> tuple[Projection, list[object]]:
    projection = Projection()
    projection.fold(records)
    services = projection.services
    return projection, [
        msgspec.to_builtins(service_record(each, services)) for each in projection.in_order()
    ]
