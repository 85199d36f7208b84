"""Listening sockets and stored descriptors of services: given as systemd gives them, and never lost.

The service is a plain Python program, so that what it is given is all that it has; its client opens a
connection for each request, tries nothing twice, and is to be answered every time.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

pytestmark = [pytest.mark.platform("linux"), pytest.mark.timeout(60)]

SERVER = """
import json, os, select, signal, socket

assert os.environ["LISTEN_PID"] == str(os.getpid()), "LISTEN_PID is another's"
count, names = int(os.environ["LISTEN_FDS"]), os.environ["LISTEN_FDNAMES"].split(":")
given = dict(zip(names, range(3, 3 + count), strict=True))
assert all(os.get_blocking(fd) for fd in given.values())
assert not os.path.exists(f"/proc/self/fd/{3 + count}"), "more is open than was named"


def tell(text, *fds):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(os.environ["NOTIFY_SOCKET"])
        socket.send_fds(sock, [text.encode()], fds)


runs = 0
if "state" in given:
    state = given.pop("state")
    runs = int(os.pread(state, 20, 0))
else:
    state = os.memfd_create("state")
    tell("FDSTORE=1\\nFDNAME=state", state)
runs += 1
os.pwrite(state, str(runs).encode(), 0)

listeners = {socket.socket(fileno=fd): name for name, fd in given.items()}
ended, wakes = os.pipe()
os.set_blocking(wakes, False)
signal.set_wakeup_fd(wakes)
signal.signal(signal.SIGTERM, lambda *_: None)
tell("READY=1")
while True:
    readable, _, _ = select.select([ended, *listeners], [], [])
    if ended in readable:
        break
    for listener in readable:
        client, _address = listener.accept()
        with client:
            client.recv(1000)
            answer = {"pid": os.getpid(), "name": listeners[listener], "runs": runs, "names": names}
            client.sendall(json.dumps(answer).encode() + b"\\n")
"""


def ask(address: str | tuple[str, int]) -> dict[str, object]:
    """One request on a connection of its own: a path, or host and port."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(10)
        client.connect(address)
        client.sendall(b"?")
        with client.makefile("rb") as answers:
            answer: dict[str, object] = json.loads(answers.readline())
    return answer


class Client(threading.Thread):
    """Asks all the time; `answers` counts those of each process, `failures` what it got instead."""

    def __init__(self, address: str | tuple[str, int]) -> None:
        super().__init__()
        self.address = address
        self.answers: Counter[object] = Counter()
        self.failures: list[str] = []
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.is_set():
            try:
                self.answers[ask(self.address)["pid"]] += 1
            except (OSError, ValueError) as error:
                self.failures.append(repr(error))


@contextlib.contextmanager
def asking(*addresses: str | tuple[str, int]) -> Iterator[list[Client]]:
    """Two clients for each address, all of whose requests have to be answered."""
    clients = [Client(address) for address in addresses for _ in range(2)]
    for client in clients:
        client.start()
    try:
        yield clients
    finally:
        for client in clients:
            client.done.set()
        for client in clients:
            client.join(15)
    assert not [failure for client in clients for failure in client.failures]


def server(box, port: int) -> str:
    return f"""
[[service]]
name = "server"
cmd = {box.python("server", SERVER)}
ready = "notify"
sockets = {{ http = "127.0.0.1:{port}", admin = "unix:admin.sock" }}
"""


@pytest.fixture
def addresses(box, free_port) -> tuple[tuple[str, int], str]:
    """Where the server listens; the registry runs, and the server."""
    box.configure(server(box, free_port))
    box.start()
    box.wait_status("server", "Running")
    return ("127.0.0.1", free_port), str(box.folder / "admin.sock")


def wait_answered(box, clients: list[Client], pid: int) -> None:
    """Wait until each client has been answered by this process, some times."""
    box.wait_for(lambda: all(c.answers[pid] > 5 for c in clients), f"all are answered by {pid}")


def test_what_cannot_listen_is_told_as_that_and_tried_again(box, free_port):
    """But a missing folder is for a person."""
    box.configure(
        f'[[service]]\nname = "taken"\ncmd = ["sleep", "1000"]\n'
        f'sockets = {{ http = "127.0.0.1:{free_port}" }}\n'
        '[[service]]\nname = "nowhere"\ncmd = ["sleep", "1000"]\n'
        'sockets = { http = "unix:nowhere/http.sock" }\n'
    )
    with socket.create_server(("127.0.0.1", free_port)):
        box.start()
        record = box.wait_status("taken", "Restarting")
        assert record["message"].startswith(
            f"cannot listen at 127.0.0.1:{free_port}: Address already"
        )
        assert box.last("taken", "spawn_failed")["reason"] == "socket_unavailable"
        missing = box.wait_status("nowhere", "Failed", reason="socket_folder_missing")
        assert missing["message"].endswith("make its folder, or choose another path")
    box.wait_status("taken", "Running")


def test_a_service_finds_its_sockets_with_their_names(box, addresses):
    tcp, path = addresses
    pid = box.service("server")["pid"]
    assert ask(tcp) == {"pid": pid, "name": "http", "runs": 1, "names": ["http", "admin"]}
    assert ask(path)["name"] == "admin"


def test_a_stored_descriptor_comes_back_with_its_name(box, addresses):
    """After a restart, and after one by a registry that was killed before, its keeper, too."""
    tcp, _path = addresses
    box.data("restart", service="server", wait=True)
    assert ask(tcp)["names"] == ["http", "admin", "state"]
    assert ask(tcp)["runs"] == 2
    box.kill()
    box.start()
    box.kill_keeper()
    box.kill()
    box.start()
    box.data("restart", service="server", wait=True)
    assert ask(tcp)["runs"] == 3, "it is the same file"


def test_no_connection_is_refused_by_restarts_and_crashes(box, addresses):
    """Of the service, of the daemon, of the keeper, one after another; the last restart shows what is left."""

    def restart() -> int:
        return box.data("restart", service="server", wait=True)[0]["pid"]

    with asking(*addresses) as clients:
        first = box.service("server")["pid"]
        wait_answered(box, clients, first)
        second = restart()
        wait_answered(box, clients, second)
        box.kill()
        box.start()
        box.kill_keeper()
        box.kill()
        box.start()
        assert box.service("server")["pid"] == second
        box.upgrade()
        third = restart()
        wait_answered(box, clients, third)
    assert len({first, second, third}) == 3
    box.verify()


def test_a_connection_waits_for_the_next_run(box, addresses):
    """Made to a process that hangs, and is killed before it takes it."""
    pid = box.service("server")["pid"]
    os.kill(pid, signal.SIGSTOP)
    with socket.create_connection(addresses[0], timeout=10) as client:
        client.sendall(b"?")
        os.kill(pid, signal.SIGKILL)
        answer = json.loads(client.makefile("rb").readline())
    assert answer["pid"] == box.wait_status("server", "Running", run=2)["pid"] != pid


def refuses(address: str | tuple[str, int]) -> bool:
    try:
        ask(address)
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    except ConnectionResetError:  # it was the last to come
        return False
    return False


def test_a_stopped_service_listens_nowhere(box, addresses):
    box.data("stop", service="server", wait=True)
    for address in addresses:
        box.wait_for(lambda address=address: refuses(address), "the keeper has let go of it, too")
    assert not (box.folder / "admin.sock").exists()
