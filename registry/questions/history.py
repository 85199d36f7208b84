"""The runs of a service: when each began, was ready and ended, how, and who or what was behind it. Pure.

What nobody saw is not made up: of a run that ended while no registry ran it is known between which two moments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from registry.core import events as ev
from registry.core.changes import changed_keys
from registry.core.definition import Definition
from registry.core.lifecycle import Reason, State
from registry.core.projection import Projection
from registry.core.service import UP, LastExit, Service
from registry.questions.elapsed import Elapsed
from registry.questions.records import EventRecord, event_record, rfc3339

_NS = 1_000_000_000
_LIFE_BEGINS = (ev.JournalCreated, ev.JournalCopied)
_ASKED = (ev.StartRequested, ev.RestartRequested, ev.StopRequested)
_BY_ITSELF = (Reason.POLICY, Reason.NEVER_RAN, Reason.DEPENDENCIES_MET)
_SILENT = frozenset({"position"})


class By(msgspec.Struct, frozen=True):
    """The event that something followed from, and the one of another service that led to that, if any."""

    event: EventRecord
    after: EventRecord | None = None


class Run(msgspec.Struct, frozen=True):
    """One run; what is not known, or not so yet, is null.

    `ready_s` is from its spawn to ready, `ran_s` to its end. An end that nobody saw lies between `ended_after` and
    `ended`, and `ran_s` is null. `reason` says how it ended, `ended_by` what ended it where it did not do so by
    itself. `restarts` are those before it since the counter was last reset. `changed` are the keys that its definition
    does not have in common with that of the run before.
    """

    run: int
    pid: int | None
    started: str | None
    ready_s: float | None
    ended: str | None
    ended_after: str | None
    ran_s: float | None
    exit_code: int | None
    signal: int | None
    reason: str | None
    never_ran: bool
    restarts: int
    adopted: int
    digest: str
    changed: tuple[str, ...]
    started_by: By | None
    ended_by: By | None


class History(msgspec.Struct, frozen=True):
    """The runs of one service, the newest last; where `is_cut`, only the latest."""

    service: str
    runs: tuple[Run, ...] = ()
    is_cut: bool = False


class _Open(msgspec.Struct):
    """A run as far as it is known. Elapsed times are nanoseconds; `began_ns` is None where it began unseen."""

    run: int
    pid: int | None
    began_ns: int | None
    began_at_ns: int | None
    restarts: int
    digest: str
    definition: Definition
    started_by: ev.Record | None = None
    changed: tuple[str, ...] = ()
    ready_ns: int | None = None
    ended_ns: int | None = None
    ended_at_ns: int | None = None
    ended_after_ns: int | None = None
    exit_code: int | None = None
    signal: int | None = None
    reason: str | None = None
    never_ran: bool = False
    adopted: int = 0
    ended_by: ev.Record | None = None


class Runs:
    """Folds the events of one service, and of the registry itself, into runs.

    `projection` is what the journal comes to before them, at `beginning`. `began` is the event with which the run
    began that there is then, and before it what led to it, newest first and as far as that is known; `led` the same
    of the event that left the service as it is then. Of other services only the times of events are looked at.
    """

    def __init__(
        self,
        name: str,
        projection: Projection,
        beginning: ev.Now,
        *,
        began: Sequence[ev.Record] = (),
        led: Sequence[ev.Record] = (),
    ) -> None:
        boot_id = projection.started.boot_id if projection.started is not None else None
        self._name = name
        self._projection = projection
        self._elapsed = Elapsed(beginning, boot_id)
        self._latest_at_ns = self._seen_at_ns = beginning.at_ns
        self._is_watched = True
        self._asked: ev.Record | None = None
        self._stopping: ev.Record | None = None
        self._by_itself: ev.Record | None = None
        self._found: list[_Open] = []
        for other in [each for each in projection.services if each != name]:
            del projection.services[other]
        service = projection.services.get(name)
        if service is not None and service.pid is not None:
            self._found.append(self._going_on(service, began, beginning))
        self._recall(led)

    def _going_on(self, service: Service, began: Sequence[ev.Record], beginning: ev.Now) -> _Open:
        """The run that there is at the beginning."""
        run = _begun(service)
        if service.running_ns is not None:
            run.ready_ns = service.running_ns - beginning.mono_ns
        if began and isinstance(spawned := began[0].event, ev.Spawned):
            self._recall(began)
            run.began_at_ns = began[0].at_ns
            run.began_ns = began[0].mono_ns - beginning.mono_ns
            run.started_by = self._behind_start(spawned)
        return run

    def _recall(self, causes: Sequence[ev.Record]) -> None:
        """Remember of what happened before only what is known to have led on."""
        self._asked = self._stopping = self._by_itself = None
        for record in reversed(causes):
            if record.service == self._name:
                self._note(record.event, record)

    def fold(self, records: Iterable[ev.Record]) -> None:
        """Take in further records, in order."""
        for record in records:
            if isinstance(record.event, _LIFE_BEGINS):  # written with the start of the registry
                continue
            now_ns = self._elapsed.take(record)
            if isinstance(record.event, ev.RegistryStarted):
                self._seen_at_ns, self._is_watched = self._latest_at_ns, False
                self._projection.fold((record,))
            elif record.service == self._name:
                self._own(record, now_ns)
            self._latest_at_ns = record.at_ns

    def _own(self, record: ev.Record, now_ns: int) -> None:
        before = self._projection.services.get(self._name)
        last_run = before.run if before is not None else 0
        self._projection.fold((record,))
        service = self._projection.services.get(self._name)
        self._note(record.event, record)
        if service is None:
            return
        match record.event:
            case ev.Spawned():
                self._begin(_begun(service, record, now_ns, self._behind_start(record.event)))
            case ev.Adopted() if service.run > last_run:
                self._begin(_begun(service))
            case ev.Adopted() if self._found:
                self._is_watched = True
                self._found[-1].adopted += 1
            case ev.BecameReady() if self._found:
                self._found[-1].ready_ns = now_ns
            case ev.Exited() | ev.Lost() if self._found:
                self._end(self._found[-1], record, service, now_ns)
            case ev.Resynced():
                self._resync(record, service, last_run)

    def _note(self, event: ev.Event, record: ev.Record) -> None:
        """Remember what a later begin or end of a run may follow from."""
        if isinstance(event, _ASKED):
            self._asked = record
        elif isinstance(event, ev.RestartScheduled | ev.DependenciesMet):
            self._by_itself = record
        if isinstance(event, ev.Moved) and event.source in UP and event.dest is State.STOPPING:
            self._stopping = self._asked if isinstance(event, ev.DependentsGone) else record

    def _behind_start(self, event: ev.Spawned) -> ev.Record | None:
        return self._by_itself if event.reason in _BY_ITSELF else self._asked

    def _begin(self, run: _Open) -> None:
        if self._found:
            keys = changed_keys(self._found[-1].definition, run.definition)
            run.changed = tuple(key for key in keys if key not in _SILENT)
        self._is_watched = True
        self._stopping = None
        self._found.append(run)

    def _end(self, run: _Open, record: ev.Record, service: Service, now_ns: int) -> None:
        event = record.event
        if run.ended_at_ns is not None or not isinstance(event, ev.Exited | ev.Lost):
            return
        run.ended_at_ns = record.at_ns
        if self._is_watched:
            run.ended_ns = now_ns
        else:
            run.ended_after_ns = self._seen_at_ns
        if service.last_exit is not None:
            _take_exit(run, service.last_exit)
        run.never_ran = isinstance(event, ev.Exited) and event.never_ran
        run.ended_by = self._stopping if event.source is State.STOPPING else None

    def _resync(self, record: ev.Record, service: Service, last_run: int) -> None:
        """What could not be written is known by its outcome: that of the last run that ended, and the present one."""
        exit_ = service.last_exit
        if self._found and self._found[-1].ended_at_ns is None:
            run = self._found[-1]
            if service.run > run.run or service.pid is None:
                run.ended_after_ns, run.ended_at_ns = self._latest_at_ns, record.at_ns
            if run.ended_at_ns is not None and exit_ is not None and exit_.run == run.run:
                run.ended_after_ns, run.ended_at_ns = None, exit_.at_ns
                _take_exit(run, exit_)
        if service.run > last_run:
            self._begin(_begun(service))
            if exit_ is not None and exit_.run == service.run:
                self._found[-1].ended_at_ns = exit_.at_ns
                _take_exit(self._found[-1], exit_)

    @property
    def causes(self) -> set[int]:
        """The numbers of the events from which those followed that begins and ends of runs followed from."""
        behind = [each for run in self._found for each in (run.started_by, run.ended_by)]
        return {each.cause for each in behind if each is not None and each.cause is not None}

    def answer(
        self,
        causes: Mapping[int, ev.Record],
        *,
        first_ns: int | None = None,
        last_ns: int | None = None,
        limit: int | None = None,
    ) -> History:
        """The runs of which some part lies between two times (UTC), the latest `limit` of them."""
        chosen = [run for run in self._found if _lies_in(run, first_ns, last_ns)]
        shown = chosen if limit is None else chosen[-limit:] if limit else []
        runs = tuple(_told(run, causes) for run in shown)
        return History(self._name, runs, len(chosen) > len(shown))


def _begun(
    service: Service,
    record: ev.Record | None = None,
    now_ns: int | None = None,
    started_by: ev.Record | None = None,
) -> _Open:
    """A run that began with a record, or unseen."""
    return _Open(
        run=service.run,
        pid=service.pid,
        began_ns=now_ns,
        began_at_ns=record.at_ns if record is not None else None,
        restarts=service.restarts,
        digest=service.run_digest or service.digest,
        definition=service.run_definition or service.definition,
        started_by=started_by,
    )


def _take_exit(run: _Open, exit_: LastExit) -> None:
    run.exit_code, run.signal, run.reason = exit_.exit_code, exit_.signal, exit_.reason.value


def _lies_in(run: _Open, first_ns: int | None, last_ns: int | None) -> bool:
    began_ns = run.began_at_ns if run.began_at_ns is not None else last_ns
    ended_ns = run.ended_at_ns if run.ended_at_ns is not None else first_ns
    begins_in_time = last_ns is None or began_ns is None or began_ns <= last_ns
    return begins_in_time and (first_ns is None or ended_ns is None or ended_ns >= first_ns)


def _told(run: _Open, causes: Mapping[int, ev.Record]) -> Run:
    return Run(
        run=run.run,
        pid=run.pid,
        started=_at(run.began_at_ns),
        ready_s=_span_s(run.began_ns, run.ready_ns),
        ended=_at(run.ended_at_ns),
        ended_after=_at(run.ended_after_ns),
        ran_s=_span_s(run.began_ns, run.ended_ns),
        exit_code=run.exit_code,
        signal=run.signal,
        reason=run.reason,
        never_ran=run.never_ran,
        restarts=run.restarts,
        adopted=run.adopted,
        digest=run.digest,
        changed=run.changed,
        started_by=_by(run.started_by, causes),
        ended_by=_by(run.ended_by, causes),
    )


def _by(record: ev.Record | None, causes: Mapping[int, ev.Record]) -> By | None:
    if record is None:
        return None
    cause = causes.get(record.cause or 0)
    is_of_another = cause is not None and cause.service not in (None, record.service)
    return By(event_record(record), event_record(cause) if cause and is_of_another else None)


def _at(at_ns: int | None) -> str | None:
    return rfc3339(at_ns) if at_ns is not None else None


def _span_s(from_ns: int | None, to_ns: int | None) -> float | None:
    return (to_ns - from_ns) / _NS if from_ns is not None and to_ns is not None else None
