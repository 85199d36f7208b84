"""What is wrong with a configuration file: each complaint with its place, all of them at once.

While a file is read, places are paths of keys; only when something is wrong do they become lines.
A complaint that comes from `[defaults]` belongs to no service, so that it is made once.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection
from pathlib import Path

import msgspec

from registry.config.lines import Place, line_of, lines_of

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


class Complaint(msgspec.Struct, frozen=True):
    """One thing wrong. `line` counts from 1; 0 where it concerns the file as a whole."""

    file: str
    line: int
    service: str | None
    key: str | None
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        service = f"service '{self.service}'" if self.service else ""
        return _one_line(": ".join(part for part in (place, service, self.message) if part))


def _one_line(sentence: str) -> str:
    """`sentence` with what would break its line, or a terminal, written as an escape."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in sentence)


class ConfigError(Exception):
    """A file that cannot be used, with everything that is wrong with it."""

    def __init__(self, *complaints: Complaint) -> None:
        super().__init__("\n".join(map(str, complaints)))
        self.complaints = complaints


class _Fault(msgspec.Struct, frozen=True):
    """A complaint before its line is known."""

    place: Place
    service: str | None
    key: str
    message: str


class Sheet:
    """Collects what is wrong while one file is read."""

    def __init__(self, file: Path, text: str) -> None:
        self._file = file
        self._text = text
        self._faults: list[_Fault] = []

    def refuse(self, place: Place, service: str | None, message: str) -> None:
        """Note that the value at `place` is wrong; `message` goes on after the key."""
        key = dotted(place)
        self.note(place, service, f"{key}: {message}" if key else message)

    def note(self, place: Place, service: str | None, message: str) -> None:
        """Note something wrong at `place` in a sentence that stands on its own."""
        owner = None if place[:1] == ("defaults",) else service
        self._faults.append(_Fault(place, owner, dotted(place), message))

    def complaints(self) -> tuple[Complaint, ...]:
        """Everything noted, once each, in the order of the file."""
        if not self._faults:
            return ()
        file, lines = str(self._file), lines_of(self._text)
        found = [
            Complaint(
                file, line_of(lines, each.place), each.service, each.key or None, each.message
            )
            for each in dict.fromkeys(self._faults)
        ]
        return tuple(sorted(found, key=lambda complaint: complaint.line))


def dotted(place: Place) -> str:
    """`place` as people write it: without the number of the service or of the check."""
    within = place[2:] if place[:1] == ("service",) else place
    return ".".join(_shown(part) for part in within if isinstance(part, str))


def _shown(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else json.dumps(key)


def suggestion(word: str, known: Collection[str]) -> str:
    """`, did you mean 'x'?`, or what there is where nothing is like `word`."""
    by_lower = {each.lower(): each for each in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1)
    if close:
        return f", did you mean '{by_lower[close[0]]}'?"
    return f"; known here: {', '.join(known)}"
