"""A real store on a temporary directory, with small chunks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.cache.directory import StoreLimits
from agent.cache.objects import CachedObject
from agent.cache.store import Store
from tests.fakes.clock import ManualClock

CHUNK = 64 * 1024


class TappedStore(Store):
    """The real store; `released` gets each object that is given back, as by the filler when a flight ends."""

    released: asyncio.Queue[CachedObject]

    def release(self, cached: CachedObject) -> None:
        super().release(cached)
        self.released.put_nowait(cached)


async def open_store(
    path: Path, capacity: int = 1 << 30, reserve: int = 0, chunk: int = CHUNK
) -> TappedStore:
    store = await TappedStore.open([path], chunk, StoreLimits(capacity, reserve), ManualClock())
    assert isinstance(store, TappedStore)
    store.released = asyncio.Queue()
    return store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[TappedStore]:
    made = await open_store(tmp_path / "store")
    yield made
    await made.close()
