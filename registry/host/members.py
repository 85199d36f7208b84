"""Which processes belong to a run: its group, its session, and whatever carries its mark.

As a subreaper, the orphans of a service whose main process ended are our own children: a short list. For
the others, and where there is no such list, every process is looked at.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from registry.host import proc
from registry.host.capabilities import Capabilities


class Census:
    """Counts the living members of runs. `ours` are children that are known to belong to no leftover."""

    def __init__(self, capabilities: Capabilities) -> None:
        self._capabilities = capabilities

    def members(self, leader: int, mark: str, *, child: bool, ours: Iterable[int]) -> list[proc.Stat]:
        """The living processes of the run that `leader` led, itself included; zombies do not count."""
        if not self._capabilities.proc:
            return []
        pids = self._orphans(set(ours)) if child and self._has_orphans else proc.all_pids()
        found = (proc.stat(pid) for pid in pids)
        return [
            stat
            for stat in found
            if stat is not None and stat.is_alive and _belongs(stat, leader, mark)
        ]

    @property
    def _has_orphans(self) -> bool:
        return self._capabilities.subreaper and self._capabilities.proc_children

    def _orphans(self, ours: set[int]) -> Iterator[int]:
        waiting = [pid for pid in proc.children(os.getpid()) if pid not in ours]
        while waiting:
            pid = waiting.pop()
            yield pid
            waiting.extend(proc.children(pid))


def _belongs(stat: proc.Stat, leader: int, mark: str) -> bool:
    return stat.session == leader or stat.group == leader or proc.mark(stat.pid) == mark


def owner_of(pid: int, leaders: dict[int, str]) -> str | None:
    """The service that a process belongs to: by session, group, or a living ancestor that leads one."""
    for _generation in range(64):
        stat = proc.stat(pid)
        if stat is None:
            return None
        for key in (stat.session, stat.group, stat.pid):
            if key in leaders:
                return leaders[key]
        pid = stat.parent
    return None
