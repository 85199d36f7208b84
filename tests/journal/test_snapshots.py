"""Snapshots save work and nothing else: no answer depends on whether there are any."""

from __future__ import annotations

import runpy
import sqlite3
from contextlib import closing
from hashlib import blake2b
from pathlib import Path

import pytest

from registry.core.events import Record
from registry.core.projection import FOLD, Projection
from registry.journal import snapshots
from registry.journal.opening import open_for_reading
from registry.journal.read import fold, verify

STORY = runpy.run_path(str(Path(__file__).parents[1] / "golden" / "make_journal_v1.py"))
COMES_TO = {1: "94e990c5f854f889", 2: "baf5d88d9005b472"}
"""What the story's fold came to, by FOLD. Where that changes: raise FOLD, and add a line."""


@pytest.fixture(scope="module")
def story() -> list[Record]:
    """Every type of event."""
    told: list[Record] = STORY["tell_story"]()
    return told


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot is due after each event."""
    monkeypatch.setattr(snapshots, "EVERY", 1)
    monkeypatch.setattr(snapshots, "EVERY_OF_ONE", 0)


def folded(records: list[Record]) -> Projection:
    projection = Projection()
    projection.fold(records)
    return projection


def change(path: Path, statement: str, *values: object) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(statement, values).fetchall()


def then(path: Path, seq: int) -> Projection:
    """What reading a file says of the services after event `seq`."""
    with closing(open_for_reading(path)) as connection:
        return fold(connection, seq)


def trouble(path: Path) -> str | None:
    with closing(open_for_reading(path)) as connection:
        return verify(connection).trouble


def test_what_the_fold_comes_to_changes_only_with_its_number(story):
    digest = blake2b(snapshots.encode(folded(story)), digest_size=8).hexdigest()
    assert digest == COMES_TO.get(FOLD), "it does not come to the same: raise FOLD, and add a line"


def test_a_snapshot_holds_all_that_the_fold_knows(story):
    """Whatever comes later is folded into it as into the fold itself."""
    whole = folded(story)
    for count in range(1, len(story)):
        kept = snapshots.decode(snapshots.encode(folded(story[:count])))
        assert kept == folded(story[:count])
        kept.fold(story[count:])
        assert kept == whole


async def test_a_journal_is_folded_from_its_latest_snapshot_on(opened, story, path, often):
    journal = await opened()
    await journal.append(story[:100])
    await journal.keep_snapshot(folded(story[:100]))
    await journal.append(story[100:])
    await journal.close()
    change(path, "UPDATE events SET body = '{' WHERE seq <= 100")
    assert await (await opened()).fold() == folded(story)


async def test_each_moment_is_answered_alike_with_snapshots_and_without(
    opened, story, path, often, tmp_path
):
    journal = await opened()
    for record in story:
        await journal.append([record])
        if record.seq % 7 == 0:
            await journal.keep_snapshot(folded(story[: record.seq]))
    await journal.close()
    assert change(path, "SELECT count(*) FROM snapshots") == [(len(story) // 7,)]
    with_them = [then(path, seq) for seq in range(len(story) + 1)]
    change(path, "DROP TABLE snapshots")
    assert [then(path, seq) for seq in range(len(story) + 1)] == with_them


@pytest.mark.parametrize(
    "spoil",
    [
        "UPDATE snapshots SET hash = 'another'",
        f"UPDATE snapshots SET fold = {FOLD + 1}",
        "UPDATE snapshots SET state = x'c1'",
        "UPDATE snapshots SET seq = 1000",
        "DELETE FROM snapshots",
    ],
)
async def test_a_snapshot_that_is_not_of_this_fold_and_event_does_not_count(
    spoil, opened, story, path, often
):
    journal = await opened()
    await journal.append(story)
    await journal.keep_snapshot(folded(story[:100]))
    await journal.close()
    change(path, spoil)
    assert await (await opened()).fold() == folded(story)
    assert then(path, 150) == folded(story[:150])


async def test_one_is_kept_when_it_is_due_and_all_of_it_is_written(
    opened, story, path, monkeypatch
):
    journal = await opened()
    await journal.append(story[:100])
    await journal.keep_snapshot(folded(story[:100]))
    await journal.keep_snapshot(folded(story[:100]), at_end=True)
    assert change(path, "SELECT seq FROM snapshots") == [], "not due"
    monkeypatch.setattr(snapshots, "AT_END", 100)
    await journal.keep_snapshot(folded(story[:101]), at_end=True)
    assert change(path, "SELECT seq FROM snapshots") == [], "not all of it is written"
    await journal.keep_snapshot(folded(story[:100]), at_end=True)
    assert change(path, "SELECT seq FROM snapshots") == [(100,)]


def test_of_many_services_one_is_due_less_often():
    assert snapshots.is_due(snapshots.EVERY, 10)
    assert not snapshots.is_due(snapshots.EVERY - 1, 10)
    assert not snapshots.is_due(snapshots.EVERY, 10_000)


async def test_who_reads_a_long_journal_without_them_leaves_them(opened, story, path, often):
    journal = await opened()
    await journal.append(story)
    assert await journal.fold() == folded(story)
    assert change(path, "SELECT seq, fold FROM snapshots") == [(len(story), FOLD)]


async def test_a_journal_of_before_there_were_any_is_read_and_gets_them(opened, story, path, often):
    journal = await opened()
    await journal.append(story)
    await journal.close()
    change(path, "DROP TABLE snapshots")
    assert then(path, 100) == folded(story[:100])
    journal = await opened()
    await journal.fold()
    assert change(path, "SELECT seq FROM snapshots") == [(len(story),)]


async def test_verification_finds_a_snapshot_that_lies(opened, story, path, often):
    journal = await opened()
    await journal.append(story)
    await journal.keep_snapshot(folded(story[:100]))
    await journal.close()
    assert trouble(path) is None
    lie = snapshots.encode(folded(story[:99]))
    change(path, "UPDATE snapshots SET state = ?", lie)
    assert trouble(path) == (
        "the snapshot at event 100 is not what the events come to: delete it from snapshots"
    )
    change(path, "DELETE FROM snapshots")
    assert trouble(path) is None


# --- times ----------------------------------------------------------------------------------------


async def test_beside_each_snapshot_is_the_earliest_time_since_the_one_before(
    opened, story, path, often
):
    journal = await opened()
    for at in range(0, 180, 60):
        await journal.append(story[at : at + 60])
        await journal.keep_snapshot(folded(story[: at + 60]))
    rows = change(path, "SELECT seq, after, first_ns FROM times")
    assert [row[:2] for row in rows] == [(60, 0), (120, 60), (180, 120)]
    for seq, after, first_ns in rows:
        assert first_ns <= min(record.at_ns for record in story[after:seq])
    assert rows[0][2] == story[0].at_ns


async def test_of_events_that_nobody_read_no_time_is_told(opened, story, path, often):
    """A journal that was opened, and not folded."""
    await (await opened()).append(story[:100])
    journal = await opened()
    await journal.append(story[100:120])
    await journal.keep_snapshot(folded(story[:120]))
    assert change(path, "SELECT seq, after FROM times") == [(120, 100)]


async def test_verification_finds_a_time_that_lies(opened, story, path, often):
    journal = await opened()
    await journal.append(story)
    await journal.keep_snapshot(folded(story))
    await journal.close()
    assert trouble(path) is None
    change(path, "UPDATE times SET first_ns = first_ns + 1")
    assert trouble(path) == (
        "an event is earlier than the row 185 of times says: delete it from times"
    )
