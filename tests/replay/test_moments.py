"""Times on the command line."""

import pytest

from registry.questions.moments import Moment, moment

NS = 1_000_000_000
NOW_NS = 1_767_330_245 * NS + 5  # 2026-01-02T05:04:05Z
AT_03_04_05 = 1_767_323_045


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-01-02T03:04:05Z", AT_03_04_05),
        ("2026-01-02t03:04:05z", AT_03_04_05),
        ("2026-01-02T04:04:05+01:00", AT_03_04_05),
        ("2026-01-01 22:34:05-04:30", AT_03_04_05),
        ("2026-01-02 03:04:05", AT_03_04_05),
        (" 2026-01-02 03:04 ", AT_03_04_05 - 5),
        ("03:04:05", AT_03_04_05),
        ("03:04", AT_03_04_05 - 5),
        ("23:59", 1_767_398_340),
    ],
)
def test_a_time_stands_for_its_whole_second(text: str, seconds: int) -> None:
    assert moment(text, NOW_NS) == Moment(seconds * NS, (seconds + 1) * NS - 1)


@pytest.mark.parametrize(
    ("fraction", "first_ns", "last_ns"),
    [
        ("2", 200_000_000, 299_999_999),
        ("678", 678_000_000, 678_999_999),
        ("678901", 678_901_000, 678_901_999),
        ("678901234", 678_901_234, 678_901_234),
    ],
)
def test_a_fraction_stands_for_all_that_it_names(
    fraction: str, first_ns: int, last_ns: int
) -> None:
    found = moment(f"2026-01-02T03:04:05.{fraction}Z", NOW_NS)
    assert found == Moment(AT_03_04_05 * NS + first_ns, AT_03_04_05 * NS + last_ns)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2 hours ago", 7200),
        ("1 hour ago", 3600),
        ("5m ago", 300),
        ("5 min ago", 300),
        ("90s ago", 90),
        ("1.5h ago", 5400),
        ("3 days ago", 259_200),
        ("0s ago", 0),
    ],
)
def test_a_time_ago_counts_from_now(text: str, seconds: int) -> None:
    assert moment(text, NOW_NS) == Moment(NOW_NS - seconds * NS, NOW_NS - seconds * NS)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "3:4",
        "24:00",
        "03:14Z",
        "2026-02-30T00:00:00Z",
        "2026-01-02",
        "5 fortnights ago",
        "ago",
        "-5m ago",
        "5m",
        "seq:5",
        "2026-01-02T03:04:05.1234567890Z",
        "2026-01-02T03:04:05+99:00",
        "0000-01-01T00:00:00Z",
    ],
)
def test_what_names_no_time_is_refused(text: str) -> None:
    assert moment(text, NOW_NS) is None


@pytest.mark.parametrize(
    "text",
    [
        "0001-01-01T00:00:00Z",
        "9999-12-31T23:59:59Z",
        "99999999999 days ago",
        "0001-01-01T00:00:00+23:00",
    ],
)
def test_times_beyond_what_a_journal_holds_are_its_ends(text: str) -> None:
    found = moment(text, NOW_NS)
    assert found is not None
    assert {abs(found.first_ns) >> 62, abs(found.last_ns) >> 62} <= {1, 2}
