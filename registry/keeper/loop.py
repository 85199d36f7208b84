"""The keeper's loop: outputs into log files, descriptors kept until a daemon asks for them.

Nothing but bytes and descriptors is kept, and nothing is decided: what a run or a service is, only
the daemon knows. No trouble with one service reaches another, and none ends the keeper. It ends
when no daemon is connected, every output has ended, no pidfd is left, and either no slot is held or
the last daemon has left for good: then nothing needs it. Nor does anything but outputs need it once its
socket is gone from the file system, as no daemon can ask it any more.

An output has ended when no process holds its FIFO open for writing. A FIFO that nobody has opened
for writing yet looks the same to a read, so the daemon holds it open read-write until after the
spawn, and nothing is read before the kernel reports it readable or hung up. That it has ended is told
to each daemon that connects, until one says that it has taken note ("heard").

Rotated files are compressed by a process of their own, one at a time.
"""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections.abc import Callable
from functools import partial

from registry.keeper.protocol import (
    SLOTS_VERSION,
    VERSION,
    Channel,
    Key,
    Message,
    claim,
    is_trusted,
    key_of,
    peer_uid,
    slot_of,
)
from registry.keeper.slots import Composed, Slots
from registry.logs.compress import Compression, waiting
from registry.logs.files import CHUNK, TURN_MAX, LockedError, LogFile
from registry.passed import close_all

FIRST_CLIENT_S = 5.0
"""How long a new keeper waits for whoever started it."""

REACH_S = 10.0
"""Between two looks, while no daemon is connected, at whether one can still come."""

LOCK_RETRY_S = 0.05
"""Between two looks at a log file that a dying keeper still holds; LogFile bounds their number."""

RATE_MAX = 16 << 20
"""Bytes a second of one output, once as much as its log holds went faster. Who writes more waits, nothing is dropped:
else he and we, who move it, take two processors from everybody else.
"""

HEAR_OUT_MAX = 16
"""How often is read what a client that is to be left has still said."""


class Pace:
    """How fast one output may go: a token bucket."""

    __slots__ = ("_at_s", "_used")

    def __init__(self) -> None:
        self._used = 0.0
        self._at_s = time.monotonic()

    def wait_s(self, moved: int, burst: int) -> float:
        """How long the output is to wait after so many bytes more, of which `burst` may come at once."""
        now_s = time.monotonic()
        before = min(self._used, burst + TURN_MAX)  # a log that holds less than before is no debt
        self._used = max(0.0, before - (now_s - self._at_s) * RATE_MAX) + moved
        self._at_s = now_s
        return max(0.0, (self._used - burst) / RATE_MAX)


class Entry:
    """What is kept of one run. `is_unheard`: its output has ended and no daemon has taken note yet."""

    __slots__ = ("dropped", "is_unheard", "log", "output", "pace", "pidfd", "spec")

    def __init__(self) -> None:
        self.pace = Pace()
        self.output: int | None = None
        self.pidfd: int | None = None
        self.log: LogFile | None = None
        self.spec: Message | None = None
        self.dropped = 0
        self.is_unheard = False

    def fds(self) -> list[int]:
        """The descriptors held, in the order in which they are sent."""
        return [fd for fd in (self.output, self.pidfd) if fd is not None]


class Loop:
    """The keeper, served on `listener`, which a daemon can come to while `is_reachable`; `say` writes its log."""

    def __init__(
        self,
        listener: socket.socket,
        say: Callable[[str], None],
        *,
        is_reachable: Callable[[], bool] = lambda: True,
        splice: bool = True,
    ) -> None:
        self._say = say
        self._is_reachable = is_reachable
        self._splice = splice
        self._listener = listener
        self._spare = os.open(os.devnull, os.O_RDONLY)
        self._selector = selectors.DefaultSelector()
        self._entries: dict[Key, Entry] = {}
        self._logs: dict[str, LogFile] = {}
        self._troubles: dict[str, str] = {}
        self._paused: dict[Key, float] = {}
        """Outputs that nobody listens to just now, and when that is over."""
        self._client: Channel | None = None
        self._slots = Slots(self._selector, say)
        self._outbox: list[Callable[[], Composed]] = []
        self._watched: set[str] = set()
        self._grown: dict[str, None] = {}
        self._has_left = True
        self._to_compress: dict[str, None] = {}
        self._compression: Compression | None = None

    @property
    def is_keeping(self) -> bool:
        """Whether something would be lost if the keeper ended now.

        To a daemon that has left for good, an output that ended is of no interest, nor is what is
        held for its services; to one that died, or whose services live on, both are.
        """
        if any(entry.output is not None for entry in self._entries.values()):
            return True
        if not self._is_reachable():
            return False
        if any(entry.pidfd is not None for entry in self._entries.values()):
            return True
        is_missed = any(entry.is_unheard for entry in self._entries.values()) or bool(self._slots)
        return is_missed and not self._has_left

    def run(self) -> None:
        """Serve until nothing needs it."""
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._turn(FIRST_CLIENT_S)
        while self._client is not None or self.is_keeping or self._compression is not None:
            self._turn(self._wait_s())

    def _wait_s(self) -> float | None:
        until_s = [due_s - time.monotonic() for due_s in self._paused.values()]
        if self._client is None:
            until_s.append(REACH_S)
        return max(0.0, min(until_s)) if until_s else None

    def close(self) -> None:
        """Give back what it opened itself; what it keeps is for the end of the process to close."""
        self._selector.close()
        self._listener.close()
        os.close(self._spare)

    def _turn(self, timeout_s: float | None) -> None:
        for ready, _ in self._selector.select(timeout_s):
            ready.data()
        if self._paused:
            self._resume_due()
        self._compress_next()
        self._tell()

    # The client

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                self._say(f"cannot accept a client: {error.strerror}")
                self._turn_away()
                return
            if is_trusted(uid := peer_uid(sock)):
                self._serve(Channel(sock, self._say))
            else:
                self._say(f"refused a client with uid {uid}")
                sock.close()

    def _turn_away(self) -> None:
        """Out of descriptors: take the client on the spare one and close it, or it stays readable."""
        os.close(self._spare)
        try:
            self._listener.accept()[0].close()
        except OSError as error:
            self._say(f"cannot turn a client away: {error.strerror}")
        finally:
            self._spare = os.open(os.devnull, os.O_RDONLY)

    def _serve(self, client: Channel) -> None:
        if self._client is not None:
            self._hear_out(self._client)
        if self._client is not None:
            self._dismiss(self._client)
        self._client = client
        self._slots.read(False)
        self._has_left = False
        self._selector.register(client, selectors.EVENT_READ, partial(self._hear, client))

    def _dismiss(self, client: Channel) -> None:
        try:
            client.send({"type": "replaced"})
        except OSError as error:
            self._say(f"the replaced client was gone already: {error}")
        self._lose_client()

    def _lose_client(self) -> None:
        if self._client is not None:
            self._selector.unregister(self._client)
            self._client.close()
        self._client = None
        self._slots.read(True)
        self._outbox.clear()
        self._watched.clear()
        self._grown.clear()

    def _hear(self, client: Channel) -> None:
        if client is not self._client:
            return
        try:
            messages = client.receive()
        except OSError as error:
            self._say(f"client gone: {error}")
            self._lose_client()
            return
        for message, fds in messages:
            self._obey(message, fds)

    def _hear_out(self, client: Channel) -> None:
        """What it said last counts, though it takes nothing any more."""
        for _ in range(HEAR_OUT_MAX):
            self._hear(client)

    def _obey(self, message: Message, fds: list[int]) -> None:
        key, slot = key_of(message), slot_of(message)
        match message["type"]:
            case "keep" if key is not None:
                self._keep(key, message, fds)
                return
            case "hold" if slot is not None:
                self._slots.hold(slot, str(message.get("meta", "")), fds)
                return
            case "drop" if slot is not None:
                self._slots.drop(slot)
            case "noted" if isinstance(at_ns := message.get("at_mono_ns"), int):
                self._slots.noted(at_ns)
            case "release" if key is not None:
                self._release(key)
            case "heard" if key is not None:
                self._heard(key)
            case "leave":
                self._has_left = message.get("keep") is not True
            case "watch":
                # Said to have grown at once: it may have, before this message was read.
                self._watched.add(service := str(message.get("service")))
                self._grown[service] = None
            case "unwatch":
                self._watched.discard(str(message.get("service")))
            case "hello":
                self._greet(message.get("version"))
            case other:
                self._say(f"ignored a message of type {str(other)[:40]!r}")
        close_all(fds)

    def _greet(self, version: object) -> None:
        knows_slots = isinstance(version, int) and version >= SLOTS_VERSION
        ended = [key for key, entry in self._entries.items() if entry.is_unheard]
        self._outbox = [
            _hello,
            *(partial(self._compose, "kept", key) for key in self._entries),
            *(self._slots.composers() if knows_slots else ()),
            _kept_all,
            *(partial(self._compose, "output_ended", key) for key in ended),
        ]
        self._slots.read(not knows_slots)  # who does not know of them does not read them either

    def _tell(self) -> None:
        client = self._client
        if client is None:
            return
        try:
            is_sent = self._send_outbox(client) and self._send_grown(client) and client.flush()
        except OSError as error:
            self._say(f"client gone: {error}")
            self._hear_out(client)
            self._lose_client()
            return
        wanted = selectors.EVENT_READ if is_sent else selectors.EVENT_READ | selectors.EVENT_WRITE
        if self._selector.get_key(client).events != wanted:
            self._selector.modify(client, wanted, partial(self._hear, client))

    def _send_outbox(self, client: Channel) -> bool:
        sent = 0
        for compose in self._outbox:
            message, fds = compose()
            if message and not client.send(message, fds):
                break
            sent += 1
        del self._outbox[:sent]
        return not self._outbox

    def _send_grown(self, client: Channel) -> bool:
        for service in list(self._grown):
            if not client.send({"type": "grew", "service": service}):
                return False
            del self._grown[service]
        return True

    def _compose(self, kind: str, key: Key) -> Composed:
        """The message as things are now, as it may have waited for a slow client; or nothing."""
        entry = self._entries.get(key)
        if entry is None:
            return {}, []
        message: Message = {"type": kind, "service": key[0], "run": key[1]}
        if kind == "output_ended":
            return {**message, "dropped": entry.dropped}, []
        message["output"] = entry.output is not None
        message["pidfd"] = entry.pidfd is not None
        message["log"] = entry.spec
        return message, entry.fds()

    # What is kept

    def _keep(self, key: Key, message: Message, fds: list[int]) -> None:
        output, pidfd = claim(message, fds)
        entry = self._entries.setdefault(key, Entry())
        if pidfd is not None:
            if entry.pidfd is not None:
                os.close(entry.pidfd)
            entry.pidfd = pidfd
        if output is not None:
            self._close_output(key, entry)
            os.set_blocking(output, False)
            entry.log = self._log_for(key, message.get("log"))
            entry.spec = _spec(entry.log)
            entry.output = output
            self._listen_to(key, output)
        self._forget_if_done(key)

    def _listen_to(self, key: Key, output: int) -> None:
        try:
            self._selector.register(output, selectors.EVENT_READ, partial(self._move, key))
        except (OSError, ValueError) as error:
            self._say(f"cannot read the output of {key[0]}: {error}")
            self._end_output(key)

    def _log_for(self, key: Key, spec: object) -> LogFile | None:
        """The log file asked for, shared by runs that write to one; None: output is thrown away."""
        if spec is None:
            return None
        match spec:
            case {"path": str(path), "size_max": int(size_max), "files_max": int(files_max)} if (
                _is_usable(path) and size_max > 0 and files_max > 0
            ):
                log = self._logs.get(path)
                if log is None:
                    log = self._logs[path] = LogFile(path, size_max, files_max, splice=self._splice)
                log.size_max, log.files_max = size_max, files_max
                return log
        self._say(f"no usable log target for {key[0]}, its output is thrown away: {spec!r:.200}")
        return None

    def _release(self, key: Key) -> None:
        entry = self._entries.get(key)
        if entry is not None and entry.pidfd is not None:
            os.close(entry.pidfd)
            entry.pidfd = None
            self._forget_if_done(key)

    def _heard(self, key: Key) -> None:
        entry = self._entries.get(key)
        if entry is not None:
            entry.is_unheard = False
            self._forget_if_done(key)

    def _forget_if_done(self, key: Key) -> None:
        entry = self._entries[key]
        if not entry.fds() and not entry.is_unheard:
            del self._entries[key]

    # Output

    def _move(self, key: Key) -> None:
        entry = self._entries.get(key)
        if entry is None or entry.output is None:
            return
        try:
            taken = self._take(entry, entry.output, key[1])
        except BlockingIOError:
            return
        except LockedError:
            self._pause(key, entry.output, LOCK_RETRY_S)
            return
        except OSError as error:
            self._say(f"cannot read the output of {key[0]}: {error.strerror}")
            taken = 0
        if taken == 0:
            self._end_output(key)
            return
        if key[0] in self._watched:
            self._grown[key[0]] = None
        holds = entry.log.size_max * entry.log.files_max if entry.log is not None else 0
        if wait_s := entry.pace.wait_s(taken, holds):
            self._pause(key, entry.output, wait_s)

    def _take(self, entry: Entry, output: int, run: int) -> int:
        log = entry.log
        if log is None:
            return len(os.read(output, CHUNK))
        dropped_before = log.dropped
        try:
            return log.move(output, run)
        finally:
            entry.dropped += log.dropped - dropped_before
            self._say_trouble(log)
            if log.has_older:
                log.has_older = False
                self._to_compress[log.path] = None

    def _say_trouble(self, log: LogFile) -> None:
        if log.trouble != self._troubles.get(log.path, ""):
            self._say(
                log.trouble or f"{log.path} can be written again, {log.dropped} bytes were lost"
            )
            self._troubles[log.path] = log.trouble

    def _pause(self, key: Key, output: int, wait_s: float) -> None:
        self._paused[key] = time.monotonic() + wait_s
        self._selector.unregister(output)

    def _resume_due(self) -> None:
        now_s = time.monotonic()
        for key in [key for key, due_s in self._paused.items() if due_s <= now_s]:
            output = self._entries[key].output
            assert output is not None  # else nothing would be paused
            try:
                self._selector.register(output, selectors.EVENT_READ, partial(self._move, key))
            except OSError:  # the kernel is short of something just now
                self._paused[key] = now_s + LOCK_RETRY_S
            else:
                del self._paused[key]

    def _end_output(self, key: Key) -> None:
        entry = self._entries[key]
        self._close_output(key, entry)
        entry.is_unheard = True
        if self._client is not None:
            self._outbox.append(partial(self._compose, "output_ended", key))

    def _close_output(self, key: Key, entry: Entry) -> None:
        if entry.output is None:
            return
        self._paused.pop(key, None)
        if entry.output in self._selector.get_map():
            self._selector.unregister(entry.output)
        os.close(entry.output)
        log, entry.output, entry.log = entry.log, None, None
        if log is not None and all(other.log is not log for other in self._entries.values()):
            log.close()
            del self._logs[log.path]
            self._troubles.pop(log.path, None)

    # Compression

    def _compress_next(self) -> None:
        """Begin with the oldest file of the next log that has one to compress, unless one is under way."""
        while self._compression is None and self._to_compress:
            path = next(iter(self._to_compress))
            del self._to_compress[path]
            try:
                source = waiting(path)
                if source is None:
                    continue
                begun = Compression(path, source)
                self._selector.register(begun, selectors.EVENT_READ, self._end_compression)
            except OSError as error:
                self._put_off(path, str(error))
                continue
            self._compression = begun
            self._to_compress[path] = None  # for its next file, when the other logs had their turn

    def _end_compression(self) -> None:
        ended, self._compression = self._compression, None
        if ended is None:
            return
        self._selector.unregister(ended)
        if not ended.finish():
            self._put_off(ended.path, "is the disk full?")

    def _put_off(self, path: str, why: str) -> None:
        """Leave the log's files as they are until the next rotation."""
        self._to_compress.pop(path, None)
        self._say(f"could not compress a rotated file of {path}: {why}")


def _hello() -> Composed:
    return {"type": "hello", "version": VERSION, "pid": os.getpid()}, []


def _kept_all() -> Composed:
    return {"type": "kept_all"}, []


def _is_usable(path: str) -> bool:
    try:
        return os.path.isabs(path) and b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


def _spec(log: LogFile | None) -> Message | None:
    if log is None:
        return None
    return {"path": log.path, "size_max": log.size_max, "files_max": log.files_max}
