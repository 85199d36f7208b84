"""Journals of released schemas still read alike: schema 1."""

import json
import runpy
from contextlib import closing
from pathlib import Path

import pytest

from registry.core.events import TYPES, Record
from registry.journal.read import open_for_reading, pages, verify

FOLDER = Path(__file__).parent
HEAD = "75992ef1ea52178d58ef0a40b8d6fb452fdf8836"


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """What journal-v1.db holds, as this version reads it."""
    with closing(open_for_reading(FOLDER / "journal-v1.db")) as journal:
        return [record for page in pages(journal) for record in page]


def test_a_journal_of_schema_1_folds_to_the_same_services_and_timeline(
    records: list[Record],
) -> None:
    answers = runpy.run_path(str(FOLDER / "make_journal_v1.py"))["answers"]
    assert answers(records) == json.loads((FOLDER / "journal-v1.json").read_text())


def test_a_journal_of_schema_1_verifies() -> None:
    with closing(open_for_reading(FOLDER / "journal-v1.db")) as journal:
        verdict = verify(journal)
    assert (verdict.trouble, verdict.seq, verdict.hash) == (None, 122, HEAD)


def test_the_journal_of_schema_1_holds_every_type_of_event_that_there_was(
    records: list[Record],
) -> None:
    assert {record.type for record in records} == set(TYPES)


def test_reading_leaves_nothing_beside_the_journal(records: list[Record]) -> None:
    assert records
    assert sorted(path.name for path in FOLDER.glob("journal-v1*")) == [
        "journal-v1.db",
        "journal-v1.json",
    ]
