"""One table of what this machine can do, and what is done instead where it cannot.

CIRCLEOSD_WITHOUT=name,name takes capabilities away: so that each fallback can be tried on any machine.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from registry.host import cgroup
from registry.host.child_signals import open_signalfd

PIDFD_SIGNAL_PROCESS_GROUP = 1 << 2  # linux/pidfd.h, Linux 6.9
PIDFD_GET_INFO = 0xC040FF0B  # _IOWR(0xFF, 11, struct pidfd_info of 64 bytes), linux/pidfd.h
PIDFD_INFO_EXIT = 8  # Linux 6.15
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


class Capabilities(msgspec.Struct, frozen=True):
    """What can be used. The words of FALLBACKS say what is done without."""

    proc: bool = True
    pidfd: bool = True
    pidfd_group: bool = True
    pidfd_exit: bool = True
    waitid: bool = True
    subreaper: bool = True
    proc_children: bool = True
    splice: bool = True
    setpriv: bool = True
    cgroup: bool = True
    native_gate: bool = True
    signalfd: bool = True


FALLBACKS: dict[str, tuple[str, str]] = {
    "proc": (
        "/proc: identity, members and comm of processes",
        "a group is asked by signal 0; nothing is adopted after the daemon's own death",
    ),
    "pidfd": (
        "pidfds (Linux 5.3): a process that cannot be mistaken",
        "pid and start time are compared before each signal; what is not our child is looked at every 50 ms",
    ),
    "pidfd_group": (
        "signals to a group through a pidfd (Linux 6.9)",
        "killpg, only while a verified member lives",
    ),
    "pidfd_exit": (
        "exit status of a process that is not our child (Linux 6.15)",
        "unknown, which counts as a failure, unless it is still a zombie",
    ),
    "waitid": (
        "waitid with WNOWAIT: look at a process before it is reaped",
        "reaped at once; a launch failure is known by its exit code alone",
    ),
    "subreaper": (
        "orphans of services become our children (Linux 3.4)",
        "leftovers are found by a scan of /proc",
    ),
    "proc_children": (
        "/proc/PID/task/TID/children",
        "leftovers are found by a scan of /proc",
    ),
    "splice": (
        "splice from pipe to log file: no line is ever only in memory",
        "read and write: a kill -9 of the keeper may lose or double what it held",
    ),
    "setpriv": (
        "setpriv (util-linux): user, groups and capabilities of a service",
        "user, group, groups, no_new_privs and capabilities are refused with a reason",
    ),
    "cgroup": (
        "a delegated cgroup v2 (Linux 5.14): limits of a run, its members and its end",
        "limits of memory, CPU and processes are refused with a reason;"
        " a run's processes are found by session and mark",
    ),
    "native_gate": (
        "a gate of machine code (Linux on x86-64, where the journal's folder may hold programs)",
        "services wait at a gate that is /bin/sh: 0.5 ms of CPU more a start",
    ),
    "signalfd": (
        "signalfd (Linux 2.6.22): whose end a signal tells of",
        "all children are looked at: 0.2 ms a restart among 1,000 services",
    ),
}


def detect(environment: Mapping[str, str]) -> Capabilities:
    """What this machine can do, less what CIRCLEOSD_WITHOUT takes away. ValueError: it names something else."""
    words = environment.get("CIRCLEOSD_WITHOUT", "").split(",")
    without = {word.strip() for word in words} - {""}
    if unknown := without - _PROBES.keys():
        raise ValueError(
            f"CIRCLEOSD_WITHOUT names no capability by '{min(unknown)}'; those are: {', '.join(_PROBES)}"
        )
    found = {name: name not in without and probe() for name, probe in _PROBES.items()}
    found["pidfd_group"] &= found["pidfd"]
    found["pidfd_exit"] &= found["pidfd"]
    found["proc_children"] &= found["proc"] and found["subreaper"]
    return Capabilities(**found)


def become_subreaper() -> bool:
    """Make orphaned descendants our children; False where the kernel cannot."""
    if sys.platform != "linux":
        return False
    result: int = ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    return result == 0


def _own_pidfd() -> int | None:
    try:
        return os.pidfd_open(os.getpid())
    except (AttributeError, OSError):
        return None


def _with_own_pidfd(attempt: Callable[[int], object]) -> bool:
    pidfd = _own_pidfd()
    if pidfd is None:
        return False
    try:
        attempt(pidfd)
    except OSError:
        return False
    finally:
        os.close(pidfd)
    return True


def _signals_group(pidfd: int) -> None:
    # we need not lead a group ourselves: "no such process" is the answer of a kernel that understood
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, 0, None, PIDFD_SIGNAL_PROCESS_GROUP)


def _knows_exit() -> bool:
    # a living process has no exit to tell, so the kernel's age has to answer
    return _with_own_pidfd(_asks_info) and _kernel_version() >= (6, 15)


def _asks_info(pidfd: int) -> None:
    request = bytearray(64)
    request[0] = PIDFD_INFO_EXIT
    fcntl.ioctl(pidfd, PIDFD_GET_INFO, request)


def _kernel_version() -> tuple[int, int]:
    major, minor, *_rest = os.uname().release.split(".")
    return int(major), int("".join(filter(str.isdigit, minor)) or 0)


def _has_signalfd() -> bool:
    try:
        os.close(open_signalfd())
    except (OSError, AttributeError):
        return False
    return True


def _finds_setpriv() -> bool:
    return find_setpriv() is not None


def find_setpriv() -> str | None:
    """Where setpriv is, or None."""
    places = ("/usr/bin/setpriv", "/bin/setpriv", "/usr/sbin/setpriv", "/sbin/setpriv")
    return next((place for place in places if os.access(place, os.X_OK)), None)


_PROBES: dict[str, Callable[[], bool]] = {
    "proc": lambda: Path("/proc/self/stat").exists(),
    "pidfd": lambda: _with_own_pidfd(lambda _pidfd: None),
    "pidfd_group": lambda: _with_own_pidfd(_signals_group),
    "pidfd_exit": _knows_exit,
    "waitid": lambda: hasattr(os, "waitid"),
    "subreaper": lambda: sys.platform == "linux",
    "proc_children": lambda: Path(f"/proc/self/task/{os.getpid()}/children").exists(),
    "splice": lambda: hasattr(os, "splice"),
    "setpriv": _finds_setpriv,
    # cgroup.kill is as old as that
    "cgroup": lambda: _kernel_version() >= (5, 14) and cgroup.find() is not None,
    "native_gate": lambda: sys.platform == "linux" and os.uname().machine == "x86_64",
    "signalfd": _has_signalfd,
}
