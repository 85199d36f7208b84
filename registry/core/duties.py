"""What ought to be under way for a service: derived from its whole state, whenever asked.

So recovery needs no code of its own: fold the journal, look at every service, act.
"""

from __future__ import annotations

import msgspec

from registry.core.inputs import Observation, RestartTimerDue, StartTimerDue
from registry.core.lifecycle import State
from registry.core.restarts import NS
from registry.core.service import HAS_RUN, Service, start_due_ns


class StopDuty(msgspec.Struct, frozen=True):
    """The run's group ought to go: `signal_name` now, SIGKILL at `kill_due_ns` (CLOCK_BOOTTIME)."""

    signal_name: str
    kill_due_ns: int


class Timer(msgspec.Struct, frozen=True):
    """`due` is to arrive as an input at `due_ns` (CLOCK_BOOTTIME)."""

    due_ns: int
    due: Observation


class Duties(msgspec.Struct, frozen=True):
    """What ought to be under way: a new run to spawn, a run behind an open gate, a stop, checks, a timer."""

    spawn: int | None = None
    gate: int | None = None
    stop: StopDuty | None = None
    checks: bool = False
    timer: Timer | None = None


_NOTHING = Duties()


def duties(service: Service) -> Duties:
    """The duties that a service's state implies."""
    match service.state:
        case State.STARTING if service.pid is None:
            return Duties(spawn=service.run + 1)
        case State.STARTING:
            return Duties(gate=service.run, checks=True, timer=_start_timer(service))
        case State.RUNNING:
            return Duties(gate=service.run, checks=True)
        case State.STOPPING:
            return Duties(stop=_stop(service))
        case State.RESTARTING:
            assert service.restart_due_ns is not None
            return Duties(timer=Timer(service.restart_due_ns, RestartTimerDue(run=service.run)))
        case State.STOPPED | State.FAILED:
            return _NOTHING


def _start_timer(service: Service) -> Timer:
    return Timer(start_due_ns(service), StartTimerDue(run=service.run))


def _stop(service: Service) -> StopDuty:
    stop = service.definition.stop
    return StopDuty(stop.signal, service.moved_ns + int(stop.timeout_s * NS))


def is_settled(service: Service) -> bool:
    """True when nothing of a service is under way, or it runs as asked."""
    if service.state is State.RUNNING:
        return service.wanted
    return service.state not in HAS_RUN and service.state is not State.RESTARTING
