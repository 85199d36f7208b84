"""What answers each action: commands go to the registry, questions to the committed projection."""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
)
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec

import registry as package
from registry.api.access import Peer
from registry.api.actions import (
    ApiError,
    ApplyParams,
    ErrorCode,
    HealthParams,
    HeartbeatParams,
    ListParams,
    LogsParams,
    NoParams,
    SelectionParams,
    ShowParams,
    ShutdownParams,
    StatusParams,
    VersionParams,
)
from registry.api.commands import Commands, actor_of
from registry.api.events import Events, EventSource
from registry.api.growth import Growth, LogLine, Source, last_lines
from registry.api.growth import read as read_logs
from registry.api.listing import Listing
from registry.api.names import ALL, find, select
from registry.api.past import Past, PastQuestions, moment_or_event, period_of
from registry.api.protocol import Handler
from registry.core.definition import Check, Definition
from registry.core.dependencies import is_settled
from registry.core.events import Actor, Defined, Record, Redefined, Spawned
from registry.core.lifecycle import State
from registry.core.service import Service
from registry.host import cgroup
from registry.host.capabilities import FALLBACKS, Capabilities
from registry.host.health import Attempt
from registry.journal import SQLITE_VERSION
from registry.logs.read import Selection
from registry.logs.target import LogTarget
from registry.past.asked import GraphThen, ListThen, StatusThen
from registry.questions.graph import graph
from registry.questions.plan import Plan
from registry.questions.records import (
    EVENTS_LOOKED_AT,
    ServiceRecord,
    check_health,
    health,
    rfc3339,
    service_detail,
    service_record,
)
from registry.registry import Registry

LINES, LINES_MAX = 50, 100_000
_NAMED_MAX = 8
_encode = msgspec.json.Encoder().encode


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
        self._past = PastQuestions(past)
        self._administration = administration
        self._listing = Listing(registry)
        self._events = Events(registry, journal)

    def table(self) -> dict[str, Handler]:
        """The function that answers each action, by the action's name."""
        return {
            "list_services": self._list_services,
            "status": self._status,
            "graph": self._graph,
            **Commands(self._registry).table(),
            **self._past.table(),
            "show": self._show,
            "plan": self._plan,
            "apply": self._apply,
            "check": self._check_now,
            "health": self._health,
            "logs": self._logs,
            "events": self._events.answer,
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
            return self._past.ask("list", ListThen(moment_or_event(params.at), params.service))
        if params.service is not None:
            return [self._record(self._service(name)) for name in self._names(params.service)]
        return self._listing.answer()

    async def _status(self, params: StatusParams, _peer: Peer) -> dict[str, Any] | msgspec.Raw:
        if params.at is not None:
            return await self._past.ask(
                "status", StatusThen(moment_or_event(params.at), params.service)
            )
        service = self._service(params.service)
        checks, machine = self._checks(service), self._describe(service)
        events = await self._journal.read(since=-EVENTS_LOOKED_AT, service=service.name)
        services = self._registry.committed.services
        return service_detail(service, services, events, checks=checks, machine=machine)

    async def _graph(self, params: ListParams, _peer: Peer) -> dict[str, Any] | msgspec.Raw:
        if params.at is not None:
            return await self._past.ask(
                "graph", GraphThen(moment_or_event(params.at), params.service)
            )
        chosen = None
        if params.service is not None:
            chosen = [self._service(name).name for name in self._names(params.service)]
        return {"moment": None, "services": graph(chosen, self._registry.committed)}

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
        if asked < 0:
            message = f"lines: {asked} is no number of lines; write 0 or more"
            raise ApiError(ErrorCode.INVALID_PARAMS, message)
        lines = min(asked, LINES_MAX)
        if params.follow:
            pages = self._growth.follow(sources, lines)
            return _plain_pages(pages) if is_plain else pages
        if is_plain and selection == Selection():
            return await asyncio.to_thread(last_lines, sources[0].path, lines)
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
                    "what": what + (cgroup.in_words() if name == "cgroup" else ""),
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
            told = trouble.splitlines()
            more = f" (and {len(told) - 1} more)" if len(told) > 1 else ""
            raise ApiError(ErrorCode.NOT_READY, f"cannot upgrade: {told[0]}{more}", told)

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
    since, until = period_of(params.since, params.until)
    return Selection(since and since.first_ns, until and until.last_ns, params.run)


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
