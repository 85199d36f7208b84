"""What is kept of a damaged journal, and how that is told."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from registry.journal import Journal
from registry.journal.opening import open_for_reading
from registry.journal.read import row_pages, verify
from registry.journal.salvage import Salvaged, salvage


async def _written(path: Path, records) -> list[tuple]:
    """All rows of a journal that was closed in order."""
    journal = await Journal.open(path, durability="normal")
    for begin in range(0, len(records), 100):
        await journal.append(records[begin : begin + 100])
    await journal.close()
    with closing(sqlite3.connect(path)) as connection:
        return [row for page in row_pages(connection) for row in page]


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
async def test_of_one_whose_end_is_cut_off_what_is_left_is_kept_and_read(
    tmp_path, beats, part: float
):
    path = tmp_path / "registry.db"
    rows = await _written(path, beats(1, 3000))
    os.truncate(path, int(path.stat().st_size * part))
    cut = path.read_bytes()
    with closing(open_for_reading(path)) as connection:
        verdict = verify(connection)
    assert verdict.trouble is not None
    assert verdict.seq > 3000 * (part - 0.2)
    aside, first, last = salvage(path)
    assert (first, last) == (1, verdict.seq)
    assert aside.read_bytes() == cut
    with closing(sqlite3.connect(path)) as connection:
        assert [row for page in row_pages(connection) for row in page] == rows[:last]
        assert verify(connection).trouble is None


async def test_an_event_that_does_not_follow_from_those_before_it_is_not_kept(tmp_path, beats):
    path = tmp_path / "registry.db"
    records = beats(1, 50)
    records[40] = msgspec.structs.replace(records[40], service="ghost")
    await _written(path, records)
    assert salvage(path)[1:] == (1, 40)
    journal = await Journal.open(path)
    assert (await journal.fold()).seq == 40
    await journal.close()


@pytest.mark.parametrize("left", [50, 100, 4096])
async def test_where_hardly_anything_is_left_none_is_kept(tmp_path, beats, left: int):
    path = tmp_path / "registry.db"
    await _written(path, beats(1, 300))
    os.truncate(path, left)
    saved = salvage(path)
    assert saved[1:] == (1, 0)
    assert saved.aside.stat().st_size == left


@pytest.mark.parametrize(
    ("first", "last", "said"),
    [
        (1, 0, "none of its events could be kept, and registry.db is a new one"),
        (100, 99, "none of its events could be kept, and registry.db is a new one"),
        (1, 1, "event 1 of it is kept in registry.db"),
        (1, 40, "events 1 to 40 of it are kept in registry.db"),
    ],
)
def test_what_was_kept_is_told(first: int, last: int, said: str):
    saved = Salvaged(Path("old.db"), first, last)
    assert saved.told(Path("registry.db")) == f"The damaged journal is now old.db; {said}"
