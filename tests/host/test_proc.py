"""What /proc tells, and what it must not be taken to tell."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.host import proc


def stat_of(pid: int) -> Any:
    """What /proc says of a process that is there."""
    return proc.stat(pid)


def test_our_own_state_is_read():
    stat = stat_of(os.getpid())
    assert (stat.pid, stat.parent) == (os.getpid(), os.getppid())
    assert (stat.group, stat.session) == (os.getpgrp(), os.getsid(0))
    assert stat.is_alive
    assert stat.threads >= 1
    assert proc.program(os.getpid()) == stat.comm
    assert os.getpid() in proc.all_pids()


def test_a_name_with_parentheses_and_spaces_is_read(tmp_path):
    program = tmp_path / ") Z (1 2"
    program.symlink_to("/bin/sleep")
    pid = os.posix_spawn(program, ["x", "1000"], {})
    try:
        stat = stat_of(pid)
        assert (stat.comm, stat.parent, stat.is_alive) == (") Z (1 2", os.getpid(), True)
        assert pid in proc.children(os.getpid())
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.skipif(not os.path.exists("/proc/self/comm"), reason="no /proc")
def test_a_name_that_the_kernel_cuts_is_whole(tmp_path: Path):
    program = tmp_path / "a-service-registry"
    program.symlink_to("/bin/sh")
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    for word, name in ((str(program), program.name), ("x", "a-service-regis")):
        words = [word, "-c", "echo up; read end"]
        with subprocess.Popen(words, executable=program, **pipes) as process:
            assert process.stdout is not None
            process.stdout.readline()
            assert proc.program(process.pid) == name


def test_the_children_of_a_thread_that_ends_while_they_are_listed_are_those_of_the_first():
    made: list[int] = []
    is_over = threading.Event()

    def spawn() -> None:
        made.append(os.posix_spawn("/bin/sleep", ["sleep", "1000"], {}))
        is_over.wait()

    thread = threading.Thread(target=spawn)
    thread.start()
    task, read = Path(f"/proc/{os.getpid()}/task/{thread.native_id}"), proc._read

    def too_late(path: str) -> bytes | None:
        if Path(path).parent == task:
            is_over.set()
            while task.exists():
                os.sched_yield()
        return read(path)

    while not made:
        os.sched_yield()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(proc, "_read", too_late)
        listed = list(proc.children(os.getpid()))
    os.kill(made[0], signal.SIGKILL)
    os.waitpid(made[0], 0)
    thread.join()
    assert made[0] in listed


def test_a_child_that_two_threads_list_is_one(monkeypatch):
    lists = {"children": b"7 8 "}
    monkeypatch.setattr(os, "listdir", lambda _path: ["5", "6"])
    monkeypatch.setattr(proc, "_read", lambda path: lists[path.rpartition("/")[2]])
    assert list(proc.children(5)) == [7, 8]


def test_a_zombie_tells_how_it_ended():
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 42"], {})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    stat = stat_of(pid)
    assert not stat.is_alive
    assert os.waitstatus_to_exitcode(stat.wait_status) == 42
    assert proc.mark(pid) is None
    os.waitpid(pid, 0)
    assert proc.stat(pid) is None
    assert proc.mark(pid) is None
    assert proc.program(pid) is None
    assert list(proc.children(pid)) == []


@pytest.fixture
def sleeping() -> Iterator[Callable[[dict[str, str]], int]]:
    """Processes that certainly have their environment."""
    pids = []

    def sleep(env: dict[str, str]) -> int:
        reader, writer = os.pipe()
        place = [(os.POSIX_SPAWN_DUP2, writer, 1)]
        argv = ["cat", "/dev/null", "/proc/self/comm", "/dev/zero"]
        pids.append(os.posix_spawn("/bin/cat", argv, env, file_actions=place))
        assert os.read(reader, 4) == b"cat\n"  # the rest fills the pipe: there it stays
        readers.append(reader)
        os.close(writer)
        return pids[-1]

    readers: list[int] = []
    yield sleep
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    for reader in readers:
        os.close(reader)


@pytest.mark.parametrize("value", ["journal/name/12", "größe=1"])
def test_the_mark_is_found_among_other_variables(sleeping, value):
    env = {"XCIRCLEOSD_RUN": "no", "A": "CIRCLEOSD_RUN=no", "CIRCLEOSD_RUN": value, "Z": "9"}
    assert proc.mark(sleeping(env)) == value


def test_an_environment_without_a_mark_is_told_from_none(sleeping):
    assert proc.mark(sleeping({"A": "1"})) == ""
    assert proc.mark(sleeping({})) is None


def test_threads_of_the_kernel_are_known_as_such():
    assert not stat_of(os.getpid()).is_kernels
    (kthreadd,) = [pid for pid in proc.all_pids() if proc.program(pid) == "kthreadd"] or [0]
    assert not kthreadd or stat_of(kthreadd).is_kernels


def test_without_descriptors_nobody_is_called_gone():
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    raised = []
    try:
        for read in (
            proc.stat,
            proc.mark,
            lambda pid: list(proc.children(pid)),
            lambda _pid: proc.all_pids(),
        ):
            try:
                read(os.getpid())
            except OSError as error:
                raised.append(error.strerror)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert raised == ["Too many open files"] * 4


def test_boot_and_namespace_are_known():
    assert len(proc.boot_id()) == 36
    assert proc.pid_namespace().startswith("pid:[")
    assert sys.platform == "linux"


def test_memory_is_told_of_what_is_there():
    before = proc.memory(os.getpid())
    held = bytearray(20_000_000)
    after = proc.memory(os.getpid())
    assert before
    assert after
    assert after[0] - before[0] > len(held) // 2
    assert after[1] > 0
    assert proc.memory(2**22) is None
