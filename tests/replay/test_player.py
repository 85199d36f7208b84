"""The player: what passes and which keys come decide what is seen; nothing else does."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from circle_replay import player as playing
from circle_replay import terminal
from circle_replay.player import Player
from registry.core.events import Record
from registry.core.projection import Projection
from registry.journal.opening import Connection, open_for_reading
from registry.journal.read import pages

INCIDENT = Path(__file__).parents[1] / "golden" / "incident.db"
NS = 1_000_000_000


@pytest.fixture
def incident() -> Iterator[Connection]:
    with closing(open_for_reading(INCIDENT)) as journal:
        yield journal


def records(journal: Connection) -> list[Record]:
    return [record for page in pages(journal) for record in page]


def folded(journal: Connection, seq: int) -> Projection:
    projection = Projection()
    projection.fold(records(journal)[:seq])
    return projection


def text(player: Player, columns: int = 120, rows: int = 40) -> str:
    return "\n".join(row.text for row in player.frame(columns, rows))


def press(player: Player, *keys: str) -> None:
    for key in keys:
        player.key(key)


def test_every_step_forth_and_back_shows_the_state_after_that_event(
    incident: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(playing, "EVERY", 16)
    monkeypatch.setattr(playing, "_BACKLOG", 48)
    monkeypatch.setattr(playing, "_KEPT_MAX", 5)
    player = Player(incident, 1.0)
    states = {1: folded(incident, 1)}
    for seq in range(2, 257):
        player.key("right")
        states[seq] = folded(incident, seq)
        assert (player.seq, player.state) == (seq, states[seq])
    for seq in range(255, 0, -1):
        player.key("left")
        assert (player.seq, player.state) == (seq, states[seq])
    for seq in random.Random(7).sample(range(1, 257), 60):
        press(player, "g", *str(seq), "enter")
        assert (player.seq, player.state) == (seq, states[seq])


def test_a_step_back_in_a_long_journal_folds_few_events(
    long_journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(playing, "EVERY", 20)
    monkeypatch.setattr(playing, "_BACKLOG", 100)
    count = 0
    fold_one = Projection._fold_one

    def counted(self: Projection, record: Record) -> None:
        nonlocal count
        count += 1
        fold_one(self, record)

    with closing(open_for_reading(long_journal)) as journal:
        player = Player(journal, 1.0)
        player.key("end")
        monkeypatch.setattr(Projection, "_fold_one", counted)
        for _ in range(80):
            player.key("left")
        assert player.seq == 4920
        assert count <= 80 * 20


def test_time_passes_as_fast_as_it_is_told_to(incident: Connection) -> None:
    player = Player(incident, 2.0)
    began_ns = player.at_ns
    for _ in range(20):
        player.tick(0.05)
    assert player.at_ns == began_ns + 2 * NS
    assert player.seq == sum(record.at_ns <= player.at_ns for record in records(incident))
    press(player, "up", "up", "down")
    assert player.speed == 4.0
    assert "  4x  " in text(player)


def test_while_paused_nothing_moves(incident: Connection) -> None:
    player = Player(incident, 2.0)
    player.key(" ")
    before = (player.seq, player.at_ns)
    player.tick(100)
    assert (player.seq, player.at_ns) == before
    assert not player.is_moving
    assert "  paused  " in text(player)
    player.key(" ")
    player.tick(0.5)
    assert player.at_ns == before[1] + NS


def test_an_idle_gap_is_shortened_and_said_to_be(
    write: Callable[..., Path], story: list[Record]
) -> None:
    """Event 97 of the story is an orderly stop, and the next registry comes a day later."""
    with closing(open_for_reading(write(story))) as journal:
        player = Player(journal, 1.0, start=97)
        player.tick(0.1)
        assert player.at_ns == story[97].at_ns - NS
        assert "nothing happened for 23h 59m: passed over" in text(player)
        assert "no registry running" in text(player)
        player.tick(1.0)
        assert player.seq > 97
        player.tick(4.0)
        assert "passed over" not in text(player).splitlines()[-1] or player.seq > 98


def test_the_clock_is_shown_as_it_was_set_back(
    write: Callable[..., Path], story: list[Record]
) -> None:
    with closing(open_for_reading(write(story))) as journal:
        player = Player(journal, 1.0, start=78)
        player.key("right")
        assert player.at_ns == story[78].at_ns < story[77].at_ns
        assert "the clock was set back by 30s" in text(player)


def test_at_the_end_it_pauses_and_a_step_goes_no_further(incident: Connection) -> None:
    player = Player(incident, 1e9)
    while not player.paused:
        player.tick(1.0)
    assert player.seq == 256
    assert "the end" in text(player)
    player.key("right")
    assert player.seq == 256
    assert "no later event" in text(player)
    press(player, "home", "left")
    assert player.seq == 1
    assert "no earlier event" in text(player)


@pytest.mark.parametrize(
    ("typed", "seq", "said"),
    [
        ("158", 158, ""),
        ("seq:158", 158, ""),
        ("11:19:32", 72, ""),
        ("2026-11-28 11:19:39.5", 129, ""),
        ("10s ago", 1, ""),
        ("", 1, ""),
        ("999", 256, "the journal has events 1 to 256"),
        ("seq:0", 1, "the journal has events 1 to 256"),
        ("03:14", 1, "the journal has events 1 to 256"),
        ("tea time", 1, "'tea time' is not a time; write for example"),
        ("9" * 40, 256, "the journal has events 1 to 256"),
    ],
)
def test_one_goes_to_a_time_of_that_day_or_to_a_number(
    incident: Connection, typed: str, seq: int, said: str
) -> None:
    player = Player(incident, 1.0)
    player.key(" ")
    press(player, "/", *typed, "enter")
    assert player.seq == seq
    assert said in text(player, 200).splitlines()[-1]


def test_what_was_said_goes_with_the_next_key_that_does_something(incident: Connection) -> None:
    player = Player(incident, 1.0)
    press(player, "/", *"bogus", "enter", "x")
    assert "'bogus' is not a time" in text(player)
    player.key("right")
    assert "bogus" not in text(player)


@pytest.mark.parametrize("services", [(), ("db",)])
def test_a_step_to_what_cannot_be_read_says_so_and_stays(
    tmp_path: Path, change: Callable[..., None], services: tuple[str, ...]
) -> None:
    path = Path(shutil.copyfile(INCIDENT, tmp_path / "registry.db"))
    change(path, "UPDATE events SET body = '{' WHERE seq = 30")  # of db
    with closing(open_for_reading(path)) as journal:
        player = Player(journal, 1.0, services, start=29)
        for key in ("end", "right", "right"):
            player.key(key)
            assert player.seq == 29
            assert "event 30 (became_ready) cannot be read" in text(player)


def test_what_is_typed_is_seen_and_can_be_taken_back(incident: Connection) -> None:
    player = Player(incident, 1.0)
    press(player, "g", "1", "q", "left", "backspace", "7")
    assert text(player).splitlines()[-1] == "go to (time, seq:N, a number): 17_"
    player.tick(5)
    assert player.seq == 1
    player.key("escape")
    assert (player.seq, player.over) == (1, False)
    player.key("q")
    assert player.over


def test_a_time_between_two_events_is_shown_as_that_moment(incident: Connection) -> None:
    player = Player(incident, 1.0)
    press(player, "/", *"11:19:39", "enter")
    assert text(player).startswith("2026-11-28 11:19:39.000Z")


def test_of_chosen_services_only_theirs_is_seen_and_stepped_to(incident: Connection) -> None:
    player = Player(incident, 1.0, ["db"])
    seqs = [record.seq for record in records(incident) if record.service == "db"]
    player.key("right")
    assert player.seq == seqs[0]
    press(player, "right", "right", "left")
    assert player.seq == seqs[1]
    assert player.state == folded(incident, seqs[1])
    seen = text(player)
    assert "api" not in seen
    assert "db" in seen


@pytest.mark.parametrize("columns", [1, 5, 20, 37, 60, 80, 200])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 13, 24, 60])
def test_a_frame_has_the_rows_there_are_and_the_prompt_is_its_last(
    incident: Connection, columns: int, rows: int
) -> None:
    player = Player(incident, 1.0, start=158)
    player.key(" ")
    frame = player.frame(columns, rows)
    assert len(frame) == rows
    assert "q" in frame[-1].text
    if rows >= 13 and columns >= 37:
        assert any(row.style == "Failed" and row.text.startswith("db") for row in frame)
        assert any("gave up" in row.text for row in frame)


def test_of_too_many_services_those_that_moved_last_are_shown(incident: Connection) -> None:
    player = Player(incident, 1.0, start=158)
    seen = text(player, 80, 13)
    assert "\ndb " in seen
    assert "\nmigrate" not in seen
    assert "more, in which nothing moved since" in seen


def test_keys_are_known_by_what_terminals_send() -> None:
    sent = "\x1b[A\x1bOB\x1b[1;5C\x1b[D\x1b[H\x1b[4~ q\r\x7f\x1b/"
    assert list(terminal.names(sent)) == [
        "up", "down", "\x1b[1;5C", "left", "home", "end", " ", "q", "enter", "backspace", "escape", "/",
    ]  # fmt: skip
