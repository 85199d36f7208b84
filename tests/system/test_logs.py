"""Logs of services: nothing lost when the keeper is killed, followed through the socket, bounded on disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COUNT = """
import sys, time
n = 0
while True:
    n += 1
    print(n, flush=True)
    time.sleep(PAUSE)
"""


def counting(box, name: str = "count", pause: str = "0.002", keys: str = "") -> str:
    program = box.python(name, COUNT.replace("PAUSE", pause))
    return f'[[service]]\nname = "{name}"\ncmd = {program}\n{keys}\n'


def test_both_streams_of_a_service_are_kept_byte_for_byte(box):
    command = """["sh", "-c", "echo out; echo err >&2; printf 'caf\\\\303\\\\251 \\\\377 no end'; exec sleep 1000"]"""
    box.configure(f'[[service]]\nname = "a"\ncmd = {command}\n')
    box.start()
    path = box.folder / "var" / "log" / "a.log"
    expected = b"out\nerr\ncaf\xc3\xa9 \xff no end"
    box.wait_for(lambda: path.exists() and path.read_bytes() == expected, "its output is kept")
    assert box.data("logs", service="a") == ["out", "err", "café � no end"]
    assert box.data("logs", service="a", lines=1) == ["café � no end"]
    assert box.data("logs", service="a", lines=0) == []


def test_the_output_of_every_run_is_kept_to_its_last_line(box):
    command = (
        """["sh", "-c", "test -e again && exec sleep 1000; touch again; seq 1 1000; exit 1"]"""
    )
    box.configure(f'[[service]]\nname = "a"\ncmd = {command}\n')
    box.start()
    box.wait_status("a", "Running", run=2)
    box.wait_for(lambda: box.log("a").count("\n") == 1000, "every line of the run that ended")
    assert box.log("a").split() == [str(n) for n in range(1, 1001)]


def test_kill_9_of_the_keeper_under_output_loses_no_line_and_is_told(box):
    box.configure(counting(box, pause="0.0002"))
    box.start()
    pid = box.wait_status("count", "Running")["pid"]
    for _ in range(3):
        keeper = box.keeper_pid()
        seen = box.log("count").count("\n")
        box.wait_for(lambda seen=seen: box.log("count").count("\n") > seen + 50, "it is logged")
        os.kill(keeper, signal.SIGKILL)
        box.wait_for(lambda old=keeper: box.keeper_pid() != old, "another keeper")
    assert box.service("count")["pid"] == pid, "the service did not notice"
    box.data("stop", service="count", wait=True)
    box.wait_for(lambda: box.log("count").endswith("\n"), "the last line is whole")
    numbers = box.log("count").split()
    assert numbers == [str(n) for n in range(1, len(numbers) + 1)]

    def told() -> list[str]:
        return [line for line in box.errors.read_text().splitlines() if "keeper" in line]

    box.wait_for(lambda: len(told()) >= 3, "each death is told")
    assert all(line.startswith("[WARN] keeper") and "starting another" in line for line in told())
    assert "Traceback" not in box.errors.read_text()


def test_kill_9_of_keeper_and_registry_keeps_the_service(box):
    box.configure(counting(box))
    box.start()
    pid = box.wait_status("count", "Running")["pid"]
    keeper = box.keeper_pid()
    box.daemon.send_signal(signal.SIGSTOP)
    os.kill(keeper, signal.SIGKILL)
    box.kill()
    box.start()
    record = box.wait_status("count", "Running")
    assert (record["pid"], record["run"]) == (pid, 1)
    (record,) = box.data("restart", service="count", wait=True)
    seen = len(box.log("count"))
    box.wait_for(lambda: len(box.log("count")) > seen + 20, "the next run is logged")


def test_the_keeper_ends_only_when_there_is_nothing_left_to_keep(box):
    box.configure(counting(box))
    box.start()
    keeper = box.keeper_pid()
    os.kill(keeper, signal.SIGTERM)
    os.kill(keeper, signal.SIGINT)
    seen = len(box.log("count"))
    box.wait_for(lambda: len(box.log("count")) > seen + 20, "it is logged on")
    assert box.keeper_pid() == keeper
    box.data("stop", service="count", wait=True)
    assert box.stop() == 0
    box.wait_for(lambda: not box.is_running(keeper), "the keeper is gone")


def test_follow_gives_the_last_lines_and_then_every_new_one(box):
    box.configure(counting(box))
    box.start()
    box.wait_for(lambda: box.log("count").count("\n") > 20, "it counts")
    pages = box.stream("logs", service="count", lines=5)
    lines = list(next(pages))
    assert len(lines) == 5
    while len(lines) < 60:
        lines += next(pages)
    pages.close()
    first = int(lines[0])
    assert lines == [str(n) for n in range(first, first + len(lines))]


def test_follow_goes_on_over_restarts_rotation_and_the_keepers_death(box):
    box.configure(counting(box, pause="0.0002", keys="logs = { size_max = 4096, files_max = 5 }"))
    box.start()
    box.wait_status("count", "Running")
    pages = box.stream("logs", service="count", lines=0)
    lines = list(next(pages))

    def read_until(condition) -> None:
        while not condition():
            lines.extend(next(pages))

    read_until(lambda: len(lines) > 1200)
    os.kill(box.keeper_pid(), signal.SIGKILL)
    read_until(lambda: len(lines) > 2000)
    assert (box.folder / "var" / "log" / "count.log.1").exists()
    start = int(lines[0])
    assert lines == [str(n) for n in range(start, start + len(lines))]
    box.data("restart", service="count", wait=True)
    read_until(lambda: "1" in lines)
    pages.close()


def test_circlectl_follows_a_log_over_kill_9_of_the_registry_and_shows_each_line_once(box):
    log = "var/log/count.log"
    box.configure(counting(box))
    box.start()
    box.wait_lines(log, 20)
    following = subprocess.Popen(
        [sys.executable, "-m", "circlectl", "--socket", str(box.socket), "logs", "count", "-f"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT / "tools",
    )
    try:
        assert following.stdout is not None
        shown = [int(following.stdout.readline())]
        for _ in range(2):
            box.kill()
            written = int(box.lines(log)[-2])
            box.wait_for(lambda n=written: int(box.lines(log)[-2]) > n + 50, "it goes on")
            box.start()
            while shown[-1] < written + 200:
                shown.append(int(following.stdout.readline()))
    finally:
        following.kill()
        following.communicate()
    assert shown == list(range(shown[0], shown[-1] + 1))


def test_a_log_is_never_larger_than_it_may_be(box):
    text = """
import time
for n in range(5000):
    print(f"{n:09}")
print("end", flush=True)
time.sleep(1000)
"""
    logs = 'logs = { dir = "logs", size_max = "8KB", files_max = 3 }'
    box.configure(f'[[service]]\nname = "much"\ncmd = {box.python("much", text)}\n{logs}\n')
    box.start()
    folder = box.folder / "logs"
    box.wait_for(lambda: box.data("logs", service="much", lines=1) == ["end"], "all is written")
    files = [
        path for path in folder.glob("much.log*") if path.suffix in (".log", ".1", ".2", ".gz")
    ]
    assert len(files) == 3
    assert all(path.stat().st_size <= 8000 for path in files)
    lines = box.data("logs", service="much", lines=1000)
    assert lines[-2:] == ["000004999", "end"]
    kept = [int(line) for line in lines[:-1]]
    assert kept == list(range(kept[0], 5000)), "from file to file no line is cut or missing"


def test_logs_false_switches_it_off_and_says_so(box):
    text = COUNT.replace("PAUSE", "0.001")
    box.configure(f'[[service]]\nname = "quiet"\ncmd = {box.python("quiet", text)}\nlogs = false\n')
    box.start()
    box.wait_status("quiet", "Running")
    for follow in (False, True):
        answer = box.ask("logs", service="quiet", follow=follow)
        assert (answer["ok"], answer["error"]["code"]) == (False, "no_logs")
    assert not (box.folder / "var" / "log" / "quiet.log").exists()


def test_logs_of_a_service_that_never_ran_are_empty(box):
    box.configure('[[service]]\nname = "lazy"\ncmd = ["true"]\nautostart = false\n')
    box.start()
    assert box.data("logs", service="lazy") == []


def test_a_log_folder_that_cannot_be_written_stops_no_service(box):
    """A file is where the folder ought to be: the output is dropped, counted and told, and comes back."""
    (box.folder / "logs").write_text("in the way")
    box.configure(counting(box, keys='logs = { dir = "logs" }'))
    box.start()
    box.wait_status("count", "Running")
    box.wait_for((box.folder / "var" / "keeper.log").read_text, "the keeper complains")
    assert box.service("count")["run"] == 1
    (box.folder / "logs").unlink()
    box.wait_for((box.folder / "logs" / "count.log").exists, "it is logged again")
    box.data("stop", service="count", wait=True)
    box.wait_said("were dropped")


THREE_RUNS = (
    '["sh", "-c", "echo run $CIRCLEOSD_RUN; echo why >&2; test -e done && exec sleep 1000;'
    ' test -e again && touch done; touch again; exit 3"]'
)


def test_logs_are_found_by_run_and_by_time(box):
    box.configure(
        f'[[service]]\nname = "a"\ncmd = {THREE_RUNS}\nrestart = {{ delay = 0.01 }}\n'
        '[[service]]\nname = "b"\ncmd = ["sh", "-c", "echo of b; exec sleep 1000"]\n'
    )
    box.start()
    box.wait_status("a", "Running", run=3)
    box.wait_for(lambda: len(box.data("logs", service="a")) == 6, "all has been said")
    box.wait_for(lambda: box.data("logs", service="b") == ["of b"], "b has spoken")
    for run, number in ((1, 1), (3, 3), (0, 3), (-1, 2), (-2, 1)):
        said = box.data("logs", service="a", run=run)
        assert [line.rpartition("/")[2] for line in said] == [str(number), "why"], run
    stamped = box.data("logs", service="a", stamps=True)
    assert [line["run"] for line in stamped] == [1, 1, 2, 2, 3, 3]
    after = box.data("logs", service="a", since=stamped[-1]["at"], stamps=True)
    assert after == [line for line in stamped if line["at"] >= stamped[-1]["at"]]
    assert box.data("logs", service="a", until="1h ago") == []
    merged = box.data("logs", service=["a", "b"])
    assert sorted(line["service"] for line in merged) == ["a"] * 6 + ["b"]
    times = [line["at"] for line in merged]
    assert None not in times
    assert times == sorted(times)
    assert box.data("logs", service="all", lines=2) == merged[-2:]


def test_what_cannot_be_asked_of_logs_is_refused_with_a_sentence(box):
    box.configure('[[service]]\nname = "a"\ncmd = ["sleep", "1000"]\n')
    box.start()
    box.wait_status("a", "Running")
    for wrong, words in (
        ({"since": "yesterday"}, "since: 'yesterday' is not a time"),
        ({"since": "03:15", "until": "03:14"}, "since is later than until: write the earlier"),
        ({"run": 2}, "service 'a' has no run 2; its latest is run 1"),
        ({"run": -1}, "has no run -1"),
        ({"lines": -1}, "lines: -1 is no number of lines; write 0 or more"),
        ({"follow": True, "run": 1}, "follow: goes on"),
    ):
        error = box.ask("logs", service="a", **wrong)["error"]
        assert error["code"] == "invalid_params"
        assert words in error["message"]


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_among_those_of_a_log_is_named(box, make):
    box.configure('[[service]]\nname = "a"\ncmd = ["sh", "-c", "echo up; exec sleep 1000"]\n')
    box.start()
    box.wait_for(lambda: box.log("a"), "it has spoken")
    wrong = box.folder / "var" / "log" / "a.log.2.gz"
    make(wrong)
    for how in ({}, {"run": 1}, {"follow": True}):
        error = box.ask("logs", service="a", **how)["error"]
        assert error["code"] == "no_logs"
        assert error["message"].startswith(f"{wrong} cannot be read: not a regular file; move it")
    assert "Traceback" not in box.errors.read_text()


def test_the_last_words_of_a_run_that_ended_ill_are_in_the_journal(box):
    box.configure(f'[[service]]\nname = "a"\ncmd = {THREE_RUNS}\nrestart = {{ delay = 0.01 }}\n')
    box.start()
    box.wait_status("a", "Running", run=3)
    box.wait_for(lambda: len(box.events("a", "output_ended")) == 2, "both are told")
    for event, exited in zip(
        box.events("a", "output_ended"), box.events("a", "exited"), strict=True
    ):
        assert (event["run"], event["cause"]) == (exited["run"], exited["seq"])
        assert event["data"]["lines"][0].endswith(f"/{event['run']}")
        assert event["data"]["lines"][1:] == ["why"]
    words = box.data("status", service="a")["last_words"]
    assert (words["run"], words["lines"][-1], words["dropped"]) == (2, "why", 0)
    box.verify()


def test_of_a_clean_end_and_of_a_stop_nothing_is_said(box):
    once = 'cmd = ["echo", "done"]\nrestart = "Never"'
    box.configure(
        f'[[service]]\nname = "once"\n{once}\n'
        '[[service]]\nname = "stopped"\ncmd = ["sh", "-c", "echo up; exec sleep 1000"]\n'
        '[[service]]\nname = "ill"\ncmd = ["sh", "-c", "echo ill; exit 1"]\nautostart = false\n'
        'restart = "Never"\n'
    )
    box.start()
    box.wait_status("once", "Stopped")
    box.data("stop", service="stopped", wait=True)
    box.data("start", service="ill", wait=True)
    box.wait_for(lambda: box.events("ill", "output_ended"), "what comes after has been dealt with")
    assert {event["service"] for event in box.events(type="output_ended")} == {"ill"}


def test_last_words_said_while_the_registry_is_down_are_told_once_by_the_next(box):
    box.configure(
        '[[service]]\nname = "a"\nrestart = "Never"\n'
        'cmd = ["sh", "-c", "echo begun; while test ! -e go; do sleep 0.02; done; echo alas; exit 7"]\n'
    )
    box.start()
    box.wait_for(lambda: box.log("a") == "begun\n", "it runs")
    box.kill()
    (box.folder / "go").touch()
    box.wait_for(lambda: box.log("a") == "begun\nalas\n", "it has ended")
    for _ in range(3):
        box.start()
        box.wait_for(lambda: box.events("a", "output_ended"), "it is told")
        box.kill()
    box.start()
    (event,) = box.events("a", "output_ended")
    assert event["data"]["lines"] == ["begun", "alas"]


def test_old_logs_are_compressed_and_read_all_the_same(box):
    text = """
import time
for n in range(5000):
    print(f"{n:09}", flush=True)
time.sleep(1000)
"""
    logs = "logs = { size_max = 5000, files_max = 20 }"
    box.configure(f'[[service]]\nname = "much"\ncmd = {box.python("much", text)}\n{logs}\n')
    box.start()
    folder = box.folder / "var" / "log"
    box.wait_for(lambda: len(list(folder.glob("much.log.*.gz"))) == 8, "all but two are compressed")
    expected = [f"{n:09}" for n in range(5000)]
    assert box.data("logs", service="much", lines=5000) == expected
    assert box.data("logs", service="much", run=1) == expected
