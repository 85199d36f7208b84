"""One value of the file at a time: what TOML gave, turned into what is meant.

Each function returns that, or raises `Wrong` with what was found and what is wanted. None of them
looks at the machine.
"""

from __future__ import annotations

import functools
import json
import math
import re
import shlex
import signal
from collections.abc import Callable, Collection, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from registry.config.complaints import suggestion

SOCKET_PATH_MAX = 107
"""Bytes in a Unix socket's path: `sun_path` of unix(7) is 108 with its final NUL."""

LONGEST_S = 36500 * 86400.0
"""The longest duration: a hundred years, so that a deadline in nanoseconds still fits 64 bits."""
NUMBER_MAX = 1_000_000
"""The largest number where a key has no bound of its own."""
SIZE_MIN, SIZE_MAX = 4096, 2**60
"""The smallest size that a log or a limit of memory has, and the largest."""
CPUS_MIN = 0.01
"""The fewest CPUs: a cgroup hands out 1 ms in 100 at least (cpu.max)."""
DURATION = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)(ms|s|m|h|d)", re.ASCII)
SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,18})?) ?(B|KB|MB|GB|KiB|MiB|GiB)", re.ASCII)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SOCKET_NAME = re.compile(r"[A-Za-z0-9_-]{1,255}")
OCTAL = re.compile(r"0?[0-7]{1,3}")
GRANTEES = ("user", "group", "uid", "gid")

_UNITS_S = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_UNITS_B = {
    "B": 1,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
}
_ID = re.compile(r"[0-9]{1,10}")
_SHOWN_MAX = 60

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)


class Wrong(Exception):
    """A value that cannot be used: what was found, what is wanted."""


class WrongElements(Wrong):
    """A list with elements that cannot be used: the number of each, from 0, and why."""

    def __init__(self, *elements: tuple[int, Wrong]) -> None:
        super().__init__(elements[0][1])
        self.elements = elements


def found(value: object) -> str:
    """What a value is, in words and short."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            shown = json.dumps(value)
            return f"the string {shown}" if len(shown) <= _SHOWN_MAX else "a long string"
        case int() | float():
            return f"the number {value}" if -1e18 < value < 1e18 else "a number out of range"
        case list():
            return "a list"
        case dict():
            return "a table"
        case _:
            return "a date or time"


def wanted(value: object, want: str) -> Wrong:
    """The usual refusal."""
    return Wrong(f"found {found(value)}, want {want}")


def text(value: object) -> str:
    """A string that is not empty and can be handed to the system (no NUL)."""
    if not isinstance(value, str):
        raise wanted(value, "a string")
    if not value.strip():
        raise Wrong("is empty; give it a value or leave the key out")
    if "\0" in value:
        raise Wrong("holds a NUL character, which no path, argument or variable can hold")
    return value


def boolean(value: object) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise wanted(value, "true or false")
    return value


def switch(value: object) -> bool:
    """true or false of a key that has a table, too."""
    if not isinstance(value, bool):
        raise wanted(value, "true, false or a table")
    return value


@functools.cache
def whole(least: int, most: int = NUMBER_MAX) -> Callable[[object], int]:
    """A whole number from `least` to `most`."""

    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise wanted(value, f"a whole number from {least} to {most}")
        return value

    return parse


@functools.cache
def choice(kind: type[E]) -> Callable[[object], E]:
    """One of the words of an enumeration, written exactly."""
    words = [str(each) for each in kind]

    def parse(value: object) -> E:
        if not isinstance(value, str):
            raise wanted(value, f"one of {', '.join(words)}")
        if value not in words:
            raise Wrong(f"found {found(value)}{suggestion(value, words)}")
        return kind(value)

    return parse


def duration(value: object) -> float:
    """Seconds, from a number of them or from "500ms", "5s", "2m", "1h", "90d"."""
    if isinstance(value, str):
        match = DURATION.fullmatch(value)
        seconds = float(match[1]) * _UNITS_S[match[2]] if match else math.nan
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value) if abs(value) <= LONGEST_S else math.nan
    else:
        seconds = math.nan
    if not 0 <= seconds <= LONGEST_S:
        raise wanted(
            value, 'a duration such as "500ms", "5s", "2m", "1h", "90d", or seconds, up to 36500d'
        )
    return seconds


def positive_duration(value: object) -> float:
    """A duration that is not zero."""
    seconds = duration(value)
    if seconds == 0:
        raise wanted(value, 'a duration above zero, such as "5s"')
    return seconds


@functools.cache
def size(least: int = SIZE_MIN) -> Callable[[object], int]:
    """Bytes, from a number of them or from "512KB", "10MB", "1GB" (KiB, MiB, GiB are binary)."""

    def parse(value: object) -> int:
        number: int | None = None
        if isinstance(value, str) and (match := SIZE.fullmatch(value)):
            number = int(float(match[1]) * _UNITS_B[match[2]])
        elif isinstance(value, int) and not isinstance(value, bool):
            number = value
        if number is None or number > SIZE_MAX:
            raise wanted(value, 'a size such as "512KB", "10MB", "1GiB", or a number of bytes')
        if number < least:
            raise wanted(value, f"a size of at least {least} bytes")
        return number

    return parse


def whole_seconds(value: object) -> int:
    """A duration in whole seconds, at least one."""
    seconds = duration(value)
    if seconds < 1 or seconds != int(seconds):
        raise wanted(value, 'whole seconds, at least one, such as 60 or "5m"')
    return int(seconds)


def cpus(value: object) -> float:
    """A number of CPUs. A cgroup hands out 1 ms in 100 at least."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wanted(value, "a number of CPUs, such as 1.5")
    if not CPUS_MIN <= value <= NUMBER_MAX:
        raise wanted(value, f"a number of CPUs, at least {CPUS_MIN}")
    return float(value)


@functools.cache
def limited(parse: Callable[[object], T]) -> Callable[[object], T | None]:
    """What `parse` takes, or "unlimited", which is None."""

    def parsed(value: object) -> T | None:
        if value == "unlimited":
            return None
        try:
            return parse(value)
        except Wrong as wrong:
            raise Wrong(f'{wrong}, or "unlimited"') from None

    return parsed


@functools.cache
def each(parse: Callable[[object], T], example: str) -> Callable[[object], tuple[T, ...]]:
    """A list whose elements `parse` takes, each of them once. `example` shows a list."""

    def parsed(value: object) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise wanted(value, f"a list such as {example}")
        elements = all_of(parse, value)
        for element in elements:
            if elements.count(element) > 1:
                raise Wrong(f"names '{element}' twice; once is enough")
        return elements

    return parsed


def all_of(parse: Callable[[object], T], elements: Sequence[object]) -> tuple[T, ...]:
    """What each of `elements` comes to; or all that is wrong with them."""
    parsed: list[T] = []
    wrong: list[tuple[int, Wrong]] = []
    for number, element in enumerate(elements):
        try:
            parsed.append(parse(element))
        except Wrong as one:
            wrong.append((number, one))
    if wrong:
        raise WrongElements(*wrong)
    return tuple(parsed)


def word(known: Collection[str], what: str, prefix: str = "") -> Callable[[object], str]:
    """One of many `known` words, written exactly; `what` says what they are, `prefix` how all of them begin."""

    def parse(value: object) -> str:
        if not isinstance(value, str):
            raise wanted(value, what)
        if value not in known:
            raise Wrong(f"found {found(value)}{suggestion(value, known, prefix=prefix)}")
        return value

    return parse


@functools.cache
def octal(example: str) -> Callable[[object], int]:
    """Permission bits, written as a string of octal digits."""

    def parse(value: object) -> int:
        if isinstance(value, str) and OCTAL.fullmatch(value):
            return int(value, 8)
        raise wanted(value, f'octal digits as a string, such as "{example}"')

    return parse


def signal_name(value: object) -> str:
    """The full name of a signal, from "SIGTERM" or "TERM"."""
    if not isinstance(value, str):
        raise wanted(value, 'the name of a signal, such as "SIGTERM"')
    known = signal.Signals.__members__
    name = value if value.startswith("SIG") else f"SIG{value}"
    if name not in known:
        hint = suggestion(name, known, '; write for example "SIGTERM" or "HUP"', prefix="SIG")
        raise Wrong(f"found {found(value)}, no signal here{hint}")
    return known[name].name


def exit_codes(value: object) -> tuple[int, ...]:
    """Exit codes and signal names that count as success; 0 always does."""
    if not isinstance(value, list):
        raise wanted(value, 'a list such as [0, 3, "SIGTERM"]')
    return tuple(dict.fromkeys([0, *all_of(_exit_code, value)]))


def _exit_code(value: object) -> int:
    if isinstance(value, str):
        return -signal.Signals[signal_name(value)].value
    return whole(0, 255)(value)


def service_name(value: object) -> str:
    """A name that can stand on a command line, in a file name and on a page as it is."""
    if isinstance(value, str) and "@" in value:
        base = value.partition("@")[0] or "web"
        raise Wrong(f"'@' is for instances; write name = \"{base}\" and instances = 2")
    name = label(value)
    if name == "all":
        raise Wrong("'all' means all services; choose another name")
    return name


def label(value: object) -> str:
    """A name as services and checks have them."""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise wanted(
            value,
            "a name of at most 64 letters, digits, '.', '_', '-', not led by a sign",
        )
    return value


def socket_name(value: str) -> str:
    """A name that can be an element of LISTEN_FDNAMES (sd_listen_fds(3)): no colon, 255 characters."""
    if not SOCKET_NAME.fullmatch(value):
        raise Wrong("the name of a socket is 1 to 255 letters, digits, '_', '-'")
    return value


def account(value: object) -> str:
    """A user or group, by name or number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(whole(0, 2**32 - 2)(value))
    if not isinstance(value, str):
        raise wanted(value, "a name or a number")
    return text(value)


def grantee(value: object) -> str:
    """Who is given a role: "user:NAME", "group:NAME", "uid:N" or "gid:N"."""
    if not isinstance(value, str):
        raise wanted(value, 'strings such as "user:ana" or "group:ops"')
    kind, colon, name = text(value).partition(":")
    if not colon:
        raise Wrong(f'found {found(value)}; write "user:{value}" or "group:{value}"')
    if kind not in GRANTEES:
        raise Wrong(f"found {found(value)}{suggestion(kind, GRANTEES)}")
    if not name or (kind in ("uid", "gid") and not _ID.fullmatch(name)):
        raise wanted(value, f"a {'number' if kind in ('uid', 'gid') else 'name'} behind the colon")
    return value


@functools.cache
def path(root: Path) -> Callable[[object], str]:
    """An absolute path; a relative one starts at `root`."""

    def parse(value: object) -> str:
        return str(root / text(value))

    return parse


@functools.cache
def socket_path(root: Path) -> Callable[[object], str]:
    """An absolute path that fits the address of a Unix socket."""

    def parse(value: object) -> str:
        whole_path = str(root / text(value))
        if len(whole_path.encode()) > SOCKET_PATH_MAX:
            raise Wrong(
                f"a socket's path has at most {SOCKET_PATH_MAX} bytes, {whole_path} has "
                f"{len(whole_path.encode())}; choose a shorter one"
            )
        return whole_path

    return parse


@functools.cache
def command(root: Path) -> Callable[[object], tuple[str, ...]]:
    """A program and its arguments, each a string of its own."""

    def parse(value: object) -> tuple[str, ...]:
        if isinstance(value, str):
            raise Wrong(f"found a string, want a list of strings{_as_list(value)}")
        if not isinstance(value, list):
            raise wanted(value, 'a list of strings, such as ["python3", "-m", "http.server"]')
        return argv(list(all_of(_argument, value)), root)

    return parse


def _as_list(line: str) -> str:
    """What to write instead of a command line, where it can be told."""
    try:
        words = shlex.split(line)
    except ValueError:
        words = []
    return f": {json.dumps(words)}" if words else ""


def _argument(value: object) -> str:
    if not isinstance(value, str):
        raise wanted(value, f"strings only in the list{_quoted(value)}")
    if "\0" in value:
        raise Wrong("holds a NUL character, which no argument can hold")
    return value


def _quoted(value: object) -> str:
    """How to write a plain number where a string is wanted."""
    if isinstance(value, bool | list | dict) or not isinstance(value, int | float):
        return ""
    return f': write "{value}"' if abs(value) < 1e18 else ""


def argv(words: list[str], root: Path) -> tuple[str, ...]:
    """A program and its arguments; a program with a slash is a path, a relative one starts at `root`."""
    if not words or not words[0].strip():
        raise Wrong('names no program; write for example ["python3", "-m", "http.server"]')
    program, *arguments = words
    return (str(root / program) if "/" in program else program, *arguments)


def variable(value: object) -> str:
    """The value of an environment variable. It is never shown: it may be a secret."""
    if not isinstance(value, str):
        raise wanted(value, f"a string{_quoted(value)}")
    if "\0" in value:
        raise Wrong("holds a NUL character, which no variable can hold")
    return value
