"""A run's process and its group: who belongs to it, and signals that reach nobody else.

A run's members are its session, which holds its group, and whatever carries its mark; where it has a cgroup, who is
in that and nobody else. Law 1: a group's number counts only while somebody verified holds it; once nobody does, it
may be anybody's, and only the mark counts. Law 2: what cannot be looked at just now is not "empty".
Law 3: the main process is whose end is the run's, the leader is who began its session: mostly the same, until
a service names another main process.

As a subreaper, the orphans of a service whose main process ended are children of our first thread, which has hardly
any others (`spawning.py`): a short list. For the others, and where there is no such list, every process is looked at,
once in a turn of the loop: the pidfds that tell it of ends have done so before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from registry.host import adoption, cgroup, proc, processes
from registry.host.capabilities import PIDFD_SIGNAL_PROCESS_GROUP, Capabilities
from registry.host.launch import Launch
from registry.host.processes import LOOKS_MAX, Processes

GATE_LOOKS_MAX = 100
"""How often an adopted process is looked at that seems to stand at its gate: it is about to leave it."""

_log = logging.getLogger(__name__)


class Process(msgspec.Struct, eq=False):
    """One run's process and what is left of its group. Mutable, and only the runner's.

    `pid` is its main process, None where nobody knows it any more; `start_time` and `pidfd` are that one's.
    `leader` is the number of its session and group, the main process's own unless that has changed.
    `opened`: the gate has let it through. `known` are its members when last looked at, by pid and start time.
    """

    service: str
    run: int
    pid: int | None
    mark: str
    start_time: int | None
    is_child: bool
    pidfd: int | None = None
    gate: int | None = None
    opened: bool = False
    gate_looks: int = GATE_LOOKS_MAX
    steps: frozenset[str] = frozenset()
    leader: int | None = None
    leader_pidfd: int | None = None
    leader_gone: bool = False
    main_gone: bool = False
    cgroup: Path | None = None
    holds_number: bool = True
    known: frozenset[tuple[int, int]] = frozenset()
    stopping: bool = False
    signal_number: int = signal.SIGTERM
    killed: frozenset[int | None] = frozenset()
    kill_timer: asyncio.TimerHandle | None = None
    kill_due_ns: int | None = None
    recheck: asyncio.TimerHandle | None = None
    awaited: int | None = None

    def __post_init__(self) -> None:
        if self.leader is None:
            self.leader = self.pid

    @property
    def is_led_by_main(self) -> bool:
        """Whether its main process began its session."""
        return self.pid == self.leader

    @property
    def is_told_by_signal(self) -> bool:
        """Whether SIGCHLD surely tells of its main process's end; else its pidfd does."""
        return self.is_child and self.is_led_by_main

    def close(self) -> None:
        """Let go of it, whatever it does: at its gate it ends. A cgroup that nobody lives in is removed."""
        for timer in (self.kill_timer, self.recheck):
            if timer is not None:
                timer.cancel()
        for descriptor in (self.gate, self.pidfd, self.leader_pidfd):
            if descriptor is not None:
                os.close(descriptor)
        self.gate = self.pidfd = self.leader_pidfd = None
        if self.cgroup is not None:
            cgroup.remove(self.cgroup)

    @property
    def group_pidfd(self) -> int | None:
        """The pidfd of its leader, through which its group can be signalled."""
        return self.pidfd if self.is_led_by_main else self.leader_pidfd


class Groups:
    """Looks at the groups of runs and signals them. `led` are the leaders that live: each has its own session."""

    def __init__(self, capabilities: Capabilities) -> None:
        self._capabilities = capabilities
        self._cgroups = _cgroups() if capabilities.cgroup else None
        self.led: set[int] = set()
        self._strangers: set[int] = set()
        self._sessions: dict[int, int] = {}
        """Of those that the processes of runs have left to us, as far as they were looked at."""
        self._own: set[int] | None = None
        self._looks_once = False
        self._seen: Processes | None = None
        self._is_settled = False

    # --- by what a run is known -------------------------------------------------------------------

    def stat(self, pid: int) -> proc.Stat | None:
        """What /proc says of a process; None where it cannot tell."""
        if not self._capabilities.proc:
            return None
        try:
            return proc.stat(pid)
        except OSError:
            return None

    def refuse_limits(self, launch: Launch) -> None:
        """Raises LaunchError for limits that take a cgroup where none can be had."""
        if launch.has_cgroup_limits and self._cgroups is None:
            raise cgroup.refuse(launch)

    def confine(self, process: Process, launch: Launch) -> None:
        """Into a cgroup, where the launch has limits that only one can keep. Raises LaunchError."""
        if launch.has_cgroup_limits and self._cgroups is not None:
            assert process.pid is not None
            process.cgroup = self._cgroups.make(process.mark, launch)
            cgroup.enter(process.cgroup, process.pid)

    def find_cgroup(self, process: Process) -> None:
        """The cgroup of an earlier daemon's run."""
        if self._cgroups is None:
            return
        with contextlib.suppress(OSError):
            path = self._cgroups.of(process.mark)
            if path and (process.main_gone or process.pid in cgroup.members(path)):
                process.cgroup = path

    def tidy(self, journal_id: str) -> None:
        """Remove what ended runs have left of their cgroups."""
        if self._cgroups is not None:
            self._cgroups.tidy(journal_id)

    def find_leader(self, process: Process) -> None:
        """Who began the session of a living main process: it cannot have come into a stranger's."""
        assert process.pid is not None
        stat = self.stat(process.pid)
        if stat is None or stat.session in (0, process.pid):
            return
        process.leader = stat.session
        leader = self.stat(stat.session)
        is_there = leader is not None and leader.is_alive
        # another's child ends without our seeing it: then the number counts by its members only
        process.leader_gone = not (is_there and process.is_child)
        if is_there and self._capabilities.pidfd:
            with contextlib.suppress(OSError):
                process.leader_pidfd = os.pidfd_open(stat.session)

    # --- who belongs to a run ---------------------------------------------------------------------

    def members(self, process: Process) -> list[proc.Stat]:
        """The living processes of a run, its main one included; none without /proc. Raises OSError."""
        if not self._capabilities.proc:
            return []
        members = self._search(process) if process.cgroup is None else _within(process.cgroup)
        process.known = frozenset((each.pid, each.start_time) for each in members)
        if process.leader_gone:
            process.holds_number = any(each.session == process.leader for each in members)
        return members

    def _search(self, process: Process) -> list[proc.Stat]:
        has_orphans = self._capabilities.subreaper and self._capabilities.proc_children
        if process.is_child and has_orphans:
            return self._search_descendants(process)
        session = process.leader if process.holds_number else None
        members: list[proc.Stat] = []
        for is_settled in (False, True):
            found = self._everyone(is_settled=is_settled)
            members = members or found.of(session, process.mark, process.known)
        return members

    def _everyone(self, *, is_settled: bool) -> Processes:
        """All processes, looked at once in a turn of the loop for all the runs that it is about."""
        if self._seen is None:
            self._seen, self._is_settled = processes.look(self.led), False
            asyncio.get_running_loop().call_soon(self.look_anew)
        if is_settled and not self._is_settled:
            self._seen, self._is_settled = processes.look_again(self._seen, self.led), True
        return self._seen

    def look_anew(self) -> None:
        """What was seen may be out of date: somebody has ended since."""
        self._seen = None

    @contextlib.contextmanager
    def looking_once(self) -> Iterator[None]:
        """Within this our own children are listed once, for all the ends that were taken before. Nothing is spawned."""
        self._looks_once = True
        try:
            yield
        finally:
            self._looks_once, self._own = False, None

    def reaped(self, pid: int) -> None:
        """A child's number may be another's from now on."""
        self.led.discard(pid)
        self._strangers.discard(pid)
        self._sessions.pop(pid, None)

    def _search_descendants(self, process: Process) -> list[proc.Stat]:
        unsettled: set[int] = set()
        members: list[proc.Stat] = []
        for _look in range(LOOKS_MAX):
            members, unsure = self._look_at_descendants(process)
            # what ended while it was looked at may have left children where we had looked before
            if members or unsure <= unsettled:
                break
            unsettled |= unsure
            self._own = None
            os.sched_yield()
        return members

    def _look_at_descendants(self, process: Process) -> tuple[list[proc.Stat], set[int]]:
        members: list[proc.Stat] = []
        unsure: set[int] = set()
        waiting = self._own_children(process.leader)
        while waiting:
            pid = waiting.pop()
            stat = proc.stat(pid)
            if stat is not None and self._is_anothers(process, stat):
                if stat.parent == os.getpid():
                    self._sessions[pid] = stat.session
                continue  # and so is all that it began
            if stat is None or not stat.is_alive:
                unsure.add(pid)
                continue
            belongs = self._belongs(process, stat)
            if belongs is None:
                unsure.add(pid)
            elif belongs:
                members.append(stat)
            waiting.extend(proc.children(pid))
        return members, unsure

    def _is_anothers(self, process: Process, stat: proc.Stat) -> bool:
        """Whether it is in the session of another leader that lives: nobody can have joined that from elsewhere."""
        is_led = stat.session in self.led and stat.session != process.leader
        return is_led and (stat.pid, stat.start_time) not in process.known

    def _belongs(self, process: Process, stat: proc.Stat) -> bool | None:
        """None where it cannot be told: in the midst of an exec or of its end a process has no mark."""
        if process.holds_number and stat.session == process.leader:
            return True
        if (stat.pid, stat.start_time) in process.known:
            return True
        if stat.session in self.led or stat.is_kernels:
            return False
        mark = proc.mark(stat.pid)
        if mark == "" and stat.session == stat.pid and stat.parent == os.getpid():
            self._strangers.add(
                stat.pid
            )  # the keeper: a session that is no run's, until it is reaped
        return None if mark is None else mark == process.mark

    def _is_left(self, pid: int, leader: int | None) -> bool:
        """Whether a child of ours was seen to be another leader's, who lives: a fork bomb may leave us thousands."""
        session = self._sessions.get(pid)
        return session is not None and session != leader and session in self.led

    def _own_children(self, leader: int | None) -> list[int]:
        """A leader that lives; orphans left to us, unless they lead, or are known to be another's or nobody's."""
        own = self._own if self._own is not None else proc.own_children()
        self._own = own if self._looks_once else None
        waiting = [
            pid for pid in own - self.led - self._strangers if not self._is_left(pid, leader)
        ]
        if leader is not None and leader in self.led:
            waiting.append(leader)
        return waiting

    def look(self, process: Process) -> tuple[list[proc.Stat], bool]:
        """The members that can be seen, and whether nothing is left of the run."""
        try:
            members = self.members(process)
            if process.cgroup is not None:
                return members, not cgroup.is_populated(process.cgroup)
        except OSError:
            return [], False
        if self._capabilities.proc and process.leader is not None:
            return members, not members
        return members, not members and not self._group_exists(process)

    def _group_exists(self, process: Process) -> bool:
        """Whether the kernel knows a group of this number; zombies count."""
        pidfd = process.group_pidfd
        try:
            if pidfd is not None and self._capabilities.pidfd_group:
                signal.pidfd_send_signal(pidfd, 0, None, PIDFD_SIGNAL_PROCESS_GROUP)
            elif process.leader is not None:
                os.killpg(process.leader, 0)
            else:
                return False
        except ProcessLookupError:
            return False
        except PermissionError:  # somebody else's; on macOS: only zombies
            return sys.platform != "darwin"
        return True

    def still_holds_number(self, process: Process) -> bool:
        """Whether the group of a leader that ended unseen has members: then its number is still its own."""
        return (
            process.group_pidfd is not None
            and self._capabilities.pidfd_group
            and self._group_exists(process)
        )

    def main_apart(self, process: Process) -> list[proc.Stat]:
        """A main process that may be in another group than the run's."""
        if process.is_led_by_main or process.main_gone or process.pid is None:
            return []
        stat = self.stat(process.pid)
        return [stat] if stat is not None and stat.start_time == process.start_time else []

    def memory(self, process: Process) -> int | None:
        """Bytes that a run's processes hold together; None where nobody can tell.

        Without a cgroup: what each has alone, and once the most that any of them shares. What forked processes
        still have in common of their own memory counts for each of them.
        """
        if process.cgroup is not None and (held := cgroup.memory(process.cgroup)) is not None:
            return held
        try:
            sizes = [size for pid in self._family(process) if (size := proc.memory(pid))]
        except OSError:
            return None
        return sum(own for own, _ in sizes) + max(shared for _, shared in sizes) if sizes else None

    def _family(self, process: Process) -> list[int]:
        """The pids of a run, for a look that is taken often: of an adopted one only its main process and that one's
        descendants, as the others would take a look at every process of the machine.
        """
        if process.is_child or process.pid is None or not self._capabilities.proc_children:
            return [each.pid for each in self.look(process)[0]]
        if not adoption.lives(process.pid, process.start_time):
            return []
        found, waiting = [], [process.pid]
        while waiting:
            found.append(pid := waiting.pop())
            waiting.extend(proc.children(pid))
        return found

    # --- signals ----------------------------------------------------------------------------------

    def signal(
        self, process: Process, members: Iterable[proc.Stat], *, again: bool = False
    ) -> None:
        """Send a run's signal to its group, and to those of `members` that left it.

        `again`: the group has had it, and may take a second one for a command to hurry; SIGKILL cannot be mistaken.
        """
        if process.signal_number == signal.SIGKILL:
            process.killed |= {member.pid for member in members}
            if process.cgroup is not None and cgroup.kill(process.cgroup):
                return
        if process.signal_number == signal.SIGKILL or not again:
            self.signal_group(process, process.signal_number)
        self.signal_strays(process, members, process.signal_number)

    def signal_main(self, process: Process, number: int) -> None:
        """Signal a run's main process and nobody else. Raises ProcessLookupError; OSError where it is refused."""
        if process.pid is None or process.main_gone:
            raise ProcessLookupError
        if process.pidfd is not None:
            signal.pidfd_send_signal(process.pidfd, number)
        elif (process.is_child and process.is_led_by_main) or adoption.lives(
            process.pid, process.start_time
        ):
            os.kill(process.pid, number)
        else:
            raise ProcessLookupError

    def signal_group(self, process: Process, number: int) -> None:
        """Signal whoever is in the group, where that is certainly the run's."""
        pidfd = process.group_pidfd
        try:
            if pidfd is not None and self._capabilities.pidfd_group:
                signal.pidfd_send_signal(pidfd, number, None, PIDFD_SIGNAL_PROCESS_GROUP)
            elif process.leader is not None and self._is_ours(process):
                os.killpg(process.leader, number)
        except ProcessLookupError:
            pass  # it is empty: that is what we want
        except PermissionError as error:
            _log.warning(
                "cannot signal %s (PID %s): %s", process.service, process.leader, error.strerror
            )

    def _is_ours(self, process: Process) -> bool:
        """Without a pidfd for the group, only a verified member says whose number it is."""
        if process.is_child and (not process.leader_gone or not self._capabilities.proc):
            return True
        try:
            if not process.leader_gone and process.pid is not None:
                return adoption.lives(process.pid, process.start_time)
            self.members(process)
        except OSError:
            return False
        return process.holds_number

    def signal_strays(self, process: Process, members: Iterable[proc.Stat], number: int) -> None:
        """Signal those members that left the group."""
        for member in members:
            if member.group != process.leader:
                self._signal_member(member, number)

    def _signal_member(self, member: proc.Stat, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._capabilities.pidfd:
                pidfd = adoption.pidfd_of(member.pid, member.start_time)
                if pidfd is not None:
                    try:
                        signal.pidfd_send_signal(pidfd, number)
                    finally:
                        os.close(pidfd)
            elif adoption.lives(member.pid, member.start_time):
                os.kill(member.pid, number)


def _cgroups() -> cgroup.Hierarchy | None:
    own = cgroup.find()
    if own is None:
        return None
    hierarchy = cgroup.Hierarchy(own)
    hierarchy.settle()
    return hierarchy


def _within(path: Path) -> list[proc.Stat]:
    """The living members of a cgroup. Raises OSError."""
    found = (proc.stat(pid) for pid in sorted(cgroup.members(path)))
    return [stat for stat in found if stat is not None and stat.is_alive]


def owner_of(pid: int, leaders: dict[int, str]) -> str | None:
    """The service that a process belongs to: by session, group, or a living ancestor that leads one.

    Raises OSError.
    """
    for _generation in range(64):
        stat = proc.stat(pid)
        if stat is None:
            return None
        for key in (stat.session, stat.group, stat.pid):
            if key in leaders:
                return leaders[key]
        pid = stat.parent
    return None
