"""Making chunks durable in the index: those that finish together share a commit. Loop only."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from agent.cache.index import ChunkRow, Index
from agent.errors import StoreFailed


class Blocking(Protocol):
    """Runs a call on the index thread, behind those that were asked for before."""

    def __call__(self, call: Callable[[], None], /) -> Awaitable[None]: ...


class Recorder:
    """The rows on their way to the indexes of the store's directories."""

    def __init__(self, blocking: Blocking) -> None:
        self._blocking = blocking
        self._waiting: dict[Index, list[tuple[ChunkRow, asyncio.Future[None]]]] = {}
        self.under_way: set[asyncio.Task[None]] = set()

    async def record(self, index: Index, row: ChunkRow) -> None:
        """Return once the row is committed. Raises StoreFailed."""
        done = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(index, [])
        waiting.append((row, done))
        if len(waiting) == 1:
            task = asyncio.create_task(self._record_batch(index))
            self.under_way.add(task)
            task.add_done_callback(self.under_way.discard)
        await asyncio.shield(done)

    async def _record_batch(self, index: Index) -> None:
        # Whatever finishes while the index thread is busy with earlier work joins this batch.
        await self._blocking(lambda: None)
        batch = self._waiting.pop(index)
        try:
            await self._blocking(lambda: index.record([row for row, _ in batch]))
        except StoreFailed as error:
            for _, done in batch:
                done.set_exception(error)
            return
        for _, done in batch:
            done.set_result(None)
