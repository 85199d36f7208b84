"""The daemon's own log on stderr: `[INFO] text`, or a JSON object a line. It never blocks the loop.

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

QUEUE_MAX = 10_000
_LEVELS = {"WARNING": "WARN", "CRITICAL": "ERROR"}
_CLOSE_S = 1.0


class DaemonLog(logging.Handler):
    """A logging handler that a slow or stuck stderr cannot hold up."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json
        self._queue: queue.Queue[str | None] = queue.Queue(QUEUE_MAX)
        self._dropped = 0
        self._thread = threading.Thread(target=self._write_lines, name="daemon-log", daemon=True)

    def start(self) -> None:
        """Become the handler of everything that is logged."""
        self._thread.start()
        logging.basicConfig(level=logging.WARNING, handlers=[self], force=True)
        logging.getLogger("registry").setLevel(logging.INFO)
        logging.getLogger("transitions").setLevel(
            logging.ERROR
        )  # an input without a row is no news

    def stop(self) -> None:
        """Write what is left, for a bounded time."""
        try:
            self._queue.put(None, timeout=_CLOSE_S)
        except queue.Full:
            return
        self._thread.join(_CLOSE_S)

    def emit(self, record: logging.LogRecord) -> None:
        """Take one record; drop it when the queue is full."""
        try:
            self._queue.put_nowait(self._line(record))
        except queue.Full:
            self._dropped += 1

    def _line(self, record: logging.LogRecord) -> str:
        level = _LEVELS.get(record.levelname, record.levelname)
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        if not self._as_json:
            return f"[{level}] {text}\n"
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {"at": f"{at}.{int(record.msecs):03d}Z", "level": level, "message": text}
        line.update(getattr(record, "fields", {}))
        return json.dumps(line) + "\n"

    def _write_lines(self) -> None:
        while (line := self._queue.get()) is not None:
            dropped, self._dropped = self._dropped, 0
            try:
                if dropped:
                    sys.stderr.write(f"[WARN] {dropped} lines of this log were dropped\n")
                sys.stderr.write(line)
                sys.stderr.flush()
            except (OSError, ValueError):
                continue  # nobody listens any more; that is no reason to stop supervising
