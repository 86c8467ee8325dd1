"""Bytes a second: a bucket that is paid after the fact, so that one large piece goes at once, and none twice.

Who takes waits until nothing is owed, then owes what it took. In any `t` seconds no more is taken than
`(t + SAVED) * rate` and one piece. Unlike a bucket that must hold a piece before it goes, this one works for
pieces of any size at any rate: a chunk of 8 MiB at the hundredth part of a small limit, too.
"""

from __future__ import annotations

import asyncio
import contextlib

from agent.clock import Clock

SAVED = 1.0  # seconds of the rate that are saved up while nobody takes
LOOK_EVERY = 1.0  # seconds: the rate may have changed


class Rate:
    """A limit for all who take from it: the urgent first, then first come first served. Used on one loop."""

    def __init__(self, clock: Clock, rate: float) -> None:
        """`rate` is bytes a second, above 0; it may be set anew at any time."""
        self._clock = clock
        self._rate = rate
        self._level = SAVED * rate
        self._at = clock.monotonic()
        self._turn = asyncio.Lock()
        self._queue = asyncio.Lock()  # of those who are not urgent: one of them at a time waits for its turn

    def set(self, rate: float) -> None:
        """From now on it is another rate."""
        if rate != self._rate:
            self._refill()
            self._rate = rate

    async def take(self, count: int, urgent: bool = False) -> None:
        """Wait until so many bytes may go. Cancelled while it waits, nothing is taken."""
        async with contextlib.nullcontext() if urgent else self._queue, self._turn:
            self._refill()
            while self._level < 0:
                await self._clock.sleep(min(LOOK_EVERY, max(0.001, -self._level / self._rate)))
                self._refill()
            self._level -= count

    def _refill(self) -> None:
        now = self._clock.monotonic()
        self._level = min(SAVED * self._rate, self._level + (now - self._at) * self._rate)
        self._at = now
