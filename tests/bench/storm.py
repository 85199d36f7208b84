"""Crash storms: fifty services that end at once, for ever; one that forks without end; and their neighbours.

What a restart costs is what the processes of a supervisor use, gates and whatever else it executes on the way
included; what the service uses by itself is measured beside it, and taken off.
"""

from __future__ import annotations

import json
import os
import resource
import time
from typing import Any

from tests.bench import processes
from tests.bench.client import LIST, Client
from tests.bench.figures import FLOOR, OURS
from tests.bench.life import Bench, Life, noted
from tests.bench.processes import Cost
from tests.bench.supervisors import DEFAULT, Registry, Supervisor

NAME = "storm"
OF_RESTART = "CPU of a restart in a storm"
SERVICES, NEIGHBOURS = 50, 5
OWN_LIVES, OWN_GAP_S = 200, 0.005
CPU_BOUND_MS, NEIGHBOUR_BOUND = 2.0, 3.0
GAP_S = 0.3
LOOK_S = 0.25
LATE_PART = 4
"""Still tried again is who was started in the last quarter of the storm, or says when it will be."""
FEW_SAMPLES = 40
AT_ONCE = 'restart = { policy = "Always", delay = 0, delay_max = 0 }'
"""Of the healthy ones: it is not their own delay that is measured."""
NOTHING = Cost(0.0, 0.0, 0, 0)


def run(bench: Bench) -> None:
    """The storm on everybody, by their defaults; its neighbours, and the fork bomb's, on ourselves."""
    with noted(bench, "storm"):
        own_s = _own_s(bench)
        for supervisor in bench.everybody():
            if supervisor.name != FLOOR:
                bench.told(f"storm: {supervisor.name}")
                with noted(bench, f"storm: {supervisor.name}"):
                    _storm(bench, supervisor, own_s)
    with noted(bench, "storm: neighbours"):
        _neighbours(bench)


def _own_s(bench: Bench) -> float:
    """The CPU that one life of such a service takes by itself, each apart from the others, as delays spread them."""
    program = str(bench.program())
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(OWN_LIVES):
        pid = os.posix_spawn(
            program, [program, "own", str(bench.folder / "nobody"), "exit", "1"], {}
        )
        os.waitpid(pid, 0)
        time.sleep(OWN_GAP_S)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return used_s / OWN_LIVES


def _storm(bench: Bench, supervisor: Supervisor, own_s: float) -> None:
    seconds = bench.scale.storm_s
    with bench.life(supervisor, SERVICES, mode=("exit", "1"), profile=DEFAULT) as life:
        life.boot()  # each has been started once
        began_ns = time.monotonic_ns()
        spent = _spent_in(life, seconds)
        starts = [start for start in life.observer.starts if start.at_ns >= began_ns]
        listed = _listed(supervisor) if isinstance(supervisor, Registry) else []
    who, add, restarts = supervisor.name, bench.results.add, max(1, len(starts))
    late_ns = began_ns + int(seconds * (1 - 1 / LATE_PART) * 1e9)
    late = {start.name for start in starts if start.at_ns >= late_ns}
    note = f"{len(starts)} starts in {seconds:g} s"
    each_ms = max(0.0, spent.with_children_s / restarts - own_s) * 1000
    of_restart = f"{note}; the service's own {own_s * 1000:.2f} ms left out"
    add(NAME, OF_RESTART, who, "ms", [each_ms], of_restart)
    add(NAME, "CPU of the supervisor in a storm", who, "s", [spent.cpu_s], note)
    add(NAME, f"still started in its last {1 / LATE_PART:.0%}", who, "services", [len(late)])
    if listed:
        _judge(bench, each_ms, listed)


def _spent_in(life: Life, seconds: float) -> Cost:
    """What the supervisor's processes use from now on, those included that do not live to the end."""
    before = {pid: processes.cost([pid]) for pid in life.supervisors()}
    seen: dict[int, Cost] = dict(before)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(min(LOOK_S, seconds / 4))
        for pid in life.supervisors():
            now = processes.cost([pid])
            seen[pid] = now if pid not in seen else max(now, seen[pid])
    used = [now.since(before.get(pid, NOTHING)) for pid, now in seen.items()]
    return Cost(
        cpu_s=sum(each.cpu_s for each in used),
        with_children_s=sum(each.with_children_s for each in used),
        switches=sum(each.switches for each in used),
        ticks=sum(each.ticks for each in used),
    )


def _listed(supervisor: Registry) -> list[dict[str, Any]]:
    client = Client(str(supervisor.socket))
    answer = json.loads(client.ask(LIST))
    client.close()
    return answer["data"]


def _judge(bench: Bench, each_ms: float, listed: list[dict[str, Any]]) -> None:
    bench.results.bound(NAME, OF_RESTART, each_ms, CPU_BOUND_MS, "ms")
    tried = sum(
        each["wanted"] == "up" and each["status"].lower() != "failed"
        for each in listed
        if each["name"].startswith("s0")
    )
    name = f"services still tried again after a storm of {SERVICES}"
    bench.results.bound(NAME, name, float(tried), SERVICES, "", at_least=True)


def _neighbours(bench: Bench) -> None:
    names = [f"n{at}" for at in range(NEIGHBOURS)]
    samples = min(FEW_SAMPLES, bench.scale.samples)
    calm: list[tuple[str, tuple[str, ...]]] = [(name, ()) for name in names]
    beside: dict[str, tuple[int, list[tuple[str, tuple[str, ...]]]]] = {
        "alone": (0, calm),
        "beside a storm": (SERVICES, calm),
        "beside a fork bomb": (0, [*calm, ("bomb", ("bomb",))]),
    }
    quiet = None
    for what, (number, others) in beside.items():
        bench.told(f"storm: a healthy service {what}")
        with bench.life(
            Registry(),
            number,
            mode=("exit", "1"),
            others=others,
            others_keys=AT_ONCE,
            profile=DEFAULT,
        ) as life:
            life.boot()
            time.sleep(min(2.0, bench.scale.settle_s))
            taken = life.restarts_ms(samples, names, GAP_S)
        name = f"restart of a healthy service {what}"
        figure = bench.results.add(NAME, name, OURS, "ms", taken)
        if quiet is None:
            quiet = figure
        elif quiet is not None:
            p50 = figure.p50 if figure else None
            bound = f"{name}, p50 within {NEIGHBOUR_BOUND:g} times the quiet one"
            bench.results.bound(NAME, bound, p50, NEIGHBOUR_BOUND * quiet.p50, "ms")
