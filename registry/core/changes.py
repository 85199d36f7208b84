"""What a new definition changes of an old one, by the keys of `services.toml`, and what that takes."""

from __future__ import annotations

import math

from registry.core.definition import HEARTBEAT, Definition, Ready

_KEYS = {
    "checks": "health_check",
    "env_names": "env",
    "env_digest": "env",
    "start_timeout_s": "start_timeout",
}
"""The keys that are not called as the fields that hold them."""

_IN_PLACE = frozenset(
    {
        "autostart",
        "depends_on",
        "essential",
        "health_check",
        "logs",
        "oneshot",
        "position",
        "ready",
        "reload",
        "restart",
        "start_timeout",
        "stop",
        "success_exit_codes",
        "tags",
    }
)
"""What a run can take up as it goes on."""


def changed_keys(old: Definition, new: Definition) -> tuple[str, ...]:
    """The keys whose values differ, in the order of the definition's fields."""
    fields = Definition.__struct_fields__
    changed = [name for name in fields if getattr(old, name) != getattr(new, name)]
    return tuple(dict.fromkeys(_KEYS.get(name, name) for name in changed))


def keys_for_a_new_run(old: Definition, new: Definition) -> tuple[str, ...]:
    """Those of the changed keys that only a new run can take up."""
    keys = [key for key in changed_keys(old, new) if key not in _IN_PLACE]
    if (old.logs is None) is not (new.logs is None):
        keys.append("logs")  # the output goes nowhere, or is to
    if (old.ready is Ready.NOTIFY) is not (new.ready is Ready.NOTIFY):
        keys.append("ready")  # its environment tells a run whether somebody listens
    if _beat_s(new) < _beat_s(old):
        keys.append("health_check")  # and how often it is to beat
    return tuple(keys)


def _beat_s(definition: Definition) -> float:
    """How often a run is told to beat, at least; never is infinite."""
    beats = (check.interval_s for check in definition.checks if check.target == HEARTBEAT)
    return min(beats, default=math.inf)
