"""--type, --actions, --failures: which events of the recorded incident they choose."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

INCIDENT = Path(__file__).parents[1] / "golden" / "incident.db"
ALWAYS = {"became_unhealthy", "gave_up", "spawn_failed", "lost", "start_timed_out"}


@pytest.fixture
def chosen(replay: Callable) -> Callable[..., list[dict]]:
    """The events that options choose."""

    def chosen_(*options: str) -> list[dict]:
        answer = replay(INCIDENT, "--json", *options)
        assert answer.status == 0
        return [json.loads(row) for row in answer.out.splitlines()]

    return chosen_


def _failed(event: dict) -> bool:
    if event["type"] == "exited":
        return event["source"] != "Stopping" and event["reason"] != "completed"
    return event["type"] in ALWAYS or bool(event["data"].get("lines"))


def test_types_choose_events_of_any_of_them(chosen) -> None:
    everything = chosen()
    expected = [event for event in everything if event["type"] in ("exited", "gave_up")]
    assert chosen("--type", "exited", "--type", "gave_up") == expected
    assert len({event["type"] for event in expected}) == 2


def test_actions_are_what_somebody_asked_for(chosen) -> None:
    found = chosen("--actions")
    assert found == [event for event in chosen() if event["actor"]]
    assert {event["actor"]["uid"] for event in found} == {0, 1000}


def test_failures_are_what_went_wrong_and_no_end_that_was_asked_for_or_clean(chosen) -> None:
    found = chosen("--failures")
    assert found == [event for event in chosen() if _failed(event)]
    kinds = {event["type"] for event in found}
    assert kinds == {"became_unhealthy", "exited", "gave_up", "output_ended"}
    assert not [event for event in found if event["service"] == "migrate"]


def test_several_choose_what_any_of_them_does_and_service_and_time_narrow_it(chosen) -> None:
    found = chosen("--actions", "--failures", "-s", "db", "--since", "2026-11-28T11:19:31")
    assert [
        (event["seq"], event["type"]) for event in found if event["type"] != "output_ended"
    ] == [
        (event["seq"], event["type"])
        for event in chosen("-s", "db", "--since", "2026-11-28T11:19:31")
        if event["actor"] or (_failed(event) and event["type"] != "output_ended")
    ]
    assert found


def test_beside_the_chosen_events_stand_all_lines_of_logs(replay) -> None:
    logs = INCIDENT.parent / "incident-logs"
    rows = [
        json.loads(row)
        for row in replay(INCIDENT, "--json", "--type", "gave_up", "--logs", logs).out.splitlines()
    ]
    assert {row["type"] for row in rows if "seq" in row} == {"gave_up"}
    assert sum("line" in row for row in rows) == 450


def test_a_type_that_there_is_not_is_refused_with_a_hint(replay) -> None:
    answer = replay(INCIDENT, "--type", "exitd")
    assert answer.status == 2
    assert "there is no type 'exitd'; did you mean 'exited'?" in answer.err
    assert "there are journal_created, " in replay(INCIDENT, "--type", "?").err


@pytest.mark.parametrize("option", [["--at", "seq:3"], ["--verify"], ["--report"]])
def test_they_choose_lines_of_the_timeline_only(replay, option: list[str]) -> None:
    answer = replay(INCIDENT, "--failures", *option)
    assert answer.status == 2
    assert f"{option[0]} goes without --failures" in answer.err


def test_where_nothing_is_chosen_that_is_said(replay) -> None:
    answer = replay(INCIDENT, "--type", "lost")
    assert (answer.status, answer.out) == (0, "")
    assert answer.err == "no event is of that kind, service and time\n"
