"""The journal of a running registry: appended whole or not at all, in order, read while it is written."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from registry.core import events as ev
from registry.core.lifecycle import Reason, State
from registry.journal import Journal, JournalError
from registry.journal.errors import JournalDamaged
from registry.journal.journal import WAL_BYTES_READY
from registry.journal.opening import open_for_reading
from registry.journal.read import verify
from registry.journal.rows import NO_HASH, to_rows
from registry.journal.schema import APPLICATION_ID, COLUMNS, SCHEMA_VERSION


def seqs(records):
    return [record.seq for record in records]


def verdict(path: Path) -> tuple[int, str, str | None]:
    """How far the rows at `path` can be trusted: the last number, its hash, and what is wrong."""
    connection = open_for_reading(path)
    try:
        found = verify(connection)
    finally:
        connection.close()
    return found.seq, found.hash, found.trouble


def ask(path: Path, question: str) -> list[tuple]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(question).fetchall()
    finally:
        connection.close()


# --- append and read ------------------------------------------------------------------------------


async def test_a_new_journal_is_empty_and_has_a_head(opened):
    journal = await opened()
    assert (journal.seq, journal.hash) == (0, NO_HASH)
    assert await journal.read() == []


async def test_what_is_appended_can_be_read_at_once_and_is_the_same(opened, life):
    journal = await opened()
    await journal.append(life)
    assert await journal.read() == life
    assert journal.seq == 8
    assert journal.hash == to_rows(life, NO_HASH)[-1][-1]


async def test_every_batch_follows_the_one_before(opened, path, beats):
    journal = await opened()
    await journal.append(beats(1, 1))
    await journal.append(beats(2, 3))
    await journal.append(beats(5, 1))
    assert seqs(await journal.read()) == [1, 2, 3, 4, 5]
    assert verdict(path) == (5, journal.hash, None)


async def test_an_empty_batch_changes_nothing(opened, beats):
    journal = await opened()
    await journal.append(beats(1, 2))
    head = journal.seq, journal.hash
    await journal.append([])
    assert (journal.seq, journal.hash) == head


async def test_a_thousand_records_are_one_batch(opened, path, beats):
    journal = await opened()
    records = beats(1, 1000)
    await journal.append(records)
    assert await journal.read() == records
    assert verdict(path) == (1000, journal.hash, None)


READS = [
    # arguments, the sequence numbers of 20 records, every third of them of the service `db`
    ({}, range(1, 21)),
    ({"since": 17}, [18, 19, 20]),
    ({"since": 20}, []),
    ({"since": 99}, []),
    ({"limit": 3}, [1, 2, 3]),
    ({"since": 5, "limit": 2}, [6, 7]),
    ({"limit": 0}, []),
    ({"since": -1}, [20]),
    ({"since": -3}, [18, 19, 20]),
    ({"since": -99}, range(1, 21)),
    ({"since": -9, "limit": 2}, [19, 20]),
    ({"service": "db"}, [3, 6, 9, 12, 15, 18]),
    ({"service": "db", "since": 9}, [12, 15, 18]),
    ({"service": "db", "since": -2}, [15, 18]),
    ({"service": "db", "limit": 2}, [3, 6]),
    ({"service": "nobody"}, []),
    ({"service": "db", "type": "probe_changed", "since": -1}, [18]),
    ({"type": "exited"}, []),
    ({"type": "probe_changed", "limit": 2}, [2, 3]),
]


@pytest.mark.parametrize(("arguments", "expected"), READS)
async def test_a_read_is_from_a_number_filtered_and_limited(opened, beats, arguments, expected):
    journal = await opened()
    await journal.append(
        [beats(seq, 1, "db" if seq % 3 == 0 else "web")[0] for seq in range(1, 21)]
    )
    assert seqs(await journal.read(**arguments)) == list(expected)


async def test_what_is_removed_while_it_is_read_leaves_no_hole_in_an_answer(
    opened, beats, monkeypatch
):
    journal = await opened()
    await journal.append(beats(1, 250))
    ask = journal.ask

    async def ask_and_move_the_beginning(question: str, values: tuple[object, ...] = ()) -> list:
        rows = await ask(question, values)
        journal.anchor = journal.anchor or SimpleNamespace(seq=120, kept=())
        return rows

    monkeypatch.setattr(journal, "ask", ask_and_move_the_beginning)
    assert seqs(await journal.read()) == list(range(121, 251))
    journal.anchor = None
    assert seqs(await journal.read(since=-200)) == list(range(121, 251))


async def test_names_are_compared_not_interpreted(opened, beats):
    journal = await opened()
    await journal.append(beats(1, 1))
    assert await journal.read(service="web' OR '1'='1") == []
    assert await journal.read(type="%") == []


async def test_all_of_it_is_folded_page_by_page(opened, life, beats):
    journal = await opened()
    await journal.append(life)
    await journal.append(beats(9, 2492))
    projection = await journal.fold()
    service = projection.services["web"]
    assert (projection.seq, service.run, service.pid, service.state) == (2500, 2, 42, "Starting")
    assert service.checks["beat"].seq == 2500


TEXTS = [
    "",
    "naïve ☕ 𝄞",
    "two\nlines\ttab",
    "quote ' \" \\",
    "null \0 inside",
    "\x1b[31m",
    "{}",
    "42",
]


@pytest.mark.parametrize("text", TEXTS)
async def test_any_text_comes_back_as_it_was(opened, path, beats, text):
    journal = await opened()
    error = ev.ProbeChanged(check="beat", ok=False, error=text)
    records = [*beats(1, 1), ev.Record(2, 1, 1, 1, "web", 1, None, ev.Actor(1, 2, text), error)]
    await journal.append(records)
    assert await journal.read() == records
    assert verdict(path)[2] is None


async def test_a_name_that_is_no_unicode_does_not_stop_the_journal(opened, path, beats):
    """A path or a program's name is bytes; what they decode to may hold lone surrogates."""
    journal = await opened()
    name = os.fsdecode(b"caf\xe9")
    error = ev.ProbeChanged(check="beat", ok=False, error=f"{name}: no such file")
    await journal.append(beats(1, 1))
    await journal.append([ev.Record(2, 1, 1, 1, "web", 1, None, ev.Actor(1, 2, name), error)])
    await journal.append(beats(3, 1))
    assert seqs(await journal.read()) == [1, 2, 3]
    assert verdict(path)[2] is None


# --- the head -------------------------------------------------------------------------------------


async def test_reopening_goes_on_with_number_and_hash(opened, path, beats):
    journal = await opened()
    await journal.append(beats(1, 3))
    head = journal.seq, journal.hash
    await journal.close()
    again = await opened()
    assert (again.seq, again.hash) == head
    await again.append(beats(4, 2))
    assert verdict(path) == (5, again.hash, None)


async def test_appends_from_two_tasks_are_in_order(opened, path, beats):
    journal = await opened()
    await asyncio.gather(*(journal.append(beats(first, 5)) for first in range(1, 101, 5)))
    assert journal.seq == 100
    assert verdict(path) == (100, journal.hash, None)


async def test_who_appends_with_others_goes_on_with_them(opened, beats):
    journal, rounds, commits = await opened(), 20, []
    execute = journal._writer.execute

    def counted(*statement):
        commits.append(statement)
        return execute(*statement)

    journal._writer.execute = counted
    numbers = itertools.count(1)

    async def produce():
        for _ in range(rounds):
            await journal.append(beats(next(numbers), 1))

    await asyncio.gather(*(produce() for _ in range(10)))
    assert journal.seq == 10 * rounds
    assert len(commits) <= rounds + 2  # one alone, then all of each round
    await journal.append(beats(next(numbers), 1))
    await journal.append(beats(next(numbers), 1))
    assert not journal._had_company


async def cancelled(append):
    """An append whose caller is cancelled once it has begun."""
    caller = asyncio.create_task(append)
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller


async def test_an_append_whose_caller_was_cancelled_is_written_and_followed(opened, path, beats):
    journal = await opened()
    await journal.append(beats(1, 1))
    await cancelled(journal.append(beats(2, 3)))
    await journal.append(beats(5, 1))
    assert journal.seq == 5
    assert verdict(path) == (5, journal.hash, None)


async def test_one_that_is_cancelled_while_it_follows_another_is_not_begun(opened, path, beats):
    journal = await opened()
    await cancelled(journal.append(beats(1, 2)))
    await cancelled(journal.append(beats(3, 2)))
    await journal.append(beats(3, 1))
    assert verdict(path) == (3, journal.hash, None)


async def test_what_is_cancelled_and_fails_has_not_been_appended(opened, path, beats):
    journal = await opened()
    await journal.append(beats(1, 2))
    await cancelled(journal.append(beats(2, 1)))
    await journal.append(beats(3, 1))
    assert verdict(path) == (3, journal.hash, None)


async def test_a_batch_is_there_whole_or_not_at_all(opened, path, beats):
    journal = await opened()
    await journal.append(beats(1, 3))
    head = journal.seq, journal.hash
    with pytest.raises(JournalError, match=r"^cannot write to the journal .*registry\.db: "):
        await journal.append([*beats(4, 5), *beats(2, 1)])
    assert (journal.seq, journal.hash) == head
    assert seqs(await journal.read()) == [1, 2, 3]
    await journal.append(beats(4, 5))
    assert verdict(path) == (8, journal.hash, None)


async def test_a_batch_that_failed_leaves_the_next_of_another_task_in_order(opened, path, beats):
    journal = await opened()
    await journal.append(beats(1, 1))
    results = await asyncio.gather(
        journal.append(beats(1, 1)), journal.append(beats(2, 2)), return_exceptions=True
    )
    assert [type(result) for result in results] == [JournalError, type(None)]
    assert verdict(path) == (3, journal.hash, None)


async def test_a_full_disk_is_one_sentence_and_the_same_batch_can_be_tried_again(
    opened, path, beats
):
    journal = await opened()
    await journal.append(beats(1, 1))
    (pages_now,) = next(iter(await journal._writer.execute_fetchall("PRAGMA page_count")))
    await journal._writer.execute(f"PRAGMA max_page_count = {pages_now}")
    with pytest.raises(JournalError, match="full"):
        await journal.append(beats(2, 1000))
    assert journal.seq == 1
    await journal._writer.execute("PRAGMA max_page_count = 1000000")
    await journal.append(beats(2, 1000))
    assert verdict(path) == (1001, journal.hash, None)


async def test_its_wal_has_its_length_before_anything_is_committed_and_keeps_it(
    opened, path, beats
):
    journal = await opened()
    wal = path.with_name("registry.db-wal")
    lengths = {wal.stat().st_size}
    while journal.seq < 20_000:  # some 1,600 pages: it is moved into the file meanwhile
        await journal.append(beats(journal.seq + 1, 50))
        lengths.add(wal.stat().st_size)
    assert lengths == {WAL_BYTES_READY}
    assert verdict(path) == (20_000, journal.hash, None)


async def test_without_room_for_that_it_grows_as_it_needs_to(opened, path, beats, monkeypatch):
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", full)
    journal = await opened()
    await journal.append(beats(1, 3))
    assert verdict(path) == (3, journal.hash, None)


async def test_a_head_without_a_hash_is_damage(opened, path, beats):
    """Found by `fuzz --target journal --seed 7 --from 990443 --inputs 1`, in a page that was damaged."""
    journal = await opened()
    await journal.append(beats(1, 3))
    await journal.close()
    for statement in (
        "UPDATE sqlite_schema SET sql = replace(sql, 'NOT NULL', '') WHERE name = 'events'",
        "UPDATE events SET hash = NULL WHERE seq = 3",
    ):
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA writable_schema = ON")
            assert connection.execute(statement).rowcount == 1
            connection.commit()
    with pytest.raises(JournalDamaged, match="event 3 has no hash"):
        await opened()


@pytest.mark.parametrize("since", [0, -8])
async def test_pages_that_lead_back_to_themselves_are_damage(opened, beats, monkeypatch, since):
    journal = await opened()
    await journal.append(beats(1, 10))
    ask = journal.ask

    async def ask_from_the_first_again(question: str, values: tuple[int, ...] = ()) -> list:
        return await ask(question, (5 if since == 0 else 7, *values[1:]))

    monkeypatch.setattr(journal, "ask", ask_from_the_first_again)
    with pytest.raises(JournalDamaged, match="in no order"):
        await journal.read(since=since, step=3)


async def test_a_version_that_was_damaged_is_damage(opened, path, beats):
    journal = await opened()
    await journal.append(beats(1, 3))
    await journal.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = -3")
    with pytest.raises(JournalDamaged, match=r"it names schema -3"):
        await opened()


# --- readers and the end --------------------------------------------------------------------------


async def test_a_reader_in_the_midst_of_reading_never_blocks_the_writer(opened, path, beats):
    journal = await opened()
    await journal.append(beats(1, 10))
    reader = sqlite3.connect(path, isolation_level=None)
    try:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM events").fetchone() == (10,)
        async with asyncio.timeout(3):
            await journal.append(beats(11, 10))
        assert seqs(await journal.read(since=15)) == [16, 17, 18, 19, 20]
        assert reader.execute("SELECT count(*) FROM events").fetchone() == (10,)
    finally:
        reader.close()


async def test_it_can_be_read_while_it_is_live(opened, path, beats):
    journal = await opened()
    await journal.append(beats(1, 3))
    connection = open_for_reading(path)
    try:
        assert verify(connection).seq == 3
        await journal.append(beats(4, 1))
        assert verify(connection)[:2] == (4, journal.hash)
    finally:
        connection.close()


async def test_its_reader_cannot_write(opened):
    journal = await opened()
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        await journal._reader.execute("DELETE FROM events")


async def test_closing_moves_the_wal_into_the_file(opened, path, beats):
    journal = await opened()
    await journal.append(beats(1, 100))
    wal = path.with_name("registry.db-wal")
    assert wal.stat().st_size > 0
    await journal.close()
    assert not wal.exists() or wal.stat().st_size == 0
    alone = path.with_name("copy.db")
    shutil.copy(path, alone)
    assert verdict(alone) == (100, journal.hash, None)


async def test_closing_writes_what_is_being_written_first(opened, path, beats):
    journal = await opened()
    appending = asyncio.create_task(journal.append(beats(1, 500)))
    await asyncio.sleep(0)  # it has begun
    await journal.close()
    await appending
    assert verdict(path) == (500, journal.hash, None)


@pytest.mark.parametrize(("durability", "level"), [("full", 2), ("normal", 1)])
async def test_durability_is_as_asked_for(opened, durability, level):
    journal = await opened(durability=durability)
    assert list(await journal._writer.execute_fetchall("PRAGMA synchronous")) == [(level,)]
    assert list(await journal._writer.execute_fetchall("PRAGMA journal_mode")) == [("wal",)]


WRITER = """
    import asyncio, sys
    from pathlib import Path
    from registry.core.events import JournalCopied, Record
    from registry.journal import Journal

    async def main():
        journal = await Journal.open(Path(sys.argv[1]))
        while True:
            first = journal.seq + 1
            await journal.append([
                Record(seq, 1, 1, first, None, None, None, None, JournalCopied(journal_id="x", source="x" * 500))
                for seq in range(first, first + 7)
            ])
            print(journal.seq, journal.hash, flush=True)

    asyncio.run(main())
"""


@pytest.mark.parametrize("acknowledged", [1, 20, 60])
async def test_a_writer_that_is_killed_loses_no_acknowledged_event(
    opened, path, beats, acknowledged
):
    seq, hash_ = 0, NO_HASH
    for _ in range(3):
        seq, hash_ = _write_and_be_killed(path, acknowledged)
        journal = await opened()
        assert journal.seq >= seq
        assert journal.seq % 7 == 0, "a batch is there in part"
        assert verdict(path) == (journal.seq, journal.hash, None)
        (row,) = ask(path, f"SELECT hash FROM events WHERE seq = {seq}")
        assert row == (hash_,)
        await journal.close()


def _write_and_be_killed(path: Path, acknowledged: int) -> tuple[int, str]:
    """Let another process write until so many batches are acknowledged, kill it; the last it said."""
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        said = [writer.stdout.readline() for _ in range(acknowledged)]
        writer.send_signal(signal.SIGKILL)
        said += [line for line in writer.stdout if line.endswith("\n")]
    seq, hash_ = said[-1].split()
    return int(seq), hash_


# --- what is no journal, or cannot be one ---------------------------------------------------------


def one_sentence(error: pytest.ExceptionInfo[JournalError], path: Path) -> str:
    """The text of an error, which is one line and names the file."""
    text = str(error.value)
    assert "\n" not in text
    assert str(path) in text
    assert error.value.__suppress_context__ or error.value.__context__ is None
    return text


def _other_application(path: Path, application_id: int = 0x47504B47) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(f"CREATE TABLE t (x); PRAGMA application_id = {application_id};")
    connection.close()


async def _newer(path: Path) -> None:
    await (await Journal.open(path)).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()


async def test_a_file_of_another_application_is_refused_and_left_as_it_is(opened, path):
    path.parent.mkdir()
    _other_application(path)
    before = path.read_bytes()
    with pytest.raises(JournalError) as error:
        await opened()
    assert "is not a journal" in one_sentence(error, path)
    assert path.read_bytes() == before


async def test_a_file_that_another_application_has_only_named_is_left_as_it_is(opened, path):
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.executescript("PRAGMA application_id = 7; PRAGMA user_version = 3;")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(JournalError) as error:
        await opened()
    assert "is not a journal" in one_sentence(error, path)
    assert path.read_bytes() == before


async def test_a_journal_of_a_newer_version_is_refused(opened, path):
    await _newer(path)
    with pytest.raises(JournalError) as error:
        await opened()
    text = one_sentence(error, path)
    assert f"schema {SCHEMA_VERSION + 1}" in text
    assert "use that version" in text
    with pytest.raises(JournalError, match="newer version"):
        open_for_reading(path)


async def test_a_folder_in_its_place_is_refused(opened, path):
    path.mkdir(parents=True)
    with pytest.raises(JournalError) as error:
        await opened()
    assert one_sentence(error, path).startswith(f"cannot open the journal {path}: ")


@pytest.mark.parametrize("garbage", [b"hello\n", b"\0" * 4096, os.urandom(8192)], ids=len)
async def test_garbage_is_refused_and_left_as_it_is(opened, path, garbage):
    path.parent.mkdir()
    path.write_bytes(garbage)
    with pytest.raises(JournalError) as error:
        await opened()
    one_sentence(error, path)
    assert path.read_bytes() == garbage
    with pytest.raises(JournalError):
        open_for_reading(path)


async def test_a_journal_that_was_cut_is_refused_or_found_out(path, opened, beats):
    journal = await opened()
    await journal.append(beats(1, 1000))
    await journal.close()
    whole = path.read_bytes()
    for size in (len(whole) // 2, len(whole) - 4096, 5000, 100):
        path.write_bytes(whole[:size])
        assert await _trouble_with(opened, path), f"{size} of {len(whole)} bytes pass for a journal"


async def _trouble_with(opened, path: Path) -> str | None:
    try:
        await (await opened()).close()
        return verdict(path)[2]
    except JournalError as error:
        return str(error)


async def test_an_empty_file_becomes_a_journal(path, opened, beats):
    path.parent.mkdir()
    path.touch()
    journal = await opened()
    await journal.append(beats(1, 1))
    assert verdict(path)[0] == 1


@pytest.mark.parametrize("place", ["file/registry.db", "file/deeper/registry.db"])
async def test_a_folder_that_cannot_be_made_is_one_sentence(opened, tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(JournalError) as error:
        await opened(tmp_path / place)
    one_sentence(error, tmp_path / place)


READ_ONLY = """
    import asyncio, os, sys
    from pathlib import Path
    import aiosqlite, registry.core.projection
    from registry.journal import Journal, JournalError
    if os.getuid() == 0:  # to whom nothing is read-only
        os.setgid(65534)
        os.setuid(65534)
    os.chdir(sys.argv[1])
    try:
        asyncio.run(Journal.open(Path("var/registry.db")))
    except JournalError as error:
        print(error)
"""


@pytest.mark.parametrize("there", [True, False], ids=["that exists", "to be made"])
async def test_a_read_only_folder_is_one_sentence(short_dir, there):
    folder = short_dir / "home"
    folder.mkdir()
    if there:
        (folder / "var").mkdir(mode=0o555)
    short_dir.chmod(0o755)
    folder.chmod(0o555)
    try:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(READ_ONLY), folder],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        folder.chmod(0o755)
    assert done.stderr == ""
    assert "var/registry.db" in done.stdout
    assert done.stdout.count("\n") == 1


# --- for people -----------------------------------------------------------------------------------


async def test_the_transitions_are_a_view_in_plain_words(opened, path, life):
    journal = await opened()
    await journal.append(life)
    rows = ask(path, "SELECT * FROM transitions ORDER BY seq")
    assert rows[1] == (
        *(2, "2026-01-01T00:00:02.000Z", "web", None, "start_requested"),
        *("Stopped", "Starting", "requested", 1, 1000, 77, "circlectl", None),
    )
    assert rows[4] == (
        *(6, "2026-01-01T00:00:06.000Z", "web", 1, "exited"),
        *("Running", "Failed", "exit_code", 5, None, None, None, None),
    )
    assert [row[4] for row in rows] == [r.type for r in life if r.type != "probe_changed"]


async def test_the_runs_are_a_view_with_their_ends(opened, path, life):
    journal = await opened()
    await journal.append(life)
    assert ask(path, "SELECT * FROM runs ORDER BY run") == [
        (
            *("web", 1, 41, "2026-01-01T00:00:03.000Z", "2026-01-01T00:00:06.000Z"),
            *(3.0, 3, None, "exit_code", "2026-01-01T00:00:04.000Z"),
        ),
        ("web", 2, 42, "2026-01-01T00:00:08.000Z", *(None,) * 6),
    ]


async def test_views_show_milliseconds(opened, path, life):
    journal = await opened()
    first = life[0]
    late = ev.Record(1, first.at_ns + 1_234_567, 1, 1, "web", None, None, None, first.event)
    await journal.append([late])
    assert ask(path, "SELECT at FROM transitions") == [("2026-01-01T00:00:01.001Z",)]


async def test_the_table_is_strict_and_says_whose_it_is(opened, path, life):
    journal = await opened()
    await journal.append(life)
    (sql,) = ask(path, "SELECT sql FROM sqlite_schema WHERE name = 'events'")[0]
    assert sql.rstrip().endswith("STRICT")
    assert [row[1] for row in ask(path, "PRAGMA table_info(events)")] == list(COLUMNS)
    assert ask(path, "PRAGMA application_id") == [(APPLICATION_ID,)]
    assert ask(path, "PRAGMA user_version") == [(SCHEMA_VERSION,)]
    types = ask(path, "SELECT DISTINCT typeof(seq), typeof(at_ns), typeof(mono_ns) FROM events")
    assert types == [("integer", "integer", "integer")]


async def test_the_sqlite_shell_reads_it_as_it_is(opened, path, life):
    journal = await opened()
    await journal.append(life)
    shell = shutil.which("sqlite3")
    command = [shell] if shell else [sys.executable, "-c", SHELL]
    question = "SELECT seq, type, body ->> '$.exit_code' FROM events WHERE type = 'exited'"
    done = subprocess.run([*command, path, question], capture_output=True, text=True, check=True)
    assert done.stdout == "6|exited|3\n"


SHELL = """
import sqlite3, sys
for row in sqlite3.connect(sys.argv[1]).execute(sys.argv[2]):
    print(*row, sep="|")
"""


async def test_the_rows_of_one_decision_are_grouped_by_their_column(opened, path, beats):
    journal = await opened()
    await journal.append([*beats(1, 1), *beats(2, 3), *beats(5, 2)])
    question = "SELECT decision, count(*) FROM events GROUP BY decision ORDER BY decision"
    assert ask(path, question) == [(1, 1), (2, 3), (5, 2)]


async def test_an_actor_is_readable_json_and_nobody_is_null(opened, path, life):
    journal = await opened()
    await journal.append(life)
    rows = ask(path, "SELECT actor FROM events ORDER BY seq")
    assert json.loads(rows[0][0]) == {
        **{"uid": 1000, "pid": 77, "program": "circlectl"},
        "user": None,
    }
    assert rows[2] == (None,)


# --- what verification finds ----------------------------------------------------------------------

CHANGES = {
    "seq": "seq + 100",
    "at_ns": "at_ns + 1",
    "mono_ns": "mono_ns + 1",
    "decision": "decision + 1",
    "service": "'wob'",
    "run": "run + 1",
    "type": "'became_healthy'",
    "cause": "cause + 1",
    "actor": """'{"uid":0,"pid":null,"program":null}'""",
    "body": "replace(body, 'exit_code\":3', 'exit_code\":4')",
    "hash": "replace(hash, substr(hash, 1, 1), 'g')",
}


@pytest.mark.parametrize("column", COLUMNS)
async def test_a_change_in_any_column_of_any_row_is_found(opened, path, life, column):
    journal = await opened()
    await journal.append(life)
    await journal.close()
    connection = sqlite3.connect(path)
    done = connection.execute(f"UPDATE events SET {column} = {CHANGES[column]} WHERE seq = 6")
    assert done.rowcount == 1
    connection.commit()
    connection.close()
    seq, _, trouble = verdict(path)
    assert seq == 5
    assert trouble is not None
    assert "event 6" in trouble


async def test_a_missing_row_is_found_and_a_cut_tail_shows_in_the_head(opened, path, life):
    journal = await opened()
    await journal.append(life)
    await journal.close()
    connection = sqlite3.connect(path)
    connection.execute("DELETE FROM events WHERE seq = 8")
    connection.commit()
    seq, hash_, trouble = verdict(path)
    assert (seq, trouble) == (7, None)
    assert hash_ != journal.hash
    connection.execute("DELETE FROM events WHERE seq = 4")
    connection.commit()
    connection.close()
    seq, _, trouble = verdict(path)
    assert seq == 3
    assert trouble is not None
    assert trouble.startswith("event 4 is missing")


async def test_a_move_that_no_rule_makes_is_found_though_its_hash_is_right(opened, path, life):
    journal = await opened()
    event = ev.Exited(source=State.STOPPED, dest=State.RUNNING, reason=Reason.EXIT_CODE)
    await journal.append([*life[:2], ev.Record(3, 1, 1, 3, "web", 1, None, None, event)])
    assert verdict(path)[2] == "event 3: no rule leads from Stopped to Running by exited"


async def test_a_type_that_this_version_does_not_know_is_one_sentence(opened, path, life):
    journal = await opened()
    await journal.append(life[:2])
    await journal.close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE events SET type = 'danced' WHERE seq = 2")
    connection.commit()
    connection.close()
    again = await opened()
    with pytest.raises(JournalError, match="event 2 is of the type 'danced'"):
        await again.read()


# --- reading other people's copies ------------------------------------------------------------------


async def test_a_copy_with_its_wal_is_whole(opened, path, beats, tmp_path):
    journal = await opened()
    await journal.append(beats(1, 50))
    copy = tmp_path / "copy.db"
    shutil.copy(path, copy)
    shutil.copy(path.with_name("registry.db-wal"), tmp_path / "copy.db-wal")
    assert verdict(copy) == (50, journal.hash, None)


async def test_reading_changes_nothing_in_the_file(opened, path, beats):
    journal = await opened()
    await journal.append(beats(1, 50))
    await journal.close()
    before = path.read_bytes()
    verdict(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["missing", "a folder", "another application"])
def test_what_is_no_journal_is_refused_in_one_sentence(path, kind):
    path.parent.mkdir()
    if kind == "a folder":
        path.mkdir()
    elif kind == "another application":
        _other_application(path)
    with pytest.raises(JournalError) as error:
        open_for_reading(path)
    one_sentence(error, path)
