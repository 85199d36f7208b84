"""The lanes as a still picture, for a chat message: SVG that needs no script, no font and no network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from html import escape
from typing import NamedTuple

from registry.page import readable
from registry.questions.lanes import (
    HEALTH,
    STATUS,
    TROUBLE,
    Kind,
    Lane,
    Lanes,
    Stretch,
    stretches,
)

LANES_MAX = 40
_WIDTH, _MARGIN, _TOP = 1200, 24, 64
_NAME_CHARS_MAX = 28
_CHAR = 6.7
_SMALL = 6.2
"""Widths of a character of a name and of other words, in pixels."""
_LEAST = 2.0

COLOURS = {
    "Stopped": "#b9c0c8",
    "Running": "#86c7b1",
    "Starting": "#4a9fd8",
    "Restarting": "#a35fc4",
    "Stopping": "#e3a008",
    "Failed": "#c5341a",
}
"""By state, from what matters least to what matters most; told apart also by who sees few colours."""
_INK, _FAINT, _LINE, _SICK = "#1c2329", "#5d6873", "#e3e7eb", "#7a0f4f"
_WORST = {state: rank for rank, state in enumerate(COLOURS)}
_THIN = "Stopped"

_HATCHES = {
    "Starting": "M-2 2L2 -2M0 8L8 0M6 10L10 6",
    "Stopping": "M-2 6L2 10M0 0L8 8M6 -2L10 2",
    "Restarting": "M2 0V8M6 0V8",
}
MARKS = {
    Kind.GAVE_UP: ("gave up", "m-5-5h10v10h-10zm2.5 2.5l5 5m0-5l-5 5"),
    Kind.FAILED: ("failed", "m-4-4l8 8m0-8l-8 8"),
    Kind.UNHEALTHY: ("unhealthy, timed out", "m0-6l6 6l-6 6l-6-6z"),
    Kind.ASKED: ("asked by a person", "m-5-5h10l-5 10z"),
    Kind.RESTART: ("restart", "m-4-5l9 5l-9 5z"),
}
"""The shapes of marked events, the most important first."""
_MARK_WIDTH = 10
_MARKS_MAX = 40
_FILLS = {
    Kind.GAVE_UP: "#fff",
    Kind.FAILED: "none",
    Kind.UNHEALTHY: _SICK,
    Kind.RESTART: _INK,
    Kind.ASKED: "#fff",
}

_HALOED = {Kind.FAILED, Kind.RESTART, Kind.UNHEALTHY}


class _Frame(NamedTuple):
    """Where times and lanes are in the picture."""

    begin_us: int
    end_us: int
    left: float
    row: int

    def x(self, at_us: int) -> float:
        share = (at_us - self.begin_us) / max(self.end_us - self.begin_us, 1)
        return round(self.left + share * (_WIDTH - _MARGIN - self.left), 1)


def picture(found: Lanes, *, title: str, lanes_max: int = LANES_MAX) -> str:
    """The picture: at most `lanes_max` services, those with most trouble; it says what it leaves out."""
    shown = _shown(found, lanes_max)
    names = [_short(lane.name) for lane in shown]
    row = 28 if len(shown) <= 12 else 20
    left = round(_MARGIN + max(map(len, names), default=0) * _CHAR + 14)
    begin_us, end_us = (found.events[at].axis_us for at in (0, -1)) if found.events else (0, 0)
    frame = _Frame(begin_us, end_us, left, row)
    bottom = _TOP + row * len(shown)
    body = [
        *_axis(frame, bottom),
        *_registries(found, frame, bottom),
        *(
            part
            for at, lane in enumerate(shown)
            for part in _lane(found, lane, names[at], at, frame)
        ),
        *_marks(found, shown, frame),
        *_legend(bottom + 44),
        _text(_MARGIN, bottom + 98, _left_out(found, shown), _FAINT),
    ]
    return _document(title, bottom + 114, body)


def _document(title: str, height: int, body: Iterable[str]) -> str:
    name = escape(readable(title))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}"'
            f' height="{height}" role="img" font-family="system-ui, Segoe UI, Helvetica, DejaVu Sans,'
            f' Arial, sans-serif" font-size="12">',
            f"<title>{name}</title>",
            f"<defs>{''.join(_patterns())}</defs>",
            f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
            f'<text x="{_MARGIN}" y="28" font-size="16" font-weight="600" fill="{_INK}">{name}</text>',
            *body,
            "</svg>\n",
        ]
    )


def _patterns() -> Iterator[str]:
    for state, path in _HATCHES.items():
        yield (
            f'<pattern id="{state}" width="8" height="8" patternUnits="userSpaceOnUse">'
            f'<rect width="8" height="8" fill="{COLOURS[state]}"/>'
            f'<path d="{path}" stroke="#fff" stroke-opacity=".55" stroke-width="1.6"/></pattern>'
        )


def _fill(state: str) -> str:
    return f"url(#{state})" if state in _HATCHES else COLOURS[state]


# --- which lanes, and what is said of the others --------------------------------------------------


def _shown(found: Lanes, lanes_max: int) -> list[Lane]:
    if len(found.lanes) <= lanes_max:
        return found.lanes
    trouble = Counter(event.service for event in found.events if event.kind in TROUBLE)
    busy = Counter(event.service for event in found.events)
    by_trouble = sorted(found.lanes, key=lambda each: (-trouble[each.name], -busy[each.name]))
    worst = {lane.name for lane in by_trouble[:lanes_max]}
    return [lane for lane in found.lanes if lane.name in worst]


def _left_out(found: Lanes, shown: Sequence[Lane]) -> str:
    lines = f"{_count(len(found.lanes), 'service')}, {_count(len(found.events), 'event')}"
    if len(shown) == len(found.lanes):
        return lines
    names = {lane.name for lane in shown}
    others = {
        event.service
        for event in found.events
        if event.kind in TROUBLE and event.service is not None
    } - names
    rest = f"{_count(len(found.lanes) - len(shown), 'service')} with less trouble left out"
    had = f", {len(others)} of them had some" if others else " (none of them had any)"
    return f"{lines}; {rest}{had}"


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _short(name: str) -> str:
    name = readable(name)
    return name if len(name) <= _NAME_CHARS_MAX else f"{name[: _NAME_CHARS_MAX - 1]}…"


# --- a lane ---------------------------------------------------------------------------------------


def _lane(found: Lanes, lane: Lane, name: str, at: int, frame: _Frame) -> Iterator[str]:
    top = _TOP + at * frame.row
    yield (
        f'<text x="{frame.left - 10}" y="{top + frame.row / 2 + 4:g}" text-anchor="end" fill="{_INK}">'
        f"{escape(name)}</text>"
    )
    boxes: dict[str, list[str]] = {}
    words: list[str] = []
    for begin, end, state in _by_pixel(stretches(found, lane, STATUS), frame):
        height = 4 if state == _THIN else frame.row - 8
        y = top + (frame.row - height) / 2
        boxes.setdefault(_fill(state), []).append(_box(begin, y, end - begin, height))
        if end - begin > len(state) * _CHAR + 14 and state != _THIN:
            light = "#fff" if state in ("Failed", "Restarting") else _INK
            words.append(_text(begin + 9, y + height / 2 + 4, state, light, halo=state in _HATCHES))
    sick = [
        _box(begin, top + frame.row - 4, end - begin, 3)
        for begin, end, _ in _by_pixel(_sick(found, lane), frame)
    ]
    boxes |= {_SICK: sick} if sick else {}
    yield from (f'<path fill="{fill}" d="{"".join(parts)}"/>' for fill, parts in boxes.items())
    yield from words


def _sick(found: Lanes, lane: Lane) -> Iterator[Stretch]:
    return (each for each in stretches(found, lane, HEALTH) if each.value == "unhealthy")


def _by_pixel(found: Iterable[Stretch], frame: _Frame) -> Iterator[tuple[float, float, str]]:
    """Boxes of some width, however short what they show was: of what is within one, the worst is shown."""
    held: tuple[float, float, str] | None = None
    for stretch in found:
        begin, end, state = frame.x(stretch.begin_us), frame.x(stretch.end_us), str(stretch.value)
        if held is not None and end <= held[1]:
            if held[1] - held[0] <= _LEAST:
                held = held[0], held[1], max(held[2], state, key=lambda each: _WORST.get(each, 0))
            continue
        if held is not None:
            begin = max(begin, held[1])
            yield held
        held = (begin, max(end, begin + _LEAST), state)
    if held is not None:
        yield held


def _box(x: float, y: float, width: float, height: float) -> str:
    return f"M{x:g} {y:g}h{width:.1f}v{height:g}h-{width:.1f}z"


def _text(x: float, y: float, text: str, fill: str, *, halo: bool = False) -> str:
    edge = ""
    if halo:
        other = "#fff" if fill == _INK else _INK
        edge = f' stroke="{other}" stroke-width="2.5" stroke-opacity=".6" paint-order="stroke"'
    return f'<text x="{x:g}" y="{y:g}" font-size="11" fill="{fill}"{edge}>{escape(text)}</text>'


def _marks(found: Lanes, shown: Sequence[Lane], frame: _Frame) -> Iterator[str]:
    """The marked events; where they would lie on each other only the most important one."""
    rows = {lane.name: at for at, lane in enumerate(shown)}
    places: dict[tuple[int, int], tuple[int, float]] = {}
    order = [*MARKS]
    for event in found.events:
        if event.kind in MARKS and event.service in rows:
            x = frame.x(event.axis_us)
            key = rows[event.service], int(x // _MARK_WIDTH)
            rank = order.index(event.kind)
            if key not in places or places[key][0] > rank:
                places[key] = rank, x
    by_row: dict[int, list[tuple[int, float]]] = {}
    for (row, _), place in places.items():
        by_row.setdefault(row, []).append(place)
    drawn = [(rank, x, row) for row, all_ in by_row.items() for rank, x in _thinned(all_)]
    for rank, kind in reversed([*enumerate(order)]):
        if at := [(x, row) for each, x, row in drawn if each == rank]:
            yield _mark(kind, [(x, _TOP + (row + 0.5) * frame.row) for x, row in at])


def _thinned(places: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Where marks would hide their lane: without those of kinds that its colours show as well."""
    for kind in (Kind.RESTART, Kind.FAILED, Kind.ASKED, Kind.UNHEALTHY):
        if len(places) <= _MARKS_MAX:
            break
        places = [place for place in places if place[0] != [*MARKS].index(kind)]
    return places


def _mark(kind: Kind, places: Iterable[tuple[float, float]]) -> str:
    path = "".join(f"M{x:g} {y:g}{MARKS[kind][1]}" for x, y in places)
    halo = (
        f'<path d="{path}" fill="none" stroke="#fff" stroke-width="4"/>' if kind in _HALOED else ""
    )
    return f'{halo}<path d="{path}" fill="{_FILLS[kind]}" stroke="{_INK}" stroke-width="1.6"/>'


# --- axis and legend ------------------------------------------------------------------------------

_STEPS_S: tuple[float, ...] = (
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.5,
    1,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    7200,
    10800,
    21600,
    43200,
    86400,
    172800,
    604800,
    2592000,
)
_TICKS_MAX = 9
_DAY_S = 86400


def _axis(frame: _Frame, bottom: int) -> Iterator[str]:
    span_s = max(frame.end_us - frame.begin_us, 1) / 1e6
    step_s = next((step for step in _STEPS_S if span_s / step <= _TICKS_MAX), span_s)
    step_us = max(round(step_s * 1e6), 1)
    for at_us in range(-(-frame.begin_us // step_us) * step_us, frame.end_us + 1, step_us):
        x = frame.x(at_us)
        yield f'<path d="M{x:g} {_TOP - 4}V{bottom + 4}" stroke="{_LINE}"/>'
        yield (
            f'<text x="{x:g}" y="{bottom + 18}" font-size="11" text-anchor="middle" fill="{_FAINT}">'
            f"{_clock(at_us, step_s)}</text>"
        )
    when = f"{_moment(frame.begin_us)} to {_moment(frame.end_us)} UTC"
    yield _text(_MARGIN, 48, when, _FAINT)


def _registries(found: Lanes, frame: _Frame, bottom: int) -> Iterator[str]:
    """When a registry began or ended; of many at one place, once."""
    types = ("registry_started", "registry_stopped")
    for x in sorted({round(frame.x(e.axis_us)) for e in found.events if e.type in types}):
        yield f'<path d="M{x}.5 {_TOP - 4}V{bottom}" stroke="{_FAINT}" stroke-dasharray="3 3"/>'


def _clock(at_us: int, step_s: float) -> str:
    if step_s >= _DAY_S:
        return _moment(at_us)[:10]
    return _moment(at_us)[11 : 23 if step_s < 1 else 19 if step_s % 60 else 16]


def _moment(at_us: int) -> str:
    return f"{datetime.fromtimestamp(at_us // 1_000_000, UTC):%Y-%m-%d %H:%M:%S}.{at_us // 1000 % 1000:03}"


def _legend(y: int) -> Iterator[str]:
    x: float = _MARGIN
    for state in reversed(COLOURS):
        height = 4 if state == _THIN else 12
        yield f'<rect x="{x:g}" y="{y - height / 2:g}" width="22" height="{height}" fill="{_fill(state)}"/>'
        yield _text(x + 28, y + 4, state, _INK)
        x += 28 + len(state) * _SMALL + 14
    x, y = _MARGIN, y + 22  # in one line with the states they are too wide
    for kind, (words, _) in MARKS.items():
        yield _mark(kind, [(x + 6, y)])
        yield _text(x + 17, y + 4, words, _INK)
        x += 17 + len(words) * _SMALL + 12
    yield f'<path d="M{x + 4:g} {y - 8}v16" stroke="{_FAINT}" stroke-dasharray="3 3"/>'
    yield _text(x + 12, y + 4, "registry began or ended", _INK)
