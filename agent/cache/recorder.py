"""Making chunks durable in the index: those that finish together share a commit.

Used on the loop. The index thread takes a batch when its turn has come: whatever finishes while it is busy
with earlier work joins that batch, and each batch costs one way there and back, in two steps of the loop
(a task for the batch, and futures that wrap and shield each other, took seven).
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Executor

from agent.cache.index import ChunkRow, Index


class Recorder:
    """The rows on their way to the indexes of the store's directories."""

    def __init__(self, index_thread: Executor) -> None:
        self._index_thread = index_thread
        self._waiting: dict[Index, list[tuple[ChunkRow, asyncio.Future[None]]]] = {}
        self._lock = threading.Lock()  # of _waiting
        self.under_way: set[asyncio.Future[None]] = set()  # a future for each commit, which never fails

    async def record(self, index: Index, row: ChunkRow) -> None:
        """Return once the row is committed. Raises StoreFailed."""
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        with self._lock:
            waiting = self._waiting.setdefault(index, [])
            waiting.append((row, done))
            first = len(waiting) == 1
        if first:
            over = loop.create_future()
            self.under_way.add(over)
            self._index_thread.submit(self._commit, index, loop, over)
        await done

    def _commit(self, index: Index, loop: asyncio.AbstractEventLoop, over: asyncio.Future[None]) -> None:
        """(index thread) Whoever comes from now on waits for the next commit."""
        with self._lock:
            batch = self._waiting.pop(index)
        try:
            index.record([row for row, _ in batch])
        except Exception as error:
            loop.call_soon_threadsafe(self._committed, batch, over, error)
            raise
        else:
            loop.call_soon_threadsafe(self._committed, batch, over, None)

    def _committed(
        self,
        batch: list[tuple[ChunkRow, asyncio.Future[None]]],
        over: asyncio.Future[None],
        error: Exception | None,
    ) -> None:
        self.under_way.discard(over)
        over.set_result(None)
        for _, done in batch:
            if done.done():  # nobody waits for it any more
                continue
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)
