"""What --validate says: of the file, of this machine, or that all is well."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.config import Config
from registry.host import cgroup
from registry.validate import EX_CONFIG, machine_complaints, validate

TEXT = """\
[defaults]
cwd = "elsewhere"

[[service]]
name = "a"
cmd = ["sh"]
health_check = [
  "heartbeat:", "cmd:no-such-check",
]

[[service]]
name = "b"

cmd = ["./b"]
cwd = "/"
user = "no-such-user"
env_file = "b.env"
"""


def test_what_the_machine_cannot_do_is_said_with_the_line_of_its_key(
    read: Callable[[str], Config], root: Path
):
    (root / "b.env").write_text("# fine\nnot fine\n")
    complaints = machine_complaints(read(TEXT), {"PATH": "/bin"})
    place = "etc/services.toml"
    assert [str(each) for each in complaints] == [
        f"{place}:2: service 'a': cwd: there is no folder {root}/elsewhere",
        f"{place}:7: service 'a': health_check: there is no program 'no-such-check' in PATH=/bin; "
        "write its path or set env.PATH",
        f"{place}:16: service 'b': user: this machine has no user 'no-such-user'; "
        "create it or name another",
        f"{place}:17: service 'b': env_file: {root}/b.env:2: not a line of the form KEY=VALUE",
        f"{place}:14: service 'b': cmd: there is no program {root}/b",
    ]


NEW_KEYS = """\
[access]
observe = ["user:root", "uid:5", "user:no-such-user"]
admin = ["group:no-such-group"]

[[hook]]
on = ["gave_up"]
cmd = ["./no-such-hook"]

[[service]]
name = "a"
instances = 3
cmd = ["/no-such-program"]
reload = ["no-such-reload"]
groups = ["no-such-group"]
"""


def test_the_machine_s_word_on_roles_hooks_reloads_and_groups_is_said_once(
    read: Callable[[str], Config], root: Path
):
    complaints = machine_complaints(read(NEW_KEYS), {"PATH": "/bin"})
    place = "etc/services.toml"
    lets_in = "so it lets nobody in; create it or name another"
    assert [str(each) for each in complaints] == [
        f"{place}:2: access.observe: this machine has no user 'no-such-user', {lets_in}",
        f"{place}:3: access.admin: this machine has no group 'no-such-group', {lets_in}",
        f"{place}:7: hook.cmd: there is no program {root}/no-such-hook",
        f"{place}:14: service 'a': groups: this machine has no group 'no-such-group'; "
        "create it or name another",
        f"{place}:12: service 'a': cmd: there is no program /no-such-program",
        f"{place}:13: service 'a': reload: there is no program 'no-such-reload' in PATH=/bin; "
        "write its path or set env.PATH",
    ]


def test_the_missing_folders_of_sockets_are_said_once(read: Callable[[str], Config], root: Path):
    config = read(
        '[registry]\nsocket = "none/ctl.sock"\n[[service]]\nname = "a"\ncmd = ["/bin/sh"]\n'
        'instances = 2\nsockets = { a = "unix:run/{instance}", b = "unix:{instance}", c = "h:8{instance}" }\n'
    )
    remedy = "make it, or choose another path"
    place = "etc/services.toml"
    assert [str(each) for each in machine_complaints(config, {})] == [
        f"{place}:2: registry.socket: there is no folder {root}/none; {remedy}",
        f"{place}:7: service 'a': sockets: there is no folder {root}/run; {remedy}",
    ]


def test_what_only_root_may_give_is_said_where_the_registry_is_not_root(
    read: Callable[[str], Config], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(resource, "getrlimit", lambda _limit: (10, 20))
    config = read(
        '[[service]]\nname = "a"\ncmd = ["/bin/sh"]\nnice = -5\noom_score_adj = -1\n'
        'limits = { nofile = 21, core = "unlimited", stack = 20 }\n'
        '[[service]]\nname = "b"\ncmd = ["/bin/sh"]\nnice = 19\noom_score_adj = 1\n'
    )
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert machine_complaints(config, {}) == ()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    remedy = "run the registry as root or leave it out"
    assert [str(each).partition("'a': ")[2] for each in machine_complaints(config, {})] == [
        f"nice: only root may lower the niceness to -5; {remedy}",
        f"oom_score_adj: only root may set oom_score_adj to -1; {remedy}",
        f"limits: only root may raise the limit core above 20; {remedy}",
        f"limits: only root may raise the limit nofile above 20; {remedy}",
    ]


@pytest.mark.parametrize(
    ("text", "status", "out", "err"),
    [
        ("", 0, "etc/services.toml: 0 services, all well\n", ""),
        (
            '[[service]]\nname = "a"\ncmd = ["/bin/sh"]\n',
            0,
            "etc/services.toml: 1 service, all well\n",
            "",
        ),
        ("a = 1\n", EX_CONFIG, "", "etc/services.toml:1: unknown key 'a'"),
        (
            '[[service]]\nname = "a"\ncmd = ["/none"]\n',
            EX_CONFIG,
            "",
            "etc/services.toml:3: service 'a': cmd: there is no program /none\n",
        ),
    ],
)
def test_validate_answers_with_words_and_an_exit_status(
    root: Path, capsys: pytest.CaptureFixture[str], text: str, status: int, out: str, err: str
):
    Path("etc/services.toml").write_text(text)
    assert validate(Path("etc/services.toml")) == status
    captured = capsys.readouterr()
    assert captured.out == out
    assert captured.err.startswith(err)
    assert bool(captured.err) == bool(err)


def test_limits_that_no_cgroup_of_this_machine_keeps_are_named(
    read: Callable[[str], Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    text = '[[service]]\nname = "a"\ncmd = ["/bin/sh"]\nlimits.pids_max = 9\nlimits.cpu_max = 1\n'
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
    found: list[tuple[str, str] | None] = [("/", str(tmp_path)), None]
    monkeypatch.setattr(cgroup, "_mount_of", lambda _line: found[0])
    (complaint,) = machine_complaints(read(text), {})
    why = f"limits.pids_max takes a delegated cgroup v2, but {tmp_path} has no controller 'pids'; "
    assert str(complaint).startswith(f"etc/services.toml:4: service 'a': limits: {why}")
    found.pop(0)
    assert [str(each).split()[4] for each in machine_complaints(read(text), {})] == [
        "limits.cpu_max",
        "limits.pids_max",
    ]


def test_a_file_without_a_fault_needs_no_second_look(read: Callable[[str], Config]):
    assert machine_complaints(read('[[service]]\nname = "a"\ncmd = ["/bin/sh"]\n'), {}) == ()


def test_a_complaint_stays_on_its_line_whatever_it_is_about(read: Callable[[str], Config]):
    text = '[[service]]\nname = "a"\ncmd = ["/bin/sh"]\nuser = "x\\n\\u001b[2J"\n'
    (complaint,) = machine_complaints(read(text), {})
    assert "no user 'x\\n\\x1b[2J'" in str(complaint)
