"""What /proc tells about processes. Every reader answers None or nothing for a process that is gone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

MARK = "CIRCLEOSD_RUN"


class Stat(msgspec.Struct, frozen=True):
    """Fields of /proc/PID/stat, proc(5): `start_time` in clock ticks since boot, `wait_status` of a zombie."""

    pid: int
    comm: str
    state: str
    parent: int
    group: int
    session: int
    start_time: int
    wait_status: int

    @property
    def is_alive(self) -> bool:
        """False for a zombie, and for what is just being taken away."""
        return self.state not in ("Z", "X", "x")


def stat(pid: int) -> Stat | None:
    """The state of a process, or None when there is none (or no /proc)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
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
        start_time=int(fields[19]),
        wait_status=int(fields[49]) if len(fields) > 49 else 0,
    )


def mark(pid: int) -> str | None:
    """The value of CIRCLEOSD_RUN in a process's environment at its exec, or None."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    prefix = f"{MARK}=".encode()
    for variable in environment.split(b"\0"):
        if variable.startswith(prefix):
            return variable[len(prefix) :].decode(errors="replace")
    return None


def children(pid: int) -> Iterator[int]:
    """The pids of a process's children (needs CONFIG_PROC_CHILDREN, which distributions set)."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return
    for thread in threads:
        try:
            text = Path(f"/proc/{pid}/task/{thread}/children").read_bytes()
        except OSError:
            continue
        yield from map(int, text.split())


def all_pids() -> Iterator[int]:
    """The pids of every process that we can see."""
    try:
        names = os.listdir("/proc")
    except OSError:
        return iter(())
    return (int(name) for name in names if name.isdigit())


def program(pid: int) -> str | None:
    """The short name of a process's program, or None."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return None


def boot_id() -> str:
    """What tells this boot of the machine from every other."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def pid_namespace() -> str:
    """What tells our pids from those of another container."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
