"""Whether another Python gives the same rows: the pinned digests of three seeds, on the newest one that is found.

`tests/simulation/other_python.py`, with OTHER_PYTHON for one that is not on PATH. It takes the packages of the project
into a folder that is gone afterwards. Without another Python it says that nothing was shown, and that is no failure.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OLDEST_MINOR, NEWEST_MINOR = 11, 30


def main() -> int:
    """1 where a digest differs or the other Python cannot be used."""
    python = _other()
    if python is None:
        print(
            "SKIPPED: no other Python from 3.11 on is found; the digests are shown for this one only"
        )
        return 0
    with tempfile.TemporaryDirectory() as folder:
        told = _simulate(python, Path(folder))
    wanted = _pinned()
    if told != wanted:
        print(f"Python {_version(python)} gives other rows: {told}, pinned are {wanted}")
        return 1
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    print(f"seeds {', '.join(wanted)} give the same rows on Python {ours} and {_version(python)}")
    return 0


def _other() -> str | None:
    """The newest Python that starts and is not of our version."""
    named = os.environ.get("OTHER_PYTHON")
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    for name in [named] if named else _newest_first():
        path = shutil.which(name)
        if path is not None and _version(path) not in (None, ours):
            return path
    return None


def _newest_first() -> Iterator[str]:
    """On PATH, or where pyenv keeps those that PATH only has a shim for."""
    kept = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    for minor in range(NEWEST_MINOR, OLDEST_MINOR - 1, -1):
        yield f"python3.{minor}"
        yield from map(str, sorted(kept.glob(f"3.{minor}.*/bin/python3")))


def _version(python: str) -> str | None:
    """As `3.13`; None where it does not start, as a name without a version behind it does."""
    command = [python, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.stdout.strip() or None if done.returncode == 0 else None


def _simulate(python: str, folder: Path) -> dict[str, str]:
    subprocess.run([python, "-m", "venv", folder], check=True)
    ours = str(folder / "bin" / "python")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    install = [ours, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, *project["dependencies"]], check=True)
    hours = re.findall(r"^HOURS = (\S+)$", _tests(), re.MULTILINE)[0]
    command = [ours, "-B", str(HERE), "--seeds", "3", "--hours", hours]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    return dict(re.findall(r"^seed (\d+): ([0-9a-f]{64}) ", done.stdout, re.MULTILINE))


def _pinned() -> dict[str, str]:
    return dict(re.findall(r'^    (\d+): "([0-9a-f]{64})"', _tests(), re.MULTILINE))


def _tests() -> str:
    return (HERE / "test_simulation.py").read_text()


if __name__ == "__main__":
    sys.exit(main())
