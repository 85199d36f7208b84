"""What has to be flat, judged: every promise is a sentence, a quantity of the quiet moments, and bounds.

A quantity of one process is judged within one life of it, from where its caches are warm; one of the folder over
the whole run. Its slope is Theil's and Sen's: the median of the slopes of all pairs, which a few odd moments do
not move.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import combinations
from statistics import median
from typing import NamedTuple

import msgspec

JUDGED_FROM = 4
"""Quiet moments of a life, those for warming up not counted, from which there is a slope."""
WARM_UP = 0.15
"""The part of a life's quiet moments in which caches and allocators fill."""
WARM_UP_LEAST = 2


class Holding(msgspec.Struct, frozen=True):
    """What a process of ours holds in a quiet moment: the least of the counts, the median of the memory (KiB).

    `life` numbers the lives of the program, an upgrade begins another.
    """

    life: int
    descriptors: int
    pss_kib: float
    threads: int
    children: int
    zombies: int
    wakeups_s: float
    cpu_ms_s: float


class Quiet(msgspec.Struct, frozen=True):
    """One quiet moment: clients are gone, the steady services run and no others. `reached_s` is how long that took."""

    at_s: float
    reached_s: float
    daemon: Holding
    keeper: Holding
    events: int
    events_s: float
    journal_bytes: int
    wal_bytes: int
    log_bytes: int
    run_names: int
    tmp_names: int
    strays: int


class Rule(NamedTuple):
    """One promise. It may rise by `an_hour`, and besides by `slack` over all; it is never more than `most`.

    `whose` is the process whose lives are judged singly, "" where the run is judged as a whole.
    """

    name: str
    unit: str
    sentence: str
    of: Callable[[Quiet], float]
    whose: str
    an_hour: float
    slack: float
    most: float


class Verdict(msgspec.Struct, frozen=True):
    """How one promise was kept, in one life."""

    name: str
    unit: str
    sentence: str
    subject: str
    moments: int
    first: float
    median: float
    last: float
    slope_an_hour: float | None
    bound: str
    broken: str

    @property
    def holds(self) -> bool:
        """Whether nothing was broken."""
        return not self.broken


def rules(services: int, logs_max: int) -> list[Rule]:
    """Every promise, for a fleet of so many services whose logs may hold so many bytes."""
    no_limit = math.inf
    wal = (
        16_777_216 + 4_194_304
    )  # what is kept of it after a checkpoint, and what comes between two
    named = [
        ("descriptors", "", "descriptors", 0.0, 2.0, 100 + 12 * services, "holds no more descriptors"),
        ("PSS", "MB", "pss_kib", 3.0, 1.5, 250, "holds no more memory"),
        ("threads", "", "threads", 0.0, 0.5, 16, "has no more threads"),
        ("children", "", "children", no_limit, no_limit, services, "has no more children than there are services"),
        ("zombies", "", "zombies", 0.0, 0.5, 0, "leaves no child unreaped"),
        ("wakeups", "/s", "wakeups_s", 20.0, 80.0, 20 + 3 * services, "wakes up no more often"),
        ("CPU", "ms/s", "cpu_ms_s", 20.0, 40.0, 400, "needs no more CPU"),
    ]  # fmt: skip
    found = [
        Rule(f"{whose} {name}", unit, f"In quiet moments the {whose} {sentence}.",
             _of(whose, field), whose, an_hour, slack, most)
        for whose in ("daemon", "keeper")
        for name, unit, field, an_hour, slack, most, sentence in named
    ]  # fmt: skip
    return [
        *found,
        Rule("journal", "B/event", "The journal grows by its events only.",
             lambda q: q.journal_bytes / max(1, q.events), "", 20.0, 20.0, 1000),
        Rule("write-ahead log", "MB", "The journal's write-ahead log stays within its limit.",
             lambda q: q.wal_bytes / 1e6, "", no_limit, no_limit, wal / 1e6),
        Rule("events", "/s", "In quiet moments there are no events but those of flapping checks.",
             lambda q: q.events_s, "", 1.0, 2.0, 10),
        Rule("logs", "MB", "The logs stay within their limits.",
             lambda q: q.log_bytes / 1e6, "", no_limit, no_limit, logs_max / 1e6),
        Rule("names in the folder", "", "Nothing piles up beside journal and logs.",
             lambda q: q.run_names, "", 0.0, 2.0, no_limit),
        Rule("names in /tmp", "", "Nothing is left in /tmp.",
             lambda q: q.tmp_names, "", 0.0, 0.5, 1),
        Rule("strays", "", "No process of a stopped service is left.",
             lambda q: q.strays, "", 0.0, 0.0, 0),
        Rule("quiet within", "s", "Commands are answered and services settle as soon as ever.",
             lambda q: q.reached_s, "", 10.0, 30.0, no_limit),
    ]  # fmt: skip


def _of(whose: str, field: str) -> Callable[[Quiet], float]:
    scale = 1024 / 1e6 if field == "pss_kib" else 1.0
    return lambda quiet: getattr(getattr(quiet, whose), field) * scale


def judge(rule: Rule, quiets: Sequence[Quiet]) -> list[Verdict]:
    """How the promise was kept: a verdict for each life, the worst first."""
    lives: dict[int, list[Quiet]] = defaultdict(list)
    for quiet in quiets:
        lives[getattr(quiet, rule.whose).life if rule.whose else 0].append(quiet)
    found = [_judge_life(rule, life, of_life) for life, of_life in lives.items()]
    return sorted(found, key=lambda each: (each.holds, each.slope_an_hour is None, -each.moments))


def _judge_life(rule: Rule, life: int, quiets: Sequence[Quiet]) -> Verdict:
    warm = quiets[max(WARM_UP_LEAST, round(WARM_UP * len(quiets))) :] if rule.whose else quiets
    warm = warm or quiets[-1:]
    points = [(quiet.at_s / 3600, rule.of(quiet)) for quiet in warm]
    values = [value for _, value in points]
    slope_an_hour = slope(points) if len(points) >= JUDGED_FROM else None
    broken = []
    if slope_an_hour is not None:
        hours = points[-1][0] - points[0][0]
        rise, allowed = slope_an_hour * hours, rule.an_hour * hours + rule.slack
        if rise > allowed:
            broken.append(f"rose by {rise:.3g} {rule.unit}, at most {allowed:.3g} allowed")
    worst = max(rule.of(quiet) for quiet in quiets)
    if worst > rule.most:
        broken.append(f"was {worst:.4g} {rule.unit}, at most {rule.most:.4g} allowed")
    return Verdict(
        name=rule.name,
        unit=rule.unit,
        sentence=rule.sentence,
        subject=f"{rule.whose} {life}" if rule.whose else "all",
        moments=len(points),
        first=values[0],
        median=median(values),
        last=values[-1],
        slope_an_hour=slope_an_hour,
        bound=_bound(rule),
        broken="; ".join(broken),
    )


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Theil's and Sen's: the median of the slopes between any two points of different times."""
    slopes = [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points, 2) if x1 != x2]
    return median(slopes) if slopes else 0.0


def _bound(rule: Rule) -> str:
    parts = []
    if rule.an_hour < math.inf:
        parts.append(f"+{rule.an_hour:g}/h +{rule.slack:g}")
    if rule.most < math.inf:
        parts.append(f"<= {rule.most:.4g}")
    return ", ".join(parts)
