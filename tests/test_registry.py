"""The one writer, with a journal that can be switched off.

What is held, in what order, and what bounds it; what is decided together, and whom it tells.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import Any

import pytest

from registry import held
from registry import registry as writer
from registry.api.commands import Commands
from registry.core import checks
from registry.core import events as ev
from registry.core import inputs as inp
from registry.core.decision import decide
from registry.core.definition import Check, Definition, Dependency, Ready, Reload, Restart
from registry.core.lifecycle import Reason, State
from registry.core.projection import Projection
from registry.core.service import Request
from registry.registry import NotCommitted, Registry, Unavailable


class FakeJournal:
    """Keeps what is appended; while `broken`, nothing is."""

    def __init__(self):
        self.records: list[ev.Record] = []
        self.batches: list[list[ev.Record]] = []
        self.broken = False

    async def append(self, records):
        await asyncio.sleep(0)
        if self.broken:
            raise OSError("no space left on device")
        self.records += records
        self.batches.append(list(records))


class FakeClock:
    """A clock that is set by hand; its timers are never due."""

    def __init__(self):
        self.mono_ns = 1

    def now(self):
        self.mono_ns += 1
        return ev.Now(10**18 + self.mono_ns, self.mono_ns)

    def call_at(self, due_ns, callback):
        return asyncio.get_running_loop().call_later(3600, callback)


class FakeHost:
    """Every process starts at once, and everything that was done is listed."""

    def __init__(self):
        self.done: list[tuple] = []

    @asynccontextmanager
    async def ahead(self, runs):
        self.done.append(("ahead", *((definition.name, run) for definition, run in runs)))
        yield
        self.done.append(("no more ahead",))

    async def spawn(self, definition, run, digest):
        self.done.append(("spawn", definition.name, run))
        return inp.SpawnSucceeded(run=run, pid=1000 + run, start_time=1, digest=digest)

    def open_gate(self, service, run):
        first = ("gate", service, run) not in self.done
        self.done.append(("gate", service, run))
        return first

    def stop(self, service, run, duty):
        self.done.append(("stop", service, run))

    def release(self, service, up_to_run):
        self.done.append(("release", service, up_to_run))

    def watch(self, service):
        self.done.append(("watch", service.name, service.run))

    def became_ready(self, service):
        self.done.append(("ready", service))

    def unwatch(self, service, run):
        self.done.append(("unwatch", service, run))

    def rest(self, service):
        self.done.append(("rest", service))

    def redefine(self, service):
        self.done.append(("redefine", service.name, service.run))

    def carry_out(self, service, request):
        self.done.append(("carry_out", service.name, request))


@pytest.fixture
async def made(monkeypatch):
    """A registry with one service that runs, its journal and its host."""
    monkeypatch.setattr(held, "RETRY_S", 0.01)
    journal, host = FakeJournal(), FakeHost()
    registry = Registry(Projection(), journal, host, FakeClock())
    await registry.write(ev.JournalCreated(journal_id="j", schema=1))
    at_once = Restart(delay_s=0, delay_max_s=0)
    definition = Definition(name="web", cmd=("x",), restart=at_once)
    registry.declare([("web", inp.Define(definition=definition, digest="d"))])
    registry.declare([("web", inp.Start())])
    running = asyncio.create_task(registry.run())
    await asyncio.wait_for(registry.until(lambda: state(registry) is State.RUNNING), 5)
    yield registry, journal, host
    journal.broken = False
    registry.finish()
    await running
    registry.close()


def state(registry):
    service = registry.committed.services.get("web")
    return service.state if service else None


async def crash(registry):
    run = registry.committed.services["web"].run
    registry.observe("web", inp.ProcessExited(run=run, signal=9))
    await asyncio.wait_for(
        registry.until(lambda: registry.committed.services["web"].run == run + 1), 5
    )


async def written(registry):
    while registry.degraded_since_ns is not None:  # noqa: ASYNC110  nothing tells of it
        await asyncio.sleep(0.005)


async def test_the_gate_opens_only_after_the_pid_is_in_the_journal(made):
    _registry, journal, host = made
    assert host.done.index(("spawn", "web", 1)) < host.done.index(("gate", "web", 1))
    assert [record.type for record in journal.records][:4] == [
        "journal_created",
        "defined",
        "start_requested",
        "spawned",
    ]


async def test_while_the_journal_cannot_be_written_services_are_restarted_and_commands_refused(
    made,
):
    registry, journal, host = made
    journal.broken = True
    await crash(registry)
    assert registry.degraded_since_ns is not None
    assert ("gate", "web", 2) in host.done
    with pytest.raises(Unavailable, match="no space left"):
        await registry.command([("web", inp.Stop())])
    journal.broken = False
    await written(registry)
    assert [record.seq for record in journal.records] == list(range(1, len(journal.records) + 1))
    assert journal.records[-1].type in ("spawned", "became_ready")


async def test_the_command_whose_commit_failed_has_an_unknown_outcome(made):
    registry, journal, _host = made
    journal.broken = True
    with pytest.raises(NotCommitted):
        await registry.command([("web", inp.Stop())])
    journal.broken = False
    await written(registry)
    assert "stop_requested" in [record.type for record in journal.records]


async def test_at_the_bound_what_is_held_of_a_service_becomes_its_state(made, monkeypatch):
    registry, journal, _host = made
    monkeypatch.setattr(held, "HELD_MAX", 20)
    before = len(journal.records)
    journal.broken = True
    for _ in range(12):
        await crash(registry)
        await asyncio.sleep(0)
    journal.broken = False
    await written(registry)
    await crash(registry)
    added = journal.records[before:]
    assert "resynced" in [record.type for record in added]
    assert len(added) < 40
    assert [record.seq for record in journal.records] == list(range(1, len(journal.records) + 1))
    refolded = Projection()
    refolded.fold(journal.records)
    assert refolded.services == registry.committed.services


# --- what is decided together, and what is called when ---------------------------------------------

ROOT = ev.Actor(uid=0, pid=7, program="circlectl")


async def test_what_is_so_already_is_not_durable_where_what_made_it_so_is_only_held(made):
    registry, journal, _host = made
    journal.broken = True
    answers = await asyncio.gather(
        registry.command([("web", inp.Restart(actor=ROOT))]),
        registry.command([("web", inp.Start(actor=ROOT))]),
        return_exceptions=True,
    )
    assert [type(answer) for answer in answers] == [NotCommitted, NotCommitted]
    journal.broken = False
    await written(registry)


async def test_one_that_was_removed_is_not_forgotten_beyond_the_bound(made, monkeypatch):
    registry, journal, _host = made
    monkeypatch.setattr(held, "HELD_MAX", 6)
    await registry.command([declared("gone")])
    await registry.command([("gone", inp.Start(actor=ROOT))])
    await reaches(registry, "gone", State.RUNNING)
    journal.broken = True
    registry.observe("gone", inp.ProcessExited(run=1, signal=9))
    await asyncio.wait_for(registry.until(lambda: registry.committed.services["gone"].run == 2), 5)
    registry.declare([("gone", inp.Remove())])
    registry.observe("gone", inp.ProcessExited(run=2, signal=15))
    await asyncio.wait_for(registry.until(lambda: "gone" not in registry.committed.services), 5)
    await crash(registry)
    await crash(registry)
    journal.broken = False
    await written(registry)
    folded = Projection()
    folded.fold(journal.records)
    assert "gone" not in folded.services
    assert folded.last_runs == {"gone": 2}


def declared(name, *needs, **fields):
    depends_on = tuple(Dependency(need) for need in needs)
    definition = Definition(name=name, cmd=("x",), depends_on=depends_on, **fields)
    return name, inp.Define(definition=definition, digest=f"digest-{name}")


def of(records, *names):
    return [(record.service, record.type) for record in records if record.service in names]


async def reaches(registry, name, wanted):
    await asyncio.wait_for(
        registry.until(lambda: registry.committed.services[name].state is wanted), 5
    )


async def idle(registry):
    """Until everything that has arrived is worked off."""
    worked_off = asyncio.Event()
    registry.observe("nobody", inp.GateOpened(run=1), worked_off.set)
    await asyncio.wait_for(worked_off.wait(), 5)


async def test_done_is_called_once_what_was_seen_is_in_the_journal(made):
    registry, journal, _host = made
    told = asyncio.Event()
    calls: list[bool] = []

    def done():
        calls.append("exited" in [record.type for record in journal.records])
        told.set()

    registry.observe("web", inp.ProcessExited(run=1, exit_code=3), done)
    assert not told.is_set()
    await asyncio.wait_for(told.wait(), 5)
    assert calls == [True]


async def test_done_is_called_when_nothing_came_of_it_and_when_it_is_only_held(made):
    registry, journal, _host = made
    told = asyncio.Event()
    registry.observe("web", inp.ProcessExited(run=77), told.set)
    await asyncio.wait_for(told.wait(), 5)
    told.clear()
    journal.broken = True
    registry.observe("web", inp.ProcessExited(run=1, exit_code=3), told.set)
    await asyncio.wait_for(told.wait(), 5)
    assert "exited" in [record.type for record in registry.recent]
    assert "exited" not in [record.type for record in journal.records]


async def test_steps_that_are_handed_in_together_are_one_decision_in_one_transaction(made):
    registry, journal, _host = made
    steps = [declared("a"), ("a", inp.Start(actor=ROOT)), declared("b"), ("b", inp.Start())]
    accepted = await registry.command([*steps, ("web", inp.Stop(actor=ROOT))])
    assert (accepted.service, accepted.already) == ("a", False)
    decided = [r for r in journal.records if r.decision == accepted.seq]
    assert of(decided, "a", "b", "web") == [
        ("a", "defined"),
        ("a", "start_requested"),
        ("a", "spawned"),
        ("b", "defined"),
        ("b", "start_requested"),
        ("b", "spawned"),
        ("web", "stop_requested"),
    ]
    assert sum(any(record in decided for record in batch) for batch in journal.batches) == 1


async def test_steps_that_cannot_be_journaled_are_in_the_journal_whole_or_not_at_all(made):
    registry, journal, _host = made
    journal.broken = True
    with pytest.raises(NotCommitted):
        await registry.command([declared("a"), declared("b"), ("web", inp.Stop())])
    assert of(journal.records, "a", "b") == []
    with pytest.raises(Unavailable):
        await registry.command([declared("c"), ("web", inp.Start())])
    journal.broken = False
    await written(registry)
    assert of(journal.records, "a", "b", "c") == [("a", "defined"), ("b", "defined")]
    whole = next(batch for batch in journal.batches if of(batch, "a"))
    assert of(whole, "a", "b", "web")[:3] == [
        ("a", "defined"),
        ("b", "defined"),
        ("web", "stop_requested"),
    ]


async def test_before_is_called_when_its_turn_has_come(made):
    registry, journal, host = made
    turns: list[tuple[bool, bool]] = []

    def before():
        is_next_spawned = ("spawn", "web", 2) in host.done
        turns.append((is_next_spawned, ("spawn", "web", 3) in host.done))

    registry.observe("web", inp.ProcessExited(run=1, signal=9))
    asked = asyncio.ensure_future(registry.command([("web", inp.Restart(actor=ROOT))], before))
    assert turns == []
    await asyncio.wait_for(asked, 5)
    assert turns == [(True, False)]
    assert journal.records[-1].type in ("restart_requested", "became_ready")


async def test_before_is_not_called_for_a_command_that_is_refused(made):
    registry, journal, _host = made
    journal.broken = True
    await crash(registry)
    called: list[None] = []
    with pytest.raises(Unavailable):
        await registry.command([("web", inp.Stop())], lambda: called.append(None))
    assert called == []


# --- signals and reloads --------------------------------------------------------------------------


def carried_out(host):
    return [done[2] for done in host.done if done[0] == "carry_out"]


async def test_a_request_is_carried_out_once_and_again_by_a_registry_that_does_not_know(made):
    registry, journal, host = made
    accepted = await registry.command([("web", inp.Signal(signal="SIGHUP", actor=ROOT))])
    asked = Request(accepted.seq, "SIGHUP")
    assert carried_out(host) == [asked]
    await registry.command([("web", inp.Reset())])
    assert carried_out(host) == [asked], "what happens to it otherwise begins no request anew"
    before_done = list(journal.records)
    registry.observe("web", inp.RequestCarriedOut(run=1, request=asked.seq))
    await asyncio.wait_for(
        registry.until(lambda: not registry.committed.services["web"].requests), 5
    )
    await registry.command([("web", inp.Reset())])
    assert carried_out(host) == [asked]
    assert carried_out(recovered(before_done)[1]) == [asked]
    assert carried_out(recovered(journal.records)[1]) == []


async def test_requests_are_carried_out_in_the_order_in_which_they_were_made(made):
    registry, _journal, host = made
    definition = registry.committed.services["web"].definition
    definition = Definition(definition.name, ("x",), reload=Reload(signal="SIGHUP"))
    await registry.command([("web", inp.Define(definition=definition, digest="2"))])
    for command in (inp.Reload(), inp.Signal(signal="SIGUSR1"), inp.Reload()):
        await registry.command([("web", command)])
    assert [request.signal for request in carried_out(host)] == [None, "SIGUSR1", None]


def recovered(records):
    """A later registry, with the duties of what an earlier one journaled, and its host."""
    projection, host = Projection(), FakeHost()
    projection.fold(records)
    registry = Registry(projection, FakeJournal(), host, FakeClock())
    for name in projection.services:
        registry._perform(name)
    registry.close()
    return registry, host


# --- neighbours -----------------------------------------------------------------------------------


async def test_a_start_that_somebody_asks_for_starts_what_it_needs_in_the_same_decision(made):
    registry, journal, _host = made
    await registry.command([declared("db"), declared("app", "db")])
    accepted = await registry.command([("app", inp.Start(actor=ROOT))])
    decided = [record for record in journal.records if record.decision == accepted.seq]
    assert of(decided, "app", "db") == [
        ("app", "start_requested"),
        ("db", "start_requested"),
        ("db", "spawned"),
    ]
    required = decided[1]
    assert (required.event.reason, required.cause) == (Reason.REQUIRED, accepted.seq)
    assert required.actor == ROOT
    await reaches(registry, "app", State.RUNNING)


async def test_autostart_starts_what_it_needs_and_one_that_nobody_asked_for_does_not(made):
    registry, journal, _host = made
    await registry.command([declared("db"), declared("app", "db")])
    await registry.command([("app", inp.Start(reason=Reason.REQUIRED))])
    assert of(journal.records, "db") == [("db", "defined")]
    await registry.command([("app", inp.Stop())])
    await registry.command([("app", inp.Start(reason=Reason.AUTOSTART))])
    await reaches(registry, "app", State.RUNNING)


async def test_of_several_that_start_processes_are_made_ahead(made):
    registry, _journal, host = made
    await registry.command([declared("a"), declared("b"), declared("c"), declared("needs", "c")])
    host.done.clear()
    for name in ("a", "b", "needs"):
        registry.declare([(name, inp.Start())])
    await reaches(registry, "b", State.RUNNING)
    await idle(registry)
    ahead, *spawned, end = host.done[:4]
    assert ahead == ("ahead", ("a", 1), ("b", 1))  # the third waits
    assert spawned == [("spawn", "a", 1), ("spawn", "b", 1)]
    assert end == ("no more ahead",)
    host.done.clear()
    registry.observe("a", inp.ProcessExited(run=1, signal=9))
    await idle(registry)
    assert ("spawn", "a", 2) in host.done
    assert not any(what[0] == "ahead" for what in host.done)  # one alone gains nothing


async def test_a_run_that_is_foreseen_twice_is_made_once(made):
    registry, _journal, host = made
    await registry.command([declared("a"), declared("b")])
    host.done.clear()
    for name in ("a", "b", "a", "b"):
        registry.declare([(name, inp.Start())])
    await reaches(registry, "b", State.RUNNING)
    assert host.done[0] == ("ahead", ("a", 1), ("b", 1))


async def test_what_will_be_refused_is_not_made_ahead(made):
    registry, journal, host = made
    await registry.command([declared("a"), declared("b")])
    journal.broken = True
    await crash(registry)
    host.done.clear()
    refused = [registry.command([(name, inp.Start(actor=ROOT))]) for name in ("a", "b")]
    for answer in await asyncio.gather(*refused, return_exceptions=True):
        assert isinstance(answer, Unavailable)
    assert not any(what[0] in ("ahead", "spawn") for what in host.done)


async def test_foresight_moves_nothing(made):
    registry, journal, _host = made
    await registry.command([declared("a"), declared("b")])
    for _ in range(2):
        registry.declare([("a", inp.Start(reason=Reason.AUTOSTART))])
        registry.declare([("b", inp.Start(reason=Reason.AUTOSTART))])
        registry.declare([("a", inp.Stop())])
    await idle(registry)
    assert of(journal.records, "a")[1:4] == [
        ("a", "start_requested"),
        ("a", "spawned"),
        ("a", "stop_requested"),
    ]
    refolded = Projection()
    refolded.fold(journal.records)
    assert refolded.services == registry.committed.services


async def test_one_that_waits_is_told_of_what_it_waits_for_once_that_is_in_the_journal(made):
    registry, journal, _host = made
    await registry.command([declared("db", ready=Ready.NOTIFY), declared("app", "db")])
    await registry.command([("app", inp.Start(actor=ROOT))])
    await idle(registry)
    assert registry.committed.services["app"].reason is Reason.WAITING
    registry.observe("db", inp.NotifiedReady(run=1))
    await reaches(registry, "app", State.RUNNING)
    ready = next(r for r in journal.records if (r.service, r.type) == ("db", "became_ready"))
    met = next(record for record in journal.records if record.type == "dependencies_met")
    assert met.cause == ready.seq


async def test_a_restart_by_its_policy_starts_nothing_that_somebody_stopped(made):
    registry, journal, _host = made
    await registry.command([declared("db"), declared("app", "db")])
    await registry.command([("app", inp.Start(actor=ROOT))])
    await reaches(registry, "app", State.RUNNING)
    await registry.command([("db", inp.Stop(actor=ROOT))])
    registry.observe("db", inp.ProcessExited(run=1, signal=15))
    registry.observe("app", inp.ProcessExited(run=1, exit_code=1))
    await reaches(registry, "app", State.STOPPED)
    await idle(registry)
    assert registry.committed.services["app"].reason is Reason.WAITING
    assert of(journal.records, "db")[-1] == ("db", "group_emptied")


async def test_a_later_registry_has_everybody_look_at_his_neighbours(made):
    """Killed between the readiness of db and the start of app."""
    registry, journal, _host = made
    await registry.command([declared("db", ready=Ready.NOTIFY), declared("app", "db")])
    await registry.command([("app", inp.Start(actor=ROOT))])
    registry.observe("db", inp.NotifiedReady(run=1))
    await reaches(registry, "app", State.RUNNING)
    types = [record.type for record in journal.records]
    later, host = recovered(journal.records[: types.index("dependencies_met")])
    later.reconsider_all()
    await later.drain()
    assert ("spawn", "app", 1) in host.done
    later.close()


async def test_a_beginning_ends_whatever_services_do_meanwhile(made):
    """Who says something again as soon as it was heard would keep it going for good."""
    registry, journal, _host = made
    await registry.command([declared("db")])
    later, _host = recovered(journal.records)
    heard = []

    def say():
        heard.append(1)
        assert len(heard) < 100
        later.observe("db", inp.NotifiedReady(run=1), done=say)

    say()
    await later.work_off()
    later.close()


async def test_at_the_end_dependents_stop_first(made):
    registry, _journal, host = made
    await registry.command([declared("db"), declared("app", "db"), declared("page", "app")])
    await registry.command([("page", inp.Start(actor=ROOT))])
    await reaches(registry, "page", State.RUNNING)
    ending = asyncio.ensure_future(registry.stop_all())
    for name in ("page", "app", "db"):
        await reaches(registry, name, State.STOPPING)
        stopping = {each.name for each in registry.committed.services.values() if each.bound}
        assert stopping == {name, "web"}
        registry.observe(name, inp.ProcessExited(run=1, signal=15))
    registry.observe("web", inp.ProcessExited(run=1, signal=15))
    await asyncio.wait_for(ending, 5)
    stops = [done[1] for done in host.done if done[0] == "stop"]
    assert [name for name in dict.fromkeys(stops) if name != "web"] == ["page", "app", "db"]


async def test_what_was_asked_for_just_before_the_end_and_has_its_turn_after_it_is_stopped_too(
    made, monkeypatch
):
    registry, journal, host = made
    await registry.command([declared("late")])
    goes_on, append = asyncio.Event(), journal.append

    async def append_slowly(records):
        await goes_on.wait()
        await append(records)

    monkeypatch.setattr(journal, "append", append_slowly)
    asked = [asyncio.ensure_future(registry.command([("web", inp.Signal(signal="SIGHUP"))]))]
    await asyncio.sleep(0.01)  # that is being committed
    asked.append(asyncio.ensure_future(registry.command([("late", inp.Start(actor=ROOT))])))
    await asyncio.sleep(0)
    ending = asyncio.ensure_future(registry.stop_all())
    await asyncio.sleep(0)
    goes_on.set()
    await asyncio.wait_for(asyncio.gather(*asked), 5)
    for name in ("web", "late"):
        await reaches(registry, name, State.STOPPING)
        registry.observe(name, inp.ProcessExited(run=1, signal=15))
    await asyncio.wait_for(ending, 5)
    assert ("stop", "late", 1) in host.done


async def test_a_timer_that_comes_late_finds_its_service_gone_while_its_removal_is_being_committed(
    made, monkeypatch
):
    registry, journal, _host = made
    timers, append, goes_on = [], journal.append, asyncio.Event()

    def note(_clock, _due_ns, callback):
        timers.append(callback)
        return asyncio.get_running_loop().call_later(3600, callback)

    async def append_slowly(records):
        await goes_on.wait()
        await append(records)

    monkeypatch.setattr(FakeClock, "call_at", note)
    slow = Definition(name="slow", cmd=("x",), ready=Ready.NOTIFY)
    await registry.command([("slow", inp.Define(definition=slow, digest="d"))])
    await registry.command([("slow", inp.Start(actor=ROOT))])
    await reaches(registry, "slow", State.STARTING)
    monkeypatch.setattr(journal, "append", append_slowly)
    registry.declare([("slow", inp.Remove())])
    registry.observe("slow", inp.ProcessExited(run=1, signal=15))
    await asyncio.sleep(0.01)  # that is being committed
    registry._clock.mono_ns = 10**15  # this process stood still
    timers[-1]()
    assert "slow" in registry.committed.services
    goes_on.set()
    await asyncio.wait_for(registry.until(lambda: "slow" not in registry.committed.services), 5)


# --- who depends on whom may change -----------------------------------------------------------------


async def of_two(registry):
    """`app` runs, and depends on `db`."""
    await registry.command([declared("db"), declared("app", "db")])
    await registry.command([("app", inp.Start(actor=ROOT))])
    await reaches(registry, "app", State.RUNNING)


async def test_a_stop_goes_on_once_the_dependent_that_held_it_is_removed(made):
    registry, _journal, _host = made
    await of_two(registry)
    await registry.command([("app", inp.Remove()), ("db", inp.Remove())])
    registry.observe("app", inp.ProcessExited(run=1, signal=15))
    await reaches(registry, "db", State.STOPPING)


async def test_a_stop_goes_on_once_the_dependent_that_held_it_depends_on_it_no_more(made):
    registry, _journal, _host = made
    await of_two(registry)
    await registry.command([("app", inp.Stop()), ("db", inp.Stop())])
    await registry.command([declared("app")])
    await reaches(registry, "db", State.STOPPING)


async def test_one_that_waits_starts_once_it_depends_on_nothing_any_more(made):
    registry, _journal, _host = made
    await registry.command([declared("db", ready=Ready.NOTIFY), declared("app", "db")])
    await registry.command([("app", inp.Start(actor=ROOT))])
    await registry.command([declared("app")])
    await reaches(registry, "app", State.RUNNING)


async def test_a_start_of_one_that_was_just_removed_ends_nothing(made):
    registry, _journal, _host = made
    await of_two(registry)
    await registry.command([declared("gone"), ("gone", inp.Remove(actor=ROOT))])
    accepted = await registry.command([("gone", inp.Start(actor=ROOT))])
    assert accepted.already
    await registry.command([("web", inp.Stop(actor=ROOT))])


async def test_a_start_of_one_that_is_being_removed_starts_nothing_that_it_needs(made):
    registry, journal, _host = made
    await of_two(registry)
    await registry.command([("db", inp.Stop()), ("app", inp.Remove())])
    registry.observe("db", inp.ProcessExited(run=1, signal=15))
    await reaches(registry, "db", State.STOPPED)
    await registry.command([("app", inp.Start(actor=ROOT))])
    assert of(journal.records, "db")[-1] == ("db", "group_emptied")


@pytest.fixture
def looked(monkeypatch):
    """The names of those that look again at their neighbours."""
    names: list[str] = []

    def note(service, given, place):
        if isinstance(given, inp.Reconsider):
            names.append(service.name)
        return decide(service, given, place)

    monkeypatch.setattr(writer, "decide", note)
    return names


async def test_who_rests_need_not_look_at_his_neighbours(made, looked):
    """A boot of a thousand that are new would have two thousand look for nothing."""
    registry, journal, _host = made
    await registry.command([declared("db"), declared("app", "db"), declared("off", "db")])
    await registry.command([("app", inp.Start(actor=ROOT)), ("db", inp.Stop(actor=ROOT))])
    await idle(registry)
    assert "app" in looked, "which waits"
    assert "off" not in looked
    del looked[:]
    later, _host = recovered(journal.records)
    later.reconsider_all()
    await later.drain()
    assert "app" in looked
    assert "off" not in looked
    later.close()


async def test_only_the_neighbours_of_what_changed_or_went_look_again(made, looked):
    registry, _journal, _host = made
    await of_two(registry)
    await registry.command([declared(f"apart{number}") for number in range(20)])
    await idle(registry)
    del looked[:]
    await registry.command([declared("app", "db", tags=("new",))])
    await registry.command([("apart0", inp.Remove(actor=ROOT))])
    await idle(registry)
    assert set(looked) <= {"app", "db"}
    assert "db" in looked


async def test_nothing_is_remembered_of_a_removed_service(made):
    registry, _journal, _host = made
    await of_two(registry)
    await registry.command([("app", inp.Signal(signal="SIGHUP", actor=ROOT))])
    registry.tallies["app", "beat"], _probed = checks.count(
        None, run=1, check="beat", ok=True, error=None, latency_ns=1, at_ns=1
    )
    await registry.command([("app", inp.Remove(actor=ROOT))])
    registry.observe("app", inp.ProcessExited(run=1, signal=15))
    await asyncio.wait_for(registry.until(lambda: "app" not in registry.committed.services), 5)
    await idle(registry)
    assert not registry.tallies
    assert "app" not in registry._requests
    assert registry.graph._dependents == {}


def probe(registry, ok):
    error = None if ok else "refused"
    registry.probed("web", 1, "a", ok=ok, error=error, latency_ns=1)


async def checked(registry, *others):
    """`web` runs, and its check has succeeded once."""
    web = declared("web", checks=(Check("a", "unix:/s", failures=5),))
    await registry.command([web, *others])
    await registry.command([("web", inp.Start(actor=ROOT))])
    probe(registry, True)
    await reaches(registry, "web", State.RUNNING)


async def test_a_result_like_those_before_it_costs_no_decision(made, monkeypatch):
    registry, _journal, _host = made
    await checked(registry)
    decided: list[Any] = []

    def note(service, given, place):
        decided.append(given)
        return decide(service, given, place)

    monkeypatch.setattr(writer, "decide", note)
    for _ in range(5):
        probe(registry, True)
    await idle(registry)
    assert not any(isinstance(given, inp.Probed) for given in decided)
    assert registry.tallies["web", "a"].streak.count == 6


async def test_what_waits_to_be_decided_makes_news_of_a_result(made):
    registry, journal, _host = made
    await checked(registry)
    probe(registry, False)
    probe(registry, True)
    await idle(registry)
    changes = [each.event for each in journal.records if each.type == "probe_changed"]
    assert [each.ok for each in changes] == [True, False, True]
    assert changes[-1].ended.count == 1


def slow_spawns(host):
    """From now on a spawn of `slow` waits for `goes_on`, once it has `begun`."""
    begun, goes_on = asyncio.Event(), asyncio.Event()
    spawn = host.spawn

    async def slowly(definition, run, digest):
        if definition.name == "slow":
            begun.set()
            await goes_on.wait()
        return await spawn(definition, run, digest)

    host.spawn = slowly
    return begun, goes_on


async def test_what_is_being_decided_makes_news_of_a_result(made):
    registry, journal, host = made
    await checked(registry, declared("slow"))
    begun, goes_on = slow_spawns(host)
    registry.declare([("slow", inp.Start())])
    probe(registry, False)
    await asyncio.wait_for(begun.wait(), 5)
    probe(registry, True)
    goes_on.set()
    await idle(registry)
    changes = [each.event.ok for each in journal.records if each.type == "probe_changed"]
    assert changes == [True, False, True]


async def test_what_is_being_started_when_all_is_to_stop_is_stopped(made):
    registry, _journal, host = made
    await registry.command([declared("slow"), ("web", inp.Stop())])
    registry.observe("web", inp.ProcessExited(run=1, signal=15))
    await reaches(registry, "web", State.STOPPED)
    begun, goes_on = slow_spawns(host)
    registry.declare([("slow", inp.Start())])
    await asyncio.wait_for(begun.wait(), 5)
    stopping = asyncio.create_task(registry.stop_all())
    await asyncio.sleep(0)
    goes_on.set()
    await reaches(registry, "slow", State.STOPPING)
    assert not stopping.done()
    registry.observe("slow", inp.ProcessExited(run=1, signal=15))
    await asyncio.wait_for(stopping, 5)
    assert registry.committed.services["slow"].state is State.STOPPED


# --- the end while none can be written ----------------------------------------------------------------


class SlowJournal:
    """As the real one, an append that has begun is carried out, whoever waits for it; a number is taken once."""

    def __init__(self):
        self.seqs: list[int] = []
        self.broken = True
        self.goes_on, self.begun = asyncio.Event(), asyncio.Event()

    async def append(self, records):
        await asyncio.shield(asyncio.ensure_future(self._append([each.seq for each in records])))

    async def _append(self, seqs):
        if self.broken:
            raise OSError("no space left on device")
        self.begun.set()
        await self.goes_on.wait()
        assert not set(seqs) & set(self.seqs), "written twice"
        self.seqs += seqs


async def test_an_end_while_what_is_held_is_being_written_loses_nothing(monkeypatch):
    monkeypatch.setattr(held, "RETRY_S", 0.01)
    journal = SlowJournal()
    records = held.HeldRecords(journal, lambda: ev.Now(1, 1))

    def numbered(seq):
        created = ev.JournalCreated(journal_id="j", schema=1)
        return ev.Record(seq, 1, 1, seq, None, None, None, None, created)

    async with records.retrying():
        await records.commit([numbered(1)])
        journal.broken = False
        await journal.begun.wait()
        await records.commit([numbered(2)])
        asyncio.get_running_loop().call_soon(journal.goes_on.set)
    await records.commit([numbered(3)])
    assert journal.seqs == [1, 2, 3]


async def test_at_the_bound_it_is_still_known_who_was_restarted_after_whom(made, monkeypatch):
    registry, journal, _host = made
    services = registry.committed.services
    follows = Definition(name="app", cmd=("x",), depends_on=(Dependency("db", restart=True),))
    app = ("app", inp.Define(definition=follows, digest="digest-app"))
    await registry.command([app, declared("db")])
    await registry.command([("app", inp.Start(actor=ROOT))])
    await reaches(registry, "app", State.RUNNING)

    async def restart_db():
        registry.observe("db", inp.ProcessExited(run=services["db"].run, signal=9))
        await reaches(registry, "app", State.STOPPING)
        registry.observe("app", inp.ProcessExited(run=services["app"].run, signal=15))
        await idle(registry)

    monkeypatch.setattr(held, "HELD_MAX", 100)
    journal.broken = True
    for _ in range(15):
        await crash(registry)
    await restart_db()
    for _ in range(15):
        await crash(registry)
    journal.broken = False
    await written(registry)
    assert "resynced" in [record.type for record in journal.records]
    assert services["app"].state is State.RUNNING
    registry.observe("app", inp.ProcessExited(run=services["app"].run, exit_code=0))
    registry.declare([("app", inp.Reconsider())])
    await idle(registry)
    assert (services["app"].state, services["app"].run) == (State.RUNNING, 3)
    await registry.command([("db", inp.Restart(actor=ROOT))])
    registry.observe("db", inp.ProcessExited(run=services["db"].run, exit_code=0))
    await reaches(registry, "app", State.STOPPING)


async def test_a_service_that_was_declared_while_none_could_be_written_is_known_to_the_next_registry(
    made, monkeypatch
):
    monkeypatch.setattr(held, "HELD_MAX", 5)
    registry, journal, _host = made
    journal.broken = True
    with pytest.raises(NotCommitted):
        await registry.command([declared("new"), ("new", inp.Start(actor=ROOT))])
    for _ in range(6):
        await crash(registry)
    journal.broken = False
    await written(registry)
    refolded = Projection()
    refolded.fold(journal.records)
    assert "defined" not in [record.type for record in journal.records if record.service == "new"]
    assert refolded.services == registry.committed.services


async def test_who_is_being_declared_is_nobody_s_dependent_yet(made, monkeypatch):
    registry, journal, _host = made
    append, goes_on = journal.append, asyncio.Event()

    async def append_slowly(records):
        await goes_on.wait()
        await append(records)

    monkeypatch.setattr(journal, "append", append_slowly)
    registry.declare([declared("app", "web")])
    await asyncio.sleep(0.01)  # decided, and being committed
    assert registry.graph.dependents("web")
    assert Commands(registry)._dependents("web", {"web"}) == []
    goes_on.set()
    await asyncio.wait_for(registry.until(lambda: "app" in registry.committed.services), 5)
