"""What is held for services over all their runs, and what they said while no daemon was there."""

from __future__ import annotations

import asyncio
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from registry.keeper import loop
from registry.keeper.client import Found
from registry.keeper.holdings import Held
from registry.keeper.notes import NOTES_MAX, STORED_MAX, TEXT_MAX, Notes
from registry.keeper.protocol import META_MAX, listen

pytestmark = pytest.mark.platform("linux")

DAEMON = """
import asyncio, sys
from pathlib import Path
from registry.keeper.client import Keeper

async def main():
    nothing = lambda *_: None
    path = Path(sys.argv[1]) / "keeper.sock"
    keeper = Keeper(path, on_grew=nothing, on_output_ended=nothing, log=print)
    found = await keeper.connect()
    for each in sys.argv[2:]:
        service, slot, fd, meta = each.split(",")
        keeper.hold(service, slot, int(fd), meta)
    print(keeper.pid, len(found.notes), flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""
SPEAKER = """
import socket, sys
sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sender.connect(sys.argv[1])
for number in range(int(sys.argv[2])):
    sender.send(b"STATUS=%d" % number)
print("said", flush=True)
sys.stdin.read()
"""
OLD_KEEPER = """
import sys
sys.path.insert(0, sys.argv[1])
from registry.keeper import loop, process
loop.VERSION = 1
sys.exit(process.main(sys.argv[2:]))
"""

Speak = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def run_daemon(folder: Path) -> Iterator[Callable[..., tuple[int, int]]]:
    """A daemon that holds the slots given, and is killed at once: the keeper's pid, notes it got."""
    running: list[subprocess.Popen[str]] = []

    def run(*slots: tuple[str, str, int, str]) -> tuple[int, int]:
        described = [",".join(str(part) for part in slot) for slot in slots]
        with subprocess.Popen(
            [sys.executable, "-c", DAEMON, str(folder), *described],
            stdout=subprocess.PIPE,
            pass_fds=[slot[2] for slot in slots],
            text=True,
        ) as daemon:
            running.append(daemon)
            assert daemon.stdout is not None
            pid, count = daemon.stdout.readline().split()
            daemon.kill()
        return int(pid), int(count)

    yield run
    for daemon in running:
        daemon.kill()


@pytest.fixture
def speak() -> Iterator[Speak]:
    """A process in a session of its own that says so much, and then stays until its stdin ends."""
    made: list[subprocess.Popen[bytes]] = []

    def start(path: Path, count: int) -> subprocess.Popen[bytes]:
        program = [sys.executable, "-I", "-S", "-c", SPEAKER, str(path), str(count)]
        pipe = subprocess.PIPE
        made.append(subprocess.Popen(program, stdin=pipe, stdout=pipe, start_new_session=True))
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.communicate()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def notes(said) -> Iterator[Notes]:
    made = Notes(said.append)
    yield made
    made.forget("web")


def texts(notes) -> list[str]:
    return [note.text.decode() for note in notes]


def slots(found: Found) -> list[tuple[str, str, str]]:
    return [(held.service, held.slot, held.meta) for held in found.held]


def count_fds(pid: int | str = "self") -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def connect(folder: Path) -> socket.socket:
    """A daemon that says what the test lets it say."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(folder / "keeper.sock"))
    return sock


def hold(sock: socket.socket, ear) -> None:
    message = {"type": "hold", "service": "web", "slot": "notify", "meta": "", "fds": 1}
    socket.send_fds(sock, [json.dumps(message).encode() + b"\n"], [ear.fileno()])


def greet(sock: socket.socket, version: int) -> bytes:
    """Say hello; what the keeper has, descriptors thrown away."""
    sock.sendall(b'{"type":"hello","version":%d,"fds":0}\n' % version)
    data = b""
    while b"kept_all" not in data:
        data += sock.recv(65536)
    return data


def is_same(one: int, other: int) -> bool:
    return os.path.sameopenfile(one, other)


async def settled(side) -> None:
    """The keeper has dealt with everything sent before: an ended output is reported in order."""
    reader, writer = os.pipe()
    os.close(writer)
    side.keep("marker", 1, reader, None, None)
    os.close(reader)
    while (await side.ended.get())[0] != "marker":
        pass


async def test_kill_9_of_the_daemon_gives_the_next_one_every_slot_back(
    make_side, make_ear, run_daemon
) -> None:
    ear = make_ear()
    with socket.create_server(("127.0.0.1", 0)) as listener, open(__file__) as stored:
        pid, _ = run_daemon(
            ("web", "notify", ear.fileno(), ""),
            ("web", "listen:http", listener.fileno(), "127.0.0.1:0"),
            ("web", "stored:1", stored.fileno(), "FDNAME=itself"),
        )
        address = listener.getsockname()
    client = socket.create_connection(address)  # nobody but the keeper has the listening socket
    side = make_side()
    found = await side.connect()
    assert side.pid == pid
    assert slots(found) == [
        ("web", "notify", ""),
        ("web", "listen:http", "127.0.0.1:0"),
        ("web", "stored:1", "FDNAME=itself"),
    ]
    ours, listening, file = (held.fd for held in found.held)
    assert not any(os.get_inheritable(fd) for fd in (ours, listening, file))
    assert is_same(ours, ear.fileno())
    with socket.socket(fileno=os.dup(listening)) as listener:
        accepted, _ = listener.accept()
    with client, accepted:
        accepted.sendall(b"hello")
        assert client.recv(10) == b"hello"
    assert os.path.samestat(os.fstat(file), os.stat(__file__))
    found.close()


async def test_what_is_said_while_no_daemon_is_there_is_told_to_the_next_in_order(
    make_side, make_ear, run_daemon, speak
) -> None:
    """More than the kernel queues (10): who speaks is not held up either."""
    web, api = make_ear(), make_ear()
    run_daemon(("web", "notify", web.fileno(), ""), ("api", "notify", api.fileno(), ""))
    before_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    speaker = speak(web.path, 40)
    assert speaker.stdout is not None
    assert speaker.stdout.readline() == b"said\n"
    web.wait_until_read()
    api.tell("READY=1")
    api.wait_until_read()
    web.tell("STOPPING=1\nSTATUS=\N{WAVING HAND SIGN}\0")
    web.wait_until_read()
    found = await make_side().connect()
    assert texts(found.notes) == [
        *(f"STATUS={number}" for number in range(40)),
        "READY=1",
        "STOPPING=1\nSTATUS=\N{WAVING HAND SIGN}\0",
    ]
    assert [note.service for note in found.notes[39:]] == ["web", "api", "web"]
    assert {(n.pid, n.uid, n.session) for n in found.notes[:40]} == {
        (speaker.pid, os.getuid(), speaker.pid)
    }
    assert (found.notes[41].pid, found.notes[41].session) == (os.getpid(), os.getsid(0))
    times = [before_ns, *(note.at_ns for note in found.notes)]
    assert times == sorted(set(times))
    assert times[-1] < time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    found.close()


async def test_what_was_queued_when_the_daemon_died_counts_though_its_sender_is_gone(
    make_side, make_ear, speak
) -> None:
    ear, side = make_ear(), make_side()
    await side.connect()
    side.hold("web", "notify", ear.fileno())
    await settled(side)
    speaker = speak(ear.path, 3)
    speaker.communicate()
    assert ear.has_unread, "while a daemon is connected, it is the one that reads"
    side._disconnect()
    ear.wait_until_read()
    found = await make_side().connect()
    assert [(n.text, n.pid, n.session) for n in found.notes] == [
        (b"STATUS=%d" % number, speaker.pid, 0) for number in range(3)
    ]
    found.close()


async def test_a_connected_daemon_is_the_only_one_that_reads(make_side, make_ear, run_daemon):
    ear = make_ear()
    run_daemon(("web", "notify", ear.fileno(), ""))
    side = make_side()
    (await side.connect()).close()
    ear.tell("READY=1")
    await settled(side)
    assert ear.has_unread


async def test_notes_stay_until_they_are_noted(make_side, make_ear, run_daemon) -> None:
    ear = make_ear()
    run_daemon(("web", "notify", ear.fileno(), ""))
    ear.tell("READY=1", "STATUS=a", "STATUS=b")
    ear.wait_until_read()
    assert run_daemon()[1] == 3, "this one is killed before it could commit them"
    ear.tell("STATUS=c")
    ear.wait_until_read()
    side = make_side()
    found = await side.connect()
    assert texts(found.notes) == ["READY=1", "STATUS=a", "STATUS=b", "STATUS=c"]
    found.close()
    side.noted(1)
    side.noted(0)
    side.noted(2)
    side._disconnect()
    side = make_side()
    found = await side.connect()
    assert texts(found.notes) == ["STATUS=b", "STATUS=c"]
    found.close()
    side.noted(9)
    side._disconnect()
    found = await make_side().connect()
    assert (slots(found), found.notes) == ([("web", "notify", "")], [])
    found.close()


async def test_a_stored_descriptor_comes_back_usable_and_is_not_kept_twice(
    make_side, make_ear, run_daemon
) -> None:
    ear = make_ear()
    pid, _ = run_daemon(("web", "notify", ear.fileno(), ""))
    ear.tell("READY=1")
    ear.wait_until_read()
    before = count_fds(pid)
    stored = os.memfd_create("state")
    os.write(stored, b"precious")
    ear.tell("FDSTORE=1\nFDNAME=state", fds=[stored, stored])
    ear.wait_until_read()
    os.close(stored)
    side = make_side()
    found = await side.connect()
    [_, note] = found.notes
    assert (note.text, len(note.fds)) == (b"FDSTORE=1\nFDNAME=state", 2)
    assert os.pread(note.fds[1], 100, 0) == b"precious"
    side.hold("web", "stored:0", note.fds[0], "state")
    side.noted(2)
    found.close()
    await settled(side)
    assert count_fds(pid) == before + 2, "the slot and the connection, and nothing else"
    side._disconnect()
    found = await make_side().connect()
    assert slots(found) == [("web", "notify", ""), ("web", "stored:0", "state")]
    assert os.pread(found.held[1].fd, 100, 0) == b"precious"
    found.close()


async def test_a_barrier_is_passed_while_no_daemon_is_there(make_ear, run_daemon) -> None:
    ear = make_ear()
    run_daemon(("web", "notify", ear.fileno(), ""))
    reader, writer = os.pipe()
    ear.tell("READY=1")
    ear.tell("BARRIER=1", fds=[writer])
    os.close(writer)
    assert select.select([reader], [], [], 5)[0], "its descriptor is closed"
    assert os.read(reader, 1) == b""
    os.close(reader)
    assert run_daemon()[1] == 2


async def test_after_leave_nothing_needs_the_slots_but_where_services_live_on(
    make_side, make_ear, is_dead
) -> None:
    ear, side = make_ear(), make_side()
    await side.connect()
    side.hold("web", "notify", ear.fileno())
    pid = side.pid
    side.close(keep=True)
    ear.tell("READY=1")
    ear.wait_until_read()
    os.kill(pid, signal.SIGTERM)
    side = make_side()
    found = await side.connect()
    assert side.pid == pid
    assert (slots(found), texts(found.notes)) == ([("web", "notify", "")], ["READY=1"])
    found.close()
    side.close()
    is_dead(pid)


@pytest.mark.parametrize("gone", ["socket", "folder"])
async def test_what_no_daemon_can_ask_for_any_more_keeps_no_keeper(
    gone, make_side, make_ear, is_dead, folder
) -> None:
    """It looks now and then; to be asked to end makes it look at once."""
    ear, side = make_ear(), make_side()
    await side.connect()
    side.hold("web", "notify", ear.fileno())
    pid = side.pid
    side.close(keep=True)
    (folder / "keeper.sock").unlink()
    if gone == "folder":
        shutil.rmtree(folder)
    os.kill(pid, signal.SIGTERM)
    is_dead(pid)


def test_a_keeper_finds_out_by_itself_that_no_daemon_can_come_any_more(
    folder, said, make_ear, monkeypatch
) -> None:
    monkeypatch.setattr(loop, "REACH_S", 0.01)
    monkeypatch.setattr(loop, "FIRST_CLIENT_S", 0.01)
    looks = iter([True, True, False])
    with listen(str(folder / "keeper.sock")) as listener:
        keeper = loop.Loop(listener, said.append, is_reachable=lambda: next(looks))
        keeper._slots.hold(("web", "notify"), "", [os.dup(make_ear().fileno())])
        keeper._has_left = False
        keeper.run()
        keeper.close()
    assert list(looks) == []


async def test_kill_9_of_the_keeper_hands_every_slot_over_to_the_next(make_side, make_ear) -> None:
    ear, side = make_ear(), make_side()
    await side.connect()
    with open(__file__) as first, open(os.devnull) as second:
        side.hold("web", "notify", ear.fileno(), "x")
        side.hold("web", "stored:1", first.fileno(), "one")
        side.hold("web", "stored:2", first.fileno(), "two")
        await settled(side)
        os.kill(side.pid, signal.SIGKILL)
        side.hold("web", "stored:1", second.fileno(), "another")
        side.drop("web", "stored:2")
        ear.tell("READY=1")
        assert "is gone" in await side.said.get()
        await settled(side)
        assert (len(side.processes), side.told.empty()) == (2, True)
        side._disconnect()
        ear.wait_until_read()
        found = await make_side().connect()
        assert sorted(slots(found)) == [("web", "notify", "x"), ("web", "stored:1", "another")]
        [held] = [held for held in found.held if held.slot == "stored:1"]
        assert os.path.samestat(os.fstat(held.fd), os.stat(os.devnull))
        assert texts(found.notes) == ["READY=1"], "it waited in the kernel"
    found.close()


async def test_a_keeper_met_again_holds_what_is_held_by_now(make_side) -> None:
    side = make_side()
    await side.connect()
    with open(__file__) as first, open(os.devnull) as second:
        side.hold("web", "stored:1", first.fileno(), "one")
        side.hold("web", "stored:2", first.fileno(), "two")
        await settled(side)
        side._lose("was left by the test")
        side.drop("web", "stored:1")
        side.hold("web", "stored:2", second.fileno(), "two")
        await settled(side)
        side._disconnect()
        found = await make_side().connect()
        [held] = found.held
        assert is_same(held.fd, second.fileno())
    assert len(side.processes) == 1
    found.close()


async def test_what_a_keeper_holds_that_was_too_slow_at_first_is_told_later(
    make_side, make_ear, run_daemon, monkeypatch
) -> None:
    with open(__file__) as file:
        pid, _count = run_daemon(("web", "socket:http", file.fileno(), "127.0.0.1:80"))
        late: asyncio.Queue[list[Held]] = asyncio.Queue()
        side = make_side(on_held=late.put_nowait)
        os.kill(pid, signal.SIGSTOP)
        monkeypatch.setattr("registry.keeper.client.HELLO_S", 0.05)
        assert slots(await side.connect()) == []
        monkeypatch.undo()
        os.kill(pid, signal.SIGCONT)
        [held] = await late.get()
        assert (held.service, held.slot, held.meta) == ("web", "socket:http", "127.0.0.1:80")
        assert is_same(held.fd, file.fileno())
    os.close(held.fd)


async def test_notes_of_a_keeper_met_again_are_told_once(make_side, make_ear, run_daemon) -> None:
    ear = make_ear()
    run_daemon(("web", "notify", ear.fileno(), ""))
    ear.tell("STATUS=a")
    ear.wait_until_read()
    side = make_side()
    found = await side.connect()
    assert texts(found.notes) == ["STATUS=a"]
    found.close()
    side._disconnect()
    ear.tell("READY=1", "STATUS=b")
    ear.wait_until_read()
    side._open()
    assert texts(await side.told.get()) == ["READY=1", "STATUS=b"]
    side.noted(2)
    side._disconnect()
    found = await make_side().connect()
    assert texts(found.notes) == ["STATUS=b"]
    found.close()


async def test_what_is_noted_while_the_keeper_is_out_of_reach_is_not_told_again(
    make_side, make_ear, run_daemon
) -> None:
    ear = make_ear()
    run_daemon(("web", "notify", ear.fileno(), ""))
    ear.tell("STATUS=a")
    ear.wait_until_read()
    side = make_side()
    (await side.connect()).close()
    side._lose("was left by the test")
    side.noted(1)
    await settled(side)
    side._disconnect()
    found = await make_side().connect()
    assert (len(found.held), found.notes) == (1, [])
    found.close()


async def test_dropping_the_notification_socket_drops_its_notes_alone(
    make_side, make_ear, run_daemon
) -> None:
    web, api = make_ear(), make_ear()
    run_daemon(("web", "notify", web.fileno(), ""), ("api", "notify", api.fileno(), ""))
    for ear in (web, api):
        ear.tell("READY=1", fds=[0])
        ear.wait_until_read()
    side = make_side()
    (await side.connect()).close()
    side.drop("web", "notify")
    side.drop("web", "listen:none")
    await settled(side)
    side._disconnect()
    found = await make_side().connect()
    assert slots(found) == [("api", "notify", "")]
    assert [note.service for note in found.notes] == ["api"]
    found.close()


async def test_an_older_keeper_is_survived_and_told_of_once(
    make_side, make_ear, make_output, folder
) -> None:
    root = str(Path(sys.modules[Notes.__module__].__file__ or "").parents[2])
    where = ["--socket", str(folder / "keeper.sock"), "--log", str(folder / "keeper.log")]
    old = subprocess.Popen([sys.executable, "-I", "-S", "-c", OLD_KEEPER, root, *where])
    while not (folder / "keeper.sock").exists():
        assert old.poll() is None
        os.sched_yield()
    side, ear, output = make_side(), make_ear(), make_output()
    assert await side.connect() == Found()
    assert side.said.empty(), "nothing is held yet"
    side.hold("web", "notify", ear.fileno())
    side.hold("web", "stored:1", ear.fileno())
    side.drop("web", "stored:1")
    assert f"keeper {old.pid} is of an older version" in side.said.get_nowait()
    side.keep("web", 1, output.reader, None, None)
    output.end()
    assert await side.ended.get() == ("web", 1, 0)
    assert side.said.empty()
    assert (folder / "keeper.log").read_text() == "", "it was sent nothing that it does not know"
    old.kill()  # as the message says
    old.wait()
    assert "is gone" in await side.said.get()
    await settled(side)
    side._disconnect()
    found = await make_side().connect()
    assert slots(found) == [("web", "notify", "")]
    found.close()


def test_an_older_daemon_is_sent_nothing_of_slots_and_its_services_are_heard(
    folder, make_ear, start_keeper
) -> None:
    keeper, ear = start_keeper(), make_ear()
    with connect(folder) as sock:
        hold(sock, ear)
        assert b"held" not in greet(sock, 1)
        ear.tell(*(f"STATUS={number}" for number in range(30)))
        sock.sendall(b'{"type":"drop","service":"web","slot":"notify","fds":0}\n')
        hold(sock, ear)
        hold(sock, ear)
        ear.tell(*(f"STATUS={number}" for number in range(30)))
        assert b"held" in greet(sock, 2)
    keeper.kill()


def test_the_keeper_stops_reading_when_a_daemon_connects_not_when_it_speaks(
    folder, make_ear, start_keeper
) -> None:
    keeper, ear = start_keeper(), make_ear()
    with connect(folder) as first:
        hold(first, ear)
    ear.tell("STATUS=x")
    ear.wait_until_read()
    while Path(f"/proc/{keeper.pid}/stat").read_text().split()[2] != "S":
        os.sched_yield()
    os.kill(keeper.pid, signal.SIGSTOP)  # so that it finds both at one wake-up
    os.waitpid(keeper.pid, os.WUNTRACED)
    with connect(folder) as second:
        ear.tell("READY=1")
        os.kill(keeper.pid, signal.SIGCONT)
        assert b"READY" not in greet(second, 2)
        assert ear.has_unread
    ear.wait_until_read()
    keeper.kill()


async def test_what_is_no_notification_socket_is_held_and_said_once(
    make_side, make_ear, folder, run_daemon
) -> None:
    ear, good = make_ear(), make_ear()
    ear.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
    with open(__file__) as file, socket.socket(socket.AF_UNIX) as stream:
        run_daemon(
            ("mute", "notify", ear.fileno(), ""),
            ("file", "notify", file.fileno(), ""),
            ("stream", "notify", stream.fileno(), ""),
            ("good", "notify", good.fileno(), ""),
        )
    ear.tell("READY=1", fds=[0])
    good.tell("READY=1")
    good.wait_until_read()
    ear.wait_until_read()
    found = await make_side().connect()
    assert {held.service for held in found.held} == {"mute", "file", "stream", "good"}
    assert [note.service for note in found.notes] == ["good"]
    log = (folder / "keeper.log").read_text()
    assert "cannot read the notifications of mute: it does not say who sends" in log
    for unreadable in ("file", "stream"):
        assert log.count(f"cannot read the notifications of {unreadable}") == 1
    found.close()


async def test_a_text_too_long_is_refused_in_one_sentence(make_side) -> None:
    side = make_side()
    await side.connect()
    with pytest.raises(ValueError, match=f"cannot hold stored:1 of web: .* {META_MAX} are"):
        side.hold("web", "stored:1", 0, "x" * (META_MAX + 1))
    side.hold("web", "stored:1", 0, "\N{WAVING HAND SIGN}" * META_MAX)
    await settled(side)
    side._disconnect()
    found = await make_side().connect()
    assert found.held[0].meta == "\N{WAVING HAND SIGN}" * META_MAX
    found.close()


async def test_no_descriptor_leaks(make_side, make_ear, run_daemon) -> None:
    ear = make_ear()
    pid, _ = run_daemon(("web", "notify", ear.fileno(), ""))
    side = make_side()
    (await side.connect()).close()
    await settled(side)
    before = count_fds(pid), count_fds()
    for number in range(100):
        side.hold("web", f"stored:{number % 7}", 0)
        side.hold("web", "notify", ear.fileno())
        side.drop("web", f"stored:{number % 5}")
    for number in range(7):
        side.drop("web", f"stored:{number}")
    for _ in range(5):
        side._disconnect()
        ear.tell("FDSTORE=1", fds=[0] * 10)
        ear.wait_until_read()
        side._open()
        [note] = await side.told.get()
        for fd in note.fds:
            os.close(fd)
    side.noted(5)
    side.ended = asyncio.Queue()
    await settled(side)
    assert (count_fds(pid), count_fds()) == before


def test_a_heartbeat_replaces_the_earlier_one_of_its_sender_alone(notes, make_ear, speak) -> None:
    ear = make_ear()
    speaker = speak(ear.path, 1)
    assert select.select([ear.socket], [], [], 5)[0]
    ear.tell("WATCHDOG=1", "STATUS=a", "WATCHDOG=1\nSTATUS=b", "WATCHDOG=1\n")
    ear.tell("WATCHDOG=1", fds=[0])
    notes.read("web", ear.fileno())
    assert texts(notes.in_order()) == [
        "STATUS=0",
        "STATUS=a",
        "WATCHDOG=1\nSTATUS=b",
        "WATCHDOG=1\n",
        "WATCHDOG=1",
    ]
    child = subprocess.run(
        [sys.executable, "-c", SPEAKER.replace("STATUS=%d", "WATCHDOG=%d"), str(ear.path), "2"],
        stdin=subprocess.DEVNULL,
        check=True,
    )
    assert child.returncode == 0
    assert speaker.poll() is None
    notes.read("web", ear.fileno())
    assert texts(notes.in_order())[3:] == ["WATCHDOG=1\n", "WATCHDOG=1", "WATCHDOG=0", "WATCHDOG=1"]


def test_when_full_what_changes_least_goes_first(notes, make_ear, said) -> None:
    ear = make_ear()

    def tell(*told: str, fds: list[int] | None = None) -> None:
        for text in told:
            ear.tell(text, fds=fds)
            notes.read("web", ear.fileno())

    weighty = ["READY=1", "X=1\nMAINPID=5", "STOPPING=1", "FDSTOREREMOVE=1\nFDNAME=x"]
    tell("STATUS=with", fds=[0])
    tell(*weighty)
    tell(*(f"STATUS={number}" for number in range(NOTES_MAX)))
    expected = ["STATUS=with", *weighty, *(f"STATUS={n}" for n in range(5, NOTES_MAX))]
    assert texts(notes.in_order()) == expected
    assert said == []
    tell(*["READY=1"] * (NOTES_MAX - 5))
    tell("STATUS=last")
    assert texts(notes.in_order()) == ["STATUS=with", *weighty, *["READY=1"] * (NOTES_MAX - 5)]
    before = count_fds()
    tell("READY=2")
    assert texts(notes.in_order())[0] == "READY=1"
    assert texts(notes.in_order())[-1] == "READY=2"
    assert count_fds() == before - 1
    assert said == [f"dropped a notification of web: {NOTES_MAX} later ones wait"]
    other = make_ear()
    other.tell("STATUS=x")
    notes.read("api", other.fileno())
    assert len(notes.in_order()) == NOTES_MAX + 1, "each service has its own bound"


def test_descriptors_beyond_the_bound_are_closed(notes, make_ear, said) -> None:
    ear = make_ear()
    before = count_fds()
    for _ in range(3):
        ear.tell("FDSTORE=1", fds=[0] * 30)
    ear.tell("BARRIER=1", fds=[0])
    notes.read("web", ear.fileno())
    assert [len(note.fds) for note in notes.in_order()] == [30, 30, STORED_MAX - 60, 0]
    assert count_fds() == before + STORED_MAX
    assert said == [f"web sent more than {STORED_MAX} descriptors: closed the rest"]
    notes.forget_until(notes.in_order()[0].at_ns)
    ear.tell("FDSTORE=1", fds=[0] * 253)
    notes.read("web", ear.fileno())
    assert [len(note.fds) for note in notes.in_order()] == [30, 4, 0, 30]
    notes.forget("web")
    assert count_fds() == before


def test_one_wake_up_takes_so_many_and_leaves_the_rest_for_the_next(
    notes, make_ear, monkeypatch
) -> None:
    """A service that never stops talking holds no other up."""
    monkeypatch.setattr("registry.keeper.notes.BURST_MAX", 3)
    ear = make_ear()
    ear.tell(*"abcde")
    notes.read("web", ear.fileno())
    assert texts(notes.in_order()) == ["a", "b", "c"]
    notes.read("web", ear.fileno())
    assert texts(notes.in_order()) == ["a", "b", "c", "d", "e"]


def test_a_message_too_long_is_ignored_and_said(notes, make_ear, said) -> None:
    ear = make_ear()
    before = count_fds()
    ear.tell("x" * TEXT_MAX)
    ear.tell("x" * (TEXT_MAX + 1), fds=[0])
    notes.read("web", ear.fileno())
    assert texts(notes.in_order()) == ["x" * TEXT_MAX]
    assert (count_fds(), len(said)) == (before, 1)
