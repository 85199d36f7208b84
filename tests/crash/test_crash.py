"""Killed at random and at every named point, round after round: nothing is interrupted, doubled, forgotten or lost."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash import launcher
from tests.crash.rounds import run
from tests.crash.world import HERE, ROOT

SEED = 20260101
ROUNDS = 25


@pytest.fixture
def folders() -> Iterator[contextlib.ExitStack]:
    """Short folders, gone afterwards."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.mark.timeout(240)
def test_whoever_is_killed_whenever_nothing_is_interrupted_doubled_forgotten_or_lost(
    folders: contextlib.ExitStack,
) -> None:
    def new_folder() -> Path:
        folder = tempfile.mkdtemp(prefix="cr-", dir="/tmp")
        folders.callback(shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)

    tally = run(SEED, ROUNDS, new_folder, lambda _tally: None)
    missed = set(launcher.MOMENTS) - set(tally.kills)
    assert not missed, f"never died at {sorted(missed)}, in {tally}"


def test_a_fault_point_that_is_no_longer_there_ends_the_launcher_with_a_sentence(
    tmp_path: Path,
) -> None:
    script = (
        "from tests.crash import launcher\n"
        "launcher.POINTS = {'gone': ('registry.host.gate', 'Gate.no_such_function')}\n"
        "launcher.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=10,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "fault point: there is no Gate.no_such_function in registry.host.gate any more;"
        f" mend POINTS in {HERE / 'launcher.py'}\n"
    )
