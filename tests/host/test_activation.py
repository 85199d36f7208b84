"""Listening sockets that outlive the processes they are for."""

from __future__ import annotations

import os
import socket
import stat
import sys
from collections.abc import Iterator

import pytest

from registry.core.definition import Definition, Socket
from registry.host.activation import Sockets, listen_variables, open_socket

ANOTHER_UID = 65534 if os.geteuid() == 0 else os.getuid()
TCP = "127.0.0.1:0"

SERVER = """\
import os, socket
listener = socket.socket(fileno=3)
for _ in range(int(os.environ["TIMES"])):
    connection = listener.accept()[0]
    connection.sendall(b"served " + os.environ["LISTEN_FDNAMES"].encode())
    connection.close()
"""


class HoldingKeeper:
    """Holds what it is handed, as the real one does."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], tuple[str, int]] = {}
        self.holds = 0
        self.refuses: OSError | None = None

    def hold(self, service: str, name: str, fd: int, /, *, meta: str) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.holds += 1
        self.kept[service, name] = (meta, os.dup(fd))

    def drop(self, service: str, name: str) -> None:
        os.close(self.kept.pop((service, name))[1])

    def close(self) -> None:
        for service, name in list(self.kept):
            self.drop(service, name)


@pytest.fixture
def keeper() -> Iterator[HoldingKeeper]:
    made = HoldingKeeper()
    yield made
    made.close()


@pytest.fixture
def sockets(keeper: HoldingKeeper) -> Iterator[Sockets]:
    made = Sockets(keeper.hold, keeper.drop)
    yield made
    made.close()


@pytest.fixture
def listener() -> Iterator[list[socket.socket]]:
    """Sockets to be closed in the end."""
    made: list[socket.socket] = []
    yield made
    for each in made:
        each.close()


def defined(**addresses: str) -> Definition:
    """Service web with such sockets."""
    named = tuple(Socket(name, address) for name, address in addresses.items())
    return Definition(name="web", cmd=("/web",), sockets=named)


def at(fd: int) -> socket.socket:
    """A socket object of its own for a descriptor."""
    return socket.socket(fileno=os.dup(fd))


def dial(fd: int) -> socket.socket:
    """A connection to whatever listens on `fd`."""
    with at(fd) as listening:
        client = socket.socket(listening.family, socket.SOCK_STREAM)
        client.connect(listening.getsockname())
    return client


def serve(named: list[tuple[str, int]], times: int) -> None:
    """A run of the service, from start to end."""
    environment = {"TIMES": str(times), **listen_variables(named)}
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", "-c", SERVER],
        environment,
        file_actions=[(os.POSIX_SPAWN_DUP2, named[0][1], 3)],
    )
    assert os.waitpid(pid, 0)[1] == 0


# --- a socket by itself ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "family", "host"),
    [
        ("127.0.0.1:0", socket.AF_INET, "127.0.0.1"),
        ("localhost:0", socket.AF_INET, "127.0.0.1"),
        ("0.0.0.0:0", socket.AF_INET, "0.0.0.0"),
        ("[::1]:0", socket.AF_INET6, "::1"),
        ("[::]:0", socket.AF_INET6, "::"),
    ],
)
def test_it_listens_at_an_address_of_tcp(listener, address, family, host):
    opened = socket.socket(fileno=open_socket(address, None))
    listener.append(opened)
    assert (opened.family, opened.getsockname()[0]) == (family, host)
    assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    assert os.get_blocking(opened.fileno())
    assert not os.get_inheritable(opened.fileno())
    if family == socket.AF_INET6:
        assert opened.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


def test_the_file_of_a_unix_socket_is_its_users_and_open_to_all(listener, short_dir):
    path = short_dir / "s"
    umask_before = os.umask(0o077)
    try:
        listener.append(socket.socket(fileno=open_socket(f"unix:{path}", ANOTHER_UID)))
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(umask_before)
    found = path.lstat()
    assert stat.S_ISSOCK(found.st_mode)
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o666, ANOTHER_UID)
    assert os.get_blocking(listener[0].fileno())
    assert not os.get_inheritable(listener[0].fileno())
    dial(listener[0].fileno()).close()


def test_a_stale_file_is_replaced(listener, short_dir):
    address = f"unix:{short_dir}/s"
    os.close(open_socket(address, None))
    listener.append(socket.socket(fileno=open_socket(address, None)))
    dial(listener[0].fileno()).close()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_living_one_is_left_alone(listener, short_dir, kind):
    path = short_dir / "s"
    listener.append(socket.socket(socket.AF_UNIX, kind))
    listener[0].bind(str(path))
    if kind == socket.SOCK_STREAM:
        listener[0].listen()
    inode = path.lstat().st_ino
    with pytest.raises(OSError, match=f"cannot listen at unix:{path}: ") as caught:
        open_socket(f"unix:{path}", None)
    assert "end the program that listens there" in str(caught.value)
    if kind == socket.SOCK_STREAM and sys.platform == "linux":
        assert f"process {os.getpid()} (" in str(caught.value)
    assert path.lstat().st_ino == inode


def test_an_address_in_use_is_named(listener):
    listener.append(socket.socket(fileno=open_socket(TCP, None)))
    address = f"127.0.0.1:{listener[0].getsockname()[1]}"
    with pytest.raises(OSError, match=f"cannot listen at {address}: Address already in use; end"):
        open_socket(address, None)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("8080", "it is not HOST:PORT"),
        (":8080", "it is not HOST:PORT"),
        ("localhost:" + "9" * 5000, "it is not HOST:PORT"),
        ("localhost:http", "it is not HOST:PORT"),
        ("localhost:65536", "it is not HOST:PORT"),
        ("localhost:²", "it is not HOST:PORT"),
        ("::1:80", r"knows no such host .*IPv6 is written \[HOST\]:PORT"),
        (f"{'x' * 64}:80", "knows no such host"),
        ("192.0.2.1:0", "choose an address that an interface of this machine has"),
        ("unix:s", "not absolute; begin it with a slash"),
        (f"unix:/{'x' * 110}", "longer than .* bytes.* choose a shorter path"),
        ("unix:/nowhere/at/all", "No such file or directory; make its folder"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(address, words):
    with pytest.raises(OSError, match=words) as caught:
        open_socket(address, None)
    assert str(caught.value.strerror).startswith(f"cannot listen at {address}: ")


def test_a_file_that_is_no_socket_is_left_alone(tmp_path):
    path = tmp_path / "s"
    path.write_text("mine")
    with pytest.raises(OSError, match="is no socket; remove it") as caught:
        open_socket(f"unix:{path}", None)
    assert path.read_text() == "mine"
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("named", "variables"),
    [
        ([], {}),
        ([("http", 9)], {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "http"}),
        ([("http", 9), ("a", 7)], {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "http:a"}),
    ],
)
def test_the_variables_are_those_of_systemd(named, variables):
    assert listen_variables(named) == variables


# --- the sockets of a service ---------------------------------------------------------------------


def test_a_connection_made_while_nobody_serves_is_served_by_the_next_run(sockets):
    named = sockets.ensure(defined(http=TCP), None)
    early = dial(named[0][1])
    serve(named, 1)
    late = dial(named[0][1])
    serve(sockets.ensure(defined(http=TCP), None), 1)
    for client in (early, late):
        assert client.recv(100) == b"served http"
        client.close()


def test_it_waits_through_the_end_of_the_daemon(sockets, keeper):
    sockets.ensure(defined(http=TCP), None)
    client = dial(keeper.kept["web", "listen:http"][1])
    sockets.close()
    again = Sockets(keeper.hold, keeper.drop)
    address, fd = keeper.kept["web", "listen:http"]
    again.adopt("web", "http", address, os.dup(fd))
    serve(again.ensure(defined(http=TCP), None), 1)
    assert client.recv(100) == b"served http"
    client.close()
    again.close()
    assert keeper.holds == 1


def test_they_come_in_the_order_of_the_definition(sockets, keeper, short_dir):
    named = sockets.ensure(defined(b=TCP, a=TCP), None)
    assert [name for name, _ in named] == ["b", "a"]
    more = sockets.ensure(defined(c=f"unix:{short_dir}/c", a=TCP, b=TCP), None)
    assert [name for name, _ in more] == ["c", "a", "b"]
    assert more[1:] == [named[1], named[0]]
    assert [(name, meta) for (_, name), (meta, _) in keeper.kept.items()] == [
        ("listen:b", TCP),
        ("listen:a", TCP),
        ("listen:c", f"unix:{short_dir}/c"),
    ]


def test_what_is_no_longer_asked_for_is_closed(sockets, keeper, short_dir):
    sockets.ensure(defined(http=f"unix:{short_dir}/a"), None)
    ((_, kept),) = sockets.ensure(defined(admin=TCP), None)
    assert not (short_dir / "a").exists()
    assert list(keeper.kept) == [("web", "listen:admin")]
    with at(kept) as listening:
        assert listening.family == socket.AF_INET
    assert sockets.ensure(defined(), None) == []
    assert not keeper.kept


def test_a_new_address_is_a_new_socket(sockets, keeper, short_dir):
    sockets.ensure(defined(http=f"unix:{short_dir}/a"), None)
    ((_, fd),) = sockets.ensure(defined(http=f"unix:{short_dir}/b"), None)
    assert [path.name for path in short_dir.iterdir()] == ["b"]
    assert keeper.kept["web", "listen:http"][0] == f"unix:{short_dir}/b"
    dial(fd).close()


def test_two_sockets_may_change_places(sockets, short_dir):
    one, two = f"unix:{short_dir}/1", f"unix:{short_dir}/2"
    sockets.ensure(defined(a=one, b=two), None)
    for _, fd in sockets.ensure(defined(a=two, b=one), None):
        dial(fd).close()


@pytest.mark.parametrize("is_adopted", [False, True])
def test_a_file_that_was_removed_is_made_again(sockets, keeper, short_dir, is_adopted):
    definition = defined(http=f"unix:{short_dir}/s")
    sockets.ensure(definition, None)
    (short_dir / "s").unlink()
    if is_adopted:
        sockets.close()
        sockets.adopt(
            "web", "http", f"unix:{short_dir}/s", os.dup(keeper.kept["web", "listen:http"][1])
        )
    ((_, fd),) = sockets.ensure(definition, None)
    dial(fd).close()
    assert sockets.ensure(definition, None) == [("http", fd)]


def test_an_address_of_the_keeper_that_is_no_path_is_closed_like_any_other(sockets, keeper):
    """Found by `fuzz --target told --seed 7 --from 400885 --inputs 1`."""
    fd, address = open_socket(TCP, None), "unix:x\0"
    keeper.hold("web", "listen:http", fd, meta=address)
    sockets.adopt("web", "http", address, fd)
    sockets.close_service("web")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_file_that_became_anothers_is_left_to_him(sockets, listener, short_dir):
    path = short_dir / "s"
    sockets.ensure(defined(http=f"unix:{path}"), None)
    path.rename(short_dir / "old")  # so that the other file cannot get its inode
    listener.append(socket.socket(fileno=open_socket(f"unix:{path}", None)))
    sockets.close_service("web")
    assert path.exists()


def test_the_first_that_cannot_be_had_is_named_and_the_others_stay(sockets, keeper, listener):
    listener.append(socket.socket(fileno=open_socket(TCP, None)))
    taken = f"127.0.0.1:{listener[0].getsockname()[1]}"
    before = sockets.ensure(defined(a=TCP), None)
    with pytest.raises(OSError, match=f"cannot listen at {taken}"):
        sockets.ensure(defined(a=TCP, b=TCP, c=taken, d=TCP), None)
    assert [name for _, name in keeper.kept] == ["listen:a", "listen:b"]
    listener[0].close()
    named = sockets.ensure(defined(a=TCP, b=TCP, c=taken, d=TCP), None)
    assert named[0] == before[0]
    assert len(named) == 4


def test_what_the_keeper_cannot_hold_is_not_open(sockets, keeper, short_dir):
    keeper.refuses = OSError(24, "Too many open files")
    with pytest.raises(OSError, match="Too many open files"):
        sockets.ensure(defined(http=f"unix:{short_dir}/s"), None)
    assert not (short_dir / "s").exists()
    keeper.refuses = None
    assert len(sockets.ensure(defined(http=f"unix:{short_dir}/s"), None)) == 1


def test_a_closed_service_leaves_nothing(sockets, keeper, short_dir):
    sockets.ensure(defined(http=TCP, admin=f"unix:{short_dir}/s"), None)
    sockets.close_service("web")
    sockets.close_service("web")
    assert not keeper.kept
    assert not list(short_dir.iterdir())


def test_services_do_not_share_their_sockets(sockets):
    ((_, one),) = sockets.ensure(defined(http=TCP), None)
    other = Definition(name="db", cmd=("/db",), sockets=(Socket("http", TCP),))
    ((_, two),) = sockets.ensure(other, None)
    assert one != two
    sockets.close_service("db")
    dial(one).close()
