"""What a service gets: environment, folder, umask, user, descriptors; and what stays out of the journal."""

from __future__ import annotations

import grp
import json
import os
import pwd
import signal

import pytest

TELL = """
import json, os, resource, signal, sys, time
umask = os.umask(0)
fds = sorted(int(name) for name in os.listdir("/proc/self/fd"))
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
told = {
    "env": dict(os.environ), "cwd": os.getcwd(), "umask": umask, "uid": os.getresuid(), "gid": os.getresgid(),
    "groups": os.getgroups(), "fds": [fd for fd in fds if fd > 2 and os.path.exists(f"/proc/self/fd/{fd}")],
    "sid": os.getsid(0) == os.getpid(), "ignored": int(status["SigIgn"], 16), "blocked": int(status["SigBlk"], 16),
    "stdin": os.readlink("/proc/self/fd/0"),
}
print(json.dumps(told), flush=True)
time.sleep(1000)
"""


def told(box, keys: str = "", count: int = 1, **environment: str):
    """What a service found, in its latest run."""
    if box.daemon is None:
        box.configure(f'[[service]]\nname = "tell"\ncmd = {box.python("tell", TELL)}\n{keys}\n')
        box.start(**environment)
    box.wait_for(lambda: box.log("tell").count("\n") >= count, "it has told")
    return json.loads(box.log("tell").splitlines()[-1])


def test_the_environment_is_small_clean_and_documented(box):
    env = told(box, SECRET_OF_THE_DAEMON="x", LANG="C.UTF-8", TZ="UTC", PYTHONHOME="", LC_ALL="C")[
        "env"
    ]
    for name in ("LC_CTYPE",):
        env.pop(name, None)  # Python's own, made at its start
    own = {"CIRCLEOSD_SERVICE", "CIRCLEOSD_SOCKET", "CIRCLEOSD_RUN"}
    entry = pwd.getpwuid(os.getuid())
    assert set(env) == own | {"PATH", "LANG", "TZ", "HOME", "USER", "LOGNAME", "SHELL"}
    assert (env["LANG"], env["TZ"], env["PATH"]) == ("C.UTF-8", "UTC", os.environ["PATH"])
    assert (env["HOME"], env["USER"]) == (entry.pw_dir, entry.pw_name)
    assert (env["CIRCLEOSD_SERVICE"], env["CIRCLEOSD_SOCKET"]) == ("tell", str(box.socket))
    journal, service, run = env["CIRCLEOSD_RUN"].split("/")
    assert (service, run) == ("tell", "1")
    assert journal == box.events()[0]["data"]["journal_id"]


def test_env_wins_over_env_file_and_both_over_what_is_given(box):
    (box.folder / "app.env").write_text(
        "# comment\nA=file\nexport B='quoted value'\nTZ=file\nC=file\n"
    )
    keys = 'env_file = "app.env"\nenv = { C = "toml", "odd.name" = "yes", EMPTY = "" }'
    env = told(box, keys, TZ="daemon")["env"]
    assert (env["A"], env["B"], env["C"], env["TZ"]) == ("file", "quoted value", "toml", "file")
    assert (env["odd.name"], env["EMPTY"]) == ("yes", "")


def test_an_env_file_is_read_again_at_each_start(box):
    path = box.folder / "app.env"
    path.write_text("A=one\n")
    assert told(box, 'env_file = "app.env"')["env"]["A"] == "one"
    path.write_text("A=two\n")
    box.data("restart", service="tell", wait=True)
    assert told(box, count=2)["env"]["A"] == "two"
    path.write_text("this is no assignment\n")
    answer = box.data("restart", service="tell", wait=True)
    assert (answer[0]["status"], answer[0]["reason"]) == ("Failed", "env_file_invalid")


def test_values_of_variables_are_in_no_file_of_the_registry(box):
    (box.folder / "app.env").write_text("FILE_SECRET=hunter2-of-the-file\n")
    keys = 'env_file = "app.env"\nenv = { TOML_SECRET = "hunter2-of-the-toml" }'
    keys += '\nhealth_check = { target = "cmd:false", on_failure = "report", interval = "50ms" }'
    told(box, keys)
    box.data("status", service="tell")
    box.data("stop", service="tell", wait=True)
    assert box.stop() == 0
    for path in (box.folder / "var").rglob("*"):
        if path.is_file() and path.name != "tell.log":
            assert b"hunter2" not in path.read_bytes(), path.name
    assert b"TOML_SECRET" in box.journal.read_bytes(), "the name is"
    assert "hunter2" not in box.errors.read_text()


def test_folder_umask_and_the_rest_are_as_declared_or_as_usual(box):
    (box.folder / "place").mkdir()
    told_now = told(box, 'cwd = "place"\numask = "027"')
    assert told_now["cwd"] == str(box.folder / "place")
    assert told_now["umask"] == 0o027
    assert (told_now["fds"], told_now["sid"], told_now["stdin"]) == ([], True, "/dev/null")
    assert ignored_of(told_now) == set()
    assert told_now["blocked"] == 0


def ignored_of(told_now) -> set[int]:
    """The signals that a service ignores, less those that Python ignores itself and libc's own two."""
    usual = {signal.SIGPIPE, signal.SIGXFSZ, 32, 33}
    return {number for number in range(1, 65) if told_now["ignored"] & 1 << (number - 1)} - usual


def test_signals_that_the_registry_was_started_to_ignore_are_usual_for_services(box):
    """As by nohup, and by a shell that starts it in the background."""
    text = """
import signal
for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGCHLD):
    signal.signal(number, signal.SIG_IGN)
from registry.__main__ import main
main()
"""
    box.configure(f'[[service]]\nname = "tell"\ncmd = {box.python("tell", TELL)}\n')
    box.start(program=(str(box.program("ignoring", text)),))
    assert ignored_of(told(box)) == set()


def test_without_a_cwd_a_service_runs_in_the_root_with_umask_022(box):
    told_now = told(box)
    assert (told_now["cwd"], told_now["umask"]) == (str(box.folder), 0o022)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can run a service as another user")
def test_user_and_group_are_taken_on_wholly(box):
    entry = pwd.getpwnam("nobody")
    for folder in (box.folder,):
        folder.chmod(0o755)
    told_now = told(box, 'user = "nobody"')
    assert told_now["uid"] == [entry.pw_uid] * 3
    assert told_now["gid"] == [entry.pw_gid] * 3
    assert set(told_now["groups"]) == set(os.getgrouplist("nobody", entry.pw_gid))
    assert (told_now["env"]["USER"], told_now["env"]["HOME"]) == ("nobody", entry.pw_dir)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can run a service with another group")
def test_a_group_alone_changes_the_group_alone(box):
    group = grp.getgrgid(pwd.getpwnam("nobody").pw_gid)
    told_now = told(box, f'group = "{group.gr_name}"')
    assert told_now["uid"] == [0] * 3
    assert told_now["gid"] == [group.gr_gid] * 3


def test_the_files_of_the_registry_are_its_owners_alone(box):
    told(box)
    for path in (box.folder / "var").iterdir():
        if path.is_file() and not path.is_symlink():
            assert path.stat().st_mode & 0o027 == 0, path.name
