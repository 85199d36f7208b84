"""Everything that may happen next in a state: by operators, processes, time, death, and by the daemon itself.

A step is `due` where daemon and machine take it without anybody's asking: duties are done, processes do as they are
told, runs get ready. Time passes by itself only where nothing else is due. What is due alone has to lead to rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from registry.core import inputs as inp
from registry.core.definition import Ready
from registry.core.duties import duties
from registry.core.lifecycle import Reason, State
from registry.core.service import Service
from registry.registry import _Item
from tests.exhaustive.states import (
    GONE,
    RUNS,
    SHUT,
    TICK_NS,
    TICK_S,
    Pool,
    Run,
    World,
)
from tests.exhaustive.writer import ACTOR, Writer, end_of, ended, told_of_end

EVERYTHING = frozenset(
    {"apply", "cannot", "disk", "forks", "notes", "probes", "reboot", "refusals", "requests"}
    | {"kill", "memory", "reset", "restart", "shutdown", "unknown"}
)
"""Troubles that a scenario may have. Starts and stops, exits and time are in all of them."""


class Step(NamedTuple):
    """What happens, and what is then."""

    what: str
    world: World
    is_due: bool


class Steps:
    """What may happen in the states of one scenario."""

    def __init__(self, writer: Writer, troubles: Iterable[str], batch_max: int = 1) -> None:
        self._writer = writer
        self._pool: Pool = writer.pool
        self._troubles = frozenset(troubles)
        self._batch_max = batch_max
        assert self._troubles <= EVERYTHING

    def of(self, world: World) -> list[Step]:
        """All of them, each with the state that it leads to."""
        found = [step for step in self._all(world) if step.world != world]
        is_due = not any(step.is_due for step in found) and self._awaits_time(world)
        found.append(_time(world, is_due=is_due))
        named = [Step(what, self._pool.normal(after), due) for what, after, due in found]
        return [step for step in named if step.world != world or self._pool.is_exact]

    def first_due(self, world: World) -> Step | None:
        """One of those that are due; None at rest."""
        due = (step for step in self._all(world) if step.is_due and step.world != world)
        step = next(due, None)
        if step is None and self._awaits_time(world):
            step = _time(world, is_due=True)
        return step and step._replace(world=self._pool.normal(step.world))

    def _awaits_time(self, world: World) -> bool:
        services = self._pool.services(world.live).values()
        asked = [duties(service) for service in services]
        return world.life != "down" and any(each.timer or each.stop for each in asked)

    def _all(self, world: World) -> Iterator[Step]:
        yield from self._machine(world)
        if world.life == "down":
            yield from self._while_down(world)
            return
        yield from self._trouble(world)
        if world.life in ("begun", "anew"):
            yield Step("the daemon takes up what lives", self._writer.taken_up(world), True)
            return
        yield from self._commits(world)
        if world.batch >= self._batch_max and world.batch:
            return
        yield from self._observed(world)
        yield from self._asked_again(world)
        if world.life == "up" and not world.held:
            yield from self._commands(world)
        yield from self._courses(world)

    # --- the daemon's own course --------------------------------------------------------------------

    def _while_down(self, world: World) -> Iterator[Step]:
        if not world.full:
            yield Step("the daemon begins", self._writer.begun(world), True)
        if "apply" in self._troubles:
            for file in self._other_files(world):
                yield Step(f"the file becomes {file}", world._replace(file=file), False)
        if "reboot" in self._troubles and world.coming != "another":
            yield Step("reboot", self._writer.rebooted(world), False)
        yield from self._disk(world)

    def _other_files(self, world: World) -> list[int]:
        return [file for file in range(len(self._writer.files)) if file != world.file]

    def _trouble(self, world: World) -> Iterator[Step]:
        if "kill" in self._troubles:
            yield Step("the daemon is killed", self._writer.killed(world), False)
        if "reboot" in self._troubles:
            yield Step("reboot", self._writer.rebooted(world), False)
        yield from self._disk(world)

    def _disk(self, world: World) -> Iterator[Step]:
        if "disk" not in self._troubles:
            return
        if not world.full:
            yield Step("the disk is full", world._replace(full=True), False)
        elif world.batch:
            yield Step("there is room again", world._replace(full=False), False)
        else:
            durable = world.live if world.life != "down" else world.durable
            room = world._replace(full=False, held=False, durable=durable)
            yield Step("there is room again", room, True)

    def _commits(self, world: World) -> Iterator[Step]:
        if not world.batch:
            return
        writer, dirty = self._writer, world.dirty
        committed = writer.committed(world)
        if "kill" in self._troubles:
            yield Step("commit, then killed", writer.killed(committed), False)
            for count in range(1, len(dirty)):
                for some in (dirty[:count], dirty[-count:]):
                    partly = writer.killed(writer.performed(committed, some))
                    yield Step(f"commit, killed after duties of {some}", partly, False)
        yield Step("commit", writer.told(writer.performed(committed, dirty)), True)

    def _courses(self, world: World) -> Iterator[Step]:
        """What the daemon does of itself once its inbox is empty."""
        if world.batch or world.ask:
            return
        services = self._pool.services(world.live).values()
        if world.life == "taken":
            yield Step("the daemon is up", self._writer.wanting(world), True)
        elif world.life == "up" and "shutdown" in self._troubles:
            yield Step("shutdown", self._writer.shut_down(world), False)
        elif world.life == "closing":
            if any(each.wanted for each in services):
                yield Step("stops what is wanted", self._writer.stopped_late(world), True)
            elif not world.held and not any(each.state in _HAS_RUN for each in services):
                down = self._writer.killed(world)._replace(coming="orderly")
                yield Step("the daemon has ended", down, True)
        if world.life == "up" and "apply" in self._troubles and not world.held:
            for file in self._other_files(world):
                yield Step(f"apply {file}", self._writer.applied(world, file), False)

    def _asked_again(self, world: World) -> Iterator[Step]:
        for name in world.ask:
            left = world._replace(ask=tuple(each for each in world.ask if each != name))
            yield from self._decided(left, name, inp.Reconsider(), is_due=True)

    # --- decisions ----------------------------------------------------------------------------------

    def _decided(
        self, world: World, name: str, given: inp.Input, *, is_due: bool = False
    ) -> Iterator[Step]:
        writer, what = self._writer, f"{name}: {_named(given)}"
        yield Step(what, writer.decide(world, [_Item([(name, given)])]), is_due)
        if not writer.has_spawned or "refusals" not in self._troubles:
            return
        for reason in (Reason.NO_RESOURCES, Reason.PROGRAM_MISSING):
            writer.refusal = reason
            refused = writer.decide(world, [_Item([(name, given)])])
            writer.refusal = None
            yield Step(f"{what}, {reason}", refused, False)

    def _commands(self, world: World) -> Iterator[Step]:
        for name, service in self._pool.services(world.live).items():
            given: list[inp.Command] = [inp.Start(actor=ACTOR), inp.Stop(actor=ACTOR)]
            if "restart" in self._troubles:
                given.append(inp.Restart(actor=ACTOR))
            if "reset" in self._troubles:
                given.append(inp.Reset(actor=ACTOR))
            is_running = service.state is State.RUNNING and service.pid is not None
            if "requests" in self._troubles and is_running and not service.requests:
                given += [inp.Signal(actor=ACTOR, signal="SIGHUP"), inp.Reload(actor=ACTOR)]
            for each in given:
                yield from self._decided(world, name, each)

    # --- what the daemon sees -------------------------------------------------------------------------

    def _observed(self, world: World) -> Iterator[Step]:
        for place, (name, run) in enumerate(zip(self._pool.names, world.runs, strict=True)):
            for left, given, is_due in self._news(run):
                known = _with(world, place, left)
                yield from self._decided(known, name, given, is_due=is_due)
            service = self._pool.service(world.live[place])
            if service is not None and name not in world.dirty:
                yield from self._due(world, name, service)
                yield from self._said(world, place, name, service)

    def _news(self, run: Run) -> Iterator[tuple[Run, inp.Observation, bool]]:
        """What is on its way to the daemon, and what is left when it has arrived."""
        if run.opened:
            yield run._replace(opened=False), inp.GateOpened(run=run.number), True
        if run.emptied:
            yield run._replace(emptied=False), inp.GroupGone(run=run.number), True
        if run.known and not run.told and run.end:
            yield told_of_end(run), end_of(run, is_known=True), True
            if not run.ours and "unknown" in self._troubles:
                yield told_of_end(run), end_of(run, is_known=False), True

    def _due(self, world: World, name: str, service: Service) -> Iterator[Step]:
        asked = duties(service)
        if asked.timer is not None and asked.timer.due_ns <= world.now_ns:
            yield from self._decided(world, name, asked.timer.due, is_due=True)
        for request in asked.requests:
            done = inp.RequestCarriedOut(run=service.run, request=request.seq)
            yield from self._decided(world, name, done, is_due=True)

    def _said(self, world: World, place: int, name: str, service: Service) -> Iterator[Step]:
        """What checks find, and what the run says of itself, be it ended meanwhile."""
        run = world.runs[place]
        if service.pid is None or not run.known or run.told or run.number != service.run:
            return
        is_well = run.processes[run.leader] == RUNS
        if run.first in (RUNS, GONE):
            for given, is_due in _probes(service, self._troubles):
                yield from self._decided(world, name, given, is_due=is_due and is_well)
            if service.definition.is_notified:
                yield from self._notes(world, place, service, is_well=is_well)
        if "memory" in self._troubles and is_well:
            much = inp.MemoryFound(run=service.run, bytes=2**40)
            yield from self._decided(world, name, much)

    def _notes(
        self, world: World, place: int, service: Service, *, is_well: bool
    ) -> Iterator[Step]:
        name, run = service.name, service.run
        is_awaited = (
            service.state is State.STARTING and service.definition.readiness is Ready.NOTIFY
        )
        yield from self._decided(
            world, name, inp.NotifiedReady(run=run), is_due=is_awaited and is_well
        )
        if "notes" not in self._troubles:
            return
        yield from self._decided(world, name, inp.NotifiedStopping(run=run))
        yield from self._decided(world, name, inp.NotifiedExtension(run=run, seconds=TICK_S))
        yield from self._decided(world, name, inp.NotifiedWatchdog(run=run, interval_s=5.0))
        machine = world.runs[place]
        other = 1 - machine.leader
        if machine.processes[other] == RUNS and not machine.end:
            led = machine._replace(leader=other)
            if machine.processes[machine.leader] == GONE:
                return
            main = inp.NotifiedMain(run=run, pid=led.pid, start_time=led.pid)
            yield from self._decided(_with(world, place, led), name, main)

    # --- what processes do ----------------------------------------------------------------------------

    def _machine(self, world: World) -> Iterator[Step]:
        for place, (name, run) in enumerate(zip(self._pool.names, world.runs, strict=True)):
            for what, after, is_due in self._lives(world, place, run):
                yield Step(f"{name}: {what}", _with(world, place, after), is_due)

    def _lives(self, world: World, place: int, run: Run) -> Iterator[tuple[str, Run, bool]]:
        if run.first == SHUT:
            yield "ends at its gate", ended(run, 0, "never"), True
        if RUNS not in run.processes:
            return
        service = self._pool.service(world.live[place])
        is_last = service is not None and service.state is State.RUNNING
        completes = is_last and service is not None and service.definition.oneshot
        if run.processes[run.leader] == RUNS:
            is_ending = service is not None and service.ending_ns is not None
            yield "exits clean", ended(run, run.leader, "clean"), completes or is_ending
            yield "fails", ended(run, run.leader, "fails"), False
            if "cannot" in self._troubles:
                yield "cannot be executed", ended(run, run.leader, "cannot"), False
        if "forks" in self._troubles and run.first == RUNS and run.second == GONE and not run.end:
            yield "forks", run._replace(second=RUNS), False
        for which, process in enumerate(run.processes):
            if process == RUNS and (run.asked or which != run.leader):
                ends = ended(run, which, "signal")
                yield f"process {which} ends", ends, run.asked


_HAS_RUN = (State.STARTING, State.RUNNING, State.STOPPING)


def _time(world: World, *, is_due: bool) -> Step:
    return Step("time passes", world._replace(now_ns=world.now_ns + TICK_NS), is_due)


def _with(world: World, place: int, run: Run) -> World:
    return world._replace(runs=(*world.runs[:place], run, *world.runs[place + 1 :]))


def _named(given: inp.Input) -> str:
    name = type(given).__name__
    if isinstance(given, inp.Probed):
        return f"{name} {'ok' if given.ok else 'failed'} x{given.count}"
    return name


def _probes(service: Service, troubles: frozenset[str]) -> Iterator[tuple[inp.Observation, bool]]:
    for check in service.definition.checks if duties(service).checks else ():
        known = service.checks.get(check.name)
        is_awaited = known is None or not known.ok or known.healthy is not True
        well = inp.Probed(run=service.run, check=check.name, ok=True, count=check.successes)
        yield well, is_awaited
        if "probes" in troubles:
            for count in (1, check.failures):
                yield (
                    inp.Probed(
                        run=service.run, check=check.name, ok=False, count=count, error="no"
                    ),
                    False,
                )
