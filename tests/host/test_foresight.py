"""What is made ahead of decisions, with real processes: of what is not decided then nobody finds a trace."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from registry.core import events as ev
from registry.core import inputs as inp
from registry.core.definition import Condition, Definition, Dependency, Policy, Restart, Socket
from registry.core.lifecycle import Reason, State
from registry.core.projection import Projection
from registry.host.clock import Clock
from registry.host.health import Prober
from registry.host.machine import Machine, phase
from registry.host.surroundings import Surroundings
from registry.registry import Registry, Step
from tests.host.conftest import SH, Host
from tests.test_registry import FakeJournal

pytestmark = pytest.mark.platform("linux")

PLENTY_S = 10.0
NOBODY = cast(Any, SimpleNamespace(hold=lambda *_a, **_more: None, drop=lambda *_a: None))
"""A keeper that keeps nothing."""


class World:
    """A registry over real processes, with a journal that only keeps."""

    def __init__(self, host: Host) -> None:
        host.runner._observe = self._observe
        prober = Prober(lambda *_result: None, phase)
        self.around = Surroundings(host.folder, NOBODY, host.runner, prober, self._observe)
        machine = Machine(
            runner=host.runner,
            prober=prober,
            surroundings=self.around,
            observe=self._observe,
            capabilities=host.capabilities,
            journal_id=host.mark().partition("/")[0],
            environments={},
            socket_path="",
        )
        self.journal = FakeJournal()
        self.registry = Registry(Projection(), self.journal, machine, Clock())

    def _observe(self, service: str, given: inp.Observation, done: Any = None) -> None:
        self.registry.observe(service, given, done)

    def service(self, name: str) -> Any:
        return self.registry.committed.services[name]

    def types(self, name: str) -> list[str]:
        return [record.type for record in self.journal.records if record.service == name]

    async def reaches(self, name: str, state: State) -> None:
        settled = self.registry.until(lambda: self.service(name).state is state)
        await asyncio.wait_for(settled, PLENTY_S)

    async def end(self) -> None:
        services = self.registry.committed.services
        for name in services:
            self.registry.declare([(name, inp.Stop())])
        ended = self.registry.until(lambda: all(each.pid is None for each in services.values()))
        await asyncio.wait_for(ended, PLENTY_S)
        self.registry.finish()


@pytest.fixture
async def world(host: Host) -> AsyncIterator[World]:
    made = World(host)
    await made.registry.write(ev.JournalCreated(journal_id="j", schema=1))
    running = asyncio.create_task(made.registry.run())
    yield made
    await made.end()
    await running
    made.registry.close()
    made.around.close()


def defined(name: str, **fields: Any) -> Step:
    definition = Definition(name, (SH, "-c", "exec sleep 1000"), cwd="/", **fields)
    return name, inp.Define(definition=definition, digest=str(definition))


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


async def test_one_that_is_to_wait_then_does_not_listen(world, free_port):
    registry = world.registry
    web = defined(
        "web",
        depends_on=(Dependency("db", Condition.READY),),
        sockets=(Socket("http", f"127.0.0.1:{free_port}"),),
    )
    db = defined("db", restart=Restart(policy=Policy.NEVER))
    await registry.command([db, web, defined("other")])
    await registry.command([("db", inp.Start())])
    await world.reaches("db", State.RUNNING)
    registry.observe("db", inp.ProcessExited(run=1, signal=9))  # decided first, in the same batch
    for name in ("web", "other"):
        registry.declare([(name, inp.Start())])
    await world.reaches("other", State.RUNNING)
    waiting = world.service("web")
    assert (waiting.state, waiting.reason, waiting.run) == (State.STOPPED, Reason.WAITING, 0)
    assert not listens(free_port)


async def test_an_address_that_is_anothers_then_is_free(world, free_port):
    registry, sockets = world.registry, (Socket("http", f"127.0.0.1:{free_port}"),)
    await registry.command([defined("a", sockets=sockets), defined("other")])
    registry.declare([defined("a"), defined("b", sockets=sockets), ("b", inp.Start())])
    for name in ("a", "other"):
        registry.declare([(name, inp.Start())])
    await world.reaches("other", State.RUNNING)
    assert "spawn_failed" not in world.types("b")
    assert listens(free_port)
