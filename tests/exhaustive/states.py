"""A state of the whole: services as decided and as durable, their processes, and what is on its way between them.

Law 1: two states are one where no rule can tell them apart. Times count from now, in ticks as long as every timeout,
and no further back than the longest; numbers of runs, pids and events keep their order alone; what only people read
is left out. Law 2: nothing here decides anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from typing import Any, NamedTuple

from registry.core.definition import Definition
from registry.core.lifecycle import State
from registry.core.projection import Projection
from registry.core.restarts import NS, within_window
from registry.core.service import CheckState, Request, Service

TICK_S = 30.0
"""Start and stop timeouts, the longest restart delay without jitter being less, and what a run is forgiven after."""
TICK_NS = int(TICK_S * NS)
NOW_NS = 1000 * TICK_NS
FAR_NS = 100 * TICK_NS
"""Half as far ahead, and further, never comes: a time of another boot."""
SEQ = 1000
"""The number of the last event, in every state: what has a number has a lower one."""

GONE, GATE, SHUT, RUNS = "-", "gate", "shut", "runs"
"""A process: none, behind its gate, behind one that nobody will open, executing its program."""


class Run(NamedTuple):
    """The machine's side of one service: the latest run's processes, and what its daemon was told of them.

    `first` was spawned, `second` is one that it forked; `leader` says which is the main process. `end` is how that one
    ended, as long as somebody may ask. `known`: this life of the daemon watches it; `ours`: it spawned it, too.
    `told`: of the main process's end. `asked`: to stop. `opened`, `emptied`: GateOpened and GroupGone are on their way.
    """

    number: int = 0
    first: str = GONE
    second: str = GONE
    leader: int = 0
    end: str = ""
    known: bool = False
    ours: bool = False
    told: bool = False
    asked: bool = False
    opened: bool = False
    emptied: bool = False

    @property
    def processes(self) -> tuple[str, str]:
        """Both."""
        return self.first, self.second

    @property
    def lives(self) -> bool:
        """Whether any process is left."""
        return self.first != GONE or self.second != GONE

    @property
    def pid(self) -> int:
        """The number of the main process: unlike that of any other process of the service."""
        return 2 * self.number + self.leader

    def without(self, which: int) -> Run:
        """One process is gone."""
        return self._replace(second=GONE) if which else self._replace(first=GONE)

    def unwatched(self) -> Run:
        """Its daemon died: what was on its way is lost, and a gate will not be opened."""
        first = SHUT if self.first == GATE else self.first
        return Run(self.number, first, self.second, self.leader, self.end)


class World(NamedTuple):
    """Everything. Services are numbers of the pool; of one that is not declared -1, or -2 where it had runs.

    `life` is how far the daemon is: down, begun, anew (begun in another boot), taken (up what lived), up, closing.
    `coming` is what the next one finds: the same boot, another, or an orderly end. `file` is the configuration.
    `batch` decisions are not committed yet; `dirty` are to be performed, `moved` and `parted` say whom to tell of it.
    `ask` are to reconsider, `later` are declared when it is up. `held`: what is decided is not durable, as the disk
    is `full`.
    """

    live: tuple[int, ...]
    durable: tuple[int, ...]
    runs: tuple[Run, ...]
    life: str = "down"
    coming: str = "orderly"
    file: int = 0
    batch: int = 0
    dirty: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()
    parted: tuple[str, ...] = ()
    ask: tuple[str, ...] = ()
    later: tuple[str, ...] = ()
    full: bool = False
    held: bool = False
    now_ns: int = NOW_NS


class Pool:
    """Services by number. `is_exact`: nothing is left out and time goes on, to compare with."""

    def __init__(self, names: Sequence[str], *, is_exact: bool = False) -> None:
        self.names = names
        self.is_exact = is_exact
        self._seq = SEQ
        self._services: list[Service] = []
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._labels: dict[int, tuple[int, Definition]] = {}
        self._normal: dict[tuple[tuple[int, ...], tuple[int, ...], int], _Normal] = {}

    # --- out --------------------------------------------------------------------------------------

    def service(self, number: int) -> Service | None:
        """The service with a number, not to be changed; None where it is not declared."""
        return self._services[number] if number >= 0 else None

    def services(self, numbers: tuple[int, ...]) -> dict[str, Service]:
        """Those that are declared, not to be changed."""
        return {
            name: self._services[number]
            for name, number in zip(self.names, numbers, strict=True)
            if number >= 0
        }

    def projection(self, numbers: tuple[int, ...]) -> Projection:
        """Copies of them, as a registry has them."""
        self._seq += 100 * self.is_exact  # else their order is given anew each time
        found = Projection(seq=self._seq, journal_id="journal", services={}, last_runs={})
        for name, number in zip(self.names, numbers, strict=True):
            if number >= 0:
                found.services[name] = _copied(self._services[number])
            elif number < -1:
                found.last_runs[name] = -1 - number
        return found

    # --- in ---------------------------------------------------------------------------------------

    def numbers(self, projection: Projection) -> tuple[int, ...]:
        """The numbers of services that nobody changes any more."""
        return tuple(
            self._number(service)
            if (service := projection.services.get(name)) is not None
            else -1 - projection.last_runs.get(name, 0)
            for name in self.names
        )

    def _number(self, service: Service) -> int:
        key = self._key(service)
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._services)
            self._services.append(service)
        return number

    def _key(self, service: Service) -> tuple[Any, ...]:
        values = [getattr(service, field) for field in _FIELDS]
        checks = tuple((n, c.ok, c.healthy, c.seq) for n, c in sorted(service.checks.items()))
        return (
            self._label(service.definition),
            service.run_definition and self._label(service.run_definition),
            checks,
            *values,
        )

    def _label(self, definition: Definition) -> int:
        known = self._labels.get(id(definition))
        if known is None:  # kept, so that its id stays its own
            known = self._labels[id(definition)] = (len(self._labels) + 1, definition)
        return known[0]

    def normal(self, world: World) -> World:
        """The one of all states that no rule can tell from this one."""
        if self.is_exact:
            return world
        asked = world.live, world.durable, world.now_ns
        normal = self._normal.get(asked)
        if normal is None:
            normal = self._normal[asked] = self._normalized(*asked)
        runs = tuple(
            _forget_run(_renumbered(run, of), of) if run.number else run
            for run, of in zip(world.runs, normal.runs, strict=True)
        )
        return world._replace(live=normal.live, durable=normal.durable, runs=runs, now_ns=NOW_NS)

    def _normalized(self, live: tuple[int, ...], durable: tuple[int, ...], now_ns: int) -> _Normal:
        decided, kept = self.projection(live), self.projection(durable)
        found = []
        for name in self.names:
            before = _Numbers(_run_of(kept, name), _run_of(decided, name), _is_over(kept, name))
            found.append(before)
            _renumber(decided, name, before)
            _renumber(kept, name, before)
        _forget_more(decided, now_ns)
        _forget_more(kept, now_ns)
        return _Normal(self.numbers(decided), self.numbers(kept), tuple(found))


class _Numbers(NamedTuple):
    """The latest run of a service, durable and decided, before their numbers were given anew.

    `is_over`: that the durable one has ended is durable, too.
    """

    durable: int
    live: int
    is_over: bool


class _Normal(NamedTuple):
    live: tuple[int, ...]
    durable: tuple[int, ...]
    runs: tuple[_Numbers, ...]


_FIELDS = tuple(
    field
    for field in Service.__struct_fields__
    if field not in ("definition", "run_definition", "checks", "last_exit", "message")
)


def _copied(service: Service) -> Service:
    clone = copy(service)
    clone.checks = {name: copy(state) for name, state in service.checks.items()}
    return clone


# --- what no rule can tell apart ------------------------------------------------------------------


def _run_of(of: Projection, name: str) -> int:
    service = of.services.get(name)
    return service.run if service is not None else of.last_runs.get(name, 0)


def _is_over(of: Projection, name: str) -> bool:
    service = of.services.get(name)
    return service is None or service.pid is None


def _smaller(run: int, of: _Numbers) -> int:
    """A run's number: 0 is none, 1 the durable one's, 2 a later one's."""
    if run <= of.durable:
        return min(run, 1) if run == of.durable else 0
    return min(of.durable, 1) + 1


def _renumbered(run: Run, of: _Numbers) -> Run:
    number = _smaller(run.number, of)
    return run if number == run.number else run._replace(number=number)


def _renumber(of: Projection, name: str, before: _Numbers) -> None:
    service = of.services.get(name)
    if service is None:
        if name in of.last_runs:
            of.last_runs[name] = _smaller(of.last_runs[name], before)
        return
    run = _smaller(service.run, before)
    if service.pid is not None:
        service.pid += 2 * (run - service.run)
        service.start_time = service.pid
    service.run = run


def _forget_run(run: Run, of: _Numbers) -> Run:
    """How a process ended is asked until that is durable; what is not watched was neither asked nor told."""
    if run.end and run.told and (run.number == 0 or (of.is_over and run.number == 1)):
        run = run._replace(end="")
    if run.known:
        return run
    run = run._replace(ours=False, asked=False, told=run.told and run.end != "")
    return run if run.lives or run.end or run.opened or run.emptied else Run()


def _forget_more(of: Projection, now_ns: int) -> None:
    """Numbers of events, times, and what only people read."""
    services = of.services.values()
    spawns = sorted(each.spawned_seq for each in services if each.spawned_seq is not None)
    for service in services:
        if service.spawned_seq is not None:
            service.spawned_seq = spawns.index(service.spawned_seq) + 1
        _forget_words(service)
        _forget_times(service, now_ns)


def _forget_words(service: Service) -> None:
    service.cause = service.last_exit = service.message = service.restart_at_ns = None
    service.restarts = 0
    service.attempt = min(service.attempt, 2)  # the delay is at its most from the second on
    service.run_digest = ""
    service.since_ns = min(service.since_ns, 1)
    service.requests = tuple(
        Request(place, each.signal) for place, each in enumerate(service.requests, 1)
    )
    service.checks = {
        name: CheckState(ok=each.ok, healthy=each.healthy) for name, each in service.checks.items()
    }


def _forget_times(service: Service, now_ns: int) -> None:
    state = service.state
    service.moved_ns = _aged(service.moved_ns, now_ns) if state is State.STOPPING else NOW_NS
    if service.watched_ns is not None:
        is_asked = state is State.STARTING and service.pid is not None
        service.watched_ns = _aged(service.watched_ns, now_ns) if is_asked else NOW_NS
    if service.running_ns is not None:
        is_asked = state is State.RUNNING
        service.running_ns = _aged(service.running_ns, now_ns) if is_asked else None
    service.ran_ns = TICK_NS if service.ran_ns >= TICK_NS else 0
    if service.ending_ns is not None:
        service.ending_ns = _aged(service.ending_ns, now_ns)
    if service.extended_ns:
        ahead_ns = service.extended_ns - now_ns
        service.extended_ns = NOW_NS + _far(ahead_ns) if ahead_ns > 0 else 0
    if service.restart_due_ns is not None:  # jitter adds less than a tick
        ahead_ns = max(0, -(-(service.restart_due_ns - now_ns) // TICK_NS) * TICK_NS)
        service.restart_due_ns = NOW_NS + _far(ahead_ns)
    counted = within_window(service.restart_times_ns, service.definition.restart, now_ns)
    service.restart_times_ns = tuple(_aged(each, now_ns, 2) for each in counted)


def _aged(time_ns: int, now_ns: int, ticks: int = 1) -> int:
    """A time by how long ago it was; that it is longer ago than asked for makes no difference."""
    return NOW_NS + max(-ticks * TICK_NS, _far(time_ns - now_ns))


def _far(ahead_ns: int) -> int:
    return ahead_ns if ahead_ns < FAR_NS // 2 else FAR_NS


def merged(*names: Iterable[str]) -> tuple[str, ...]:
    """Each name once, in an order that is always the same."""
    return tuple(sorted({name for some in names for name in some}))
