"""The commands about what is declared: show, plan, apply."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import click

from registry.client import RegistryError

from . import declaration, exits
from .commands import is_as_asked, outcomes, waiting, waits
from .screen import Screen
from .session import Session, common, complete_service, note, now, write
from .words import Record, escaped

_LATER = "by its next run"
_SIGNS = {"add": "+", "remove": "-", "change": "~"}


@click.command()
@click.argument("name", metavar="NAME", shell_complete=complete_service)
@click.option(
    "--run",
    type=int,
    metavar="N",
    help="As run N was begun; 0 is the present run, -1 the one before it.",
)
@click.option("--all", "everything", is_flag=True, help="Show what is as by default, too.")
@common
@click.pass_obj
def show(session: Session, name: str, run: int | None, everything: bool) -> int:
    """Show how a service is declared, as TOML.

    It can be pasted into services.toml. Of `env` the registry keeps no values: write them for "***".

    \b
    Examples:
      circlectl show web
      circlectl show web --all
      diff <(circlectl show web --run -1) <(circlectl show web)
    """
    data = session.call("show", service=name, **({} if run is None else {"run": run}))
    session.show(data, lambda: _shown(session.screen, data, everything))
    return exits.WELL


def _shown(screen: Screen, data: Record, everything: bool) -> Iterator[str]:
    definition = data["definition"]
    of_run = "as declared now" if data["run"] is None else f"run {data['run']}"
    yield f"# {escaped(data['name'])}, {of_run}, digest {escaped(data['digest'])}"
    if definition["instance_of"]:
        base, instance = escaped(definition["instance_of"]), definition["instance"]
        yield f'# one of the instances of {base}: "{{instance}}" is written out as {instance}'
    width = min(screen.width or declaration.WIDTH, declaration.WIDTH)
    yield from declaration.lines(definition, everything=everything, width=width)


@click.command()
@click.option(
    "--detailed-exitcode", is_flag=True, help="Exit with 2 where something would change, else 0."
)
@common
@click.pass_obj
def plan(session: Session, detailed_exitcode: bool) -> int:
    """Show what apply would change, and do nothing.

    A line a service: + is added, - removed, ~ changed, with its keys, and whether its run ends.

    \b
    Examples:
      circlectl plan
      circlectl plan --detailed-exitcode >/dev/null || echo "services.toml is not in force"
    """
    data = _ask(session, "plan")
    if data is None:
        return exits.INVALID_CONFIG
    session.show(data, lambda: _lines(session.screen, data, "nothing would change"))
    _warn(session, data)
    return exits.USAGE if detailed_exitcode and _changes(data) else exits.WELL


@click.command()
@waits
@common
@click.pass_obj
def apply(session: Session, wait: bool, timeout: float | None) -> int:
    """Take up services.toml as it is now.

    All of it, or nothing where anything is wrong; only what changed is touched. It tells what was done
    as plan does, once that is decided and durable; runs end and begin after it. With --wait it tells
    how each service that was added or changed is then, as start --wait does.

    \b
    Examples:
      circlectl apply
      circlectl plan && circlectl apply --wait
    """
    asked_at = now()
    try:
        data = _ask(session, "apply", **waiting(wait, timeout))
    except RegistryError as error:
        return _unsettled(session, error, asked_at)
    if data is None:
        return exits.INVALID_CONFIG
    session.show(data, lambda: _applied(session.screen, data, data.get("services", ()), asked_at))
    _warn(session, data)
    well = all(is_as_asked("apply", service) for service in data.get("services", ()))
    return exits.WELL if well else exits.FAILED


def _applied(
    screen: Screen, data: Record, services: Sequence[Record], asked_at: datetime
) -> Iterator[str]:
    """What was changed, and how those services are that were waited for."""
    yield from _lines(screen, data, "nothing is changed")
    yield from outcomes(screen, "apply", services, asked_at)


def _unsettled(session: Session, error: RegistryError, asked_at: datetime) -> int:
    """Applied, and not settled in time: what was changed, and who is late."""
    if error.code == "timed_out" and not session.json and isinstance(error.data, dict):
        data, late = error.data["plan"], error.data["services"]
        write(_applied(session.screen, data, late, asked_at))
        _warn(session, data)
        note(error.message)
    else:
        session.complain(error)
    return exits.of_code(error.code)


def _warn(session: Session, data: Record) -> None:
    """Say on standard error what this machine lacks for what is declared; with --json the answer says it."""
    if not session.json:
        sys.stdout.flush()
        write((f"! {escaped(warning)}" for warning in data.get("warnings", ())), sys.stderr)


def _ask(session: Session, action: str, **params: Any) -> Record | None:
    """The plan; None, and every complaint told, where the configuration is wrong."""
    try:
        data: Record = session.call(action, **params)
    except RegistryError as error:
        if error.code != "invalid_config":
            raise
        if session.json or not error.data:
            session.complain(error)
        else:
            write(map(escaped, error.data), sys.stderr)
        return None
    return data


def _lines(screen: Screen, data: Record, nothing: str) -> Iterator[str]:
    changes = data["changes"]
    width = max((len(change["service"]) for change in changes), default=0)
    for change in changes:
        sign, name = _SIGNS.get(change["change"], "~"), escaped(change["service"])
        what = screen.wrapped(width + 4, _what(change))
        yield f"{screen.mark(sign)} {name:{width}}  {what}".rstrip()
    for setting in data.get("settings", ()):
        yield f"{screen.mark('~')} {_place(setting)}: in place"
    if data["later"]:
        settings = escaped(", ".join(data["later"]))
        yield screen.wrapped(7, f"later: {settings}: for the next start of the registry")
    if not _changes(data):
        yield nothing


def _changes(data: Record) -> bool:
    return bool(data["changes"] or data.get("settings") or data["later"])


def _place(setting: str) -> str:
    """Where the file has it: `access.operate` is `[access] operate`, `hook` is `[[hook]]`."""
    section, _, key = escaped(setting).partition(".")
    return f"[{section}] {key}" if key else f"[[{section}]]"


def _what(change: Record) -> str:
    """What happens to a service: its keys, and what that means for its run."""
    anew = change["restart_keys"]
    rest = [key for key in change["keys"] if key not in anew]
    restarts = change["restarts"] and escaped(change["restarts"])
    if anew and rest:
        return f"{_listed(anew)}: {restarts or _LATER}; {_listed(rest)}: in place"
    if anew:
        return f"{_listed(anew)}: {restarts or _LATER}"
    if rest:
        return f"{_listed(rest)}: {restarts or 'in place'}"
    return restarts or ""


def _listed(keys: list[str]) -> str:
    return escaped(", ".join(keys))
