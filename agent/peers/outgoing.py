"""The bytes of one answer: what is in the store goes by sendfile, what still arrives follows as it comes.

A stream looks at presence and landings as any reader does (agent/cache/CONCURRENCY.md). It waits with a
waiter in the landing, which a receiving thread calls with what it has just written. Each peer's streams have
a thread (agent/peers/courier.py) while there are any.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import threading
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field

from agent.cache.objects import CachedObject
from agent.clock import Clock, ended
from agent.content import Extent
from agent.peers.courier import SENT_WITHIN, Courier, DigestOf
from agent.peers.turns import Stream, available, landing_of
from agent.rate import Rate

FLUSHED_EVERY = 0.01  # seconds between two looks whether a head has gone, where the socket did not take it


def here(cached: CachedObject, extent: Extent) -> bool:
    """Whether the first byte of an extent is there, or its chunk is arriving."""
    first = extent.offset // cached.chunk_size
    return bool(cached.present[first]) or landing_of(cached, first) is not None


@dataclass(eq=False, slots=True)
class _Visited:
    """A peer that has streams now."""

    courier: Courier
    streams: set[Stream] = field(default_factory=set)

    def waiting(self) -> int:
        """Bytes that it asked for, that are here and not sent."""
        return sum(available(one.cached, one.position, one.extent.end) - one.position for one in self.streams)


class Outgoing:
    """Sends extents of objects over connections. Made and used on one loop.

    There are no more threads than streams, whose number the caller bounds.
    """

    def __init__(self, clock: Clock, digest: DigestOf, limit: Rate | None = None) -> None:
        """`digest` gives those of units, in threads; `limit` is for all bytes that are sent."""
        self._clock = clock
        self._digest = digest
        self._limit = limit
        self._visited: dict[str, _Visited] = {}
        self._threads: set[threading.Thread] = set()
        self._sent: Counter[str] = Counter()  # by streams that are over

    def sent(self) -> dict[str, int]:
        """Bytes that each peer was sent in all."""
        sent = dict(self._sent)
        for peer, visited in self._visited.items():
            sent[peer] = sent.get(peer, 0) + sum(one.sent for one in visited.streams)
        return sent

    def waiting(self) -> dict[str, int]:
        """Bytes that each peer asked for, that are here and not sent."""
        return {peer: visited.waiting() for peer, visited in self._visited.items()}

    def keep_only(self, names: frozenset[str]) -> None:
        """Forget what was sent to whoever is no member any more and has no stream."""
        for name in self._sent.keys() - names - self._visited.keys():
            del self._sent[name]

    async def close(self) -> None:
        """Wait for the threads, when nothing is sent any more."""
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    async def send(
        self,
        peer: str,
        transport: asyncio.WriteTransport,
        cached: CachedObject,
        extent: Extent,
        urgent: bool = False,
    ) -> int:
        """Send the units of an extent to a peer, each with its digest behind it, and return how many bytes
        of the extent that were: fewer where the rest cannot be had.

        An urgent one goes before the others to that peer. The caller holds the object. When this ends, in
        whatever way, no thread sends any more. Raises OSError and TimeoutError of the connection, NotHere.
        """
        await self._flushed(transport)
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()
        stream = Stream(
            cached,
            extent,
            urgent,
            connection=transport.get_extra_info("socket").dup(),
            gone=transport.is_closing,
            ended=functools.partial(_tell, loop, over),
        )
        visited = self._visited.setdefault(peer, _Visited(self._courier(loop)))
        visited.streams.add(stream)
        try:
            if visited.courier.add(stream):
                self._start(visited.courier)
            await asyncio.wait([over])
        except asyncio.CancelledError:
            visited.courier.give_up(stream)
            await ended(over)
            raise
        finally:
            visited.streams.discard(stream)
            self._sent[peer] += stream.sent
            if not visited.streams:
                del self._visited[peer]
        over.result()
        return stream.sent

    def _start(self, courier: Courier) -> None:
        thread = threading.Thread(target=courier.run, name="send", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the process may have no more threads
            courier.abandon(OSError(errno.EAGAIN, "no thread can be started"))
            return
        self._threads = {one for one in self._threads if one.is_alive()} | {thread}

    def _courier(self, loop: asyncio.AbstractEventLoop) -> Courier:
        limit = self._limit
        if limit is None:
            return Courier(self._clock, self._digest)

        def pay(count: int, urgent: bool) -> Future[None]:
            return asyncio.run_coroutine_threadsafe(limit.take(count, urgent), loop)

        return Courier(self._clock, self._digest, pay)

    async def _flushed(self, transport: asyncio.WriteTransport) -> None:
        """Wait until the head of the answer is with the kernel. Raises OSError and TimeoutError."""
        give_up = self._clock.monotonic() + SENT_WITHIN
        while transport.get_write_buffer_size() and not transport.is_closing():
            if self._clock.monotonic() >= give_up:
                raise TimeoutError("the peer does not take the head")
            await self._clock.sleep(FLUSHED_EVERY)
        if transport.is_closing():
            raise ConnectionResetError("the peer has gone")


def _tell(loop: asyncio.AbstractEventLoop, over: asyncio.Future[None], error: BaseException | None) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
        loop.call_soon_threadsafe(_settle, over, error)


def _settle(over: asyncio.Future[None], error: BaseException | None) -> None:
    if error is None:
        over.set_result(None)
    else:
        over.set_exception(error)
