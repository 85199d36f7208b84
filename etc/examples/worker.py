"""A worker that notes when it last worked, and the check that reads the note.

Usage: worker.py NOTE          work once a second
       worker.py NOTE SECONDS  exit 0 if it worked within so many seconds, else 1
"""

import os
import signal
import sys
import time


def work(note: str) -> None:
    """Write the time into the note; by rename, so that nobody ever reads half of it."""
    with open(f"{note}.new", "w") as file:
        file.write(f"{time.time():.3f}\n")
    os.replace(f"{note}.new", note)


def check(note: str, seconds: float) -> None:
    """What the registry runs: its exit code is the answer."""
    age = time.time() - os.stat(note).st_mtime
    print(f"worked {age:.1f} s ago")
    sys.exit(0 if age <= seconds else 1)


def main(note: str) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    os.makedirs(os.path.dirname(note) or ".", exist_ok=True)
    for number in range(sys.maxsize):
        work(note)
        if number % 60 == 0:
            print(f"worked {number} times", flush=True)
        time.sleep(1)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        check(sys.argv[1], float(sys.argv[2]))
    main(sys.argv[1])
