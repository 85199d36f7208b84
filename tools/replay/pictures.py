"""Pictures of a journal, as files: the HTML report and the still picture."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import click

from registry.core.events import Record
from registry.journal import JournalError
from registry.journal.opening import Connection
from registry.journal.read import Selection, first_seq_at, fold, last_seq_at, pages, records_of
from registry.questions.lanes import Lanes, lanes
from registry.questions.records import rfc3339

from .logs import Logs, Said
from .page import Line, html
from .svg import picture

EVENTS_MAX = 1_000_000
"""What a browser still shows at ease, and what can be mailed."""
LINES_MAX = 100_000
"""Lines of log files in one report."""
_STDOUT = "-"
_SQLITE = b"SQLite format 3\0"


class PictureError(Exception):
    """A picture that cannot be written, in one sentence."""


class Files(NamedTuple):
    """What is to be written where; `-` is stdout."""

    html: str | None
    svg: str | None


def seen(journal: Connection, selection: Selection) -> Lanes:
    """The lanes of the services and the time of a selection: from its first event to its last, without a gap.

    JournalError where there is nothing of that time, or too much for a picture.
    """
    first = first_seq_at(journal, selection.first_ns)
    last = last_seq_at(journal, selection.last_ns)
    if not first or first > last:
        raise JournalError("it has no event of that time")
    if last - first >= EVENTS_MAX and not selection.services:
        raise JournalError(
            f"{last - first + 1:,} events are more than one picture can show ({EVENTS_MAX:,}):"
            " choose some by --since, --until or --service"
        )
    before = fold(journal, first - 1)
    try:
        return lanes(before, _records(journal, first, last), _Finder(journal), selection.services)
    except (KeyError, AssertionError):
        raise JournalError(
            f"event {before.seq + 1} does not follow from those before it; --verify says more"
        ) from None


def _records(journal: Connection, first: int, last: int) -> Iterator[Record]:
    for records in pages(journal, Selection(after=first - 1, last=last)):
        yield from records


class _Finder:
    """Finds records by their numbers."""

    def __init__(self, journal: Connection) -> None:
        self._journal = journal

    def __call__(self, numbers: Collection[int]) -> Iterator[Record]:
        yield from records_of(self._journal, numbers).values()


def written(
    journal: Connection, selection: Selection, folders: Sequence[Path], found: Lanes
) -> tuple[list[Line], list[str]]:
    """The lines of log files for the services of a report, in order of time, and what is to be said of them.

    LogsError where the files cannot be read.
    """
    if not folders:
        return [], []
    kept: deque[Line] = deque(maxlen=LINES_MAX)
    count = 0
    with Logs(folders, [lane.name for lane in found.lanes]) as logs:
        for each in logs.among(journal, selection):
            if isinstance(each, Said):
                count += 1
                kept.append(Line(each.service, each.written.order_ns // 1000, each.written.text))
        remarks = [*logs.remarks()]
    if count > LINES_MAX:
        remarks.append(f"of {count:,} lines of log files the report holds the last {LINES_MAX:,}")
    return [*kept], remarks


def title(found: Lanes, path: Path) -> str:
    """What a picture is called: the journal, and the day."""
    day = rfc3339(found.events[0].at_us * 1000)[:10]
    return f"{path.name}, {day}"


def draw(
    journal: Connection,
    path: Path,
    selection: Selection,
    folders: Sequence[Path],
    files: Files,
) -> Iterator[str]:
    """Write what is asked for of the journal at `path`; gives remarks. PictureError where a file cannot be written."""
    found = seen(journal, selection)
    name = title(found, path)
    if files.svg is not None:
        _write(files.svg, picture(found, title=name))
    if files.html is not None:
        lines, remarks = written(journal, selection, folders, found)
        _write(files.html, html(found, title=name, lines=lines))
        yield from remarks


def _write(name: str, text: str) -> None:
    if name == _STDOUT:
        click.echo(text.encode(errors="replace"), nl=False)  # it says that it is UTF-8
        return
    path = Path(name)
    if _is_database(path):
        raise PictureError(f"{name}: this is an SQLite file, and is left as it is")
    try:
        path.write_text(text, "utf-8", errors="replace")
    except OSError as error:
        raise PictureError(f"{name}: it cannot be written: {error.strerror}") from None


def _is_database(path: Path) -> bool:
    """Whether a journal would be written over."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return os.pread(file.fileno(), len(_SQLITE), 0) == _SQLITE
    except OSError:
        return False
