"""Never a stranger: what the journal calls a run is adopted or signalled only where it certainly is that run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.platform("linux")

SLEEP = 'cmd = ["sleep", "1000"]'
ONCE_MORE = 'cmd = ["sh", "-c", "echo run $$ >> runs; exec sleep 1000"]'


def service(name: str, keys: str) -> str:
    return f'[[service]]\nname = "{name}"\n{keys}\n'


def patch(journal: Path, type: str, **fields: Any) -> None:
    """Change fields of the journal's latest event of a type: recovery does not verify hashes."""
    connection = sqlite3.connect(journal, isolation_level=None)
    try:
        seq, body = connection.execute(
            "SELECT seq, body FROM events WHERE type = ? ORDER BY seq DESC LIMIT 1", (type,)
        ).fetchone()
        changed = json.dumps({**json.loads(body), **fields})
        connection.execute("UPDATE events SET body = ? WHERE seq = ?", (changed, seq))
    finally:
        connection.close()


@pytest.fixture
def stranger(box) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with any registry, leads its own session, and notes its signals."""
    script = """
import signal, time
def note(number, _frame):
    with open("signalled", "a") as file:
        file.write(f"{number}\\n")
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCONT):
    signal.signal(number, note)
open("stranger_up", "w").close()
time.sleep(1000)
"""
    process = subprocess.Popen(
        ["python3", "-I", "-S", "-c", script],
        cwd=box.folder,
        start_new_session=True,
        env={"PATH": os.environ["PATH"]},
    )
    box.wait_for((box.folder / "stranger_up").exists, "the stranger runs")
    yield process
    process.kill()
    process.wait(10)


def is_untouched(box, stranger: subprocess.Popen[bytes]) -> bool:
    return stranger.poll() is None and not (box.folder / "signalled").exists()


def start_time(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def run_and_lose(box, keys: str) -> int:
    """One run of service `app`, then registry, keeper and run all killed; its pid."""
    box.configure(service("app", keys))
    box.start()
    pid = box.wait_status("app", "Running")["pid"]
    keeper = box.keeper_pid()
    box.kill()
    for each in (keeper, pid):
        os.kill(each, signal.SIGKILL)
    box.wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the run is gone, and reaped")
    return int(pid)


# What an older kernel lacks: there only pid and start time tell, and signals go by number.
@pytest.mark.parametrize("without", ["", "pidfd", "pidfd_group", "subreaper"])
def test_a_stranger_with_the_pid_of_a_run_is_left_alone(box, stranger, without):
    """The pid was given to another process while nobody supervised: its start time tells."""
    run_and_lose(box, ONCE_MORE)
    patch(box.journal, "spawned", pid=stranger.pid)
    box.start(CIRCLEOSD_WITHOUT=without)
    record = box.wait_status("app", "Running", run=2)
    assert record["pid"] != stranger.pid
    assert box.events("app", "adopted") == []
    box.data("stop", service="app", wait=True)
    box.data("start", service="app", wait=True)
    assert box.stop() == 0
    assert is_untouched(box, stranger)


def test_a_stranger_with_the_pid_of_a_run_that_was_being_stopped_is_left_alone(box, stranger):
    """The stop is completed, which takes no signal; the group with that number is the stranger's own."""
    box.configure(service("app", """cmd = ["sh", "-c", "trap '' TERM; touch up; sleep 1000"]"""))
    box.start()
    box.wait_for((box.folder / "up").exists, "it runs")
    pid, keeper = box.service("app")["pid"], box.keeper_pid()
    box.data("stop", service="app")
    box.kill()
    for kill, number in ((os.kill, keeper), (os.killpg, pid)):
        kill(number, signal.SIGKILL)
    box.wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the run is gone, and reaped")
    patch(box.journal, "spawned", pid=stranger.pid)
    box.start()
    assert box.wait_status("app", "Stopped")["wanted"] == "down"
    assert is_untouched(box, stranger)


@pytest.mark.parametrize("fields", [{"boot_id": "another"}, {"pid_namespace": "pid:[1]"}])
def test_after_a_reboot_or_in_another_namespace_pids_and_start_times_say_nothing(
    box, stranger, fields
):
    """Even where both are those of the journal, by chance."""
    run_and_lose(box, ONCE_MORE)
    patch(box.journal, "spawned", pid=stranger.pid, start_time=start_time(stranger.pid))
    patch(box.journal, "registry_started", **fields)
    box.start()
    record = box.wait_status("app", "Running", run=2)
    assert record["pid"] != stranger.pid
    assert box.events("app", "adopted") == []
    assert box.events(type="registry_started")[-1]["data"]["fresh"] is True
    box.data("stop", service="app", wait=True)
    assert is_untouched(box, stranger)


UNWRITABLE = """
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
"""


def test_a_helper_with_a_session_of_its_own_is_not_taken_for_the_run_that_started_it(box):
    """It has the mark and leads, as the run does; the journal, which could not be written, knows neither."""
    text = """
import os, time
if os.fork() == 0:
    os.setsid()
    open(f"helper.{os.getppid()}", "w").close()
    time.sleep(1000)
time.sleep(1000)
"""
    box.configure(service("app", f"cmd = {box.python('app', text)}"))
    box.start(program=(str(box.program("unwritable", UNWRITABLE)),))
    pid = box.wait_status("app", "Running")["pid"]
    (box.folder / "full").touch()
    os.kill(pid, signal.SIGKILL)
    pid = box.wait_status("app", "Running", run=2)["pid"]
    box.wait_for((box.folder / f"helper.{pid}").exists, "its helper runs")
    box.kill()
    (box.folder / "full").unlink()
    box.start()
    adopted = box.last("app", "adopted")
    assert (adopted["reason"], adopted["data"]["pid"], adopted["run"]) == ("unjournaled", pid, 2)


def test_what_is_left_of_a_run_that_the_journal_does_not_know_is_stopped_before_the_next_one(box):
    """Its main process ended while nobody watched; a child of it lives on, and has the mark."""
    text = """
import os, time
if os.fork() == 0:
    open(f"child.{os.getppid()}.{os.getpid()}", "w").close()
time.sleep(1000)
"""
    box.configure(service("app", f"cmd = {box.python('app', text)}"))
    box.start(program=(str(box.program("unwritable", UNWRITABLE)),))
    first = box.wait_status("app", "Running")["pid"]
    (box.folder / "full").touch()
    os.kill(first, signal.SIGKILL)
    second = box.wait_status("app", "Running", run=2)["pid"]
    names = box.wait_for(lambda: list(box.folder.glob(f"child.{second}.*")), "its child runs")
    child = int(names[0].suffix[1:])
    box.kill()
    os.kill(second, signal.SIGKILL)
    box.wait_for(lambda: not box.is_running(second), "its main process has ended")
    assert box.is_running(child)
    (box.folder / "full").unlink()
    box.start()
    box.wait_status("app", "Running", run=3)
    assert not box.is_running(child)
    assert box.last("app", "adopted")["reason"] == "unjournaled"
    assert box.events("app", "lost")[-1]["data"]["group_empty"] is False
    box.verify()


def test_what_runs_of_a_service_that_nobody_tells_of_any_more_is_ended(box):
    """It was added while the journal could not be written, and taken out again while no registry was there."""
    box.configure(service("app", ONCE_MORE))
    box.start(program=(str(box.program("unwritable", UNWRITABLE)),))
    box.wait_status("app", "Running")
    (box.folder / "full").touch()
    added = """cmd = ["sh", "-c", "sleep 1001 & echo $$ $! > added; wait"]\n"""
    box.configure(service("app", ONCE_MORE) + service("added", added))
    assert box.ask("apply")["error"]["code"] == "outcome_unknown"
    (line,) = box.wait_lines("added", 1)
    pids = [int(pid) for pid in line.split()]
    box.kill()
    (box.folder / "full").unlink()
    box.configure(service("app", ONCE_MORE))
    box.start()
    box.wait_for(lambda: not any(map(box.is_running, pids)), "nothing is left of it")
    assert [each["name"] for each in box.data("list_services")] == ["app"]
    box.wait_said("added, run 1, is declared no more: killed")


# --- two registries on one machine ----------------------------------------------------------------


class Copy:
    """A second registry, whose folder is a copy of another's; the test's box has its own name for it."""

    def __init__(self, box, folder: Path) -> None:
        shutil.copytree(box.folder / "var", folder / "var", ignore=shutil.ignore_patterns("*.sock"))
        self.box = type(box)(folder)
        self.box.configure((box.folder / "etc" / "services.toml").read_text().split("\n", 2)[2])


@pytest.fixture
def second(box) -> Iterator[Any]:
    """Makes a copy of `box`'s journal with a registry of its own."""
    made: list[Any] = []

    def make() -> Any:
        folder = Path(f"{box.folder}-2")
        folder.mkdir()
        made.append(Copy(box, folder).box)
        return made[0]

    yield make
    for each in made:
        each.clean_up()
        shutil.rmtree(each.folder)


def test_a_copy_of_a_running_registrys_journal_is_another_registry(box, second):
    """It neither adopts nor signals what the first one runs, has a name of its own, and says so."""
    check = (
        """health_check = { target = "cmd:sh -c 'echo >>asked; sleep 0.2'", interval = "50ms" }"""
    )
    box.configure(service("app", SLEEP) + service("checked", f'{SLEEP}\n{check}\nstop = "1s"'))
    box.start()
    pids = {name: box.wait_status(name, "Running")["pid"] for name in ("app", "checked")}
    copy = second()
    copy.start()
    for name, pid in pids.items():
        record = copy.wait_status(name, "Running")
        assert record["pid"] != pid, "it has a run of its own"
        assert copy.events(name, "adopted") == []
        assert [event["run"] for event in copy.events(name, "lost")] == [1]
    copy.wait_said("[WARN]")
    copy.wait_said(str(box.journal))
    for action in ("restart", "stop"):
        for name in pids:
            copy.data(action, service=name, wait=True)
    assert copy.stop() == 0
    for name, pid in pids.items():
        record = box.service(name)
        assert (record["pid"], record["status"], record["run"]) == (pid, "Running", 1)
        assert box.is_running(pid)
    assert box.events("checked", "became_unhealthy") == []
    copy.verify()


def test_a_copy_keeps_its_new_name(box, second):
    """Its own death is recovered from like any other's; the first one's runs are still none of its own."""
    box.configure(service("app", SLEEP))
    box.start()
    first = box.wait_status("app", "Running")["pid"]
    copy = second()
    copy.start()
    pid = copy.wait_status("app", "Running")["pid"]
    copy.kill()
    copy.start()
    assert copy.service("app")["pid"] == pid
    assert copy.last("app", "adopted")["data"] == {"pid": pid}
    assert box.service("app")["pid"] == first
    assert marks(pid) != marks(first)


def marks(pid: int) -> bytes | None:
    """The journal that a process names; None while its program is being exchanged."""
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    found = (word for word in words if word.startswith(b"CIRCLEOSD_RUN="))
    return next((word.split(b"/")[0] for word in found), None)


def test_a_copy_leaves_alone_what_the_first_one_left_running(box, second):
    """The first one is dead: what it ran is still for it to find, once it is back."""
    box.configure(service("app", SLEEP))
    box.start()
    pid = box.wait_status("app", "Running")["pid"]
    box.kill()
    copy = second()
    copy.start()
    assert copy.wait_status("app", "Running")["pid"] != pid
    assert copy.stop() == 0
    assert box.is_running(pid)
    box.start()
    assert (box.service("app")["pid"], box.service("app")["run"]) == (pid, 1)


@pytest.mark.parametrize("damage", [lambda journal: os.truncate(journal, 0), Path.unlink])
def test_a_copy_that_is_damaged_leaves_alone_what_the_first_one_runs(box, second, damage):
    """What is remembered beside the journal was copied, too, and says whose it is."""
    box.configure(service("app", SLEEP))
    box.start()
    pid = box.wait_status("app", "Running")["pid"]
    copy = second()
    damage(copy.journal)
    copy.start()
    record = copy.wait_status("app", "Running")
    assert record["pid"] != pid
    assert copy.events()[0]["data"]["source"] == str(box.journal)
    assert box.wait_for(lambda: marks(record["pid"]), "it executes") != marks(pid)
    assert copy.stop() == 0
    assert (box.service("app")["pid"], box.service("app")["run"]) == (pid, 1)
    copy.verify()


def test_a_copy_with_garbage_for_a_journal_is_refused(box, second):
    """That it was a journal of ours is known only of the file that it was."""
    box.configure(service("app", SLEEP))
    box.start()
    copy = second()
    garbage = os.urandom(10_000)
    copy.journal.write_bytes(garbage)
    for suffix in ("-wal", "-shm"):
        copy.journal.with_name(copy.journal.name + suffix).unlink()
    status, told = copy.run("--config", "etc/services.toml")
    assert status == 69
    assert str(copy.journal) in told
    assert copy.journal.read_bytes() == garbage


def test_a_journal_that_was_moved_is_the_same_registry(box, second):
    """Copied to another disk, say, and the first taken away: its services are adopted, not started twice."""
    box.configure(service("app", ONCE_MORE))
    box.start()
    pid = box.wait_status("app", "Running")["pid"]
    box.kill()
    copy = second()
    shutil.rmtree(box.folder / "var")
    copy.start()
    assert (copy.service("app")["pid"], copy.service("app")["run"]) == (pid, 1)
    assert len(box.lines("runs")) == 1
    copy.data("stop", service="app", wait=True)
    assert not box.is_running(pid)


def test_a_journal_that_was_restored_to_its_place_is_the_same_registry(box):
    """Another file by the same name, as a backup puts it there."""
    box.configure(service("app", ONCE_MORE))
    box.start()
    pid = box.wait_status("app", "Running")["pid"]
    box.kill()
    saved = box.folder / "saved"
    shutil.copytree(box.folder / "var", saved, ignore=shutil.ignore_patterns("*.sock"))
    for path in saved.glob("registry.db*"):
        path.replace(box.folder / "var" / path.name)
    box.start()
    assert (box.service("app")["pid"], box.service("app")["run"]) == (pid, 1)
    assert len(box.lines("runs")) == 1
