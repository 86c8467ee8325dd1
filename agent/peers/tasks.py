"""Work that goes on beside whoever began it, until it ends by itself or all of it is ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

AT_ONCE = 16  # peers that are called at a time
T = TypeVar("T")


async def for_each(things: Sequence[T], call: Callable[[T], Awaitable[None]]) -> None:
    """Call for each of them, `AT_ONCE` at a time."""
    for first in range(0, len(things), AT_ONCE):
        await asyncio.gather(*(call(one) for one in things[first : first + AT_ONCE]))


class Tasks:
    """The tasks of one part. The event loop itself keeps none alive. Used on the loop."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin something."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Cancel what goes on, and wait until it is over."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
