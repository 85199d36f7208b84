"""Every process of the machine at one moment, by session and by mark: one look serves all runs that ask.

What ends or executes a program while it is looked at shows no mark, and may have left children where we had
looked before: of such a look nobody can say that something is not there.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable

import msgspec

from registry.host import proc

LOOKS_MAX = 3
"""How often the processes are gone through while some of them end meanwhile."""


class Processes(msgspec.Struct):
    """Those that live, by pid, session and mark; `unsure` are the pids of which it cannot be told."""

    by_pid: dict[int, proc.Stat] = {}
    by_session: dict[int, list[proc.Stat]] = {}
    by_mark: dict[str, list[proc.Stat]] = {}
    unsure: set[int] = set()

    def of(
        self, session: int | None, mark: str, known: Iterable[tuple[int, int]]
    ) -> list[proc.Stat]:
        """Who is in a session, has a mark, or is one of those known by pid and start time."""
        found = list(self.by_mark.get(mark, ()))
        if session is not None:
            found += self.by_session.get(session, ())
        for pid, start_time in known:
            stat = self.by_pid.get(pid)
            if stat is not None and stat.start_time == start_time:
                found.append(stat)
        return list({stat.pid: stat for stat in found}.values())


def look(led: Collection[int]) -> Processes:
    """Go through all of them; who is in a session of `led` is not asked for his mark. Raises OSError."""
    found = Processes()
    for pid in proc.all_pids():
        stat = proc.stat(pid)
        if stat is None or not stat.is_alive:
            found.unsure.add(pid)
            continue
        found.by_pid[pid] = stat
        if stat.session > 0:  # 0 is any session outside of our pid namespace, and the kernel's own
            found.by_session.setdefault(stat.session, []).append(stat)
        if stat.session in led or stat.is_kernels:
            continue
        mark = proc.mark(pid)
        if mark is None:
            found.unsure.add(pid)
        elif mark:
            found.by_mark.setdefault(mark, []).append(stat)
    return found


def look_again(found: Processes, led: Collection[int]) -> Processes:
    """Until what cannot be told stays the same. Raises OSError."""
    unsettled: set[int] = set()
    for _ in range(LOOKS_MAX - 1):
        if found.unsure <= unsettled:
            break
        unsettled |= found.unsure
        os.sched_yield()
        found = look(led)
    return found
