"""One value of the file at a time: what TOML gave, turned into what is meant.

Each function returns that, or raises `Wrong` with what was found and what is wanted. None of them
looks at the machine.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import signal
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from registry.config.complaints import suggestion

SOCKET_PATH_MAX = 107
"""Bytes in a Unix socket's path: `sun_path` of unix(7) is 108 with its final NUL."""

_LONGEST_S = 36500 * 86400.0  # a hundred years: a deadline in nanoseconds still fits 64 bits
_NUMBER_MAX = 1_000_000
_SIZE_MIN, _SIZE_MAX = 4096, 2**60
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
_DURATION = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)(ms|s|m|h|d)", re.ASCII)
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,18})?) ?(B|KB|MB|GB|KiB|MiB|GiB)", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_OCTAL = re.compile(r"0?[0-7]{1,3}")
_URL = re.compile(r"[!-~]+")
_SCHEMES = ("unix:", "http:", "https:", "cmd:", "heartbeat:")
_SHOWN_MAX = 60

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)


class Wrong(Exception):
    """A value that cannot be used: what was found, what is wanted."""


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


def whole(least: int, most: int = _NUMBER_MAX) -> Callable[[object], int]:
    """A whole number from `least` to `most`."""

    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise wanted(value, f"a whole number from {least} to {most}")
        return value

    return parse


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
        match = _DURATION.fullmatch(value)
        seconds = float(match[1]) * _UNITS_S[match[2]] if match else math.nan
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value) if abs(value) <= _LONGEST_S else math.nan
    else:
        seconds = math.nan
    if not 0 <= seconds <= _LONGEST_S:
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


def size(value: object) -> int:
    """Bytes, from a number of them or from "512KB", "10MB", "1GB" (KiB, MiB, GiB are binary)."""
    number: int | None = None
    if isinstance(value, str) and (match := _SIZE.fullmatch(value)):
        number = int(float(match[1]) * _UNITS_B[match[2]])
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    if number is None or number > _SIZE_MAX:
        raise wanted(value, 'a size such as "512KB", "10MB", "1GiB", or a number of bytes')
    if number < _SIZE_MIN:
        raise wanted(value, f"a size of at least {_SIZE_MIN} bytes")
    return number


def octal(example: str) -> Callable[[object], int]:
    """Permission bits, written as a string of octal digits."""

    def parse(value: object) -> int:
        if isinstance(value, str) and _OCTAL.fullmatch(value):
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
        raise Wrong(f"found {found(value)}, no signal here{suggestion(name, known)}")
    return known[name].name


def exit_codes(value: object) -> tuple[int, ...]:
    """Exit codes and signal names that count as success; 0 always does."""
    if not isinstance(value, list):
        raise wanted(value, 'a list such as [0, 3, "SIGTERM"]')
    return tuple(dict.fromkeys([0, *map(_exit_code, value)]))


def _exit_code(value: object) -> int:
    if isinstance(value, str):
        return -signal.Signals[signal_name(value)].value
    return whole(0, 255)(value)


def service_name(value: object) -> str:
    """A name that can stand on a command line, in a file name and on a page as it is."""
    name = label(value)
    if name == "all":
        raise Wrong("'all' means all services; choose another name")
    return name


def label(value: object) -> str:
    """A name as services and checks have them."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise wanted(
            value,
            "a name of at most 64 letters, digits, '.', '_', '-', not led by a sign",
        )
    return value


def account(value: object) -> str:
    """A user or group, by name or number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(whole(0, 2**32 - 2)(value))
    if not isinstance(value, str):
        raise wanted(value, "a name or a number")
    return text(value)


def path(root: Path) -> Callable[[object], str]:
    """An absolute path; a relative one starts at `root`."""

    def parse(value: object) -> str:
        return str(root / text(value))

    return parse


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


def command(root: Path) -> Callable[[object], tuple[str, ...]]:
    """A program and its arguments, each a string of its own."""

    def parse(value: object) -> tuple[str, ...]:
        if isinstance(value, str):
            raise Wrong(f"found a string, want a list of strings{_as_list(value)}")
        if not isinstance(value, list):
            raise wanted(value, 'a list of strings, such as ["python3", "-m", "http.server"]')
        return _argv([_argument(each) for each in value], root)

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


def _argv(words: list[str], root: Path) -> tuple[str, ...]:
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


def target(root: Path) -> Callable[[object], str]:
    """What a check looks at, with its paths made absolute."""

    def parse(value: object) -> str:
        if not isinstance(value, str):
            raise wanted(value, 'a target such as "http://127.0.0.1:8000/", or a table')
        word = text(value)
        scheme, colon, rest = word.partition(":")
        match scheme + colon:
            case "unix:":
                if not rest:
                    raise wanted(value, 'a path behind the colon, as in "unix:var/run/web.sock"')
                return f"unix:{socket_path(root)(rest)}"
            case "http:" | "https:":
                return _url(word)
            case "cmd:":
                return _command_target(rest, root)
            case "heartbeat:":
                if rest:
                    raise wanted(value, '"heartbeat:" with nothing behind it')
                return word
            case _:
                unknown = scheme + (colon or ":")
                raise Wrong(f"found {found(value)}, unknown scheme{suggestion(unknown, _SCHEMES)}")

    return parse


def _url(word: str) -> str:
    if not _URL.fullmatch(word):
        raise Wrong("a URL has only visible ASCII characters; write others as %20 and the like")
    try:
        parts = urlsplit(word)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise Wrong(f"found {found(word)}: {error}") from None
    if not host or port == 0:
        missing = "host" if not host else "port above 0"
        raise Wrong(
            f'found {found(word)}, want a {missing}, as in "{parts.scheme}://127.0.0.1:8000/"'
        )
    return word


def _command_target(rest: str, root: Path) -> str:
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise Wrong(f"cannot be split into words: {error}") from None
    if not words or not words[0].strip():
        raise Wrong('names no program; write for example "cmd:./scripts/queue_short.sh"')
    argv = _argv(words, root)
    return f"cmd:{rest}" if argv[0] == words[0] else f"cmd:{shlex.join(argv)}"
