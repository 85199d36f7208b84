"""The process runner: spawns behind the gate, watches, stops groups, reaps. Its facts go to `observe`.

One place reaps: on SIGCHLD every ended child is looked at, handed to its owner, and reaped. Processes
that are not our children (adopted ones) are watched by their pidfd.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from registry.core.definition import Logs
from registry.core.events import Usage
from registry.core.inputs import GroupGone, Observation, ProcessExited, ProcessLost
from registry.host import gate, proc
from registry.host.adoption import exit_of_stranger
from registry.host.capabilities import PIDFD_SIGNAL_PROCESS_GROUP, Capabilities, find_setpriv
from registry.host.clock import NS, mono_ns
from registry.host.launch import Launch
from registry.host.members import Census, owner_of
from registry.logs.target import LogTarget

RECHECK_S = 0.05
"""How often a group is looked at that nobody tells us about: the one poll, bounded by the stop."""

_log = logging.getLogger(__name__)


class OutputKeeper(Protocol):
    """What the runner needs of the keeper."""

    def keep(
        self, service: str, run: int, output_fd: int | None, pidfd: int | None, log: LogTarget | None
    ) -> None:
        """Let the keeper hold these descriptors, too, from now on. Raises OSError."""

    def release(self, service: str, run: int) -> None:
        """The run's end is in the journal."""


class Process(msgspec.Struct):
    """One run's process and what is left of its group. Mutable, and only the runner's."""

    service: str
    run: int
    pid: int
    mark: str
    start_time: int | None
    is_child: bool
    pidfd: int | None = None
    gate: int | None = None
    leader_gone: bool = False
    stopping: bool = False
    signal_number: int = signal.SIGTERM
    killed: int = 0
    kill_timer: asyncio.TimerHandle | None = None
    recheck: asyncio.TimerHandle | None = None


class Spawned(msgspec.Struct, frozen=True):
    """A process that waits at the gate."""

    pid: int
    start_time: int | None


class Runner:
    """All processes of the registry. `observe(service, observation)` takes what it sees."""

    def __init__(
        self,
        folder: Path,
        capabilities: Capabilities,
        keeper: OutputKeeper,
        observe: Callable[[str, Observation], None],
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._shell = gate.prepare(folder)
        self._capabilities = capabilities
        self._setpriv = find_setpriv() if capabilities.setpriv else None
        self._census = Census(capabilities)
        self._keeper = keeper
        self._observe = observe
        self._processes: dict[tuple[str, int], Process] = {}
        self._leaders: dict[int, Process] = {}
        self._commands: dict[int, asyncio.Future[int]] = {}
        self._kept: dict[str, set[int]] = {}

    # --- starting ---------------------------------------------------------------------------------

    def listen(self) -> None:
        """Begin to reap; needs the running loop."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.reap)

    def close(self) -> None:
        """Let go of everything without touching a process: gates close, so what waits there ends."""
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)
        for process in list(self._processes.values()):
            self._forget(process)

    def spawn(self, service: str, run: int, mark: str, launch: Launch, logs: Logs | None) -> Spawned:
        """Spawn a run behind its gate. Raises LaunchError."""
        if logs is None:
            gated, output = gate.spawn(self._shell, launch, self._setpriv, os.devnull), None
        else:
            gated, output = self._spawn_with_output(launch)
        stat = proc.stat(gated.pid) if self._capabilities.proc else None
        process = Process(
            service=service,
            run=run,
            pid=gated.pid,
            mark=mark,
            start_time=stat.start_time if stat else None,
            is_child=True,
            pidfd=self._pidfd(gated.pid),
            gate=gated.gate,
        )
        self._add(process)
        self._hand_to_keeper(process, output, logs)
        return Spawned(gated.pid, process.start_time)

    def _hand_to_keeper(self, process: Process, output: int | None, logs: Logs | None) -> None:
        target = LogTarget.of(logs, process.service) if logs is not None else None
        try:
            if output is not None or process.pidfd is not None:
                self._keeper.keep(process.service, process.run, output, process.pidfd, target)
                self._kept.setdefault(process.service, set()).add(process.run)
        except OSError as error:
            self._forget(process)  # the gate closes: nothing has happened
            raise gate.refusal(error) from None
        finally:
            if output is not None:
                os.close(output)

    def _spawn_with_output(self, launch: Launch) -> tuple[gate.Gated, int]:
        """Both ends of a FIFO that has no name any more: the child holds it open for both directions."""
        path = self._folder / f"output.{os.getpid()}"
        try:
            path.unlink(missing_ok=True)
            os.mkfifo(path, 0o600)
            if launch.uid is not None:
                os.chown(path, launch.uid, -1)
            output = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise gate.refusal(error) from None
        try:
            return gate.spawn(self._shell, launch, self._setpriv, str(path)), output
        except BaseException:
            os.close(output)
            raise
        finally:
            path.unlink(missing_ok=True)

    def _pidfd(self, pid: int) -> int | None:
        if not self._capabilities.pidfd:
            return None
        try:
            return os.pidfd_open(pid)
        except OSError:
            return None

    def _add(self, process: Process) -> None:
        self._processes[process.service, process.run] = process
        self._leaders[process.pid] = process

    def open_gate(self, service: str, run: int) -> bool:
        """Let a run through to its program; True when that happened now."""
        process = self._processes.get((service, run))
        if process is None or process.gate is None:
            return False
        held, process.gate = process.gate, None
        return gate.open_gate(held)

    def adopt(self, process: Process) -> None:
        """Watch a process that an earlier daemon spawned."""
        self._add(process)
        if process.leader_gone:
            return
        if process.pidfd is not None:
            asyncio.get_running_loop().add_reader(process.pidfd, self._stranger_ended, process)
        else:
            self._recheck_later(process)

    def adopt_leftovers(self, process: Process) -> bool:
        """Take up what is left of a run whose main process is gone; True when nothing is."""
        process.leader_gone = True
        if self._group_is_empty(process):
            if process.pidfd is not None:
                os.close(process.pidfd)
            return True
        self._add(process)
        return False

    # --- stopping ---------------------------------------------------------------------------------

    def stop(self, service: str, run: int, signal_name: str, kill_due_ns: int) -> None:
        """Ask a run's whole group to end: the signal now, SIGKILL at `kill_due_ns`. Once is enough."""
        process = self._processes.get((service, run))
        if process is None:
            self._observe(service, GroupGone(run=run))
            return
        if process.stopping:
            return
        process.stopping = True
        process.signal_number = signal.Signals[signal_name]
        if process.gate is not None:
            held, process.gate = process.gate, None
            os.close(held)
        else:
            self._signal(process, process.signal_number)
        delay_s = max(0.0, (kill_due_ns - mono_ns()) / NS)
        loop = asyncio.get_running_loop()
        process.kill_timer = loop.call_later(delay_s, self._kill, process)
        if process.leader_gone or not process.is_child:
            self._recheck_later(process)

    def hurry(self) -> None:
        """SIGKILL whatever is being stopped."""
        for process in list(self._processes.values()):
            if process.stopping:
                self._kill(process)

    def _kill(self, process: Process) -> None:
        members = self._members(process)
        process.killed += max(len(members), 0 if process.leader_gone else 1)
        self._signal(process, signal.SIGKILL)
        self._recheck_later(process)

    def _signal(self, process: Process, number: int) -> None:
        """Signal the group, then those of its members that left the group."""
        self._signal_group(process, number)
        if process.leader_gone:
            for member in self._members(process):
                if member.group != process.pid:
                    self._signal_member(member, number)

    def _signal_group(self, process: Process, number: int) -> None:
        try:
            if process.pidfd is not None and self._capabilities.pidfd_group:
                signal.pidfd_send_signal(process.pidfd, number, None, PIDFD_SIGNAL_PROCESS_GROUP)
            elif self._group_is_ours(process):
                os.killpg(process.pid, number)
        except ProcessLookupError:
            pass  # it is empty: that is what we want
        except PermissionError as error:
            _log.warning("cannot signal %s (PID %d): %s", process.service, process.pid, error.strerror)

    def _group_is_ours(self, process: Process) -> bool:
        """Without a pidfd for the group, only a verified member says whose number it is."""
        if process.is_child and not process.leader_gone:
            return True
        if not self._capabilities.proc:
            return process.is_child
        leader = proc.stat(process.pid)
        if leader is not None and leader.start_time == process.start_time and leader.is_alive:
            return True
        return any(
            member.group == process.pid and proc.mark(member.pid) == process.mark
            for member in self._members(process)
        )

    def _signal_member(self, member: proc.Stat, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if not self._capabilities.pidfd:
                os.kill(member.pid, number)
                return
            pidfd = os.pidfd_open(member.pid)
            try:
                now = proc.stat(member.pid)
                if now is not None and now.start_time == member.start_time:
                    signal.pidfd_send_signal(pidfd, number)
            finally:
                os.close(pidfd)

    def _members(self, process: Process) -> list[proc.Stat]:
        if not self._capabilities.proc:
            return []
        ours = (pid for pid, other in self._leaders.items() if not other.leader_gone)
        return self._census.members(
            process.pid, process.mark, child=process.is_child, ours=(*ours, *self._commands)
        )

    def _group_is_empty(self, process: Process) -> bool:
        if self._capabilities.proc:
            return not self._members(process)
        try:
            os.killpg(process.pid, 0)
        except OSError:
            return True
        return False

    # --- ends -------------------------------------------------------------------------------------

    def reap(self) -> None:
        """Take every ended child, whoever it belongs to; then look at the groups that are being stopped."""
        while (ended := self._next_ended()) is not None:
            self._child_ended(*ended)
        for process in list(self._processes.values()):
            if process.leader_gone:
                self._check_group(process)

    def _next_ended(self) -> tuple[int, str | None, int, resource.struct_rusage] | None:
        """The next ended child, reaped: pid, comm while it was a zombie, status, usage."""
        try:
            comm = None
            if self._capabilities.waitid:
                options = os.WEXITED | os.WNOHANG | os.WNOWAIT
                info = os.waitid(os.P_ALL, 0, options)
                if info is None:
                    return None
                stat = proc.stat(info.si_pid) if self._capabilities.proc else None
                comm = stat.comm if stat else None
                pid, status, usage = os.wait4(info.si_pid, 0)
            else:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return None
        return (pid, comm, status, usage) if pid else None

    def _child_ended(
        self, pid: int, comm: str | None, status: int, usage: resource.struct_rusage
    ) -> None:
        code = os.waitstatus_to_exitcode(status)
        command = self._commands.pop(pid, None)
        if command is not None:
            if not command.done():
                command.set_result(code)
            return
        process = self._leaders.get(pid)
        if process is not None and process.is_child:
            self._leader_ended(process, code, comm=comm, usage=_usage(usage))

    def _stranger_ended(self, process: Process) -> None:
        assert process.pidfd is not None
        # a zombie keeps its pidfd readable: without this the loop would spin until somebody reaps it
        asyncio.get_running_loop().remove_reader(process.pidfd)
        code = exit_of_stranger(process.pid, process.start_time, process.pidfd, self._capabilities)
        self._leader_ended(process, code)

    def _leader_ended(
        self,
        process: Process,
        code: int | None,
        *,
        comm: str | None = None,
        usage: Usage | None = None,
    ) -> None:
        process.leader_gone = True
        empty = self._group_is_empty(process)
        self._observe(process.service, self._ended(process, code, comm, usage, group_empty=empty))
        if empty:
            self._forget(process)
        elif process.stopping:
            self._signal(process, process.signal_number)  # those that it had shielded
            self._recheck_later(process)

    def _ended(
        self, process: Process, code: int | None, comm: str | None, usage: Usage | None, *, group_empty: bool
    ) -> Observation:
        if code is None:
            return ProcessLost(run=process.run, group_empty=group_empty)
        exit_code = code if code >= 0 else None
        failure = gate.launch_failure(comm, exit_code) if process.is_child else None
        return ProcessExited(
            run=process.run,
            exit_code=exit_code,
            signal=-code if code < 0 else None,
            group_empty=group_empty,
            never_ran=process.is_child and gate.never_ran(comm, exit_code),
            launch_failure=failure[0] if failure else None,
            message=failure[1] if failure else None,
            usage=usage,
        )

    def _check_group(self, process: Process) -> None:
        if not process.leader_gone:
            self._check_leader(process)
        elif self._group_is_empty(process):
            self._forget(process)
            self._observe(process.service, GroupGone(run=process.run, killed=process.killed))
        elif process.stopping:
            self._recheck_later(process)

    def _check_leader(self, process: Process) -> None:
        """Only for adopted processes where there are no pidfds."""
        if process.is_child or process.pidfd is not None:
            return
        stat = proc.stat(process.pid)
        if stat is not None and stat.is_alive and stat.start_time == process.start_time:
            self._recheck_later(process)
        else:
            code = exit_of_stranger(process.pid, process.start_time, None, self._capabilities)
            self._leader_ended(process, code)

    def _recheck_later(self, process: Process) -> None:
        """Nobody tells us when processes end that are not our children: look again, in a bounded time."""
        if process.recheck is not None:
            process.recheck.cancel()
        loop = asyncio.get_running_loop()
        process.recheck = loop.call_later(RECHECK_S, self._check_group, process)

    def _forget(self, process: Process) -> None:
        for timer in (process.kill_timer, process.recheck):
            if timer is not None:
                timer.cancel()
        if process.gate is not None:
            os.close(process.gate)
        if process.pidfd is not None:
            asyncio.get_running_loop().remove_reader(process.pidfd)
            os.close(process.pidfd)
        process.gate = process.pidfd = None
        self._processes.pop((process.service, process.run), None)
        if self._leaders.get(process.pid) is process:
            del self._leaders[process.pid]

    # --- the rest ---------------------------------------------------------------------------------

    def kept(self, service: str, run: int) -> None:
        """The keeper holds this run since an earlier life of the registry."""
        self._kept.setdefault(service, set()).add(run)

    def release(self, service: str, up_to_run: int | None) -> None:
        """These runs' ends are in the journal: nobody has to remember how they ended."""
        kept = self._kept.get(service, set())
        for run in [run for run in kept if up_to_run is None or run <= up_to_run]:
            kept.discard(run)
            self._keeper.release(service, run)
        if not kept:
            self._kept.pop(service, None)

    def owner_of(self, pid: int) -> str | None:
        """The service whose processes `pid` is one of, or None."""
        return owner_of(pid, {leader: process.service for leader, process in self._leaders.items()})

    async def run_command(self, launch: Launch, timeout_s: float) -> int:
        """Run a command to its end as a service would run: its exit code, negative for a signal.

        Raises TimeoutError when it was killed, with its group, at the time limit; OSError or LaunchError
        when it could not be run.
        """
        gated = gate.spawn(self._shell, launch, self._setpriv, os.devnull)
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._commands[gated.pid] = ended
        gate.open_gate(gated.gate)
        try:
            async with asyncio.timeout(timeout_s):
                return await ended
        finally:
            # until it is reaped, which only we do, its number is nobody else's
            if gated.pid in self._commands:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(gated.pid, signal.SIGKILL)


def _usage(usage: resource.struct_rusage) -> Usage:
    # getrusage(2): ru_maxrss is in kilobytes on Linux, in bytes on macOS
    unit = 1 if sys.platform == "darwin" else 1024
    return Usage(round(usage.ru_utime, 6), round(usage.ru_stime, 6), usage.ru_maxrss * unit)
