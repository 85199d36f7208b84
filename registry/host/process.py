"""The process runner: spawns behind the gate, watches, stops groups, reaps. Its facts go to `observe`.

One place reaps: on SIGCHLD every ended child is looked at, reaped, and told to its owner. Processes that
are not our children (adopted ones, leftovers of a run, a main process that a service named) are watched by
their pidfd. A run is forgotten before its last observation is handed over, so that `observe` may call back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import msgspec

from registry.core.definition import Logs
from registry.core.events import Usage
from registry.core.inputs import GateOpened, GroupGone, Observation
from registry.host import adoption, gate, proc
from registry.host.capabilities import Capabilities, find_setpriv
from registry.host.child_signals import ChildSignals
from registry.host.clock import NS, mono_ns
from registry.host.commands import Commands
from registry.host.ends import ended, usage_of
from registry.host.gated import GatedProcesses, Wanted
from registry.host.kept import Kept, OutputKeeper
from registry.host.launch import Launch, LaunchError
from registry.host.members import Groups, Process, owner_of
from registry.host.spawning import Spawning

RECHECK_S = 0.05
"""How often is looked at what nobody tells us about: where a pidfd cannot be had, or says too little."""
REAP_MAX, REAP_S = 256, 0.004
"""How many ended children are taken at once, and for how long; then others have their turn."""

Ended = tuple[int, proc.Stat | None, int, resource.struct_rusage]
"""A child that was reaped: pid, what it was as a zombie, status, usage."""


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
        spawning: Spawning,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._capabilities = capabilities
        self._groups = Groups(capabilities)
        self._kept = Kept(folder, keeper)
        gates = gate.prepare(folder, native=capabilities.native_gate)
        setpriv = find_setpriv() if capabilities.setpriv else None
        self._gated = GatedProcesses(gates, setpriv, self._kept, spawning)
        self._commands = Commands(folder, self._gated.command, self._kept.fifo, self._groups.led)
        self._signals = ChildSignals(self._take_named, self.reap, by_signalfd=capabilities.signalfd)
        self._observe = observe
        self._processes: dict[tuple[str, int], Process] = {}
        self._by_number: dict[int, Process] = {}
        self._left: dict[Process, None] = {}  # those whose main process is gone
        self._in_a_hurry = False
        self.before_reap: Callable[[str], None] = lambda _service: None
        """Called before an ended process of a service is reaped: what it said last is to be heard first."""

    # --- starting ---------------------------------------------------------------------------------

    def listen(self) -> None:
        """Begin to reap: after `adopt`, so that nobody's end is taken before it was looked at."""
        self._signals.listen()
        self.reap()

    def close(self) -> None:
        """Let go of everything without touching a process: gates close, so what waits there ends."""
        self._signals.close()
        for process in list(self._processes.values()):
            self._forget(process)

    @contextlib.asynccontextmanager
    async def ahead(self, wanted: Sequence[Wanted]) -> AsyncIterator[None]:
        """Within the block `spawn` finds these made; those that it was not asked for are undone at its end."""
        # who is made there, and has ended, would be nobody's
        with self._signals.held():
            async with self._gated.ahead(wanted):
                yield

    def is_ahead(self, service: str, run: int) -> bool:
        """Whether a process for this run was made, and nobody has asked for it yet."""
        return self._gated.has((service, run))

    async def spawn(
        self, service: str, run: int, mark: str, launch: Launch, logs: Logs | None
    ) -> Spawned:
        """Spawn a run behind its gate; one at a time. Raises LaunchError."""
        self._groups.refuse_limits(launch)
        # who is spawned there, and has ended, would be nobody's
        with self._signals.held():
            return await self._spawn(service, run, mark, launch, logs)

    async def _spawn(
        self, service: str, run: int, mark: str, launch: Launch, logs: Logs | None
    ) -> Spawned:
        gated, output = await self._gated.make((service, run), launch, logs)
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
            gate.constrain(gated.pid, launch)
            self._groups.confine(process, launch)
            self._kept.keep(process, output, logs)
        except (OSError, LaunchError) as error:
            self._forget(process)  # the gate closes: nothing has happened
            raise gate.refusal(error) if isinstance(error, OSError) else error from None
        finally:
            if output is not None:
                os.close(output)
        return Spawned(gated.pid, process.start_time)

    def _identify(self, process: Process) -> None:
        """Note what the process is known by when we are gone. Raises OSError."""
        assert process.pid is not None
        if self._capabilities.proc and (stat := proc.stat(process.pid)):
            process.start_time = stat.start_time
        if self._capabilities.pidfd:
            process.pidfd = os.pidfd_open(process.pid)

    def _add(self, process: Process) -> None:
        self._processes[process.service, process.run] = process
        if process.main_gone:
            self._left[process] = None
        elif process.pid is not None:
            self._by_number[process.pid] = process
        if process.leader is not None and not process.leader_gone:
            self._by_number[process.leader] = process
            self._groups.led.add(process.leader)

    def open_gate(self, service: str, run: int) -> bool:
        """Let a run through to its program; True when that happened now."""
        process = self._processes.get((service, run))
        if process is None or process.gate is None:
            return False
        self._kept.flush()  # its output and its end are not to be lost with us
        held, process.gate = process.gate, None
        process.opened = gate.open_gate(held)
        return process.opened

    def adopt(self, process: Process, logs: Logs | None, *, is_another: bool = False) -> None:
        """Watch a process that an earlier daemon spawned; `is_another`: it is another main process than before."""
        self._groups.find_leader(process)
        self._groups.find_cgroup(process)
        self._add(process)
        self._kept.keep_adopted(process, logs)
        if is_another:
            self._kept.keep_main(process)
        self._watch_main(process)

    def _watch_main(self, process: Process) -> None:
        """A main process whose end SIGCHLD need not tell us."""
        if process.pidfd is not None and not process.is_told_by_signal:
            asyncio.get_running_loop().add_reader(process.pidfd, self._stranger_ended, process)
        if process.pidfd is None or not process.opened:
            self._recheck_later(process)

    def tidy(self, journal_id: str) -> None:
        """Remove what ended runs have left of their cgroups. After `adopt`."""
        self._groups.tidy(journal_id)

    def adopt_leftovers(self, process: Process) -> bool:
        """Take up what is left of a run whose main process is gone; True when nothing is."""
        process.main_gone = process.leader_gone = True
        self._groups.find_cgroup(process)
        process.holds_number = self._groups.still_holds_number(process)
        _members, is_empty = self._groups.look(process)
        if is_empty:
            self._forget(process)
        else:
            self._add(process)
        return is_empty

    # --- stopping ---------------------------------------------------------------------------------

    def stop(self, service: str, run: int, signal_name: str, kill_due_ns: int) -> None:
        """Ask a run's whole group to end: the signal now, SIGKILL at `kill_due_ns`. Again only sets that time."""
        process = self._processes.get((service, run))
        if process is None:
            self._observe(service, GroupGone(run=run))
            return
        self._kill_at(process, kill_due_ns)
        if process.stopping:
            return
        process.stopping = True
        process.signal_number = signal.Signals[signal_name]
        if process.gate is not None:
            held, process.gate = process.gate, None
            os.close(held)
        elif process.main_gone:
            members, _is_empty = self._groups.look(process)
            self._groups.signal(process, members)
            self._check_group(process)
        else:  # whom its main process shields, it shall end itself
            self._groups.signal(process, self._groups.main_apart(process))

    def _kill_at(self, process: Process, due_ns: int) -> None:
        if process.kill_due_ns == due_ns:
            return
        if process.kill_timer is not None:
            process.kill_timer.cancel()
        process.kill_due_ns = due_ns
        delay_s = 0.0 if self._in_a_hurry else max(0.0, (due_ns - mono_ns()) / NS)
        loop = asyncio.get_running_loop()
        process.kill_timer = loop.call_later(delay_s, self._kill, process)

    def hurry(self) -> None:
        """SIGKILL whatever is being stopped, now and from now on."""
        self._in_a_hurry = True
        for process in list(self._processes.values()):
            if process.stopping:
                self._kill(process)

    def _kill(self, process: Process) -> None:
        process.signal_number = signal.SIGKILL
        members, _is_empty = self._groups.look(process)
        if not process.main_gone:
            process.killed |= {process.pid}
        self._groups.signal(process, members or self._groups.main_apart(process))

    # --- ends -------------------------------------------------------------------------------------

    def _take_named(self, pid: int) -> bool:
        """Take a main process that has ended; False where it is none.

        Without /proc those count as members who ended with it, until they are reaped: then it is not the first.
        """
        is_first = self._capabilities.proc and pid in self._by_number
        child = self._next_ended(pid) if is_first else None
        if child is not None:
            self._take([child])
        return child is not None

    def reap(self) -> None:
        """Take every ended child, whoever it belongs to; then look at what is left of ended runs."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + REAP_S
        taken: list[Ended] = []
        while (child := self._next_ended()) is not None:
            taken.append(child)
            if len(taken) == REAP_MAX or loop.time() > until_s:
                # orphans are named first: a fork bomb's are not to keep services and commands waiting
                taken += filter(None, map(self._next_ended, tuple(self._groups.led)))
                loop.call_soon(self._signals.told)
                break
        self._take(taken)

    def _take(self, taken: list[Ended]) -> None:
        with self._groups.looking_once():
            for child in taken:
                self._child_ended(*child)
            for process in tuple(self._left):
                self._check_group(process)

    def _next_ended(self, of: int = -1) -> Ended | None:
        """The next ended child, or this one if it has ended, reaped."""
        try:
            stat = None
            if self._capabilities.waitid:
                kind, number = (os.P_ALL, 0) if of < 0 else (os.P_PID, of)
                info = os.waitid(kind, number, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if info is None:
                    return None
                stat, of = self._hear(info), info.si_pid
            pid, status, usage = os.wait4(of, os.WNOHANG)
        except ChildProcessError:
            return None
        self._groups.reaped(pid)
        return (pid, stat, status, usage) if pid else None

    def _hear(self, info: os.waitid_result) -> proc.Stat | None:
        """Have a main process heard; what it is as a zombie, where that tells more. Of a member that is left to us
        only the session is asked for, in a fifth of the time: a fork bomb leaves us thousands.
        """
        pid, stat = info.si_pid, None
        if (process := self._by_number.get(pid)) is not None:
            if not process.is_told_by_signal or gate.may_tell(process.steps, info):
                stat = self._groups.stat(pid)
        elif self._capabilities.proc:
            # it is to be reaped, whatever a security module says
            with contextlib.suppress(OSError):
                process = self._by_number.get(os.getsid(pid))
        if process is not None:
            self.before_reap(process.service)
        return stat

    def _child_ended(
        self, pid: int, stat: proc.Stat | None, status: int, usage: resource.struct_rusage
    ) -> None:
        code = os.waitstatus_to_exitcode(status)
        if self._commands.reaped(pid, code):
            return
        process = self._by_number.get(pid)
        if process is None or not process.is_child:
            return
        if pid != process.pid:  # it led what has another main process by now
            process.leader_gone = True
            self._forget_number(pid, process)
        elif stat is None or process.start_time in (None, stat.start_time):
            self._main_ended(process, code, comm=stat.comm if stat else None, usage=usage_of(usage))

    def _stranger_ended(self, process: Process) -> None:
        assert process.pid is not None
        before = process.pid
        self.before_reap(process.service)
        if process.pid != before:  # it said who follows it
            return
        # a zombie keeps its pidfd readable: without this the loop would spin until somebody reaps it
        self._stop_watching(process)
        stat = self._groups.stat(process.pid) if process.is_child else None
        if stat is not None and stat.parent == os.getpid():
            return  # its parent has ended, and so it has come to us: SIGCHLD tells
        code = adoption.exit_of_stranger(
            process.pid, process.start_time, process.pidfd, self._capabilities
        )
        self._main_ended(process, code)

    def _stop_watching(self, process: Process) -> None:
        if process.pidfd is not None and not process.is_told_by_signal:
            asyncio.get_running_loop().remove_reader(process.pidfd)

    def _main_ended(
        self,
        process: Process,
        code: int | None,
        *,
        comm: str | None = None,
        usage: Usage | None = None,
    ) -> None:
        assert process.pid is not None
        process.main_gone = True
        self._left[process] = None
        process.leader_gone |= process.is_led_by_main
        if process.is_child or process.pidfd is None:  # since everyone was looked at, maybe
            self._groups.look_anew()
        self._stop_watching(process)
        self._forget_number(process.pid, process)
        members, is_empty = self._groups.look(process)
        if is_empty:
            self._forget(process)
        elif process.stopping:
            self._groups.signal(process, members, again=True)
            self._await_one(process, members)
        self._observe(
            process.service, ended(process, code, group_empty=is_empty, comm=comm, usage=usage)
        )

    def _check_group(self, process: Process) -> None:
        """The main process is gone: is the rest?"""
        members, is_empty = self._groups.look(process)
        if is_empty:
            self._forget(process)
            self._observe(process.service, GroupGone(run=process.run, killed=len(process.killed)))
        elif process.stopping:
            if process.signal_number == signal.SIGKILL:  # some were born since
                self._groups.signal(process, members)
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
        if process.main_gone:
            self._check_group(process)
        else:
            self._check_main(process)

    def _check_main(self, process: Process) -> None:
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
        self._stop_awaiting(process)
        self._stop_watching(process)
        for number in (process.pid, process.leader):
            self._forget_number(number, process)
        process.close()
        self._left.pop(process, None)
        if self._processes.get((process.service, process.run)) is process:
            del self._processes[process.service, process.run]

    def _forget_number(self, number: int | None, process: Process) -> None:
        """It may be another's from now on."""
        if number is not None and self._by_number.get(number) is process:
            del self._by_number[number]
            self._groups.led.discard(number)

    # --- the main process -------------------------------------------------------------------------

    def signal_main(self, service: str, run: int, signal_name: str) -> None:
        """Signal a run's main process and nobody else.

        Raises ProcessLookupError where there is none, or it has not begun; OSError where the kernel refuses.
        """
        process = self._processes.get((service, run))
        try:
            if process is None or process.gate is not None:
                raise ProcessLookupError
            self._groups.signal_main(process, signal.Signals[signal_name])
        except ProcessLookupError:
            message = f"run {run} of {service} has no main process that could be signalled"
            raise ProcessLookupError(message) from None

    def change_main(self, service: str, run: int, pid: int) -> tuple[int, int | None] | None:
        """Make another member of a run its main process, whose end is the run's; its pid and start time.

        None where `pid` is no living member, or is the main process already.
        """
        process = self._processes.get((service, run))
        if process is None or process.main_gone or not process.opened or pid == process.pid:
            return None
        members, _is_empty = self._groups.look(process)
        stat = next((member for member in members if member.pid == pid), None)
        if stat is None:
            return None
        pidfd = adoption.pidfd_of(pid, stat.start_time) if self._capabilities.pidfd else None
        if pidfd is None and self._capabilities.pidfd:
            return None
        self._replace_main(process, stat, pidfd)
        return pid, stat.start_time

    def _replace_main(self, process: Process, stat: proc.Stat, pidfd: int | None) -> None:
        self._leave_main(process)
        process.pid, process.start_time, process.pidfd = stat.pid, stat.start_time, pidfd
        process.steps = frozenset()
        if process.is_led_by_main and process.leader_pidfd is not None:
            os.close(process.leader_pidfd)
            process.leader_pidfd = None
        self._by_number[stat.pid] = process
        self._watch_main(process)
        self._kept.keep_main(process)

    def _leave_main(self, process: Process) -> None:
        """The present main process is one among others from now on."""
        self._stop_watching(process)
        if process.is_led_by_main:
            process.leader_pidfd = process.pidfd
            # another's child ends without our seeing it: then the number counts by its members only
            process.leader_gone = not process.is_child
            if not process.leader_gone:
                return
        elif process.pidfd is not None:
            os.close(process.pidfd)
        self._forget_number(process.pid, process)

    # --- the rest ---------------------------------------------------------------------------------

    def kept(self, service: str, run: int) -> None:
        """The keeper holds this run since an earlier life of the registry."""
        self._kept.add(service, run)

    def release(self, service: str, up_to_run: int | None) -> None:
        """These runs' ends are in the journal: nobody has to remember how they ended."""
        self._kept.release(service, up_to_run)

    def owner_of(self, pid: int) -> str | None:
        """The service whose processes `pid` is one of, or None."""
        leaders: dict[int, str] = {}
        for process in self._processes.values():
            if process.leader is not None and process.holds_number:
                leaders[process.leader] = process.service
            if process.pid is not None and not process.main_gone:
                leaders[process.pid] = process.service
        try:
            return owner_of(pid, leaders)
        except OSError:
            return None

    def leader_of(self, service: str, run: int) -> int | None:
        """The number of a run's session, where that is certainly still its own."""
        process = self._processes.get((service, run))
        return process.leader if process is not None and process.holds_number else None

    def redirect(self, service: str, run: int, logs: Logs | None) -> None:
        """What a run writes from now on goes to another log, or to the same one with other limits."""
        self._kept.redirect(service, run, logs)

    def tier(self, service: str, run: int) -> str:
        """By what a run's processes are known: its "cgroup", or "session" (and group and mark)."""
        process = self._processes.get((service, run))
        return "session" if process is None or process.cgroup is None else "cgroup"

    def memory(self, service: str, run: int) -> int | None:
        """Bytes that a run's processes hold together; None where nobody can tell."""
        process = self._processes.get((service, run))
        return self._groups.memory(process) if process is not None else None

    async def run_command(
        self,
        launch: Launch,
        timeout_s: float,
        *,
        stdin: bytes | None = None,
        said: bytearray | None = None,
    ) -> int:
        """Run a command to its end as a service would run: its exit code, negative for a signal.

        Its standard input is the text `stdin`, or /dev/null; it is given no `descriptors`. Raises TimeoutError
        when it was killed, with its group, at the time limit; LaunchError when it could not be run. The last of
        its output goes into `said`, the rest nowhere.
        """
        return await self._commands.run(launch, timeout_s, stdin, said)
