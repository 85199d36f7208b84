"""A service that says itself that it is well, over the registry's socket. Usage: beat.py SERVICE"""

import json
import os
import signal
import socket
import sys
import time

REGISTRY = os.environ.get("CIRCLEOSD_SOCKET", "/tmp/service-registry.sock")
EVERY_S = 2.0


def beat(service: str) -> None:
    """Send one sign of life and read the answer; a registry that is away is no reason to end."""
    request = json.dumps({"action": "heartbeat", "service": service}) + "\n"
    try:
        with socket.socket(socket.AF_UNIX) as registry:
            registry.settimeout(EVERY_S)
            registry.connect(REGISTRY)
            registry.sendall(request.encode())
            answer = json.loads(registry.makefile().readline() or "{}")
    except OSError as error:
        print(f"no registry at {REGISTRY}: {error}", flush=True)
        return
    if not answer.get("ok"):
        print(f"heartbeat refused: {answer}", flush=True)


def main(service: str) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(f"a heartbeat every {EVERY_S:g} s to {REGISTRY}", flush=True)
    while True:
        beat(service)
        time.sleep(EVERY_S)


if __name__ == "__main__":
    main(sys.argv[1])
