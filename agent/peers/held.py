"""The objects of a set that are kept open while something is done with them. Loop only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from agent.cache.objects import CachedObject
from agent.cache.store import Store
from agent.errors import StoreFailed
from agent.peers.metainfo import Layout

At = tuple[int, int]  # a chunk: number of its object in the set, its own number in the object


class Held:
    """Those of one set; `open` them, and `let_go` in the end."""

    def __init__(self, store: Store, layout: Layout) -> None:
        self._store = store
        self._layout = layout
        self._held: dict[int, CachedObject] = {}

    async def open(self, *, every: bool) -> None:
        """Open all of them, else those of which something is present. Raises StoreError."""
        refs = self._layout.refs
        present = await self._store.present_bytes([ref.key for ref in refs])
        for number, ref in enumerate(refs):
            if every or present.get(ref.key):
                cached = self._held[number] = await self._store.acquire(ref)
                if every:
                    cached.use()
                if cached.fd < 0 or cached.chunk_size != self._layout.chunk_size:
                    raise StoreFailed(f"{ref.uri}: the store cannot give it to the swarm")

    def let_go(self) -> None:
        held, self._held = self._held, {}
        for cached in held.values():
            self._store.release(cached)

    def __getitem__(self, number: int) -> CachedObject:
        return self._held[number]

    def has(self, at: At) -> bool:
        """Whether a chunk is present."""
        cached = self._held.get(at[0])
        return cached is not None and bool(cached.present[at[1]])

    def chunks(self) -> Iterator[At]:
        """All chunks of what is open."""
        for number, cached in self._held.items():
            yield from ((number, chunk) for chunk in range(len(cached.present)))

    def paths(self) -> dict[int, Path]:
        """Their files, by their numbers in the set."""
        return {number: cached.path for number, cached in self._held.items()}
