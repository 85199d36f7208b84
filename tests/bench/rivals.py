"""The rivals, each as its users would configure it. Whoever is not installed is left out.

Found on PATH, or in the folder that a variable names: DINIT_BIN, SUPERVISOR_BIN, CIRCUS_BIN, PM2_BIN.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import xmlrpc.client
from pathlib import Path

from tests.bench import processes
from tests.bench.supervisors import DEFAULT, FAST, Query, Service, Supervisor, installed, printed

DINIT_LIST, DINIT_DONE, DINIT_ENTRY = 25, 63, 16
"""dinit's control protocol: LISTSERVICES5, LISTDONE, and the bytes of an entry before its name."""
CIRCUS_DELAYS = {FAST: "0.01", DEFAULT: "5"}
"""`check_delay` in seconds: the quickest that was of use in a trial, and its own default."""


class Dinit(Supervisor):
    """https://davmac.org/projects/dinit"""

    name = "dinit"

    def __init__(self) -> None:
        super().__init__()
        self._dinit = installed("DINIT_BIN", "dinit")
        self._dinitctl = installed("DINIT_BIN", "dinitctl")

    def trouble(self) -> str | None:
        return None if self._dinit and self._dinitctl else "not on PATH nor in DINIT_BIN"

    def version(self) -> str:
        return printed([self._dinit, "--version"]).split("\n")[0]

    def prepare(self, services: list[Service], profile: str) -> None:
        fast = "restart-delay = 0\nrestart-limit-count = 0\n" if profile == FAST else ""
        for each in services:
            command = " ".join(each.command)
            text = f"type = process\ncommand = {command}\nrestart = true\n{fast}"
            self.write(f"svc/{each.name}", text)
        needs = "".join(f"waits-for: {each.name}\n" for each in services)
        self.write("svc/boot", f"type = internal\n{needs}")

    def command(self) -> list[str]:
        folder = str(self.folder)
        files = ["-d", f"{folder}/svc", "-p", f"{folder}/d", "-l", f"{folder}/log"]
        return [self._dinit, "-u", *files, "-q", "-t", "boot"]

    def status(self) -> list[str]:
        return [self._dinitctl, "-p", str(self.folder / "d"), "list"]

    def query(self) -> Query:
        return self._list

    def _list(self) -> int:
        # a connection for each: one that is used again sometimes gets no second answer
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(self.folder / "d"))
            connection.sendall(bytes([DINIT_LIST]))
            received, at, count = b"", 0, 0
            while True:
                while len(received) <= at + 1:
                    received += _more(connection)
                if received[at] == DINIT_DONE:
                    return count - 1  # less "boot"
                end = at + DINIT_ENTRY + received[at + 1]
                while len(received) < end:
                    received += _more(connection)
                at, count = end, count + 1


def _more(connection: socket.socket) -> bytes:
    if not (received := connection.recv(65536)):
        raise ConnectionError("closed before the answer's end")
    return received


class Scanned(Supervisor):
    """A supervisor of its own for each service: a folder with a script `run`, as runit and s6 want it."""

    scan = "scan"
    program = ""
    package = ""

    def __init__(self) -> None:
        super().__init__()
        self._statuses: list[str] = []

    def trouble(self) -> str | None:
        return None if shutil.which(self.program) else f"no {self.program} on PATH"

    def version(self) -> str:
        return printed(["dpkg-query", "-W", "-f", "${Version}", self.package])

    def prepare(self, services: list[Service], profile: str) -> None:
        for each in services:
            script = f"#!/bin/sh\nexec {' '.join(each.command)}\n"
            self.write(f"{self.scan}/{each.name}/run", script, 0o755)
        root = self.folder / self.scan
        self._statuses = [str(root / each.name / "supervise" / "status") for each in services]

    def query(self) -> Query:
        return self._read_all

    def _read_all(self) -> int:
        for path in self._statuses:
            descriptor = os.open(path, os.O_RDONLY)
            os.read(descriptor, 64)
            os.close(descriptor)
        return len(self._statuses)


class Runit(Scanned):
    """http://smarden.org/runit; its ./run waits a second where the one before ran for less than that."""

    name = package = "runit"
    program = "runsvdir"
    services_max = 1000  # runsvdir stops there by itself

    def command(self) -> list[str]:
        return ["runsvdir", "-P", str(self.folder / self.scan)]

    def ask_to_stop(self) -> None:
        os.kill(self.main_pid(), signal.SIGHUP)

    def status(self) -> list[str]:
        return ["sv", "status", *(str(Path(path).parents[1]) for path in self._statuses)]


class S6(Scanned):
    """https://skarnet.org/software/s6; a second from an end to the next start is built in."""

    name = package = "s6"
    program = "s6-svscan"
    restarts_by_tick = True

    def command(self) -> list[str]:
        return ["s6-svscan", "-c", "2500", str(self.folder / self.scan)]

    def status(self) -> list[str]:
        script = 'for each in "$0"/*; do s6-svstat "$each"; done'
        return ["/bin/sh", "-c", script, str(self.folder / self.scan)]


class _OverUnix(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


class Supervisord(Supervisor):
    """http://supervisord.org"""

    name = "supervisord"
    restarts_by_tick = True

    def __init__(self) -> None:
        super().__init__()
        self._daemon = installed("SUPERVISOR_BIN", "supervisord")
        self._control = installed("SUPERVISOR_BIN", "supervisorctl")

    def trouble(self) -> str | None:
        return None if self._daemon and self._control else "not on PATH nor in SUPERVISOR_BIN"

    def version(self) -> str:
        return printed([self._daemon, "--version"])

    def prepare(self, services: list[Service], profile: str) -> None:
        folder = self.folder
        head = (
            f"[supervisord]\nnodaemon=true\nlogfile={folder}/log\npidfile={folder}/pid\n"
            f"childlogdir={folder}\n[unix_http_server]\nfile={folder}/s\n[rpcinterface:supervisor]\n"
            "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n"
            f"[supervisorctl]\nserverurl=unix://{folder}/s\n"
        )
        fast = "startsecs=0\n" if profile == FAST else ""
        sections = [
            f"[program:{each.name}]\ncommand={' '.join(each.command)}\nautorestart=true\n{fast}"
            "stdout_logfile=NONE\nstderr_logfile=NONE\n"
            for each in services
        ]
        self.write("conf", head + "".join(sections))

    def command(self) -> list[str]:
        return [self._daemon, "-s", "-c", str(self.folder / "conf")]

    def status(self) -> list[str]:
        return [self._control, "-c", str(self.folder / "conf"), "status"]

    def query(self) -> Query:
        connection = _OverUnix(self.folder / "s")
        body = xmlrpc.client.dumps((), "supervisor.getAllProcessInfo").encode()

        def ask() -> int:
            connection.request("POST", "/RPC2", body, {"Content-Type": "text/xml"})
            return connection.getresponse().read().count(b"<name>statename</name>")

        return ask


_ASK_CIRCUS = """
import json, sys, time, zmq
s = zmq.Context().socket(zmq.DEALER); s.setsockopt(zmq.IDENTITY, b"bench"); s.connect(sys.argv[1])
us, n, end = [], 0, time.monotonic() + float(sys.argv[2])
while time.monotonic() < end or len(us) < 3:
    t = time.monotonic_ns()
    s.send(json.dumps({"id": "x", "command": "status", "properties": {}}).encode())
    if not s.poll(20000): break
    n = len(json.loads(s.recv_multipart()[-1]).get("statuses", ())); us.append((time.monotonic_ns() - t) / 1000)
print(json.dumps({"us": us, "n": n}))
"""


class Circus(Supervisor):
    """https://circus.readthedocs.io."""

    name = "circus"

    def __init__(self) -> None:
        super().__init__()
        self._daemon = installed("CIRCUS_BIN", "circusd")

    def trouble(self) -> str | None:
        return None if self._daemon else "not on PATH nor in CIRCUS_BIN"

    def version(self) -> str:
        return printed([self._daemon, "--version"])

    def prepare(self, services: list[Service], profile: str) -> None:
        head = (
            f"[circus]\ncheck_delay = {CIRCUS_DELAYS[profile]}\nendpoint = ipc://{self.folder}/c\n"
            f"pubsub_endpoint = ipc://{self.folder}/p\n"
        )
        sections = [
            f"[watcher:{each.name}]\ncmd = {each.command[0]}\nargs = {' '.join(each.command[1:])}\n"
            for each in services
        ]
        self.write("ini", head + "".join(sections))

    def command(self) -> list[str]:
        return [self._daemon, "--log-output", f"{self.folder}/log", str(self.folder / "ini")]

    def status(self) -> list[str]:
        control = str(Path(self._daemon).with_name("circusctl"))
        return [control, "--endpoint", f"ipc://{self.folder}/c", "status"]

    def query(self) -> list[str]:
        python = str(Path(self._daemon).with_name("python"))
        return [python, "-c", _ASK_CIRCUS, f"ipc://{self.folder}/c", "2"]


_ASK_PM2 = """
const pm2 = require(process.argv[1]), us = []; let n = 0
pm2.connect(() => { const end = Date.now() + 1000 * process.argv[2]; const ask = () => {
  const t = process.hrtime.bigint(); pm2.list((_, l) => {
  us.push(Number(process.hrtime.bigint() - t) / 1000); n = l.length
  if (Date.now() < end || us.length < 3) return ask()
  console.log(JSON.stringify({us, n})); process.exit(0) }) }; ask() })
"""


class Pm2(Supervisor):
    """https://pm2.keymetrics.io"""

    name = "pm2"

    def __init__(self) -> None:
        super().__init__()
        self._pm2 = installed("PM2_BIN", "pm2")

    def trouble(self) -> str | None:
        return None if self._pm2 else "not on PATH nor in PM2_BIN"

    def version(self) -> str:
        return printed([self._pm2, "--version"]).split("\n")[-1]

    def environment(self) -> dict[str, str]:
        quiet = {"PM2_DISABLE_VERSION_CHECK": "true", "PM2_DISCRETE_MODE": "true"}
        return {**os.environ, **quiet, "PM2_HOME": str(self.folder / "home")}

    def prepare(self, services: list[Service], profile: str) -> None:
        common = {"interpreter": "none", "exec_mode": "fork", "cwd": str(self.folder)}
        common |= {"out_file": "/dev/null", "error_file": "/dev/null"}
        apps = [
            {**common, "name": each.name, "script": each.command[0], "args": each.command[1:]}
            for each in services
        ]
        self.write("eco.json", json.dumps({"apps": apps}))

    def command(self) -> list[str]:
        return [self._pm2, "start", str(self.folder / "eco.json"), "-s"]

    def main_pid(self) -> int:
        with contextlib.suppress(OSError, ValueError):
            return int((self.folder / "home" / "pm2.pid").read_text())
        return 0

    def ask_to_stop(self) -> None:
        processes.spawn([self._pm2, "kill", "-s"], self.folder, self.environment())

    def status(self) -> list[str]:
        return [self._pm2, "list"]

    def query(self) -> list[str]:
        module = str(Path(self._pm2).resolve().parents[1])
        return ["node", "-e", _ASK_PM2, module, "2"]


RIVALS: dict[str, type[Supervisor]] = {
    each.name: each for each in (Dinit, Runit, S6, Supervisord, Circus, Pm2)
}
