"""Complete objects against what their origin states of them, once, in the background.

The checksums of chunks prove that bytes are those that were received; this proves that they are those that
were meant. An object counts as verified once it is checked, or once its origin has said that it states
nothing. One that differs is dropped and fetched anew; when that differs too, its reads fail with a message
until the origin has another version of it: bytes that are wrong at the origin would else be fetched for ever.

It stands between the fills and the source: there it learns of objects that may be complete, and refuses those
that are not to be served. What is known is durable (verdicts.py). Belongs to the loop; threads hash.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Protocol

from agent.cache import verdicts
from agent.cache.directory import Directory
from agent.cache.repair import Repaired, Repairs
from agent.cache.verdicts import Verdict
from agent.clock import Clock
from agent.content import ObjectRef
from agent.errors import ChecksumDiffers, HeadraceError, StoreFailed
from agent.metrics import Metrics
from agent.source import Budget, Checksum, ChunkSource, Sink

log = logging.getLogger(__name__)

PIECE = 1 << 20  # bytes that are hashed at once
SHARE = 4.0  # in the background it rests so many times as long as it worked
SHORTEST_REST = 0.05  # seconds
SETTLED = 1.0  # seconds after its last fetch: who reads it for the first time should have the CPU
QUEUE = 10_000  # objects that wait for their check; those beyond are checked when they are to be promoted


class Stating(ChunkSource, Protocol):
    """A source that knows what origins state."""

    async def checksum(self, ref: ObjectRef) -> Checksum | None: ...


class WholeObjects:
    """The checks of a node, and the `ChunkSource` that its fills use; works from `start` to `close`."""

    def __init__(
        self, store: Repaired, repairs: Repairs, source: Stating, clock: Clock, metrics: Metrics
    ) -> None:
        self._store = store
        self._repairs = repairs
        self._source = source
        self._clock = clock
        self._metrics = metrics
        self._refused: set[str] = set()
        # In the order of their last fetches, each with its time.
        self._queue: OrderedDict[str, tuple[ObjectRef, float]] = OrderedDict()
        self._queued = asyncio.Event()
        self._checks: dict[str, asyncio.Task[bool]] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take up what earlier lives have refused, and begin."""
        for directory in self._store.directories:
            with suppress(StoreFailed):  # a directory that fails serves nothing
                self._refused |= await self._store.on_index_thread(
                    lambda index=directory.index: verdicts.refused(index)  # type: ignore[misc]
                )
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        tasks: list[asyncio.Task[bool] | asyncio.Task[None]] = list(self._checks.values())
        if self._task is not None:
            tasks.append(self._task)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def budget(self, ref: ObjectRef) -> Budget:
        return self._source.budget(ref)

    async def fetch(self, ref: ObjectRef, sink: Sink) -> None:
        """As the source does. ChecksumDiffers for an object that is refused."""
        if ref.key in self._refused:
            raise ChecksumDiffers(
                f"{ref.uri}: its bytes do not have the checksum that its origin states; write it anew there"
            )
        await self._source.fetch(ref, sink)
        if self._queue.pop(ref.key, None) or len(self._queue) < QUEUE:
            self._queue[ref.key] = (ref, self._clock.monotonic())
            self._queued.set()

    async def verify(self, directory: Directory, refs: Iterable[ObjectRef]) -> bool:
        """Whether all of these objects, complete in a directory, are verified; checks those that are not."""
        unknown = await self.unverified(directory, refs)
        results = [await self.check(ref) for ref in unknown]
        return all(results)

    async def unverified(self, directory: Directory, refs: Iterable[ObjectRef]) -> list[ObjectRef]:
        """Those of the objects that are to be checked still."""
        wanted = {ref.key: ref for ref in refs if ref.size}
        known = await self._store.on_index_thread(lambda: verdicts.verified(directory.index, list(wanted)))
        return [ref for key, ref in wanted.items() if key not in known]

    async def check(self, ref: ObjectRef) -> bool:
        """Whether an object is complete and verified; one check of each at a time, whoever asks."""
        task = self._checks.get(ref.key)
        if task is None:
            task = self._checks[ref.key] = asyncio.create_task(self._check(ref))
            task.add_done_callback(lambda _: self._checks.pop(ref.key, None))
        return await asyncio.shield(task)

    async def _run(self) -> None:
        while True:
            await self._queued.wait()
            key, (ref, fetched) = next(iter(self._queue.items()))
            began = self._clock.monotonic()
            if began < fetched + SETTLED:
                await self._clock.sleep(fetched + SETTLED - began)
                continue
            del self._queue[key]
            found = self._store.found(key)
            if found is not None and found[0].landings:
                self._queue[key] = (ref, began)  # it is arriving still: later
            elif found is not None and found[0].complete:
                with suppress(HeadraceError):  # it is asked again when it is to be promoted
                    await self.check(ref)
            if not self._queue:
                self._queued.clear()
            await self._clock.sleep(max(SHORTEST_REST, SHARE * (self._clock.monotonic() - began)))

    async def _check(self, ref: ObjectRef) -> bool:
        try:
            stated = await self._source.checksum(ref)
        except HeadraceError as error:
            log.info("%s cannot be checked as a whole now: %s", ref.uri, error)
            return False
        cached = await self._store.acquire(ref)
        try:
            found = self._store.found(ref.key)
            if not cached.complete or found is None:
                return False
            if stated is None or stated.algorithm not in HASHES:
                await self._judge(found[1], ref, Verdict.UNSTATED)
                return True
            try:
                value = await asyncio.to_thread(whole_checksum, cached.fd, ref.size, stated.algorithm)
            except OSError as error:
                raise StoreFailed(f"cannot read {cached.path}: {error.strerror}") from error
            if value != stated.value:
                await self._differs(found[1], ref, stated)
                return False
            await self._judge(found[1], ref, Verdict.RIGHT)
            return True
        finally:
            self._store.release(cached)

    async def _differs(self, directory: Directory, ref: ObjectRef, stated: Checksum) -> None:
        known = await self._store.on_index_thread(lambda: verdicts.verdict(directory.index, ref.key))
        again = known in (Verdict.DOUBTED, Verdict.REFUSED)
        what = "its reads fail from now on" if again else "it is fetched anew"
        log.error("%s does not have the %s that its origin states: %s", ref.uri, stated.algorithm, what)
        self._metrics.damage["object"].inc()
        if again:
            self._refused.add(ref.key)
        await self._judge(directory, ref, Verdict.REFUSED if again else Verdict.DOUBTED)
        await self._repairs.drop(ref)

    async def _judge(self, directory: Directory, ref: ObjectRef, found: Verdict) -> None:
        await self._store.on_index_thread(lambda: verdicts.judge(directory.index, ref.key, found))


class _Crc32:
    """CRC-32 as hashlib has its algorithms; the value is big-endian, as S3 states it."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


class Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def digest(self) -> bytes: ...


HASHES: dict[str, Callable[[], Hash]] = {
    "sha256": hashlib.sha256,
    "sha1": hashlib.sha1,
    "crc32": _Crc32,
}


def whole_checksum(fd: int, size: int, algorithm: str) -> bytes:
    """The checksum of a file's first `size` bytes (a thread). Raises OSError."""
    digest = HASHES[algorithm]()
    for offset in range(0, size, PIECE):
        digest.update(os.pread(fd, min(PIECE, size - offset), offset))
    return digest.digest()
