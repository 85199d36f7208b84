"""Questions: `list_services` while the journal grows, beside storms, idle connections, slow readers; the commands."""

from __future__ import annotations

import contextlib
import json
import random
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from registry.journal.opening import open_for_reading
from registry.journal.read import last_seq
from tests.bench import client, processes
from tests.bench.client import LIST, Client
from tests.bench.figures import FLOOR, OURS
from tests.bench.life import Bench, Life, NotHere, noted
from tests.bench.supervisors import Query, Registry, Supervisor

NAME = "queries"
RATE = "list_services, one client, the journal growing"
BESIDE_STORM = "list_services beside a restart storm"
CLI = "the command that lists, as a whole process"
MOVES_MIN = 100
"""The journal is to have grown that often in a run: an answer is not to be counted twice."""
RATE_BOUND, P99_BOUND_MS = 10_000, 1.0
SLOW_READER_BOUND = 2.0
MOVE_EVERY_S, STORM_EVERY_S = 0.02, 0.004
RUN_S_MAX = 5.0
UNREAD = 2000
"""Requests of the one that does not read."""
COMMANDS = 10
FILES_SPARE = 200


def run(bench: Bench) -> None:
    """Ourselves in every situation; of the others the plain question and the command."""
    with noted(bench, "queries: registry"):
        _of_ours(bench)
    with noted(bench, "queries: floor"):
        _floor(bench)
    for supervisor in bench.rivals():
        bench.told(f"queries: {supervisor.name}")
        with noted(bench, f"queries: {supervisor.name}"):
            _plain(bench, supervisor)
    for supervisor in bench.everybody():
        if supervisor.name != FLOOR:
            bench.told(f"queries: the command of {supervisor.name}")
            with noted(bench, f"queries: the command of {supervisor.name}"):
                _command(bench, supervisor)
    _judge_commands(bench)


# --- ourselves ------------------------------------------------------------------------------------


def _of_ours(bench: Bench) -> None:
    registry = Registry()
    with bench.life(registry, bench.scale.many) as life:
        life.boot()
        life.settle(bench.scale.settle_s)
        bench.told("queries: registry, the journal growing")
        _while_it_grows(bench, life, registry)
        bench.told("queries: registry, beside a restart storm")
        _beside_storm(bench, life, registry)
        bench.told("queries: registry, beside a slow reader")
        _beside_slow_reader(bench, registry)
        bench.told("queries: registry, idle connections")
        _beside_idle(bench, life, registry)


def _window_s(bench: Bench) -> float:
    return min(RUN_S_MAX, bench.scale.window_s)


def _asked(bench: Bench, registry: Registry, seconds: float | None = None) -> dict[str, Any]:
    """What a client saw that is a process of its own: this one has other things to do."""
    window_s = _window_s(bench) if seconds is None else seconds
    command = [sys.executable, "-S", client.__file__, "ask", str(registry.socket), f"{window_s:g}"]
    with processes.helper(command, registry.folder) as asking:
        assert asking.stdout is not None
        return json.loads(asking.stdout.read() or b"{}")


def _while_it_grows(bench: Bench, life: Life, registry: Registry) -> None:
    before = _events(registry)
    with _killing(life, MOVE_EVERY_S) as kills:
        seen = _asked(bench, registry)
    moves = _events(registry) - before
    if not seen:
        raise NotHere("the client saw no answer")
    rate = len(seen["us"]) / _window_s(bench)
    note = f"{seen['n']} services, {seen['bytes']:,} bytes each, {moves} events meanwhile"
    bench.results.add(NAME, RATE, OURS, "us", seen["us"], note)
    bench.results.add(NAME, "list_services a second, one client", OURS, "/s", [rate], note)
    enough = moves >= MOVES_MIN
    why = "" if enough else f"the journal grew by {moves} only, of {len(kills)} kills"
    name = f"list_services of {seen['n']}, one client, the journal growing"
    bench.results.bound(
        NAME, name, rate if enough else None, RATE_BOUND, "/s", at_least=True, why=why
    )


def _beside_storm(bench: Bench, life: Life, registry: Registry) -> None:
    with _killing(life, STORM_EVERY_S) as kills:
        seen = _asked(bench, registry)
    note = f"{len(kills) / _window_s(bench):.0f} services a second killed"
    figure = bench.results.add(NAME, BESIDE_STORM, OURS, "us", seen["us"], note)
    p99_ms = figure.p99 / 1000 if figure else None
    bench.results.bound(NAME, "list_services p99 beside a storm", p99_ms, P99_BOUND_MS, "ms")


def _beside_slow_reader(bench: Bench, registry: Registry) -> None:
    alone = _asked(bench, registry)
    slow = Client(str(registry.socket))
    try:
        slow.send(LIST * UNREAD)
        seen = _asked(bench, registry)
    finally:
        slow.close()
    first = bench.results.add(NAME, "list_services, nothing beside it", OURS, "us", alone["us"])
    second = bench.results.add(NAME, "list_services beside a slow reader", OURS, "us", seen["us"])
    ratio = second.p99 / first.p99 if first and second else None
    name = "list_services p99 beside a slow reader, of the one without"
    bench.results.bound(NAME, name, ratio, SLOW_READER_BOUND, "times")


def _beside_idle(bench: Bench, life: Life, registry: Registry) -> None:
    wanted = bench.scale.connections
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    possible = min(wanted, hard - FILES_SPARE)
    before = processes.pss_kib(life.supervisors())
    clients: list[Client] = []
    try:
        clients.extend(Client(str(registry.socket)) for _ in range(possible))
        for each in clients:  # each is served, not just queued
            each.ask(b'{"action":"version"}\n')
        held = len(clients)
        seen = _asked(bench, registry)
        kib = processes.pss_kib(life.supervisors()) - before
    finally:
        for each in clients:
            each.close()
    note = f"{held} connections, {kib / max(1, held):.1f} KiB each"
    bench.results.add(NAME, "list_services beside idle connections", OURS, "us", seen["us"], note)
    why = "" if possible == wanted else f"the limit of descriptors here is {hard}"
    bench.results.bound(
        NAME, "idle connections held", float(held), wanted, "", at_least=True, why=why
    )


def _events(registry: Registry) -> int:
    """How many the journal has."""
    connection = open_for_reading(registry.journal)
    try:
        return last_seq(connection)
    finally:
        connection.close()


@contextlib.contextmanager
def _killing(life: Life, every_s: float) -> Iterator[list[str]]:
    """Services are killed one after the other, each once it is there again; their names."""
    ended = threading.Event()
    killed: list[str] = []
    names = [service.name for service in life.services]
    chance = random.Random(3)

    def kill() -> None:
        while not ended.wait(every_s):
            killed.append(chance.choice(names))
            life.restart_ms(killed[-1])

    killing = threading.Thread(target=kill)
    killing.start()
    try:
        yield killed
    finally:
        ended.set()
        killing.join()


# --- the others -----------------------------------------------------------------------------------


def _floor(bench: Bench) -> None:
    """The barest asyncio server, with answers of the same size as ours."""
    ours = bench.results.find(RATE, OURS)
    if ours is None:
        raise NotHere("ours was not measured, so nobody knows how large an answer is")
    size = int(ours.note.split(" bytes")[0].split()[-1].replace(",", ""))
    folder = bench.new_folder()
    path = folder / "e"
    command = [sys.executable, client.__file__, "echo", str(path), str(size)]
    with processes.helper(command, folder) as echo:
        assert echo.stdout is not None
        echo.stdout.readline()
        asked = [sys.executable, "-S", client.__file__, "ask", str(path), f"{_window_s(bench):g}"]
        with processes.helper(asked, folder) as asking:
            assert asking.stdout is not None
            seen = json.loads(asking.stdout.read())
    note = f"{size:,} bytes each"
    bench.results.add(NAME, RATE, FLOOR, "us", seen["us"], note)
    rate = len(seen["us"]) / _window_s(bench)
    bench.results.add(NAME, "list_services a second, one client", FLOOR, "/s", [rate], note)


def _plain(bench: Bench, supervisor: Supervisor) -> None:
    """A rival's own way to ask for the state of all; it need not be restarting anything meanwhile."""
    number = min(bench.scale.many, supervisor.services_max)
    with bench.life(supervisor, number) as life:
        life.boot()
        life.settle(bench.scale.settle_s, 10.0)
        query = supervisor.query()
        if query is None:
            return
        asked = _asked_of(query, _window_s(bench)) if callable(query) else _told_by(query, life)
    note = f"{asked['n']} services, nothing happening"
    bench.results.add(NAME, RATE, supervisor.name, "us", asked["us"], note)
    rate = 1e6 * len(asked["us"]) / max(1.0, sum(asked["us"]))
    name = "list_services a second, one client"
    bench.results.add(NAME, name, supervisor.name, "/s", [rate], note)


def _asked_of(query: Query, window_s: float) -> dict[str, Any]:
    microseconds: list[float] = []
    count = 0
    end = time.monotonic() + window_s
    while time.monotonic() < end or len(microseconds) < 3:
        asked_ns = time.monotonic_ns()
        count = query()
        microseconds.append((time.monotonic_ns() - asked_ns) / 1000)
    return {"us": microseconds, "n": count}


def _told_by(command: list[str], life: Life) -> dict[str, Any]:
    with processes.helper(command, life.folder) as asking:
        assert asking.stdout is not None
        text = asking.stdout.read()
    if not text:
        raise NotHere(f"{Path(command[0]).name} printed nothing")
    return json.loads(text)


# --- commands -------------------------------------------------------------------------------------


def _command(bench: Bench, supervisor: Supervisor) -> None:
    with bench.life(supervisor, bench.scale.few) as life:
        life.boot()
        life.settle(bench.scale.settle_s, 10.0)
        command = supervisor.status()
        if command is None:
            return
        taken = [_took_ms(command, supervisor) for _ in range(COMMANDS)]
    bench.results.add(NAME, CLI, supervisor.name, "ms", taken, f"{bench.scale.few} services")


def _took_ms(command: list[str], supervisor: Supervisor) -> float:
    began_ns = time.monotonic_ns()
    done = subprocess.run(
        command,
        check=False,
        cwd=supervisor.folder,
        env=supervisor.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    if b"s0000" not in done.stdout and b"s0000" not in done.stderr:
        raise NotHere(f"{command[0]} did not list: {done.stderr.decode(errors='replace')[-200:]}")
    return (time.monotonic_ns() - began_ns) / 1e6


def _judge_commands(bench: Bench) -> None:
    ours = bench.results.find(CLI, OURS)
    theirs = bench.results.find(CLI, "supervisord")
    if theirs is None:
        bench.results.skip("queries: bound of `circlectl list`: supervisorctl was not measured")
        return
    name = "circlectl list, at most half of supervisorctl status"
    bench.results.bound(NAME, name, ours.p50 if ours else None, theirs.p50 / 2, "ms")
