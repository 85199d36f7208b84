"""What is searched: one service by each of its policies and kinds, and two by each condition between them."""

from __future__ import annotations

from typing import Any

from registry.core.definition import (
    Check,
    Condition,
    Definition,
    Dependency,
    OnFailure,
    Policy,
    Ready,
    Reload,
    Restart,
    Stop,
)
from tests.exhaustive.search import Scenario
from tests.exhaustive.states import TICK_S

LIMIT: dict[str, Any] = {"limit": 2, "within_s": 2 * TICK_S}
BEAT = Check("beat", "unix:/s", failures=2)
REPORTED = Check("beat", "unix:/s", failures=2, on_failure=OnFailure.REPORT)
KINDS: dict[str, dict[str, Any]] = {
    "spawn": {},
    "notify": {"ready": Ready.NOTIFY},
    "health": {"checks": (BEAT,)},
    "report": {"checks": (REPORTED,), "ready": Ready.SPAWN},
    "oneshot": {"oneshot": True},
}


def service(name: str, policy: Policy = Policy.ALWAYS, **fields: Any) -> Definition:
    """A service whose timeouts are all of one tick."""
    limits = {key: fields.pop(key) for key in ("limit", "within_s", "memory_max") if key in fields}
    return Definition(
        name=name,
        cmd=fields.pop("cmd", ("run",)),
        restart=Restart(policy, delay_s=20.0, delay_max_s=20.0, **limits),
        stop=Stop(timeout_s=TICK_S),
        start_timeout_s=TICK_S,
        reload=Reload(signal="SIGHUP"),
        **fields,
    )


MINE = frozenset({"kill", "reset", "restart", "shutdown"})
ENDS = frozenset({"kill", "restart", "forks", "cannot", "unknown", "refusals"})
TALK = frozenset({"kill", "restart", "notes", "probes", "memory", "requests"})


def singles() -> list[Scenario]:
    """One service: each policy with each way to be ready, with and without a limit."""
    found = []
    for kind, fields in KINDS.items():
        for policy in Policy:
            if kind == "oneshot" and policy is Policy.ALWAYS:
                continue
            one = service("a", policy, **fields)
            name = f"one {policy}, {kind}"
            found.append(Scenario(f"{name}: commands", ((one,),), MINE, 2))
            found.append(Scenario(f"{name}: ends", ((one,),), ENDS))
            if one.is_notified or one.checks:
                found.append(Scenario(f"{name}: talk", ((one,),), TALK))
            if policy is not Policy.NEVER:
                limited = service("a", policy, **fields, **LIMIT)
                found.append(Scenario(f"{name}, limit: commands", ((limited,),), MINE))
    return found


def troubled() -> list[Scenario]:
    """One service in all trouble: a full disk, another boot, other definitions, everything at once."""
    one = service("a", memory_max=2**30)
    files: tuple[tuple[Definition, ...], ...] = (
        (one,),
        (service("a", Policy.NEVER, cmd=("another",)),),
        (),
    )
    inplace = service("a", Policy.NEVER)
    notified = service("a", ready=Ready.NOTIFY)
    return [
        Scenario("one, disk full", ((one,),), frozenset({"kill", "disk", "forks"})),
        Scenario("one, reboots", ((one,),), MINE | {"reboot"}),
        Scenario("one, redefined", files, frozenset({"kill", "apply", "reset"})),
        Scenario("one, redefined in place", ((one,), (inplace,)), MINE | {"apply", "forks"}),
        Scenario("one, notified or not", ((one,), (notified,)), MINE | {"apply", "notes"}),
        Scenario("one, manual", ((service("a", autostart=False),),), MINE | {"reboot"}),
    ]


def pairs() -> list[Scenario]:
    """Two services, one of which needs the other: each condition, followed or not."""
    needed = {
        Condition.STARTED: service("a"),
        Condition.READY: service("a", ready=Ready.NOTIFY),
        Condition.HEALTHY: service("a", checks=(REPORTED,), ready=Ready.SPAWN),
        Condition.COMPLETED: service("a", Policy.ON_FAILURE, oneshot=True),
    }
    found = []
    for condition, a in needed.items():
        for follows in (False, True):
            b = service("b", depends_on=(Dependency("a", condition, follows),))
            word = ", followed" if follows else ""
            found.append(Scenario(f"two, {condition}{word}", ((a, b),), PAIR))
    return found


def troubled_pairs() -> list[Scenario]:
    """Two services in trouble of each kind that concerns both."""
    a, b = service("a"), service("b", depends_on=(Dependency("a", Condition.STARTED),))
    slow = service("a", ready=Ready.NOTIFY, memory_max=2**30)
    needs = service("b", depends_on=(Dependency("a", Condition.READY, restart=True),))
    once = service("b", Policy.NEVER, depends_on=(Dependency("a"),))
    files = ((a, b), (a,), (service("b"),))
    return [
        Scenario("two, disk full", ((a, b),), frozenset({"kill", "disk"})),
        Scenario("two, redefined", files, frozenset({"kill", "apply"})),
        Scenario("two, refused", ((a, b),), frozenset({"refusals", "reset", "shutdown"})),
        Scenario(
            "two, unkilled", ((service("a", ready=Ready.NOTIFY), once),), frozenset({"restart"})
        ),
        Scenario("two, talk", ((slow, needs),), frozenset({"notes", "memory", "forks"})),
    ]


PAIR = frozenset({"kill", "restart"})


def every() -> list[Scenario]:
    """All of them."""
    return [*singles(), *troubled(), *pairs(), *troubled_pairs()]


def some() -> list[tuple[Scenario, int]]:
    """Enough of them to visit what can be visited, and how deep: seconds of work in all."""
    return [(each, SOME[each.name]) for each in every() if each.name in SOME]


SOME = {
    "one Always, spawn: commands": 4,
    "one Never, spawn: ends": 7,
    "one OnFailure, spawn, limit: commands": 9,
    "one Always, notify: talk": 4,
    "one Always, health: talk": 5,
    "one Always, report: talk": 4,
    "one OnFailure, notify: ends": 6,
    "one OnFailure, oneshot: ends": 4,
    "one, disk full": 9,
    "one, reboots": 5,
    "one, redefined": 5,
    "one, redefined in place": 5,
    "one, manual": 5,
    "two, started": 3,
    "two, started, followed": 3,
    "two, ready": 3,
    "two, ready, followed": 3,
    "two, healthy": 3,
    "two, healthy, followed": 3,
    "two, completed": 3,
    "two, completed, followed": 3,
    "two, disk full": 3,
    "two, redefined": 3,
    "two, refused": 4,
    "two, unkilled": 5,
    "two, talk": 3,
}
"""What is searched in seconds, and to what depth."""
