"""What a service waits for, in words: the first of its dependencies that is not as it is needed, or who stops first."""

from __future__ import annotations

from collections.abc import Mapping

from registry.core.dependencies import is_ending, unmet
from registry.core.lifecycle import Reason, State
from registry.core.service import UP, Service


def waiting_for(service: Service, services: Mapping[str, Service]) -> str | None:
    """Such as `db to be ready (it is stopped)` or `web to stop`; None where it waits for nothing."""
    if service.reason is Reason.WAITING and service.wanted and service.state is State.STOPPED:
        return next(
            (
                _need(each.service, each.condition.value, services)
                for each in unmet(service, services)
            ),
            None,
        )
    if service.state in UP and not service.wanted:
        ending = [
            each.name
            for each in services.values()
            if is_ending(each)
            and any(need.service == service.name for need in each.definition.depends_on)
        ]
        return f"{' and '.join(ending)} to stop" if ending else None
    return None


def _need(name: str, condition: str, services: Mapping[str, Service]) -> str:
    target = services.get(name)
    why = _why_not(target) if target is not None else "it is not declared"
    return f"{name} to be {condition}" + (f" ({why})" if why else "")


def _why_not(target: Service) -> str | None:
    """Why it will not come by itself; None where it is on its way."""
    if target.state is State.FAILED:
        return f"it failed: {target.reason.value.replace('_', ' ')}"
    if not target.wanted:
        return "it is stopped"
    if target.reason is Reason.WAITING:
        return "it waits, too"
    return None
