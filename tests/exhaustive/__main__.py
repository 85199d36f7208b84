"""The exhaustive search as a command: `tools/dev exhaustive --depth D`, without a depth until nothing new is found."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from registry.core.lifecycle import MOVES  # noqa: E402 - found only by the line before
from tests.exhaustive.scenarios import every  # noqa: E402 - found only by the line before
from tests.exhaustive.search import Found, Search, Unsound  # noqa: E402 - found only by the line before


def main() -> int:
    """Search each scenario; 1 at the first rule that is broken, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="tools/dev exhaustive", description=__doc__)
    parser.add_argument("--depth", type=int, default=None, help="steps from the beginning, at most")
    parser.add_argument("--states", type=int, default=None, help="of a scenario, about, at most")
    parser.add_argument("--only", default="", help="scenarios whose name has this in it")
    options = parser.parse_args()
    print(f"{'scenario':42} {'states':>9} {'steps':>10} {'depth':>9} {'rests':>7} {'CPU':>7}")
    total = Found("all")
    try:
        for scenario in every():
            if options.only in scenario.name:
                found = Search(scenario).run(options.depth, options.states)
                print(_line(found), flush=True)
                _add(total, found)
    except Unsound as violation:
        print(violation, flush=True)
        return 1
    except KeyboardInterrupt:
        return 130
    print(_line(total))
    print(_told(total.moves))
    return 0


def _add(total: Found, found: Found) -> None:
    total.states += found.states
    total.transitions += found.transitions
    total.rests += found.rests
    total.depth = max(total.depth, found.depth)
    total.is_closed = found.is_closed
    total.seconds += found.seconds
    total.moves += found.moves


def _line(found: Found) -> str:
    depth = f"{found.depth}{'' if found.is_closed else '+'}"
    numbers = f"{found.states:9} {found.transitions:10} {depth:>9} {found.rests:7}"
    return f"{found.scenario:42} {numbers} {found.seconds:6.1f}s"


def _told(moves: Counter[tuple[str, str, str]]) -> str:
    never = [
        f"{kind} {source} {dest}"
        for (kind, source), dests in MOVES.items()
        for dest in sorted(dests)
        if not moves[kind, source, dest]
    ]
    count = sum(map(len, MOVES.values()))
    return f"{count - len(never)} of {count} moves were made; never: {', '.join(never) or 'none'}"


if __name__ == "__main__":
    sys.exit(main())
