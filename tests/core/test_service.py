"""What follows from what: given these events, when this arrives, then these events.

Each step goes through the world's `give`, which also compares the live service with the fold of its journal.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest

from registry.core import events as ev
from registry.core import inputs as inp
from registry.core.definition import Check, Definition, OnFailure, Policy, Ready
from registry.core.dependencies import is_settled
from registry.core.duties import duties
from registry.core.lifecycle import FOR_A_PERSON, PASSING, Reason, State
from registry.core.restarts import NS, chance
from registry.core.service import LastExit, Service

AT_ONCE = ["restart_scheduled", "restart_due"]
ROOT = ev.Actor(uid=0, pid=7, program="circlectl")


def types(records):
    return [record.type for record in records]


def delays(records):
    return [r.event.delay_s for r in records if isinstance(r.event, ev.RestartScheduled)]


# --- policies -------------------------------------------------------------------------------------


@dataclass
class End:
    """A way to end: what is seen, and whether it is a failure."""

    seen: dict
    reason: Reason
    clean: bool = False


ENDS = {
    "exit code 0": End({"code": 0}, Reason.COMPLETED, clean=True),
    "an exit code that counts as success": End({"code": 3}, Reason.COMPLETED, clean=True),
    "a signal that counts as success": End(
        {"code": None, "signal": 15}, Reason.COMPLETED, clean=True
    ),
    "exit code 1": End({"code": 1}, Reason.EXIT_CODE),
    "exit code 15": End({"code": 15}, Reason.EXIT_CODE),
    "SIGKILL": End({"code": None, "signal": 9}, Reason.SIGNAL),
}
STARTS_AGAIN = {
    (Policy.ALWAYS, True): True,
    (Policy.ALWAYS, False): True,
    (Policy.ON_FAILURE, True): False,
    (Policy.ON_FAILURE, False): True,
    (Policy.NEVER, True): False,
    (Policy.NEVER, False): False,
}


@pytest.mark.parametrize("ready", [True, False], ids=["Running", "Starting"])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("policy", list(Policy))
def test_a_run_that_ends_is_followed_by_another_as_its_policy_says(world, policy, end, ready):
    w, ended = world(policy=policy, success_exit_codes=(0, 3, -15)), ENDS[end]
    w.start()
    w.spawn()
    if ready:
        w.gate()
    records = w.exit(**ended.seen)
    assert records[0].event.reason is ended.reason
    assert records[0].event.dest is (State.STOPPED if ended.clean else State.FAILED)
    assert w.service.last_exit.reason is ended.reason
    if STARTS_AGAIN[policy, ended.clean]:
        assert types(records) == ["exited", *AT_ONCE]
        assert w.where == (State.STARTING, Reason.POLICY)
        assert w.duties.spawn == 2
    else:
        assert types(records) == ["exited"]
        assert w.where == (State.STOPPED if ended.clean else State.FAILED, ended.reason)
        assert is_settled(w.service, {})


@pytest.mark.parametrize("policy", list(Policy))
def test_an_end_that_nobody_saw_counts_as_a_failure(world, policy):
    w = world(policy=policy)
    w.run()
    assert w.seen(inp.ProcessLost(run=1)) == ["lost", *AT_ONCE][: 1 if policy == "Never" else 3]
    at_ns = next(record.at_ns for record in w.records if record.type == "lost")
    assert w.service.last_exit == LastExit(1, at_ns, None, None, Reason.LOST)


def test_one_that_is_not_wanted_is_not_started_again(world):
    w = world(policy="Always")
    w.run()
    w.stop()
    assert types(w.exit(1)) == ["exited", "group_emptied"]
    assert w.service.state is State.STOPPED


# --- delays ---------------------------------------------------------------------------------------


def crash_loop(w, times):
    w.start()
    return [delay for _ in range(times) for delay in delays(w.crash())]


def test_the_first_restart_is_at_once_then_half_a_second_doubles_to_thirty(world):
    first, *later = crash_loop(world(), 12)
    assert first == 0
    for delay, least in zip(later, [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30, 30], strict=True):
        assert least <= delay <= least * 1.1


def test_delay_and_its_limit_are_those_of_the_definition(world):
    first, *later = crash_loop(world(delay_s=2.0, delay_max_s=5.0), 5)
    assert first == 0
    for delay, least in zip(later, [2, 4, 5, 5], strict=True):
        assert least <= delay <= least * 1.1


def test_the_delay_stays_finite_however_often_it_crashed(world):
    w = world()
    w.start()
    w.service.attempt = w.projection.services["web"].attempt = 5000
    (delay,) = delays(w.crash())
    assert 30 <= delay <= 33


def test_jitter_is_the_same_for_the_same_journal_service_and_run_and_another_for_others(world):
    once = crash_loop(world(), 8)
    assert crash_loop(world(), 8) == once
    assert crash_loop(world(journal_id="journal-2"), 8)[1:] != once[1:]
    assert crash_loop(world(name="other"), 8)[1:] != once[1:]
    assert len({delay / 30 for delay in once[-2:]}) == 2


def test_jitter_uses_all_of_its_ten_per_cent():
    chances = [chance("journal-1", "web", run) for run in range(100)]
    assert 0 <= min(chances) < 0.1
    assert 0.9 < max(chances) < 1


def test_while_it_waits_it_says_since_when_why_and_until_when(world):
    w = world()
    w.start()
    w.crash()
    w.crash()
    assert w.where == (State.RESTARTING, Reason.CRASH_LOOPING)
    event = w.records[-1].event
    assert event.attempt == 2
    assert event.due_ns == w.mono_ns + int(event.delay_s * NS)
    assert w.duties.timer.due_ns == event.due_ns
    assert w.service.restart_at_ns == w.records[-1].at_ns + int(event.delay_s * NS)


def test_the_timer_of_a_restart_counts_when_it_is_due_and_once(world):
    w = world()
    w.start()
    w.crash()
    w.crash()
    due = w.duties.timer.due
    assert w.seen(due) == []
    assert types(w.due()) == ["restart_due"]
    assert w.where == (State.STARTING, Reason.POLICY)
    assert w.seen(due) == []


ENDS_OF_A_ROW = {
    "fails": lambda w: w.exit(1),
    "ends clean": lambda w: w.exit(0),
    "leaves others behind": lambda w: (w.exit(1, group_empty=False), w.wait(1), w.empty())[-1],
}


@pytest.mark.parametrize("end", ENDS_OF_A_ROW)
def test_thirty_seconds_of_running_end_the_row(world, end):
    w = world()
    w.start()
    for _ in range(4):
        w.crash()
    w.due()
    w.spawn()
    w.gate()
    w.wait(30)
    assert delays(ENDS_OF_A_ROW[end](w)) == [0]
    assert w.service.attempt == 1


def test_less_than_thirty_seconds_of_running_do_not(world):
    w = world()
    w.start()
    for _ in range(4):
        w.crash()
    w.due()
    w.spawn()
    w.gate()
    w.wait(29.999)
    assert delays(w.exit(1))[0] >= 4
    assert w.service.attempt == 5


def test_time_in_starting_forgives_nothing(world):
    w = world(checks=("beat",))
    w.start()
    w.spawn()
    w.exit(1)
    w.spawn()
    w.wait(60)
    assert delays(w.exit(1))[0] >= 0.5


def test_time_that_it_took_to_stop_is_not_time_that_it_was_running(world):
    w = world(checks=("beat",), delay_s=4.0)
    w.run()
    w.exit(1)
    w.spawn()
    w.probe(ok=True)
    w.wait(25)
    for _ in range(3):
        w.probe(ok=False)
    w.wait(9)
    (delay,) = delays(w.exit(None, signal=15))
    assert delay >= 4


def test_a_run_forgives_once_not_the_refused_spawns_after_it_too(world):
    w = world()
    w.run()
    w.wait(3600)
    w.exit(1)
    w.refuse(Reason.NO_RESOURCES)
    for attempt in (3, 4, 5):
        w.due()
        w.refuse(Reason.NO_RESOURCES)
        assert w.service.attempt == attempt
    assert delays(w.records)[-1] >= 4


# --- the limit ------------------------------------------------------------------------------------


def exhausted(world, **fields):
    w = world(limit=3, within_s=600, **fields)
    w.start()
    for _ in range(3):
        assert "restart_scheduled" in types(w.crash())
    assert types(w.crash()) == ["exited", "gave_up"]
    return w


def test_at_its_limit_it_gives_up_and_stays_down(world):
    w = exhausted(world)
    assert w.where == (State.FAILED, Reason.RESTART_LIMIT)
    assert w.records[-1].event.restarts == 3
    assert w.records[-1].event.within_s == 600
    assert is_settled(w.service, {})
    assert w.service.wanted
    assert w.service.restarts == 3


def test_one_that_ends_clean_too_often_gives_up_as_failed(world):
    w = world(limit=1, within_s=60)
    w.start()
    w.crash(0)
    assert types(w.crash(0)) == ["exited", "gave_up"]
    assert w.where == (State.FAILED, Reason.RESTART_LIMIT)


@pytest.mark.parametrize("command", [inp.Start, inp.Restart])
def test_a_manual_start_clears_the_limit(world, command):
    w = exhausted(world)
    w.give(command())
    assert w.service.state is State.STARTING
    assert types(w.crash()) == ["exited", *AT_ONCE]


def test_a_reset_clears_the_limit_and_leaves_it_down(world):
    w = exhausted(world)
    assert w.seen(inp.Reset()) == ["reset_requested"]
    assert w.where == (State.STOPPED, Reason.RESET)
    assert (w.service.wanted, w.service.restarts, w.service.attempt) == (False, 0, 0)
    assert is_settled(w.service, {})
    w.start()
    assert types(w.crash()) == ["exited", *AT_ONCE]


def test_a_reset_of_one_that_runs_forgets_its_failures_and_interrupts_nothing(world):
    w = world(limit=2, within_s=600)
    w.start()
    w.crash()
    w.crash()
    w.due()
    w.spawn()
    w.gate()
    assert w.seen(inp.Reset()) == ["reset_requested"]
    assert w.where == (State.RUNNING, Reason.READY)
    assert w.duties.gate == 3
    assert types(w.exit(1)) == ["exited", *AT_ONCE]


def test_restarts_that_are_older_than_the_window_do_not_count(world):
    w = world(limit=2, within_s=60)
    w.start()
    w.crash()
    w.crash()
    w.wait(61)
    assert types(w.crash()) == ["exited", "restart_scheduled"]


def test_restarts_count_against_the_limit_even_when_forgiven(world):
    w = world(limit=2, within_s=600)
    w.start()
    for _ in range(2):
        w.spawn()
        w.gate()
        w.wait(31)
        assert types(w.exit(1)) == ["exited", *AT_ONCE]
    w.spawn()
    w.gate()
    w.wait(31)
    assert types(w.exit(1)) == ["exited", "gave_up"]


def test_without_a_limit_it_never_gives_up(world):
    w = world()
    w.start()
    for _ in range(60):
        assert "gave_up" not in types(w.crash())
    assert w.service.restart_times_ns == ()


# --- starting -------------------------------------------------------------------------------------


def test_without_checks_it_is_ready_when_its_gate_opens(world):
    w = world()
    w.start()
    assert w.duties.spawn == 1
    w.spawn()
    assert w.service.state is State.STARTING
    assert (w.duties.spawn, w.duties.gate, w.duties.checks) == (None, 1, True)
    assert types(w.gate()) == ["became_ready"]
    assert w.where == (State.RUNNING, Reason.READY)
    assert w.duties.timer is None
    assert types(w.gate()) == []


def test_with_checks_an_open_gate_is_not_readiness(world):
    w = world(checks=("beat",))
    w.start()
    w.spawn()
    assert types(w.gate()) == []
    assert types(w.probe(ok=True)) == ["probe_changed", "became_healthy", "became_ready"]


def test_it_is_ready_when_the_latest_result_of_every_check_is_a_success(world):
    w = world(checks=("a", "b", "c"))
    w.start()
    w.spawn()
    w.probe(ok=True, check="a")
    w.probe(ok=True, check="b")
    w.probe(ok=False, check="a")
    assert "became_ready" not in types(w.probe(ok=True, check="c"))
    assert "became_ready" not in types(w.probe(ok=True, check="b"))
    assert types(w.probe(ok=True, check="a"))[-1] == "became_ready"


def test_the_first_success_is_readiness_though_health_takes_more(world):
    w = world(checks=(Check("beat", "unix:/s", successes=3),))
    w.start()
    w.spawn()
    assert types(w.probe(ok=True)) == ["probe_changed", "became_ready"]
    assert types(w.probe(ok=True)) == []
    assert types(w.probe(ok=True)) == ["became_healthy"]
    assert types(w.probe(ok=True)) == []


def test_failures_before_ready_decide_readiness_only(world):
    w = world(checks=("beat",))
    w.start()
    w.spawn()
    assert types(w.probe(ok=False)) == ["probe_changed"]
    assert [types(w.probe(ok=False)) for _ in range(9)] == [[]] * 9
    assert w.service.state is State.STARTING
    assert w.service.checks["beat"].healthy is None
    assert types(w.probe(ok=True))[-1] == "became_ready"
    assert types(w.probe(ok=False)) == ["probe_changed"]
    assert types(w.probe(ok=False)) == []


@pytest.mark.parametrize("timeout_s", [90.0, 0.067, 1.001, 0.1 + 0.2, 1.003, 2.0])
def test_a_start_times_out_at_the_moment_that_its_timer_is_for(world, timeout_s):
    w = world(checks=("beat",), start_timeout_s=timeout_s)
    w.start()
    w.spawn()
    started_ns = w.mono_ns
    due = w.duties.timer.due
    assert w.seen(due) == []
    assert types(w.due()) == ["start_timed_out"]
    assert w.mono_ns - started_ns == pytest.approx(timeout_s * NS, abs=1)
    assert w.where == (State.STOPPING, Reason.START_TIMEOUT)


def test_a_start_that_timed_out_is_a_failure_whatever_the_exit_code(world):
    w = world(checks=("beat",), policy="OnFailure")
    w.start()
    w.spawn()
    w.due()
    assert types(w.exit(0)) == ["exited", "group_emptied", *AT_ONCE]
    assert w.records[-3].event.dest is State.FAILED
    assert w.records[-3].event.reason is Reason.START_TIMEOUT
    assert w.service.last_exit.exit_code == 0


def test_one_that_became_ready_in_time_does_not_time_out(world):
    w = world()
    w.start()
    w.spawn()
    due = w.duties.timer.due
    w.gate()
    w.wait(100)
    assert w.seen(due) == []


def test_time_that_nobody_watched_is_not_charged_to_the_start_timeout(world):
    w = world(checks=("beat",))
    w.start()
    w.spawn()
    w.wait(3600)
    w.give(inp.ProcessFound(run=1, pid=1001))
    assert w.duties.timer.due_ns > w.mono_ns
    assert w.seen(inp.StartTimerDue(run=1)) == []


# --- starts that fail -----------------------------------------------------------------------------


@pytest.mark.parametrize("reason", sorted(FOR_A_PERSON))
@pytest.mark.parametrize("policy", list(Policy))
def test_what_only_a_person_can_mend_is_not_tried_again(world, policy, reason):
    w = world(policy=policy)
    w.start()
    assert types(w.refuse(reason, "no such program")) == ["spawn_failed"]
    assert w.where == (State.FAILED, reason)
    assert w.service.message == "no such program"
    assert is_settled(w.service, {})
    w.start()
    assert w.service.message is None
    assert w.duties.spawn == 1


@pytest.mark.parametrize("reason", sorted(FOR_A_PERSON))
def test_a_launch_that_failed_behind_the_gate_is_not_tried_again_either(world, reason):
    w = world(success_exit_codes=(0, 203))
    w.start()
    w.spawn()
    w.gate()
    assert types(w.exit(203, launch_failure=reason, message="cannot execute")) == ["exited"]
    assert w.where == (State.FAILED, reason)
    assert w.service.message == "cannot execute"
    assert w.service.last_exit.reason is reason


@pytest.mark.parametrize("reason", sorted(PASSING))
@pytest.mark.parametrize("delay_s", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("policy", list(Policy))
def test_what_passes_by_itself_is_tried_again_after_a_delay(world, policy, delay_s, reason):
    w = world(policy=policy, delay_s=delay_s)
    w.start()
    for _ in range(5):
        assert types(w.refuse(reason)) == ["spawn_failed", "restart_scheduled"]
        assert w.records[-1].event.delay_s >= 0.5
        assert w.service.state is State.RESTARTING
        assert types(w.due()) == ["restart_due"]
    assert types(w.spawn()) == ["spawned"]
    assert w.service.run == 1


@pytest.mark.parametrize("policy", list(Policy))
def test_a_run_that_never_executed_is_started_again_whatever_the_policy_and_not_charged(
    world, policy
):
    w = world(policy=policy, limit=1, within_s=600)
    w.start()
    for run in range(1, 6):
        w.spawn()
        assert w.service.run == run
        assert types(w.exit(111, never_ran=True)) == ["exited", *AT_ONCE]
        assert w.where == (State.STARTING, Reason.NEVER_RAN)
    assert (w.service.restarts, w.service.attempt) == (0, 0)


def test_a_run_that_never_executed_is_not_started_again_when_it_is_not_wanted(world):
    w = world()
    w.start()
    w.spawn()
    w.stop()
    assert types(w.exit(111, never_ran=True)) == ["exited", "group_emptied"]
    assert w.where == (State.STOPPED, Reason.REQUESTED)


def test_a_run_that_never_executed_takes_nobodys_word_away(world):
    w = world()
    w.start()
    w.spawn()
    w.restart()
    w.exit(111, never_ran=True)
    assert w.where == (State.STARTING, Reason.RESTART_REQUESTED)


# --- health ---------------------------------------------------------------------------------------


def test_as_many_failures_in_a_row_as_declared_restart_it_as_a_failure(world):
    w = world(checks=("beat",), policy="OnFailure")
    w.run()
    assert types(w.probe(ok=False)) == ["probe_changed"]
    assert types(w.probe(ok=False)) == []
    assert types(w.probe(ok=False)) == ["became_unhealthy"]
    assert w.where == (State.STOPPING, Reason.UNHEALTHY)
    assert w.service.bound is State.FAILED
    assert types(w.probe(ok=False)) == []
    assert types(w.exit(0)) == ["exited", "group_emptied", *AT_ONCE]
    assert w.records[-3].event.reason is Reason.UNHEALTHY
    assert w.service.restarts == 1


def test_a_success_between_failures_starts_the_count_anew(world):
    w = world(checks=("beat",))
    w.run()
    for _ in range(5):
        w.probe(ok=False)
        w.probe(ok=False)
        assert types(w.probe(ok=True)) == ["probe_changed"]
    assert w.service.state is State.RUNNING


def test_a_check_that_reports_changes_its_health_and_nothing_else(world):
    w = world(checks=(Check("beat", "unix:/s", on_failure=OnFailure.REPORT),))
    w.run()
    since_ns = w.service.since_ns
    w.wait(10)
    w.probe(ok=False)
    w.probe(ok=False)
    assert types(w.probe(ok=False)) == ["became_unhealthy"]
    assert w.where == (State.RUNNING, Reason.READY)
    assert w.service.since_ns == since_ns
    assert w.service.checks["beat"].healthy is False
    assert [types(w.probe(ok=False)) for _ in range(5)] == [[]] * 5
    assert types(w.probe(ok=True)) == ["probe_changed", "became_healthy"]
    assert w.service.checks["beat"].healthy is True


def test_equal_results_journal_one_event_and_a_change_carries_the_streak_that_it_ends(world):
    w = world(checks=("beat",))
    w.run()
    first_ns = w.mono_ns
    before = len(w.records)
    for _ in range(999):
        w.wait(10)
        w.probe(ok=True)
    assert len(w.records) == before
    last_ns = w.mono_ns
    w.wait(10)
    (record,) = w.probe(ok=False)
    ahead = w.records[-1].at_ns - w.mono_ns
    ended = ev.Streak(True, 1000, first_ns + ahead, last_ns + ahead)
    assert record.event == ev.ProbeChanged(check="beat", ok=False, error="refused", ended=ended)


def test_a_new_run_begins_with_nothing_known_of_its_checks(world):
    w = world(checks=("beat",))
    w.run()
    w.exit(1)
    w.spawn()
    assert w.service.checks == {}
    assert types(w.probe(ok=True)) == ["probe_changed", "became_healthy", "became_ready"]


def test_a_check_that_is_not_declared_says_nothing(world):
    w = world(checks=("beat",))
    w.run()
    assert types(w.probe(ok=False, check="other")) == []


# --- stopping -------------------------------------------------------------------------------------


def test_a_stop_waits_for_the_group_not_for_its_leader(world):
    w = world()
    w.run()
    assert types(w.stop()) == ["stop_requested"]
    assert w.where == (State.STOPPING, Reason.REQUESTED)
    assert w.duties.stop.signal_name == "SIGTERM"
    assert w.duties.stop.kill_due_ns == w.mono_ns + 10 * NS
    assert types(w.exit(0, group_empty=False)) == ["exited"]
    assert w.service.state is State.STOPPING
    assert types(w.empty(killed=2)) == ["group_emptied"]
    assert w.records[-1].event.killed == 2
    assert w.where == (State.STOPPED, Reason.REQUESTED)
    assert is_settled(w.service, {})


def test_a_group_is_not_gone_while_its_leader_has_not_been_seen_to_end(world):
    w = world()
    w.run()
    w.stop()
    assert types(w.empty()) == []
    assert types(w.exit(0, killed=3)) == ["exited", "group_emptied"]
    assert w.records[-1].event.killed == 3


STOPS = {
    "never started": (lambda w: None, []),
    "spawning": (lambda w: w.start(), ["stop_requested"]),
    "Starting": (lambda w: (w.start(), w.spawn()), ["stop_requested"]),
    "Running": (lambda w: w.run(), ["stop_requested"]),
    "Stopping": (lambda w: (w.run(), w.stop()), []),
    "ended clean": (lambda w: (w.run(), w.exit(0)), ["stop_requested"]),
    "Failed": (
        lambda w: (w.start(), w.refuse(Reason.PROGRAM_MISSING)),
        ["stop_requested"],
    ),
    "Restarting": (lambda w: (w.start(), w.crash(), w.crash()), ["stop_requested"]),
}


@pytest.mark.parametrize("place", STOPS)
def test_a_stop_makes_it_unwanted_in_every_state_and_brings_it_to_rest(world, place):
    begin, expected = STOPS[place]
    w = world(policy="OnFailure")
    begin(w)
    assert types(w.stop()) == expected
    assert not w.service.wanted
    assert w.stop() == []
    if w.service.pid is not None:
        w.exit(None, signal=15)
    elif w.service.state is State.STOPPING:
        w.empty()
    assert w.service.state is State.STOPPED
    assert is_settled(w.service, {})
    assert w.duties == duties(Service(Definition("x", ("x",))))


LAST_WORDS = {"start": State.STARTING, "restart": State.STARTING, "stop": State.STOPPED}


@pytest.mark.parametrize("words", list(itertools.product(LAST_WORDS, repeat=3)), ids=" ".join)
def test_while_it_stops_the_last_word_wins(world, words):
    w = world()
    w.run()
    w.stop()
    due_ns = w.duties.stop.kill_due_ns
    for word in words:
        w.wait(1)
        getattr(w, word)()
        assert w.service.state is State.STOPPING
        assert w.duties.stop.kill_due_ns == due_ns, "a further word must not put off the SIGKILL"
    w.exit(1)
    assert w.service.state is LAST_WORDS[words[-1]]
    assert w.service.wanted is (words[-1] != "stop")


def test_a_word_that_changes_nothing_is_not_journaled(world):
    w = world()
    w.run()
    assert w.start() == []
    w.restart()
    assert w.restart() == w.start() == []
    w.exit(0)
    assert w.start() == []


def test_a_restart_is_a_new_run_after_the_old_one_is_gone_and_not_charged(world):
    w = world(limit=1, within_s=600)
    w.run()
    for run in range(2, 6):
        assert types(w.restart()) == ["restart_requested"]
        assert types(w.exit(1)) == ["exited", "group_emptied"]
        assert w.where == (State.STARTING, Reason.RESTART_REQUESTED)
        w.spawn()
        w.gate()
        assert w.service.run == run
    assert w.service.restarts == 0


@pytest.mark.parametrize("code", [0, 1])
def test_bound_for_failed_it_stays_so_whatever_the_exit_code(world, code):
    w = world(checks=("beat",), policy="Never")
    w.run()
    for _ in range(3):
        w.probe(ok=False)
    w.exit(code, group_empty=False)
    assert types(w.empty()) == ["group_emptied"]
    assert w.where == (State.FAILED, Reason.UNHEALTHY)


@pytest.mark.parametrize("ready", [True, False], ids=["Running", "Starting"])
@pytest.mark.parametrize("code", [0, 1])
def test_what_a_run_leaves_behind_is_gone_before_the_next(world, code, ready):
    w = world()
    w.start()
    w.spawn()
    if ready:
        w.gate()
    assert types(w.exit(code, group_empty=False)) == ["exited"]
    assert w.where == (State.STOPPING, Reason.LEFTOVERS)
    assert w.duties.stop is not None
    assert w.duties.spawn is None
    assert types(w.empty(1)) == ["group_emptied", *AT_ONCE]
    end = w.records[-3].event
    assert (end.dest, end.reason) == (
        (State.STOPPED, Reason.COMPLETED) if code == 0 else (State.FAILED, Reason.EXIT_CODE)
    )
    assert w.duties.spawn == 2


@pytest.mark.parametrize("code", [0, 1])
def test_what_is_left_behind_does_not_change_how_a_run_ended(world, code):
    w = world(policy="OnFailure")
    w.run()
    w.exit(code, group_empty=False)
    w.empty()
    assert w.service.state is (State.STOPPED if code == 0 else State.STARTING)
    assert w.service.last_exit.reason is (Reason.COMPLETED if code == 0 else Reason.EXIT_CODE)


def test_a_run_that_was_lost_with_others_of_its_group_alive_is_cleared_away_first(world):
    w = world()
    w.run()
    assert w.seen(inp.ProcessLost(run=1, group_empty=False)) == ["lost"]
    assert w.where == (State.STOPPING, Reason.LEFTOVERS)
    assert types(w.empty()) == ["group_emptied", *AT_ONCE]
    assert w.records[-3].event.reason is Reason.LOST


def test_a_run_that_never_executed_starts_again_even_when_something_was_left_of_it(world):
    w = world(policy="Never")
    w.start()
    w.spawn()
    w.exit(111, never_ran=True, group_empty=False)
    w.empty()
    assert w.where == (State.STARTING, Reason.NEVER_RAN)


# --- what comes too late --------------------------------------------------------------------------


def stale(run):
    """One of each observation about `run`."""
    return [
        inp.GateOpened(run=run),
        inp.StartTimerDue(run=run),
        inp.RestartTimerDue(run=run),
        inp.Probed(run=run, check="beat", ok=True, count=1),
        inp.Probed(run=run, check="beat", ok=False, count=9),
        inp.ProcessExited(run=run, exit_code=0),
        inp.ProcessExited(run=run, exit_code=1, group_empty=False),
        inp.ProcessLost(run=run),
        inp.ProcessLost(run=run, group_empty=False),
        inp.GroupGone(run=run),
        inp.ProcessFound(run=run, pid=1),
    ]


def spawns(run):
    return [
        inp.SpawnSucceeded(run=run, pid=9, start_time=None, digest="d"),
        inp.SpawnRefused(run=run, reason=Reason.NO_RESOURCES, message="no"),
    ]


PLACES = {
    "Stopped": lambda w: None,
    "spawning the first": lambda w: w.start(),
    "Starting": lambda w: (w.start(), w.spawn()),
    "Running": lambda w: w.run(),
    "Stopping": lambda w: (w.run(), w.stop()),
    "Restarting": lambda w: (w.start(), w.crash(), w.crash()),
    "spawning the next": lambda w: (w.run(), w.exit(1)),
    "Failed": lambda w: (w.start(), w.refuse(Reason.CWD_MISSING)),
}


@pytest.mark.parametrize("checks", [(), ("beat",)], ids=["no check", "a check"])
@pytest.mark.parametrize("place", PLACES)
def test_what_is_seen_of_another_run_changes_nothing(world, place, checks):
    w = world(checks=checks)
    PLACES[place](w)
    w.wait(3600)
    run = w.service.run
    for other in {run - 1, run + 1, run + 2, 0} - {run}:
        for observation in stale(other):
            assert (observation, w.seen(observation)) == (observation, [])
    for other in (run, run + 2, run - 1):
        for spawn in spawns(other):
            assert (spawn, w.seen(spawn)) == (spawn, [])


@pytest.mark.parametrize("checks", [(), ("beat",)], ids=["no check", "a check"])
@pytest.mark.parametrize("observation", stale(1), ids=lambda seen: type(seen).__name__)
def test_what_is_seen_of_the_last_run_changes_nothing_once_the_next_is_asked_for(
    world, observation, checks
):
    w = world(checks=checks)
    w.run()
    w.exit(1)
    w.wait(3600)
    assert (w.service.state, w.service.run, w.duties.spawn) == (State.STARTING, 1, 2)
    assert w.seen(observation) == []
    assert types(w.spawn()) == ["spawned"]


def test_an_input_that_changes_nothing_is_not_complained_of(world, caplog):
    w = world(checks=("beat",))
    w.run()
    assert w.probe(ok=True) == w.start() == w.gate() == []
    assert caplog.records == []


def test_a_run_ends_once(world):
    w = world()
    w.run()
    w.exit(1, group_empty=False)
    assert w.seen(inp.ProcessExited(run=1, exit_code=0, group_empty=False)) == []
    assert w.seen(inp.ProcessLost(run=1, group_empty=False)) == []
    assert w.service.last_exit.exit_code == 1
    w.empty()
    assert w.empty() == []
    assert types(w.records).count("exited") == 1


def test_a_spawn_that_succeeds_after_a_stop_is_not_let_in(world):
    w = world()
    w.start()
    w.stop()
    assert types(w.spawn()) == []
    assert w.service.pid is None
    assert types(w.empty()) == ["group_emptied"]
    assert w.where == (State.STOPPED, Reason.REQUESTED)
    assert types(w.spawn()) == []
    assert types(w.refuse(Reason.NO_RESOURCES)) == []


def test_a_refused_spawn_after_a_stop_changes_nothing(world):
    w = world()
    w.start()
    w.stop()
    assert types(w.refuse(Reason.PROGRAM_MISSING)) == []
    assert w.service.message is None


def test_a_second_process_for_the_same_run_is_not_let_in(world):
    w = world()
    w.start()
    w.spawn()
    for run in (1, 2):
        spawned = inp.SpawnSucceeded(run=run, pid=5, start_time=None, digest="d")
        assert w.seen(spawned) == []
    assert w.service.pid == 1001


# --- definitions ----------------------------------------------------------------------------------


def test_a_definition_is_journaled_when_it_is_new_or_another(world, define):
    w = world()
    assert types(w.records) == ["defined"]
    assert w.where == (State.STOPPED, Reason.DEFINED)
    assert w.seen(inp.Define(definition=define(), digest="digest-1")) == []
    assert w.seen(inp.Define(definition=define(), digest="digest-2")) == ["redefined"]
    assert w.seen(inp.Define(definition=define(position=1), digest="digest-2")) == ["redefined"]
    assert w.service.digest == "digest-2"


@pytest.mark.parametrize("place", PLACES)
def test_another_definition_moves_nothing(world, define, place):
    w = world()
    PLACES[place](w)
    where, before = w.where, w.duties
    assert w.seen(inp.Define(definition=define(cwd="/srv"), digest="digest-2")) == ["redefined"]
    assert (w.where, w.duties) == (where, before)
    assert w.service.definition.cwd == "/srv"


def test_a_check_that_is_no_longer_declared_is_forgotten(world, define):
    w = world(checks=("a", "b"))
    w.run()
    w.give(inp.Define(definition=define(checks=("b",)), digest="digest-2"))
    assert set(w.service.checks) == {"b"}


@pytest.mark.parametrize("place", ["Stopped", "Failed", "Restarting"])
def test_one_without_a_run_is_removed_at_once(world, place):
    w = world()
    PLACES[place](w)
    assert w.seen(inp.Remove()) == ["removed"]
    assert w.projection.services == {}


@pytest.mark.parametrize("place", ["spawning the first", "Starting", "Running", "Stopping"])
@pytest.mark.parametrize("policy", list(Policy))
def test_one_with_a_run_is_stopped_first_and_then_removed(world, place, policy):
    w = world(policy=policy)
    PLACES[place](w)
    w.give(inp.Remove())
    assert w.service.state is State.STOPPING
    assert not w.service.wanted
    ended = w.empty() if w.service.pid is None else w.exit(1)
    assert types(ended)[-2:] == ["group_emptied", "removed"]
    assert w.projection.services == {}


def test_one_that_is_restarting_by_request_can_be_removed(world):
    w = world()
    w.run()
    w.restart()
    w.give(inp.Remove())
    assert types(w.exit(0)) == ["exited", "group_emptied", "removed"]


def test_one_that_is_declared_again_while_it_goes_is_not_removed(world, define):
    w = world()
    w.run()
    w.give(inp.Remove())
    assert w.seen(inp.Define(definition=define(), digest="digest-1")) == ["redefined"]
    assert types(w.exit(0)) == ["exited", "group_emptied"]
    assert w.service.state is State.STOPPED


@pytest.mark.parametrize("command", [inp.Start, inp.Restart])
def test_one_that_is_being_removed_is_not_started_again(world, command):
    w = world()
    w.run()
    w.give(inp.Remove())
    w.give(command())
    assert types(w.exit(0)) == ["exited", "group_emptied", "removed"]


def test_the_numbers_of_runs_are_not_used_again_by_one_that_is_declared_again(world, define):
    w = world()
    w.run()
    w.exit(1)
    w.spawn()
    w.stop()
    w.exit(0)
    w.give(inp.Remove())
    last = w.projection.last_runs["web"]
    assert last == w.service.run == 2
    w.service = w.refold().add(define())
    assert w.seen(inp.Define(definition=define(), digest="digest-1")) == ["defined"]
    w.start()
    assert w.duties.spawn == last + 1


# --- cause and actor ------------------------------------------------------------------------------


def test_each_event_of_a_decision_is_caused_by_the_one_before(world):
    w = world()
    w.run()
    exited, scheduled, due = w.exit(1)
    assert (exited.cause, scheduled.cause, due.cause) == (None, exited.seq, scheduled.seq)
    assert {record.decision for record in (exited, scheduled, due)} == {exited.seq}
    (spawned,) = w.spawn()
    assert spawned.cause == due.seq
    assert spawned.decision == spawned.seq


def test_a_chain_of_causes_leads_from_readiness_to_the_command(world):
    w = world()
    w.run()
    chain, record = [], w.records[-1]
    while record.cause is not None:
        chain.append(record.type)
        record = w.records[record.cause - 1]
    assert [*chain, record.type] == ["became_ready", "spawned", "start_requested"]


def test_the_end_of_a_run_that_was_told_to_stop_is_caused_by_the_command(world):
    w = world()
    w.run()
    (stop,) = w.stop()
    exited, emptied = w.exit(0)
    assert (exited.cause, emptied.cause) == (stop.seq, exited.seq)


def test_a_reset_is_not_what_made_a_service_stop(world):
    w = world()
    w.run()
    (stopped,) = w.stop()
    (said,) = w.give(inp.Reset())
    exited, _emptied = w.exit(0)
    assert said.event.source is said.event.dest is State.STOPPING
    assert exited.cause == stopped.seq


def test_a_registry_that_takes_over_is_not_what_made_a_service_stop(world):
    w = world()
    w.run()
    (stopped,) = w.stop()
    w.give(inp.ProcessFound(run=1, pid=w.service.pid))
    exited, _emptied = w.exit(0)
    assert exited.cause == stopped.seq


def test_a_reset_is_not_what_a_restart_is_caused_by(world):
    w = world()
    w.run()
    w.crash()
    w.crash()
    scheduled = w.records[-1]
    w.give(inp.Reset())
    (due,) = w.due()
    assert (scheduled.type, due.cause) == ("restart_scheduled", scheduled.seq)


def test_unhealthiness_is_caused_by_the_result_that_began_the_streak(world):
    w = world(checks=("beat",))
    w.run()
    (changed,) = w.probe(ok=False)
    w.probe(ok=False)
    (unhealthy,) = w.probe(ok=False)
    assert unhealthy.cause == changed.seq


def test_who_asked_is_recorded_on_each_event_that_the_asking_led_to_at_once(world, define):
    w = world()
    define_it = inp.Define(definition=define(cwd="/x"), digest="2", actor=ROOT)
    commands = [define_it, inp.Start(actor=ROOT), inp.Restart(actor=ROOT), inp.Reset(actor=ROOT)]
    for command in (*commands, inp.Stop(actor=ROOT)):
        records = w.give(command)
        assert records
        assert {record.actor for record in records} == {ROOT}
    w.empty()
    assert w.records[-1].actor is None
    (removed,) = w.give(inp.Remove(actor=ROOT))
    assert removed.actor == ROOT


def test_a_command_may_name_the_event_that_it_is_because_of(world):
    w = world()
    (record,) = w.give(inp.Start(cause=1, reason=Reason.AUTOSTART))
    assert (record.cause, record.event.reason) == (1, Reason.AUTOSTART)


def test_events_name_the_run_that_they_are_of(world):
    w = world()
    w.run()
    w.exit(1)
    w.spawn()
    runs = {(record.type, record.run) for record in w.records}
    assert runs >= {("defined", None), ("spawned", 1), ("exited", 1), ("spawned", 2)}


# --- after the supervisor's own death ---------------------------------------------------------------


def test_a_run_that_was_found_alive_goes_on_as_it_was(world):
    w = world()
    w.run()
    assert w.seen(inp.ProcessFound(run=1, pid=1001)) == ["adopted"]
    assert w.where == (State.RUNNING, Reason.READY)
    assert w.duties.gate == 1


def test_wishes_survive_a_crash_and_are_set_anew_after_an_orderly_end(world):
    w = world()
    w.run()
    for fresh, wanted in ((False, True), (True, False)):
        projection = w.refold()
        started = ev.RegistryStarted(
            boot_id="b", pid_namespace="p", pid=1, version="1", fresh=fresh
        )
        seq = len(w.records) + 1
        projection.fold([ev.Record(seq, 1, 1, seq, None, None, None, None, started)])
        assert projection.services["web"].wanted is wanted
        assert projection.services["web"].autostart_due is fresh
        assert projection.seq == seq


def test_the_projection_knows_whether_the_end_was_orderly(world):
    w = world()
    projection = w.refold()
    created = ev.JournalCreated(journal_id="j", schema=1)
    started = ev.RegistryStarted(boot_id="b", pid_namespace="p", pid=1, version="1", fresh=True)
    assert projection.orderly
    for seq, event, orderly in (
        (2, created, True),
        (3, started, False),
        (4, ev.RegistryStopped(), True),
    ):
        projection.fold([ev.Record(seq, 9, 9, seq, None, None, None, None, event)])
        assert projection.orderly is orderly
    assert (projection.journal_id, projection.started, projection.started_at_ns) == (
        "j",
        started,
        9,
    )


def test_the_projection_lists_services_as_the_file_does(world):
    projection = world(name="b", position=2).projection
    for seq, (name, position) in enumerate([("c", 1), ("a", 3)], 2):
        defined = ev.Defined(
            source=State.STOPPED,
            dest=State.STOPPED,
            reason=Reason.DEFINED,
            definition=Definition(name=name, cmd=("x",), position=position),
            digest="d",
        )
        projection.fold([ev.Record(seq, 1, 1, seq, name, None, None, None, defined)])
    assert [service.name for service in projection.in_order()] == ["c", "b", "a"]


def test_an_unjournaled_run_that_is_adopted_again_is_still_known_by_its_start_time(world):
    w = world(ready=Ready.NOTIFY)
    w.give(inp.RunFound(run=1, pid=7, start_time=70))
    w.give(inp.NotifiedWatchdog(run=1, interval_s=5.0))
    w.give(inp.ProcessFound(run=1, pid=7))
    assert (w.service.state, w.service.pid, w.service.start_time) == (State.STARTING, 7, 70)
    assert w.service.watchdog_s == 5.0


def test_the_restarts_of_an_unjournaled_run_are_counted_from_the_first(world):
    w = world()
    w.give(inp.RunFound(run=1, pid=7, start_time=70))
    w.gate()
    assert delays(w.exit(1)) == [0]
    (delay,) = delays(w.crash())
    assert 0.5 <= delay <= 0.55
    assert w.service.attempt == 2


@pytest.mark.parametrize("run", [0, 1, 2])
def test_a_run_that_the_journal_knows_already_is_no_unjournaled_one(world, run):
    w = world()
    w.run()
    w.exit(1)
    w.spawn()
    w.gate()
    assert w.seen(inp.RunFound(run=run, pid=7, start_time=70)) == []
    assert (w.service.run, w.service.pid) == (2, 1002)
