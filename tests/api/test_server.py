"""Connections of the control socket: order, limits, half-closed and never-reading clients, the end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import json
import os
import select
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from registry.api import server as server_module
from registry.api.access import Peer

MIB = 1024 * 1024


def hold(name, **more):
    return {"action": "hold", "name": name, **more}


def release(name, **more):
    return {"action": "release", "name": name, **more}


async def test_requests_in_one_write_are_answered_in_order(serve):
    client = await (await serve()).connect()
    for number in range(1000):
        client.send({"action": "sum", "a": number})
    assert [(await client.receive())["data"] for _ in range(1000)] == list(range(1000))


async def test_a_request_may_arrive_byte_by_byte(serve):
    running = await serve()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(running.path)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        for byte in b'\r\n \n{"action":"sum","a":1}\r\n':
            await loop.sock_sendall(client, bytes([byte]))
            await asyncio.sleep(0)
        assert await loop.sock_recv(client, 100) == b'{"ok":true,"data":1}\n'


async def test_requests_with_an_id_overtake_each_other(serve):
    client = await (await serve()).connect()
    client.send(hold("a", id=1), hold("b", id=2), release("b", id=3), {"action": "sum", "id": 4})
    assert [(await client.receive())["id"] for _ in range(3)] == [3, 4, 2]
    client.send(release("a", id=5))
    assert {(await client.receive())["id"] for _ in range(2)} == {1, 5}


async def test_requests_without_an_id_are_answered_in_their_order(serve):
    running = await serve()
    client, helper = await running.connect(), await running.connect()
    client.send(
        hold("a"), {"action": "sum", "a": 1}, hold("b"), b"nonsense", {"action": "who", "id": 7}
    )
    assert (await client.receive())["id"] == 7
    await helper.ask(release("b"))
    await helper.ask(release("a"))
    answers = [await client.receive() for _ in range(4)]
    assert [answer.get("data") for answer in answers] == ["a", 1, "b", None]
    assert answers[3]["error"]["code"] == "parse_error"


async def test_a_slow_request_holds_up_no_other_client(serve):
    running = await serve()
    slow, other = await running.connect(), await running.connect()
    slow.send(hold("a"))
    assert await other.ask({"action": "sum"}) == {"ok": True, "data": 0}
    assert (await other.ask(release("a")))["ok"]


@pytest.mark.parametrize("ending", [b"", b"\n"])
async def test_a_client_that_stops_sending_gets_every_answer_and_then_the_end(serve, ending):
    running = await serve()
    client, helper = await running.connect(), await running.connect()
    client.send(hold("a"))
    client.writer.write(b'{"action":"sum","a":5}' + ending)
    client.half_close()
    await helper.ask(release("a"))
    assert [(await client.receive())["data"] for _ in range(2)] == ["a", 5]
    assert await client.receive() is None


async def test_half_a_request_at_the_end_is_answered_as_one(serve):
    client = await (await serve()).connect()
    client.writer.write(b'{"action":"su')
    client.half_close()
    assert (await client.receive())["error"]["code"] == "parse_error"
    assert await client.receive() is None


@pytest.mark.parametrize("nothing", [b"", b"\n \r\n", b"  "])
async def test_a_client_that_sends_nothing_gets_nothing(serve, nothing):
    client = await (await serve()).connect()
    client.writer.write(nothing)
    client.half_close()
    assert await client.receive() is None


async def test_a_request_is_carried_out_although_its_client_has_gone(serve, backstage):
    running = await serve()
    client, helper = await running.connect(), await running.connect()
    client.send(hold("a"))
    await backstage.until(lambda: "hold" in [name for name, _ in backstage.calls])
    await client.close()
    await helper.ask(release("a"))
    await backstage.until(lambda: backstage.finished == ["a"])


async def test_a_request_that_is_too_long_is_refused_and_its_client_closed(serve):
    running = await serve(line_max=100)
    client, other = await running.connect(), await running.connect()
    fits = b'{"action":"sum","a":1}'
    client.send(fits + b" " * (100 - len(fits)))
    assert (await client.receive())["ok"]
    client.send(fits + b" " * (101 - len(fits)), fits)
    assert (await client.receive())["error"]["code"] == "too_long"
    assert await client.receive() is None
    assert (await other.ask({"action": "sum"}))["ok"]


async def test_a_line_without_an_end_is_refused_as_soon_as_it_is_too_long(serve):
    client = await (await serve(line_max=100)).connect()
    client.writer.write(b'{"jsonrpc":"2.0",' + b"x" * 1000)
    answer = await client.receive()
    assert answer["error"]["data"]["code"] == "too_long"
    assert "100 bytes" in answer["error"]["message"]
    assert await client.receive() is None


async def test_what_is_under_way_is_answered_before_a_too_long_line_closes(serve):
    running = await serve(line_max=100)
    client, helper = await running.connect(), await running.connect()
    client.send(hold("a"), b"x" * 200)
    await helper.ask(release("a"))
    assert (await client.receive())["data"] == "a"
    assert (await client.receive())["error"]["code"] == "too_long"
    assert await client.receive() is None


async def test_no_more_requests_are_under_way_than_the_limit_says(serve, backstage):
    running = await serve(in_flight_max=3)
    client, helper = await running.connect(), await running.connect()
    for number in range(10):
        client.send(hold("a", id=number))
    await backstage.until(lambda: len(backstage.calls) >= 3)
    await helper.ask({"action": "who"})
    assert [name for name, _ in backstage.calls] == ["hold", "hold", "hold", "who"]
    await helper.ask(release("a"))
    assert {(await client.receive())["id"] for _ in range(10)} == set(range(10))


async def test_requests_that_line_up_behind_a_slow_one_count_as_under_way(serve, backstage):
    running = await serve(in_flight_max=3)
    client, helper = await running.connect(), await running.connect()
    client.send(hold("a"), *({"action": "sum", "a": number} for number in range(10)))
    await backstage.until(lambda: len(backstage.calls) >= 3)
    await helper.ask({"action": "who"})
    assert [name for name, _ in backstage.calls] == ["hold", "sum", "sum", "who"]
    await helper.ask(release("a"))
    assert [(await client.receive())["data"] for _ in range(11)] == ["a", *range(10)]


async def test_answers_that_line_up_behind_a_slow_one_are_bounded(serve, backstage):
    running = await serve(in_flight_max=50, unread_max=10_000)
    client, helper = await running.connect(), await running.connect()
    client.send(hold("a"), *({"action": "raw", "size": 3000} for _ in range(40)))
    await backstage.until(lambda: len(backstage.calls) >= 1)
    await helper.ask({"action": "who"})
    assert [name for name, _ in backstage.calls].count("raw") == 4
    await helper.ask(release("a"))
    assert (await client.receive())["data"] == "a"
    assert [len((await client.receive())["data"]) for _ in range(40)] == [2998] * 40


async def test_one_client_s_many_requests_do_not_hold_up_another(serve, backstage):
    running = await serve()
    busy, other = running.silent(), await running.connect()
    with busy:
        busy.send(b'{"action":"get_data"}\n' * 5000)
        assert (await other.ask({"action": "who"}))["ok"]
    before = [name for name, _ in backstage.calls].index("who")
    assert before < 2000


async def test_a_flood_of_requests_waits_outside_the_registry(serve):
    running = await serve()
    with running.silent() as client:
        loop = asyncio.get_running_loop()
        flood = b'{"jsonrpc":"2.0","method":"update"}\n' * 50_000
        sending, most = asyncio.create_task(loop.sock_sendall(client, flood)), 0
        while not sending.done():
            await asyncio.sleep(0)
            most = max([most, *(len(each._received) for each in running.server._connections)])
        await sending
    assert 0 < most < 2 * 256 * 1024


async def test_a_client_that_never_reads_is_closed_and_costs_little(serve, backstage):
    running = await serve(stall_s=0.2)
    other = await running.connect()
    before = resident_bytes()
    with running.silent() as client:
        await hung_up(client, b'{"action":"raw","size":140000}\n' * 10_000)
        assert resident_bytes() - before < 16 * MIB
    assert 0 < len(backstage.calls) < 20
    assert (await other.ask({"action": "sum"}))["ok"]


async def test_a_client_that_reads_slowly_is_not_closed(serve):
    running = await serve(stall_s=0.2, unread_max=1000)
    with running.silent() as client:
        size = 2_000_000
        client.send(b'{"action":"raw","size":%d}\n' % size)
        loop, received = asyncio.get_running_loop(), 0
        started = time.monotonic()
        while received < size + len('{"ok":true,"data":}\n'):
            piece = await loop.sock_recv(client, 100_000)
            assert piece
            received += len(piece)
            await asyncio.sleep(0.05)
        assert time.monotonic() - started > 0.8


@pytest.mark.parametrize("unread_max", [1000, MIB])
async def test_a_client_that_stops_sending_and_never_reads_is_closed_too(serve, unread_max):
    running = await serve(stall_s=0.2, unread_max=unread_max)
    with running.silent() as client:
        client.send(b'{"action":"raw","size":800000}\n')
        client.shutdown(socket.SHUT_WR)
        await hung_up(client)


async def test_a_stream_is_pulled_only_while_its_client_reads(serve, backstage):
    client = await (await serve(unread_max=20_000, stall_s=0.2)).connect()
    client.send({"action": "flood", "size": 10_000, "id": 1})
    for _ in range(500):
        assert (await client.receive())["id"] == 1


async def test_a_stream_whose_client_does_not_read_is_closed(serve, backstage):
    running = await serve(unread_max=20_000, stall_s=0.2)
    with running.silent() as silent:
        silent.send(b'{"action":"flood","size":10000}\n')
        await backstage.until(lambda: backstage.closed == ["flood"])
        assert 1 < backstage.pulled < 100
        await hung_up(silent)


async def test_a_stream_goes_on_after_its_client_stopped_sending(serve, backstage):
    client = await (await serve()).connect()
    client.send({"action": "follow", "name": "a"}, {"action": "sum", "id": 1})
    client.half_close()
    assert (await client.receive())["id"] == 1
    for number in range(3):
        backstage.queue("a").put_nowait([number])
        assert (await client.receive())["data"] == [number]
    backstage.queue("a").put_nowait(None)
    assert await client.receive() is None


@pytest.mark.parametrize("half_close", [False, True])
@pytest.mark.parametrize("action", ["follow", "follow_later"])
async def test_a_quiet_stream_ends_when_its_client_goes(serve, backstage, half_close, action):
    client = await (await serve()).connect()
    backstage.queue("a").put_nowait([1])
    client.send({"action": action, "name": "a"})
    if half_close:
        client.half_close()
    assert (await client.receive())["data"] == [1]
    await client.close()
    await backstage.until(lambda: backstage.closed == ["a"])


async def test_nothing_of_a_client_that_went_waits_until_garbage_is_collected(serve, backstage):
    def connections() -> int:
        return sum(type(each).__name__ == "_Connection" for each in gc.get_objects())

    running = await serve()
    gc.collect()
    before = connections()
    gc.disable()
    try:
        client = await running.connect()
        client.send({"action": "follow", "name": "a"})
        backstage.queue("a").put_nowait([1])
        await client.receive()
        assert connections() > before
        await client.close()
        await backstage.until(lambda: backstage.closed == ["a"])
        async with asyncio.timeout(8):
            while connections() > before:  # noqa: ASYNC110 - nobody tells of it
                await asyncio.sleep(0)
    finally:
        gc.enable()


async def test_requests_without_an_id_wait_for_the_first_page_of_a_stream_without_one(
    serve, backstage
):
    client = await (await serve()).connect()
    client.send({"action": "follow", "name": "a"}, {"action": "sum"})
    backstage.queue("a").put_nowait([1])
    assert [(await client.receive())["data"] for _ in range(2)] == [[1], 0]
    backstage.queue("a").put_nowait([2])
    assert (await client.receive())["data"] == [2]


async def test_a_broken_handler_leaves_the_connection_alive(serve):
    client = await (await serve()).connect()
    for action in ("break", "break_later"):
        assert (await client.ask({"action": action}))["error"]["code"] == "internal_error"
    assert (await client.ask({"action": "sum"}))["ok"]


async def test_both_forms_share_a_connection(serve):
    client = await (await serve()).connect()
    rpc = {"jsonrpc": "2.0", "method": "sum", "params": [1, 2], "id": "r"}
    client.send({"action": "sum", "a": 1}, rpc, [rpc, {"jsonrpc": "2.0", "method": "update"}])
    assert await client.receive() == {"ok": True, "data": 1}
    assert await client.receive() == {"jsonrpc": "2.0", "result": 3, "id": "r"}
    assert await client.receive() == [{"jsonrpc": "2.0", "result": 3, "id": "r"}]


async def test_the_peer_is_who_the_kernel_says(serve):
    client = await (await serve()).connect()
    who = (await client.ask({"action": "who"}))["data"]
    comm = Path("/proc/self/comm")
    assert (who["uid"], who["gid"]) == (os.getuid(), os.getgid())
    assert who["pid"] == os.getpid()
    assert not comm.exists() or who["program"] == comm.read_text().strip()


async def test_another_user_may_only_report_for_the_service_he_belongs_to(serve, monkeypatch):
    stranger = Peer(uid=os.getuid() + 4711, gid=5, pid=99, program="x")
    monkeypatch.setattr(server_module, "peer_of", lambda sock: stranger)
    client = await (await serve(owner_of={99: "web"}.get)).connect()
    assert (await client.ask({"action": "sum"}))["error"]["code"] == "forbidden"
    beat = {"action": "heartbeat", "service": "db"}
    assert (await client.ask(beat))["error"]["code"] == "forbidden"
    assert (await client.ask({**beat, "service": "web"})) == {"ok": True, "data": None}


async def test_a_shortage_of_descriptors_stops_neither_the_server_nor_the_loop(
    serve, monkeypatch, caplog
):
    running = await serve()
    monkeypatch.setattr(server_module, "ACCEPT_RETRY_S", 0.05)
    listener: Any = running.server._listener
    failures: list[int] = []

    class Short:
        def accept(self):
            if len(failures) < 3:
                failures.append(1)
                raise OSError(errno.EMFILE, "Too many open files")
            return listener.accept()

        def __getattr__(self, name):
            return getattr(listener, name)

    asyncio.get_running_loop().remove_reader(listener)
    running.server._listener = Short()
    running.server._accept_again()
    client = await running.connect()
    assert (await client.ask({"action": "sum"}))["ok"]
    assert len(failures) == 3
    assert [r.getMessage() for r in caplog.records if "Too many open files" in r.getMessage()]


async def test_closing_lets_answers_under_way_go_out(serve, backstage):
    running = await serve(close_s=8)
    client, idle = await running.connect(), await running.connect()
    assert (await idle.ask({"action": "sum"}))["ok"]
    client.send(hold("a"))
    await backstage.until(lambda: len(backstage.calls) == 2)
    closing = asyncio.create_task(running.server.close())
    assert await idle.receive() is None
    client.send({"action": "sum"})
    backstage.gate("a").set()
    assert (await client.receive())["data"] == "a"
    assert await client.receive() is None
    await closing
    assert [name for name, _ in backstage.calls] == ["sum", "hold"]


async def test_closing_waits_for_no_answer_longer_than_its_limit(serve, backstage):
    running = await serve(close_s=0.05)
    client, stuck = await running.connect(), running.silent()
    client.send(hold("a"))
    stuck.send(b'{"action":"raw","size":5000000}\n')
    await backstage.until(lambda: len(backstage.calls) == 2)
    with stuck:
        await running.server.close()
    assert await client.receive() is None
    assert backstage.finished == []


async def test_closing_ends_streams_at_once(serve, backstage):
    running = await serve(close_s=8)
    client = await running.connect()
    backstage.queue("a").put_nowait([1])
    client.send({"action": "follow", "name": "a", "id": 1})
    assert (await client.receive())["data"] == [1]
    await running.server.close()
    assert backstage.closed == ["a"]
    assert await client.receive() is None


async def test_a_client_that_comes_while_the_server_closes_does_not_hold_it_up(serve):
    running = await serve(close_s=20)
    with running.silent():
        running.server._accept()
        async with asyncio.timeout(8):
            await running.server.close()


async def test_a_stream_that_closing_ends_takes_no_other_answer_with_it(serve, backstage):
    running = await serve(close_s=8)
    client = await running.connect()
    client.send(hold("x", id=1), {"action": "follow", "name": "a"}, {"action": "sum", "a": 3})
    await backstage.until(lambda: len(backstage.calls) == 3)
    closing = asyncio.create_task(running.server.close())
    assert (await client.receive())["data"] == 3
    backstage.gate("x").set()
    assert (await client.receive())["data"] == "x"
    assert await client.receive() is None
    await closing


async def test_many_idle_clients_cost_little_and_the_next_is_served(serve):
    running = await serve()
    before = resident_bytes()
    with contextlib.ExitStack() as clients:
        for _ in range(300):
            clients.enter_context(running.silent())
        client = await running.connect()
        assert (await client.ask({"action": "sum"}))["ok"]
        assert (resident_bytes() - before) / 300 < 20_000


@pytest.mark.skipif(shutil.which("socat") is None, reason="socat is not installed")
@pytest.mark.parametrize("request_", [{"action": "get_data"}, hold("a")])
async def test_socat_gets_its_answer(serve, backstage, request_):
    running = await serve()
    process = await asyncio.create_subprocess_exec(
        "socat", "-t5", "-", f"UNIX-CONNECT:{running.path}",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    told = asyncio.create_task(process.communicate(json.dumps(request_).encode() + b"\n"))
    await backstage.until(lambda: bool(backstage.calls))
    backstage.gate("a").set()
    out, _ = await told
    assert json.loads(out)["ok"]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


async def hung_up(client: socket.socket, request: bytes = b"") -> None:
    """Send `request`, and wait until the server has closed, without taking a byte before."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        async with asyncio.timeout(8):
            await loop.sock_sendall(client, request)
    closed = select.poll()
    closed.register(client, 0)
    assert await loop.run_in_executor(None, closed.poll, 8000)


async def test_a_question_ends_with_its_client_and_a_command_does_not(serve, backstage):
    running = await serve()
    client = await running.connect()
    client.send({"action": "ponder", "name": "q"}, hold("c"))
    await backstage.until(lambda: len(backstage.calls) == 2)
    await client.close()
    await backstage.until(lambda: "q" in backstage.closed)
    backstage.gate("c").set()
    await backstage.until(lambda: "c" in backstage.finished)


async def test_a_question_of_a_half_closed_client_is_answered(serve, backstage):
    client = await (await serve()).connect()
    client.send({"action": "ponder", "name": "q"})
    client.half_close()
    await backstage.until(lambda: backstage.calls)
    backstage.gate("q").set()
    assert await client.receive() == {"ok": True, "data": "q"}
