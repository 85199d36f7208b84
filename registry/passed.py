"""Descriptors that come with a message over a Unix socket. Standard library only: the keeper, too, imports this."""

from __future__ import annotations

import os
import socket
from array import array
from collections.abc import Iterable

CLOEXEC: int = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
"""The flag of recvmsg by which no received descriptor is ever inherited; 0 where there is none.

Not socket.recv_fds: before Python 3.12 it drops the flags.
"""
SCM_MAX_FD = 253
"""Descriptors that come with one message at most: unix(7)."""


def space(count: int) -> int:
    """Bytes of ancillary data that so many descriptors take."""
    return socket.CMSG_SPACE(count * array("i").itemsize)


def descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """Those that came with a message; the caller's to close."""
    fds = array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if not CLOEXEC:
        for fd in fds:
            os.set_inheritable(fd, False)
    return list(fds)


def close_all(fds: Iterable[int]) -> None:
    """Close every one of `fds`."""
    for fd in fds:
        os.close(fd)
