"""As PID 1 of a namespace of its own, as in a container: it reaps everything, and stops orderly.

Its own death ends the namespace and all within it: there the promise to survive `kill -9` cannot hold.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SLEEP = 'cmd = ["sleep", "1000"]'


def may_unshare() -> bool:
    """Whether we may make a pid namespace: as root, or where users may make user namespaces."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return False
    done = subprocess.run([*UNSHARE, "true"], check=False, capture_output=True, timeout=10)
    return done.returncode == 0


USER = [] if os.getuid() == 0 else ["--user", "--map-root-user"]
UNSHARE = ["unshare", *USER, "--fork", "--kill-child", "--pid", "--mount-proc"]
pytestmark = [
    pytest.mark.platform("linux"),
    pytest.mark.skipif(not may_unshare(), reason="unshare --pid is not permitted here"),
]


def service(name: str, keys: str) -> str:
    return f'[[service]]\nname = "{name}"\n{keys}\n'


def start_as_pid_1(box) -> int:
    """Start the registry as PID 1; its pid as we see it."""
    words = [*UNSHARE, sys.executable, "-m", "registry", "--config", "etc/services.toml"]
    script = f"import os; os.execvp({words[0]!r}, {words!r})"
    box.daemon = box.spawn(program=("-c", script))
    box.wait_for(
        lambda: box._answers() or box.daemon.poll() is not None, "the registry answers in there"
    )
    assert box.daemon.poll() is None, box.errors.read_text()
    return box.wait_for(lambda: child_of(box.daemon.pid), "unshare has its child")


def child_of(pid: int) -> int:
    return int((Path(f"/proc/{pid}/task/{pid}/children").read_text().split() or ["0"])[0])


def outer_pid(inner_root: int, inner: int) -> int | None:
    """The process that is `inner` in the namespace of `inner_root`, as we see it."""
    namespace = os.readlink(f"/proc/{inner_root}/ns/pid")
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if os.readlink(entry / "ns" / "pid") != namespace:
                continue
            line = next(
                line for line in (entry / "status").read_text().splitlines() if line[:6] == "NSpid:"
            )
        except OSError:
            continue
        if int(line.split()[-1]) == inner:
            return int(entry.name)
    return None


def test_services_are_supervised_and_stopped_orderly(box):
    box.configure(
        service("one", SLEEP) + service("family", 'cmd = ["sh", "-c", "sleep 999 & wait"]')
    )
    outer = start_as_pid_1(box)
    assert box.data("version")["pid"] == 1
    one = box.wait_status("one", "Running")["pid"]
    assert one < 1000, "numbers are those of its own namespace"
    known_outside = outer_pid(outer, one)
    assert known_outside is not None
    os.kill(known_outside, signal.SIGKILL)
    record = box.wait_status("one", "Running", run=2)
    assert record["restarts"] == 1
    assert box.last("one", "exited")["data"]["signal"] == signal.SIGKILL
    os.kill(outer, signal.SIGTERM)
    assert box.daemon.wait(10) == 0
    assert not Path(f"/proc/{outer}").exists()
    box.wait_for(lambda: not box.left(), "nothing is left")
    assert box.errors.read_text().endswith("[INFO] Service registry stopped\n")
    box.verify()


def test_it_reaps_the_orphans_of_everybody(box):
    """Of services, and of processes that somebody else brought into the namespace."""
    orphans = box.program(
        "orphans",
        """
import os, time
for number in range(20):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(0.01 * (number % 4))
        os._exit(0)
    os.wait()
open(f"made.{os.environ.get('CIRCLEOSD_SERVICE', 'stranger')}", "w").close()
time.sleep(1000)
""",
    )
    box.configure(service("one", f'cmd = ["{sys.executable}", "-I", "{orphans}"]'))
    outer = start_as_pid_1(box)
    enter = ["nsenter", "--target", str(outer), *(["--user"] if USER else []), "--pid", "--mount"]
    stranger = subprocess.Popen([*enter, f"--wd={box.folder}", sys.executable, "-I", str(orphans)])
    try:
        for name in ("made.one", "made.stranger"):
            box.wait_for((box.folder / name).exists, f"{name}: all orphans are made")
        box.wait_for(lambda: not zombies(outer), f"none is left dead: {zombies(outer)}")
        assert box.service("one")["run"] == 1
        assert box.events("one", "exited") == []
    finally:
        stranger.kill()
        stranger.wait(10)


def zombies(root: int) -> list[str]:
    """The ended processes of a namespace that nobody has reaped yet."""
    namespace = os.stat(f"/proc/{root}/ns/pid").st_ino
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "ns" / "pid").stat().st_ino == namespace:
                text = (entry / "stat").read_text()
                if text.rpartition(")")[2].split()[0] == "Z":
                    found.append(text)
        except OSError:  # a zombie's namespace cannot be read: its parent says whose it is
            text = stat_of(entry)
            if text and text.rpartition(")")[2].split()[:2] == ["Z", str(root)]:
                found.append(text)
    return found


def stat_of(entry: Path) -> str:
    try:
        return (entry / "stat").read_text()
    except OSError:
        return ""


def test_an_essential_service_that_is_gone_ends_the_namespace_with_status_10(box):
    """What a container asks for."""
    command = 'cmd = ["sh", "-c", "while ! test -e go; do sleep 0.01; done; exit 3"]'
    box.configure(
        service("main", f'{command}\nessential = true\nrestart = "Never"') + service("aside", SLEEP)
    )
    outer = start_as_pid_1(box)
    box.wait_status("main", "Running")
    (box.folder / "go").touch()
    assert box.daemon.wait(10) == 10
    assert not Path(f"/proc/{outer}").exists()
    box.wait_for(lambda: not box.left(), "nothing is left")


def test_its_own_death_ends_everything_and_the_next_starts_anew(box):
    """In another namespace, so that the pids of the journal are nobody's: nothing is adopted or signalled."""
    box.configure(service("one", SLEEP))
    outer = start_as_pid_1(box)
    one = outer_pid(outer, box.wait_status("one", "Running")["pid"])
    os.kill(outer, signal.SIGKILL)
    box.daemon.wait(10)
    box.wait_for(lambda: not box.is_running(one), "its services are gone with it")
    start_as_pid_1(box)
    record = box.wait_status("one", "Running", run=2)
    assert record["restarts"] == 0
    assert box.events("one", "adopted") == []
    assert [event["type"] for event in box.events("one", "lost")] == ["lost"]


def test_an_upgrade_goes_on_as_pid_1(box):
    box.configure(service("one", SLEEP))
    start_as_pid_1(box)
    one = box.wait_status("one", "Running")["pid"]
    box.data("upgrade")
    box.wait_for(lambda: len(started(box)) == 2, "it has begun anew")
    assert (box.service("one")["pid"], box.service("one")["run"]) == (one, 1)
    assert box.data("version")["pid"] == 1


def started(box) -> list[object]:
    try:
        return box.events(type="registry_started")
    except (OSError, ValueError):
        return []
