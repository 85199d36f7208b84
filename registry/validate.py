"""What `--validate` does: a file judged by itself and by this machine, everything wrong at once.

What only the machine can tell is an error here. The daemon asks for the same complaints and warns:
the service concerned fails with its reason, the others run.
"""

from __future__ import annotations

import grp
import os
import pwd
import resource
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from registry.config import Complaint, Config, ConfigError, Lines, load
from registry.core.definition import Definition
from registry.core.lifecycle import Reason
from registry.host import cgroup
from registry.host.activation import UNIX
from registry.host.launch import DEFAULT_PATH, LaunchError, find_program, obstacles

EX_CONFIG = 78
"""The exit status for a wrong configuration, as sysexits.h has it."""


def validate(path: Path) -> int:
    """Say what is wrong with `path` (stderr), or that nothing is. Returns the exit status."""
    try:
        config = load(path)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EX_CONFIG
    if complaints := machine_complaints(config, os.environ):
        print(*complaints, sep="\n", file=sys.stderr)
        return EX_CONFIG
    count = len(config.definitions)
    print(f"{path}: {count} service{'' if count == 1 else 's'}, all well")
    return 0


def machine_complaints(config: Config, inherited: Mapping[str, str]) -> tuple[Complaint, ...]:
    """What keeps services from running here, and what nobody can be given or told; once for all instances.

    `inherited` is the registry's own environment.
    """
    lines = Lines(config)
    of_services = (
        _complaint(lines.of_key(definition.name, error.key), definition, error)
        for definition in config.definitions
        for error in _in_the_way(definition, config.environments[definition.name], inherited)
    )
    of_hooks = (
        _complaint(lines.of((*place, "cmd")), None, error)
        for hook, place in zip(config.hooks, config.hook_places, strict=True)
        for error in _missing(hook.cmd[0], inherited, hook.cwd)
    )
    of_access = (
        _complaint(lines.of(("access", role)), None, _nobody(f"access.{role}", word))
        for role, words in msgspec.structs.asdict(config.access).items()
        for word in words
        if not _exists(word)
    )
    of_socket = (
        _complaint(lines.of(("registry", "socket")), None, error)
        for error in _folder_missing(config.registry.socket, "registry.socket")
    )
    return tuple(dict.fromkeys((*of_socket, *of_access, *of_hooks, *of_services)))


def _complaint(
    place: tuple[str, int], definition: Definition | None, error: LaunchError
) -> Complaint:
    name = (definition.instance_of or definition.name) if definition else None
    return Complaint(*place, name, error.key, f"{error.key}: {error.message}")


def _in_the_way(
    definition: Definition, env: Mapping[str, str], inherited: Mapping[str, str]
) -> Iterator[LaunchError]:
    yield from obstacles(definition, env, inherited)
    if definition.reload and definition.reload.cmd:
        # the same service with another program
        reload = msgspec.structs.replace(definition, cmd=definition.reload.cmd, checks=())
        for error in obstacles(reload, env, inherited):
            if error.key == "cmd":
                yield LaunchError(error.reason, error.message, "reload")
    for socket in definition.sockets:
        if socket.address.startswith(UNIX):
            yield from _folder_missing(socket.address.removeprefix(UNIX), "sockets")
    yield from cgroup.impossible(definition.limits)
    if os.geteuid() != 0:
        yield from _privileges(definition)


def _folder_missing(path: str, key: str) -> Iterator[LaunchError]:
    """Why a socket cannot be made at `path`."""
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        message = f"there is no folder {folder}; make it, or choose another path"
        yield LaunchError(Reason.SOCKET_FOLDER_MISSING, message, key)


def _privileges(definition: Definition) -> Iterator[LaunchError]:
    """What only root may give."""
    nice = definition.nice
    if nice is not None and nice < os.getpriority(os.PRIO_PROCESS, 0):
        yield _only_root("nice", f"lower the niceness to {nice}")
    adjusted = definition.oom_score_adj
    if adjusted is not None and adjusted < 0:
        yield _only_root("oom_score_adj", f"set oom_score_adj to {adjusted}")
    for name, limit in definition.limits.rlimits.items():
        hard = _hard_limit(name)
        if hard is not None and (limit is None or limit > hard):
            yield _only_root("limits", f"raise the limit {name} above {hard}")


def _hard_limit(name: str) -> int | None:
    """Of the registry itself; None where there is none, or no such limit here."""
    limit = getattr(resource, f"RLIMIT_{name.upper()}", None)
    hard = resource.RLIM_INFINITY if limit is None else resource.getrlimit(limit)[1]
    return None if hard == resource.RLIM_INFINITY else hard


def _only_root(key: str, what: str) -> LaunchError:
    message = f"only root may {what}; run the registry as root or leave it out"
    return LaunchError(Reason.NOT_PERMITTED, message, key)


def _missing(word: str, inherited: Mapping[str, str], cwd: str) -> Iterator[LaunchError]:
    """Why the program of a hook cannot be run."""
    try:
        find_program(word, inherited.get("PATH") or DEFAULT_PATH, cwd, key="hook.cmd")
    except LaunchError as error:
        yield error


def _exists(word: str) -> bool:
    """Whether somebody is there whom `[access]` names; a number needs nobody."""
    kind, _, name = word.partition(":")
    try:
        if kind == "user":
            pwd.getpwnam(name)
        elif kind == "group":
            grp.getgrnam(name)
    except KeyError:
        return False
    return True


def _nobody(key: str, word: str) -> LaunchError:
    kind, _, name = word.partition(":")
    reason = Reason.USER_MISSING if kind == "user" else Reason.GROUP_MISSING
    message = (
        f"this machine has no {kind} '{name}', so it lets nobody in; create it or name another"
    )
    return LaunchError(reason, message, key)
