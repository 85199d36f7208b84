"""Runs a target on its inputs: no exception, no hang, no growth; what fails is shrunk and told in one line.

A target judges one input after another by a promise in one sentence. Whatever the code under test raises, and
whatever it logs as an error of its own, breaks the promise.
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from random import Random
from types import FrameType, MappingProxyType
from typing import NamedTuple

from registry.host.heap import give_back
from tests.fuzz.mutate import Recipe, shrink

CPU_MAX_S = 2.0
"""One input may take so much CPU: it is a hang else."""
GROWTH_MAX = 48 << 20
"""Bytes that the process may grow by after its first inputs: arenas and caches fill for a while."""
SHRINK_S = 10.0
"""CPU that is spent on making a failing input shorter."""
WARM = 0.2
"""Part of a run after which growth counts."""
RATIO_MAX = 3.2
"""Twice the size takes twice the time, or a bit more; four times is quadratic."""
NOTICED_S = 0.05
"""What takes less may be of any shape."""

Judge = Callable[[bytes], None]


class Target(NamedTuple):
    """What is fuzzed: a promise about any input, how inputs come about, and what judges one.

    `growing` makes, for a size, inputs whose cost must not grow with the square of it.
    """

    name: str
    promise: str
    recipe: Callable[[], Recipe]
    judging: Callable[[], AbstractContextManager[Judge]]
    growing: Mapping[str, Callable[[int], bytes]] = MappingProxyType({})


class Broken(AssertionError):
    """A promise that an input breaks: which, by what, and how to see it again."""


class Hang(BaseException):
    """An input took too long; no rule of the code under test catches this."""


class Figures(NamedTuple):
    """What a run came to."""

    inputs: int
    seconds: float
    slowest_s: float
    slowest: int
    grown: int


def repeated(target: Target, seed: int, number: int, recipe: Recipe) -> bytes:
    """The input of this number."""
    return recipe.make(Random(f"{target.name}/{seed}/{number}"))


def run(
    target: Target,
    seed: int,
    inputs: int,
    first: int = 0,
    told: Callable[[int], None] = lambda _count: None,
) -> Figures:
    """Judge so many inputs. Raises Broken at the first that breaks the promise."""
    recipe = target.recipe()
    slowest, warm, base = (0.0, 0), max(1, int(inputs * WARM)), 0
    with _watched(), target.judging() as judge:
        descriptors = len(os.listdir("/dev/fd"))
        began_s = time.process_time()
        for count in range(inputs):
            data = repeated(target, seed, first + count, recipe)
            begun_s = time.process_time()
            fault = fault_of(judge, data)
            if fault is not None:
                where = f"--target {target.name} --seed {seed} --from {first + count} --inputs 1"
                raise Broken(_told(target, judge, data, fault, where))
            slowest = max(slowest, (time.process_time() - begun_s, first + count))
            if count == warm:
                base = _resident()
            told(count)
        spent_s = time.process_time() - began_s
        grown = _resident() - base if base else 0
        if len(os.listdir("/dev/fd")) > descriptors or grown > GROWTH_MAX:
            now = len(os.listdir("/dev/fd"))
            raise Broken(f"{target.name} grows: {descriptors} to {now} descriptors, {grown} bytes")
    return Figures(inputs, spent_s, *slowest, grown)


def check(target: Target, inputs: list[bytes]) -> None:
    """Judge these inputs. Raises Broken."""
    with _watched(), target.judging() as judge:
        for data in inputs:
            fault = fault_of(judge, data)
            if fault is not None:
                raise Broken(_told(target, judge, data, fault, "a known input"))


def doubled(target: Target, size: int = 1 << 14, most: int = 1 << 19) -> dict[str, float]:
    """How much longer each growing input takes at twice its size, where that is felt. Raises Broken."""
    ratios: dict[str, float] = {}
    with _watched(), target.judging() as judge:
        for name, make in target.growing.items():
            at, before_s, after_s = size, 0.0, _seconds(judge, make(size))
            while after_s < NOTICED_S and at < most:
                at, before_s, after_s = at * 2, after_s, _seconds(judge, make(at * 2))
            if after_s < NOTICED_S:
                continue
            before_s = before_s or _seconds(judge, make(at // 2))
            if after_s > RATIO_MAX * before_s:
                # once: memory beyond some size costs more; what is quadratic is so at each doubling
                at, before_s, after_s = at * 2, after_s, _seconds(judge, make(at * 2))
            ratios[name] = after_s / before_s
            if ratios[name] > RATIO_MAX:
                raise Broken(
                    f"{target.name}: {name} of {at} bytes take {after_s:.3f} s of CPU,"
                    f" half of it {before_s:.3f} s"
                )
    return ratios


def fault_of(judge: Judge, data: bytes) -> BaseException | None:
    """What breaks the promise for an input, None when nothing does."""
    _ERRORS.clear()
    signal.setitimer(signal.ITIMER_PROF, CPU_MAX_S, CPU_MAX_S)
    try:
        judge(data)
    except (Exception, Hang) as error:
        return error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return _ERRORS[0] if _ERRORS else None


def _seconds(judge: Judge, data: bytes) -> float:
    def once() -> float:
        began_s = time.process_time()
        judge(data)
        return time.process_time() - began_s

    return min(once() for _ in range(3))


def _told(target: Target, judge: Judge, data: bytes, fault: BaseException, where: str) -> str:
    kind, until_s = type(fault), time.process_time() + SHRINK_S

    def fails(part: bytes) -> bool:
        return time.process_time() < until_s and type(fault_of(judge, part)) is kind

    shortest = shrink(data, fails)
    again = fault_of(judge, shortest) or fault
    place = _place(again)
    return (
        f"{target.name} breaks its promise: {target.promise}\n"
        f"  {kind.__name__}: {str(again)[:400]}\n  at {place}\n"
        f"  again: python3 tools/dev fuzz {where}\n  shrunk to {len(shortest)} bytes: {shortest[:2000]!r}"
    )


def _place(fault: BaseException) -> str:
    trace, places = fault.__traceback__, []
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{Path(code.co_filename).name}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return " < ".join(places[::-1][:6])


# --- what is watched over -------------------------------------------------------------------------

_ERRORS: list[BaseException] = []


class _Complaints(logging.Handler):
    """An exception that the code under test caught and logged as its own fault."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            _ERRORS.append(record.exc_info[1])


def failed(error: BaseException) -> None:
    """Note what a loop caught in the place of its caller."""
    _ERRORS.append(error)


@contextmanager
def _watched() -> Iterator[None]:
    """Alarms for hangs, and an ear for errors that are only logged."""

    def ring(_number: int, _frame: FrameType | None) -> None:
        hang = Hang(f"more than {CPU_MAX_S:g} s of CPU")
        _ERRORS.append(hang)  # a task swallows it
        raise hang

    loggers = [logging.getLogger(name) for name in ("registry", "asyncio")]
    before = [(each.propagate, each.level) for each in loggers]
    ear = _Complaints(logging.ERROR)
    handler = signal.signal(signal.SIGPROF, ring)
    for each in loggers:
        each.addHandler(ear)
        each.propagate = False
        each.setLevel(logging.ERROR)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
        for each, (propagate, level) in zip(loggers, before, strict=True):
            each.removeHandler(ear)
            each.propagate, each.level = propagate, level


def _resident() -> int:
    gc.collect()
    give_back()
    fields = Path("/proc/self/statm").read_bytes().split()
    return int(fields[1]) * resource.getpagesize()
