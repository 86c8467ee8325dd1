"""Making room: passes over the directories, each of which carries out what the policy decides (eviction.py).

A pass begins when the store is under pressure (a fill has passed the high watermark, or found no room), and
every few seconds, because others may have filled the disk. It ends at the low watermark, or where nothing
more may go. A fill that found no room waits for one pass. Loop only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Set
from typing import Protocol

from agent.cache import uses
from agent.cache.directory import Directory, State
from agent.cache.eviction import Candidate, Chunk, Removal, plan
from agent.cache.objects import CachedObject
from agent.cache.store import Store
from agent.clock import Clock, Timer
from agent.content import chunk_extent
from agent.errors import StoreError
from agent.metrics import Metrics

log = logging.getLogger(__name__)

CHECK_SECONDS = 5.0  # how often disks are looked at that others fill too, and probed when they were not well
ROOM_SECONDS = 10.0  # how long a fill waits for room before it is read through
# After a pass that freed nothing the next one would not either: until then fills are not kept waiting.
HOPELESS_SECONDS = 1.0


class Claims(Protocol):
    """Who has a claim on objects beside those that the store knows of."""

    def mounted(self) -> Set[str]:
        """The keys of the objects that mounts show."""

    def leased(self) -> Set[str]:
        """The keys of the objects that are open in the kernel, as far as nobody told otherwise."""

    def pinned(self) -> Set[str]:
        """The keys of the objects that are pinned now."""

    def awaited(self, key: str) -> Set[int]:
        """The chunks of an object without which reads that wait for others of it could not end."""


class Evictor:
    """The eviction of one store, from `start` to `close`; before that nothing is taken away."""

    def __init__(self, store: Store, claims: Claims, clock: Clock, metrics: Metrics) -> None:
        self._store = store
        self._claims = claims
        self._clock = clock
        self._metrics = metrics
        self._pressed = asyncio.Event()
        self._waiting: list[tuple[Directory, int, asyncio.Future[bool]]] = []
        self._hopeless: dict[str, float] = {}
        self._timer: Timer | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Evict from now on, as the store needs it."""
        self._store.on_pressure = self._pressed.set
        self._store.evict = self.evict
        self._task = asyncio.create_task(self._run())
        self._tick()

    async def close(self) -> None:
        """Take nothing more away; a pass that is under way ends first."""
        self._store.evict = _nothing
        task, self._task = self._task, None
        if self._timer is not None:
            self._timer.cancel()
        self._pressed.set()
        if task is not None:
            await asyncio.wait([task])
        for _, _, told in self._waiting:
            if not told.done():
                told.set_result(False)

    def hope(self) -> None:
        """A claim has ended: what could not go before may go now."""
        self._hopeless.clear()
        self._pressed.set()

    async def evict(self, directory: Directory, length: int) -> bool:
        """Have a pass try to make room for `length` bytes more; whether it made any."""
        if self._task is None or self._hopeless.get(str(directory.path), 0.0) > self._clock.monotonic():
            return False
        told: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((directory, length, told))
        self._pressed.set()
        try:
            async with self._clock.timeout(ROOM_SECONDS):
                return await told
        except TimeoutError:
            return False

    def _tick(self) -> None:
        if self._task is not None:
            self._pressed.set()
            self._timer = self._clock.call_later(CHECK_SECONDS, self._tick)

    async def _run(self) -> None:
        while self._task is not None:
            await self._pressed.wait()
            self._pressed.clear()
            if self._task is None:
                return
            await self._store.conditions.probe()
            for directory in self._store.directories:
                await self._relieve(directory)

    async def _relieve(self, directory: Directory) -> None:
        """One pass over one directory, and what it tells those who wait for it."""
        asked = [one for one in self._waiting if one[0] is directory]
        self._waiting = [one for one in self._waiting if one[0] is not directory]
        freed = 0
        try:
            if directory.state is not State.FAILED:
                await self._store.recount(directory)
                freed = await self._pass(directory, sum(length for _, length, _ in asked))
                if directory.state is State.FULL and freed:
                    await self._store.conditions.probe([directory])
        except StoreError as error:
            self._store.conditions.mark(directory, error)
        except OSError as error:
            log.error("%s: eviction: %s", directory.path, error.strerror)
        if asked and not freed:
            self._hopeless[str(directory.path)] = self._clock.monotonic() + HOPELESS_SECONDS
        for _, _, told in asked:
            if not told.done():
                told.set_result(bool(freed))

    async def _pass(self, directory: Directory, asked: int) -> int:
        """How many bytes were freed."""
        needed = asked - directory.room if asked else 0
        if directory.excess(directory.high_watermark) > 0 or needed > 0:
            needed = max(needed, directory.excess(directory.low_watermark))
        if needed <= 0:
            return int(bool(asked))  # others have made room meanwhile
        await self._store.note_uses()
        found = await self._store.blocking(uses.used, directory.index)
        closed = await self._chunks_of_closed(directory, found, needed)
        candidates = self._candidates(directory, found, closed)
        freed = 0
        for removal in plan(needed, candidates, self._untouchable(found)):
            freed += await self._remove(directory, removal)
        if freed:
            log.info("%s: %d bytes were evicted", directory.path, freed)
        return freed

    async def _chunks_of_closed(
        self, directory: Directory, found: Iterable[uses.Used], needed: int
    ) -> dict[str, list[int]]:
        """The chunks of objects that are not open and were never complete, of as many as could be needed."""
        chunks: dict[str, list[int]] = {}
        untouchable = self._untouchable(found)
        mounted = self._claims.mounted()
        for one in sorted(found, key=lambda one: (one.key in mounted, one.last_use, one.key)):
            if needed <= 0:
                break
            if one.key in untouchable:
                continue
            if not one.ever_complete and self._opened(directory, one.key) is None:
                chunks[one.key] = await self._store.blocking(uses.chunks, directory.index, one.row)
            if one.ever_complete or self._opened(directory, one.key) is None:
                needed -= one.bytes
        return chunks

    def _candidates(
        self, directory: Directory, found: Iterable[uses.Used], closed: dict[str, list[int]]
    ) -> list[Candidate]:
        mounted = self._claims.mounted()
        candidates = []
        for one in found:
            opened = self._opened(directory, one.key)
            complete = one.ever_complete or (opened is not None and opened.complete)
            if complete:
                chunks: tuple[Chunk, ...] = ()
            elif opened is not None:
                chunks = self._chunks(opened)
            else:
                chunks = tuple(
                    Chunk(number, chunk_extent(number, one.size, one.chunk_size).length)
                    for number in closed.get(one.key, ())
                )
            last_use = one.last_use if opened is None else max(one.last_use, opened.last_use)
            candidates.append(Candidate(one.key, one.bytes, last_use, complete, one.key in mounted, chunks))
        return candidates

    def _chunks(self, cached: CachedObject) -> tuple[Chunk, ...]:
        """The chunks of an open object that may go: those present, which nobody fills or waits with."""
        awaited: Set[int] = self._claims.awaited(cached.ref.key) if cached.landings else set()
        return tuple(
            Chunk(number, cached.extent(number).length, cached.chunk_uses[number])
            for number, present in enumerate(cached.present)
            if present and number not in awaited
        )

    def _opened(self, directory: Directory, key: str) -> CachedObject | None:
        """The object if it is open in this directory: one that failed and came back may have old copies."""
        found = self._store.found(key)
        return found[0] if found is not None and found[1] is directory else None

    def _untouchable(self, found: Iterable[uses.Used]) -> set[str]:
        """What is leased or pinned, and what was ever complete and is in use."""
        busy = {one.key for one in found if one.ever_complete and not self._store.idle(one.key)}
        return busy | self._store.leased | self._claims.leased() | self._claims.pinned()

    async def _remove(self, directory: Directory, removal: Removal) -> int:
        """Carry one removal out, if nobody has come meanwhile; how many bytes it freed."""
        if removal.key in self._claims.leased() or removal.key in self._claims.pinned():
            return 0
        if removal.chunks is None:
            freed = await self._store.take_object(directory, removal.key)
            self._metrics.evicted_objects.inc(int(freed > 0))
        elif self._opened(directory, removal.key) is None:
            freed = await self._store.take_closed(directory, removal.key, removal.chunks)
            self._metrics.evicted_chunks.inc(len(removal.chunks) if freed else 0)
        else:
            awaited = self._claims.awaited(removal.key)  # somebody may have come for them since
            chunks = tuple(chunk for chunk in removal.chunks if chunk not in awaited)
            freed = await self._store.take_chunks(removal.key, chunks) if chunks else 0
            self._metrics.evicted_chunks.inc(len(chunks) if freed else 0)
        self._metrics.evicted_bytes.inc(freed)
        return freed


async def _nothing(directory: Directory, length: int) -> bool:
    return False
