"""What the indexes of the store know besides chunks: listings, what was proven, the leases of trees.

Listings and proofs are kept by the first directory that works, and looked for in all of them. Loop only.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from agent.cache.directory import Directory, State
from agent.cache.index import Index, Lease, Presence
from agent.clock import Clock
from agent.content import Dataset, ObjectRef
from agent.errors import StoreFailed

BATCH = 500  # keys that are looked up at once, so that others get their turn on the index thread
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Whole:
    """Objects that are complete in one directory, and those of them that `acquire` must check first."""

    directory: Directory
    unverified: tuple[ObjectRef, ...]


class Records:
    """The records of a store over its directories; what blocks runs on the index thread."""

    def __init__(self, directories: list[Directory], clock: Clock, index_thread: ThreadPoolExecutor) -> None:
        self.directories = directories
        self._clock = clock
        self._index_thread = index_thread
        self._leased: dict[str, frozenset[str]] = {}

    async def save_dataset(self, dataset: Dataset) -> None:
        """Make a dataset's listing durable."""
        await self._blocking(self._first.index.save_dataset, dataset, self._clock.time())

    async def load_dataset(self, uri: str, revision: str) -> Dataset | None:
        for directory in self._readable():
            found = await self._blocking(directory.index.load_dataset, uri, revision)
            if found is not None:
                return found
        return None

    async def datasets(self) -> list[tuple[str, str]]:
        """(URI, revision) of every dataset whose listing is here, of each directory the latest first."""
        found: dict[tuple[str, str], None] = {}
        for directory in self._readable():
            found |= dict.fromkeys(await self._blocking(directory.index.datasets))
        return list(found)

    async def save_proof(self, uri: str, identity: str, revision: str) -> None:
        """Make durable that the origin gave this identity (agent/identity.py) this listing now."""
        await self._blocking(self._first.index.save_proof, uri, identity, revision, self._clock.time())

    async def proven(self, uri: str, identity: str) -> str | None:
        """The revision that the origin last gave this identity; None where it never did."""
        for directory in self._readable():
            found = await self._blocking(directory.index.proven, uri, identity)
            if found is not None:
                return found
        return None

    async def present_bytes(self, keys: Iterable[str]) -> dict[str, int]:
        """Bytes present of the objects with these keys; objects that the store does not know are left out."""
        keys = list(keys)
        found: dict[str, int] = {}
        for directory in self._readable():
            found |= await self._blocking(directory.index.present_bytes, keys)
        return found

    async def whole(self, refs: Iterable[ObjectRef]) -> Whole | None:
        """Where all of the objects are complete in one directory (those without bytes are everywhere)."""
        wanted = list({ref.key: ref for ref in refs if ref.size}.values())
        for directory in self._readable():
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

    async def _presence(self, directory: Directory, keys: Sequence[str]) -> dict[str, Presence]:
        return await self._blocking(directory.index.presence, keys)

    async def lease(self, directory: Directory, lease: Lease, keys: Iterable[str]) -> None:
        """Claim complete objects of a directory for a tree, durably, until `end_lease`.

        Raises StoreFailed where one of them is not complete any more.
        """
        claimed = frozenset(keys)
        self._leased[lease.tree] = claimed  # from here on eviction takes none of them
        try:
            if self.leaving(claimed) or not await self._blocking(_lease, directory.index, lease, claimed):
                raise StoreFailed(f"{lease.uri}: some of it has just been evicted")
        except StoreFailed:
            del self._leased[lease.tree]
            raise

    async def end_lease(self, directory: Directory, tree: str) -> None:
        await self._blocking(directory.index.end_lease, tree)
        self._leased.pop(tree, None)

    async def leases(self) -> list[tuple[Directory, Lease]]:
        """The claims of all trees, each with the directory that its tree is in."""
        return [
            (directory, lease)
            for directory in self._readable()
            for lease in await self._blocking(directory.index.leases)
        ]

    async def leased_keys(self) -> set[str]:
        """The keys of the objects that somebody reads without asking the agent: they must stay."""
        found: set[str] = set()
        for directory in self._readable():
            found |= await self._blocking(directory.index.leased_keys)
        return found

    @property
    def leased(self) -> set[str]:
        """The same, with the claims that are about to be made, as they are at this moment."""
        return set().union(*self._leased.values())

    def leaving(self, keys: frozenset[str]) -> bool:
        """Whether any of the objects is being removed now, whole or in part."""
        raise NotImplementedError

    async def load_leases(self) -> None:
        """Take up the claims that the indexes have. To be called before anything is evicted."""
        for directory in self._readable():
            self._leased |= await self._blocking(_leases, directory.index)

    @property
    def _first(self) -> Directory:
        return self._readable()[0]

    def _readable(self) -> list[Directory]:
        """Directories whose index works; all of them where none does: then the error is told."""
        well = [one for one in self.directories if one.state is not State.FAILED]
        return well or self.directories

    def on_index_thread(self, call: Callable[[], R], /) -> Awaitable[R]:
        """Run a call on the index thread, behind those that were asked for before."""
        return self._blocking(call)

    async def blocking(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a call on the index thread, behind those that were asked for before."""
        return await self._blocking(call, *args, **kwargs)

    async def _blocking(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._index_thread, lambda: call(*args, **kwargs))


def _lease(index: Index, lease: Lease, keys: frozenset[str]) -> bool:
    """Record a lease if all of its objects are complete (on the index thread, as removals are)."""
    query = "SELECT 1 FROM objects WHERE key = ? AND present >= size"

    def whole(db: sqlite3.Connection) -> bool:
        return all(db.execute(query, (key,)).fetchone() for key in keys)

    if not index.transact(whole):
        return False
    index.lease(lease, keys)
    return True


def _leases(index: Index) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for tree, key in index.transact(lambda db: db.execute("SELECT tree, key FROM leased").fetchall()):
        found.setdefault(tree, set()).add(key)
    return {tree: frozenset(keys) for tree, keys in found.items()}
