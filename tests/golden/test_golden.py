"""Journals of released schemas still read alike: schema 1."""

import json
import runpy
from contextlib import closing
from pathlib import Path

import pytest

from registry.core.events import TYPES, Record
from registry.journal.read import open_for_reading, pages, verify

FOLDER = Path(__file__).parent
EARLIER = "journal-v1-2026-11"
"""Written before services depended on each other: its definitions lack the keys that came then."""
HEADS = {
    "journal-v1": (185, "d9086862918ea13f93d75a9b9cef629638e31976"),
    EARLIER: (122, "75992ef1ea52178d58ef0a40b8d6fb452fdf8836"),
}


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
    assert {record.type for record in records} == set(TYPES)


def test_reading_leaves_nothing_beside_the_journal(records: list[Record]) -> None:
    assert records
    assert sorted(path.name for path in FOLDER.glob("journal-v1*")) == [
        "journal-v1-2026-11.db",
        "journal-v1-2026-11.json",
        "journal-v1.db",
        "journal-v1.json",
    ]
