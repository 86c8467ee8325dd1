"""This agent as an owner of small objects: it has them, or fetches them once for all that ask.

An answer is made within `ANSWER_WITHIN` seconds; what has not come by then is said to be coming, and asked
for again. What is in the store is compared with its checksum in the index: a damaged object is not here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence

import xxhash

from agent.cache.fill import Filler
from agent.cache.objects import CachedObject
from agent.cache.store import Store
from agent.clock import Clock
from agent.content import Extent, ObjectRef
from agent.errors import BadRequest, HeadraceError, StoreError
from agent.metrics import Metrics
from agent.peers.owners import SmallObjects
from agent.peers.small import Frame, State, answer_of, parse_request
from agent.rate import Rate
from agent.source import Urgency

log = logging.getLogger(__name__)

ANSWER_WITHIN = 1.0  # seconds
READING = 8  # answers that are put together at a time: 16 MiB


class Ownership:
    """Answers `POST /peer/v1/small-xxh3`. Used on the loop."""

    def __init__(
        self,
        store: Store,
        filler: Filler,
        small: SmallObjects,
        clock: Clock,
        metrics: Metrics,
        limit: Rate | None = None,
    ) -> None:
        """`limit` is for the bytes that are sent."""
        self._limit = limit
        self._store = store
        self._filler = filler
        self._small = small
        self._clock = clock
        self._metrics = metrics
        self._reading = asyncio.Semaphore(READING)

    async def call(self, sender: str, body: bytes) -> bytes:
        """A `Call` of the exchange. Raises BadRequest."""
        refs, fetch = parse_request(body)
        if any(ref.uri.startswith("file://") for ref in refs):
            raise BadRequest("a file of this node is nobody else's")
        present = await self._present(refs)
        held = [one for ref in refs if (one := await self._held(ref, present, fetch)) is not None]
        try:
            if fetch:
                await self._fetch([one for one in held if not one.present[0]])
            async with self._reading:
                found = await self._read(held)
                count = sum(len(frame.data) for frame in found.values())
                self._metrics.peer_bytes_sent.inc(count)
                if self._limit is not None:
                    await self._limit.take(count)
                return answer_of(found.get(ref.key) or Frame(ref.key, State.ABSENT) for ref in refs)
        finally:
            for one in held:
                self._store.release(one)

    async def _present(self, refs: Sequence[ObjectRef]) -> dict[str, int]:
        try:
            return await self._store.present_bytes([ref.key for ref in refs])
        except StoreError:
            return {}

    async def _held(self, ref: ObjectRef, present: dict[str, int], fetch: bool) -> CachedObject | None:
        """The object where it is here, or can be fetched. One that this agent asks for elsewhere cannot:
        two that take each other for the owner would wait for each other."""
        if not present.get(ref.key) and (not fetch or self._small.asks(ref.key)):
            return None
        try:
            return await self._store.acquire(ref)
        except StoreError:
            return None

    async def _fetch(self, missing: list[CachedObject]) -> None:
        """Have these fetched, and wait for as long as an answer may."""
        ended = _Ended()
        with self._small.owning([one.ref.key for one in missing]):
            for one in missing:
                ended.left += self._filler.preload(one, 0, self, ended.told, Urgency.READER)
            if ended.left:
                with contextlib.suppress(TimeoutError):
                    async with self._clock.timeout(ANSWER_WITHIN):
                        await ended.all.wait()

    async def _read(self, held: list[CachedObject]) -> dict[str, Frame]:
        reading, frames = list[CachedObject](), {}
        for one in held:
            landing = one.landings.get(0)
            if not (landing is not None and landing.unproven) and one.begin_read(Extent(0, one.ref.size)):
                reading.append(one)
            elif landing is not None:
                frames[one.ref.key] = Frame(one.ref.key, State.COMING)
        kept = [one for one in reading if one.present[0]]  # what is not has just come, and is right
        try:
            recorded = await asyncio.gather(*(self._recorded(one) for one in kept))
            checksums = {one.ref.key: xxh3 for one, xxh3 in zip(kept, recorded, strict=True)}
            found = await asyncio.to_thread(_frames_of, reading, checksums)
        finally:
            for one in reading:
                one.end_read(Extent(0, one.ref.size))
        for one in kept:
            if one.ref.key not in found and one.present[0] and checksums[one.ref.key] is not None:
                log.warning("%s is damaged; no peer gets it", one.ref.uri)
        return frames | found

    async def _recorded(self, one: CachedObject) -> bytes | None:
        """The checksum of an object that is in the store; None where it cannot be known."""
        try:
            return await self._store.checksum(one, 0)
        except StoreError as error:
            log.warning("%s: no peer gets it: %s", one.ref.uri, error)
            return None


class _Ended:
    """Waits until so many fills have ended, well or not."""

    def __init__(self) -> None:
        self.left = 0
        self.all = asyncio.Event()

    def told(self, error: HeadraceError | None) -> None:
        self.left -= 1
        if not self.left:
            self.all.set()


def _frames_of(objects: Sequence[CachedObject], checksums: Mapping[str, bytes | None]) -> dict[str, Frame]:
    """Objects that are counted as read; one that the disk does not give back as it was recorded, if it was,
    is not among them."""
    found = {}
    for one in objects:
        key, data = one.ref.key, bytearray(one.ref.size)
        with contextlib.suppress(OSError):
            one.read(Extent(0, one.ref.size), memoryview(data))
            if key not in checksums or xxhash.xxh3_128_digest(data) == checksums[key]:
                found[key] = Frame.of(key, bytes(data))
    return found
