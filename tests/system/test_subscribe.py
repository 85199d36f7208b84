"""Programs that follow the events: nothing is missed or told twice, whatever becomes of the registry meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from registry.client import Client, RegistryError
from tests.system.test_degraded import HASTY, unwritable

ROOT = Path(__file__).parents[2]
STORM = 'cmd = ["false"]\nrestart = { policy = "Always", delay = 0, delay_max = 0 }'
SLEEP = 'cmd = ["sleep", "1000"]'


def service(name: str, keys: str = SLEEP) -> str:
    return f'[[service]]\nname = "{name}"\n{keys}\n'


@pytest.fixture
def follow(box):
    """`circlectl events -f --json` in the background, its output in a file."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(*arguments: str) -> Path:
        out = box.folder / f"followed{len(started)}"
        with out.open("wb") as file, (box.folder / "told").open("ab") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "circlectl", "events", "-f", "--json", *arguments],
                env={**os.environ, "CIRCLEOSD_SOCKET": str(box.socket)},
                cwd=ROOT,
                stdout=file,
                stderr=errors,
            )
        started.append(process)
        return out

    yield begin
    for process in started:
        process.kill()
        process.wait()


def seqs(path: Path) -> list[int]:
    """The numbers of the events that a file holds whole lines of."""
    return [json.loads(line)["seq"] for line in path.read_bytes().split(b"\n")[:-1]]


@pytest.mark.timeout(90)
def test_a_follower_misses_nothing_though_the_registry_is_killed_again_and_again_in_a_storm(
    box, follow
):
    box.configure("".join(service(f"storm{number}", STORM) for number in range(2)))
    box.start()
    everything, some = follow("--since", "0"), follow("--since", "0", "--type", "spawned")
    # who finds no registry at first does not wait for one
    box.wait_for(lambda: seqs(everything) and seqs(some), "both have begun", 20)
    for _ in range(3):
        before = len(seqs(everything))
        box.wait_for(lambda n=before: len(seqs(everything)) > n + 150, "it follows", 20)
        box.kill()
        box.start()
    last = box.data("events", since=-1)[0]["seq"]
    box.wait_for(lambda: seqs(everything)[-1] >= last, "it has come so far", 20)
    found = seqs(everything)
    assert found == list(range(1, len(found) + 1))
    box.wait_for(lambda: max(seqs(some), default=0) >= last - 100, "the other one, too", 20)
    with contextlib.closing(sqlite3.connect(box.journal)) as journal:
        rows = journal.execute("SELECT seq FROM events WHERE type = 'spawned' ORDER BY seq")
        spawned = [seq for (seq,) in rows]
    of_some = seqs(some)
    assert of_some == spawned[: len(of_some)]


def test_several_services_tags_and_types_are_chosen_by_the_registry(box):
    tagged = service("a", SLEEP + '\ntags = ["front"]')
    box.configure(tagged + service("b") + service("c"))
    box.start()
    for name in "abc":
        box.wait_status(name, "Running")
    everything = box.events()

    def chosen(names: str, *types: str) -> list[dict]:
        return [e for e in everything if e["service"] in [*names] and e["type"] in types]

    types = ["spawned", "became_ready"]
    assert box.data("events", service=["tag:front", "c"], type=types) == chosen("ac", *types)
    assert box.data("events", service=["tag:front"], type="defined") == chosen("a", "defined")
    pages = box.stream("events", since=0, service=["tag:front", "b"], type=types)
    assert next(pages) == chosen("ab", *types)
    box.data("restart", service=["a", "c"], wait=True)
    assert next(pages)[0]["service"] == "a"
    pages.close()
    for wrong in ([], ["spawned", "exitd"]):
        assert box.ask("events", type=wrong)["error"]["code"] == "invalid_params"
    assert box.ask("events", service=["a", "nobody"])["error"]["code"] == "unknown_service"


def test_who_follows_some_events_goes_on_from_the_last_that_was_looked_at(box):
    box.configure(service("storm", STORM) + service("quiet"))
    box.start()
    box.wait_status("quiet", "Running")
    pages = box.stream("events", since=-1, service="quiet", seen=True)
    first = next(pages)
    second = next(pages)
    assert second["events"] == []
    assert second["seen"] > first["seen"]
    pages.close()
    page = box.data("events", since=0, service="quiet", seen=True)
    assert page["events"] == box.data("events", service="quiet")
    assert page["seen"] > page["events"][-1]["seq"]
    cut = box.data("events", since=0, service="quiet", limit=2, seen=True)
    assert cut == {"seen": page["events"][1]["seq"], "events": page["events"][:2]}


def test_who_asks_for_what_is_no_longer_there_is_told_where_the_journal_begins(box):
    box.configure(service("a"))
    box.start()
    box.wait_status("a", "Running")
    everything = box.events()
    with contextlib.closing(sqlite3.connect(box.journal)) as journal, journal:
        journal.execute("DELETE FROM events WHERE seq < 4")
    for more in ({}, {"follow": True}, {"type": "spawned"}, {"service": "a", "follow": True}):
        error = box.ask("events", since=1, **more)["error"]
        assert (error["code"], error["data"]) == (
            "out_of_range",
            {"first": 4, "last": everything[-1]["seq"]},
        )
        assert "begins with event 4; since 3 is all that there is" in error["message"]
    assert box.data("events", since=3) == box.data("events", since=0) == everything[3:]
    pages = box.stream("events", since=3)
    assert next(pages) == everything[3:]
    pages.close()


def test_who_has_seen_more_than_there_is_is_told_so(box):
    """As after a journal was put back from a backup: to wait for that number would skip what comes before."""
    box.configure(service("a"))
    box.start()
    box.wait_status("a", "Running")
    last = box.data("events", since=-1)[0]["seq"]
    for more in ({}, {"follow": True}, {"service": "a", "seen": True}):
        error = box.ask("events", since=last + 1, **more)["error"]
        assert (error["code"], error["data"]) == ("out_of_range", {"first": None, "last": last})
    with Client(str(box.socket)) as client, pytest.raises(RegistryError) as refused:
        next(client.stream("events", since=10**6, follow=True))
    assert refused.value.code == "out_of_range"


def test_what_is_only_held_is_not_told_so_that_no_number_is_told_for_two_events(box):
    box.configure(service("a"))
    box.start(program=(str(box.program("hasty", HASTY)),))
    box.wait_status("a", "Running")
    pages = box.stream("events", since=-1)
    (last,) = next(pages)
    with unwritable(box):
        os.kill(box.service("a")["pid"], 9)
        box.wait_status("a", "Running", run=2)
        box.kill()
    assert list(pages) == []
    box.start()
    pages = box.stream("events", since=last["seq"])
    assert next(pages)[0]["seq"] == last["seq"] + 1
    pages.close()


def test_the_example_of_the_readme_goes_on_over_a_kill_of_the_registry(box):
    text = (ROOT / "README.md").read_text().partition("### Following events from a program")[2]
    example = text.partition("```python\n")[2].partition("```")[0]
    box.configure(service("a"))
    box.start()
    out = box.folder / "example"
    with out.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", example],
            env={**os.environ, "CIRCLEOSD_SOCKET": str(box.socket)},
            cwd=ROOT,
            stdout=file,
        )
    try:
        for run in (1, 2):
            os.kill(box.wait_status("a", "Running", run=run)["pid"], 9)
            box.wait_for(lambda n=run: out.read_text().count(" a exited\n") == n, "it is told")
            box.kill()
            box.start()
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
