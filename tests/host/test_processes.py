"""One look at every process serves all runs, and nobody is taken for a member who is not."""

from __future__ import annotations

import asyncio
import os

import pytest

from registry.host import proc, processes
from registry.host.members import Groups, Process

pytestmark = pytest.mark.platform("linux")


def stat(pid: int, session: int, **fields) -> proc.Stat:
    given = {"comm": "x", "state": "S", "parent": 1, "group": session, "flags": 0, "threads": 1}
    given |= {"start_time": pid, "wait_status": 0, **fields}
    return proc.Stat(pid=pid, session=session, **given)  # type: ignore[arg-type]


@pytest.fixture
def machine(monkeypatch):
    """Makes a machine of these processes, each with its mark; the list of looks at it."""
    looks: list[None] = []

    def make(marked: dict[proc.Stat, str | None]) -> list[None]:
        by_pid = {each.pid: each for each in marked}

        def all_pids() -> list[int]:
            looks.append(None)
            return list(by_pid)

        monkeypatch.setattr(proc, "all_pids", all_pids)
        monkeypatch.setattr(proc, "stat", by_pid.get)
        monkeypatch.setattr(proc, "mark", lambda pid: marked[by_pid[pid]])
        return looks

    return make


def adopted(pid: int, mark: str) -> Process:
    return Process(service="s", run=1, pid=pid, mark=mark, start_time=pid, is_child=False)


def test_session_and_mark_and_acquaintance_make_a_member(machine):
    machine({stat(5, 5): "a", stat(6, 5): "", stat(7, 7): "a", stat(8, 8): "b", stat(9, 9): ""})
    found = processes.look(set())
    pids = {each.pid for each in found.of(5, "a", [(9, 9), (8, 1)])}
    assert pids == {5, 6, 7, 9}


def test_a_session_outside_of_our_pid_namespace_is_nobodys(machine):
    """/proc shows 0 for each of them: whoever took that for one session would end half the machine."""
    machine({stat(5, 0): "", stat(6, 0): "", stat(7, 0): "a"})
    found = processes.look(set())
    assert [each.pid for each in found.of(None, "a", [])] == [7]
    assert [each.pid for each in found.of(0, "a", [])] == [7]


def test_who_is_led_by_another_run_is_not_asked_for_a_mark(machine):
    machine({stat(5, 5): "a", stat(6, 6): "a"})
    assert [each.pid for each in processes.look({5}).of(None, "a", [])] == [6]


def test_it_is_looked_again_until_what_cannot_be_told_stays_the_same(machine):
    looks = machine({stat(5, 5, state="Z"): None, stat(6, 6): None})
    found = processes.look_again(processes.look(set()), set())
    assert (found.unsure, len(looks)) == ({5, 6}, 2)


async def test_one_look_in_a_turn_of_the_loop_serves_every_run(machine, capabilities):
    looks = machine({stat(5, 5): "a", stat(6, 6): "b"})
    groups = Groups(capabilities)
    for _turn in range(2):
        looks.clear()
        assert [each.pid for each in groups.members(adopted(5, "a"))] == [5]
        assert [each.pid for each in groups.members(adopted(6, "b"))] == [6]
        assert groups.members(adopted(7, "c")) == []
        assert len(looks) == 1
        await asyncio.sleep(0)


async def test_an_end_that_no_pidfd_has_told_of_is_looked_at_anew(machine, capabilities):
    looks = machine({stat(5, 5): "a"})
    groups = Groups(capabilities)
    groups.members(adopted(5, "a"))
    groups.look_anew()
    groups.members(adopted(5, "a"))
    assert len(looks) == 2
    assert os.getpid() not in {each.pid for each in processes.look(set()).by_pid.values()}
