"""How a run ended: what is told of it."""

from __future__ import annotations

import resource
import sys

from registry.core.events import Usage
from registry.core.inputs import Observation, ProcessExited, ProcessLost
from registry.host import gate
from registry.host.members import Process


def ended(
    process: Process,
    code: int | None,
    *,
    group_empty: bool,
    comm: str | None = None,
    usage: Usage | None = None,
) -> Observation:
    """What is to be told of a leader that ended: its exit code, negative for a signal, None if unknown."""
    if code is None:
        return ProcessLost(run=process.run, group_empty=group_empty, killed=len(process.killed))
    exit_code = code if code >= 0 else None
    failure = gate.launch_failure(process.steps, comm, exit_code) if process.steps else None
    return ProcessExited(
        run=process.run,
        exit_code=exit_code,
        signal=-code if code < 0 else None,
        group_empty=group_empty,
        killed=len(process.killed),
        never_ran=code == gate.NEVER_RAN and not process.opened,
        launch_failure=failure[0] if failure else None,
        message=failure[1] if failure else None,
        usage=usage,
    )


def usage_of(usage: resource.struct_rusage) -> Usage:
    """What a child has used, as it is told."""
    # getrusage(2): ru_maxrss is in kilobytes on Linux, in bytes on macOS
    unit = 1 if sys.platform == "darwin" else 1024
    # a child begins with what its parent held: no more than that says nothing of its own
    is_its_own = usage.ru_maxrss > resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    held = usage.ru_maxrss * unit if is_its_own else None
    return Usage(round(usage.ru_utime, 6), round(usage.ru_stime, 6), held)
