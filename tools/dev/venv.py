"""The checkout's own `.venv`: made when it is missing or no longer what pyproject.toml asks for.

Needs Python 3.11 with its venv module, nothing else; an older one must still be able to read this.
The stamp is taken away first and written last: a set-up that was interrupted begins from nothing.
One set-up at a time: the others wait for it at the lock and use what it made. Its steps hold the
lock, too, so that a step which outlives a killed set-up is waited for.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn, TextIO

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
BIN = VENV / "bin"
PYTHON = BIN / "python"
NAMES = VENV / "names"
STAMP = VENV / "set-up-for"
LOCK = ROOT / ".venv.lock"

LOG_LINES_SHOWN = 15


def ensure() -> None:
    """Set `.venv` up where need be; exits with a sentence where that cannot be done."""
    if sys.version_info < (3, 11):  # noqa: UP036 - this is the place that says so
        sys.exit(
            f"Python 3.11 or later is needed, and {sys.executable} is {sys.version.split()[0]}."
        )
    try:
        wanted = _wanted()
        if not _is_ready(wanted):
            _set_up_once(wanted)
    except OSError as error:
        sys.exit(f"cannot set up .venv: {error}")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted: the next command sets .venv up again")


def become(module: str, arguments: list[str]) -> NoReturn:
    """Go on as `python -m MODULE` in `.venv`: the pid, the folder and the descriptors stay.

    -P: nothing is imported from the current folder.
    """
    ensure()
    print(end="", flush=True)  # standard output may be closed
    os.execv(PYTHON, [str(PYTHON), "-P", "-m", module, *arguments])


def _wanted() -> str:
    """The stamp of a `.venv` that serves: the path it is installed from, and what was asked for."""
    project = _pyproject()["project"]
    asked = [_pyproject()["build-system"], _pyproject()["tool"]["setuptools"]]
    asked += [project["dependencies"], project["optional-dependencies"], project["scripts"]]
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return f"{ROOT}\n{digest}\n"


def _pyproject() -> dict[str, Any]:
    import tomllib

    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def _is_ready(wanted: str) -> bool:
    return PYTHON.exists() and STAMP.exists() and STAMP.read_text() == wanted


def _set_up_once(wanted: str) -> None:
    with LOCK.open("w") as lock:
        _take(lock)
        if not _is_ready(wanted):  # whoever held the lock may have done it
            _say("setting up .venv ...")
            _set_up(wanted, lock)


def _take(lock: TextIO) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _say("waiting for another set-up of .venv ...")
        fcntl.flock(lock, fcntl.LOCK_EX)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _set_up(wanted: str, lock: TextIO) -> None:
    usable = PYTHON.exists() and STAMP.exists() and STAMP.read_text().startswith(f"{ROOT}\n")
    if VENV.is_symlink() and not usable:
        VENV.unlink()  # what it leads to is not ours to clear
    STAMP.unlink(missing_ok=True)
    if not usable:
        # The Python behind the one that runs: the latter may lie in the very .venv that is cleared.
        base = getattr(sys, "_base_executable", sys.executable)
        _step("make .venv", lock, base, "-m", "venv", "--clear", str(VENV))
    pip = (str(PYTHON), "-m", "pip", "install", "--quiet")
    _step("install into .venv", lock, *pip, "-e", f"{ROOT}[dev]")
    _link_names()
    STAMP.write_text(wanted)


def _step(aim: str, lock: TextIO, *command: str) -> None:
    done = subprocess.run(
        command,
        check=False,
        cwd=ROOT,
        pass_fds=[lock.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        log = "\n".join(f"  {line}" for line in done.stdout.splitlines()[-LOG_LINES_SHOWN:])
        sys.exit(f"cannot {aim}: `{' '.join(command)}` failed and said last:\n{log}")


def _link_names() -> None:
    """The packages whose folder has another name, for those who look in folders (mypy, editors)."""
    NAMES.mkdir(exist_ok=True)
    for link in NAMES.iterdir():
        link.unlink()
    for name, folder in _pyproject()["tool"]["setuptools"]["package-dir"].items():
        if folder != name:
            (NAMES / name).symlink_to(ROOT / folder)
