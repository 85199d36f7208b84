"""What services do once they run: each has a habit, bad ones included, and every run its own course."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import msgspec

from registry.core.definition import Definition, Ready
from tests.simulation.kernel import Kernel, Note, Process


class Habit(msgspec.Struct, frozen=True):
    """How likely a run does something, each between 0 and 1, and how long it lives. `life_s` None is for ever."""

    dies_early: float
    hangs: float
    life_s: float | None
    deaf: float
    slow: float
    leaves: float
    flaps: float
    lies: float
    talks: float


def habit(chance: Random) -> Habit:
    """How a service is from now on: most are steady, some are not."""
    if chance.random() < 0.5:
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
    """Begins what a run does. `say` is told of every notification."""

    def __init__(self, kernel: Kernel, chance: Random, say: Callable[[Note], None]) -> None:
        self._kernel = kernel
        self._chance = chance
        self._say = say
        self.habits: dict[str, Habit] = {}

    def habit(self, service: str) -> Habit:
        """The habit of a service."""
        if service not in self.habits:
            self.habits[service] = habit(self._chance)
        return self.habits[service]

    def begin(self, process: Process, definition: Definition) -> None:
        """Its program executes."""
        chance, kernel, way = self._chance, self._kernel, self.habit(definition.name)
        process.at_gate, process.has_run = False, True
        process.stops_in_s = self._stops_in_s(way)
        if chance.random() < way.dies_early:
            if chance.random() < 0.02:
                process.launch_failure = "exec_failed"
            kernel.end_in(chance.uniform(0.0005, 0.5), process, chance.choice([1, 1, 3, -11, 127]))
            return
        if definition.oneshot:
            code = 0 if chance.random() < 0.8 else 1
            kernel.end_in(chance.uniform(0.05, 20.0), process, code)
            return
        if chance.random() < way.leaves:
            self._fork(process, way)
        if way.life_s is not None:
            kernel.end_in(self._life_s(way.life_s), process, chance.choice([0, 1, 1, 3, -11, -15]))
        self._get_ready(process, definition, way)
        self._talk(process, definition, way)

    def _life_s(self, mean_s: float) -> float:
        return self._chance.uniform(0.1, 2.0) * mean_s

    def _stops_in_s(self, way: Habit) -> float | None:
        chance = self._chance
        if chance.random() < way.deaf:
            return None
        if chance.random() < way.slow:
            return chance.uniform(0.1, 15.0)
        return chance.uniform(0.0005, 0.02)

    def _fork(self, process: Process, way: Habit) -> None:
        for _ in range(self._chance.randint(1, 2)):
            child = self._kernel.spawn(process.journal_id, process.key, is_main=False)
            child.has_run = True
            child.stops_in_s = self._stops_in_s(way)
            if self._chance.random() < 0.3:
                self._kernel.end_in(self._chance.uniform(0.1, 600.0), child, 0)

    def _get_ready(self, process: Process, definition: Definition, way: Habit) -> None:
        chance = self._chance
        if chance.random() < way.hangs:
            process.well = False
        elif definition.ready is Ready.NOTIFY:
            delay_s = chance.uniform(0.01, 3.0)
            for _ in range(2 if chance.random() < 0.1 else 1):
                self._say_in(delay_s, process, "ready")
        if chance.random() < way.flaps:
            self._kernel.loop.after(chance.uniform(1.0, 300.0), self._flap, process)

    def _flap(self, process: Process) -> None:
        if process.alive:
            process.well = not process.well
            self._kernel.loop.after(self._chance.uniform(5.0, 200.0), self._flap, process)

    def _talk(self, process: Process, definition: Definition, way: Habit) -> None:
        chance = self._chance
        if not definition.is_notified or chance.random() >= way.talks:
            return
        kind = chance.choice(["stopping", "extension", "watchdog", "main"])
        self._say_in(chance.choice([0.1, 5.0, 100.0]), process, kind, chance.choice([5.0, 30.0]))

    def _say_in(self, delay_s: float, process: Process, kind: str, value: float = 0.0) -> None:
        self._kernel.loop.after(delay_s, self._say_now, Note(process, kind, value))

    def _say_now(self, note: Note) -> None:
        if note.process.alive:
            self._say(note)
