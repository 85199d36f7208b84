"""A journal on disk: the golden story, which has every type of event."""

from __future__ import annotations

import asyncio
import runpy
from pathlib import Path

import pytest

from registry.core.events import Record

STORY = runpy.run_path(str(Path(__file__).parents[1] / "golden" / "make_journal_v1.py"))


@pytest.fixture(scope="session")
def story() -> list[Record]:
    told: list[Record] = STORY["tell_story"]()
    return told


@pytest.fixture(scope="session")
def journal(tmp_path_factory: pytest.TempPathFactory, story: list[Record]) -> Path:
    path = tmp_path_factory.mktemp("past") / "registry.db"
    asyncio.run(STORY["write_journal"](path, story))
    return path
