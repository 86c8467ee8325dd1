"""Time, injected: nothing in the agent asks the operating system for it directly. And waiting."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol


class Timer(Protocol):
    """A callback that is still to come."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """What the agent's loop needs of time."""

    def monotonic(self) -> float:
        """Seconds that never jump; deadlines are made of these."""

    def time(self) -> float:
        """Seconds since 1970 as the machine believes; for people and for records only."""

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Run `callback` on the loop after `delay` seconds."""

    async def sleep(self, delay: float) -> None: ...

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[object]:
        """`asyncio.timeout` by this clock: TimeoutError where the block takes longer."""


class SystemClock:
    """The machine's own time; needs a running loop for `call_later` and `sleep`."""

    def monotonic(self) -> float:
        return time.monotonic()

    def time(self) -> float:
        return time.time()

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        return asyncio.get_running_loop().call_later(delay, callback)

    async def sleep(self, delay: float) -> None:
        await asyncio.sleep(delay)

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[object]:
        return asyncio.timeout(seconds)


async def ended(work: asyncio.Future[Any]) -> bool:
    """Wait until the work is over, however often the waiting task is cancelled; whether it was.

    It raises nothing, and an error of the work counts as seen; whoever wants it asks for the `result`.
    """
    cancelled = False
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:
            cancelled = True
    if not work.cancelled():
        work.exception()
    return cancelled
