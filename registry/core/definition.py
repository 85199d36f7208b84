"""What a service should be: the definition, as `services.toml` asks for it.

A definition is journaled whole, so it never holds the value of an environment variable: only names,
and a digest whose key stays on the machine. Times are seconds, as people write them.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

HEARTBEAT = "heartbeat:"
"""The target of a check that listens."""


class Policy(StrEnum):
    """Which ends of a process are followed by an automatic restart."""

    ALWAYS = "Always"
    ON_FAILURE = "OnFailure"
    NEVER = "Never"


class Ready(StrEnum):
    """When a run is ready: it says so (sd_notify), every check succeeded, or its program executes."""

    NOTIFY = "notify"
    HEALTH = "health"
    SPAWN = "spawn"


class Condition(StrEnum):
    """What a dependency has to be before a dependent starts (Compose's words; DESIGN's vocabulary)."""

    STARTED = "started"
    READY = "ready"
    HEALTHY = "healthy"
    COMPLETED = "completed"


class OnFailure(StrEnum):
    """What a check that has failed often enough leads to."""

    RESTART = "restart"
    REPORT = "report"


class Restart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When to start again. `limit` restarts `within_s` seconds are the most; no limit when None.

    A run whose processes together hold more than `memory_max` bytes is restarted; it is looked at now and then.
    """

    policy: Policy = Policy.ALWAYS
    delay_s: float = 0.5
    delay_max_s: float = 30.0
    limit: int | None = None
    within_s: float | None = None
    memory_max: int | None = None


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

    `target` is `unix:PATH`, `tcp:HOST:PORT`, `http://...`, `https://...`, `http+unix:PATH:/URL`, `cmd:ARGV` or
    `heartbeat:`. A heartbeat check listens instead: a beat is due every `interval_s` and missed when `timeout_s`
    more have passed. `signal` ends a run that this check fails, instead of the stop signal.
    """

    name: str
    target: str
    interval_s: float = 10.0
    timeout_s: float = 3.0
    failures: int = 3
    successes: int = 1
    on_failure: OnFailure = OnFailure.RESTART
    signal: str | None = None


class Dependency(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another service that has to be `condition` first. `restart`: follow its restarts and stops, too."""

    service: str
    condition: Condition = Condition.READY
    restart: bool = False


class Socket(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A listening socket that the registry opens for a service: `HOST:PORT`, `[HOST]:PORT` or `unix:PATH`."""

    name: str
    address: str


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of a service: `rlimits` by setrlimit(2)'s names in lower case (soft and hard alike; None is no limit),
    the others are a cgroup's: bytes, CPUs, processes.
    """

    rlimits: dict[str, int | None] = {}
    memory_max: int | None = None
    cpu_max: float | None = None
    pids_max: int | None = None


class Reload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a service is told to re-read its own files: a signal to its main process, or a command. One of them."""

    signal: str | None = None
    cmd: tuple[str, ...] = ()


class Definition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One service as asked for. Paths are absolute, except a bare program name in `cmd[0]`.

    `success_exit_codes` holds exit codes; a signal named by the user is stored as its negative number.
    `env_names` and `env_digest` stand for the variables of `env`; `env_file` is read at each start.
    `position` is the place in the file, which lists keep. An `essential` service that is finally gone takes
    the registry with it. `ready` None is `health` where checks are declared, else `spawn`. A `oneshot` runs to
    its end. `instance_of` is the name with which the file declares several instances. `capabilities` are
    the only ones that a service has ("CAP_NET_BIND_SERVICE"), None leaves them as they are.
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
    ready: Ready | None = None
    oneshot: bool = False
    depends_on: tuple[Dependency, ...] = ()
    tags: tuple[str, ...] = ()
    instance_of: str | None = None
    instance: int | None = None
    sockets: tuple[Socket, ...] = ()
    reload: Reload | None = None
    limits: Limits = Limits()
    groups: tuple[str, ...] | None = None
    nice: int | None = None
    oom_score_adj: int | None = None
    no_new_privs: bool = False
    capabilities: tuple[str, ...] | None = None

    @property
    def readiness(self) -> Ready:
        """What makes a run ready."""
        if self.oneshot:
            return Ready.SPAWN
        return self.ready or (Ready.HEALTH if self.checks else Ready.SPAWN)

    @property
    def is_notified(self) -> bool:
        """Whether its processes are given a notification socket: somebody listens to what they say."""
        return self.ready is Ready.NOTIFY or any(c.target == HEARTBEAT for c in self.checks)

    def check(self, name: str) -> Check | None:
        """The declared check called `name`, or None."""
        return next((check for check in self.checks if check.name == name), None)
