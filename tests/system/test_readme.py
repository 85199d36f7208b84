"""The README is true: its sessions run against a fresh install, and its tables are those of the code."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from registry.api.reference import actions_table, capabilities_table, errors_table
from registry.config.schema import key_table
from registry.questions.diagram import state_diagram

pytestmark = pytest.mark.timeout(180)

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SOCKET = "/tmp/service-registry.sock"
RUN = "python3 tools/dev run"


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("diagram", f"```mermaid\n{state_diagram()}```"),
        ("actions", actions_table()),
        ("errors", errors_table()),
        ("capabilities", capabilities_table()),
        ("keys", key_table().rstrip()),
    ],
)
def test_what_is_made_from_the_code_is_as_the_code_makes_it(name: str, made: str) -> None:
    (shown,) = re.findall(rf"<!-- {name} -->\n(.*?)\n?<!-- /{name} -->", README, re.DOTALL)
    assert shown == made


class Tour:
    """The README's sessions, in one folder with the shipped configuration, on a fresh install."""

    def __init__(self, box, programs: Path) -> None:
        self.box, self.programs = box, programs
        shutil.copytree(ROOT / "etc", box.folder / "etc", dirs_exist_ok=True)
        file = box.folder / "etc" / "services.toml"
        text = file.read_text().replace(SOCKET, str(box.socket))
        file.write_text(text.replace('interval = "5s"', 'interval = "500ms"'))

    def take(self, command: str, expected: list[str]) -> None:
        """Do one command, and compare what comes of it."""
        if command == RUN:
            assert sorted(map(plain, self.start(len(expected)))) == sorted(map(plain, expected))
        elif command.startswith("sleep "):
            self.box.wait_status("echo", "Running", restarts=1)
        else:
            shown = self.shell(command).splitlines()
            assert list(map(plain, shown)) == list(map(plain, expected)), command

    def start(self, lines: int) -> list[str]:
        if self.box.daemon is not None:
            self.box.daemon.wait()  # the tour has killed it
        before = len(self.log())
        with self.box.errors.open("ab") as errors:
            self.box.daemon = subprocess.Popen(
                [self.programs / "service-registry"],
                cwd=self.box.folder,
                stdin=subprocess.DEVNULL,
                stderr=errors,
            )
        self.box.wait_for(lambda: len(self.log()) >= before + lines, f"{lines} lines of log")
        return self.log()[before:][:lines]

    def log(self) -> list[str]:
        return self.box.errors.read_text().splitlines() if self.box.errors.exists() else []

    def shell(self, command: str) -> str:
        environment = {
            **os.environ,
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "CIRCLEOSD_SOCKET": str(self.box.socket),
        }
        return subprocess.run(
            ["bash", "-c", command.replace(SOCKET, str(self.box.socket))],
            check=True,
            cwd=self.box.folder,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout


def plain(line: str) -> str:
    """A line without what differs from one time to another: times, ages, pids, numbers of events, hashes."""
    line = re.sub(r"\d{4}-\d\d-\d\d[T ][\d:.]+Z", "TIME", line)
    line = re.sub(r"\b[0-9a-f]{40}\b", "HASH", line)
    line = re.sub(r"\d+\.\d+|\d{2,}|\d+(?= ?m?s\b)", "N", line)
    # on a busy machine what is waited for may have come before it was asked for
    line = re.sub(r"already Running, PID N$", "Running, PID N, after N s", line)
    return re.sub(r"\s+", " ", line).strip()


def steps() -> list[tuple[str, list[str]]]:
    """Every command of the README's sessions, with the lines it is said to print."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"<!-- session -->\n```console\n(.*?)```", README, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line.removeprefix("$ "), []))
            else:
                found[-1][1].append(line)
    return found


@pytest.mark.skipif(not shutil.which("socat"), reason="needs socat")
def test_the_tour_goes_as_the_readme_tells_it(box, installed: Path) -> None:
    tour = Tour(box, installed / "bin")
    told = steps()
    assert len(told) > 10
    for command, expected in told:
        tour.take(command, expected)
