"""What services say by sd_notify(3): from whom it counts, until when it is kept, and what it means."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import select
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.host import notify
from registry.host.notify import (
    AT_ONCE_MAX,
    KEPT_AS,
    NOTICE_MAX,
    SAID_MAX,
    STATUS_MAX,
    Done,
    Notice,
    Notices,
    parse,
)

pytestmark = pytest.mark.platform("linux")

ANOTHER_UID = 65534 if os.geteuid() == 0 else os.getuid()


# --- what a datagram says -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "notice"),
    [
        (b"READY=1", Notice(ready=True)),
        (b"READY=1\nSTATUS=up\n", Notice(ready=True, status="up")),
        (b"READY=1\0", Notice(ready=True)),
        (b"READY=0", Notice()),
        (b"ready=1", Notice()),
        (b"READY", Notice()),
        (b"STOPPING=1\r\nREADY=1", Notice(stopping=True, ready=True)),
        (b"RELOADING=1\nMONOTONIC_USEC=12", Notice(reloading=True)),
        (b"STATUS=", Notice(status="")),
        (b"STATUS=a=b", Notice(status="a=b")),
        (b"STATUS=\x1b[31mred\t", Notice(status="\\x1b[31mred\\t")),
        (b"STATUS=\xff", Notice()),
        ("STATUS=ü".encode(), Notice(status="ü")),
        (b"STATUS=" + b"x" * 1000, Notice(status="x" * STATUS_MAX)),
        (b"STATUS=a\nSTATUS=b", Notice(status="b")),
        (b"STATUS=a\nSTATUS=\xff", Notice(status="a")),
        (b"ERRNO=2", Notice(errno=2)),
        (b"ERRNO=-2", Notice()),
        (b"ERRNO=99999", Notice()),
        (b"EXIT_STATUS=3\nX_OURS=1\nBUSERROR=x", Notice()),
        (b"MAINPID=4711", Notice(main_pid=4711)),
        (b"MAINPID=0", Notice()),
        (b"MAINPID=12x", Notice()),
        ("MAINPID=²".encode(), Notice()),
        (b"EXTEND_TIMEOUT_USEC=1500000", Notice(extend_s=1.5)),
        (b"EXTEND_TIMEOUT_USEC=0", Notice()),
        (b"EXTEND_TIMEOUT_USEC=18446744073709551615", Notice()),
        (b"WATCHDOG=1", Notice(beats=True)),
        (b"WATCHDOG=trigger", Notice(triggers=True)),
        (b"WATCHDOG=1\nWATCHDOG=trigger", Notice(triggers=True)),
        (b"WATCHDOG=2", Notice()),
        (b"WATCHDOG_USEC=250000", Notice(watchdog_s=0.25)),
        (b"WATCHDOG_USEC=0", Notice(watchdog_s=0.0)),
        (b"WATCHDOG_USEC=18446744073709551615", Notice(watchdog_s=0.0)),
        (b"WATCHDOG_USEC=18446744073709551616", Notice()),
        (b"WATCHDOG_USEC=99999999999999999999999", Notice()),
        (b"FDSTORE=1", Notice(stores=True)),
        (b"FDSTORE=1\nFDNAME=state 1", Notice(stores=True, fd_name="state 1")),
        (b"FDSTORE=1\nFDNAME=a:b", Notice(stores=True)),
        (b"FDSTORE=1\nFDNAME=", Notice(stores=True)),
        (b"FDSTORE=1\nFDNAME=" + b"n" * 256, Notice(stores=True)),
        (b"FDSTORE=1\nFDNAME=" + b"n" * 255, Notice(stores=True, fd_name="n" * 255)),
        (b"FDSTOREREMOVE=1\nFDNAME=x", Notice(removes=True, fd_name="x")),
        (b"FDSTORE=1\nFDSTOREREMOVE=1\nFDNAME=x", Notice(removes=True, fd_name="x")),
        (b"FDSTOREREMOVE=1", Notice()),
        (b"BARRIER=1", Notice(barrier=True)),
        (b"BARRIER=1\nREADY=1", Notice(barrier=True)),
        (b"READY=1\0STATUS=x", Notice()),
        (b"READY=1\nX=" + b"x" * NOTICE_MAX, Notice()),
        (b"", Notice()),
    ],
)
def test_a_datagram_says(text, notice):
    assert parse(text) == notice


KEYS = (
    *(b"READY", b"STOPPING", b"RELOADING", b"STATUS", b"ERRNO", b"MAINPID", b"EXTEND_TIMEOUT_USEC"),
    *(b"WATCHDOG", b"WATCHDOG_USEC", b"FDSTORE", b"FDNAME", b"FDSTOREREMOVE", b"BARRIER", b"X"),
)
LINES = st.builds(
    lambda key, value: key + b"=" + value,
    st.sampled_from(KEYS),
    st.one_of(st.sampled_from([b"1", b"0", b"trigger", b""]), st.binary(max_size=30)),
)
TEXTS = st.one_of(st.binary(), st.lists(LINES, max_size=8).map(b"\n".join))


@given(TEXTS)
def test_whatever_is_sent_is_understood_or_ignored(text):
    notice = parse(text)
    assert notice.status is None or notice.status.isprintable()
    assert notice.status is None or len(notice.status) <= STATUS_MAX
    assert notice.errno is None or notice.errno >= 0
    assert notice.main_pid is None or notice.main_pid > 0
    assert notice.extend_s is None or notice.extend_s > 0
    assert notice.watchdog_s is None or notice.watchdog_s >= 0
    assert re.fullmatch("[ -9;-~]{1,255}", notice.fd_name)
    assert not (notice.beats and notice.triggers)
    assert not (notice.stores and notice.removes)


@given(TEXTS, st.binary(max_size=20).filter(lambda value: not {0, 10, 13} & {*value}))
def test_what_is_unknown_changes_nothing(text, value):
    text = text.removesuffix(b"\0")
    assert parse(text + b"\nX_CIRCLEOSD=" + value) == parse(text)


# --- sockets --------------------------------------------------------------------------------------


class Desk:
    """Where notices arrive. `auto`: they are done as soon as they are heard."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.heard: asyncio.Queue[tuple[str, Notice, int, tuple[int, ...], Done]] = asyncio.Queue()
        self.members: set[int] = {os.getpid()}
        self.asked: asyncio.Queue[tuple[str, int, int, int]] = asyncio.Queue()
        self.auto = True
        self.kept: dict[tuple[str, str], int] = {}
        self.holds = 0
        self.refuses: OSError | None = None
        self.notices = self.make()

    def make(self) -> Notices:
        return Notices(
            self.folder,
            is_member=self._is_member,
            on_notice=self._hear,
            hold=self._hold,
            drop=self.drop,
        )

    def _is_member(self, service: str, pid: int, uid: int, session: int) -> bool:
        self.asked.put_nowait((service, pid, uid, session))
        return pid in self.members

    def _hear(
        self, service: str, notice: Notice, pid: int, fds: tuple[int, ...], done: Done
    ) -> None:
        self.heard.put_nowait((service, notice, pid, fds, done))
        if self.auto:
            done()

    def _hold(self, service: str, name: str, fd: int) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.holds += 1
        self.drop(service, name)
        self.kept[service, name] = os.dup(fd)

    def drop(self, service: str, name: str) -> None:
        held = self.kept.pop((service, name), None)
        if held is not None:
            os.close(held)

    async def next(self) -> Notice:
        return (await self.heard.get())[1]

    def keeper(self, service: str = "web") -> socket.socket:
        """The keeper's copy of a service's socket."""
        return socket.socket(fileno=os.dup(self.kept[service, KEPT_AS]))

    def close(self) -> None:
        self.notices.close()
        for service, name in list(self.kept):
            self.drop(service, name)


@pytest.fixture
async def desk(short_dir: Path) -> AsyncIterator[Desk]:
    made = Desk(short_dir / "notify")
    yield made
    made.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe whose ends are closed in the end, where nobody has done so."""
    ends = [os.fdopen(fd, "wb" if number else "rb", 0) for number, fd in enumerate(os.pipe())]
    yield ends[0].fileno(), ends[1].fileno()
    for end in ends:
        end.close()


def send(path: str, text: bytes, *fds: int) -> None:
    """Say something, as a library would."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(path)
        socket.send_fds(sender, [text], fds) if fds else sender.send(text)


CLIENT = """\
import os, socket, sys
sys.stdin.readline()
sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sender.connect(os.environ["NOTIFY_SOCKET"])
for text in sys.argv[1:]:
    sender.send(text.encode())
sys.stdin.readline()
"""


class Client:
    """A process that says something when told to, and lives until it is told again."""

    def __init__(self, path: str, *texts: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", CLIENT, *texts],
            env={"NOTIFY_SOCKET": path},
            stdin=subprocess.PIPE,
        )
        self.pid = self._process.pid

    def tell(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()

    def close(self) -> None:
        if self._process.returncode is None:
            self._process.communicate(b"\n")


@pytest.fixture
def client() -> Iterator[Callable[..., Client]]:
    made: list[Client] = []

    def make(path: str, *texts: str) -> Client:
        made.append(Client(path, *texts))
        return made[-1]

    yield make
    for each in made:
        each.close()


async def hung_up(fd: int) -> None:
    """Wait until nobody has the other end of a pipe open: as sd_notify_barrier(3) waits for POLLHUP."""
    hung = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(fd, hung.set)
    await hung.wait()
    loop.remove_reader(fd)
    assert os.read(fd, 1) == b""


async def settle() -> None:
    """Let the loop look at its descriptors some times."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_member_is_heard_and_a_stranger_is_not(desk, client, caplog):
    path = desk.notices.open("web", None)
    member, stranger = client(path, "READY=1"), client(path, "STATUS=no", "STATUS=no", "STATUS=no")
    desk.members.add(member.pid)
    stranger.tell()
    own = (os.getuid(), os.getsid(0))
    for _ in range(3):
        assert await desk.asked.get() == ("web", stranger.pid, *own)
    member.tell()
    service, notice, pid, fds, _ = await desk.heard.get()
    assert (service, notice, pid, fds) == ("web", Notice(ready=True), member.pid, ())
    assert desk.heard.empty()
    assert desk.asked.get_nowait() == ("web", member.pid, *own)
    assert [record.getMessage() for record in caplog.records] == [
        f"The notification socket of web was told something by process {stranger.pid} of uid {os.getuid()}, "
        "which is not one of its own: ignored"
    ]


async def test_strangers_do_not_fill_the_log(desk, caplog):
    for pid in range(100, 300):
        desk.notices.deliver("web", pid, 0, 0, b"READY=1", (), lambda: None)
    assert len(caplog.records) == SAID_MAX
    desk.notices.deliver("db", 100, 0, 0, b"READY=1", (), lambda: None)
    assert len(caplog.records) == SAID_MAX + 1


async def test_whoever_is_gone_when_he_is_heard_has_no_session(desk, client):
    path = desk.notices.open("web", None)
    sender = client(path, "READY=1")
    sender.tell()
    sender.close()
    assert await desk.asked.get() == ("web", sender.pid, os.getuid(), 0)


def test_a_sender_of_no_pid_has_not_our_own_session():
    assert notify._session(0) == 0  # the kernel's word for one outside our pid namespace


async def test_more_than_the_kernel_queues_arrives_in_order(desk, client):
    count = 3 * AT_ONCE_MAX
    sender = client(
        desk.notices.open("web", None), *(f"STATUS={number}" for number in range(count))
    )
    desk.members.add(sender.pid)
    sender.tell()
    assert [(await desk.next()).status for _ in range(count)] == [str(n) for n in range(count)]


@pytest.mark.parametrize(
    "argv",
    [
        *([["systemd-notify", "--ready", "--status=up"]] if shutil.which("systemd-notify") else []),
        [sys.executable, "-c", CLIENT, "READY=1\nSTATUS=up"],
    ],
    ids=lambda argv: os.path.basename(argv[0]),
)
async def test_clients_are_understood(desk, argv, monkeypatch):
    monkeypatch.setattr(desk, "_is_member", lambda *sender: True)
    desk.notices = desk.make()
    environment = {**os.environ, "NOTIFY_SOCKET": desk.notices.open("web", None)}
    process = await asyncio.create_subprocess_exec(*argv, env=environment, stdin=subprocess.DEVNULL)
    said = await desk.next()
    assert await process.wait() == 0
    assert said == Notice(ready=True, status="up")


# --- until it is done -----------------------------------------------------------------------------


async def test_what_is_not_done_stays_on_the_socket(desk):
    desk.auto = False
    path = desk.notices.open("web", None)
    send(path, b"READY=1")
    *_, done = await desk.heard.get()
    with desk.keeper() as keeper:
        assert keeper.recv(100, socket.MSG_PEEK) == b"READY=1"
        done()
        with pytest.raises(BlockingIOError):
            keeper.recv(100)


async def test_what_was_not_done_is_heard_by_the_next_daemon(desk):
    desk.auto = False
    path = desk.notices.open("web", None)
    send(path, b"READY=1")
    send(path, b"STATUS=later")
    *_, done = await desk.heard.get()
    desk.notices.close()
    done()  # too late: the daemon is gone
    desk.notices, desk.auto = desk.make(), True
    desk.notices.adopt("web", os.dup(desk.kept["web", KEPT_AS]))
    assert await desk.next() == Notice(ready=True)
    assert await desk.next() == Notice(status="later")
    assert desk.notices.open("web", None) == path
    assert desk.holds == 1


async def test_one_at_a_time_is_out_and_none_twice(desk):
    desk.auto = False
    path = desk.notices.open("web", None)
    for number in range(3):
        send(path, b"STATUS=%d" % number)
    for number in range(3):
        _, notice, *_, done = await desk.heard.get()
        await settle()
        assert desk.heard.empty()
        assert notice.status == str(number)
        done()
        done()  # a second time it means nothing


async def test_who_has_ended_is_heard_to_the_end_at_once_and_all_of_it_stays_until_it_is_done(desk):
    desk.auto = False
    path = desk.notices.open("web", None)
    for number in range(3):
        send(path, b"STATUS=%d" % number)
    dones = [(await desk.heard.get())[-1]]
    desk.notices.read("web")
    while not desk.heard.empty():
        dones.append(desk.heard.get_nowait()[-1])
    assert len(dones) == 3
    with desk.keeper() as keeper:
        dones[1]()
        assert keeper.recv(100, socket.MSG_PEEK) == b"STATUS=0", "what is before it is not done"
        dones[0]()
        assert keeper.recv(100, socket.MSG_PEEK) == b"STATUS=2"
        dones[2]()
        with pytest.raises(BlockingIOError):
            keeper.recv(100)
    send(path, b"STATUS=3")
    assert (await desk.next()).status == "3"


async def test_a_service_waits_for_itself_only(desk):
    desk.auto = False
    send(desk.notices.open("slow", None), b"READY=1")
    await desk.heard.get()
    send(desk.notices.open("web", None), b"READY=1")
    assert (await desk.heard.get())[0] == "web"


async def test_what_the_keeper_took_meanwhile_does_not_cost_the_next_one(desk):
    desk.auto = False
    path = desk.notices.open("web", None)
    send(path, b"STATUS=1")
    send(path, b"STATUS=2")
    *_, done = await desk.heard.get()
    with desk.keeper() as keeper:
        assert keeper.recv(100) == b"STATUS=1"
    done()
    assert (await desk.next()).status == "2"


async def test_a_receiver_that_fails_does_not_silence_the_service(desk, monkeypatch, caplog):
    failed = asyncio.Event()

    def fail(*_given: object) -> None:
        failed.set()
        raise RuntimeError("of its own")

    path = desk.notices.open("web", None)
    with monkeypatch.context() as patch:
        patch.setattr(desk.notices, "_on_notice", fail)
        send(path, b"READY=1")
        await failed.wait()
    send(path, b"STATUS=2")
    assert (await desk.next()).status == "2"
    assert "got lost" in caplog.text


async def test_a_service_can_be_closed_by_what_it_says(desk, monkeypatch):
    path = desk.notices.open("web", None)
    heard = desk._hear

    def hear(service: str, *rest: object) -> None:
        desk.notices.close_service(service)
        heard(service, *rest)

    monkeypatch.setattr(desk.notices, "_on_notice", hear)
    send(path, b"STOPPING=1")
    assert (await desk.next()).stopping
    await settle()
    assert not os.path.exists(path)


async def test_a_longer_one_is_ignored_whole(desk, caplog):
    path = desk.notices.open("web", None)
    for _ in range(2):
        send(path, b"READY=1\nX=".ljust(NOTICE_MAX + 1, b"x"))
    send(path, b"STATUS=2\nX=".ljust(NOTICE_MAX, b"x"))
    assert await desk.next() == Notice(status="2")
    assert [record.getMessage() for record in caplog.records] == [
        "The notification socket of web said more than 4096 bytes at once: ignored"
    ]


async def test_nothing_said_is_nothing(desk):
    path = desk.notices.open("web", None)
    for text in (b"", b"X_OURS=1", b"READY=0"):
        send(path, text)
    send(path, b"READY=1")
    assert await desk.next() == Notice(ready=True)
    assert desk.asked.qsize() == 1


# --- descriptors ----------------------------------------------------------------------------------


async def test_descriptors_to_be_stored_are_handed_over(desk, pipe):
    path = desk.notices.open("web", None)
    send(path, b"FDSTORE=1\nFDNAME=state", *pipe)
    _, notice, _, fds, _ = await desk.heard.get()
    assert (notice.stores, notice.fd_name, len(fds)) == (True, "state", 2)
    assert [os.fstat(fd).st_ino for fd in fds] == [os.fstat(fd).st_ino for fd in pipe]
    assert not any(os.get_inheritable(fd) for fd in fds)
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("text", [b"READY=1", b"FDSTORE=1", b"X=1"])
async def test_descriptors_that_nobody_takes_are_closed(desk, text):
    if text == b"FDSTORE=1":
        desk.members.clear()  # from a stranger
    path = desk.notices.open("web", None)
    read_end, write_end = os.pipe()
    send(path, text, write_end)
    os.close(write_end)
    await hung_up(read_end)
    os.close(read_end)


async def test_a_barrier_falls_when_all_before_it_is_done(desk):
    desk.auto = False
    path = desk.notices.open("web", None)
    send(path, b"READY=1")
    read_end, write_end = os.pipe()
    send(path, b"BARRIER=1", write_end)
    os.close(write_end)
    *_, done = await desk.heard.get()
    await settle()
    assert not select.select([read_end], [], [], 0)[0]
    done()
    await hung_up(read_end)
    os.close(read_end)
    assert desk.heard.empty()


async def test_without_a_free_descriptor_the_words_still_count(desk, pipe, monkeypatch, caplog):
    path = desk.notices.open("web", None)
    monkeypatch.setattr("registry.host.notify.SCM_MAX_FD", 2)
    send(path, b"READY=1\nFDSTORE=1", *pipe, *pipe)
    _, notice, _, fds, _ = await desk.heard.get()
    for fd in fds:
        os.close(fd)
    assert (notice.ready, len(fds)) == (True, 2)
    assert "more descriptors than we can have open" in caplog.text


# --- what the keeper read -------------------------------------------------------------------------


async def test_what_the_keeper_read_is_judged_alike(desk):
    told: list[str] = []
    own = (os.getpid(), os.getuid(), os.getsid(0))
    desk.notices.deliver("web", *own, b"READY=1", (), lambda: told.append("ours"))
    desk.notices.deliver("web", 1, 0, 0, b"READY=1", (), lambda: told.append("a stranger's"))
    assert await desk.next() == Notice(ready=True)
    assert desk.heard.empty()
    assert told == ["ours", "a stranger's"]
    assert [desk.asked.get_nowait() for _ in told] == [("web", *own), ("web", 1, 0, 0)]


async def test_a_barrier_that_the_keeper_read_falls(desk):
    read_end, write_end = os.pipe()
    desk.notices.deliver("web", os.getpid(), 0, 0, b"BARRIER=1", [write_end], lambda: None)
    await hung_up(read_end)
    os.close(read_end)


# --- the files ------------------------------------------------------------------------------------


async def test_a_socket_is_its_users_alone(desk):
    umask_before = os.umask(0)
    try:
        path = desk.notices.open("web@1", ANOTHER_UID)
    finally:
        os.umask(umask_before)
    found = os.stat(path)
    assert stat.S_ISSOCK(found.st_mode)
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o600, ANOTHER_UID)
    assert stat.S_IMODE(desk.folder.stat().st_mode) == 0o711
    assert not os.get_inheritable(desk.notices._inboxes["web@1"].sock.fileno())
    desk.notices.open("web@1", os.getuid())
    assert os.stat(path).st_uid == os.getuid()


async def test_an_open_socket_is_used_again(desk):
    path = desk.notices.open("web", None)
    inode = os.stat(path).st_ino
    assert desk.notices.open("web", None) == path
    assert (os.stat(path).st_ino, desk.holds) == (inode, 1)


@pytest.mark.parametrize("trouble", ["gone", "dead", "another"])
async def test_a_socket_whose_file_is_not_its_own_is_made_anew(desk, trouble):
    path = desk.notices.open("web", None)
    os.unlink(path)
    other = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    if trouble != "gone":
        other.bind(path)
    if trouble == "dead":
        other.close()
    desk.notices.close()
    desk.notices = desk.make()
    desk.notices.adopt("web", os.dup(desk.kept["web", KEPT_AS]))
    assert desk.notices.open("web", None) == path
    send(path, b"READY=1")
    assert (await desk.next()).ready
    assert desk.holds == 2
    other.close()


async def test_what_the_keeper_held_and_is_no_such_socket_is_dropped(desk, pipe, caplog):
    desk.kept["web", KEPT_AS] = os.dup(pipe[0])
    one, other = socket.socketpair()
    desk.notices.adopt("web", one.detach())
    other.close()
    assert not desk.kept
    assert "is none" in caplog.text


async def test_a_closed_service_leaves_nothing(desk):
    path = desk.notices.open("web", None)
    desk.notices.close_service("web")
    desk.notices.close_service("web")
    assert not os.path.exists(path)
    assert not desk.kept


async def test_a_service_is_closed_though_no_descriptor_is_free(desk, monkeypatch):
    def none_free(*_given: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    desk.notices.open("web", None)
    with monkeypatch.context() as patch:
        patch.setattr("registry.host.notify.socket.socket", none_free)
        desk.notices.close_service("web")
    assert not desk.kept


async def test_the_end_of_the_daemon_leaves_socket_and_keeper_alone(desk):
    path = desk.notices.open("web", None)
    desk.notices.close()
    send(path, b"READY=1")
    with desk.keeper() as keeper:
        assert keeper.recv(100) == b"READY=1"


async def test_a_long_name_has_a_short_file(desk, short_dir):
    desk.folder = short_dir / ("d" * (80 - len(str(short_dir))))
    desk.notices = desk.make()
    names = ["n" * 60 + end for end in "ab"]
    paths = [desk.notices.open(name, None) for name in names]
    assert len({*paths}) == 2
    assert all(len(path) <= 107 for path in paths)
    assert [desk.notices.open(name, None) for name in names] == paths
    send(paths[0], b"READY=1")
    assert (await desk.heard.get())[0] == names[0]


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("d" * 110, ["is longer than 107 bytes", "shorter path"]),
        ("file/notify", ["Not a directory", "move away what is there"]),
    ],
)
async def test_a_folder_that_cannot_be_is_named(desk, short_dir, folder, words):
    (short_dir / "file").touch()
    desk.folder = short_dir / folder
    desk.notices = desk.make()
    with pytest.raises(OSError, match="cannot make the notification socket of web") as caught:
        desk.notices.open("web", None)
    assert all(word in str(caught.value) for word in [str(desk.folder), *words])


async def test_what_the_keeper_cannot_hold_is_not_opened(desk):
    desk.refuses = OSError(24, "Too many open files")
    with pytest.raises(OSError, match="Too many open files"):
        desk.notices.open("web", None)
    assert not list(desk.folder.iterdir())


async def test_a_user_who_cannot_enter_the_folder_is_told_of(desk, short_dir, caplog):
    short_dir.chmod(0o700)
    desk.notices.open("web", 4_000_000 if os.geteuid() == 0 else os.getuid())
    said = f"uid 4000000 cannot enter {short_dir}; chmod a+x it" in caplog.text
    assert said is (os.geteuid() == 0)


async def test_no_folder_is_closed_to_root(desk, short_dir, caplog):
    is_root = os.geteuid() == 0
    desk.folder.mkdir()
    short_dir.chmod(0o600 if is_root else 0o700)
    desk.notices.open("web", os.getuid())
    assert not caplog.records
