"""The daemon's side of the machine: the registry's `Host`, and what takes up the runs of an earlier life.

It behaves as host/machine.py, process.py and adoption.py do; all trouble is the world's.
"""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from registry.core import inputs as inp
from registry.core.definition import Definition
from registry.core.duties import StopDuty
from registry.core.lifecycle import FOR_A_PERSON, Reason, State
from registry.core.service import Request, Service
from registry.keeper.holdings import Kept
from tests.simulation.kernel import NEVER_RAN, SIGKILL, Kernel, Key, Note, Process
from tests.simulation.loop import NS
from tests.simulation.prober import Prober


class Life(Protocol):
    """What the host needs of the life of the daemon that it is part of."""

    @property
    def dead(self) -> bool: ...

    def point(self, name: str) -> None:
        """The daemon may be killed here."""

    def later(self, delay_s: float, callback: Callable[..., None], *args: Any) -> Any:
        """Call back, if this life lasts that long."""

    def observe(
        self, service: str, given: inp.Observation, done: Callable[[], None] | None = None
    ) -> None:
        """Hand in something seen."""


class Outside(Protocol):
    """What may go wrong outside, and who watches what is done there."""

    exits_known: bool
    happened: Counter[str]

    def refused_spawn(self) -> Reason | None:
        """Why no process can be made just now."""

    def spawn_s(self) -> float:
        """How long the next process takes to be made, while others have their turn; 0 where they have not."""

    def delivery_s(self) -> float:
        """How long it takes until somebody is told."""

    def spawning(self, definition: Definition, run: int) -> None:
        """A process is about to be made."""

    def opening(self, process: Process) -> None:
        """A gate is about to be opened."""

    def stopping(self, service: str, run: int) -> None:
        """A run is about to be stopped."""

    def releasing(self, service: str, run: int) -> None:
        """The keeper is about to let go of a run."""

    def opened(self, process: Process, definition: Definition) -> None:
        """A program begins."""


@dataclass(eq=False)
class Tracked:
    """A run as this life of the daemon knows it."""

    key: Key
    main: Process | None
    opened: bool = False
    is_ours: bool = True
    stopping: bool = False
    main_gone: bool = False
    kill_due_ns: int | None = None
    kill_timer: asyncio.TimerHandle | None = None
    killed: set[int] = field(default_factory=set)


class SimulatedHost:
    """One life's view of the machine."""

    def __init__(self, kernel: Kernel, life: Life, outside: Outside, prober: Prober) -> None:
        self._kernel = kernel
        self._life = life
        self._outside = outside
        self._prober = prober
        self._runs: dict[Key, Tracked] = {}
        self._definitions: dict[str, Definition] = {}
        self._ahead: dict[Key, tuple[Definition, Process]] = {}
        self.journal_id = ""
        self.busy = False
        """Whether a decision waits for its process."""

    def begin(self) -> None:
        """From now on ends are told."""
        self._kernel.ended = self._ended

    # --- starting ---------------------------------------------------------------------------------

    @asynccontextmanager
    async def ahead(self, runs: Sequence[tuple[Definition, int]]) -> AsyncIterator[None]:
        """Within the block `spawn` finds processes made for these; those that it was not asked for are undone."""
        self._life.point("ahead")
        if (takes_s := self._outside.spawn_s()) > 0:
            await asyncio.sleep(takes_s * len(runs))
        for definition, run in runs:
            key = (definition.name, run)
            self._ahead[key] = definition, self._kernel.spawn(self.journal_id, key)
        self._outside.happened["made ahead"] += len(runs)
        try:
            yield
        finally:
            for _definition, process in self._ahead.values():
                self._undo(process)
            self._ahead.clear()

    def _undo(self, process: Process) -> None:
        self._outside.happened["undone"] += 1
        process.is_ending = True
        self._kernel.end_in(0.0005, process, NEVER_RAN)

    async def _made(self, definition: Definition, key: Key) -> Process:
        """The process made ahead, unless it was made for another definition; else one of its own."""
        foreseen, process = self._ahead.pop(key, (None, None))
        if process is not None and foreseen is definition:
            return process
        if process is not None:
            self._undo(process)
        if (takes_s := self._outside.spawn_s()) > 0:
            self.busy = True
            await asyncio.sleep(takes_s)
            self.busy = False
        return self._kernel.spawn(self.journal_id, key)

    async def spawn(self, definition: Definition, run: int, digest: str) -> inp.Observation:
        """Put a process behind its gate: SpawnSucceeded or SpawnRefused."""
        self._life.point("spawn")
        self._outside.spawning(definition, run)
        reason = self._outside.refused_spawn()
        if reason is not None:
            return inp.SpawnRefused(run=run, reason=reason, message="no")
        key = (definition.name, run)
        process = await self._made(definition, key)
        self._definitions[definition.name] = definition
        self._runs[key] = Tracked(key, process)
        if self._kernel.keeper.alive:
            self._kernel.keeper.kept[key] = process
        self._life.point("spawned")
        return inp.SpawnSucceeded(
            run=run, pid=process.pid, start_time=process.start_time, digest=digest
        )

    def open_gate(self, service: str, run: int) -> bool:
        """Let it through; True when that happened now."""
        tracked = self._runs.get((service, run))
        if tracked is None or tracked.opened or tracked.main is None or not tracked.main.at_gate:
            return False
        self._life.point("gate")
        tracked.opened = True
        if not tracked.main.alive:
            return False
        self._outside.opening(tracked.main)
        self._outside.opened(tracked.main, self._definitions[service])
        self._life.point("opened")
        return True

    # --- stopping ---------------------------------------------------------------------------------

    def stop(self, service: str, run: int, duty: StopDuty) -> None:
        """Ask its group to end; again only sets the time of SIGKILL."""
        self._life.point("stop")
        tracked = self._runs.get((service, run))
        if tracked is None:
            self._life.observe(service, inp.GroupGone(run=run))
            return
        self._kill_at(tracked, duty.kill_due_ns)
        if tracked.stopping:
            return
        tracked.stopping = True
        self._outside.stopping(service, run)
        if tracked.main is not None and tracked.main.at_gate:
            self._kernel.end_in(0.0005, tracked.main, NEVER_RAN)
        else:
            self._signal_all(tracked, signal.Signals[duty.signal_name])
        if tracked.main_gone:
            self._check_group(tracked)
        self._life.point("stopped")

    def _kill_at(self, tracked: Tracked, due_ns: int) -> None:
        if tracked.kill_due_ns == due_ns:
            return
        if tracked.kill_timer is not None:
            tracked.kill_timer.cancel()
        tracked.kill_due_ns = due_ns
        delay_s = max(0, due_ns - self._kernel.now().mono_ns) / NS
        tracked.kill_timer = self._life.later(delay_s, self._kill, tracked)

    def _kill(self, tracked: Tracked) -> None:
        if tracked.main is not None and not tracked.main_gone:
            tracked.killed.add(tracked.main.pid)
        self._signal_all(tracked, SIGKILL)

    def _signal_all(self, tracked: Tracked, number: int) -> None:
        for member in self._kernel.members(tracked.key):
            self._kernel.signal(tracked.key, member, number)

    # --- ends -------------------------------------------------------------------------------------

    def _ended(self, process: Process) -> None:
        if process.key is not None:
            self._life.later(self._outside.delivery_s(), self._reap, process)

    def _reap(self, process: Process) -> None:
        assert process.key is not None
        tracked = self._runs.get(process.key)
        if tracked is None:
            return
        if process is tracked.main:
            self._main_ended(tracked)
        elif tracked.main_gone:
            self._check_group(tracked)

    def _main_ended(self, tracked: Tracked) -> None:
        if tracked.main_gone:
            return
        tracked.main_gone = True
        is_empty = not self._kernel.members(tracked.key)
        if is_empty:
            self._forget(tracked)
        elif tracked.stopping:
            self._signal_all(tracked, signal.SIGTERM)
        self._life.observe(tracked.key[0], self._end_of(tracked, group_empty=is_empty))

    def _end_of(self, tracked: Tracked, *, group_empty: bool) -> inp.Observation:
        process, run, killed = tracked.main, tracked.key[1], len(tracked.killed)
        if process is None or process.alive or process.code is None or not self._knows(tracked):
            return inp.ProcessLost(run=run, group_empty=group_empty, killed=killed)
        code = process.code
        failure = Reason(process.launch_failure) if process.launch_failure else None
        return inp.ProcessExited(
            run=run,
            exit_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            group_empty=group_empty,
            killed=killed,
            never_ran=code == NEVER_RAN and not tracked.opened,
            launch_failure=failure if code > 0 else None,
        )

    def _knows(self, tracked: Tracked) -> bool:
        return tracked.is_ours or self._outside.exits_known

    def _check_group(self, tracked: Tracked) -> None:
        if not self._kernel.members(tracked.key):
            self._forget(tracked)
            gone = inp.GroupGone(run=tracked.key[1], killed=len(tracked.killed))
            self._life.observe(tracked.key[0], gone)

    def _forget(self, tracked: Tracked) -> None:
        if tracked.kill_timer is not None:
            tracked.kill_timer.cancel()
        self._runs.pop(tracked.key, None)

    # --- the rest of what the registry asks for -----------------------------------------------------

    def release(self, service: str, up_to_run: int | None) -> None:
        """The ends of its runs up to this one are committed; None is all of them."""
        self._life.point("release")
        kept = self._kernel.keeper.kept
        for key in [key for key in kept if key[0] == service]:
            if up_to_run is None or key[1] <= up_to_run:
                self._outside.releasing(*key)
                del kept[key]

    def rest(self, service: str) -> None:
        """Nothing of it runs, or is to."""

    def watch(self, service: Service) -> None:
        """Begin its checks, or go on by what is now declared."""
        tracked = self._runs.get((service.name, service.run))
        self._prober.watch(service, tracked.main if tracked is not None else None)

    def became_ready(self, service: str) -> None:
        """Its checks go on at their intervals."""
        self._prober.became_ready(service)

    def unwatch(self, service: str, run: int) -> None:
        """End its checks."""
        self._prober.forget(service)

    def redefine(self, service: Service) -> None:
        """A run takes up what its new definition changes in place."""
        self._definitions[service.name] = service.definition

    def carry_out(self, service: Service, request: Request) -> None:
        """Send a signal or have it reload; RequestCarriedOut follows."""
        self._life.point("carry out")
        delay_s = 0.0 if request.signal is not None else self._outside.delivery_s()
        name, run, seq = service.name, service.run, request.seq
        self._life.later(delay_s, self._carried_out, name, run, seq, request.signal)

    def _carried_out(self, name: str, run: int, seq: int, signal_name: str | None) -> None:
        tracked = self._runs.get((name, run))
        error = None
        if tracked is None or tracked.main is None or not tracked.main.alive:
            error = "it has no main process"
        elif signal_name is not None:
            self._kernel.signal(tracked.key, tracked.main, signal.Signals[signal_name])
        self._life.observe(name, inp.RequestCarriedOut(run=run, request=seq, error=error))

    # --- what services say ------------------------------------------------------------------------

    def hear(self, note: Note, done: Callable[[], None] | None = None) -> None:
        """A service said something of itself, now or while nobody was there."""
        assert note.process.key is not None
        name, run = note.process.key
        given = self._meaning(note, run)
        if given is not None:
            self._life.observe(name, given, done)
        elif done is not None:
            done()

    def _meaning(self, note: Note, run: int) -> inp.Observation | None:
        match note.kind:
            case "ready":
                return inp.NotifiedReady(run=run)
            case "stopping":
                return inp.NotifiedStopping(run=run)
            case "extension":
                return inp.NotifiedExtension(run=run, seconds=note.value)
            case "watchdog":
                return inp.NotifiedWatchdog(run=run, interval_s=note.value)
        return self._change_main(note, run)

    def _change_main(self, note: Note, run: int) -> inp.Observation | None:
        assert note.process.key is not None
        tracked = self._runs.get(note.process.key)
        if tracked is None or tracked.main_gone or not tracked.opened:
            return None
        others = [each for each in self._kernel.members(tracked.key) if each is not tracked.main]
        if not others:
            return None
        self._outside.happened["main process changes"] += 1
        tracked.main = others[0]
        if self._kernel.keeper.alive:
            self._kernel.keeper.kept[tracked.key] = tracked.main
        return inp.NotifiedMain(run=run, pid=tracked.main.pid, start_time=tracked.main.start_time)

    def change_definitions(self, definitions: Iterable[Definition]) -> None:
        """What is declared."""
        self._definitions.update((each.name, each) for each in definitions)

    # --- after the daemon's own death ---------------------------------------------------------------

    def kept(self, service: str, run: int) -> None:
        """The keeper holds this run since an earlier life (it knows that itself)."""

    def adopt(self, _held: Any, _services: Any) -> None:
        """Sockets and descriptors are no part of this world."""

    def take_up(
        self,
        services: Iterable[Service],
        pidfds: dict[Key, int],
        _notes: Iterable[Any] = (),
        *,
        same_boot: bool,
    ) -> list[tuple[str, inp.Observation]]:
        """Every run that lives, journaled or not, and how the others ended."""
        runs = self._survey() if same_boot else {}
        services = list(services)
        known = {service.name for service in services}
        for process in [each for each in self._kernel.processes.values() if each.key is not None]:
            is_ours = process.journal_id == self.journal_id
            if same_boot and is_ours and process.key is not None and process.key[0] not in known:
                self._outside.happened["stray killed"] += 1
                self._kernel.end(process, -9)
        latest = dict(sorted(runs))
        seen: list[tuple[str, inp.Observation]] = []
        for service in services:
            found: list[inp.Observation] = []
            if (run := latest.get(service.name, 0)) > service.run:
                found = self._adopt_unjournaled(service, runs[service.name, run])
            has_run = service.pid is not None or service.state is State.STOPPING
            if not found and has_run:
                held = pidfds.pop((service.name, service.run), None) is not None
                found = self._adopt(service, held=held, same_boot=same_boot)
            seen += [(service.name, given) for given in found]
        return seen

    def _survey(self) -> dict[Key, Process]:
        ours = [
            each for each in self._kernel.processes.values() if each.journal_id == self.journal_id
        ]
        ours.sort(key=lambda each: each.is_main)  # a leader before what is left of its run
        return {each.key: each for each in ours if each.key is not None}

    def _adopt_unjournaled(self, service: Service, process: Process) -> list[inp.Observation]:
        assert process.key is not None
        if process.at_gate or process.key[1] <= service.run:
            return []
        self._outside.happened["unjournaled run found"] += 1
        run = process.key[1]
        found = inp.RunFound(run=run, pid=process.pid, start_time=process.start_time)
        tracked = Tracked(process.key, process, opened=True, is_ours=False)
        self._runs[process.key] = tracked
        if process.is_main:
            return [found, inp.GateOpened(run=run)]
        tracked.main, tracked.main_gone = None, True
        return [found, inp.ProcessLost(run=run, group_empty=False)]

    def _adopt(self, service: Service, *, held: bool, same_boot: bool) -> list[inp.Observation]:
        key = (service.name, service.run)
        if not same_boot:
            return [inp.ProcessLost(run=service.run)] if service.pid is not None else []
        process = self._identified(service, held=held)
        tracked = Tracked(key, process, is_ours=False)
        if service.pid is None:
            tracked.main_gone = True
            if self._kernel.members(key):
                self._runs[key] = tracked
            return []
        if process is None or not process.alive:
            tracked.main_gone = True
            tracked.opened = process.has_run if process is not None else True
            empty = not self._kernel.members(key)
            if not empty:
                self._runs[key] = tracked
            return [self._end_of(tracked, group_empty=empty)]
        tracked.opened = not process.at_gate
        self._runs[key] = tracked
        found: list[inp.Observation] = [inp.ProcessFound(run=service.run, pid=process.pid)]
        return [*found, inp.GateOpened(run=service.run)] if tracked.opened else found

    def _identified(self, service: Service, *, held: bool) -> Process | None:
        """The main process: by the keeper's pidfd, which outlives it, else by number and start time."""
        if held:
            kept = self._kernel.keeper.kept.get((service.name, service.run))
            if kept is not None and kept.pid == service.pid:
                return kept
        return self._kernel.find(service.pid or 0, service.start_time)


def kept_of(kernel: Kernel) -> list[Kept]:
    """What the keeper holds, as its client would say."""
    return [
        Kept(service=name, run=run, output_fd=None, pidfd=number, log=None)
        for number, (name, run) in enumerate(kernel.keeper.kept)
    ]


def refusals() -> tuple[Reason, ...]:
    """Why a spawn may be refused: what passes by itself three times as likely."""
    return (Reason.NO_RESOURCES,) * (3 * len(FOR_A_PERSON)) + tuple(sorted(FOR_A_PERSON))
