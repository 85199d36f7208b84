"""Clients that misbehave: a clear answer or a closed connection for them, and nothing for anybody else."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import threading
import time
from pathlib import Path

import pytest

FLAT_BYTES = 10_000_000
# The registry as it is, but a client that takes nothing is closed after half a second instead of ten.
IMPATIENT = """
from registry.api import server
limits = server.Limits(stall_s=0.5)
server.Limits = lambda: limits
from registry.__main__ import main
main()
"""


@pytest.fixture
def running(box):
    box.configure(
        "".join(
            f'[[service]]\nname = "s{n}"\ncmd = ["sleep", "1000"]\nlogs = false\n'
            for n in range(10)
        )
    )
    box.start(program=(str(box.program("impatient", IMPATIENT)),))
    box.wait_status("s9", "Running")
    return box


def connect(box) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(10)
    client.connect(str(box.socket))
    return client


def memory(box) -> int:
    """The registry's resident bytes."""
    pages = int(Path(f"/proc/{box.daemon.pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def send_without_reading(client: socket.socket, data: bytes) -> None:
    try:
        client.sendall(data)
    except OSError:
        return  # closed by the registry, or full for good


@pytest.mark.parametrize(
    "request_line", [b'{"action":"list_services"}\n', b'{"action":"status","service":"s1"}\n']
)
def test_a_client_that_never_reads_is_closed_in_time_and_costs_no_memory(running, request_line):
    running.data("list_services")
    before = memory(running)
    with connect(running) as client:
        sender = threading.Thread(target=send_without_reading, args=(client, request_line * 10_000))
        begun = time.monotonic()
        sender.start()
        peak, slowest = before, 0.0
        while "it read nothing" not in running.errors.read_text():
            asked = time.monotonic()
            assert running.data("version")["pid"] == running.daemon.pid
            slowest = max(slowest, time.monotonic() - asked)
            peak = max(peak, memory(running))
            assert time.monotonic() - begun < 8, "it is closed in bounded time"
        sender.join(5)
        assert not sender.is_alive()
    assert peak - before < FLAT_BYTES
    assert slowest < 1, "others were served meanwhile"


def test_a_follower_that_never_reads_is_closed_and_holds_nothing_up(running):
    before = memory(running)
    with connect(running) as client:
        client.sendall(b'{"action":"events","follow":true}\n')
        for _ in range(40):
            running.data("restart", service="all", wait=True)
            if "it read nothing" in running.errors.read_text():
                break
        running.verify()
        assert memory(running) - before < FLAT_BYTES


MALFORMED: dict[bytes, str | int] = {
    b"hello": "parse_error",
    b"\xff\xfe": "parse_error",
    b"[" * 100_000: -32700,  # what begins like a batch is answered in its form
    b'{"action":"list_services"': "parse_error",
    b"42": "invalid_request",
    b"{}": "invalid_request",
    b'{"action":7}': "invalid_request",
    b'{"action":"lits_services"}': "unknown_action",
    b'{"action":"status","service":7}': "invalid_params",
    b'{"action":"status","service":"s1","more":1}': "invalid_params",
    b'{"action":"stop","service":"s1","wait":"yes"}': "invalid_params",
    b'{"action":"status","service":"' + b"x" * 100_000 + b'"}': "unknown_service",
}


def test_a_malformed_line_has_a_clear_error_and_the_connection_goes_on(running):
    with connect(running) as client, client.makefile("rb") as answers:
        for line, code in MALFORMED.items():
            client.sendall(line + b'\n{"action":"version"}\n')
            refused = json.loads(answers.readline())
            assert refused["error"]["code"] == code, line[:50]
            assert refused["error"]["message"]
            assert len(json.dumps(refused)) < 2000, "what was wrong is not sent back at length"
            assert json.loads(answers.readline())["ok"]
    assert "Traceback" not in running.errors.read_text()


def test_an_oversized_line_is_refused_as_soon_as_it_is_too_long(running):
    before = memory(running)
    with connect(running) as client, client.makefile("rb") as answers:
        sender = threading.Thread(target=send_without_reading, args=(client, b"x" * 50_000_000))
        sender.start()
        refused = json.loads(answers.readline())
        assert refused["error"]["code"] == "too_long"
        assert "1048576" in refused["error"]["message"]
        with contextlib.suppress(
            ConnectionResetError
        ):  # what a close with something unread looks like
            assert answers.readline() == b"", "and the connection is closed"
        sender.join(5)
        assert not sender.is_alive()
    assert memory(running) - before < FLAT_BYTES
    assert running.data("version")


def test_a_half_sent_line_costs_nothing_and_is_answered_when_it_ends(running):
    with connect(running) as client:
        client.sendall(b'{"action":"version"}\n{"action":"ver')
        with client.makefile("rb") as answers:
            assert json.loads(answers.readline())["ok"]
            assert running.data("version")
            client.sendall(b'sion","id":7}')
            client.shutdown(socket.SHUT_WR)
            assert json.loads(answers.readline())["id"] == 7
            assert answers.readline() == b""


def test_a_client_that_goes_away_in_the_middle_harms_nobody(running):
    for _ in range(50):
        with connect(running) as client:
            client.sendall(
                b'{"action":"restart","service":"s1","wait":true}\n{"action":"events","follow":true}\n{"ac'
            )
    running.wait_status("s1", "Running")
    assert running.data("version")
    assert "Traceback" not in running.errors.read_text()
    running.verify()


def test_many_clients_at_once_are_all_answered(running):
    clients = [connect(running) for _ in range(300)]
    try:
        for client in clients:
            client.sendall(b'{"action":"list_services"}\n')
        for client in clients:
            with client.makefile("rb") as answers:
                assert len(json.loads(answers.readline())["data"]) == 10
    finally:
        for client in clients:
            client.close()


def test_however_many_read_logs_at_once_few_threads_do_it(box):
    """Each thread keeps what it once needed of memory."""
    box.configure('[[service]]\nname = "a"\ncmd = ["sh", "-c", "seq 1 5000; exec sleep 1000"]\n')
    box.start()
    box.wait_for(lambda: box.log("a").endswith("\n5000\n"), "much was written")
    readers = [
        threading.Thread(target=box.data, args=("logs",), kwargs={"service": "a"})
        for _ in range(20)
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    threads = len(list(Path(f"/proc/{box.daemon.pid}/task").iterdir()))
    assert threads <= 7, "its own, that which spawns, its log's, two of the journal, two that read"
