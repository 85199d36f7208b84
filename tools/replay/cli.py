"""The command `circle-replay`: what happened, what was, and whether the journal can be trusted.

Answers go to stdout, remarks and complaints to stderr. Exit status 0; 1 where the journal cannot be read
or trusted, or does not hold what was asked for; 2 for a wrong command line, 74 where the answer cannot be
written, 78 for faults in the file of --what-if.
"""

from __future__ import annotations

import difflib
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NamedTuple

import click
from click.core import ParameterSource

import registry
from registry import stdout
from registry.core.events import TYPES
from registry.journal import JournalDamaged, JournalError
from registry.journal.opening import Connection, doubt, open_for_reading
from registry.journal.query import ROWS_MAX, query
from registry.journal.read import Selection, at_of, service_names, shortened, verify
from registry.journal.salvage import Part, trusted_part
from registry.past.then import Then, seq_of, then
from registry.questions import moments, rows
from registry.questions.choice import Choice
from registry.questions.moments import AT_EXAMPLES, EXAMPLES, At, Moment, moment
from registry.questions.refusal import Refusal

from . import answers, logs, past, pictures, what_if
from .player import SPEED_MAX, SPEED_MIN, Player

QUERY_S = 3600.0
_INTERRUPTED = 128 + signal.SIGINT

_HELP = """What happened, read from the file JOURNAL: no running registry is needed, nor disturbed.

Without options: every event, oldest first. `<- #12` names the event that led to it.

\b
A TIME is in UTC where it does not say otherwise:
  2026-01-02T03:04:05Z   2026-01-02T03:04:05.678+01:00   "2026-01-02 03:04:05"
  03:14   03:14:07       today, UTC
  "2 hours ago"   5m ago   (s, m, h, d)
It stands for all that it names: 03:14:07 for that whole second, 03:14:07.678 for that millisecond;
03:14 is 03:14:00.

Where the clock was set back, times do not follow the order of events: --since and --until choose by
each event's own time, and --at TIME means the state after the last event, in sequence, that is not
later than TIME.

With --logs a line of a log has `|` in place of a number; `~` where its time is that or some time after; `?`
where no index tells when it was written: it stands after what precedes it in its file.

A live journal is the file and the -wal beside it: copy both.

Exit status: 0; 1 where the journal cannot be read or trusted, or does not hold what was asked for;
2 for a wrong command line; 74 where the answer cannot be written; 78 where the file of --what-if has
faults."""


def _time(_ctx: click.Context, _param: click.Parameter, text: str | None) -> Moment | None:
    found = moment(text, time.time_ns()) if text is not None else None
    if text is not None and found is None:
        raise click.BadParameter(f"{text!r} is not a time; write for example {EXAMPLES}")
    return found


def _time_or_seq(_ctx: click.Context, _param: click.Parameter, text: str | None) -> At | None:
    found = moments.at(text, time.time_ns()) if text is not None else None
    if text is not None and found is None:
        raise click.BadParameter(f"{text!r} is not a time; write for example {AT_EXAMPLES}")
    return found


def _two_moments(
    ctx: click.Context, param: click.Parameter, texts: tuple[str, str] | None
) -> tuple[At, ...]:
    found = (_time_or_seq(ctx, param, text) for text in texts or ())
    return tuple(moment for moment in found if moment is not None)


def _speed(_ctx: click.Context, _param: click.Parameter, text: str | None) -> float | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)x?", text)
    if match is None or not SPEED_MIN <= float(match[1]) <= SPEED_MAX:
        raise click.BadParameter(f"{text!r} is no speed; write for example 1, 60 or 0.5x")
    return float(match[1])


def _types(_ctx: click.Context, _param: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    for strange in (each for each in given if each not in TYPES):
        close = difflib.get_close_matches(strange, TYPES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(TYPES)}"
        raise click.BadParameter(f"there is no type {strange!r}; {hint}")
    return given


def _hash(_ctx: click.Context, _param: click.Parameter, text: str | None) -> str | None:
    if text is not None and not re.fullmatch(r"[0-9a-fA-F]{40}", text):
        raise click.BadParameter(f"{text!r} is not a hash, which has 40 hexadecimal digits")
    return text.lower() if text is not None else None


class _Asked(NamedTuple):
    """The command line."""

    path: Path
    at: At | None
    why_of: str | None
    words: tuple[str, ...]
    since: Moment | None
    until: Moment | None
    types: tuple[str, ...]
    actions: bool
    failures: bool
    diff: tuple[Moment | int, ...]
    history_of: str | None
    limit: int | None
    wants_report: bool
    of_boot: bool
    speed: float | None
    sql: str | None
    as_csv: bool
    folders: tuple[Path, ...]
    other: Path | None
    as_json: bool
    wants_verdict: bool
    head: str | None
    html_file: str | None
    svg_file: str | None


@click.command(
    help=_HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.argument("path", metavar="JOURNAL", type=click.Path(readable=False, path_type=Path))
@click.option(
    "--at", callback=_time_or_seq, metavar="TIME|seq:N", help="The state of every service then."
)
@click.option(
    "--why",
    "why_of",
    metavar="NAME|seq:N",
    help="Why NAME is as it is at the end, or at --at; or why event N happened.",
)
@click.option(
    "--service",
    "-s",
    "words",
    multiple=True,
    metavar="NAME",
    help="Only NAME: a service, web for web@1 and web@2, 'web*', tag:TAG; repeatable.",
)
@click.option("--since", callback=_time, metavar="TIME", help="Only events from TIME on.")
@click.option("--until", callback=_time, metavar="TIME", help="Only events up to TIME.")
@click.option(
    "--type",
    "types",
    multiple=True,
    callback=_types,
    metavar="TYPE",
    help="Only events of a type, such as exited; repeatable.",
)
@click.option("--actions", is_flag=True, help="Only what somebody asked for.")
@click.option(
    "--failures", is_flag=True, help="Only what went wrong. With --actions or --type: these, too."
)
@click.option(
    "--diff",
    nargs=2,
    callback=_two_moments,
    metavar="T1 T2",
    help="What changed between two moments, and who asked for it; T is TIME or seq:N.",
)
@click.option(
    "--history", "history_of", metavar="NAME", help="The runs of NAME: when, how, and why."
)
@click.option(
    "-n",
    "limit",
    type=click.IntRange(min=1),
    metavar="COUNT",
    help="With --history: the last runs.",
)
@click.option(
    "--report", "wants_report", is_flag=True, help="How available services were, in that time."
)
@click.option(
    "--boot",
    "of_boot",
    is_flag=True,
    help="With --report: what took how long when the registry started last (with --at: before then).",
)
@click.option(
    "--play",
    "speed",
    callback=_speed,
    metavar="SPEED",
    help="Watch it happen in the terminal, SPEED times as fast (60, 0.5x); with --at from then on.",
)
@click.option(
    "--query",
    "sql",
    metavar="SQL",
    help="What a select answers, of the journal's tables and views; with --json an object a row. "
    "On a terminal, a table shows 60 characters of a value.",
)
@click.option("--csv", "as_csv", is_flag=True, help="With --query: comma-separated values.")
@click.option(
    "--logs",
    "folders",
    multiple=True,
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Put the lines of the log files in DIR (NAME.log, rotated ones too) among the events, by time.",
)
@click.option(
    "--what-if",
    "other",
    metavar="FILE",
    type=click.Path(readable=False, path_type=Path),
    help="What would have been different with the services.toml FILE, decided from what was observed.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="A line an event; with --at an array of services."
)
@click.option(
    "--verify", "wants_verdict", is_flag=True, help="Say whether every event is as it was written."
)
@click.option(
    "--head",
    callback=_hash,
    metavar="HASH",
    help="With --verify: the hash of an event, noted earlier; shows a cut tail or a rewrite.",
)
@click.option(
    "--html",
    "html_file",
    metavar="FILE",
    help="Write a report to be opened in a browser; - is stdout.",
)
@click.option(
    "--svg",
    "svg_file",
    metavar="FILE",
    help="Write a picture of the services' states; - is stdout.",
)
@click.version_option(registry.__version__, message="circle-replay %(version)s")
@click.pass_context
def replay(ctx: click.Context, /, **given: Any) -> int:
    """Choose the answer; _HELP says what there is."""
    _refuse_nonsense(ctx)
    asked = _Asked(**given)
    if sentence := moments.swapped(asked.since, asked.until):
        raise click.UsageError(sentence)
    path = asked.path
    try:
        journal = open_for_reading(path)
    except JournalError as error:
        raise click.ClickException(str(error)) from None
    try:
        with closing(journal):
            if remark := doubt(journal, path):
                click.echo(f"{path}: {remark}", err=True)
            if asked.wants_verdict:
                return _print_verdict(journal, path, asked.head)
            try:
                return _answer(journal, asked)
            except JournalDamaged as error:
                return _answer_in_part(journal, asked, error)
            except (KeyError, AssertionError):  # no registry wrote this, or it is our own fault
                if (trouble := verify(journal).trouble) is None:
                    raise
                raise JournalError(f"{trouble}; --verify says more") from None
    except (JournalError, Refusal) as error:
        raise click.ClickException(f"{path}: {error}") from None
    except (logs.LogsError, pictures.PictureError) as error:
        raise click.ClickException(str(error)) from None
    except what_if.OtherError as error:
        click.echo(str(error), err=True)
        return what_if.EX_CONFIG


def _answer_in_part(journal: Connection, asked: _Asked, damage: JournalDamaged) -> int:
    """Answer from what can be trusted, where what is asked for lies in it; then raise what is wrong."""
    if asked.sql is not None:
        raise damage
    part = trusted_part(journal)
    with closing(part.journal):
        if part.last < part.first:
            raise damage
        trusted = f"events {part.first} to {part.last}"
        try:
            if _lies_in(part, asked):
                _answer(part.journal, asked)
                trusted = f"this is told of {trusted}, which"
        except (JournalError, Refusal):
            raise damage from None
    raise JournalError(f"{damage}; {trusted} can still be trusted")


def _lies_in(part: Part, asked: _Asked) -> bool:
    """Whether no moment that is asked for is later: what was at the end, nobody knows."""
    if asked.why_of is not None and not asked.why_of.startswith(moments.SEQ) and asked.at is None:
        return False
    last_ns = at_of(part.journal, part.last)
    return all(
        each.last_ns <= last_ns if isinstance(each, Moment) else each <= part.last
        for each in (asked.at, *asked.diff)
        if each is not None
    )


def _answer(journal: Connection, asked: _Asked) -> int:
    """The first of what is asked for; without anything the timeline."""
    if asked.sql is not None:
        return _print_rows(journal, asked.sql, as_csv=asked.as_csv, as_json=asked.as_json)
    services = answers.meant(journal, (asked.history_of,) if asked.history_of else asked.words)
    if asked.other is not None:
        return _print_what_if(
            journal, asked.other, services, asked.since, asked.until, as_json=asked.as_json
        )
    if asked.history_of is not None:
        return _print_lines(
            past.histories(
                journal,
                services,
                since=asked.since,
                until=asked.until,
                limit=asked.limit,
                as_json=asked.as_json,
            )
        )
    if asked.of_boot:
        seq = seq_of(journal, asked.at) if asked.at is not None else None
        return _print_lines(past.started(journal, services, seq, as_json=asked.as_json))
    if asked.wants_report:
        return _print_lines(
            past.reported(
                journal, services, since=asked.since, until=asked.until, as_json=asked.as_json
            )
        )
    if asked.diff:
        seqs = [seq_of(journal, each) for each in asked.diff]
        return _print_lines(past.changed(journal, services, *seqs, as_json=asked.as_json))
    if asked.why_of is not None:
        return _print_lines(past.because(journal, asked.why_of, asked.at, as_json=asked.as_json))
    if asked.speed is not None:
        seq = seq_of(journal, asked.at) if asked.at is not None else None
        return _play(Player(journal, asked.speed, services, seq))
    if asked.at is not None:
        return _print_services(then(journal, asked.at), services, as_json=asked.as_json)
    if remark := shortened(journal):
        click.echo(f"{asked.path}: {remark}", err=True)
    selection = _selection(services, asked.since, asked.until)
    if asked.html_file is not None or asked.svg_file is not None:
        files = pictures.Files(asked.html_file, asked.svg_file)
        return _print_remarks(pictures.draw(journal, asked.path, selection, asked.folders, files))
    choice = Choice(frozenset(asked.types), actions=asked.actions, failures=asked.failures)
    if asked.folders:
        return _print_with_logs(journal, selection, choice, asked.folders, as_json=asked.as_json)
    return _print_events(journal, selection, choice, as_json=asked.as_json)


# What makes no sense together, and why
_APART = {
    "--verify": (
        ("--at", "--service", "--since", "--until", "--logs", "--json"),
        "it looks at the whole journal",
    ),
    "--at": (("--since", "--until", "--logs"), "it is one moment"),
    "--diff": (
        ("--verify", "--at", "--since", "--until", "--logs"),
        "it has two moments of its own",
    ),
    "--history": (
        ("--verify", "--at", "--service", "--diff", "--logs"),
        "it tells of the runs of NAME",
    ),
    "--why": (
        (
            "--verify",
            "--service",
            "--since",
            "--until",
            "--diff",
            "--history",
            "--report",
            "--logs",
        ),
        "it tells of NAME, or of one event",
    ),
    "--play": (
        (
            *("--verify", "--since", "--until", "--diff", "--history", "--why", "--report"),
            *("--html", "--svg", "--logs", "--json"),
        ),
        "it is a screen; --at TIME is where it begins",
    ),
    "--report": (("--verify", "--history", "--diff", "--logs"), "it tells of services as a whole"),
    "--query": (
        (
            *("--verify", "--at", "--service", "--since", "--until", "--diff", "--history"),
            *("--report", "--logs"),
        ),
        "the select says what is asked",
    ),
    "--csv": (("--json",), "an answer has one form"),
    "--boot": (
        ("--since", "--until"),
        "it is one start; --at TIME chooses another than the latest",
    ),
    **dict.fromkeys(
        ("--html", "--svg"),
        (
            ("--verify", "--at", "--diff", "--history", "--why", "--report", "--json"),
            "it is a picture",
        ),
    ),
    "--what-if": (
        (
            "--verify",
            "--at",
            "--why",
            "--diff",
            "--history",
            "--report",
            "--logs",
            "--html",
            "--svg",
            "--play",
        ),
        "it compares what was with what was not",
    ),
}
# What chooses among events told one by one, and what tells of something else
_CHOOSES = {"--type", "--actions", "--failures"}
_TIMELESS = {
    *("--at", "--diff", "--history", "--why", "--report", "--verify", "--play", "--html", "--svg"),
    "--what-if",
}
# What makes sense only with another option
_NEEDS = {"--head": "--verify", "--boot": "--report", "-n": "--history", "--csv": "--query"}


def _refuse_nonsense(ctx: click.Context) -> None:
    given = {
        param.opts[0]
        for param in ctx.command.params
        if param.name and ctx.get_parameter_source(param.name) is ParameterSource.COMMANDLINE
    }
    for option, (others, why) in _APART.items():
        for other in others:
            if {option, other} <= given:
                raise click.UsageError(f"{option} goes without {other}: {why}")
    for option in sorted(_CHOOSES & given):
        for other in sorted(_TIMELESS & given):
            raise click.UsageError(
                f"{other} goes without {option}, which chooses lines of the timeline"
            )
    for option, needed in _NEEDS.items():
        if option in given and needed not in given:
            raise click.UsageError(f"{option} goes with {needed}: add it")
    if {"--report", "--at"} <= given and "--boot" not in given:
        raise click.UsageError("--report goes without --at: write --since and --until")
    if {"--svg", "--logs"} <= given and "--html" not in given:
        raise click.UsageError("--svg goes without --logs: a picture holds no lines; --html does")


def _selection(services: tuple[str, ...], since: Moment | None, until: Moment | None) -> Selection:
    selection = Selection(services=services)
    if since is not None:
        selection = selection._replace(first_ns=since.first_ns)
    if until is not None:
        selection = selection._replace(last_ns=until.last_ns)
    return selection


def _print_events(
    journal: Connection, selection: Selection, choice: Choice, *, as_json: bool
) -> int:
    answer = answers.events_json if as_json else answers.timeline
    return _print_pages(answer(journal, selection, choice))


def _print_rows(journal: Connection, sql: str, *, as_csv: bool, as_json: bool) -> int:
    found = query(journal, sql, ROWS_MAX, QUERY_S)
    if as_json or as_csv:
        lines = (rows.objects if as_json else rows.as_csv)(found.columns, found.rows)
    else:
        cell_max = rows.CELL_MAX if sys.stdout.isatty() else None
        lines = rows.table(found.columns, found.rows, cell_max)
    if lines:
        click.echo("\n".join(lines))
    if found.is_cut:
        click.echo(rows.cut(len(found.rows), found.cut_by), err=True)
    return 0


def _print_with_logs(
    journal: Connection,
    selection: Selection,
    choice: Choice,
    folders: tuple[Path, ...],
    *,
    as_json: bool,
) -> int:
    answer = logs.json if as_json else logs.text
    with logs.Logs(folders, selection.services or service_names(journal)) as opened:
        _print_pages(answer(journal, opened, selection, choice))
        return _print_remarks(opened.remarks())


def _print_remarks(remarks: Iterator[str]) -> int:
    for remark in remarks:
        click.echo(remark, err=True)
    return 0


def _print_pages(pages: Iterator[str]) -> int:
    found = False
    try:
        for each in pages:
            click.echo(each)
            found = True
    except JournalDamaged as error:
        # what there is before it is told already
        raise JournalError(str(error)) if found else error from None
    if not found:
        click.echo("no event is of that kind, service and time", err=True)
    return 0


def _play(player: Player) -> int:
    from . import terminal

    if not terminal.is_there():
        raise click.UsageError(
            "--play wants a terminal; elsewhere leave it out, or ask for one moment with --at"
        )
    terminal.play(player)
    return 0


def _print_what_if(
    journal: Connection,
    other: Path,
    names: tuple[str, ...],
    since: Moment | None,
    until: Moment | None,
    *,
    as_json: bool,
) -> int:
    answer = what_if.compare(journal, what_if.definitions(other), since=since, until=until)
    if as_json:
        click.echo(what_if.json(answer, other, names))
        return 0
    return _print_lines(what_if.text(answer, other, names))


def _print_lines(lines: Iterator[str]) -> int:
    for line in lines:
        click.echo(line)
    return 0


def _print_services(state: Then, services: tuple[str, ...], *, as_json: bool) -> int:
    lines = (
        [answers.services_json(state, services)]
        if as_json
        else answers.services_text(state, services)
    )
    click.echo("\n".join(lines))
    return 0


def _print_verdict(journal: Connection, path: Path, head: str | None) -> int:
    verdict = verify(journal, head)
    click.echo(answers.verdict_text(path, verdict, head))
    return 0 if answers.is_sound(verdict, head) else 1


def run(arguments: Sequence[str]) -> int:
    """Run the command; its exit status. One sentence on stderr for what is wrong, none for Ctrl-C."""
    try:
        with stdout.answering("circle-replay"):
            status = replay.main(arguments, prog_name="circle-replay", standalone_mode=False)
    except click.ClickException as error:
        click.echo(f"circle-replay: {error.format_message()}", err=True)
        return error.exit_code
    except click.Abort:
        return _INTERRUPTED
    return int(status or 0)


def main() -> None:
    """The command as a process: Ctrl-C and a closed pipe end it as they end cat, by their signals."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    stdout.stand_in()
    if isinstance(sys.stdout, TextIOWrapper):  # what the locale cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    status = run(sys.argv[1:])
    if status == _INTERRUPTED:  # at once: a reader that does not read must not hold up the rest
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    sys.exit(status)
