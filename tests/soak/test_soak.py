"""The soak can fail, tells what it saw, and leaves nothing however it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from tests.crash.world import ROOT, wait_for
from tests.soak import report
from tests.soak.rules import JUDGED_FROM, Holding, Quiet, Verdict, judge, rules, slope
from tests.soak.sight import Key, Process, Sight, of_folder
from tests.soak.soak import Outcome

SERVICES = 200
EVERY_S = 40.0
MOMENTS = 20
STEADY_PROCESSES = 20


def holding(life: int, chance: Random, **changed: float) -> Holding:
    """What a healthy process holds: the same, but for what a busy machine adds."""
    return Holding(
        **{
            "life": life,
            "descriptors": 300,
            "pss_kib": 50_000 + chance.uniform(-400, 400),
            "threads": 8,
            "children": 1,
            "zombies": 0,
            "wakeups_s": 100 + chance.uniform(-10, 10),
            "cpu_ms_s": 50 + chance.uniform(-10, 10),
            **changed,
        }  # type: ignore[arg-type]
    )


def quiets(
    *,
    daemon: Callable[[int], dict[str, float]] = lambda _n: {},
    lives: int = 1,
    changed: dict[str, Callable[[int], float]] | None = None,
) -> list[Quiet]:
    """Moments of a run; `daemon` and `changed` tell what is otherwise in the moment of a number."""
    chance = Random(5)
    found = []
    for number in range(MOMENTS * lives):
        life = number // MOMENTS + 1
        values = {
            "at_s": number * EVERY_S,
            "reached_s": 4 + chance.uniform(-1, 1),
            "daemon": holding(life, chance, **daemon(number)),
            "keeper": holding(life, chance, pss_kib=8_000),
            "events": 1000 + 900 * number,
            "events_s": 0.0,
            "journal_bytes": 300 * (1000 + 900 * number),
            "wal_bytes": 4_000_000,
            "log_bytes": 50_000_000,
            "run_names": 80,
            "tmp_names": 0,
            "strays": 0,
        }
        values |= {name: value(number) for name, value in (changed or {}).items()}
        found.append(Quiet(**values))  # type: ignore[arg-type]
    return found


def broken(seen: list[Quiet]) -> list[str]:
    verdicts = [each for rule in rules(SERVICES, 100_000_000) for each in judge(rule, seen)]
    return [verdict.name for verdict in verdicts if not verdict.holds]


def test_what_is_flat_and_noisy_keeps_every_promise() -> None:
    assert broken(quiets(lives=3)) == []


@pytest.mark.parametrize(
    ("name", "leak"),
    [
        ("daemon descriptors", {"descriptors": lambda n: 300 + n // 4}),
        ("daemon PSS", {"pss_kib": lambda n: 50_000 + 250 * n}),
        ("daemon threads", {"threads": lambda n: 8 + n // 10}),
        ("daemon children", {"children": lambda n: 20 * n}),
        ("daemon zombies", {"zombies": lambda n: int(n == 7)}),
        ("daemon wakeups", {"wakeups_s": lambda n: 100 + 10 * n}),
        ("daemon CPU", {"cpu_ms_s": lambda n: 50 + 5 * n}),
    ],
)
def test_a_leak_of_the_daemon_is_found_and_nothing_else(
    name: str, leak: dict[str, Callable[[int], float]]
) -> None:
    def changed(number: int) -> dict[str, float]:
        return {field: of(number) for field, of in leak.items()}

    assert broken(quiets(daemon=changed)) == [name]


@pytest.mark.parametrize(
    ("name", "leak"),
    [
        ("journal", {"journal_bytes": lambda n: 300 * (1000 + 900 * n) + 20_000 * n * n}),
        ("write-ahead log", {"wal_bytes": lambda n: 40_000_000 * (n == 9)}),
        ("events", {"events_s": lambda n: 0.4 * n}),
        ("logs", {"log_bytes": lambda n: 6_000_000 * n}),
        ("names in the folder", {"run_names": lambda n: 80 + n}),
        ("names in /tmp", {"tmp_names": lambda n: n // 5}),
        ("strays", {"strays": lambda n: int(n == 3)}),
        ("quiet within", {"reached_s": lambda n: 4 + 3 * n}),
    ],
)
def test_what_grows_in_the_folder_is_found(
    name: str, leak: dict[str, Callable[[int], float]]
) -> None:
    assert broken(quiets(changed=leak)) == [name]


def test_a_leak_in_one_life_of_several_is_found_there() -> None:
    def second(number: int) -> dict[str, float]:
        return {"descriptors": 300 + max(0, number - MOMENTS) * (number < 2 * MOMENTS)}

    (rule,) = [each for each in rules(SERVICES, 1) if each.name == "daemon descriptors"]
    verdicts = judge(rule, quiets(daemon=second, lives=3))
    assert (verdicts[0].subject, verdicts[0].holds) == ("daemon 2", False)
    assert sum(not each.holds for each in verdicts) == 1


def test_warming_up_and_a_single_peak_are_no_leak() -> None:
    def warm(number: int) -> dict[str, float]:
        return {"pss_kib": 50_000 - 20_000 * (number < 2) + 9_000 * (number == 11)}

    assert broken(quiets(daemon=warm)) == []


def test_few_moments_are_judged_by_their_ceilings_only() -> None:
    def rising(number: int) -> dict[str, float]:
        return {"descriptors": 300 * (number + 1), "zombies": number}

    few = quiets(daemon=rising)[:JUDGED_FROM]
    (rule,) = [each for each in rules(SERVICES, 1) if each.name == "daemon descriptors"]
    assert [(each.slope_an_hour, each.holds) for each in judge(rule, few)] == [(None, True)]
    assert broken(few) == ["daemon zombies"]


def test_the_slope_is_not_moved_by_a_third_of_odd_points() -> None:
    points = [(float(x), 2.0 * x + (1000 if x % 3 == 0 else 0)) for x in range(30)]
    assert slope(points) == pytest.approx(2.0, abs=0.5)


def process(pid: int, switches: int) -> Process:
    return Process(Key(pid, 1), {"socket": 3, "pipe": 2}, 1000, 2000, 4, switches, 1.0, 2, 1)


def sight(at_s: float, daemon: Process | None) -> Sight:
    return Sight(at_s, 1, "load", daemon, None, 500, 100, int(at_s) * 10, 7, 8, 0, 9)


def test_the_plot_has_no_rate_between_two_processes_and_a_point_for_each_look() -> None:
    looks = [(0.0, 7, 0), (60.0, 7, 600), (120.0, 8, 0), (180.0, 8, 1200)]
    sights = [sight(at_s, process(pid, switches)) for at_s, pid, switches in looks]
    outcome = Outcome(1, SERVICES, "", sights=[*sights, sight(240.0, None)], quiets=quiets()[:2])
    shown = {panel.title: panel for panel in report.panels(outcome)}
    wakeups, descriptors = shown["Wakeups"], shown["Open descriptors"]
    assert wakeups.lines[0].points == [(1.0, 10.0), (3.0, 20.0)]
    assert descriptors.lines[0].points == [(float(minute), 5) for minute in range(4)]
    assert descriptors.dots[0].points == [(0.0, 300), (EVERY_S / 60, 300)]
    assert shown["Journal per event"].dots[0].points[0] == (0.0, 300.0)


def test_the_table_says_which_promise_is_broken() -> None:
    verdict = Verdict(
        "strays", "", "None is left.", "all", 9, 0, 1, 2, 3.5, "<= 0", "was 2, at most 0 allowed"
    )
    text = report.table([[verdict]], ["The journal is whole: no"])
    assert "BROKEN" in text
    assert "NOT SO: None is left. (all: was 2, at most 0 allowed)" in text
    assert "NOT SO: The journal is whole: no" in text


def test_without_matplotlib_there_is_no_plot_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    monkeypatch.delitem(sys.modules, "matplotlib.backends.backend_agg", raising=False)
    assert not report.plot(Outcome(1, SERVICES, ""), tmp_path / "soak.png")
    assert not (tmp_path / "soak.png").exists()


# --- the command ----------------------------------------------------------------------------------


@contextlib.contextmanager
def soaking(out: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """The command with the smallest fleet there is."""
    command = [sys.executable, str(ROOT / "tests" / "soak"), "--services", "1", "--out", str(out)]
    with subprocess.Popen([*command, *more], stdout=subprocess.PIPE, text=True) as soak:
        try:
            yield soak
        finally:
            soak.kill()


@pytest.mark.timeout(300)  # more than a soak waits for anything: it says itself what did not come
@pytest.mark.platform("linux")
def test_a_short_soak_keeps_every_promise_and_leaves_nothing(tmp_path: Path) -> None:
    with soaking(tmp_path, "--minutes", "0.1", "--json") as soak:
        text, _ = soak.communicate()
    found = json.loads(text)
    assert found["ill"] == []
    assert [each for each in found["verdicts"] if each["broken"]] == []
    assert soak.returncode == 0
    assert found["quiets"]
    assert {"daemon killed", "keeper killed", "upgrade"} <= {what for _, what in found["marks"]}
    assert sum(found["done"].values()) > 5
    assert found == json.loads((tmp_path / "soak.json").read_text())
    assert_nothing_is_left(Path(found["folder"]))


@pytest.mark.timeout(120)
@pytest.mark.platform("linux")
@pytest.mark.parametrize(
    ("signals", "status"),
    [([signal.SIGINT, signal.SIGINT], 130), ([signal.SIGKILL], -signal.SIGKILL)],
)
def test_a_soak_that_is_interrupted_leaves_nothing(
    tmp_path: Path, signals: list[signal.Signals], status: int
) -> None:
    with soaking(tmp_path) as soak:
        assert soak.stdout is not None
        folder = Path(soak.stdout.readline().split()[1].rstrip(","))
        wait_for(lambda: len(of_folder(folder)) > STEADY_PROCESSES, "services run")
        for number in signals:
            os.kill(soak.pid, number)
        assert soak.wait(30) == status
        assert_nothing_is_left(folder)


def assert_nothing_is_left(folder: Path) -> None:
    wait_for(lambda: not folder.exists(), "the folder is gone", 30)
    wait_for(lambda: not of_folder(folder), "every process is gone")
