"""Standard output that is full, closed or has no reader: what the three commands say, and how they end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

INCIDENT = str(Path(__file__).parent / "golden" / "incident.db")
SHIPPED = str(Path(__file__).parents[1] / "etc" / "services.toml")
ANSWERS = [
    *(("circlectl", *each) for each in (["--help"], ["--version"], ["list", "--help"])),
    *(("circlectl", "validate", SHIPPED, *each) for each in ([], ["--json"])),
    ("circle_replay", "--help"),
    *(
        ("circle_replay", INCIDENT, *each)
        for each in (
            *([], ["--json"], ["--at", "seq:50"], ["--why", "db"], ["--report"], ["--verify"]),
            *(["--query", "select 1"], ["--html", "-"], ["--svg", "-"]),
        )
    ),
    *(("registry", each) for each in ("--help", "--version")),
    ("registry", "--validate", "--config", SHIPPED),
]
PROGRAMS = {
    "circlectl": "circlectl",
    "circle_replay": "circle-replay",
    "registry": "service-registry",
}
STATUSES = {"circlectl": 1, "circle_replay": 74, "registry": 74}


def run(arguments: tuple[str, ...], where: str, buffered: bool = True) -> tuple[int, str]:
    """How a command ends whose standard output is `where`, as a shell has it; and what it says."""
    shell = ["sh", "-c", f'exec "$@" {where}', "sh"]
    python = [sys.executable, "-m", *arguments]
    env = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"}
    done = subprocess.run(
        [*shell, *python], stderr=subprocess.PIPE, text=True, check=False, env=env
    )
    return done.returncode, done.stderr


@pytest.mark.platform("linux")
@pytest.mark.parametrize("buffered", [True, False], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("arguments", ANSWERS, ids=" ".join)
def test_an_answer_for_which_there_is_no_room_is_a_failure_in_a_sentence(
    arguments: tuple[str, ...], buffered: bool
) -> None:
    status, said = run(arguments, ">/dev/full", buffered)
    program = PROGRAMS[arguments[0]]
    assert said == f"{program}: cannot write the answer: No space left on device\n"
    assert status == STATUSES[arguments[0]]


@pytest.mark.parametrize("arguments", ANSWERS, ids=" ".join)
def test_an_answer_to_nowhere_is_a_failure_in_a_sentence(arguments: tuple[str, ...]) -> None:
    status, said = run(arguments, ">&-")
    assert said == f"{PROGRAMS[arguments[0]]}: cannot write the answer: Bad file descriptor\n"
    assert status == STATUSES[arguments[0]]


def test_what_is_asked_of_a_registry_is_answered_to_nowhere_in_a_sentence(short_dir: Path) -> None:
    status, said = run(("circlectl", "--socket", str(short_dir / "s"), "list"), ">&-")
    assert status == 69
    assert said.startswith("circlectl: the registry is not running")


@pytest.mark.parametrize("arguments", [("--help",), ("--validate", "--config", SHIPPED)])
def test_a_registry_whose_answer_nobody_reads_ends_quietly(arguments: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "registry", *arguments]
    with open(writer, "w") as pipe:
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")
