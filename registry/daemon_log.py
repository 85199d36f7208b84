"""The daemon's own log on stderr: `[INFO] text`, with the time before it, or as JSON. It never blocks the loop.

Lines go through a bounded queue to a thread of their own; when nobody reads stderr they are dropped and
counted, and supervision goes on.
"""

from __future__ import annotations

import json
import logging
import queue
import sys
import threading
import time
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

QUEUE_MAX = 10_000
_LEVELS = {"WARNING": "WARN", "CRITICAL": "ERROR"}
_CLOSE_S = 1.0


class Format(StrEnum):
    """What a line looks like. TEXT is for a reader that notes the time itself, such as systemd's journal."""

    TEXT = "text"
    TIME = "time"
    JSON = "json"


def formatted(
    format_: Format, level: str, text: str, at_s: float, fields: Mapping[str, Any] | None = None
) -> str:
    """One line, with its end."""
    if format_ is Format.TEXT:
        return f"[{level}] {text}\n"
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at_s))
    at = f"{seconds}.{int(at_s % 1 * 1000):03d}Z"
    if format_ is Format.TIME:
        return f"{at} [{level}] {text}\n"
    return json.dumps({"at": at, "level": level, "message": text, **(fields or {})}) + "\n"


class DaemonLog(logging.Handler):
    """A logging handler that a slow or stuck stderr cannot hold up."""

    def __init__(self, format_: Format) -> None:
        super().__init__()
        self._format = format_
        # not queue.Queue, whose locks are of Python: every restart is told
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._dropped = 0
        self._thread = threading.Thread(target=self._write_lines, name="daemon-log", daemon=True)

    def start(self) -> None:
        """Become the handler of everything that is logged."""
        self._thread.start()
        # nobody shows where a line comes from: https://docs.python.org/3/howto/logging.html#optimization
        logging._srcfile = None
        logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
        logging.basicConfig(level=logging.WARNING, handlers=[self], force=True)
        logging.getLogger("registry").setLevel(logging.INFO)
        logging.getLogger("transitions").setLevel(
            logging.ERROR
        )  # an input without a row is no news

    def stop(self) -> None:
        """Write what is left, for a bounded time."""
        self._queue.put(None)
        self._thread.join(_CLOSE_S)

    def emit(self, record: logging.LogRecord) -> None:
        """Take one record; drop it when the queue is full."""
        if self._queue.qsize() < QUEUE_MAX:
            self._queue.put(self._line(record))
        else:
            self._dropped += 1

    def _line(self, record: logging.LogRecord) -> str:
        level = _LEVELS.get(record.levelname, record.levelname)
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        return formatted(self._format, level, text, record.created, getattr(record, "fields", None))

    def _write_lines(self) -> None:
        while (line := self._queue.get()) is not None:
            dropped, self._dropped = self._dropped, 0
            try:
                if dropped:
                    text = f"{dropped} lines of this log were dropped"
                    sys.stderr.write(formatted(self._format, "WARN", text, time.time()))
                sys.stderr.write(line)
                sys.stderr.flush()
            except (OSError, ValueError):
                continue  # nobody listens any more; that is no reason to stop supervising
