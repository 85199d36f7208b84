"""`circlectl upgrade`: the registry becomes the installed code in the same process; nobody notices."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.platform("linux")

ROOT = Path(__file__).parents[2]
SLEEP = 'cmd = ["sleep", "1000"]'
COUNT = """
import sys, time
number = 0
while True:
    number += 1
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
    time.sleep(0.002)
"""
PAUSED = """
import os, sys, time
execv = os.execv

def execv_later(*arguments):
    {before}
    open("at_exec", "w").close()
    while not os.path.exists("go"):
        time.sleep(0.005)
    execv(*arguments)

os.execv = execv_later
from registry.__main__ import main
main()
"""


def service(name: str, keys: str) -> str:
    return f'[[service]]\nname = "{name}"\n{keys}\n'


def upgrade(box) -> None:
    """Ask for it, and wait until the next program of the same process answers."""
    before = box.data("version")["started_at"]
    box.data("upgrade")
    box.wait_for(lambda: began_after(box, before), "it has begun anew")


def began_after(box, before: str) -> bool:
    with contextlib.suppress(OSError, ValueError):  # an answer that never came: it had ended
        return bool(box.data("version")["started_at"] != before)
    return False


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_who_would_die_with_his_parent_lives_on(box):
    """The kernel means the thread that made him (prctl(2), PR_SET_PDEATHSIG): that becomes the next program."""
    tied = 'cmd = ["setpriv", "--pdeathsig", "KILL", "sleep", "1000"]'
    box.configure(service("tied", tied))
    box.start()
    pid = box.wait_status("tied", "Running")["pid"]
    for _ in range(2):
        upgrade(box)
        assert box.wait_status("tied", "Running")["pid"] == pid
    assert box.types("tied").count("spawned") == 1


def start_paused(box, before: str = "pass") -> int:
    """A registry that waits right before it becomes the next program, until there is a file `go`."""
    script = box.program("paused", PAUSED.format(before=before))
    return box.start(program=(str(script),))


class Asker(threading.Thread):
    """A client that asks all the time, each time on a new connection; `seen` counts what it got."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = str(path)
        self.seen: Counter[str] = Counter()
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.002):
            self.seen[self._ask()] += 1

    def _ask(self) -> str:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            try:
                client.connect(self.path)
                client.sendall(b'{"action":"list_services"}\n')
                with client.makefile("rb") as answers:
                    line = answers.readline()
            except (BrokenPipeError, ConnectionResetError):
                return "closed"
            except OSError as error:
                return type(error).__name__
        if not line:
            return "closed"
        return "ok" if json.loads(line)["ok"] else line.decode()


class LockPicker(threading.Thread):
    """Tries all the time to get the lock of the journal's folder; `times` counts how often it did."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.times = 0
        self.done = threading.Event()

    def run(self) -> None:
        with self.path.open() as file:
            while not self.done.wait(0.0005):
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self.times += 1
                    fcntl.flock(file, fcntl.LOCK_UN)


@contextlib.contextmanager
def running(*threads: Asker | LockPicker) -> Iterator[None]:
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.done.set()
        for thread in threads:
            thread.join(15)


@pytest.mark.timeout(60)
def test_ten_upgrades_in_a_row_are_noticed_by_nobody(box):
    """Not by its services, their output, a client that asks all the time, nor by who waits for the lock."""
    box.configure(service("count", f"cmd = {box.python('count', COUNT)}") + service("two", SLEEP))
    daemon = box.start()
    before = {name: box.wait_status(name, "Running")["pid"] for name in ("count", "two")}
    asker, picker = Asker(box.socket), LockPicker(box.folder / "var" / "registry.lock")
    with running(asker, picker):
        for _ in range(10):
            upgrade(box)
            assert box.data("version")["pid"] == daemon
    assert {box.service(name)["pid"] for name in before} == set(before.values())
    assert {parent(pid) for pid in before.values()} == {daemon}
    assert picker.times == 0, "the lock was free"
    assert set(asker.seen) <= {"ok", "closed"}, asker.seen
    assert asker.seen["ok"] > 10 * asker.seen["closed"]
    (record,) = box.data("stop", service="count", wait=True)
    assert (record["run"], record["restarts"]) == (1, 0)
    numbers = box.log("count").split()
    assert numbers == [str(n) for n in range(1, len(numbers) + 1)]
    assert len(numbers) > 100
    assert "Traceback" not in box.errors.read_text()
    box.verify()


def test_an_exit_after_an_upgrade_is_seen_as_that_of_a_child(box):
    """With its status and what it used, which only a parent is told."""
    box.configure(service("job", f'{SLEEP}\nrestart = "Never"'))
    box.start()
    pid = box.wait_status("job", "Running")["pid"]
    upgrade(box)
    os.kill(pid, signal.SIGTERM)
    box.wait_status("job", "Failed", reason="signal")
    exited = box.last("job", "exited")["data"]
    assert exited["signal"] == signal.SIGTERM
    assert exited["usage"]["user_s"] >= 0


@pytest.mark.timeout(60)
def test_descriptors_and_their_limit_are_the_same_after_many_upgrades(box):
    """What a service may have, too: the soft limit that the registry was started with."""
    box.configure(
        service("up", SLEEP) + service("limit", 'cmd = ["sh", "-c", "ulimit -Sn; exec sleep 1000"]')
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 777), hard))
    try:
        daemon = box.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    box.wait_for(lambda: box.log("limit"), "it tells its limit")
    upgrade(box)  # the lock's number may be another from now on, and that is all
    first = descriptors(daemon)
    for _ in range(20):
        upgrade(box)
    # a client's connection may have been among the first
    box.wait_for(lambda: not descriptors(daemon) - first, f"descriptors are {first}")
    box.data("restart", service="limit", wait=True)
    box.wait_for(lambda: len(box.log("limit").split()) == 2, "it tells its limit again")
    assert box.log("limit").split() == [str(min(soft, 777))] * 2


def descriptors(pid: int) -> Counter[str]:
    """What a process has open, but for numbers that differ from one to the next of a kind."""
    found: Counter[str] = Counter()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found[os.readlink(entry).split(":[")[0]] += 1
    return found


def test_the_new_configuration_is_read(box):
    one, two = service("one", SLEEP), service("two", SLEEP)
    box.configure(one + two)
    daemon = box.start()
    pid, gone = (box.wait_status(name, "Running")["pid"] for name in ("one", "two"))
    box.configure(one + service("three", SLEEP), 'on_sigterm = "keep"')
    upgrade(box)
    box.wait_status("three", "Running")
    box.wait_for(lambda: len(box.data("list_services")) == 2, "two is removed")
    assert not box.is_running(gone)
    assert box.wait_status("one", "Running")["pid"] == pid
    box.daemon.terminate()
    assert (box.daemon.pid, box.daemon.wait(10)) == (daemon, 0)
    assert box.is_running(pid), "on_sigterm was read, too"


def test_a_wrong_configuration_refuses_the_upgrade_and_nothing_happens(box):
    box.configure(service("up", SLEEP))
    daemon = box.start()
    pid = box.wait_status("up", "Running")["pid"]
    before = box.data("version")
    box.configure('[[service]]\nname = "up"\ncmd = 7\n')
    answer = box.ask("upgrade")
    assert answer["error"]["code"] == "not_ready"
    assert "services.toml" in answer["error"]["message"]
    assert "cmd" in answer["error"]["message"]
    box.configure('[[service]]\nname = "up"\ncmd = 7\nusr = 8\n')
    error = box.ask("upgrade")["error"]
    assert error["message"] == f"cannot upgrade: {error['data'][0]} (and 1 more)"
    assert len(error["data"]) == 2
    after = box.data("version")
    assert (after["started_at"], after["pid"]) == (before["started_at"], daemon)
    assert box.service("up")["pid"] == pid
    assert len(box.events(type="registry_started")) == 1


@pytest.mark.parametrize("broken", ["__init__.py", "daemon.py", "journal/journal.py"])
def test_code_that_does_not_start_refuses_the_upgrade_and_nothing_happens(box, broken):
    """Wherever in it the mistake is."""
    code = box.folder / "code"
    shutil.copytree(ROOT / "registry", code / "registry")
    box.configure(service("up", SLEEP))
    script = f"import sys; sys.path.insert(0, {str(code)!r})\nfrom registry.__main__ import main\nmain()\n"
    box.start(program=(str(box.program("older", script)),))
    pid = box.wait_status("up", "Running")["pid"]
    before = box.data("version")["started_at"]
    with (code / "registry" / broken).open("a") as file:
        file.write("\nthis is no Python\n")
    message = box.ask("upgrade")["error"]["message"]
    assert message.startswith("cannot upgrade: the installed code does not start")
    assert "Traceback" not in message
    assert box.data("version")["started_at"] == before
    assert box.service("up")["pid"] == pid


@pytest.mark.parametrize("changed", ["socket", "journal"])
def test_an_upgrade_cannot_move_what_it_holds(box, changed):
    """Socket and journal are those of this process: another path for one of them takes a new start."""
    path = box.configure(service("up", SLEEP))
    box.start()
    pid = box.wait_status("up", "Running")["pid"]
    text = path.read_text()
    if changed == "socket":
        text = text.replace(str(box.socket), f"{box.socket}2")
    else:
        text += '\n[journal]\npath = "elsewhere/registry.db"\n'
    path.write_text(text)
    answer = box.ask("upgrade")
    assert not answer["ok"]
    assert changed in answer["error"]["message"]
    assert box.service("up")["pid"] == pid


def test_a_second_registry_is_refused_and_a_client_waits_while_there_is_no_program(box):
    """Held right before it becomes the next program: lock and socket are never free in between."""
    box.configure(service("up", SLEEP))
    daemon = start_paused(box)
    box.wait_status("up", "Running")
    box.data("upgrade")
    box.wait_for((box.folder / "at_exec").exists, "it is about to become the next")
    status, said = box.run("--config", "etc/services.toml")
    assert status == 69
    assert f"process {daemon}" in said
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(box.socket))
        client.sendall(b'{"action":"version"}\n')
        (box.folder / "go").touch()
        answer = json.loads(client.makefile("rb").readline())
    assert answer["data"]["pid"] == daemon
    assert len(box.events(type="registry_started")) == 2


@pytest.mark.parametrize("end", ["exit 42", "kill -9 $$"])
def test_an_exit_while_there_is_no_program_is_noticed_with_its_status(box, end):
    command = f'cmd = ["sh", "-c", "while ! test -e end; do sleep 0.01; done; {end}"]'
    box.configure(service("job", f'{command}\nrestart = "Never"'))
    start_paused(box)
    pid = box.wait_status("job", "Running")["pid"]
    box.data("upgrade")
    box.wait_for((box.folder / "at_exec").exists, "it is about to become the next")
    (box.folder / "end").touch()
    box.wait_for(lambda: not box.is_running(pid), "it has ended")
    (box.folder / "go").touch()
    box.wait_status("job", "Failed")
    exited = box.last("job", "exited")["data"]
    assert (exited.get("exit_code"), exited.get("signal")) == (
        (42, None) if end == "exit 42" else (None, 9)
    )
    box.wait_for(lambda: not Path(f"/proc/{pid}").exists(), "it is reaped")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", ["before", "while"])
def test_a_signal_to_end_during_an_upgrade_is_not_lost(box, number, moment):
    """Before it is the next program, or while that begins: it stops every service, and exits 0."""
    before = f"os.kill(os.getpid(), {int(number)})" if moment == "before" else "pass"
    box.configure(service("up", SLEEP))
    start_paused(box, before)
    pid = box.wait_status("up", "Running")["pid"]
    box.data("upgrade")
    box.wait_for((box.folder / "at_exec").exists, "it is about to become the next")
    if moment == "while":
        box.daemon.send_signal(number)
    (box.folder / "go").touch()
    assert box.daemon.wait(10) == 0
    assert not box.is_running(pid)
    box.wait_for(lambda: not box.left(), "nothing is left")


def test_a_folder_that_does_not_answer_keeps_nobody_from_an_upgrade(box, far):
    """Nor is a signal to end lost to who asks it yet, while there is no program."""
    keys = f'{SLEEP}\ncwd = "/far"\nautostart = false'
    box.configure(service("up", SLEEP) + service("report", keys))
    script = box.program("paused", PAUSED.format(before="pass").replace("main()", ""))
    with script.open("a") as file:
        file.write(Path(*far).read_text())
    box.start(program=(str(script),))
    pid = box.wait_status("up", "Running")["pid"]
    box.wait_lines("asked", 1)
    box.data("upgrade")
    box.wait_for((box.folder / "at_exec").exists, "it is about to become the next")
    os.kill(pid, signal.SIGKILL)
    (box.folder / "go").touch()
    box.wait_status("up", "Running", run=2)
    box.wait_lines("asked", 2)
    (box.folder / "at_exec").unlink()
    (box.folder / "go").unlink()
    box.data("upgrade")
    box.wait_for((box.folder / "at_exec").exists, "it is about to become the next")
    box.daemon.send_signal(signal.SIGTERM)
    (box.folder / "go").touch()
    assert box.daemon.wait(10) == 0
    box.wait_for(lambda: not box.left(), "nothing is left")
    assert "Traceback" not in box.errors.read_text()


def test_a_restart_under_way_goes_on_after_an_upgrade(box):
    box.configure(
        service("bad", 'cmd = ["false"]\nrestart = { delay = "400ms" }')
        + service(
            "deaf", """cmd = ["sh", "-c", "trap '' TERM; touch up; sleep 1000"]\nstop = "1s\""""
        )
    )
    box.start()
    box.wait_for((box.folder / "up").exists, "it runs")
    pid = box.service("deaf")["pid"]
    box.data("stop", service="deaf")
    upgrade(box)
    box.wait_status("deaf", "Stopped")
    assert not box.is_running(pid)
    box.wait_for(lambda: len(box.events("bad", "restart_scheduled")) >= 3, "it goes on")
    attempts = [event["data"]["attempt"] for event in box.events("bad", "restart_scheduled")]
    assert attempts[:3] == [1, 2, 3]
    box.verify()


def test_while_the_journal_cannot_be_written_an_upgrade_is_refused(box):
    """What waits to be written would be lost with the program that holds it."""
    script = box.program(
        "unwritable",
        """
import os
from registry.journal.journal import Journal, JournalError
append = Journal.append

async def append_or_fail(self, records):
    if os.path.exists("full"):
        raise JournalError("no space")
    await append(self, records)

Journal.append = append_or_fail
from registry.__main__ import main
main()
""",
    )
    box.configure(service("up", SLEEP))
    box.start(program=(str(script),))
    pid = box.wait_status("up", "Running")["pid"]
    (box.folder / "full").touch()
    os.kill(pid, signal.SIGKILL)
    box.wait_status("up", "Running", run=2)
    answer = box.ask("upgrade")
    assert not answer["ok"]
    assert "journal" in answer["error"]["message"]
    (box.folder / "full").unlink()
    box.wait_said("can be written again")
    upgrade(box)
    assert box.service("up")["run"] == 2
    box.verify()


def test_circlectl_upgrade_says_what_runs_now(box):
    box.configure(service("up", SLEEP))
    daemon = box.start()
    done = subprocess.run(
        [sys.executable, "-m", "circlectl", "--socket", str(box.socket), "upgrade"],
        check=False,
        capture_output=True,
        text=True,
        timeout=20,
        cwd=ROOT / "tools",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"PID {daemon}" in done.stdout
    assert len(box.events(type="registry_started")) == 2
