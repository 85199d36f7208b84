"""A configuration that is looked at: what hangs there keeps few threads, whoever asked."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from registry import apply
from registry.api.actions import ApiError
from registry.config import Complaint, ConfigError


def threads() -> int:
    return sum(thread.name == "apart" for thread in threading.enumerate())


async def turns() -> None:
    """Long enough for a task to come to where it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_those_that_hang_and_nobody_waits_for_are_few(monkeypatch):
    released = threading.Event()

    def hang(_file: Path) -> None:
        released.wait()
        raise ConfigError(Complaint("services.toml", 1, None, "web", "it is wrong"))

    monkeypatch.setattr(apply, "load", hang)
    config, nobody = SimpleNamespace(file=Path("services.toml")), cast(Any, None)
    configuration = apply.Configuration(cast(Any, config), b"", nobody, nobody)
    for _ in range(5):
        asked = asyncio.create_task(configuration.plan())
        await turns()
        asked.cancel()
        await turns()
    assert threads() == apply.LOOKS_MAX
    asked = asyncio.create_task(configuration.plan())
    await turns()
    assert threads() == apply.LOOKS_MAX
    released.set()
    with pytest.raises(ApiError):
        await asked
