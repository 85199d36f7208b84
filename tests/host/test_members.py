"""Who belongs to a run: by session and by mark, and never whoever has its number by chance."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from registry.core.inputs import GroupGone
from registry.host import adoption, proc
from registry.host.members import Groups, Process, owner_of

SH = "/bin/sh"


def stat_of(pid: int) -> Any:
    """What /proc says of a process that is there."""
    return proc.stat(pid)


def process_of(pid: int | None, mark: str, **fields) -> Process:
    stat = proc.stat(pid) if pid is not None else None
    given = {"is_child": True, "start_time": stat.start_time if stat else None, **fields}
    return Process(service="s", run=1, pid=pid, mark=mark, **given)


@pytest.fixture(params=[True, False], ids=["child", "stranger"])
def is_child(request) -> bool:
    """Whether a run is our child, or is looked for among all processes."""
    return request.param


async def test_a_living_leader_and_its_children_are_members(host, capabilities, is_child):
    pid = host.script("sh -c 'echo $$; exec sleep 1000' & exec sleep 1001")
    child = host.executed(int(await host.line()))
    host.start("/bin/sleep", "1000", service="other")
    groups = Groups(capabilities)
    groups.led.add(pid)
    members = groups.members(process_of(pid, host.mark(), is_child=is_child))
    assert {member.pid for member in members} == {pid, child}


async def test_a_stray_is_a_member_by_its_mark_alone(host, capabilities, is_child):
    pid = host.script("setsid -f sh -c 'echo $$; exec sleep 1000'; exec sleep 1000")
    stray = host.executed(int(await host.line()))
    assert stat_of(stray).session != pid
    groups = Groups(capabilities)
    groups.led.add(pid)
    for mark, expected in (
        (host.mark(), {pid, stray}),
        (host.mark(run=2), {pid}),
        (host.mark(run=11), {pid}),
    ):
        members = groups.members(process_of(pid, mark, is_child=is_child))
        assert {member.pid for member in members} == expected


async def test_a_stray_once_found_is_a_member_until_it_is_dead(
    host, capabilities, is_child, monkeypatch
):
    """It executes another program, or is ending: its environment cannot be seen."""
    pid = host.script("setsid -f sh -c 'echo $$; exec sleep 1000'; exec sleep 1000")
    stray = host.executed(int(await host.line()))
    process = process_of(pid, host.mark(), is_child=is_child)
    groups = Groups(capabilities)
    assert stray in {member.pid for member in groups.members(process)}
    monkeypatch.setattr(proc, "mark", lambda _pid: None)
    assert stray in {member.pid for member in groups.members(process)}


async def test_zombies_are_no_members(host, capabilities, is_child, gone):
    host.close()  # nobody reaps now
    pid = os.posix_spawn(SH, [SH, "-c", "exit 0"], {}, setsid=True)
    await gone(pid)
    assert Groups(capabilities).members(process_of(pid, "m", is_child=is_child)) == []


async def test_a_number_that_nobody_holds_any_more_may_be_anybodys(host, capabilities):
    """A leader is gone, its number has come to a stranger's session."""
    stranger = host.script("exec sleep 1000")
    ended = process_of(stranger, host.mark("other"), is_child=False)
    ended.leader_gone, ended.holds_number = True, False
    groups = Groups(capabilities)
    assert groups.members(ended) == []
    groups.signal_group(ended, signal.SIGKILL)  # no pidfd: only a verified member counts
    assert stat_of(stranger).is_alive


async def test_a_marked_member_proves_the_number(host, capabilities):
    leader = host.script(
        "env -i sh -c 'echo $$; exec sleep 1000' & sh -c 'echo $$; exec sleep 1000' & wait"
    )
    pids = {int(await host.line()), int(await host.line())}
    for pid in pids:
        while proc.program(pid) != "sleep":
            os.sched_yield()
    os.kill(leader, signal.SIGKILL)
    assert (await host.next()).group_empty is False
    left = process_of(None, host.mark(), is_child=False)
    left.leader, left.leader_gone, left.holds_number = leader, True, False
    groups = Groups(capabilities)
    assert len(groups.members(left)) == 1
    assert left.holds_number
    assert {member.pid for member in groups.members(left)} == pids
    host.stop(timeout_s=0)
    assert isinstance(await host.next(), GroupGone)


async def test_what_ends_while_it_is_looked_at_may_have_left_children(
    host, capabilities, monkeypatch
):
    """A parent that was listed is gone when looked at: the child it left is found by looking again."""
    child = host.executed(host.script("exec sleep 1000"))
    lists = [[2**22 - 1], [child]]
    monkeypatch.setattr(proc, "all_pids", lambda: lists.pop(0) if len(lists) > 1 else lists[0])
    members = Groups(capabilities).members(process_of(None, host.mark(), is_child=False))
    assert [member.pid for member in members] == [child]


async def test_a_member_is_only_signalled_while_it_is_the_same_process(host, capabilities, without):
    pid = host.script("exec sleep 1000")
    for given in (capabilities, without(["pidfd", "pidfd_group", "pidfd_exit"])):
        groups = Groups(given)
        stat = stat_of(pid)
        other = type(stat)(
            **{f: getattr(stat, f) for f in stat.__struct_fields__} | {"start_time": 1}
        )
        groups.signal_strays(process_of(None, "m"), [other], signal.SIGKILL)
        assert adoption.lives(pid, stat.start_time)
    groups.signal_strays(process_of(None, "m"), [stat], signal.SIGKILL)
    assert (await host.next()).signal == signal.SIGKILL


async def test_an_owner_is_found_through_ancestors_and_nobody_owns_us(host):
    leader = host.script("setsid sh -c 'echo $$; exec sleep 1000' & wait")
    far = int(await host.line())
    assert owner_of(far, {leader: "s"}) == "s"
    assert owner_of(far, {2**22: "t"}) is None
    assert owner_of(os.getpid(), {leader: "s"}) is None
