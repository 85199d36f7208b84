"""The registry's own house: its lock, its key, its name, and what it sets for itself before it begins."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import resource
from pathlib import Path
from typing import NamedTuple

import msgspec

from registry.core.events import RegistryStarted
from registry.core.projection import Projection
from registry.host import proc

KEY_BYTES = 32
_WRITER = "registry.id"
INHERITED = "CIRCLEOSD_INHERITED"
_DESCRIPTORS_OF_ONE, _DESCRIPTORS_OF_OURS = 3, 256
"""How many descriptors a service takes at most times, and all else."""
_DESCRIPTOR = re.compile("[0-9]{1,9}")


_REMEDIES = {
    errno.EEXIST: "move away what is no folder",
    errno.ENOTDIR: "move away what is no folder",
    errno.EISDIR: "move that folder away",
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EROFS: "have it mounted writable",
}


class Held(Exception):
    """Another registry holds the journal; the text says which."""


class Unusable(OSError):
    """A file or folder of ours cannot be had; the text says which, why, and what to do."""

    def __init__(self, path: Path, what: str, error: OSError) -> None:
        remedy = _REMEDIES.get(error.errno or 0, f"let the registry's user write in {path.parent}")
        super().__init__(
            f"{path} cannot be {what}: {error.strerror}; {remedy},"
            " or name a [journal] path in another folder"
        )


class Inherited(NamedTuple):
    """What an earlier program of this process left open: the lock, and the listening control socket."""

    lock: int
    listener: int

    @classmethod
    def take(cls) -> Inherited | None:
        """What was left to this program, if anything; its variable is taken away."""
        words = os.environ.pop(INHERITED, "").split(":")
        if len(words) != len(cls._fields) or not all(_DESCRIPTOR.fullmatch(word) for word in words):
            return None
        inherited = cls(*map(int, words))
        try:
            for descriptor in inherited:
                os.set_inheritable(descriptor, False)
        except OSError:
            return None
        return inherited


def leave(lock: int, listener: int) -> None:
    """Let the next program of this process have both."""
    for descriptor in (lock, listener):
        os.set_inheritable(descriptor, True)
    os.environ[INHERITED] = f"{lock}:{listener}"


def lock(journal: Path) -> int:
    """Hold the lock of the journal's folder for as long as the descriptor is open. Raises Held, Unusable, OSError.

    The folder's, not the journal's: key, gate and keeper are the folder's, too.
    """
    folder, path = journal.parent, journal.with_name("registry.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unusable(folder, "made", error) from None
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Unusable(path, "written", error) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise Held(_holder(journal, holder)) from None
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        os.close(descriptor)
        raise Unusable(path, "written", error) from None
    return descriptor


def _holder(journal: Path, pid: str) -> str:
    program = proc.program(int(pid)) if pid.isdigit() else None
    who = f"process {pid}" + (f" ({program})" if program else "")
    return (
        f"the folder of the journal {journal} is held by {who}: another registry runs on it;"
        " ask it with circlectl, or name a [journal] path in another folder"
    )


def file_of(path: str) -> tuple[int, int] | None:
    """Device and inode of a file: what tells it from its copies. None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def digest_key(folder: Path) -> bytes:
    """The random key of this registry's digests, made once; only its owner can read it. Raises Unusable."""
    path = folder / "digest.key"
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        key = b""
    except OSError as error:
        raise Unusable(path, "read", error) from None
    if len(key) == KEY_BYTES:
        return key
    key = os.urandom(KEY_BYTES)
    _write(path, key)
    return key


class Writer(msgspec.Struct, frozen=True):
    """A registry that writes a journal: the journal's id, and its beginning as it is in the journal.

    Remembered beside the journal, too: when that is damaged, what runs is still found by its mark.
    """

    journal_id: str
    started: RegistryStarted

    @classmethod
    def of(cls, projection: Projection) -> Writer | None:
        """The last one that wrote a journal; None where the journal does not name itself and that one."""
        if projection.started is None or not projection.journal_id:
            return None
        return cls(projection.journal_id, projection.started)

    def wrote(self, journal: Path) -> bool:
        """Whether this very file was its journal, whatever is in it now."""
        return file_of(str(journal)) == (self.started.device, self.started.inode)


def remember(folder: Path, writer: Writer) -> None:
    """Keep in `folder` who writes the journal. Raises Unusable."""
    _write(folder / _WRITER, msgspec.json.encode(writer))


def remembered(folder: Path) -> Writer | None:
    """Who wrote the journal in `folder` last; None where that cannot be read."""
    try:
        return msgspec.json.decode((folder / _WRITER).read_bytes(), type=Writer)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _write(path: Path, data: bytes) -> None:
    """Replace a file that only its owner can read, whole or not at all. Raises Unusable."""
    fresh = path.with_suffix(".new")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        fresh.rename(path)
    except OSError as error:
        raise Unusable(path, "written", error) from None


def make_room(services: int) -> None:
    """Have the table of descriptors as long as this many services take. Before the first thread begins.

    Once there are threads, the kernel waits for every CPU each time that it makes a longer one (Linux:
    expand_fdtable, fs/file.c): in a boot of a thousand services for 0.08 s.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    length = min(_DESCRIPTORS_OF_ONE * services + _DESCRIPTORS_OF_OURS, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, length), hard))
    with contextlib.suppress(OSError):  # then it grows when it has to
        os.close(fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, length - 1))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def settle_in() -> int:
    """Keep files private, leak no descriptor into a service, and allow as many as the machine does.

    Returns how many descriptors a service may have: the soft limit that we were started with.
    """
    os.umask(0o077)
    _fill_standard_descriptors()
    for name in os.listdir("/dev/fd"):
        if int(name) > 2:
            _close_on_exec(int(name))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft


def move_out(files_max: int) -> None:
    """Give the next program of this process the limit that we were started with."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, hard))


def _fill_standard_descriptors() -> None:
    """Closed ones would be given to the next that is opened: a gate, say, that a line of our log then opens."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def _close_on_exec(descriptor: int) -> None:
    try:
        os.set_inheritable(descriptor, False)
    except OSError:
        return  # the one that listed the folder
