"""What if other definitions had been in force: the recorded observations, decided again by the core under those.

Law 1: every decision is made by the core; here is only what arrives, and when. Law 2: a service that goes as
recorded is handed what was recorded, step by step, so that the same definitions give the same decisions. Law 3: what
rests on what the journal does not hold is unknown, until something recorded makes it known again. Pure: no clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from functools import partial
from itertools import count
from typing import Any

import msgspec

from registry.core import events as ev
from registry.core import inputs as inp
from registry.core.decision import Place, decide
from registry.core.definition import Check, Definition, Dependency, Ready
from registry.core.dependencies import Around, Graph, around, needs
from registry.core.duties import Timer, duties
from registry.core.lifecycle import Reason, State
from registry.core.projection import Projection
from registry.core.restarts import NS
from registry.core.service import HAS_RUN, Service, evolve
from registry.questions.likeness import (
    Tally,
    can_end_a_run,
    failed,
    is_asked_alike,
    is_idle,
    is_known,
    stopping,
    strange,
    up,
)
from registry.questions.partings import Answer, Course, Row, Side, add, is_down, told
from registry.questions.recorded import (
    OF_RUNS_ALONE,
    Attempt,
    Piece,
    Script,
    Seen,
    Step,
    input_of,
    is_anchor,
    is_required,
    scripts,
    steps,
)
from registry.questions.waiting import waiting_for

SCALE = 1 << 20
"""Recorded numbers are this far apart, so that what is decided here has its place between them."""
AS_RECORDED_NS = 250_000_000
"""A run, or a timer, that is no further from the recorded one counts as that."""
LOOK_NS, LOOK_IN_STEP_NS = 5_000_000, 100_000_000
"""So long after a neighbour moved a service looks at it, where the recording does not say when: a commit takes time.
One that is in step has this longer: the recording may still say it.
"""

Declared = Callable[[Definition], Definition | None]
"""What is declared instead of a recorded definition; None is that the service is not."""


def as_recorded(definition: Definition) -> Definition:
    """What was declared, declared again."""
    return definition


def instead(definitions: Iterable[Definition]) -> Declared:
    """These, all the time. Values of variables are in no journal, so they are taken to be as they were."""
    wanted = {each.name: each for each in definitions}

    def declared(recorded: Definition) -> Definition | None:
        other = wanted.get(recorded.name)
        if other is None:
            return None
        digest = recorded.env_digest if other.env_names == recorded.env_names else other.env_digest
        return msgspec.structs.replace(other, env_digest=digest)

    return declared


def what_if(
    records: Sequence[ev.Record],
    declared: Declared = as_recorded,
    added: Iterable[Definition] = (),
    begin: Projection | None = None,
) -> Answer:
    """Decide again what `records` tell of, from `begin` on, under what is `declared` instead, and compare.

    `added` are services of which the journal does not tell. Neither `records` nor `begin` are changed.
    """
    found = list(steps(_scaled(record) for record in records))
    start = begin or Projection()
    script = scripts(found, _copied(start))
    return _Driver(_copied(start), script, declared, added).play(found)


def _scaled(record: ev.Record) -> ev.Record:
    cause = record.cause * SCALE if record.cause is not None else None
    seq, decision = record.seq * SCALE, record.decision * SCALE
    return msgspec.structs.replace(record, seq=seq, cause=cause, decision=decision)


def _copied(projection: Projection) -> Projection:
    services = {name: _clone(each) for name, each in projection.services.items()}
    for service in services.values():
        if service.spawned_seq is not None:
            service.spawned_seq *= SCALE
    last_runs = dict(projection.last_runs)
    return msgspec.structs.replace(projection, services=services, last_runs=last_runs)


def _clone(service: Service) -> Service:
    clone = copy(service)
    clone.checks = {name: copy(state) for name, state in service.checks.items()}
    return clone


# --- the course of one service ----------------------------------------------------------------------


class _Course:
    """How one service goes: in step with the recording, its own way, or nobody knows."""

    def __init__(self, name: str, script: Script, now_ns: int) -> None:
        self.script = script
        self.in_step = True
        self.unknown = ""
        self.pin = ""
        """What of the recording will make it known again: that it rests, or its next run."""
        self.attempt: Attempt | None = None
        self.segment = 0
        self.position = 0
        self.offset_ns = 0
        self.stop_of: int | None = None
        """The run whose stop is under way."""
        self.generation = 0
        self.tallies: dict[str, Tally] = {}
        self.counted_ns = now_ns
        self.sums = Course(name, Side(), Side())

    def stands_for(self, seq: int) -> None:
        """Its present run, or its last attempt at one, is that of this number."""
        if (place := self.script.places.get(seq)) is not None:
            attempt, position = place
            self.segment, self.position = attempt.segment, position + 1
            if attempt.refused is None:
                self.attempt, self.offset_ns = attempt, 0


class _Driver:
    """Goes through the recording, and lets what would have been otherwise happen in between."""

    def __init__(
        self,
        begin: Projection,
        script: dict[str, Script],
        declared: Declared,
        added: Iterable[Definition],
    ) -> None:
        self._recorded = begin
        self._scripts = script
        self._declared = declared
        self._services: dict[str, Service] = {}
        self._graph = Graph()
        self._odd: set[str] = set()
        """Services whose neighbours are declared otherwise."""
        self._courses: dict[str, _Course] = {}
        self._rows: list[Row] = []
        self._queue: list[tuple[int, int, str, int, Callable[[], None]]] = []
        self._orders = count()
        self._now = ev.Now(0, 0)
        self._seq = begin.seq * SCALE
        self._required: tuple[int, dict[str, None]] = (0, {})
        """What those need whom a decision starts."""
        self._redefined: tuple[int, set[str]] = (0, set())
        """What a decision has declared anew."""
        self._added = {each.name: each for each in added}

    # --- the recording ----------------------------------------------------------------------------

    def play(self, found: Sequence[Step]) -> Answer:
        """Go through it; the comparison."""
        if found:
            first = found[0].root
            self._now = ev.Now(first.at_ns, first.mono_ns)
        from_ns = self._now.at_ns
        self._begin()
        for step in found:
            if step.root.service is None:
                self._registry_step(step)
            else:
                self._start_required(step.root.decision)
                self._go_on_to(step.root)
                self._service_step(step)
        self._start_required(0)
        self._play_until(self._now.mono_ns)
        for name in self._courses:
            self._add_up(name)
        courses = tuple(course.sums for course in self._courses.values())
        return Answer(from_ns, self._now.at_ns, courses, tuple(self._rows))

    def _begin(self) -> None:
        for name, service in self._recorded.services.items():
            course = self._course(name)
            course.sums.recorded.declared = True
            definition = self._declared(service.definition)
            if definition is None:
                continue
            self._services[name] = mine = _clone(service)
            if definition != service.definition:
                mine.definition, mine.run_definition = definition, None
            self._declare(mine)
            course.stands_for(service.spawned_seq or 0)
        for definition in self._added.values():
            course = self._course(definition.name)
            self._services[definition.name] = Service(definition=definition)
            self._declare(self._services[definition.name])
            if definition.autostart:
                self._lose(definition.name, "it is new: the journal tells of no run of it")
            else:
                course.in_step = False
        for name in list(self._services):
            self._doubt_program(name)
            self._arm(name)

    def _course(self, name: str) -> _Course:
        if name not in self._courses:
            script = self._scripts.get(name) or Script()
            self._courses[name] = _Course(name, script, self._now.mono_ns)
        return self._courses[name]

    def _declare(self, service: Service) -> None:
        """Note who its neighbours are, and whether they are others than recorded."""
        name = service.name
        self._courses[name].sums.what_if.declared = True
        self._graph.declare(service.definition)
        recorded = self._recorded.services.get(name)
        theirs = recorded.definition.depends_on if recorded is not None else ()
        mine = service.definition.depends_on
        concerned = {name, *_names(theirs), *_names(mine)}
        self._odd = self._odd | concerned if mine != theirs else self._odd - {name}

    def _registry_step(self, step: Step) -> None:
        root = step.root
        if not isinstance(root.event, ev.RegistryStarted):
            self._go_on_to(root)
            self._recorded.fold(step.records)
            return
        for name in self._courses:
            self._add_up(name)
        if root.event.fresh:
            self._queue.clear()
        self._set_now(root)  # what would have come while nobody watched comes now
        for course in self._courses.values():
            course.counted_ns = root.mono_ns
        self._recorded.fold(step.records)
        for name, service in list(self._services.items()):
            evolve(service, root)
            course = self._courses[name]
            if root.event.fresh and not course.in_step and name in self._recorded.services:
                self._join(name, "the registry began anew")
            elif not course.in_step and not course.unknown and service.pid is not None:
                self._take(name, inp.ProcessFound(run=service.run, pid=service.pid))

    def _go_on_to(self, root: ev.Record) -> None:
        self._play_until(root.mono_ns)
        self._set_now(root)

    def _set_now(self, root: ev.Record) -> None:
        self._now = ev.Now(root.at_ns, root.mono_ns)
        self._seq = max(self._seq, root.seq)

    def _service_step(self, step: Step) -> None:
        root, name = step.root, step.root.service
        assert name is not None
        before = self._recorded.services.get(name)
        given = input_of(step, before) if before is not None else None
        old = before.definition if before is not None else None
        course = self._course(name)
        self._add_up(name)
        for record in step.records:
            add(course.sums.recorded, record)
            if course.unknown:
                add(course.sums.meanwhile, record)
        self._recorded.fold(step.records)
        if self._redefined[0] != root.decision:
            self._redefined = (root.decision, set())
        if isinstance(root.event, ev.Defined | ev.Redefined):
            if isinstance(root.event, ev.Redefined) and old is not None and before is not None:
                self._redefined[1].update({name} if before.state is State.FAILED else ())
            self._define(name, step)
        elif name not in self._services:
            self._tell(name, step)
        elif course.unknown:
            self._unknown_step(name, step)
        elif why := self._is_killed_too_early(name, given, old):
            self._tell(name, step)
            self._lose(name, why)
        elif course.in_step:
            self._step_along(name, step, self._as_declared(name, given, old))
        else:
            self._own_step(name, step, self._as_declared(name, given, old))
        if name not in self._recorded.services and course.unknown:
            self._forget(name)

    # --- definitions --------------------------------------------------------------------------------

    def _define(self, name: str, step: Step) -> None:
        event: Any = step.root.event
        course = self._courses[name]
        course.sums.recorded.declared = True
        definition = self._declared(event.definition)
        if definition is None:
            self._tell(name, step)
            return
        recorded = self._recorded.services[name]
        if name not in self._services:
            runs = recorded.run
            self._services[name] = Service(definition=definition, run=runs)
            course.in_step, course.unknown, course.pin = True, "", ""
        digest = event.digest if definition == event.definition else "other"
        define = inp.Define(definition=definition, digest=digest)
        service = self._services[name]
        records = decide(service, define, self._place(service))
        self._seq += len(records)
        if is_anchor(step.root):
            course.segment, course.position = step.root.seq, 0
        self._declare(service)
        self._after(name)

    def _as_declared(
        self, name: str, given: inp.Input | None, old: Definition | None
    ) -> inp.Input | None:
        """What arrives, where that depends on what is declared: `autostart`, and what checks there are."""
        service = self._services[name]
        if isinstance(given, inp.Start) and name in self._redefined[1]:
            return msgspec.structs.replace(given, reason=Reason.REDEFINED)
        if isinstance(given, inp.Start | inp.Stop) and given.reason is Reason.AUTOSTART:
            kind = inp.Start if service.definition.autostart else inp.Stop
            return kind(actor=given.actor, reason=Reason.AUTOSTART)
        if isinstance(given, inp.Probed) and old is not None:
            return self._as_checked(name, given, old)
        return given

    def _as_checked(self, name: str, given: inp.Probed, old: Definition) -> inp.Probed | None:
        service, course = self._services[name], self._courses[name]
        mine, theirs = service.definition.check(given.check), old.check(given.check)
        if mine is None or theirs is None or mine.target != theirs.target:
            return None
        if service.state is not State.RUNNING or mine == theirs or not course.in_step:
            return given
        if not is_asked_alike(mine, theirs):
            return None
        tally = course.tallies.setdefault(mine.name, Tally())
        tally.ok, tally.sure = given.ok, given.count
        tally.maybe = 0 if given.ok else given.count
        self._ask_next(name, mine)
        return given

    def _doubt_program(self, name: str) -> None:
        """Its run is of another program than the recorded one: nobody knows what that does."""
        service, course = self._services[name], self._courses[name]
        if service.pid is None or course.attempt is None or course.unknown:
            return
        if keys := strange(course.attempt.definition, service.definition):
            self._lose(
                name,
                f"{' and '.join(keys)} not as its recorded run had it: how that runs is not recorded",
            )

    # --- in step with the recording -------------------------------------------------------------------

    def _step_along(self, name: str, step: Step, given: inp.Input | None) -> None:
        """Hand in what was handed in; where the core decides the same, it goes as recorded."""
        root, service, course = step.root, self._services[name], self._courses[name]
        if isinstance(root.event, OF_RUNS_ALONE | ev.Resynced) or _is_adoption(root, given):
            self._fold(name, step)
            if isinstance(root.event, ev.Resynced):
                course.stands_for(root.seq)
            return
        if is_required(root) and not self._is_required(root):
            given = None
        trial = service
        decided: list[ev.Record] = []
        if given is not None:
            outcome = self._decide(name, given)
            if outcome is None:
                self._lose_with(name, step)
                return
            trial, decided = outcome
        is_anchored = is_anchor(root) and bool(decided)
        if is_anchored:
            course.segment, course.position = root.seq, 0
        if told(decided) == told(step.records):
            self._go_along(name, step, trial, decided)
        else:
            self._part(name, step, trial, decided)
        self._note_required(name, root, given)
        if name in self._services:
            self._after(name)

    def _go_along(self, name: str, step: Step, trial: Service, decided: list[ev.Record]) -> None:
        course, root = self._courses[name], step.root
        if [type(each.event) for each in decided] == [type(each.event) for each in step.records]:
            self._fold(name, step)
        else:
            self._services[name] = trial
        for record in step.records:
            add(course.sums.what_if, record)
        last = step.records[-1]
        if isinstance(last.event, ev.Spawned | ev.SpawnFailed | ev.Adopted):
            course.stands_for(last.seq)
        elif isinstance(root.event, ev.SpawnFailed):
            course.stands_for(root.seq)
        if isinstance(last.event, ev.Removed):
            self._forget(name)
            return
        if isinstance(last.event, ev.Spawned):
            self._begin_run(name)
        if isinstance(last.event, ev.BecameReady):
            self._ask_all(name)

    def _fold(self, name: str, step: Step) -> None:
        service = self._services[name]
        definition, digest = service.definition, service.digest
        for record in step.records:
            evolve(service, record)
        if isinstance(step.root.event, ev.Resynced):
            service.definition, service.digest = definition, digest

    def _part(self, name: str, step: Step, trial: Service, decided: list[ev.Record]) -> None:
        """From here on it goes its own way."""
        self._take_over(name, trial, decided)
        self._tell(name, step, decided)
        self._leave(name)

    def _leave(self, name: str) -> None:
        course = self._courses[name]
        if name not in self._services or course.unknown:
            return
        course.in_step = False
        if self._services[name].pid is not None or self._services[name].state is State.STOPPING:
            self._follow(name)
        self._perform(name)

    # --- its own way ----------------------------------------------------------------------------------

    def _own_step(self, name: str, step: Step, given: inp.Input | None) -> None:
        """Only what is asked for reaches it; what was seen belongs to runs that it may not have."""
        root, course = step.root, self._courses[name]
        decided: list[ev.Record] = []
        if is_required(root) and not self._is_required(root):
            given = None
        if isinstance(given, inp.Start | inp.Stop | inp.Restart | inp.Reset | inp.Remove):
            outcome = self._decide(name, given)
            if outcome is None:
                self._lose_with(name, step)
                return
            trial, decided = outcome
            if decided and is_anchor(root):
                course.segment, course.position = root.seq, 0
            self._take_over(name, trial, decided)
            self._note_required(name, root, given)
        self._tell(name, step, decided)
        self._perform(name)
        self._after(name)

    def _take(self, name: str, given: inp.Input) -> None:
        """Hand in what is not recorded as such; a service in step that is moved by it leaves the recording."""
        outcome = self._decide(name, given)
        if outcome is None:
            self._lose(name, "it depends on what is unknown")
            return
        trial, decided = outcome
        if not decided:
            return
        course = self._courses[name]
        was_in_step = course.in_step
        self._add_up(name)
        self._take_over(name, trial, decided)
        if told(decided):
            self._show(name, (), decided)
            if was_in_step:
                self._leave(name)
            else:
                self._perform(name)
        if name in self._services:
            self._after(name)

    def _take_over(self, name: str, trial: Service, decided: list[ev.Record]) -> None:
        self._services[name] = trial
        self._seq += len(decided)
        for record in decided:
            add(self._courses[name].sums.what_if, record)
        if decided and isinstance(decided[-1].event, ev.Removed):
            self._forget(name)
        elif any(isinstance(each.event, ev.BecameReady) for each in decided):
            self._ask_all(name)

    def _perform(self, name: str) -> None:
        """What its state asks for: a run that stands for a recorded one, or the end of one."""
        course = self._courses[name]
        while name in self._services and not course.unknown and not course.in_step:
            service = self._services[name]
            run = duties(service).spawn
            if run is None:
                break
            attempt = course.script.attempt_at(course.segment, course.position)
            if attempt is None:
                self._lose(name, "it would have begun a run for which none is recorded")
                return
            course.position += 1
            self._spawn(name, run, attempt)
        if name in self._services and not course.unknown and not course.in_step:
            self._stop_run(name)

    def _spawn(self, name: str, run: int, attempt: Attempt) -> None:
        course, service = self._courses[name], self._services[name]
        if attempt.refused is not None:
            given: inp.Observation = msgspec.structs.replace(attempt.refused, run=run)
        else:
            given = inp.SpawnSucceeded(run=run, pid=1, start_time=None, digest=service.digest)
        outcome = self._decide(name, given)
        assert outcome is not None, "a spawn is nobody else's business"
        trial, decided = outcome
        self._take_over(name, trial, decided)
        if attempt.refused is not None:
            self._show(name, (), decided)
            return
        course.attempt, course.offset_ns = attempt, self._now.mono_ns - attempt.begun_ns
        self._follow(name)
        self._begin_run(name)

    def _begin_run(self, name: str) -> None:
        """What is to be known of a new run, and whether it is."""
        self._doubt_program(name)
        service, course = self._services[name], self._courses[name]
        if course.unknown or course.attempt is None:
            return
        theirs, mine = course.attempt.definition, service.definition
        if mine.readiness is Ready.SPAWN and theirs.readiness is not Ready.SPAWN:
            self._later(1_000_000, name, lambda: self._take(name, inp.GateOpened(run=service.run)))
        unseen = [each.name for each in mine.checks if not is_known(each, theirs)]
        if mine.readiness is Ready.HEALTH and unseen:
            self._lose(name, f"it would be ready by its check {unseen[0]}, which nobody asked then")

    def _follow(self, name: str) -> None:
        """What was seen of the recorded run comes to this one as long after it began."""
        course, service = self._courses[name], self._services[name]
        attempt = course.attempt
        if attempt is None:
            return
        begun_ns = attempt.begun_ns + course.offset_ns
        run = service.run
        for seen in attempt.seen:
            if begun_ns + seen.after_ns > self._now.mono_ns or course.offset_ns:
                self._see(name, run, begun_ns, seen)
        if attempt.stopped_ns is not None:
            known_ns = max(attempt.stopped_ns, attempt.stopped_ns + course.offset_ns)
            why = f"its run {attempt.run} was stopped then ({attempt.stopped_for}), and this one goes on"
            self._at(known_ns, name, lambda: self._outlive(name, run, why))
        if service.state is State.RUNNING:
            self._ask_all(name)

    def _see(self, name: str, run: int, begun_ns: int, seen: Seen) -> None:
        given = msgspec.structs.replace(seen.given, run=run)
        self._at(begun_ns + seen.after_ns, name, lambda: self._seen(name, given))

    def _seen(self, name: str, given: inp.Observation) -> None:
        service, course = self._services[name], self._courses[name]
        if isinstance(given, inp.Probed):
            is_asked = course.attempt is not None and service.state is State.STARTING
            mine = service.definition.check(given.check)
            if not is_asked or mine is None or not is_known(mine, course.attempt.definition):  # type: ignore[union-attr]
                return
        self._take(name, given)

    def _outlive(self, name: str, run: int, why: str) -> None:
        service = self._services[name]
        if service.run == run and service.pid is not None and service.state is not State.STOPPING:
            self._lose(name, why)

    def _stop_run(self, name: str) -> None:
        """A run that is to end takes as long for it as it took, or as another one did."""
        course, service = self._courses[name], self._services[name]
        duty, run = duties(service).stop, service.run
        if duty is None or course.stop_of == run:
            return
        course.stop_of = run
        self._at(duty.kill_due_ns, name, lambda: self._kill(name, run))
        if service.pid is None:
            return  # its main process has ended: that the rest does is seen of the run
        like = course.script.stop_of(course.attempt) if course.attempt is not None else None
        if like is None:
            self._lose(name, "it would have been stopped, and how long that takes is not recorded")
            return
        for seen in like.after_stop:
            if isinstance(seen.given, inp.GroupGone) and seen.given.killed:
                self._bear_longer(name, run, like)
            self._see(name, run, self._now.mono_ns, seen)

    def _is_killed_too_early(
        self, name: str, given: inp.Input | None, old: Definition | None
    ) -> str:
        """Why it is not known how a stop goes on: the recorded run was killed, and this one has more time."""
        is_killed = isinstance(given, inp.ProcessExited | inp.ProcessLost | inp.GroupGone)
        service = self._services[name]
        if old is None or not is_killed or not given.killed or not self._courses[name].in_step:  # type: ignore[union-attr]
            return ""
        mine, theirs = service.definition.stop.timeout_s, old.stop.timeout_s
        return _killed_after(theirs, mine) if mine > theirs else ""

    def _bear_longer(self, name: str, run: int, like: Attempt) -> None:
        """It was killed after its stop timeout: with a longer one nobody knows when it would have ended."""
        mine = self._services[name].definition.stop.timeout_s
        theirs = like.definition.stop.timeout_s
        if mine > theirs:
            why = _killed_after(theirs, mine)
            self._later(int(theirs * NS) - 1, name, lambda: self._outlive_stop(name, run, why))

    def _outlive_stop(self, name: str, run: int, why: str) -> None:
        service = self._services[name]
        if service.run == run and service.state is State.STOPPING:
            self._lose(name, why)

    def _kill(self, name: str, run: int) -> None:
        service = self._services[name]
        if service.run != run or service.state is not State.STOPPING:
            return
        due = duties(service).stop
        if due is not None and due.kill_due_ns > self._now.mono_ns:
            self._at(due.kill_due_ns, name, lambda: self._kill(name, run))
        elif service.pid is not None:
            self._take(name, inp.ProcessExited(run=run, signal=9, killed=1))
        else:
            self._take(name, inp.GroupGone(run=run, killed=1))

    # --- checks ---------------------------------------------------------------------------------------

    def _ask_all(self, name: str) -> None:
        """Its checks are asked from now on, where the recording does not say what they find."""
        course, service = self._courses[name], self._services[name]
        recorded = self._recorded.services.get(name)
        theirs = recorded.definition if recorded is not None else None
        for check in service.definition.checks:
            known = theirs.check(check.name) if theirs is not None else None
            if course.in_step and known is not None and is_asked_alike(check, known):
                continue
            tally = course.tallies.setdefault(check.name, Tally())
            state = service.checks.get(check.name)
            if tally.ok is not (state.ok if state is not None else None):
                tally.ok, tally.sure, tally.maybe = None, 0, 0
            self._ask_next(name, check)

    def _ask_next(self, name: str, check: Check) -> None:
        """When it is asked next, and what it finds: what was found at that time of day."""
        course, service = self._courses[name], self._services[name]
        tally = course.tallies[check.name]
        tally.round += 1
        interval_ns = int(check.interval_s * NS)
        at_ns = self._now.mono_ns + interval_ns
        result = self._result(name, check, at_ns)
        while result.to_ns < _FOR_EVER_NS and is_idle(tally, check, service, result):
            at_ns += -(-(result.to_ns - at_ns) // interval_ns) * interval_ns
            result = self._result(name, check, at_ns)
        if is_idle(tally, check, service, result):
            return
        run, number = service.run, tally.round
        self._at(at_ns, name, lambda: self._asked(name, check, run, number, result))

    def _result(self, name: str, check: Check, at_ns: int) -> Piece:
        script = self._scripts.get(name)
        piece = script.result_at(check.name, at_ns) if script is not None else _NEVER
        course = self._courses[name]
        theirs = course.attempt.definition.check(check.name) if course.attempt is not None else None
        if theirs is None or theirs.target != check.target:
            return _NEVER
        is_doubtful = check.timeout_s < theirs.timeout_s if piece.ok else False
        if piece.ok is False and check.timeout_s > theirs.timeout_s:
            is_doubtful = "timed out" in (piece.error or "")
        return msgspec.structs.replace(piece, ok=None) if is_doubtful else piece

    def _asked(self, name: str, check: Check, run: int, number: int, result: Piece) -> None:
        course, service = self._courses[name], self._services[name]
        tally = course.tallies[check.name]
        is_over = service.run != run or service.state is not State.RUNNING
        if is_over or service.ending_ns is not None or tally.round != number:
            return
        tally.sure = (
            tally.sure + 1 if tally.ok is result.ok is not None else int(result.ok is not None)
        )
        tally.maybe = 0 if result.ok else tally.maybe + 1
        tally.ok = result.ok
        if result.ok is not None:
            self._take(
                name,
                inp.Probed(
                    run=run, check=check.name, ok=result.ok, count=tally.sure, error=result.error
                ),
            )
        if name not in self._services or course.unknown or service.run != run:
            return
        if tally.maybe >= check.failures > tally.sure and can_end_a_run(check):
            self._lose(name, f"what its check {check.name} would have found is not recorded")
        elif self._services[name].state is State.RUNNING and tally.round == number:
            self._ask_next(name, check)

    # --- what nobody knows ------------------------------------------------------------------------------

    def _lose(self, name: str, why: str) -> None:
        """From here on its course is unknown."""
        course = self._courses[name]
        if course.unknown:
            return
        self._add_up(name)
        course.in_step, course.unknown, course.pin = False, why, ""
        course.sums.unknown = why
        course.generation += 1
        self._rows.append(Row(self._now.at_ns, name, state="unknown", note=f"unknown: {why}"))
        self._after(name)

    def _lose_with(self, name: str, step: Step) -> None:
        self._tell(name, step)
        self._lose(name, "it depends on what is unknown")

    def _unknown_step(self, name: str, step: Step) -> None:
        """What was asked for may make it known again: a stop once it rests, a restart with its next run."""
        root, course = step.root, self._courses[name]
        recorded = self._recorded.services.get(name)
        self._tell(name, step)
        event = root.event
        if isinstance(event, ev.StopRequested):
            course.pin = "rest"
        elif _is_anew(event) or (isinstance(event, ev.StartRequested) and course.pin == "rest"):
            course.pin = "run"
        if recorded is None:
            return
        same = not strange(recorded.definition, self._services[name].definition)
        if course.pin == "rest" and recorded.state in (State.STOPPED, State.FAILED):
            self._join(name, "it was stopped")
        elif course.pin == "run" and isinstance(event, ev.Spawned) and same:
            self._join(name, "it was started anew")

    def _join(self, name: str, why: str) -> None:
        """It is where the recording has it: from here on in step."""
        self._add_up(name)
        course, mine = self._courses[name], self._services[name]
        recorded = self._recorded.services[name]
        self._services[name] = joined = _clone(recorded)
        joined.definition, joined.digest = mine.definition, mine.digest
        if not course.unknown:
            joined.attempt, joined.restart_times_ns = mine.attempt, mine.restart_times_ns
        if mine.definition != recorded.definition:
            joined.run_definition = None
        was_unknown = bool(course.unknown)
        course.in_step, course.unknown, course.pin, course.stop_of = True, "", "", None
        course.generation += 1
        course.stands_for(recorded.spawned_seq or 0)
        note = f"known again: {why}" if was_unknown else "as recorded again"
        self._rows.append(Row(self._now.at_ns, name, state=self._state(name), note=note))
        if mine.definition != recorded.definition:
            self._doubt_program(name)
        if joined.state is State.RUNNING and not course.unknown:
            self._ask_all(name)
        self._after(name)

    def _is_as_recorded(self, name: str) -> bool:
        mine, recorded = self._services[name], self._recorded.services.get(name)
        if recorded is None:
            return False
        if any(getattr(mine, field) != getattr(recorded, field) for field in _SAME):
            return False
        if mine.state is State.STOPPING and mine.bound is not recorded.bound:
            return False
        if (mine.pid is None) is not (recorded.pid is None):
            return False
        if mine.state in HAS_RUN and (mine.pid is not None or mine.state is State.STOPPING):
            course = self._courses[name]
            same = course.attempt is not None and course.attempt.run == recorded.run
            return same and abs(course.offset_ns) <= AS_RECORDED_NS and _is_near(mine, recorded)
        if mine.state is State.RESTARTING:
            due_ns = (mine.restart_due_ns or 0) - (recorded.restart_due_ns or 0)
            return abs(due_ns) <= AS_RECORDED_NS
        return mine.state is not State.STARTING

    def _forget(self, name: str) -> None:
        """It is declared no more."""
        self._services.pop(name, None)
        self._graph.forget(name)
        self._courses[name].unknown = ""
        self._courses[name].generation += 1

    # --- neighbours -------------------------------------------------------------------------------------

    def _after(self, name: str) -> None:
        """It moved: its timer is set, whoever it concerns looks at it."""
        course = self._courses[name]
        if name in self._services and not course.unknown:
            if not course.in_step and self._is_as_recorded(name):
                self._join(name, "")
                return
            self._arm(name)
        for each in self._graph.neighbours(name, self._services):
            if self._looks_itself(each):
                after_ns = LOOK_IN_STEP_NS if self._courses[each].in_step else LOOK_NS
                self._later(after_ns, each, partial(self._look, each))

    def _looks_itself(self, name: str) -> bool:
        """Whether the recording does not say when it looks at its neighbours."""
        course = self._courses.get(name)
        if course is None or name not in self._services or course.unknown:
            return False
        neighbours = self._graph.neighbours(name, self._services)
        return (
            not course.in_step
            or name in self._odd
            or any(not self._courses[each].in_step for each in neighbours if each in self._courses)
        )

    def _look(self, name: str) -> None:
        if self._looks_itself(name):
            self._take(name, inp.Reconsider())

    def _note_required(self, name: str, root: ev.Record, given: inp.Input | None) -> None:
        """Who was asked for starts what it needs."""
        if not isinstance(given, inp.Start | inp.Restart) or is_required(root):
            return
        is_asked = given.actor is not None or given.reason is Reason.AUTOSTART
        service = self._services.get(name)
        if (
            not is_asked
            or given.reason is Reason.REDEFINED
            or service is None
            or not service.wanted
        ):
            return
        found = dict.fromkeys(each.name for each in needs(service, self._services))
        decision, before = self._required
        self._required = (root.decision, {**(before if decision == root.decision else {}), **found})

    def _is_required(self, root: ev.Record) -> bool:
        decision, names = self._required
        if decision != root.decision:
            return True
        return names.pop(root.service or "", 0) is None

    def _start_required(self, decision: int) -> None:
        """What was needed in an earlier decision, and what the recording did not start."""
        before, names = self._required
        if before == decision:
            return
        self._required = (0, {})
        for name in names:
            course = self._courses[name]
            if not course.unknown and name in self._services:
                course.segment, course.position = course.script.segment_after(self._seq), 0
                self._take(name, inp.Start(reason=Reason.REQUIRED))

    # --- deciding ---------------------------------------------------------------------------------------

    def _decide(self, name: str, given: inp.Input) -> tuple[Service, list[ev.Record]] | None:
        """What the core decides of a copy; None where that hangs on neighbours of whom nothing is known."""
        service = self._services[name]
        outcomes: dict[Any, tuple[Service, list[ev.Record]]] = {}
        for neighbours in self._arounds(service):
            trial = _clone(service)
            records = decide(trial, given, self._place(trial, neighbours))
            outcomes.setdefault(told(records), (trial, records))
        return next(iter(outcomes.values())) if len(outcomes) == 1 else None

    def _place(self, service: Service, neighbours: Around | None = None) -> Place:
        if neighbours is None:
            neighbours = around(service, self._services, self._graph)
        return Place(self._now, self._seq + 1, self._recorded.journal_id, None, neighbours)

    def _arounds(self, service: Service) -> Iterator[Around]:
        near = [*self._graph.neighbours(service.name, self._services)]
        unknown = [each for each in near if each in self._courses and self._courses[each].unknown]
        if not unknown:
            yield around(service, self._services, self._graph)
            return
        for guess in (up, failed, stopping):
            guessed = {each: guess(self._services[each], self._seq) for each in unknown}
            yield around(service, {**self._services, **guessed}, self._graph)

    # --- time -------------------------------------------------------------------------------------------

    def _at(self, at_ns: int, name: str, happen: Callable[[], None]) -> None:
        generation = self._courses[name].generation
        heapq.heappush(self._queue, (at_ns, next(self._orders), name, generation, happen))

    def _later(self, after_ns: int, name: str, happen: Callable[[], None]) -> None:
        self._at(self._now.mono_ns + after_ns, name, happen)

    def _play_until(self, mono_ns: int) -> None:
        while self._queue and self._queue[0][0] < mono_ns:
            due_ns, _order, name, generation, happen = heapq.heappop(self._queue)
            course = self._courses[name]
            if generation != course.generation or course.unknown or name not in self._services:
                continue
            if due_ns > self._now.mono_ns:
                passed_ns = due_ns - self._now.mono_ns
                self._now = ev.Now(self._now.at_ns + passed_ns, due_ns)
            happen()

    def _arm(self, name: str) -> None:
        timer = duties(self._services[name]).timer
        if timer is not None and not self._is_recorded(name, timer):
            self._at(timer.due_ns, name, lambda: self._timer_due(name, timer))
        duty, run = duties(self._services[name]).stop, self._services[name].run
        recorded = self._recorded.services.get(name)
        if duty is None or recorded is None or not self._courses[name].in_step:
            return
        if duties(recorded).stop != duty:
            self._at(duty.kill_due_ns, name, lambda: self._kill(name, run))

    def _timer_due(self, name: str, timer: Timer) -> None:
        present = duties(self._services[name]).timer
        if present == timer and not self._is_recorded(name, timer):
            self._take(name, timer.due)

    def _is_recorded(self, name: str, timer: Timer) -> bool:
        """Whether the recording says when this timer was due."""
        recorded = self._recorded.services.get(name)
        return (
            self._courses[name].in_step and recorded is not None and duties(recorded).timer == timer
        )

    # --- what is told -----------------------------------------------------------------------------------

    def _tell(self, name: str, step: Step, decided: Sequence[ev.Record] = ()) -> None:
        self._show(name, step.records, decided)

    def _show(self, name: str, recorded: Sequence[ev.Record], decided: Sequence[ev.Record]) -> None:
        if told(recorded) or told(decided):
            state = self._state(name)
            row = Row(self._now.at_ns, name, tuple(recorded), tuple(decided), state)
            self._rows.append(row)

    def _state(self, name: str) -> str:
        service = self._services.get(name)
        if service is None:
            return "not declared"
        if self._courses[name].unknown:
            return "unknown"
        waits = waiting_for(service, self._services)
        return f"{service.state.value}, waits for {waits}" if waits else service.state.value

    def _add_up(self, name: str) -> None:
        course, now_ns = self._courses[name], self._now.mono_ns
        passed_ns = max(0, now_ns - course.counted_ns)
        course.counted_ns = now_ns
        recorded, mine = self._recorded.services.get(name), self._services.get(name)
        sums = course.sums
        if recorded is not None and is_down(recorded):
            sums.recorded.down_ns += passed_ns
            sums.meanwhile.down_ns += passed_ns if course.unknown else 0
        if course.unknown:
            sums.unknown_ns += passed_ns
        elif mine is not None and is_down(mine):
            sums.what_if.down_ns += passed_ns


# --- rules ------------------------------------------------------------------------------------------

_SAME = ("state", "wanted", "reason", "removing")
_FOR_EVER_NS = 2**63 - 1
_NEVER = Piece(0, _FOR_EVER_NS, None)


def _killed_after(theirs: float, mine: float) -> str:
    return f"it was killed after {theirs:g} s, and this time it has {mine:g} s"


def _names(dependencies: Iterable[Dependency]) -> Iterator[str]:
    return (each.service for each in dependencies)


def _is_anew(event: ev.Event) -> bool:
    """Whether somebody had it restarted."""
    return isinstance(event, ev.RestartRequested) and event.reason is not Reason.DEPENDENCY


def _is_adoption(root: ev.Record, given: inp.Input | None) -> bool:
    return isinstance(root.event, ev.Adopted) and not isinstance(given, inp.RunFound)


def _is_near(mine: Service, recorded: Service) -> bool:
    if mine.state is not State.STOPPING:
        return True
    return abs(mine.moved_ns - recorded.moved_ns) <= AS_RECORDED_NS
