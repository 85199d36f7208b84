"""How it begins, or says in a sentence why it cannot: configuration, locks, sockets, journals."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from registry import house
from registry.core.events import RegistryStarted

SLEEP = 'cmd = ["sleep", "1000"]'
GOOD = f'[[service]]\nname = "a"\n{SLEEP}\n'
EX_UNAVAILABLE, EX_CONFIG = 69, 78
WRONG = """
[[service]]
name = "web"
cmd = "python3 -m http.server"
restart = "Sometimes"
health_chek = "http://localhost/"

[[service]]
name = "web"
cmd = ["true"]
health_check = "ftp://localhost"
stop = "soon"
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_room_for_the_descriptors_of_all_services_is_made_before_there_are_threads(box):
    """Each time that it grows later on, every start waits for it."""
    box.configure(f'[[service]]\nname = "a"\ninstances = 200\nautostart = false\n{SLEEP}\n')
    pid = box.start()
    words = Path(f"/proc/{pid}/status").read_text().split()
    assert int(words[words.index("FDSize:") + 1]) >= 3 * 200
    assert len(os.listdir(f"/proc/{pid}/fd")) < 100, "nothing is open in it"


def test_the_limit_of_descriptors_is_kept_where_no_room_can_be_made():
    """Standard input is closed, so that there is nothing to be copied."""
    script = (
        "import os, resource; os.close(0); resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 4096));"
        "from registry.house import make_room; make_room(1000);"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "(1024, 4096)\n"


def one_sentence(text: str) -> str:
    """The last line of stderr, which is all that is not an ordinary log line."""
    assert "Traceback" not in text
    lines = [line for line in text.splitlines() if not line.startswith("[INFO]")]
    assert len(lines) == 1, text
    return lines[0]


def test_a_wrong_file_is_refused_with_everything_that_is_wrong(box):
    box.configure(WRONG)
    for arguments in (
        ["--config", "etc/services.toml"],
        ["--validate", "--config", "etc/services.toml"],
    ):
        status, told = box.run(*arguments)
        assert status == EX_CONFIG
        lines = told.splitlines()
        assert len(lines) == 6, told
        assert all(line.startswith("etc/services.toml:") for line in lines), told
        for number, words in (
            (7, "cmd"),
            (8, "restart"),
            (9, "did you mean 'health_check'?"),
            (12, "has this name, too"),
            (14, "ftp"),
            (15, "stop"),
        ):
            assert any(
                line.startswith(f"etc/services.toml:{number}:") and words in line for line in lines
            ), told
    assert not (box.folder / "var").exists(), "nothing was touched"


def test_validate_says_that_all_is_well_and_does_nothing_else(box):
    box.configure(GOOD)
    assert box.run("--validate", "--config", "etc/services.toml") == (0, "")
    assert not (box.folder / "var").exists()
    assert not box.socket.exists()


def test_what_only_the_machine_can_tell_is_an_error_for_validate(box):
    box.configure(f'{GOOD}[[service]]\nname = "b"\ncmd = ["./b"]\ncwd = "nowhere"\n')
    status, told = box.run("--validate", "--config", "etc/services.toml")
    assert status == EX_CONFIG
    assert "service 'b': cmd: there is no program" in told
    assert "service 'b': cwd: there is no folder" in told


def test_without_a_file_one_sentence_names_both_places(box):
    if os.path.exists("/etc/circleosd/services.toml"):
        pytest.skip("this machine has a system-wide configuration")
    (box.folder / "etc").rmdir()
    status, told = box.run()
    assert status == EX_CONFIG
    sentence = one_sentence(told)
    assert "./etc/services.toml" in sentence
    assert "/etc/circleosd/services.toml" in sentence


def test_the_local_file_is_the_default(box):
    box.configure(GOOD)
    box.daemon = box.spawn()
    box.wait_for(
        lambda: "Loaded 1 service from etc/services.toml" in box.errors.read_text(), "it is found"
    )
    box.wait_for(box.socket.exists, "it runs")
    assert box.stop() == 0


def test_relative_paths_begin_at_the_parent_of_etc(box):
    box.configure(GOOD)
    other = box.folder / "elsewhere"
    other.mkdir()
    config = str(box.folder / "etc" / "services.toml")
    box.daemon = box.spawn("--config", config)
    box.wait_for(box.journal.exists, "the journal is beside etc")
    box.wait_for(box.socket.exists, "it runs")
    assert box.stop() == 0


def test_a_second_registry_on_one_journal_names_the_first_and_ends(box):
    config = box.configure(GOOD)
    pid = box.start()
    text = config.read_text().replace(str(box.socket), str(box.folder / "s2"))
    (box.folder / "etc" / "second.toml").write_text(text)
    status, told = box.run("--config", "etc/second.toml")
    assert status == EX_UNAVAILABLE
    assert f"process {pid}" in one_sentence(told)
    assert str(box.journal) in told
    assert not (box.folder / "s2").exists()
    assert box.service("a")["status"] == "Running"


def test_a_second_registry_on_one_socket_names_the_first_and_ends(box):
    config = box.configure(GOOD)
    pid = box.start()
    other = box.folder / "other"
    second = config.read_text() + f'[journal]\npath = "{other}/registry.db"\n'
    (box.folder / "etc" / "second.toml").write_text(second)
    status, told = box.run("--config", "etc/second.toml")
    assert status == EX_UNAVAILABLE
    sentence = one_sentence(told)
    assert f"process {pid}" in sentence
    assert str(box.socket) in sentence
    assert box.service("a")["status"] == "Running", "the first one still answers"


def test_two_journals_in_one_folder_do_not_share_a_keeper(box):
    """The second is refused, or has a keeper of its own: the first one's services keep their logs."""
    text = """
import time
while True:
    print("line", flush=True)
    time.sleep(0.01)
"""
    config = box.configure(f'[[service]]\nname = "a"\ncmd = {box.python("a", text)}\n')
    pid = box.start()
    second = (
        config.read_text().replace(str(box.socket), str(box.folder / "s2")).replace('"a"', '"b"')
    )
    second += '[journal]\npath = "var/second.db"\n'
    (box.folder / "etc" / "second.toml").write_text(second)
    process = box.spawn("--config", "etc/second.toml")
    try:
        box.wait_for(
            lambda: process.poll() is not None or (box.folder / "s2").exists(), "it runs or not"
        )
        if process.poll() is not None:
            assert process.returncode == EX_UNAVAILABLE
            box.wait_said(f"process {pid}")
        (record,) = box.data("restart", service="a", wait=True)
        seen = len(box.log("a"))
        assert record["run"] == 2
        box.wait_for(lambda: len(box.log("a")) > seen + 20, "the new run is logged")
        assert "serves another daemon" not in box.errors.read_text()
    finally:
        process.terminate()
        process.wait(10)


def test_a_stale_socket_is_taken_over(box):
    box.configure(GOOD)
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(box.socket))
    stale.close()
    box.start()
    assert box.wait_status("a", "Running")
    box.kill()
    assert box.socket.exists()
    box.start()
    assert box.service("a")["status"] == "Running"


def test_what_is_no_socket_is_left_alone(box):
    box.configure(GOOD)
    box.socket.write_text("precious")
    status, told = box.run("--config", "etc/services.toml")
    assert status == EX_UNAVAILABLE
    assert str(box.socket) in one_sentence(told)
    assert box.socket.read_text() == "precious"


def test_a_socket_in_no_folder_is_told_in_one_sentence(box):
    config = box.configure(GOOD)
    config.write_text(config.read_text().replace(str(box.socket), str(box.folder / "none" / "s")))
    status, told = box.run("--config", "etc/services.toml")
    assert status == EX_UNAVAILABLE
    assert str(box.folder / "none") in one_sentence(told)


def test_a_journal_that_is_garbage_is_told_in_one_sentence_and_left_alone(box):
    box.configure(GOOD)
    box.journal.parent.mkdir()
    garbage = b"this is no database at all, whatever its name says\n" * 100
    box.journal.write_bytes(garbage)
    status, told = box.run("--config", "etc/services.toml")
    assert status == EX_UNAVAILABLE
    assert str(box.journal) in one_sentence(told)
    assert box.journal.read_bytes() == garbage


def test_a_journal_that_is_a_folder_is_told_in_one_sentence(box):
    box.configure(GOOD)
    box.journal.mkdir(parents=True)
    status, told = box.run("--config", "etc/services.toml")
    assert status == EX_UNAVAILABLE
    assert str(box.journal) in one_sentence(told)


def test_a_database_of_somebody_else_is_refused_and_left_alone(box):
    box.configure(GOOD)
    box.journal.parent.mkdir()
    with sqlite3.connect(box.journal) as connection:
        connection.execute("CREATE TABLE songs (title TEXT)")
    connection.close()
    before = box.journal.read_bytes()
    status, told = box.run("--config", "etc/services.toml")
    assert status == EX_UNAVAILABLE
    assert str(box.journal) in one_sentence(told)
    assert box.journal.read_bytes() == before


def a_journal(box) -> None:
    """One that a registry made and closed."""
    box.configure(GOOD)
    box.start()
    box.wait_status("a", "Running")
    for _ in range(40):
        box.data("restart", service="a", wait=True)
    assert box.stop() == 0


def test_a_journal_of_a_newer_version_is_told_in_one_sentence(box):
    a_journal(box)
    with sqlite3.connect(box.journal) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    status, told = box.run("--config", "etc/services.toml")
    assert status == EX_UNAVAILABLE
    assert "newer version" in one_sentence(told)


def test_an_event_that_only_a_newer_version_knows_is_told_in_one_sentence(box):
    a_journal(box)
    with sqlite3.connect(box.journal) as connection:
        connection.execute("UPDATE events SET type = 'unheard_of' WHERE seq = 5")
    connection.close()
    status, told = box.run("--config", "etc/services.toml")
    assert status == EX_UNAVAILABLE
    assert str(box.journal) in one_sentence(told)


DAMAGES = {
    "UPDATE events SET body = '{' WHERE seq = 5": "events 1 to 4 of it are kept in",
    "UPDATE events SET body = '{}' WHERE seq = 5": "events 1 to 4 of it are kept in",
    "UPDATE events SET service = 'ghost' WHERE seq = 6": "events 1 to 5 of it are kept in",
    "DELETE FROM events WHERE seq = 3": "events 1 to 2 of it are kept in",
    "UPDATE events SET body = '{' WHERE seq = 2": "event 1 of it is kept in",
    "DROP TABLE events": "none of its events could be kept",
}


def test_a_damaged_journal_is_set_aside_and_what_can_be_read_of_it_is_kept(box):
    a_journal(box)
    whole = box.journal.read_bytes()
    for damage, kept in DAMAGES.items():
        box.journal.write_bytes(whole)
        with sqlite3.connect(box.journal) as connection:
            connection.execute(damage)
        connection.close()
        goes_on(box, box.journal.read_bytes())
        box.wait_said(kept)


def test_a_journal_with_damaged_pages_is_set_aside(box):
    a_journal(box)
    with box.journal.open("r+b") as file:
        for page in range(4096, box.journal.stat().st_size, 4096):
            file.seek(page)
            file.write(b"\xa5" * 64)
    goes_on(box, box.journal.read_bytes())


def test_of_a_journal_whose_end_was_cut_off_what_is_left_is_kept(box):
    box.configure(GOOD)
    box.start()
    for _ in range(40):
        box.data("restart", service="a", wait=True)
    assert box.stop() == 0
    whole = box.journal.stat().st_size
    os.truncate(box.journal, whole * 2 // 3)
    goes_on(box, box.journal.read_bytes())
    (last,) = re.findall(r"; events 1 to (\d+) of it are kept in", box.errors.read_text())
    assert int(last) > 40


def goes_on(box, damaged: bytes) -> None:
    """The registry runs on what is left, says where the damaged file is, and leaves that as it was."""
    box.errors.write_text("")
    box.start()
    box.wait_status("a", "Running")
    (aside,) = box.journal.parent.glob("registry.db.damaged-*[0-9]Z")
    box.wait_said(str(aside))
    assert aside.read_bytes() == damaged
    box.verify()
    assert box.stop() == 0
    for part in box.journal.parent.glob("registry.db*"):
        part.unlink()


def overwrite(journal: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        part = journal.with_name(journal.name + suffix)
        with part.open("r+b") as file:
            file.write(os.urandom(part.stat().st_size))


def empty(journal: Path) -> None:
    os.truncate(journal, 0)


def break_row(seq: int) -> Callable[[Path], None]:
    def cut(journal: Path) -> None:
        with sqlite3.connect(journal) as connection:
            connection.execute("UPDATE events SET body = '{' WHERE seq = ?", (seq,))
        connection.close()

    return cut


ONCE_MORE = 'cmd = ["sh", "-c", "echo $$ >> {}; exec sleep 1000"]\n'
GOES_ON = {
    "overwritten": overwrite,
    "emptied": empty,
    "gone": Path.unlink,
    "without its first row": break_row(1),
    "without its beginning": break_row(2),
    "without what was declared": break_row(3),
}


@pytest.mark.parametrize("damage", GOES_ON.values(), ids=GOES_ON)
def test_however_much_of_a_journal_is_damaged_nothing_is_started_twice(box, damage):
    services = [f'[[service]]\nname = "{name}"\n{ONCE_MORE.format(name)}' for name in "ab"]
    box.configure("\n".join(services))
    box.start()
    box.wait_lines("b", 1)
    box.data("restart", service="b", wait=True)
    pids = {name: box.wait_status(name, "Running")["pid"] for name in "ab"}
    name = box.events()[0]["data"]["journal_id"]
    for run, service in enumerate("ab", 1):
        box.wait_lines(service, run)
    box.kill()
    damage(box.journal)
    box.start()
    for run, service in enumerate("ab", 1):
        record = box.wait_status(service, "Running")
        assert (record["pid"], record["run"]) == (pids[service], run)
        assert len(box.lines(service)) == run
        assert box.last(service, "adopted")["reason"] == "unjournaled"
    assert box.data("restart", service="b", wait=True)[0]["run"] == 3, "no number is used again"
    assert [event["data"]["journal_id"] for event in box.events(type="journal_created")] == [name]
    assert not box.is_running(pids["b"])
    box.verify()


def test_what_a_registry_remembers_for_a_damaged_journal_is_its_own_affair(box):
    """Only its owner reads it, and what cannot be read is no trouble."""
    box.configure(GOOD)
    box.start()
    pid = box.wait_status("a", "Running")["pid"]
    remembered = box.folder / "var" / "registry.id"
    assert remembered.stat().st_mode & 0o777 == 0o600
    for text in (b"", b"{}", b"\xff", b"[]"):
        box.kill()
        remembered.write_bytes(text)
        box.start()
        assert box.service("a")["pid"] == pid
        assert len(remembered.read_bytes()) > len(text), "remembered anew"


def test_a_digest_key_that_is_lost_is_made_anew(box):
    box.configure(f'{GOOD}env = {{ SECRET = "x" }}\n')
    box.start()
    box.wait_status("a", "Running")
    key = box.folder / "var" / "digest.key"
    assert key.stat().st_mode & 0o777 == 0o600
    box.kill()
    key.unlink()
    box.start()
    assert box.service("a")["run"] == 1
    box.verify()


def test_a_life_that_was_busy_leaves_a_snapshot_from_which_the_next_one_begins(box):
    loops = "".join(
        f'[[service]]\nname = "loop{number}"\ncmd = ["false"]\n'
        'restart = { policy = "Always", delay = 0, delay_max = 0 }\n'
        for number in range(20)
    )
    box.configure(GOOD + loops)
    box.start()
    box.wait_for(lambda: box.data("events", since=-1)[0]["seq"] > 1100, "much has happened")
    assert box.stop() == 0
    last = box.verify()
    with closing(sqlite3.connect(box.journal, isolation_level=None)) as journal:
        assert journal.execute("SELECT max(seq) FROM snapshots").fetchone() == (last,)
        journal.execute("UPDATE events SET body = '{' WHERE seq < 1000")
    box.configure(GOOD)
    box.start()
    assert box.service("a")["run"] == 2
    assert [each["name"] for each in box.data("list_services")] == ["a"]


STARTED = RegistryStarted(boot_id="", pid_namespace="", pid=1, version="", fresh=True)
REMEDY = "or name a [journal] path in another folder"


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("var", "cannot be made: File exists; move away what is no folder"),
        ("var/registry.lock", "cannot be written: Is a directory; move that folder away"),
        ("var/digest.key", "cannot be read: Is a directory; move that folder away"),
    ],
)
def test_what_is_in_the_way_in_its_own_folder_is_told_in_one_sentence(box, what, said):
    box.configure(GOOD)
    path = box.folder / what
    path.touch() if what == "var" else path.mkdir(parents=True)
    status, told = box.run("--config", "etc/services.toml")
    assert (status, one_sentence(told)) == (EX_UNAVAILABLE, f"[ERROR] {path} {said}, {REMEDY}")


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.EACCES, "let the registry's user write in {folder}"),
        (errno.ENOSPC, "make room there"),
    ],
)
def test_what_cannot_be_written_in_its_own_folder_is_named_with_a_remedy(
    tmp_path, monkeypatch, code, remedy
):
    def refuse(*_given: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    for ask, name in (
        (lambda: house.lock(tmp_path / "registry.db"), "registry.lock"),
        (lambda: house.digest_key(tmp_path), "digest.key"),
        (lambda: house.remember(tmp_path, house.Writer("", STARTED)), "registry.id"),
    ):
        with pytest.raises(house.Unusable) as told:
            ask()
        how = f"cannot be written: {os.strerror(code)}; {remedy.format(folder=tmp_path)}"
        assert str(told.value) == f"{tmp_path / name} {how}, {REMEDY}"


def test_a_lock_that_cannot_be_written_into_is_let_go_and_named(tmp_path, monkeypatch):
    def refuse(*_given: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", refuse)
    before = os.listdir("/dev/fd")
    with pytest.raises(house.Unusable, match=r"registry\.lock cannot be written: No space left"):
        house.lock(tmp_path / "registry.db")
    assert os.listdir("/dev/fd") == before


def test_sigkill_leaves_no_lock_behind(box):
    box.configure(GOOD)
    for _ in range(3):
        box.start()
        os.kill(box.daemon.pid, signal.SIGKILL)
        box.daemon.wait(10)
    box.start()
    assert box.service("a")["run"] == 1


WHAT_STAYS = """
import gc, sys
from registry.__main__ import main
try:
    main()
finally:
    with open("kept", "w") as file:
        print(gc.get_freeze_count() > 10_000, gc.isenabled(), file=file)
"""


def test_what_there_is_at_the_beginning_is_not_looked_through_for_garbage(box):
    box.configure(f'[[service]]\nname = "app"\n{SLEEP}')
    script = box.program("what_stays", WHAT_STAYS)
    box.start(program=(str(script),))
    box.stop()
    assert (box.folder / "kept").read_text() == "True True\n"
