"""--play in a real terminal (a pty), as a process of its own: what is seen, and that the terminal is as before."""

from __future__ import annotations

import fcntl
import os
import re
import select
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

INCIDENT = Path(__file__).parents[1] / "golden" / "incident.db"
DEADLINE_S = 20.0
# The pty is to be its controlling terminal, so that Ctrl-C and a new size reach it
PROGRAM = """
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from circle_replay import cli
cli.main()
"""


class Terminal:
    """A terminal, and the command in it."""

    def __init__(self, *arguments: object) -> None:
        self.master, self.slave = os.openpty()
        self.resize(100, 30)
        self.before = termios.tcgetattr(self.slave)
        self.seen = b""
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, arguments)],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
        )

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys: str) -> None:
        """Press keys, forgetting what was seen before."""
        self.seen = b""
        os.write(self.master, keys.encode())

    def wait(self, *texts: str) -> str:
        """Wait for a frame, drawn whole since the last keys, that holds all these texts; without colours."""
        deadline = time.monotonic() + DEADLINE_S
        while not (fitting := [f for f in self._frames() if all(text in f for text in texts)]):
            assert time.monotonic() < deadline, f"no frame has {texts}: {self._frames()[-1:]}"
            self._read(0.1)
        return fitting[-1]

    def _frames(self) -> list[str]:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", self.seen.decode(errors="replace"))
        return re.findall(r"\x1b\[H(.*?)\x1b\[J", plain, re.DOTALL)

    def _read(self, timeout_s: float) -> bytes:
        ready, _, _ = select.select([self.master], [], [], timeout_s)
        data = os.read(self.master, 1 << 16) if ready else b""
        self.seen += data
        return data

    def end(self) -> int:
        """How it ended; the terminal has to be as it was."""
        deadline = time.monotonic() + DEADLINE_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline
            self._read(0.05)
        while self._read(0.0):
            pass
        assert termios.tcgetattr(self.slave) == self.before
        assert self.seen.rindex(b"\x1b[?1049l") > self.seen.rfind(b"\x1b[?1049h")
        assert self.seen.rindex(b"\x1b[?25h") > self.seen.rfind(b"\x1b[?25l")
        assert b"Traceback" not in self.seen
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    made: list[Terminal] = []

    def begin(*arguments: object) -> Terminal:
        made.append(Terminal(*arguments))
        return made[-1]

    yield begin
    for each in made:
        each.close()


def test_it_plays_to_the_end_and_q_ends_it(terminal) -> None:
    screen = terminal(INCIDENT, "--play", "60x")
    screen.wait("the end", "NAME     STATUS")
    screen.press("q")
    assert screen.end() == 0


def test_keys_step_and_go_and_the_size_may_change(terminal) -> None:
    screen = terminal(INCIDENT, "--play", "1", "--at", "seq:158")
    screen.wait("event 15")
    screen.press(" ")
    screen.wait("paused  event 1")
    screen.press("/seq:158\r")
    screen.wait("event 158 of 256", "gave up after 3 restarts within 60 s")
    screen.press("\x1b[D\x1b[D")
    screen.wait("event 156 of 256")
    screen.press("\x1b[C")
    screen.wait("event 157 of 256")
    screen.press("")
    screen.resize(40, 10)
    rows = screen.wait("space left right up down / q").split("\r\n")
    assert (len(rows), {len(row) for row in rows}) == (10, {40})
    screen.press("q")
    assert screen.end() == 0


def test_ctrl_c_ends_it_as_it_ends_cat(terminal) -> None:
    screen = terminal(INCIDENT, "--play", "1")
    screen.wait("event")
    screen.press("\x03")
    assert screen.end() == -signal.SIGINT


def test_sigterm_leaves_the_terminal_as_it_was(terminal) -> None:
    screen = terminal(INCIDENT, "--play", "1")
    screen.wait("event")
    screen.process.terminate()
    assert screen.end() == 128 + signal.SIGTERM


def test_it_plays_up_to_what_cannot_be_read_and_says_so(terminal, tmp_path: Path) -> None:
    path = Path(shutil.copyfile(INCIDENT, tmp_path / "registry.db"))
    with closing(sqlite3.connect(path)) as journal, journal:
        journal.execute("UPDATE events SET body = '{' WHERE seq = 100")
    screen = terminal(path, "--play", "60")
    screen.wait("paused  event 99 of 256", "event 100 (became_ready) cannot be read")
    screen.press("\x1b[D")
    screen.wait("paused  event 98 of 256")
    screen.press("q")
    assert screen.end() == 0


def test_without_a_terminal_it_is_refused_in_a_sentence(replay) -> None:
    answer = replay(INCIDENT, "--play", "60")
    assert (answer.status, answer.out) == (2, "")
    assert "--play wants a terminal; elsewhere leave it out" in answer.err


@pytest.mark.parametrize("speed", ["0", "fast", "-1", "60y", "1e5", "99999999999"])
def test_a_speed_that_is_none_is_refused_with_examples(replay, speed: str) -> None:
    answer = replay(INCIDENT, f"--play={speed}")
    assert answer.status == 2
    assert f"'{speed}' is no speed; write for example 1, 60 or 0.5x" in answer.err


def test_it_goes_with_what_it_can_show_only(replay) -> None:
    for option in (["--since", "03:14"], ["--json"], ["--verify"]):
        answer = replay(INCIDENT, "--play", "1", *option)
        assert answer.status == 2
        assert option[0] in answer.err
