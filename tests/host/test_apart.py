"""Work that may hang: in a thread that keeps nobody, and that no signal ends up in."""

from __future__ import annotations

import asyncio
import signal
import threading

import pytest

from registry.host import apart


def fails() -> None:
    raise LookupError("nobody")


async def test_it_is_told_what_came_of_it():
    assert await apart.do(divmod, 7, 2) == (3, 1)
    with pytest.raises(LookupError, match="nobody"):
        await apart.do(fails)


def test_a_loop_ends_while_it_hangs_and_it_may_end_later(caplog):
    begun, released = threading.Event(), threading.Event()
    made: list[threading.Thread] = []

    def hang() -> None:
        made.append(threading.current_thread())
        begun.set()
        released.wait()

    async def leave() -> None:
        asyncio.get_running_loop().create_task(apart.do(hang), name="left")
        while not begun.is_set():  # noqa: ASYNC110  a thread tells of it
            await asyncio.sleep(0)

    asyncio.run(leave())
    (thread,) = made
    assert thread.is_alive()
    assert thread.daemon, "nor does the interpreter wait for it"
    released.set()
    thread.join()
    assert caplog.records == []


async def test_signals_are_for_others():
    """It may be there yet when nobody handles them any more, as before an upgrade: one would end the process."""
    blocked = await apart.do(signal.pthread_sigmask, signal.SIG_BLOCK, ())
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGHUP} <= blocked
