"""The table of capabilities: found on this machine, taken away by name."""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path

import pytest

from registry.host import capabilities as module
from registry.host import cgroup
from registry.host.capabilities import (
    FALLBACKS,
    Capabilities,
    become_subreaper,
    detect,
    find_setpriv,
)


def test_every_capability_is_probed_and_says_what_is_done_without():
    assert Capabilities.__struct_fields__ == tuple(FALLBACKS) == tuple(module._PROBES)
    assert all(what and otherwise for what, otherwise in FALLBACKS.values())


def test_this_machine_has_what_it_always_had():
    found = detect({})
    assert found.proc
    assert found.waitid
    assert found.subreaper
    assert found.pidfd


@pytest.mark.parametrize("name", FALLBACKS)
def test_each_can_be_taken_away(name):
    assert getattr(detect({"CIRCLEOSD_WITHOUT": name}), name) is False
    lost = {each for each in FALLBACKS if not getattr(detect({"CIRCLEOSD_WITHOUT": name}), each)}
    had = {each for each in FALLBACKS if getattr(detect({}), each)}
    needed = {"pidfd": {"pidfd_group", "pidfd_exit"}, "proc": {"proc_children"}}
    needed["subreaper"] = {"proc_children"}
    assert lost & had == ({name} | needed.get(name, set())) & had


def test_several_are_taken_away_with_spaces_and_empty_words():
    found = detect({"CIRCLEOSD_WITHOUT": " waitid, ,splice,"})
    assert (found.waitid, found.splice, found.proc) == (False, False, True)


def test_an_unknown_name_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match="no capability by 'pidfds'; those are: proc, pidfd,"):
        detect({"CIRCLEOSD_WITHOUT": "waitid,pidfds"})


@pytest.mark.parametrize(
    ("release", "knows"),
    [
        ("6.15.0", True),
        ("7.0", True),
        ("6.14.11-arch1", False),
        ("6.15-rc1", True),
        ("5.10.0", False),
    ],
)
def test_exits_are_known_by_the_kernels_age(monkeypatch, release, knows):
    uname = os.uname()
    monkeypatch.setattr(module, "_asks_info", lambda _pidfd: None)
    monkeypatch.setattr(os, "uname", lambda: type(uname)((*uname[:2], release, *uname[3:])))
    assert detect({}).pidfd_exit is knows


@pytest.mark.parametrize("number", ["pidfd_open", "pidfd_send_signal", "ioctl"])
def test_what_the_kernel_refuses_is_not_there(monkeypatch, number):
    def refuse(*_arguments):
        raise OSError(38, "Function not implemented")

    target = {"pidfd_open": os, "pidfd_send_signal": signal, "ioctl": fcntl}[number]
    monkeypatch.setattr(target, number, refuse)
    found = detect({})
    assert found.pidfd is (number != "pidfd_open")
    assert found.pidfd_group is (number == "ioctl" and detect({}).pidfd_group)
    assert found.pidfd_exit is (number == "pidfd_send_signal" and detect({}).pidfd_exit)


@pytest.mark.parametrize(("release", "has"), [("5.14.0", True), ("5.13.19", False)])
def test_a_cgroup_is_of_use_where_it_can_be_killed(monkeypatch, release, has):
    uname = os.uname()
    monkeypatch.setattr(os, "uname", lambda: type(uname)((*uname[:2], release, *uname[3:])))
    monkeypatch.setattr(cgroup, "find", lambda: Path("/own"))
    assert detect({}).cgroup is has
    monkeypatch.setattr(cgroup, "find", lambda: None)
    assert not detect({}).cgroup


def test_detecting_leaves_no_descriptor():
    before = os.listdir("/proc/self/fd")
    detect({})
    assert os.listdir("/proc/self/fd") == before


def test_setpriv_is_where_it_is_said_to_be(monkeypatch):
    assert os.access(find_setpriv() or "", os.X_OK)
    monkeypatch.setattr(os, "access", lambda *_arguments: False)
    assert find_setpriv() is None
    assert not detect({}).setpriv


@pytest.mark.usefixtures("_subreaper")
def test_we_can_become_a_subreaper():
    assert become_subreaper()
