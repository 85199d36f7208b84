"""circlectl: the program, and what every end of it looks like.

One sentence on standard error for what went wrong, never a traceback; an exit status for each kind.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import click
from click.shell_completion import BashComplete, add_completion_class

import registry
from registry import stdout
from registry.client import RegistryError

from . import commands, configuration, exits, journal, past, queries, streams
from .session import Session, common, note

COMMANDS = (
    queries.list_,
    queries.status,
    queries.why,
    queries.graph,
    commands.start,
    commands.stop,
    commands.restart,
    commands.reset,
    commands.signal,
    commands.reload,
    queries.health,
    queries.check,
    streams.logs,
    streams.events,
    past.history,
    past.diff,
    past.report,
    configuration.show,
    configuration.plan,
    configuration.apply,
    journal.query,
    journal.journal,
    queries.validate,
    queries.version,
    commands.shutdown,
    commands.upgrade,
)


@add_completion_class
class Bash(BashComplete):
    """Completion in bash, to which web@1 is one word and not three."""

    source_template = "COMP_WORDBREAKS=${COMP_WORDBREAKS//@}\n" + BashComplete.source_template


class Program(click.Group):
    """The commands in the order of COMMANDS, and their errors as exit statuses."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands, those that are used most first."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for. Returns the exit status."""
        try:
            return super().invoke(ctx)
        except RegistryError as error:
            ctx.ensure_object(Session).complain(error)
            return exits.of_code(error.code)
        except KeyboardInterrupt:
            return exits.INTERRUPTED
        except OSError as error:
            return _unwritten(error)


@click.group(
    cls=Program,
    commands=list(COMMANDS),
    epilog=exits.HELP,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(registry.__version__, message="circlectl %(version)s")
@common
def program() -> None:
    """Ask and command a running Service Registry.

    \b
    Examples:
      circlectl list
      circlectl why web
      circlectl restart web --wait
      circlectl logs web -f
      circlectl events --service web

    \b
    Completion of commands and services by the tab key, in bash (also zsh, fish):
      eval "$(_CIRCLECTL_COMPLETE=bash_source circlectl)"
    """


def main() -> None:
    """Do what the command line asks for, and exit."""
    stdout.stand_in()
    # What the terminal's encoding lacks is shown escaped rather than raised.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        status = _run()
        sys.stdout.flush()
    except OSError as error:
        status = _unwritten(error)
    sys.exit(status)


def _run() -> Any:
    try:
        return program.main(prog_name="circlectl", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return exits.USAGE
    except click.ClickException as error:
        _complain_of_usage(error)
        return exits.USAGE
    except click.Abort:
        return exits.INTERRUPTED


def _complain_of_usage(error: click.ClickException) -> None:
    message = error.format_message()
    if "--json" in sys.argv:
        shown = {"code": "usage", "message": message}
        print(json.dumps({"error": shown}), file=sys.stderr)
        return
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context else "circlectl"
    note(f"{message.rstrip('.')} (see {path} --help)")


def _unwritten(error: OSError) -> int:
    """Standard output takes no more."""
    message = stdout.unwritten(error)
    if message is None:
        return exits.UNREAD
    note(message)
    return exits.FAILED
