"""The socket from outside: ask a running registry, blocking or in asyncio.

Loads the standard library only, and asyncio only when an AsyncClient is made: a command line that asks
one thing must start fast.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import AsyncGenerator, Generator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

DEFAULT_SOCKET = "/tmp/service-registry.sock"
"""Where the registry listens when nothing else is configured."""

DEFAULT_TIMEOUT_S = 30.0
"""How long an answer may take, beyond what the request itself asks to wait."""

WAIT_S = 60.0
"""The `timeout` of a command with `wait` that names none; as in `CommandParams` and `ReloadParams`."""

_WAITING = ("reload",)
"""The actions that wait unless told not to."""

_ANSWER_MAX = 256 * 1024 * 1024


class RegistryError(Exception):
    """An answer of the kind `ok: false`, or none at all.

    `code` is one of the registry's error codes, or `disconnected` when it closed the connection.
    """

    def __init__(self, code: str, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


class NotRunning(RegistryError):
    """The registry could not be reached; the code is `not_running` or `no_permission`."""


def default_socket() -> str:
    """The path in CIRCLEOSD_SOCKET, else the registry's default."""
    return os.environ.get("CIRCLEOSD_SOCKET") or DEFAULT_SOCKET


class Client:
    """A blocking connection, made when first needed. One request at a time; a context manager."""

    def __init__(self, path: str | None = None, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self.path = path or default_socket()
        self.timeout_s = timeout_s
        self._lines: _Lines | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call makes another."""
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def call(self, action: str, **params: Any) -> Any:
        """The data of the answer. Raises RegistryError; NotRunning when nobody is there to ask."""
        if self._lines is None:
            self._lines = _Lines(self.path, self.timeout_s)
        try:
            self._lines.send(_request(action, params))
            answer = self._lines.next(self.timeout_s + _asked_to_wait_s(action, params))
        except BaseException:
            # What comes later would be taken for the answer to something else.
            self.close()
            raise
        if answer is None:
            self.close()
            raise _disconnected()
        return _data(answer)

    def stream(self, action: str, **params: Any) -> Generator[Any, None, None]:
        """The pages of an action with `follow`, on a connection of their own, as long as they come."""
        lines = _Lines(self.path, self.timeout_s)
        try:
            lines.send(_request(action, params))
            lines.end()
            while (answer := lines.next(None)) is not None:
                yield _data(answer)
        finally:
            lines.close()


class AsyncClient:
    """The same in asyncio. Calls that overlap take turns; use several clients to ask at once."""

    def __init__(self, path: str | None = None, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        import asyncio

        self.path = path or default_socket()
        self.timeout_s = timeout_s
        self._turn = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; the next call makes another."""
        if self._streams is not None:
            _reader, writer = self._streams
            self._streams = None
            await _close(writer)

    async def call(self, action: str, **params: Any) -> Any:
        """The data of the answer. Raises RegistryError; NotRunning when nobody is there to ask."""
        import asyncio

        limit_s = self.timeout_s + _asked_to_wait_s(action, params)
        async with self._turn:
            try:
                async with asyncio.timeout(limit_s):
                    answer = await self._ask(action, params)
            except TimeoutError:
                await self.close()
                raise _timed_out(limit_s) from None
            except BaseException:
                await self.close()
                raise
        return _data(answer)

    async def stream(self, action: str, **params: Any) -> AsyncGenerator[Any, None]:
        """The pages of an action with `follow`, on a connection of their own, as long as they come."""
        reader, writer = await _open(self.path)
        try:
            writer.write(_request(action, params))
            writer.write_eof()
            while line := await _line(reader):
                yield _data(_answer(line))
        finally:
            await _close(writer)

    async def _ask(self, action: str, params: dict[str, Any]) -> dict[str, Any]:
        if self._streams is None:
            self._streams = await _open(self.path)
        reader, writer = self._streams
        writer.write(_request(action, params))
        line = await _line(reader)
        if not line:
            raise _disconnected()
        return _answer(line)


class _Lines:
    """A connected socket as lines of JSON."""

    def __init__(self, path: str, timeout_s: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise _unreachable(path, error) from None
        self._file = self._socket.makefile("rb")
        self._timeout_s = timeout_s

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def end(self) -> None:
        """Say that no more requests come: the registry then closes after its last answer."""
        with contextlib.suppress(OSError):  # gone already, which reading will tell
            self._socket.shutdown(socket.SHUT_WR)

    def send(self, line: bytes) -> None:
        self._socket.settimeout(self._timeout_s)
        try:
            self._socket.sendall(line)
        except TimeoutError:
            raise _timed_out(self._timeout_s) from None
        except OSError:
            pass  # refused in the middle: the answer that says why is still to be read

    def next(self, timeout_s: float | None) -> dict[str, Any] | None:
        """The next answer; None when the registry has closed the connection."""
        self._socket.settimeout(timeout_s)
        try:
            line = self._file.readline()
        except TimeoutError:
            raise _timed_out(timeout_s) from None
        except OSError:
            return None
        return _answer(line) if line.endswith(b"\n") else None


async def _open(path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    import asyncio

    try:
        return await asyncio.open_unix_connection(path, limit=_ANSWER_MAX)
    except OSError as error:
        raise _unreachable(path, error) from None


async def _line(reader: asyncio.StreamReader) -> bytes:
    """The next line; empty when the registry has closed the connection."""
    try:
        line = await reader.readline()
    except OSError:
        return b""
    return line if line.endswith(b"\n") else b""


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):  # the registry went first
        await writer.wait_closed()


def _request(action: str, params: dict[str, Any]) -> bytes:
    return json.dumps({"action": action, **params}).encode() + b"\n"


def _answer(line: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise RegistryError("disconnected", "what answered on the socket is not a registry")
    return answer


def _data(answer: dict[str, Any]) -> Any:
    if answer.get("ok"):
        return answer.get("data")
    error = answer.get("error", {})
    raise RegistryError(
        error.get("code", "internal_error"),
        error.get("message", "no reason given"),
        error.get("data"),
    )


def _asked_to_wait_s(action: str, params: dict[str, Any]) -> float:
    if not params.get("wait", action in _WAITING):
        return 0.0
    timeout = params.get("timeout", WAIT_S)
    return timeout if isinstance(timeout, int | float) else 0.0  # what is wrong, the answer says


def _unreachable(path: str, error: OSError) -> RegistryError:
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return NotRunning(
            "not_running",
            f"the registry is not running (nothing listens on {path}); "
            "start it with service-registry",
        )
    if isinstance(error, PermissionError):
        return NotRunning(
            "no_permission",
            f"permission denied on {path}: ask as the user that runs the registry, or as root",
        )
    return NotRunning("not_running", f"cannot reach the registry on {path}: {error}")


def _timed_out(timeout_s: float | None) -> RegistryError:
    return RegistryError("timed_out", f"the registry did not answer within {timeout_s:g} s")


def _disconnected() -> RegistryError:
    return RegistryError("disconnected", "the registry closed the connection without an answer")
