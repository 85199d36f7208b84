"""A FIFO as a service's output, for the tests of log files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


class Output:
    """A service's output: `writer` is what a service holds, `reader` what its keeper reads."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.writer = os.open(path, os.O_RDWR)
        self.reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def write(self, text: str) -> None:
        os.write(self.writer, text.encode())

    def end(self) -> None:
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Output]:
    made = Output(tmp_path / "fifo")
    yield made
    made.end()
    os.close(made.reader)
