"""Delays, the limit and forgiveness at their bounds, and numbers in plain digits."""

from __future__ import annotations

import pytest

from registry.core.definition import Policy, Restart
from registry.core.restarts import delay_s, is_exhausted, is_forgiven, wants_restart, within_window

A_SECOND_NS = 1_000_000_000
NOW_NS = 5_000 * A_SECOND_NS

DELAYS = [
    # attempt, chance of the jitter, seconds; of a delay of 0.5 s that grows to 30 s
    (0, 0.5, 0.0),
    (1, 0.5, 0.0),
    (2, 0.0, 0.5),
    (2, 0.5, 0.525),
    (3, 0.0, 1.0),
    (4, 0.0, 2.0),
    (7, 0.0, 16.0),
    (8, 0.0, 30.0),
    (8, 0.5, 31.5),
    (64, 0.0, 30.0),
    (5000, 0.0, 30.0),
]


@pytest.mark.parametrize(("attempt", "chance", "seconds"), DELAYS)
def test_a_delay_doubles_from_the_second_attempt_on_and_jitter_only_adds(attempt, chance, seconds):
    restart = Restart(delay_s=0.5, delay_max_s=30.0)
    assert delay_s(restart, attempt, chance) == pytest.approx(seconds, abs=1e-12)


def test_a_restart_counts_until_exactly_as_long_ago_as_the_window_is():
    restart = Restart(limit=3, within_s=60.0)
    oldest_ns = NOW_NS - 60 * A_SECOND_NS
    times_ns = (oldest_ns - 1, oldest_ns, oldest_ns + 1, NOW_NS)
    assert within_window(times_ns, restart, NOW_NS) == (oldest_ns + 1, NOW_NS)


@pytest.mark.parametrize("limit", [1, 2, 300, 1000])
def test_the_limit_is_reached_by_as_many_restarts_as_it_says_and_by_more(limit):
    restart = Restart(limit=limit, within_s=60.0)
    fewer, as_many, more = (tuple(range(NOW_NS - n, NOW_NS)) for n in (limit - 1, limit, limit + 1))
    assert [is_exhausted(each, restart, NOW_NS) for each in (fewer, as_many, more)] == [
        False,
        True,
        True,
    ]


def test_without_a_limit_nothing_is_kept_and_nothing_exhausts_it():
    times_ns = tuple(range(NOW_NS - 5000, NOW_NS))
    assert within_window(times_ns, Restart(), NOW_NS) == ()
    assert not is_exhausted(times_ns, Restart(), NOW_NS)


@pytest.mark.parametrize(
    ("ran_ns", "forgiven"),
    [(0, False), (29_999_999_999, False), (30_000_000_000, True), (10**15, True)],
)
def test_a_run_of_thirty_seconds_is_forgiven_to_the_nanosecond(ran_ns, forgiven):
    assert is_forgiven(ran_ns) is forgiven


@pytest.mark.parametrize(
    ("policy", "after_clean", "after_failed"),
    [(Policy.ALWAYS, True, True), (Policy.ON_FAILURE, False, True), (Policy.NEVER, False, False)],
)
def test_a_policy_wants_a_restart_after_these_ends(policy, after_clean, after_failed):
    ends = [wants_restart(policy, clean=clean) for clean in (True, False)]
    assert ends == [after_clean, after_failed]
