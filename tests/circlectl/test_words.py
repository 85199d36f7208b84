"""What the words of the registry's answers are said as."""

from datetime import UTC, datetime, timedelta

import pytest

from circlectl import words
from registry.core.lifecycle import Reason
from registry.questions.reasons import REASONS

SINCE = "2026-01-02T03:04:05.678901Z"
THEN = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)


def test_every_reason_has_its_words_and_no_word_is_left_over() -> None:
    assert set(REASONS) == {reason.value for reason in Reason}


@pytest.mark.parametrize(
    ("passed_s", "said"),
    [
        (-5, "0s"),
        (0, "0s"),
        (59, "59s"),
        (125, "2m 5s"),
        (3600, "1h 0m"),
        (3 * 86400 + 4 * 3600, "3d 4h"),
    ],
)
def test_an_age_is_told_in_its_two_largest_units(passed_s: int, said: str) -> None:
    assert words.age(SINCE, THEN + timedelta(seconds=passed_s)) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (12_345_678, "12.3 MB"),
        (999_600, "1 MB"),
        (5 * 10**9, "5 GB"),
        (1234 * 10**12, "1234 TB"),
    ],
)
def test_a_size_has_three_digits_and_a_unit(count: int, said: str) -> None:
    assert words.size(count) == said


def test_a_service_that_has_no_time_has_no_age() -> None:
    assert words.age(None, THEN) == "-"


def test_a_crash_loop_tells_its_attempt_and_its_next_start(record) -> None:
    looping = record(reason="crash_looping", next_restart_at="2026-01-02T03:04:29.1Z")
    assert words.detail(looping, THEN) == "crash-looping, next in 24 s"
    assert words.detail(looping | {"attempt": 9}, THEN) == "crash-looping, attempt 9, next in 24 s"


def test_a_failed_launch_tells_its_sentence_and_not_its_kind(record) -> None:
    missing = record(reason="program_missing", message="there is no program 'x' in PATH=/bin")
    assert words.detail(missing, THEN) == "there is no program 'x' in PATH=/bin"
    taken = {"reason": "crash_looping", "next_restart_at": "2026-01-02T03:04:29.1Z"}
    taken = record(**taken, message="cannot listen at [::1]:80: Address already in use")
    said = "cannot listen at [::1]:80: Address already in use, next in 24 s"
    assert words.detail(taken, THEN) == said


def test_a_sentence_about_the_run_before_is_no_reason_of_this_one(record) -> None:
    assert words.detail(record(reason="requested", message="not ready"), THEN) == "as requested"


def test_a_restart_that_is_due_is_never_in_the_past(record) -> None:
    due = record(reason="exit_code", next_restart_at="2026-01-02T03:04:00Z")
    assert words.detail(due, THEN) == "exited with an error, next in 0 s"


def test_the_restart_limit_tells_the_way_out(record) -> None:
    limited = record("db", reason="restart_limit")
    assert words.detail(limited, THEN) == "restart limit reached; circlectl start db tries again"


def test_who_waits_says_for_whom(record) -> None:
    assert words.detail(record(waiting_for="db"), THEN) == "waiting for db"


def test_a_reason_from_a_newer_registry_is_its_own_word(record) -> None:
    assert words.detail(record(reason="moon_phase"), THEN) == "moon phase"


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        ({"exit_code": 3, "signal": None}, "exit code 3"),
        ({"exit_code": None, "signal": 9}, "killed by SIGKILL"),
        ({"exit_code": None, "signal": 200}, "killed by signal 200"),
        ({"exit_code": None, "signal": None}, "ended unseen"),
    ],
)
def test_an_exit_is_told_in_words(ended, said) -> None:
    assert words.exit_words(ended) == said


def test_control_characters_are_shown_and_never_obeyed() -> None:
    assert words.escaped("a\033[2J\n\x9b\u202eb") == r"a\x1b[2J\n\x9b\u202eb"
    assert words.escaped("gr\u00fcn") == "gr\u00fcn"


@pytest.mark.parametrize(
    ("changes", "well"),
    [
        ({}, True),
        ({"health": "unhealthy"}, False),
        ({"status": "Starting"}, True),
        ({"status": "Failed"}, False),
        ({"status": "Restarting"}, False),
        ({"status": "Stopped", "wanted": "down"}, True),
        ({"status": "Stopped", "reason": "completed"}, True),
        ({"status": "Stopped", "reason": "defined"}, False),
    ],
)
def test_well_is_who_is_where_it_is_wanted(record, changes, well) -> None:
    assert words.is_well(record(**changes)) is well


def test_a_start_by_an_apply_says_that_it_is_newly_declared(event) -> None:
    applied = {"type": "start_requested", "reason": "autostart", "dest": "Starting"}
    by = {"uid": 0, "pid": 5, "program": "circlectl"}
    assert words.event(event(7, **applied, actor=by))[-1].endswith(
        ", started, newly declared, by uid 0 (circlectl)"
    )
    assert words.event(event(7, **applied))[-1].endswith(", started as declared")


def test_an_event_tells_its_move_its_data_and_who_asked(event) -> None:
    stopped = event(
        120,
        type="stop_requested",
        source="Running",
        dest="Stopping",
        reason="requested",
        actor={"uid": 0, "pid": 5, "program": "circlectl"},
    )
    assert words.event(stopped) == [
        "120",
        "2026-01-02 03:04:05Z",
        "web",
        "stop_requested",
        "Running to Stopping, as requested, by uid 0 (circlectl)",
    ]
    exited = event(121, type="exited", dest="Failed", reason="signal", data={"signal": 9})
    assert words.event(exited)[-1] == "Starting to Failed, killed by a signal, killed by SIGKILL"
    probed = event(122, type="probe_changed", dest=None, data={"check": "http", "ok": False})
    assert words.event(probed)[-1] == "check=http, ok=no"
