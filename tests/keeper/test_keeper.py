"""What the keeper promises, shown on real processes: no byte, exit or descriptor is ever lost."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from registry.keeper.client import ENDED_MAX
from registry.keeper.loop import RATE_MAX, Pace
from registry.keeper.protocol import Channel
from registry.logs.files import CHUNK, TURN_MAX
from registry.logs.read import tail_and_follow
from registry.logs.target import LogTarget

WRITER = """
import os, sys
for number in range(int(sys.argv[2])):
    os.write(1, b"%s %d\\n" % (sys.argv[1].encode(), number))
"""

DAEMON = """
import asyncio, os, sys
from pathlib import Path
from registry.keeper.client import Keeper
from registry.logs.target import LogTarget

async def main():
    folder = Path(sys.argv[1])
    nothing = lambda *_: None
    keeper = Keeper(folder / "keeper.sock", on_grew=nothing, on_output_ended=nothing, log=print)
    assert (await keeper.connect()).kept == []
    reader = os.open(folder / "fifo0", os.O_RDONLY | os.O_NONBLOCK)
    log = LogTarget(str(folder / "web.log"), 1000000, 3)
    keeper.keep("web", 7, reader, os.pidfd_open(int(sys.argv[2])), log)
    keeper.flush()
    print(keeper.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


pytestmark = pytest.mark.platform("linux")


@pytest.fixture
def log(folder: Path) -> LogTarget:
    return LogTarget(str(folder / "log" / "web.log"), 1_000_000, 5)


def text_of(log: LogTarget) -> str:
    return Path(log.path).read_text()


def start_writer(output, name: str, count: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITER, name, str(count)], stdout=output.writer)


def all_lines(log: LogTarget) -> list[str]:
    lines, follower = tail_and_follow(Path(log.path), 10_000_000)
    follower.close()
    return lines


async def sent(side) -> None:
    """Once all that was said is on its way."""
    await asyncio.wait_for(_nothing_pending(side), 10)


async def _nothing_pending(side) -> None:
    while side._pending:  # noqa: ASYNC110  it says so to nobody
        await asyncio.sleep(0.001)


def count_fds(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


async def answered(side) -> None:
    """Everything sent before has been dealt with: a run with ended output is reported in order."""
    reader, writer = os.pipe()
    os.close(writer)
    side.keep("marker", len(side.processes), reader, None, None)
    os.close(reader)
    while (await side.ended.get())[0] != "marker":
        pass


@pytest.mark.parametrize("splice", ["yes", "no"])
async def test_bytes_arrive_exactly(splice, start_keeper, make_side, make_output, log) -> None:
    start_keeper("--splice", splice)
    side, output = make_side(), make_output()
    assert (await side.connect()).kept == []
    side.keep("web", 1, output.reader, None, log)
    data = bytes(range(256)) * 2000
    await asyncio.to_thread(os.write, output.writer, data)
    output.end()
    assert await side.ended.get() == ("web", 1, 0)
    assert Path(log.path).read_bytes() == data


async def test_a_keeper_is_a_process_of_its_own_and_small(make_side, make_output, folder) -> None:
    side = make_side()
    await side.connect()
    side.keep("web", 1, make_output().reader, None, None)
    await answered(side)
    pid = side.pid
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    # 11.2 MB, of which 8.5 MB are a Python that does nothing: only a heavy import breaks this bound.
    assert int(status["VmRSS"].split()[0]) < 12_500
    assert (folder / "keeper.sock").stat().st_mode & 0o777 == 0o600
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGTERM):
        os.kill(pid, ignored)
    await answered(side)
    assert side.pid == pid


async def test_many_writers_and_rotation_lose_and_split_nothing(
    make_side, make_output, log
) -> None:
    side = make_side()
    await side.connect()
    log = LogTarget(log.path, 20_000, 1000)
    outputs = [make_output() for _ in range(3)]
    writers = []
    for run, output in enumerate(outputs):
        side.keep("web", run, output.reader, None, log)
        writers += [start_writer(output, f"{run}-{n}", 3000) for n in range(2)]
        output.end()
    assert sorted([await side.ended.get() for _ in outputs]) == [("web", n, 0) for n in range(3)]
    assert [writer.wait() for writer in writers] == [0] * 6
    assert len(os.listdir(Path(log.path).parent)) > 5
    lines = all_lines(log)
    assert len(lines) == 18_000
    for name in (f"{run}-{n}" for run in range(3) for n in range(2)):
        assert [s for s in lines if s.startswith(f"{name} ")] == [
            f"{name} {i}" for i in range(3000)
        ]


async def test_kill_9_of_the_keeper_under_flood_loses_and_doubles_nothing(
    make_side, make_output, log
) -> None:
    side, output = make_side(), make_output()
    await side.connect()
    log = LogTarget(log.path, 200_000, 1000)
    side.watch("web")
    side.keep("web", 1, output.reader, None, log)
    writer = start_writer(output, "n", 300_000)
    output.end()
    for _ in range(4):
        await side.grown.get()
        pid = side.pid
        os.kill(pid, signal.SIGKILL)
        while "is gone" not in await side.said.get():
            pass
        while not side.grown.empty():
            side.grown.get_nowait()
    assert await side.ended.get() == ("web", 1, 0)
    assert writer.wait() == 0
    assert len(side.processes) == 5
    assert all_lines(log) == [f"n {i}" for i in range(300_000)]


async def test_many_runs_of_one_turn_are_kept_by_few_messages(
    make_side, make_output, monkeypatch
) -> None:
    side, outputs = make_side(), [make_output() for _ in range(40)]
    await side.connect()
    sendings, send_some = [], Channel.send_some

    def counted(channel, messages):
        sendings.append(send_some(channel, messages))
        return sendings[-1]

    monkeypatch.setattr(Channel, "send_some", counted)
    for run, output in enumerate(outputs):
        side.keep("web", run, output.reader, None, None)
    assert sendings == [16, 16]
    side.flush()
    assert sendings == [16, 16, 8]
    side.keep("web", 40, outputs[0].reader, None, None)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert sendings == [16, 16, 8, 1]
    for output in outputs:
        output.end()
    assert sorted([await side.ended.get() for _ in range(41)]) == [("web", n, 0) for n in range(41)]


async def test_kill_9_of_the_daemon_gives_the_next_one_all_back(
    make_side, make_output, folder
) -> None:
    output = make_output()
    service = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=output.writer)
    arguments = [sys.executable, "-c", DAEMON, str(folder), str(service.pid)]
    daemon = subprocess.Popen(arguments, stdout=subprocess.PIPE)
    assert daemon.stdout is not None
    assert service.stdin is not None
    keeper_pid = int(daemon.stdout.readline())
    daemon.kill()
    daemon.wait()
    daemon.stdout.close()
    service.stdin.write(b"said to nobody\n")
    service.stdin.close()
    side = make_side()
    [kept] = (await side.connect()).kept
    assert side.pid == keeper_pid
    log = LogTarget(str(folder / "web.log"), 1_000_000, 3)
    assert (kept.service, kept.run, kept.log) == ("web", 7, log)
    assert os.fstat(kept.output_fd).st_ino == os.fstat(output.reader).st_ino
    assert select.select([kept.pidfd], [], [], 5)[0]
    assert service.wait() == 0
    kept.close()
    output.end()
    assert await side.ended.get() == ("web", 7, 0)
    assert text_of(log) == "said to nobody\n"


async def test_an_output_that_ended_while_nobody_listened_is_told_later(
    make_side, make_output, folder, log
) -> None:
    first, output = make_side(), make_output()
    await first.connect()
    pidfd = os.pidfd_open(os.getpid())
    first.keep("web", 3, output.reader, pidfd, log)
    os.close(pidfd)
    await answered(first)
    first.close()
    output.write("last words\n")
    output.end()
    second = make_side()
    [kept] = (await second.connect()).kept
    assert (kept.service, kept.run) == ("web", 3)
    kept.close()
    assert await second.ended.get() == ("web", 3, 0)
    assert text_of(log) == "last words\n"


async def test_one_that_was_reached_is_the_one_that_is_asked(make_side, is_dead) -> None:
    side = make_side()
    side.reach()
    pid = side.pid
    assert pid is not None, "it begins while the daemon does"
    assert (await side.connect()).kept == []
    assert side.pid == pid
    side.close()
    is_dead(pid)


async def test_it_ends_with_a_daemon_that_could_not_begin(make_side, is_dead) -> None:
    side = make_side()
    side.reach()
    pid = side.pid
    side.close()
    is_dead(pid)


async def test_what_is_said_last_arrives_however_much_it_is(make_side, is_dead) -> None:
    side = make_side()
    await side.connect()
    pid = side.pid
    pidfd = os.pidfd_open(os.getpid())
    for run in range(1, 1001):
        side.keep("web", run, None, pidfd, None)
    os.close(pidfd)
    await sent(side)
    for run in range(1, 1001):
        side.release("web", run)
    side.close()
    is_dead(pid)


async def test_it_ends_when_nothing_is_left(make_side, make_output, folder, log, is_dead) -> None:
    side, output = make_side(), make_output()
    await side.connect()
    pid = side.pid
    side.keep("web", 1, output.reader, None, log)
    await answered(side)
    side.close()
    os.kill(pid, signal.SIGTERM)
    output.write("x\n")
    output.end()
    is_dead(pid)
    assert not (folder / "keeper.sock").exists()
    assert text_of(log) == "x\n"


async def test_an_unread_exit_keeps_it_alive_until_released(make_side, folder, is_dead) -> None:
    service = subprocess.Popen(["true"])
    side = make_side()
    await side.connect()
    pidfd = os.pidfd_open(service.pid)
    side.keep("web", 1, None, pidfd, None)
    os.close(pidfd)
    await answered(side)
    service.wait()
    side.close()
    again = make_side()
    [kept] = (await again.connect()).kept
    assert again.pid == next(iter(side.processes))
    kept.close()
    again.release("web", 1)
    pid = again.pid
    await answered(again)
    again.close()
    is_dead(pid)


async def test_what_was_released_while_it_was_away_is_not_kept(make_side, make_output, log) -> None:
    side, output = make_side(), make_output()
    await side.connect()
    pidfd = os.pidfd_open(os.getpid())
    side.keep("web", 1, None, pidfd, None)
    side.keep("api", 1, output.reader, pidfd, log)
    os.close(pidfd)
    await answered(side)
    side._lose("was left by the test")
    side.release("web", 1)
    side.release("api", 1)
    side.watch("api")
    output.write("x\n")
    assert await side.grown.get() == "api"
    await answered(side)
    assert text_of(log) == "x\n"
    side.close()
    other = make_side()
    kept = (await other.connect()).kept
    assert [(k.service, k.output_fd is None, k.pidfd) for k in kept] == [("api", False, None)]
    for each in kept:
        each.close()


async def test_another_main_process_leaves_the_output_as_it_is(make_side, make_output, log) -> None:
    side, output = make_side(), make_output()
    await side.connect()
    first, second = os.pidfd_open(os.getpid()), os.pidfd_open(os.getppid())
    side.keep("web", 1, output.reader, first, log)
    side.keep("web", 1, None, second, None)
    await answered(side)
    os.kill(side.pid, signal.SIGKILL)
    assert "is gone" in await side.said.get()
    output.write("x\n")
    await answered(side)
    side._disconnect()
    [kept] = (await make_side().connect()).kept
    assert kept.log == log
    assert f"Pid:\t{os.getppid()}\n" in Path(f"/proc/self/fdinfo/{kept.pidfd}").read_text()
    kept.close()
    os.close(first)
    os.close(second)
    assert text_of(log) == "x\n"


async def test_redirected_output_goes_to_the_other_log_from_then_on(
    make_side, make_output, log
) -> None:
    side, output = make_side(), make_output()
    other, third = (LogTarget(f"{log.path}-{name}", 1000, 2) for name in ("other", "third"))
    await side.connect()
    side.keep("web", 1, output.reader, None, log)
    side.redirect("web", 9, other)
    side.watch("web")
    output.write("x\n")
    while not (Path(log.path).exists() and text_of(log)):
        await side.grown.get()
    side.redirect("web", 1, other)
    await answered(side)
    output.write("y\n")
    while not (Path(other.path).exists() and text_of(other)):
        await side.grown.get()
    side._lose("was left by the test")
    side.redirect("web", 1, third)
    await answered(side)
    output.write("z\n")
    output.end()
    assert await side.ended.get() == ("web", 1, 0)
    assert [text_of(each) for each in (log, other, third)] == ["x\n", "y\n", "z\n"]


async def test_only_watched_services_are_reported(make_side, make_output, log) -> None:
    side, web, api = make_side(), make_output(), make_output()
    await side.connect()
    side.keep("web", 1, web.reader, None, log)
    side.keep("api", 1, api.reader, None, LogTarget(f"{log.path}-api", 1000, 2))
    side.watch("web")
    assert await side.grown.get() == "web"
    api.write("x\n")
    web.write("x\n")
    assert await side.grown.get() == "web"
    side.unwatch("web")
    await answered(side)
    web.write("y\n")
    web.end()
    assert (await side.ended.get())[0] == "web"
    assert side.grown.empty()
    assert text_of(log) == "x\ny\n"


async def test_a_log_is_followed_across_rotation(make_side, make_output, log) -> None:
    side, output = make_side(), make_output()
    await side.connect()
    log = LogTarget(log.path, 1000, 100)
    side.keep("web", 1, output.reader, None, log)
    side.watch("web")
    await answered(side)
    lines, follower = tail_and_follow(Path(log.path), 10)
    writer = start_writer(output, "n", 5000)
    while len(lines) < 5000:
        await side.grown.get()
        lines += follower.read_new()
    follower.close()
    writer.wait()
    assert lines == [f"n {i}" for i in range(5000)]


async def test_a_flood_waits_beyond_what_its_log_holds_and_nobody_else_does(
    make_side, make_output, log, folder
) -> None:
    side, flood, other = make_side(), make_output(), make_output()
    await side.connect()
    began_s = time.monotonic()
    side.keep("flood", 1, flood.reader, None, LogTarget(log.path, 1 << 20, 2))
    side.keep("other", 1, other.reader, None, LogTarget(str(folder / "other.log"), 1000, 1))
    written = 0
    while written <= 2 << 20 or time.monotonic() < began_s + 0.5:
        written += await asyncio.to_thread(os.write, flood.writer, b"." * 4095 + b"\n")
    passed_s = time.monotonic() - began_s
    assert written < (2 << 20) + passed_s * RATE_MAX + TURN_MAX + CHUNK
    other.write("meanwhile\n")
    other.end()
    assert await side.ended.get() == ("other", 1, 0)
    flood.end()  # what it wrote last has its turn, too
    assert await side.ended.get() == ("flood", 1, 0)


def test_an_output_that_is_slow_never_waits(monkeypatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    pace = Pace()
    assert pace.wait_s(1000, burst=1000) == 0
    assert pace.wait_s(RATE_MAX, burst=1000) == 1
    now_s += 2
    for _ in range(10):
        now_s += 0.1
        assert pace.wait_s(RATE_MAX // 10, burst=RATE_MAX // 10) == 0


def test_a_log_that_is_to_hold_less_is_no_debt() -> None:
    pace = Pace()
    assert pace.wait_s(1 << 30, burst=1 << 30) == 0
    assert pace.wait_s(1, burst=1000) <= (TURN_MAX + 1) / RATE_MAX


async def test_a_log_that_cannot_be_written_harms_no_other(
    make_side, make_output, log, folder
) -> None:
    side, bad, good = make_side(), make_output(), make_output()
    (folder / "file").touch()
    await side.connect()
    side.keep("bad", 1, bad.reader, None, LogTarget(str(folder / "file" / "bad.log"), 1000, 2))
    side.keep("worse", 1, bad.reader, None, LogTarget("nul\0\ud800", 1000, 2))
    side.keep("good", 1, good.reader, None, log)
    bad.write("lost\n")
    bad.end()
    ended = {await side.ended.get(), await side.ended.get()}
    assert {name for name, _, _ in ended} == {"bad", "worse"}
    good.write("kept\n")
    good.end()
    assert await side.ended.get() == ("good", 1, 0)
    assert text_of(log) == "kept\n"
    assert "no usable log target for worse" in (folder / "keeper.log").read_text()


async def test_dropped_bytes_are_counted_for_their_run(make_side, make_output, folder) -> None:
    side, output = make_side(), make_output()
    (folder / "file").touch()
    await side.connect()
    side.keep("web", 1, output.reader, None, LogTarget(str(folder / "file" / "x.log"), 1000, 2))
    output.write("lost\n")
    output.end()
    assert await side.ended.get() == ("web", 1, 5)
    assert "Not a directory" in (folder / "keeper.log").read_text()


async def test_a_stale_socket_is_replaced(make_side, folder) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(folder / "keeper.sock"))
    side = make_side()
    assert (await side.connect()).kept == []
    assert side.pid is not None
    assert side.said.empty()


async def test_a_newer_daemon_replaces_the_older(make_side, make_output, log) -> None:
    older, newer, output = make_side(), make_side(), make_output()
    await older.connect()
    older.keep("web", 1, output.reader, None, log)
    await answered(older)
    [kept] = (await newer.connect()).kept
    kept.close()
    assert "another daemon" in await older.said.get()
    output.end()
    assert await newer.ended.get() == ("web", 1, 0)
    assert older.ended.empty()


async def test_no_descriptor_leaks(make_side, make_output) -> None:
    side = make_side()
    await side.connect()
    await answered(side)
    before = count_fds(side.pid), count_fds(os.getpid())
    pidfd = os.pidfd_open(os.getpid())
    for run in range(200):
        reader, writer = os.pipe()
        os.close(writer)
        side.keep("web", run, reader, pidfd, None)
        side.keep("web", run, reader, pidfd, None)
        os.close(reader)
        side.release("web", run)
    os.close(pidfd)
    for _ in range(200):
        await side.ended.get()
    await answered(side)
    assert (count_fds(side.pid), count_fds(os.getpid())) == before


async def test_a_keeper_that_cannot_be_started_is_tried_again(
    make_side, make_output, log, folder
) -> None:
    side, output = make_side(python=str(folder / "python")), make_output()
    assert (await side.connect()).kept == []
    assert "cannot be started" in await side.said.get()
    side.keep("web", 1, output.reader, None, log)
    output.write("waited\n")
    output.end()
    os.symlink(sys.executable, folder / "python")
    assert await side.ended.get() == ("web", 1, 0)
    assert text_of(log) == "waited\n"


async def test_a_keeper_that_dies_at_once_is_tried_again_ever_more_slowly(make_side) -> None:
    side = make_side(python="/bin/false")
    assert (await side.connect()).kept == []
    for _ in range(3):
        assert "keeper is gone" in await side.said.get()
    assert side._delay_s >= 0.2
    assert len(side.processes) >= 3


async def test_without_a_keeper_ended_outputs_are_bounded(make_side, folder) -> None:
    side = make_side(python=str(folder / "python"))
    await side.connect()
    before = count_fds(os.getpid())
    reader, writer = os.pipe()
    for run in range(ENDED_MAX + 50):
        side.keep("web", run, reader, None, None)
    assert count_fds(os.getpid()) == before + 2 + ENDED_MAX
    os.close(reader)
    os.close(writer)


async def test_its_own_log_is_bounded(make_side, folder) -> None:
    own = folder / "keeper.log"
    own.write_bytes(b"x" * 300_000)
    side = make_side()
    await side.connect()
    await answered(side)
    assert own.stat().st_size < 1000
    assert (folder / "keeper.log.1").stat().st_size == 300_000


def test_a_wrong_command_line_is_one_sentence(program) -> None:
    found = subprocess.run(
        [sys.executable, program, "--x"], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stderr.count("\n")) == (os.EX_USAGE, 1)


async def test_an_ended_output_is_told_to_every_daemon_until_one_has_taken_note(
    make_side, make_output, log, is_dead
) -> None:
    first, output = make_side(hears=False), make_output()
    await first.connect()
    first.keep("web", 2, output.reader, None, log)
    output.write("alas\n")
    output.end()
    assert await first.ended.get() == ("web", 2, 0)
    pid = first.pid
    first._disconnect()  # it dies: not a word more
    second = make_side(hears=False)
    [kept] = (await second.connect()).kept
    assert second.pid == pid, "there was nothing else to keep, and yet it stayed"
    assert (kept.service, kept.run, kept.output_fd, kept.log) == ("web", 2, None, log)
    assert await second.ended.get() == ("web", 2, 0)
    second.heard("web", 2)
    await answered(second)
    second._disconnect()
    third = make_side()
    assert [kept for kept in (await third.connect()).kept if kept.service == "web"] == []


async def test_a_daemon_that_leaves_wants_to_be_told_nothing_more(
    make_side, make_output, log, is_dead
) -> None:
    side, output = make_side(hears=False), make_output()
    await side.connect()
    side.keep("web", 2, output.reader, None, log)
    output.end()
    await side.ended.get()
    pid = side.pid
    side.close()
    is_dead(pid)
