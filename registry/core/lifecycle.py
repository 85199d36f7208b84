"""Every state, every move, every reason of a service: the `transitions` machine and its table.

Rule 1: a state changes only by a row of ROWS. Rule 2: guards look at the service and at what arrived,
never at a clock, a file or a task. Rule 3: an input that has no row is ignored and journals nothing.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

from transitions import Machine

if TYPE_CHECKING:
    from registry.core.service import Service


class State(StrEnum):
    """Where a service is in its lifecycle."""

    STOPPED = "Stopped"
    STARTING = "Starting"
    RUNNING = "Running"
    STOPPING = "Stopping"
    FAILED = "Failed"
    RESTARTING = "Restarting"

    __hash__ = str.__hash__  # Enum's own is a function of Python


class Reason(StrEnum):
    """Why a service is where it is: the closed enumeration that CLI, metrics and views share."""

    DEFINED = "defined"  # never asked to run
    AUTOSTART = "autostart"
    REQUESTED = "requested"  # by an operator
    RESTART_REQUESTED = "restart_requested"
    POLICY = "policy"  # started again as its restart policy says
    NEVER_RAN = "never_ran"  # its process ended before it executed the program
    READY = "ready"
    COMPLETED = "completed"  # ended clean
    EXIT_CODE = "exit_code"
    SIGNAL = "signal"
    UNJOURNALED = "unjournaled"  # found alive, begun while the journal could not be written
    LOST = "lost"  # ended while nobody watched, status unknown
    UNHEALTHY = "unhealthy"
    START_TIMEOUT = "start_timeout"
    MEMORY_MAX = "memory_max"  # its processes held more memory than they may
    STOP_TIMEOUT = "stop_timeout"  # it said that it stops, and did not
    WAITING = "waiting"  # for a service that it depends on
    DEPENDENCIES_MET = "dependencies_met"
    REQUIRED = "required"  # by a service that was started
    DEPENDENCY = "dependency"  # it follows a service that it depends on
    REDEFINED = "redefined"  # what it runs is declared differently
    LEFTOVERS = "leftovers"  # the main process ended, others of its group had not
    CRASH_LOOPING = "crash_looping"
    RESTART_LIMIT = "restart_limit"
    RESET = "reset"
    SHUTDOWN = "shutdown"
    REMOVED = "removed"  # no longer in the configuration
    PROGRAM_MISSING = "program_missing"
    PROGRAM_NOT_EXECUTABLE = "program_not_executable"
    EXEC_FAILED = "exec_failed"
    CWD_MISSING = "cwd_missing"
    USER_MISSING = "user_missing"
    GROUP_MISSING = "group_missing"
    ENV_FILE_MISSING = "env_file_missing"
    ENV_FILE_INVALID = "env_file_invalid"
    NOT_PERMITTED = "not_permitted"
    SOCKET_FOLDER_MISSING = "socket_folder_missing"
    SOCKET_UNAVAILABLE = "socket_unavailable"  # its address is another's or nobody's: may pass
    NO_RESOURCES = "no_resources"  # descriptors, processes or memory: passes by itself


FOR_A_PERSON: frozenset[Reason] = frozenset(
    {
        Reason.PROGRAM_MISSING,
        Reason.PROGRAM_NOT_EXECUTABLE,
        Reason.EXEC_FAILED,
        Reason.CWD_MISSING,
        Reason.USER_MISSING,
        Reason.GROUP_MISSING,
        Reason.ENV_FILE_MISSING,
        Reason.ENV_FILE_INVALID,
        Reason.NOT_PERMITTED,
        Reason.SOCKET_FOLDER_MISSING,
    }
)
"""Launch failures that only a person can mend: trying again would be a loop, so nobody does."""

PASSING: frozenset[Reason] = frozenset({Reason.SOCKET_UNAVAILABLE, Reason.NO_RESOURCES})
"""Launch failures that pass by themselves: nothing ran, and it is tried again whatever the policy."""


def _ends_clean(service: Service, given: Any) -> bool:
    return bool(given.group_empty) and service.is_clean(given)


def _ends_failed(service: Service, given: Any) -> bool:
    return bool(given.group_empty) and not service.is_clean(given)


def _leaves_group(_service: Service, given: Any) -> bool:
    return not given.group_empty


def _is_free(_service: Service, given: Any) -> bool:
    return not given.waits


def _begins_to_wait(service: Service, given: Any) -> bool:
    is_waiting = service.reason is Reason.WAITING and service.wanted
    return bool(given.waits) and not is_waiting


def _must_wait(_service: Service, given: Any) -> bool:
    return bool(given.waits)


def _starts_again(service: Service, given: Any) -> bool:
    return service.bound is State.STARTING and not given.waits


def _waits_again(service: Service, given: Any) -> bool:
    return service.bound is State.STARTING and bool(given.waits)


def _is_to_stop(service: Service, _given: Any) -> bool:
    return not service.wanted and not service.removing


def _stays_declared(service: Service, _given: Any) -> bool:
    return not service.removing


def _is_held(service: Service, given: Any) -> bool:
    return bool(given.held) and (service.wanted or _begins_removal(service, given))


def _begins_removal(service: Service, given: Any) -> bool:
    return given.reason is Reason.REMOVED and not service.removing


def _is_not_held(_service: Service, given: Any) -> bool:
    return not given.held


def _bound_for(dest: State) -> Any:
    def guard(service: Service, _given: Any) -> bool:
        return service.bound is dest

    return guard


def _starts_after(service: Service, _given: Any) -> bool:
    return not service.removing and (service.bound is not State.STARTING or not service.wanted)


def _ends_after(service: Service, given: Any) -> bool:
    is_another = service.bound is not State.STOPPED or service.wanted
    return is_another or _begins_removal(service, given)


def _changes_wish(service: Service, _given: Any) -> bool:
    return service.state is not State.STOPPED or service.wanted


def _check_restarts(_service: Service, given: Any) -> bool:
    return bool(given.restarts)


def _is_journaled(service: Service, given: Any) -> bool:
    return bool(given.run == service.run)


def _is_unjournaled(service: Service, given: Any) -> bool:
    return bool(given.run > service.run)


def _check_reports(_service: Service, given: Any) -> bool:
    return not given.restarts


_S = State
_DOWN = [_S.STOPPED, _S.FAILED, _S.RESTARTING]
_UP = [_S.STARTING, _S.RUNNING]
_HAS_RUN = [_S.STARTING, _S.RUNNING, _S.STOPPING]

ROWS: list[list[Any]] = [
    # trigger, from, to (= is the same), guard
    ["start", _DOWN, _S.STARTING, _is_free],
    ["start", _DOWN, _S.STOPPED, _begins_to_wait],
    ["start", _UP, "=", _is_to_stop],
    ["start", _S.STOPPING, "=", _starts_after],
    ["restart", _DOWN, _S.STARTING, _is_free],
    ["restart", _DOWN, _S.STOPPED, _begins_to_wait],
    ["restart", _UP, _S.STOPPING, _stays_declared],
    ["restart", _S.STOPPING, "=", _starts_after],
    ["dependencies_met", _S.STOPPED, _S.STARTING],
    ["stop", _UP, _S.STOPPING, _is_not_held],
    ["stop", _UP, "=", _is_held],
    ["dependents_gone", _UP, _S.STOPPING],
    ["stop", _DOWN, _S.STOPPED, _changes_wish],
    ["stop", _S.STOPPING, "=", _ends_after],
    ["reset", _S.FAILED, _S.STOPPED],
    ["reset", [_S.STOPPED, _S.RESTARTING, *_HAS_RUN], "="],
    ["restart_due", _S.RESTARTING, _S.STARTING, _is_free],
    ["restart_due", _S.RESTARTING, _S.STOPPED, _must_wait],
    ["spawned", _S.STARTING, "="],
    ["spawn_failed", _S.STARTING, _S.FAILED],
    ["became_ready", _S.STARTING, _S.RUNNING],
    ["start_timed_out", _S.STARTING, _S.STOPPING],
    ["stop_announced", _UP, "="],
    ["stop_timed_out", _UP, _S.STOPPING],
    ["memory_exceeded", _UP, _S.STOPPING],
    ["became_unhealthy", _S.RUNNING, _S.STOPPING, _check_restarts],
    ["became_unhealthy", _S.RUNNING, "=", _check_reports],
    ["exited", _UP, _S.STOPPED, _ends_clean],
    ["exited", _UP, _S.FAILED, _ends_failed],
    ["exited", _UP, _S.STOPPING, _leaves_group],
    ["exited", _S.STOPPING, "="],
    ["lost", _UP, _S.FAILED, _ends_failed],
    ["lost", _UP, _S.STOPPING, _leaves_group],
    ["lost", _S.STOPPING, "="],
    ["group_emptied", _S.STOPPING, _S.STOPPED, _bound_for(_S.STOPPED)],
    ["group_emptied", _S.STOPPING, _S.STARTING, _starts_again],
    ["group_emptied", _S.STOPPING, _S.STOPPED, _waits_again],
    ["group_emptied", _S.STOPPING, _S.FAILED, _bound_for(_S.FAILED)],
    ["restart_scheduled", [_S.STOPPED, _S.FAILED], _S.RESTARTING],
    ["gave_up", _S.FAILED, "="],
    ["gave_up", _S.STOPPED, _S.FAILED],
    ["adopted", _HAS_RUN, "=", _is_journaled],
    ["adopted", list(_S), _S.STARTING, _is_unjournaled],
    ["defined", _S.STOPPED, "="],
    ["redefined", list(_S), "="],
    ["removed", _DOWN, _S.STOPPED],
]

COMMANDS = ("start", "restart", "stop", "reset")
"""Triggers that somebody asks for; their event is called TRIGGER_requested."""


def _machine() -> Machine:
    rows = [
        [trigger, source, dest, *([[guard[0]]] if guard else [])]
        for trigger, source, dest, *guard in ROWS
    ]
    return Machine(
        model=None,
        states=list(State),
        initial=State.STOPPED,
        transitions=rows,
        auto_transitions=False,
        ignore_invalid_triggers=True,
    )


MACHINE = _machine()


def event_type(trigger: str) -> str:
    """The name of the event that a move by `trigger` is journaled as."""
    return f"{trigger}_requested" if trigger in COMMANDS else trigger


def _table() -> dict[tuple[str, State], frozenset[State]]:
    moves: dict[tuple[str, State], set[State]] = {}
    for trigger, event in MACHINE.events.items():
        for source, transitions in event.transitions.items():
            dests = {State[str(transition.dest)] for transition in transitions}
            moves.setdefault((event_type(trigger), State[source]), set()).update(dests)
    return {key: frozenset(dests) for key, dests in moves.items()}


MOVES: dict[tuple[str, State], frozenset[State]] = _table()
"""The same table for replay: (event type, source) -> the states it may lead to."""


def _rows() -> dict[tuple[str, State], list[tuple[list[Any], State]]]:
    return {
        (trigger, State[source]): [
            ([condition.func for condition in each.conditions], State[str(each.dest)])
            for each in transitions
        ]
        for trigger, event in MACHINE.events.items()
        for source, transitions in event.transitions.items()
    }


_ROWS = _rows()


def move(service: Service, trigger: str, given: Any = None) -> State | None:
    """Move `service` by the row for `trigger`; the new state, or None where no row applies.

    By the machine's own rows, looked up: `MACHINE.events[trigger].trigger()` does the same in twenty times the time.
    """
    for guards, dest in _ROWS.get((trigger, service.state), ()):
        if all(guard(service, given) for guard in guards):
            service.state = dest
            return dest
    return None


def is_legal(event_type: str, source: State, dest: State) -> bool:
    """True when some row leads from `source` to `dest` by an event of this type."""
    return dest in MOVES.get((event_type, source), ())
