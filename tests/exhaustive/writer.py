"""One step of the registry at a time: the production writer decides, and what it asks of a machine happens here.

Law: it decides, tells neighbours, recovers and applies by the production functions; only the loop, the disk and the
processes are not theirs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

from registry import recovery
from registry.apply import Configuration
from registry.core import events as ev
from registry.core import inputs as inp
from registry.core.definition import Definition
from registry.core.dependencies import Graph
from registry.core.duties import duties
from registry.core.events import Actor
from registry.core.lifecycle import Reason, State
from registry.core.projection import Projection
from registry.core.service import HAS_RUN, Service
from registry.questions.plan import plan
from registry.registry import Registry, _Item
from tests.coroutines import at_once
from tests.exhaustive import rules
from tests.exhaustive.states import FAR_NS, GATE, GONE, RUNS, SEQ, SHUT, Pool, Run, World, merged

ACTOR = Actor(1000, 77, "circlectl")
CODES = {"clean": 0, "fails": 1, "never": 111, "cannot": 127}
"""What a main process exits with, by how it ends; otherwise it is by a signal."""
Items = Sequence[_Item]


class Writer:
    """The registry of any state. `moves` are those that were decided."""

    def __init__(self, files: Sequence[tuple[Definition, ...]], pool: Pool) -> None:
        self.files = files
        self.pool = pool
        self.moves: Counter[tuple[str, str, str]] = Counter()
        self.decided: Callable[[list[ev.Record]], None] = lambda _records: None
        self.refusal: Reason | None = None
        self.has_spawned = False
        self._now_ns = 0
        self._runs: dict[str, Run] = {}
        self._registry = Registry(Projection(), None, self, self)  # type: ignore[arg-type]

    # --- what the registry asks for -----------------------------------------------------------------

    def now(self) -> ev.Now:
        """Both clocks."""
        return ev.Now(self._now_ns, self._now_ns)

    def ahead(self, runs: Sequence[tuple[Definition, int]]) -> AbstractAsyncContextManager[None]:
        """Nothing is made before it is asked for."""
        return nullcontext()

    async def spawn(self, definition: Definition, run: int, digest: str) -> inp.Observation:
        """Put a process behind its gate, or refuse."""
        name, self.has_spawned = definition.name, True
        rules.one_run_at_a_time(self._runs[name], name)
        rules.dependencies_are_met(definition, self._registry._live.services)
        if self.refusal is not None:
            return inp.SpawnRefused(run=run, reason=self.refusal, message="no")
        made = self._runs[name] = Run(run, first=GATE, known=True, ours=True)
        return inp.SpawnSucceeded(run=run, pid=made.pid, start_time=made.pid, digest=digest)

    # --- decide -------------------------------------------------------------------------------------

    def on(self, world: World) -> Registry:
        """The registry in a state."""
        live = self.pool.projection(world.live)
        registry = self._registry
        registry._live = registry.committed = live
        registry.graph = Graph(each.definition for each in live.services.values())
        registry._inbox.clear()
        registry._parted = dict.fromkeys(world.parted)
        self._now_ns = world.now_ns
        self._runs = dict(zip(self.pool.names, world.runs, strict=True))
        return registry

    def asked(self) -> Items:
        """What the registry put into its own inbox."""
        items = list(self._registry._inbox)
        self._registry._inbox.clear()
        return items

    def decide(self, world: World, items: Items) -> World:
        """Decisions about `items`, one after the other, in a batch that is not committed yet."""
        registry = self.on(world)
        before = self.pool.projection(world.live)
        self.has_spawned = False
        records: list[ev.Record] = []
        for item in items:
            records += at_once(registry._decide(item))
        live = registry._live
        rules.hold(before, live, records)
        self.decided(records)
        for record in records:
            if isinstance(record.event, ev.Moved):
                self.moves[record.type, record.event.source, record.event.dest] += 1
        named = [record.service for record in records if record.service is not None]
        concerned = [name for item in items for name, _given in item.steps]
        decided = world._replace(
            live=self.pool.numbers(live),
            runs=tuple(self._runs[name] for name in self.pool.names),
            dirty=merged(world.dirty, concerned, named),
            moved=merged(world.moved, named),
            parted=tuple(registry._parted),
        )
        if records or world.batch:
            return decided._replace(batch=world.batch + 1)
        return self.performed(decided, decided.dirty)._replace(dirty=())

    # --- commit, perform ------------------------------------------------------------------------------

    def committed(self, world: World) -> World:
        """The batch is durable, or held where the disk is full; nothing of it is performed yet."""
        if world.full:
            return world._replace(batch=0, held=True)
        return world._replace(durable=world.live, batch=0)

    def performed(self, world: World, names: Sequence[str]) -> World:
        """What is under way for some services is brought in line with their state."""
        runs = list(world.runs)
        for name in names:
            place = self.pool.names.index(name)
            service = self.pool.service(world.live[place])
            if service is not None:
                runs[place] = _performed(service, runs[place])
        return world._replace(runs=tuple(runs))

    def told(self, world: World) -> World:
        """Neighbours of whoever moved are to look again."""
        registry = self.on(world)
        registry._tell_neighbours([_record(name) for name in world.moved])
        asked = [name for item in self.asked() for name, _given in item.steps]
        return world._replace(dirty=(), moved=(), parted=(), ask=merged(world.ask, asked))

    # --- the ways of the daemon -----------------------------------------------------------------------

    def killed(self, world: World) -> World:
        """The daemon died: what is durable is left, and the processes that have no gate any more."""
        return World(
            live=world.durable,
            durable=world.durable,
            runs=tuple(run.unwatched() for run in world.runs),
            coming="same" if world.life not in ("down",) else world.coming,
            file=world.file,
            full=world.full,
            now_ns=world.now_ns,
        )

    def rebooted(self, world: World) -> World:
        """Another boot: nothing runs, and the clock of rules begins anew."""
        down = self.killed(world)
        runs = tuple(Run(run.number) for run in world.runs)
        return down._replace(runs=runs, coming="another", now_ns=world.now_ns - FAR_NS)

    def begun(self, world: World) -> World:
        """The next daemon has written that it is there."""
        live = self.pool.projection(world.durable)
        fresh = world.coming != "same"
        started = ev.RegistryStarted(
            boot_id="boot", pid_namespace="", pid=1, version="", fresh=fresh
        )
        live.fold([_record(None, started)])
        numbers = self.pool.numbers(live)
        life = "anew" if world.coming == "another" else "begun"
        return world._replace(live=numbers, durable=numbers, life=life, coming="same")

    def taken_up(self, world: World) -> World:
        """What is declared is declared, and what lives handed in: decided, not committed."""
        registry = self.on(world)
        later = tuple(recovery.declare(registry, self._configuration(world), SEQ))
        runs, found = self._found(world, registry)
        items = [*self.asked(), *(_Item([each]) for each in found)]
        taken = world._replace(runs=runs, life="taken", later=later)
        return self.decide(taken, items)

    def _found(self, world: World, registry: Registry) -> tuple[tuple[Run, ...], list[Any]]:
        runs = dict(zip(self.pool.names, world.runs, strict=True))
        last_runs = registry._live.last_runs
        services = {
            each.name: Service(each, run=last_runs.get(each.name, 0))
            for each in self.files[world.file]
        } | registry._live.services
        found: list[tuple[str, inp.Observation]] = []
        for name, service in services.items():
            runs[name], seen = _taken_up(service, runs[name], is_same_boot=world.life == "begun")
            found += [(name, given) for given in seen]
        return tuple(runs.values()), found

    def wanting(self, world: World) -> World:
        """It sees to what is wanted, and to what everybody waits for: it is up."""
        performed = self.performed(world, list(self.pool.services(world.live)))
        registry = self.on(performed)
        services = registry._live.services
        recovery.begin(registry, self._configuration(world), sorted(services), world.later, SEQ)
        registry.reconsider_all()
        return self.decide(performed._replace(life="up", later=()), self.asked())

    def shut_down(self, world: World) -> World:
        """Every service is to stop."""
        registry = self.on(world)
        services = registry._live.services.items()
        registry._declare_stops([n for n, each in services if each.wanted or each.state in HAS_RUN])
        return self.decide(world._replace(life="closing"), self.asked())

    def stopped_late(self, world: World) -> World:
        """What is wanted all the same is to stop, too."""
        registry = self.on(world)
        registry._declare_stops([n for n, s in registry._live.services.items() if s.wanted])
        return self.decide(world, self.asked())

    def applied(self, world: World, file: int) -> World:
        """Another configuration is taken up."""
        self.on(world)
        anew = world._replace(file=file)
        configuration = self._configuration(anew)
        changes = plan(self._registry.committed.services, self.files[file])
        steps = configuration._steps(self._config(anew), changes, ACTOR)
        return self.decide(anew, [_Item(steps)])

    def _config(self, world: World) -> Any:
        return SimpleNamespace(definitions=self.files[world.file])

    def _configuration(self, world: World) -> Configuration:
        return Configuration(self._config(world), b"key", self._registry, lambda _config: None)


def _record(service: str | None, event: ev.Event | None = None) -> ev.Record:
    event = event or ev.RequestDone(request=0)
    return ev.Record(SEQ, 1, 1, SEQ, service, None, None, None, event)


# --- what the daemon asks of the machine ----------------------------------------------------------


def _performed(service: Service, run: Run) -> Run:
    asked = duties(service)
    is_present = run.known and run.number == service.run
    if asked.gate is not None and is_present and run.first == GATE:
        rules.nothing_runs_unknown(service, run)
        run = run._replace(first=RUNS, opened=True)
    if asked.stop is not None and not is_present:
        run = Run(service.run, run.first, emptied=True)
    elif asked.stop is not None:
        run = run._replace(asked=True, first=SHUT if run.first == GATE else run.first)
    return run


def ended(run: Run, which: int, how: str) -> Run:
    """One process of a run ends."""
    left = run.without(which)
    if which == run.leader:
        return left._replace(end=how)
    if run.known and run.told and not left.lives:
        return left._replace(known=False, emptied=True)
    return left


def end_of(run: Run, *, is_known: bool) -> inp.Observation:
    """How its main process ended, as the daemon is told."""
    empty = not run.lives
    if not is_known or not run.end:
        return inp.ProcessLost(run=run.number, group_empty=empty)
    return inp.ProcessExited(
        run=run.number,
        exit_code=CODES.get(run.end),
        signal=15 if run.end == "signal" else None,
        group_empty=empty,
        never_ran=run.end == "never",
        launch_failure=Reason.EXEC_FAILED if run.end == "cannot" else None,
    )


def _taken_up(
    service: Service, run: Run, *, is_same_boot: bool
) -> tuple[Run, list[inp.Observation]]:
    """What a later daemon finds of a service, as host/machine.py takes it up."""
    if run.number > service.run:
        if run.first == RUNS:
            run = run._replace(leader=0, known=True)
            pid = 2 * run.number
            found = inp.RunFound(run=run.number, pid=pid, start_time=pid)
            return run, [found, inp.GateOpened(run=run.number)]
        # nobody leads what is left of it: a survey does not find it, which is a gap that is known
        run = Run(run.number, run.first)
    if service.pid is None and service.state is not State.STOPPING:
        return run, []
    if not is_same_boot:
        return run, [inp.ProcessLost(run=service.run)] if service.pid is not None else []
    if run.number != service.run:
        run = Run(service.run)
    if service.pid is None:
        return run._replace(told=True, known=run.lives), []
    return _adopted(service, run)


def _adopted(service: Service, run: Run) -> tuple[Run, list[inp.Observation]]:
    leader = (service.pid or 0) - 2 * run.number
    if run.processes[leader] == GONE:
        is_its = leader == run.leader
        run = run._replace(leader=leader, end=run.end if is_its else "")
        seen = end_of(run, is_known=True)
        return run._replace(told=True, known=run.lives), [seen]
    run = run._replace(leader=leader, end="", known=True)
    found: list[inp.Observation] = [inp.ProcessFound(run=run.number, pid=run.pid)]
    if run.processes[leader] == RUNS:
        found.append(inp.GateOpened(run=run.number))
    return run, found


def told_of_end(run: Run) -> Run:
    """The daemon has been told of the main process's end."""
    return run._replace(told=True, known=run.lives)
