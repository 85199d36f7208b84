"""Records to write, and journals that are closed when a test ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from registry.core import events as ev
from registry.core.definition import Definition
from registry.core.lifecycle import Reason, State
from registry.journal import Journal

NS = 1_000_000_000
BEGAN_AT_NS = 1_767_225_600 * NS  # 2026-01-01T00:00:00Z

S = State


def _defined(service: str) -> ev.Defined:
    return ev.Defined(
        source=S.STOPPED,
        dest=S.STOPPED,
        reason=Reason.DEFINED,
        definition=Definition(name=service, cmd=("./web",)),
        digest="d",
    )


LIFE: list[tuple[int | None, ev.Event]] = [
    (None, _defined("web")),
    (None, ev.StartRequested(source=S.STOPPED, dest=S.STARTING, reason=Reason.REQUESTED)),
    (
        1,
        ev.Spawned(
            source=S.STARTING,
            dest=S.STARTING,
            reason=Reason.REQUESTED,
            pid=41,
            start_time=5,
            digest="d",
        ),
    ),
    (1, ev.BecameReady(source=S.STARTING, dest=S.RUNNING, reason=Reason.READY)),
    (1, ev.ProbeChanged(check="beat", ok=True)),
    (1, ev.Exited(source=S.RUNNING, dest=S.FAILED, reason=Reason.EXIT_CODE, exit_code=3)),
    (2, ev.StartRequested(source=S.FAILED, dest=S.STARTING, reason=Reason.REQUESTED)),
    (
        2,
        ev.Spawned(
            source=S.STARTING,
            dest=S.STARTING,
            reason=Reason.REQUESTED,
            pid=42,
            start_time=6,
            digest="d",
        ),
    ),
]
"""A short life of a service: a run that ended, and one that goes on. One event a second."""


def _beats(
    first: int, count: int, service: str = "web", decision: int | None = None
) -> list[ev.Record]:
    return [
        ev.Record(
            seq=seq,
            at_ns=BEGAN_AT_NS + seq * NS,
            mono_ns=seq * NS,
            decision=decision or first,
            service=service,
            run=1,
            cause=seq - 1 or None,
            actor=None,
            event=ev.ProbeChanged(check="beat", ok=bool(seq % 2)) if seq > 1 else _defined(service),
        )
        for seq in range(first, first + count)
    ]


@pytest.fixture
def beats() -> Callable[..., list[ev.Record]]:
    """`count` records from the sequence number `first` on, of one decision; number 1 defines the service."""
    return _beats


@pytest.fixture
def life() -> list[ev.Record]:
    """Records of a short life of a service, each a decision; the first two by an operator."""
    actor = ev.Actor(uid=1000, pid=77, program="circlectl")
    return [
        ev.Record(
            seq=seq,
            at_ns=BEGAN_AT_NS + seq * NS,
            mono_ns=seq * NS,
            decision=seq,
            service="web",
            run=run,
            cause=seq - 1 or None,
            actor=actor if seq <= 2 else None,
            event=event,
        )
        for seq, (run, event) in enumerate(LIFE, 1)
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a journal may be made."""
    return tmp_path / "var" / "registry.db"


@pytest.fixture
async def opened(path: Path) -> AsyncIterator[Callable[..., Awaitable[Journal]]]:
    """Opens the journal at `path`, or another; what a test leaves open is closed."""
    journals: list[Journal] = []

    async def open_(other: Path | None = None, **options: Any) -> Journal:
        journals.append(await Journal.open(other or path, **options))
        return journals[-1]

    yield open_
    for journal in journals:
        if journal._reader._running:
            await journal.close()
