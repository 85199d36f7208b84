"""`python -m circle_replay`; from a checkout also `python3 tools/replay`.

The latter by any Python: it needs none of the dependencies, and goes on in `.venv`.
"""

import sys
from pathlib import Path


def main() -> None:
    """Run as a package, be the command; run as a folder, become the package in `.venv`."""
    if __package__:
        from circle_replay import cli

        cli.main()
    else:
        sys.path[0] = str(Path(__file__).resolve().parents[1])
        from dev import venv

        venv.become("circle_replay", sys.argv[1:])


if __name__ == "__main__":
    main()
