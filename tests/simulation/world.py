"""A world out of one seed: machine, disk, operators and all trouble, and the daemon that lives in it over and over.

Law: every choice comes from one `random.Random`, in an order that only the seed decides.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from random import Random
from typing import Any

import msgspec

from registry import held
from registry.core.definition import Definition
from registry.core.lifecycle import Reason
from registry.core.projection import Projection
from registry.core.service import Service
from registry.journal.rows import Row
from tests.simulation import invariants as inv
from tests.simulation.coverage import SELDOM
from tests.simulation.disk import Disk, Move
from tests.simulation.host import refusals
from tests.simulation.invariants import Ledger, Violation
from tests.simulation.kernel import Kernel, Key, Note, Process
from tests.simulation.language import Language
from tests.simulation.life import Killed, Life
from tests.simulation.loop import NS, Deadlock, Livelock, VirtualLoop
from tests.simulation.mischief import Mischief
from tests.simulation.operators import Operators
from tests.simulation.patience import Patience
from tests.simulation.programs import Programs
from tests.simulation.trouble import trouble

HOUR_S = 3600.0
QUIET_S = 400.0
"""Without any trouble at the end: enough for the longest timeouts one after the other."""
ROWS_TOLD = 12
ALL_EVERY = 64
"""Commits after which every live machine is compared with the fold, not only those that had events."""
MEANWHILE = 0.3
"""The part of spawns during which others have their turn: while clients are connected they have."""


class Task(msgspec.Struct, frozen=True):
    """What to simulate: everything else follows from it. `services` None is a few."""

    seed: int
    hours: float = 1.0
    services: int | None = None
    pace: float = 1.0

    def command(self) -> str:
        """What does it again."""
        more = f" --services {self.services}" if self.services is not None else ""
        more += f" --pace {self.pace:g}" if self.pace != 1.0 else ""
        return f"tools/dev simulate --from {self.seed} --seeds 1 --hours {self.hours:g}{more}"


class Outcome(msgspec.Struct, frozen=True):
    """What came of one seed. `before` and `after`: what was in batches that a kill kept out, or that it followed."""

    task: Task
    profile: str
    digest: str
    rows: int
    decisions: int
    kills: int
    steps: int
    happened: dict[str, int]
    moves: dict[Move, int]
    before: dict[Move, int]
    after: dict[Move, int]


class Failure(Exception):
    """A violation: its seed, when, which sentence, and the last rows of the service."""


def simulate(seed: int, hours: float, services: int | None = None, pace: float = 1.0) -> Outcome:
    """Let a world run that long. Raises Failure."""
    logging.getLogger("registry").setLevel(logging.CRITICAL + 1)
    world = World(Task(seed, hours, services, pace))
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

    def __init__(self, task: Task) -> None:
        self.task = task
        self.chance = Random(task.seed)
        self.happened: Counter[str] = Counter()
        self.trouble = trouble(self.chance, task.seed, task.pace)
        self.exits_known = self.trouble.exits_known
        count = task.services or self.chance.randint(*self.trouble.taste.services)
        self.loop = VirtualLoop()
        self.loop.failed = self._failed
        self.loop.after_step = self._step
        self.kernel = Kernel(self.loop, self.chance, count)
        self.kernel.signalled = self._signalled
        self.kernel.gone = self._gone
        self.disk = Disk(self.loop, self.chance)
        self.language = Language(self.chance, self.trouble.taste, count)
        self.config = self.language.first()
        self.programs = Programs(
            self.kernel, self.chance, self._say, self.happened, self.trouble.taste, task.pace
        )
        self.ledger = Ledger()
        self.operators = Operators(self)
        self.mischief = Mischief(self)
        self.patience = Patience(
            self.loop,
            self.kernel,
            lambda: self.life,
            self.hold,
            stalls=self.trouble.stall_s is not None,
        )
        self.before: Counter[Move] = Counter()
        self.after: Counter[Move] = Counter()
        self.begun_while_full: Counter[str] = Counter()
        self.violation: BaseException | None = None
        self.life: Life | None = None
        self.is_quiet = False
        self.is_doomed = False
        self._is_last = False
        self._seen: tuple[Life | None, int] = (None, 0)
        self._commits = 0

    # --- its course -------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """From the first boot to the last orderly stop. Raises Failure."""
        self.patience.begin()
        self.mischief.begin()
        self.loop.call_soon(self._boot)
        self.loop.after(self.task.hours * HOUR_S, self._calm)
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
        return Outcome(
            task=self.task,
            profile=self.trouble.profile,
            digest=self.disk.digest(),
            rows=self.disk.count,
            decisions=self.disk.decisions,
            kills=sum(n for name, n in self.happened.items() if name.startswith("killed")),
            steps=self.loop.steps,
            happened=dict(self.happened),
            moves=dict(self.ledger.moves),
            before=dict(self.before),
            after=dict(self.after),
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
                f"seed {self.task.seed}, after {self.loop.time():.6f} s: {what}",
                f"  last rows of {service or 'the journal'}:",
                *lines[-ROWS_TOLD:],
                f"  again: {self.task.command()}",
            ]
        )

    def _boot(self) -> None:
        self.happened["life"] += 1
        self.is_doomed = False
        self.patience.begin_anew()
        self.life = Life(self)
        self.life.start_task(self.life.run())
        if self.trouble.apply_s is not None and self.chance.random() < 0.1 / self.task.pace:
            self.operators.hurry()

    def fold(self) -> Projection:
        """The fold of all rows, for a daemon that begins."""
        folded = self.ledger.folded
        services = {name: _copied(service) for name, service in folded.services.items()}
        return msgspec.structs.replace(folded, services=services, last_runs=dict(folded.last_runs))

    def over(self, life: Life, how: str) -> None:
        """A life of the daemon is over: its gates close, and the next one comes."""
        self.happened[how] += 1
        (self.after if life.journal.is_durable else self.before).update(life.journal.moves)
        self.kernel.ended = lambda _process: None
        self.mischief.while_nobody_watches()
        if self._is_last:
            self.loop.stop()
            return
        down_s = self.chance.choice([0.005, 0.1, 0.1, 0.1, 2.0, 60.0])
        self.loop.after(0.1 if self.is_quiet else down_s, self._boot)

    def _calm(self) -> None:
        """No more trouble: let everything settle, then end orderly."""
        self.is_quiet = True
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
        if not self.disk.dropped:
            inv.all_rows_fold_alike(self.ledger, self.disk.rows)
        trouble = self.disk.verified_by_sqlite()
        if trouble is not None:
            inv.broken(inv.chain_is_whole, None, trouble)

    # --- watching ---------------------------------------------------------------------------------

    def hold(self, rule: Callable[..., object], *given: Any, **more: Any) -> None:
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
        if life is None or life.dead or not life.is_up or life.journal.busy or life.host.busy:
            return
        registry = life.registry
        seen_life, seen_seq = self._seen
        if registry.committed.seq == seen_seq:
            return
        self._seen = (life, registry.committed.seq)
        self._commits += 1
        recent = registry.recent_since(seen_seq) if seen_life is life else None
        is_all = recent is None or self._commits % ALL_EVERY == 0
        names = None if is_all else {each.service or "": None for each in recent or ()}
        inv.live_machines_are_the_fold(registry, names)
        if not registry._held._records:
            inv.projection_is_the_fold_of_the_rows(self.ledger, registry)
        inv.no_process_is_unknown(self.kernel, registry.committed.services)
        inv.a_process_is_known_by_its_start_time(self.kernel, registry.committed.services)
        self.patience.doubt(registry.committed.services if names is None else names)

    def _gone(self, process: Process) -> None:
        if process.key is not None:
            self.patience.doubt([process.key[0]])

    def appended(self, rows: list[Row]) -> None:
        """Rows are durable."""
        self.hold(inv.take_in, self.ledger, self.kernel, rows)

    def spawning(self, definition: Definition, run: int) -> None:
        """A process is about to be made."""
        assert self.life is not None
        services = self.life.registry._live.services
        self.hold(inv.dependencies_are_met_at_a_spawn, definition, services)

    def opening(self, process: Process) -> None:
        """A gate is about to be opened."""
        assert self.life is not None
        registry = self.life.registry
        self.hold(inv.nothing_runs_before_its_pid_is_known, self.ledger, registry, process)

    def opened(self, process: Process, definition: Definition) -> None:
        """A program begins."""
        self.happened["run"] += 1
        self.programs.begin(process, definition)
        self.hold(inv.one_run_lives_of_a_service, self.kernel)

    def stopping(self, service: str, run: int) -> None:
        """A run is about to be stopped."""
        self.happened["stop"] += 1
        assert self.life is not None
        services = self.life.registry.committed.services
        self.hold(inv.nothing_is_stopped_before_its_cause_is_known, services, service, run)

    def releasing(self, service: str, run: int) -> None:
        """The keeper is about to let go of a run."""
        self.hold(inv.nothing_is_let_go_of_that_runs, self.kernel, service, run)

    def _signalled(self, key: Key, process: Process) -> None:
        self.hold(inv.no_signal_reaches_a_stranger, key, process)

    # --- what may go wrong just now ---------------------------------------------------------------

    def may_die(self, name: str) -> bool:
        """Whether the daemon is killed at this point; a planned death prefers points to other moments."""
        if self.is_quiet:
            return False
        if name == "append" and self._begins_what_is_rare():
            self.mischief.fill_disk()
            return False
        is_rare = name in ("append", "appended") and self._is_rare(made=name == "appended")
        return self.is_doomed or is_rare or self.chance.random() < self.trouble.deadly

    def _is_rare(self, *, made: bool) -> bool:
        """Whether a row of the table that was seldom visited so far is under way, and the steering wills it."""
        moves = self.life.journal.moves if self.life is not None else []
        if not self.trouble.steered or not moves or self.task.pace > 1.0:
            return False
        if any(move in SELDOM for move in moves):
            return self.chance.random() < (0.5 if made else 1 / 3)
        seen = min(self.ledger.moves[move] + self.before[move] for move in moves) - made
        often = self.trouble.steered if made else 0.6 * self.trouble.steered
        return self.chance.random() < often / (1 + seen) ** 2

    def _begins_what_is_rare(self) -> bool:
        """Whether a run is to begin in a state, by the journal, in which that was seldom while the disk was full."""
        life = self.life
        if not self.trouble.unjournaled or life is None or self.disk.full or not life.is_up:
            return False
        names = [name for name, move in life.journal.moved if move[0] == "spawned"]
        services = self.ledger.folded.services
        states = [f"{services[name].state}" for name in names if name in services]
        if not states:
            return False
        state = min(states, key=lambda each: self.begun_while_full[each])
        rarely = self.trouble.unjournaled / (1 + self.begun_while_full[state] / 10)
        if self.chance.random() >= rarely:
            return False
        self.begun_while_full[state] += 1
        return True

    def refused_spawn(self) -> Reason | None:
        """Why no process can be made just now."""
        if self.is_quiet or self.chance.random() >= self.trouble.refused:
            return None
        self.happened["spawn refused"] += 1
        return self.chance.choice(refusals())

    def spawn_s(self) -> float:
        """How long the next process takes to be made, while others have their turn."""
        if self.chance.random() >= MEANWHILE:
            return 0.0
        self.happened["others had their turn during a spawn"] += 1
        return self.chance.uniform(0.0002, 0.002)

    def delivery_s(self) -> float:
        """How long it takes until somebody is told."""
        if self.chance.random() < self.trouble.late:
            self.happened["told late"] += 1
            return self.chance.uniform(0.01, 3.0)
        return self.chance.uniform(0.0001, 0.001)

    def _say(self, note: Note) -> None:
        """A service says something: the daemon hears it, or the keeper keeps it."""
        life, keeper = self.life, self.kernel.keeper
        if note.kind == "ready" and note.process.key is not None:
            self.ledger.said_ready[note.process.key] = None
        for _ in range(2 if self._is_told_twice() else 1):
            if life is not None and life.is_up and not life.dead:
                life.later(self.delivery_s(), life.host.hear, note)
            elif keeper.alive:
                keeper.notes.append(note)

    def _is_told_twice(self) -> bool:
        is_twice = self.chance.random() < self.trouble.twice
        self.happened["told twice"] += is_twice
        return is_twice


def _copied(service: Service) -> Service:
    """A service that may be folded further without a change of the first."""
    mine = copy(service)
    mine.checks = {name: copy(state) for name, state in service.checks.items()}
    return mine
