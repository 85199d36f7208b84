"""What systemd is told, datagram by datagram: sd_notify(3)."""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.host.systemd import Systemd

pytestmark = pytest.mark.platform("linux")


class Manager:
    """A socket where systemd would listen."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.setblocking(False)

    def heard(self) -> list[str]:
        """The lines of every datagram so far."""
        lines: list[str] = []
        while True:
            try:
                lines += self._socket.recv(4096).decode().split("\n")
            except BlockingIOError:
                return lines

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, short_dir: Path) -> Iterator[Manager]:
    """One whose address is a path, and one whose address has no file."""
    path = str(short_dir / "notify")
    made = Manager(path if request.param == "path" else f"@circleosd-test-{uuid.uuid4().hex}")
    yield made
    made.close()


def test_lines_arrive_in_one_datagram(manager):
    Systemd({"NOTIFY_SOCKET": manager.address}).tell("READY=1", "STATUS=2 of 2")
    assert manager.heard() == ["READY=1", "STATUS=2 of 2"]


def test_its_variables_are_taken_away_and_nothing_else():
    environment = {
        "NOTIFY_SOCKET": "/nowhere",
        "WATCHDOG_USEC": "1000000",
        "WATCHDOG_PID": str(os.getpid()),
        "PATH": "/bin",
    }
    systemd = Systemd(environment)
    assert environment == {"PATH": "/bin"}
    assert systemd.watchdog_s == 1.0


def test_the_next_program_of_the_process_finds_what_it_needs():
    systemd = Systemd({"NOTIFY_SOCKET": "@here", "WATCHDOG_USEC": "1500000"})
    again = Systemd(systemd.variables())
    assert (again.watchdog_s, again.variables()) == (1.5, systemd.variables())


@pytest.mark.parametrize(
    ("usec", "pid"),
    [("", ""), ("0", ""), ("soon", ""), ("-5", ""), ("²", ""), ("1000000", "1")],
)
async def test_without_a_watchdog_of_ours_there_is_nothing_to_do(usec, pid):
    systemd = Systemd({"WATCHDOG_USEC": usec, "WATCHDOG_PID": pid})
    async with asyncio.timeout(1):
        await systemd.watch()
    assert "WATCHDOG_USEC" not in systemd.variables()


async def test_the_watchdog_is_told_at_least_twice_in_each_interval(manager):
    systemd = Systemd({"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "200000"})
    watching = asyncio.create_task(systemd.watch())
    await asyncio.sleep(0.6)  # three intervals: that is what is measured
    watching.cancel()
    heard = manager.heard()
    assert set(heard) == {"WATCHDOG=1"}
    assert 6 <= len(heard) <= 10


@pytest.mark.parametrize(
    "address", ["", "/nowhere/at/all", "@nobody-listens-here", "vsock:2:1", "x"]
)
def test_a_manager_that_is_not_there_is_no_trouble(address):
    Systemd({"NOTIFY_SOCKET": address} if address else {}).tell("READY=1")


def test_a_manager_that_does_not_read_holds_nothing_up(manager):
    systemd = Systemd({"NOTIFY_SOCKET": manager.address})
    for _ in range(2000):
        systemd.tell("STATUS=" + "x" * 100)
    assert manager.heard()


def test_a_status_is_told_when_it_changes(manager):
    systemd = Systemd({"NOTIFY_SOCKET": manager.address})
    for status in ("1 of 2", "1 of 2", "2 of 2", "1 of 2"):
        systemd.tell_status(status)
    assert manager.heard() == ["STATUS=1 of 2", "STATUS=2 of 2", "STATUS=1 of 2"]
