"""Many services as one system: who waits for whom, who follows whom, who stops before whom.

The rules are a table in the README: what happens to a dependency, and what its dependents do. Each cell is a test.
"""

from __future__ import annotations

import itertools

import pytest

from registry.core import events as ev
from registry.core import inputs as inp
from registry.core.definition import (
    Check,
    Condition,
    Definition,
    Dependency,
    OnFailure,
    Policy,
    Ready,
)
from registry.core.dependencies import (
    ALONE,
    Around,
    Graph,
    around,
    is_met,
    is_settled,
    needs,
    unmet,
)
from registry.core.duties import Duties, duties
from registry.core.lifecycle import Reason, State
from registry.core.service import Service
from registry.questions.waiting import waiting_for

WAITS = (State.STOPPED, Reason.WAITING)
RUNS = (State.RUNNING, Reason.READY)
ONESHOT = {"oneshot": True, "policy": Policy.NEVER}
BEAT = Check("beat", "unix:/s", on_failure=OnFailure.REPORT)
SLOW = {"ready": Ready.NOTIFY}
"""Ready only when it says so: a test can look at what waits for it meanwhile."""


def types(records):
    return [(record.service, record.type) for record in records]


# --- the table: those that wait -------------------------------------------------------------------


@pytest.fixture
def waits(system):
    """`web` waits for `db`, which is Starting."""
    s = system(db=("", SLOW | {"limit": 1, "within_s": 600}), web="db")
    s.start("web")
    assert s.where("web") == WAITS
    assert s["db"].state is State.STARTING
    assert waiting_for(s["web"], s.services) == "db to be ready"
    return s


def test_when_it_gets_ready_those_that_wait_start(waits):
    records = waits.obey("db")
    assert types(records) == [
        ("db", "became_ready"),
        ("web", "dependencies_met"),
        ("web", "spawned"),
    ]
    waits.settle()
    assert waits.running() == {"db", "web"}


def test_when_it_fails_and_restarts_those_that_wait_wait_on(waits):
    assert types(waits.crash("db"))[-1] == ("db", "spawned")
    assert waits.where("web") == WAITS
    waits.settle()
    assert waits.running() == {"db", "web"}


def test_while_its_restart_is_delayed_those_that_wait_say_for_whom(system):
    s = system(db=("", SLOW), web="db")
    s.start("web")
    s.crash("db")
    s.crash("db")
    assert s.where("db") == (State.RESTARTING, Reason.CRASH_LOOPING)
    assert waiting_for(s["web"], s.services) == "db to be ready"
    assert not s.is_settled("web")
    s.settle()
    assert s.running() == {"db", "web"}


def test_when_it_is_restarted_by_an_operator_those_that_wait_wait_on(waits):
    waits.restart("db")
    assert waits.where("web") == WAITS
    waits.obey("db")
    assert (waits.where("web"), waits["db"].run) == (WAITS, 2)
    waits.settle()
    assert waits.running() == {"db", "web"}


def test_when_it_is_stopped_by_an_operator_those_that_wait_wait_on_and_name_it(waits):
    waits.give("db", inp.Stop())
    waits.settle()
    assert waits.where("web") == WAITS
    assert waits["web"].wanted
    assert waiting_for(waits["web"], waits.services) == "db to be ready (it is stopped)"
    waits.start("db")
    waits.settle()
    assert waits.running() == {"db", "web"}


def test_when_it_gave_up_those_that_wait_wait_on_and_its_reason_is_shown(waits):
    waits.crash("db")
    waits.crash("db")
    assert waits.where("db") == (State.FAILED, Reason.RESTART_LIMIT)
    assert waits.where("web") == WAITS
    assert waits.is_settled("web")
    asked_for = waiting_for(waits["web"], waits.services)
    assert asked_for == "db to be ready (it failed: restart limit)"
    waits.start("db")
    waits.settle()
    assert waits.running() == {"db", "web"}


def test_when_its_oneshot_failed_those_that_wait_wait_on_and_its_reason_is_shown(system):
    s = system(migrate=("", ONESHOT), web="migrate:completed")
    s.codes["migrate"] = 3
    s.start("web")
    s.settle()
    assert s.where("migrate") == (State.FAILED, Reason.EXIT_CODE)
    assert s.where("web") == WAITS
    asked_for = waiting_for(s["web"], s.services)
    assert asked_for == "migrate to be completed (it failed: exit code)"
    s.codes.clear()
    s.start("migrate")
    s.settle()
    assert s.running() == {"web"}


# --- the table: those that run, without and with restart = true -----------------------------------


@pytest.fixture
def run(system):
    """`stays` and `follows` run; both depend on `db`, one with `restart = true`."""
    limited = {"limit": 1, "within_s": 600}
    s = system(db=("", SLOW | limited), stays="db", follows="db!")
    s.start("stays", "follows")
    s.settle()
    assert s.running() == {"db", "stays", "follows"}
    return s


def runs(s):
    return s["stays"].run, s["follows"].run


def test_when_it_gets_ready_those_that_run_stay(system):
    """A dependent runs while its dependency is not ready when that one was started for another reason."""
    s = system(db=("", SLOW), stays="db:started", follows="db:started!")
    s.start("stays", "follows")
    for name in ("stays", "follows"):
        s.obey(name)
    assert s.running() == {"stays", "follows"}
    assert types(s.obey("db")) == [("db", "became_ready")]
    assert runs(s) == (1, 1)


def test_when_it_fails_and_restarts_those_that_run_stay_and_followers_restart_once_it_is_ready(run):
    run.crash("db")
    assert run.running() == {"stays", "follows"}
    assert [run.where(name) for name in ("stays", "follows")] == [RUNS, RUNS]
    run.obey("db")
    assert run.where("stays") == RUNS
    assert run.where("follows") == (State.STOPPING, Reason.DEPENDENCY)
    run.settle()
    assert (run.running(), runs(run)) == ({"db", "stays", "follows"}, (1, 2))


def test_when_it_is_restarted_by_an_operator_followers_restart_once_it_is_ready(run):
    run.restart("db")
    assert run.running() == {"stays", "follows"}
    run.obey("db")
    assert run["db"].run == 2
    assert run.running() == {"stays", "follows"}
    run.settle()
    assert (run.running(), runs(run)) == ({"db", "stays", "follows"}, (1, 2))


def test_when_it_is_stopped_by_an_operator_followers_stop_and_start_with_it(run):
    run.give("db", inp.Stop())
    assert run.where("stays") == RUNS
    assert run.where("follows") == (State.STOPPING, Reason.DEPENDENCY)
    run.settle()
    assert run.running() == {"stays"}
    assert run.where("follows") == WAITS
    assert run.is_settled("follows")
    run.start("db")
    assert run.where("follows") == WAITS
    run.settle()
    assert (run.running(), runs(run)) == ({"db", "stays", "follows"}, (1, 2))


def test_when_it_is_stopped_with_its_dependents_they_stop_first(run):
    run.stop("db")
    assert run.where("db") == (State.RUNNING, Reason.REQUESTED)
    assert waiting_for(run["db"], run.services) == "stays and follows to stop"
    assert not run["db"].wanted
    assert run.obey("follows")[-1].type == "group_emptied"
    assert run["db"].state is State.RUNNING
    assert types(run.obey("stays"))[-1] == ("db", "dependents_gone")
    assert run.where("db") == (State.STOPPING, Reason.REQUESTED)
    run.settle()
    assert run.running() == set()
    assert [run.where(n) for n in run.services] == [(State.STOPPED, Reason.REQUESTED)] * 3


def test_when_it_gave_up_those_that_run_stay_up_followers_too(run):
    run.crash("db")
    run.crash("db")
    assert run.where("db") == (State.FAILED, Reason.RESTART_LIMIT)
    assert (run.running(), runs(run)) == ({"stays", "follows"}, (1, 1))


def test_when_one_that_gave_up_is_reset_those_that_run_stay_up_followers_too(run):
    run.crash("db")
    run.crash("db")
    run.give("db", inp.Reset())
    assert run.where("db") == (State.STOPPED, Reason.RESET)
    assert (run.running(), runs(run)) == ({"stays", "follows"}, (1, 1))


def test_when_its_oneshot_failed_those_that_run_stay_up_followers_too(system):
    s = system(db=("", ONESHOT), stays="db", follows="db!")
    s.start("stays", "follows")
    s.settle()
    s.codes["db"] = 3
    s.start("db")
    s.settle()
    assert s["db"].state is State.FAILED
    assert (s.running(), runs(s)) == ({"stays", "follows"}, (1, 1))


def test_when_its_oneshot_is_run_again_by_hand_followers_restart_once_it_has_completed(system):
    s = system(db=("", ONESHOT), stays="db", follows="db!")
    s.start("stays", "follows")
    s.settle()
    s.start("db")
    assert s.running() == {"stays", "follows"}
    s.settle()
    assert (s.running(), runs(s)) == ({"stays", "follows"}, (1, 2))


def test_a_completed_oneshot_that_is_told_to_stop_takes_nobody_with_it(system):
    s = system(db=("", ONESHOT), follows="db!")
    s.start("follows")
    s.settle()
    s.give("db", inp.Stop())
    assert s.running() == {"follows"}
    assert s["db"].run == 1


# --- conditions -----------------------------------------------------------------------------------


def test_started_is_when_its_run_executes(system):
    s = system(db=("", SLOW), web="db:started")
    assert types(s.start("web")) == [
        ("web", "start_requested"),
        ("db", "start_requested"),
        ("db", "spawned"),
        ("web", "dependencies_met"),
        ("web", "spawned"),
    ]


def test_ready_is_when_it_runs_and_healthy_when_every_check_is(system):
    two = (BEAT, Check("other", "unix:/o", successes=2, on_failure=OnFailure.REPORT))
    s = system(db=("", {"ready": Ready.SPAWN, "checks": two}), web="db", app="db:healthy")
    s.start("web", "app")
    s.give("db", inp.GateOpened(run=1))
    assert s["web"].state is State.STARTING
    assert s.where("app") == WAITS
    s.give("db", inp.Probed(run=1, check="beat", ok=True, count=1))
    s.give("db", inp.Probed(run=1, check="other", ok=True, count=1))
    assert s.where("app") == WAITS
    assert waiting_for(s["app"], s.services) == "db to be healthy"
    assert not s.is_settled("app"), "a check of db has not said yet how it is"
    s.give("db", inp.Probed(run=1, check="other", ok=True, count=2))
    assert s["app"].state is State.STARTING


def test_one_that_is_healthy_no_more_lets_nobody_else_start(system):
    s = system(db=("", {"checks": (BEAT,)}), app="db:healthy")
    s.start("app")
    s.settle()
    s.give("db", inp.Probed(run=1, check="beat", ok=False, count=3))
    assert s.running() == {"db", "app"}
    s.restart("app")
    s.settle()
    assert s.where("app") == WAITS


def test_who_needs_it_completed_does_not_follow_a_stop_of_one_that_has_completed(system):
    """It is no oneshot, and ended clean under its policy; that it is told to stop changes nothing."""
    never = {"policy": Policy.NEVER}
    s = system(setup=("", never), clock="setup:completed!")
    s.start("clock")
    s.settle()
    s.give("setup", inp.ProcessExited(run=1, exit_code=0))
    s.settle()
    assert s.running() == {"clock"}
    s.give("setup", inp.Stop())
    s.settle()
    assert not around(s["clock"], s.services, s.graph).follows
    assert (s.running(), s["clock"].run) == ({"clock"}, 1)


def test_completed_is_when_its_last_run_ended_clean(system):
    s = system(migrate=("", ONESHOT), web="migrate:completed")
    s.start("web")
    s.obey("migrate")
    assert s.running() == {"migrate"}
    assert s.where("web") == WAITS
    assert not s.is_settled("migrate")
    s.obey("migrate")
    assert s.where("migrate") == (State.STOPPED, Reason.COMPLETED)
    assert s["web"].state is State.STARTING


def test_a_oneshot_that_is_depended_on_is_needed_completed_whatever_is_asked(system):
    s = system(migrate=("", ONESHOT), web="migrate", app="migrate:started")
    s.start("web", "app")
    s.obey("migrate")
    assert [s.where(name) for name in ("web", "app")] == [WAITS, WAITS]
    s.settle()
    assert s.running() == {"web", "app"}


def of_a_migration(system):
    """`app` needs what `migrate` made in `db`, and all of it is up."""
    s = system(db="", migrate=("db", ONESHOT), app="migrate")
    s.start("app")
    s.settle()
    assert s.running() == {"db", "app"}
    assert s.where("migrate") == (State.STOPPED, Reason.COMPLETED)
    return s


def test_what_a_oneshot_needed_stops_after_those_that_needed_the_oneshot(system):
    s = of_a_migration(system)
    s.stop("app", "db")
    assert s["app"].state is State.STOPPING
    assert s["db"].state is State.RUNNING
    s.settle()
    assert s.running() == set()


def test_who_needs_a_oneshot_that_has_completed_is_started_with_what_that_one_needed(system):
    s = of_a_migration(system)
    s.stop("app", "db")
    s.settle()
    s.start("app")
    assert s.where("app") == WAITS
    assert waiting_for(s["app"], s.services) == "db to be ready"
    s.settle()
    assert s.running() == {"db", "app"}
    assert s["migrate"].run == 1


def test_what_is_missing_is_named_in_the_order_of_the_file_through_oneshots_too(system):
    """`app` needs two migrations, which need two databases each; all databases are stopped."""
    s = system(
        a="", b="", c="", d="", first=("a b", ONESHOT), second=("d c", ONESHOT), app="first second"
    )
    s.start("app")
    s.settle()
    s.stop("a", "b", "c", "d")
    s.settle()
    missing = [need.service for need in unmet(s["app"], s.services)]
    assert missing == ["a", "b", "d", "c"]
    assert [each.name for each in needs(s["app"], s.services)] == missing
    assert list(s.graph.neighbours("app", s.services)) == [
        *("first", "a", "b"),
        *("second", "d", "c"),
    ]


def test_a_oneshot_that_is_to_run_again_has_not_completed(system):
    s = of_a_migration(system)
    s.stop("app", "migrate", "db")
    s.settle()
    assert s.where("migrate") == (State.STOPPED, Reason.COMPLETED), "it is down because it is done"
    s.start("migrate", "app")
    s.settle()
    assert (s["migrate"].run, s["app"].run) == (2, 2)
    spawned = [(r.service, r.run) for r in s.records if r.type == "spawned"]
    assert spawned[-3:] == [("db", 2), ("migrate", 2), ("app", 2)]


def test_a_oneshot_does_not_run_again_because_a_dependent_restarts(system):
    s = system(migrate=("", ONESHOT), web="migrate:completed!")
    s.start("web")
    s.settle()
    s.restart("web")
    s.settle()
    s.crash("web")
    s.settle()
    assert (s["migrate"].run, s["web"].run) == (1, 3)


def test_one_that_is_not_declared_is_waited_for_by_name(system, define):
    s = system(web="db")
    s.start("web")
    assert s.where("web") == WAITS
    assert waiting_for(s["web"], s.services) == "db to be ready (it is not declared)"
    assert s.is_settled("web")
    s.define(define(name="db"))
    assert waiting_for(s["web"], s.services) == "db to be ready (it is stopped)"


def service(**fields):
    return Service(Definition("db", ("x",), oneshot=fields.pop("oneshot", False)), **fields)


UNMET = {
    "it has no process yet": ("started", service(state=State.STARTING, wanted=True)),
    "it is to stop": ("started", service(state=State.RUNNING, pid=1)),
    "it is stopping": ("ready", service(state=State.STOPPING, pid=1, wanted=True)),
    "it is starting": ("ready", service(state=State.STARTING, pid=1, wanted=True)),
    "it is to complete once more": (
        "completed",
        service(state=State.STARTING, wanted=True, completed=True, oneshot=True),
    ),
    "it was never run": ("completed", service(oneshot=True)),
}


@pytest.mark.parametrize("why", UNMET)
def test_a_dependency_is_not_met_while(why):
    condition, db = UNMET[why]
    assert not is_met(Dependency("db", Condition(condition)), {"db": db})


def test_one_that_waits_for_nobody_any_more_is_not_settled_before_it_has_looked(system):
    s = system(db=("", SLOW), web="db")
    s.start("web")
    s.decide(("db", inp.NotifiedReady(run=1)))
    assert s.where("web") == WAITS
    assert not s.is_settled("web")


# --- chains and diamonds --------------------------------------------------------------------------


def test_a_chain_starts_link_by_link_each_when_the_one_before_is_ready(system):
    s = system(d="c", c="b", b="a", a="")
    records = s.start("d")
    assert len({record.decision for record in records}) == 1
    for up in ("a", "b", "c", "d"):
        assert [n for n, each in s.services.items() if each.state is State.STARTING] == [up]
        s.obey(up)
    assert s.running() == {"a", "b", "c", "d"}


def test_independent_ones_start_side_by_side(system):
    s = system(web="a b", a="", b="")
    s.start("web")
    assert s["a"].state is s["b"].state is State.STARTING
    s.obey("a")
    assert s.where("web") == WAITS
    assert waiting_for(s["web"], s.services) == "b to be ready"
    s.obey("b")
    assert s["web"].state is State.STARTING


def test_a_diamond_starts_from_its_foot_and_stops_from_its_top(system):
    s = system(top="left right", left="foot", right="foot", foot="")
    s.start("top")
    s.settle()
    order = s.moves("spawned")
    assert (order[0], set(order[1:3]), order[3:]) == ("foot", {"left", "right"}, ["top"])
    s.stop("foot")
    s.settle()
    down = s.moves("group_emptied")
    assert (down[0], set(down[1:3]), down[3:]) == ("top", {"left", "right"}, ["foot"])


def test_at_a_restart_of_its_foot_a_diamond_that_follows_restarts_each_once(system):
    s = system(top="left! right!", left="foot!", right="foot!", foot="")
    s.start("top")
    s.settle()
    s.restart("foot")
    s.settle()
    assert s.running() == set(s.services)
    assert {name: s[name].run for name in s.services} == dict.fromkeys(s.services, 2) | {
        "top": s["top"].run
    }
    assert s["top"].run in (2, 3)  # once or twice, as its two sides come back together or not


def test_what_it_waits_for_is_asked_of_a_long_chain_without_going_deep(system):
    names = [f"n{number}" for number in range(3000)]
    services = {}
    for name, before in itertools.pairwise(names):
        definition = Definition(name, ("x",), depends_on=(Dependency(before),))
        services[name] = Service(definition, wanted=True, reason=Reason.WAITING)
    services[names[0]] = Service(Definition(names[0], ("x",)), state=State.FAILED, wanted=True)
    # pairwise names the dependent first: the last of the names is not declared
    assert is_settled(services[names[-2]], services)
    assert Graph(s.definition for s in services.values()).stop_order([names[0]])


def test_what_it_needs_is_asked_of_a_wide_mesh_once_for_each(system):
    """Every service of a layer depends on both of the one below: 2 to the power of 30 ways lead down."""
    services = {}
    for layer, side in itertools.product(range(30), "ab"):
        below = (Dependency(f"a{layer - 1}"), Dependency(f"b{layer - 1}")) if layer else ()
        name = f"{side}{layer}"
        definition = Definition(name, ("x",), depends_on=below)
        services[name] = Service(definition, wanted=True, reason=Reason.WAITING)
    for side in "ab":
        services[f"{side}0"].reason = Reason.DEFINED
    assert {each.name for each in needs(services["a29"], services)} == {"a0", "b0"}
    assert is_settled(services["a29"], services)


# --- starting what it needs -----------------------------------------------------------------------


def test_a_start_pulls_in_what_it_needs_in_one_decision(system):
    s = system(web="app cache", app="db", cache="", db="")
    records = s.decide(("web", inp.Start()))
    assert types(records) == [
        ("web", "start_requested"),
        ("app", "start_requested"),
        ("db", "start_requested"),
        ("db", "spawned"),
        ("cache", "start_requested"),
        ("cache", "spawned"),
    ]
    assert {record.decision for record in records} == {records[0].seq}
    assert [s.where(name) for name in ("web", "app")] == [WAITS, WAITS]
    assert s.where("db") == (State.STARTING, Reason.REQUIRED)
    s.settle()
    assert s.running() == set(s.services)


def test_a_start_leaves_alone_what_is_up_or_on_its_way(system):
    s = system(web="db cache:healthy", db="", cache=("", {"ready": Ready.SPAWN, "checks": (BEAT,)}))
    s.start("db", "cache")
    s.obey("db")
    before = {name: s[name].run for name in ("db", "cache")}
    assert types(s.start("web")) == [("web", "start_requested")]
    assert {name: s[name].run for name in before} == before


PULLED = {
    "never started": lambda s: None,
    "stopped by an operator": lambda s: (s.start("db"), s.settle(), s.give("db", inp.Stop())),
    "stopped, and gone": lambda s: (s.start("db"), s.settle(), s.stop("db"), s.settle()),
    "failed": lambda s: (
        s.refused.update(db=Reason.CWD_MISSING),
        s.start("db"),
        s.refused.clear(),
    ),
}


@pytest.mark.parametrize("place", PULLED)
def test_a_start_brings_up_what_it_needs_from_wherever_that_rests(system, place):
    s = system(db="", web="db")
    PULLED[place](s)
    s.start("web")
    s.settle()
    assert s.running() == {"db", "web"}


def test_a_start_of_one_that_waits_starts_what_it_needs_though_it_waits_already(system):
    s = system(db="", web="db")
    s.start("web")
    s.settle()
    s.give("db", inp.Stop())
    s.settle()
    s.restart("web")
    s.settle()
    assert s.running() == {"db", "web"}, "a restart starts what it needs, too"
    s.stop("db")
    s.settle()
    s.give("web", inp.Start())
    s.give("db", inp.Stop())
    s.settle()
    assert s.where("web") == WAITS
    assert types(s.start("web"))[0] == ("db", "start_requested")
    s.settle()
    assert s.running() == {"db", "web"}


def test_a_dependent_that_ends_while_its_dependency_is_down_waits_instead_of_crash_looping(system):
    s = system(db="", web="db")
    s.start("web")
    s.settle()
    s.give("db", inp.Stop())
    s.settle()
    assert types(s.crash("web")) == [
        ("web", "exited"),
        ("web", "restart_scheduled"),
        ("web", "restart_due"),
    ]
    assert s.where("web") == WAITS
    assert duties(s["web"]) == Duties()
    s.start("db")
    s.settle()
    assert s.running() == {"db", "web"}


def test_one_that_is_restarted_while_its_dependency_is_down_waits_once_it_is_gone(system):
    s = system(db="", web="db")
    s.start("web")
    s.settle()
    s.give("db", inp.Stop())
    s.settle()
    s.give("web", inp.Restart(reason=Reason.REDEFINED))
    assert types(s.obey("web")) == [("web", "exited"), ("web", "group_emptied")]
    assert s.where("web") == WAITS


def test_one_that_is_unhealthy_while_its_dependency_is_down_ends_as_a_failure_and_then_waits(
    system,
):
    s = system(db="", web=("db", {"checks": ("beat",), "policy": Policy.ON_FAILURE}))
    s.start("web")
    s.settle()
    s.give("db", inp.Stop())
    s.settle()
    s.give("web", inp.Probed(run=1, check="beat", ok=False, count=3, error="refused"))
    assert s.where("web") == (State.STOPPING, Reason.UNHEALTHY)
    moves = [(r.type, r.event.dest, r.event.reason) for r in s.obey("web")]
    assert moves == [
        ("exited", State.STOPPING, Reason.UNHEALTHY),
        ("group_emptied", State.FAILED, Reason.UNHEALTHY),
        ("restart_scheduled", State.RESTARTING, Reason.UNHEALTHY),
        ("restart_due", *WAITS),
    ]


@pytest.mark.parametrize("word", [inp.Start, inp.Restart])
def test_one_that_waits_and_is_told_so_again_journals_nothing(system, word):
    s = system(web="db")
    s.start("web")
    assert s.give("web", word()) == []
    assert s.where("web") == WAITS


def test_one_that_waits_and_is_told_to_stop_waits_no_more(system):
    s = system(db=("", SLOW), web="db")
    s.start("web")
    assert types(s.stop("web")) == [("web", "stop_requested")]
    assert s.where("web") == (State.STOPPED, Reason.REQUESTED)
    s.settle()
    assert s.running() == {"db"}


def test_why_one_starts_that_waited_is_told_with_what_it_waited_for(system):
    s = system(db=("", SLOW), web="db")
    s.start("web")
    _ready, met, spawned = s.obey("db")
    assert met.event.reason is Reason.DEPENDENCIES_MET
    assert spawned.cause == met.seq


def test_a_reconsidering_names_the_event_of_the_neighbour_as_its_cause(system):
    s = system(db=("", SLOW), web="db")
    s.start("web")
    (ready,) = s.decide(("db", inp.NotifiedReady(run=1)))
    met, _spawned = s.decide(("web", inp.Reconsider(cause=ready.seq)))
    assert met.cause == ready.seq


# --- stopping -------------------------------------------------------------------------------------


def test_a_stop_of_one_leaves_its_dependents_up_and_waits_for_nobody(system):
    s = system(db="", web="db")
    s.start("web")
    s.settle()
    assert types(s.give("db", inp.Stop())) == [("db", "stop_requested")]
    assert s.where("db") == (State.STOPPING, Reason.REQUESTED)
    s.settle()
    assert s.running() == {"web"}


def test_a_stop_is_held_while_a_dependent_stops_and_says_so(system):
    s = system(db="", web="db")
    s.start("web")
    s.settle()
    s.give("web", inp.Stop())
    assert types(s.give("db", inp.Stop())) == [("db", "stop_requested")]
    assert s.where("db") == (State.RUNNING, Reason.REQUESTED)
    assert (s["db"].wanted, s.is_settled("db")) == (False, False)
    assert duties(s["db"]).gate == 1, "it runs on meanwhile"
    assert s.give("db", inp.Stop()) == []
    assert waiting_for(s["db"], s.services) == "web to stop"
    assert types(s.obey("web"))[-1] == ("db", "dependents_gone")


def test_a_held_stop_ends_for_the_reason_that_was_given_even_if_it_got_ready_meanwhile(system):
    s = system(db=("", SLOW), web="db:started")
    s.start("web")
    s.settle()
    s.restart("db")
    s.obey("db")
    s.decide(("web", inp.Stop(reason=Reason.SHUTDOWN)), ("db", inp.Stop(reason=Reason.SHUTDOWN)))
    s.give("db", inp.NotifiedReady(run=2))
    assert s["db"].state is State.RUNNING
    s.settle()
    assert s.where("db") == (State.STOPPED, Reason.SHUTDOWN)
    assert s["db"].autostart_due


def test_a_held_stop_can_be_taken_back(system):
    s = system(db="", web="db")
    s.start("web")
    s.settle()
    s.stop("db")
    assert types(s.start("db")) == [("db", "start_requested")]
    s.settle()
    assert (s.running(), s["db"].run) == ({"db"}, 1)


def test_a_dependent_that_is_wanted_again_holds_nobody(system):
    s = system(db="", web="db")
    s.start("web")
    s.settle()
    s.stop("db")
    records = s.decide(("web", inp.Start()))
    assert [(r.service, r.event.dest) for r in records if r.type == "start_requested"] == [
        ("web", State.STOPPING),
        ("db", State.RUNNING),
    ], "a start starts what it needs: the stop of db is taken back with it"
    s.settle()
    assert (s.running(), s["db"].run) == ({"db", "web"}, 1)


def test_a_restart_is_not_held(system):
    s = system(db="", web="db")
    s.start("web")
    s.settle()
    s.stop("db")
    s.restart("db")
    assert s.where("db") == (State.STOPPING, Reason.RESTART_REQUESTED)
    s.settle()
    assert s.running() == {"db"}


def test_one_whose_stop_is_held_and_that_ends_by_itself_is_not_started_again(system):
    s = system(db="", web="db")
    s.start("web")
    s.settle()
    s.stop("db")
    assert types(s.crash("db")) == [("db", "exited")]
    s.settle()
    assert not s["db"].wanted
    assert s["db"].run == 1


def test_nothing_holds_the_stop_of_one_that_has_no_process_yet(world):
    w = world()
    w.start()
    held = Around(held=True)
    records = w.give(inp.Stop(), around=held)
    assert [record.event.dest for record in records] == [State.STOPPING]


def test_all_are_stopped_in_the_order_of_their_dependence(system):
    s = system(db="", cache="", app="db cache", web="app", cron="db")
    s.start("web", "cron")
    s.settle()
    assert s.running() == set(s.services)
    s.stop(*s.services)
    s.settle()
    down = s.moves("group_emptied")
    assert sorted(down) == sorted(s.services)
    for dependent, dependency in (("web", "app"), ("app", "db"), ("app", "cache"), ("cron", "db")):
        assert down.index(dependent) < down.index(dependency)


def test_the_order_of_stops_names_dependents_directly_or_not_each_before_what_it_depends_on(system):
    s = system(db="", cache="", app="db cache", web="app", cron="db", other="")
    assert s.graph.stop_order(["cache"]) == ["web", "app", "cache"]
    assert s.graph.stop_order(["other"]) == ["other"]
    order = s.graph.stop_order(["db", "other", "web"])
    assert sorted(order) == ["app", "cron", "db", "other", "web"]
    assert order.index("web") < order.index("app") < order.index("db")
    assert order.index("cron") < order.index("db")


# --- removing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [("web", "db"), ("db", "web")], ids=" ".join)
def test_both_are_removed_in_whatever_order_they_are_named(system, order):
    s = system(db="", web="db")
    s.start("web")
    s.settle()
    s.decide(*((name, inp.Remove()) for name in order))
    s.settle()
    assert s.services == {}


def test_one_whose_stop_is_held_can_be_removed_and_is_not_started_after_that(system):
    s = system(db="", web="db")
    s.start("web")
    s.settle()
    s.stop("db")
    assert types(s.give("db", inp.Remove())) == [("db", "stop_requested")]
    for word in (inp.Remove, inp.Stop, inp.Start, inp.Restart):
        assert s.give("db", word()) == []
    s.settle()
    assert set(s.services) == {"web"}


def test_those_that_depend_on_one_that_is_removed_stay_up_and_wait_for_it_by_name(system):
    s = system(db="", web="db", late="db")
    s.start("web")
    s.settle()
    s.give("db", inp.Remove())
    s.settle()
    assert s.running() == {"web"}
    s.start("late")
    assert waiting_for(s["late"], s.services) == "db to be ready (it is not declared)"


# --- what a new definition changes ----------------------------------------------------------------


def test_one_that_waits_starts_when_it_no_longer_depends_on_anything(system, define):
    s = system(db=("", SLOW), web="db")
    s.start("web")
    s.define(define(name="web"))
    s.settle()
    assert s.running() == {"db", "web"}


def test_a_renewal_lets_one_start_that_no_longer_depends_on_anything(system, define):
    s = system(db=("", SLOW), web="db")
    s.start("web")
    records = s.decide(("web", s.defined(define(name="web"))), ("web", inp.Renew()))
    assert [record.type for record in records] == ["redefined", "dependencies_met", "spawned"]


def test_a_new_dependency_stops_nobody_who_runs(system, define):
    s = system(db="", web="")
    s.start("web")
    s.settle()
    s.define(define(name="web", depends_on=(Dependency("db"),)))
    s.settle()
    assert s.running() == {"web"}
    s.restart("web")
    s.settle()
    assert s.running() == {"db", "web"}


@pytest.mark.parametrize("is_stopped", [True, False], ids=["stopped", "of a newer run"])
def test_one_that_is_to_follow_from_now_on_does_so_from_its_next_run(system, define, is_stopped):
    s = system(db="", web="")
    s.start("web", "db")
    s.settle()
    if is_stopped:
        s.stop("db")
    s.define(define(name="web", depends_on=(Dependency("db", restart=True),)))
    s.settle()
    assert (s.where("web"), s["web"].run) == (RUNS, 1)
    s.restart("web")
    s.settle()
    s.restart("db")
    s.settle()
    assert (s.where("web"), s["web"].run) == (RUNS, 3)


def test_one_that_is_to_follow_no_more_does_not(system, define):
    s = system(db="", web="db!")
    s.start("web")
    s.settle()
    s.define(define(name="web", position=1, depends_on=(Dependency("db"),)))
    s.restart("db")
    s.settle()
    assert (s.where("web"), s["web"].run) == (RUNS, 1)


def test_a_stop_is_no_longer_held_by_one_that_no_longer_depends_on_it(system, define):
    s = system(db="", web="db")
    s.start("web")
    s.settle()
    s.stop("db")
    assert s.where("db") == (State.RUNNING, Reason.REQUESTED)
    s.define(define(name="web"))
    assert s.where("db") == (State.STOPPING, Reason.REQUESTED)


# --- what changes nothing -------------------------------------------------------------------------


SITUATIONS = {
    "never started": lambda s: None,
    "waiting": lambda s: s.start("web"),
    "running": lambda s: (s.start("web"), s.settle()),
    "its dependency stopped": lambda s: (s.start("web"), s.settle(), s.give("db", inp.Stop())),
    "its dependency crashing": lambda s: (s.start("web"), s.settle(), s.crash("db"), s.crash("db")),
    "stopping": lambda s: (s.start("web"), s.settle(), s.stop("db")),
    "stopped": lambda s: (s.start("web"), s.settle(), s.stop("db"), s.settle()),
    "restarting": lambda s: (s.start("web"), s.settle(), s.crash("web"), s.crash("web")),
    "given up": lambda s: (s.refused.update(db=Reason.CWD_MISSING), s.start("web")),
}


@pytest.mark.parametrize("mark", ["", "!"], ids=["stays", "follows"])
@pytest.mark.parametrize("place", SITUATIONS)
def test_looking_again_at_the_neighbours_changes_nothing_when_nothing_is_to_change(
    system, place, mark
):
    s = system(db=("", SLOW), web=f"db{mark}")
    SITUATIONS[place](s)
    before = len(s.records)
    for name in ("db", "web"):
        assert s.decide((name, inp.Reconsider(cause=before))) == []
    assert len(s.records) == before


def test_one_without_neighbours_is_alone(system):
    s = system(one="", other="")
    assert around(s["one"], s.services, s.graph) is ALONE
    assert unmet(s["one"], s.services) == []


# --- after the supervisor's own death ---------------------------------------------------------------


def test_at_whatever_decision_a_start_is_cut_short_a_later_registry_completes_it(system):
    s = system(web="app! cache", app="db!", cache="", db=("", SLOW), migrate=("db", ONESHOT))
    s.start("web", "migrate")
    s.settle()
    s.restart("db")
    s.settle()
    for upto in s.ends[s.ends.index(len(s.services)) + 1 :]:
        later = s.recovered(upto)
        later.settle()
        assert later.running() >= {"db", "app", "cache", "web"} or not later["web"].wanted


def test_a_fresh_start_of_the_registry_forgets_that_a_oneshot_completed(system):
    s = system(migrate=("", ONESHOT), web="migrate:completed")
    s.start("web")
    s.settle()
    for fresh in (False, True):
        projection = s.recovered(len(s.records)).projection
        started = ev.RegistryStarted("b", "p", 1, "1", fresh)
        projection.fold([ev.Record(10**6, 1, 1, 10**6, None, None, None, None, started)])
        assert projection.services["migrate"].completed is not fresh


@pytest.mark.parametrize(
    ("needs", "depth"),
    [
        ({}, 1),
        ({"a": (), "b": ()}, 1),
        ({"b": ("a",), "a": ()}, 2),
        ({"d": ("b", "c"), "c": ("b",), "b": ("a",), "a": (), "e": ("a",)}, 4),
        ({"b": ("strange",)}, 2),
    ],
)
def test_a_graph_is_as_deep_as_its_longest_chain(needs, depth):
    definitions = [
        Definition(name=name, cmd=("x",), depends_on=tuple(map(Dependency, those)))
        for name, those in needs.items()
    ]
    assert Graph(definitions).depth() == depth
