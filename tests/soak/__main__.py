"""The soak as a command: `tools/dev soak --minutes M`. A real registry under load; what ought to be flat is judged."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from tests.soak import report  # noqa: E402 - found only by the line before
from tests.soak.rules import Verdict, judge, rules  # noqa: E402
from tests.soak.soak import Outcome, Soak  # noqa: E402
from tests.soak.world import EXTRAS, LOG_OF_A_SERVICE_MAX, TMP, Fleet  # noqa: E402

GUARD_S = 30.0


def main() -> int:
    """Soak, judge, report; 1 where a promise is broken, 130 after Ctrl-C or SIGTERM, with a report of what was seen."""
    options = _options()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="sk-", dir="/tmp"))
    os.environ["TMPDIR"] = str(folder / TMP)
    tempfile.tempdir = str(folder)  # our own copies of the journal are not the registry's leavings
    guard = _guard(folder)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    tell = _mute if options.json else _told
    soak = None
    status = 0
    try:
        tell(f"in {folder}, for {options.minutes:g} minutes, seed {options.seed}")
        soak = Soak(Fleet(folder, options.services), options.seed, tell)
        asyncio.run(_soaking(soak, options.minutes * 60))
    except (KeyboardInterrupt, asyncio.CancelledError):
        status = 130
    finally:
        _clean_up(guard)
    if soak is None or not soak.outcome.sights:
        return status
    broken = _report(soak.outcome, out, is_json=options.json)
    return status or broken


async def _soaking(soak: Soak, total_s: float) -> None:
    """Soak; the first Ctrl-C or SIGTERM ends it, and what follows that one is done."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lambda: task.cancelling() or task.cancel())
    await soak.run(total_s)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/dev soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (default: 30)")
    parser.add_argument("--services", type=int, default=200, help="how many (default: 200)")
    parser.add_argument("--seed", type=int, default=1, help="of all chance (default: 1)")
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "var" / "soak",
        help="the folder for soak.json and soak.png (default: var/soak)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    return parser.parse_args()


def _report(outcome: Outcome, out: Path, *, is_json: bool) -> int:
    logs_max = (outcome.services + EXTRAS) * LOG_OF_A_SERVICE_MAX
    verdicts: list[list[Verdict]] = []
    if outcome.quiets:
        verdicts = [judge(rule, outcome.quiets) for rule in rules(outcome.services, logs_max)]
    else:
        outcome.ill.append("There are quiet moments: there was none")
    text = report.as_json(outcome, verdicts)
    (out / "soak.json").write_bytes(text)
    print(text.decode() if is_json else report.table(verdicts, outcome.ill))
    told = sys.stderr if is_json else sys.stdout
    if report.plot(outcome, out / "soak.png"):
        print(f"{out / 'soak.png'}, {out / 'soak.json'}", file=told)
    else:
        print(report.WITHOUT_PLOT, file=told)
    if not is_json:
        print(", ".join(f"{name} {count}" for name, count in sorted(outcome.done.items())))
    is_broken = any(not each.holds for of_lives in verdicts for each in of_lives)
    return 1 if is_broken or outcome.ill else 0


def _guard(folder: Path) -> subprocess.Popen[bytes]:
    """Whoever cleans up when we end, in a session of its own that no Ctrl-C reaches."""
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("guard.py")), str(folder)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def _clean_up(guard: subprocess.Popen[bytes]) -> None:
    """Leave no process and no file; another Ctrl-C would leave behind what is being cleaned up."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    assert guard.stdin is not None
    guard.stdin.close()
    guard.wait(GUARD_S)


def _interrupt(_number: int, _frame: object) -> NoReturn:
    """Once: what follows the first one is done."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _told(text: str) -> None:
    print(text, flush=True)


def _mute(_text: str) -> None:
    return


if __name__ == "__main__":
    sys.exit(main())
