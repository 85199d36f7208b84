"""The daemon's side of the keeper: hands it descriptors, hears from it, starts it when it is gone.

What has to be kept is held here as well (holdings.py), so that a keeper that dies costs nothing: another
is started and everything is handed over again. What is sent follows from what is held, so nothing is
remembered for a keeper that is away. Supervision never waits for the keeper: while none can be started,
output stays in the FIFOs. What is held for a service (a slot, see protocol.py) outlives all its runs; what
its processes said while no daemon was there (notes) is handed out once, and stays with the keeper
until it is `noted`. Children are never waited for here; who reaps the daemon's children reaps keepers.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from registry.keeper.holdings import Held, HeldRuns, HeldSlots, Kept, Outgoing, composed
from registry.keeper.protocol import (
    SLOTS_VERSION,
    VERSION,
    Channel,
    Key,
    Message,
    is_trusted,
    key_of,
    listen,
    peer_uid,
    slot_of,
)
from registry.logs.target import LogTarget
from registry.passed import close_all

HELLO_S = 10.0
"""How long a keeper may take to say what it keeps."""

GONE_S = 2.0
"""How long a keeper that broke the connection may take to die before it is tried again."""

DELAY_S = 0.1
DELAY_MAX_S = 5.0
"""Between attempts; the first comes at once. A keeper that lived this long was a good one."""

LEAVE_S = 1.0
"""How long is waited for a keeper that is busy to take what is said last."""

LATER_S = 0.1
"""How long a message that nobody needs may wait for others: one wake-up of the keeper is a third less of a restart."""

TOGETHER_MAX = 16
"""Messages after which none waits for others."""

PENDING_MAX = 10_000
"""Messages that may wait for a keeper that does not read, before it counts as gone."""

ENDED_MAX = 256
"""Outputs of ended runs that are held for a keeper that cannot be started; then the oldest goes."""

_LISTEN_FD = 3
_PROGRAM = str(Path(__file__).with_name("__main__.py"))
_VARIABLES = ("PATH", "LANG", "LD_LIBRARY_PATH")


class Note(msgspec.Struct, frozen=True):
    """What a process said on a service's notification socket while no daemon was connected.

    pid and uid are the sender's, told by the kernel; `session` is its session, 0 where it was gone when
    the keeper read this at `at_ns` (CLOCK_BOOTTIME). Descriptors are the receiver's own, to be closed.
    """

    service: str
    pid: int
    uid: int
    session: int
    at_ns: int
    text: bytes
    fds: tuple[int, ...] = ()


class Found(msgspec.Struct, frozen=True):
    """What a keeper had for us. Notes are of all services, in the order in which they were said."""

    kept: list[Kept] = []
    held: list[Held] = []
    notes: list[Note] = []

    def close(self) -> None:
        """Close every descriptor."""
        for kept in self.kept:
            kept.close()
        close_all(held.fd for held in self.held)
        close_all(fd for note in self.notes for fd in note.fds)


class OutputEnded(msgspec.Struct, frozen=True):
    """No process of a run can write any more; `dropped` bytes of what it wrote were lost."""

    service: str
    run: int
    dropped: int
    log: LogTarget | None


class Keeper:
    """The connection to the keeper whose socket is `socket_path`; its log lies beside the socket.

    `on_grew(service)` says that a watched log has more, `on_output_ended` that no process of a run can
    write any more. It is said to every daemon until one calls `heard`. `on_notes` gets the notes of a
    keeper that was out of reach for a while; without it they wait for the next daemon. `on_held` gets what
    one holds that was not reached at first. All are called by the loop.
    """

    def __init__(
        self,
        socket_path: Path,
        *,
        on_grew: Callable[[str], None],
        on_output_ended: Callable[[OutputEnded], None],
        log: Callable[[str], None],
        on_notes: Callable[[list[Note]], None] | None = None,
        on_held: Callable[[list[Held]], None] | None = None,
        splice: bool = True,
        python: str = sys.executable,
    ) -> None:
        self._path = socket_path.absolute()
        self._on_grew = on_grew
        self._on_output_ended = on_output_ended
        self._log = log
        self._on_notes = on_notes
        self._on_held = on_held
        self._splice = splice
        self._python = python
        self._runs = HeldRuns()
        self._slots = HeldSlots()
        self._notes: list[Note] = []
        self._handed_out_ns: list[int] = []
        self._noted_ns = 0
        self._knows_slots = False
        self._is_old_said = False
        self._watched: set[str] = set()
        self._unheard: set[Key] = set()
        self._pending: deque[Outgoing] = deque()
        self._waits_for_room = False
        self._reached: socket.socket | None = None
        self._channel: Channel | None = None
        self._is_ready = False
        self._was_ready = False
        self._ready_at_s = 0.0
        self._delay_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._later: asyncio.Handle | None = None
        self._pid: int | None = None
        self._pidfd: int | None = None
        self._first: asyncio.Future[Found] | None = None

    @property
    def pid(self) -> int | None:
        """The keeper's process id; None while there is none."""
        return self._pid

    def reach(self) -> None:
        """Have a keeper begin where there is none, which takes it a while; `connect` asks it what it has.

        One that is there is not held up: while it has a daemon it leaves to that one what services say.
        """
        self._loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):  # `connect` will meet it, and say so
            try:
                self._dial().close()
            except (FileNotFoundError, ConnectionRefusedError):
                self._reached = self._start()

    async def connect(self) -> Found:
        """Find the keeper or start one; what it has. Nothing when none can be had: it is tried on."""
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
        """Have the run's output moved to `log` and its pidfd kept, from the next turn of the loop or `flush` on. The
        caller keeps his descriptors.

        Without `output_fd` a run that is kept already gets another pidfd and nothing else: its main
        process is another one. Raises OSError when no descriptor is free for our own copies.
        """
        keep = self._runs.keep((service, run), output_fd, pidfd, log)
        if self._is_ready:
            self._post_within(keep, 0.0)
            return
        for key in self._runs.limit_ended(ENDED_MAX):
            self._log(f"output of {key[0]}, run {key[1]}, is lost: no keeper for {ENDED_MAX} runs")

    def flush(self) -> None:
        """Send what would wait for the end of this turn of the loop."""
        if self._pending and not self._waits_for_room:
            self._flush()

    def redirect(self, service: str, run: int, log: LogTarget) -> None:
        """What the run writes from now on goes to `log`; what it wrote stays where it is."""
        keep = self._runs.redirect((service, run), log)
        if keep is not None:
            self._post(keep)

    def release(self, service: str, run: int) -> None:
        """The run's end is journaled: its pidfd is no longer needed. Output goes on to its end."""
        if self._runs.release((service, run)):
            self._post_within({"type": "release", "service": service, "run": run}, LATER_S)

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

    def hold(self, service: str, slot: str, fd: int, meta: str = "") -> None:
        """Have the descriptor held for the service, in place of what the slot had. The caller keeps his.

        Raises OSError when no descriptor is free for our own copy, ValueError when `meta` is too long.
        """
        self._post_of_slots(self._slots.hold((service, slot), fd, meta))

    def drop(self, service: str, slot: str) -> None:
        """The slot is needed no more; with "notify" go the service's notes that were not noted."""
        if self._slots.drop((service, slot)):
            self._post_of_slots({"type": "drop", "service": service, "slot": slot})

    def noted(self, count: int) -> None:
        """The first `count` of all notes handed out so far are committed: no later daemon gets them."""
        handed_out = self._handed_out_ns[: max(0, count)]
        if handed_out and handed_out[-1] > self._noted_ns:
            self._noted_ns = handed_out[-1]
            self._post_of_slots({"type": "noted", "at_mono_ns": self._noted_ns})

    def close(self, keep: bool = False) -> None:
        """Leave the keeper, which goes on alone, and give back every descriptor.

        `keep`: the services live on without us, so the keeper goes on holding what is theirs.
        """
        if self._reached is not None:
            self._reached.close()
        self._post({"type": "leave", "keep": keep})
        self._send_rest()
        self._disconnect()
        self._forget_process()
        self._runs.close()
        self._slots.close()
        self._set_first(Found())

    def _send_rest(self) -> None:
        """Wait for a keeper that is busy, so long at most: it would go on for ever with what nobody needs."""
        if self._channel is None or not self._waits_for_room:
            return
        room = select.poll()  # of any descriptor, however high its number
        room.register(self._channel, select.POLLOUT)
        until_s = self._loop.time() + LEAVE_S
        while self._waits_for_room and (left_s := until_s - self._loop.time()) > 0:
            if room.poll(left_s * 1000):
                self._flush()

    # Coming and going

    def _open(self) -> None:
        self._timer = None
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
        try:
            sock = self._reached or self._reach()
        except OSError as error:
            self._lose(f"cannot be started: {error}")
            return
        self._reached = None
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
        self._set_first(Found())
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
        for timer in filter(None, (self._timer, self._later)):
            timer.cancel()
        self._timer = self._later = None
        if self._channel is not None:
            self._loop.remove_reader(self._channel.fileno())
            self._loop.remove_writer(self._channel.fileno())
            self._channel.close()
            self._channel = None
        self._is_ready = self._waits_for_room = False
        self._pending.clear()
        self._runs.forget_theirs()
        self._slots.forget_theirs()
        self._close_notes()

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
        key, slot, is_ours = key_of(message), slot_of(message), not self._was_ready
        match message:
            case {"type": "kept"} if key is not None and not self._is_ready:
                self._runs.take_up(key, message, fds, is_ours=is_ours)
                return
            case {"type": "held", "meta": str(meta)} if slot and not self._is_ready:
                self._slots.take_up(slot, meta, fds, is_ours=is_ours)
                return
            case {"type": "note"} if not self._is_ready and (note := _note(message, fds)):
                self._notes.append(note)
                return
            case {"type": "hello", "pid": int(pid), "version": int(version)}:
                self._knows_slots = version >= SLOTS_VERSION
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

    def _hand_over(self) -> None:
        """Bring the keeper to hold what we hold, whatever happened while it was away."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._pending.extend(self._runs.hand_over())
        self._pending.extend({"type": "watch", "service": service} for service in self._watched)
        late = self._slots.taken_up() if self._knows_slots else []
        self._hand_over_slots()
        self._is_ready = self._was_ready = True
        self._ready_at_s = self._loop.time()
        if self._first is not None and not self._first.done():
            self._set_first(Found(self._runs.copies(), self._slots.copies(), self._hand_out()))
        else:
            if self._on_held is not None and late:
                self._on_held([self._slots.copy(key) for key in late])
            if self._on_notes is not None and (notes := self._hand_out()):
                self._on_notes(notes)
        self._close_notes()
        self._flush()

    def _hand_over_slots(self) -> None:
        if not self._knows_slots:
            self._say_old()
            return
        self._pending.extend(self._slots.hand_over())
        if self._noted_ns:
            self._pending.append({"type": "noted", "at_mono_ns": self._noted_ns})

    def _hand_out(self) -> list[Note]:
        """The notes that this daemon has not had yet: a keeper that is met again tells all anew."""
        latest_ns = self._handed_out_ns[-1] if self._handed_out_ns else 0
        new = [note for note in self._notes if note.at_ns > latest_ns]
        self._handed_out_ns += [note.at_ns for note in new]
        self._notes = [note for note in self._notes if note.at_ns <= latest_ns]
        return new

    def _close_notes(self) -> None:
        close_all(fd for note in self._notes for fd in note.fds)
        self._notes = []

    def _set_first(self, found: Found) -> None:
        if self._first is not None and not self._first.done():
            self._first.set_result(found)

    def _end_output(self, key: Key, dropped: int) -> None:
        run = self._runs.end_output(key)
        if run is not None:
            self._unheard.add(key)
            # Later, so that who awaits connect() has what was kept before he hears that it has ended.
            self._loop.call_soon(self._on_output_ended, OutputEnded(*key, dropped, run.log))
        elif key not in self._unheard:  # it was heard, but a keeper that was lost has not heard so
            self._post({"type": "heard", "service": key[0], "run": key[1]})

    # Saying what is held

    def _say_old(self) -> None:
        if self._slots and not self._is_old_said:
            self._is_old_said = True
            self._log(
                f"keeper {self._pid} is of an older version and holds no sockets and no stored "
                "descriptors: they are lost if this registry is killed. To have it replaced, end it "
                f"(kill -9 {self._pid}); nothing is lost by that"
            )

    def _post_of_slots(self, item: Outgoing) -> None:
        if self._is_ready and not self._knows_slots:
            self._say_old()
        else:
            self._post(item)

    def _post(self, item: Outgoing) -> None:
        """Send a message. While no keeper is there it follows from what is held."""
        if self._enqueue(item) and not self._waits_for_room:
            self._flush()

    def _post_within(self, item: Outgoing, delay_s: float) -> None:
        """The same where nobody waits for it: with others, for whom the keeper wakes once."""
        if not self._enqueue(item) or self._waits_for_room:
            return
        if len(self._pending) >= TOGETHER_MAX:
            self._flush()
            return
        if self._later is None or not delay_s:
            self._let_be()
            loop = self._loop
            self._later = (
                loop.call_later(delay_s, self._flush) if delay_s else loop.call_soon(self._flush)
            )

    def _enqueue(self, item: Outgoing) -> bool:
        """Whether `item` is to be sent now or later."""
        if not self._is_ready:
            return False
        self._pending.append(item)
        if len(self._pending) > PENDING_MAX:
            self._lose(f"has left {PENDING_MAX} messages unread")
            return False
        return True

    def _flush(self) -> None:
        self._let_be()
        channel = self._channel
        if channel is None:
            return
        try:
            is_sent = self._send_pending(channel) and channel.flush()
        except OSError as error:
            self._lose(f"is gone: {error}")
            return
        if not is_sent:
            self._loop.add_writer(channel.fileno(), self._flush)
        elif self._waits_for_room:
            self._loop.remove_writer(channel.fileno())
        self._waits_for_room = not is_sent

    def _let_be(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None

    def _send_pending(self, channel: Channel) -> bool:
        while self._pending:
            taken = channel.send_some(map(composed, self._pending))
            if not taken:
                return False
            for _ in range(taken):
                self._pending.popleft()
        return True


def _note(message: Message, fds: list[int]) -> Note | None:
    match message:
        case {
            "service": str(service),
            "pid": int(pid),
            "uid": int(uid),
            "session": int(session),
            "at_mono_ns": int(at_ns),
            "text": str(text),
        }:
            return Note(
                service, pid, uid, session, at_ns, text.encode("latin-1", "replace"), tuple(fds)
            )
    return None
