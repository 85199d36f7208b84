"""What replay answers of the past as a whole: histories of services, reports, how a start went, what changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from registry.journal.opening import Connection
from registry.journal.read import last_seq
from registry.past.boot import boot
from registry.past.difference import changes
from registry.past.history import history
from registry.past.report import report
from registry.past.then import then
from registry.past.why import why, why_seq
from registry.questions import moments, spoken
from registry.questions.moments import At, Moment
from registry.questions.refusal import INVALID, Refusal
from registry.questions.why import told

_encode = msgspec.json.Encoder().encode


def histories(
    journal: Connection,
    names: Sequence[str],
    *,
    since: Moment | None,
    until: Moment | None,
    limit: int | None,
    as_json: bool,
) -> Iterator[str]:
    """The runs of each service. JSON is an array of histories."""
    found = [history(journal, name, since=since, until=until, limit=limit) for name in names]
    if as_json:
        yield _json(found)
        return
    for number, each in enumerate(found):
        if len(found) > 1:
            yield f"{'' if number == 0 else chr(10)}{each.service}:"
        yield from spoken.aligned(spoken.history(each))


def reported(
    journal: Connection,
    names: Sequence[str],
    *,
    since: Moment | None,
    until: Moment | None,
    as_json: bool,
) -> Iterator[str]:
    """How available services were."""
    found = report(journal, names, since=since, until=until)
    yield from _shown(found, spoken.report(found, in_detail=bool(names)), as_json=as_json)


def started(
    journal: Connection, names: Sequence[str], seq: int | None, *, as_json: bool
) -> Iterator[str]:
    """How the latest start of the registry up to event `seq` went. Raises Refusal where there is none."""
    last = last_seq(journal) if seq is None else seq
    found = boot(journal, last, names[0] if names else None)
    yield from _shown(found, spoken.boot(found), as_json=as_json)


def changed(
    journal: Connection, names: Sequence[str], since: int, until: int, *, as_json: bool
) -> Iterator[str]:
    """What changed between the moments after two events. Raises Refusal where the second is the earlier."""
    found = changes(journal, since, until, names)
    yield from _shown(found, spoken.difference(found), as_json=as_json)


def _shown(found: msgspec.Struct, told: spoken.Told, *, as_json: bool) -> Iterator[str]:
    if as_json:
        yield _json(found)
    else:
        yield from spoken.aligned(told)


def _json(found: Any) -> str:
    return _encode(found).decode()


def because(journal: Connection, what: str, at: At | None, *, as_json: bool) -> Iterator[str]:
    """Why a service was as it was, or why an event happened. Raises Refusal."""
    if what.startswith(moments.SEQ):
        seq = moments.at(what, 0)
        if at is not None or seq is None:
            raise Refusal(INVALID, "an event is named as in --why seq:57, and goes without --at")
        found = why_seq(journal, then(journal, seq))
    else:
        found = why(journal, then(journal, at), what)
    yield from _shown(found, told(found), as_json=as_json)
