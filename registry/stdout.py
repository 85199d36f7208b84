"""Standard output of the commands: where it takes no more, or is closed, a sentence and an exit status say so."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

EX_IOERR = 74
"""The exit status where an answer could not be written, as sysexits.h has it."""
_UNREAD = 128 + signal.SIGPIPE
_STDOUT = 1


def stand_in() -> None:
    """Where standard output is closed, let writing to it fail.

    Python has None for it, to which nobody can write; and its number would be that of whatever is opened next.
    """
    if sys.stdout:
        return
    unwritable = os.open(os.devnull, os.O_RDONLY)
    if unwritable != _STDOUT:
        os.dup2(unwritable, _STDOUT)
        os.close(unwritable)
    sys.stdout = open(_STDOUT, "w", closefd=False)  # noqa: SIM115  it is there to the end


def unwritten(error: OSError) -> str | None:
    """What is to be said of an answer that cannot be written; nothing where its reader has gone.

    What standard output still holds is dropped, or Python would try it again.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)
    if isinstance(error, BrokenPipeError):
        return None
    return f"cannot write the answer: {error.strerror}"


@contextmanager
def answering(program: str) -> Iterator[None]:
    """What is written in here is written once this ends: else the program does, with a sentence and EX_IOERR."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        message = unwritten(error)
        if message is None:
            sys.exit(_UNREAD)
        print(f"{program}: {message}", file=sys.stderr)
        sys.exit(EX_IOERR)
