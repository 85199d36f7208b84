"""The gate: a program that waits for one line before it becomes the service's program.

Until the line comes nothing of the service has executed. If whoever holds the other end dies first, the
pipe closes and it exits 111. It is spawned by a name of its own, GATE, so that the comm of a process that
ended still tells whether it ever became something else. It is the shell, or for what is asked for mostly, and
where it can be executed, the native one (`native_gate.py`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import re
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from registry.core.lifecycle import Reason
from registry.host import native_gate
from registry.host.launch import Launch, LaunchError
from registry.host.posix_spawn import posix_spawn

GATE = "svc-gate"
NEVER_RAN = native_gate.NEVER_RAN
_ONLY_GATE = frozenset((GATE,))
_ENV = "/usr/bin/env"
_ENV_STEP = os.path.basename(_ENV)
_SETPRIV = "setpriv"

# Arguments: umask, cwd, limit of descriptors (or nothing), names of variables for the pid, where the input is
# (a descriptor to be moved, or nothing), argv. Builtins only; what the shell itself set is taken out of the
# environment.
_SCRIPT = """\
IFS= read -r CIRCLEOSD_GATE || exit 111
umask "$1" && cd -P -- "$2" || exit 200
test -z "$3" || ulimit -S -n "$3"
for CIRCLEOSD_GATE in $4; do export "$CIRCLEOSD_GATE=$$"; done
if test -z "$5"; then exec </dev/null; else exec <&3 3<&-; fi
shift 5
unset CIRCLEOSD_GATE PWD OLDPWD SHLVL
exec "$@"
"""
_FIRST = 3  # systemd's SD_LISTEN_FDS_START: where the descriptors for a program begin

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
    208: (Reason.EXEC_FAILED, "/dev/null, its standard input, could not be opened"),
}
_NO_PRIVILEGES = (
    Reason.NOT_PERMITTED,
    "setpriv could not set its user, groups or capabilities; the last line of its output says which",
)
_NOT_FOUND_OR_SWITCHED = (
    Reason.EXEC_FAILED,
    "the program or its interpreter was not found, or setpriv could not set its user or groups;"
    " the last line of its output says which",
)
_PASSING = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC)


class Gated(msgspec.Struct, frozen=True):
    """A process at the gate: write a line to `gate` to let it through, close it to undo the spawn.

    `steps` are the names it goes by until it becomes its program.
    """

    pid: int
    gate: int
    steps: frozenset[str]


class Gates(msgspec.Struct):
    """The paths of both; `native` is None where it cannot be had. `folder` is where `prepare` made them."""

    shell: str
    native: str | None = None
    folder: Path | None = None

    def restored(self) -> bool:
        """Whether somebody had removed them, and they are there again."""
        paths = [path for path in (self.shell, self.native) if path is not None]
        if self.folder is None or all(map(os.path.lexists, paths)):
            return False
        with contextlib.suppress(OSError):
            again = prepare(self.folder, native=self.native is not None)
            self.shell, self.native = again.shell, again.native
            return True
        return False


def prepare(folder: Path, *, native: bool = True) -> Gates:
    """Make the gate's own name for the shell in `folder`, and have the native one there, too, where it may be used."""
    path = folder / GATE
    if not path.is_symlink() or os.readlink(path) != "/bin/sh":
        path.unlink(missing_ok=True)
        path.symlink_to("/bin/sh")
    return Gates(str(path), native_gate.prepare(folder, GATE) if native else None, folder)


class Approach:
    """One spawn on its way to its gate, an end of which is made already.

    `spawn` is for the thread that spawns, with copies of `fds`, and returns the pid; `gated` is for afterwards.
    """

    def __init__(
        self, gates: Gates, launch: Launch, setpriv: str | None, output: str, stdin: int | None
    ) -> None:
        self._gates, self._launch, self._output = gates, launch, output
        self._program, self._argv, self._environment, self._steps = _at_gate(
            gates, launch, setpriv, has_input=stdin is not None
        )
        read_end, self.write_end = os.pipe()
        self.fds = (read_end, *(launch.descriptors if stdin is None else (stdin,)))

    def spawn(self, read_end: int, *others: int) -> int:
        """Where the gates are gone, they are made anew. Raises OSError."""
        try:
            return self._spawn(read_end, others)
        except OSError:
            if not self._gates.restored():
                raise
        return self._spawn(read_end, others)

    def _spawn(self, read_end: int, others: tuple[int, ...]) -> int:
        ours: list[int] = []
        try:
            placed = _above(others, ours)
            places = ((each, _FIRST + at) for at, each in enumerate(placed))
            return posix_spawn(
                self._program, self._argv, self._environment, read_end, self._output, places
            )
        finally:
            for descriptor in ours:
                os.close(descriptor)

    def gated(self, pid: int) -> Gated:
        """The process that waits. Raises OSError."""
        if self._program == self._gates.native:  # a shell does that itself
            _limit_files(pid, self._launch)
        return Gated(pid, self.write_end, self._steps)


@contextlib.contextmanager
def approach(
    gates: Gates, launch: Launch, setpriv: str | None, output: str, stdin: int | None = None
) -> Iterator[Approach]:
    """Within the block `launch` is to be spawned behind a gate, its output opened read-write at the path `output`.

    A `stdin` is the program's instead of /dev/null; with it there are no `descriptors`. Raises LaunchError:
    with NO_RESOURCES where trying again later may help.
    """
    try:
        made = Approach(gates, launch, setpriv, output, stdin)
        try:
            yield made
        except BaseException:
            os.close(made.write_end)
            raise
        finally:
            os.close(made.fds[0])
    except OSError as error:
        raise refusal(error) from None


def _above(descriptors: tuple[int, ...], ours: list[int]) -> list[int]:
    """Copies above every place to be filled: none is overwritten before it is placed. Noted in `ours`."""
    placed = []
    for descriptor in descriptors:
        lowest = _FIRST + len(descriptors)
        placed.append(fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, lowest))
        ours.append(placed[-1])
    return placed


def _at_gate(
    gates: Gates, launch: Launch, setpriv: str | None, *, has_input: bool
) -> tuple[str, list[str], dict[str, str], frozenset[str]]:
    """The program that waits, its arguments and environment, and the names that the process goes by."""
    if gates.native is not None and not has_input and not launch.own_pid:
        argv = [*_before(launch, setpriv, {}), *launch.argv]
        words = [GATE, *native_gate.words(launch.umask, launch.cwd, argv)]
        return gates.native, words, launch.env, _steps(launch, argv, setpriv)
    odd = {name: value for name, value in launch.env.items() if not _is_plain(name)}
    plain = {name: value for name, value in launch.env.items() if name not in odd}
    before = _before(launch, setpriv, odd, counts_levels=_is_bash(gates.shell))
    argv = [*before, *launch.argv]
    words = ["sh", "-c", _SCRIPT, GATE, *_words(launch, has_input=has_input), *argv]
    return gates.shell, words, plain, _steps(launch, argv, setpriv)


def _words(launch: Launch, *, has_input: bool) -> list[str]:
    """What the script is told before the program's own words."""
    names = " ".join(launch.own_pid)
    files_max = _files_max(launch)
    limit = "" if files_max is None else str(files_max)
    return [f"{launch.umask:o}", launch.cwd, limit, names, "input" if has_input else ""]


def _limit_files(pid: int, launch: Launch) -> None:
    if (files_max := _files_max(launch)) is not None:
        _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(ProcessLookupError):  # its end will be seen
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (files_max, hard))


def _files_max(launch: Launch) -> int | None:
    """The soft limit of descriptors, where it is another than ours."""
    unlimited = launch.files_max in (None, resource.RLIM_INFINITY) or "nofile" in launch.rlimits
    return None if unlimited else launch.files_max


def _steps(launch: Launch, argv: list[str], setpriv: str | None) -> frozenset[str]:
    before = argv[: len(argv) - len(launch.argv)]
    programs = {os.path.basename(word) for word in before if word in (setpriv, _ENV)}
    programs -= {os.path.basename(launch.argv[0])}  # it has ended itself, for all we can tell
    return frozenset((GATE, *programs)) if programs else _ONLY_GATE


def constrain(pid: int, launch: Launch) -> None:
    """Set what can be set on a process that waits at its gate: resource limits, nice, OOM score.

    Raises LaunchError, for one that then must not be let through.
    """
    for name, value in launch.rlimits.items():
        _set(f"limits.{name}", value, functools.partial(_set_rlimit, pid, name, value))
    if (nice := launch.nice) is not None:
        _set("nice", nice, functools.partial(_set_nice, pid, nice))
    if (score := launch.oom_score_adj) is not None:
        path = Path(f"/proc/{pid}/oom_score_adj")
        _set("oom_score_adj", score, functools.partial(path.write_text, str(score)))


def _set(key: str, value: float | None, step: Callable[[], object]) -> None:
    try:
        step()
        return
    except ProcessLookupError:
        return  # its end will be seen
    except OSError as error:
        if error.errno in _PASSING:
            raise refusal(error) from None
        why = error.strerror or ""
        if error.errno in (errno.EPERM, errno.EACCES):
            right = "CAP_SYS_NICE" if key == "nice" else "CAP_SYS_RESOURCE"
            why = f"it takes {right} (mostly root's), or is more than the kernel allows"
    except (ValueError, OverflowError, AttributeError) as error:
        why = f"this machine does not know it ({error})"
    shown = "unlimited" if value is None else value
    message = f"{key} cannot be set to {shown}: {why}; change {key} or leave it out"
    raise LaunchError(Reason.NOT_PERMITTED, message, key)


def _set_rlimit(pid: int, name: str, value: int | None) -> None:
    limit = resource.RLIM_INFINITY if value is None else value
    resource.prlimit(pid, getattr(resource, f"RLIMIT_{name.upper()}"), (limit, limit))


def _set_nice(pid: int, nice: int) -> None:
    os.setpriority(os.PRIO_PROCESS, pid, nice)
    # each session is a group of its own for the scheduler, sched(7): there nice counts between those
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(nice))


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
    if comm == _SETPRIV and (exit_code == 1 or (exit_code == 127 and _ENV_STEP in steps)):
        return _NO_PRIVILEGES
    if comm == _SETPRIV and exit_code == 127:
        return _NOT_FOUND_OR_SWITCHED
    return _FAILURES.get(exit_code or 0)


def may_tell(steps: frozenset[str], info: os.waitid_result) -> bool:
    """Whether an end may be that of one who never became its program: then its comm is worth a look."""
    code = info.si_status if info.si_code == os.CLD_EXITED else 0
    return code in _FAILURES or (code == 1 and _SETPRIV in steps)


def _is_bash(shell: str) -> bool:
    return os.path.basename(os.path.realpath(shell)) == "bash"


def _before(
    launch: Launch, setpriv: str | None, odd: dict[str, str], *, counts_levels: bool = False
) -> list[str]:
    """The commands by which the gate becomes the program. A shell that `counts_levels` sets SHLVL at its exec.

    A shell drops variables whose names are no identifiers, and changes its own: env(1) puts these `odd` ones back.
    """
    before: list[str] = []
    # between setpriv and the program, env(1) keeps the failures of the two apart
    if odd or counts_levels or launch.capabilities is not None:
        before = _assign(odd, launch.argv[0])
    if asked := _asks_setpriv(launch):
        if setpriv is None:
            keys = " and ".join(asked)
            message = f"{keys} cannot be set without setpriv: install util-linux"
            raise LaunchError(Reason.NOT_PERMITTED, message, asked[0])
        before = [setpriv, *_switch(launch), "--", *before]
    return before


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


def _asks_setpriv(launch: Launch) -> list[str]:
    """The keys that take setpriv."""
    asked = {
        "user": launch.uid is not None,
        "group": launch.gid is not None,
        "no_new_privs": launch.no_new_privs,
        "capabilities": launch.capabilities is not None,
    }
    return [key for key, is_asked in asked.items() if is_asked]


def _switch(launch: Launch) -> list[str]:
    """The options of setpriv(1)."""
    words = []
    if launch.uid is not None:
        words += ["--reuid", str(launch.uid)]
    if launch.gid is not None:
        words += ["--regid", str(launch.gid)]
    if launch.uid is not None or launch.gid is not None:
        groups = ",".join(map(str, launch.groups))
        words += ["--groups", groups] if groups else ["--clear-groups"]
    if launch.no_new_privs:
        words.append("--no-new-privs")
    if launch.capabilities is not None:
        # bounding: nothing more by any program; inheritable and ambient: who is not root has them, too
        names = [name.lower().removeprefix("cap_") for name in launch.capabilities]
        given = ",".join(["-all", *(f"+{name}" for name in names)])
        words += ["--bounding-set", given, "--inh-caps", given, "--ambient-caps", given]
    return words
