"""The notification sockets of services: what they say by sd_notify(3), from whom, and until when it counts.

* A datagram is taken off its socket only once `done()` is called for it, after what follows from it is
  committed: killed before, the next daemon reads it again. So it may arrive twice, and is never lost.
* One datagram a socket is out at a time, but where its sender has ended; they are taken off in the order in
  which they were sent. A service that says much waits for itself only.
* Whose it is, the kernel says (SCM_CREDENTIALS), nothing else; a stranger's is taken off and ignored.
* The keeper has a copy of each socket and reads it while no daemon is there; what it read comes by `deliver`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import pwd
import re
import socket
import stat
import struct
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from registry.core.digest import blake2b
from registry.passed import CLOEXEC, SCM_MAX_FD, descriptors, space

NOTICE_MAX = 4096
"""Bytes of a datagram that are understood (systemd's NOTIFY_BUFFER_MAX); a longer one is ignored."""
STATUS_MAX = 256
"""Characters of a STATUS that are kept."""
AT_ONCE_MAX = 64
"""Datagrams of one service that are read before others have their turn."""
SAID_MAX = 16
"""Complaints about one service's datagrams that the log takes: who sends them could fill it."""

KEPT_AS = "notify"
"""The name under which the keeper holds a service's notification socket."""
STORED = "stored"
"""The name of a stored descriptor that was given none, or no valid one: sd_pid_notify_with_fds(3)."""

_SO_PEEK_OFF = 42  # asm-generic/socket.h; socket(7)
_PATH_MAX = 107  # sun_path is 108 bytes with its NUL, unix(7)
_CREDENTIALS = struct.Struct("=iII")  # struct ucred of unix(7): pid, uid, gid
_US = 1_000_000
_USEC_INFINITY = 2**64 - 1
_ERRNO_MAX = 4095  # MAX_ERRNO of Linux
_PID_MAX = 2**31 - 1
_NUMBER = re.compile(rb"[0-9]{1,20}")
_LINE_ENDS = re.compile(rb"[\r\n]+")
_FD_NAME = re.compile(rb"[ -9;-~]{1,255}")  # printable ASCII without the colon of LISTEN_FDNAMES

_NOT_ALLOWED = "{}; let the registry make files there and give them to the service's user"
_IN_THE_WAY = "{}; move away what is there"
_REMEDIES = {
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
    errno.EROFS: _NOT_ALLOWED,
    errno.EEXIST: _IN_THE_WAY,
    errno.EISDIR: _IN_THE_WAY,
    errno.ENOTDIR: _IN_THE_WAY,
}

_log = logging.getLogger(__name__)


class Notice(msgspec.Struct, frozen=True):
    """What one datagram says. Times are seconds; `watchdog_s` 0 turns the watchdog off.

    `stores` asks to keep the descriptors that came along, `removes` to let go of those kept as `fd_name`.
    A `barrier` says nothing else.
    """

    ready: bool = False
    stopping: bool = False
    reloading: bool = False
    status: str | None = None
    errno: int | None = None
    main_pid: int | None = None
    extend_s: float | None = None
    beats: bool = False
    triggers: bool = False
    watchdog_s: float | None = None
    stores: bool = False
    fd_name: str = STORED
    removes: bool = False
    barrier: bool = False


Done = Callable[[], None]
IsMember = Callable[[str, int, int, int], bool]
"""Takes service, pid, uid, session (0: the process is gone): whether the sender is one of the service's."""
OnNotice = Callable[[str, Notice, int, tuple[int, ...], Done], None]
"""Takes service, notice, pid of the sender, descriptors to be stored (now the receiver's), and `done`, to be
called once, when all that follows from the notice is committed."""
Hold = Callable[[str, str, int], None]
"""Has the keeper hold a copy of a descriptor: service, name, descriptor."""
Drop = Callable[[str, str], None]
"""Has the keeper let go of it."""


def parse(text: bytes) -> Notice:
    """What a datagram says. What is unknown or malformed in it counts as not said, and never raises.

    Of a repeated key the last well-formed value counts. As in systemd, a NUL within it, or too great a length,
    spoils all of it; a BARRIER=1 stands alone.
    """
    text = text.removesuffix(b"\0")
    if len(text) > NOTICE_MAX or b"\0" in text:
        return Notice()
    said: dict[bytes, Any] = {}
    for line in _LINE_ENDS.split(text):
        key, _, value = line.partition(b"=")
        meaning = _VALUES[key](value) if key in _VALUES else None
        if meaning is not None:
            said[key] = meaning
    return Notice(barrier=True) if b"BARRIER" in said else _notice(said)


def _notice(said: dict[bytes, Any]) -> Notice:
    removes = b"FDSTOREREMOVE" in said
    return Notice(
        ready=b"READY" in said,
        stopping=b"STOPPING" in said,
        reloading=b"RELOADING" in said,
        status=said.get(b"STATUS"),
        errno=said.get(b"ERRNO"),
        main_pid=said.get(b"MAINPID"),
        extend_s=said.get(b"EXTEND_TIMEOUT_USEC"),
        beats=said.get(b"WATCHDOG") == b"1",
        triggers=said.get(b"WATCHDOG") == b"trigger",
        watchdog_s=said.get(b"WATCHDOG_USEC"),
        stores=b"FDSTORE" in said and not removes,
        fd_name=said.get(b"FDNAME", STORED),
        # only what is named is let go: nobody means all that he has not named
        removes=removes and b"FDNAME" in said,
    )


def _word(*known: bytes) -> Callable[[bytes], bytes | None]:
    return lambda value: value if value in known else None


def _number(value: bytes, least: int, most: int) -> int | None:
    number = int(value) if _NUMBER.fullmatch(value) else -1
    return number if least <= number <= most else None


def _seconds(value: bytes) -> float | None:
    # systemd takes neither 0 nor infinity for an extension
    number = _number(value, 1, _USEC_INFINITY - 1)
    return None if number is None else number / _US


def _watchdog_s(value: bytes) -> float | None:
    number = _number(value, 0, _USEC_INFINITY)
    return None if number is None else number % _USEC_INFINITY / _US


def _status(value: bytes) -> str | None:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(shown)[:STATUS_MAX]


def _fd_name(value: bytes) -> str | None:
    return value.decode() if _FD_NAME.fullmatch(value) else None


_VALUES: dict[bytes, Callable[[bytes], object]] = {
    b"READY": _word(b"1"),
    b"STOPPING": _word(b"1"),
    b"RELOADING": _word(b"1"),
    b"STATUS": _status,
    b"ERRNO": partial(_number, least=0, most=_ERRNO_MAX),
    b"MAINPID": partial(_number, least=1, most=_PID_MAX),
    b"EXTEND_TIMEOUT_USEC": _seconds,
    b"WATCHDOG": _word(b"1", b"trigger"),
    b"WATCHDOG_USEC": _watchdog_s,
    b"FDSTORE": _word(b"1"),
    b"FDNAME": _fd_name,
    b"FDSTOREREMOVE": _word(b"1"),
    b"BARRIER": _word(b"1"),
}


class Notices:
    """The sockets of all services, in `folder`. Needs the running loop from `open` and `adopt` on."""

    def __init__(
        self, folder: Path, *, is_member: IsMember, on_notice: OnNotice, hold: Hold, drop: Drop
    ) -> None:
        self._folder = folder.absolute()
        self._is_member = is_member
        self._on_notice = on_notice
        self._hold = hold
        self._drop = drop
        self._inboxes: dict[str, _Inbox] = {}
        self._said: dict[str, set[object]] = {}

    def open(self, service: str, uid: int | None) -> str:
        """The path for NOTIFY_SOCKET, where the service's user `uid` (None: ours) can now send to us.

        A socket that is there is used again. Raises OSError, whose `strerror` is a whole sentence.
        """
        path = self._path(service)
        inbox = self._inboxes.get(service)
        try:
            if inbox is None or not _is_at(inbox.sock, path):
                self._make(service, path, uid)
            owner = -1 if uid is None else uid
            os.chown(path, owner, -1, follow_symlinks=False)
        except OSError as error:
            why = _REMEDIES.get(error.errno or 0, "{}").format(error.strerror or error)
            sentence = f"cannot make the notification socket of {service} at {path}: {why}"
            raise OSError(error.errno or errno.EIO, sentence) from error
        return path

    def adopt(self, service: str, fd: int) -> None:
        """Take up a socket that the keeper has held, the descriptor included."""
        sock = socket.socket(fileno=fd)
        if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_DGRAM):
            _log.warning("What was kept as the notification socket of %s is none", service)
            sock.close()
            self._drop(service, KEPT_AS)
            return
        self._listen(service, sock)

    def close_service(self, service: str) -> None:
        """The service needs no socket any more: its file goes, and the keeper's copy."""
        self._said.pop(service, None)
        inbox = self._inboxes.pop(service, None)
        if inbox is None:
            return
        path = inbox.sock.getsockname()
        # a file that nobody reads is replaced when it is needed; there may be no descriptor to look at it
        with contextlib.suppress(OSError):
            if _is_at(inbox.sock, path):
                os.unlink(path)
        inbox.close()
        self._drop(service, KEPT_AS)

    def close(self) -> None:
        """Stop listening. The files stay, and the keeper reads on."""
        for inbox in self._inboxes.values():
            inbox.close()
        self._inboxes.clear()

    def read(self, service: str) -> None:
        """Take what a service has said by now, without waiting for the loop, or for what it said before."""
        inbox = self._inboxes.get(service)
        if inbox is not None:
            inbox.read()

    def deliver(
        self,
        service: str,
        pid: int,
        uid: int,
        session: int,
        text: bytes,
        fds: Iterable[int],
        done: Done,
    ) -> None:
        """Judge a datagram and hand it on; `fds` are ours now. `done` is called when it may be forgotten."""
        fds = tuple(fds)
        if len(text) > NOTICE_MAX:
            self._say_once(service, "length", "said more than %d bytes at once", NOTICE_MAX)
        notice = parse(text)
        # its descriptor is closed: all before it is done, so whoever sent it need not wait
        is_said = notice != Notice() and not notice.barrier
        if not is_said or not self._is_from_member(service, pid, uid, session):
            _close_all(fds)
            done()
            return
        if not notice.stores:
            _close_all(fds)
            fds = ()
        self._on_notice(service, notice, pid, fds, done)

    def _is_from_member(self, service: str, pid: int, uid: int, session: int) -> bool:
        if self._is_member(service, pid, uid, session):
            return True
        who = "was told something by process %d of uid %d, which is not one of its own"
        self._say_once(service, pid, who, pid, uid)
        return False

    def _say_once(self, service: str, what: object, sentence: str, *values: object) -> None:
        said = self._said.setdefault(service, set())
        if what in said or len(said) >= SAID_MAX:
            return
        said.add(what)
        _log.warning(f"The notification socket of %s {sentence}: ignored", service, *values)

    def _path(self, service: str) -> str:
        # no service's name begins with a dot
        short = "." + blake2b(service.encode(), digest_size=8).hexdigest()
        for name in (service, short):
            path = str(self._folder / name)
            if len(os.fsencode(path)) <= _PATH_MAX:
                return path
        sentence = (
            f"cannot make the notification socket of {service}: {path} is longer than {_PATH_MAX} bytes, "
            "which is all that a socket's address holds; move the registry's folder to a shorter path"
        )
        raise OSError(errno.ENAMETOOLONG, sentence)

    def _make(self, service: str, path: str, uid: int | None) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o711)
        sock = _bind(path)
        try:
            self._hold(service, KEPT_AS, sock.fileno())
        except OSError:
            os.unlink(path)
            sock.close()
            raise
        self._listen(service, sock)
        closed = None if uid is None else _closed_to(uid, self._folder)
        if closed is not None:
            _log.warning(
                "%s may not reach its notification socket: uid %d cannot enter %s; chmod a+x it",
                *(service, uid, closed),
            )

    def _listen(self, service: str, sock: socket.socket) -> None:
        before = self._inboxes.pop(service, None)
        if before is not None:
            before.close()
        self._inboxes[service] = _Inbox(sock, partial(self._take, service))

    def _take(self, service: str, letter: _Letter, fds: tuple[int, ...], done: Done) -> None:
        if letter.lost_fds:
            self._say_once(service, "fds", "brought more descriptors than we can have open")
        session = _session(letter.pid)
        self.deliver(service, letter.pid, letter.uid, session, letter.text, fds, done)


class _Letter(msgspec.Struct, eq=False):
    """A datagram and its sender as the kernel knows him; pid 0: in a pid namespace that is not ours."""

    text: bytes
    pid: int
    uid: int
    lost_fds: bool
    is_done: bool = False


class _Inbox:
    """Reads one socket, a datagram at a time, and takes each off it when it is done."""

    def __init__(
        self, sock: socket.socket, take: Callable[[_Letter, tuple[int, ...], Done], None]
    ) -> None:
        self.sock = sock
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._out: deque[_Letter] = deque()
        self._is_reading = False
        self._is_listening = False
        sock.setblocking(False)
        self._listen()

    def read(self) -> None:
        """Take what is there, also behind what is out: who sent it has ended, and will not be known any more."""
        if not self._is_reading:
            self._read(beyond=True)

    def close(self) -> None:
        """Stop reading; a `done` that is still to come does nothing."""
        self._out.clear()
        self._loop.remove_reader(self.sock)
        self.sock.close()

    def _listen(self) -> None:
        """Wait for more, but not while a datagram is out: that is readable all the time."""
        wanted = not self._out
        if wanted and not self._is_listening:
            self._loop.add_reader(self.sock, self._read)
        elif not wanted and self._is_listening:
            self._loop.remove_reader(self.sock)
        self._is_listening = wanted

    def _read(self, *, beyond: bool = False) -> None:
        self._is_reading = True
        for _ in range(AT_ONCE_MAX):
            if (self._out and not beyond) or not self._read_one():
                break
        self._is_reading = False
        if self.sock.fileno() >= 0:
            self._listen()

    def _read_one(self) -> bool:
        """Whether there was one to read."""
        if self.sock.fileno() < 0 or any(len(each.text) > NOTICE_MAX for each in self._out):
            return False  # closed; or nobody knows where the next one would begin
        found = _peek(self.sock, SCM_MAX_FD, behind=sum(len(each.text) for each in self._out))
        if found is None:
            return False
        letter, fds = found
        self._out.append(letter)
        done = partial(self._finish, letter)
        try:
            self._take(letter, fds, done)
        except Exception:
            _log.exception("What a service said got lost: %r", letter)
            done()
        return True

    def _finish(self, letter: _Letter) -> None:
        if letter.is_done or letter not in self._out:  # done before, or closed
            return
        letter.is_done = True
        while self._out and self._out[0].is_done:
            self._take_off(self._out.popleft())
        if not self._is_reading:
            self._listen()

    def _take_off(self, letter: _Letter) -> None:
        # The keeper, believing us gone, may have taken it meanwhile; the next one is not to go instead.
        found = _peek(self.sock, 0)
        if found is not None and _is_same(found[0], letter):
            with contextlib.suppress(BlockingIOError):
                self.sock.recv(1)


def _is_same(one: _Letter, other: _Letter) -> bool:
    return (one.text, one.pid, one.uid) == (other.text, other.pid, other.uid)


def _peek(
    sock: socket.socket, fds_max: int, behind: int = 0
) -> tuple[_Letter, tuple[int, ...]] | None:
    """The next datagram, left where it is, and copies of `fds_max` of its descriptors; None: there is none.

    The next is the first, or the one `behind` so many bytes of others.
    """
    room = socket.CMSG_SPACE(_CREDENTIALS.size) + (space(fds_max) if fds_max else 0)
    try:
        if behind:
            sock.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, behind)
        text, ancillary, returned, _ = sock.recvmsg(NOTICE_MAX + 1, room, socket.MSG_PEEK | CLOEXEC)
    except BlockingIOError:
        return None
    finally:
        if behind:
            sock.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, -1)
    pid, uid = 0, 0
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            pid, uid, _gid = _CREDENTIALS.unpack(data)
    is_cut = bool(returned & socket.MSG_CTRUNC)
    return _Letter(text, pid, uid, is_cut), tuple(descriptors(ancillary))


def _session(pid: int) -> int:
    """The session of a process; 0 where it is gone, or not in our pid namespace."""
    try:
        return os.getsid(pid) if pid > 0 else 0  # getsid(0) would be our own
    except ProcessLookupError:
        return 0


def _bind(path: str) -> socket.socket:
    """A new socket at `path`, in place of what is there, open to its owner from its first instant."""
    if not hasattr(socket, "SO_PASSCRED"):
        raise OSError(errno.ENOTSUP, "this system does not say who sends a datagram")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    umask_before = os.umask(0o177)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        sock.bind(path)
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(umask_before)
    return sock


def _is_at(sock: socket.socket, path: str) -> bool:
    """Whether whoever sends to `path` reaches `sock`.

    Nobody may send to a datagram socket that is connected but the one that it is connected to, unix(7):
    so what we connect to `path` takes a datagram from `sock` only where it is the one there.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind("")  # an abstract address of the kernel's choice
            probe.connect(path)
            sock.sendto(b"", probe.getsockname())
        except OSError:
            return False
    return True


def _closed_to(uid: int, folder: Path) -> Path | None:
    """A folder on the way to `folder`, itself included, that the user cannot enter as far as modes tell."""
    if uid == 0:
        return None
    groups = _groups(uid)
    return next(
        (each for each in (folder, *folder.parents) if not _lets_in(each, uid, groups)), None
    )


def _lets_in(folder: Path, uid: int, groups: set[int]) -> bool:
    found = folder.stat()
    if uid == found.st_uid:
        return bool(found.st_mode & stat.S_IXUSR)
    return bool(found.st_mode & (stat.S_IXGRP if found.st_gid in groups else stat.S_IXOTH))


def _groups(uid: int) -> set[int]:
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return set()
    return set(os.getgrouplist(user.pw_name, user.pw_gid))


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
