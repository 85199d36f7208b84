"""What the words of the registry's answers say to a person. Pure: no clock, no terminal.

Nothing that came from outside is shown raw: `escaped` makes control characters visible.
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from registry.questions.reasons import REASONS

Record = dict[str, Any]

NONE = "-"
_OF_LAUNCH = frozenset(
    {
        "crash_looping",
        "program_missing",
        "program_not_executable",
        "exec_failed",
        "cwd_missing",
        "user_missing",
        "group_missing",
        "env_file_missing",
        "env_file_invalid",
        "not_permitted",
        "socket_folder_missing",
        "socket_unavailable",
        "no_resources",
    }
)
"""The reasons that the sentence of a record, where it has one, says more of."""
_ON_ITS_WAY = ("Starting", "Stopping")
_NOT_FOR_PEOPLE = {"digest", "start_time", "due_ns", "exit_code", "signal", "group_empty"}


def escaped(text: object) -> str:
    """`text` with everything that is not printable as a backslash escape; `-` for None."""
    if text is None:
        return NONE
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def reason(record: Record) -> str:
    """Why a service is where it is; a reason that is newer than this table is its own word."""
    word = record["reason"] or NONE
    words = REASONS.get(word, word.replace("_", " "))
    return escaped(words.replace("{name}", record["name"]))


def detail(record: Record, now: datetime) -> str:
    """Why a service is where it is, what it waits for, and what comes next."""
    if record.get("waiting_for"):
        return f"waiting for {escaped(record['waiting_for'])}"
    words = [_sentence(record) or reason(record)]
    if record.get("next_restart_at"):
        if record.get("attempt"):
            words.append(f"attempt {record['attempt']}")
        words.append(f"next in {_remaining(record['next_restart_at'], now)}")
    return ", ".join(words)


def _sentence(record: Record) -> str | None:
    """What exactly kept its latest run from starting, or from getting ready."""
    is_told = record["reason"] in _OF_LAUNCH and record.get("message")
    return escaped(record["message"]) if is_told else None


def is_well(record: Record) -> bool:
    """Whether nobody needs to look: it is where it is wanted, or on its way, and not unhealthy."""
    status: str = record["status"]
    if status == "Running":
        ill: bool = record["health"] == "unhealthy"
        return not ill
    meant: bool = record["wanted"] == "down" or record["reason"] == "completed"
    return status in _ON_ITS_WAY or (status == "Stopped" and meant)


def last_exit(ended: Record | None, now: datetime) -> str:
    """How the latest run ended, and when."""
    if ended is None:
        return NONE
    return f"{exit_words(ended)} (run {ended['run']}, {age(ended['at'], now)} ago)"


def exit_words(ended: Record) -> str:
    """How a process ended, by its `exit_code` or `signal`."""
    if (number := ended.get("signal")) is not None:
        return f"killed by {_signal_name(number)}"
    if (code := ended.get("exit_code")) is not None:
        return f"exit code {code}"
    return "ended unseen"


def last_line(data: Record) -> str | None:
    """The last of the lines that say something."""
    return next((line for line in reversed(data.get("lines") or ()) if line.strip()), None)


def event(record: Record) -> list[str]:
    """An event as columns: number, time, service, type, and the rest in words."""
    return [
        str(record["seq"]),
        time_of(record["at"]),
        escaped(record["service"]),
        escaped(record["type"]),
        ", ".join(part for part in _event_parts(record) if part),
    ]


def _event_parts(record: Record) -> Iterable[str]:
    data = record["data"]
    if record["dest"]:
        moved = record["source"] != record["dest"]
        yield f"{record['source']} to {record['dest']}" if moved else escaped(record["dest"])
        yield _why(record)
    if record["type"] == "exited":
        yield exit_words(data)
    if said := last_line(data):
        yield f"said last: {escaped(said)}"
    for key, value in data.items():
        is_sent = key == "signal" and isinstance(value, str)  # not the one of an end
        if (is_sent or key not in _NOT_FOR_PEOPLE) and isinstance(value, str | int | float):
            yield f"{escaped(key)}={_value(value)}"
    if record["actor"]:
        yield _by(record["actor"])


def _why(record: Record) -> str:
    if record["reason"] == "autostart" and record["actor"]:  # who applied the file that declares it
        return "started, newly declared"
    return reason({"name": record["service"] or NONE, "reason": record["reason"]})


def _value(value: str | float) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else escaped(value)


def _by(actor: Record) -> str:
    details = ", ".join(escaped(each) for key in ("user", "program") if (each := actor.get(key)))
    return f"by uid {actor['uid']}" + (f" ({details})" if details else "")


def command_line(arguments: Iterable[str]) -> str:
    """A command as a shell would take it."""
    return escaped(shlex.join(arguments))


def moment(rfc3339: str) -> datetime:
    """A time of the registry; the beginning of all time where it cannot be read."""
    try:
        return datetime.fromisoformat(rfc3339).astimezone(UTC)
    except ValueError:
        return datetime.fromtimestamp(0, UTC)


def time_of(rfc3339: str | None) -> str:
    """A time to the second, in UTC, as in 2026-01-02 03:04:05Z."""
    return moment(rfc3339).strftime("%Y-%m-%d %H:%M:%SZ") if rfc3339 else NONE


def as_of(then: Record) -> str:
    """When an answer about the past is of."""
    if not then["seq"]:
        return "before the first event"
    idle = "" if then["supervised"] else ", no registry was running"
    return f"as of {time_of(then['asked'])}, after event {then['seq']}{idle}"


def age(rfc3339: str | None, now: datetime) -> str:
    """How long ago, in its two largest units: 5s, 2m 5s, 3d 4h."""
    if not rfc3339:
        return NONE
    return _span(max(0, int((now - moment(rfc3339)).total_seconds())))


def seconds(span_s: float) -> str:
    """A short time as it is said of a wait: 0.3 s, 24 s."""
    return f"{span_s:.1f} s" if span_s < 10 else f"{span_s:.0f} s"


def size(count: int) -> str:
    """Bytes as people say them: 512 B, 12.3 MB."""
    number, units = float(count), iter(("kB", "MB", "GB", "TB"))
    unit = "B"
    while number >= 999.5 and (larger := next(units, None)):
        number, unit = number / 1000, larger
    return f"{number:.3g} {unit}" if number < 999.5 else f"{number:.0f} {unit}"


def _remaining(rfc3339: str, now: datetime) -> str:
    left_s = max(0, -int((now - moment(rfc3339)).total_seconds() // 1))
    return f"{left_s} s" if left_s < 120 else _span(left_s)


def _span(total_s: int) -> str:
    minutes, seconds_ = divmod(total_s, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    units = ((days, "d"), (hours, "h"), (minutes, "m"), (seconds_, "s"))
    first = next((i for i, (count, _) in enumerate(units) if count), len(units) - 1)
    return " ".join(f"{count}{unit}" for count, unit in units[first : first + 2])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
