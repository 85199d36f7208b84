"""The process runner: spawns behind the gate, watches, stops groups, reaps. Its facts go to `observe`.

One place reaps: on SIGCHLD every ended child is looked at, reaped, and told to its owner. Processes that
are not our children (adopted ones, leftovers of a run) are watched by their pidfd. A run is forgotten
before its last observation is handed over, so that `observe` may call back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import msgspec

from registry.core.definition import Logs
from registry.core.events import Usage
from registry.core.inputs import GateOpened, GroupGone, Observation, ProcessExited, ProcessLost
from registry.host import adoption, gate, proc
from registry.host.capabilities import Capabilities, find_setpriv
from registry.host.clock import NS, mono_ns
from registry.host.launch import Launch
from registry.host.members import Groups, Process, owner_of
from registry.logs.target import LogTarget

RECHECK_S = 0.05
"""How often is looked at what nobody tells us about: where a pidfd cannot be had, or says too little."""
REAP_MAX = 256
"""How many ended children are taken at once; then others have their turn."""


_log = logging.getLogger(__name__)


class OutputKeeper(Protocol):
    """What the runner needs of the keeper."""

    def keep(
        self,
        service: str,
        run: int,
        output_fd: int | None,
        pidfd: int | None,
        log: LogTarget | None,
    ) -> None:
        """Let the keeper hold these descriptors, too, from now on. Raises OSError."""

    def release(self, service: str, run: int) -> None:
        """The run's end is in the journal."""


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
        self._groups = Groups(capabilities)
        self._keeper = keeper
        self._observe = observe
        self._processes: dict[tuple[str, int], Process] = {}
        self._leaders: dict[int, Process] = {}
        self._commands: dict[int, asyncio.Future[int]] = {}
        self._kept: dict[str, set[int]] = {}
        self._in_a_hurry = False

    # --- starting ---------------------------------------------------------------------------------

    def listen(self) -> None:
        """Begin to reap: after `adopt`, so that nobody's end is taken before it was looked at."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.reap)
        self.reap()

    def close(self) -> None:
        """Let go of everything without touching a process: gates close, so what waits there ends."""
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)
        for process in list(self._processes.values()):
            self._forget(process)

    def spawn(
        self, service: str, run: int, mark: str, launch: Launch, logs: Logs | None
    ) -> Spawned:
        """Spawn a run behind its gate. Raises LaunchError."""
        gated, output = self._spawn_gated(launch, has_output=logs is not None)
        process = Process(
            service=service,
            run=run,
            pid=gated.pid,
            mark=mark,
            start_time=None,
            is_child=True,
            gate=gated.gate,
            steps=gated.steps,
        )
        self._add(process)
        try:
            self._identify(process)
            self._hand_to_keeper(process, output, logs)
        except OSError as error:
            self._forget(process)  # the gate closes: nothing has happened
            raise gate.refusal(error) from None
        finally:
            if output is not None:
                os.close(output)
        return Spawned(gated.pid, process.start_time)

    def _spawn_gated(self, launch: Launch, *, has_output: bool) -> tuple[gate.Gated, int | None]:
        """The process, and our end of a FIFO without a name; it holds that open for both directions."""
        if not has_output:
            return gate.spawn(self._shell, launch, self._setpriv, os.devnull), None
        path = self._folder / f"output.{os.getpid()}"
        try:
            output = _make_fifo(path, launch.uid)
            try:
                return gate.spawn(self._shell, launch, self._setpriv, str(path)), output
            except BaseException:
                os.close(output)
                raise
        except OSError as error:
            raise gate.refusal(error) from None
        finally:
            path.unlink(missing_ok=True)

    def _identify(self, process: Process) -> None:
        """Note what the process is known by when we are gone. Raises OSError."""
        assert process.pid is not None
        if self._capabilities.proc and (stat := proc.stat(process.pid)):
            process.start_time = stat.start_time
        if self._capabilities.pidfd:
            process.pidfd = os.pidfd_open(process.pid)

    def _hand_to_keeper(self, process: Process, output: int | None, logs: Logs | None) -> None:
        target = LogTarget.of(logs, process.service) if logs is not None else None
        if output is not None or process.pidfd is not None:
            self._keeper.keep(process.service, process.run, output, process.pidfd, target)
            self._kept.setdefault(process.service, set()).add(process.run)

    def _add(self, process: Process) -> None:
        self._processes[process.service, process.run] = process
        if process.pid is None or process.leader_gone:
            return
        self._leaders[process.pid] = process
        self._groups.led.add(process.pid)

    def open_gate(self, service: str, run: int) -> bool:
        """Let a run through to its program; True when that happened now."""
        process = self._processes.get((service, run))
        if process is None or process.gate is None:
            return False
        held, process.gate = process.gate, None
        process.opened = gate.open_gate(held)
        return process.opened

    def adopt(self, process: Process, logs: Logs | None) -> None:
        """Watch a process that an earlier daemon spawned."""
        self._add(process)
        if process.run not in self._kept.get(process.service, ()):
            self._keep_anew(process, logs)
        if process.pidfd is not None and not process.is_child:
            asyncio.get_running_loop().add_reader(process.pidfd, self._stranger_ended, process)
        if process.pidfd is None or not process.opened:
            self._recheck_later(process)

    def _keep_anew(self, process: Process, logs: Logs | None) -> None:
        """No keeper lived on either: what the run wrote since waits in its FIFO, which it holds open itself."""
        assert process.pid is not None
        output = self._reopen_output(process.pid) if logs is not None else None
        try:
            self._hand_to_keeper(process, output, logs)
        except OSError as error:
            _log.warning(
                "%s: its output cannot be taken up again: %s", process.service, error.strerror
            )
        finally:
            if output is not None:
                os.close(output)

    def _reopen_output(self, pid: int) -> int | None:
        """The reading end of the FIFO that we once made for a run, by its descriptors; None where it left it."""
        ours = re.compile(rf"{re.escape(str(self._folder.absolute()))}/output\.\d+ \(deleted\)")
        for number in (1, 2):
            path = f"/proc/{pid}/fd/{number}"
            with contextlib.suppress(OSError):
                if ours.fullmatch(os.readlink(path)):
                    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        return None

    def adopt_leftovers(self, process: Process) -> bool:
        """Take up what is left of a run whose main process is gone; True when nothing is."""
        process.leader_gone = True
        process.holds_number = self._groups.still_holds_number(process)
        _members, is_empty = self._groups.look(process)
        if is_empty:
            self._forget(process)
        else:
            self._add(process)
        return is_empty

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
        delay_s = 0.0 if self._in_a_hurry else max(0.0, (kill_due_ns - mono_ns()) / NS)
        loop = asyncio.get_running_loop()
        process.kill_timer = loop.call_later(delay_s, self._kill, process)
        if process.gate is not None:
            held, process.gate = process.gate, None
            os.close(held)
        elif process.leader_gone:
            members, _is_empty = self._groups.look(process)
            self._signal(process, members)
            self._check_group(process)
        else:  # whom its leader shields, it shall end itself
            self._signal(process, ())

    def hurry(self) -> None:
        """SIGKILL whatever is being stopped, now and from now on."""
        self._in_a_hurry = True
        for process in list(self._processes.values()):
            if process.stopping:
                self._kill(process)

    def _kill(self, process: Process) -> None:
        process.signal_number = signal.SIGKILL
        members, _is_empty = self._groups.look(process)
        if not process.leader_gone:
            process.killed.add(process.pid)
        self._signal(process, members)

    def _signal(self, process: Process, members: Iterable[proc.Stat]) -> None:
        """Signal the group, and those of `members` that left it."""
        if process.signal_number == signal.SIGKILL:
            process.killed.update(member.pid for member in members)
        self._groups.signal_group(process, process.signal_number)
        self._groups.signal_strays(process, members, process.signal_number)

    # --- ends -------------------------------------------------------------------------------------

    def reap(self) -> None:
        """Take every ended child, whoever it belongs to; then look at what is left of ended runs."""
        for _child in range(REAP_MAX):
            child = self._next_ended()
            if child is None:
                break
            self._child_ended(*child)
        else:
            asyncio.get_running_loop().call_soon(self.reap)
        for process in list(self._processes.values()):
            if process.leader_gone:
                self._check_group(process)

    def _next_ended(self) -> tuple[int, str | None, int, resource.struct_rusage] | None:
        """The next ended child, reaped: pid, comm while it was a zombie, status, usage."""
        try:
            comm = None
            if self._capabilities.waitid:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if info is None:
                    return None
                comm = self._comm(info.si_pid)
                pid, status, usage = os.wait4(info.si_pid, 0)
            else:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return None
        return (pid, comm, status, usage) if pid else None

    def _comm(self, pid: int) -> str | None:
        if not self._capabilities.proc:
            return None
        try:
            stat = proc.stat(pid)
        except OSError:
            return None
        return stat.comm if stat else None

    def _child_ended(
        self, pid: int, comm: str | None, status: int, usage: resource.struct_rusage
    ) -> None:
        code = os.waitstatus_to_exitcode(status)
        command = self._commands.pop(pid, None)
        if command is not None:
            self._groups.led.discard(pid)
            if not command.done():
                command.set_result(code)
            return
        process = self._leaders.get(pid)
        if process is not None and process.is_child:
            self._leader_ended(process, code, comm=comm, usage=_usage(usage))

    def _stranger_ended(self, process: Process) -> None:
        if process.pidfd is not None:
            # a zombie keeps its pidfd readable: without this the loop would spin until somebody reaps it
            asyncio.get_running_loop().remove_reader(process.pidfd)
        assert process.pid is not None
        code = adoption.exit_of_stranger(
            process.pid, process.start_time, process.pidfd, self._capabilities
        )
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
        self._forget_leader(process)
        members, is_empty = self._groups.look(process)
        if is_empty:
            self._forget(process)
        elif process.stopping:
            self._signal_shielded(process, members)
            self._await_one(process, members)
        self._observe(
            process.service, ended(process, code, group_empty=is_empty, comm=comm, usage=usage)
        )

    def _signal_shielded(self, process: Process, members: list[proc.Stat]) -> None:
        """The group has had the signal already, and may take a second one for a command to hurry."""
        if process.signal_number == signal.SIGKILL:
            self._signal(process, members)
        else:
            self._groups.signal_strays(process, members, process.signal_number)

    def _check_group(self, process: Process) -> None:
        """The leader is gone: is the rest?"""
        members, is_empty = self._groups.look(process)
        if is_empty:
            self._forget(process)
            self._observe(process.service, GroupGone(run=process.run, killed=len(process.killed)))
        elif process.stopping:
            if process.signal_number == signal.SIGKILL:  # some were born since
                self._signal(process, members)
            self._await_one(process, members)

    def _await_one(self, process: Process, members: list[proc.Stat]) -> None:
        """While one of them lives there is no need to look; when it ends, the next is awaited."""
        if process.awaited is not None:
            return
        if self._capabilities.pidfd:
            pidfds = (adoption.pidfd_of(member.pid, member.start_time) for member in members)
            process.awaited = next((pidfd for pidfd in pidfds if pidfd is not None), None)
        if process.awaited is None:
            self._recheck_later(process)
        else:
            loop = asyncio.get_running_loop()
            loop.add_reader(process.awaited, self._awaited_ended, process)

    def _awaited_ended(self, process: Process) -> None:
        self._stop_awaiting(process)
        self._check_group(process)

    def _stop_awaiting(self, process: Process) -> None:
        if process.awaited is not None:
            asyncio.get_running_loop().remove_reader(process.awaited)
            os.close(process.awaited)
            process.awaited = None

    def _recheck_later(self, process: Process) -> None:
        if process.recheck is not None:
            process.recheck.cancel()
        loop = asyncio.get_running_loop()
        process.recheck = loop.call_later(RECHECK_S, self._recheck, process)

    def _recheck(self, process: Process) -> None:
        if process.leader_gone:
            self._check_group(process)
        else:
            self._check_leader(process)

    def _check_leader(self, process: Process) -> None:
        """An adopted one without a pidfd, or one last seen at its gate: does it live, is it through?"""
        assert process.pid is not None
        try:
            stat = proc.stat(process.pid)
        except OSError:
            self._recheck_later(process)
            return
        if stat is None or not stat.is_alive or stat.start_time != process.start_time:
            if process.pidfd is None:
                self._stranger_ended(process)
            return
        if not process.opened:
            process.gate_looks -= 1
            process.opened = stat.comm != gate.GATE or process.gate_looks == 0
            if process.opened:
                self._observe(process.service, GateOpened(run=process.run))
        if process.pidfd is None or not process.opened:
            self._recheck_later(process)

    def _forget(self, process: Process) -> None:
        for timer in (process.kill_timer, process.recheck):
            if timer is not None:
                timer.cancel()
        self._stop_awaiting(process)
        if process.gate is not None:
            os.close(process.gate)
        if process.pidfd is not None:
            asyncio.get_running_loop().remove_reader(process.pidfd)
            os.close(process.pidfd)
        process.gate = process.pidfd = None
        self._forget_leader(process)
        if self._processes.get((process.service, process.run)) is process:
            del self._processes[process.service, process.run]

    def _forget_leader(self, process: Process) -> None:
        """Its number may be another's from now on."""
        if process.pid is not None and self._leaders.get(process.pid) is process:
            del self._leaders[process.pid]
            self._groups.led.discard(process.pid)

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
        leaders = {
            process.pid: process.service
            for process in self._processes.values()
            if process.pid is not None and process.holds_number
        }
        try:
            return owner_of(pid, leaders)
        except OSError:
            return None

    async def run_command(self, launch: Launch, timeout_s: float) -> int:
        """Run a command to its end as a service would run: its exit code, negative for a signal.

        Raises TimeoutError when it was killed, with its group, at the time limit; LaunchError when it could
        not be run.
        """
        gated = gate.spawn(self._shell, launch, self._setpriv, os.devnull)
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._commands[gated.pid] = ended
        self._groups.led.add(gated.pid)
        gate.open_gate(gated.gate)
        try:
            async with asyncio.timeout(timeout_s):
                return await ended
        finally:
            # until it is reaped, which only we do, its number is nobody else's
            if gated.pid in self._commands:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(gated.pid, signal.SIGKILL)


def _make_fifo(path: Path, uid: int | None) -> int:
    """A FIFO at `path` that `uid` may open, too; our reading end. Raises OSError."""
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o600)
    if uid is not None:
        os.chown(path, uid, -1)
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)


def ended(
    process: Process,
    code: int | None,
    *,
    group_empty: bool,
    comm: str | None = None,
    usage: Usage | None = None,
) -> Observation:
    """What is to be told of a leader that ended: its exit code, negative for a signal, None if unknown."""
    if code is None:
        return ProcessLost(run=process.run, group_empty=group_empty, killed=len(process.killed))
    exit_code = code if code >= 0 else None
    failure = gate.launch_failure(process.steps, comm, exit_code) if process.steps else None
    return ProcessExited(
        run=process.run,
        exit_code=exit_code,
        signal=-code if code < 0 else None,
        group_empty=group_empty,
        killed=len(process.killed),
        never_ran=code == gate.NEVER_RAN and not process.opened,
        launch_failure=failure[0] if failure else None,
        message=failure[1] if failure else None,
        usage=usage,
    )


def _usage(usage: resource.struct_rusage) -> Usage:
    # getrusage(2): ru_maxrss is in kilobytes on Linux, in bytes on macOS
    unit = 1 if sys.platform == "darwin" else 1024
    return Usage(round(usage.ru_utime, 6), round(usage.ru_stime, 6), usage.ru_maxrss * unit)
