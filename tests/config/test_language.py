"""The language of services.toml: what each key comes to, in its short form and as a table."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from registry.config import (
    AccessSettings,
    Config,
    Durability,
    Hook,
    JournalSettings,
    RegistrySettings,
    load,
    services,
)
from registry.core.definition import (
    Check,
    Definition,
    Limits,
    Logs,
    OnFailure,
    Policy,
    Ready,
    Reload,
    Restart,
    Socket,
    Stop,
)

Read = Callable[[str], Config]

SERVICE = '[[service]]\nname = "web"\ncmd = ["web"]\n'


@pytest.fixture
def one(read: Read) -> Callable[[str], Definition]:
    """The definition of a service that has these keys, too."""
    return lambda keys: read(SERVICE + keys).definitions[0]


def test_the_file_of_the_project_s_first_day_is_valid(read: Read, root: Path):
    config = read(
        """
        [[service]]
        name = "auth-service"
        cmd = ["./auth-service"]
        restart = "Always"
        health_check = "unix:/tmp/auth-service.sock"

        [[service]]
        name = "plugin-manager"
        cmd = ["./plugin-manager"]
        restart = "OnFailure"
        health_check = "http://localhost:8000/health"
        """
    )
    logs = Logs(dir=f"{root}/var/log")
    plain = Definition(name="auth-service", cmd=(f"{root}/auth-service",), cwd=str(root), logs=logs)
    assert config.definitions == (
        msgspec.structs.replace(plain, checks=(Check("unix", "unix:/tmp/auth-service.sock"),)),
        msgspec.structs.replace(
            plain,
            name="plugin-manager",
            cmd=(f"{root}/plugin-manager",),
            position=1,
            restart=Restart(policy=Policy.ON_FAILURE),
            checks=(Check("http", "http://localhost:8000/health"),),
        ),
    )


def test_an_empty_file_is_a_registry_without_services(read: Read, root: Path):
    config = read("")
    assert config.file == Path("etc/services.toml")
    assert config.root == root
    assert config.registry == RegistrySettings("/tmp/service-registry.sock", 0o600, None)
    assert config.journal == JournalSettings(f"{root}/var/registry.db", Durability.FULL)
    assert (config.definitions, config.environments) == ((), {})


def test_registry_and_journal_are_set_by_their_tables(read: Read, root: Path):
    config = read(
        '[registry]\nsocket = "run/r.sock"\nsocket_mode = "0660"\nsocket_group = 20\nroot = "../srv"\n'
        '[journal]\npath = "j.db"\ndurability = "normal"\n'
    )
    top = f"{root}/etc/../srv"
    assert str(config.root) == top
    assert config.registry == RegistrySettings(f"{top}/run/r.sock", 0o660, "20")
    assert config.journal == JournalSettings(f"{top}/j.db", Durability.NORMAL)


def test_the_root_of_a_file_that_is_in_no_etc_is_its_own_folder(root: Path):
    (root / "my.toml").write_text(SERVICE)
    assert load(Path("etc/../my.toml")).root == root


@pytest.mark.parametrize(
    ("keys", "field", "value"),
    [
        ('restart = "Never"', "restart", Restart(Policy.NEVER)),
        ('restart = { policy = "Never" }', "restart", Restart(Policy.NEVER)),
        ("restart = { delay = 0, delay_max = 0 }", "restart", Restart(delay_s=0, delay_max_s=0)),
        ("restart = { delay_max = 0 }", "restart", Restart(delay_s=0, delay_max_s=0)),
        ('restart.delay = "1m"', "restart", Restart(delay_s=60, delay_max_s=60)),
        (
            'restart = { limit = 20, within = "10m" }',
            "restart",
            Restart(limit=20, within_s=600),
        ),
        ('stop = "1m"', "stop", Stop(timeout_s=60)),
        ("stop = 0", "stop", Stop(timeout_s=0)),
        ('stop = { signal = "INT", timeout = 2.5 }', "stop", Stop("SIGINT", 2.5)),
        ('umask = "077"', "umask", 0o077),
        ("autostart = false", "autostart", False),
        ('start_timeout = "500ms"', "start_timeout_s", 0.5),
        ('start_timeout = "90d"', "start_timeout_s", 90 * 86400),
        ("user = 1000\ngroup = 'staff'", "user", "1000"),
        ("group = 'staff'", "group", "staff"),
        ("cwd = '/srv'", "cwd", "/srv"),
        ("success_exit_codes = []", "success_exit_codes", (0,)),
        (
            'success_exit_codes = [3, "SIGTERM", "INT", 3]',
            "success_exit_codes",
            (0, 3, -signal.SIGTERM, -signal.SIGINT),
        ),
        ("logs = false", "logs", None),
        ("logs = { enabled = false }", "logs", None),
        (
            "logs = { dir = '/l', size_max = '1.5MB', files_max = 1 }",
            "logs",
            Logs("/l", 1500000, 1),
        ),
        ("logs = { dir = '/l', size_max = '4KiB' }", "logs", Logs("/l", 4096)),
        ("logs = { dir = '/l', size_max = 5000 }", "logs", Logs("/l", 5000)),
        ('ready = "notify"', "ready", Ready.NOTIFY),
        ('ready = "health"\nhealth_check = "cmd:x"', "ready", Ready.HEALTH),
        ("", "ready", None),
        ("oneshot = true", "oneshot", True),
        ("oneshot = true", "restart", Restart(Policy.NEVER)),
        ('oneshot = true\nrestart.delay = "1s"', "restart", Restart(Policy.NEVER, 1.0)),
        ('oneshot = true\nrestart = "OnFailure"', "restart", Restart(Policy.ON_FAILURE)),
        ('oneshot = true\nready = "spawn"', "ready", Ready.SPAWN),
        ('restart.memory_max = "1GB"', "restart", Restart(memory_max=10**9)),
        ('tags = ["front", "eu.1"]', "tags", ("front", "eu.1")),
        (
            'sockets = { http = "127.0.0.1:8080", six = "[::1]:443", name = "my-host.example:1", admin = "unix:/s" }',
            "sockets",
            (
                Socket("http", "127.0.0.1:8080"),
                Socket("six", "[::1]:443"),
                Socket("name", "my-host.example:1"),
                Socket("admin", "unix:/s"),
            ),
        ),
        ('reload = "HUP"', "reload", Reload("SIGHUP")),
        ('reload = { signal = "SIGUSR1" }', "reload", Reload("SIGUSR1")),
        ('reload = ["nginx", "-s", "reload"]', "reload", Reload(cmd=("nginx", "-s", "reload"))),
        ('reload = { cmd = ["/bin/r"] }', "reload", Reload(cmd=("/bin/r",))),
        (
            'limits = { nofile = 65536, core = "unlimited", stack = "8MiB", data = 0, cpu = "5m", '
            'memory_max = "512MB", cpu_max = 1.5, pids_max = 200 }',
            "limits",
            Limits(
                {"nofile": 65536, "core": None, "stack": 8 * 2**20, "data": 0, "cpu": 300},
                512_000_000,
                1.5,
                200,
            ),
        ),
        ('limits = { memory_max = "unlimited", cpu_max = 2 }', "limits", Limits(cpu_max=2.0)),
        ("groups = []", "groups", ()),
        ('groups = ["adm", 5]', "groups", ("adm", "5")),
        ("nice = -20", "nice", -20),
        ("oom_score_adj = 1000", "oom_score_adj", 1000),
        ("no_new_privs = true", "no_new_privs", True),
        ("capabilities = []", "capabilities", ()),
        ('capabilities = ["CAP_NET_RAW"]', "capabilities", ("CAP_NET_RAW",)),
    ],
)
def test_a_key_comes_to(one: Callable[[str], Definition], keys: str, field: str, value: object):
    assert getattr(one(keys), field) == value


def test_relative_paths_start_at_the_root_and_a_bare_program_stays_bare(read: Read, root: Path):
    keys = 'cwd = "a/b"\nenv_file = "./e"\nlogs.dir = "l"\n'
    first, second = read(
        SERVICE + keys + '[[service]]\nname = "b"\ncmd = ["bin/b", "./x"]\nlogs = true\n'
    ).definitions
    assert (first.cmd, first.cwd, first.env_file) == (("web",), f"{root}/a/b", f"{root}/e")
    assert first.logs == Logs(f"{root}/l")
    assert (second.cmd, second.cwd) == ((f"{root}/bin/b", "./x"), str(root))
    assert second.logs == Logs(f"{root}/var/log")


@pytest.mark.parametrize(
    ("target", "stored"),
    [
        ("unix:/run/a.sock", "unix:/run/a.sock"),
        ("unix:run/a.sock", "unix:{root}/run/a.sock"),
        ("https://[::1]:8443/h?x=1", "https://[::1]:8443/h?x=1"),
        ("heartbeat:", "heartbeat:"),
        ("cmd:test  -s 'a b'", "cmd:test  -s 'a b'"),
        ("cmd:./bin/check 'a b' c", "cmd:{root}/bin/check 'a b' c"),
        ("cmd:/bin/check  x", "cmd:/bin/check  x"),
        ("tcp:127.0.0.1:6379", "tcp:127.0.0.1:6379"),
        ("tcp:[::1]:80", "tcp:[::1]:80"),
        ("tcp:db.internal:5432", "tcp:db.internal:5432"),
        ("http+unix:/a.sock:/", "http+unix:/a.sock:/"),
        ("http+unix:run/a.sock:/h?u=x:/y", "http+unix:{root}/run/a.sock:/h?u=x:/y"),
    ],
)
def test_a_target_is_kept_with_its_paths_absolute(
    one: Callable[[str], Definition], root: Path, target: str, stored: str
):
    (check,) = one(f'health_check = "{target}"').checks
    assert check.target == stored.format(root=root)


def test_a_check_has_all_its_keys(one: Callable[[str], Definition]):
    keys = (
        'health_check = { name = "n", target = "heartbeat:", interval = "1s", timeout = 2, '
        'failures = 4, successes = 5, on_failure = "report", signal = "ABRT" }'
    )
    assert one(keys).checks == (
        Check("n", "heartbeat:", 1, 2, 4, 5, OnFailure.REPORT, signal="SIGABRT"),
    )


def test_checks_without_a_name_are_called_by_their_scheme(one: Callable[[str], Definition]):
    keys = (
        'health_check = ["http://a/", "heartbeat:", { target = "http://b/" }, "http://c/", '
        '{ name = "http-2", target = "https://d/" }, "http+unix:a:/b"]'
    )
    names = [check.name for check in one(keys).checks]
    assert names == ["http", "heartbeat", "http-3", "http-4", "http-2", "http-unix"]


def test_the_environment_is_kept_apart_from_the_definition(read: Read):
    config = read(SERVICE + 'env = { SECRET = "s3cr3t", "discovery.type" = "" }\n')
    assert config.environments == {"web": {"SECRET": "s3cr3t", "discovery.type": ""}}
    assert config.definitions[0].env_names == ("SECRET", "discovery.type")
    assert b"s3cr3t" not in msgspec.json.encode(config.definitions)


def test_defaults_merge_key_by_key_under_what_a_service_says(read: Read):
    config = read(
        """
        [defaults]
        env = { A = "1", B = "1" }
        restart = { policy = "OnFailure", delay = "1s", limit = 5, within = "1m" }
        health_check = { interval = "5s" }
        umask = "077"
        logs = false

        [[service]]
        name = "plain"
        cmd = ["x"]

        [[service]]
        name = "own"
        cmd = ["x"]
        env = { B = "2" }
        restart = "Always"
        health_check = ["heartbeat:", { target = "http://a/", interval = "1s" }]
        umask = "022"
        logs = { dir = "/l" }

        [[service]]
        name = "once"
        cmd = ["x"]
        restart = "Never"
        health_check = "heartbeat:"
        """
    )
    plain, own, once = config.definitions
    assert config.environments["own"] == {"A": "1", "B": "2"}
    assert plain.restart == Restart(Policy.ON_FAILURE, 1.0, 30.0, 5, 60.0)
    assert own.restart == Restart(Policy.ALWAYS, 1.0, 30.0, 5, 60.0)
    assert once.restart == Restart(Policy.NEVER, 1.0, 30.0)
    assert plain.checks == ()
    assert [check.interval_s for check in own.checks] == [5.0, 1.0]
    assert [check.interval_s for check in once.checks] == [5.0]
    assert (plain.umask, own.umask) == (0o077, 0o022)
    assert (plain.logs, own.logs) == (None, Logs("/l"))


DEFAULTS = """
[defaults]
cwd = "srv"
env = { A = "1", DATA = "/srv/{instance}" }
restart = { policy = "OnFailure", delay = "1s", limit = 5, within = "1m" }
health_check = { interval = "5s" }
ready = "notify"
stop = { signal = "SIGINT", timeout = "3s" }
logs = { dir = "logs" }
limits = { nofile = 10 }
tags = ["eu"]
nice = 3
reload = "SIGHUP"
"""
ALONE = """
[[service]]
name = "first"
cmd = ["bin/a", "-x"]
{more}

[[service]]
name = "second"
instances = 2
cmd = ["b", "{{instance}}"]
sockets = {{ http = "unix:/run/{{instance}}.sock" }}
depends_on = ["first"]
{more}
"""


@pytest.mark.parametrize(
    "defaults",
    [
        "",
        DEFAULTS.replace("{instance}", "1"),
        DEFAULTS.replace('"SIGHUP"', '["kill"]').replace("{instance}", "1"),
        '[defaults]\noneshot = true\nhealth_check = "heartbeat:"',
    ],
)
def test_a_service_with_no_key_that_it_could_share_is_what_one_read_by_itself_is(
    read: Read, defaults: str
):
    alone = read(defaults + ALONE.format(more=""))
    by_itself = read(defaults + ALONE.format(more="autostart = true"))
    assert alone.definitions == by_itself.definitions
    assert alone.environments == by_itself.environments


def test_services_with_no_key_that_they_could_share_are_read_once(
    read: Read, monkeypatch: pytest.MonkeyPatch
):
    readings = []
    read_shared = vars(services)["read_shared"]

    def counted(*arguments: Any) -> Any:
        readings.append(arguments)
        return read_shared(*arguments)

    monkeypatch.setattr(services, "read_shared", counted)
    text = DEFAULTS.replace("{instance}", "1")
    text += "".join(f'[[service]]\nname = "s{n}"\ncmd = ["x"]\n' for n in range(100))
    assert [each.cwd for each in read(text).definitions] == [str(Path.cwd() / "srv")] * 100
    assert len(readings) == 2  # the defaults by themselves, and a service that has them


def test_defaults_that_differ_by_instance_are_read_for_each(read: Read):
    config = read(f'{DEFAULTS}\n[[service]]\nname = "a"\ninstances = 2\ncmd = ["x"]\n')
    assert [config.environments[f"a@{n}"]["DATA"] for n in (1, 2)] == ["/srv/1", "/srv/2"]


def test_what_makes_no_sense_for_a_service_is_not_taken_from_the_defaults(read: Read):
    config = read(
        """
        [defaults]
        restart = "Always"
        ready = "health"
        health_check = "heartbeat:"
        reload = "SIGHUP"
        limits = { nofile = 10, memory_max = "1GB" }

        [[service]]
        name = "once"
        cmd = ["x"]
        oneshot = true

        [[service]]
        name = "unchecked"
        cmd = ["x"]
        health_check = []

        [[service]]
        name = "other"
        cmd = ["x"]
        reload = ["x", "reload"]
        limits = { nofile = 20 }
        """
    )
    once, unchecked, other = config.definitions
    assert (once.restart.policy, once.ready, once.checks) == (Policy.ON_FAILURE, None, ())
    assert unchecked.ready is None
    assert other.ready is Ready.HEALTH
    assert (once.reload, other.reload) == (Reload("SIGHUP"), Reload(cmd=("x", "reload")))
    assert other.limits == Limits({"nofile": 20}, memory_max=10**9)


def test_whoever_is_given_a_role_opens_the_socket_unless_its_mode_is_given(read: Read):
    assert read("").access == AccessSettings()
    assert read("[access]\nadmin = []").registry.socket_mode == 0o600
    named = '[access]\nobserve = ["user:ana", "group:ops"]\noperate = ["uid:1000", "gid:100"]\n'
    config = read(named)
    assert config.access == AccessSettings(("user:ana", "group:ops"), ("uid:1000", "gid:100"))
    assert config.registry.socket_mode == 0o666
    assert read(named + '[registry]\nsocket_mode = "0660"').registry.socket_mode == 0o660


def test_a_hook_names_events_services_and_a_command(read: Read, root: Path):
    config = read(
        SERVICE
        + """
        tags = ["front"]
        [[hook]]
        on = ["gave_up"]
        cmd = ["./tell", "us"]
        [[hook]]
        on = ["gave_up", "lost"]
        cmd = ["tell"]
        services = ["web", "w*", "tag:front", "all"]
        timeout = "1m"
        """
    )
    assert config.hooks == (
        Hook(("gave_up",), (f"{root}/tell", "us"), cwd=str(root)),
        Hook(("gave_up", "lost"), ("tell",), ("web", "w*", "tag:front", "all"), 60.0, str(root)),
    )


def test_checks_among_the_defaults_are_for_services_that_name_none(read: Read):
    config = read(
        '[defaults]\nhealth_check = ["heartbeat:"]\n'
        + SERVICE
        + '[[service]]\nname = "none"\ncmd = ["x"]\nhealth_check = []\n'
        + '[[service]]\nname = "own"\ncmd = ["x"]\nhealth_check = "http://a/"\n'
    )
    targets = [[check.target for check in each.checks] for each in config.definitions]
    assert targets == [["heartbeat:"], [], ["http://a/"]]
