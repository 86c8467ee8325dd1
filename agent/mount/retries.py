"""Files whose open was just told ESTALE: the kernel looks the name up again, opens, and then gives up.

Until that second open nothing of such a file may change over once more, or a program would see ESTALE: its
object is held, so that eviction leaves it alone, and an even nodeid of it is served as it is. Whom a
predecessor told ESTALE just before its end nobody knows: so a mount that is taken over begins with such a
time for all of its files. Loop only.
"""

from __future__ import annotations

import asyncio

from agent.cache.objects import CachedObject
from agent.cache.store import Store

RETRY_SECONDS = 10.0  # the kernel comes back at once; the rest is for a machine that is busy


class Retries:
    """The holds of one mount, each for RETRY_SECONDS."""

    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop, *, taken_over: bool = False) -> None:
        self._store = store
        self._loop = loop
        self._all_until = loop.time() + RETRY_SECONDS if taken_over else 0.0
        self._held: dict[int, tuple[CachedObject, asyncio.TimerHandle]] = {}
        self._expected: dict[int, int] = {}

    def expect(self, ino: int, cached: CachedObject) -> None:
        """The open of an inode is about to be answered with ESTALE; the caller has its object."""
        self._store.hold(cached)
        expected = self._expected.get(ino, 0) + 1
        self._end(ino)
        self._expected[ino] = expected
        self._held[ino] = (cached, self._loop.call_later(RETRY_SECONDS, self._end, ino))

    def came(self, ino: int) -> None:
        """An open of this inode succeeds; the hold ends with the last one that was expected, so that files
        which are opened and closed quickly can be evicted."""
        self._expected[ino] = self._expected.get(ino, 0) - 1
        if self._expected[ino] <= 0:
            self._end(ino)

    def expected(self, ino: int) -> bool:
        """Whether an open of this inode may be the second one."""
        return ino in self._held or self._loop.time() < self._all_until

    def close(self) -> None:
        """Give everything back."""
        for ino in list(self._held):
            self._end(ino)

    def _end(self, ino: int) -> None:
        self._expected.pop(ino, None)
        found = self._held.pop(ino, None)
        if found is not None:
            found[1].cancel()
            self._store.release(found[0])
