"""What the daemon holds of what a keeper keeps for it, where descriptors are short."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from registry.keeper.holdings import HeldRuns
from registry.passed import close_all

pytestmark = pytest.mark.platform("linux")

KEY = ("web", 1)


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@contextmanager
def left(free: int) -> Iterator[None]:
    """Within the block so many descriptors can be opened."""
    taken: list[int] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, open_descriptors()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 20, hard))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        close_all(taken.pop() for _ in range(free))
        yield
    finally:
        close_all(taken)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def given() -> Iterator[tuple[int, int]]:
    """The output of a run, and its pidfd."""
    reader, writer = os.pipe()
    pidfd = os.pidfd_open(os.getpid())
    yield reader, pidfd
    close_all((reader, writer, pidfd))


@pytest.mark.parametrize("free", [0, 1])
def test_of_a_run_that_cannot_be_held_nothing_is(given, free):
    runs, before = HeldRuns(), open_descriptors()
    with left(free), pytest.raises(OSError, match="Too many open files"):
        runs.keep(KEY, given[0], given[1], None)
    assert open_descriptors() == before
    assert runs.copies() == []
    assert not runs.release(KEY)


@pytest.mark.parametrize("free", [0, 1])
def test_what_cannot_take_its_place_leaves_what_is_held(given, free):
    runs = HeldRuns()
    runs.keep(KEY, given[0], given[1], None)
    before = open_descriptors()
    with left(free), pytest.raises(OSError, match="Too many open files"):
        runs.keep(KEY, given[0], given[1], None)
    assert open_descriptors() == before
    (copy,) = runs.copies()
    assert None not in (copy.output_fd, copy.pidfd)
    copy.close()
    runs.close()


def test_another_pidfd_takes_the_place_of_the_one_that_is_held(given):
    """Also where no other descriptor is left."""
    runs = HeldRuns()
    runs.keep(KEY, given[0], given[1], None)
    before = open_descriptors()
    with left(0):
        runs.keep(KEY, None, given[1], None)
    assert open_descriptors() == before
    runs.close()
