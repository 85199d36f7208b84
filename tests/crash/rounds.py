"""Rounds of deaths: each kills the registry (or its keeper, or both) a few times and then judges what is left.

All chance comes from one seed; what a kill strikes within the registry's work, and so which named moments
are still to be died at, is the machine's. Some rounds share a world, then a new one begins: so first boots
are died at, too, and nothing grows without bound.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from random import Random

import msgspec

from tests.crash.commander import Commander
from tests.crash.judge import Judge, Violation
from tests.crash.launcher import MOMENTS
from tests.crash.world import HABITS, World

ROUNDS_OF_A_WORLD = 25
HIT_WITHIN_S, BEGUN_WITHIN_S = 1.5, 15.0
"""How long a named point is waited for once a life has answered, which it has to begin for; then the kill comes at
that moment, which is a random one."""
RARE = ("escalation", "leftovers", "connect", "declare", "autostart", "perform", "stop", "release")
NUMBER_MAX, NUMBER_OF_RARE_MAX = 16, 2
ANSWERS_WITHIN_S = 5.0
AT_BOOT = ("connect", "declare", "autostart", "perform")
"""Called once in a life."""
ABOUT_SPAWNS = ("append", "spawn", "keep", "gate")


class Victim(StrEnum):
    """Who dies, in which order."""

    DAEMON = "daemon"
    KEEPER = "keeper"
    KEEPER_THEN_DAEMON = "keeper, daemon"
    DAEMON_THEN_KEEPER = "daemon, keeper"


VICTIMS = (*[Victim.DAEMON] * 4, Victim.KEEPER_THEN_DAEMON, Victim.DAEMON_THEN_KEEPER)


class Death(msgspec.Struct, frozen=True):
    """One death: at a named moment, or after `after_s` where `moment` is empty; `gap_s` between the two of a pair."""

    moment: str
    number: int
    after_s: float
    victim: Victim
    gap_s: float

    def __str__(self) -> str:
        when = f"{self.moment}:{self.number}" if self.moment else f"after {self.after_s:.3f} s"
        return f"{self.victim} {when}"


class Tally(msgspec.Struct):
    """What came of the rounds so far."""

    rounds: int = 0
    kills: Counter[str] = msgspec.field(default_factory=Counter)
    commands: int = 0
    worst_settled_s: float = 0.0

    def __str__(self) -> str:
        kills = ", ".join(f"{name} {count}" for name, count in sorted(self.kills.items()))
        return (
            f"{self.rounds} rounds, {sum(self.kills.values())} kills, {self.commands} commands,"
            f" worst settle {self.worst_settled_s:.2f} s; {kills}"
        )


def run(
    seed: int, rounds: int, new_folder: Callable[[], Path], told: Callable[[Tally], None]
) -> Tally:
    """Run that many rounds. Raises Violation with seed, round and plan; the world's folder is left then."""
    tally = Tally()
    for first in range(0, rounds, ROUNDS_OF_A_WORLD):
        world = World(new_folder())
        judge = Judge(world)
        try:
            for number in range(first, min(rounds, first + ROUNDS_OF_A_WORLD)):
                chance = Random(f"{seed} {number}")
                _judged_round(world, judge, chance, f"seed {seed}, round {number}", tally)
                tally.rounds += 1
                told(tally)
            _end(world, f"seed {seed}, after round {tally.rounds - 1}")
        finally:
            world.clean_up()
    return tally


def _end(world: World, title: str) -> None:
    """An orderly end leaves nothing."""
    status, left = world.end(), world.processes()
    if status != 0 or left:
        ended = "not in time" if status is None else f"status {status}"
        raise Violation(
            f"{title}\norderly end: {ended}, left {left}\n{world.said()}\nfolder: {world.folder}"
        )


def _judged_round(world: World, judge: Judge, chance: Random, title: str, tally: Tally) -> None:
    deaths = _plan(chance, tally, is_up=world.daemon is not None)
    try:
        settled_s = _round(world, judge, chance, deaths, tally)
    except AssertionError as error:
        plan = "; ".join(map(str, deaths))
        raise Violation(f"{title}\nplan: {plan}\n{error}\nfolder: {world.folder}") from error
    tally.worst_settled_s = max(tally.worst_settled_s, settled_s)


def _plan(chance: Random, tally: Tally, *, is_up: bool) -> list[Death]:
    """A registry that is up already dies at random first; then at two moments, those least died at; perhaps again."""
    deaths = [_random_death(chance)] if is_up else []
    moments = sorted(chance.sample(MOMENTS, len(MOMENTS)), key=tally.kills.__getitem__)
    deaths += [_named_death(chance, moment) for moment in moments[:2]]
    if chance.random() < 0.3:
        deaths.append(_random_death(chance))
    if chance.random() < 0.3:
        deaths.append(Death("", 0, chance.uniform(0, 0.2), Victim.KEEPER, 0))
    return deaths


def _random_death(chance: Random) -> Death:
    gap_s = chance.choice((0, chance.uniform(0, 0.2)))
    return Death("", 0, chance.uniform(0, 0.6), chance.choice(VICTIMS), gap_s)


def _named_death(chance: Random, moment: str) -> Death:
    name = moment.partition(" ")[2]
    most = 1 if name in AT_BOOT else NUMBER_OF_RARE_MAX if name in RARE else NUMBER_MAX
    victim = chance.choice((Victim.DAEMON, Victim.DAEMON, Victim.DAEMON_THEN_KEEPER))
    return Death(moment, chance.randint(1, most), HIT_WITHIN_S, victim, 0)


def _round(world: World, judge: Judge, chance: Random, deaths: list[Death], tally: Tally) -> float:
    before = judge.look()
    commander = Commander(
        world, _commanded(chance, deaths), Random(chance.random()), chance.choice((0.01, 0.05))
    )
    commander.start()
    try:
        for death in deaths:
            _live(world, commander, f"{death.moment}:{death.number}" if death.moment else "")
            if death.victim is Victim.KEEPER:  # while the registry has hold of everything
                commander.acknowledged.wait(ANSWERS_WITHIN_S)
            tally.kills[_die(world, commander, death)] += 1
        _live(world, commander, "")
        began_s = time.monotonic()
        commander.acknowledged.wait(ANSWERS_WITHIN_S)
        time.sleep(chance.uniform(0, 0.3))
    finally:
        commander.stop()
    tally.commands += len(commander.sent)
    both_died = any(death.victim in _PAIRS for death in deaths)
    return judge.after_round(before, commander.sent, began_s, both_died=both_died)


def _live(world: World, commander: Commander, point: str) -> None:
    """Begin a life of the registry where none is under way."""
    if not world.is_up():
        commander.acknowledged.clear()
        world.start(point)


_PAIRS = (Victim.KEEPER_THEN_DAEMON, Victim.DAEMON_THEN_KEEPER)


def _commanded(chance: Random, deaths: list[Death]) -> list[str]:
    """About a third of the services of each habit. Or, rather where one dies about a spawn, those
    of which every execution counts; and deaf ones."""
    about_spawns = any(death.moment.partition(" ")[2] in ABOUT_SPAWNS for death in deaths)
    if chance.random() < (0.5 if about_spawns else 0.1):
        return [f"{name}-{n}" for name in ("once", "deaf") for n in range(HABITS[name].number)]
    chosen = []
    for name, habit in HABITS.items():
        third = round(habit.number / 3 + chance.uniform(-0.4, 0.4))
        services = [f"{name}-{n}" for n in range(habit.number)]
        chosen += chance.sample(services, max(name in ("deaf", "leave"), third))
    return chosen


def _die(world: World, commander: Commander, death: Death) -> str:
    """Bring a death about; what it counts as."""
    if death.moment:  # a slow machine takes long to begin, and what is died at may come after that
        _wait_while(lambda: world.is_up() and not commander.acknowledged.is_set(), BEGUN_WITHIN_S)
    _wait_while(world.is_up, death.after_s)
    was_hit = not world.is_up()
    if death.victim in (Victim.KEEPER, Victim.KEEPER_THEN_DAEMON):
        world.kill_keeper()
        time.sleep(death.gap_s)
    if death.victim is not Victim.KEEPER:
        world.kill()
    if death.victim is Victim.DAEMON_THEN_KEEPER:
        time.sleep(death.gap_s)
        world.kill_keeper()
    return death.moment if was_hit else f"random ({death.victim})"


def _wait_while(is_so: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while is_so() and (left_s := deadline - time.monotonic()) > 0:
        time.sleep(min(0.005, left_s))
