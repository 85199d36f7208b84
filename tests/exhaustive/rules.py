"""What has to hold of every step and in every state, each one function whose docstring is the sentence it proves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from registry.core import events as ev
from registry.core.definition import Definition, Policy
from registry.core.dependencies import is_settled
from registry.core.lifecycle import FOR_A_PERSON, Reason, State
from registry.core.projection import Projection
from registry.core.service import HAS_RUN, Service
from tests.exhaustive.states import GATE, RUNS, Pool, Run, World
from tests.simulation import invariants as inv
from tests.simulation.invariants import Ledger, broken

RULES = (
    inv.every_move_is_in_the_table,
    inv.causes_come_before,
    inv.one_process_at_a_time,
    inv.a_stop_waits_for_dependents,
)


# --- of a decision --------------------------------------------------------------------------------


def hold(before: Projection, live: Projection, records: list[ev.Record]) -> None:
    """Hold the records of a decision to every rule of rows, and the live machines to their fold."""
    ledger = Ledger(folded=before)
    latest: dict[str, ev.Record] = {}
    for record in records:
        for rule in RULES:
            rule(ledger, record)
        was = before.services.get(record.service or "")
        wanted = was is not None and was.wanted
        before.fold([record])
        the_last_word_counts(wanted, record, before)
        if record.service is not None and isinstance(record.event, ev.Moved):
            latest[record.service] = record
    live_machines_are_the_fold(before, live)
    for name, record in latest.items():
        if name in before.services:
            inv.an_end_is_followed_as_the_policy_says(before.services[name], record)


def the_last_word_counts(wanted: bool, record: ev.Record, folded: Projection) -> None:
    """What is wanted is what was last asked for: nothing but a command, or a run nobody knew of, changes it."""
    service = folded.services.get(record.service or "")
    if service is None:
        return
    match record.event:
        case ev.StartRequested() | ev.RestartRequested():
            wanted = True
        case ev.StopRequested() | ev.ResetRequested(source=State.FAILED):
            wanted = False
        case ev.Adopted(reason=Reason.UNJOURNALED):
            wanted = True
    if service.wanted is not wanted:
        broken(the_last_word_counts, record.service, f"not {wanted}: {record}")


def live_machines_are_the_fold(folded: Projection, live: Projection) -> None:
    """The live machines are what folding the journal gives."""
    for name in {**live.services, **folded.services}:
        mine, theirs = live.services.get(name), folded.services.get(name)
        if mine != theirs:
            broken(live_machines_are_the_fold, name, f"live {mine}\n  fold {theirs}")
    if live.last_runs != folded.last_runs:
        broken(live_machines_are_the_fold, None, f"live {live.last_runs}, fold {folded.last_runs}")


def one_run_at_a_time(run: Run, service: str) -> None:
    """A process is spawned only where none of the service's runs, or will."""
    if run.first in (GATE, RUNS) or run.second == RUNS:
        broken(one_run_at_a_time, service, str(run))


def dependencies_are_met(definition: Definition, services: inv.Services) -> None:
    """A run begins only where each of its service's dependencies is as it asks."""
    inv.dependencies_are_met_at_a_spawn(definition, services)


def nothing_runs_unknown(service: Service, run: Run) -> None:
    """A gate is opened only to the process that the registry knows the run by."""
    if service.pid != run.pid:
        broken(nothing_runs_unknown, service.name, f"{service.pid}, and not {run}")


# --- of a state -----------------------------------------------------------------------------------


def state_is_sound(world: World, pool: Pool) -> None:
    """What holds between any two steps of a daemon that is up."""
    if world.life not in ("up", "closing") or world.batch:
        return
    for name, number, run in zip(pool.names, world.live, world.runs, strict=True):
        no_process_is_unknown(name, pool.service(number), run)


def no_process_is_unknown(name: str, service: Service | None, run: Run) -> None:
    """Whatever runs of a service is of the run that the registry calls its present one, and not ended."""
    if RUNS not in run.processes:
        return
    if service is None or service.run != run.number or service.state not in HAS_RUN:
        broken(no_process_is_unknown, name, f"{run}, the registry: {service}")


# --- of rest --------------------------------------------------------------------------------------


def rest_is_settled(world: World, pool: Pool, files: Sequence[tuple[Definition, ...]]) -> None:
    """Where nothing is left to happen by itself, every service has what its definition asks for, or says why not."""
    services, file = pool.services(world.live), files[world.file]
    if world.life != "up" or world.live != world.durable:
        broken(rest_is_settled, None, f"the daemon is {world.life}")
    if {each.name: each for each in file} != {n: s.definition for n, s in services.items()}:
        broken(rest_is_settled, None, f"declared are {sorted(services)}")
    for name, run in zip(pool.names, world.runs, strict=True):
        service = services.get(name)
        is_up = service is not None and service.state is State.RUNNING
        if run.lives is not is_up:
            _unsettled(name, f"{service.state if service else 'not declared'}, and {run}")
        if service is not None:
            had = {each.restart.policy for some in files for each in some if each.name == name}
            _is_at_rest(service, services, had)


def _is_at_rest(service: Service, services: dict[str, Service], policies: set[Policy]) -> None:
    if not is_settled(service, services):
        _unsettled(service.name, f"the core says that it is not settled: {service}")
    if service.state is State.RUNNING:
        if not service.wanted or service.definition.oneshot:
            _unsettled(service.name, f"it runs: {service}")
    elif service.state not in (State.STOPPED, State.FAILED):
        _unsettled(service.name, str(service))
    elif service.wanted and not _may_stay_down(service, services, policies):
        _unsettled(service.name, f"it is wanted, and down: {service}")


def _may_stay_down(service: Service, services: dict[str, Service], policies: set[Policy]) -> bool:
    """Whether a service that is wanted up has a reason to be down: its policy when it ended, be it another now."""
    if service.reason is Reason.WAITING:
        return any(inv.missing(service.definition, services))
    is_clean = service.state is State.STOPPED
    if service.reason in FOR_A_PERSON or service.reason is Reason.RESTART_LIMIT:
        return True
    if is_clean and service.definition.oneshot:
        return service.reason is Reason.COMPLETED
    if not is_clean:  # of one that failed, who declares it otherwise has it tried again
        return service.definition.restart.policy is Policy.NEVER
    return bool(policies & {Policy.NEVER, Policy.ON_FAILURE})


def _unsettled(name: str, detail: str) -> NoReturn:
    broken(rest_is_settled, name, detail)
