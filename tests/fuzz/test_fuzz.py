"""Whatever comes from outside, the promise of each target holds: a sample of inputs, and all that once broke it."""

from __future__ import annotations

import time
from contextlib import contextmanager

import pytest

from tests.fuzz import harness
from tests.fuzz.harness import Broken, Target, check, doubled, run
from tests.fuzz.known import KNOWN
from tests.fuzz.mutate import Recipe
from tests.fuzz.targets import TARGETS

INPUTS = {
    "requests": 1800, "configuration": 900, "journal": 60, "rows": 6000, "logs": 1200, "index": 8000,
    "keeper": 500, "told": 800, "notices": 2500, "answers": 6000, "formats": 8000,
}  # fmt: skip
"""About a second of each."""


@pytest.mark.parametrize("name", TARGETS)
def test_a_sample_of_inputs_breaks_no_promise(name):
    assert run(TARGETS[name], seed=1, inputs=INPUTS[name]).inputs == INPUTS[name]


@pytest.mark.parametrize("name", KNOWN)
def test_what_once_broke_a_promise_does_not_break_it_again(name):
    check(TARGETS[name], KNOWN[name])


# --- the harness itself ---------------------------------------------------------------------------


def target(judge, **more):
    @contextmanager
    def judging():
        yield judge

    return Target("toy", "it does nothing", lambda: Recipe([b"seed"], [b"word"]), judging, **more)


def test_an_input_follows_from_target_seed_and_number_alone():
    def inputs(first, count):
        found: list[bytes] = []
        run(target(found.append), 3, count, first)
        return found

    assert inputs(0, 50)[20:] == inputs(20, 30)
    assert len(set(inputs(0, 50))) > 30


def test_what_fails_is_shrunk_and_told_in_a_line_that_repeats_it():
    def judge(data):
        assert b"\xff" not in data, "bad byte"

    with pytest.raises(Broken) as told:
        run(target(judge), 1, 5000)
    number = str(told.value).split("--from ")[1].split()[0]
    assert r"shrunk to 1 bytes: b'\xff'" in str(told.value)
    with pytest.raises(Broken, match="bad byte"):
        run(target(judge), 1, 1, int(number))


def test_a_hang_is_ended_and_told(monkeypatch):
    monkeypatch.setattr(harness, "CPU_MAX_S", 0.02)
    monkeypatch.setattr(harness, "SHRINK_S", 0.1)

    def judge(_data):
        began_s = time.process_time()
        while time.process_time() < began_s + 5:
            pass

    with pytest.raises(Broken, match="Hang"):
        run(target(judge), 1, 1)


def test_a_descriptor_that_is_left_open_is_told(tmp_path):
    kept = []

    def judge(data):
        kept.append((tmp_path / "file").open("wb"))

    with pytest.raises(Broken, match="descriptors"):
        run(target(judge), 1, 3)
    for each in kept:
        each.close()


def test_what_takes_the_square_of_its_size_is_told(monkeypatch):
    def judge(data):
        until_s = time.process_time() + (len(data) / 1000) ** 2 / 4000
        while time.process_time() < until_s:
            pass

    with pytest.raises(Broken, match="half of it"):
        doubled(target(judge, growing={"bytes": bytes}))


def test_what_costs_more_from_some_size_on_is_borne():
    def judge(data):
        step = 4 if len(data) > 40_000 else 1
        until_s = time.process_time() + step * len(data) / 1_000_000
        while time.process_time() < until_s:
            pass

    assert doubled(target(judge, growing={"bytes": bytes}))["bytes"] < harness.RATIO_MAX
