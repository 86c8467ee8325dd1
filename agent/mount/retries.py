"""Files whose open was just answered with ESTALE: the kernel looks the name up again, opens, and then gives up.

Until that second open nothing of such a file may change over once more, or a program would see ESTALE: its
object is held, so that eviction leaves it alone, and an even nodeid of it is served as it is. Loop only.
"""

from __future__ import annotations

import asyncio

from agent.cache.objects import CachedObject
from agent.cache.store import Store

RETRY_SECONDS = 10.0  # the kernel comes back at once; the rest is for a machine that is busy


class Retries:
    """The holds of one mount, each for RETRY_SECONDS."""

    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop) -> None:
        self._store = store
        self._loop = loop
        self._held: dict[int, tuple[CachedObject, asyncio.TimerHandle]] = {}

    def expect(self, ino: int, cached: CachedObject) -> None:
        """The open of an inode is about to be answered with ESTALE; the caller has its object."""
        self._store.hold(cached)
        self._end(ino)
        self._held[ino] = (cached, self._loop.call_later(RETRY_SECONDS, self._end, ino))

    def expected(self, ino: int) -> bool:
        """Whether an open of this inode may be the second one."""
        return ino in self._held

    def close(self) -> None:
        """Give everything back."""
        for ino in list(self._held):
            self._end(ino)

    def _end(self, ino: int) -> None:
        found = self._held.pop(ino, None)
        if found is not None:
            found[1].cancel()
            self._store.release(found[0])
