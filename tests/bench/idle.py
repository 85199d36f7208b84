"""What it costs while nothing happens: wakeups, CPU and memory, without checks and with a thousand a second."""

from __future__ import annotations

import subprocess
import sys
import time

from tests.bench import processes
from tests.bench.figures import OURS
from tests.bench.life import Bench, Life, NotHere, noted
from tests.bench.processes import Cost
from tests.bench.restart import answering, checked
from tests.bench.supervisors import ROOT, Registry, Supervisor

IDLE, MEMORY = "idle", "memory"
PSS, PSS_OF_ONE = "memory (PSS)", "memory (PSS) with one service"
CHECK_BOUNDS = {"http": 40.0, "unix": 25.0}
"""Per cent of a core that as many checks a second as there are services may take."""
PSS_BOUND_MIB, OF_A_SERVICE_BOUND_KB = 40.0, 12.0
FOREIGN = (
    "aiohttp",
    "fastapi",
    "flask",
    "grpc",
    "prometheus_client",
    "rich",
    "starlette",
    "textual",
    "uvicorn",
)
"""Libraries of web, gRPC and terminals that the daemon itself is not to import."""


def idle(bench: Bench) -> None:
    """CPU and wakeups: of everybody without checks, of ourselves with some."""
    for supervisor in bench.everybody():
        bench.told(f"idle: {supervisor.name}")
        with noted(bench, f"idle: {supervisor.name}"):
            _without_checks(bench, supervisor)
    for kind, bound in CHECK_BOUNDS.items():
        bench.told(f"idle: registry, {kind} checks")
        name = f"{bench.scale.many} {kind}: checks a second"
        with noted(bench, name):
            share = _with_checks(bench, kind)
            bench.results.add(IDLE, f"CPU with {name}", OURS, "% of a core", [share])
            bench.results.bound(IDLE, f"CPU with {name}", share, bound, "% of a core")


def _without_checks(bench: Bench, supervisor: Supervisor) -> None:
    number = min(bench.scale.many, supervisor.services_max)
    with bench.life(supervisor, number) as life:
        life.boot()
        life.settle(bench.scale.settle_s)
        spent = _spent(life, bench.scale.window_s)
    who, add, window_s = supervisor.name, bench.results.add, bench.scale.window_s
    note = f"{number} services, {window_s:g} s"
    add(IDLE, "CPU while nothing happens", who, "ms/min", [spent.cpu_s * 60_000 / window_s], note)
    add(IDLE, "wakeups while nothing happens", who, "a min", [spent.switches * 60 / window_s], note)
    if who == OURS:
        for what, value in (("voluntary switches", spent.switches), ("ticks of CPU", spent.ticks)):
            name = f"{what} of {number} idle services in {window_s:g} s"
            bench.results.bound(IDLE, name, value, 0, "")


def _spent(life: Life, window_s: float) -> Cost:
    pids = life.supervisors()
    before = processes.cost(pids)
    time.sleep(window_s)
    return processes.cost(pids).since(before)


def _with_checks(bench: Bench, kind: str) -> float:
    scale = bench.scale
    with (
        answering(bench, kind) as target,
        bench.life(Registry(), scale.many, keys=checked(target)) as life,
    ):
        life.boot()
        time.sleep(scale.settle_s)
        return _spent(life, scale.window_s).cpu_s / scale.window_s * 100


def memory(bench: Bench) -> None:
    """PSS of all processes of each; and what one more service takes."""
    scale = bench.scale
    for supervisor in bench.everybody():
        bench.told(f"memory: {supervisor.name}")
        with noted(bench, f"memory: {supervisor.name}"):
            number = min(scale.many, supervisor.services_max)
            note = f"{number} services"
            mib = pss_mib(bench, supervisor, number)
            bench.results.add(MEMORY, PSS, supervisor.name, "MiB", [mib], note)
    with noted(bench, "memory: registry, one service"):
        mib = pss_mib(bench, Registry(), 1)
        bench.results.add(MEMORY, PSS_OF_ONE, OURS, "MiB", [mib])
    with noted(bench, "memory: registry, logs kept"):
        mib = pss_mib(bench, Registry(logs=True), scale.many)
        bench.results.add(MEMORY, "memory (PSS), logs kept", OURS, "MiB", [mib])
    _judge_memory(bench)


def pss_mib(bench: Bench, supervisor: Supervisor, number: int) -> float:
    """Of all its processes, once it has come to rest. Raises NotHere where nobody can tell."""
    with bench.life(supervisor, number) as life:
        life.boot()
        life.settle(bench.scale.settle_s)
        kib = processes.pss_kib(life.supervisors())
    if not kib:
        raise NotHere("this kernel shows no smaps_rollup")
    return kib / 1024


def _judge_memory(bench: Bench) -> None:
    results, many = bench.results, bench.scale.many
    all_of_them, one = results.find(PSS, OURS), results.find(PSS_OF_ONE, OURS)
    mib = all_of_them.p50 if all_of_them else None
    results.bound(MEMORY, f"memory (PSS) of {many} services", mib, PSS_BOUND_MIB, "MiB")
    each = None
    if mib is not None and one is not None and many > 1:
        each = max(0.0, (mib - one.p50) * 1024 * 1.024 / (many - 1))
    results.bound(MEMORY, "memory (PSS) of one more service", each, OF_A_SERVICE_BOUND_KB, "kB")
    count = float(len(_foreign_modules()))
    results.bound(MEMORY, "web, gRPC and terminal libraries in the daemon", count, 0, "")


def _foreign_modules() -> set[str]:
    """Which of FOREIGN a daemon has imported before it begins."""
    script = "import registry.__main__, registry.daemon, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        check=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    return {name.partition(".")[0] for name in done.stdout.split()}.intersection(FOREIGN)
