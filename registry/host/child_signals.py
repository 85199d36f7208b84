"""When to reap: SIGCHLD, read from a signalfd(2) where there is one, as that says whose end it tells of.

A thread that has not blocked the signal may still take it: then a handler tells of it, which knows no names.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

NOBODY = 0
"""No pid: whose end it is has not been told."""
OTHERS_S = 0.005
"""After one who was named is looked for others: of many ends at once one signal tells."""

_SIGNALS = (signal.SIGCHLD,)
_SET_BYTES = 128  # sigset_t of glibc and of musl
_INFO = struct.Struct("=12xI112x")  # signalfd_siginfo, signalfd(2): of it the pid


def block() -> None:
    """Have this thread, and those that it makes from now on, leave the signal to the signalfd."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def open_signalfd() -> int:
    """A descriptor that can be read once a child has ended. Raises OSError, AttributeError where there is none."""
    library = ctypes.CDLL(None, use_errno=True)
    wanted = ctypes.create_string_buffer(_SET_BYTES)
    library.sigemptyset(wanted)
    for each in _SIGNALS:
        library.sigaddset(wanted, int(each))
    descriptor: int = library.signalfd(-1, wanted, os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return descriptor


class ChildSignals:
    """Has children reaped when signals tell of ends, from `listen` until `close`: all of them, by `reap`.

    One whom a signal names goes first: `take` is given the pid, and says whether it was one to be taken at once. That
    there are no others the kernel finds out by looking at all, which takes 0.2 ms for a thousand.
    """

    def __init__(
        self, take: Callable[[int], bool], reap: Callable[[], None], *, by_signalfd: bool
    ) -> None:
        self._take = take
        self._reap = reap
        self._by_signalfd = by_signalfd
        self._descriptor: int | None = None
        self._holders = 0
        self._told_meanwhile = False
        self._reaps_next: bool | None = None  # None: nothing was reaped in this turn
        self._others: asyncio.TimerHandle | None = None

    def listen(self) -> None:
        """Begin, in the loop that runs."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self.told)
        # each end is a byte for the loop: where these no longer fit it has enough of them, and Python need not say so
        signal.set_wakeup_fd(signal.set_wakeup_fd(-1), warn_on_full_buffer=False)
        if self._by_signalfd:
            block()
            self._descriptor = open_signalfd()
            loop.add_reader(self._descriptor, self._read)
        else:
            _unblock()

    def close(self) -> None:
        """Nobody is reaped any more."""
        loop = asyncio.get_running_loop()
        block()
        loop.remove_signal_handler(signal.SIGCHLD)
        # a thread may be about to tell Python of one: without any handler by then that would be a complaint on stderr
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.siginterrupt(signal.SIGCHLD, False)
        # the loop closes its end of it before it takes back what it is told by
        signal.set_wakeup_fd(-1)
        if self._descriptor is not None:
            loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None
        if self._others is not None:
            self._others.cancel()
        _unblock()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody is reaped within it, but at its end; it may lie in another."""
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
            if self._told_meanwhile and not self._holders:
                self._told_meanwhile = False
                self.told()

    def told(self, pid: int = NOBODY) -> None:
        """Some have ended, `pid` among them: reap once a turn of the loop, however often that is told."""
        if self._holders:
            self._told_meanwhile = True
        elif pid != NOBODY and self._take(pid):
            if self._others is None:
                loop = asyncio.get_running_loop()
                self._others = loop.call_later(OTHERS_S, self._look_for_others)
        elif self._reaps_next is None:
            self._reaps_next = False
            asyncio.get_running_loop().call_soon(self._turn_over)
            self._reap()
        else:
            self._reaps_next = True

    def _look_for_others(self) -> None:
        self._others = None
        self.told()

    def _turn_over(self) -> None:
        again, self._reaps_next = self._reaps_next, None
        if again:
            self.told()

    def _read(self) -> None:
        assert self._descriptor is not None
        with suppress(BlockingIOError):  # else somebody else was told
            (pid,) = _INFO.unpack(os.read(self._descriptor, _INFO.size))
            self.told(pid)
