"""Compressing rotated files: NAME.log.1 stays plain, for those who still read it; older ones are .gz.

A process of its own reads the plain file and writes the compressed one, so that nobody waits for it;
what is rotated meanwhile does not matter to it, as it has descriptors and no names. When it has ended
well, the compressed file takes the plain one's place, whatever number that has by then: first the
rename, then the unlink. Killed anywhere, the plain file is there, or the compressed one is whole, or
both are; `clear` sees to the last. A compressed file bears in its header (RFC 1952, an extra field
"Ci") the inode of the plain one, by which a reader who was in the middle of that one finds his place.
Standard library only: the keeper, which imports this, must stay small.
"""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import struct
import sys

from registry.logs.names import GZ, is_leftover, rotated, rotated_all

BLOCK = 1 << 18
_HEADER = struct.Struct("<4sIBBHccHQ")
_HEAD = b"\x1f\x8b\x08\x04"  # gzip, deflate, an extra field follows
_EXTRA_SIZE, _INODE_SIZE = 12, 8
_UNIX = 3
_PIPE = 3
_PROGRAM = (
    "import sys; sys.path.append(sys.argv[1]); from registry.logs.compress import main; main()"
)
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def waiting(path: str) -> str | None:
    """The newest file of the log `path` that is to be compressed: in a flood the oldest go soon anyhow."""
    plain = (name for number, name in rotated(path) if number > 1 and not name.endswith(GZ))
    return next(plain, None)


def clear(path: str) -> None:
    """Remove what a killed compression has left of the log `path`."""
    folder, name = os.path.split(path)
    for other in os.listdir(folder or "."):
        if is_leftover(name, other):
            os.unlink(os.path.join(folder, other))
    kept = {name for _, name in rotated(path)}
    for _, name in rotated_all(path):
        if name not in kept:
            os.unlink(name)


class Compression:
    """The compression of one file of the log `path`, under way; `fileno()` is readable at its end."""

    def __init__(self, path: str, source: str) -> None:
        self.path = path
        self._target = f"{path}.{os.getpid()}.gz.tmp"
        # Held open until the end, so that no later file gets its inode.
        self._source = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        self._end = -1
        try:
            if not stat.S_ISREG(os.fstat(self._source).st_mode):
                raise OSError(f"{source} is not a regular file")
            self._pid = self._start()
        except BaseException:
            self._close()
            raise

    def fileno(self) -> int:
        """What becomes readable when the process has ended."""
        return self._end

    def finish(self) -> bool:
        """Take leave of the ended process and put in place what it made; False when it failed."""
        try:
            _, status = os.waitpid(self._pid, 0)
            if status != 0 or not self._put_in_place():
                os.unlink(self._target)
        except OSError:
            return False
        finally:
            self._close()
        return status == 0

    def _start(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        target = os.open(self._target, flags, 0o640)
        try:
            self._end, end = os.pipe()
            try:
                # Above _PIPE: a dup2 onto itself would leave it closed on exec.
                theirs = fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, _PIPE + 1)
            finally:
                os.close(end)
            try:
                return _spawn(self._source, target, theirs)
            finally:
                os.close(theirs)
        except BaseException:
            os.unlink(self._target)
            raise
        finally:
            os.close(target)

    def _put_in_place(self) -> bool:
        """False when the plain file was removed meanwhile."""
        ours = os.fstat(self._source)
        for number, name in rotated(self.path):
            if not name.endswith(GZ) and os.path.samestat(os.lstat(name), ours):
                os.rename(self._target, f"{self.path}.{number}{GZ}")
                os.unlink(name)
                return True
        return False

    def _close(self) -> None:
        for fd in (self._source, self._end):
            if fd >= 0:
                os.close(fd)
        self._source = self._end = -1


def _spawn(source: int, target: int, end: int) -> int:
    program = [sys.executable, "-I", "-S", "-c", _PROGRAM, _ROOT]
    return os.posix_spawn(
        sys.executable,
        program,
        dict(os.environ),
        file_actions=[
            (os.POSIX_SPAWN_DUP2, source, 0),
            (os.POSIX_SPAWN_DUP2, target, 1),
            (os.POSIX_SPAWN_DUP2, end, _PIPE),
        ],
        setsigdef=[signal.SIGTERM, signal.SIGINT, signal.SIGHUP],
    )


def main() -> None:
    """The process: standard input, which is a file, compressed to standard output, which is another."""
    os.nice(10)
    compress(0, 1)


def compress(source: int, target: int) -> None:
    """Compress one open file into another, and see to it that it is on the disk."""
    import zlib

    found = os.fstat(source)
    head = _HEADER.pack(
        _HEAD,
        int(found.st_mtime) & 0xFFFFFFFF,
        0,
        _UNIX,
        _EXTRA_SIZE,
        b"C",
        b"i",
        _INODE_SIZE,
        found.st_ino,
    )
    deflate = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    check = size = 0
    _write(target, head)
    while data := os.pread(source, BLOCK, size):
        check, size = zlib.crc32(data, check), size + len(data)
        _write(target, deflate.compress(data))
    _write(target, deflate.flush() + struct.pack("<II", check, size & 0xFFFFFFFF))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
    os.fsync(target)


def _write(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def inode_of(fd: int) -> int | None:
    """The inode of the plain file that a compressed one was made from; None where it is not ours."""
    head = os.pread(fd, _HEADER.size, 0)
    if len(head) < _HEADER.size or head[:4] != _HEAD:
        return None
    *_, first, second, length, inode = _HEADER.unpack(head)
    return int(inode) if (first, second, length) == (b"C", b"i", _INODE_SIZE) else None
