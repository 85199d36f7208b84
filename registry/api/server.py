"""The control socket: its connections, and what each of them may cost.

* A command that was taken is carried out, whether or not its client is still there; questions and streams end with it.
* Answers to requests with an id go out as they are ready, those to requests without one in order.
* What a client costs is bounded (`Limits`): it is not read from while too much of its is under way or
  unread, and it is closed when it takes nothing for `stall_s`. Nobody else notices.
* A client that shuts down its writing side gets every answer, and is closed after the last one.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import socket
import sys
import termios
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import msgspec

from registry.api.access import Access, Peer
from registry.api.actions import Action, ApiError, ErrorCode
from registry.api.hangups import Hangups
from registry.api.protocol import Answer, Dispatcher, Handler, Later, Pages, refusal
from registry.api.unix_socket import SocketError, SocketHeld, inode_of, listen, peer_of

__all__ = ["Limits", "Server", "SocketError", "SocketHeld"]

ACCEPT_RETRY_S = 0.5
"""Pause after an accept that failed for want of descriptors or memory."""

_ACCEPTS_PER_TURN = 64
_LINES_PER_TURN = 256
_FLUSH_SIZE = 64 * 1024
_SEND_BUFFER = 384 * 1024
"""Of a connection, in the kernel: it takes `list_services` of a thousand services at once, in half the time."""
_ACCEPT_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

_log = logging.getLogger(__name__)


class Limits(msgspec.Struct, frozen=True):
    """What one client may cost.

    Bytes: `line_max` a request, `unread_max` of answers waiting before no more requests are processed.
    `in_flight_max` counts requests under way (a stream is one, a batch one for each entry). Seconds:
    `stall_s` without a byte taken close a client that answers wait for (noticed within twice that),
    `close_s` are given to answers under way when the server closes.
    """

    line_max: int = 1024 * 1024
    in_flight_max: int = 64
    unread_max: int = 256 * 1024
    stall_s: float = 10.0
    close_s: float = 2.0


class Server:
    """A control socket at `path`, from `start` to `close`.

    `mode` and `group` are those of the socket file; `group` is a name or a number as text. `on_lost` is called
    when a client has gone.
    """

    def __init__(
        self,
        path: str,
        mode: int,
        group: str | None,
        actions: Mapping[str, Action],
        handlers: Mapping[str, Handler],
        access: Access,
        limits: Limits | None = None,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self.limits = limits or Limits()
        self.dispatcher = Dispatcher(actions, handlers, access)
        self._path = path
        self._mode = mode
        self._group = group
        self._listener: socket.socket | None = None
        self._inode: tuple[int, int] | None = None
        self._on_lost = on_lost
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._hangups = Hangups()
        self._retry: asyncio.TimerHandle | None = None
        self._emptied = asyncio.Event()

    def bind(self) -> None:
        """Have the socket; clients wait until `start`. Raises SocketHeld, or SocketError where it cannot be had."""
        self._listener, self._inode = listen(self._path, self._mode, self._group)

    def take_over(self, listener: int) -> None:
        """Have the listening socket that an earlier program of this process left open."""
        self._listener = socket.socket(fileno=listener)
        self._listener.set_inheritable(False)
        self._listener.setblocking(
            False
        )  # it cannot know that it is; its copies would be set to block
        self._inode = inode_of(self._path)

    @property
    def has_clients(self) -> bool:
        """Whether anybody is connected."""
        return bool(self._connections)

    def leave_open(self) -> int:
        """A copy of the listening socket for the next program of this process; the file stays."""
        assert self._listener is not None
        self._inode = None
        return self._listener.dup().detach()

    async def start(self) -> None:
        """Serve clients; binds where `bind` was not called before."""
        if self._listener is None:
            self.bind()
        self._hangups.start()
        self._accept_again()

    async def close(self) -> None:
        """Accept no more, give answers under way `close_s`, close every client, remove the file."""
        self._stop_listening()
        for connection in tuple(self._connections):
            connection.finish()
        if self._connections or self._tasks:
            await self._wait_until_empty()
        for task in tuple(self._tasks):
            task.cancel()
        for connection in tuple(self._connections):
            connection.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._hangups.close()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` in a task that the server keeps, and ends when it closes."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def opened(self, connection: _Connection) -> None:
        """Keep a connection that is made."""
        self._connections.add(connection)
        if self._listener is None:
            connection.finish()

    def lost(self, connection: _Connection) -> None:
        """Forget a connection that is gone."""
        self._connections.discard(connection)
        self._hangups.unwatch(connection.fileno())
        self._note_empty()
        self._on_lost()

    def half_closed(self, connection: _Connection) -> None:
        """Abort `connection`, which sends no more, as soon as it does not read either."""
        self._hangups.watch(connection)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._note_empty()

    def _note_empty(self) -> None:
        if not self._connections and not self._tasks:
            self._emptied.set()

    async def _wait_until_empty(self) -> None:
        self._emptied.clear()
        try:
            async with asyncio.timeout(self.limits.close_s):
                await self._emptied.wait()
        except TimeoutError:
            _log.info("closing the control socket with answers under way")

    def _accept_again(self) -> None:
        self._retry = None
        assert self._listener is not None
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        # Not asyncio's own accepting: at a shortage it would log once for every place of the backlog.
        assert self._listener is not None
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                client, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause_accepting(error)
                return
            self.spawn(self._connect(client))

    def _pause_accepting(self, error: OSError) -> None:
        if error.errno in _ACCEPT_SHORTAGES:
            _log.warning("cannot accept clients on %s just now: %s", self._path, error.strerror)
        else:
            _log.error("accepting on %s failed: %s", self._path, error)
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener)  # type: ignore[arg-type]
        self._retry = loop.call_later(ACCEPT_RETRY_S, self._accept_again)

    async def _connect(self, client: socket.socket) -> None:
        try:
            client.setblocking(False)
            peer = peer_of(client)
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: _Connection(self, peer), client
            )
        except OSError as error:
            _log.warning("a client of %s could not be served: %s", self._path, error)
            client.close()

    def _stop_listening(self) -> None:
        if self._listener is None:
            return
        asyncio.get_running_loop().remove_reader(self._listener)
        if self._retry is not None:
            self._retry.cancel()
        self._listener.close()
        self._listener = None
        if self._inode is not None and inode_of(self._path) == self._inode:
            os.unlink(self._path)


class _Slot:
    """The place of an ordered answer among those before and after it."""

    __slots__ = ("line",)

    def __init__(self, line: bytes | None = None) -> None:
        self.line = line


class _Connection(asyncio.Protocol):
    """One client: its unread requests, its answers under way, and what waits to be taken by it.

    Fields are few and small, because there may be thousands of clients that ask nothing.
    """

    __slots__ = (
        "_again",
        "_blocked",
        "_ended",
        "_finishing",
        "_held",
        "_in_flight",
        "_out",
        "_out_size",
        "_peer",
        "_questions",
        "_received",
        "_room",
        "_scanned",
        "_sent",
        "_server",
        "_slots",
        "_stall",
        "_streams",
        "_transport",
    )

    def __init__(self, server: Server, peer: Peer) -> None:
        self._server = server
        self._peer = peer
        self._transport: asyncio.Transport
        self._received = bytearray()
        self._scanned = 0  # of _received: has no newline before this
        self._ended = False  # nothing more will be received
        self._finishing = False  # streams end, and nothing new is begun
        self._again = False  # a further turn of _work is scheduled
        self._out: list[bytes] = []  # answers of this turn, sent together at its end
        self._out_size = 0
        self._sent = 0
        self._blocked = False  # more than unread_max waits in the transport
        self._room: asyncio.Event | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._in_flight = 0
        self._slots: list[_Slot] = []
        self._held = 0  # bytes in _slots
        self._streams: list[asyncio.Task[None]] = []
        self._questions: list[asyncio.Task[None]] = []

    # What the transport tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=self._server.limits.unread_max)
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self._server.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._received.clear()
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        self._end_streams()
        for question in self._questions:
            question.cancel()
        self._server.lost(self)

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        self._received += data
        self._work()

    def eof_received(self) -> bool:
        self._ended = True
        self._work()
        if not self._transport.is_closing():
            self._server.half_closed(self)
        return True

    def pause_writing(self) -> None:
        self._blocked = True
        self._watch_stall()

    def resume_writing(self) -> None:
        self._blocked = False
        if self._stall is not None and not self._transport.is_closing():
            self._stall.cancel()
            self._stall = None
        if self._room is not None:
            self._room.set()
        self._work()

    # What the server asks.

    def finish(self) -> None:
        """Take no more requests; close when those under way are answered. Streams end now."""
        self._take_no_more()
        self._end_streams()
        self._settle()

    def abort(self) -> None:
        """Close at once, whatever is under way."""
        self._transport.abort()

    def fileno(self) -> int:
        """The descriptor of its socket."""
        return cast(int, self._transport.get_extra_info("socket").fileno())

    # Requests.

    def _work(self) -> None:
        """Answer what has been received, as far as the limits and fairness to others allow."""
        for _ in range(_LINES_PER_TURN):
            line = None if self._is_full() else self._next_line()
            if line is None:
                break
            if len(line) > self._server.limits.line_max:
                self._refuse_long(line)
            elif line.strip():
                self._take(line)
            if self._out_size > _FLUSH_SIZE:
                self._flush()
        else:
            self._go_on_later()
        self._flush()
        self._settle()

    def _go_on_later(self) -> None:
        if not self._again:
            self._again = True
            asyncio.get_running_loop().call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._again = False
        self._work()

    def _is_full(self) -> bool:
        limits = self._server.limits
        return (
            self._blocked
            or self._in_flight >= limits.in_flight_max
            or len(self._slots) >= limits.in_flight_max
            or self._held > limits.unread_max
            or self._transport.is_closing()
        )

    def _next_line(self) -> bytearray | None:
        """The next request; what is longer than `line_max` comes cut, as soon as it is."""
        end = self._received.find(b"\n", self._scanned)
        if end < 0:
            self._scanned = end = len(self._received)
            if not end or (not self._ended and end <= self._server.limits.line_max):
                return None
        line = self._received[:end]
        del self._received[: end + 1]
        self._scanned = 0
        return line

    def _refuse_long(self, line: bytearray) -> None:
        line_max = self._server.limits.line_max
        error = ApiError(ErrorCode.TOO_LONG, f"a request may have {line_max} bytes, not more")
        self._answer(refusal(line, error))
        self._take_no_more()

    def _take_no_more(self) -> None:
        if not self._ended:
            self._ended = True
            self._transport.pause_reading()
        self._received.clear()
        self._scanned = 0

    def _take(self, line: bytearray) -> None:
        outcome = self._server.dispatcher.answer(line, self._peer)
        if isinstance(outcome, Answer):
            self._answer(outcome)
        elif outcome is not None:
            slot = _Slot() if outcome.ordered else None
            if slot is not None:
                self._slots.append(slot)
            self._in_flight += outcome.weight
            self._server.spawn(self._carry_out(outcome, slot))

    async def _carry_out(self, outcome: Later | Pages, slot: _Slot | None) -> None:
        try:
            result = await self._outcome(outcome) if isinstance(outcome, Later) else outcome
            if isinstance(result, Pages):
                await self._pump(result, slot)
            elif result is not None:
                self._deliver(result, slot)
        except asyncio.CancelledError:
            if not self._finishing:
                # Without its answer the client would wait for good.
                self._transport.abort()
            raise
        except Exception:
            _log.exception("an answer failed")
            self._transport.abort()
        finally:
            if slot is not None and slot.line is None:
                self._deliver(b"", slot)
            self._in_flight -= outcome.weight
            self._work()

    async def _outcome(self, later: Later) -> bytes | Pages | None:
        if not later.is_question:
            return await later.outcome
        with _listed(self._questions):
            return await later.outcome

    async def _pump(self, pages: Pages, slot: _Slot | None) -> None:
        """Send page after page, each pulled only when nothing much waits to be taken."""
        try:
            with _listed(self._streams):
                while not (self._finishing or self._transport.is_closing()):
                    await self._has_room()
                    line = await anext(pages.lines, None)
                    if line is None:
                        break
                    self._deliver(line, slot)
                    slot = None
        finally:
            await pages.close()

    async def _has_room(self) -> None:
        while self._blocked:
            self._room = self._room or asyncio.Event()
            self._room.clear()
            await self._room.wait()

    def _end_streams(self) -> None:
        self._finishing = True
        for stream in self._streams:
            stream.cancel()

    # Answers.

    def _answer(self, answer: Answer) -> None:
        """Send with the others of this turn, or line up behind answers that have to go first."""
        if answer.ordered and self._slots:
            self._slots.append(_Slot(answer.line))
            self._held += len(answer.line)
        else:
            self._out.append(answer.line)
            self._out_size += len(answer.line)

    def _deliver(self, line: bytes, slot: _Slot | None) -> None:
        """Send an answer that had to be waited for, and those that waited for it."""
        if slot is None:
            self._out.append(line)
        else:
            slot.line = line
            self._held += len(line)
            while self._slots and self._slots[0].line is not None:
                ready = cast(bytes, self._slots.pop(0).line)
                self._held -= len(ready)
                self._out.append(ready)
        self._flush()

    def _flush(self) -> None:
        if not self._out:
            return
        data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        self._out_size = 0
        if not self._transport.is_closing():
            self._sent += len(data)
            self._transport.write(data)

    def _settle(self) -> None:
        """Read on, or not, or close, as what is under way demands."""
        if self._transport.is_closing():
            return
        if not self._ended:
            if self._again or self._is_full():
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()
        elif not (self._received or self._in_flight or self._slots):
            self._transport.close()
            if self._transport.get_write_buffer_size():
                self._watch_stall()

    def _taken(self) -> int:
        """A number that changes with every byte that the client takes."""
        return self._sent - self._transport.get_write_buffer_size() - _unread(self.fileno())

    def _watch_stall(self) -> None:
        if self._stall is None:
            self._stall = asyncio.get_running_loop().call_later(
                self._server.limits.stall_s, self._check_stall, self._taken()
            )

    def _check_stall(self, taken_before: int) -> None:
        self._stall = None
        if self._taken() != taken_before:
            self._watch_stall()
            return
        _log.warning(
            "closed client %s (%s): it read nothing for %g s while %d bytes waited for it",
            self._peer.pid,
            self._peer.program,
            self._server.limits.stall_s,
            self._transport.get_write_buffer_size(),
        )
        self._transport.abort()


@contextmanager
def _listed(tasks: list[asyncio.Task[None]]) -> Iterator[None]:
    """The present task is one of `tasks` within this.

    No frame names it: a task keeps the exception that cancelled it, which keeps the frames that it passed. In a ring
    all that a client had would stay until the garbage is collected, which is seldom.
    """
    tasks.append(cast("asyncio.Task[None]", asyncio.current_task()))
    try:
        yield
    finally:
        tasks.remove(cast("asyncio.Task[None]", asyncio.current_task()))


def _unread(descriptor: int) -> int:
    """What the kernel holds for a reader (unix(7): SIOCOUTQ), with what it needs for that itself; 0 if it does not say.

    A socket is writable again only when three quarters of that are taken.
    """
    try:
        return int.from_bytes(fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except OSError:
        return 0
