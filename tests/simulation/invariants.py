"""What has to hold, each one function whose docstring is the sentence it proves.

They look at the journal's rows, the kernel's processes and the registry's state, and trust none of these to
explain the others: what is expected is reckoned here anew, by as few of the product's rules as possible.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from registry.core import events as ev
from registry.core.definition import Condition, Definition, Dependency, Policy, Ready
from registry.core.lifecycle import FOR_A_PERSON, PASSING, Reason, State, is_legal
from registry.core.projection import Projection
from registry.core.service import HAS_RUN, UP, Service
from registry.journal.read import Chain
from registry.journal.rows import Row, to_record
from registry.registry import Registry
from tests.simulation.books import Books
from tests.simulation.kernel import Kernel, Key, Process
from tests.simulation.loop import NS
from tests.simulation.violation import Violation, broken

__all__ = ["Violation", "broken"]

Services = Mapping[str, Service]

FORGIVEN_NS = 30 * NS
JITTER = 1.1
REMEMBERED = 20_000
ASKED = ev.StartRequested | ev.RestartRequested | ev.StopRequested | ev.ResetRequested
RESTS = frozenset({State.STOPPED, State.FAILED})


@dataclass
class Account:
    """What is remembered of one service, from its rows alone."""

    wish: bool = False
    wish_seq: int = 0
    last_run: int = 0
    attempt: int = 0
    is_forgiven: bool = True
    ready_ns: int | None = None
    charged_ns: list[int] = field(default_factory=list)
    due_ns: int | None = None


@dataclass
class Ledger:
    """All rows so far, folded and remembered. `fresh` is what the next beginning has to say of itself."""

    folded: Projection = field(default_factory=Projection)
    accounts: dict[str, Account] = field(default_factory=dict)
    chain: Chain = field(default_factory=Chain)
    fresh: bool = True
    books: Books = field(default_factory=Books)
    spawned: dict[str, tuple[int, int]] = field(default_factory=dict)
    touched: dict[str, None] = field(default_factory=dict)
    types: dict[int, tuple[str | None, str]] = field(default_factory=dict)
    moves: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    said_ready: dict[Key, None] = field(default_factory=dict)

    def account(self, service: str) -> Account:
        """What is remembered of a service."""
        return self.accounts.setdefault(service, Account())

    def remember(self, record: ev.Record) -> None:
        """The latest events by number, and who said it was ready: both bounded, for years of rows."""
        self.types[record.seq] = (record.service, record.type)
        self.types.pop(record.seq - REMEMBERED, None)
        if len(self.said_ready) > REMEMBERED:
            del self.said_ready[next(iter(self.said_ready))]


# --- of each row ----------------------------------------------------------------------------------


def chain_is_whole(ledger: Ledger, row: Row) -> None:
    """Every row follows the one before it without a gap, hashes to what it says, and is read back."""
    trouble = ledger.chain.trouble_of(row)
    if trouble is not None:
        broken(chain_is_whole, row[4], trouble)


def every_move_is_in_the_table(ledger: Ledger, record: ev.Record) -> None:
    """Every move goes from the state the service was in, by a row of the table, to where that row leads."""
    event = record.event
    if not isinstance(event, ev.Moved) or isinstance(event, ev.Defined):
        return
    service = ledger.folded.services.get(record.service or "")
    if service is None or service.state is not event.source:
        was = service.state if service else "not declared"
        broken(every_move_is_in_the_table, record.service, f"it was {was}: {record}")
    if not is_legal(record.type, event.source, event.dest):
        broken(every_move_is_in_the_table, record.service, str(record))


def causes_come_before(ledger: Ledger, record: ev.Record) -> None:
    """A row's cause and the first row of its decision are rows before it, or itself."""
    is_cause_before = record.cause is None or 0 < record.cause < record.seq
    if not is_cause_before or not 0 < record.decision <= record.seq:
        broken(causes_come_before, record.service, str(record))


def no_run_number_is_used_twice(ledger: Ledger, record: ev.Record) -> None:
    """A run has a higher number than every run of its service before it, removed ones included."""
    event = record.event
    begins = isinstance(event, ev.Spawned) or _is_found(ledger, record)
    if not begins or record.service is None:
        return
    account = ledger.account(record.service)
    if record.run is None or record.run <= account.last_run:
        broken(no_run_number_is_used_twice, record.service, f"{account.last_run}, then {record}")
    account.last_run = record.run


def _is_found(ledger: Ledger, record: ev.Record) -> bool:
    """Whether a run that the journal did not know was found; found again it is known, whatever the reason says."""
    if not isinstance(record.event, ev.Adopted) or record.event.reason is not Reason.UNJOURNALED:
        return False
    service = ledger.folded.services.get(record.service or "")
    return service is None or service.run != record.run


def one_process_at_a_time(ledger: Ledger, record: ev.Record) -> None:
    """A process is spawned only where the one before it is known to have ended."""
    service = ledger.folded.services.get(record.service or "")
    if isinstance(record.event, ev.Spawned) and service is not None and service.pid is not None:
        broken(one_process_at_a_time, record.service, f"{service.pid} lives, then {record}")


def the_last_word_counts(ledger: Ledger, record: ev.Record) -> None:
    """What is wanted is what was last asked for: nothing but a command or a fresh beginning changes it."""
    if record.service is None:
        return
    account, event = ledger.account(record.service), record.event
    if isinstance(event, ASKED):
        account.wish_seq = record.seq
    match event:
        case ev.StartRequested() | ev.RestartRequested():
            account.wish = True
        case ev.StopRequested():
            account.wish = False
        case ev.ResetRequested(source=State.FAILED):
            account.wish = False
        case ev.Adopted() if _is_found(ledger, record):
            account.wish = True
        case ev.Removed():
            account.wish = False
        case ev.Resynced():
            account.last_run = max(account.last_run, int(event.state.get("run", 0)))
            account.wish = bool(event.state.get("wanted"))


def a_run_is_ready_by_its_own_word(ledger: Ledger, record: ev.Record) -> None:
    """A run that is to say when it is ready is so only when it has said it, and no other run for it."""
    if not isinstance(record.event, ev.BecameReady) or record.service is None:
        return
    definition = ledger.folded.services[record.service].definition
    is_asked = definition.readiness is Ready.NOTIFY
    if is_asked and (record.service, record.run or 0) not in ledger.said_ready:
        broken(a_run_is_ready_by_its_own_word, record.service, str(record))


def a_beginning_is_fresh_where_it_ought_to_be(ledger: Ledger, record: ev.Record) -> None:
    """A beginning is fresh after an orderly stop of everything and in another boot, else never."""
    event = record.event
    if isinstance(event, ev.RegistryStarted):
        if event.fresh is not ledger.fresh:
            broken(a_beginning_is_fresh_where_it_ought_to_be, None, str(record))
        if event.fresh:
            for account in ledger.accounts.values():
                account.wish, account.due_ns = False, None
                account.charged_ns.clear()
        ledger.fresh = False
    elif isinstance(event, ev.RegistryStopped):
        ledger.fresh = not event.kept


def restarts_keep_delay_and_limit(ledger: Ledger, record: ev.Record) -> None:
    """A restart comes after the delay of its attempt, not before it, and never beyond the limit."""
    if record.service is None:
        return
    account, event = ledger.account(record.service), record.event
    match event:
        case ev.StartRequested() | ev.RestartRequested() | ev.ResetRequested() | ev.Removed():
            account.attempt, account.is_forgiven = 0, True
            account.charged_ns.clear()
        case ev.Resynced():
            account.attempt, account.is_forgiven = int(event.state.get("attempt", 0)), True
            account.due_ns = event.state.get("restart_due_ns")
            account.charged_ns.clear()
        case ev.BecameReady():
            account.ready_ns = record.mono_ns
        case ev.Spawned():
            account.ready_ns, account.is_forgiven = None, False
        case ev.RestartScheduled():
            _scheduled(ledger, record, account, event)
        case ev.RestartDue() if account.due_ns is not None and record.mono_ns < account.due_ns:
            broken(restarts_keep_delay_and_limit, record.service, f"before {account.due_ns}")
    if isinstance(event, ev.Moved) and event.source is State.RUNNING is not event.dest:
        ran_ns = record.mono_ns - (account.ready_ns or record.mono_ns)
        account.is_forgiven |= ran_ns >= FORGIVEN_NS or ran_ns < 0


def _scheduled(
    ledger: Ledger, record: ev.Record, account: Account, event: ev.RestartScheduled
) -> None:
    restart = ledger.folded.services[record.service or ""].definition.restart
    account.due_ns = event.due_ns
    if event.reason is Reason.NEVER_RAN:
        return
    if event.attempt != account.attempt + 1 and not (event.attempt == 1 and account.is_forgiven):
        detail = f"attempt {event.attempt} after {account.attempt}: {record}"
        broken(restarts_keep_delay_and_limit, record.service, detail)
    account.attempt = event.attempt
    steps = min(event.attempt - 2, 60)
    least_s = 0.0 if steps < 0 else min(restart.delay_s * 2.0**steps, restart.delay_max_s)
    most_s = max(least_s * JITTER, 0.5)  # half a second where there were no resources
    if not least_s - 1e-6 <= event.delay_s <= most_s or event.due_ns < record.mono_ns:
        broken(restarts_keep_delay_and_limit, record.service, f"not {least_s} s: {record}")
    if restart.limit is None or restart.within_s is None:
        return
    oldest_ns = record.mono_ns - int(restart.within_s * NS)
    account.charged_ns = [each for each in account.charged_ns if each > oldest_ns]
    account.charged_ns.append(record.mono_ns)
    if len(account.charged_ns) > restart.limit:
        detail = f"{len(account.charged_ns)} restarts within {restart.within_s} s"
        broken(restarts_keep_delay_and_limit, record.service, detail)


def a_stop_waits_for_dependents(ledger: Ledger, record: ev.Record) -> None:
    """A stop that was asked for begins once no dependent that is stopping, too, is left."""
    event, services = record.event, ledger.folded.services
    if not isinstance(event, ev.StopRequested | ev.DependentsGone):
        return
    if event.source not in UP or event.dest is not State.STOPPING:
        return
    if services[record.service or ""].pid is None:
        return
    for other in services.values():
        depends = any(each.service == record.service for each in other.definition.depends_on)
        ends = other.state is State.STOPPING or (other.state in UP and not other.wanted)
        if depends and ends:
            broken(a_stop_waits_for_dependents, record.service, f"{other.name} is {other.state}")


def a_group_is_empty_when_its_run_is_over(kernel: Kernel, record: ev.Record) -> None:
    """A run is over, by the journal, only where no process of it is left."""
    event = record.event
    if not isinstance(event, ev.GroupEmptied | ev.Exited | ev.Lost) or record.service is None:
        return
    if event.dest is State.STOPPING:
        return
    left = kernel.members((record.service, record.run or 0))
    if left:
        broken(a_group_is_empty_when_its_run_is_over, record.service, f"{left[0]}: {record}")


def an_end_is_followed_as_the_policy_says(service: Service, record: ev.Record) -> None:
    """A run that ended is started again if its policy says so, unless its limit or a person stands in between."""
    event = record.event
    is_end = isinstance(event, ev.Exited | ev.Lost | ev.GroupEmptied | ev.SpawnFailed)
    if not is_end or service.state not in RESTS or not service.wanted:
        return
    reason = service.reason
    if reason is Reason.WAITING or reason in FOR_A_PERSON:
        return
    policy, oneshot = service.definition.restart.policy, service.definition.oneshot
    clean = service.state is State.STOPPED
    demands = policy is Policy.ALWAYS or (policy is Policy.ON_FAILURE and not clean)
    if (demands and not (clean and oneshot)) or reason is Reason.NEVER_RAN or reason in PASSING:
        detail = f"it stays {service.state} ({reason}), policy {policy}: {record}"
        broken(an_end_is_followed_as_the_policy_says, service.name, detail)


def take_in(ledger: Ledger, kernel: Kernel, rows: list[Row]) -> list[ev.Record]:
    """Hold a committed batch to every rule of rows, and fold it."""
    latest: dict[str, ev.Record] = {}
    records: list[ev.Record] = []
    for row in rows:
        chain_is_whole(ledger, row)
        record = to_record(row)
        records.append(record)
        for rule in _OF_ROWS:
            rule(ledger, record)
        a_group_is_empty_when_its_run_is_over(kernel, record)
        ledger.books.before(ledger.folded.services, record)
        ledger.folded.fold([record])
        ledger.books.after(ledger.folded.services, record)
        ledger.remember(record)
        if isinstance(record.event, ev.Spawned):
            ledger.spawned[record.service or ""] = (record.run or 0, record.event.pid)
        if record.service is not None:
            ledger.touched[record.service] = None
            if isinstance(record.event, ev.Moved):
                latest[record.service] = record
                moved = record.event
                ledger.moves[record.type, moved.source.value, moved.dest.value] += 1
    for name, record in latest.items():
        service = ledger.folded.services.get(name)
        if service is not None:
            an_end_is_followed_as_the_policy_says(service, record)
            wanted_is_remembered(ledger, service)
    return records


def wanted_is_remembered(ledger: Ledger, service: Service) -> None:
    """The fold wants a service up or down as its rows say."""
    if service.wanted is not ledger.account(service.name).wish:
        detail = f"it is wanted {service.wanted}, its rows say {not service.wanted}"
        broken(wanted_is_remembered, service.name, detail)


_OF_ROWS: tuple[Callable[[Ledger, ev.Record], None], ...] = (
    every_move_is_in_the_table,
    causes_come_before,
    no_run_number_is_used_twice,
    one_process_at_a_time,
    the_last_word_counts,
    a_run_is_ready_by_its_own_word,
    a_beginning_is_fresh_where_it_ought_to_be,
    restarts_keep_delay_and_limit,
    a_stop_waits_for_dependents,
)


def all_rows_fold_alike(ledger: Ledger, rows: list[Row]) -> None:
    """Folding all rows from the first one gives what folding them as they came has given."""
    anew = Projection()
    anew.fold(map(to_record, rows))
    if anew != ledger.folded:
        broken(all_rows_fold_alike, None, f"{anew}\n  as they came: {ledger.folded}")


# --- between steps --------------------------------------------------------------------------------


def live_machines_are_the_fold(registry: Registry, names: Iterable[str] | None = None) -> None:
    """The live machines are what folding everything that was decided gives."""
    live, committed = registry._live, registry.committed
    for name in {**live.services, **committed.services} if names is None else names:
        mine, theirs = live.services.get(name), committed.services.get(name)
        if mine != theirs:
            broken(live_machines_are_the_fold, name, f"live {mine}\n  fold {theirs}")
    if live.seq != committed.seq:
        broken(live_machines_are_the_fold, None, f"live {live.seq}, fold {committed.seq}")


def projection_is_the_fold_of_the_rows(ledger: Ledger, registry: Registry) -> None:
    """The projection that answers come from is what folding the rows on the disk gives."""
    committed = registry.committed
    for name in ledger.touched:
        mine, theirs = committed.services.get(name), ledger.folded.services.get(name)
        if mine != theirs:
            detail = f"projection {mine}\n  rows {theirs}"
            broken(projection_is_the_fold_of_the_rows, name, detail)
    ledger.touched.clear()
    if committed.seq != ledger.folded.seq:
        detail = f"projection {committed.seq}, rows {ledger.folded.seq}"
        broken(projection_is_the_fold_of_the_rows, None, detail)


def one_run_lives_of_a_service(kernel: Kernel) -> None:
    """The processes that run of one service are all of one run, and at most one of them leads it."""
    seen: dict[str, Key] = {}
    for key, group in kernel.groups.items():
        running = [each for each in group if each.has_run]
        if not running:
            continue
        other = seen.setdefault(key[0], key)
        if other != key or sum(each.is_main for each in running) > 1:
            broken(one_run_lives_of_a_service, key[0], f"{other} and {key}")


def no_process_is_unknown(kernel: Kernel, services: Services) -> None:
    """Whatever runs of a service is of the run that the registry calls its present one, and not ended."""
    for key, group in kernel.groups.items():
        service = services.get(key[0])
        if service is not None and service.run == key[1] and service.state in HAS_RUN:
            continue
        for process in group:
            if process.has_run:
                known = f"{service.run}, {service.state}" if service else "not declared"
                broken(no_process_is_unknown, key[0], f"{process} runs, the registry: {known}")


def a_process_is_known_by_its_start_time(kernel: Kernel, services: Services) -> None:
    """What the registry knows the process of a run by, number and start time, is what the kernel knows it by."""
    for name, service in services.items():
        process = kernel.processes.get(service.pid or 0)
        if process is None or process.key != (name, service.run):
            continue
        if process.start_time != service.start_time:
            broken(a_process_is_known_by_its_start_time, name, f"{service.start_time}: {process}")


# --- of what is done ------------------------------------------------------------------------------


def nothing_is_stopped_before_its_cause_is_known(services: Services, name: str, run: int) -> None:
    """A run is told to end only once why is in the journal, or held while that cannot be written."""
    service = services.get(name)
    if service is None or service.run != run or service.state is not State.STOPPING:
        broken(nothing_is_stopped_before_its_cause_is_known, name, f"run {run}: {service}")


def nothing_is_let_go_of_that_runs(kernel: Kernel, name: str, run: int) -> None:
    """The keeper is to forget a run only when none of its processes lives, or is to begin."""
    if any(not (each.at_gate and each.is_ending) for each in kernel.members((name, run))):
        broken(nothing_is_let_go_of_that_runs, name, f"run {run}")


def nothing_runs_before_its_pid_is_known(
    ledger: Ledger, registry: Registry, process: Process
) -> None:
    """A gate opens only once the pid behind it is in the journal, or held while that cannot be written."""
    name, run = process.key or ("", 0)
    if ledger.spawned.get(name) == (run, process.pid):
        return
    held = registry._held
    if held.degraded_since_ns is not None:
        for record in held._records:
            event = record.event
            if isinstance(event, ev.Spawned) and (record.service, record.run) == (name, run):
                return
            if isinstance(event, ev.Resynced) and event.state.get("pid") == process.pid:
                return
    service = ledger.folded.services.get(name)
    if service is not None and (service.run, service.pid) == (run, process.pid):
        return
    broken(nothing_runs_before_its_pid_is_known, name, str(process))


def no_signal_reaches_a_stranger(key: Key, process: Process) -> None:
    """A signal reaches processes of the run that it is meant for, and no others."""
    if process.key != key:
        broken(no_signal_reaches_a_stranger, key[0], f"meant for {key}, it reached {process}")


def dependencies_are_met_at_a_spawn(definition: Definition, services: Services) -> None:
    """A run begins only where each of its service's dependencies is as it asks."""
    for need in missing(definition, services):
        other = services.get(need.service)
        detail = f"{need}: {other.state if other else 'not declared'}"
        broken(dependencies_are_met_at_a_spawn, definition.name, detail)


def missing(definition: Definition, services: Services) -> Iterator[Dependency]:
    """What is not as it is asked; a oneshot that is done passes on what it asks itself."""
    for need in definition.depends_on:
        target = services.get(need.service)
        if target is None or not is_as_asked(need, target):
            yield need
        elif target.definition.oneshot:
            yield from missing(target.definition, services)


def is_as_asked(need: Dependency, target: Service | None) -> bool:
    """What a dependency's condition means, reckoned anew."""
    if target is None:
        return False
    if target.definition.oneshot or need.condition is Condition.COMPLETED:
        is_to_run_again = target.wanted and target.reason is Reason.WAITING
        return target.completed and target.state not in HAS_RUN and not is_to_run_again
    if not target.wanted or target.pid is None:
        return False
    match need.condition:
        case Condition.STARTED:
            return target.state in UP
        case Condition.HEALTHY:
            known = {name: check.healthy for name, check in target.checks.items()}
            healthy = all(known.get(check.name) is True for check in target.definition.checks)
            return target.state is State.RUNNING and healthy
    return target.state is State.RUNNING


def an_answered_command_is_in_the_journal(
    ledger: Ledger, verb: str, service: str, seq: int, *, already: bool
) -> None:
    """A command that was answered is a row of the journal, unless it was so already."""
    if already:
        account = ledger.accounts.get(service)
        present = ledger.folded.services.get(service)
        is_so = account is not None and account.wish is (verb == "start")
        if account is not None and account.wish_seq > seq:
            return  # somebody else had a later word
        if verb in ("start", "stop") and present and not present.removing and not is_so:
            broken(an_answered_command_is_in_the_journal, service, f"{verb} is not so already")
        return
    owner, kind = ledger.types.get(seq, (None, "missing"))
    # what leads to nothing for the service itself may still start what it needs
    is_for_another = verb in ("start", "restart") and kind == "start_requested"
    if not is_for_another and (owner, kind) != (service, f"{verb}_requested"):
        detail = f"event {seq} is {kind} of {owner}, not {verb}_requested"
        broken(an_answered_command_is_in_the_journal, service, detail)


# --- in the long run ------------------------------------------------------------------------------


def overdue(service: Service, services: Services, kernel: Kernel, mono_ns: int) -> str | None:
    """What ought to have happened to a service by now; None where something is still due, or all is done."""
    run_s = {"start": service.definition.start_timeout_s, "stop": service.definition.stop.timeout_s}
    lives = any(each.alive for each in kernel.members((service.name, service.run)))
    match service.state:
        case State.STARTING | State.RUNNING if service.pid is None or not lives:
            return "its process is gone"
        case State.STARTING:
            due_ns = max((service.watched_ns or 0) + int(run_s["start"] * NS), service.extended_ns)
            if service.definition.readiness is Ready.HEALTH and _all_succeed(service):
                return "all its checks succeed, and it is not ready"
            return "its start timeout is over" if mono_ns > due_ns else None
        case State.STOPPING:
            due_ns = max(service.moved_ns + int(run_s["stop"] * NS), service.extended_ns)
            return "its stop timeout is over" if mono_ns > due_ns else None
        case State.RESTARTING:
            due_ns = service.restart_due_ns or 0
            return "its restart is due" if mono_ns > due_ns else None
        case State.RUNNING:
            return _overdue_running(service, services, mono_ns)
    waits = service.reason is Reason.WAITING and service.wanted
    return (
        "it waits for nothing" if waits and not any(missing(service.definition, services)) else None
    )


def _overdue_running(service: Service, services: Services, mono_ns: int) -> str | None:
    stop_s = service.definition.stop.timeout_s
    if service.ending_ns is not None:
        due_ns = max(service.ending_ns + int(stop_s * NS), service.extended_ns)
        return "it said that it stops" if mono_ns > due_ns else None
    if service.requests:
        return f"what event {service.requests[0].seq} asks for is not done"
    if service.wanted:
        return "it does not follow" if _is_left_behind(service, services) else None
    for other in dependents(service.name, services):
        if other.state is State.STOPPING or (other.state in UP and not other.wanted):
            return None
    return "it is to stop, and nobody stops before it"


def _all_succeed(service: Service) -> bool:
    checks = [service.checks.get(check.name) for check in service.definition.checks]
    return all(check is not None and check.ok for check in checks)


def _is_left_behind(service: Service, services: Services) -> bool:
    """Whether what its run follows was stopped by somebody, or has a later run and is as it is asked."""
    if service.run_definition is not None:  # what is declared counts from its next run on
        return False
    for need in service.definition.depends_on:
        target = services.get(need.service)
        if not need.restart or target is None:
            continue
        is_reset = target.reason is Reason.RESET  # that only forgets
        is_met = is_as_asked(need, target)
        if not (target.wanted or target.definition.oneshot or is_reset or is_met):
            return True
        if not is_met:
            continue
        if 0 < (service.spawned_seq or 0) < (target.spawned_seq or 0):
            return True
    return False


def dependents(name: str, services: Services) -> Iterator[Service]:
    """Who depends on a service, directly or through oneshots at rest."""
    for other in services.values():
        if any(each.service == name for each in other.definition.depends_on):
            yield other
            if other.definition.oneshot and other.state not in HAS_RUN:
                yield from dependents(other.name, services)


def every_service_settles(service: str, why: str, seconds: float) -> None:
    """Every service has what it asks for, or an input is due that will settle it, within a bounded time."""
    broken(every_service_settles, service, f"for {seconds:.0f} s: {why}")


def nothing_is_left(kernel: Kernel) -> None:
    """After an orderly stop no process of any service is left."""
    for key in kernel.groups:
        broken(nothing_is_left, key[0], f"{key} lives")


def nobody_fails(error: BaseException | None, what: str) -> None:
    """No exception is left uncaught."""
    where = "".join(traceback.format_exception(error)) if error is not None else ""
    broken(nobody_fails, None, f"{what}: {error!r}\n{where}")
