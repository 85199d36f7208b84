"""The simulated world without chance: nothing happens to it but what it is told, one thing after the other.

Law: it is the same world, with its rules after every step; only who makes the trouble is another.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import msgspec

from registry.api.access import Peer
from registry.api.actions import CommandParams, ReloadParams, SignalParams, StopParams
from registry.config import AccessSettings, Config, JournalSettings, RegistrySettings
from registry.core.definition import (
    Check,
    Condition,
    Definition,
    Dependency,
    OnFailure,
    Policy,
    Ready,
    Reload,
    Restart,
    Stop,
)
from registry.core.lifecycle import Reason
from tests.simulation.kernel import Note, Process
from tests.simulation.loop import NS, Deadlock, Livelock
from tests.simulation.patience import Patience
from tests.simulation.programs import Habit
from tests.simulation.world import Failure, Task, World

STEADY = Habit(0.0, 0.0, None, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
"""It does nothing of itself but get ready, and stops at once when told to."""
BEAT = Check("beat", "unix:/s", interval_s=10.0, timeout_s=1.0, failures=2)
KINDS: dict[str, dict[str, object]] = {
    "steady": {},
    "slow": {"ready": Ready.NOTIFY},
    "checked": {"checks": (BEAT,)},
    "reported": {"checks": (msgspec.structs.replace(BEAT, on_failure=OnFailure.REPORT),)},
    "oneshot": {"oneshot": True, "restart": Restart(Policy.ON_FAILURE, limit=3, within_s=600.0)},
    "limited": {"restart": Restart(Policy.ALWAYS, limit=2, within_s=60.0)},
    "never": {"restart": Restart(Policy.NEVER)},
    "on failure": {"restart": Restart(Policy.ON_FAILURE)},
    "manual": {"autostart": False},
}


def service(name: str, kind: str, run: str, needs: Iterable[Dependency]) -> Definition:
    """A service of one of the KINDS. What it needs is left out where it can never come true."""
    return Definition(
        name=name,
        cmd=(run,),
        stop=Stop(timeout_s=5.0),
        start_timeout_s=20.0,
        reload=Reload(signal="SIGHUP"),
        depends_on=tuple(needs),
        **KINDS[kind],  # type: ignore[arg-type]
    )


def can_be(definition: Definition, condition: Condition) -> bool:
    """Whether a configuration may ask for this condition of a service (registry/config/dependencies.py)."""
    match condition:
        case Condition.HEALTHY:
            return bool(definition.checks)
        case Condition.COMPLETED:
            return definition.oneshot or definition.restart.policy is not Policy.ALWAYS
        case Condition.READY:
            return not definition.oneshot
    return True


def configuration(definitions: Iterable[Definition]) -> Config:
    """These services, in this order."""
    placed = [msgspec.structs.replace(each, position=n) for n, each in enumerate(definitions)]
    return Config(
        file=Path("/simulated/services.toml"),
        folder=Path("/simulated/services.d"),
        root=Path("/simulated"),
        registry=RegistrySettings(),
        journal=JournalSettings("/simulated/registry.db"),
        access=AccessSettings(),
        definitions=tuple(placed),
        environments={},
        hooks=(),
        hook_places=(),
        sources=(),
        places={},
    )


class ToldWorld(World):
    """A world in which only what is asked for happens."""

    def __init__(self, definitions: Iterable[Definition]) -> None:
        logging.getLogger("registry").setLevel(logging.CRITICAL + 1)
        super().__init__(Task(seed=1, hours=0.0, services=1))
        quiet = {"apply_s": None, "late": 0.0, "twice": 0.0, "unwatched": 0.0}
        self.trouble = msgspec.structs.replace(self.trouble, **quiet)
        self.exits_known = True
        self.config = configuration(definitions)
        self.patience = Patience(self.loop, self.kernel, lambda: self.life, self.hold, stalls=True)
        self._deadly: str | None = None
        self._refusal: Reason | None = None
        self._become_steady()
        self.patience.begin()
        self.loop.call_soon(self._boot)
        self.wait(0.5)

    def _become_steady(self) -> None:
        for definition in self.config.definitions:
            self.programs.habits[definition.name] = STEADY

    # --- time ---------------------------------------------------------------------------------------

    def wait(self, seconds: float) -> None:
        """Let time pass. Raises Failure where a rule is broken meanwhile."""
        self.loop.after(seconds, self.loop.stop)
        try:
            self.loop.run_forever()
        except (Deadlock, Livelock) as error:
            self.violation = self.violation or error
        self._hold_up()

    def _hold_up(self) -> None:
        if self.violation is not None:
            raise Failure(self._told(self.violation)) from self.violation

    def finish(self) -> None:
        """No more trouble: everything settles, and an orderly end leaves nothing."""
        try:
            self._deadly = self._refusal = None
            self._calm()
            self.loop.run_forever()
            self._hold_up()
            self._check_end()
        finally:
            self.let_go()

    def let_go(self) -> None:
        """End what is left."""
        self.loop.after_step = lambda: None
        self._let_go()

    # --- death --------------------------------------------------------------------------------------

    def may_die(self, name: str) -> bool:
        """Whether the daemon is to die at this point."""
        if name != self._deadly:
            return False
        self._deadly = None
        return True

    def kill(self) -> None:
        """Kill the daemon now."""
        if self.life is not None and not self.life.dead:
            self.life.die("killed at any moment")

    def kill_at(self, point: str) -> None:
        """Kill it when it gets to this point the next time."""
        self._deadly = point

    def end(self, *, keep: bool) -> None:
        """End it orderly; another one follows."""
        if self.life is not None and self.life.is_up:
            self.life.end(keep=keep)

    # --- trouble ------------------------------------------------------------------------------------

    def refused_spawn(self) -> Reason | None:
        """Why the next process cannot be made."""
        refusal, self._refusal = self._refusal, None
        return refusal

    def refuse(self, reason: Reason) -> None:
        """The next spawn is refused."""
        self._refusal = reason

    def spawn_s(self) -> float:
        """How long the next process takes to be made, while others have their turn."""
        return 0.0

    def delivery_s(self) -> float:
        """How long it takes until somebody is told."""
        return 0.0005

    def reboot(self) -> None:
        """Another boot."""
        self.mischief._reboot()

    def jump(self, seconds: float) -> None:
        """The clock of people jumps."""
        self.kernel.wall_ns += int(seconds * NS)

    def stall(self, seconds: float) -> None:
        """The daemon stands still."""
        if self.life is not None:
            self.life.stalled_until_ns = self.loop.now_ns + int(seconds * NS)

    def fill_disk(self, *, full: bool) -> None:
        """The disk is full, or has room again."""
        self.disk.full = full

    def kill_keeper(self) -> None:
        """The keeper dies; another one follows where there is a daemon."""
        self.mischief._kill_keeper()

    # --- processes ----------------------------------------------------------------------------------

    def main(self, service: str) -> Process | None:
        """The main process of a service, if its program runs."""
        for process in self.kernel.processes.values():
            if process.key is not None and process.key[0] == service and process.is_main:
                return process if process.has_run else None
        return None

    def exit(self, service: str, code: int) -> None:
        """Its main process ends."""
        if (process := self.main(service)) is not None:
            self.kernel.end(process, code)

    def fork(self, service: str) -> None:
        """It gets a child in its group."""
        if (process := self.main(service)) is not None:
            child = self.kernel.spawn(process.journal_id, process.key, is_main=False)
            child.has_run = True

    def deafen(self, service: str, *, well: bool) -> None:
        """Its processes do not heed a stop any more; its checks succeed or not."""
        if (process := self.main(service)) is not None:
            self.turn(service, well=well)
            for member in self.kernel.members(process.key or ("", 0)):
                member.stops_in_s = None

    def turn(self, service: str, *, well: bool) -> None:
        """Its checks succeed from now on, or fail."""
        process = self.main(service)
        if process is not None and process.well is not well:
            process.well = well
            process.changed()

    def say(self, service: str, kind: str, value: float = 10.0) -> None:
        """It says something of itself, where somebody listens."""
        definition = next((d for d in self.config.definitions if d.name == service), None)
        process = self.main(service)
        if process is not None and definition is not None and definition.is_notified:
            self._say(Note(process, kind, value))

    # --- operators ----------------------------------------------------------------------------------

    def command(self, verb: str, names: list[str]) -> None:
        """An operator asks for something, and does not wait for it."""
        life = self.life
        if life is None or not life.is_up or life.dead:
            return
        params: msgspec.Struct = CommandParams(service=names)
        match verb:
            case "stop":
                params = StopParams(service=names)
            case "stop with dependents":
                verb, params = "stop", StopParams(service=names, with_dependents=True)
            case "signal":
                params = SignalParams(service=names, signal="HUP")
            case "reload":
                params = ReloadParams(service=names)
        peer = Peer(uid=1000, gid=1000, pid=77, program="circlectl")
        life.start_task(self.operators._ask(life, verb, params, peer))

    def apply(self, definitions: Iterable[Definition]) -> None:
        """The file is changed, and taken up."""
        self.config = configuration(definitions)
        self._become_steady()
        life = self.life
        if life is not None and life.is_up and not life.dead:
            life.start_task(self.operators._apply_in(life))
