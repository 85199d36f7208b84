"""The one writer, with a journal that can be switched off: what is held, in what order, and what bounds it."""

from __future__ import annotations

import asyncio

import pytest

import registry.registry as writer
from registry.core import events as ev
from registry.core import inputs as inp
from registry.core.definition import Definition, Restart
from registry.core.lifecycle import State
from registry.core.projection import Projection
from registry.registry import NotCommitted, Registry, Unavailable


class FakeJournal:
    """Keeps what is appended; while `broken`, nothing is."""

    def __init__(self):
        self.records: list[ev.Record] = []
        self.broken = False

    async def append(self, records):
        await asyncio.sleep(0)
        if self.broken:
            raise OSError("no space left on device")
        self.records += records


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

    def spawn(self, definition, run, digest):
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

    def watch(self, definition, run):
        raise AssertionError("no check is declared")

    def became_ready(self, service):
        raise AssertionError("no check is declared")

    def unwatch(self, service, run):
        raise AssertionError("no check is declared")


@pytest.fixture
async def made(monkeypatch):
    """A registry with one service that runs, its journal and its host."""
    monkeypatch.setattr(writer, "RETRY_S", 0.01)
    journal, host = FakeJournal(), FakeHost()
    registry = Registry(Projection(), journal, host, FakeClock())
    await registry.write(ev.JournalCreated(journal_id="j", schema=1))
    at_once = Restart(delay_s=0, delay_max_s=0)
    definition = Definition(name="web", cmd=("x",), restart=at_once)
    registry.declare("web", inp.Define(definition=definition, digest="d"))
    registry.declare("web", inp.Start())
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
        await registry.command("web", inp.Stop())
    journal.broken = False
    await written(registry)
    assert [record.seq for record in journal.records] == list(range(1, len(journal.records) + 1))
    assert journal.records[-1].type in ("spawned", "became_ready")


async def test_the_command_whose_commit_failed_has_an_unknown_outcome(made):
    registry, journal, _host = made
    journal.broken = True
    with pytest.raises(NotCommitted):
        await registry.command("web", inp.Stop())
    journal.broken = False
    await written(registry)
    assert "stop_requested" in [record.type for record in journal.records]


async def test_at_the_bound_what_is_held_of_a_service_becomes_its_state(made, monkeypatch):
    registry, journal, _host = made
    monkeypatch.setattr(writer, "HELD_MAX", 20)
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
