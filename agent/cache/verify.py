"""Whether the bytes of chunks are those whose checksum was recorded. Blocking; on any thread."""

from __future__ import annotations

import os

import xxhash

from agent.cache.objects import CachedObject
from agent.content import Extent

PIECE = 1 << 20  # bytes that are read at once to be checked


def verified(cached: CachedObject, suspect: tuple[tuple[int, bytes], ...]) -> set[int]:
    """The numbers of the chunks whose bytes in the file have the checksum that was recorded."""
    return {chunk for chunk, xxh3 in suspect if checksum(cached, chunk) == xxh3}


def checksum(cached: CachedObject, chunk: int) -> bytes:
    return checksum_at(cached.fd, cached.extent(chunk))


def checksum_at(fd: int, extent: Extent) -> bytes:
    """xxh3-128 of an extent of a file; no checksum at all where it cannot be read or is not all there."""
    digest = xxhash.xxh3_128()
    for offset in range(extent.offset, extent.end, PIECE):
        try:
            digest.update(os.pread(fd, min(PIECE, extent.end - offset), offset))
        except OSError:
            return b""  # a bad sector is no right byte
    return digest.digest()
