"""Growth: boot, memory, restart and list over the number of services, starts over the length of the journal."""

from __future__ import annotations

import resource
import statistics
import time
from pathlib import Path

from tests.bench import journal, processes
from tests.bench.client import LIST, Client
from tests.bench.figures import Point
from tests.bench.life import Bench, NotHere, noted
from tests.bench.supervisors import Registry

NAME = "growth"
TENFOLD = 10
SAMPLES = 20
LISTS = 30
GAP_S = 0.2
SPARE = 1000
FILES_OF_A_SERVICE = 2
"""Its pidfd, and the copy that another keeper would be given; no logs are kept here."""


def run(bench: Bench) -> None:
    """From ten services to as many as this machine allows; then from the shortest journal to the longest."""
    number, most = min(TENFOLD, bench.scale.most), _most(bench)
    while number <= most:
        bench.told(f"growth: {number} services")
        with noted(bench, f"growth: {number} services"):
            _of_services(bench, number)
        number = number * TENFOLD if number == most else min(number * TENFOLD, most)
    for events in bench.scale.history:
        bench.told(f"growth: {events:,} events")
        with noted(bench, f"growth: start on {events:,} events"):
            starts = journal.started(bench, events)
            note = bench.results.points.append
            note(Point("start, by events", "s", starts.events, starts.orderly_s))
            note(Point("start, by events, the journal alone", "s", starts.events, starts.bare_s))
    _judge(bench)


def _of_services(bench: Bench, number: int) -> None:
    registry = Registry()
    with bench.life(registry, number) as life:
        booted = life.boot()
        life.settle(bench.scale.settle_s)
        mib = processes.pss_kib(life.supervisors()) / 1024
        names = [service.name for service in life.services]
        taken = life.restarts_ms(min(SAMPLES, bench.scale.samples), names, GAP_S)
        lists = _lists_ms(registry, number)
        stop_s, _all_s = life.stop()
    note = bench.results.points.append
    note(Point("boot", "s", number, booted.all_s))
    note(Point("boot, each service", "ms", number, booted.all_s * 1000 / number))
    note(Point("stop", "s", number, stop_s))
    note(Point("memory (PSS)", "MiB", number, mib))
    note(Point("list, the journal not growing", "ms", number, lists))
    if taken:
        note(Point("restart", "ms", number, statistics.median(taken)))


def _lists_ms(registry: Registry, number: int) -> float:
    client = Client(str(registry.socket))
    answer = client.ask(LIST)
    listed = answer.count(b'"name":')
    if listed != number:
        raise NotHere(f"only {listed} of {number} services were listed")
    taken = [_list_ms(client) for _ in range(LISTS)]
    client.close()
    return statistics.median(taken)


def _list_ms(client: Client) -> float:
    began_ns = time.monotonic_ns()
    client.size_of_answer(LIST)
    return (time.monotonic_ns() - began_ns) / 1e6


def _most(bench: Bench) -> int:
    """How many services this machine allows, of those that are asked for; what is in the way of the rest is noted."""
    _soft, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    _soft, ours = resource.getrlimit(resource.RLIMIT_NPROC)
    pids = int(Path("/proc/sys/kernel/pid_max").read_text())
    limits = {"descriptors": files // FILES_OF_A_SERVICE, "pids": pids}
    if ours != resource.RLIM_INFINITY:
        limits["processes"] = ours
    what, limit = min(limits.items(), key=lambda each: each[1])
    allowed = max(SPARE, limit - SPARE)
    if allowed < bench.scale.most:
        bench.results.skip(
            f"growth: {bench.scale.most} services: the limit of {what} allows {allowed}"
        )
    return min(bench.scale.most, allowed)


def _judge(bench: Bench) -> None:
    """The cost of booting one service is flat: at the most twice as high with ten times as many."""
    each = [point for point in bench.results.points if point.curve == "boot, each service"]
    if len(each) < 2:
        bench.results.skip("growth: bound: fewer than two sizes were measured")
        return
    last, before = each[-1], each[-2]
    name = f"boot of one among {last.x:,.0f}, within 2 times of that among {before.x:,.0f}"
    bench.results.bound(NAME, name, last.y, 2 * before.y, "ms")
