"""The node's chunk store: one sparse file per object, and the index that says what is in it.

The store belongs to the loop. What blocks on the disk runs on its one index thread, in the order it was
asked for. Nothing else in the agent opens, makes or removes a file of an object. A file is written only until
it is complete: then trees may link it, and what turns out to be damaged is filled again in a new file.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from agent.cache.directory import Directory, StoreLimits, open_directory
from agent.cache.files import find_and_open, is_full
from agent.cache.index import ChunkRow, Lease, Presence
from agent.cache.objects import CachedObject
from agent.cache.recorder import Recorder
from agent.cache.verify import verified
from agent.clock import Clock
from agent.content import Dataset, ObjectRef, chunk_extent
from agent.errors import StoreFull
from agent.metrics import Metrics

log = logging.getLogger(__name__)

BATCH = 500  # keys that are looked up at once, so that others get their turn on the index thread
IDLE_OBJECTS = (
    256  # objects kept open although nobody uses them: a file that is opened again needs no look-up
)
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Whole:
    """Objects that are complete in one directory, and those of them that `acquire` must check first."""

    directory: Directory
    unverified: tuple[ObjectRef, ...]


class Store:
    """All store directories of the node. Made by `Store.open`, used from one loop."""

    def __init__(
        self, directories: list[Directory], chunk_size: int, clock: Clock, index_thread: ThreadPoolExecutor
    ) -> None:
        self.directories = directories
        self._chunk_size = chunk_size
        self._clock = clock
        self._index_thread = index_thread
        self._open: dict[str, tuple[CachedObject, Directory]] = {}
        self._opening: dict[str, asyncio.Task[CachedObject]] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()
        self._recorder = Recorder(self._blocking)
        self._homes: dict[str, Directory] = {}

    @classmethod
    async def open(
        cls,
        paths: Iterable[Path],
        chunk_size: int,
        limits: StoreLimits,
        clock: Clock,
        metrics: Metrics | None = None,
    ) -> Store:
        """Open or make the store. Raises ConfigError for a directory that cannot be used, StoreFailed."""
        metrics = metrics or Metrics()
        thread = ThreadPoolExecutor(1, thread_name_prefix="index")
        loop = asyncio.get_running_loop()
        directories: list[Directory] = []
        try:
            for path in paths:
                directories.append(await loop.run_in_executor(thread, open_directory, path, limits, metrics))
        except BaseException:
            for directory in directories:
                await loop.run_in_executor(thread, directory.close)
            thread.shutdown()
            raise
        return cls(directories, chunk_size, clock, thread)

    async def close(self) -> None:
        """Record what is on its way to the index, then close every file and the index."""
        while under_way := {*self._recorder.under_way, *self._opening.values()}:
            await asyncio.wait(under_way)
        for cached, _ in self._open.values():
            cached.close()
        self._open.clear()
        for directory in self.directories:
            await self._blocking(directory.close)
        self._index_thread.shutdown()

    async def acquire(self, ref: ObjectRef) -> CachedObject:
        """The object, open; the same one for all who ask. Give it back with `release`."""
        cached = self.peek(ref)
        if cached is None:
            task = self._opening.get(ref.key)
            if task is None:
                task = self._opening[ref.key] = asyncio.create_task(self._load(ref))
                task.add_done_callback(lambda _: self._opening.pop(ref.key, None))
            cached = await asyncio.shield(task)
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
        cached.users -= 1
        if not cached.users:
            self._idle[cached.ref.key] = None
            self._trim()

    def reserve(self, cached: CachedObject, chunk: int) -> None:
        """Claim room for a chunk that is about to be filled. StoreFull where there is none."""
        directory = self._open[cached.ref.key][1]
        length = cached.extent(chunk).length
        if directory.used + length > directory.capacity:
            raise StoreFull(
                f"{directory.path} holds its {directory.capacity} bytes; raise store.capacity or empty it"
            )
        if directory.free - length < directory.reserve:
            raise StoreFull(f"{directory.path}: the disk has only its reserve free; free some space")
        directory.used += length

    def unreserve(self, cached: CachedObject, chunk: int) -> None:
        """Give back the room of a fill that failed."""
        self._open[cached.ref.key][1].used -= cached.extent(chunk).length

    async def record(self, cached: CachedObject, chunk: int, xxh3: bytes) -> None:
        """Make a chunk durable in the index and then visible. Chunks that finish together share a commit."""
        directory = self._open[cached.ref.key][1]
        await self._recorder.record(
            directory.index, ChunkRow(cached.row, chunk, xxh3, cached.extent(chunk).length)
        )
        directory.chunks += 1
        cached.publish(chunk)

    async def save_dataset(self, dataset: Dataset) -> None:
        """Make a dataset's listing durable."""
        await self._blocking(self.directories[0].index.save_dataset, dataset, self._clock.time())

    async def load_dataset(self, uri: str, revision: str) -> Dataset | None:
        return await self._blocking(self.directories[0].index.load_dataset, uri, revision)

    async def datasets(self) -> list[tuple[str, str]]:
        """(URI, revision) of every dataset whose listing is here, the latest resolved first."""
        return await self._blocking(self.directories[0].index.datasets)

    async def save_proof(self, uri: str, identity: str, revision: str) -> None:
        """Make durable that the origin gave this identity (agent/identity.py) this listing now."""
        index = self.directories[0].index
        await self._blocking(index.save_proof, uri, identity, revision, self._clock.time())

    async def proven(self, uri: str, identity: str) -> str | None:
        """The revision that the origin last gave this identity; None where it never did."""
        return await self._blocking(self.directories[0].index.proven, uri, identity)

    async def present_bytes(self, keys: Iterable[str]) -> dict[str, int]:
        """Bytes present of the objects with these keys; objects that the store does not know are left out."""
        keys = list(keys)
        found: dict[str, int] = {}
        for directory in self.directories:
            found |= await self._blocking(directory.index.present_bytes, keys)
        return found

    async def place(self, refs: Iterable[ObjectRef]) -> None:
        """Have those of the objects that are not in the store yet go to one directory, if they fit in one:
        the one that has the most of the others, then the roomiest. Else each goes where most room is."""
        if len(self.directories) == 1:
            return
        sizes = {ref.key: ref.size for ref in refs}
        known = [await self._presence(directory, list(sizes)) for directory in self.directories]
        new = sizes.keys() - set().union(*known)
        missing = sum(sizes[key] for key in new)

        def needed(number: int) -> int:
            return missing + sum(sizes[key] - found.bytes for key, found in known[number].items())

        def rank(number: int) -> tuple[int, int]:
            return sum(sizes[key] for key in known[number]), self.directories[number].room

        numbers = sorted(range(len(known)), key=rank, reverse=True)
        fitting = [number for number in numbers if self.directories[number].room >= needed(number)]
        for key in new:
            self._homes.pop(key, None)
            if fitting:
                self._homes[key] = self.directories[fitting[0]]

    async def whole(self, refs: Iterable[ObjectRef]) -> Whole | None:
        """Where all of the objects are complete in one directory (those without bytes are everywhere)."""
        wanted = list({ref.key: ref for ref in refs if ref.size}.values())
        for directory in self.directories:
            unverified: list[ObjectRef] = []
            for start in range(0, len(wanted), BATCH):
                batch = wanted[start : start + BATCH]
                found = await self._presence(directory, [ref.key for ref in batch])
                if any(ref.key not in found or found[ref.key].bytes != ref.size for ref in batch):
                    break
                unverified += [ref for ref in batch if found[ref.key].suspect]
            else:
                return Whole(directory, tuple(unverified))
        return None

    async def lease(self, directory: Directory, lease: Lease, keys: Iterable[str]) -> None:
        """Claim objects of a directory for a tree, durably, until `end_lease`."""
        await self._blocking(directory.index.lease, lease, list(keys))

    async def end_lease(self, directory: Directory, tree: str) -> None:
        await self._blocking(directory.index.end_lease, tree)

    async def leases(self) -> list[tuple[Directory, Lease]]:
        """The claims of all trees, each with the directory that its tree is in."""
        return [
            (directory, lease)
            for directory in self.directories
            for lease in await self._blocking(directory.index.leases)
        ]

    async def leased_keys(self) -> set[str]:
        """The keys of the objects that somebody reads without asking the agent: they must stay."""
        found: set[str] = set()
        for directory in self.directories:
            found |= await self._blocking(directory.index.leased_keys)
        return found

    async def _presence(self, directory: Directory, keys: Sequence[str]) -> dict[str, Presence]:
        return await self._blocking(directory.index.presence, keys)

    async def _load(self, ref: ObjectRef) -> CachedObject:
        # One trip to the index thread: each of them is a tenth of what the open of a small file costs.
        directory, row, cached, kept = await self._blocking(
            find_and_open, self.directories, self._home(ref), ref, self._chunk_size
        )
        if row is None:
            self._homes.pop(ref.key, None)
            directory.objects += 1
        elif not kept:
            # The file was not as the index had it: none of its chunks is present any more.
            known = [*row.present, *(chunk for chunk, _ in row.suspect)]
            directory.chunks -= len(known)
            directory.used -= sum(chunk_extent(n, ref.size, row.chunk_size).length for n in known)
        elif row.suspect:
            await self._settle(directory, cached, row.suspect)
            if is_full(row, ref.size) and not cached.complete:
                cached.close()  # it was opened for reading only
                return await self._load(ref)
        self._open[ref.key] = (cached, directory)
        self._idle[ref.key] = None
        return cached

    def _home(self, ref: ObjectRef) -> Directory:
        """The directory that an object goes to if none has it."""
        home = self._homes.get(ref.key)
        fits = home is not None and home.room >= ref.size
        return home if home is not None and fits else max(self.directories, key=_room)

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

    def _trim(self) -> None:
        while len(self._idle) > IDLE_OBJECTS:
            key, _ = self._idle.popitem(last=False)
            cached, _ = self._open.pop(key)
            cached.close()

    async def _blocking(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._index_thread, lambda: call(*args, **kwargs))


def _room(directory: Directory) -> int:
    return directory.room
