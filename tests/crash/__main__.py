"""The crash rounds as a command: `tools/dev crash --rounds N --seed S`."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.crash.rounds import Tally, run  # noqa: E402 - found only by the line before

TOLD_EVERY = 10


def main() -> int:
    """Run the rounds; 1 at the first violation, whose folder is kept, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="tools/dev crash", description=__doc__)
    parser.add_argument("--rounds", type=int, default=25, help="how many (default: 25)")
    parser.add_argument("--seed", type=int, default=1, help="of all chance (default: 1)")
    options = parser.parse_args()
    folders: list[Path] = []
    signal.signal(signal.SIGINT, _interrupt)

    def new_folder() -> Path:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        folders.append(Path(tempfile.mkdtemp(prefix="cr-", dir="/tmp")))
        return folders[-1]

    def told(tally: Tally) -> None:
        if tally.rounds % TOLD_EVERY == 0:
            print(tally, flush=True)

    status = 1
    try:
        tally = run(options.seed, options.rounds, new_folder, told)
        print(f"nothing is wrong after {tally}")
        status = 0
    except AssertionError as violation:
        print(violation, flush=True)
        folders.pop()
    except KeyboardInterrupt:
        status = 130
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
    return status


def _interrupt(_number: int, _frame: object) -> NoReturn:
    """Once: another Ctrl-C would leave behind what is being cleaned up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
