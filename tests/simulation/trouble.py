"""What kinds of trouble a seed has, and how much of each; a profile leans towards what is rare elsewhere.

Law: a seed has the profile of its number, so that any run of seeds has worlds of each.
"""

from __future__ import annotations

from random import Random

import msgspec


class Taste(msgspec.Struct, frozen=True):
    """How services are declared and behave: likelihoods, and fields of `programs.Habit`.

    `services`: how few and how many; of a field with several values each service has one.
    """

    bad: float = 0.5
    essential: float = 0.02
    limited: float = 0.5
    memory: float = 0.1
    needs: float = 0.55
    notified: float = 0.33
    services: tuple[int, int] = (1, 7)
    habit: dict[str, float | tuple[float, ...] | None] = {}


class Trouble(msgspec.Struct, frozen=True):
    """How much of each trouble a seed has: mean seconds between two of a kind, None for none; or how likely it is.

    `steered`: the daemon is killed at an append of what was seldom seen so far. `unjournaled`: the disk is full
    where a run is about to begin, then comes a kill. `unwatched`: services end while no daemon is there.
    """

    profile: str
    taste: Taste
    kill_s: float | None
    deadly: float
    reboot_s: float | None
    wall_s: float | None
    stall_s: float | None
    keeper_s: float | None
    disk_s: float | None
    operator_s: float
    quarrel_s: float | None
    meddle_s: float | None
    apply_s: float | None
    storm_s: float | None
    end_s: float | None
    refused: float
    late: float
    twice: float
    held_max: int
    exits_known: bool
    habit_s: float = 1800.0
    steered: float = 0.0
    unjournaled: float = 0.0
    unwatched: float = 0.4


PROFILES = (
    "recovery",
    "general",
    "apply",
    "unjournaled",
    "neighbours",
    "talking",
    "starting",
    "general",
    "talking",
    "neighbours",
    "unjournaled",
    "neighbours",
)
"""That of a seed is at its number modulo their number."""

_TASTES: dict[str, Taste] = {
    "recovery": Taste(bad=0.8, limited=0.8, habit={"leaves": 0.7, "ready_s": 40.0, "slow": 0.3}),
    "apply": Taste(bad=0.8, habit={"slow": 0.6}),
    "unjournaled": Taste(bad=0.9),
    "neighbours": Taste(
        bad=0.3,
        needs=0.95,
        notified=0.7,
        limited=0.8,
        habit={"slow": 0.8, "deaf": 0.05, "ready_s": 20.0, "dies_early": (0.0, 0.5, 0.8)},
        services=(4, 7),
    ),
    "starting": Taste(
        bad=0.6,
        memory=0.5,
        needs=0.8,
        notified=0.9,
        habit={"slow": 0.6, "ready_s": 60.0, "talks": 0.5, "leaves": 0.4},
    ),
    "talking": Taste(
        bad=0.7,
        memory=0.5,
        notified=0.6,
        limited=0.9,
        habit={
            "talks": 0.95,
            "flaps": 0.95,
            "lies": 0.25,
            "leaves": 0.2,
            "life_s": (20.0, 60.0, 300.0),
        },
    ),
}


def trouble(chance: Random, seed: int, pace: float = 1.0) -> Trouble:
    """The trouble of a seed; what has a mean time comes `pace` times more seldom."""
    profile = PROFILES[seed % len(PROFILES)]
    found = _leant(chance, _any_kinds(chance, profile), profile)
    if pace == 1.0:
        return found
    slower = {name: getattr(found, name) for name in Trouble.__struct_fields__ if name[-2:] == "_s"}
    times = {name: mean_s * pace for name, mean_s in slower.items() if mean_s is not None}
    taste = msgspec.structs.replace(
        found.taste, bad=max(found.taste.bad / pace, 0.01), essential=found.taste.essential / pace
    )
    return msgspec.structs.replace(
        found,
        **times,
        taste=taste,
        deadly=found.deadly / pace,
        refused=found.refused / pace,
        steered=found.steered / pace,
        unjournaled=found.unjournaled / pace,
    )


def _any_kinds(chance: Random, profile: str) -> Trouble:
    """Some kinds only, so that each is met without the others, too."""

    def mean_s(*each: float) -> float | None:
        return chance.choice([None, *each, *each])

    return Trouble(
        profile=profile,
        taste=_TASTES.get(profile, Taste()),
        kill_s=mean_s(120.0, 600.0, 1800.0),
        deadly=chance.choice([0.0, 0.0005, 0.005]),
        reboot_s=mean_s(1500.0, 7200.0),
        wall_s=mean_s(600.0),
        stall_s=mean_s(900.0),
        keeper_s=mean_s(300.0, 1800.0),
        disk_s=mean_s(300.0, 1200.0),
        operator_s=chance.choice([20.0, 120.0, 600.0]),
        quarrel_s=mean_s(300.0),
        meddle_s=None,
        apply_s=mean_s(200.0, 1200.0),
        storm_s=mean_s(900.0),
        end_s=mean_s(900.0, 3600.0),
        refused=chance.choice([0.0, 0.0, 0.01, 0.1]),
        late=chance.choice([0.0, 0.01, 0.1]),
        twice=chance.choice([0.0, 0.1]),
        held_max=chance.choice([20, 100, 20_000]),
        exits_known=chance.random() < 0.6,
    )


def _leant(chance: Random, found: Trouble, profile: str) -> Trouble:
    change = msgspec.structs.replace
    match profile:
        case "recovery":
            kill_s = chance.choice([20.0, 60.0])
            return change(
                found, steered=0.7, kill_s=kill_s, unwatched=0.9, exits_known=chance.random() < 0.1
            )
        case "apply":
            return change(found, steered=0.7, meddle_s=2.0, apply_s=30.0, reboot_s=None)
        case "unjournaled":
            return change(
                found,
                steered=0.7,
                unjournaled=0.9,
                operator_s=30.0,
                meddle_s=3.0,
                disk_s=None,
                reboot_s=None,
            )
        case "neighbours":
            return change(
                found, steered=0.7, quarrel_s=12.0, meddle_s=1.0, storm_s=60.0, reboot_s=None
            )
        case "starting":
            return change(
                found, steered=0.7, quarrel_s=15.0, meddle_s=1.5, apply_s=60.0, storm_s=120.0
            )
        case "talking":
            return change(found, steered=0.7)
    return found
