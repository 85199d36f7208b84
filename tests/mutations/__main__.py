"""The mutations as a command: `tools/dev mutate [NAME...] [--jobs 2] [--all-seeds [N]]`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.mutations import mutants  # noqa: E402 - found only by the line before
from tests.mutations.mutants import Mutation, Verdict  # noqa: E402 - found only by the line before

FEW = 4
"""A mutation that one of the first few seeds finds is looked for from the first on."""
SLACK = 2
"""Seeds beyond the one that finds it now: the next change of the simulator gives every seed another course."""


def main() -> int:
    """Judge each mutation; 1 if one is not found or does not apply."""
    options = _options()
    chosen = [each for each in mutants.mutations() if not options.name or each.name in options.name]
    unknown = set(options.name) - {each.name for each in chosen}
    if unknown:
        print(f"there is no mutation {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    seeds = range(1, options.all_seeds + 1) if options.all_seeds else None
    missed = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        if not _is_sound(Path(folder), seeds or range(1, max(each.last for each in chosen) + 1)):
            return 2
        work = [(each, pool.submit(_line, each, Path(folder), seeds)) for each in chosen]
        for mutation, each in work:
            verdict, line = each.result()
            print(line, flush=True)
            missed += verdict is None or verdict.seed is None
            if options.retune and verdict is not None and verdict.seed is not None:
                first = 1 if verdict.seed <= FEW else verdict.seed
                mutants.retuned(mutation, first, verdict.seed + SLACK)
    print(f"{len(chosen) - missed} of {len(chosen)} mutations are found")
    return 1 if missed else 0


def _is_sound(folder: Path, seeds: range) -> bool:
    """Whether the product passes as it is: else what is found shows nothing."""
    verdict = mutants.judge(mutants.copied(folder / "unpatched"), seeds, 1.0)
    if verdict.sentence is not None:
        print(f"seed {verdict.seed} fails without any mutation: {verdict.sentence}")
    return verdict.sentence is None


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/dev mutate", description=__doc__)
    parser.add_argument("name", nargs="*", help="only these (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="side by side (default: 2)")
    parser.add_argument(
        "--all-seeds",
        type=int,
        nargs="?",
        const=100,
        default=0,
        metavar="N",
        help="look from seed 1 on, through N (default: 100)",
    )
    parser.add_argument(
        "--retune", action="store_true", help="write the seeds that find them into the patches"
    )
    return parser.parse_args()


def _line(mutation: Mutation, folder: Path, seeds: range | None) -> tuple[Verdict | None, str]:
    told = f"{mutation.name:32} {mutation.breaks}\n{'':32}"
    try:
        verdict = mutants.judged(mutation, folder, seeds)
    except (mutants.DoesNotApply, mutants.SimulatorFailed) as error:
        return None, f"{told} {type(error).__name__}: {error}"
    if verdict.seed is None:
        return verdict, f"{told} NOT FOUND, {verdict.seconds:.1f} s"
    return verdict, f"{told} seed {verdict.seed}: {verdict.sentence} {verdict.seconds:.1f} s"


if __name__ == "__main__":
    sys.exit(main())
