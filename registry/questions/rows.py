"""Rows of an answer in SQL as text, a line each: an aligned table for people, CSV, JSON objects."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from itertools import chain, count
from typing import Any

CELL_MAX = 60
"""Characters of a value that a table on a terminal shows."""

Rows = Sequence[Sequence[Any]]

_CUT = {
    "limit": "--limit asks for more",
    "rows": "an answer has no more rows; ask for less",
    "size": "an answer has no more than 8 MB; ask for less",
}


def cut(shown: int, by: str | None) -> str:
    """That there are more rows, and what to do about it."""
    return f"there are more rows than these {shown}: {_CUT.get(by or 'limit', 'ask for less')}"


def table(columns: Sequence[str], rows: Rows, cell_max: int | None = None) -> list[str]:
    """Aligned columns under their names; numbers to the right. What has more characters than `cell_max` is cut."""
    cells = [[_cell(value, cell_max) for value in row] for row in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [
        all(isinstance(row[n], int | float | None) for row in rows) for n in range(len(columns))
    ]
    return ["  ".join(map(_aligned, line, widths, right)).rstrip() for line in cells]


def _aligned(cell: str, width: int, is_right: bool) -> str:
    return cell.rjust(width) if is_right else cell.ljust(width)


def _cell(value: Any, most: int | None) -> str:
    if value is None:
        return "-"
    text = str(value)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if most is None or len(text) <= most else f"{text[: most - 3]}..."


def as_csv(columns: Sequence[str], rows: Rows) -> list[str]:
    """A header and the rows, as RFC 4180 has it, but for the ends of lines; null is empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return stream.getvalue().removesuffix("\n").split("\n")


def objects(columns: Sequence[str], rows: Rows) -> list[str]:
    """One JSON object a row."""
    names = _apart(columns)
    found = (dict(zip(names, row, strict=True)) for row in rows)
    return [json.dumps(each, ensure_ascii=False, separators=(",", ":")) for each in found]


def _apart(columns: Sequence[str]) -> list[str]:
    """A name for each column: `seq` and, where there is one of that name already, `seq:1`, as SQLite has it."""
    names: dict[str, None] = {}
    for column in columns:
        numbered = (f"{column}:{number}" for number in count(1))
        names[next(each for each in chain((column,), numbered) if each not in names)] = None
    return list(names)
