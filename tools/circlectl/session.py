"""What all commands share: --socket and --json in either place, NAME, durations, how answers are shown.

With --json standard output carries the answer's data and nothing else; what went wrong is on standard
error, there as one line of JSON too.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, TextIO, TypeVar

import click

from registry.client import DEFAULT_TIMEOUT_S, Client, RegistryError, default_socket

from .screen import Screen, standard
from .words import escaped

F = TypeVar("F", bound=Callable[..., Any])

EVERYTHING = "all"
"""The name that stands for every service."""

SELECTION = (
    "NAME is a service, what its instances have in common (web for web@1 and web@2), a pattern in quotes "
    "such as 'web*', tag:TAG for all that have the tag, or all."
)
"""How NAME is explained at the end of a command's help."""

COMPLETION_TIMEOUT_S = 1.0
"""How long a press of the tab key may wait for the registry."""

GRACE_S = 5.0
"""How long an answer may take beyond a --timeout that was given."""

PAST_TIMEOUT_S = 330.0
"""How long an answer about the past may take: a little more than the registry itself gives it."""

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?) ?(ms|s|m|h|)")


class Count(click.IntRange):
    """A whole number between bounds, by the name that people have for it."""

    name = "whole number"


class Session:
    """One command's way to the registry, and how its answers are to be shown."""

    def __init__(self) -> None:
        self.socket: str | None = None
        self.json = False
        self.timeout_s = DEFAULT_TIMEOUT_S
        self.screen: Screen = standard()

    def client(self, timeout_s: float | None = None) -> Client:
        """A connection to the registry that was named, or to the default one."""
        return Client(self.socket or default_socket(), timeout_s or self.timeout_s)

    def call(self, action: str, **params: Any) -> Any:
        """The data of one answer."""
        with self.client() as client:
            return client.call(action, **params)

    def past(self, action: str, at: str | None, **params: Any) -> Any:
        """The data of one answer as of then; where `at` is None as of now."""
        if at is None:
            return self.call(action, **params)
        with self.client(PAST_TIMEOUT_S) as client:
            return client.call(action, at=at, **params)

    def show(self, data: Any, lines: Callable[[], Iterable[str]]) -> None:
        """Print `data` as JSON where that was asked for, else `lines`."""
        if self.json:
            print(json.dumps(data, **_layout(self.screen)))
        else:
            write(lines())

    def complain(self, error: RegistryError) -> None:
        """Say on standard error what went wrong."""
        if self.json:
            shown = {"code": error.code, "message": error.message}
            if error.data is not None:
                shown["data"] = error.data
            print(json.dumps({"error": shown}), file=sys.stderr)
        else:
            note(error.message)


def _layout(screen: Screen) -> dict[str, Any]:
    return {"indent": 2} if screen.is_terminal else {"separators": (",", ":")}


def write(lines: Iterable[str], stream: TextIO | None = None) -> None:
    """Print lines, in one write, by default to standard output."""
    (stream or sys.stdout).write("".join(f"{line}\n" for line in lines))


def note(message: str) -> None:
    """One sentence on standard error."""
    sys.stdout.flush()
    print(f"circlectl: {escaped(message)}", file=sys.stderr, flush=True)


def now() -> datetime:
    """The time that ages are measured from."""
    return datetime.now(UTC)


def limit(context: click.Context, _option: click.Parameter, value: str | None) -> float | None:
    """The seconds of --timeout, as in 5, 500ms, 5s, 2m, 1h. Who gave it waits hardly longer for any answer."""
    if value is None:
        return None
    found = _DURATION.fullmatch(value)
    span_s = float(found[1]) * _UNITS_S[found[2]] if found else 0.0
    if span_s <= 0:
        raise click.BadParameter(f"{value!r} is no time above zero, such as 5, 5s, 500ms or 2m")
    context.ensure_object(Session).timeout_s = GRACE_S
    return span_s


def common(command: F) -> F:
    """Let a command (or the program) take --socket and --json."""
    with_socket = click.option(
        "--socket",
        metavar="PATH",
        expose_value=False,
        callback=_take_socket,
        help="The registry's socket; otherwise CIRCLEOSD_SOCKET, or /tmp/service-registry.sock.",
    )
    with_json = click.option(
        "--json",
        "as_json",
        is_flag=True,
        expose_value=False,
        callback=_take_json,
        help="Print the answer as JSON: compact, or indented on a terminal.",
    )
    return with_socket(with_json(command))


def _take_socket(context: click.Context, _option: click.Parameter, value: str | None) -> None:
    session = context.ensure_object(Session)
    session.socket = value or session.socket


def _take_json(context: click.Context, _option: click.Parameter, value: bool) -> None:
    session = context.ensure_object(Session)
    session.json = value or session.json


def at(command: F) -> F:
    """Let a command ask of the past by --at."""
    option = click.option(
        "--at",
        "at",
        metavar="TIME|seq:N",
        help="As it was then: 03:14, '2 hours ago', 2026-01-02T03:04:05Z (UTC), or after event N.",
    )
    return option(command)


def names(command: F) -> F:
    """Let a command take services as SELECTION says."""
    argument = click.argument("names", metavar="NAME...", nargs=-1, shell_complete=complete_names)
    return argument(command)


def any_names(command: F) -> F:
    """The same where naming none means all."""
    argument = click.argument("names", metavar="[NAME...]", nargs=-1, shell_complete=complete_names)
    return argument(command)


def services(names: tuple[str, ...]) -> str | list[str]:
    """The parameter `service` for the names of a command line."""
    if EVERYTHING in names:
        return EVERYTHING
    return names[0] if len(names) == 1 else list(dict.fromkeys(names))


def is_selection(word: str) -> bool:
    """Whether a word is more than a name: it may mean several services."""
    return word == EVERYTHING or word.startswith("tag:") or bool(set("*?[") & set(word))


def complete_service(context: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """The services whose names begin like that; none where the registry cannot be asked."""
    session = context.ensure_object(Session)
    try:
        with Client(session.socket or default_socket(), COMPLETION_TIMEOUT_S) as client:
            records = client.call("list_services")
        return [r["name"] for r in records if r["name"].startswith(incomplete)]
    except (RegistryError, LookupError, TypeError):
        return []


def complete_names(context: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The same, and the names that stand for several: of instances, and of all."""
    found = complete_service(context, param, incomplete)
    bases = dict.fromkeys(name.partition("@")[0] for name in found if "@" in name)
    more = [name for name in (*bases, EVERYTHING) if name.startswith(incomplete)]
    return [*found, *more]
