"""The bytes of one answer: what is in the store goes by sendfile, what still arrives follows as it comes.

A stream looks at presence and landings as any reader does (agent/cache/CONCURRENCY.md). It waits with a
waiter in the landing, which a receiving thread calls; the bytes themselves are always sent from the object's
file, never from a buffer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import IO, cast

from agent.cache.objects import CachedObject
from agent.clock import Clock, timeout
from agent.content import Extent
from agent.errors import HeadraceError
from agent.peers.turns import Turns
from agent.rate import Rate
from agent.transfer.landing import Landing

SLICE = 1 << 20  # bytes sent in one turn
SENT_WITHIN = 10.0  # seconds for a slice: whoever reads more slowly than 100 KiB a second is cut off
ARRIVED_WITHIN = 10.0  # seconds of silence of the landing
LOOK_EVERY = (
    0.5  # seconds between two looks whether that landing is still the one: its end is told to readers only
)


class NotHere(HeadraceError):
    """The bytes are not in the store, and do not arrive."""


class _Arrival:
    """A waiter (agent/transfer/landing.py) that wakes a task of the loop."""

    def __init__(self, needs: int, loop: asyncio.AbstractEventLoop) -> None:
        self.needs = needs
        self._loop = loop
        self.arrived = asyncio.Event()

    def ready(self, data: memoryview, offset: int) -> None:
        self._loop.call_soon_threadsafe(self.arrived.set)


def available(cached: CachedObject, offset: int, end: int) -> int:
    """Where the bytes that are there from `offset` on end, at most `end`; `offset` where there are none."""
    for chunk in cached.chunks(Extent(offset, end - offset)):
        if cached.present[chunk]:
            offset = min(end, cached.extent(chunk).end)
            continue
        landing = _landing(cached, chunk)
        arrived = landing.position if landing is not None else offset
        if arrived < min(end, cached.extent(chunk).end):
            return max(offset, arrived)
        offset = min(end, arrived)
    return offset


def here(cached: CachedObject, extent: Extent) -> bool:
    """Whether the first byte of an extent is there, or its chunk is arriving."""
    first = extent.offset // cached.chunk_size
    return bool(cached.present[first]) or _landing(cached, first) is not None


def _landing(cached: CachedObject, chunk: int) -> Landing | None:
    """Where a chunk arrives in the object's file; one that is only passed through is no business of peers."""
    landing = cached.landings.get(chunk)
    return landing if type(landing) is Landing else None


class Outgoing:
    """Sends extents of objects over connections."""

    def __init__(self, clock: Clock, limit: Rate | None = None) -> None:
        """`limit` is for all bytes that are sent."""
        self._clock = clock
        self._limit = limit
        self._turns = Turns(clock)

    async def send(
        self,
        peer: str,
        transport: asyncio.WriteTransport,
        cached: CachedObject,
        extent: Extent,
        urgent: bool = False,
    ) -> int:
        """Send the extent to a peer, and return how many bytes that were: fewer where the rest cannot be had.

        An urgent one goes before the others to that peer. The caller holds the object. Raises OSError and
        TimeoutError of the connection.
        """
        offset = extent.offset
        while offset < extent.end:
            if available(cached, offset, extent.end) > offset:
                await self._turns.take(peer, extent.offset, urgent)
                try:
                    until = min(available(cached, offset, extent.end), offset + SLICE)
                    if until > offset:
                        await self._send_slice(transport, cached, Extent(offset, until - offset))
                finally:
                    self._turns.give(peer)
                if self._limit is not None:
                    await self._limit.take(until - offset)
                offset = until
            elif not await self._arrives(cached, offset, extent.end):
                break
        return offset - extent.offset

    async def _send_slice(
        self, transport: asyncio.WriteTransport, cached: CachedObject, extent: Extent
    ) -> None:
        if transport.is_closing():
            raise ConnectionResetError("the peer has gone")
        if not cached.begin_read(extent):
            raise NotHere("the bytes went while they were sent")
        try:
            self._ask_disk_ahead(cached, extent.end)
            async with timeout(self._clock, SENT_WITHIN):
                await asyncio.get_running_loop().sendfile(
                    transport,
                    cast(IO[bytes], _Whole(cached.fd)),
                    extent.offset,
                    extent.length,
                    fallback=False,
                )
        except asyncio.SendfileNotAvailableError as error:  # so asyncio says of a connection that was reset
            raise ConnectionResetError("the peer has gone") from error
        finally:
            cached.end_read(extent)

    @staticmethod
    def _ask_disk_ahead(cached: CachedObject, offset: int) -> None:
        """Have what follows in memory, because sendfile waits for the disk on the loop.

        Not where nothing has arrived yet: the kernel would fill pages with zeros for a hole.
        """
        end = available(cached, offset, min(offset + SLICE, cached.ref.size))
        if end > offset:
            os.posix_fadvise(cached.fd, offset, end - offset, os.POSIX_FADV_WILLNEED)

    async def _arrives(self, cached: CachedObject, offset: int, end: int) -> bool:
        """Wait for a byte at `offset`; False where none comes."""
        landing = _landing(cached, offset // cached.chunk_size)
        if landing is None:
            return available(cached, offset, end) > offset
        waiter = _Arrival(offset + 1, asyncio.get_running_loop())
        if not landing.wait(waiter):
            return True
        give_up = self._clock.monotonic() + ARRIVED_WITHIN
        try:
            while self._clock.monotonic() < give_up:
                with contextlib.suppress(TimeoutError):
                    async with timeout(self._clock, LOOK_EVERY):
                        await waiter.arrived.wait()
                    return True
                if _landing(cached, offset // cached.chunk_size) is not landing:
                    return available(cached, offset, end) > offset
        finally:
            landing.leave(waiter)
        return False


class _Whole:
    """What asyncio's sendfile wants of a file: a descriptor that is not its own to close."""

    mode = "rb"

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd
