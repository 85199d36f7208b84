"""Operators: commands by several people at once, quarrels among them, and new configurations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import msgspec

from registry.api.access import Peer
from registry.api.actions import ApiError, CommandParams, ReloadParams, SignalParams, StopParams
from registry.config import Config
from registry.core.events import Actor
from registry.core.lifecycle import State
from registry.core.service import UP, Service
from tests.simulation import invariants as inv
from tests.simulation.life import Life
from tests.simulation.loop import NS

if TYPE_CHECKING:
    from tests.simulation.world import World

BOOTING_S = 5.0
"""So long after its beginning a daemon is still starting its services."""
OFTEN = 4
MANY = 8
"""Services that one command names at most."""


QUARRELS = (
    ("stop", "start"),
    ("stop", "restart", "start"),
    ("restart", "stop", "start"),
    ("start", "stop", "restart"),
    ("stop", "reset", "start"),
    ("restart", "stop"),
    ("stop",),
)
"""What is asked for, one after the other."""

Way = tuple[str, str, bool, bool, bool]
"""What is done to a service that is in this state, is wanted, lacks what it depends on, and is depended on."""


class Operators:
    """All people who command one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._chance = world.chance
        self._happened = world.happened
        self._meddled: Counter[Way] = Counter()

    def operate(self) -> None:
        """One command, or several at once, by different people."""
        count = self._chance.choice([1, 1, 1, 2, 4])
        about = self._any_service()
        for _ in range(count):
            self._in(self._chance.uniform(0.0, 0.005), self._any_verb(), self._some_of(about))

    def quarrel(self) -> None:
        """One brings down a service and all that depends on it, another wants it up before it is down, or after."""
        life, chance = self._world.life, self._chance
        if life is None or not life.is_up or life.dead:
            return
        services = life.registry.committed.services
        needed = [name for name in services if _is_needed(name, services)]
        about = chance.choice(needed or self._names())
        self._happened["quarrel"] += 1
        at_s = 0.0
        for verb in chance.choice(QUARRELS):
            self._in(at_s, verb, [about], with_dependents=True)
            at_s += chance.choice([0.0, chance.uniform(0.0, 0.1), chance.uniform(0.0, 5.0)])
        self._in(at_s + chance.uniform(0.0, 5.0), "start", self._names()[:MANY])

    def meddle(self) -> None:
        """Somebody does to a service what was seldom done to one that is as this one is."""
        life = self._world.life
        if life is None or not life.is_up or life.dead:
            return
        services = life.registry.committed.services
        found = [(key, each.name) for each in services.values() for key in _ways(each, services)]
        pressing = [each for each in found if _is_pressing(each[0])]
        if pressing and self._chance.random() < 0.8:
            key, name = self._chance.choice(pressing)
        elif found:
            least = min(self._meddled[key] for key, _name in found)
            if self._chance.random() >= OFTEN / (OFTEN + least):  # what is done often by now
                return
            rare = [each for each in found if self._meddled[each[0]] == least]
            key, name = self._chance.choice(rare)
        else:
            return
        self._meddled[key] += 1
        self._happened["meddling"] += 1
        if key[0] in ("change", "remove"):
            if len(self._names()) > 1:
                self._declare_without(name, again=key[0] == "change")
        elif key[0] == "stop":
            self._command("stop", [name], True)
        else:
            self._command(key[0], [name])

    def _declare_without(self, name: str, *, again: bool) -> None:
        """Somebody puts back later what is not declared again."""
        language = self._world.language
        self._change_to(language.without(self._world.config, name, again=again))
        if not again:
            self._world.loop.after(self._chance.uniform(1.0, 20.0), self._unless_quiet, self._fill)

    def _fill(self) -> None:
        self._change_to(self._world.language.filled(self._world.config))

    def apply(self) -> None:
        """The file is changed; most of the time somebody has it taken up, too."""
        self._change_to(self._world.language.changed(self._world.config))

    def _change_to(self, config: Config) -> None:
        world = self._world
        world.config = config
        life = world.life
        if life is not None and life.is_up and not life.dead and self._chance.random() < 0.9:
            self._happened["apply"] += 1
            self._happened["apply during boot"] += self._is_booting(life)
            life.start_task(self._apply_in(life))

    def hurry(self) -> None:
        """Somebody does not wait until a daemon that begins has begun."""
        self._world.loop.after(self._chance.uniform(0.0, BOOTING_S), self._unless_quiet, self.apply)

    def _unless_quiet(self, action: Callable[[], None]) -> None:
        if not self._world.is_quiet:
            action()

    def _in(
        self, delay_s: float, verb: str, names: list[str], *, with_dependents: bool = False
    ) -> None:
        self._world.loop.after(delay_s, self._command, verb, names, with_dependents)

    def _names(self) -> list[str]:
        return [each.name for each in self._world.config.definitions]

    def _any_service(self) -> str:
        return self._chance.choice(self._names())

    def _some_of(self, about: str) -> list[str]:
        names = self._names()
        some = self._chance.sample(names, self._chance.randint(1, min(len(names), MANY)))
        return [about] if self._chance.random() < 0.6 else some

    def _any_verb(self) -> str:
        verbs = ["start"] * 4 + ["stop"] * 2 + ["restart"] * 2 + ["reset", "signal", "reload"]
        return self._chance.choice(verbs)

    def _command(self, verb: str, names: list[str], with_dependents: bool = False) -> None:
        chance, life = self._chance, self._world.life
        if life is None or not life.is_up or life.dead or self._world.is_quiet:
            return
        wait = chance.random() < 0.3
        self._happened["command"] += 1
        self._count_overtaking(life, verb, names)
        peer = Peer(uid=1000 + chance.randrange(3), gid=1000, pid=77, program="circlectl")
        params = self._params(verb, names, wait)
        if verb == "stop" and with_dependents:
            params = StopParams(service=names, wait=wait, with_dependents=True)
        life.start_task(self._ask(life, verb, params, peer))

    def _count_overtaking(self, life: Life, verb: str, names: list[str]) -> None:
        self._happened["command during boot"] += self._is_booting(life)
        services = life.registry.committed.services
        states = [services[name].state for name in names if name in services]
        if verb == "stop" and State.STARTING in states:
            self._happened["stop overtakes start"] += 1
        if verb in ("start", "restart") and State.STOPPING in states:
            self._happened["start or restart during stop"] += 1

    def _is_booting(self, life: Life) -> bool:
        return self._world.loop.now_ns - life.up_ns < BOOTING_S * NS

    def _params(self, verb: str, names: list[str], wait: bool) -> msgspec.Struct:
        match verb:
            case "stop":
                with_dependents = self._chance.random() < 0.6
                return StopParams(service=names, wait=wait, with_dependents=with_dependents)
            case "signal":
                name = self._chance.choice(["HUP", "TERM", "KILL"])
                return SignalParams(service=names, signal=name)
            case "reload":
                return ReloadParams(service=names, wait=wait)
        return CommandParams(service=names, wait=wait)

    async def _ask(self, life: Life, verb: str, params: msgspec.Struct, peer: Peer) -> None:
        world = self._world
        try:
            answer = await life.ask(verb, params, peer)
        except ApiError as error:
            self._happened[f"answered {error.code.value}"] += 1
            return
        for item in answer if not life.dead else ():
            if isinstance(item, dict) and "already" in item:
                world.hold(
                    inv.an_answered_command_is_in_the_journal,
                    world.ledger,
                    verb,
                    item["name"],
                    item["seq"],
                    already=item["already"],
                )

    async def _apply_in(self, life: Life) -> None:
        try:
            await life.configuration.apply(Actor(1000, 77, "circlectl"))
        except ApiError as error:
            self._happened[f"answered {error.code.value}"] += 1


def _ways(service: Service, services: inv.Services) -> Iterator[Way]:
    lacks = any(inv.missing(service.definition, services))
    is_needed = _is_needed(service.name, services)
    for verb in ("start", "restart", "stop", "reset", "change", "remove"):
        yield verb, service.state.value, service.wanted, lacks, is_needed


def _is_pressing(way: Way) -> bool:
    """What can be done for a short time only: to a service that is to stop and has not begun to, or waits in vain."""
    verb, state, wanted, lacks, is_needed = way
    is_up = state in ("Starting", "Running")
    if verb == "stop":
        return state == "Starting" and wanted and is_needed
    if verb == "start" and is_up and not wanted:
        return True
    return verb in ("start", "restart") and state in ("Restarting", "Failed") and lacks


def _is_needed(name: str, services: inv.Services) -> bool:
    """Whether something that is up depends on it."""
    return any(each.state in UP for each in inv.dependents(name, services))
