"""The node's chunk store: one sparse file per object, and the index that says what is in it.

The store belongs to the loop. What blocks on the disk runs on its one index thread, in the order it was
asked for. Nothing else in the agent opens, makes or removes a file of an object. A file is written only until
it is complete: then trees may link it, and what turns out to be damaged is filled again in a new file.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from agent.cache import uses
from agent.cache.conditions import is_dead, store_error
from agent.cache.departure import Departures
from agent.cache.directory import Directory, Filling, State, StoreLimits, open_directory
from agent.cache.files import find_and_open, is_full
from agent.cache.index import ChunkRow
from agent.cache.objects import CachedObject, Uses
from agent.cache.placement import Placement
from agent.cache.removal import punch_unknown
from agent.cache.renewal import renew
from agent.cache.verify import verified
from agent.clock import Clock
from agent.content import ObjectRef, chunk_extent
from agent.errors import HeadraceError, StoreError, StoreFailed, StoreFull
from agent.metrics import Metrics

log = logging.getLogger(__name__)


class Store(Departures):
    """All store directories of the node. Made by `Store.open`, used from one loop."""

    def __init__(
        self,
        directories: list[Directory],
        chunk_size: int,
        clock: Clock,
        index_thread: ThreadPoolExecutor,
        metrics: Metrics,
    ) -> None:
        super().__init__(directories, clock, index_thread, metrics)
        self.on_pressure: Callable[[], None] = _nothing
        self.evict: Callable[[Directory, int], Awaitable[bool]] = _evict_nothing
        self._chunk_size = chunk_size
        self._uses = Uses()
        self._placement = Placement(directories, self._presence)

    @classmethod
    async def open(
        cls,
        paths: Iterable[Path],
        chunk_size: int,
        limits: StoreLimits,
        clock: Clock,
        metrics: Metrics | None = None,
    ) -> Store:
        """Open or make the store. Raises ConfigError for a directory that cannot be used, StoreFailed.

        A directory whose disk fails is left out, and told of, where another one works.
        """
        metrics = metrics or Metrics()
        thread = ThreadPoolExecutor(1, thread_name_prefix="index")
        loop = asyncio.get_running_loop()
        directories: list[Directory] = []
        dead: dict[Path, HeadraceError] = {}
        try:
            for path in paths:
                try:
                    made = await loop.run_in_executor(thread, open_directory, path, limits, metrics)
                    directories.append(made)
                except (HeadraceError, OSError) as error:
                    if not is_dead(error):
                        raise
                    dead[path] = _fault(path, error)
            if not directories and dead:
                raise next(iter(dead.values()))
        except BaseException:
            for directory in directories:
                await loop.run_in_executor(thread, directory.close)
            thread.shutdown()
            raise
        store = cls(directories, chunk_size, clock, thread, metrics)
        for path, fault in dead.items():
            store.conditions.miss(path, fault)
        await store._begin()
        return store

    async def _begin(self) -> None:
        for directory in self.directories:
            self._uses.go_on(await self._blocking(uses.last_number, directory.index))
        await self.load_leases()

    async def close(self) -> None:
        """Record what is on its way to the index, then close every file and the index."""
        while under_way := self._under_way():
            await asyncio.wait(under_way)
        with suppress(StoreFailed):  # then some objects look colder than they are
            await self.note_uses()
        for cached, _ in self._open.values():
            cached.close()
        self._open.clear()
        for directory in self.directories:
            await self._blocking(directory.close)
        self._index_thread.shutdown()

    async def acquire(self, ref: ObjectRef) -> CachedObject:
        """The object, open; the same one for all who ask. Give it back with `release`. Raises StoreError.

        Where no directory can have its file it is there without one: it can be read through, and no more.
        """
        while (cached := self.peek(ref)) is None:
            if (removing := self._removing.get(ref.key)) is not None:
                await asyncio.shield(removing)
                continue
            task = self._opening.get(ref.key)
            if task is None:
                task = self._opening[ref.key] = asyncio.create_task(self._load(ref))
                task.add_done_callback(lambda _: self._opening.pop(ref.key, None))
            await asyncio.shield(task)
        self.hold(cached)
        return cached

    def peek(self, ref: ObjectRef) -> CachedObject | None:
        """The object if it is open now; the caller gets no hold on it."""
        found = self._open.get(ref.key)
        return found[0] if found else None

    def hold(self, cached: CachedObject) -> None:
        """Another hold on an object that is open; `release` gives it back."""
        cached.users += 1
        self._idle.pop(cached.ref.key, None)

    def release(self, cached: CachedObject) -> None:
        """Give an object back; it is closed later, when many others have been used since."""
        self._let_go(cached)

    def reserve(self, cached: CachedObject, chunk: int) -> None:
        """Claim room for a chunk that is about to be filled. StoreFull where there is none, StoreFailed where
        the object's file cannot be written."""
        directory = self._directory(cached)
        length = cached.extent(chunk).length
        if directory.state is not State.OK:
            kind = StoreFull if directory.state is State.FULL else StoreFailed
            raise kind(f"{directory.path} takes no fills: {directory.reason}")
        if chunk in cached.unreadable:
            raise StoreFailed(f"{cached.path}: the disk did not give back what was written there")
        if not cached.writable:
            raise StoreFailed(f"{cached.path} was complete: it is not written any more")
        if chunk in cached.granted:
            raise StoreFailed(f"{cached.ref.uri}: the swarm brings chunk {chunk}")
        if self._cut(cached):
            self.lost(cached, ())  # before a fill makes the file longer, and gives zeros for what was cut off
            raise StoreFailed(f"{cached.path} was cut short: it begins anew when it is opened again")
        limit = self._limit(directory)
        if directory.used + length > limit:
            self.on_pressure()
            raise StoreFull(_no_room(directory, limit))
        directory.used += length
        directory.filling[cached.ref.key, chunk] = Filling(length, cached.landings.get(chunk))
        if directory.used > limit * directory.high_watermark:
            self.on_pressure()

    def unreserve(self, cached: CachedObject, chunk: int) -> None:
        """Give back the room of a fill that failed, and the disk that its bytes took."""
        directory = self._directory(cached)
        filling = directory.filling.pop((cached.ref.key, chunk))
        directory.used -= filling.bytes
        if filling.unwritten < filling.bytes:
            self._empty(directory, cached, (chunk,), 0)

    def grant(self, cached: CachedObject, chunk: int) -> bool:
        """Claim room for a chunk that the swarm may write from now on, as `reserve` does; then `record` it,
        or take it back. False where the chunk is present, on its way or on its way out."""
        busy = chunk in cached.landings or (cached.ref.key, chunk) in self._emptying
        if cached.present[chunk] or chunk in cached.granted or busy:
            return False
        self.reserve(cached, chunk)
        cached.granted.add(chunk)
        return True

    def take_back(self, cached: CachedObject, chunks: Iterable[int]) -> None:
        """Give back the room of granted chunks, and the disk that their bytes took: nobody writes there."""
        directory = self._directory(cached)
        back = cached.granted.intersection(chunks)
        cached.granted -= back
        for chunk in back:
            directory.used -= directory.filling.pop((cached.ref.key, chunk)).bytes
        if back:
            self._empty(directory, cached, sorted(back), 0)

    async def make_room(self, cached: CachedObject, length: int) -> bool:
        """Whether eviction has just made some room where the object is, so that it is worth another try."""
        found = self.found(cached.ref.key)
        return found is not None and await self.evict(found[1], length)

    async def record(self, cached: CachedObject, chunk: int, xxh3: bytes) -> None:
        """Make a chunk durable in the index and then visible. Chunks that finish together share a commit."""
        directory = self._directory(cached)
        await self._recorder.record(
            directory.index, ChunkRow(cached.row, chunk, xxh3, cached.extent(chunk).length)
        )
        directory.chunks += 1
        directory.filling.pop((cached.ref.key, chunk), None)
        cached.granted.discard(chunk)
        cached.publish(chunk)
        cached.arrived(chunk)

    async def checksum(self, cached: CachedObject, chunk: int) -> bytes | None:
        """The xxh3-128 that a chunk was recorded with; None where it is not. Raises StoreFailed."""
        index = self._directory(cached).index
        return await self._blocking(index.checksum, cached.row, chunk)

    def failed(self, cached: CachedObject, error: StoreError) -> None:
        """A write of an object's bytes or of its record has failed."""
        found = self.found(cached.ref.key)
        if found is not None:
            self.conditions.mark(found[1], error)
            self.on_pressure()

    async def place(self, refs: Iterable[ObjectRef]) -> None:
        """Have those of the objects that are not in the store yet go to one directory, if they fit in one."""
        await self._placement.place(refs)

    async def _load(self, ref: ObjectRef) -> CachedObject:
        while True:
            try:
                return await self._load_from(
                    ref, [one for one in self.directories if one.state is not State.FAILED]
                )
            except StoreError as error:
                well = [one for one in self.directories if one.state is State.OK]
                await self.conditions.probe(well)
                if any(one.state is not State.OK for one in well):
                    continue  # without those
                if well and not isinstance(error, StoreFull):
                    raise
                log.warning("%s is not kept: %s", ref.uri, error)
                cached = CachedObject(ref, Path(), -1, 0, self._chunk_size, self._uses)
                self._open[ref.key] = (cached, None)
                return cached

    async def _load_from(self, ref: ObjectRef, directories: list[Directory]) -> CachedObject:
        # One trip to the index thread: each of them is a tenth of what the open of a small file costs.
        directory, row, cached, kept = await self._blocking(
            find_and_open, directories, self._placement.home(ref), ref, self._chunk_size
        )
        cached.count_uses(self._uses)
        if row is None:
            self._placement.placed(ref)
            directory.objects += 1
        elif not kept:
            # The file was not as the index had it: none of its chunks is present any more.
            await self.before_removal(ref.key)  # it may be open in the kernel yet
            known = [*row.present, *(chunk for chunk, _ in row.suspect)]
            directory.chunks -= len(known)
            directory.used -= sum(chunk_extent(n, ref.size, row.chunk_size).length for n in known)
        elif row.suspect:
            await self._settle(directory, cached, row.suspect)
            if is_full(row, ref.size) and not cached.complete:
                good = [cached.extent(chunk) for chunk, there in enumerate(cached.present) if there]
                cached.close()  # it was opened for reading only, and is not written any more
                await self.before_removal(ref.key)
                os.close(await asyncio.to_thread(renew, directory.path, cached.path, ref.size, good))
                await self._blocking(directory.index.renewed, cached.row)
                return await self._load_from(ref, directories)
        if row is None:
            cached.use()
        elif kept and cached.writable:
            with suppress(OSError):  # then only room is lost, and a disk that fails is found by its writes
                await asyncio.to_thread(punch_unknown, cached)
        self._open[ref.key] = (cached, directory)
        self._idle[ref.key] = None
        return cached

    async def _settle(
        self, directory: Directory, cached: CachedObject, suspect: tuple[tuple[int, bytes], ...]
    ) -> None:
        """Check what was written under another boot id before anybody reads it (DESIGN.md rule 2)."""
        good = await asyncio.to_thread(verified, cached, suspect)
        bad = [(chunk, cached.extent(chunk).length) for chunk, _ in suspect if chunk not in good]
        await self._blocking(directory.index.settle, cached.row, good, bad)
        for chunk in good:
            cached.publish(chunk)
        directory.chunks -= len(bad)
        directory.used -= sum(length for _, length in bad)
        if bad:
            directory.damage["chunk"].inc(len(bad))
            log.warning("%s: %d chunks did not survive the restart of the machine", cached.ref.uri, len(bad))

    def _limit(self, directory: Directory) -> int:
        try:
            return directory.limit
        except OSError as error:
            fault = store_error(error, f"cannot ask for the room in {directory.path}")
            self.conditions.mark(directory, fault)
            raise fault from error

    def _directory(self, cached: CachedObject) -> Directory:
        found = self.found(cached.ref.key)
        if found is None:
            raise StoreFailed(f"{cached.ref.uri}: no directory of the store has its file")
        return found[1]


def _fault(path: Path, error: HeadraceError | OSError) -> HeadraceError:
    if isinstance(error, OSError):
        return StoreFailed(f"{path} cannot be used: {error.strerror}")
    return error


def _no_room(directory: Directory, limit: int) -> str:
    if limit == directory.capacity:
        return f"{directory.path} holds its {directory.capacity} bytes; raise store.capacity or empty it"
    return f"{directory.path}: the disk has only its reserve free; free some space"


def _nothing() -> None:
    """What a store does under pressure that nobody relieves."""


async def _evict_nothing(directory: Directory, length: int) -> bool:
    return False
