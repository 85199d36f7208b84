"""What replay prints: the timeline, the services at a moment, its complaints."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from registry.core.definition import Definition
from registry.core.events import (
    Actor,
    Defined,
    Exited,
    Record,
    Redefined,
    RestartScheduled,
    SpawnFailed,
)
from registry.core.lifecycle import Reason, State
from registry.core.projection import Projection
from registry.questions.records import event_record, rfc3339, service_record
from registry.questions.timeline import happened, line

GOLDEN = Path(__file__).parents[1] / "golden"
KEYS = ["seq", "at", "service", "run", "type", "source", "dest", "reason"]
KEYS += ["cause", "decision", "actor", "data"]


def _numbers(text: str) -> list[int]:
    return [int(row.split()[0]) for row in text.splitlines()]


def _state_after(story: list[Record], seq: int) -> list[object]:
    projection = Projection()
    projection.fold(story[:seq])
    return [
        msgspec.to_builtins(service_record(s, projection.services)) for s in projection.in_order()
    ]


# --- the timeline ---------------------------------------------------------------------------------


def test_the_timeline_tells_every_event_in_a_line(journal: Path, replay) -> None:
    answer = replay(journal)
    rows = answer.out.splitlines()
    assert answer.status == 0
    assert _numbers(answer.out) == list(range(1, 186))
    for row in (
        "  2  2026-01-02T03:00:00.000Z  -        registry 0.1.0 started (pid 300)",
        " 18  2026-01-02T03:00:00.017Z  migrate  Running -> Stopped  exited with code 0 (run 1)",
        " 31  2026-01-02T03:00:34.625Z  worker   Failed -> Restarting  restart 2 in 0.55 s  <- #30",
        " 36  2026-01-02T03:00:35.229Z  worker   gave up after 2 restarts within 60 s  <- #35",
        " 66  2026-01-02T03:02:05.851Z  cache    Running -> Stopping "
        " restart requested by uid 0 (circlectl, pid 4711)",
    ):
        assert row in rows


@pytest.mark.parametrize(
    ("event", "actor", "words"),
    [
        (
            Exited(source=State.RUNNING, dest=State.FAILED, reason=Reason.SIGNAL, signal=9),
            None,
            "Running -> Failed  killed by SIGKILL (run 2)",
        ),
        (
            Exited(source=State.RUNNING, dest=State.FAILED, reason=Reason.SIGNAL, signal=99),
            None,
            "Running -> Failed  killed by signal 99 (run 2)",
        ),
        (
            RestartScheduled(
                source=State.FAILED,
                dest=State.RESTARTING,
                reason=Reason.POLICY,
                attempt=1,
                delay_s=0.0,
                due_ns=5,
            ),
            Actor(5, 6),
            "Failed -> Restarting  restart 1 at once by uid 5 (pid 6)",
        ),
        (
            SpawnFailed(
                source=State.STARTING,
                dest=State.FAILED,
                reason=Reason.EXEC_FAILED,
                message="bad\n\x1b[2J\u202e",
            ),
            Actor(5, None, "\x1b]0;x\x07"),
            r"Starting -> Failed  could not be spawned: bad\n\x1b[2J\u202e by uid 5 (\x1b]0;x\x07)",
        ),
    ],
)
def test_what_happened_is_told_in_plain_words(event, actor: Actor | None, words: str) -> None:
    assert happened(event_record(Record(7, 0, 0, 7, "web", 2, None, actor, event))) == words


def test_an_event_of_a_type_that_is_not_known_is_told_by_its_name(story: list[Record]) -> None:
    event = msgspec.structs.replace(event_record(story[1]), type="moon_rose", cause=1)
    assert line(event) == "2  2026-01-02T03:00:00.000Z  -  moon rose  <- #1"


def test_json_is_a_line_an_event_with_every_key(journal: Path, story: list[Record], replay) -> None:
    events = [json.loads(row) for row in replay(journal, "--json").out.splitlines()]
    assert [list(event) for event in events] == [KEYS] * 185
    assert events == json.loads(msgspec.json.encode([event_record(record) for record in story]))


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        (["--service", "web"], lambda r: r.service == "web"),
        (["-s", "web", "-s", "cache"], lambda r: r.service in ("web", "cache")),
        (["--since", "2026-01-02T03:02:05.850Z"], lambda r: rfc3339(r.at_ns)[:23] >= "2026-01-02T03:02:05.850"),
        (["--until", "2026-01-02T03:00:00.017Z"], lambda r: rfc3339(r.at_ns)[:23] <= "2026-01-02T03:00:00.017"),
        (
            ["--since", "2026-01-02 03:00:30", "--until", "2026-01-02 03:00:34", "-s", "worker"],
            lambda r: 25 <= r.seq <= 31 and r.service == "worker",
        ),
    ],
)  # fmt: skip
def test_service_and_time_choose_events(
    journal: Path, story: list[Record], replay, options: list[str], chosen
) -> None:
    expected = [record.seq for record in story if chosen(record)]
    assert expected
    assert _numbers(replay(journal, *options).out) == expected


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("web", {"web@1", "web@2"}),
        ("web@*", {"web@1", "web@2"}),
        ("tag:front", {"web@2", "proxy"}),
        ("all", {"web@1", "web@2", "website", "proxy", None}),
    ],
)
def test_a_word_may_mean_several_services(write, story, replay, word: str, names: set) -> None:
    def declared(seq: int, name: str, *tags: str, kind: type = Defined) -> Record:
        definition = Definition(name=name, cmd=("a",), tags=tags)
        event = kind(
            source=State.STOPPED,
            dest=State.STOPPED,
            reason=Reason.DEFINED,
            definition=definition,
            digest="d",
        )
        return Record(seq, story[0].at_ns, story[0].mono_ns, seq, name, None, None, None, event)

    events = [
        declared(2, "web@1", "front"),
        declared(3, "web@2"),
        declared(4, "website"),
        declared(5, "proxy", "front"),
        declared(6, "web@1", kind=Redefined),
        declared(7, "web@2", "front", kind=Redefined),
    ]
    path = write([story[0], *events])
    rows = [json.loads(row) for row in replay(path, "-s", word, "--json").out.splitlines()]
    assert {row["service"] for row in rows} == names
    then = json.loads(replay(path, "-s", word, "--at", "seq:7", "--json").out)
    assert {each["name"] for each in then} == names - {None}


def test_choosing_goes_on_over_pages(long_journal: Path, replay) -> None:
    assert len(replay(long_journal, "-s", "web").out.splitlines()) > 4850
    many = replay(long_journal, "-s", "web", "-s", "cache").out.splitlines()
    assert len(many) > 4855
    assert _numbers(replay(long_journal).out) == list(range(1, 5001))


def test_nothing_found_is_said(journal: Path, replay) -> None:
    answer = replay(journal, "--since", "2030-01-01 00:00")
    assert answer[:2] == (0, "")
    assert answer.err.endswith("no event is of that kind, service and time\n")


# --- the services at a moment ---------------------------------------------------------------------


@pytest.mark.parametrize("seq", [0, 1, 7, 34, 48, 69, 78, 97, 185])
def test_the_state_after_an_event_is_the_fold_up_to_it(
    journal: Path, story: list[Record], replay, seq: int
) -> None:
    answer = replay(journal, "--json", "--at", f"seq:{seq}")
    assert json.loads(answer.out) == _state_after(story, seq)


@pytest.mark.parametrize(
    ("time", "seq"),
    [
        ("2026-01-02T02:59:59Z", 0),
        ("2026-01-02T03:00:00.011Z", 13),
        ("2026-01-02T03:00:30.019Z", 21),
        ("2026-01-02T03:00:30Z", 24),
        ("2026-01-02 03:30", 87),
        ("2030-01-01 00:00", 185),
    ],
)
def test_the_state_at_a_time_includes_the_last_event_not_later(
    journal: Path, story: list[Record], replay, time: str, seq: int
) -> None:
    assert json.loads(replay(journal, "--json", "--at", time).out) == _state_after(story, seq)


def test_where_the_clock_was_set_back_the_last_event_in_sequence_counts(
    journal: Path, story: list[Record], replay
) -> None:
    # event 57, of 03:01:45.844, is not the last by number: 79 to 87 say 03:01:35 to 03:01:40
    answer = replay(journal, "--json", "--at", "2026-01-02T03:01:50Z")
    assert json.loads(answer.out) == _state_after(story, 87)


def test_a_time_copied_from_an_event_includes_it(
    journal: Path, story: list[Record], write, replay
) -> None:
    odd = [msgspec.structs.replace(r, at_ns=r.at_ns + 999) for r in story[:20]]
    path = write(odd, "odd.db")
    for text in (rfc3339(odd[12].at_ns), f"{rfc3339(odd[12].at_ns)[:23]}Z"):
        assert json.loads(replay(path, "--json", "--at", text).out) == _state_after(odd, 13)


def test_the_table_says_when_and_leaves_out_what_is_always_null(journal: Path, replay) -> None:
    assert replay(journal, "--at", "seq:60", "-s", "web", "-s", "worker").out.splitlines() == [
        "after event 60, 2026-01-02T03:02:05.847000Z",
        "NAME    STATUS    SINCE                        REASON         WANTED  PID   RUN  HEALTH   RESTARTS",
        "web     Starting  2026-01-02T03:01:45.843000Z  never_ran      up      2362  4    unknown  2",
        "worker  Failed    2026-01-02T03:00:35.229000Z  restart_limit  up      -     3    -        2",
    ]
    assert "NEXT RESTART AT\n" in replay(journal, "--at", "seq:185").out


def test_the_table_says_where_no_registry_ran(journal: Path, replay) -> None:
    first_lines = [replay(journal, "--at", f"seq:{seq}").out.splitlines()[0] for seq in (0, 97, 98)]
    assert first_lines == [
        "before the first event",
        "after event 97, 2026-01-02T04:01:40.874000Z, no registry running",
        "after event 98, 2026-01-03T04:01:40.874000Z",
    ]


# --- complaints -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "status", "sentence"),
    [
        (["-s", "wbe"], 1, "it does not tell of a service 'wbe'; did you mean 'web'?"),
        (["-s", "x"], 1, "service 'x'; there are app, cache, db, mailer, migrate, setup"),
        (["-s", "tag:x"], 1, "it does not tell of a service 'tag:x'; there are app, cache, "),
        (["--at", "seq:186"], 1, "there is no event 186: the last is event 185"),
        (["--at", "soon"], 2, "'soon' is not a time; write for example 2026-01-02T03:04:05Z, "),
        (["--since", "seq:4"], 2, "'seq:4' is not a time; write for example"),
        (["--head", "a" * 40], 2, "--head goes with --verify: add it"),
        (["--verify", "--head", "xyz"], 2, "'xyz' is not a hash, which has 40 hexadecimal digits"),
        (["--verify", "--json"], 2, "--verify goes without --json"),
        (["--at", "seq:0", "--until", "03:14"], 2, "--at goes without --until: it is one moment"),
        (["--bogus"], 2, "No such option"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    journal: Path, replay, options: list[str], status: int, sentence: str
) -> None:
    answer = replay(journal, *options)
    assert answer[:2] == (status, "")
    assert sentence in answer.err.splitlines()[-1]
    assert answer.err.splitlines()[-1].startswith("circle-replay: ")


def test_a_type_of_a_newer_version_ends_the_timeline_with_a_sentence(
    journal: Path, replay, change: Callable[..., None]
) -> None:
    change(journal, "UPDATE events SET type = 'moon_rose' WHERE seq = 20")
    for options in ([], ["--json"]):
        answer = replay(journal, *options)
        assert answer.status == 1
        assert len(answer.out.splitlines()) == 19
        assert re.search(r"circle-replay: .*: event 20 is of the type 'moon_rose'", answer.err)
    assert replay(journal, "--at", "seq:20").status == 1
    assert replay(journal, "--at", "seq:19").status == 0


def test_an_event_that_nothing_led_to_is_told_without_a_traceback(
    journal: Path, replay, change: Callable[..., None]
) -> None:
    change(journal, "UPDATE events SET service = 'ghost' WHERE seq = 20")
    answer = replay(journal, "--at", "seq:30")
    assert answer[:2] == (1, "")
    assert "event 20 does not follow from those before it; --verify says more" in answer.err


def test_a_resynced_state_that_no_registry_wrote_is_told_without_a_traceback(
    tmp_path: Path, replay, change: Callable[..., None]
) -> None:
    """Found by `fuzz --target journal --seed 7 --from 250543 --inputs 1`."""
    journal = tmp_path / "registry.db"
    shutil.copy(GOLDEN / "journal-v2.db", journal)
    change(
        journal,
        """UPDATE events SET body = json_replace(body, '$.state.reason', 'unjoqrnaled')
        WHERE type = 'resynced'""",
    )
    answer = replay(journal, "--at", "seq:130")
    assert answer[:2] == (1, "")
    assert "event 121 does not follow from those before it" in answer.err


def test_a_row_that_cannot_be_read_ends_the_timeline_with_a_sentence(
    journal: Path, replay, change: Callable[..., None]
) -> None:
    change(journal, "UPDATE events SET body = CAST(x'ff' AS TEXT) WHERE seq = 20")
    answer = replay(journal)
    assert (answer.status, _numbers(answer.out)) == (1, list(range(1, 20)))
    assert f"circle-replay: {journal}: after event 19 the file cannot be read: " in answer.err


def test_a_select_is_answered_in_each_form_and_whole(journal: Path, replay) -> None:
    sql = "select a.seq, b.seq, b.body from events a join events b on b.seq = a.seq where a.seq = 3"
    answers = [replay(journal, "--query", sql, *form) for form in ((), ("--csv",), ("--json",))]
    table, values, rows = (answer.out.splitlines() for answer in answers)
    told = json.loads(rows[0])
    assert (told["seq"], told["seq:1"], len(told["body"]) > 60) == (3, 3, True)
    assert values[0] == "seq,seq,body"
    assert told["body"] in table[1]
