"""What a definition comes to on this machine, and every obstacle by its reason."""

from __future__ import annotations

import grp
import os
import pwd
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from registry.core.definition import Check, Definition, Limits
from registry.host import launch as launching
from registry.host.launch import DEFAULT_PATH, LaunchError, obstacles, read_env_file, resolve


@pytest.fixture
def bin_(tmp_path: Path) -> Path:
    """A folder with a program `run` and a file `plain` that is none."""
    (tmp_path / "run").write_text("#!/bin/sh\n")
    (tmp_path / "run").chmod(0o755)
    (tmp_path / "plain").write_text("")
    (tmp_path / "plain").chmod(0o644)
    return tmp_path


@pytest.fixture
def plain(bin_: Path) -> Definition:
    """A service that can be launched."""
    return Definition(name="web", cmd=(str(bin_ / "run"), "-x"), cwd=str(bin_), umask=0o077)


def reason(definition: Definition, env: dict[str, str] | None = None) -> tuple[str, str]:
    """Why it cannot be launched, and which key says so."""
    with pytest.raises(LaunchError) as info:
        resolve(definition, env or {}, {})
    assert str(info.value) == info.value.message
    return info.value.reason, info.value.key


def test_a_launch_says_everything_that_starting_takes(plain: Definition, bin_: Path):
    launch = resolve(plain, {}, {})
    assert launch.argv == (str(bin_ / "run"), "-x")
    assert (launch.cwd, launch.umask) == (str(bin_), 0o077)
    assert (launch.uid, launch.gid, launch.groups) == (None, None, ())


def test_the_environment_is_small_and_clean(plain: Definition):
    own = pwd.getpwuid(os.geteuid())
    inherited = {"LANG": "C.UTF-8", "TZ": "UTC", "LD_PRELOAD": "x", "PYTHONPATH": "y", "HOME": "/h"}
    assert resolve(plain, {}, inherited).env == {
        "PATH": DEFAULT_PATH,
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "HOME": own.pw_dir,
        "USER": own.pw_name,
        "LOGNAME": own.pw_name,
        "SHELL": own.pw_shell,
    }
    assert resolve(plain, {}, {"PATH": "/p"}).env["PATH"] == "/p"


def test_env_wins_over_env_file_and_that_over_what_is_inherited(plain: Definition, bin_: Path):
    file = bin_ / "env"
    file.write_text("LANG=file\nA=file\nB=file\n")
    definition = msgspec.structs.replace(plain, env_file=str(file))
    env = resolve(definition, {"B": "env"}, {"LANG": "inherited", "TZ": "inherited"}).env
    assert (env["TZ"], env["LANG"], env["A"], env["B"]) == ("inherited", "file", "file", "env")


def test_a_bare_name_is_looked_up_in_the_services_own_path(plain: Definition, bin_: Path):
    definition = msgspec.structs.replace(plain, cmd=("run",))
    assert resolve(definition, {"PATH": f"/none:{bin_}"}, {}).argv == (str(bin_ / "run"),)
    assert resolve(definition, {}, {"PATH": str(bin_)}).argv == (str(bin_ / "run"),)
    assert reason(definition, {"PATH": "/none"}) == ("program_missing", "cmd")


def test_a_program_further_on_in_path_is_found_behind_a_file_that_is_none(
    plain: Definition, bin_: Path
):
    (bin_ / "a").mkdir()
    (bin_ / "a" / "run").write_text("")
    definition = msgspec.structs.replace(plain, cmd=("run",))
    assert resolve(definition, {"PATH": f"{bin_}/a:{bin_}"}, {}).argv == (str(bin_ / "run"),)
    assert reason(definition, {"PATH": f"{bin_}/a"}) == ("program_not_executable", "cmd")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            b"#!/no/such/interpreter -x",
            "asks for the interpreter /no/such/interpreter, which is not there",
        ),
        (b"#! \t/no/such", "asks for the interpreter /no/such, which is not there"),
        (b"#!plain", "asks for the interpreter plain, which is not there"),
        (b"#!/bin/sh\r", "ends with a carriage return; save it with Unix line ends"),
        (b"#!/bin/sh -e", None),
        (b"#!%s/run", None),
        (b"#!", None),
        (b"\x7fELF", None),
        (b"", None),
    ],
)
def test_a_script_needs_the_interpreter_that_its_first_line_names(
    plain: Definition, bin_: Path, line: bytes, told: str | None
):
    """A path that is no absolute one begins where the service runs, as for the kernel."""
    script = bin_ / "script"
    script.write_bytes(line.replace(b"%s", bin_.name.encode()) + b"\nexit\n")
    script.chmod(0o755)
    definition = msgspec.structs.replace(plain, cmd=(str(script),), cwd=str(bin_.parent))
    if told is None:
        assert resolve(definition, {}, {}).argv == (str(script),)
        return
    with pytest.raises(LaunchError, match=re.escape(told)) as raised:
        resolve(definition, {}, {})
    assert (raised.value.reason, raised.value.key) == ("exec_failed", "cmd")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cmd": ("{}",)}, "{} is a folder; write the path of a program"),
        ({"cwd": "{}/plain"}, "{}/plain is no folder"),
        ({"env_file": "{}"}, "{} is a folder"),
    ],
)
def test_what_is_there_and_is_something_else_is_not_called_missing(
    plain: Definition, bin_: Path, changes: dict[str, object], said: str
):
    filled = {
        key: (str(bin_),) if key == "cmd" else str(value).format(bin_)
        for key, value in changes.items()
    }
    with pytest.raises(LaunchError) as raised:
        resolve(msgspec.structs.replace(plain, **filled), {}, {})
    assert raised.value.message == said.format(bin_)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"cmd": ("{}/none",)}, ("program_missing", "cmd")),
        ({"cmd": ("{}",)}, ("program_missing", "cmd")),
        ({"cmd": ("{}/plain",)}, ("program_not_executable", "cmd")),
        ({"cwd": "{}/none"}, ("cwd_missing", "cwd")),
        ({"cwd": "{}/plain"}, ("cwd_missing", "cwd")),
        ({"user": "no-such-user"}, ("user_missing", "user")),
        ({"user": "4000000000"}, ("user_missing", "user")),
        ({"user": "9" * 5000}, ("user_missing", "user")),
        ({"user": "9" * 5000, "group": "1"}, ("user_missing", "user")),
        ({"group": "no-such-group"}, ("group_missing", "group")),
        ({"group": "4294967295"}, ("group_missing", "group")),
        ({"env_file": "{}/none"}, ("env_file_missing", "env_file")),
        ({"env_file": "{}"}, ("env_file_missing", "env_file")),
    ],
)
def test_an_obstacle_has_its_reason_and_its_key(
    plain: Definition, bin_: Path, changes: dict[str, object], expected: tuple[str, str]
):
    filled = {
        key: tuple(each.format(bin_) for each in value)
        if isinstance(value, tuple)
        else str(value).format(bin_)
        for key, value in changes.items()
    }
    assert reason(msgspec.structs.replace(plain, **filled)) == expected


def test_every_obstacle_is_found_not_only_the_first(plain: Definition):
    definition = msgspec.structs.replace(
        plain,
        cmd=("none",),
        cwd="/none",
        user="no-such-user",
        env_file="/none",
        checks=(Check("cmd", "cmd:./none 'a b'"), Check("other", "cmd:sh -c true")),
    )
    found = [(error.reason, error.key) for error in obstacles(definition, {}, {})]
    assert found == [
        ("user_missing", "user"),
        ("cwd_missing", "cwd"),
        ("env_file_missing", "env_file"),
        ("program_missing", "cmd"),
        ("program_missing", "health_check"),
    ]


@pytest.fixture
def accounts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine where root runs the registry and a user `web` is known."""
    launching._entry_once_found.cache_clear()
    entries = {
        "root": pwd.struct_passwd(("root", "x", 0, 0, "", "/root", "/bin/sh")),
        "web": pwd.struct_passwd(("web", "x", 33, 34, "", "/srv/web", "")),
    }
    by_number = {entry.pw_uid: entry for entry in entries.values()}
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "getegid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwnam", entries.__getitem__)
    monkeypatch.setattr(pwd, "getpwuid", by_number.__getitem__)
    monkeypatch.setattr(
        os, "getgrouplist", lambda name, gid: [gid, 100] if name == "web" else [gid]
    )
    yield
    launching._entry_once_found.cache_clear()


@pytest.mark.usefixtures("accounts")
@pytest.mark.parametrize(
    ("user", "group", "uid", "gid", "groups"),
    [
        ("web", None, 33, 34, (34, 100)),
        ("33", None, 33, 34, (34, 100)),
        ("web", "50", 33, 50, (50, 100)),
        (None, "50", 0, 50, (50,)),
        ("1234", "50", 1234, 50, (50,)),
        ("root", None, None, None, ()),
        (None, "0", None, None, ()),
    ],
)
def test_user_and_group_become_numbers_with_all_their_groups(
    plain: Definition,
    user: str | None,
    group: str | None,
    uid: int | None,
    gid: int | None,
    groups: tuple[int, ...],
):
    launch = resolve(msgspec.structs.replace(plain, user=user, group=group), {}, {})
    assert (launch.uid or 0, launch.gid, launch.groups) == (uid or 0, gid, groups)


@pytest.mark.usefixtures("accounts")
def test_home_and_shell_are_those_of_the_user_it_runs_as(plain: Definition):
    env = resolve(msgspec.structs.replace(plain, user="web"), {}, {}).env
    assert (env["HOME"], env["USER"], env["LOGNAME"]) == ("/srv/web", "web", "web")
    assert env["SHELL"] == "/bin/sh"


@pytest.mark.usefixtures("accounts")
@pytest.mark.parametrize(("user", "group"), [("web", None), ("web", "0"), (None, "50")])
def test_only_root_may_ask_for_somebody_else(
    plain: Definition, monkeypatch: pytest.MonkeyPatch, user: str | None, group: str | None
):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    key = "user" if user else "group"
    definition = msgspec.structs.replace(plain, user=user, group=group)
    assert reason(definition) == ("not_permitted", key)


@pytest.mark.usefixtures("accounts")
def test_a_registry_whose_own_user_has_no_entry_still_launches(
    plain: Definition, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    env = resolve(plain, {}, {}).env
    assert (env["USER"], env["HOME"], env["SHELL"]) == ("1000", "/", "/bin/sh")


def test_an_env_file_is_read_line_by_line_and_nothing_is_expanded(tmp_path: Path):
    file = tmp_path / "env"
    file.write_text(
        '# a comment\n\n  A=1  \r\nexport B=two words\nC="x # y"\nD=\'$A\'\nE=\nF="open\nG=a=b\nd.t=1\n'
    )
    assert read_env_file(str(file)) == {
        "A": "1",
        "B": "two words",
        "C": "x # y",
        "D": "$A",
        "E": "",
        "F": '"open',
        "G": "a=b",
        "d.t": "1",
    }


@pytest.mark.parametrize("line", ["A", "=s3cr3t", "A B=s3cr3t", "A = s3cr3t", "A=s3cr3t\0"])
def test_a_malformed_line_of_an_env_file_is_named_and_not_shown(tmp_path: Path, line: str):
    file = tmp_path / "env"
    file.write_text(f"OK=1\n{line}\n")
    with pytest.raises(LaunchError) as info:
        read_env_file(str(file))
    assert info.value.reason == "env_file_invalid"
    assert f"{file}:2:" in info.value.message
    assert "s3cr3t" not in info.value.message


def test_an_env_file_that_is_not_utf_8_is_invalid(tmp_path: Path):
    (tmp_path / "env").write_bytes(b"A=\xff\n")
    with pytest.raises(LaunchError, match="is not UTF-8") as info:
        read_env_file(str(tmp_path / "env"))
    assert info.value.reason == "env_file_invalid"


def test_a_launch_carries_limits_and_privileges_as_defined(plain: Definition):
    limits = Limits(rlimits={"nofile": 9, "core": None}, memory_max=1, cpu_max=0.5, pids_max=2)
    asked = {"nice": 5, "oom_score_adj": -7, "no_new_privs": True}
    launch = resolve(msgspec.structs.replace(plain, limits=limits, **asked), {}, {})
    assert (launch.rlimits, launch.memory_max) == (limits.rlimits, 1)
    assert (launch.cpu_max, launch.pids_max, launch.has_cgroup_limits) == (0.5, 2, True)
    assert {name: getattr(launch, name) for name in asked} == asked
    assert (launch.capabilities, launch.descriptors, launch.own_pid) == (None, (), ())
    assert not resolve(plain, {}, {}).has_cgroup_limits


def test_groups_stand_instead_of_those_of_the_user(
    plain: Definition, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "getegid", lambda: 0)
    monkeypatch.setattr(os, "getgroups", lambda: [0, 5])
    monkeypatch.setattr(os, "getgrouplist", lambda _name, gid: [gid, 100])
    nobody = pwd.getpwnam("nobody")

    def groups(user: str | None, *names: str) -> tuple[object, ...]:
        launch = resolve(msgspec.structs.replace(plain, user=user, groups=names), {}, {})
        return launch.uid, launch.gid, set(launch.groups)

    tty = grp.getgrnam("tty").gr_gid
    assert groups("nobody", "tty", "777") == (
        nobody.pw_uid,
        nobody.pw_gid,
        {nobody.pw_gid, tty, 777},
    )
    assert groups("nobody") == (nobody.pw_uid, nobody.pw_gid, {nobody.pw_gid})
    assert groups(None, "777") == (None, 0, {0, 777})
    assert groups(None, "5") == (None, None, set())  # those we have anyway


def test_every_user_and_group_that_is_missing_is_named(plain: Definition):
    asked = {"user": "no-such-user", "group": "no-such-group", "groups": ("0", "none-1", "none-2")}
    definition = msgspec.structs.replace(plain, **asked)
    found = obstacles(definition, {}, {"PATH": "/bin"})
    assert [(each.key, each.message.split("'")[1]) for each in found] == [
        ("user", "no-such-user"),
        ("group", "no-such-group"),
        ("groups", "none-1"),
        ("groups", "none-2"),
    ]


def test_an_unknown_group_among_several_is_named(plain: Definition):
    definition = msgspec.structs.replace(plain, groups=("0", "no-such-group"))
    assert reason(definition) == ("group_missing", "groups")


@pytest.mark.parametrize(
    ("changes", "key"), [({"groups": ("777",)}, "groups"), ({"capabilities": ()}, "capabilities")]
)
def test_who_is_not_root_can_neither_join_groups_nor_give_capabilities(
    plain: Definition, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], key: str
):
    uid = os.getuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid or 65534)
    monkeypatch.setattr(os, "getegid", lambda: pwd.getpwuid(uid or 65534).pw_gid)
    definition = msgspec.structs.replace(plain, **changes)
    assert reason(definition) == ("not_permitted", key)
