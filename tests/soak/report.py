"""What a soak came to: the table, the same as JSON, and the plot (with matplotlib, which only the plot needs)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tests.soak.rules import Verdict
from tests.soak.sight import Process, Sight
from tests.soak.soak import Outcome

WITHOUT_PLOT = "There is no plot: matplotlib is missing; pip install 'circleosd-service-registry[plots]' gets it."
COLOURS = {"daemon": "#1f5fa8", "keeper": "#d9822b", "all": "#3b7d4f", "other": "#8e5ea2"}
MARKS = {"daemon killed": "#c0392b", "keeper killed": "#d9822b", "upgrade": "#7d3c98"}
"""The moments that are lines from top to bottom; applies are ticks at the foot."""

Point = tuple[float, float]


class Line(NamedTuple):
    """One series of a panel: minutes and values; a gap where `None` would be."""

    name: str
    colour: str
    points: list[Point]


class Panel(NamedTuple):
    """One of the small pictures: what runs on all the time as lines, quiet moments as dots of the same name.

    `is_wide`: small and large values are both to be seen.
    """

    title: str
    unit: str
    lines: list[Line]
    dots: list[Line]
    is_wide: bool = False


# --- table and JSON -------------------------------------------------------------------------------


def table(verdicts: Sequence[Sequence[Verdict]], ill: Sequence[str]) -> str:
    """A line for each promise, of the life that it was judged worst in; then what does not hold, in words."""
    head = ("what", "life", "n", "first", "median", "last", "an hour", "bound", "verdict")
    rows = [head, *(_row(of_lives[0]) for of_lives in verdicts if of_lives)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [_aligned(row, widths) for row in rows]
    broken = [each for of_lives in verdicts for each in of_lives if not each.holds]
    words = [f"NOT SO: {each.sentence} ({each.subject}: {each.broken})" for each in broken]
    return "\n".join([*lines, "", *words, *(f"NOT SO: {each}" for each in ill)]).rstrip()


def _row(verdict: Verdict) -> tuple[str, ...]:
    slope = verdict.slope_an_hour
    return (
        f"{verdict.name}{f' ({verdict.unit})' if verdict.unit else ''}",
        verdict.subject,
        str(verdict.moments),
        *(f"{value:.5g}" for value in (verdict.first, verdict.median, verdict.last)),
        "too few" if slope is None else f"{slope:+.3g}",
        verdict.bound,
        "holds" if verdict.holds else "BROKEN",
    )


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        cell.rjust(width) if 2 <= column <= 6 else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def as_json(outcome: Outcome, verdicts: Iterable[Sequence[Verdict]]) -> bytes:
    """The outcome with every verdict, of every life."""
    flat = [each for of_lives in verdicts for each in of_lives]
    return msgspec.json.encode({**msgspec.structs.asdict(outcome), "verdicts": flat})


# --- the plot -------------------------------------------------------------------------------------


def panels(outcome: Outcome) -> list[Panel]:
    """What the plot shows."""
    sights, quiets = outcome.sights, outcome.quiets
    both = ("daemon", "keeper")

    def held(of: Callable[[Process], float]) -> list[Line]:
        return [_line(name, sights, name, of) for name in both]

    def calm(of: str, scale: float = 1.0) -> list[Line]:
        return [
            Line(name, COLOURS[name], [
                (q.at_s / 60, getattr(getattr(q, name), of) * scale) for q in quiets
            ])
            for name in both
        ]  # fmt: skip

    def folder(name: str, colour: str, of: Callable[[Sight], float]) -> Line:
        return Line(name, COLOURS[colour], [(s.at_s / 60, of(s)) for s in sights])

    per_event = [(q.at_s / 60, q.journal_bytes / max(1, q.events)) for q in quiets]
    return [
        Panel("Open descriptors", "descriptors", held(lambda p: sum(p.descriptors.values())), calm("descriptors")),
        Panel("Memory (PSS)", "MB", held(lambda p: p.pss_kib * 1.024e-3), calm("pss_kib", 1.024e-3)),
        Panel("Threads", "threads", held(lambda p: p.threads), calm("threads")),
        Panel("Wakeups", "a second", _rates(sights, lambda p: p.switches), calm("wakeups_s"), is_wide=True),
        Panel("CPU", "% of one core", _rates(sights, lambda p: p.cpu_s * 100), calm("cpu_ms_s", 0.1), is_wide=True),
        Panel("Children of the daemon", "processes",
              [_line("children", sights, "daemon", lambda p: p.children),
               _line("zombies", sights, "daemon", lambda p: p.zombies, "other")], []),
        Panel("Journal", "MB", [folder("pages", "all", lambda s: s.journal_bytes / 1e6),
                                folder("write-ahead log", "other", lambda s: s.wal_bytes / 1e6)], []),
        Panel("Journal per event", "bytes", [], [Line("pages", COLOURS["all"], per_event)]),
        Panel("Events", "a second", [Line("events", COLOURS["all"], _event_rates(sights))],
              [Line("events", COLOURS["all"], [(q.at_s / 60, q.events_s) for q in quiets])]),
        Panel("Logs", "MB", [folder("folder", "all", lambda s: s.log_bytes / 1e6)], []),
    ]  # fmt: skip


def _line(
    name: str,
    sights: Sequence[Sight],
    whose: str,
    of: Callable[[Process], float],
    colour: str = "",
) -> Line:
    seen = ((each.at_s / 60, getattr(each, whose)) for each in sights)
    points = [(at, of(process)) for at, process in seen if process is not None]
    return Line(name, COLOURS[colour or whose], points)


def _rates(sights: Sequence[Sight], of: Callable[[Process], float]) -> list[Line]:
    """How much more of it there is a second, between two looks at the same process."""
    return [Line(name, COLOURS[name], _rate(sights, name, of)) for name in ("daemon", "keeper")]


def _rate(sights: Sequence[Sight], whose: str, of: Callable[[Process], float]) -> list[Point]:
    found = []
    for one, other in pairwise(sights):
        before, after = getattr(one, whose), getattr(other, whose)
        if before is not None and after is not None and before.key == after.key:
            passed_s = max(0.05, other.at_s - one.at_s)
            found.append((other.at_s / 60, max(0.0, of(after) - of(before)) / passed_s))
    return found


def _event_rates(sights: Sequence[Sight]) -> list[Point]:
    return [
        (two.at_s / 60, max(0, two.events - one.events) / max(0.05, two.at_s - one.at_s))
        for one, two in pairwise(sights)
    ]


def plot(outcome: Outcome, path: Path) -> bool:
    """Draw it as PNG; whether there is the library for it."""
    try:
        canvases = import_module("matplotlib.backends.backend_agg")
        figures = import_module("matplotlib.figure")
    except ImportError:
        return False
    shown = panels(outcome)
    figure = figures.Figure(figsize=(14, 3.1 * ((len(shown) + 1) // 2) + 1.2), layout="constrained")
    canvases.FigureCanvasAgg(figure)
    axes = figure.subplots((len(shown) + 1) // 2, 2, sharex=True)
    for ax, panel in zip(axes.flat, shown, strict=False):
        _draw(ax, panel, outcome)
    for ax in axes[-1]:
        ax.set_xlabel("minutes since the start")
    figure.suptitle(
        f"Soak of {outcome.services} services, {outcome.seconds / 60:.0f} minutes, seed {outcome.seed}\n"
        "lines: all the time; dots: quiet moments, which are judged",
        fontsize=13,
    )
    figure.legend(handles=_legend(), loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(path, dpi=110)
    return True


def _draw(ax: Any, panel: Panel, outcome: Outcome) -> None:
    for line in panel.lines:
        xs, ys = zip(*line.points, strict=True) if line.points else ((), ())
        ax.plot(xs, ys, color=line.colour, linewidth=0.8, alpha=0.45 if panel.dots else 0.9)
    for line in panel.dots:
        xs, ys = zip(*line.points, strict=True) if line.points else ((), ())
        ax.plot(xs, ys, "o", color=line.colour, markersize=3.5)
    for line in panel.lines or panel.dots:
        ax.plot([], [], color=line.colour, linewidth=3, label=line.name)
    for at_s, what in outcome.marks:
        if what in MARKS:
            ax.axvline(at_s / 60, color=MARKS[what], linewidth=0.8, linestyle=":", zorder=0)
        else:
            ax.plot([at_s / 60], [0.015], "|", color="#999999", markersize=5,
                    transform=ax.get_xaxis_transform())  # fmt: skip
    ax.set_title(panel.title, loc="left", fontsize=11)
    ax.set_ylabel(panel.unit)
    if panel.is_wide:
        ax.set_yscale("symlog", linthresh=1)
        ax.yaxis.set_major_formatter("{x:g}")
    ax.set_ylim(bottom=0)
    ax.grid(axis="y", color="#e4e4e4", linewidth=0.7)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="upper right", bbox_to_anchor=(1, 1.16), ncols=2, fontsize=8, frameon=False)


def _legend() -> list[Any]:
    line = import_module("matplotlib.lines").Line2D
    lines = [line([], [], color=MARKS[what], linestyle=":", label=what) for what in MARKS]
    return [*lines, line([], [], color="#999999", marker="|", linestyle="", label="apply")]
