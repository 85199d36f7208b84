"""Work that may hang, each piece in a thread of its own: whoever asked may stop waiting, and so may the program.

A resolver or a file system that does not answer would in time hold every thread of the loop's own pool, which the
loop waits for at its end, and with it whatever comes then.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def do(work: Callable[P, T], *given: P.args, **more: P.kwargs) -> T:
    """What `work` returns or raises, while the loop goes on."""
    return await asyncio.wrap_future(begin(work, *given, **more))


def begin(work: Callable[P, T], *given: P.args, **more: P.kwargs) -> Future[T]:
    """The same for any number to wait for. Raises RuntimeError where there is no thread to be had."""
    done: Future[T] = Future()
    done.set_running_or_notify_cancel()  # who stops waiting does not cancel it for the others

    def run() -> None:
        # it may outlive the handlers of signals: those are for the next program then, not for this thread
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            done.set_result(work(*given, **more))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="apart", daemon=True).start()
    return done
