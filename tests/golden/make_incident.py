"""The incident of incident.db: a real registry, real programs, and a cascading failure of several of them.

`python tests/golden/make_incident.py` runs it (a minute or two, in /tmp/shop, on Unix sockets only) and
writes incident.db and incident-logs/. They are not made again lightly: every answer about them is pinned in
incident-answers/, which `--answers` writes anew from what is there, to be judged line by line.

The story: somebody stops db, on which api depends; api answers 503 and is restarted, and waits; web, which
depends on api without saying so, crashes up to its limit. Later db is killed and leaves its lock file, by
which it crashes up to its limit, too; meanwhile the registry is killed. At the end a new definition of worker
is wrong, audit waits for it, and mailer never says that it is ready.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from registry.client import Client, RegistryError

FOLDER = Path(__file__).parent
SHOP = Path("/tmp/shop")
OPERATOR = 1000
DEADLINE_S = 30.0
JOURNAL_MAX, ALL_MAX = 200_000, 300_000

COMMON = """
import os, signal, socket, sys, time

def say(text):
    print(text, flush=True)

def ask(name):
    with socket.socket(socket.AF_UNIX) as server:
        server.settimeout(2)
        server.connect(f"run/{name}.sock")
        server.sendall(b"GET /health HTTP/1.0\\r\\n\\r\\n")
        return server.makefile().readline().strip()

def listen(name):
    path = f"run/{name}.sock"
    if os.path.exists(path):
        os.unlink(path)
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    return server

def end(*_):
    say("asked to stop, stopping")
    sys.exit(0)

def notify(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        address = os.environ["NOTIFY_SOCKET"]
        to.sendto(text, "\\0" + address[1:] if address[0] == "@" else address)

signal.signal(signal.SIGTERM, end)
"""

PROGRAMS = {
    "db": """
if os.path.exists("run/db.lock"):
    print("FATAL: run/db.lock exists: is another server using this data?", file=sys.stderr)
    print("HINT: if none is, remove the file and start again", file=sys.stderr)
    sys.exit(2)
open("run/db.lock", "w").close()
def end(*_):
    say("shutting down")
    os.unlink("run/db.sock")
    os.unlink("run/db.lock")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
server = listen("db")
say("ready to accept connections")
while True:
    client, _ = server.accept()
    with client:
        client.recv(1000)
        try:
            client.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\n")
        except OSError:
            pass
""",
    "migrate": """
say("applying 0001_orders.sql")
ask("db")
say("applying 0002_audit.sql")
say("2 migrations applied")
""",
    "api": """
try:
    ask("db")
except OSError as error:
    say(f"cannot reach the database: {error}")
    sys.exit(3)
server = listen("api")
say("listening on run/api.sock")
while True:
    client, _ = server.accept()
    with client:
        client.recv(1000)
        try:
            ask("db")
            answer = "200 OK"
        except OSError as error:
            answer = "503 Service Unavailable"
            say(f"ERROR database: {error}")
        try:
            client.sendall(f"HTTP/1.0 {answer}\\r\\nContent-Length: 0\\r\\n\\r\\n".encode())
        except OSError:
            pass
""",
    "web": """
say("web of the shop, version 7")
failed = number = 0
while failed < 12:
    number += 1
    try:
        answer = ask("api").split()[1]
    except (OSError, IndexError):
        answer = "502"
    failed = failed + 1 if answer >= "500" else 0
    say(f'127.0.0.1 "GET /orders/{number:05} HTTP/1.1" {answer}')
    time.sleep(0.05)
say("Traceback (most recent call last):")
say('  File "shop.py", line 212, in orders')
say("RuntimeError: the api does not answer")
sys.exit(1)
""",
    "worker": """
if len(sys.argv) > 1:
    print(f"worker: error: unrecognized arguments: {sys.argv[1]}", file=sys.stderr)
    sys.exit(64)
number = 0
while True:
    ask("db")
    number += 1
    say(f"job {number} done")
    time.sleep(0.7)
""",
    "cache": """
say("keeping 0 entries")
while True:
    time.sleep(1)
""",
    "audit": """
say("audit of the worker's jobs")
while True:
    time.sleep(1)
""",
    "mailer": """
if os.path.exists("run/mailer.slow"):
    say("waiting for the mail server to greet")
else:
    notify(b"READY=1\\nSTATUS=queue is empty")
    say("queue is empty")
while True:
    time.sleep(1)
""",
}

CONFIGURATION = """
[registry]
socket = "shop.sock"
[access]
operate = ["uid:1000"]

[[service]]
name = "db"
cmd = ["python3", "-I", "-S", "db.py"]
tags = ["data"]
restart = { policy = "Always", delay = "400ms", limit = 3, within = "60s" }
health_check = { name = "accepts", target = "unix:run/db.sock", interval = "500ms", timeout = "1s" }

[[service]]
name = "migrate"
cmd = ["python3", "-I", "-S", "migrate.py"]
oneshot = true
depends_on = ["db"]

[[service]]
name = "api"
cmd = ["python3", "-I", "-S", "api.py"]
tags = ["front"]
depends_on = ["db", "migrate"]
health_check = { target = "http+unix:run/api.sock:/health", interval = "500ms", timeout = "2s" }

[[service]]
name = "web"
cmd = ["python3", "-I", "-S", "web.py"]
tags = ["front"]
depends_on = ["cache"]
logs = { size_max = "4KiB", files_max = 5 }
restart = { policy = "OnFailure", delay = "300ms", limit = 2, within = "60s" }

[[service]]
name = "worker"
cmd = ["python3", "-I", "-S", "worker.py"WORKER]
depends_on = { db = { condition = "ready", restart = true } }
restart = { policy = "Always", delay = "200ms", limit = 4, within = "30s" }

[[service]]
name = "audit"
cmd = ["python3", "-I", "-S", "audit.py"]
depends_on = { worker = { condition = "ready", restart = true } }

[[service]]
name = "cache"
cmd = ["python3", "-I", "-S", "cache.py"]
tags = ["data"]

[[service]]
name = "mailer"
cmd = ["python3", "-I", "-S", "mailer.py"]
ready = "notify"
start_timeout = "5m"
"""

# As whoever is an operator, who might not even read this Python where it is root's own
CIRCLECTL = """
import importlib, os, pkgutil, sys
import circlectl, json
for module in pkgutil.iter_modules(circlectl.__path__):
    if module.name != "__main__":
        importlib.import_module(f"circlectl.{module.name}")
open("/proc/self/comm", "w").write("circlectl")
os.setuid(int(sys.argv.pop(1)))
sys.argv[0] = "circlectl"
circlectl.cli.main()
"""


class Shop:
    """The folder, the registry that runs on it, and those who do something to it."""

    def __init__(self) -> None:
        SHOP.mkdir()  # FileExistsError: another one is at it
        SHOP.chmod(0o755)
        (SHOP / "run").mkdir()
        (SHOP / "etc").mkdir()
        for name, text in PROGRAMS.items():
            (SHOP / f"{name}.py").write_text(COMMON + text)
        self.configure("")

    def configure(self, argument: str) -> None:
        """Write services.toml, with a further argument of worker."""
        (SHOP / "etc" / "services.toml").write_text(CONFIGURATION.replace("WORKER", argument))

    def start(self) -> None:
        """Start a registry, and wait until it answers."""
        with (SHOP / "stderr").open("ab") as errors:
            self.registry = subprocess.Popen(
                [sys.executable, "-m", "registry"],
                cwd=SHOP,
                env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(FOLDER.parents[1])},
                stdin=subprocess.DEVNULL,
                stderr=errors,
            )
        self.wait("the registry answers", lambda: True)

    def services(self) -> dict[str, dict[str, Any]]:
        """The service records by name; none where no registry answers."""
        try:
            with Client(str(SHOP / "shop.sock")) as client:
                return {each["name"]: each for each in client.call("list_services")}
        except RegistryError:
            return {}

    def wait(self, what: str, is_so: Callable[..., bool], *names: str) -> None:
        """Wait until a condition holds for the records of some services."""
        deadline = time.monotonic() + DEADLINE_S
        while not ((found := self.services()) and is_so(*(found[name] for name in names))):
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: {found}\n{(SHOP / 'stderr').read_text()}")
            time.sleep(0.02)
        print(f"{time.strftime('%T')} {what}", flush=True)

    def wait_status(self, **wanted: str) -> None:
        """Wait until each service has its status."""
        for name, status in wanted.items():
            self.wait(f"{name} {status}", lambda r, s=status: r["status"] == s, name)

    def wait_reason(self, name: str, reason: str) -> None:
        """Wait until a service is where it is for a reason."""
        self.wait(f"{name} {reason}", lambda record: record["reason"] == reason, name)

    def ctl(self, *arguments: str, by: int = OPERATOR) -> None:
        """What somebody does with circlectl, whatever comes of it."""
        print(f"{time.strftime('%T')} $ circlectl {' '.join(arguments)}", flush=True)
        subprocess.run(
            [sys.executable, "-c", CIRCLECTL, str(by), *arguments],
            check=False,
            cwd=SHOP,
            env={"PATH": "/usr/bin:/bin", "CIRCLEOSD_SOCKET": str(SHOP / "shop.sock")},
        )

    def kill(self, name: str) -> None:
        """As the kernel's OOM killer would."""
        os.kill(self.services()[name]["pid"], signal.SIGKILL)

    def save(self) -> None:
        """The journal as it is now, in one file, and the log files."""
        (FOLDER / "incident.db").unlink(missing_ok=True)
        with closing(sqlite3.connect(SHOP / "var" / "registry.db")) as journal:
            journal.execute("VACUUM INTO ?", (str(FOLDER / "incident.db"),))
        logs = FOLDER / "incident-logs"
        shutil.rmtree(logs, ignore_errors=True)
        shutil.copytree(SHOP / "var" / "log", logs)
        journal_bytes = (FOLDER / "incident.db").stat().st_size
        bytes_ = journal_bytes + sum(path.stat().st_size for path in logs.iterdir())
        print(f"journal {journal_bytes} bytes, with the logs {bytes_}")
        assert journal_bytes < JOURNAL_MAX
        assert bytes_ < ALL_MAX

    def clean_up(self) -> None:
        """End the registry with all its services, and remove the folder."""
        self.registry.terminate()
        self.registry.wait(DEADLINE_S)
        shutil.rmtree(SHOP)


def happen(shop: Shop) -> None:
    """All of it."""
    everybody = ("db", "api", "web", "worker", "audit", "cache", "mailer")
    shop.wait_status(**dict.fromkeys(everybody, "Running"))
    time.sleep(1.5)
    _db_is_stopped(shop)
    shop.ctl("restart", "mailer", "--wait")
    time.sleep(1)
    shop.kill("worker")
    shop.wait("worker again", lambda record: record["restarts"] > 0, "worker")
    shop.wait_status(worker="Running", audit="Running")
    time.sleep(1)
    _db_is_killed(shop)
    time.sleep(1)
    _worker_is_redefined(shop)
    (SHOP / "run" / "mailer.slow").touch()
    shop.ctl("restart", "mailer")
    shop.wait_status(mailer="Starting")
    time.sleep(0.5)


def _db_is_stopped(shop: Shop) -> None:
    shop.ctl("stop", "db", "--wait")
    shop.wait_reason("api", "waiting")
    shop.wait_reason("web", "restart_limit")
    shop.ctl("start", "db", "--wait")
    shop.wait_status(api="Running", worker="Running", audit="Running")
    shop.ctl("start", "web", "--wait")
    time.sleep(2)


def _db_is_killed(shop: Shop) -> None:
    shop.kill("db")
    shop.ctl("restart", "cache")
    shop.wait("db crashes on", lambda record: record["restarts"] > 1, "db")
    shop.registry.kill()
    shop.registry.wait()
    time.sleep(0.6)
    shop.start()
    shop.wait_reason("db", "restart_limit")
    shop.wait_reason("api", "waiting")
    shop.wait_reason("web", "restart_limit")
    (SHOP / "run" / "db.lock").unlink()
    shop.ctl("reset", "db")
    shop.ctl("start", "db", "web", "--wait")
    shop.wait_status(api="Running", web="Running", worker="Running", audit="Running")


def _worker_is_redefined(shop: Shop) -> None:
    shop.configure(', "--queue=billing"')
    shop.ctl("apply", by=0)
    shop.wait_reason("worker", "restart_limit")
    shop.kill("audit")
    shop.wait_reason("audit", "waiting")


def main() -> None:
    """Run it and save what is left of it; or write its answers anew."""
    if "--answers" in sys.argv:
        write_answers()
        return
    shop = Shop()
    try:
        shop.start()
        happen(shop)
        shop.save()
    finally:
        shop.clean_up()


def write_answers() -> None:
    """Ask every question of incident-answers/ again."""
    for path in sorted((FOLDER / "incident-answers").iterdir()):
        question = path.read_text().partition("\n")[0]
        path.write_text(f"{question}\n{answer(question)}")


def answer(question: str) -> str:
    """What a command line such as `$ circle-replay incident.db --verify` prints, and how it ends if not well."""
    import io
    import shlex
    from contextlib import redirect_stderr, redirect_stdout

    from circle_replay import cli

    program, *arguments = shlex.split(question.removeprefix("$ "))
    assert program == "circle-replay"
    out = io.StringIO()
    before = Path.cwd()
    os.chdir(FOLDER)
    try:
        with redirect_stdout(out), redirect_stderr(out):
            status = cli.run(arguments)
    finally:
        os.chdir(before)
    return out.getvalue() + (f"exit status {status}\n" if status else "")


if __name__ == "__main__":
    main()
