"""The answers about the past for people: lines and tables, which circlectl and replay lay out each in its way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from signal import Signals
from typing import Any, NamedTuple

from registry.questions.boot import Boot, Link, ServiceStart
from registry.questions.difference import Difference, Moment, ServiceChange
from registry.questions.history import By, History, Run
from registry.questions.records import EventRecord
from registry.questions.report import STATES, Report, ServiceReport
from registry.questions.timeline import printable, said

NONE = "-"
_RUNS = ("RUN", "STARTED", "READY", "RAN", "ENDED", "WHY")
_SERVICES = ("NAME", "AVAILABLE", "DOWN", "OUTAGES", "LONGEST", "MTBF", "MTTR", "DETAIL")
_STARTS = ("NAME", "TOOK", "WAITED", "SPAWN", "READY", "RESULT")
_SIGNS = {"add": "+", "remove": "-", "change": "~"}


class Table(NamedTuple):
    """A header, and rows of as many cells."""

    header: tuple[str, ...]
    rows: list[list[str]]


Told = Iterator[str | Table]


def span(seconds: float | None) -> str:
    """How long something took: 12ms, 0.35s, 4.2s, 2m 5s, 3d 4h."""
    if seconds is None:
        return NONE
    if not seconds:
        return "0s"
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 9.95:
        return f"{seconds:.2g}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    units = ((days, "d"), (hours, "h"), (minutes, "m"), (rest, "s"))
    first = next(i for i, (count, _) in enumerate(units) if count)
    shown = [f"{count}{unit}" for count, unit in units[first : first + 2] if count]
    return " ".join(shown)


def _time(at: str | None) -> str:
    return f"{at[:10]} {at[11:19]}Z" if at else NONE


# --- history --------------------------------------------------------------------------------------


def history(told: History) -> Told:
    """The runs of a service as a table, the newest last."""
    if not told.runs:
        yield f"{printable(told.service)}: no run of it is in that time"
        return
    if told.is_cut:
        yield f"the latest {_count(len(told.runs), 'run')}; a larger -n shows more"
    yield Table(_RUNS, [_run(run) for run in told.runs])


def _run(run: Run) -> list[str]:
    return [
        str(run.run),
        _time(run.started),
        span(run.ready_s),
        span(run.ran_s),
        _ended(run),
        "; ".join(_why(run)),
    ]


def _ended(run: Run) -> str:
    if run.ended is None:
        return "runs"
    if run.never_ran:
        return "never ran"
    if run.signal is not None:
        return _signal(run.signal)
    return f"exit code {run.exit_code}" if run.exit_code is not None else "unknown"


def _why(run: Run) -> Iterator[str]:
    if run.started_by is not None:
        yield _by(run.started_by)
    else:
        yield "how it began is not in the journal"
    if run.adopted:
        yield f"taken over {_times(run.adopted)}"
    if run.changed:
        yield f"declared differently: {', '.join(run.changed)}"
    if run.ended_by is not None:
        yield f"ended by: {_by(run.ended_by)}"
    if run.ended_after is not None:
        yield f"ended while nobody watched, from {_time(run.ended_after)} to {_time(run.ended)}"


def _by(by: By) -> str:
    after = f", after {printable(by.after.service or NONE)}: {said(by.after)}" if by.after else ""
    return f"{said(by.event)}{after}"


# --- difference -----------------------------------------------------------------------------------


def difference(told: Difference) -> Told:
    """What changed, and who asked for it."""
    yield f"from {_moment(told.since)} to {_moment(told.until)}: {_count(told.events, 'event')}"
    if not told.services:
        yield "no service is otherwise than it was"
    for change in told.services:
        yield _change(change)
    if told.acts:
        yield "in between:" if not told.is_cut else f"in between, the last {len(told.acts)}:"
    for act in told.acts:
        yield _act(act)


def _moment(moment: Moment) -> str:
    if moment.at is None:
        return "before the first event"
    return f"event {moment.seq} ({_time(moment.at)})"


def _change(change: ServiceChange) -> str:
    before, after = change.before or {}, change.after or {}
    begin = f"{_SIGNS.get(change.change, '?')} {printable(change.service)}  "
    if change.change == "add":
        return f"{begin}{_state(after)}"
    if change.change == "remove":
        return f"{begin}it was {_state(before)}"
    parts = [f"{_key(key)} {_value(before.get(key))} -> {_value(after[key])}" for key in after]
    if change.keys:
        parts.append(f"declared differently: {', '.join(map(printable, change.keys))}")
    return begin + ", ".join(parts)


def _state(seen: dict[str, Any]) -> str:
    return f"{_value(seen.get('status'))}, {_value(seen.get('reason')).replace('_', ' ')}"


def _key(key: str) -> str:
    return printable(key.replace("_", " "))


def _value(value: object) -> str:
    return NONE if value is None else printable(str(value))


def _act(event: EventRecord) -> str:
    service = printable(event.service or NONE)
    return f"  {event.seq}  {_time(event.at)}  {service}  {said(event)}"


# --- report ---------------------------------------------------------------------------------------


def report(told: Report, *, in_detail: bool) -> Told:
    """How available services were; `in_detail` with the time in each state."""
    period = told.period
    yield f"from {_time(period.since)} to {_time(period.until)}, {span(period.seconds)}"
    if not told.services:
        yield "no service was declared then, as far as the journal tells"
        return
    yield Table(_SERVICES, [_service(service) for service in told.services])
    if in_detail:
        yield ""
        yield from map(_states, told.services)


def _states(told: ServiceReport) -> str:
    """The time in each state, and its share of the whole."""
    whole_s = sum(told.states_s.values())
    shown = [
        f"{state} {span(spent_s)} ({spent_s / whole_s:.1%})"
        for state in STATES
        if (spent_s := told.states_s.get(state))
    ]
    return f"{printable(told.service)}: {', '.join(shown) or 'no time has passed'}"


def _share(seconds: float | None) -> str:
    return span(seconds) if seconds else NONE


def _service(told: ServiceReport) -> list[str]:
    longest = told.longest_outage
    ongoing = "+" if longest is not None and longest.ongoing else ""
    return [
        printable(told.service),
        _percent(told.availability),
        _share(told.down_s),
        str(told.outages),
        f"{span(longest.seconds)}{ongoing}" if longest is not None else NONE,
        span(told.mtbf_s),
        span(told.mttr_s),
        ", ".join(_detail(told)),
    ]


def _detail(told: ServiceReport) -> Iterator[str]:
    if told.restarts:
        yield _count(told.restarts, "restart")
    if told.restarts and told.restarts_per_day is not None:
        yield f"{told.restarts_per_day:.3g} a day"
    if told.unknown_s:
        yield f"{span(told.unknown_s)} unknown"
    if not told.declared:
        yield "no longer declared"


def _percent(ratio: float | None) -> str:
    """To three decimals, and never rounded up to all."""
    if ratio is None:
        return NONE
    shown = f"{ratio * 100:.3f}"
    return f"{'99.999' if shown == '100.000' and ratio < 1 else shown}%"


# --- report --boot --------------------------------------------------------------------------------


def boot(told: Boot) -> Told:
    """What took how long, and the chain that took longest, its end first."""
    how = "started" if told.fresh else "took over"
    done = f"; all was done after {span(told.seconds)}" if told.seconds is not None else ""
    version = printable(told.version)
    yield f"registry {version} {how} {_time(told.at)} (pid {told.pid}, event {told.seq}){done}"
    if not told.services:
        yield "no service was to start with it"
        return
    yield Table(_STARTS, [_start(start) for start in told.services])
    if told.chain:
        yield ""
        yield "the longest way, its end first (when it began, how long it took):"
    for depth, link in enumerate(reversed(told.chain)):
        yield _link(depth, link)


def _start(start: ServiceStart) -> list[str]:
    times = (start.took_s, start.waited_s, start.spawn_s, start.ready_s)
    return [printable(start.service), *map(span, times), start.result]


def _link(depth: int, link: Link) -> str:
    needed = f" ({link.condition})" if depth else ""
    begin = f"  {'  ' * depth}{printable(link.service)}{needed}"
    return f"{begin} @{span(link.began_s)} +{span(link.took_s)}"


# --- words ----------------------------------------------------------------------------------------


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _signal(number: int) -> str:
    try:
        return Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def aligned(told: Sequence[str | Table] | Told) -> Iterator[str]:
    """Lines and tables as lines, however wide."""
    for each in told:
        if isinstance(each, str):
            yield each
            continue
        columns = list(zip(each.header, *each.rows, strict=True))
        widths = [max(map(len, column)) for column in columns]
        for cells in (each.header, *each.rows):
            yield "  ".join(map(str.ljust, cells, widths)).rstrip()
