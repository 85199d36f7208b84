"""Checks on virtual time: results as the run's health is, as a lying probe says, late ones included.

Law: a check whose latest results are all the same, as many as it counts to, is tried again only when its result will
be another one. What is passed over would change nothing, and years of it would be most of the work.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any, Protocol

from registry.core.definition import Check
from registry.core.service import Service
from tests.simulation.kernel import Process
from tests.simulation.programs import Programs

EAGER_S = 1.0
"""How often a check is tried until its run is ready."""


class Told(Protocol):
    """The registry's `probed`."""

    def __call__(
        self,
        service: str,
        run: int,
        check: str,
        *,
        ok: bool,
        error: str | None,
        latency_ns: int,
        final: bool = False,
    ) -> None: ...


class Watch:
    """The checks of one run, and how much memory it may hold."""

    def __init__(self, service: Service, process: Process | None) -> None:
        self.name = service.name
        self.run = service.run
        self.process = process
        self.checks = service.definition.checks
        self.memory_max = service.definition.restart.memory_max
        self.is_ready = False
        self.is_over = False
        self.told: dict[str, tuple[bool, int]] = {}
        self.on_their_way: Counter[str] = Counter()
        self.lying: set[str] = set()
        self.resting: dict[str, tuple[Check, asyncio.TimerHandle | None]] = {}

    def is_settled(self, check: Check, *, ok: bool) -> bool:
        """Whether one more result like the latest would change nothing."""
        if not self.is_ready or self.on_their_way[check.name]:
            return False
        latest, count = self.told.get(check.name, (ok, 0))
        return latest is ok and count >= max(check.failures, check.successes)

    def note(self, check: Check, *, ok: bool) -> None:
        """A result is told."""
        self.on_their_way[check.name] -= 1
        latest, count = self.told.get(check.name, (ok, 0))
        self.told[check.name] = (ok, count + 1 if latest is ok else 1)


class Prober:
    """All checks of one life of the daemon."""

    def __init__(
        self,
        chance: Random,
        programs: Programs,
        later: Callable[..., Any],
        told: Told,
        held: Callable[[str, int, int], None],
    ) -> None:
        self._chance = chance
        self._programs = programs
        self._later = later
        self._told = told
        self._held = held
        self._watched: dict[str, Watch] = {}

    def watch(self, service: Service, process: Process | None) -> None:
        """Begin its checks anew."""
        before = self._watched.get(service.name)
        self.forget(service.name)
        watch = self._watched[service.name] = Watch(service, process)
        if before is not None and before.run == watch.run:  # what is on its way still counts
            watch.told, watch.on_their_way = before.told, before.on_their_way
        if process is not None:
            process.changed = lambda: self._wake(watch)
        for check in watch.checks:
            self._later(self._chance.uniform(0.0, 0.2), self._try, watch, check)
        if watch.memory_max is not None:
            soon_s, late_s = self._chance.uniform(0.02, 2.0), self._chance.uniform(5.0, 600.0)
            grows_s = self._chance.choice([soon_s, late_s]) * self._programs.pace
            self._later(grows_s, self._look, watch, watch.memory_max)

    def became_ready(self, service: str) -> None:
        """Go on at the checks' intervals."""
        if service in self._watched:
            self._watched[service].is_ready = True

    def forget(self, service: str) -> None:
        """End its checks; a result that is on its way still comes."""
        watch = self._watched.pop(service, None)
        if watch is not None:
            watch.is_over = True
            for _check, timer in watch.resting.values():
                if timer is not None:
                    timer.cancel()

    def _try(self, watch: Watch, check: Check) -> None:
        if watch.is_over:
            return
        chance = self._chance
        ok = watch.process is not None and watch.process.alive and watch.process.well
        is_lie = check.name in watch.lying or chance.random() < self._lies(watch)
        if not is_lie and watch.is_settled(check, ok=ok):
            self._rest(watch, check)
            return
        if is_lie:
            watch.lying.discard(check.name)
            self._programs.happened["probe lies"] += 1
            ok = not ok
        watch.on_their_way[check.name] += 1
        latency_s = chance.uniform(0.0005, 0.01) if ok else chance.uniform(0.0005, check.timeout_s)
        self._later(latency_s, self._tell, watch, check, ok, latency_s)
        interval_s = check.interval_s if watch.is_ready else min(EAGER_S, check.interval_s)
        self._later(interval_s, self._try, watch, check)

    def _lies(self, watch: Watch) -> float:
        return self._programs.habit(watch.name).lies / self._programs.pace

    def _rest(self, watch: Watch, check: Check) -> None:
        """Its results stay the same until the process is otherwise, or until the probe lies."""
        lies, timer = self._lies(watch), None
        if lies:
            tries = self._chance.randint(1, int(2 / lies))
            timer = self._later(tries * check.interval_s, self._lie, watch, check)
        watch.resting[check.name] = (check, timer)

    def _lie(self, watch: Watch, check: Check) -> None:
        watch.resting.pop(check.name, None)
        watch.lying.add(check.name)
        self._try(watch, check)

    def _wake(self, watch: Watch) -> None:
        """The process is otherwise: the next try of each check sees it."""
        for check, timer in watch.resting.values():
            if timer is not None:
                timer.cancel()
            self._later(self._chance.uniform(0.0, check.interval_s), self._try, watch, check)
        watch.resting.clear()

    def _tell(self, watch: Watch, check: Check, ok: bool, latency_s: float) -> None:
        watch.note(check, ok=ok)
        self._told(
            watch.name,
            watch.run,
            check.name,
            ok=ok,
            error=None if ok else "no answer",
            latency_ns=int(latency_s * 1e9),
            final=not ok and self._chance.random() < 0.02,
        )

    def _look(self, watch: Watch, most: int) -> None:
        if not watch.is_over:
            self._programs.happened["memory exceeded"] += 1
            self._held(watch.name, watch.run, most + self._chance.randrange(1, 2**20))
