"""What /proc and the folder show of the registry, its keeper and its services. The registry is not asked."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import msgspec

from registry.journal.errors import JournalError
from registry.journal.opening import open_for_reading
from registry.journal.read import last_seq

TICKS_A_S = os.sysconf("SC_CLK_TCK")


class Key(msgspec.Struct, frozen=True, order=True):
    """A process as nothing else is."""

    pid: int
    start_time: int


class Process(msgspec.Struct, frozen=True):
    """One process of ours at one moment. Memory in KiB; `switches` (voluntary) and CPU since it began."""

    key: Key
    descriptors: dict[str, int]
    pss_kib: int
    rss_kib: int
    threads: int
    switches: int
    cpu_s: float
    children: int
    zombies: int


class Sight(msgspec.Struct, frozen=True):
    """Everything at one moment, in seconds since the beginning; None where a process is not there."""

    at_s: float
    life: int
    phase: str
    daemon: Process | None
    keeper: Process | None
    journal_bytes: int
    wal_bytes: int
    events: int
    log_bytes: int
    run_names: int
    tmp_names: int
    service_processes: int


# --- which processes ------------------------------------------------------------------------------


def registries(configuration: Path) -> list[int]:
    """The pids of registries that were started with this configuration."""
    return _with_argument(os.fsencode(configuration))


def keepers(folder: Path) -> list[int]:
    """The pids of keepers of this folder, the youngest last."""
    found = _with_argument(os.fsencode(folder / "var" / "keeper.sock"))
    return sorted(found, key=lambda pid: (_stat(pid) or (0, []))[0])


def service_processes(control_socket: Path) -> list[Key]:
    """Every living process of a service's run, its commands included."""
    found = []
    for pid in _pids():
        variables = _read(pid, "environ").split(b"\0")
        if b"CIRCLEOSD_SOCKET=" + os.fsencode(control_socket) not in variables:
            continue
        stat = _stat(pid)
        if stat is not None and any(each.startswith(b"CIRCLEOSD_RUN=") for each in variables):
            found.append(Key(pid, stat[0]))
    return found


def of_folder(folder: Path) -> list[int]:
    """Every process that belongs to the folder: by an argument, or by the control socket in its environment."""
    variable = b"CIRCLEOSD_SOCKET=" + os.fsencode(folder / "s")
    begins = os.fsencode(folder)
    return [
        pid
        for pid in _pids()
        if pid != os.getpid()
        and (
            variable in _read(pid, "environ").split(b"\0")
            or any(each.startswith(begins) for each in _read(pid, "cmdline").split(b"\0"))
        )
    ]


def kill(key: Key) -> None:
    """End that very process as a crash would, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(key.pid)
        try:
            if (_stat(key.pid) or (0, []))[0] == key.start_time:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)


def _with_argument(wanted: bytes) -> list[int]:
    return [pid for pid in _pids() if wanted in _read(pid, "cmdline").split(b"\0")]


# --- one process ----------------------------------------------------------------------------------


def process(pid: int | None) -> Process | None:
    """What a process of ours holds now; None where it is gone, or was while we looked."""
    if pid is None or (stat := _stat(pid)) is None:
        return None
    start_time, fields = stat
    try:
        memory = _fields(_read(pid, "smaps_rollup"))
        status = _fields(_read(pid, "status"))
        found = Process(
            key=Key(pid, start_time),
            descriptors=_descriptors(pid),
            pss_kib=memory["Pss"],
            rss_kib=memory["Rss"],
            threads=status["Threads"],
            switches=_switches(pid),
            cpu_s=(int(fields[11]) + int(fields[12])) / TICKS_A_S,
            children=0,
            zombies=0,
        )
    except (KeyError, FileNotFoundError, ProcessLookupError):
        return None
    children = [_read(child, "stat") for child in _children(pid)]
    zombies = sum(b") Z " in text for text in children)
    return msgspec.structs.replace(found, children=len(children), zombies=zombies)


def _descriptors(pid: int) -> dict[str, int]:
    """How many of each kind: `socket`, `pipe`, `[pidfd]`, `file`, ..."""
    kinds: Counter[str] = Counter()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(f"/proc/{pid}/fd/{name}")
            kind, _, rest = target.partition(":")
            kinds["file" if target.startswith("/") else rest if kind == "anon_inode" else kind] += 1
    return dict(kinds)


def _switches(pid: int) -> int:
    """How often its threads have gone to sleep by themselves: each is a wakeup."""
    return sum(
        _fields(_read(pid, f"task/{task}/status")).get("voluntary_ctxt_switches", 0)
        for task in os.listdir(f"/proc/{pid}/task")
    )


def _children(pid: int) -> list[int]:
    text = b" ".join(
        _read(pid, f"task/{task}/children") for task in os.listdir(f"/proc/{pid}/task")
    )
    return [int(each) for each in text.split()]


def _fields(text: bytes) -> dict[str, int]:
    """The lines "name: number ..." of a file of /proc."""
    found = {}
    for line in text.decode(errors="replace").splitlines():
        name, _, value = line.partition(":")
        if (words := value.split()) and words[0].isdigit():
            found[name] = int(words[0])
    return found


def _stat(pid: int) -> tuple[int, list[str]] | None:
    """The start time and the fields after the name (/proc/PID/stat); None where it does not live."""
    fields = _read(pid, "stat").decode(errors="replace").rpartition(")")[2].split()
    return None if not fields or fields[0] in "ZX" else (int(fields[19]), fields)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


# --- the folder -----------------------------------------------------------------------------------


def journal_of(path: Path) -> tuple[int, int]:
    """Bytes of the journal's pages, those not yet moved out of its -wal included, and the number of its last event."""
    try:
        with closing(open_for_reading(path)) as journal:
            ((pages,),) = journal.execute("PRAGMA page_count")
            ((page_bytes,),) = journal.execute("PRAGMA page_size")
            return pages * page_bytes, last_seq(journal)
    except (JournalError, sqlite3.Error):
        return 0, 0


def size_of(path: Path) -> int:
    """Bytes; 0 where there is nothing."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def folder_bytes(folder: Path) -> int:
    """Bytes of all files right in a folder."""
    return sum(size_of(path) for path in folder.iterdir()) if folder.is_dir() else 0


def names_below(folder: Path, but: str = "") -> int:
    """How many names there are in a folder and the ones below it, but the one called `but`."""
    return sum(
        len(files) + len(folders)
        for path, folders, files in os.walk(folder)
        if but not in Path(path).relative_to(folder).parts
    )
