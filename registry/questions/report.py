"""How available services were: time in each state, outages, restarts, folded from events as they come. Pure.

Law 1: the times in all states of a service add up to the period. Law 2: nothing is guessed; when a run ended that
nobody saw end is not known, so from when it was seen last until that was found out is `unknown`.

* up: Running while wanted up. down: wanted up, not Running, and not `completed`. Anything else is neither. A oneshot is
  never up, and down only where it failed.
* failure: a run that ended ill or was ended for it (unhealthy, not ready in time, too much memory), or could not begin.
* outage: down without a break, with a failure in it. It is over when the service is Running, or wanted up no more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import StrEnum

import msgspec

from registry.core import events as ev
from registry.core.lifecycle import Reason, State
from registry.core.projection import Projection
from registry.core.service import UP, Service, evolve
from registry.questions.elapsed import Elapsed
from registry.questions.records import rfc3339

_NS = 1_000_000_000
_DAY_S, _HOUR_S = 86_400, 3_600

UNDECLARED, UNKNOWN = "undeclared", "unknown"
STATES = (*(state.value for state in State), UNDECLARED, UNKNOWN)
"""What the time of a service is divided into."""

_LIFE_BEGINS = (ev.JournalCreated, ev.JournalCopied)
_RENEWING = frozenset({ev.Defined, ev.Redefined, ev.Resynced, ev.Adopted})
_ENDS = (ev.Exited, ev.Lost, ev.GroupEmptied, ev.Adopted, ev.Spawned, ev.Resynced, ev.Removed)
_TELLING = frozenset(
    {
        ev.Resynced,
        ev.RegistryStarted,
        *_LIFE_BEGINS,
        *(kind for kind in ev.TYPES.values() if issubclass(kind, ev.Moved)),
    }
)
"""The events that tell of states, and of what is wanted; of all others only the times count."""
_ENDED_FOR_IT = (ev.StartTimedOut, ev.BecameUnhealthy, ev.MemoryExceeded, ev.StopTimedOut)
_COUNTING = frozenset(
    {ev.SpawnFailed, ev.Exited, ev.Lost, ev.Spawned, ev.RestartScheduled, *_ENDED_FOR_IT}
)


class Side(StrEnum):
    """What a moment counts as."""

    UP = "up"
    DOWN = "down"
    NEITHER = "neither"
    UNKNOWN = "unknown"


class Known(StrEnum):
    """What is known of the time after the last event of a period.

    `ALL`: a registry ran on. `RESTING`: none did, for a while: of runs nothing is known. `NOTHING`: the journal ends.
    """

    ALL = "all"
    RESTING = "resting"
    NOTHING = "nothing"


# --- the answer -----------------------------------------------------------------------------------


class Period(msgspec.Struct, frozen=True):
    """What a report is of. `seconds` is what has passed, whatever became of the wall clock."""

    since: str
    until: str
    seconds: float


class Outage(msgspec.Struct, frozen=True):
    """One outage, as far as it lies in the period. `ongoing`: it is not over at the end of it."""

    began: str
    seconds: float
    ongoing: bool


class ServiceReport(msgspec.Struct, frozen=True):
    """One service. What nothing can be said of, such as the availability of one never wanted up, is null.

    `availability` is up / (up + down). `mtbf_s` is up time per outage, `mttr_s` the mean length of the outages that
    ended Running. `restarts` are those by policy, and a rate of them is told once an hour is known. `declared` says
    whether it was at the end.
    """

    service: str
    declared: bool
    availability: float | None
    up_s: float
    down_s: float
    unknown_s: float
    states_s: dict[str, float]
    runs: int
    failures: int
    outages: int
    longest_outage: Outage | None
    mtbf_s: float | None
    mttr_s: float | None
    restarts: int
    restarts_per_day: float | None


class Report(msgspec.Struct, frozen=True):
    """Services in the order of the file; those that are no longer declared come last."""

    period: Period
    services: tuple[ServiceReport, ...] = ()


# --- one service ----------------------------------------------------------------------------------


class _Down:
    """Down without a break since `begin_ns`, so far."""

    def __init__(self, begin_ns: int, at_ns: int, *, has_failed: bool) -> None:
        self.begin_ns = begin_ns
        self.at_ns = at_ns
        self.has_failed = has_failed


class _Account:
    """What the time of one service was spent in, up to `until_ns`. From `doubt_ns` on it is not known yet."""

    def __init__(self, lead_ns: int) -> None:
        self.state, self.side = UNDECLARED, Side.NEITHER
        self.until_ns = lead_ns
        self.doubt_ns: int | None = None
        self.position, self.is_oneshot = 0, False
        self.times_ns = dict.fromkeys(STATES, 0)
        self.times_ns[UNKNOWN] = lead_ns
        self.sides_ns = dict.fromkeys(Side, 0)
        self.runs = self.failures = self.restarts = 0
        self._down: _Down | None = None
        self._outages = self._repaired = self._repaired_ns = 0
        self._longest: tuple[int, int, bool] | None = None

    def enter(self, state: str, side: Side, now_ns: int, at_ns: int) -> None:
        """It is in another state, or counts as something else, from `now_ns` on."""
        if side is self.side and state == self.state:
            return
        self._spend(now_ns)
        self.state = state
        if side is not self.side:
            if self._down is not None:
                self._come_back(now_ns, is_up=side is Side.UP)
            self.side = side
            if side is Side.DOWN:
                self._down = _Down(now_ns, at_ns, has_failed=state == State.FAILED)

    def doubt(self, from_ns: int, now_ns: int, at_ns: int) -> None:
        """What it was in from `from_ns` to `now_ns` nobody knows."""
        self.enter(UNKNOWN, Side.UNKNOWN, max(from_ns, self.until_ns), at_ns)
        self._spend(now_ns)
        self.doubt_ns = None

    def fail(self) -> None:
        """A run failed; if it is down, that is an outage."""
        self.failures += 1
        if self._down is not None:
            self._down.has_failed = True

    def _spend(self, now_ns: int) -> None:
        passed_ns = max(0, now_ns - self.until_ns)
        self.times_ns[self.state] += passed_ns
        self.sides_ns[self.side] += passed_ns
        self.until_ns += passed_ns

    def _come_back(self, now_ns: int, *, is_up: bool, ongoing: bool = False) -> None:
        down, self._down = self._down, None
        if down is None or not down.has_failed:
            return
        length_ns = now_ns - down.begin_ns
        self._outages += 1
        if is_up:
            self._repaired += 1
            self._repaired_ns += length_ns
        if self._longest is None or length_ns > self._longest[0]:
            self._longest = (length_ns, down.at_ns, ongoing)

    def close(self, name: str, now_ns: int, *, declared: bool) -> ServiceReport:
        """The report, at the end of the period."""
        self._spend(now_ns)
        self._come_back(now_ns, is_up=False, ongoing=True)
        up_ns, down_ns = self.sides_ns[Side.UP], self.sides_ns[Side.DOWN]
        unknown_ns = self.times_ns[UNKNOWN]
        known_s = (now_ns - unknown_ns - self.times_ns[UNDECLARED]) / _NS
        return ServiceReport(
            service=name,
            declared=declared,
            availability=None if self.is_oneshot else _ratio(up_ns, up_ns + down_ns),
            up_s=up_ns / _NS,
            down_s=down_ns / _NS,
            unknown_s=unknown_ns / _NS,
            states_s={state: spent_ns / _NS for state, spent_ns in self.times_ns.items()},
            runs=self.runs,
            failures=self.failures,
            outages=self._outages,
            longest_outage=self._longest_outage(),
            mtbf_s=None if self.is_oneshot else _ratio(up_ns / _NS, self._outages),
            mttr_s=_ratio(self._repaired_ns / _NS, self._repaired),
            restarts=self.restarts,
            restarts_per_day=self.restarts * _DAY_S / known_s if known_s >= _HOUR_S else None,
        )

    def _longest_outage(self) -> Outage | None:
        if self._longest is None:
            return None
        length_ns, at_ns, ongoing = self._longest
        return Outage(rfc3339(at_ns), length_ns / _NS, ongoing)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _side(service: Service) -> Side:
    if not service.wanted:
        return Side.NEITHER
    if service.definition.oneshot:
        return Side.DOWN if service.state in (State.FAILED, State.RESTARTING) else Side.NEITHER
    if service.state is State.RUNNING:
        return Side.UP
    is_done = service.state is State.STOPPED and service.reason is Reason.COMPLETED
    return Side.NEITHER if is_done else Side.DOWN


# --- all of them ----------------------------------------------------------------------------------


class Ledger:
    """Folds events into the accounts of services: of those named, or, where none is, of all.

    `projection` is what the journal comes to at the `beginning` of the period; it is folded on from there. `lead_s` of
    the period lie before the journal. Of services that are not named only the times of events are looked at.
    """

    def __init__(
        self,
        projection: Projection,
        beginning: ev.Now,
        names: Collection[str] = (),
        lead_ns: int = 0,
    ) -> None:
        boot_id = projection.started.boot_id if projection.started is not None else None
        self.elapsed = Elapsed(beginning, boot_id)
        self._since_ns = beginning.at_ns - lead_ns
        self._lead_ns = lead_ns
        self._projection = projection
        self._names = names
        self._earlier_ns = self._unwatched_ns = lead_ns
        self._accounts: dict[str, _Account] = {}
        for name in [n for n in projection.services if names and n not in names]:
            del projection.services[name]
        for service in projection.services.values():
            account = self._account(service.name)
            self._declare(account, service)
            account.enter(service.state, _side(service), lead_ns, beginning.at_ns)

    def fold(self, records: Iterable[ev.Record]) -> None:
        """Take in further records, in order."""
        for record in records:
            self._take(record)

    def _take(self, record: ev.Record) -> None:
        event = record.event
        is_telling = type(event) in _TELLING
        if is_telling and isinstance(event, _LIFE_BEGINS):  # the start that follows tells its boot
            return
        before_ns = self.elapsed.now_ns + self._lead_ns
        now_ns = self.elapsed.take(record) + self._lead_ns
        if now_ns > before_ns:
            self._earlier_ns = before_ns
        if not is_telling:
            return
        if isinstance(event, ev.RegistryStarted):
            self._registry_started(record, before_ns, now_ns)
        elif record.service is not None and (not self._names or record.service in self._names):
            self._service_told(record, record.service, now_ns)

    def _account(self, name: str) -> _Account:
        if name not in self._accounts:
            self._accounts[name] = _Account(self._lead_ns)
        return self._accounts[name]

    def _declare(self, account: _Account, service: Service) -> None:
        account.position = service.definition.position
        account.is_oneshot = service.definition.oneshot

    def _registry_started(self, record: ev.Record, before_ns: int, now_ns: int) -> None:
        """Nobody looked since the latest event: whether a run goes on is still to be found out."""
        self._unwatched_ns = before_ns
        for service in self._projection.services.values():
            account = self._accounts[service.name]
            if account.doubt_ns is None and _has_run(service):
                account.doubt_ns = before_ns
        self._projection.fold((record,))
        for service in self._projection.services.values():
            account = self._accounts[service.name]
            if account.doubt_ns is None:
                account.enter(service.state, _side(service), now_ns, record.at_ns)

    def _service_told(self, record: ev.Record, name: str, now_ns: int) -> None:
        account, event = self._account(name), record.event
        before = self._projection.services.get(name)
        known = (before.run, before.moved_ns, before.restarts) if before else (0, 0, 0)
        service = self._fold_one(before, record, name)
        if account.doubt_ns is not None and not self._resolve(account, record, known[0], now_ns):
            return
        if service is None:
            account.enter(UNDECLARED, Side.NEITHER, now_ns, record.at_ns)
            return
        if type(event) in _RENEWING:
            now_ns = self._renew(account, record, service, known, now_ns)
        account.enter(service.state, _side(service), now_ns, record.at_ns)
        if type(event) in _COUNTING:
            _count(account, event, service)

    def _fold_one(self, before: Service | None, record: ev.Record, name: str) -> Service | None:
        """The service as a record left it; what declares or removes one is for the projection."""
        if before is not None and not isinstance(record.event, ev.Removed):
            evolve(before, record)
            return before
        self._projection.fold((record,))
        return self._projection.services.get(name)

    def _resolve(self, account: _Account, record: ev.Record, run: int, now_ns: int) -> bool:
        """Whether this says what became of a run while nobody looked; then that is accounted for."""
        event = record.event
        if not isinstance(event, _ENDS):
            return False
        assert account.doubt_ns is not None
        if isinstance(event, ev.Adopted) and record.run == run:
            account.doubt_ns = None  # it went on
        else:
            account.doubt(account.doubt_ns, now_ns, record.at_ns)
        return True

    def _renew(
        self,
        account: _Account,
        record: ev.Record,
        service: Service,
        known: tuple[int, int, int],
        now_ns: int,
    ) -> int:
        """It is declared, or has a state of which no event tells how it came; from when on it is known to be in it."""
        self._declare(account, service)
        if isinstance(record.event, ev.Resynced):
            return self._resync(account, record, service, known, now_ns)
        is_new = isinstance(record.event, ev.Adopted) and service.run > known[0]
        if is_new:  # found, and begun while nothing could be written
            account.runs += 1
            account.doubt(self._unwatched_ns, now_ns, record.at_ns)
        return now_ns

    def _resync(
        self,
        account: _Account,
        record: ev.Record,
        service: Service,
        known: tuple[int, int, int],
        now_ns: int,
    ) -> int:
        """A state in place of events that could not be written: from when on it is known to have been in it."""
        run, moved_ns, restarts = known
        account.runs += max(0, service.run - run)
        account.restarts += max(0, service.restarts - restarts)
        if (run, moved_ns) == (service.run, service.moved_ns):
            return now_ns
        since_ns = max(self._earlier_ns, now_ns - max(0, record.mono_ns - service.moved_ns))
        account.doubt(self._earlier_ns, since_ns, record.at_ns)
        return since_ns

    def close(self, until_ns: int, tail_ns: int, known: Known) -> Report:
        """The report of a period that ends at `until_ns` (UTC), `tail_ns` after the record that was taken last."""
        last_ns = self.elapsed.now_ns + self._lead_ns
        end_ns = last_ns + tail_ns
        services = self._projection.services
        for name, account in self._accounts.items():
            is_open = name in services and _has_run(services[name])
            if account.doubt_ns is not None:
                account.doubt(account.doubt_ns, end_ns, until_ns)
            elif tail_ns and (known is Known.NOTHING or (known is Known.RESTING and is_open)):
                account.doubt(last_ns, end_ns, until_ns)
        order = sorted(
            self._accounts, key=lambda n: (n not in services, self._accounts[n].position)
        )
        return Report(
            Period(rfc3339(self._since_ns), rfc3339(until_ns), end_ns / _NS),
            tuple(self._accounts[n].close(n, end_ns, declared=n in services) for n in order),
        )


def _has_run(service: Service) -> bool:
    return service.state is State.STOPPING or (service.state in UP and service.pid is not None)


def _count(account: _Account, event: ev.Event, service: Service) -> None:
    if _is_failure(event, service):
        account.fail()
    elif isinstance(event, ev.Spawned):
        account.runs += 1
    elif isinstance(event, ev.RestartScheduled) and event.reason is not Reason.NEVER_RAN:
        account.restarts += 1


def _is_failure(event: ev.Event, service: Service) -> bool:
    """Whether a run that was wanted failed by it, or could not begin; `service` is what it left."""
    if not service.wanted:
        return False
    if isinstance(event, ev.SpawnFailed):
        return True
    if isinstance(event, _ENDED_FOR_IT):
        return event.dest is State.STOPPING
    if not isinstance(event, (ev.Exited, ev.Lost)) or event.source is State.STOPPING:
        return False
    if isinstance(event, ev.Exited) and event.never_ran:
        return False
    return State.FAILED in (event.dest, service.bound)


def nothing(first_ns: int, last_ns: int) -> Report:
    """The report of a time (UTC) of which the journal holds nothing."""
    return Report(Period(rfc3339(first_ns), rfc3339(last_ns), (last_ns - first_ns) / _NS))
