"""What every test may use, and what the whole run is held to: nothing left behind, no silent skip.

No process may outlive the run. With CI=true (set by .ci/run) a skip is a failure, except by the
marker `platform`, and so is a new name in /tmp; elsewhere /tmp is shared with whatever else runs
there, and its new names are nobody's in particular. Tests run side by side (pytest-xdist): each
process answers for its own children, the one that hands out the tests for /tmp.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

IN_CI = os.environ.get("CI") == "true"
ROOT = Path(__file__).parents[1]
MARK = "CIRCLEOSD_TEST_RUN"
GRACE_S = 1.0
TMP = Path("/tmp")

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

_short_dirs: list[str] = []
_BEFORE = pytest.StashKey[set[str]]()


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A folder with a path short enough for Unix sockets (whose limit is about 100 bytes)."""
    with tempfile.TemporaryDirectory(prefix="cr-", dir=TMP) as folder:
        _short_dirs.append(folder)
        yield Path(folder)


@pytest.fixture
def free_port() -> int:
    """A port of 127.0.0.1 at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """A test that silences the log, as worlds of the simulator do, silences it for itself alone."""
    log = logging.getLogger("registry")
    level = log.level
    yield
    log.setLevel(level)


@pytest.fixture(scope="session", autouse=True)
def _nothing_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    mark = os.environ[MARK] = uuid.uuid4().hex
    yield
    folders = (str(tmp_path_factory.getbasetemp()), *_short_dirs)
    left = [f"left running: {process}" for process in _left_running(mark, folders)]
    if left:
        pytest.fail("the tests of this run did not clean up\n" + "\n".join(left), pytrace=False)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Note what was in /tmp before."""
    if IN_CI and not _is_worker(session.config):
        session.config.stash[_BEFORE] = _names_in_tmp()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI the run has failed when it left something in /tmp."""
    before = session.config.stash.get(_BEFORE, None)
    left = sorted(_names_in_tmp() - before) if before is not None else []
    for name in left:
        print(f"\nleft in /tmp: {name}")
    if left:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in this hook, too
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process runs all tests that need the installed wheel, so that it is built once; it begins with them."""
    for item in items:
        if _needs_wheel(item):
            item.add_marker(pytest.mark.xdist_group("installed"))
    items.sort(key=lambda item: not _needs_wheel(item))


def _needs_wheel(item: pytest.Item) -> bool:
    return not {"wheel", "installed"}.isdisjoint(getattr(item, "fixturenames", ()))


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked for another platform."""
    for marker in item.iter_markers("platform"):
        if sys.platform != marker.args[0]:
            pytest.skip(f"only for {marker.args[0]}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a test that skips itself has failed."""
    report = yield
    expected = hasattr(report, "wasxfail") or item.get_closest_marker("platform")
    return report if expected else _forbid_skip(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """In CI a file that skips itself has failed."""
    return _forbid_skip((yield))


def _forbid_skip(report: Report) -> Report:
    if IN_CI and report.skipped:
        report.outcome, report.longrepr = (
            "failed",
            f"skipped, but CI skips nothing: {report.longrepr}",
        )
    return report


def _names_in_tmp() -> set[str]:
    """The names in /tmp that are this user's and not pytest's own."""
    names = set()
    for path in TMP.iterdir():
        try:
            if path.lstat().st_uid == os.getuid() and not path.name.startswith("pytest-of-"):
                names.add(path.name)
        except FileNotFoundError:
            continue
    return names


def _left_running(mark: str, folders: tuple[str, ...]) -> list[str]:
    """What is still running of this run's processes; each is given a moment to end, then killed."""
    if sys.platform != "linux":
        return []
    found = {int(path.name): _parent(path) for path in Path("/proc").glob("[0-9]*")}
    parents = {pid: parent for pid, parent in found.items() if parent is not None}
    ours = [pid for pid in parents if _is_ours(pid, parents, mark, folders)]
    return [description for pid in ours if (description := _kill_unless_it_ends(pid))]


def _parent(process: Path) -> int | None:
    """The parent's pid, from /proc/PID/stat; None when the process is dead."""
    try:
        stat = (process / "stat").read_text()
    except OSError:
        return None
    state, parent, *_ = stat[stat.rindex(")") + 1 :].split()
    return None if state in "ZX" else int(parent)


def _is_ours(pid: int, parents: dict[int, int], mark: str, folders: tuple[str, ...]) -> bool:
    """By descent; or, when its parent died, by the mark in its environment or by its folder."""
    ancestor = parents[pid]
    while ancestor not in (0, os.getpid()):
        ancestor = parents.get(ancestor, 0)
    if ancestor:
        return True
    try:
        marked = f"{MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
        return marked or os.readlink(f"/proc/{pid}/cwd").startswith(folders)
    except OSError:  # it has ended, or it is another user's
        return False


def _kill_unless_it_ends(pid: int) -> str | None:
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        ended = select.poll()
        ended.register(process, select.POLLIN)
        if ended.poll(GRACE_S * 1000):
            return None
        description = f"{pid} in {os.readlink(f'/proc/{pid}/cwd')}: {command}"
        signal.pidfd_send_signal(process, signal.SIGKILL)
    except (ProcessLookupError, FileNotFoundError):  # it ended meanwhile
        return None
    else:
        return description
    finally:
        os.close(process)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by way of the source distribution, so that this one is known to be whole."""
    folder = tmp_path_factory.mktemp("dist")
    _install(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment outside the checkout with nothing but the wheel and its dependencies."""
    folder = tmp_path_factory.mktemp("env")
    _install(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    _install(
        sys.executable, "-m", "pip", "--python", python, "install", "--quiet", wheel, cwd=folder
    )
    return folder


def _install(*command: object, cwd: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command],
        check=False,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
