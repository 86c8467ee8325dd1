"""The store on a real directory: what it shares, records, refuses and finds again."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
from pathlib import Path

import pytest
import xxhash

from agent.cache.departure import IDLE_OBJECTS
from agent.cache.directory import StoreLimits
from agent.cache.index import Lease
from agent.cache.objects import CachedObject
from agent.cache.records import Whole
from agent.cache.store import Store
from agent.content import Dataset, Entry, Extent, ObjectRef
from agent.errors import ConfigError, StoreFailed, StoreFull
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


async def complete(store: Store, name: str, chunks: float = 2) -> CachedObject:
    """An object with all its chunks, given back."""
    cached = await store.acquire(ref(name, chunks))
    await fill(store, cached, *range(len(cached.present)))
    store.release(cached)
    return cached


def another_boot(directory: Path) -> None:
    """Have the index of a closed store written under another boot id, with the checksums of its bytes."""
    with sqlite3.connect(directory / "index.sqlite") as database:
        rows = database.execute("SELECT key, object, chunk FROM chunks JOIN objects ON id = object")
        for key, number, chunk in rows.fetchall():
            data = (directory / "objects" / key[:2] / key).read_bytes()[chunk * CHUNK : (chunk + 1) * CHUNK]
            database.execute(
                "UPDATE chunks SET boot = 'another', xxh3 = ? WHERE object = ? AND chunk = ?",
                (xxhash.xxh3_128_digest(data), number, chunk),
            )
    database.close()


def flip(path: Path, offset: int) -> None:
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def writable(cached: CachedObject) -> bool:
    return fcntl.fcntl(cached.fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR


async def test_a_complete_object_is_opened_for_reading_only(tmp_path: Path) -> None:
    first = await open_store(tmp_path)
    assert writable(await complete(first, "whole"))
    await fill(first, await first.acquire(ref("part")), 1)
    await first.close()
    second = await open_store(tmp_path)
    assert not writable(await second.acquire(ref("whole", 2)))
    assert writable(await second.acquire(ref("part")))
    await second.close()


async def test_a_damaged_object_that_no_tree_shows_keeps_its_good_chunks(tmp_path: Path) -> None:
    first = await open_store(tmp_path)
    path = (await complete(first, "o", 3)).path
    await first.close()
    another_boot(tmp_path)
    flip(path, CHUNK + 5)
    path.chmod(0o444)  # as it was left by a tree
    second = await open_store(tmp_path)
    again = await second.acquire(ref("o", 3))
    assert (list(again.present), writable(again)) == ([1, 0, 1], True)
    assert second.directories[0].used == 2 * CHUNK
    await fill(second, again, 1)
    assert again.complete
    await second.close()


@pytest.mark.parametrize("damage", ["flipped", "cut short", "unknown to the index"])
async def test_a_file_that_a_tree_shows_is_never_written_into(tmp_path: Path, damage: str) -> None:
    first = await open_store(tmp_path)
    path = (await complete(first, "o", 2)).path
    await first.close()
    another_boot(tmp_path)
    if damage == "flipped":
        flip(path, 5)
    elif damage == "cut short":
        os.truncate(path, CHUNK)
    else:
        (tmp_path / "index.sqlite").unlink()
    link = tmp_path / "link"
    link.hardlink_to(path)
    link.chmod(0o444)
    before = link.read_bytes()
    second = await open_store(tmp_path)
    again = await second.acquire(ref("o", 2))
    assert list(again.present) == ([0, 1] if damage == "flipped" else [0, 0])
    assert second.directories[0].used == CHUNK * sum(again.present)
    await fill(second, again, *(chunk for chunk in (0, 1) if not again.present[chunk]))
    assert again.complete
    assert link.read_bytes() == before
    assert path.read_bytes() == b"\1" * CHUNK + b"\2" * CHUNK
    assert second.directories[0].objects == 1
    await second.close()


async def open_two(tmp_path: Path, capacity: int) -> Store:
    paths = [tmp_path / "one", tmp_path / "two"]
    return await Store.open(paths, CHUNK, StoreLimits(capacity, 0), ManualClock())


async def test_the_objects_of_a_dataset_go_to_one_directory_where_they_fit(tmp_path: Path) -> None:
    store = await open_two(tmp_path, 10 * CHUNK)
    refs = [ref(f"o{number}", 2) for number in range(4)]
    await store.place(refs)
    for one in refs:
        cached = await store.acquire(one)
        await fill(store, cached, 0, 1)
    assert sorted(directory.objects for directory in store.directories) == [0, 4]
    whole = await store.whole(refs)
    assert whole is not None and whole.directory.objects == 4 and whole.unverified == ()
    await store.close()


async def test_what_a_dataset_lacks_goes_where_the_most_of_it_is(tmp_path: Path) -> None:
    store = await open_two(tmp_path, 10 * CHUNK)
    await complete(store, "first", 3)
    refs = [ref("first", 3), ref("second", 1)]
    await store.place(refs)
    await complete(store, "second", 1)
    whole = await store.whole(refs)
    assert whole is not None and whole.directory.objects == 2
    await store.close()


async def test_objects_in_two_directories_are_not_whole_in_one(tmp_path: Path) -> None:
    store = await open_two(tmp_path, 3 * CHUNK)
    refs = [ref(f"o{number}", 2) for number in range(2)]
    await store.place(refs)
    for one in refs:
        await fill(store, await store.acquire(one), 0, 1)
    assert [directory.objects for directory in store.directories] == [1, 1]
    assert await store.whole(refs) is None
    assert await store.whole(refs[:1]) is not None
    await store.close()


async def test_whole_is_only_what_is_complete_and_verified_in_this_boot(tmp_path: Path) -> None:
    first = await open_store(tmp_path)
    refs = [ref("a", 2), ref("b", 2), ref("empty", 0)]
    await complete(first, "a")
    cached = await first.acquire(refs[1])
    await fill(first, cached, 0)
    assert await first.whole(refs) is None
    await fill(first, cached, 1)
    whole = await first.whole(refs)
    assert whole is not None and whole.unverified == ()
    await first.close()
    another_boot(tmp_path)
    flip(cached.path, 3)
    second = await open_store(tmp_path)
    whole = await second.whole(refs)
    assert whole is not None and set(whole.unverified) == set(refs[:2])
    for one in whole.unverified:
        second.release(await second.acquire(one))
    assert await second.whole(refs) is None
    assert await second.whole(refs[:1]) == Whole(second.directories[0], ())
    await second.close()


async def test_leases_outlive_the_store(tmp_path: Path) -> None:
    first = await open_store(tmp_path)
    lease = Lease("t", "s3://b", "r", 1.0)
    key = ref(chunks=1).key
    with pytest.raises(StoreFailed, match="evicted"):
        await first.lease(first.directories[0], lease, [key])
    await fill(first, await first.acquire(ref(chunks=1)), 0)
    await first.lease(first.directories[0], lease, [key])
    assert first.leased == {key}
    await first.close()
    second = await open_store(tmp_path)
    assert await second.leases() == [(second.directories[0], lease)]
    assert await second.leased_keys() == second.leased == {key}
    await second.end_lease(second.directories[0], "t")
    assert await second.leased_keys() == second.leased == set()
    await second.close()
