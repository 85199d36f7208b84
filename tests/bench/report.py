"""What a run came to, as tables of text, and the curves of growth as a picture (with matplotlib, if it is there)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.bench.figures import OURS, Compared, Figure, Point, Results, times

WITHOUT_PLOT = "There is no plot: matplotlib is missing; pip install 'circleosd-service-registry[plots]' gets it."
NOTHING = "-"
MEASURED = "<!-- measured: everything below is written by tools/dev bench --results -->"


def tables(results: Results) -> str:
    """Everything of a run: the machine, each thing measured of everybody, the bounds, what was left out."""
    parts = ["\n".join(f"{name}: {value}" for name, value in results.machine.items())]
    seen: dict[tuple[str, str], list[Figure]] = {}
    for figure in results.figures:
        seen.setdefault((figure.benchmark, figure.what), []).append(figure)
    parts += [_of_everybody(*key, figures) for key, figures in seen.items()]
    if results.points:
        parts.append(_growth(results.points))
    if results.bounds:
        parts.append(_bounds(results))
    if results.skipped:
        parts.append("\n".join(["Left out:", *(f"  {each}".rstrip() for each in results.skipped)]))
    return "\n\n".join(parts)


def ratios(results: Results) -> str:
    """A table in Markdown: of each thing measured of rivals, too, ours as a multiple of theirs; 1 is the same."""
    ours = [figure for figure in results.figures if figure.who == OURS]
    whom = list(dict.fromkeys(each.who for each in results.figures if each.who != OURS))
    rows = []
    for figure in ours:
        theirs = {each.who: each.p50 for each in results.whom(figure.what)}
        cells = [
            number(times(figure.p50, theirs[who])) if who in theirs else NOTHING for who in whom
        ]
        if any(cell != NOTHING for cell in cells):
            rows.append(
                f"| {figure.what} | {number(figure.p50)} {figure.unit} | {' | '.join(cells)} |"
            )
    if not rows:
        return ""
    head = f"| ours : theirs, medians | ours | {' | '.join(whom)} |\n| --- | ---: |{' ---: |' * len(whom)}"
    return "\n".join([head, *rows])


def page(results: Results, before: str) -> str:
    """RESULTS.md: what is written by hand above MEASURED in `before` stays, the tables of this run follow."""
    by_hand = before.partition(MEASURED)[0].rstrip()
    machine = ", ".join(f"{name}: {value}" for name, value in results.machine.items())
    told = [f"{by_hand}\n\n{MEASURED}\n\nMeasured on {machine}."]
    told.append(ratios(results))
    rows = [
        f"| {each.name} | {number(each.measured)} {each.unit} |"
        f" {'at least' if each.at_least else 'at most'} {number(each.bound)} {each.unit} |"
        f" {number(each.ratio)} | {each.verdict} |"
        for each in results.bounds
    ]
    if rows:
        head = "| bound | measured | asked | used | |\n| --- | ---: | ---: | ---: | --- |"
        told.append("\n".join([head, *rows]))
    return "\n\n".join([*filter(None, told), f"```text\n{tables(results)}\n```\n"])


def _of_everybody(benchmark: str, what: str, figures: Sequence[Figure]) -> str:
    """One thing: the median and spread of each, and ours as a multiple of each."""
    ours = next((figure for figure in figures if figure.who == OURS), None)
    rows = [
        (
            figure.who,
            *map(number, (figure.p50, figure.least, figure.p99, figure.most)),
            str(figure.n),
            number(times(ours.p50, figure.p50)) if ours and figure is not ours else "",
            figure.note,
        )
        for figure in figures
    ]
    unit = figures[0].unit
    head = ("who", f"p50 ({unit})", "least", "p99", "most", "n", "ours : it", "")
    return f"{benchmark}: {what}\n{aligned([head, *rows])}"


def _bounds(results: Results) -> str:
    head = ("bound", "measured", "", "asked", "used", "verdict")
    rows = [
        (
            each.name,
            number(each.measured),
            each.unit,
            f"{'>=' if each.at_least else '<='} {number(each.bound)}",
            number(each.ratio),
            f"{each.verdict}{f': {each.why}' if each.why else ''}",
        )
        for each in results.bounds
    ]
    return f"Bounds (used: the part of what is allowed; up to 1 is well)\n{aligned([head, *rows])}"


def _growth(points: Sequence[Point]) -> str:
    """Each curve at each size, and by what it grows for ten times as many (1 is flat, 10 is linear)."""
    curves: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        curves.setdefault((point.curve, point.unit), []).append(point)
    rows = [("curve", "at", "value", "", "for ten times as many")]
    for (curve, unit), each in curves.items():
        grown = ["", *(number(_tenfold(a, b)) for a, b in pairwise(each))]
        rows += [
            (curve, number(point.x), number(point.y), unit, growth)
            for point, growth in zip(each, grown, strict=True)
        ]
    return f"growth\n{aligned(rows)}"


def _tenfold(before: Point, after: Point) -> float | None:
    """The growth from one point to the next, as if there were ten times as many."""
    from math import log10

    steps = log10(after.x / before.x) if before.x > 0 else 0
    return (after.y / before.y) ** (1 / steps) if before.y > 0 and after.y > 0 and steps else None


def comparison(rows: Sequence[Compared]) -> str:
    """Each row beside the one of the earlier run."""
    head = ("what", "before", "now", "", "now : before")
    shown = [
        (row.name, number(row.before), number(row.now), row.unit, number(row.change))
        for row in rows
    ]
    return f"Compared with the earlier run\n{aligned([head, *shown])}"


def number(value: float | None) -> str:
    """With four digits that matter."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side: the first to the left, as is the last, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    last = len(widths) - 1
    lines = [
        "  ".join(
            cell.ljust(width) if column in (0, last) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(f"  {line}" for line in lines)


def plot(points: Sequence[Point], path: Path) -> bool:
    """Draw every curve of growth on logarithmic axes; False where matplotlib is missing."""
    try:
        matplotlib: Any = import_module("matplotlib")
    except ImportError:
        return False
    matplotlib.use("Agg")
    pyplot: Any = import_module("matplotlib.pyplot")
    names = list(dict.fromkeys((point.curve, point.unit) for point in points))
    rows = (len(names) + 2) // 3
    figure, axes = pyplot.subplots(rows, 3, figsize=(13, 3.6 * rows), squeeze=False)
    for axis, (curve, unit) in zip(axes.flat, names, strict=False):
        each = [point for point in points if point.curve == curve]
        axis.plot([p.x for p in each], [p.y for p in each], marker="o", color="#1f5fa8")
        axis.set(xscale="log", yscale="log", title=curve, ylabel=unit)
        axis.grid(visible=True, which="major", alpha=0.3)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True
