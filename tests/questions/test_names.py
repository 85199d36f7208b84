"""Words that mean services: bounded, whatever a request holds."""

from __future__ import annotations

import tracemalloc
from contextlib import suppress

import pytest

from registry.core.definition import Definition
from registry.core.projection import Projection
from registry.questions.names import one, select
from registry.questions.refusal import Refusal


@pytest.fixture
def projection() -> Projection:
    made = Projection()
    for name in ("web", "web-2", "db"):
        made.add(Definition(name=name, cmd=("x",)))
    return made


@pytest.mark.parametrize(
    ("given", "means"),
    [
        ("web", ["web"]),
        ("web*", ["web", "web-2"]),
        ("all", ["web", "web-2", "db"]),
        (["db", "web*", "db"], ["db", "web", "web-2"]),
        (["strange", "web"], ["strange", "web"]),
    ],
)
def test_words_mean_each_service_once(projection, given, means):
    assert select(given, projection) == means


def test_globs_and_what_instances_share_also_mean_what_is_gone(projection):
    projection.add(Definition(name="app@1", cmd=("x",), instance_of="app"))
    gone = ("app@2", "web-1")
    assert select("web*", projection, gone) == ["web", "web-2", "web-1"]
    assert select("app", projection, gone) == ["app@1", "app@2"]
    assert select("all", projection, gone) == select("all", projection)


def test_a_word_that_means_several_is_not_one(projection):
    projection.add(Definition(name="app@1", cmd=("x",), instance_of="app"))
    assert [one(word, projection) for word in ("web", "app@1", "strange")]
    with pytest.raises(Refusal, match="one service, and 'app' means app@1; name one"):
        one("app", projection)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("[" * 257, "service: 1000 words of 256 characters are the most"),
        (["web"] * 1001, "service: 1000 words of 256 characters are the most"),
        (
            [f"s{number}" for number in range(21)],
            "21 of these are no services: s0, s1, s2, s3, s4, s5, s6, s7, ...",
        ),
    ],
)
def test_what_would_take_the_loop_s_time_is_refused(projection, given, sentence):
    with pytest.raises(Refusal) as refused:
        select(given, projection)
    assert refused.value.message == sentence


def test_patterns_are_not_remembered(projection):
    def ask(first):
        for number in range(first, first + 600):
            with suppress(Refusal):
                select(f"{number}{'[a-z]?*' * 3}", projection)

    tracemalloc.start()
    try:
        ask(0)  # as many as `re` ever remembers, and then twice as many more
        filled, _peak = tracemalloc.get_traced_memory()
        ask(600)
        ask(1200)
        grown, _peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 1.5 * filled
