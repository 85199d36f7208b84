"""A stretch of a journal as one HTML file: the lanes as columns of small numbers, which compress well.

story.js of the page reads what is written here. Most numbers are differences to the one before; texts are
kept once, and those of events without their numbers, as `exited with code # (run #)`.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

from registry import page
from registry.questions.lanes import FIELDS, Change, Happening, Kind, Lanes

from .svg import picture

_NUMBER = re.compile(r"(?<!\d)(?:0|[1-9]\d{0,8})(?!\d)", re.ASCII)
_HOLE = "\0"
"""Where a number was: no event's words hold it, as all that cannot be printed is escaped in them."""

_STILL_LANES_MAX = 20
_LINE_MAX = 500
"""Characters of a line of a log that are kept."""


class Line(NamedTuple):
    """A line of a service's log, and when it was written (microseconds, UTC)."""

    service: str
    at_us: int
    text: str


def html(found: Lanes, *, title: str, lines: Sequence[Line] = ()) -> str:
    """The report on what was found, with lines of logs in the order of time."""
    still = picture(found, title=title, lanes_max=_STILL_LANES_MAX)
    return page.document(story(found, lines), title=title, still=still)


class _Numbered(dict[Hashable, int]):
    """What was asked for, each with a number of its own, from 0."""

    def __missing__(self, key: Hashable) -> int:
        self[key] = number = len(self)
        return number


def story(found: Lanes, lines: Sequence[Line] = ()) -> dict[str, Any]:
    """The columns. `services` begins with those that have a lane, in order."""
    names, whats, words = _Numbered(), _Numbered(), _Numbered()
    for lane in found.lanes:
        names[lane.name]
    return {
        "journal": found.journal_id,
        "lanes": len(found.lanes),
        "events": _events(found.events, names, whats),
        "elsewhere": _events(found.elsewhere, names, whats),
        "fields": {
            field.name: {"kind": field.kind, **_field(at, found, words)}
            for at, field in enumerate(FIELDS)
        },
        "written": _written(lines, names),
        "lines": [
            [at, *map(page.readable, event.lines)]
            for at, event in enumerate(found.events)
            if event.lines
        ],
        "kinds": list(Kind),
        "services": [page.readable(str(name)) for name in names],
        "whats": list(whats),
        "words": [page.readable(str(word)) for word in words],
    }


# --- events ---------------------------------------------------------------------------------------


def _events(events: Sequence[Happening], names: _Numbered, whats: _Numbered) -> dict[str, Any]:
    """`numbers` are those of all texts; `shift` is by how much the axis differs from the clock."""
    runs: dict[str | None, int] = {}
    columns: dict[str, list[int]] = {
        name: [] for name in ("seq", "at", "shift", "service", "run", "what", "cause", "numbers")
    }
    seq = at_us = 0
    for event in events:
        text = _NUMBER.sub(_HOLE, event.text)
        run, before = event.run or 0, runs.get(event.service, 0)
        columns["seq"].append(event.seq - seq)
        columns["at"].append(event.at_us - at_us)
        columns["shift"].append(event.axis_us - event.at_us)
        columns["service"].append(names[event.service] + 1 if event.service is not None else 0)
        columns["run"].append(run - before)
        columns["what"].append(whats[event.type, event.kind, text])
        columns["cause"].append(event.seq - event.cause if event.cause is not None else 0)
        columns["numbers"] += map(int, _NUMBER.findall(event.text))
        seq, at_us, runs[event.service] = event.seq, event.at_us, run
    return columns


def _written(lines: Sequence[Line], names: _Numbered) -> dict[str, list[Any]]:
    """Lines of logs; what is very long is cut."""
    places = [line.at_us for line in lines]
    return {
        "service": [names[line.service] for line in lines],
        "at": [at_us - before for before, at_us in zip([0, *places], places, strict=False)],
        "text": [
            page.readable(line.text if len(line.text) <= _LINE_MAX else f"{line.text[:_LINE_MAX]}…")
            for line in lines
        ],
    }


# --- what was -------------------------------------------------------------------------------------


def _field(at: int, found: Lanes, words: _Numbered) -> dict[str, list[Any]]:
    """One field of all lanes: how many changes each has, after which event each was, to what."""
    column: dict[str, list[Any]] = {"counts": [], "at": [], "to": []}
    encode = {"word": _word, "number": _number, "time": _time}[FIELDS[at].kind]
    for lane in found.lanes:
        changes = lane.changes[at]
        column["counts"].append(len(changes))
        column["at"] += _differences(changes)
        column["to"] += (encode(change, found, words) for change in changes)
    return column


def _differences(changes: Sequence[Change]) -> list[int]:
    places = [index + 1 for index, _ in changes]
    return [place - before for before, place in zip([0, *places], places, strict=False)]


def _word(change: Change, _found: Lanes, words: _Numbered) -> int:
    text = change[1]
    return 0 if text is None else words[str(text)] + 1


def _number(change: Change, _found: Lanes, _words: _Numbered) -> int:
    number = change[1]
    return 0 if number is None else int(number) + 1


def _time(change: Change, found: Lanes, _words: _Numbered) -> int | None:
    """By how much it is later than the event."""
    index, at_us = change
    return None if at_us is None else int(at_us) - found.events[max(index, 0)].at_us
