"""The timeline: every event as one line that a person can read.

An event is one line whatever it holds: a service's words are shown, its control characters are not obeyed.
"""

from __future__ import annotations

from collections.abc import Callable
from signal import Signals
from typing import Any

from registry.core.events import Actor
from registry.questions.records import EventRecord


def line(event: EventRecord, *, seq_width: int = 0, service_width: int = 0) -> str:
    """`  12  2026-01-02T03:04:05.678Z  web  Running -> Failed  exited with code 3 (run 2)  <- #11`."""
    cause = f"  <- #{event.cause}" if event.cause is not None else ""
    at = f"{event.at[:23]}Z"  # to the millisecond
    service = event.service or "-"
    return f"{event.seq:>{seq_width}}  {at}  {service:<{service_width}}  {happened(event)}{cause}"


def happened(event: EventRecord) -> str:
    """What happened, and who asked for it. A type that is not known is told by its name."""
    words = _WORDS.get(event.type)
    text = words(event, event.data) if words is not None else event.type.replace("_", " ")
    move = f"{event.source} -> {event.dest}  " if event.source != event.dest else ""
    return move + _printable(text + _by(event.actor))


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _by(actor: Actor | None) -> str:
    if actor is None:
        return ""
    known = (actor.program, f"pid {actor.pid}" if actor.pid is not None else None)
    details = ", ".join(part for part in known if part)
    return f" by uid {actor.uid}" + (f" ({details})" if details else "")


# --- the words of each type: `data` leaves out what is as usual -----------------------------------

_Data = dict[str, Any]


def _resynced(_event: EventRecord, data: _Data) -> str:
    return f"its state after {data['events']} events that could not be written"


def _journal_created(_event: EventRecord, data: _Data) -> str:
    return f"journal {data['journal_id']} created"


def _journal_copied(_event: EventRecord, data: _Data) -> str:
    return f"found to be a copy of {data['source']}; journal {data['journal_id']} from here on"


def _registry_started(_event: EventRecord, data: _Data) -> str:
    what = "started" if data["fresh"] else "took over"
    return f"registry {data['version']} {what} (pid {data['pid']})"


_REQUESTS = {
    "autostart": " by its definition (autostart)",
    "shutdown": " for the shutdown",
    "removed": ": it is no longer defined",
}


def _requested(event: EventRecord, _data: _Data) -> str:
    verb = event.type.removesuffix("_requested")
    return f"{verb} requested{_REQUESTS.get(event.reason or '', '')}"


def _spawned(event: EventRecord, data: _Data) -> str:
    return f"spawned as pid {data['pid']} (run {event.run})"


def _spawn_failed(_event: EventRecord, data: _Data) -> str:
    return f"could not be spawned: {data['message']}"


def _became_ready(event: EventRecord, _data: _Data) -> str:
    return f"ready (run {event.run})"


def _start_timed_out(event: EventRecord, data: _Data) -> str:
    return f"not ready within {data['timeout_s']:g} s (run {event.run})"


def _became_unhealthy(event: EventRecord, data: _Data) -> str:
    failed = f"check {data['check']} failed {_times(data['failures'])}{_colon(data.get('error'))}"
    return failed if event.source != event.dest else f"unhealthy: {failed}"


def _became_healthy(_event: EventRecord, data: _Data) -> str:
    return f"healthy: check {data['check']} succeeded {_times(data['successes'])}"


def _probe_changed(_event: EventRecord, data: _Data) -> str:
    result = "succeeds" if data["ok"] else f"fails{_colon(data.get('error'))}"
    ended = data.get("ended")
    if ended is None:
        return f"check {data['check']} {result}"
    before = "success" if ended["ok"] else "failure"
    return f"check {data['check']} {result} (after {_count(ended['count'], before)})"


def _exited(event: EventRecord, data: _Data) -> str:
    if data.get("never_ran"):
        how = "ended before its program ran"
    elif "signal" in data:
        how = f"killed by {_signal(data['signal'])}"
    else:
        how = f"exited with code {data.get('exit_code')}"
    return f"{how} (run {event.run}){_rest(data)}{_colon(data.get('message'))}"


def _lost(event: EventRecord, data: _Data) -> str:
    return f"ended while nobody watched (run {event.run}){_rest(data)}"


def _rest(data: _Data) -> str:
    return "" if data.get("group_empty", True) else ", others of its group are still there"


def _output_ended(event: EventRecord, data: _Data) -> str:
    said = next((text for text in reversed(data.get("lines", ())) if text.strip()), None)
    words = f"said last (run {event.run}): {said}" if said else f"said nothing (run {event.run})"
    lost = data.get("dropped")
    return f"{words}, {_count(lost, 'byte')} of output lost" if lost else words


def _group_emptied(event: EventRecord, data: _Data) -> str:
    killed = data.get("killed", 0)
    return f"nothing is left of run {event.run}" + (f", {killed} killed" if killed else "")


def _restart_scheduled(_event: EventRecord, data: _Data) -> str:
    when = f"in {data['delay_s']:.2f} s" if data["delay_s"] else "at once"
    attempt = f" {data['attempt']}" if data["attempt"] else ""
    return f"restart{attempt} {when}"


def _gave_up(_event: EventRecord, data: _Data) -> str:
    return f"gave up after {_count(data['restarts'], 'restart')} within {data['within_s']:g} s"


def _adopted(event: EventRecord, data: _Data) -> str:
    return f"found alive as pid {data['pid']} (run {event.run})"


def _colon(text: str | None) -> str:
    return f": {text}" if text else ""


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _count(count: int, noun: str) -> str:
    plural = "es" if noun.endswith("s") else "s"
    return f"{count} {noun}{'' if count == 1 else plural}"


def _signal(number: int) -> str:
    try:
        return Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


_WORDS: dict[str, Callable[[EventRecord, _Data], str]] = {
    "resynced": _resynced,
    "journal_created": _journal_created,
    "journal_copied": _journal_copied,
    "registry_started": _registry_started,
    "start_requested": _requested,
    "stop_requested": _requested,
    "restart_requested": _requested,
    "reset_requested": _requested,
    "spawned": _spawned,
    "spawn_failed": _spawn_failed,
    "became_ready": _became_ready,
    "start_timed_out": _start_timed_out,
    "became_unhealthy": _became_unhealthy,
    "became_healthy": _became_healthy,
    "probe_changed": _probe_changed,
    "exited": _exited,
    "lost": _lost,
    "output_ended": _output_ended,
    "group_emptied": _group_emptied,
    "restart_scheduled": _restart_scheduled,
    "gave_up": _gave_up,
    "adopted": _adopted,
}
"""The other types are told by their names: registry stopped, defined, redefined, removed, restart due."""
