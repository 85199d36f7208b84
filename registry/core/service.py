"""What a service is now: the model that the machine moves, `evolve` and `decide`.

`evolve(service, record)` is the one fold: it serves the live machine, the projection, recovery and replay.
`decide(service, input, place)` turns what arrived into records, evolving the live service as it goes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, assert_never

import msgspec

from registry.core import events as ev
from registry.core import inputs as inp
from registry.core import restarts
from registry.core.definition import Definition, OnFailure
from registry.core.lifecycle import FOR_A_PERSON, Reason, State, move

HAS_RUN = frozenset({State.STARTING, State.RUNNING, State.STOPPING})


class LastExit(msgspec.Struct, frozen=True):
    """How the latest run ended; both codes null where nobody knows."""

    run: int
    at_ns: int
    exit_code: int | None
    signal: int | None
    reason: Reason


class CheckState(msgspec.Struct):
    """What the journal knows of one check: `healthy` is null until a threshold was reached."""

    ok: bool | None = None
    healthy: bool | None = None
    since_ns: int = 0
    seq: int | None = None
    error: str | None = None


class Service(msgspec.Struct):
    """A definition plus its tracked state.

    `autostart_due`: what is wanted is for `autostart` to say, not (or no longer) for an operator.
    Times ending in `_ns` are CLOCK_BOOTTIME, but `since_ns` and `restart_at_ns` are UTC. `watched_ns` is from
    when the start timeout counts: the spawn, or its adoption. `ran_ns` is how long its latest run was Running.
    """

    definition: Definition
    digest: str = ""
    state: State = State.STOPPED
    reason: Reason = Reason.DEFINED
    since_ns: int = 0
    moved_ns: int = 0
    wanted: bool = False
    autostart_due: bool = True
    run: int = 0
    pid: int | None = None
    start_time: int | None = None
    watched_ns: int | None = None
    running_ns: int | None = None
    ran_ns: int = 0
    bound: State | None = None
    bound_reason: Reason = Reason.REQUESTED
    attempt: int = 0
    restarts: int = 0
    restart_times_ns: tuple[int, ...] = ()
    restart_due_ns: int | None = None
    restart_at_ns: int | None = None
    checks: dict[str, CheckState] = {}
    last_exit: LastExit | None = None
    message: str | None = None
    removing: bool = False
    cause: int | None = None

    @property
    def name(self) -> str:
        """The name that the definition gives it."""
        return self.definition.name

    def is_clean(self, given: object) -> bool:
        """Whether a run that ended as `given` says ended well. What nobody saw counts as a failure."""
        if not isinstance(given, inp.ProcessExited) or given.launch_failure or given.never_ran:
            return False
        code = given.exit_code if given.signal is None else -given.signal
        return code in self.definition.success_exit_codes


def start_due_ns(service: Service) -> int:
    """When the start timeout of a spawned run is over (CLOCK_BOOTTIME)."""
    assert service.watched_ns is not None
    return service.watched_ns + int(service.definition.start_timeout_s * restarts.NS)


# --- the fold -------------------------------------------------------------------------------------


def evolve(service: Service, record: ev.Record) -> None:
    """Fold one committed fact into a service."""
    event = record.event
    if isinstance(event, ev.Moved):
        _enter(service, event, record)
    follow = _FOLDS.get(type(event))
    if follow is not None:
        follow(service, event, record)


def _enter(service: Service, event: ev.Moved, record: ev.Record) -> None:
    if event.dest is not event.source or service.since_ns == 0:
        service.since_ns = record.at_ns
        service.moved_ns = record.mono_ns
    if event.source is State.RUNNING is not event.dest and service.running_ns is not None:
        service.ran_ns = record.mono_ns - service.running_ns
    if event.dest not in HAS_RUN:
        service.pid = service.start_time = service.bound = None
    if event.dest is not State.RESTARTING:
        service.restart_due_ns = service.restart_at_ns = None
    service.state = event.dest
    service.reason = event.reason
    service.cause = record.seq


def _bind(service: Service, dest: State, reason: Reason) -> None:
    service.bound, service.bound_reason = dest, reason


def _defined(service: Service, event: Any, _record: ev.Record) -> None:
    service.definition, service.digest = event.definition, event.digest
    service.autostart_due |= service.removing
    service.removing = False
    service.checks = {n: c for n, c in service.checks.items() if event.definition.check(n)}


def _wanted_up(service: Service, event: Any, _record: ev.Record) -> None:
    service.wanted, service.autostart_due = True, False
    service.attempt, service.restart_times_ns, service.message = 0, (), None
    if event.dest is State.STOPPING:
        _bind(service, State.STARTING, event.reason)


def _wanted_down(service: Service, event: Any, _record: ev.Record) -> None:
    service.wanted, service.message = False, None
    service.autostart_due = event.reason is Reason.SHUTDOWN
    service.removing = event.reason is Reason.REMOVED
    if event.dest is State.STOPPING:
        _bind(service, State.STOPPED, event.reason)


def _reset(service: Service, event: Any, _record: ev.Record) -> None:
    service.attempt = service.restarts = 0
    service.restart_times_ns, service.message = (), None
    if event.source is State.FAILED:
        service.wanted = False


def _spawned(service: Service, event: Any, record: ev.Record) -> None:
    assert record.run is not None
    service.run, service.pid, service.start_time = record.run, event.pid, event.start_time
    service.watched_ns, service.running_ns, service.ran_ns = record.mono_ns, None, 0
    service.checks, service.message = {}, None


def _adopted(service: Service, _event: Any, record: ev.Record) -> None:
    service.watched_ns = record.mono_ns  # time that nobody watched is not charged


def _messaged(service: Service, event: Any, _record: ev.Record) -> None:
    service.message = event.message


def _ready(service: Service, _event: Any, record: ev.Record) -> None:
    service.running_ns = record.mono_ns


def _start_timed_out(service: Service, event: Any, _record: ev.Record) -> None:
    _bind(service, State.FAILED, event.reason)
    service.message = f"not ready within {event.timeout_s:g} s"


def _unhealthy(service: Service, event: Any, record: ev.Record) -> None:
    _judge(service, event.check, record, healthy=False)
    if event.dest is State.STOPPING:
        _bind(service, State.FAILED, event.reason)
        service.message = f"check {event.check} failed {event.failures} times: {event.error}"


def _healthy(service: Service, event: Any, record: ev.Record) -> None:
    _judge(service, event.check, record, healthy=True)


def _judge(service: Service, check: str, record: ev.Record, *, healthy: bool) -> None:
    state = service.checks.setdefault(check, CheckState())
    state.healthy, state.since_ns, state.seq = healthy, record.at_ns, record.seq


def _probe_changed(service: Service, event: Any, record: ev.Record) -> None:
    state = service.checks.setdefault(event.check, CheckState(since_ns=record.at_ns))
    state.ok, state.error, state.seq = event.ok, event.error, record.seq


def _exited(service: Service, event: Any, record: ev.Record) -> None:
    _ended(service, event, record, event.exit_code, event.signal)
    if event.never_ran and event.source is not State.STOPPING is event.dest:
        service.bound_reason = Reason.NEVER_RAN
    if event.message:
        service.message = event.message


def _lost(service: Service, event: Any, record: ev.Record) -> None:
    _ended(service, event, record, None, None)


def _ended(
    service: Service, event: ev.Moved, record: ev.Record, exit_code: int | None, signal: int | None
) -> None:
    code = exit_code if signal is None else -signal
    clean = code in service.definition.success_exit_codes
    why = end_reason(exit_code, signal, clean=clean)
    reason = why if event.dest is State.STOPPING else event.reason
    service.last_exit = LastExit(service.run, record.at_ns, exit_code, signal, reason)
    service.pid = service.start_time = None
    if event.source is not State.STOPPING and event.dest is State.STOPPING:
        _bind(service, State.STOPPED if clean else State.FAILED, why)


def end_reason(exit_code: int | None, signal: int | None, *, clean: bool) -> Reason:
    """The reason that an end with these codes gives."""
    if clean:
        return Reason.COMPLETED
    if signal is not None:
        return Reason.SIGNAL
    return Reason.EXIT_CODE if exit_code is not None else Reason.LOST


def _restart_scheduled(service: Service, event: Any, record: ev.Record) -> None:
    charged = event.reason is not Reason.NEVER_RAN
    service.attempt, service.ran_ns = event.attempt, 0
    service.restarts += charged
    service.restart_due_ns = event.due_ns
    service.restart_at_ns = record.at_ns + event.due_ns - record.mono_ns
    if charged and service.definition.restart.limit is not None:
        kept = restarts.within_window(
            service.restart_times_ns, service.definition.restart, record.mono_ns
        )
        service.restart_times_ns = (*kept, record.mono_ns)


def _registry_started(service: Service, event: Any, _record: ev.Record) -> None:
    if event.fresh:
        service.wanted, service.autostart_due = False, True


_FOLDS: dict[type[ev.Event], Callable[[Service, Any, ev.Record], None]] = {
    ev.Defined: _defined,
    ev.Redefined: _defined,
    ev.StartRequested: _wanted_up,
    ev.RestartRequested: _wanted_up,
    ev.StopRequested: _wanted_down,
    ev.ResetRequested: _reset,
    ev.Spawned: _spawned,
    ev.SpawnFailed: _messaged,
    ev.BecameReady: _ready,
    ev.StartTimedOut: _start_timed_out,
    ev.BecameUnhealthy: _unhealthy,
    ev.BecameHealthy: _healthy,
    ev.ProbeChanged: _probe_changed,
    ev.Exited: _exited,
    ev.Lost: _lost,
    ev.RestartScheduled: _restart_scheduled,
    ev.Adopted: _adopted,
    ev.RegistryStarted: _registry_started,
}


# --- the decision ---------------------------------------------------------------------------------


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
        case inp.ProcessFound():
            decision.move("adopted", ev.Adopted, service.reason, cause=None, pid=given.pid)
        case _:
            raise TypeError(f"no rule for observation {type(given).__name__}")


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
