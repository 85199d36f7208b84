"""The recorded incident: every question in incident-answers/ is answered as it was; make_incident.py tells its story.

A question is a file there: its first line a command, the rest what the command prints. Whoever adds a question
writes the first line, has `python tests/golden/make_incident.py --answers` write the rest, and judges it.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from registry.core.events import Record
from registry.core.projection import Projection
from registry.journal.opening import open_for_reading
from registry.journal.read import fold, pages

FOLDER = Path(__file__).parent
ANSWERS = FOLDER / "incident-answers"


@pytest.fixture(scope="module")
def answer() -> Callable[[str], str]:
    """What a question is answered now."""
    answer_: Callable[[str], str] = runpy.run_path(str(FOLDER / "make_incident.py"))["answer"]
    return answer_


@pytest.mark.parametrize("name", sorted(path.stem for path in ANSWERS.iterdir()))
def test_the_incident_is_told_as_it_was(name: str, answer: Callable[[str], str]) -> None:
    question, _, expected = (ANSWERS / f"{name}.txt").read_text().partition("\n")
    assert answer(question) == expected


def test_what_was_at_every_event_of_the_incident_is_the_fold_of_those_before_it() -> None:
    with closing(open_for_reading(FOLDER / "incident.db")) as journal:
        records: list[Record] = [record for page in pages(journal) for record in page]
        projection = Projection()
        for record in records:
            projection.fold([record])
            assert fold(journal, record.seq) == projection
    assert len(records) == 256
