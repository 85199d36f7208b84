"""The commands that ask the journal for more than a moment: history, diff, report.

What is answered is laid out by registry/questions, whose modules are slow to load: each command loads its own.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from registry.client import RegistryError

from . import exits
from .screen import Screen
from .session import PAST_TIMEOUT_S, SELECTION, Count, Session, any_names, common, names, services
from .words import escaped

if TYPE_CHECKING:
    from registry.questions.spoken import Told

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

RUNS_SHOWN = 20
"""Runs of a service shown when nothing says how many."""

_INDENT = "    "
_TIMES = f"{SELECTION} A TIME is as in `circlectl logs --help`."


def period(command: F) -> F:
    """Let a command take --since and --until."""
    until = click.option("--until", metavar="TIME", help="Only up to TIME.")
    since = click.option("--since", metavar="TIME", help="Only from TIME on.")
    return since(until(command))


@click.command(epilog=_TIMES)
@names
@period
@click.option(
    "-n",
    "limit",
    type=Count(1, 100_000),
    default=RUNS_SHOWN,
    metavar="COUNT",
    help=f"How many runs, the latest. Default: {RUNS_SHOWN}.",
)
@common
@click.pass_obj
def history(session: Session, /, names: tuple[str, ...], limit: int, **times: str | None) -> int:
    """Show the runs of a service, newest last.

    Of each: when it began, how long it took to get ready, how long it ran, how it ended, and what was
    behind its beginning and its end: who asked for it, its policy, a dependency, another definition. A
    run that ended while nobody watched ended between two times.

    \b
    Examples:
      circlectl history web
      circlectl history web -n 3
      circlectl history web --since "1 day ago" --json
    """
    if not names:
        raise click.UsageError("name a service: circlectl history web")
    data = _asked(session, "history", service=services(names), limit=limit, **times)
    session.show(data, lambda: _histories(session.screen, data))
    return exits.WELL


def _histories(screen: Screen, data: Any) -> Iterator[str]:
    from registry.questions import spoken
    from registry.questions.history import History

    found = _taken(data, list[History])
    for number, each in enumerate(found):
        if number:
            yield ""
        if len(found) > 1:
            yield screen.bold(escaped(each.service))
        yield from _lines(screen, spoken.history(each))


@click.command(epilog=_TIMES)
@click.argument("since", metavar="T1")
@click.argument("until", metavar="T2")
@any_names
@common
@click.pass_obj
def diff(session: Session, since: str, until: str, names: tuple[str, ...]) -> int:
    """Show what changed between two moments, and who asked for it.

    Services that were added, removed, or are otherwise than they were: state, health, what is wanted, run,
    restarts, and which keys of their definition. T1 and T2 are times, or seq:N for after event N.

    \b
    Examples:
      circlectl diff 03:00 03:30
      circlectl diff "2 hours ago" "1 hour ago" web
      circlectl diff seq:1200 seq:1300 --json
    """
    data = _asked(session, "diff", since=since, until=until, **_chosen(names))
    session.show(data, lambda: _difference(session.screen, data))
    return exits.WELL


def _difference(screen: Screen, data: Any) -> Iterator[str]:
    from registry.questions import spoken
    from registry.questions.difference import Difference

    yield from _lines(screen, spoken.difference(_taken(data, Difference)))


@click.command(epilog=_TIMES)
@any_names
@period
@click.option("--boot", is_flag=True, help="Show how the latest start of the registry went.")
@click.option("--at", metavar="TIME|seq:N", help="With --boot: the latest start then.")
@common
@click.pass_obj
def report(
    session: Session, /, names: tuple[str, ...], boot: bool, at: str | None, **times: str | None
) -> int:
    """Show how available services were: outages, MTBF, MTTR, restarts.

    By default from the beginning of the journal to now. A service is up while it is Running and wanted up,
    down while it is wanted up and not Running; time wanted down, or after it completed, is neither. With
    NAME the time in each state is told, too.

    With --boot: what took how long when the registry started, and the chain of dependencies that took
    longest, which ends with NAME.

    \b
    Examples:
      circlectl report
      circlectl report web --since "7 days ago"
      circlectl report --boot
    """
    if boot and any(times.values()):
        raise click.UsageError("--boot is one start; leave out --since and --until, or write --at")
    if at is not None and not boot:
        raise click.UsageError("--at goes with --boot: add it, or write --since and --until")
    asked: dict[str, Any] = {"boot": True, "at": at} if boot else dict(times)
    data = _asked(session, "report", **asked, **_chosen(names))
    session.show(data, lambda: _report(session.screen, data, boot=boot, in_detail=bool(names)))
    return exits.WELL


def _report(screen: Screen, data: Any, *, boot: bool, in_detail: bool) -> Iterator[str]:
    from registry.questions import spoken
    from registry.questions.boot import Boot
    from registry.questions.report import Report

    if boot:
        yield from _lines(screen, spoken.boot(_taken(data, Boot)))
    else:
        yield from _lines(screen, spoken.report(_taken(data, Report), in_detail=in_detail))


def _asked(session: Session, action: str, **params: Any) -> Any:
    given = {key: value for key, value in params.items() if value is not None}
    with session.client(PAST_TIMEOUT_S) as client:
        return client.call(action, **given)


def _chosen(names: tuple[str, ...]) -> dict[str, str | list[str]]:
    return {"service": services(names)} if names else {}


def _taken(data: Any, kind: type[T]) -> T:
    """An answer as what it is. Raises RegistryError for one of another version that lacks something."""
    import msgspec

    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        message = f"the registry's answer cannot be shown ({error}); --json shows it as it is"
        raise RegistryError("invalid_answer", message) from None


def _lines(screen: Screen, told: Told) -> Iterator[str]:
    """Lines and tables as they fit on the screen."""
    for each in told:
        if not isinstance(each, str):
            yield from screen.table(each.header, each.rows)
        elif screen.width is None or len(each) <= screen.width:
            yield each
        else:
            yield from textwrap.wrap(each, screen.width, subsequent_indent=_INDENT)
