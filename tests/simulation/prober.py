"""Checks on virtual time: results as the run's health is, as a lying probe says, late ones included."""

from __future__ import annotations

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
        self.forget(service.name)
        watch = self._watched[service.name] = Watch(service, process)
        for check in watch.checks:
            self._later(self._chance.uniform(0.0, 0.2), self._try, watch, check)
        if watch.memory_max is not None:
            self._later(self._chance.uniform(5.0, 600.0), self._look, watch, watch.memory_max)

    def became_ready(self, service: str) -> None:
        """Go on at the checks' intervals."""
        if service in self._watched:
            self._watched[service].is_ready = True

    def forget(self, service: str) -> None:
        """End its checks; a result that is on its way still comes."""
        watch = self._watched.pop(service, None)
        if watch is not None:
            watch.is_over = True

    def _try(self, watch: Watch, check: Check) -> None:
        if watch.is_over:
            return
        chance = self._chance
        way = self._programs.habit(watch.name)
        ok = watch.process is not None and watch.process.alive and watch.process.well
        if chance.random() < way.lies:
            ok = not ok
        latency_s = chance.uniform(0.0005, 0.01) if ok else chance.uniform(0.0005, check.timeout_s)
        self._later(latency_s, self._tell, watch, check, ok, latency_s)
        interval_s = check.interval_s if watch.is_ready else min(EAGER_S, check.interval_s)
        self._later(interval_s, self._try, watch, check)

    def _tell(self, watch: Watch, check: Check, ok: bool, latency_s: float) -> None:
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
            self._held(watch.name, watch.run, most + self._chance.randrange(1, 2**20))
