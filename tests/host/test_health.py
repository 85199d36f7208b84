"""The health prober: attempts against real sockets that misbehave, scheduling on virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import selectors
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
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry.core.definition import Check
from registry.host import http_probe
from registry.host.health import Attempt, Prober, RunCommand, attempt

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
        with contextlib.suppress(BlockingIOError):
            while True:
                client = waiting.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(str(folder / "s"))
        made = await asked(f"unix:{folder}/s")
    assert made.error == "not accepting connections, its backlog is full"


async def test_a_path_too_long_for_a_socket_is_an_error_not_an_exception() -> None:
    assert (await asked("unix:/" + "x" * 200)).error == "AF_UNIX path too long"


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
    ("url", "address", "port", "tls"),
    [
        ("http://127.0.0.1/", "127.0.0.1", 80, False),
        ("https://127.0.0.1/", "127.0.0.1", 443, True),
        ("http://[::1]?q", "::1", 80, False),
        ("https://[::1]:8443", "::1", 8443, True),
    ],
)
async def test_a_url_says_where_to_connect(
    monkeypatch: pytest.MonkeyPatch, url: str, address: str, port: int, tls: bool
) -> None:
    places = []

    async def open_connection(host: str, port: int, **more: Any) -> None:
        places.append((host, port, more["ssl"] is not None))
        raise ConnectionRefusedError(errno.ECONNREFUSED, "")

    monkeypatch.setattr(asyncio, "open_connection", open_connection)
    assert (await asked(url)).error == "connection refused"
    assert places == [(address, port, tls)]


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
    http_probe._tls_context.cache_clear()
    yield
    http_probe._tls_context.cache_clear()


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
    ("handler", "error"),
    [
        (repeating(b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"), "TLS failed: wrong version number"),
        (until_hung_up, "timed out after 0.3 s"),
    ],
    ids=["speaks plain HTTP", "says nothing"],
)
async def test_a_port_without_tls_is_a_failure(handler: Handler, error: str) -> None:
    async with served(handler) as port:
        assert (await asked(f"https://127.0.0.1:{port}/", 0.3)).error == error


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


class Clock(selectors.SelectSelector):
    """Never waits: what would be waited for has passed. Counts how often the loop woke up."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.wake_ups = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everything waits and nothing is due"
        self.now_s += max(timeout, 0.0)
        self.wake_ups += timeout > 0.0
        return []


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

    def watch(self, service: str, *checks: Check, run: int = 1) -> None:
        self.prober.watch(service, run, checks, self.run)

    def times(self, what: str) -> list[float]:
        return [at_s for at_s, name in self.ran if name == what]

    def results(self, service: str) -> list[tuple[float, bool]]:
        return [(at_s, made.ok) for at_s, name, _, _, made in self.seen if name == service]

    async def until(self, at_s: float) -> None:
        await asyncio.sleep(at_s - self.clock.now_s)


Play = Callable[[Callable[[Stage], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def play() -> Play:
    """Plays a scene on virtual time; afterwards the prober has to leave nothing behind."""

    def on_stage(scene: Callable[[Stage], Coroutine[Any, Any, None]]) -> None:
        clock = Clock()

        def virtual_loop() -> asyncio.AbstractEventLoop:
            loop = asyncio.SelectorEventLoop(clock)
            loop.time = lambda: clock.now_s  # type: ignore[method-assign]
            return loop

        async def main() -> None:
            stage = Stage(clock)
            await scene(stage)
            await stage.prober.close()
            assert not stage.overlapped, "two attempts at one service overlap"
            assert asyncio.all_tasks() == {asyncio.current_task()}
            reported, wake_ups = len(stage.seen), clock.wake_ups
            await asyncio.sleep(1_000)
            assert (len(stage.seen), clock.wake_ups) == (reported, wake_ups + 1)

        with asyncio.Runner(loop_factory=virtual_loop) as runner:
            runner.run(main())

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
        assert stage.times("web") == [0.05, 2.6, 12.6, 22.6]

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
        await stage.until(20.0)
        assert stage.times("web") == [0.05, 3.5, 13.5]

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
