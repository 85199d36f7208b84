"""One life of a supervisor under measurement: booted, its services killed and started again, stopped."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from tests.bench import processes
from tests.bench.figures import OURS, Results
from tests.bench.processes import Cost, Observer
from tests.bench.rivals import RIVALS
from tests.bench.supervisors import FAST, Floor, Registry, Service, Supervisor

HERE = Path(__file__).parent
BOOT_S, STOP_S, RESTART_S = 300.0, 60.0, 10.0
LOST_MAX = 3
"""Restarts that may never come before the rest is not waited for."""


class Scale(NamedTuple):
    """How much of everything: services, repetitions, seconds."""

    few: int
    many: int
    most: int
    boots: int
    samples: int
    window_s: float
    settle_s: float
    storm_s: float
    connections: int
    events: int
    history: tuple[int, ...]


FULL = Scale(
    100, 1000, 10_000, 5, 110, 30.0, 5.0, 20.0, 10_000, 20_000,
    (10_000, 100_000, 1_000_000, 10_000_000),
)  # fmt: skip
QUICK = Scale(10, 100, 100, 1, 20, 2.0, 1.0, 3.0, 200, 2_000, (1_000, 10_000, 100_000))
TINY = Scale(3, 5, 5, 1, 4, 0.3, 0.3, 0.5, 10, 200, (1_000,))


class NotHere(Exception):
    """Something cannot be measured on this machine; the text says why."""


class Bench:
    """What every benchmark needs: where, how much, of whom, and where results go. Programs are compiled once."""

    def __init__(
        self, folder: Path, scale: Scale, rivals: Iterable[str], told: Callable[[str], None]
    ) -> None:
        self.folder = folder
        self.scale = scale
        self.told = told
        self.results = Results(machine={})
        self.service = _compiled(folder, "service")
        self.floor = _compiled(folder, "floor")
        self._rivals = list(rivals)

    def program(self) -> Path:
        """What every service executes. Raises NotHere without a compiler."""
        if self.service is None:
            raise NotHere("no C compiler (cc): the services are a program in C")
        return self.service

    def everybody(self) -> Iterator[Supervisor]:
        """Ourselves, the floor, and each rival that is here; the others are noted as left out."""
        for made in (Registry, lambda: Floor(self.floor), *map(RIVALS.get, self._rivals)):
            assert made is not None
            supervisor = made()
            if (why := supervisor.trouble()) is not None:
                self.results.skip(f"{supervisor.name}: {why}")
                continue
            yield supervisor

    def rivals(self) -> Iterator[Supervisor]:
        """Those of them that are real supervisors, and not ourselves."""
        return (each for each in self.everybody() if each.name in RIVALS)

    def new_folder(self) -> Path:
        """A folder with a short path, for Unix sockets."""
        return Path(tempfile.mkdtemp(prefix="", dir=self.folder))

    def life(
        self,
        supervisor: Supervisor,
        number: int,
        *,
        mode: tuple[str, ...] = (),
        keys: str = "",
        others: Iterable[tuple[str, tuple[str, ...]]] = (),
        others_keys: str = "",
        profile: str = FAST,
    ) -> Life:
        """A life with `number` equal services, and `others` by name and mode; `keys` are of each."""
        folder = self.new_folder()
        program, reports = str(self.program()), str(folder / "o")
        named = [(f"s{at:04d}", mode, keys) for at in range(number)]
        named += [(name, how, others_keys) for name, how in others]
        services = [Service(name, [program, name, reports, *how], key) for name, how, key in named]
        supervisor.folder = folder
        return Life(supervisor, services, self.program(), profile)


class Booted(NamedTuple):
    """Seconds from before the daemon's exec to the first and the last service's first instruction."""

    first_s: float
    all_s: float


class Life:
    """Within its block the supervisor runs; nothing of it is left afterwards."""

    def __init__(
        self, supervisor: Supervisor, services: list[Service], program: Path, profile: str
    ) -> None:
        self.supervisor = supervisor
        self.services = services
        self.folder = supervisor.folder
        self._program = program
        self.observer = Observer(self.folder / "o")
        supervisor.prepare(services, profile)
        self.began_ns = 0

    def __enter__(self) -> Life:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        processes.end_all(os.getpid())
        if self.supervisor.process is not None:
            self.supervisor.process.wait()
        self.observer.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Execute the daemon."""
        self.began_ns = time.monotonic_ns()
        self.supervisor.start()

    def boot(self) -> Booted:
        """Start, and wait for the last service. Raises NotHere where it does not come up."""
        self.start()
        if not self.observer.wait_for(len(self.services), BOOT_S):
            up = f"{len(self.observer.last)} of {len(self.services)} services"
            name, said = self.supervisor.name, self.supervisor.said()
            raise NotHere(f"{name} had started {up} after {BOOT_S:g} s: {said}")
        first = min(start.at_ns for start in self.observer.starts)
        last = max(start.at_ns for start in self.observer.last.values())
        return Booted((first - self.began_ns) / 1e9, (last - self.began_ns) / 1e9)

    def supervisors(self) -> list[int]:
        """The pids of all processes that are no service: the supervisor's own."""
        return processes.split(self._program)[1]

    def cost(self) -> Cost:
        """What those have used so far."""
        return processes.cost(self.supervisors())

    def stop(self) -> tuple[float, float]:
        """Seconds of an orderly end, until the last service is gone, and until the last of the supervisor is."""
        services, supervisors = processes.split(self._program)
        gone, all_gone = processes.Ends(services), processes.Ends(supervisors)
        began = time.monotonic()
        self.supervisor.ask_to_stop()
        left = gone.wait(STOP_S)
        services_s = time.monotonic() - began
        left += all_gone.wait(STOP_S)
        if left:
            raise NotHere(f"{self.supervisor.name} left {left} processes by its stop")
        return services_s, time.monotonic() - began

    def settle(self, least_s: float, most_s: float = 30.0) -> None:
        """Wait until the supervisor's processes use hardly any CPU, for `most_s` at the most."""
        deadline = time.monotonic() + most_s
        time.sleep(least_s)
        pids = self.supervisors()
        before = processes.cost(pids)
        while time.monotonic() < deadline:
            time.sleep(0.5)
            now = processes.cost(pids)
            if now.since(before).cpu_s < 0.001:
                return
            before = now

    def restarts_ms(
        self, samples: int, names: list[str], gap_s: float, seed: int = 1
    ) -> list[float]:
        """From SIGKILL to the next process's first instruction, one service after the other at random moments."""
        chance = random.Random(seed)
        found: list[float] = []
        lost = 0
        for number in range(samples):
            name = names[number % len(names)]
            taken = self.restart_ms(name)
            lost += taken is None
            found += [taken] if taken is not None else []
            if lost > LOST_MAX:
                break
            time.sleep(chance.uniform(0.02, gap_s))
        return found

    def restart_ms(self, name: str) -> float | None:
        """Of one service; None where it does not come again."""
        old = self.observer.last[name].pid
        killed_ns = time.monotonic_ns()
        try:
            os.kill(old, signal.SIGKILL)
        except ProcessLookupError:  # it was about to be another
            return None
        start = self.observer.wait_for_new(name, old, RESTART_S)
        return (start.at_ns - killed_ns) / 1e6 if start is not None else None


@contextmanager
def noted(bench: Bench, what: str) -> Iterator[None]:
    """What cannot be measured here is left out, and said to be; so is who does not answer."""
    try:
        yield
    except (NotHere, OSError, ValueError) as why:
        bench.results.skip(f"{what}: {why}")


def ours(bench: Bench, what: str) -> float | None:
    """The median of a figure of ours; None where it was not measured."""
    figure = bench.results.find(what, OURS)
    return figure.p50 if figure is not None else None


def _compiled(folder: Path, name: str) -> Path | None:
    """A program in C, static where the machine has what that takes; None without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    command = [compiler, "-O2", "-o", str(folder / name), str(HERE / f"{name}.c")]
    for static in (["-static"], []):
        done = subprocess.run([*command, *static], check=False, capture_output=True)
        if done.returncode == 0:
            return folder / name
    return None
