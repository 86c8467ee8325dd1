"""Chunks that are read through without being kept: in memory, a few at a time, for those who wait for them.

That is how a read goes on where the store can take nothing: the disk is full or fails, or whatever is in the
store must stay. Such a chunk is never in the index. The latest ones are kept as long as the budget allows, so
that who reads on in small steps fetches a chunk once. Readers wait for room in the budget, in the order of
their coming. Loop only, but for `PassingLanding`, which is written and read as every landing is.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Protocol

from agent.content import Extent
from agent.transfer.landing import Landing

BUDGET = 64 << 20  # bytes: eight chunks of 8 MiB, a third of what the agent may take in all


class PassingLanding(Landing):
    """A landing whose bytes stay in memory."""

    def __init__(self, extent: Extent) -> None:
        super().__init__(-1, extent)
        self._memory = bytearray(extent.length)  # fresh pages: they take memory once they are written
        self._filled = extent.offset

    def holds(self, start: int, end: int) -> bool:
        """Whether the bytes [start, end) are here, also after `rewind`: who began to read them goes on."""
        return self.start <= start and end <= self._filled

    def part(self, start: int, end: int) -> memoryview:
        """The bytes [start, end) of the object."""
        return memoryview(self._memory)[start - self.start : end - self.start]

    def _keep(self, data: memoryview, offset: int) -> None:
        begin = offset - self.start
        self._memory[begin : begin + len(data)] = data
        self._filled = max(self._filled, offset + len(data))


class Carrier(Protocol):
    """An open object, as far as passing chunks need it (objects.py)."""

    passing: dict[int, PassingLanding]
    memory: tuple[PassingLanding, ...]

    @property
    def chunk_size(self) -> int: ...
    def when_unread(self, chunks: Iterable[int], told: Callable[[], None], /) -> bool: ...


class PassingChunks:
    """All passing chunks of the node, within `budget` bytes (one chunk that is larger goes alone)."""

    def __init__(self, budget: int = BUDGET) -> None:
        self._budget = budget
        self._held = 0
        self._kept: OrderedDict[PassingLanding, tuple[Carrier, int]] = OrderedDict()
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def held(self) -> int:
        """Bytes claimed now."""
        return self._held

    def roomy(self, length: int) -> bool:
        """Whether half of the budget is free for so many bytes more: enough to fetch ahead of a reader."""
        arriving = self._held - sum(landing.length for landing in self._kept)
        return not self._waiting and arriving + length <= self._budget // 2

    async def claim(self, length: int) -> None:
        """Wait for room for a chunk, and take it; `keep` or `give_back` ends the claim."""
        if not self._waiting and self._fits(length):
            self._held += length
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((length, granted))
        self._grant()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.give_back(length)
            else:
                self._waiting = deque(one for one in self._waiting if one[1] is not granted)
                self._grant()
            raise

    def keep(self, cached: Carrier, chunk: int, landing: PassingLanding) -> None:
        """A chunk has arrived, or will not: it can be read until its room is wanted, if it is whole."""
        if landing.position < landing.end:
            self._drop(cached, landing)
            self._grant()
            return
        if (older := cached.passing.get(chunk)) is not None:
            del self._kept[older]
            self._drop(cached, older)
        cached.passing[chunk] = landing
        self._kept[landing] = (cached, chunk)
        self._grant()

    def give_back(self, length: int) -> None:
        """The room of a chunk is free again."""
        self._held -= length
        self._grant()

    def _grant(self) -> None:
        while self._waiting:
            length, granted = self._waiting[0]
            if not self._fits(length):
                return
            self._waiting.popleft()
            if not granted.done():
                self._held += length
                granted.set_result(None)

    def _fits(self, length: int) -> bool:
        while self._held and self._held + length > self._budget:
            if not self._kept:
                return False
            landing, (cached, chunk) = self._kept.popitem(last=False)
            del cached.passing[chunk]
            self._drop(cached, landing)
        return True

    def _drop(self, cached: Carrier, landing: PassingLanding) -> None:
        """Take the bytes away once nobody reads them; from here on nobody begins to."""
        landing.rewind()  # it may be among the landings of its object until its flight is closed
        loop = asyncio.get_running_loop()

        def unread() -> None:
            loop.call_soon_threadsafe(self._dropped, cached, landing)

        if cached.when_unread((landing.start // cached.chunk_size,), unread):
            cached.memory = tuple(held for held in cached.memory if held is not landing)
            self._held -= landing.length

    def _dropped(self, cached: Carrier, landing: PassingLanding) -> None:
        cached.memory = tuple(held for held in cached.memory if held is not landing)
        self.give_back(landing.length)
