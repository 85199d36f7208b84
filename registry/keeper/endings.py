"""How the output of runs ended, into the journal: the last lines of those that ended ill, and what was lost.

Of a run that ended clean, or was stopped as somebody asked (it, or what it follows), nothing is said
unless output was lost: a oneshot that runs every second must not fill the journal. No restart waits for
any of this. An output that has ended is dealt with once the end of its run's main process is committed;
then the keeper may forget it (`heard`), so that a registry that dies in between leaves it to the next
one, which looks first whether the journal has it already.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Reversible
from pathlib import Path
from signal import SIGKILL

from registry.core import events as ev
from registry.core import inputs as inp
from registry.core.definition import Definition
from registry.core.lifecycle import Reason, State
from registry.core.service import Service
from registry.keeper.client import OutputEnded
from registry.keeper.protocol import Key
from registry.logs.read import last_words

WAITING_MAX = 1000
"""Ends that may wait to be looked at; of what comes beyond, nothing is said."""

_AS_ASKED = frozenset(
    {
        Reason.REQUESTED,
        Reason.RESTART_REQUESTED,
        Reason.DEPENDENCY,
        Reason.REDEFINED,
        Reason.SHUTDOWN,
        Reason.REMOVED,
        Reason.AUTOSTART,
    }
)

_log = logging.getLogger(__name__)


class Endings:
    """Outputs that have ended.

    `recent` are the latest events of all, those that cannot be written yet included; `latest(service)` reads its own.
    """

    def __init__(
        self,
        find: Callable[[str], Service | None],
        observe: Callable[[str, inp.Observation], None],
        recent: Callable[[], Reversible[ev.Record]],
        latest: Callable[[str], Awaitable[list[ev.Record]]],
        heard: Callable[[str, int], None],
    ) -> None:
        self._find = find
        self._observe = observe
        self._recent = recent
        self._latest = latest
        self._heard = heard
        self._ended: dict[Key, OutputEnded] = {}
        self._known: asyncio.Queue[OutputEnded] = asyncio.Queue(WAITING_MAX)

    def output_ended(self, ended: OutputEnded) -> None:
        """The keeper says so."""
        if ended.dropped:
            _log.warning(
                "%s: %d bytes of output of run %d were dropped, its log could not be written",
                ended.service,
                ended.dropped,
                ended.run,
            )
        service = self._find(ended.service)
        if service is None or _is_over(service, ended.run):
            self._put(ended)
        else:
            self._ended[ended.service, ended.run] = ended

    def committed(self, record: ev.Record) -> None:
        """What the journal has taken in since."""
        if record.service is None or record.run is None:
            return
        match record.event:
            case ev.OutputEnded():
                self._heard(record.service, record.run)
            case ev.Exited() | ev.Lost():
                ended = self._ended.pop((record.service, record.run), None)
                if ended is not None:
                    self._put(ended)

    async def run(self) -> None:
        """Deal with each of them, without an end."""
        while True:
            ended = await self._known.get()
            try:
                await self._deal_with(ended)
            except (
                Exception
            ) as error:  # no thread or descriptor to be had: not heard, so the next one says it
                _log.warning(
                    "what %s, run %d, said last is not known: %s", ended.service, ended.run, error
                )

    def _put(self, ended: OutputEnded) -> None:
        try:
            self._known.put_nowait(ended)
        except asyncio.QueueFull:
            self._heard(ended.service, ended.run)

    def _since_its_end(self, ended: OutputEnded) -> list[ev.Record]:
        """The events of a run from its end on, oldest first; none where that was long ago."""
        found = []
        for record in reversed(self._recent()):
            if (record.service, record.run) == (ended.service, ended.run):
                found.append(record)
                if isinstance(record.event, ev.Exited | ev.Lost):
                    return found[::-1]
        return []

    async def _deal_with(self, ended: OutputEnded) -> None:
        events = self._since_its_end(ended) or [
            record for record in await self._latest(ended.service) if record.run == ended.run
        ]
        end = next((r for r in reversed(events) if isinstance(r.event, ev.Exited | ev.Lost)), None)
        service = self._find(ended.service)
        is_told = any(isinstance(record.event, ev.OutputEnded) for record in events)
        is_ill = service is not None and end is not None and _is_ill(end.event, service.definition)
        if is_told or service is None or not (is_ill or ended.dropped):
            self._heard(ended.service, ended.run)
            return
        lines: list[str] = []
        if ended.log is not None:
            lines = await asyncio.to_thread(_words, ended.log.path, ended.run)
        if not (lines or ended.dropped):
            self._heard(ended.service, ended.run)
            return
        cause = end.seq if end is not None else None
        given = inp.OutputEnded(
            run=ended.run, lines=tuple(lines), dropped=ended.dropped, cause=cause
        )
        self._observe(ended.service, given)


def _is_over(service: Service, run: int) -> bool:
    return run < service.run or (run == service.run and service.pid is None)


def _is_ill(end: ev.Event, definition: Definition) -> bool:
    """Whether a run ended otherwise than well, or than somebody asked for."""
    if not isinstance(end, ev.Exited):
        return True
    if end.source is State.STOPPING and end.reason in _AS_ASKED:
        return end.signal == SIGKILL
    code = end.exit_code if end.signal is None else -end.signal
    return not end.never_ran and code not in definition.success_exit_codes


def _words(path: str, run: int) -> list[str]:
    try:
        return last_words(Path(path), run)
    except OSError as error:
        _log.warning("the last lines of %s, run %d, cannot be read: %s", path, run, error)
        return []
