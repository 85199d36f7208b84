"""The client, blocking and in asyncio, against a real server, and against none."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading

import pytest

from registry import client as client_module
from registry.api.actions import ACTIONS, CommandParams, ReloadParams
from registry.client import AsyncClient, Client, NotRunning, RegistryError, default_socket


def test_the_default_socket_is_the_environment_s(monkeypatch):
    monkeypatch.setenv("CIRCLEOSD_SOCKET", "/run/x.sock")
    assert default_socket() == Client().path == "/run/x.sock"
    monkeypatch.setenv("CIRCLEOSD_SOCKET", "")
    assert default_socket() == "/tmp/service-registry.sock"
    monkeypatch.delenv("CIRCLEOSD_SOCKET")
    assert default_socket() == "/tmp/service-registry.sock"


def test_the_wait_of_a_command_is_what_its_parameters_say():
    assert CommandParams("x").timeout == ReloadParams("x").timeout == client_module.WAIT_S


def test_importing_it_loads_neither_asyncio_nor_msgspec():
    code = "import sys, registry.client; print(sorted({'asyncio', 'msgspec'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


async def test_a_call_gives_the_data(serve):
    path = (await serve()).path

    def use():
        with Client(path) as client:
            assert client.call("sum", a=1, b=2) == 3
            assert client.call("get_data") == ["hello", 5]
            assert len(client.call("raw", size=5_000_000)) == 4_999_998

    await asyncio.to_thread(use)
    async with AsyncClient(path) as client:
        assert await client.call("sum", a=1, b=2) == 3
        assert len(await client.call("raw", size=5_000_000)) == 4_999_998


async def test_a_refusal_is_raised_and_the_connection_goes_on(serve):
    path = (await serve()).path

    def use():
        with Client(path) as client:
            with pytest.raises(RegistryError, match="no service is called x") as caught:
                client.call("refuse")
            assert (caught.value.code, caught.value.data) == ("unknown_service", {"known": ["y"]})
            assert client.call("sum") == 0

    await asyncio.to_thread(use)
    async with AsyncClient(path) as client:
        with pytest.raises(RegistryError, match="no service is called x"):
            await client.call("refuse")
        assert await client.call("sum") == 0


async def test_a_request_that_is_too_long_is_told(serve):
    path = (await serve(line_max=1000)).path

    def use():
        with Client(path) as client, pytest.raises(RegistryError) as caught:
            client.call("restart", service="x" * 5_000_000)
        assert caught.value.code == "too_long"

    await asyncio.to_thread(use)


async def test_a_stream_gives_pages_until_it_ends(serve, backstage):
    path = (await serve()).path
    for page in ([1], [2], None, [3], [4], None):
        backstage.queue("a").put_nowait(page)
    assert await asyncio.to_thread(lambda: list(Client(path).stream("follow", name="a"))) == [
        [1],
        [2],
    ]
    assert [page async for page in AsyncClient(path).stream("follow", name="a")] == [[3], [4]]


async def test_leaving_a_stream_ends_it(serve, backstage):
    path = (await serve()).path
    for name in ("a", "b"):
        backstage.queue(name).put_nowait([1])

    def use():
        pages = Client(path).stream("follow", name="a")
        assert next(pages) == [1]
        pages.close()

    await asyncio.to_thread(use)
    pages = AsyncClient(path).stream("follow", name="b")
    assert await anext(pages) == [1]
    await pages.aclose()
    await backstage.until(lambda: sorted(backstage.closed) == ["a", "b"])


async def test_a_refused_stream_raises(serve):
    path = (await serve()).path
    with pytest.raises(RegistryError, match="no more"):
        await asyncio.to_thread(lambda: list(Client(path).stream("follow_and_refuse", size=2)))
    with pytest.raises(RegistryError, match="no more"):
        [page async for page in AsyncClient(path).stream("follow_and_refuse", size=2)]


async def test_an_answer_that_does_not_come_is_timed_out_and_mistaken_for_no_other(
    serve, backstage
):
    path = (await serve(close_s=0.05)).path

    def use():
        with Client(path, timeout_s=0.05) as client:
            with pytest.raises(RegistryError, match=r"within 0\.05 s") as caught:
                client.call("hold", name="a")
            assert caught.value.code == "timed_out"
            client.timeout_s = 8
            assert client.call("sum", a=7) == 7

    await asyncio.to_thread(use)
    async with AsyncClient(path, timeout_s=0.05) as client:
        with pytest.raises(RegistryError, match=r"within 0\.05 s"):
            await client.call("hold", name="a")
        client.timeout_s = 8
        assert await client.call("sum", a=7) == 7


def test_a_request_that_waits_is_given_its_time_on_top(monkeypatch, short_dir):
    with pytest.raises(RegistryError, match=r"within 0\.25 s"):
        ask_somebody_silent(short_dir, service="x", wait=True, timeout=0.2)
    with pytest.raises(RegistryError, match=r"within 0\.05 s"):
        ask_somebody_silent(short_dir, service="x", timeout=0.2)
    with pytest.raises(RegistryError, match=r"within 0\.05 s"):
        ask_somebody_silent(short_dir, service="x", wait=True, timeout="soon")


def test_the_actions_that_wait_by_themselves_are_those_whose_parameters_say_so():
    waiting = [name for name, action in ACTIONS.items() if _default(action.params, "wait") is True]
    assert list(client_module._WAITING) == waiting


def test_a_request_that_waits_by_itself_is_given_its_time_on_top(monkeypatch, short_dir):
    monkeypatch.setattr(client_module, "WAIT_S", 0.2)
    with pytest.raises(RegistryError, match=r"within 0\.25 s"):
        ask_somebody_silent(short_dir, action="reload", service="x")
    with pytest.raises(RegistryError, match=r"within 0\.05 s"):
        ask_somebody_silent(short_dir, action="reload", service="x", wait=False)


def _default(params, name):
    fields = dict(
        zip(params.__struct_fields__[::-1], params.__struct_defaults__[::-1], strict=False)
    )
    return fields.get(name)


def ask_somebody_silent(folder, action="restart", **params):
    path = str(folder / "silent")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen()
        try:
            with Client(path, timeout_s=0.05) as client:
                client.call(action, **params)
        finally:
            os.unlink(path)


async def test_calls_that_overlap_take_turns(serve, backstage):
    running = await serve()
    async with AsyncClient(running.path) as client, AsyncClient(running.path) as other:
        first = asyncio.create_task(client.call("hold", name="a"))
        await backstage.until(lambda: len(backstage.calls) == 1)
        second = asyncio.create_task(client.call("sum", a=1))
        assert await other.call("release", name="a") == "released"
        assert (await first, await second) == ("a", 1)


@pytest.mark.parametrize("stale", [False, True])
async def test_a_registry_that_is_not_there_is_one_sentence(short_dir, stale):
    path = str(short_dir / "s")
    if stale:
        with socket.socket(socket.AF_UNIX) as gone:
            gone.bind(path)
    sentence = (
        f"the registry is not running (nothing listens on {path}); start it with service-registry"
    )
    for attempt in (lambda: Client(path).call("sum"), lambda: list(Client(path).stream("sum"))):
        with pytest.raises(NotRunning) as caught:
            attempt()
        assert (str(caught.value), caught.value.code) == (sentence, "not_running")
    with pytest.raises(NotRunning) as caught:
        await AsyncClient(path).call("sum")
    assert str(caught.value) == sentence


def test_permission_denied_is_another_sentence(monkeypatch):
    def denied(self, path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "socket", type("Denied", (socket.socket,), {"connect": denied}))
    with pytest.raises(NotRunning, match=r"permission denied on /x: ask as the user") as caught:
        Client("/x").call("sum")
    assert caught.value.code == "no_permission"


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (b"", "closed the connection"),
        (b'{"ok":tr', "closed the connection"),
        (b"220 mail\n", "is not a registry"),
        (b"[]\n", "is not a registry"),
    ],
)
def test_anything_but_an_answer_is_told(short_dir, answer, sentence):
    path = str(short_dir / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def close_on_him():
            with listener.accept()[0] as connection:
                connection.recv(1000)
                connection.sendall(answer)

        thread = threading.Thread(target=close_on_him)
        thread.start()
        with pytest.raises(RegistryError, match=sentence) as caught:
            Client(path, timeout_s=8).call("sum")
        thread.join()
    assert caught.value.code == "disconnected"
