"""Whoever cleans up after a soak, however that ends: `guard.py FOLDER`, with a pipe from the soak as its input.

The pipe closes when the soak ends, by kill -9 too. Then every process of the folder is ended and the folder removed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.soak.sight import of_folder  # noqa: E402 - found only by the line before

WITHIN_S = 20.0


def main() -> int:
    """Wait for the end of the soak, then leave nothing; 1 where something does not end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    folder = Path(sys.argv[1])
    sys.stdin.buffer.read()
    deadline = time.monotonic() + WITHIN_S
    while left := of_folder(folder):
        if time.monotonic() > deadline:
            print(f"left running: {left}", file=sys.stderr)
            return 1
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
