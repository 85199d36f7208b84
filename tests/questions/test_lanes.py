"""Lanes: at every event they say of every service what its record says, and they place and judge events as told."""

import runpy
from collections.abc import Callable, Collection, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from registry.core.events import Record
from registry.core.projection import Projection
from registry.questions.lanes import FIELDS, NEEDS, STATUS, Kind, Lane, Lanes, lanes, stretches
from registry.questions.records import rfc3339, service_record

STORY = runpy.run_path(str(Path(__file__).parents[1] / "golden" / "make_journal_v1.py"))
NAMES = [field.name for field in FIELDS]


@pytest.fixture(scope="module")
def story() -> list[Record]:
    told: list[Record] = STORY["tell_story"]()
    return told


@pytest.fixture(scope="module")
def find(story: list[Record]) -> Callable[[Collection[int]], Iterator[Record]]:
    return lambda numbers: (story[seq - 1] for seq in numbers)


def _folded(story: list[Record], last: int) -> Projection:
    projection = Projection()
    projection.fold(story[:last])
    return projection


def _then(lane: Lane, index: int) -> dict[str, Any]:
    """What a lane says after event `index`."""
    values = {}
    for field, changes in zip(FIELDS, lane.changes, strict=True):
        value: Any = next((value for at, value in reversed(changes) if at <= index), None)
        is_time = field.kind == "time" and value is not None
        values[field.name] = rfc3339(value * 1000) if is_time else value
    return values


def _records(projection: Projection) -> dict[str, dict[str, Any]]:
    return {
        service.name: msgspec.to_builtins(service_record(service, projection.services))
        for service in projection.in_order()
    }


@pytest.mark.parametrize("first", [0, 30, 90, 150])
def test_after_every_event_a_lane_is_what_the_record_of_its_service_says(
    story: list[Record], find, first: int
) -> None:
    found = lanes(_folded(story, first), story[first:], find)
    assert [event.seq for event in found.events] == list(range(first + 1, len(story) + 1))
    for index in range(-1, len(found.events)):
        records = _records(_folded(story, first + index + 1))
        for lane in found.lanes:
            then = _then(lane, index)
            if lane.name not in records:
                assert set(then.values()) == {None}
                continue
            record = records[lane.name]
            assert then == {"needs": then["needs"], **{n: record[n] for n in NAMES if n != "needs"}}


def test_lanes_are_in_the_order_of_the_file_and_tell_what_they_need(
    story: list[Record], find
) -> None:
    found = lanes(Projection(), story, find)
    last = [service.name for service in _folded(story, len(story)).in_order()]
    assert [lane.name for lane in found.lanes if lane.name in last] == last
    needs = {lane.name: lane.now[NEEDS] for lane in found.lanes if lane.now[NEEDS]}
    declared = {
        service.name: " ".join(
            f"{need.service}:{need.condition.value}" for need in service.definition.depends_on
        )
        for service in _folded(story, len(story)).services.values()
    }
    assert needs == {name: words for name, words in declared.items() if words}
    assert needs


def test_chosen_services_come_with_the_registry_what_changed_their_waiting_and_their_causes(
    story: list[Record], find
) -> None:
    found = lanes(Projection(), story, find, ["app"])
    assert [lane.name for lane in found.lanes] == ["app"]
    of = {event.service for event in found.events}
    assert {None, "app"} <= of
    shown = {event.seq for event in found.events}
    assert {r.seq for r in story if r.service in (None, "app")} <= shown
    everything = lanes(Projection(), story, find)
    (alone,), (among,) = found.lanes, [x for x in everything.lanes if x.name == "app"]
    for at, changes in enumerate(among.changes):
        seqs = [(everything.events[index].seq, value) for index, value in changes]
        assert [(found.events[index].seq, value) for index, value in alone.changes[at]] == seqs
    elsewhere = {event.seq for event in found.elsewhere}
    causes = {event.cause for event in [*found.events, *found.elsewhere]} - {None}
    assert elsewhere.isdisjoint(shown)
    assert causes <= shown | elsewhere


def test_the_axis_runs_on_where_the_clock_was_set_back(story: list[Record], find) -> None:
    found = lanes(Projection(), story, find)
    at = [event.at_us for event in found.events]
    axis = [event.axis_us for event in found.events]
    assert at != sorted(at)  # the story's clock is set back
    assert axis == sorted(axis)
    back = next(i for i in range(1, len(at)) if at[i] < at[i - 1])
    assert axis[:back] == at[:back]
    passed_us = (story[back].mono_ns - story[back - 1].mono_ns) // 1000
    assert abs(axis[back] - axis[back - 1] - passed_us) <= 1


def test_events_are_judged_by_where_they_lead_and_who_asked(story: list[Record], find) -> None:
    found = lanes(Projection(), story, find)
    kinds: dict[str, set[Kind]] = {}
    for event in found.events:
        kinds.setdefault(event.type, set()).add(event.kind)
    assert kinds["gave_up"] == {Kind.GAVE_UP}
    assert kinds["became_unhealthy"] == {Kind.UNHEALTHY}
    assert kinds["registry_started"] == {Kind.REGISTRY}
    assert kinds["exited"] == {Kind.FAILED, Kind.OTHER}
    assert Kind.ASKED in kinds["restart_requested"]
    for event, record in zip(found.events, story, strict=True):
        if event.kind is Kind.FAILED and event.type != "spawn_failed":
            assert record.event.dest.value == "Failed"  # type: ignore[attr-defined]


def test_stretches_follow_each_other_to_the_end(story: list[Record], find) -> None:
    found: Lanes = lanes(Projection(), story, find)
    for lane in found.lanes:
        spans = [*stretches(found, lane, STATUS)]
        assert spans
        assert all(a.end_us <= b.begin_us for a, b in pairwise(spans))
        if lane.now[STATUS] is not None:
            assert spans[-1].end_us == found.events[-1].axis_us
            assert spans[-1].value == lane.now[STATUS]
