"""From what arrived to what has happened: `decide(service, input, place)`.

Every step is folded into the live service at once, so that the next one sees it. Nothing else moves one.
"""

from __future__ import annotations

from typing import Any, assert_never

import msgspec

from registry.core import events as ev
from registry.core import inputs as inp
from registry.core import notices, restarts
from registry.core.changes import keys_for_a_new_run
from registry.core.definition import OnFailure, Ready
from registry.core.lifecycle import FOR_A_PERSON, PASSING, Reason, State
from registry.core.place import Decision, Place
from registry.core.service import UP, CheckState, Service, end_reason, start_due_ns

__all__ = ["Place", "decide", "is_news"]

_DOWN = (State.STOPPED, State.FAILED, State.RESTARTING)


def decide(service: Service, given: inp.Input, place: Place) -> list[ev.Record]:
    """What follows from an input: records in order, none where it changes nothing. Moves `service`."""
    if isinstance(given, inp.Command):
        decision = Decision(service, place, given.actor)
        _command(decision, given)
    else:
        decision = Decision(service, place)
        if _concerns(service, given):
            _observed(decision, given)
    return decision.records


_OF_A_PROCESS = (
    inp.GateOpened
    | inp.StartTimerDue
    | inp.StopTimerDue
    | inp.Probed
    | inp.NotifiedReady
    | inp.NotifiedStopping
    | inp.NotifiedMain
    | inp.NotifiedExtension
    | inp.NotifiedWatchdog
    | inp.MemoryFound
    | inp.ProcessExited
    | inp.ProcessLost
    | inp.ProcessFound
)
_OF_A_SPAWN = inp.SpawnSucceeded | inp.SpawnRefused


def _concerns(service: Service, given: inp.Observation) -> bool:
    """An observation counts for the present run while it has its process; that of a spawn for the next."""
    if isinstance(given, _OF_A_SPAWN):
        return service.pid is None and given.run == service.run + 1
    if isinstance(given, inp.RunFound):
        return given.run > service.run
    if isinstance(given, inp.OutputEnded):
        return given.run <= service.run
    if isinstance(given, _OF_A_PROCESS) and service.pid is None:
        return False
    return given.run == service.run


def _command(decision: Decision, given: inp.Command) -> None:
    service = decision.service
    match given:
        case inp.Start(reason=reason):
            _want_up(decision, "start", ev.StartRequested, reason, given.cause)
        case inp.Stop(reason=reason):
            _stop(decision, reason, given.cause)
        case inp.Restart(reason=reason):
            _want_up(decision, "restart", ev.RestartRequested, reason, given.cause)
        case inp.Reset():
            reason = Reason.RESET if service.state is State.FAILED else service.reason
            decision.move("reset", ev.ResetRequested, reason, cause=given.cause)
        case inp.Define():
            _define(decision, given)
        case inp.Renew():
            _renew(decision, given.cause)
        case inp.Remove():
            if not decision.move("removed", ev.Removed, Reason.REMOVED, cause=given.cause):
                _stop(decision, Reason.REMOVED, given.cause)
        case inp.Signal(signal=signal) if service.pid is not None:
            decision.add(ev.SignalRequested(signal=signal), cause=given.cause)
        case inp.Reload() if service.pid is not None and service.definition.reload is not None:
            decision.add(ev.ReloadRequested(), cause=given.cause)
        case inp.Signal() | inp.Reload():
            return  # there is nobody to tell
        case inp.Reconsider():
            _reconsider(decision, given.cause)
        case _:
            raise TypeError(f"no rule for command {type(given).__name__}")


def _want_up(
    decision: Decision, trigger: str, kind: type[ev.Moved], reason: Reason, cause: int | None
) -> None:
    around = decision.place.around
    if around.waits and decision.service.state in _DOWN:
        reason = Reason.WAITING
    decision.move(trigger, kind, reason, given=around, cause=cause)


class _StopAsked(msgspec.Struct, frozen=True):
    """A stop for this reason; `held` while dependents are stopping."""

    reason: Reason
    held: bool


def _stop(decision: Decision, reason: Reason, cause: int | None) -> None:
    held = decision.place.around.held and decision.service.pid is not None
    if reason is Reason.REQUESTED and decision.service.reason is Reason.COMPLETED:
        reason = Reason.COMPLETED  # it is down because it has done what it was to do
    asked = _StopAsked(reason, held)
    decision.move("stop", ev.StopRequested, reason, given=asked, cause=cause)


def _reconsider(decision: Decision, cause: int | None) -> None:
    """What a service waited for may have come, or what it depends on be another than before."""
    service, around = decision.service, decision.place.around
    is_up = service.state in UP
    if service.reason is Reason.WAITING and service.wanted and not around.waits:
        reason = Reason.DEPENDENCIES_MET
        decision.move("dependencies_met", ev.DependenciesMet, reason, cause=cause)
    elif is_up and not service.wanted and not around.held:
        decision.move("dependents_gone", ev.DependentsGone, service.bound_reason, cause=cause)
    elif is_up and service.wanted and around.follows and service.pid is not None:
        _want_up(decision, "restart", ev.RestartRequested, Reason.DEPENDENCY, cause)


def _define(decision: Decision, given: inp.Define) -> None:
    service = decision.service
    fields: dict[str, Any] = {"definition": given.definition, "digest": given.digest}
    if not service.digest:
        decision.move("defined", ev.Defined, Reason.DEFINED, cause=given.cause, **fields)
    elif service.removing or (service.digest, service.definition) != (
        given.digest,
        given.definition,
    ):
        decision.move("redefined", ev.Redefined, service.reason, cause=given.cause, **fields)


def _renew(decision: Decision, cause: int | None) -> None:
    service = decision.service
    runs_by = service.run_definition
    is_stale = runs_by is not None and keys_for_a_new_run(runs_by, service.definition)
    if service.state in UP and service.wanted and is_stale:
        _want_up(decision, "restart", ev.RestartRequested, Reason.REDEFINED, cause)
    elif service.state is State.FAILED and service.wanted:
        _want_up(decision, "start", ev.StartRequested, Reason.REDEFINED, cause)
    else:
        if service.state is State.STARTING and runs_by is not None:
            _opened(decision)  # it may be ready by what it need not wait for any more
        _reconsider(decision, cause)  # it may wait for others than before


def _opened(decision: Decision) -> None:
    service = decision.service
    if service.definition.readiness is Ready.SPAWN:
        decision.move("became_ready", ev.BecameReady, Reason.READY, cause=service.cause)


def _observed(decision: Decision, given: inp.Observation) -> None:
    service = decision.service
    match given:
        case inp.SpawnSucceeded():
            decision.move(
                "spawned",
                ev.Spawned,
                service.reason,
                cause=service.cause,
                run=given.run,
                pid=given.pid,
                start_time=given.start_time,
                digest=given.digest,
            )
        case inp.SpawnRefused():
            if decision.move(
                "spawn_failed",
                ev.SpawnFailed,
                given.reason,
                cause=service.cause,
                run=0,  # a run that never began has no number
                message=given.message,
            ):
                _after_end(decision)
        case inp.GateOpened():
            _opened(decision)
        case inp.StartTimerDue():
            _start_timer_due(decision)
        case inp.RestartTimerDue():
            due_ns = service.restart_due_ns
            if due_ns is not None and due_ns <= decision.place.now.mono_ns:
                _restart_due(decision, Reason.POLICY, cause=service.cause)
        case inp.MemoryFound():
            _memory_found(decision, given)
        case inp.RequestCarriedOut():
            if any(request.seq == given.request for request in service.requests):
                done = ev.RequestDone(request=given.request, error=given.error)
                decision.add(done, cause=given.request)
        case inp.Probed():
            _probed(decision, given)
        case inp.ProcessExited() | inp.ProcessLost():
            _process_ended(decision, given)
        case inp.GroupGone():
            _group_gone(decision, given.killed)
        case inp.OutputEnded():
            ended = ev.OutputEnded(lines=given.lines, dropped=given.dropped)
            decision.add(ended, cause=given.cause, run=given.run)
        case inp.ProcessFound():
            decision.move("adopted", ev.Adopted, service.reason, given=given, pid=given.pid)
        case inp.RunFound():
            _run_found(decision, given)
        case _:
            notices.take(decision, given)


def _memory_found(decision: Decision, given: inp.MemoryFound) -> None:
    most = decision.service.definition.restart.memory_max
    if most is not None and given.bytes > most:
        decision.move(
            "memory_exceeded",
            ev.MemoryExceeded,
            Reason.MEMORY_MAX,
            cause=decision.service.cause,
            bytes=given.bytes,
            memory_max=most,
        )


def _restart_due(decision: Decision, reason: Reason, *, cause: int | None = None) -> None:
    around = decision.place.around
    reason = Reason.WAITING if around.waits else reason
    decision.move("restart_due", ev.RestartDue, reason, given=around, cause=cause)


def _run_found(decision: Decision, given: inp.RunFound) -> None:
    """The journal is behind: the run that it calls the present one has ended, how is unknown."""
    if decision.service.pid is not None:
        lost = inp.ProcessLost(run=decision.service.run)
        decision.move("lost", ev.Lost, Reason.LOST, given=lost)
    decision.move(
        "adopted",
        ev.Adopted,
        Reason.UNJOURNALED,
        given=given,
        run=given.run,
        pid=given.pid,
        start_time=given.start_time,
    )


def _start_timer_due(decision: Decision) -> None:
    service = decision.service
    if start_due_ns(service) <= decision.place.now.mono_ns:
        decision.move(
            "start_timed_out",
            ev.StartTimedOut,
            Reason.START_TIMEOUT,
            cause=service.cause,
            timeout_s=service.definition.start_timeout_s,
        )


def is_news(service: Service, given: inp.Probed) -> bool:
    """Whether anything could follow from a result; from one like those before it nothing does, mostly."""
    state = service.checks.get(given.check)
    is_known = state is not None and state.ok is given.ok is state.healthy
    return not is_known or service.state is not State.RUNNING


def _probed(decision: Decision, given: inp.Probed) -> None:
    service = decision.service
    check = service.definition.check(given.check)
    if check is None or service.state not in (State.STARTING, State.RUNNING):
        return
    if service.checks.get(check.name, CheckState()).ok is not given.ok:
        decision.add(
            ev.ProbeChanged(check=check.name, ok=given.ok, error=given.error, ended=given.ended)
        )
    state = service.checks[check.name]
    if given.ok:
        if state.healthy is not True and given.count >= check.successes:
            decision.add(ev.BecameHealthy(check=check.name, successes=given.count), cause=state.seq)
        if service.definition.readiness is Ready.HEALTH and all_succeed(service):
            decision.move("became_ready", ev.BecameReady, Reason.READY, cause=state.seq)
    elif state.healthy is not False and (given.final or given.count >= check.failures):
        decision.move(
            "became_unhealthy",
            ev.BecameUnhealthy,
            Reason.UNHEALTHY if check.on_failure is OnFailure.RESTART else service.reason,
            given=_Threshold(check.on_failure is OnFailure.RESTART),
            cause=state.seq,
            check=check.name,
            failures=given.count,
            error=given.error,
        )


class _Threshold(msgspec.Struct, frozen=True):
    """A check has failed often enough; `restarts` says whether that ends the run."""

    restarts: bool


def all_succeed(service: Service) -> bool:
    """True when the latest result of every declared check was a success."""
    return all(
        (state := service.checks.get(check.name)) is not None and state.ok
        for check in service.definition.checks
    )


def _process_ended(decision: Decision, given: inp.ProcessExited | inp.ProcessLost) -> None:
    service = decision.service
    stopping = service.state is State.STOPPING
    if not _journal_end(decision, given, cause=service.cause if stopping else None):
        return
    if service.state is not State.STOPPING:
        _after_end(decision)
    elif stopping and given.group_empty:
        _group_gone(decision, given.killed)


def _journal_end(
    decision: Decision, given: inp.ProcessExited | inp.ProcessLost, *, cause: int | None
) -> bool:
    reason = _end_reason(decision.service, given)
    match given:
        case inp.ProcessExited():
            return decision.move(
                "exited",
                ev.Exited,
                reason,
                given=given,
                cause=cause,
                exit_code=given.exit_code,
                signal=given.signal,
                group_empty=given.group_empty,
                never_ran=given.never_ran,
                message=given.message,
                usage=given.usage,
            )
        case inp.ProcessLost():
            return decision.move(
                "lost", ev.Lost, reason, given=given, cause=cause, group_empty=given.group_empty
            )
        case _:
            assert_never(given)


def _end_reason(service: Service, given: inp.ProcessExited | inp.ProcessLost) -> Reason:
    if service.state is State.STOPPING:
        return service.reason
    if not given.group_empty:
        return Reason.LEFTOVERS
    if isinstance(given, inp.ProcessLost):
        return Reason.LOST
    if given.never_ran:
        return Reason.NEVER_RAN
    if given.launch_failure is not None:
        return given.launch_failure
    return end_reason(given.exit_code, given.signal, clean=service.is_clean(given))


def _group_gone(decision: Decision, killed: int) -> None:
    service = decision.service
    if service.pid is not None:  # its main process has not been seen to end
        return
    around, reason = decision.place.around, service.bound_reason
    if service.bound is State.STARTING and around.waits:
        reason = Reason.WAITING
    if decision.move(
        "group_emptied",
        ev.GroupEmptied,
        reason,
        given=around,
        cause=service.cause,
        killed=killed,
    ):
        _after_end(decision)


def _after_end(decision: Decision) -> None:
    """A run is over, and its group: start again, give up, be removed, or rest."""
    service = decision.service
    if service.removing and service.state is not State.STARTING:
        decision.move("removed", ev.Removed, Reason.REMOVED)
    elif service.state is State.STARTING or not service.wanted or service.reason is Reason.WAITING:
        return
    elif service.reason is Reason.NEVER_RAN:
        _schedule(decision, service.attempt, 0.0)
    elif _may_restart(service):
        _restart(decision)


def _may_restart(service: Service) -> bool:
    if service.reason in FOR_A_PERSON:
        return False
    if service.reason in PASSING:  # nothing ran, so no policy has anything to say of it
        return True
    clean = service.state is State.STOPPED
    if clean and service.definition.oneshot:
        return False
    return restarts.wants_restart(service.definition.restart.policy, clean=clean)


def _restart(decision: Decision) -> None:
    service, now_ns = decision.service, decision.place.now.mono_ns
    restart = service.definition.restart
    if restarts.is_exhausted(service.restart_times_ns, restart, now_ns):
        decision.move(
            "gave_up",
            ev.GaveUp,
            Reason.RESTART_LIMIT,
            restarts=restart.limit,
            within_s=restart.within_s,
        )
        return
    attempt = 1 if restarts.is_forgiven(service.ran_ns) else service.attempt + 1
    chance = restarts.chance(decision.place.journal_id, service.name, service.run)
    delay_s = restarts.delay_s(restart, attempt, chance)
    if service.reason in PASSING:  # at once would be the same answer
        delay_s = max(delay_s, restarts.REFUSED_DELAY_S)
    _schedule(decision, attempt, delay_s)


def _schedule(decision: Decision, attempt: int, delay_s: float) -> None:
    service, now_ns = decision.service, decision.place.now.mono_ns
    decision.move(
        "restart_scheduled",
        ev.RestartScheduled,
        service.reason if delay_s == 0 else Reason.CRASH_LOOPING,
        attempt=attempt,
        delay_s=delay_s,
        due_ns=now_ns + int(delay_s * restarts.NS),
    )
    if delay_s == 0:
        _restart_due(
            decision, Reason.NEVER_RAN if service.reason is Reason.NEVER_RAN else Reason.POLICY
        )
