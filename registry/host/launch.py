"""What a definition comes to on this machine: program, folder, user and environment of a run.

A service's environment is small and clean. In this order, later ones win: PATH, LANG and TZ of the
registry where set there (PATH has a default); HOME, USER, LOGNAME and SHELL from the passwd entry
of the user it runs as; the lines of its `env_file`; its `env`. What a run adds (CIRCLEOSD_RUN and
the like) is added by who starts it. Looks, changes nothing; may wait for a user database.
"""

from __future__ import annotations

import functools
import grp
import os
import pwd
import re
import shlex
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

from registry.core.definition import Definition
from registry.core.lifecycle import Reason

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_INHERITED = ("LANG", "TZ")
_ID_DIGITS = 10
_ID_MAX = 2**32 - 2  # the last is "no change" to setuid(2) and its kin
_SCRIPT_BYTES = 256
"""What the kernel looks at to tell what executes a file (BINPRM_BUF_SIZE of linux/binfmts.h)."""
_INTERPRETER = re.compile(rb"#![ \t]*([^ \t\n\0]+)")
_ASSIGNMENT = re.compile(r"(?:export\s+)?([^\s=]+)=(.*)")

T = TypeVar("T")


class LaunchError(Exception):
    """A service that cannot be launched: the reason, a sentence for people, the key concerned."""

    def __init__(self, reason: Reason, message: str, key: str = "cmd") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.key = key


class Launch(msgspec.Struct, frozen=True):
    """Everything that starting takes. `argv[0]` is absolute, `env` is complete.

    `uid` and `gid` are None where nothing changes; `groups` counts only where one of them is set. `files_max`
    is the soft limit of open descriptors, None for ours; a limit `nofile` of `rlimits` goes before it. What
    `rlimits`, `nice`, `oom_score_adj`, `no_new_privs`, `capabilities` and the limits of a cgroup
    (`memory_max` in bytes, `cpu_max` in CPUs, `pids_max`) mean, the definition says.

    `descriptors` are open descriptors of ours that the program finds at 3, 4 and so on. `own_pid` names
    variables that hold the program's own pid.
    """

    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    umask: int
    uid: int | None
    gid: int | None
    groups: tuple[int, ...]
    files_max: int | None = None
    rlimits: dict[str, int | None] = {}
    nice: int | None = None
    oom_score_adj: int | None = None
    no_new_privs: bool = False
    capabilities: tuple[str, ...] | None = None
    memory_max: int | None = None
    cpu_max: float | None = None
    pids_max: int | None = None
    descriptors: tuple[int, ...] = ()
    own_pid: tuple[str, ...] = ()

    @property
    def has_cgroup_limits(self) -> bool:
        """Whether a limit is asked for that only a cgroup can keep."""
        return (self.memory_max, self.cpu_max, self.pids_max) != (None, None, None)


class _Identity(msgspec.Struct, frozen=True):
    """Whom a service runs as: ids as in `Launch`, and the entry that names its home and shell."""

    entry: pwd.struct_passwd
    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] = ()


def resolve(definition: Definition, env: Mapping[str, str], inherited: Mapping[str, str]) -> Launch:
    """What `definition` comes to, with the values `env` of its variables; the first obstacle raises.

    `inherited` is the registry's own environment.
    """
    launch, found = _resolve(definition, env, inherited)
    if found:
        raise found[0]
    return launch


def obstacles(
    definition: Definition, env: Mapping[str, str], inherited: Mapping[str, str]
) -> list[LaunchError]:
    """Everything that is in the way, not only the first, the programs of `cmd:` checks included."""
    launch, found = _resolve(definition, env, inherited)
    path = launch.env.get("PATH", "")
    for check in definition.checks:
        scheme, _, line = check.target.partition(":")
        if scheme == "cmd":
            try:
                find_program(shlex.split(line)[0], path, launch.cwd, key="health_check")
            except LaunchError as error:
                found.append(error)
    return found


def find_program(word: str, path: str, cwd: str, key: str = "cmd") -> str:
    """The absolute path of a program: `word` itself where it has a slash, else its place in `path`.

    `key` names what asks for it.
    """
    folders = [""] if "/" in word else path.split(":")
    candidates = [os.path.join(cwd, folder, word) for folder in folders]
    files = [each for each in candidates if os.path.isfile(each)]
    for file in files:
        if os.access(file, os.X_OK):
            _refuse_without_interpreter(file, cwd, key)
            return file
    if files:
        message = f"{files[0]} is not executable; chmod +x it"
        raise LaunchError(Reason.PROGRAM_NOT_EXECUTABLE, message, key)
    if "/" in word and os.path.isdir(candidates[0]):
        message = f"{candidates[0]} is a folder; write the path of a program"
    elif "/" in word:
        message = f"there is no program {candidates[0]}"
    else:
        message = f"there is no program '{word}' in PATH={path}; write its path or set env.PATH"
    raise LaunchError(Reason.PROGRAM_MISSING, message, key)


def _refuse_without_interpreter(file: str, cwd: str, key: str) -> None:
    """A script whose first line asks for what is not there would be taken for started, and end at once."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:  # it may be executed and not read: then the kernel tells
        return
    try:
        begins = os.read(descriptor, _SCRIPT_BYTES)
    except OSError:
        return
    finally:
        os.close(descriptor)
    match = _INTERPRETER.match(begins)
    if match is None or os.access(os.path.join(os.fsencode(cwd), match[1]), os.X_OK):
        return
    interpreter = os.fsdecode(match[1])
    if interpreter.endswith("\r"):
        message = (
            f"the first line of {file} ends with a carriage return; save it with Unix line ends"
        )
    else:
        message = f"{file} asks for the interpreter {interpreter}, which is not there to execute it"
    raise LaunchError(Reason.EXEC_FAILED, message, key)


def read_env_file(path: str) -> dict[str, str]:
    """The variables of an `env_file`.

    A line is KEY=VALUE, with `export` before it or not, its value in one pair of quotes or in none;
    blank lines and those that begin with # do not count. Nothing is expanded.
    """
    variables: dict[str, str] = {}
    for number, line in enumerate(_lines(path), start=1):
        if not line or line.startswith("#"):
            continue
        match = _ASSIGNMENT.fullmatch(line)
        if match is None or "\0" in line:  # the line itself is not shown: it may hold a secret
            message = f"{path}:{number}: not a line of the form KEY=VALUE"
            raise LaunchError(Reason.ENV_FILE_INVALID, message, "env_file")
        variables[match[1]] = _unquoted(match[2].strip())
    return variables


def _lines(path: str) -> list[str]:
    if not os.path.isfile(path):
        message = f"{path} is a folder" if os.path.isdir(path) else f"there is no file {path}"
        raise LaunchError(Reason.ENV_FILE_MISSING, message, "env_file")
    try:
        with open(path, encoding="utf-8") as file:
            return [line.strip() for line in file]
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}"
        raise LaunchError(Reason.ENV_FILE_MISSING, message, "env_file") from None
    except UnicodeDecodeError:
        message = f"{path} is not UTF-8; save it as UTF-8"
        raise LaunchError(Reason.ENV_FILE_INVALID, message, "env_file") from None


def _unquoted(value: str) -> str:
    is_quoted = len(value) >= 2 and value[0] in "\"'" and value[-1] == value[0]
    return value[1:-1] if is_quoted else value


def _resolve(
    definition: Definition, env: Mapping[str, str], inherited: Mapping[str, str]
) -> tuple[Launch, list[LaunchError]]:
    """What can be resolved, and every obstacle on the way, in the order in which they matter."""
    found: list[LaunchError] = []

    def attempt(step: Callable[[], T], instead: T) -> T:
        try:
            return step()
        except LaunchError as error:
            found.append(error)
            return instead

    try:
        identity = _identity(definition)
    except LaunchError as error:
        found += _missing_accounts(definition) or [error]
        identity = _Identity(_own_entry())
    cwd = attempt(lambda: _folder(definition.cwd), definition.cwd)
    extra = attempt(lambda: _extra(definition), dict[str, str]())
    complete = {**_basics(identity, inherited), **extra, **env}
    word, *arguments = definition.cmd
    program = attempt(lambda: find_program(word, complete.get("PATH", ""), cwd), word)
    launch = Launch(
        argv=(program, *arguments),
        env=complete,
        cwd=cwd,
        umask=definition.umask,
        uid=identity.uid,
        gid=identity.gid,
        groups=identity.groups,
        rlimits=definition.limits.rlimits,
        nice=definition.nice,
        oom_score_adj=definition.oom_score_adj,
        no_new_privs=definition.no_new_privs,
        capabilities=attempt(lambda: _capabilities(definition), None),
        memory_max=definition.limits.memory_max,
        cpu_max=definition.limits.cpu_max,
        pids_max=definition.limits.pids_max,
    )
    return launch, found


def _extra(definition: Definition) -> dict[str, str]:
    return read_env_file(definition.env_file) if definition.env_file else {}


def _folder(path: str) -> str:
    if not os.path.isdir(path):
        is_there = os.path.exists(path)
        message = f"{path} is no folder" if is_there else f"there is no folder {path}"
        raise LaunchError(Reason.CWD_MISSING, message, "cwd")
    return path


def _basics(identity: _Identity, inherited: Mapping[str, str]) -> dict[str, str]:
    entry = identity.entry
    return {
        "PATH": inherited.get("PATH") or DEFAULT_PATH,
        **{name: inherited[name] for name in _INHERITED if name in inherited},
        "HOME": entry.pw_dir,
        "USER": entry.pw_name,
        "LOGNAME": entry.pw_name,
        "SHELL": entry.pw_shell or "/bin/sh",
    }


def _identity(definition: Definition) -> _Identity:
    """Whom `definition` asks for; only root may ask for somebody else."""
    entry = _entry(definition) if definition.user else _own_entry()
    gid = _gid(definition.group) if definition.group else entry.pw_gid
    groups = _groups(definition, gid)
    is_own = (entry.pw_uid, gid) == (os.geteuid(), os.getegid())
    if is_own and (groups is None or groups == {*os.getgroups(), gid}):
        return _Identity(entry)
    if os.geteuid() != 0:
        raise _not_permitted(definition, is_own=is_own)
    uid = entry.pw_uid if definition.user else None
    if groups is None:
        groups = set(os.getgrouplist(entry.pw_name, gid))
    return _Identity(entry, uid, gid, tuple(sorted(groups)))


def _missing_accounts(definition: Definition) -> list[LaunchError]:
    """Every user and group asked for that this machine does not have."""
    asked = [("user", definition.user), ("group", definition.group)]
    asked += [("groups", group) for group in definition.groups or ()]
    missing = []
    for key, account in asked:
        try:
            if account:
                _ = _entry(definition) if key == "user" else _gid(account, key)
        except LaunchError as error:
            if error.key == key:  # a user without an entry has his group looked up, too
                missing.append(error)
    return missing


def _groups(definition: Definition, gid: int) -> set[int] | None:
    """The groups asked for, the main one among them; None for those of the user database."""
    if definition.groups is None:
        return None
    return {gid, *(_gid(group, "groups") for group in definition.groups)}


def _not_permitted(definition: Definition, *, is_own: bool) -> LaunchError:
    if is_own:
        key, value = "groups", ", ".join(definition.groups or ("none",))
    elif definition.user:
        key, value = "user", definition.user
    else:
        key, value = "group", definition.group or ""
    remedy = f"run the registry as root or leave {key} out"
    asked = f"in the groups '{value}'" if is_own else f"as {key} '{value}'"
    message = f"only root may start a service {asked}; {remedy}"
    return LaunchError(Reason.NOT_PERMITTED, message, key)


def _capabilities(definition: Definition) -> tuple[str, ...] | None:
    if definition.capabilities is not None and os.geteuid() != 0:
        message = "only root may give or take capabilities; run the registry as root or leave capabilities out"
        raise LaunchError(Reason.NOT_PERMITTED, message, "capabilities")
    return definition.capabilities


def _own_entry() -> pwd.struct_passwd:
    """The registry's own, with the group that it really has."""
    uid, gid = os.geteuid(), os.getegid()
    try:
        name, password, _, _, *rest = _entry_once_found(uid)
    except KeyError:
        return _nameless(uid, gid)
    return pwd.struct_passwd((name, password, uid, gid, *rest))


@functools.cache
def _entry_once_found(uid: int) -> pwd.struct_passwd:
    """An entry as it was when first found: to look it up again would take a reading of the file each start."""
    return pwd.getpwuid(uid)


def look_up_again() -> None:
    """Who the registry is may have other words in the user database than before."""
    _entry_once_found.cache_clear()


def _entry(definition: Definition) -> pwd.struct_passwd:
    """The entry of `user`; a number may do without one where `group` is given, too."""
    user = definition.user or ""
    try:
        return pwd.getpwuid(_number(user)) if user.isdecimal() else pwd.getpwnam(user)
    except KeyError:
        if not _is_id(user) or not definition.group:
            message = f"this machine has no user '{user}'; create it or name another"
            raise LaunchError(Reason.USER_MISSING, message, "user") from None
    return _nameless(int(user), _gid(definition.group))


def _nameless(uid: int, gid: int) -> pwd.struct_passwd:
    return pwd.struct_passwd((str(uid), "x", uid, gid, "", "/", "/bin/sh"))


def _gid(group: str, key: str = "group") -> int:
    try:
        return _number(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        message = f"this machine has no group '{group}'; create it or name another"
        raise LaunchError(Reason.GROUP_MISSING, message, key) from None


def _number(text: str) -> int:
    """An id; KeyError where it is none that anybody could have."""
    if not _is_id(text):
        raise KeyError(text)
    return int(text)


def _is_id(text: str) -> bool:
    return text.isdecimal() and len(text) <= _ID_DIGITS and int(text) <= _ID_MAX
