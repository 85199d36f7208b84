"""How a life of the registry begins: the journal opened, what lives taken up, what the file declares declared.

No rule of the domain is here: the fold says what was, the duties that follow say what is to be done.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Collection, Iterable
from pathlib import Path

import registry as package
from registry import house
from registry.apply import Configuration, start_order
from registry.config import Config
from registry.core import events as ev
from registry.core import inputs as inp
from registry.core.definition import Definition
from registry.core.lifecycle import Reason, State
from registry.core.projection import Projection
from registry.core.service import Service
from registry.host import proc
from registry.host.machine import Machine
from registry.host.process import Runner
from registry.host.surroundings import Surroundings
from registry.journal import Journal, JournalDamaged
from registry.journal.salvage import salvage
from registry.journal.schema import SCHEMA_VERSION
from registry.keeper.client import Found
from registry.registry import Registry

_log = logging.getLogger("registry")


class Beginning:
    """The journal that a life begins with: `open` it first."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._path = Path(config.journal.path)
        self.journal_id = ""
        self.same_boot = False
        self._copied: str | None = None

    async def open(self) -> tuple[Journal, Projection]:
        """The journal and its fold. A damaged one is set aside, and what could be read of it is kept.

        Who wrote it last is remembered elsewhere, too.
        """
        remembered = house.remembered(self._path.parent)
        is_ours = remembered is not None and remembered.wrote(self._path)
        is_damaged = False
        try:
            journal, projection = await self._read(is_ours=is_ours)
        except JournalDamaged as error:
            is_damaged = True
            await self._salvage(error)
            journal, projection = await self._read()
        before = house.Writer.of(projection)
        # one without a beginning was begun anew, perhaps by a registry that was killed while it did so
        if (is_damaged or before is None) and _is_of_this_boot(remembered):
            before = remembered
        self._goes_on_from(before)
        return journal, projection

    async def _salvage(self, error: JournalDamaged) -> None:
        saved = await asyncio.to_thread(salvage, self._path)
        _log.error("%s", error)
        _log.error("%s", saved.told(self._path))

    async def _read(self, *, is_ours: bool = False) -> tuple[Journal, Projection]:
        durability = self._config.journal.durability
        journal = await Journal.open(self._path, durability=durability, is_ours=is_ours)
        try:
            projection = await journal.fold()
        except BaseException:
            await journal.close()
            raise
        return journal, projection

    def _goes_on_from(self, before: house.Writer | None) -> None:
        self._copied = self._original_of(before)
        goes_on = before is not None and self._copied is None
        self.journal_id = before.journal_id if before and goes_on else os.urandom(8).hex()
        self.same_boot = goes_on and _is_of_this_boot(before)

    def _original_of(self, writer: house.Writer | None) -> str | None:
        """The journal that ours is a copy of: it still lies where the last registry had it.

        Where that one is gone, ours was moved, or put back from a backup: it is the same registry.
        """
        if writer is None or not writer.started.path:
            return None
        before = writer.started
        theirs = (before.device, before.inode)
        is_copy = house.file_of(before.path) == theirs != house.file_of(str(self._path))
        return before.path if is_copy else None

    async def write(self, registry: Registry) -> int:
        """Say that we are here; the number of that event."""
        named: list[ev.Event] = []
        if self._copied is not None:
            named = [ev.JournalCopied(journal_id=self.journal_id, source=self._copied)]
        elif self.journal_id != registry.committed.journal_id:
            named = [ev.JournalCreated(journal_id=self.journal_id, schema=SCHEMA_VERSION)]
        device, inode = house.file_of(str(self._path)) or (0, 0)
        started = ev.RegistryStarted(
            boot_id=proc.boot_id(),
            pid_namespace=proc.pid_namespace(),
            pid=os.getpid(),
            version=package.__version__,
            fresh=registry.committed.orderly or not self.same_boot,
            path=os.path.abspath(self._path),
            device=device,
            inode=inode,
        )
        await registry.write(*named, started)
        try:
            house.remember(self._path.parent, house.Writer(self.journal_id, started))
        except OSError as error:
            _log.warning(
                "%s; without it what runs is not found where the journal is damaged", error
            )
        return registry.committed.seq


def _is_of_this_boot(writer: house.Writer | None) -> bool:
    if writer is None:
        return False
    before = writer.started
    return before.boot_id == proc.boot_id() and before.pid_namespace == proc.pid_namespace()


def declare(registry: Registry, configuration: Configuration, cause: int) -> list[str]:
    """Declare what the configuration declares, but for what had failed and is declared otherwise now.

    That is to be tried again, which `begin` does in one decision: killed in between, the next life does it.
    """
    definitions, known = configuration.config.definitions, registry.committed.services
    later = [each.name for each in definitions if _is_another(each, known.get(each.name))]
    registry.declare(
        [configuration.define(each, cause=cause) for each in definitions if each.name not in later]
    )
    return later


def _is_another(definition: Definition, service: Service | None) -> bool:
    has_failed = service is not None and service.state is State.FAILED and service.wanted
    return has_failed and service is not None and service.definition != definition


def take_up(
    config: Config,
    registry: Registry,
    machine: Machine,
    runner: Runner,
    surroundings: Surroundings,
    found: Found,
    *,
    same_boot: bool,
) -> None:
    """Hand in what lives, and how the rest ended; take over what the keeper has kept for it."""
    pidfds: dict[tuple[str, int], int] = {}
    for each in found.kept:
        runner.kept(each.service, each.run)
        if each.output_fd is not None:
            os.close(each.output_fd)  # the keeper's client holds its own
        if each.pidfd is not None:
            pidfds[each.service, each.run] = each.pidfd
    # a run may live of one that the journal, begun anew, does not know
    last_runs = registry.committed.last_runs
    declared = {
        each.name: Service(each, run=last_runs.get(each.name, 0)) for each in config.definitions
    }
    services = {**declared, **registry.committed.services}
    surroundings.adopt(found.held, services)
    for name, given in machine.take_up(services.values(), pidfds, found.notes, same_boot=same_boot):
        registry.observe(name, given)


def begin(
    registry: Registry,
    configuration: Configuration,
    known: Iterable[str],
    later: Collection[str],
    cause: int,
) -> None:
    """Remove what is `known` and no longer declared, declare and try again what is `later`, and want each up or
    down where `autostart` is to say so.
    """
    config = configuration.config
    declared = {definition.name for definition in config.definitions}
    services = registry.committed.services
    gone = [name for name in known if name not in declared]
    registry.declare(
        [
            (name, inp.Remove(cause=cause))
            for name in registry.graph.stop_order(gone)
            if name not in declared
        ]
    )
    for definition in config.definitions:
        if definition.name in later:
            steps = [configuration.define(definition, cause=cause)]
            if services[definition.name].state is State.FAILED:  # no run of it was found
                steps.append((definition.name, inp.Renew(cause=cause)))
            registry.declare(steps)
    due = {each.name for each in config.definitions if services[each.name].autostart_due}
    starting = [name for name in start_order(config) if name in due]
    for name in sorted(due.difference(starting)):
        registry.declare([(name, inp.Stop(reason=Reason.AUTOSTART, cause=cause))])
    for name in starting:
        registry.declare([(name, inp.Start(reason=Reason.AUTOSTART, cause=cause))])


async def start_all(registry: Registry) -> None:
    """Have every service look at its neighbours and its duties, until all that are to start by themselves have.

    A link of a chain of dependencies takes two rounds: its start, and that it is seen to be through its gate. What
    services in trouble do meanwhile is not waited for.
    """
    registry.reconsider_all()
    for _ in range(2 * registry.graph.depth() + 1):
        await registry.work_off()
