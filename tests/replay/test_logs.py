"""--logs: the lines of log files among the events, of the recorded incident and of folders as they may come."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.logs.archive import Log, names
from registry.logs.index import index_path

GOLDEN = Path(__file__).parents[1] / "golden"
JOURNAL, FOLDER = GOLDEN / "incident.db", GOLDEN / "incident-logs"


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """A copy of the incident's log files, to be spoilt."""
    return Path(shutil.copytree(FOLDER, tmp_path / "logs"))


def _rows(text: str) -> list[dict]:
    return [json.loads(row) for row in text.splitlines()]


def _texts(name: str) -> list[str]:
    log = Log(FOLDER / f"{name}.log")
    try:
        return [line.text for line in log.lines()]
    finally:
        log.close()


def test_every_event_and_every_line_is_told_once_and_in_order(replay: Callable) -> None:
    rows = _rows(replay(JOURNAL, "--logs", FOLDER, "--json").out)
    assert [row["seq"] for row in rows if "seq" in row] == list(range(1, 257))
    for name in names(FOLDER):
        mine = [row["line"] for row in rows if "line" in row and row["service"] == name]
        assert mine == _texts(name)
    assert [row["at"] for row in rows] == sorted(row["at"] for row in rows)


def test_what_a_run_said_lies_between_its_spawn_and_the_next(replay: Callable) -> None:
    rows = _rows(replay(JOURNAL, "--logs", FOLDER, "--json").out)
    run: dict[str, int] = {}
    said: Counter[str] = Counter()
    for row in rows:
        if row.get("type") == "spawned":
            run[row["service"]] = row["run"]
        elif "line" in row:
            assert row["run"] == run[row["service"]]
            said[row["service"]] += 1
    assert set(said) == set(run)


def test_for_people_a_line_bears_a_mark_in_place_of_a_number(replay: Callable) -> None:
    rows = replay(JOURNAL, "--logs", FOLDER, "-s", "db").out.splitlines()
    marked = [row for row in rows if row.startswith("  |  ")]
    assert len(marked) == len(_texts("db"))
    assert "  |  2026-11-28T11:19:30.449Z  db  shutting down" in rows
    assert {row.split()[2] for row in rows} == {"db"}


def test_a_copy_is_said_to_be_one(logs: Path, replay: Callable) -> None:
    answer = replay(JOURNAL, "--logs", logs, "--json")
    assert answer.err == (
        f"{logs}: copied, so an index is taken for that of the file that it is named after\n"
    )


def test_lines_that_no_index_knows_are_marked_and_told_of(logs: Path, replay: Callable) -> None:
    Path(index_path(str(logs / "db.log"))).unlink()
    answer = replay(JOURNAL, "--logs", logs, "-s", "db")
    unknown = [row for row in answer.out.splitlines() if row.startswith("  ?  -  ")]
    assert [row.split("  db  ")[1] for row in unknown] == _texts("db")
    assert answer.err == (
        f"{logs / 'db.log'}: no index tells when 10 of its lines were written:"
        " they stand after what precedes them in their file\n"
    )
    rows = _rows(replay(JOURNAL, "--logs", logs, "-s", "db", "--json").out)
    assert {(row["at"], row["run"]) for row in rows if "line" in row} == {(None, None)}


def test_a_time_that_is_a_hint_is_marked(logs: Path, replay: Callable) -> None:
    path = Path(index_path(str(logs / "migrate.log")))
    data = bytearray(path.read_bytes())
    data[48:56] = (2_000_000_000 * 10**9).to_bytes(8, "little")  # the end of its only record
    path.write_bytes(bytes(data))
    rows = replay(JOURNAL, "--logs", logs, "-s", "migrate").out.splitlines()
    assert [row for row in rows if row.startswith("  ~  2026-11-28T11:19:28.541Z  migrate  ")]
    found = _rows(replay(JOURNAL, "--logs", logs, "-s", "migrate", "--json").out)
    assert {row["hint"] for row in found if "line" in row} == {True}


def test_times_choose_lines_and_events_alike(replay: Callable) -> None:
    between = ["--since", "2026-11-28T11:19:31", "--until", "2026-11-28T11:19:32.5"]
    rows = _rows(replay(JOURNAL, "--logs", FOLDER, "--json", *between).out)
    assert {row["at"][:19] for row in rows} == {"2026-11-28T11:19:31", "2026-11-28T11:19:32"}
    assert max(row["at"] for row in rows) < "2026-11-28T11:19:32.6"
    assert {"seq" in row for row in rows} == {True, False}


def test_control_characters_of_a_line_are_shown_not_obeyed(logs: Path, replay: Callable) -> None:
    (logs / "db.log").write_bytes(b"\x1b[31mred\x1b[0m\tand \x1b]0;title\x07 \xff\n")
    rows = replay(JOURNAL, "--logs", logs, "-s", "db").out
    assert "  db  red     and \\x1b]0;title\\x07 \ufffd\n" in rows


def test_several_folders_may_be_named(logs: Path, tmp_path: Path, replay: Callable) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in logs.glob("db.log*"):
        path.rename(other / path.name)
    both = replay(JOURNAL, "--logs", logs, "--logs", other, "--json").out
    assert both == replay(JOURNAL, "--logs", FOLDER, "--json").out


def test_a_log_of_nobody_in_the_journal_is_left_out(logs: Path, replay: Callable) -> None:
    (logs / "syslog.log").write_text("of another program\n")
    assert "of another program" not in replay(JOURNAL, "--logs", logs).out


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda path: None, "--logs {path}: it cannot be read: No such file or directory"),
        (
            lambda path: path.mkdir(),
            "{path} holds no log of these services: no .log; name their folder",
        ),
        (
            lambda path: (path.mkdir(), (path / "x.log").touch()),
            "{path} holds no log of these services: it has x.log; name their folder",
        ),
    ],
)
def test_a_folder_that_will_not_do_is_told_in_one_sentence(
    tmp_path: Path, replay: Callable, make: Callable, complaint: str
) -> None:
    path = tmp_path / "there"
    make(path)
    answer = replay(JOURNAL, "--logs", path)
    assert (answer.status, answer.out) == (1, "")
    assert answer.err == f"circle-replay: {complaint.format(path=path)}\n"


@pytest.mark.parametrize("option", [("--at", "seq:3"), ("--verify",)])
def test_it_goes_with_the_timeline_only(replay: Callable, option: tuple[str, ...]) -> None:
    answer = replay(JOURNAL, "--logs", FOLDER, *option)
    assert answer.status == 2
    assert f"{option[0]} goes without --logs" in answer.err


def test_reading_changes_nothing_in_the_folder(logs: Path, replay: Callable) -> None:
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in logs.iterdir()}
    logs.chmod(0o555)
    assert replay(JOURNAL, "--logs", logs).status == 0
    logs.chmod(0o755)
    after = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in logs.iterdir()}
    assert after == before
