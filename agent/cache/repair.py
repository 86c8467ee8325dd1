"""Taking damaged chunks away from an object that may be in use: they are absent then, and fetched anew.

A chunk is looked at again before it is taken, counted as being read, so that what eviction did meanwhile is
no damage. Then the order is that of every removal: unpublished, forgotten in the index, waited for until
nobody reads it any more. A file that was complete may be open elsewhere, so nothing is written into it: its
good chunks are copied into a new one (renewal.py), which takes its place on the disk and under the
descriptor that readers use; both hold the same bytes in all chunks that are present. While that goes on the
descriptor is one for reading only, which no fill accepts, and who keeps the old file open elsewhere is told
to let go of it. Belongs to the loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from agent.cache.directory import Directory
from agent.cache.index import StoredObject
from agent.cache.objects import CachedObject
from agent.cache.renewal import renew
from agent.cache.verify import checksum_at
from agent.content import ObjectRef
from agent.errors import StoreFailed

log = logging.getLogger(__name__)

T = TypeVar("T")


class Repaired(Protocol):
    """What this needs of the store (agent/cache/store.py)."""

    directories: list[Directory]
    before_removal: Callable[[str], Awaitable[None]]

    async def acquire(self, ref: ObjectRef) -> CachedObject: ...
    def release(self, cached: CachedObject) -> None: ...
    def found(self, key: str) -> tuple[CachedObject, Directory] | None: ...
    def leaving(self, keys: frozenset[str]) -> bool: ...
    async def drop_copy(self, directory: Directory, key: str) -> None: ...
    def on_index_thread(self, call: Callable[[], T], /) -> Awaitable[T]: ...


class Repairs:
    """The repairs of one store; one object at a time."""

    def __init__(self, store: Repaired) -> None:
        self._store = store
        self._turn = asyncio.Lock()

    @property
    def directories(self) -> Sequence[Directory]:
        return self._store.directories

    def on_index_thread(self, call: Callable[[], T], /) -> Awaitable[T]:
        return self._store.on_index_thread(call)

    def filling(self, key: str, chunk: int) -> bool:
        """Whether a fill of this chunk is under way."""
        found = self._store.found(key)
        return found is not None and chunk in found[0].landings

    async def repair(self, directory: Directory, found: StoredObject, chunks: Sequence[int]) -> int:
        """Check these chunks again and take away those that are wrong; how many were. Raises StoreError.

        What was evicted meanwhile is not made anew; an old copy in a directory that came back goes whole.
        """
        async with self._turn:
            known = await self._store.on_index_thread(lambda: directory.index.known([found.key]))
            if not known or self._store.leaving(frozenset(known)):
                return 0
            cached = await self._store.acquire(found.ref)
            try:
                at = self._store.found(found.key)
                if at is None or at[1] is not directory:
                    await self._drop_copy(directory, found)
                    return 0
                rows = await self._store.on_index_thread(lambda: directory.index.checksums(cached.row))
                wrong = await asyncio.to_thread(_wrong, cached, [row for row in rows if row[0] in chunks])
                if wrong:
                    directory.damage["chunk"].inc(len(wrong))
                    log.error("%s: %d chunks are damaged in the store: dropped", found.uri, len(wrong))
                    await self._take(directory, cached, wrong)
                return len(wrong)
            finally:
                self._store.release(cached)

    async def _drop_copy(self, directory: Directory, found: StoredObject) -> None:
        try:
            await self._store.drop_copy(directory, found.key)
        except OSError as error:
            raise StoreFailed(f"cannot remove {directory.file_of(found.key)}: {error.strerror}") from error

    async def drop(self, ref: ObjectRef) -> None:
        """Take all of an object away, which is fetched anew when it is read. Raises StoreError."""
        async with self._turn:
            cached = await self._store.acquire(ref)
            try:
                found = self._store.found(ref.key)
                if found is not None:
                    await self._take(found[1], cached, _present(cached))
            finally:
                self._store.release(cached)

    async def _take(self, directory: Directory, cached: CachedObject, chunks: Sequence[int]) -> None:
        renewed = cached.complete
        if renewed:
            _replace(cached, cached.open_read_only())
        taken = [chunk for chunk in chunks if cached.present[chunk]]
        for chunk in taken:
            cached.unpublish(chunk)
        lengths = [(chunk, cached.extent(chunk).length) for chunk in taken]
        await self._store.on_index_thread(lambda: directory.index.settle(cached.row, (), lengths))
        directory.chunks -= len(taken)
        directory.used -= sum(length for _, length in lengths)
        await unread(cached, taken)
        if renewed:
            await self._store.before_removal(cached.ref.key)  # while it is not complete: nobody keeps it anew
            await self._renew(directory, cached)

    async def _renew(self, directory: Directory, cached: CachedObject) -> None:
        kept = [cached.extent(chunk) for chunk in _present(cached)]
        fd = await asyncio.to_thread(renew, directory.path, cached.path, cached.ref.size, kept)
        try:
            await self._store.on_index_thread(lambda: directory.index.renewed(cached.row))
        finally:
            _replace(cached, fd)


async def unread(cached: CachedObject, chunks: Sequence[int]) -> None:
    """Wait until nobody reads any of the chunks, which are unpublished."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def told() -> None:
        loop.call_soon_threadsafe(done.set_result, None)

    if not cached.when_unread(chunks, told):
        await done


def _present(cached: CachedObject) -> list[int]:
    return [chunk for chunk, present in enumerate(cached.present) if present]


def _wrong(cached: CachedObject, rows: Sequence[tuple[int, bytes]]) -> list[int]:
    """Those of the chunks that are present and not right (a thread)."""
    wrong = []
    for chunk, xxh3 in rows:
        extent = cached.extent(chunk)
        if cached.present[chunk] and cached.begin_read(extent):
            try:
                if checksum_at(cached.fd, extent) != xxh3:
                    wrong.append(chunk)
            finally:
                cached.end_read(extent)
    return wrong


def _replace(cached: CachedObject, fd: int) -> None:
    """Have the object's descriptor be of another open file; its number stays."""
    try:
        os.dup2(fd, cached.fd, inheritable=False)
    except OSError as error:
        raise StoreFailed(f"cannot replace the file of {cached.ref.uri}: {error.strerror}") from error
    finally:
        os.close(fd)
