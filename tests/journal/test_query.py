"""Questions in SQL: what the views say, and that nothing but a question is answered, within bounds."""

from __future__ import annotations

import asyncio
import runpy
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from registry.journal import Journal, views
from registry.journal import query as bounds
from registry.journal.opening import open_for_reading
from registry.journal.query import Refused, query

GOLDEN = Path(__file__).parents[1] / "golden"
STORY = runpy.run_path(str(GOLDEN / "make_journal_v1.py"))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every type of event."""
    found = tmp_path_factory.mktemp("journal") / "registry.db"
    asyncio.run(STORY["write_journal"](found, STORY["tell_story"]()))
    return found


def asked(path: Path, sql: str, **how):
    with closing(open_for_reading(path)) as connection:
        return query(connection, sql, **how)


def rows(path: Path, sql: str) -> list[tuple]:
    return asked(path, sql).rows


@pytest.mark.parametrize("name", views.VIEWS)
@pytest.mark.parametrize("journal", ["journal-v1", "journal-v1-2026-11", "journal-v2"])
def test_every_view_answers_of_a_journal_of_each_schema(name, journal):
    answer = asked(GOLDEN / f"{journal}.db", f"select * from {name}")
    assert answer.rows
    assert not answer.is_cut


def test_intervals_follow_each_other_without_a_gap(path):
    found = rows(path, "select service, state, began, ended from intervals order by service, seq")
    for (service, _state, _began, ended), following in pairwise(found):
        if service == following[0]:
            assert ended == following[2]
        else:
            assert ended is None or service == "mailer", "it goes on, or was removed"
    assert ("worker", "Running") in {row[:2] for row in found}


def test_those_of_a_compacted_journal_begin_with_the_state_it_begins_with(path):
    sql = "select service, state, began, ended from intervals where service = 'web' order by seq"
    compacted = rows(GOLDEN / "journal-v2.db", sql)
    assert 1 < len(compacted) < len(rows(path, sql))
    assert compacted == rows(path, sql)[-len(compacted) :]


def test_restarts_and_actions_are_counted(path):
    counted = rows(path, "select reason, count(*) from restarts group by reason")
    scheduled = rows(path, "select count(*) from events where type = 'restart_scheduled'")
    assert [(sum(count for _reason, count in counted),)] == scheduled
    assert {reason for reason, _count in counted} >= {"exit_code", "lost", "memory_max"}
    asked_for = rows(path, "select distinct action from actions where actor_uid = 0")
    assert {"start", "stop", "reset", "signal", "reload", "restart"} <= {a for (a,) in asked_for}


def test_each_restart_in_a_row_has_the_reason_for_which_the_run_before_it_ended(path):
    found = rows(
        path,
        "select restarts.reason, runs.reason, attempt from restarts join runs using (service, run)",
    )
    assert len(found) > 5
    assert any(attempt > 1 for *_reasons, attempt in found)
    assert all(restarted == ended for restarted, ended, _attempt in found)


def test_a_run_that_nobody_saw_end_has_no_duration(path):
    ((ended, duration_s),) = rows(
        path, "select ended, duration_s from runs where reason = 'lost' and service = 'worker'"
    )
    assert ended is not None
    assert duration_s is None


REFUSED = {
    "delete from events": "only questions",
    "drop table events": "only questions",
    "insert into events select * from events": "only questions",
    "attach '/tmp/x.db' as x": "only questions",
    "pragma journal_mode = off": "only questions",
    "pragma table_info(events)": "only questions",
    "select * from pragma_database_list": "not authorized",
    "begin": "only questions",
    "vacuum into '/tmp/x.db'": "only questions",
    "create temp table x (y)": "only questions",
    "select load_extension('x')": "not authorized",
    "select 1; select 2": "one statement",
    "selec": "syntax error",
    "": "this asks nothing",
    "-- nothing": "this asks nothing",
    "select \0": "null character",
    "select randomblob(100000000)": "too big",
}  # fmt: skip


@pytest.mark.parametrize(("sql", "why"), REFUSED.items())
def test_nothing_but_one_select_is_answered(path, sql, why):
    before = path.read_bytes()
    with pytest.raises(Refused, match=why):
        asked(path, sql)
    assert path.read_bytes() == before


def test_what_takes_too_long_ends(path):
    endless = "with recursive c(x) as (select 1 union all select x + 1 from c) select max(x) from c"
    with pytest.raises(Refused, match=r"more than 0\.05 s") as error:
        asked(path, endless, time_s=0.05)
    assert error.value.is_late


def test_rows_and_bytes_are_bounded(path, monkeypatch):
    answer = asked(path, "select seq from events order by seq", limit=3)
    assert answer == (("seq",), [(1,), (2,), (3,)], True, "limit")
    assert not asked(path, "select seq from events", limit=185).is_cut
    monkeypatch.setattr(bounds, "ROWS_MAX", 9)
    assert asked(path, "select seq from events").cut_by == "rows"


@pytest.mark.parametrize("column", ["body", "zeroblob(400)", "char(1) || body"])
def test_an_answer_is_no_larger_than_it_may_be(column, path, monkeypatch):
    monkeypatch.setattr(bounds, "BYTES_MAX", 2000)
    answer = asked(path, f"select {column} from events")
    assert (answer.is_cut, answer.cut_by) == (True, "size")
    assert 1000 < len(msgspec.json.encode(answer.rows)) <= 2000 + len("[]")


def test_what_is_larger_than_an_answer_is_none(path):
    assert asked(path, "select zeroblob(9000000) as x") == (("x",), [], True, "size")


def test_values_are_as_json_has_them(path):
    assert rows(path, "select x'00ff', null, 1.5, 'é', 7") == [("00ff", None, 1.5, "é", 7)]


async def test_views_are_made_anew_and_what_has_their_name_stays(tmp_path):
    path = tmp_path / "registry.db"
    await (await Journal.open(path)).close()
    journal = await Journal.open(path)
    await journal._writer.executescript(
        "DROP VIEW runs; CREATE VIEW runs AS SELECT 1; DROP VIEW probes; CREATE TABLE probes (mine)"
    )
    await journal.close()
    journal = await Journal.open(path)
    kinds = {name: (kind, sql) for kind, name, sql in await journal.ask(views.PRESENT)}
    assert kinds["runs"][1] == views.VIEWS["runs"].strip()
    assert kinds["probes"][0] == "table"
    await journal.close()
