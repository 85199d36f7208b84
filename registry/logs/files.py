"""One service's log file on the writing side: bytes go in by splice, full files are renamed away.

The file stays byte for byte what the service wrote. Bytes go from the FIFO into the file inside the
kernel, so that a writer killed at any instant has neither lost nor doubled one; the fallback (read,
then write) cannot promise that. The file is opened without O_APPEND, which splice refuses, and is
written at its end under an exclusive flock: one writer per file. Rotation renames (NAME.log,
NAME.log.1, ... the highest number is the oldest) and never copies; compressing the older ones is
somebody else's (compress.py). Beside each file goes its index. Where nothing can be written, output
is read, dropped and counted: a service never blocks on a full disk.
Standard library only: the keeper, which imports this, must stay small.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
import termios
import time
from collections.abc import Callable
from contextlib import suppress

from registry.logs import compress
from registry.logs.index import Index, index_path, owner
from registry.logs.names import GZ, rotated, rotated_all

TURN_MAX = 1 << 20
"""Bytes moved per call: one flooding service must not starve the others."""

CHUNK = 1 << 16
"""Bytes per read, where bytes have to pass through this process."""

LINE_MAX = 1 << 14
"""Bytes past `size_max` that are moved singly to find a line's end to rotate at."""

LOCK_WAIT_S = 10.0
"""How long output waits in its FIFO for a dying writer's lock, before it is dropped."""

OPEN_RETRY_S = 1.0
"""Least time between two attempts to open a file that could not be opened."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_SPLICE = (errno.EINVAL, errno.ENOSYS, errno.EPERM)


class LockedError(Exception):
    """Another writer holds the file: leave the output in its FIFO and come again shortly."""


def _waiting(fd: int) -> int:
    """How many bytes wait in the FIFO: a full file is renamed when there is something to begin with."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


class LogFile:
    """The file `path`, open. `dropped` counts the bytes lost, `trouble` says why ("": all is well).

    `has_older` says that it was rotated, or opened: there may be something to compress.
    """

    def __init__(self, path: str, size_max: int, files_max: int, *, splice: bool = True) -> None:
        self.path = path
        self.size_max = size_max
        self.files_max = files_max
        self.dropped = 0
        self.trouble = ""
        self.has_older = False
        self._index = Index(index_path(path))
        self._is_settled = False
        self._splice = splice and hasattr(os, "splice")
        self._fd = -1
        self._locked_since: float | None = None
        self._refused: OSError | None = None
        self._retry_at = 0.0

    def move(self, fd: int, run: int = 0) -> int:
        """Take at most TURN_MAX bytes from the FIFO `fd` of `run`; how many were taken, 0 at its end.

        Raises BlockingIOError when nothing is there, LockedError while another writer has the file.
        """
        taken = 0
        while taken < TURN_MAX:
            try:
                count = self._move_some(fd, run, TURN_MAX - taken)
            except (BlockingIOError, LockedError):
                if taken:
                    break
                raise
            if count == 0:
                break
            taken += count
        return taken

    def close(self) -> None:
        """Close the file, which gives up its lock."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._index.close()

    def _move_some(self, fd: int, run: int, most: int) -> int:
        while True:
            try:
                size = self._prepare(fd)
                if _waiting(fd):
                    self._index.note(size, run, time.time_ns())
                count = self._transfer(fd, min(most, self._room(size)))
            except BlockingIOError:
                raise
            except OSError as error:
                if not self._make_room(error):
                    return self._drop(fd, most, error)
            else:
                return count

    def _prepare(self, fd: int) -> int:
        """Make sure of an open file with room in it for what waits in `fd`; its size."""
        if self._fd >= 0 and os.fstat(self._fd).st_nlink == 0:
            self.close()
        if self._fd < 0:
            self._open()
        # Sought anew each time: a file that somebody truncated goes on at its end, without a hole.
        size = os.lseek(self._fd, 0, os.SEEK_END)
        if not self._is_full(size) or not _waiting(fd):
            return size
        self._rotate()
        self._open()
        return os.lseek(self._fd, 0, os.SEEK_END)

    def _room(self, size: int) -> int:
        """How much may be moved before the next look at whether to rotate."""
        if size < self.size_max:
            return self.size_max - size
        if size < self.size_max + LINE_MAX:
            return 1
        return max(1, 2 * self.size_max - size)

    def _is_full(self, size: int) -> bool:
        if size == 0 or (size < self.size_max and not self._index.is_crowded(self.size_max)):
            return False
        return size >= 2 * self.size_max or os.pread(self._fd, 1, size - 1) == b"\n"

    def _transfer(self, fd: int, count: int) -> int:
        if self._splice:
            try:
                moved = os.splice(fd, self._fd, count, flags=os.SPLICE_F_NONBLOCK)
            except OSError as error:
                if error.errno not in _NO_SPLICE:
                    raise
                self._splice = False
            else:
                self._well(moved)
                return moved
        data = os.read(fd, min(count, CHUNK))
        self._write(data)
        return len(data)

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except OSError as error:
                if not self._make_room(error):
                    self._count(len(rest), error)
                    return
        self._well(len(data))

    def _well(self, moved: int) -> None:
        if moved:
            self.trouble = ""

    def _drop(self, fd: int, most: int, error: OSError) -> int:
        lost = len(os.read(fd, min(most, CHUNK)))
        if lost:
            self._count(lost, error)
        return lost

    def _count(self, lost: int, error: OSError) -> None:
        self.dropped += lost
        self.trouble = f"cannot write {self.path}: {error.strerror}"

    def _make_room(self, error: OSError) -> bool:
        """On a full disk remove the oldest rotated file; False when there was nothing to gain."""
        if error.errno not in _NO_ROOM:
            return False
        try:
            older = rotated(self.path)
            if not older:
                return False
            self._remove(*older[-1])
        except OSError:
            return False
        return True

    def _open(self) -> None:
        if self._refused is not None and time.monotonic() < self._retry_at:
            raise self._refused
        try:
            self._open_locked()
        except OSError as error:
            self._refused, self._retry_at = error, time.monotonic() + OPEN_RETRY_S
            raise
        self._refused = self._locked_since = None

    def _open_locked(self) -> None:
        # O_RDWR: the last byte is read to see a line's end. O_NOFOLLOW: the writer may be root, and
        # the folder a service's.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(self.path, flags, 0o640)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(self.path), mode=0o750, exist_ok=True)
            fd = os.open(self.path, flags, 0o640)
        try:
            self._lock(fd)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        self._settle()
        found = os.fstat(fd)
        self._index.open(found.st_ino, found.st_size)

    def _settle(self) -> None:
        """Once, under the lock: put in order what a writer that was killed has left."""
        if self._is_settled:
            return
        self._is_settled = self.has_older = True
        try:
            compress.clear(self.path)
            self._place_indexes()
        except OSError:  # of no consequence for what is written
            return

    def _place_indexes(self) -> None:
        """Bring each index to its file, where a rotation was killed between the two renames."""
        for number, name in sorted(rotated(self.path), reverse=True):
            left = index_path(self.path, number - 1)
            if owner(left) == _inode(name):
                os.rename(left, index_path(self.path, number))

    def _lock(self, fd: int) -> None:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._wait_for_lock()
        # Its last holder may have renamed it away since the open: then it is not ours to write.
        try:
            moved_away = not os.path.samestat(found, os.stat(self.path))
        except FileNotFoundError:
            moved_away = True
        if moved_away:
            self._wait_for_lock()

    def _wait_for_lock(self) -> None:
        now = time.monotonic()
        if self._locked_since is None:
            self._locked_since = now
        if now - self._locked_since < LOCK_WAIT_S:
            raise LockedError(self.path)
        raise OSError(errno.EBUSY, "another process holds its lock")

    def _rotate(self) -> None:
        """Rename every file one up, into the first gap (a kill in here leaves one) or over the oldest."""
        last = self.files_max - 1
        kept = dict(rotated(self.path))
        for number, name in rotated_all(self.path):
            if number > last or kept[number] != name:
                self._remove(number, name)
        if last > 0:
            gap = next((n for n in range(1, last) if n not in kept), last)
            if gap in kept:
                self._remove(gap, kept.pop(gap))
            for number in range(gap - 1, 0, -1):
                self._shift(number, kept[number])
            self._shift(0, self.path)
        else:
            os.unlink(self.path)
        self.close()
        self.has_older = last > 0

    def _shift(self, number: int, name: str) -> None:
        tail = GZ if number and name.endswith(GZ) else ""
        os.rename(name, f"{self.path}.{number + 1}{tail}")
        _tolerate(os.rename, index_path(self.path, number), index_path(self.path, number + 1))

    def _remove(self, number: int, name: str) -> None:
        os.unlink(name)
        if not any(number == other for other, _ in rotated_all(self.path)):
            _tolerate(os.unlink, index_path(self.path, number))


def _tolerate(act: Callable[..., None], *paths: str) -> None:
    """Do to an index what was done to its file; where there is none, or it cannot be done, do without."""
    with suppress(OSError):
        act(*paths)


def _inode(name: str) -> int | None:
    """The inode that a file's index knows it by: its own, or that of the file it was compressed from."""
    if not name.endswith(GZ):
        return os.lstat(name).st_ino
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return compress.inode_of(fd)
    finally:
        os.close(fd)
