"""The journal through the socket: pages, filters, a stream that misses nothing, and who asked."""

from __future__ import annotations

import os
import pwd
import signal

KEYS = "seq at service run type source dest reason cause decision actor data"
SLEEP = 'cmd = ["sleep", "1000"]'
STORM = 'cmd = ["true"]\nrestart = { delay = "1ms", delay_max = "1ms" }\nlogs = false'


def service(name: str, keys: str) -> str:
    return f'[[service]]\nname = "{name}"\n{keys}\n'


def test_events_are_numbered_without_gaps_and_each_key_is_there(box):
    box.configure(service("a", SLEEP))
    box.start()
    box.wait_status("a", "Running")
    events = box.events()
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert all(" ".join(event) == KEYS for event in events)
    assert [event["type"] for event in events[:2]] == ["journal_created", "registry_started"]
    by_seq = {event["seq"]: event for event in events}
    for event in events:
        if event["cause"] is not None:
            assert event["cause"] < event["seq"]
        assert by_seq[event["decision"]]["decision"] == event["decision"]
    assert all(event["cause"] for event in events if event["service"]), "each has a cause"


def test_since_limit_service_and_type_choose(box):
    box.configure(service("a", SLEEP) + service("b", SLEEP))
    box.start()
    for name in ("a", "b"):
        box.wait_status(name, "Running")
    everything = box.events()
    assert box.data("events", since=3) == everything[3:]
    assert box.data("events", since=3, limit=2) == everything[3:5]
    assert box.data("events", since=-2) == everything[-2:]
    assert box.data("events", since=everything[-1]["seq"]) == []
    assert box.data("events", service="b") == [e for e in everything if e["service"] == "b"]
    assert box.data("events", type="spawned") == [e for e in everything if e["type"] == "spawned"]
    assert box.data("events", service="b", type="spawned", since=1)[0]["service"] == "b"
    assert (
        box.data("events", service="b", since=-1)
        == [e for e in everything if e["service"] == "b"][-1:]
    )


def test_a_type_that_there_is_not_is_refused_with_a_hint(box):
    box.configure(service("a", SLEEP))
    box.start()
    for follow in (False, True):
        error = box.ask("events", type="exitd", follow=follow)["error"]
        assert error["code"] == "invalid_params"
        assert error["message"] == "type: there is no type 'exitd', did you mean 'exited'?"


def test_a_followed_stream_is_unbroken_across_200_transitions_and_equals_the_journal(box):
    box.configure(service("storm", STORM) + service("quiet", SLEEP))
    box.start()
    pages = box.stream("events", since=0)
    events = list(next(pages))
    while sum(event["source"] is not None for event in events) < 220:
        events += next(pages)
    pages.close()
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert box.data("events", limit=200) == events[:200]


def test_a_stream_resumes_from_the_last_seen_number_and_misses_nothing(box):
    box.configure(service("storm", STORM))
    box.start()
    events: list[dict] = []
    while len(events) < 400:
        pages = box.stream("events", since=events[-1]["seq"] if events else 0)
        for _ in range(3):
            events += next(pages)
        pages.close()
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))


def test_a_stream_resumes_in_the_next_life_of_the_registry(box):
    box.configure(service("a", SLEEP))
    box.start()
    box.wait_status("a", "Running")
    pages = box.stream("events", since=0)
    events = list(next(pages))
    box.kill()
    for page in pages:
        events += page
    box.start()
    pages = box.stream("events", since=events[-1]["seq"])
    while not events or events[-1]["type"] != "adopted":
        events += next(pages)
    pages.close()
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))


def test_a_stream_from_the_beginning_is_whole_whatever_is_still_in_memory(box):
    """More than a page, from a registry that has seen none of it."""
    box.configure(service("storm", STORM))
    box.start()
    box.wait_for(lambda: box.data("events", since=-1)[0]["seq"] > 1200, "more than a page")
    box.kill()
    box.start()
    pages = box.stream("events", since=0)
    events: list[dict] = []
    while len(events) < 1400:
        events += next(pages)
    pages.close()
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert len(box.events()) == 1000, "and what is not a stream comes in pages"


def test_a_stream_from_the_end_gives_what_comes_and_of_what_was_asked_only(box):
    box.configure(service("a", SLEEP) + service("b", SLEEP))
    box.start()
    for name in ("a", "b"):
        box.wait_status(name, "Running")
    everything = box.events()
    pages = box.stream("events", since=-2, service="b")
    assert next(pages) == [event for event in everything if event["service"] == "b"][-2:]
    box.data("restart", service="all", wait=True)
    types: list[str] = []
    while "became_ready" not in types:
        page = next(pages)
        assert {event["service"] for event in page} == {"b"}
        types += [event["type"] for event in page]
    assert types == ["restart_requested", "exited", "group_emptied", "spawned", "became_ready"]
    pages.close()


def test_a_stream_ends_with_the_registry(box):
    box.configure(service("a", SLEEP))
    box.start()
    box.wait_status("a", "Running")
    pages = box.stream("events", since=-1)
    next(pages)
    box.daemon.terminate()
    seen = [event["type"] for page in pages for event in page]
    assert seen[:2] == ["stop_requested", "exited"]
    assert box.daemon.wait(10) == 0


def test_a_command_has_its_actor_from_the_kernel(box):
    box.configure(service("a", SLEEP))
    box.start()
    box.wait_status("a", "Running")
    box.data("restart", service="a", wait=True)
    requested = box.last("a", "restart_requested")
    with open("/proc/self/comm") as file:
        program = file.read().strip()
    assert requested["actor"] == {
        **{"uid": os.getuid(), "pid": os.getpid(), "program": program},
        "user": pwd.getpwuid(os.getuid()).pw_name,
    }
    exited = box.last("a", "exited")
    assert (exited["actor"], exited["cause"]) == (None, requested["seq"])
    assert box.events("a", "start_requested")[0]["actor"] is None


def test_the_chain_of_causes_leads_from_a_restart_to_who_asked(box):
    box.configure(service("a", SLEEP))
    box.start()
    box.wait_status("a", "Running")
    box.data("restart", service="a", wait=True)
    by_seq = {event["seq"]: event for event in box.events()}
    event = box.last("a", "became_ready")
    chain = [event["type"]]
    while event["cause"] is not None:
        event = by_seq[event["cause"]]
        chain.append(event["type"])
    assert chain == ["became_ready", "spawned", "group_emptied", "exited", "restart_requested"]


def test_people_can_read_the_journal_with_sqlite_alone(box):
    import sqlite3

    box.configure(service("a", SLEEP))
    box.start()
    os.kill(box.wait_status("a", "Running")["pid"], signal.SIGKILL)
    box.wait_status("a", "Running", run=2)
    connection = sqlite3.connect(f"file:{box.journal}?mode=ro", uri=True)
    try:
        runs = connection.execute(
            "SELECT service, run, signal, reason, duration_s FROM runs"
        ).fetchall()
        moves = connection.execute(
            "SELECT at, source, dest FROM transitions WHERE type = 'exited'"
        ).fetchall()
    finally:
        connection.close()
    assert [run[:4] for run in runs] == [("a", 1, 9, "signal"), ("a", 2, None, None)]
    assert 0 < runs[0][4] < 60
    ((at, source, dest),) = moves
    assert (at.endswith("Z"), source, dest) == (True, "Running", "Failed")


def test_the_journal_verifies_while_it_is_written(box):
    box.configure(service("storm", STORM))
    box.start()
    last = 0
    for _ in range(5):
        box.wait_for(lambda last=last: box.verify() > last + 10, "it grows")
        last = box.verify()
