"""Looking at the memory of runs, on virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from itertools import pairwise
from typing import Any, Protocol

import pytest

from registry.host.memory import LOOK_EVERY_S, MemoryWatch

MOST = 1_000
BEYOND = 1_001


class Clock(Protocol):
    """What a scene sees of virtual time."""

    now_s: float
    wake_ups: int


class Stage:
    """A watch on virtual time: when it looked at whom, and what it told."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.held: dict[str, int | None] = {}
        self.looks: list[tuple[float, str, int]] = []
        self.told: list[tuple[float, str, int, int]] = []
        self.on_told: Callable[[], None] = lambda: None
        self.broken: set[str] = set()
        self.watch = MemoryWatch(self._measure, self._observe)

    def _measure(self, service: str, run: int) -> int | None:
        self.looks.append((round(self.clock.now_s, 3), service, run))
        if service in self.broken:
            raise LookupError("a bug")
        return self.held.get(service, 0)

    def _observe(self, service: str, run: int, held: int) -> None:
        self.told.append((round(self.clock.now_s, 3), service, run, held))
        self.on_told()

    def times(self, service: str) -> list[float]:
        return [at_s for at_s, name, _ in self.looks if name == service]

    async def until(self, at_s: float) -> None:
        await asyncio.sleep(at_s - self.clock.now_s)


Play = Callable[[Callable[[Stage], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def play(on_virtual_time: Callable[..., None]) -> Play:
    """Plays a scene; afterwards, closed, the watch never wakes up again."""

    def on_stage(scene: Callable[[Stage], Coroutine[Any, Any, None]]) -> None:
        async def main(clock: Clock) -> None:
            stage = Stage(clock)
            await scene(stage)
            stage.watch.close()
            assert await wakes_up(stage, 1_000.0) == 0

        on_virtual_time(main)

    return on_stage


async def wakes_up(stage: Stage, for_s: float) -> int:
    """How often the loop wakes up in so many seconds, but for the end of them."""
    before = stage.clock.wake_ups
    await asyncio.sleep(for_s)
    return stage.clock.wake_ups - before - 1


def test_a_run_beyond_its_most_at_two_looks_in_a_row_is_told_of_once(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.watch.watch("web", 7, MOST)
        await stage.until(6.0)
        stage.held["web"] = BEYOND
        await stage.until(100.0)
        assert stage.told == [(15.0, "web", 7, BEYOND)]

    play(scene)


@pytest.mark.parametrize("between", [MOST, None], ids=["its most", "unknown"])
def test_a_spike_at_single_looks_is_not_told(play: Play, between: int | None) -> None:
    async def scene(stage: Stage) -> None:
        stage.watch.watch("web", 1, MOST)
        for look in range(1, 20):
            stage.held["web"] = BEYOND if look % 2 else between
            await stage.until(look * LOOK_EVERY_S + 1.0)
        assert len(stage.looks) == 19
        assert stage.told == []

    play(scene)


def test_a_system_that_watches_nobody_never_wakes_up(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        assert await wakes_up(stage, 1_000.0) == 0
        stage.watch.watch("web", 1, MOST)
        assert await wakes_up(stage, 1_001.0) == 200
        stage.watch.forget("web", 1)
        assert await wakes_up(stage, 1_000.0) == 0

    play(scene)


def test_the_last_run_told_of_leaves_no_timer(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.held["web"] = BEYOND
        stage.watch.watch("web", 1, MOST)
        await stage.until(11.0)
        assert len(stage.told) == 1
        assert await wakes_up(stage, 1_000.0) == 0

    play(scene)


def test_many_runs_watched_at_once_are_looked_at_one_by_one_over_the_interval(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        for number in range(1_000):
            stage.watch.watch(f"s{number}", 1, MOST)
        await stage.until(59.9)
        assert max(Counter(at_s for at_s, *_ in stage.looks).values()) == 1
        assert all(10 <= len(stage.times(f"s{number}")) <= 11 for number in range(1_000))

    play(scene)


def test_looks_at_one_run_are_never_closer_than_the_interval_whoever_comes_and_goes(
    play: Play,
) -> None:
    async def scene(stage: Stage) -> None:
        stage.watch.watch("web", 1, MOST)
        for number in range(200):
            stage.watch.watch(f"s{number % 7}", number, MOST)
            await asyncio.sleep(0.7)
            if number % 3:
                stage.watch.forget(f"s{number % 7}", number)
        times = stage.times("web")
        gaps = [after - before for before, after in pairwise(times)]
        assert min(gaps) >= LOOK_EVERY_S - 0.001
        assert max(gaps) <= 2 * LOOK_EVERY_S

    play(scene)


def test_a_run_that_comes_when_another_is_forgotten_has_its_full_time(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.watch.watch("old", 1, MOST)
        await stage.until(2.0)
        stage.watch.watch("new", 1, MOST)
        stage.watch.forget("old", 1)
        await stage.until(13.0)
        assert stage.looks == [(7.0, "new", 1), (12.0, "new", 1)]

    play(scene)


def test_the_next_run_is_judged_anew(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.held["web"] = BEYOND
        stage.watch.watch("web", 1, MOST)
        await stage.until(6.0)
        stage.watch.watch("web", 2, MOST)
        stage.watch.forget("web", 1)  # too late: another run is watched
        await stage.until(100.0)
        assert stage.told == [(16.0, "web", 2, BEYOND)]

    play(scene)


def test_a_next_run_does_not_keep_another_service_waiting(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.watch.watch("web", 1, MOST)
        await stage.until(1.0)
        stage.watch.watch("db", 1, MOST)
        await stage.until(4.0)
        stage.watch.watch("web", 2, MOST)
        await stage.until(10.0)
        assert stage.looks == [(6.0, "db", 1), (9.0, "web", 2)]

    play(scene)


def test_the_receiver_may_forget_and_watch(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        def next_run() -> None:
            _, service, run, _ = stage.told[-1]
            stage.watch.forget(service, run)
            stage.watch.watch(service, run + 1, MOST)

        stage.on_told = next_run
        stage.held["web"] = BEYOND
        stage.watch.watch("web", 1, MOST)
        await stage.until(21.0)
        assert [(at_s, run) for at_s, _, run, _ in stage.told] == [(10.0, 1), (20.0, 2)]

    play(scene)


def test_a_bug_in_one_look_ends_neither_that_watch_nor_another(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        failures = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: failures.append(context)
        )
        stage.broken.add("broken")
        stage.held["web"] = BEYOND
        stage.watch.watch("broken", 1, MOST)
        stage.watch.watch("web", 1, MOST)
        await stage.until(16.0)
        assert [service for _, service, _, _ in stage.told] == ["web"]
        assert len(failures) == len(stage.times("broken")) == 3

    play(scene)
