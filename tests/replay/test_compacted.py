"""Replay of a journal whose oldest events were removed: it says with which one it begins, and what still counts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"
COMPACTED, WHOLE = Path("journal-v2.db"), Path("journal-v1.db")
BEGINS = "it begins with event 101, of 2026-01-03T04:01:40.878000Z: older ones were removed"


@pytest.fixture(autouse=True)
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both journals, to be read where nobody else looks at the folder."""
    for each in (COMPACTED, WHOLE):
        shutil.copy(GOLDEN / each, tmp_path)
    monkeypatch.chdir(tmp_path)


def test_the_timeline_says_with_which_event_it_begins(replay) -> None:
    answer = replay(COMPACTED)
    assert (answer.status, answer.err) == (0, f"{COMPACTED}: {BEGINS}\n")
    assert answer.out.startswith("101  2026-01-03T04:01:40.878Z")
    assert "78 events up to event 100 removed from the journal\n" in answer.out


def test_verification_says_from_where_on_and_who_says_with_what(replay) -> None:
    answer = replay(COMPACTED, "--verify")
    assert answer.status == 0
    assert answer.out == (
        f"journal {COMPACTED}: 87 events from event 101 on,"
        " head ae27b4d2a060a7ad97cc75d045468d0783f4c06c: intact,"
        " and what it begins with is as event 186 recorded it\n"
    )


@pytest.mark.parametrize("when", ["seq:99", "2026-01-02T03:00:00Z"])
def test_a_moment_before_is_refused_with_the_event_that_it_begins_with(replay, when) -> None:
    answer = replay(COMPACTED, "--at", when)
    assert (answer.status, answer.out) == (1, "")
    assert answer.err.endswith(f"what was before event 101 is not known: {BEGINS}\n")


def test_the_moment_with_which_it_begins_is_answered(replay) -> None:
    whole = replay(WHOLE, "--at", "seq:100")
    assert replay(COMPACTED, "--at", "seq:100")[:2] == whole[:2]


def test_of_one_service_what_it_keeps_of_before_is_shown_too(replay) -> None:
    answer = replay(COMPACTED, "-s", "cache")
    assert answer.out.startswith(
        " 70  2026-01-02T03:02:05.854Z  cache  Stopped -> Starting  start requested by uid 0"
    )


BEGAN = "2026-01-03T04:01:40.878Z"
SERVICES = ("migrate", "web", "worker", "cache", "db", "setup", "app")


@pytest.mark.parametrize(
    "question",
    [
        ("--diff", "seq:101", "seq:150"),
        *(("--why", name) for name in SERVICES),
        *(("--why", f"seq:{seq}") for seq in (110, 140, 160)),
        *(("--history", name, "--since", BEGAN) for name in ("db", "setup", "app")),
        ("--report", "--since", BEGAN, "--until", "2026-01-03T04:14:42Z"),
        ("--report", "--boot"),
        ("--failures", "--since", BEGAN),
    ],
)
def test_what_is_still_in_it_is_answered_as_if_nothing_had_been_removed(replay, question) -> None:
    answer, whole = replay(COMPACTED, *question), replay(WHOLE, *question)
    assert (answer.status, whole.status) == (0, 0)
    assert answer.out == whole.out != ""


def test_what_would_have_been_is_told_from_its_beginning_on(replay, tmp_path) -> None:
    other = tmp_path / "other.toml"
    other.write_text('[[service]]\nname = "app"\ncmd = ["./app"]\nrestart = "Never"\n')
    answer = replay(COMPACTED, "--what-if", str(other))
    assert answer.status == 0
    assert answer.out == replay(WHOLE, "--what-if", str(other), "--since", BEGAN).out
    assert f"in force from {BEGAN[:-5]}Z to " in answer.out


@pytest.mark.parametrize(
    ("question", "words"),
    [
        (("--diff", "seq:50", "seq:150"), "what was before event 101 is not known"),
        (("--why", "seq:50"), "event 101"),
    ],
)
def test_what_was_removed_is_not_guessed(replay, question, words) -> None:
    answer = replay(COMPACTED, *question)
    assert (answer.status, answer.out) == (1, "")
    assert words in answer.err


def test_pictures_begin_where_it_does(replay) -> None:
    for picture in ("--html", "--svg"):
        answer = replay(COMPACTED, picture, "-")
        assert answer.status == 0
        assert "worker" in answer.out
        assert answer.err == f"{COMPACTED}: {BEGINS}\n"
