"""Cgroups of runs (v2): limits of memory, CPU and processes, members that cannot hide, an end nobody escapes.

Law 1: nothing is touched but what lies below our own cgroup, and that only where it was delegated to us.
Law 2: no process is moved but a run's that waits at its gate, and once, at our own start, ourselves: a cgroup that
hands controllers down may hold no process (cgroups(7), "no internal processes"), so we go to OWN/registry.
Law 3: a run's cgroup is named by its mark, OWN/services/NAME.RUN.JOURNAL, so the next daemon finds it.

Only runs with such a limit have one: a process that changes its cgroup waits for the kernel's grace period
(0.7 ms in a stream of them, 9 to 11 ms alone), which a restart without limits shall not pay for.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from registry.core.definition import Limits
from registry.core.lifecycle import Reason
from registry.host.launch import Launch, LaunchError

REGISTRY = "registry"
SERVICES = "services"
PERIOD_US = 100_000
"""Of cpu.max: a run may use `cpu_max` times this much in each, cgroup-v2.rst."""

_CONTROLLERS = {"memory_max": "memory", "cpu_max": "cpu", "pids_max": "pids"}
_UNITS = (".service", ".scope", ".slice")
_PASSING = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC)

_log = logging.getLogger(__name__)


def find() -> Path | None:
    """The cgroup that is ours to divide; None where there is none, or it is somebody else's."""
    try:
        membership = Path("/proc/self/cgroup").read_bytes().decode(errors="surrogateescape")
        mounts = Path("/proc/self/mountinfo").read_bytes().decode(errors="surrogateescape")
    except OSError:
        return None
    own = own_path(membership, mounts)
    return own if own is not None and _is_writable(own) and _is_delegated(own) else None


def lacking(own: Path) -> list[str]:
    """The controllers that a limit may take and that a cgroup does not have."""
    return sorted({*_CONTROLLERS.values()} - _words(own / "cgroup.controllers"))


def in_words() -> str:
    """Which limits cannot be kept in our own cgroup; nothing where all can be, or it is not ours."""
    own = find()
    if own is None or not (names := lacking(own)):
        return ""
    return f"; {own} lacks {', '.join(names)}, so limits that take those are refused"


def impossible(limits: Limits) -> Iterator[LaunchError]:
    """The limits asked for that no cgroup of this machine can keep, whoever runs the registry."""
    if not (asked := _asked(limits)):
        return
    try:
        mounts = Path("/proc/self/mountinfo").read_bytes().decode(errors="surrogateescape")
    except OSError:
        mounts = ""
    mount = next((found for line in mounts.split("\n") if (found := _mount_of(line))), None)
    for key, controller in asked:
        if mount is None:
            why = "there is none here"
        elif controller in lacking(Path(mount[1])):
            why = f"{mount[1]} has no controller '{controller}'"
        else:
            continue
        error = refused(key, why)
        yield LaunchError(error.reason, error.message, "limits")


def own_path(membership: str, mounts: str) -> Path | None:
    """Our cgroup by the texts of /proc/self/cgroup and /proc/self/mountinfo, proc(5); a hybrid mount will do.

    Where we are in a cgroup `registry` already, by an earlier life or systemd's DelegateSubgroup, it is the one above.
    """
    path = next((line[3:] for line in membership.split("\n") if line.startswith("0::")), None)
    mount = next((found for line in mounts.split("\n") if (found := _mount_of(line))), None)
    if path is None or mount is None:
        return None
    root, point = mount
    if not Path(path).is_relative_to(root):
        return None
    below = Path(path).relative_to(root)
    if ".." in below.parts:
        return None
    own = Path(point) / below
    return own.parent if below.name == REGISTRY else own


def _mount_of(line: str) -> tuple[str, str] | None:
    """Root and mount point of a cgroup2 mount."""
    fields, _, rest = line.partition(" - ")
    if not rest.startswith("cgroup2 "):
        return None
    root, point = (_unescaped(field) for field in fields.split(" ")[3:5])
    return root, point


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _is_writable(own: Path) -> bool:
    files = (own, own / "cgroup.procs", own / "cgroup.subtree_control")
    return all(os.access(file, os.W_OK) for file in files)


def _is_delegated(own: Path) -> bool:
    """Systemd marks what it leaves alone (CGROUP_DELEGATION.md); its other units are its own."""
    if not own.name.endswith(_UNITS):
        return True
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(own, name) == b"1":
                return True
    return False


class Hierarchy:
    """What lies below `own`, the cgroup that is ours."""

    def __init__(self, own: Path) -> None:
        self._own = own
        self._services = own / SERVICES

    def settle(self) -> None:
        """Leave `own` where controllers are to be handed down: before there is a keeper, which goes with us.

        Not where nothing has to be left: at the true root, or without controllers. Not in a service of systemd:
        it could not start us there again, so DelegateSubgroup has to.
        """
        is_root = not (self._own / "cgroup.type").exists()
        available = _words(self._own / "cgroup.controllers") & {*_CONTROLLERS.values()}
        if is_root or not available or self._is_service():
            return
        try:
            (self._own / REGISTRY).mkdir(exist_ok=True)
            _write(self._own / REGISTRY / "cgroup.procs", os.getpid())
        except OSError as error:
            _log.warning("cannot move to the cgroup %s/registry: %s", self._own, error.strerror)

    def _is_service(self) -> bool:
        """Whether systemd starts us in `own` itself."""
        is_below = (self._own / REGISTRY / "cgroup.procs").exists() and (
            os.getpid() in _pids(self._own / REGISTRY / "cgroup.procs")
        )
        return self._own.name.endswith(".service") and not is_below

    def make(self, mark: str, launch: Launch) -> Path:
        """A run's new cgroup, with its limits. Raises LaunchError."""
        for key, controller in _asked(launch):
            self._hand_down(controller, key)
        path = self._path(mark)
        try:
            self._services.mkdir(exist_ok=True)
            if path.exists():  # an earlier daemon's, whose spawn was undone
                remove(path)
            path.mkdir()
        except OSError as error:
            raise _refusal("limits", f"no cgroup could be made: {error.strerror}", error) from None
        try:
            _limit(path, launch)
        except LaunchError:
            remove(path)
            raise
        return path

    def _hand_down(self, controller: str, key: str) -> None:
        if controller not in _words(self._own / "cgroup.controllers"):
            raise refused(key, f"{self._own} has no controller '{controller}'")
        try:
            self._services.mkdir(exist_ok=True)
            for folder in (self._own, self._services):
                if controller not in _words(folder / "cgroup.subtree_control"):
                    if folder == self._own and self._is_service():
                        raise refused(
                            key, "systemd has put the registry into the unit's own cgroup"
                        )
                    _write(folder / "cgroup.subtree_control", f"+{controller}")
        except OSError as error:
            why = f"'{controller}' cannot be handed down from {self._own}: {error.strerror}"
            if error.errno == errno.EBUSY:
                why += " (other processes live in that cgroup itself)"
            raise refused(key, why) from None

    def _path(self, mark: str) -> Path:
        journal, service, run = mark.split("/")
        return self._services / quote(f"{service}.{run}.{journal}", safe="@")

    def of(self, mark: str) -> Path | None:
        """The cgroup of an earlier daemon's run, where somebody lives in it."""
        path = self._path(mark)
        return path if is_populated(path) else None

    def tidy(self, journal_id: str) -> None:
        """Remove what is left of this journal's runs: but not where somebody lives."""
        suffix = quote(f".{journal_id}", safe="@")
        with contextlib.suppress(OSError):
            for entry in list(os.scandir(self._services)):
                if entry.is_dir() and entry.name.endswith(suffix):
                    remove(Path(entry.path))


def refused(key: str, why: str) -> LaunchError:
    """A limit that cannot be kept here."""
    message = (
        f"{key} takes a delegated cgroup v2, but {why}; under systemd set Delegate=yes and "
        f"DelegateSubgroup={REGISTRY} (systemd 254), in a container make /sys/fs/cgroup writable, or leave {key} out"
    )
    return LaunchError(Reason.NOT_PERMITTED, message, key)


def refuse(launch: Launch) -> LaunchError:
    """For a launch with limits, where there is no cgroup of ours."""
    key, controller = _asked(launch)[0]
    return refused(key, f"the registry has none, so no controller '{controller}'")


def _asked(launch: Launch | Limits) -> list[tuple[str, str]]:
    """The limits asked for by a launch, or in a definition: key and controller."""
    return [
        (f"limits.{field}", controller)
        for field, controller in _CONTROLLERS.items()
        if getattr(launch, field) is not None
    ]


def _limit(path: Path, launch: Launch) -> None:
    quota = None if launch.cpu_max is None else f"{round(launch.cpu_max * PERIOD_US)} {PERIOD_US}"
    values = {"memory_max": launch.memory_max, "cpu_max": quota, "pids_max": launch.pids_max}
    for field, value in values.items():
        if value is None:
            continue
        try:
            _write(path / field.replace("_", "."), value)
        except OSError as error:
            key = f"limits.{field}"
            raise _refusal(key, f"{key} cannot be set: {error.strerror}", error) from None


def enter(path: Path, pid: int) -> None:
    """Move a process that waits at its gate. Raises LaunchError."""
    try:
        _write(path / "cgroup.procs", pid)
    except ProcessLookupError:
        pass  # its end will be seen
    except OSError as error:
        message = f"its process cannot be moved to the cgroup {path}: {error.strerror}"
        raise _refusal("limits", message, error) from None


def _refusal(key: str, message: str, error: OSError) -> LaunchError:
    passes = error.errno in (*_PASSING, errno.EBUSY, errno.EEXIST)
    return LaunchError(Reason.NO_RESOURCES if passes else Reason.NOT_PERMITTED, message, key)


def is_populated(path: Path) -> bool:
    """Whether a living process is in the cgroup or below it. Raises OSError but where there is no such cgroup."""
    try:
        return "populated 1" in (path / "cgroup.events").read_text().splitlines()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return False
        raise


def members(path: Path) -> set[int]:
    """The pids of a cgroup and of those below it. Raises OSError."""
    files = [Path(folder) / "cgroup.procs" for folder, _folders, _files in os.walk(path)]
    return {pid for file in files for pid in _pids(file)}


def kill(path: Path) -> bool:
    """SIGKILL to all of them at once, whatever they fork meanwhile; False where that cannot be had."""
    try:
        _write(path / "cgroup.kill", 1)
    except OSError:
        return False
    return True


def remove(path: Path) -> None:
    """Remove a cgroup and those below it, where nobody lives in any."""
    with contextlib.suppress(OSError):
        if is_populated(path):
            return
    for folder, _folders, _files in os.walk(path, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def memory(path: Path) -> int | None:
    """Bytes that are charged to a cgroup; None without the memory controller."""
    try:
        return int((path / "memory.current").read_text())
    except (OSError, ValueError):
        return None


def _pids(file: Path) -> set[int]:
    """A threaded cgroup has none of its own; 0 stands for what is in another pid namespace."""
    try:
        return {int(word) for word in file.read_text().split()} - {0}
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
            return set()
        raise


def _words(file: Path) -> set[str]:
    try:
        return set(file.read_text().split())
    except OSError:
        return set()


def _write(file: Path, value: object) -> None:
    file.write_text(str(value))
