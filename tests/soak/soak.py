"""One soak: cycles of load, each ended by a quiet moment in which everything is measured that ought to be flat.

Some cycles begin with a storm in which the registry and its keeper are killed and upgraded; between two storms one
process of the registry lives on, so that its growth can be judged.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from random import Random
from statistics import median
from typing import Any

import msgspec

from registry.client import AsyncClient, RegistryError
from registry.journal.opening import open_for_reading
from registry.journal.read import verify
from tests.soak import sight
from tests.soak.load import Load
from tests.soak.rules import Holding, Quiet
from tests.soak.sight import Process, Sight
from tests.soak.world import RESTLESS, STEADY, TMP, Fleet

UP_WITHIN_S = 120.0
QUIET_WITHIN_S = 120.0
"""Far more than either needs: whoever shares the machine may take most of it."""
STORMS = (0.0, 0.5)
"""The parts of the run after which a cycle begins with a storm."""
DEATHS = (("daemon",), ("keeper",), ("keeper", "daemon"), ("daemon", "keeper"))
KEEPER_DEATHS = (0.25, 0.75)
"""Those after which only the keeper dies, and the registry lives on."""
WRONG = 0.15
"""How often a new configuration is wrong, where no registry starts meanwhile."""
SETTLE_S = 2.0
"""After the last command: connections that were cut off are noticed, hooks end."""


class Pace(msgspec.Struct, frozen=True):
    """How long the parts of a cycle are, in seconds; how many deaths a storm brings."""

    load_s: float
    window_s: float
    every_s: float
    deaths: int

    @classmethod
    def of(cls, total_s: float) -> Pace:
        """Longer ones in a longer run."""
        load_s = min(25.0, max(1.5, total_s / 40))
        return cls(
            load_s,
            min(8.0, max(1.5, total_s / 60)),
            min(3.0, load_s / 3),
            4 if total_s >= 60 else 2,
        )


class Outcome(msgspec.Struct):
    """All that was seen. `ill` are promises broken that are no series: each a sentence."""

    seed: int
    services: int
    folder: str
    seconds: float = 0.0
    sights: list[Sight] = msgspec.field(default_factory=list)
    quiets: list[Quiet] = msgspec.field(default_factory=list)
    marks: list[tuple[float, str]] = msgspec.field(default_factory=list)
    done: Counter[str] = msgspec.field(default_factory=Counter)
    ill: list[str] = msgspec.field(default_factory=list)


class Soak:
    """A fleet under load, and what is seen of it; `outcome` is true at any time."""

    def __init__(self, fleet: Fleet, seed: int, told: Callable[[str], None]) -> None:
        self.outcome = Outcome(seed, len(fleet.services), str(fleet.folder))
        self._fleet = fleet
        self._chance = Random(seed)
        self._tell = told
        self._began_s = time.monotonic()
        self._life = 0
        self._crowded = 0
        """The life that has seen a crowd."""
        self._is_bereft = False
        """What was left with registry and keeper died with both: who left it is to leave it anew."""
        self._keeper_lives: list[sight.Key] = []
        self._load = Load(fleet, self._chance, self._mark)
        self.outcome.done = self._load.done

    async def run(self, total_s: float) -> None:
        """Cycles for so long, then an orderly end; a registry that is not there any more ends it, too."""
        try:
            await self._run(total_s)
        except (AssertionError, TimeoutError, RegistryError) as error:
            self.outcome.ill.append(
                f"The registry lives, and answers: not after {self._now_s():.0f} s,"
                f" {type(error).__name__} {error}\n{self._fleet.said()}"
            )

    async def _run(self, total_s: float) -> None:
        pace = Pace.of(total_s)
        storms, deaths = list(STORMS), list(KEEPER_DEATHS)
        await self._start()
        while (gone := self._now_s() / total_s) < 1 or not self.outcome.quiets:
            storm = _take(storms, gone)
            watching = asyncio.create_task(self._watch(pace.every_s))
            try:
                await self._cycle(pace, storm=storm, keeper_dies=_take(deaths, gone) and not storm)
            finally:
                watching.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await watching
            await self._quiet(pace)
        await self._end()

    def _now_s(self) -> float:
        return time.monotonic() - self._began_s

    def _mark(self, what: str) -> None:
        self.outcome.marks.append((self._now_s(), what))

    # --- lives of the registry --------------------------------------------------------------------

    async def _start(self) -> None:
        self._fleet.start()
        self._life += 1
        await self._up()

    async def _up(self, unlike: str = "") -> None:
        """Until it answers, as one that started at another time than `unlike`."""
        async with asyncio.timeout(UP_WITHIN_S):
            while True:
                with contextlib.suppress(RegistryError):
                    if (await self._ask("version"))["started_at"] != unlike:
                        return
                self._fleet.is_up()
                await asyncio.sleep(0.05)

    async def _ask(self, action: str, **params: Any) -> Any:
        async with AsyncClient(str(self._fleet.socket), UP_WITHIN_S) as client:
            return await client.call(action, **params)

    async def _storm(self, pace: Pace) -> None:
        """Kill all that is ours, in turn and together, while the load goes on."""
        pause_s = pace.load_s / 6
        for victims in DEATHS[: pace.deaths]:
            await asyncio.sleep(pause_s)
            for victim in victims:
                self._die(victim)
            if "daemon" in victims:
                await self._start()
        await asyncio.sleep(pause_s)
        before = (await self._ask("version"))["started_at"]
        self._mark("upgrade")
        await self._ask("upgrade")
        await self._up(before)
        self._life += 1
        self._is_bereft = True

    def _die(self, victim: str) -> None:
        self._mark(f"{victim} killed")
        if victim == "daemon":
            self._fleet.kill()
        else:
            self._fleet.kill_the_keeper()

    # --- one cycle --------------------------------------------------------------------------------

    async def _cycle(self, pace: Pace, *, storm: bool, keeper_dies: bool) -> None:
        with contextlib.suppress(RegistryError):
            await self._ask("start", service=f"tag:{RESTLESS}")
        if self._crowded != self._life:
            await self._load.crowd(pace.load_s)
            self._crowded = self._life
        self._load.wrong = 0.0 if storm else WRONG  # a registry that starts on a wrong one ends
        loading = asyncio.create_task(self._load.run(pace.load_s * (2 if storm else 1)))
        try:
            if storm:
                await self._storm(pace)
            if keeper_dies:
                for _ in range(3):
                    await asyncio.sleep(pace.load_s / 6)
                    self._die("keeper")
            await loading
        finally:
            loading.cancel()

    async def _watch(self, every_s: float) -> None:
        while True:
            self._see("load")
            await asyncio.sleep(every_s)

    def _see(self, phase: str) -> Sight:
        fleet = self._fleet
        pid = fleet.daemon.pid if fleet.daemon is not None and fleet.daemon.poll() is None else None
        journal_bytes, events = sight.journal_of(fleet.journal)
        seen = Sight(
            at_s=self._now_s(),
            life=self._life,
            phase=phase,
            daemon=sight.process(pid),
            keeper=sight.process(fleet.keeper()),
            journal_bytes=journal_bytes,
            wal_bytes=sight.size_of(fleet.journal.with_name("registry.db-wal")),
            events=events,
            log_bytes=sight.folder_bytes(fleet.journal.parent / "log"),
            run_names=sight.names_below(fleet.journal.parent, but="log"),
            tmp_names=sight.names_below(fleet.folder / TMP),
            service_processes=len(sight.service_processes(fleet.socket)),
        )
        self.outcome.sights.append(seen)
        self.outcome.seconds = seen.at_s
        return seen

    # --- a quiet moment ---------------------------------------------------------------------------

    async def _quiet(self, pace: Pace) -> None:
        """The configuration as at the beginning, the steady services up, all others down, and a look."""
        began_s = self._now_s()
        self._fleet.declare()
        try:
            async with asyncio.timeout(QUIET_WITHIN_S):
                await self._calm_down()
        except TimeoutError:
            self.outcome.ill.append(
                f"A quiet moment comes within {QUIET_WITHIN_S:g} s: not at {began_s:.0f} s;"
                f" {await self._restless()}"
            )
            return
        reached_s = self._now_s() - began_s
        await asyncio.sleep(min(SETTLE_S, pace.window_s))
        seen: list[Sight] = []
        end_s = self._now_s() + pace.window_s
        while not seen or self._now_s() < end_s:
            seen.append(self._see("quiet"))
            await asyncio.sleep(min(1.0, pace.window_s / 4))
        self._take_down(seen, reached_s)

    async def _calm_down(self) -> None:
        await self._ask_for_sure("apply")
        if self._is_bereft:
            await self._ask_for_sure("restart", service=["saver-*", "held-*"])
            self._is_bereft = False
        await self._ask_for_sure("stop", service=f"tag:{RESTLESS}")
        await self._ask_for_sure("start", service=f"tag:{STEADY}")
        while await self._restless():  # noqa: ASYNC110 - it is another process that is waited for
            await asyncio.sleep(0.1)

    async def _ask_for_sure(self, action: str, **params: Any) -> None:
        """Ask until it is accepted: what was asked before may still be under way."""
        while True:
            try:
                await self._ask(action, **params)
            except RegistryError:
                self._fleet.is_up()
                await asyncio.sleep(0.2)
            else:
                return

    async def _restless(self) -> list[str]:
        """The services that are not as they are in a quiet moment, and how they are."""
        steady = set(self._fleet.steady)
        try:
            records = await self._ask("list_services")
        except RegistryError as error:
            return [str(error)]
        return [
            f"{each['name']} {each['status']} {each['health']}"
            for each in records
            if (each["name"] in steady) != (each["status"] == "Running")
            or not _is_at_rest(each)
            or each["health"] not in (None, "healthy", "unknown")
        ]

    def _take_down(self, seen: list[Sight], reached_s: float) -> None:
        daemons = [each.daemon for each in seen if each.daemon is not None]
        keepers = [each.keeper for each in seen if each.keeper is not None]
        first, last = seen[0], seen[-1]
        if (
            len(daemons) < len(seen)
            or len(keepers) < len(seen)
            or len({k.key for k in keepers}) > 1
        ):
            self.outcome.ill.append(f"Daemon and keeper live on: not so at {last.at_s:.0f} s")
            return
        if keepers[0].key not in self._keeper_lives:
            self._keeper_lives.append(keepers[0].key)
        passed_s = max(0.1, last.at_s - first.at_s)
        self.outcome.quiets.append(
            Quiet(
                at_s=last.at_s,
                reached_s=reached_s,
                daemon=_holding(last.life, daemons, passed_s),
                keeper=_holding(self._keeper_lives.index(keepers[0].key) + 1, keepers, passed_s),
                events=last.events,
                events_s=(last.events - first.events) / passed_s,
                journal_bytes=last.journal_bytes,
                wal_bytes=last.wal_bytes,
                log_bytes=last.log_bytes,
                run_names=min(each.run_names for each in seen),
                tmp_names=min(each.tmp_names for each in seen),
                strays=min(each.service_processes for each in seen) - len(self._fleet.steady),
            )
        )
        self._tell(f"{last.at_s:6.0f} s, quiet after {reached_s:.1f} s: {_in_short(last)}")

    # --- the end ----------------------------------------------------------------------------------

    async def _end(self) -> None:
        """An orderly end leaves nothing that runs, no second run of anything, and a journal that is whole."""
        ill = self.outcome.ill
        status = await asyncio.to_thread(self._fleet.end)
        if status != 0:
            ill.append(f"An orderly end has exit status 0: it was {status}; {self._fleet.said(3)}")
        if left := sight.service_processes(self._fleet.socket):
            ill.append(f"An orderly end leaves no process of a service: {len(left)} are left")
        if doubled := self._fleet.lines("doubled"):
            ill.append(f"No service runs twice at once: {doubled[0]}, and {len(doubled) - 1} more")
        with closing(open_for_reading(self._fleet.journal)) as journal:
            if (trouble := verify(journal).trouble) is not None:
                ill.append(f"The journal is whole: {trouble}")


def _is_at_rest(record: dict[str, Any]) -> bool:
    """Also one that ended by itself while its stop waited for its dependents': it is Failed, and to be down."""
    has_failed = record["status"] == "Failed" and record["wanted"] == "down"
    return has_failed or record["status"] in ("Running", "Stopped")


def _take(due: list[float], gone: float) -> bool:
    """Whether one of those parts of the run is over, which is then told once."""
    if due and gone >= due[0]:
        due.pop(0)
        return True
    return False


def _holding(life: int, seen: list[Process], passed_s: float) -> Holding:
    first, last = seen[0], seen[-1]
    return Holding(
        life=life,
        descriptors=min(sum(each.descriptors.values()) for each in seen),
        pss_kib=median(each.pss_kib for each in seen),
        threads=min(each.threads for each in seen),
        children=min(each.children for each in seen),
        zombies=min(each.zombies for each in seen),
        wakeups_s=(last.switches - first.switches) / passed_s,
        cpu_ms_s=(last.cpu_s - first.cpu_s) * 1000 / passed_s,
    )


def _in_short(seen: Sight) -> str:
    assert seen.daemon is not None
    assert seen.keeper is not None
    return (
        f"daemon {sum(seen.daemon.descriptors.values())} descriptors,"
        f" {seen.daemon.pss_kib * 1.024e-3:.1f} MB,"
        f" keeper {sum(seen.keeper.descriptors.values())}, {seen.keeper.pss_kib * 1.024e-3:.1f} MB,"
        f" {seen.events} events"
    )
