"""Whether the bytes of chunks are those whose checksum was recorded. Blocking; on any thread."""

from __future__ import annotations

import os

import xxhash

from agent.cache.objects import CachedObject

PIECE = 1 << 20  # bytes that are read at once to be checked


def verified(cached: CachedObject, suspect: tuple[tuple[int, bytes], ...]) -> set[int]:
    """The numbers of the chunks whose bytes in the file have the checksum that was recorded."""
    return {chunk for chunk, xxh3 in suspect if checksum(cached, chunk) == xxh3}


def checksum(cached: CachedObject, chunk: int) -> bytes:
    extent = cached.extent(chunk)
    digest = xxhash.xxh3_128()
    for offset in range(extent.offset, extent.end, PIECE):
        try:
            digest.update(os.pread(cached.fd, min(PIECE, extent.end - offset), offset))
        except OSError:
            return b""  # a bad sector is no right byte
    return digest.digest()
