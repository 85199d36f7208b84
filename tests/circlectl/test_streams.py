"""logs and events: what is asked for, what is shown, and what no restart of the registry loses."""

import json
import os
import signal
import subprocess
import sys

import pytest


@pytest.fixture
def spawn(short_dir):
    """Start circlectl as a process, which is ended at the latest with the test."""
    processes = []

    def start(*arguments, **options):
        process = subprocess.Popen(
            [sys.executable, "-m", "circlectl", "--socket", str(short_dir / "s"), *arguments],
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options},
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_logs_come_as_they_were_written(fake, circlectl) -> None:
    fake.answers["logs"] = [["one", "\033[31mred\033[0m", ""]]
    assert circlectl("logs", "web", "-n", "3") == (0, "one\n\033[31mred\033[0m\n\n", "")
    assert fake.requests[0]["lines"] == 3


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["web"], {"service": "web", "lines": 50}),
        (["web", "web", "-n", "3"], {"service": "web", "lines": 3}),
        (["web", "--run", "-1"], {"service": "web", "run": -1, "stamps": True}),
        (
            ["web", "--since", "5m ago", "--until", "03:14", "-n", "7"],
            {"service": "web", "since": "5m ago", "until": "03:14", "lines": 7, "stamps": True},
        ),
        (["web", "--times"], {"service": "web", "lines": 50, "stamps": True}),
        (["web", "db"], {"service": ["web", "db"], "lines": 50, "stamps": True}),
        (["all", "-n", "1"], {"service": "all", "lines": 1, "stamps": True}),
        (["web*"], {"service": ["web*"], "lines": 50, "stamps": True}),
        (["tag:x", "-n", "1"], {"service": ["tag:x"], "lines": 1, "stamps": True}),
    ],
)
def test_logs_are_the_last_lines_or_those_chosen(fake, circlectl, arguments, asked) -> None:
    fake.answers["logs"] = [[]]
    assert circlectl("logs", *arguments).status == 0
    assert fake.requests == [{"action": "logs", **asked}]


@pytest.fixture
def gone(refusal):
    """Ends what follows; without it another registry would be asked, and another."""
    return refusal("unknown_service", "there is no service 'web'")


def stamped(service: str, line: str, run: int | None = 3) -> dict[str, object]:
    at = "2026-01-02T03:04:05.678901Z" if run is not None else None
    return {"service": service, "at": at, "run": run, "line": line}


def test_lines_of_several_services_have_the_name_before_them(fake, circlectl, stream, gone) -> None:
    lines = [stamped("web", "one"), stamped("db", "two", None)]
    fake.answers["logs"] = [lines, lines, stream([lines]), gone, lines]
    assert circlectl("logs", "web", "db").out == "web | one\ndb  | two\n"
    assert circlectl("logs", "web", "db", "-t").out == (
        "2026-01-02T03:04:05.678Z    #3 web | one\n-                            - db  | two\n"
    )
    assert circlectl("logs", "web", "db", "-f").out == "web | one\ndb  | two\n"
    assert json.loads(circlectl("logs", "web", "db", "--json").out) == lines


def test_chosen_lines_come_as_they_were_written_and_doubt_is_said(
    fake, circlectl, stream, gone
) -> None:
    lines = [stamped("web", "one", None), stamped("web", "two")]
    fake.answers["logs"] = [lines, lines[1:], lines[1:], stream([lines]), gone]
    ended = circlectl("logs", "web", "--since", "03:14")
    assert ended.out == "one\ntwo\n"
    assert ended.err == (
        "circlectl: some of these lines have no index: they are chosen by the times of their file\n"
    )
    assert circlectl("logs", "web", "--run", "3") == (0, "two\n", "")
    assert circlectl("logs", "web", "--run", "3", "--json").out == '["two"]\n'
    assert circlectl("logs", "web", "--since", "03:14", "-f").out == "one\ntwo\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["web", "--run", "3"], "they stand where that run may have written"),
        (["web", "--run", "3", "-t"], "they stand where that run may have written"),
        (["web", "-t", "--since", "03:14"], "they are chosen by the times of their file"),
        (["web", "-t"], "when they were written, and by which run, is not known"),
        (["web", "db"], "where they stand among those of others is a guess"),
    ],
)
def test_what_no_index_knows_is_said_however_lines_are_chosen(
    fake, circlectl, arguments, said
) -> None:
    fake.answers["logs"] = [[stamped("web", "one", None), stamped("web", "two")]]
    err = f"circlectl: some of these lines have no index: {said}\n"
    assert circlectl("logs", *arguments).err == err
    fake.answers["logs"] = [[stamped("web", "two")]]
    assert circlectl("logs", *arguments).err == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing argument 'NAME...'"),
        (["web", "--since", "yesterday"], "'yesterday' is not a time; write for example"),
        (["web", "-f", "--until", "03:14"], "leave out --until and --run"),
        (["web", "-f", "--run", "1"], "leave out --until and --run"),
    ],
)
def test_logs_that_make_no_sense_are_wrong_usage(circlectl, arguments, words) -> None:
    ended = circlectl("logs", *arguments)
    assert ended.status == 2
    assert words in ended.err


def test_lines_of_instances_have_their_names(fake, circlectl, stream, gone) -> None:
    page = [stamped("web@1", "one"), stamped("web@2", "two")]
    said = "web@1 | one\nweb@2 | two\n"
    fake.answers["logs"] = [page, page, page, page, stream([page]), gone]
    assert circlectl("logs", "web").out == said
    assert circlectl("logs", "web", "--run", "-1").out == said
    assert "#3 web@1 | one\n" in circlectl("logs", "web", "--times").out
    assert json.loads(circlectl("logs", "web", "--json").out) == page
    assert circlectl("logs", "web", "-f").out == said


def test_last_words_are_the_last_line_that_says_something(fake, circlectl, event) -> None:
    data = {"lines": ["Traceback", "ValueError: \033[1mno", ""]}
    fake.answers["events"] = [[event(7, type="output_ended", source=None, dest=None, data=data)]]
    assert "said last: ValueError: \\x1b[1mno" in circlectl("events").out


def test_logs_as_json_are_an_array_and_followed_a_line_each(fake, circlectl, stream, gone) -> None:
    first, more = [stamped("web", "a"), stamped("web", "b")], [stamped("web", "c\n")]
    fake.answers["logs"] = [["a", "b"], stream([first, more]), gone]
    assert circlectl("logs", "web", "--json").out == '["a","b"]\n'
    assert circlectl("logs", "web", "-f", "--json").out == '"a"\n"b"\n"c\\n"\n'


def seen(service: str, line: str, second: float, run: int | None = None) -> dict[str, object]:
    return {"service": service, "at": f"2026-01-02T03:04:{second:09.6f}Z", "run": run, "line": line}


def test_a_followed_log_goes_on_after_the_last_line_that_was_shown(
    fake, circlectl, stream, refusal, gone
) -> None:
    before = [seen("web", "tick", second) for second in (20, 21, 22)]
    # what the index says is a little earlier than what was seen; the service wrote on meanwhile
    again = [seen("web", "tick", second - 0.1, 7) for second in (20, 21, 22, 23, 24)]
    fake.answers["logs"] = [
        stream([before[:1], before[1:]]),
        refusal("shutting_down", "the registry is shutting down"),
        stream([[*again, seen("web", "tock", 25, 8)], [seen("web", "tick", 26)]]),
        gone,
    ]
    ended = circlectl("logs", "web", "-f", "-n", "1")
    assert ended.out.split() == ["tick"] * 5 + ["tock", "tick"]
    assert "going on when it is back" in ended.err
    assert "the registry is back" in ended.err
    first, *_, second, _last = fake.requests
    assert (first["follow"], first["lines"]) == (True, 1)
    assert second["since"] == "2026-01-02T03:04:12+00:00"
    assert "lines" not in second


def test_a_followed_log_knows_the_lines_of_each_service_again(
    fake, circlectl, stream, gone
) -> None:
    web, db = seen("web", "same", 20), seen("db", "same", 15)
    more = [seen("db", "same", 16, 2), seen("web", "new", 21, 2)]
    fake.answers["logs"] = [stream([[db, web]]), stream([[db, web, *more]]), gone]
    out = circlectl("logs", "web", "db", "-f").out.splitlines()
    assert [line.split(" | ")[1] for line in out] == ["same", "same", "same", "new"]


def test_of_a_log_that_showed_nothing_what_came_before_is_left_out(
    fake, circlectl, stream, gone
) -> None:
    old, new = (
        seen("web", "old", 20, 1),
        {**seen("web", "new", 20, 1), "at": "2096-01-01T00:00:00Z"},
    )
    fake.answers["logs"] = [stream([[]]), stream([[old, new]]), gone]
    assert circlectl("logs", "web", "-f", "-n", "0").out == "new\n"


@pytest.mark.parametrize("follow", [[], ["-f"]])
def test_where_no_registry_runs_logs_says_where_the_files_are(circlectl, follow) -> None:
    ended = circlectl("logs", "web", *follow)
    assert ended.status == 69
    assert ended.err.endswith("; the files are there without it, by default in var/log\n")


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ([], {"since": -20, "limit": 20}),
        (["-n", "5"], {"since": -5, "limit": 5}),
        (["--since", "100"], {"since": 100, "limit": 1000}),
        (["--since", "100", "-n", "7"], {"since": 100, "limit": 7}),
        (
            ["--service", "web", "--type", "exited"],
            {"since": -20, "limit": 20, "service": "web", "type": "exited"},
        ),
    ],
)
def test_events_are_the_last_ones_or_those_after_a_number(
    fake, circlectl, arguments, asked
) -> None:
    fake.answers["events"] = [[]]
    circlectl("events", *arguments)
    assert fake.requests == [{"action": "events", **asked}]


@pytest.mark.parametrize("command", [["events"], ["logs", "web"], ["history", "web"]])
def test_a_count_that_is_none_is_told_in_words(circlectl, command) -> None:
    ended = circlectl(*command, "-n", "abc")
    assert (ended.status, ended.out) == (2, "")
    assert "'abc' is not a valid whole number" in ended.err


def test_the_names_of_a_page_have_one_column_and_a_stream_widens_it(
    fake, circlectl, event, stream, gone
) -> None:
    page = [event(1, service="web"), event(2, service="a-service-with-a-name")]
    fake.answers["events"] = [page]
    assert len({line.index("became") for line in circlectl("events").out.splitlines()}) == 1
    pages = [{"seen": 2, "events": page}, {"seen": 3, "events": [event(3, service="web")]}]
    fake.answers["events"] = [stream(pages), gone]
    lines = circlectl("events", "-f", "--since", "0").out.splitlines()
    assert [line.index("became") for line in lines] == [lines[0].index("became")] * 3


def test_a_signal_that_is_asked_for_is_named(fake, circlectl, event) -> None:
    data = {"signal": "SIGHUP"}
    fake.answers["events"] = [
        [event(1, type="signal_requested", source=None, dest=None, data=data)]
    ]
    assert "signal=SIGHUP" in circlectl("events").out


def test_events_since_a_time_are_those_after_the_last_one_before_it(fake, circlectl, event) -> None:
    early, late = "2026-01-02T03:04:05.999999Z", "2026-01-02T03:04:06.000000Z"
    fake.answers["events"] = [
        [event(1, at=early)],
        [event(4, at=late)],
        [event(2, at=early)],
        [event(3, at=late)],
    ]
    circlectl("events", "--since", "2026-01-02T03:04:06Z")
    asked = [(request["since"], request["limit"]) for request in fake.requests]
    assert asked == [(0, 1), (-1, 1), (1, 1), (2, 1), (2, 1000)]


def test_events_since_what_is_neither_number_nor_time_are_refused(circlectl) -> None:
    ended = circlectl("events", "--since", "yesterday")
    assert ended.status == 2
    assert "is neither the number of an event nor a time; write for example 1200" in ended.err


def test_an_event_is_a_line(fake, circlectl, event) -> None:
    fake.answers["events"] = [[event(120)]]
    (line,) = circlectl("events").out.splitlines()
    assert line.split(maxsplit=5) == [
        "120",
        "2026-01-02",
        "03:04:05Z",
        "web",
        "became_ready",
        "Starting to Running, ready",
    ]


def test_a_full_page_says_where_to_go_on(fake, circlectl, event) -> None:
    fake.answers["events"] = [[event(101), event(102)]]
    ended = circlectl("events", "--since", "100", "-n", "2")
    assert ended.err == "circlectl: there may be more: --since 102\n"


def looked(number: int, *events: dict) -> dict:
    """A page of those events, from a registry that has looked at all up to a number."""
    return {"seen": number, "events": list(events)}


def test_several_services_and_types_are_asked_for_at_once(fake, circlectl, stream) -> None:
    fake.answers["events"] = [[]]
    circlectl("events", "--service", "web", "-s", "tag:db", "--type", "exited", "--type", "lost")
    assert fake.requests == [
        {
            "action": "events",
            "since": -20,
            "limit": 20,
            "service": ["web", "tag:db"],
            "type": ["exited", "lost"],
        }
    ]


def test_what_is_no_longer_there_ends_a_followed_stream_with_the_sentence_of_the_registry(
    fake, circlectl, refusal
) -> None:
    fake.answers["events"] = [refusal("out_of_range", "since: event 6 is no longer in the journal")]
    ended = circlectl("events", "-f", "--since", "5")
    assert (ended.status, ended.out) == (1, "")
    assert ended.err == "circlectl: since: event 6 is no longer in the journal\n"


def test_followed_events_go_on_after_the_last_that_was_looked_at(
    fake, circlectl, stream, event, refusal
) -> None:
    fake.answers["events"] = [
        [event(9)],
        [event(7)],
        stream([looked(9), looked(10, event(10)), looked(12, event(12)), looked(20)]),
        refusal("shutting_down", "the registry is shutting down"),
        stream([looked(23, event(23))]),
        refusal("unknown_service", "there is no service 'web'"),
    ]
    ended = circlectl("events", "-f", "--service", "web", "--json")
    assert [json.loads(line)["seq"] for line in ended.out.splitlines()] == [7, 10, 12, 23]
    assert [request["since"] for request in fake.requests] == [-1, -20, 9, 20, 20, 23]
    assert all(request["service"] == "web" for request in fake.requests[1:])
    assert "going on after event 20" in ended.err
    assert "the registry is back" in ended.err
    assert ended.status == 4


def test_followed_events_outlive_the_registry(listen, spawn, stream, event) -> None:
    first = listen()
    first.answers["events"] = [stream([looked(1, event(1))], stays=False)]
    following = spawn("events", "-f", "--since", "0", "--json")
    assert json.loads(following.stdout.readline())["seq"] == 1
    assert "going on after event 1" in following.stderr.readline()
    first.close()
    second = listen()
    second.answers["events"] = [stream([looked(2, event(2))], stays=True)]
    assert json.loads(following.stdout.readline())["seq"] == 2
    assert second.requests[0]["since"] == 1
    following.send_signal(signal.SIGINT)
    out, err = following.communicate()
    assert (following.returncode, out) == (130, "")
    assert err == "circlectl: the registry is back\n"


def test_a_stream_that_nobody_reads_ends_quietly(fake, spawn, stream) -> None:
    read, write = os.pipe()
    os.close(read)
    fake.answers["logs"] = [stream([[stamped("web", "a")]], stays=True)]
    following = spawn("logs", "web", "-f", stdout=write)
    os.close(write)
    assert following.stderr.read() == ""
    assert following.wait() == 141


def test_following_from_a_number_has_no_limit(circlectl) -> None:
    ended = circlectl("events", "-f", "--since", "5", "-n", "3")
    assert ended.status == 2
    assert "leave out -n" in ended.err
