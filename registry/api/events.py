"""What answers `events`: pages of the journal, once or for ever, each event of those asked for exactly once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, Protocol

import msgspec

from registry.api.access import Peer
from registry.api.actions import ApiError, ErrorCode, EventsParams
from registry.api.names import ALL, select, unknown
from registry.config.complaints import suggestion
from registry.core.events import TYPES, Record
from registry.core.projection import Projection
from registry.held import RETRY_S
from registry.questions.records import EventRecord, event_record
from registry.registry import Registry

PAGE = 1000
FOLLOWED_PAGE, FOLLOWED_PAGES_KEPT = 200, 8
"""Of what is followed: so many events are made into JSON before others have their turn (some 4 ms); and so many
pages are kept for whoever comes to them next."""
SEEN_EVERY_S = 1.0
"""How often who follows some events only is told how far all were looked at, while others happen."""
EventsPage = list[EventRecord] | msgspec.Raw | dict[str, Any]
"""Events; with `seen` an object of these and the number up to which all were looked at."""


NO_EVENTS = msgspec.Raw(b"[]")
_encode = msgspec.json.Encoder().encode


class EventSource(Protocol):
    """What the handlers need of the journal: what is written of it, up to event `seq`."""

    seq: int

    def beginning(self) -> Projection:
        """What there was before the first event."""

    async def read(
        self,
        *,
        since: int = 0,
        service: str | None = None,
        type: str | Sequence[str] | None = None,
        limit: int = PAGE,
    ) -> list[Record]:
        """Records above `since`; the last of them where it is negative."""


class _Page(NamedTuple):
    """Events in JSON, up to where they were looked at, and whether that is as far as a page goes.

    What is written never changes: a page of it that `is_full` is always the same.
    """

    last: int
    events: msgspec.Raw
    is_full: bool


class Events:
    """The events of one registry, for everybody who asks."""

    def __init__(self, registry: Registry, journal: EventSource) -> None:
        self._registry = registry
        self._journal = journal
        self._pages: dict[Any, _Page] = {}
        self._making = asyncio.Lock()

    async def answer(
        self, params: EventsParams, _peer: Peer
    ) -> EventsPage | AsyncIterator[EventsPage]:
        """A page, or with `follow` pages without an end. Raises ApiError."""
        _refuse_strange_types(params.type)
        if params.limit < 1:
            message = f"limit: {params.limit} is no number of events; write 1 or more"
            raise ApiError(ErrorCode.INVALID_PARAMS, message)
        names = await self._whose(params.service)
        await self._refuse_unknown(params.since)
        if params.follow:
            return self._follow(params, names)
        limit, last = min(params.limit, PAGE), self._journal.seq
        page = [event_record(record) for record in await self._read(params, names, limit)]
        is_cut = params.since >= 0 and len(page) == limit
        return _events_page(
            params, page, (page[-1].seq if page else params.since) if is_cut else last
        )

    async def _refuse_unknown(self, since: int) -> None:
        """Whoever has seen event `since` must not miss the one that followed it, nor take us for whom he saw it of."""
        if since > self._journal.seq:
            raise _not_yet(since, self._journal.seq)
        following = await self._journal.read(since=since, limit=1) if since > 0 else []
        if following and following[0].seq != since + 1:
            raise _gone(since, following[0].seq, self._journal.seq)

    async def _whose(self, given: str | list[str] | None) -> set[str] | None:
        """The services whose events are asked for, None for all; one that is gone may be named, too."""
        if given is None or ALL in ([given] if isinstance(given, str) else given):
            return None
        names = self._select(given)
        for name in names:
            unheard = name not in self._registry.committed.services
            if unheard and not await self._journal.read(service=name, limit=1):
                raise unknown(name, self._registry.committed)
        return set(names)

    async def _read(self, params: EventsParams, names: set[str] | None, limit: int) -> list[Record]:
        """A page of the journal. That of several services is made of theirs, each no longer than it."""
        read = partial(self._journal.read, since=params.since, type=params.type, limit=limit)
        if names is None:
            return await read()
        last = (
            self._registry.committed.seq
        )  # of what is committed meanwhile a part might be missing
        count = min(limit, -params.since) if params.since < 0 else limit
        found: list[Record] = []
        for name in names:
            theirs = [record for record in await read(service=name) if record.seq <= last]
            found = sorted([*found, *theirs], key=lambda record: record.seq)
            found = found[-count:] if params.since < 0 else found[:count]
        return found

    async def _follow(
        self, params: EventsParams, names: set[str] | None
    ) -> AsyncIterator[EventsPage]:
        """Pages without an end; the first one at once, even when it is empty.

        Only what is written is told: what is held may be lost with us, and its number be another event's.
        """
        seq, page = params.since, NO_EVENTS
        if seq < 0:
            seq = self._journal.seq
            newest = await self._read(params, names, PAGE)
            page = _encoded([record for record in newest if record.seq <= seq])
        else:
            seq, page, _is_full = await self._page_after(seq, params, names)
        yield _events_page(params, page, seq)
        told_s = time.monotonic()
        while True:
            if seq >= self._registry.committed.seq:
                await self._registry.next_commit()
            names = self._and_new_ones(params.service, names)
            before = seq
            seq, page, _is_full = await self._page_after(seq, params, names)
            is_due = params.seen and seq > before and time.monotonic() - told_s >= SEEN_EVERY_S
            if page is not NO_EVENTS or is_due:
                yield _events_page(params, page, seq)
                told_s = time.monotonic()
            elif seq == before:  # what is committed is only held
                await asyncio.sleep(RETRY_S)

    def _and_new_ones(
        self, given: str | list[str] | None, names: set[str] | None
    ) -> set[str] | None:
        """An instance, or one with the tag, may have been declared since."""
        if given is None or names is None:
            return None
        for word in [given] if isinstance(given, str) else given:
            with suppress(ApiError):  # none fits any more
                names = names.union(self._select(word))
        return names

    async def _page_after(self, seq: int, params: EventsParams, names: set[str] | None) -> _Page:
        """What follows event `seq`. One page is made at a time, and then others have their turn: however many follow,
        and from however far, nothing else waits for more than a page.
        """
        types = [params.type] if isinstance(params.type, str) else params.type
        if names is not None:
            async with self._making:
                return await self._new_page(seq, types, names)
        # whoever follows all services gets the same ones, so they are made once for all of them
        what = (seq, types and tuple(types))
        async with self._making:
            page = self._pages.get(what)
            if page is None or not (page.is_full or page.last >= self._last):
                page = self._pages[what] = await self._new_page(seq, types, None)
                if len(self._pages) > FOLLOWED_PAGES_KEPT:
                    del self._pages[next(iter(self._pages))]
        return page

    @property
    def _last(self) -> int:
        """The last event that may be told."""
        return min(self._journal.seq, self._registry.committed.seq)

    async def _new_page(
        self, seq: int, types: Sequence[str] | None, names: set[str] | None
    ) -> _Page:
        found = self._registry.recent_since(seq)
        if found is None:
            found = await self._journal.read(since=seq, limit=FOLLOWED_PAGE)
        last = self._last
        records = [record for record in found[:FOLLOWED_PAGE] if record.seq <= last]
        if seq and records and records[0].seq != seq + 1:  # removed while we were on our way there
            raise _gone(seq, records[0].seq, last)
        told = [
            record
            for record in records
            if (names is None or record.service in names)
            and (types is None or record.type in types)
        ]
        page = _Page(
            records[-1].seq if records else seq, _encoded(told), len(records) == FOLLOWED_PAGE
        )
        await asyncio.sleep(0)
        return page

    def _select(self, given: str | list[str]) -> list[str]:
        return select(given, self._registry.committed)


def _refuse_strange_types(given: str | list[str] | None) -> None:
    types = [given] if isinstance(given, str) else given
    if types is not None and not 1 <= len(types) <= len(TYPES):
        raise ApiError(
            ErrorCode.INVALID_PARAMS, "type: name one type of events, or several, each once"
        )
    for strange in (each for each in types or () if each not in TYPES):
        message = f"type: there is no type '{strange[:64]}'{suggestion(strange, TYPES)}"
        raise ApiError(ErrorCode.INVALID_PARAMS, message)


def _encoded(records: list[Record]) -> msgspec.Raw:
    return msgspec.Raw(_encode([event_record(each) for each in records])) if records else NO_EVENTS


def _events_page(
    params: EventsParams, page: list[EventRecord] | msgspec.Raw, seen: int
) -> EventsPage:
    return {"seen": seen, "events": page} if params.seen else page


def _gone(since: int, first: int, last: int) -> ApiError:
    message = (
        f"since: event {since + 1} is no longer in the journal, which begins with event {first};"
        f" since {first - 1} is all that there is"
    )
    return ApiError(ErrorCode.OUT_OF_RANGE, message, {"first": first, "last": last})


def _not_yet(since: int, last: int) -> ApiError:
    message = (
        f"since: there was no event {since} yet, the last is event {last};"
        " was it seen in another journal, or in a later copy of this one?"
    )
    return ApiError(ErrorCode.OUT_OF_RANGE, message, {"first": None, "last": last})
