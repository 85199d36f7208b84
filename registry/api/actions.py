"""Every action of the socket, each once: name, parameters, role, answer, errors.

Help, README, dispatch and client are made from this table; the functions that answer are in handlers.py.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec


class Role(StrEnum):
    """What a peer has to be to ask for an action: the service it reports for, or the registry's own user."""

    SERVICE = "service"
    OWNER = "owner"


class ErrorCode(StrEnum):
    """Every error that an answer may carry."""

    PARSE_ERROR = "parse_error"
    INVALID_REQUEST = "invalid_request"
    UNKNOWN_ACTION = "unknown_action"
    INVALID_PARAMS = "invalid_params"
    TOO_LONG = "too_long"
    FORBIDDEN = "forbidden"
    UNKNOWN_SERVICE = "unknown_service"
    UNKNOWN_CHECK = "unknown_check"
    NO_LOGS = "no_logs"
    TIMED_OUT = "timed_out"
    PARTIAL_FAILURE = "partial_failure"
    SHUTTING_DOWN = "shutting_down"
    JOURNAL_UNAVAILABLE = "journal_unavailable"
    OUTCOME_UNKNOWN = "outcome_unknown"
    NOT_READY = "not_ready"
    INTERNAL_ERROR = "internal_error"


class ApiError(Exception):
    """An answer of the kind `ok: false`: one code, one sentence, details where there are some."""

    def __init__(self, code: ErrorCode, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The parameters of an action; the order of the fields is that of positional JSON-RPC parameters."""


class NoParams(Params, frozen=True):
    """No parameters."""


class ServiceParams(Params, frozen=True):
    """One service."""

    service: str


class CommandParams(Params, frozen=True):
    """One or more services; "all" means all. `wait` until each is settled, `timeout` seconds at most."""

    service: str | list[str]
    wait: bool = False
    timeout: float = 60.0


class HealthParams(Params, frozen=True):
    """One or more services; all when absent."""

    service: str | list[str] | None = None


class LogsParams(Params, frozen=True):
    """The last `lines` lines of output of one or more services ("all" means all); with `follow` what comes after, too.

    `since` and `until` are times, such as "2026-01-02T03:04:05Z", "03:14" or "5m ago"; `run` is the number of a run,
    0 the present one, -1 the one before it: of these all lines that there are, or the last `lines`. With
    `stamps`, and of several services, a line is an object.
    """

    service: str | list[str]
    lines: int | None = None
    follow: bool = False
    since: str | None = None
    until: str | None = None
    run: int | None = None
    stamps: bool = False


class EventsParams(Params, frozen=True):
    """Events with a sequence number above `since`, oldest first, of one service or type where named.

    Without `follow` at most `limit`; a negative `since` counts back from the end. With `follow` a stream
    of pages without an end.
    """

    since: int = 0
    service: str | None = None
    type: str | None = None
    limit: int = 1000
    follow: bool = False


class HeartbeatParams(Params, frozen=True):
    """A sign of life of `service`, for its `heartbeat:` check (all of them, or the one called `check`)."""

    service: str
    check: str | None = None


class ShutdownParams(Params, frozen=True):
    """`keep_services` leaves them running, for the next registry on this journal."""

    keep_services: bool = False


class VersionParams(Params, frozen=True):
    """`all` adds Python, platform and the table of capabilities."""

    all: bool = False


class Action(msgspec.Struct, frozen=True):
    """One action: what it is called, what it takes, who may ask it, what it answers."""

    name: str
    params: type[Params]
    role: Role
    summary: str
    answer: str
    errors: tuple[ErrorCode, ...] = ()


_COMMAND_ANSWER = '[{"name","seq","status"}] once durable; with wait the final service records'
_COMMAND_ERRORS = (
    ErrorCode.UNKNOWN_SERVICE,
    ErrorCode.PARTIAL_FAILURE,
    ErrorCode.TIMED_OUT,
    ErrorCode.SHUTTING_DOWN,
    ErrorCode.JOURNAL_UNAVAILABLE,
    ErrorCode.OUTCOME_UNKNOWN,
)

ACTIONS: dict[str, Action] = {
    action.name: action
    for action in (
        Action(
            "list_services",
            NoParams,
            Role.OWNER,
            "Every service, in the order of the file.",
            "[service record]",
        ),
        Action(
            "status",
            ServiceParams,
            Role.OWNER,
            "One service in detail.",
            "service record with definition, checks, last_exit, last_words, events",
            (ErrorCode.UNKNOWN_SERVICE,),
        ),
        Action(
            "start",
            CommandParams,
            Role.OWNER,
            "Want services up.",
            _COMMAND_ANSWER,
            _COMMAND_ERRORS,
        ),
        Action(
            "stop",
            CommandParams,
            Role.OWNER,
            "Want services down.",
            _COMMAND_ANSWER,
            _COMMAND_ERRORS,
        ),
        Action(
            "restart",
            CommandParams,
            Role.OWNER,
            "Stop services where they run, and start them.",
            _COMMAND_ANSWER,
            _COMMAND_ERRORS,
        ),
        Action(
            "reset",
            CommandParams,
            Role.OWNER,
            "Forget past failures: counters to zero; a Failed service is Stopped.",
            _COMMAND_ANSWER,
            _COMMAND_ERRORS,
        ),
        Action(
            "health",
            HealthParams,
            Role.OWNER,
            "What the checks say.",
            '[{"name","health","since","checks":[{"name","target","health","last_at","latency_ms","error"}]}]',
            (ErrorCode.UNKNOWN_SERVICE,),
        ),
        Action(
            "logs",
            LogsParams,
            Role.OWNER,
            "The last lines of output, or those of a time or a run.",
            '[line]; with stamps, and of several services, [{"service","at","run","line"}]; '
            "with follow a stream of such pages",
            (ErrorCode.UNKNOWN_SERVICE, ErrorCode.NO_LOGS),
        ),
        Action(
            "events",
            EventsParams,
            Role.OWNER,
            "The journal from a sequence number.",
            "[event]; with follow a stream of such pages that misses nothing",
            (ErrorCode.UNKNOWN_SERVICE,),
        ),
        Action(
            "heartbeat",
            HeartbeatParams,
            Role.SERVICE,
            "A sign of life, for a heartbeat: check.",
            "null",
            (ErrorCode.UNKNOWN_SERVICE, ErrorCode.UNKNOWN_CHECK, ErrorCode.FORBIDDEN),
        ),
        Action(
            "version",
            VersionParams,
            Role.OWNER,
            "Which registry this is.",
            '{"version","pid","journal","started_at"}; with all also python, platform, sqlite, capabilities',
        ),
        Action(
            "shutdown",
            ShutdownParams,
            Role.OWNER,
            "Stop every service (or keep them running), close the journal, end.",
            "null, before the end begins",
            (ErrorCode.SHUTTING_DOWN,),
        ),
        Action(
            "upgrade",
            NoParams,
            Role.OWNER,
            "Run the installed code and the present configuration in the same process; no service notices.",
            "null, before it begins",
            (ErrorCode.SHUTTING_DOWN, ErrorCode.NOT_READY),
        ),
    )
}
