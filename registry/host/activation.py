"""Listening sockets that the registry opens for services, and keeps open while none of them serves.

* What listens stays open across the ends of its service, of the daemon and of the keeper: each of the last two
  has a copy. A connection made meanwhile waits in the backlog and is served by the next run.
* A socket is closed when its definition no longer asks for it at this address, and at no other time.
* A service gets its sockets as systemd's sd_listen_fds(3) has it: from descriptor 3 on, blocking.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
from collections.abc import Callable
from typing import Protocol

import msgspec

from registry.core.definition import Definition
from registry.host import proc

UNIX = "unix:"
"""What an address begins with that is a path."""
UNIX_MODE = 0o666
"""Of the file of a Unix socket, as systemd's SocketMode= has it: whoever can reach the folder may connect."""

_PORT_MAX = 65535
_PATH_MAX = 107 if hasattr(socket, "SO_PASSCRED") else 103  # sun_path less its NUL: Linux, BSD
_REMEDIES = {
    errno.EADDRINUSE: "{}; end the program that listens there, or choose another address",
    errno.EADDRNOTAVAIL: "{}; choose an address that an interface of this machine has",
    errno.EACCES: "{}; let the registry use it (ports below 1024 are root's), or choose another address",
    errno.EPERM: "{}; only root gives a socket to another user",
    errno.ENOENT: "{}; make its folder, or choose another path",
}


class CannotListen(OSError):
    """A listening socket cannot be had; its `strerror` is a sentence."""


class Hold(Protocol):
    """Has the keeper hold a copy of a descriptor, and its address with it. May raise OSError."""

    def __call__(self, service: str, name: str, fd: int, /, *, meta: str) -> None: ...


Drop = Callable[[str, str], None]
"""Has the keeper let go of a descriptor: service, name."""


class _Listener(msgspec.Struct, frozen=True):
    """`inode` is the file's device and inode, None for TCP and where there was no file."""

    address: str
    fd: int
    inode: tuple[int, int] | None

    @property
    def is_reachable(self) -> bool:
        """Whether the file of a Unix socket is still this one: services and people remove it now and then."""
        path = _unix_path(self.address)
        return path is None or (self.inode is not None and _inode(path) == self.inode)


class Sockets:
    """The listening sockets of all services. The descriptors are ours; a run is given copies."""

    def __init__(self, hold: Hold, drop: Drop) -> None:
        self._hold = hold
        self._drop = drop
        self._listeners: dict[str, dict[str, _Listener]] = {}

    def ensure(self, definition: Definition, uid: int | None) -> list[tuple[str, int]]:
        """Name and descriptor of each socket that the definition asks for, in its order.

        Opens what is missing, for the service's user `uid`; closes what is no longer asked for. Raises OSError
        (its `strerror` is a sentence) for the first that cannot be had; the others stay open.
        """
        service = definition.name
        listeners = self._listeners.setdefault(service, {})
        wanted = {each.name: each.address for each in definition.sockets}
        for name, held in list(listeners.items()):
            if wanted.get(name) != held.address or not held.is_reachable:
                self._close(service, name)
        for name, address in wanted.items():
            if name not in listeners:
                listeners[name] = self._open(service, name, address, uid)
        return [(name, listeners[name].fd) for name in wanted]

    def adopt(self, service: str, name: str, address: str, fd: int) -> None:
        """Take up a socket that the keeper has held, the descriptor included."""
        path = _unix_path(address)
        listeners = self._listeners.setdefault(service, {})
        if name in listeners:
            os.close(listeners[name].fd)
        listeners[name] = _Listener(address, fd, None if path is None else _inode(path))

    def close_service(self, service: str) -> None:
        """The service needs no sockets any more: they are closed, and their files go."""
        for name in list(self._listeners.get(service, ())):
            self._close(service, name)
        self._listeners.pop(service, None)

    def close(self) -> None:
        """Give back our descriptors. The keeper's and the services' listen on; the files stay."""
        for listeners in self._listeners.values():
            for held in listeners.values():
                os.close(held.fd)
        self._listeners.clear()

    def _open(self, service: str, name: str, address: str, uid: int | None) -> _Listener:
        fd = open_socket(address, uid)
        path = _unix_path(address)
        listener = _Listener(address, fd, None if path is None else _inode(path))
        try:
            self._hold(service, kept_as(name), fd, meta=address)
        except OSError:
            _remove(listener)
            raise
        return listener

    def _close(self, service: str, name: str) -> None:
        _remove(self._listeners[service].pop(name))
        self._drop(service, kept_as(name))


def kept_as(name: str) -> str:
    """The name under which the keeper holds a service's listening socket."""
    return f"listen:{name}"


def listen_variables(named: list[tuple[str, int]]) -> dict[str, str]:
    """The variables of sd_listen_fds(3) for descriptors in this order; LISTEN_PID is for the gate to set."""
    if not named:
        return {}
    return {
        "LISTEN_FDS": str(len(named)),
        "LISTEN_FDNAMES": ":".join(name for name, _ in named),
    }


def open_socket(address: str, uid: int | None) -> int:
    """A descriptor that listens at `HOST:PORT` (IPv4), `[HOST]:PORT` (IPv6 only) or `unix:PATH`.

    The file of a Unix socket is the user's, `uid`; one that nobody answers at is replaced. A name is looked up
    while we wait: it must be this machine's own, which its hosts file knows. Raises CannotListen.
    """
    path = _unix_path(address)
    try:
        listener = _listen_tcp(address) if path is None else _listen_unix(path, uid)
    except OSError as error:
        why = _REMEDIES.get(error.errno or 0, "{}").format(error.strerror or error)
        raise CannotListen(
            error.errno or errno.EIO, f"cannot listen at {address}: {why}"
        ) from error
    return listener.detach()


def _listen_tcp(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    is_port = port.isascii() and port.isdecimal() and int(port[:6]) <= _PORT_MAX
    if not host or not is_port:
        raise OSError(errno.EINVAL, "it is not HOST:PORT, [HOST]:PORT or unix:PATH")
    is_ipv6 = host.startswith("[") and host.endswith("]")
    family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
    host = host[1:-1] if is_ipv6 else host
    found = _look_up(host, int(port), family)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_ipv6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(found)
        listener.listen(socket.SOMAXCONN)
    except OSError:
        listener.close()
        raise
    return listener


def _look_up(host: str, port: int, family: socket.AddressFamily) -> tuple[object, ...]:
    try:
        found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        why = f"this machine knows no such host ({error}); IPv6 is written [HOST]:PORT"
        raise OSError(errno.EINVAL, why) from error
    return found[0][4]


def _listen_unix(path: str, uid: int | None) -> socket.socket:
    if not os.path.isabs(path):
        raise OSError(errno.EINVAL, "its path is not absolute; begin it with a slash")
    if len(os.fsencode(path)) > _PATH_MAX:
        why = f"it is longer than {_PATH_MAX} bytes, which is all that a socket's address holds; choose a shorter path"
        raise OSError(errno.ENAMETOOLONG, why)
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _bind(listener, path)
        try:
            # the folder may be the user's: he is not to have us give him what he put in its place
            os.chown(path, -1 if uid is None else uid, -1, follow_symlinks=False)
            listener.listen(socket.SOMAXCONN)
        except OSError:
            os.unlink(path)
            raise
    except OSError:
        listener.close()
        raise
    return listener


def _bind(listener: socket.socket, path: str) -> None:
    # by the umask, not by a later chmod, which would follow a link
    umask_before = os.umask(0o777 & ~UNIX_MODE)
    try:
        listener.bind(path)
    finally:
        os.umask(umask_before)


def _clear(path: str) -> None:
    """Remove a socket file that nobody answers at; raise OSError when somebody does, or it is no socket."""
    try:
        is_socket = stat.S_ISSOCK(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise OSError(errno.EEXIST, "it exists and is no socket; remove it, or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError as error:
            raise OSError(errno.EADDRINUSE, "its backlog is full") from error
        except OSError as error:  # a socket of another type
            raise OSError(errno.EADDRINUSE, error.strerror) from error
        raise OSError(errno.EADDRINUSE, _holder(probe))


def _holder(probe: socket.socket) -> str:
    """Who made the socket that answers: he may have ended, and left it to others."""
    program = None
    if hasattr(socket, "SO_PEERCRED"):
        # struct ucred of unix(7): pid, uid, gid
        raw = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("=iII"))
        pid, _uid, _gid = struct.unpack("=iII", raw)
        program = proc.program(pid)
    return "somebody answers there" if program is None else f"process {pid} ({program}) answers"


def _unix_path(address: str) -> str | None:
    return address.removeprefix(UNIX) if address.startswith(UNIX) else None


def _inode(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except (OSError, ValueError):  # a keeper may say anything: what has a NUL in it is no path
        return None
    return found.st_dev, found.st_ino


def _remove(listener: _Listener) -> None:
    """Close it, and unlink its file where that is still its own."""
    path = _unix_path(listener.address)
    if path is not None and listener.is_reachable:
        with contextlib.suppress(OSError):  # a file that nobody answers at is replaced when needed
            os.unlink(path)
    os.close(listener.fd)
