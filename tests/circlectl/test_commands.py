"""start, stop, restart, reset, signal, reload, shutdown: what they ask for, what they say, how they exit."""

import json

import pytest

COMMANDS = ("start", "stop", "restart", "reset")
LATER = "2099-01-01T00:00:00Z"


@pytest.mark.parametrize("command", COMMANDS)
def test_an_accepted_command_has_a_line_a_service(fake, circlectl, command) -> None:
    accepted = {"name": "web", "seq": 120, "status": "Running", "already": False}
    already = {"name": "db", "seq": 7, "status": "Stopped", "already": True}
    fake.answers[command] = [[accepted, already]]
    said = f"web: {command} accepted (seq 120)\ndb: already Stopped\n"
    assert circlectl(command, "web", "db") == (0, said, "")


@pytest.mark.parametrize(
    ("names", "service"),
    [
        (["web"], "web"),
        (["web", "db", "web"], ["web", "db"]),
        (["all"], "all"),
        (["web", "all"], "all"),
    ],
)
def test_names_are_asked_for_in_one_request(fake, circlectl, names, service) -> None:
    fake.answers["stop"] = [[]]
    circlectl("stop", *names)
    (request,) = fake.requests
    assert request["service"] == service
    assert "wait" not in request


@pytest.mark.parametrize("command", COMMANDS)
def test_no_name_is_wrong_usage_said_in_one_sentence(circlectl, command) -> None:
    said = f"circlectl: name the services to {command}, or all (see circlectl {command} --help)\n"
    assert circlectl(command) == (2, "", said)


@pytest.mark.parametrize(
    ("arguments", "timeout_s"),
    [
        (["--wait"], 60),
        (["--wait", "--timeout", "5"], 5),
        (["--timeout", "5s"], 5),
        (["--timeout", "500ms"], 0.5),
        (["--timeout", "2m"], 120),
    ],
)
def test_wait_has_a_timeout_with_a_unit(fake, circlectl, arguments, timeout_s) -> None:
    fake.answers["start"] = [[]]
    circlectl("start", "web", *arguments)
    assert fake.requests[0]["wait"] is True
    assert fake.requests[0]["timeout"] == timeout_s


@pytest.mark.parametrize("command", [["start", "web"], ["reload", "web"], ["apply"]])
def test_who_gives_a_timeout_waits_hardly_longer_for_a_registry_that_is_mute(
    fake, circlectl, stream, monkeypatch, command
) -> None:
    monkeypatch.setattr("circlectl.session.GRACE_S", 0.1)
    fake.answers[command[0]] = [stream([], stays=True)]
    said = "circlectl: the registry did not answer within 0.3 s\n"
    assert circlectl(*command, "--timeout", "200ms") == (1, "", said)


@pytest.mark.parametrize("timeout", ["soon", "0", "-1", "5 weeks", ""])
def test_a_timeout_that_is_none_is_wrong_usage(circlectl, timeout) -> None:
    ended = circlectl("start", "web", f"--timeout={timeout}")
    assert ended.status == 2
    assert "is no time above zero" in ended.err


@pytest.mark.parametrize(
    ("command", "changes", "status", "said"),
    [
        ("start", {}, 0, "web: Running, PID 4711, after "),
        ("restart", {}, 0, "web: Running, PID 4711, after "),
        ("start", {"since": "2020-01-01T00:00:00Z"}, 0, "web: already Running, PID 4711\n"),
        (
            "start",
            {"status": "Stopped", "reason": "completed", "pid": None},
            0,
            "web: Stopped, completed, after ",
        ),
        (
            "start",
            {"status": "Failed", "reason": "exit_code", "pid": None},
            1,
            "web: Failed, exited with an error, after ",
        ),
        ("stop", {"status": "Stopped", "pid": None}, 0, "web: Stopped, after "),
        ("stop", {}, 1, "web: Running, PID 4711, after "),
        ("restart", {"status": "Stopped", "reason": "requested", "pid": None}, 1, "web: Stopped, "),
    ],
)
def test_waiting_tells_how_it_ended_and_fails_unless_as_asked(
    fake, circlectl, record, command, changes, status, said
) -> None:
    fake.answers[command] = [[record(**({"since": LATER} | changes))]]
    ended = circlectl(command, "web", "--wait")
    assert ended.status == status
    assert ended.out.startswith(said)


def test_a_wait_that_was_too_short_shows_how_far_it_came(fake, circlectl, record, refusal) -> None:
    records = [record(status="Starting", reason="requested", since=LATER)]
    fake.answers["start"] = [refusal("timed_out", "not settled within 5 s", records)]
    ended = circlectl("start", "web", "--wait")
    assert ended.status == 1
    assert ended.out.startswith("web: Starting, PID 4711, as requested, after ")
    assert ended.err == "circlectl: not settled within 5 s\n"


def _item(name: str, code: str | None = None):
    error = {"code": code, "message": f"no {name}"} if code else None
    return {"name": name, "ok": not code, "seq": 9, "status": "Running", "error": error}


@pytest.mark.parametrize(
    ("codes", "status"),
    [
        ((None, "unknown_service"), 4),
        (("unknown_service", "unknown_service"), 4),
        (("shutting_down", "unknown_service"), 1),
        ((None, "shutting_down"), 1),
    ],
)
def test_a_partial_failure_tells_each_service(fake, circlectl, refusal, codes, status) -> None:
    items = [_item(name, code) for name, code in zip(("web", "db"), codes, strict=True)]
    fake.answers["stop"] = [refusal("partial_failure", "not for every service", items)]
    ended = circlectl("stop", "web", "db")
    assert ended.status == status
    assert ended.out == ("" if codes[0] else "web: stop accepted (seq 9)\n")
    assert ended.err.endswith("circlectl: db: no db\n")


def test_a_failure_as_json_is_a_line_on_standard_error(fake, circlectl, refusal) -> None:
    items = [_item("web"), _item("db", "unknown_service")]
    fake.answers["stop"] = [refusal("partial_failure", "not for every service", items)]
    ended = circlectl("stop", "web", "db", "--json")
    assert (ended.status, ended.out) == (4, "")
    error = {"code": "partial_failure", "message": "not for every service", "data": items}
    assert json.loads(ended.err) == {"error": error}
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("dependents", "said"),
    [
        ([], ""),
        (
            ["web"],
            "circlectl: web still runs and depends on db; "
            "circlectl stop db --with-dependents stops it first\n",
        ),
        (
            ["web", "api"],
            "circlectl: web and api still run and depend on db; "
            "circlectl stop db --with-dependents stops them first\n",
        ),
    ],
)
def test_stop_names_what_goes_on_without_it(fake, circlectl, dependents, said) -> None:
    item = {"name": "db", "seq": 120, "status": "Stopping", "dependents": dependents}
    fake.answers["stop"] = [[item]]
    assert circlectl("stop", "db") == (0, "db: stop accepted (seq 120)\n", said)
    assert circlectl("stop", "db", "--json") == (
        0,
        json.dumps([item], separators=(",", ":")) + "\n",
        "",
    )
    assert "with_dependents" not in fake.requests[0]


def test_stop_with_dependents_asks_for_them(fake, circlectl) -> None:
    items = [{"name": name, "seq": 9, "status": "Stopping"} for name in ("web", "db")]
    fake.answers["stop"] = [items]
    said = "web: stop accepted (seq 9)\ndb: stop accepted (seq 9)\n"
    assert circlectl("stop", "db", "--with-dependents") == (0, said, "")
    assert fake.requests[0]["with_dependents"] is True


DONE = [{"name": "web", "seq": 9, "status": "Running", "already": False}]


def test_signal_takes_names_and_then_the_signal(fake, circlectl) -> None:
    fake.answers["signal"] = [[*DONE, DONE[0] | {"name": "db"}]]
    said = "web: signal HUP sent\ndb: signal HUP sent\n"
    assert circlectl("signal", "web", "tag:x", "HUP") == (0, said, "")
    assert fake.requests == [{"action": "signal", "service": ["web", "tag:x"], "signal": "HUP"}]


@pytest.mark.parametrize("arguments", [[], ["web"]])
def test_signal_without_name_or_signal_is_wrong_usage(circlectl, arguments) -> None:
    ended = circlectl("signal", *arguments)
    assert (ended.status, ended.out) == (2, "")
    assert "name the services, and then the signal: circlectl signal web HUP" in ended.err


@pytest.mark.parametrize(("arguments", "timeout_s"), [([], 60), (["--timeout", "5s"], 5)])
def test_reload_waits_until_it_is_carried_out(fake, circlectl, arguments, timeout_s) -> None:
    fake.answers["reload"] = [DONE]
    assert circlectl("reload", "web", *arguments) == (0, "web: reloaded\n", "")
    asked = {"action": "reload", "service": "web", "wait": True, "timeout": timeout_s}
    assert fake.requests == [asked]


def test_reload_without_a_name_tells_it_from_apply(circlectl) -> None:
    said = (
        "circlectl: reload takes a NAME: a service re-reads its own files. "
        "To take up a changed services.toml: circlectl apply (see circlectl reload --help)\n"
    )
    assert circlectl("reload") == (2, "", said)


@pytest.mark.parametrize(
    ("code", "status"),
    [("service_not_running", 3), ("no_reload", 1), ("request_failed", 1), ("unknown_service", 4)],
)
def test_a_request_that_fails_is_one_sentence(fake, circlectl, refusal, code, status) -> None:
    fake.answers["reload"] = [refusal(code, "it is so", DONE if code == "request_failed" else None)]
    assert circlectl("reload", "web") == (status, "", "circlectl: it is so\n")


def test_a_request_refused_by_some_tells_each(fake, circlectl, refusal) -> None:
    items = [_item("web"), _item("db", "service_not_running")]
    fake.answers["signal"] = [refusal("partial_failure", "not for every service", items)]
    ended = circlectl("signal", "web", "db", "HUP")
    assert ended == (3, "web: signal HUP sent\n", "circlectl: db: no db\n")
    items = [_item("web"), _item("db", "request_failed")]
    fake.answers["reload"] = [refusal("partial_failure", "not for every service", items)]
    ended = circlectl("reload", "web", "db")
    assert ended == (1, "web: reloaded\n", "circlectl: db: no db\n")


@pytest.mark.parametrize("arguments", [["signal", "web", "HUP"], ["reload", "web"]])
def test_requests_as_json_are_the_answer(fake, circlectl, arguments) -> None:
    fake.answers[arguments[0]] = [DONE]
    assert json.loads(circlectl(*arguments, "--json").out) == DONE


def test_an_upgrade_that_cannot_be_tells_each_reason_on_a_line(fake, circlectl, refusal) -> None:
    fake.answers["version"] = [{"started_at": LATER, "degraded_since": None}]
    reasons = ["a.toml:1: this", "a.toml:2: that"]
    fake.answers["upgrade"] = [refusal("not_ready", f"cannot upgrade: {reasons[0]} (...)", reasons)]
    said = "".join(f"circlectl: cannot upgrade: {why}\n" for why in reasons)
    assert circlectl("upgrade") == (1, "", said)


def test_shutdown_says_what_begins(fake, circlectl) -> None:
    fake.answers["shutdown"] = [None]
    said = "the registry stops its services, and ends\n"
    assert circlectl("shutdown") == (0, said, "")
