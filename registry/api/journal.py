"""What is asked of the journal as a file: how it is, a copy of it, that its oldest events be removed."""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from registry.api.access import Peer
from registry.api.actions import (
    ApiError,
    CompactParams,
    ErrorCode,
    ExportParams,
    NoParams,
)
from registry.api.protocol import Handler
from registry.config.values import Wrong, duration
from registry.journal import JournalError
from registry.journal.compaction import Description
from registry.journal.errors import Compacted
from registry.journal.export import Exported, export
from registry.questions.moments import EXAMPLES, moment
from registry.questions.records import rfc3339
from registry.registry import NotCommitted, Registry, Unavailable

_SECONDS = re.compile(r"\d{1,18}(?:\.\d{1,18})?", re.ASCII)
"""A duration without its unit, as a command line has it: in the configuration that is a number."""


class Retention(Protocol):
    """What is needed of what removes events."""

    busy: asyncio.Lock
    keep_s: float | None
    max_size: int | None

    async def compact(self, horizon: int) -> int:
        """Remove the events up to that number; how many. `busy` is to be held."""

    async def older_than(self, keep_s: float) -> int:
        """The number of the last event that is older than so many seconds."""

    async def last_at(self, at_ns: int) -> int:
        """The number of the last event that is not later than that (UTC). Raises Compacted."""

    async def describe(self) -> Description:
        """How the file is."""


class JournalHandlers:
    """The answers of one registry about its journal, the file at `path`."""

    def __init__(self, registry: Registry, retention: Retention, path: Path) -> None:
        self._registry = registry
        self._retention = retention
        self._path = path

    def table(self) -> Mapping[str, Handler]:
        """The function that answers each action, by the action's name."""
        return {
            "journal_info": self._info,
            "journal_export": self._export,
            "journal_compact": self._compact,
        }

    async def _info(self, _params: NoParams, _peer: Peer) -> dict[str, Any]:
        try:
            found = await self._retention.describe()
        except JournalError as error:
            raise ApiError(ErrorCode.JOURNAL_UNREADABLE, str(error)) from None
        degraded_ns = self._registry.degraded_since_ns
        return {
            "path": str(self._path),
            "schema": found.schema,
            "size": found.size.file,
            "used": found.size.used,
            "wal": _size_of(self._path.with_name(f"{self._path.name}-wal")),
            "events": found.last - found.first + 1,
            "first": {"seq": found.first, "at": rfc3339(found.first_ns)},
            "last": {"seq": found.last, "at": rfc3339(found.last_ns), "hash": found.hash},
            "anchor": _anchor(found),
            "snapshots": found.snapshots,
            "keep_s": self._retention.keep_s,
            "max_size": self._retention.max_size,
            "degraded_since": rfc3339(degraded_ns) if degraded_ns is not None else None,
            "trouble": self._registry.trouble if degraded_ns is not None else None,
        }

    async def _export(self, params: ExportParams, peer: Peer) -> dict[str, Any]:
        async with self._retention.busy:
            until = None
            if params.until is not None:
                until = await _told(self._retention.last_at(_moment_ns(params.until)))
            return _exported(*await self._copy(params.path, until, peer))

    async def _compact(self, params: CompactParams, peer: Peer) -> dict[str, Any]:
        keep_s = self._keep_s(params.keep)
        async with self._retention.busy:
            horizon = await _told(self._retention.older_than(keep_s))
            first, archive = (await _told(self._retention.describe())).first, None
            if params.archive is not None and horizon >= first:
                archive = _exported(*await self._copy(params.archive, horizon, peer))
            removed = await _told(self._retention.compact(horizon))
            found = await _told(self._retention.describe())
        return {"removed": removed, "first": found.first, "archive": archive}

    def _keep_s(self, text: str | None) -> float:
        if text is None:
            if self._retention.keep_s is None:
                message = "keep: say how long events are to stay, such as '30d'; [journal] keep says nothing"
                raise ApiError(ErrorCode.INVALID_PARAMS, message)
            return self._retention.keep_s
        try:
            return duration(float(text) if _SECONDS.fullmatch(text) else text)
        except Wrong as wrong:
            raise ApiError(ErrorCode.INVALID_PARAMS, f"keep: {wrong}") from None

    async def _copy(self, name: str, until: int | None, peer: Peer) -> tuple[Path, Exported]:
        target, stopped = self._target(name, peer), threading.Event()
        try:
            found = await asyncio.to_thread(
                export, self._path, target, until, lambda: not stopped.is_set()
            )
        except Compacted as error:
            raise ApiError(ErrorCode.OUT_OF_RANGE, str(error)) from None
        except JournalError as error:
            raise ApiError(ErrorCode.REQUEST_FAILED, str(error)) from None
        finally:
            stopped.set()  # where nobody waits any more
        return target, found

    def _target(self, name: str, peer: Peer) -> Path:
        """Where a copy goes: it is this registry's user who writes it, so nobody else may say in which folder."""
        folder = self._path.parent
        if not name or "\0" in name or name.endswith("/"):
            raise ApiError(ErrorCode.INVALID_PARAMS, "path: name a file that does not exist yet")
        target = folder / name
        if peer.uid not in (0, os.getuid()) and target.parent != folder:
            message = (
                f"path: only the registry's own user and root choose a folder;"
                f" give a name alone, and it is written to {folder}"
            )
            raise ApiError(ErrorCode.FORBIDDEN, message)
        return target


def _moment_ns(text: str) -> int:
    found = moment(text, time.time_ns())
    if found is None:
        message = f"until: '{text[:64]}' is not a time; write for example {EXAMPLES}"
        raise ApiError(ErrorCode.INVALID_PARAMS, message)
    return found.last_ns


async def _told(asked: Any) -> Any:
    """Wait for what the journal is asked; what stands in its way, as an ApiError."""
    try:
        return await asked
    except Compacted as error:
        raise ApiError(ErrorCode.OUT_OF_RANGE, str(error)) from None
    except JournalError as error:
        raise ApiError(ErrorCode.REQUEST_FAILED, str(error)) from None
    except Unavailable as error:
        message = f"nothing can be removed from the journal at the moment: {error}"
        raise ApiError(ErrorCode.JOURNAL_UNAVAILABLE, message) from None
    except NotCommitted as error:
        raise ApiError(ErrorCode.OUTCOME_UNKNOWN, str(error)) from None


def _exported(target: Path, found: Exported) -> dict[str, Any]:
    return {"path": str(target), **found._asdict()}


def _anchor(found: Description) -> dict[str, Any] | None:
    begin = found.anchor
    if begin is None:
        return None
    return {
        "seq": begin.seq,
        "at": rfc3339(begin.at_ns),
        "hash": begin.hash,
        "kept": len(begin.kept),
    }


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
