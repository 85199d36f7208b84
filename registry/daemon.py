"""The daemon: builds the parts, recovers, runs them in one task group, ends orderly.

The only file that may import everything.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

import registry as package
from registry import house
from registry.api.access import Access
from registry.api.actions import ACTIONS, Role
from registry.api.growth import Growth
from registry.api.handlers import Handlers
from registry.api.server import Server
from registry.apply import Configuration, start_order
from registry.config import AccessSettings, Config, ConfigError, OnSigterm, load, with_digests
from registry.core import events as ev
from registry.core import inputs as inp
from registry.core.lifecycle import Reason, State
from registry.core.projection import Projection
from registry.core.service import Service
from registry.host import proc
from registry.host.adoption import COMMAND
from registry.host.capabilities import become_subreaper, detect
from registry.host.clock import Clock
from registry.host.health import Attempt, Prober
from registry.host.hooks import Hook, Hooks
from registry.host.hooks import environment as hook_environment
from registry.host.launch import DEFAULT_PATH, Launch, LaunchError, find_program
from registry.host.machine import Machine, phase
from registry.host.process import Runner
from registry.host.surroundings import Surroundings
from registry.host.systemd import Systemd
from registry.journal import Journal, JournalDamaged, JournalError
from registry.journal.salvage import salvage
from registry.journal.schema import SCHEMA_VERSION
from registry.keeper.client import Found, Keeper, Note, OutputEnded
from registry.keeper.endings import Endings
from registry.questions.narration import narrate
from registry.questions.plan import Plan
from registry.registry import Registry
from registry.validate import machine_complaints

_log = logging.getLogger("registry")
_LEVELS = {"INFO": logging.INFO, "WARN": logging.WARNING, "ERROR": logging.ERROR}


EX_ESSENTIAL = 10
"""The exit status when an essential service is finally gone."""
TO_END = (signal.SIGTERM, signal.SIGINT)
"""The signals that end the daemon."""
_CHECK_S = 30.0
HOOKS_S = 5.0
"""How long hooks that run may take at the end."""
_HOOKS_INHERIT = ("PATH", "LANG", "TZ", "HOME")
_LATEST = 200
"""Events of a service that are looked through for the end of a run."""


class End(msgspec.Struct, frozen=True):
    """How a life ends: the services stopped or kept, another program after it or none, and why."""

    why: str
    keep_services: bool = False
    upgrade: bool = False
    status: int = 0


class Upgrade(Exception):
    """This process is to become the installed program."""


class Daemon:
    """One life of the registry, from `run` to its end."""

    def __init__(
        self,
        config: Config,
        listener: int | None,
        systemd: Systemd,
        files_max: int,
        *,
        watches: bool,
    ) -> None:
        self._folder = Path(config.journal.path).parent
        self._key = house.digest_key(self._folder)
        self._starting = with_digests(config, self._key)
        self._listener = listener
        self._systemd = systemd
        self._files_max = files_max
        self._watches = watches
        self._told = 0
        self._notes = 0
        self._is_stopping = False
        self.left_open: int | None = None
        self.asked_meanwhile = False

    async def run(self) -> End:
        """Supervise until asked to end. Raises JournalError, SocketError where it cannot begin."""
        loop = asyncio.get_running_loop()
        self._ending: asyncio.Future[End] = loop.create_future()
        loop.add_signal_handler(signal.SIGTERM, self._terminate)
        loop.add_signal_handler(signal.SIGINT, self._end, End("SIGINT"))
        self._applying = asyncio.Event()
        loop.add_signal_handler(signal.SIGHUP, self._applying.set)
        async with AsyncExitStack() as stack:
            await self._build(stack)
            # not before: the journal's threads, which outlive our handlers a little, are to block them for good
            signal.pthread_sigmask(signal.SIG_UNBLOCK, TO_END)
            async with asyncio.TaskGroup() as tasks:
                writing = tasks.create_task(self._registry.run())
                beside = [
                    tasks.create_task(work)
                    for work in (
                        self._narrate(),
                        self._endings.run(),
                        self._mind_essentials(),
                        self._apply_when_asked(),
                        *([self._watch_files()] if self._watches else []),
                        self._systemd.watch(),
                    )
                ]
                self._systemd.tell("READY=1")
                end = await self._ending
                await self._end_services(end)
                self._registry.finish()
                await writing
                self._tell_new()
                await self._hooks.close(HOOKS_S)
                for task in beside:
                    task.cancel()
            await self._write_end(end)
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
                signal.pthread_sigmask(signal.SIG_BLOCK, TO_END)
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
        folders = [config.file.parent, *([config.folder] if config.folder.is_dir() else [])]
        async for changes in awatch(*folders, recursive=False):
            names = {Path(path).name for _kind, path in changes}
            if config.file.name in names or any(name.endswith(".toml") for name in names):
                self._applying.set()

    async def _mind_essentials(self) -> None:
        """End when an essential service is finally gone."""
        while (gone := self._gone_essential()) is None:
            await self._registry.next_commit()
        _log.error("Essential service %s is gone (%s)", gone.name, gone.reason.value)
        self._end(End(f"{gone.name} is essential", status=EX_ESSENTIAL))

    def _gone_essential(self) -> Service | None:
        for service in self._registry.committed.services.values():
            down = service.state in (State.STOPPED, State.FAILED)
            if service.definition.essential and service.wanted and down:
                return service
        return None

    # --- building ---------------------------------------------------------------------------------

    async def _build(self, stack: AsyncExitStack) -> None:
        config = self._starting
        journal, projection, before = await self._open_journal()
        stack.push_async_callback(journal.close)
        self._told = projection.seq
        capabilities = detect(os.environ)
        if capabilities.subreaper:
            become_subreaper()
        self._keeper = keeper = Keeper(
            self._folder / "keeper.sock",
            on_grew=self._grew,
            on_output_ended=self._output_ended,
            on_notes=self._hear_late,
            log=_log.warning,
            splice=capabilities.splice,
        )
        stack.callback(self._leave_keeper)
        self._growth = Growth(keeper.watch, keeper.unwatch)
        prober = Prober(self._probed, phase)
        stack.push_async_callback(prober.close)
        self._runner = Runner(self._folder, capabilities, keeper, self._observe)
        stack.callback(self._runner.close)
        self._surroundings = Surroundings(self._folder, keeper, self._runner, prober, self._observe)
        stack.callback(self._surroundings.close)
        self._runner.before_reap = self._surroundings.hear
        copied = self._copied_from(before)
        goes_on = before is not None and copied is None
        journal_id = before.journal_id if before and goes_on else secrets.token_hex(8)
        self._journal_id = journal_id
        self._machine = machine = Machine(
            runner=self._runner,
            prober=prober,
            surroundings=self._surroundings,
            observe=self._observe,
            capabilities=capabilities,
            journal_id=journal_id,
            environments=config.environments,
            socket_path=config.registry.socket,
            files_max=self._files_max,
        )
        stack.push_async_callback(machine.close)
        self._registry = Registry(projection, journal, machine, Clock())
        self._configuration = Configuration(config, self._key, self._registry, self._take_up)
        self._hooks = Hooks(_hooks_of(config), self._run_hook, self._tags_of)
        self._access = Access(os.getuid(), self._runner.owner_of, _granted(config.access))
        self._endings = Endings(
            self._find,
            self._observe,
            lambda service: self._latest(journal, service),
            keeper.heard,
        )
        stack.callback(self._registry.close)
        handlers = Handlers(
            self._registry,
            journal,
            self._growth,
            capabilities,
            journal_path=journal.path,
            beat=prober.beat,
            describe=machine.describe,
            check_once=machine.check_once,
            administration=self,
        )
        self._server = server = Server(
            config.registry.socket,
            config.registry.socket_mode,
            config.registry.socket_group,
            ACTIONS,
            handlers.table(),
            self._access,
        )
        if self._listener is not None:
            server.take_over(self._listener)
        else:
            server.bind()
        stack.push_async_callback(server.close)
        same_boot = goes_on and _same_boot(before)
        found = await keeper.connect()
        await self._recover(machine, found, journal_id, copied, same_boot=same_boot)
        self._runner.listen()
        await server.start()

    async def _open_journal(self) -> tuple[Journal, Projection, house.Writer | None]:
        """The journal, its fold, and who wrote it last, which is remembered elsewhere, too.

        A damaged one is set aside, and what could be read of it is kept.
        """
        path = Path(self._starting.journal.path)
        remembered = house.remembered(self._folder)
        is_ours = remembered is not None and remembered.wrote(path)
        is_damaged = False
        try:
            journal, projection = await self._read_journal(path, is_ours=is_ours)
        except JournalDamaged as error:
            is_damaged = True
            saved = await asyncio.to_thread(salvage, path)
            _log.error("%s", error)
            _log.error(
                "The damaged journal is now %s; events 1 to %d of it are kept in %s",
                saved.aside,
                saved.seq,
                path,
            )
            journal, projection = await self._read_journal(path)
        before = house.Writer.of(projection)
        # one without a beginning was begun anew, perhaps by a registry that was killed while it did so
        if (is_damaged or before is None) and _same_boot(remembered):
            before = remembered
        return journal, projection, before

    async def _read_journal(
        self, path: Path, *, is_ours: bool = False
    ) -> tuple[Journal, Projection]:
        durability = self._starting.journal.durability
        journal = await Journal.open(path, durability=durability, is_ours=is_ours)
        projection = Projection()
        try:
            await journal.fold_into(projection.fold)
        except BaseException:
            await journal.close()
            raise
        return journal, projection

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
        self._hooks.set(_hooks_of(config))
        self._access.set(_granted(config.access))

    def _tags_of(self, service: str) -> tuple[str, ...]:
        found = self._find(service)
        return found.definition.tags if found else ()

    async def _run_hook(self, hook: Hook, told: bytes) -> int:
        """Run a hook as the registry's own user. Raises TimeoutError, LaunchError."""
        config = self._configuration.config
        env = {name: os.environ[name] for name in _HOOKS_INHERIT if name in os.environ}
        env |= hook_environment(told)
        env["CIRCLEOSD_SOCKET"] = config.registry.socket
        env[proc.MARK] = f"{self._journal_id}/hook/0/{COMMAND}"
        program = find_program(hook.cmd[0], env.get("PATH", DEFAULT_PATH), hook.cwd)
        argv = (program, *hook.cmd[1:])
        launch = Launch(argv, env, hook.cwd, 0o077, None, None, (), self._files_max)
        return await self._runner.run_command(launch, hook.timeout_s, stdin=told)

    # --- recovery ---------------------------------------------------------------------------------

    async def _recover(
        self,
        machine: Machine,
        found: Found,
        journal_id: str,
        copied: str | None,
        *,
        same_boot: bool,
    ) -> None:
        """Say that we are here, take up what lives, declare what the file declares, begin."""
        named: list[ev.Event] = []
        if copied is not None:
            named = [ev.JournalCopied(journal_id=journal_id, source=copied)]
        elif journal_id != self._registry.committed.journal_id:
            named = [ev.JournalCreated(journal_id=journal_id, schema=SCHEMA_VERSION)]
        started = self._started(same_boot=same_boot)
        await self._registry.write(*named, started)
        self._remember(house.Writer(journal_id, started))
        cause = self._registry.committed.seq
        known = set(self._registry.committed.services)
        definitions = self._starting.definitions
        self._registry.declare(
            [self._configuration.define(each, cause=cause) for each in definitions]
        )
        self._adopt(machine, found, same_boot=same_boot)
        await self._registry.drain()
        declared = {definition.name for definition in definitions}
        for name in known - declared:
            self._registry.declare([(name, inp.Remove(cause=cause))])
        self._autostart(cause)
        self._registry.perform_all()
        self._registry.reconsider_all()
        await self._registry.drain()

    def _remember(self, writer: house.Writer) -> None:
        try:
            house.remember(self._folder, writer)
        except OSError as error:
            _log.warning("%s; should the journal be damaged, what runs would not be found", error)

    def _copied_from(self, writer: house.Writer | None) -> str | None:
        """The journal that ours is a copy of: it still lies where the last registry had it.

        Where that one is gone, ours was moved, or put back from a backup: it is the same registry.
        """
        if writer is None or not writer.started.path:
            return None
        before = writer.started
        theirs = (before.device, before.inode)
        is_copy = house.file_of(before.path) == theirs != house.file_of(self._starting.journal.path)
        return before.path if is_copy else None

    def _started(self, *, same_boot: bool) -> ev.RegistryStarted:
        device, inode = house.file_of(self._starting.journal.path) or (0, 0)
        return ev.RegistryStarted(
            boot_id=proc.boot_id(),
            pid_namespace=proc.pid_namespace(),
            pid=os.getpid(),
            version=package.__version__,
            fresh=self._registry.committed.orderly or not same_boot,
            path=os.path.abspath(self._starting.journal.path),
            device=device,
            inode=inode,
        )

    def _adopt(self, machine: Machine, found: Found, *, same_boot: bool) -> None:
        """Take up what lives, and what was kept for it; then what services said meanwhile."""
        pidfds: dict[tuple[str, int], int] = {}
        for each in found.kept:
            self._runner.kept(each.service, each.run)
            if each.output_fd is not None:
                os.close(each.output_fd)  # the keeper's client holds its own
            if each.pidfd is not None:
                pidfds[each.service, each.run] = each.pidfd
        # a run may live of one that the journal, begun anew, does not know
        declared = {each.name: Service(each) for each in self._starting.definitions}
        services = {**declared, **self._registry.committed.services}
        self._surroundings.adopt(found.held, services)
        for name, given in machine.take_up(services.values(), pidfds, same_boot=same_boot):
            self._registry.observe(name, given)
        self._runner.tidy(self._journal_id)
        self._hear_late(found.notes)

    def _hear_late(self, notes: Sequence[Note]) -> None:
        """What services said while nobody but the keeper was there."""
        self._notes += len(notes)
        count = self._notes
        self._surroundings.hear_late(notes, lambda: self._keeper.noted(count))

    def _leave_keeper(self) -> None:
        self._keeper.close(keep=self._ending.done() and self._ending.result().keep_services)

    def _autostart(self, cause: int) -> None:
        """Want each service up or down as its `autostart` says, where that is the one to say."""
        services = self._registry.committed.services
        due = {name for name, service in services.items() if service.autostart_due}
        starting = [name for name in start_order(self._starting) if name in due]
        resting = [each.name for each in self._starting.definitions if each.name in due]
        stop = inp.Stop(reason=Reason.AUTOSTART, cause=cause)
        start = inp.Start(reason=Reason.AUTOSTART, cause=cause)
        for name in resting:
            if name not in starting:
                self._registry.declare([(name, stop)])
        for name in starting:
            self._registry.declare([(name, start)])

    # --- telling ----------------------------------------------------------------------------------

    async def _narrate(self) -> None:
        """Tell on stderr, and to systemd, what the journal says, from this life's first event on."""
        while True:
            self._tell_new()
            await self._registry.next_commit()

    def _tell_new(self) -> None:
        for record in self._registry.recent_since(self._told) or ():
            self._endings.committed(record)
            self._hooks.committed(record)
            line = narrate(record)
            if line is not None:
                fields = {"seq": record.seq, "service": record.service, "type": record.type}
                _log.log(_LEVELS[line[0]], "%s", line[1], extra={"fields": fields})
        self._told = self._registry.committed.seq
        if self._systemd.is_there:
            self._systemd.tell_status(self._summary())

    def _summary(self) -> str:
        services = self._registry.committed.services.values()
        running = sum(service.state is State.RUNNING for service in services)
        return f"{running} of {len(services)} services running"


def _same_boot(writer: house.Writer | None) -> bool:
    if writer is None:
        return False
    before = writer.started
    return before.boot_id == proc.boot_id() and before.pid_namespace == proc.pid_namespace()


def _hooks_of(config: Config) -> list[Hook]:
    return [Hook(**msgspec.structs.asdict(hook)) for hook in config.hooks]


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
    for complaint in machine_complaints(config, os.environ):
        _log.warning("%s", complaint)
    systemd = Systemd(os.environ)
    listener = inherited.listener if inherited else None
    daemon = Daemon(config, listener, systemd, files_max, watches=watches)
    end = asyncio.run(daemon.run())
    if daemon.left_open is not None:
        house.Inherited(held, daemon.left_open).leave()
        os.environ.update(systemd.variables())
        house.move_out(files_max)
        if daemon.asked_meanwhile:
            os.kill(os.getpid(), signal.SIGTERM)  # blocked: it waits for the next program
        raise Upgrade
    _log.info("Service registry stopped")
    return end.status
