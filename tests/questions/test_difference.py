"""What changed between two moments, and who asked for it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from registry.core import inputs as inp
from registry.core.definition import Definition
from registry.core.events import Actor, JournalCreated
from registry.past.difference import ACTS_MAX, changes
from registry.questions.difference import Difference

ANA = Actor(uid=1000, pid=7, program="circlectl")
WEB = Definition("web", ("./web",))
DB = Definition("db", ("./db",), position=1)


@pytest.fixture
def between(story, opened):
    """What changed from one event to another, of the story so far."""

    def between_(since: int, until: int, *names: str) -> Difference:
        return changes(opened(story.records), since, until, names)

    return between_


@pytest.fixture
def begun(story) -> int:
    """The number of the last event once web runs."""
    story.say(JournalCreated("journal-1", 1))
    cause = story.begin("boot-1", 300, fresh=True)
    story.define(WEB, cause)
    story.tell("web", inp.Start())
    story.spawn("web", 100)
    return len(story.records)


def told(found: Difference) -> dict[str, Any]:
    """By service: what was, and what is."""
    return {
        each.service: (each.change, each.before, each.after, each.keys) for each in found.services
    }


def test_between_a_moment_and_itself_nothing_changed(begun, between) -> None:
    found = between(begun, begun)
    assert (found.services, found.acts, found.events) == ((), (), 0)


def test_a_service_that_was_declared_since_is_added_and_one_that_is_gone_removed(
    story, begun, between
) -> None:
    story.define(DB, 2, actor=ANA)
    story.tell("web", inp.Remove(actor=ANA))
    story.end("web", signal=15)
    found = told(between(begun, len(story.records)))
    assert [(name, change[0]) for name, change in found.items()] == [
        ("db", "add"),
        ("web", "remove"),
    ]
    assert found["db"][2]["status"] == "Stopped"
    assert found["web"][1]["status"] == "Running"
    assert found["web"][2] is None


def test_of_a_service_that_changed_only_what_differs_is_told(story, begun, between) -> None:
    story.end("web", 3)
    story.spawn("web", 101)
    found = between(begun, len(story.records))
    assert told(found) == {
        "web": ("change", {"run": 1, "restarts": 0}, {"run": 2, "restarts": 1}, ())
    }
    assert found.acts == ()


def test_a_definition_is_compared_by_its_keys(story, begun, between) -> None:
    story.define(msgspec.structs.replace(WEB, umask=0, tags=("a",), position=9), 2, actor=ANA)
    found = between(begun, len(story.records))
    assert told(found) == {"web": ("change", {}, {}, ("umask", "tags"))}
    assert [(act.type, act.actor) for act in found.acts] == [("redefined", ANA)]


def test_who_asked_for_what_is_told_and_what_the_registry_did_itself(story, begun, between) -> None:
    story.tell("web", inp.Stop(actor=ANA))
    story.end("web", signal=15)
    story.begin("boot-1", 301, fresh=False)
    found = between(begun, len(story.records))
    assert [act.type for act in found.acts] == ["stop_requested", "registry_started"]
    assert told(found)["web"][2]["wanted"] == "down"


def test_other_services_than_those_named_are_left_out(story, begun, between) -> None:
    story.define(DB, 2, actor=ANA)
    story.tell("web", inp.Stop(actor=ANA))
    found = between(begun, len(story.records), "db")
    assert list(told(found)) == ["db"]
    assert [act.service for act in found.acts] == ["db"]


def test_before_the_first_event_there_was_nothing(story, begun, between) -> None:
    found = between(0, begun)
    assert (found.since.seq, found.since.at) == (0, None)
    assert [each.change for each in found.services] == ["add"]


def test_only_the_latest_of_very_many_acts_are_told(story, begun, between) -> None:
    for _ in range(ACTS_MAX + 5):
        story.tell("web", inp.Signal(signal="SIGHUP", actor=ANA))
    found = between(begun, len(story.records))
    assert (len(found.acts), found.is_cut) == (ACTS_MAX, True)
    assert found.acts[-1].seq == len(story.records)
