"""What the keeper holds of runs, from their spawn until their ends are journaled: their output, their pidfd.

A run writes into a FIFO without a name, which it opens for both directions: where no keeper lives on, what it
wrote since is still in there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Protocol

from registry.core.definition import Logs
from registry.core.lifecycle import Reason
from registry.host.launch import LaunchError
from registry.host.members import Process
from registry.logs.target import LogTarget

_log = logging.getLogger(__name__)


class OutputKeeper(Protocol):
    """What is needed of the keeper."""

    def keep(
        self,
        service: str,
        run: int,
        output_fd: int | None,
        pidfd: int | None,
        log: LogTarget | None,
    ) -> None:
        """Let the keeper hold these descriptors, too, from `flush` on at the latest. Raises OSError."""

    def flush(self) -> None:
        """Whatever is to be held is from now on."""

    def release(self, service: str, run: int) -> None:
        """The run's end is in the journal."""

    def redirect(self, service: str, run: int, log: LogTarget) -> None:
        """The run's output goes there from now on."""


class Kept:
    """The runs that the keeper holds. The FIFOs are made in `folder`, where nobody else makes any."""

    def __init__(self, folder: Path, keeper: OutputKeeper) -> None:
        for left in folder.glob("output.[0-9]*"):  # by a daemon that was killed
            if left.is_fifo():
                with contextlib.suppress(OSError):
                    left.unlink()
        self._folder = folder
        self._keeper = keeper
        self._numbers: set[int] = set()  # of the FIFOs that have a name
        self._runs: dict[
            str, tuple[int, ...]
        ] = {}  # mostly one: a set would be four times its size

    @contextlib.contextmanager
    def fifo(self, uid: int | None) -> Iterator[tuple[str, int]]:
        """A path for `uid` to open within the block, and our reading end, the caller's unless the block fails.

        Raises OSError, LaunchError.
        """
        # others have their turn within the block: none removes what another is about to open
        number = next(each for each in count() if each not in self._numbers)
        self._numbers.add(number)
        path = os.path.join(self._folder, f"output.{number}")
        try:
            _remove(path)
            os.mkfifo(path, 0o600)
            if uid is not None:
                _give(path, uid)
            output = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                yield path, output
            except BaseException:
                os.close(output)
                raise
        finally:
            _remove(path)
            self._numbers.remove(number)

    def keep(self, process: Process, output: int | None, logs: Logs | None) -> None:
        """Hand a run to the keeper. Raises OSError."""
        target = LogTarget.of(logs, process.service) if logs is not None else None
        if output is not None or process.pidfd is not None:
            self._keeper.keep(process.service, process.run, output, process.pidfd, target)
            self.add(process.service, process.run)

    def flush(self) -> None:
        """The keeper holds from now on what it was to hold."""
        self._keeper.flush()

    def keep_adopted(self, process: Process, logs: Logs | None) -> None:
        """Hand an earlier daemon's run to the keeper, unless that holds it already."""
        if process.run in self._runs.get(process.service, ()):
            return
        output = self._reopen(process.pid) if logs is not None else None
        try:
            self.keep(process, output, logs)
        except OSError as error:
            _warn(process, "its output cannot be taken up again", error)
        finally:
            if output is not None:
                os.close(output)

    def _reopen(self, pid: int | None) -> int | None:
        """The reading end of the FIFO that we once made for a run, by its descriptors; None where it left it."""
        ours = re.compile(rf"{re.escape(str(self._folder.absolute()))}/output\.\d+ \(deleted\)")
        for number in (1, 2):
            path = f"/proc/{pid}/fd/{number}"
            with contextlib.suppress(OSError):
                if ours.fullmatch(os.readlink(path)):
                    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        return None

    def keep_main(self, process: Process) -> None:
        """Hand over another main process of a run; its output is kept already."""
        try:
            self._keeper.keep(process.service, process.run, None, process.pidfd, None)
        except OSError as error:
            _warn(process, "its new main process is not kept", error)

    def redirect(self, service: str, run: int, logs: Logs | None) -> None:
        """What a run writes from now on goes to another log, or to the same one with other limits."""
        if logs is not None:
            self._keeper.redirect(service, run, LogTarget.of(logs, service))

    def add(self, service: str, run: int) -> None:
        """The keeper holds this run."""
        if run not in (kept := self._runs.get(service, ())):
            self._runs[service] = (*kept, run)

    def release(self, service: str, up_to_run: int | None) -> None:
        """These runs' ends are in the journal, all of the service's where `up_to_run` is None."""
        kept = self._runs.pop(service, ())
        if left := tuple(run for run in kept if up_to_run is not None and run > up_to_run):
            self._runs[service] = left
        for run in kept:
            if run not in left:
                self._keeper.release(service, run)


def _warn(process: Process, what: str, error: OSError) -> None:
    _log.warning("%s: %s: %s", process.service, what, error.strerror)


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _give(path: str, uid: int) -> None:
    try:
        os.chown(path, uid, -1)
    except PermissionError:
        message = (
            f"user cannot be set to {uid}: the registry may not give it the pipe for its output,"
            " which takes CAP_CHOWN; let it, or leave user out"
        )
        raise LaunchError(Reason.NOT_PERMITTED, message, "user") from None
