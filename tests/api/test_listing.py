"""`list_services` answers what all rows made anew would be, whatever has happened since it was asked last."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from registry.api.listing import Listing
from registry.core import events as ev
from registry.core import inputs as inp
from registry.core.decision import decide
from registry.core.definition import Definition, Dependency
from registry.core.dependencies import Graph, around
from registry.core.duties import duties
from registry.core.place import Place
from registry.core.projection import Projection
from registry.questions.records import service_record


class Registry:
    """As much of one as a listing needs: decisions are committed at once; what is no longer remembered is None."""

    def __init__(self) -> None:
        self.committed = Projection()
        self.records: list[ev.Record] = []
        self.as_of = (0, 0)
        self.remembers = True
        self._graph = Graph()

    def take(self, name: str, given: inp.Input) -> None:
        services = self.committed.services
        service = services.get(name)
        if service is None:
            assert isinstance(given, inp.Define)
            service = self.committed.add(given.definition)
        self._graph.declare(
            given.definition if isinstance(given, inp.Define) else service.definition
        )
        seq = self.committed.seq
        place = Place(
            ev.Now(seq * 10**6, seq), seq + 1, "j", None, around(service, services, self._graph)
        )
        records = decide(service, given, place)
        if records and isinstance(records[-1].event, ev.Removed):
            self.committed.remove(name)
        self.records += records
        self.committed.seq += len(records)
        self.as_of = (0, self.committed.seq)

    def moved_since(self, as_of: tuple[int, int]) -> list[ev.Record] | None:
        if not self.remembers or as_of[0] != 0:
            return None
        return [record for record in self.records if record.seq > as_of[1]]

    def expected(self) -> bytes:
        services = self.committed.services
        return msgspec.json.encode([service_record(s, services) for s in self.committed.in_order()])


def define(name: str, position: int, *needs: str) -> inp.Define:
    depends_on = tuple(Dependency(service=each) for each in needs)
    definition = Definition(name=name, cmd=("x",), position=position, depends_on=depends_on)
    return inp.Define(definition=definition, digest=f"{name}{position}{needs}")


def inputs_of(registry: Registry, name: str, chance: random.Random) -> list[inp.Input]:
    """Whatever may come next for a service."""
    service = registry.committed.services[name]
    run = service.run
    return [
        inp.Start(),
        inp.Stop(),
        inp.Restart(),
        inp.Reconsider(cause=None),
        inp.GateOpened(run=run),
        inp.ProcessExited(run=run, exit_code=chance.choice((0, 1))),
        inp.SpawnSucceeded(run=run + 1, pid=chance.randrange(9999), start_time=1, digest="d"),
        define(name, chance.randrange(9), *chance.choice(((), ("db",), ("migrate", "db"))))
        if name == "web"
        else inp.Remove(),
    ]


@pytest.mark.parametrize("seed", range(40))
def test_the_answer_is_that_of_all_rows_made_anew(seed: int) -> None:
    chance = random.Random(seed)
    registry: Any = Registry()
    listing = Listing(registry)
    names = ["web", "db", "migrate", "cache"]
    seen = set()
    for _ in range(120):
        name = chance.choice(names)
        if name not in registry.committed.services:
            registry.take(
                name, define(name, chance.randrange(9), *(["db"] if name == "web" else []))
            )
        else:
            service = registry.committed.services[name]
            fits = duties(service).spawn is not None
            given = inputs_of(registry, name, chance)
            registry.take(name, given[6] if fits else chance.choice(given))
        registry.remembers = chance.random() < 0.9
        if chance.random() < 0.7:
            assert bytes(listing.answer()) == registry.expected()
            seen.add(bytes(listing.answer()))
    assert len(seen) > 20


def test_what_a_service_waits_for_is_told_anew_when_only_the_other_has_moved() -> None:
    registry: Any = Registry()
    listing = Listing(registry)
    for name, needs in (("db", ()), ("web", ("db",))):
        registry.take(name, define(name, len(name), *needs))
    registry.take("web", inp.Start())
    assert b"it is stopped" in bytes(listing.answer())
    registry.take("db", inp.Start())
    assert b"it is stopped" not in bytes(listing.answer())


def test_an_answer_is_not_made_twice_of_the_same() -> None:
    registry: Any = Registry()
    listing = Listing(registry)
    registry.take("web", define("web", 1))
    assert listing.answer() is listing.answer()
