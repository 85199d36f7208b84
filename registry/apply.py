"""New configuration, taken up while everything runs: read, compared, and committed as one decision or not at all."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from registry.api.actions import ApiError, ErrorCode
from registry.api.commands import committed
from registry.config import (
    AccessSettings,
    Config,
    ConfigError,
    JournalSettings,
    load,
    with_digests,
)
from registry.core import inputs as inp
from registry.core.definition import Definition
from registry.core.dependencies import Graph
from registry.core.digest import blake2b
from registry.core.events import Actor
from registry.core.lifecycle import Reason
from registry.host import apart
from registry.questions.plan import Plan, plan
from registry.registry import Registry, Step
from registry.validate import machine_complaints

T = TypeVar("T")

_log = logging.getLogger("registry")
_FIXED = ("socket", "socket_mode", "socket_group")
"""Settings of the registry that it is born with."""
LOOKS_MAX = 2
"""Looks at files and this machine that are under way at once: those that hang, and nobody waits for, count."""


def digest(definition: Definition, key: bytes) -> str:
    """What tells one definition from another; without the key, values of variables cannot be guessed from it."""
    return blake2b(msgspec.json.encode(definition), key=key, digest_size=16).hexdigest()


class Configuration:
    """What is in force, and how it is exchanged. `take_up` is told of a new one when its turn has come."""

    def __init__(
        self, config: Config, key: bytes, registry: Registry, take_up: Callable[[Config], None]
    ) -> None:
        self.config = config
        self._key = key
        self._registry = registry
        self._take_up = take_up
        self._one_at_a_time = asyncio.Lock()
        self._looks: set[asyncio.Task[Any]] = set()

    def define(self, definition: Definition, **by: Actor | int | None) -> Step:
        """The step that declares a service."""
        given = inp.Define(definition=definition, digest=digest(definition, self._key), **by)  # type: ignore[arg-type]
        return definition.name, given

    async def plan(self) -> Plan:
        """What the files would change now. Raises ApiError(INVALID_CONFIG)."""
        async with self._one_at_a_time:  # many may ask, and each reading takes memory
            return await self._compare(await self._load())

    async def apply(self, actor: Actor | None) -> Plan:
        """Take the files up; what that changed. Raises ApiError."""
        async with self._one_at_a_time:
            config = await self._load()
            changes = await self._compare(config)
            steps = self._steps(config, changes, actor)
            if steps:
                await committed(self._registry.command(steps, lambda: self._exchange(config)))
            else:
                self._exchange(config)
        _log.info("%s", _sentence(config, changes))
        return changes

    async def apply_and_tell(self) -> None:
        """Take the files up because a signal or a change of them asks for it; trouble is for the log."""
        try:
            await self.apply(None)
        except ApiError as error:
            for complaint in error.data or [error.message]:
                _log.error("%s", complaint)
            if error.code is not ErrorCode.OUTCOME_UNKNOWN:  # that is in force, not durable yet
                _log.error("Nothing was changed")
        except (
            Exception
        ):  # no thread or memory to be had, say: it concerns one apply, not what runs
            _log.exception("The configuration could not be applied")

    async def _load(self) -> Config:
        try:
            loaded = await self._look(load, self.config.file)
        except ConfigError as error:
            told = str(error).splitlines()
            more = f" (and {len(told) - 1} more)" if len(told) > 1 else ""
            raise ApiError(ErrorCode.INVALID_CONFIG, told[0] + more, told) from None
        return with_digests(loaded, self._key)

    async def _compare(self, config: Config) -> Plan:
        complaints = await self._look(machine_complaints, config, os.environ)
        compared = plan(self._registry.committed.services, config.definitions)
        # a complaint about all instances of one names what they share
        concerned = {change.service.partition("@")[0] for change in compared.changes}
        warnings = [str(c) for c in complaints if (c.service or "").partition("@")[0] in concerned]
        return msgspec.structs.replace(
            compared,
            settings=_settings(self.config, config),
            later=_later(self.config, config),
            warnings=tuple(warnings),
        )

    async def _look(self, look: Callable[..., T], *given: Any) -> T:
        """What `look` returns or raises. It goes on where whoever asked for it is gone."""
        while len(self._looks) >= LOOKS_MAX:
            await asyncio.wait(self._looks, return_when=asyncio.FIRST_COMPLETED)
        looking = asyncio.create_task(apart.do(look, *given))
        self._looks.add(looking)
        looking.add_done_callback(self._looked)
        return await asyncio.shield(looking)

    def _looked(self, looking: asyncio.Task[Any]) -> None:
        self._looks.discard(looking)
        if not looking.cancelled():
            looking.exception()  # what it raises is for whoever asked, if anybody still waits

    def _exchange(self, config: Config) -> None:
        """The new one is in force, but for what only the next start takes up: that stays as it is."""
        kept = {name: getattr(self.config.registry, name) for name in _FIXED}
        registry = msgspec.structs.replace(config.registry, **kept)
        journal = self.config.journal
        self.config = msgspec.structs.replace(config, registry=registry, journal=journal)
        self._take_up(self.config)

    def _steps(self, config: Config, changes: Plan, actor: Actor | None) -> list[Step]:
        by: dict[str, Actor | int | None] = {"actor": actor}
        of = {
            kind: [change.service for change in changes.changes if change.change == kind]
            for kind in ("add", "remove", "change")
        }
        removed = set(of["remove"])
        steps: list[Step] = [self.define(definition, **by) for definition in config.definitions]
        steps += [
            (name, inp.Remove(actor=actor))
            for name in self._registry.graph.stop_order(of["remove"])
            if name in removed
        ]
        steps += [(name, inp.Renew(actor=actor)) for name in of["change"]]
        added = set(of["add"])
        start = inp.Start(actor=actor, reason=Reason.AUTOSTART)
        steps += [(name, start) for name in start_order(config) if name in added]
        declared = self._registry.committed.services  # one that is being removed still has its run
        steps += [(name, inp.Renew(actor=actor)) for name in of["add"] if name in declared]
        return steps


def start_order(config: Config) -> list[str]:
    """The services that start by themselves, each after those that it depends on."""
    starting = {each.name for each in config.definitions if each.autostart}
    names = [each.name for each in reversed(config.definitions)]
    order = Graph(config.definitions).stop_order(names)
    return [name for name in reversed(order) if name in starting]


def _settings(old: Config, new: Config) -> tuple[str, ...]:
    """The settings of the registry itself that differ, and change at once."""
    found = [
        f"access.{role}"
        for role in AccessSettings.__struct_fields__
        if getattr(old.access, role) != getattr(new.access, role)
    ]
    if old.hooks != new.hooks:
        found.append("hook")
    if old.registry.on_sigterm != new.registry.on_sigterm:
        found.append("registry.on_sigterm")
    return tuple(found)


def _later(old: Config, new: Config) -> tuple[str, ...]:
    """The settings that differ and that only the next start of the registry takes up."""
    sections = {
        "registry": (old.registry, new.registry, _FIXED),
        "journal": (old.journal, new.journal, JournalSettings.__struct_fields__),
    }
    return tuple(
        f"{section}.{name.removesuffix('_s')}"
        for section, (before, after, names) in sections.items()
        for name in names
        if getattr(before, name) != getattr(after, name)
    )


def _sentence(config: Config, changes: Plan) -> str:
    words = {"add": "added", "change": "changed", "remove": "removed"}
    told = []
    for kind, word in words.items():
        names = [change.service for change in changes.changes if change.change == kind]
        if names:
            told.append(f"{len(names)} {word} ({', '.join(names[:8])}{', ...' * (len(names) > 8)})")
    if changes.settings:
        told.append(f"{', '.join(changes.settings)} changed")
    if changes.later:
        told.append(f"{', '.join(changes.later)} only at the next start")
    return f"Applied {config.file}: {'; '.join(told) or 'nothing is changed'}"
