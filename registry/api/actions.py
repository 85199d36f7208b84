"""Every action of the socket, each once: name, parameters, role, answer, errors.

Help, README, dispatch and client are made from this table; the functions that answer are in handlers.py.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import msgspec


class Role(StrEnum):
    """What a peer has to be to ask for an action. `admin` includes `operate`, which includes the others.

    `service` is a process of the service that it reports for. Who may observe reads logs, too, and
    with them whatever services write there: where that may be secrets, name only people who may know them.
    """

    SERVICE = "service"
    OBSERVE = "observe"
    OPERATE = "operate"
    ADMIN = "admin"


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
    OUT_OF_RANGE = "out_of_range"
    NO_RUN = "no_run"
    NOT_RUNNING = "service_not_running"
    NO_RELOAD = "no_reload"
    REQUEST_FAILED = "request_failed"
    NO_CHECKS = "no_checks"
    INVALID_CONFIG = "invalid_config"
    TIMED_OUT = "timed_out"
    PARTIAL_FAILURE = "partial_failure"
    SHUTTING_DOWN = "shutting_down"
    JOURNAL_UNAVAILABLE = "journal_unavailable"
    JOURNAL_UNREADABLE = "journal_unreadable"
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


Seconds = Annotated[float, msgspec.Meta(ge=0)]


class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The parameters of an action; the order of the fields is that of positional JSON-RPC parameters."""


class NoParams(Params, frozen=True):
    """No parameters."""


class ListParams(Params, frozen=True):
    """One or more services, as of every command; all when absent. `at` is when: a time, as in `logs`, or "seq:57",
    which is after event 57.
    """

    service: str | list[str] | None = None
    at: str | None = None


class StatusParams(Params, frozen=True):
    """One service. `at` as in `list_services`."""

    service: str
    at: str | None = None


class WhyParams(Params, frozen=True):
    """One service, or "seq:57" for event 57. `at` as in `list_services`: why was it so then."""

    service: str
    at: str | None = None


class CommandParams(Params, frozen=True):
    """One or more services: names, globs ("web@*"), "tag:TAG", or "all". A name declared with instances is all of them.

    `wait` until each is settled, `timeout` seconds at most.
    """

    service: str | list[str]
    wait: bool = False
    timeout: Seconds = 60.0


class StopParams(CommandParams, frozen=True):
    """As of every command. `with_dependents` stops first whatever depends on them, directly or not."""

    with_dependents: bool = False


class SelectionParams(Params, frozen=True):
    """One or more services, as of every command."""

    service: str | list[str]


class SignalParams(Params, frozen=True):
    """One or more services, and the name of a signal: "HUP" or "SIGHUP"."""

    service: str | list[str]
    signal: str


class ReloadParams(Params, frozen=True):
    """One or more services. `wait` until it is carried out, `timeout` seconds at most."""

    service: str | list[str]
    wait: bool = True
    timeout: Seconds = 60.0


class ApplyParams(Params, frozen=True):
    """`wait` until what was changed is settled, `timeout` seconds at most."""

    wait: bool = False
    timeout: Seconds = 60.0


class ShowParams(Params, frozen=True):
    """One service, as it is declared, or as its run of this number was (0 is the present one, -1 the one before)."""

    service: str
    run: int | None = None


class HealthParams(Params, frozen=True):
    """One or more services; all when absent."""

    service: str | list[str] | None = None


class LogsParams(Params, frozen=True):
    """The last `lines` lines of output of one or more services ("all" means all); with `follow` what comes after, too.

    `since` and `until` are times, such as "2026-01-02T03:04:05Z", "03:14" or "5m ago"; `run` is the number of a run,
    0 the present one, -1 the one before it: of these all lines that there are, or the last `lines`. With
    `stamps`, and of several services, a line is an object. Where no index tells, lines come that may have been
    written then, or by that run: their `run` is null.
    """

    service: str | list[str]
    lines: int | None = None
    follow: bool = False
    since: str | None = None
    until: str | None = None
    run: int | None = None
    stamps: bool = False


class EventsParams(Params, frozen=True):
    """Events with a sequence number above `since`, oldest first, of what `service` means (as in `start`) and of
    one `type` or several, where named.

    Without `follow` at most `limit`; a negative `since` counts back from the end, 0 is from the first event there
    is. With `follow` a stream of pages without an end. With `seen` a page is an object that also says up to which
    event all were looked at: from there who reads on misses nothing.
    """

    since: int = 0
    service: str | list[str] | None = None
    type: str | list[str] | None = None
    limit: int = 1000
    follow: bool = False
    seen: bool = False


class HistoryParams(Params, frozen=True):
    """One or more services, as of every command, also such as were removed. The latest `limit` runs of each some part
    of which lies between the times `since` and `until` (as in `logs`).
    """

    service: str | list[str]
    since: str | None = None
    until: str | None = None
    limit: int = 20


class DiffParams(Params, frozen=True):
    """From one moment to another, as `at` in `list_services`; of one or more services, or, when absent, of all."""

    since: str
    until: str
    service: str | list[str] | None = None


class ReportParams(Params, frozen=True):
    """One or more services, all when absent, between the times `since` and `until` (the journal's beginning, and now).

    With `boot` how the latest start of the registry went, or the latest before `at`; `service` is one whose critical
    chain is told.
    """

    service: str | list[str] | None = None
    since: str | None = None
    until: str | None = None
    boot: bool = False
    at: str | None = None


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


class QueryParams(Params, frozen=True):
    """One select, and how many rows are answered at most; `is_cut` says whether there are more.

    `cut_by` is "limit", "rows" or "size": `limit`, or the most rows or bytes of any answer.
    """

    sql: str
    limit: int = 1000


class ExportParams(Params, frozen=True):
    """A file that does not exist yet: a path, relative to the journal's folder; `until` a time, else all of it."""

    path: str
    until: str | None = None


class CompactParams(Params, frozen=True):
    """`keep` is how long events are to stay, such as "30d", or "60" for seconds, else as `[journal] keep` says;
    `archive` as for export.
    """

    keep: str | None = None
    archive: str | None = None


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

_PAST_ERRORS = (
    ErrorCode.UNKNOWN_SERVICE,
    ErrorCode.TIMED_OUT,
    ErrorCode.OUT_OF_RANGE,
    ErrorCode.JOURNAL_UNREADABLE,
)

_REQUEST_ANSWER = '[{"name","seq","status"}] once durable; with wait once carried out'
_REQUEST_ERRORS = (*_COMMAND_ERRORS, ErrorCode.NOT_RUNNING, ErrorCode.REQUEST_FAILED)

ACTIONS: dict[str, Action] = {
    action.name: action
    for action in (
        Action(
            "list_services",
            ListParams,
            Role.OBSERVE,
            "Every service, in the order of the file, or those named; with `at` as they were then.",
            '[service record]; with at {"moment":{"seq","at","asked","supervised"},"services":[service record]}',
            _PAST_ERRORS,
        ),
        Action(
            "status",
            StatusParams,
            Role.OBSERVE,
            "One service in detail; with `at` as it was then.",
            "service record with definition, checks, last_exit, last_words, events; with at also moment",
            _PAST_ERRORS,
        ),
        Action(
            "graph",
            ListParams,
            Role.OBSERVE,
            "Who depends on whom, of all services, or of those named and what they need; with `at` as it was then.",
            '{"moment","services":[{"name","status","reason","wanted","needs":[{"service","condition","restart","met"}]}]}',
            _PAST_ERRORS,
        ),
        Action(
            "why",
            WhyParams,
            Role.OBSERVE,
            "Why a service is as it is, or was, or why an event happened: the chain of causes.",
            '{"subject","service","status","since","because":[{"seq","at","service","type","sentence"}],'
            '"chain","meanwhile","said","next":{"sentence","at"}}',
            _PAST_ERRORS,
        ),
        Action(
            "start",
            CommandParams,
            Role.OPERATE,
            "Want services up.",
            _COMMAND_ANSWER,
            _COMMAND_ERRORS,
        ),
        Action(
            "stop",
            StopParams,
            Role.OPERATE,
            "Want services down. Whatever still runs and depends on one is named in `dependents`.",
            _COMMAND_ANSWER,
            _COMMAND_ERRORS,
        ),
        Action(
            "restart",
            CommandParams,
            Role.OPERATE,
            "Stop services where they run, and start them.",
            _COMMAND_ANSWER,
            _COMMAND_ERRORS,
        ),
        Action(
            "reset",
            CommandParams,
            Role.OPERATE,
            "Forget past failures: counters to zero; a Failed service is Stopped.",
            _COMMAND_ANSWER,
            _COMMAND_ERRORS,
        ),
        Action(
            "signal",
            SignalParams,
            Role.OPERATE,
            "Send a signal to the main processes of services.",
            _REQUEST_ANSWER,
            _REQUEST_ERRORS,
        ),
        Action(
            "reload",
            ReloadParams,
            Role.OPERATE,
            "Have services re-read their own files, as their `reload` says.",
            _REQUEST_ANSWER,
            (*_REQUEST_ERRORS, ErrorCode.NO_RELOAD),
        ),
        Action(
            "check",
            SelectionParams,
            Role.OPERATE,
            "Carry out every check of services once, now. It is told, and counts for nothing.",
            '[{"name","checks":[{"name","target","ok","error","latency_ms"}]}]',
            (ErrorCode.UNKNOWN_SERVICE, ErrorCode.NO_CHECKS),
        ),
        Action(
            "show",
            ShowParams,
            Role.OBSERVE,
            "The whole definition of a service, or that of one of its runs. Of `env` it holds the names.",
            '{"name","run","digest","definition"}',
            (ErrorCode.UNKNOWN_SERVICE, ErrorCode.NO_RUN),
        ),
        Action(
            "plan",
            NoParams,
            Role.OBSERVE,
            "What `apply` would change, and which services it would start anew.",
            '{"changes":[{"service","change","keys","restart_keys","restarts"}],"settings","later","warnings"}',
            (ErrorCode.INVALID_CONFIG,),
        ),
        Action(
            "apply",
            ApplyParams,
            Role.ADMIN,
            "Take up the configuration files as they are now: all of it, or, where anything is wrong, nothing.",
            "the plan that was carried out, once durable; with wait also services, the final service records",
            (
                ErrorCode.INVALID_CONFIG,
                ErrorCode.TIMED_OUT,
                ErrorCode.SHUTTING_DOWN,
                ErrorCode.JOURNAL_UNAVAILABLE,
                ErrorCode.OUTCOME_UNKNOWN,
            ),
        ),
        Action(
            "health",
            HealthParams,
            Role.OBSERVE,
            "What the checks say.",
            '[{"name","health","since","checks":[{"name","target","health","last_at","latency_ms","error"}]}]',
            (ErrorCode.UNKNOWN_SERVICE,),
        ),
        Action(
            "logs",
            LogsParams,
            Role.OBSERVE,
            "The last lines of output, or those of a time or a run.",
            '[line]; with stamps, and of several services, [{"service","at","run","line"}]; '
            "with follow a stream of such pages",
            (ErrorCode.UNKNOWN_SERVICE, ErrorCode.NO_LOGS),
        ),
        Action(
            "events",
            EventsParams,
            Role.OBSERVE,
            "The journal from a sequence number.",
            '[event], with seen {"seen","events"}; with follow a stream of such pages that misses nothing',
            (ErrorCode.UNKNOWN_SERVICE, ErrorCode.OUT_OF_RANGE),
        ),
        Action(
            "history",
            HistoryParams,
            Role.OBSERVE,
            "The runs of services: when each began and ended, how, and what was behind that.",
            '[{"service","runs":[{"run","started","ready_s","ended","ran_s","exit_code","signal","reason","changed",'
            '"started_by","ended_by",...}],"is_cut"}]',
            (*_PAST_ERRORS, ErrorCode.INVALID_PARAMS),
        ),
        Action(
            "diff",
            DiffParams,
            Role.OBSERVE,
            "What changed between two moments, and who asked for it.",
            '{"since","until","events","services":[{"service","change","before","after","keys"}],"acts":[event],"is_cut"}',
            (*_PAST_ERRORS, ErrorCode.INVALID_PARAMS),
        ),
        Action(
            "report",
            ReportParams,
            Role.OBSERVE,
            "How available services were; with `boot` what took how long when the registry started.",
            '{"period","services":[{"service","availability","states_s","outages","mtbf_s","mttr_s","restarts",...}]}; '
            'with boot {"seq","at","seconds","services","chain",...}',
            (*_PAST_ERRORS, ErrorCode.INVALID_PARAMS),
        ),
        Action(
            "query",
            QueryParams,
            Role.OBSERVE,
            "One select in SQL, of the journal's tables and views, read only.",
            '{"columns":[name],"rows":[[value]],"is_cut","cut_by"}',
            (ErrorCode.INVALID_PARAMS, ErrorCode.TIMED_OUT, ErrorCode.JOURNAL_UNREADABLE),
        ),
        Action(
            "journal_info",
            NoParams,
            Role.OBSERVE,
            "How the journal is: its file, its first and last event, what it begins with.",
            '{"path","schema","size","used","wal","events","first","last","anchor","snapshots","keep_s",'
            '"max_size","degraded_since","trouble"}',
            (ErrorCode.JOURNAL_UNREADABLE,),
        ),
        Action(
            "journal_export",
            ExportParams,
            Role.ADMIN,
            "Copy the journal, or its events up to a time, into one file that replay reads.",
            '{"path","first","last","hash","size"}',
            (ErrorCode.REQUEST_FAILED, ErrorCode.FORBIDDEN, ErrorCode.OUT_OF_RANGE),
        ),
        Action(
            "journal_compact",
            CompactParams,
            Role.ADMIN,
            "Remove the oldest events from the journal, having copied them where `archive` says so.",
            '{"removed","first","archive"}, once that is durable',
            (
                ErrorCode.REQUEST_FAILED,
                ErrorCode.FORBIDDEN,
                ErrorCode.JOURNAL_UNAVAILABLE,
                ErrorCode.OUTCOME_UNKNOWN,
            ),
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
            Role.OBSERVE,
            "Which registry this is.",
            '{"version","pid","journal","started_at"}; with all also python, platform, sqlite, capabilities',
        ),
        Action(
            "shutdown",
            ShutdownParams,
            Role.ADMIN,
            "Stop every service (or keep them running), close the journal, end.",
            "null, before the end begins",
            (ErrorCode.SHUTTING_DOWN,),
        ),
        Action(
            "upgrade",
            NoParams,
            Role.ADMIN,
            "Run the installed code and the present configuration in the same process; no service notices.",
            "null, before it begins",
            (ErrorCode.SHUTTING_DOWN, ErrorCode.NOT_READY),
        ),
    )
}
