"""What services do once they run: each has a habit, bad ones included, and every run its own course."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

import msgspec

from registry.core.definition import Definition, Ready
from tests.simulation.kernel import Kernel, Note, Process
from tests.simulation.trouble import Taste


class Habit(msgspec.Struct, frozen=True):
    """How likely a run does something, each between 0 and 1, and how long it lives. `life_s` None is for ever.

    `ready_s` is the longest that it takes to be ready.
    """

    dies_early: float
    hangs: float
    life_s: float | None
    deaf: float
    slow: float
    leaves: float
    flaps: float
    lies: float
    talks: float
    ready_s: float = 3.0


def habit(chance: Random, taste: Taste) -> Habit:
    """How a service is from now on: some are steady, some are not."""
    fixed = {
        name: chance.choice(value) if isinstance(value, tuple) else value
        for name, value in taste.habit.items()
    }
    return msgspec.structs.replace(_habit(chance, taste.bad), **fixed)


def _habit(chance: Random, bad: float) -> Habit:
    if chance.random() >= bad:
        return Habit(0.02, 0.01, chance.choice([None, 7200.0]), 0.02, 0.1, 0.02, 0.02, 0.001, 0.05)
    return Habit(
        dies_early=chance.choice([0.0, 0.1, 0.9]),
        hangs=chance.choice([0.0, 0.3]),
        life_s=chance.choice([None, 1800.0, 300.0, 20.0]),
        deaf=chance.choice([0.0, 0.3]),
        slow=chance.choice([0.1, 0.5]),
        leaves=chance.choice([0.0, 0.3]),
        flaps=chance.choice([0.0, 0.2]),
        lies=chance.choice([0.0, 0.05]),
        talks=chance.choice([0.0, 0.3]),
    )


class Programs:
    """Begins what a run does. `say` is told of every notification; what goes wrong is counted in `happened`.

    What takes its time takes `pace` times as long.
    """

    def __init__(
        self,
        kernel: Kernel,
        chance: Random,
        say: Callable[[Note], None],
        happened: Counter[str],
        taste: Taste,
        pace: float = 1.0,
    ) -> None:
        self._kernel = kernel
        self._chance = chance
        self._say = say
        self._taste = taste
        self.happened = happened
        self.pace = pace
        self.habits: dict[str, Habit] = {}

    def habit(self, service: str) -> Habit:
        """The habit of a service."""
        if service not in self.habits:
            self.change(service)
        return self.habits[service]

    def change(self, service: str) -> None:
        """From now on it is otherwise."""
        self.habits[service] = habit(self._chance, self._taste)

    def begin(self, process: Process, definition: Definition) -> None:
        """Its program executes."""
        chance, kernel, way = self._chance, self._kernel, self.habit(definition.name)
        process.at_gate, process.has_run = False, True
        process.stops_in_s = self._stops_in_s(way)
        if chance.random() < way.leaves:
            self._fork(process, way)
        if chance.random() < way.dies_early:
            self.happened["run dies early"] += 1
            if chance.random() < 0.02:
                process.launch_failure = "exec_failed"
            kernel.end_in(
                chance.uniform(0.0005, 0.5), process, chance.choice([0, 0, 1, 3, -11, 127])
            )
            return
        if definition.oneshot:
            code = 0 if chance.random() < 0.8 else 1
            kernel.end_in(chance.uniform(0.05, 20.0), process, code)
            return
        if way.life_s is not None:
            kernel.end_in(self._life_s(way.life_s), process, chance.choice([0, 0, 1, 3, -11, -15]))
        self._get_ready(process, definition, way)
        self._talk(process, definition, way)

    def _life_s(self, mean_s: float) -> float:
        return self._chance.uniform(0.1, 2.0) * mean_s * self.pace

    def _stops_in_s(self, way: Habit) -> float | None:
        chance = self._chance
        if chance.random() < way.deaf:
            self.happened["run is deaf to its stop"] += 1
            return None
        if chance.random() < way.slow:
            self.happened["run stops slowly"] += 1
            return chance.uniform(0.1, 15.0)
        return chance.uniform(0.0005, 0.02)

    def _fork(self, process: Process, way: Habit) -> None:
        for _ in range(self._chance.randint(1, 2)):
            self.happened["child forked"] += 1
            child = self._kernel.spawn(process.journal_id, process.key, is_main=False)
            child.has_run = True
            child.stops_in_s = self._stops_in_s(way)
            if self._chance.random() < 0.3:
                self._kernel.end_in(self._chance.uniform(0.1, 600.0), child, 0)

    def _get_ready(self, process: Process, definition: Definition, way: Habit) -> None:
        chance = self._chance
        if chance.random() < way.hangs:
            self.happened["run hangs at start"] += 1
            process.well = False
        elif definition.readiness is Ready.NOTIFY:
            delay_s = chance.uniform(0.01, way.ready_s)
            for _ in range(2 if chance.random() < 0.1 else 1):
                self._say_in(delay_s, process, "ready")
        elif definition.readiness is Ready.HEALTH and chance.random() < 0.5:
            process.well = False
            self._kernel.loop.after(chance.uniform(0.01, way.ready_s), self._turn, process)
        if chance.random() < way.flaps:
            first_s = chance.uniform(1.0, 300.0) * self.pace
            self._kernel.loop.after(first_s, self._flap, process)

    def _flap(self, process: Process) -> None:
        if process.alive:
            self.happened["health flaps"] += 1
            self._turn(process)
            next_s = self._chance.uniform(5.0, 200.0) * self.pace
            self._kernel.loop.after(next_s, self._flap, process)

    def _turn(self, process: Process) -> None:
        """What was well is not, and the other way round."""
        process.well = not process.well
        process.changed()

    def _talk(self, process: Process, definition: Definition, way: Habit) -> None:
        chance = self._chance
        if not definition.is_notified or chance.random() >= way.talks:
            return
        kind = chance.choice(["stopping", "stopping", "extension", "watchdog", "main"])
        delay_s = chance.choice([0.02, 0.1, 5.0, 10.0])
        self._say_in(delay_s, process, kind, chance.choice([5.0, 30.0]))

    def _say_in(self, delay_s: float, process: Process, kind: str, value: float = 0.0) -> None:
        self._kernel.loop.after(delay_s, self._say_now, Note(process, kind, value))

    def _say_now(self, note: Note) -> None:
        if note.process.alive:
            self._say(note)
