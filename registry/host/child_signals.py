"""SIGCHLD, told to the loop: read from a signalfd(2) where there is one, which is a tenth of a millisecond sooner.

A handler's signal interrupts the loop, is written into a socket of Python's own, read there, and called a turn later.
A thread that has not blocked the signal may still take it: then the handler tells of it.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import struct
from collections.abc import Callable
from contextlib import suppress

NOBODY = 0
"""No pid: whose end it is has not been told."""

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
    """Calls `ended` for ends of children, one call for many of them, from `listen` until `close`.

    It is given the pid of one of them, or NOBODY.
    """

    def __init__(self, ended: Callable[[int], None], *, by_signalfd: bool) -> None:
        self._ended = ended
        self._by_signalfd = by_signalfd
        self._descriptor: int | None = None

    def listen(self) -> None:
        """Begin, in the loop that runs."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._ended, NOBODY)
        # each end is a byte for the loop: where these no longer fit it has enough of them, and Python need not say so
        signal.set_wakeup_fd(signal.set_wakeup_fd(-1), warn_on_full_buffer=False)
        if self._by_signalfd:
            block()
            self._descriptor = open_signalfd()
            loop.add_reader(self._descriptor, self._read)
        else:
            _unblock()

    def close(self) -> None:
        """No more of them is told."""
        loop = asyncio.get_running_loop()
        loop.remove_signal_handler(signal.SIGCHLD)
        if self._descriptor is not None:
            loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None
        _unblock()

    def _read(self) -> None:
        assert self._descriptor is not None
        with suppress(BlockingIOError):  # else somebody else was told
            (pid,) = _INFO.unpack(os.read(self._descriptor, _INFO.size))
            self._ended(pid)
