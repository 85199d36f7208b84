"""Who may ask for what."""

from __future__ import annotations

import asyncio
import grp
import logging
import os
import pwd
import sys

import pytest

from registry.api.access import GRANTABLE, Access, Peer
from registry.api.actions import (
    ACTIONS,
    ApiError,
    ErrorCode,
    HeartbeatParams,
    NoParams,
    Params,
    Role,
)
from registry.api.server import Server

OWN_UID, OTHER_UID, OTHER_GID = 1000, 4711, 4712
PIDS = {50: "web", 51: "db"}
NOBODY = pwd.getpwnam("nobody")


def refusal(access: Access, peer: Peer, action: str, params: Params | None = None) -> str:
    """What is said to a peer that may not; "" to one that may."""
    try:
        access.allow(peer, ACTIONS[action], params or NoParams())
    except ApiError as error:
        told = error
    else:
        return ""
    assert told.code is ErrorCode.FORBIDDEN
    assert f"user {peer.uid} " in told.message
    assert action in told.message
    return told.message


def allowed(peer: Peer, action: str, params: Params | None = None) -> bool:
    """Whether it is where nobody is named."""
    return not refusal(Access(OWN_UID, PIDS.get), peer, action, params)


def other(gid: int = 5, groups: tuple[int, ...] = (), pid: int | None = None) -> Peer:
    return Peer(OTHER_UID, gid, pid, None, frozenset(groups))


def granting(**words: tuple[str, ...]) -> Access:
    return Access(OWN_UID, PIDS.get, {Role(role): given for role, given in words.items()})


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("uid", [OWN_UID, 0])
def test_the_registry_s_own_user_and_root_may_everything(uid, action):
    assert allowed(Peer(uid, 5, None, None), action)


@pytest.mark.parametrize(
    "action", [name for name, action in ACTIONS.items() if action.role is not Role.SERVICE]
)
def test_who_is_not_named_may_nothing_but_report(action):
    assert not allowed(other(pid=50), action)
    assert not allowed(other(pid=50), action, HeartbeatParams("web"))


@pytest.mark.parametrize(
    ("pid", "service", "expected"),
    [(50, "web", True), (51, "web", False), (52, "web", False), (None, "web", False)],
)
def test_others_may_report_only_for_the_service_that_holds_them(pid, service, expected):
    assert allowed(other(pid=pid), "heartbeat", HeartbeatParams(service)) is expected


def test_a_report_for_no_service_is_nobody_s():
    assert not allowed(other(pid=52), "heartbeat")


@pytest.mark.parametrize("granted", GRANTABLE)
@pytest.mark.parametrize(
    ("action", "enough"),
    [
        ("status", ("observe", "operate", "admin")),
        ("logs", ("observe", "operate", "admin")),
        ("restart", ("operate", "admin")),
        ("heartbeat", ("operate", "admin")),
        ("shutdown", ("admin",)),
    ],
)
def test_admin_includes_operate_and_that_includes_observe(granted, action, enough):
    access = granting(**{granted: (f"uid:{OTHER_UID}",)})
    assert (not refusal(access, other(), action)) is (granted in enough)


@pytest.mark.parametrize(
    ("word", "peer"),
    [
        (f"uid:{OTHER_UID}", other()),
        (f"gid:{OTHER_GID}", other(gid=OTHER_GID)),
        (f"gid:{OTHER_GID}", other(groups=(7, OTHER_GID))),
        ("user:nobody", Peer(NOBODY.pw_uid, 5, None, None)),
        (f"group:{grp.getgrgid(NOBODY.pw_gid).gr_name}", other(groups=(NOBODY.pw_gid,))),
    ],
)
def test_a_word_names_a_user_or_whoever_has_the_group(word, peer):
    access = granting(operate=("uid:1", word, "gid:2"))
    assert not refusal(access, peer, "stop")
    assert refusal(access, Peer(8, 8, None, None, frozenset((9,))), "stop")


def test_a_uid_is_no_gid_and_a_gid_no_uid():
    assert refusal(
        granting(admin=(f"gid:{OTHER_UID}", f"uid:{OTHER_GID}")), other(OTHER_GID), "stop"
    )


def test_a_refusal_says_who_asked_and_where_he_would_have_to_be_named():
    peer = Peer(NOBODY.pw_uid, 5, None, None)
    assert refusal(granting(observe=("user:nobody",)), peer, "stop") == (
        f"user {NOBODY.pw_uid} (nobody) may not ask for stop: "
        "[access] operate names neither the user nor one of its groups"
    )
    assert refusal(granting(), other(), "heartbeat") == (
        f"user {OTHER_UID} may ask for heartbeat only from a process of that service, "
        "or as one whom [access] operate names"
    )


def test_what_is_set_later_replaces_what_was_granted():
    access = granting(operate=(f"uid:{OTHER_UID}",))
    access.set({Role.OBSERVE: (f"uid:{OTHER_UID}",)})
    assert refusal(access, other(), "stop")
    assert not refusal(access, other(), "status")


@pytest.mark.parametrize("word", ["user:no-such", "group:no-such", "uid:x", "4711", "any:4711", ""])
def test_a_word_that_names_nobody_grants_nothing_and_is_told_once(word, caplog):
    with caplog.at_level(logging.WARNING):
        access = granting(admin=(word, f"gid:{OTHER_GID}"))
        access.set({Role.ADMIN: (word, f"gid:{OTHER_GID}")})
    assert caplog.messages == [f"[access] admin: there is no '{word}' here, so it grants nothing"]
    assert refusal(access, other(), "status")
    assert not refusal(access, other(gid=OTHER_GID), "status")


ASKS = """
import json, os, socket, sys
path, uid, gid, *groups = sys.argv[1:]
os.setgroups([int(group) for group in groups])
os.setresgid(int(gid), int(gid), int(gid))
os.setresuid(int(uid), int(uid), int(uid))
client = socket.socket(socket.AF_UNIX)
client.connect(path)
for action in ("version", "stop", "shutdown"):
    request = {"action": action, **({"service": "all"} if action == "stop" else {})}
    client.sendall(json.dumps(request).encode() + b"\\n")
    answer = json.loads(client.makefile().readline())
    print("yes" if answer["ok"] else answer["error"]["code"])
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be other users")
@pytest.mark.parametrize(
    ("uid", "gid", "groups", "may"),
    [
        (4711, 20, (), "yes yes forbidden"),
        (4713, 4714, (), "yes forbidden forbidden"),
        (4713, 20, (30, 4714), "yes forbidden forbidden"),
        (4713, 20, (30, 4715), "yes yes yes"),
        (4713, 20, (30,), "forbidden forbidden forbidden"),
    ],
)
async def test_the_kernel_says_who_asks_and_in_which_groups(short_dir, uid, gid, groups, may):
    access = Access(
        os.getuid(),
        PIDS.get,
        {Role.OBSERVE: ("gid:4714",), Role.OPERATE: ("uid:4711",), Role.ADMIN: ("gid:4715",)},
    )
    path = short_dir / "s"
    server = Server(
        str(path), 0o666, None, ACTIONS, dict.fromkeys(ACTIONS, lambda params, peer: None), access
    )
    short_dir.chmod(0o755)
    await server.start()
    told = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-c", ASKS, str(path)),
        *(str(number) for number in (uid, gid, *groups)),
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await told.communicate()
    await server.close()
    assert said.decode().split() == may.split()
