"""How available services were: given these events, these measures. And always, times add up to the period."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.core import inputs as inp
from registry.core.definition import Check, Definition, Dependency, OnFailure, Policy, Restart
from registry.core.events import Actor, JournalCreated, Now, Record, RegistryStopped
from registry.core.lifecycle import Reason, State
from registry.core.projection import Projection
from registry.past.report import report
from registry.questions.moments import Moment
from registry.questions.report import Known, Ledger, ServiceReport
from tests.questions.conftest import _GOLDEN

NS = 1_000_000_000
OPERATOR = Actor(uid=1000, pid=7, program="circlectl")
WEB = Definition("web", ("./web",))
DB = Definition("db", ("./db",))


def begin(story: Any, *definitions: Definition, boot: str = "boot-1", fresh: bool = True) -> int:
    """A registry starts on an empty journal, and declares services."""
    story.say(JournalCreated("journal-1", 1))
    cause = story.begin(boot, 300, fresh=fresh)
    for definition in definitions or (WEB,):
        story.define(definition, cause)
    return int(cause)


def run(story: Any, name: str = "web") -> None:
    """It is started, and ready at once."""
    story.tell(name, inp.Start(actor=OPERATOR))
    story.spawn(name, 100)


def kill(story: Any, after_s: float, boot: str = "boot-1") -> None:
    """The registry is killed; after a while there is another, perhaps in another boot."""
    story.wait(after_s)
    if boot != "boot-1":
        story.now = Now(story.now.at_ns, 3 * NS)
    story.begin(boot, 301, fresh=boot != "boot-1")


# --- the stories: each tells what happens, and what web is said to have been ------------------------


def fails_once(story: Any) -> None:
    begin(story)
    run(story)
    story.wait(100)
    story.end("web", 3)
    story.spawn("web", 101)
    story.wait(100)


def is_restarted_by_somebody(story: Any) -> None:
    begin(story)
    run(story)
    story.wait(100)
    story.tell("web", inp.Restart(actor=OPERATOR))
    story.wait(5)
    story.end("web", signal=15)
    story.spawn("web", 101)
    story.wait(95)


def is_stopped_for_a_while(story: Any) -> None:
    begin(story)
    run(story)
    story.wait(100)
    story.tell("web", inp.Stop(actor=OPERATOR))
    story.end("web", signal=15)
    story.wait(50)
    run(story)
    story.wait(30)


def completes(story: Any) -> None:
    begin(story, msgspec.structs.replace(WEB, restart=Restart(Policy.ON_FAILURE)))
    run(story)
    story.wait(20)
    story.end("web", 0)
    story.wait(80)


def ends_clean_and_is_started_again(story: Any) -> None:
    begin(story)
    run(story)
    story.wait(40)
    story.end("web", 0)
    story.spawn("web", 101)
    story.wait(40)


def is_a_oneshot(story: Any) -> None:
    begin(story, msgspec.structs.replace(WEB, oneshot=True, restart=Restart(Policy.NEVER)))
    run(story)
    story.wait(20)
    story.end("web", 0)
    story.wait(80)


def gives_up(story: Any) -> None:
    begin(story, msgspec.structs.replace(WEB, restart=Restart(limit=1, within_s=600)))
    run(story)
    story.wait(100)
    story.end("web", 3)
    story.wait(10)
    story.spawn("web", 101)
    story.wait(100)
    story.end("web", 3)
    story.wait(50)


def outlives_the_registry(story: Any) -> None:
    begin(story)
    run(story)
    story.wait(100)
    story.tell("web", inp.Signal(signal="SIGHUP", actor=OPERATOR))
    kill(story, 600)
    story.tell("web", inp.ProcessFound(run=1, pid=100))
    story.wait(50)


def is_kept_and_found(story: Any) -> None:
    begin(story)
    run(story)
    story.wait(100)
    story.say(RegistryStopped(kept=True))
    kill(story, 600)
    story.tell("web", inp.ProcessFound(run=1, pid=100))


def is_lost(story: Any) -> None:
    begin(story)
    run(story)
    story.wait(100)
    story.tell("web", inp.Signal(signal="SIGHUP", actor=OPERATOR))
    kill(story, 600)
    story.tell("web", inp.ProcessLost(run=1))
    story.spawn("web", 101)
    story.wait(50)


def exits_while_nobody_looks(story: Any) -> None:
    """Its exit status is known, when it ended is not."""
    begin(story)
    run(story)
    story.wait(100)
    story.tell("web", inp.Signal(signal="SIGHUP", actor=OPERATOR))
    kill(story, 600)
    story.end("web", 9)
    story.wait(20)
    story.spawn("web", 101)
    story.wait(50)


def two_registries_are_killed(story: Any) -> None:
    """The second one dies before it has looked."""
    begin(story)
    run(story)
    story.wait(100)
    story.tell("web", inp.Signal(signal="SIGHUP", actor=OPERATOR))
    kill(story, 300)
    kill(story, 300)
    story.tell("web", inp.ProcessLost(run=1))


def sees_a_reboot(story: Any) -> None:
    begin(story)
    run(story)
    story.wait(100)
    story.tell("web", inp.Signal(signal="SIGHUP", actor=OPERATOR))
    kill(story, 1000, boot="boot-2")
    story.tell("web", inp.ProcessLost(run=1))
    story.tell("web", inp.Start(reason=Reason.AUTOSTART))
    story.spawn("web", 50)
    story.wait(50)


def sees_an_orderly_shutdown(story: Any) -> None:
    """What was stopped is not up, and nobody wants it to be."""
    begin(story)
    run(story)
    story.wait(100)
    story.tell("web", inp.Stop(reason=Reason.SHUTDOWN))
    story.end("web", signal=15)
    story.say(RegistryStopped())
    kill(story, 1000, boot="boot-2")


def fails_while_the_clock_is_set_back(story: Any) -> None:
    begin(story)
    run(story)
    story.wait(100)
    story.set_clock_back(7200)
    story.wait(100)
    story.end("web", 3)
    story.wait(4)
    story.spawn("web", 101)


def is_resynced(story: Any) -> None:
    """Events could not be written: it is known since when it runs, not what was before."""
    begin(story)
    run(story)
    story.wait(100)
    story.tell("web", inp.Signal(signal="SIGHUP", actor=OPERATOR))
    written = len(story.records)
    story.wait(30)
    story.end("web", 3)
    story.wait(10)
    story.spawn("web", 101)
    story.wait(60)
    del story.records[written:]
    story.resync("web", events=5)
    story.wait(100)


def is_resynced_as_it_was(story: Any) -> None:
    begin(story)
    run(story)
    story.wait(100)
    story.resync("web", events=2)
    story.wait(100)


def is_found_though_not_journaled(story: Any) -> None:
    """The journal could not be written when it began, and the registry was killed then."""
    begin(story)
    run(story)
    story.wait(100)
    story.tell("web", inp.Stop(actor=OPERATOR))
    story.end("web", signal=15)
    story.wait(50)
    story.begin("boot-1", 301, fresh=False)
    story.tell("web", inp.RunFound(run=2, pid=102, start_time=1020), inp.GateOpened(run=2))
    story.wait(20)
    story.begin("boot-1", 302, fresh=False)
    story.tell("web", inp.ProcessFound(run=2, pid=102))
    story.wait(20)


def is_removed_and_declared_again(story: Any) -> None:
    cause = begin(story)
    run(story)
    story.wait(100)
    story.tell("web", inp.Remove(actor=OPERATOR))
    story.end("web", signal=15)
    del story.services["web"]
    story.wait(40)
    story.define(WEB, cause)
    story.services["web"].run = 1
    run(story)
    story.wait(60)


def is_unhealthy_and_only_reported(story: Any) -> None:
    check = Check("queue", "cmd:./q", failures=1, on_failure=OnFailure.REPORT)
    begin(story, msgspec.structs.replace(WEB, checks=(check,)))
    run(story)
    story.probe("web", "queue", "+-")
    story.wait(80)


def waits_for_another(story: Any) -> None:
    begin(story, msgspec.structs.replace(WEB, depends_on=(Dependency("db"),)), DB)
    story.tell("web", inp.Start(actor=OPERATOR))
    story.wait(70)
    run(story, "db")
    story.look("web")
    story.spawn("web", 101)
    story.wait(30)


def cannot_begin(story: Any) -> None:
    begin(story)
    story.tell("web", inp.Start(actor=OPERATOR))
    refused = inp.SpawnRefused(run=1, reason=Reason.PROGRAM_MISSING, message="no such program")
    story.tell("web", refused)
    story.wait(60)


TOLD: list[tuple[Callable[[Any], None], dict[str, int], dict[str, Any]]] = [
    (fails_once, {"Running": 200}, {"failures": 1, "outages": 1, "restarts": 1, "runs": 2}),
    (
        is_restarted_by_somebody,
        {"Running": 195, "Stopping": 5},
        {"failures": 0, "outages": 0, "restarts": 0, "runs": 2, "down": 5, "availability": 0.975},
    ),
    (is_stopped_for_a_while, {"Running": 130, "Stopped": 50}, {"down": 0, "outages": 0}),
    (completes, {"Running": 20, "Stopped": 80}, {"up": 20, "down": 0, "availability": 1.0}),
    (
        ends_clean_and_is_started_again,
        {"Running": 80},
        {"failures": 0, "outages": 0, "restarts": 1},
    ),
    (is_a_oneshot, {"Running": 20, "Stopped": 80}, {"up": 0, "down": 0, "availability": None}),
    (
        gives_up,
        {"Running": 200, "Starting": 10, "Failed": 50},
        {"failures": 2, "outages": 2, "mtbf": 100, "mttr": 10, "longest": 50, "ongoing": True},
    ),
    (outlives_the_registry, {"Running": 750}, {"up": 750, "unknown": 0, "failures": 0}),
    (is_kept_and_found, {"Running": 700}, {"up": 700, "failures": 0}),
    (
        is_lost,
        {"Running": 150, "unknown": 600},
        {"up": 150, "down": 0, "unknown": 600, "failures": 1, "outages": 1, "restarts": 1},
    ),
    (
        exits_while_nobody_looks,
        {"Running": 150, "unknown": 600, "Starting": 20},
        {"down": 20, "failures": 1, "longest": 20},
    ),
    (two_registries_are_killed, {"Running": 100, "unknown": 600}, {"failures": 1}),
    (sees_a_reboot, {"Running": 150, "unknown": 1000}, {"failures": 0, "outages": 0}),
    (sees_an_orderly_shutdown, {"Running": 100, "Stopped": 1000}, {"down": 0, "unknown": 0}),
    (
        fails_while_the_clock_is_set_back,
        {"Running": 200, "Starting": 4},
        {"down": 4, "mttr": 4, "longest": 4},
    ),
    (is_resynced, {"Running": 260, "unknown": 40}, {"runs": 2, "restarts": 1}),
    (is_resynced_as_it_was, {"Running": 200}, {"runs": 1, "unknown": 0}),
    (
        is_found_though_not_journaled,
        {"Running": 140, "unknown": 50},
        {"runs": 2, "failures": 0, "down": 0},
    ),
    (is_removed_and_declared_again, {"Running": 160, "undeclared": 40}, {"down": 0, "runs": 2}),
    (is_unhealthy_and_only_reported, {"Running": 90, "Starting": 10}, {"failures": 0}),
    (
        waits_for_another,
        {"Stopped": 70, "Running": 30},
        {"down": 70, "outages": 0, "failures": 0, "mttr": None, "availability": 0.3},
    ),
    (
        cannot_begin,
        {"Failed": 60},
        {"down": 60, "runs": 0, "failures": 1, "mtbf": 0, "mttr": None, "availability": 0.0},
    ),
]


def _measures(told: ServiceReport) -> dict[str, Any]:
    """A report to the second, and the availability to a thousandth."""
    longest, shown = told.longest_outage, msgspec.structs.asdict(told)
    rounded = {
        name: round(value) if (value := shown[f"{name}_s"]) is not None else None
        for name in ("up", "down", "unknown", "mtbf", "mttr")
    }
    share = told.availability
    return {
        **{key: shown[key] for key in ("runs", "failures", "outages", "restarts")},
        **rounded,
        "availability": round(share, 3) if share is not None else None,
        "longest": round(longest.seconds) if longest else None,
        "ongoing": longest.ongoing if longest else None,
    }


def _states(told: ServiceReport) -> dict[str, int]:
    return {state: spent for state, s in told.states_s.items() if (spent := round(s))}


@pytest.mark.parametrize(
    ("tell", "states", "measures"), TOLD, ids=lambda v: getattr(v, "__name__", "")
)
def test_what_happened_comes_to_these_measures(story, opened, tell, states, measures) -> None:
    tell(story)
    journal = opened(story.records)
    told = report(journal, now=story.now)
    (web,) = (each for each in told.services if each.service == "web")
    assert _states(web) == states
    assert {key: _measures(web)[key] for key in measures} == measures
    assert sum(web.states_s.values()) == pytest.approx(told.period.seconds)
    assert report(journal, ("web",), now=story.now) == msgspec.structs.replace(
        told, services=(web,)
    )


# --- periods --------------------------------------------------------------------------------------


@pytest.fixture
def failed_once(story, opened):
    """A journal of 200 s, in the middle of which web fails; and the time of its first event."""
    fails_once(story)
    story.tell("web", inp.Signal(signal="SIGHUP", actor=OPERATOR))
    return opened(story.records), story.records[0].at_ns


def at(at_ns: int, seconds: float = 0) -> Moment:
    return Moment(at_ns + int(seconds * NS), at_ns + int(seconds * NS))


def test_a_period_is_a_part_of_the_journal(failed_once) -> None:
    journal, first_ns = failed_once
    told = report(journal, since=at(first_ns, 50), until=at(first_ns, 90))
    assert told.period.seconds == pytest.approx(40)
    assert _states(told.services[0]) == {"Running": 40}
    assert (told.services[0].failures, told.services[0].restarts_per_day) == (0, None)
    both = report(journal, since=at(first_ns, 50), until=at(first_ns, 150)).services[0]
    assert (round(both.up_s), both.failures, both.outages) == (100, 1, 1)


def test_what_was_before_the_journal_is_unknown(failed_once) -> None:
    journal, first_ns = failed_once
    told = report(journal, since=at(first_ns, -1000))
    assert _states(told.services[0]) == {"Running": 200, "unknown": 1000}
    assert told.services[0].availability == pytest.approx(1, abs=0.001)
    assert told.period.seconds == pytest.approx(1200, abs=0.1)
    none = report(journal, since=at(first_ns, -1000), until=at(first_ns, -900))
    assert (none.services, none.period.seconds) == ((), 100)


def test_what_comes_after_a_journal_that_nobody_writes_is_unknown(failed_once) -> None:
    journal, first_ns = failed_once
    (web,) = report(journal, until=at(first_ns, 1200)).services
    assert (round(web.up_s), round(web.unknown_s)) == (200, 1000)


def test_where_its_registry_runs_what_the_last_event_left_is_so_still(failed_once, story) -> None:
    journal, _ = failed_once
    last = story.records[-1]
    now = Now(last.at_ns + 700 * NS, last.mono_ns + 700 * NS)
    (web,) = report(journal, now=now).services
    assert (round(web.up_s), web.unknown_s) == (900, 0)
    set_back = Now(last.at_ns - 3600 * NS, last.mono_ns + 700 * NS)
    assert round(report(journal, now=set_back).services[0].up_s) == 900
    (web,) = report(journal, until=Moment(2**62, 2**62), now=now).services
    assert (round(web.up_s), web.unknown_s) == (900, 0)


def test_an_empty_period_says_nothing(failed_once) -> None:
    journal, first_ns = failed_once
    told = report(journal, since=at(first_ns, 50), until=at(first_ns, 50))
    (web,) = told.services
    assert (told.period.seconds, web.availability, web.mtbf_s, web.restarts_per_day) == (
        0,
        None,
        None,
        None,
    )
    later = report(journal, since=at(first_ns, 60), until=at(first_ns, 50))
    assert later.period.seconds == 0


def test_a_period_that_ends_while_no_registry_runs_leaves_runs_unknown(story, opened) -> None:
    is_lost(story)
    first_ns = story.records[0].at_ns
    (web,) = report(opened(story.records), until=at(first_ns, 400)).services
    assert _states(web) == {"Running": 100, "unknown": 300}


def test_an_empty_journal_has_nothing_to_report(opened) -> None:
    told = report(opened([]))
    assert (told.services, told.period.seconds) == ((), 0)


def test_a_rate_of_restarts_is_told_of_an_hour_at_least(story, opened) -> None:
    fails_once(story)
    story.wait(86_400 - 200)
    story.end("web", 3)
    (web,) = report(opened(story.records)).services
    assert web.restarts_per_day == pytest.approx(2, rel=0.001)


def test_each_service_of_the_golden_journal_is_told_alike_alone_and_with_the_others(
    golden, opened
) -> None:
    journal = opened(golden)
    told = report(journal)
    for service in told.services:
        assert report(journal, (service.service,)).services == (service,)
        assert sum(service.states_s.values()) == pytest.approx(told.period.seconds)


# --- whatever happens -----------------------------------------------------------------------------

_WHAT = (
    "start",
    "stop",
    "restart",
    "reset",
    "remove",
    "define",
    "spawn",
    "gate",
    "end",
    "fail",
    "linger",
    "gone",
    "due",
    "lost",
    "found",
    "unjournaled",
    "resync",
    "kill",
    "reboot",
    "back",
    "wait",
)
_STEPS = st.lists(
    st.tuples(
        st.sampled_from(_WHAT),
        st.sampled_from(("web", "db")),
        st.integers(0, 5000),
    ),
    max_size=60,
)


def _step(story: Any, what: str, name: str, amount: int) -> None:
    if what == "wait":
        story.wait(amount / 10)
    elif what == "back":
        story.set_clock_back(amount)
    elif what in ("kill", "reboot"):
        if what == "reboot":
            story.now = Now(story.now.at_ns + amount * NS, amount * 1000)
        story.begin(f"boot-{amount}" if what == "reboot" else "boot-1", 9, fresh=what == "reboot")
    elif name not in story.services:
        if what == "define":
            story.define(DB if name == "db" else WEB, 2)
    elif what == "resync":
        story.resync(name, events=amount)
    else:
        run = story.services[name].run
        given: dict[str, inp.Input] = {
            "start": inp.Start(actor=OPERATOR),
            "stop": inp.Stop(actor=OPERATOR),
            "restart": inp.Restart(actor=OPERATOR),
            "reset": inp.Reset(actor=OPERATOR),
            "remove": inp.Remove(actor=OPERATOR),
            "spawn": inp.SpawnSucceeded(run=run + 1, pid=100, start_time=1, digest="d"),
            "gate": inp.GateOpened(run=run),
            "end": inp.ProcessExited(run=run, exit_code=0),
            "fail": inp.ProcessExited(run=run, signal=9),
            "linger": inp.ProcessExited(run=run, exit_code=0, group_empty=False),
            "gone": inp.GroupGone(run=run, killed=0),
            "due": inp.RestartTimerDue(run=run),
            "lost": inp.ProcessLost(run=run),
            "found": inp.ProcessFound(run=run, pid=100),
            "unjournaled": inp.RunFound(run=run + 1, pid=100, start_time=1),
        }
        if what in given:
            story.tell(name, given[what])
        if story.records[-1].type == "removed":
            story.services.pop(story.records[-1].service, None)


@settings(deadline=None)
@given(_STEPS, st.integers(0, 60), st.sampled_from(Known), st.integers(0, 1000))
def test_the_times_in_all_states_add_up_to_the_period(steps, cut, known, tail_s) -> None:
    story = _GOLDEN["Story"]()
    begin(story, WEB, DB)
    for step in steps:
        _step(story, *step)
    records: list[Record] = story.records
    cut = min(cut, len(records) - 1)
    projection = Projection()
    projection.fold(records[: cut + 1])
    ledger = Ledger(projection, Now(records[cut].at_ns, records[cut].mono_ns), (), 5 * NS)
    ledger.fold(records[cut + 1 :])
    told = ledger.close(records[-1].at_ns, tail_s * NS, known)
    for service in told.services:
        assert sum(service.states_s.values()) == pytest.approx(told.period.seconds)
        assert min(service.states_s.values()) >= 0
        assert service.up_s <= service.states_s[State.RUNNING.value] + 1e-9
        whole = service.up_s + service.down_s + service.unknown_s
        assert whole <= told.period.seconds + 1e-6
        assert service.unknown_s >= 5
