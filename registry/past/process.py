"""The process that answers one question about the past, and ends: what a running registry asks.

It reads the journal and changes nothing. Its descriptor 0 is a socket: a line with the question comes in, a line that
says how it went and a line with the answer go out. When whoever asked closes it, or dies, this process ends.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import threading
from contextlib import closing, suppress
from pathlib import Path

import msgspec

from registry.journal.errors import JournalError
from registry.journal.opening import open_for_reading
from registry.past.answers import answer
from registry.past.asked import Asked, Outcome
from registry.questions.refusal import UNREADABLE, Refusal

NICENESS = 10
_SOCKET = 0


def main() -> None:
    """Answer what is asked of the journal that the last argument names."""
    _make_way()
    with socket.socket(fileno=os.dup(_SOCKET)) as asker:
        line = _line(asker)
        threading.Thread(target=_end_with, args=(asker,), daemon=True).start()
        with suppress(OSError):  # nobody is there any more
            asker.sendall(_answered(Path(sys.argv[-1]), line))
    os._exit(0)


def _make_way() -> None:
    """Whoever needs the machine goes first; and of all processes this one is missed least."""
    gc.disable()  # it ends before there is much to collect, and folding makes many objects
    os.nice(NICENESS)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _line(asker: socket.socket) -> bytes:
    with asker.makefile("rb") as lines:
        return lines.readline()


def _end_with(asker: socket.socket) -> None:
    with suppress(OSError):
        asker.recv(1)
    os._exit(0)


def _answered(path: Path, line: bytes) -> bytes:
    try:
        asked = msgspec.json.decode(line, type=Asked)
        with closing(open_for_reading(path)) as journal:
            found = answer(journal, asked.question, asked.params)
    except Refusal as refusal:
        return _encoded(Outcome(refusal.code, refusal.message))
    except JournalError as error:
        return _encoded(Outcome(UNREADABLE, f"the journal {error}"))
    return _encoded(Outcome()) + found + b"\n"


def _encoded(outcome: Outcome) -> bytes:
    return msgspec.json.encode(outcome) + b"\n"
