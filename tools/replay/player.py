"""What happened, played again: seconds that pass and keys go in, frames come out. Knows neither clock nor terminal."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from registry.core.events import Record
from registry.core.projection import Projection
from registry.core.service import Service
from registry.journal import JournalError, snapshots
from registry.journal.opening import Connection
from registry.journal.read import (
    Selection,
    fold,
    last_seq,
    last_seq_at,
    latest,
    pages,
    service_names,
)
from registry.questions.moments import AT_EXAMPLES, at
from registry.questions.records import event_record, rfc3339, service_record
from registry.questions.spoken import span
from registry.questions.timeline import line, printable

_NS = 1_000_000_000
EVERY = 1000
"""Events between two folds that are kept: so many are folded to step back at most."""
_BACKLOG = 10 * EVERY
_KEPT_MAX = 256
_BLOCKS_MAX = 3

SPEED_MIN, SPEED_MAX = 0.01, 1e9
GAP_S = 2.0
"""Seconds of the spectator's time that an idle gap takes at most."""
_AT_ONCE_MAX = 5000
_SPOKEN_FOR_S = 4.0
_RECENT = 100


class Row(NamedTuple):
    """A row of a frame; the styles are those of terminal.py, which cuts the text where the row ends."""

    style: str
    text: str


Frame = list[Row]

_KEYS = "space pause  left/right an event  up/down speed  / go to  q quit"
_KEYS_SHORT = "space left right up down / q"


class History:
    """The state after any event of a journal; what was folded is kept here and there to come back to."""

    def __init__(self, journal: Connection) -> None:
        self.journal = journal
        self.last = last_seq(journal)
        self.first = next((page[0].seq for page in pages(journal, Selection(last=self.last))), 1)
        self._kept: dict[int, bytes] = {}
        self._blocks: dict[int, dict[int, Record]] = {}
        self._troubles: dict[int, JournalError] = {}

    def record(self, seq: int) -> Record | None:
        """Event number `seq`; None where there is none. Raises JournalError where it cannot be read."""
        floor = (seq - 1) // EVERY * EVERY
        found = self._block(floor).get(seq)
        if found is None and floor in self._troubles:
            raise self._troubles[floor]
        return found

    def state(self, seq: int) -> Projection:
        """The fold of everything up to event `seq`. Raises JournalError."""
        floor = max(seq // EVERY * EVERY, self.first - 1)
        projection = self._base(floor)
        self.advance(projection, seq)
        return projection

    def _base(self, floor: int) -> Projection:
        near = max((seq for seq in self._kept if floor - _BACKLOG <= seq <= floor), default=None)
        projection = snapshots.decode(self._kept[near]) if near is not None else None
        if projection is None:
            projection = fold(self.journal, max(floor - _BACKLOG, self.first - 1))
        while projection.seq < floor:
            self.advance(projection, min(projection.seq // EVERY * EVERY + EVERY, floor))
            self._keep(projection)
        return projection

    def advance(self, projection: Projection, seq: int) -> None:
        """Fold on, up to event `seq`. Raises JournalError."""
        while projection.seq < seq:
            following = projection.seq + 1
            if self.record(following) is None:
                raise JournalError(f"event {following} is missing; --verify says more")
            block = self._block((following - 1) // EVERY * EVERY)
            records = [block[n] for n in range(following, seq + 1) if n in block]
            try:
                projection.fold(records)
            except (KeyError, AssertionError):  # no registry wrote this
                raise JournalError(
                    f"event {projection.seq + 1} does not follow from those before it;"
                    " --verify says more"
                ) from None

    def _keep(self, projection: Projection) -> None:
        self._kept[projection.seq] = snapshots.encode(projection)
        if len(self._kept) > _KEPT_MAX:
            del self._kept[next(iter(self._kept))]

    def _block(self, floor: int) -> dict[int, Record]:
        if floor not in self._blocks:
            last = min(floor + EVERY, self.last)
            block = self._blocks[floor] = {}
            try:
                for page in pages(self.journal, Selection(after=floor, last=last)):
                    block.update((record.seq, record) for record in page)
            except JournalError as error:  # what is readable before it can be played
                self._troubles[floor] = error
            if len(self._blocks) > _BLOCKS_MAX:
                del self._blocks[next(iter(self._blocks))]
        return self._blocks[floor]


class Player:
    """A place in a journal, and how fast it moves: `at_ns` is the moment that is shown, after event `seq`."""

    def __init__(
        self,
        journal: Connection,
        speed: float,
        services: Sequence[str] = (),
        start: int | None = None,
    ) -> None:
        self._history = History(journal)
        self._services = tuple(services)
        self._seq_width = len(str(self._history.last))
        self._name_width = max(map(len, services or service_names(journal)), default=1)
        self._recent: deque[Record] = deque(maxlen=_RECENT)
        self._note, self._note_s = "", 0.0
        self._entry: str | None = None
        self.speed = speed
        self.paused = False
        self.over = False
        self.at_ns = 0
        self.state = Projection()
        self._go(self._history.first if start is None else start)

    @property
    def seq(self) -> int:
        """The number of the last event that has happened."""
        return self.state.seq

    @property
    def is_moving(self) -> bool:
        """Whether anything changes without a key."""
        return not self.paused or bool(self._note)

    # --- time -------------------------------------------------------------------------------------

    def tick(self, elapsed_s: float) -> None:
        """So many seconds have passed for whoever looks."""
        self._note_s -= elapsed_s
        if self._note_s <= 0:
            self._note = ""
        if self.paused or self._entry is not None:
            return
        try:
            self._pass(int(elapsed_s * self.speed * _NS))
        except JournalError as error:
            self._stop_at(error)

    def _pass(self, left_ns: int) -> None:
        for _ in range(_AT_ONCE_MAX):
            following = (
                self._history.record(self.seq + 1) if self.seq < self._history.last else None
            )
            if following is None:
                self.paused = True
                self._say("the end: no later event is in the journal")
                return
            wait_ns = max(0, following.at_ns - self.at_ns)
            if wait_ns > left_ns:
                self.at_ns += left_ns
                self._shorten(following)
                return
            left_ns -= wait_ns
            self._apply(following)

    def _shorten(self, following: Record) -> None:
        """Nobody wants to look at nothing for long."""
        idle_ns = following.at_ns - self.at_ns
        shown_ns = int(GAP_S / 2 * self.speed * _NS)
        if idle_ns > int(GAP_S * self.speed * _NS):
            self.at_ns = following.at_ns - shown_ns
            self._say(f"nothing happened for {span((idle_ns - shown_ns) / _NS)}: passed over")

    def _apply(self, record: Record) -> None:
        if record.at_ns < self.at_ns - _NS:
            self._say(f"the clock was set back by {span((self.at_ns - record.at_ns) / _NS)}")
        self._history.advance(self.state, record.seq)
        self.at_ns = record.at_ns
        if not self._services or record.service in self._services:
            self._recent.append(record)

    def _say(self, text: str) -> None:
        self._note, self._note_s = text, _SPOKEN_FOR_S

    def _stop_at(self, error: JournalError) -> None:
        self.paused = True
        self._say(str(error))

    # --- keys -------------------------------------------------------------------------------------

    def key(self, name: str) -> None:
        """A key was pressed: its character, or a name such as `left`."""
        try:
            if self._entry is not None:
                self._type(name)
            elif action := _ACTIONS.get(name):
                self._note = ""
                action(self)
        except JournalError as error:
            self._stop_at(error)

    def _quit(self) -> None:
        self.over = True

    def _toggle(self) -> None:
        self.paused = not self.paused

    def _faster(self) -> None:
        self.speed = min(self.speed * 2, SPEED_MAX)

    def _slower(self) -> None:
        self.speed = max(self.speed / 2, SPEED_MIN)

    def _step(self) -> None:
        self.paused = True
        found = pages(
            self._history.journal,
            Selection(after=self.seq, last=self._history.last, services=self._services),
        )
        following = next((page[0].seq for page in found), None)
        if following is None:
            self._say("no later event is in the journal")
            return
        while self.seq < following and (record := self._history.record(self.seq + 1)):
            self._apply(record)

    def _step_back(self) -> None:
        self.paused = True
        before = Selection(
            after=self._history.first - 1, last=self.seq - 1, services=self._services
        )
        found = latest(self._history.journal, before, 1)
        if found:
            self._go(found[0].seq)
        else:
            self._say("no earlier event is in the journal")

    def _to_first(self) -> None:
        self._go(self._history.first)

    def _to_last(self) -> None:
        self.paused = True
        self._history.last = last_seq(self._history.journal)
        self._go(self._history.last)

    def _begin_entry(self) -> None:
        self._entry = ""

    def _type(self, name: str) -> None:
        entry = self._entry or ""
        if name == "enter":
            self._entry = None
            self._go_to(entry)
        elif name == "escape":
            self._entry = None
        elif name == "backspace":
            self._entry = entry[:-1]
        elif len(name) == 1 and name.isprintable():
            self._entry = entry + name

    def _go_to(self, text: str) -> None:
        """Where somebody wants to go: a number, or a time as of the day that is shown."""
        if not text.strip():
            return
        found = int(text[:18]) if text.isascii() and text.isdecimal() else at(text, self.at_ns)
        if found is None:
            self._say(f"{text!r} is not a time; write for example {AT_EXAMPLES}, 57")
            return
        seq = found if isinstance(found, int) else last_seq_at(self._history.journal, found.last_ns)
        if not self._history.first <= seq <= self._history.last:
            self._say(f"the journal has events {self._history.first} to {self._history.last}")
        self._go(seq)
        if not isinstance(found, int) and self.seq == seq:
            self.at_ns = max(self.at_ns, min(found.first_ns, self._history_end_ns()))

    def _history_end_ns(self) -> int:
        last = self._history.record(self._history.last)
        return last.at_ns if last else self.at_ns

    def _go(self, seq: int) -> None:
        seq = max(self._history.first, min(seq, self._history.last))
        self.state = self._history.state(seq)
        record = self._history.record(seq)
        self.at_ns = record.at_ns if record else 0
        begin = Selection(after=self._history.first - 1, last=seq, services=self._services)
        self._recent = deque(latest(self._history.journal, begin, _RECENT), maxlen=_RECENT)

    # --- frames -----------------------------------------------------------------------------------

    def frame(self, columns: int, rows: int) -> Frame:
        """What is to be seen, no larger than so many columns (in characters) and rows."""
        head = [self._title(columns), Row("dim", self._bar(columns))]
        last = [self._prompt(columns)]
        room = max(0, rows - len(head) - len(last))
        table = list(self._table(columns, max(0, room - max(3, room // 3))))
        room -= len(table)
        told = [Row("", text) for text in self._events(max(0, room), columns)]
        blank = [Row("", "")] * max(0, room - len(told))
        frame = [*head, *table, *told, *blank]
        return [*frame[: max(0, rows - 1)], *last][:rows]

    def _title(self, columns: int) -> Row:
        at_ = f"{rfc3339(self.at_ns)[:23].replace('T', ' ')}Z"
        how = "paused" if self.paused else f"{self.speed:g}x"
        where = f"event {self.seq} of {self._history.last}"
        idle = "  no registry running" if self.state.orderly and self.seq else ""
        long = f"{at_}  {how}  {where}{idle}"
        return Row("bold", long if len(long) <= columns else f"{at_[11:19]} {how} {self.seq}")

    def _bar(self, columns: int) -> str:
        inside = max(1, columns - 2)
        total = max(1, self._history.last - self._history.first)
        done = (self.seq - self._history.first) * (inside - 1) // total
        return f"[{'=' * done}>{'-' * (inside - done - 1)}]"

    def _prompt(self, columns: int) -> Row:
        if self._entry is not None:
            return Row("bold", f"go to (time, seq:N, a number): {self._entry}_")
        if self._note:
            return Row("bold", self._note)
        return Row("dim", _KEYS if len(_KEYS) <= columns else _KEYS_SHORT)

    def _events(self, count: int, columns: int) -> Iterator[str]:
        for record in list(self._recent)[-count:] if count else ():
            event = event_record(record)
            text = line(event, seq_width=self._seq_width, service_width=self._name_width)
            yield text if columns >= _DATED_MIN else text.replace(event.at[:11], "", 1)

    def _table(self, columns: int, room: int) -> Iterator[Row]:
        """The services, and a line between them and the events; where they are too many, those that moved last."""
        services = [
            each
            for each in self.state.in_order()
            if not self._services or each.name in self._services
        ]
        if room < 3 or not services:
            return
        shown = services
        if len(services) > room - 2:
            moved = sorted(services, key=lambda each: each.cause or 0)[-max(1, room - 3) :]
            names = {each.name for each in moved}
            shown = [each for each in services if each.name in names]
        header, *lines = self._rows(shown, columns)
        yield header
        yield from lines
        left = len(services) - len(shown)
        if left:
            yield Row("dim", f"and {left} more, in which nothing moved since")
        yield Row("dim", "-" * columns)

    def _rows(self, services: Sequence[Service], columns: int) -> list[Row]:
        cells = [_HEADER, *(self._cells(each) for each in services)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(_HEADER))]
        kept = _columns_that_fit(widths, columns)
        texts = ["  ".join(f"{row[i]:<{widths[i]}}" for i in kept).rstrip() for row in cells]
        styles = ["dim", *(each.state.value for each in services)]
        return [Row(style, text) for style, text in zip(styles, texts, strict=True)]

    def _cells(self, service: Service) -> tuple[str, ...]:
        record = service_record(service, self.state.services)
        waits = f"waiting for {record.waiting_for}" if record.waiting_for else None
        since_s = (self.at_ns - service.since_ns) / _NS if service.since_ns else None
        return (
            record.name,
            record.status,
            record.health or "-",
            str(record.pid or "-"),
            str(record.restarts),
            span(max(0.0, float(int(since_s)))) if since_s is not None else "-",
            printable(waits or record.message or record.reason.replace("_", " ")),
        )


_HEADER = ("NAME", "STATUS", "HEALTH", "PID", "RESTARTS", "SINCE", "DETAIL")
_FIRST_TO_GO = (3, 4, 2, 5)
_DETAIL_MIN = 12
_DATED_MIN = 100
"""In fewer columns an event has no date: the title has one."""


def _columns_that_fit(widths: Sequence[int], columns: int) -> list[int]:
    """Without those that tell least, until some of the detail can be read."""
    kept = list(range(len(widths)))
    for number in _FIRST_TO_GO:
        used = sum(widths[i] + 2 for i in kept[:-1])
        if used + min(widths[-1], _DETAIL_MIN) <= columns:
            break
        kept.remove(number)
    return kept


_ACTIONS: dict[str, Callable[[Player], None]] = {
    " ": Player._toggle,
    "left": Player._step_back,
    "right": Player._step,
    "up": Player._faster,
    "down": Player._slower,
    "home": Player._to_first,
    "end": Player._to_last,
    "/": Player._begin_entry,
    "g": Player._begin_entry,
    "q": Player._quit,
}
