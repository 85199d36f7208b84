"""The bench reckons rightly, runs, says what it left out, and leaves nothing however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from registry.journal.opening import open_for_reading
from registry.journal.read import verify
from tests.bench import figures, history, report
from tests.bench.figures import NOT, OK, OURS, UNKNOWN, Bound, Point, Results
from tests.bench.supervisors import FAST, Registry, Service

HERE = Path(__file__).parent


def bound(measured: float | None, asked: float, *, at_least: bool = False) -> Bound:
    return Bound("boot", "a bound", measured, asked, "s", at_least)


def results(*medians: float) -> Results:
    """One thing measured of us, the floor and a rival, in this order."""
    made = Results(machine={"machine": "a machine"})
    for who, median in zip((OURS, figures.FLOOR, "dinit"), medians, strict=False):
        made.add("boot", "a boot", who, "s", [median])
    return made


@pytest.mark.parametrize(
    ("measured", "asked", "at_least", "ratio", "verdict"),
    [
        (1.5, 2.0, False, 0.75, OK),
        (2.0, 2.0, False, 1.0, OK),
        (3.0, 2.0, False, 1.5, NOT),
        (20_000.0, 10_000.0, True, 0.5, OK),
        (5_000.0, 10_000.0, True, 2.0, NOT),
        (0.0, 10_000.0, True, float("inf"), NOT),
        (0.0, 0.0, False, 0.0, OK),
        (1.0, 0.0, False, float("inf"), NOT),
        (None, 2.0, False, None, UNKNOWN),
    ],
)
def test_a_bound_is_kept_where_no_more_is_used_than_is_allowed(
    measured: float | None, asked: float, at_least: bool, ratio: float | None, verdict: str
) -> None:
    judged = bound(measured, asked, at_least=at_least)
    assert (judged.ratio, judged.verdict) == (ratio, verdict)


def test_a_percentile_lies_between_its_neighbours_in_proportion() -> None:
    values = [float(value) for value in range(101)]
    assert figures.percentile(values, 50) == 50
    assert figures.percentile(values, 99) == 99
    assert figures.percentile([1.0, 2.0], 50) == 1.5
    assert figures.percentile([7.0], 99) == 7


def test_everybody_is_told_as_a_ratio_of_ours() -> None:
    told = report.tables(results(3.0, 1.0, 2.0))
    lines = [line.split() for line in told.splitlines() if "  " in line]
    ratios = {words[0]: words[-1] for words in lines if words[0] in ("floor", "dinit")}
    assert ratios == {"floor": "3", "dinit": "1.5"}


def test_without_a_rival_a_bound_speaks_of_the_floor() -> None:
    both, alone = results(3.0, 1.0, 2.0), results(3.0, 1.0)
    rival, floor = both.reference("a boot", "dinit"), alone.reference("a boot", "dinit")
    assert rival is not None
    assert floor is not None
    assert (rival.who, floor.who) == ("dinit", "floor")


def test_each_row_is_shown_against_the_earlier_run_and_none_is_lost(tmp_path: Path) -> None:
    earlier, now = results(2.0), results(3.0)
    earlier.bound("boot", "gone", 1.0, 2.0, "s")
    now.bound("boot", "new", 1.0, 2.0, "s")
    figures.write(earlier, tmp_path / "earlier.json")
    rows = {row.name: row for row in figures.compare(figures.read(tmp_path / "earlier.json"), now)}
    assert rows["a boot"].change == 1.5
    assert (rows["gone"].before, rows["gone"].now) == (1.0, None)
    assert (rows["new"].before, rows["new"].now) == (None, 1.0)
    assert "1.5" in report.comparison(list(rows.values()))


def test_growth_is_told_for_ten_times_as_many_whatever_the_steps() -> None:
    made = results(1.0)
    made.points += [Point("boot", "s", 10, 1.0), Point("boot", "s", 1000, 100.0)]
    made.points += [Point("list", "ms", 10, 2.0), Point("list", "ms", 100, 2.0)]
    lines = [line.split() for line in report.tables(made).splitlines()]
    assert [line[-1] for line in lines if line[:2] in (["boot", "1,000"], ["list", "100"])] == [
        "10",
        "1",
    ]


def test_the_long_journal_is_whole_and_ended_orderly(tmp_path: Path) -> None:
    registry = Registry()
    registry.folder = tmp_path
    services = [Service(f"s{at:04d}", ["/bin/false"]) for at in range(3)]
    registry.prepare(services, FAST)
    last = history.write(tmp_path / "etc" / "services.toml", registry.journal, 200)
    connection = open_for_reading(registry.journal)
    try:
        verdict = verify(connection)
    finally:
        connection.close()
    assert (verdict.trouble, verdict.seq) == (None, last)
    assert 150 < last < 300


def test_the_page_of_results_keeps_what_is_written_by_hand(tmp_path: Path) -> None:
    measured, page = tmp_path / "measured.json", tmp_path / "RESULTS.md"
    made = results(2.0, 1.0)
    made.bound("boot", "a boot within 1 s", 2.0, 1.0, "s")
    figures.write(made, measured)
    page.write_text("# By hand\n")
    for _ in range(2):
        subprocess.run(
            [sys.executable, HERE, "--show", measured, "--results", page],
            check=True,
            capture_output=True,
        )
    text = page.read_text()
    assert text.startswith(f"# By hand\n\n{report.MEASURED}\n")
    assert text.count("| a boot within 1 s | 2 s | at most 1 s | 2 | NOT |") == 1
    assert text.count("| a boot | 2 s | 2 |") == 1
    assert text.count("boot: a boot") == 1


@pytest.mark.timeout(90)
def test_a_run_measures_says_what_is_left_out_and_leaves_nothing(short_dir: Path) -> None:
    told = short_dir / "told.json"
    done = subprocess.run(
        [sys.executable, HERE, "restart", "--scale", "tiny", "--rivals", "dinit", "--json", told],
        check=False,
        env={**os.environ, "DINIT_BIN": str(short_dir), "TMPDIR": str(short_dir)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    measured = figures.read(told)
    whose = {figure.who for figure in measured.whom("restart latency")}
    assert whose == {OURS, figures.FLOOR, figures.KEEPING_FLOOR}
    assert all(0 < figure.least <= figure.p50 <= figure.most for figure in measured.figures)
    assert measured.skipped == ["dinit: not on PATH nor in DINIT_BIN"]
    assert [each.name for each in measured.bounds] == [
        "restart p50 within 2.5 times the floor",
        "restart p99 under load within 2 times the quiet one",
    ]
    assert all(each.name in done.stdout for each in measured.bounds)
    assert [path.name for path in short_dir.iterdir()] == ["told.json"]


@pytest.mark.timeout(60)
def test_an_interrupted_run_leaves_nothing(short_dir: Path) -> None:
    bench = subprocess.Popen(
        [sys.executable, HERE, "boot", "--scale", "tiny", "--rivals", ""],
        env={**os.environ, "TMPDIR": str(short_dir)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    with bench:
        deadline = time.monotonic() + 30
        while not list(short_dir.glob("bn-*/*/var/registry.db")) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(bench.pid, signal.SIGINT)
        assert bench.wait(30) == 130
    assert list(short_dir.iterdir()) == []


def test_what_cannot_be_read_is_no_earlier_run(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, HERE, "restart", "--compare", tmp_path / "bad.json"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "is no earlier result" in done.stderr
