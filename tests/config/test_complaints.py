"""What is refused, in which words, and on which line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from registry.config import Complaint, ConfigError, default_path, load
from registry.config.file import SYSTEM_FILE

Refused = Callable[[str], list[str]]

SERVICE = '[[service]]\nname = "web"\ncmd = ["web"]\n'


def test_a_complaint_names_file_line_service_key_and_remedy():
    message = "unknown key 'restrat', did you mean 'restart'?"
    complaint = Complaint("etc/services.toml", 12, "web", "restrat", message)
    assert str(complaint) == f"etc/services.toml:12: service 'web': {message}"


def test_everything_wrong_is_said_at_once_in_the_order_of_the_file(refused: Refused):
    text = """\
[registry]
socet = "x"
socket_mode = 600

[defaults]
env = { A = "1", B = 2 }
restart = { limits = 1 }

[[service]]
name = "web"
cmd = "python3 -m 'http server'"
restrat = "Always"
health_check = [
  "htp://x",
  { target = "heartbeat:",
    intervall = 1 },
]

[[service]]
umask = 22
[service.stop]
signal = "TREM"

[[servce]]
"""
    words = '["python3", "-m", "http server"]'
    assert refused(text) == [
        "2: unknown key 'registry.socet', did you mean 'socket'?",
        '3: registry.socket_mode: found the number 600, want octal digits as a string, such as "0600"',
        '6: defaults.env.B: found the number 2, want a string: write "2"',
        "7: unknown key 'defaults.restart.limits', did you mean 'limit'?",
        f"11: service 'web': cmd: found a string, want a list of strings: {words}",
        "12: service 'web': unknown key 'restrat', did you mean 'restart'?",
        "14: service 'web': health_check#1: found the string \"htp://x\", unknown scheme, "
        "did you mean 'http:'?",
        "16: service 'web': unknown key 'health_check#2.intervall', did you mean 'interval'?",
        "19: service '#2': name is missing; add name = \"...\"",
        '19: service \'#2\': cmd is missing; add cmd = ["program", "argument"]',
        "20: service '#2': umask: found the number 22, want octal digits as a string, "
        'such as "022"',
        "22: service '#2': stop.signal: found the string \"TREM\", no signal here, "
        "did you mean 'SIGTERM'?",
        "24: unknown key 'servce', did you mean 'service'?",
    ]


@pytest.mark.parametrize(
    ("keys", "key", "words"),
    [
        ("restart = 5", "restart", "found the number 5, want one of Always, OnFailure, Never"),
        ('restart = "always"', "restart", "did you mean 'Always'?"),
        (
            'stop = { signal = "SIGFOO" }',
            "stop.signal",
            'no signal here; write for example "SIGTERM"',
        ),
        ("capabilities = ['CAP_FOO']", "capabilities", "known here: CAP_AUDIT_CONTROL, "),
        ('restart = "sometimes"', "restart", "known here: Always, OnFailure, Never"),
        ("restart = { limit = 3 }", "restart.limit", "needs within, too"),
        ('restart = { within = "1m" }', "restart.within", "needs limit, too"),
        ('restart = { policy="Never", limit=1, within=1 }', "restart.limit", "has no effect"),
        ('restart = { limit = 0, within = "1m" }', "restart.limit", "whole number from 1"),
        ("restart = { delay = 9, delay_max = 8 }", "restart.delay", "longer than delay_max"),
        ('restart = { delay = "-1s" }', "restart.delay", "want a duration"),
        ("restart = { delay = -1 }", "restart.delay", "found the number -1, want a duration"),
        ("restart = { delay = inf }", "restart.delay", "want a duration"),
        ("restart = { delay = nan }", "restart.delay", "want a duration"),
        ("restart = { delay = 1e300 }", "restart.delay", "a number out of range"),
        ("restart = { delay = true }", "restart.delay", "found true, want a duration"),
        ('restart = { delay = "5 s" }', "restart.delay", "want a duration"),
        ("restart = []", "restart", "found a list, want one of"),
        ('stop = { signal = "SIGTRM" }', "stop.signal", "did you mean 'SIGTERM'?"),
        ("stop = { signal = 15 }", "stop.signal", "found the number 15, want the name of a signal"),
        ("start_timeout = 0", "start_timeout", "above zero"),
        ("autostart = 'yes'", "autostart", 'found the string "yes", want true or false'),
        ("cwd = ''", "cwd", "is empty"),
        ("cwd = 1979-05-27", "cwd", "found a date or time, want a string"),
        ('cwd = "a\\u0000b"', "cwd", "NUL"),
        ("user = true", "user", "found true, want a name or a number"),
        ("user = -1", "user", "want a whole number from 0"),
        ('umask = "099"', "umask", "octal digits"),
        ("env = 'A=1'", "env", 'found the string "A=1", want a table'),
        ("env = { PORT = 8080 }", "env.PORT", 'found the number 8080, want a string: write "8080"'),
        ("env = { ON = true }", "env.ON", "found true, want a string"),
        ('env = { "A=B" = "" }', 'env."A=B"', "holds no '='"),
        ("success_exit_codes = 3", "success_exit_codes", "want a list"),
        ("success_exit_codes = [256]", "success_exit_codes", "from 0 to 255"),
        ("success_exit_codes = ['HUPP']", "success_exit_codes", "did you mean 'SIGHUP'?"),
        ("logs = 'no'", "logs", "want true, false or a table"),
        ("logs = { files_max = 0 }", "logs.files_max", "from 1 to"),
        ("logs = { size_max = '1KB' }", "logs.size_max", "at least 4096 bytes"),
        ("logs = { size_max = '10 mb' }", "logs.size_max", "want a size such as"),
        ("health_check = 'http:///x'", "health_check", "want a host"),
        ("health_check = 'http://h:99999/'", "health_check", "Port out of range"),
        ("health_check = 'http://h/a b'", "health_check", "visible ASCII"),
        ("health_check = 'unix:'", "health_check", "a path behind the colon"),
        (f"health_check = 'unix:/{'x' * 107}'", "health_check", "at most 107 bytes"),
        ("health_check = 'heartbeat:x'", "health_check", "nothing behind it"),
        ("health_check = 'heartbeat'", "health_check", "did you mean 'heartbeat:'?"),
        ("health_check = 'cmd:'", "health_check", "names no program"),
        ('health_check = "cmd:\'"', "health_check", "cannot be split into words"),
        (
            "health_check = 'xyz:'",
            "health_check",
            "known here: unix:, tcp:, http:, https:, http+unix:",
        ),
        ("health_check = 5", "health_check", "found the number 5, want a target"),
        ("health_check = {}", "health_check.target", "is missing"),
        ("health_check = { target = 'cmd:x', failures = 0 }", "health_check.failures", "from 1"),
        (
            "health_check = { target = 'cmd:x', interval = 0 }",
            "health_check.interval",
            "above zero",
        ),
        (
            "health_check = [{name='a', target='cmd:x'}, {name='a', target='cmd:y'}]",
            "health_check#2.name",
            "another check of this service has this name",
        ),
        ('ready = "health"', "ready", 'no check to wait for; add health_check = "..."'),
        ('ready = "healthy"', "ready", "did you mean 'health'?"),
        ('oneshot = true\nready = "notify"', "ready", 'is never "notify"; leave ready out'),
        ('oneshot = true\nready = "health"', "ready", 'is never "health"; leave ready out'),
        ('oneshot = "yes"', "oneshot", "want true or false"),
        ('oneshot = true\nrestart = "Always"', "restart", 'write "OnFailure" or "Never"'),
        (
            "oneshot = true\nrestart = { limit = 1, within = 1 }",
            "restart.limit",
            'which is that of a oneshot; add policy = "OnFailure"',
        ),
        ('oneshot = true\nhealth_check = "cmd:x"', "health_check", "a oneshot ends before"),
        ('restart = { memory_max = "1XB" }', "restart.memory_max", "want a size such as"),
        ("instances = 0", "instances", "want a whole number from 1 to 1000"),
        ("instances = 1001", "instances", "want a whole number from 1 to 1000"),
        ("tags = 'front'", "tags", 'want a list such as ["front", "eu"]'),
        ("tags = ['a', 'b', 'a']", "tags", "names 'a' twice; once is enough"),
        ("tags = ['a b']", "tags", "want a name of at most 64 letters"),
        ("sockets = '127.0.0.1:80'", "sockets", "want a table"),
        ("sockets = { 'a:b' = 'h:80' }", 'sockets."a:b"', "1 to 255 letters, digits, '_', '-'"),
        ("sockets = { a = 80 }", "sockets.a", "want an address such as"),
        ("sockets = { a = ':80' }", "sockets.a", 'write "0.0.0.0:80" or "[::]:80"'),
        ("sockets = { a = '127.0.0.1' }", "sockets.a", "want a host and a port from 1 to 65535"),
        ("sockets = { a = 'h:0' }", "sockets.a", "want a host and a port from 1 to 65535"),
        ("sockets = { a = 'h:65536' }", "sockets.a", "want a host and a port from 1 to 65535"),
        ("sockets = { a = '::1:80' }", "sockets.a", "want a host and a port"),
        ("sockets = { a = '[::g]:80' }", "sockets.a", "no IPv4 address, [IPv6 address] or name"),
        ("sockets = { a = '1.2.3.256:80' }", "sockets.a", "no IPv4 address"),
        ("sockets = { a = '-x-:80' }", "sockets.a", "no IPv4 address"),
        ("sockets = { a = 'unix:' }", "sockets.a", "a path behind the colon"),
        (f"sockets = {{ a = 'unix:/{'x' * 107}' }}", "sockets.a", "at most 107 bytes"),
        (
            "sockets = { a = 'h:1', b = 'h:1' }",
            "sockets.b",
            "service 'web' listens at h:1, too (etc/services.toml:4); choose another",
        ),
        ("reload = 'SIGHPU'", "reload", "did you mean 'SIGHUP'?"),
        ("reload = 1", "reload", "want the name of a signal"),
        ("reload = []", "reload", "names no program"),
        ("reload = {}", "reload", 'says nothing; write "SIGHUP" or a command'),
        ("reload = { signal = 'HUP', cmd = ['x'] }", "reload.cmd", "leave one of them out"),
        ("limits = { nofiles = 1 }", "limits.nofiles", "did you mean 'nofile'?"),
        ("limits = { nofile = '1' }", "limits.nofile", 'from 1 to 1073741824, or "unlimited"'),
        ("limits = { core = -1 }", "limits.core", "at least 0 bytes"),
        ("limits = { cpu = 0.5 }", "limits.cpu", "want whole seconds"),
        ("limits = { cpu_max = 0 }", "limits.cpu_max", "a number of CPUs, at least 0.01"),
        ("limits = { cpu_max = nan }", "limits.cpu_max", "a number of CPUs, at least 0.01"),
        ("limits = { cpu_max = '2' }", "limits.cpu_max", "a number of CPUs, such as 1.5"),
        ("limits = { memory_max = 1 }", "limits.memory_max", "at least 4096 bytes"),
        ("limits = { pids_max = 0 }", "limits.pids_max", "a whole number from 1"),
        ("groups = 'adm'", "groups", 'want a list such as ["adm", "ssl-cert"]'),
        ("groups = [true]", "groups", "found true, want a name or a number"),
        ("nice = 20", "nice", "from -20 to 19"),
        ("oom_score_adj = -1001", "oom_score_adj", "from -1000 to 1000"),
        ("no_new_privs = 1", "no_new_privs", "want true or false"),
        ("capabilities = ['cap_net_raw']", "capabilities", "did you mean 'CAP_NET_RAW'?"),
        ("capabilities = ['CAP_KILL', 'CAP_KILL']", "capabilities", "twice"),
        ("capabilities = [1]", "capabilities", "want the name of a capability"),
        ("health_check = 'tcp:6379'", "health_check", "want a host and a port"),
        ("health_check = 'tcp:[::1]:0'", "health_check", "want a host and a port"),
        ("health_check = 'http+unix:/a.sock'", "health_check", "a colon and a URL, as in"),
        ("health_check = 'http+unix::/a'", "health_check", "want a socket's path"),
        ("health_check = 'http+unix:a:/b c'", "health_check", "visible ASCII"),
        (
            "health_check = { target = 'cmd:x', signal = 'ABRTT' }",
            "health_check.signal",
            "did you mean 'SIGABRT'?",
        ),
    ],
)
def test_a_service_is_refused_with_a_remedy(refused: Refused, keys: str, key: str, words: str):
    (complaint,) = refused(SERVICE + keys)
    _, service, rest = complaint.split(": ", 2)
    assert service == "service 'web'"
    assert key in rest
    assert words in rest


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[service]]\nname = "all"\ncmd = ["x"]', "2: service 'all': name: 'all' means all"),
        ('[[service]]\nname = "-x"\ncmd = ["x"]', "2: service '#1': name: found the string"),
        (f'[[service]]\nname = "{"x" * 65}"\ncmd = ["x"]', "2: service '#1': name: found a long"),
        ('[[service]]\nname = "a"\ncmd = []', "3: service 'a': cmd: names no program"),
        ('[[service]]\nname = "a"\ncmd = ["x", 1]', "3: service 'a': cmd: found the number 1"),
        (
            SERVICE + SERVICE,
            "5: service 'web': name: the service at etc/services.toml:2 has this name, too",
        ),
        (
            '[[service]]\nname = "web@2"\ncmd = ["x"]',
            "'@' is for instances; write name = \"web\" and instances = 2",
        ),
        (
            SERVICE
            + 'sockets.a = "127.0.0.1:80"\n[[service]]\nname = "b"\ncmd = ["b"]\n'
            + 'sockets = { x = "127.0.0.1:80" }\n',
            "8: service 'b': sockets.x: service 'web' listens at 127.0.0.1:80, too "
            "(etc/services.toml:4); choose another",
        ),
        ("[service]\nname = 'a'", "1: found a table; write [[service]]"),
        ("service = [5]", "1: service '#1': found the number 5, want a table"),
        ("defaults = 5", "1: defaults: found the number 5, want a table"),
        ("[defaults]\nname = 'x'", "2: defaults.name: belongs to one service"),
        ("[defaults]\ninstances = 2", "2: defaults.instances: belongs to one service; write it"),
        (
            "[access]\nroot = []",
            "2: unknown key 'access.root'; known here: observe, operate, admin",
        ),
        ("[access]\nadmin = 'user:x'", '2: access.admin: found the string "user:x", want a list'),
        ("[access]\nadmin = ['ana']", '"ana"; write "user:ana" or "group:ana"'),
        ("[access]\nadmin = ['usr:ana']", "did you mean 'user'?"),
        ("[access]\nadmin = ['uid:ana']", "want a number behind the colon"),
        ("[access]\nadmin = ['group:']", "want a name behind the colon"),
        ("[access]\nadmin = [0]", "found the number 0, want strings such as"),
        ("hook = 5", "1: hook: found the number 5; write [[hook]] above each hook"),
        ("[[hook]]\non = ['gave_up']", "1: hook.cmd is missing; add cmd = "),
        ("[[hook]]\ncmd = ['x']", "1: hook.on is missing; add on = "),
        ("[[hook]]\ncmd = ['x']\non = 'gave_up'", "3: hook.on: found the string"),
        ("[[hook]]\ncmd = ['x']\non = []", "3: hook.on: is empty; name types of events"),
        ("[[hook]]\ncmd = ['x']\non = ['gave-up']", "did you mean 'gave_up'?"),
        ("[[hook]]\ncmd = ['x']\non = ['*']", '3: hook.on: found the string "*"; known here: '),
        (
            "[[hook]]\ncmd = ['x']\non = ['lost']\ntimeout = 0",
            "4: hook.timeout: found the number 0",
        ),
        (
            "[[hook]]\ncmd = ['x']\non = ['lost']\nservices = ['wed']\n" + SERVICE,
            "4: hook.services: there is no service \"wed\", did you mean 'web'?",
        ),
        (
            "[[hook]]\ncmd = ['x']\non = ['lost']\nservices = ['tag:a']",
            "4: hook.services: no service has the tag 'a'; give it to a service or leave it out",
        ),
        ("[journal]\ndurability = 'ful'", '2: journal.durability: found the string "ful", did you'),
        (
            f"[registry]\nsocket = '/{'x' * 107}'",
            "2: registry.socket: a socket's path has at most 107",
        ),
        (
            '[a."b\\n"]',
            "1: unknown key 'a'; known here: registry, access, journal, defaults, service, hook",
        ),
        ("x = [\n", "not valid TOML: "),
        ("a = 1\nb = = 2\n", "2: not valid TOML: Invalid value (column 5)"),
        ("a = " + "[" * 5000, "not valid TOML: "),
        ("a = " + "9" * 5000, "not valid TOML: "),
        ("a = 0x" + "f" * 5000, "1: unknown key 'a'"),
        ("[registry]\nsocket_group = 0x" + "f" * 5000, "found a number out of range"),
    ],
)
def test_a_file_is_refused_with_a_remedy(refused: Refused, text: str, words: str):
    (complaint,) = refused(text)
    assert words in complaint


def test_of_a_list_everything_wrong_is_said_with_the_line_of_each(refused: Refused):
    text = """\
[access]
observe = ["group:adm", "bob",
           "uid:x"]
[[hook]]
on = ["gave_upp", "exited", "lostt"]
cmd = ["sh", 1, 2]
services = ["web", "wen"]
"""
    keys = 'success_exit_codes = [300, "SIGTREM"]\ncapabilities = ["CAP_KIL", "CAP_CHWN"]\n'
    assert refused(text + SERVICE + keys) == [
        '2: access.observe: found the string "bob"; write "user:bob" or "group:bob"',
        '3: access.observe: found the string "uid:x", want a number behind the colon',
        "5: hook.on: found the string \"gave_upp\", did you mean 'gave_up'?",
        "5: hook.on: found the string \"lostt\", did you mean 'lost'?",
        '6: hook.cmd: found the number 1, want strings only in the list: write "1"',
        '6: hook.cmd: found the number 2, want strings only in the list: write "2"',
        "7: hook.services: there is no service \"wen\", did you mean 'web'?",
        "11: service 'web': success_exit_codes: found the number 300, want a whole number from 0 to 255",
        "11: service 'web': success_exit_codes: found the string \"SIGTREM\", no signal here, "
        "did you mean 'SIGTERM'?",
        "12: service 'web': capabilities: found the string \"CAP_KIL\", did you mean 'CAP_KILL'?",
        "12: service 'web': capabilities: found the string \"CAP_CHWN\", did you mean 'CAP_CHOWN'?",
    ]


def test_of_several_checks_in_a_line_the_complaint_says_which(refused: Refused):
    keys = 'health_check = ["heartbeat:", "cmd:", { target = "cmd:x", failures = 0 }]'
    assert [line.split(": ")[2] for line in refused(SERVICE + keys)] == [
        "health_check#2",
        "health_check#3.failures",
    ]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("environment", "env"),
        ("command", "cmd"),
        ("WorkingDirectory", "cwd"),
        ("working_dir", "cwd"),
        ("after", "depends_on"),
        ("requires", "depends_on"),
        ("stop_grace_period", "stop"),
        ("stopsignal", "stop.signal"),
        ("startsecs", "start_timeout"),
        ("autorestart", "restart"),
        ("type", "oneshot"),
        ("stop_timeout", "stop.timeout"),
        ("stop_signal", "stop.signal"),
        ("restart_delay_max", "restart.delay_max"),
        ("restart-limit", "restart.limit"),
        ("health_check_interval", "health_check.interval"),
        ("limits_nofile", "limits.nofile"),
        ("start_timout", "start_timeout"),
    ],
)
def test_a_key_of_other_supervisors_or_written_as_one_word_is_told_what_it_is_here(
    refused: Refused, key: str, meant: str
):
    (complaint,) = refused(f"{SERVICE}{key} = 1")
    assert complaint.endswith(f"unknown key '{key}', did you mean '{meant}'?")


def test_a_key_of_other_supervisors_is_none_where_its_own_is_not(refused: Refused):
    (complaint,) = refused("[journal]\nenvironment = 1")
    assert complaint.endswith("; known here: path, durability, keep, max_size")


def test_a_long_list_of_what_there_is_is_told_once_in_a_file(refused: Refused):
    first, second, third = refused(f"{SERVICE}xyz = 1\nzyx = 1\n[journal]\nxyz = 1")
    assert len(first.partition("known here: ")[2]) > 80
    assert second == "5: service 'web': unknown key 'zyx'; known here: as above"
    assert third.endswith("known here: path, durability, keep, max_size")


def test_a_byte_order_mark_before_the_text_is_left_out(root: Path):
    file = Path("etc/services.toml")
    file.write_bytes(b"\xef\xbb\xbf" + SERVICE.replace("\n", "\r\n").encode())
    assert load(file).definitions[0].name == "web"


def test_what_is_wrong_among_the_defaults_is_said_once(refused: Refused):
    services = "".join(f'[[service]]\nname = "s{n}"\ncmd = ["x"]\n' for n in range(3))
    text = "[defaults]\nrestart = { limit = 1 }\nhealth_check = { interval = 0 }\n" + services
    assert [line.split(":")[0:2] for line in refused(text)] == [
        ["2", " defaults.restart.limit"],
        ["3", " defaults.health_check.interval"],
    ]


def test_the_value_of_a_variable_is_in_no_complaint(refused: Refused):
    assert "s3cr3t" not in "".join(
        refused(SERVICE + 'env = { A = "s3cr3t\\u0000", B = ["s3cr3t"] }')
    )


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.toml", None, "missing.toml: cannot be read: No such file or directory"),
        ("etc", None, "etc: cannot be read: Is a directory"),
        ("bytes.toml", b"# fine\n# \xff\n", "bytes.toml:2: byte 0xff is not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_gets_one_sentence(
    root: Path, name: str, content: bytes | None, words: str
):
    if content is not None:
        Path(name).write_bytes(content)
    with pytest.raises(ConfigError) as info:
        load(Path(name))
    assert str(info.value).startswith(words)


def test_the_file_is_looked_for_here_and_then_in_the_system(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("registry.config.file.SYSTEM_FILE", Path("system.toml"))
    with pytest.raises(ConfigError, match=r"neither \./etc/services\.toml nor system\.toml"):
        default_path()
    Path("system.toml").write_text("")
    assert default_path() == Path("system.toml")
    Path("etc/services.toml").write_text("")
    assert str(default_path()) == "etc/services.toml"
    assert str(SYSTEM_FILE) == "/etc/circleosd/services.toml"
