"""What is journaled of an output that ended: once, only where it matters, and after its run's end."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.core import events as ev
from registry.core import inputs as inp
from registry.core.decision import Place, decide
from registry.core.definition import Definition
from registry.core.lifecycle import Reason, State
from registry.core.service import Service
from registry.keeper import endings
from registry.keeper.client import OutputEnded
from registry.keeper.endings import Endings
from registry.logs.files import LogFile
from registry.logs.target import LogTarget
from registry.questions.records import event_record
from registry.questions.timeline import happened

RUN = 4


class World:
    """A service whose run 4 has written one line; what is journaled and what the keeper is told."""

    def __init__(self, log: LogTarget) -> None:
        self.log = log
        self.service: Service | None = Service(
            definition=Definition(name="web", cmd=("x",), position=0), run=RUN, pid=99
        )
        self.records: list[ev.Record] = []
        self.recent: list[ev.Record] = []
        self.given: asyncio.Queue[inp.Observation] = asyncio.Queue()
        self.heard: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
        self.endings = Endings(
            lambda _name: self.service,
            lambda _name, given: self.given.put_nowait(given),
            lambda: self.recent,
            self._latest,
            lambda *key: self.heard.put_nowait(key),
        )

    async def _latest(self, _service: str) -> list[ev.Record]:
        return self.records

    def output_ends(self, dropped: int = 0) -> None:
        self.endings.output_ended(OutputEnded("web", RUN, dropped, self.log))

    def commit(self, event: ev.Event) -> None:
        seq = 10 + len(self.records)
        self.records.append(ev.Record(seq, 0, 0, seq, "web", RUN, None, None, event))
        self.recent.append(self.records[-1])
        if self.service is not None and isinstance(event, ev.Exited | ev.Lost):
            self.service.pid = None
        self.endings.committed(self.records[-1])

    def run_ends(self, source: State = State.RUNNING, reason: Reason = Reason.EXIT_CODE, **how):
        self.commit(ev.Exited(source=source, dest=State.FAILED, reason=reason, **how))


@pytest.fixture
async def world(folder: Path, make_output):
    log = LogTarget(str(folder / "web.log"), 1000, 2)
    output = make_output()
    file = LogFile(log.path, 1000, 2)
    output.write("alas\n")
    file.move(output.reader, RUN)
    file.close()
    made = World(log)
    task = asyncio.create_task(made.endings.run())
    yield made
    task.cancel()


async def test_it_waits_for_the_runs_end_and_names_it(world) -> None:
    world.output_ends()
    await asyncio.sleep(0)
    assert world.given.empty()
    world.run_ends(exit_code=3)
    given = await world.given.get()
    assert given == inp.OutputEnded(run=RUN, lines=("alas",), dropped=0, cause=10)
    assert world.heard.empty(), "not before it is committed"
    world.commit(ev.OutputEnded(lines=given.lines))
    assert await world.heard.get() == ("web", RUN)


async def test_an_output_that_ends_after_its_run_is_told_too(world) -> None:
    world.run_ends(signal=11)
    world.output_ends()
    assert (await world.given.get()).cause == 10


async def test_what_an_earlier_registry_journaled_is_not_repeated(world) -> None:
    world.run_ends(exit_code=3)
    world.commit(ev.OutputEnded(lines=("alas",)))
    assert await world.heard.get() == ("web", RUN)
    world.output_ends()
    assert await world.heard.get() == ("web", RUN)
    assert world.given.empty()


@pytest.mark.parametrize(
    "end",
    [
        lambda w: w.run_ends(exit_code=0),
        lambda w: w.run_ends(State.STOPPING, Reason.REQUESTED, signal=15),
        lambda w: w.run_ends(State.STOPPING, Reason.SHUTDOWN, exit_code=1),
        lambda w: w.run_ends(State.STOPPING, Reason.DEPENDENCY, signal=15),
        lambda w: w.run_ends(State.STOPPING, Reason.REDEFINED, signal=15),
        lambda w: w.run_ends(exit_code=111, never_ran=True),
    ],
    ids=["clean", "stopped", "shut down", "follows", "redefined", "never ran"],
)
async def test_of_a_run_that_ended_well_or_as_asked_nothing_is_said(
    world, end: Callable[[World], None]
) -> None:
    world.output_ends()
    end(world)
    assert await world.heard.get() == ("web", RUN)
    assert world.given.empty()


@pytest.mark.parametrize(
    "end",
    [
        lambda w: w.run_ends(State.STOPPING, Reason.REQUESTED, signal=9),
        lambda w: w.run_ends(State.STOPPING, Reason.UNHEALTHY, signal=15),
        lambda w: w.run_ends(State.STOPPING, Reason.START_TIMEOUT, signal=15),
        lambda w: w.run_ends(State.STOPPING, Reason.MEMORY_MAX, signal=15),
        lambda w: w.run_ends(State.STOPPING, Reason.DEPENDENCY, signal=9),
        lambda w: w.commit(ev.Lost(source=State.RUNNING, dest=State.FAILED, reason=Reason.LOST)),
    ],
    ids=["had to be killed", "unhealthy", "start timeout", "memory", "follows, killed", "lost"],
)
async def test_of_every_other_end_the_last_words_are_kept(
    world, end: Callable[[World], None]
) -> None:
    world.output_ends()
    end(world)
    assert (await world.given.get()).lines == ("alas",)


async def test_lost_output_is_always_journaled(world) -> None:
    world.output_ends(dropped=5)
    world.run_ends(exit_code=0)
    assert (await world.given.get()).dropped == 5


async def test_a_service_that_is_no_longer_declared_leaves_nothing_waiting(world) -> None:
    world.service = None
    world.output_ends(dropped=5)
    assert await world.heard.get() == ("web", RUN)
    assert world.given.empty()


async def test_too_many_at_once_are_let_go(world, monkeypatch) -> None:
    world.endings._known = asyncio.Queue(2)
    world.service.run = RUN + 1
    for _ in range(3):
        world.output_ends()
    assert world.heard.get_nowait() == ("web", RUN)
    assert endings.WAITING_MAX >= 100


def test_the_event_moves_nothing_and_may_be_of_an_earlier_run() -> None:
    definition = Definition(name="web", cmd=("x",), position=0)
    service = Service(definition=definition, run=RUN, pid=99, state=State.RUNNING)
    before = copy.deepcopy(service)
    place = Place(ev.Now(1, 1), 20, "j")
    for run, count in ((RUN, 1), (RUN - 1, 1), (RUN + 1, 0)):
        given = inp.OutputEnded(run=run, lines=("alas",), dropped=5, cause=10)
        records = decide(service, given, place)
        assert [(r.run, r.cause, r.event) for r in records] == [
            (run, 10, ev.OutputEnded(lines=("alas",), dropped=5))
        ] * count
    assert service == before


def test_the_event_is_told_in_a_sentence() -> None:
    def told(event: ev.OutputEnded) -> str:
        return happened(event_record(ev.Record(20, 0, 0, 20, "web", RUN, 10, None, event)))

    assert (
        told(ev.OutputEnded(lines=("Traceback", "\x1balas", ""))) == "said last (run 4): \\x1balas"
    )
    assert told(ev.OutputEnded(dropped=1)) == "said nothing (run 4), 1 byte of output lost"


async def test_an_end_that_was_just_committed_is_not_looked_for_in_the_journal(world) -> None:
    world.run_ends(exit_code=3)
    world.records.clear()
    world.output_ends()
    assert (await world.given.get()).cause == 10


async def test_an_end_of_long_ago_is_looked_for_in_the_journal(world) -> None:
    world.run_ends(exit_code=3)
    world.recent.clear()
    world.output_ends()
    assert (await world.given.get()).cause == 10


async def test_an_end_whose_number_was_given_to_another_is_no_cause(world) -> None:
    """Held beyond the bound it becomes part of one event, and is in no memory and no journal any more."""
    world.run_ends(exit_code=3)
    world.recent.clear()
    world.records.clear()
    world.output_ends()
    assert await world.heard.get() == ("web", RUN)
    assert world.given.empty()
