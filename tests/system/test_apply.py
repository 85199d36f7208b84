"""New configuration while everything runs: told first, taken up whole or not at all, touching only what changed."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(30)

SLEEP = 'cmd = ["sleep", "1000"]'
OTHER = 'cmd = ["sleep", "2000"]'
BY_ITSELF = "its run ends, another begins"
# Becomes ready, and hears no SIGTERM.
DEAF = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True:
    signal.pause()
"""

NOTHING: dict[str, object] = {"changes": [], "settings": [], "later": [], "warnings": []}
"""The plan of an apply that changes nothing."""


def service(name: str, *keys: str) -> str:
    return "\n".join([f'[[service]]\nname = "{name}"', *(keys or (SLEEP,)), ""])


def shell(script: str) -> str:
    return f"cmd = {json.dumps(['sh', '-c', script])}"


def begin(box, *services: str, settings: str = "", **how) -> None:
    box.configure("".join(services), settings)
    box.start(**how)


def running(box, *names: str) -> dict[str, tuple[int, int]]:
    """Run and pid of each, once it runs."""
    records = {name: box.wait_status(name, "Running") for name in names}
    return {name: (record["run"], record["pid"]) for name, record in records.items()}


def latest(box) -> int:
    return box.data("events", since=-1)[-1]["seq"]


def apply(box, *services: str, settings: str = "", wait: bool = True) -> dict[str, dict]:
    """Write the file and take it up: what was changed, by service."""
    box.configure("".join(services), settings)
    return by_service(box.data("apply", wait=wait, timeout=10))


def by_service(plan: dict) -> dict[str, dict]:
    return {change["service"]: change for change in plan["changes"]}


def of_journal(box, query: str, *values: object) -> list[tuple]:
    connection = sqlite3.connect(f"file:{box.journal}?mode=ro", uri=True)
    try:
        return connection.execute(query, values).fetchall()
    finally:
        connection.close()


# --- plan and apply -------------------------------------------------------------------------------


def test_a_plan_tells_what_an_apply_then_does_and_that_touches_only_what_changed(box):
    begin(
        box,
        service("same"),
        service("tuned"),
        service("anew"),
        service(
            "follower", SLEEP, 'depends_on = { anew = { condition = "ready", restart = true } }'
        ),
        service("failed", 'cmd = ["./missing"]'),
        service("gone"),
    )
    before = running(box, "same", "tuned", "anew", "follower", "gone")
    box.wait_status("failed", "Failed")
    seq = latest(box)
    box.configure(
        service("same")
        + service("tuned", SLEEP, 'stop = "3s"', 'tags = ["slow"]')
        + service("anew", OTHER, 'restart = "Never"')
        + service(
            "follower", SLEEP, 'depends_on = { anew = { condition = "ready", restart = true } }'
        )
        + service("failed", SLEEP)
        + service("added")
        + service("resting", SLEEP, "autostart = false")
    )
    plan = box.data("plan")
    assert plan["later"] == []
    told = {
        change["service"]: (change["change"], change["keys"], change["restarts"])
        for change in plan["changes"]
    }
    assert told == {
        "tuned": ("change", ["stop", "tags"], None),
        "anew": ("change", ["cmd", "restart"], BY_ITSELF),
        "follower": ("change", [], "follows anew"),
        "failed": ("change", ["cmd"], "it had failed, and is started"),
        "added": ("add", [], None),
        "resting": ("add", [], None),
        "gone": ("remove", [], "its run ends"),
    }
    assert by_service(plan)["anew"]["restart_keys"] == ["cmd"]
    assert latest(box) == seq, "a plan changes nothing"
    applied = box.data("apply", wait=True)
    names = {each["name"] for each in applied.pop("services")}
    assert names == {each["service"] for each in plan["changes"] if each["change"] != "remove"}
    assert applied == plan
    after = running(box, "same", "tuned", "anew", "failed", "added")
    assert [after[name] for name in ("same", "tuned")] == [before["same"], before["tuned"]]
    assert after["anew"][0] == 2
    box.wait_status("follower", "Running", run=2)
    assert box.service("resting")["status"] == "Stopped"
    assert [record["name"] for record in box.data("list_services")] == [
        *("same", "tuned", "anew", "follower", "failed", "added", "resting")
    ]
    assert not box.is_running(before["gone"][1])
    events = [event for event in box.events() if event["seq"] > seq]
    assert "same" not in {event["service"] for event in events}
    of_apply = [event for event in events if event["actor"] is not None]
    assert {event["decision"] for event in of_apply} == {seq + 1}, "it is one decision"
    assert {event["type"] for event in of_apply} >= {"defined", "redefined", "stop_requested"}
    assert {event["actor"]["pid"] for event in of_apply} == {os.getpid()}
    assert box.data("plan") == NOTHING
    box.verify()


def test_an_apply_that_changes_nothing_journals_nothing(box):
    begin(box, service("web"))
    before = running(box, "web")
    seq = latest(box)
    assert box.data("apply") == NOTHING
    assert (latest(box), running(box, "web")) == (seq, before)


def test_a_wrong_file_is_refused_with_every_complaint_and_everything_runs_on(box):
    begin(box, service("web"), service("db"))
    before, seq = running(box, "web", "db"), latest(box)
    drop_ins = box.folder / "etc" / "services.d"
    drop_ins.mkdir()
    (drop_ins / "more.toml").write_text(service("web") + service("new", SLEEP, "umask = 9"))
    box.configure(service("web", OTHER, 'stop = "soon"', "instances = 0"))
    for action in ("plan", "apply"):
        error = box.ask(action)["error"]
        assert error["code"] == "invalid_config"
        told = error["data"]
        assert [sum(word in line for line in told) for word in ("stop", "instances", "umask")] == [
            *(1, 1, 1)
        ], told
        assert sum("more.toml" in line for line in told) == 2, told
        assert error["message"] == f"{told[0]} (and {len(told) - 1} more)"
    (drop_ins / "more.toml").write_text("[[service]\n")
    (told,) = box.ask("apply")["error"]["data"]
    assert "more.toml" in told
    assert "not valid TOML" in told
    box.folder.joinpath("etc", "services.toml").unlink()
    assert box.ask("apply")["error"]["code"] == "invalid_config"
    assert (latest(box), running(box, "web", "db")) == (seq, before)


def test_circles_among_dependencies_are_refused_as_a_whole(box):
    begin(box, service("web"))
    seq = latest(box)
    box.configure(
        service("web", SLEEP, 'depends_on = ["db"]') + service("db", SLEEP, 'depends_on = ["web"]')
    )
    assert "web" in box.ask("apply")["error"]["message"]
    assert latest(box) == seq


# --- what changes as the run goes on --------------------------------------------------------------


def test_how_it_is_stopped_and_started_again_is_in_force_without_a_new_run(box):
    deaf = f"cmd = {box.python('deaf', DEAF)}"
    polite = 'trap "echo int >> told; exit" INT; echo >> hears; while :; do sleep 0.02; done'
    polite = shell(polite)
    begin(
        box,
        service("slow", deaf, 'stop = "60s"', 'ready = "spawn"'),
        service("polite", polite),
        service("once"),
        service("clean", shell("while [ ! -e end ]; do sleep 0.02; done; exit 3")),
    )
    before = running(box, "slow", "polite", "once", "clean")
    changes = apply(
        box,
        service("slow", deaf, 'stop = "200ms"', 'ready = "spawn"'),
        service("polite", polite, 'stop = { signal = "INT", timeout = "9s" }'),
        service("once", SLEEP, 'restart = "Never"'),
        service(
            "clean",
            shell("while [ ! -e end ]; do sleep 0.02; done; exit 3"),
            *('restart = "OnFailure"', "success_exit_codes = [3]"),
        ),
    )
    assert {name: change["restarts"] for name, change in changes.items()} == dict.fromkeys(before)
    assert running(box, *before) == before
    box.wait_for(lambda: is_deaf(before["slow"][1]), "it is deaf")
    box.wait_for(lambda: box.lines("hears"), "it hears")
    began = time.monotonic()
    box.data("stop", service=["slow", "polite"], wait=True)
    assert time.monotonic() - began < 5
    assert box.data("status", service="slow")["last_exit"]["signal"] == signal.SIGKILL
    assert box.lines("told") == ["int"]
    os.kill(before["once"][1], signal.SIGKILL)
    box.wait_status("once", "Failed", reason="signal", run=1)
    (box.folder / "end").touch()
    box.wait_status("clean", "Stopped", reason="completed", run=1)


CHECK = '{{ name = "{0}", target = "cmd:sh -c \'echo >> asked-{0}; test -e {0}\'", interval = "50ms", failures = 1 }}'


def test_another_check_counts_at_once_and_one_that_was_removed_no_more(box):
    (box.folder / "a").touch()
    (box.folder / "b").touch()
    begin(box, service("web", SLEEP, f"health_check = [{CHECK.format('a')}, {CHECK.format('b')}]"))
    before = running(box, "web")
    changes = apply(box, service("web", SLEEP, f"health_check = [{CHECK.format('a')}]"))
    assert changes["web"]["keys"] == ["health_check"]
    (box.folder / "b").unlink()
    asked = len(box.lines("asked-b"))
    box.wait_lines("asked-a", len(box.lines("asked-a")) + 3)
    assert len(box.lines("asked-b")) <= asked + 1, "one was perhaps under way"
    assert [check["name"] for check in box.data("health", service="web")[0]["checks"]] == ["a"]
    assert running(box, "web") == before
    apply(box, service("web", SLEEP, f"health_check = [{CHECK.format('c')}]"), wait=False)
    event = box.wait_for(
        lambda: box.events("web", "became_unhealthy"), "it is asked by the new check"
    )
    assert (event[0]["data"]["check"], event[0]["run"]) == ("c", 1)


def test_another_target_of_the_same_check_is_asked_instead(box):
    (box.folder / "a").touch()
    target = 'health_check = {{ name = "up", target = "cmd:test -e {}", interval = "50ms", failures = 1 }}'
    begin(box, service("web", SLEEP, target.format("a")))
    running(box, "web")
    apply(box, service("web", SLEEP, target.format("b")), wait=False)
    box.wait_for(lambda: box.events("web", "became_unhealthy"), "the new target fails")


def test_what_getting_ready_takes_is_in_force_for_one_that_is_starting(box):
    never = 'health_check = { target = "cmd:false", interval = "50ms" }'
    begin(
        box,
        service("late", SLEEP, never, 'restart = "Never"'),
        service("unchecked", SLEEP, never),
        service("spawned", SLEEP, never),
    )
    starting = {
        name: box.wait_status(name, "Starting") for name in ("late", "unchecked", "spawned")
    }
    apply(
        box,
        service("late", SLEEP, never, 'restart = "Never"', 'start_timeout = "200ms"'),
        service("unchecked", SLEEP),
        service("spawned", SLEEP, never, 'ready = "spawn"', 'stop = "1s"'),
        wait=False,
    )
    box.wait_status("late", "Failed", reason="start_timeout", run=1)
    assert running(box, "unchecked")["unchecked"] == (1, starting["unchecked"]["pid"])


COUNT = """
import itertools, time
for number in itertools.count():
    print(number, flush=True)
    time.sleep(0.002)
"""


def numbers(folder) -> list[int]:
    """What COUNT wrote there: the rotated files that are not compressed, oldest first, then the present one."""
    rotated = [path for path in folder.glob("count.log.*") if path.suffix[1:].isdecimal()]
    rotated.sort(key=lambda path: -int(path.suffix[1:]))
    files = [path for path in (*rotated, folder / "count.log") if path.exists()]
    return [int(line) for path in files for line in path.read_text().split("\n")[:-1]]


def test_output_goes_on_in_the_new_place_and_none_is_lost(box):
    count = f"cmd = {box.python('count', COUNT)}"
    begin(box, service("count", count))
    before = running(box, "count")
    old, new = box.folder / "var" / "log", box.folder / "elsewhere"
    box.wait_for(lambda: len(numbers(old)) > 20, "it writes")
    changes = apply(box, service("count", count, 'logs = { dir = "elsewhere", files_max = 9 }'))
    assert changes["count"]["restarts"] is None
    box.wait_for(lambda: new.is_dir() and len(numbers(new)) > 20, "it writes elsewhere")
    shown = [int(line) for line in box.data("logs", service="count", lines=3)]
    assert shown[-1] > numbers(old)[-1]
    logs = 'logs = { dir = "elsewhere", files_max = 9, size_max = "4KiB" }'
    apply(box, service("count", count, logs))
    box.wait_for((new / "count.log.1").exists, "the file is rotated by the new limit")
    assert running(box, "count") == before
    os.kill(before["count"][1], signal.SIGSTOP)
    told = [*numbers(old), *numbers(new)]
    assert told == list(range(len(told)))
    os.kill(before["count"][1], signal.SIGCONT)


def test_tags_and_dependencies_are_in_force_without_a_new_run(box):
    begin(box, service("web"), service("db", SLEEP, "autostart = false"))
    before = running(box, "web")
    changes = apply(
        box,
        service("web", SLEEP, 'tags = ["front"]', 'depends_on = ["db"]'),
        service("db", SLEEP, "autostart = false"),
    )
    assert changes["web"]["restarts"] is None
    assert running(box, "web") == before
    assert box.service("db")["status"] == "Stopped"
    box.data("restart", service="tag:front")
    assert running(box, "web", "db")["web"][0] == 2, "who starts it starts what it needs"
    stopped = box.data("stop", service="db")
    assert stopped[0]["dependents"] == ["web"]


def test_one_that_waits_starts_once_it_depends_on_nothing_any_more(box):
    begin(
        box,
        service("db", SLEEP, 'health_check = "cmd:false"'),
        service("web", SLEEP, 'depends_on = ["db"]'),
    )
    box.wait_status("web", "Stopped", reason="waiting")
    apply(box, service("db", SLEEP, 'health_check = "cmd:false"'), service("web"), wait=False)
    assert running(box, "web")["web"][0] == 1


def test_a_new_wish_to_follow_counts_from_the_next_run_on(box):
    begin(box, service("db"), service("web", SLEEP, 'depends_on = ["db"]'))
    before = running(box, "db", "web")
    box.data("restart", service="db", wait=True)
    follows = 'depends_on = { db = { condition = "ready", restart = true } }'
    changes = apply(box, service("db"), service("web", SLEEP, follows))
    assert changes["web"]["restarts"] is None
    assert running(box, "web")["web"] == before["web"]
    box.data("restart", service="web", wait=True)
    box.data("restart", service="db", wait=True)
    box.wait_status("web", "Running", run=3)


# --- environment ----------------------------------------------------------------------------------


def test_another_value_of_a_variable_is_a_new_run_and_is_never_in_the_journal(box):
    told = shell("echo $MODE >> told; exec sleep 1000")
    begin(box, service("web", told, 'env = { MODE = "s3cret-one" }'))
    box.wait_lines("told", 1)
    changes = apply(box, service("web", told, 'env = { MODE = "s3cret-two" }'))
    assert (changes["web"]["keys"], changes["web"]["restarts"]) == (["env"], BY_ITSELF)
    assert box.wait_lines("told", 2) == ["s3cret-one", "s3cret-two"]
    first, second = (box.data("show", service="web", run=run) for run in (1, 2))
    assert first["digest"] != second["digest"]
    assert first["definition"]["env_names"] == second["definition"]["env_names"] == ["MODE"]
    answers = [first, second, box.data("status", service="web"), box.events(), box.data("plan")]
    assert "s3cret" not in json.dumps(answers)
    box.stop()
    assert b"s3cret" not in b"".join(path.read_bytes() for path in box.journal.parent.glob("*.db*"))


def test_a_changed_env_file_shows_at_the_next_start_and_not_before(box):
    (box.folder / "web.env").write_text("MODE=one\n")
    told = shell("echo $MODE >> told; exec sleep 1000")
    begin(box, service("web", told, 'env_file = "web.env"'))
    before = running(box, "web")
    box.wait_lines("told", 1)
    (box.folder / "web.env").write_text("MODE=two\n")
    assert box.data("apply")["changes"] == []
    assert running(box, "web") == before
    box.data("restart", service="web", wait=True)
    assert box.wait_lines("told", 2) == ["one", "two"]


# --- in every state -------------------------------------------------------------------------------


def test_another_command_is_that_of_the_next_run_whatever_the_service_does(box):
    deaf = f"cmd = {box.python('deaf', DEAF)}"
    never = 'health_check = { target = "cmd:test -e well", interval = "50ms", failures = 9999 }'
    new = shell("echo $CIRCLEOSD_SERVICE $CIRCLEOSD_RUN >> new; exec sleep 1000")
    old = {
        "failed": [shell("exit 1"), 'restart = "Never"'],
        "restarting": [shell("exit 1"), 'restart = { delay = "60s", delay_max = "60s" }'],
        "starting": [SLEEP, never],
        "stopping": [deaf, 'ready = "spawn"', 'stop = "60s"'],
        "again": [deaf, 'ready = "spawn"', 'stop = "60s"'],
        "waiting": [SLEEP, 'depends_on = ["starting"]'],
        "stopped": [SLEEP],
    }
    begin(box, *(service(name, *keys) for name, keys in old.items()))
    running(box, "stopping", "again", "stopped")
    deaf_ones = [box.service(name)["pid"] for name in ("stopping", "again")]
    box.wait_for(lambda: all(is_deaf(pid) for pid in deaf_ones), "they are deaf")
    box.data("stop", service=["stopping", "stopped"])
    box.data("restart", service="again")
    before = {
        "failed": "Failed",
        "restarting": "Restarting",
        "starting": "Starting",
        "stopping": "Stopping",
        "again": "Stopping",
        "waiting": "Stopped",
        "stopped": "Stopped",
    }
    for name, status in before.items():
        box.wait_status(name, status)
    (box.folder / "well").touch()
    changes = apply(box, *(service(name, new, *keys[1:]) for name, keys in old.items()), wait=False)
    restarts = {name: change["restarts"] for name, change in changes.items()}
    assert {name for name in old if restarts[name]} == {"failed", "starting"}
    for name in ("stopping", "again"):
        os.kill(box.service(name)["pid"], signal.SIGKILL)
    running(box, "failed", "starting", "again", "waiting")
    box.wait_status("stopping", "Stopped")
    assert box.service("stopped")["run"] == 1
    assert box.service("restarting")["status"] == "Restarting", "its delay goes on"
    box.data("start", service=["restarting", "stopping", "stopped"], wait=True)
    told = {line.split()[0] for line in box.wait_lines("new", len(old))}
    assert told == set(old), "each run of the new command is one that it should be"
    assert len(box.lines("new")) == len(old), "none was started twice"


def is_deaf(pid: int) -> bool:
    with open(f"/proc/{pid}/status") as file:
        (ignored,) = (line.split()[1] for line in file if line.startswith("SigIgn"))
    return bool(int(ignored, 16) >> (signal.SIGTERM - 1) & 1)


def test_an_apply_while_a_stop_is_under_way_starts_nothing(box):
    deaf = f"cmd = {box.python('deaf', DEAF)}"
    begin(box, service("web", deaf, 'stop = "60s"'))
    pid = running(box, "web")["web"][1]
    box.wait_for(lambda: is_deaf(pid), "it is deaf")
    box.data("stop", service="web")
    assert apply(box, service("web", SLEEP, 'stop = "60s"'), wait=False)["web"]["restarts"] is None
    os.kill(pid, signal.SIGKILL)
    assert box.wait_status("web", "Stopped")["wanted"] == "down"
    assert running_after_start(box) == 2


def running_after_start(box) -> int:
    (record,) = box.data("start", service="web", wait=True)
    return record["run"]


# --- added, removed, renamed ----------------------------------------------------------------------


def test_what_is_removed_is_stopped_then_gone_its_dependents_first_and_may_come_back(box):
    begin(box, service("db"), service("app", SLEEP, 'depends_on = ["db"]'), service("stays"))
    before = running(box, "db", "app", "stays")
    changes = apply(box, service("stays"))
    assert {name: change["change"] for name, change in changes.items()} == {
        "db": "remove",
        "app": "remove",
    }
    assert [record["name"] for record in box.data("list_services")] == ["stays"]
    assert not any(box.is_running(before[name][1]) for name in ("db", "app"))
    removed = [event for event in box.events() if event["type"] == "removed"]
    assert [event["service"] for event in removed] == ["app", "db"]
    assert box.last("app", "removed")["seq"] < box.last("db", "exited")["seq"]
    assert box.ask("status", service="db")["error"]["code"] == "unknown_service"
    changes = apply(box, service("db"), service("stays"))
    assert changes["db"]["change"] == "add"
    assert running(box, "db", "stays") == {
        "db": (2, box.service("db")["pid"]),
        "stays": before["stays"],
    }
    box.verify()


def test_one_that_comes_back_while_it_is_still_being_removed_is_started_as_it_is_now(box):
    deaf = f"cmd = {box.python('deaf', DEAF)}"
    begin(
        box,
        service("db"),
        service("app", deaf, 'depends_on = ["db"]', 'stop = "60s"'),
    )
    before = running(box, "db", "app")
    box.wait_for(lambda: is_deaf(before["app"][1]), "it is deaf")
    apply(box, wait=False)
    box.wait_status("app", "Stopping")
    assert box.service("db")["status"] == "Running", "it is held until app is gone"
    changes = apply(box, service("db", OTHER), service("app", SLEEP), wait=False)
    assert {change["change"] for change in changes.values()} == {"add"}
    os.kill(before["app"][1], signal.SIGKILL)
    box.wait_status("app", "Running", run=2)
    box.wait_status("db", "Running", run=2)
    assert box.data("plan")["changes"] == []


def test_a_renamed_service_is_another_one(box):
    begin(box, service("web"), service("db"))
    before = running(box, "web", "db")
    changes = apply(box, service("site"), service("db", SLEEP, 'depends_on = ["site"]'))
    told = {name: change["change"] for name, change in changes.items()}
    assert told == {"site": "add", "db": "change", "web": "remove"}
    assert running(box, "site", "db")["db"] == before["db"]
    assert not box.is_running(before["web"][1])


def accepts(path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def test_sockets_come_and_go_with_what_is_declared_and_pass_to_a_service_of_another_name(box):
    def listens(name: str, *sockets: str) -> str:
        words = ", ".join(f'{each} = "unix:{each}.sock"' for each in sockets)
        return service(name, SLEEP, f"sockets = {{ {words} }}")

    a, b, c = (box.folder / f"{name}.sock" for name in "abc")
    begin(box, listens("web", "a", "b"))
    running(box, "web")
    assert apply(box, listens("web", "b", "c"))["web"]["keys"] == ["sockets"]
    assert (a.exists(), accepts(b), accepts(c)) == (False, True, True)
    apply(box, listens("site", "b", "c"))
    running(box, "site")
    assert (accepts(b), accepts(c)) == (True, True)
    apply(box)
    assert not b.exists()
    assert not c.exists()


def test_more_and_fewer_instances_touch_only_those_that_come_and_go(box):
    def web(count: int) -> str:
        return service("web", 'cmd = ["sleep", "100{instance}"]', f"instances = {count}")

    begin(box, web(2))
    two = running(box, "web@1", "web@2")
    assert list(apply(box, web(3))) == ["web@3"]
    three = running(box, "web@1", "web@2", "web@3")
    assert {name: three[name] for name in two} == two
    assert list(apply(box, web(1))) == ["web@2", "web@3"]
    assert [record["name"] for record in box.data("list_services")] == ["web@1"]
    assert running(box, "web@1")["web@1"] == two["web@1"]
    assert not any(box.is_running(three[name][1]) for name in ("web@2", "web@3"))


def test_another_order_in_the_file_is_that_of_the_list_and_ends_no_run(box):
    begin(box, service("a"), service("b"), service("c"))
    before = running(box, "a", "b", "c")
    assert apply(box, service("c"), service("a"), service("b")) == {}
    assert [record["name"] for record in box.data("list_services")] == ["c", "a", "b"]
    assert running(box, "a", "b", "c") == before


def test_what_only_the_next_start_takes_up_is_told_until_then_and_the_rest_is_in_force(box):
    begin(box, service("web"))
    before = running(box, "web")
    of_next_start = ["registry.socket", "journal.durability"]
    later = {**NOTHING, "settings": ["registry.on_sigterm"], "later": of_next_start}
    path = box.configure(service("web"), 'on_sigterm = "keep"')
    path.write_text(
        path.read_text().replace(str(box.socket), f"{box.socket}2")
        + '[journal]\ndurability = "normal"\n'
    )
    assert box.data("apply") == later
    assert box.data("plan") == {**later, "settings": []}, "it is still to come"
    assert "the socket would be" in box.ask("upgrade")["error"]["message"]
    assert running(box, "web") == before
    assert box.stop() == 0
    assert box.is_running(before["web"][1]), "on_sigterm is in force at once"


# --- signals, files -------------------------------------------------------------------------------


def test_sighup_applies_and_with_a_wrong_file_tells_every_complaint(box):
    begin(box, service("web"))
    before = running(box, "web")
    box.configure(service("web") + service("db"))
    box.daemon.send_signal(signal.SIGHUP)
    box.wait_for(lambda: len(box.data("list_services")) == 2, "it was applied")
    assert running(box, "web", "db")["web"] == before["web"]
    assert box.last("db", "defined")["actor"] is None
    seq = latest(box)
    box.configure(service("web", OTHER, 'stop = "soon"', "umask = 9"))
    box.daemon.send_signal(signal.SIGHUP)
    box.wait_said("Nothing was changed")
    errors = [line for line in box.errors.read_text().splitlines() if "[ERROR]" in line]
    assert [sum(word in line for line in errors) for word in (" stop:", "umask")] == [1, 1], errors
    assert latest(box) == seq


NO_THREAD = """
import os, threading
from registry.__main__ import main

start = threading.Thread.start

def short_of_threads(thread):
    if os.path.exists("short"):
        raise RuntimeError("can't start new thread")
    start(thread)

threading.Thread.start = short_of_threads
main()
"""


def test_sighup_ends_no_registry_that_has_no_thread_to_read_the_file(box):
    begin(box, service("web"), program=(str(box.program("short", NO_THREAD)),))
    before = running(box, "web")
    (box.folder / "short").touch()
    box.daemon.send_signal(signal.SIGHUP)
    box.wait_said("could not be applied")
    (box.folder / "short").unlink()
    box.configure(service("web") + service("new"))
    box.daemon.send_signal(signal.SIGHUP)
    box.wait_for(lambda: len(box.data("list_services")) == 2, "the next one is carried out")
    assert running(box, "web") == before


def test_a_plan_that_hangs_keeps_nobody_from_the_end(box, far):
    begin(box, service("web"), program=far)
    web = running(box, "web")["web"][1]
    box.configure(service("web") + service("far", SLEEP, 'cwd = "/far"'))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(box.socket))
        client.sendall(b'{"action":"plan"}\n')
        box.wait_lines("asked", 1)
    assert box.stop() == 0
    assert not box.is_running(web)
    assert "Traceback" not in box.errors.read_text()


def test_sighup_ends_no_registry_not_even_one_that_is_becoming_another_program(box):
    begin(box, service("web"))
    before = running(box, "web")
    over = threading.Event()

    def hang_up() -> None:
        while not over.wait(0.005):
            box.daemon.send_signal(signal.SIGHUP)

    hanging_up = threading.Thread(target=hang_up)
    hanging_up.start()
    try:
        box.upgrade()
    finally:
        over.set()
        hanging_up.join()
    assert box.daemon.poll() is None
    assert running(box, "web") == before


def test_with_watch_every_change_of_a_file_is_taken_up_one_replaced_by_rename_too(box):
    begin(box, service("web"))
    box.kill()
    box.start("--watch")
    before = running(box, "web")

    def shows(*names: str) -> bool:
        return [record["name"] for record in box.data("list_services")] == [*names]

    main = box.folder / "etc" / "services.toml"
    text = main.read_text() + service("db")

    def is_seen_once_it_is_written() -> (
        bool
    ):  # the watch begins a little after the registry answers
        main.write_text(text)
        deadline = time.monotonic() + 1
        while not shows("web", "db") and time.monotonic() < deadline:
            time.sleep(0.01)
        return shows("web", "db")

    box.wait_for(is_seen_once_it_is_written, "the changed file is seen")
    beside = box.folder / "etc" / "services.toml.new"
    beside.write_text(text + service("cache"))
    os.replace(beside, main)
    box.wait_for(lambda: shows("web", "db", "cache"), "the replaced file is seen")
    drop_ins = box.folder / "etc" / "services.d"
    drop_ins.mkdir()
    (drop_ins / "more.toml").write_text(service("more"))
    box.wait_for(lambda: shows("web", "db", "cache", "more"), "a new folder is seen")
    assert running(box, "web") == before


def test_with_watch_drop_ins_are_taken_up_as_they_come_change_and_go(box):
    drop_ins = box.folder / "etc" / "services.d"
    drop_ins.mkdir()
    box.configure(service("web"))
    box.start("--watch")

    def tagged(tag: str) -> bool:
        """Whether the drop-in is in force; written anew, for the watch begins a little after the registry answers."""
        (drop_ins / "more.toml").write_text(service("more", SLEEP, f'tags = ["{tag}"]'))
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            if box.ask("health", service=f"tag:{tag}")["ok"]:
                return True
            time.sleep(0.01)
        return False

    box.wait_for(lambda: tagged("one"), "it comes")
    before = running(box, "more")
    box.wait_for(lambda: tagged("two"), "it changes")
    assert running(box, "more") == before
    (drop_ins / "more.toml").unlink()
    box.wait_for(lambda: len(box.data("list_services")) == 1, "it goes")


def test_drop_ins_are_read_in_the_order_of_their_names_and_blamed_by_name(box):
    drop_ins = box.folder / "etc" / "services.d"
    drop_ins.mkdir()
    (drop_ins / "20-b.toml").write_text(service("b"))
    (drop_ins / "10-a.toml").write_text(service("a"))
    begin(box, service("main"))
    assert [record["name"] for record in box.data("list_services")] == ["main", "a", "b"]
    (drop_ins / "20-b.toml").write_text(service("b", SLEEP, 'depends_on = ["nobody"]'))
    (told,) = box.ask("apply")["error"]["data"]
    assert "20-b.toml" in told
    assert "nobody" in told
    (drop_ins / "20-b.toml").rename(drop_ins / "20-b.off")
    assert list(by_service(box.data("apply", wait=True))) == ["b"]


# --- at the same time as something else -----------------------------------------------------------


def test_two_applies_at_once_are_one_after_the_other(box):
    begin(box, service("web"))
    running(box, "web")
    box.configure(service("web", OTHER) + "".join(service(f"new-{n}") for n in range(5)))
    with ThreadPoolExecutor(8) as pool:
        plans = list(pool.map(lambda _: box.data("apply"), range(8)))
    assert sorted(len(plan["changes"]) for plan in plans) == [*[0] * 7, 6]
    running(box, *(f"new-{n}" for n in range(5)))
    box.wait_status("web", "Running", run=2)
    assert box.types("web").count("redefined") == 1
    box.verify()


def test_an_apply_during_the_start_is_carried_out_after_it(box):
    box.configure("".join(service(f"s-{n}") for n in range(20)))
    box.daemon = box.spawn("--config", "etc/services.toml")
    box.wait_for(box.socket.exists, "it binds")
    box.configure("".join(service(f"s-{n}") for n in range(1, 21)))
    answer = box.wait_for(lambda: _try(box), "it answers")
    assert answer["ok"], answer
    box.wait_for(
        lambda: (
            {record["name"] for record in box.data("list_services")}
            == {f"s-{n}" for n in range(1, 21)}
        ),
        "s-0 is gone",
    )
    running(box, *(f"s-{n}" for n in range(1, 21)))
    box.verify()


def _try(box):
    try:
        return box.ask("apply")
    except (ConnectionError, FileNotFoundError):
        return None


# The registry as it is, but it waits for a locked journal for 100 ms instead of 5 s.
HASTY = """
from registry.journal import journal
prepare = journal._prepare

async def hasty(writer, *arguments):
    await prepare(writer, *arguments)
    await writer.execute("PRAGMA busy_timeout = 100")

journal._prepare = hasty
from registry.__main__ import main
main()
"""


def test_while_the_journal_cannot_be_written_nothing_at_all_is_taken_up(box):
    told = shell("echo $MODE >> told; exec sleep 1000")
    env = 'env = {{ MODE = "{}" }}'.format
    begin(
        box,
        service("web", told, env("one")),
        service("db"),
        program=(str(box.program("hasty", HASTY)),),
    )
    pid = running(box, "web", "db")["web"][1]
    box.wait_lines("told", 1)
    connection = sqlite3.connect(box.journal, isolation_level=None)
    try:
        connection.execute("BEGIN EXCLUSIVE")
        assert box.ask("restart", service="db")["error"]["code"] == "outcome_unknown"
        box.configure(service("web", told, env("two")) + service("new"), 'on_sigterm = "keep"')
        assert box.ask("apply")["error"]["code"] == "journal_unavailable"
        os.kill(pid, signal.SIGKILL)
        assert box.wait_lines("told", 2) == ["one", "one"], "not even the environment"
        assert [record["name"] for record in box.data("list_services")] == ["web", "db"]
        assert set(by_service(box.data("plan"))) == {"web", "new", "db"}
        connection.execute("ROLLBACK")
    finally:
        connection.close()
    box.wait_for(lambda: box.data("version")["degraded_since"] is None, "it writes again")
    box.data("apply", wait=True)
    assert box.wait_lines("told", 3)[2] == "two"
    box.verify()


def test_what_could_not_be_made_durable_is_in_force_all_the_same_and_nobody_says_otherwise(box):
    begin(box, service("web"), program=(str(box.program("hasty", HASTY)),))
    before = running(box, "web")
    box.configure(service("web", SLEEP, 'tags = ["a"]') + service("new"))
    connection = sqlite3.connect(box.journal, isolation_level=None)
    try:
        connection.execute("BEGIN EXCLUSIVE")
        box.daemon.send_signal(signal.SIGHUP)
        box.wait_for(lambda: len(box.data("list_services")) == 2, "it was applied")
        assert running(box, "web", "new")["web"] == before["web"]
        box.wait_said("[ERROR]")
        connection.execute("ROLLBACK")
    finally:
        connection.close()
    box.wait_for(lambda: box.data("version")["degraded_since"] is None, "it writes again")
    assert "Nothing was changed" not in box.errors.read_text()
    assert box.data("plan") == NOTHING
    box.verify()


# --- over the registry's own restart --------------------------------------------------------------


def test_a_registry_that_starts_on_a_changed_file_leaves_running_what_runs(box):
    count = f"cmd = {box.python('count', COUNT)}"
    begin(
        box,
        service("same"),
        service("anew", SLEEP, 'env = { MODE = "s3cret-one" }'),
        service("count", count),
        service("gone"),
    )
    before = running(box, "same", "anew", "count", "gone")
    shown = box.data("show", service="anew")
    box.kill()
    begin(
        box,
        service("same"),
        service("anew", OTHER, 'env = { MODE = "s3cret-two" }'),
        service("count", count, 'logs = { dir = "elsewhere" }'),
        service("added"),
    )
    after = running(box, "same", "anew", "count", "added")
    del before["gone"]
    assert {name: after[name] for name in before} == before
    box.wait_for(lambda: len(box.data("list_services")) == 4, "what is declared no more is gone")
    changes = by_service(box.data("plan"))
    assert {name: change["restarts"] for name, change in changes.items()} == {"anew": BY_ITSELF}
    assert changes["anew"]["keys"] == ["cmd", "env"]
    now = box.data("show", service="anew")
    assert now["digest"] != shown["digest"]
    assert now["definition"]["cmd"] == ["sleep", "2000"]
    of_run = box.data("show", service="anew", run=1)
    assert (of_run["digest"], of_run["definition"]) == (shown["digest"], shown["definition"])
    new = box.folder / "elsewhere"
    box.wait_for(lambda: new.is_dir() and numbers(new), "its output goes where it is declared to")
    os.kill(after["count"][1], signal.SIGSTOP)
    told = [*numbers(box.folder / "var" / "log"), *numbers(new)]
    assert told == list(range(len(told)))
    os.kill(after["count"][1], signal.SIGCONT)
    box.data("apply", wait=True)
    box.wait_status("anew", "Running", run=2)
    assert box.data("plan")["changes"] == []


# --- killed in the middle -------------------------------------------------------------------------

# Killed at a point of an apply: "append" is the commit, before and after.
FAULTY = """
import os, random, signal, threading
point = os.environ.get("POINT", "")

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def around(owner, name, is_due):
    function = getattr(owner, name)
    if __import__("inspect").iscoroutinefunction(function):
        async def wrapped(self, *given, **named):
            due = is_due(*given, **named)
            if due and point.startswith("before"):
                die()
            result = await function(self, *given, **named)
            if due:
                die()
            return result
    else:
        def wrapped(self, *given, **named):
            due = is_due(*given, **named)
            if due and point.startswith("before"):
                die()
            result = function(self, *given, **named)
            if due:
                die()
            return result
    setattr(owner, name, wrapped)

def renews(records):
    return any(record.actor is not None for record in records)

def always(*_, **__):
    return bool(begun)  # what an earlier apply left to do is done at the start

from registry import apply, registry
begun, whole = [], apply.Configuration.apply

async def noted(self, actor):
    begun.append(actor)
    return await whole(self, actor)

apply.Configuration.apply = noted
from registry.host import machine
from registry.journal.journal import Journal
what = point.partition(" ")[2]
if what == "append":
    around(Journal, "append", renews)
elif what == "exchange":
    around(apply.Configuration, "_exchange", always)
elif what == "stop":
    around(machine.Machine, "stop", always)
from registry.__main__ import main
main()
"""
POINTS = [
    f"{when} {what}" for when in ("before", "after") for what in ("append", "exchange", "stop")
]
ROUNDS = 30


def generation(number: int) -> str:
    """Services that all change from one generation to the next, each in another way."""
    comes_and_goes = service(f"new-{number}", SLEEP)
    return "".join(
        [
            service("anew", f'cmd = ["sleep", "{1000 + number}"]', 'stop = "1s"'),
            service("tuned", SLEEP, f'start_timeout = "{60 + number}s"', 'stop = "1s"'),
            service("env", SLEEP, f'env = {{ N = "{number}" }}', 'depends_on = ["tuned"]'),
            comes_and_goes,
        ]
    )


def declared(box) -> tuple[set[int], set[int]]:
    """Generations that the journal's present definitions are of, and the decisions that they were taken up in."""
    rows = of_journal(
        box,
        "SELECT service, type, decision, body FROM events WHERE service IS NOT NULL AND"
        " (type IN ('defined', 'redefined', 'removed')"
        " OR type = 'stop_requested' AND json_extract(body, '$.reason') = 'removed') ORDER BY seq",
    )
    found: dict[str, tuple[int, int]] = {}
    for name, kind, decision, body in rows:
        if kind in ("removed", "stop_requested"):
            found.pop(name, None)
            continue
        definition = json.loads(body)["definition"]
        if name == "anew":
            found[name] = (int(definition["cmd"][1]) - 1000, decision)
        elif name == "tuned":
            found[name] = (int(definition["start_timeout_s"]) - 60, decision)
        elif name.startswith("new-"):
            found[name] = (int(name[4:]), decision)
    return {each[0] for each in found.values()}, {each[1] for each in found.values()}


@pytest.mark.timeout(90)
def test_killed_at_any_instant_of_an_apply_it_is_all_old_or_all_new(box):
    chance = random.Random(4)
    program = (str(box.program("faulty", FAULTY)),)
    now = 0
    box.configure(generation(now))
    outcomes = set()
    for number in range(ROUNDS):
        point = POINTS[number % len(POINTS)] if number % 5 < 3 else ""
        box.start(program=program, POINT=point)
        box.wait_for(lambda: all_run(box), "all runs")
        box.configure(generation(now + 1))
        answered = threading.Thread(target=_apply_and_see, args=(box,))
        answered.start()
        if not point:
            time.sleep(chance.random() * 0.02)
            box.kill()
        assert box.daemon.wait(10) == -signal.SIGKILL, point
        answered.join(10)
        generations, decisions = declared(box)
        assert len(generations) == 1, (point, generations)
        (now_declared,) = generations
        assert now_declared in (now, now + 1)
        if now_declared == now + 1:
            assert len(decisions) == 1, "all of it was one decision"
        outcomes.add((point, now_declared - now))
        now = now_declared
        box.configure(generation(now))
    assert {("before append", 0), ("after append", 1), ("before exchange", 0)} <= outcomes
    box.start()
    box.wait_for(lambda: all_run(box), "all runs")
    assert {record["name"] for record in box.data("list_services")} == {
        *("anew", "tuned", "env", f"new-{now}")
    }
    assert sorted(sleeping(box)) == sorted(["sleep 1000"] * 3 + [f"sleep {1000 + now}"])
    box.verify()


def all_run(box) -> bool:
    return {record["status"] for record in box.data("list_services")} == {"Running"}


def _apply_and_see(box) -> None:
    try:
        box.ask("apply")
    except (OSError, ValueError):
        return  # it died before it answered


def sleeping(box) -> list[str]:
    """The command lines of all services of this registry."""
    found = []
    for pid in box.left():
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        if words[0].endswith("sleep"):
            found.append(f"sleep {words[1]}")
    return found
