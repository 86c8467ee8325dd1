"""Repairs and the scrub on a real store: what is damaged goes and comes back right, also while it is used."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
from pathlib import Path

import pytest
import xxhash

from agent.cache.departure import IDLE_OBJECTS
from agent.cache.directory import StoreLimits
from agent.cache.objects import CachedObject
from agent.cache.repair import Repairs
from agent.cache.scrub import Scrub
from agent.content import Extent, ObjectRef
from agent.errors import StoreFailed
from agent.metrics import Metrics
from tests.agent.cache.conftest import CHUNK, TappedStore, open_store
from tests.fakes.clock import ManualClock

DATA = random.Random(3).randbytes(4 * CHUNK)
REF = ObjectRef("s3://bucket/object", "v1", len(DATA))


async def filled(store: TappedStore, *chunks: int, ref: ObjectRef = REF) -> CachedObject:
    cached = await store.acquire(ref)
    for chunk in chunks:
        store.reserve(cached, chunk)
        piece = DATA[chunk * CHUNK : (chunk + 1) * CHUNK]
        os.pwrite(cached.fd, piece, chunk * CHUNK)
        await store.record(cached, chunk, xxhash.xxh3_128_digest(piece))
    return cached


def flip(cached: CachedObject, offset: int) -> None:
    with cached.path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 4]))


async def repair(store: TappedStore, cached: CachedObject, *chunks: int) -> int:
    directory = store.directories[0]
    (one,) = await store.on_index_thread(lambda: directory.index.objects_after("", 10))
    return await asyncio.wait_for(Repairs(store).repair(directory, one, chunks), 10)


@pytest.fixture
async def whole(store: TappedStore) -> CachedObject:
    return await filled(store, 0, 1, 2, 3)


async def test_a_damaged_chunk_of_a_complete_object_goes_with_its_file(
    store: TappedStore, whole: CachedObject
) -> None:
    flip(whole, CHUNK + 5)
    held = whole.path.open("rb")  # as a passthrough handle has it
    damaged = held.read()
    assert await repair(store, whole, 0, 1, 2) == 1
    assert list(whole.present) == [1, 0, 1, 1]
    assert whole.path.stat().st_ino != os.fstat(held.fileno()).st_ino
    assert os.fstat(whole.fd).st_ino == whole.path.stat().st_ino
    assert os.pread(whole.fd, 2 * CHUNK, 2 * CHUNK) == DATA[2 * CHUNK :]
    assert (store.directories[0].used, store.directories[0].chunks) == (3 * CHUNK, 3)
    await filled(store, 1)
    assert whole.complete and whole.path.read_bytes() == DATA
    held.seek(0)
    assert held.read() == damaged
    held.close()


async def test_one_of_an_incomplete_object_is_filled_again_in_its_place(store: TappedStore) -> None:
    cached = await filled(store, 0, 1)
    inode = cached.path.stat().st_ino
    flip(cached, 7)
    assert await repair(store, cached, 0, 1) == 1
    assert list(cached.present) == [0, 1, 0, 0]
    await filled(store, 0)
    assert cached.path.stat().st_ino == inode
    assert cached.path.read_bytes()[: 2 * CHUNK] == DATA[: 2 * CHUNK]


async def test_what_is_right_stays(store: TappedStore, whole: CachedObject) -> None:
    assert await repair(store, whole, 0, 1, 2, 3) == 0
    assert whole.complete


async def test_a_reader_ends_before_the_file_is_replaced(store: TappedStore, whole: CachedObject) -> None:
    flip(whole, 5)
    assert whole.begin_read(Extent(0, 10)) and whole.begin_read(Extent(CHUNK, 10))
    inode = os.fstat(whole.fd).st_ino
    repairing = asyncio.create_task(repair(store, whole, 0))
    while whole.present[0]:
        await asyncio.wait([repairing], timeout=0.01)
    assert not whole.begin_read(Extent(0, 1)) and whole.begin_read(Extent(2 * CHUNK, 1))
    assert os.fstat(whole.fd).st_ino == inode and not whole.writable
    whole.end_read(Extent(2 * CHUNK, 1))
    whole.end_read(Extent(0, 10))  # the reader of another chunk may stay
    assert await asyncio.wait_for(repairing, 10) == 1
    assert os.fstat(whole.fd).st_ino != inode and whole.writable
    assert os.pread(whole.fd, 10, CHUNK) == DATA[CHUNK : CHUNK + 10]
    whole.end_read(Extent(CHUNK, 10))


async def test_a_repair_that_a_crash_cut_off_begins_the_object_anew(tmp_path: Path) -> None:
    first = await open_store(tmp_path)
    cached = await filled(first, 0, 1, 2, 3)
    index = first.directories[0].index
    await first.on_index_thread(lambda: index.settle(cached.row, (), [(1, CHUNK)]))  # and no new file yet
    held = cached.path.open("rb")
    await first.close()
    second = await open_store(tmp_path)
    again = await second.acquire(REF)
    assert not any(again.present)
    assert again.path.stat().st_ino != os.fstat(held.fileno()).st_ino
    held.close()
    await second.close()


async def test_the_scrub_finds_damage_at_its_rate_and_goes_on_where_it_was(
    store: TappedStore, whole: CachedObject
) -> None:
    metrics, clock = Metrics(), ManualClock()
    flip(whole, 3 * CHUNK)
    scrub = Scrub(Repairs(store), clock, metrics, rate=CHUNK)
    scrub.start()
    for _ in range(4):
        assert await clock.next_sleep() == 1.0  # a chunk a second
        clock.advance(1.0)
    assert await clock.next_sleep() == 60.0  # until the next pass
    assert list(whole.present) == [1, 1, 1, 0]
    assert store.directories[0].damage["chunk"]._value.get() == 1
    assert metrics.counters()["headrace_scrubbed_bytes_total"] == 4 * CHUNK
    assert await store.on_index_thread(lambda: store.directories[0].index.note("scrub")) == ""
    await scrub.close()


async def test_a_scrub_that_is_ended_leaves_a_note(store: TappedStore, whole: CachedObject) -> None:
    clock = ManualClock()
    clock.advance(1000)
    scrub = Scrub(Repairs(store), clock, Metrics(), rate=CHUNK)
    scrub.start()
    for _ in range(4):
        await clock.next_sleep()
        clock.advance(1.0)
    assert await clock.next_sleep() == 60.0
    await scrub.close()
    with sqlite3.connect(store.directories[0].index.path) as database:
        assert database.execute("SELECT COUNT(*) FROM notes WHERE name = 'scrub'").fetchone() == (1,)
    database.close()


async def test_a_scrub_without_a_rate_only_tidies_up(tmp_path: Path) -> None:
    first = await open_store(tmp_path)
    path = (await filled(first, 0)).path
    await first.close()
    (tmp_path / "index.sqlite").unlink()
    foreign = path.with_name("notes.txt")
    foreign.write_text("mine")
    second = await open_store(tmp_path)
    scrub = Scrub(Repairs(second), ManualClock(), Metrics(), rate=0)
    scrub.start()
    await asyncio.wait_for(scrub.ended(), 10)
    assert not path.exists() and foreign.exists()
    await scrub.close()
    await second.close()


async def test_damaged_pages_condemn_the_index_until_the_next_start(tmp_path: Path) -> None:
    first = await open_store(tmp_path)
    await filled(first, 0)
    index = first.directories[0].index.path
    with sqlite3.connect(index) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        (page,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'chunks'").fetchone()
    database.close()
    with index.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    scrub = Scrub(Repairs(first), ManualClock(), Metrics(), rate=0)
    scrub.start()
    await asyncio.wait_for(scrub.ended(), 10)
    await scrub.close()
    await first.close()
    second = await open_store(tmp_path)
    assert index.with_name("index.sqlite.corrupt-1").exists()
    assert not any((await second.acquire(REF)).present)
    await second.close()


async def test_what_was_evicted_before_its_repair_is_not_made_anew(
    store: TappedStore, whole: CachedObject
) -> None:
    directory = store.directories[0]
    (one,) = await store.on_index_thread(lambda: directory.index.objects_after("", 10))
    while whole.users:
        store.release(whole)
    await store.take_object(directory, REF.key)
    assert await asyncio.wait_for(Repairs(store).repair(directory, one, [0]), 10) == 0
    assert not await store.on_index_thread(lambda: directory.index.objects_after("", 10))
    assert not directory.file_of(REF.key).exists() and directory.objects == 0


async def test_a_damaged_copy_in_a_directory_that_came_back_goes_and_the_newer_one_stays(
    tmp_path: Path,
) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    store = await TappedStore.open(paths, CHUNK, StoreLimits(1 << 30, 0), ManualClock())
    assert isinstance(store, TappedStore)
    store.released = asyncio.Queue()
    first = await filled(store, 0, 1, 2, 3)
    found = store.found(REF.key)
    assert found is not None
    failed = found[1]
    store.conditions.mark(failed, StoreFailed("a test"))
    store.release(first)
    for number in range(IDLE_OBJECTS):  # until the object is closed
        store.release(await store.acquire(ObjectRef(f"s3://b/{number}", "v", 1)))
    newer = await filled(store, 0, 1)
    await store.conditions.probe()
    (one,) = await store.on_index_thread(lambda: failed.index.objects_after("", 10))
    assert await Repairs(store).repair(failed, one, [0]) == 0
    assert list(newer.present) == [1, 1, 0, 0] and newer.path.exists()
    assert not failed.file_of(REF.key).exists() and (failed.used, failed.objects) == (0, 0)
    await store.close()


async def test_a_chunk_that_has_no_row_lowers_nothing(store: TappedStore) -> None:
    cached = await filled(store, 0)
    index = store.directories[0].index
    await store.on_index_thread(lambda: index.settle(cached.row, (), [(0, CHUNK), (1, CHUNK)]))
    assert (await store.on_index_thread(index.totals)).bytes == 0
