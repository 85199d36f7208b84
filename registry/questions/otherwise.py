"""How services go their own way: runs that stand for recorded ones, checks that find what was found, and the unknown.

A run ends as long after its beginning, and in the same way, as the recorded one that it stands for. What the journal
does not hold makes a service unknown, and it is known again where it is as it was recorded.
"""

from __future__ import annotations

from functools import partial

import msgspec

from registry.core import events as ev
from registry.core import inputs as inp
from registry.core.definition import Check, Ready
from registry.core.duties import Timer, duties
from registry.core.lifecycle import State
from registry.core.restarts import NS
from registry.core.service import HAS_RUN, Service
from registry.questions.likeness import (
    Tally,
    can_end_a_run,
    is_asked_alike,
    is_idle,
    is_known,
    strange,
)
from registry.questions.partings import Row, add, told
from registry.questions.recorded import Attempt, Piece, Seen
from registry.questions.tracks import Tracks, clone

AS_RECORDED_NS = 250_000_000
"""A run, or a timer, that is no further from the recorded one counts as that."""
LOOK_NS, LOOK_IN_STEP_NS = 5_000_000, 100_000_000
"""So long after a neighbour moved a service looks at it, where the recording does not say when: a commit takes time.
One that is in step has this longer: the recording may still say it.
"""
_SAME = ("state", "wanted", "reason", "removing")
_FOR_EVER_NS = 2**63 - 1
_NEVER = Piece(0, _FOR_EVER_NS, None)


class Otherwise(Tracks):
    """Services off the recording: what comes of their states, and how they get back to it."""

    # --- its own way -------------------------------------------------------------------------

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

    def _leave(self, name: str) -> None:
        course = self._courses[name]
        if name not in self._services or course.unknown:
            return
        course.in_step = False
        if self._services[name].pid is not None or self._services[name].state is State.STOPPING:
            self._follow(name)
        self._perform(name)

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

    # --- its end -----------------------------------------------------------------------------

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

    def _bear_longer(self, name: str, run: int, like: Attempt) -> None:
        """It was killed after its stop timeout: with a longer one nobody knows when it would have ended."""
        mine = self._services[name].definition.stop.timeout_s
        theirs = like.definition.stop.timeout_s
        if mine > theirs:
            why = killed_after(theirs, mine)
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

    # --- checks ------------------------------------------------------------------------------

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

    # --- what nobody knows -------------------------------------------------------------------

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

    def _join(self, name: str, why: str) -> None:
        """It is where the recording has it: from here on in step."""
        self._add_up(name)
        course, mine = self._courses[name], self._services[name]
        recorded = self._recorded.services[name]
        self._services[name] = joined = clone(recorded)
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

    # --- neighbours and timers ---------------------------------------------------------------

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


def killed_after(theirs: float, mine: float) -> str:
    """Why a stop with more time than the recorded one ends nobody knows when."""
    return f"it was killed after {theirs:g} s, and this time it has {mine:g} s"


def _is_near(mine: Service, recorded: Service) -> bool:
    if mine.state is not State.STOPPING:
        return True
    return abs(mine.moved_ns - recorded.moved_ns) <= AS_RECORDED_NS
