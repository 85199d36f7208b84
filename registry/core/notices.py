"""What a run says about itself (sd_notify): that it is ready or stops, who leads it, how much time it needs."""

from __future__ import annotations

from registry.core import events as ev
from registry.core import inputs as inp
from registry.core import restarts
from registry.core.definition import Ready
from registry.core.lifecycle import Reason, State
from registry.core.place import Decision
from registry.core.service import Service, stop_due_ns


def take(decision: Decision, given: inp.Observation) -> None:
    """What a process of the run said about itself, or that its time is over."""
    service = decision.service
    match given:
        case inp.NotifiedReady():
            if service.definition.readiness is Ready.NOTIFY:
                decision.move("became_ready", ev.BecameReady, Reason.READY, cause=service.cause)
        case inp.NotifiedStopping():
            if service.ending_ns is None:
                decision.move(
                    "stop_announced", ev.StopAnnounced, service.reason, cause=service.cause
                )
        case inp.NotifiedMain(pid=pid, start_time=start_time):
            if pid != service.pid:
                decision.add(
                    ev.MainChanged(pid=pid, start_time=start_time), cause=service.spawned_seq
                )
        case inp.NotifiedExtension(seconds=seconds):
            due_ns = decision.place.now.mono_ns + int(seconds * restarts.NS)
            due_ns += -due_ns % restarts.NS  # who asks many times a second is journaled once
            if _has_deadline(service) and due_ns > service.extended_ns:
                decision.add(ev.TimeoutExtended(due_ns=due_ns), cause=service.cause)
        case inp.NotifiedWatchdog(interval_s=interval_s):
            if interval_s != service.watchdog_s:
                decision.add(ev.WatchdogChanged(interval_s=interval_s), cause=service.spawned_seq)
        case inp.StopTimerDue():
            _stop_timer_due(decision)
        case _:
            raise TypeError(f"no rule for observation {type(given).__name__}")


def _has_deadline(service: Service) -> bool:
    return service.state is not State.RUNNING or service.ending_ns is not None


def _stop_timer_due(decision: Decision) -> None:
    service = decision.service
    if service.ending_ns is None:
        return
    if stop_due_ns(service, service.ending_ns) <= decision.place.now.mono_ns:
        decision.move(
            "stop_timed_out",
            ev.StopTimedOut,
            Reason.STOP_TIMEOUT,
            cause=service.cause,
            timeout_s=service.definition.stop.timeout_s,
        )
