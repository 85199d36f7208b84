"""What each reason of the lifecycle says to a person."""

from __future__ import annotations

REASONS: dict[str, str] = {
    "defined": "never asked to run",
    "autostart": "started as declared",
    "requested": "as requested",
    "restart_requested": "restart requested",
    "policy": "restarted by its policy",
    "never_ran": "its process ended before the program began",
    "ready": "ready",
    "completed": "completed",
    "exit_code": "exited with an error",
    "signal": "killed by a signal",
    "unjournaled": "found running, begun while the journal could not be written",
    "lost": "ended while nobody watched",
    "unhealthy": "a health check failed",
    "start_timeout": "not ready in time",
    "memory_max": "held more memory than it may",
    "stop_timeout": "said that it stops, and did not in time",
    "waiting": "waiting for what it depends on",
    "dependencies_met": "what it waited for is there",
    "required": "needed by a service that was started",
    "dependency": "follows a service that it depends on",
    "redefined": "declared differently",
    "leftovers": "ended, but left processes behind",
    "crash_looping": "crash-looping",
    "restart_limit": "restart limit reached; circlectl start {name} tries again",
    "reset": "past failures forgotten",
    "shutdown": "stopped with the registry",
    "removed": "no longer in the configuration",
    "program_missing": "program missing",
    "program_not_executable": "program not executable",
    "exec_failed": "program could not be executed",
    "cwd_missing": "working directory missing",
    "user_missing": "user missing",
    "group_missing": "group missing",
    "env_file_missing": "env_file missing",
    "env_file_invalid": "env_file invalid",
    "not_permitted": "not permitted",
    "socket_folder_missing": "folder of a socket missing",
    "socket_unavailable": "cannot listen",
    "no_resources": "out of descriptors, processes or memory",
}
"""Every value of core.lifecycle.Reason; `{name}` is the service's."""


def in_short(word: str) -> str:
    """The same without what may be done about it."""
    return REASONS.get(word, word.replace("_", " ")).partition(";")[0]
