"""The machine that outlives the daemon: processes and their numbers, clocks, boots, and the keeper.

Numbers of processes come from a small ring, so that they are soon another's. Nothing here knows of rules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from registry.core import events as ev
from tests.simulation.loop import NS, VirtualLoop

EPOCH_NS = 1_800_000_000 * NS
FIRST_PID = 300
PIDS_LEAST = 120
TICK_NS = 10_000_000
SIGKILL = 9
NEVER_RAN = 111
"""What the shell at the gate exits with when nobody opens it."""

Key = tuple[str, int]
"""A service and the number of a run."""


def _nobody() -> None:
    """Nobody watches."""


@dataclass(eq=False)
class Process:
    """One process; `key` is its mark, none is a stranger's. A signal ends it in `stops_in_s`, or not (None).

    `changed` is called when it is well again or no longer, and at its end.
    """

    pid: int
    start_time: int
    journal_id: str
    key: Key | None
    is_main: bool = True
    at_gate: bool = False
    has_run: bool = False
    alive: bool = True
    code: int | None = None
    stops_in_s: float | None = 0.01
    is_ending: bool = False
    well: bool = True
    launch_failure: str | None = None
    changed: Callable[[], None] = _nobody


@dataclass
class Note:
    """What a process said about itself."""

    process: Process
    kind: str
    value: float = 0.0


@dataclass
class Keeper:
    """What must outlive the daemon: runs whose exit status it will know, and what services say meanwhile."""

    alive: bool = True
    kept: dict[Key, Process] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)


class Kernel:
    """All processes of one machine.

    `ended` is how the daemon is told of each end, `gone` how the world is; `signalled` is told of each signal before
    it strikes.
    """

    def __init__(self, loop: VirtualLoop, chance: Random, services: int = 0) -> None:
        self.loop = loop
        self.chance = chance
        self._ring = range(FIRST_PID, FIRST_PID + max(PIDS_LEAST, 6 * services))
        self.boots = 1
        self.booted_ns = -5 * NS
        self.wall_ns = EPOCH_NS
        self.processes: dict[int, Process] = {}
        self.groups: dict[Key, list[Process]] = {}
        self.keeper = Keeper()
        self.ended: Callable[[Process], None] = lambda _process: None
        self.gone: Callable[[Process], None] = lambda _process: None
        self.signalled: Callable[[Key, Process], None] = lambda _key, _process: None
        self._next_pid = 0

    @property
    def boot_id(self) -> str:
        """Another one in each boot."""
        return f"boot-{self.boots}"

    def now(self) -> ev.Now:
        """Both clocks: that of people jumps, that of rules begins anew with each boot."""
        return ev.Now(self.wall_ns + self.loop.now_ns, self.loop.now_ns - self.booted_ns)

    def spawn(
        self, journal_id: str, key: Key | None, *, is_main: bool = True, pid: int | None = None
    ) -> Process:
        """A process; that of a run waits at its gate where it is the main one."""
        pid = pid or self._free_pid()
        start_time = (self.loop.now_ns - self.booted_ns) // TICK_NS
        process = Process(
            pid, start_time, journal_id, key, is_main, at_gate=is_main and key is not None
        )
        self.processes[pid] = process
        if key is not None:
            self.groups.setdefault(key, []).append(process)
        return process

    def _free_pid(self) -> int:
        while True:
            self._next_pid += 1
            pid = self._ring[self._next_pid % len(self._ring)]
            if pid not in self.processes:
                return pid

    def members(self, key: Key) -> list[Process]:
        """The living processes of a run."""
        return list(self.groups.get(key, ()))

    def find(self, pid: int, start_time: int | None) -> Process | None:
        """The living process with this number, if it is the one that began then."""
        process = self.processes.get(pid)
        return process if process is not None and process.start_time == start_time else None

    def end(self, process: Process, code: int) -> None:
        """It ends, with this exit code or, negative, by this signal; its number is free."""
        if not process.alive:
            return
        process.alive, process.code = False, code
        del self.processes[process.pid]
        if process.key is not None:
            group = self.groups[process.key]
            group.remove(process)
            if not group:
                del self.groups[process.key]
        process.changed()
        self.gone(process)
        self.ended(process)

    def end_in(self, seconds: float, process: Process, code: int) -> None:
        """It ends by and by."""
        self.loop.after(seconds, self.end, process, code)

    def signal(self, key: Key, process: Process, number: int) -> None:
        """A signal meant for run `key` reaches `process`."""
        self.signalled(key, process)
        if number == SIGKILL:
            self.end_in(0.0005, process, -SIGKILL)
        elif process.stops_in_s is not None and not process.is_ending:
            process.is_ending = True
            self.end_in(process.stops_in_s, process, 0 if process.stops_in_s > 0.02 else -number)

    def reboot(self) -> None:
        """Everything ends, and nobody is told; the clock of rules begins anew."""
        self.ended = lambda _process: None
        for process in list(self.processes.values()):
            self.end(process, -SIGKILL)
        self.keeper = Keeper()
        self.boots += 1
        self.booted_ns = self.loop.now_ns - self.chance.randrange(1, 30) * NS
