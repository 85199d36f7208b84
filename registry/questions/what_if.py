"""What if other definitions had been in force: the recorded observations, decided again by the core under those.

Law 1: every decision is made by the core; here is only what arrives, and when. Law 2: a service that goes as
recorded is handed what was recorded, step by step, so that the same definitions give the same decisions. Law 3: what
rests on what the journal does not hold is unknown, until something recorded makes it known again. Pure: no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from registry.core import events as ev
from registry.core import inputs as inp
from registry.core.decision import decide
from registry.core.definition import Definition, Dependency
from registry.core.dependencies import needs
from registry.core.lifecycle import Reason, State
from registry.core.projection import Projection
from registry.core.service import Service, evolve
from registry.questions.likeness import Tally, is_asked_alike, strange
from registry.questions.otherwise import Otherwise, killed_after
from registry.questions.partings import Answer, add, told
from registry.questions.recorded import (
    OF_RUNS_ALONE,
    Script,
    Step,
    input_of,
    is_anchor,
    is_required,
    scripts,
    steps,
)
from registry.questions.tracks import SCALE, Track, clone

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
    services = {name: clone(each) for name, each in projection.services.items()}
    for service in services.values():
        if service.spawned_seq is not None:
            service.spawned_seq *= SCALE
    last_runs = dict(projection.last_runs)
    return msgspec.structs.replace(projection, services=services, last_runs=last_runs)


class _Driver(Otherwise):
    """Goes through the recording, and lets what would have been otherwise happen in between."""

    def __init__(
        self,
        begin: Projection,
        script: dict[str, Script],
        declared: Declared,
        added: Iterable[Definition],
    ) -> None:
        super().__init__(begin, script)
        self._declared = declared
        self._added = {each.name: each for each in added}
        self._required: tuple[int, dict[str, None]] = (0, {})
        """What those need whom a decision starts."""
        self._redefined: tuple[int, set[str]] = (0, set())
        """What a decision has declared anew."""

    # --- the recording -----------------------------------------------------------------------

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
            self._services[name] = mine = clone(service)
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

    def _course(self, name: str) -> Track:
        if name not in self._courses:
            script = self._scripts.get(name) or Script()
            self._courses[name] = Track(name, script, self._now.mono_ns)
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

    # --- definitions -------------------------------------------------------------------------

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

    # --- in step with the recording ----------------------------------------------------------

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

    # --- off the recording -------------------------------------------------------------------

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

    def _is_killed_too_early(
        self, name: str, given: inp.Input | None, old: Definition | None
    ) -> str:
        """Why it is not known how a stop goes on: the recorded run was killed, and this one has more time."""
        is_killed = isinstance(given, inp.ProcessExited | inp.ProcessLost | inp.GroupGone)
        service = self._services[name]
        if old is None or not is_killed or not given.killed or not self._courses[name].in_step:  # type: ignore[union-attr]
            return ""
        mine, theirs = service.definition.stop.timeout_s, old.stop.timeout_s
        return killed_after(theirs, mine) if mine > theirs else ""

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

    # --- what else a command starts ----------------------------------------------------------

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


def _names(dependencies: Iterable[Dependency]) -> Iterator[str]:
    return (each.service for each in dependencies)


def _is_anew(event: ev.Event) -> bool:
    """Whether somebody had it restarted."""
    return isinstance(event, ev.RestartRequested) and event.reason is not Reason.DEPENDENCY


def _is_adoption(root: ev.Record, given: inp.Input | None) -> bool:
    return isinstance(root.event, ev.Adopted) and not isinstance(given, inp.RunFound)
