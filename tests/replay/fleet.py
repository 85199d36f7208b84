"""A long story of many services, decided by the core: most of them well, some sick; a seed decides it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice

from registry.core import events as ev
from registry.core import inputs as inp
from registry.core.decision import decide
from registry.core.definition import Check, Definition, Dependency, Restart
from registry.core.lifecycle import State
from registry.core.place import Place
from registry.core.service import Service

BEGIN_NS = 1_767_322_800_000_000_000
JOURNAL_ID = "feedfacefeedface"
ANA = ev.Actor(uid=1000, pid=4711, program="circlectl")
_SICK_SHARE, _SICK_TURNS = 0.05, 0.9
_NAMES = ("db", "cache", "api", "web", "worker")


def fleet(services: int, events: int, seed: int = 1) -> list[ev.Record]:
    """About `events` records of `services` services."""
    return list(islice(_tell(services, random.Random(seed)), events))


def _definition(at: int) -> Definition:
    group, role = divmod(at, len(_NAMES))
    needs = (Dependency(f"{_NAMES[0]}-{group:03}"),) if role > 1 else ()
    return Definition(
        name=f"{_NAMES[role]}-{group:03}",
        cmd=("serve",),
        position=at,
        restart=Restart(limit=4, within_s=60.0),
        checks=(Check("http", "http://127.0.0.1/"),) if role in (2, 3) else (),
        depends_on=needs,
    )


def _tell(count: int, chance: random.Random) -> Iterator[ev.Record]:
    seq, clock_ns = 2, 0
    yield _registry(1, ev.JournalCreated(journal_id=JOURNAL_ID, schema=1))
    yield _registry(
        2, ev.RegistryStarted(boot_id="b", pid_namespace="", pid=1, version="0", fresh=True)
    )
    services = [Service(_definition(at)) for at in range(count)]
    waiting: list[tuple[Service, inp.Input]] = [
        (service, given)
        for service in services
        for given in (inp.Define(definition=service.definition, digest="d", cause=2), inp.Start())
    ]
    sick = services[: max(1, int(count * _SICK_SHARE))]
    while True:
        if waiting:
            service, given = waiting.pop(0)
        else:
            service = chance.choice(sick if chance.random() < _SICK_TURNS else services)
            given = _next(service, chance)
            clock_ns += int(chance.expovariate(2) * 1e9)
        clock_ns += chance.randrange(20_000, 3_000_000)
        place = Place(ev.Now(BEGIN_NS + clock_ns, clock_ns), seq + 1, JOURNAL_ID)
        for record in decide(service, given, place):
            seq = record.seq
            yield record
        waiting += ((service, each) for each in _duty(service, chance))


def _registry(seq: int, event: ev.Event) -> ev.Record:
    return ev.Record(seq, BEGIN_NS, 0, seq, None, None, None, None, event)


def _duty(service: Service, chance: random.Random) -> list[inp.Input]:
    """What a host would do for a service at once."""
    run = service.run
    if service.state is State.STARTING and service.pid is None:
        pid = chance.randrange(1000, 60_000)
        return [inp.SpawnSucceeded(run=run + 1, pid=pid, start_time=1, digest="d")]
    if service.state is State.STARTING and service.running_ns is None:
        checks = [
            inp.Probed(run=run, check=each.name, ok=True, count=1)
            for each in service.definition.checks
        ]
        return [inp.GateOpened(run=run), *checks]
    if service.state is State.STOPPING:
        return [inp.ProcessExited(run=run, signal=15)]
    return []


def _next(service: Service, chance: random.Random) -> inp.Input:
    """What happens to a service next, or what somebody asks."""
    run = service.run
    if service.state is State.RESTARTING:
        return inp.RestartTimerDue(run=run)
    if service.state is not State.RUNNING:
        return inp.Start(actor=ANA)
    lot = chance.random()
    if lot < 0.3 and service.definition.checks:
        return inp.Probed(run=run, check="http", ok=False, count=3, error="503", final=True)
    if lot < 0.4:
        return chance.choice([inp.Restart, inp.Stop])(actor=ANA)
    if lot < 0.6:
        return inp.ProcessExited(run=run, signal=9)
    return inp.ProcessExited(run=run, exit_code=chance.randrange(1, 4))
