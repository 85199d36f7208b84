"""What answers questions about the past: parameters checked here, answers read by a process beside this one."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import Protocol

import msgspec

from registry.api.access import Peer
from registry.api.actions import (
    ApiError,
    DiffParams,
    ErrorCode,
    HistoryParams,
    QueryParams,
    ReportParams,
    WhyParams,
)
from registry.api.names import api_error
from registry.api.protocol import Handler
from registry.host.clock import Clock
from registry.past.asked import BootOf, DiffOf, HistoryOf, Query, ReportOf, WhyThen
from registry.questions.moments import AT_EXAMPLES, EXAMPLES, SEQ, At, Moment, at, moment, swapped
from registry.questions.refusal import Refusal

RUNS_MAX = 100_000


class Past(Protocol):
    """What the handlers need to answer from the past."""

    async def ask(self, question: str, params: msgspec.Struct) -> msgspec.Raw:
        """The answer to a question of `past.answers`. Raises Refusal."""


class PastQuestions:
    """The questions that only the journal answers."""

    def __init__(self, past: Past) -> None:
        self._past = past

    def table(self) -> dict[str, Handler]:
        """The function that answers each action, by the action's name."""
        return {
            "why": self._why,
            "history": self._history,
            "diff": self._diff,
            "report": self._report,
            "query": self._query,
        }

    async def ask(self, question: str, params: msgspec.Struct) -> msgspec.Raw:
        """What the journal answers, read by a process beside this one. Raises ApiError."""
        try:
            return await self._past.ask(question, params)
        except Refusal as refusal:
            raise api_error(refusal) from None

    async def _why(self, params: WhyParams, _peer: Peer) -> msgspec.Raw:
        if not params.service.startswith(SEQ):
            moment = moment_or_event(params.at) if params.at is not None else None
            return await self.ask("why", WhyThen(moment, params.service))
        seq = at(params.service, 0)
        if params.at is not None or not isinstance(seq, int):
            message = "service: an event is named as in seq:57, and goes without at"
            raise ApiError(ErrorCode.INVALID_PARAMS, message)
        return await self.ask("why", WhyThen(seq=seq))

    def _history(self, params: HistoryParams, _peer: Peer) -> Awaitable[msgspec.Raw]:
        if not 1 <= params.limit <= RUNS_MAX:
            message = f"limit: {params.limit} is not between 1 and {RUNS_MAX}"
            raise ApiError(ErrorCode.INVALID_PARAMS, message)
        since, until = period_of(params.since, params.until)
        return self.ask("history", HistoryOf(params.service, since, until, params.limit))

    def _diff(self, params: DiffParams, _peer: Peer) -> Awaitable[msgspec.Raw]:
        since, until = (
            moment_or_event(params.since, "since"),
            moment_or_event(params.until, "until"),
        )
        return self.ask("diff", DiffOf(since, until, params.service))

    def _report(self, params: ReportParams, _peer: Peer) -> Awaitable[msgspec.Raw]:
        since, until = period_of(params.since, params.until)
        if params.boot and (since or until):
            message = "boot: it is one start; leave out since and until, or write at"
            raise ApiError(ErrorCode.INVALID_PARAMS, message)
        if params.at is not None and not params.boot:
            message = "at: it goes with boot; write since and until"
            raise ApiError(ErrorCode.INVALID_PARAMS, message)
        if params.boot:
            at_ = moment_or_event(params.at) if params.at is not None else None
            return self.ask("boot", BootOf(at_, params.service))
        return self.ask("report", ReportOf(params.service, since, until, Clock().now()))

    async def _query(self, params: QueryParams, _peer: Peer) -> msgspec.Raw:
        return await self.ask("query", Query(params.sql, params.limit))


def moment_of(name: str, text: str | None) -> Moment | None:
    """The moment that a parameter names, None where it is absent. Raises ApiError."""
    found = moment(text, time.time_ns()) if text is not None else None
    if text is not None and found is None:
        raise ApiError(
            ErrorCode.INVALID_PARAMS,
            f"{name}: '{text[:64]}' is not a time; write for example {EXAMPLES}",
        )
    return found


def period_of(since: str | None, until: str | None) -> tuple[Moment | None, Moment | None]:
    """The moments that two parameters name, of which the first is no later. Raises ApiError."""
    first, last = moment_of("since", since), moment_of("until", until)
    if sentence := swapped(first, last):
        raise ApiError(ErrorCode.INVALID_PARAMS, sentence)
    return first, last


def moment_or_event(text: str, name: str = "at") -> At:
    """The moment, now at the latest, or event that a parameter names. Raises ApiError."""
    now_ns = time.time_ns()
    found = at(text, now_ns)
    if found is None:
        message = f"{name}: '{text[:64]}' is no time and no event; write for example {AT_EXAMPLES}"
        raise ApiError(ErrorCode.INVALID_PARAMS, message)
    return Moment(*(min(each, now_ns) for each in found)) if isinstance(found, Moment) else found
