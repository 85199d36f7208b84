"""Where something listens or is asked: the targets of checks and the addresses of sockets.

As in `values`, each function returns what is meant or raises `Wrong`, and none looks at the machine.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from registry.config.complaints import suggestion
from registry.config.values import Wrong, argv, found, socket_path, text, wanted

SCHEMES = ("unix:", "tcp:", "http:", "https:", "http+unix:", "cmd:", "heartbeat:")
"""What the target of a check begins with."""

_PORT_MAX = 65535
_URL = re.compile(r"[!-~]+")
_HOST_PORT = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*):(\d{1,5})", re.ASCII)
_HOST_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")
_DIGITS_AND_DOTS = re.compile(r"[0-9.]+")


def target(root: Path) -> Callable[[object], str]:
    """What a check looks at, with its paths made absolute."""

    def parse(value: object) -> str:
        if not isinstance(value, str):
            raise wanted(value, 'a target such as "http://127.0.0.1:8000/", or a table')
        word = text(value)
        scheme, colon, rest = word.partition(":")
        match scheme + colon:
            case "unix:":
                return _unix(rest, root)
            case "tcp:":
                return f"tcp:{_host_port(rest, 'tcp:127.0.0.1:6379')}"
            case "http:" | "https:":
                return _url(word)
            case "http+unix:":
                return _url_over_unix(rest, root)
            case "cmd:":
                return _command_target(rest, root)
            case "heartbeat:":
                if rest:
                    raise wanted(value, '"heartbeat:" with nothing behind it')
                return word
            case _:
                unknown = scheme + (colon or ":")
                hint = suggestion(unknown, SCHEMES)
                raise Wrong(f"found {found(value)}, unknown scheme{hint}")

    return parse


def address(root: Path) -> Callable[[object], str]:
    """Where a socket listens: HOST:PORT, [HOST]:PORT, or unix:PATH with its path made absolute."""

    def parse(value: object) -> str:
        if not isinstance(value, str):
            raise wanted(value, 'an address such as "127.0.0.1:8080" or "unix:var/run/web.sock"')
        word = text(value)
        if word.startswith("unix:"):
            return _unix(word.removeprefix("unix:"), root)
        return _host_port(word, "127.0.0.1:8080")

    return parse


def _unix(path: str, root: Path) -> str:
    if not path:
        raise wanted("unix:", 'a path behind the colon, as in "unix:var/run/web.sock"')
    return f"unix:{socket_path(root)(path)}"


def _host_port(word: str, example: str) -> str:
    match = _HOST_PORT.fullmatch(word)
    if match is None or not 1 <= int(match[2]) <= _PORT_MAX:
        raise wanted(word, f'a host and a port from 1 to {_PORT_MAX}, as in "{example}"')
    host = match[1]
    if not host:
        raise Wrong(f'found {found(word)} without a host; write "0.0.0.0{word}" or "[::]{word}"')
    if not _is_host(host):
        raise Wrong(f"found {found(word)}, whose host is no IPv4 address, [IPv6 address] or name")
    return f"{host}:{int(match[2])}"


def _is_host(host: str) -> bool:
    try:
        if host.startswith("["):
            ipaddress.IPv6Address(host[1:-1])
        elif _DIGITS_AND_DOTS.fullmatch(host):
            ipaddress.IPv4Address(host)
        else:
            return _HOST_NAME.fullmatch(host) is not None
    except ValueError:
        return False
    return True


def _url(word: str) -> str:
    _visible(word)
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


def _visible(url: str) -> None:
    if not _URL.fullmatch(url):
        raise Wrong("a URL has only visible ASCII characters; write others as %20 and the like")


def _url_over_unix(rest: str, root: Path) -> str:
    """PATH:/URL, split at the first `:/`."""
    path, colon, url = rest.partition(":/")
    if not path or not colon:
        example = '"http+unix:var/run/web.sock:/health"'
        raise wanted(f"http+unix:{rest}", f"a socket's path, a colon and a URL, as in {example}")
    _visible(url or "/")
    absolute = socket_path(root)(path)
    if ":/" in absolute:
        raise Wrong(f"the path {absolute} holds ':/', where the URL would begin; choose another")
    return f"http+unix:{absolute}:/{url}"


def _command_target(rest: str, root: Path) -> str:
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise Wrong(
            f"found {found(f'cmd:{rest}')}, which cannot be split into words: {error}"
        ) from None
    if not words or not words[0].strip():
        example = '"cmd:./scripts/queue_short.sh"'
        raise Wrong(
            f"found {found(f'cmd:{rest}')}, which names no program; write for example {example}"
        )
    absolute = argv(words, root)
    return f"cmd:{rest}" if absolute[0] == words[0] else f"cmd:{shlex.join(absolute)}"
