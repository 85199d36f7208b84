"""Telling systemd how we are, where it started us: sd_notify(3). Silent where NOTIFY_SOCKET is not set."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
from collections.abc import MutableMapping

_US = 1_000_000
_MICROSECONDS = re.compile("[0-9]{1,20}")


class Systemd:
    """The manager above us. Takes its variables out of `environment`: no service is to inherit them."""

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        self._address = environment.pop("NOTIFY_SOCKET", "")
        watchdog_us = environment.pop("WATCHDOG_USEC", "")
        pid = environment.pop("WATCHDOG_PID", "")
        ours = pid in ("", str(os.getpid()))
        is_set = ours and _MICROSECONDS.fullmatch(watchdog_us) and int(watchdog_us) > 0
        self.watchdog_s = int(watchdog_us) / _US if is_set else None
        self._status = ""

    def variables(self) -> dict[str, str]:
        """What the next program in this process needs in its environment to go on telling."""
        found = {"NOTIFY_SOCKET": self._address} if self._address else {}
        if self.watchdog_s is not None:
            found["WATCHDOG_USEC"] = str(int(self.watchdog_s * _US))
        return found

    def tell(self, *lines: str) -> None:
        """Send `KEY=value` lines in one datagram; a manager that is not there is no trouble of ours."""
        if self._address[:1] not in ("/", "@"):
            return
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
        ):
            sender.setblocking(False)
            sender.sendto("\n".join(lines).encode(), address)

    @property
    def is_there(self) -> bool:
        """Whether anybody wants to be told."""
        return bool(self._address)

    def tell_status(self, status: str) -> None:
        """Say how we are in a line for people, where that has changed."""
        if self._address and status != self._status:
            self._status = status
            self.tell(f"STATUS={status}")

    async def watch(self) -> None:
        """Say that the loop turns, twice in each watchdog interval; returns at once where none is set."""
        while self.watchdog_s:
            self.tell("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_s / 2)
