"""What comes next for a service as it is now, and when: its restart, its end, or nothing until somebody asks."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from registry.core import restarts
from registry.core.definition import Ready
from registry.core.duties import duties
from registry.core.lifecycle import FOR_A_PERSON, PASSING, Reason, State
from registry.core.service import Service, start_due_ns
from registry.questions.records import rfc3339
from registry.questions.waiting import waiting_for

Services = Mapping[str, Service]


class Next(msgspec.Struct, frozen=True):
    """What comes next, and when that is due (UTC; null where that is not a matter of time)."""

    sentence: str
    at: str | None = None


def next_of(service: Service, services: Services) -> Next | None:
    """What comes next; None where it runs, and nothing is due."""
    match service.state:
        case State.RESTARTING:
            at = service.restart_at_ns
            due = rfc3339(at) if at is not None else None
            again = f", attempt {service.attempt} in a row" if service.attempt else ""
            return Next(f"it is started again{again}", due)
        case State.STARTING:
            return _next_of_start(service)
        case State.STOPPING:
            return _next_of_stop(service)
        case State.RUNNING:
            if (what := waiting_for(service, services)) is not None:
                return Next(f"it stops; it waits for {what}")
            return None
        case State.STOPPED | State.FAILED:
            return Next(_rest(service))


def _next_of_start(service: Service) -> Next:
    if service.pid is None or service.watched_ns is None:
        return Next("its process is made")
    return Next(
        f"{_readiness(service)}; else it is stopped as failed", _utc(service, start_due_ns(service))
    )


def _readiness(service: Service) -> str:
    match (service.run_definition or service.definition).readiness:
        case Ready.NOTIFY:
            return "it waits for READY=1 from the service"
        case Ready.HEALTH:
            missing = [
                f"{check.name} ({check.target})"
                for check in service.definition.checks
                if (state := service.checks.get(check.name)) is None or not state.ok
            ]
            return f"it waits for the first success of {' and '.join(missing) or 'its checks'}"
        case Ready.SPAWN:
            return "its program executes"


def _next_of_stop(service: Service) -> Next:
    stop = duties(service).stop
    assert stop is not None
    then = {
        State.STARTING: "; then it is started again",
        State.FAILED: "; then it has failed, and its restart policy decides",
    }
    after = then.get(service.bound or State.STOPPED, "; then it stays down")
    return Next(f"SIGKILL for what is left of it{after}", _utc(service, stop.kill_due_ns))


def _rest(service: Service) -> str:
    name, reason = service.name, service.reason
    if reason is Reason.WAITING and service.wanted:
        return "it is started as soon as that is so"
    if reason is Reason.COMPLETED:
        return "nothing: it has done what it was to do"
    if reason is Reason.RESTART_LIMIT:
        return f"nothing until circlectl start {name} (or reset)"
    if reason in FOR_A_PERSON:
        return f"nothing until that is mended, and circlectl start {name}"
    if reason is Reason.SHUTDOWN and service.definition.autostart:
        return "it starts with the next registry (autostart)"
    policy = service.definition.restart.policy
    is_clean = service.state is State.STOPPED
    if service.wanted and (reason in PASSING or restarts.wants_restart(policy, clean=is_clean)):
        return f"its restart policy ({policy.value}) starts it again"
    why = f": its restart policy is {policy.value}" if service.wanted else ""
    return f"nothing until circlectl start {name}{why}"


def _utc(service: Service, due_ns: int) -> str:
    """A time of CLOCK_BOOTTIME by what both clocks said when the service got where it is."""
    return rfc3339(service.since_ns + due_ns - service.moved_ns)
