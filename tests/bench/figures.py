"""Numbers of a run: what was measured, of whom, and how that stands to a bound, to the floor and to an earlier run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

OURS = "registry"
FLOOR = "floor"
KEEPING_FLOOR = "floor, gated and durable"
"""The floor of who promises what we promise: nothing executes before it is on the disk."""
OK, NOT, UNKNOWN = "ok", "NOT", "not measured"


class Figure(msgspec.Struct, frozen=True):
    """One thing measured of one supervisor: a median, and how far the samples lie apart."""

    benchmark: str
    what: str
    who: str
    unit: str
    n: int
    least: float
    p50: float
    p99: float
    most: float
    note: str = ""


class Bound(msgspec.Struct, frozen=True):
    """What issue 6 asks: `measured` is to be at most `bound`, or at least, in `unit`. Why not, where it is None."""

    benchmark: str
    name: str
    measured: float | None
    bound: float
    unit: str
    at_least: bool = False
    why: str = ""

    @property
    def ratio(self) -> float | None:
        """How much of what is allowed is used: up to 1 is well, whichever way the bound looks."""
        if self.measured is None:
            return None
        given, taken = (self.measured, self.bound) if self.at_least else (self.bound, self.measured)
        if given == 0:
            return 0.0 if taken == 0 else float("inf")
        return taken / given

    @property
    def verdict(self) -> str:
        """`ok`, `NOT`, or `not measured`."""
        if self.ratio is None:
            return UNKNOWN
        return OK if self.ratio <= 1 else NOT


class Point(msgspec.Struct, frozen=True):
    """One point of a curve of growth."""

    curve: str
    unit: str
    x: float
    y: float


class Results(msgspec.Struct):
    """Everything of one run."""

    machine: dict[str, str]
    figures: list[Figure] = []
    bounds: list[Bound] = []
    points: list[Point] = []
    skipped: list[str] = []

    def add(
        self,
        benchmark: str,
        what: str,
        who: str,
        unit: str,
        samples: Iterable[float],
        note: str = "",
    ) -> Figure | None:
        """Note samples of one thing; None where there is none."""
        values = sorted(samples)
        if not values:
            self.skip(f"{benchmark}: {what} of {who}: no sample{f' ({note})' if note else ''}")
            return None
        figure = Figure(
            benchmark,
            what,
            who,
            unit,
            len(values),
            values[0],
            percentile(values, 50),
            percentile(values, 99),
            values[-1],
            note,
        )
        self.figures.append(figure)
        return figure

    def bound(
        self,
        benchmark: str,
        name: str,
        measured: float | None,
        bound: float,
        unit: str,
        *,
        at_least: bool = False,
        why: str = "",
    ) -> None:
        """Note how one bound was kept."""
        self.bounds.append(Bound(benchmark, name, measured, bound, unit, at_least, why))

    def skip(self, what: str) -> None:
        """Note what was not measured, and why."""
        if what not in self.skipped:
            self.skipped.append(what)

    def find(self, what: str, who: str) -> Figure | None:
        """A figure of this run."""
        return next((f for f in self.figures if (f.what, f.who) == (what, who)), None)

    def reference(self, what: str, wanted: str, otherwise: str = FLOOR) -> Figure | None:
        """The figure of the one that a bound speaks of, or of the other where that one is not here."""
        return self.find(what, wanted) or self.find(what, otherwise)

    def whom(self, what: str) -> list[Figure]:
        """Everybody's figures of one thing, in the order in which they were measured."""
        return [figure for figure in self.figures if figure.what == what]


class Compared(msgspec.Struct, frozen=True):
    """One row beside the same one of an earlier run; None where a run has none."""

    name: str
    unit: str
    before: float | None
    now: float | None

    @property
    def change(self) -> float | None:
        """Now, as a multiple of before."""
        if self.before is None or self.now is None or self.before == 0:
            return None
        return self.now / self.before


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of values in order, by linear interpolation. Raises IndexError where there are none."""
    at = (len(ordered) - 1) * percent / 100
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def times(ours: float, theirs: float) -> float | None:
    """Ours as a multiple of theirs; None where theirs is nothing."""
    return ours / theirs if theirs else None


def compare(before: Results, now: Results) -> list[Compared]:
    """Every bound and every figure of ours, in the order of this run; then what only the earlier run has."""
    old, new = _values(before), _values(now)
    names = dict.fromkeys([*new, *old])
    return [Compared(*name, old.get(name), new.get(name)) for name in names]


def _values(results: Results) -> dict[tuple[str, str], float | None]:
    bounds = {(bound.name, bound.unit): bound.measured for bound in results.bounds}
    figures: dict[tuple[str, str], float | None] = {
        (figure.what, figure.unit): figure.p50 for figure in results.figures if figure.who == OURS
    }
    return bounds | figures


def write(results: Results, path: Path) -> None:
    """As JSON."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results)))


def read(path: Path) -> Results:
    """Raises OSError, msgspec.MsgspecError where there is no earlier run."""
    return msgspec.json.decode(path.read_bytes(), type=Results)
