"""What holds whatever arrives: random inputs on virtual time, for two services in one journal.

A run is a list of steps; a step either does what the duties ask for, or is any input at all, of any run. At the end
the same for up to four services that depend on each other.
"""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from registry.core import checks as tallies
from registry.core import events as ev
from registry.core import inputs as inp
from registry.core.decision import Place, decide, is_news
from registry.core.definition import (
    Check,
    Condition,
    Definition,
    Dependency,
    OnFailure,
    Policy,
    Ready,
    Restart,
)
from registry.core.dependencies import around, is_settled
from registry.core.duties import Duties, duties
from registry.core.lifecycle import FOR_A_PERSON, PASSING, Reason, State, is_legal
from registry.core.projection import Projection
from registry.core.restarts import NS
from registry.core.service import HAS_RUN, UP, Service
from registry.journal.rows import NO_HASH, to_record, to_rows
from registry.questions.waiting import waiting_for

ACTORS = st.none() | st.builds(
    ev.Actor, uid=st.just(0), pid=st.just(7), program=st.just("circlectl")
)
CHECKS = st.lists(
    st.builds(
        Check,
        name=st.sampled_from(["a", "b"]),
        target=st.just("unix:/s"),
        failures=st.integers(1, 3),
        successes=st.integers(1, 2),
        on_failure=st.sampled_from(OnFailure),
    ),
    max_size=2,
    unique_by=lambda check: check.name,
).map(tuple)
RESTARTS = st.tuples(
    st.sampled_from(Policy),
    st.sampled_from([0.0, 0.5, 5.0]),
    st.sampled_from([(None, None), (1, 60.0), (3, 600.0)]),
).map(lambda r: Restart(r[0], r[1], 30.0, *r[2]))
FIELDS = st.fixed_dictionaries(
    {
        "restart": RESTARTS,
        "checks": CHECKS,
        "start_timeout_s": st.sampled_from([0.0, 0.1, 1.001, 90]),
    }
)

CODES = st.sampled_from([(0, None), (1, None), (None, 9), (None, 15), (111, None)])
ODD_RUNS = st.sampled_from([0, 0, 0, 0, 1, -1, 2])
FAILURES = st.sampled_from(sorted(FOR_A_PERSON | PASSING))

# A step is (kind, what it takes), the run given as its distance from the present one.
OBEY = st.tuples(st.just("obey"), st.just(()))
START = st.tuples(st.just("start"), st.tuples(ACTORS))
CRASH = st.just(("exited", (0, (1, None), True, False)))
PROBE = st.tuples(st.just("probed"), st.tuples(st.just(0), st.sampled_from("ab"), st.booleans()))
ANY = st.one_of(
    st.tuples(st.sampled_from(["start", "stop", "restart", "reset", "remove"]), st.tuples(ACTORS)),
    st.tuples(st.just("define"), st.tuples(FIELDS, st.sampled_from(["1", "2"]))),
    st.tuples(st.just("spawned"), st.tuples(ODD_RUNS)),
    st.tuples(st.just("refused"), st.tuples(ODD_RUNS, FAILURES)),
    st.tuples(st.sampled_from(["gate", "found", "start_due", "restart_due"]), st.tuples(ODD_RUNS)),
    st.tuples(st.just("probed"), st.tuples(ODD_RUNS, st.sampled_from("abc"), st.booleans())),
    st.tuples(st.just("exited"), st.tuples(ODD_RUNS, CODES, st.booleans(), st.booleans())),
    st.tuples(st.just("launch_failed"), st.tuples(ODD_RUNS, FAILURES)),
    st.tuples(st.just("lost"), st.tuples(ODD_RUNS, st.booleans())),
    st.tuples(st.just("emptied"), st.tuples(ODD_RUNS, st.integers(0, 2))),
)
STEP = st.tuples(
    st.sampled_from(["one", "two"]),
    st.sampled_from([0.0, 0.001, 0.5, 3.0, 31.0, 100.0]),
    # most of the time something sensible, so that the rest meets services in every state
    st.one_of(START, OBEY, OBEY, OBEY, OBEY, OBEY, OBEY, CRASH, CRASH, PROBE, PROBE, ANY, ANY),
)
# lists are short by themselves: the second kind gets far, the first is what a failure shrinks to
STEPS = st.one_of(st.lists(STEP, max_size=40), st.lists(STEP, min_size=30, max_size=60))


class Host:
    """Two live services, their common journal, and a host that answers as the steps say."""

    def __init__(self, fields: dict[str, dict[str, Any]]) -> None:
        self.mono_ns = 1000 * NS
        self.records: list[ev.Record] = []
        self.ends: list[int] = []
        self.lives = Projection()
        self.projection = Projection()
        self.runs: dict[str, int] = {}
        self.tallies: dict[tuple[str, int, str], tallies.Tally] = {}
        for position, (name, more) in enumerate(fields.items()):
            self.define(name, position, more, "1")

    @property
    def live(self) -> dict[str, Service]:
        """The live services by name."""
        return self.lives.services

    def define(self, name: str, position: int, fields: dict[str, Any], digest: str) -> None:
        definition = Definition(name=name, cmd=("x",), position=position, **fields)
        if name not in self.live:
            self.lives.add(definition)
        self.give(name, inp.Define(definition=definition, digest=digest))

    def give(self, name: str, given_: inp.Input) -> list[ev.Record]:
        """Decide, hold the decision to every law, and fold it."""
        service = self.live[name]
        before = copy.deepcopy(service)
        now = ev.Now(self.mono_ns + 10**18, self.mono_ns)
        new = decide(service, given_, Place(now, len(self.records) + 1, "j"))
        assert not new or not isinstance(given_, inp.Probed) or is_news(before, given_)
        self.records += new
        self.ends.append(len(self.records))
        self.projection.fold(new)
        if not new:
            assert service == before, "an ignored input changed the service"
        self._check_places(new, before, getattr(given_, "actor", None))
        self._check_runs(name, new, before)
        if new and new[-1].type == "removed":
            self.lives.remove(name)
        assert self.projection.services == self.live
        assert self.projection.last_runs == self.lives.last_runs
        return new

    def _check_places(self, new: list[ev.Record], before: Service, actor: ev.Actor | None) -> None:
        first, state = len(self.records) - len(new) + 1, before.state
        for seq, record in enumerate(new, first):
            assert (record.seq, record.decision, record.actor) == (seq, first, actor)
            assert record.cause is None or 0 < record.cause < seq
            if isinstance(record.event, ev.Moved):
                assert record.event.source is state
                assert is_legal(record.type, state, record.event.dest)
                state = record.event.dest

    def _check_runs(self, name: str, new: list[ev.Record], before: Service) -> None:
        pid = before.pid
        for record in new:
            if isinstance(record.event, ev.Spawned):
                assert pid is None, "two processes at a time"
                assert record.run == self.runs.get(name, 0) + 1, "a run number is used twice"
                self.runs[name], pid = record.run, record.event.pid
            elif isinstance(record.event, ev.Exited | ev.Lost):
                assert pid is not None, "a run ended that had no process"
                pid = None

    def step(self, name: str, seconds: float, kind: str, values: tuple[Any, ...]) -> None:
        """Let time pass, and let one thing happen."""
        self.mono_ns += int(seconds * NS)
        if kind == "define":
            self.define(name, ["one", "two"].index(name), *values)
        elif name not in self.live:
            return
        elif kind == "obey":
            self.obey(name)
        else:
            self.give(name, self.input(name, kind, *values))

    def input(self, name: str, kind: str, *values: Any) -> inp.Input:
        """The input that a step names."""
        if kind in COMMANDS:
            return COMMANDS[kind](actor=values[0])
        off, *rest = values
        run = self.live[name].run + off
        match kind:
            case "spawned":
                return inp.SpawnSucceeded(run=run + 1, pid=1000 + run, start_time=1, digest="1")
            case "refused":
                return inp.SpawnRefused(run=run + 1, reason=rest[0], message="no")
            case "found":
                return inp.ProcessFound(run=run, pid=1000 + run)
            case "probed":
                return self.probed(name, run, *rest)
            case "exited":
                (code, signal), empty, never_ran = rest
                return inp.ProcessExited(
                    run=run, exit_code=code, signal=signal, group_empty=empty, never_ran=never_ran
                )
            case "launch_failed":
                return inp.ProcessExited(run=run, exit_code=203, launch_failure=rest[0])
            case "lost":
                return inp.ProcessLost(run=run, group_empty=rest[0])
            case "emptied":
                return inp.GroupGone(run=run, killed=rest[0])
        return BARE[kind](run=run)

    def probed(self, name: str, run: int, check: str, ok: bool) -> inp.Probed:
        key = (name, run, check)
        error = None if ok else "refused"
        self.tallies[key], result = tallies.count(
            self.tallies.get(key), run=run, check=check, ok=ok, error=error, latency_ns=1, at_ns=1
        )
        return result

    def obey(self, name: str) -> None:
        """Do what a service's duties ask for, and let it succeed."""
        service, asked = self.live[name], duties(self.live[name])
        run = service.run
        if asked.spawn is not None:
            self.give(name, self.input(name, "spawned", 0))
        elif asked.stop is not None:
            if service.pid is not None:
                self.give(name, inp.ProcessExited(run=run, signal=15))
            else:
                self.give(name, inp.GroupGone(run=run))
        elif service.state is State.STARTING and service.definition.checks:
            for check in service.definition.checks:
                self.give(name, self.probed(name, run, check.name, True))
        elif asked.gate is not None:
            self.give(name, inp.GateOpened(run=run))
        elif asked.timer is not None:
            self.mono_ns = max(self.mono_ns, asked.timer.due_ns)
            assert self.give(name, asked.timer.due), "its timer rang, and nothing came of it"

    def check_state(self) -> None:
        """What must be true of each service between two decisions."""
        for service in self.live.values():
            check_one(service)


COMMANDS: dict[str, Any] = {
    "start": inp.Start,
    "stop": inp.Stop,
    "restart": inp.Restart,
    "reset": inp.Reset,
    "remove": inp.Remove,
}
BARE: dict[str, Any] = {
    "gate": inp.GateOpened,
    "start_due": inp.StartTimerDue,
    "restart_due": inp.RestartTimerDue,
}


def check_one(service: Service) -> None:
    asked = duties(service)
    nothing = asked == Duties()
    assert not nothing or is_settled(service, {}), "neither settled nor anything under way"
    if service.wanted and nothing:
        assert service.state in (State.STOPPED, State.FAILED)
    assert service.pid is None or service.state in HAS_RUN
    assert service.pid is not None or service.state is not State.RUNNING, (
        "Running without a process"
    )
    assert (service.bound is not None) or service.state is not State.STOPPING
    assert (service.restart_due_ns is not None) is (service.state is State.RESTARTING)
    if not service.wanted:
        assert asked.spawn is None, "a process is asked for that nobody wants"
        assert asked.timer is None or service.state is State.STARTING


ALL_SEEDS = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
FIELDS_OF_BOTH = st.fixed_dictionaries({"one": FIELDS, "two": FIELDS})
CHECKED: dict[str, Any] = {"restart": Restart(), "checks": (Check("a", "unix:/s"),)}
PLAIN: dict[str, Any] = {"restart": Restart()}


def play(fields: dict[str, dict[str, Any]], steps: list[Any]) -> Host:
    host = Host(fields)
    for name, seconds, (kind, values) in steps:
        host.step(name, seconds, kind, values)
        host.check_state()
    return host


@pytest.mark.timeout(60)
@ALL_SEEDS
@given(FIELDS_OF_BOTH, STEPS)
@example(
    {"one": PLAIN, "two": PLAIN},
    [
        ("one", 0.0, ("start", (None,))),
        ("one", 0.0, ("obey", ())),
        ("one", 0.0, ("exited", (0, (1, None), True, False))),
        ("one", 0.0, ("gate", (0,))),
    ],
)
def test_whatever_arrives_every_decision_keeps_the_laws(fields, steps):
    """Laws: see Host.give and check_one; among them that the fold is the live service at each step."""
    play(fields, steps)


@pytest.mark.timeout(60)
@ALL_SEEDS
@given(FIELDS_OF_BOTH, STEPS)
def test_a_journal_cut_between_two_decisions_folds_and_forgets_no_service(fields, steps):
    host = play(fields, steps)
    projection, begin = Projection(), 0
    for end in host.ends:
        projection.fold(host.records[begin:end])
        begin = end
        for service in projection.services.values():
            check_one(service)
    assert projection.services == host.live
    assert projection.seq == len(host.records)


@pytest.mark.timeout(60)
@ALL_SEEDS
@given(FIELDS_OF_BOTH, STEPS)
def test_every_record_is_the_same_after_a_journey_through_a_row(fields, steps):
    records = play(fields, steps).records
    rows = to_rows(records, NO_HASH)
    assert [to_record(row) for row in rows] == records
    assert len({row[-1] for row in rows}) == len(rows)


@pytest.mark.timeout(60)
@ALL_SEEDS
@given(FIELDS_OF_BOTH, STEPS)
def test_from_wherever_it_is_doing_what_the_duties_ask_settles_a_service(fields, steps):
    host = play(fields, steps)
    for name in list(host.live):
        for _ in range(6):
            if name not in host.live or is_settled(host.live[name], host.live):
                break
            host.obey(name)
            host.check_state()
        assert name not in host.live or is_settled(host.live[name], host.live)


@pytest.mark.timeout(60)
@ALL_SEEDS
@given(FIELDS_OF_BOTH, STEPS, st.sampled_from(["start", "restart", "stop"]))
def test_the_last_word_of_an_operator_comes_true(fields, steps, word):
    host = play(fields, steps)
    for name in list(host.live):
        removing = host.live[name].removing
        host.give(name, host.input(name, word, None))
        for _ in range(6):
            if name in host.live and duties(host.live[name]) != Duties():
                host.obey(name)
        if removing:
            assert name not in host.live
        else:
            rest = host.live[name]
            assert rest.state is (State.STOPPED if word == "stop" else State.RUNNING)


@pytest.mark.timeout(60)
@ALL_SEEDS
@given(FIELDS_OF_BOTH, STEPS)
def test_the_same_inputs_give_the_same_journal(fields, steps):
    assert play(fields, steps).records == play(fields, steps).records


# --- services that depend on each other -----------------------------------------------------------

KINDS = st.sampled_from(["spawn", "spawn", "notify", "health", "oneshot"])
ENDS = st.builds(
    Restart,
    policy=st.sampled_from(Policy),
    delay_s=st.just(0.5),
    limit=st.sampled_from([None, 1]),
    within_s=st.just(600.0),
)


@st.composite
def graphs(draw):
    """Three or four services, each of which may depend on any before it."""
    made: list[Definition] = []
    for position, name in enumerate(draw(st.sampled_from(["abc", "abcd"]))):
        chosen = [each for each in made if draw(st.booleans())]
        depends_on = tuple(draw(dependency(each)) for each in chosen)
        made.append(definition_of(name, position, draw(KINDS), draw(ENDS), depends_on))
    return made


def definition_of(name, position, kind, restart, depends_on):
    how: dict[str, Any] = {
        "spawn": {},
        "notify": {"ready": Ready.NOTIFY},
        "health": {"checks": (Check("beat", "unix:/s", successes=2),)},
        "oneshot": {"oneshot": True},
    }
    return Definition(
        name, ("x",), position, restart=restart, depends_on=depends_on, autostart=False, **how[kind]
    )


def dependency(target):
    conditions = [Condition.STARTED, Condition.READY, Condition.HEALTHY]
    if target.oneshot:
        conditions = [Condition.COMPLETED]
    return st.builds(Dependency, st.just(target.name), st.sampled_from(conditions), st.booleans())


LIKELY = ["start", "start", "crash", "end", *["obey"] * 5, *["look"] * 2]
OTHER = ["stop", "stop_with", "restart", "unhealthy", "refuse", "accept", "reset", "lost"]
TURN = st.tuples(st.sampled_from("abcd"), st.sampled_from([*LIKELY, *OTHER, "loosen", "remove"]))
TURNS = st.one_of(st.lists(TURN, max_size=25), st.lists(TURN, min_size=15, max_size=40))


def turn(s, name, kind):
    """One thing that may happen to one of the services of a system."""
    if name not in s.services:
        return
    run = s[name].run
    match kind:
        case "obey":
            s.obey(name)
        case "look" if s.waiting:
            s.decide((s.waiting.popleft(), inp.Reconsider()))
        case "crash":
            s.crash(name)
        case "end":
            s.give(name, inp.ProcessExited(run=run, exit_code=0))
        case "lost":
            s.give(name, inp.ProcessLost(run=run))
        case "stop_with":
            s.stop(name)
        case "unhealthy":
            s.give(name, inp.Probed(run=run, check="beat", ok=False, count=3))
        case "refuse":
            s.refused[name] = Reason.CWD_MISSING
        case "accept":
            s.refused.pop(name, None)
        case "loosen":
            fewer = s[name].definition.depends_on[1:]
            s.define(msgspec.structs.replace(s[name].definition, depends_on=fewer))
        case _ if kind in COMMANDS:
            s.give(name, COMMANDS[kind]())


def live_through(system_of, definitions, turns):
    """A system after turns in which some look at their neighbours late."""
    s = system_of(*definitions)
    s.busy = True
    for name, kind in turns:
        turn(s, name, kind)
    return s


def check_system(s):
    """What must be true once everybody has looked at its neighbours."""
    assert not s.waiting
    for service in s.services.values():
        neighbours = around(service, s.services, s.graph)
        if duties(service) == Duties():
            check_rest(s, service)
        if service.state in UP and not service.wanted:
            assert neighbours.held, "nobody holds its stop, and it goes on"
            assert waiting_for(service, s.services)
        if service.state in UP and service.wanted and service.pid is not None:
            assert not neighbours.follows, "it does not follow"


def check_rest(s, service):
    is_waiting = service.wanted and service.reason is Reason.WAITING
    if is_waiting:
        assert waiting_for(service, s.services), "it waits, and cannot say for whom"
    else:
        assert is_settled(service, s.services)


SYSTEMS = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.timeout(120)
@SYSTEMS
@given(graphs(), TURNS)
def test_whatever_happens_in_a_system_nobody_starts_or_stops_before_its_turn(
    system_of, definitions, turns
):
    """Each decision is held to it, see System; and to the fold of the journal."""
    s = live_through(system_of, definitions, turns)
    s.quiet()
    check_system(s)


@pytest.mark.timeout(120)
@SYSTEMS
@given(graphs(), TURNS)
def test_from_wherever_it_is_doing_what_the_duties_ask_settles_a_system(
    system_of, definitions, turns
):
    s = live_through(system_of, definitions, turns)
    s.settle()
    check_system(s)
    for service in s.services.values():
        if service.wanted and service.state is State.STOPPED:
            assert service.reason in (Reason.WAITING, Reason.COMPLETED)


@pytest.mark.timeout(120)
@SYSTEMS
@given(graphs(), TURNS)
def test_whatever_was_before_a_start_of_all_brings_all_up(system_of, definitions, turns):
    s = live_through(system_of, definitions, turns)
    s.refused.clear()
    s.settle()
    names = list(s.services)
    s.start(*names)
    s.settle()
    for name in names:
        service = s[name]
        lacks = [each for each in service.definition.depends_on if each.service not in s.services]
        assert lacks or waits_for_lacking(s, service) or is_up(service), s.where(name)


def is_up(service):
    is_done = service.definition.oneshot and service.completed
    return service.state is State.RUNNING or (service.state is State.STOPPED and is_done)


def waits_for_lacking(s, service):
    """Whether one that is not declared any more is at the root of its waiting."""
    return service.reason is Reason.WAITING and any(
        each.service not in s.services or waits_for_lacking(s, s[each.service])
        for each in service.definition.depends_on
    )


@pytest.mark.timeout(120)
@SYSTEMS
@given(graphs(), TURNS, st.booleans())
def test_whatever_was_before_a_stop_of_all_ends_with_all_down(
    system_of, definitions, turns, are_quiet
):
    s = live_through(system_of, definitions, turns)
    if are_quiet:
        s.quiet()
    if s.services:
        s.stop(*s.services)
    s.settle()
    for service in s.services.values():
        assert not service.wanted
        assert service.state in (State.STOPPED, State.FAILED)


@pytest.mark.timeout(120)
@SYSTEMS
@given(graphs(), TURNS)
def test_a_registry_killed_after_any_decision_is_followed_by_one_that_forgets_nothing(
    system_of, definitions, turns
):
    s = live_through(system_of, definitions, turns)
    ends = s.ends[len(definitions) :]
    for upto in ends[:: max(1, len(ends) // 8)]:
        later = s.recovered(upto)
        later.quiet()
        check_system(later)
        later.settle()
        check_system(later)


@pytest.mark.timeout(120)
@SYSTEMS
@given(graphs(), TURNS)
def test_looking_again_once_everybody_has_looked_changes_nothing(system_of, definitions, turns):
    s = live_through(system_of, definitions, turns)
    s.quiet()
    before = len(s.records)
    s.waiting += s.services
    s.quiet()
    assert len(s.records) == before
