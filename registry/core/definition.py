"""What a service should be: the definition, as `services.toml` asks for it.

A definition is journaled whole, so it never holds the value of an environment variable: only names,
and a digest whose key stays on the machine. Times are seconds, as people write them.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Policy(StrEnum):
    """Which ends of a process are followed by an automatic restart."""

    ALWAYS = "Always"
    ON_FAILURE = "OnFailure"
    NEVER = "Never"


class OnFailure(StrEnum):
    """What a check that has failed often enough leads to."""

    RESTART = "restart"
    REPORT = "report"


class Restart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When to start again. `limit` restarts `within_s` seconds are the most; no limit when None."""

    policy: Policy = Policy.ALWAYS
    delay_s: float = 0.5
    delay_max_s: float = 30.0
    limit: int | None = None
    within_s: float | None = None


class Stop(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to end a process: `signal`, and SIGKILL when its group is not empty after `timeout_s`."""

    signal: str = "SIGTERM"
    timeout_s: float = 10.0


class Logs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where output goes: `dir`/NAME.log, rotated at `size_max` bytes, `files_max` files in all."""

    dir: str
    size_max: int = 10_000_000
    files_max: int = 5


class Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One declared check: every `interval_s` an attempt that may take `timeout_s`.

    `target` is `unix:PATH`, `http://...`, `https://...`, `cmd:ARGV` or `heartbeat:`. A heartbeat check
    listens instead: a beat is due every `interval_s` and missed when `timeout_s` more have passed.
    """

    name: str
    target: str
    interval_s: float = 10.0
    timeout_s: float = 3.0
    failures: int = 3
    successes: int = 1
    on_failure: OnFailure = OnFailure.RESTART


class Definition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One service as asked for. Paths are absolute, except a bare program name in `cmd[0]`.

    `success_exit_codes` holds exit codes; a signal named by the user is stored as its negative number.
    `env_names` and `env_digest` stand for the variables of `env`; `env_file` is read at each start.
    `position` is the place in the file, which lists keep. An `essential` service that is finally gone takes
    the registry with it.
    """

    name: str
    cmd: tuple[str, ...]
    position: int = 0
    restart: Restart = Restart()
    stop: Stop = Stop()
    checks: tuple[Check, ...] = ()
    cwd: str = "/"
    env_names: tuple[str, ...] = ()
    env_digest: str = ""
    env_file: str | None = None
    user: str | None = None
    group: str | None = None
    umask: int = 0o022
    autostart: bool = True
    success_exit_codes: tuple[int, ...] = (0,)
    start_timeout_s: float = 90.0
    essential: bool = False
    logs: Logs | None = None

    def check(self, name: str) -> Check | None:
        """The declared check called `name`, or None."""
        return next((check for check in self.checks if check.name == name), None)
