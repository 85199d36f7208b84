"""What the two sides promise each other: messages whole, descriptors in place, strangers refused."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import selectors
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.keeper import loop
from registry.keeper.protocol import (
    FDS_MAX,
    LINE_MAX,
    TOGETHER_FDS_MAX,
    Channel,
    is_trusted,
    listen,
    peer_uid,
)
from registry.passed import close_all

Said = list[str]

pytestmark = pytest.mark.platform("linux")


@pytest.fixture
def said() -> Said:
    return []


@pytest.fixture
def ends(said: Said) -> Iterator[tuple[Channel, Channel]]:
    one, other = socket.socketpair()
    channels = Channel(one, said.append), Channel(other, said.append)
    yield channels
    for channel in channels:
        channel.close()


@pytest.fixture
def raw(said: Said) -> Iterator[tuple[socket.socket, Channel]]:
    """A peer that may send anything, and the channel that has to bear it."""
    one, other = socket.socketpair()
    channel = Channel(other, said.append)
    yield one, channel
    one.close()
    channel.close()


LEAVE = b'{"type":"leave","fds":0}\n'


def connect(folder: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(folder / "keeper.sock"))
    return sock


def ask(sock: socket.socket) -> list[dict]:
    """Say hello; everything up to kept_all."""
    sock.sendall(b'{"type":"hello","version":1,"fds":0}\n')
    data = b""
    while b"kept_all" not in data or not data.endswith(b"\n"):
        data += sock.recv(65536)
    return [json.loads(line) for line in data.splitlines()]


def test_messages_arrive_with_their_descriptors(ends) -> None:
    one, other = ends
    with open(os.devnull) as first, open("/proc/self/status") as second:
        assert one.send({"type": "a"}, [first.fileno()])
        assert one.send({"type": "b"})
        assert one.send({"type": "c"}, [first.fileno(), second.fileno()])
        got: list[tuple[dict, list[int]]] = []
        while len(got) < 3:
            got += other.receive()
        assert [(m["type"], len(fds)) for m, fds in got] == [("a", 1), ("b", 0), ("c", 2)]
        assert os.path.samestat(os.fstat(got[2][1][1]), os.fstat(second.fileno()))
    assert all(not os.get_inheritable(fd) for _, fds in got for fd in fds)
    for _, fds in got:
        for fd in fds:
            os.close(fd)


def test_a_full_socket_takes_nothing_by_halves(ends) -> None:
    one, other = ends
    sent = 0
    while one.send({"type": "x", "n": sent, "pad": "p" * 1000}):
        sent += 1
    assert one.send({"type": "x"}) is False
    got: list[object] = []
    while len(got) < sent:
        got += [message["n"] for message, _ in other.receive()]
        one.flush()
    assert got == list(range(sent))


def test_several_messages_go_at_once_up_to_what_is_never_split(ends) -> None:
    one, other = ends
    with open(os.devnull) as file:
        fds = [file.fileno()]
        small = [({"type": "x", "n": n}, fds * 2) for n in range(20)]
        assert one.send_some(small) == TOGETHER_FDS_MAX // 2
        assert [(m["n"], len(f)) for m, f in received(other)] == [(n, 2) for n in range(16)]
        assert one.send_some([({}, []), small[0], ({}, []), small[1]]) == 4
        assert [(m["n"], len(f)) for m, f in received(other)] == [(0, 2), (1, 2)]
        large = [({"type": "x", "n": n, "pad": "p" * 5000}, fds) for n in range(4)]
        assert one.send_some(large) == 3
        assert [(m["n"], len(f)) for m, f in received(other)] == [(n, 1) for n in range(3)]
        assert one.send_some([({"type": "x", "pad": "p" * 30_000}, fds)]) == 1
        assert [len(f) for _, f in received(other)] == [1]
        assert one.send_some([({}, [])]) == 1
        assert received(other) == []


def received(channel: Channel) -> list[tuple[dict, list[int]]]:
    """What one reading brings; its descriptors are closed."""
    got = channel.receive()
    close_all(fd for _, fds in got for fd in fds)
    return got


def test_what_is_no_message_is_ignored_and_said(raw, said) -> None:
    peer, channel = raw
    peer.sendall(b'nonsense\n[1]\n{"type":5,"fds":0}\n' + b"[" * 50_000 + b"\n")
    peer.sendall(b'{"type":"y","fds":2}\n{"type":"y","fds":"2"}\n{"type":"good","fds":0}\n')
    got: list[tuple[dict, list[int]]] = []
    while not got:
        got += channel.receive()
    assert got == [({"type": "good", "fds": 0}, [])]
    assert len(said) == 6


def test_descriptors_that_no_message_claims_are_closed(raw) -> None:
    peer, channel = raw
    before = len(os.listdir("/proc/self/fd"))
    socket.send_fds(peer, [b'{"type":"x","fds":0}\n'], [0, 0, 0])
    assert len(channel.receive()) == 1
    assert len(os.listdir("/proc/self/fd")) == before


def test_too_many_descriptors_end_the_connection(raw) -> None:
    peer, channel = raw
    socket.send_fds(peer, [b'{"type":"x","fds":0}\n'], [0] * (FDS_MAX + 9))
    with pytest.raises(ConnectionError, match="descriptors were lost"):
        channel.receive()


def test_a_message_without_end_ends_the_connection(raw) -> None:
    peer, channel = raw
    peer.sendall(b"x" * LINE_MAX)
    assert channel.receive() == []
    peer.sendall(b"x" * 10)
    with pytest.raises(ConnectionError, match="longer than"):
        channel.receive()


def test_only_ourselves_and_root_are_trusted(monkeypatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert [is_trusted(uid) for uid in (0, 1000, 1001, 65534)] == [True, True, False, False]


def test_the_peers_uid_comes_from_the_kernel() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert peer_uid(one) == os.geteuid()


def test_a_listening_socket_is_ours_alone(folder) -> None:
    (folder / "s").write_text("in the way")
    with listen(str(folder / "s")):
        assert (folder / "s").stat().st_mode & 0o777 == 0o600
        assert os.listdir(folder) == ["s"]


def test_the_keeper_refuses_a_foreign_uid(folder, said, monkeypatch) -> None:
    listener = listen(str(folder / "keeper.sock"))
    monkeypatch.setattr(loop, "peer_uid", lambda _sock: 65534)
    monkeypatch.setattr(loop, "is_trusted", lambda uid: uid != 65534)
    with listener, connect(folder) as stranger:
        keeper = loop.Loop(listener, said.append)
        keeper.run()
        assert stranger.recv(1) == b""
        keeper.close()
    assert said == ["refused a client with uid 65534"]


def test_an_output_that_waited_is_listened_to_as_soon_as_the_kernel_can(
    folder, said, monkeypatch
) -> None:
    times: list[int] = []

    class Short(selectors.DefaultSelector):
        def register(self, fileobj, events, data=None):
            if isinstance(fileobj, int):  # an output
                times.append(fileobj)
                if len(times) == 2:
                    raise OSError(errno.ENOMEM, "no memory")
            return super().register(fileobj, events, data)

    monkeypatch.setattr(selectors, "DefaultSelector", Short)
    reader, writer = os.pipe()
    spec = {"path": str(folder / "web.log"), "size_max": 1000, "files_max": 2}
    message = {"type": "keep", "service": "s", "run": 1, "output": True, "log": spec, "fds": 1}
    with listen(str(folder / "keeper.sock")) as listener, connect(folder) as sock:
        socket.send_fds(sock, [json.dumps(message).encode() + b"\n"], [reader])
        sock.sendall(LEAVE)
        sock.shutdown(socket.SHUT_WR)
        os.write(writer, b"x" * 60_000 + b"\n")  # more than its log holds: it waits then
        os.close(reader)
        os.close(writer)
        keeper = loop.Loop(listener, said.append)
        keeper.run()
        keeper.close()
    assert len(times) == 3
    assert not [line for line in said if "cannot read" in line]


def test_the_keeper_survives_malformed_messages(folder, start_keeper) -> None:
    keeper = start_keeper()
    reader, writer = os.pipe()
    bad: list[dict[str, object]] = [
        {"type": "keep"},
        {"type": "keep", "service": 5, "run": "x"},
        {"type": "keep", "service": "a", "run": 1, "output": True, "pidfd": True},
        {"type": "keep", "service": "b", "run": 1, "output": True, "log": {"path": "relative"}},
        {
            "type": "keep",
            "service": "c",
            "run": 1,
            "output": True,
            "log": {"path": "/x\0", "size_max": 1},
        },
        {"type": "release", "service": "nobody", "run": 99},
        {"type": "watch"},
        {"type": "hold", "service": "e"},
        {"type": "hold", "service": "e", "slot": 5},
        {"type": "hold", "service": "f", "slot": "stored:1", "meta": [1]},
        {"type": "drop", "service": "nobody", "slot": "notify"},
        {"type": "noted", "at_mono_ns": "x"},
        {"type": "tomorrow", "service": "x", "run": 1},
    ]
    with connect(folder) as sock:
        for message in bad:
            sock.sendall(json.dumps({**message, "fds": 0}).encode() + b"\n")
            sock.sendall(json.dumps({**message, "fds": 9}).encode() + b"\n")
            line = json.dumps({**message, "fds": 1}).encode() + b"\n"
            socket.send_fds(sock, [line], [reader])
        with open("/proc/self/status") as file:
            line = b'{"type":"keep","service":"d","run":1,"output":true,"fds":1}\n'
            socket.send_fds(sock, [line], [file.fileno()])
        sock.sendall(b"nonsense\n")
        kinds = {(m["type"], m.get("service")) for m in ask(sock)}
        assert ("kept_all", None) in kinds
        assert {("kept", "a"), ("kept", "b")} <= kinds
        sock.sendall(LEAVE)
    assert keeper.poll() is None
    os.close(writer)
    os.close(reader)
    assert keeper.wait(5) == 0


def test_a_client_that_never_reads_costs_no_memory(folder, start_keeper) -> None:
    keeper = start_keeper()
    reader, writer = os.pipe()
    with connect(folder) as sock:
        line = json.dumps({"type": "keep", "service": "s", "run": 1, "output": True, "fds": 1})
        socket.send_fds(sock, [line.encode() + b"\n"], [reader])
        for _ in range(20_000):
            sock.sendall(b'{"type":"hello","version":1,"fds":0}\n')
        os.close(reader)
        os.close(writer)
        size_kb = int(Path(f"/proc/{keeper.pid}/statm").read_text().split()[1]) * 4
        assert size_kb < 13_000
        sock.sendall(LEAVE)
    assert keeper.wait(5) == 0


def test_a_dying_keepers_lock_is_waited_for(folder, start_keeper) -> None:
    keeper = start_keeper()
    path = folder / "web.log"
    reader, writer = os.pipe()
    with connect(folder) as sock, path.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        spec = {"path": str(path), "size_max": 1000, "files_max": 2}
        message = {"type": "keep", "service": "s", "run": 1, "output": True, "log": spec, "fds": 1}
        socket.send_fds(sock, [json.dumps(message).encode() + b"\n"], [reader])
        os.write(writer, b"waited for\n")
        os.close(reader)
        os.close(writer)
        ask(sock)
        assert path.read_bytes() == b""
        fcntl.flock(held, fcntl.LOCK_UN)
        assert json.loads(sock.recv(1000))["type"] == "output_ended"
        sock.sendall(b'{"type":"heard","service":"s","run":1,"fds":0}\n')
    assert path.read_bytes() == b"waited for\n"
    assert keeper.wait(5) == 0


def test_it_runs_isolated_by_any_python(folder, program) -> None:
    """No site, no environment, no current folder: what it imports is its own and the library's."""
    command = [sys.executable, "-I", "-S", "-X", "importtime", program]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    imported = {line.rsplit("|", 1)[-1].strip() for line in found.stderr.splitlines()}
    assert "registry.keeper.loop" in imported
    assert not imported & {
        "asyncio",
        "msgspec",
        "typing",
        "argparse",
        "logging",
        "pathlib",
        "threading",
    }
