"""Restart latency: from SIGKILL of a service to the first instruction of its next process, quiet and under load."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench import processes
from tests.bench.client import LIST, Client
from tests.bench.figures import FLOOR, KEEPING_FLOOR, OURS
from tests.bench.life import Bench, Life, noted
from tests.bench.supervisors import Floor, Registry, Supervisor

NAME = "restart"
QUIET = "restart latency"
LOADED = "restart latency under load"
GAP_S, GAP_OF_A_TICK_S = 0.4, 1.05
TICK_SAMPLES = 20
"""Enough of those that take a second each."""
SUBSCRIBERS = 50
SETTLE_S = 2.0


def run(bench: Bench) -> None:
    """Everybody when it is quiet; ourselves under load."""
    for supervisor in bench.everybody():
        bench.told(f"restart: {supervisor.name}")
        with noted(bench, f"restart: {supervisor.name}"):
            measure(bench, supervisor)
    with noted(bench, f"restart: {KEEPING_FLOOR}"):
        measure(bench, Floor(bench.floor, keeps=True))
    bench.told("restart: registry, under load")
    with noted(bench, "restart: registry, under load"):
        _under_load(bench)
    _judge(bench)


def measure(bench: Bench, supervisor: Supervisor) -> None:
    """Note the latency of one supervisor."""
    scale = bench.scale
    is_slow = supervisor.restarts_by_tick
    samples = min(scale.samples, TICK_SAMPLES) if is_slow else scale.samples
    with bench.life(supervisor, scale.few) as life:
        life.boot()
        life.settle(min(SETTLE_S, scale.settle_s))
        names = [service.name for service in life.services]
        taken = life.restarts_ms(samples, names, GAP_OF_A_TICK_S if is_slow else GAP_S)
    note = f"{scale.few} services; {supervisor.version()}"
    bench.results.add(NAME, QUIET, supervisor.name, "ms", taken, note)


def _under_load(bench: Bench) -> None:
    scale = bench.scale
    with (
        answering(bench, "unix") as target,
        bench.life(
            Registry(),
            scale.many,
            keys=checked(target),
            others=[("flood", ("flood",))],
            others_keys="logs = true",  # else nobody has anything to do with what it writes
        ) as life,
    ):
        life.boot()
        life.settle(SETTLE_S, SETTLE_S)
        with _asking(life), _subscribed(life, SUBSCRIBERS):
            names = [f"s{at:04d}" for at in range(scale.few)]
            taken = life.restarts_ms(scale.samples, names, GAP_S)
    note = f"{scale.many} services with a check a second, {SUBSCRIBERS} subscribers, a flood, a list a second"
    bench.results.add(NAME, LOADED, OURS, "ms", taken, note)


def checked(target: str) -> str:
    """The key of a service whose check asks `target` each second, and never fails for being late."""
    return f'health_check = {{ target = "{target}", interval = "1s", timeout = "10s", failures = 100 }}'


@contextlib.contextmanager
def answering(bench: Bench, kind: str) -> Iterator[str]:
    """The target of a check that something answers: a program of ours, which is nobody's service."""
    folder = bench.new_folder()
    at = folder / "at"
    with processes.helper([str(bench.program()), "answer", kind, str(at)], folder):
        deadline = time.monotonic() + 5
        while not at.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        yield f"unix:{at}" if kind == "unix" else f"http://127.0.0.1:{at.read_text()}/"


@contextlib.contextmanager
def _asking(life: Life) -> Iterator[None]:
    """Somebody asks for everything every second."""
    ended = threading.Event()
    client = Client(str(_socket(life)))

    def ask() -> None:
        while not ended.wait(1.0):
            client.size_of_answer(LIST)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        ended.set()
        asking.join()
        client.close()


@contextlib.contextmanager
def _subscribed(life: Life, number: int) -> Iterator[None]:
    """So many follow all events, and read what comes."""
    ended = threading.Event()
    sockets = []
    for _ in range(number):
        sockets.append(socket.socket(socket.AF_UNIX))
        sockets[-1].connect(str(_socket(life)))
        sockets[-1].sendall(b'{"action":"events","follow":true}\n')
        sockets[-1].setblocking(False)

    def take() -> None:
        while not ended.wait(0.05):
            for each in sockets:
                with contextlib.suppress(BlockingIOError):
                    while each.recv(1 << 16):
                        continue

    taking = threading.Thread(target=take)
    taking.start()
    try:
        yield
    finally:
        ended.set()
        taking.join()
        for each in sockets:
            each.close()


def _socket(life: Life) -> Path:
    supervisor = life.supervisor
    assert isinstance(supervisor, Registry)
    return supervisor.socket


def _judge(bench: Bench) -> None:
    results = bench.results
    measured, loaded = results.find(QUIET, OURS), results.find(LOADED, OURS)
    best, floor = results.find(QUIET, "dinit"), results.find(QUIET, FLOOR)
    p50, p99 = (measured.p50, measured.p99) if measured else (None, None)
    if best is not None:
        results.bound(NAME, "restart p50 within 1.5 times dinit's", p50, 1.5 * best.p50, "ms")
        results.bound(NAME, "restart p99 within 3 times dinit's", p99, 3 * best.p99, "ms")
    elif floor is not None:
        results.bound(NAME, "restart p50 within 2.5 times the floor", p50, 2.5 * floor.p50, "ms")
    else:
        results.skip("restart: bounds: neither dinit nor the floor was measured")
    if measured is not None:
        under = loaded.p99 if loaded else None
        results.bound(
            NAME,
            "restart p99 under load within 2 times the quiet one",
            under,
            2 * measured.p99,
            "ms",
        )
