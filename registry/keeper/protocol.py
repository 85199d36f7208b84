"""What daemon and keeper say to each other: one JSON object a line, descriptors beside it.

Every message is sent by one sendmsg together with its descriptors, perhaps with others and theirs, and says
how many ("fds"). The protocol only grows: unknown messages and unknown keys are ignored. Both sides are of one user:
the socket's mode is 0600, and the peer's uid, told by the kernel, must be ours or root's.

daemon to keeper: hello {version}, keep {service, run, output, pidfd, log}, release {service, run},
heard {service, run}, watch {service}, unwatch {service}, hold {service, slot, meta} with one
descriptor, drop {service, slot}, noted {at_mono_ns}, leave {keep}.
keeper to daemon: hello {version, pid}, kept {service, run, output, pidfd, log}, held {service, slot,
meta} with one descriptor, note {service, pid, uid, session, at_mono_ns, text} with those that came
with it, kept_all, grew {service}, output_ended {service, run, dropped}, replaced.
"output" and "pidfd" are true where that descriptor comes along, in this order. "log" is null or
{path, size_max, files_max}. The keeper answers a hello with its hello, each kept, each held, each
note, kept_all, and an output_ended for each output that ended and of which no daemon has said that it
heard. "leave" is the last word of a daemon that ends orderly: it wants to be told nothing more, and
what is held for its services is needed no more, unless "keep" is true: then they live on.

A slot is a name within a service: "notify" is its notification socket (AF_UNIX, SOCK_DGRAM, with
SO_PASSCRED), "listen:NAME" a listening socket, "stored:N" what the service has stored; "meta" is free
text of the daemon's. Another hold of the same slot replaces the first. While no daemon is connected
the keeper reads the notification sockets: each message is a note. "session" is the sender's, looked
up when the message was read, 0 where the sender was gone; "at_mono_ns" is CLOCK_BOOTTIME at that
moment, different for every note and rising over all services; "text" has one character a byte
(latin-1). Notes are sent to each daemon that connects, in order, until one says by "noted" that those
up to this moment are committed.

Version 1 has neither slots nor notes: nothing of them is sent to it.
Standard library only: the keeper, which imports this, must stay small.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable, Iterable, Sequence

from registry.passed import CLOEXEC, close_all, descriptors, space

VERSION = 2

SLOTS_VERSION = 2
"""The first version that has slots and notes."""

NOTIFY = "notify"
"""The slot of a service's notification socket."""

META_MAX = 1024
"""Characters of a slot's `meta` at most."""

RUN_MAX = 2**63 - 1
"""The highest number of a run."""

LINE_MAX = 1 << 16
"""Bytes of one message at most."""

FDS_MAX = 64
"""Descriptors that come with one message at most; version 1 sends two and takes 32."""

TOGETHER_FDS_MAX, TOGETHER_BYTES_MAX = 32, 1 << 14
"""Of several messages that are sent at once: version 1 takes so many, and so much the kernel never splits."""

Message = dict[str, object]
Key = tuple[str, int]
"""A service's name and the number of its run."""
SlotKey = tuple[str, str]
"""A service's name and one of its slots."""


class Channel:
    """One end of a connection. Never blocks; `say` hears of what was wrong with a message."""

    def __init__(self, sock: socket.socket, say: Callable[[str], None]) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._say = say
        self._received = b""
        self._fds: list[int] = []
        self._unsent = b""

    def fileno(self) -> int:
        """The socket's descriptor, for whoever waits for it."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the connection and every descriptor that no message claimed."""
        self._close_unclaimed()
        self._sock.close()

    def flush(self) -> bool:
        """Send what is left of the last message; True when nothing is left."""
        try:
            while self._unsent:
                self._unsent = self._unsent[self._sock.send(self._unsent) :]
        except BlockingIOError:
            return False
        return True

    def send(self, message: Message, fds: Sequence[int] = ()) -> bool:
        """Take `message` for sending; False: not now, offer it again when writable."""
        return self.send_some([(message, fds)]) > 0

    def send_some(self, messages: Iterable[tuple[Message, Sequence[int]]]) -> int:
        """Take the first of `messages` for sending, as many as go at once, for which the other side wakes once; how
        many those are. Empty ones are none.
        """
        if not self.flush():
            return 0
        taken, lines, passed = 0, b"", list[int]()
        for message, fds in messages:
            line = _line(message, len(fds)) if message else b""
            if len(lines) + len(line) > TOGETHER_BYTES_MAX and lines:
                break
            if len(passed) + len(fds) > TOGETHER_FDS_MAX and passed:
                break
            taken, lines, passed = taken + 1, lines + line, [*passed, *fds]
        try:
            sock = self._sock
            sent = socket.send_fds(sock, [lines], passed) if passed else sock.send(lines)
        except BlockingIOError:
            return 0
        self._unsent = lines[sent:]
        return taken

    def receive(self) -> list[tuple[Message, list[int]]]:
        """The messages that have arrived whole; their descriptors are the caller's to close.

        Raises ConnectionError when the connection is over or can no longer be understood.
        """
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(LINE_MAX, space(FDS_MAX), CLOEXEC)
        except BlockingIOError:
            return []
        self._fds += descriptors(ancillary)
        if flags & socket.MSG_CTRUNC:
            raise ConnectionError("descriptors were lost on the way: too many open files")
        if not data:
            raise ConnectionError("the other side closed the connection")
        return self._split(data)

    def _split(self, data: bytes) -> list[tuple[Message, list[int]]]:
        *lines, self._received = (self._received + data).split(b"\n")
        if len(self._received) > LINE_MAX:
            raise ConnectionError(f"a message is longer than {LINE_MAX} bytes")
        messages = [parsed for line in lines if (parsed := self._parse(line)) is not None]
        if (
            not self._received and len(data) < LINE_MAX
        ):  # else more of those sent together may follow
            self._close_unclaimed()
        return messages

    def _parse(self, line: bytes) -> tuple[Message, list[int]] | None:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            self._say(f"ignored what is no message: {line[:80]!r}")
            return None
        count = message.get("fds")
        if not isinstance(count, int) or not 0 <= count <= len(self._fds):
            self._say(f"ignored a message without its descriptors: {line[:80]!r}")
            return None
        fds, self._fds = self._fds[:count], self._fds[count:]
        return message, fds

    def _close_unclaimed(self) -> None:
        close_all(self._fds)
        self._fds = []


def _line(message: Message, fds: int) -> bytes:
    return json.dumps({**message, "fds": fds}).encode() + b"\n"


def key_of(message: Message) -> Key | None:
    """The run that `message` is about; None where it does not name one."""
    service, run = message.get("service"), message.get("run")
    if not isinstance(service, str) or type(run) is not int or not 0 <= run <= RUN_MAX:
        return None
    return service, run


def slot_of(message: Message) -> SlotKey | None:
    """The slot that `message` is about; None where it does not name one."""
    service, slot = message.get("service"), message.get("slot")
    if not isinstance(service, str) or not isinstance(slot, str):
        return None
    return service, slot


def claim(message: Message, fds: list[int]) -> tuple[int | None, int | None]:
    """The output and the pidfd out of what came with `message`; every other is closed."""
    rest = list(fds)
    output = rest.pop(0) if message.get("output") is True and rest else None
    pidfd = rest.pop(0) if message.get("pidfd") is True and rest else None
    close_all(rest)
    return output, pidfd


def listen(path: str) -> socket.socket:
    """A listening socket at `path`, mode 0600, in place of whatever is there."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Bound under another name first, so that nobody sees it at `path` before its mode is set.
        fresh = f"{path}~"
        if os.path.lexists(fresh):
            os.unlink(fresh)
        listener.bind(fresh)
        os.chmod(fresh, 0o600)
        listener.listen(8)
        os.rename(fresh, path)
    except OSError:
        listener.close()
        raise
    return listener


def is_trusted(uid: int) -> bool:
    """Whether a peer of this uid may speak to us: ourselves and root."""
    return uid in (0, os.geteuid())


def peer_uid(sock: socket.socket) -> int:
    """The uid at the other end; where the kernel cannot tell, the socket's mode is the only guard."""
    if not hasattr(socket, "SO_PEERCRED"):
        return os.geteuid()
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
    return int(struct.unpack("iII", credentials)[1])
