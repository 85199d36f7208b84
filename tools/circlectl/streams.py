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

from . import exits, words
from .screen import Screen
from .session import Session, common, complete_service, name, note, write
from .words import Record

EVENTS_SHOWN = 20
"""Events shown when nothing says how many, or from where."""

PAGE_MAX = 1000
"""Events shown after --since when nothing says how many."""

RETRY_FIRST_S = 0.1
RETRY_MAX_S = 2.0

_PASSING = ("not_running", "disconnected", "shutting_down", "journal_unavailable")


@click.command()
@name
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(min=0),
    default=50,
    show_default=True,
    help="How many of the last lines.",
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on.")
@common
@click.pass_obj
def logs(session: Session, name: str, lines: int, follow: bool) -> int:
    """Show the last lines of a service's output.

    They come as the service wrote them, control characters included. With --json and -f every line
    is a JSON string on a line of its own.

    \b
    Examples:
      circlectl logs web
      circlectl logs web -n 200 -f
    """
    if not follow:
        data = session.call("logs", service=name, lines=lines)
        session.show(data, lambda: data)
        return exits.WELL
    for page in session.client().stream("logs", service=name, lines=lines, follow=True):
        _show_page(session, page, page)
    raise RegistryError("disconnected", "the registry has ended, and with it this log's stream")


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens from now on.")
@click.option(
    "--since", type=click.IntRange(min=0), metavar="N", help="Only events after number N."
)
@click.option(
    "--service", metavar="NAME", shell_complete=complete_service, help="Only those of one service."
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
