"""Seeds side by side, each in a process of its own: what came of them comes in their order."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator

from tests.simulation.world import Outcome, Task, simulate


def outcomes(tasks: list[Task], jobs: int) -> Iterator[Outcome]:
    """What came of each task, in order. Raises Failure."""
    if jobs == 1:
        yield from map(_simulate, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, _leave_interrupts_to_us) as pool:
        yield from pool.imap(_simulate, tasks)


def _simulate(task: Task) -> Outcome:
    return simulate(task.seed, task.hours, task.services, task.pace)


def _leave_interrupts_to_us() -> None:
    """Whoever began us ends us."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
