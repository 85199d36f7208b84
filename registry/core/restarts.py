"""When to start again: delay, limit, forgiveness. Time and chance are arguments.

The first restart in a row is at once; then `delay` doubling to `delay_max`, with up to 10 % jitter. A run
that was Running for FORGIVEN_AFTER_S ends the row.
"""

from __future__ import annotations

from registry.core.definition import Policy, Restart
from registry.core.digest import blake2b

FORGIVEN_AFTER_S = 30.0
JITTER_MAX = 0.1
REFUSED_DELAY_S = 0.5
NS = 1_000_000_000


def wants_restart(policy: Policy, *, clean: bool) -> bool:
    """Whether a run's end is followed by another run."""
    return policy is Policy.ALWAYS or (policy is Policy.ON_FAILURE and not clean)


def delay_s(restart: Restart, attempt: int, chance: float) -> float:
    """Seconds before restart number `attempt` in a row (from 1); `chance` in [0, 1) sets the jitter."""
    if attempt <= 1:
        return 0.0
    # 2**63 is far beyond any delay_max; the bound keeps the power from growing for ever
    grown = restart.delay_s * 2.0 ** min(attempt - 2, 63)
    return min(grown, restart.delay_max_s) * (1 + JITTER_MAX * chance)


def chance(journal_id: str, service: str, run: int) -> float:
    """A number in [0, 1) that is the same in every replay of the same journal."""
    digest = blake2b(f"{journal_id}/{service}/{run}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def within_window(times_ns: tuple[int, ...], restart: Restart, now_ns: int) -> tuple[int, ...]:
    """Those of the past restarts that still count against the limit."""
    if restart.limit is None or restart.within_s is None:
        return ()
    oldest_ns = now_ns - int(restart.within_s * NS)
    return tuple(time_ns for time_ns in times_ns if time_ns > oldest_ns)[-restart.limit :]


def is_exhausted(times_ns: tuple[int, ...], restart: Restart, now_ns: int) -> bool:
    """True when one more restart would be beyond the limit."""
    return (
        restart.limit is not None and len(within_window(times_ns, restart, now_ns)) >= restart.limit
    )


def is_forgiven(ran_ns: int) -> bool:
    """True when a run that was Running for `ran_ns` ends the row."""
    return ran_ns >= FORGIVEN_AFTER_S * NS
