"""The thread that spawns, and does nothing else: with children, and a table of descriptors, of its own.

The kernel lists children by the thread that made them, and leaves orphans to a process's first thread (Linux:
find_new_reaper, kernel/exit.c). That one's list, in which each end looks for what a run has left behind, has orphans
alone then: with a thousand services it took 0.7 ms, with more the more. The hand-over takes 0.02 to 0.06 ms.

A spawn copies the table of descriptors, and the exec closes the copies: of ours, which are two a service, that took
3 ms of a restart among 8,500. The thread's holds a handful, and what a process is to have is sent to it. So nothing
of ours is ever left open in a service by mistake, either.

Where others wait for their turn they have it meanwhile: what is spawned takes a quarter of a millisecond.

Who asked to die with his parent means the thread that made him (prctl(2), PR_SET_PDEATHSIG). So it is the thread that
becomes the next program at an upgrade. It is that one's first thread then, and as such spawns, and upgrades, itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from registry.passed import CLOEXEC, SCM_MAX_FD, close_all, descriptors, space

T = TypeVar("T")
Outcome = tuple[Any, BaseException | None]
"""What was returned, or else raised."""

_CLOSE_RANGE, _UNSHARE, _LAST = 436, 2, 2**32 - 1  # linux/close_range.h, Linux 5.9
_TURN = b"\0"


class _Errand(NamedTuple):
    """What the thread is to do with so many descriptors, and who is told what came of it."""

    work: Callable[..., Any]
    awaited: int
    tell: Callable[[Outcome], object]


class Spawning:
    """Who spawns: a thread `apart`, until `close`, or whoever calls, who is the first thread.

    `others_wait` says whether anybody could use the time. Not for two threads at once.
    """

    def __init__(self, *, apart: bool) -> None:
        self.others_wait: Callable[[], bool] = lambda: False
        self._asked: deque[_Errand] = deque()
        self._done: deque[tuple[_Errand, Outcome]] = deque()
        self._ours, self._theirs = socket.socketpair()
        self._thread: threading.Thread | None = None
        if apart:
            self._thread = threading.Thread(target=self._run, name="spawning", daemon=True)
            self._thread.start()

    def do(self, work: Callable[..., T], fds: Sequence[int] = ()) -> T:
        """What `work` returns or raises, done by the thread with copies of `fds`, while the caller waits."""
        if self._thread is None:
            return work(*fds)
        outcome: list[Outcome] = []
        self._ask(_Errand(work, len(fds), outcome.append), fds)
        while not outcome:
            self._hear(self._ours.recv(1))
        return _result(outcome[0])  # type: ignore[no-any-return]

    async def do_meanwhile(self, work: Callable[..., T], fds: Sequence[int] = ()) -> T:
        """The same while the loop goes on, one at a time; where nobody needs it, the caller waits: that takes less."""
        if self._thread is None or not self.others_wait():
            return self.do(work, fds)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Outcome] = loop.create_future()
        loop.add_reader(self._ours, self._hear_in_turn)
        try:
            self._ask(_Errand(work, len(fds), lambda outcome: _settle(done, outcome)), fds)
            return _result(await done)  # type: ignore[no-any-return]
        finally:
            loop.remove_reader(self._ours)

    def execv(
        self, program: str, arguments: list[str], fds: Sequence[int], leave: Callable[..., object]
    ) -> None:
        """Become another program, with the caller's signal mask; raises OSError where that cannot be.

        `leave` is called before with what `fds` are where that happens: it makes them inheritable, and known.
        """
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())

        def become(*copies: int) -> None:
            leave(*copies)
            _execv(program, arguments, mask)

        self.do(become, fds)

    def close(self) -> None:
        """End the thread; its children are the first thread's then, and whoever calls spawns."""
        self._ours.close()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._theirs.close()

    def _ask(self, errand: _Errand, fds: Sequence[int]) -> None:
        self._asked.append(errand)
        try:
            for at in _messages(len(fds)):
                socket.send_fds(self._ours, [_TURN], fds[at : at + SCM_MAX_FD])
        except OSError:
            self._asked.remove(errand)
            raise

    def _hear(self, turns: bytes) -> None:
        for _ in turns:
            errand, outcome = self._done.popleft()
            errand.tell(outcome)

    def _hear_in_turn(self) -> None:
        with contextlib.suppress(BlockingIOError):  # who waited has heard it already
            self._hear(self._ours.recv(1, socket.MSG_DONTWAIT))

    # --- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        # the kernel tells the parent's thread first: a SIGCHLD is for the loop, not to wake this one
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        _leave_table(self._theirs.fileno())
        while (given := self._receive()) is not None:
            errand = self._asked.popleft()
            for _ in _messages(errand.awaited)[1:]:
                given += self._receive() or []
            self._done.append((errand, _outcome(errand, given)))
            close_all(given)
            with contextlib.suppress(BrokenPipeError):  # nobody waits for it
                self._theirs.send(_TURN)

    def _receive(self) -> list[int] | None:
        """The descriptors of the next message; None after the last."""
        try:
            turn, ancillary, _flags, _ = self._theirs.recvmsg(1, space(SCM_MAX_FD), CLOEXEC)
        except ConnectionResetError:  # what came of the last one was not asked for any more
            return None
        return descriptors(ancillary) if turn else None


def _messages(count: int) -> range:
    """Where the messages begin that so many descriptors are sent with; one is sent without any."""
    return range(0, count or 1, SCM_MAX_FD)


def _outcome(errand: _Errand, given: list[int]) -> Outcome:
    if len(given) != errand.awaited:
        return None, OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    try:
        return errand.work(*given), None
    except BaseException as error:
        return None, error


def _leave_table(ours: int) -> None:
    """Have a table of descriptors of our own, with the standard ones and `ours`; where that cannot be, share on."""
    if sys.platform == "linux":
        close_range = ctypes.CDLL(None).syscall
        close_range.argtypes = [ctypes.c_long, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint]
        if close_range(_CLOSE_RANGE, ours + 1, _LAST, _UNSHARE) == 0 and ours > 3:
            close_range(_CLOSE_RANGE, 3, ours - 1, 0)


def _settle(done: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not done.done():  # nobody waits any more
        done.set_result(outcome)


def _result(outcome: Outcome) -> Any:
    result, error = outcome
    if error is not None:
        raise error
    return result


def _execv(program: str, arguments: list[str], mask: set[signal.Signals | int]) -> None:
    before = signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        os.execv(program, arguments)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
