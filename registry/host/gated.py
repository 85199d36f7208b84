"""Processes on their way to their gates: made when they are asked for, or ahead of that, several at once.

At once they take half as long each: the thread that spawns goes from one to the next, while nothing else happens.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from registry.core.definition import Logs
from registry.host import gate
from registry.host.kept import Kept
from registry.host.launch import Launch, LaunchError
from registry.host.spawning import Spawning
from registry.passed import SCM_MAX_FD

Key = tuple[str, int]
"""A service's name and the number of its run."""


class Wanted(NamedTuple):
    """A run that is probably asked for, and by what launch."""

    key: Key
    launch: Launch
    logs: Logs | None


class Made(NamedTuple):
    """A process that waits at its gate, and our end of its output: the caller's."""

    gated: gate.Gated
    output: int | None

    def undo(self) -> None:
        """Close its gate: nothing has happened."""
        os.close(self.gated.gate)
        if self.output is not None:
            os.close(self.output)


class GatedProcesses:
    """What makes them: with these `gates`, by `spawning`, their output into FIFOs of `kept`."""

    def __init__(
        self, gates: gate.Gates, setpriv: str | None, kept: Kept, spawning: Spawning
    ) -> None:
        self.gates = gates
        self._setpriv = setpriv
        self._kept = kept
        self._spawning = spawning
        self._ahead: dict[Key, tuple[Launch, Made]] = {}

    async def make(self, key: Key, launch: Launch, logs: Logs | None) -> Made:
        """A process for a run, the one made ahead where there is one by this launch. Raises LaunchError."""
        if (ahead := self._ahead.pop(key, None)) is not None:
            if ahead[0] is launch:
                return ahead[1]
            ahead[1].undo()
        with self._way(launch, logs) as (approach, output):
            pid = await self._spawning.do_meanwhile(approach.spawn, approach.fds)
            return Made(approach.gated(pid), output)

    def command(self, launch: Launch, stdin: int | None, output: str) -> gate.Gated:
        """A process that is no run, its output the file at the path `output`. Raises LaunchError."""
        with gate.approach(self.gates, launch, self._setpriv, output, stdin) as approach:
            return approach.gated(self._spawning.do(approach.spawn, approach.fds))

    def has(self, key: Key) -> bool:
        """Whether one was made ahead, and nobody has asked for it yet."""
        return key in self._ahead

    @contextlib.asynccontextmanager
    async def ahead(self, wanted: Sequence[Wanted]) -> AsyncIterator[None]:
        """Within the block `make` finds these made, one for each run. What cannot be made ahead is tried again by it,
        and tells why.
        """
        try:
            for some in _shared_out(wanted):
                await self._make_ahead(some)
            yield
        finally:
            for _launch, made in self._ahead.values():
                made.undo()
            self._ahead.clear()

    async def _make_ahead(self, wanted: Sequence[Wanted]) -> None:
        # of all of them: too many descriptors for one message, or for us
        with contextlib.suppress(OSError, LaunchError), contextlib.ExitStack() as unfinished:
            ways = []
            for each in wanted:
                with contextlib.suppress(LaunchError):
                    way = contextlib.ExitStack()
                    ways.append((each, way, *way.enter_context(self._way(each.launch, each.logs))))
                    unfinished.push(way)
            approaches = [approach for _each, _way, approach, _output in ways]
            fds = [fd for approach in approaches for fd in approach.fds]
            pids = await self._spawning.do_meanwhile(_spawn_each(approaches), fds)
            for (each, way, approach, output), pid in zip(ways, pids, strict=True):
                with contextlib.suppress(LaunchError), way:
                    made = Made(approach.gated(_or_raise(pid)), output)
                    self._ahead[each.key] = (each.launch, made)

    @contextlib.contextmanager
    def _way(self, launch: Launch, logs: Logs | None) -> Iterator[tuple[gate.Approach, int | None]]:
        """Within the block a process is to be made; what was opened for it is closed where the block fails."""
        if logs is None:
            with gate.approach(self.gates, launch, self._setpriv, os.devnull) as approach:
                yield approach, None
            return
        try:
            with (
                self._kept.fifo(launch.uid) as (path, output),
                gate.approach(self.gates, launch, self._setpriv, path) as approach,
            ):
                yield approach, output
        except OSError as error:
            raise gate.refusal(error) from None


def _shared_out(wanted: Sequence[Wanted]) -> Iterator[list[Wanted]]:
    """All of them, as many together as one message has room for their descriptors."""
    some: list[Wanted] = []
    room = SCM_MAX_FD
    for each in wanted:
        takes = 1 + len(each.launch.descriptors)  # one is its gate
        if some and takes > room:
            yield some
            some, room = [], SCM_MAX_FD
        some.append(each)
        room -= takes
    if some:
        yield some


def _spawn_each(approaches: Sequence[gate.Approach]) -> Callable[..., list[int | OSError]]:
    """What makes a process of each, with copies of the descriptors of all: its pid, or why there is none."""

    def attempt(approach: gate.Approach, fds: Iterator[int]) -> int | OSError:
        try:
            return approach.spawn(*islice(fds, len(approach.fds)))
        except OSError as error:
            return error

    def spawn(*fds: int) -> list[int | OSError]:
        left = iter(fds)
        return [attempt(each, left) for each in approaches]

    return spawn


def _or_raise(found: int | OSError) -> int:
    if isinstance(found, OSError):
        raise found
    return found
