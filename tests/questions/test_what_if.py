"""What if: journals of the simulated machine, decided again under other definitions, with answers known beforehand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from registry.core.definition import (
    Check,
    Definition,
    Dependency,
    OnFailure,
    Policy,
    Ready,
    Restart,
    Stop,
)
from registry.core.events import GaveUp, Record, StartTimedOut
from registry.core.projection import Projection
from registry.journal.rows import to_record
from registry.questions.partings import Answer, Course
from registry.questions.tracks import SCALE
from registry.questions.what_if import instead, what_if
from tests.simulation.machine import ToldWorld

S = 1_000_000_000
NEAR = 0.2
"""Seconds: what it takes to be told of things, and to start."""
CHECK = Check("beat", "unix:/s", interval_s=10.0, timeout_s=1.0, failures=3)


def web(*needs: Dependency, **fields: object) -> Definition:
    """A service that is always restarted, unless it is declared otherwise."""
    return Definition("web", ("run",), stop=Stop(timeout_s=5.0), depends_on=needs, **fields)  # type: ignore[arg-type]


DB = Definition("db", ("run",), position=1)


def recorded(definitions: list[Definition], act: Callable[[ToldWorld], None]) -> list[Record]:
    """The journal of what happened, by the production registry."""
    world = ToldWorld(definitions)
    try:
        act(world)
        world.end(keep=True)  # so that the journal tells until now
        world.wait(0.05)
    finally:
        world.let_go()
    return [to_record(row) for row in world.disk.rows]


def asked(records: list[Record], *other: Definition, **more: Any) -> Answer:
    """What if these had been declared."""
    return what_if(records, instead(other), **more)


def course(answer: Answer, name: str = "web") -> Course:
    """Of one service."""
    return next(each for each in answer.courses if each.name == name)


def notes(answer: Answer, name: str = "web") -> list[str]:
    """What became unknown or known again, in order."""
    return [row.note for row in answer.rows if row.note and row.service == name]


def crash(world: ToldWorld, times: int, after_s: float = 2.0, code: int = 1) -> None:
    """It ends that often, each time so long after it began."""
    for _ in range(times):
        world.wait(after_s)
        world.exit("web", code)
    world.wait(60.0)


def first(answer: Answer, kind: type) -> tuple[float, Record]:
    """When, in seconds from the beginning, something of a kind would have happened first."""
    for row in answer.rows:
        for record in row.what_if:
            if isinstance(record.event, kind):
                return (row.at_ns - answer.from_ns) / S, record
    raise AssertionError(f"no {kind.__name__}: {answer.rows}")


# --- policy, limit, delay ---------------------------------------------------------------------------


def test_what_was_never_to_restart_stays_down_from_its_first_end_on() -> None:
    records = recorded([web()], lambda world: crash(world, 2))
    answer = course(asked(records, web(restart=Restart(Policy.NEVER))))
    assert (answer.recorded.restarts, answer.what_if.restarts) == (2, 0)
    assert answer.recorded.down_ns / S == pytest.approx(0.5, abs=NEAR)
    assert answer.what_if.down_ns / S == pytest.approx(62.0, abs=NEAR)
    assert answer.unknown_ns == 0


def test_a_limit_says_who_would_have_given_up_and_when() -> None:
    records = recorded([web(restart=Restart(delay_s=0.1))], lambda world: crash(world, 5))
    answer = asked(records, web(restart=Restart(delay_s=0.1, limit=3, within_s=60.0)))
    found = course(answer)
    assert (found.recorded.gave_up, found.recorded.restarts) == (0, 5)
    assert (found.what_if.gave_up, found.what_if.restarts) == (1, 3)
    at_s, record = first(answer, GaveUp)
    assert at_s == pytest.approx(8.5, abs=NEAR)
    assert record.seq % SCALE, "it has no number in the journal"


def test_without_a_limit_the_runs_after_the_last_recorded_one_are_unknown() -> None:
    limited = web(restart=Restart(delay_s=0.1, limit=2, within_s=60.0))
    answer = asked(
        recorded([limited], lambda world: crash(world, 3)), web(restart=Restart(delay_s=0.1))
    )
    found = course(answer)
    assert (found.recorded.gave_up, found.what_if.gave_up) == (1, 0)
    assert notes(answer) == ["unknown: it would have begun a run for which none is recorded"]
    assert found.unknown_ns / S == pytest.approx(59.8, abs=NEAR)
    assert found.recorded.down_ns - found.meanwhile.down_ns == pytest.approx(
        found.what_if.down_ns, abs=NEAR * S
    )


def test_a_longer_delay_costs_its_length_and_the_runs_live_as_long_as_they_did() -> None:
    records = recorded([web(restart=Restart(delay_s=1.0))], lambda world: crash(world, 2))
    found = course(asked(records, web(restart=Restart(delay_s=5.0))))
    assert (found.recorded.restarts, found.what_if.restarts) == (2, 2)
    gained_s = (found.what_if.down_ns - found.recorded.down_ns) / S
    assert gained_s == pytest.approx(4.2, abs=0.3), "4 s and up to 10 % of jitter"
    assert found.unknown_ns == 0


def test_an_exit_code_that_counts_as_success_is_no_reason_to_restart() -> None:
    on_failure = Restart(Policy.ON_FAILURE)
    records = recorded([web(restart=on_failure)], lambda world: crash(world, 1, code=3))
    found = course(asked(records, web(restart=on_failure, success_exit_codes=(0, 3))))
    assert (found.recorded.restarts, found.what_if.restarts, found.unknown_ns) == (1, 0, 0)


# --- checks -----------------------------------------------------------------------------------------


def fail(world: ToldWorld, seconds: float) -> None:
    """Its check fails for so long."""
    world.wait(30.0)
    world.turn("web", well=False)
    world.wait(seconds)
    world.turn("web", well=True)
    world.wait(60.0)


def checked(**fields: Any) -> Definition:
    """With a check."""
    return web(checks=(msgspec.structs.replace(CHECK, **fields),))


def test_a_check_that_bears_more_would_not_have_restarted_it_and_what_follows_is_unknown() -> None:
    def act(world: ToldWorld) -> None:
        fail(world, 40.0)
        world.command("restart", ["web"])
        world.wait(20.0)

    answer = asked(recorded([checked()], act), checked(failures=6))
    found = course(answer)
    assert (found.recorded.restarts, found.what_if.restarts) == (1, 0)
    assert notes(answer) == [
        "unknown: its run 1 was stopped then (unhealthy), and this one goes on",
        "known again: it was started anew",
    ]
    assert found.meanwhile.down_ns / S == pytest.approx(0.0, abs=0.5)


def test_a_check_that_only_reports_would_not_have_restarted_it() -> None:
    records = recorded([checked()], lambda world: fail(world, 40.0))
    found = course(asked(records, checked(on_failure=OnFailure.REPORT)))
    assert (found.recorded.restarts, found.what_if.restarts) == (1, 0)


def test_a_check_that_bears_less_would_have_ended_its_run_when_it_had_failed_so_often() -> None:
    records = recorded([checked(failures=9)], lambda world: fail(world, 45.0))
    answer = asked(records, checked(failures=2))
    row = next(row for row in answer.rows if row.what_if)
    assert [each.type for each in row.what_if] == ["became_unhealthy"]
    assert 30.0 + 10.0 <= (row.at_ns - answer.from_ns) / S <= 30.0 + 21.5
    assert notes(answer) == [
        "unknown: it would have been stopped, and how long that takes is not recorded"
    ]


def test_a_failure_shorter_than_its_threshold_changes_nothing() -> None:
    records = recorded([checked(failures=9)], lambda world: fail(world, 25.0))
    answer = asked(records, checked(failures=7))
    assert answer.rows == ()
    assert course(answer).unknown_ns == 0


def test_what_a_new_check_would_have_found_is_unknown() -> None:
    records = recorded([web(ready=Ready.SPAWN)], lambda world: world.wait(100.0))
    answer = asked(records, web(ready=Ready.SPAWN, checks=(CHECK,)))
    assert notes(answer) == ["unknown: what its check beat would have found is not recorded"]
    assert 100.0 - course(answer).unknown_ns / S == pytest.approx(30.0, abs=1.0)
    reported = msgspec.structs.replace(CHECK, on_failure=OnFailure.REPORT)
    assert asked(records, web(ready=Ready.SPAWN, checks=(reported,))).rows == ()


def test_ready_by_a_check_that_nobody_asked_is_unknown() -> None:
    records = recorded([web()], lambda world: world.wait(100.0))
    why = "unknown: it would be ready by its check beat, which nobody asked then"
    assert notes(asked(records, web(checks=(CHECK,)))) == [why]


# --- timeouts ---------------------------------------------------------------------------------------


def deaf(world: ToldWorld) -> None:
    """Nothing but SIGKILL ends its first run; a second one is asked for."""
    world.wait(5.0)
    world.deafen("web", well=True)
    world.command("restart", ["web"])
    world.wait(30.0)


def test_a_shorter_stop_timeout_kills_earlier() -> None:
    records = recorded([web()], deaf)
    answer = asked(records, msgspec.structs.replace(web(), stop=Stop(timeout_s=2.0)))
    found = course(answer)
    assert (found.recorded.down_ns - found.what_if.down_ns) / S == pytest.approx(3.0, abs=NEAR)
    assert found.unknown_ns == 0


def test_with_a_longer_stop_timeout_nobody_knows_when_it_would_have_ended() -> None:
    def act(world: ToldWorld) -> None:
        deaf(world)
        world.command("restart", ["web"])
        world.wait(10.0)

    records = recorded([web()], act)
    answer = asked(records, msgspec.structs.replace(web(), stop=Stop(timeout_s=20.0)))
    assert notes(answer) == [
        "unknown: it was killed after 5 s, and this time it has 20 s",
        "known again: it was started anew",
    ]


def test_a_start_timeout_ends_a_start_that_was_waited_for() -> None:
    slow = web(ready=Ready.NOTIFY, start_timeout_s=60.0)

    def act(world: ToldWorld) -> None:
        world.wait(40.0)

    records = recorded([slow], act)
    ready_ns = next(each.mono_ns for each in records if each.type == "became_ready")
    begun_ns = next(each.mono_ns for each in records if each.type == "spawned")
    half_s = (ready_ns - begun_ns) / 2 / S
    answer = asked(records, web(ready=Ready.NOTIFY, start_timeout_s=half_s))
    at_s, _record = first(answer, StartTimedOut)
    assert at_s == pytest.approx((begun_ns - records[0].mono_ns) / S + half_s, abs=0.001)


# --- dependencies, programs, services ------------------------------------------------------------------


def test_who_depends_on_another_waits_for_it() -> None:
    slow = msgspec.structs.replace(DB, autostart=False)

    def act(world: ToldWorld) -> None:
        world.wait(10.0)
        world.command("start", ["db"])
        world.wait(20.0)

    records = recorded([web(), slow], act)
    answer = asked(records, web(Dependency("db")), slow)
    row = next(row for row in answer.rows if row.service == "web")
    assert row.state == "Stopped, waits for db to be ready (it is stopped)"
    started = next(each for each in answer.rows if each.service == "db")
    assert started.what_if[0].type == "start_requested", "web needs it"
    assert course(answer).unknown_ns == course(answer, "db").unknown_ns == 0


def test_who_depends_on_one_that_starts_later_starts_after_it() -> None:
    def act(world: ToldWorld) -> None:
        world.wait(10.0)
        world.exit("db", 1)
        world.wait(2.0)
        world.exit("db", 1)
        world.wait(1.0)
        world.exit("web", 1)
        world.wait(20.0)

    slow = msgspec.structs.replace(DB, restart=Restart(delay_s=5.0))
    answer = asked(recorded([web(), slow], act), web(Dependency("db")), slow)
    found = course(answer)
    assert found.unknown_ns == 0
    assert found.recorded.down_ns / S == pytest.approx(0.0, abs=NEAR)
    assert 3.5 < found.what_if.down_ns / S < 5.0, "the rest of the 5 s that db was down"
    assert notes(answer)[-1] == "as recorded again" or course(answer).what_if.restarts == 1


def test_another_program_is_unknown_from_its_start_on_and_so_is_who_follows_it() -> None:
    follower = Definition("worker", ("run",), depends_on=(Dependency("web", restart=True),))

    def act(world: ToldWorld) -> None:
        world.wait(10.0)
        world.command("stop", ["web"])
        world.wait(10.0)

    other = msgspec.structs.replace(web(), cmd=("another",))
    answer = asked(recorded([web(), follower], act), other, follower)
    why = "cmd not as its recorded run had it: how that runs is not recorded"
    assert notes(answer) == [f"unknown: {why}", "known again: it was stopped"]
    assert course(answer).unknown_ns / S == pytest.approx(10.0, abs=1.0)
    assert notes(answer, "worker")[0] == "unknown: it depends on what is unknown"


def test_the_program_matters_and_the_values_of_variables_are_taken_to_be_as_they_were() -> None:
    records = recorded([web(env_names=("A",), env_digest="1")], lambda world: world.wait(10.0))
    assert asked(records, web(env_names=("A",), env_digest="2")).rows == ()
    assert notes(asked(records, web(env_names=("A", "B"))))[0].startswith("unknown: env ")


def test_a_new_service_is_unknown_and_one_that_is_not_declared_is_not_there() -> None:
    records = recorded([web()], lambda world: crash(world, 1))
    answer = asked(records, DB, added=[DB])
    assert notes(answer, "db") == ["unknown: it is new: the journal tells of no run of it"]
    gone = course(answer)
    assert (gone.recorded.declared, gone.what_if.declared) == (True, False)
    assert (gone.recorded.restarts, gone.what_if.restarts, gone.what_if.down_ns) == (1, 0, 0)


def test_a_service_that_does_not_start_by_itself_waits_for_who_starts_it() -> None:
    def act(world: ToldWorld) -> None:
        world.wait(10.0)
        world.command("restart", ["web"])
        world.wait(10.0)

    answer = asked(recorded([web()], act), web(autostart=False))
    assert course(answer).unknown_ns == 0
    assert answer.rows[0].state == "Stopped"
    assert notes(answer)[-1] == "as recorded again"


# --- the journal and its lives ---------------------------------------------------------------------------


def test_after_a_reboot_it_is_as_recorded_again() -> None:
    def act(world: ToldWorld) -> None:
        crash(world, 1)
        world.reboot()
        world.wait(30.0)

    answer = asked(recorded([web()], act), web(restart=Restart(Policy.NEVER)))
    assert notes(answer) == ["as recorded again"]


def test_while_no_registry_watches_nothing_is_decided() -> None:
    def act(world: ToldWorld) -> None:
        crash(world, 1)
        world.wait(5.0)
        world.exit("web", 1)
        world.wait(0.05)
        world.exit("web", 1)
        world.wait(0.05)
        world.kill()
        world.wait(70.0)

    answer = asked(recorded([web()], act), web(restart=Restart(delay_s=0.2)))
    begun_ns = [row.at_ns for row in answer.rows if row.what_if]
    assert begun_ns == sorted(begun_ns)
    assert course(answer).unknown_ns == 0


def test_a_window_begins_with_the_state_then() -> None:
    records = recorded([web(restart=Restart(delay_s=0.1))], lambda world: crash(world, 4))
    ends = [each.seq for each in records if each.type == "exited"]
    begin = Projection()
    begin.fold(records[: ends[2] - 1])
    before = msgspec.json.encode(begin)
    limited = web(restart=Restart(delay_s=0.1, limit=1, within_s=60.0))
    answer = asked(records[ends[2] - 1 :], limited, begin=begin)
    found = course(answer)
    assert (found.recorded.restarts, found.what_if.restarts, found.what_if.gave_up) == (2, 1, 1)
    assert msgspec.json.encode(begin) == before, "what it is given is not changed"
    assert what_if(records[ends[2] - 1 :], begin=begin).rows == ()
