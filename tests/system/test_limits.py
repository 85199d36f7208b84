"""What a service runs in: limits, niceness, privileges; and that nothing runs without what it was to have."""

from __future__ import annotations

import grp
import json
import os
import pwd
import resource
import shutil
import socket
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.platform("linux")

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give and take privileges")

PYTHON = shutil.which("python3", path="/usr/bin:/bin") or sys.executable
"""One that any user can execute."""
NET_BIND_SERVICE = 1 << 10  # capability.h

LOOKS = """
import json, os, resource, socket, sys, time

umask = os.umask(0)
status = dict(line.rstrip().split(":", 1) for line in open("/proc/self/status"))
names = ("nofile", "core", "nproc", "memlock", "cpu", "fsize")

def bound(port):
    try:
        with socket.create_server(("127.0.0.1", port)):
            return True
    except OSError as error:
        return type(error).__name__

print(json.dumps({
    "rlimits": {name: resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}")) for name in names},
    "nice": os.getpriority(os.PRIO_PROCESS, 0), "oom": int(open("/proc/self/oom_score_adj").read()),
    "umask": umask, "uid": os.getresuid(), "gid": os.getresgid(), "groups": sorted(os.getgroups()),
    "no_new_privs": int(status["NoNewPrivs"]),
    "caps": {name: int(status[f"Cap{name}"], 16) for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")},
    "bound": bound(int(sys.argv[1])), "env": dict(os.environ),
}), flush=True)
time.sleep(1000)
"""


def looker(box, keys: str, port: int = 0) -> str:
    """A service that looks at itself, and tries to listen at a port."""
    box.folder.chmod(0o711)
    cmd = json.dumps([PYTHON, "-I", "-S", str(box.program("looks", LOOKS)), str(port)])
    return f'[[service]]\nname = "looks"\ncmd = {cmd}\n{keys}\n'


def seen(box, keys: str, port: int = 0, **how: Any) -> dict[str, Any]:
    """What it finds."""
    box.configure(looker(box, keys, port))
    box.start(**how)
    box.wait_status("looks", "Running")
    box.wait_for(lambda: "\n" in box.log("looks"), "it has looked")
    found: dict[str, Any] = json.loads(box.log("looks"))
    return found


def refused(box, keys: str, **how: Any) -> dict[str, Any]:
    """The status of a service that cannot be given what it asks for; nothing of it has run."""
    box.configure(looker(box, keys))
    box.start(**how)
    box.wait_status("looks", "Failed")
    status: dict[str, Any] = box.data("status", service="looks")
    assert (status["pid"], status["restarts"], status["next_restart_at"]) == (None, 0, None)
    assert '"rlimits"' not in box.log("looks")
    return status


# --- what is set ----------------------------------------------------------------------------------


def test_limits_niceness_and_oom_score_are_set_before_its_program(box):
    found = seen(
        box,
        'limits = { nofile = 4096, core = "1MB", nproc = 5000, cpu = "1h", fsize = "1GB" }\n'
        'nice = 7\noom_score_adj = 321\numask = "027"',
    )
    wanted = {"nofile": 4096, "core": 10**6, "nproc": 5000, "cpu": 3600, "fsize": 10**9}
    assert {name: found["rlimits"][name] for name in wanted} == {
        name: [value, value] for name, value in wanted.items()
    }
    assert (found["nice"], found["oom"], found["umask"]) == (7, 321, 0o027)


def test_what_is_not_asked_for_is_as_the_registry_has_it(box):
    found = seen(box, "")
    assert found["nice"] == os.getpriority(os.PRIO_PROCESS, 0)
    assert found["no_new_privs"] == 0
    assert found["rlimits"]["core"] == list(resource.getrlimit(resource.RLIMIT_CORE))


def test_unlimited_is_no_limit(box):
    assert seen(box, 'limits.core = "unlimited"')["rlimits"]["core"] == [-1, -1]


@pytest.mark.parametrize("user", ["", pytest.param('user = "nobody"', marks=needs_root)])
def test_no_new_privs_is_set(box, user):
    assert seen(box, f"no_new_privs = true\n{user}")["no_new_privs"] == 1


@needs_root
@pytest.mark.parametrize(("names", "mask"), [('"CAP_NET_BIND_SERVICE"', NET_BIND_SERVICE), ("", 0)])
@pytest.mark.parametrize("extra", ["", "no_new_privs = true"])
def test_a_user_has_exactly_the_capabilities_that_are_named(box, names, mask, extra):
    port = privileged_port()
    found = seen(box, f'user = "nobody"\ncapabilities = [{names}]\n{extra}', port)
    nobody = pwd.getpwnam("nobody")
    assert (found["uid"], found["gid"]) == ([nobody.pw_uid] * 3, [nobody.pw_gid] * 3)
    assert found["caps"] == dict.fromkeys(("Inh", "Prm", "Eff", "Bnd", "Amb"), mask)
    assert found["no_new_privs"] == (1 if extra else 0)
    may = mask or port >= lowest_port_of_all()
    assert found["bound"] == (True if may else "PermissionError")


@needs_root
def test_root_has_no_more_capabilities_than_are_named(box):
    found = seen(box, 'capabilities = ["CAP_NET_BIND_SERVICE"]', privileged_port())
    assert found["uid"] == [0] * 3
    assert (found["caps"]["Eff"], found["caps"]["Bnd"]) == (NET_BIND_SERVICE, NET_BIND_SERVICE)
    assert found["bound"] is True


@needs_root
def test_groups_replace_those_of_the_user(box):
    staff, audio = (grp.getgrnam(name).gr_gid for name in ("staff", "audio"))
    found = seen(box, 'user = "nobody"\ngroup = "audio"\ngroups = ["staff"]')
    assert (found["gid"], found["groups"]) == ([audio] * 3, sorted([staff, audio]))
    assert found["env"]["USER"] == "nobody"


@needs_root
def test_no_groups_are_none_but_the_main_one(box):
    found = seen(box, 'user = "nobody"\ngroups = []')
    assert found["groups"] == [pwd.getpwnam("nobody").pw_gid]


def lowest_port_of_all() -> int:
    """The first port at which anybody may listen."""
    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start") as file:
        return int(file.read())


def privileged_port() -> int:
    """One below 1024 at which nobody listens."""
    for port in range(1023, 600, -1):
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:
            continue
    raise AssertionError("no port below 1024 is free")


# --- what cannot be -------------------------------------------------------------------------------

WITHOUT_RIGHTS = """
import os, sys
drop = ["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]
os.execvp("setpriv", ["setpriv", *drop, sys.executable, "-m", "registry", *sys.argv[1:]])
"""
"""A registry whose root has no rights, as in many containers."""

RIGHTS = {
    "nice": ("nice = -5", "-5", "CAP_SYS_NICE"),
    "oom_score_adj": ("oom_score_adj = -500", "-500", "CAP_SYS_RESOURCE"),
    "limits.rtprio": ("limits.rtprio = 50", "50", "CAP_SYS_RESOURCE"),
    "limits.nofile": ('limits.nofile = "unlimited"', "unlimited", "CAP_SYS_RESOURCE"),
}


@needs_root
@pytest.mark.parametrize("key", RIGHTS)
def test_what_takes_a_right_that_the_registry_has_not_is_refused_with_key_and_remedy(box, key):
    keys, value, right = RIGHTS[key]
    program = (str(box.program("without_rights", WITHOUT_RIGHTS)),)
    status = refused(box, keys, program=program)
    assert status["reason"] == "not_permitted"
    assert status["message"] == (
        f"{key} cannot be set to {value}: it takes {right} (mostly root's), "
        f"or is more than the kernel allows; change {key} or leave it out"
    )
    assert box.events("looks", "spawned") == []


@needs_root
def test_capabilities_that_the_registry_has_not_are_refused_by_setpriv_and_it_says_so(box):
    program = (str(box.program("without_rights", WITHOUT_RIGHTS)),)
    status = refused(box, 'capabilities = ["CAP_NET_BIND_SERVICE"]', program=program)
    assert status["reason"] == "not_permitted"
    assert status["message"].startswith("setpriv could not set its user, groups or capabilities")
    box.wait_for(lambda: "setpriv:" in box.log("looks"), "its output says which")


@needs_root
def test_a_socket_that_cannot_be_given_to_its_user_is_for_a_person_to_mend(box):
    program = (str(box.program("without_rights", WITHOUT_RIGHTS)),)
    status = refused(box, 'user = "nobody"\nready = "notify"', program=program)
    assert status["reason"] == "not_permitted"
    assert status["message"].endswith(
        "let the registry make files there and give them to the service's user"
    )


@needs_root
def test_output_that_cannot_be_given_to_its_user_is_refused_with_the_key(box):
    program = (str(box.program("without_rights", WITHOUT_RIGHTS)),)
    status = refused(box, 'user = "nobody"', program=program)
    assert status["reason"] == "not_permitted"
    assert status["message"].startswith("user cannot be set to 65534: ")
    assert status["message"].endswith("let it, or leave user out")


def test_more_than_the_kernel_allows_is_refused(box):
    status = refused(box, 'limits.nofile = "unlimited"')  # fs.nr_open is a limit to root, too
    assert status["reason"] == "not_permitted"
    assert status["message"].startswith("limits.nofile cannot be set to unlimited: ")


def test_what_was_refused_starts_once_the_file_says_otherwise(box):
    refused(box, 'limits.nofile = "unlimited"')
    box.configure(looker(box, "limits.nofile = 512"))
    box.data("apply")
    box.wait_status("looks", "Running", run=1)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            "no_new_privs = true",
            "no_new_privs cannot be set without setpriv: install util-linux",
        ),
        pytest.param(
            'user = "nobody"\ncapabilities = []',
            "user and group and capabilities cannot be set without setpriv: install util-linux",
            marks=needs_root,
        ),
    ],
)
def test_without_setpriv_what_it_sets_is_refused(box, keys, message):
    status = refused(box, keys, CIRCLEOSD_WITHOUT="setpriv")
    assert (status["reason"], status["message"]) == ("not_permitted", message)


@pytest.mark.parametrize(
    ("key", "value"), [("memory_max", '"64MB"'), ("cpu_max", "1.5"), ("pids_max", "20")]
)
def test_limits_of_a_cgroup_are_refused_where_there_is_none(box, key, value):
    status = refused(box, f"limits.{key} = {value}", CIRCLEOSD_WITHOUT="cgroup")
    assert status["reason"] == "not_permitted"
    assert status["message"].startswith(f"limits.{key} takes a delegated cgroup v2, but ")
    assert status["message"].endswith(f", or leave limits.{key} out")


# --- memory ---------------------------------------------------------------------------------------

LOOKS_OFTEN = """
from registry.__main__ import main
from registry.host.memory import MemoryWatch

MemoryWatch.__init__.__kwdefaults__["every_s"] = 0.1
main()
"""
"""A registry that looks at memory often, so that the test need not wait."""

GROWS = """
import os, sys, time
small = os.path.exists("grown")
open("grown", "w").close()
if os.fork() == 0 and not small:
    held = bytearray(b"x" * 60_000_000)
    open("holds", "w").close()
time.sleep(1000)
"""


def test_a_service_whose_processes_hold_too_much_memory_is_restarted_and_says_why(box):
    box.configure(
        f'[[service]]\nname = "grows"\ncmd = {box.python("grows", GROWS)}\n'
        'restart = { memory_max = "50MB" }\nstop.timeout = "2s"'
    )
    box.start(program=(str(box.program("looks_often", LOOKS_OFTEN)),))
    record = box.wait_status("grows", "Running", run=2)
    assert record["restarts"] == 1
    exceeded = box.last("grows", "memory_exceeded")
    assert exceeded["reason"] == "memory_max"
    assert exceeded["data"]["bytes"] > exceeded["data"]["memory_max"] == 50_000_000
    assert box.last("grows", "exited")["reason"] == "memory_max"
    held = box.wait_for(lambda: box.data("status", service="grows")["memory"], "memory is shown")
    assert 1_000_000 < held < 50_000_000
