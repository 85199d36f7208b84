"""circle-replay --what-if on the recorded incident: its words, its widths, its JSON, and what is wrong with a file."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"
INCIDENT = GOLDEN / "incident.db"
SHOP = runpy.run_path(str(GOLDEN / "make_incident.py"))
SETTINGS = '[registry]\nroot = "/tmp/shop"'


@pytest.fixture
def other(tmp_path: Path) -> Callable[..., Path]:
    """The incident's services.toml as it was at first, with changes."""

    def other_(*changes: tuple[str, str], worker: str = "") -> Path:
        text = SHOP["CONFIGURATION"].replace("WORKER", worker).replace("[registry]", SETTINGS)
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "other.toml"
        path.write_text(text)
        return path

    return other_


DB_LIMIT = ('delay = "400ms", limit = 3', 'delay = "400ms", limit = 2')
WEB_WAITS = ('depends_on = ["cache"]', 'depends_on = ["cache", "api"]')


def test_what_is_declared_as_it_was_makes_no_difference(replay, other) -> None:
    answer = replay(INCIDENT, "--what-if", other(), "--until", "2026-11-28T11:19:44Z")
    assert answer.status == 0
    assert answer.out.startswith(
        f"what if {other()} had been in force from 2026-11-28T11:19:27Z to"
    )
    assert "assumed: a run goes on for as long" in answer.out
    assert answer.out.endswith("\n\nnothing would have been different\n")


def test_a_lower_limit_gives_up_earlier(replay, other) -> None:
    answer = replay(INCIDENT, "--what-if", other(DB_LIMIT), "-s", "db", "-s", "web")
    assert "SERVICE  RESTARTS  GAVE UP  DOWN\n" in answer.out
    assert "db       3 -> 2    1 -> 1   4.1s -> 4.1s\n" in answer.out
    assert "1 other service: nothing different" in answer.out
    assert (
        "2026-11-28T11:19:40.736Z  db\n"
        "  recorded: Starting -> Failed  exited with code 2 (run 4); Failed -> Restarting\n"
        "            restart 3 in 0.86 s\n"
        "   what if: Starting -> Failed  exited with code 2 (run 4); gave up after 2\n"
        "            restarts within 60 s\n"
    ) in answer.out
    assert max(map(len, answer.out.splitlines()[6:])) <= 80


def test_a_wide_terminal_shows_both_side_by_side(replay, other, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    answer = replay(INCIDENT, "--what-if", other(DB_LIMIT), "-s", "db")
    header = next(line for line in answer.out.splitlines() if line.startswith("TIME"))
    assert header.split() == ["TIME", "SERVICE", "RECORDED", "WITH", "other.toml"]
    assert all(len(line) <= 150 for line in answer.out.splitlines()[6:])


def test_web_that_waits_for_api_is_no_more_restarted_while_api_is_down(replay, other) -> None:
    answer = json.loads(replay(INCIDENT, "--what-if", other(WEB_WAITS), "--json").out)
    web = next(each for each in answer["services"] if each["name"] == "web")
    assert web["unknown_s"] == 0
    assert web["recorded"]["restarts"] == 4
    first = next(each for each in answer["partings"] if each["service"] == "web")
    assert first["at"].startswith("2026-11-28T11:19:28.008")
    assert [each["type"] for each in first["recorded"]] == ["dependencies_met"]
    assert first["what_if"] == []
    assert first["state"] == "Stopped, waits for api to be ready (it waits, too)"
    decided = [event for each in answer["partings"] for event in each["what_if"]]
    assert all(event["seq"] is None for event in decided if event["type"] == "dependencies_met")


def test_another_program_is_unknown_and_so_is_who_follows_it(replay, other) -> None:
    answer = json.loads(replay(INCIDENT, "--what-if", other(), "--json").out)
    unknown = {each["name"]: each["unknown_s"] for each in answer["services"] if each["unknown_s"]}
    assert unknown.keys() == {"worker", "audit"}, "its definition was changed during the incident"
    told = {each["service"]: each["note"] for each in answer["partings"] if each["note"]}
    assert (
        told["worker"]
        == "unknown: cmd not as its recorded run had it: how that runs is not recorded"
    )
    assert told["audit"] == "unknown: it depends on what is unknown"


def test_a_part_of_the_journal_begins_with_the_state_then(replay, other) -> None:
    part = ("--since", "2026-11-28T11:19:38Z", "--until", "2026-11-28T11:19:45Z")
    answer = json.loads(replay(INCIDENT, "--what-if", other(DB_LIMIT), "--json", *part).out)
    db = next(each for each in answer["services"] if each["name"] == "db")
    assert (db["recorded"]["restarts"], db["what_if"]["restarts"]) == (3, 2)
    assert (db["recorded"]["gave_up"], db["what_if"]["gave_up"]) == (1, 1)


def test_services_that_come_and_go_are_said_to(replay, other) -> None:
    renamed = other(('name = "mailer"', 'name = "poster"'))
    answer = replay(INCIDENT, "--what-if", renamed, "-s", "mailer").out
    assert "mailer   0 -> none  0.61s -> not declared\n" in answer
    whole = replay(INCIDENT, "--what-if", renamed).out
    assert "poster (new)" in whole
    assert "unknown: it is new: the journal tells of no run of it" in whole


def test_a_file_with_faults_is_told_of_with_their_places(replay, other, tmp_path) -> None:
    wrong = other(('ready = "notify"', 'ready = "maybe"'))
    answer = replay(INCIDENT, "--what-if", wrong)
    assert (answer.status, answer.out) == (78, "")
    assert f"{wrong}:" in answer.err
    assert "maybe" in answer.err
    missing = replay(INCIDENT, "--what-if", tmp_path / "none.toml")
    assert missing.status == 78
    assert "none.toml" in missing.err


def test_a_file_that_lies_elsewhere_is_told_to_name_the_root(replay, other) -> None:
    moved = other(('root = "/tmp/shop"', ""))
    remark = f"cwd differs: does {moved} lie elsewhere than the original? Then set root"
    assert remark in replay(INCIDENT, "--what-if", moved).out
    assert "cwd differs" not in replay(INCIDENT, "--what-if", other()).out


def test_what_makes_no_sense_together_is_refused(replay, other) -> None:
    for option in (["--at", "seq:3"], ["--verify"], ["--report"], ["--history", "web"]):
        answer = replay(INCIDENT, "--what-if", other(), *option)
        assert answer.status == 2
        assert "--what-if goes without" in answer.err


def test_an_empty_journal_has_nothing_different(replay, other, write) -> None:
    answer = replay(write([]), "--what-if", other(), "--json")
    assert answer.status == 0
    assert json.loads(answer.out)["partings"] == []
    assert replay(write([], "empty.db"), "--what-if", other()).status == 0
