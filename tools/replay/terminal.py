"""A terminal for a player: keys in, frames out, and all as it was before, however it ends."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rich.cells import set_cell_size

from .player import Frame, Player, Row

FRAMES_PER_S = 20
_ESCAPE_S = 0.05
"""So long the rest of a key's sequence may take; an Escape of its own has none."""

_ENTER = "\x1b[?1049h\x1b[?25l\x1b[2J"
_LEAVE = "\x1b[0m\x1b[?25h\x1b[?1049l"
_STYLES = {
    "bold": "\x1b[1m",
    "dim": "\x1b[2m",
    "Running": "\x1b[32m",
    "Starting": "\x1b[36m",
    "Stopping": "\x1b[35m",
    "Restarting": "\x1b[33m",
    "Failed": "\x1b[1;31m",
}
_NAMES = {
    "\x1b[A": "up", "\x1b[B": "down", "\x1b[C": "right", "\x1b[D": "left",
    "\x1bOA": "up", "\x1bOB": "down", "\x1bOC": "right", "\x1bOD": "left",
    "\x1b[H": "home", "\x1b[F": "end", "\x1bOH": "home", "\x1bOF": "end",
    "\x1b[1~": "home", "\x1b[4~": "end", "\x1b[7~": "home", "\x1b[8~": "end",
    "\r": "enter", "\n": "enter", "\x7f": "backspace", "\x08": "backspace", "\x1b": "escape",
}  # fmt: skip
_KEY = re.compile(r"\x1b\[[0-9;]*[A-Za-z~]|\x1bO[A-Za-z]|.", re.DOTALL)


def is_there() -> bool:
    """Whether somebody looks at what is written, and can press keys."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def play(player: Player) -> None:
    """Show the player until it is over. Raises whatever ends it, the terminal being as before."""
    before_s = time.monotonic()
    with _taken_over() as wakes:
        while not player.over:
            _show(player.frame(*os.get_terminal_size(sys.stdout.fileno())))
            pressed = _keys(wakes, 1 / FRAMES_PER_S if player.is_moving else None)
            now_s = time.monotonic()
            player.tick(now_s - before_s)
            before_s = now_s
            for name in pressed:
                player.key(name)


def names(text: str) -> Iterator[str]:
    """The keys that a terminal's text stands for."""
    for sequence in _KEY.findall(text):
        yield _NAMES.get(sequence, sequence)


def _keys(wakes: int, timeout_s: float | None) -> list[str]:
    """The keys pressed, once there are some, or the size has changed, or time is up; `q` where nobody is left."""
    keyboard = sys.stdin.fileno()
    ready, _, _ = select.select([keyboard, wakes], [], [], timeout_s)
    if wakes in ready:
        os.read(wakes, 4096)
    if keyboard not in ready:
        return []
    data = os.read(keyboard, 4096)
    if data.endswith((b"\x1b", b"\x1b[", b"\x1bO")):
        rest, _, _ = select.select([keyboard], [], [], _ESCAPE_S)
        data += os.read(keyboard, 4096) if rest else b""
    return list(names(data.decode(errors="ignore"))) if data else ["q"]


def _show(frame: Frame) -> None:
    columns, _ = os.get_terminal_size(sys.stdout.fileno())
    lines = (_line(row, columns) for row in frame)
    sys.stdout.write("\x1b[H" + "\n".join(lines) + "\x1b[J")
    sys.stdout.flush()


def _line(row: Row, columns: int) -> str:
    is_plain = "NO_COLOR" in os.environ and row.style not in ("bold", "dim")
    begin = "" if is_plain else _STYLES.get(row.style, "")
    return f"{begin}{set_cell_size(row.text, columns)}\x1b[0m"


@contextmanager
def _taken_over() -> Iterator[int]:
    """The terminal as a screen; what is read from the descriptor says that something else than a key came."""
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    wakes, wake = os.pipe()
    os.set_blocking(wake, False)
    handlers = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGHUP)}
    handlers[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda *_: None)
    woken = signal.set_wakeup_fd(wake)
    try:
        tty.setcbreak(keyboard)
        _without_suspend(keyboard)
        sys.stdout.write(_ENTER)
        yield wakes
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        termios.tcsetattr(keyboard, termios.TCSAFLUSH, before)
        signal.set_wakeup_fd(woken)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(wakes)
        os.close(wake)


def _without_suspend(keyboard: int) -> None:
    """Ctrl-Z would leave a shell on our screen."""
    attributes = termios.tcgetattr(keyboard)
    attributes[6][termios.VSUSP] = b"\0"
    termios.tcsetattr(keyboard, termios.TCSADRAIN, attributes)


def _end(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
