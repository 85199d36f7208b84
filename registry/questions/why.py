"""Why a service is where it is, or why an event happened: the chain of causes in sentences, newest first.

Rule 1: "because" is said of recorded causes (the `cause` of an event), of orders that decided what came of it, and of
waiting that the rules impose (dependencies, stop timeouts, delays); of nothing else. Rule 2: what merely happened to a
dependency shortly before is told as "meanwhile". Rule 3: what nobody recorded is not guessed at.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from signal import Signals
from typing import Any

import msgspec

from registry.core import events as ev
from registry.core.definition import Definition
from registry.core.dependencies import unmet
from registry.core.lifecycle import Reason, State
from registry.core.service import UP, Service
from registry.questions.causes import Evidence, cause_of, latest_order, signal_name
from registry.questions.outlook import Next, Services, next_of
from registry.questions.records import event_record, last_words, rfc3339
from registry.questions.timeline import by, happened, printable
from registry.questions.waiting import waiting_for

_NS = 1_000_000_000
MEANWHILE_NS = 60 * _NS
"""How long before the beginning of a chain something counts as having happened meanwhile."""
CHAIN_MAX = 200
"""Links of the longest chain that is told."""
MEANWHILE_MAX = 5
LINES_MAX = 5


class Link(msgspec.Struct, frozen=True):
    """One cause: what happened, when (UTC) and to whom, as a sentence without its beginning and end."""

    seq: int
    at: str
    service: str | None
    type: str
    sentence: str


class Why(msgspec.Struct, frozen=True):
    """The answer. Each of `because` is the cause of what stands before it; `chain` has the numbers of all events on
    the way, also of those that need no words. `said` is what the latest run that ended ill said last.
    """

    subject: str
    service: str | None
    status: str | None
    since: str
    because: tuple[Link, ...]
    chain: tuple[int, ...]
    meanwhile: tuple[Link, ...] = ()
    said: dict[str, Any] | None = None
    next: Next | None = None


def why_service(service: Service, services: Services, evidence: Evidence) -> Why:
    """Why a service is as it is."""
    chain = _Chain(services, evidence)
    entered = chain.of_state(service)
    return Why(
        subject=f"{_is(service)} since {_time(service.since_ns)}{_adopted(service, evidence)}",
        service=service.name,
        status=service.state.value,
        since=rfc3339(service.since_ns),
        because=tuple(chain.links),
        chain=tuple(chain.seen),
        meanwhile=_meanwhile(service, chain, entered),
        said=_said(service, chain, evidence),
        next=_next(service, services, evidence),
    )


def _next(service: Service, services: Services, evidence: Evidence) -> Next | None:
    """What comes next, and whose word that is where it is not that of what made it stop."""
    coming = next_of(service, services)
    if coming is None or service.state is not State.STOPPING:
        return coming
    order = latest_order(evidence.newest(service.name))
    if order is None:
        return coming
    as_asked = f"{coming.sentence}, as asked{by(order.actor)} (event {order.seq})"
    return msgspec.structs.replace(coming, sentence=printable(as_asked))


def why_event(record: ev.Record, services: Services, evidence: Evidence) -> Why:
    """Why an event happened. `services` are those that it left."""
    chain = _Chain(services, evidence)
    chain.seen[record.seq] = None
    chain.follow(record)
    service = services.get(record.service or "")
    what = printable(_Words(record, chain.parent(record), services, None).sentence())
    of = f" of {record.service}" if record.service else ""
    return Why(
        subject=f"event {record.seq}{of}, {_time(record.at_ns)}: {what}",
        service=record.service,
        status=None,
        since=rfc3339(record.at_ns),
        because=tuple(chain.links),
        chain=tuple(chain.seen),
        meanwhile=_meanwhile(service, chain, record) if service else (),
        said=_said(service, chain, evidence) if service else None,
    )


def why_removed(record: ev.Record, services: Services, evidence: Evidence) -> Why:
    """Why a service is no longer declared: it went with this event. `services` are those of now."""
    chain = _Chain(services, evidence)
    chain.of_event(record)
    return Why(
        subject=f"{record.service} is no longer declared since {_time(record.at_ns)}",
        service=record.service,
        status=None,
        since=rfc3339(record.at_ns),
        because=tuple(chain.links),
        chain=tuple(chain.seen),
    )


def told(answer: Why) -> Iterator[str]:
    """The answer as lines for people; what is indented belongs to what is not."""
    yield answer.subject
    for link in answer.because:
        yield f"  because {link.sentence} (event {link.seq}, {_when(link.at, answer.since)})"
    if not answer.because:
        yield "  no cause of that is recorded"
    if answer.meanwhile:
        yield "meanwhile, not recorded as a cause:"
    for link in answer.meanwhile:
        yield f"  {link.sentence} (event {link.seq}, {_when(link.at, answer.since)})"
    if answer.said:
        yield f"said last, run {answer.said['run']}:"
        for line in answer.said["lines"][-LINES_MAX:]:
            yield f"  | {printable(line)}"
    if answer.next:
        due = f", {_when(answer.next.at, answer.since)}" if answer.next.at else ""
        yield f"next: {answer.next.sentence}{due}"


# --- the chain ------------------------------------------------------------------------------------


class _Chain:
    """The causes of something, followed to their root, and on to what is waited for."""

    def __init__(self, services: Services, evidence: Evidence) -> None:
        self.links: list[Link] = []
        self.seen: dict[int, None] = {}
        self.services = services
        self._evidence = evidence
        self._asked: set[str] = set()

    def of_state(self, service: Service) -> ev.Record | None:
        """Follow why a service is in its state; the event by which it got there."""
        self._asked.add(service.name)
        entered = _entered(service, self._evidence)
        awaited = self._awaited(service)
        if awaited is not None:
            return self._wait_for(service, awaited, entered)
        if entered is not None:
            self._take(entered, None)
            self.follow(entered)
        return entered

    def of_event(self, record: ev.Record) -> None:
        """Follow an event that is itself a cause: of what is no longer there."""
        self._take(record, None)
        self.follow(record)

    def _awaited(self, service: Service) -> Service | None:
        """The first service whose being otherwise than needed keeps this one from starting."""
        is_waiting = service.reason is Reason.WAITING and service.wanted
        if service.state is not State.STOPPED or not is_waiting:
            return None
        missing = (self.services.get(need.service) for need in unmet(service, self.services))
        return next((each for each in missing if each is not None), None)

    def _wait_for(
        self, service: Service, awaited: Service, entered: ev.Record | None
    ) -> ev.Record | None:
        """The rules say that it waits: so why it does is why the other is as it is."""
        if entered is not None:
            self.seen[entered.seq] = None
            what = waiting_for(service, self.services) or "what it depends on"
            self.links.append(_link(entered, f"it waits for {what}"))
        if awaited.name in self._asked:
            return entered
        if (cause := _entered(awaited, self._evidence)) is not None:
            sentence = (
                f"{awaited.name}, on which {service.name} depends, {_is(awaited, named=False)}"
            )
            self.links.append(_link(cause, sentence))
        self.of_state(awaited)
        return entered

    def parent(self, record: ev.Record) -> ev.Record | None:
        """What led to an event."""
        return cause_of(record, self.services, self._evidence)

    def notable(self, name: str, until: ev.Record) -> Iterator[Link]:
        """What happened to a service up to an event, not long before it and to no order, newest first."""
        for record in self._evidence.newest(name):
            if record.mono_ns < until.mono_ns - MEANWHILE_NS:
                return
            is_ordered = (
                isinstance(record.event, ev.Exited) and record.event.source is State.STOPPING
            )
            if record.seq > until.seq or is_ordered or record.seq in self.seen:
                continue
            if isinstance(record.event, _NOTABLE):
                words = _Words(record, self.parent(record), self.services, record).sentence()
                yield _link(record, f"{name} {words.removeprefix('it ')}")

    def follow(self, record: ev.Record) -> None:
        """Take every cause of an event, back to the one that has none."""
        child, cause = record, self.parent(record)
        while cause is not None and cause.seq not in self.seen and len(self.seen) < CHAIN_MAX:
            self._take(cause, child)
            child, cause = cause, self.parent(cause)

    def _take(self, record: ev.Record, child: ev.Record | None) -> None:
        self.seen[record.seq] = None
        words = _Words(record, self.parent(record), self.services, child)
        if not words.goes_without_saying():
            self.links.append(_link(record, words.sentence()))


def _link(record: ev.Record, sentence: str) -> Link:
    return Link(record.seq, rfc3339(record.at_ns), record.service, record.type, printable(sentence))


def _entered(service: Service, evidence: Evidence) -> ev.Record | None:
    """The event by which a service got where it is, or was told to leave."""
    for record in evidence.newest(service.name):
        event = record.event
        if isinstance(event, ev.Moved) and (event.source is not event.dest or _sets_wish(event)):
            return record
    return None


def _sets_wish(event: ev.Moved) -> bool:
    """Whether it left the state as it was, and what is to come of it not. What stops does so for what made it stop."""
    is_word = isinstance(event, ev.StopRequested | ev.StartRequested | ev.Defined | ev.GaveUp)
    return is_word and event.source is not State.STOPPING


def _adopted(service: Service, evidence: Evidence) -> str:
    """That a later registry found its run alive."""
    if service.pid is None:
        return ""
    for record in evidence.newest(service.name):
        if isinstance(record.event, ev.Adopted):
            return f" (the registry that took over found it alive at {_time(record.at_ns)})"
        if isinstance(record.event, ev.Spawned):
            break
    return ""


def _is(service: Service, *, named: bool = True) -> str:
    about = ", and is to stop," if service.state in UP and not service.wanted else ""
    waits = service.state is State.STOPPED and service.wanted and service.reason is Reason.WAITING
    state = f"is {service.state.value}{about}{', and waits,' if waits else ''}"
    return f"{service.name} {state}" if named else state.rstrip(",")


# --- the words of an event ------------------------------------------------------------------------


class _Words:
    """What an event is called as a cause. `child` is what it led to, `cause` what led to it."""

    def __init__(
        self,
        record: ev.Record,
        cause: ev.Record | None,
        services: Services,
        child: ev.Record | None,
    ) -> None:
        self._record = record
        self._cause = cause
        self._child = child
        self._services = services
        service = services.get(record.service or "")
        self._definition: Definition | None = service.definition if service else None

    def goes_without_saying(self) -> bool:
        """Whether what it led to, or what led to it, says as much."""
        event = self._record.event
        if self._child is None and isinstance(event, ev.RestartDue):
            return self._cause is not None
        if self._child is None or self._child.service != self._record.service:
            return (
                isinstance(event, ev.GroupEmptied) and not event.killed and self._cause is not None
            )
        match event:
            case ev.RestartDue() | ev.ProbeChanged() | ev.BecameHealthy() | ev.Spawned():
                return True
            case ev.Exited(source=State.STOPPING):  # as it was told to
                return event.signal != Signals.SIGKILL
            case ev.GroupEmptied():
                return not event.killed
            case _:
                return False

    def sentence(self) -> str:
        """`it exited with code 3`, `db, on which web depends, was stopped by uid 0 (circlectl)`."""
        return f"{self._words()}{by(self._record.actor)}{self._later()}"

    def _words(self) -> str:
        who, whose = self._who()
        record, event = self._record, self._record.event
        if (did := _DID.get(type(event))) is not None:
            return f"{who} {did}"
        match event:
            case ev.StartRequested():
                if event.reason is Reason.AUTOSTART and record.actor is not None:  # who applied it
                    return f"{who} was started as declared (autostart)"
                return f"{who} {_START.get(event.reason, 'was started')}"
            case ev.StopRequested():
                return f"{who} {_STOP.get(event.reason, 'was stopped')}"
            case ev.RestartRequested():
                return f"{who} {_RESTART.get(event.reason, 'was restarted')}"
            case ev.Spawned():
                return f"{who} was started as pid {event.pid} (run {record.run})"
            case ev.SpawnFailed():
                return f"{who} could not be started: {event.message}"
            case ev.BecameReady():
                return f"{who} became ready (run {record.run})"
            case ev.DependenciesMet():
                return f"what {who} waited for was there"
            case ev.DependentsGone():
                return f"those that depend on {'it' if who == 'it' else record.service} had stopped"
            case ev.BecameUnhealthy():
                return f"{whose} {self._check(event)}"
            case ev.Exited():
                return f"{who} {self._exit(event)}"
            case ev.Lost():
                return (
                    f"{who} ended while no registry watched it, how is not known (run {record.run})"
                )
            case ev.StartTimedOut():
                return f"{who} was not ready within its start timeout of {event.timeout_s:g} s"
            case ev.MemoryExceeded():
                held, most = event.bytes >> 20, event.memory_max >> 20
                return f"{who} held {held} MiB of memory, more than its memory_max of {most} MiB"
            case ev.GroupEmptied(killed=0):
                return f"nothing was left of {'it' if who == 'it' else record.service}"
            case ev.GroupEmptied():
                return (
                    f"{who} ended, {event.killed} of its processes only by the registry's SIGKILL"
                )
            case ev.RestartScheduled():
                return f"{whose} {self._schedule(event)}"
            case ev.GaveUp():
                times = "once" if event.restarts == 1 else f"{event.restarts} times"
                return f"{who} had been restarted {times} within {event.within_s:g} s, which is its limit"
            case ev.Removed():
                return f"{who} was removed"
            case ev.RegistryStarted():
                return f"the registry {'started' if event.fresh else 'took over'} (pid {event.pid})"
            case ev.SignalRequested():
                return f"{who} was to be sent {event.signal}"
            case ev.RestartDue():
                return f"{whose} delay was over"
            case ev.StopTimedOut():
                return f"{who} said that it stops, and did not within its stop timeout of {event.timeout_s:g} s"
            case ev.Adopted():
                return f"{who} was found alive as pid {event.pid} (run {record.run})"
            case _:
                plain = msgspec.structs.replace(event_record(record), actor=None)
                text = happened(plain).rpartition("  ")[2]
                return f"{who}: {text}" if record.service else text

    def _later(self) -> str:
        """What an order waits for, where what it led to does not say so."""
        event = self._record.event
        waits = isinstance(event, ev.StopRequested) and event.dest in UP
        is_told = self._child is not None and isinstance(self._child.event, ev.DependentsGone)
        return ", once those that depend on it have stopped" if waits and not is_told else ""

    def _who(self) -> tuple[str, str]:
        """How the service is called, and what is its."""
        name, child = self._record.service, self._child
        if name is None:
            return "the registry", "the registry's"
        if child is None:
            return "it", "its"
        if child.service == name:
            return "it", "its"
        return f"{name}{_relation(name, child.service, self._services)}", f"{name}'s"

    def _check(self, event: ev.BecameUnhealthy) -> str:
        check = self._definition.check(event.check) if self._definition else None
        target = f" {check.target}" if check else ""
        times = "once" if event.failures == 1 else f"{event.failures} times in a row"
        first = self._cause.event if self._cause else None
        errors = [first.error] if isinstance(first, ev.ProbeChanged) else []
        told = list(dict.fromkeys(str(error) for error in (*errors, event.error) if error))
        how = (
            f" (first {told[0]}, then {told[1]})"
            if len(told) > 1
            else "".join(map(" ({})".format, told))
        )
        return f"check {event.check}{target} failed {times}{how}"

    def _exit(self, event: ev.Exited) -> str:
        run = f" (run {self._record.run})"
        if event.message:
            return f"could not be started: {event.message}{run}"
        if event.signal is None:
            return f"exited with code {event.exit_code}{_as_a_shell(event.exit_code)}{run}"
        return f"was ended by {signal_name(event.signal)}{self._sender(event)}{run}"

    def _sender(self, event: ev.Exited) -> str:
        """Who sent the signal, as far as the rules tell: the registry sends its own, at their times, and no other."""
        is_kill = event.signal == Signals.SIGKILL
        if isinstance(self._cause and self._cause.event, ev.SignalRequested | ev.ReloadRequested):
            return ", which the registry had sent it"
        if event.source is not State.STOPPING:
            what = (
                ": the kernel kills so where memory runs out, and so does kill -9"
                if is_kill
                else ""
            )
            return f", not sent by the registry{what}"
        stop = self._definition.stop if self._definition else None
        if stop is None or self._cause is None:
            return ""
        passed_s = (self._record.mono_ns - self._cause.mono_ns) / _NS
        if is_kill and passed_s >= stop.timeout_s:
            return f" from the registry, after its stop timeout of {stop.timeout_s:g} s"
        return " from the registry" if signal_name(event.signal or 0) == stop.signal else ""

    def _schedule(self, event: ev.RestartScheduled) -> str:
        policy = f" ({self._definition.restart.policy.value})" if self._definition else ""
        when = f"after {event.delay_s:.3g} s" if event.delay_s else "at once"
        attempt = f", attempt {event.attempt} in a row" if event.attempt > 1 else ""
        return f"restart policy{policy} starts it again {when}{attempt}"


_DID: dict[type[ev.Event], str] = {
    ev.Defined: "was declared",
    ev.Redefined: "was declared differently",
    ev.ResetRequested: "was reset",
    ev.ReloadRequested: "was to reload",
    ev.StopAnnounced: "said that it stops",
}
_START = {
    Reason.AUTOSTART: "starts with the registry (autostart)",
    Reason.REQUIRED: "is needed by one that was started",
    Reason.REDEFINED: "was started again as it was declared differently",
}
_STOP = {
    Reason.SHUTDOWN: "was stopped for the end of the registry",
    Reason.REMOVED: "was taken out of the configuration",
}
_RESTART = {
    Reason.DEPENDENCY: "follows what it depends on",
    Reason.REDEFINED: "was restarted as it was declared differently",
}


def _relation(name: str, to: str | None, services: Services) -> str:
    other, own = services.get(to or ""), services.get(name)
    if other is not None and any(each.service == name for each in other.definition.depends_on):
        return f", on which {to} depends,"
    if own is not None and any(each.service == to for each in own.definition.depends_on):
        return f", which depends on {to},"
    return ""


def _as_a_shell(code: int | None) -> str:
    """What a shell, or what acts like one, means by a code above 128."""
    if code is None or code - 128 not in set(Signals):
        return ""
    return f", by which a shell tells of {signal_name(code - 128)}"


# --- what is beside the chain ---------------------------------------------------------------------

_NOTABLE = (
    ev.Exited,
    ev.Lost,
    ev.BecameUnhealthy,
    ev.StopRequested,
    ev.RestartRequested,
    ev.SpawnFailed,
    ev.StartTimedOut,
    ev.MemoryExceeded,
    ev.StopTimedOut,
    ev.GaveUp,
)


def _meanwhile(service: Service, chain: _Chain, entered: ev.Record | None) -> tuple[Link, ...]:
    """What happened to those that it depends on in the time before, and is no cause; the latest few."""
    if entered is None:
        return ()
    told = {link.service for link in chain.links}
    found: list[Link] = []
    for name in _depended_on(service, chain.services):
        if name not in told:
            found += islice(chain.notable(name, entered), MEANWHILE_MAX)
    return tuple(sorted(found, key=lambda link: -link.seq)[:MEANWHILE_MAX])


def _depended_on(service: Service, services: Services) -> list[str]:
    """All that it depends on, directly or not."""
    found: dict[str, None] = {}
    waiting = [each.service for each in service.definition.depends_on]
    while waiting:
        name = waiting.pop(0)
        if name in services and name not in found:
            found[name] = None
            waiting += [each.service for each in services[name].definition.depends_on]
    return list(found)


def _said(service: Service, chain: _Chain, evidence: Evidence) -> dict[str, Any] | None:
    """The last words of the run whose end is in the chain, or of the latest that ended ill where that is why."""
    runs = {
        record.run
        for seq in chain.seen
        if (record := evidence.record(seq)) is not None and record.service == service.name
    }
    for record in evidence.newest(service.name):
        if isinstance(record.event, ev.OutputEnded) and record.run in runs and record.event.lines:
            return last_words([record])
        if record.run is not None and runs and record.run < min(run or 0 for run in runs):
            break
    return None


def _time(at_ns: int) -> str:
    return rfc3339(at_ns)[:19].replace("T", " ") + "Z"


def _when(at: str, since: str) -> str:
    """The time of day; the date, too, where it is another one."""
    return f"{at[11:19]}Z" if at[:10] == since[:10] else f"{at[:19].replace('T', ' ')}Z"
