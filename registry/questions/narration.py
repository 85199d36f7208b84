"""An event as one line of the daemon's own log: level and sentence, or nothing worth a line."""

from __future__ import annotations

import signal
from collections.abc import Mapping

from registry.core import events as ev
from registry.core.definition import Ready
from registry.core.lifecycle import Reason, State
from registry.core.service import Service
from registry.questions.waiting import waiting_for

INFO, WARN, ERROR = "INFO", "WARN", "ERROR"
Line = tuple[str, str]

_WHY_RESTARTED = {
    Reason.DEPENDENCY: ": it follows what it depends on",
    Reason.REDEFINED: ": it is declared differently",
}


def narrate(record: ev.Record, services: Mapping[str, Service]) -> Line | None:
    """The log line of a committed event, or None. `services` are those that it left, or as they are since."""
    name, event = record.service, record.event
    match event:
        case ev.JournalCopied():
            return WARN, (
                f"this journal is a copy of {event.source}: what that one's registry runs is left to it,"
                " and its services are started here once more"
            )
        case ev.JournalCompacted():
            return (
                INFO,
                f"The journal begins after event {event.through} now: older ones are removed",
            )
        case ev.Spawned():
            return INFO, f"Starting {name} (PID {event.pid})"
        case ev.SpawnFailed():
            return ERROR, f"{name} cannot start: {event.message}"
        case ev.BecameHealthy():
            return INFO, f"Health OK: {name}"
        case ev.BecameUnhealthy():
            what = "restarting..." if event.dest is State.STOPPING else "only reported"
            return (
                WARN,
                f"{name} unhealthy, {what} ({event.check}: {event.error}, {event.failures} in a row)",
            )
        case ev.StartTimedOut():
            missed = _missed(services.get(name or ""))
            return WARN, f"{name} not ready within {event.timeout_s:g} s{missed}, stopping it"
        case ev.StopAnnounced():
            return INFO, f"{name} says that it stops"
        case ev.StopTimedOut():
            return (
                WARN,
                f"{name} said that it stops, and did not within {event.timeout_s:g} s, stopping it",
            )
        case ev.MemoryExceeded():
            return WARN, f"{name} holds more memory than its memory_max, restarting..."
        case ev.RequestDone() if event.error is not None:
            return WARN, f"{name}: {event.error}"
        case ev.StartRequested() | ev.RestartRequested() | ev.RestartDue() if (
            event.reason is Reason.WAITING
        ):
            return INFO, f"{name} {_waits(name, services)}"
        case ev.StopRequested() if event.dest in (State.STARTING, State.RUNNING):
            return INFO, f"{name} stops once those that depend on it have stopped"
        case ev.DependentsGone() | ev.StopRequested() if event.dest is State.STOPPING:
            return INFO, f"Stopping {name}"
        case ev.RestartRequested():
            return INFO, f"Restarting {name}{_WHY_RESTARTED.get(event.reason, '')}"
        case ev.Exited() | ev.Lost():
            return _ended(name, event)
        case ev.GroupEmptied():
            return _emptied(name, event, services)
        case ev.RestartScheduled() if event.reason is Reason.CRASH_LOOPING:
            return (
                WARN,
                f"{name} crash-looping, attempt {event.attempt}, next in {event.delay_s:.3g} s",
            )
        case ev.GaveUp():
            return ERROR, _gave_up(name, event)
        case ev.Adopted():
            return INFO, f"Adopted {name} (PID {event.pid})"
        case ev.Removed():
            return INFO, f"Removed {name}: it is no longer declared"
        case _:
            return None


def _gave_up(name: str | None, event: ev.GaveUp) -> str:
    restarts = f"{event.restarts} restart{'' if event.restarts == 1 else 's'}"
    within = f"within {event.within_s:g} s"
    return f"{name} gave up: {restarts} {within}; circlectl start {name} tries again"


def _ended(name: str | None, event: ev.Exited | ev.Lost) -> Line | None:
    if event.source is State.STOPPING:
        return None
    if isinstance(event, ev.Lost):
        return WARN, f"{name} ended while nobody watched, how is unknown"
    if event.message is not None:
        return ERROR, f"{name} cannot start: {event.message}"
    left = "" if event.group_empty else ", and left processes behind"
    return (INFO if event.dest is State.STOPPED else WARN), f"{name} {exit_words(event)}{left}"


def exit_words(event: ev.Exited) -> str:
    """How a process ended: `exited with code 3`, `killed by SIGKILL`."""
    if event.signal is None:
        return f"exited with code {event.exit_code}"
    try:
        return f"killed by {signal.Signals(event.signal).name}"
    except ValueError:
        return f"killed by signal {event.signal}"


def _missed(service: Service | None) -> str:
    """What did not come, where a run has to say itself that it is ready."""
    if service is None:
        return ""
    begun = service.run_definition or service.definition
    return ": no READY=1 came to NOTIFY_SOCKET" if begun.ready is Ready.NOTIFY else ""


def _waits(name: str | None, services: Mapping[str, Service]) -> str:
    service = services.get(name or "")
    what = waiting_for(service, services) if service is not None else None
    return f"waits for {what or 'what it depends on'}"


def _emptied(
    name: str | None, event: ev.GroupEmptied, services: Mapping[str, Service]
) -> Line | None:
    killed = f" ({event.killed} of its processes needed SIGKILL)" if event.killed else ""
    if event.dest is State.STOPPED:
        waits = f": it {_waits(name, services)}" if event.reason is Reason.WAITING else ""
        return INFO, f"Stopped {name}{killed}{waits}"
    return (WARN, f"{name}: the rest of its group is gone{killed}") if killed else None
