"""Clients that have shut down their sending side, and stop reading as well."""

from __future__ import annotations

import asyncio
import select
from typing import Protocol


class Client(Protocol):
    """A connection that can be given up."""

    def fileno(self) -> int:
        """The descriptor of its socket."""

    def abort(self) -> None:
        """Close at once."""


class Hangups:
    """Tells when a client whose sending has ended stops reading as well.

    asyncio cannot: at the end of input it stops looking, and looking on would report the end for ever.
    An epoll that asks for no event is told of hang-ups alone. Without epoll a stream ends at its next
    page, which cannot be written.
    """

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None
        self._watched: dict[int, Client] = {}

    def start(self) -> None:
        """Begin to look."""
        if hasattr(select, "epoll"):
            self._epoll = select.epoll()
            asyncio.get_running_loop().add_reader(self._epoll, self._on_hangup)

    def close(self) -> None:
        """Look no more."""
        if self._epoll is not None:
            asyncio.get_running_loop().remove_reader(self._epoll)
            self._epoll.close()
            self._epoll = None

    def watch(self, connection: Client) -> None:
        """Abort it as soon as it does not read either."""
        if self._epoll is not None:
            self._epoll.register(connection.fileno(), 0)
            self._watched[connection.fileno()] = connection

    def unwatch(self, fd: int) -> None:
        """It is gone."""
        if self._watched.pop(fd, None) is not None and self._epoll is not None:
            self._epoll.unregister(fd)

    def _on_hangup(self) -> None:
        assert self._epoll is not None
        for fd, _events in self._epoll.poll(0):
            connection = self._watched[fd]
            self.unwatch(fd)
            connection.abort()
