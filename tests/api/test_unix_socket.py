"""The socket file: taken over when stale, left alone when alive, never open too wide."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import socket
import stat
import struct
import subprocess
import sys

import pytest

from registry.api import unix_socket
from registry.api.access import Access, Peer
from registry.api.server import Server, SocketError, SocketHeld
from registry.api.unix_socket import listen, peer_of


def server_at(path, mode=0o600, group=None) -> Server:
    return Server(str(path), mode, group, {}, {}, Access(os.getuid(), lambda pid: None))


def stale_socket(path) -> None:
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
async def test_the_file_has_its_mode_and_goes_with_the_server(short_dir, mode):
    path = short_dir / "s"
    server = server_at(path, mode)
    await server.start()
    assert stat.S_IMODE(path.stat().st_mode) == mode
    await server.close()
    assert not path.exists()


async def test_the_file_is_for_us_alone_until_its_group_is_set(short_dir, monkeypatch):
    path, modes = short_dir / "s", []
    monkeypatch.setattr(
        os, "chown", lambda path, uid, gid: modes.append((uid, gid, os.stat(path).st_mode & 0o777))
    )
    server = server_at(path, 0o666, grp.getgrgid(os.getgid()).gr_name)
    umask = os.umask(0)
    try:
        await server.start()
    finally:
        assert os.umask(umask) == 0
    assert modes == [(-1, os.getgid(), 0o600)]
    await server.close()


async def test_a_stale_file_is_taken_over(short_dir):
    path = short_dir / "s"
    stale_socket(path)
    server = server_at(path)
    await server.start()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    await server.close()


async def test_a_living_one_is_refused_and_its_holder_named(short_dir):
    path = str(short_dir / "s")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        program = holder.stdout.readline().decode().strip()
        with pytest.raises(SocketHeld) as held:
            await server_at(path).start()
        assert os.path.exists(path)
        holder.communicate()
    remedy = "end that one, or set another [registry] socket"
    assert str(held.value) == f"{path} is held by process {holder.pid} ({program}); {remedy}"


HOLDER = """
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
try:
    print(open("/proc/self/comm").read(), end="", flush=True)
except OSError:
    print("unknown", flush=True)
sys.stdin.read()
"""


async def test_a_file_that_is_no_socket_is_left_alone(short_dir):
    path = short_dir / "s"
    path.write_text("precious")
    with pytest.raises(SocketError, match="is no socket; remove it"):
        await server_at(path).start()
    assert path.read_text() == "precious"


async def test_a_folder_that_is_missing_is_a_sentence(short_dir):
    with pytest.raises(SocketError, match=r"the folder .*/nowhere does not exist"):
        await server_at(short_dir / "nowhere" / "s").start()


async def test_a_path_that_is_too_long_is_a_sentence(short_dir):
    with pytest.raises(SocketError, match="too long; choose a shorter path"):
        await server_at(short_dir / ("x" * 120)).start()


async def test_a_group_that_does_not_exist_is_a_sentence(short_dir):
    with pytest.raises(SocketError, match="the group no-such-group"):
        await server_at(short_dir / "s", 0o660, "no-such-group").start()
    assert not (short_dir / "s").exists()


async def test_permission_denied_is_a_sentence_and_leaves_no_file(short_dir, monkeypatch):
    def denied(*arguments):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", denied)
    with pytest.raises(SocketError, match="permission denied"):
        await server_at(short_dir / "s", 0o660, str(os.getgid())).start()
    assert not (short_dir / "s").exists()


async def test_closing_leaves_the_file_of_a_successor_alone(short_dir):
    path = short_dir / "s"
    server = server_at(path)
    await server.start()
    path.unlink()
    stale_socket(path)
    await server.close()
    assert path.is_socket()


async def test_a_server_may_be_closed_without_having_started(short_dir):
    await server_at(short_dir / "s").close()


def test_a_listener_that_answers_nobody_is_held_all_the_same(short_dir, monkeypatch):
    path = str(short_dir / "s")
    monkeypatch.setattr(unix_socket, "_PROBE_S", 0.05)
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(path)
        busy.listen(0)
        first.connect(path)
        with pytest.raises(SocketHeld, match="does not answer"):
            listen(path, 0o600, None)


def test_large_user_numbers_are_read_unsigned():
    class Large(socket.socket):
        def getsockopt(self, level, name, size=None):
            if name == 59:  # SO_PEERGROUPS
                return struct.pack("=2I", 4294967292, 4)
            return struct.pack("=iII", 0, 4294967290, 4294967291)

    with Large(socket.AF_UNIX) as sock:
        groups = frozenset((4294967292, 4))
        assert peer_of(sock) == Peer(4294967290, 4294967291, None, None, groups)


@pytest.mark.platform("linux")
def test_a_peer_s_groups_are_those_that_its_process_has():
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert peer_of(ours).groups == frozenset(os.getgroups())


def test_where_the_kernel_does_not_say_its_groups_they_are_those_of_its_user(monkeypatch):
    class Old(socket.socket):
        def getsockopt(self, level, name, size=None):
            if name == 59:
                raise OSError(errno.ENOPROTOOPT, "Protocol not available")
            return struct.pack("=iII", 0, uid, 5)

    groups = {(pwd.getpwuid(os.getuid()).pw_name, 5): [5, 6]}
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: groups[name, gid])
    uid, nameless = os.getuid(), 4294967290
    with Old(socket.AF_UNIX) as sock:
        assert peer_of(sock).groups == frozenset((5, 6))
        uid = nameless
        assert peer_of(sock).groups == frozenset()


def test_the_peer_is_known_without_so_peercred(monkeypatch):
    class Darwin(socket.socket):
        def getsockopt(self, level, name, size=None):
            if name == 1:
                return struct.pack("=IIh2x16I", 0, 501, 2, 20, 12, *[0] * 14)
            return 999_999_999

    monkeypatch.delattr(socket, "SO_PEERCRED", raising=False)
    with Darwin(socket.AF_UNIX) as sock:
        groups = frozenset((20, 12))
        assert peer_of(sock) == Peer(uid=501, gid=20, pid=999_999_999, program=None, groups=groups)
