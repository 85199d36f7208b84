"""Lines of logs: of one service or merged of several; and who waits for more, told by the keeper."""

from __future__ import annotations

import asyncio
import errno
import heapq
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from operator import itemgetter
from pathlib import Path

import msgspec

from registry.api.actions import ApiError, ErrorCode
from registry.logs.read import Follower, Line, Selection, select, select_and_follow, tail
from registry.questions.records import rfc3339


class LogLine(msgspec.Struct, frozen=True):
    """One line of a service's log; `at` and `run` are null where no index says when, and who wrote it."""

    service: str
    at: str | None
    run: int | None
    line: str


class Source(msgspec.Struct, frozen=True):
    """The log of a service, and which of its lines are wanted."""

    service: str
    path: Path
    selection: Selection = Selection()


_REMEDIES = {
    errno.EINVAL: "move it away: only the log's own files may have its names",
    errno.EACCES: "let the registry's user read it",
}


@contextmanager
def _refused() -> Iterator[None]:
    """Answer in a sentence where a file of a log cannot be read."""
    try:
        yield
    except OSError as error:
        what = f"{error.filename or 'a file of the log'} cannot be read: {error.strerror}"
        remedy = _REMEDIES.get(error.errno or 0)
        raise ApiError(ErrorCode.NO_LOGS, f"{what}; {remedy}" if remedy else what) from None


@_refused()
def last_lines(path: Path, lines: int) -> list[str]:
    """The last `lines` lines of one log, as they are."""
    return tail(path, lines)


@_refused()
def read(sources: Sequence[Source], lines: int) -> list[LogLine]:
    """The last `lines` of the lines that are wanted, in the order of their times."""
    found = [(s.service, select(s.path, lines, s.selection)) for s in sources]
    return _merged(found, lines)


@_refused()
def _read_and_follow(
    sources: Sequence[Source], lines: int, followers: list[tuple[str, Follower]]
) -> list[LogLine]:
    """The lines; whatever is opened for those that come is in `followers`, also when this fails."""
    found: list[tuple[str, list[Line]]] = []
    for source in sources:
        some, follower = select_and_follow(source.path, lines, source.selection)
        followers.append((source.service, follower))
        found.append((source.service, some))
    return _merged(found, lines)


def _merged(found: Iterable[tuple[str, list[Line]]], lines: int) -> list[LogLine]:
    streams = [_timed(service, some) for service, some in found]
    merged = [line for _, line in heapq.merge(*streams, key=itemgetter(0))]
    return merged[-lines:] if lines > 0 else []


def _timed(service: str, lines: list[Line]) -> Iterator[tuple[int, LogLine]]:
    """Each line with the time to sort by: never before a line above it, whatever the clock did."""
    latest_ns = 0
    for text, at_ns, run in lines:
        latest_ns = max(latest_ns, at_ns or 0)
        at = rfc3339(at_ns) if at_ns is not None else None
        yield latest_ns, LogLine(service, at, run, text)


class Growth:
    """Wakes those who follow a log. `watch` and `unwatch` tell the keeper whose growth matters."""

    def __init__(self, watch: Callable[[str], None], unwatch: Callable[[str], None]) -> None:
        self._watch = watch
        self._unwatch = unwatch
        self._waiting: dict[str, set[asyncio.Event]] = {}

    def grew(self, service: str) -> None:
        """There is more of a service's log."""
        for event in self._waiting.get(service, ()):
            event.set()

    async def follow(
        self, sources: Sequence[Source], lines: int
    ) -> AsyncGenerator[list[LogLine], None]:
        """The last lines that are wanted, then whatever comes after them, in pages, without an end.

        What comes after bears the time at which it was seen, and no run.
        """
        grown = asyncio.Event()
        services = [source.service for source in sources]
        for service in services:
            self._enter(service, grown)
        followers: list[tuple[str, Follower]] = []
        try:
            yield await _in_a_thread(partial(_read_and_follow, sources, lines, followers))
            while True:
                grown.clear()
                while page := await _in_a_thread(partial(_read_new, followers)):
                    yield page
                await grown.wait()
        finally:
            for _, follower in followers:
                follower.close()
            for service in services:
                self._leave(service, grown)

    def _enter(self, service: str, grown: asyncio.Event) -> None:
        waiting = self._waiting.setdefault(service, set())
        waiting.add(grown)
        if len(waiting) == 1:
            self._watch(service)

    def _leave(self, service: str, grown: asyncio.Event) -> None:
        waiting = self._waiting[service]
        waiting.discard(grown)
        if not waiting:
            del self._waiting[service]
            self._unwatch(service)


async def _in_a_thread(read_lines: Callable[[], list[LogLine]]) -> list[LogLine]:
    """Read in a thread, and to its end, also where whoever waits is cancelled.

    A thread that went on behind our back would open files that nobody closes.
    """
    work = asyncio.ensure_future(asyncio.to_thread(read_lines))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        while not work.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([work])
        raise


@_refused()
def _read_new(followers: list[tuple[str, Follower]]) -> list[LogLine]:
    at = rfc3339(time.time_ns())
    return [
        LogLine(service, at, None, line)
        for service, follower in followers
        for line in follower.read_new()
    ]
