"""How objects leave the store."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.content import ObjectRef
from tests.agent.cache.conftest import CHUNK, open_store


async def test_who_keeps_a_file_open_is_told_before_it_is_unlinked(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "store")
    ref = ObjectRef("s3://b/o", "v", 100)
    store.release(await store.acquire(ref))
    directory = store.directories[0]
    told: list[tuple[str, bool]] = []

    async def note(key: str) -> None:
        told.append((key, directory.file_of(key).exists()))

    store.before_removal = note
    await store.take_object(directory, ref.key)
    assert told == [(ref.key, True)]
    assert not directory.file_of(ref.key).exists()
    await store.close()


async def test_what_a_removal_that_failed_half_way_left_uncounted_is_counted_again(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "store")
    ref = ObjectRef("s3://b/o", "v", 100)
    cached = await store.acquire(ref)
    store.reserve(cached, 0)
    await store.record(cached, 0, bytes(16))
    store.release(cached)
    directory = store.directories[0]
    path = directory.file_of(ref.key)
    path.unlink()
    path.mkdir()  # unlink(2) fails
    with pytest.raises(OSError):
        await store.take_object(directory, ref.key)
    assert (directory.used, directory.chunks, directory.objects) == (100, 1, 1)
    store.release(other := await store.acquire(ObjectRef("s3://b/p", "v", 100)))
    store.reserve(other, 0)
    await store.recount(directory)
    assert directory.used == 200, "not while a chunk is being filled"
    await store.record(other, 0, bytes(16))
    await asyncio.sleep(0)
    await store.recount(directory)
    assert (directory.used, directory.chunks, directory.objects) == (100, 1, 1)
    await store.close()


async def test_chunks_of_a_closed_object_that_are_gone_already_are_not_counted_twice(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "store")
    cached = await store.acquire(ObjectRef("s3://b/o", "v", 3 * CHUNK))
    store.reserve(cached, 1)
    await store.record(cached, 1, bytes(16))
    await store.close()
    store = await open_store(tmp_path / "store")
    directory = store.directories[0]
    assert await store.take_closed(directory, cached.ref.key, [0, 1]) == CHUNK
    assert await store.take_closed(directory, cached.ref.key, [0, 1]) == 0
    assert (directory.used, directory.chunks) == (0, 0)
    await store.close()
