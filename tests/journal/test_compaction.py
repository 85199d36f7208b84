"""What compaction promises: whatever is asked of a moment after its horizon is answered as before, and verifies."""

from __future__ import annotations

import copy
import json
import random
import runpy
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from registry.core import events as ev
from registry.core.events import Record
from registry.core.projection import Projection
from registry.core.service import HAS_RUN
from registry.journal import Journal, JournalDamaged, JournalError, snapshots
from registry.journal.anchor import LINKS_MAX
from registry.journal.compaction import Compaction
from registry.journal.errors import Compacted
from registry.journal.opening import open_for_reading
from registry.journal.read import (
    Selection,
    anchor_of,
    at_of,
    first_seq,
    fold,
    last_seq,
    last_seq_at,
    pages,
    service_names,
    verify,
)
from registry.journal.rows import to_record
from registry.journal.salvage import salvage
from registry.past.history import history
from registry.past.report import report
from registry.questions.history import Run
from registry.questions.moments import Moment
from registry.questions.report import Report, ServiceReport
from tests.simulation.world import Task, World

STORY = runpy.run_path(str(Path(__file__).parents[1] / "golden" / "make_journal_v1.py"))


@pytest.fixture(scope="module")
def story() -> list[Record]:
    """Every type of event."""
    told: list[Record] = STORY["tell_story"]()
    return told


@pytest.fixture(params=[1, 2, 3])
def simulated(request) -> list[Record]:
    """The journal of some services through trouble: kills, full disks, changed configurations."""
    world = World(Task(request.param, 0.2, 5, 1.0))
    world.run()
    return [to_record(row) for row in world.disk.rows]


async def write(path: Path, records: list[Record]) -> None:
    journal = await Journal.open(path, durability="normal")
    await journal.append(records)
    await journal.close()


def event_record(journal: Journal, event: ev.Event, at_ns: int) -> Record:
    seq = journal.seq + 1
    return Record(seq, at_ns, 0, seq, None, None, None, None, event)


async def anchored(journal: Journal, horizon: int) -> Compaction:
    """The journal begins after `horizon`, and nothing is removed yet."""
    compaction = Compaction(journal)
    new = await compaction.anchor_after(horizon)
    (newest,) = await journal.read(since=-1)
    await journal.append([event_record(journal, compaction.event(new), newest.at_ns)])
    await compaction.put(new)
    return compaction


async def compact(path: Path, horizon: int) -> None:
    journal = await Journal.open(path, durability="normal")
    compaction = await anchored(journal, horizon)
    while await compaction.remove_some():
        pass
    await journal.close()


def all_records(connection: Any, **selection: Any) -> list[Record]:
    return [r for page in pages(connection, Selection(**selection)) for r in page]


def folds(records: Iterable[Record]) -> dict[int, Projection]:
    """What the services were after each event, by its number."""
    projection, found = Projection(), {}
    for record in records:
        projection.fold([record])
        found[record.seq] = copy.deepcopy(projection)
    return found


def ends_of_decisions(records: list[Record]) -> list[int]:
    following = [*records[1:], None]
    pairs = zip(records, following, strict=True)
    return [a.seq for a, b in pairs if b is None or a.decision != b.decision]


def chain(found: dict[int, Record], seq: int, horizon: int) -> list[Record]:
    """An event, what caused it, and so on; beyond the horizon as far as is promised."""
    links, beyond = [], 0
    record = found.get(seq)
    while record is not None and beyond < LINKS_MAX:
        links.append(record)
        beyond += record.seq <= horizon
        record = found.get(record.cause) if record.cause is not None else None
    return links


def judge(path: Path, records: list[Record], states: dict[int, Projection], horizon: int) -> None:
    """Compare every answer with what it was before the journal was compacted at `horizon`."""
    before = {record.seq: record for record in records}
    later = [record for record in records if record.seq > horizon]
    with closing(open_for_reading(path)) as connection:
        assert verify(connection).trouble is None
        assert verify(connection).first == first_seq(connection) == horizon + 1
        assert all_records(connection)[:-1] == later
        rows = connection.execute("SELECT seq FROM events").fetchall()
        assert len(rows) == len(later) + 1 + len(anchor_of(connection).kept)  # type: ignore[union-attr]
        kept = [
            r for name in before_names(records) for r in all_records(connection, services=(name,))
        ]
        kept += [to_record(row) for row in connection.execute("SELECT * FROM events")]
        after = {record.seq: record for record in kept}
        assert all(before[seq] == after[seq] for seq in after.keys() & before.keys())
        for record in later:
            assert chain(after, record.seq, horizon) == chain(before, record.seq, horizon)
        _judge_moments(connection, records, states, horizon)
        _judge_runs(after, states[horizon], before)


def before_names(records: list[Record]) -> set[str]:
    return {record.service for record in records if record.service is not None}


def _judge_moments(
    connection: Any, records: list[Record], states: dict[int, Projection], horizon: int
) -> None:
    asked = [r for r in records if r.seq >= horizon]
    for record in random.Random(horizon).sample(asked, min(len(asked), 8)) + asked[:2]:
        assert fold(connection, record.seq) == states[record.seq]
        assert at_of(connection, record.seq) == record.at_ns
    at_horizon = next(r.at_ns for r in records if r.seq == horizon)
    for record in asked[:: max(1, len(asked) // 8)]:
        if record.at_ns >= at_horizon:
            then = max(r.seq for r in records if r.at_ns <= record.at_ns)
            assert last_seq_at(connection, record.at_ns) in (then, last_seq(connection))
    with pytest.raises(Compacted, match=f"before event {horizon + 1} is not known"):
        last_seq_at(connection, at_horizon - 10**18)
    if horizon > 1:
        with pytest.raises(Compacted, match=f"before event {horizon + 1} is not known"):
            fold(connection, horizon - 1)
    assert set(service_names(connection)) >= {r.service for r in asked[1:] if r.service}
    assert set(service_names(connection)) >= set(states[horizon].services)


def _judge_runs(after: dict[int, Record], state: Projection, before: dict[int, Record]) -> None:
    """What runs keeps its beginning, and why it is as it is."""
    for service in state.services.values():
        assert service.cause is None or after[service.cause] == before[service.cause]
        if service.state in HAS_RUN and service.spawned_seq is not None:
            assert after[service.spawned_seq] == before[service.spawned_seq]
    begun = [r for r in after.values() if r.type == "spawned"]
    assert {r.seq for r in begun if _end(r, before)} == {r.seq for r in begun if _end(r, after)}


def _end(began: Record, records: dict[int, Record]) -> bool:
    """Whether the run that began there ended."""
    whose = (began.service, began.run)
    return any(
        (r.service, r.run) == whose and r.type in ("exited", "lost") for r in records.values()
    )


async def test_at_every_horizon_of_the_story_every_later_question_is_answered_as_before(
    story, tmp_path
):
    whole, path = tmp_path / "whole.db", tmp_path / "registry.db"
    await write(whole, story)
    states = folds(story)
    for horizon in ends_of_decisions(story)[::3]:
        shutil.copy(whole, path)
        await compact(path, horizon)
        judge(path, story, states, horizon)


@pytest.mark.timeout(120)
async def test_so_it_is_of_journals_of_simulated_trouble(simulated, tmp_path):
    records = simulated
    whole, path = tmp_path / "whole.db", tmp_path / "registry.db"
    await write(whole, records)
    states = folds(records)
    for horizon in random.Random(len(records)).sample(ends_of_decisions(records), 8):
        shutil.copy(whole, path)
        await compact(path, horizon)
        judge(path, records, states, horizon)


async def test_what_runs_is_told_with_what_was_behind_its_beginning(story, tmp_path):
    whole, path = tmp_path / "whole.db", tmp_path / "registry.db"
    await write(whole, story)
    told = 0
    for horizon in ends_of_decisions(story)[::3]:
        shutil.copy(whole, path)
        await compact(path, horizon)
        for run, was in runs_of_both(path, whole):
            assert beginning_of(run) == beginning_of(was)
            told += run.started_by is not None and run.started_by.event.seq <= horizon
    assert told > 50


def runs_of_both(path: Path, whole: Path) -> Iterator[tuple[Run, Run]]:
    """Each run that a compacted journal tells of, and the same as the whole journal has it."""
    with closing(open_for_reading(whole)) as before, closing(open_for_reading(path)) as after:
        for name in service_names(after):
            runs = {each.run: each for each in history(before, name).runs}
            yield from ((run, runs[run.run]) for run in history(after, name).runs)


def beginning_of(run: Run) -> tuple[Any, ...]:
    return (run.started, run.ready_s, run.started_by)


async def test_of_nothing_that_led_on_an_earlier_cause_is_not_taken_for_it(simulated, tmp_path):
    whole, path = tmp_path / "whole.db", tmp_path / "registry.db"
    await write(whole, simulated)
    for horizon in random.Random(len(simulated)).sample(ends_of_decisions(simulated), 8):
        shutil.copy(whole, path)
        await compact(path, horizon)
        for run, was in runs_of_both(path, whole):
            assert run.started_by in (None, was.started_by)
            assert run.ended_by in (None, was.ended_by)


async def test_the_time_between_what_was_removed_and_the_first_event_is_reported(story, tmp_path):
    whole, path = tmp_path / "whole.db", tmp_path / "registry.db"
    await write(whole, story)
    gaps = [
        (last, following)
        for last, following in pairwise(story)
        if following.at_ns - last.at_ns > 10**9 and last.seq in ends_of_decisions(story)
    ]
    assert {type(following.event) for _last, following in gaps} > {ev.RegistryStarted}
    for last, following in gaps:
        shutil.copy(whole, path)
        await compact(path, last.seq)
        third_ns = (following.at_ns - last.at_ns) // 3
        moments = [
            Moment(at_ns, at_ns) for at_ns in (last.at_ns + third_ns, last.at_ns + 2 * third_ns)
        ]
        with (
            closing(open_for_reading(whole)) as before,
            closing(open_for_reading(path)) as after,
        ):
            for until in (moments[1], Moment(story[-1].at_ns, story[-1].at_ns)):
                told = report(after, since=moments[0], until=until)
                was = report(before, since=moments[0], until=until)
                assert declared(told) == declared(was) != []


def declared(told: Report) -> list[ServiceReport]:
    return [each for each in told.services if each.states_s["undeclared"] < told.period.seconds]


async def test_again_and_again_it_is_as_if_it_had_been_done_once(story, tmp_path):
    path = tmp_path / "registry.db"
    await write(path, story)
    states = folds(story)
    for horizon in ends_of_decisions(story)[10::25]:
        await compact(path, horizon)
        with closing(open_for_reading(path)) as connection:
            found = verify(connection)
            assert found.trouble is None
            assert found.anchored_by == found.seq
            assert fold(connection, horizon) == states[horizon]


async def test_a_registry_goes_on_from_it_with_every_number_and_the_last_runs(story, tmp_path):
    path = tmp_path / "registry.db"
    await write(path, story)
    await compact(path, story[-1].seq)
    journal = await Journal.open(path)
    projection = await journal.fold()
    assert (journal.seq, projection.seq) == (story[-1].seq + 1,) * 2
    whole = folds(story)[story[-1].seq]
    whole.seq += 1
    assert projection == whole
    assert projection.last_runs
    await journal.close()


async def test_what_is_read_of_all_services_begins_with_the_first_event(story, tmp_path):
    path = tmp_path / "registry.db"
    await write(path, story)
    await compact(path, 100)
    journal = await Journal.open(path)
    first = (await journal.read(limit=1))[0]
    assert journal.first == first.seq > 90
    kept = [r for r in await journal.read(service="web") if r.seq < first.seq]
    assert kept
    assert all(record == story[record.seq - 1] for record in kept)
    await journal.close()


async def test_rows_that_wait_for_their_removal_count_for_nothing(story, tmp_path):
    """Killed after the anchor was put in its place: the next registry goes on, and answers are the same meanwhile."""
    path = tmp_path / "registry.db"
    await write(path, story)
    horizon, states = ends_of_decisions(story)[40], folds(story)
    journal = await Journal.open(path)
    await anchored(journal, horizon)
    await journal.close()
    change(path, "UPDATE events SET body = '{', service = 'x' WHERE seq = 3")
    with closing(open_for_reading(path)) as connection:
        assert verify(connection).trouble is None
        assert all_records(connection)[0].seq == horizon + 1
        assert fold(connection, horizon) == states[horizon]
        assert "x" not in service_names(connection)
    journal = await Journal.open(path)
    assert (await journal.fold()).seq == journal.seq
    assert journal.anchor is not None
    assert {r.seq for r in await journal.read(service="web")} <= {
        *journal.anchor.kept,
        *range(horizon, 999),
    }
    compaction = Compaction(journal)
    while await compaction.remove_some():
        pass
    assert (
        len(journal.anchor.kept)
        == change(path, "SELECT count(*) FROM events WHERE seq <= ?", horizon)[0][0]
    )
    await journal.close()


def change(path: Path, statement: str, *values: object) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(statement, values).fetchall()


async def test_snapshots_before_the_horizon_go_and_later_ones_still_count(
    story, tmp_path, monkeypatch
):
    monkeypatch.setattr(snapshots, "EVERY", 1)
    monkeypatch.setattr(snapshots, "EVERY_OF_ONE", 0)
    path, states = tmp_path / "registry.db", folds(story)
    journal = await Journal.open(path)
    for record in story:
        await journal.append([record])
        if record.seq % 20 == 0:
            await journal.keep_snapshot(states[record.seq])
    await journal.close()
    await compact(path, 100)
    assert change(path, "SELECT min(seq), count(*) FROM snapshots") == [(120, 4)]
    change(path, "UPDATE events SET body = '{' WHERE seq BETWEEN 101 AND 120")
    with closing(open_for_reading(path)) as connection:
        assert fold(connection, 150) == states[150]


TAMPERED = {
    "UPDATE anchor SET state = replace(state, '\"run\":1', '\"run\":7')": "does not match its digest",
    "UPDATE anchor SET at_ns = at_ns + 1": "does not match its digest",
    "UPDATE anchor SET hash = 'f' || substr(hash, 2)": "does not match its digest",
    "UPDATE anchor SET seq = seq + 1": "does not match its digest",
    "UPDATE anchor SET kept = '[]'": "does not match its digest",
    "UPDATE events SET body = replace(body, 'pid', 'pit') WHERE type = 'spawned' AND seq <= 100":
        "does not match its digest",
    "DELETE FROM events WHERE seq <= 100": "does not match its digest",
    "UPDATE anchor SET digest = 'e'": "does not match its digest",
    "UPDATE anchor SET kept = 'x'": "cannot be read",
    "DELETE FROM anchor": "event 1 is missing",
    "UPDATE events SET at_ns = 1 WHERE type = 'journal_compacted'": "was changed",
    "DELETE FROM events WHERE type = 'journal_compacted'": "is recorded by no event",
}  # fmt: skip


@pytest.mark.parametrize(("statement", "trouble"), TAMPERED.items())
async def test_verification_finds_whatever_was_changed_of_the_beginning(
    statement, trouble, story, tmp_path
):
    path = tmp_path / "registry.db"
    await write(path, story)
    await compact(path, 100)
    change(path, statement)
    with closing(open_for_reading(path)) as connection:
        assert trouble in (verify(connection).trouble or "")


async def test_a_flipped_byte_is_found_or_changes_nothing(story, tmp_path):
    path = tmp_path / "registry.db"
    await write(path, story)
    await compact(path, 100)
    good, (_trouble, content) = path.read_bytes(), contents(path)
    chance, found = random.Random(7), 0
    for _ in range(300):
        spoiled = bytearray(good)
        spoiled[chance.randrange(100, len(good))] ^= 1 << chance.randrange(8)
        path.write_bytes(spoiled)
        trouble, now = contents(path)
        assert trouble is not None or now == content
        found += trouble is not None
    assert found > 30


def contents(path: Path) -> tuple[str | None, object]:
    """What verification says, and all that it stands for."""
    try:
        connection = open_for_reading(path)
    except JournalError as error:
        return str(error), None
    with closing(connection):
        trouble = verify(connection).trouble
        if trouble is not None:
            return trouble, None
        return None, (
            anchor_of(connection),
            [
                connection.execute(f"SELECT * FROM {name}").fetchall()
                for name in ("events", "anchor")
            ],
        )


async def test_a_damaged_one_is_salvaged_from_its_anchor_on(story, tmp_path):
    path, states = tmp_path / "registry.db", folds(story)
    await write(path, story)
    await compact(path, 99)
    change(path, "UPDATE events SET body = '{' WHERE seq = 150")
    assert salvage(path)[1:] == (100, 149)
    journal = await Journal.open(path)
    assert await journal.fold() == states[149]
    assert [r.seq for r in await journal.read()] == list(range(100, 150))
    await journal.close()


async def test_of_one_whose_beginning_is_damaged_nothing_is_trusted(story, tmp_path):
    path = tmp_path / "registry.db"
    await write(path, story)
    await compact(path, 99)
    change(path, "UPDATE anchor SET state = replace(state, ':1', ':2')")
    with pytest.raises(JournalDamaged, match="does not match its digest"):
        await Journal.open(path)
    assert salvage(path)[1:] == (1, 0)
    journal = await Journal.open(path)
    assert (journal.seq, journal.anchor) == (0, None)
    await journal.close()


# --- how far --------------------------------------------------------------------------------------


async def test_what_is_older_ends_before_the_first_that_is_not(opened, beats):
    journal = await opened()
    await journal.append(beats(1, 50))
    compaction, seventh = Compaction(journal), beats(7, 1)[0].at_ns
    assert await compaction.older_than(0) == 0
    await journal.append([r for seq in range(51, 80) for r in beats(seq, 1)])
    assert await compaction.older_than(seventh) == 0, "it is in the midst of a decision"
    assert await compaction.older_than(beats(60, 1)[0].at_ns) == 59
    assert await compaction.older_than(2**63 - 1) == 79


async def test_a_size_asks_for_the_oldest_part_of_the_events(opened, beats):
    journal = await opened()
    await journal.append([r for seq in range(1, 2001) for r in beats(seq, 1)])
    compaction = Compaction(journal)
    size = await compaction.size()
    assert size.file >= size.used > 100_000
    assert await compaction.beyond(size.used) == 0
    assert await compaction.beyond(size.used // 2) in range(990, 1010)


async def test_the_pages_of_what_was_removed_are_used_again(opened, beats, life):
    journal = await opened()
    compaction, sizes, first = Compaction(journal), [], 1
    await journal.append(life)
    for _ in range(6):
        await journal.append(
            [r for seq in range(journal.seq + 1, journal.seq + 2001) for r in beats(seq, 1)]
        )
        sizes.append((await compaction.size()).file)
        compaction = await anchored(journal, journal.seq - 100)
        while await compaction.remove_some():
            pass
        assert first < (first := journal.first)
    assert max(sizes) < 1.3 * sizes[0]


async def test_what_it_begins_with_is_plain_json(story, tmp_path):
    path = tmp_path / "registry.db"
    await write(path, story)
    await compact(path, 100)
    ((state, kept),) = change(path, "SELECT state, kept FROM anchor")
    assert json.loads(state)["services"]["web"]["definition"]["name"] == "web"
    assert all(isinstance(seq, int) for seq in json.loads(kept))
