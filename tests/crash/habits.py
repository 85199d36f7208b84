"""The services of the crash tests, by habit: `habits.py HABIT FOLDER`. Standard library only, to start fast.

Every run holds a lock that only one run can hold, its children included, and writes it down in `doubled`
when it finds that held. Then it writes a line "MARK PID TICK" in ran/SERVICE: so often was it executed, and then
its process began. Whoever others depend on writes "up TIME" in met/SERVICE right before it is as they need it, and
"down TIME" when it begins and when it is told to end.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import signal
import socket
import sys
import time

SERVICE = os.environ["CIRCLEOSD_SERVICE"]
MARK = os.environ["CIRCLEOSD_RUN"]
RUN = MARK.rpartition("/")[2]
LINE_EVERY_S = 0.004


def main() -> None:
    """Be the only one, say so, and live by the habit."""
    habit, folder = sys.argv[1:]
    os.chdir(folder)
    lock = os.open(f"lock/{SERVICE}", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 200, 0).decode()
        append("doubled", f"{MARK} {os.getpid()} began while there was still {holder}")
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{MARK} {os.getpid()}".encode(), 0)
    if habit in ("late", "setup"):
        stamp("down")
    append(f"ran/{SERVICE}", f"{MARK} {os.getpid()} {born_tick()}")
    HABITS[habit]()


def born_tick() -> str:
    """When this process began, as /proc tells it."""
    with open("/proc/self/stat") as stat:
        return stat.read().rpartition(")")[2].split()[19]


def stamp(word: str) -> None:
    """Write down that it is `up` for those who depend on it, or `down`, from now on."""
    append(f"met/{SERVICE}", f"{word} {time.clock_gettime_ns(time.CLOCK_BOOTTIME)}")


def append(path: str, line: str) -> None:
    """Add a line to a file in one write."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, f"{line}\n".encode())
    os.close(fd)


def between(least_s: float, most_s: float) -> float:
    """A random time."""
    return least_s + (most_s - least_s) * os.urandom(1)[0] / 255


def rest() -> None:
    """Do nothing, for good."""
    while True:
        time.sleep(1000)


def once() -> None:
    """Has run: that is all, but for a moment in which it can be asked again."""
    time.sleep(between(0, 0.06))


def write() -> None:
    """Numbered lines, for good."""
    say(1 << 62)


def talk() -> None:
    """A few numbered lines, and an end with the last of them still in the pipe."""
    say(10 + os.urandom(1)[0] // 4)
    sys.exit(1)


def say(count: int) -> None:
    """Write numbered lines; how many were written is in said/SERVICE.RUN, whatever becomes of this process."""
    fd = os.open(f"said/{SERVICE}.{RUN}", os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(fd, 8)
    said = mmap.mmap(fd, 8)
    for number in range(1, count + 1):
        os.write(1, f"{SERVICE} {MARK} {os.getpid()} {number}\n".encode())
        said[:] = number.to_bytes(8, "little")
        time.sleep(LINE_EVERY_S)


def flap() -> None:
    """End after a moment, well or badly."""
    time.sleep(between(0, 0.2))
    sys.exit(os.urandom(1)[0] % 3)


def be_slow() -> None:
    """Take its time to stop."""

    def stop(_number: int, _frame: object) -> None:
        time.sleep(between(0.05, 0.25))
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    rest()


def be_deaf() -> None:
    """Ignore SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    rest()


def fork() -> None:
    """Leave grandchildren in a session of their own, one of them deaf, that outlive this process."""
    leave_grandchildren()
    rest()


def leave() -> None:
    """The same, and then end."""
    leave_grandchildren()
    time.sleep(between(0.05, 0.3))
    sys.exit(1)


def leave_grandchildren() -> None:
    """Fork twice, with setsid between, as daemons do."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    os.setsid()
    for handling in (signal.SIG_DFL, signal.SIG_IGN):
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, handling)
            rest()
    os._exit(0)


def listen() -> None:
    """Accept on a Unix socket."""
    path = f"at/{SERVICE}"
    if os.path.exists(path):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    while True:
        listener.accept()[0].close()


def be_late() -> None:
    """Say that it is ready when it has been there for a while. With registry and keeper dead that is refused, or
    what they had not heard died with them: then its start times out.
    """

    def stop(_number: int, _frame: object) -> None:
        stamp("down")
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    time.sleep(between(0, 0.25))
    stamp("up")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify,
        contextlib.suppress(ConnectionRefusedError, FileNotFoundError),
    ):
        notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
    rest()


def set_up() -> None:
    """Do what has to be done once, and end well."""
    time.sleep(between(0, 0.15))
    stamp("up")


HABITS = {
    "rest": rest,
    "once": once,
    "write": write,
    "talk": talk,
    "flap": flap,
    "slow": be_slow,
    "deaf": be_deaf,
    "fork": fork,
    "leave": leave,
    "listen": listen,
    "late": be_late,
    "setup": set_up,
}

if __name__ == "__main__":
    main()
