"""A whole store with its fills, its eviction and its repairs, and what must be true of it.

The origin is in memory, the clock stands still but where something waits, the files are real.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from agent.cache.directory import StoreLimits
from agent.cache.evictor import Evictor
from agent.cache.fill import Filler
from agent.cache.objects import CachedObject
from agent.cache.passing import PassingChunks, PassingLanding
from agent.cache.pins import Pins
from agent.cache.repair import Repairs
from agent.cache.store import Store
from agent.content import Extent, ObjectRef, chunk_extent
from agent.errors import HeadraceError, StoreError
from agent.metrics import Metrics
from agent.origin.pacing import PacedOrigins
from agent.source import Budget, Sink
from tests.fakes.clock import ManualClock
from tests.fakes.source import MemorySource

CHUNK = 4096
CAPACITY = 9 * CHUNK  # of each directory
SIZES = (CHUNK - 100, 3 * CHUNK + 77, 4 * CHUNK, 6 * CHUNK, 12 * CHUNK + 1)
PATIENCE = 1e6  # seconds: nothing fails because it has waited
TURN = 0.002  # real seconds that threads have before the clock is moved on
WITHIN = 20.0  # real seconds for anything

REFS = tuple(ObjectRef(f"s3://bucket/{number}", "v1", size) for number, size in enumerate(SIZES))
DATA = {ref.uri: random.Random(ref.uri).randbytes(ref.size) for ref in REFS}
T = TypeVar("T")


class Claimed:
    """What the kernel has open, as a test says, what is pinned, and what reads wait for."""

    def __init__(self, pins: Pins, filler: Filler) -> None:
        self.opened: set[str] = set()
        self.shown: set[str] = set()
        self._pins = pins
        self._filler = filler

    def mounted(self) -> set[str]:
        return self.shown

    def leased(self) -> set[str]:
        return self.opened

    def pinned(self) -> set[str]:
        return self._pins.keys()

    def awaited(self, key: str) -> set[int]:
        return self._filler.awaited(key)


class FaultySource(MemorySource):
    """The origin, and a disk that takes so many bytes of the next chunks before it gives an error."""

    def __init__(self) -> None:
        super().__init__(DATA, Budget("memory", 3, 5 * CHUNK, deadline=20.0))
        self.disk: deque[tuple[int, StoreError]] = deque()

    async def fetch(self, ref: ObjectRef, sink: Sink) -> None:
        if self.disk and not isinstance(sink, PassingLanding):
            taken, error = self.disk.popleft()
            start = sink.position
            sink.write(memoryview(DATA[ref.uri])[start : min(start + taken, sink.end)])
            raise error
        await super().fetch(ref, sink)


class Read:
    """A reader that checks what it is told, and says that chunks are lost as a mount does."""

    def __init__(self, site: Site, cached: CachedObject, extent: Extent) -> None:
        self.extent = extent
        self.needs = extent.end
        self.deadline: float | None = None
        self.result: asyncio.Future[HeadraceError | None] = asyncio.get_running_loop().create_future()
        self._site = site
        self._cached = cached

    def ready(self, data: memoryview, offset: int) -> None:
        start, end = self.extent.offset - offset, self.extent.end - offset
        if start >= 0 and end <= len(data):
            self._answer(bytes(data[start:end]))
        else:
            self.resume()

    def resume(self) -> None:
        if not self._cached.begin_read(self.extent):
            asyncio.get_running_loop().call_soon(self._again)
            return
        found = bytearray(self.extent.length)
        try:
            self._cached.read(self.extent, memoryview(found))
        except OSError:
            self._site.store.lost(self._cached, self._cached.chunks(self.extent))
            asyncio.get_running_loop().call_soon(self._again)
            return
        finally:
            self._cached.end_read(self.extent)
        self._answer(bytes(found))

    def fail(self, error: HeadraceError) -> None:
        self.result.set_result(error)

    def _again(self) -> None:
        self._site.filler.read(self._cached, self)

    def _answer(self, found: bytes) -> None:
        right = DATA[self._cached.ref.uri][self.extent.offset : self.extent.end]
        assert found == right, f"{self._cached.ref.uri} {self.extent}"
        self.result.set_result(None)


class Site:
    """One life of an agent's store."""

    def __init__(self, paths: Sequence[Path], store: Store, clock: ManualClock) -> None:
        self.paths = paths
        self.store = store
        self.clock = clock
        self.metrics = Metrics("test")
        self.source = FaultySource()
        passing = PassingChunks(6 * CHUNK)
        paced = PacedOrigins(self.source, {}, clock, random.Random(2))
        self.filler = Filler(store, paced, clock, self.metrics, PATIENCE, random.Random(1), passing)
        self.pins = Pins(store, clock, self.metrics)
        self.claims = Claimed(self.pins, self.filler)
        self.evictor = Evictor(store, self.claims, clock, self.metrics)
        self.repairs = Repairs(store)
        self.held: list[tuple[CachedObject, Extent]] = []
        self.faults: list[dict[str, Any]] = []
        self.alive = True

    @classmethod
    async def open(cls, paths: Sequence[Path], clock: ManualClock, capacity: int = CAPACITY) -> Site:
        store = await Store.open(paths, CHUNK, StoreLimits(capacity, 0), clock)
        site = cls(paths, store, clock)
        await site.pins.load()
        asyncio.get_running_loop().set_exception_handler(lambda _, context: site.faults.append(context))
        site.evictor.start()
        return site

    async def close(self) -> None:
        self.end_held()
        await self.drive(self.filler.close())
        await self.drive(self.evictor.close())
        await self.drive(self.store.close())
        self.alive = False
        assert self.faults == [], self.faults

    async def drive(self, work: Coroutine[Any, Any, T]) -> T:
        """Do some work to its end; the clock moves on where it waits."""
        task = asyncio.create_task(work)
        deadline = time.monotonic() + WITHIN
        while not task.done():
            await asyncio.wait([task], timeout=TURN)
            if not task.done():
                assert time.monotonic() < deadline, f"{task} hangs"
                self.clock.advance(0.5)
        return task.result()

    async def read(self, ref: ObjectRef, extents: Iterable[Extent]) -> None:
        """Several reads of an object at once, each of which must end with the right bytes."""
        cached = await self.drive(self.store.acquire(ref))
        reads = [Read(self, cached, extent) for extent in extents]
        for read in reads:
            self.filler.read(cached, read)
        waiting = asyncio.gather(*(read.result for read in reads))
        await asyncio.wait([waiting], timeout=TURN)
        if not waiting.done():
            self.end_held()  # eviction may wait for those, and the reads for it
        assert await self.drive(_result(waiting)) == [None] * len(reads)
        self.store.release(cached)

    async def read_all(self, ref: ObjectRef) -> None:
        """Read an object from its beginning to its end, in pieces that are no chunks."""
        step = CHUNK * 3 // 4
        for start in range(0, ref.size, step):
            await self.read(ref, [Extent(start, min(step, ref.size - start))])

    async def begin(self, ref: ObjectRef, where: int) -> None:
        """Begin a read of a chunk that is present, if there is one; it goes on until `end_held`."""
        cached = await self.drive(self.store.acquire(ref))
        present = [chunk for chunk, there in enumerate(cached.present) if there]
        extent = cached.extent(present[where % len(present)]) if present else None
        if extent is not None and cached.begin_read(extent):
            self.held.append((cached, extent))
        else:
            self.store.release(cached)

    def end_held(self) -> None:
        """End what `begin` has begun: the bytes must have stayed."""
        while self.held:
            cached, extent = self.held.pop()
            found = bytearray(extent.length)
            cached.read(extent, memoryview(found))
            cached.end_read(extent)
            self.store.release(cached)
            assert bytes(found) == DATA[cached.ref.uri][extent.offset : extent.end]

    async def evict(self, number: int, chunks: int) -> None:
        directory = self.store.directories[number % len(self.store.directories)]
        await self.drive(self.evictor.evict(directory, chunks * CHUNK))

    async def repair(self) -> int:
        """What the scrub does, in one go; how many chunks were wrong."""
        wrong = 0
        for directory in self.store.directories:
            index = directory.index
            for one in await self.store.blocking(index.objects_after, "", 100):
                chunks = [chunk for chunk, _ in await self.store.blocking(index.checksums, one.id)]
                wrong += await self.drive(self.repairs.repair(directory, one, chunks))
        return wrong

    async def copy(self, to: Sequence[Path]) -> None:
        """What a crash at this moment leaves: no thread that changes the index goes on meanwhile."""
        reached, go_on = threading.Event(), threading.Event()

        def stop() -> None:
            reached.set()
            go_on.wait(WITHIN)

        stopped = asyncio.ensure_future(self.store.on_index_thread(stop))
        while not reached.is_set():
            await asyncio.wait([stopped], timeout=TURN)
        for path, target in zip(self.paths, to, strict=True):
            shutil.copytree(path, target, ignore=shutil.ignore_patterns("*-shm"))
        go_on.set()
        await stopped

    async def settled(self) -> None:
        """Return once nothing is under way and the counters, the index and the files say the same."""
        deadline = time.monotonic() + WITHIN / 4
        self.end_held()
        while (told := self._differences()) and time.monotonic() < deadline:
            await asyncio.wait([asyncio.create_task(self.store.blocking(lambda: None))], timeout=1.0)
            self.clock.advance(0.1)  # a fill may wait for its next attempt
        assert told == []

    def _differences(self) -> list[str]:
        told = []
        for directory in self.store.directories:
            found = contents(directory.path)
            chunks = [extent.length for extents in found.values() for extent in extents]
            counted = (directory.objects, directory.chunks, directory.used)
            if counted != (len(found), len(chunks), sum(chunks)):
                told.append(f"counters {counted}, rows {len(found), len(chunks), sum(chunks)}")
            if directory.used > directory.capacity or directory.filling:
                told.append(f"used {directory.used}, filling {directory.filling}")
        return told


async def _result(waiting: asyncio.Future[T]) -> T:
    return await waiting


def contents(path: Path) -> dict[str, list[Extent]]:
    """The extents that an index says are present, by key; fails where its sums or the files differ."""
    with closing(sqlite3.connect(path / "index.sqlite")) as index:
        index.execute("BEGIN")
        objects = index.execute("SELECT id, key, size, present FROM objects").fetchall()
        totals = index.execute("SELECT objects, chunks, bytes FROM totals").fetchone()
        found = {}
        for row, key, size, present in objects:
            rows = index.execute("SELECT chunk FROM chunks WHERE object = ?", (row,)).fetchall()
            found[key] = [chunk_extent(chunk, size, CHUNK) for (chunk,) in rows]
            assert sum(extent.length for extent in found[key]) == present, key
    sums = (len(found), sum(map(len, found.values())), sum(present for *_, present in objects))
    assert totals == sums
    return found


def wrong_chunks(path: Path) -> list[tuple[str, int]]:
    """The chunks of which the index says that they are present, and whose bytes are others."""
    right = {ref.key: DATA[ref.uri] for ref in REFS}
    wrong = []
    for key, extents in contents(path).items():
        for extent in extents:
            with (path / "objects" / key[:2] / key).open("rb") as file:
                file.seek(extent.offset)
                if file.read(extent.length) != right[key][extent.offset : extent.end]:
                    wrong.append((key, extent.offset // CHUNK))
    return wrong


def flip(path: Path, key: str, offset: int) -> None:
    """Change one byte of an object's file; nothing where it is cut before that byte already."""
    file = path / "objects" / key[:2] / key
    fd = os.open(file, os.O_RDWR)
    for byte in os.pread(fd, 1, offset):
        os.pwrite(fd, bytes([byte ^ 0x40]), offset)
    os.close(fd)


def another_boot(path: Path) -> None:
    """As after a crash of the machine."""
    with closing(sqlite3.connect(path / "index.sqlite")) as index, index:
        index.execute("UPDATE chunks SET boot = 'another'")
