"""Damaged journals: opened as the daemon opens one, and read by circle-replay; and damaged rows, read one by one."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import runpy
import shutil
import sqlite3
import struct
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec

from circle_replay import cli
from registry.config import Config
from registry.core.events import TYPES, JournalCopied, Record
from registry.core.lifecycle import Reason, State
from registry.core.projection import Projection
from registry.journal import Journal, JournalDamaged, JournalError
from registry.journal.read import row_pages, verify
from registry.journal.rows import Row, to_record, to_rows
from registry.journal.schema import SELECT
from registry.questions.records import event_record, service_record
from registry.questions.timeline import line
from registry.recovery import Beginning
from tests.fuzz import script
from tests.fuzz.chunks import chance_of
from tests.fuzz.harness import Judge, Target
from tests.fuzz.mutate import Recipe

STORY = Path(__file__).parents[1] / "golden" / "make_journal_v1.py"
SUFFIXES = ("", "-wal", "-shm")
ROOM = bytes(5000)
"""What is left of the length that a WAL has from its beginning: damage is to hit what was written."""
REPLAYS: tuple[tuple[str, ...], ...] = (
    (), ("--json",), ("--at", "seq:40"), ("-s", "web", "--since", "2026-01-02T03:00:10Z"),
)  # fmt: skip
QUESTIONS = (None, None, ("--verify",), ("--verify",), *REPLAYS)
"""What is done with one input; None: it is opened, as the daemon opens it. Each costs milliseconds."""


def told() -> list[Record]:
    """Every type of event, and restarts of the registry."""
    records: list[Record] = runpy.run_path(str(STORY))["tell_story"]()
    return records


# --- whole files ----------------------------------------------------------------------------------


@contextmanager
def judging() -> Iterator[Judge]:
    """A journal that was closed in order, and one whose registry was killed: most of it is in its -wal."""
    records = told()
    rows = to_rows(records, "")
    with tempfile.TemporaryDirectory(prefix="cr-") as folder, asyncio.Runner() as runner:
        whole = [runner.run(_closed(Path(folder, "a.db"), records)), b"", b""]
        killed = runner.run(_killed(Path(folder, "b.db"), records))
        path = Path(folder, "j", "registry.db")
        # the same for all: click keeps each that it writes to
        out, err = io.StringIO(), io.StringIO()

        def judge(data: bytes) -> None:
            shutil.rmtree(path.parent, ignore_errors=True)
            path.parent.mkdir()
            chance = chance_of(data)
            damaged = script.damage(data, killed if chance.random() < 0.5 else whole)
            for suffix, part in zip(SUFFIXES, damaged, strict=True):
                if part:
                    script.put(path.with_name(path.name + suffix), part)
            question = chance.choice(QUESTIONS)
            if question is None:
                runner.run(_judge_opening(path, rows, remembered=chance.random() < 0.5))
            else:
                for stream in (out, err):
                    stream.seek(0)
                    stream.truncate()
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                    status = cli.run([str(path), *question])
                _judge_replay(question, status, err.getvalue())

        yield judge


async def _closed(path: Path, records: list[Record]) -> bytes:
    journal = await Journal.open(path, durability="normal")
    await journal.append(records)
    await journal.close()
    return path.read_bytes()


async def _killed(path: Path, records: list[Record]) -> list[bytes]:
    journal = await Journal.open(path, durability="normal")
    for begin in range(0, len(records), 20):
        await journal.append(records[begin : begin + 20])
    database, wal, index = (path.with_name(path.name + suffix).read_bytes() for suffix in SUFFIXES)
    await journal.close()
    return [database, wal.rstrip(b"\0") + ROOM, index]


def _judge_replay(question: tuple[str, ...], status: int, complaint: str) -> None:
    """What replay says of it: an answer or a sentence, and an exit status."""
    assert status in (0, 1), f"status {status}"
    if status and question != ("--verify",):
        assert "circle-replay: " in complaint, "it fails without a sentence"
    assert "Traceback" not in complaint


async def _judge_opening(path: Path, rows: list[Row], *, remembered: bool) -> None:
    """The daemon's own way in: it works, or is a JournalError; and what is set aside is all there."""
    given = SimpleNamespace(journal=SimpleNamespace(path=str(path), durability="normal"))
    beginning = Beginning(cast(Config, given))
    before = path.read_bytes() if path.exists() else b""
    try:
        if remembered:
            journal, projection = await _as_ours(beginning)
        else:
            journal, projection = await beginning.open()
    except JournalError as error:
        _judge_sentence(str(error), path)
        return
    try:
        assert projection.seq == journal.seq
        await _judge_use(journal)
    finally:
        await journal.close()
    aside = [each for each in path.parent.iterdir() if ".damaged-" in each.name]
    if aside:
        _judge_salvage(path, aside, rows, before)


def _judge_sentence(text: str, path: Path | str = "") -> None:
    assert text.strip()
    assert str(path) in text


async def _as_ours(beginning: Beginning) -> tuple[Journal, Projection]:
    """As where the file beside it says that it was ours: no database at all is damage, too."""
    try:
        return await beginning._read(is_ours=True)
    except JournalDamaged as error:
        await beginning._salvage(error)
        return await beginning._read()


async def _judge_use(journal: Journal) -> None:
    """It can be written to: what cannot be is a JournalError."""
    seq = journal.seq + 1
    event = JournalCopied(journal_id="j", source="elsewhere")
    record = Record(seq, 1, 1, seq, None, None, None, None, event)
    try:
        await journal.append([record])
        read = await journal.read(since=-1)
    except JournalError:
        return
    assert read == [record], "what was written is not what is read"


def _judge_salvage(path: Path, aside: list[Path], rows: list[Row], before: bytes) -> None:
    """All that could be trusted is kept, in a journal that verifies; the damaged one lies beside it."""
    with closing(sqlite3.connect(path)) as connection:
        kept = [row for page in row_pages(connection) for row in page][:-1]
        trouble = verify(connection).trouble
    assert trouble is None, f"what was kept does not verify: {trouble}"
    assert kept == rows[: len(kept)], "what was kept was never written"
    assert any(len(each.read_bytes()) >= len(before) for each in aside), "the damaged one is cut"


# --- single rows ----------------------------------------------------------------------------------


@contextmanager
def judging_rows() -> Iterator[Judge]:
    """Rows as a damaged file may give them: texts that were changed, columns of another type."""
    records = told()
    rows = to_rows(records, "")
    columns = SELECT.split(" FROM ")[0].count(",") + 1

    def judge(data: bytes) -> None:
        chance = chance_of(data)
        number = chance.randrange(len(rows))
        row = list(rows[number])
        which, row[which] = _column(data, columns)
        try:
            record = to_record(tuple(row))
        except JournalError as error:
            _judge_sentence(str(error))
            return
        _judge_shown(record)
        if chance.random() < FOLDED:
            _judge_fold([*records[:number], record])

    yield judge


FOLDED = 0.2
"""Part of the rows that are folded after those before them: that takes long."""
BODY = 9
_INTEGER = struct.Struct("<q")


def _column(data: bytes, columns: int) -> tuple[int, Any]:
    """Which column is changed, and to what: the first byte says that, the others are the value."""
    kind, value = (data[:1] or b"\0")[0], data[1:]
    which = (kind & 15) % columns if kind & 15 < columns else BODY
    match kind >> 4 & 7:
        case 0:
            return which, None
        case 1:
            return which, int.from_bytes(value[:8], "little", signed=True)
        case 2:
            return which, value
        case 3:
            return which, float(len(value)) / 7
        case _:
            return which, value.decode(errors="replace")


def _judge_shown(record: Record) -> None:
    """As a line of replay's timeline, and as JSON."""
    assert "\n" not in line(event_record(record), seq_width=3, service_width=6)
    msgspec.json.encode(event_record(record))


class _Told(Journal):
    """A journal that is not read from a file: what the daemon makes of these records."""

    def __init__(self, records: list[Record]) -> None:
        self.path = Path("registry.db")
        self.seq = max((record.seq for record in records), default=0)
        self.anchor = None
        self._first_ns = self._batch_first_ns = 0
        self._records = sorted(records, key=lambda record: record.seq)

    async def read(self, *, since: int = 0, **_which: Any) -> list[Record]:
        return [record for record in self._records if record.seq > since]

    async def _fold_begun(self, _last: int) -> Projection:
        return self.beginning()

    async def keep_snapshot(self, _projection: Projection, *, at_end: bool = False) -> None:
        assert not at_end


def _judge_fold(records: list[Record]) -> None:
    """As the daemon folds what it reads."""
    folding = _Told(records).fold()
    try:
        while True:
            folding.send(None)
    except StopIteration as done:
        projection: Projection = done.value
    except JournalError as error:
        _judge_sentence(str(error))
        return
    for service in projection.in_order():
        msgspec.json.encode(service_record(service, projection.services))


def recipe_of_rows() -> Recipe:
    """Bodies of every type, each for the column that a byte before it names."""
    rows = to_rows(told(), "")
    seeds = [bytes([0x40 | BODY]) + str(row[BODY]).encode() for row in rows]
    seeds += [bytes([0x40 | n]) + str(v).encode() for row in rows[:9] for n, v in enumerate(row)]
    words = [json.dumps(word).encode() for word in (*TYPES, *map(str, State), *map(str, Reason))]
    return Recipe(seeds, words)


TARGET = Target(
    "journal",
    "a damaged journal opens, or is set aside with all that can be trusted kept, or is refused in a sentence; replay"
    " answers or says why not; nothing else is raised",
    lambda: script.recipe(len(SUFFIXES)),
    judging,
)
ROWS = Target(
    "rows",
    "a row is a record that replay can show, or a JournalError; nothing else is raised",
    recipe_of_rows,
    judging_rows,
)
