"""A journal whose last pages are damaged: what lies before is answered, then it is said what is wrong; status 1."""

from collections.abc import Callable
from pathlib import Path

import pytest

from registry.core.events import Record
from registry.questions.records import rfc3339

PAGE = 4096


@pytest.fixture
def damaged(long_journal: Path) -> Path:
    """The story, and more than a thousand of the changes of a check after it: of 5000 events the first."""
    with long_journal.open("r+b") as file:
        for page in range(
            long_journal.stat().st_size // PAGE // 2, long_journal.stat().st_size // PAGE
        ):
            file.seek(page * PAGE)
            file.write(b"\xa5" * PAGE)
    return long_journal


@pytest.fixture
def trusted(damaged: Path, replay) -> int:
    """The last event that can be."""
    answer = replay(damaged, "--verify")
    said, _, _ = answer.out.partition(" can still be trusted")
    return int(said.split()[-1])


UNTIL = "2026-01-02T03:20"
"""Within what can be read."""
QUESTIONS = [
    *(
        ["--at", "seq:115"],
        ["--at", UNTIL],
        ["--why", "seq:66"],
        ["--why", "web", "--at", "seq:115"],
    ),
    *(["--report", "--until", UNTIL], ["--history", "web", "--until", UNTIL]),
    *(["--diff", "seq:5", "seq:115"], ["--diff", "2026-01-02T03:01", UNTIL]),
    *(["--at", "seq:115", "--json"], ["--svg", "-", "--until", UNTIL]),
]


@pytest.mark.parametrize("question", QUESTIONS, ids=" ".join)
def test_what_lies_before_the_damage_is_answered_as_it_was_and_the_damage_told(
    damaged: Path, trusted: int, replay, write, story: list[Record], question: list[str]
) -> None:
    answer = replay(damaged, *question)
    assert answer.status == 1
    assert "the file cannot be read: " in answer.err
    assert f"; this is told of events 1 to {trusted}, which can still be trusted\n" in answer.err
    assert answer.out.replace(damaged.name, "a.db") == replay(write(story, "a.db"), *question).out


def test_the_timeline_goes_up_to_the_damage(
    damaged: Path, trusted: int, replay, story: list[Record]
) -> None:
    answer = replay(damaged)
    assert [int(line.split()[0]) for line in answer.out.splitlines()] == [*range(1, trusted + 1)]
    assert answer.status == 1
    assert answer.err.count("circle-replay: ") == 1
    assert replay(damaged, "--until", rfc3339(story[60].at_ns)).out.startswith("   1  2026")


@pytest.mark.parametrize(
    "question", [["--at", "seq:5000"], ["--why", "web"], ["--at", "2027-01-01 00:00"]]
)
def test_what_lies_beyond_the_damage_is_not_answered(
    damaged: Path, trusted: int, replay, question: list[str]
) -> None:
    answer = replay(damaged, *question)
    assert answer[:2] == (1, "")
    assert answer.err.endswith(f"malformed; events 1 to {trusted} can still be trusted\n")


def test_what_is_told_already_is_not_told_again(
    journal: Path, replay, change: Callable[..., None]
) -> None:
    change(journal, "UPDATE events SET body = '{' WHERE seq = 100")
    answer = replay(journal)
    assert len(answer.out.splitlines()) == 99
    assert (answer.status, answer.err.count("event 100 (")) == (1, 1)


def test_a_moment_before_a_body_that_cannot_be_read_is_answered_and_well(
    journal: Path, replay, change: Callable[..., None]
) -> None:
    change(journal, "UPDATE events SET body = '{' WHERE seq = 100")
    assert replay(journal, "--at", "seq:99").status == 0
    answer = replay(journal, "--at", "seq:100")
    assert answer[:2] == (1, "")
    assert answer.err.endswith("; events 1 to 99 can still be trusted\n")
