"""The timeline: every event as one line that a person can read.

An event is one line whatever it holds: a service's words are shown, its control characters are not obeyed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from signal import Signals
from typing import Any

from registry.core.events import Actor
from registry.questions.records import EventRecord

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def line(event: EventRecord, *, seq_width: int = 0, service_width: int = 0) -> str:
    """`  12  2026-01-02T03:04:05.678Z  web  Running -> Failed  exited with code 3 (run 2)  <- #11`."""
    cause = f"  <- #{event.cause}" if event.cause is not None else ""
    at = f"{event.at[:23]}Z"  # to the millisecond
    service = printable(event.service or "-")
    return f"{event.seq:>{seq_width}}  {at}  {service:<{service_width}}  {happened(event)}{cause}"


def log_line(
    text: str,
    service: str,
    at: str | None,
    *,
    is_hint: bool = False,
    seq_width: int = 0,
    service_width: int = 0,
) -> str:
    """A line that a service wrote, among events: `   |  2026-01-02T03:04:05.678Z  web  GET /`.

    The mark is `|`, or `~` where it was written then or some time after, `?` where nobody knows when.
    """
    mark = "?" if at is None else "~" if is_hint else "|"
    when = f"{at[:23]}Z" if at is not None else "-"
    words = printable(_COLOURS.sub("", text).expandtabs())
    return f"{mark:>{seq_width}}  {when:24}  {printable(service):<{service_width}}  {words}"


def happened(event: EventRecord) -> str:
    """What happened, from where to where that led, and who asked for it."""
    move = f"{event.source} -> {event.dest}  " if event.source != event.dest else ""
    return move + said(event)


def said(event: EventRecord) -> str:
    """What happened, and who asked for it. A type that is not known is told by its name."""
    words = _WORDS.get(event.type)
    text = words(event, event.data) if words is not None else event.type.replace("_", " ")
    return printable(text + by(event.actor))


def printable(text: str) -> str:
    """`text` with everything that is not printable as a backslash escape."""
    """`text` with everything that is not printable as a backslash escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def by(actor: Actor | None) -> str:
    """` by uid 0 (root, circlectl, pid 4711)`; nothing where nobody asked."""
    if actor is None:
        return ""
    known = (actor.user, actor.program, f"pid {actor.pid}" if actor.pid is not None else None)
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


def _journal_compacted(_event: EventRecord, data: _Data) -> str:
    return (
        f"{_count(data['events'], 'event')} up to event {data['through']} removed from the journal"
    )


_REQUESTS = {
    "autostart": " by its definition (autostart)",
    "shutdown": " for the shutdown",
    "removed": ": it is no longer defined",
    "waiting": " (waits for what it depends on)",
    "required": " (needed by one that was started)",
    "dependency": " (follows one that it depends on)",
    "redefined": " (it is defined differently)",
}


def _requested(event: EventRecord, _data: _Data) -> str:
    verb = event.type.removesuffix("_requested")
    held = event.type == "stop_requested" and event.dest in ("Starting", "Running")
    later = " (once those that depend on it have stopped)" if held else ""
    return f"{verb} requested{_REQUESTS.get(event.reason or '', '')}{later}"


def _spawned(event: EventRecord, data: _Data) -> str:
    return f"spawned as pid {data['pid']} (run {event.run})"


def _spawn_failed(_event: EventRecord, data: _Data) -> str:
    return f"could not be spawned: {data['message']}"


def _became_ready(event: EventRecord, _data: _Data) -> str:
    return f"ready (run {event.run})"


def _dependencies_met(_event: EventRecord, _data: _Data) -> str:
    return "what it waited for is as it needs it"


def _dependents_gone(_event: EventRecord, _data: _Data) -> str:
    return "those that depend on it have stopped"


def _stop_announced(event: EventRecord, _data: _Data) -> str:
    return f"said that it stops (run {event.run})"


def _stop_timed_out(event: EventRecord, data: _Data) -> str:
    within = f"within {data['timeout_s']:g} s"
    return f"said that it stops, and did not {within} (run {event.run})"


def _memory_exceeded(event: EventRecord, data: _Data) -> str:
    held, allowed = (f"{data[key] / (1 << 20):.0f}" for key in ("bytes", "memory_max"))
    return f"held {held} MiB of memory, more than its {allowed} (run {event.run})"


def _main_changed(event: EventRecord, data: _Data) -> str:
    return f"its main process is pid {data['pid']} from here on (run {event.run})"


def _timeout_extended(event: EventRecord, _data: _Data) -> str:
    return f"asked for more time (run {event.run})"


def _watchdog_changed(event: EventRecord, data: _Data) -> str:
    return f"its heartbeat is due every {data['interval_s']:g} s (run {event.run})"


def _signal_requested(_event: EventRecord, data: _Data) -> str:
    return f"{data['signal']} requested"


def _request_done(_event: EventRecord, data: _Data) -> str:
    error = data.get("error")
    return f"could not be done: {error}" if error else "done"


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
    killed = f", {data['killed']} killed" if data.get("killed") else ""
    return f"nothing is left of run {event.run}{killed}{_waits(event)}"


def _restart_due(event: EventRecord, _data: _Data) -> str:
    return f"restart due{_waits(event)}"


def _waits(event: EventRecord) -> str:
    return ", waits for what it depends on" if event.reason == "waiting" else ""


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
    "journal_compacted": _journal_compacted,
    "start_requested": _requested,
    "stop_requested": _requested,
    "restart_requested": _requested,
    "reset_requested": _requested,
    "spawned": _spawned,
    "spawn_failed": _spawn_failed,
    "became_ready": _became_ready,
    "dependencies_met": _dependencies_met,
    "dependents_gone": _dependents_gone,
    "stop_announced": _stop_announced,
    "stop_timed_out": _stop_timed_out,
    "memory_exceeded": _memory_exceeded,
    "main_changed": _main_changed,
    "timeout_extended": _timeout_extended,
    "watchdog_changed": _watchdog_changed,
    "signal_requested": _signal_requested,
    "request_done": _request_done,
    "start_timed_out": _start_timed_out,
    "became_unhealthy": _became_unhealthy,
    "became_healthy": _became_healthy,
    "probe_changed": _probe_changed,
    "exited": _exited,
    "lost": _lost,
    "output_ended": _output_ended,
    "group_emptied": _group_emptied,
    "restart_scheduled": _restart_scheduled,
    "restart_due": _restart_due,
    "gave_up": _gave_up,
    "adopted": _adopted,
}
"""The other types are told by their names: registry stopped, defined, redefined, removed, reload requested."""
