"""What a service is now: the model that the machine moves, and its fold.

`evolve(service, record)` is the one fold: it serves the live machine, the projection, recovery and replay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from registry.core import events as ev
from registry.core import inputs as inp
from registry.core import restarts
from registry.core.definition import Definition
from registry.core.lifecycle import Reason, State

# the fold looks at states ten times an event, and a global is found in a fraction of what a member of an Enum takes
_STOPPED, _STARTING, _RUNNING = State.STOPPED, State.STARTING, State.RUNNING
_STOPPING, _RESTARTING = State.STOPPING, State.RESTARTING
_COMPLETED, _NEVER_RAN = Reason.COMPLETED, Reason.NEVER_RAN

UP = frozenset({State.STARTING, State.RUNNING})
HAS_RUN = UP | {State.STOPPING}


class LastExit(msgspec.Struct, frozen=True):
    """How the latest run ended; both codes null where nobody knows."""

    run: int
    at_ns: int
    exit_code: int | None
    signal: int | None
    reason: Reason


class Request(msgspec.Struct, frozen=True):
    """A signal (by name) or, where that is None, a reload that event number `seq` asked for and nobody did yet."""

    seq: int
    signal: str | None


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
    `completed`: its latest run ended clean, since the registry's last fresh start. `run_definition` is that of
    the present run, where it is no longer the definition. `ending_ns`: when the run said that it stops.
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
    completed: bool = False
    spawned_seq: int | None = None
    run_digest: str = ""
    run_definition: Definition | None = None
    ending_ns: int | None = None
    extended_ns: int = 0
    watchdog_s: float | None = None
    stop_signal: str | None = None
    requests: tuple[Request, ...] = ()

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
    timeout_ns = int(service.definition.start_timeout_s * restarts.NS)
    return max(service.watched_ns + timeout_ns, service.extended_ns)


def stop_due_ns(service: Service, since_ns: int) -> int:
    """When the stop timeout that began at `since_ns` is over (CLOCK_BOOTTIME)."""
    timeout_ns = int(service.definition.stop.timeout_s * restarts.NS)
    return max(since_ns + timeout_ns, service.extended_ns)


# --- the fold -------------------------------------------------------------------------------------


def evolve(service: Service, record: ev.Record) -> None:
    """Fold one committed fact into a service."""
    event = record.event
    moves, follow = _STEPS[type(event)]
    if moves:
        _enter(service, event, record)
    if follow is not None:
        follow(service, event, record)


def _enter(service: Service, event: Any, record: ev.Record) -> None:
    """What every move does. Here a look takes a fifth of what setting a field does, which is seldom needed."""
    source, dest = event.source, event.dest
    if dest is not source or service.since_ns == 0:
        service.since_ns = record.at_ns
        service.moved_ns = record.mono_ns
        service.cause = record.seq
    elif type(event) not in _BESIDE:
        service.cause = record.seq
    if source is _STARTING is not dest:
        service.extended_ns = 0  # more time to start is not more time to stop
    elif source is _RUNNING is not dest and service.running_ns is not None:
        service.ran_ns = record.mono_ns - service.running_ns
    if source in HAS_RUN and dest not in HAS_RUN:
        service.pid = service.start_time = service.bound = None
        service.run_definition, service.requests = None, ()
    elif source is _RESTARTING is not dest:
        service.restart_due_ns = service.restart_at_ns = None
    if dest is _STOPPED and event.reason is _COMPLETED:
        service.completed = True
    service.state = dest
    service.reason = event.reason


_BESIDE = frozenset({ev.ResetRequested, ev.Redefined, ev.BecameUnhealthy, ev.Adopted})
"""What leads to nothing where it leaves the state as it was: what led to that state still does."""


def _bind(service: Service, dest: State, reason: Reason) -> None:
    service.bound, service.bound_reason = dest, reason


def _defined(service: Service, event: Any, _record: ev.Record) -> None:
    if service.pid is not None and service.run_definition is None:
        service.run_definition = service.definition
    if service.run_definition == event.definition:
        service.run_definition = None
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
    service.bound_reason = event.reason
    if event.dest is State.STOPPING:
        service.bound = State.STOPPED


def _reset(service: Service, event: Any, _record: ev.Record) -> None:
    service.attempt = service.restarts = 0
    service.restart_times_ns, service.message = (), None
    if event.source is State.FAILED:
        service.wanted = False


def _spawned(service: Service, event: Any, record: ev.Record) -> None:
    _begin_run(service, event, record)
    service.run_digest, service.message = event.digest, None


def _begin_run(service: Service, event: ev.Spawned | ev.Adopted, record: ev.Record) -> None:
    assert record.run is not None
    service.run, service.pid, service.start_time = record.run, event.pid, event.start_time
    service.watched_ns, service.running_ns, service.ran_ns = record.mono_ns, None, 0
    service.checks, service.completed, service.spawned_seq = {}, False, record.seq
    service.ending_ns = service.watchdog_s = service.stop_signal = None
    service.extended_ns, service.requests, service.run_definition = 0, (), None


def _adopted(service: Service, event: Any, record: ev.Record) -> None:
    if record.run is not None and record.run > service.run:  # one that the journal did not know
        _begin_run(service, event, record)
        service.wanted, service.autostart_due, service.bound = True, False, None
        service.cause = record.seq
    service.watched_ns = record.mono_ns  # time that nobody watched is not charged


def _messaged(service: Service, event: Any, _record: ev.Record) -> None:
    service.message = event.message


def _ready(service: Service, _event: Any, record: ev.Record) -> None:
    service.running_ns = record.mono_ns


def _start_timed_out(service: Service, event: Any, _record: ev.Record) -> None:
    _bind(service, State.FAILED, event.reason)
    service.message = f"not ready within {event.timeout_s:g} s"


def _dependents_gone(service: Service, event: Any, _record: ev.Record) -> None:
    _bind(service, State.STOPPED, event.reason)


def _stop_announced(service: Service, _event: Any, record: ev.Record) -> None:
    service.ending_ns, service.extended_ns = record.mono_ns, 0


def _stop_timed_out(service: Service, event: Any, _record: ev.Record) -> None:
    _bind(service, State.FAILED, event.reason)
    service.message = f"said that it stops, and did not within {event.timeout_s:g} s"


def _memory_exceeded(service: Service, event: Any, _record: ev.Record) -> None:
    _bind(service, State.FAILED, event.reason)
    mib = 1 << 20
    held, allowed = event.bytes / mib, event.memory_max / mib
    service.message = f"held {held:.0f} MiB of memory, more than its {allowed:.0f}"


def _main_changed(service: Service, event: Any, _record: ev.Record) -> None:
    service.pid, service.start_time = event.pid, event.start_time


def _timeout_extended(service: Service, event: Any, _record: ev.Record) -> None:
    service.extended_ns = event.due_ns


def _watchdog_changed(service: Service, event: Any, _record: ev.Record) -> None:
    service.watchdog_s = event.interval_s


def _requested(service: Service, event: Any, record: ev.Record) -> None:
    signal = event.signal if isinstance(event, ev.SignalRequested) else None
    service.requests = (*service.requests, Request(record.seq, signal))


def _request_done(service: Service, event: Any, _record: ev.Record) -> None:
    service.requests = tuple(each for each in service.requests if each.seq != event.request)


def _unhealthy(service: Service, event: Any, record: ev.Record) -> None:
    _judge(service, event.check, record, healthy=False)
    if event.dest is State.STOPPING:
        _bind(service, State.FAILED, event.reason)
        check = service.definition.check(event.check)
        service.stop_signal = check.signal if check else None
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
    reason = event.reason
    if event.dest is _STOPPING:
        service.pid = service.start_time = None
        code = exit_code if signal is None else -signal
        clean = code in service.definition.success_exit_codes
        reason = end_reason(exit_code, signal, clean=clean)
        if event.source is not _STOPPING:
            _bind(service, _STOPPED if clean else State.FAILED, reason)
    service.last_exit = LastExit(service.run, record.at_ns, exit_code, signal, reason)


def end_reason(exit_code: int | None, signal: int | None, *, clean: bool) -> Reason:
    """The reason that an end with these codes gives."""
    if clean:
        return Reason.COMPLETED
    if signal is not None:
        return Reason.SIGNAL
    return Reason.EXIT_CODE if exit_code is not None else Reason.LOST


def _restart_scheduled(service: Service, event: Any, record: ev.Record) -> None:
    charged = event.reason is not _NEVER_RAN
    service.attempt, service.ran_ns = event.attempt, 0
    service.restarts += charged
    service.restart_due_ns = event.due_ns
    service.restart_at_ns = record.at_ns + event.due_ns - record.mono_ns
    if charged and service.definition.restart.limit is not None:
        kept = restarts.within_window(
            service.restart_times_ns, service.definition.restart, record.mono_ns
        )
        service.restart_times_ns = (*kept, record.mono_ns)


def restored(event: ev.Resynced) -> Service:
    """The service as it was when it was resynced. Raises KeyError where no registry wrote that."""
    try:
        return msgspec.convert(event.state, Service)
    except msgspec.ValidationError as error:
        raise KeyError(str(error)) from None


def _resynced(service: Service, event: Any, record: ev.Record) -> None:
    state = restored(event)
    for field in Service.__struct_fields__:
        setattr(service, field, getattr(state, field))
    service.cause = record.seq  # the events that it was made of have no number
    for check in service.checks.values():
        check.seq = None


def _registry_started(service: Service, event: Any, _record: ev.Record) -> None:
    if event.fresh:
        service.wanted, service.autostart_due, service.completed = False, True, False


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
    ev.DependentsGone: _dependents_gone,
    ev.StopAnnounced: _stop_announced,
    ev.StopTimedOut: _stop_timed_out,
    ev.MemoryExceeded: _memory_exceeded,
    ev.MainChanged: _main_changed,
    ev.TimeoutExtended: _timeout_extended,
    ev.WatchdogChanged: _watchdog_changed,
    ev.SignalRequested: _requested,
    ev.ReloadRequested: _requested,
    ev.RequestDone: _request_done,
    ev.StartTimedOut: _start_timed_out,
    ev.BecameUnhealthy: _unhealthy,
    ev.BecameHealthy: _healthy,
    ev.ProbeChanged: _probe_changed,
    ev.Exited: _exited,
    ev.Lost: _lost,
    ev.RestartScheduled: _restart_scheduled,
    ev.Adopted: _adopted,
    ev.Resynced: _resynced,
    ev.RegistryStarted: _registry_started,
}

_STEPS = {kind: (issubclass(kind, ev.Moved), _FOLDS.get(kind)) for kind in ev.TYPES.values()}
"""For each kind of event whether it is a move, and what else it changes."""
