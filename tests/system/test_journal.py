"""The journal as a file, asked of a real registry: how it is, copies of it, the oldest events removed, and kills."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from circle_replay import cli
from registry.journal.opening import open_for_reading
from registry.journal.read import fold, verify

FLAPS = """
[[service]]
name = "web"
cmd = ["sleep", "1000"]
[[service]]
name = "flap"
cmd = ["sh", "-c", "sleep 0.05; exit 1"]
restart = { policy = "Always", delay = "20ms", delay_max = "20ms" }
"""

DYING = """
import os, signal, sys
from registry.journal.compaction import Compaction
import registry.retention as retention
retention.EVENTS_MIN, calls = 1, 0
def wrap(name, before, number):
    whole = getattr(Compaction, name)
    async def dying(*given):
        global calls
        calls += 1
        if before and calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        result = await whole(*given)
        if not before and calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(Compaction, name, dying)
wrap({name!r}, {before}, {number})
import registry.journal.compaction as compaction
compaction.BATCH = 10
from registry.__main__ import main
main()
"""


def circlectl(box: Any, *words: str) -> tuple[int, str, str]:
    """What the command says, run in the box's folder."""
    done = subprocess.run(
        [sys.executable, "-m", "circlectl", *words],
        env={**os.environ, "CIRCLEOSD_SOCKET": str(box.socket)},
        cwd=box.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def some_events(box: Any, count: int = 60) -> int:
    box.wait_for(lambda: box.data("journal_info")["last"]["seq"] >= count, f"{count} events")
    return int(box.data("journal_info")["last"]["seq"])


def quiet(box: Any) -> None:
    """Nothing flaps any more."""
    box.data("stop", service="flap", wait=True)


def trouble(path: Path) -> str | None:
    with closing(open_for_reading(path)) as connection:
        return verify(connection).trouble


def test_the_oldest_events_go_and_all_else_is_answered_as_before(box, capsys):
    box.configure(FLAPS)
    box.start()
    some_events(box)
    quiet(box)
    web = box.data("show", service="web", run=0)
    status, out, err = circlectl(box, "journal", "compact", "--keep", "0s", "--archive", "old.db")
    assert (status, err) == (0, "")
    assert "events removed: the journal begins with event" in out
    info = box.data("journal_info")
    assert info["first"]["seq"] == info["anchor"]["seq"] + 1 > 60
    assert box.data("show", service="web", run=0) == web
    assert box.service("web")["status"] == "Running"
    assert next(e["seq"] for e in box.data("events")) == info["first"]["seq"]
    error = box.ask("events", since=5)["error"]
    assert (error["code"], error["data"]["first"]) == ("out_of_range", info["first"]["seq"])
    assert trouble(box.journal) is None
    archive = box.journal.with_name("old.db")
    assert trouble(archive) is None
    assert archive.stat().st_mode & 0o777 == 0o600
    with closing(open_for_reading(archive)) as old, closing(open_for_reading(box.journal)) as new:
        seq = info["anchor"]["seq"]
        assert fold(old, seq) == fold(new, seq), "the archive ends where the journal begins"
    assert cli.run([str(archive), "--at", f"seq:{seq}"]) == 0
    assert "web" in capsys.readouterr().out


def test_run_numbers_are_never_used_again_however_much_was_removed(box):
    box.configure(FLAPS)
    box.start()
    some_events(box)
    box.configure(FLAPS.partition('[[service]]\nname = "flap"')[0])
    box.data("apply", wait=True)
    run = max(e["run"] for e in box.data("events", service="flap") if e["run"])
    box.data("journal_compact", keep="0s")
    box.wait_for(lambda: rows_before(box) == kept(box), "they are removed")
    box.kill()
    box.configure(FLAPS)
    box.start()
    assert box.wait_for(lambda: box.service("flap")["run"], "it runs again") > run


def rows_before(box: Any) -> int:
    first = box.data("journal_info")["first"]["seq"]
    with closing(sqlite3.connect(f"{box.journal.as_uri()}?mode=ro", uri=True)) as connection:
        (count,) = connection.execute(
            "SELECT count(*) FROM events WHERE seq < ?", (first,)
        ).fetchone()
        return int(count)


def kept(box: Any) -> int:
    anchor = box.data("journal_info")["anchor"]
    return anchor["kept"] if anchor else 0


@pytest.mark.parametrize("keep", ["x", "-1s", "1 fortnight"])
def test_what_is_no_duration_is_refused_by_name(box, keep):
    box.configure(FLAPS)
    box.start()
    status, out, err = circlectl(box, "journal", "compact", "--keep", keep)
    assert (status, out) == (2, "")
    assert err.startswith("circlectl: keep: found ")
    status, _out, err = circlectl(box, "journal", "compact")
    assert status == 2
    assert "[journal] keep says nothing" in err


@pytest.mark.parametrize("keep", ["60", "60.5", "60s", "1h"])
def test_a_duration_without_a_unit_is_one_in_seconds(box, keep):
    box.configure(FLAPS)
    box.start()
    answer = circlectl(box, "journal", "compact", "--keep", keep)
    assert answer == (0, "nothing is older: no event was removed\n", "")


def test_an_export_takes_nobodys_file_and_follows_no_link(box):
    box.configure(FLAPS)
    box.start()
    some_events(box, 20)
    there, link = box.folder / "there.db", box.folder / "link.db"
    there.write_text("mine")
    link.symlink_to(box.folder / "elsewhere")
    for name in (there, link):
        status, out, err = circlectl(box, "journal", "export", str(name))
        assert (status, out) == (1, "")
        assert err == f"circlectl: {name} exists already; name a file that does not\n"
    assert there.read_text() == "mine"
    assert not (box.folder / "elsewhere").exists()
    status, _out, err = circlectl(box, "journal", "export", "./no/such/folder.db")
    assert "cannot be written: No such file or directory" in err
    assert circlectl(box, "journal", "export", "./mine.db")[0] == 0
    assert trouble(box.folder / "mine.db") is None
    assert not list(box.folder.glob(".*.db.*"))


def test_an_export_up_to_a_time_ends_there(box):
    box.configure(FLAPS)
    box.start()
    some_events(box, 40)
    events = box.data("events", limit=20)
    data = box.data("journal_export", path="part.db", until=events[-1]["at"])
    with closing(open_for_reading(box.journal.with_name("part.db"))) as connection:
        assert verify(connection)[:3] == (data["last"], data["hash"], None)
    assert data["last"] >= 20
    error = box.ask("journal_export", path="other.db", until="2001-01-01T00:00:00Z")["error"]
    assert error["code"] == "out_of_range"
    error = box.ask("journal_export", path="other.db", until="once")["error"]
    assert (error["code"], "until: 'once' is not a time" in error["message"]) == (
        "invalid_params",
        True,
    )


def test_info_says_how_the_journal_is(box):
    box.configure(FLAPS, '[journal]\nkeep = "30d"\nmax_size = "20MB"')
    box.start()
    some_events(box, 20)
    quiet(box)
    status, out, err = circlectl(box, "journal", "info", "--json")
    assert (status, err) == (0, "")
    told = json.loads(out)
    assert told["path"] == str(box.journal)
    assert (told["schema"], told["anchor"], told["keep_s"]) == (2, None, 30 * 86400.0)
    assert (told["max_size"], told["degraded_since"]) == (20_000_000, None)
    assert told["last"]["hash"] == verdict_hash(box.journal)
    text = circlectl(box, "journal", "info")[1]
    assert "begins with  nothing: none was removed" in text
    assert f"head         {told['last']['hash']}" in text


def verdict_hash(path: Path) -> str:
    with closing(open_for_reading(path)) as connection:
        return verify(connection).hash


POINTS = [
    ("anchor_after", True, 1),
    ("put", True, 1),
    ("put", False, 1),
    ("remove_some", True, 2),
    ("remove_some", False, 3),
]


@pytest.mark.parametrize(("name", "before", "number"), POINTS)
def test_killed_at_any_point_of_it_nothing_is_lost_and_the_next_life_goes_on(
    box, name, before, number
):
    box.configure(FLAPS)
    box.start()
    some_events(box, 100)
    quiet(box)
    web = box.service("web")
    box.kill()
    box.configure(FLAPS, '[journal]\nkeep = "1ms"')
    code = DYING.format(name=name, before=before, number=number)
    dying = box.spawn(program=("-c", code))
    assert dying.wait(20) == -9
    assert trouble(box.journal) is None
    box.configure(FLAPS)
    box.start()
    assert box.service("web")["pid"] == web["pid"]
    box.wait_for(lambda: rows_before(box) == kept(box), "what was begun is done")
    box.stop()
    assert trouble(box.journal) is None


def test_a_running_registry_is_asked_in_sql(box):
    box.configure(FLAPS)
    box.start()
    some_events(box)
    quiet(box)
    runs = "select service, run from runs where service = 'flap' order by run"
    status, out, err = circlectl(box, "query", runs, "--limit", "2")
    assert (status, out) == (0, "service  run\nflap       1\nflap       2\n")
    assert err == "circlectl: there are more rows than these 2: --limit asks for more\n"
    status, out, _err = circlectl(box, "query", "select action, service from actions", "--csv")
    assert (status, out) == (0, "action,service\nstop,flap\n")
    status, out, _err = circlectl(box, "query", "select 1 as one", "--json")
    assert (status, json.loads(out)) == (0, {"one": 1})
    status, out, err = circlectl(box, "query", "delete from events")
    assert (status, out) == (2, "")
    assert err == "circlectl: only questions are answered: one select, of this journal alone\n"
    assert trouble(box.journal) is None


def test_a_moment_that_was_removed_is_refused_live(box):
    box.configure(FLAPS)
    box.start()
    some_events(box)
    quiet(box)
    first = box.data("events", limit=1)[0]
    box.data("journal_compact", keep="0s")
    for action in ("list_services", "status"):
        error = box.ask(action, service="web", at=first["at"])["error"]
        assert error["code"] == "out_of_range"
        assert "older ones were removed" in error["message"]
