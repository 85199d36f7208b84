"""The measurements as a command: `tools/dev bench [NAME...]`. Ourselves beside the floor and each rival, in one run."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import signal
import sqlite3
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

import msgspec  # noqa: E402 - found only by the line before

from registry.host.capabilities import become_subreaper  # noqa: E402
from tests.bench import (  # noqa: E402
    boot,
    figures,
    growth,
    idle,
    journal,
    processes,
    queries,
    report,
    restart,
    storm,
)
from tests.bench.life import FULL, QUICK, TINY, Bench, NotHere, Scale  # noqa: E402
from tests.bench.rivals import RIVALS  # noqa: E402

BENCHMARKS: dict[str, Callable[[Bench], None]] = {
    "restart": restart.run,
    "boot": boot.run,
    "idle": idle.idle,
    "memory": idle.memory,
    "queries": queries.run,
    "journal": journal.run,
    "storm": storm.run,
    "growth": growth.run,
}
SCALES = {"full": FULL, "quick": QUICK, "tiny": TINY}


def main() -> int:
    """Measure; 0; 1 where that failed, or with --strict where a bound is not kept; 130 after Ctrl-C or SIGTERM.

    What measures is a child of ours: however that ends, we are there to leave neither process nor file.
    """
    options = _options()
    earlier = _earlier(options.compare)
    if (shown := _earlier(options.show)) is not None:
        return _told_of(shown, options, earlier)
    folder = Path(tempfile.mkdtemp(prefix="bn-"))
    become_subreaper()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os._exit(_status_of(options, folder, earlier))
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal tells the child, too
        signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        processes.end_all(os.getpid())
        shutil.rmtree(folder, ignore_errors=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/dev bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="an earlier --json")
    parser.add_argument(
        "--show", type=Path, metavar="FILE", help="measure nothing: an earlier --json"
    )
    parser.add_argument(
        "--results", type=Path, metavar="FILE",
        help="write the tables there, too, below what is written by hand (tests/bench/RESULTS.md)",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="less of everything; ratios only")
    parser.add_argument("--scale", choices=SCALES, help=argparse.SUPPRESS)
    parser.add_argument(
        "--rivals", default=",".join(RIVALS), help=f"default: {','.join(RIVALS)}; '' for none"
    )
    parser.add_argument("--strict", action="store_true", help="exit 1 where a bound is not kept")
    parser.add_argument(
        "--plot", type=Path, metavar="PNG", default=ROOT / "var" / "bench" / "growth.png",
        help="of growth (default: var/bench/growth.png)",
    )  # fmt: skip
    options = parser.parse_args()
    if wrong := [name for name in options.names if name not in BENCHMARKS]:
        parser.error(f"unknown benchmark {wrong[0]!r}; there are {', '.join(BENCHMARKS)}")
    options.rivals = [name for name in options.rivals.split(",") if name]
    if wrong := [name for name in options.rivals if name not in RIVALS]:
        parser.error(f"unknown rival {wrong[0]!r}; there are {', '.join(RIVALS)}")
    return options


def _earlier(path: Path | None) -> figures.Results | None:
    if path is None:
        return None
    try:
        return figures.read(path)
    except (OSError, msgspec.MsgspecError) as error:
        sys.exit(f"{path} is no earlier result: {error}")


def _status_of(options: argparse.Namespace, folder: Path, earlier: figures.Results | None) -> int:
    """What the measuring process exits with."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        become_subreaper()
        return _measure(options, folder, earlier)
    except KeyboardInterrupt:
        return 130
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _measure(options: argparse.Namespace, folder: Path, earlier: figures.Results | None) -> int:
    scale: Scale = SCALES[options.scale or ("quick" if options.quick else "full")]
    bench = Bench(folder, scale, options.rivals, _told)
    bench.results.machine = _machine(scale)
    failed: list[str] = []
    status = 0
    for name in options.names or BENCHMARKS:
        try:
            BENCHMARKS[name](bench)
        except KeyboardInterrupt:
            status = 130
            bench.results.skip(f"{name} and what follows: interrupted")
        except NotHere as why:
            bench.results.skip(f"{name}: {why}")
        except Exception as error:  # the others shall not be lost for it
            traceback.print_exc()
            bench.results.skip(f"{name}: failed, so nothing is known of it: {error!r}")
            failed.append(name)
        if options.json is not None:
            figures.write(bench.results, options.json)
        if status:
            break
    judged = _told_of(bench.results, options, earlier)
    return status or (1 if failed else judged)


def _told_of(
    results: figures.Results, options: argparse.Namespace, earlier: figures.Results | None
) -> int:
    """Print, write and draw; 1 with --strict where a bound is not kept, else 0."""
    print(report.tables(results))
    if earlier is not None:
        print(f"\n{report.comparison(figures.compare(earlier, results))}")
    if options.results is not None:
        before = options.results.read_text() if options.results.exists() else ""
        options.results.write_text(report.page(results, before))
    if results.points:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        drawn = report.plot(results.points, options.plot)
        print(f"\n{options.plot if drawn else report.WITHOUT_PLOT}")
    is_broken = any(each.verdict == figures.NOT for each in results.bounds)
    return 1 if options.strict and is_broken else 0


def _machine(scale: Scale) -> dict[str, str]:
    """Where the figures come from, and how busy it was: they mean nothing elsewhere."""
    processor = memory = "unknown"
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line for line in lines if line.startswith("model name")).split(": ")[1]
        total = next(
            line
            for line in Path("/proc/meminfo").read_text().splitlines()
            if line.startswith("MemTotal")
        )
        memory = f"{int(total.split()[1]) / 2**20:.0f} GiB"
    return {
        "machine": f"{len(os.sched_getaffinity(0))} cores of {processor}, {memory}",
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_version()}, SQLite {sqlite3.sqlite_version}",
        "load before": f"{os.getloadavg()[0]:.2f}",
        "scale": next(name for name, each in SCALES.items() if each is scale),
    }


def _told(text: str) -> None:
    print(f"... {text}", file=sys.stderr, flush=True)


def _interrupt(_number: int, _frame: object) -> NoReturn:
    """Once: another Ctrl-C would leave behind what is being cleaned up."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
