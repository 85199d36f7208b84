"""The simulated world as a state machine of hypothesis: whatever happens to it, every rule holds; failures are short.

`MACHINE_EXAMPLES=N` makes N random courses instead of a few that are the same each time.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from registry.core.definition import Condition, Definition, Dependency
from registry.core.lifecycle import Reason
from registry.journal.rows import to_record
from registry.questions.what_if import what_if
from tests.simulation.machine import KINDS, ToldWorld, can_be, service

EXAMPLES = int(os.environ.get("MACHINE_EXAMPLES", "0"))
DATABASE = os.environ.get("MACHINE_DATABASE")
IN_CI = settings(
    max_examples=150,
    stateful_step_count=30,
    derandomize=True,
    database=None,
    deadline=None,
    report_multiple_bugs=False,
    phases=[each for each in Phase if each is not Phase.explain],
    suppress_health_check=list(HealthCheck),
)
LONG = settings(
    IN_CI,
    max_examples=EXAMPLES or 1,
    stateful_step_count=60,
    derandomize=False,
    database=DirectoryBasedExampleDatabase(DATABASE) if DATABASE else None,
    print_blob=True,
)
NAMES = ("db", "web", "worker")
POINTS = (
    "append",
    "appended",
    "spawn",
    "spawned",
    "gate",
    "opened",
    "stop",
    "stopped",
    "release",
    "carry out",
)
VERBS = ("start", "stop", "stop with dependents", "restart", "reset", "signal", "reload")
WAITS_S = (0.0, 0.001, 0.5, 3.0, 30.0, 100.0)

names = st.sampled_from(NAMES)
conditions = st.sampled_from([each.value for each in Condition])


class Wish(NamedTuple):
    """A service as it is told of: one of the KINDS, its program, and what it needs."""

    name: str
    kind: str = "steady"
    program: str = "run"
    needs: tuple[tuple[str, str, bool], ...] = ()


Wishes = list[Wish]


@st.composite
def wishes(draw: Any) -> Wishes:
    """One to three services, each of which may need those before it."""
    made: Wishes = []
    for name in NAMES[: draw(st.integers(1, len(NAMES)))]:
        kind = draw(st.sampled_from(list(KINDS)))
        program = draw(st.sampled_from(["run", "another"]))
        needs = [
            (each.name, draw(conditions), draw(st.booleans()))
            for each in made
            if draw(st.booleans())
        ]
        made.append(Wish(name, kind, program, tuple(needs)))
    return made


def definitions_of(wished: Wishes) -> list[Definition]:
    """The definitions; what can never come true is left out, as a file may not ask for it."""
    made: dict[str, Definition] = {}
    for each in wished:
        needs = [
            Dependency(name, Condition(condition), restart)
            for name, condition, restart in each.needs
            if can_be(made[name], Condition(condition))
        ]
        made[each.name] = service(each.name, each.kind, each.program, needs)
    return list(made.values())


class Trouble(RuleBasedStateMachine):
    """Any course of a small world. Its rules are held to after every step of the world's loop."""

    world: ToldWorld | None = None

    @initialize(services=wishes())
    def begin(self, services: Wishes) -> None:
        """The first boot."""
        self.world = ToldWorld(definitions_of(services))

    def teardown(self) -> None:
        """Without further trouble all comes to rest, and an orderly end leaves nothing."""
        if self.world is None:
            return
        if self.world.violation is None:
            self.world.finish()
            self._decide_again(self.world)
        else:
            self.world.let_go()

    def _decide_again(self, world: ToldWorld) -> None:
        """What was observed, decided again under the same definitions, leads to the same."""
        assert what_if([to_record(row) for row in world.disk.rows]).rows == ()

    @property
    def there(self) -> ToldWorld:
        """The world, once it is made."""
        assert self.world is not None
        return self.world

    # --- time and operators -------------------------------------------------------------------------

    @rule(seconds=st.sampled_from(WAITS_S))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.there.wait(seconds)

    @rule(verb=st.sampled_from(VERBS), names=st.sets(names, min_size=1))
    def command(self, verb: str, names: set[str]) -> None:
        """An operator asks for something, of those that there are."""
        declared = [each.name for each in self.there.config.definitions]
        if asked := [name for name in declared if name in names]:
            self.there.command(verb, asked)
            self.there.wait(0.0)

    @rule(services=wishes())
    def apply(self, services: Wishes) -> None:
        """Another configuration."""
        self.there.apply(definitions_of(services))

    # --- processes ----------------------------------------------------------------------------------

    @rule(name=names, code=st.sampled_from([0, 1, -9]))
    def exit(self, name: str, code: int) -> None:
        """A process ends."""
        self.there.exit(name, code)

    @rule(name=names)
    def fork(self, name: str) -> None:
        """It forks."""
        self.there.fork(name)

    @rule(name=names, well=st.booleans())
    def deafen(self, name: str, well: bool) -> None:
        """It heeds no stop any more."""
        self.there.deafen(name, well=well)

    @rule(name=names, well=st.booleans())
    def turn(self, name: str, well: bool) -> None:
        """Its checks turn."""
        self.there.turn(name, well=well)

    @rule(name=names, kind=st.sampled_from(["ready", "stopping", "extension", "main"]))
    def say(self, name: str, kind: str) -> None:
        """It says something."""
        self.there.say(name, kind)

    # --- daemon and machine -------------------------------------------------------------------------

    @rule()
    def kill(self) -> None:
        """The daemon is killed."""
        self.there.kill()

    @rule(point=st.sampled_from(POINTS))
    def kill_at(self, point: str) -> None:
        """It will be killed at a point."""
        self.there.kill_at(point)

    @rule(keep=st.booleans())
    def end(self, keep: bool) -> None:
        """It is ended."""
        self.there.end(keep=keep)

    @rule()
    def reboot(self) -> None:
        """Another boot."""
        self.there.reboot()

    @rule()
    def kill_keeper(self) -> None:
        """The keeper dies."""
        self.there.kill_keeper()

    @rule(reason=st.sampled_from([Reason.NO_RESOURCES, Reason.PROGRAM_MISSING]))
    def refuse(self, reason: Reason) -> None:
        """The next process cannot be made."""
        self.there.refuse(reason)

    @rule(seconds=st.sampled_from([-100_000.0, 100_000.0]))
    def jump(self, seconds: float) -> None:
        """The clock of people jumps."""
        self.there.jump(seconds)

    @rule(seconds=st.sampled_from([0.4, 50.0]))
    def stall(self, seconds: float) -> None:
        """The daemon stands still."""
        self.there.stall(seconds)

    @rule(full=st.booleans())
    def fill_disk(self, full: bool) -> None:
        """The disk is full, or has room again."""
        self.there.fill_disk(full=full)


@pytest.mark.timeout(0 if EXAMPLES else 400)  # shrinking takes its time
def test_whatever_happens_to_it_every_rule_of_the_world_holds() -> None:
    run_state_machine_as_test(Trouble, settings=LONG if EXAMPLES else IN_CI)
