"""What changed between two moments: services, how they are, how they are declared, and who asked for it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from registry.core import events as ev
from registry.core.changes import changed_keys
from registry.core.projection import Projection
from registry.core.service import Service
from registry.questions.records import EventRecord, event_record, rfc3339, service_record

_COMPARED = ("status", "reason", "wanted", "health", "run", "restarts", "waiting_for")
_SILENT = frozenset({"position"})

ACTS = (
    ev.JournalCopied,
    ev.RegistryStarted,
    ev.RegistryStopped,
    ev.Redefined,
    ev.Removed,
)
"""The events that are told between two moments, beside those that somebody asked for."""


class Moment(msgspec.Struct, frozen=True):
    """After event `seq`, which happened `at`; `seq` 0 is before the first event."""

    seq: int
    at: str | None


class ServiceChange(msgspec.Struct, frozen=True):
    """One service. `change` is `add`, `remove` or `change`; `before` and `after` hold what differs (null: nothing).

    `keys` are those of its definition that differ.
    """

    service: str
    change: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    keys: tuple[str, ...] = ()


class Difference(msgspec.Struct, frozen=True):
    """`events` is how many there are in between, `acts` those of them that somebody asked for, and those of the
    registry and of definitions; where `is_cut`, only the latest.
    """

    since: Moment
    until: Moment
    events: int
    services: tuple[ServiceChange, ...]
    acts: tuple[EventRecord, ...]
    is_cut: bool = False


def moment_after(seq: int, at_ns: int) -> Moment:
    """The moment after event `seq`, which happened at `at_ns` (UTC)."""
    return Moment(seq, rfc3339(at_ns) if seq else None)


def difference(
    since: Moment,
    until: Moment,
    before: Projection,
    after: Projection,
    acts: Sequence[ev.Record],
    *,
    names: Collection[str] = (),
    is_cut: bool = False,
) -> Difference:
    """Compare two folds of one journal: of the services named, or, where none is, of all.

    `acts` are the events to tell of those in between, the latest of them where `is_cut`.
    """
    then, now = before.services, after.services
    known = [*(each.name for each in after.in_order()), *(n for n in then if n not in now)]
    changes = [_change(name, then, now) for name in known if not names or name in names]
    return Difference(
        since,
        until,
        until.seq - since.seq,
        tuple(change for change in changes if change is not None),
        tuple(event_record(act) for act in acts),
        is_cut,
    )


def _change(
    name: str, then: Mapping[str, Service], now: Mapping[str, Service]
) -> ServiceChange | None:
    before, after = _seen(name, then), _seen(name, now)
    if before is None or after is None:
        return ServiceChange(name, "remove" if after is None else "add", before, after)
    keys = changed_keys(then[name].definition, now[name].definition)
    keys = tuple(key for key in keys if key not in _SILENT)
    differs = [key for key in _COMPARED if before[key] != after[key]]
    if not differs and not keys:
        return None
    return ServiceChange(
        name,
        "change",
        {key: before[key] for key in differs},
        {key: after[key] for key in differs},
        keys,
    )


def _seen(name: str, services: Mapping[str, Service]) -> dict[str, Any] | None:
    if name not in services:
        return None
    record = service_record(services[name], services)
    return {key: getattr(record, key) for key in _COMPARED}
