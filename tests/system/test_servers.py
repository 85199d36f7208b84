"""Real servers, written for systemd or none: redis, PostgreSQL, nginx and gunicorn run here unchanged."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.platform("linux"), pytest.mark.timeout(60)]

POSTGRES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/usr/bin"))
"""Debian keeps the server's programs of each version apart, and none of them in PATH."""
USER = "postgres" if os.geteuid() == 0 else None
"""Whom it runs as: it refuses root."""


def needs(package: str, program: str) -> pytest.MarkDecorator:
    """Skip where a server is not installed; in CI that is a failure."""
    missing = shutil.which(program) is None
    return pytest.mark.skipif(
        missing, reason=f"needs {Path(program).name}: apt-get install {package}"
    )


needs_wrk = needs("wrk", "wrk")


def service(name: str, keys: str) -> str:
    return f'[[service]]\nname = "{name}"\n{keys}\n'


def get(port: int, path: str = "/") -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status == 200
        return answer.read().decode()


@contextlib.contextmanager
def load(box, port: int) -> Iterator[None]:
    """Requests all the time, each on a connection of its own, all of which have to be answered well."""
    command = ["wrk", "-t1", "-c8", "-d60s", "--timeout", "10s", "-H", "Connection: close"]
    out = box.folder / "wrk"
    with out.open("w") as file:
        wrk = subprocess.Popen([*command, f"http://127.0.0.1:{port}/"], stdout=file)
    try:
        yield
    finally:
        wrk.send_signal(signal.SIGINT)  # it ends, and tells what it saw
        wrk.wait(15)
    told = out.read_text()
    assert " requests in " in told
    assert " 0 requests in " not in told
    assert "Socket errors" not in told, told
    assert "Non-2xx" not in told, told


# --- redis ----------------------------------------------------------------------------------------

REDIS = """cmd = ["sh", "-c", "read line <gate; exec redis-server redis.conf"]
ready = "notify"
"""
"""It begins when somebody has written to `gate`, in the same process."""


@pytest.fixture
def redis(box) -> Path:
    """A redis that waits at its gate; its socket to be."""
    os.mkfifo(box.folder / "gate")
    sock = box.folder / "redis.sock"
    settings = f'port 0\nunixsocket {sock}\nsave ""\nsupervised systemd\ndir {box.folder}\n'
    (box.folder / "redis.conf").write_text(settings)
    box.configure(service("redis", REDIS))
    box.start()
    box.wait_status("redis", "Starting")
    return sock


def ping(sock: Path) -> str:
    asked = ["redis-cli", "-s", str(sock), "ping"]
    return subprocess.run(asked, check=False, capture_output=True, text=True).stdout.strip()


@needs("redis-server", "redis-server")
def test_redis_is_running_when_it_says_so(box, redis):
    (box.folder / "gate").write_text("go\n")
    box.wait_status("redis", "Running", reason="ready")
    assert ping(redis) == "PONG"
    status = box.wait_for(lambda: box.data("status", service="redis")["status_text"], "STATUS")
    assert status == "Ready to accept connections"
    spawned, ready = box.last("redis", "spawned"), box.last("redis", "became_ready")
    assert (spawned["dest"], ready["source"]) == ("Starting", "Starting")
    box.data("stop", service="redis", wait=True)
    assert box.data("status", service="redis")["last_exit"]["exit_code"] == 0


@needs("redis-server", "redis-server")
def test_redis_that_gets_ready_while_the_registry_is_down_is_found_running(box, redis):
    pid = box.service("redis")["pid"]
    box.kill()
    (box.folder / "gate").write_text("go\n")
    box.wait_for(lambda: ping(redis) == "PONG", "redis answers")  # it does so only after READY=1
    box.start()
    record = box.wait_status("redis", "Running")
    assert (record["pid"], record["run"], record["restarts"]) == (pid, 1, 0)
    assert "start_timed_out" not in box.types("redis")
    box.verify()


# --- PostgreSQL -----------------------------------------------------------------------------------

APP = """
import signal, subprocess, sys
from pathlib import Path

def sql(text):
    subprocess.run([*sys.argv[2:], "-c", text], check=True)

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
sql(f"insert into deeds (deed) values ('{sys.argv[1]} begins')")
Path(sys.argv[1]).touch()
signal.sigwait([signal.SIGTERM])
sql(f"insert into deeds (deed) values ('{sys.argv[1]} ends')")
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    """The folder of a new database, whose files are its user's."""
    initdb = [str(POSTGRES / "initdb"), "-U", "postgres", "-A", "trust", "-N", "--no-instructions"]
    with tempfile.TemporaryDirectory(prefix="cr-", dir="/tmp") as folder:
        if USER is not None:
            shutil.chown(folder, USER)
        command = [*initdb, "--no-locale", "--encoding=UTF8", "-D", folder]
        subprocess.run(command, check=True, user=USER, cwd=folder, stdout=subprocess.DEVNULL)
        with (Path(folder) / "postgresql.conf").open("a") as file:
            file.write("listen_addresses = ''\nfsync = off\nunix_socket_directories = '.'\n")
            # in its folder: one that is killed leaves it in /dev/shm else
            file.write("dynamic_shared_memory_type = mmap\n")
        yield Path(folder)


@pytest.fixture
def postgres(box, cluster) -> list[str]:
    """A database with a migration, a service that works on it, and one that is restarted with it."""
    data = box.folder / "db"
    subprocess.run(["cp", "-a", cluster, data], check=True)
    box.folder.chmod(0o711)
    psql = [str(POSTGRES / "psql"), "-h", str(data), "-U", "postgres", "-qAt"]
    psql += ["-v", "ON_ERROR_STOP=1"]
    create = json.dumps([*psql, "-c", "create table deeds (id serial, deed text)"])
    app = json.loads(box.python("app", APP))
    box.configure(
        service(
            "app",
            f"cmd = {json.dumps([*app, 'app', *psql])}\n"
            'depends_on = { db = "ready", migrate = "completed" }',
        )
        + service(
            "follower",
            f"cmd = {json.dumps([*app, 'follower', *psql])}\n"
            'depends_on = { db = { condition = "ready", restart = true }, migrate = "completed" }',
        )
        + service("migrate", f'cmd = {create}\noneshot = true\ndepends_on = ["db"]')
        + service(
            "db",
            f'cmd = ["{POSTGRES}/postgres", "-D", "db"]\nready = "notify"\nstop.signal = "SIGINT"\n'
            + (f'user = "{USER}"' if USER is not None else ""),
        )
    )
    return psql


def deeds(psql: list[str]) -> list[str]:
    asked = [*psql, "-c", "select deed from deeds order by id"]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.splitlines()


@pytest.fixture
def migrated(box, postgres) -> list[str]:
    """All of it up; how to ask the database."""
    box.start()
    for name in ("app", "follower"):
        box.wait_status(name, "Running")
        box.wait_for((box.folder / name).exists, f"{name} has written to the table")
    return postgres


@needs("postgresql", str(POSTGRES / "postgres"))
def test_a_service_on_postgresql_starts_after_its_migration(box, migrated):
    assert sorted(deeds(migrated)) == ["app begins", "follower begins"]
    db, migrate, app = (box.events(name) for name in ("db", "migrate", "app"))
    assert box.service("migrate")["reason"] == "completed"
    order = [
        next(event["seq"] for event in events if event["type"] == type)
        for events, type in (
            (db, "spawned"),
            (db, "became_ready"),
            (migrate, "spawned"),
            (migrate, "exited"),
            (app, "spawned"),
        )
    ]
    assert order == sorted(order)


@needs("postgresql", str(POSTGRES / "postgres"))
def test_a_restart_of_postgresql_restarts_only_who_follows_it(box, migrated):
    before = {name: box.service(name) for name in ("app", "follower", "migrate", "db")}
    box.data("restart", service="db", wait=True)
    follower = box.wait_status("follower", "Running", run=2)
    box.wait_for(lambda: len(deeds(migrated)) == 4, "the follower has written again")
    assert deeds(migrated)[2:] == ["follower ends", "follower begins"]
    assert follower["pid"] != before["follower"]["pid"]
    assert box.service("db")["pid"] != before["db"]["pid"]
    assert box.service("app") == before["app"]
    assert box.service("migrate") == before["migrate"], "a oneshot does not run again for that"
    ready = box.last("db", "became_ready")["seq"]
    assert ready < box.last("follower", "exited")["seq"] < box.last("follower", "spawned")["seq"]


@needs("postgresql", str(POSTGRES / "postgres"))
def test_everything_stops_before_the_postgresql_it_needs(box, migrated):
    """Each writes to the database at its end, so it exits with 0 only where that still runs."""
    box.data("stop", service="all", wait=True)
    ends = {name: box.last(name, "exited") for name in ("app", "follower", "db")}
    assert {name: end["data"]["exit_code"] for name, end in ends.items()} == dict.fromkeys(ends, 0)
    assert max(ends["app"]["seq"], ends["follower"]["seq"]) < ends["db"]["seq"]
    assert box.service("db")["status"] == "Stopped"
    assert "received fast shutdown request" in box.log("db"), "by SIGINT, not SIGTERM"
    assert "database system is shut down" in box.log("db")
    box.verify()


# --- nginx ----------------------------------------------------------------------------------------

NGINX = """
daemon off;
pid nginx.pid;
error_log stderr;
{user}
events {{}}
http {{
    access_log off;
    client_body_temp_path temp;
    proxy_temp_path temp;
    fastcgi_temp_path temp;
    uwsgi_temp_path temp;
    scgi_temp_path temp;
    server {{
        listen 127.0.0.1:{port};
        return 200 "{content}";
    }}
}}
"""


class Nginx:
    """An nginx in the folder of a registry."""

    def __init__(self, box, port: int) -> None:
        self.box = box
        self.port = port
        self.command = ["nginx", "-p", str(box.folder), "-c", "nginx.conf", "-e", "stderr"]

    def write(self, content: str) -> None:
        """Have it answer this from its next reload on."""
        user = "user root;" if os.geteuid() == 0 else ""
        text = NGINX.format(port=self.port, user=user, content=content)
        (self.box.folder / "nginx.conf").write_text(text)

    def start(self, reload: object) -> int:
        """Under a registry, with a check; its pid."""
        check = f'target = "http://127.0.0.1:{self.port}/", interval = "100ms"'
        keys = f"cmd = {json.dumps(self.command)}\nreload = {json.dumps(reload)}\n"
        self.box.configure(service("web", f"{keys}health_check = {{ {check} }}"))
        self.box.start()
        return int(self.box.wait_status("web", "Running", health="healthy")["pid"])

    def wait_content(self, content: str) -> None:
        self.box.wait_for(lambda: get(self.port) == content, f"it answers {content}")


@pytest.fixture
def nginx(box, free_port) -> Nginx:
    """One that answers `one`, to be started."""
    made = Nginx(box, free_port)
    made.write("one")
    return made


@needs_wrk
@needs("nginx-light", "nginx")
def test_nginx_reloads_by_signal_and_loses_no_request(box, nginx):
    pid = nginx.start("SIGHUP")
    with load(box, nginx.port):
        for content in ("two", "three"):
            nginx.write(content)
            box.data("reload", service="web")
            nginx.wait_content(content)
    record = box.service("web")
    assert (record["pid"], record["run"], record["health"]) == (pid, 1, "healthy")
    asked, done = box.last("web", "reload_requested"), box.last("web", "request_done")
    assert (done["data"]["request"], done["data"].get("error")) == (asked["seq"], None)


@needs("nginx-light", "nginx")
def test_nginx_reloads_by_its_own_command_and_tells_what_is_wrong(box, nginx):
    pid = nginx.start([*nginx.command, "-s", "reload"])
    nginx.write("two")
    box.data("reload", service="web")
    nginx.wait_content("two")
    (box.folder / "nginx.conf").write_text("no such words;")
    error = box.ask("reload", service="web")["error"]
    assert error["code"] == "request_failed"
    assert error["message"].startswith("web: nginx ended with 1")
    nginx.wait_content("two")  # a worker of before may answer until it has ended
    assert box.wait_status("web", "Running", health="healthy")["pid"] == pid


@needs("nginx-light", "nginx")
def test_nginx_whose_main_process_was_killed_serves_again(box, nginx):
    """Its workers outlive it, hold its port, and have no environment any more by which to find them."""
    pid = nginx.start("SIGHUP")
    os.kill(pid, signal.SIGKILL)
    record = box.wait_status("web", "Running", health="healthy", run=2)
    assert (record["restarts"], get(nginx.port)) == (1, "one")
    workers = [each for each in box.left() if "worker" in title(each)]
    assert len(workers) == 1, "those of the first run are gone"


def title(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


# --- gunicorn -------------------------------------------------------------------------------------

WSGI = """
import os

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getppid()).encode()]
"""


@needs_wrk
@needs("gunicorn", "gunicorn")
def test_gunicorn_is_restarted_under_load_and_no_request_fails(box, free_port):
    """By restarts, by a crash of the registry, and by its upgrade: each followed by another restart.

    One worker, that has answered: gunicorn loses a SIGTERM that reaches a worker before it is set up.
    """
    box.program("wsgi", WSGI)
    box.configure(
        service(
            "app",
            'cmd = ["gunicorn", "wsgi:app"]\nready = "notify"\n'
            f'sockets = {{ http = "127.0.0.1:{free_port}" }}',
        )
    )

    def wait_answered(pid: int) -> None:
        box.wait_for(lambda: get(free_port) == str(pid), "the present run answers")

    def restart() -> None:
        (record,) = box.data("restart", service="app", wait=True)
        wait_answered(record["pid"])

    box.start()
    wait_answered(box.wait_status("app", "Running", reason="ready")["pid"])
    with load(box, free_port):
        restart()
        restart()
        before = box.service("app")["pid"]
        box.kill()
        box.start()
        assert box.service("app")["pid"] == before
        restart()
        box.upgrade()
        restart()
    assert box.service("app")["run"] == 5
    ends = [event["data"]["exit_code"] for event in box.events("app", "exited")]
    assert ends == [0, 0, 0, 0], "each ended by itself"
    box.verify()
