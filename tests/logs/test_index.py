"""What an index promises: when, and by which run, each line was written; and no error when it is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from registry.logs import read
from registry.logs.files import LogFile
from registry.logs.index import FREE, RESOLUTION_NS, SIZE, index_path
from registry.logs.read import Selection, last_words, select, select_and_follow

S = 1_000_000_000


class Clock:
    """The time that the writer sees."""

    def __init__(self) -> None:
        self.now_ns = 1_700_000_000 * S

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("registry.logs.files.time.time_ns", made)
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "web.log"


def say(log: LogFile, output, run: int, text: str) -> None:
    output.write(text)
    log.move(output.reader, run)


def texts(path: Path, lines: int = 1000, **selection: int) -> list[str]:
    return [line.text for line in select(path, lines, Selection(**selection))]


@pytest.fixture
def told(path, output, clock) -> list[int]:
    """Three runs, ten seconds apart, rotated in between; the times at which they began."""
    log = LogFile(str(path), 60, 9)
    began = []
    for run in (1, 2, 3):
        began.append(clock.now_ns)
        for number in range(5):
            say(log, output, run, f"run {run} says {number}\n")
            clock.now_ns += S
        clock.now_ns += 5 * S
    log.close()
    assert Path(f"{path}.2").exists()
    return began


def test_the_lines_of_a_run_are_its_own(path, told) -> None:
    assert texts(path, run=2) == [f"run 2 says {n}" for n in range(5)]
    assert texts(path, run=4) == []
    assert texts(path, lines=2, run=1) == ["run 1 says 3", "run 1 says 4"]


def test_the_lines_of_a_time_are_those_written_then(path, told) -> None:
    assert texts(path, first_ns=told[1], last_ns=told[2] - 1) == [
        f"run 2 says {n}" for n in range(5)
    ]
    assert texts(path, first_ns=told[2] + 3 * S) == ["run 3 says 3", "run 3 says 4"]
    assert texts(path, last_ns=told[0] + S) == ["run 1 says 0", "run 1 says 1"]
    assert texts(path, first_ns=told[2] + 60 * S) == []


def test_each_line_bears_its_time_and_its_run(path, told) -> None:
    assert [(line.at_ns, line.run) for line in select(path, 2, Selection())] == [
        (told[2] + 3 * S, 3),
        (told[2] + 4 * S, 3),
    ]


def test_the_log_is_what_the_service_wrote_and_nothing_else(path, told) -> None:
    assert "".join(
        p.read_text() for p in (Path(f"{path}.{n}") for n in range(4, 0, -1)) if p.exists()
    ) + path.read_text() == "".join(f"run {r} says {n}\n" for r in (1, 2, 3) for n in range(5))


def test_a_line_that_two_runs_wrote_is_of_the_first(path, output, clock) -> None:
    log = LogFile(str(path), 1000, 3)
    say(log, output, 1, "cut in ")
    say(log, output, 2, "half\nwhole\n")
    log.close()
    assert texts(path, run=1) == ["cut in half"]
    assert texts(path, run=2) == ["whole"]


def test_the_unfinished_line_of_a_run_is_read_and_its_end_is_followed(path, output, clock) -> None:
    log = LogFile(str(path), 1000, 3)
    say(log, output, 1, "one\nunfin")
    assert texts(path, run=1) == ["one", "unfin"]
    lines, follower = select_and_follow(path, 10, Selection(run=1))
    say(log, output, 1, "ished\n")
    assert [line.text for line in lines] == ["one"]
    assert follower.read_new() == ["unfinished"]
    follower.close()
    log.close()


def test_a_new_writer_goes_on_with_the_index(path, output, clock) -> None:
    for run in (1, 2):
        log = LogFile(str(path), 1000, 3)
        say(log, output, run, f"run {run}\n")
        log.close()
    assert texts(path, run=1) == ["run 1"]
    assert texts(path, run=2) == ["run 2"]


@pytest.mark.parametrize("size", [0, 5, SIZE, SIZE + 7, 2 * SIZE + 31])
def test_a_cut_index_costs_precision_only(path, told, size) -> None:
    for number in range(5):
        if (index := Path(index_path(str(path), number))).exists():
            os.truncate(index, size)
    everything = [f"run {r} says {n}" for r in (1, 2, 3) for n in range(5)]
    assert texts(path) == everything
    assert texts(path, first_ns=0) == everything
    assert set(texts(path, run=2)) <= set(everything)


def test_without_an_index_a_file_is_chosen_by_its_time_and_says_nothing_of_runs(path) -> None:
    Path(f"{path}.1").write_text("old\n")
    path.write_text("new\n")
    os.utime(f"{path}.1", (1000, 1000))
    os.utime(path, (2000, 2000))
    assert texts(path, first_ns=1500 * S) == ["new"]
    assert texts(path, last_ns=500 * S) == ["old"]
    assert texts(path, run=1) == ["old", "new"]
    assert last_words(path, run=1) == []
    assert [(line.at_ns, line.run) for line in select(path, 9, Selection())] == [(None, None)] * 2


def test_lines_that_no_index_knows_are_of_a_run_between_those_known_beside_them(path, told) -> None:
    """Five files, of runs 1, 1 and 2, 2 and 3, and so on: what one index told is missing."""
    everything = [f"run {r} says {n}" for r in (1, 2, 3) for n in range(5)]
    Path(index_path(str(path), 2)).unlink()
    unknown = [line.text for line in select(path, 99, Selection()) if line.run is None]
    assert 0 < len(unknown) < len(everything)
    for run in (1, 2, 3):
        said = texts(path, run=run)
        assert said == [text for text in everything if text in said]
        assert {text for text in everything if f"run {run} " in text} <= set(said)
        assert all(f"run {run} " in text or text in unknown for text in said)
    assert texts(path, run=4) == []


def test_where_runs_were_counted_anew_what_no_index_knows_may_be_of_each(
    path, output, clock
) -> None:
    for run in (7, 8, 1):
        log = LogFile(str(path), 10, 9)
        say(log, output, run, f"told by {run}\n")
        log.close()
    Path(index_path(str(path), 1)).unlink()
    assert texts(path, run=8) == ["told by 8"]
    assert texts(path, run=1) == ["told by 8", "told by 1"]


def test_the_index_of_another_file_is_no_index(path, told) -> None:
    os.replace(index_path(str(path), 2), index_path(str(path)))
    assert [line.run for line in select(path, 1, Selection())] == [None]


def test_garbage_is_no_index(path, told) -> None:
    header = Path(index_path(str(path))).read_bytes()[:SIZE]
    Path(index_path(str(path))).write_bytes(header + os.urandom(40 * SIZE))
    assert texts(path)[-1] == "run 3 says 4"
    assert texts(path, first_ns=0)[-1] == "run 3 says 4"


def test_what_stands_after_a_damaged_record_is_no_runs_and_left_out_of_none(
    path, output, clock
) -> None:
    log = LogFile(str(path), 1000, 3)
    for run in (1, 2, 3, 4):
        say(log, output, run, f"run {run}\n")
    log.close()
    index = Path(index_path(str(path)))
    records = index.read_bytes()
    index.write_bytes(records[: 3 * SIZE] + b"\xff" * SIZE + records[4 * SIZE :])
    assert [line.run for line in select(path, 9, Selection())] == [1, None, None, None]
    assert texts(path, run=1) == ["run 1", "run 2", "run 3", "run 4"]
    assert texts(path, run=3) == ["run 2", "run 3", "run 4"]
    assert texts(path, first_ns=clock.now_ns + 60 * S) == ["run 2", "run 3", "run 4"]


def test_an_index_left_behind_by_a_killed_rotation_finds_its_file(path, output, clock) -> None:
    log = LogFile(str(path), 1000, 5)
    say(log, output, 1, "first\n")
    log.close()
    path.rename(f"{path}.1")
    assert texts(path, run=1) == ["first"]
    log = LogFile(str(path), 1000, 5)
    say(log, output, 2, "second\n")
    log.close()
    assert Path(index_path(str(path), 1)).exists()
    assert texts(path, run=1) == ["first"]
    assert texts(path, run=2) == ["second"]


def test_a_truncated_log_begins_its_index_anew(path, output, clock) -> None:
    log = LogFile(str(path), 10_000, 3)
    say(log, output, 1, "a long line of the first run\n")
    os.truncate(path, 0)
    say(log, output, 2, "short\n")
    log.close()
    assert texts(path, run=2) == ["short"]
    assert texts(path, run=1) == []


def test_a_clock_set_back_hides_nothing(path, output, clock) -> None:
    log = LogFile(str(path), 10_000, 3)
    noon = clock.now_ns
    say(log, output, 1, "noon\n")
    clock.now_ns -= 3600 * S
    say(log, output, 1, "eleven\n")
    clock.now_ns += 7200 * S
    say(log, output, 1, "one\n")
    log.close()
    assert texts(path, last_ns=noon - S) == ["eleven"]
    assert texts(path, first_ns=noon) == ["noon", "one"]


def test_an_index_is_bounded_by_its_file(path, output, clock) -> None:
    log = LogFile(str(path), 1 << 20, 3)
    for _ in range(8000):
        say(log, output, 1, "x\n")
        clock.now_ns += 2 * RESOLUTION_NS
    log.close()
    assert os.path.getsize(index_path(str(path))) <= FREE + 2 * SIZE + os.path.getsize(path) // 8
    assert len(texts(path, first_ns=clock.now_ns - S)) >= 49


def test_ever_so_many_runs_rotate_the_file_before_their_index_grows_too_large(
    path, output, clock
) -> None:
    log = LogFile(str(path), 1 << 15, 9)
    for run in range(1, 4001):
        say(log, output, run, "x\n")
    log.close()
    assert Path(f"{path}.1").exists()
    assert os.path.getsize(index_path(str(path), 1)) <= FREE + (1 << 13) + 2 * SIZE
    assert texts(path, run=1) == texts(path, run=4000) == ["x"]


def test_an_index_that_cannot_be_written_loses_no_line(path, output, clock) -> None:
    Path(index_path(str(path))).mkdir()
    log = LogFile(str(path), 1000, 3)
    say(log, output, 1, "kept\n")
    log.close()
    assert [(line.text, line.run) for line in select(path, 9, Selection())] == [("kept", None)]


def test_last_words_are_few(path, output, clock, monkeypatch) -> None:
    log = LogFile(str(path), 1 << 20, 3)
    say(log, output, 1, "".join(f"line {n}\n" for n in range(100)))
    say(log, output, 2, "of another run\n")
    log.close()
    assert last_words(path, 1) == [f"line {n}" for n in range(80, 100)]
    monkeypatch.setattr(read, "LAST_BYTES", 20)
    assert last_words(path, 1) == ["e 97", "line 98", "line 99"]
    assert last_words(path, 3) == []
