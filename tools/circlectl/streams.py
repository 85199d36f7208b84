"""The commands that may go on: logs and events.

Followed, both outlive the registry. `events -f` asks again from the number of the last event that it
showed, so that none is missed and none shown twice. Lines of a log have no number: `logs -f` asks for
those from a little before the last that it showed, and finds by their words and times where it was.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import click

from registry.client import RegistryError
from registry.questions.moments import EXAMPLES, Moment, moment

from . import exits, words
from .screen import Screen
from .session import (
    EVERYTHING,
    SELECTION,
    Count,
    Session,
    common,
    complete_names,
    is_selection,
    note,
    now,
    write,
)
from .words import Record

LINES_SHOWN = 50
"""Lines of a log shown when nothing says how many, or which."""

EVENTS_SHOWN = 20
"""Events shown when nothing says how many, or from where."""

PAGE_MAX = 1000
"""Events shown after --since when nothing says how many."""

NAME_WIDTH = 14
"""Of the column of names, at least: of a stream the longest name is not known before it comes."""

RETRY_FIRST_S = 0.1
RETRY_MAX_S = 2.0

OVERLAP = timedelta(seconds=10)
"""So much of a log is asked for once more, to find in it what was shown."""

_REMEMBERED = 100
"""Lines of each service that are compared for it."""

_FILES = "the files are there without it, by default in var/log"
Page = TypeVar("Page")

_PASSING = ("not_running", "disconnected", "shutting_down", "journal_unavailable")


def _time(_context: click.Context, _option: click.Parameter, text: str | None) -> str | None:
    if text is not None and moment(text, time.time_ns()) is None:
        raise click.BadParameter(f"{text!r} is not a time; write for example {EXAMPLES}")
    return text


def _number_or_time(
    _context: click.Context, _option: click.Parameter, text: str | None
) -> int | Moment | None:
    if text is None or (text.isascii() and text.isdecimal()):
        return None if text is None else int(text[:18])
    found = moment(text, time.time_ns())
    if found is None:
        what = "is neither the number of an event nor a time"
        raise click.BadParameter(f"{text!r} {what}; write for example 1200, {EXAMPLES}")
    return found


@click.command(epilog=SELECTION)
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete_names)
@click.option(
    "-n",
    "--lines",
    type=Count(min=0),
    metavar="COUNT",
    help=f"How many of the last lines. Default: {LINES_SHOWN}, or all with --since, --until, --run.",
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on.")
@click.option("--since", callback=_time, metavar="TIME", help="Only lines written from TIME on.")
@click.option("--until", callback=_time, metavar="TIME", help="Only lines written up to TIME.")
@click.option(
    "--run",
    type=int,
    metavar="N",
    help="Only what run N wrote; 0 is the present run, -1 the one before it.",
)
@click.option(
    "-t", "--times", is_flag=True, help="Show when each line was written, and by which run."
)
@common
@click.pass_obj
def logs(
    session: Session,
    /,
    names: tuple[str, ...],
    lines: int | None,
    follow: bool,
    times: bool,
    **selection: str | int | None,
) -> int:
    """Show the last lines of output, of one service or several.

    Those of several are in the order of time, each with the name before it. They come as the services
    wrote them, control characters included; bytes that are not UTF-8 come as U+FFFD. With --json a line
    is a string, or an object with --times and of several services; with -f too each is on a line of its own.

    A TIME is as in circle-replay: 2026-01-02T03:04:05Z, "2026-01-02 03:04:05", 03:14 (today), all of
    them UTC, or "2 hours ago", 5m ago.

    \b
    Examples:
      circlectl logs web
      circlectl logs web -n 200 -f
      circlectl logs web --run -1
      circlectl logs web db --since 03:14 --until 03:15 --times
    """
    chosen = {key: value for key, value in selection.items() if value is not None}
    if follow and chosen.keys() & {"until", "run"}:
        raise click.UsageError("-f goes on without an end; leave out --until and --run")
    one = names[0] if len(set(names)) == 1 and not is_selection(names[0]) else None
    if lines is None and not chosen:
        lines = LINES_SHOWN
    if lines is not None:
        chosen["lines"] = lines
    services = EVERYTHING if EVERYTHING in names else one or list(dict.fromkeys(names))
    asked = {"service": services, "stamps": True, **chosen}
    try:
        if follow:
            _follow_logs(session, one, times=times, asked=asked)
        elif one and not times:
            _plain_logs(session, one, asked)
        else:
            data = session.call("logs", **asked)
            session.show(data, lambda: _stamped(data, one, times=times))
            _note_unknown(data, asked, times=times)
    except RegistryError as error:
        if error.code != "not_running":
            raise
        raise RegistryError(error.code, f"{error.message}; {_FILES}") from None
    return exits.WELL


def _plain_logs(session: Session, name: str, asked: dict[str, Any]) -> None:
    """The lines of one service as it wrote them."""
    is_chosen = asked.keys() & {"since", "until", "run"}
    if not is_chosen:
        del asked["stamps"]
    data = session.call("logs", **asked)
    told, lines = _plain(data, name)
    session.show(told, lambda: lines)
    if is_chosen:
        _note_unknown(data, asked, times=False)


def _note_unknown(data: list[Record], asked: dict[str, Any], *, times: bool) -> None:
    """Say of lines that no index knows what that means for what was asked."""
    if all(line["run"] is not None for line in data):
        return
    if "run" in asked:
        how = "they stand where that run may have written"
    elif asked.keys() & {"since", "until"}:
        how = "they are chosen by the times of their file"
    elif times:
        how = "when they were written, and by which run, is not known"
    else:
        how = "where they stand among those of others is a guess"
    note(f"some of these lines have no index: {how}")


def _follow_logs(session: Session, one: str | None, *, times: bool, asked: dict[str, Any]) -> None:
    """Show lines without an end, of one registry after the other."""
    client, shown = session.client(), Shown()

    def stream() -> Iterator[list[Record]]:
        again = {"since": shown.since()} if shown.is_begun else {}
        chosen = {key: value for key, value in asked.items() if not (again and key == "lines")}
        for number, page in enumerate(client.stream("logs", follow=True, **(chosen | again))):
            new = shown.unseen(page) if again and number == 0 else page
            shown.add(new)
            yield new

    for page in _unbroken(stream, lambda: "going on when it is back"):
        plain = _plain(page, one) if one and not times else None
        _show_page(session, *(plain or (page, _stamped(page, one, times=times))))


class Shown:
    """What was shown last of each service: by it the first lines of another stream are known again."""

    def __init__(self) -> None:
        self.is_begun = False
        self._texts: dict[str, deque[str]] = {}
        self._at: dict[str, str] = {}
        self._began_at = now().isoformat()

    def add(self, page: Iterable[Record]) -> None:
        """These have been shown now."""
        self.is_begun = True
        for line in page:
            name = line["service"]
            self._texts.setdefault(name, deque(maxlen=_REMEMBERED)).append(line["line"])
            self._at[name] = line["at"] or self._at.get(name, "")

    def since(self) -> str:
        """From when on all that was not shown yet was written, and a little before it."""
        latest = max(self._at.values(), default="") or self._began_at
        return (words.moment(latest) - OVERLAP).isoformat()

    def unseen(self, page: list[Record]) -> list[Record]:
        """Those of the first lines of another stream that were not shown yet."""
        of: dict[str, list[int]] = {}
        for place, line in enumerate(page):
            of.setdefault(line["service"], []).append(place)
        new = [
            place
            for name, places in of.items()
            for place in places[self._count([page[each] for each in places], name) :]
        ]
        return [page[place] for place in sorted(new)]

    def _count(self, lines: list[Record], name: str) -> int:
        """How many of these lines of a service were shown. None was written after it was seen."""
        last, at = list(self._texts.get(name, ())), self._at.get(name) or self._began_at
        for count in range(len(lines), 0, -1):
            same = [line["line"] for line in lines[max(0, count - len(last)) : count]]
            if (lines[count - 1]["at"] or "") <= at and same and same == last[-len(same) :]:
                return count
        later = (place for place, line in enumerate(lines) if (line["at"] or at) > at)
        return next(later, len(lines))


def _plain(page: list[Any], name: str) -> tuple[list[Any], Iterable[str]]:
    """A page of one service for --json and for people. Where the name stands for instances, it is of several."""
    if any(isinstance(line, dict) and line["service"] != name for line in page):
        return page, _stamped(page, None, times=False)
    texts = [line["line"] if isinstance(line, dict) else line for line in page]
    return texts, texts


def _stamped(page: list[Record], one: str | None, *, times: bool) -> Iterator[str]:
    """Lines with what is asked for before each: when, of which run, of whom, unless all are of `one`."""
    named = any(line["service"] != one for line in page)
    width = max((len(line["service"]) for line in page), default=0)
    for line in page:
        run = f"#{line['run']}" if line["run"] is not None else words.NONE
        at = f"{line['at'][:23]}Z" if line["at"] else f"{words.NONE:24}"
        before = [f"{at} {run:>5}"] if times else []
        if named:
            before.append(f"{words.escaped(line['service']):{width}} |")
        yield " ".join([*before, line["line"]])


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens from now on.")
@click.option(
    "--since",
    "after",
    callback=_number_or_time,
    metavar="N|TIME",
    help="Only events after number N, or from TIME on.",
)
@click.option(
    "--service",
    "-s",
    "whose",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_names,
    help="Only those of NAME: a service, or several; repeatable.",
)
@click.option(
    "--type",
    "kinds",
    multiple=True,
    metavar="TYPE",
    help="Only those of a type, such as exited; repeatable.",
)
@click.option(
    "-n",
    "--lines",
    "limit",
    type=Count(min=1),
    metavar="LIMIT",
    help=f"How many: the last ones, or the first after N. Default: {EVENTS_SHOWN}, {PAGE_MAX} after N.",
)
@common
@click.pass_obj
def events(
    session: Session,
    follow: bool,
    after: int | Moment | None,
    whose: tuple[str, ...],
    kinds: tuple[str, ...],
    limit: int | None,
) -> int:
    """Show what happened, oldest first.

    By default the last 20 events of the journal. With -f it goes on across restarts of the registry,
    and misses nothing; with --json and -f every event is a line. A TIME is as in logs.

    \b
    Examples:
      circlectl events -f
      circlectl events --since "10m ago"
      circlectl events --service web --type exited --type lost -n 5
      circlectl events -f --service tag:front
      circlectl events --since 1200 --json
    """
    chosen: dict[str, Any] = {
        key: list(words) if len(words) > 1 else words[0]
        for key, words in (("service", whose), ("type", kinds))
        if words
    }
    since = _last_before(session, after) if isinstance(after, Moment) else after
    if not follow:
        return _events(session, since, limit, chosen)
    lines = _EventLines(session.screen)
    if since is not None and limit is not None:
        raise click.UsageError("-f --since N shows all after N; leave out -n")
    if since is None:
        since = _show_latest(session, limit or EVENTS_SHOWN, chosen, lines)
    _follow_events(session, since, chosen, lines)
    return exits.WELL


def _events(session: Session, since: int | None, limit: int | None, chosen: dict[str, Any]) -> int:
    if since is None:
        limit = limit or EVENTS_SHOWN
        since = -limit
    limit = limit or PAGE_MAX
    page = session.call("events", since=since, limit=limit, **chosen)
    session.show(page, lambda: _EventLines(session.screen).of(page))
    if since >= 0 and len(page) == limit:
        note(f"there may be more: --since {page[-1]['seq']}")
    return exits.WELL


def _last_before(session: Session, moment_: Moment) -> int:
    """The number of the last event before a time, or the one below the first there is. Events are in order of time."""
    at = datetime.fromtimestamp(moment_.first_ns // 10**9, UTC)
    at = at.replace(microsecond=moment_.first_ns % 10**9 // 1000)
    with session.client() as client:
        oldest = client.call("events", since=0, limit=1)
        newest = client.call("events", since=-1, limit=1)
        before = oldest[0]["seq"] - 1 if oldest else 0
        beyond = newest[-1]["seq"] + 1 if newest else 1
        while beyond - before > 1:
            middle = (before + beyond) // 2
            found = client.call("events", since=middle - 1, limit=1)
            if found and words.moment(found[0]["at"]) < at:
                before = middle
            else:
                beyond = middle
    return before


def _show_latest(session: Session, limit: int, chosen: dict[str, Any], lines: _EventLines) -> int:
    """Show the last events; the number to follow from."""
    with session.client() as client:
        newest = client.call("events", since=-1, limit=1)
        page = client.call("events", since=-limit, limit=limit, **chosen)
    _show_page(session, page, lines.of(page))
    seq: int = max(event["seq"] for event in [*newest, *page, {"seq": 0}])
    return seq


def _follow_events(
    session: Session, since: int, chosen: dict[str, Any], lines: _EventLines
) -> None:
    """Show events after `since` without an end, of one registry after the other."""
    client = session.client()

    def stream() -> Iterator[Record]:
        yield from client.stream("events", since=since, follow=True, seen=True, **chosen)

    def going_on() -> str:
        return f"going on after event {since} when it is back"

    for page in _unbroken(stream, going_on):
        events = page["events"]
        _show_page(session, events, lines.of(events))
        since = page["seen"]


def _unbroken(stream: Callable[[], Iterator[Page]], going_on: Callable[[], str]) -> Iterator[Page]:
    """The pages of one stream after the other; an error where the first has none."""
    pause_s = 0.0
    is_begun = False
    while True:
        try:
            for page in stream():
                is_begun = True
                if pause_s:
                    note("the registry is back")
                    pause_s = 0.0
                yield page
        except RegistryError as error:
            if error.code not in _PASSING or not is_begun:
                raise
        if not pause_s:
            note(f"the registry has gone; {going_on()}")
        pause_s = min(pause_s * 2 or RETRY_FIRST_S, RETRY_MAX_S)
        time.sleep(pause_s)


def _show_page(session: Session, page: list[Any], lines: Iterable[str]) -> None:
    """Print the page of a stream, at once: with --json an element a line."""
    write((json.dumps(entry, separators=(",", ":")) for entry in page) if session.json else lines)
    if page:
        sys.stdout.flush()


class _EventLines:
    """Events as lines, whose column of names is as wide as the longest so far takes."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._width = NAME_WIDTH

    def of(self, page: list[Record]) -> Iterator[str]:
        """Those of a page."""
        rows = list(map(words.event, page))
        self._width = max([self._width, *(len(row[2]) for row in rows)])
        for seq, at, service, kind, rest in rows:
            columns = [f"{seq:>6}", at, f"{service:{self._width}}", f"{kind:17}"]
            yield from self._screen.row(columns, rest)
