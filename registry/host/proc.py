"""What /proc tells about processes. A reader answers None or nothing for a process that is gone.

What could not be read for another reason (no descriptor free, no memory) raises OSError: it must not
be taken for "gone".
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import msgspec

MARK = "CIRCLEOSD_RUN"
_PF_KTHREAD = 0x00200000  # linux/sched.h
_READ_BYTES = 1 << 14


class Stat(msgspec.Struct, frozen=True):
    """Fields of /proc/PID/stat, proc(5): `start_time` in clock ticks since boot, `wait_status` once it ended."""

    pid: int
    comm: str
    state: str
    parent: int
    group: int
    session: int
    flags: int
    threads: int
    start_time: int
    wait_status: int

    @property
    def is_alive(self) -> bool:
        """False for a zombie, and for what is just being taken away."""
        # a main thread that has ended shows as a zombie, too, while other threads go on
        return self.state not in ("Z", "X", "x") or self.threads > 1

    @property
    def is_kernels(self) -> bool:
        """Whether it is a thread of the kernel."""
        return bool(self.flags & _PF_KTHREAD)


def stat(pid: int) -> Stat | None:
    """The state of a process, or None when there is none (or no /proc). Raises OSError."""
    text = _read(f"/proc/{pid}/stat", is_short=True)
    if text is None:
        return None
    # comm may hold spaces and parentheses: it ends at the last one
    opened, closed = text.index(b"("), text.rindex(b")")
    fields = text[closed + 2 :].split()
    return Stat(
        pid=pid,
        comm=text[opened + 1 : closed].decode(errors="replace"),
        state=fields[0].decode(),
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        flags=int(fields[6]),
        threads=int(fields[17]),
        start_time=int(fields[19]),
        wait_status=int(fields[49]) if len(fields) > 49 else 0,
    )


def mark(pid: int) -> str | None:
    """The value of CIRCLEOSD_RUN in a process's environment at its exec, "" where that holds none.

    None where there is no environment to see: the process is ending, executing a program just now, or
    not ours to look at. Raises OSError.
    """
    environment = _read(f"/proc/{pid}/environ")
    if not environment:
        return None
    prefix = f"{MARK}=".encode()
    for variable in environment.split(b"\0"):
        if variable.startswith(prefix):
            return variable[len(prefix) :].decode(errors="replace")
    return ""


def own_children() -> set[int]:
    """The pids of our first thread's children, to which orphans are left. Raises OSError."""
    pid = os.getpid()
    return set(map(int, (_read(f"/proc/{pid}/task/{pid}/children") or b"").split()))


def children(pid: int) -> Iterator[int]:
    """The pids of a process's children (needs CONFIG_PROC_CHILDREN, which distributions set). Raises OSError."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return
    seen: set[int] = set()
    # the first thread's last: one that ends meanwhile leaves its children to that one, which may list them again
    for thread in sorted(threads, key=lambda each: int(each) == pid):
        listed = {*map(int, (_read(f"/proc/{pid}/task/{thread}/children") or b"").split())}
        yield from sorted(listed - seen)
        seen |= listed


def all_pids() -> list[int]:
    """The pids of every process that we can see. Raises OSError."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def memory(pid: int) -> tuple[int, int] | None:
    """Bytes of memory that a process holds: alone, and in files and shared memory; None for one that is gone.

    Of /proc/PID/statm: smaps_rollup knows more, but looks at every page (37 ms for 1 GB). Raises OSError.
    """
    fields = (_read(f"/proc/{pid}/statm") or b"").split()
    if not fields:
        return None
    resident, shared = (int(field) * resource.getpagesize() for field in fields[1:3])
    return resident - shared, shared


_COMM_MAX = 15
"""Bytes of a name that the kernel keeps: TASK_COMM_LEN of linux/sched.h, less its NUL."""

_PROGRAM_WORDS = 4
"""So far into a command line a script may stand, after its interpreter."""


def program(pid: int) -> str | None:
    """The name of a process's program, or None. The kernel cuts it; its command line has the whole."""
    try:
        short = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    if len(os.fsencode(short)) < _COMM_MAX:
        return short
    whole = (os.path.basename(word) for word in words[:_PROGRAM_WORDS])
    return next((name for name in whole if name.startswith(short)), short)


def boot_id() -> str:
    """What tells this boot of the machine from every other."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def pid_namespace() -> str:
    """What tells our pids from those of another container."""
    try:
        number = os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
    # the number of one that is gone is given to the next: its first process tells the two apart
    first = stat(1)
    return f"{number} {first.start_time}" if first else number


def _read(path: str, *, is_short: bool = False) -> bytes | None:
    """A file of /proc; None where its process is gone or not ours to look at. One that `is_short` is read at once."""
    try:
        descriptor = os.open(path, os.O_RDONLY)  # half the price of a file object
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    try:
        if is_short:
            return os.read(descriptor, _READ_BYTES)
        found = b""
        while more := os.read(descriptor, _READ_BYTES):
            found += more
        return found
    except (ProcessLookupError, PermissionError):
        return None
    finally:
        os.close(descriptor)
