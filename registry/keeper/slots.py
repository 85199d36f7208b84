"""Slots: the descriptors that are held for a service over all its runs, and the reading of its notes.

They are the daemon's: nothing is done with them but to give them back, except that the notification
sockets are read while no daemon does. A socket that cannot be read is held all the same.
Standard library only: the keeper, which imports this, must stay small.
"""

from __future__ import annotations

import os
import selectors
from collections.abc import Callable, Iterator
from functools import partial

from registry.keeper.notes import Note, Notes
from registry.keeper.protocol import NOTIFY, Message, SlotKey
from registry.passed import close_all

Composed = tuple[Message, list[int]]
"""A message and its descriptors; an empty message is not sent."""


class Slots:
    """All slots of all services; `selector` calls what reads them, `say` hears of trouble."""

    def __init__(self, selector: selectors.BaseSelector, say: Callable[[str], None]) -> None:
        self._selector = selector
        self._say = say
        self._slots: dict[SlotKey, tuple[int, str]] = {}
        self._notes = Notes(say)
        self._is_reading = False

    def __bool__(self) -> bool:
        """Whether anything is held."""
        return bool(self._slots)

    def hold(self, key: SlotKey, meta: str, fds: list[int]) -> None:
        """Hold the one descriptor that `fds` ought to be, in place of what the slot had."""
        if len(fds) != 1:
            self._say(f"ignored a slot of {key[0]} that came with {len(fds)} descriptors")
            close_all(fds)
            return
        self._close(key)
        self._slots[key] = fds[0], meta
        if self._is_reading:
            self._listen_to(key)

    def drop(self, key: SlotKey) -> None:
        """It is needed no more, nor is what was said on it."""
        self._close(key)
        if key[1] == NOTIFY:
            self._notes.forget(key[0])

    def noted(self, at_ns: int) -> None:
        """A daemon has committed the notes up to this moment."""
        self._notes.forget_until(at_ns)

    def read(self, wanted: bool) -> None:
        """Read the notification sockets from now on, or leave them to the daemon."""
        if wanted == self._is_reading:
            return
        self._is_reading = wanted
        for key in self._slots:
            if wanted:
                self._listen_to(key)
            else:
                self._ignore(key)

    def composers(self) -> Iterator[Callable[[], Composed]]:
        """What a daemon that connects is sent: each makes its message as things are by then."""
        for key in self._slots:
            yield partial(self._compose_slot, key)
        for note in self._notes.in_order():
            yield partial(self._compose_note, note)

    def _compose_slot(self, key: SlotKey) -> Composed:
        if key not in self._slots:
            return {}, []
        fd, meta = self._slots[key]
        return {"type": "held", "service": key[0], "slot": key[1], "meta": meta}, [fd]

    def _compose_note(self, note: Note) -> Composed:
        if not self._notes.has(note):
            return {}, []
        message: Message = {"type": "note", "service": note.service, "pid": note.pid}
        message.update(uid=note.uid, session=note.session, at_mono_ns=note.at_ns)
        return {**message, "text": note.text.decode("latin-1")}, note.fds

    def _listen_to(self, key: SlotKey) -> None:
        if key[1] != NOTIFY:
            return
        try:
            self._selector.register(
                self._slots[key][0], selectors.EVENT_READ, partial(self._read, key)
            )
        except (OSError, ValueError) as error:
            self._say(f"cannot read the notifications of {key[0]}: {error}")

    def _read(self, key: SlotKey) -> None:
        # The daemon may have come, or the slot gone, in the turn in which the kernel reported it.
        if not self._is_reading or key not in self._slots:
            return
        try:
            self._notes.read(key[0], self._slots[key][0])
        except OSError as error:
            self._say(f"cannot read the notifications of {key[0]}: {error}")
            self._ignore(key)

    def _ignore(self, key: SlotKey) -> None:
        fd = self._slots[key][0]
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def _close(self, key: SlotKey) -> None:
        if key in self._slots:
            self._ignore(key)
            os.close(self._slots.pop(key)[0])
