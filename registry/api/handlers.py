"""What answers each action: commands go to the registry, questions to the committed projection."""

from __future__ import annotations

import asyncio
import difflib
import os
import platform
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec

import registry as package
from registry.api.access import Peer
from registry.api.actions import (
    ApiError,
    CommandParams,
    ErrorCode,
    EventsParams,
    HealthParams,
    HeartbeatParams,
    LogsParams,
    NoParams,
    ServiceParams,
    ShutdownParams,
    VersionParams,
)
from registry.api.growth import Growth, LogLine, Source
from registry.api.growth import read as read_logs
from registry.api.protocol import Handler
from registry.core import inputs as inp
from registry.core.duties import is_settled
from registry.core.events import Actor, OutputEnded, Record
from registry.core.lifecycle import State
from registry.core.service import Service
from registry.host.capabilities import FALLBACKS, Capabilities
from registry.journal import SQLITE_VERSION
from registry.logs.read import Selection, tail
from registry.logs.target import LogTarget
from registry.questions.moments import EXAMPLES, Moment, moment
from registry.questions.records import (
    EventRecord,
    ServiceRecord,
    check_health,
    event_record,
    health,
    last_exit,
    rfc3339,
    service_record,
)
from registry.registry import Accepted, NotCommitted, Registry, ShuttingDown, Unavailable

ALL = "all"
EVENTS_IN_STATUS = 10
EVENTS_LOOKED_AT = 200
"""A service's latest events, among which its last words are looked for."""
PAGE = 1000
LINES, LINES_MAX = 50, 100_000
_encode = msgspec.json.Encoder().encode


class EventSource(Protocol):
    """What the handlers need of the journal."""

    async def read(
        self,
        *,
        since: int = 0,
        service: str | None = None,
        type: str | None = None,
        limit: int = PAGE,
    ) -> list[Record]:
        """Records above `since`; the last of them where it is negative."""


class Ending(Protocol):
    """How the registry's end is begun."""

    def shut_down(self, *, keep_services: bool) -> None:
        """End, having stopped the services or not."""

    async def upgrade(self) -> str | None:
        """Become the installed code; or why that cannot be, in one sentence."""


class Handlers:
    """The answers of one registry. `beat` hands on a heartbeat, `end` begins the end."""

    def __init__(
        self,
        registry: Registry,
        journal: EventSource,
        growth: Growth,
        capabilities: Capabilities,
        *,
        journal_path: Path,
        beat: Callable[[str, str | None], bool],
        end: Ending,
    ) -> None:
        self._registry = registry
        self._journal = journal
        self._growth = growth
        self._capabilities = capabilities
        self._journal_path = journal_path
        self._beat = beat
        self._end = end
        self._list: tuple[int, msgspec.Raw] = (-1, msgspec.Raw(b"[]"))

    def table(self) -> dict[str, Handler]:
        """The function that answers each action, by the action's name."""
        return {
            "list_services": self._list_services,
            "status": self._status,
            "start": self._command(lambda actor: inp.Start(actor=actor)),
            "stop": self._command(lambda actor: inp.Stop(actor=actor)),
            "restart": self._command(lambda actor: inp.Restart(actor=actor)),
            "reset": self._command(lambda actor: inp.Reset(actor=actor)),
            "health": self._health,
            "logs": self._logs,
            "events": self._events,
            "heartbeat": self._heartbeat,
            "version": self._version,
            "shutdown": self._shutdown,
            "upgrade": self._upgrade,
        }

    # --- questions --------------------------------------------------------------------------------

    def _list_services(self, _params: NoParams, _peer: Peer) -> msgspec.Raw:
        projection = self._registry.committed
        if self._list[0] != projection.seq:
            records = [service_record(service) for service in projection.in_order()]
            self._list = (projection.seq, msgspec.Raw(_encode(records)))
        return self._list[1]

    async def _status(self, params: ServiceParams, _peer: Peer) -> dict[str, Any]:
        service = self._service(params.service)
        answer = {
            **msgspec.to_builtins(service_record(service)),
            "attempt": service.attempt,
            "message": service.message,
            "definition": msgspec.to_builtins(service.definition),
            "checks": self._checks(service),
            "last_exit": last_exit(service.last_exit),
        }
        events = await self._journal.read(since=-EVENTS_LOOKED_AT, service=service.name)
        shown = [event_record(record) for record in events[-EVENTS_IN_STATUS:]]
        return {**answer, "last_words": _last_words(events), "events": shown}

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
    ) -> list[EventRecord] | AsyncIterator[list[EventRecord]]:
        name = params.service
        undeclared = name is not None and name not in self._registry.committed.services
        if undeclared and not await self._journal.read(service=name, limit=1):
            raise self._unknown(str(name))
        if params.follow:
            return self._follow(params)
        limit = min(max(params.limit, 0), PAGE)
        records = await self._journal.read(
            since=params.since, service=params.service, type=params.type, limit=limit
        )
        return [event_record(record) for record in records]

    async def _follow(self, params: EventsParams) -> AsyncIterator[list[EventRecord]]:
        """Pages without an end; the first one at once, even when it is empty."""
        seq, page = params.since, []
        if seq < 0:
            seq = self._registry.committed.seq
            newest = await self._journal.read(
                since=params.since, service=params.service, type=params.type
            )
            page = [event_record(record) for record in newest if record.seq <= seq]
        else:
            seq, page = await self._page_after(seq, params)
        yield page
        while True:
            if seq >= self._registry.committed.seq:
                await self._registry.next_commit()
            seq, page = await self._page_after(seq, params)
            if page:
                yield page

    async def _page_after(self, seq: int, params: EventsParams) -> tuple[int, list[EventRecord]]:
        records = self._registry.recent_since(seq)
        if records is None:
            records = await self._journal.read(since=seq)
        page = [
            event_record(record)
            for record in records[:PAGE]
            if params.service in (None, record.service) and params.type in (None, record.type)
        ]
        return (records[:PAGE][-1].seq if records else seq), page

    async def _logs(
        self, params: LogsParams, _peer: Peer
    ) -> list[str] | list[LogLine] | AsyncIterator[list[str] | list[LogLine]]:
        selection = _selection(params)
        services = [self._service(name) for name in self._names(params.service)]
        if params.service == ALL:
            services = [service for service in services if service.definition.logs is not None]
        sources = [self._source(service, selection) for service in services]
        is_plain = isinstance(params.service, str) and params.service != ALL and not params.stamps
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

    # --- commands ---------------------------------------------------------------------------------

    def _command(self, make: Callable[[Actor], inp.Command]) -> Handler:
        async def handle(params: CommandParams, peer: Peer) -> Any:
            actor = Actor(peer.uid, peer.pid, peer.program)
            names = self._names(params.service)
            asked = [self._ask(name, make(actor)) for name in names]
            outcomes = await asyncio.gather(*asked)
            if any(isinstance(outcome, ApiError) for outcome in outcomes):
                raise _partial(names, outcomes)
            accepted = [outcome for outcome in outcomes if isinstance(outcome, Accepted)]
            return (
                await self._settled(accepted, params.timeout) if params.wait else _items(accepted)
            )

        return handle

    async def _ask(self, name: str, command: inp.Command) -> Accepted | ApiError:
        try:
            self._service(name)
            return await self._registry.command(name, command)
        except ApiError as error:
            return error
        except ShuttingDown as error:
            return ApiError(ErrorCode.SHUTTING_DOWN, str(error))
        except Unavailable as error:
            return ApiError(
                ErrorCode.JOURNAL_UNAVAILABLE,
                f"no command can be made durable at the moment: {error}",
            )
        except NotCommitted as error:
            return ApiError(ErrorCode.OUTCOME_UNKNOWN, str(error))

    async def _settled(self, accepted: list[Accepted], timeout_s: float) -> list[ServiceRecord]:
        def records() -> list[ServiceRecord]:
            services = self._registry.committed.services
            return [
                service_record(services[each.service])
                for each in accepted
                if each.service in services
            ]

        def all_settled() -> bool:
            services = self._registry.committed.services
            return all(
                is_settled(services[each.service]) for each in accepted if each.service in services
            )

        try:
            async with asyncio.timeout(timeout_s):
                await self._registry.until(all_settled)
        except TimeoutError:
            raise ApiError(
                ErrorCode.TIMED_OUT, f"not settled within {timeout_s:g} s", records()
            ) from None
        return records()

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
        begin = partial(self._end.shut_down, keep_services=params.keep_services)
        asyncio.get_running_loop().call_soon(begin)

    async def _upgrade(self, _params: NoParams, _peer: Peer) -> None:
        self._refuse_when_closing()
        trouble = await self._end.upgrade()
        if trouble is not None:
            raise ApiError(ErrorCode.NOT_READY, f"cannot upgrade: {trouble}")

    def _refuse_when_closing(self) -> None:
        if self._registry.closing:
            raise ApiError(ErrorCode.SHUTTING_DOWN, "the registry is shutting down already")

    # --- names ------------------------------------------------------------------------------------

    def _names(self, given: str | list[str]) -> list[str]:
        if given == ALL:
            return [service.name for service in self._registry.committed.in_order()]
        names = [given] if isinstance(given, str) else list(dict.fromkeys(given))
        if not names:
            raise ApiError(
                ErrorCode.INVALID_PARAMS, 'service: no name is given; "all" means every service'
            )
        return names

    def _service(self, name: str) -> Service:
        service = self._registry.committed.services.get(name)
        if service is None:
            raise self._unknown(name)
        return service

    def _unknown(self, name: str) -> ApiError:
        known = [service.name for service in self._registry.committed.in_order()]
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"there are {_shortened(known)}"
        return ApiError(ErrorCode.UNKNOWN_SERVICE, f"there is no service '{name[:64]}', {hint}")


async def _plain_pages(pages: AsyncGenerator[list[LogLine], None]) -> AsyncIterator[list[str]]:
    async with aclosing(pages):
        async for page in pages:
            yield [each.line for each in page]


def _last_words(events: list[Record]) -> dict[str, Any] | None:
    """What the latest run that ended ill said at its end."""
    for record in reversed(events):
        if isinstance(record.event, OutputEnded):
            told = msgspec.structs.asdict(record.event)
            return {"run": record.run, "at": rfc3339(record.at_ns), **told}
    return None


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


def _run_number(service: Service, run: int) -> int:
    """A run by its number; 0 and below count back from the present one, or from the next while there is none."""
    is_under_way = service.pid is not None or service.state is State.STOPPING
    number = run if run > 0 else service.run + (not is_under_way) + run
    if 1 <= number <= service.run:
        return number
    ran = f"its latest is run {service.run}" if service.run else "it never ran"
    raise ApiError(
        ErrorCode.INVALID_PARAMS, f"run: service '{service.name}' has no run {run}; {ran}"
    )


def _shortened(names: list[str], most: int = 8) -> str:
    if not names:
        return "none at all"
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _latest(times_ns: Iterable[int]) -> str | None:
    latest = max(times_ns, default=0)
    return rfc3339(latest) if latest else None


def _item(accepted: Accepted) -> dict[str, Any]:
    return {
        "name": accepted.service,
        "seq": accepted.seq,
        "status": accepted.status.value,
        "already": accepted.already,
    }


def _items(accepted: list[Accepted]) -> list[dict[str, Any]]:
    return [_item(each) for each in accepted]


def _partial(names: list[str], outcomes: list[Accepted | ApiError]) -> ApiError:
    """One service asked for and refused is that error; of several, each is told."""
    if len(outcomes) == 1 and isinstance(outcomes[0], ApiError):
        return outcomes[0]
    told = [
        {"name": name, "ok": True, "error": None, **_item(outcome)}
        if isinstance(outcome, Accepted)
        else {
            "name": name,
            "ok": False,
            "seq": None,
            "status": None,
            "error": {"code": outcome.code.value, "message": outcome.message},
        }
        for name, outcome in zip(names, outcomes, strict=True)
    ]
    refused = ", ".join(
        name for name, outcome in zip(names, outcomes, strict=True) if isinstance(outcome, ApiError)
    )
    return ApiError(ErrorCode.PARTIAL_FAILURE, f"not for every service: {refused} refused", told)
