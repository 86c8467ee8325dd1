"""Hashes of pieces: made of what is present, checked on what has come, kept in the index.

They are made when a swarm is asked for, from chunks of the store (threads), and once: what this agent made or
learned it knows from then on, also when the bytes have gone. A chunk that the disk does not give back as it
was recorded gets none and is given up, so that it is fetched again. Loop only, but for `made`.
"""

from __future__ import annotations

import functools
import logging
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import suppress

import xxhash

from agent.cache.directory import State
from agent.cache.index import Index
from agent.cache.objects import CachedObject
from agent.cache.store import Store
from agent.clock import Clock
from agent.content import Extent
from agent.errors import StoreFailed
from agent.peers.metainfo import HASH, PIECE, Layout, piece_hashes, pieces_in
from agent.peers.vouching import Damaged, proven

log = logging.getLogger(__name__)

RETAINED = 30 * 24 * 3600.0  # seconds: after that they are made or learned again

Hashes = dict[tuple[int, int], bytes]  # of chunks: number of the object in its set, number of the chunk


class PieceHashes:
    """The hashes that this agent keeps."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def load(self, layout: Layout) -> Hashes:
        """What is known of a set."""
        numbers = {ref.key: number for number, ref in enumerate(layout.refs)}
        found: Hashes = {}
        for index in self._indexes():
            with suppress(StoreFailed):  # then they are made again
                rows = await self._store.blocking(_load, index, layout.chunk_size, list(numbers))
                found |= {(numbers[key], chunk): sha1 for key, chunk, sha1 in rows}
        return {at: value for at, value in found.items() if fits(layout, *at, value)}

    async def save(self, layout: Layout, hashes: Mapping[tuple[int, int], bytes]) -> None:
        """Keep these."""
        now = self._clock.time()
        rows = [
            (layout.refs[number].key, layout.chunk_size, chunk, sha1, now)
            for (number, chunk), sha1 in hashes.items()
        ]
        for index in self._indexes()[:1]:
            with suppress(StoreFailed):
                await self._store.blocking(_save, index, rows, now - RETAINED)

    async def make(self, cached: CachedObject, layout: Layout, number: int, chunk: int) -> bytes | None:
        """The hashes of a chunk that is present; None where it has gone, or is damaged, and is given up then.

        Raises StoreError."""
        make = functools.partial(made, cached.fd, layout.extent(number, chunk), layout.padding(number, chunk))
        try:
            return await proven(self._store, cached, chunk, make)
        except Damaged as damaged:
            log.warning("%s; the swarm does not get it", damaged)
            self._store.lost(cached, [chunk])
            return None

    def _indexes(self) -> list[Index]:
        return [one.index for one in self._store.directories if one.state is not State.FAILED]


def fits(layout: Layout, number: int, chunk: int, hashes: bytes) -> bool:
    """Whether these can be the hashes of that chunk."""
    try:
        return len(hashes) == HASH * pieces_in(layout.extent(number, chunk).length)
    except IndexError:
        return False


def made(fd: int, extent: Extent, padding: int) -> tuple[bytes, bytes]:
    """xxh3-128 of a chunk as it is in its file, and the hashes of its pieces (a thread). Raises OSError."""
    digest = xxhash.xxh3_128()

    def parts() -> Iterator[bytes]:
        for part in _parts(fd, extent):
            digest.update(part)
            yield part

    hashes = b"".join(piece_hashes(parts(), padding))
    return digest.digest(), hashes


def _parts(fd: int, extent: Extent) -> Iterator[bytes]:
    for offset in range(extent.offset, extent.end, PIECE):
        yield os.pread(fd, min(PIECE, extent.end - offset), offset)


def _load(index: Index, chunk_size: int, keys: list[str]) -> list[tuple[str, int, bytes]]:
    query = "SELECT chunk, sha1 FROM pieces WHERE key = ? AND chunk_size = ?"

    def work(db: sqlite3.Connection) -> list[tuple[str, int, bytes]]:
        return [
            (key, chunk, bytes(sha1))
            for key in keys
            for chunk, sha1 in db.execute(query, (key, chunk_size)).fetchall()
        ]

    return index.transact(work)


def _save(index: Index, rows: list[tuple[str, int, int, bytes, float]], oldest: float) -> None:
    def work(db: sqlite3.Connection) -> None:
        db.execute("DELETE FROM pieces WHERE saved < ?", (oldest,))
        db.executemany("INSERT OR REPLACE INTO pieces VALUES (?, ?, ?, ?, ?)", rows)

    index.transact(work)
