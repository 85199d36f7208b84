"""Cgroups: whose is whose, limits before the gate opens, members that cannot hide, an end nobody escapes."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.core.inputs import GroupGone
from registry.core.lifecycle import Reason
from registry.host import cgroup, proc
from registry.host.capabilities import detect
from registry.host.cgroup import Hierarchy
from registry.host.launch import Launch, LaunchError
from registry.host.members import Process

SH = "/bin/sh"
MARK = "abc123/web@1/7"
NAME = "web@1.7.abc123"
UNIFIED = "25 1 0:1 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate"
HYBRID = """\
24 1 0:1 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
25 1 0:1 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"""


def stat_of(pid: int) -> Any:
    """What /proc says of a process that is there."""
    return proc.stat(pid)


# whose cgroup


@pytest.mark.parametrize(
    ("membership", "mounts", "expected"),
    [
        ("0::/\n", UNIFIED, "/sys/fs/cgroup"),
        (
            "4:memory:/x\n0::/a.slice/b.service\n",
            HYBRID,
            "/sys/fs/cgroup/unified/a.slice/b.service",
        ),
        ("0::/b.service/registry\n", UNIFIED, "/sys/fs/cgroup/b.service"),
        ("0::/docker/x\n", UNIFIED.replace(" / /", " /docker/x /"), "/sys/fs/cgroup"),
        ("0::/docker/x/y\n", UNIFIED.replace(" / /", " /docker/x /"), "/sys/fs/cgroup/y"),
        ("0::/elsewhere\n", UNIFIED.replace(" / /", " /docker/x /"), None),
        ("0::/../up\n", UNIFIED, None),
        ("0::/a\n", UNIFIED.replace("/sys/fs/cgroup", "/odd\\040name"), "/odd name/a"),
        ("4:memory:/x\n", UNIFIED, None),
        ("0::/\n", HYBRID.splitlines()[0], None),
    ],
)
def test_our_own_cgroup_is_found_below_its_mount(membership, mounts, expected):
    assert cgroup.own_path(membership, mounts) == (expected and Path(expected))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A cgroup as it looks where its controllers are delegated."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (own / "cgroup.type").write_text("domain\n")
    for name in ("cgroup.subtree_control", "cgroup.procs"):
        (own / name).write_text("")
    return own


def test_units_of_systemd_are_ours_only_where_it_says_so(own, monkeypatch):
    unit = own.rename(own.with_name("circleosd.service"))
    monkeypatch.setattr(cgroup, "own_path", lambda *_texts: unit)
    assert cgroup.find() is None
    marks = {"user.delegate": b"1"}

    def getxattr(_path, name):
        if name not in marks:
            raise OSError(errno.ENODATA, "No data available")
        return marks[name]

    monkeypatch.setattr(os, "getxattr", getxattr)
    assert cgroup.find() == unit
    marks["user.delegate"] = b"0"
    assert cgroup.find() is None


def test_what_cannot_be_written_to_is_not_ours(own, monkeypatch):
    monkeypatch.setattr(cgroup, "own_path", lambda *_texts: own)
    assert cgroup.find() == own
    (own / "cgroup.procs").unlink()
    assert cgroup.find() is None


def test_what_our_cgroup_lacks_is_named(own, monkeypatch):
    monkeypatch.setattr(cgroup, "own_path", lambda *_texts: own)
    (own / "cgroup.controllers").write_text("cpuset io memory pids\n")
    assert cgroup.in_words() == f"; {own} lacks cpu, so limits that take those are refused"
    (own / "cgroup.controllers").write_text("hugetlb\n")
    assert cgroup.lacking(own) == ["cpu", "memory", "pids"]
    (own / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    assert cgroup.in_words() == ""
    monkeypatch.setattr(cgroup, "own_path", lambda *_texts: None)
    assert cgroup.in_words() == ""


# ourselves


def test_we_leave_a_cgroup_whose_controllers_are_to_be_handed_down(own):
    Hierarchy(own).settle()
    assert (own / "registry" / "cgroup.procs").read_text() == str(os.getpid())


@pytest.mark.parametrize("case", ["true root", "no controllers", "unit"])
def test_we_stay_where_nothing_is_gained_or_systemd_could_not_start_us_again(own, case):
    if case == "true root":
        (own / "cgroup.type").unlink()
    elif case == "no controllers":
        (own / "cgroup.controllers").write_text("hugetlb\n")
    else:
        own = own.rename(own.with_name("circleosd.service"))
    Hierarchy(own).settle()
    assert not (own / "registry").exists()


# limits


def asks(**limits: float) -> Launch:
    return Launch(("/bin/true",), {}, "/", 0o22, None, None, (), **limits)  # type: ignore[arg-type]


def test_limits_are_written_into_a_cgroup_of_the_runs_own(own):
    path = Hierarchy(own).make(MARK, asks(memory_max=1_000_000, cpu_max=1.5, pids_max=20))
    assert path == own / "services" / NAME
    found = {file.name: file.read_text() for file in path.iterdir()}
    assert found == {"memory.max": "1000000", "cpu.max": "150000 100000", "pids.max": "20"}


def test_only_the_controllers_that_are_needed_are_handed_down(own):
    Hierarchy(own).make(MARK, asks(pids_max=20))
    assert (own / "cgroup.subtree_control").read_text() == "+pids"
    assert (own / "services" / "cgroup.subtree_control").read_text() == "+pids"


def test_a_controller_that_is_handed_down_already_is_left_alone(own):
    for folder in (own, own / "services"):
        folder.mkdir(exist_ok=True)
        (folder / "cgroup.subtree_control").write_text("memory pids\n")
    Hierarchy(own).make(MARK, asks(memory_max=1))
    assert (own / "cgroup.subtree_control").read_text() == "memory pids\n"


def refusal(own: Path, **limits: float) -> LaunchError:
    with pytest.raises(LaunchError) as raised:
        Hierarchy(own).make(MARK, asks(**limits))
    return raised.value


def test_a_missing_controller_is_named_with_its_limit_and_the_remedy(own):
    (own / "cgroup.controllers").write_text("cpu\n")
    error = refusal(own, cpu_max=1, memory_max=5)
    assert (error.reason, error.key) == (Reason.NOT_PERMITTED, "limits.memory_max")
    assert f"{own} has no controller 'memory'; under systemd set Delegate=yes" in error.message
    assert error.message.endswith("or leave limits.memory_max out")


def test_in_a_units_own_cgroup_the_remedy_is_a_subgroup(own):
    own = own.rename(own.with_name("circleosd.service"))
    assert "DelegateSubgroup=registry" in refusal(own, pids_max=5).message
    (own / "registry").mkdir()
    (own / "registry" / "cgroup.procs").write_text(f"1\n{os.getpid()}\n")
    assert Hierarchy(own).make(MARK, asks(pids_max=5)).is_dir()


def failing(monkeypatch, name: str, number: int) -> None:
    write = cgroup._write

    def fail(file: Path, value: object) -> None:
        if file.name == name:
            raise OSError(number, os.strerror(number))
        write(file, value)

    monkeypatch.setattr(cgroup, "_write", fail)


def test_others_in_our_cgroup_are_not_moved_but_told_of(own, monkeypatch):
    failing(monkeypatch, "cgroup.subtree_control", errno.EBUSY)
    assert "other processes live in that cgroup itself" in refusal(own, pids_max=5).message


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.EINVAL, Reason.NOT_PERMITTED), (errno.ENOMEM, Reason.NO_RESOURCES)],
)
def test_a_limit_that_the_kernel_refuses_leaves_nothing(own, monkeypatch, number, reason):
    failing(monkeypatch, "memory.max", number)
    error = refusal(own, memory_max=5)
    assert (error.reason, error.key) == (reason, "limits.memory_max")
    assert not (own / "services" / NAME).exists()


async def test_without_a_cgroup_limits_are_refused_before_there_is_a_process(make_host, without):
    host = make_host(without(["cgroup"]))
    with pytest.raises(LaunchError, match=r"limits\.cpu_max takes a delegated cgroup v2") as raised:
        host.spawn(SH, "-c", "exit 0", cpu_max=1.0)
    assert raised.value.reason is Reason.NOT_PERMITTED
    assert list(proc.children(os.getpid())) == []


def test_the_name_of_a_cgroup_is_one_name_whatever_the_service_is_called(own):
    path = Hierarchy(own).make("j/a b\\%/1", asks(pids_max=1))
    assert path.parent == own / "services"
    assert path.name == "a%20b%5C%25.1.j"


# real ones


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Our own cgroup, in which runs have cgroups without limits: not every machine delegates controllers."""
    if not detect({}).cgroup:
        pytest.skip("no cgroup v2 that we may write to")
    found = cgroup.find()
    assert found is not None
    own = found / f"circleosd-test-{os.getpid()}"
    own.mkdir()
    monkeypatch.setattr(cgroup, "find", lambda: own)
    monkeypatch.setattr(Hierarchy, "settle", lambda _self: None)
    monkeypatch.setattr(Hierarchy, "_hand_down", lambda _self, _controller, _key: None)
    monkeypatch.setattr(cgroup, "_limit", lambda _path, _launch: None)
    yield own
    cgroup.kill(own)
    cgroup.remove(own)


FORKS = "sh -c 'echo $$; exec sleep 1000' & exec sleep 1001"
# a daemon of its own session without the mark: only a cgroup knows whose it is
HIDES = f"env -i setsid -f {FORKS}"
STUBBORN = "trap '' TERM; "


@pytest.fixture
def confined(real: Path, make_host: Callable) -> Callable:
    """A runner whose runs have cgroups."""

    def make(*capabilities):
        host = make_host(*capabilities)
        host.cgroup_of = lambda run=1: real / "services" / f"s.{run}.{host.mark().split('/')[0]}"
        return host

    return make


async def test_a_run_is_in_its_cgroup_before_the_gate_opens_and_leaves_none(confined):
    host = confined()
    pid = host.spawn(SH, "-c", "exit 0", pids_max=1)
    assert cgroup.members(host.cgroup_of()) == {pid}
    assert host.runner.tier("s", 1) == "cgroup"
    assert host.runner.open_gate("s", 1)
    exited = await host.next()
    assert (exited.exit_code, exited.group_empty) == (0, True)
    assert not host.cgroup_of().exists()
    assert host.runner.tier("s", 1) == "session"


async def test_runs_without_limits_of_a_cgroup_have_none(confined, real):
    host = confined()
    host.script("exec sleep 1000")
    assert host.runner.tier("s", 1) == "session"
    assert not (real / "services").exists()


async def test_who_hides_from_session_and_mark_belongs_to_its_run(confined):
    host = confined()
    main = host.script(HIDES, pids_max=9)
    hidden = int(await host.line())
    os.kill(main, signal.SIGKILL)
    assert (await host.next()).group_empty is False
    host.stop()
    assert await host.next() == GroupGone(run=1)
    assert proc.stat(hidden) is None or stat_of(hidden).state == "Z"
    assert not host.cgroup_of().exists()


async def test_a_stop_that_is_due_kills_the_whole_cgroup_at_once(confined, monkeypatch):
    host = confined()
    host.script(f"trap '' TERM; {FORKS.replace('exec sleep 1001', 'wait')}", pids_max=9)
    await host.line()
    monkeypatch.setattr(os, "killpg", lambda *_arguments: pytest.fail("a group was signalled"))
    host.stop(timeout_s=0.02)
    ended = await host.next()
    assert ended.signal == signal.SIGKILL
    last = ended if ended.group_empty else await host.next()
    assert last.killed >= 2
    assert not host.cgroup_of().exists()


async def test_a_run_with_cgroups_of_its_own_is_ended_with_them(confined):
    host = confined()
    main = host.script(STUBBORN + FORKS, pids_max=9)
    child = host.executed(int(await host.line()))
    inner = host.cgroup_of() / "inner"
    inner.mkdir()
    cgroup.enter(inner, child)
    os.kill(main, signal.SIGKILL)
    assert (await host.next()).group_empty is False
    host.stop(timeout_s=0)
    assert await host.next() == GroupGone(run=1, killed=1)
    assert not host.cgroup_of().exists()


async def test_an_adopted_run_is_found_in_its_cgroup_and_ended_there(confined):
    before = confined()
    main = before.script(STUBBORN + HIDES, pids_max=9)
    await before.line()
    before.close()
    assert cgroup.is_populated(before.cgroup_of())  # it goes on without us
    host = confined()
    host._name = before._name
    stat = stat_of(main)
    host.runner.adopt(
        Process("s", 1, main, host.mark(), stat.start_time, True, os.pidfd_open(main), opened=True),
        None,
    )
    assert host.runner.tier("s", 1) == "cgroup"
    os.kill(main, signal.SIGKILL)
    assert (await host.next()).group_empty is False
    host.stop(timeout_s=0)
    assert await host.next() == GroupGone(run=1, killed=1)
    assert not host.cgroup_of().exists()


async def test_leftovers_of_an_earlier_daemon_are_found_in_their_cgroup(confined):
    before = confined()
    main = before.script(STUBBORN + HIDES, pids_max=9)
    await before.line()
    before.close()
    os.kill(main, signal.SIGKILL)
    os.waitpid(main, 0)
    host = confined()
    host._name = before._name
    left = Process("s", 1, None, host.mark(), None, False)
    assert not host.runner.adopt_leftovers(left)
    assert host.runner.tier("s", 1) == "cgroup"
    host.stop(timeout_s=0)
    assert await host.next() == GroupGone(run=1, killed=1)


async def test_without_cgroups_such_a_run_is_taken_up_by_its_session(confined, without):
    before = confined()
    main = before.script("exec sleep 1000", pids_max=9)
    before.executed(main)
    before.close()
    host = confined(without(["cgroup"]))
    host._name = before._name
    host.runner.adopt(
        Process("s", 1, main, host.mark(), stat_of(main).start_time, True, opened=True), None
    )
    assert host.runner.tier("s", 1) == "session"
    host.stop()
    ended = await host.next()
    assert (ended.signal, ended.group_empty) == (signal.SIGTERM, True)


async def test_what_ended_runs_left_is_removed_and_nothing_else(confined, real):
    host = confined()
    journal = host.mark().split("/")[0]
    host.script("exec sleep 1000", pids_max=9)
    for name in (f"s.5.{journal}", f"s.5.{journal}/inner", "s.5.another"):
        (real / "services" / name).mkdir()
    host.runner.tidy(journal)
    left = {each.name for each in (real / "services").iterdir() if each.is_dir()}
    assert left == {host.cgroup_of().name, "s.5.another"}


async def test_a_cgroup_that_an_undone_spawn_left_is_made_anew(confined):
    host = confined()
    host.cgroup_of().mkdir(parents=True)
    host.script("exit 0", pids_max=9)
    assert (await host.next()).exit_code == 0


async def test_where_somebody_lives_in_it_the_next_may_be_tried_later(confined):
    host = confined()
    host.cgroup_of(2).mkdir(parents=True)
    pid = host.script("exec sleep 1000")
    cgroup.enter(host.cgroup_of(2), pid)
    with pytest.raises(LaunchError) as raised:
        host.spawn(SH, "-c", "exit 0", run=2, pids_max=9)
    assert raised.value.reason is Reason.NO_RESOURCES


async def test_a_process_that_cannot_be_moved_never_runs(confined, monkeypatch, tmp_path):
    host = confined()
    failing(monkeypatch, "cgroup.procs", errno.EPERM)
    with pytest.raises(LaunchError, match="cannot be moved to the cgroup") as raised:
        host.spawn(SH, "-c", f"echo ran >{tmp_path}/trace", pids_max=9)
    assert raised.value.reason is Reason.NOT_PERMITTED
    assert not host.cgroup_of().exists()
    assert not (tmp_path / "trace").exists()


async def test_the_memory_of_a_cgroup_is_its_own_count(confined, monkeypatch):
    host = confined()
    host.script("exec sleep 1000", pids_max=9)
    assert host.runner.memory("s", 1) < 10_000_000  # no controller: what its processes hold
    monkeypatch.setattr(cgroup, "memory", lambda _path: 77)
    assert host.runner.memory("s", 1) == 77


def test_memory_is_read_where_the_controller_is(own):
    assert cgroup.memory(own) is None
    (own / "memory.current").write_text("4096\n")
    assert cgroup.memory(own) == 4096
