"""Digests for units that are in the store, and came without any: before this agent started, or by the swarm.

A chunk is compared with the checksum that the index has of it, and its digests are made in the same pass:
what the disk gives back wrong gets no digest that makes it right.
"""

from __future__ import annotations

import asyncio
import logging
import os

import xxhash

from agent.cache.objects import CachedObject
from agent.cache.store import Store
from agent.content import Extent
from agent.errors import StoreError
from agent.peers.digests import UnitDigests
from agent.peers.units import UNIT, unit_digest, unit_end

log = logging.getLogger(__name__)


class Vouching:
    """Knows or makes the digests of what this agent sends."""

    def __init__(self, store: Store, digests: UnitDigests) -> None:
        self._store = store
        self._digests = digests

    async def vouch(self, cached: CachedObject, extent: Extent) -> bool:
        """Have the digests of what is present of an extent; False where a chunk is not what was recorded.

        What still arrives comes with its own."""
        for chunk in cached.chunks(extent):
            whole = cached.extent(chunk)
            if not cached.present[chunk] or self._digests.knows(cached.ref.key, whole):
                continue
            try:
                recorded = await self._store.checksum(cached, chunk)
            except StoreError as error:
                log.warning("%s: no peer gets chunk %d: %s", cached.ref.uri, chunk, error)
                return False
            if not cached.begin_read(whole):
                continue
            try:
                right = await asyncio.to_thread(self._make, cached, whole, recorded)
            finally:
                cached.end_read(whole)
            if not right:
                log.warning("%s: chunk %d is damaged; no peer gets it", cached.ref.uri, chunk)
                return False
        return True

    def digest(self, cached: CachedObject, unit: int) -> bytes:
        """The digest of a unit whose bytes may be read (any thread). Raises OSError.

        It is made here where the bytes have just come another way than from peers and origin."""
        known = self._digests.get(cached.ref.key, unit)
        if known is None:
            known = unit_digest(_read(cached, unit * UNIT))
            self._digests.put(cached.ref.key, unit, known)
        return known

    def _make(self, cached: CachedObject, whole: Extent, recorded: bytes | None) -> bool:
        checksum, made = xxhash.xxh3_128(), list[bytes]()
        try:
            for offset in range(whole.offset, whole.end, UNIT):
                data = _read(cached, offset)
                checksum.update(data)
                made.append(unit_digest(data))
        except OSError:
            return False
        if checksum.digest() != recorded:
            return False
        for number, digest in enumerate(made, whole.offset // UNIT):
            self._digests.put(cached.ref.key, number, digest)
        return True


def _read(cached: CachedObject, offset: int) -> bytes:
    return os.pread(cached.fd, unit_end(offset, cached.ref.size) - offset, offset)
