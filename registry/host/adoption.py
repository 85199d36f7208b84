"""After the supervisor's own death: which runs still live, how the others ended. Never a stranger.

A run is the same process when its pidfd says so (the keeper held one), or when boot, pid namespace, pid
and start time are those of the journal. What cannot be verified is neither adopted nor signalled.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import struct
from typing import NamedTuple

from registry.host import proc
from registry.host.capabilities import PIDFD_GET_INFO, PIDFD_INFO_EXIT, Capabilities

# struct pidfd_info of linux/pidfd.h, 64 bytes: mask, cgroup id, eleven ids, exit code
_INFO = struct.Struct("=QQ11Ii")


def has_ended(pidfd: int) -> bool:
    """Whether the process behind a pidfd is gone (pidfd_open(2): it is readable then)."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def lives(pid: int, start_time: int | None) -> bool:
    """Whether the process with this pid and start time is there and no zombie. Raises OSError."""
    stat = proc.stat(pid)
    return stat is not None and stat.is_alive and stat.start_time == start_time


def pidfd_of(pid: int, start_time: int | None) -> int | None:
    """A pidfd of the living process with this pid and start time; None where there is none such."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        # opened first, compared afterwards: so it cannot be a later process with the same number
        is_it = lives(pid, start_time)
    except OSError:
        is_it = False
    if not is_it:
        os.close(pidfd)
        return None
    return pidfd


def is_of(pidfd: int, pid: int) -> bool:
    """Whether a pidfd may be of the process with this pid: nobody knows that once it is reaped.

    The line is `Pid:` in /proc/self/fdinfo (proc_pid_fdinfo(5)); -1 stands for a process that is reaped.
    """
    try:
        with open(f"/proc/self/fdinfo/{pidfd}") as info:
            numbers = [line.split()[1] for line in info if line.startswith("Pid:")]
    except OSError:
        return True
    return not numbers or numbers[0] in (str(pid), "-1")


def exit_of_stranger(
    pid: int, start_time: int | None, pidfd: int | None, capabilities: Capabilities
) -> int | None:
    """How a process ended that is not our child: its exit code, negative for a signal; None if unknown."""
    try:
        stat = proc.stat(pid)
    except OSError:
        stat = None
    if stat is not None and not stat.is_alive and stat.start_time == start_time:
        return os.waitstatus_to_exitcode(stat.wait_status)
    if pidfd is not None and capabilities.pidfd_exit:
        return _reaped_exit(pidfd)
    return None


def _reaped_exit(pidfd: int) -> int | None:
    """What the kernel kept for those who held a pidfd while the process was reaped (Linux 6.15)."""
    request = bytearray(_INFO.pack(PIDFD_INFO_EXIT, *[0] * 13))
    try:
        fcntl.ioctl(pidfd, PIDFD_GET_INFO, request)
    except OSError:
        return None
    mask, *_ids, status = _INFO.unpack(request)
    return os.waitstatus_to_exitcode(status) if mask & PIDFD_INFO_EXIT else None


_RUN = re.compile("[0-9]{1,18}")
"""The number of a run, as a journal holds it: a process may write into its environment what it likes."""
COMMAND = "check"
"""What a mark ends with, after the run's, where a process is a check's command and no part of the run."""


class Survey(NamedTuple):
    """The living processes with a journal's marks: of each run its leader, or the oldest that is left, before the
    others; and commands of checks."""

    runs: dict[tuple[str, int], list[proc.Stat]]
    commands: list[proc.Stat]


def survey(journal_id: str) -> Survey:
    """Look at every process for a mark of this journal. One pass over /proc, at recovery only."""
    found = Survey({}, [])
    for pid in proc.all_pids():
        try:
            mark, stat = proc.mark(pid), proc.stat(pid)
        except OSError:
            continue
        if mark is not None and stat is not None and stat.is_alive:
            _enter(found, mark.split("/"), journal_id, stat)
    for members in found.runs.values():
        members.sort(key=_rank)
    return found


def _enter(found: Survey, words: list[str], journal_id: str, stat: proc.Stat) -> None:
    match words:
        case [journal, _service, _run, last] if journal == journal_id and last == COMMAND:
            found.commands.append(stat)
        case [journal, service, run] if journal == journal_id and _RUN.fullmatch(run):
            found.runs.setdefault((service, int(run)), []).append(stat)


def _rank(stat: proc.Stat) -> tuple[bool, int, int]:
    """The least of a run is its leader: helpers that lead sessions of their own came later."""
    return not leads(stat), stat.start_time, stat.pid


def leads(stat: proc.Stat) -> bool:
    """Whether a process leads its session; others are members of a run that somebody leads, or has led."""
    return stat.session == stat.pid


def kill_left(stat: proc.Stat) -> None:
    """End what a dead registry left and nobody is to supervise; whoever has its number by now is spared."""
    with contextlib.suppress(OSError):
        if lives(stat.pid, stat.start_time):
            os.kill(stat.pid, signal.SIGKILL)
