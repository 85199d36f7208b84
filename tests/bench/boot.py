"""Boot: from the daemon's exec to all services executing; and the orderly stop of all."""

from __future__ import annotations

from tests.bench.figures import FLOOR, OURS
from tests.bench.life import Bench, noted
from tests.bench.supervisors import Supervisor

NAME = "boot"
STOP_BOUND_S = 0.2
SETTLE_S = 1.0


def run(bench: Bench) -> None:
    """Everybody, with few services and with many."""
    for number in (bench.scale.few, bench.scale.many):
        for supervisor in bench.everybody():
            bench.told(f"boot: {supervisor.name}, {number} services")
            with noted(bench, f"boot: {supervisor.name}, {number} services"):
                measure(bench, supervisor, min(number, supervisor.services_max))
    _judge(bench)


def booted(number: int) -> str:
    """What is measured, by the number of services."""
    return f"boot of {number}, all executing"


def stopped(number: int) -> str:
    """What is measured, by the number of services."""
    return f"stop of {number}, all services gone"


def measure(bench: Bench, supervisor: Supervisor, number: int) -> None:
    """Note boots and stops of one supervisor."""
    firsts, alls, stops, ends = [], [], [], []
    for _ in range(bench.scale.boots):
        with bench.life(supervisor, number) as life:
            first_s, all_s = life.boot()
            life.settle(min(SETTLE_S, bench.scale.settle_s), 5.0)
            stop_s, end_s = life.stop()
        firsts.append(first_s)
        alls.append(all_s)
        stops.append(stop_s)
        ends.append(end_s)
    who, add = supervisor.name, bench.results.add
    add(NAME, booted(number), who, "s", alls)
    add(NAME, f"boot of {number}, first executing", who, "s", firsts)
    add(NAME, stopped(number), who, "s", stops)
    add(NAME, f"stop of {number}, the supervisor gone too", who, "s", ends)


def _judge(bench: Bench) -> None:
    results, many = bench.results, bench.scale.many
    boot, stop = results.find(booted(many), OURS), results.find(stopped(many), OURS)
    against = results.reference(booted(many), "dinit")
    if against is not None:
        whose = "the floor's" if against.who == FLOOR else "dinit's"
        name = f"boot of {many} within 2 times {whose}"
        results.bound(NAME, name, boot.p50 if boot else None, 2 * against.p50, "s")
    else:
        results.skip("boot: bound: neither dinit nor the floor was measured")
    results.bound(
        NAME,
        f"stop of {many} within {STOP_BOUND_S:g} s",
        stop.p50 if stop else None,
        STOP_BOUND_S,
        "s",
    )
