"""The commands that may go on: logs and events.

`events -f` outlives the registry: it asks again, from the number of the last event that it showed, so
that none is missed and none shown twice. Lines of a log have no number, so `logs -f` ends instead.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import click

from registry.client import Client, RegistryError
from registry.questions.moments import EXAMPLES, moment

from . import exits, words
from .screen import Screen
from .session import (
    EVERYTHING,
    SELECTION,
    Session,
    common,
    complete_names,
    is_selection,
    note,
    write,
)
from .words import Record

LINES_SHOWN = 50
"""Lines of a log shown when nothing says how many, or which."""

EVENTS_SHOWN = 20
"""Events shown when nothing says how many, or from where."""

PAGE_MAX = 1000
"""Events shown after --since when nothing says how many."""

RETRY_FIRST_S = 0.1
RETRY_MAX_S = 2.0

_ENDED = "the registry has ended, and with it this log's stream"
_PASSING = ("not_running", "disconnected", "shutting_down", "journal_unavailable")


def _time(_context: click.Context, _option: click.Parameter, text: str | None) -> str | None:
    if text is not None and moment(text, time.time_ns()) is None:
        raise click.BadParameter(f"{text!r} is not a time; write for example {EXAMPLES}")
    return text


@click.command(epilog=SELECTION)
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete_names)
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(min=0),
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
    wrote them, control characters included. With --json a line is a string, or an object with --times
    and of several services; with -f too each is on a line of its own.

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
    if one and not times:
        return _plain_logs(session, one, follow=follow, asked=asked)
    if not follow:
        data = session.call("logs", **asked)
        session.show(data, lambda: _stamped(data, one, times=times))
        return exits.WELL
    for page in session.client().stream("logs", follow=True, **asked):
        _show_page(session, page, _stamped(page, one, times=times))
    raise RegistryError("disconnected", _ENDED)


def _plain_logs(session: Session, name: str, *, follow: bool, asked: dict[str, Any]) -> int:
    """The lines of one service as it wrote them."""
    is_chosen = asked.keys() & {"since", "until", "run"}
    if not is_chosen:
        del asked["stamps"]
    if not follow:
        data = session.call("logs", **asked)
        told, lines = _plain(data, name)
        session.show(told, lambda: lines)
        if is_chosen and any(line["run"] is None for line in data):
            note("some of these lines have no index: they are chosen by the times of their file")
        return exits.WELL
    for page in session.client().stream("logs", follow=True, **asked):
        _show_page(session, *_plain(page, name))
    raise RegistryError("disconnected", _ENDED)


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
    "--since", type=click.IntRange(min=0), metavar="N", help="Only events after number N."
)
@click.option(
    "--service",
    metavar="NAME",
    shell_complete=complete_names,
    help="Only those of NAME: a service, or several.",
)
@click.option("--type", "kind", metavar="TYPE", help="Only those of one type, such as exited.")
@click.option(
    "-n",
    "--lines",
    "limit",
    type=click.IntRange(min=1),
    metavar="LIMIT",
    help=f"How many: the last ones, or the first after N. Default: {EVENTS_SHOWN}, {PAGE_MAX} after N.",
)
@common
@click.pass_obj
def events(
    session: Session,
    follow: bool,
    since: int | None,
    service: str | None,
    kind: str | None,
    limit: int | None,
) -> int:
    """Show what happened, oldest first.

    By default the last 20 events of the journal. With -f it goes on across restarts of the registry,
    and misses nothing; with --json and -f every event is a line.

    \b
    Examples:
      circlectl events -f
      circlectl events --service web --type exited -n 5
      circlectl events --since 1200 --json
    """
    chosen = {key: value for key, value in (("service", service), ("type", kind)) if value}
    if not follow:
        return _events(session, since, limit, chosen)
    if since is not None and limit is not None:
        raise click.UsageError("-f --since N shows all after N; leave out -n")
    if since is None:
        since = _show_latest(session, limit or EVENTS_SHOWN, chosen)
    for page in _unbroken(session.client(), since, chosen):
        _show_page(session, page, _event_lines(session.screen, page))
    return exits.WELL


def _events(session: Session, since: int | None, limit: int | None, chosen: dict[str, str]) -> int:
    if since is None:
        limit = limit or EVENTS_SHOWN
        since = -limit
    limit = limit or PAGE_MAX
    page = session.call("events", since=since, limit=limit, **chosen)
    session.show(page, lambda: _event_lines(session.screen, page))
    if since >= 0 and len(page) == limit:
        note(f"there may be more: --since {page[-1]['seq']}")
    return exits.WELL


def _show_latest(session: Session, limit: int, chosen: dict[str, str]) -> int:
    """Show the last events; the number to follow from."""
    with session.client() as client:
        newest = client.call("events", since=-1, limit=1)
        page = client.call("events", since=-limit, limit=limit, **chosen)
    _show_page(session, page, _event_lines(session.screen, page))
    seq: int = max(event["seq"] for event in [*newest, *page, {"seq": 0}])
    return seq


def _unbroken(client: Client, since: int, chosen: dict[str, str]) -> Iterator[list[Record]]:
    """Pages of events after `since`, from one registry after the other."""
    pause_s = 0.0
    while True:
        try:
            for page in client.stream("events", since=since, follow=True, **chosen):
                if pause_s:
                    note("the registry is back")
                    pause_s = 0.0
                if page:
                    since = page[-1]["seq"]
                    yield page
        except RegistryError as error:
            if error.code not in _PASSING:
                raise
        if not pause_s:
            note(f"the registry has gone; going on after event {since} when it is back")
        pause_s = min(pause_s * 2 or RETRY_FIRST_S, RETRY_MAX_S)
        time.sleep(pause_s)


def _show_page(session: Session, page: list[Any], lines: Iterable[str]) -> None:
    """Print the page of a stream, at once: with --json an element a line."""
    write((json.dumps(entry, separators=(",", ":")) for entry in page) if session.json else lines)
    if page:
        sys.stdout.flush()


def _event_lines(screen: Screen, page: list[Record]) -> Iterator[str]:
    for seq, at, service, kind, rest in map(words.event, page):
        yield from screen.row([f"{seq:>6}", at, f"{service:14}", f"{kind:17}"], rest)
