"""Replay of a journal whose oldest events were removed: it says with which one it begins, and what still counts."""

from __future__ import annotations

from pathlib import Path

import pytest

COMPACTED = Path(__file__).parents[1] / "golden" / "journal-v2.db"
BEGINS = "it begins with event 101, of 2026-01-03T04:01:40.878000Z: older ones were removed"


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
    whole = replay(COMPACTED.with_name("journal-v1.db"), "--at", "seq:100")
    assert replay(COMPACTED, "--at", "seq:100")[:2] == whole[:2]


def test_of_one_service_what_it_keeps_of_before_is_shown_too(replay) -> None:
    answer = replay(COMPACTED, "-s", "cache")
    assert answer.out.startswith(
        " 70  2026-01-02T03:02:05.854Z  cache  Stopped -> Starting  start requested by uid 0"
    )
