"""What the writer is handed: a clock, and the machine that does what it decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from registry.core import events as ev
from registry.core import inputs as inp
from registry.core.definition import Definition
from registry.core.duties import StopDuty
from registry.core.service import Request, Service


class TimerHandle(Protocol):
    """A timer that can be called off."""

    def cancel(self) -> None:
        """It will not fire any more."""


class Clock(Protocol):
    """What the registry needs of the clock."""

    def now(self) -> ev.Now:
        """Both clocks at once."""

    def call_at(self, due_ns: int, callback: Callable[[], None]) -> TimerHandle:
        """Call once CLOCK_BOOTTIME has reached `due_ns`."""


class Host(Protocol):
    """What the registry needs of the machine. Every call may be repeated without harm."""

    async def spawn(self, definition: Definition, run: int, digest: str) -> inp.Observation:
        """Put a process behind its gate: SpawnSucceeded or SpawnRefused. One at a time."""

    def ahead(self, runs: Sequence[tuple[Definition, int]]) -> AbstractAsyncContextManager[None]:
        """Within the block these runs are probably asked for: processes may be made for them, several at once. Those
        that nobody has asked for by its end are undone.
        """

    def open_gate(self, service: str, run: int) -> bool:
        """Let it through; True when that happened now."""

    def stop(self, service: str, run: int, duty: StopDuty) -> None:
        """Ask its group to end."""

    def release(self, service: str, up_to_run: int | None) -> None:
        """The ends of its runs up to this one are committed; None is all of them."""

    def rest(self, service: str) -> None:
        """Nothing of it runs, or is to."""

    def watch(self, service: Service) -> None:
        """Begin its checks, or go on by what is now declared."""

    def became_ready(self, service: str) -> None:
        """Its checks go on at their intervals."""

    def unwatch(self, service: str, run: int) -> None:
        """End its checks."""

    def redefine(self, service: Service) -> None:
        """A run takes up what its new definition changes in place."""

    def carry_out(self, service: Service, request: Request) -> None:
        """Send a signal or have it reload; RequestCarriedOut follows. Once a request is enough."""
