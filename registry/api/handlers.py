"""What answers each action: commands go to the registry, questions to the committed projection."""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Sequence,
)
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec

import registry as package
from registry.api.access import Peer
from registry.api.actions import (
    ApiError,
    ApplyParams,
    DiffParams,
    ErrorCode,
    EventsParams,
    HealthParams,
    HeartbeatParams,
    HistoryParams,
    ListParams,
    LogsParams,
    NoParams,
    QueryParams,
    ReportParams,
    SelectionParams,
    ShowParams,
    ShutdownParams,
    StatusParams,
    VersionParams,
    WhyParams,
)
from registry.api.commands import Commands, actor_of
from registry.api.growth import Growth, LogLine, Source
from registry.api.growth import read as read_logs
from registry.api.listing import Listing
from registry.api.names import ALL, api_error, find, select, unknown
from registry.api.protocol import Handler
from registry.config.complaints import suggestion
from registry.core.definition import Check, Definition
from registry.core.dependencies import is_settled
from registry.core.events import TYPES, Actor, Defined, Record, Redefined, Spawned
from registry.core.lifecycle import State
from registry.core.projection import Projection
from registry.core.service import Service
from registry.held import RETRY_S
from registry.host.capabilities import FALLBACKS, Capabilities
from registry.host.clock import Clock
from registry.host.health import Attempt
from registry.journal import SQLITE_VERSION
from registry.logs.read import Selection, tail
from registry.logs.target import LogTarget
from registry.past.answers import (
    BootOf,
    DiffOf,
    GraphThen,
    HistoryOf,
    ListThen,
    Query,
    ReportOf,
    StatusThen,
    WhyThen,
)
from registry.questions.graph import graph
from registry.questions.moments import AT_EXAMPLES, EXAMPLES, SEQ, At, Moment, at, moment
from registry.questions.plan import Plan
from registry.questions.records import (
    EVENTS_LOOKED_AT,
    EventRecord,
    ServiceRecord,
    check_health,
    event_record,
    health,
    rfc3339,
    service_detail,
    service_record,
)
from registry.questions.refusal import Refusal
from registry.registry import Registry

PAGE = 1000
LINES, LINES_MAX = 50, 100_000
SEEN_EVERY_S = 1.0
"""How often who follows some events only is told how far all were looked at, while others happen."""
RUNS_MAX = 100_000
_NAMED_MAX = 8
_encode = msgspec.json.Encoder().encode
EventsPage = list[EventRecord] | dict[str, Any]
"""Events; with `seen` an object of these and the number up to which all were looked at."""


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


class Past(Protocol):
    """What the handlers need to answer from the past."""

    async def ask(self, question: str, params: msgspec.Struct) -> msgspec.Raw:
        """The answer to a question of `past.answers`. Raises Refusal."""


class Administration(Protocol):
    """What concerns the registry as a whole: its configuration, its end."""

    async def plan(self) -> Plan:
        """What the configuration files would change. Raises ApiError(INVALID_CONFIG)."""

    async def apply(self, actor: Actor | None) -> Plan:
        """Take them up. Raises ApiError."""

    def shut_down(self, *, keep_services: bool) -> None:
        """End, having stopped the services or not."""

    async def upgrade(self) -> str | None:
        """Become the installed code; or why that cannot be, in one sentence."""


class Handlers:
    """The answers of one registry. `beat` hands on a heartbeat, `describe` tells what only the machine knows of a
    service, `check_once` carries out its checks now.
    """

    def __init__(
        self,
        registry: Registry,
        journal: EventSource,
        growth: Growth,
        capabilities: Capabilities,
        *,
        journal_path: Path,
        beat: Callable[[str, str | None], bool],
        describe: Callable[[Service], dict[str, Any]],
        check_once: Callable[[Service], Awaitable[list[tuple[Check, Attempt]]]],
        past: Past,
        administration: Administration,
    ) -> None:
        self._registry = registry
        self._journal = journal
        self._growth = growth
        self._capabilities = capabilities
        self._journal_path = journal_path
        self._beat = beat
        self._describe = describe
        self._check_once = check_once
        self._past = past
        self._administration = administration
        self._listing = Listing(registry)
        self._page: tuple[Any, tuple[int, list[EventRecord]]] = (None, (0, []))

    def table(self) -> dict[str, Handler]:
        """The function that answers each action, by the action's name."""
        return {
            "list_services": self._list_services,
            "status": self._status,
            "graph": self._graph,
            "why": self._why,
            **Commands(self._registry).table(),
            "show": self._show,
            "plan": self._plan,
            "apply": self._apply,
            "check": self._check_now,
            "health": self._health,
            "query": self._query,
            "logs": self._logs,
            "events": self._events,
            "history": self._history,
            "diff": self._diff,
            "report": self._report,
            "heartbeat": self._heartbeat,
            "version": self._version,
            "shutdown": self._shutdown,
            "upgrade": self._upgrade,
        }

    # --- questions --------------------------------------------------------------------------------

    def _list_services(
        self, params: ListParams, _peer: Peer
    ) -> msgspec.Raw | list[ServiceRecord] | Awaitable[msgspec.Raw]:
        if params.at is not None:
            return self._ask("list", ListThen(_at(params.at), params.service))
        if params.service is not None:
            return [self._record(self._service(name)) for name in self._names(params.service)]
        return self._listing.answer()

    async def _status(self, params: StatusParams, _peer: Peer) -> dict[str, Any] | msgspec.Raw:
        if params.at is not None:
            return await self._ask("status", StatusThen(_at(params.at), params.service))
        service = self._service(params.service)
        checks, machine = self._checks(service), self._describe(service)
        events = await self._journal.read(since=-EVENTS_LOOKED_AT, service=service.name)
        services = self._registry.committed.services
        return service_detail(service, services, events, checks=checks, machine=machine)

    async def _graph(self, params: ListParams, _peer: Peer) -> dict[str, Any] | msgspec.Raw:
        if params.at is not None:
            return await self._ask("graph", GraphThen(_at(params.at), params.service))
        chosen = None
        if params.service is not None:
            chosen = [self._service(name).name for name in self._names(params.service)]
        return {"moment": None, "services": graph(chosen, self._registry.committed)}

    async def _why(self, params: WhyParams, _peer: Peer) -> msgspec.Raw:
        if not params.service.startswith(SEQ):
            moment = _at(params.at) if params.at is not None else None
            return await self._ask("why", WhyThen(moment, params.service))
        seq = at(params.service, 0)
        if params.at is not None or not isinstance(seq, int):
            message = "service: an event is named as in seq:57, and goes without at"
            raise ApiError(ErrorCode.INVALID_PARAMS, message)
        return await self._ask("why", WhyThen(seq=seq))

    async def _ask(self, question: str, params: msgspec.Struct) -> msgspec.Raw:
        """What the journal answers, read by a process beside this one. Raises ApiError."""
        try:
            return await self._past.ask(question, params)
        except Refusal as refusal:
            raise api_error(refusal) from None

    def _history(self, params: HistoryParams, _peer: Peer) -> Awaitable[msgspec.Raw]:
        if not 1 <= params.limit <= RUNS_MAX:
            message = f"limit: {params.limit} is not between 1 and {RUNS_MAX}"
            raise ApiError(ErrorCode.INVALID_PARAMS, message)
        since, until = _moment("since", params.since), _moment("until", params.until)
        return self._ask("history", HistoryOf(params.service, since, until, params.limit))

    def _diff(self, params: DiffParams, _peer: Peer) -> Awaitable[msgspec.Raw]:
        since, until = _at(params.since, "since"), _at(params.until, "until")
        return self._ask("diff", DiffOf(since, until, params.service))

    def _report(self, params: ReportParams, _peer: Peer) -> Awaitable[msgspec.Raw]:
        since, until = _moment("since", params.since), _moment("until", params.until)
        if params.boot and (since or until):
            message = "boot: it is one start; leave out since and until, or write at"
            raise ApiError(ErrorCode.INVALID_PARAMS, message)
        if params.at is not None and not params.boot:
            message = "at: it goes with boot; write since and until"
            raise ApiError(ErrorCode.INVALID_PARAMS, message)
        if params.boot:
            at_ = _at(params.at) if params.at is not None else None
            return self._ask("boot", BootOf(at_, params.service))
        return self._ask("report", ReportOf(params.service, since, until, Clock().now()))

    async def _query(self, params: QueryParams, _peer: Peer) -> msgspec.Raw:
        return await self._ask("query", Query(params.sql, params.limit))

    def _health(self, params: HealthParams, _peer: Peer) -> list[dict[str, Any]]:
        services = (
            list(self._registry.committed.in_order())
            if params.service is None
            else [self._service(name) for name in self._names(params.service)]
        )
        return [
            {
                "name": service.name,
                "health": health(service),
                "since": _latest(state.since_ns for state in service.checks.values()),
                "checks": self._checks(service),
            }
            for service in services
        ]

    def _checks(self, service: Service) -> list[dict[str, Any]]:
        return [
            self._check(service, check.name, check.target) for check in service.definition.checks
        ]

    def _check(self, service: Service, name: str, target: str) -> dict[str, Any]:
        tally = self._registry.tallies.get((service.name, name))
        streak = tally.streak if tally else None
        return {
            "name": name,
            "target": target,
            "health": check_health(service, name),
            "last_at": rfc3339(streak.last_at_ns) if streak else None,
            "latency_ms": round(tally.latency_ns / 1e6, 3) if tally else None,
            "error": streak.error if streak else None,
        }

    async def _events(
        self, params: EventsParams, _peer: Peer
    ) -> EventsPage | AsyncIterator[EventsPage]:
        _refuse_strange_types(params.type)
        names = await self._whose(params.service)
        await self._refuse_gone(params.since)
        if params.follow:
            return self._follow(params, names)
        limit, last = min(max(params.limit, 0), PAGE), self._journal.seq
        page = [event_record(record) for record in await self._read(params, names, limit)]
        is_cut = params.since >= 0 and len(page) == limit
        return _events_page(
            params, page, (page[-1].seq if page else params.since) if is_cut else last
        )

    async def _refuse_gone(self, since: int) -> None:
        """Whoever has seen event `since` must not miss the one that followed it."""
        following = await self._journal.read(since=since, limit=1) if since > 0 else []
        if following and following[0].seq != since + 1:
            raise _gone(since, following[0].seq, self._journal.seq)

    async def _whose(self, given: str | list[str] | None) -> set[str] | None:
        """The services whose events are asked for, None for all; one that is gone may be named, too."""
        if given is None or ALL in ([given] if isinstance(given, str) else given):
            return None
        names = self._names(given)
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
        seq, page = params.since, []
        if seq < 0:
            seq = self._journal.seq
            newest = await self._read(params, names, PAGE)
            page = [event_record(record) for record in newest if record.seq <= seq]
        elif seq > self._journal.seq:
            raise _not_yet(seq, self._journal.seq)
        else:
            seq, page = await self._page_after(seq, params, names)
        yield _events_page(params, page, seq)
        told_s = time.monotonic()
        while True:
            if seq >= self._registry.committed.seq:
                await self._registry.next_commit()
            names = self._and_new_ones(params.service, names)
            before = seq
            seq, page = await self._page_after(seq, params, names)
            is_due = params.seen and seq > before and time.monotonic() - told_s >= SEEN_EVERY_S
            if page or is_due:
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
                names = names.union(self._names(word))
        return names

    async def _page_after(
        self, seq: int, params: EventsParams, names: set[str] | None
    ) -> tuple[int, list[EventRecord]]:
        if names is not None:
            return await self._new_page(seq, params, names)
        # whoever follows all services gets the same one, so it is made once for all of them
        what = (self._registry.as_of, self._journal.seq, seq, params.type)
        if self._page[0] == what:
            return self._page[1]
        made = await self._new_page(seq, params, names)
        if made[1]:
            self._page = (what, made)
        return made

    async def _new_page(
        self, seq: int, params: EventsParams, names: set[str] | None
    ) -> tuple[int, list[EventRecord]]:
        found = self._registry.recent_since(seq)
        if found is None:
            found = await self._journal.read(since=seq)
        last = min(self._journal.seq, self._registry.committed.seq)
        records = [record for record in found[:PAGE] if record.seq <= last]
        if seq and records and records[0].seq != seq + 1:  # removed while we were on our way there
            raise _gone(seq, records[0].seq, last)
        types = [params.type] if isinstance(params.type, str) else params.type
        page = [
            event_record(record)
            for record in records
            if (names is None or record.service in names)
            and (types is None or record.type in types)
        ]
        return (records[-1].seq if records else seq), page

    async def _logs(
        self, params: LogsParams, _peer: Peer
    ) -> list[str] | list[LogLine] | AsyncIterator[list[str] | list[LogLine]]:
        selection = _selection(params)
        services = [self._service(name) for name in self._names(params.service)]
        if params.service == ALL:
            services = [service for service in services if service.definition.logs is not None]
        sources = [self._source(service, selection) for service in services]
        is_one = [service.name for service in services] == [params.service]
        is_plain = is_one and not params.stamps
        asked = params.lines
        if asked is None:
            asked = LINES if selection == Selection() else LINES_MAX
        lines = min(max(asked, 0), LINES_MAX)
        if params.follow:
            pages = self._growth.follow(sources, lines)
            return _plain_pages(pages) if is_plain else pages
        if is_plain and selection == Selection():
            return await asyncio.to_thread(tail, sources[0].path, lines)
        found = await asyncio.to_thread(read_logs, sources, lines)
        return [each.line for each in found] if is_plain else found

    def _source(self, service: Service, selection: Selection) -> Source:
        logs = service.definition.logs
        if logs is None:
            raise ApiError(
                ErrorCode.NO_LOGS, f"service '{service.name}' keeps no logs: it says logs = false"
            )
        if selection.run is not None:
            selection = selection._replace(run=_run_number(service, selection.run))
        return Source(service.name, Path(LogTarget.of(logs, service.name).path), selection)

    def _version(self, params: VersionParams, _peer: Peer) -> dict[str, Any]:
        projection = self._registry.committed
        answer: dict[str, Any] = {
            "version": package.__version__,
            "pid": os.getpid(),
            "journal": str(self._journal_path),
            "started_at": rfc3339(projection.started_at_ns),
            "degraded_since": _latest([self._registry.degraded_since_ns or 0]),
        }
        if params.all:
            answer["python"] = platform.python_version()
            answer["platform"] = platform.platform()
            answer["sqlite"] = SQLITE_VERSION
            answer["capabilities"] = [
                {
                    "name": name,
                    "available": getattr(self._capabilities, name),
                    "what": what,
                    "otherwise": other,
                }
                for name, (what, other) in FALLBACKS.items()
            ]
        return answer

    # --- configuration ----------------------------------------------------------------------------

    async def _show(self, params: ShowParams, _peer: Peer) -> dict[str, Any]:
        service = self._one(params.service)
        if params.run is None:
            return _shown(service, None, service.digest, service.definition)
        run = _run_number(service, params.run, ErrorCode.NO_RUN)
        digest = await self._digest_of(service, run)
        definition = await self._definition_of(service, digest)
        return _shown(service, run, digest, definition)

    async def _digest_of(self, service: Service, run: int) -> str:
        if run == service.run and service.run_digest:
            return service.run_digest
        name = service.name
        async for record in self._all_of(name, "spawned"):
            if record.run == run and isinstance(record.event, Spawned):
                return record.event.digest
        raise ApiError(
            ErrorCode.NO_RUN, f"run: the journal does not say how run {run} of '{name}' was begun"
        )

    async def _definition_of(self, service: Service, digest: str) -> Definition:
        if digest == service.run_digest and service.run_definition is not None:
            return service.run_definition
        name, before = service.name, self._journal.beginning().services
        for known in (service, before.get(service.name)):
            if known is not None and known.digest == digest:
                return known.definition
        for kind in ("defined", "redefined"):
            async for record in self._all_of(name, kind):
                event = record.event
                if isinstance(event, Defined | Redefined) and event.digest == digest:
                    return event.definition
        raise ApiError(
            ErrorCode.NO_RUN, f"run: the journal holds no definition of '{name}' with this digest"
        )

    async def _all_of(self, name: str, kind: str) -> AsyncIterator[Record]:
        seq = 0
        while page := await self._journal.read(since=seq, service=name, type=kind):
            for record in page:
                yield record
            seq = page[-1].seq

    async def _plan(self, _params: NoParams, _peer: Peer) -> Plan:
        return await self._administration.plan()

    async def _apply(self, params: ApplyParams, peer: Peer) -> Plan | dict[str, Any]:
        applied = await self._administration.apply(actor_of(peer))
        if not params.wait:
            return applied
        records = await self._in_force(applied, params.timeout)
        return {**msgspec.to_builtins(applied), "services": records}

    async def _in_force(self, applied: Plan, timeout_s: float) -> list[ServiceRecord]:
        """The services that were changed, once they are settled, and what was removed is gone."""
        services = self._registry.committed.services
        removed = {change.service for change in applied.changes if change.change == "remove"}
        changed = [each.service for each in applied.changes if each.service not in removed]

        def present() -> list[Service]:
            return [services[name] for name in changed if name in services]

        def is_in_force() -> bool:
            are_settled = all(is_settled(service, services) for service in present())
            return are_settled and not removed & services.keys()

        def records(found: Iterable[Service]) -> list[ServiceRecord]:
            return [self._record(service) for service in found]

        try:
            async with asyncio.timeout(timeout_s):
                await self._registry.until(is_in_force)
        except TimeoutError:
            slow = records(s for s in present() if not is_settled(s, services))
            names = ", ".join(record.name for record in slow) or "what was removed is still there"
            message = f"applied, and not settled within {timeout_s:g} s: {names}"
            data = {"plan": msgspec.to_builtins(applied), "services": slow}
            raise ApiError(ErrorCode.TIMED_OUT, message, data) from None
        return records(present())

    async def _check_now(self, params: SelectionParams, _peer: Peer) -> list[dict[str, Any]]:
        services = [self._service(name) for name in self._names(params.service)]
        with_checks = [service for service in services if service.definition.checks]
        if not with_checks:
            named = " and ".join(f"'{service.name}'" for service in services[:3])
            raise ApiError(ErrorCode.NO_CHECKS, f"no health_check is declared for {named}")
        made = await asyncio.gather(*map(self._check_once, with_checks))
        return [
            {
                "name": service.name,
                "checks": [
                    {
                        "name": check.name,
                        "target": check.target,
                        "ok": attempt.ok,
                        "error": attempt.error,
                        "latency_ms": round(attempt.latency_ns / 1e6, 3),
                    }
                    for check, attempt in attempts
                ],
            }
            for service, attempts in zip(with_checks, made, strict=True)
        ]

    def _heartbeat(self, params: HeartbeatParams, _peer: Peer) -> None:
        service = self._service(params.service)
        listening = [
            check.name
            for check in service.definition.checks
            if check.target.startswith("heartbeat:")
        ]
        if not listening or params.check not in (None, *listening):
            known = f"it has {', '.join(listening)}" if listening else "it declares none"
            raise ApiError(
                ErrorCode.UNKNOWN_CHECK,
                f"service '{service.name}' has no such heartbeat: check; {known}",
            )
        self._beat(service.name, params.check)

    def _shutdown(self, params: ShutdownParams, _peer: Peer) -> None:
        self._refuse_when_closing()
        begin = partial(self._administration.shut_down, keep_services=params.keep_services)
        asyncio.get_running_loop().call_soon(begin)

    async def _upgrade(self, _params: NoParams, _peer: Peer) -> None:
        self._refuse_when_closing()
        trouble = await self._administration.upgrade()
        if trouble is not None:
            raise ApiError(ErrorCode.NOT_READY, f"cannot upgrade: {trouble}")

    def _refuse_when_closing(self) -> None:
        if self._registry.closing:
            raise ApiError(ErrorCode.SHUTTING_DOWN, "the registry is shutting down already")

    def _record(self, service: Service) -> ServiceRecord:
        return service_record(service, self._registry.committed.services)

    # --- names ------------------------------------------------------------------------------------

    def _names(self, given: str | list[str]) -> list[str]:
        return select(given, self._registry.committed)

    def _one(self, word: str) -> Service:
        """The service that a word means. Raises ApiError where it means several."""
        first, *others = self._names(word)
        if others:
            shown = [first, *others][:_NAMED_MAX]
            more = len(others) + 1 - len(shown)
            last = f"{more} more" if more else shown.pop()
            message = f"{word[:64]} is {', '.join(shown)} and {last}; name one"
            raise ApiError(ErrorCode.INVALID_PARAMS, f"service: {message}")
        return self._service(first)

    def _service(self, name: str) -> Service:
        return find(name, self._registry.committed)


def _refuse_strange_types(given: str | list[str] | None) -> None:
    types = [given] if isinstance(given, str) else given
    if types is not None and not 1 <= len(types) <= len(TYPES):
        raise ApiError(
            ErrorCode.INVALID_PARAMS, "type: name one type of events, or several, each once"
        )
    for strange in (each for each in types or () if each not in TYPES):
        message = f"type: there is no type '{strange[:64]}'{suggestion(strange, TYPES)}"
        raise ApiError(ErrorCode.INVALID_PARAMS, message)


def _events_page(params: EventsParams, page: list[EventRecord], seen: int) -> EventsPage:
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


async def _plain_pages(pages: AsyncGenerator[list[LogLine], None]) -> AsyncIterator[list[str]]:
    async with aclosing(pages):
        async for page in pages:
            yield [each.line for each in page]


def _selection(params: LogsParams) -> Selection:
    if params.follow and (params.until is not None or params.run is not None):
        raise ApiError(
            ErrorCode.INVALID_PARAMS,
            "follow: goes on from run to run without an end, so it goes without until and run",
        )
    since, until = _moment("since", params.since), _moment("until", params.until)
    return Selection(since and since.first_ns, until and until.last_ns, params.run)


def _moment(name: str, text: str | None) -> Moment | None:
    found = moment(text, time.time_ns()) if text is not None else None
    if text is not None and found is None:
        raise ApiError(
            ErrorCode.INVALID_PARAMS,
            f"{name}: '{text[:64]}' is not a time; write for example {EXAMPLES}",
        )
    return found


def _at(text: str, name: str = "at") -> At:
    """The moment, now at the latest, or event that a parameter names. Raises ApiError."""
    now_ns = time.time_ns()
    found = at(text, now_ns)
    if found is None:
        message = f"{name}: '{text[:64]}' is no time and no event; write for example {AT_EXAMPLES}"
        raise ApiError(ErrorCode.INVALID_PARAMS, message)
    return Moment(*(min(each, now_ns) for each in found)) if isinstance(found, Moment) else found


def _run_number(service: Service, run: int, code: ErrorCode = ErrorCode.INVALID_PARAMS) -> int:
    """A run by its number; 0 and below count back from the present one, or from the next while there is none."""
    is_under_way = service.pid is not None or service.state is State.STOPPING
    number = run if run > 0 else service.run + (not is_under_way) + run
    if 1 <= number <= service.run:
        return number
    ran = f"its latest is run {service.run}" if service.run else "it never ran"
    raise ApiError(code, f"run: service '{service.name}' has no run {run}; {ran}")


def _latest(times_ns: Iterable[int]) -> str | None:
    latest = max(times_ns, default=0)
    return rfc3339(latest) if latest else None


def _shown(
    service: Service, run: int | None, digest: str, definition: Definition
) -> dict[str, Any]:
    told = msgspec.to_builtins(definition)
    return {"name": service.name, "run": run, "digest": digest, "definition": told}
