"""Journals of released schemas still read alike, and those of schema 1 become such of schema 2."""

import json
import runpy
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from registry.core.events import TYPES, Record
from registry.journal import Journal
from registry.journal.opening import open_for_reading
from registry.journal.read import pages, verify

FOLDER = Path(__file__).parent
EARLIER = "journal-v1-2026-11"
"""Written before services depended on each other: its definitions lack the keys that came then."""
HEADS = {
    "journal-v1": (185, "d9086862918ea13f93d75a9b9cef629638e31976"),
    EARLIER: (122, "75992ef1ea52178d58ef0a40b8d6fb452fdf8836"),
}
HEAD_V2 = "ae27b4d2a060a7ad97cc75d045468d0783f4c06c"


def read(name: str) -> list[Record]:
    """What a journal holds, as this version reads it."""
    with closing(open_for_reading(FOLDER / f"{name}.db")) as journal:
        return [record for page in pages(journal) for record in page]


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """What journal-v1.db holds."""
    return read("journal-v1")


@pytest.mark.parametrize("name", HEADS)
def test_a_journal_of_schema_1_folds_to_the_same_services_and_timeline(name: str) -> None:
    answers = runpy.run_path(str(FOLDER / "make_journal_v1.py"))["answers"]
    assert answers(read(name)) == json.loads((FOLDER / f"{name}.json").read_text())


@pytest.mark.parametrize("name", HEADS)
def test_a_journal_of_schema_1_verifies(name: str) -> None:
    with closing(open_for_reading(FOLDER / f"{name}.db")) as journal:
        verdict = verify(journal)
    assert (verdict.trouble, (verdict.seq, verdict.hash)) == (None, HEADS[name])


def test_the_earlier_journal_has_definitions_without_the_keys_that_came_later() -> None:
    with closing(open_for_reading(FOLDER / f"{EARLIER}.db")) as journal:
        bodies = journal.execute("SELECT body FROM events WHERE type = 'defined'").fetchall()
    assert bodies
    assert not any("depends_on" in body for (body,) in bodies)


def test_the_journal_of_schema_1_holds_every_type_of_event_that_there_was(
    records: list[Record],
) -> None:
    assert {record.type for record in records} == set(TYPES) - {"journal_compacted"}


def test_a_compacted_journal_of_schema_2_is_answered_alike_and_verifies() -> None:
    answers = runpy.run_path(str(FOLDER / "make_journal_v2.py"))["answers"]
    path = FOLDER / "journal-v2.db"
    assert answers(path) == json.loads(path.with_suffix(".json").read_text())
    with closing(open_for_reading(path)) as journal:
        verdict = verify(journal)
    assert (verdict.trouble, verdict.first, verdict.anchored_by) == (None, 101, 186)
    assert (verdict.seq, verdict.hash) == (187, HEAD_V2)


@pytest.mark.parametrize("name", HEADS)
async def test_a_journal_of_schema_1_becomes_one_of_schema_2_once_it_is_written(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / "registry.db"
    shutil.copy(FOLDER / f"{name}.db", path)
    assert schema_of(path) == (1, [])
    for _ in range(2):
        journal = await Journal.open(path)
        assert (journal.seq, journal.hash, journal.anchor) == (*HEADS[name], None)
        await journal.close()
        assert schema_of(path) == (2, ["anchor"])
    with closing(open_for_reading(path)) as connection:
        assert verify(connection)[:3] == (*HEADS[name], None)
        assert [r for page in pages(connection) for r in page] == read(name)


def schema_of(path: Path) -> tuple[int, list[str]]:
    """Its version, and whether it has an anchor."""
    with closing(sqlite3.connect(path)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        named = connection.execute("SELECT name FROM sqlite_schema WHERE name = 'anchor'")
        return version, [name for (name,) in named]


def test_reading_leaves_nothing_beside_the_journal(records: list[Record]) -> None:
    assert records
    assert sorted(path.name for path in FOLDER.glob("journal-v*")) == [
        "journal-v1-2026-11.db",
        "journal-v1-2026-11.json",
        "journal-v1.db",
        "journal-v1.json",
        "journal-v2.db",
        "journal-v2.json",
    ]
