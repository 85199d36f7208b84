"""From what arrived to what has happened: `decide(service, input, place)`.

Every step is folded into the live service at once, so that the next one sees it. Nothing else moves one.
"""

from __future__ import annotations

from typing import Any, assert_never

import msgspec

from registry.core import events as ev
from registry.core import inputs as inp
from registry.core import restarts
from registry.core.definition import OnFailure
from registry.core.lifecycle import FOR_A_PERSON, Reason, State, move
from registry.core.service import CheckState, Service, end_reason, evolve, start_due_ns


class Place(msgspec.Struct, frozen=True):
    """Where a decision stands: the clocks, the next sequence number, and what it continues, if anything."""

    now: ev.Now
    seq: int
    journal_id: str
    decision: int | None = None


class _Decision:
    """Records as they are decided: each is folded at once, so that the next step sees it."""

    def __init__(self, service: Service, place: Place, actor: ev.Actor | None = None) -> None:
        self.service = service
        self.place = place
        self.actor = actor
        self.records: list[ev.Record] = []

    def move(
        self,
        trigger: str,
        kind: type[ev.Moved],
        reason: Reason,
        *,
        given: object = None,
        cause: int | None = None,
        run: int | None = None,
        **fields: Any,
    ) -> bool:
        """Make the move if the table has it; what it journals is caused by `cause`, else by the step before."""
        source = self.service.state
        dest = move(self.service, trigger, given)
        if dest is None:
            return False
        self.add(kind(source=source, dest=dest, reason=reason, **fields), cause=cause, run=run)
        return True

    def add(self, event: ev.Event, *, cause: int | None = None, run: int | None = None) -> None:
        seq = self.place.seq + len(self.records)
        record = ev.Record(
            seq=seq,
            at_ns=self.place.now.at_ns,
            mono_ns=self.place.now.mono_ns,
            decision=self.place.decision or self.place.seq,
            service=self.service.name,
            run=(self.service.run if run is None else run) or None,
            cause=self.records[-1].seq if self.records else cause,
            actor=self.actor,
            event=event,
        )
        evolve(self.service, record)
        self.records.append(record)


def decide(service: Service, given: inp.Input, place: Place) -> list[ev.Record]:
    """What follows from an input: records in order, none where it changes nothing. Moves `service`."""
    if isinstance(given, inp.Command):
        decision = _Decision(service, place, given.actor)
        _command(decision, given)
    else:
        decision = _Decision(service, place)
        if _concerns(service, given):
            _observed(decision, given)
    return decision.records


_OF_A_PROCESS = (
    inp.GateOpened
    | inp.StartTimerDue
    | inp.Probed
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


def _command(decision: _Decision, given: inp.Command) -> None:
    service = decision.service
    match given:
        case inp.Start(reason=reason):
            decision.move("start", ev.StartRequested, reason, cause=given.cause)
        case inp.Stop(reason=reason):
            decision.move("stop", ev.StopRequested, reason, given=reason, cause=given.cause)
        case inp.Restart():
            decision.move(
                "restart", ev.RestartRequested, Reason.RESTART_REQUESTED, cause=given.cause
            )
        case inp.Reset():
            reason = Reason.RESET if service.state is State.FAILED else service.reason
            decision.move("reset", ev.ResetRequested, reason, cause=given.cause)
        case inp.Define():
            _define(decision, given)
        case inp.Remove():
            reason = Reason.REMOVED
            if not decision.move("removed", ev.Removed, reason, cause=given.cause):
                decision.move("stop", ev.StopRequested, reason, given=reason, cause=given.cause)
        case _:
            raise TypeError(f"no rule for command {type(given).__name__}")


def _define(decision: _Decision, given: inp.Define) -> None:
    service = decision.service
    fields: dict[str, Any] = {"definition": given.definition, "digest": given.digest}
    if not service.digest:
        decision.move("defined", ev.Defined, Reason.DEFINED, cause=given.cause, **fields)
    elif service.removing or (service.digest, service.definition) != (
        given.digest,
        given.definition,
    ):
        decision.move("redefined", ev.Redefined, service.reason, cause=given.cause, **fields)


def _observed(decision: _Decision, given: inp.Observation) -> None:
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
            if not service.definition.checks:
                decision.move("became_ready", ev.BecameReady, Reason.READY, cause=service.cause)
        case inp.StartTimerDue():
            _start_timer_due(decision)
        case inp.RestartTimerDue():
            due_ns = service.restart_due_ns
            if due_ns is not None and due_ns <= decision.place.now.mono_ns:
                decision.move("restart_due", ev.RestartDue, Reason.POLICY, cause=service.cause)
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
            raise TypeError(f"no rule for observation {type(given).__name__}")


def _run_found(decision: _Decision, given: inp.RunFound) -> None:
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


def _start_timer_due(decision: _Decision) -> None:
    service = decision.service
    if start_due_ns(service) <= decision.place.now.mono_ns:
        decision.move(
            "start_timed_out",
            ev.StartTimedOut,
            Reason.START_TIMEOUT,
            cause=service.cause,
            timeout_s=service.definition.start_timeout_s,
        )


def _probed(decision: _Decision, given: inp.Probed) -> None:
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
        if all_succeed(service):
            decision.move("became_ready", ev.BecameReady, Reason.READY, cause=state.seq)
    elif state.healthy is not False and given.count >= check.failures:
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


def _process_ended(decision: _Decision, given: inp.ProcessExited | inp.ProcessLost) -> None:
    service = decision.service
    stopping = service.state is State.STOPPING
    if not _journal_end(decision, given, cause=service.cause if stopping else None):
        return
    if service.state is not State.STOPPING:
        _after_end(decision)
    elif stopping and given.group_empty:
        _group_gone(decision, given.killed)


def _journal_end(
    decision: _Decision, given: inp.ProcessExited | inp.ProcessLost, *, cause: int | None
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


def _group_gone(decision: _Decision, killed: int) -> None:
    service = decision.service
    if service.pid is not None:  # its main process has not been seen to end
        return
    reason = service.bound_reason
    if decision.move("group_emptied", ev.GroupEmptied, reason, cause=service.cause, killed=killed):
        _after_end(decision)


def _after_end(decision: _Decision) -> None:
    """A run is over, and its group: start again, give up, be removed, or rest."""
    service = decision.service
    if service.removing and service.state is not State.STARTING:
        decision.move("removed", ev.Removed, Reason.REMOVED)
    elif service.state is State.STARTING or not service.wanted:
        return
    elif service.reason is Reason.NEVER_RAN:
        _schedule(decision, service.attempt, 0.0)
    elif _may_restart(service):
        _restart(decision)


def _may_restart(service: Service) -> bool:
    if service.reason in FOR_A_PERSON:
        return False
    if service.reason is Reason.NO_RESOURCES:  # nothing ran, so no policy has anything to say of it
        return True
    clean = service.state is State.STOPPED
    return restarts.wants_restart(service.definition.restart.policy, clean=clean)


def _restart(decision: _Decision) -> None:
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
    if service.reason is Reason.NO_RESOURCES:  # at once would be the same answer
        delay_s = max(delay_s, restarts.NO_RESOURCES_DELAY_S)
    _schedule(decision, attempt, delay_s)


def _schedule(decision: _Decision, attempt: int, delay_s: float) -> None:
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
        reason = Reason.NEVER_RAN if service.reason is Reason.NEVER_RAN else Reason.POLICY
        decision.move("restart_due", ev.RestartDue, reason)
