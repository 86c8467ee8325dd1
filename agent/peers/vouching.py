"""Digests for units that are in the store, and came without any: before this agent started, or by the swarm.

A chunk is compared with the checksum that the index has of it, and its digests are made in the same pass:
what the disk gives back wrong gets no digest that makes it right. So are the swarm's hashes (`proven`).
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from collections.abc import Callable
from typing import TypeVar

import xxhash

from agent.cache.objects import CachedObject
from agent.cache.store import Store
from agent.content import Extent
from agent.errors import StoreError
from agent.peers.digests import UnitDigests
from agent.peers.units import UNIT, unit_digest, unit_end

log = logging.getLogger(__name__)

T = TypeVar("T")


class Damaged(Exception):
    """A chunk is present, but the disk does not give back what was recorded."""


async def proven(
    store: Store, cached: CachedObject, chunk: int, make: Callable[[], tuple[bytes, T]]
) -> T | None:
    """What `make` (a thread) makes of a chunk's bytes, besides their xxh3-128; None where the chunk has gone.

    Raises Damaged, also where `make` raises OSError; StoreError.
    """
    whole = cached.extent(chunk)
    if not cached.present[chunk] or not cached.begin_read(whole):
        return None
    try:
        recorded = await store.checksum(cached, chunk)
        checksum, made = await asyncio.to_thread(make)
        if checksum == recorded:
            return made
    except OSError:
        pass  # a bad sector is no right byte
    finally:
        cached.end_read(whole)
    if not cached.present[chunk]:
        return None  # its record goes before its bytes do
    raise Damaged(f"{cached.ref.uri}: chunk {chunk} is damaged")


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
            if self._digests.knows(cached.ref.key, whole):
                continue
            try:
                made = await proven(self._store, cached, chunk, functools.partial(_made, cached, whole))
            except Damaged as damaged:
                log.warning("%s; no peer gets it", damaged)
                return False
            except StoreError as error:
                log.warning("%s: no peer gets chunk %d: %s", cached.ref.uri, chunk, error)
                return False
            if made is not None:
                self._digests.put(cached.ref.key, whole.offset // UNIT, made)
        return True

    def digest(self, cached: CachedObject, unit: int) -> bytes:
        """The digest of a unit whose bytes may be read (any thread). Raises OSError.

        It is made here where the bytes have just come another way than from peers and origin."""
        known = self._digests.get(cached.ref.key, unit)
        if known is None:
            known = unit_digest(_read(cached, unit * UNIT))
            self._digests.put(cached.ref.key, unit, known)
        return known


def _made(cached: CachedObject, whole: Extent) -> tuple[bytes, bytes]:
    """xxh3-128 of a chunk, and the digests of its units one behind the other (a thread). Raises OSError."""
    checksum, made = xxhash.xxh3_128(), list[bytes]()
    for offset in range(whole.offset, whole.end, UNIT):
        data = _read(cached, offset)
        checksum.update(data)
        made.append(unit_digest(data))
    return checksum.digest(), b"".join(made)


def _read(cached: CachedObject, offset: int) -> bytes:
    return os.pread(cached.fd, unit_end(offset, cached.ref.size) - offset, offset)
