"""Who follows logs and goes leaves nothing open, whatever is under way."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from registry.api import growth
from registry.api.growth import Growth, Source
from registry.logs import read


def opened(folder: Path) -> list[str]:
    """The files of a folder that this process has open."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            continue
    return [each for each in found if each.startswith(str(folder))]


@pytest.mark.platform("linux")
async def test_who_goes_while_logs_are_being_opened_leaves_none_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [Source(name, tmp_path / f"{name}.log") for name in ("a", "b")]
    for source in sources:
        source.path.write_text("one\n")
    opening, go_on = asyncio.Event(), threading.Event()
    loop, at_once = asyncio.get_running_loop(), read.select_and_follow

    def slowly(*given):
        loop.call_soon_threadsafe(opening.set)
        go_on.wait(5)
        return at_once(*given)

    monkeypatch.setattr(growth, "select_and_follow", slowly)
    watched: list[str] = []
    pages = Growth(watched.append, watched.remove).follow(sources, 10)
    reading = asyncio.ensure_future(anext(pages))
    await opening.wait()
    reading.cancel()
    await asyncio.sleep(0)
    reading.cancel()  # asked twice, as by a server that ends
    go_on.set()
    await asyncio.wait([reading])
    assert reading.cancelled()
    await pages.aclose()
    await loop.shutdown_default_executor()
    assert (opened(tmp_path), watched) == ([], [])
