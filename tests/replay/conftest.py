"""Journals to read: the golden story, written by the real Journal; and the command, run here."""

from __future__ import annotations

import asyncio
import os
import runpy
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from circle_replay import cli
from registry.core.events import ProbeChanged, Record
from registry.journal import Journal

STORY = runpy.run_path(str(Path(__file__).parents[1] / "golden" / "make_journal_v1.py"))

# Nobody may not even run this Python where it is root's own
AS_NOBODY = """
import os
from circle_replay import cli
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
cli.main()
"""


class Answer(NamedTuple):
    """What a command answered."""

    status: int
    out: str
    err: str


Replay = Callable[..., Answer]


@pytest.fixture(scope="session")
def story() -> list[Record]:
    """Every type of event, several services, actors, a clock set back after event 78, two restarts of
    the registry; event 97 is an orderly stop."""
    told: list[Record] = STORY["tell_story"]()
    return told


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write records as a journal that is closed in order."""

    def write_(records: list[Record], name: str = "registry.db") -> Path:
        path = tmp_path / name
        asyncio.run(STORY["write_journal"](path, records))
        return path

    return write_


@pytest.fixture
def journal(write: Callable[..., Path], story: list[Record]) -> Path:
    """The whole story."""
    return write(story)


@pytest.fixture(scope="session")
def change() -> Callable[..., None]:
    """Change a journal by statements of SQL, as somebody else might."""

    def change_(path: Path, *statements: str) -> None:
        with closing(sqlite3.connect(path)) as connection, connection:
            for statement in statements:
                connection.execute(statement)

    return change_


@pytest.fixture
def long_journal(write: Callable[..., Path], story: list[Record]) -> Path:
    """The story, and so many changes of a check after it that no pipe holds their lines."""
    last = story[-1]
    change = ProbeChanged(check="http", ok=True)
    more = [
        Record(seq, last.at_ns, last.mono_ns, last.seq + 1, "web", 5, None, None, change)
        for seq in range(last.seq + 1, 5001)
    ]
    return write([*story, *more])


@pytest.fixture
async def live(tmp_path: Path, story: list[Record]):
    """A journal that is open for writing, with events that only its -wal holds."""
    path = tmp_path / "live.db"
    journal = await Journal.open(path)
    await journal.append(story[:50])
    yield journal
    await journal.close()


@pytest.fixture
def replay(capfd: pytest.CaptureFixture[str]) -> Replay:
    """Run the command in this process."""

    def replay_(*arguments: object) -> Answer:
        status = cli.run([str(argument) for argument in arguments])
        return Answer(status, *capfd.readouterr())

    return replay_


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start the command as a process of its own, with nothing in its folder for temporary files."""
    (tmp_path / "tmp").mkdir()

    def start_(
        *arguments: object,
        temporary: Path = tmp_path / "tmp",
        as_nobody: bool = False,
        **how: Any,
    ) -> subprocess.Popen[str]:
        program = ["-c", AS_NOBODY] if as_nobody and os.getuid() == 0 else ["-m", "circle_replay"]
        return subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **{"env": {**os.environ, "TMPDIR": str(temporary)}, **how},
        )

    return start_
