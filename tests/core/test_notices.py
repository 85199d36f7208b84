"""What a run says about itself (sd_notify), what it is asked to do, and what it grows to.

As `sd_notify(3)` has it: READY, STOPPING, MAINPID, EXTEND_TIMEOUT_USEC, WATCHDOG_USEC.
"""

from __future__ import annotations

import pytest

from registry.core import inputs as inp
from registry.core.definition import Check, OnFailure, Ready, Reload, Stop
from registry.core.dependencies import is_settled
from registry.core.duties import duties
from registry.core.lifecycle import Reason, State
from registry.core.restarts import NS
from registry.core.service import Request

AT_ONCE = ["restart_scheduled", "restart_due"]
MIB = 1 << 20


def types(records):
    return [record.type for record in records]


def say(w, kind, **fields):
    return types(w.give(kind(run=w.service.run, **fields)))


# --- readiness ------------------------------------------------------------------------------------

SIGNS = {
    "its gate opens": lambda w: types(w.gate()),
    "every check succeeds": lambda w: types(w.probe(ok=True)),
    "it says so": lambda w: say(w, inp.NotifiedReady),
}
COUNTS = {Ready.SPAWN: "its gate opens", Ready.HEALTH: "every check succeeds"} | {
    Ready.NOTIFY: "it says so"
}


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("ready", list(Ready))
def test_it_is_ready_by_the_sign_that_its_definition_names_and_by_no_other(world, ready, sign):
    w = world(ready=ready, checks=("beat",))
    w.start()
    w.spawn()
    assert ("became_ready" in SIGNS[sign](w)) is (COUNTS[ready] == sign)
    assert w.service.state is (State.RUNNING if COUNTS[ready] == sign else State.STARTING)


def test_one_that_is_to_say_that_it_is_ready_and_does_not_times_out(world):
    w = world(ready=Ready.NOTIFY, start_timeout_s=5.0)
    w.start()
    w.spawn()
    w.gate()
    assert types(w.due()) == ["start_timed_out"]


def test_it_is_ready_once(world):
    w = world(ready=Ready.NOTIFY)
    w.start()
    w.spawn()
    assert say(w, inp.NotifiedReady) == ["became_ready"]
    assert say(w, inp.NotifiedReady) == []


# --- oneshot --------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["Always", "OnFailure", "Never"])
def test_a_oneshot_runs_to_its_end_and_is_completed_whatever_its_policy(world, policy):
    w = world(oneshot=True, policy=policy, ready=Ready.NOTIFY, checks=("beat",))
    w.start()
    w.spawn()
    assert types(w.gate()) == ["became_ready"]
    assert not is_settled(w.service, {})
    assert not w.service.completed
    assert types(w.exit(0)) == ["exited"]
    assert w.where == (State.STOPPED, Reason.COMPLETED)
    assert w.service.completed
    assert is_settled(w.service, {})


def test_a_oneshot_that_failed_runs_again_as_its_policy_says(world):
    w = world(oneshot=True, policy="OnFailure")
    w.run()
    assert types(w.exit(1)) == ["exited", *AT_ONCE]
    w = world(oneshot=True, policy="Never")
    w.run()
    assert types(w.exit(1)) == ["exited"]
    assert (w.service.state, w.service.completed) == (State.FAILED, False)


def test_a_oneshot_that_left_others_behind_is_completed_once_they_are_gone(world):
    w = world(oneshot=True)
    w.run()
    w.exit(0, group_empty=False)
    assert not w.service.completed
    assert types(w.empty()) == ["group_emptied"]
    assert w.where == (State.STOPPED, Reason.COMPLETED)
    assert w.service.completed


def test_what_was_completed_stays_so_until_the_next_run_begins(world):
    w = world(oneshot=True)
    w.run()
    w.exit(0)
    for word in (w.stop, lambda: w.give(inp.Reset())):
        word()
        assert w.service.completed
    w.start()
    assert w.service.completed
    w.spawn()
    assert not w.service.completed


def test_one_that_was_stopped_is_not_completed_though_it_ended_clean(world):
    w = world(oneshot=True)
    w.run()
    w.stop()
    w.exit(0)
    assert not w.service.completed


# --- it stops by itself ---------------------------------------------------------------------------


def announced(world, **fields):
    w = world(checks=("beat",), stop=Stop(timeout_s=4.0), **fields)
    w.run()
    w.wait(100)
    assert say(w, inp.NotifiedStopping) == ["stop_announced"]
    return w


def test_one_that_said_that_it_stops_is_checked_no_more_and_has_its_stop_timeout(world):
    w = announced(world)
    assert w.where == (State.RUNNING, Reason.READY)
    assert not w.duties.checks
    assert w.duties.timer.due_ns == w.mono_ns + 4 * NS
    assert w.seen(w.duties.timer.due) == [], "not before its time"
    assert say(w, inp.NotifiedStopping) == []


def test_one_that_said_that_it_stops_and_does_so_ended_as_it_ended(world):
    w = announced(world, policy="OnFailure")
    assert types(w.exit(0)) == ["exited"]
    assert w.where == (State.STOPPED, Reason.COMPLETED)


def test_one_that_said_that_it_stops_and_does_not_is_stopped_as_a_failure(world):
    w = announced(world)
    assert types(w.due()) == ["stop_timed_out"]
    assert w.where == (State.STOPPING, Reason.STOP_TIMEOUT)
    assert w.service.message == "said that it stops, and did not within 4 s"
    assert w.duties.stop.kill_due_ns == w.mono_ns + 4 * NS
    assert types(w.exit(0)) == ["exited", "group_emptied", *AT_ONCE]
    assert w.records[-3].event.dest is State.FAILED


def test_one_that_stops_while_it_starts_has_its_stop_timeout_instead_of_its_start_timeout(world):
    w = world(ready=Ready.NOTIFY, stop=Stop(timeout_s=4.0))
    w.start()
    w.spawn()
    say(w, inp.NotifiedExtension, seconds=300)
    assert say(w, inp.NotifiedStopping) == ["stop_announced"]
    assert w.duties.timer.due_ns == w.mono_ns + 4 * NS
    assert types(w.due()) == ["stop_timed_out"]


def test_the_next_run_of_one_that_announced_its_stop_is_checked_again(world):
    w = announced(world)
    w.exit(0)
    w.spawn()
    assert w.duties.checks
    assert isinstance(w.duties.timer.due, inp.StartTimerDue)
    assert say(w, inp.StopTimerDue) == []


def test_a_stop_timer_of_one_that_announced_nothing_stops_nothing(world):
    w = world()
    w.run()
    w.wait(3600)
    assert say(w, inp.StopTimerDue) == []


# --- more time ------------------------------------------------------------------------------------


def test_more_time_to_start_counts_from_when_it_is_asked_for(world):
    w = world(ready=Ready.NOTIFY, start_timeout_s=10.0)
    w.start()
    w.spawn()
    w.wait(9)
    assert say(w, inp.NotifiedExtension, seconds=20) == ["timeout_extended"]
    assert w.duties.timer.due_ns == w.mono_ns + 20 * NS
    w.wait(19)
    assert say(w, inp.StartTimerDue) == []
    assert types(w.due()) == ["start_timed_out"]


def test_less_time_than_it_has_is_no_extension(world):
    w = world(ready=Ready.NOTIFY, start_timeout_s=10.0)
    w.start()
    w.spawn()
    due_ns = w.duties.timer.due_ns
    say(w, inp.NotifiedExtension, seconds=1)
    assert w.duties.timer.due_ns == due_ns
    say(w, inp.NotifiedExtension, seconds=60)
    assert say(w, inp.NotifiedExtension, seconds=30) == []
    assert w.duties.timer.due_ns == w.mono_ns + 60 * NS


def test_who_asks_for_more_time_many_times_a_second_is_journaled_once(world):
    w = world(ready=Ready.NOTIFY, start_timeout_s=10.0)
    w.start()
    w.spawn()
    asked = []
    for _ in range(100):
        w.wait(0.01)
        asked += say(w, inp.NotifiedExtension, seconds=20)
        assert 0 <= w.duties.timer.due_ns - w.mono_ns - 20 * NS < NS, "it never gets less"
    assert len(asked) <= 2


def test_more_time_to_stop_puts_off_the_kill(world):
    w = world()
    w.run()
    w.stop()
    assert say(w, inp.NotifiedExtension, seconds=60) == ["timeout_extended"]
    assert w.duties.stop.kill_due_ns == w.mono_ns + 60 * NS


def test_more_time_to_start_is_not_more_time_to_stop(world):
    w = world(ready=Ready.NOTIFY)
    w.start()
    w.spawn()
    say(w, inp.NotifiedExtension, seconds=600)
    say(w, inp.NotifiedReady)
    w.stop()
    assert w.duties.stop.kill_due_ns == w.mono_ns + 10 * NS


def test_more_time_that_it_asked_for_its_own_stop_it_keeps_when_told_to_stop(world):
    w = announced(world)
    say(w, inp.NotifiedExtension, seconds=60)
    assert w.duties.timer.due_ns == w.mono_ns + 60 * NS
    w.stop()
    assert w.duties.stop.kill_due_ns == w.mono_ns + 60 * NS


def test_one_that_runs_and_stops_not_has_no_time_to_extend(world):
    w = world()
    w.run()
    assert say(w, inp.NotifiedExtension, seconds=60) == []


def test_the_next_run_has_its_own_time(world):
    w = world(ready=Ready.NOTIFY, start_timeout_s=10.0)
    w.start()
    w.spawn()
    say(w, inp.NotifiedExtension, seconds=600)
    w.exit(1)
    w.spawn()
    assert w.duties.timer.due_ns == w.mono_ns + 10 * NS


# --- its main process, its watchdog ---------------------------------------------------------------


def test_another_main_process_is_that_of_the_run_from_then_on(world):
    w = world()
    w.run()
    assert say(w, inp.NotifiedMain, pid=77, start_time=9) == ["main_changed"]
    assert (w.service.pid, w.service.start_time, w.service.run) == (77, 9, 1)
    assert say(w, inp.NotifiedMain, pid=77, start_time=9) == []
    assert w.records[-1].cause == next(r.seq for r in w.records if r.type == "spawned")
    assert types(w.exit(1))[0] == "exited"
    w.spawn()
    assert w.service.pid == 1002


def test_a_watchdog_is_that_of_the_run_until_its_end(world):
    w = world(checks=(Check("beat", "heartbeat:"),))
    w.run()
    assert say(w, inp.NotifiedWatchdog, interval_s=2.5) == ["watchdog_changed"]
    assert w.service.watchdog_s == 2.5
    assert say(w, inp.NotifiedWatchdog, interval_s=2.5) == []
    w.exit(1)
    w.spawn()
    assert w.service.watchdog_s is None


@pytest.mark.parametrize(
    "notice",
    [
        inp.NotifiedReady(run=1),
        inp.NotifiedStopping(run=1),
        inp.NotifiedMain(run=1, pid=7, start_time=7),
        inp.NotifiedExtension(run=1, seconds=60),
        inp.NotifiedWatchdog(run=1, interval_s=1),
        inp.MemoryFound(run=1, bytes=1 << 40),
        inp.StopTimerDue(run=1),
    ],
    ids=lambda notice: type(notice).__name__,
)
def test_what_is_said_of_a_run_that_is_over_changes_nothing(world, notice):
    w = world(ready=Ready.NOTIFY, memory_max=MIB)
    w.start()
    w.spawn()
    w.exit(1)
    assert w.seen(notice) == []
    w.spawn()
    assert w.seen(notice) == []


# --- a check that ends a run at once, and by its own signal ---------------------------------------


def test_a_final_failure_counts_as_if_its_threshold_were_reached(world):
    w = world(checks=(Check("beat", "heartbeat:", failures=5),))
    w.run()
    failed = inp.Probed(run=1, check="beat", ok=False, count=1, error="said so", final=True)
    assert w.seen(failed) == ["probe_changed", "became_unhealthy"]
    assert w.where == (State.STOPPING, Reason.UNHEALTHY)


def test_a_check_may_name_the_signal_that_ends_the_run_that_it_fails(world):
    w = world(checks=(Check("beat", "heartbeat:", failures=1, signal="SIGABRT"),))
    w.run()
    w.probe(ok=False)
    assert w.duties.stop.signal_name == "SIGABRT"
    w.exit(None, signal=6)
    w.spawn()
    w.probe(ok=True)
    w.stop()
    assert w.duties.stop.signal_name == "SIGTERM"


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ready", [True, False], ids=["Running", "Starting"])
def test_one_that_holds_more_memory_than_it_may_is_restarted_as_a_failure(world, ready):
    w = world(memory_max=100 * MIB, policy="OnFailure", ready=Ready.NOTIFY)
    w.start()
    w.spawn()
    if ready:
        say(w, inp.NotifiedReady)
    for allowed in (0, MIB, 100 * MIB - 1, 100 * MIB):
        assert (allowed, say(w, inp.MemoryFound, bytes=allowed)) == (allowed, [])
    assert say(w, inp.MemoryFound, bytes=130 * MIB) == ["memory_exceeded"]
    assert w.where == (State.STOPPING, Reason.MEMORY_MAX)
    assert w.service.message == "held 130 MiB of memory, more than its 100"
    assert say(w, inp.MemoryFound, bytes=130 * MIB) == []
    assert types(w.exit(0)) == ["exited", "group_emptied", *AT_ONCE]


def test_one_without_a_bound_may_hold_what_it_likes(world):
    w = world()
    w.run()
    assert say(w, inp.MemoryFound, bytes=1 << 50) == []


# --- signals and reloads --------------------------------------------------------------------------


def test_a_signal_and_a_reload_are_duties_of_the_run_until_they_are_done(world):
    w = world(reload=Reload(signal="SIGHUP"))
    w.run()
    (signal,) = w.give(inp.Signal(signal="SIGUSR1"))
    (reload_,) = w.give(inp.Reload())
    assert (signal.type, reload_.type) == ("signal_requested", "reload_requested")
    assert w.duties.requests == (Request(signal.seq, "SIGUSR1"), Request(reload_.seq, None))
    (done,) = w.give(inp.RequestCarriedOut(run=1, request=signal.seq))
    assert (done.type, done.event.error, done.cause) == ("request_done", None, signal.seq)
    assert w.duties.requests == (Request(reload_.seq, None),)
    assert say(w, inp.RequestCarriedOut, request=signal.seq) == [], "once"
    (failed,) = w.give(inp.RequestCarriedOut(run=1, request=reload_.seq, error="exit code 1"))
    assert failed.event.error == "exit code 1"
    assert w.duties.requests == ()
    assert w.where == (State.RUNNING, Reason.READY)


def test_what_is_asked_of_one_that_starts_is_done_once_it_runs(world):
    w = world(ready=Ready.NOTIFY)
    w.start()
    w.spawn()
    assert types(w.give(inp.Signal(signal="SIGHUP"))) == ["signal_requested"]
    assert w.duties.requests == ()
    say(w, inp.NotifiedReady)
    assert len(w.duties.requests) == 1


@pytest.mark.parametrize("done", [0, 1, 2])
def test_what_is_done_is_a_duty_no_more_and_the_rest_stays_in_order(world, done):
    w = world()
    w.run()
    asked = [Request(w.give(inp.Signal(signal=s))[0].seq, s) for s in ("HUP", "USR1", "USR2")]
    say(w, inp.RequestCarriedOut, request=asked.pop(done).seq)
    assert w.duties.requests == tuple(asked)


@pytest.mark.parametrize("end", ["crash", "stop", "restart"])
def test_what_was_asked_of_a_run_is_not_asked_of_the_next(world, end):
    w = world()
    w.run()
    (asked,) = w.give(inp.Signal(signal="SIGHUP"))
    if end == "crash":
        w.exit(1)
    else:
        getattr(w, end)()
        assert w.duties.requests == ()
        w.exit(0)
    if end == "stop":
        assert w.service.requests == ()
        w.start()
    w.spawn()
    w.gate()
    assert w.duties.requests == w.service.requests == ()
    assert w.seen(inp.RequestCarriedOut(run=1, request=asked.seq)) == []


def test_nothing_is_asked_of_one_that_has_no_process(world):
    w = world(reload=Reload(signal="SIGHUP"))
    for _ in range(2):
        assert w.give(inp.Signal(signal="SIGHUP")) == w.give(inp.Reload()) == []
        w.start()
        w.exit(0)


def test_one_that_declares_no_reload_is_not_asked_to(world):
    w = world()
    w.run()
    assert w.give(inp.Reload()) == []


def test_a_report_of_a_failing_check_takes_no_request_away(world):
    w = world(checks=(Check("beat", "unix:/s", on_failure=OnFailure.REPORT, failures=1),))
    w.run()
    w.give(inp.Signal(signal="SIGHUP"))
    w.probe(ok=False)
    assert len(duties(w.service).requests) == 1
