"""Stories to ask about: told by the core on clocks that the test sets, and written as journals to be read."""

from __future__ import annotations

import asyncio
import runpy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from registry.core.events import Record
from registry.journal.opening import Connection, open_for_reading

_GOLDEN = runpy.run_path(str(Path(__file__).parents[1] / "golden" / "make_journal_v1.py"))


@pytest.fixture
def story() -> Any:
    """A registry without a world, on which nothing has happened yet."""
    return _GOLDEN["Story"]()


@pytest.fixture(scope="session")
def golden() -> list[Record]:
    """The story of the golden journal."""
    told: list[Record] = _GOLDEN["tell_story"]()
    return told


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[list[Record]], Connection]]:
    """Write records as a journal, and open it for reading."""
    with ExitStack() as stack:

        def open_(records: list[Record]) -> Connection:
            path = tmp_path / f"{len(list(tmp_path.iterdir()))}.db"
            asyncio.run(_GOLDEN["write_journal"](path, records))
            return stack.enter_context(closing(open_for_reading(path)))

        yield open_
