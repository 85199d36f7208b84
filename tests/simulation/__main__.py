"""The simulator as a command: `tools/dev simulate --seeds N --from S --hours H`, or `--budget` as CI runs it.

With `--jobs` seeds run side by side, each in a process of its own; what is printed stays the same.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
from collections import Counter
from pathlib import Path

import msgspec

sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.simulation import coverage  # noqa: E402 - found only by the line before
from tests.simulation.disk import Move  # noqa: E402
from tests.simulation.side_by_side import outcomes  # noqa: E402
from tests.simulation.world import Failure, Outcome, Task  # noqa: E402

LEAST_TOLD = 12
"""Rows of the table told of at the end: those that were visited least often."""
BUDGET = {"seeds": 560, "hours": 0.5, "jobs": 2}
"""What CI runs: about two minutes of two cores."""
HOURS_OF_A_YEAR = 8766.0


class Sum(msgspec.Struct):
    """What came of all seeds so far."""

    hours: float = 0.0
    steps: int = 0
    rows: int = 0
    decisions: int = 0
    kills: int = 0
    cpu_s: float = 0.0
    happened: Counter[str] = msgspec.field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        """One more seed."""
        self.hours += outcome.task.hours
        self.steps += outcome.steps
        self.rows += outcome.rows
        self.decisions += outcome.decisions
        self.kills += outcome.kills
        self.happened.update(outcome.happened)


def main() -> int:
    """Run the seeds; 1 at the first violation, or where a budget visits too little; 130 after Ctrl-C."""
    options = _parser().parse_args()
    if options.budget:
        vars(options).update(BUDGET, first=1, services=None, pace=1.0)
    tasks = [
        Task(seed, options.hours, options.services, options.pace)
        for seed in range(options.first, options.first + options.seeds)
    ]
    total, visits = Sum(), coverage.Coverage()
    try:
        for outcome in outcomes(tasks, options.jobs):
            _say(f"seed {outcome.task.seed}: {outcome.digest} {outcome.decisions} decisions")
            total.add(outcome)
            visits.add(outcome.moves, outcome.before, outcome.after)
    except Failure as failure:
        _say(str(failure))
        return 1
    except KeyboardInterrupt:
        return 130
    total.cpu_s = _cpu_s()
    least = visits.least()
    _say(_as_json(total, least) if options.json else _as_text(total, least))
    return _judge(visits) if options.budget else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools/dev simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=40, help="how many (default: 40)")
    parser.add_argument("--from", type=int, default=1, dest="first", help="the first (default: 1)")
    parser.add_argument("--hours", type=float, default=1.0, help="of each (default: 1)")
    parser.add_argument("--services", type=int, default=None, help="of each (default: 1 to 7)")
    parser.add_argument(
        "--pace", type=float, default=1.0, help="all trouble so many times more seldom (default: 1)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="seeds side by side (default: 1)")
    parser.add_argument("--json", action="store_true", help="sum up in one line of JSON")
    parser.add_argument(
        "--budget",
        action="store_true",
        help=f"what CI runs: 1 where a row of the lifecycle's table has fewer than {coverage.LEAST} visits",
    )
    return parser


def _cpu_s() -> float:
    """Of this process and of those that it had."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _say(text: str) -> None:
    print(text, flush=True)


def _as_text(total: Sum, least: list[tuple[int, str, Move]]) -> str:
    shown = ", ".join(f"{' '.join(row)} {way} {n}" for n, way, row in least[:LEAST_TOLD])
    happened = ", ".join(f"{name} {count}" for name, count in sorted(total.happened.items()))
    years = total.hours / HOURS_OF_A_YEAR
    return "\n".join(
        [
            happened,
            f"least visited: {shown}",
            f"nothing is wrong after {total.hours:g} hours ({years:.2f} years), {total.steps} steps,"
            f" {total.decisions} decisions, {total.kills} kills; {total.cpu_s:.1f} s of CPU",
        ]
    )


def _as_json(total: Sum, least: list[tuple[int, str, Move]]) -> str:
    shown = {" ".join((*row, way)): count for count, way, row in least[:LEAST_TOLD]}
    return msgspec.json.encode({**msgspec.to_builtins(total), "least": shown}).decode()


def _judge(visits: coverage.Coverage) -> int:
    """1 where a row was visited too seldom, or one that cannot be was."""
    scarce = [each for each in visits.least() if each[0] < coverage.LEAST]
    for count, way, row in scarce:
        _say(f"{' '.join(row)} {way}: {count}, and {coverage.LEAST} are owed")
    for row in visits.impossible():
        _say(f"{' '.join(row)} is said to be impossible, and was visited")
    return 1 if scarce or visits.impossible() else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # whoever read has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
