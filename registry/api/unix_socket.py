"""The socket file, and who is behind it: taking a path to listen on, and the kernel's word about peers.

* The file is never open wider than its mode and group allow, from its first instant.
* A stale file (nobody accepts) is taken over; a living one, and what is no socket, is left alone.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import socket
import stat
import struct

from registry.api.access import Peer
from registry.host import proc

BACKLOG = 4096
"""Connections that may wait to be accepted."""

_PROBE_S = 1.0
_SO_PEERGROUPS = 59  # <asm-generic/socket.h>, Linux 4.13; the socket module does not name it
_GROUPS_SIZE = 1024  # bytes, the most that socket.getsockopt takes: 256 groups
_DARWIN_SOL_LOCAL, _DARWIN_PEERCRED, _DARWIN_PEERPID = 0, 1, 2  # <sys/un.h>


class SocketError(Exception):
    """The socket cannot be had; its sentence says why."""


_REMEDY = "end that one, or set another [registry] socket"


class SocketHeld(SocketError):
    """Somebody else listens on the socket; its sentence says who."""


def listen(path: str, mode: int, group: str | None) -> tuple[socket.socket, tuple[int, int]]:
    """A listening socket at `path`, and device and inode of its file. Takes over a stale file.

    Raises SocketHeld or SocketError. Two that start at the same time are kept apart by the caller's lock.
    """
    group_id = _group_id(group)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _clear(path)
        _bind(listener, path)
        inode = _open_up(path, mode, group_id)
        listener.setblocking(False)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise SocketError(f"cannot listen on {path}: {_why(path, error)}") from error
    except SocketError:
        listener.close()
        raise
    return listener, inode


def peer_of(sock: socket.socket) -> Peer:
    """Who is at the other end of a connected Unix socket; raises OSError when the kernel cannot say."""
    if not hasattr(socket, "SO_PEERCRED"):
        return _darwin_peer(sock)
    # struct ucred of unix(7): pid, uid, gid. Pid 0: a process outside our pid namespace.
    size = struct.calcsize("=iII")
    pid, uid, gid = struct.unpack(
        "=iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    )
    return Peer(uid, gid, pid or None, _program(pid), _groups(sock, uid, gid))


def inode_of(path: str) -> tuple[int, int] | None:
    """Device and inode of what is at `path`, None when nothing is."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _groups(sock: socket.socket, uid: int, gid: int) -> frozenset[int]:
    """The supplementary groups: of the process where the kernel says them all, else of its user."""
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_SIZE)
    except OSError:  # an older kernel, or more groups than that
        return _groups_of_user(uid, gid)
    return frozenset(struct.unpack(f"={len(raw) // 4}I", raw))


def _groups_of_user(uid: int, gid: int) -> frozenset[int]:
    try:
        return frozenset(os.getgrouplist(pwd.getpwuid(uid).pw_name, gid))
    except KeyError:
        return frozenset()


def _darwin_peer(sock: socket.socket) -> Peer:
    # struct xucred of <sys/ucred.h>: version, uid, number of groups, 16 groups, the first being the gid.
    layout = "=IIh2x16I"
    raw = sock.getsockopt(_DARWIN_SOL_LOCAL, _DARWIN_PEERCRED, struct.calcsize(layout))
    _version, uid, count, *groups = struct.unpack(layout, raw)
    pid = sock.getsockopt(_DARWIN_SOL_LOCAL, _DARWIN_PEERPID)
    return Peer(uid, groups[0], pid or None, _program(pid), frozenset(groups[:count]))


def _program(pid: int) -> str | None:
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read().rstrip(b"\n").decode(errors="replace")
    except OSError:
        return None


def _clear(path: str) -> None:
    """Remove a stale socket file; raise when what is there is alive, or no socket."""
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise SocketError(
            f"cannot listen on {path}: it exists and is no socket; remove it, or set another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(path)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except (TimeoutError, BlockingIOError) as error:
            who = "a process that does not answer"
            raise SocketHeld(f"{path} is held by {who}; {_REMEDY}") from error
        pid = peer_of(probe).pid
    program = proc.program(pid) if pid else None
    raise SocketHeld(f"{path} is held by process {pid} ({program or 'unknown'}); {_REMEDY}")


def _bind(listener: socket.socket, path: str) -> None:
    # For nobody but us until group and mode are what they should be.
    umask_before = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(umask_before)


def _open_up(path: str, mode: int, group_id: int | None) -> tuple[int, int]:
    try:
        if group_id is not None:
            os.chown(path, -1, group_id)
        os.chmod(path, mode)
        found = os.lstat(path)
    except OSError:
        os.unlink(path)
        raise
    return found.st_dev, found.st_ino


def _group_id(group: str | None) -> int | None:
    if group is None or group.isdecimal():
        return None if group is None else int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise SocketError(f"the group {group} of the control socket does not exist") from None


def _why(path: str, error: OSError) -> str:
    folder = os.path.dirname(path) or "."
    if error.errno == errno.ENOENT:
        return f"the folder {folder} does not exist; make it, or set another path"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"permission denied in {folder}, or for the socket's group; set another path"
    # Python itself raises the complaint about the length, without a number.
    return error.strerror or f"{error}; choose a shorter path"
