"""A service in a world of its own: a virtual clock, a journal in memory, and a fold that must agree.

Every input goes through `World.give`, which holds each decision to the laws that all of them share. A `System`
is a world of several services, which are told of each other as the registry tells them.
"""

from __future__ import annotations

import copy
import itertools
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from registry.core import checks as tallies
from registry.core import dependencies
from registry.core import events as ev
from registry.core import inputs as inp
from registry.core.decision import Place, decide
from registry.core.definition import (
    Check,
    Condition,
    Definition,
    Dependency,
    Policy,
    Ready,
    Restart,
)
from registry.core.dependencies import ALONE, Around, Graph, is_ending, is_settled, needs, unmet
from registry.core.duties import Duties, duties
from registry.core.lifecycle import Reason, State, is_legal
from registry.core.projection import Projection
from registry.core.restarts import NS
from registry.core.service import HAS_RUN, Service

JOURNAL_ID = "journal-1"
UTC_AHEAD_NS = 1_700_000_000 * NS


class World:
    """One service, declared at once; `records` is its journal so far."""

    def __init__(self, definition: Definition, name: str = JOURNAL_ID) -> None:
        self.journal_id = name
        self.mono_ns = 1000 * NS
        self.records: list[ev.Record] = []
        self.projection = Projection()
        self.service = Service(definition=definition)
        self._tallies: dict[tuple[int, str], tallies.Tally] = {}
        self.give(inp.Define(definition=definition, digest="digest-1"))

    # --- what every decision is held to -----------------------------------------------------------

    def give(self, given: inp.Input, around: Around = ALONE) -> list[ev.Record]:
        """Decide, check the laws of every decision, fold; the new records."""
        before = copy.deepcopy(self.service)
        state = before.state
        now = ev.Now(self.mono_ns + UTC_AHEAD_NS, self.mono_ns)
        place = Place(now, len(self.records) + 1, self.journal_id, around=around)
        new = decide(self.service, given, place)
        assert new or self.service == before, "an ignored input changed the service"
        for seq, record in enumerate(new, len(self.records) + 1):
            assert record.seq == seq
            assert record.decision == len(self.records) + 1
            assert record.cause is None or record.cause < record.seq
            assert record.actor == getattr(given, "actor", None)
            if isinstance(record.event, ev.Moved):
                assert record.event.source is state
                assert is_legal(record.type, state, record.event.dest)
                state = record.event.dest
        is_at_rest = self.service.state not in HAS_RUN
        assert not (is_at_rest and self.service.bound), "it is bound for somewhere without a run"
        for earlier, later in itertools.pairwise(new):
            assert later.cause == earlier.seq
        self.records += new
        self.projection.fold(new)
        assert self.projection.services.get(self.service.name) == (
            None if new and new[-1].type == "removed" else self.service
        )
        return new

    def seen(self, given: inp.Input) -> list[str]:
        """The types of what `give` journals."""
        return [record.type for record in self.give(given)]

    def wait(self, seconds: float) -> None:
        """Let virtual time pass."""
        self.mono_ns += round(seconds * NS)

    # --- what may be said to it, about the present run --------------------------------------------

    def start(self) -> list[ev.Record]:
        return self.give(inp.Start())

    def stop(self) -> list[ev.Record]:
        return self.give(inp.Stop())

    def restart(self) -> list[ev.Record]:
        return self.give(inp.Restart())

    def spawn(self) -> list[ev.Record]:
        run = self.service.run + 1
        return self.give(
            inp.SpawnSucceeded(run=run, pid=1000 + run, start_time=5, digest=self.service.digest)
        )

    def refuse(self, reason: Reason, message: str = "no") -> list[ev.Record]:
        return self.give(inp.SpawnRefused(run=self.service.run + 1, reason=reason, message=message))

    def gate(self) -> list[ev.Record]:
        return self.give(inp.GateOpened(run=self.service.run))

    def exit(self, code: int | None = 0, **fields: Any) -> list[ev.Record]:
        return self.give(inp.ProcessExited(run=self.service.run, exit_code=code, **fields))

    def empty(self, killed: int = 0) -> list[ev.Record]:
        return self.give(inp.GroupGone(run=self.service.run, killed=killed))

    def probe(self, *, ok: bool, check: str = "beat") -> list[ev.Record]:
        """One more result of a check, counted as the prober counts it."""
        run, at_ns = self.service.run, self.mono_ns + UTC_AHEAD_NS
        error = None if ok else "refused"
        before = self._tallies.get((run, check))
        tally, probed = tallies.count(
            before, run=run, check=check, ok=ok, error=error, latency_ns=1, at_ns=at_ns
        )
        self._tallies[run, check] = tally
        return self.give(probed)

    def due(self) -> list[ev.Record]:
        """Let time pass until the timer that its duties ask for, and let it ring."""
        timer = self.duties.timer
        assert timer is not None, "no timer is under way"
        self.mono_ns = max(self.mono_ns, timer.due_ns)
        return self.give(timer.due)

    # --- short ways to where a test begins --------------------------------------------------------

    def run(self) -> None:
        """From anywhere below: started, spawned, and ready."""
        self.start()
        self.spawn()
        self.gate()
        for check in self.service.definition.checks:
            self.probe(ok=True, check=check.name)
        assert self.service.state is State.RUNNING

    def crash(self, code: int = 1) -> list[ev.Record]:
        """Spawn the next run (after its timer, if it waits for one) and let it exit before it is forgiven."""
        if self.service.state is State.RESTARTING:
            self.due()
        self.spawn()
        self.gate()
        return self.exit(code)

    # --- what can be asked of it ------------------------------------------------------------------

    @property
    def duties(self) -> Duties:
        return duties(self.service)

    @property
    def where(self) -> tuple[State, Reason]:
        return self.service.state, self.service.reason

    def refold(self, upto: int | None = None) -> Projection:
        """A projection from the journal's beginning."""
        projection = Projection()
        projection.fold(self.records[:upto])
        return projection


_ASKED = (Reason.REQUESTED, Reason.RESTART_REQUESTED, Reason.AUTOSTART)


class System:
    """Several services in one journal. `waiting` are those that are still to look at their neighbours: at once,
    unless the writer is `busy`.

    `ends` are the places in the journal between two decisions. Services of `refused` cannot be spawned;
    `codes` are the exit codes of oneshots, where they are not 0.
    """

    def __init__(self, *definitions: Definition) -> None:
        self.mono_ns = 1000 * NS
        self.records: list[ev.Record] = []
        self.ends: list[int] = []
        self.lives = Projection()
        self.projection = Projection()
        self.graph = Graph()
        self.waiting: deque[str] = deque()
        self.busy = False
        self.refused: dict[str, Reason] = {}
        self.codes: dict[str, int] = {}
        for definition in definitions:
            self.define(definition)

    def __getitem__(self, name: str) -> Service:
        """A live service."""
        return self.services[name]

    @property
    def services(self) -> dict[str, Service]:
        """The live services by name."""
        return self.lives.services

    # --- as the registry does it ------------------------------------------------------------------

    def give(self, name: str, given: inp.Input, *more: tuple[str, inp.Input]) -> list[ev.Record]:
        """One decision, and what the neighbours make of it; all new records."""
        first = len(self.records)
        self.decide((name, given), *more)
        if not self.busy:
            self.quiet()
        return self.records[first:]

    def quiet(self) -> None:
        """Let everybody look again at its neighbours, until nothing comes of it."""
        while self.waiting:
            self.decide((self.waiting.popleft(), inp.Reconsider()))

    def decide(self, *steps: tuple[str, inp.Input]) -> list[ev.Record]:
        """One decision of one or more steps, with the processes and the services that it asks for."""
        first = len(self.records)
        for name, given in steps:
            self._step(name, given, first)
            is_asked_for = isinstance(given, inp.Start | inp.Restart) and given.reason in _ASKED
            if is_asked_for and name in self.services and self[name].wanted:
                for needed in needs(self[name], self.services):
                    self._step(needed.name, inp.Start(reason=Reason.REQUIRED), first)
        new = self.records[first:]
        assert {record.decision for record in new} <= {first + 1}
        for place, record in enumerate(new, first + 1):
            assert record.seq == place
            assert record.cause is None or record.cause < record.seq
        self.projection.fold(new)
        assert self.projection.services == self.services
        if new:
            self.ends.append(len(self.records))
        self._tell(new)
        return new

    def _tell(self, new: list[ev.Record]) -> None:
        if any(isinstance(record.event, ev.Redefined | ev.Removed) for record in new):
            self.waiting += self.services
        for name in dict.fromkeys(record.service for record in new):
            self.waiting += self.graph.neighbours(name or "", self.services)

    def _step(self, name: str, given: inp.Input, first: int) -> None:
        if name not in self.services:
            if not isinstance(given, inp.Define):
                return
            self.lives.add(given.definition)
        service = self[name]
        new = self._decide_one(service, given, first)
        while (run := duties(service).spawn) is not None:
            self._check_spawn(service)
            self._decide_one(service, self._spawned(service, run), first)
        if isinstance(given, inp.Define):
            self.graph.declare(service.definition)
        if new and isinstance(new[-1].event, ev.Removed):
            self.lives.remove(name)
            self.graph.forget(name)

    def _decide_one(self, service: Service, given: inp.Input, first: int) -> list[ev.Record]:
        before = copy.deepcopy(service)
        now = ev.Now(self.mono_ns + UTC_AHEAD_NS, self.mono_ns)
        seq = len(self.records) + 1
        neighbours = dependencies.around(service, self.services, self.graph)
        new = decide(service, given, Place(now, seq, JOURNAL_ID, first + 1, neighbours))
        assert new or service == before, "an ignored input changed the service"
        for record in new:
            assert not isinstance(record.event, ev.Moved) or is_legal(
                record.type, record.event.source, record.event.dest
            )
            self._check_stop(service, record)
        self.records += new
        return new

    def _spawned(self, service: Service, run: int) -> inp.Input:
        if (reason := self.refused.get(service.name)) is not None:
            return inp.SpawnRefused(run=run, reason=reason, message="no")
        return inp.SpawnSucceeded(run=run, pid=1000 + run, start_time=5, digest=service.digest)

    # --- what every decision is held to -----------------------------------------------------------

    def _check_spawn(self, service: Service) -> None:
        assert service.wanted, "a process is asked for that nobody wants"
        assert not unmet(service, self.services), f"{service.name} starts before what it needs"

    def _check_stop(self, service: Service, record: ev.Record) -> None:
        is_stop = isinstance(record.event, ev.StopRequested | ev.DependentsGone)
        if (
            is_stop
            and service.pid is not None
            and service.state is State.STOPPING is not _source(record)
        ):
            ending = [n for n in self.graph.dependents(service.name) if self._is_ending(n)]
            assert not ending, f"{service.name} stops before {ending}"

    def _is_ending(self, name: str) -> bool:
        return name in self.services and is_ending(self[name])

    # --- what may happen --------------------------------------------------------------------------

    def define(self, definition: Definition) -> list[ev.Record]:
        """A service is declared, or declared differently."""
        return self.give(definition.name, self.defined(definition))

    def defined(self, definition: Definition) -> inp.Define:
        """The command that declares it; its digest is made of all that it says."""
        return inp.Define(definition=definition, digest=repr(definition))

    def start(self, *names: str) -> list[ev.Record]:
        return [record for name in names for record in self.give(name, inp.Start())]

    def stop(self, *names: str) -> list[ev.Record]:
        """Ask for stops, in the order of those who depend on each other, in one decision."""
        steps = [(name, inp.Stop()) for name in self.graph.stop_order(names)]
        return self.give(*steps[0], *steps[1:])

    def restart(self, name: str) -> list[ev.Record]:
        return self.give(name, inp.Restart())

    def crash(self, name: str) -> list[ev.Record]:
        return self.give(name, inp.ProcessExited(run=self[name].run, exit_code=1))

    def obey(self, name: str) -> list[ev.Record]:
        """Do one thing that the duties of a service ask for, and let it succeed."""
        service, asked = self[name], duties(self[name])
        run = service.run
        if asked.stop is not None:
            ended = inp.ProcessExited(run=run, signal=15)
            return self.give(name, ended if service.pid is not None else inp.GroupGone(run=run))
        if asked.timer is not None and service.state is State.RESTARTING:
            self.mono_ns = max(self.mono_ns, asked.timer.due_ns)
            return self.give(name, asked.timer.due)
        if asked.gate is None:
            return []
        if service.state is State.RUNNING and service.definition.oneshot:
            return self.give(name, inp.ProcessExited(run=run, exit_code=self.codes.get(name, 0)))
        return self.give(name, *self._signs_of_life(service))

    def _signs_of_life(self, service: Service) -> Any:
        run = service.run
        signs: list[inp.Input] = [inp.GateOpened(run=run)]
        if service.definition.readiness is Ready.NOTIFY:
            signs.append(inp.NotifiedReady(run=run))
        signs += [
            inp.Probed(run=run, check=check.name, ok=True, count=check.successes)
            for check in service.definition.checks
        ]
        return signs[0], *((service.name, sign) for sign in signs[1:])

    def settle(self, *, rounds: int = 40) -> None:
        """Do what the duties of all ask for, until all is as it is to be."""
        self.busy = False
        self.quiet()
        for _ in range(rounds):
            names = [name for name in list(self.services) if not self.is_settled(name)]
            if not names:
                return
            for name in names:
                if name in self.services:
                    self.obey(name)
        raise AssertionError(f"never settles: {[(n, self.where(n)) for n in names]}")

    def recovered(self, upto: int) -> System:
        """A later registry, that read the journal up to a place between two decisions."""
        later = System()
        later.mono_ns, later.refused, later.codes = self.mono_ns, self.refused, self.codes
        later.records = self.records[:upto]
        later.projection.fold(later.records)
        later.lives.fold(later.records)
        for service in later.services.values():
            later.graph.declare(service.definition)
        later.waiting += later.services
        return later

    # --- what can be asked of it ------------------------------------------------------------------

    def is_settled(self, name: str) -> bool:
        return is_settled(self[name], self.services)

    def where(self, name: str) -> tuple[State, Reason]:
        return self[name].state, self[name].reason

    def running(self) -> set[str]:
        return {name for name, each in self.services.items() if each.state is State.RUNNING}

    def moves(self, kind: str) -> list[str]:
        """The services with an event of this type, in the order of the journal."""
        return [record.service or "" for record in self.records if record.type == kind]


def _source(record: ev.Record) -> State | None:
    return record.event.source if isinstance(record.event, ev.Moved) else None


def _define(checks: tuple[str, ...] = (), **fields: Any) -> Definition:
    restart = {key: fields.pop(key) for key in Restart.__struct_fields__ if key in fields}
    restart["policy"] = Policy(restart.get("policy", Policy.ALWAYS))
    return Definition(
        name=fields.pop("name", "web"),
        cmd=("./web",),
        restart=Restart(**restart),
        checks=tuple(
            check if isinstance(check, Check) else Check(check, "unix:/s") for check in checks
        ),
        **fields,
    )


@pytest.fixture
def define() -> Callable[..., Definition]:
    """A definition from plain fields; those of its restart are given by their own names."""
    return _define


@pytest.fixture
def world() -> Callable[..., World]:
    """A world made of the fields of a definition."""

    def make(journal_id: str = JOURNAL_ID, **fields: Any) -> World:
        return World(_define(**fields), journal_id)

    return make


@pytest.fixture(scope="session")
def system() -> Callable[..., System]:
    """A system of services: each `name=(what it depends on, further fields)`.

    What it depends on is written as in `services.toml`: names with `:condition` where that is not ready, with `!`
    at the end where restarts are followed.
    """

    def make(**services: tuple[str, dict[str, Any]] | str) -> System:
        definitions = []
        for position, (name, what) in enumerate(services.items()):
            needs_, fields = what if isinstance(what, tuple) else (what, {})
            depends_on = tuple(_dependency(word) for word in needs_.split())
            places: dict[str, Any] = {"name": name, "position": position, "depends_on": depends_on}
            definitions.append(_define(**places, **fields))
        return System(*definitions)

    return make


@pytest.fixture(scope="session")
def system_of() -> Callable[..., System]:
    """A system of services by their definitions."""
    return System


def _dependency(word: str) -> Dependency:
    name, _, condition = word.removesuffix("!").partition(":")
    return Dependency(name, Condition(condition or "ready"), restart=word.endswith("!"))
