"""What is decided goes into the journal; while that cannot be written, it is held here and tried again.

Law 1: everything is written in order, and with the numbers it was given. Law 2: what is held is bounded: beyond,
that of a service becomes one event with its whole state, and only then numbers are given anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import msgspec

from registry.core import events as ev
from registry.core.definition import Definition
from registry.core.lifecycle import Reason, State
from registry.core.service import Service

RETRY_S = 1.0
HELD_MAX = 20_000
"""Records held while the journal cannot be written; beyond, those of a service become one."""

_log = logging.getLogger(__name__)


class Journal(Protocol):
    """What is needed of the journal."""

    async def append(self, records: Sequence[ev.Record]) -> None:
        """Commit records as one transaction, or raise."""


class HeldRecords:
    """Records on their way into the journal.

    `degraded_since_ns` (UTC) is None while it can be written; `trouble` says why it cannot, or could not.
    """

    def __init__(self, journal: Journal, now: Callable[[], ev.Now]) -> None:
        self.degraded_since_ns: int | None = None
        self.trouble = ""
        self._journal = journal
        self._now = now
        self._records: list[ev.Record] = []
        self._in_flight = 0
        self._is_over = False
        self._tasks: asyncio.TaskGroup | None = None
        self._retrying: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def retrying(self) -> AsyncIterator[None]:
        """Within this, what cannot be written is held and tried again; elsewhere `commit` raises."""
        async with asyncio.TaskGroup() as self._tasks:
            yield
            self._is_over = True
            if self._retrying is not None and not self._in_flight:
                self._retrying.cancel()  # one under way would be carried out all the same
        self._tasks = None

    async def commit(self, records: Sequence[ev.Record]) -> None:
        """Write, or hold. Not to be called again before it returns."""
        self._records += records
        if self.degraded_since_ns is not None and self._tasks is not None:
            return
        try:
            await self._journal.append(self._records)
            self._records = []
        except Exception as error:
            if self._tasks is None:
                raise
            self._degrade(error, self._tasks)

    def _degrade(self, error: Exception, tasks: asyncio.TaskGroup) -> None:
        self.degraded_since_ns = self._now().at_ns
        self.trouble = str(error)
        _log.error(
            "%s; retrying. Until then this is not crash-safe, and commands are refused", error
        )
        self._retrying = tasks.create_task(self._retry())

    async def _retry(self) -> None:
        """Append what is held until nothing is; supervision goes on meanwhile."""
        while self._records:
            if self._is_over:
                return
            await asyncio.sleep(RETRY_S)
            batch = list(self._records)
            self._in_flight = len(batch)
            try:
                await self._journal.append(batch)
            except Exception as error:
                self.trouble = str(error)
            else:
                del self._records[: len(batch)]
            self._in_flight = 0
        _log.warning("The journal can be written again, nothing is missing from it")
        self.degraded_since_ns = self._retrying = None

    def collapse(
        self, services: Mapping[str, Service], last_runs: Mapping[str, int]
    ) -> list[ev.Record]:
        """Beyond the bound: one event with its whole state for each of `services`, in place of what is held of it.

        One that was removed meanwhile has another that says so; `last_runs` are those of the removed.

        Their numbers are given anew, in the order in which the present runs began: nobody could have read the
        old ones from the journal, and who was spawned after whom is not forgotten. Below it, nothing.
        """
        if len(self._records) - self._in_flight <= HELD_MAX:
            return []
        held = self._records[self._in_flight :]
        names = [name for each in held if (name := each.service) is not None and name in services]
        names.sort(key=lambda name: services[name].spawned_seq or 0)
        now, first = self._now(), held[0].seq
        records = [
            _resynced(seq, now, services[name], count)
            for seq, (name, count) in enumerate(Counter(names).items(), first)
        ]
        gone = dict.fromkeys(
            name for each in held if (name := each.service) is not None and name not in services
        )
        for name in gone:
            records += _removed(first + len(records), now, name, last_runs.get(name, 0))
        self._records[self._in_flight :] = records
        _log.warning("%d events that cannot be written became %d", len(held), len(records))
        return records


def _resynced(seq: int, now: ev.Now, service: Service, count: int) -> ev.Record:
    """Stands for `count` events: the service as it is read back from event `seq`, which knows of no later spawn."""
    state: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(service))
    if service.spawned_seq is not None:
        state["spawned_seq"] = min(service.spawned_seq, seq)
    event, run = ev.Resynced(events=count, state=state), service.run or None
    return ev.Record(seq, now.at_ns, now.mono_ns, seq, service.name, run, None, None, event)


def _removed(seq: int, now: ev.Now, name: str, run: int) -> list[ev.Record]:
    """Stands for all that is held of a service that is gone: it is, and the number of its last run is known."""
    service = Service(Definition(name=name, cmd=(name,)), removing=True, run=run)
    event = ev.Removed(source=State.STOPPED, dest=State.STOPPED, reason=Reason.REMOVED)
    gone = ev.Record(seq + 1, now.at_ns, now.mono_ns, seq + 1, name, run or None, None, None, event)
    return [_resynced(seq, now, service, 1), gone]
