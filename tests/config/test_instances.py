"""`instances`: one table read as often as it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from registry.config import Config
from registry.core.definition import Check, Socket

Read = Callable[[str], Config]
Refused = Callable[[str], list[str]]

PLAIN = '[[service]]\nname = "last"\ncmd = ["x"]\n'


def test_every_instance_has_its_name_its_number_and_its_place(read: Read):
    config = read('[[service]]\nname = "web"\ncmd = ["x"]\ninstances = 3\n' + PLAIN)
    assert [(d.name, d.instance_of, d.instance, d.position) for d in config.definitions] == [
        ("web@1", "web", 1, 0),
        ("web@2", "web", 2, 1),
        ("web@3", "web", 3, 2),
        ("last", None, None, 3),
    ]


def test_one_instance_is_an_instance_too(read: Read):
    (only,) = read('[[service]]\nname = "web"\ncmd = ["x"]\ninstances = 1\n').definitions
    assert (only.name, only.instance_of, only.instance) == ("web@1", "web", 1)


def test_the_number_is_in_every_string_wherever_it_comes_from(read: Read, root: Path):
    config = read(
        """
        [defaults]
        env_file = "{instance}.env"
        health_check = { interval = "{instance}s" }
        [[service]]
        name = "web"
        instances = 2
        cmd = ["./web-{instance}", "{instance}{instance}", "{other}"]
        env = { N = "{instance}", "V{instance}" = "" }
        cwd = "srv/{instance}"
        stop = "{instance}s"
        tags = ["t{instance}"]
        sockets = { http = "127.0.0.1:808{instance}" }
        health_check = ["tcp:[::{instance}]:1", { target = "unix:{instance}.sock" }]
        """
    )
    second = config.definitions[1]
    assert second.cmd == (f"{root}/web-2", "22", "{other}")
    assert (second.cwd, second.env_file) == (f"{root}/srv/2", f"{root}/2.env")
    assert (second.stop.timeout_s, second.tags) == (2.0, ("t2",))
    assert second.sockets == (Socket("http", "127.0.0.1:8082"),)
    assert second.checks == (
        Check("tcp", "tcp:[::2]:1", 2.0),
        Check("unix", f"unix:{root}/2.sock", 2.0),
    )
    assert config.environments == {
        "web@1": {"N": "1", "V1": ""},
        "web@2": {"N": "2", "V2": ""},
    }


def test_what_is_wrong_with_all_instances_is_said_once(refused: Refused):
    text = """\
[[service]]
name = "web"
instances = 4
cmd = ["{instance}", 5]
cwd = ""
nicee = 5
"""
    assert [line.split(" ")[0] for line in refused(text)] == ["4:", "5:", "6:"]


def test_what_is_wrong_with_a_later_instance_is_said(refused: Refused):
    text = '[[service]]\nname = "web"\ncmd = ["x"]\ninstances = 200\nnice = 3\n'
    text += 'sockets = { http = "127.0.0.1:655{instance}" }\n'
    (complaint,) = refused(text)
    assert complaint.startswith(
        "6: service 'web': sockets.http: found the string \"127.0.0.1:65536\""
    )


def test_instances_that_would_listen_at_one_address_are_told_so_once(refused: Refused):
    text = '[[service]]\nname = "web"\ncmd = ["x"]\ninstances = 4\nsockets.http = "127.0.0.1:80"\n'
    assert refused(text) == [
        "5: service 'web': sockets.http: every instance would listen at 127.0.0.1:80; "
        "write {instance} into the address"
    ]


def test_without_instances_the_number_is_refused_wherever_it_is_written(refused: Refused):
    text = """\
[defaults]
env = { N = "{instance}" }
[[service]]
name = "web"
cmd = ["x", "--id",
  "{instance}"]
health_check = [
  "cmd:{instance}",
]
"""
    remedy = "add for example instances = 2 or write it out"
    assert refused(text) == [
        f"2: defaults.env.N: {{instance}} is for services with instances, and service 'web' has none; {remedy}",
        f"5: service 'web': cmd: {{instance}} is for services with instances; {remedy}",
        f"8: service 'web': health_check#1: {{instance}} is for services with instances; {remedy}",
    ]


def test_a_name_is_short_enough_for_its_last_instance(read: Read, refused: Refused):
    text = f'[[service]]\nname = "{"x" * 61}"\ncmd = ["x"]\ninstances = '
    assert len(read(text + "99").definitions[-1].name) == 64
    (complaint,) = refused(text + "100")
    assert "name: is longer than 64 characters with '@100'; shorten it" in complaint


def test_without_instances_one_complaint_is_enough_for_a_number(refused: Refused):
    text = '[[service]]\nname = "web"\ncmd = ["x"]\nhealth_check = "tcp:localhost:80{instance}"\n'
    told = refused(text + 'start_timeout = "{instance}s"\n')
    assert len(told) == 2, told
    assert all("is for services with instances" in each for each in told)
