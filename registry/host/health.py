"""The health prober: carries out declared checks and hands over what each attempt gave.

It holds no rule of the domain: what a failure means, and how many of them, the core says. Its laws:

* One task a service asks its checks one after another, so no two attempts at one service overlap
  (what a person asks for with `once` comes on top), and none waits for another service.
  Heartbeats are listened to: a timer each, no task.
* An attempt ends at its time limit and never raises for anything that a service may do.
* Nothing is handed over after `forget` or `suspend` has returned.
* It wakes up when something is due and at no other time, and does not judge by time that passed
  while this process itself stood still.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import math
import os
import re
import shlex
import signal
import socket
from collections.abc import Awaitable, Callable

import msgspec

from registry.core.definition import HEARTBEAT, Check
from registry.host import http_probe

FIRST_ATTEMPT_AFTER_S = 0.05
FIRST_RETRY_AFTER_S = 0.1
FIRST_WHEN_READY_S = 1.0
"""A check that has never succeeded is asked so soon once its service is ready, at the service's place within."""
LATE_S = 0.5
"""A wake-up later than this means that this process, not the service, stood still."""

BEAT_INTERVAL_MIN_S = 0.1
"""What a service may ask for at least (WATCHDOG_USEC): a silent one is reported once an interval."""

_TCP_PLACE = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]/@]+)):([0-9]{1,5})")
_TCP_PORT_MAX = 65_535
_log = logging.getLogger(__name__)


class Shortage(OSError):
    """This process could not ask: it has no descriptor, process or memory left. No fault of a service."""


SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
"""What the system says when there is none left."""


class Attempt(msgspec.Struct, frozen=True):
    """One attempt of a check: `error` is one short clause, None when `ok`.

    `final`: a failure that needs no more of its kind, however many the check's `failures` asks for.
    """

    ok: bool
    error: str | None
    latency_ns: int
    final: bool = False


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
        if failure.errno in SHORTAGES:
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
        case "tcp":
            async with asyncio.timeout(check.timeout_s):
                return await _connect_tcp(*_tcp_place(rest))
        case "http+unix":
            async with asyncio.timeout(check.timeout_s):
                return await _get_over_unix(*_http_unix_place(rest))
        case "http" | "https":
            async with asyncio.timeout(check.timeout_s):
                return await http_probe.get(check.target)
        case "cmd":
            return _exit_fault(await run_command(tuple(shlex.split(rest)), check.timeout_s))
        case _:
            raise ValueError(
                "a target is unix:PATH, tcp:HOST:PORT, http://..., https://..., "
                "http+unix:PATH:/URL or cmd:ARGV"
            )


def _connect_unix(path: str) -> str | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        return _connect_at_once(client, path)


def _connect_at_once(client: socket.socket, path: str) -> str | None:
    """Connects without waiting: a Unix socket takes a connection at once or has a full backlog.

    That is why it is not loop.sock_connect: on a full backlog it waits for the socket to become
    writable, which an unconnected one is, and reports success for a service that accepts nothing.
    """
    client.setblocking(False)
    try:
        client.connect(path)
    except BlockingIOError:
        return "not accepting connections, its backlog is full"
    return None


async def _get_over_unix(path: str, url: str) -> str | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        fault = _connect_at_once(client, path)
        return fault or await http_probe.get(f"http://localhost{url}", client)


def _http_unix_place(place: str) -> tuple[str, str]:
    """The socket's path and the URL's: the first colon with a slash behind it parts them."""
    path, slash, url = place.partition(":/")
    if not path or not slash:
        raise ValueError("HTTP over a Unix socket is http+unix:PATH:/URL")
    return path, f"/{url}"


async def _connect_tcp(host: str, port: int) -> str | None:
    """Connects, says nothing, and takes leave with a FIN."""
    with await http_probe.connected(host, port) as client:
        # Where nobody listens on a port that the kernel also gives to clients, it may give us that very
        # port: then we are connected with ourselves (RFC 9293, section 3.5, simultaneous open).
        return "connection refused" if client.getsockname() == client.getpeername() else None


@functools.lru_cache(maxsize=4_096)
def _tcp_place(place: str) -> tuple[str, int]:
    match = _TCP_PLACE.fullmatch(place)
    if match is None or not 0 < int(match[3]) <= _TCP_PORT_MAX:
        raise ValueError("a TCP port is tcp:HOST:PORT or tcp:[ADDRESS]:PORT")
    host = match[1] or match[2].lower().encode("idna").decode("ascii")
    return host, int(match[3])


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


async def _fair_attempt(check: Check, run_command: RunCommand) -> Attempt:
    """One attempt, or two where this process stood still in a failed one. Raises Shortage."""
    made = await attempt(check, run_command)
    if not made.ok and made.latency_ns > (check.timeout_s + LATE_S) * 1e9:
        made = await attempt(check, run_command)
    return made


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
        self,
        service: str,
        run: int,
        checks: tuple[Check, ...],
        run_command: RunCommand,
        *,
        beat_interval_s: float | None = None,
        listens_before_ready: bool = True,
    ) -> None:
        """Begins with the checks of a run that is not ready yet; an earlier run is forgotten.

        Until a check has succeeded once, it is asked often: readiness shall be seen soon.
        `beat_interval_s` is what an adopted run has asked for with WATCHDOG_USEC (see `set_interval`).
        Without `listens_before_ready` no heartbeat is missed until `became_ready`; one that comes counts.
        """
        if earlier := self._watches.pop(service, None):
            earlier.end()
        watch = _Watch(service, run, checks, run_command, self._observe)
        self._watches[service] = watch
        if beat_interval_s is not None:
            watch.set_interval(beat_interval_s)
        if listens_before_ready:
            watch.listen()
        if watch.task is not None:
            self._tasks.add(watch.task)
            watch.task.add_done_callback(self._task_ended)

    def became_ready(self, service: str) -> None:
        """From now on each check is asked at its interval, at the service's place within it.

        One that has never succeeded is asked soon, too.
        """
        if watch := self._watches.get(service):
            watch.become_ready(self._spread(service))

    def beat(self, service: str, check_name: str | None = None) -> bool:
        """A heartbeat, for one check or (None) for all that listen; False when none does."""
        watch = self._watches.get(service)
        return watch is not None and watch.beat(check_name)

    def set_interval(self, service: str, interval_s: float) -> None:
        """From now on a heartbeat is due every `interval_s`, for all checks that listen to this run.

        At 0 none is due any more, until the next call; both as systemd takes WATCHDOG_USEC.
        """
        if watch := self._watches.get(service):
            watch.set_interval(interval_s)

    def trigger(self, service: str, text: str) -> bool:
        """The service calls itself sick (WATCHDOG=trigger): every heartbeat check fails now, finally.

        `text` becomes the error; False when no check listens.
        """
        watch = self._watches.get(service)
        return watch is not None and watch.trigger(text)

    def suspend(self, service: str) -> None:
        """Until its run is forgotten, no check of the service is asked or judged: it is about to end."""
        if watch := self._watches.get(service):
            watch.end()

    async def once(
        self, service: str, checks: tuple[Check, ...], run_command: RunCommand
    ) -> list[tuple[Check, Attempt]]:
        """Asks each of `checks` once, now and all at a time, and tells nobody but the caller.

        A heartbeat check is not waited for: its result is what is known of it now.
        """
        watch = self._watches.get(service)

        async def result(check: Check) -> Attempt:
            if check.target != HEARTBEAT:
                return await _asked_once(service, check, run_command)
            heard = watch and watch.heard(check.name)
            return heard or Attempt(False, "nothing listens", 0)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(result(check)) for check in checks]
        return [(check, task.result()) for check, task in zip(checks, tasks, strict=True)]

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


async def _asked_once(service: str, check: Check, run_command: RunCommand) -> Attempt:
    try:
        return await _fair_attempt(check, run_command)
    except Shortage as shortage:
        return Attempt(False, f"could not be asked: {_clause(shortage, check.timeout_s)}", 0)
    except Exception:
        _log.exception("Check %s of %s could not be carried out", check.name, service)
        return Attempt(False, "could not be asked: a bug, see the registry's own log", 0)


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
            if check.target != HEARTBEAT
        ]
        self._listeners = {
            check.name: _Listener(check, self._report)
            for check in checks
            if check.target == HEARTBEAT
        }
        self.task = asyncio.create_task(self._ask_forever()) if self._asked else None

    def become_ready(self, phase: float) -> None:
        # it may be told again and again: that sets no check back to its first place
        if self._ready or self._ended:
            return
        self._ready = True
        now_s = self._loop.time()
        for asked in self._asked:
            asked.become_ready(now_s, phase)
        if self._waiting is not None:
            _wake(self._waiting)
        self.listen()

    def listen(self) -> None:
        """From now on heartbeats may be missed."""
        for listener in self._listeners.values():
            listener.begin()

    def beat(self, check_name: str | None) -> bool:
        beaten = [
            listener
            for name, listener in self._listeners.items()
            if check_name is None or check_name == name
        ]
        for listener in beaten:
            listener.beat()
        return bool(beaten)

    def set_interval(self, interval_s: float) -> None:
        if self._ended:
            return
        for listener in self._listeners.values():
            listener.set_interval(interval_s)

    def trigger(self, text: str) -> bool:
        for listener in self._listeners.values():
            listener.trigger(text)
        return bool(self._listeners)

    def heard(self, check_name: str) -> Attempt | None:
        """What is known of a heartbeat; None where nothing listens for it."""
        listener = self._listeners.get(check_name)
        return listener.known() if listener else None

    def end(self) -> None:
        if self._ended:
            return
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
        """A fair attempt; None where none could be made."""
        try:
            made = await _fair_attempt(check, self._run_command)
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


class _Asked(msgspec.Struct, eq=False):
    """A check that asks: when next, and how long after a failure while it has never succeeded."""

    check: Check
    due_s: float
    retry_s: float
    steady: bool = False
    place_s: float = 0.0
    """One of the times, an interval apart, at which it is due while it is steady."""

    def become_ready(self, now_s: float, phase: float) -> None:
        """Due at its place within the interval; sooner where it has never succeeded: others may wait for that."""
        interval_s = self.check.interval_s
        within_s = interval_s if self.steady else min(interval_s, FIRST_WHEN_READY_S)
        self.place_s = now_s + interval_s * phase
        self.due_s = now_s + within_s * phase
        self.steady = True

    def set_next(self, now_s: float, steady: bool) -> None:
        if steady and not self.steady:
            self.steady, self.place_s = True, self.due_s
        if self.steady:
            # The first of its places still to come. Not one close to an attempt that came sooner: who is
            # slow to begin is not to fail twice for it.
            interval_s = self.check.interval_s
            after_s = max(now_s, self.due_s + interval_s / 2)
            self.due_s = self.place_s + ((after_s - self.place_s) // interval_s + 1) * interval_s
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
        self._interval_s = check.interval_s
        self._begun = False
        self._timer: asyncio.TimerHandle | None = None
        self._complaint: str | None = None
        self._begin_window()

    def begin(self) -> None:
        """From now on beats may be missed."""
        if not self._begun:
            self._begun = True
            self._begin_window()
            self._set_timer()

    def set_interval(self, interval_s: float) -> None:
        self._interval_s = max(interval_s, BEAT_INTERVAL_MIN_S) if interval_s > 0 else math.inf
        self._begin_window()
        self._set_timer()

    def beat(self) -> None:
        self._begin_window()
        self._report(self._check.name, Attempt(True, None, 0))

    def trigger(self, text: str) -> None:
        self._begin_window()
        self._complaint = text
        self._report(self._check.name, Attempt(False, text, 0, final=True))

    def known(self) -> Attempt:
        """What is wrong since the last beat, if anything is."""
        error = self._complaint or (self._silence(self._loop.time()) if self._missed else None)
        return Attempt(error is None, error, 0)

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin_window(self) -> None:
        self._last_s = self._loop.time()
        self._due_s = self._last_s + self._interval_s + self._check.timeout_s
        self._spared = self._missed = False
        self._complaint = None

    def _set_timer(self) -> None:
        self.end()
        if self._begun and self._due_s < math.inf:
            self._timer = self._loop.call_at(self._due_s, self._judge)

    def _judge(self) -> None:
        silent = self._verdict(self._loop.time())
        self._set_timer()
        if silent is not None:  # last, because its receiver may end this listener
            self._report(self._check.name, Attempt(False, silent, 0))

    def _verdict(self, now_s: float) -> str | None:
        """Sets when to look again; what is wrong when a beat is missing now."""
        late_s = now_s - self._due_s
        if late_s > max(self._interval_s, LATE_S):
            self._begin_window()
        elif late_s > LATE_S and not self._spared:
            self._spared = True  # beats that came meanwhile have yet to be read
            self._due_s = now_s + self._check.timeout_s
        elif late_s >= 0:
            self._due_s += self._interval_s
            self._missed = True
            return self._silence(now_s)
        return None

    def _silence(self, now_s: float) -> str:
        return f"no heartbeat for {round(now_s - self._last_s, 1):g} s"
