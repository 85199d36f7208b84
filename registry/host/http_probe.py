"""One GET of a health check, and what is wrong with its answer; and how to get a connection.

An answer is right when its status is 2xx and it comes whole, or its first 4 kB do. No redirect is
followed, no connection is used twice, and nothing of what the service wrote gets into the error:
journal and terminal are not its to write on. What a hostile service can make us keep is bounded;
time is the caller's to bound.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import http
import ipaddress
import os
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from urllib.parse import quote, urlsplit

import httptools
import msgspec

from registry.host import apart

HEAD_BYTES_MAX = 65_536
BODY_BYTES_MAX = 4_096
_READ_BYTES = 4_096
_PORTS = {"http": 80, "https": 443}  # RFC 9110, section 4.2
_URL_SAFE = "/%:@!$&'()*+,;=?"  # what RFC 3986, sections 3.3 and 3.4, lets stand in path and query


async def get(url: str, through: socket.socket | None = None) -> str | None:
    """None when `url` answers as it should, else one short clause.

    Asks `through` that socket, which is connected and gets closed, instead of the host in `url`.
    Raises OSError where no answer can be had (socket.gaierror is of its kind),
    and ValueError where `url` is not one. Waits as long as the service does.
    """
    request = _request(url)
    loop = asyncio.get_running_loop()
    # a bare socket: a stream and its transport take twice the time of the whole question
    with through or await connected(request.host, request.port) as client:
        if request.tls:
            return await _get_by_tls(client, request)
        await loop.sock_sendall(client, request.head)
        return await _fault(functools.partial(loop.sock_recv, client, _READ_BYTES))


async def _get_by_tls(client: socket.socket, request: _Request) -> str | None:
    from registry.host.tls import Tls

    async with Tls(client, request.host) as tls:
        await tls.send(request.head)
        return await _fault(functools.partial(tls.receive, _READ_BYTES))


class _Request(msgspec.Struct, frozen=True):
    """Where to ask and what to say."""

    host: str
    port: int
    tls: bool
    head: bytes


@functools.lru_cache(maxsize=4_096)
def _request(url: str) -> _Request:
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError("a URL is http://HOST[:PORT]/PATH or https://...")
    if parts.username is not None:
        raise ValueError("a URL with a user name is not supported")
    host = parts.hostname.encode("idna").decode("ascii")
    port = _PORTS[parts.scheme] if parts.port is None else parts.port
    name = f"[{host}]" if ":" in host else host
    place = name if port == _PORTS[parts.scheme] else f"{name}:{port}"
    asked = quote(parts.path or "/", safe=_URL_SAFE)
    asked += f"?{quote(parts.query, safe=_URL_SAFE)}" if parts.query else ""
    return _Request(
        host=host,
        port=port,
        tls=parts.scheme == "https",
        head=(
            f"GET {asked} HTTP/1.1\r\nHost: {place}\r\nUser-Agent: circleosd-health\r\n"
            "Accept: */*\r\nConnection: close\r\n\r\n"
        ).encode("ascii"),
    )


async def connected(host: str, port: int) -> socket.socket:
    """A connection to the first address of `host` that takes one; raises OSError when none does.

    A number and localhost need no resolver. Waits as long as resolver and host do.
    """
    loop = asyncio.get_running_loop()
    first_error: OSError | None = None
    for address in _known_addresses(host) or await _looked_up(host):
        client = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        try:
            client.setblocking(False)
            await _connect(loop, client, (address, port))
        except OSError as error:
            client.close()
            first_error = first_error or error
        except BaseException:
            client.close()
            raise
        else:
            return client
    raise first_error or OSError(f"no address of {host}")


async def _connect(
    loop: asyncio.AbstractEventLoop, client: socket.socket, address: tuple[str, int]
) -> None:
    """On this machine a connection is there, or refused, as soon as it is asked for: asking again tells, and takes
    less than a wait. Raises OSError.
    """
    if "%" in address[0]:  # a zone, whose number the loop looks up
        await loop.sock_connect(client, address)
        return
    error = client.connect_ex(address)
    if error == errno.EINPROGRESS:
        error = client.connect_ex(address)
    if error == errno.EALREADY:
        try:
            await loop.sock_connect(client, address)
        except OSError as failure:  # not on Linux: it came to be there meanwhile
            if failure.errno != errno.EISCONN:
                raise
    elif error not in (0, errno.EISCONN):
        raise OSError(error, os.strerror(error))


@functools.lru_cache(maxsize=4_096)
def _known_addresses(host: str) -> tuple[str, ...]:
    """What is known without asking a resolver; else nothing."""
    if host == "localhost":  # loopback by definition: RFC 6761, section 6.3
        return ("127.0.0.1", "::1")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return ()
    return (host,)


_lookups: dict[str, Future[tuple[str, ...]]] = {}


async def _looked_up(host: str) -> tuple[str, ...]:
    """The addresses of `host`. However many ask for it, one thread of its own does so."""
    lookup = _lookups.get(host)
    if lookup is None:
        lookup = _lookups[host] = apart.begin(_look_up, host)
        lookup.add_done_callback(lambda _: _lookups.pop(host))
    return await asyncio.wrap_future(lookup)


def _look_up(host: str) -> tuple[str, ...]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return tuple(str(address[0]) for *_, address in found)


class _Answer:
    """What is known of an answer so far: written by the parser, one callback a fact.

    Interim answers (1xx) are passed over; what comes after the end is not looked at.
    """

    def __init__(self) -> None:
        self.status = 0  # of the final head, once it is whole
        self.complete = False
        self.ends_with_connection = True  # unless a head gives a length
        self._parser = httptools.HttpResponseParser(self)
        self._parser.set_dangerous_leniencies(  # RFC 9112, section 2.2: a bare LF may end a line
            lenient_optional_cr_before_lf=True
        )

    def feed(self, data: bytes) -> str | None:
        """Takes the next bytes; a clause when they are no HTTP."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if not self.complete:
                self.status, self.complete = http.HTTPStatus.SWITCHING_PROTOCOLS, True
        except httptools.HttpParserError as error:
            if not self.complete:
                return f"not an HTTP answer ({error})"
        return None

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field that tells where the body ends."""
        field = name.lower()
        chunked = field == b"transfer-encoding" and b"chunked" in value.lower()
        if chunked or field == b"content-length":
            self.ends_with_connection = False

    def on_headers_complete(self) -> None:
        """The end of a head."""
        status = self._parser.get_status_code()
        if not self.complete and status >= http.HTTPStatus.OK:
            self.status = status

    def on_message_complete(self) -> None:
        """The end of a body: of the answer when it is not interim."""
        self.complete = self.status != 0


async def _fault(read: Callable[[], Awaitable[bytes]]) -> str | None:
    """Reads an answer as far as needed; None when it is right."""
    answer = _Answer()
    head_bytes = body_bytes = 0
    while not answer.complete and body_bytes < BODY_BYTES_MAX:
        data = await read()
        if not data:
            return _fault_at_end(answer) if head_bytes else "closed without an answer"
        if answer.status:
            body_bytes += len(data)
        else:
            head_bytes += len(data)
        if fault := answer.feed(data):
            return fault
        if not answer.status and head_bytes >= HEAD_BYTES_MAX:
            return f"head of the answer over {HEAD_BYTES_MAX // 1024} kB"
    return _status_fault(answer.status)


def _fault_at_end(answer: _Answer) -> str | None:
    """What it means that the connection was closed before the parser saw an end."""
    if answer.status and (fault := _status_fault(answer.status)):
        return fault
    whole = answer.status and answer.ends_with_connection
    return None if whole else "closed in the middle of the answer"


def _status_fault(status: int) -> str | None:
    if http.HTTPStatus.OK <= status < http.HTTPStatus.MULTIPLE_CHOICES:
        return None
    try:
        return f"{status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        return f"status {status}"
