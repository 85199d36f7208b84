"""The runs of a service: when each began, was ready and ended, how, and who or what was behind it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from registry.core import inputs as inp
from registry.core.definition import Definition, Dependency, Restart
from registry.core.events import Actor, JournalCreated, Now
from registry.core.lifecycle import Reason
from registry.past.history import history
from registry.questions.history import By, Run
from registry.questions.moments import Moment
from registry.questions.records import rfc3339

NS = 1_000_000_000
ANA = Actor(uid=1000, pid=7, program="circlectl")
WEB = Definition("web", ("./web",))


@pytest.fixture
def told(story, opened):
    """The runs of web so far."""

    def runs(**chosen: Any) -> tuple[Run, ...]:
        return history(opened(story.records), "web", **chosen).runs

    return runs


def begin(story: Any, definition: Definition = WEB) -> int:
    story.say(JournalCreated("journal-1", 1))
    cause = story.begin("boot-1", 300, fresh=True)
    story.define(definition, cause)
    return int(cause)


def behind(by: By | None) -> tuple[str, Actor | None, str | None] | None:
    if by is None:
        return None
    return by.event.type, by.event.actor, by.after.service if by.after else None


def test_a_run_that_goes_on_has_no_end(story, told) -> None:
    begin(story)
    story.tell("web", inp.Start(actor=ANA))
    story.spawn("web", 100)
    (run,) = told()
    assert (run.run, run.pid, run.ended, run.ran_s, run.exit_code) == (1, 100, None, None, None)
    assert run.ready_s == pytest.approx(0.001)
    assert behind(run.started_by) == ("start_requested", ANA, None)


def test_a_crash_and_the_restart_that_follows(story, told) -> None:
    begin(story)
    story.tell("web", inp.Start(reason=Reason.AUTOSTART, cause=2))
    story.spawn("web", 100)
    story.wait(60)
    story.end("web", signal=11)
    story.spawn("web", 101)
    first, second = told()
    assert (first.signal, first.exit_code, first.reason) == (11, None, "signal")
    assert round(first.ran_s) == 60
    assert first.ended_by is None
    assert behind(second.started_by) == ("restart_scheduled", None, None)
    assert (first.restarts, second.restarts) == (0, 1)


def test_who_stopped_and_restarted_it_is_told(story, told) -> None:
    begin(story)
    story.tell("web", inp.Start())
    story.spawn("web", 100)
    story.tell("web", inp.Restart(actor=ANA))
    story.end("web", signal=15)
    story.spawn("web", 101)
    story.tell("web", inp.Stop(actor=Actor(uid=0)))
    story.end("web", signal=15)
    first, second = told()
    assert behind(first.ended_by) == ("restart_requested", ANA, None)
    assert behind(second.started_by) == ("restart_requested", ANA, None)
    assert behind(second.ended_by) == ("stop_requested", Actor(uid=0), None)


def test_a_definition_that_changed_between_two_runs_is_told_by_its_keys(story, told) -> None:
    begin(story)
    story.tell("web", inp.Start())
    story.spawn("web", 100)
    other = msgspec.structs.replace(WEB, cmd=("./web", "-v"), umask=0, position=4)
    story.define(other, 2, actor=ANA)
    story.tell("web", inp.Renew(actor=ANA))
    story.end("web", signal=15)
    story.spawn("web", 101)
    first, second = told()
    assert (first.changed, second.changed) == ((), ("cmd", "umask"))
    assert first.digest != second.digest
    assert second.started_by.event.reason == "redefined"
    assert told(limit=1)[0] == second


def test_what_another_service_was_behind_is_told(story, told) -> None:
    cause = begin(story, msgspec.structs.replace(WEB, depends_on=(Dependency("db", restart=True),)))
    story.define(Definition("db", ("./db",)), cause)
    story.tell("web", inp.Start())
    story.tell("db", inp.Start())
    story.spawn("db", 50)
    story.look("web")
    story.spawn("web", 100)
    story.tell("db", inp.Restart(actor=ANA))
    story.end("db", signal=15)
    story.spawn("db", 51)
    story.look("web")
    story.end("web", signal=15)
    story.spawn("web", 101)
    first, second = told()
    assert behind(first.started_by) == ("dependencies_met", None, "db")
    assert behind(first.ended_by) == ("restart_requested", None, "db")
    assert second.started_by.event.reason == "dependency"


def test_of_an_end_that_nobody_saw_it_is_told_between_which_times_it_was(story, told) -> None:
    begin(story)
    story.tell("web", inp.Start())
    story.spawn("web", 100)
    seen = story.records[-1].at_ns
    story.wait(600)
    story.begin("boot-1", 301, fresh=False)
    story.tell("web", inp.ProcessLost(run=1))
    (run,) = told()
    assert (run.ended_after, run.ran_s, run.reason) == (_utc(seen), None, "lost")
    assert run.ended == _utc(story.records[-1].at_ns)


def test_a_run_that_was_taken_over_was_seen_to_end(story, told) -> None:
    begin(story)
    story.tell("web", inp.Start())
    story.spawn("web", 100)
    story.wait(600)
    story.set_clock_back(3600)
    story.begin("boot-1", 301, fresh=False)
    story.tell("web", inp.ProcessFound(run=1, pid=100))
    story.wait(100)
    story.end("web", 1)
    (run,) = told()
    assert (run.adopted, run.ended_after, run.exit_code) == (1, None, 1)
    assert round(run.ran_s) == 700


def test_a_reboot_ends_a_run_unseen(story, told) -> None:
    begin(story)
    story.tell("web", inp.Start())
    story.spawn("web", 100)
    story.now = Now(story.now.at_ns + 500 * NS, 2 * NS)
    story.begin("boot-2", 301, fresh=True)
    story.tell("web", inp.ProcessLost(run=1))
    (run,) = told()
    assert run.ended_after is not None
    assert run.ran_s is None


def test_a_run_that_never_began_its_program_is_told_as_that(story, told) -> None:
    begin(story)
    story.tell("web", inp.Start())
    story.tell("web", inp.SpawnSucceeded(run=1, pid=100, start_time=1, digest="d"))
    story.end("web", 111, never_ran=True)
    story.spawn("web", 101)
    first, second = told()
    assert (first.never_ran, first.reason, first.ready_s) == (True, "never_ran", None)
    assert second.restarts == 0


def test_what_could_not_be_written_is_told_by_its_outcome(story, told) -> None:
    begin(story)
    story.tell("web", inp.Start())
    story.spawn("web", 100)
    written = len(story.records)
    story.wait(30)
    story.end("web", 3)
    ended = _utc(story.now.at_ns)
    story.spawn("web", 101)
    del story.records[written:]
    story.resync("web", events=5)
    story.wait(10)
    story.end("web", 4)
    first, second = told()
    assert (first.ended, first.exit_code, first.ended_after) == (ended, 3, None)
    assert (second.run, second.started, second.started_by) == (2, None, None)
    assert (second.exit_code, second.ran_s) == (4, None)


def test_a_service_that_was_removed_and_declared_again_has_one_history(story, told) -> None:
    cause = begin(story)
    story.tell("web", inp.Start())
    story.spawn("web", 100)
    story.tell("web", inp.Remove(actor=ANA))
    story.end("web", signal=15)
    del story.services["web"]
    story.define(WEB, cause)
    story.services["web"].run = 1
    story.tell("web", inp.Start())
    story.spawn("web", 101)
    first, second = told()
    assert behind(first.ended_by) == ("stop_requested", ANA, None)
    assert (first.run, second.run) == (1, 2)


@pytest.fixture
def crashes(story) -> Any:
    """Ten runs, a minute each."""
    begin(story, msgspec.structs.replace(WEB, restart=Restart(delay_s=0.1)))
    story.tell("web", inp.Start())
    for pid in range(100, 110):
        story.spawn("web", pid)
        story.wait(60)
        story.end("web", 3)
    return story


def test_the_latest_runs_are_chosen_by_number_and_told_as_among_all(crashes, told) -> None:
    everything = told()
    assert len(everything) == 10
    for count in (1, 2, 9, 10, 50):
        assert told(limit=count) == everything[-count:]


def test_the_runs_of_a_time_are_those_some_part_of_which_lies_in_it(crashes, told, opened) -> None:
    first_ns = crashes.records[0].at_ns
    everything = told()
    chosen = told(since=_at(first_ns, 90), until=_at(first_ns, 200))
    assert [run.run for run in chosen] == [2, 3, 4]
    assert [run.changed for run in chosen] == [run.changed for run in everything[1:4]]
    assert told(since=_at(first_ns, -50)) == everything
    assert told(until=_at(first_ns, -50)) == ()
    assert told(since=_at(first_ns, 10_000)) == ()
    assert history(opened([]), "web").runs == ()


def test_alone_and_from_any_run_on_the_golden_journal_tells_the_same(golden, opened) -> None:
    journal = opened(golden)
    for name in ("web", "worker", "cache", "db", "app"):
        runs = history(journal, name).runs
        assert [run.run for run in runs] == sorted({run.run for run in runs})
        for count in range(1, len(runs) + 1):
            assert history(journal, name, limit=count).runs == runs[-count:]


def _at(at_ns: int, seconds: float) -> Moment:
    return Moment(at_ns + int(seconds * NS), at_ns + int(seconds * NS))


def _utc(at_ns: int) -> str:
    return rfc3339(at_ns)
