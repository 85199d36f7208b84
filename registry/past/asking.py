"""How a running registry asks the past: each question is answered by a short-lived process of its own.

So that folding many events neither keeps the loop from a commit nor leaves the registry larger. A few run at once,
the others wait for their turn, and are told where it does not come; each has its time; cancelling the wait, as the end
of the client does, ends the process. A select may be as slow as it likes to be: those wait for each other alone.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec

from registry.past.asked import Asked, Outcome
from registry.questions.refusal import TIMED_OUT, UNREADABLE, Refusal

AT_ONCE_MAX = 2
"""Questions that are answered at the same time."""
SQL = "query"
"""The question that only waits for its like: one of them is answered at a time."""
TURN_S = 25.0
"""How long one waits for its turn: with the time it may take, less than circlectl waits for the answer."""
ANSWER_S = 300.0
"""How long one may take: ten million events without any snapshot are folded in less."""
ANSWER_MAX = 64 * 1024 * 1024
"""Bytes of the longest answer."""
_PAGE = 256 * 1024
_FIRST = 3
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[1:-1]; from registry.past.process import main; main()"
)
_encode = msgspec.json.Encoder().encode


class Past:
    """The past as the journal at `journal` tells it."""

    def __init__(
        self,
        journal: Path,
        *,
        at_once_max: int = AT_ONCE_MAX,
        answer_s: float = ANSWER_S,
        turn_s: float = TURN_S,
    ) -> None:
        self._journal = journal.absolute()
        self._answer_s = answer_s
        self._turn_s = turn_s
        self._turns = asyncio.Semaphore(at_once_max)
        self._turns_of_sql = asyncio.Semaphore(1)

    async def ask(self, question: str, params: msgspec.Struct) -> msgspec.Raw:
        """The answer to a question of `answers.QUESTIONS`, as JSON. Raises Refusal."""
        line = _encode(Asked(question, msgspec.Raw(_encode(params)))) + b"\n"
        async with self._turn(self._turns_of_sql if question == SQL else self._turns):
            try:
                async with asyncio.timeout(self._answer_s):
                    said = await self._said(line)
            except TimeoutError:
                message = (
                    f"this takes more than {self._answer_s:g} s; circle-replay has all the time"
                )
                raise Refusal(TIMED_OUT, message) from None
            except OSError as error:
                message = f"no process can be made to read the journal: {error.strerror}"
                raise Refusal(UNREADABLE, message) from None
        return _taken(said)

    @asynccontextmanager
    async def _turn(self, turns: asyncio.Semaphore) -> AsyncIterator[None]:
        """Until its turn is over. Raises Refusal where it does not come."""
        try:
            async with asyncio.timeout(self._turn_s):
                await turns.acquire()
        except TimeoutError:
            message = (
                f"busy: for {self._turn_s:g} s it was the turn of other questions; ask again later"
            )
            raise Refusal(TIMED_OUT, message) from None
        try:
            yield
        finally:
            turns.release()

    async def _said(self, line: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(sock=_spawn(self._journal))
        try:
            writer.write(line)
            return await _all_of(reader)
        finally:
            writer.transport.abort()  # which ends the process, if it is still there


async def _all_of(reader: asyncio.StreamReader) -> bytes:
    """What is said until the end, however that comes. Raises Refusal where it is too much."""
    said = bytearray()
    with suppress(ConnectionError):
        while page := await reader.read(_PAGE):
            said += page
            if len(said) > ANSWER_MAX:
                message = f"the answer has more than {ANSWER_MAX >> 20} MiB; ask for less"
                raise Refusal(UNREADABLE, message)
    return bytes(said)


def _spawn(journal: Path) -> socket.socket:
    """Our end of the socket that the process answers on. Whoever reaps children reaps it."""
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            # Above the standard ones: a dup2 onto itself would leave it closed on exec.
            given = fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, _FIRST)
        try:
            os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", "-c", _PROGRAM, *_path(), str(journal)],
                dict(os.environ),
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, given, 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                ],
                setsid=True,
                setsigmask=(),
                setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
            )
        finally:
            os.close(given)
    except BaseException:
        ours.close()
        raise
    ours.setblocking(False)
    return ours


def _path() -> list[str]:
    """Where modules are found: as here, and this package, whatever else is called like it."""
    return list(dict.fromkeys([*filter(None, sys.path), _ROOT]))


def _taken(said: bytes) -> msgspec.Raw:
    head, _, data = said.partition(b"\n")
    try:
        outcome = msgspec.json.decode(head, type=Outcome)
    except msgspec.MsgspecError:
        outcome = Outcome(UNREADABLE, "the process that read the journal ended without an answer")
    if outcome.code is not None:
        raise Refusal(outcome.code, outcome.message or "")
    if not data.endswith(b"\n"):
        raise Refusal(UNREADABLE, "the process that read the journal ended before all was said")
    return msgspec.Raw(data[:-1])
