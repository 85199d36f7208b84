"""How a start of the registry went: what took how long, and the chain of dependencies that took longest."""

from __future__ import annotations

from typing import Any

import pytest

from registry.core import inputs as inp
from registry.core.definition import Condition, Definition, Dependency, Ready
from registry.core.events import Actor, JournalCreated
from registry.core.lifecycle import Reason
from registry.past.boot import boot
from registry.questions.boot import Boot
from registry.questions.refusal import Refusal

DB = Definition("db", ("./db",), ready=Ready.NOTIFY)
SETUP = Definition("setup", ("./setup",), 1, oneshot=True, depends_on=(Dependency("db"),))
APP = Definition(
    "app",
    ("./app",),
    2,
    ready=Ready.NOTIFY,
    depends_on=(Dependency("db"), Dependency("setup", Condition.COMPLETED)),
)
SLOW = Definition("slow", ("./slow",), 3, ready=Ready.NOTIFY)


def begin(story: Any) -> int:
    """The registry starts, and wants them all up; its number."""
    story.say(JournalCreated("journal-1", 1))
    cause = story.begin("boot-1", 300, fresh=True)
    for definition in (DB, SETUP, APP, SLOW):
        story.define(definition, cause)
    for name in ("db", "setup", "app", "slow"):
        story.tell(name, inp.Start(reason=Reason.AUTOSTART, cause=cause))
    return int(cause)


def go_on(story: Any) -> None:
    """db takes 4 s, setup 2 s after it, app 1 s after that; slow 5 s by itself."""
    story.spawn("slow", 40)
    story.spawn("db", 41)
    story.wait(4)
    story.tell("db", inp.NotifiedReady(run=1))
    story.look("setup")
    story.spawn("setup", 42)
    story.wait(1)
    story.tell("slow", inp.NotifiedReady(run=1))
    story.wait(1)
    story.end("setup", 0)
    story.look("app")
    story.spawn("app", 43)
    story.wait(1)
    story.tell("app", inp.NotifiedReady(run=1))


@pytest.fixture
def told(story, opened):
    """The start as the story so far tells it."""

    def told_(name: str | None = None) -> Boot:
        return boot(opened(story.records), len(story.records), name)

    return told_


def test_the_slowest_come_first_and_waiting_is_no_time_of_their_own(story, told) -> None:
    begin(story)
    go_on(story)
    found = told()
    times = [(s.service, s.result, round(s.waited_s), round(s.took_s)) for s in found.services]
    assert times == [
        ("slow", "ready", 0, 5),
        ("db", "ready", 0, 4),
        ("setup", "completed", 4, 2),
        ("app", "ready", 6, 1),
    ]
    assert round(found.seconds) == 7


def test_the_chain_is_what_each_waited_for_longest(story, told) -> None:
    begin(story)
    go_on(story)
    links = [(link.service, link.condition, round(link.took_s)) for link in told().chain]
    assert links == [("db", "ready", 4), ("setup", "completed", 2), ("app", "ready", 1)]
    assert [link.service for link in told("slow").chain] == ["slow"]
    assert [link.service for link in told("setup").chain] == ["db", "setup"]


def test_what_did_not_come_up_is_told_as_it_is(story, told) -> None:
    begin(story)
    story.spawn("db", 41)
    story.end("db", 1)
    story.spawn("slow", 40)
    results = {each.service: (each.result, each.done_s) for each in told().services}
    assert results == {
        "db": ("failed", None),
        "slow": ("starting", None),
        "setup": ("waiting", None),
        "app": ("waiting", None),
    }
    assert (told().chain, told().seconds) == ((), None)


def test_what_somebody_asks_for_later_is_no_part_of_the_start(story, told) -> None:
    cause = begin(story)
    go_on(story)
    story.define(Definition("later", ("./later",), 4), cause)
    story.tell("later", inp.Start(actor=Actor(uid=0)))
    story.spawn("later", 50)
    assert "later" not in {each.service for each in told().services}


def test_a_registry_that_takes_over_starts_nothing_anew(story, told) -> None:
    begin(story)
    go_on(story)
    before = len(story.records)
    story.begin("boot-1", 301, fresh=False)
    for name, pid in (("db", 41), ("app", 43)):
        story.tell(name, inp.ProcessFound(run=1, pid=pid))
    found = told()
    assert (found.fresh, found.pid) == (False, 301)
    assert {each.result for each in found.services} == {"adopted"}
    assert told().seq == before + 1


def test_of_an_earlier_moment_the_start_before_it_is_told(story, opened) -> None:
    cause = begin(story)
    go_on(story)
    at = len(story.records)
    story.begin("boot-1", 301, fresh=False)
    journal = opened(story.records)
    found = boot(journal, at)
    assert (found.seq, found.pid, len(found.services)) == (cause, 300, 4)
    with pytest.raises(Refusal, match="no start of the registry is in the journal up to event 1"):
        boot(journal, 1)
