"""Hardships of real machines: older kernels, other users, reused pids, closed descriptors, crowds."""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from registry.host import proc

SLEEP = 'cmd = ["sleep", "1000"]'
ROOT = Path(__file__).parents[2]


def service(name: str, keys: str = SLEEP) -> str:
    return f'[[service]]\nname = "{name}"\n{keys}\n'


def marked(box, name: str) -> list[int]:
    """The processes that carry the mark of a service's runs and execute its program."""
    wanted = f"CIRCLEOSD_SERVICE={name}".encode()
    found = []
    for pid in box.left():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            comm = Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:
            continue
        if wanted in environment and comm != "svc-gate" and box.is_running(pid):
            found.append(pid)
    return found


def children(pid: int) -> list[str]:
    """The states of a process's children: Z for one that nobody has reaped."""
    states = []
    for child in proc.children(pid):
        with contextlib.suppress(OSError):
            states.append(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0])
    return states


FALLBACKS = ["pidfd", "pidfd_group", "waitid", "subreaper", "proc_children", "splice", "signalfd"]


@pytest.mark.parametrize("without", FALLBACKS)
def test_a_whole_life_without_what_an_older_kernel_lacks(box, without):
    """A restart, a grandchild in a session of its own, a stop that needs SIGKILL, and an end that leaves nothing."""
    text = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
with open("pids", "a") as file:
    file.write(f"{os.getpid()}\\n")
print("up", flush=True)
time.sleep(1000)
"""
    family = service("family", f'cmd = {box.python("family", text)}\nstop = "150ms"')
    box.configure(family + service("a") + service("bad", 'cmd = ["./nowhere"]'))
    box.start(CIRCLEOSD_WITHOUT=without)
    box.wait_lines("pids", 2)
    os.kill(box.wait_status("a", "Running")["pid"], signal.SIGKILL)
    box.wait_status("a", "Running", run=2)
    box.wait_for(lambda: box.log("family").count("up") == 2, "it is logged")
    (record,) = box.data("stop", service="family", wait=True)
    assert record["status"] == "Stopped"
    assert not any(box.is_running(int(pid)) for pid in box.lines("pids"))
    box.data("start", service="family", wait=True)
    box.wait_lines("pids", 4)
    os.kill(box.service("family")["pid"], signal.SIGKILL)
    box.wait_status("family", "Running", run=3)
    box.wait_lines("pids", 6)
    assert not any(box.is_running(int(pid)) for pid in box.lines("pids")[:4])
    assert box.stop() == 0
    box.wait_for(lambda: not box.left(), "nothing is left")
    box.verify()


def test_commands_from_many_clients_at_once_leave_one_process_or_none(box):
    names = ["a", "b", "c", "d"]
    box.configure("".join(service(name, f'{SLEEP}\nstop = "500ms"') for name in names))
    box.start()
    chance = random.Random(7)
    plans = [
        [
            (chance.choice(["start", "stop", "restart", "reset"]), chance.choice(names))
            for _ in range(25)
        ]
        for _ in range(6)
    ]
    failures: list[object] = []

    def carry_out(plan) -> None:
        for action, name in plan:
            answer = box.ask(action, service=name, wait=chance.random() < 0.2)
            if not answer["ok"]:
                failures.append(answer)

    threads = [threading.Thread(target=carry_out, args=(plan,)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not failures
    box.data("start", service="all", wait=True)
    for name in names:
        assert marked(box, name) == [box.service(name)["pid"]]
    box.data("stop", service="all", wait=True)
    assert not [pid for name in names for pid in marked(box, name)]
    box.verify()


def test_killed_again_and_again_among_commands_every_wish_is_kept(box):
    names = [f"s{n}" for n in range(8)]
    box.configure("".join(service(name, f'{SLEEP}\nstop = "300ms"') for name in names))
    chance = random.Random(11)
    box.start()
    for _ in range(4):
        wishes = {name: chance.choice(["start", "stop", "restart"]) for name in names}
        for name, action in wishes.items():
            box.data(action, service=name)
        box.kill()
        box.start()
        for name, action in wishes.items():
            box.wait_status(name, "Stopped" if action == "stop" else "Running")
        for name, action in wishes.items():
            pids = marked(box, name)
            assert pids == ([] if action == "stop" else [box.service(name)["pid"]]), name
    box.verify()


def test_a_crowd_of_services_is_adopted_whole(box):
    count = 80
    box.configure(
        "".join(
            service(f"s{n}", f"{SLEEP}\nlogs = {'true' if n % 2 else 'false'}")
            for n in range(count)
        )
    )
    box.start()

    def pids() -> dict[str, int] | None:
        records = box.data("list_services")
        running = {
            record["name"]: record["pid"] for record in records if record["status"] == "Running"
        }
        return running if len(running) == count else None

    before = box.wait_for(pids, "all run")
    box.kill()
    box.start()
    assert box.wait_for(pids, "all run") == before
    assert len(box.events(type="adopted")) == count
    assert box.stop() == 0
    box.wait_for(lambda: not box.left(), "nothing is left")


def test_many_runs_leak_no_descriptor_no_thread_and_no_zombie(box):
    check = 'health_check = { target = "cmd:true", interval = "20ms" }'
    storm = 'cmd = ["true"]\nrestart = { delay = "1ms", delay_max = "1ms" }'
    box.configure(service("storm", storm) + service("a", f"{SLEEP}\n{check}"))
    box.start()
    daemon, keeper = box.daemon.pid, box.keeper_pid()

    def counts() -> tuple[int, int, int]:
        box.data("stop", service="storm", wait=True)
        fds = [len(os.listdir(f"/proc/{pid}/fd")) for pid in (daemon, keeper)]
        return fds[0], fds[1], len(os.listdir(f"/proc/{daemon}/task"))

    box.wait_for(lambda: box.service("storm")["run"] > 10, "ten runs")
    before = counts()
    box.data("start", service="storm")
    box.wait_for(lambda: box.service("storm")["run"] > 150, "many runs")
    box.wait_for(
        lambda: all(now <= was + 1 for now, was in zip(counts(), before, strict=True)),
        "as many as before",
    )
    box.wait_for(lambda: "Z" not in children(daemon), "all are reaped")


def test_an_interrupted_shutdown_is_no_wish_of_the_operator(box):
    """SIGTERM, then SIGKILL before it is done, as an impatient init does: the next start brings up what autostarts."""
    command = """cmd = ["sh", "-c", "trap '' TERM; touch up; while :; do sleep 0.05; done"]\nstop = "300ms" """
    box.configure(service("deaf", command) + service("other"))
    box.start()
    box.wait_for((box.folder / "up").exists, "it runs")
    box.daemon.terminate()
    box.wait_status("other", "Stopped")
    box.kill()
    box.start()
    assert box.wait_status("other", "Running")["wanted"] == "up"
    assert box.wait_status("deaf", "Running", run=2)["wanted"] == "up"


def test_time_in_which_nobody_watched_is_not_charged_to_the_start_timeout(box):
    """Ready while the registry was down, for longer than its start timeout: the next one sees it ready."""
    target = f"unix:{box.folder}/app.sock"
    text = f"""
import os, socket, time
while not os.path.exists("open"):
    time.sleep(0.01)
server = socket.socket(socket.AF_UNIX)
server.bind("{box.folder}/app.sock")
server.listen()
open("opened", "w").close()
while True:
    server.accept()[0].close()
"""
    keys = f'cmd = {box.python("app", text)}\nhealth_check = "{target}"\nstart_timeout = "900ms"'
    box.configure(service("app", keys))
    box.start()
    pid = box.wait_status("app", "Starting", run=1)["pid"]
    begun = time.monotonic()
    box.kill()
    (box.folder / "open").touch()
    box.wait_for(
        lambda: (box.folder / "opened").exists() and time.monotonic() - begun > 1.0,
        "the timeout is over",
    )
    box.start()
    record = box.wait_for(
        lambda: (now := box.service("app"))["status"] != "Starting" and now, "it is judged"
    )
    assert (record["status"], record["pid"], record["run"]) == ("Running", pid, 1)


def test_a_registry_that_stood_still_charges_no_check_for_it(box):
    """SIGSTOP and SIGCONT, as a laptop's lid or a hypervisor does: beats that came meanwhile count."""
    beat = """
import json, os, socket, time
while True:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.environ["CIRCLEOSD_SOCKET"])
        client.sendall(json.dumps({"action": "heartbeat", "service": "heart"}).encode() + b"\\n")
        client.makefile().readline()
    time.sleep(0.02)
"""
    check = 'health_check = { target = "heartbeat:", interval = "100ms", timeout = "100ms", failures = 1 }'
    probe = (
        'health_check = { target = "cmd:true", interval = "50ms", timeout = "200ms", failures = 1 }'
    )
    box.configure(
        service("heart", f"cmd = {box.python('heart', beat)}\n{check}")
        + service("a", f"{SLEEP}\n{probe}")
    )
    box.start()
    for name in ("heart", "a"):
        box.wait_status(name, "Running", health="healthy")
    for _ in range(2):
        box.daemon.send_signal(signal.SIGSTOP)
        time.sleep(0.8)
        box.daemon.send_signal(signal.SIGCONT)
        last = box.data("health", service="heart")[0]["checks"][0]["last_at"]
        box.wait_for(
            lambda last=last: (
                box.data("health", service="heart")[0]["checks"][0]["last_at"] != last
            ),
            "a beat",
        )
    assert "became_unhealthy" not in box.types("heart") + box.types("a")
    assert (box.service("heart")["run"], box.service("a")["run"]) == (1, 1)


def test_a_keeper_that_stands_still_holds_nothing_up(box):
    text = "import time\nn = 0\nwhile True:\n    n += 1\n    print(n, flush=True)\n    time.sleep(0.005)\n"
    box.configure(service("count", f"cmd = {box.python('count', text)}") + service("a"))
    box.start()
    box.wait_for(lambda: box.log("count").count("\n") > 5, "it is logged")
    keeper = box.keeper_pid()
    os.kill(keeper, signal.SIGSTOP)
    try:
        (record,) = box.data("restart", service="a", wait=True, timeout=5)
        assert record["run"] == 2
        (record,) = box.data("restart", service="count", wait=True, timeout=5)
        assert record["run"] == 2
    finally:
        os.kill(keeper, signal.SIGCONT)
    seen = box.log("count").count("\n")
    box.wait_for(lambda: box.log("count").count("\n") > seen + 20, "it is logged again")
    runs = box.log("count").split("\n1\n")
    assert len(runs) == 2, "of the run before no line is lost, nor of this one"


def test_a_probe_that_a_dead_registry_left_is_gone_when_the_next_one_runs(box):
    probe = box.program(
        "probe",
        'import os, time\nopen("probes", "a").write(f"{os.getpid()}\\n")\ntime.sleep(1000)\n',
    )
    target = f"cmd:{sys.executable} -I -S {probe}"
    check = f'health_check = {{ target = "{target}", interval = "60s", timeout = "60s" }}'
    box.configure(service("a", f"{SLEEP}\n{check}"))
    box.start()
    (left,) = map(int, box.wait_lines("probes", 1))
    assert box.is_running(left)
    box.kill()
    assert box.is_running(left)
    box.start()
    box.wait_for(lambda: not box.is_running(left), "the old probe is gone")
    assert box.service("a")["run"] == 1


def test_a_probe_ends_with_the_run_that_it_is_for(box):
    probe = box.program(
        "probe",
        'import os, time\nopen("probes", "a").write(f"{os.getpid()}\\n")\ntime.sleep(1000)\n',
    )
    target = f"cmd:{sys.executable} -I -S {probe}"
    check = f'health_check = {{ target = "{target}", interval = "60s", timeout = "60s" }}'
    box.configure(service("a", f"{SLEEP}\n{check}"))
    box.start()
    (left,) = map(int, box.wait_lines("probes", 1))
    box.data("stop", service="a", wait=True)
    box.wait_for(lambda: not box.is_running(left), "the probe is gone")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can choose the next pid")
@pytest.mark.parametrize("keeper_lives", [True, False])
def test_a_stranger_with_the_same_pid_is_neither_adopted_nor_signalled(box, keeper_lives):
    last_pid = Path("/proc/sys/kernel/ns_last_pid")
    if not os.access(last_pid, os.W_OK):
        pytest.skip("this kernel has no ns_last_pid")
    box.configure(service("a"))
    box.start()
    pid = box.wait_status("a", "Running")["pid"]
    keeper = box.keeper_pid()
    box.kill()
    if not keeper_lives:
        os.kill(keeper, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    box.wait_for(lambda: not Path(f"/proc/{pid}").exists(), "its pid is free")

    def stranger() -> subprocess.Popen[bytes] | None:
        last_pid.write_text(str(pid - 1))
        process = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        if process.pid == pid:
            return process
        process.kill()
        process.wait()
        return None

    process = box.wait_for(stranger, "a stranger has the pid")
    try:
        box.start()
        record = box.wait_status("a", "Running", run=2)
        assert record["pid"] != pid
        assert "adopted" not in box.types("a")
        box.data("stop", service="a", wait=True)
        assert box.stop() == 0
        assert process.poll() is None, "the stranger lives"
    finally:
        process.kill()
        process.wait()


AS_NOBODY = """
import os, pwd, sys
entry = pwd.getpwnam("nobody")
os.setgroups([])
os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
python, *arguments = sys.argv[1:]
os.execv(python, [python, *arguments])
"""


def a_python_for_nobody(script: str, path: str) -> str:
    """An interpreter that everybody may use and that has what the registry needs; a skip where there is none."""
    for python in (sys.executable, "/usr/bin/python3"):
        command = [sys.executable, script, python, "-c", "import aiosqlite, msgspec, registry"]
        told = subprocess.run(
            command,
            check=False,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            timeout=10,
        )
        if told.returncode == 0:
            return python
    pytest.skip("no Python that another user may use has the dependencies")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_an_ordinary_users_registry_does_all_of_it(box):
    """As most people run it: no root. Adoption, exit statuses, sockets and refusals."""
    nobody = pwd.getpwnam("nobody")
    command = (
        'cmd = ["sh", "-c", "while ! test -e go; do sleep 0.02; done; exit 42"]\nrestart = "Never"'
    )
    box.configure(
        service("a") + service("job", command) + service("rooted", f'{SLEEP}\nuser = "root"'),
        settings='socket_mode = "0666"',
    )
    for path in (box.folder, box.folder / "etc", box.folder / "etc" / "services.toml"):
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    box.folder.chmod(0o755)
    script = str(box.program("as_nobody", AS_NOBODY))
    path = os.pathsep.join(
        [str(ROOT), *(each for each in sys.path if each.endswith("site-packages"))]
    )
    program = (script, a_python_for_nobody(script, path), "-m", "registry")
    box.start(program=program, PYTHONPATH=path)
    assert Path(f"/proc/{box.daemon.pid}").stat().st_uid == nobody.pw_uid
    pid = box.wait_status("a", "Running")["pid"]
    job = box.wait_status("job", "Running")["pid"]
    box.wait_status("rooted", "Failed", reason="not_permitted")
    box.kill()
    (box.folder / "go").touch()
    box.wait_for(lambda: not box.is_running(job), "the job has ended")
    box.start(program=program, PYTHONPATH=path)
    assert box.wait_status("a", "Running")["pid"] == pid
    box.wait_status("job", "Failed", reason="exit_code")
    assert box.data("status", service="job")["last_exit"]["exit_code"] == 42
    asked = """
import json, os, socket, sys
os.setresuid(12345, 12345, 12345)
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
client.sendall(b'{"action":"list_services"}\\n')
print(json.loads(client.makefile().readline())["error"]["code"])
"""
    told = subprocess.run(
        [sys.executable, "-I", "-S", "-c", asked, str(box.socket)],
        check=False,
        capture_output=True,
        text=True,
        timeout=10,
    )
    assert told.stdout.strip() == "forbidden", told.stderr
    assert box.stop() == 0
    box.wait_for(lambda: not box.left(), "nothing is left")
    box.verify()


@pytest.mark.parametrize("closed", ["0<&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_started_with_descriptors_closed_it_works_all_the_same(box, closed):
    box.configure(service("a", 'cmd = ["sh", "-c", "echo out; echo err >&2; exec sleep 1000"]'))
    text = f"""
import os, sys
os.execv("/bin/sh", ["sh", "-c", 'exec "$@" {closed}', "sh", sys.executable, "-m", "registry", *sys.argv[1:]])
"""
    box.start(program=(str(box.program("closing", text)),))
    box.wait_status("a", "Running")
    box.wait_for(lambda: box.log("a") == "out\nerr\n", "its output is in its log")
    assert box.stop() == 0
    box.wait_for(lambda: not box.left(), "nothing is left")
    assert (box.folder / "var" / "registry.lock").read_text().strip().isdigit()
    box.verify()


def test_an_argument_too_long_for_the_kernel_fails_that_service_alone(box):
    box.configure(service("long", f'cmd = ["true", "{"x" * 200_000}"]') + service("a"))
    box.start()
    box.wait_status("a", "Running")
    assert box.wait_status("long", "Failed", reason="exec_failed")["next_restart_at"] is None


def test_stop_without_patience_kills_at_once(box):
    command = (
        """cmd = ["sh", "-c", "trap '' TERM; touch up; while :; do sleep 0.05; done"]\nstop = 0"""
    )
    box.configure(service("deaf", command))
    box.start()
    box.wait_for((box.folder / "up").exists, "it runs")
    (record,) = box.data("stop", service="deaf", wait=True, timeout=1)
    assert record["status"] == "Stopped"


def test_the_health_of_what_does_not_run_is_unknown_throughout(box):
    check = 'health_check = { target = "cmd:true", interval = "50ms" }'
    box.configure(service("a", f"{SLEEP}\n{check}"))
    box.start()
    box.wait_status("a", "Running", health="healthy")
    box.data("stop", service="a", wait=True)
    (answer,) = box.data("health")
    assert answer["health"] == "unknown"
    assert answer["checks"][0]["health"] == "unknown"
