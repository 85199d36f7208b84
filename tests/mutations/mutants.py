"""Mutations of production code: patches, each applied alone to a copy, and what the simulator says of it.

Law 1: the tree itself is never changed. Law 2: a patch is found by its text, not by its line numbers; where its text
is not there exactly once, it does not apply, and that is an error.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[2]
PATCHES = Path(__file__).parent / "patches"
COPIED = ("registry", "tests/simulation")
TIMEOUT_S = 600.0
"""Far more than any seeds take, on a machine that is busy with much else, too: what goes on for longer hangs."""

_HEADER = re.compile(r"Breaks: (.+)\nSeeds: (\d+)(?:\.\.(\d+))?, ([\d.]+) h\n")
_HUNK = re.compile(r"^@@.*@@.*\n", re.MULTILINE)
_VIOLATION = re.compile(r"^seed (\d+), after [\d.]+ s: (.+)$", re.MULTILINE)
_FRAME = re.compile(r'^ +File "(.+)", line \d+', re.MULTILINE)


class Mutation(msgspec.Struct, frozen=True):
    """One patch: what it breaks, and the seeds, of `hours` each, one of which finds it."""

    name: str
    breaks: str
    first: int
    last: int
    hours: float
    diff: str

    @property
    def seeds(self) -> range:
        """The seeds that find it."""
        return range(self.first, self.last + 1)


class Verdict(msgspec.Struct, frozen=True):
    """What the simulator said: the seed that found something and the sentence it violates, or neither."""

    seed: int | None
    sentence: str | None
    seconds: float


class DoesNotApply(Exception):
    """The code that a patch changes is no longer there, or is there more than once."""


class SimulatorFailed(Exception):
    """The simulator neither passed nor found a violation: it crashed, or hangs."""


def mutations() -> list[Mutation]:
    """All of them, by name. Raises ValueError where one does not say what it is."""
    return [_read(path) for path in sorted(PATCHES.glob("*.patch"))]


def _read(path: Path) -> Mutation:
    text = path.read_text()
    header = _HEADER.match(text)
    if header is None:
        raise ValueError(
            f"{path.name} does not begin with 'Breaks: …' and 'Seeds: FIRST..LAST, HOURS h'"
        )
    breaks, first, last, hours = header.groups()
    return Mutation(
        path.stem, breaks, int(first), int(last or first), float(hours), text[header.end() :]
    )


def retuned(mutation: Mutation, first: int, last: int) -> None:
    """Write other seeds into its patch."""
    path = PATCHES / f"{mutation.name}.patch"
    head = f"Breaks: {mutation.breaks}\nSeeds: {first}..{last}, {mutation.hours:g} h\n"
    path.write_text(head + mutation.diff)


def copied(folder: Path) -> Path:
    """A copy of what the simulator consists of; compiled files go along, for they save seconds."""
    for each in COPIED:
        shutil.copytree(ROOT / each, folder / each)
    return folder


def apply(mutation: Mutation, copy: Path) -> None:
    """Change the copy as the patch says. Raises DoesNotApply."""
    for name, hunks in _files(mutation.diff):
        path = copy / name
        if not path.is_file():
            raise DoesNotApply(f"{mutation.name}.patch changes {name}, and there is no such file")
        text = path.read_text()
        for before, after in hunks:
            count = text.count(before)
            if count != 1:
                raise DoesNotApply(
                    f"{mutation.name}.patch does not apply to {name} any more: what it changes is there"
                    f" {count} times; make it anew, so that it breaks what it says:\n{before}"
                )
            text = text.replace(before, after)
        path.write_text(text)


def _files(diff: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The files that a unified diff changes, and of each hunk the text before and after."""
    for part in re.split(r"^--- a/", diff, flags=re.MULTILINE)[1:]:
        name, _, rest = part.partition("\n")
        hunks = _HUNK.split(rest)[1:]
        yield name, [(_side(hunk, "-"), _side(hunk, "+")) for hunk in hunks]


def _side(hunk: str, sign: str) -> str:
    lines = hunk.splitlines(keepends=True)
    return "".join(line[1:] for line in lines if line[0] in (" ", sign))


def judge(copy: Path, seeds: range, hours: float) -> Verdict:
    """Run the simulator of a copy over seeds until one finds something. Raises SimulatorFailed.

    An exception of the simulator itself is no find: a simulator that is broken would find every mutation.
    """
    command = [sys.executable, str(copy / "tests" / "simulation"), "--from", str(seeds.start)]
    began_s = time.monotonic()
    try:
        done = subprocess.run(
            [*command, "--seeds", str(len(seeds)), "--hours", f"{hours:g}"],
            check=False,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise SimulatorFailed(f"the simulator goes on after {TIMEOUT_S:g} s") from error
    seconds = time.monotonic() - began_s
    found = _VIOLATION.search(done.stdout)
    is_told = found is not None and not done.stderr and _is_of_the_product(done.stdout, copy)
    if done.returncode == 1 and found is not None and is_told:
        return Verdict(int(found[1]), found[2], seconds)
    if done.returncode != 0 or "nothing is wrong" not in done.stdout:
        raise SimulatorFailed(
            f"status {done.returncode}: {done.stdout[-500:]}{done.stderr[-2000:]}"
        )
    return Verdict(None, None, seconds)


def _is_of_the_product(told: str, copy: Path) -> bool:
    """Whether an exception, if one is told of, was raised by the product: else it is the simulator that is broken."""
    frames = _FRAME.findall(told)
    return not frames or Path(frames[-1]).is_relative_to(copy / "registry")


def judged(mutation: Mutation, folder: Path, seeds: range | None = None) -> Verdict:
    """What the simulator says of one mutation, by its own seeds or by others; `folder` is used up."""
    try:
        copy = copied(folder / mutation.name)
        apply(mutation, copy)
        return judge(copy, seeds or mutation.seeds, mutation.hours)
    finally:
        shutil.rmtree(folder / mutation.name, ignore_errors=True)
