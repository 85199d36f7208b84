"""What the daemon's log and the timeline say of services that depend on each other, and of what a run says itself."""

from __future__ import annotations

from typing import Any

import pytest

from registry.core import events as ev
from registry.core import inputs as inp
from registry.core.definition import Policy, Ready, Restart
from registry.core.lifecycle import Reason, State
from registry.questions.narration import narrate
from registry.questions.records import event_record
from registry.questions.timeline import happened

MIB = 1 << 20


@pytest.fixture
def told(system):
    """A system, and a function that gives the new log lines of whatever is done to it."""
    s = system(
        db=("", {"ready": Ready.NOTIFY}),
        web=("db!", {"memory_max": 100 * MIB}),
    )

    def lines(records):
        return [line for record in records if (line := narrate(record, s.services)) is not None]

    return s, lines


def test_waiting_and_its_end_are_told(told):
    s, lines = told
    assert lines(s.start("web")) == [
        ("INFO", "web waits for db to be ready"),
        ("INFO", "Starting db (PID 1001)"),
    ]
    assert lines(s.obey("db")) == [("INFO", "Starting web (PID 1001)")]


def test_where_the_waiting_is_over_by_then_it_is_told_without_saying_for_what(told):
    s, lines = told
    started = s.start("web")
    s.settle()
    assert lines(started)[0] == ("INFO", "web waits for what it depends on")


def test_who_does_not_say_that_it_is_ready_is_told_what_did_not_come(told, define):
    s, lines = told
    s.start("db")
    s.mono_ns += 10**12
    missed = "db not ready within 90 s: no READY=1 came to NOTIFY_SOCKET, stopping it"
    assert lines(s.give("db", inp.StartTimerDue(run=1))) == [("WARN", missed)]
    other = define(name="db", ready=Ready.HEALTH, checks=("beat",))
    s.define(other)
    assert lines(s.records[-2:])[0] == ("WARN", missed), "its run was begun to say so"


def test_a_held_stop_and_its_end_are_told(told):
    s, lines = told
    s.start("web")
    s.settle()
    assert lines(s.stop("db")) == [
        ("INFO", "Stopping web"),
        ("INFO", "db stops once those that depend on it have stopped"),
    ]
    assert lines(s.obey("web")) == [("INFO", "Stopped web"), ("INFO", "Stopping db")]


def test_one_that_follows_another_is_told_to(told):
    s, lines = told
    s.start("web")
    s.settle()
    assert lines(s.give("db", inp.Stop())) == [
        ("INFO", "Stopping db"),
        ("INFO", "Restarting web: it follows what it depends on"),
    ]
    assert lines(s.obey("web")) == [
        ("INFO", "Stopped web: it waits for db to be ready (it is stopped)")
    ]


def test_what_a_run_says_and_grows_to_is_told(told):
    s, lines = told
    s.start("web")
    s.settle()
    assert lines(s.give("web", inp.NotifiedStopping(run=1))) == [("INFO", "web says that it stops")]
    s.mono_ns += 10**11
    assert lines(s.give("web", inp.StopTimerDue(run=1))) == [
        ("WARN", "web said that it stops, and did not within 10 s, stopping it")
    ]
    s.settle()
    assert lines(s.give("web", inp.MemoryFound(run=2, bytes=130 * MIB))) == [
        ("WARN", "web holds more memory than its memory_max, restarting...")
    ]


def test_a_request_that_could_not_be_carried_out_is_told_and_one_that_was_is_not(told):
    s, lines = told
    s.start("web")
    s.settle()
    for error, expected in ((None, []), ("no such process", [("WARN", "web: no such process")])):
        s.give("web", inp.Signal(signal="SIGHUP"))
        done = inp.RequestCarriedOut(run=1, request=len(s.records), error=error)
        assert lines(s.give("web", done)) == expected


def test_a_restart_for_a_new_definition_says_so(told, define):
    s, lines = told
    s.start("db")
    s.settle()
    other = define(name="db", cwd="/srv", ready=Ready.NOTIFY)
    assert lines(s.give("db", s.defined(other), ("db", inp.Renew()))) == [
        ("INFO", "Restarting db: it is declared differently")
    ]


def test_a_restart_that_has_to_wait_is_told(system):
    s = system(db="", web=("db", {"policy": Policy.ALWAYS, "delay_s": Restart().delay_s}))
    s.start("web")
    s.settle()
    s.give("db", inp.Stop())
    s.settle()
    said = [narrate(record, s.services) for record in s.crash("web")]
    assert said[-1] == ("INFO", "web waits for db to be ready (it is stopped)")


def test_the_timeline_says_why_one_waits_follows_or_stops_late(told):

    s, _lines = told
    s.start("web")
    s.settle()
    s.restart("db")
    s.settle()
    s.stop("db")
    s.settle()
    words = {record.type: happened(event_record(record)) for record in s.records}
    assert words["dependencies_met"] == "Stopped -> Starting  what it waited for is as it needs it"
    assert words["dependents_gone"] == "Running -> Stopping  those that depend on it have stopped"
    assert words["stop_requested"] == "stop requested (once those that depend on it have stopped)"
    asked = [r for r in s.records if isinstance(r.event, ev.RestartRequested)][-1]
    assert happened(event_record(asked)).endswith("(follows one that it depends on)")


def test_why_a_clean_end_is_a_warning_and_one_restart_are_told():
    """Of a run whose group lives on, and of a limit of one."""
    move: dict[str, Any] = {"source": State.RUNNING, "reason": Reason.COMPLETED}
    events = (
        ev.Exited(exit_code=0, group_empty=False, dest=State.STOPPING, **move),
        ev.Exited(exit_code=0, dest=State.STOPPED, **move),
        ev.GaveUp(restarts=1, within_s=60.0, dest=State.FAILED, **move),
    )
    records = (ev.Record(1, 0, 0, 1, "web", 1, None, None, event) for event in events)
    assert [narrate(record, {}) for record in records] == [
        ("WARN", "web exited with code 0, and left processes behind"),
        ("INFO", "web exited with code 0"),
        ("ERROR", "web gave up: 1 restart within 60 s; circlectl start web tries again"),
    ]
