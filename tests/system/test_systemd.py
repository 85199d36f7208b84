"""Under a manager that listens as systemd does: what it is told, and when."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

pytestmark = pytest.mark.platform("linux")

SLEEP = 'cmd = ["sleep", "1000"]'
SHOW = "import os; open('environ.{}', 'w').write(repr(dict(os.environ)))"


def service(name: str, keys: str) -> str:
    return f'[[service]]\nname = "{name}"\n{keys}\n'


class Manager(threading.Thread):
    """Listens where NOTIFY_SOCKET says; `heard` are the lines and when they came."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address = address
        self.heard: list[tuple[float, str]] = []
        self.on_ready = lambda: None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._end = uuid.uuid4().hex

    def run(self) -> None:
        while (text := self._socket.recv(65536).decode()) != self._end:
            for line in text.split("\n"):
                if line == "READY=1":
                    self.on_ready()
                self.heard.append((time.monotonic(), line))

    def lines(self) -> list[str]:
        return [line for _at, line in list(self.heard)]

    def count(self, line: str) -> int:
        return self.lines().count(line)

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(self._end.encode(), self._socket.getsockname())
        self.join(10)
        self._socket.close()


@contextlib.contextmanager
def listening(address: str) -> Iterator[Manager]:
    manager = Manager(address)
    manager.start()
    try:
        yield manager
    finally:
        manager.close()


def wait_told(box, manager: Manager, line: str) -> None:
    box.wait_for(lambda: line in manager.lines(), f"{line} is told; heard {manager.lines()}")


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_a_life_is_told_from_ready_to_stopping(box, kind):
    name = f"@circleosd-test-{uuid.uuid4().hex}" if kind == "abstract" else str(box.folder / "n")
    box.configure(service("one", SLEEP) + service("two", SLEEP))
    with listening(name) as manager:
        box.start(NOTIFY_SOCKET=name)
        wait_told(box, manager, "READY=1")
        wait_told(box, manager, "STATUS=2 of 2 services running")
        box.data("stop", service="two", wait=True)
        wait_told(box, manager, "STATUS=1 of 2 services running")
        assert manager.count("STOPPING=1") == 0
        assert box.stop() == 0
        wait_told(box, manager, "STOPPING=1")
        lines = manager.lines()
    assert lines.count("READY=1") == 1
    assert lines.index("READY=1") < lines.index("STOPPING=1")


def test_ready_is_told_only_when_every_autostart_service_has_been_started(box):
    """Each executes its program by then, or has said why it cannot."""
    names = [f"s{number}" for number in range(30)]
    services = [service(name, SLEEP) for name in names]
    services.append(service("off", f"{SLEEP}\nautostart = false"))
    services.append(service("missing", 'cmd = ["./nowhere"]'))
    box.configure("".join(services))
    started: list[int] = []
    with listening(str(box.folder / "n")) as manager:
        manager.on_ready = lambda: started.append(box.errors.read_text().count("Starting s"))
        daemon = box.start(NOTIFY_SOCKET=manager.address)
        wait_told(box, manager, "READY=1")
        spawned = [event["at"] for event in box.events(type="became_ready")]
    assert len(spawned) == len(names)
    ready_at_s = next(at for at, line in manager.heard if line == "READY=1")
    # both clocks stand side by side only now: compare by how long ago each was
    assert ready_at_s <= time.monotonic()
    assert box.service("missing")["status"] == "Failed"
    assert Path(f"/proc/{daemon}").exists()


def test_before_it_can_start_its_services_it_is_not_ready(box):
    """Held in the middle of starting them: nothing is told until the last one is through its gate."""
    script = box.program(
        "held",
        """
import os, time
from registry.host import gate
open_gate, opened = gate.open_gate, 0

def open_or_wait(held):
    global opened
    opened += 1
    if opened == 3:
        open("at_third", "w").close()
        while not os.path.exists("go"):
            time.sleep(0.005)
    return open_gate(held)

gate.open_gate = open_or_wait
from registry.__main__ import main
main()
""",
    )
    box.configure("".join(service(name, SLEEP) for name in ("one", "two", "three")))
    with listening(str(box.folder / "n")) as manager:
        box.daemon = box.spawn(
            "--config", "etc/services.toml", program=(str(script),), NOTIFY_SOCKET=manager.address
        )
        box.wait_for((box.folder / "at_third").exists, "it starts the third")
        assert manager.count("READY=1") == 0
        (box.folder / "go").touch()
        wait_told(box, manager, "READY=1")
        assert {box.service(name)["status"] for name in ("one", "two", "three")} == {"Running"}


def test_services_checks_and_the_keeper_inherit_none_of_it(box):
    show = f"{sys.executable} -I {box.program('show_check', SHOW.format('check'))}"
    program = SHOW.format("one") + "\nimport time; time.sleep(1000)"
    check = f'health_check = {{ target = "cmd:{show}", interval = "50ms" }}'
    box.configure(service("one", f"cmd = {box.python('one', program)}\n{check}"))
    with listening(str(box.folder / "n")) as manager:
        box.start(NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="5000000")
        box.wait_status("one", "Running")
        keeper = Path(f"/proc/{box.keeper_pid()}/environ").read_text()
        shown = [*box.wait_lines("environ.one", 1), *box.wait_lines("environ.check", 1)]
    text = "\n".join([*shown, keeper])
    assert text.count("'CIRCLEOSD_SERVICE': 'one'") == 2
    assert "PATH=" in keeper
    assert "NOTIFY_SOCKET" not in text
    assert "WATCHDOG" not in text


def test_the_watchdog_is_told_at_least_twice_in_each_interval(box):
    """From the start on, while it supervises, and while it stops what is slow to stop."""
    deaf = """cmd = ["sh", "-c", "trap '' TERM; touch up; while :; do sleep 0.05; done"]"""
    box.configure(service("deaf", f'{deaf}\nstop = "800ms"'))
    with listening(str(box.folder / "n")) as manager:
        box.start(NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="400000")
        box.wait_for((box.folder / "up").exists, "it runs")
        box.wait_for(lambda: manager.count("WATCHDOG=1") >= 3, "it is told")
        assert box.stop() == 0
        times = [at for at, line in manager.heard if line == "WATCHDOG=1"]
        stopping = next(at for at, line in manager.heard if line == "STOPPING=1")
    gaps = [after - before for before, after in pairwise(times)]
    assert max(gaps) < 0.35, "each well within the interval, on a machine that is busy, too"
    assert times[-1] > stopping + 0.3


def test_a_daemon_that_stands_still_is_not_told_to_be_well(box):
    box.configure(service("one", SLEEP))
    with listening(str(box.folder / "n")) as manager:
        box.start(NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="100000")
        box.wait_for(lambda: manager.count("WATCHDOG=1") >= 2, "it is told")
        box.daemon.send_signal(signal.SIGSTOP)
        state = Path(f"/proc/{box.daemon.pid}/stat")
        box.wait_for(lambda: state.read_text().rpartition(")")[2].split()[0] == "T", "it stands")
        seen = manager.count("WATCHDOG=1")
        time.sleep(0.3)  # six times as long as between two
        assert manager.count("WATCHDOG=1") <= seen + 1
        box.daemon.send_signal(signal.SIGCONT)
        box.wait_for(lambda: manager.count("WATCHDOG=1") > seen + 1, "it goes on")


def test_after_an_upgrade_it_still_tells(box):
    """By the same process, and never that it is stopping."""
    box.configure(service("one", SLEEP))
    with listening(str(box.folder / "n")) as manager:
        box.start(NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="600000")
        wait_told(box, manager, "READY=1")
        box.data("upgrade")
        box.wait_for(lambda: manager.count("READY=1") == 2, "it tells it again")
        assert manager.count("STOPPING=1") == 0
        seen = manager.count("WATCHDOG=1")
        box.wait_for(lambda: manager.count("WATCHDOG=1") > seen + 2, "the watchdog is told on")
        assert box.service("one")["run"] == 1
        assert box.stop() == 0
        wait_told(box, manager, "STOPPING=1")


def test_an_end_that_keeps_the_services_is_told_as_one(box):
    box.configure(service("one", SLEEP), 'on_sigterm = "keep"')
    with listening(str(box.folder / "n")) as manager:
        box.start(NOTIFY_SOCKET=manager.address)
        wait_told(box, manager, "READY=1")
        assert box.stop() == 0
        wait_told(box, manager, "STOPPING=1")


def test_a_manager_that_is_gone_is_no_trouble(box):
    box.configure(service("one", SLEEP))
    box.start(NOTIFY_SOCKET=str(box.folder / "nobody"), WATCHDOG_USEC="100000")
    box.wait_status("one", "Running")
    assert box.stop() == 0
    assert "Traceback" not in box.errors.read_text()
