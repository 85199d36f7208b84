"""The daemon: builds the parts, recovers, runs them in one task group, ends orderly.

The only file that may import everything.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import msgspec

from registry import house, recovery
from registry.api.access import Access
from registry.api.actions import ACTIONS, Role
from registry.api.growth import Growth
from registry.api.handlers import Handlers
from registry.api.journal import JournalHandlers
from registry.api.server import Server
from registry.apply import Configuration
from registry.config import (
    AccessSettings,
    Config,
    ConfigError,
    Lines,
    OnSigterm,
    load,
    with_digests,
)
from registry.core import events as ev
from registry.core import inputs as inp
from registry.core.lifecycle import Reason, State
from registry.core.service import Service
from registry.host import apart
from registry.host.capabilities import Capabilities, become_subreaper, detect
from registry.host.clock import Clock
from registry.host.health import Attempt, Prober
from registry.host.heap import Heap
from registry.host.hooks import Hook, Hooks
from registry.host.launch import Launch, LaunchError, look_up_again
from registry.host.machine import Machine, phase
from registry.host.process import Runner
from registry.host.spawning import Spawning
from registry.host.surroundings import Surroundings
from registry.host.systemd import Systemd
from registry.journal import Journal, JournalError
from registry.keeper.client import Found, Keeper, Note, OutputEnded
from registry.keeper.endings import Endings
from registry.keeper.holdings import Held
from registry.past.asking import Past
from registry.questions.narration import narrate
from registry.questions.plan import Plan
from registry.questions.reasons import in_short
from registry.recovery import Beginning
from registry.registry import Registry
from registry.retention import Retention
from registry.validate import machine_complaints

_log = logging.getLogger("registry")
_LEVELS = {"INFO": logging.INFO, "WARN": logging.WARNING, "ERROR": logging.ERROR}


EX_ESSENTIAL = 10
"""The exit status when an essential service is finally gone."""
HEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""The signals that the daemon does something at."""
THREADS_MAX = 2
"""Threads that read logs and journals."""
_CHECK_S = 30.0
HOOKS_S = 5.0
"""How long hooks that run may take at the end."""
_LATEST = 200
"""Events of a service that are looked through for the end of a run."""


class End(msgspec.Struct, frozen=True):
    """How a life ends: the services stopped or kept, another program after it or none, and why."""

    why: str
    keep_services: bool = False
    upgrade: bool = False
    status: int = 0


class Upgrade(Exception):
    """This process is to become the installed program, by `spawning`, and to leave it what is `left` open."""

    def __init__(self, spawning: Spawning, left: house.Inherited) -> None:
        super().__init__()
        self.spawning = spawning
        self.left = left


class Daemon:
    """One life of the registry, from `run` to its end."""

    def __init__(
        self,
        config: Config,
        listener: int | None,
        systemd: Systemd,
        files_max: int,
        spawning: Spawning,
        *,
        watches: bool,
    ) -> None:
        self._folder = Path(config.journal.path).parent
        self._key = house.digest_key(self._folder)
        self._starting = with_digests(config, self._key)
        self._listener = listener
        self._systemd = systemd
        self._files_max = files_max
        self._spawning = spawning
        self._watches = watches
        self._heap = Heap()
        self._told = 0
        self._notes = 0
        self._is_stopping = False
        self.left_open: int | None = None
        self.asked_meanwhile = False

    async def run(self) -> End:
        """Supervise until asked to end. Raises JournalError, SocketError where it cannot begin."""
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="reading"))
        self._ending: asyncio.Future[End] = loop.create_future()
        loop.add_signal_handler(signal.SIGTERM, self._terminate)
        loop.add_signal_handler(signal.SIGINT, self._end, End("SIGINT"))
        self._applying = asyncio.Event()
        loop.add_signal_handler(signal.SIGHUP, self._applying.set)
        async with AsyncExitStack() as stack:
            stack.callback(self._heap.close)
            await self._build(stack)
            # what there is by now stays: for a thousand services to look through it took 15 ms each time
            gc.freeze()
            gc.enable()
            # not before: the journal's threads, which outlive our handlers a little, are to block them for good
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)
            async with asyncio.TaskGroup() as tasks:
                writing = tasks.create_task(self._registry.run())
                beside = [
                    tasks.create_task(work)
                    for work in (
                        self._narrate(),
                        self._warn(),
                        self._endings.run(),
                        self._apply_when_asked(),
                        *([self._watch_files()] if self._watches else []),
                        self._systemd.watch(),
                        self._retention.run(),
                    )
                ]
                self._systemd.tell("READY=1")
                end = await self._ending
                if end.keep_services:  # not later: what lives on is looked after meanwhile
                    await self._hooks.rest(HOOKS_S)
                await self._end_services(end)
                self._registry.finish()
                await writing
                await self._tell_new()
                await self._hooks.close(0.0 if end.keep_services else HOOKS_S)
                for task in beside:
                    task.cancel()
            await self._write_end(end)
            await self._journal.keep_snapshot(self._registry.committed, at_end=True)
            if end.upgrade:
                self.left_open = self._server.leave_open()
        return end

    def _terminate(self) -> None:
        keep = self._configuration.config.registry.on_sigterm is OnSigterm.KEEP
        self._end(End("SIGTERM", keep_services=keep))

    def _end(self, end: End) -> None:
        """The first time as asked; asked again while services are being stopped, in a hurry."""
        if not self._ending.done():
            if end.upgrade:  # what comes from now on is for the next program
                signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
            self._ending.set_result(end)
        elif self._ending.result().upgrade:
            self.asked_meanwhile = True
        elif self._is_stopping:
            _log.info("Killing what is still stopping")
            self._runner.hurry()

    async def _end_services(self, end: End) -> None:
        self._systemd.tell("STOPPING=1" if not end.upgrade else "STATUS=upgrading")
        if end.keep_services:
            _log.info("Ending (%s), the services are kept", end.why)
            self._registry.closing = True
            return
        _log.info("Stopping every service (%s)", end.why)
        self._is_stopping = True
        await self._registry.stop_all()

    async def _write_end(self, end: End) -> None:
        try:
            await self._registry.write(ev.RegistryStopped(kept=end.keep_services))
        except JournalError as error:
            _log.error("The last events are not in the journal: %s", error)

    # --- asked for over the socket ----------------------------------------------------------------

    def shut_down(self, *, keep_services: bool) -> None:
        """End, having stopped the services or not."""
        self._end(End("shutdown", keep_services=keep_services))

    async def plan(self) -> Plan:
        """What the configuration files would change. Raises ApiError."""
        return await self._configuration.plan()

    async def apply(self, actor: ev.Actor | None) -> Plan:
        """Take the configuration files up. Raises ApiError."""
        return await self._configuration.apply(actor)

    async def upgrade(self) -> str | None:
        """Become the installed code with the present configuration; or why that cannot be."""
        trouble = self._upgrade_trouble()
        if trouble is not None:
            return trouble
        argv = (sys.executable, *sys.orig_argv[1:], "--starts")
        launch = Launch(argv, dict(os.environ), os.getcwd(), 0o077, None, None, ())
        try:
            status = await self._runner.run_command(launch, _CHECK_S)
        except (TimeoutError, OSError, LaunchError) as error:
            return f"the installed code does not start: {error}"
        if status != 0:
            return f"the installed code does not start: '{shlex.join(argv)}' ended with {status}"
        trouble = self._upgrade_trouble()  # it may have come meanwhile
        if trouble is None:
            end = End("upgrade", keep_services=True, upgrade=True)
            asyncio.get_running_loop().call_soon(self._end, end)
        return trouble

    def _upgrade_trouble(self) -> str | None:
        """What the next program could not take over from this one."""
        present = self._configuration.config
        try:
            config = load(present.file)
        except ConfigError as error:
            return str(error)
        if self._registry.degraded_since_ns is not None:
            return f"what waits for the journal would be lost: {self._registry.trouble}"
        for what, ours, theirs in (
            ("socket", present.registry.socket, config.registry.socket),
            ("journal", present.journal.path, config.journal.path),
        ):
            if ours != theirs:
                return f"the {what} would be {theirs}, no longer {ours}: that takes a new start"
        return None

    async def _apply_when_asked(self) -> None:
        """Take the configuration up at SIGHUP. A terminal that closes does no harm: nothing has changed then."""
        while True:
            await self._applying.wait()
            self._applying.clear()
            await self._configuration.apply_and_tell()

    async def _watch_files(self) -> None:
        """Have the configuration taken up whenever one of its files changes."""
        from watchfiles import awatch

        config = self._configuration.config
        while True:
            is_there = config.folder.is_dir()
            folders = [config.file.parent, *([config.folder] if is_there else [])]
            async with aclosing(awatch(*folders, recursive=False)) as watched:
                async for changes in watched:
                    names = {Path(path).name for _kind, path in changes}
                    of_ours = {config.file.name, config.folder.name}
                    if names & of_ours or any(name.endswith(".toml") for name in names):
                        self._applying.set()
                    if config.folder.is_dir() is not is_there:
                        break

    def _mind_essentials(self, since: tuple[int, int]) -> None:
        """End when an essential service is finally gone: of all of them only those are looked at that moved."""
        services = self._registry.committed.services
        records = self._registry.moved_since(since)
        names = services if records is None else {record.service for record in records}
        for service in (services[name] for name in names if name in services):
            down = service.state in (State.STOPPED, State.FAILED)
            down &= service.reason is not Reason.WAITING
            if service.definition.essential and service.wanted and down:
                why = in_short(service.reason.value)
                _log.error("Essential service %s is gone (%s)", service.name, why)
                self._end(End(f"{service.name} is essential", status=EX_ESSENTIAL))
                return

    # --- building ---------------------------------------------------------------------------------

    async def _build(self, stack: AsyncExitStack) -> None:
        self._capabilities = detect(os.environ)
        self._build_keeper(stack)
        beginning = Beginning(self._starting)
        journal, projection = await beginning.open()
        stack.push_async_callback(journal.close)
        self._journal = journal
        self._told = projection.seq
        self._build_host(stack, self._capabilities, beginning.journal_id)
        self._registry = Registry(projection, journal, self._machine, Clock())
        self._configuration = Configuration(
            self._starting, self._key, self._registry, self._take_up
        )
        self._retention = Retention(journal, self._registry, self._starting.journal)
        self._hooks = Hooks(_hooks_of(self._starting), self._machine.run_hook, self._tags_of)
        self._endings = Endings(
            self._find,
            self._observe,
            lambda: self._registry.recent,
            lambda service: self._latest(journal, service),
            self._keeper.heard,
        )
        stack.callback(self._registry.close)
        self._build_server(stack, journal)
        found = await self._keeper.connect()
        await self._recover(beginning, found)
        self._runner.listen()
        await self._server.start()

    def _build_keeper(self, stack: AsyncExitStack) -> None:
        """Before all else: where there is none yet, it begins while we do."""
        self._keeper = Keeper(
            self._folder / "keeper.sock",
            on_grew=self._grew,
            on_output_ended=self._output_ended,
            on_notes=self._hear_late,
            on_held=self._take_late,
            log=_log.warning,
            splice=self._capabilities.splice,
        )
        stack.callback(self._leave_keeper)
        self._keeper.reach()

    def _build_host(
        self, stack: AsyncExitStack, capabilities: Capabilities, journal_id: str
    ) -> None:
        if capabilities.subreaper:
            become_subreaper()
        self._growth = Growth(self._keeper.watch, self._keeper.unwatch)
        self._prober = Prober(self._probed, phase)
        stack.push_async_callback(self._prober.close)
        self._runner = Runner(
            self._folder, capabilities, self._keeper, self._observe, self._spawning
        )
        stack.callback(self._runner.close)
        self._surroundings = Surroundings(
            self._folder, self._keeper, self._runner, self._prober, self._observe
        )
        stack.callback(self._surroundings.close)
        self._runner.before_reap = self._surroundings.hear
        self._machine = Machine(
            runner=self._runner,
            prober=self._prober,
            surroundings=self._surroundings,
            observe=self._observe,
            capabilities=capabilities,
            journal_id=journal_id,
            environments=self._starting.environments,
            socket_path=self._starting.registry.socket,
            files_max=self._files_max,
        )
        stack.push_async_callback(self._machine.close)

    def _build_server(self, stack: AsyncExitStack, journal: Journal) -> None:
        settings = self._starting.registry
        self._access = Access(os.getuid(), self._runner.owner_of, _granted(self._starting.access))
        handlers = Handlers(
            self._registry,
            journal,
            self._growth,
            self._capabilities,
            journal_path=journal.path,
            beat=self._prober.beat,
            describe=self._machine.describe,
            check_once=self._machine.check_once,
            past=Past(journal.path),
            administration=self,
        )
        self._server = Server(
            settings.socket,
            settings.socket_mode,
            settings.socket_group,
            ACTIONS,
            {
                **handlers.table(),
                **JournalHandlers(self._registry, self._retention, journal.path).table(),
            },
            self._access,
            on_lost=self._heap.was_used,
        )
        if self._listener is not None:
            self._server.take_over(self._listener)
        else:
            self._server.bind()
        stack.push_async_callback(self._server.close)
        self._spawning.others_wait = lambda: self._server.has_clients

    async def _recover(self, beginning: Beginning, found: Found) -> None:
        """Say that we are here, take up what lives, declare what the file declares, begin."""
        registry, config = self._registry, self._starting
        cause = await beginning.write(registry)
        known = list(registry.committed.services)
        later = recovery.declare(registry, self._configuration, cause)
        recovery.take_up(
            config,
            registry,
            self._machine,
            self._runner,
            self._surroundings,
            found,
            same_boot=beginning.same_boot,
        )
        self._runner.tidy(beginning.journal_id)
        self._hear_late(found.notes)
        await registry.work_off()
        recovery.begin(registry, self._configuration, known, later, cause)
        await recovery.start_all(registry)

    def _grew(self, service: str) -> None:
        self._growth.grew(service)

    def _output_ended(self, ended: OutputEnded) -> None:
        self._endings.output_ended(ended)

    def _find(self, service: str) -> Service | None:
        return self._registry.committed.services.get(service)

    async def _latest(self, journal: Journal, service: str) -> list[ev.Record]:
        """A service's latest events, those that cannot be written yet included."""
        try:
            written = await journal.read(since=-_LATEST, service=service)
        except JournalError as error:
            _log.warning("%s", error)
            written = []
        newest = written[-1].seq if written else 0
        recent = list(self._registry.recent)
        return [*written, *(r for r in recent if r.service == service and r.seq > newest)]

    def _observe(
        self, service: str, given: inp.Observation, done: Callable[[], None] | None = None
    ) -> None:
        self._registry.observe(service, given, done)

    def _probed(self, service: str, run: int, check: str, attempt: Attempt) -> None:
        self._registry.probed(
            service,
            run,
            check,
            ok=attempt.ok,
            error=attempt.error,
            latency_ns=attempt.latency_ns,
            final=attempt.final,
        )

    # --- configuration ----------------------------------------------------------------------------

    def _take_up(self, config: Config) -> None:
        """A new configuration is in force from here on."""
        self._machine.environments = config.environments
        look_up_again()
        self._hooks.set(_hooks_of(config))
        self._access.set(_granted(config.access))

    def _tags_of(self, service: str) -> tuple[str, ...]:
        found = self._find(service)
        return found.definition.tags if found else ()

    def _hear_late(self, notes: Sequence[Note]) -> None:
        """What services said while nobody but the keeper was there."""
        self._notes += len(notes)
        count = self._notes
        self._surroundings.hear_late(notes, lambda: self._keeper.noted(count))

    def _take_late(self, held: Sequence[Held]) -> None:
        """What the keeper holds for services, when it was too slow to say so at first."""
        self._surroundings.adopt(held, self._registry.committed.services)

    def _leave_keeper(self) -> None:
        self._keeper.close(keep=self._ending.done() and self._ending.result().keep_services)

    # --- telling ----------------------------------------------------------------------------------

    async def _narrate(self) -> None:
        """Tell on stderr, and to systemd, what the journal says, from this life's first event on."""
        minded = (-1, 0)
        while True:
            await self._tell_new()
            await self._journal.keep_snapshot(self._registry.committed)
            self._retention.grew()
            self._heap.was_used()
            if not self._ending.done():
                self._mind_essentials(minded)
            minded = self._registry.as_of
            await self._registry.next_commit()

    async def _warn(self) -> None:
        """Say what this machine lacks; neither services nor we have waited for that to be looked for."""
        try:
            complaints = await apart.do(machine_complaints, self._starting, os.environ)
        except Exception:  # no thread to be had, say: what runs goes on
            _log.exception("What services lack here could not be looked for")
            return
        for complaint in complaints:
            if complaint.key != "registry.socket":  # else we would not be here
                _log.warning("%s", complaint)

    async def _tell_new(self) -> None:
        while (records := self._registry.recent_since(self._told)) is None:
            # a start or an apply of very many: more than is kept in memory
            written = await self._read(self._told)
            if not written:  # nor can they be written yet
                records = list(self._registry.recent)
                break
            self._tell(written)
        self._tell(records)
        if self._systemd.is_there:
            self._systemd.tell_status(self._summary())

    async def _read(self, since: int) -> list[ev.Record]:
        try:
            return await self._journal.read(since=since)
        except JournalError as error:
            _log.warning("%s", error)
            return []

    def _tell(self, records: Sequence[ev.Record]) -> None:
        services = self._registry.committed.services
        for record in records:
            self._endings.committed(record)
            self._hooks.committed(record)
            line = narrate(record, services)
            if line is not None:
                fields = {"seq": record.seq, "service": record.service, "type": record.type}
                _log.log(_LEVELS[line[0]], "%s", line[1], extra={"fields": fields})
            self._told = record.seq

    def _summary(self) -> str:
        services = self._registry.committed.services.values()
        running = sum(service.state is State.RUNNING for service in services)
        return f"{running} of {len(services)} services running"


def _hooks_of(config: Config) -> list[Hook]:
    lines = Lines(config)
    return [
        Hook(**msgspec.structs.asdict(hook), place=":".join(map(str, lines.of(place))))
        for hook, place in zip(config.hooks, config.hook_places, strict=True)
    ]


def _granted(access: AccessSettings) -> dict[Role, tuple[str, ...]]:
    return {Role(name): words for name, words in msgspec.structs.asdict(access).items()}


def serve(config: Config, shown: str, *, watches: bool = False) -> int:
    """Run the daemon in the foreground until it ends; its exit status. The lock is held until the process ends.

    Raises Upgrade; and Held, JournalError, SocketError, OSError, ValueError where it cannot begin.
    """
    inherited = house.Inherited.take()
    held = inherited.lock if inherited else house.lock(Path(config.journal.path))
    files_max = house.settle_in()
    _log.info("Service registry starting...")
    _log.info("%s", shown)
    systemd = Systemd(os.environ)
    listener = inherited.listener if inherited else None
    spawning = Spawning(apart=inherited is None)
    daemon = Daemon(config, listener, systemd, files_max, spawning, watches=watches)
    end = asyncio.run(daemon.run())
    if daemon.left_open is not None:
        os.environ.update(systemd.variables())
        house.move_out(files_max)
        if daemon.asked_meanwhile:
            os.kill(os.getpid(), signal.SIGTERM)  # blocked: it waits for the next program
        raise Upgrade(spawning, house.Inherited(held, daemon.left_open))
    _log.info("Service registry stopped")
    return end.status
