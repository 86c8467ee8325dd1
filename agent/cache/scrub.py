"""The scrub: every chunk is read and compared with its xxh3-128, over and over, slowly and in the background.

At the start it does first what opening the store left for later: it has SQLite check the pages of each index,
and removes the files that no row names (sweep.py). Then it goes through the objects in the order of their
keys; where it has come to is a note in the index, so that a restart goes on there. It reads through
descriptors of its own, never counts as a use, passes over what is being filled, and sleeps by the injected
clock for as long as its rate says. What does not match is handed to the store, which looks again before it
takes the chunk away (repair.py). Belongs to the loop; the reading is done in threads.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar

from agent.cache.directory import Directory
from agent.cache.index import Index, StoredObject
from agent.cache.opening import condemn, pages_fault
from agent.cache.sweep import look, remove_unknown, say_foreign, strangers, subdirectories
from agent.cache.verify import checksum_at
from agent.clock import Clock
from agent.content import chunk_extent
from agent.errors import StoreError
from agent.metrics import Metrics

log = logging.getLogger(__name__)

T = TypeVar("T")

BATCH = 100  # objects looked up at once
NOTE = "scrub"  # the note in the index: the key of the last object that was checked
NOTE_SECONDS = 60.0  # how often it is written
PAUSE = 60.0  # seconds between two passes over a store that is checked faster than this


class Scrubbed(Protocol):
    """What the scrub needs of the store (agent/cache/store.py)."""

    @property
    def directories(self) -> Sequence[Directory]: ...

    def on_index_thread(self, call: Callable[[], T], /) -> Awaitable[T]: ...

    def filling(self, key: str, chunk: int) -> bool:
        """Whether a fill of this chunk is under way."""

    async def repair(self, directory: Directory, found: StoredObject, chunks: Sequence[int]) -> int:
        """Check these chunks again and take away those that are wrong; how many were. Raises StoreError."""


class Scrub:
    """The background task, from `start` to `close`."""

    def __init__(self, store: Scrubbed, clock: Clock, metrics: Metrics, rate: int) -> None:
        """`rate` is in bytes per second, of all directories together; 0 checks no chunks."""
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._rate = rate
        self._task: asyncio.Task[None] | None = None
        self._noted = 0.0

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def ended(self) -> None:
        """Wait until it has nothing more to do, which happens without a rate only."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        for directory in self._store.directories:
            await self._guarded(directory, self._tidy(directory))
        while self._rate:
            for directory in self._store.directories:
                await self._guarded(directory, self._pass(directory))
            await self._clock.sleep(PAUSE)

    async def _guarded(self, directory: Directory, work: Awaitable[None]) -> None:
        try:
            await work
        except StoreError as error:  # this directory is out of order; the next pass tries again
            log.warning("%s: the scrub stops here: %s", directory.path, error)

    async def _tidy(self, directory: Directory) -> None:
        """What opening the directory left for later."""
        fault = await asyncio.to_thread(pages_fault, directory.index.path)
        if fault:
            condemn(directory.index.path, fault)
            log.error("the index %s is damaged (%s): restart the agent", directory.index.path, fault)
            return
        foreign = await asyncio.to_thread(strangers, directory.path)
        removed = 0
        for subdirectory in await asyncio.to_thread(lambda: list(subdirectories(directory.path))):
            found = await asyncio.to_thread(look, subdirectory)
            foreign += found.foreign
            if found.keys:
                removed += await self._remove_unknown(directory.index, subdirectory, found.keys)
        say_foreign(directory.path, foreign)
        if removed:
            directory.damage["unknown"].inc(removed)
            log.warning("%s: %d files that the index does not know are removed", directory.path, removed)

    def _remove_unknown(self, index: Index, path: Path, keys: Sequence[str]) -> Awaitable[int]:
        return self._store.on_index_thread(lambda: remove_unknown(index, path, keys))

    async def _pass(self, directory: Directory) -> None:
        """Once over the directory, from where the last agent was."""
        index = directory.index
        position = await self._store.on_index_thread(lambda: index.note(NOTE))
        while True:
            after = position
            objects = await self._store.on_index_thread(lambda: index.objects_after(after, BATCH))  # noqa: B023
            for one in objects:
                await self._check(directory, one)
                position = one.key
                await self._remember(index, position)
            if not objects:
                return await self._remember(index, "", always=True)

    async def _remember(self, index: Index, position: str, *, always: bool = False) -> None:
        now = self._clock.monotonic()
        if always or now >= self._noted + NOTE_SECONDS:
            self._noted = now
            await self._store.on_index_thread(lambda: index.set_note(NOTE, position))

    async def _check(self, directory: Directory, one: StoredObject) -> None:
        rows = await self._store.on_index_thread(lambda: directory.index.checksums(one.id))
        try:
            fd = os.open(directory.file_of(one.key), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:  # the store finds out why, and begins the object anew
            if rows:
                await self._store.repair(directory, one, [chunk for chunk, _ in rows])
            return
        try:
            for chunk, xxh3 in rows:
                if self._store.filling(one.key, chunk):
                    continue
                extent = chunk_extent(chunk, one.size, one.chunk_size)
                found = await asyncio.to_thread(checksum_at, fd, extent)
                if found != xxh3:
                    await self._store.repair(directory, one, [chunk])
                self._metrics.scrubbed_bytes.inc(extent.length)
                await self._clock.sleep(extent.length / self._rate)
        finally:
            os.close(fd)
