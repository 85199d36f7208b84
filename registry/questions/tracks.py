"""The services as they would be, each on its track: what is decided of them, when, and what is told of it.

A track is in step with the recording, goes its own way, or is unknown. Every decision is the core's; where it hangs on
neighbours of whom nothing is known, each guess is decided, and only what all of them agree on counts.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from itertools import count
from typing import Any

from registry.core import events as ev
from registry.core import inputs as inp
from registry.core.decision import Place, decide
from registry.core.dependencies import Around, Graph, around
from registry.core.duties import Timer, duties
from registry.core.projection import Projection
from registry.core.service import Service
from registry.questions.likeness import Tally, failed, stopping, up
from registry.questions.partings import Course, Row, Side, is_down, told
from registry.questions.recorded import Attempt, Script, Step
from registry.questions.waiting import waiting_for

SCALE = 1 << 20
"""Recorded numbers are this far apart, so that what is decided here has its place between them."""


def clone(service: Service) -> Service:
    """A copy that moves on its own."""
    mine = copy(service)
    mine.checks = {name: copy(state) for name, state in service.checks.items()}
    return mine


class Track:
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


class Tracks:
    """All services: as recorded, and as they would be."""

    def __init__(self, begin: Projection, script: dict[str, Script]) -> None:
        self._recorded = begin
        self._scripts = script
        self._services: dict[str, Service] = {}
        self._graph = Graph()
        self._odd: set[str] = set()
        """Services whose neighbours are declared otherwise."""
        self._courses: dict[str, Track] = {}
        self._rows: list[Row] = []
        self._queue: list[tuple[int, int, str, int, Callable[[], None]]] = []
        self._orders = count()
        self._now = ev.Now(0, 0)
        self._seq = begin.seq * SCALE

    def _decide(self, name: str, given: inp.Input) -> tuple[Service, list[ev.Record]] | None:
        """What the core decides of a copy; None where that hangs on neighbours of whom nothing is known."""
        service = self._services[name]
        outcomes: dict[Any, tuple[Service, list[ev.Record]]] = {}
        for neighbours in self._arounds(service):
            trial = clone(service)
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

    # --- time -----------------------------------------------------------------------------------------

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

    def _is_recorded(self, name: str, timer: Timer) -> bool:
        """Whether the recording says when this timer was due."""
        recorded = self._recorded.services.get(name)
        return (
            self._courses[name].in_step and recorded is not None and duties(recorded).timer == timer
        )

    # --- what is told ---------------------------------------------------------------------------------

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
