"""The fuzzers as a command: `tools/dev fuzz --inputs N --seed S --target NAME`."""

from __future__ import annotations

import argparse
import faulthandler
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])
sys.path.insert(1, str(Path(__file__).resolve().parents[2] / "tools"))

from tests.fuzz.harness import Broken, doubled, run  # noqa: E402 - found only by the lines before
from tests.fuzz.targets import TARGETS  # noqa: E402 - found only by the lines before

STUCK_S = 120.0
"""So long without progress ends the run with all stacks: a wait that takes no CPU."""
TOLD_EVERY = 100_000


def main() -> int:
    """Run the targets; 1 at the first broken promise of any, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="tools/dev fuzz", description=__doc__)
    parser.add_argument(
        "--inputs", type=int, default=10_000, help="of each target (default: 10000)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of all chance (default: 1)")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first (default: 0)")
    parser.add_argument("--target", action="append", choices=TARGETS, help="only this; repeatable")
    options = parser.parse_args()
    status = 0
    for name in options.target or TARGETS:
        try:
            _run(name, options.seed, options.inputs, options.first)
        except Broken as broken:
            print(broken, flush=True)
            status = 1
        except KeyboardInterrupt:
            return 130
        finally:
            faulthandler.cancel_dump_traceback_later()
    return status


def _run(name: str, seed: int, inputs: int, first: int) -> None:
    def told(count: int) -> None:
        if count % 500 == 0:
            faulthandler.dump_traceback_later(STUCK_S, exit=True)
        if count and count % TOLD_EVERY == 0:
            print(f"{name}: {count} inputs", flush=True)

    found = run(TARGETS[name], seed, inputs, first, told)
    ratios = doubled(TARGETS[name]) if inputs > 1 else {}
    speed = found.inputs / found.seconds if found.seconds else 0.0
    print(
        f"{name}: nothing is wrong after {found.inputs} inputs, {speed:.0f}/s of CPU; the slowest,"
        f" {found.slowest}, took {found.slowest_s * 1000:.1f} ms; grown by {found.grown >> 10} kB"
        + "".join(f"; {what} twice as many: x{ratio:.1f}" for what, ratio in ratios.items()),
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
