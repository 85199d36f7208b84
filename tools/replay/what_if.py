"""What replay answers of what might have been: what the journal observed, decided again by another services.toml."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import msgspec

from registry.config import ConfigError, load
from registry.core.definition import Definition
from registry.core.events import Moved, Record, RestartDue, Spawned
from registry.core.lifecycle import Reason
from registry.journal.opening import Connection
from registry.journal.read import Selection, first_seq, fold, last_seq, last_seq_at, pages
from registry.questions.moments import Moment
from registry.questions.partings import Answer, Course, Row, Side
from registry.questions.records import event_record, rfc3339
from registry.questions.spoken import Table, aligned, span
from registry.questions.timeline import happened
from registry.questions.tracks import SCALE
from registry.questions.what_if import instead, what_if

EX_CONFIG = 78
"""sysexits.h: the exit status where the other configuration cannot be used."""
ASSUMED = (
    "assumed: a run goes on for as long, and ends in the same way, as the recorded run that it stands for (the",
    "next one after the same start by somebody); starting, stopping and failing to start are as recorded; a check",
    "finds what it found at that time of day; people, machine and registry do the same at the same times; values",
    "of variables are as they were. What rests on anything that the journal does not hold is called unknown.",
)
_NS = 1_000_000_000
_WIDE = 110
_NARROW = 60
_SAME_MOMENT_NS = 10_000_000
_encode = msgspec.json.Encoder().encode


class OtherError(Exception):
    """The other configuration cannot be used: its complaints, each with file and line."""


def definitions(path: Path) -> tuple[Definition, ...]:
    """What a file declares. Raises OtherError."""
    try:
        return load(path).definitions
    except ConfigError as error:
        raise OtherError(str(error)) from None


def compare(
    journal: Connection,
    other: Sequence[Definition],
    *,
    since: Moment | None,
    until: Moment | None,
) -> Answer:
    """The journal, or a part of it, as it was and as it would have been. Raises JournalError."""
    after = last_seq_at(journal, since.first_ns - 1) if since is not None else 0
    last = last_seq_at(journal, until.last_ns) if until is not None else last_seq(journal)
    after = max(after, first_seq(journal) - 1)  # what is removed is known as far as it led
    begin = fold(journal, after)
    selection = Selection(after=after, last=last)
    records = [record for page in pages(journal, selection) for record in page]
    known = {record.service for record in records} | begin.services.keys()
    added = [each for each in other if records and each.name not in known]
    return what_if(records, instead(other), added, begin)


# --- for programs -----------------------------------------------------------------------------------


def json(answer: Answer, other: Path, names: Collection[str]) -> str:
    """One object: what is assumed, the services, the moments at which they differ."""
    return _encode(
        {
            "other": str(other),
            "since": rfc3339(answer.from_ns),
            "until": rfc3339(answer.to_ns),
            "assumed": " ".join(ASSUMED).removeprefix("assumed: "),
            "services": [_course(each) for each in _chosen(answer.courses, names)],
            "partings": [
                {
                    "at": rfc3339(row.at_ns),
                    "service": row.service,
                    "recorded": [_event(each) for each in row.recorded],
                    "what_if": [_event(each) for each in row.what_if],
                    "state": row.state or None,
                    "note": row.note or None,
                }
                for row in answer.rows
                if _is_chosen(row.service, names)
            ],
        }
    ).decode()


def _course(course: Course) -> dict[str, Any]:
    return {
        "name": course.name,
        "recorded": _side(course.recorded),
        "what_if": _side(course.what_if),
        "unknown_s": course.unknown_ns / _NS,
        "recorded_while_unknown": _side(course.meanwhile),
    }


def _side(side: Side) -> dict[str, Any]:
    return {
        "declared": side.declared,
        "restarts": side.restarts,
        "gave_up": side.gave_up,
        "down_s": side.down_ns / _NS,
    }


def _event(record: Record) -> dict[str, Any]:
    """An event; one that was never recorded has no number."""
    seq, is_real = divmod(record.seq, SCALE)[0], record.seq % SCALE == 0
    told: dict[str, Any] = msgspec.to_builtins(event_record(record))
    told["seq"] = seq if is_real else None
    del told["cause"], told["decision"]
    return told


# --- for people -------------------------------------------------------------------------------------


def text(answer: Answer, other: Path, names: Collection[str]) -> Iterator[str]:
    """What is assumed, a table of the services that differ, and moment by moment how."""
    since, until = rfc3339(answer.from_ns)[:19], rfc3339(answer.to_ns)[:19]
    yield f"what if {other} had been in force from {since}Z to {until}Z"
    yield from ASSUMED
    yield ""
    rows = list(_joined(row for row in answer.rows if _is_chosen(row.service, names)))
    courses = _chosen(answer.courses, names)
    differing = {row.service for row in rows}
    shown = [each for each in courses if each.name in differing or _differs(each)]
    if not shown:
        yield "nothing would have been different"
        return
    yield from aligned([_table(shown)])
    alike = len(courses) - len(shown)
    if any(each.unknown.startswith("cwd ") for each in shown):
        yield f"cwd differs: does {other} lie elsewhere than the original? Then set root in its [registry]"
    if alike:
        yield f"{alike} other {'services' if alike > 1 else 'service'}: nothing different"
    yield ""
    width = shutil.get_terminal_size((80, 24)).columns
    lines = _side_by_side(rows, other, width) if width >= _WIDE else _stacked(rows, width)
    yield from lines


def _differs(course: Course) -> bool:
    return course.recorded != course.what_if or course.unknown_ns > 0


def _table(courses: Iterable[Course]) -> Table:
    header: tuple[str, ...] = (
        "SERVICE",
        "RESTARTS",
        "GAVE UP",
        "DOWN",
        "UNKNOWN",
        "RECORDED MEANWHILE",
    )
    rows = [_cells(each) for each in courses]
    columns = [column for column in zip(header, *rows, strict=True) if any(column[1:])]
    header, *rest = zip(*columns, strict=True)
    return Table(header, [list(row) for row in rest])


def _cells(course: Course) -> list[str]:
    was, would, meanwhile = course.recorded, course.what_if, course.meanwhile
    name = course.name
    if not would.declared:
        return [
            name,
            f"{was.restarts} -> none",
            "",
            f"{span(was.down_ns / _NS)} -> not declared",
            "",
            "",
        ]
    is_known = not course.unknown_ns
    more = "" if is_known else "+?"
    told = ""
    if not is_known:
        told = f"{meanwhile.restarts} restarts, {span(meanwhile.down_ns / _NS)} down"
    return [
        name if was.declared else f"{name} (new)",
        f"{was.restarts} -> {would.restarts}{more}",
        f"{was.gave_up} -> {would.gave_up}{more}",
        f"{span(was.down_ns / _NS)} -> {span(would.down_ns / _NS)}{more}",
        "" if is_known else span(course.unknown_ns / _NS),
        told,
    ]


def _joined(rows: Iterable[Row]) -> Iterator[Row]:
    """Without what says nothing; a note stands with what it was noted of."""
    waiting: Row | None = None
    for row in rows:
        if not (row.note or _told(row.recorded) or _told(row.what_if)):
            continue
        if row.state in ("unknown", "not declared") and not row.note and not row.what_if:
            continue  # what was recorded meanwhile is in the table
        if waiting is not None and _belongs(row, waiting):
            waiting = msgspec.structs.replace(waiting, note=row.note, state=row.state)
            continue
        if waiting is not None:
            yield waiting
        waiting = row
    if waiting is not None:
        yield waiting


def _belongs(row: Row, before: Row) -> bool:
    is_note = bool(row.note) and not row.recorded and not row.what_if and not before.note
    return is_note and row.service == before.service and row.at_ns - before.at_ns <= _SAME_MOMENT_NS


def _told(records: Iterable[Record]) -> list[str]:
    return [happened(event_record(each)) for each in records if _is_worth_words(each)]


def _is_worth_words(record: Record) -> bool:
    """Whether it says more than what stands before or after it."""
    event = record.event
    if not isinstance(event, Moved) or isinstance(event, Spawned):
        return False
    return not isinstance(event, RestartDue) or event.reason is Reason.WAITING


def _words(row: Row) -> tuple[str, str]:
    """What was, and what would have been, in a few words."""
    was, would = "; ".join(_told(row.recorded)), "; ".join(_told(row.what_if))
    if row.note:
        would = f"{would}; {row.note}" if would else row.note
    elif not would:
        would = f"nothing (it is {row.state})"
    if not row.recorded and not row.note.startswith(("known", "as recorded")):
        was = "nothing"
    return was, would


def _stacked(rows: Iterable[Row], width: int) -> Iterator[str]:
    for row in rows:
        was, would = _words(row)
        yield f"{rfc3339(row.at_ns)[:23]}Z  {row.service}"
        for label, words in (("recorded", was), ("what if", would)):
            if words:
                yield from _wrapped(f"{label:>10}: ", words, max(width, _NARROW))


def _wrapped(label: str, words: str, width: int) -> list[str]:
    indent = " " * len(label)
    return textwrap.wrap(
        words, width, initial_indent=label, subsequent_indent=indent, break_on_hyphens=False
    )


def _side_by_side(rows: Sequence[Row], other: Path, width: int) -> Iterator[str]:
    names = max(7, *(len(row.service) for row in rows)) if rows else 7
    column = (width - 26 - names - 4) // 2
    yield f"{'TIME':<24}  {'SERVICE':<{names}}  {'RECORDED':<{column}}  WITH {other.name}"
    for row in rows:
        cells = [
            textwrap.wrap(words, column, break_on_hyphens=False) or [""] for words in _words(row)
        ]
        place = f"{rfc3339(row.at_ns)[:23]}Z  {row.service:<{names}}"
        for was, would in zip_longest(*cells, fillvalue=""):
            yield f"{place}  {was:<{column}}  {would}".rstrip()
            place = " " * len(place)


def _chosen(courses: Iterable[Course], names: Collection[str]) -> list[Course]:
    return [each for each in courses if _is_chosen(each.name, names)]


def _is_chosen(name: str, names: Collection[str]) -> bool:
    return not names or name in names
