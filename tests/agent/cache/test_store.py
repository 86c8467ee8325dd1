"""The store on a real directory: what it shares, records, refuses and finds again."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from pathlib import Path

import pytest
import xxhash

from agent.cache.objects import CachedObject
from agent.cache.store import IDLE_OBJECTS, Store, StoreLimits
from agent.content import Dataset, Entry, Extent, ObjectRef
from agent.errors import ConfigError, StoreFull
from tests.agent.cache.conftest import CHUNK, TappedStore, open_store
from tests.fakes.clock import ManualClock


def ref(name: str = "object", chunks: float = 4) -> ObjectRef:
    return ObjectRef(f"s3://bucket/{name}", "v1", int(chunks * CHUNK))


async def fill(store: Store, cached: CachedObject, *chunks: int) -> None:
    """Put chunks in as the filler does: room first, the bytes, the record."""
    for chunk in chunks:
        store.reserve(cached, chunk)
        extent = cached.extent(chunk)
        os.pwrite(cached.fd, bytes([chunk + 1]) * extent.length, extent.offset)
    await asyncio.gather(*(store.record(cached, chunk, bytes(16)) for chunk in chunks))


async def test_all_who_acquire_an_object_at_once_get_the_same_one(store: TappedStore) -> None:
    found = await asyncio.gather(*(store.acquire(ref()) for _ in range(10)))
    assert len(set(map(id, found))) == 1
    assert found[0].users == 10
    assert store.peek(ref()) is found[0]
    assert await store.acquire(ref("other")) is not found[0]


async def test_one_who_gives_up_waiting_does_not_take_the_object_from_the_others(store: TappedStore) -> None:
    impatient, patient = (asyncio.create_task(store.acquire(ref())) for _ in range(2))
    await asyncio.wait([impatient], timeout=0)
    impatient.cancel()
    cached = await asyncio.wait_for(patient, 10)
    assert cached.users == 1


async def test_files_of_released_objects_are_closed_once_many_others_were_used_since(
    store: TappedStore,
) -> None:
    kept = await store.acquire(ref("kept"))
    idle = await store.acquire(ref("idle"))
    store.release(idle)
    assert os.fstat(idle.fd).st_size == ref().size
    for number in range(IDLE_OBJECTS):
        store.release(await store.acquire(ref(f"n{number}", chunks=0)))
    assert store.peek(ref("idle")) is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(idle.fd)
    assert store.peek(ref("kept")) is kept
    os.fstat(kept.fd)


async def test_a_chunk_is_visible_only_once_its_record_is_committed(
    store: TappedStore, tmp_path: Path
) -> None:
    cached = await store.acquire(ref())
    store.reserve(cached, 2)
    recording = asyncio.create_task(store.record(cached, 2, bytes(16)))
    await asyncio.wait([recording], timeout=0)
    assert not cached.present[2]
    await asyncio.wait_for(recording, 10)
    assert cached.present[2] and not cached.present[1]
    assert await store.present_bytes([ref().key]) == {ref().key: CHUNK}
    assert store.directories[0].chunks == 1


async def test_a_reopened_store_has_what_was_recorded(tmp_path: Path) -> None:
    path = tmp_path / "store"
    first = await open_store(path)
    cached = await first.acquire(ref(chunks=2.5))
    await fill(first, cached, 0, 2)
    dataset = Dataset("s3://bucket", (Entry("object", ref(chunks=2.5), 5),))
    await first.save_dataset(dataset)
    await first.close()
    second = await open_store(path)
    again = await second.acquire(ref(chunks=2.5))
    assert list(again.present) == [1, 0, 1]
    assert again.begin_read(Extent(2 * CHUNK, CHUNK // 2)) and not again.begin_read(Extent(CHUNK, 1))
    assert os.pread(again.fd, 2, 2 * CHUNK) == b"\3\3"
    assert await second.datasets() == [("s3://bucket", dataset.revision)]
    assert await second.load_dataset("s3://bucket", dataset.revision) == dataset
    directory = second.directories[0]
    assert (directory.used, directory.chunks, directory.objects) == (CHUNK * 3 // 2, 2, 1)
    await second.close()


async def test_a_chunk_that_was_written_and_not_recorded_is_absent_after_a_reopen(tmp_path: Path) -> None:
    first = await open_store(tmp_path)
    cached = await first.acquire(ref())
    os.pwrite(cached.fd, b"x" * CHUNK, 0)
    await first.close()
    second = await open_store(tmp_path)
    assert not any((await second.acquire(ref())).present)
    await second.close()


async def test_an_object_keeps_the_chunk_size_that_it_was_begun_with(tmp_path: Path) -> None:
    first = await open_store(tmp_path, chunk=CHUNK)
    await fill(first, await first.acquire(ref()), 1)
    await first.close()
    second = await open_store(tmp_path, chunk=2 * CHUNK)
    again = await second.acquire(ref())
    assert (again.chunk_size, list(again.present)) == (CHUNK, [0, 1, 0, 0])
    await second.close()


@pytest.mark.parametrize("damage", ["cut short", "gone", "longer"])
async def test_a_file_that_is_not_as_it_was_is_a_miss_and_its_room_is_free_again(
    tmp_path: Path, damage: str
) -> None:
    first = await open_store(tmp_path)
    cached = await first.acquire(ref())
    await fill(first, cached, 0, 1)
    await first.close()
    if damage == "gone":
        cached.path.unlink()
    else:
        os.truncate(cached.path, CHUNK if damage == "cut short" else 9 * CHUNK)
    second = await open_store(tmp_path)
    again = await second.acquire(ref())
    assert not any(again.present)
    directory = second.directories[0]
    assert (directory.used, directory.chunks, directory.objects) == (0, 0, 1)
    await fill(second, again, 3)
    assert await second.present_bytes([ref().key]) == {ref().key: CHUNK}
    await second.close()


async def test_after_a_crash_of_the_machine_only_chunks_with_their_checksum_are_present(
    tmp_path: Path,
) -> None:
    first = await open_store(tmp_path)
    cached = await first.acquire(ref())
    for chunk in (0, 1, 2):
        first.reserve(cached, chunk)
        data = bytes([chunk + 1]) * CHUNK
        os.pwrite(cached.fd, data, chunk * CHUNK)
        await first.record(cached, chunk, xxhash.xxh3_128_digest(data))
    await first.close()
    with sqlite3.connect(tmp_path / "index.sqlite") as database:
        database.execute("UPDATE chunks SET boot = 'another' WHERE chunk < 2")
    database.close()
    with cached.path.open("r+b") as file:
        file.seek(CHUNK + 17)
        file.write(b"\0")
    second = await open_store(tmp_path)
    again = await second.acquire(ref())
    assert list(again.present) == [1, 0, 1, 0]
    assert (second.directories[0].used, second.directories[0].chunks) == (2 * CHUNK, 2)
    assert await second.present_bytes([ref().key]) == {ref().key: 2 * CHUNK}
    await second.close()
    third = await open_store(tmp_path)
    assert list((await third.acquire(ref())).present) == [1, 0, 1, 0]
    await third.close()


async def test_capacity_counts_what_is_present_and_what_is_being_filled(tmp_path: Path) -> None:
    store = await open_store(tmp_path, capacity=2 * CHUNK)
    cached = await store.acquire(ref())
    await fill(store, cached, 0)
    store.reserve(cached, 1)
    with pytest.raises(StoreFull, match=r"store\.capacity"):
        store.reserve(cached, 2)
    store.unreserve(cached, 1)
    store.reserve(cached, 2)
    await store.close()


async def test_the_reserve_of_free_disk_is_never_used(tmp_path: Path) -> None:
    store = await open_store(tmp_path, reserve=1 << 62)
    cached = await store.acquire(ref())
    with pytest.raises(StoreFull, match="reserve"):
        store.reserve(cached, 0)
    assert store.directories[0].used == 0
    await store.close()


async def test_objects_of_no_bytes_are_complete(store: TappedStore) -> None:
    assert (await store.acquire(ref(chunks=0))).complete


@pytest.mark.parametrize("kind", ["a file", "below a file"])
async def test_a_directory_that_cannot_be_used_is_a_config_error_with_a_remedy(
    tmp_path: Path, kind: str
) -> None:
    file = tmp_path / "file"
    file.touch()
    path = file if kind == "a file" else file / "store"
    with pytest.raises(ConfigError, match=r"store\.directories: .*file.*; make it") as caught:
        await Store.open([tmp_path / "good", path], CHUNK, StoreLimits(), ManualClock())
    assert caught.value.key == "store.directories"


async def test_a_new_object_goes_to_the_directory_with_the_most_room(tmp_path: Path) -> None:
    store = await Store.open(
        [tmp_path / "a", tmp_path / "b"], CHUNK, StoreLimits(10 * CHUNK, 0), ManualClock()
    )
    one = await store.acquire(ref("one"))
    await fill(store, one, 0)
    two = await store.acquire(ref("two"))
    assert one.path.parts[-4] != two.path.parts[-4]
    await store.close()


async def test_closing_waits_for_records_and_openings_under_way(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    cached = await store.acquire(ref())
    store.reserve(cached, 0)
    recording = asyncio.create_task(store.record(cached, 0, bytes(16)))
    opening = asyncio.create_task(store.acquire(ref("late")))
    await asyncio.wait([recording, opening], timeout=0)
    await asyncio.wait_for(store.close(), 10)
    late = await opening
    await recording
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(late.fd)
