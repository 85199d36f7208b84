"""Hooks: commands that are told of events, so that somebody can be alerted.

* A hook delays nothing: `committed` only queues, and `RUNNING_MAX` are carried out at once. What finds `QUEUE_MAX`
  waiting is dropped, counted and said.
* It is told once. One that fails is a line in the daemon's log, with the last line that it wrote; nothing else of
  its output is kept. One that runs when the daemon dies is gone.
* On its standard input is one line of JSON: {"event": {...}, "host": "..."}, the event as the socket's `events` has it.
  In its environment is `CIRCLEOSD_EVENT` (the event's type), `CIRCLEOSD_SERVICE` (where it is of a service) and
  `CIRCLEOSD_SOCKET` (where the registry can be asked for more).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import cast

import msgspec

from registry.core.events import Record
from registry.questions.records import EventRecord, event_record

RUNNING_MAX = 4
"""Hooks that are carried out at once."""
QUEUE_MAX = 100
"""Hooks that may wait for their turn."""
TELL_S = 60.0
"""How often at most is said that hooks were dropped."""
LINE_MAX = 200
"""Characters of what a hook that failed said last."""
ALL = "all"
TAG = "tag:"

_log = logging.getLogger(__name__)


class Hook(msgspec.Struct, frozen=True):
    """One declared hook: run `cmd` in `cwd` for events of the types `on`, for `timeout_s` at most.

    `services` are names (that of instances means each of them), globs, `tag:TAG` or `all`; empty is every event,
    also those that are of no service. `place` is where it is declared, as FILE:LINE, for the log.
    """

    on: tuple[str, ...]
    cmd: tuple[str, ...]
    services: tuple[str, ...] = ()
    timeout_s: float = 10.0
    cwd: str = "/"
    place: str = ""


class _Call(msgspec.Struct, frozen=True):
    """One event that one hook is to be told of."""

    hook: Hook
    record: Record

    def __str__(self) -> str:
        # not its arguments: an address to post to is often a secret
        of = f" of {self.record.service}" if self.record.service else ""
        what = f"{self.record.type}{of}, event {self.record.seq}"
        place = f"{self.hook.place}: " if self.hook.place else ""
        return f"{place}[[hook]] ({self.hook.cmd[0]}; {what})"


class Hooks:
    """The hooks of one registry, until `close`. `tags_of` gives the tags of a service, none where it is unknown.

    `run` carries out a hook with these bytes on its standard input: its exit code, negative for a signal. It keeps
    `timeout_s`, and raises TimeoutError when it had to kill the hook, any other error when that could not be run.
    The last of what the hook writes it puts into the bytearray that it is given.
    """

    def __init__(
        self,
        hooks: Sequence[Hook],
        run: Callable[[Hook, bytes, bytearray], Awaitable[int]],
        tags_of: Callable[[str], Iterable[str]],
    ) -> None:
        self._run = run
        self._tags_of = tags_of
        self._hooks: dict[str, list[Hook]] = {}
        self._waiting: deque[_Call] = deque()
        self._workers: set[asyncio.Task[None]] = set()
        self._dropped = 0
        self._telling: asyncio.TimerHandle | None = None
        self.set(hooks)

    def set(self, hooks: Sequence[Hook]) -> None:
        """From now on these are told; what waits already is still told as before."""
        by_type: defaultdict[str, list[Hook]] = defaultdict(list)
        for hook in hooks:
            for type_ in dict.fromkeys(hook.on):
                by_type[type_].append(hook)
        self._hooks = dict(by_type)

    def committed(self, record: Record) -> None:
        """Queue the hooks that are to be told of an event. Never blocks, never raises."""
        for hook in self._hooks.get(record.type, ()):
            try:
                if self._matches(hook, record.service):
                    self._queue(_Call(hook, record))
            except Exception:
                # whatever it is: a hook is not to end supervision
                _log.exception("%s cannot be told", _Call(hook, record))

    async def rest(self, within_s: float) -> None:
        """Wait until none runs and none waits, `within_s` at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while self._workers:
                    await asyncio.wait(self._workers)

    async def close(self, within_s: float = 0.0) -> None:
        """Take no more events, give what runs and waits `within_s`, cancel the rest, wait until it is gone."""
        self._hooks = {}
        if within_s:
            await self.rest(within_s)
        self._waiting.clear()
        workers = tuple(self._workers)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        if self._telling is not None:
            self._telling.cancel()
        self._say_dropped()

    def _matches(self, hook: Hook, service: str | None) -> bool:
        if service is None or not hook.services:
            return not hook.services
        names = (ALL, service, service.partition("@")[0])  # the last is that of all its instances
        if any(word in names or fnmatchcase(service, word) for word in hook.services):
            return True
        tags = {word.removeprefix(TAG) for word in hook.services if word.startswith(TAG)}
        return bool(tags) and not tags.isdisjoint(self._tags_of(service))

    def _queue(self, call: _Call) -> None:
        if len(self._waiting) >= QUEUE_MAX:
            self._dropped += 1
            if self._telling is None:
                self._tell_dropped()
            return
        self._waiting.append(call)
        if len(self._workers) < RUNNING_MAX:
            self._workers.add(asyncio.get_running_loop().create_task(self._work()))

    async def _work(self) -> None:
        """Carry out what waits, and be gone in the moment in which nothing does."""
        try:
            while self._waiting:
                await self._carry_out(self._waiting.popleft())
        finally:
            self._workers.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    async def _carry_out(self, call: _Call) -> None:
        said = bytearray()
        try:
            code = await self._run(call.hook, _told(call.record), said)
        except TimeoutError:
            trouble = f"was killed: it took longer than {call.hook.timeout_s:g} s"
        except Exception as error:
            # whatever kept it from running is one hook's trouble, not that of those after it
            trouble = f"could not be run: {error}"
        else:
            trouble = f"ended with exit code {code}" if code > 0 else f"was ended by signal {-code}"
            if code == 0:
                return
        _log.warning("%s %s%s", call, trouble, _last_line(said))

    def _tell_dropped(self) -> None:
        """Say how many were dropped, and look again later, until none were."""
        self._telling = None
        if self._dropped:
            self._say_dropped()
            self._telling = asyncio.get_running_loop().call_later(TELL_S, self._tell_dropped)

    def _say_dropped(self) -> None:
        if self._dropped:
            _log.warning("Hooks dropped, since %d wait already: %d", QUEUE_MAX, self._dropped)
            self._dropped = 0


def _last_line(said: bytearray) -> str:
    """The last line that says something, for behind what happened."""
    lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
    if not lines:
        return ""
    shown = (char if char.isprintable() else ascii(char)[1:-1] for char in lines[-1][:LINE_MAX])
    return f", said last: {''.join(shown)}"


def environment(told: bytes) -> dict[str, str]:
    """The variables that say what a hook is told, from the bytes for its standard input."""
    event = _DECODER.decode(told).event
    of = {"CIRCLEOSD_SERVICE": event.service} if event.service is not None else {}
    return {"CIRCLEOSD_EVENT": event.type, **of}


class _Told(msgspec.Struct, frozen=True):
    """What a hook reads."""

    event: EventRecord
    host: str


_DECODER = msgspec.json.Decoder(_Told)


def _told(record: Record) -> bytes:
    return msgspec.json.encode(_Told(event_record(record), socket.gethostname())) + b"\n"
