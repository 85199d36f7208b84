"""--verify: every change shows, what comes before it can still be trusted, a head shows the rest."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from registry.core.events import Record
from registry.core.lifecycle import State
from registry.journal import JournalError
from registry.journal.opening import open_for_reading
from registry.journal.read import pages, verify
from registry.journal.rows import chain_hash
from registry.journal.schema import COLUMNS

BIT = 1


def _one_byte_changed(value: object, byte: int = -1) -> object:
    match value:
        case None:
            return "x"
        case int():
            return value ^ BIT
        case str():
            changed = bytearray(value.encode())
            changed[byte] ^= BIT
            return changed.decode()
    raise TypeError(value)


def _hashes(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [hash_ for (hash_,) in connection.execute("SELECT hash FROM events ORDER BY seq")]


@pytest.mark.parametrize("column", COLUMNS)
def test_one_changed_byte_in_any_row_of_a_column_shows_at_that_row(
    journal: Path, column: str
) -> None:
    with closing(sqlite3.connect(journal, isolation_level=None)) as connection:
        rows = connection.execute(f"SELECT seq, {column} FROM events ORDER BY seq").fetchall()
        for seq, value in rows:
            changed = (
                1 if value is None and column in ("run", "cause") else _one_byte_changed(value)
            )
            connection.execute("BEGIN")
            # two rows never have one number: a taken one is swapped
            connection.execute(
                "UPDATE events SET seq = -1 WHERE seq = ? AND ? = 'seq'", (changed, column)
            )
            connection.execute(f"UPDATE events SET {column} = ? WHERE seq = ?", (changed, seq))
            verdict = verify(connection)
            connection.execute("ROLLBACK")
            assert verdict.trouble is not None, (seq, value, changed)
            assert verdict.seq <= seq - 1
            if column != "seq":
                assert verdict.seq == seq - 1
        assert verify(connection).trouble is None


def test_each_byte_of_a_text_counts(journal: Path) -> None:
    with closing(sqlite3.connect(journal, isolation_level=None)) as connection:
        (text,) = connection.execute("SELECT body FROM events WHERE seq = 12").fetchone()
        for byte in range(len(text)):
            connection.execute("BEGIN")
            changed = _one_byte_changed(text, byte)
            connection.execute("UPDATE events SET body = ? WHERE seq = 12", (changed,))
            assert verify(connection).seq == 11
            connection.execute("ROLLBACK")


def test_a_change_is_told_with_what_can_still_be_trusted(journal: Path, replay, change) -> None:
    change(journal, "UPDATE events SET actor = replace(actor, '4711', '4712') WHERE seq = 66")
    answer = replay("--verify", journal)
    assert answer.status == 1
    assert answer.out == (
        f"journal {journal}: event 66 was changed: its hash does not match its row and the one before;"
        " events 1 to 65 can still be trusted\n"
    )


@pytest.mark.parametrize(
    ("statements", "sentence"),
    [
        (["DELETE FROM events WHERE seq = 40"], "event 40 is missing: what comes next is event 41"),
        (["DELETE FROM events WHERE seq = 1"], "event 1 is missing: what comes next is event 2"),
        (
            [
                "UPDATE events SET seq = -1 WHERE seq = 40",
                "UPDATE events SET seq = 40 WHERE seq = 41",
                "UPDATE events SET seq = 41 WHERE seq = -1",
            ],
            "event 40 was changed",
        ),
        (
            [
                "DELETE FROM events WHERE seq = 40",
                "UPDATE events SET seq = seq - 1000000 WHERE seq > 40",
                "UPDATE events SET seq = seq + 999999 WHERE seq < 0",
            ],
            "event 40 was changed",
        ),
        (
            [
                "INSERT INTO events SELECT 0, at_ns, mono_ns, decision, service, run, type, cause,"
                " actor, body, hash FROM events WHERE seq = 1"
            ],
            "a row has the number 0, and numbers begin with 1; no event can be trusted",
        ),
        (
            ["UPDATE events SET body = CAST(x'ff' AS TEXT) WHERE seq = 40"],
            "after event 39 the file",
        ),
        (["DROP TABLE events"], "the file cannot be read: no such table: events"),
    ],
)
def test_rows_removed_swapped_moved_or_put_in_show(
    journal: Path, replay, change, statements: list[str], sentence: str
) -> None:
    change(journal, *statements)
    answer = replay("--verify", journal)
    assert answer.status == 1
    assert sentence in answer.out + answer.err
    assert "Traceback" not in answer.err


def test_a_whole_journal_is_intact_and_says_its_head(journal: Path, replay) -> None:
    head = _hashes(journal)[-1]
    assert replay("--verify", journal)[:2] == (
        0,
        f"journal {journal}: 185 events, head {head}: intact\n",
    )


@pytest.mark.parametrize("seq", [1, 40, 185])
def test_a_head_noted_earlier_is_found(journal: Path, replay, seq: int) -> None:
    noted = _hashes(journal)[seq - 1]
    answer = replay("--verify", "--head", noted.upper(), journal)
    assert answer.status == 0
    assert answer.out.endswith(f": intact; {noted} is event {seq}\n")


def test_a_cut_tail_shows_by_the_head(journal: Path, replay, change) -> None:
    noted = _hashes(journal)[-1]
    change(journal, "DELETE FROM events WHERE seq > 110")
    assert replay("--verify", journal).status == 0
    answer = replay("--verify", "--head", noted, journal)
    assert answer.status == 1
    assert f"110 events, head {_hashes(journal)[-1]}: no event has the hash {noted}" in answer.out


def test_a_rewrite_of_everything_shows_by_the_head(write, story: list[Record], replay) -> None:
    noted = _hashes(write(story, "original.db"))[-1]
    rewritten = write([msgspec.structs.replace(story[0], at_ns=1), *story[1:]])
    assert replay("--verify", rewritten).status == 0
    assert replay("--verify", "--head", noted, rewritten).status == 1


def test_a_head_before_a_change_is_told_too(journal: Path, replay, change) -> None:
    hashes = _hashes(journal)
    change(journal, "UPDATE events SET cause = 1 WHERE seq = 60")
    before, after = (replay("--verify", "--head", hashes[seq - 1], journal) for seq in (50, 70))
    assert before.status == after.status == 1
    assert before.out.endswith(f"events 1 to 59 can still be trusted; {hashes[49]} is event 50\n")
    assert after.out.endswith(f"can still be trusted, and none of them has the hash {hashes[69]}\n")


def test_a_move_that_no_rule_allows_shows_in_an_unbroken_chain(write, story: list[Record]) -> None:
    odd = [*story]
    event = msgspec.structs.replace(odd[23].event, source=State.STOPPED)
    odd[23] = msgspec.structs.replace(odd[23], event=event)
    with closing(open_for_reading(write(odd))) as journal:
        assert (
            verify(journal).trouble
            == "event 24: no rule leads from Stopped to Running by became_ready"
        )


@pytest.mark.parametrize("cause", [139, 140, 185])
def test_a_cause_that_comes_no_earlier_shows(write, story: list[Record], cause: int) -> None:
    odd = [*story]
    odd[138] = msgspec.structs.replace(odd[138], cause=cause)
    with closing(open_for_reading(write(odd))) as journal:
        trouble = f"event 139 names event {cause} as its cause, which is not before it"
        assert verify(journal)[::2] == (138, trouble, 1)


@pytest.fixture
def haunted(write, story: list[Record]) -> Path:
    """An unbroken chain in which event 139, an end of a run, is of a service that there never was."""
    odd = [*story]
    odd[138] = msgspec.structs.replace(odd[138], service="ghost")
    return write(odd)


def test_an_event_that_does_not_follow_shows_in_an_unbroken_chain(haunted: Path, replay) -> None:
    answer = replay(haunted, "--verify")
    assert answer.status == 1
    assert answer.out.endswith(
        ": event 139 does not follow from those before it; events 1 to 138 can still be trusted\n"
    )


SERVICES = Path(__file__).parents[2] / "etc" / "services.toml"


@pytest.mark.parametrize(
    "question",
    [
        *(["--report"], ["--report", "--boot"], ["--history", "ghost"], ["--what-if", SERVICES]),
        *(["--why", "ghost"], ["--at", "seq:139"], ["--svg", "-"]),
    ],
)
def test_a_question_that_leads_to_it_ends_in_a_sentence(
    haunted: Path, replay, question: list[object]
) -> None:
    answer = replay(haunted, *question)
    assert answer[:2] == (1, "")
    assert answer.err.endswith(
        f"{haunted}: event 139 does not follow from those before it; --verify says more\n"
    )


def test_a_type_of_a_newer_version_shows(journal: Path, replay) -> None:
    with closing(sqlite3.connect(journal)) as connection, connection:
        rows = connection.execute("SELECT * FROM events ORDER BY seq").fetchall()
        row = (186, 1, 1, 186, None, None, "moon_rose", None, None, "{}")
        connection.execute(
            f"INSERT INTO events VALUES ({', '.join('?' * 11)})",
            (*row, chain_hash(rows[-1][-1], row)),
        )
    answer = replay("--verify", journal)
    assert answer.status == 1
    assert "event 186 is of the type 'moon_rose'" in answer.out
    assert "events 1 to 185 can still be trusted" in answer.out


def test_an_index_that_lies_shows(journal: Path, replay, change) -> None:
    change(
        journal,
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_schema SET sql = replace(sql, 'service, seq', 'type, seq') WHERE type = 'index'",
    )
    answer = replay("--verify", journal)
    assert answer.status == 1
    assert "beside the events SQLite finds damage" in answer.out
    assert "events 1 to 185 can still be trusted" in answer.out


@pytest.mark.timeout(120)
def test_no_byte_of_the_file_changes_an_event_unseen(
    journal: Path, tmp_path: Path, story: list[Record]
) -> None:
    original, damaged = journal.read_bytes(), tmp_path / "damaged.db"
    seen = 0
    for offset in range(0, len(original), 101):
        shutil.copyfile(journal, damaged)
        with damaged.open("r+b") as file:
            file.seek(offset)
            file.write(bytes([original[offset] ^ BIT]))
        try:
            with closing(open_for_reading(damaged)) as connection:
                if verify(connection).trouble is None:
                    assert [r for page in pages(connection) for r in page] == story, offset
                    continue
        except JournalError:
            pass
        seen += 1
    assert seen > 50


def test_an_empty_journal_is_intact(write, replay) -> None:
    path = write([])
    assert replay("--verify", path)[:2] == (0, f"journal {path}: 0 events, head none: intact\n")
