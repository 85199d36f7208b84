"""The example hook tells people: over HTTP and by mail, with the last lines of the log."""

from __future__ import annotations

import asyncio
import email
import email.policy
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

TELL = Path(__file__).parents[2] / "etc" / "examples" / "tell.py"
EVENT = {"seq": 7, "service": "web", "type": "gave_up", "reason": "restart_limit", "data": {}}
LINES = ["one", "Grüße"]

Client = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class World:
    """A registry, a web server and a mail server on this host; what they were told."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.asked: list[Any] = []
        self.posted: list[tuple[str, Any]] = []
        self.mailed: list[tuple[list[str], str]] = []
        self.answer: dict[str, Any] = {"ok": True, "data": LINES}
        self.status = "204 No Content"
        self.mail_status = "250 OK"

    async def registry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.append(json.loads(await reader.readline()))
        writer.write(json.dumps(self.answer).encode() + b"\n")

    async def web(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = email.message_from_string(head.partition("\r\n")[2])["Content-Length"]
        body = json.loads(await reader.readexactly(int(length)))
        self.posted.append((head.splitlines()[0], body))
        writer.write(f"HTTP/1.1 {self.status}\r\nContent-Length: 0\r\n\r\n".encode())

    async def post_office(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """As much of RFC 5321 as one mail needs."""
        said: list[str] = []
        writer.write(b"220 here\r\n")
        while line := (await reader.readline()).decode().strip():
            said.append(line)
            if line.upper() == "DATA":
                writer.write(b"354 go on\r\n")
                text = (await reader.readuntil(b"\r\n.\r\n")).decode()
                self.mailed.append((said, text.removesuffix(".\r\n")))
            is_last = line.upper() == "QUIT"
            writer.write(f"{'221 bye' if is_last else self.mail_status}\r\n".encode())
            if is_last:
                return

    async def tell(
        self,
        *arguments: str,
        event: dict[str, Any] = EVENT,
        environment: dict[str, str] | None = None,
    ) -> tuple[int | None, str]:
        """Run the hook as the registry does: its exit code and what it complained of."""
        hook = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", str(TELL), *arguments),
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment or {"CIRCLEOSD_SOCKET": str(self.socket)},
        )
        told = json.dumps({"event": event, "host": "here"}).encode() + b"\n"
        _, complaint = await hook.communicate(told)
        return hook.returncode, complaint.decode().strip()


def closing(serve: Client) -> Client:
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
            await writer.drain()
        finally:
            writer.close()

    return client


@pytest.fixture
async def world(short_dir: Path) -> AsyncIterator[World]:
    made = World(short_dir / "s")
    server = await asyncio.start_unix_server(closing(made.registry), made.socket)
    async with server:
        yield made


@pytest.fixture
async def web(world: World) -> AsyncIterator[str]:
    server = await asyncio.start_server(closing(world.web), "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.fixture
async def post_office(world: World) -> AsyncIterator[str]:
    server = await asyncio.start_server(closing(world.post_office), "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_it_posts_the_event_and_the_last_lines(world, web):
    assert await world.tell(f"http://{web}/hook?key=1") == (0, "")
    assert world.asked == [{"action": "logs", "service": "web", "lines": 20}]
    [(line, body)] = world.posted
    assert line == "POST /hook?key=1 HTTP/1.1"
    text = "web on here: gave_up (restart_limit)\none\nGrüße"
    assert body == {"text": text, "lines": LINES, "event": EVENT, "host": "here"}


async def test_it_mails_the_event_and_the_last_lines(world, post_office):
    assert await world.tell("--mail", "ops@example.org", post_office) == (0, "")
    [(said, text)] = world.mailed
    assert said[0] == "ehlo here"
    assert any(line.lower().startswith("rcpt to:<ops@example.org>") for line in said)
    message = email.message_from_string(text, policy=email.policy.default)
    assert message["Subject"] == "web on here: gave_up (restart_limit)"
    assert (message["From"], message["To"]) == ("circleosd@here", "ops@example.org")
    lines = message.get_content().splitlines()
    assert lines[:2] == LINES
    assert json.loads("\n".join(lines[3:])) == EVENT


async def test_an_event_of_no_service_has_no_log(world, web):
    event = {**EVENT, "service": None, "type": "registry_started", "reason": None}
    assert await world.tell(f"http://{web}/", event=event) == (0, "")
    assert world.asked == []
    assert world.posted[0][1]["text"] == "registry on here: registry_started"


async def test_without_a_log_it_tells_all_the_same_and_says_why(world, web):
    world.answer = {"ok": False, "error": {"code": "no_logs", "message": "web keeps no logs"}}
    assert await world.tell(f"http://{web}/") == (0, "")
    gone = {"CIRCLEOSD_SOCKET": str(world.socket) + "x"}
    assert await world.tell(f"http://{web}/", environment=gone) == (0, "")
    refused, missing = (body["lines"] for _, body in world.posted)
    assert refused == ["(no log: web keeps no logs)"]
    assert missing[0].startswith(f"(no log: no registry at {world.socket}x: ")


async def test_whom_nobody_hears_ends_with_an_error_that_keeps_the_address(world, web, post_office):
    world.status, world.mail_status = "500 Broken", "550 Unknown"
    assert await world.tell(f"http://{web}/secret") == (
        1,
        "nobody was told: HTTP Error 500: Broken",
    )
    code, complaint = await world.tell("--mail", "ops@example.org", post_office)
    assert code == 1
    assert complaint.startswith("nobody was told: ")
    assert "Unknown" in complaint


@pytest.mark.parametrize("arguments", [(), ("--mail",), ("a", "b"), ("--help",)])
async def test_wrong_arguments_are_answered_with_the_usage(world, arguments):
    code, complaint = await world.tell(*arguments)
    assert (code, complaint.split(":")[0]) == (1, "usage")


async def test_it_posts_to_the_web_alone(world):
    code, complaint = await world.tell("file:///etc/passwd")
    assert (code, complaint) == (
        1,
        "the address to post to wants to begin with http:// or https://",
    )
