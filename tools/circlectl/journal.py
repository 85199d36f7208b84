"""The commands about the journal as a file: circlectl journal info, export, compact."""

from __future__ import annotations

import os
from collections.abc import Iterator

import click

from registry.questions import rows

from . import exits, words
from .declaration import duration
from .session import Count, Session, common, note, write
from .words import Record, escaped

QUERY_S = 60.0
"""How long an answer in SQL may take: it is given up after 30 s, and may have waited 25 s for others."""
LONG_S = 3600.0
"""How long a copy of a large journal may take."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@common
def journal() -> None:
    """Show how the journal is, copy it, remove its oldest events.

    \b
    Examples:
      circlectl journal info
      circlectl journal export /backup/registry-2026-11-28.db
      circlectl journal compact --keep 30d --archive /backup/older.db
    """


@journal.command()
@common
@click.pass_obj
def info(session: Session) -> int:
    """Show how the journal is: its file, its first and last event, what it begins with.

    \b
    Examples:
      circlectl journal info
      circlectl journal info --json | jq -r .last.hash      # to note elsewhere, for replay --verify --head
    """
    data = session.call("journal_info")
    session.show(data, lambda: _info(data))
    return exits.WELL


def _info(data: Record) -> Iterator[str]:
    first, last, anchor = data["first"], data["last"], data["anchor"]
    rows = {
        "path": escaped(data["path"]),
        "size": f"{words.size(data['size'])}, of which {words.size(data['used'])} are in use",
        "wal": words.size(data["wal"]),
        "events": f"{data['events']}",
        "first": f"event {first['seq']}, {words.time_of(first['at'])}",
        "last": f"event {last['seq']}, {words.time_of(last['at'])}",
        "head": last["hash"],
        "begins with": "nothing: none was removed"
        if anchor is None
        else f"what was after event {anchor['seq']}, {words.time_of(anchor['at'])},"
        f" and {anchor['kept']} earlier events that still count",
        "snapshots": f"{data['snapshots']}",
        "keep": "unlimited" if data["keep_s"] is None else str(duration(data["keep_s"])),
        "max_size": "unlimited" if data["max_size"] is None else words.size(data["max_size"]),
        "schema": f"{data['schema']}",
        "written": "yes"
        if data["degraded_since"] is None
        else f"not since {words.time_of(data['degraded_since'])}: {escaped(data['trouble'])}",
    }
    yield from (f"{name:13}{value}" for name, value in rows.items())


@journal.command()
@click.argument("file", metavar="FILE", type=click.Path())
@click.option("--until", metavar="TIME", help="Only events up to TIME, as of circle-replay.")
@common
@click.pass_obj
def export(session: Session, file: str, until: str | None) -> int:
    """Copy the journal into FILE, which circle-replay reads.

    One consistent file, made while the registry runs. It is written by the registry's user, for him alone, and must
    not exist yet. A name without a slash is one in the journal's folder; only that user and root may name another.

    \b
    Examples:
      circlectl journal export /backup/registry-2026-11-28.db
      circlectl journal export ./before.db --until 03:14
    """
    with session.client(LONG_S) as client:
        data = client.call("journal_export", path=_path(file), until=until)
    session.show(data, lambda: [_exported(data)])
    return exits.WELL


@journal.command()
@click.option(
    "--keep",
    metavar="DURATION",
    help="How long events stay, such as 30d, 12h, or 60 for seconds; else as configured.",
)
@click.option(
    "--archive", metavar="FILE", type=click.Path(), help="Copy what goes into FILE before."
)
@common
@click.pass_obj
def compact(session: Session, keep: str | None, archive: str | None) -> int:
    """Remove the oldest events from the journal.

    Every question about a later moment is answered as before; what runs keeps its beginning and its causes. The
    registry does this by itself as [journal] keep and max_size say.

    \b
    Examples:
      circlectl journal compact --keep 30d
      circlectl journal compact --keep 30d --archive /backup/older.db
    """
    with session.client(LONG_S) as client:
        path = _path(archive) if archive is not None else None
        data = client.call("journal_compact", keep=keep, archive=path)
    session.show(data, lambda: _compacted(data))
    return exits.WELL


@click.command()
@click.argument("sql", metavar="SELECT")
@click.option(
    "--limit",
    type=Count(min=0),
    default=1000,
    show_default=True,
    help="So many rows at most.",
)
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values.")
@common
@click.pass_obj
def query(session: Session, sql: str, limit: int, as_csv: bool) -> int:
    """Ask the journal in SQL: one select, of its tables and views.

    It is answered by a process beside the registry, which reads only, within 30 s. With --json a row is an object, and
    a second column of the name seq is seq:1. On a terminal, a table shows 60 characters of a value.

    \b
    Examples:
      circlectl query "select reason, count(*) from restarts group by reason"
      circlectl query "select * from runs where service = 'web' order by run desc" --limit 5
      circlectl query "select * from actions" --csv > actions.csv
    """
    if as_csv and session.json:
        raise click.UsageError("--csv goes without --json: an answer has one form")
    with session.client(QUERY_S) as client:
        data = client.call("query", sql=sql, limit=limit)
    columns, found = data["columns"], data["rows"]
    if session.json or as_csv:
        write((rows.objects if session.json else rows.as_csv)(columns, found))
    else:
        write(rows.table(columns, found, rows.CELL_MAX if session.screen.is_terminal else None))
    if data["is_cut"]:
        note(rows.cut(len(data["rows"]), data.get("cut_by")))
    return exits.WELL


def _path(file: str) -> str:
    """A name alone is one in the journal's folder; one with a slash is seen from here."""
    return os.path.abspath(file) if "/" in file else file


def _exported(data: Record) -> str:
    events = f"events {data['first']} to {data['last']}"
    return f"{escaped(data['path'])}: {events}, {words.size(data['size'])}, head {data['hash']}"


def _compacted(data: Record) -> Iterator[str]:
    if data["archive"] is not None:
        yield _exported(data["archive"])
    if data["removed"]:
        yield f"{data['removed']} events removed: the journal begins with event {data['first']}"
    else:
        yield "nothing is older: no event was removed"
