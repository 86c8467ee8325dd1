"""The open objects of a store, and how objects and chunks leave it: each claim first, then rows, then bytes.

A claim is made under the loop with no `await` between the check and the claim: nobody can come meanwhile.
What is claimed is unpublished, or waited for by whoever acquires it (CONCURRENCY.md, "Eviction").
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from agent.cache import uses
from agent.cache.conditions import Conditions, store_error
from agent.cache.directory import Directory
from agent.cache.objects import CachedObject
from agent.cache.recorder import Recorder
from agent.cache.records import Records
from agent.cache.removal import punch, remove, trim
from agent.clock import Clock
from agent.errors import StoreFailed
from agent.metrics import Metrics

IDLE_OBJECTS = (
    256  # objects kept open although nobody uses them: a file that is opened again needs no look-up
)


class Departures(Records):
    """What of a store may go, and its going; the rest of the store is in store.py."""

    def __init__(
        self,
        directories: list[Directory],
        clock: Clock,
        index_thread: ThreadPoolExecutor,
        metrics: Metrics,
    ) -> None:
        super().__init__(directories, clock, index_thread)
        self.conditions = Conditions(directories, self._blocking, metrics)
        # Awaited with an object's key before its file is unlinked or replaced: who keeps it open lets go.
        self.before_removal: Callable[[str], Awaitable[None]] = _nobody
        # The same before chunks of one that was never complete are emptied: who gives them to others stops.
        self.before_emptying: Callable[[str], Awaitable[None]] = _nobody
        self._open: dict[str, tuple[CachedObject, Directory | None]] = {}
        self._opening: dict[str, asyncio.Task[CachedObject]] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()
        self._recorder = Recorder(index_thread)
        self._noted: dict[str, int] = {}
        self._removing: dict[str, asyncio.Future[None]] = {}
        self._emptying: dict[tuple[str, int], asyncio.Task[int]] = {}
        self._forgetting: set[asyncio.Task[bool]] = set()
        self._saved: dict[str, int] = {}

    def found(self, key: str) -> tuple[CachedObject, Directory] | None:
        """An object that is open and has a file, and where that is."""
        cached, directory = self._open.get(key, (None, None))
        return None if cached is None or directory is None else (cached, directory)

    async def emptied(self, cached: CachedObject, chunk: int) -> None:
        """Wait until a chunk that is being taken away is gone: before that it cannot be filled again."""
        while (task := self._emptying.get((cached.ref.key, chunk))) is not None:
            await asyncio.wait([task])

    def lost(self, cached: CachedObject, chunks: Iterable[int]) -> None:
        """Chunks that are present cannot be read from the disk: they are absent from now on, and read through
        while the object stays open. So is all that was cut off from the end of the file."""
        found = self.found(cached.ref.key)
        chunks = {*chunks, *_cut_off(cached)}
        gone = [chunk for chunk in sorted(chunks) if cached.present[chunk]]
        if found is None or found[0] is not cached or not gone:
            return
        for chunk in gone:
            cached.unpublish(chunk)
        cached.unreadable.update(gone)
        directory = found[1]
        directory.used -= sum(cached.extent(chunk).length for chunk in gone)
        task = asyncio.create_task(self._forget(directory, cached, gone))
        self._forgetting.add(task)
        task.add_done_callback(self._forgetting.discard)

    @staticmethod
    def _cut(cached: CachedObject) -> bool:
        """Whether somebody has made the object's file shorter."""
        return _length(cached) < cached.ref.size

    def leaving(self, keys: frozenset[str]) -> bool:
        return any(key in keys for key in (*self._removing, *(key for key, _ in self._emptying)))

    def idle(self, key: str) -> bool:
        """Whether nobody uses the object, or is about to."""
        found = self._open.get(key)
        busy = key in self._opening or self.leaving(frozenset((key,)))
        return not busy and (found is None or not found[0].users)

    def take_chunks(self, key: str, chunks: Iterable[int]) -> Awaitable[int]:
        """Take chunks of an open object away that nobody fills; how many bytes that frees, once it has."""
        found = self.found(key)
        if found is None:
            return _freed(0)
        cached, directory = found
        free = [n for n in chunks if cached.present[n] and (key, n) not in self._emptying]
        if not free or key in self.leased or cached.complete:
            return _freed(0)
        for chunk in free:
            cached.unpublish(chunk)
        size = sum(cached.extent(chunk).length for chunk in free)
        return self._empty(directory, cached, free, size)

    async def take_object(self, directory: Directory, key: str) -> int:
        """Take an object away with its file; how many bytes that frees, 0 where somebody has it. OSError."""
        if not self.idle(key) or key in self.leased:
            return 0
        cached = None
        if key in self._open and self._open[key][1] in (
            directory,
            None,
        ):  # or it is open elsewhere: that stays
            cached, _ = self._open.pop(key)
            self._idle.pop(key, None)
        self._removing[key] = gone = asyncio.get_running_loop().create_future()
        try:
            await self.before_removal(key)
            return await self._remove(directory, key, cached)
        finally:
            del self._removing[key]
            gone.set_result(None)

    async def drop_copy(self, directory: Directory, key: str) -> None:
        """Take away what a directory has of an object that is open in another one. Raises OSError."""
        found = self.found(key)
        if found is not None and found[1] is not directory and key not in self.leased:
            await self._remove(directory, key, None)

    async def take_closed(self, directory: Directory, key: str, chunks: Sequence[int]) -> int:
        """The same as `take_object` for some chunks of an object that is not open and was never complete."""
        if not self.idle(key) or key in self._open or key in self.leased:
            return 0
        self._removing[key] = gone = asyncio.get_running_loop().create_future()
        try:
            await self.before_emptying(key)
            trimmed = await self._blocking(trim, directory, key, chunks)
            directory.chunks -= trimmed.chunks
            directory.used -= trimmed.bytes
            return trimmed.bytes
        except (StoreFailed, OSError):
            directory.uncounted = True
            raise
        finally:
            del self._removing[key]
            gone.set_result(None)

    async def recount(self, directory: Directory) -> None:
        """Take from the index what a removal that failed half-way left uncounted, once nothing is under way
        that would be counted twice. Raises StoreFailed."""
        before = (directory.used, directory.chunks, directory.objects)
        if not directory.uncounted or directory.filling or self._under_way():
            return
        totals = await self._blocking(directory.index.totals)
        after = (directory.used, directory.chunks, directory.objects)
        if before == after and not directory.filling and not self._under_way():
            directory.used, directory.chunks, directory.objects = totals.bytes, totals.chunks, totals.objects
            directory.uncounted = False

    async def note_uses(self) -> None:
        """Make the uses of objects durable that are not yet. Raises StoreFailed."""
        for key, (cached, directory) in self._open.items():
            if directory is not None and cached.last_use > self._saved.get(key, 0):
                self._noted[key] = cached.last_use
        noted, self._noted = self._noted, {}
        for directory in self._readable():
            await self._blocking(uses.save, directory.index, list(noted.items()))
        self._saved = {key: number for key, number in (self._saved | noted).items() if key in self._open}

    def _under_way(self) -> set[asyncio.Future[Any]]:
        tasks: tuple[Iterable[asyncio.Future[Any]], ...] = (
            self._recorder.under_way,
            self._opening.values(),
            self._emptying.values(),
            self._removing.values(),
            self._forgetting,
        )
        return set().union(*tasks)

    def _empty(
        self, directory: Directory, cached: CachedObject, chunks: Sequence[int], size: int
    ) -> asyncio.Task[int]:
        """Take chunks away that are not published; `size` bytes of them are recorded."""
        cached.users += 1
        self._idle.pop(cached.ref.key, None)  # or its file could be closed meanwhile
        task = asyncio.create_task(self._emptied(directory, cached, chunks, size))
        for chunk in chunks:
            self._emptying[cached.ref.key, chunk] = task
        return task

    async def _emptied(
        self, directory: Directory, cached: CachedObject, chunks: Sequence[int], size: int
    ) -> int:
        try:
            if size and not await self._forget(directory, cached, chunks):
                for chunk in chunks:
                    cached.publish(chunk)
                return 0
            if size:
                await self.before_emptying(cached.ref.key)
            await _unread(cached, chunks)
            directory.used -= size
            await asyncio.to_thread(punch, cached.fd, [cached.extent(chunk) for chunk in chunks])
            return size
        except OSError as error:
            self.conditions.mark(directory, store_error(error, f"cannot empty {cached.path}"))
            return 0
        finally:
            for chunk in chunks:
                del self._emptying[cached.ref.key, chunk]
            self._let_go(cached)

    async def _forget(self, directory: Directory, cached: CachedObject, chunks: Sequence[int]) -> bool:
        bad = [(chunk, cached.extent(chunk).length) for chunk in chunks]
        try:
            await self._blocking(directory.index.settle, cached.row, (), bad)
        except StoreFailed as error:
            directory.uncounted = True
            self.conditions.mark(directory, error)
            return False
        directory.chunks -= len(bad)
        return True

    async def _remove(self, directory: Directory, key: str, cached: CachedObject | None) -> int:
        try:
            removed = await self._blocking(remove, directory, key)
            directory.objects -= 1
            directory.chunks -= removed.chunks
            if removed.fd >= 0:  # the last close gives the disk back, which takes long for a large file
                await asyncio.to_thread(os.close, removed.fd)
            directory.used -= removed.bytes
            return removed.bytes
        except StoreFailed as error:
            directory.uncounted = True
            self.conditions.mark(directory, error)
            return 0
        except OSError:
            directory.uncounted = True
            raise
        finally:
            if cached is not None:
                await asyncio.to_thread(cached.close)

    def _let_go(self, cached: CachedObject) -> None:
        cached.users -= 1
        if cached.users:
            return
        if cached.fd < 0:
            self._open.pop(cached.ref.key)  # perhaps it can have a file the next time
            return
        self._idle[cached.ref.key] = None
        self._trim()

    def _trim(self) -> None:
        while len(self._idle) > IDLE_OBJECTS:
            key, _ = self._idle.popitem(last=False)
            cached, _ = self._open.pop(key)
            self._noted[key] = cached.last_use
            cached.close()


def _cut_off(cached: CachedObject) -> Iterable[int]:
    """The chunks that reach beyond the end of the file as it is now."""
    length = _length(cached)
    return range(length // cached.chunk_size, len(cached.present)) if length < cached.ref.size else ()


def _length(cached: CachedObject) -> int:
    try:
        return os.fstat(cached.fd).st_size
    except OSError:  # a disk that fails is found by reads and writes
        return cached.ref.size


async def _unread(cached: CachedObject, chunks: Sequence[int]) -> None:
    """Wait until nobody reads any of the chunks."""
    loop = asyncio.get_running_loop()
    unread = loop.create_future()
    if not cached.when_unread(chunks, lambda: _tell(loop, unread)):
        await unread


def _tell(loop: asyncio.AbstractEventLoop, unread: asyncio.Future[None]) -> None:
    loop.call_soon_threadsafe(unread.set_result, None)


async def _freed(size: int) -> int:
    return size


async def _nobody(key: str) -> None:
    """What nobody keeps open needs no word before it goes."""
