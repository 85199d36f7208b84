"""Killed at random and at every named point, round after round: nothing is interrupted, doubled, forgotten or lost."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash import launcher, rounds, world
from tests.crash.commander import TICK_NS, Sent
from tests.crash.judge import Before, Judge, Violation, was_up, wrong_age, wrong_number
from tests.crash.rounds import run
from tests.crash.world import HERE, ROOT, Seen, World, wait_for

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


WAS, NOW = (100, 5000), (200, 6000)
"""A service's main process before a round and after it, by pid and start time."""


def sent(verb: str, tick: int, *, answered: bool = True) -> Sent:
    return Sent(verb, "deaf-0", 7 if answered else None, tick, 0.0)


def unanswered(verb: str, tick: int = 4990) -> Sent:
    return sent(verb, tick, answered=False)


NUMBERS: dict[str, tuple[bool, tuple[int, int] | None, int, list[Sent], list[Sent]]] = {
    # the promise holds; main process after the round; executions in it; unanswered before it; sent in it
    "as it was": (True, WAS, 0, [], []),
    "another, and nobody said anything": (False, NOW, 1, [], []),
    "another, and it was only to be started": (False, NOW, 1, [], [sent("start", 5500)]),
    "another, for a restart": (True, NOW, 1, [], [sent("restart", 5500)]),
    "another, born in the tick of the restart": (True, NOW, 1, [], [sent("restart", 6000)]),
    "another, for a restart that nobody answered": (
        True,
        NOW,
        1,
        [],
        [unanswered("restart", 5500)],
    ),
    "as it was, after a restart that nobody answered": (
        True,
        WAS,
        0,
        [],
        [unanswered("restart", 5500)],
    ),
    "as it was, after a restart": (False, WAS, 0, [], [sent("restart", 5500)]),
    "the first of two restarts": (
        False,
        NOW,
        1,
        [],
        [sent("restart", 5500), sent("restart", 6001)],
    ),
    "being stopped, and then to be started": (
        False,
        WAS,
        0,
        [],
        [sent("stop", 5500), sent("start", 5501)],
    ),
    "two for one restart": (False, NOW, 2, [], [sent("restart", 5500)]),
    "down, after a stop": (True, None, 0, [], [sent("stop", 5500)]),
    "another, for what was still to come": (True, NOW, 1, [unanswered("restart")], []),
    "two, and one was still to come": (
        False,
        NOW,
        2,
        [unanswered("restart"), unanswered("restart")],
        [],
    ),
    "another, and only a start was still to come": (False, NOW, 1, [unanswered("start")], []),
    "another, after a stop that was still to come": (
        True,
        NOW,
        1,
        [unanswered("stop")],
        [sent("start", 5500)],
    ),
}


@pytest.mark.parametrize(
    ("holds", "now", "grown", "late", "commands"), NUMBERS.values(), ids=NUMBERS
)
def test_a_service_has_another_process_only_where_one_was_asked_for(
    holds: bool, now: tuple[int, int] | None, grown: int, late: list[Sent], commands: list[Sent]
) -> None:
    before = Before({"deaf-0": WAS}, {"deaf-0": 3}, late)
    seen = [Seen(*now, session=now[0], comm="python", service="deaf-0", run=4)] if now else []
    assert (wrong_number(before, 3 + grown, seen, commands, "deaf-0") is None) == holds


@pytest.mark.parametrize(
    ("stamps", "was"),
    [
        ([], False),
        ([("down", 1)], False),
        ([("down", 1), ("up", 2)], True),
        ([("down", 1), ("up", 2), ("down", 3)], False),
        ([("up", 2), ("down", TICK_NS)], True),
        ([("down", 1), ("up", 2 * TICK_NS - 1)], True),
        ([("down", 1), ("up", 2 * TICK_NS)], False),
    ],
)
def test_who_depends_on_another_is_born_while_that_is_up(
    stamps: list[tuple[str, int]], was: bool
) -> None:
    assert was_up(stamps, 1) == was


def commanded(verb: str, service: str, *, answered: bool = True) -> Sent:
    return Sent(verb, service, 7 if answered else None, 5500, 0.0)


@pytest.mark.parametrize(
    ("holds", "name", "grown", "command"),
    [
        (True, "follow-1", 1, commanded("restart", "late-0")),
        (True, "follow-1", 1, commanded("start", "late-2")),
        (False, "follow-1", 2, commanded("restart", "late-0")),
        (False, "follow-1", 1, commanded("restart", "needy-0")),
        (False, "late-1", 1, commanded("restart", "late-0")),
        (True, "late-1", 1, commanded("restart", "late-1")),
        (False, "late-0", 1, commanded("restart", "late-1")),
    ],
)
def test_who_follows_has_another_process_where_what_it_follows_has_and_nobody_else(
    holds: bool, name: str, grown: int, command: Sent
) -> None:
    before = Before({name: WAS}, {name: 3}, [])
    seen = [Seen(*NOW, session=NOW[0], comm="python", service=name, run=4)]
    assert (wrong_number(before, 3 + grown, seen, [command], name) is None) == holds


@pytest.mark.parametrize(
    ("follower", "late", "holds"),
    [(5, 5, True), (6, 5, True), (5, 6, False), (None, 5, True), (5, None, True)],
)
def test_who_follows_is_younger_than_what_it_follows(
    follower: int | None, late: int | None, holds: bool
) -> None:
    born = {"follow-0": follower, "late-0": late}
    seen = {
        name: [Seen(1, tick, 1, "python", name, 1)] if tick else [] for name, tick in born.items()
    }
    assert (wrong_age(seen, "follow-0") is None) == holds


UP, DOWN, EITHER = frozenset({"up"}), frozenset({"down"}), frozenset({"up", "down"})


@pytest.mark.parametrize(
    ("commands", "possible"),
    [
        ([], {}),
        ([("stop", "late-0")], {"late-0": DOWN, "late-1": EITHER, "follow-0": DOWN}),
        ([("stop", "late-0"), ("start", "late-1")], {}),
        ([("stop", "late-0"), ("stop", "late-1"), ("start", "late-2")], {}),
        ([("stop", "late-2")], {"late-2": DOWN}),
        ([("stop", "follow-0")], {"follow-0": DOWN, "follow-1": DOWN}),
        ([("restart", "setup-0")], {}),
    ],
)
def test_what_may_be_down_is_what_was_stopped_and_what_depends_on_it(
    commands: list[tuple[str, str]], possible: dict[str, frozenset[str]], short_dir: Path
) -> None:
    judge = Judge(World(short_dir))
    for verb, name in commands:
        judge.wish(name, verb, is_certain=True)
    for name in ("late-0", "late-1", "late-2", "follow-0", "needy-0"):
        down = EITHER if name == "late-2" and possible.get("late-1") else UP
        assert judge.possible(name) == possible.get(name, down), name


def test_an_end_that_takes_too_long_is_a_violation(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = World(short_dir)
    monkeypatch.setattr(world, "DEADLINE_S", 0.1)
    script = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as registry:
        assert registry.stdout is not None
        registry.stdout.readline()
        endless.daemon = registry
        with pytest.raises(Violation, match="orderly end: not in time"):
            rounds._end(endless, "title")
        registry.kill()


@pytest.mark.timeout(60)
@pytest.mark.platform("linux")
def test_ctrl_c_leaves_nothing_however_often_it_comes() -> None:
    with subprocess.Popen(
        [sys.executable, str(HERE), "--rounds", "1000"],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    ) as command:
        try:
            folder = wait_for(lambda: folder_of_registry_in(command.pid), "a registry runs")
            wait_for(lambda: len(list(folder.glob("ran/*"))) > 10, "services run")
        finally:
            while command.poll() is None:
                os.killpg(command.pid, signal.SIGINT)
                time.sleep(0.01)
    assert command.returncode == 130
    assert not folder.exists()
    assert having("environ", f"CIRCLEOSD_SOCKET={folder / 's'}") == []
    assert having("cmdline", str(folder / "var" / "keeper.sock")) == []


def folder_of_registry_in(group: int) -> Path | None:
    """Where a process of the group runs that is a registry."""
    for pid in having("cmdline", str(HERE / "launcher.py")):
        with contextlib.suppress(OSError):
            if os.getpgid(pid) == group:
                return Path(os.readlink(f"/proc/{pid}/cwd"))
    return None


def having(name: str, word: str) -> list[int]:
    """The processes with a word in their environment or command line."""
    found = []
    for path in Path("/proc").glob(f"[0-9]*/{name}"):
        with contextlib.suppress(OSError):
            if word.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


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
