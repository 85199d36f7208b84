"""What has happened: every fact of the journal, in the past tense, immutable.

A record is an event in its place: sequence number, times, the decision it belongs to, cause and actor.
Fields are only ever added, with a default; a type once written keeps its meaning.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from registry.core.definition import Definition
from registry.core.lifecycle import Reason, State


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The base of all facts; TYPE is its name in the journal."""

    TYPE: ClassVar[str]


class Moved(Event, frozen=True, kw_only=True):
    """A fact of a service's lifecycle: it carries its move, so that a journal reads on its own."""

    source: State
    dest: State
    reason: Reason


class JournalCreated(Event, frozen=True):
    """The first row of a journal."""

    TYPE = "journal_created"
    journal_id: str
    schema: int


class JournalCopied(Event, frozen=True):
    """It was found to be a copy of the journal at `source`, and is that of another registry from here on."""

    TYPE = "journal_copied"
    journal_id: str
    source: str


class RegistryStarted(Event, frozen=True):
    """A supervisor began to write. `fresh`: after an orderly shutdown, in another boot, or the first.

    `path`, `device` and `inode` are those of the journal: by them a copy of it is told.
    """

    TYPE = "registry_started"
    boot_id: str
    pid_namespace: str
    pid: int
    version: str
    fresh: bool
    path: str = ""
    device: int = 0
    inode: int = 0


class RegistryStopped(Event, frozen=True):
    """An orderly end: every service had been stopped, or was `kept` running for the next registry."""

    TYPE = "registry_stopped"
    kept: bool = False


class JournalCompacted(Event, frozen=True):
    """The journal begins after event `through` from here on: the `events` before went, but for those it keeps.

    `hash` is that of event `through`; `digest` is over all that the journal begins with instead, its anchor.
    """

    TYPE = "journal_compacted"
    through: int
    hash: str
    digest: str
    events: int


class Defined(Moved, frozen=True):
    """A service was declared."""

    TYPE = "defined"
    definition: Definition
    digest: str


class Redefined(Moved, frozen=True):
    """A service was declared differently."""

    TYPE = "redefined"
    definition: Definition
    digest: str


class Removed(Moved, frozen=True):
    """A service is no longer declared, and nothing of it runs."""

    TYPE = "removed"


class StartRequested(Moved, frozen=True):
    """It is wanted up."""

    TYPE = "start_requested"


class StopRequested(Moved, frozen=True):
    """It is wanted down."""

    TYPE = "stop_requested"


class RestartRequested(Moved, frozen=True):
    """It is wanted up, by a new run."""

    TYPE = "restart_requested"


class ResetRequested(Moved, frozen=True):
    """Its past failures are to count no more."""

    TYPE = "reset_requested"


class Spawned(Moved, frozen=True):
    """A process waits at the gate. `start_time` is field 22 of /proc/PID/stat, in clock ticks since boot."""

    TYPE = "spawned"
    pid: int
    start_time: int | None
    digest: str


class SpawnFailed(Moved, frozen=True):
    """No process could be made; the reason says which kind of trouble, `message` the sentence."""

    TYPE = "spawn_failed"
    message: str


class BecameReady(Moved, frozen=True):
    """It started as its definition asks."""

    TYPE = "became_ready"


class DependenciesMet(Moved, frozen=True):
    """What it waited for is as it needs it."""

    TYPE = "dependencies_met"


class DependentsGone(Moved, frozen=True):
    """It was to stop, and those that depend on it have stopped before it."""

    TYPE = "dependents_gone"


class StopAnnounced(Moved, frozen=True):
    """Its process said that it stops by itself: nobody checks it any more."""

    TYPE = "stop_announced"


class StopTimedOut(Moved, frozen=True):
    """It said that it stops, and was still there after its stop timeout."""

    TYPE = "stop_timed_out"
    timeout_s: float


class MemoryExceeded(Moved, frozen=True):
    """Its processes held `bytes` together, more than the `memory_max` of its restart policy."""

    TYPE = "memory_exceeded"
    bytes: int
    memory_max: int


class MainChanged(Event, frozen=True):
    """Another process of the run is its main process from here on: the one before said so."""

    TYPE = "main_changed"
    pid: int
    start_time: int | None


class TimeoutExtended(Event, frozen=True):
    """It asked for more time to start or to stop: until `due_ns` (CLOCK_BOOTTIME)."""

    TYPE = "timeout_extended"
    due_ns: int


class WatchdogChanged(Event, frozen=True):
    """It said how often its heartbeat is due in this run."""

    TYPE = "watchdog_changed"
    interval_s: float


class SignalRequested(Event, frozen=True):
    """Its main process is to get a signal."""

    TYPE = "signal_requested"
    signal: str


class ReloadRequested(Event, frozen=True):
    """It is to re-read its own files, as its definition says."""

    TYPE = "reload_requested"


class RequestDone(Event, frozen=True):
    """A signal or reload was carried out (event number `request`), or could not be: `error`."""

    TYPE = "request_done"
    request: int
    error: str | None = None


class StartTimedOut(Moved, frozen=True):
    """It was not ready within its start timeout."""

    TYPE = "start_timed_out"
    timeout_s: float


class BecameUnhealthy(Moved, frozen=True):
    """A check failed as often in a row as its definition bears."""

    TYPE = "became_unhealthy"
    check: str
    failures: int
    error: str | None = None


class BecameHealthy(Event, frozen=True):
    """A check succeeded as often in a row as its definition asks: the first time, or after failing."""

    TYPE = "became_healthy"
    check: str
    successes: int


class Resynced(Event, frozen=True):
    """The whole state of a service, in place of events that were too many to hold while none could be written."""

    TYPE = "resynced"
    events: int
    state: dict[str, Any]


class Streak(msgspec.Struct, frozen=True, omit_defaults=True):
    """Equal results of one check in a row."""

    ok: bool
    count: int
    first_at_ns: int
    last_at_ns: int
    error: str | None = None


class ProbeChanged(Event, frozen=True):
    """A check's result changed; `ended` is the streak before it."""

    TYPE = "probe_changed"
    check: str
    ok: bool
    error: str | None = None
    ended: Streak | None = None


class Usage(msgspec.Struct, frozen=True):
    """What a run's main process used, as the kernel counted: seconds of CPU, and bytes (null: unknown)."""

    user_s: float
    system_s: float
    memory_max: int | None = None


class Exited(Moved, frozen=True):
    """A run's main process ended: by `exit_code` or by `signal`, one of which is null."""

    TYPE = "exited"
    exit_code: int | None = None
    signal: int | None = None
    group_empty: bool = True
    never_ran: bool = False
    message: str | None = None
    usage: Usage | None = None


class Lost(Moved, frozen=True):
    """A run ended while nobody watched, and how it ended cannot be known."""

    TYPE = "lost"
    group_empty: bool = True


class OutputEnded(Event, frozen=True):
    """No process of a run can write any more: its last lines, where it ended ill, and the bytes that were lost.

    `dropped` counts what could not be written to its log. The cause is how its main process ended.
    """

    TYPE = "output_ended"
    lines: tuple[str, ...] = ()
    dropped: int = 0


class GroupEmptied(Moved, frozen=True):
    """Nothing of a run is left; `killed` of its processes needed SIGKILL."""

    TYPE = "group_emptied"
    killed: int = 0


class RestartScheduled(Moved, frozen=True):
    """It will be started again at `due_ns` (CLOCK_BOOTTIME); `attempt` counts restarts in a row."""

    TYPE = "restart_scheduled"
    attempt: int
    delay_s: float
    due_ns: int


class RestartDue(Moved, frozen=True):
    """The delay is over."""

    TYPE = "restart_due"


class GaveUp(Moved, frozen=True):
    """Its limit of restarts is reached: it stays down until somebody starts or resets it."""

    TYPE = "gave_up"
    restarts: int
    within_s: float


class Adopted(Moved, frozen=True):
    """A later supervisor found the run alive, and verified that it is the same process.

    With the reason `unjournaled` it is a run that began while the journal could not be written; then
    `start_time` is as in Spawned.
    """

    TYPE = "adopted"
    pid: int
    start_time: int | None = None


TYPES: dict[str, type[Event]] = {
    kind.TYPE: kind
    for kind in (
        JournalCreated,
        JournalCopied,
        RegistryStarted,
        RegistryStopped,
        JournalCompacted,
        Defined,
        Redefined,
        Removed,
        StartRequested,
        StopRequested,
        RestartRequested,
        ResetRequested,
        Spawned,
        SpawnFailed,
        BecameReady,
        DependenciesMet,
        DependentsGone,
        StopAnnounced,
        StopTimedOut,
        MemoryExceeded,
        MainChanged,
        TimeoutExtended,
        WatchdogChanged,
        SignalRequested,
        ReloadRequested,
        RequestDone,
        StartTimedOut,
        BecameUnhealthy,
        BecameHealthy,
        ProbeChanged,
        Resynced,
        Exited,
        Lost,
        OutputEnded,
        GroupEmptied,
        RestartScheduled,
        RestartDue,
        GaveUp,
        Adopted,
    )
}
"""Every type of event by its name in the journal."""


class Actor(msgspec.Struct, frozen=True):
    """Who asked: the peer of the socket, as the kernel names it; `user` is what the machine then called the uid."""

    uid: int
    pid: int | None = None
    program: str | None = None
    user: str | None = None


class Now(msgspec.Struct, frozen=True):
    """The two clocks: UTC for people, CLOCK_BOOTTIME for every rule; nanoseconds."""

    at_ns: int
    mono_ns: int


class Record(msgspec.Struct, frozen=True):
    """One row of the journal. `decision` is the sequence number of the first event decided together."""

    seq: int
    at_ns: int
    mono_ns: int
    decision: int
    service: str | None
    run: int | None
    cause: int | None
    actor: Actor | None
    event: Event

    @property
    def type(self) -> str:
        """The name of the event's type."""
        return self.event.TYPE
