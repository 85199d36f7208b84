"""The one service record and the one event record that socket, circlectl and replay all show.

Keys are always present; what there is nothing to say of is null. Times are RFC 3339, UTC.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from registry.core.definition import Check
from registry.core.events import Actor, Moved, OutputEnded, Record
from registry.core.service import LastExit, Service
from registry.questions.waiting import waiting_for

_NS = 1_000_000_000
_FIRST_NS = int(datetime(1, 1, 1, tzinfo=UTC).timestamp()) * _NS
_LAST_NS = int(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()) * _NS

EVENTS_IN_DETAIL = 10
EVENTS_LOOKED_AT = 200
"""A service's latest events, among which its last words are looked for."""
NOT_JOURNALED: dict[str, Any] = dict.fromkeys(("status_text", "errno", "memory", "found_by"))
"""What only the machine of a running registry knows of a service, where there is none to ask."""


class ServiceRecord(msgspec.Struct, frozen=True):
    """One service as every list shows it."""

    name: str
    status: str
    since: str | None
    reason: str
    wanted: str
    pid: int | None
    run: int | None
    health: str | None
    restarts: int
    waiting_for: str | None
    next_restart_at: str | None
    message: str | None


class EventRecord(msgspec.Struct, frozen=True):
    """One event as `events` and replay show it; `data` is what its type adds."""

    seq: int
    at: str
    service: str | None
    run: int | None
    type: str
    source: str | None
    dest: str | None
    reason: str | None
    cause: int | None
    decision: int
    actor: Actor | None
    data: dict[str, Any]


def rfc3339(at_ns: int) -> str:
    """A time in UTC to the microsecond, as in 2026-01-02T03:04:05.678901Z; one beyond the calendar is its last."""
    seconds, rest_ns = divmod(min(max(at_ns, _FIRST_NS), _LAST_NS), _NS)
    return f"{_second(seconds)}.{rest_ns // 1000:06d}Z"


@functools.lru_cache(maxsize=64)
def _second(seconds: int) -> str:
    """What happens together is mostly of the same second."""
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat()


def health(service: Service) -> str | None:
    """`healthy`, `unhealthy` or `unknown`; null where no check is declared."""
    checks = service.definition.checks
    if not checks:
        return None
    if service.pid is None:
        return "unknown"
    results = [check_health(service, check.name) for check in checks]
    if "unhealthy" in results:
        return "unhealthy"
    return "unknown" if "unknown" in results else "healthy"


def check_health(service: Service, check: str) -> str:
    """`healthy` or `unhealthy` once a threshold was reached, else `unknown`."""
    state = service.checks.get(check)
    if state is None or state.healthy is None or service.pid is None:
        return "unknown"
    return "healthy" if state.healthy else "unhealthy"


def service_record(service: Service, services: Mapping[str, Service]) -> ServiceRecord:
    """The record of a service as of the projection with these `services`."""
    at_ns = service.restart_at_ns
    return ServiceRecord(
        name=service.name,
        status=service.state.value,
        since=rfc3339(service.since_ns) if service.since_ns else None,
        reason=service.reason.value,
        wanted="up" if service.wanted else "down",
        pid=service.pid,
        run=service.run or None,
        health=health(service),
        restarts=service.restarts,
        waiting_for=waiting_for(service, services),
        next_restart_at=rfc3339(at_ns) if at_ns is not None else None,
        message=service.message,
    )


def event_record(record: Record) -> EventRecord:
    """The record of an event."""
    event = record.event
    data = msgspec.to_builtins(event)
    moved = isinstance(event, Moved)
    return EventRecord(
        seq=record.seq,
        at=rfc3339(record.at_ns),
        service=record.service,
        run=record.run,
        type=record.type,
        source=data.pop("source") if moved else None,
        dest=data.pop("dest") if moved else None,
        reason=data.pop("reason") if moved else None,
        cause=record.cause,
        decision=record.decision,
        actor=record.actor,
        data=data,
    )


def last_exit(exit_: LastExit | None) -> dict[str, Any] | None:
    """How the latest run ended, or null."""
    if exit_ is None:
        return None
    return {
        "run": exit_.run,
        "at": rfc3339(exit_.at_ns),
        "exit_code": exit_.exit_code,
        "signal": exit_.signal,
        "reason": exit_.reason.value,
    }


# --- one service in detail ------------------------------------------------------------------------


def service_detail(
    service: Service,
    services: Mapping[str, Service],
    events: Sequence[Record],
    *,
    checks: list[dict[str, Any]],
    machine: Mapping[str, Any],
) -> dict[str, Any]:
    """All that `status` tells of a service: `events` are its latest, `machine` is as NOT_JOURNALED."""
    return {
        **msgspec.to_builtins(service_record(service, services)),
        "attempt": service.attempt,
        **machine,
        "definition": msgspec.to_builtins(service.definition),
        "checks": checks,
        "last_exit": last_exit(service.last_exit),
        "last_words": last_words(events),
        "events": [event_record(record) for record in events[-EVENTS_IN_DETAIL:]],
    }


def check_then(service: Service, check: Check) -> dict[str, Any]:
    """A check as the journal knows it: each result is not in there, each change of results is."""
    state = service.checks.get(check.name)
    return {
        "name": check.name,
        "target": check.target,
        "health": check_health(service, check.name),
        "last_at": None,
        "latency_ms": None,
        "error": state.error if state and not state.ok else None,
    }


def last_words(events: Sequence[Record]) -> dict[str, Any] | None:
    """What the latest run that ended ill said at its end."""
    for record in reversed(events):
        if isinstance(record.event, OutputEnded):
            told = msgspec.structs.asdict(record.event)
            return {"run": record.run, "at": rfc3339(record.at_ns), **told}
    return None
