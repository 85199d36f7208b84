"""The descriptors that services have stored with us (sd_notify's FDSTORE), to be given to their next run.

They stay stored until the service removes them or is down for good, and outlive the daemon in the keeper.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
from collections.abc import Iterable

import msgspec

from registry.host.activation import Drop, Hold

STORED_MAX = 64
"""Descriptors of one service."""
SLOT = "stored:"
"""What the names begin with under which the keeper holds them."""

_F_DUPFD_QUERY = 1024 + 3  # linux/fcntl.h, Linux 6.10

_log = logging.getLogger(__name__)


class _Stored(msgspec.Struct, frozen=True):
    name: str
    slot: str
    fd: int


class FdStore:
    """The stored descriptors of all services, in the order in which they came."""

    def __init__(self, hold: Hold, drop: Drop) -> None:
        self._hold = hold
        self._drop = drop
        self._stored: dict[str, list[_Stored]] = {}
        self._number = 0

    def add(self, service: str, name: str, fds: Iterable[int]) -> None:
        """Store descriptors, which are ours from now on. One open file is stored once, as in systemd."""
        stored = self._stored.setdefault(service, [])
        for fd in fds:
            if any(_is_same(fd, each.fd) for each in stored):
                os.close(fd)
            elif len(stored) >= STORED_MAX:
                _log.warning("%s: no more than %d descriptors are stored", service, STORED_MAX)
                os.close(fd)
            else:
                self._add(service, name, fd)

    def adopt(self, service: str, slot: str, name: str, fd: int) -> None:
        """Take up a descriptor that the keeper has held."""
        number = slot.removeprefix(SLOT)
        self._number = max(self._number, int(number) if number.isdecimal() else 0)
        self._stored.setdefault(service, []).append(_Stored(name, slot, fd))

    def remove(self, service: str, name: str) -> None:
        """Let go of those that are called so."""
        stored = self._stored.get(service, [])
        self._stored[service] = [each for each in stored if each.name != name]
        for each in stored:
            if each.name == name:
                self._let_go(service, each)

    def of(self, service: str) -> list[tuple[str, int]]:
        """Name and descriptor of each."""
        return [(each.name, each.fd) for each in self._stored.get(service, ())]

    def clear(self, service: str) -> None:
        """The service is down for good."""
        for each in self._stored.pop(service, ()):
            self._let_go(service, each)

    def close(self) -> None:
        """Give back our descriptors; the keeper's stay."""
        for stored in self._stored.values():
            for each in stored:
                os.close(each.fd)
        self._stored.clear()

    def _add(self, service: str, name: str, fd: int) -> None:
        self._number += 1
        each = _Stored(name, f"{SLOT}{self._number}", fd)
        try:
            self._hold(service, each.slot, fd, meta=name)
        except OSError as error:
            _log.warning("%s: a descriptor cannot be stored: %s", service, error.strerror)
            os.close(fd)
        else:
            self._stored[service].append(each)

    def _let_go(self, service: str, each: _Stored) -> None:
        os.close(each.fd)
        self._drop(service, each.slot)


def _is_same(one: int, other: int) -> bool:
    """Whether both are one open file, not only of one file."""
    try:
        return fcntl.fcntl(one, _F_DUPFD_QUERY, other) == 1
    except OSError:
        # one inode says as much, but for what has none of its own: eventfds and their like
        return os.path.sameopenfile(one, other) and stat.S_IFMT(os.fstat(one).st_mode) != 0
