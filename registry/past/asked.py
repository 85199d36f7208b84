"""What can be asked about the past, and how it is said to the process that answers: for whoever asks.

What answers it is for that process alone: none of that need be in the memory of a running registry.
"""

from __future__ import annotations

import msgspec

from registry.core.events import Now
from registry.journal.query import ROWS
from registry.questions.moments import At, Moment

Names = str | list[str] | None
"""The services that are meant; none for all."""


class ListThen(msgspec.Struct, frozen=True):
    """The services that `service` means, all where it is null, as they were."""

    at: At
    service: str | list[str] | None = None


class StatusThen(msgspec.Struct, frozen=True):
    """One service in detail, as it was."""

    at: At
    service: str


class GraphThen(ListThen, frozen=True):
    """Who depended on whom: of the services that `service` means, all where it is null."""


class WhyThen(msgspec.Struct, frozen=True):
    """Why `service` was as it was, or why event number `seq` happened. `at` null is now."""

    at: At | None = None
    service: str | None = None
    seq: int | None = None


class HistoryOf(msgspec.Struct, frozen=True):
    """The runs of services some part of which lies between two times, the latest `limit` of each."""

    service: str | list[str]
    since: Moment | None = None
    until: Moment | None = None
    limit: int | None = None


class DiffOf(msgspec.Struct, frozen=True):
    """What changed between two moments."""

    since: At
    until: At
    service: Names = None


class ReportOf(msgspec.Struct, frozen=True):
    """How available services were between two times; `now` is given where the journal's registry runs."""

    service: Names = None
    since: Moment | None = None
    until: Moment | None = None
    now: Now | None = None


class BootOf(msgspec.Struct, frozen=True):
    """How the latest start of the registry up to a moment went; the critical chain is that of one service."""

    at: At | None = None
    service: Names = None


class Query(msgspec.Struct, frozen=True):
    """One select, of the tables and views of the journal; at most `limit` rows."""

    sql: str
    limit: int = ROWS


class Asked(msgspec.Struct, frozen=True):
    """The line that comes in: a question of the table, and its parameters."""

    question: str
    params: msgspec.Raw


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """The first line that goes out; the answer follows where there is no `code`."""

    code: str | None = None
    message: str | None = None
