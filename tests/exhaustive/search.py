"""Every state that can be reached, breadth first; and whether all of them come to rest."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from registry.core.definition import Definition
from tests.exhaustive import rules
from tests.exhaustive.states import Pool, Run, World
from tests.exhaustive.steps import Steps
from tests.exhaustive.writer import Writer
from tests.simulation.invariants import Violation, broken


@dataclass(frozen=True)
class Scenario:
    """Services, by each of the configurations that may be applied; and what may happen to them."""

    name: str
    files: tuple[tuple[Definition, ...], ...]
    troubles: frozenset[str]
    batch_max: int = 1


@dataclass
class Found:
    """What a search came to. `depth` is that of the furthest state; `is_closed`: there are no others."""

    scenario: str
    states: int = 0
    transitions: int = 0
    rests: int = 0
    depth: int = 0
    is_closed: bool = False
    seconds: float = 0.0
    moves: Counter[tuple[str, str, str]] = field(default_factory=Counter)


class Unsound(Exception):
    """A rule is broken: which, and the shortest way to it."""


class Search:
    """The states of one scenario by number, each with the step by which it was reached first."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        names = sorted({each.name for file in scenario.files for each in file})
        self.pool = Pool(names)
        self.writer = Writer(scenario.files, self.pool)
        self.steps = Steps(self.writer, scenario.troubles, scenario.batch_max)
        self.found = Found(scenario.name)
        self.worlds: list[World] = []
        self._numbers: dict[World, int] = {}
        self._from: list[tuple[int, str]] = []
        self._due: dict[int, list[int]] = {}

    def run(self, depth_max: int | None = None, states_max: int | None = None) -> Found:
        """Search to a depth or to the end, see that all comes to rest. Raises Unsound."""
        began_s = time.process_time()
        gc.freeze()
        gc.disable()  # states are tuples that hold no circles: looking for some takes longer than the search
        nobody = (-1,) * len(self.pool.names)
        self._enter(World(nobody, nobody, tuple(Run() for _ in nobody)), 0, "nothing is there")
        try:
            frontier = self._widen(depth_max, states_max)
            self.found.is_closed = not frontier
            self.found.states = len(self.worlds)
            self._follow_duties(frontier)
            self._see_rest()
        finally:
            gc.enable()
            gc.unfreeze()
            self.found.seconds = time.process_time() - began_s
        self.found.moves = self.writer.moves
        return self.found

    def _widen(self, depth_max: int | None, states_max: int | None) -> list[int]:
        frontier = self._first_boot()
        while frontier:
            is_enough = states_max is not None and len(self.worlds) >= states_max
            if is_enough or (depth_max is not None and self.found.depth >= depth_max):
                return frontier
            following: list[int] = []
            for number in frontier:
                following += self._expand(number)
            frontier = following
            self.found.depth += bool(frontier)
        return []

    def _first_boot(self) -> list[int]:
        """The states of a boot without any trouble, to rest: the depth counts from each of them."""
        boot = [0]
        while (step := self.steps.first_due(self.worlds[boot[-1]])) is not None:
            boot.append(self._enter(step.world, boot[-1], step.what))
        return boot

    def _follow_duties(self, frontier: Sequence[int]) -> None:
        """Beyond the depth, only what is due, and one thing after the other."""
        for number in frontier:
            at: int | None = number
            while at is not None and at not in self._due:
                at = self._follow(at)

    def _follow(self, number: int) -> int | None:
        """Where what is due in a state leads; None at rest."""
        try:
            step = self.steps.first_due(self.worlds[number])
        except Violation as violation:
            raise Unsound(self._told(number, violation)) from violation
        self._due[number] = []
        if step is None:
            return None
        self.found.transitions += 1
        known = self._numbers.get(step.world)
        if known is None:
            known = self._enter(step.world, number, step.what)
        self._due[number].append(known)
        return known

    def _expand(self, number: int) -> list[int]:
        try:
            steps = self.steps.of(self.worlds[number])
        except Violation as violation:
            raise Unsound(self._told(number, violation)) from violation
        fresh = []
        due = self._due[number] = []
        for step in steps:
            self.found.transitions += 1
            known = self._numbers.get(step.world)
            if known is None:
                known = self._enter(step.world, number, step.what)
                fresh.append(known)
            if step.is_due and known != number:
                due.append(known)
        return fresh

    def _enter(self, world: World, before: int, what: str) -> int:
        number = self._numbers[world] = len(self.worlds)
        self.worlds.append(world)
        self._from.append((before, what))
        try:
            rules.state_is_sound(world, self.pool)
        except Violation as violation:
            raise Unsound(self._told(number, violation)) from violation
        return number

    # --- rest ---------------------------------------------------------------------------------------

    def _see_rest(self) -> None:
        """From every state, what is due leads to rest whatever its order: it has an end, and no circle."""
        waits = {number: len(set(after)) for number, after in self._due.items()}
        before: dict[int, list[int]] = {}
        for number, after in self._due.items():
            for each in set(after):
                before.setdefault(each, []).append(number)
        ready = [number for number, count in waits.items() if count == 0]
        for number in ready:
            self._see_settled(number)
        self.found.rests = len(ready)
        done = 0
        while ready:
            done += 1
            for each in before.get(ready.pop(), ()):
                waits[each] -= 1
                if waits[each] == 0:
                    ready.append(each)
        if done < len(waits):
            self._tell_circle({number for number, count in waits.items() if count})

    def _see_settled(self, number: int) -> None:
        try:
            rules.rest_is_settled(self.worlds[number], self.pool, self.scenario.files)
        except Violation as violation:
            raise Unsound(self._told(number, violation)) from violation

    def _tell_circle(self, left: set[int]) -> None:
        seen: list[int] = []
        at = min(left)
        while at not in seen:
            seen.append(at)
            at = next(each for each in self._due[at] if each in left)
        circle = seen[seen.index(at) :]
        states = "\n".join(f"    {self._state(each)}" for each in circle)
        try:
            broken(all_comes_to_rest, None, f"a circle of {len(circle)}:\n{states}")
        except Violation as violation:
            raise Unsound(self._told(circle[0], violation)) from violation

    # --- telling --------------------------------------------------------------------------------------

    def way(self, number: int) -> list[str]:
        """The steps to a state."""
        steps: list[str] = []
        while number:
            number, what = self._from[number]
            steps.append(what)
        return steps[::-1]

    def _state(self, number: int) -> str:
        world = self.worlds[number]
        services = [
            f"{name} {each.state} ({each.reason}) wanted={each.wanted} run {each.run}"
            for name, each in self.pool.services(world.live).items()
        ]
        runs = [f"{run.first}/{run.second}" for run in world.runs]
        return f"{world.life}; {'; '.join(services)}; processes {', '.join(runs)}"

    def _told(self, number: int, violation: Violation) -> str:
        way = "\n".join(f"  {place:3} {what}" for place, what in enumerate(self.way(number), 1))
        last = f"{self._state(number)}\n  {self.worlds[number]}"
        return f"{self.scenario.name}: {violation}\n{way}\n  then {last}"


def all_comes_to_rest() -> None:
    """What daemon and machine do by themselves comes to an end."""
