"""show, plan, apply: what they show, and their exit statuses."""

import json
from pathlib import Path

import msgspec.json
import pytest
import tomli

from circlectl import declaration
from registry.config import load
from registry.core import definition as core

FILE = r"""
[[service]]
name = "db"
cmd = ["postgres", "-D", "/data"]
depends_on = ["cache"]
health_check = "tcp:127.0.0.1:5432"

[[service]]
name = "cache"
cmd = ["redis-server"]

[[service]]
name = "migrate"
cmd = ["./manage", "migrate"]
oneshot = true

[[service]]
name = "silent"
cmd = ["true"]
logs = false
restart = "Never"
reload = { cmd = ["./tell", "it"] }
health_check = [
    "tcp:127.0.0.1:1",
    "tcp:127.0.0.1:2",
    { target = "http+unix:/run/x:/", name = "third", on_failure = "report", signal = "ABRT" },
]

[[service]]
name = "web"
instances = 2
tags = ["front"]
cmd = ["gunicorn", "--name", "a \"b\" \\ \u00fc \u001b \U0001f600", "{instance}"]
cwd = "srv/web"
user = "www-data"
group = "www-data"
groups = []
umask = "0077"
env = { MODE = "live", "a.b" = "s3cret", WORKER = "{instance}" }
env_file = "etc/web.env"
depends_on = { db = "healthy", migrate = "completed", cache = { condition = "started", restart = true } }
sockets = { http = "127.0.0.1:808{instance}", admin = "unix:/run/x{instance}.sock" }
ready = "notify"
start_timeout = 90.25
stop = { signal = "INT", timeout = "2m" }
reload = "HUP"
restart = { policy = "OnFailure", delay = "1ms", delay_max = "3d", limit = 20, within = "10m", memory_max = "1GiB" }
limits = { nofile = 65536, core = "unlimited", stack = "8MiB", memory_max = "512MB", cpu_max = 1.5, pids_max = 200 }
health_check = { target = "http://127.0.0.1:8080/", interval = "1500ms", timeout = 0.0004, failures = 1 }
success_exit_codes = [0, 3, "SIGTERM"]
autostart = false
essential = true
logs = { dir = "log", size_max = 4097, files_max = 3 }
nice = 5
oom_score_adj = -1
no_new_privs = true
capabilities = ["CAP_NET_BIND_SERVICE"]
"""


def _as_json(value):
    return json.loads(msgspec.json.encode(value))


@pytest.fixture
def declared(tmp_path: Path):
    """The definitions of a file with these services, by name, as the socket tells them."""

    def read(text: str = FILE) -> dict[str, dict]:
        file = tmp_path / "services.toml"
        file.write_text(text)
        return {each.name: _as_json(each) for each in load(file).definitions}

    return read


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("width", [60, 100])
def test_what_is_shown_is_read_as_it_was_declared(declared, everything, width) -> None:
    # but for values of variables, which nobody shows, and `ready`, where everything says what it comes to
    before = declared()
    shown = {
        name: "\n".join(declaration.lines(each, everything=everything, width=width))
        for name, each in before.items()
        if name != "web@2"
    }
    again = declared("\n\n".join(shown.values()))
    one = again.pop("web")
    told = {"name": "web@1", "instance_of": "web", "instance": 1}
    values = {"env_digest": before["web@1"]["env_digest"]}
    assert one | told | values == before["web@1"]
    for name in again:
        same = {"position": before[name]["position"], "ready": before[name]["ready"]}
        assert again[name] | same == before[name]


def test_only_what_differs_from_the_defaults_is_shown(declared) -> None:
    db, cache, migrate, silent, *_ = (declaration.declared(each) for each in declared().values())
    assert list(db) == ["name", "cmd", "cwd", "depends_on", "health_check", "logs"]
    assert db["depends_on"] == ["cache"]
    assert db["health_check"] == "tcp:127.0.0.1:5432"
    assert list(cache) == ["name", "cmd", "cwd", "logs"]
    assert migrate["oneshot"] is True
    assert "restart" not in migrate
    assert silent["health_check"][:2] == ["tcp:127.0.0.1:1", "tcp:127.0.0.1:2"]
    assert (silent["restart"], silent["logs"]) == ("Never", False)


def test_everything_is_every_key_that_has_a_value(declared) -> None:
    shown = declaration.declared(declared()["db"], everything=True)
    assert shown["restart"] == {"policy": "Always", "delay": "500ms", "delay_max": "30s"}
    assert (shown["umask"], shown["ready"], shown["tags"]) == ("022", "health", [])
    assert shown["success_exit_codes"] == [0]


def test_the_defaults_and_the_keys_are_those_of_the_registry() -> None:
    plain = _as_json(core.Definition(name="", cmd=()))
    assert plain["restart"] == declaration.RESTART
    assert plain["stop"] == declaration.STOP
    assert {key: plain[key] for key in declaration.PLAIN} == declaration.PLAIN
    assert _as_json(core.Logs(dir="")) == declaration.LOGS | {"dir": ""}
    check = _as_json(core.Check(name="", target=""))
    assert check == declaration.CHECK | {"name": "", "target": ""}
    elsewhere = {"cwd", "env_names", "depends_on", "sockets", "checks", "stop", "reload"}
    elsewhere |= {"restart", "logs", "limits", "name", "cmd"}
    silent = {"position", "env_digest", "instance_of", "instance"}
    assert plain.keys() == declaration.PLAIN.keys() | elsewhere | silent


def test_no_character_that_a_terminal_obeys_is_shown_raw(declared) -> None:
    text = "\n".join(declaration.lines(declared()["web@1"]))
    assert all(line.isprintable() for line in text.splitlines())
    assert "s3cret" not in text
    assert tomli.loads(text)["service"][0]["env"]["a.b"] == "***"


def test_show_begins_with_what_it_is_the_definition_of(fake, circlectl, declared) -> None:
    answer = {"name": "web@1", "run": None, "digest": "1f2e"}
    fake.answers["show"] = [answer | {"definition": declared()["web@1"]}]
    ended = circlectl("show", "web@1")
    first, second, third, *rest = ended.out.splitlines()
    assert first == "# web@1, as declared now, digest 1f2e"
    assert second == '# one of the instances of web: "{instance}" is written out as 1'
    assert (third, ended.status) == ("[[service]]", 0)
    assert "[service.env]" not in rest
    assert fake.requests == [{"action": "show", "service": "web@1"}]


@pytest.mark.parametrize("run", [7, 0, -1])
def test_show_of_a_run_asks_for_it(fake, circlectl, declared, run) -> None:
    fake.answers["show"] = [
        {"name": "db", "run": 7, "digest": "1f2e", "definition": declared()["db"]}
    ]
    assert circlectl("show", "db", "--run", str(run)).out.startswith("# db, run 7, digest 1f2e\n")
    assert fake.requests == [{"action": "show", "service": "db", "run": run}]


def test_show_as_json_is_the_answer(fake, circlectl, declared) -> None:
    answer = {"name": "db", "run": None, "digest": "1f2e", "definition": declared()["db"]}
    fake.answers["show"] = [answer]
    assert json.loads(circlectl("show", "db", "--json").out) == answer


def test_show_of_a_run_that_nobody_knows_is_a_failure(fake, circlectl, refusal) -> None:
    fake.answers["show"] = [refusal("no_run", "run: service 'db' has no run 9")]
    assert circlectl("show", "db", "--run", "9") == (
        1,
        "",
        "circlectl: run: service 'db' has no run 9\n",
    )


def change(service: str, kind: str, keys=(), anew=(), restarts=None) -> dict:
    return {
        "service": service,
        "change": kind,
        "keys": list(keys),
        "restart_keys": list(anew),
        "restarts": restarts,
    }


ANEW = "its run ends, another begins"
PLAN = {
    "changes": [
        change("cache", "add"),
        change("web", "change", ["cmd", "env"], ["cmd", "env"], ANEW),
        change("db", "change", ["health_check"]),
        change("mail", "change", ["cmd", "stop"], ["cmd"], ANEW),
        change("api", "change", restarts="follows db"),
        change("job", "change", ["cmd"], restarts="it had failed, and is started"),
        change("old", "remove", restarts="its run ends"),
        change("older", "remove"),
    ],
    "later": ["registry.socket", "journal.path"],
}
SAID = """\
+ cache
~ web    cmd, env: its run ends, another begins
~ db     health_check: in place
~ mail   cmd: its run ends, another begins; stop: in place
~ api    follows db
~ job    cmd: it had failed, and is started
- old    its run ends
- older
later: registry.socket, journal.path: for the next start of the registry
"""
NOTHING: dict[str, list[str]] = {"changes": [], "later": []}


@pytest.mark.parametrize("command", ["plan", "apply"])
def test_a_plan_is_a_line_a_service(fake, circlectl, command) -> None:
    fake.answers[command] = [PLAN]
    assert circlectl(command) == (0, SAID, "")
    assert json.loads(circlectl(command, "--json").out) == PLAN


@pytest.mark.parametrize(
    ("command", "said"), [("plan", "nothing would change\n"), ("apply", "nothing is changed\n")]
)
def test_that_nothing_changes_is_said(fake, circlectl, command, said) -> None:
    fake.answers[command] = [NOTHING]
    assert circlectl(command) == (0, said, "")


@pytest.mark.parametrize(
    ("plan", "status"),
    [
        (NOTHING, 0),
        (PLAN, 2),
        (NOTHING | {"later": ["journal.path"]}, 2),
        (NOTHING | {"settings": ["hook"]}, 2),
    ],
)
def test_the_detailed_exit_status_tells_whether_something_would_change(
    fake, circlectl, plan, status
) -> None:
    fake.answers["plan"] = [plan]
    assert circlectl("plan").status == 0
    assert circlectl("plan", "--detailed-exitcode").status == status
    assert circlectl("plan", "--detailed-exitcode", "--json").status == status


@pytest.mark.parametrize("command", ["plan", "apply"])
def test_settings_that_are_in_force_at_once_are_lines_too(fake, circlectl, command) -> None:
    settings = ["access.operate", "hook", "registry.on_sigterm"]
    fake.answers[command] = [NOTHING | {"settings": settings}]
    assert circlectl(command).out.splitlines() == [
        "~ [access] operate: in place",
        "~ [[hook]]: in place",
        "~ [registry] on_sigterm: in place",
    ]


@pytest.mark.parametrize("command", ["plan", "apply"])
def test_what_the_machine_lacks_is_a_warning(fake, circlectl, command) -> None:
    answer = PLAN | {"warnings": ["web  user: this machine has no user 'zork\033'"]}
    fake.answers[command] = [answer]
    assert circlectl(command) == (0, SAID, "! web  user: this machine has no user 'zork\\x1b'\n")
    ended = circlectl(command, "--json")
    assert (json.loads(ended.out), ended.err) == (answer, "")


def test_an_apply_with_wait_tells_how_each_service_is_then(fake, circlectl, record) -> None:
    services = [
        record("cache", since="2036-01-02T03:04:05Z"),
        record("web"),
        record("job", status="Stopped", reason="completed", pid=None),
        record("rare", status="Stopped", reason="defined", wanted="down", pid=None, since=None),
    ]
    failed = record("db", status="Failed", reason="program_missing", pid=None)
    plan = {"changes": [change("cache", "add")], "later": []}
    fake.answers["apply"] = [
        plan | {"services": services},
        plan | {"services": [*services, failed]},
        plan | {"services": [failed]},
    ]
    ended = circlectl("apply", "--wait")
    first, cache, *rest = ended.out.splitlines()
    assert (ended.status, first) == (0, "+ cache")
    assert cache.startswith("cache: Running, PID 4711, after ")
    assert rest == [
        "web: already Running, PID 4711",
        "job: already Stopped, completed",
        "rare: already Stopped, never asked to run",
    ]
    ended = circlectl("apply", "--wait")
    assert ended.status == 1
    assert ended.out.endswith("db: Failed, program missing\n")
    assert circlectl("apply", "--wait", "--json").status == 1


def test_an_apply_that_does_not_settle_tells_what_was_done_and_who_is_late(
    fake, circlectl, record, refusal
) -> None:
    late = record("db", status="Restarting", reason="crash_looping", pid=None)
    data = {"plan": PLAN | {"warnings": ["odd"]}, "services": [late]}
    message = "applied, and not settled within 5 s"
    fake.answers["apply"] = [refusal("timed_out", message, data)]
    ended = circlectl("apply", "--timeout", "5s")
    assert ended == (1, f"{SAID}db: Restarting, crash-looping\n", f"! odd\ncirclectl: {message}\n")
    shown = json.loads(circlectl("apply", "--wait", "--json").err)["error"]
    assert (shown["code"], shown["data"]) == ("timed_out", data)


@pytest.mark.parametrize("command", ["plan", "apply"])
def test_a_wrong_configuration_is_told_with_every_complaint(
    fake, circlectl, refusal, command
) -> None:
    told = ["services.toml:3: unknown key 'a'", "services.toml:9: unknown key '\033'"]
    fake.answers[command] = [refusal("invalid_config", "one (and 1 more)", told)]
    assert circlectl(command) == (78, "", f"{told[0]}\nservices.toml:9: unknown key '\\x1b'\n")
    ended = circlectl(command, "--json")
    error = {"code": "invalid_config", "message": "one (and 1 more)", "data": told}
    assert (ended.status, json.loads(ended.err)) == (78, {"error": error})


def test_an_apply_that_the_registry_refuses_is_one_sentence(fake, circlectl, refusal) -> None:
    fake.answers["apply"] = [refusal("forbidden", "apply takes an admin")]
    assert circlectl("apply") == (77, "", "circlectl: apply takes an admin\n")


@pytest.mark.parametrize(("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_the_signs_are_coloured_on_a_terminal(
    fake, circlectl, screen_at, environment, coloured
) -> None:
    screen_at(80, **environment)
    fake.answers["plan"] = [PLAN]
    out = circlectl("plan").out
    assert ("\033[32m+\033[0m cache" in out) is coloured
    assert ("\033[31m-\033[0m old" in out) is coloured
    assert ("\033[33m~\033[0m web" in out) is coloured


def test_a_long_plan_is_wrapped_behind_its_names(fake, circlectl, screen_at) -> None:
    screen_at(60, NO_COLOR="1")
    keys = ["cmd", "cwd", "env", "limits", "sockets", "user", "group", "umask", "nice"]
    fake.answers["plan"] = [{"changes": [change("web", "change", keys, keys, ANEW)], "later": []}]
    assert circlectl("plan").out.splitlines() == [
        "~ web  cmd, cwd, env, limits, sockets, user, group, umask,",
        "       nice: its run ends, another begins",
    ]
