"""What ought to be under way for a service: derived from its whole state, whenever asked.

So recovery needs no code of its own: fold the journal, look at every service, act.
"""

from __future__ import annotations

import msgspec

from registry.core.inputs import Observation, RestartTimerDue, StartTimerDue, StopTimerDue
from registry.core.lifecycle import Reason, State
from registry.core.service import Request, Service, start_due_ns, stop_due_ns


class StopDuty(msgspec.Struct, frozen=True):
    """The run's group ought to go: `signal_name` now, SIGKILL at `kill_due_ns` (CLOCK_BOOTTIME)."""

    signal_name: str
    kill_due_ns: int


class Timer(msgspec.Struct, frozen=True):
    """`due` is to arrive as an input at `due_ns` (CLOCK_BOOTTIME)."""

    due_ns: int
    due: Observation


class Duties(msgspec.Struct, frozen=True):
    """What ought to be under way: a new run to spawn, a run behind an open gate, a stop, checks, a timer, and
    signals and reloads that somebody asked for.
    """

    spawn: int | None = None
    gate: int | None = None
    stop: StopDuty | None = None
    checks: bool = False
    timer: Timer | None = None
    requests: tuple[Request, ...] = ()


_NOTHING = Duties()


def duties(service: Service) -> Duties:
    """The duties that a service's state implies."""
    match service.state:
        case State.STARTING if service.pid is None:
            return Duties(spawn=service.run + 1)
        case State.STARTING | State.RUNNING:
            return _up(service)
        case State.STOPPING:
            return Duties(stop=_stop(service))
        case State.RESTARTING:
            assert service.restart_due_ns is not None
            return Duties(timer=Timer(service.restart_due_ns, RestartTimerDue(run=service.run)))
        case State.STOPPED | State.FAILED:
            return _NOTHING


def rests(service: Service) -> bool:
    """Whether nothing of it runs or is to: then what is kept for its runs can go."""
    is_down = service.state in (State.STOPPED, State.FAILED)
    return is_down and service.reason is not Reason.WAITING


def _up(service: Service) -> Duties:
    is_ending = service.ending_ns is not None
    return Duties(
        gate=service.run,
        checks=not is_ending,
        timer=_timer(service),
        requests=service.requests if service.state is State.RUNNING else (),
    )


def _timer(service: Service) -> Timer | None:
    if service.ending_ns is not None:
        return Timer(stop_due_ns(service, service.ending_ns), StopTimerDue(run=service.run))
    if service.state is State.STARTING:
        return Timer(start_due_ns(service), StartTimerDue(run=service.run))
    return None


def _stop(service: Service) -> StopDuty:
    signal = service.stop_signal or service.definition.stop.signal
    return StopDuty(signal, stop_due_ns(service, service.moved_ns))
