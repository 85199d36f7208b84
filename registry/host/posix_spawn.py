"""posix_spawn(3), during which the rest of the process goes on.

os.posix_spawn keeps Python's lock until what it has made is being executed, which takes a quarter of a millisecond
beside other work. The same function of the C library, called by ctypes, keeps nobody waiting. Elsewhere than on Linux,
where its types and flags are not as here, os.posix_spawn is called.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence

_OURS = (signal.SIGKILL, signal.SIGSTOP)
_SIGNALS = signal.valid_signals() - {*_OURS}
"""All but the two that nobody can change: what we ignore, or were started to ignore, is no service's concern."""
_SETSIGDEF, _SETSIGMASK, _SETSID = 0x04, 0x08, 0x80  # spawn.h of glibc and of musl
_BYTES = 512  # more than posix_spawnattr_t (336), sigset_t (128) and posix_spawn_file_actions_t (80) of either

_Buffer = ctypes.Array[ctypes.c_char]


class _Library:
    """What is needed of the C library, and the attributes that are the same each time."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        pointer, number, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
        self.spawn = library.posix_spawn
        self.spawn.argtypes = [pointer, text, pointer, pointer, pointer, pointer]
        self.begin = library.posix_spawn_file_actions_init
        self.end = library.posix_spawn_file_actions_destroy
        self.dup2 = library.posix_spawn_file_actions_adddup2
        self.dup2.argtypes = [pointer, number, number]
        self.open = library.posix_spawn_file_actions_addopen
        self.open.argtypes = [pointer, number, text, number, ctypes.c_uint]
        self.attributes = _buffer()
        none, defaults = _buffer(), _buffer()
        library.sigfillset(defaults)
        for each in _OURS:
            library.sigdelset(defaults, int(each))
        flags = _SETSIGDEF | _SETSIGMASK | _SETSID
        _refuse(library.posix_spawnattr_init(self.attributes))
        _refuse(library.posix_spawnattr_setflags(self.attributes, flags))
        _refuse(library.posix_spawnattr_setsigmask(self.attributes, none))
        _refuse(library.posix_spawnattr_setsigdefault(self.attributes, defaults))


def _buffer() -> _Buffer:
    return ctypes.create_string_buffer(_BYTES)


def _refuse(error: int) -> None:
    if error:
        raise OSError(error, os.strerror(error))


def _found() -> _Library | None:
    """None where os.posix_spawn has to do: elsewhere, and where the library knows no sessions (glibc before 2.26)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            return _Library()
    return None


_library = _found()


def posix_spawn(
    program: str,
    argv: Sequence[str],
    environment: Mapping[str, str],
    stdin: int,
    output: str,
    placed: Iterable[tuple[int, int]] = (),
) -> int:
    """The pid of a process in a session of its own, no signal blocked or ignored. Raises OSError.

    0 is its `stdin`, 1 and 2 the file at the path `output`, opened for both; then come those `placed`: a descriptor of
    ours, and what it is to be.
    """
    if _library is None:
        return os.posix_spawn(
            program,
            [*argv],
            environment,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, stdin, 0),
                (os.POSIX_SPAWN_OPEN, 1, output, os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, 1, 2),
                *((os.POSIX_SPAWN_DUP2, ours, theirs) for ours, theirs in placed),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=_SIGNALS,
        )
    actions = _buffer()
    _library.begin(actions)
    try:
        _refuse(_library.dup2(actions, stdin, 0))
        _refuse(_library.open(actions, 1, os.fsencode(output), os.O_RDWR, 0))
        for ours, theirs in ((1, 2), *placed):
            _refuse(_library.dup2(actions, ours, theirs))
        return _spawned(_library, os.fsencode(program), argv, environment, actions)
    finally:
        _library.end(actions)


def _spawned(
    library: _Library,
    program: bytes,
    argv: Sequence[str],
    environment: Mapping[str, str],
    actions: _Buffer,
) -> int:
    pid = ctypes.c_int()
    words = _texts(argv)
    variables = _texts([f"{name}={value}" for name, value in environment.items()])
    _refuse(
        library.spawn(ctypes.byref(pid), program, actions, library.attributes, words, variables)
    )
    return pid.value


def _texts(words: Sequence[str]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * (len(words) + 1))(*map(os.fsencode, words))
