"""The one writer: takes what arrives, decides, commits, then performs what the new state asks for.

Law 1: nothing is done before its cause is committed; a spawn behind its gate is not yet done. Law 2: what
is answered comes from the committed projection, never from the live machines. Law 3: one decision, one
transaction. It is handed journal, host and clock, and imports none of them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from copy import copy
from typing import Any

import msgspec

from registry.core import checks
from registry.core import events as ev
from registry.core import inputs as inp
from registry.core.decision import Place, decide, is_news
from registry.core.definition import Definition
from registry.core.dependencies import Graph, around, needs
from registry.core.duties import Duties, Timer, duties, rests
from registry.core.lifecycle import Reason, State
from registry.core.projection import Projection
from registry.core.restarts import NS
from registry.core.service import HAS_RUN, Request, Service
from registry.held import HeldRecords, Journal
from registry.ports import Clock, Host, TimerHandle

BATCH_MAX = 64
"""Inputs decided before one commit: more would keep the first of them waiting."""
RECENT_MAX = 4096
"""Committed records kept in memory, so that those who follow need not read the file."""
_MAY_BEGIN_A_RUN = (
    inp.Start
    | inp.Restart
    | inp.Reconsider
    | inp.RestartTimerDue
    | inp.ProcessExited
    | inp.GroupGone
)
LATE_NS = 500_000_000
"""A timer that comes later than this means that this process stood still: time that nobody watched."""


class NotCommitted(Exception):
    """A command was decided, but its commit failed: it will be in the journal if that can be written again."""


class Unavailable(Exception):
    """The journal cannot be written, so a command was not taken."""


class ShuttingDown(Exception):
    """The registry takes no more commands."""


class Accepted(msgspec.Struct, frozen=True):
    """A durable command: the event that it led to, or the service's latest where it changed nothing."""

    service: str
    seq: int
    status: State
    already: bool


Step = tuple[str, inp.Input]
"""An input, and the service that it is for."""


class _Item(msgspec.Struct, frozen=True):
    """Inputs that are decided together, on their way to the writer.

    `answer` is that of the first; `before` is called when their turn has come, `done` once what they led to is
    committed, or held. `facts` are about the registry itself, and need no decision.
    """

    steps: Sequence[Step]
    answer: asyncio.Future[Accepted] | None = None
    before: Callable[[], None] | None = None
    done: Callable[[], None] | None = None
    facts: Sequence[ev.Event] = ()


class Registry:
    """The services of one journal. `run()` is the writer; everything else only hands it inputs."""

    def __init__(self, projection: Projection, journal: Journal, host: Host, clock: Clock) -> None:
        self.committed = projection
        self.closing = False
        self.tallies: dict[tuple[str, str], checks.Tally] = {}
        self.recent: deque[ev.Record] = deque(maxlen=RECENT_MAX)
        self._renumbered = 0
        self._live = Projection(
            seq=projection.seq,
            journal_id=projection.journal_id,
            services={name: _clone(service) for name, service in projection.services.items()},
            last_runs=dict(projection.last_runs),
        )
        self.graph = Graph(service.definition for service in projection.services.values())
        self._held = HeldRecords(journal, clock.now)
        self._host = host
        self._clock = clock
        self._inbox: deque[_Item] = deque()
        self._is_deciding = False
        self._arrived = asyncio.Event()
        self._finished = False
        self._commit_seen: asyncio.Future[None] | None = None
        self._timers: dict[str, tuple[Timer, TimerHandle]] = {}
        self._watched: dict[str, tuple[int, Any]] = {}
        self._requests: dict[str, tuple[Request, ...]] = {}
        self._released: dict[str, int] = {}
        # neighbours until a change of who depends on whom, not told yet; in an order that is the same each time
        self._parted: dict[str, None] = {}

    @property
    def degraded_since_ns(self) -> int | None:
        """Since when the journal cannot be written, in UTC; None while it can."""
        return self._held.degraded_since_ns

    @property
    def trouble(self) -> str:
        """Why it cannot be written, or could not."""
        return self._held.trouble

    # --- what arrives -----------------------------------------------------------------------------

    def observe(
        self, service: str, given: inp.Observation, done: Callable[[], None] | None = None
    ) -> None:
        """Hand in something seen; `done` is called once what it leads to is committed."""
        self._put(_Item([(service, given)], done=done))

    def declare(self, steps: Sequence[Step]) -> None:
        """Hand in commands, to be decided together, whose answer nobody waits for."""
        self._put(_Item(steps))

    async def command(
        self, steps: Sequence[Step], before: Callable[[], None] | None = None
    ) -> Accepted:
        """Ask for something, all of it or nothing; returns when it is durable, and says so of the first.

        Raises ShuttingDown, Unavailable, NotCommitted.
        """
        if self.closing:
            raise ShuttingDown("the registry is shutting down")
        answer: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()
        self._put(_Item(steps, answer, before))
        return await answer

    async def note(self, event: ev.Event) -> None:
        """Have a fact about the registry itself written; returns when it is durable.

        Raises Unavailable, NotCommitted.
        """
        if self.degraded_since_ns is not None:
            raise Unavailable(self.trouble)
        await self._work_done(event)
        if self.degraded_since_ns is not None:
            raise NotCommitted(self.trouble)

    async def _work_done(self, *facts: ev.Event) -> None:
        """Wait until these, and all that has arrived before, are committed, or held."""
        done = asyncio.Event()
        self._put(_Item((), done=done.set, facts=facts))
        await done.wait()

    def probed(
        self,
        service: str,
        run: int,
        check: str,
        *,
        ok: bool,
        error: str | None,
        latency_ns: int,
        final: bool = False,
    ) -> None:
        """Hand in one result of a check; one that is `final` counts as if its threshold were reached."""
        watched = self._live.services.get(service)
        if watched is None or self._watched.get(service, (None,))[0] != run:
            return
        key = (service, check)
        self.tallies[key], given = checks.count(
            self.tallies.get(key),
            run=run,
            check=check,
            ok=ok,
            error=error,
            latency_ns=latency_ns,
            at_ns=self._clock.now().at_ns,
        )
        if final:
            given = msgspec.structs.replace(given, final=True)
        # what waits to be decided may make news of it
        if self._inbox or self._is_deciding or is_news(watched, given):
            self._put(_Item([(service, given)]))

    def _put(self, item: _Item) -> None:
        self._inbox.append(item)
        self._arrived.set()

    # --- the writer -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Decide, commit, perform: until `finish`. Not to be cancelled: a commit may be under way."""
        async with self._held.retrying():
            while not self._finished:
                await self._arrived.wait()
                self._arrived.clear()
                await self.drain()

    def finish(self) -> None:
        """Let `run()` return once it has worked off what has arrived."""
        self._finished = True
        self._arrived.set()

    async def drain(self) -> None:
        """Work off what arrives until there is nothing. Raises what the journal raises, but within `run()`."""
        while self._inbox:
            await self.work_off()

    async def work_off(self) -> None:
        """The same with what has arrived by now: services in trouble keep no beginning from its end."""
        due = len(self._inbox)
        while due > 0:
            batch = [self._inbox.popleft() for _ in range(min(BATCH_MAX, due))]
            due -= len(batch)
            await self._settle_batch(batch)

    async def write(self, *events: ev.Event) -> None:
        """Commit facts about the registry itself. Only while `run()` is not under way."""
        records = [self._record(event, seq) for seq, event in enumerate(events, self._live.seq + 1)]
        self._live.fold(records)
        await self._keep(records)

    def _record(self, event: ev.Event, seq: int) -> ev.Record:
        now = self._clock.now()
        return ev.Record(seq, now.at_ns, now.mono_ns, seq, None, None, None, None, event)

    async def _settle_batch(self, batch: list[_Item]) -> None:
        records: list[ev.Record] = []
        answers: list[tuple[asyncio.Future[Accepted], Accepted]] = []
        self._is_deciding = True
        async with self._ahead(batch):
            for item in batch:
                if item.answer is not None and self._refuses(item):
                    _answer(item.answer, Unavailable(self.trouble))
                    continue
                decided = await self._decide(item)
                records += decided
                if item.answer is not None:
                    answers.append((item.answer, self._accepted(item.steps[0][0], decided)))
        self._is_deciding = False
        if records:
            await self._keep(records)
        concerned = [name for item in batch for name, _given in item.steps]
        for name in dict.fromkeys([*concerned, *_named(records)]):
            self._perform(name)
        self._tell_neighbours(records)
        for item in batch:
            if item.done is not None:
                item.done()
        for future, accepted in answers:
            # what is so already is durable only where what made it so is
            is_new = bool(records) and accepted.seq >= records[0].seq
            is_held = self.degraded_since_ns is not None and is_new
            _answer(future, NotCommitted(self.trouble) if is_held else accepted)

    def _ahead(self, batch: Sequence[_Item]) -> AbstractAsyncContextManager[None]:
        """Where several runs are about to begin, their processes are made at once: that takes each half as long."""
        if len(batch) == 1:
            return nullcontext()
        steps = [i.steps[0] for i in batch if len(i.steps) == 1 and not self._refuses(i)]
        # of two for one service, both of which would begin the run, the first will
        foreseen = {name: run for name, given in steps if (run := self._foreseen(name, given))}
        runs = list(foreseen.values())
        return self._host.ahead(runs) if len(runs) > 1 else nullcontext()

    def _refuses(self, item: _Item) -> bool:
        """A command, where it could not be journaled."""
        return item.answer is not None and self.degraded_since_ns is not None

    def _foreseen(self, name: str, given: inp.Input) -> tuple[Definition, int] | None:
        """The run that a decision will ask for, unless another one before it changes that."""
        service = self._live.services.get(name)
        if service is None or not isinstance(given, _MAY_BEGIN_A_RUN):
            return None
        trial = _clone(service)
        decide(trial, given, self._place(service, None))
        run = duties(trial).spawn
        return (service.definition, run) if run is not None else None

    def _tell_neighbours(self, records: list[ev.Record]) -> None:
        """Whoever waits for one that moved, or was restarted with it, is to look again."""
        latest = {record.service: record.seq for record in records if record.service is not None}
        told = dict.fromkeys(self._parted, records[-1].seq) if records else {}
        self._parted.clear()
        for name, seq in latest.items():
            told |= dict.fromkeys(self.graph.neighbours(name, self._live.services), seq)
        self._have_reconsidered(told)

    def reconsider_all(self) -> None:
        """Have every service look at its neighbours and its duties: after recovery."""
        services = self._live.services.items()
        self._have_reconsidered({name: service.cause for name, service in services})

    def _have_reconsidered(self, causes: Mapping[str, int | None]) -> None:
        for name, cause in causes.items():
            service = self._live.services.get(name)
            if service is not None and not rests(service):  # who rests waits for nobody
                self._put(_Item([(name, inp.Reconsider(cause=cause))]))

    async def _keep(self, records: list[ev.Record]) -> None:
        """Commit, or hold: either way it has happened."""
        await self._held.commit(records)
        self.committed.fold(records)
        self.recent.extend(records)
        if resynced := self._held.collapse(self._live.services, self._live.last_runs):
            self._live.fold(resynced)
            self.committed.fold(resynced)
            self.recent.clear()
            self._renumbered += 1
        if self._commit_seen is not None:
            self._commit_seen.set_result(None)
            self._commit_seen = None

    async def _decide(self, item: _Item) -> list[ev.Record]:
        """One decision: what its steps lead to, and the processes that they ask for, behind their gates."""
        if item.before is not None:
            item.before()
        seqs = range(self._live.seq + 1, self._live.seq + 1 + len(item.facts))
        records = [self._record(*fact) for fact in zip(item.facts, seqs, strict=True)]
        self._advance(records)
        for name, given in item.steps:
            records += await self._step(name, given, records)
            if isinstance(given, inp.Start | inp.Restart) and _is_asked_for(given):
                records += await self._start_needed(name, given, records)
        return records

    async def _start_needed(
        self, name: str, given: inp.Start | inp.Restart, before: list[ev.Record]
    ) -> list[ev.Record]:
        """Who starts a service starts what it needs, in the same decision."""
        records: list[ev.Record] = []
        service = self._live.services.get(name)
        if service is None or not service.wanted:  # it is removed, or to be removed
            return []
        cause = before[-1].seq if before else given.cause
        for needed in needs(service, self._live.services):
            start = inp.Start(actor=given.actor, cause=cause, reason=Reason.REQUIRED)
            records += await self._step(needed.name, start, before or records)
        return records

    async def _step(self, name: str, given: inp.Input, before: list[ev.Record]) -> list[ev.Record]:
        """What one input leads to, as part of the decision that `before` began."""
        service = self._live.services.get(name)
        if service is None:
            if not isinstance(given, inp.Define):
                return []
            service = self._live.add(given.definition)
        decision = before[0].decision if before else None
        records = decide(service, given, self._place(service, decision))
        self._advance(records)
        decision = records[0].decision if records else None
        while (run := duties(service).spawn) is not None:
            spawned = await self._host.spawn(service.definition, run, service.digest)
            followed = decide(service, spawned, self._place(service, decision))
            self._advance(followed)
            records += followed
        if records and isinstance(given, inp.Define):
            self._parted |= dict.fromkeys((name, *self.graph.neighbours(name, self._live.services)))
            self.graph.declare(service.definition)
        if records and isinstance(records[-1].event, ev.Removed):
            self._live.remove(name)
            self._parted |= dict.fromkeys(self.graph.neighbours(name, self._live.services))
            self.graph.forget(name)
        return records

    def _advance(self, records: list[ev.Record]) -> None:
        if records:
            self._live.seq = records[-1].seq

    def _place(self, service: Service, decision: int | None) -> Place:
        live = self._live
        neighbours = around(service, live.services, self.graph)
        return Place(self._clock.now(), live.seq + 1, live.journal_id, decision, neighbours)

    def _accepted(self, name: str, decided: list[ev.Record]) -> Accepted:
        service = self._live.services.get(name)
        if service is None:
            return Accepted(name, decided[-1].seq if decided else 0, State.STOPPED, not decided)
        seq = decided[0].seq if decided else service.cause or 0
        return Accepted(name, seq, service.state, not decided)

    # --- duties -----------------------------------------------------------------------------------

    def _perform(self, name: str) -> None:
        """Bring what is under way for a service in line with its (by now committed) state."""
        service = self._live.services.get(name)
        duty = duties(service) if service is not None else Duties()
        self._set_timer(name, duty.timer)
        self._set_checks(name, service, watched=duty.checks)
        if service is None:
            self._requests.pop(name, None)
            self._forget_tallies(name)
            self._release_ended(name, None)
            return
        if duty.gate is not None and self._host.open_gate(name, duty.gate):
            self.observe(name, inp.GateOpened(run=duty.gate))
        if duty.stop is not None:
            self._host.stop(name, service.run, duty.stop)
        self._carry_out(name, service, duty.requests)
        if rests(service):
            self._host.rest(name)
        self._release_ended(name, service)

    def _carry_out(self, name: str, service: Service, requests: tuple[Request, ...]) -> None:
        begun = self._requests.get(name, ())
        if requests == begun:
            return
        self._requests[name] = requests
        for request in requests:
            if request not in begun:
                self._host.carry_out(service, request)

    def _set_timer(self, name: str, timer: Timer | None) -> None:
        present = self._timers.get(name)
        if (present[0] if present else None) == timer:
            return
        if present:
            present[1].cancel()
            del self._timers[name]
        if timer is not None:
            self._arm(name, timer, timer.due_ns)

    def _arm(self, name: str, timer: Timer, due_ns: int) -> None:
        handle = self._clock.call_at(due_ns, lambda: self._timer_due(name, timer, due_ns))
        self._timers[name] = (timer, handle)

    def _timer_due(self, name: str, timer: Timer, due_ns: int) -> None:
        now_ns = self._clock.now().mono_ns
        if now_ns - due_ns > LATE_NS and isinstance(timer.due, inp.StartTimerDue):
            # we stood still: it may have become ready, but nobody was there to ask, so it has its time again
            service = self._live.services.get(name)
            if service is not None:  # else its removal is being committed
                self._arm(name, timer, now_ns + int(service.definition.start_timeout_s * NS))
            return
        self._timers.pop(name, None)
        self.observe(name, timer.due)

    def _set_checks(self, name: str, service: Service | None, *, watched: bool) -> None:
        present = self._watched.get(name)
        if service is None or not watched:
            if present is not None:
                self._host.unwatch(name, present[0])
                del self._watched[name]
            return
        ought = (service.run, _watched_of(service))
        if present != ought:
            if present is None or present[0] != service.run:
                self._forget_tallies(name)
            self._host.redefine(service)
            self._watched[name] = ought
            self._host.watch(service)
        if service.state is State.RUNNING:
            self._host.became_ready(name)

    def _forget_tallies(self, name: str) -> None:
        for key in [key for key in self.tallies if key[0] == name]:
            del self.tallies[key]

    def _release_ended(self, name: str, service: Service | None) -> None:
        """Let go of the runs of which nothing is left: those before the present, and that one when it ended."""
        if service is None:
            self._released.pop(name, None)
            self._host.release(name, None)
            return
        under_way = service.pid is not None or service.state is State.STOPPING
        over = service.run - under_way
        if over > self._released.get(name, 0):
            self._released[name] = over
            self._host.release(name, over)

    # --- for those who wait -----------------------------------------------------------------------

    async def next_commit(self) -> None:
        """Wait for the next commit."""
        if self._commit_seen is None:
            self._commit_seen = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._commit_seen)

    async def until(self, is_so: Callable[[], Any]) -> None:
        """Wait until something holds of the committed projection."""
        while not is_so():
            await self.next_commit()

    @property
    def as_of(self) -> tuple[int, int]:
        """What the committed projection is as of: another pair after each commit, though numbers be given anew."""
        return self._renumbered, self.committed.seq

    def moved_since(self, as_of: tuple[int, int]) -> list[ev.Record] | None:
        """Committed records since then, or None where they are no longer in memory."""
        return self.recent_since(as_of[1]) if as_of[0] == self._renumbered else None

    def recent_since(self, seq: int) -> list[ev.Record] | None:
        """Committed records above `seq`, or None where they are no longer in memory."""
        if seq >= self.committed.seq:
            return []
        if not self.recent or self.recent[0].seq > seq + 1:
            return None
        first = seq + 1 - self.recent[0].seq
        return [self.recent[index] for index in range(first, len(self.recent))]

    # --- the end ----------------------------------------------------------------------------------

    async def stop_all(self) -> None:
        """Refuse further commands, stop every service, and wait until nothing of them is left."""
        self.closing = True
        await self._work_done()
        services = self._live.services
        ought = [name for name, each in services.items() if each.wanted or each.state in HAS_RUN]
        self._declare_stops(ought)
        while not self._is_all_down():
            await self.next_commit()
            # what was asked for before we were closing may have had its turn only now
            if late := [name for name, each in services.items() if each.wanted]:
                self._declare_stops(late)

    def _declare_stops(self, names: list[str]) -> None:
        services, stop = self._live.services, inp.Stop(reason=Reason.SHUTDOWN)
        self.declare([(name, stop) for name in self.graph.stop_order(names) if name in services])

    def _is_all_down(self) -> bool:
        services = self.committed.services.values()
        return all(service.state not in HAS_RUN and not service.wanted for service in services)

    def close(self) -> None:
        """Call off every timer and check; nothing is done any more."""
        self.closing = True
        for _timer, handle in self._timers.values():
            handle.cancel()
        self._timers.clear()
        for name, (run, _what) in self._watched.items():
            self._host.unwatch(name, run)
        self._watched.clear()


def _watched_of(service: Service) -> tuple[Any, ...]:
    """What the watch of a run depends on, besides the run: a change of it begins the watch anew."""
    of = service.definition
    return of.checks, of.restart.memory_max, of.logs, of.readiness, service.watchdog_s


def _is_asked_for(given: inp.Start | inp.Restart) -> bool:
    """Whether somebody asked: an operator, or `autostart`."""
    return given.actor is not None or given.reason is Reason.AUTOSTART


def _named(records: Iterable[ev.Record]) -> list[str]:
    return [record.service for record in records if record.service is not None]


def _answer(future: asyncio.Future[Accepted], answer: Accepted | Exception) -> None:
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)


def _clone(service: Service) -> Service:
    clone = copy(service)
    clone.checks = {name: copy(state) for name, state in service.checks.items()}
    return clone
