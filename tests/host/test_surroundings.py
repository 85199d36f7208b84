"""What surrounds a run: what it is given, whose word counts for it, and what follows from what it says."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from registry.core import inputs as inp
from registry.core.definition import Check, Definition, Ready, Socket
from registry.host import proc
from registry.host.health import Prober
from registry.host.launch import Launch
from registry.host.notify import Done
from registry.host.process import Runner
from registry.host.surroundings import NEWS_MAX, Surroundings

pytestmark = pytest.mark.platform("linux")

LAUNCH = Launch(("/bin/true",), {"A": "b"}, "/", 0o22, None, None, ())
LEADER = 4711
MARK = "journal/web/1"


class Keeper:
    """Holds what it is handed, as the real one does."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], tuple[int, str]] = {}

    def hold(self, service: str, slot: str, fd: int, meta: str = "") -> None:
        self.held[service, slot] = (os.dup(fd), meta)

    def drop(self, service: str, slot: str) -> None:
        os.close(self.held.pop((service, slot))[0])

    def close(self) -> None:
        for service, slot in list(self.held):
            self.drop(service, slot)


class Processes:
    """Whose processes are whose, as the runner would say."""

    def __init__(self) -> None:
        self.leaders: dict[tuple[str, int], int] = {}
        self.owners: dict[int, str] = {}
        self.mains: dict[int, tuple[int, int | None]] = {}

    def leader_of(self, service: str, run: int) -> int | None:
        return self.leaders.get((service, run))

    def owner_of(self, pid: int) -> str | None:
        return self.owners.get(pid)

    def change_main(self, _service: str, _run: int, pid: int) -> tuple[int, int | None] | None:
        return self.mains.get(pid)


class Checks:
    """A prober that notes what it is told, once it listens."""

    def __init__(self) -> None:
        self.listens = True
        self.told: list[str] = []

    def beat(self, service: str) -> bool:
        return self._take(f"beat of {service}")

    def trigger(self, service: str, text: str) -> bool:
        return self._take(f"{service}: {text}")

    def _take(self, what: str) -> bool:
        if self.listens:
            self.told.append(what)
        return self.listens


class Held(msgspec.Struct):
    service: str
    slot: str
    meta: str
    fd: int


class Note(msgspec.Struct):
    text: bytes
    service: str = "web"
    pid: int = LEADER
    uid: int = 0
    session: int = LEADER
    fds: tuple[int, ...] = ()


class World:
    """Surroundings and all around them. What they observe is committed when `commit` says so."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keeper = Keeper()
        self.processes = Processes()
        self.checks = Checks()
        self.seen: list[tuple[str, inp.Observation]] = []
        self.undone: list[Done] = []
        self.commits_at_once = True
        self.woken = asyncio.Event()
        self.around = self._make()

    def _make(self) -> Surroundings:
        runner, prober = cast(Runner, self.processes), cast(Prober, self.checks)
        return Surroundings(self.folder, self.keeper, runner, prober, self._observe)

    def _observe(self, service: str, given: inp.Observation, done: Done | None) -> None:
        self.seen.append((service, given))
        self.woken.set()
        if done is not None:
            self.undone.append(done)
        if self.commits_at_once:
            self.commit()

    def commit(self) -> None:
        while self.undone:
            self.undone.pop(0)()

    def begin(self, service: str = "web", run: int = 1) -> None:
        self.processes.leaders[service, run] = LEADER
        self.around.begin(service, run, f"journal/{service}/{run}")

    def hear(self, *texts: bytes, **sender: Any) -> int:
        """What a service said while nobody was there; how often it was said to be done."""
        counted: list[None] = []
        notes = [Note(text, **sender) for text in texts]
        self.around.hear_late(notes, lambda: counted.append(None))
        return len(counted)

    def found(self) -> list[Held]:
        """What another daemon gets from the keeper."""
        held = self.keeper.held.items()
        return [Held(service, slot, meta, os.dup(fd)) for (service, slot), (fd, meta) in list(held)]

    def crash(self) -> None:
        """Another daemon begins: only the keeper knows anything."""
        self.around.close()
        self.around = self._make()

    def close(self) -> None:
        self.around.close()
        self.keeper.close()


@pytest.fixture
async def world(short_dir: Path) -> AsyncIterator[World]:
    before = len(os.listdir("/dev/fd"))
    made = World(short_dir)
    yield made
    made.close()
    assert len(os.listdir("/dev/fd")) == before, "descriptors have leaked"


def web(**keys: Any) -> Definition:
    return Definition("web", ("true",), **keys)


HEART = Check("heart", "heartbeat:", interval_s=1.5)


# --- what a run is given --------------------------------------------------------------------------


async def test_a_plain_service_is_given_nothing(world):
    assert world.around.equip(web(), LAUNCH) == LAUNCH
    assert not world.keeper.held


async def test_who_is_to_say_that_it_is_ready_is_given_a_socket_that_the_keeper_holds(world):
    launch = world.around.equip(web(ready=Ready.NOTIFY), LAUNCH)
    path = launch.env["NOTIFY_SOCKET"]
    assert path == str(world.folder / "notify" / "web")
    assert (launch.env["A"], launch.own_pid) == ("b", ())
    assert list(world.keeper.held) == [("web", "notify")]
    assert world.around.equip(web(ready=Ready.NOTIFY), LAUNCH).env["NOTIFY_SOCKET"] == path
    world.around.equip(web(), LAUNCH)
    assert not os.path.exists(path), "who has nothing more to say needs no socket"
    assert not world.keeper.held


async def test_a_heartbeat_is_due_as_often_as_the_shortest_interval_says_and_from_its_own_pid(
    world,
):
    checks = (HEART, msgspec.structs.replace(HEART, name="other", interval_s=0.25))
    launch = world.around.equip(web(checks=checks), LAUNCH)
    assert launch.env["WATCHDOG_USEC"] == "250000"
    assert launch.own_pid == ("WATCHDOG_PID",)
    assert "NOTIFY_SOCKET" in launch.env


async def test_sockets_come_first_and_stored_descriptors_after_them(world):
    definition = web(ready=Ready.NOTIFY, sockets=(Socket("http", "127.0.0.1:0"),))
    world.around.equip(definition, LAUNCH)
    world.begin()
    world.hear(b"FDSTORE=1\nFDNAME=state", fds=(os.memfd_create("state"),))
    launch = world.around.equip(definition, LAUNCH)
    assert (launch.env["LISTEN_FDS"], launch.env["LISTEN_FDNAMES"]) == ("2", "http:state")
    assert launch.own_pid == ("LISTEN_PID",)
    assert [os.readlink(f"/proc/self/fd/{fd}")[:7] for fd in launch.descriptors] == [
        "socket:",
        "/memfd:",
    ]


async def test_down_for_good_gives_up_sockets_and_descriptors_but_not_its_voice(world):
    definition = web(ready=Ready.NOTIFY, sockets=(Socket("http", "127.0.0.1:0"),))
    world.around.equip(definition, LAUNCH)
    world.begin()
    world.hear(b"FDSTORE=1", fds=(os.memfd_create("x"),))
    world.around.rest("web")
    assert list(world.keeper.held) == [("web", "notify")]
    world.around.forget("web")
    assert not world.keeper.held
    assert not list((world.folder / "notify").iterdir())


async def test_what_cannot_be_had_is_one_sentence(world):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"^.*cannot listen at 127.0.0.1:{port}: "):
            world.around.equip(web(sockets=(Socket("http", f"127.0.0.1:{port}"),)), LAUNCH)


async def test_another_daemon_takes_up_what_the_keeper_holds(world):
    definition = web(ready=Ready.NOTIFY, sockets=(Socket("http", "127.0.0.1:0"),))
    first = world.around.equip(definition, LAUNCH)
    world.begin()
    world.hear(b"FDSTORE=1\nFDNAME=a", fds=(os.memfd_create("a"),))
    address = socket.socket(fileno=os.dup(first.descriptors[0]))
    port = address.getsockname()
    address.close()
    world.crash()
    world.around.adopt(world.found(), ["web"])
    launch = world.around.equip(definition, LAUNCH)
    assert launch.env == {**first.env, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "http:a"}
    again = socket.socket(fileno=os.dup(launch.descriptors[0]))
    assert again.getsockname() == port, "it is the same socket"
    again.close()


async def test_what_is_held_for_nobody_any_more_is_let_go(world):
    definition = web(ready=Ready.NOTIFY, sockets=(Socket("http", "127.0.0.1:0"),))
    path = world.around.equip(definition, LAUNCH).env["NOTIFY_SOCKET"]
    world.crash()
    world.around.adopt(world.found(), ["db"])
    assert not world.keeper.held
    assert not os.path.exists(path)


# --- whose word counts ----------------------------------------------------------------------------

READY = ("web", inp.NotifiedReady(run=1))


@pytest.mark.parametrize(
    ("sender", "counts"),
    [
        ({"pid": LEADER, "session": LEADER}, True),
        ({"pid": LEADER, "session": 0}, True),
        ({"pid": 99, "session": LEADER}, True),
        ({"pid": 99, "session": 0}, False),
        ({"pid": 99, "session": 98}, False),
        ({"pid": 1, "session": 1}, False),
    ],
)
async def test_who_is_gone_is_told_by_his_number_and_his_session(world, sender, counts):
    world.begin()
    assert world.hear(b"READY=1", **sender) == 1
    assert world.seen == ([READY] if counts else [])


async def test_whose_ancestors_are_the_service_s_is_its_own(world):
    world.begin()
    world.processes.owners = {99: "web", 98: "db"}
    world.hear(b"READY=1", pid=98, session=98)
    assert not world.seen
    world.hear(b"READY=1", pid=99, session=99)
    assert world.seen == [READY]


@pytest.fixture
def marked() -> Iterator[Callable[[str], int]]:
    """Begins processes in sessions of their own that carry a mark."""
    begun: list[subprocess.Popen[bytes]] = []

    def begin(mark: str) -> int:
        command = [sys.executable, "-I", "-S", "-c", "print(flush=True); input()"]
        process = subprocess.Popen(
            command,
            env={proc.MARK: mark},
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        begun.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process.pid

    yield begin
    for process in begun:
        process.communicate(b"\n")


@pytest.mark.parametrize(("mark", "counts"), [(MARK, True), ("journal/web/2", False)])
async def test_who_left_session_and_parents_behind_is_told_by_his_mark(world, marked, mark, counts):
    pid = marked(mark)
    world.begin()
    world.hear(b"READY=1", pid=pid, session=pid)
    assert world.seen == ([READY] if counts else [])


async def test_nobody_speaks_for_a_service_without_a_run(world):
    assert world.hear(b"READY=1") == 1
    world.around.begin("web", 1, MARK)  # it has ended again
    assert world.hear(b"READY=1") == 1
    assert not world.seen


async def test_what_a_run_said_before_it_ended_unseen_counts(world):
    """It ended while no daemon was there: what it stored is for the next one."""
    world.around.equip(web(ready=Ready.NOTIFY), LAUNCH)
    world.around.begin("web", 1, MARK, ended=LEADER)
    world.hear(b"FDSTORE=1\nFDNAME=state", fds=(os.memfd_create("state"),), session=0)
    world.hear(b"FDSTORE=1\nFDNAME=not", fds=(os.memfd_create("not"),), pid=99, session=99)
    launch = world.around.equip(web(ready=Ready.NOTIFY), LAUNCH)
    assert launch.env["LISTEN_FDNAMES"] == "state"


# --- what follows ---------------------------------------------------------------------------------


def observed(world: World) -> list[inp.Observation]:
    return [given for _service, given in world.seen]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"READY=1", [inp.NotifiedReady(run=1)]),
        (b"STOPPING=1", [inp.NotifiedStopping(run=1)]),
        (b"WATCHDOG_USEC=250000", [inp.NotifiedWatchdog(run=1, interval_s=0.25)]),
        (b"STATUS=x\nERRNO=2\nWATCHDOG=1", []),
        (
            b"EXTEND_TIMEOUT_USEC=2000000\nSTOPPING=1",
            [inp.NotifiedStopping(run=1), inp.NotifiedExtension(run=1, seconds=2)],
        ),
        (
            b"READY=1\nMAINPID=12",
            [inp.NotifiedMain(run=1, pid=12, start_time=34), inp.NotifiedReady(run=1)],
        ),
        (b"READY=1\nMAINPID=13", [inp.NotifiedReady(run=1)]),
    ],
)
async def test_what_is_durable_is_observed_in_the_order_in_which_it_is_to_count(
    world, text, expected
):
    world.begin()
    world.processes.mains = {12: (12, 34)}
    world.hear(text)
    assert observed(world) == expected


async def test_it_is_done_once_all_that_follows_is_committed(world):
    world.commits_at_once = False
    world.begin()
    assert world.hear(b"READY=1\nWATCHDOG_USEC=1000000", b"STATUS=x") == 0
    done: list[str] = []
    world.around.hear_late([Note(b"STOPPING=1"), Note(b"READY=1")], lambda: done.append("all"))
    assert len(world.undone) == 3
    for _ in range(2):
        world.undone.pop(0)()
        assert not done
    world.undone.pop(0)()
    assert done == ["all"]


async def test_status_and_errno_are_those_of_the_present_run(world):
    world.begin()
    world.hear(b"STATUS=one\nERRNO=2", b"RELOADING=1")
    said = world.around.said("web")
    assert (said.status, said.errno, said.reloading) == ("one", 2, True)
    world.hear(b"READY=1\nSTATUS=\nERRNO=0")
    assert (said.status, said.errno, said.reloading) == (None, None, False)
    world.hear(b"STATUS=two")
    world.begin(run=2)
    assert world.around.said("web").status is None
    world.around.forget("web")
    assert world.around.said("web") is None


async def test_beats_and_triggers_are_told_to_the_checks(world):
    world.begin()
    world.hear(b"WATCHDOG=1", b"WATCHDOG=trigger")
    assert world.checks.told == [
        "beat of web",
        "web: the service itself said that it is not well",
    ]


async def test_what_was_said_before_the_checks_begin_is_told_to_them_once_they_do(world):
    world.checks.listens = False
    world.begin()
    world.hear(b"WATCHDOG=1")
    world.checks.listens = True
    world.around.watched("web")
    world.around.watched("web")
    world.around.watched("db")
    assert world.checks.told == ["beat of web"]


async def test_a_beat_of_an_earlier_run_is_not_told_to_the_checks_of_the_next(world):
    world.checks.listens = False
    world.begin()
    world.hear(b"WATCHDOG=1")
    world.begin(run=2)
    world.checks.listens = True
    world.around.watched("web")
    assert not world.checks.told


async def test_a_removal_lets_go_of_what_has_the_name(world):
    world.around.equip(web(ready=Ready.NOTIFY), LAUNCH)
    world.begin()
    for name in (b"a", b"b"):
        world.hear(b"FDSTORE=1\nFDNAME=" + name, fds=(os.memfd_create("x"),))
    world.hear(b"FDSTOREREMOVE=1\nFDNAME=a")
    assert world.around.equip(web(ready=Ready.NOTIFY), LAUNCH).env["LISTEN_FDNAMES"] == "b"


async def test_a_socket_is_read_while_the_loop_runs_and_when_it_is_asked_to(world):
    """We speak ourselves: as the leader of the run."""
    path = world.around.equip(web(ready=Ready.NOTIFY), LAUNCH).env["NOTIFY_SOCKET"]
    world.begin()
    world.processes.leaders["web", 1] = os.getpid()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(path)
        sock.send(b"READY=1")
        world.around.hear("web")
        assert observed(world) == [inp.NotifiedReady(run=1)]
        world.woken.clear()
        sock.send(b"STOPPING=1")
        await world.woken.wait()
    assert observed(world)[1:] == [inp.NotifiedStopping(run=1)]


async def test_who_says_new_things_without_end_waits_for_the_pace_and_repeats_wait_for_none(world):
    world.begin()
    assert world.hear(*[b"WATCHDOG_USEC=%d" % (1_000_000 + n) for n in range(NEWS_MAX)]) == 1
    assert world.hear(*[b"READY=1"] * 2, b"WATCHDOG_USEC=5") == 0, "one of them is new"
    assert len(world.seen) == NEWS_MAX + 3, "it counts at once"
    assert world.hear(*[b"READY=1\nWATCHDOG=1", b"STATUS=x", b"WATCHDOG_USEC=5"] * 20) == 1


async def test_who_waited_for_the_pace_is_done_in_the_end(world, monkeypatch):
    monkeypatch.setattr("registry.host.surroundings.NEWS_MAX", 1)
    monkeypatch.setattr("registry.host.surroundings.NEWS_S", 0.01)
    world.begin()
    done = asyncio.Event()
    texts = [Note(b"WATCHDOG_USEC=%d" % n) for n in range(9)]
    world.around.hear_late(texts, done.set)
    assert not done.is_set()
    await asyncio.wait_for(done.wait(), 5)
    world.begin(run=2)
    assert world.hear(b"WATCHDOG_USEC=9") == 1, "the next run has its own pace"


async def test_what_fails_of_what_was_said_meanwhile_costs_nothing_else(world, monkeypatch, caplog):
    world.begin()
    change_main = world.processes.change_main
    monkeypatch.setattr(world.processes, "change_main", lambda *_: change_main())
    assert world.hear(b"MAINPID=12", b"READY=1") == 1
    assert observed(world) == [inp.NotifiedReady(run=1)]
    assert "got lost" in caplog.text
