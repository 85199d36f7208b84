"""TLS for a check, over a bare socket: asked on that again as soon as it is readable or writable.

Imported only where an https: check is asked, as OpenSSL is half as large as all the rest of us; so asyncio, too,
is imported without it (`registry/__main__.py`).
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")


class Tls:
    """A connection over `client`, which it takes over. Every OSError that it raises has words for people."""

    def __init__(self, client: socket.socket, host: str) -> None:
        self._host = host
        self._client = client

    async def __aenter__(self) -> Self:
        """Shake hands with a peer that has a certificate for `host`."""
        try:
            self._client = secure = context().wrap_socket(
                self._client, server_hostname=self._host, do_handshake_on_connect=False
            )
            await _done(secure, secure.do_handshake)
        except BaseException:
            self._client.close()
            raise
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _at: TracebackType | None,
    ) -> None:
        """Go without waiting for the peer's goodbye."""
        self._client.close()

    async def send(self, data: bytes) -> None:
        """All of it."""
        while data:
            sent = await _done(self._client, functools.partial(self._client.send, data))
            data = data[sent:]

    async def receive(self, most: int) -> bytes:
        """What comes next; nothing at its end."""
        return await _done(self._client, functools.partial(self._client.recv, most))


@functools.cache
def context() -> ssl.SSLContext:
    """What every connection has in common."""
    return ssl.create_default_context()  # some 20 ms: once


async def _done(client: socket.socket, step: Callable[[], T]) -> T:
    """What `step` gives once the socket lets it. Raises OSError."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return step()
        except ssl.SSLWantReadError:
            await _told(client, loop.add_reader, loop.remove_reader)
        except ssl.SSLWantWriteError:
            await _told(client, loop.add_writer, loop.remove_writer)
        except ssl.SSLCertVerificationError as error:
            raise OSError(f"certificate refused: {error.verify_message.rstrip('.')}") from None
        except ssl.SSLEOFError:
            raise ConnectionResetError from None
        except ssl.SSLError as error:
            why = (error.reason or "protocol error").replace("_", " ").lower()
            raise OSError(f"TLS failed: {why}") from None


async def _told(
    client: socket.socket, add: Callable[..., object], remove: Callable[[socket.socket], object]
) -> None:
    is_ready = asyncio.Event()
    add(client, is_ready.set)
    try:
        await is_ready.wait()
    finally:
        remove(client)
