"""The command as a process: signals, a closed pipe, and what it leaves."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec

import registry
from registry.core.events import Actor


def test_a_closed_pipe_ends_it_quietly(long_journal: Path, start: Callable) -> None:
    with start(long_journal) as process:
        first = process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    assert first.startswith("   1  2026-01-02T03:00:00.000Z  ")
    assert process.returncode == -signal.SIGPIPE
    assert "Traceback" not in errors
    assert "Broken" not in errors


def test_ctrl_c_ends_it_quietly_though_nobody_reads(
    long_journal: Path, tmp_path: Path, start: Callable
) -> None:
    with start(long_journal) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        status = process.wait()
        errors = process.stderr.read()
    assert status == -signal.SIGINT
    assert "Traceback" not in errors
    assert "Abort" not in errors
    assert list((tmp_path / "tmp").iterdir()) == []


def test_what_the_locale_cannot_show_is_escaped(write, story, start: Callable) -> None:
    odd = msgspec.structs.replace(story[65], actor=Actor(0, 1, "kröte\u2713"))
    process = start(
        write([*story[:65], odd]),
        env={**os.environ, "PYTHONIOENCODING": "iso-8859-1"},
        encoding="iso-8859-1",
    )
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert r"(kröte\u2713, pid 1)" in out


def test_all_options_are_explained(start: Callable) -> None:
    process = start("--help")
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    for option in ("--at", "--service", "--since", "--until", "--json", "--verify", "--head"):
        assert option in out
    assert "in sequence" in out


def test_its_version_is_told(start: Callable) -> None:
    out, _err = start("--version").communicate()
    assert out == f"circle-replay {registry.__version__}\n"
