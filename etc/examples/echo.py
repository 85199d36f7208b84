"""A service behind a Unix socket: every line that comes in goes back. Usage: echo.py SOCKET"""

import contextlib
import os
import signal
import socket
import socketserver
import sys


class Echo(socketserver.StreamRequestHandler):
    """One client."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """One thread a client; none of them holds up the end."""

    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: object) -> None:
        """A client that is gone is no news."""


def take_over(path: str) -> None:
    """Remove what an earlier run left behind, unless somebody still listens there."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            os.unlink(path)
        else:
            sys.exit(f"{path}: another process listens there")


def main(path: str) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    take_over(path)
    with Server(path, Echo) as server:
        try:
            print(f"listening on {path}", flush=True)
            server.serve_forever()
        finally:
            with contextlib.suppress(FileNotFoundError):  # somebody may have removed it
                os.unlink(path)
            print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
