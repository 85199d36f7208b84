"""How like two definitions of a service are, as far as what was observed of one of them tells of the other. Pure."""

from __future__ import annotations

from copy import copy

import msgspec

from registry.core.changes import keys_for_a_new_run
from registry.core.definition import Check, Definition, OnFailure
from registry.core.lifecycle import Reason, State
from registry.core.service import CheckState, Service
from registry.questions.recorded import Piece


class Tally(msgspec.Struct):
    """The latest results of a check in a row: `sure` equal ones, and `maybe` as many failures. `round` is that of its
    next attempt: an earlier one does not count any more.
    """

    ok: bool | None = None
    sure: int = 0
    maybe: int = 0
    round: int = 0


def is_asked_alike(mine: Check, theirs: Check) -> bool:
    """Whether a check is carried out at the same times, in the same way."""
    one, other = (each.interval_s for each in (mine, theirs))
    return (mine.target, mine.timeout_s, one) == (theirs.target, theirs.timeout_s, other)


def is_known(check: Check, theirs: Definition) -> bool:
    """Whether the other definition asks the same."""
    known = theirs.check(check.name)
    return known is not None and known.target == check.target


def can_end_a_run(check: Check) -> bool:
    """Whether its failures lead to a restart."""
    return check.on_failure is OnFailure.RESTART


def is_idle(tally: Tally, check: Check, service: Service, result: Piece) -> bool:
    """Whether further results like this one change nothing."""
    healthy = service.checks.get(check.name, CheckState()).healthy
    if result.ok is None:
        return not can_end_a_run(check)
    is_known = healthy is result.ok and tally.ok is result.ok
    return is_known and (result.ok is False or tally.maybe == 0)


def strange(recorded: Definition, mine: Definition) -> list[str]:
    """The keys whose change makes a run another than the recorded one."""
    if recorded == mine:
        return []
    keys = [key for key in keys_for_a_new_run(recorded, mine) if key != "logs"]
    most, before = mine.restart.memory_max, recorded.restart.memory_max
    if most is not None and (before is None or most < before):
        keys.append("restart.memory_max")
    return keys


def up(service: Service, seq: int) -> Service:
    """As if it ran, since just now, and all was well with it."""
    guess = _guess(service, State.RUNNING)
    guess.pid, guess.spawned_seq, guess.completed = 1, seq, service.definition.oneshot
    guess.checks = {
        each.name: CheckState(ok=True, healthy=True) for each in guess.definition.checks
    }
    if service.definition.oneshot:
        guess.state, guess.pid = State.STOPPED, None
    return guess


def failed(service: Service, _seq: int) -> Service:
    """As if it had failed."""
    guess = _guess(service, State.FAILED)
    guess.pid, guess.completed = None, False
    return guess


def stopping(service: Service, _seq: int) -> Service:
    """As if it were stopping."""
    guess = _guess(service, State.STOPPING)
    guess.pid, guess.completed = 1, False
    return guess


def _guess(service: Service, state: State) -> Service:
    guess = copy(service)
    guess.state, guess.reason, guess.wanted = state, Reason.READY, True
    return guess
