"""Making chunks durable in the index: those that finish together share a commit.

Used on the loop. The index thread takes a batch when its turn has come: whatever finishes while it is busy
with earlier work joins that batch, and each batch costs one way there and back.
"""

from __future__ import annotations

import asyncio
import threading
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
        self._lock = threading.Lock()  # of _waiting
        self.under_way: set[asyncio.Task[None]] = set()

    async def record(self, index: Index, row: ChunkRow) -> None:
        """Return once the row is committed. Raises StoreFailed."""
        done = asyncio.get_running_loop().create_future()
        with self._lock:
            waiting = self._waiting.setdefault(index, [])
            waiting.append((row, done))
            first = len(waiting) == 1
        if first:
            task = asyncio.create_task(self._record_batch(index))
            self.under_way.add(task)
            task.add_done_callback(self.under_way.discard)
        await asyncio.shield(done)

    async def _record_batch(self, index: Index) -> None:
        batch: list[tuple[ChunkRow, asyncio.Future[None]]] = []

        def commit() -> None:
            with self._lock:
                batch.extend(self._waiting.pop(index))
            index.record([row for row, _ in batch])

        try:
            await self._blocking(commit)
        except StoreFailed as error:
            for _, done in batch:
                done.set_exception(error)
            return
        for _, done in batch:
            done.set_result(None)
