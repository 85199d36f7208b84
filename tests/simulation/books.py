"""Kept of each service by its rows alone, a second time: what the fold has to agree with, and what rows have to say.

Each rule is a function whose docstring is the sentence it proves; it sees a row, and its service as it was before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from registry.core import events as ev
from registry.core.definition import Check, Definition, Policy
from registry.core.lifecycle import FOR_A_PERSON, PASSING, Reason, State
from registry.core.service import HAS_RUN, Service
from tests.simulation.loop import NS
from tests.simulation.violation import broken

FORGIVEN_NS = 30 * NS
PATIENCE_S = 150.0
"""What a check may be late: longer than the daemon ever stands still."""

Asked = ev.StartRequested | ev.RestartRequested
Ended = ev.Exited | ev.Lost


@dataclass
class Page:
    """One service. `due`: autostart has a say; `checks`: the latest result of each, and since when it is the same."""

    due: bool = True
    completed: bool = False
    restarts: int = 0
    last_run: int = 0
    begun_with: Definition | None = None
    since: tuple[int, int] | None = None
    extended_ns: int = 0
    watched_ns: int = 0
    ready_ns: int | None = None
    has_run_long: bool = False
    stopping_ns: int | None = None
    at_once: ev.Record | None = None
    requests: dict[int, None] = field(default_factory=dict)
    checks: dict[str, tuple[bool, int]] = field(default_factory=dict)


@dataclass
class Books:
    """All pages, and whether somebody has said something since the latest beginning."""

    pages: dict[str, Page] = field(default_factory=dict)
    is_begun: bool = True

    def before(self, services: Mapping[str, Service], record: ev.Record) -> None:
        """Hold a row to the rules, and write it down; `services` is everything before it."""
        event = record.event
        if isinstance(event, ev.RegistryStarted):
            self.is_begun = False
            for page in self.pages.values():
                page.checks.clear()
                page.due, page.completed = page.due or event.fresh, page.completed > event.fresh
        if not self.is_begun and (record.actor is not None or _is_shutdown(event)):
            self.is_begun = True
            for name, service in services.items():
                autostart_has_its_say(self.pages.setdefault(name, Page()), service)
        service_before = services.get(record.service or "")
        if record.service is None or service_before is None:
            return
        page = self.pages.setdefault(record.service, Page())
        for rule in _RULES:
            rule(page, service_before, record)
        _write(page, service_before, record)

    def after(self, services: Mapping[str, Service], record: ev.Record) -> None:
        """Compare the fold with what is written down."""
        if record.service is None:
            return
        service = services.get(record.service)
        if service is None:
            run = self.pages.pop(record.service, Page()).last_run
            self.pages[record.service] = Page(last_run=run)
            return
        page = self.pages.setdefault(record.service, Page())
        if page.since is None or isinstance(record.event, ev.Resynced):
            page = self.pages[record.service] = _opened(page, service, record)
        the_fold_says_what_the_rows_say(page, service)


def _opened(page: Page, service: Service, record: ev.Record) -> Page:
    """A page begun with a service as it is: declared now, or with its whole state in one row."""
    if not isinstance(record.event, ev.Resynced):
        return Page(last_run=page.last_run, since=(record.at_ns, record.mono_ns))
    return Page(
        due=service.autostart_due,
        completed=service.completed,
        restarts=service.restarts,
        last_run=service.run,
        begun_with=service.run_definition or service.definition,
        since=(service.since_ns, service.moved_ns),
        extended_ns=service.extended_ns,
        watched_ns=service.watched_ns or 0,
        requests={each.seq: None for each in service.requests},
    )


def _is_shutdown(event: ev.Event) -> bool:
    return isinstance(event, ev.StopRequested) and event.reason is Reason.SHUTDOWN


# --- writing down ---------------------------------------------------------------------------------


def _write(page: Page, service: Service, record: ev.Record) -> None:
    event = record.event
    match event:
        case ev.StartRequested() | ev.RestartRequested():
            page.due = False
        case ev.StopRequested():
            page.due = event.reason is Reason.SHUTDOWN
        case ev.Redefined():
            page.due |= service.removing
            page.checks.clear()
            page.stopping_ns = None
        case ev.ResetRequested():
            page.restarts = 0
        case ev.RestartScheduled():
            page.restarts += event.reason is not Reason.NEVER_RAN
            page.has_run_long, page.at_once = False, record if event.delay_s == 0 else None
        case ev.TimeoutExtended():
            page.extended_ns = event.due_ns
        case ev.StopAnnounced():
            page.extended_ns = 0
        case ev.SignalRequested() | ev.ReloadRequested():
            page.requests[record.seq] = None
        case ev.RequestDone():
            page.requests.pop(event.request, None)
        case ev.ProbeChanged():
            page.checks[event.check] = event.ok, record.mono_ns
        case ev.WatchdogChanged() | ev.MainChanged():
            page.checks.clear()
        case ev.BecameReady():
            page.ready_ns = record.mono_ns
        case ev.Spawned() | ev.Adopted():
            _write_run(page, service, record)
    if isinstance(event, ev.Moved):
        _write_move(page, service, event, record)


def _write_run(page: Page, service: Service, record: ev.Record) -> None:
    page.watched_ns = record.mono_ns
    if record.run != service.run:
        page.last_run, page.begun_with = record.run or 0, service.definition
        page.completed, page.has_run_long, page.ready_ns = False, False, None
        page.extended_ns = 0
        page.requests.clear()
        page.checks.clear()
        page.due &= isinstance(record.event, ev.Spawned)


def _write_move(page: Page, service: Service, event: ev.Moved, record: ev.Record) -> None:
    if event.dest is State.STOPPED and event.reason is Reason.COMPLETED:
        page.completed = True
    if not isinstance(event, ev.RestartScheduled):
        page.at_once = None
    if event.dest is event.source:
        return
    page.since = record.at_ns, record.mono_ns
    if event.source is State.STARTING:
        page.extended_ns = 0
    if event.source is State.RUNNING and page.ready_ns is not None:
        page.has_run_long = record.mono_ns - page.ready_ns >= FORGIVEN_NS
    if event.dest not in HAS_RUN:
        page.requests.clear()
    page.stopping_ns = record.mono_ns if event.dest is State.STOPPING else None
    # what a check said while its service was no longer, or not yet, Running does not count
    page.checks = {name: (ok, record.mono_ns) for name, (ok, _since) in page.checks.items()}


# --- the rules ------------------------------------------------------------------------------------


def the_fold_says_what_the_rows_say(page: Page, service: Service) -> None:
    """Since when, whether autostart decides, completed, restarts, requests: the fold has them as the rows have them."""
    begun_with = service.run_definition or service.definition
    fold = {
        "due": service.autostart_due,
        "completed": service.completed,
        "restarts": service.restarts,
        "since": (service.since_ns, service.moved_ns),
        "extended_ns": service.extended_ns,
        "requests": dict.fromkeys(each.seq for each in service.requests),
        "begun_with": begun_with if service.pid is not None else page.begun_with,
    }
    for name, value in fold.items():
        if value != getattr(page, name):
            detail = f"{name} is {value}, by the rows {getattr(page, name)}"
            broken(the_fold_says_what_the_rows_say, service.name, detail)


def autostart_has_its_say(page: Page, service: Service) -> None:
    """Before a beginning takes commands, whatever only autostart decides is wanted where it says so."""
    if page.due and service.definition.autostart and not service.removing and not service.wanted:
        broken(autostart_has_its_say, service.name, "it is not wanted")


def autostart_speaks_where_it_is_due(page: Page, _service: Service, record: ev.Record) -> None:
    """Autostart starts or stops only what no operator has had a say on since."""
    event = record.event
    is_said = isinstance(event, Asked | ev.StopRequested) and event.reason is Reason.AUTOSTART
    if is_said and not page.due:
        broken(autostart_speaks_where_it_is_due, record.service, str(record))


def a_long_run_is_forgiven(page: Page, _service: Service, record: ev.Record) -> None:
    """After a run that was Running for half a minute the row of restarts begins anew."""
    event = record.event
    if not isinstance(event, ev.RestartScheduled) or event.reason is Reason.NEVER_RAN:
        return
    if page.has_run_long and event.attempt != 1:
        broken(a_long_run_is_forgiven, record.service, str(record))


def a_restart_is_as_the_policy_says(_page: Page, service: Service, record: ev.Record) -> None:
    """Nothing is started again that its policy, or a person, is to leave as it is."""
    if not isinstance(record.event, ev.RestartScheduled):
        return
    clean, policy = service.state is State.STOPPED, service.definition.restart.policy
    demands = policy is Policy.ALWAYS or (policy is Policy.ON_FAILURE and not clean)
    demands &= not (clean and service.definition.oneshot)
    is_tried_again = service.reason is Reason.NEVER_RAN or service.reason in PASSING
    if service.reason in FOR_A_PERSON or not (demands or is_tried_again):
        detail = f"it is {service.state} ({service.reason}), policy {policy}: {record}"
        broken(a_restart_is_as_the_policy_says, record.service, detail)


def a_restart_at_once_is_one_decision(page: Page, _service: Service, record: ev.Record) -> None:
    """A restart without delay is due in the decision that schedules it, and says whether anything had run."""
    scheduled = page.at_once
    if scheduled is None or not isinstance(scheduled.event, ev.Moved):
        return
    event = record.event
    never_ran = scheduled.event.reason is Reason.NEVER_RAN
    why = Reason.NEVER_RAN if never_ran else Reason.POLICY
    is_so = isinstance(event, ev.RestartDue) and event.reason in (why, Reason.WAITING)
    if not is_so or record.decision != scheduled.decision:
        broken(a_restart_at_once_is_one_decision, record.service, f"{scheduled}, then {record}")


def runs_are_numbered_without_a_gap(page: Page, _service: Service, record: ev.Record) -> None:
    """Each run that is spawned has the number after the last, and one that never began has none."""
    event = record.event
    is_wrong = isinstance(event, ev.Spawned) and record.run != page.last_run + 1
    if is_wrong or (isinstance(event, ev.SpawnFailed) and record.run is not None):
        broken(runs_are_numbered_without_a_gap, record.service, f"after {page.last_run}: {record}")


def a_found_run_follows_an_ended_one(_page: Page, service: Service, record: ev.Record) -> None:
    """A run that the journal did not know is taken up once the one that it knew is known to have ended."""
    is_new = isinstance(record.event, ev.Adopted) and record.run != service.run
    if is_new and service.pid is not None:
        broken(a_found_run_follows_an_ended_one, record.service, str(record))


def a_start_has_its_whole_timeout(page: Page, service: Service, record: ev.Record) -> None:
    """A start is given up after its whole timeout, counted from when somebody watches, and the time it asked for."""
    if isinstance(record.event, ev.StartTimedOut):
        due_ns = page.watched_ns + int(service.definition.start_timeout_s * NS)
        if record.mono_ns < max(due_ns, page.extended_ns):
            broken(a_start_has_its_whole_timeout, record.service, f"due at {due_ns}: {record}")


def a_stop_has_its_whole_timeout(page: Page, service: Service, record: ev.Record) -> None:
    """Nothing is killed before the stop timeout is over."""
    event = record.event
    if not isinstance(event, ev.GroupEmptied) or not event.killed or page.stopping_ns is None:
        return
    due_ns = page.stopping_ns + int(service.definition.stop.timeout_s * NS)
    if record.mono_ns < due_ns:  # more time may have been asked for when it was too late
        broken(a_stop_has_its_whole_timeout, record.service, f"due at {due_ns}: {record}")


def an_end_says_why(_page: Page, service: Service, record: ev.Record) -> None:
    """The reason of a run's end is what was seen of it, or what it was stopped for."""
    event = record.event
    if not isinstance(event, ev.Exited | ev.Lost):
        return
    if event.reason not in _whys(service, event):
        broken(an_end_says_why, record.service, str(record))


def _whys(service: Service, event: ev.Exited | ev.Lost) -> frozenset[Reason]:
    if event.source is State.STOPPING:  # a later run was found: this one was lost
        return frozenset({service.reason, *({Reason.LOST} if isinstance(event, ev.Lost) else ())})
    if not event.group_empty:
        return frozenset({Reason.LEFTOVERS})
    if isinstance(event, ev.Lost):
        return frozenset({Reason.LOST})
    if event.never_ran:
        return frozenset({Reason.NEVER_RAN})
    if event.dest is State.STOPPED:
        return frozenset({Reason.COMPLETED})
    if event.signal is not None:
        return frozenset({Reason.SIGNAL})
    return FOR_A_PERSON | PASSING | {Reason.EXIT_CODE}


def a_command_says_why(_page: Page, service: Service, record: ev.Record) -> None:
    """Who waits is down; a stop or reset says what it found, and only what has completed stays so."""
    event = record.event
    if not isinstance(event, ev.Moved):
        return
    is_told = isinstance(event, Asked | ev.RestartDue | ev.GroupEmptied)
    is_wrong = is_told and event.reason is Reason.WAITING and event.dest is not State.STOPPED
    if isinstance(event, ev.StopRequested):
        was_done = service.reason is Reason.COMPLETED
        is_wrong = (event.reason is Reason.COMPLETED) > (was_done and record.actor is not None)
        is_wrong |= event.reason is Reason.REQUESTED and was_done
    if isinstance(event, ev.ResetRequested):
        was_failed = service.state is State.FAILED
        is_wrong = event.reason is not (Reason.RESET if was_failed else service.reason)
    if is_wrong:
        broken(a_command_says_why, record.service, f"it was {service.reason}: {record}")


def a_request_is_done_once(page: Page, service: Service, record: ev.Record) -> None:
    """A signal or reload is asked of a run that has a process, and is done once."""
    event = record.event
    if isinstance(event, ev.RequestDone) and event.request not in page.requests:
        broken(a_request_is_done_once, record.service, f"nobody asks for it: {record}")
    is_asked = isinstance(event, ev.SignalRequested | ev.ReloadRequested)
    can_reload = service.definition.reload is not None
    if is_asked and (service.pid is None or (isinstance(event, ev.ReloadRequested) > can_reload)):
        broken(a_request_is_done_once, record.service, f"nobody can do it: {record}")


def checks_reach_their_thresholds(page: Page, service: Service, record: ev.Record) -> None:
    """A check whose result stays the same makes its service healthy or unhealthy, and no earlier than it says."""
    event = record.event
    if isinstance(event, ev.BecameHealthy):
        check = service.definition.check(event.check)
        if check is None or event.successes < check.successes:
            broken(checks_reach_their_thresholds, record.service, str(record))
    if service.state is not State.RUNNING or service.ending_ns is not None:
        return
    for name, (ok, since_ns) in page.checks.items():
        check = service.definition.check(name)
        known = service.checks.get(name)
        is_said = known is not None and known.healthy is ok
        if check is not None and not is_said and record.mono_ns - since_ns > _late_ns(check, ok):
            detail = f"{name} is {ok} since {since_ns}, and its health is {known}: {record}"
            broken(checks_reach_their_thresholds, record.service, detail)


def _late_ns(check: Check, ok: bool) -> int:
    count = check.successes if ok else check.failures
    return int((count * (check.interval_s + check.timeout_s) + PATIENCE_S) * NS)


_RULES: tuple[Callable[[Page, Service, ev.Record], None], ...] = (
    autostart_speaks_where_it_is_due,
    a_long_run_is_forgiven,
    a_restart_is_as_the_policy_says,
    a_restart_at_once_is_one_decision,
    runs_are_numbered_without_a_gap,
    a_found_run_follows_an_ended_one,
    a_start_has_its_whole_timeout,
    a_stop_has_its_whole_timeout,
    an_end_says_why,
    a_command_says_why,
    a_request_is_done_once,
    checks_reach_their_thresholds,
)
