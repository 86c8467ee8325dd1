"""The agent's half of the hand-over: when the holder dies, the next one gets everything back from here.

As long as one of the two has the descriptors the mounts live. The new holder finds on its own what is mounted
where; the agent gives it the in-flight table and, for each mount, descriptor, number, record and backing ids.
Meanwhile mounts are served on; what needs the holder fails with HolderAway.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from agent.clock import Clock
from agent.errors import HolderError
from agent.metrics import Metrics
from agent.mount.claim import InFlightTable
from agent.mount.holder import Holder

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0  # seconds between two tries; a missing socket answers at once
LAST_WAIT = 10.0  # seconds that an agent told to stop waits for a holder, without which its mounts would die

_T = TypeVar("_T")


class Served(Protocol):
    """What this needs of the mounts (agent/mount/mounts.py)."""

    def use_table(self, table: InFlightTable) -> None:
        """Mounts made from now on use another in-flight table; its descriptor is the caller's."""

    def served(self) -> Sequence[object]:
        """The mounts that die with their descriptors; promoted ones do not."""


class Handover:
    """Watches the holder's connection from `start` to `close`. Loop only."""

    def __init__(
        self, holder: Holder, mounts: Served, table: InFlightTable, clock: Clock, metrics: Metrics
    ) -> None:
        """`table` is what the holder gave at the claim; its descriptor is this object's from now on."""
        self._holder = holder
        self._mounts = mounts
        self._table = table
        self._clock = clock
        self._metrics = metrics
        self._task: asyncio.Task[None] | None = None
        self._back = asyncio.Event()
        self._said = ""

    def start(self) -> None:
        self._back.set()
        self._metrics.holder_connected.set(1)
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """End. Where mounts would die with this agent it first waits, LAST_WAIT at most, for a holder."""
        if not self._holder.connected and self._mounts.served():
            log.warning("no holder has the mounts: waiting up to %g s for one", LAST_WAIT)
            timer = self._clock.call_later(LAST_WAIT, self._back.set)
            await self._back.wait()
            timer.cancel()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            self._table.close()

    async def _run(self) -> None:
        while True:
            await self._ended()
            self._back.clear()
            self._metrics.holder_connected.set(0)
            log.warning("the holder has ended; its mounts are served on, and given to the next one")
            await _to_the_end(self._holder.drop)
            bound = await self._reclaimed()
            self._metrics.holder_connected.set(1)
            log.info("a holder is there again and has %d mounts", len(bound))
            self._back.set()
            await self._give_up([name for name, targets in bound.items() if not targets])

    async def _ended(self) -> None:
        """Wait for the connection's end: a poll of its own, because answers make the socket readable too."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        with select.epoll() as poll:
            poll.register(self._holder.fileno(), select.EPOLLRDHUP)
            loop.add_reader(poll.fileno(), ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(poll.fileno())

    async def _reclaimed(self) -> dict[str, int]:
        """Try until a holder has taken us on; on how many targets each mount is bound."""
        pause = FIRST_PAUSE
        while True:
            try:
                reclaimed = await _to_the_end(lambda: self._holder.reclaim(self._table))
            except HolderError as error:
                self._say(str(error))
            else:
                if reclaimed.table is not None:
                    self._mounts.use_table(reclaimed.table)
                    self._table.close()
                    self._table = reclaimed.table
                return reclaimed.bound
            await self._clock.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _give_up(self, names: list[str]) -> None:
        """What was unpublished while no holder was there. A mount about to be bound is asked for again."""
        for name in names:
            try:
                await _to_the_end(lambda name=name: self._holder.unmount(name))  # type: ignore[misc]
            except HolderError as error:
                log.warning("cannot take the mount %s away, which no target shows: %s", name, error)

    def _say(self, reason: str) -> None:
        if reason != self._said:
            log.warning("no holder yet: %s", reason)
            self._said = reason


async def _to_the_end(work: Callable[[], _T]) -> _T:
    """Run blocking work in a thread, to its end even where the caller is cancelled meanwhile."""
    task: Awaitable[_T] = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([asyncio.ensure_future(task)])
        raise
