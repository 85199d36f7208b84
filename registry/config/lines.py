"""On which line a key stands: a small scanner of TOML text that has been parsed without error.

tomli gives values without their lines. This walks the text once more, and only when there is a
complaint to make. It knows where keys, tables and elements begin, and nothing of what values mean.
"""

from __future__ import annotations

import re
from bisect import bisect_left

import tomli

Place = tuple[str | int, ...]
"""The way to a value: keys, and for the elements of arrays their number from 0."""

_STRING = r'"""(?:[^\\]|\\.)*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\''
_PART = r'[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\''
_SCALAR = re.compile(rf"{_STRING}|[^,\]}}#\n]+", re.DOTALL)
_KEY_PART = re.compile(_PART)
_KEY = re.compile(rf"(?:{_PART})(?:[ \t]*\.[ \t]*(?:{_PART}))*")
_BLANK = re.compile(r"(?:\s|#[^\n]*)*")
_BLANK_OR_COMMA = re.compile(r"(?:[\s,]|#[^\n]*)*")
_EQUALS = re.compile(r"\s*=")


def lines_of(text: str) -> dict[Place, int]:
    """The line, counted from 1, of every key, table and element in `text`, which is valid TOML."""
    scanner = _Scanner(text)
    scanner.run()
    return scanner.lines


def line_of(lines: dict[Place, int], place: Place) -> int:
    """The line of `place`, or of the nearest thing around it; 0 where nothing around it has one."""
    while place and place not in lines:
        place = place[:-1]
    return lines.get(place, 0)


class _Scanner:
    """One walk through the text. `_at` is the offset of what comes next."""

    def __init__(self, text: str) -> None:
        self.lines: dict[Place, int] = {}
        self._text = text
        self._at = 0
        self._newlines = [match.start() for match in re.finditer("\n", text)]
        self._last: dict[Place, int] = {}  # array of tables -> number of its last element

    def run(self) -> None:
        table: Place = ()
        self._skip(_BLANK)
        while self._at < len(self._text):
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._value(self._key(table))
            self._skip(_BLANK)

    def _header(self) -> Place:
        is_array = self._text.startswith("[[", self._at)
        start = self._at
        self._at += 2 if is_array else 1
        self._skip(_BLANK)
        *around, name = self._parts()
        place: Place = ()
        for part in around:
            place = self._in_last((*place, part))
            self._record(place, start)
        place = (*place, name)
        if is_array:
            self._last[place] = self._last.get(place, -1) + 1
            self._record(place, start)
        place = self._in_last(place)
        self._record(place, start)
        self._at = self._text.index("]", self._at) + (2 if is_array else 1)
        return place

    def _in_last(self, place: Place) -> Place:
        return (*place, self._last[place]) if place in self._last else place

    def _key(self, table: Place) -> Place:
        """Walk past `key =`; a dotted key names tables on its way."""
        start = self._at
        place = table
        for part in self._parts():
            place = (*place, part)
            self._record(place, start)
        self._skip(_EQUALS)
        return place

    def _parts(self) -> list[str]:
        start = self._at
        self._skip(_KEY)
        return [_plain(part) for part in _KEY_PART.findall(self._text[start : self._at])]

    def _value(self, place: Place) -> None:
        """Walk past one value, with a stack of what is open: its depth is the file's choice."""
        open_: list[tuple[Place, int | None]] = []  # an array with its next number, or a table
        inner: Place | None = place
        while inner is not None:
            self._skip(_BLANK)
            if self._text[self._at] in "[{":
                open_.append((inner, 0 if self._text[self._at] == "[" else None))
                self._at += 1
            else:
                self._skip(_SCALAR)
            inner = self._next(open_)

    def _next(self, open_: list[tuple[Place, int | None]]) -> Place | None:
        """The place of the next value in what is open; None when all of it is closed."""
        while open_:
            self._skip(_BLANK_OR_COMMA)
            place, number = open_.pop()
            if self._text[self._at] in "]}":
                self._at += 1
            elif number is None:
                open_.append((place, None))
                return self._key(place)
            else:
                open_.append((place, number + 1))
                self._record((*place, number), self._at)
                return (*place, number)
        return None

    def _skip(self, pattern: re.Pattern[str]) -> None:
        if match := pattern.match(self._text, self._at):
            self._at = match.end()

    def _record(self, place: Place, offset: int) -> None:
        self.lines.setdefault(place, bisect_left(self._newlines, offset) + 1)


def _plain(part: str) -> str:
    """A part of a key without its quotes and escapes."""
    return next(iter(tomli.loads(f"{part} = 0"))) if part[0] in "\"'" else part
