"""The machine as the registry sees it: processes and checks of services, by their definitions.

Translates and forwards: definitions into launches, trouble into observations.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from registry.core.definition import Check, Definition, Ready, Reload
from registry.core.digest import blake2b
from registry.core.duties import StopDuty
from registry.core.inputs import (
    GateOpened,
    MemoryFound,
    NotifiedMain,
    Observation,
    ProcessFound,
    ProcessLost,
    RequestCarriedOut,
    RunFound,
    SpawnRefused,
    SpawnSucceeded,
)
from registry.core.lifecycle import Reason, State
from registry.core.service import Request, Service
from registry.host import adoption, gate, hooks, notify, proc
from registry.host.activation import CannotListen
from registry.host.capabilities import Capabilities
from registry.host.ends import ended
from registry.host.gated import Wanted
from registry.host.health import SHORTAGES, Attempt, Prober, RunCommand, Shortage
from registry.host.hooks import Hook
from registry.host.launch import DEFAULT_PATH, Launch, LaunchError, find_program, resolve
from registry.host.members import Process
from registry.host.memory import MemoryWatch
from registry.host.process import Runner
from registry.host.surroundings import Note, Surroundings

_log = logging.getLogger(__name__)

_HOOKS_INHERIT = ("PATH", "LANG", "TZ", "HOME")


def phase(service: str) -> float:
    """A service's place within an interval, in [0, 1): the same in every life of the registry."""
    return int.from_bytes(blake2b(service.encode(), digest_size=4).digest()) / 2**32


class Machine:
    """Spawns, stops and watches services. `environments` are the values that the configuration sets."""

    def __init__(
        self,
        *,
        runner: Runner,
        prober: Prober,
        surroundings: Surroundings,
        observe: Callable[[str, Observation], None],
        capabilities: Capabilities,
        journal_id: str,
        environments: Mapping[str, Mapping[str, str]],
        socket_path: str,
        files_max: int | None = None,
    ) -> None:
        self._runner = runner
        self._prober = prober
        self._surroundings = surroundings
        self._observe = observe
        self._memory = MemoryWatch(runner.memory, self._holds_too_much)
        self._equipped_ahead: dict[tuple[str, int], tuple[Definition, Launch]] = {}
        self._heirs: dict[str, list[tuple[tuple[int, int], int]]] = {}
        self._reloads: set[asyncio.Task[None]] = set()
        self._capabilities = capabilities
        self._journal_id = journal_id
        self.environments = environments
        self._inherited = dict(os.environ)  # which itself encodes and decodes with each look
        self._socket_path = socket_path
        self._files_max = files_max

    def mark(self, service: str, run: int) -> str:
        """What CIRCLEOSD_RUN is for a run: by it the run is found again."""
        return f"{self._journal_id}/{service}/{run}"

    def _launch(self, definition: Definition, run: int) -> Launch:
        values = self.environments.get(definition.name, {})
        launch = resolve(definition, values, self._inherited)
        launch.env["CIRCLEOSD_SERVICE"] = definition.name
        launch.env["CIRCLEOSD_SOCKET"] = self._socket_path
        launch.env[proc.MARK] = self.mark(definition.name, run)
        return msgspec.structs.replace(launch, files_max=self._files_max)

    @contextlib.asynccontextmanager
    async def ahead(self, runs: Sequence[tuple[Definition, int]]) -> AsyncIterator[None]:
        """Within the block `spawn` finds processes made for these; those that it was not asked for are undone.

        But not for those with listening sockets: to open one, before it is decided, is seen by others, and a process
        that is being undone has its copy a little longer than the address may be this service's.
        """
        wanted = []
        for definition, run in runs:
            if definition.sockets:
                continue
            with contextlib.suppress(LaunchError):  # which is told when it is asked for
                launch = self._equipped(definition, run)
                wanted.append(Wanted((definition.name, run), launch, definition.logs))
                self._equipped_ahead[definition.name, run] = definition, launch
        try:
            async with self._runner.ahead(wanted):
                yield
        finally:
            self._equipped_ahead.clear()

    async def spawn(self, definition: Definition, run: int, digest: str) -> Observation:
        """Put a run behind its gate; one at a time."""
        try:
            launch = self._launch_ahead(definition, run) or self._equipped(definition, run)
            mark = self.mark(definition.name, run)
            spawned = await self._runner.spawn(definition.name, run, mark, launch, definition.logs)
        except LaunchError as error:
            error = gate.shortage() or error
            return SpawnRefused(run=run, reason=error.reason, message=error.message)
        self._surroundings.begin(definition.name, run, mark)
        return SpawnSucceeded(
            run=run, pid=spawned.pid, start_time=spawned.start_time, digest=digest
        )

    def _launch_ahead(self, definition: Definition, run: int) -> Launch | None:
        """That of the process made ahead, unless it was made for another definition."""
        foreseen = self._equipped_ahead.get((definition.name, run))
        if foreseen is None or not self._runner.is_ahead(definition.name, run):
            return None
        return foreseen[1] if foreseen[0] is definition else None

    def _equipped(self, definition: Definition, run: int) -> Launch:
        launch = self._launch(definition, run)
        try:
            return self._surroundings.equip(definition, launch)
        except OSError as error:
            raise LaunchError(_why_not(error), error.strerror or str(error), "sockets") from None

    def open_gate(self, service: str, run: int) -> bool:
        """Let a run through; True when that happened now."""
        return self._runner.open_gate(service, run)

    def stop(self, service: str, run: int, duty: StopDuty) -> None:
        """Ask a run's group to end."""
        self._runner.stop(service, run, duty.signal_name, duty.kill_due_ns)

    def release(self, service: str, up_to_run: int | None) -> None:
        """Let go of runs whose ends are in the journal; of all that is its, where it is declared no more."""
        self._runner.release(service, up_to_run)
        if up_to_run is None:
            self._surroundings.forget(service)

    def rest(self, service: str) -> None:
        """Nothing of it runs, or is to."""
        self._surroundings.rest(service)

    # --- watching ---------------------------------------------------------------------------------

    def watch(self, service: Service) -> None:
        """Begin a run's checks, or go on by what is now declared."""
        definition, run = service.definition, service.run
        most = definition.restart.memory_max
        if most is not None:
            self._memory.watch(service.name, run, most)
        else:
            self._memory.forget(service.name, run)
        if not definition.checks:
            self._prober.forget(service.name, run)
            return
        self._prober.watch(
            service.name,
            run,
            definition.checks,
            self._commands(definition, run),
            beat_interval_s=service.watchdog_s,
            listens_before_ready=definition.readiness is not Ready.NOTIFY,
        )
        self._surroundings.watched(service.name)

    def became_ready(self, service: str) -> None:
        """Its checks go on at their intervals."""
        self._prober.became_ready(service)

    def unwatch(self, service: str, run: int) -> None:
        """End a run's checks."""
        self._memory.forget(service, run)
        self._prober.forget(service, run)

    def redefine(self, service: Service) -> None:
        """A run takes up what its new definition changes in place: where its output goes."""
        self._runner.redirect(service.name, service.run, service.definition.logs)

    def describe(self, service: Service) -> dict[str, Any]:
        """What only this machine knows of a service: what its run said, holds, and how it is found again."""
        runs = service.pid is not None
        said = self._surroundings.said(service.name) if runs else None
        status = said.status if said is not None else None
        return {
            "status_text": "reloading" if said and said.reloading and not status else status,
            "errno": said.errno if said is not None else None,
            "memory": self._runner.memory(service.name, service.run) if runs else None,
            "found_by": self._runner.tier(service.name, service.run) if runs else None,
        }

    async def check_once(self, service: Service) -> list[tuple[Check, Attempt]]:
        """Every check of a service, carried out now."""
        commands = self._commands(service.definition, service.run)
        return await self._prober.once(service.name, service.definition.checks, commands)

    async def run_hook(self, hook: Hook, told: bytes, said: bytearray) -> int:
        """Run a hook as the registry's own user; its exit code, and in `said` the last that it wrote.

        Raises TimeoutError, LaunchError.
        """
        env = {name: os.environ[name] for name in _HOOKS_INHERIT if name in os.environ}
        env |= hooks.environment(told)
        env["CIRCLEOSD_SOCKET"] = self._socket_path
        env[proc.MARK] = f"{self._journal_id}/hook/0/{adoption.COMMAND}"
        program = find_program(hook.cmd[0], env.get("PATH", DEFAULT_PATH), hook.cwd)
        argv = (program, *hook.cmd[1:])
        launch = Launch(argv, env, hook.cwd, 0o077, None, None, (), self._files_max)
        return await self._runner.run_command(launch, hook.timeout_s, stdin=told, said=said)

    def _holds_too_much(self, service: str, run: int, held: int) -> None:
        self._observe(service, MemoryFound(run=run, bytes=held))

    def _commands(self, definition: Definition, run: int) -> RunCommand:
        async def run_command(argv: tuple[str, ...], timeout_s: float) -> int:
            try:
                return await self._run_beside(definition, run, argv, timeout_s)
            except LaunchError as error:
                passes = error.reason is Reason.NO_RESOURCES
                raise (Shortage if passes else OSError)(error.message) from None

        return run_command

    async def _run_beside(
        self,
        definition: Definition,
        run: int,
        argv: tuple[str, ...],
        timeout_s: float,
        **variables: str,
    ) -> int:
        """Run a command as the service would. Raises LaunchError, TimeoutError."""
        launch = self._launch(msgspec.structs.replace(definition, cmd=argv), run)
        launch.env[proc.MARK] += f"/{adoption.COMMAND}"
        launch.env.update(variables)
        return await self._runner.run_command(launch, timeout_s)

    # --- signals and reloads ----------------------------------------------------------------------

    def carry_out(self, service: Service, request: Request) -> None:
        """Send a signal or have it reload; RequestCarriedOut follows."""
        reload = service.definition.reload or Reload()
        if request.signal is None and reload.cmd:
            task = asyncio.create_task(self._reload(service, request, reload.cmd))
            self._reloads.add(task)
            task.add_done_callback(self._reloads.discard)
            return
        signal_name = request.signal or reload.signal
        error = None
        try:
            if signal_name is None:  # it said so when it was asked for, and no longer does
                raise OSError(errno.ENOTSUP, "it no longer says how it reloads")
            self._runner.signal_main(service.name, service.run, signal_name)
        except OSError as failure:
            error = failure.strerror or str(failure)
        self._carried_out(service.name, service.run, request, error)

    async def _reload(self, service: Service, request: Request, cmd: tuple[str, ...]) -> None:
        name, run, definition = service.name, service.run, service.definition
        main = str(service.pid or "")
        try:
            code = await self._run_beside(
                definition, run, cmd, definition.start_timeout_s, MAINPID=main
            )
            error = f"{cmd[0]} ended with {code}" if code else None
        except LaunchError as failure:
            error = failure.message
        except TimeoutError:
            error = f"{cmd[0]} took longer than {definition.start_timeout_s:g} s and was killed"
        self._carried_out(name, run, request, error)

    def _carried_out(self, service: str, run: int, request: Request, error: str | None) -> None:
        self._observe(service, RequestCarriedOut(run=run, request=request.seq, error=error))

    async def close(self) -> None:
        """End what is carried out."""
        self._memory.close()
        for task in self._reloads:
            task.cancel()
        await asyncio.gather(*self._reloads, return_exceptions=True)

    # --- after the supervisor's own death ---------------------------------------------------------

    def take_up(
        self,
        services: Iterable[Service],
        pidfds: dict[tuple[str, int], int],
        notes: Iterable[Note] = (),
        *,
        same_boot: bool,
    ) -> list[tuple[str, Observation]]:
        """Every run that lives, journaled or not, and how the others ended; a dead registry's checks are ended.

        `pidfds` are the keeper's, by service and run; they are taken over. By its `notes` a main process that has
        ended may have named another.
        """
        self._heirs = _heirs(notes)
        survey = adoption.Survey({}, [])
        if same_boot and self._capabilities.proc:
            survey = adoption.survey(self._journal_id)
        for command in survey.commands:
            adoption.kill_left(command)
        services = list(services)
        _end_strays(survey, {service.name for service in services})
        latest = dict(sorted(survey.runs))
        seen: list[tuple[str, Observation]] = []
        for service in services:
            found: list[Observation] = []
            if (run := latest.get(service.name, 0)) > service.run:
                found = self.adopt_unjournaled(service, run, survey.runs[service.name, run][0])
            has_run = service.pid is not None or service.state is State.STOPPING
            if not found and has_run:
                pidfd = pidfds.pop((service.name, service.run), None)
                found = self.adopt(service, pidfd, same_boot=same_boot)
            seen += [(service.name, given) for given in found]
        for pidfd in pidfds.values():
            os.close(pidfd)
        return seen

    def adopt(self, service: Service, pidfd: int | None, *, same_boot: bool) -> list[Observation]:
        """Take up a run that the journal calls alive, or find out how it ended. Takes over `pidfd`."""
        if not same_boot or not self._capabilities.proc:
            if pidfd is not None:
                os.close(pidfd)
            return [] if service.pid is None else [ProcessLost(run=service.run)]
        process = Process(
            service=service.name,
            run=service.run,
            pid=service.pid,
            mark=self.mark(service.name, service.run),
            start_time=service.start_time,
            is_child=False,
            pidfd=pidfd,
        )
        if process.pid is None:
            # Stopping, its main process gone: the duty that follows ends the rest
            self._runner.adopt_leftovers(process)
            return []
        return self._adopt_leader(service, process, process.pid)

    def adopt_unjournaled(self, service: Service, run: int, stat: proc.Stat) -> list[Observation]:
        """Take up a run that the journal does not know; nothing where it is not surely the service's."""
        at_gate = stat.comm == gate.GATE  # its pipe is closed: it is about to end
        if at_gate or run <= service.run or not self._is_user_of(stat.pid, service.definition):
            return []
        found = RunFound(run=run, pid=stat.pid, start_time=stat.start_time)
        if not adoption.leads(stat):
            return [found, self._adopt_rest(service, run, stat)]
        pidfd = adoption.pidfd_of(stat.pid, stat.start_time) if self._capabilities.pidfd else None
        process = Process(
            service=service.name,
            run=run,
            pid=stat.pid,
            mark=self.mark(service.name, run),
            start_time=stat.start_time,
            is_child=stat.parent == os.getpid(),
            pidfd=pidfd,
            opened=True,
        )
        self._took_up(service, process, stat.pid)
        return [found, GateOpened(run=run)]

    def _adopt_rest(self, service: Service, run: int, stat: proc.Stat) -> ProcessLost:
        """Take up what is left of a run whose leader has ended; the duty that follows ends it."""
        rest = Process(
            service=service.name,
            run=run,
            pid=None,
            mark=self.mark(service.name, run),
            start_time=None,
            is_child=False,
            leader=stat.session,  # held by this member, so that it is certainly still the run's
        )
        return ProcessLost(run=run, group_empty=self._runner.adopt_leftovers(rest))

    def _is_user_of(self, pid: int, definition: Definition) -> bool:
        """A mark is only a variable, which anybody can set: the user has to be the service's, too."""
        try:
            uid = self._launch(definition, 0).uid
            return os.stat(f"/proc/{pid}").st_uid == (os.getuid() if uid is None else uid)
        except (LaunchError, OSError):
            return False

    def _adopt_leader(self, service: Service, process: Process, pid: int) -> list[Observation]:
        if process.pidfd is not None and not adoption.is_of(process.pidfd, pid):
            # the keeper has it of another main process, whose naming did not get into the journal
            os.close(process.pidfd)
            process.pidfd = None
        if process.pidfd is None and self._capabilities.pidfd:
            process.pidfd = adoption.pidfd_of(pid, process.start_time)
        stat = _stat_of(process, pid)
        left_gate = stat is not None and stat.comm != gate.GATE
        process.opened = left_gate or service.running_ns is not None
        if not _lives(process, stat):
            if (heir := self._heir_of(process, pid)) is not None:
                return self._adopt_heir(service, process, heir)
            self._surroundings.begin(service.name, process.run, process.mark, ended=pid)
            return [self._end_of(process, pid)]
        if stat is not None:
            process.start_time = stat.start_time
            process.is_child = stat.parent == os.getpid()
        self._took_up(service, process, pid)
        found: list[Observation] = [ProcessFound(run=process.run, pid=pid)]
        return [*found, GateOpened(run=process.run)] if process.opened else found

    def _took_up(
        self, service: Service, process: Process, pid: int, *, is_another: bool = False
    ) -> None:
        definition = service.run_definition or service.definition
        self._runner.adopt(process, service.definition.logs, is_another=is_another)
        self._surroundings.begin(service.name, process.run, process.mark)
        with contextlib.suppress(FileNotFoundError):  # it is just ending
            self._surroundings.listen(definition, os.stat(f"/proc/{pid}").st_uid)

    def _heir_of(self, process: Process, pid: int) -> proc.Stat | None:
        """The living process that an ended main process, or one of its session, has named last in its place."""
        named = [main for sender, main in self._heirs.get(process.service, ()) if pid in sender]
        stat = proc.stat(named[-1]) if named else None
        if stat is None or not stat.is_alive:
            return None
        is_member = stat.session == pid or proc.mark(stat.pid) == process.mark
        return stat if is_member else None

    def _adopt_heir(self, service: Service, process: Process, heir: proc.Stat) -> list[Observation]:
        if process.pidfd is not None:
            os.close(process.pidfd)
        has_pidfd = self._capabilities.pidfd
        followed = Process(
            service=process.service,
            run=process.run,
            pid=heir.pid,
            mark=process.mark,
            start_time=heir.start_time,
            is_child=heir.parent == os.getpid(),
            pidfd=adoption.pidfd_of(heir.pid, heir.start_time) if has_pidfd else None,
            opened=True,
        )
        self._took_up(service, followed, heir.pid, is_another=True)
        run = process.run
        return [
            NotifiedMain(run=run, pid=heir.pid, start_time=heir.start_time),
            ProcessFound(run=run, pid=heir.pid),
            GateOpened(run=run),
        ]

    def _end_of(self, process: Process, pid: int) -> Observation:
        code = adoption.exit_of_stranger(pid, process.start_time, process.pidfd, self._capabilities)
        empty = self._runner.adopt_leftovers(process)
        return ended(process, code, group_empty=empty)


def _why_not(error: OSError) -> Reason:
    """What kind of trouble kept a run from what it is to be given."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return Reason.NOT_PERMITTED
    if not isinstance(error, CannotListen) or error.errno in SHORTAGES:
        return Reason.NO_RESOURCES
    is_folder_missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
    return Reason.SOCKET_FOLDER_MISSING if is_folder_missing else Reason.SOCKET_UNAVAILABLE


def _heirs(notes: Iterable[Note]) -> dict[str, list[tuple[tuple[int, int], int]]]:
    """Who was named as main process, by service: by whom (pid and session), and the pid."""
    heirs: dict[str, list[tuple[tuple[int, int], int]]] = {}
    for note in notes:
        main = notify.parse(note.text).main_pid
        if main is not None:
            heirs.setdefault(note.service, []).append(((note.pid, note.session), main))
    return heirs


def _stat_of(process: Process, pid: int) -> proc.Stat | None:
    """The state of a leader; None where another process may have got its number."""
    stat = proc.stat(pid)
    if process.pidfd is not None and not adoption.has_ended(process.pidfd):
        return stat
    return stat if stat is not None and stat.start_time == process.start_time else None


def _lives(process: Process, stat: proc.Stat | None) -> bool:
    if process.pidfd is not None:
        return not adoption.has_ended(process.pidfd)
    return stat is not None and stat.is_alive


def _end_strays(survey: adoption.Survey, known: set[str]) -> None:
    """Runs of what neither the journal nor the file tells of: begun while the first could not be written."""
    for (service, run), members in survey.runs.items():
        if service not in known:
            _log.warning("%s, run %d, is declared no more: killed", service, run)
            for member in members:
                adoption.kill_left(member)
