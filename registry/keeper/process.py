"""Becoming the keeper: a process of its own that no terminal, signal or dying parent takes along.

It closes every descriptor that it was not given, lives in its own session and in "/", and can be
ended by SIGTERM only while it keeps nothing. Its complaints go to its own bounded log.
Standard library only, argparse left out too: the keeper must stay small.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import time

from registry.keeper.loop import Loop
from registry.keeper.protocol import listen

LOG_MAX = 1 << 18
"""Bytes after which the keeper's own log is renamed to PATH.1 and begun anew."""

USAGE = "usage: __main__.py --socket PATH --log PATH [--listen FD] [--splice yes|no]"


def main(arguments: list[str]) -> int:
    """Run the keeper. `--listen` is an inherited listening socket, else one is made at `--socket`."""
    options = dict(zip(arguments[::2], arguments[1::2], strict=False))
    given = {"--socket", "--log"} <= options.keys() <= {"--socket", "--log", "--listen", "--splice"}
    if len(arguments) % 2 or not given or not options.get("--listen", "3").isdecimal():
        print(USAGE, file=sys.stderr)
        return os.EX_USAGE
    path, log = os.path.abspath(options["--socket"]), os.path.abspath(options["--log"])
    inherited = int(options["--listen"]) if "--listen" in options else None
    _detach(inherited)
    own_log = OwnLog(log)
    listener = listen(path) if inherited is None else socket.socket(fileno=inherited)
    _serve(listener, path, own_log, splice=options.get("--splice") != "no")
    return os.EX_OK


def _serve(listener: socket.socket, path: str, own_log: OwnLog, *, splice: bool) -> None:
    ours = os.stat(path)

    def is_reachable() -> bool:
        return _is_at(path, ours)

    loop = Loop(listener, own_log.say, is_reachable=is_reachable, splice=splice)

    def end_if_unneeded(_signal: int, _frame: object) -> None:
        if not loop.is_keeping:
            raise SystemExit(os.EX_OK)

    signal.signal(signal.SIGTERM, end_if_unneeded)
    try:
        loop.run()
    finally:
        # The daemon puts another socket here only when this one answers no longer.
        if is_reachable():
            os.unlink(path)
        loop.close()


def _is_at(path: str, ours: os.stat_result) -> bool:
    """Whether the file at `path` is still the one that was there."""
    try:
        return os.path.samestat(ours, os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False


def _detach(inherited: int | None) -> None:
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(ignored, signal.SIG_IGN)
    if os.getsid(0) != os.getpid():
        os.setsid()
    os.chdir("/")
    os.umask(0o027)
    first = 3
    if inherited is not None:
        os.closerange(3, inherited)
        os.set_inheritable(inherited, False)
        first = inherited + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


class OwnLog:
    """The keeper's stderr: the file `path` and one older file, each of about LOG_MAX bytes at most."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._attach()

    def say(self, text: str) -> None:
        """Write one line with the time before it; a log that cannot be written is done without."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        try:
            if os.fstat(2).st_size > LOG_MAX:
                self._attach()
            os.write(2, f"{stamp} {text}\n".encode(errors="replace"))
        except OSError:
            return

    def _attach(self) -> None:
        try:
            if os.path.getsize(self._path) > LOG_MAX:
                os.rename(self._path, f"{self._path}.1")
        except FileNotFoundError:
            pass
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError:
            fd = os.open(os.devnull, os.O_WRONLY)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        os.close(fd)
