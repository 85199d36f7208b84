"""What the C library's heap keeps of a burst, and that it lets go of it."""

from __future__ import annotations

import asyncio
import ctypes
import os
from pathlib import Path

import pytest

from registry.host import heap
from registry.host.heap import CALM_S, Heap

BURST, PIECE = 80_000_000, 8_000
SURVIVES = 100
"""Each so manieth piece: what is free lies between them, never at the end."""


def held() -> int:
    """The bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def test_a_burst_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("not glibc")
    monkeypatch.setattr(heap, "CALM_S", 0.01)
    burst = [bytes(PIECE) for _ in range(BURST // PIECE)]
    survivors = burst[::SURVIVES]
    del burst
    before = held()
    Heap().was_used()
    async with asyncio.timeout(10):
        while before - held() < BURST // 2:  # noqa: ASYNC110 - the kernel tells nobody
            await asyncio.sleep(0.01)
    assert len(survivors) == BURST // PIECE // SURVIVES


def test_it_is_asked_once_for_many_uses_and_never_while_nothing_happens(
    on_virtual_time, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    async def scene(clock) -> None:
        used = Heap()
        monkeypatch.setattr(heap, "_TRIM", lambda _pad: asked.append(clock.now_s))
        for _ in range(3):
            used.was_used()
            await asyncio.sleep(CALM_S / 4)
        await asyncio.sleep(10 * CALM_S)
        assert asked == [CALM_S]
        used.was_used()
        used.close()

    on_virtual_time(scene)
    assert asked == [CALM_S]
