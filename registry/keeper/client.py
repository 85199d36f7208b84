"""The daemon's side of the keeper: hands it descriptors, hears from it, starts it when it is gone.

What has to be kept is held here as well, so that a keeper that dies costs nothing: another is started
and everything is handed over again. What is sent follows from what is held, so nothing is remembered
for a keeper that is away. Supervision never waits for the keeper: while none can be started, output
stays in the FIFOs. Children are never waited for here; who reaps the daemon's children reaps keepers.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from registry.keeper.protocol import (
    VERSION,
    Channel,
    Key,
    Message,
    claim,
    close_all,
    is_trusted,
    key_of,
    listen,
    peer_uid,
)
from registry.logs.target import LogTarget

HELLO_S = 10.0
"""How long a keeper may take to say what it keeps."""

GONE_S = 2.0
"""How long a keeper that broke the connection may take to die before it is tried again."""

DELAY_S = 0.1
DELAY_MAX_S = 5.0
"""Between attempts; the first comes at once. A keeper that lived this long was a good one."""

PENDING_MAX = 10_000
"""Messages that may wait for a keeper that does not read, before it counts as gone."""

ENDED_MAX = 256
"""Outputs of ended runs that are held for a keeper that cannot be started; then the oldest goes."""

_LISTEN_FD = 3
_PROGRAM = str(Path(__file__).with_name("__main__.py"))
_VARIABLES = ("PATH", "LANG", "LD_LIBRARY_PATH")


class Kept(msgspec.Struct, frozen=True):
    """One run that a keeper kept for us. Both descriptors are the receiver's own, to be closed.

    `output_fd` is None when the output has ended, `pidfd` when the run was released or had none.
    """

    service: str
    run: int
    output_fd: int | None
    pidfd: int | None
    log: LogTarget | None

    def close(self) -> None:
        """Close both descriptors."""
        close_all(_present(self.output_fd, self.pidfd))


class OutputEnded(msgspec.Struct, frozen=True):
    """No process of a run can write any more; `dropped` bytes of what it wrote were lost."""

    service: str
    run: int
    dropped: int
    log: LogTarget | None


class _Held:
    """Our own copies of what the keeper keeps of one run."""

    __slots__ = ("has_ended", "log", "output", "pidfd")

    def __init__(self, output: int | None, pidfd: int | None, log: LogTarget | None) -> None:
        self.output = output
        self.pidfd = pidfd
        self.log = log
        self.has_ended = False

    def fds(self) -> list[int]:
        return _present(self.output, self.pidfd)


class Keeper:
    """The connection to the keeper whose socket is `socket_path`; its log lies beside the socket.

    `on_grew(service)` says that a watched log has more, `on_output_ended` that no process of a run can
    write any more. It is said to every daemon until one calls `heard`. Both are called by the loop.
    """

    def __init__(
        self,
        socket_path: Path,
        *,
        on_grew: Callable[[str], None],
        on_output_ended: Callable[[OutputEnded], None],
        log: Callable[[str], None],
        splice: bool = True,
        python: str = sys.executable,
    ) -> None:
        self._path = socket_path.absolute()
        self._on_grew = on_grew
        self._on_output_ended = on_output_ended
        self._log = log
        self._splice = splice
        self._python = python
        self._held: dict[Key, _Held] = {}
        self._theirs: dict[Key, Message] = {}
        self._watched: set[str] = set()
        self._unheard: set[Key] = set()
        self._pending: deque[Message | Key] = deque()
        self._channel: Channel | None = None
        self._is_ready = False
        self._was_ready = False
        self._ready_at_s = 0.0
        self._delay_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._pid: int | None = None
        self._pidfd: int | None = None
        self._first: asyncio.Future[list[Kept]] | None = None

    @property
    def pid(self) -> int | None:
        """The keeper's process id; None while there is none."""
        return self._pid

    async def connect(self) -> list[Kept]:
        """Find the keeper or start one; what it kept. [] when none can be had: it is tried on."""
        self._loop = asyncio.get_running_loop()
        self._first = self._loop.create_future()
        self._open()
        return await self._first

    def keep(
        self,
        service: str,
        run: int,
        output_fd: int | None,
        pidfd: int | None,
        log: LogTarget | None,
    ) -> None:
        """Have the run's output moved to `log` and its pidfd kept. The caller keeps his descriptors.

        Raises OSError when no descriptor is free for our own copies.
        """
        key = (service, run)
        self._let_go(self._held.pop(key, None))
        held = self._held[key] = _Held(None, None, log)
        held.output = None if output_fd is None else os.dup(output_fd)
        held.pidfd = None if pidfd is None else os.dup(pidfd)
        self._limit_ended()
        self._post(key)

    def release(self, service: str, run: int) -> None:
        """The run's end is journaled: its pidfd is no longer needed. Output goes on to its end."""
        held = self._held.get((service, run))
        if held is None:
            return
        close_all(_present(held.pidfd))
        held.pidfd = None
        self._forget_if_done((service, run))
        self._post({"type": "release", "service": service, "run": run})

    def heard(self, service: str, run: int) -> None:
        """That the run's output has ended is journaled, or need not be: no later daemon is told."""
        self._unheard.discard((service, run))
        self._post({"type": "heard", "service": service, "run": run})

    def watch(self, service: str) -> None:
        """Somebody follows the service's log: `on_grew` is called once at first, then as it grows."""
        self._watched.add(service)
        self._post({"type": "watch", "service": service})

    def unwatch(self, service: str) -> None:
        """Nobody follows the service's log any more."""
        self._watched.discard(service)
        self._post({"type": "unwatch", "service": service})

    def close(self) -> None:
        """Leave the keeper, which goes on alone, and give back every descriptor."""
        self._post({"type": "leave"})
        self._disconnect()
        self._forget_process()
        for held in self._held.values():
            self._let_go(held)
        self._held.clear()
        self._set_first([])

    # Coming and going

    def _open(self) -> None:
        self._timer = None
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
        try:
            sock = self._reach()
        except OSError as error:
            self._lose(f"cannot be started: {error}")
            return
        self._channel = Channel(sock, self._log)
        self._timer = self._loop.call_later(
            HELLO_S, self._lose, f"said nothing for {HELLO_S:.0f} s"
        )
        self._loop.add_reader(sock.fileno(), self._receive)
        self._pending.append({"type": "hello", "version": VERSION})
        self._flush()

    def _reach(self) -> socket.socket:
        try:
            return self._dial()
        except (FileNotFoundError, ConnectionRefusedError):
            return self._start()

    def _dial(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.connect(str(self._path))
            if not is_trusted(uid := peer_uid(sock)):
                raise PermissionError(f"{self._path} is held by uid {uid}")
        except OSError:
            sock.close()
            raise
        return sock

    def _start(self) -> socket.socket:
        """Start a keeper on a socket that is bound, and connected to, before it even runs."""
        self._path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        with listen(str(self._path)) as listener:
            sock = self._dial()
            try:
                self._meet(self._spawn(listener.fileno()))
            except OSError:
                sock.close()
                raise
        return sock

    def _spawn(self, listener: int) -> int:
        # A copy above _LISTEN_FD: a dup2 onto itself would leave it closed on exec.
        source = fcntl.fcntl(listener, fcntl.F_DUPFD_CLOEXEC, _LISTEN_FD + 1)
        program = [self._python, "-I", "-S", _PROGRAM]
        options = {
            "--socket": self._path,
            "--log": self._path.with_suffix(".log"),
            "--splice": "yes" if self._splice else "no",
        }
        arguments = [str(part) for option in options.items() for part in option]
        try:
            return os.posix_spawn(
                self._python,
                [*program, *arguments, "--listen", str(_LISTEN_FD)],
                {name: os.environ[name] for name in _VARIABLES if name in os.environ},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
                    (os.POSIX_SPAWN_DUP2, 0, 1),
                    (os.POSIX_SPAWN_DUP2, 0, 2),
                    (os.POSIX_SPAWN_DUP2, source, _LISTEN_FD),
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=[signal.SIGTERM, signal.SIGCHLD],
            )
        finally:
            os.close(source)

    def _meet(self, pid: int) -> None:
        """Know the keeper's process, so that its death is seen as the kernel sees it."""
        if pid == self._pid:
            return
        self._forget_process()
        self._pid = pid
        try:
            self._pidfd = os.pidfd_open(pid)
        except (AttributeError, OSError):
            self._pidfd = None

    def _forget_process(self) -> None:
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        self._pid = self._pidfd = None

    def _lose(self, reason: str) -> None:
        """The keeper is gone or useless: start another, once its process has let go of the logs."""
        self._log(f"keeper {reason}; starting another")
        lived_s = self._loop.time() - self._ready_at_s if self._is_ready else 0.0
        delay_s = 0.0 if lived_s > DELAY_MAX_S else self._delay_s
        self._delay_s = min(DELAY_MAX_S, max(DELAY_S, 2 * delay_s))
        self._disconnect()
        self._set_first([])
        if self._pidfd is None:
            self._timer = self._loop.call_later(delay_s, self._open)
        else:
            self._timer = self._loop.call_later(GONE_S + delay_s, self._open)
            self._loop.add_reader(self._pidfd, self._bury, delay_s)

    def _bury(self, delay_s: float) -> None:
        self._forget_process()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay_s, self._open)

    def _disconnect(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._channel is not None:
            self._loop.remove_reader(self._channel.fileno())
            self._loop.remove_writer(self._channel.fileno())
            self._channel.close()
            self._channel = None
        self._is_ready = False
        self._pending.clear()
        self._theirs.clear()

    # What the keeper says

    def _receive(self) -> None:
        if self._channel is None:
            return
        try:
            messages = self._channel.receive()
        except OSError as error:
            self._lose(f"is gone: {error}")
            return
        for message, fds in messages:
            self._hear(message, fds)

    def _hear(self, message: Message, fds: list[int]) -> None:
        key = key_of(message)
        match message:
            case {"type": "kept"} if key is not None and not self._is_ready:
                self._take_up(key, message, fds)
                return
            case {"type": "hello", "pid": int(pid)}:
                self._meet(pid)
            case {"type": "kept_all"}:
                self._hand_over()
            case {"type": "grew", "service": str(service)}:
                self._loop.call_soon(self._on_grew, service)
            case {"type": "output_ended", "dropped": int(dropped)} if key is not None:
                self._end_output(key, dropped)
            case {"type": "replaced"}:
                self._log("keeper serves another daemon now; this one no longer speaks to it")
                self._disconnect()
        close_all(fds)

    def _take_up(self, key: Key, message: Message, fds: list[int]) -> None:
        output, pidfd = claim(message, fds)
        self._theirs[key] = message
        if key in self._held or self._was_ready:
            close_all(_present(output, pidfd))
        else:
            self._held[key] = _Held(output, pidfd, _target(message.get("log")))

    def _hand_over(self) -> None:
        """Bring the keeper to hold what we hold, whatever happened while it was away."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for (service, run), theirs in self._theirs.items():
            held = self._held.get((service, run))
            if theirs.get("pidfd") and (held is None or held.pidfd is None):
                self._pending.append({"type": "release", "service": service, "run": run})
        self._pending.extend(key for key, held in self._held.items() if self._is_missing(key, held))
        self._pending.extend({"type": "watch", "service": service} for service in self._watched)
        self._theirs.clear()
        self._is_ready = self._was_ready = True
        self._ready_at_s = self._loop.time()
        if self._first is not None and not self._first.done():
            self._set_first([_kept(key, held) for key, held in self._held.items()])
        self._flush()

    def _is_missing(self, key: Key, held: _Held) -> bool:
        theirs = self._theirs.get(key, {})
        lacks_output = held.output is not None and not theirs.get("output")
        return lacks_output or (held.pidfd is not None and not theirs.get("pidfd"))

    def _set_first(self, kept: list[Kept]) -> None:
        if self._first is not None and not self._first.done():
            self._first.set_result(kept)

    def _end_output(self, key: Key, dropped: int) -> None:
        held = self._held.get(key)
        if held is None or held.has_ended:
            if (
                key not in self._unheard
            ):  # it was heard, but a keeper that was lost has not heard so
                self._post({"type": "heard", "service": key[0], "run": key[1]})
            return
        close_all(_present(held.output))
        held.output = None
        held.has_ended = True
        self._unheard.add(key)
        self._forget_if_done(key)
        # Later, so that who awaits connect() has what was kept before he hears that it has ended.
        self._loop.call_soon(self._on_output_ended, OutputEnded(*key, dropped, held.log))

    # What is held, and saying so

    def _forget_if_done(self, key: Key) -> None:
        if not self._held[key].fds():
            del self._held[key]

    def _let_go(self, held: _Held | None) -> None:
        if held is not None:
            close_all(held.fds())

    def _limit_ended(self) -> None:
        if self._is_ready:
            return
        ended = [key for key, held in self._held.items() if held.pidfd is None]
        for key in ended[: max(0, len(ended) - ENDED_MAX)]:
            self._log(f"output of {key[0]}, run {key[1]}, is lost: no keeper for {ENDED_MAX} runs")
            self._let_go(self._held.pop(key))

    def _post(self, item: Message | Key) -> None:
        """Send a message, or the keep of a run. While no keeper is there it follows from the state."""
        if not self._is_ready:
            return
        self._pending.append(item)
        if len(self._pending) > PENDING_MAX:
            self._lose(f"has left {PENDING_MAX} messages unread")
        else:
            self._flush()

    def _flush(self) -> None:
        channel = self._channel
        if channel is None:
            return
        try:
            is_sent = self._send_pending(channel) and channel.flush()
        except OSError as error:
            self._lose(f"is gone: {error}")
            return
        if is_sent:
            self._loop.remove_writer(channel.fileno())
        else:
            self._loop.add_writer(channel.fileno(), self._flush)

    def _send_pending(self, channel: Channel) -> bool:
        while self._pending:
            message, fds = self._compose(self._pending[0])
            if message and not channel.send(message, fds):
                return False
            self._pending.popleft()
        return True

    def _compose(self, item: Message | Key) -> tuple[Message, list[int]]:
        """The message as things are now: a waiting keep must not name a descriptor closed since."""
        if isinstance(item, dict):
            return item, []
        held = self._held.get(item)
        if held is None:
            return {}, []
        message: Message = {"type": "keep", "service": item[0], "run": item[1]}
        message["output"] = held.output is not None
        message["pidfd"] = held.pidfd is not None
        message["log"] = None if held.log is None else msgspec.to_builtins(held.log)
        return message, held.fds()


def _present(*fds: int | None) -> list[int]:
    return [fd for fd in fds if fd is not None]


def _target(spec: object) -> LogTarget | None:
    return None if spec is None else msgspec.convert(spec, LogTarget)


def _kept(key: Key, held: _Held) -> Kept:
    output = None if held.output is None else os.dup(held.output)
    pidfd = None if held.pidfd is None else os.dup(held.pidfd)
    return Kept(*key, output, pidfd, held.log)
