"""history, diff and report: what they ask for, and what a person is shown of the answers."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from registry.questions.boot import Boot, Link, ServiceStart
from registry.questions.difference import Difference, Moment, ServiceChange
from registry.questions.history import By, History, Run
from registry.questions.records import EventRecord
from registry.questions.report import Outage, Period, Report, ServiceReport

AT = "2026-01-02T03:04:05.000000Z"


def _told(found: object) -> Any:
    return json.loads(msgspec.json.encode(found))


@pytest.fixture
def asked_to_stop(event) -> EventRecord:
    actor = {"uid": 1000, "pid": 7, "program": "circlectl\x1b[2J"}
    made = event(9, type="stop_requested", source="Running", dest="Stopping", actor=actor)
    return msgspec.convert(made, EventRecord)


@pytest.fixture
def run(asked_to_stop) -> Run:
    return Run(
        run=3,
        pid=12,
        started=AT,
        ready_s=0.25,
        ended=AT,
        ended_after=None,
        ran_s=3725.0,
        exit_code=None,
        signal=15,
        reason="signal",
        never_ran=False,
        restarts=0,
        adopted=2,
        digest="d",
        changed=("cmd", "env"),
        started_by=None,
        ended_by=By(asked_to_stop),
    )


@pytest.fixture
def web() -> ServiceReport:
    return ServiceReport(
        service="web",
        declared=True,
        availability=0.9999999,
        up_s=86_000.0,
        down_s=0.5,
        unknown_s=399.5,
        states_s={"Running": 86_000.0, "Failed": 0.5, "unknown": 399.5},
        runs=3,
        failures=2,
        outages=1,
        longest_outage=Outage(AT, 0.5, ongoing=True),
        mtbf_s=86_000.0,
        mttr_s=None,
        restarts=2,
        restarts_per_day=2.0,
    )


def test_a_history_is_asked_for_and_shown_as_a_table(fake, circlectl, run) -> None:
    fake.answers["history"] = [_told([History("web", (run,), is_cut=True)])]
    first, header, row = circlectl(
        "history", "web", "-n", "1", "--since", "1h ago"
    ).out.splitlines()
    assert fake.asked("history") == [
        {"action": "history", "service": "web", "limit": 1, "since": "1h ago"}
    ]
    assert first == "the latest 1 run; a larger -n shows more"
    assert header.split() == ["RUN", "STARTED", "READY", "RAN", "ENDED", "WHY"]
    assert row.split()[:6] == ["3", "2026-01-02", "03:04:05Z", "0.25s", "1h", "2m"]
    assert "taken over 2 times; declared differently: cmd, env; ended by: stop requested" in row
    assert r"by uid 1000 (circlectl\x1b[2J, pid 7)" in row


def test_several_histories_are_told_apart(fake, circlectl, run) -> None:
    fake.answers["history"] = [_told([History("web@1", (run,)), History("web@2")])]
    told = circlectl("history", "web").out.splitlines()
    assert (told[0], told[3], told[4]) == ("web@1", "", "web@2")
    assert told[5] == "web@2: no run of it is in that time"


def test_a_difference_is_asked_for_and_told_in_lines(fake, circlectl, asked_to_stop) -> None:
    change = ServiceChange("web", "change", {"status": "Running"}, {"status": "Stopped"}, ("cmd",))
    found = Difference(Moment(0, None), Moment(9, AT), 9, (change,), (asked_to_stop,))
    fake.answers["diff"] = [_told(found)]
    told = circlectl("diff", "seq:0", "03:05", "web", "db").out.splitlines()
    assert fake.asked("diff") == [
        {"action": "diff", "since": "seq:0", "until": "03:05", "service": ["web", "db"]}
    ]
    assert told[0] == "from before the first event to event 9 (2026-01-02 03:04:05Z): 9 events"
    assert told[1] == "~ web  status Running -> Stopped, declared differently: cmd"
    assert told[3].startswith("  9  2026-01-02 03:04:05Z  web  stop requested by uid 1000")


def test_a_report_never_rounds_up_to_all_and_marks_what_is_not_over(fake, circlectl, web) -> None:
    fake.answers["report"] = [_told(Report(Period(AT, AT, 86_400.0), (web,)))]
    period, _header, row = circlectl("report").out.splitlines()
    assert fake.asked("report") == [{"action": "report"}]
    assert period == "from 2026-01-02 03:04:05Z to 2026-01-02 03:04:05Z, 1d"
    cells = ["web", "99.999%", "0.5s", "1", "0.5s+", "23h", "53m", "-", "2", "restarts,"]
    assert row.split()[:10] == cells
    assert row.endswith("2 restarts, 2 a day, 6m 40s unknown")


def test_a_report_of_services_by_name_has_the_time_in_each_state(fake, circlectl, web) -> None:
    fake.answers["report"] = [_told(Report(Period(AT, AT, 86_400.0), (web,)))]
    told = circlectl("report", "web", "--until", "03:14").out.splitlines()
    assert fake.asked("report") == [{"action": "report", "service": "web", "until": "03:14"}]
    assert told[-1] == "web: Running 23h 53m (99.5%), Failed 0.5s (0.0%), unknown 6m 40s (0.5%)"


def test_a_start_is_asked_for_and_shown_with_its_longest_way(fake, circlectl) -> None:
    start = ServiceStart("web", "ready", 0.0, 1.0, 1.1, 3.0, 1.0, 0.1, 1.9, 2.0)
    links = (Link("db", "ready", 0.0, 1.0), Link("web", "ready", 1.0, 2.0))
    found = Boot(2, AT, "0.1.0", 7, fresh=True, seconds=3.0, services=(start,), chain=links)
    fake.answers["report"] = [_told(found)]
    told = circlectl("report", "--boot", "--at", "seq:5", "web").out.splitlines()
    assert fake.asked("report") == [
        {"action": "report", "boot": True, "at": "seq:5", "service": "web"}
    ]
    assert told[0].endswith("(pid 7, event 2); all was done after 3s")
    assert told[2].split() == ["web", "2s", "1s", "0.1s", "1.9s", "ready"]
    assert told[-2:] == ["  web @1s +2s", "    db (ready) @0s +1s"]


def test_no_line_is_longer_than_a_narrow_terminal(fake, circlectl, run, web, screen_at) -> None:
    screen_at(64, NO_COLOR="1")
    fake.answers["history"] = [_told([History("web", (run,))])]
    fake.answers["report"] = [_told(Report(Period(AT, AT, 86_400.0), (web,)))]
    for arguments in (("history", "web"), ("report", "web")):
        assert max(map(len, circlectl(*arguments).out.splitlines())) <= 64


def test_json_is_the_answer_as_it_came(fake, circlectl, web) -> None:
    answer = _told(Report(Period(AT, AT, 86_400.0), (web,)))
    fake.answers["report"] = [answer]
    assert json.loads(circlectl("report", "--json").out) == answer


def test_an_answer_that_lacks_something_is_a_sentence(fake, circlectl) -> None:
    fake.answers["report"] = [{"period": {}}]
    ended = circlectl("report")
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith("circlectl: the registry's answer cannot be shown (")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["history"], "name a service"),
        (["history", "web", "-n", "0"], "-n"),
        (["diff", "03:14"], "T2"),
        (["report", "--at", "03:14"], "--at goes with --boot"),
        (["report", "--boot", "--since", "03:14"], "--boot is one start"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(fake, circlectl, arguments, said) -> None:
    ended = circlectl(*arguments)
    assert (ended.status, fake.requests) == (2, [])
    assert said in ended.err


# --- query ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("is_terminal", "shown"), [(True, "x" * 57 + "..."), (False, "x" * 99)])
def test_a_table_of_rows_is_cut_on_a_terminal_alone(
    fake, circlectl, screen_at, is_terminal, shown
) -> None:
    if is_terminal:
        screen_at(80)
    fake.answers["query"] = [{"columns": ["body"], "rows": [["x" * 99]], "is_cut": False}]
    assert circlectl("query", "select body from events").out.splitlines()[1] == shown


def test_what_cut_the_rows_is_said(fake, circlectl) -> None:
    answer = {"columns": ["seq"], "rows": [[1]], "is_cut": True, "cut_by": "size"}
    fake.answers["query"] = [answer]
    assert circlectl("query", "select seq from events").err == (
        "circlectl: there are more rows than these 1:"
        " an answer has no more than 8 MB; ask for less\n"
    )


# --- journal --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep_s", "shown"),
    [(10.0, "10s"), (5400.0, "90m"), (30 * 86400.0, "30d"), (None, "unlimited")],
)
def test_how_long_events_stay_is_told_as_it_is_written(fake, circlectl, keep_s, shown) -> None:
    event = {"seq": 1, "at": "2026-01-02T03:04:05Z", "hash": "e" * 40}
    fake.answers["journal_info"] = [
        {
            **{"path": "x.db", "size": 1, "used": 1, "wal": 0, "events": 1, "schema": 2},
            **{"first": event, "last": event, "anchor": None, "snapshots": 0, "trouble": None},
            **{"keep_s": keep_s, "max_size": None, "degraded_since": None},
        }
    ]
    assert f"keep         {shown}" in circlectl("journal", "info").out.splitlines()
