"""Signals, reloads and checks that somebody asks for, and whom a request means."""

from __future__ import annotations

import json
import os
import signal

import pytest

pytestmark = pytest.mark.timeout(30)

SLEEP = 'cmd = ["sleep", "1000"]'
# Tells each signal that it gets, and that it hears them now.
TELL = (
    'for s in HUP USR1 USR2; do trap "echo $CIRCLEOSD_SERVICE $s $CIRCLEOSD_RUN >> told" $s; done;'
    " echo up >> up; while :; do sleep 0.02; done"
)


def service(name: str, *keys: str) -> str:
    return "\n".join([f'[[service]]\nname = "{name}"', *(keys or (SLEEP,)), ""])


def shell(script: str) -> str:
    return f"cmd = {json.dumps(['sh', '-c', script])}"


def command(script: str) -> str:
    return f"reload = {json.dumps(['sh', '-c', script])}"


def begin(box, *services: str, **how) -> None:
    box.configure("".join(services))
    box.start(**how)


def told(box) -> list[str]:
    """Who told which signal, sorted: they tell side by side."""
    return sorted(" ".join(line.split()[:2]) for line in box.lines("told"))


def latest(box) -> int:
    return box.data("events", since=-1)[-1]["seq"]


def error(box, action: str, **parameters) -> tuple[str, str]:
    answer = box.ask(action, **parameters)["error"]
    return answer["code"], answer["message"]


# --- signal ---------------------------------------------------------------------------------------


def test_a_signal_by_name_or_number_reaches_the_main_process_and_is_journaled_with_who_asked(box):
    begin(box, service("web", shell(TELL)))
    box.wait_lines("up", 1)
    box.wait_status("web", "Running")
    seqs = []
    words = ["HUP", "SIGUSR1", str(int(signal.SIGUSR2)), "hup"]
    for count, word in enumerate(words, 1):
        (answer,) = box.data("signal", service="web", signal=word)
        assert (answer["name"], answer["status"], answer["already"]) == ("web", "Running", False)
        seqs.append(answer["seq"])
        box.wait_lines("told", count)
    assert told(box) == ["web HUP", "web HUP", "web USR1", "web USR2"]
    asked = box.events("web", "signal_requested")
    assert [event["seq"] for event in asked] == seqs
    names = [event["data"]["signal"] for event in asked]
    assert names == ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGHUP"]
    assert {(event["actor"]["uid"], event["actor"]["pid"]) for event in asked} == {
        (os.getuid(), os.getpid())
    }
    done = box.events("web", "request_done")
    assert [(event["data"], event["cause"], event["actor"]) for event in done] == [
        ({"request": seq}, seq, None) for seq in seqs
    ]
    assert box.service("web")["run"] == 1


def test_a_signal_that_ends_it_is_an_end_like_any_other(box):
    begin(box, service("web", SLEEP, 'restart = "Never"'))
    box.wait_status("web", "Running")
    box.data("signal", service="web", signal="KILL")
    box.wait_status("web", "Failed", reason="signal")


def test_a_signal_to_a_tag_a_glob_or_a_list_is_sent_to_each_of_them(box):
    tell = shell(TELL)
    begin(
        box,
        service("web", tell, "instances = 2", 'tags = ["front"]'),
        service("db", tell, 'tags = ["front"]'),
        service("cache", tell),
    )
    box.wait_lines("up", 4)
    for name in ("web@1", "web@2", "db", "cache"):
        box.wait_status(name, "Running")
    box.data("signal", service="tag:front", signal="HUP")
    box.data("signal", service="web@*", signal="USR1")
    box.data("signal", service=["cache", "db"], signal="USR2")
    box.wait_lines("told", 7)
    assert told(box) == [
        *("cache USR2", "db HUP", "db USR2"),
        *("web@1 HUP", "web@1 USR1", "web@2 HUP", "web@2 USR1"),
    ]


def test_what_does_not_run_is_sent_no_signal_and_of_several_each_is_told(box):
    begin(
        box,
        service("web", shell(TELL)),
        service("down", SLEEP, "autostart = false"),
        service("starting", SLEEP, 'health_check = "cmd:false"'),
    )
    box.wait_lines("up", 1)
    box.wait_status("web", "Running")
    box.wait_status("starting", "Starting")
    for name, status in (("down", "Stopped"), ("starting", "Starting")):
        assert error(box, "signal", service=name, signal="HUP") == (
            "service_not_running",
            f"service '{name}' is {status}, not Running",
        )
    answer = box.ask("signal", service="all", signal="HUP")["error"]
    assert answer["code"] == "partial_failure"
    assert {item["name"]: item["ok"] for item in answer["data"]} == {
        "web": True,
        "down": False,
        "starting": False,
    }
    box.wait_lines("told", 1)
    assert not box.events("down", "signal_requested")
    assert not box.events("starting", "signal_requested")


def test_a_signal_that_is_none_is_refused_with_a_hint(box):
    begin(box, service("web"))
    box.wait_status("web", "Running")
    for word in ("HUPP", "sigterrm", "", "0", "99", "9" * 5000, "-9", "SIGRTMIN+99"):
        code, message = error(box, "signal", service="web", signal=word)
        assert (code, message.startswith("signal: there is no signal '")) == (
            "invalid_params",
            True,
        ), word
        assert "did you mean 'SIG" in message or "write for example HUP" in message
        assert len(message) < 150
    assert "did you mean 'SIGHUP'?" in error(box, "signal", service="web", signal="hupp")[1]
    assert not box.events("web", "signal_requested")


# The registry as it is, killed when it is about to carry out what was asked for, or has just done so.
DYING = """
import os, signal
from registry.host.machine import Machine
carry_out = Machine.carry_out

def dying(self, service, request):
    if os.environ["WHEN"] == "after":
        carry_out(self, service, request)
    os.kill(os.getpid(), signal.SIGKILL)

Machine.carry_out = dying
from registry.__main__ import main
main()
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_signal_that_was_asked_for_is_sent_by_the_next_registry_if_this_one_is_killed(box, when):
    program = (str(box.program("dying", DYING)),)
    begin(box, service("web", shell(TELL)), program=program, WHEN=when)
    box.wait_lines("up", 1)
    pid = box.wait_status("web", "Running")["pid"]
    with pytest.raises((OSError, ValueError)):
        box.ask("signal", service="web", signal="HUP")
    assert box.daemon.wait(10) == -signal.SIGKILL
    if when == "before":
        assert told(box) == []
    box.start()
    box.wait_lines("told", 1)
    (asked,) = box.events("web", "signal_requested")
    (done,) = box.wait_for(lambda: box.events("web", "request_done"), "it is done")
    assert done["data"] == {"request": asked["seq"]}
    assert box.service("web")["pid"] == pid
    box.kill()
    box.start()
    box.data("signal", service="web", signal="USR1")
    box.wait_for(lambda: "web USR1" in told(box), "what came after it is heard")
    sent = {"before": 1, "after": 2}[when]  # the one that was killed had perhaps sent it, too
    assert 1 <= told(box).count("web HUP") <= sent, "what was done is not done again"
    assert len(box.events("web", "request_done")) == 2
    box.verify()


# --- reload ---------------------------------------------------------------------------------------


def test_a_reload_is_the_signal_or_the_command_that_the_service_names(box):
    begin(
        box,
        service("by-signal", shell(TELL), 'reload = "HUP"'),
        service(
            "by-command",
            shell(TELL),
            command("echo $MAINPID $CIRCLEOSD_SERVICE $MODE >> main; kill -USR1 $MAINPID"),
            'env = { MODE = "live" }',
        ),
    )
    box.wait_lines("up", 2)
    pid = box.wait_status("by-command", "Running")["pid"]
    box.wait_status("by-signal", "Running")
    answers = box.data("reload", service=["by-signal", "by-command"])
    assert [answer["name"] for answer in answers] == ["by-signal", "by-command"]
    assert box.lines("main") == [f"{pid} by-command live"]
    box.wait_lines("told", 2)
    assert told(box) == ["by-command USR1", "by-signal HUP"]
    for answer in answers:
        (asked,) = box.events(answer["name"], "reload_requested")
        assert (asked["seq"], asked["actor"]["pid"]) == (answer["seq"], os.getpid())
        (done,) = box.events(answer["name"], "request_done")
        assert done["data"] == {"request": asked["seq"]}
    assert box.service("by-command")["run"] == 1


def test_a_reload_that_fails_says_how_and_the_service_runs_on(box):
    begin(
        box,
        service("fails", SLEEP, command("exit 3")),
        service("missing", SLEEP, 'reload = ["./nothing-here"]'),
        service("slow", SLEEP, command("sleep 1000"), 'start_timeout = "300ms"'),
        service("none", SLEEP),
        service("down", SLEEP, 'reload = "HUP"', "autostart = false"),
    )
    names = ("fails", "missing", "slow", "none")
    pids = {name: box.wait_status(name, "Running")["pid"] for name in names}
    assert error(box, "reload", service="fails") == ("request_failed", "fails: sh ended with 3")
    assert box.last("fails", "request_done")["data"]["error"] == "sh ended with 3"
    code, message = error(box, "reload", service="missing")
    assert (code, "nothing-here" in message) == ("request_failed", True)
    code, message = error(box, "reload", service="slow")
    assert (code, "longer than 0.3 s and was killed" in message) == ("request_failed", True)
    code, message = error(box, "reload", service="none")
    assert (code, 'reload = "SIGHUP"' in message) == ("no_reload", True)
    assert error(box, "reload", service="down")[0] == "service_not_running"
    assert {name: box.service(name)["pid"] for name in names} == pids
    assert not box.events("none", "reload_requested")


def test_of_several_reloads_each_that_was_carried_out_is_told_beside_those_that_were_not(box):
    begin(
        box,
        service("well", SLEEP, command("while [ ! -e go ]; do sleep 0.02; done; touch done")),
        service("fails", SLEEP, command("touch go; exit 3")),
        service("slow", SLEEP, command("sleep 1000")),
        service("none", SLEEP),
    )
    names = ["well", "fails", "none"]
    for name in (*names, "slow"):
        box.wait_status(name, "Running")
    answer = box.ask("reload", service=names)["error"]
    assert answer["code"] == "partial_failure"
    well, fails, none = answer["data"]
    assert (well["name"], well["ok"], well["error"]) == ("well", True, None)
    assert (box.folder / "done").exists()
    assert fails["error"] == {"code": "request_failed", "message": "sh ended with 3"}
    assert none["error"]["code"] == "no_reload"
    answer = box.ask("reload", service=["well", "slow"], timeout=0.5)["error"]
    assert [item["ok"] for item in answer["data"]] == [True, False]
    assert answer["data"][1]["error"]["code"] == "timed_out"


def test_a_reload_need_not_be_waited_for_and_ends_with_its_run(box):
    begin(box, service("web", SLEEP, command("while [ ! -e go ]; do sleep 0.02; done")))
    box.wait_status("web", "Running")
    (answer,) = box.data("reload", service="web", wait=False)
    assert error(box, "reload", service="web", timeout=0.2)[0] == "timed_out"
    (box.folder / "go").touch()
    box.wait_for(lambda: len(box.events("web", "request_done")) == 2, "both are done")
    first, second = (event["seq"] for event in box.events("web", "reload_requested"))
    assert first == answer["seq"]
    done = [event["data"] for event in box.events("web", "request_done")]
    assert sorted(each["request"] for each in done) == [first, second]
    assert not any(each.get("error") for each in done)
    (box.folder / "go").unlink()
    (answer,) = box.data("reload", service="web", wait=False)
    box.data("restart", service="web", wait=True)
    (box.folder / "go").touch()
    box.data("reload", service="web")
    requests = [event["data"]["request"] for event in box.events("web", "request_done")]
    assert answer["seq"] not in requests, "that run is over"


def test_a_reload_under_way_when_its_key_is_taken_away_keeps_no_registry_from_starting(box):
    begin(box, service("web", SLEEP, 'reload = ["sleep", "1000"]'))
    pid = box.wait_status("web", "Running")["pid"]
    (answer,) = box.data("reload", service="web", wait=False)
    box.kill()
    begin(box, service("web", SLEEP))
    done = box.wait_for(lambda: box.events("web", "request_done"), "it is answered")
    assert done[0]["data"]["request"] == answer["seq"]
    assert "no longer says" in done[0]["data"]["error"]
    assert box.wait_status("web", "Running")["pid"] == pid


# --- check ----------------------------------------------------------------------------------------


def test_a_check_that_is_asked_for_tells_its_result_and_counts_for_nothing(box):
    check = '{{ name = "{0}", target = "cmd:test -e {0}", interval = "1h", failures = 1 }}'
    begin(
        box,
        service("web", SLEEP, f"health_check = [{check.format('a')}, {check.format('b')}]"),
        service("plain"),
    )
    for name in ("a", "b"):
        (box.folder / name).touch()
    run = box.wait_status("web", "Running", health="healthy")["run"]
    seq, health = latest(box), box.data("health", service="web")
    (box.folder / "b").unlink()
    for _ in range(3):
        (answer,) = box.data("check", service="all")
        assert answer["name"] == "web"
        a, b = answer["checks"]
        assert (a["name"], a["target"], a["ok"], a["error"]) == ("a", "cmd:test -e a", True, None)
        assert (b["name"], b["ok"], bool(b["error"])) == ("b", False, True)
        assert a["latency_ms"] > 0
    assert (latest(box), box.data("health", service="web")) == (seq, health)
    assert box.service("web")["run"] == run
    code, message = error(box, "check", service="plain")
    assert (code, message) == ("no_checks", "no health_check is declared for 'plain'")
    assert error(box, "check", service="wbe")[0] == "unknown_service"


def test_a_heartbeat_is_not_waited_for_but_told_as_it_is_known(box):
    beat = 'health_check = { target = "heartbeat:", interval = "200ms", timeout = "200ms", '
    begin(box, service("web", SLEEP, beat + 'on_failure = "report" }', 'ready = "spawn"'))
    box.wait_status("web", "Running")

    def is_well() -> bool:
        ((check,),) = (answer["checks"] for answer in box.data("check", service="web"))
        assert check["ok"] is (check["error"] is None)
        return check["ok"]

    def is_well_after_a_beat() -> bool:
        box.data("heartbeat", service="web")
        return is_well()

    box.wait_for(lambda: not is_well(), "a beat was missed")
    box.wait_for(is_well_after_a_beat, "it was heard")
    box.data("stop", service="web", wait=True)
    assert not is_well(), "nothing listens"


# --- whom a request means -------------------------------------------------------------------------


@pytest.fixture
def several(box):
    """Services that do not run: whom a request means is all that matters."""
    rests = "autostart = false"
    begin(
        box,
        service("web", SLEEP, "instances = 3", 'tags = ["front"]', rests),
        service("website", SLEEP, rests),
        service("db", SLEEP, 'tags = ["front", "data"]', rests),
    )
    return box


WEBS = ["web@1", "web@2", "web@3"]
MEANT = {
    "db": ["db"],
    "web@2": ["web@2"],
    "web": WEBS,
    "web@[13]": ["web@1", "web@3"],
    "web*": [*WEBS, "website"],
    "tag:front": [*WEBS, "db"],
    "tag:data": ["db"],
    "all": [*WEBS, "website", "db"],
}


def test_names_globs_tags_all_and_the_name_of_instances_mean_services(several):
    for word, names in MEANT.items():
        assert [answer["name"] for answer in several.data("stop", service=word)] == names, word
    mixed = several.data("stop", service=["db", "web", "tag:front", "web@1"])
    assert [answer["name"] for answer in mixed] == ["db", *WEBS], "each once, in the order asked"
    assert [each["name"] for each in several.data("health", service="web")] == WEBS


def test_the_lines_of_several_say_whose_they_are(several):
    (several.folder / "var" / "log").mkdir(exist_ok=True)
    for name in ("web@2", "db"):
        (several.folder / "var" / "log" / f"{name}.log").write_text(f"I am {name}\n")
    for word in ("web", "tag:front", ["web@2", "db"]):
        lines = several.data("logs", service=word)
        assert {line["service"]: line["line"] for line in lines}["web@2"] == "I am web@2"
    assert several.data("logs", service="db") == ["I am db"]


def test_whom_nobody_knows_is_refused_with_whom_there_is(several):
    def refused(word) -> str:
        code, message = error(several, "stop", service=word)
        assert code == "unknown_service", message
        return message

    assert refused("websit") == "there is no service 'websit', did you mean 'website'?"
    assert refused("zzz").endswith("there are web@1, web@2, web@3, website, db")
    assert refused("tag:fornt").endswith("the tags are data, front")
    assert "like 'x*'" in refused("x*")
    assert error(several, "stop", service=[])[0] == "invalid_params"
    for action in ("restart", "reload", "apply"):
        service = {} if action == "apply" else {"service": "web"}
        code, message = error(several, action, **service, timeout=-1)
        assert (code, f"timeout of {action}" in message) == ("invalid_params", True), message
    answer = several.ask("stop", service=["db", "zzz"])["error"]
    assert answer["code"] == "partial_failure"
    assert [(item["name"], item["ok"]) for item in answer["data"]] == [("db", True), ("zzz", False)]
    assert answer["data"][1]["error"]["code"] == "unknown_service"
