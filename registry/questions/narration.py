"""An event as one line of the daemon's own log: level and sentence, or nothing worth a line."""

from __future__ import annotations

import signal

from registry.core import events as ev
from registry.core.lifecycle import Reason, State

INFO, WARN, ERROR = "INFO", "WARN", "ERROR"
Line = tuple[str, str]

_WAITS = "waits for what it depends on"
_WHY_RESTARTED = {
    Reason.DEPENDENCY: ": it follows what it depends on",
    Reason.REDEFINED: ": it is declared differently",
}


def narrate(record: ev.Record) -> Line | None:
    """The log line of a committed event, or None."""
    name, event = record.service, record.event
    match event:
        case ev.JournalCopied():
            return WARN, (
                f"this journal is a copy of {event.source}: what that one's registry runs is left to it,"
                " and its services are started here once more"
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
            return WARN, f"{name} not ready within {event.timeout_s:g} s, stopping it"
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
            return INFO, f"{name} {_WAITS}"
        case ev.StopRequested() if event.dest in (State.STARTING, State.RUNNING):
            return INFO, f"{name} stops once those that depend on it have stopped"
        case ev.DependentsGone():
            return INFO, f"Stopping {name}"
        case ev.StopRequested() if event.dest is State.STOPPING:
            return INFO, f"Stopping {name}"
        case ev.RestartRequested():
            return INFO, f"Restarting {name}{_WHY_RESTARTED.get(event.reason, '')}"
        case ev.Exited() | ev.Lost():
            return _ended(name, event)
        case ev.GroupEmptied():
            return _emptied(name, event)
        case ev.RestartScheduled() if event.reason is Reason.CRASH_LOOPING:
            return (
                WARN,
                f"{name} crash-looping, attempt {event.attempt}, next in {event.delay_s:.3g} s",
            )
        case ev.GaveUp():
            return ERROR, (
                f"{name} gave up: {event.restarts} restarts within {event.within_s:g} s;"
                f" circlectl start {name} tries again"
            )
        case ev.Adopted():
            return INFO, f"Adopted {name} (PID {event.pid})"
        case ev.Removed():
            return INFO, f"Removed {name}: it is no longer declared"
        case _:
            return None


def _ended(name: str | None, event: ev.Exited | ev.Lost) -> Line | None:
    if event.source is State.STOPPING:
        return None
    if isinstance(event, ev.Lost):
        return WARN, f"{name} ended while nobody watched, how is unknown"
    if event.message is not None:
        return ERROR, f"{name} cannot start: {event.message}"
    return (INFO if event.dest is State.STOPPED else WARN), f"{name} {exit_words(event)}"


def exit_words(event: ev.Exited) -> str:
    """How a process ended: `exited with code 3`, `killed by SIGKILL`."""
    if event.signal is None:
        return f"exited with code {event.exit_code}"
    try:
        return f"killed by {signal.Signals(event.signal).name}"
    except ValueError:
        return f"killed by signal {event.signal}"


def _emptied(name: str | None, event: ev.GroupEmptied) -> Line | None:
    killed = f" ({event.killed} of its processes needed SIGKILL)" if event.killed else ""
    if event.dest is State.STOPPED:
        waits = f": it {_WAITS}" if event.reason is Reason.WAITING else ""
        return INFO, f"Stopped {name}{killed}{waits}"
    return (WARN, f"{name}: the rest of its group is gone{killed}") if killed else None
