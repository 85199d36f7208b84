"""The commands that change something: start, stop, restart, reset, signal, reload, shutdown, upgrade.

A command was accepted when it is in the journal. With --wait it succeeded when each service ended as
asked: Stopped after stop, else Running, or Stopped because it completed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any, TypeVar

import click

from registry.client import RegistryError

from . import exits, words
from .screen import Screen
from .session import (
    EVERYTHING,
    SELECTION,
    Session,
    common,
    limit,
    names,
    note,
    now,
    services,
    write,
)
from .words import Record, escaped

F = TypeVar("F", bound=Callable[..., Any])

TIMEOUT_S = 60.0

_NO_RELOAD_NAME = (
    "reload takes a NAME: a service re-reads its own files. "
    "To take up a changed services.toml: circlectl apply"
)
_TOLD_EACH = ("partial_failure", "timed_out")
"""The errors whose data tell of each service."""


def waits(command: F) -> F:
    """Let a command wait for the end of what it began."""
    with_timeout = click.option(
        "--timeout",
        metavar="SECONDS",
        callback=limit,
        help=f"Wait at most so long (5s, 2m; {TIMEOUT_S:g} s by default). Implies --wait.",
    )
    with_wait = click.option(
        "--wait", is_flag=True, help="Wait until each is where it was asked to be."
    )
    return with_wait(with_timeout(command))


@click.command(epilog=SELECTION)
@names
@waits
@common
@click.pass_obj
def start(session: Session, names: tuple[str, ...], wait: bool, timeout: float | None) -> int:
    """Start services, and want them up.

    \b
    Examples:
      circlectl start web
      circlectl start web db --wait --timeout 30s
    """
    return _command(session, "start", names, wait, timeout)


@click.command(epilog=SELECTION)
@names
@click.option(
    "--with-dependents", is_flag=True, help="Stop first what depends on them, directly or not."
)
@waits
@common
@click.pass_obj
def stop(
    session: Session,
    names: tuple[str, ...],
    with_dependents: bool,
    wait: bool,
    timeout: float | None,
) -> int:
    """Stop services, and want them down.

    What depends on them goes on, and is named, unless --with-dependents stops it, too.

    \b
    Examples:
      circlectl stop web
      circlectl stop db --with-dependents
      circlectl stop all --wait
    """
    more = {"with_dependents": True} if with_dependents else {}
    return _command(session, "stop", names, wait, timeout, **more)


@click.command(epilog=SELECTION)
@names
@waits
@common
@click.pass_obj
def restart(session: Session, names: tuple[str, ...], wait: bool, timeout: float | None) -> int:
    """Stop services where they run, and start them.

    \b
    Examples:
      circlectl restart web
      circlectl restart web --wait --timeout 2m && echo "web is ready"
    """
    return _command(session, "restart", names, wait, timeout)


@click.command(epilog=SELECTION)
@names
@common
@click.pass_obj
def reset(session: Session, names: tuple[str, ...]) -> int:
    """Forget past failures.

    Counters go to zero, a Failed service is Stopped.

    \b
    Examples:
      circlectl reset web
      circlectl reset all
    """
    return _command(session, "reset", names, False, None)


@click.command(epilog=SELECTION)
@names
@click.argument("signal_", metavar="SIGNAL", required=False)
@common
@click.pass_obj
def signal(session: Session, names: tuple[str, ...], signal_: str | None) -> int:
    """Send a signal to the main process of services.

    SIGNAL is a name or a number: HUP, SIGHUP, 1.

    \b
    Examples:
      circlectl signal web HUP
      circlectl signal tag:front USR1
    """
    if not names or signal_ is None:
        raise click.UsageError("name the services, and then the signal: circlectl signal web HUP")
    return _request(session, "signal", f"signal {signal_} sent", names, signal=signal_)


@click.command(epilog=SELECTION)
@names
@click.option(
    "--timeout",
    metavar="SECONDS",
    callback=limit,
    help=f"Wait at most so long for a command that reloads (5s, 2m; {TIMEOUT_S:g} s by default).",
)
@common
@click.pass_obj
def reload(session: Session, names: tuple[str, ...], timeout: float | None) -> int:
    """Have services re-read their own files.

    It does what `reload` in their definition says: sends a signal, or runs a command and waits for its end.

    \b
    Examples:
      circlectl reload nginx
      circlectl reload tag:front --timeout 5s
    """
    if not names:
        raise click.UsageError(_NO_RELOAD_NAME)
    limit_s = TIMEOUT_S if timeout is None else timeout
    return _request(session, "reload", "reloaded", names, wait=True, timeout=limit_s)


def waiting(wait: bool, timeout: float | None) -> dict[str, Any]:
    """The parameters for the options of `waits`."""
    if not wait and timeout is None:
        return {}
    return {"wait": True, "timeout": TIMEOUT_S if timeout is None else timeout}


@click.command()
@click.option("--keep-services", is_flag=True, help="Leave them running, for the next registry.")
@common
@click.pass_obj
def shutdown(session: Session, keep_services: bool) -> int:
    """Stop every service, then the registry itself.

    \b
    Examples:
      circlectl shutdown
      circlectl shutdown --keep-services
    """
    params = {"keep_services": True} if keep_services else {}
    data = session.call("shutdown", **params)
    services = "keeps" if keep_services else "stops"
    session.show(data, lambda: [f"the registry {services} its services, and ends"])
    return exits.WELL


@click.command()
@common
@click.pass_obj
def upgrade(session: Session) -> int:
    """Run the installed code; no service notices.

    The registry reads its configuration anew, too. Where the code or the configuration would not start,
    nothing happens.

    \b
    Examples:
      circlectl upgrade
    """
    before = session.call("version")["started_at"]
    try:
        session.call("upgrade")
    except RegistryError as error:
        if session.json or not isinstance(error.data, list):
            raise
        for why in error.data:
            note(f"cannot upgrade: {why}")
        return exits.of_code(error.code)
    after = _begun_after(session, before)
    version, pid = escaped(after["version"]), after["pid"]
    session.show(after, lambda: [f"the registry is {version} now, PID {pid}; its services went on"])
    return exits.WELL


def _begun_after(session: Session, before: str) -> dict[str, Any]:
    """What the registry says of itself once it has begun anew."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            found: dict[str, Any] = session.call("version")
            if found["started_at"] != before:
                return found
        except RegistryError:
            if time.monotonic() > deadline:
                raise
        if time.monotonic() > deadline:
            raise RegistryError("timed_out", f"it did not begin anew within {TIMEOUT_S:g} s")
        time.sleep(0.05)


def _command(
    session: Session,
    command: str,
    names: tuple[str, ...],
    wait: bool,
    timeout: float | None,
    **more: bool,
) -> int:
    if not names:
        raise click.UsageError(f"name the services to {command}, or {EVERYTHING}")
    params: dict[str, Any] = {"service": services(names), **more}
    params |= waiting(wait, timeout)
    asked_at = now()
    try:
        data = session.call(command, **params)
    except RegistryError as error:
        return _failed(session, command, error, asked_at)
    session.show(data, lambda: outcomes(session.screen, command, data, asked_at))
    if not session.json:
        _tell_dependents(data)
    return exits.WELL if all(is_as_asked(command, item) for item in data) else exits.FAILED


def _tell_dependents(items: list[Record]) -> None:
    """Say what goes on without that which it depends on."""
    for item in items:
        if running := item.get("dependents"):
            verbs, them = (
                ("runs and depends", "it") if len(running) == 1 else ("run and depend", "them")
            )
            name = item["name"]
            note(
                f"{' and '.join(running)} still {verbs} on {name}; "
                f"circlectl stop {name} --with-dependents stops {them} first"
            )


def _request(
    session: Session, command: str, done: str, names: tuple[str, ...], **params: Any
) -> int:
    """Ask the services named for something that is `done` when the answer comes."""
    asked_at = now()
    try:
        data = session.call(command, service=services(names), **params)
    except RegistryError as error:
        return _failed(session, command, error, asked_at, done)
    session.show(data, lambda: _done(session.screen, done, data))
    return exits.WELL


def _done(screen: Screen, done: str, items: Iterable[Record]) -> Iterator[str]:
    return (f"{screen.bold(escaped(item['name']))}: {escaped(done)}" for item in items)


def _failed(
    session: Session,
    command: str,
    error: RegistryError,
    asked_at: datetime,
    done: str | None = None,
) -> int:
    """Show what is known of each service; the exit status."""
    tells_each = error.code in _TOLD_EACH and isinstance(error.data, list)
    items = error.data if tells_each else []
    if session.json or not items:
        session.complain(error)
    else:
        well = [item for item in items if item.get("ok", True)]
        screen = session.screen
        write(_done(screen, done, well) if done else outcomes(screen, command, well, asked_at))
        refused = [item for item in items if not item.get("ok", True)]
        for item in refused:
            note(f"{item['name']}: {_message(item)}")
        if not refused:
            note(error.message)
    codes = {_code(item) for item in items if not item.get("ok", True)}
    return exits.of_code(str(codes.pop())) if len(codes) == 1 else exits.of_code(error.code)


def _code(item: Record) -> str | None:
    error = item.get("error")
    return error.get("code") if isinstance(error, dict) else error


def _message(item: Record) -> str:
    error = item.get("error")
    return str(error.get("message") if isinstance(error, dict) else error)


def outcomes(
    screen: Screen, command: str, items: Iterable[Record], asked_at: datetime
) -> Iterator[str]:
    """A line a service: what it came to, or that the command was accepted."""
    for item in items:
        outcome = (
            _final(screen, command, item, asked_at)
            if _is_record(item)
            else _accepted(screen, command, item)
        )
        yield f"{screen.bold(escaped(item['name']))}: {outcome}"


def _is_record(item: Record) -> bool:
    """Whether this is a final service record, not the receipt of a command."""
    return "wanted" in item


def _accepted(screen: Screen, command: str, item: Record) -> str:
    if item.get("already"):
        return f"already {screen.state(escaped(item['status']))}"
    return f"{command} accepted (seq {item['seq']})"


def _final(screen: Screen, command: str, record: Record, asked_at: datetime) -> str:
    parts = [screen.state(escaped(record["status"]))]
    if record["pid"] is not None:
        parts.append(f"PID {record['pid']}")
    if not (record["status"] == "Running" or (command == "stop" and is_as_asked(command, record))):
        parts.append(words.detail(record, now()))
    took_s = (words.moment(record["since"]) - asked_at).total_seconds() if record["since"] else 0.0
    if took_s <= 0 and is_as_asked(command, record):
        return f"already {', '.join(parts)}"
    if took_s > 0:
        parts.append(f"after {words.seconds(took_s)}")
    return ", ".join(parts)


def is_as_asked(command: str, item: Record) -> bool:
    """Whether a service is where the command wanted it; `apply` wants it where it is wanted."""
    if not _is_record(item) or (command != "stop" and item["status"] == "Running"):
        return True
    completed: bool = item["reason"] == "completed"
    down = command == "stop" or (command == "apply" and item["wanted"] == "down")
    return item["status"] == "Stopped" and (completed or down)
