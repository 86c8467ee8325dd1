"""One call at a time for each target, and blocking work that a cancelled call does not leave half done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

T = TypeVar("T")


class Turns:
    """Who is at which target right now; a target that nobody is at takes no memory."""

    def __init__(self) -> None:
        self._turns: dict[str, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def at(self, path: str) -> AsyncIterator[None]:
        """Wait for the calls before this one at the same target."""
        lock, users = self._turns.get(path, (asyncio.Lock(), 0))
        self._turns[path] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._turns.pop(path)
            if users > 1:
                self._turns[path] = (lock, users - 1)


async def to_the_end(work: Callable[[], T]) -> T:
    """Run blocking work in a thread, to its end even where the caller's RPC is cancelled meanwhile.

    A target's turn must not pass on while a thread still binds there.
    """
    task: Awaitable[T] = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([asyncio.ensure_future(task)])
        raise
