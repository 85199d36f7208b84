"""Other users at the socket of a registry that runs as root: what `[access]` lets them do, and who did it."""

from __future__ import annotations

import grp
import json
import os
import pwd
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

pytestmark = [
    pytest.mark.platform("linux"),
    pytest.mark.skipif(os.getuid() != 0, reason="only root can be other users"),
]

NOBODY = pwd.getpwnam("nobody")
NOGROUP = grp.getgrgid(NOBODY.pw_gid).gr_name
DEPLOYER, DEPLOYERS = 4711, 4712

CLIENT = """
import os, socket, sys

path, uid, gid, *groups = sys.argv[1:]
os.setgroups([int(group) for group in groups])
os.setresgid(int(gid), int(gid), int(gid))
os.setresuid(int(uid), int(uid), int(uid))
client = socket.socket(socket.AF_UNIX)
try:
    client.connect(path)
except OSError as error:
    sys.exit(type(error).__name__)
print("connected", flush=True)
answers = client.makefile("rb")
for line in sys.stdin.buffer:
    client.sendall(line)
    sys.stdout.buffer.write(answers.readline())
    sys.stdout.buffer.flush()
"""


class Guest:
    """Another user, and the one connection on which he asks for everything."""

    def __init__(self, box, uid: int, gid: int, groups: tuple[int, ...]) -> None:
        words = [str(number) for number in (uid, gid, *groups)]
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", CLIENT, str(box.socket), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.is_connected = bool(self.process.stdout.readline())

    def ask(self, action: str, **parameters: Any) -> Any:
        """The whole answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"action": action, **parameters}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def may(self, action: str, **parameters: Any) -> bool:
        answer = self.ask(action, **parameters)
        assert answer["ok"] or answer["error"]["code"] == "forbidden", answer
        return bool(answer["ok"])

    def close(self) -> str:
        """Hang up; what the client said on its standard error."""
        return self.process.communicate(timeout=10)[1]


@pytest.fixture
def guest(box) -> Iterator[Callable[..., Guest]]:
    """Makes other users: nobody, unless it is told otherwise."""
    box.folder.chmod(0o711)
    with ExitStack() as stack:

        def make(
            uid: int = NOBODY.pw_uid, gid: int = NOBODY.pw_gid, groups: tuple[int, ...] = ()
        ) -> Guest:
            made = Guest(box, uid, gid, groups)
            stack.callback(made.close)
            return made

        yield make


def access(**words: str) -> str:
    """An `[access]` that names these."""
    return "[access]\n" + "".join(f'{role} = ["{word}"]\n' for role, word in words.items())


def configure(box, granted: str, settings: str = "", cmd: str = '["sleep", "1000"]') -> None:
    box.configure(f'{granted}\n[[service]]\nname = "web"\ncmd = {cmd}\n', settings)


def start(box, granted: str, settings: str = "") -> None:
    configure(box, granted, settings)
    box.start()
    box.wait_status("web", "Running")


@pytest.mark.parametrize(
    ("role", "allowed"),
    [
        ("observe", ["list_services", "plan"]),
        ("operate", ["list_services", "plan", "restart", "stop"]),
        ("admin", ["list_services", "plan", "restart", "stop", "apply"]),
    ],
)
def test_a_role_lets_its_holder_do_what_it_says_and_no_more(box, guest, role, allowed):
    start(box, access(**{role: "user:nobody"}))
    nobody = guest()
    asked = {"restart": {"service": "web"}, "stop": {"service": "web"}}
    actions = ("list_services", "plan", "restart", "stop", "apply")
    assert [name for name in actions if nobody.may(name, **asked.get(name, {}))] == allowed
    assert (box.service("web")["wanted"] == "down") is ("stop" in allowed)
    assert nobody.may("shutdown") is (role == "admin")


def test_who_is_not_named_may_not_even_look(box, guest):
    start(box, access(admin=f"uid:{DEPLOYER}"))
    answer = guest().ask("list_services")
    assert answer["error"]["code"] == "forbidden"
    assert answer["error"]["message"] == (
        f"user {NOBODY.pw_uid} (nobody) may not ask for list_services: "
        "[access] observe names neither the user nor one of its groups"
    )


@pytest.mark.parametrize(
    ("word", "groups", "may"),
    [
        (f"uid:{DEPLOYER}", (), True),
        (f"gid:{DEPLOYERS}", (), False),
        (f"gid:{DEPLOYERS}", (20, DEPLOYERS), True),
        ("group:staff", (grp.getgrnam("staff").gr_gid,), True),
        (f"group:{NOGROUP}", (), False),
        ("user:nobody", (), False),
    ],
)
def test_a_user_or_any_of_his_groups_may_be_named(box, guest, word, groups, may):
    start(box, access(operate=word))
    assert guest(DEPLOYER, DEPLOYER, groups).may("restart", service="web") is may


def test_who_did_it_is_in_the_journal(box, guest):
    start(box, access(operate="user:nobody"))
    nobody = guest()
    assert nobody.may("stop", service="web")
    actor = box.last("web", "stop_requested")["actor"]
    assert (actor["uid"], actor["pid"]) == (NOBODY.pw_uid, nobody.process.pid)
    assert actor["program"].startswith("python")
    box.data("start", service="web")
    assert box.last("web", "start_requested")["actor"]["uid"] == 0


@pytest.mark.parametrize(
    ("granted", "settings", "mode", "group"),
    [
        ("", "", 0o600, 0),
        ("", 'socket_mode = "0660"\nsocket_group = "nogroup"', 0o660, NOBODY.pw_gid),
        (access(observe="user:nobody"), "", 0o666, 0),
        (access(observe="user:nobody"), 'socket_mode = "0600"', 0o600, 0),
        ("[access]\nobserve = []", "", 0o600, 0),
    ],
)
def test_the_socket_lets_in_whom_its_mode_says(box, guest, granted, settings, mode, group):
    start(box, granted, settings)
    found = box.socket.stat()
    assert (found.st_mode & 0o777, found.st_gid) == (mode, group)
    nobody = guest()
    assert nobody.is_connected is (mode != 0o600)
    if not nobody.is_connected:
        assert nobody.close().strip() == "PermissionError"


def test_a_change_counts_at_once_and_for_those_who_are_connected(box, guest):
    start(box, "", 'socket_mode = "0666"')
    nobody = guest()
    assert not nobody.may("list_services")
    for granted, may in [
        (access(observe="user:nobody"), (True, False)),
        (access(operate=f"group:{NOGROUP}"), (True, True)),
        (access(observe=f"gid:{DEPLOYERS}"), (False, False)),
    ]:
        configure(box, granted, 'socket_mode = "0666"')
        box.data("apply")
        assert (nobody.may("list_services"), nobody.may("restart", service="web")) == may


def test_an_admin_who_takes_his_own_right_away_has_it_no_more(box, guest):
    start(box, access(admin="user:nobody"))
    configure(box, access(observe="user:nobody"))
    nobody = guest()
    assert nobody.may("apply")
    assert not nobody.may("apply")
    assert nobody.may("list_services")


def test_who_is_named_for_the_first_time_is_let_in_by_the_next_start(box, guest):
    start(box, "")
    configure(box, access(observe="user:nobody"))
    assert "registry.socket_mode" in box.data("plan")["later"]
    box.data("apply")
    assert not guest().is_connected
    box.kill()
    box.start()
    assert guest().may("list_services")


def test_a_wrong_file_takes_no_right_away(box, guest):
    start(box, access(admin="user:nobody"))
    nobody = guest()
    configure(box, '[access]\nadmin = "user:nobody"\nobserver = ["user:nobody"]')
    answer = nobody.ask("apply")
    assert answer["error"]["code"] == "invalid_config"
    assert any("observer" in complaint for complaint in answer["error"]["data"])
    assert nobody.may("restart", service="web")


BEATS = """
import json, os, socket, time
client = socket.socket(socket.AF_UNIX)
client.connect(os.environ["CIRCLEOSD_SOCKET"])
for request in ({"action": "heartbeat", "service": "web"}, {"action": "list_services"},
                {"action": "heartbeat", "service": "other"}):
    client.sendall(json.dumps(request).encode() + b"\\n")
    answer = json.loads(client.makefile().readline())
    print("yes" if answer["ok"] else answer["error"]["code"], flush=True)
time.sleep(1000)
"""


def test_a_service_of_another_user_may_send_its_own_heartbeat_and_nothing_else(box):
    box.folder.chmod(0o711)
    check = 'health_check = { target = "heartbeat:", interval = "100s" }'
    web = f'[[service]]\nname = "web"\ncmd = {box.python("beats", BEATS)}\nuser = "nobody"\n{check}'
    other = f'[[service]]\nname = "other"\ncmd = ["sleep", "1000"]\n{check}'
    box.configure(f"{access(admin=f'uid:{DEPLOYER}')}\n{web}\n{other}")
    box.start()
    box.wait_for(lambda: box.log("web").count("\n") == 3, "it has asked")
    assert box.log("web").split() == ["yes", "forbidden", "forbidden"]
    assert box.wait_status("web", "Running")["health"] == "healthy"
