"""A question is answered by a process of its own, which is never left behind."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from registry.past import asking
from registry.past.asked import Asked, ListThen, Query, StatusThen
from registry.past.asking import Past
from registry.questions.refusal import Refusal

LOADED_BY_THE_DAEMON = """
import registry.daemon, sys
print(sorted(name for name in sys.modules if name.startswith(("registry.past.", "registry.questions.why"))))
"""
WAITS_FOR_ITS_ASKER = """
import os, socket, sys, threading
sys.path[:] = sys.argv[1:-1]
from registry.past import process
def answered(path, line):
    threading.Event().wait()
process._answered = answered
process.main()
"""


def test_the_daemon_loads_nothing_of_what_answers():
    command = [sys.executable, "-c", LOADED_BY_THE_DAEMON]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "['registry.past.asked', 'registry.past.asking']\n"


@pytest.fixture(autouse=True)
def reaped():
    """Nobody reaps here as the registry does."""
    yield
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def children() -> list[int]:
    found = []
    for task in Path("/proc/self/task").iterdir():
        found += [int(pid) for pid in (task / "children").read_text().split()]
    return found


def lives(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


async def until(is_so):
    """Wait for something of another process, which tells nobody here."""
    async with asyncio.timeout(20):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def refused(waiting) -> tuple[str, str]:
    with pytest.raises(Refusal) as raised:
        await waiting
    return raised.value.code, raised.value.message


async def test_the_answer_is_that_of_the_journal(journal):
    told = json.loads(bytes(await Past(journal).ask("list", ListThen(100))))
    assert told["moment"]["seq"] == 100
    assert {"web", "worker"} < {each["name"] for each in told["services"]}


async def test_a_refusal_comes_back_as_one(journal):
    past = Past(journal)
    sentence = "there is no event 999: the last is event 185"
    assert await refused(past.ask("list", ListThen(999))) == ("invalid_params", sentence)
    assert (await refused(past.ask("status", StatusThen(9, "x"))))[0] == "unknown_service"


async def test_a_long_question_goes_out_whole(journal):
    words = ["x" * 250] * 999
    code, message = await refused(Past(journal).ask("list", ListThen(100, [*words, "web"])))
    assert (code, message[:36]) == ("unknown_service", "after event 100, 2026-01-03T04:01:40")


async def test_a_journal_that_cannot_be_read_is_told_with_its_path(tmp_path):
    code, message = await refused(Past(tmp_path / "no.db").ask("list", ListThen(1)))
    assert code == "journal_unreadable"
    assert message == f"the journal {tmp_path}/no.db: there is no such file; name a journal"


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        ("pass", "the process that read the journal ended without an answer"),
        (
            # the question is read: who goes without that may take along what he said (ECONNRESET)
            "import os; os.read(0, 4096); os.write(0, b'{}\\n[1')",
            "the process that read the journal ended before all was said",
        ),
    ],
)
async def test_a_process_that_says_no_answer_is_no_answer(journal, monkeypatch, program, sentence):
    monkeypatch.setattr(asking, "_PROGRAM", program)
    assert await refused(Past(journal).ask("list", ListThen(1))) == ("journal_unreadable", sentence)


async def test_an_answer_has_an_end(journal, monkeypatch):
    monkeypatch.setattr(asking, "ANSWER_MAX", 1 << 20)
    monkeypatch.setattr(asking, "_PROGRAM", "import os\nwhile True: os.write(0, b'x' * 65536)")
    assert await refused(Past(journal).ask("list", ListThen(1))) == (
        "journal_unreadable",
        "the answer has more than 1 MiB; ask for less",
    )


async def test_who_asks_no_longer_takes_the_process_along(journal, monkeypatch):
    monkeypatch.setattr(asking, "_PROGRAM", WAITS_FOR_ITS_ASKER)
    waiting = asyncio.ensure_future(Past(journal).ask("list", ListThen(1)))
    await until(children)
    (pid,) = children()
    await until(lambda: b"main" in Path(f"/proc/{pid}/cmdline").read_bytes())
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await until(lambda: not lives(pid))


async def test_a_question_has_its_time(journal, monkeypatch):
    monkeypatch.setattr(asking, "_PROGRAM", WAITS_FOR_ITS_ASKER)
    past = Past(journal, answer_s=0.2)
    code, message = await refused(past.ask("list", ListThen(1)))
    assert (code, message) == (
        "timed_out",
        "this takes more than 0.2 s; circle-replay has all the time",
    )
    await until(lambda: not any(map(lives, children())))


async def test_so_many_at_once_and_the_others_wait(journal, monkeypatch):
    most = 0
    real = asking._spawn

    def spawn(path):
        nonlocal most
        made = real(path)
        most = max(most, sum(map(lives, children())))
        return made

    monkeypatch.setattr(asking, "_spawn", spawn)
    past = Past(journal, at_once_max=2)
    told = await asyncio.gather(*(past.ask("list", ListThen(seq)) for seq in range(1, 7)))
    assert [json.loads(bytes(each))["moment"]["seq"] for each in told] == [1, 2, 3, 4, 5, 6]
    assert most <= 2


async def test_questions_in_sql_wait_for_each_other_and_nobody_else_for_them(journal, monkeypatch):
    past = Past(journal)
    real = asking._PROGRAM
    monkeypatch.setattr(asking, "_PROGRAM", WAITS_FOR_ITS_ASKER)
    slow = [asyncio.ensure_future(past.ask("query", Query("select 1"))) for _ in range(4)]
    await until(children)
    monkeypatch.setattr(asking, "_PROGRAM", real)
    told = await asyncio.gather(*(past.ask("list", ListThen(seq)) for seq in (1, 2, 3)))
    assert [json.loads(bytes(each))["moment"]["seq"] for each in told] == [1, 2, 3]
    assert not any(each.done() for each in slow)
    slow[0].cancel()
    assert json.loads(bytes(await slow[1]))["rows"] == [[1]]
    await asyncio.gather(*slow, return_exceptions=True)


async def test_whose_turn_does_not_come_is_told_so(journal, monkeypatch):
    monkeypatch.setattr(asking, "_PROGRAM", WAITS_FOR_ITS_ASKER)
    past = Past(journal, at_once_max=1, turn_s=0.2)
    slow = asyncio.ensure_future(past.ask("list", ListThen(1)))
    await until(children)
    assert await refused(past.ask("list", ListThen(1))) == (
        "timed_out",
        "busy: for 0.2 s it was the turn of other questions; ask again later",
    )
    slow.cancel()
    await asyncio.wait([slow])


async def test_the_process_makes_way_for_everybody_else(journal, monkeypatch):
    monkeypatch.setattr(asking, "_PROGRAM", WAITS_FOR_ITS_ASKER)
    waiting = asyncio.ensure_future(Past(journal).ask("list", ListThen(1)))
    await until(children)
    (pid,) = children()
    own = os.getpriority(os.PRIO_PROCESS, 0)
    await until(lambda: os.getpriority(os.PRIO_PROCESS, pid) == min(19, own + 10))
    await until(lambda: Path(f"/proc/{pid}/oom_score_adj").read_text() == "1000\n")
    assert os.getsid(pid) == pid
    waiting.cancel()
    await asyncio.wait([waiting])


async def test_no_descriptor_is_left(journal):
    past = Past(journal)
    await past.ask("list", ListThen(1))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        await past.ask("list", ListThen(1))
        await refused(past.ask("list", ListThen(999)))
    await asyncio.sleep(0)
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)


async def test_no_process_to_be_had_is_a_sentence(journal, monkeypatch):
    def none(*_given, **_how):
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "posix_spawn", none)
    assert await refused(Past(journal).ask("list", ListThen(1))) == (
        "journal_unreadable",
        "no process can be made to read the journal: Resource temporarily unavailable",
    )


def test_what_goes_in_is_one_line():
    told = msgspec.json.encode(Asked("list", msgspec.Raw(msgspec.json.encode(ListThen(1)))))
    assert b"\n" not in told
