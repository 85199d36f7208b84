"""What replay tells of the past as a whole: histories, reports, starts, differences; and its complaints."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from registry.journal.opening import open_for_reading
from registry.past.boot import boot
from registry.past.difference import changes
from registry.past.history import history
from registry.past.report import report


def _plain(found: object) -> object:
    return json.loads(msgspec.json.encode(found))


@pytest.fixture
def read(journal: Path):
    connection = open_for_reading(journal)
    yield connection
    connection.close()


def test_a_history_is_a_table_of_runs(journal: Path, replay) -> None:
    answer = replay(journal, "--history", "app")
    header, *rows = answer.out.splitlines()
    assert header.split() == ["RUN", "STARTED", "READY", "RAN", "ENDED", "WHY"]
    assert [row.split()[0] for row in rows] == ["1", "2", "3", "4", "5"]
    assert rows[0].endswith(
        "what it waited for is as it needs it, after setup: exited with code 0 (run 1);"
        " ended by: restart requested (follows one that it depends on), after db: ready (run 2)"
    )
    assert "SIGKILL  restart 1 at once; ended by: said that it stops" in rows[2]
    assert "declared differently: cmd;" in rows[4]


def test_that_there_are_more_runs_than_are_shown_is_said(journal: Path, replay) -> None:
    first, _header, *rows = replay(journal, "--history", "web", "-n", 2).out.splitlines()
    assert first == "the latest 2 runs; a larger -n shows more"
    assert (
        "ended while nobody watched, from 2026-01-03 04:02:31Z to 2026-01-03 04:12:31Z" in rows[0]
    )
    assert rows[1].split()[:5] == ["6", "-", "-", "-", "runs"]


def test_a_report_tells_of_each_service_and_in_detail_of_those_named(journal: Path, replay) -> None:
    period, header, *rows = replay(journal, "--report").out.splitlines()
    assert period == "from 2026-01-02 03:00:00Z to 2026-01-03 04:14:42Z, 1d 1h"
    names = ["migrate", "web", "worker", "cache", "db", "setup", "app", "mailer"]
    assert [row.split()[0] for row in rows] == names
    assert header.split()[:3] == ["NAME", "AVAILABLE", "DOWN"]
    assert rows[-1].endswith("no longer declared")
    told = replay(journal, "--report", "-s", "web").out.splitlines()
    assert told[-1].startswith("web: Stopped 1d (95.0%), Starting 3m 41s (0.2%), Running 1h 1m")


def test_a_report_is_of_the_time_that_was_asked_for(journal: Path, replay) -> None:
    since, until = "2026-01-02T03:00:40Z", "2026-01-02T03:01:00Z"
    told = json.loads(replay(journal, "--report", "--since", since, "--until", until, "--json").out)
    assert told["period"]["seconds"] == pytest.approx(21, abs=0.01)  # 03:01:00 is a whole second
    before = replay(journal, "--report", "--until", "1999-01-01T00:00:00Z")
    assert "no service was declared then, as far as the journal tells" in before.out


def test_a_start_is_told_with_its_longest_way(journal: Path, replay) -> None:
    told = replay(journal, "--report", "--boot", "--at", "seq:60").out
    assert told.startswith(
        "registry 0.1.0 started 2026-01-02 03:00:00Z (pid 300, event 2); all was"
    )
    assert told.endswith("  web @7ms +30s\n")


def test_a_difference_tells_what_changed_and_who_asked_for_it(journal: Path, replay) -> None:
    told = replay(journal, "--diff", "seq:60", "seq:100").out.splitlines()
    assert (
        told[0]
        == "from event 60 (2026-01-02 03:02:05Z) to event 100 (2026-01-03 04:01:40Z): 40 events"
    )
    assert "- mailer  it was Failed, program missing" in told
    assert "~ cache  reason defined -> shutdown, run - -> 2, declared differently: cmd" in told
    assert "  79  2026-01-02 03:01:35Z  cache  redefined by uid 0 (circlectl, pid 4711)" in told
    assert replay(journal, "--diff", "seq:60", "seq:60").out.endswith("is otherwise than it was\n")
    own = replay(journal, "--diff", "seq:60", "seq:100", "-s", "web").out
    assert "cache" not in own
    assert "~ web  reason" in own


def test_json_is_what_the_questions_answer(journal: Path, read, replay) -> None:
    def told(*options: object) -> object:
        return json.loads(replay(journal, *options, "--json").out)

    assert told("--history", "web") == _plain([history(read, "web")])
    assert told("--report") == _plain(report(read))
    assert told("--report", "--boot") == _plain(boot(read, 185))
    assert told("--diff", "seq:9", "seq:99") == _plain(changes(read, 9, 99))


@pytest.mark.parametrize(
    ("options", "status", "complaint"),
    [
        (["--history", "wep"], 1, "it does not tell of a service 'wep'; did you mean 'web'?"),
        (
            ["--diff", "seq:9", "seq:8"],
            1,
            "after event 8: write the earlier first",
        ),
        (["--diff", "seq:9", "seq:999"], 1, "event 999"),
        (["--diff", "seq:9", "soon"], 2, "'soon' is not a time"),
        (
            ["--report", "--boot", "--at", "seq:1"],
            1,
            "no start of the registry is in the journal up to event 1",
        ),
        *(
            ([*what, "--since", "03:15", "--until", "03:14"], 2, "since is later than until")
            for what in ([], ["--report"], ["--history", "web"], ["--html", "-"])
        ),
        (["--report", "--at", "seq:9"], 2, "--report goes without --at: write --since and --until"),
        (
            ["--report", "--boot", "--since", "03:14"],
            2,
            "--boot goes without --since: it is one start",
        ),
        (["--report", "--history", "web"], 2, "goes without"),
        (["--boot"], 2, "--boot goes with --report: add it"),
        (["-n", "3"], 2, "-n goes with --history: add it"),
        (["--history", "web", "-n", "0"], 2, "-n"),
    ],
)
def test_what_makes_no_sense_is_said_in_a_sentence(
    journal: Path, replay, options: list[str], status: int, complaint: str
) -> None:
    answer = replay(journal, *options)
    assert (answer.status, answer.out) == (status, "")
    assert complaint in answer.err.splitlines()[-1]


def test_why_tells_the_causes_of_a_service_and_of_an_event(journal: Path, replay) -> None:
    answer = replay(journal, "--why", "worker", "--at", "seq:36")
    assert answer.status == 0
    assert answer.out.splitlines() == [
        "worker is Failed since 2026-01-02 03:00:35Z",
        "  because it had been restarted 2 times within 60 s, which is its limit (event 36, 03:00:35Z)",
        "  because it was ended by SIGSEGV, not sent by the registry (run 3) (event 35, 03:00:35Z)",
        "next: nothing until circlectl start worker (or reset)",
    ]
    assert json.loads(replay(journal, "--why", "seq:36", "--json").out)["chain"] == [36, 35]


@pytest.mark.parametrize(
    ("options", "status", "sentence"),
    [
        (["--why", "nobody"], 1, "there is no service 'nobody'"),
        (["--why", "seq:x"], 1, "an event is named as in --why seq:57, and goes without --at"),
        (["--why", "seq:5", "--at", "seq:9"], 1, "goes without --at"),
        (["--why", "seq:999"], 1, "there is no event 999: the last is event 185"),
        (["--why", "web", "-s", "web"], 2, "--why goes without --service"),
    ],
)
def test_a_why_that_cannot_be_answered_is_a_sentence(
    journal: Path, replay, options, status, sentence
) -> None:
    answer = replay(journal, *options)
    assert (answer.status, answer.out) == (status, "")
    assert sentence in answer.err
