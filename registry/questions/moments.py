"""Times as people write them on the command line.

A time stands for all that it names: 03:14:07 is that whole second, 03:14:07.25 that hundredth, so that a
time copied from an answer takes in the event that it was copied from. Seconds left out are :00.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import NamedTuple

_NS = 1_000_000_000
SEQ = "seq:"
"""What stands before the number of an event."""
_SEQ = re.compile(rf"{SEQ}(\d{{1,18}})")
_INTEGER_MIN, _INTEGER_MAX = -(2**63), 2**63 - 1  # what a journal can hold

_CLOCK = re.compile(
    r"(?:(?P<date>\d{4}-\d\d-\d\d)[T ])?(?P<time>\d\d:\d\d(?::\d\d(?:\.(?P<fraction>\d{1,9}))?)?)"
    r"(?P<zone>Z|[+-]\d\d:\d\d)?",
    re.IGNORECASE,
)
_AGO = re.compile(r"(?P<count>\d{1,18}(?:\.\d{1,18})?) *(?P<unit>[a-z]+) +ago", re.IGNORECASE)
_UNITS_S = {
    unit: seconds
    for seconds, units in {
        1: ("s", "sec", "secs", "second", "seconds"),
        60: ("m", "min", "mins", "minute", "minutes"),
        3600: ("h", "hour", "hours"),
        86400: ("d", "day", "days"),
    }.items()
    for unit in units
}

EXAMPLES = "2026-01-02T03:04:05Z, '2026-01-02 03:04:05', 03:14, 03:14:07, '2 hours ago', '5m ago'"
"""One of each form."""


class Moment(NamedTuple):
    """From the first to the last nanosecond (UTC) of what a text names."""

    first_ns: int
    last_ns: int


At = Moment | int
"""A moment, or the number of the event that was the last one then."""

AT_EXAMPLES = f"{EXAMPLES}, seq:57"
"""One of each form of that."""


def at(text: str, now_ns: int) -> At | None:
    """The moment or event that a text names, seen from `now_ns` (UTC); None where it names none."""
    match = _SEQ.fullmatch(text.strip())
    return int(match[1]) if match else moment(text, now_ns)


def moment(text: str, now_ns: int) -> Moment | None:
    """The moment that a text names, seen from `now_ns` (UTC); None where it names none."""
    if match := _AGO.fullmatch(text.strip()):
        return _ago(match, now_ns)
    match = _CLOCK.fullmatch(text.strip())
    return _on_the_clock(match, now_ns) if match else None


def swapped(since: Moment | None, until: Moment | None) -> str | None:
    """A sentence where a period would begin after its end."""
    if since is None or until is None or since.first_ns <= until.last_ns:
        return None
    return "since is later than until: write the earlier time as since"


def _ago(match: re.Match[str], now_ns: int) -> Moment | None:
    unit_s = _UNITS_S.get(match["unit"].lower())
    if unit_s is None:
        return None
    at_ns = _bounded(now_ns - int(float(match["count"]) * unit_s * _NS))
    return Moment(at_ns, at_ns)


def _on_the_clock(match: re.Match[str], now_ns: int) -> Moment | None:
    if match["zone"] and not match["date"]:
        return None
    date = match["date"] or datetime.fromtimestamp(now_ns // _NS, UTC).date().isoformat()
    try:
        seconds = datetime.fromisoformat(
            f"{date}T{match['time'][:8]}{(match['zone'] or 'Z').upper()}"
        )
        whole_ns = int(seconds.timestamp()) * _NS
    except (ValueError, OverflowError):
        return None
    fraction = match["fraction"] or ""
    first_ns = whole_ns + int(fraction.ljust(9, "0"))
    span_ns = 10 ** (9 - len(fraction))
    return Moment(_bounded(first_ns), _bounded(first_ns + span_ns - 1))


def _bounded(at_ns: int) -> int:
    return max(_INTEGER_MIN, min(at_ns, _INTEGER_MAX))
