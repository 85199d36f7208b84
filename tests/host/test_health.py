"""The health prober: attempts against real sockets that misbehave, scheduling on virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import shutil
import socket
import ssl
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry.core.definition import Check
from registry.host import http_probe
from registry.host.health import Attempt, Prober, RunCommand, Shortage, attempt
from registry.host.tls import context as tls_context

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
PLENTY_S = 5.0


@pytest.fixture(autouse=True)
def _no_socket_outlives_its_test() -> Iterator[None]:
    yield
    gc.collect()  # a socket left open warns here, and a warning is an error


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="probe") as path:
        yield Path(path)


@contextlib.asynccontextmanager
async def served(
    handler: Handler, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """The port of a server that hands each connection to `handler`; at the end all is closed."""
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await handler(reader, writer)
        writer.transport.abort()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.ensure_future(handle(reader, writer)))

    server = await asyncio.start_server(connected, host, 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()
        # one that is just being accepted is to have its handler first
        being_accepted = [each for each in asyncio.all_tasks() if "_accept_con" in repr(each)]
        await asyncio.gather(*being_accepted)
        await asyncio.wait_for(asyncio.gather(*tasks), PLENTY_S)  # the prober has hung up on all


def answering(answer: bytes) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    return handle


def repeating(begin: bytes, more: bytes, pause_s: float = 0.0) -> Handler:
    """Sends `begin`, then `more` again and again until the other side hangs up."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(begin)
        while not reader.at_eof() and not writer.is_closing():
            writer.write(more)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return handle


async def until_hung_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def no_command(argv: tuple[str, ...], timeout_s: float) -> int:
    raise AssertionError("no command is to be run")


async def asked(target: str, timeout_s: float = PLENTY_S, run: RunCommand = no_command) -> Attempt:
    return await attempt(Check("check", target, timeout_s=timeout_s), run)


async def error_of(handler: Handler, timeout_s: float = PLENTY_S, path: str = "/") -> str | None:
    async with served(handler) as port:
        made = await asked(f"http://127.0.0.1:{port}{path}", timeout_s)
    assert made.ok == (made.error is None)
    return made.error


# unix:


def listening(path: Path, backlog: int = 5) -> socket.socket:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(path))
    server.listen(backlog)
    return server


def fill(path: Path, waiting: contextlib.ExitStack) -> None:
    """Fills the backlog of a socket that nobody accepts from."""
    with contextlib.suppress(BlockingIOError):
        while True:
            client = waiting.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            client.connect(str(path))


async def test_a_unix_socket_that_accepts_is_ok(folder: Path) -> None:
    with listening(folder / "s"):
        made = await asked(f"unix:{folder}/s")
    assert made.ok
    assert made.error is None
    assert made.latency_ns > 0


async def test_a_unix_socket_nobody_listens_on_is_refused(folder: Path) -> None:
    listening(folder / "s").close()
    assert (await asked(f"unix:{folder}/s")).error == "connection refused"


async def test_a_unix_socket_that_is_missing_is_named_so(folder: Path) -> None:
    assert (await asked(f"unix:{folder}/s")).error == "no such file or directory"


async def test_a_service_that_no_longer_accepts_is_not_taken_for_healthy(folder: Path) -> None:
    with listening(folder / "s", backlog=0), contextlib.ExitStack() as waiting:
        fill(folder / "s", waiting)
        made = await asked(f"unix:{folder}/s")
    assert made.error == "not accepting connections, its backlog is full"


async def test_a_path_too_long_for_a_socket_is_an_error_not_an_exception() -> None:
    assert (await asked("unix:/" + "x" * 200)).error == "AF_UNIX path too long"


# tcp:


async def test_a_port_that_accepts_is_ok_and_sees_the_connection_closed_in_order() -> None:
    read: asyncio.Queue[bytes] = asyncio.Queue()

    async def until_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        read.put_nowait(await reader.read())  # a reset would raise

    async with served(until_end) as port:
        made = await asked(f"tcp:127.0.0.1:{port}")
        assert (made.ok, made.error) == (True, None)
        assert await read.get() == b""


async def test_a_tcp_port_nobody_listens_on_is_refused() -> None:
    async with served(until_hung_up) as port:
        pass
    assert (await asked(f"tcp:127.0.0.1:{port}")).error == "connection refused"


async def test_an_ipv6_address_has_brackets_and_localhost_is_either() -> None:
    try:
        async with served(until_hung_up, "::1") as port:
            assert (await asked(f"tcp:[::1]:{port}")).error is None
            assert (await asked(f"tcp:localhost:{port}")).error is None
    except OSError as error:
        pytest.skip(f"this machine has no IPv6 loopback: {error}")


async def test_numbers_and_localhost_need_no_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(until_hung_up) as port:
        monkeypatch.setattr(socket, "getaddrinfo", None)
        assert (await asked(f"tcp:127.0.0.1:{port}")).ok
        assert (await asked(f"tcp:LocalHost:{port}")).ok


async def test_a_tcp_port_that_takes_no_connection_ends_at_the_time_limit() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        port = server.getsockname()[1]
        while (made := await asked(f"tcp:127.0.0.1:{port}", 0.2)).ok:
            pass  # each attempt, though it has hung up, waits in the backlog
        assert made.error == "timed out after 0.2 s"


async def test_a_connection_with_ourselves_is_not_taken_for_a_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connect = http_probe._connect

    async def from_that_port(loop: Any, client: socket.socket, address: Any) -> None:
        client.bind(address)  # as the kernel does by chance
        await connect(loop, client, address)

    async with served(until_hung_up) as port:
        pass
    monkeypatch.setattr(http_probe, "_connect", from_that_port)
    assert (await asked(f"tcp:127.0.0.1:{port}")).error == "connection refused"


# http+unix:


@contextlib.asynccontextmanager
async def served_at(path: Path, handler: Handler) -> AsyncIterator[None]:
    """A server on a Unix socket."""
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await handler(reader, writer)
        writer.transport.abort()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.ensure_future(handle(reader, writer)))

    server = await asyncio.start_unix_server(connected, path)
    try:
        yield
    finally:
        server.close()
        await server.wait_closed()
        await asyncio.wait_for(asyncio.gather(*tasks), PLENTY_S)


async def test_http_over_a_unix_socket_asks_localhost_for_the_url(folder: Path) -> None:
    requests = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(OK)
        await reader.read()

    async with served_at(folder / "a:s", handle):
        made = await asked(f"http+unix:{folder}/a:s://a b?to=http://x")
    assert (made.ok, made.error) == (True, None)
    assert requests == [
        b"GET //a%20b?to=http://x HTTP/1.1\r\nHost: localhost\r\n"
        b"User-Agent: circleosd-health\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    ]


@pytest.mark.parametrize(
    ("handler", "timeout_s", "error"),
    [
        (
            answering(b"HTTP/1.1 503 x\r\nContent-Length: 0\r\n\r\n"),
            PLENTY_S,
            "503 Service Unavailable",
        ),
        (answering(b""), PLENTY_S, "closed without an answer"),
        (until_hung_up, 0.2, "timed out after 0.2 s"),
    ],
    ids=["ill", "closes", "silent"],
)
async def test_http_over_a_unix_socket_is_judged_as_http(
    folder: Path, handler: Handler, timeout_s: float, error: str
) -> None:
    async with served_at(folder / "s", handler):
        assert (await asked(f"http+unix:{folder}/s:/health", timeout_s)).error == error


async def test_http_over_a_unix_socket_says_why_there_is_no_connection(folder: Path) -> None:
    assert (await asked(f"http+unix:{folder}/s:/")).error == "no such file or directory"
    listening(folder / "s").close()
    assert (await asked(f"http+unix:{folder}/s:/")).error == "connection refused"
    with listening(folder / "full", backlog=0), contextlib.ExitStack() as waiting:
        fill(folder / "full", waiting)
        made = await asked(f"http+unix:{folder}/full:/")
    assert made.error == "not accepting connections, its backlog is full"


# http:


@pytest.mark.parametrize(
    "answer",
    [
        OK,
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nuntil the end of the connection",
        b"HTTP/1.0 200 OK\n\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK,
        OK + b"HTTP/1.1 500 Internal Server Error\r\n\r\n",
        OK + b"\0garbage after the end",
    ],
)
async def test_an_answer_with_2xx_is_ok(answer: bytes) -> None:
    assert await error_of(answering(answer)) is None


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 503 Go Away\x1b[2J\r\nContent-Length: 0\r\n\r\n", "503 Service Unavailable"),
        (b"HTTP/1.1 404 Not Found\r\n\r\nuntil the end", "404 Not Found"),
        (b"HTTP/1.1 599 Own Invention\r\nContent-Length: 0\r\n\r\n", "status 599"),
        (b"HTTP/1.1 500 x\r\nContent-Length: 9\r\n\r\ncut", "500 Internal Server Error"),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
            "101 Switching Protocols",
        ),
        (b"", "closed without an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-", "closed in the middle of the answer"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "closed in the middle of the answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ncut", "closed in the middle of the answer"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ncut",
            "closed in the middle of the answer",
        ),
        (b"SSH-2.0-OpenSSH\r\n", "not an HTTP answer (Expected HTTP/, RTSP/ or ICE/)"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "not an HTTP answer (Invalid character in Content-Length)",
        ),
    ],
)
async def test_any_other_answer_fails_with_a_clause(answer: bytes, error: str) -> None:
    assert await error_of(answering(answer)) == error


async def test_a_redirect_is_not_followed() -> None:
    paths = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        paths.append((await reader.readuntil(b"\r\n\r\n")).split()[1])
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n")
        await reader.read()

    assert await error_of(handle) == "302 Found"
    assert paths == [b"/"]


async def test_the_request_is_a_plain_get_and_each_has_its_own_connection() -> None:
    requests = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(OK)
        await reader.read()

    async with served(handle) as port:
        for _ in range(2):
            assert (await asked(f"http://127.0.0.1:{port}/a b/%20?q=1&r=\u00e9#part")).ok
    expected = (
        f"GET /a%20b/%20?q=1&r=%C3%A9 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        "User-Agent: circleosd-health\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    )
    assert requests == [expected.encode()] * 2


async def test_an_endless_head_is_cut_off() -> None:
    endless = repeating(b"HTTP/1.1 200 OK\r\n", b"X-More: and more\r\n" * 50)
    assert await error_of(endless) == "head of the answer over 64 kB"


async def test_endless_interim_answers_are_cut_off() -> None:
    endless = repeating(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 50)
    assert await error_of(endless) == "head of the answer over 64 kB"


@pytest.mark.parametrize(
    "begin", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n"]
)
async def test_of_a_huge_body_only_the_beginning_is_read(begin: bytes) -> None:
    assert await error_of(repeating(begin, b"x" * 100_000)) is None


@pytest.mark.parametrize(
    "handler",
    [
        until_hung_up,
        repeating(b"HTTP/1.1 200 O", b"K", pause_s=0.02),
        repeating(b"HTTP/1.1 200 OK\r\nX: ", b"x", pause_s=0.02),
        repeating(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"x", pause_s=0.02),
    ],
    ids=["silent", "trickling status", "trickling head", "trickling body"],
)
async def test_an_attempt_ends_at_its_time_limit(handler: Handler) -> None:
    begun_s = time.monotonic()
    assert await error_of(handler, timeout_s=0.2) == "timed out after 0.2 s"
    assert time.monotonic() - begun_s < PLENTY_S


async def test_a_reset_connection_is_a_failure() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    assert await error_of(handle) == "connection reset by peer"


async def test_a_port_nobody_listens_on_is_refused() -> None:
    async with served(until_hung_up) as port:
        pass
    assert (await asked(f"http://127.0.0.1:{port}/")).error == "connection refused"


@pytest.mark.parametrize(
    ("url", "address", "port"),
    [
        ("http://127.0.0.1/", "127.0.0.1", 80),
        ("https://127.0.0.1/", "127.0.0.1", 443),
        ("http://[::1]?q", "::1", 80),
        ("https://[::1]:8443", "::1", 8443),
    ],
)
async def test_a_url_says_where_to_connect(
    monkeypatch: pytest.MonkeyPatch, url: str, address: str, port: int
) -> None:
    places = []

    async def refused(_loop: Any, _client: Any, place: tuple[str, int]) -> None:
        places.append(place)
        raise ConnectionRefusedError(errno.ECONNREFUSED, "")

    monkeypatch.setattr(http_probe, "_connect", refused)
    assert (await asked(url)).error == "connection refused"
    assert places == [(address, port)]


async def test_a_zone_of_an_address_is_left_to_the_loop_which_knows_its_number() -> None:
    places = []

    class Loop:
        async def sock_connect(self, _client: Any, place: tuple[str, int]) -> None:
            places.append(place)

    loop: Any = Loop()
    with socket.socket(socket.AF_INET6) as client:
        await http_probe._connect(loop, client, ("fe80::1%lo", 80))
    assert places == [("fe80::1%lo", 80)]


async def test_an_ipv6_literal_is_asked_with_its_brackets() -> None:
    requests = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(OK)
        await reader.read()

    try:
        async with served(handle, "::1") as port:
            assert (await asked(f"http://[::1]:{port}/")).ok
            assert (await asked(f"http://localhost:{port}/")).ok  # nobody listens on 127.0.0.1
    except OSError as error:
        pytest.skip(f"this machine has no IPv6 loopback: {error}")
    assert f"\r\nHost: [::1]:{port}\r\n".encode() in requests[0]


async def test_localhost_needs_no_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(answering(OK)) as port:
        monkeypatch.setattr(socket, "getaddrinfo", None)
        assert (await asked(f"http://localhost:{port}/")).ok


async def test_a_name_that_does_not_resolve_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = (await asked("http://no.such.name/")).error
    assert error == "name not resolved: Name or service not known"


async def test_a_hanging_resolver_holds_one_thread_and_no_other_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released = threading.Event()
    resolve = socket.getaddrinfo

    def hanging(host: str, *rest: Any, **more: Any) -> Any:
        if host == "hangs.example":
            released.wait(PLENTY_S)
        return resolve("127.0.0.1", *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    before = threading.active_count()
    async with served(answering(OK)) as port:
        hung = [asked(f"http://hangs.example:{port}/", 0.1) for _ in range(40)]
        made = await asyncio.gather(*hung)
        assert {each.error for each in made} == {"timed out after 0.1 s"}
        assert threading.active_count() <= before + 1
        assert (await asked(f"http://answers.example:{port}/")).ok
        released.set()
        assert (await asked(f"http://hangs.example:{port}/")).ok


@pytest.mark.parametrize(
    "target",
    [
        "http://",
        "http://127.0.0.1:99999/",
        "http://me:secret@127.0.0.1/",
        f"http://{'x' * 70}/",
        "cmd:echo 'unclosed",
        "gopher:x",
        "heartbeat:",
        "tcp:",
        "tcp:80",
        "tcp::80",
        "tcp:127.0.0.1",
        "tcp:127.0.0.1:0",
        "tcp:127.0.0.1:65536",
        "tcp:127.0.0.1:\u0661",
        "tcp:::1:80",
        "tcp:[::1]",
        "tcp:me:secret@127.0.0.1:80",
        f"tcp:{'x' * 70}:80",
        "http+unix:",
        "http+unix:/s",
        "http+unix::/",
        "http+unix:/s:health",
    ],
)
async def test_a_target_that_cannot_be_asked_is_an_error_not_an_exception(target: str) -> None:
    made = await asked(target)
    assert made.error is not None
    assert made.error.startswith("bad target: ")
    assert "secret" not in made.error


# https:


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, its key beside it."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: no certificate to test with")
    made = tmp_path_factory.mktemp("tls") / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=probe", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(made.with_name("key.pem")), "-out", str(made)]
    subprocess.run(command, check=True, capture_output=True)
    return made


@pytest.fixture
def server_tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    return context


@pytest.fixture
def trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    tls_context.cache_clear()
    yield
    tls_context.cache_clear()


async def test_https_with_a_trusted_certificate_is_ok(
    server_tls: ssl.SSLContext, trusted: None
) -> None:
    async with served(answering(OK), tls=server_tls) as port:
        made = await asked(f"https://127.0.0.1:{port}/")
    assert made.error is None


async def test_https_for_another_name_is_refused(server_tls: ssl.SSLContext, trusted: None) -> None:
    async with served(answering(OK), tls=server_tls) as port:
        error = (await asked(f"https://localhost:{port}/")).error
    assert error is not None
    assert error.startswith("certificate refused: Hostname mismatch")


async def test_https_with_an_unknown_certificate_is_refused(server_tls: ssl.SSLContext) -> None:
    async with served(answering(OK), tls=server_tls) as port:
        error = (await asked(f"https://127.0.0.1:{port}/")).error
    assert error is not None
    assert error.startswith("certificate refused: self")


@pytest.mark.parametrize(
    ("handler", "timeout_s", "error"),
    [
        (
            repeating(b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"),
            PLENTY_S,
            "TLS failed: wrong version number",
        ),
        (until_hung_up, 0.3, "timed out after 0.3 s"),
    ],
    ids=["speaks plain HTTP", "says nothing"],
)
async def test_a_port_without_tls_is_a_failure(
    handler: Handler, timeout_s: float, error: str
) -> None:
    async with served(handler) as port:
        assert (await asked(f"https://127.0.0.1:{port}/", timeout_s)).error == error


async def test_a_tls_handshake_that_is_cut_off_is_a_failure() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1_000)

    async with served(hang_up) as port:
        error = (await asked(f"https://127.0.0.1:{port}/")).error
    assert error is not None
    assert error.startswith("connection")


# Whatever bytes come


def test_whatever_a_service_answers_gives_an_attempt_and_a_printable_clause() -> None:
    heads = st.sampled_from(
        [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: ", OK]
    )
    with asyncio.Runner() as runner:

        @settings(
            max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), database=None
        )
        @given(head=heads, rest=st.binary(max_size=6_000))
        def check(head: bytes, rest: bytes) -> None:
            error = runner.run(error_of(answering(head + rest)))
            assert error is None or (error.isprintable() and error.isascii() and len(error) < 80)

        check()


# cmd:


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (0, None),
        (3, "exit code 3"),
        (-9, "killed by SIGKILL"),
        (-60, "killed by signal 60"),
        (TimeoutError(), "timed out after 2 s"),
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)), "no such file or directory"),
    ],
)
async def test_a_command_is_judged_by_its_end(outcome: int | OSError, error: str | None) -> None:
    calls = []

    async def run(argv: tuple[str, ...], timeout_s: float) -> int:
        calls.append((argv, timeout_s))
        if isinstance(outcome, int):
            return outcome
        raise outcome

    made = await asked("cmd:./queue_short --label 'two words'", 2.0, run)
    assert (made.ok, made.error) == (error is None, error)
    assert calls == [(("./queue_short", "--label", "two words"), 2.0)]


# The prober, on virtual time


class Clock(Protocol):
    """What a scene sees of virtual time."""

    now_s: float
    wake_ups: int


class Stage:
    """A prober on virtual time: what it ran and what it reported, each with the time in seconds."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.ran: list[tuple[float, str]] = []
        self.seen: list[tuple[float, str, int, str, Attempt]] = []
        self.on_seen: Callable[[], None] = lambda: None
        self.takes_s: dict[str, float] = {}
        self.failing: set[str] = set()
        self.under_way: set[str] = set()
        self.overlapped = False
        self.prober = Prober(self._observe, lambda service: 0.25)

    def _observe(self, service: str, run: int, check: str, made: Attempt) -> None:
        self.seen.append((round(self.clock.now_s, 3), service, run, check, made))
        self.on_seen()

    async def run(self, argv: tuple[str, ...], timeout_s: float) -> int:
        """The command NAME or NAME/CHECK: takes as long and ends as the stage is set."""
        (what,) = argv
        service = what.partition("/")[0]
        self.overlapped |= service in self.under_way
        self.ran.append((round(self.clock.now_s, 3), what))
        self.under_way.add(service)
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.sleep(self.takes_s.get(what, 0.0))
        finally:
            self.under_way.remove(service)
        return 1 if what in self.failing else 0

    def watch(self, service: str, *checks: Check, run: int = 1, **more: Any) -> None:
        self.prober.watch(service, run, checks, self.run, **more)

    def times(self, what: str) -> list[float]:
        return [at_s for at_s, name in self.ran if name == what]

    def results(self, service: str) -> list[tuple[float, bool]]:
        return [(at_s, made.ok) for at_s, name, _, _, made in self.seen if name == service]

    async def until(self, at_s: float) -> None:
        await asyncio.sleep(at_s - self.clock.now_s)


Play = Callable[[Callable[[Stage], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def play(on_virtual_time: Callable[..., None]) -> Play:
    """Plays a scene on virtual time; afterwards the prober has to leave nothing behind."""

    def on_stage(scene: Callable[[Stage], Coroutine[Any, Any, None]]) -> None:
        async def main(clock: Clock) -> None:
            stage = Stage(clock)
            await scene(stage)
            await stage.prober.close()
            assert not stage.overlapped, "two attempts at one service overlap"
            assert asyncio.all_tasks() == {asyncio.current_task()}
            reported, wake_ups = len(stage.seen), clock.wake_ups
            await asyncio.sleep(1_000)
            assert (len(stage.seen), clock.wake_ups) == (reported, wake_ups + 1)

        on_virtual_time(main)

    return on_stage


def command(what: str, interval_s: float = 10.0, timeout_s: float = 3.0) -> Check:
    return Check(what.rpartition("/")[2], f"cmd:{what}", interval_s, timeout_s)


def heartbeat(name: str = "beat", interval_s: float = 10.0, timeout_s: float = 3.0) -> Check:
    return Check(name, "heartbeat:", interval_s, timeout_s)


def test_readiness_is_asked_for_at_once_and_then_with_doubling_delays(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.failing.add("web")
        stage.watch("web", command("web", interval_s=0.5))
        await stage.until(2.0)
        assert stage.times("web") == [0.05, 0.15, 0.35, 0.75, 1.25, 1.75]
        assert [ok for _, ok in stage.results("web")] == [False] * 6

    play(scene)


def test_a_check_that_has_succeeded_goes_on_at_its_interval(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.failing.add("web")
        stage.watch("web", command("web"))
        await stage.until(0.3)
        stage.failing.clear()
        await stage.until(5.0)
        stage.failing.add("web")
        await stage.until(25.0)
        assert stage.times("web") == [0.05, 0.15, 0.35, 10.35, 20.35]

    play(scene)


def test_once_ready_a_check_has_its_place_in_the_interval(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.failing.add("web")
        stage.watch("web", command("web"))
        await stage.until(0.1)
        stage.prober.became_ready("web")
        await stage.until(25.0)
        # soon, since it has never succeeded; and not at 2.6, which is close to that
        assert stage.times("web") == pytest.approx([0.05, 0.35, 12.6, 22.6])

    play(scene)


def test_a_check_of_a_service_that_is_ready_at_once_is_not_put_off_for_an_interval(
    play: Play,
) -> None:
    async def scene(stage: Stage) -> None:
        stage.watch("web", command("web", interval_s=600.0))
        stage.prober.became_ready("web")
        await stage.until(1200.0)
        assert stage.times("web") == pytest.approx([0.25, 750.0])

    play(scene)


def test_becoming_ready_brings_an_attempt_forward_where_its_place_is_earlier(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.watch("web", command("web"))
        await stage.until(1.0)
        stage.prober.became_ready("web")
        await stage.until(20.0)
        assert stage.times("web") == [0.05, 3.5, 13.5]

    play(scene)


def test_becoming_ready_in_the_middle_of_an_attempt_counts_too(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.takes_s["web"] = 2.0
        stage.watch("web", command("web"))
        await stage.until(1.0)
        stage.prober.became_ready("web")
        await stage.until(25.0)
        assert stage.times("web") == [0.05, 13.5, 23.5]

    play(scene)


def test_a_result_says_whose_it_is(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.takes_s["web/slow"] = 1.5
        stage.watch("web", command("web/slow"), run=7)
        await stage.until(5.0)
        ((_, service, run, check, made),) = stage.seen
        assert (service, run, check, made.ok, made.error) == ("web", 7, "slow", True, None)
        assert made.latency_ns == pytest.approx(1.5e9)

    play(scene)


def test_attempts_never_overlap_and_each_check_has_its_turn(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.takes_s |= {"web/a": 2.5, "web/b": 2.5, "web/c": 99.0}
        stage.watch("web", *(command(f"web/{name}", interval_s=1.0) for name in "abc"))
        stage.prober.became_ready("web")
        await stage.until(100.0)
        counts = [len(stage.times(f"web/{name}")) for name in "abc"]
        assert min(counts) >= 10
        assert max(counts) <= 14

    play(scene)


def test_an_attempt_longer_than_the_interval_keeps_its_place_and_makes_up_for_none(
    play: Play,
) -> None:
    async def scene(stage: Stage) -> None:
        stage.takes_s["web"] = 2.5
        stage.watch("web", command("web", interval_s=1.0))
        await stage.until(8.0)
        assert stage.times("web") == [0.05, 3.05, 6.05]

    play(scene)


def test_a_hanging_service_delays_no_other(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.takes_s["hung"] = 1e9
        stage.watch("hung", command("hung", interval_s=1.0, timeout_s=1e6))
        stage.watch("web", command("web", interval_s=1.0))
        await stage.until(5.0)
        assert stage.times("hung") == [0.05]
        assert stage.times("web") == [0.05, 1.05, 2.05, 3.05, 4.05]

    play(scene)


def test_the_prober_wakes_up_only_when_something_is_due(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.watch("web", command("web"), heartbeat())
        stage.prober.became_ready("web")
        await stage.until(1.0)
        before = stage.clock.wake_ups
        await stage.until(1_001.0)
        checks, windows, own = 100, 100, 1
        assert stage.clock.wake_ups - before <= checks + windows + own

    play(scene)


def test_no_result_arrives_after_forget(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.takes_s["web"] = 2.0
        stage.watch("web", command("web"), heartbeat())
        await stage.until(1.0)
        assert stage.under_way == {"web"}
        stage.prober.forget("web", 1)
        assert not stage.prober.beat("web")
        await stage.until(100.0)
        assert stage.seen == []
        assert stage.under_way == set()

    play(scene)


def test_no_result_arrives_after_forget_even_of_a_command_that_will_not_be_cancelled(
    play: Play,
) -> None:
    async def scene(stage: Stage) -> None:
        async def stubborn(argv: tuple[str, ...], timeout_s: float) -> int:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(5.0)
            return 0

        stage.prober.watch("web", 1, (command("web"),), stubborn)
        await stage.until(1.0)
        stage.prober.forget("web", 1)
        await stage.until(100.0)
        assert stage.seen == []
        assert asyncio.all_tasks() == {asyncio.current_task()}

    play(scene)


def test_forgetting_another_run_changes_nothing(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.watch("web", command("web"), run=2)
        stage.prober.forget("web", 1)
        stage.prober.forget("unknown", 1)
        stage.prober.became_ready("unknown")
        await stage.until(1.0)
        assert stage.results("web") == [(0.05, True)]

    play(scene)


def test_the_receiver_of_a_result_may_forget_the_service(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        def forget_it() -> None:
            stage.prober.forget(stage.seen[-1][1], 1)

        stage.on_seen = forget_it
        stage.watch("web", command("web", interval_s=1.0))
        stage.watch("beats", heartbeat("one"), heartbeat("two"))
        stage.watch("silent", heartbeat())
        assert stage.prober.beat("beats")
        await stage.until(100.0)
        assert stage.results("web") == [(0.05, True)]
        assert stage.results("beats") == [(0.0, True)]
        assert stage.results("silent") == [(13.0, False)]

    play(scene)


def test_watching_a_next_run_ends_the_watch_of_the_last(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.takes_s["old"] = 1.0
        stage.watch("web", command("old"), run=1)
        await stage.until(0.5)
        stage.watch("web", command("new"), run=2)
        await stage.until(5.0)
        assert [(run, check) for _, _, run, check, _ in stage.seen] == [(2, "new")]

    play(scene)


def test_a_beat_is_a_result_at_once(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.watch("web", heartbeat("one"), heartbeat("two"))
        assert stage.prober.beat("web", "two")
        assert [(check, made.ok) for *_, check, made in stage.seen] == [("two", True)]
        assert stage.prober.beat("web")
        assert [check for *_, check, _ in stage.seen] == ["two", "one", "two"]

    play(scene)


def test_a_beat_that_no_check_listens_for_is_not_taken(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.watch("web", command("asked"), heartbeat("one"))
        stage.watch("db", command("db"))
        assert not stage.prober.beat("web", "asked")
        assert not stage.prober.beat("web", "unknown")
        assert not stage.prober.beat("db")
        assert not stage.prober.beat("unknown")
        assert stage.seen == []

    play(scene)


def test_a_missing_beat_fails_and_again_after_each_interval_until_one_comes(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.watch("web", heartbeat())
        await stage.until(40.0)
        stage.prober.beat("web")
        await stage.until(54.0)
        errors = [(at_s, made.error) for at_s, *_, made in stage.seen]
        assert errors == [
            (13.0, "no heartbeat for 13 s"),
            (23.0, "no heartbeat for 23 s"),
            (33.0, "no heartbeat for 33 s"),
            (40.0, None),
            (53.0, "no heartbeat for 13 s"),
        ]

    play(scene)


def test_beats_in_time_keep_a_service_from_failing(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.watch("web", heartbeat())
        for beat in range(1, 10):
            await stage.until(beat * 12.9)
            stage.prober.beat("web")
        assert all(made.ok for *_, made in stage.seen)
        assert len(stage.seen) == 9

    play(scene)


@pytest.mark.parametrize(
    ("stood_still_s", "fails_at_s"),
    [(1.2, 13.2), (4.0, 19.0), (50.0, 75.0)],
    ids=["shortly", "longer", "longer than the interval"],
)
def test_time_that_nobody_watched_is_not_charged_to_a_heartbeat(
    play: Play, stood_still_s: float, fails_at_s: float
) -> None:
    """Standing still from 12 s on: a beat sent meanwhile, but not read, may still be read."""

    async def scene(stage: Stage) -> None:
        stage.watch("web", heartbeat())
        await stage.until(12.0)
        stage.clock.now_s += stood_still_s
        await stage.until(fails_at_s + 0.1)
        assert stage.results("web") == [(fails_at_s, False)]

    play(scene)


def test_an_attempt_that_failed_because_the_prober_stood_still_is_made_again(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.takes_s["web"] = 1.0
        stage.watch("web", command("web", timeout_s=2.0))
        await stage.until(0.5)
        stage.clock.now_s += 30.0
        await stage.until(35.0)
        assert stage.times("web") == [0.05, 30.5]
        assert stage.results("web") == [(31.5, True)]

    play(scene)


def test_a_bug_in_one_watch_is_logged_and_ends_neither_it_nor_another(
    play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(stage: Stage) -> None:
        calls = []

        async def buggy(argv: tuple[str, ...], timeout_s: float) -> int:
            calls.append(argv)
            if len(calls) < 3:
                raise KeyError("a bug")
            return 0

        stage.prober.watch("buggy", 1, (command("buggy"),), buggy)
        stage.watch("web", command("web", interval_s=0.1))
        await stage.until(0.4)
        assert stage.results("buggy") == [(0.35, True)]
        assert len(stage.results("web")) == 4

    play(scene)
    assert caplog.text.count("KeyError: 'a bug'") == 2
    assert "Check buggy of buggy" in caplog.text


def test_a_receiver_that_raises_is_logged_and_hears_the_next_result(
    play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(stage: Stage) -> None:
        def fail() -> None:
            raise LookupError("a bug")

        stage.on_seen = fail
        stage.watch("web", command("web", interval_s=1.0), heartbeat())
        assert stage.prober.beat("web")
        await stage.until(2.5)
        assert len(stage.seen) == 4

    play(scene)
    assert caplog.text.count("LookupError: a bug") == 4


# The interval that a service asks for


def test_an_interval_set_by_the_service_holds_from_then_on(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.watch("web", heartbeat("one"), heartbeat("two", timeout_s=4.0), command("web", 1e6))
        await stage.until(5.0)
        stage.prober.set_interval("web", 2.0)
        stage.prober.set_interval("unknown", 2.0)
        await stage.until(8.0)
        stage.prober.beat("web")
        await stage.until(15.5)
        beats = [(at_s, check, made.ok) for at_s, _, _, check, made in stage.seen if check != "web"]
        assert beats == [
            (8.0, "one", True),
            (8.0, "two", True),
            (13.0, "one", False),
            (14.0, "two", False),
            (15.0, "one", False),
        ]

    play(scene)


def test_a_shorter_interval_is_not_waited_out_at_the_longer_one(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.watch("web", heartbeat(interval_s=10_000.0))
        stage.prober.set_interval("web", 2.0)
        await stage.until(6.0)
        assert stage.results("web") == [(5.0, False)]

    play(scene)


def test_an_interval_of_zero_ends_the_wait_until_another_is_set(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.watch("web", heartbeat())
        stage.prober.set_interval("web", 0.0)
        before = stage.clock.wake_ups
        await stage.until(1_000.0)
        assert stage.clock.wake_ups - before == 1
        assert stage.prober.beat("web")
        stage.prober.set_interval("web", 2.0)
        await stage.until(1_006.0)
        assert stage.results("web") == [(1_000.0, True), (1_005.0, False)]

    play(scene)


def test_a_tiny_interval_floods_nobody(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.watch("web", heartbeat(timeout_s=1.0))
        stage.prober.set_interval("web", 1e-6)
        await stage.until(11.0)
        assert 50 <= len(stage.seen) <= 101

    play(scene)


def test_an_adopted_run_is_held_to_the_interval_that_it_had_asked_for(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.watch("web", heartbeat(), beat_interval_s=2.0)
        stage.prober.became_ready("web")
        stage.watch("off", heartbeat(), beat_interval_s=0.0)
        await stage.until(6.0)
        assert [(at_s, made.error) for at_s, *_, made in stage.seen] == [
            (5.0, "no heartbeat for 5 s")
        ]
        await stage.until(100.0)
        assert stage.results("off") == []

    play(scene)


@pytest.mark.parametrize("interval_s", [None, 2.0], ids=["declared", "set before it was ready"])
def test_where_readiness_is_said_no_beat_is_missed_before_it(
    play: Play, interval_s: float | None
) -> None:
    async def scene(stage: Stage) -> None:
        stage.watch("web", heartbeat(), listens_before_ready=False)
        if interval_s is not None:
            stage.prober.set_interval("web", interval_s)
        await stage.until(98.0)
        assert stage.prober.beat("web")
        await stage.until(100.0)
        stage.prober.became_ready("web")
        await stage.until(104.0)
        stage.prober.became_ready("web")  # said again, it begins nothing anew
        window_s = (interval_s or 10.0) + 3.0
        await stage.until(114.0)
        assert stage.results("web")[:2] == [(98.0, True), (100.0 + window_s, False)]

    play(scene)


def test_a_beat_missed_before_readiness_is_not_forgiven_by_it(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.watch("web", heartbeat())
        await stage.until(12.0)
        stage.prober.became_ready("web")
        await stage.until(20.0)
        assert stage.results("web") == [(13.0, False)]

    play(scene)


def test_a_little_lateness_of_our_own_spares_no_beat_that_is_due_often(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.watch("web", heartbeat(interval_s=0.1, timeout_s=1.0))
        await stage.until(1.0)
        stage.clock.now_s += 0.4
        await stage.until(1.41)
        assert stage.results("web")[0] == (1.4, False)

    play(scene)


# A service that calls itself sick


def test_a_trigger_fails_every_heartbeat_check_at_once_and_finally(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.watch("web", heartbeat("one"), heartbeat("two"), command("asked", 1e6))
        await stage.until(1.0)
        assert stage.prober.trigger("web", "it said so")
        sick = Attempt(False, "it said so", 0, final=True)
        assert [(check, made) for *_, check, made in stage.seen[1:]] == [
            ("one", sick),
            ("two", sick),
        ]
        assert not stage.seen[0][-1].final
        await stage.until(13.9)
        assert len(stage.seen) == 3
        await stage.until(14.1)
        assert [made.final for *_, made in stage.seen[3:]] == [False, False]

    play(scene)


def test_a_trigger_that_no_check_listens_for_is_not_taken(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.watch("web", command("web"))
        assert not stage.prober.trigger("web", "it said so")
        assert not stage.prober.trigger("unknown", "it said so")
        assert stage.seen == []

    play(scene)


# A service that is about to end


def test_after_suspend_nothing_is_asked_or_judged(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.takes_s["web"] = 2.0
        stage.watch("web", command("web", interval_s=5.0), heartbeat(), listens_before_ready=False)
        stage.watch("beats", heartbeat())
        await stage.until(1.0)
        assert stage.under_way == {"web"}
        for service in ("web", "beats", "unknown"):
            stage.prober.suspend(service)
            stage.prober.set_interval(service, 1.0)
            stage.prober.became_ready(service)
        assert stage.prober.beat("web")  # there is a listener: no fault of the service
        assert stage.prober.trigger("web", "it said so")
        before = stage.clock.wake_ups
        await stage.until(100.0)
        assert stage.clock.wake_ups - before == 1
        assert stage.seen == []
        assert stage.times("web") == [0.05]
        assert stage.under_way == set()

    play(scene)


def test_a_command_that_suspend_ends_is_not_disturbed_in_its_cleaning_up(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        cleaned_up = asyncio.Event()

        async def slow_to_end(argv: tuple[str, ...], timeout_s: float) -> int:
            try:
                await asyncio.sleep(timeout_s)
            finally:
                await asyncio.sleep(0.5)
                cleaned_up.set()
            return 0

        stage.prober.watch("web", 1, (command("web"),), slow_to_end)
        await stage.until(1.0)
        stage.prober.suspend("web")
        await stage.until(1.2)
        stage.prober.forget("web", 1)
        await stage.until(2.0)
        assert cleaned_up.is_set()

    play(scene)


def test_the_run_after_a_suspended_one_is_checked(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.watch("web", command("web"))
        stage.prober.suspend("web")
        stage.prober.forget("web", 1)
        stage.watch("web", command("web"), run=2)
        await stage.until(1.0)
        assert stage.results("web") == [(0.05, True)]

    play(scene)


# Once, now


def test_once_asks_all_at_a_time_and_tells_only_who_asked(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        calls = []

        async def run(argv: tuple[str, ...], timeout_s: float) -> int:
            calls.append((stage.clock.now_s, argv[0], timeout_s))
            await asyncio.sleep(2.0)
            return 3 if argv[0] == "bad" else 0

        checks = (command("good"), command("bad", timeout_s=4.0), Check("odd", "gopher:x"))
        made = await stage.prober.once("web", checks, run)
        assert stage.clock.now_s == pytest.approx(2.0)
        assert calls == [(0.0, "good", 3.0), (0.0, "bad", 4.0)]
        assert [check for check, _ in made] == list(checks)
        good, bad, odd = (each for _, each in made)
        assert (good.ok, good.error) == (True, None)
        assert good.latency_ns == pytest.approx(2e9)
        assert (bad.ok, bad.error) == (False, "exit code 3")
        assert odd.error is not None
        assert stage.seen == []

    play(scene)


def test_once_sees_the_present_verdict_on_a_heartbeat(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        async def verdict(service: str = "web") -> tuple[bool, str | None]:
            ((_, made),) = await stage.prober.once(service, (heartbeat(),), no_command)
            return made.ok, made.error

        assert await verdict() == (False, "nothing listens")
        stage.watch("web", command("web"))
        assert await verdict() == (False, "nothing listens")
        stage.watch("web", heartbeat(), run=2)
        assert await verdict() == (True, None)
        await stage.until(12.9)
        assert await verdict() == (True, None)
        await stage.until(15.0)
        assert await verdict() == (False, "no heartbeat for 15 s")
        stage.prober.beat("web")
        assert await verdict() == (True, None)
        stage.prober.trigger("web", "it said so")
        assert await verdict() == (False, "it said so")
        stage.prober.beat("web")
        assert await verdict() == (True, None)
        assert len(stage.seen) == 4

    play(scene)


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (
            Shortage(errno.EMFILE, os.strerror(errno.EMFILE)),
            "could not be asked: too many open files",
        ),
        (Shortage("no process left"), "could not be asked: no process left"),
        (KeyError("x"), "could not be asked: a bug, see the registry's own log"),
    ],
)
async def test_what_keeps_once_from_asking_is_told_and_spoils_no_other_result(
    failure: Exception, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def run(argv: tuple[str, ...], timeout_s: float) -> int:
        if argv == ("fails",):
            raise failure
        return 0

    prober = Prober(lambda *_: None, lambda _: 0.0)
    made = await prober.once("web", (command("fails"), command("works")), run)
    assert [(each.ok, each.error) for _, each in made] == [(False, error), (True, None)]
    assert ("KeyError" in caplog.text) == isinstance(failure, KeyError)


async def test_who_stops_waiting_for_once_ends_its_commands() -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def hang(argv: tuple[str, ...], timeout_s: float) -> int:
        began.set()
        try:
            return await asyncio.get_running_loop().create_future()
        finally:
            ended.set()

    prober = Prober(lambda *_: None, lambda _: 0.0)
    asking = asyncio.create_task(prober.once("web", (command("web"),), hang))
    await began.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert ended.is_set()


async def test_a_prober_asks_real_services_and_closes_in_the_middle_of_attempts() -> None:
    seen: asyncio.Queue[tuple[str, Attempt]] = asyncio.Queue()
    prober = Prober(
        lambda service, run, check, made: seen.put_nowait((service, made)), lambda service: 0.0
    )
    connected = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read()
        await reader.read()

    async with served(hang) as hung, served(answering(OK)) as port:
        check = Check("http", f"http://127.0.0.1:{hung}/", 0.1, 60.0)
        prober.watch("hung", 1, (check,), no_command)
        await connected.wait()
        check = Check("http", f"http://127.0.0.1:{port}/", 0.1, 60.0)
        prober.watch("web", 1, (check,), no_command)
        for _ in range(3):
            service, made = await seen.get()
            assert (service, made.error) == ("web", None)
        await prober.close()
        assert seen.empty()
