"""Random definitions out of the whole language, and configurations made of them, as `services.toml` would allow."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from random import Random

import msgspec

from registry.config import AccessSettings, Config, JournalSettings, RegistrySettings
from registry.core.definition import (
    HEARTBEAT,
    Check,
    Condition,
    Definition,
    Dependency,
    OnFailure,
    Policy,
    Ready,
    Reload,
    Restart,
    Stop,
)
from tests.simulation.trouble import Taste

NAMES = ("db", "cache", "setup", "web@1", "web@2", "worker", "mail", "clock")


class Language:
    """All that can be declared by `names`, by a taste."""

    def __init__(self, chance: Random, taste: Taste, count: int) -> None:
        more = range(len(NAMES), count + count // 10)
        self.names = (*NAMES, *(f"worker-{number}" for number in more))
        self.chance = chance
        self.taste = taste
        self._count = count

    def first(self) -> Config:
        """A configuration of as many services as were asked for."""
        numbers = self.chance.sample(range(len(self.names)), self._count)
        return _config(self._definitions(sorted(numbers)))

    def changed(self, before: Config) -> Config:
        """Another configuration: services added, removed, changed."""
        chance, names = self.chance, self.names
        kept = {each.name: each for each in before.definitions}
        numbers = self._numbers(kept)
        for _ in range(chance.randint(1, 2)):
            number = chance.randrange(len(names))
            match chance.randrange(4):
                case 0 if len(numbers) > 1:
                    numbers.discard(number)
                    kept.pop(names[number], None)
                case 1:
                    numbers.add(number)
                case _:
                    kept.pop(names[number], None)
        return _config(_merged(self._definitions(sorted(numbers)), kept))

    def without(self, before: Config, name: str, *, again: bool) -> Config:
        """The same with one service removed, or declared `again`, in another way."""
        kept = {each.name: each for each in before.definitions if each.name != name}
        numbers = self._numbers(kept)
        if again:
            numbers.add(self.names.index(name))
        return _config(_merged(self._definitions(sorted(numbers)), kept))

    def filled(self, before: Config) -> Config:
        """The same with as many services as at first."""
        kept = {each.name: each for each in before.definitions}
        numbers = self._numbers(kept)
        absent = [number for number in range(len(self.names)) if number not in numbers]
        self.chance.shuffle(absent)
        numbers.update(absent[: max(0, self._count - len(numbers))])
        return _config(_merged(self._definitions(sorted(numbers)), kept))

    def _numbers(self, names: Container[str]) -> set[int]:
        return {number for number, name in enumerate(self.names) if name in names}

    def _definitions(self, numbers: list[int]) -> list[Definition]:
        made: dict[str, Definition] = {}
        for number in numbers:
            name = self.names[number]
            made[name] = _definition(self.chance, self.taste, name, made)
        return list(made.values())


def _merged(fresh: list[Definition], kept: dict[str, Definition]) -> list[Definition]:
    made: dict[str, Definition] = {}
    for each in fresh:  # who is kept keeps its dependencies as far as they can still come true
        old = kept.get(each.name)
        made[each.name] = _mended(old, made) if old is not None else each
    return [_mended(each, made) for each in made.values()]


def _config(definitions: list[Definition]) -> Config:
    placed = [msgspec.structs.replace(each, position=n) for n, each in enumerate(definitions)]
    return Config(
        file=Path("/simulated/services.toml"),
        folder=Path("/simulated/services.d"),
        root=Path("/simulated"),
        registry=RegistrySettings(),
        journal=JournalSettings("/simulated/registry.db"),
        access=AccessSettings(),
        definitions=tuple(placed),
        environments={},
        hooks=(),
        hook_places=(),
        sources=(),
        places={},
    )


def _mended(definition: Definition, others: dict[str, Definition]) -> Definition:
    needs = tuple(
        each
        for each in definition.depends_on
        if (other := others.get(each.service)) is not None and each.condition in _possible(other)
    )
    return msgspec.structs.replace(definition, depends_on=needs)


def _possible(other: Definition) -> list[Condition]:
    """The conditions that `other` can ever meet (registry/config/dependencies.py)."""
    if other.oneshot:
        return [Condition.COMPLETED, Condition.STARTED]
    found = [Condition.STARTED, Condition.READY, Condition.READY]
    if other.checks:
        found.append(Condition.HEALTHY)
    if other.restart.policy is not Policy.ALWAYS:
        found.append(Condition.COMPLETED)
    return found


def _definition(
    chance: Random, taste: Taste, name: str, others: dict[str, Definition]
) -> Definition:
    oneshot = chance.random() < 0.15
    checks = () if oneshot else _checks(chance)
    base, _, instance = name.partition("@")
    return Definition(
        name=name,
        cmd=(f"run-{chance.randrange(3)}",),
        restart=_restart(chance, taste, oneshot),
        stop=Stop(chance.choice(["SIGTERM", "SIGINT"]), chance.choice([0.5, 3.0, 10.0])),
        checks=checks,
        autostart=chance.random() < 0.9,
        success_exit_codes=chance.choice([(0,), (0,), (0, 3), (0, -15)]),
        start_timeout_s=chance.choice([2.0, 10.0, 90.0]),
        essential=chance.random() < taste.essential,
        ready=None if oneshot else _ready(chance, taste, checks),
        oneshot=oneshot,
        depends_on=_needs(chance, taste, others),
        tags=("front",) if chance.random() < 0.3 else (),
        instance_of=base if instance else None,
        instance=int(instance) if instance else None,
        reload=chance.choice([None, Reload(signal="SIGHUP"), Reload(cmd=("reload",))]),
    )


def _ready(chance: Random, taste: Taste, checks: tuple[Check, ...]) -> Ready | None:
    if chance.random() < taste.notified:
        return Ready.NOTIFY
    kinds = [None, Ready.SPAWN]
    if any(check.target != HEARTBEAT for check in checks):
        kinds.append(Ready.HEALTH)
    return chance.choice(kinds)


def _restart(chance: Random, taste: Taste, oneshot: bool) -> Restart:
    policies = [Policy.ON_FAILURE, Policy.NEVER] if oneshot else [*Policy, Policy.ALWAYS]
    policy = chance.choice(policies)
    limit, within_s = None, None
    if policy is not Policy.NEVER and chance.random() < taste.limited:
        limit, within_s = chance.choice([(2, 60.0), (3, 60.0), (10, 600.0)])
    delay_s = chance.choice([0.5, 2.0, 5.0])
    memory_max = 2**30 if chance.random() < taste.memory else None
    return Restart(policy, delay_s, chance.choice([10.0, 30.0, 60.0]), limit, within_s, memory_max)


def _checks(chance: Random) -> tuple[Check, ...]:
    return tuple(
        Check(
            name=name,
            target=chance.choice(["unix:/s", "tcp:127.0.0.1:1", "cmd:look", HEARTBEAT]),
            interval_s=chance.choice([10.0, 20.0, 60.0]),
            timeout_s=chance.choice([1.0, 3.0]),
            failures=chance.randint(1, 3),
            successes=chance.randint(1, 2),
            on_failure=chance.choice(list(OnFailure)),
            signal=chance.choice([None, None, "SIGABRT"]),
        )
        for name in ("http", "beat")[: chance.choice([0, 0, 1, 1, 2])]
    )


def _needs(chance: Random, taste: Taste, others: dict[str, Definition]) -> tuple[Dependency, ...]:
    if not others or chance.random() >= taste.needs:
        return ()
    names = chance.sample(list(others), min(len(others), chance.randint(1, 2)))
    return tuple(
        Dependency(name, chance.choice(_possible(others[name])), chance.random() < 0.35)
        for name in names
    )
