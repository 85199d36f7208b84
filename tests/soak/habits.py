"""The services that only a soak has, by habit: `habits.py HABIT FOLDER [ADDRESS]`.

Standard library only, to start fast. Those of the crash rounds are run beside them. Whoever has an address serves
it: `unix:PATH`, or a port on loopback.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable

SERVICE = os.environ.get("CIRCLEOSD_SERVICE", "")
CHUNK = 1 << 16
GROWTH = 2 << 20
LINE = b"x" * 119 + b"\n"
ANSWERS = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 500 Sorry\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
    b"HTTP/1.1 200 OK\r\n" + b"X-Endless: yes\r\n" * 3000,
    b"\x00\xffnot HTTP at all\r\n\r\n",
    b"HTTP/1.1 302 Elsewhere\r\nLocation: /\r\nContent-Length: 0\r\n\r\n",
    b"",
)
"""What a lying HTTP server says; the first is what an honest one says."""
PHRASES = (
    b"READY=1",
    b"RELOADING=1\nMONOTONIC_USEC=1",
    b"MAINPID=1",
    b"MAINPID=x",
    b"EXTEND_TIMEOUT_USEC=1000000",
    b"WATCHDOG=1",
    b"WATCHDOG_USEC=500000",
    b"ERRNO=7",
    b"NOTHING=of=this",
    b"\xff\xfe\x00",
    b"=",
    b"",
)
"""What somebody who talks too much says, beside a STATUS of any length."""


def main() -> None:
    """Live by the habit."""
    habit, folder, *rest = sys.argv[1:]
    os.chdir(folder)
    HABITS[habit](*rest)


def between(least_s: float, most_s: float) -> float:
    """A random time."""
    return least_s + (most_s - least_s) * os.urandom(1)[0] / 255


def one_in(number: int) -> bool:
    """True once in so many times."""
    return os.urandom(1)[0] % number == 0


def crash() -> None:
    """End badly after a moment, by exit code or by signal, with some last words."""
    time.sleep(between(0, 1))
    print("what is the matter with me?", file=sys.stderr, flush=True)
    if one_in(3):
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(1)


def flood() -> None:
    """Bursts of lines, each of which fills a log file."""
    while True:
        for _ in range(40):
            os.write(1, LINE * 64)
        time.sleep(between(0.5, 3))


def go_on() -> None:
    """One line without an end."""
    while True:
        os.write(1, b"y" * 4096)
        time.sleep(between(0.1, 0.6))


def listen(address: str) -> socket.socket:
    """A listening socket at the address."""
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
    else:
        listener = socket.socket(socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", int(address)))
    listener.listen()
    return listener


def accept(address: str) -> None:
    """Accept, and close."""
    listener = listen(address)
    while True:
        listener.accept()[0].close()


def hold(_address: str) -> None:
    """Accept on the listening socket that was passed."""
    listener = socket.socket(fileno=3)
    while True:
        listener.accept()[0].close()


def vanish(address: str) -> None:
    """Be there for a while, and then not; hold connections open meanwhile."""
    while True:
        listener = listen(address)
        listener.settimeout(0.2)
        held, end_s = [], time.monotonic() + between(0.2, 3)
        while time.monotonic() < end_s:
            with contextlib.suppress(TimeoutError):
                held.append(listener.accept()[0])
        listener.close()
        for client in held:
            client.close()
        time.sleep(between(0, 3))


def serve(address: str) -> None:
    """An honest HTTP server."""
    answer_all(address, 1)


def lie(address: str) -> None:
    """An HTTP server that says anything, or nothing for longer than it is waited for."""
    answer_all(address, len(ANSWERS))


def answer_all(address: str, kinds: int) -> None:
    """Answer each request with one of so many kinds of answers."""
    listener = listen(address)
    while True:
        client, _ = listener.accept()
        client.settimeout(1)
        with client, contextlib.suppress(OSError):
            if kinds > 1 and one_in(8):
                time.sleep(between(0.2, 1))
            client.recv(CHUNK)
            client.sendall(ANSWERS[os.urandom(1)[0] % kinds])


def tell(socket_: socket.socket, text: bytes) -> None:
    """Say something over the notification socket; nobody may be there to hear it."""
    with contextlib.suppress(OSError):
        socket_.sendto(text, os.environ["NOTIFY_SOCKET"])


def beat() -> None:
    """A regular sign of life."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        tell(notify, b"READY=1")
        while True:
            tell(notify, b"WATCHDOG=1")
            time.sleep(0.5)


def beat_badly() -> None:
    """A sign of life now and then."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        while True:
            tell(notify, b"WATCHDOG=trigger" if one_in(20) else b"WATCHDOG=1")
            time.sleep(between(0.1, 2.5))


def talk() -> None:
    """Say everything that there is to say, all the time; leave descriptors and take them back."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.settimeout(1)
        while True:
            for _ in range(20):
                tell(notify, PHRASES[os.urandom(1)[0] % len(PHRASES)])
            tell(notify, b"STATUS=" + b"s" * int(between(0, 2000)))
            leave(notify, int(between(0, 4)))
            if one_in(12):
                tell(notify, b"STOPPING=1")
            time.sleep(between(0.5, 4))


def leave(notify: socket.socket, count: int) -> None:
    """Store descriptors under one of a few names, or take them back."""
    name = b"FDNAME=kept%d" % count
    if one_in(2):
        tell(notify, b"FDSTOREREMOVE=1\n" + name)
    else:
        store(notify, name)


def store(notify: socket.socket, name: bytes) -> None:
    """Leave the two ends of a pipe with the registry."""
    ends = os.pipe()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("2i", *ends))]
    with contextlib.suppress(OSError):
        notify.sendmsg([b"FDSTORE=1\n" + name], rights, 0, os.environ["NOTIFY_SOCKET"])
    for end in ends:
        os.close(end)


def save() -> None:
    """Leave the same two descriptors at every start, and say that it is ready."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        tell(notify, b"FDSTOREREMOVE=1\nFDNAME=kept")
        store(notify, b"FDNAME=kept")
        tell(notify, b"READY=1")
    while True:
        time.sleep(1000)


def grow() -> None:
    """Hold more and more memory."""
    held = []
    while True:
        held.append(bytearray(os.urandom(1)) * GROWTH)
        time.sleep(0.2)


def probe() -> None:
    """What a check runs: well or not, at once or too late, in few words or very many."""
    if one_in(10):
        time.sleep(1000)
    if one_in(10):
        with contextlib.suppress(BrokenPipeError):
            os.write(1, LINE * 2000)
    os._exit(one_in(3))


def hear() -> None:
    """What a hook runs: reads what it is told, or not; ends, or not."""
    if one_in(4):
        time.sleep(1000)
    sys.stdin.buffer.read(CHUNK)
    sys.exit(one_in(4))


HABITS: dict[str, Callable[..., None]] = {
    "crash": crash,
    "flood": flood,
    "go_on": go_on,
    "accept": accept,
    "hold": hold,
    "vanish": vanish,
    "serve": serve,
    "lie": lie,
    "beat": beat,
    "beat_badly": beat_badly,
    "talk": talk,
    "save": save,
    "grow": grow,
    "probe": probe,
    "hear": hear,
}

if __name__ == "__main__":
    main()
