"""The simulator as a command: `tools/dev simulate --seeds N --from S --hours H`."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from registry.core.lifecycle import MOVES  # noqa: E402 - found only by the line before
from tests.simulation.world import Failure, simulate  # noqa: E402 - found only by the line before

LEAST = 12
"""Moves told of at the end: those that were made least often."""


def main() -> int:
    """Run the seeds; 1 at the first violation, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="tools/dev simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=40, help="how many (default: 40)")
    parser.add_argument("--from", type=int, default=1, dest="first", help="the first (default: 1)")
    parser.add_argument("--hours", type=float, default=1.0, help="of each (default: 1)")
    parser.add_argument("--services", type=int, default=None, help="of each (default: 1 to 7)")
    options = parser.parse_args()
    total: Counter[str] = Counter()
    moves: Counter[tuple[str, str, str]] = Counter(_possible())
    began_s = time.process_time()
    try:
        for seed in range(options.first, options.first + options.seeds):
            outcome = simulate(seed, options.hours, options.services)
            print(f"seed {seed}: {outcome.digest} {outcome.decisions} decisions", flush=True)
            total.update(outcome.happened)
            moves.update(outcome.moves)
            total.update(decisions=outcome.decisions, kills=outcome.kills, steps=outcome.steps)
    except Failure as failure:
        print(failure, flush=True)
        return 1
    except KeyboardInterrupt:
        return 130
    hours, spent_s = options.seeds * options.hours, time.process_time() - began_s
    print(
        f"nothing is wrong after {hours:g} hours, {total.pop('steps')} steps,"
        f" {total.pop('decisions')} decisions, {total.pop('kills')} kills; {spent_s:.1f} s of CPU"
    )
    print(", ".join(f"{name} {count}" for name, count in sorted(total.items())))
    least = sorted(moves.items(), key=lambda item: (item[1], item[0]))[:LEAST]
    print("least visited: " + ", ".join(f"{' '.join(move)} {count}" for move, count in least))
    return 0


def _possible() -> dict[tuple[str, str, str], int]:
    """Every move of the table, none of them made yet."""
    return {
        (kind, source.value, dest.value): 0
        for (kind, source), dests in MOVES.items()
        for dest in dests
    }


if __name__ == "__main__":
    sys.exit(main())
