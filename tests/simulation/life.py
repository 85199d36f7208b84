"""One life of the daemon: the production registry on the simulated machine, from boot to its end or its death.

It does what daemon.py does, in the same order. Killed, nothing of it has any effect any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import msgspec

from registry import recovery
from registry.api.access import Peer
from registry.api.commands import Commands
from registry.apply import Configuration
from registry.config import Config
from registry.core import events as ev
from registry.core import inputs as inp
from registry.core.lifecycle import Reason, State
from registry.core.projection import Projection
from registry.core.service import Service
from registry.journal import JournalError
from registry.journal.rows import Row
from registry.keeper.client import Found
from registry.questions.plan import Plan, plan
from registry.registry import Registry
from tests.simulation.disk import Disk, DiskJournal
from tests.simulation.host import Outside, SimulatedHost, kept_of
from tests.simulation.kernel import Kernel, Note
from tests.simulation.loop import NS, VirtualLoop
from tests.simulation.prober import Prober
from tests.simulation.programs import Programs

KEY = b"key"
SCHEMA = 1
"""Of no meaning here: a world is the same whatever version of the schema would hold its rows."""


class Killed(BaseException):
    """The daemon was killed here."""


class Around(Outside, Protocol):
    """What a life needs of the world."""

    loop: VirtualLoop
    chance: Any
    kernel: Kernel
    disk: Disk
    programs: Programs
    config: Config

    def may_die(self, name: str) -> bool:
        """Whether the daemon is killed at this point."""

    def fold(self) -> Projection:
        """The fold of all rows, for a daemon that begins."""

    def appended(self, rows: list[Row]) -> None:
        """Rows are durable."""

    def over(self, life: Life, how: str) -> None:
        """The life is over."""


class _Clock:
    """The registry's clock."""

    def __init__(self, life: Life, kernel: Kernel) -> None:
        self._life = life
        self._kernel = kernel

    def now(self) -> ev.Now:
        """Both clocks at once."""
        return self._kernel.now()

    def call_at(self, due_ns: int, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """Call back once CLOCK_BOOTTIME has reached `due_ns`, a millisecond late as the real one is."""
        delay_s = max(0, due_ns - self._kernel.now().mono_ns) / NS
        return self._life.later(delay_s + 0.001 if delay_s else 0.0, callback)


class _Configuration(Configuration):
    """The production one, whose file is the world's."""

    world: Around

    async def _load(self) -> Config:
        await asyncio.sleep(0.002)
        return self.world.config

    async def _compare(self, config: Config) -> Plan:
        """Without the machine's complaints: it is another machine."""
        await asyncio.sleep(0.003)
        return plan(self._registry.committed.services, config.definitions)


class Life:
    """One process of the daemon."""

    def __init__(self, world: Around) -> None:
        self.world = world
        self.dead = False
        self.is_up = False
        self.up_ns = 0
        self.stalled_until_ns = 0
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.journal = DiskJournal(world.disk, lambda: self.dead, self.point, self._appended)
        self.ending: asyncio.Future[bool] = world.loop.create_future()
        self.registry: Registry
        self.configuration: _Configuration
        self.commands: Commands
        self.host: SimulatedHost

    # --- dying ------------------------------------------------------------------------------------

    def point(self, name: str) -> None:
        """The daemon may be killed here."""
        if self.dead:
            raise Killed
        if self.world.may_die(name):
            self.die(f"killed at {name}")
            raise Killed

    def die(self, how: str) -> None:
        """From here on nothing that it does has any effect."""
        if self.dead:
            return
        self.dead = True
        for task in list(self.tasks):
            if task is not asyncio.current_task(self.world.loop):
                task.cancel()
        self.world.over(self, how)

    def later(
        self, delay_s: float, callback: Callable[..., None], *args: Any
    ) -> asyncio.TimerHandle:
        """Call back, if this life lasts that long; later where it stands still."""
        return self.world.loop.after(delay_s, self._due, callback, args)

    def _due(self, callback: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self.dead:
            return
        if self.world.loop.now_ns < self.stalled_until_ns:
            self.world.loop.at(self.stalled_until_ns, self._due, callback, args)
            return
        callback(*args)

    def start_task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task that dies with it."""
        task = self.world.loop.create_task(work)
        self.tasks[task] = None
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        self.tasks.pop(task, None)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self.dead:
            self.world.loop.failed(error, "a task of the daemon failed")

    # --- what arrives -----------------------------------------------------------------------------

    def observe(
        self, service: str, given: inp.Observation, done: Callable[[], None] | None = None
    ) -> None:
        """Hand in something seen."""
        if not self.dead:
            self.registry.observe(service, given, done)

    def _appended(self, rows: list[Row]) -> None:
        self.world.appended(rows)

    def ask(self, verb: str, params: msgspec.Struct, peer: Peer) -> Coroutine[Any, Any, Any]:
        """A command, as the socket would hand it in."""
        return self.commands.table()[verb](params, peer)

    # --- its course -------------------------------------------------------------------------------

    async def run(self) -> None:
        """From boot to an orderly end."""
        try:
            await self._boot()
        except JournalError:
            self.die("the journal could not be written at boot")
            return
        writing = self.start_task(self.registry.run())
        minding = self.start_task(self._mind_essentials())
        self.is_up, self.up_ns = True, self.world.loop.now_ns
        keep = await self.ending
        if keep:
            self.registry.closing = True
        else:
            await self.registry.stop_all()
        self.registry.finish()
        await writing
        minding.cancel()
        self.is_up = False
        how = "ended"
        try:
            await self.registry.write(ev.RegistryStopped(kept=keep))
        except JournalError:
            how = "ended, the last events are not in the journal"
        self.registry.close()
        self.die(how)

    def end(self, *, keep: bool) -> None:
        """Ask it to end."""
        if not self.ending.done():
            self.ending.set_result(keep)

    async def _boot(self) -> None:
        world = self.world
        projection = world.fold()
        is_new = not projection.journal_id
        journal_id = projection.journal_id or f"{world.chance.getrandbits(64):016x}"
        before = projection.started
        same_boot = before is not None and before.boot_id == world.kernel.boot_id
        await asyncio.sleep(world.chance.uniform(0.005, 0.05))
        prober = Prober(world.chance, world.programs, self.later, self._probed, self._holds)
        self.host = SimulatedHost(world.kernel, self, world, prober)
        self.host.journal_id = journal_id
        self.registry = Registry(projection, self.journal, self.host, _Clock(self, world.kernel))
        self.configuration = _Configuration(world.config, KEY, self.registry, self._take_up)
        self.configuration.world = world
        self.commands = Commands(self.registry)
        cause = await self._write_beginning(journal_id, is_new=is_new, same_boot=same_boot)
        await self._recover(cause, same_boot=same_boot)

    async def _write_beginning(self, journal_id: str, *, is_new: bool, same_boot: bool) -> int:
        registry = self.registry
        named: list[ev.Event] = []
        if is_new:
            named = [ev.JournalCreated(journal_id=journal_id, schema=SCHEMA)]
        started = ev.RegistryStarted(
            boot_id=self.world.kernel.boot_id,
            pid_namespace="pid:[1]",
            pid=200,
            version="simulated",
            fresh=registry.committed.orderly or not same_boot,
        )
        await registry.write(*named, started)
        return registry.committed.seq

    async def _recover(self, cause: int, *, same_boot: bool) -> None:
        registry, config, kernel = self.registry, self.configuration.config, self.world.kernel
        known = set(registry.committed.services)
        self.host.change_definitions(config.definitions)
        later = recovery.declare(registry, self.configuration, cause)
        recovery.take_up(
            config,
            registry,
            self.host,  # type: ignore[arg-type]
            self.host,  # type: ignore[arg-type]
            self.host,  # type: ignore[arg-type]
            Found(kept=kept_of(kernel)),
            same_boot=same_boot,
        )
        kernel.keeper.alive = True
        self.host.begin()
        self._hear_late(list(kernel.keeper.notes))
        await registry.work_off()
        recovery.begin(registry, self.configuration, sorted(known), later, cause)
        await recovery.start_all(registry)

    def _hear_late(self, notes: list[Note]) -> None:
        for note in notes:
            self.host.hear(note, lambda note=note: self._noted(note))  # type: ignore[misc]

    def _noted(self, note: Note) -> None:
        notes = self.world.kernel.keeper.notes
        if note in notes:
            notes.remove(note)

    def _take_up(self, config: Config) -> None:
        self.host.change_definitions(config.definitions)

    def _probed(self, service: str, run: int, check: str, **result: Any) -> None:
        self.registry.probed(service, run, check, **result)

    def _holds(self, service: str, run: int, held: int) -> None:
        self.observe(service, inp.MemoryFound(run=run, bytes=held))

    async def _mind_essentials(self) -> None:
        while not any(map(_is_gone, self.registry.committed.services.values())):
            await self.registry.next_commit()
        self.end(keep=False)


def _is_gone(service: Service) -> bool:
    if not service.definition.essential or not service.wanted:
        return False
    return service.state in (State.STOPPED, State.FAILED) and service.reason is not Reason.WAITING
