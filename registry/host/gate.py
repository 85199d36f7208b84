"""The gate: a shell that waits for one line before it becomes the service's program.

Until the line comes nothing of the service has executed. If whoever holds the other end dies first, the
pipe closes and the shell exits 111. The shell is spawned by a name of its own, GATE, so that the comm of
a process that ended still tells whether it ever became something else.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import resource
import signal
from pathlib import Path

import msgspec

from registry.core.lifecycle import Reason
from registry.host.launch import Launch, LaunchError

GATE = "svc-gate"
NEVER_RAN = 111
_ENV = "/usr/bin/env"
# all but the two that nobody can change: what we ignore, or were started to ignore, is no service's concern
_SIGNALS = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}

# Arguments: umask, cwd, limit of descriptors (or nothing), argv. Builtins only; what the shell itself set
# is taken out of the environment.
_SCRIPT = """\
IFS= read -r CIRCLEOSD_GATE || exit 111
umask "$1" && cd -P -- "$2" || exit 200
test -z "$3" || ulimit -S -n "$3"
shift 3
unset CIRCLEOSD_GATE PWD OLDPWD SHLVL
exec "$@" </dev/null
"""

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# what dash or bash set themselves: "Shell Variables" of bash(1), and the same of dash(1)
_SHELLS_OWN = re.compile(
    r"_|BASH.*|CIRCLEOSD_GATE|COMP_WORDBREAKS|EPOCH(REALTIME|SECONDS)|HISTCMD|IFS|LINENO|OLDPWD"
    r"|OPT(ERR|IND)|PPID|PS[124]|PWD|S?RANDOM|SHELLOPTS|SHLVL"
)

# sd-exec numbers, systemd.exec(5), and the shell's own 126 and 127
_FAILURES: dict[int, tuple[Reason, str]] = {
    126: (Reason.PROGRAM_NOT_EXECUTABLE, "the program could not be executed"),
    127: (Reason.EXEC_FAILED, "the program or its interpreter was not found"),
    200: (Reason.CWD_MISSING, "its folder could not be entered"),
}
_PASSING = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC)


class Gated(msgspec.Struct, frozen=True):
    """A process at the gate: write a line to `gate` to let it through, close it to undo the spawn.

    `steps` are the names it goes by until it becomes its program.
    """

    pid: int
    gate: int
    steps: frozenset[str]


def prepare(folder: Path) -> str:
    """Make the gate's own name for the shell in `folder`; its path."""
    path = folder / GATE
    if not path.is_symlink() or os.readlink(path) != "/bin/sh":
        path.unlink(missing_ok=True)
        path.symlink_to("/bin/sh")
    return str(path)


def spawn(shell: str, launch: Launch, setpriv: str | None, output: str) -> Gated:
    """Spawn `launch` behind a gate, its output opened read-write at the path `output`.

    Raises LaunchError: with NO_RESOURCES where trying again later may help.
    """
    argv, environment = _command(launch, setpriv, counts_levels=_is_bash(shell))
    unlimited = launch.files_max in (None, resource.RLIM_INFINITY)
    files_max = "" if unlimited else str(launch.files_max)
    try:
        read_end, write_end = os.pipe()
    except OSError as error:
        raise refusal(error) from None
    try:
        pid = os.posix_spawn(
            shell,
            ["sh", "-c", _SCRIPT, GATE, f"{launch.umask:o}", launch.cwd, files_max, *argv],
            environment,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, read_end, 0),
                (os.POSIX_SPAWN_OPEN, 1, output, os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=_SIGNALS,
        )
    except OSError as error:
        os.close(write_end)
        raise refusal(error) from None
    finally:
        os.close(read_end)
    before = argv[: len(argv) - len(launch.argv)]
    programs = [os.path.basename(word) for word in before if word in (setpriv, _ENV)]
    return Gated(pid, write_end, frozenset((GATE, *programs)))


def refusal(error: OSError) -> LaunchError:
    """What a failed system call on the way to a process means for the service."""
    reason = Reason.NO_RESOURCES if error.errno in _PASSING else Reason.EXEC_FAILED
    return LaunchError(reason, f"no process could be made: {error.strerror}")


def shortage() -> LaunchError | None:
    """What is in the way where we have no descriptor left: then nobody's files or entries can be found."""
    try:
        os.close(os.dup(0))
    except OSError as error:
        return refusal(error)
    return None


def open_gate(gate: int) -> bool:
    """Let the process through; False where it is gone already. Closes `gate`."""
    try:
        os.write(gate, b"\n")
    except BrokenPipeError:
        return False
    finally:
        os.close(gate)
    return True


def launch_failure(
    steps: frozenset[str], comm: str | None, exit_code: int | None
) -> tuple[Reason, str] | None:
    """Why a process never became its program, or None where it did. `comm` is None where nobody can tell."""
    if comm is not None and comm not in steps:
        return None
    return _FAILURES.get(exit_code or 0)


@functools.cache
def _is_bash(shell: str) -> bool:
    return os.path.basename(os.path.realpath(shell)) == "bash"


def _command(
    launch: Launch, setpriv: str | None, *, counts_levels: bool
) -> tuple[list[str], dict[str, str]]:
    """What the shell is to execute, and its environment. A shell that `counts_levels` sets SHLVL at its exec."""
    argv = list(launch.argv)
    # a shell drops variables whose names are no identifiers, and changes its own: env(1) puts them back
    odd = {name: value for name, value in launch.env.items() if not _is_plain(name)}
    plain = {name: value for name, value in launch.env.items() if name not in odd}
    if odd or counts_levels:
        argv = [*_assign(odd, argv[0]), *argv]
    if launch.uid is not None or launch.gid is not None:
        argv = [*_switch(launch, setpriv), *argv]
    return argv, plain


def _is_plain(name: str) -> bool:
    return bool(_IDENTIFIER.fullmatch(name)) and not _SHELLS_OWN.fullmatch(name)


def _assign(variables: dict[str, str], program: str) -> list[str]:
    if "=" in program:  # env(1) would take it for one more variable
        raise LaunchError(
            Reason.EXEC_FAILED,
            f"{program} has a '=' in its path, which env cannot start; rename it",
        )
    assignments = [f"{name}={value}" for name, value in variables.items()]
    return [_ENV, "-u", "SHLVL", "--", *assignments]


def _switch(launch: Launch, setpriv: str | None) -> list[str]:
    if setpriv is None:
        raise LaunchError(
            Reason.NOT_PERMITTED, "user and group need setpriv (util-linux), which is not installed"
        )
    words = [setpriv]
    if launch.uid is not None:
        words += ["--reuid", str(launch.uid)]
    if launch.gid is not None:
        words += ["--regid", str(launch.gid)]
    groups = ",".join(map(str, launch.groups))
    return [*words, *(["--groups", groups] if groups else ["--clear-groups"]), "--"]
