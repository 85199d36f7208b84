"""What replay answers from an open journal: the timeline, the services at a moment, the verdict."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec

from registry.core.events import Defined, Record, Redefined
from registry.journal import JournalError
from registry.journal.opening import Connection
from registry.journal.read import (
    Selection,
    Verdict,
    anchor_of,
    beginning,
    last_seq,
    pages,
    service_names,
)
from registry.past.then import Then
from registry.questions.choice import ALL, Choice
from registry.questions.records import ServiceRecord, event_record, rfc3339, service_record
from registry.questions.timeline import line

_ALL, _TAG = "all", "tag:"
_SHOWN_MAX = 8
_encode = msgspec.json.Encoder().encode


def meant(journal: Connection, words: Sequence[str]) -> tuple[str, ...]:
    """The services that words mean: names, patterns, `tag:TAG`, what instances have in common; none for all.

    Raises JournalError for a word by which the journal tells of no service.
    """
    known = service_names(journal) if words else []
    if _ALL in words and _ALL not in known:
        return ()
    tags = _tags(journal) if any(word.startswith(_TAG) for word in words) else {}
    found: dict[str, None] = {}
    for word in words:
        names = [name for name in known if _is_meant(name, word, tags)]
        if not names:
            raise JournalError(f"it does not tell of a service {word!r}; {_remedy(word, known)}")
        found |= dict.fromkeys(names)
    return tuple(found)


def _is_meant(name: str, word: str, tags: Mapping[str, Sequence[str]]) -> bool:
    if word.startswith(_TAG):
        return word.removeprefix(_TAG) in tags.get(name, ())
    return name == word or name.startswith(f"{word}@") or fnmatchcase(name, word)


def _tags(journal: Connection) -> dict[str, Sequence[str]]:
    """The tags that each service was last declared with."""
    events = (record for records in pages(journal) for record in records)
    before = beginning(anchor_of(journal)).services
    tags: dict[str, Sequence[str]] = {name: each.definition.tags for name, each in before.items()}
    for record in events:
        if isinstance(record.event, Defined | Redefined):
            tags[record.service or ""] = record.event.definition.tags
    return tags


def _remedy(word: str, known: Sequence[str]) -> str:
    if close := difflib.get_close_matches(word, known, n=1):
        return f"did you mean {close[0]!r}?"
    more = ", ..." if len(known) > _SHOWN_MAX else ""
    return f"there are {', '.join(known[:_SHOWN_MAX])}{more}" if known else "it tells of none"


def chosen_pages(
    journal: Connection, selection: Selection, choice: Choice
) -> Iterator[list[Record]]:
    """The events of a selection that are asked for, some at a time."""
    for records in pages(journal, selection):
        if chosen := [record for record in records if choice.takes(record)]:
            yield chosen


def timeline(journal: Connection, selection: Selection, choice: Choice = ALL) -> Iterator[str]:
    """The events of a selection as lines for people, a page at a time."""
    seq_width = len(str(last_seq(journal)))
    names = selection.services or service_names(journal)
    service_width = max(map(len, names), default=1)
    for records in chosen_pages(journal, selection, choice):
        yield "\n".join(
            line(event_record(record), seq_width=seq_width, service_width=service_width)
            for record in records
        )


def events_json(journal: Connection, selection: Selection, choice: Choice = ALL) -> Iterator[str]:
    """The events of a selection as lines of JSON, a page at a time."""
    for records in chosen_pages(journal, selection, choice):
        yield "\n".join(_encode(event_record(record)).decode() for record in records)


# --- the services at a moment ---------------------------------------------------------------------


def services_of(state: Then, services: Sequence[str]) -> list[ServiceRecord]:
    """The services as they were, of `services` where named."""
    chosen = [s for s in state.projection.in_order() if not services or s.name in services]
    return [service_record(service, state.projection.services) for service in chosen]


def services_json(state: Then, services: Sequence[str]) -> str:
    """The services as an array of JSON."""
    return _encode(services_of(state, services)).decode()


def services_text(state: Then, services: Sequence[str]) -> Iterator[str]:
    """The services as a table, under a line that says when."""
    if not state.seq:
        yield "before the first event"
        return
    idle = ", no registry running" if state.projection.orderly else ""
    yield f"after event {state.seq}, {rfc3339(state.at_ns)}{idle}"
    if found := services_of(state, services):
        yield from _table([msgspec.structs.asdict(service) for service in found])


def _table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Aligned columns; one in which no row says anything is left out."""
    columns = [
        [
            name.replace("_", " ").upper(),
            *("-" if row[name] is None else str(row[name]) for row in rows),
        ]
        for name in rows[0]
        if any(row[name] is not None for row in rows)
    ]
    widths = [max(map(len, column)) for column in columns]
    for cells in zip(*columns, strict=True):
        padded = (f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))
        yield "  ".join(padded).rstrip()


# --- the verdict ----------------------------------------------------------------------------------


def verdict_text(path: Path, verdict: Verdict, head: str | None) -> str:
    """What verification found, and whether the hash asked for was among the events."""
    if verdict.trouble is not None:
        return f"journal {path}: {verdict.trouble}; {_trusted(verdict)}{_where(verdict, head)}"
    count = verdict.seq - verdict.first + 1
    found = f"journal {path}: {count} events{_from(verdict)}, head {verdict.hash or 'none'}"
    if head is not None and verdict.head_seq is None:
        return (
            f"{found}: no event has the hash {head};"
            " events were cut off the end, or all of them rewritten"
        )
    return f"{found}: intact{_anchored(verdict)}{_where(verdict, head)}"


def _from(verdict: Verdict) -> str:
    return f" from event {verdict.first} on" if verdict.first > 1 else ""


def _anchored(verdict: Verdict) -> str:
    """What stands for the events before the first, and which event says so."""
    if verdict.anchored_by is None:
        return ""
    return f", and what it begins with is as event {verdict.anchored_by} recorded it"


def is_sound(verdict: Verdict, head: str | None) -> bool:
    """True when every event can be trusted, and the hash asked for is that of one."""
    return verdict.trouble is None and (head is None or verdict.head_seq is not None)


def _trusted(verdict: Verdict) -> str:
    match verdict.seq - verdict.first:
        case -1:
            return "no event can be trusted"
        case 0:
            return f"event {verdict.seq} can still be trusted"
        case _:
            return f"events {verdict.first} to {verdict.seq} can still be trusted"


def _where(verdict: Verdict, head: str | None) -> str:
    if head is None:
        return ""
    if verdict.head_seq is None:
        return f", and none of them has the hash {head}"
    return f"; {head} is event {verdict.head_seq}"
