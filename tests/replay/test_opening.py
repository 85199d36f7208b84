"""Which files replay reads, what it says where it cannot, and that it changes none of them."""

import asyncio
import errno
import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from registry.core.events import Record
from registry.journal import Journal, JournalError, opening
from registry.journal import read as reading
from registry.journal.opening import open_for_reading


def _names(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()}


def _copy(live: Journal, folder: Path, *suffixes: str) -> Path:
    folder.mkdir()
    for suffix in suffixes:
        shutil.copyfile(f"{live.path}{suffix}", folder / f"copy.db{suffix}")
    return folder / "copy.db"


# --- live -----------------------------------------------------------------------------------------


async def test_a_live_journal_is_read_while_it_grows_and_nothing_is_said(
    live: Journal, story: list[Record], replay
) -> None:
    before = replay(live.path, "--json")
    await live.append(story[50:60])
    after = replay(live.path, "--json")
    assert [len(answer.out.splitlines()) for answer in (before, after)] == [50, 60]
    assert before.err == after.err == ""


async def test_the_writer_goes_on_under_an_open_reader(live: Journal, story: list[Record]) -> None:
    with closing(open_for_reading(live.path)) as connection:
        pages = reading.row_pages(connection)
        assert len(next(pages)) == 50
        await live.append(story[50:60])  # the reader holds no lock between pages
        with closing(sqlite3.connect(live.path)) as other:
            assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
        assert [row[0] for row in next(pages)] == list(range(51, 61))


async def test_a_live_journal_verifies(live: Journal, replay) -> None:
    answer = replay("--verify", "--head", live.hash, live.path)
    assert (answer.status, answer.err) == (0, "")


# --- copies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffixes", [("", "-wal"), ("", "-wal", "-shm")])
async def test_a_copy_with_its_wal_has_every_event(
    live: Journal, tmp_path: Path, replay, suffixes: tuple[str, ...]
) -> None:
    copy = _copy(live, tmp_path / "copy", *suffixes)
    answer = replay(copy)
    assert len(answer.out.splitlines()) == 50
    assert answer.err == ""


async def test_a_copy_without_its_wal_says_that_newer_events_may_be_missing(
    live: Journal, tmp_path: Path, story: list[Record], replay
) -> None:
    with closing(sqlite3.connect(live.path)) as other:
        other.execute("PRAGMA wal_checkpoint(PASSIVE)")
    await live.append(story[50:60])
    copy = _copy(live, tmp_path / "copy", "")
    for _ in range(2):  # reading it makes no -wal that would silence the second answer
        answer = replay(copy)
        assert len(answer.out.splitlines()) == 50
        assert answer.err == (
            f"{copy}: no copy.db-wal beside it: if it was copied without, newer events may be missing\n"
        )


async def test_a_copy_of_a_young_journal_without_its_wal_is_told_what_it_lacks(
    live: Journal, tmp_path: Path, replay
) -> None:
    copy = _copy(live, tmp_path / "copy", "")
    answer = replay(copy)
    assert answer[:2] == (1, "")
    assert "this SQLite file holds nothing, as a young journal does without its -wal" in answer.err
    assert "copy copy.db-wal along" in answer.err


def test_after_an_orderly_stop_nothing_need_be_said(write, story: list[Record], replay) -> None:
    answer = replay(write(story[:97]))
    assert (answer.status, answer.err) == (0, "")


def test_a_journal_made_one_file_by_sqlite_is_read_and_nothing_said(
    journal: Path, tmp_path: Path, replay, change: Callable[..., None]
) -> None:
    change(journal, f"VACUUM INTO '{tmp_path / 'one.db'}'")
    answer = replay(tmp_path / "one.db", "--verify")
    assert (answer.status, answer.err) == (0, "")


async def test_a_wal_longer_than_one_region_of_its_index_is_read_whole(
    tmp_path: Path, long_journal: Path, replay
) -> None:
    path = tmp_path / "long.db"
    with closing(open_for_reading(long_journal)) as connection:
        records = [record for page in reading.pages(connection) for record in page]
    live = await Journal.open(path, durability="normal")
    try:
        await live._writer.execute("PRAGMA wal_autocheckpoint = 0")
        for first in range(0, 5000, 2):
            await live.append(records[first : first + 2])
        copy = _copy(live, tmp_path / "copy", "", "-wal")
    finally:
        await live.close()
    assert copy.with_name("copy.db-wal").stat().st_size > 4096 * 4096
    assert replay("--verify", copy).status == 0
    assert len(replay(copy).out.splitlines()) == 5000


async def test_a_copy_made_across_a_checkpoint_is_made_again(
    live: Journal, tmp_path: Path, story: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[str] = []

    def copyfile(source: Path, copy: Path) -> None:
        real(source, copy)
        copied.append(source.name)
        if len(copied) == 1:  # between the file and its -wal
            with closing(sqlite3.connect(live.path)) as other:
                other.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    real = shutil.copyfile
    monkeypatch.setattr(opening, "_open_in_place", lambda _path: None)
    monkeypatch.setattr(shutil, "copyfile", copyfile)
    with closing(open_for_reading(live.path)) as connection:
        assert reading.last_seq(connection) == 50
    assert copied == ["live.db", "live.db-wal"] * 2


def test_a_journal_that_never_keeps_still_is_refused(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(range(100))
    monkeypatch.setattr(opening, "_generation", lambda _path: next(times))
    with pytest.raises(JournalError, match=r"it changes while it is copied; read it as"):
        open_for_reading(journal)


# --- read-only ------------------------------------------------------------------------------------


def test_reading_changes_nothing_where_the_journal_lies(journal: Path, replay) -> None:
    before = _names(journal.parent)
    for options in ([], ["--verify"], ["--at", "seq:5"]):
        assert replay(journal, *options).status == 0
    assert _names(journal.parent) == before


@pytest.fixture
def sealed(short_dir: Path) -> Iterator[Path]:
    """A folder for all to read, and once it is filled and sealed for nobody to write."""
    folder = short_dir / "sealed"
    folder.mkdir()
    short_dir.chmod(0o755)
    yield folder
    folder.chmod(0o755)


@pytest.fixture
def replay_as_nobody(start: Callable[..., subprocess.Popen[str]], short_dir: Path):
    """Run the command as a user who may write nowhere but in a folder for temporary files."""
    temporary = short_dir / "tmp"
    temporary.mkdir()
    temporary.chmod(0o777)

    def replay_(*arguments: object) -> tuple[int, str, str]:
        process = start(*arguments, temporary=temporary, as_nobody=True)
        out, err = process.communicate()
        return process.returncode, out, err

    yield replay_
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("suffixes", [("",), ("", "-wal"), ("", "-wal", "-shm")])
async def test_a_read_only_file_in_a_read_only_folder_is_read_by_an_ordinary_user(
    live: Journal, sealed: Path, replay_as_nobody, suffixes: tuple[str, ...]
) -> None:
    with closing(sqlite3.connect(live.path)) as other:
        other.execute("PRAGMA wal_checkpoint(PASSIVE)")
    for suffix in suffixes:
        path = Path(shutil.copyfile(f"{live.path}{suffix}", sealed / f"copy.db{suffix}"))
        path.chmod(0o444)
    sealed.chmod(0o555)
    before = _names(sealed)
    status, out, err = await asyncio.to_thread(replay_as_nobody, sealed / "copy.db")
    assert (status, len(out.splitlines())) == (0, 50), err
    assert ("newer events may be missing" in err) == (suffixes == ("",))
    assert _names(sealed) == before


async def test_a_live_journal_that_may_not_be_written_is_read_by_an_ordinary_user(
    sealed: Path, story: list[Record], replay_as_nobody
) -> None:
    live = await Journal.open(sealed / "registry.db")
    try:
        await live.append(story[:50])
        sealed.chmod(0o555)
        for path in sealed.iterdir():
            path.chmod(0o444)
        status, out, err = await asyncio.to_thread(replay_as_nobody, live.path, "--verify")
        assert (status, err) == (0, ""), out
        sealed.chmod(0o755)
    finally:
        await live.close()


def test_a_file_that_may_not_be_read_is_refused_in_a_sentence(
    journal: Path, sealed: Path, replay_as_nobody
) -> None:
    path = Path(shutil.copyfile(journal, sealed / "copy.db"))
    path.chmod(0)
    status, out, err = replay_as_nobody(path)
    assert (status, out) == (1, "")
    assert err == f"circle-replay: {path}: it cannot be read: Permission denied\n"


# --- what is no journal ---------------------------------------------------------------------------


def _text(path: Path) -> None:
    path.write_text("hello, I am a text of some length" * 100)


def _other_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (x)")


def _newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"PRAGMA application_id = {0x43534A31}; PRAGMA user_version = 9;")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: None, "there is no such file; name a journal"),
        (Path.touch, "this file is empty, so it is not a journal"),
        (Path.mkdir, "this is a folder; name a journal, which is a file"),
        (os.mkfifo, "this is no ordinary file; name a journal"),
        (
            lambda path: path.symlink_to(path),
            "it cannot be read: Too many levels of symbolic links",
        ),
        (_text, "it cannot be read as a journal: file is not a database"),
        (_other_database, "this SQLite file is not a journal of the Service Registry"),
        (_newer, "written by a newer version (schema 9, this one knows 2); use that version"),
    ],
)
@pytest.mark.parametrize("options", [[], ["--verify"], ["--at", "seq:1"]])
def test_what_is_no_journal_is_refused_in_one_sentence(
    tmp_path: Path, replay, make: Callable[[Path], None], sentence: str, options: list[str]
) -> None:
    path = tmp_path / "it"
    make(path)
    answer = replay(path, *options)
    assert answer[:2] == (1, "")
    assert answer.err.startswith(f"circle-replay: {path}: {sentence}")
    assert answer.err.count("\n") == 1


@pytest.mark.parametrize("bytes_left", [50, 4096, 5000, 12288, 20000])
def test_a_truncated_journal_is_refused_in_a_sentence(
    journal: Path, replay, bytes_left: int
) -> None:
    os.truncate(journal, bytes_left)
    for options in ([], ["--verify"], ["--at", "seq:115"]):
        answer = replay(journal, *options)
        assert answer.status == 1
        assert re.search("cannot be read|holds nothing", answer.out + answer.err)
        assert "Traceback" not in answer.err


def test_of_a_truncated_journal_it_is_said_how_far_it_can_be_trusted(
    long_journal: Path, replay
) -> None:
    os.truncate(long_journal, long_journal.stat().st_size // 2)
    cut = long_journal.read_bytes()
    answer = replay(long_journal, "--verify")
    assert answer.status == 1
    (last,) = re.findall(r"; events 1 to (\d+) can still be trusted", answer.out)
    assert int(last) > 1000
    assert long_journal.read_bytes() == cut


def test_a_copy_that_cannot_be_made_is_told_with_a_remedy(
    journal: Path, replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_source: Path, copy: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(copy))

    monkeypatch.setattr(shutil, "copyfile", full)
    answer = replay(journal)
    assert answer[:2] == (1, "")
    assert "no copy of it can be made to read: No space left on device (" in answer.err
    assert "TMPDIR names the folder for it" in answer.err
