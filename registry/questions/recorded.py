"""What a journal holds of each service's runs: the script by which a what-if lets them happen again.

A step is what one input led to. An attempt is one spawn and what was seen of its run, by the time since it began;
a segment is the attempts from one start that somebody asked for until the next. Times are CLOCK_BOOTTIME.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from registry.core import events as ev
from registry.core import inputs as inp
from registry.core.definition import Definition, Ready
from registry.core.lifecycle import FOR_A_PERSON, PASSING, Reason, State
from registry.core.projection import Projection
from registry.core.restarts import NS
from registry.core.service import HAS_RUN, UP, Service

END_NS = 2**63 - 1
"""Later than any time of a journal."""

_AFTER_AN_END: tuple[type[ev.Event], ...] = (ev.RestartScheduled, ev.GaveUp, ev.Removed)
_LEADS_TO: dict[type[ev.Event], tuple[type[ev.Event], ...]] = {
    ev.Exited: (ev.GroupEmptied, *_AFTER_AN_END),
    ev.Lost: (ev.GroupEmptied, ev.Adopted, *_AFTER_AN_END),
    ev.GroupEmptied: _AFTER_AN_END,
    ev.SpawnFailed: _AFTER_AN_END,
    ev.RestartScheduled: (ev.RestartDue,),
    ev.ProbeChanged: (ev.BecameHealthy, ev.BecameUnhealthy, ev.BecameReady),
    ev.BecameHealthy: (ev.BecameReady,),
}
"""What the core decides further within one input, by the event before it."""

OF_RUNS_ALONE = (
    ev.SignalRequested
    | ev.ReloadRequested
    | ev.RequestDone
    | ev.OutputEnded
    | ev.MainChanged
    | ev.WatchdogChanged
    | ev.TimeoutExtended
)
"""Facts that no decision of the core turns into a move."""


class Step(msgspec.Struct, frozen=True):
    """Records of one service, or of the registry itself, that one input led to."""

    records: tuple[ev.Record, ...]

    @property
    def root(self) -> ev.Record:
        """The first of them."""
        return self.records[0]

    def first(self, kind: type[Any]) -> Any:
        """The first event of a kind, or None."""
        return next((each.event for each in self.records if isinstance(each.event, kind)), None)


def steps(records: Iterable[ev.Record]) -> Iterator[Step]:
    """The records, divided into what each input led to."""
    part: list[ev.Record] = []
    for record in records:
        if part and not _continues(part[-1], record):
            yield Step(tuple(part))
            part = []
        part.append(record)
    if part:
        yield Step(tuple(part))


def _continues(before: ev.Record, record: ev.Record) -> bool:
    is_next = record.service == before.service and record.decision == before.decision
    follows = isinstance(record.event, _LEADS_TO.get(type(before.event), ()))
    return is_next and follows and record.cause == before.seq


# --- what arrived ---------------------------------------------------------------------------------


def input_of(step: Step, service: Service) -> inp.Input | None:
    """What arrived at `service`, as it was before, and led to this step; None where it is a fact by itself."""
    root, run = step.root, service.run
    event = root.event
    match event:
        case ev.StartRequested():
            return inp.Start(actor=root.actor, reason=_asked(root, Reason.AUTOSTART))
        case (
            ev.RestartRequested(reason=Reason.DEPENDENCY)
            | ev.DependenciesMet()
            | ev.DependentsGone()
        ):
            return inp.Reconsider()
        case ev.RestartRequested():
            return inp.Restart(actor=root.actor, reason=_asked(root, Reason.RESTART_REQUESTED))
        case ev.StopRequested(reason=Reason.REMOVED) | ev.Removed():
            return inp.Remove(actor=root.actor)
        case ev.StopRequested(reason=reason):
            reason = Reason.REQUESTED if reason is Reason.COMPLETED else reason
            return inp.Stop(actor=root.actor, reason=reason)
        case ev.ResetRequested():
            return inp.Reset(actor=root.actor)
        case ev.Spawned():
            return inp.SpawnSucceeded(
                run=root.run or 0, pid=event.pid, start_time=event.start_time, digest=event.digest
            )
        case ev.SpawnFailed():
            return inp.SpawnRefused(run=run + 1, reason=event.reason, message=event.message)
        case ev.BecameReady():
            is_said = service.definition.readiness is Ready.NOTIFY
            return inp.NotifiedReady(run=run) if is_said else inp.GateOpened(run=run)
        case ev.StartTimedOut():
            return inp.StartTimerDue(run=run)
        case ev.StopTimedOut():
            return inp.StopTimerDue(run=run)
        case ev.RestartDue():
            return inp.RestartTimerDue(run=run)
        case ev.StopAnnounced():
            return inp.NotifiedStopping(run=run)
        case ev.TimeoutExtended():
            return inp.NotifiedExtension(run=run, seconds=(event.due_ns - root.mono_ns) / NS)
        case ev.MemoryExceeded():
            return inp.MemoryFound(run=run, bytes=event.bytes)
        case ev.ProbeChanged() | ev.BecameHealthy() | ev.BecameUnhealthy():
            return _probed(step, service)
        case ev.Exited() | ev.Lost():
            return _ended(step, service)
        case ev.GroupEmptied(killed=killed):
            return inp.GroupGone(run=run, killed=killed)
        case ev.Adopted() if (root.run or 0) > run:
            return inp.RunFound(run=root.run or 0, pid=event.pid, start_time=event.start_time or 0)
    return None


def _asked(root: ev.Record, usual: Reason) -> Reason:
    """The reason that was given; who had to wait is journaled as waiting."""
    assert isinstance(root.event, ev.Moved)
    if root.event.reason is not Reason.WAITING:
        return root.event.reason
    if is_required(root):
        return Reason.REQUIRED
    return Reason.REQUESTED if root.actor is not None and usual is Reason.AUTOSTART else usual


def is_required(root: ev.Record) -> bool:
    """Whether a start was asked for because another one needs it."""
    event = root.event
    if not isinstance(event, ev.StartRequested):
        return False
    within = root.cause is not None and root.cause >= root.decision
    return event.reason is Reason.REQUIRED or (event.reason is Reason.WAITING and within)


def _probed(step: Step, service: Service) -> inp.Probed:
    changed = step.first(ev.ProbeChanged)
    well, ill = step.first(ev.BecameHealthy), step.first(ev.BecameUnhealthy)
    name = (changed or well or ill).check
    check = service.definition.check(name)
    error = changed.error if changed else ill.error if ill else None
    ok = well is not None or (changed is not None and changed.ok)
    is_final = ill is not None and check is not None and ill.failures < check.failures
    count = well.successes if well else ill.failures if ill else 1
    ended = changed.ended if changed else None
    return inp.Probed(
        run=service.run, check=name, ok=ok, count=count, error=error, ended=ended, final=is_final
    )


def _ended(step: Step, service: Service) -> inp.Observation:
    event, emptied = step.root.event, step.first(ev.GroupEmptied)
    adopted = step.first(ev.Adopted)
    if adopted is not None:
        return inp.RunFound(
            run=step.records[-1].run or 0, pid=adopted.pid, start_time=adopted.start_time or 0
        )
    killed = emptied.killed if emptied else 0
    if isinstance(event, ev.Lost):
        is_empty = event.group_empty
        return inp.ProcessLost(run=service.run, group_empty=is_empty, killed=killed)
    assert isinstance(event, ev.Exited)
    is_launch = event.source in UP and event.reason in FOR_A_PERSON | PASSING
    return inp.ProcessExited(
        run=service.run,
        exit_code=event.exit_code,
        signal=event.signal,
        group_empty=event.group_empty,
        killed=killed,
        never_ran=event.never_ran,
        launch_failure=event.reason if is_launch else None,
        message=event.message,
        usage=event.usage,
    )


# --- what was seen of each run --------------------------------------------------------------------


class Seen(msgspec.Struct, frozen=True):
    """Something seen `after_ns` since a run began, or since its stop did."""

    after_ns: int
    given: inp.Observation


class Attempt(msgspec.Struct):
    """One spawn, and what was seen of its run: up to its end, or up to `stopped_ns`, when we began to end it for
    `stopped_for`. `after_stop` is how that went. `refused` is why there was no run at all.
    """

    seq: int
    run: int
    begun_ns: int
    definition: Definition
    segment: int
    refused: inp.SpawnRefused | None = None
    seen: list[Seen] = []
    stopped_ns: int | None = None
    stopped_for: str = ""
    after_stop: list[Seen] = []

    @property
    def is_stopped_whole(self) -> bool:
        """Whether it is known how long its stop took."""
        return any(_is_last(each.given) for each in self.after_stop)


def _is_last(given: inp.Observation) -> bool:
    is_end = isinstance(given, inp.ProcessExited | inp.ProcessLost) and given.group_empty
    return is_end or isinstance(given, inp.GroupGone)


class Piece(msgspec.Struct):
    """A check gave this result from `from_ns` until `to_ns`, as far as it was asked; `ok` null: nobody knows."""

    from_ns: int
    to_ns: int
    ok: bool | None
    error: str | None = None


class Script(msgspec.Struct):
    """What is recorded of one service. `results` are those of its checks while it was Running, in order."""

    attempts: list[Attempt] = []
    results: dict[str, list[Piece]] = {}
    segments: dict[int, list[Attempt]] = {}
    places: dict[int, tuple[Attempt, int]] = {}

    def add(self, attempt: Attempt) -> Attempt:
        """Take in the next attempt."""
        segment = self.segments.setdefault(attempt.segment, [])
        self.places[attempt.seq] = (attempt, len(segment))
        segment.append(attempt)
        self.attempts.append(attempt)
        return attempt

    def attempt_at(self, segment: int, position: int) -> Attempt | None:
        """The attempt at a position of a segment, if there was one."""
        found = self.segments.get(segment, [])
        return found[position] if position < len(found) else None

    def segment_after(self, seq: int) -> int:
        """The segment of the next attempt after an event: that of a start which came earlier than recorded."""
        return next((each.segment for each in self.attempts if each.seq > seq), -1)

    def stop_of(self, attempt: Attempt) -> Attempt | None:
        """The attempt of which is known how its stop went: this one, else the last before it, else the next."""
        if attempt.is_stopped_whole:
            return attempt
        at = self.attempts.index(attempt)
        others = (*self.attempts[:at][::-1], *self.attempts[at:])
        return next((each for each in others if each.is_stopped_whole), None)

    def result_at(self, check: str, at_ns: int) -> Piece:
        """What a check gave at a time; `ok` is null between what is recorded of it."""
        pieces = self.results.get(check, [])
        after = bisect_right(pieces, at_ns, key=lambda piece: piece.from_ns)
        if after and at_ns < pieces[after - 1].to_ns:
            return pieces[after - 1]
        next_ns = pieces[after].from_ns if after < len(pieces) else END_NS
        return Piece(pieces[after - 1].to_ns if after else 0, next_ns, None)


def scripts(found: Iterable[Step], begin: Projection) -> dict[str, Script]:
    """What the steps hold of every service; `begin`, which is folded further, is how they found them."""
    reader = _Reader(begin)
    for step in found:
        reader.take(step)
    reader.close()
    return reader.scripts


class _Reader:
    """Folds the steps, and notes what they tell of runs."""

    def __init__(self, begin: Projection) -> None:
        self.scripts: dict[str, Script] = {}
        self._projection = begin
        self._open: dict[str, Attempt] = {}
        self._pieces: dict[tuple[str, str], Piece] = {}
        self._segments: dict[str, int] = {}
        self._now_ns = 0
        for service in begin.services.values():
            self._begin_known(service)
            self._follow_results(service)

    def take(self, step: Step) -> None:
        """Note one step, and fold it."""
        root, name = step.root, step.root.service
        if name is None:
            if isinstance(root.event, ev.RegistryStarted) and root.event.fresh:
                self.close()  # what ran in an earlier boot has no time since it began
            self._now_ns = root.mono_ns
            self._projection.fold(step.records)
            return
        self._now_ns = root.mono_ns
        before = self._projection.services.get(name)
        was = before.state if before is not None else State.STOPPED
        given = input_of(step, before) if before is not None else None
        if is_anchor(root):
            self._segments[name] = root.seq
        if before is not None and given is not None and name in self._open:
            self._note(self._open[name], before, step, given)
        self._projection.fold(step.records)
        service = self._projection.services.get(name)
        if service is None:
            self._forget(name)
            return
        self._begin(service, step, given)
        self._mark_stop(service, was, step)
        self._follow_results(service)

    def close(self) -> None:
        """Nothing that is under way is told of any further."""
        self._open.clear()
        for piece in self._pieces.values():
            piece.to_ns = self._now_ns
        self._pieces.clear()

    def _script(self, name: str) -> Script:
        return self.scripts.setdefault(name, Script())

    def _forget(self, name: str) -> None:
        self._open.pop(name, None)
        for key in [key for key in self._pieces if key[0] == name]:
            self._pieces.pop(key).to_ns = self._now_ns

    def _begin(self, service: Service, step: Step, given: inp.Input | None) -> None:
        match given:
            case inp.SpawnSucceeded() | inp.RunFound():
                self._open[service.name] = self._attempt(service, step.records[-1])
            case inp.SpawnRefused():
                self._attempt(service, step.root).refused = given
            case _ if isinstance(step.root.event, ev.Resynced):
                self._begin_known(service)

    def _attempt(self, service: Service, record: ev.Record) -> Attempt:
        segment = self._segments.get(service.name, 0)
        run, definition = service.run, service.definition
        return self._script(service.name).add(
            Attempt(record.seq, run, record.mono_ns, definition, segment)
        )

    def _begin_known(self, service: Service) -> None:
        """Its run began before what is told of here."""
        if service.pid is None or service.watched_ns is None:
            return
        definition = service.run_definition or service.definition
        segment = self._segments.get(service.name, 0)
        seq, begun_ns = service.spawned_seq or 0, service.watched_ns
        self._open[service.name] = self._script(service.name).add(
            Attempt(seq, service.run, begun_ns, definition, segment)
        )

    def _note(self, attempt: Attempt, before: Service, step: Step, given: inp.Input) -> None:
        if not isinstance(given, _OF_A_RUN):
            return
        if before.state is State.STOPPING and attempt.stopped_ns is not None:
            attempt.after_stop.append(Seen(step.root.mono_ns - attempt.stopped_ns, given))
        elif before.state is not State.RUNNING or not isinstance(given, inp.Probed):
            attempt.seen.append(Seen(step.root.mono_ns - attempt.begun_ns, given))

    def _mark_stop(self, service: Service, was: State, step: Step) -> None:
        event, attempt = step.root.event, self._open.get(service.name)
        if attempt is None or isinstance(event, ev.Spawned):
            return
        is_ours = not isinstance(event, ev.Exited | ev.Lost)
        if was in UP and service.state is State.STOPPING and is_ours:
            attempt.stopped_ns = step.root.mono_ns
            attempt.stopped_for = service.bound_reason.value
        if service.state not in HAS_RUN:
            self._open.pop(service.name, None)

    def _follow_results(self, service: Service) -> None:
        is_asked = service.state is State.RUNNING and service.ending_ns is None
        if not is_asked:
            self._end_pieces(service.name)
            return
        for check in service.definition.checks:
            known = service.checks.get(check.name)
            ok, error = (known.ok, known.error) if known is not None else (None, None)
            piece = self._pieces.get((service.name, check.name))
            if piece is None or piece.ok is not ok:
                self._begin_piece(service.name, check.name, ok, error)

    def _begin_piece(self, name: str, check: str, ok: bool | None, error: str | None) -> None:
        if before := self._pieces.get((name, check)):
            before.to_ns = self._now_ns
        piece = Piece(self._now_ns, END_NS, ok, error)
        self._pieces[name, check] = piece
        self._script(name).results.setdefault(check, []).append(piece)

    def _end_pieces(self, name: str) -> None:
        for key in [key for key in self._pieces if key[0] == name]:
            self._pieces.pop(key).to_ns = self._now_ns


_OF_A_RUN = (
    inp.GateOpened
    | inp.NotifiedReady
    | inp.NotifiedStopping
    | inp.NotifiedExtension
    | inp.MemoryFound
    | inp.Probed
    | inp.ProcessExited
    | inp.ProcessLost
    | inp.GroupGone
)
"""What is seen of a process, whatever the registry does."""


def is_anchor(root: ev.Record) -> bool:
    """Whether somebody asked for a run, so that the runs that follow are told by their place after it."""
    event = root.event
    is_followed = isinstance(event, ev.RestartRequested) and event.reason is Reason.DEPENDENCY
    asks = isinstance(event, ev.StartRequested | ev.RestartRequested | ev.Defined)
    return asks and not is_followed
