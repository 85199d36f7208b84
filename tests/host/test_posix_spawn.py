"""How a process is made: what it is given, what it is not, and that nobody waits for it meanwhile."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from registry.host import posix_spawn as module
from registry.host.posix_spawn import posix_spawn

SH = "/bin/sh"


@pytest.fixture(params=["by the C library", "by os.posix_spawn"])
def spawned(request, tmp_path, monkeypatch):
    """Runs a script to its end; what it wrote."""
    if request.param == "by os.posix_spawn":
        monkeypatch.setattr(module, "_library", None)
    output = tmp_path / "output"
    output.touch()

    def run(script: str, *words: str, environment: dict[str, str] | None = None, **more) -> str:
        with open(os.devnull) as nothing:
            pid = posix_spawn(
                SH,
                ["sh", "-c", script, "sh", *words],
                environment or {},
                nothing.fileno(),
                str(output),
                **more,
            )
        assert os.waitpid(pid, 0)[0] == pid
        return output.read_text(errors="surrogateescape")

    return run


def test_it_has_the_words_and_variables_that_it_is_given(spawned):
    odd = os.fsdecode(b"\xff")  # no UTF-8
    given = {"A": "1 2", "B": odd, "E": ""}
    said = spawned('echo "$#:$1:$2:$A:$B:$E:"; env | grep -c .', "x y", "", environment=given)
    assert said.splitlines() == [f"2:x y::1 2:{odd}::", "4"], "PWD is the shell's own"


def test_it_leads_a_session_and_has_no_signal_blocked_or_ignored(spawned):
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        said = spawned(
            # grep's own, which it has of the shell: that one blocks all signals for a moment when it forks
            "echo $$; cut -d' ' -f6 /proc/$$/stat; grep -E 'Sig(Blk|Ign)' /proc/self/status"
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGUSR1, before)
    pid, session, *masks = said.split()
    assert session == pid
    blocked, ignored = (int(mask, 16) for mask in masks[1::2])
    assert blocked == 0
    assert ignored % (1 << 31) == 0, "but for two that are the C library's own"


def test_it_has_the_descriptors_that_are_placed(spawned, tmp_path):
    with open(tmp_path / "a", "w+") as first, open(tmp_path / "b", "w+") as second:
        placed = [(second.fileno(), 3), (first.fileno(), 4)]
        said = spawned("echo one >&3; echo two >&4; echo said >&2", placed=placed)
    assert (tmp_path / "b").read_text() == "one\n"
    assert (tmp_path / "a").read_text() == "two\n"
    assert said == "said\n"


def test_what_cannot_be_executed_is_told(spawned, tmp_path):
    for program, output in (("/nothing/here", os.devnull), (SH, str(tmp_path / "no" / "folder"))):
        with pytest.raises(FileNotFoundError):
            posix_spawn(program, ["x"], {}, 0, output)


@pytest.mark.platform("linux")
def test_others_go_on_while_it_is_made(tmp_path, monkeypatch):
    """Its output is a pipe that it cannot open for writing until somebody else opens it for reading."""
    library = module._library
    assert library is not None
    opened = library.open
    path = tmp_path / "pipe"
    os.mkfifo(path)
    monkeypatch.setattr(
        library,
        "open",
        lambda made, at, name, _flags, mode: opened(made, at, name, os.O_WRONLY, mode),
    )
    pids: list[int] = []

    def spawn() -> None:
        pids.append(posix_spawn(SH, ["sh", "-c", "echo here"], {}, 0, str(path)))

    making = threading.Thread(target=spawn)
    making.start()
    assert Path(path).read_text() == "here\n"
    making.join()
    assert os.waitpid(pids[0], 0) == (pids[0], 0)
