"""What goes wrong by itself, now and then: kills, reboots, clocks, the disk, the keeper, services, all at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.simulation.kernel import NEVER_RAN, Process
from tests.simulation.life import Life
from tests.simulation.loop import NS

if TYPE_CHECKING:
    from tests.simulation.world import World


class Mischief:
    """All trouble of one world that nobody asks for."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._chance = world.chance
        self._loop = world.loop
        self._kernel = world.kernel
        self._happened = world.happened

    def begin(self) -> None:
        """From now on."""
        each, operators = self._world.trouble, self._world.operators
        self._now_and_then(each.kill_s, self._kill)
        self._now_and_then(each.reboot_s, self._reboot)
        self._now_and_then(each.wall_s, self._jump)
        self._now_and_then(each.stall_s, self._stall)
        self._now_and_then(each.keeper_s, self._kill_keeper)
        self._now_and_then(each.disk_s, self._spoil_disk)
        self._now_and_then(each.operator_s, operators.operate)
        self._now_and_then(each.quarrel_s, operators.quarrel)
        self._now_and_then(each.meddle_s, operators.meddle)
        self._now_and_then(each.apply_s, operators.apply)
        self._now_and_then(each.storm_s, self._storm)
        self._now_and_then(each.end_s, self._end_life)
        self._now_and_then(each.habit_s, self._change_habit)

    def while_nobody_watches(self) -> None:
        """Gates close; services end, and their numbers become another's."""
        for process in list(self._kernel.processes.values()):
            if process.at_gate:
                quick = self._chance.random() < 0.9
                delay_s = 0.0005 if quick else self._chance.uniform(0.001, 0.2)
                process.is_ending = True
                self._kernel.end_in(delay_s, process, NEVER_RAN)
        if self._world.is_quiet:
            return
        running = self._running()
        if not running or self._chance.random() >= self._world.trouble.unwatched:
            return
        for process in self._chance.sample(running, self._chance.randint(1, len(running))):
            self._happened["service ends unwatched"] += 1
            code = self._chance.choice([0, 1, -9])
            self._kernel.end_in(self._chance.uniform(0.0, 1.0), process, code)
            if self._chance.random() < 0.5:
                self._loop.after(1.1, self._reuse, process.pid)

    def fill_disk(self) -> None:
        """Full from now on; the daemon is killed before there is room again."""
        self._happened["disk full where a run begins"] += 1
        self._world.disk.full = True
        self._loop.after(self._chance.uniform(0.005, 4.0), self._kill_unjournaled, self._world.life)

    def _kill_unjournaled(self, life: Life) -> None:
        self._world.disk.full = False
        if not self._world.is_quiet:
            life.die("killed while the disk is full")

    def _now_and_then(self, mean_s: float | None, action: Callable[[], None]) -> None:
        if mean_s is not None and not self._world.is_quiet:
            self._loop.after(self._chance.uniform(0.0, 2.0) * mean_s, self._again, mean_s, action)

    def _again(self, mean_s: float, action: Callable[[], None]) -> None:
        self._unless_quiet(action)
        self._now_and_then(mean_s, action)

    def _unless_quiet(self, action: Callable[[], None]) -> None:
        if not self._world.is_quiet:
            action()

    def _running(self) -> list[Process]:
        return [each for each in self._kernel.processes.values() if each.has_run]

    # --- the daemon and the machine ---------------------------------------------------------------

    def _kill(self) -> None:
        life = self._world.life
        if life is None or life.dead:
            return
        if self._chance.random() < 0.6:
            self._world.is_doomed = True  # at the next point: something is in flight
        else:
            life.die("killed at any moment")

    def _reboot(self) -> None:
        self._happened["reboot"] += 1
        if self._world.life is not None:
            self._world.life.die("reboot")
        self._kernel.reboot()
        self._world.ledger.fresh = True

    def _jump(self) -> None:
        self._happened["wall clock jumps"] += 1
        seconds = int(self._chance.choice([-1, 1]) * self._chance.uniform(1, 90_000))
        self._kernel.wall_ns += seconds * NS

    def _stall(self) -> None:
        life = self._world.life
        if life is not None:
            self._happened["daemon stands still"] += 1
            until_ns = self._loop.now_ns + int(self._chance.uniform(0.3, 100.0) * NS)
            life.stalled_until_ns = max(life.stalled_until_ns, until_ns)

    def _kill_keeper(self) -> None:
        self._happened["keeper dies"] += 1
        keeper, life = self._kernel.keeper, self._world.life
        keeper.alive = False
        keeper.notes.clear()
        if life is None or life.dead:
            keeper.kept.clear()
        else:
            self._loop.after(0.1, self._keeper_again, life)

    def _keeper_again(self, life: Life) -> None:
        if life.dead:
            self._kernel.keeper.kept.clear()
        else:
            self._kernel.keeper.alive = True

    def _reuse(self, pid: int) -> None:
        if pid not in self._kernel.processes:
            self._happened["number reused"] += 1
            stranger = self._kernel.spawn("", None, pid=pid)
            self._kernel.end_in(self._chance.uniform(1.0, 300.0), stranger, 0)

    def _end_life(self) -> None:
        life = self._world.life
        if life is not None and life.is_up:
            keep = self._chance.random() < 0.6
            self._happened["ended, services kept" if keep else "ended, services stopped"] += 1
            life.end(keep=keep)

    # --- disk and services ------------------------------------------------------------------------

    def _spoil_disk(self) -> None:
        disk, chance = self._world.disk, self._chance
        if disk.full or disk.slow:
            return
        disk.full, disk.slow = chance.choice([(True, False), (False, True), (True, True)])
        self._happened["disk full"] += disk.full
        self._happened["disk slow"] += disk.slow
        bad_s = chance.choice([0.05, 2.0, 30.0, 200.0])
        self._loop.after(bad_s, setattr, disk, "full", False)
        # room again, and much to catch up with
        self._loop.after(2 * bad_s, setattr, disk, "slow", False)
        if self._world.trouble.kill_s is not None and chance.random() < 0.4:
            self._loop.after(chance.uniform(0.0, 1.2) * bad_s, self._unless_quiet, self._kill)
        if chance.random() < 0.7:  # services need the disk, too
            for _ in range(3):
                self._loop.after(chance.uniform(0.0, 1.0) * bad_s, self._crash_one)

    def _crash_one(self) -> None:
        running = self._running()
        if running and not self._world.is_quiet:
            self._kernel.end(self._chance.choice(running), 1)

    def _storm(self) -> None:
        """All, or all that others depend on, end at the same moment, and often not only once."""
        self._happened["dependency storm"] += 1
        definitions = self._world.config.definitions
        needed = {need.service for each in definitions for need in each.depends_on}
        only_needed = self._chance.random() < 0.6
        for delay_s in (0.0, 0.3, 1.0)[: self._chance.randint(1, 3)]:
            self._loop.after(delay_s, self._crash_all, needed if only_needed else None)

    def _crash_all(self, names: set[str] | None) -> None:
        if self._world.is_quiet:
            return
        for process in self._running():
            if process.key is not None and (names is None or process.key[0] in names):
                self._kernel.end(process, 1)

    def _change_habit(self) -> None:
        definition = self._chance.choice(self._world.config.definitions)
        self._world.programs.change(definition.name)
