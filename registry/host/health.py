"""The health prober: carries out declared checks and hands over what each attempt gave.

It holds no rule of the domain: what a failure means, and how many of them, the core says. Its laws:

* One task a service asks its checks one after another, so no two attempts at one service overlap,
  and none waits for another service. Heartbeats are listened to: a timer each, no task.
* An attempt ends at its time limit and never raises for anything that a service may do.
* Nothing is handed over after `forget` has returned.
* It wakes up when something is due and at no other time, and does not judge by time that passed
  while this process itself stood still.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shlex
import signal
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from registry.core.definition import Check
from registry.host import http_probe

FIRST_ATTEMPT_AFTER_S = 0.05
FIRST_RETRY_AFTER_S = 0.1
LATE_S = 0.5
"""A wake-up later than this means that this process, not the service, stood still."""

_HEARTBEAT = "heartbeat:"
_log = logging.getLogger(__name__)


class Shortage(OSError):
    """This process could not ask: it has no descriptor, process or memory left. No fault of a service."""


_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}


class Attempt(msgspec.Struct, frozen=True):
    """One attempt of a check: `error` is one short clause, None when `ok`."""

    ok: bool
    error: str | None
    latency_ns: int


RunCommand = Callable[[tuple[str, ...], float], Awaitable[int]]
"""Runs argv as the service would, in a group of its own, for so many seconds at most; then, and
when it is cancelled, kills that group. Gives the exit code, or minus the signal's number; raises
TimeoutError at the limit, OSError when argv cannot run, and Shortage when nothing can just now."""

Observe = Callable[[str, int, str, Attempt], None]
"""Takes service, run, name of the check, attempt."""


async def attempt(check: Check, run_command: RunCommand) -> Attempt:
    """One attempt of a check that asks (all but `heartbeat:`), `check.timeout_s` long at most.

    Raises Shortage where it could not be made.
    """
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    try:
        error = await _ask(check, run_command)
    except Shortage:
        raise
    except OSError as failure:
        if failure.errno in _SHORTAGES:
            raise Shortage(failure.errno, failure.strerror) from None
        error = _clause(failure, check.timeout_s)
    except ValueError as failure:
        error = f"bad target: {failure}"
    return Attempt(error is None, error, int((loop.time() - begun_s) * 1e9))


async def _ask(check: Check, run_command: RunCommand) -> str | None:
    kind, _, rest = check.target.partition(":")
    match kind:
        case "unix":
            return _connect_unix(rest)
        case "http" | "https":
            async with asyncio.timeout(check.timeout_s):
                return await http_probe.get(check.target)
        case "cmd":
            return _exit_fault(await run_command(tuple(shlex.split(rest)), check.timeout_s))
        case _:
            raise ValueError("a target is unix:PATH, http://..., https://... or cmd:ARGV")


def _connect_unix(path: str) -> str | None:
    """Connects without waiting: a Unix socket takes a connection at once or has a full backlog.

    That is why it is not loop.sock_connect: on a full backlog it waits for the socket to become
    writable, which an unconnected one is, and reports success for a service that accepts nothing.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        try:
            client.connect(path)
        except BlockingIOError:
            return "not accepting connections, its backlog is full"
    return None


def _exit_fault(code: int) -> str | None:
    if code >= 0:
        return f"exit code {code}" if code else None
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _clause(failure: OSError, timeout_s: float) -> str:
    """An OSError in a few words, none of them the service's own."""
    match failure:
        case ssl.SSLCertVerificationError():
            return f"certificate refused: {failure.verify_message.rstrip('.')}"
        case ssl.SSLError():
            return f"TLS failed: {(failure.reason or 'protocol error').replace('_', ' ').lower()}"
        case socket.gaierror():
            return f"name not resolved: {failure.strerror}"
        case TimeoutError(errno=None):
            return f"timed out after {timeout_s:g} s"
        case ConnectionError(errno=None):
            return "connection closed by the service"
    if failure.errno is None:
        return str(failure) or type(failure).__name__
    text = os.strerror(failure.errno)
    return text[:1].lower() + text[1:]


class Prober:
    """Watches services: asks and listens as their checks say, and tells `observe` what came of it.

    `spread(service)` in [0, 1) is the service's place within an interval, so that many services
    with one interval are not all asked at once.
    """

    def __init__(self, observe: Observe, spread: Callable[[str], float]) -> None:
        self._observe = observe
        self._spread = spread
        self._watches: dict[str, _Watch] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def watch(
        self, service: str, run: int, checks: tuple[Check, ...], run_command: RunCommand
    ) -> None:
        """Begins with the checks of a run that is not ready yet; an earlier run is forgotten.

        Until a check has succeeded once, it is asked often: readiness shall be seen soon.
        """
        if earlier := self._watches.pop(service, None):
            earlier.end()
        watch = self._watches[service] = _Watch(service, run, checks, run_command, self._observe)
        if watch.task is not None:
            self._tasks.add(watch.task)
            watch.task.add_done_callback(self._task_ended)

    def became_ready(self, service: str) -> None:
        """From now on each check is asked at its interval, at the service's place within it."""
        if watch := self._watches.get(service):
            watch.become_ready(self._spread(service))

    def beat(self, service: str, check_name: str | None = None) -> bool:
        """A heartbeat, for one check or (None) for all that listen; False when none does."""
        watch = self._watches.get(service)
        return watch is not None and watch.beat(check_name)

    def forget(self, service: str, run: int) -> None:
        """Ends the watch of this run, if there is one: nothing more of it is handed over."""
        watch = self._watches.get(service)
        if watch is not None and watch.run == run:
            self._watches.pop(service).end()

    async def close(self) -> None:
        """Ends every watch and waits until nothing of them is left."""
        for watch in self._watches.values():
            watch.end()
        self._watches.clear()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            _log.critical("A service is no longer checked", exc_info=error)


class _Watch:
    """One run of one service: the task that asks, the timers that listen."""

    def __init__(
        self,
        service: str,
        run: int,
        checks: tuple[Check, ...],
        run_command: RunCommand,
        observe: Observe,
    ) -> None:
        self.run = run
        self._service = service
        self._run_command = run_command
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._ended = False
        self._ready = False
        self._waiting: asyncio.Future[None] | None = None
        first_s = self._loop.time() + FIRST_ATTEMPT_AFTER_S
        self._asked = [
            _Asked(check, first_s, min(FIRST_RETRY_AFTER_S, check.interval_s))
            for check in checks
            if not check.target.startswith(_HEARTBEAT)
        ]
        self._listeners = {
            check.name: _Listener(check, self._report)
            for check in checks
            if check.target.startswith(_HEARTBEAT)
        }
        self.task = asyncio.create_task(self._ask_forever()) if self._asked else None

    def become_ready(self, phase: float) -> None:
        if (
            self._ready
        ):  # it may be told again and again: that sets no check back to its first place
            return
        self._ready = True
        for asked in self._asked:
            asked.due_s = self._loop.time() + asked.check.interval_s * phase
        if self._waiting is not None:
            _wake(self._waiting)

    def beat(self, check_name: str | None) -> bool:
        beaten = [
            listener
            for name, listener in self._listeners.items()
            if check_name is None or check_name == name
        ]
        for listener in beaten:
            listener.beat()
        return bool(beaten)

    def end(self) -> None:
        self._ended = True
        for listener in self._listeners.values():
            listener.end()
        if self.task is not None:
            self.task.cancel()

    async def _ask_forever(self) -> None:
        while not self._ended:
            asked = min(self._asked, key=lambda each: each.due_s)
            if asked.due_s > self._loop.time():
                await self._wait_until(asked.due_s)
                continue  # by now another may be due before it
            made = await self._attempt(asked.check)
            asked.set_next(self._loop.time(), self._ready or (made is not None and made.ok))
            if made is not None:
                self._report(asked.check.name, made)

    async def _wait_until(self, due_s: float) -> None:
        self._waiting = self._loop.create_future()
        timer = self._loop.call_at(due_s, _wake, self._waiting)
        try:
            await self._waiting
        finally:
            timer.cancel()

    async def _attempt(self, check: Check) -> Attempt | None:
        """One attempt, or two where this process stood still in a failed one; None where none could be made."""
        try:
            made = await attempt(check, self._run_command)
            if not made.ok and made.latency_ns > (check.timeout_s + LATE_S) * 1e9:
                made = await attempt(check, self._run_command)
        except Shortage as shortage:
            _log.warning("Check %s of %s was left out: %s", check.name, self._service, shortage)
            return None
        except Exception:
            _log.exception("Check %s of %s could not be carried out", check.name, self._service)
            return None
        return made

    def _report(self, check_name: str, made: Attempt) -> None:
        if self._ended:
            return
        try:
            self._observe(self._service, self.run, check_name, made)
        except Exception:
            _log.exception("Result of check %s of %s got lost", check_name, self._service)


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


@dataclass(slots=True)
class _Asked:
    """A check that asks: when next, and how long after a failure while it has never succeeded."""

    check: Check
    due_s: float
    retry_s: float
    steady: bool = False

    def set_next(self, now_s: float, steady: bool) -> None:
        self.steady = self.steady or steady
        if self.steady:
            # The first of its places that is still to come; the one just set, where it became
            # ready in the middle of the attempt.
            interval_s = self.check.interval_s
            self.due_s += ((now_s - self.due_s) // interval_s + 1) * interval_s
        else:
            self.due_s = now_s + self.retry_s
            self.retry_s = min(self.retry_s * 2, self.check.interval_s)


class _Listener:
    """A heartbeat check: fails when no beat came in time, and again after each further interval.

    A beat only moves the due time; the timer finds that out when it fires: a beat costs no timer.
    """

    def __init__(self, check: Check, report: Callable[[str, Attempt], None]) -> None:
        self._check = check
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._begin_window()
        self._timer = self._loop.call_at(self._due_s, self._judge)

    def beat(self) -> None:
        self._begin_window()
        self._report(self._check.name, Attempt(True, None, 0))

    def end(self) -> None:
        self._timer.cancel()

    def _begin_window(self) -> None:
        self._last_s = self._loop.time()
        self._due_s = self._last_s + self._check.interval_s + self._check.timeout_s
        self._spared = False

    def _judge(self) -> None:
        silent = self._verdict(self._loop.time())
        self._timer = self._loop.call_at(self._due_s, self._judge)
        if silent is not None:  # last, because its receiver may end this listener
            self._report(self._check.name, Attempt(False, silent, 0))

    def _verdict(self, now_s: float) -> str | None:
        """Sets when to look again; what is wrong when a beat is missing now."""
        late_s = now_s - self._due_s
        if late_s > self._check.interval_s:
            self._begin_window()
        elif late_s > LATE_S and not self._spared:
            self._spared = True  # beats that came meanwhile have yet to be read
            self._due_s = now_s + self._check.timeout_s
        elif late_s >= 0:
            self._due_s += self._check.interval_s
            return f"no heartbeat for {round(now_s - self._last_s, 1):g} s"
        return None
