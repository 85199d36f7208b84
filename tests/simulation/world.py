"""A world out of one seed: machine, disk, operators and all trouble, and the daemon that lives in it over and over.

Law: every choice comes from one `random.Random`, in an order that only the seed decides.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from random import Random
from typing import Any

import msgspec

from registry import held
from registry.api.access import Peer
from registry.api.actions import ApiError, CommandParams, ReloadParams, SignalParams, StopParams
from registry.core.definition import Definition
from registry.core.events import Actor
from registry.core.lifecycle import Reason
from registry.journal.rows import Row
from tests.simulation import invariants as inv
from tests.simulation import language
from tests.simulation.disk import Disk
from tests.simulation.host import refusals
from tests.simulation.invariants import Ledger, Violation
from tests.simulation.kernel import NEVER_RAN, Kernel, Key, Note, Process
from tests.simulation.life import Killed, Life
from tests.simulation.loop import NS, Deadlock, Livelock, VirtualLoop
from tests.simulation.programs import Programs, habit

HOUR_S = 3600.0
QUIET_S = 400.0
"""Without any trouble at the end: enough for the longest timeouts one after the other."""
LOOK_EVERY_S = 15.0
GRACE_S = 30.0
"""What is overdue for longer will not come: the slowest disk takes less."""
ROWS_TOLD = 12


class Trouble(msgspec.Struct, frozen=True):
    """How much of each trouble a seed has: mean seconds between two of a kind, None for none; or how likely it is."""

    kill_s: float | None
    deadly: float
    reboot_s: float | None
    wall_s: float | None
    stall_s: float | None
    keeper_s: float | None
    disk_s: float | None
    operator_s: float
    apply_s: float | None
    end_s: float | None
    refused: float
    late: float
    held_max: int
    exits_known: bool


def trouble(chance: Random) -> Trouble:
    """Some kinds only, so that each is met without the others, too."""

    def mean_s(*each: float) -> float | None:
        return chance.choice([None, *each, *each])

    return Trouble(
        kill_s=mean_s(120.0, 600.0, 1800.0),
        deadly=chance.choice([0.0, 0.0005, 0.005]),
        reboot_s=mean_s(1500.0, 7200.0),
        wall_s=mean_s(600.0),
        stall_s=mean_s(900.0),
        keeper_s=mean_s(300.0, 1800.0),
        disk_s=mean_s(300.0, 1200.0),
        operator_s=chance.choice([20.0, 120.0, 600.0]),
        apply_s=mean_s(200.0, 1200.0),
        end_s=mean_s(900.0, 3600.0),
        refused=chance.choice([0.0, 0.0, 0.01, 0.1]),
        late=chance.choice([0.0, 0.01, 0.1]),
        held_max=chance.choice([20, 100, 20_000]),
        exits_known=chance.random() < 0.6,
    )


class Outcome(msgspec.Struct, frozen=True):
    """What came of one seed."""

    seed: int
    hours: float
    digest: str
    rows: int
    decisions: int
    lives: int
    kills: int
    commands: int
    steps: int
    happened: dict[str, int]
    moves: dict[tuple[str, str, str], int]


class Failure(Exception):
    """A violation: its seed, when, which sentence, and the last rows of the service."""


def simulate(seed: int, hours: float, services: int | None = None) -> Outcome:
    """Let a world run that long. Raises Failure."""
    logging.getLogger("registry").setLevel(logging.CRITICAL + 1)
    world = World(seed, hours, services)
    with _held_max(world.trouble.held_max):
        return world.run()


@contextmanager
def _held_max(most: int) -> Iterator[None]:
    before, held.HELD_MAX = held.HELD_MAX, most
    try:
        yield
    finally:
        held.HELD_MAX = before


class World:
    """Everything around the daemon."""

    def __init__(self, seed: int, hours: float, services: int | None = None) -> None:
        self.seed = seed
        self.hours = hours
        self.chance = Random(seed)
        self.loop = VirtualLoop()
        self.loop.failed = self._failed
        self.loop.after_step = self._step
        self.kernel = Kernel(self.loop, self.chance)
        self.kernel.signalled = self._signalled
        self.disk = Disk(self.loop, self.chance)
        self.trouble = trouble(self.chance)
        self.exits_known = self.trouble.exits_known
        self.config = language.config(self.chance, services or self.chance.randint(1, 7))
        self.programs = Programs(self.kernel, self.chance, self._say)
        self.ledger = Ledger()
        self.happened: Counter[str] = Counter()
        self.violation: BaseException | None = None
        self.life: Life | None = None
        self._is_quiet = False
        self._is_last = False
        self._is_doomed = False
        self._seen_seq = 0
        self._overdue: dict[str, tuple[str, int]] = {}

    # --- its course -------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """From the first boot to the last orderly stop. Raises Failure."""
        self._begin_troubles()
        self.loop.call_soon(self._boot)
        self.loop.after(self.hours * HOUR_S, self._calm)
        try:
            self.loop.run_forever()
            if self.violation is not None:
                raise self.violation
            self._check_end()
        except (Violation, Deadlock, Livelock) as error:
            raise Failure(self._told(error)) from error
        finally:
            self.loop.after_step = lambda: None
            self._let_go()
        return self._outcome()

    def _let_go(self) -> None:
        """End what is left of the last life, so that nothing is collected while it waits."""
        life = self.life
        if life is None:
            return
        self._is_last = True
        life.die("over")
        with suppress(Livelock):
            for _ in range(5):
                self.loop.call_soon(self.loop.stop)
                self.loop.run_forever()
        self.loop.close()

    def _outcome(self) -> Outcome:
        decisions = len({row[3] for row in self.disk.rows})
        return Outcome(
            seed=self.seed,
            hours=self.hours,
            digest=self.disk.digest(),
            rows=len(self.disk.rows),
            decisions=decisions,
            lives=self.happened["life"],
            kills=sum(n for name, n in self.happened.items() if name.startswith("killed")),
            commands=self.happened["command"],
            steps=self.loop.steps,
            happened=dict(self.happened),
            moves=dict(self.ledger.moves),
        )

    def _told(self, error: BaseException) -> str:
        service = error.service if isinstance(error, Violation) else None
        rows = [row for row in self.disk.rows if service is None or row[4] in (service, None)]
        lines = [
            f"  {row[0]} {row[2] / NS:.3f} {row[4]} {row[5]} {row[6]} {row[9]}" for row in rows
        ]
        what = str(error) or type(error).__name__
        return "\n".join(
            [
                f"seed {self.seed}, after {self.loop.time():.6f} s: {what}",
                f"  last rows of {service or 'the journal'}:",
                *lines[-ROWS_TOLD:],
                f"  again: tools/dev simulate --from {self.seed} --seeds 1 --hours {self.hours:g}",
            ]
        )

    def _boot(self) -> None:
        self.happened["life"] += 1
        self._is_doomed = False
        self._overdue.clear()
        self.life = Life(self)
        self.life.start_task(self.life.run())

    def over(self, life: Life, how: str) -> None:
        """A life of the daemon is over: its gates close, and the next one comes."""
        self.happened[how] += 1
        self.kernel.ended = lambda _process: None
        for process in list(self.kernel.processes.values()):
            if process.at_gate:
                delay_s = 0.0005 if self.chance.random() < 0.9 else self.chance.uniform(0.001, 0.2)
                self.kernel.end_in(delay_s, process, NEVER_RAN)
        if self._is_last:
            self.loop.stop()
            return
        if not self._is_quiet:
            self._while_nobody_watches()
        down_s = self.chance.choice([0.005, 0.1, 0.1, 0.1, 2.0, 60.0])
        self.loop.after(0.1 if self._is_quiet else down_s, self._boot)

    def _while_nobody_watches(self) -> None:
        """Services end, and their numbers become another's."""
        running = [each for each in self.kernel.processes.values() if each.has_run]
        if not running or self.chance.random() < 0.6:
            return
        for process in self.chance.sample(running, self.chance.randint(1, len(running))):
            self.kernel.end_in(
                self.chance.uniform(0.0, 1.0), process, self.chance.choice([0, 1, -9])
            )
            if self.chance.random() < 0.5:
                self.loop.after(1.1, self._reuse, process.pid)

    def _reuse(self, pid: int) -> None:
        if pid not in self.kernel.processes:
            self.happened["number reused"] += 1
            stranger = self.kernel.spawn("", None, pid=pid)
            self.kernel.end_in(self.chance.uniform(1.0, 300.0), stranger, 0)

    def _calm(self) -> None:
        """No more trouble: let everything settle, then end orderly."""
        self._is_quiet = True
        self.disk.full = self.disk.slow = False
        self.kernel.keeper.alive = True
        self.loop.after(QUIET_S, self._end)

    def _end(self) -> None:
        self._is_last = True
        assert self.life is not None
        if self.life.is_up:
            self.life.end(keep=False)
        self.loop.after(QUIET_S, self._not_in_time)

    def _not_in_time(self) -> None:
        inv.every_service_settles("", "the orderly stop does not end", QUIET_S)

    def _check_end(self) -> None:
        inv.nothing_is_left(self.kernel)
        trouble = self.disk.verified_by_sqlite()
        if trouble is not None:
            inv.broken(inv.chain_is_whole, None, trouble)

    # --- watching ---------------------------------------------------------------------------------

    def _hold(self, rule: Callable[..., object], *given: Any, **more: Any) -> None:
        """Apply a rule; the first violation ends the world."""
        try:
            rule(*given, **more)
        except Violation as violation:
            self.violation = self.violation or violation
            self.loop.stop()
            raise

    def _failed(self, error: BaseException | None, what: str) -> None:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if self.violation is not None or isinstance(error, Killed):
            return
        self.loop.stop()
        if isinstance(error, Violation):
            self.violation = error
            return
        try:
            inv.nobody_fails(error, what)
        except Violation as violation:
            violation.__cause__ = error
            self.violation = violation

    def _step(self) -> None:
        life = self.life
        if life is None or life.dead or not life.is_up or life.journal.busy:
            return
        registry = life.registry
        if registry.committed.seq == self._seen_seq:
            return
        self._seen_seq = registry.committed.seq
        inv.live_machines_are_the_fold(registry)
        if not registry._held._records:
            inv.projection_is_the_fold_of_the_rows(self.ledger, registry)
        inv.no_process_is_unknown(self.kernel, registry.committed.services)
        inv.a_process_is_known_by_its_start_time(self.kernel, registry.committed.services)

    def _look(self) -> None:
        """Whether everything settles."""
        life = self.life
        self.loop.after(LOOK_EVERY_S, self._look)
        if life is None or not life.is_up or life.dead:
            return
        services, now_ns = life.registry.committed.services, self.loop.now_ns
        for name, service in services.items():
            why = inv.overdue(service, services, self.kernel, self.kernel.now().mono_ns)
            known = self._overdue.get(name)
            if why is None or now_ns < life.stalled_until_ns:
                self._overdue.pop(name, None)
            elif known is None or known[0] != why:
                self._overdue[name] = (why, now_ns)
            elif now_ns - known[1] > self._patience_ns(service.definition):
                self._hold(inv.every_service_settles, name, why, (now_ns - known[1]) / NS)

    def _patience_ns(self, definition: Definition) -> int:
        """A daemon that stood still gives a run its start timeout again."""
        again_s = definition.start_timeout_s if self.trouble.stall_s is not None else 0.0
        return int((GRACE_S + again_s) * NS)

    def appended(self, rows: list[Row]) -> None:
        """Rows are durable."""
        self._hold(inv.take_in, self.ledger, self.kernel, rows)

    def spawning(self, definition: Definition, run: int) -> None:
        """A process is about to be made."""
        assert self.life is not None
        services = self.life.registry._live.services
        self._hold(inv.dependencies_are_met_at_a_spawn, definition, services)

    def opening(self, process: Process) -> None:
        """A gate is about to be opened."""
        assert self.life is not None
        registry = self.life.registry
        self._hold(inv.nothing_runs_before_its_pid_is_known, self.ledger, registry, process)

    def opened(self, process: Process, definition: Definition) -> None:
        """A program begins."""
        self.happened["run"] += 1
        self.programs.begin(process, definition)
        self._hold(inv.one_run_lives_of_a_service, self.kernel)

    def stopping(self, service: str, run: int) -> None:
        """A run is about to be stopped."""
        self.happened["stop"] += 1

    def _signalled(self, key: Key, process: Process) -> None:
        self._hold(inv.no_signal_reaches_a_stranger, key, process)

    # --- what may go wrong ------------------------------------------------------------------------

    def may_die(self, name: str) -> bool:
        """Whether the daemon is killed at this point; a planned death prefers points to other moments."""
        if self._is_quiet:
            return False
        return self._is_doomed or self.chance.random() < self.trouble.deadly

    def refused_spawn(self) -> Reason | None:
        """Why no process can be made just now."""
        if self._is_quiet or self.chance.random() >= self.trouble.refused:
            return None
        self.happened["spawn refused"] += 1
        return self.chance.choice(refusals())

    def delivery_s(self) -> float:
        """How long it takes until somebody is told."""
        if self.chance.random() < self.trouble.late:
            return self.chance.uniform(0.01, 3.0)
        return self.chance.uniform(0.0001, 0.001)

    def _say(self, note: Note) -> None:
        """A service says something: the daemon hears it, or the keeper keeps it."""
        life, keeper = self.life, self.kernel.keeper
        if note.kind == "ready" and note.process.key is not None:
            self.ledger.said_ready.add(note.process.key)
        if life is not None and life.is_up and not life.dead:
            life.later(self.delivery_s(), life.host.hear, note)
        elif keeper.alive:
            keeper.notes.append(note)

    def _begin_troubles(self) -> None:
        each = self.trouble
        self.loop.after(LOOK_EVERY_S, self._look)
        self._now_and_then(each.kill_s, self._kill)
        self._now_and_then(each.reboot_s, self._reboot)
        self._now_and_then(each.wall_s, self._jump)
        self._now_and_then(each.stall_s, self._stall)
        self._now_and_then(each.keeper_s, self._kill_keeper)
        self._now_and_then(each.disk_s, self._spoil_disk)
        self._now_and_then(each.operator_s, self._operate)
        self._now_and_then(each.apply_s, self._apply)
        self._now_and_then(each.end_s, self._end_life)
        self._now_and_then(1800.0, self._change_habit)

    def _now_and_then(self, mean_s: float | None, action: Callable[[], None]) -> None:
        if mean_s is not None and not self._is_quiet:
            self.loop.after(self.chance.uniform(0.0, 2.0) * mean_s, self._again, mean_s, action)

    def _again(self, mean_s: float, action: Callable[[], None]) -> None:
        self._unless_quiet(action)
        self._now_and_then(mean_s, action)

    def _unless_quiet(self, action: Callable[[], None]) -> None:
        if not self._is_quiet:
            action()

    def _kill(self) -> None:
        life = self.life
        if life is None or life.dead:
            return
        if self.chance.random() < 0.6:
            self._is_doomed = True  # at the next point: something is in flight
        else:
            life.die("killed at any moment")

    def _reboot(self) -> None:
        self.happened["reboot"] += 1
        if self.life is not None:
            self.life.die("reboot")
        self.kernel.reboot()
        self.ledger.fresh = True

    def _jump(self) -> None:
        self.happened["wall clock jumps"] += 1
        self.kernel.wall_ns += (
            int(self.chance.choice([-1, 1]) * self.chance.uniform(1, 90_000)) * NS
        )

    def _stall(self) -> None:
        if self.life is not None:
            self.happened["stall"] += 1
            until_ns = self.loop.now_ns + int(self.chance.uniform(0.3, 100.0) * NS)
            self.life.stalled_until_ns = max(self.life.stalled_until_ns, until_ns)

    def _kill_keeper(self) -> None:
        self.happened["keeper dies"] += 1
        keeper = self.kernel.keeper
        keeper.alive = False
        keeper.notes.clear()
        if self.life is None or self.life.dead:
            keeper.kept.clear()
        else:
            self.loop.after(0.1, self._keeper_again, self.life)

    def _keeper_again(self, life: Life) -> None:
        if life.dead:
            self.kernel.keeper.kept.clear()
        else:
            self.kernel.keeper.alive = True

    def _spoil_disk(self) -> None:
        disk = self.disk
        if disk.full or disk.slow:
            return
        disk.full, disk.slow = self.chance.choice([(True, False), (False, True), (True, True)])
        self.happened["disk full"] += disk.full
        self.happened["disk slow"] += disk.slow
        bad_s = self.chance.choice([0.05, 2.0, 30.0, 200.0])
        self.loop.after(bad_s, setattr, disk, "full", False)
        # room again, and much to catch up with
        self.loop.after(2 * bad_s, setattr, disk, "slow", False)
        if self.trouble.kill_s is not None and self.chance.random() < 0.4:
            self.loop.after(self.chance.uniform(0.0, 1.2) * bad_s, self._unless_quiet, self._kill)

        if self.chance.random() < 0.7:  # services need the disk, too
            for _ in range(3):
                self.loop.after(self.chance.uniform(0.0, 1.0) * bad_s, self._crash_one)

    def _crash_one(self) -> None:
        running = [each for each in self.kernel.processes.values() if each.has_run]
        if running and not self._is_quiet:
            self.kernel.end(self.chance.choice(running), 1)

    def _change_habit(self) -> None:
        name = self.chance.choice([each.name for each in self.config.definitions])
        self.programs.habits[name] = habit(self.chance)

    def _end_life(self) -> None:
        if self.life is not None and self.life.is_up:
            keep = self.chance.random() < 0.6
            self.happened["ended, services kept" if keep else "ended, services stopped"] += 1
            self.life.end(keep=keep)

    # --- operators --------------------------------------------------------------------------------

    def _operate(self) -> None:
        """One command, or several at once, by different people."""
        count = self.chance.choice([1, 1, 1, 2, 4])
        about = self.chance.choice([each.name for each in self.config.definitions])
        for _ in range(count):
            self.loop.after(self.chance.uniform(0.0, 0.005), self._command, about)

    def _command(self, about: str) -> None:
        chance, life = self.chance, self.life
        if life is None or not life.is_up or life.dead:
            return
        names = [each.name for each in self.config.definitions]
        some = chance.sample(names, chance.randint(1, len(names)))
        names = [about] if chance.random() < 0.6 else some
        verbs = ["start"] * 4 + ["stop"] * 2 + ["restart"] * 2 + ["reset", "signal", "reload"]
        verb = chance.choice(verbs)
        wait = chance.random() < 0.3
        self.happened["command"] += 1
        peer = Peer(uid=1000 + chance.randrange(3), gid=1000, pid=77, program="circlectl")
        life.start_task(self._ask(life, verb, self._params(verb, names, wait), peer))

    def _params(self, verb: str, names: list[str], wait: bool) -> msgspec.Struct:
        match verb:
            case "stop":
                with_dependents = self.chance.random() < 0.4
                return StopParams(service=names, wait=wait, with_dependents=with_dependents)
            case "signal":
                return SignalParams(
                    service=names, signal=self.chance.choice(["HUP", "TERM", "KILL"])
                )
            case "reload":
                return ReloadParams(service=names, wait=wait)
        return CommandParams(service=names, wait=wait)

    async def _ask(self, life: Life, verb: str, params: msgspec.Struct, peer: Peer) -> None:
        try:
            answer = await life.ask(verb, params, peer)
        except ApiError as error:
            self.happened[f"answered {error.code.value}"] += 1
            return
        for item in answer if not life.dead else ():
            if isinstance(item, dict) and "already" in item:
                self._hold(
                    inv.an_answered_command_is_in_the_journal,
                    self.ledger,
                    verb,
                    item["name"],
                    item["seq"],
                    already=item["already"],
                )

    def _apply(self) -> None:
        """The file is changed; most of the time somebody has it taken up, too."""
        self.config = language.changed(self.chance, self.config)
        life = self.life
        if life is not None and life.is_up and not life.dead and self.chance.random() < 0.9:
            self.happened["apply"] += 1
            life.start_task(self._apply_in(life))

    async def _apply_in(self, life: Life) -> None:
        try:
            await life.configuration.apply(Actor(1000, 77, "circlectl"))
        except ApiError as error:
            self.happened[f"answered {error.code.value}"] += 1
