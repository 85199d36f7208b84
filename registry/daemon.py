"""The daemon: builds the parts, recovers, runs them in one task group, ends orderly.

The only file that may import everything.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from hashlib import blake2b
from pathlib import Path

import msgspec

import registry as package
from registry import house
from registry.api.access import Access
from registry.api.actions import ACTIONS
from registry.api.growth import Growth
from registry.api.handlers import Handlers
from registry.api.server import Server
from registry.config import Config, with_digests
from registry.core import events as ev
from registry.core import inputs as inp
from registry.core.definition import Definition
from registry.core.lifecycle import Reason, State
from registry.core.projection import Projection
from registry.core.service import HAS_RUN
from registry.host import proc
from registry.host.capabilities import become_subreaper, detect
from registry.host.clock import Clock
from registry.host.health import Attempt, Prober
from registry.host.machine import Machine, phase
from registry.host.process import Runner
from registry.journal import Journal, JournalError
from registry.journal.schema import SCHEMA_VERSION
from registry.keeper.client import Keeper, Kept
from registry.questions.narration import narrate
from registry.registry import Registry
from registry.validate import machine_complaints

_log = logging.getLogger("registry")
_LEVELS = {"INFO": logging.INFO, "WARN": logging.WARNING, "ERROR": logging.ERROR}


class Daemon:
    """One life of the registry, from `run` to its orderly end."""

    def __init__(self, config: Config) -> None:
        self._folder = Path(config.journal.path).parent
        self._config = with_digests(config, house.digest_key(self._folder))
        self._end = asyncio.Event()
        self._signals = 0

    async def run(self) -> None:
        """Supervise until asked to end. Raises JournalError, SocketError where it cannot begin."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_end)
        async with AsyncExitStack() as stack:
            await self._build(stack)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._registry.run())
                telling = tasks.create_task(self._narrate())
                await self._end.wait()
                _log.info("Stopping every service")
                await self._registry.stop_all()
                self._registry.finish()
                await asyncio.sleep(0)  # the last lines are told
                telling.cancel()
            try:
                await self._registry.write(ev.RegistryStopped())
            except JournalError as error:
                _log.error("The last events are not in the journal: %s", error)
        _log.info("Service registry stopped")

    def _asked_to_end(self) -> None:
        """The first time orderly; a second time in a hurry."""
        self._signals += 1
        self._end.set()
        if self._signals > 1:
            self._runner.hurry()

    # --- building ---------------------------------------------------------------------------------

    async def _build(self, stack: AsyncExitStack) -> None:
        config = self._config
        journal = await Journal.open(
            Path(config.journal.path), durability=config.journal.durability
        )
        stack.push_async_callback(journal.close)
        projection = Projection()
        await journal.fold_into(projection.fold)
        capabilities = detect(os.environ)
        if capabilities.subreaper:
            become_subreaper()
        keeper = Keeper(
            self._folder / "keeper.sock",
            on_grew=self._grew,
            on_output_ended=_tell_dropped,
            log=_log.warning,
            splice=capabilities.splice,
        )
        stack.callback(keeper.close)
        self._growth = Growth(keeper.watch, keeper.unwatch)
        prober = Prober(self._probed, phase)
        stack.push_async_callback(prober.close)
        self._runner = Runner(self._folder, capabilities, keeper, self._observe)
        self._runner.listen()
        stack.callback(self._runner.close)
        journal_id = projection.journal_id or secrets.token_hex(8)
        machine = Machine(
            runner=self._runner,
            prober=prober,
            capabilities=capabilities,
            journal_id=journal_id,
            environments=config.environments,
            socket_path=config.registry.socket,
        )
        self._registry = Registry(projection, journal, machine, Clock())
        stack.callback(self._registry.close)
        handlers = Handlers(
            self._registry,
            journal,
            self._growth,
            capabilities,
            journal_path=journal.path,
            beat=prober.beat,
            shut_down=self._end.set,
        )
        server = Server(
            config.registry.socket,
            config.registry.socket_mode,
            config.registry.socket_group,
            ACTIONS,
            handlers.table(),
            Access(os.getuid(), self._runner.owner_of),
        )
        server.bind()
        stack.push_async_callback(server.close)
        await self._recover(machine, await keeper.connect(), journal_id)
        await server.start()

    def _grew(self, service: str) -> None:
        self._growth.grew(service)

    def _observe(self, service: str, given: inp.Observation) -> None:
        self._registry.observe(service, given)

    def _probed(self, service: str, run: int, check: str, attempt: Attempt) -> None:
        self._registry.probed(
            service, run, check, ok=attempt.ok, error=attempt.error, latency_ns=attempt.latency_ns
        )

    # --- recovery ---------------------------------------------------------------------------------

    async def _recover(self, machine: Machine, kept: list[Kept], journal_id: str) -> None:
        """Say that we are here, take up what lives, declare what the file declares, begin."""
        before = self._registry.committed.started
        started = self._started(before)
        created = (
            [] if before else [ev.JournalCreated(journal_id=journal_id, schema=SCHEMA_VERSION)]
        )
        await self._registry.write(*created, started)
        cause = self._registry.committed.seq
        known = set(self._registry.committed.services)
        same_boot = before is not None and _same_boot(before, started)
        self._declare(cause)
        self._adopt(machine, kept, same_boot=same_boot)
        await self._registry.drain()
        declared = {definition.name for definition in self._config.definitions}
        for name in known - declared:
            self._registry.declare(name, inp.Remove(cause=cause))
        self._autostart(cause)
        self._registry.perform_all()
        await self._registry.drain()

    def _started(self, before: ev.RegistryStarted | None) -> ev.RegistryStarted:
        started = ev.RegistryStarted(
            boot_id=proc.boot_id(),
            pid_namespace=proc.pid_namespace(),
            pid=os.getpid(),
            version=package.__version__,
            fresh=False,
        )
        fresh = (
            before is None or self._registry.committed.orderly or not _same_boot(before, started)
        )
        return msgspec.structs.replace(started, fresh=fresh)

    def _declare(self, cause: int) -> None:
        key = house.digest_key(self._folder)
        for definition in self._config.definitions:
            given = inp.Define(definition=definition, digest=_digest(definition, key), cause=cause)
            self._registry.declare(definition.name, given)

    def _adopt(self, machine: Machine, kept: list[Kept], *, same_boot: bool) -> None:
        pidfds: dict[tuple[str, int], int] = {}
        for each in kept:
            self._runner.kept(each.service, each.run)
            if each.output_fd is not None:
                os.close(each.output_fd)  # the keeper's client holds its own
            if each.pidfd is not None:
                pidfds[each.service, each.run] = each.pidfd
        for name, service in self._registry.committed.services.items():
            if service.state in HAS_RUN and (service.pid or service.state is State.STOPPING):
                pidfd = pidfds.pop((name, service.run), None)
                for given in machine.adopt(service, pidfd, same_boot=same_boot):
                    self._registry.observe(name, given)
        for pidfd in pidfds.values():
            os.close(pidfd)

    def _autostart(self, cause: int) -> None:
        """Want each service up or down as its `autostart` says, where that is the one to say."""
        for definition in self._config.definitions:
            if not self._registry.committed.services[definition.name].autostart_due:
                continue
            kind = inp.Start if definition.autostart else inp.Stop
            self._registry.declare(definition.name, kind(reason=Reason.AUTOSTART, cause=cause))

    # --- telling ----------------------------------------------------------------------------------

    async def _narrate(self) -> None:
        """Tell on stderr what the journal says, from this life's first event on."""
        seq = self._registry.recent[0].seq - 1 if self._registry.recent else 0
        while True:
            for record in self._registry.recent_since(seq) or ():
                line = narrate(record)
                if line is not None:
                    fields = {"seq": record.seq, "service": record.service, "type": record.type}
                    _log.log(_LEVELS[line[0]], "%s", line[1], extra={"fields": fields})
            seq = self._registry.committed.seq
            await self._registry.next_commit()


def _same_boot(before: ev.RegistryStarted, now: ev.RegistryStarted) -> bool:
    return before.boot_id == now.boot_id and before.pid_namespace == now.pid_namespace


def _digest(definition: Definition, key: bytes) -> str:
    return blake2b(msgspec.json.encode(definition), key=key, digest_size=16).hexdigest()


def _tell_dropped(service: str, run: int, dropped: int) -> None:
    if dropped:
        _log.warning(
            "%s: %d bytes of output of run %d were dropped, its log could not be written",
            service,
            dropped,
            run,
        )


def serve(config: Config, shown: Callable[[], str]) -> None:
    """Run the daemon in the foreground until it ends. Raises Held, JournalError, SocketError, OSError."""
    held = house.lock(Path(config.journal.path))
    try:
        house.settle_in()
        _log.info("Service registry starting...")
        _log.info("%s", shown())
        for complaint in machine_complaints(config, os.environ):
            _log.warning("%s", complaint)
        asyncio.run(_run(config))
    finally:
        os.close(held)


async def _run(config: Config) -> None:
    await Daemon(config).run()
