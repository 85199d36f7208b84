"""Notes: what services said on their notification sockets while no daemon listened. Bounded, in order.

A note is bytes, who sent them and when. Nothing is understood but what keeping needs: a heartbeat
makes the same sender's earlier one worthless, some notes are dropped before others, and the
descriptor of a barrier is closed once everything before it is stored, as its sender waits for that.
Standard library only: the keeper, which imports this, must stay small.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable

from registry.passed import CLOEXEC, SCM_MAX_FD, close_all, descriptors, space

NOTES_MAX = 64
"""Notes of one service at most."""

STORED_MAX = 64
"""Descriptors in the notes of one service at most; a message of the protocol takes as many."""

TEXT_MAX = 4096
"""Bytes of one message at most, as with systemd (NOTIFY_BUFFER_MAX); a longer one is no message."""

BURST_MAX = 64
"""Messages that are taken at one wake-up: a service that never stops talking holds up no other."""

_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
_KIND = getattr(socket, "SCM_CREDENTIALS", None)
_SPACE = socket.CMSG_SPACE(_CREDENTIALS.size) + space(SCM_MAX_FD)
_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_BEAT = b"WATCHDOG=1"
_BARRIER = b"BARRIER=1"
_WEIGHTY = (b"READY=", b"MAINPID=", b"STOPPING=", b"FDSTORE")


class Note:
    """One message of a service. `session` is 0 where its sender was gone when it was read."""

    __slots__ = ("at_ns", "fds", "pid", "service", "session", "text", "uid")

    def __init__(self, service: str, text: bytes, pid: int, uid: int, fds: list[int]) -> None:
        self.service = service
        self.text = text
        self.pid = pid
        self.uid = uid
        self.session = _session_of(pid)
        self.fds = fds
        self.at_ns = 0

    @property
    def is_beat(self) -> bool:
        """Whether it is a heartbeat and nothing else."""
        return not self.fds and self.text.strip() == _BEAT

    @property
    def is_weighty(self) -> bool:
        """Whether it changes more than a line of status: dropped only when nothing else is left."""
        return bool(self.fds) or any(line.startswith(_WEIGHTY) for line in self.text.split(b"\n"))


class Notes:
    """All notes that no daemon has committed yet. `say` hears of what could not be stored."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._notes: dict[str, list[Note]] = {}
        self._latest_ns = 0

    def in_order(self) -> list[Note]:
        """Those of all services, as they came."""
        return sorted((n for notes in self._notes.values() for n in notes), key=lambda n: n.at_ns)

    def has(self, note: Note) -> bool:
        """Whether it is still stored, and its descriptors open."""
        return note in self._notes.get(note.service, ())

    def read(self, service: str, fd: int) -> None:
        """Store what waits in the notification socket `fd`. Raises OSError where it is none."""
        sock = socket.socket(fileno=fd)
        try:
            for _ in range(BURST_MAX):
                self._receive(service, sock)
        except BlockingIOError:
            return
        finally:
            sock.detach()

    def forget(self, service: str) -> None:
        """The service has no notification socket any more: nobody wants to know what it said."""
        for note in self._notes.pop(service, []):
            close_all(note.fds)

    def forget_until(self, at_ns: int) -> None:
        """Those up to this moment are committed."""
        for service, notes in list(self._notes.items()):
            left = [note for note in notes if note.at_ns > at_ns]
            close_all(fd for note in notes if note.at_ns <= at_ns for fd in note.fds)
            if left:
                self._notes[service] = left
            else:
                del self._notes[service]

    def _receive(self, service: str, sock: socket.socket) -> None:
        text, ancillary, flags, _ = sock.recvmsg(TEXT_MAX, _SPACE, CLOEXEC | socket.MSG_DONTWAIT)
        fds = descriptors(ancillary)
        sender = _sender(ancillary)
        if sender is None:
            close_all(fds)
            raise OSError("it does not say who sends")
        if flags & socket.MSG_TRUNC:
            close_all(fds)
            self._say(f"ignored a notification of {service} with more than {TEXT_MAX} bytes")
            return
        self._add(Note(service, text, *sender, fds))

    def _add(self, note: Note) -> None:
        self._latest_ns = max(time.clock_gettime_ns(_BOOTTIME), self._latest_ns + 1)
        note.at_ns = self._latest_ns
        notes = self._notes.setdefault(note.service, [])
        if note.is_beat:
            notes[:] = [other for other in notes if other.pid != note.pid or not other.is_beat]
        notes.append(note)
        self._limit_fds(note, notes)
        if len(notes) > NOTES_MAX:
            self._drop_one(notes)

    def _limit_fds(self, note: Note, notes: list[Note]) -> None:
        if _BARRIER in note.text.split(b"\n"):
            close_all(note.fds)
            note.fds = []
        room = STORED_MAX - sum(len(other.fds) for other in notes if other is not note)
        if len(note.fds) > room:
            self._say(f"{note.service} sent more than {STORED_MAX} descriptors: closed the rest")
            close_all(note.fds[room:])
            note.fds = note.fds[:room]

    def _drop_one(self, notes: list[Note]) -> None:
        victim = next((note for note in notes if not note.is_weighty), notes[0])
        if victim.is_weighty:
            self._say(f"dropped a notification of {victim.service}: {NOTES_MAX} later ones wait")
        close_all(victim.fds)
        notes.remove(victim)


def _sender(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, int] | None:
    """The pid and uid that the kernel vouches for; None where it tells nothing."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, _KIND) and len(data) == _CREDENTIALS.size:
            pid, uid, _ = _CREDENTIALS.unpack(data)
            return pid, uid
    return None


def _session_of(pid: int) -> int:
    if pid <= 0:  # of another pid namespace: for getsid 0 would be ourselves
        return 0
    try:
        return os.getsid(pid)
    except OSError:
        return 0
