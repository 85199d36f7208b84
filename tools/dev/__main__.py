"""The commands of whoever works on the registry: `python3 tools/dev run|test|lint|simulate|fuzz|...`.

Needs Python 3.11 with its venv module and nothing else; all the rest is set up in `.venv` first.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from dev import venv  # noqa: E402 - found only by the line before

SIDE_BY_SIDE = ["-n", "6", "--dist", "loadgroup"]
"""More processes than cores: most tests wait for something most of the time."""
LINTS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
    ("lint-imports", "--no-logo"),
)

PROGRAMS = {
    "simulate": "run worlds of trouble on virtual time, judge every step: --seeds N --from S --hours H",
    "exhaustive": "walk every state of one service, and of two: --depth D --states N --only TEXT",
    "mutate": "break the product on purpose and see that the simulator finds it: [NAME ...] --jobs N",
    "fuzz": "feed whatever takes input from outside: --inputs N --seed S --target NAME",
    "crash": "kill a registry over and over and judge what is left: --rounds N --seed S",
    "soak": "run a registry with services of all bad habits, draw what it uses: --minutes M",
    "bench": "measure us, the floor and the rivals that are installed: [NAME ...] --json FILE",
}
"""Programs in folders of tests/, which take what follows; --help tells all of it."""
FOLDERS = {"simulate": "simulation", "mutate": "mutations"}


def main() -> None:
    """Do what the command line asks for; its exit status is that of the command."""
    name, *arguments = sys.argv[1:] or ["help"]
    if name in ("help", "-h", "--help"):
        print(_help())
    elif name in COMMANDS:
        COMMANDS[name](arguments)
    elif name in PROGRAMS:
        venv.ensure()
        program = venv.ROOT / "tests" / FOLDERS.get(name, name)
        os.execv(venv.PYTHON, [str(venv.PYTHON), str(program), *arguments])
    else:
        sys.exit(f"unknown command {name!r}\n\n{_help()}")


def run(arguments: list[str]) -> None:
    """run the registry in the foreground, on etc/services.toml unless --config says otherwise"""
    names_its_file = any(argument.split("=")[0] == "--config" for argument in arguments)
    if not names_its_file:
        os.chdir(venv.ROOT)
    venv.become("registry", arguments)


def test(arguments: list[str]) -> None:
    """run the tests, all of them side by side; what follows is handed to pytest"""
    os.chdir(venv.ROOT)
    venv.become("pytest", arguments or SIDE_BY_SIDE)


def lint(arguments: list[str]) -> None:
    """ruff check, ruff format --check, mypy --strict, lint-imports: all of them, whichever fails"""
    if arguments:
        sys.exit(f"lint takes no arguments, and was given: {' '.join(arguments)}")
    venv.ensure()
    failed = [" ".join(command) for command in LINTS if not _passes(command)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def _passes(command: tuple[str, ...]) -> bool:
    print(f"== {' '.join(command)}", flush=True)
    program, *arguments = command
    done = subprocess.run([venv.BIN / program, *arguments], check=False, cwd=venv.ROOT)
    return done.returncode == 0


def _help() -> str:
    commands = {name: command.__doc__ for name, command in COMMANDS.items()} | PROGRAMS
    lines = [f"  {name:10} {does}" for name, does in commands.items()]
    return "\n".join(["usage: python3 tools/dev COMMAND [ARGUMENTS]", "", *lines])


COMMANDS = {"run": run, "test": test, "lint": lint}

if __name__ == "__main__":
    main()
