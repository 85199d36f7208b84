"""The gate: what happens before it opens, what a service gets of us, why a launch failed."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from registry.core.inputs import ProcessExited
from registry.core.lifecycle import Reason
from registry.host import gate, native_gate, proc
from registry.host.capabilities import Capabilities
from registry.host.launch import Launch, LaunchError

SH = "/bin/sh"
NOBODY = 65534
STOP_READY = "echo ready; kill -STOP $$"


@pytest.fixture(params=["native", "shell"])
def capabilities(request: pytest.FixtureRequest, capabilities: Capabilities) -> Capabilities:
    """All that this machine can do, with either gate."""
    if request.param == "native" and not capabilities.native_gate:
        pytest.skip("this machine has only the shell for a gate")
    return msgspec.structs.replace(capabilities, native_gate=request.param == "native")


@pytest.fixture
def gates(capabilities: Capabilities, tmp_path: Path) -> str:
    """What a program that spawns by itself says for either gate."""
    return f"gate.prepare(__import__('pathlib').Path({str(tmp_path)!r}), native={capabilities.native_gate})"


def stat_of(pid: int) -> Any:
    """What /proc says of a process that is there."""
    return proc.stat(pid)


def status(pid: int, field: str) -> str:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return value.strip()
    raise AssertionError(field)


def environment(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/environ").read_bytes().decode()
    return dict(variable.split("=", 1) for variable in text.split("\0")[:-1])


def descriptors(pid: int) -> dict[int, str]:
    found = {}
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a library that is being linked
            found[int(path.name)] = os.readlink(path)
    return found


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def wait_at_gate(pid: int) -> None:
    """The kernel lets the maker of a process go on a moment before it gives it the gate's name."""
    while stat_of(pid).comm != gate.GATE:
        time.sleep(0.001)


# before it opens


async def test_nothing_of_the_service_executes_before_the_gate_opens(host, tmp_path):
    trace = tmp_path / "trace"
    pid = host.spawn(SH, "-c", f"echo ran >{trace}")
    wait_at_gate(pid)
    assert not trace.exists()
    assert host.runner.open_gate("s", 1)
    exited = await host.next()
    assert exited == ProcessExited(run=1, exit_code=0, usage=exited.usage)
    assert trace.read_text() == "ran\n"


@pytest.mark.parametrize("path", [gate.GATE, native_gate.FOLDER])
async def test_a_gate_that_somebody_has_removed_is_made_again(host, path):
    folder = Path(host.runner._gated.gates.shell).parent
    removed = folder / path
    if removed.is_dir():
        shutil.rmtree(removed)
    else:
        removed.unlink(missing_ok=True)
    host.spawn(SH, "-c", "exit 7")
    assert host.runner.open_gate("s", 1)
    assert (await host.next()).exit_code == 7


async def test_the_keeper_has_a_run_before_its_gate_opens(host, monkeypatch):
    host.spawn(SH, "-c", "exit 0")
    assert not host.keeper.is_told
    told, open_gate = [], gate.open_gate

    def noted(held):
        told.append(host.keeper.is_told)
        return open_gate(held)

    monkeypatch.setattr(gate, "open_gate", noted)
    assert host.runner.open_gate("s", 1)
    assert told == [True]


async def test_the_gate_opens_once(host):
    host.spawn(SH, "-c", "exit 0")
    assert host.runner.open_gate("s", 1)
    assert not host.runner.open_gate("s", 1)
    assert not host.runner.open_gate("s", 2)
    assert not host.runner.open_gate("nobody", 1)


async def test_a_process_that_died_at_the_gate_cannot_be_let_through(host, gone):
    pid = host.spawn(SH, "-c", "exit 0")
    os.kill(pid, signal.SIGKILL)
    await gone(pid)
    assert not host.runner.open_gate("s", 1)
    exited = await host.next()
    assert (exited.signal, exited.never_ran) == (signal.SIGKILL, False)


async def test_a_gate_that_closes_is_reported_as_never_ran(host, tmp_path):
    host.spawn(SH, "-c", f"echo ran >{tmp_path}/trace")
    host.stop()
    exited = await host.next()
    assert (exited.exit_code, exited.never_ran, exited.group_empty) == (gate.NEVER_RAN, True, True)
    assert exited.launch_failure is None
    assert not (tmp_path / "trace").exists()


DAEMON = """
import sys
from registry.host import gate
from registry.host.launch import Launch
launch = Launch(("/bin/sh", "-c", "echo ran >" + sys.argv[1]), {}, "/", 0o22, None, None, ())
with gate.approach(GATES, launch, None, "/dev/null") as made:
    print(made.gated(made.spawn(*made.fds)).pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.usefixtures("_subreaper")
async def test_when_the_daemon_dies_what_waits_at_the_gate_exits_111(tmp_path, gates):
    daemon = subprocess.Popen(
        [sys.executable, "-c", DAEMON.replace("GATES", gates), str(tmp_path / "trace")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with daemon:
        assert daemon.stdout is not None
        pid = int(daemon.stdout.readline())
        assert stat_of(pid).is_alive
        daemon.kill()
    _pid, wait_status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(wait_status) == gate.NEVER_RAN
    assert not (tmp_path / "trace").exists()


# launch failures


@pytest.mark.parametrize("code", [1, 111, 126, 127, 200])
async def test_what_a_service_exits_with_itself_is_no_failure_to_launch_it(host, code):
    host.script(f"exit {code}")
    exited = await host.next()
    assert (exited.exit_code, exited.never_ran) == (code, False)
    assert (exited.launch_failure, exited.message) == (None, None)


async def test_a_service_that_is_env_itself_may_exit_127(host):
    host.start("/usr/bin/env", "/no/such/program")
    exited = await host.next()
    assert (exited.exit_code, exited.launch_failure) == (127, None)


@pytest.mark.parametrize("odd", [{}, {"odd.name": "x"}], ids=["shell", "env"])
@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        (None, 0, Reason.EXEC_FAILED),
        ("#!/no/such/interpreter\n", 0o755, Reason.EXEC_FAILED),
        ("#!/bin/sh\n", 0o644, Reason.PROGRAM_NOT_EXECUTABLE),
    ],
    ids=["missing", "bad interpreter", "not executable"],
)
async def test_a_program_that_cannot_be_executed_says_why(
    host, tmp_path, content, mode, reason, odd
):
    program = tmp_path / "program"
    if content is not None:
        program.write_text(content)
        program.chmod(mode)
    host.start(str(program), env=odd)
    exited = await host.next()
    assert exited.launch_failure is reason
    assert exited.message
    assert not exited.never_ran


async def test_a_folder_that_cannot_be_entered_says_so(host, tmp_path):
    host.start(SH, "-c", "exit 0", cwd=str(tmp_path / "gone"))
    exited = await host.next()
    assert (exited.exit_code, exited.launch_failure) == (200, Reason.CWD_MISSING)


async def test_without_setpriv_a_user_is_refused(make_host, without):
    host = make_host(without(["setpriv"]))
    before = open_descriptors()
    with pytest.raises(LaunchError, match="setpriv") as raised:
        host.spawn(SH, "-c", "exit 0", uid=NOBODY, gid=NOBODY)
    assert raised.value.reason is Reason.NOT_PERMITTED
    assert open_descriptors() == before
    left = {path.name for path in host.folder.iterdir()}
    assert left <= {gate.GATE, native_gate.FOLDER}


async def test_a_path_that_env_would_misread_is_refused(make_host, without):
    host = make_host(without(["native_gate"]))  # which takes no env
    with pytest.raises(LaunchError, match="rename it"):
        host.spawn("/bin/a=b", env={"odd.name": "x"})


# what a service gets of us


async def test_a_service_has_three_descriptors_and_a_session_of_its_own(host):
    leaked = os.open("/dev/null", os.O_RDONLY)  # as all of ours: close-on-exec
    pid = host.script(STOP_READY)
    assert await host.line() == "ready"
    found = descriptors(pid)
    os.close(leaked)
    assert sorted(found) == [0, 1, 2]
    assert found[0] == "/dev/null"
    assert found[1] == found[2]
    assert found[1].endswith("(deleted)")
    stat = stat_of(pid)
    assert stat.session == stat.group == pid


async def test_a_service_without_logs_writes_nowhere(host):
    pid = host.spawn("/bin/sleep", "1000", logs=None)
    assert descriptors(pid)[1] == descriptors(pid)[2] == "/dev/null"
    assert host.keeper.outputs == {}
    assert host.keeper.targets == {("s", 1): None}


async def test_a_service_ignores_and_blocks_no_signal_whatever_we_do(host):
    ours = [signal.SIGINT, signal.SIGHUP, signal.SIGUSR1]
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ours}
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        pid = host.script(STOP_READY)
        assert await host.line() == "ready"
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
        for number, handler in before.items():
            signal.signal(number, handler)
    glibcs_own = 0b11 << 31  # 32 and 33, which its posix_spawn always leaves ignored
    assert int(status(pid, "SigIgn"), 16) & ~glibcs_own == 0
    assert int(status(pid, "SigBlk"), 16) == 0


async def test_a_service_has_its_umask_and_its_folder(host, tmp_path):
    folder = tmp_path / "a folder with 'quotes' and\na line"
    folder.mkdir()
    pid = host.script(STOP_READY, umask=0o27, cwd=str(folder))
    assert await host.line() == "ready"
    assert status(pid, "Umask") == "0027"
    assert os.readlink(f"/proc/{pid}/cwd") == str(folder)


VARIABLES = {
    "PLAIN": "x",
    "EMPTY": "",
    "LINES": "one\ntwo\n",
    "QUOTES": """ '"`$(exit)\\ """,
    "UNICODE": "größe",
    "discovery.type": "single node\n'",
    "-i": "no option",
    "1st": "a=b",
}
SHELLS_OWN = dict.fromkeys(("PWD", "OLDPWD", "SHLVL", "_", "IFS", "PPID", "OPTIND", "PS4"), "7")


@pytest.mark.parametrize("shell", ["/bin/dash", "/bin/bash"])
@pytest.mark.parametrize(
    "given", [{"PLAIN": "x"}, VARIABLES, SHELLS_OWN], ids=["one", "odd", "own"]
)
async def test_a_service_has_exactly_its_environment(host, shell, given, tmp_path, monkeypatch):
    named = tmp_path / "bin"
    named.mkdir()
    (named / gate.GATE).symlink_to(shell)
    gates = msgspec.structs.replace(host.runner._gated.gates, shell=str(named / gate.GATE))
    monkeypatch.setattr(host.runner._gated, "gates", gates)
    monkeypatch.setenv("OURS", "not the service's")
    pid = host.script(STOP_READY, env=given)
    assert await host.line() == "ready"
    assert environment(pid) == {proc.MARK: host.mark(), **given}


async def test_values_of_variables_are_on_no_command_line(host):
    pid = host.spawn(SH, "-c", "exit 0", env={"SECRET": "hunter2", "odd.name": "seen"})
    while not (command_line := Path(f"/proc/{pid}/cmdline").read_bytes()):
        os.sched_yield()  # the gate is still being set up
    assert b"hunter2" not in command_line
    # but for names that a shell does not take
    assert (b"odd.name=seen" in command_line) is (host.runner._gated.gates.native is None)


async def test_a_service_runs_as_its_user_and_can_reopen_its_output(host):
    text = "id -u; id -g; id -G; echo again >/dev/stdout; echo error >/dev/stderr; kill -STOP $$"
    pid = host.script(text, uid=NOBODY, gid=12345, groups=(12345, 777))
    lines = [await host.line() for _line in range(5)]
    assert lines[:2] == [str(NOBODY), "12345"]
    assert set(lines[2].split()) == {"12345", "777"}
    assert lines[3:] == ["again", "error"]
    assert int(status(pid, "CapEff"), 16) == 0


async def test_a_service_without_groups_has_none_of_ours(host):
    host.script("id -G", uid=NOBODY, gid=NOBODY)
    assert await host.line() == str(NOBODY)


async def test_a_group_alone_keeps_the_user(host):
    host.script("id -u; id -g", gid=12345)
    assert [await host.line(), await host.line()] == [str(os.getuid()), "12345"]


async def test_limits_and_priorities_hold_before_the_program_executes(host):
    limits: dict[str, int | None] = {"nofile": 100, "core": 0, "fsize": None}
    pid = host.spawn(
        SH, "-c", STOP_READY, rlimits=limits, nice=5, oom_score_adj=500, files_max=1000
    )
    for name, value in limits.items():
        number = getattr(resource, f"RLIMIT_{name.upper()}")
        expected = resource.RLIM_INFINITY if value is None else value
        assert resource.prlimit(pid, number) == (expected, expected)
    assert os.getpriority(os.PRIO_PROCESS, pid) == 5
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "500\n"
    assert host.runner.open_gate("s", 1)
    assert await host.line() == "ready"
    assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (100, 100)  # before files_max


@pytest.mark.parametrize(
    ("fields", "key", "words"),
    [
        ({"rlimits": {"nofile": None}}, "limits.nofile", "unlimited: it takes CAP_SYS_RESOURCE"),
        ({"rlimits": {"nonsense": 1}}, "limits.nonsense", "does not know it"),
        ({"rlimits": {"nofile": 2**80}}, "limits.nofile", "does not know it"),
        ({"oom_score_adj": 5000}, "oom_score_adj", "Invalid argument"),
    ],
)
async def test_what_cannot_be_set_undoes_the_spawn(host, tmp_path, fields, key, words):
    before = open_descriptors()
    with pytest.raises(LaunchError, match=words) as raised:
        host.spawn(SH, "-c", f"echo ran >{tmp_path}/trace", **fields)
    assert (raised.value.reason, raised.value.key) == (Reason.NOT_PERMITTED, key)
    assert raised.value.message.endswith(f"; change {key} or leave it out")
    assert open_descriptors() == before
    (pid,) = proc.children(os.getpid())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == gate.NEVER_RAN
    assert not (tmp_path / "trace").exists()


NOBODY_SETS = """
import os, sys
from registry.host import gate
from registry.host.launch import Launch, LaunchError
os.setuid(65534)
base = Launch(("/bin/true",), {}, "/", 0o22, None, None, ())
for fields in ({"nice": -5}, {"oom_score_adj": -1}, {"rlimits": {"nofile": 2**19}}):
    launch = Launch(**{name: getattr(base, name) for name in base.__struct_fields__} | fields)
    with gate.approach(gate.Gates("/bin/sh"), launch, None, "/dev/null") as made:
        gated = made.gated(made.spawn(*made.fds))
    try:
        gate.constrain(gated.pid, launch)
    except LaunchError as error:
        print(error.reason, error.message)
    os.close(gated.gate)
    os.waitpid(gated.pid, 0)
"""


async def test_who_is_not_root_is_told_what_he_may_not_set():
    limits = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 1000))"
    done = subprocess.run(
        [sys.executable, "-c", limits + NOBODY_SETS], capture_output=True, text=True, check=True
    )
    nice, oom, nofile = done.stdout.splitlines()
    assert nice.startswith("not_permitted nice cannot be set to -5: it takes CAP_SYS_NICE")
    assert oom.startswith("not_permitted oom_score_adj cannot be set to -1: it takes CAP_SYS_RES")
    assert nofile.startswith("not_permitted limits.nofile cannot be set to 524288: it takes CAP_")


def test_a_limit_that_cannot_be_set_just_now_may_be_tried_again(monkeypatch):
    def fail(*_arguments):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(resource, "prlimit", fail)
    launch = Launch(("/x",), {}, "/", 0, None, None, (), rlimits={"nofile": 9})
    with pytest.raises(LaunchError) as raised:
        gate.constrain(os.getpid(), launch)
    assert raised.value.reason is Reason.NO_RESOURCES


NET_BIND = 1 << 10  # linux/capability.h
SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


@pytest.mark.parametrize("user", [{"uid": NOBODY, "gid": NOBODY}, {}], ids=["nobody", "root"])
@pytest.mark.parametrize(
    ("names", "mask"), [(("CAP_NET_BIND_SERVICE",), NET_BIND), ((), 0)], ids=["one", "none"]
)
async def test_a_service_has_exactly_its_capabilities(host, user, names, mask):
    pid = host.script(STOP_READY, capabilities=names, no_new_privs=True, **user)
    assert await host.line() == "ready"
    assert {int(status(pid, each), 16) for each in SETS} == {mask}
    assert status(pid, "NoNewPrivs") == "1"
    assert status(pid, "Uid").split()[0] == str(user.get("uid", 0))


async def test_without_a_word_privileges_stay_as_they_are(host):
    pid = host.script(STOP_READY)
    assert await host.line() == "ready"
    assert status(pid, "CapBnd") == status(os.getpid(), "CapBnd")
    assert status(pid, "NoNewPrivs") == "0"


@pytest.mark.parametrize(
    ("program", "capability", "reason"),
    [
        (SH, "CAP_NO_SUCH", Reason.NOT_PERMITTED),
        ("/no/such", "CAP_KILL", Reason.EXEC_FAILED),
    ],
)
async def test_a_failure_of_setpriv_is_told_from_one_of_the_program(
    host, program, capability, reason
):
    host.start(program, capabilities=(capability,))
    exited = await host.next()
    assert exited.launch_failure is reason
    assert "setpriv" in await host.line() or reason is Reason.EXEC_FAILED


@pytest.mark.parametrize("code", [1, 127])
async def test_a_service_behind_setpriv_may_exit_as_it_does(host, code):
    host.script(f"exit {code}", capabilities=(), uid=NOBODY, gid=NOBODY)
    exited = await host.next()
    assert (exited.exit_code, exited.launch_failure) == (code, None)


def test_privileges_that_cannot_be_set_are_told_by_who_ended():
    steps = frozenset((gate.GATE, "setpriv", "env"))
    for code in (1, 127):
        assert gate.launch_failure(steps, "setpriv", code) == gate._NO_PRIVILEGES
    assert gate.launch_failure(steps, "sh", 1) is None
    alone = gate.launch_failure(steps - {"env"}, "setpriv", 127)
    assert alone is not None
    assert alone[0] is Reason.EXEC_FAILED


@pytest.mark.parametrize(
    ("fields", "key"), [({"no_new_privs": True}, "no_new_privs"), ({"capabilities": ()}, "cap")]
)
async def test_without_setpriv_privileges_are_refused(make_host, without, fields, key):
    host = make_host(without(["setpriv"]))
    with pytest.raises(LaunchError, match=f"{key}.* without setpriv: install") as raised:
        host.spawn(SH, "-c", "exit 0", **fields)
    assert raised.value.reason is Reason.NOT_PERMITTED
    assert raised.value.key.startswith(key)


PLACING = """
import os
from pathlib import Path
from registry.host import gate, native_gate, proc
from registry.host.capabilities import Capabilities
from registry.host.launch import Launch
first, second = os.open("first", os.O_CREAT), os.open("second", os.O_CREAT)
assert (first, second) == (3, 4)
os.open("/dev/zero", 0)
script = "ls -l /proc/$$/fd; exit 0"
launch = Launch(
    ("/bin/sh", "-c", script), {}, "/", 0o22, None, None, (), descriptors=(second, first, second)
)
with gate.approach(GATES, launch, None, "out") as made:
    gated = made.gated(made.spawn(*made.fds))
gate.open_gate(gated.gate)
os.waitpid(gated.pid, 0)
print(Path("out").read_text(), len(os.listdir("/proc/self/fd")))
"""


async def test_descriptors_stand_in_their_order_even_where_their_numbers_overlap(tmp_path, gates):
    (tmp_path / "out").touch()
    found = subprocess.run(
        [sys.executable, "-c", PLACING.replace("GATES", gates)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    ).stdout
    placed = {
        int(words[-3]): words[-1].rpartition("/")[2]
        for line in found.splitlines()
        if "->" in line and (words := line.split())
    }
    assert {number: placed[number] for number in (3, 4, 5)} == {
        3: "second",
        4: "first",
        5: "second",
    }
    assert set(placed) == {0, 1, 2, 3, 4, 5}
    assert found.split()[-1] == "7"  # 0 to 5 and the one that lists


@pytest.mark.parametrize(
    "fields",
    [{}, {"uid": NOBODY, "gid": NOBODY, "env": {"odd.name": "x"}, "capabilities": ()}],
    ids=["plain", "through setpriv and env"],
)
async def test_a_variable_can_hold_the_programs_own_pid(host, fields):
    pid = host.script(
        "echo $LISTEN_PID $WATCHDOG_PID $$", own_pid=("LISTEN_PID", "WATCHDOG_PID"), **fields
    )
    assert await host.line() == f"{pid} {pid} {pid}"


async def test_output_reaches_the_keeper_through_a_fifo_without_a_name(host):
    host.script("echo out; echo err >&2")
    assert [await host.line(), await host.line()] == ["out", "err"]
    assert host.keeper.targets["s", 1].path == "/nowhere/s.log"
    left = {path.name for path in host.folder.iterdir()}
    assert left <= {gate.GATE, native_gate.FOLDER}
    await host.next()
    assert os.read(host.keeper.outputs["s", 1], 1) == b""  # nobody holds it any more


# no resources


async def test_no_such_gate_leaves_nothing_behind(host, monkeypatch):
    before = open_descriptors()
    native = host.runner._gated.gates.native and "/no/such/gate"
    monkeypatch.setattr(host.runner._gated, "gates", gate.Gates("/no/such/shell", native))
    with pytest.raises(LaunchError) as raised:
        host.spawn(SH, "-c", "exit 0")
    assert raised.value.reason is Reason.EXEC_FAILED
    assert open_descriptors() == before
    left = {path.name for path in host.folder.iterdir()}
    assert left <= {gate.GATE, native_gate.FOLDER}


@pytest.mark.parametrize("free", range(8))
async def test_without_descriptors_a_spawn_is_refused_and_leaves_nothing(host, free):
    before = open_descriptors()
    taken: list[int] = []
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(each) for each in before)
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 20, limits[1]))
    try:
        while True:
            try:
                taken.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        for descriptor in [taken.pop() for _descriptor in range(free)]:
            os.close(descriptor)
        try:
            host.spawn(SH, "-c", "exit 0")
            refused = None
        except LaunchError as error:
            refused = error
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    if refused is None:
        assert free > 4
        assert host.keeper.pidfds
        host.stop()
        await host.next()
        host.runner.release("s", 1)
        host.keeper.drop("s", 1)
    else:
        assert refused.reason is Reason.NO_RESOURCES
    assert open_descriptors() == before
    left = {path.name for path in host.folder.iterdir()}
    assert left <= {gate.GATE, native_gate.FOLDER}


async def test_a_keeper_that_cannot_keep_undoes_the_spawn(host, tmp_path):
    host.keeper.refuses = OSError(errno.EMFILE, "Too many open files")
    before = open_descriptors()
    with pytest.raises(LaunchError) as raised:
        host.spawn(SH, "-c", f"echo ran >{tmp_path}/trace")
    assert raised.value.reason is Reason.NO_RESOURCES
    assert open_descriptors() == before
    (pid,) = proc.children(os.getpid())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == gate.NEVER_RAN
    assert not (tmp_path / "trace").exists()


NO_PROCESSES = """
import os, resource
from registry.host import gate
from registry.host.launch import Launch, LaunchError
os.setuid(12347)  # root has no such limit
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
try:
    launch = Launch(("/bin/true",), {}, "/", 0o22, None, None, ())
    with gate.approach(gate.Gates("/bin/sh"), launch, None, "/dev/null") as made:
        made.gated(made.spawn(*made.fds))
except LaunchError as error:
    print(error.reason, len(os.listdir("/proc/self/fd")))
"""


async def test_without_processes_a_spawn_is_refused():
    done = subprocess.run(
        [sys.executable, "-c", NO_PROCESSES], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["no_resources", "4"]  # 0, 1, 2 and the one that lists


async def test_300_runs_leave_no_descriptor(host):
    before = open_descriptors()
    for run in range(1, 301):
        host.script("exit 0", run=run)
        assert (await host.next()).run == run
        host.keeper.drop("s", run)
    host.runner.release("s", 300)
    assert open_descriptors() == before
    assert host.keeper.released == [("s", run) for run in range(1, 301)]


def test_the_shell_gets_its_name_again_where_something_else_has_it(tmp_path):
    path = Path(gate.prepare(tmp_path).shell)
    path.unlink()
    path.write_text("something else")
    assert gate.prepare(tmp_path).shell == str(path)
    assert os.readlink(path) == SH


def test_a_launch_names_no_shell_step_that_it_does_not_take(tmp_path):
    launch = Launch(("/bin/true",), {}, "/", 0o22, None, None, ())
    with gate.approach(gate.prepare(tmp_path), launch, None, "/dev/null") as made:
        gated = made.gated(made.spawn(*made.fds))
    os.close(gated.gate)
    os.waitpid(gated.pid, 0)
    assert gated.steps == {gate.GATE}
