"""Several services of one kind: each has its own name, number and life, and the name alone means all of them."""

from __future__ import annotations

import os
import signal

import pytest

pytestmark = pytest.mark.platform("linux")

WEB = """
[[service]]
name = "web"
instances = 3
cmd = ["sh", "-c", "echo {instance} $N $PWD $CIRCLEOSD_SERVICE >> $OUT; echo hello; exec sleep 1000", "web-{instance}"]
env = { N = "number {instance}", OUT = "../ran" }
cwd = "at-{instance}"
health_check = { target = "cmd:test -e {instance}.well", interval = "50ms", failures = 1000 }
"""
NAMES = ["web@1", "web@2", "web@3"]


@pytest.fixture
def three(box):
    """Three instances, each in its folder."""
    for number in (1, 2, 3):
        (box.folder / f"at-{number}").mkdir()
        (box.folder / f"at-{number}" / f"{number}.well").touch()
    box.configure(WEB)
    box.start()
    for name in NAMES:
        box.wait_status(name, "Running")
    return box


def runs(box) -> dict[str, int]:
    return {record["name"]: record["run"] for record in box.data("list_services")}


def test_each_instance_has_its_number_in_what_it_runs_where_and_how_it_is_checked(three):
    assert [record["name"] for record in three.data("list_services")] == NAMES
    assert sorted(three.wait_lines("ran", 3)) == [
        f"{n} number {n} {three.folder}/at-{n} web@{n}" for n in (1, 2, 3)
    ]
    assert [record["health"] for record in three.data("health", service="web")] == ["healthy"] * 3
    assert three.data("show", service="web@2")["definition"]["cmd"][-1] == "web-2"
    for name in NAMES:
        three.wait_for(lambda name=name: three.log(name) == "hello\n", f"{name} has a log")


def test_one_that_is_killed_is_no_matter_of_the_others(three):
    before = {name: three.service(name)["pid"] for name in NAMES}
    os.kill(before["web@2"], signal.SIGKILL)
    three.wait_status("web@2", "Running", run=2)
    assert runs(three) == {"web@1": 1, "web@2": 2, "web@3": 1}
    for name in ("web@1", "web@3"):
        assert three.service(name)["pid"] == before[name]
        assert "exited" not in three.types(name)


def test_the_name_alone_means_all_of_them(three):
    answer = three.data("restart", service="web", wait=True)
    assert [item["name"] for item in answer] == NAMES
    assert runs(three) == dict.fromkeys(NAMES, 2)
    three.data("stop", service="web@3", wait=True)
    three.data("restart", service="web@1", wait=True)
    assert runs(three) == {"web@1": 3, "web@2": 2, "web@3": 2}
    assert three.service("web@3")["status"] == "Stopped"
    three.data("stop", service="web", wait=True)
    assert {three.service(name)["status"] for name in NAMES} == {"Stopped"}
    assert three.ask("start", service="web@4")["error"]["code"] == "unknown_service"


def test_who_depends_on_the_name_waits_for_all_of_them(box):
    box.configure(
        '[[service]]\nname = "front"\ncmd = ["sleep", "1000"]\ndepends_on = ["web"]\n'
        '[[service]]\nname = "second"\ncmd = ["sleep", "1000"]\ndepends_on = ["web@2"]\n'
        '[[service]]\nname = "web"\ninstances = 3\ncmd = ["sleep", "1000"]\n'
        'health_check = { target = "cmd:test -e {instance}.well", interval = "50ms", '
        "failures = 1000 }\n"
    )
    box.start()
    for number, missing in ((1, "web@1"), (2, "web@2"), (3, "web@3")):
        box.wait_status("front", "Stopped", waiting_for=f"{missing} to be ready")
        (box.folder / f"{number}.well").touch()
        if number == 2:
            box.wait_status("second", "Running")
            assert box.service("front")["status"] == "Stopped"
    box.wait_status("front", "Running")
    ready = [box.last(f"web@{n}", "became_ready")["seq"] for n in (1, 2, 3)]
    assert max(ready) < box.last("front", "spawned")["seq"]
    answer = box.data("stop", service="web@2")
    assert answer[0]["dependents"] == ["front", "second"]


def test_instances_depend_on_those_of_their_number(box):
    box.configure(
        '[[service]]\nname = "web"\ninstances = 2\ncmd = ["sleep", "1000"]\n'
        'depends_on = ["disk@{instance}"]\n'
        '[[service]]\nname = "disk"\ninstances = 2\ncmd = ["sleep", "1000"]\nautostart = false\n'
        'health_check = { target = "cmd:test -e {instance}.well", interval = "50ms", '
        "failures = 1000 }\n"
    )
    (box.folder / "2.well").touch()
    box.start()
    box.wait_status("web@2", "Running")
    box.wait_status("web@1", "Stopped", waiting_for="disk@1 to be ready")
    box.data("stop", service="disk@1", wait=True)
    box.wait_status("web@1", "Stopped", waiting_for="disk@1 to be ready (it is stopped)")
    assert box.service("web@2")["status"] == "Running"


def test_the_events_of_several_are_those_of_each_in_order(three):
    everything = [event for event in three.events() if event["service"]]
    first, *_ = everything
    of = {name: [e for e in everything if e["service"] == name] for name in NAMES}
    two = sorted(of["web@1"] + of["web@2"], key=lambda event: event["seq"])
    settled = [e for e in everything if e["type"] != "probe_changed"]
    assert three.data("events", service="web") == everything
    assert three.data("events", service="web@[12]") == two
    assert three.data("events", service="web", since=first["seq"], limit=4) == everything[1:5]
    assert three.data("events", service="web", since=-4) == everything[-4:]
    spawned = [e for e in settled if e["type"] == "spawned"]
    assert three.data("events", service="web", type="spawned", since=-2) == spawned[-2:]
    refused = three.ask("events", service="tag:none")["error"]
    assert refused["code"] == "unknown_service"


def test_who_follows_the_events_of_all_instances_hears_of_a_new_one(three):
    pages = three.stream("events", service="web", since=-1)
    assert [event["service"] in NAMES for event in next(pages)] == [True]
    (three.folder / "at-4").mkdir()
    three.configure(WEB.replace("instances = 3", "instances = 4"))
    three.data("apply")
    heard = next(event for page in pages for event in page if event["service"] == "web@4")
    assert heard["type"] == "defined"
    pages.close()


def test_of_several_one_has_to_be_named_to_be_shown(three):
    assert three.data("show", service="web@[2]")["name"] == "web@2"
    error = three.ask("show", service="web")["error"]
    assert error["code"] == "invalid_params"
    assert error["message"] == "service: web is web@1, web@2 and web@3; name one"
