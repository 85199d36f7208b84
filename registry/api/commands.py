"""What answers the commands: each goes to the one writer, and is answered once it is durable."""

from __future__ import annotations

import asyncio
import functools
import pwd
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from registry.api.access import Peer
from registry.api.actions import (
    ApiError,
    CommandParams,
    ErrorCode,
    ReloadParams,
    SignalParams,
    StopParams,
)
from registry.api.names import find, select
from registry.api.protocol import Handler
from registry.config.complaints import suggestion
from registry.core import inputs as inp
from registry.core.dependencies import is_settled
from registry.core.events import Actor, RequestDone
from registry.core.lifecycle import Reason, State
from registry.core.service import UP, Service
from registry.questions.records import ServiceRecord, service_record
from registry.registry import Accepted, NotCommitted, Registry, ShuttingDown, Unavailable

SIGNAL_WAIT_S = 10.0


class Commands:
    """The commands of one registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def table(self) -> dict[str, Handler]:
        """The function that answers each command, by its name."""
        return {
            "start": self._command(lambda actor: inp.Start(actor=actor)),
            "stop": self._stop,
            "restart": self._command(lambda actor: inp.Restart(actor=actor)),
            "reset": self._command(lambda actor: inp.Reset(actor=actor)),
            "signal": self._signal,
            "reload": self._reload,
        }

    # --- start, stop, restart, reset --------------------------------------------------------------

    def _command(self, make: Callable[[Actor], inp.Command]) -> Handler:
        async def handle(params: CommandParams, peer: Peer) -> Any:
            accepted = await self._ask_all(self._names(params.service), make(actor_of(peer)))
            return await self._answer(accepted, params)

        return handle

    async def _stop(self, params: StopParams, peer: Peer) -> Any:
        names = self._names(params.service)
        if params.with_dependents:
            names = self._with_dependents(names)
        accepted = await self._ask_all(names, inp.Stop(actor=actor_of(peer)))
        running = {name: self._dependents(name, set(names)) for name in names}
        answer = msgspec.to_builtins(await self._answer(accepted, params))
        return [{**item, "dependents": running[item["name"]]} for item in answer]

    def _with_dependents(self, names: list[str]) -> list[str]:
        """And whoever depends on them and is wanted up, each before what it depends on."""
        services = self._registry.committed.services

        def is_meant(name: str) -> bool:
            service = services.get(name)
            return service is not None and service.wanted and service.reason is not Reason.COMPLETED

        order = self._registry.graph.stop_order(names)
        return [name for name in order if name in names or is_meant(name)]

    def _dependents(self, name: str, stopped: set[str]) -> list[str]:
        """Those that run on, and depend on one that is stopped. Who follows it is stopped with it."""
        services = self._registry.committed.services
        dependents = self._registry.graph.needing(name, services)
        known = [services[each] for each in dependents if each in services]
        return [
            service.name
            for service in known
            if service.state in UP and service.wanted and service.name not in stopped
            if not any(d.service == name and d.restart for d in service.definition.depends_on)
        ]

    async def _answer(self, accepted: list[Accepted], params: CommandParams) -> Any:
        return await self._settled(accepted, params.timeout) if params.wait else _items(accepted)

    async def _settled(self, accepted: list[Accepted], timeout_s: float) -> list[ServiceRecord]:
        services = self._registry.committed.services

        def present() -> list[Service]:
            return [services[each.service] for each in accepted if each.service in services]

        def records() -> list[ServiceRecord]:
            return [service_record(service, services) for service in present()]

        try:
            async with asyncio.timeout(timeout_s):
                await self._registry.until(
                    lambda: all(is_settled(service, services) for service in present())
                )
        except TimeoutError:
            raise ApiError(
                ErrorCode.TIMED_OUT, f"not settled within {timeout_s:g} s", records()
            ) from None
        return records()

    # --- signal, reload ---------------------------------------------------------------------------

    async def _signal(self, params: SignalParams, peer: Peer) -> Any:
        name = _signal_name(params.signal)
        given = inp.Signal(actor=actor_of(peer), signal=name)
        names = self._names(params.service)
        outcomes = await self._ask_each(names, given, _takes_requests)
        return await self._carried_out(names, outcomes, SIGNAL_WAIT_S)

    async def _reload(self, params: ReloadParams, peer: Peer) -> Any:
        given = inp.Reload(actor=actor_of(peer))
        names = self._names(params.service)
        outcomes = await self._ask_each(names, given, _takes_reload)
        if params.wait:
            return await self._carried_out(names, outcomes, params.timeout)
        return _items(_all_accepted(names, outcomes))

    async def _carried_out(
        self, names: list[str], outcomes: list[Accepted | ApiError], timeout_s: float
    ) -> Any:
        """Wait until what was accepted is carried out; of several, what became of each is told."""
        services = self._registry.committed.services
        accepted = [outcome for outcome in outcomes if isinstance(outcome, Accepted)]

        def is_under_way(each: Accepted) -> bool:
            service = services.get(each.service)
            return service is not None and any(r.seq == each.seq for r in service.requests)

        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._registry.until(lambda: not any(map(is_under_way, accepted)))

        def ended(each: Accepted) -> Accepted | ApiError:
            prefix = "" if len(names) > 1 else f"{each.service}: "
            if is_under_way(each):
                why = f"{prefix}not carried out within {timeout_s:g} s"
                return ApiError(ErrorCode.TIMED_OUT, why)
            error = self._error(each)
            return ApiError(ErrorCode.REQUEST_FAILED, f"{prefix}{error}") if error else each

        return _items(
            _all_accepted(names, [o if isinstance(o, ApiError) else ended(o) for o in outcomes])
        )

    def _error(self, each: Accepted) -> str | None:
        """What went wrong with a request that is under way no more."""
        for record in self._registry.recent_since(each.seq) or ():
            if isinstance(record.event, RequestDone) and record.event.request == each.seq:
                return record.event.error
        return "its run ended before"

    # --- asking -----------------------------------------------------------------------------------

    def _names(self, given: str | list[str]) -> list[str]:
        return select(given, self._registry.committed)

    async def _ask_all(self, names: Sequence[str], given: inp.Command) -> list[Accepted]:
        return _all_accepted(names, await self._ask_each(names, given))

    async def _ask_each(
        self,
        names: Sequence[str],
        given: inp.Command,
        refusal: Callable[[Service], ApiError | None] = lambda _service: None,
    ) -> list[Accepted | ApiError]:
        # asked in the order in which they start: what one needs is under way before it is asked
        order = reversed(self._registry.graph.stop_order(reversed(names)))
        asked = {
            name: asyncio.ensure_future(self._ask(name, given, refusal))
            for name in (names if isinstance(given, inp.Stop) else [n for n in order if n in names])
        }
        return list(await asyncio.gather(*(asked[name] for name in names)))

    async def _ask(
        self, name: str, given: inp.Command, refusal: Callable[[Service], ApiError | None]
    ) -> Accepted | ApiError:
        try:
            refused = refusal(find(name, self._registry.committed))
            return refused or await committed(self._registry.command([(name, given)]))
        except ApiError as error:
            return error


async def committed(asked: Any) -> Accepted:
    """Wait until a command is durable; what stands in its way, as an ApiError."""
    try:
        accepted: Accepted = await asked
    except ShuttingDown as error:
        raise ApiError(ErrorCode.SHUTTING_DOWN, str(error)) from None
    except Unavailable as error:
        message = f"no command can be made durable at the moment: {error}"
        raise ApiError(ErrorCode.JOURNAL_UNAVAILABLE, message) from None
    except NotCommitted as error:
        raise ApiError(ErrorCode.OUTCOME_UNKNOWN, str(error)) from None
    return accepted


def actor_of(peer: Peer) -> Actor:
    """Who asked, for the journal."""
    return Actor(peer.uid, peer.pid, peer.program, _user(peer.uid))


@functools.lru_cache(maxsize=256)
def _user(uid: int) -> str | None:
    """Asked for once: a user database may be slow, and is another one where the journal is read later."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def _takes_requests(service: Service) -> ApiError | None:
    if service.state is State.RUNNING and service.pid is not None:
        return None
    return ApiError(
        ErrorCode.NOT_RUNNING, f"service '{service.name}' is {service.state}, not Running"
    )


def _takes_reload(service: Service) -> ApiError | None:
    if service.definition.reload is None:
        return ApiError(
            ErrorCode.NO_RELOAD,
            f"service '{service.name}' does not say how it reloads; "
            'add for example reload = "SIGHUP", or restart it',
        )
    return _takes_requests(service)


def _signal_name(given: str) -> str:
    """A signal by its name, with or without SIG, or its number."""
    names = {each.name: each for each in signal.Signals}
    word = given.strip().upper()
    numbers = {str(each.value): each.name for each in signal.Signals}
    if word in numbers:
        return numbers[word]
    name = word if word.startswith("SIG") else f"SIG{word}"
    if name not in names:
        hint = suggestion(name, names, "; write for example HUP", prefix="SIG")
        message = f"signal: there is no signal '{given[:64]}'{hint}"
        raise ApiError(ErrorCode.INVALID_PARAMS, message)
    return name


def _item(accepted: Accepted) -> dict[str, Any]:
    return {
        "name": accepted.service,
        "seq": accepted.seq,
        "status": accepted.status.value,
        "already": accepted.already,
    }


def _items(accepted: list[Accepted]) -> list[dict[str, Any]]:
    return [_item(each) for each in accepted]


def _all_accepted(names: Sequence[str], outcomes: list[Accepted | ApiError]) -> list[Accepted]:
    """What was accepted, where all of it was. One service asked for is its error; of several, each is told."""
    failed = [
        name for name, each in zip(names, outcomes, strict=True) if isinstance(each, ApiError)
    ]
    if not failed:
        return [each for each in outcomes if isinstance(each, Accepted)]
    if len(outcomes) == 1 and isinstance(outcomes[0], ApiError):
        raise outcomes[0]
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
    message = f"not for every service: it failed for {', '.join(failed)}"
    raise ApiError(ErrorCode.PARTIAL_FAILURE, message, told)
