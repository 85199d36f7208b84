"""What the daemon holds of all that a keeper keeps for it: its own copies, and what that keeper lacks of them.

A keeper that is met says what it has (`take_up`): that of the first becomes ours, every other is brought to
hold what we hold (`hand_over`). A message is made when it can be sent, as things are by then, so that it never
names a descriptor closed since.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import msgspec

from registry.keeper.protocol import META_MAX, Key, Message, SlotKey, claim
from registry.keeper.slots import Composed
from registry.logs.target import LogTarget
from registry.passed import close_all

Outgoing = Message | Callable[[], Composed]
"""A message, or what makes it."""


def composed(item: Outgoing) -> Composed:
    """The message as things are now, empty where there is nothing to say, and its descriptors."""
    return (item, []) if isinstance(item, dict) else item()


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


class Held(msgspec.Struct, frozen=True):
    """One descriptor that a keeper held for a service; the receiver's own, to be closed."""

    service: str
    slot: str
    meta: str
    fd: int


class Run:
    """Our own copies of what the keeper keeps of one run."""

    __slots__ = ("has_ended", "log", "output", "pidfd")

    def __init__(self, output: int | None, pidfd: int | None, log: LogTarget | None) -> None:
        self.output = output
        self.pidfd = pidfd
        self.log = log
        self.has_ended = False

    def fds(self) -> list[int]:
        """What is open of it."""
        return _present(self.output, self.pidfd)


class HeldRuns:
    """Outputs and pidfds of runs, until both are needed no more."""

    def __init__(self) -> None:
        self._runs: dict[Key, Run] = {}
        self._theirs: dict[Key, Message] = {}

    def keep(
        self, key: Key, output_fd: int | None, pidfd: int | None, log: LogTarget | None
    ) -> Outgoing:
        """Hold copies; without `output_fd` only the pidfd of what is held is another one. Raises OSError."""
        run = self._runs.get(key)
        if run is None or output_fd is not None:
            copies = _copies(output_fd, pidfd)
            if run is not None:
                close_all(run.fds())
            self._runs[key] = Run(*copies, log)
        else:
            close_all(_present(run.pidfd))
            run.pidfd = None
            run.pidfd = _copy(pidfd)
        return partial(self._compose, key)

    def redirect(self, key: Key, log: LogTarget) -> Outgoing | None:
        """Its output goes to `log`; None where it does already, or has ended."""
        run = self._runs.get(key)
        if run is None or run.output is None or run.log == log:
            return None
        run.log = log
        return partial(self._compose, key)

    def release(self, key: Key) -> bool:
        """Its pidfd is needed no more; False where nothing of it is held."""
        run = self._runs.get(key)
        if run is None:
            return False
        close_all(_present(run.pidfd))
        run.pidfd = None
        self._forget_if_done(key, run)
        return True

    def end_output(self, key: Key) -> Run | None:
        """Its output has ended; None where that was known."""
        run = self._runs.get(key)
        if run is None or run.has_ended:
            return None
        close_all(_present(run.output))
        run.output = None
        run.has_ended = True
        self._forget_if_done(key, run)
        return run

    def limit_ended(self, most: int) -> list[Key]:
        """Let go of the oldest of which only the output is held, until there are `most`; which they were."""
        ended = [key for key, run in self._runs.items() if run.pidfd is None]
        over = ended[: max(0, len(ended) - most)]
        for key in over:
            close_all(self._runs.pop(key).fds())
        return over

    def take_up(self, key: Key, message: Message, fds: list[int], *, is_ours: bool) -> None:
        """What a keeper has of a run; it is held from now on where `is_ours`, unless it is held already."""
        output, pidfd = claim(message, fds)
        self._theirs[key] = message
        if key in self._runs or not is_ours:
            close_all(_present(output, pidfd))
        else:
            self._runs[key] = Run(output, pidfd, _target(message.get("log")))

    def hand_over(self) -> list[Outgoing]:
        """What the keeper that was met has to be told."""
        told: list[Outgoing] = []
        for key, theirs in self._theirs.items():
            ours = self._runs.get(key)
            if theirs.get("pidfd") and (ours is None or ours.pidfd is None):
                told.append({"type": "release", "service": key[0], "run": key[1]})
        told += [partial(self._compose, key) for key in self._runs if self._is_missing(key)]
        self._theirs.clear()
        return told

    def forget_theirs(self) -> None:
        """The keeper is gone: nothing is known of it."""
        self._theirs.clear()

    def copies(self) -> list[Kept]:
        """All that is held."""
        return [
            Kept(*key, _copy(run.output), _copy(run.pidfd), run.log)
            for key, run in self._runs.items()
        ]

    def close(self) -> None:
        """Close every descriptor."""
        for run in self._runs.values():
            close_all(run.fds())
        self._runs.clear()

    def _is_missing(self, key: Key) -> bool:
        run, theirs = self._runs[key], self._theirs.get(key, {})
        lacks_output = run.output is not None and (
            not theirs.get("output") or theirs.get("log") != _spec(run.log)
        )
        return lacks_output or (run.pidfd is not None and not theirs.get("pidfd"))

    def _forget_if_done(self, key: Key, run: Run) -> None:
        if not run.fds():
            del self._runs[key]

    def _compose(self, key: Key) -> Composed:
        run = self._runs.get(key)
        if run is None:
            return {}, []
        message: Message = {"type": "keep", "service": key[0], "run": key[1]}
        message["output"] = run.output is not None
        message["pidfd"] = run.pidfd is not None
        message["log"] = _spec(run.log)
        return message, run.fds()


class HeldSlots:
    """Descriptors of services in their slots, until they are dropped."""

    def __init__(self) -> None:
        self._slots: dict[SlotKey, Held] = {}
        self._theirs: dict[SlotKey, bool] = {}

    def __bool__(self) -> bool:
        """Whether anything is held."""
        return bool(self._slots)

    def hold(self, key: SlotKey, fd: int, meta: str) -> Outgoing:
        """Hold a copy in place of what the slot had. Raises OSError, and ValueError where `meta` is too long."""
        if len(meta) > META_MAX:
            raise ValueError(
                f"cannot hold {key[1]} of {key[0]}: its text has {len(meta)} characters, "
                f"{META_MAX} are the most"
            )
        held = Held(*key, meta, os.dup(fd))
        self.drop(key)
        self._slots[key] = held
        return partial(self._compose, held)

    def drop(self, key: SlotKey) -> bool:
        """It is needed no more; False where it was not held."""
        held = self._slots.pop(key, None)
        if held is not None:
            os.close(held.fd)
        return held is not None

    def take_up(self, key: SlotKey, meta: str, fds: list[int], *, is_ours: bool) -> None:
        """What a keeper has in a slot; it is held from now on where `is_ours`, unless the slot has something."""
        is_new = is_ours and key not in self._slots and len(fds) == 1
        if is_new:
            self._slots[key] = Held(*key, meta, fds[0])
        else:
            close_all(fds)
        self._theirs[key] = is_new

    def hand_over(self) -> list[Outgoing]:
        """What the keeper that was met has to be told."""
        # One that both hold need not be the same descriptor, unless it is theirs that we took up.
        ours = (held for key, held in self._slots.items() if not self._theirs.get(key))
        told: list[Outgoing] = [partial(self._compose, held) for held in ours]
        for service, slot in self._theirs.keys() - self._slots.keys():
            told.append({"type": "drop", "service": service, "slot": slot})
        self._theirs.clear()
        return told

    def forget_theirs(self) -> None:
        """The keeper is gone: nothing is known of it."""
        self._theirs.clear()

    def taken_up(self) -> list[SlotKey]:
        """The slots whose descriptors the keeper that was met has brought."""
        return [key for key, is_new in self._theirs.items() if is_new and key in self._slots]

    def copies(self) -> list[Held]:
        """All that is held."""
        return [self.copy(key) for key in self._slots]

    def copy(self, key: SlotKey) -> Held:
        """What a slot holds."""
        held = self._slots[key]
        return msgspec.structs.replace(held, fd=os.dup(held.fd))

    def close(self) -> None:
        """Close every descriptor."""
        close_all(held.fd for held in self._slots.values())
        self._slots.clear()

    def _compose(self, held: Held) -> Composed:
        if self._slots.get((held.service, held.slot)) is not held:
            return {}, []
        message: Message = {"type": "hold", "service": held.service, "slot": held.slot}
        return {**message, "meta": held.meta}, [held.fd]


def _present(*fds: int | None) -> list[int]:
    return [fd for fd in fds if fd is not None]


def _copy(fd: int | None) -> int | None:
    return None if fd is None else os.dup(fd)


def _copies(one: int | None, other: int | None) -> tuple[int | None, int | None]:
    """Of both or, where that cannot be, of none."""
    copy = _copy(one)
    try:
        return copy, _copy(other)
    except OSError:
        close_all(_present(copy))
        raise


def _target(spec: object) -> LogTarget | None:
    try:
        return None if spec is None else msgspec.convert(spec, LogTarget)
    except (
        msgspec.ValidationError,
        UnicodeError,
    ):  # of a keeper that says more, or less, than we know
        return None


def _spec(log: LogTarget | None) -> object:
    return None if log is None else msgspec.to_builtins(log)
