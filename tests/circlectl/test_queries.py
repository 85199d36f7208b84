"""list, status, health, check, version, validate: what they show, and their exit statuses."""

import json
import sys
from pathlib import Path

import pytest

OLD = "2020-01-01T00:00:00Z"


@pytest.fixture
def detailed(record, event):
    """What `status` answers of a service that has seen trouble."""
    return record(
        attempt=9,
        message="check http failed 3 times: connection refused",
        health="unhealthy",
        definition={"cmd": ["gunicorn", "app main"], "logs": {"dir": "var/log"}},
        checks=[
            {
                "name": "http",
                "target": "http://127.0.0.1:8080/",
                "health": "unhealthy",
                "last_at": OLD,
                "latency_ms": 12.345,
                "error": "connection refused",
            }
        ],
        last_exit={"run": 2, "at": OLD, "exit_code": 3, "signal": None, "reason": "exit_code"},
        events=[event(120)],
    )


def test_list_is_an_aligned_table(fake, circlectl, record) -> None:
    failed = record("db", status="Failed", reason="program_missing", pid=None, restarts=0)
    fake.answers["list_services"] = [[record(health="healthy"), failed]]
    ended = circlectl("list")
    header, web, db = ended.out.splitlines()
    assert header.split() == ["NAME", "STATUS", "HEALTH", "PID", "RESTARTS", "SINCE", "DETAIL"]
    assert web.split()[:5] == ["web", "Running", "healthy", "4711", "2"]
    assert db.endswith("program missing")
    assert db.index("Failed") == web.index("Running") == header.index("STATUS")
    assert (ended.status, ended.err) == (0, "")
    assert "\033" not in ended.out


@pytest.mark.parametrize("command", ["list", "status", "health"])
def test_no_services_is_said_and_not_left_to_an_empty_page(fake, circlectl, command) -> None:
    fake.answers |= {"list_services": [[]], "health": [[]]}
    said = "no services are defined; declare some in the configuration file\n"
    assert circlectl(command) == (0, said, "")


def test_a_name_cannot_move_the_cursor(fake, circlectl, record) -> None:
    fake.answers["list_services"] = [[record("a\033[2Jb")]]
    assert r"a\x1b[2Jb" in circlectl("list").out


def test_at_80_columns_no_line_is_longer(fake, circlectl, record, screen_at) -> None:
    screen_at(80)
    long_name = "n" * 64
    limited = record(long_name, status="Failed", reason="restart_limit")
    fake.answers["list_services"] = [[record(), limited]]
    lines = circlectl("list").out.splitlines()
    assert max(len(_plain(line)) for line in lines) <= 80
    assert lines[-3:] == [
        "    \u2514 restart limit reached; circlectl start",
        f"      {long_name} tries",
        "      again",
    ]


def test_what_is_endless_has_three_lines_below(fake, circlectl, event, screen_at) -> None:
    screen_at(80, NO_COLOR="1")
    data = {"lines": ["word " * 200]}
    fake.answers["events"] = [[event(7, type="output_ended", source=None, dest=None, data=data)]]
    _row, first, second, third = circlectl("events").out.splitlines()
    assert first.startswith("     \u2514 said last: word word")
    assert second.startswith("       word word")
    assert third.endswith("word\u2026")


def test_status_wraps_what_was_said_under_its_column(fake, circlectl, detailed, screen_at) -> None:
    screen_at(60, NO_COLOR="1")
    message = "cannot listen at 127.0.0.1:8099: the address is in use; end the program that has it"
    last_words = {"run": 2, "at": OLD, "dropped": 0, "lines": ["    at line " + "nine " * 20]}
    fake.answers["status"] = [
        {**detailed, "message": message, "last_words": last_words, "checks": []}
    ]
    out = circlectl("status", "web").out
    assert (
        "            cannot listen at 127.0.0.1:8099: the address is\n"
        "            in use; end the program that has it\n"
    ) in out
    assert "                at line nine nine" in out
    assert max(map(len, out.splitlines())) <= 60


def test_what_the_encoding_lacks_is_drawn_in_ascii(fake, circlectl, record, screen_at) -> None:
    screen_at(80, ENCODING="ascii")
    fake.answers["list_services"] = [[record("n" * 64, status="Failed", reason="restart_limit")]]
    assert circlectl("list").out.isascii()


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_a_terminal_gets_colours_unless_it_asks_for_none(
    fake, circlectl, record, screen_at, environment, coloured
) -> None:
    screen_at(80, **environment)
    fake.answers["list_services"] = [[record()]]
    assert ("\033[32mRunning" in circlectl("list").out) is coloured


def test_force_color_colours_a_file(fake, circlectl, record, monkeypatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    fake.answers["list_services"] = [[record()]]
    assert "\033[32mRunning" in circlectl("list").out


def test_status_of_a_name_tells_everything_that_is_known(fake, circlectl, detailed) -> None:
    fake.answers["status"] = [detailed]
    ended = circlectl("status", "web")
    assert ended.status == 0
    assert ended.out.startswith("web: Running since 2026-01-02 03:04:05Z (")
    for fact in (
        "  wanted    up\n",
        "  pid       4711\n",
        "check http failed 3 times: connection refused\n",
        "http (http://127.0.0.1:8080/): unhealthy, connection refused, 12.3 ms, ",
        "last exit exit code 3 (run 2, ",
        "command   gunicorn 'app main'\n",
        "logs      circlectl logs web\n",
        "     120  2026-01-02 03:04:05Z  became_ready ",
    ):
        assert fact in ended.out


def test_status_of_a_crash_loop_tells_the_attempt(fake, circlectl, detailed) -> None:
    looping = {"status": "Restarting", "reason": "crash_looping", "next_restart_at": OLD}
    fake.answers["status"] = [detailed | looping]
    assert "reason    crash-looping, attempt 9, next in 0 s\n" in circlectl("status", "web").out


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, 0),
        ({"status": "Failed"}, 3),
        ({"status": "Starting"}, 3),
        ({"status": "Stopped", "reason": "completed"}, 3),
    ],
)
def test_status_exits_3_for_what_is_not_running(fake, circlectl, record, changes, status) -> None:
    fake.answers["status"] = [record(), record(**changes)]
    assert circlectl("status", "db", "web").status == status


def test_status_exits_4_for_an_unknown_service_and_shows_the_others(
    fake, circlectl, record, refusal
) -> None:
    fake.answers["status"] = [refusal("unknown_service", "there is no service 'nope'"), record()]
    fake.answers["list_services"] = [[record(), record("nope2")]]
    ended = circlectl("status", "nope", "web")
    assert ended.status == 4
    assert ended.out.startswith("web: Running")
    assert ended.err == "circlectl: there is no service 'nope'\n"


def test_status_without_names_counts_and_tells_who_is_not_well(fake, circlectl, record) -> None:
    failed = record("db", status="Failed", reason="program_missing")
    fake.answers["list_services"] = [[record(), failed]]
    ended = circlectl("status")
    assert ended.status == 0
    assert ended.out.splitlines()[:3] == [
        "2 services: 1 Running, 1 Failed",
        "not well:",
        "  db: Failed, program missing",
    ]


def test_status_without_names_says_when_all_is_well(fake, circlectl, record) -> None:
    fake.answers["list_services"] = [[record()]]
    assert circlectl("status").out.startswith("1 service: 1 Running\nall is well\n\nNAME")


def test_status_says_that_the_journal_cannot_be_written(fake, circlectl, record) -> None:
    fake.answers |= {"list_services": [[record()]], "version": [{"degraded_since": OLD}]}
    fake.answers["status"] = [record()]
    said = f"circlectl: journal degraded since {OLD}, not crash-safe: commands are refused\n"
    ended = circlectl("status")
    assert ended.err == said
    assert ended.out.startswith("1 service: 1 Running\nevery service is well, the journal is not\n")
    assert circlectl("status", "web").err == said


def test_status_all_shows_every_service(fake, circlectl, record) -> None:
    fake.answers |= {"list_services": [[record(), record("db")]], "status": [record()]}
    circlectl("status", "all")
    assert [request["service"] for request in fake.asked("status")] == ["web", "db"]


@pytest.mark.parametrize("word", ["web*", "tag:front", "web@?"])
def test_status_takes_whatever_a_word_means(fake, circlectl, record, word) -> None:
    two = [record("web@1"), record("web@2", status="Failed")]
    fake.answers |= {"health": [two], "status": list(two)}
    ended = circlectl("status", word, "--json")
    assert (ended.status, json.loads(ended.out)) == (3, two)
    assert fake.asked("health") == [{"action": "health", "service": [word]}]
    assert [asked["service"] for asked in fake.asked("status")] == ["web@1", "web@2"]


def test_status_of_what_no_service_has_exits_4(fake, circlectl, refusal) -> None:
    fake.answers["health"] = [refusal("unknown_service", "no service has the tag 'x'")]
    assert circlectl("status", "tag:x") == (4, "", "circlectl: no service has the tag 'x'\n")


def test_status_takes_the_name_that_instances_share(fake, circlectl, record, refusal) -> None:
    two = [record("web@1"), record("web@2")]
    fake.answers["status"] = [refusal("unknown_service", "there is no service 'web'"), *two]
    fake.answers["list_services"] = [[*two, record("webmail"), record("webmail@1")]]
    assert json.loads(circlectl("status", "web", "--json").out) == two


def test_status_shows_a_service_once_however_often_it_is_meant(fake, circlectl, record) -> None:
    fake.answers |= {"health": [[record()]], "status": [record()]}
    assert circlectl("status", "web", "w*").out.count("web: Running") == 1


def test_status_tells_what_the_run_says_holds_and_is_found_by(fake, circlectl, detailed) -> None:
    told = {"status_text": "4 \033workers", "errno": 2, "memory": 12_345_678, "found_by": "cgroup"}
    fake.answers["status"] = [detailed | told]
    out = circlectl("status", "web").out
    assert "  says      4 \\x1bworkers\n" in out
    assert "  errno     2 (ENOENT: No such file or directory)\n" in out
    assert "  memory    12.3 MB\n  found by  its cgroup\n" in out
    fake.answers["status"] = [detailed | dict.fromkeys(told)]
    out = circlectl("status", "web").out
    assert not [label for label in ("says", "errno", "memory", "found by") if f"  {label} " in out]


def test_status_tells_what_a_service_needs_and_how_that_is(
    fake, circlectl, record, detailed
) -> None:
    detailed["definition"] |= {
        "tags": ["front", "eu"],
        "depends_on": [
            {"service": "db", "condition": "ready", "restart": True},
            {"service": "migrate", "condition": "completed", "restart": False},
        ],
    }
    fake.answers["status"] = [detailed]
    done = record("migrate", status="Stopped", reason="completed")
    fake.answers["list_services"] = [[record("db"), done]]
    out = circlectl("status", "web").out
    assert "  needs     db ready, whose restarts it follows: Running\n" in out
    assert "            migrate completed: Stopped, completed\n  tags      front, eu\n" in out


def test_status_asks_for_no_states_that_it_does_not_show(fake, circlectl, detailed) -> None:
    need = {"service": "db", "condition": "ready", "restart": False}
    fake.answers["status"] = [detailed, detailed | {"definition": {"depends_on": [need]}}]
    circlectl("status", "web")
    circlectl("status", "web", "--json")
    assert not fake.asked("list_services")


def test_status_shortens_a_command_to_the_terminal(fake, circlectl, detailed, screen_at) -> None:
    screen_at(80)
    detailed["definition"]["cmd"] = ["java", *["-Dkey=value"] * 100]
    fake.answers["status"] = [detailed]
    (command,) = [line for line in circlectl("status", "web").out.splitlines() if "java" in line]
    assert len(command) == 80
    assert command.endswith("\u2026")


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"status": "Stopped", "waiting_for": "db to be ready"}, "waiting for db to be ready"),
        ({"wanted": "down", "waiting_for": "web to stop"}, "waiting for web to stop"),
        ({"status": "Stopped", "reason": "completed"}, "completed"),
    ],
)
def test_list_tells_what_a_service_waits_for(fake, circlectl, record, changes, detail) -> None:
    fake.answers["list_services"] = [[record(**{"reason": "waiting", **changes})]]
    assert circlectl("list").out.splitlines()[1].endswith(f"  {detail}")


def test_health_has_a_line_a_check(fake, circlectl, detailed) -> None:
    fake.answers["health"] = [
        [detailed, {"name": "db", "health": None, "since": None, "checks": []}]
    ]
    _header, web = circlectl("health").out.splitlines()
    assert web.startswith("web   http   unhealthy  12.3 ms")
    assert web.endswith("connection refused (http://127.0.0.1:8080/)")
    assert "service" not in fake.requests[0]
    _header, _web, db = circlectl("health", "web", "db").out.splitlines()
    assert db.endswith("no check is declared")


def test_that_no_service_has_a_check_is_said(fake, circlectl) -> None:
    fake.answers["health"] = [[{"name": "db", "health": None, "since": None, "checks": []}]]
    assert circlectl("health").out.startswith("no checks are declared; ")
    assert len(json.loads(circlectl("health", "--json").out)) == 1


def test_health_asks_for_the_names_that_were_given(fake, circlectl) -> None:
    fake.answers["health"] = [[]]
    circlectl("health", "web", "db")
    assert fake.requests[0]["service"] == ["web", "db"]


@pytest.fixture
def results():
    """What `check` answers: one check that succeeded, and one that did not."""
    http = {"name": "http", "target": "http://127.0.0.1:8080/", "latency_ms": 12.345}
    tcp = {"name": "tcp", "target": "tcp:127.0.0.1:5432", "latency_ms": 0.2}
    return [
        {"name": "web", "checks": [http | {"ok": True, "error": None}]},
        {"name": "db", "checks": [tcp | {"ok": False, "error": "connection refused"}]},
    ]


def test_check_has_a_line_a_check_and_fails_with_one_of_them(fake, circlectl, results) -> None:
    fake.answers["check"] = [results, results[:1]]
    ended = circlectl("check", "web", "db")
    header, web, db = ended.out.splitlines()
    assert header.split() == ["NAME", "CHECK", "TARGET", "RESULT", "MS", "ERROR"]
    assert web.split() == ["web", "http", "http://127.0.0.1:8080/", "ok", "12.3"]
    assert db.split() == ["db", "tcp", "tcp:127.0.0.1:5432", "failed", "0.2", *db.split()[-2:]]
    assert db.endswith("  connection refused")
    assert ended.status == 1
    assert circlectl("check", "web").status == 0
    assert [asked["service"] for asked in fake.requests] == [["web", "db"], "web"]


def test_check_as_json_fails_with_one_of_them_too(fake, circlectl, results) -> None:
    fake.answers["check"] = [results]
    ended = circlectl("check", "all", "--json")
    assert (ended.status, json.loads(ended.out)) == (1, results)


def test_check_fits_its_targets_into_the_terminal(fake, circlectl, results, screen_at) -> None:
    screen_at(80)
    results[0]["checks"][0]["target"] = "http://127.0.0.1:8080/" + "x" * 100 + "/healthz"
    fake.answers["check"] = [results]
    header, web, *db = circlectl("check", "all").out.splitlines()
    assert "x/healthz  " in web
    assert header.endswith("ERROR\033[0m")
    assert max(len(_plain(line)) for line in (header, web, *db)) == 80
    assert db[-1] == "    \u2514 connection refused"


def test_check_takes_a_name(circlectl) -> None:
    said = "circlectl: name the services to check, or all (see circlectl check --help)\n"
    assert circlectl("check") == (2, "", said)


def test_check_of_what_declares_none_is_a_failure(fake, circlectl, refusal) -> None:
    fake.answers["check"] = [refusal("no_checks", "no health_check is declared for 'web'")]
    said = "circlectl: no health_check is declared for 'web'\n"
    assert circlectl("check", "web") == (1, "", said)


@pytest.mark.parametrize("arguments", [("--json", "list"), ("list", "--json")])
def test_json_is_the_answer_wherever_it_is_asked_for(fake, circlectl, record, arguments) -> None:
    fake.answers["list_services"] = [[record()]]
    ended = circlectl(*arguments)
    assert json.loads(ended.out) == [record()]
    assert ended.out.count("\n") == 1


def test_json_is_indented_on_a_terminal(fake, circlectl, record, screen_at) -> None:
    screen_at(80)
    fake.answers["list_services"] = [[record()]]
    ended = circlectl("list", "--json")
    assert json.loads(ended.out) == [record()]
    assert ended.out.count("\n") > 10


def test_status_of_one_name_is_one_object_and_of_several_an_array(fake, circlectl, record) -> None:
    fake.answers["status"] = [record(), record(), record("db")]
    assert json.loads(circlectl("status", "web", "--json").out) == record()
    assert json.loads(circlectl("status", "web", "db", "--json").out) == [record(), record("db")]


def test_version_tells_both_versions_and_what_the_machine_can_do(fake, circlectl) -> None:
    capability = {"name": "pidfd", "available": False, "what": "pidfds", "otherwise": "looks"}
    answer = {"version": "9.9", "pid": 5, "started_at": OLD, "capabilities": [capability]}
    fake.answers["version"] = [answer]
    ended = circlectl("version", "--all")
    assert ended.out.startswith("circlectl 0.")
    assert "registry 9.9\n" in ended.out
    assert "    pidfd         no   looks\n" in ended.out
    assert fake.requests[0]["all"] is True


@pytest.fixture
def validator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of Python, what says its arguments and that they are wrong."""
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\necho "$@" >&2\nexit 78\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))


def test_validate_passes_its_file_and_the_exit_status_on(validator, circlectl) -> None:
    ended = circlectl("validate", "a.toml")
    assert ended == (78, "", "-P -m registry --validate --config a.toml\n")
    assert circlectl("validate").err == "-P -m registry --validate\n"


def test_validate_as_json_carries_the_complaints(validator, circlectl) -> None:
    ended = circlectl("validate", "--json")
    assert ended.status == 78
    assert json.loads(ended.out) == {
        "valid": False,
        "complaints": ["-P -m registry --validate"],
    }


def _plain(line: str) -> str:
    for code in ("0", "1", "31", "32", "33"):
        line = line.replace(f"\033[{code}m", "")
    return line


# --- the past -------------------------------------------------------------------------------------

THEN = {
    "seq": 57,
    "at": "2026-01-02T03:14:07.000001Z",
    "asked": "2026-01-02T03:14:59.999999Z",
    "supervised": True,
}


def test_list_at_shows_the_services_as_they_were_under_a_line_that_says_when(
    fake, circlectl, record
) -> None:
    fake.answers["list_services"] = [{"moment": THEN, "services": [record()]}]
    ended = circlectl("list", "--at", "03:14")
    when, _header, web = ended.out.splitlines()
    assert when == "as of 2026-01-02 03:14:59Z, after event 57"
    assert web.split()[-3:] == ["10m", "54s", "ready"], "an age is as of then"
    assert fake.asked("list_services") == [{"action": "list_services", "at": "03:14"}]


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        (
            {"supervised": False},
            "as of 2026-01-02 03:14:59Z, after event 57, no registry was running",
        ),
        ({"seq": 0, "at": None, "asked": None}, "before the first event"),
    ],
)
def test_when_an_answer_is_of_is_said(fake, circlectl, changes, first) -> None:
    fake.answers["list_services"] = [{"moment": THEN | changes, "services": []}]
    for command in ("list", "status"):
        assert circlectl(command, "--at", "seq:57").out == f"{first}\nno service was declared\n"


def test_as_json_the_past_has_the_shape_of_the_present(fake, circlectl, record) -> None:
    fake.answers["list_services"] = [{"moment": THEN, "services": [record()]}]
    assert json.loads(circlectl("list", "--at", "03:14", "--json").out) == [record()]


def test_status_at_shows_each_service_that_was_meant_then(fake, circlectl, detailed) -> None:
    fake.answers["list_services"] = [{"moment": THEN, "services": [detailed]}]
    fake.answers["status"] = [detailed | {"moment": THEN}]
    ended = circlectl("status", "w*", "--at", "seq:57")
    assert ended.status == 0
    assert ended.out.startswith("as of 2026-01-02 03:14:59Z, after event 57\nweb: Running")
    assert fake.asked("list_services")[0] == {
        "action": "list_services", "service": "w*", "at": "seq:57",
    }  # fmt: skip
    assert fake.asked("status") == [{"action": "status", "service": "web", "at": "seq:57"}]


def test_what_was_no_service_then_is_told_as_now(fake, circlectl, refusal) -> None:
    message = "after event 5, 2026-01-02T03:00:00Z: there is no service 'x', there are db, web"
    fake.answers["list_services"] = [refusal("unknown_service", message)]
    assert circlectl("status", "x", "--at", "seq:5") == (4, "", f"circlectl: {message}\n")


# --- why ------------------------------------------------------------------------------------------

WHY = {
    "subject": "web is Failed since 2026-01-02 03:14:07Z",
    "service": "web",
    "status": "Failed",
    "since": "2026-01-02T03:14:07.000001Z",
    "because": [
        {
            "seq": 57,
            "at": "2026-01-01T23:59:59.000001Z",
            "service": "web",
            "type": "exited",
            "sentence": "it exited with code 3 (run 2)",
        }
    ],
    "chain": [57],
    "meanwhile": [],
    "said": {"run": 2, "at": "2026-01-02T03:14:07Z", "lines": ["Traceback"], "dropped": 0},
    "next": {"sentence": "nothing until circlectl start web", "at": None},
}


def test_why_is_a_chain_of_sentences(fake, circlectl) -> None:
    fake.answers["why"] = [WHY]
    assert circlectl("why", "web") == (
        0,
        "web is Failed since 2026-01-02 03:14:07Z\n"
        "  because it exited with code 3 (run 2) (event 57, 2026-01-01 23:59:59Z)\n"
        "said last, run 2:\n"
        "  | Traceback\n"
        "next: nothing until circlectl start web\n",
        "",
    )
    assert fake.asked("why") == [{"action": "why", "service": "web"}]
    assert json.loads(circlectl("why", "seq:57", "--at", "03:14", "--json").out) == WHY
    assert fake.asked("why")[-1] == {"action": "why", "service": "seq:57", "at": "03:14"}


def test_why_is_wrapped_where_the_terminal_is_narrow(fake, circlectl, screen_at) -> None:
    screen_at(50)
    fake.answers["why"] = [WHY]
    lines = circlectl("why", "web").out.splitlines()
    assert lines[1:3] == [
        "  because it exited with code 3 (run 2) (event",
        "    57, 2026-01-01 23:59:59Z)",
    ]


# --- graph ----------------------------------------------------------------------------------------

GRAPH = {
    "moment": None,
    "services": [
        {
            "name": "web",
            "status": "Stopped",
            "reason": "waiting",
            "wanted": "up",
            "needs": [{"service": "db", "condition": "ready", "restart": True, "met": False}],
        },
        {"name": "db", "status": "Failed", "reason": "exit_code", "wanted": "up", "needs": []},
    ],
}


def test_graph_is_a_tree_of_what_each_needs(fake, circlectl) -> None:
    fake.answers["graph"] = [GRAPH]
    assert circlectl("graph").out.splitlines() == [
        "web: Stopped, waiting for what it depends on",
        "└─ db ready, whose restarts it follows (not met): Failed, exited with an error",
    ]
    circlectl("graph", "web", "--at", "seq:7")
    assert fake.asked("graph")[-1] == {"action": "graph", "service": ["web"], "at": "seq:7"}


def test_graph_has_other_forms(fake, circlectl) -> None:
    fake.answers["graph"] = [GRAPH]
    assert circlectl("graph", "--dot").out.startswith("digraph services {\n")
    assert circlectl("graph", "--mermaid").out.startswith("flowchart LR\n")
    assert json.loads(circlectl("graph", "--json").out) == GRAPH


def test_graph_says_when_it_is_of_and_needs_no_unicode(fake, circlectl, screen_at) -> None:
    screen_at(80, ENCODING="ascii")
    fake.answers["graph"] = [GRAPH | {"moment": THEN}]
    first, _web, db = circlectl("graph", "--at", "03:14").out.splitlines()
    assert first == "as of 2026-01-02 03:14:59Z, after event 57"
    assert db.startswith("`- db ready")


@pytest.mark.parametrize(
    ("forms", "said"),
    [
        (["--dot", "--mermaid"], "--dot goes without --mermaid"),
        (["--mermaid", "--json"], "--mermaid goes without --json"),
        (["--json", "--dot"], "--dot goes without --json"),
    ],
)
def test_graph_has_one_form_at_a_time(circlectl, forms, said) -> None:
    ended = circlectl("graph", *forms)
    assert (ended.status, ended.out) == (2, "")
    assert f"{said}: an answer has one form" in ended.err
