"""Standard output: how wide it is, what it can show, tables. The only file that knows of colours.

Colours are for terminals, and never say what words do not. NO_COLOR and FORCE_COLOR are honoured where
they are not empty; the former wins.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import TextIO

GAP = "  "
"""Between the cells of a table."""
_INDENT = 4
_NAME_MIN = 16
_BELOW_MAX = 3
_COLOURS = {
    "Running": "32",
    "Starting": "33",
    "Stopping": "33",
    "Restarting": "33",
    "Failed": "31",
    "healthy": "32",
    "unhealthy": "31",
    "ok": "32",
    "failed": "31",
    "not met": "31",
}
_MARKS = {"+": "32", "-": "31", "~": "33"}
_BOLD = "1"


class Screen:
    """What is known of `stream` when the command starts. `width` is None where no line is too long."""

    def __init__(self, stream: TextIO, environment: Mapping[str, str]) -> None:
        self.is_terminal = stream.isatty()
        self.width = _width(stream, environment) if self.is_terminal else None
        self.colours = _wants_colours(environment, self.is_terminal)
        self.ellipsis = _if_encodable("\u2026", stream, "...")
        self.has_boxes = _if_encodable("\u251c\u2500", stream, "") != ""
        self.branch = _if_encodable("\u2514 ", stream, "`- ")

    def state(self, word: str) -> str:
        """A state or a health in its colour."""
        return self._in(_COLOURS.get(word.strip()), word)

    def mark(self, sign: str) -> str:
        """What is done to something: + added, - removed, ~ changed."""
        return self._in(_MARKS.get(sign), sign)

    def bold(self, text: str) -> str:
        """What stands out."""
        return self._in(_BOLD, text)

    def _in(self, code: str | None, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if code and self.colours else text

    def wrapped(self, indent: int, text: str) -> str:
        """`text` for behind a beginning of `indent` columns; further lines of it begin there, too."""
        if self.width is None or indent + len(text) <= self.width:
            return text
        room = max(_NAME_MIN, self.width - indent)
        return f"\n{' ' * indent}".join(textwrap.wrap(text, room))

    def cut(self, text: str, width: int | None) -> str:
        """`text` in `width` columns at most."""
        if width is None or len(text) <= width:
            return text
        return text[: max(0, width - len(self.ellipsis))] + self.ellipsis

    def cut_middle(self, text: str, width: int) -> str:
        """`text` in `width` columns at most, its beginning and its end kept."""
        if len(text) <= width:
            return text
        kept = max(2, width - len(self.ellipsis))
        return text[: kept - kept // 2] + self.ellipsis + text[-(kept // 2) :]

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
        """Aligned lines. A last cell that does not fit beside the others stands below them, as in `row`."""
        rows = self._with_names_cut(header, rows)
        widths = _widths(header, rows)
        lines = [_joined([*map(str.ljust, header, widths), header[-1]])]
        for row in rows:
            lines += self.row(list(map(str.ljust, row, widths)), row[-1])
        return [self.bold(self.cut(lines[0], self.width)), *lines[1:]]

    def row(self, cells: Sequence[str], last: str) -> list[str]:
        """A line of padded cells and what comes last: on lines below where it does not fit, a few at most."""
        coloured = list(map(self.state, cells))
        used = sum(map(len, cells)) + len(GAP) * len(cells)
        if self.width is None or not last or used + len(last) <= self.width:
            return [_joined([*coloured, last])]
        indent = max(_INDENT, len(cells[0]) - len(cells[0].lstrip()))
        room = max(_NAME_MIN, self.width - indent - len(self.branch))
        first, *rest = textwrap.wrap(last, room, max_lines=_BELOW_MAX, placeholder=self.ellipsis)
        margin = " " * (indent + len(self.branch))
        below = [" " * indent + self.branch + first, *(margin + line for line in rest)]
        return [_joined(coloured), *below]

    def _with_names_cut(
        self, header: Sequence[str], rows: Sequence[Sequence[str]]
    ) -> list[list[str]]:
        """The rows with first cells short enough for the others to fit on the line."""
        if self.width is None:
            return [list(row) for row in rows]
        widths = _widths(header, rows)[1:]
        room = max(_NAME_MIN, self.width - sum(widths) - len(GAP) * len(widths))
        return [[self.cut_middle(row[0], room), *row[1:]] for row in rows]


def _widths(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """The widths of all columns but the last, which has none."""
    return [max(map(len, column)) for column in zip(header, *rows, strict=True)][:-1]


def _joined(cells: Sequence[str]) -> str:
    return GAP.join(cells).rstrip()


def _width(stream: TextIO, environment: Mapping[str, str]) -> int:
    columns = environment.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) > 0:
        return int(columns)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:
        return 80


def _wants_colours(environment: Mapping[str, str], is_terminal: bool) -> bool:
    if environment.get("NO_COLOR"):
        return False
    return bool(environment.get("FORCE_COLOR")) or (
        is_terminal and environment.get("TERM") != "dumb"
    )


def _if_encodable(text: str, stream: TextIO, otherwise: str) -> str:
    try:
        text.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return otherwise
    return text


def standard() -> Screen:
    """The screen of this process."""
    return Screen(sys.stdout, os.environ)
