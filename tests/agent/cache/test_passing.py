"""Passing chunks: their bytes stay while they are read, nobody begins once they go, and the budget holds."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.cache.objects import CachedObject
from agent.cache.passing import PassingChunks, PassingLanding
from agent.content import Extent, ObjectRef

CHUNK = 4096


def an_object() -> CachedObject:
    """One of four chunks that no directory has a file for: a read that misses memory fails."""
    return CachedObject(ObjectRef("s3://b/k", "v", 4 * CHUNK), Path(), -1, 0, CHUNK)


async def arrive(
    chunks: PassingChunks, cached: CachedObject, chunk: int, part: int = CHUNK
) -> PassingLanding:
    landing = PassingLanding(cached.extent(chunk))
    cached.landings[chunk] = landing
    cached.memory = (*cached.memory, landing)
    await asyncio.wait_for(chunks.claim(CHUNK), 10)
    landing.write(memoryview(bytes([chunk + 1]) * part))
    return landing


def taken(cached: CachedObject, extent: Extent) -> bytes:
    found = bytearray(extent.length)
    cached.read(extent, memoryview(found))
    return bytes(found)


async def test_a_chunk_that_passes_twice_counts_once_and_the_later_copy_is_read() -> None:
    chunks, cached = PassingChunks(2 * CHUNK), an_object()
    for _ in range(2):
        chunks.keep(cached, 0, await arrive(chunks, cached, 0))
        del cached.landings[0]
    assert (chunks.held, len(cached.memory)) == (CHUNK, 1)
    for chunk in (1, 2, 3):
        chunks.keep(cached, chunk, await arrive(chunks, cached, chunk))
        del cached.landings[chunk]
    assert (chunks.held, sorted(cached.passing)) == (2 * CHUNK, [2, 3])
    assert taken(cached, cached.extent(3)) == b"\4" * CHUNK


@pytest.mark.parametrize("part", [CHUNK // 2, CHUNK])
async def test_who_began_reads_on_while_a_chunk_is_let_go_and_nobody_begins(part: int) -> None:
    chunks, cached = PassingChunks(CHUNK), an_object()
    landing = await arrive(chunks, cached, 0, part)
    extent = Extent(0, part)
    assert cached.begin_read(extent)
    chunks.keep(cached, 0, landing)  # half of it: the flight has failed
    claim = asyncio.create_task(chunks.claim(CHUNK))  # the whole of it: its room is wanted
    await asyncio.wait([claim], timeout=0.01)
    assert not claim.done()
    assert not cached.begin_read(extent), "its flight is not closed yet"
    assert taken(cached, extent) == b"\1" * part
    cached.end_read(extent)
    await asyncio.wait_for(claim, 10)
    assert (chunks.held, cached.memory) == (CHUNK, ())
