"""What may arrive at a service: commands that somebody asks for, observations that the host made.

An observation is not yet a fact; one about another run than the present is stale and changes nothing.
"""

from __future__ import annotations

import msgspec

from registry.core.definition import Definition
from registry.core.events import Actor, Streak, Usage
from registry.core.lifecycle import Reason


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """Something asked for: by `actor`, or because of the event with the number `cause`."""

    actor: Actor | None = None
    cause: int | None = None


class Start(Command, frozen=True):
    """Want it up."""

    reason: Reason = Reason.REQUESTED


class Stop(Command, frozen=True):
    """Want it down."""

    reason: Reason = Reason.REQUESTED


class Restart(Command, frozen=True):
    """Want it up by a new run."""

    reason: Reason = Reason.RESTART_REQUESTED


class Reset(Command, frozen=True):
    """Forget its failures."""


class Signal(Command, frozen=True):
    """Send its main process a signal, by its name."""

    signal: str


class Reload(Command, frozen=True):
    """Have it re-read its own files."""


class Define(Command, frozen=True):
    """Declare it, for the first time or differently."""

    definition: Definition
    digest: str


class Renew(Command, frozen=True):
    """It is declared differently: start anew what cannot take that up in place, and what had failed."""


class Remove(Command, frozen=True):
    """Declare it no more: stop what runs, then forget it."""


class Reconsider(Command, frozen=True):
    """Look again at what its neighbours mean for it: something happened to one of them."""


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """Something seen about one run."""

    run: int


class SpawnSucceeded(Observation, frozen=True):
    """A process waits at the gate for run number `run`."""

    pid: int
    start_time: int | None
    digest: str


class SpawnRefused(Observation, frozen=True):
    """No process could be made for run number `run`."""

    reason: Reason
    message: str


class GateOpened(Observation, frozen=True):
    """The process was let through to its program."""


class StartTimerDue(Observation, frozen=True):
    """The start timeout is over."""


class StopTimerDue(Observation, frozen=True):
    """The time is over in which a run that announced its stop was to stop."""


class NotifiedReady(Observation, frozen=True):
    """A process of the run said that it is ready (sd_notify READY=1)."""


class NotifiedStopping(Observation, frozen=True):
    """It said that it stops by itself (STOPPING=1)."""


class NotifiedMain(Observation, frozen=True):
    """It said that another process is its main process (MAINPID), and that is verified."""

    pid: int
    start_time: int | None


class NotifiedExtension(Observation, frozen=True):
    """It asked for `seconds` more from now on (EXTEND_TIMEOUT_USEC)."""

    seconds: float


class NotifiedWatchdog(Observation, frozen=True):
    """It said how often its heartbeat is due (WATCHDOG_USEC)."""

    interval_s: float


class MemoryFound(Observation, frozen=True):
    """The processes of the run hold `bytes` together, at two looks in a row more than they may."""

    bytes: int


class RequestCarriedOut(Observation, frozen=True):
    """The signal or reload asked for by event number `request` was carried out, or failed with `error`."""

    request: int
    error: str | None = None


class RestartTimerDue(Observation, frozen=True):
    """The restart delay after this run is over."""


class Probed(Observation, frozen=True):
    """A check gave a result, the `count`-th equal one in a row; `ended` is the streak that it broke.

    A failure that is `final` counts as if the threshold were reached.
    """

    check: str
    ok: bool
    count: int
    error: str | None = None
    ended: Streak | None = None
    final: bool = False


class ProcessExited(Observation, frozen=True):
    """The main process is gone; `killed` processes of its group needed SIGKILL.

    `launch_failure` is set where it never executed its program.
    """

    exit_code: int | None = None
    signal: int | None = None
    group_empty: bool = True
    killed: int = 0
    never_ran: bool = False
    launch_failure: Reason | None = None
    message: str | None = None
    usage: Usage | None = None


class ProcessLost(Observation, frozen=True):
    """The main process is gone, and nobody knows how it ended."""

    group_empty: bool = True
    killed: int = 0


class OutputEnded(Observation, frozen=True):
    """The output of a run, the present or an earlier one, has ended: what is worth knowing of it.

    `cause` is the number of the event of its main process's end.
    """

    lines: tuple[str, ...]
    dropped: int
    cause: int | None


class GroupGone(Observation, frozen=True):
    """No process of the run is left; `killed` of them needed SIGKILL."""

    killed: int = 0


class ProcessFound(Observation, frozen=True):
    """After the supervisor's own death, the run was found alive and verified."""

    pid: int


class RunFound(Observation, frozen=True):
    """After the supervisor's own death, a run was found alive, by its mark, that the journal does not know."""

    pid: int
    start_time: int


Input = Command | Observation
