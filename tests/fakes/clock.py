"""A clock that stands still until a test moves it (agent/clock.py)."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class ManualTimer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class ManualClock:
    """Time moves by `advance` only; `next_sleep` waits until something sleeps."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._wrong = 0.0
        self._order = itertools.count()
        self._timers: list[tuple[float, int, ManualTimer]] = []
        self._sleeps: asyncio.Queue[float] = asyncio.Queue()

    def monotonic(self) -> float:
        return self._now

    def time(self) -> float:
        return 1_700_000_000.0 + self._now + self._wrong

    def shift(self, seconds: float) -> None:
        """Set the wall clock forward, or back; no time passes."""
        self._wrong += seconds

    def call_later(self, delay: float, callback: Callable[[], None]) -> ManualTimer:
        timer = ManualTimer(callback)
        heapq.heappush(self._timers, (self._now + delay, next(self._order), timer))
        return timer

    async def sleep(self, delay: float) -> None:
        woken = asyncio.get_running_loop().create_future()
        timer = self.call_later(delay, lambda: None if woken.done() else woken.set_result(None))
        self._sleeps.put_nowait(delay)
        try:
            await woken
        finally:
            timer.cancel()

    @asynccontextmanager
    async def timeout(self, seconds: float) -> AsyncIterator[None]:
        async with asyncio.timeout(None) as bound:
            timer = self.call_later(seconds, lambda: bound.reschedule(0.0))
            try:
                yield
            finally:
                timer.cancel()

    async def next_sleep(self) -> float:
        """The seconds of the next `sleep` that nobody has asked about yet."""
        return await asyncio.wait_for(self._sleeps.get(), 10)

    def advance(self, seconds: float) -> None:
        """Move the time on; what falls due is called in its order, with the time at which it was due."""
        until = self._now + seconds
        while self._timers and self._timers[0][0] <= until:
            self._now, _, timer = heapq.heappop(self._timers)
            if timer.callback is not None:
                timer.callback()
        self._now = until
