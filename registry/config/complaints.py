"""What is wrong with a configuration: each complaint with its place, all of them at once.

While files are read, places are paths of keys; only when something is wrong do they become lines.
A complaint that comes from `[defaults]` belongs to no service, so that it is made once.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection
from itertools import zip_longest
from pathlib import Path

import msgspec

from registry.config.lines import Place, line_of, lines_of

_LISTED = "; known here: "
_LIST_REPEATED_MAX = 80
"""Characters of a list of what there is that is told more than once in a file."""
_NUMBERED = "health_check"
"""The key whose tables are told apart by their numbers where it is a list."""
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
    """A configuration that cannot be used, with everything that is wrong with it."""

    def __init__(self, *complaints: Complaint) -> None:
        super().__init__("\n".join(map(str, complaints)))
        self.complaints = complaints


class Source(msgspec.Struct, frozen=True):
    """One file as it was read."""

    file: Path
    text: str


class _Fault(msgspec.Struct, frozen=True):
    """A complaint before its line is known."""

    place: Place
    service: str | None
    key: str
    message: str


class Finder:
    """Where keys stand in the files of a configuration, the main one first; each is scanned when first asked for.

    A place of a drop-in begins with the number of its file; those of the main file (0) with a key.
    """

    def __init__(self, *sources: Source) -> None:
        self._sources = sources
        self._lines: dict[int, dict[Place, int]] = {}

    def line(self, place: Place) -> tuple[int, str, int]:
        """The number of the file, its name, and the line of `place` or of what is around it."""
        number, within = in_file(place)
        return number, str(self._sources[number].file), line_of(self._of(number), within)

    def holds(self, place: Place) -> bool:
        """Whether `place` is written."""
        number, within = in_file(place)
        return within in self._of(number)

    def _of(self, number: int) -> dict[Place, int]:
        if number not in self._lines:
            self._lines[number] = lines_of(self._sources[number].text)
        return self._lines[number]


class Sheet:
    """Collects what is wrong while the files of one configuration are read. Its length is how much."""

    def __init__(self, *sources: Source) -> None:
        self._finder = Finder(*sources)
        self._faults: list[_Fault] = []

    def __len__(self) -> int:
        return len(self._faults)

    def refuse(self, place: Place, service: str | None, message: str) -> None:
        """Note that the value at `place` is wrong; `message` goes on after the key."""
        key = dotted(place)
        self.note(place, service, f"{key}: {message}" if key else message)

    def note(self, place: Place, service: str | None, message: str) -> None:
        """Note something wrong at `place` in a sentence that stands on its own."""
        owner = None if place[:1] == ("defaults",) else service
        self._faults.append(_Fault(place, owner, dotted(place), message))

    def where(self, place: Place) -> str:
        """File and line of another place, for a complaint that names two."""
        _, file, line = self._finder.line(place)
        return f"{file}:{line}"

    def complaints(self) -> tuple[Complaint, ...]:
        """Everything noted, once each, in the order of the files."""
        found = [(self._finder.line(each.place), each) for each in dict.fromkeys(self._faults)]
        found.sort(key=lambda pair: (pair[0][0], pair[0][2]))
        listed: set[tuple[str, str]] = set()
        return tuple(
            Complaint(file, line, each.service, each.key or None, _once(each.message, file, listed))
            for (_, file, line), each in found
        )


def _once(message: str, file: str, listed: set[tuple[str, str]]) -> str:
    """`message` without its list of what there is, where that is long and among those `listed` in this file."""
    what, _, list_ = message.partition(_LISTED)
    if len(list_) <= _LIST_REPEATED_MAX:
        return message
    if (file, list_) in listed:
        return f"{what}{_LISTED}as above"
    listed.add((file, list_))
    return message


def in_file(place: Place) -> tuple[int, Place]:
    """The number of the file that `place` is in, and the place within it."""
    first = place[0] if place else ""
    return (first, place[1:]) if isinstance(first, int) else (0, place)


def dotted(place: Place) -> str:
    """`place` as people write it: without the numbers of files, services and (but for checks) elements."""
    _, within = in_file(place)
    if within[:1] == ("service",):
        within = within[2:]
    return ".".join(
        _shown(part, after)
        for part, after in zip_longest(within, within[1:])
        if isinstance(part, str)
    )


def _shown(key: str, after: str | int | None) -> str:
    """`key`, and which of its tables where the next part is the number of one."""
    number = f"#{after + 1}" if key == _NUMBERED and isinstance(after, int) else ""
    return (key if _BARE_KEY.fullmatch(key) else json.dumps(key)) + number


def suggestion(
    word: str, known: Collection[str], otherwise: str | None = None, prefix: str = ""
) -> str:
    """`, did you mean 'x'?`; where nothing is like `word`, `otherwise` or else what there is.

    A `prefix` that all have makes none of them alike.
    """
    start = prefix.lower()
    by_rest = {each.lower().removeprefix(start): each for each in known}
    close = difflib.get_close_matches(word.lower().removeprefix(start), by_rest, n=1)
    if close:
        return f", did you mean '{by_rest[close[0]]}'?"
    return f"{_LISTED}{', '.join(known)}" if otherwise is None else otherwise
