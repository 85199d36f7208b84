"""One client of a control socket; as a program it asks for a time and prints what it saw, as JSON.

`client.py ask SOCKET SECONDS` asks for all services, one answer after the other. `client.py echo SOCKET BYTES` is the
floor for that: the barest asyncio server, which answers each line with so many bytes.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time

LIST = b'{"action":"list_services"}\n'
TIMEOUT_S = 30.0
SEND_BUFFER = 384 * 1024
"""As the registry has it: with the kernel's own 208 kB each answer would take two turns."""


class Client:
    """A connection that sends a line and takes a line."""

    def __init__(self, path: str) -> None:
        self._buffer = bytearray(1 << 20)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(TIMEOUT_S)
        self._socket.connect(path)

    def send(self, line: bytes) -> None:
        """Send, without waiting for the answer."""
        self._socket.sendall(line)

    def ask(self, line: bytes) -> bytes:
        """The answer to a request."""
        size = self.size_of_answer(line)
        return bytes(memoryview(self._buffer)[:size])

    def size_of_answer(self, line: bytes) -> int:
        """Ask, and take the answer without a further copy of it; its bytes."""
        self._socket.sendall(line)
        size = 0
        while True:
            if size == len(self._buffer):
                self._buffer.extend(bytes(size))
            view = memoryview(self._buffer)
            received = self._socket.recv_into(view[size:])
            view.release()
            if not received:
                raise ConnectionError("the connection was closed before the answer's end")
            size += received
            if self._buffer[size - 1] == 0x0A:
                return size

    def close(self) -> None:
        """Be gone."""
        self._socket.close()


def ask_for(path: str, seconds: float) -> dict[str, object]:
    """Ask again and again: microseconds of each answer, and how many services the last one tells of."""
    client = Client(path)
    answer = client.ask(LIST)
    microseconds: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        asked = time.monotonic_ns()
        client.size_of_answer(LIST)
        microseconds.append((time.monotonic_ns() - asked) / 1000)
    return {"us": microseconds, "n": answer.count(b'"name":'), "bytes": len(answer)}


class _Echo(asyncio.Protocol):
    """Answers each line with the same bytes."""

    answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)

    def data_received(self, data: bytes) -> None:
        for _line in range(data.count(b"\n")):
            self._transport.write(self.answer)  # type: ignore[attr-defined]


async def echo(path: str, size: int) -> None:
    """Serve until killed."""
    _Echo.answer = b"." * (size - 1) + b"\n"
    server = await asyncio.get_running_loop().create_unix_server(_Echo, path)
    os.write(1, b"listening\n")
    await server.serve_forever()


if __name__ == "__main__":
    what, where, how_much = sys.argv[1:]
    if what == "echo":
        asyncio.run(echo(where, int(how_much)))
    else:
        print(json.dumps(ask_for(where, float(how_much))))
