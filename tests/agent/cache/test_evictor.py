"""Eviction carried out on a real store: what goes, what stays, and what the disk has again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Set
from pathlib import Path

import pytest

from agent.cache.directory import State
from agent.cache.evictor import CHECK_SECONDS, Evictor
from agent.cache.objects import CachedObject
from agent.cache.pins import Pins
from agent.cache.store import Store
from agent.content import Extent, ObjectRef
from agent.errors import StoreFailed
from agent.metrics import Metrics
from agent.transfer.landing import Landing
from tests.agent.cache.conftest import CHUNK, open_store
from tests.fakes.clock import ManualClock


class Claimed:
    """Sets that a test fills."""

    def __init__(self) -> None:
        self.on_mounts: set[str] = set()
        self.opened: set[str] = set()
        self.held: set[str] = set()
        self.wanted: set[int] = set()  # of each object

    def mounted(self) -> Set[str]:
        return self.on_mounts

    def leased(self) -> Set[str]:
        return self.opened

    def pinned(self) -> Set[str]:
        return self.held

    def awaited(self, key: str) -> Set[int]:
        return self.wanted


class Site:
    """A store for ten chunks with its evictor."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.clock = ManualClock()
        self.claims = Claimed()
        self.metrics = Metrics("test")
        self.evictor = Evictor(store, self.claims, self.clock, self.metrics)
        self.evictor.start()

    async def add(self, name: str, chunks: int, present: int, keep: bool = False) -> CachedObject:
        """An object with its first chunks present; each byte of it is the number of its chunk."""
        cached = await self.store.acquire(ref(name, chunks))
        for chunk in range(present):
            await fill(self.store, cached, chunk)
        cached.use()
        if not keep:
            self.store.release(cached)
        return cached

    async def evict(self, chunks: int) -> bool:
        directory = self.store.directories[0]
        return await asyncio.wait_for(self.evictor.evict(directory, chunks * CHUNK), 10)

    async def present(self, name: str, chunks: int) -> int:
        found = await self.store.present_bytes([ref(name, chunks).key])
        return sum(found.values()) // CHUNK

    async def end(self) -> None:
        await asyncio.wait_for(self.evictor.close(), 10)
        await self.store.close()


def ref(name: str, chunks: int) -> ObjectRef:
    return ObjectRef(f"s3://b/{name}", "v", chunks * CHUNK)


async def fill(store: Store, cached: CachedObject, chunk: int) -> None:
    await store.emptied(cached, chunk)
    store.reserve(cached, chunk)
    extent = cached.extent(chunk)
    os.pwrite(cached.fd, bytes([chunk + 1]) * extent.length, extent.offset)
    await store.record(cached, chunk, bytes(16))


async def make(path: Path) -> Site:
    return Site(await open_store(path, capacity=10 * CHUNK))


def on_disk(store: Store, name: str, chunks: int) -> int:
    return os.stat(store.directories[0].file_of(ref(name, chunks).key)).st_blocks * 512


async def test_the_coldest_complete_object_goes_whole_and_its_file_with_it(tmp_path: Path) -> None:
    site = await make(tmp_path)
    for name in ("cold", "warm"):
        await site.add(name, 4, 4)
    path = site.store.directories[0].file_of(ref("cold", 4).key)
    assert await site.evict(3)
    assert (await site.present("cold", 4), await site.present("warm", 4)) == (0, 4)
    assert not path.exists()
    directory = site.store.directories[0]
    assert (directory.used, directory.chunks, directory.objects) == (4 * CHUNK, 4, 1)
    assert site.metrics.counters()['headrace_evicted_total{kind="object"}'] == 1
    await site.end()


async def test_of_an_object_that_was_never_complete_go_the_chunks_used_longest_ago(tmp_path: Path) -> None:
    site = await make(tmp_path)
    cached = await site.add("part", 9, 8, keep=True)
    assert cached.begin_read(Extent(0, 1))
    cached.end_read(Extent(0, 1))
    assert await site.evict(4)
    assert list(cached.present) == [1, 0, 0, 1, 1, 1, 1, 1, 0]
    assert on_disk(site.store, "part", 9) == 6 * CHUNK
    assert site.store.directories[0].used == 6 * CHUNK
    await fill(site.store, cached, 1)
    assert os.pread(cached.fd, 2, CHUNK) == b"\2\2"
    await site.end()


async def test_what_is_being_read_is_punched_only_when_the_read_has_ended(tmp_path: Path) -> None:
    site = await make(tmp_path)
    cached = await site.add("part", 9, 8, keep=True)
    extent = Extent(CHUNK, 10)
    assert cached.begin_read(extent)
    for chunk in (0, *range(2, 8)):
        cached.arrived(chunk)
    evicting = asyncio.create_task(site.evict(3))
    while cached.present[1]:
        await asyncio.wait([evicting], timeout=0.01)
    assert not cached.begin_read(extent), "nobody else comes in"
    assert os.pread(cached.fd, 2, CHUNK) == b"\2\2"
    assert not evicting.done()
    cached.end_read(extent)
    assert await evicting
    assert os.pread(cached.fd, 2, CHUNK) == b"\0\0"
    await site.end()


async def test_what_is_leased_pinned_or_complete_and_open_stays(tmp_path: Path) -> None:
    site = await make(tmp_path)
    await site.add("leased", 2, 2)
    await site.add("pinned", 3, 2)
    await site.add("open", 2, 2, keep=True)
    await site.add("free", 2, 2)
    site.claims.opened.add(ref("leased", 2).key)
    site.claims.held.add(ref("pinned", 3).key)
    assert await site.evict(10)
    left = [await site.present(name, 3 if name == "pinned" else 2) for name in ("leased", "pinned", "open")]
    assert (left, await site.present("free", 2)) == ([2, 2, 2], 0)
    assert not await site.evict(10)
    await site.end()


async def test_what_a_read_wants_together_with_another_chunk_stays(tmp_path: Path) -> None:
    site = await make(tmp_path)
    cached = await site.add("part", 9, 4, keep=True)
    cached.landings[4] = Landing(cached.fd, cached.extent(4))
    site.claims.wanted = {0, 2, 4}
    assert await site.evict(9)
    assert list(cached.present) == [1, 0, 1, 0, 0, 0, 0, 0, 0]
    await site.end()


async def test_what_mounts_show_goes_after_what_none_shows(tmp_path: Path) -> None:
    site = await make(tmp_path)
    await site.add("mounted", 4, 4)
    await site.add("other", 4, 4)
    site.claims.on_mounts.add(ref("mounted", 4).key)
    assert await site.evict(3)
    assert (await site.present("mounted", 4), await site.present("other", 4)) == (4, 0)
    await site.end()


async def test_eviction_begins_at_the_high_watermark_and_ends_at_the_low_one(tmp_path: Path) -> None:
    site = await make(tmp_path)
    site.store.directories[0].low_watermark = 0.5
    cached = await site.add("part", 20, 9, keep=True)
    assert site.store.directories[0].used == 9 * CHUNK
    await fill(site.store, cached, 9)
    while site.store.directories[0].used > 5 * CHUNK:
        site.clock.advance(CHECK_SECONDS)
        await asyncio.wait([asyncio.create_task(site.store.blocking(lambda: None))])
    assert [number for number, there in enumerate(cached.present) if there] == [5, 6, 7, 8, 9]
    await site.end()


async def test_chunks_of_an_object_that_is_not_open_go_too(tmp_path: Path) -> None:
    first = await make(tmp_path)
    await first.add("part", 9, 8)
    await first.end()
    site = await make(tmp_path)
    assert await site.evict(4)
    assert on_disk(site.store, "part", 9) == 6 * CHUNK
    cached = await site.store.acquire(ref("part", 9))
    assert list(cached.present) == [0, 0, 1, 1, 1, 1, 1, 1, 0]
    await site.end()


async def test_uses_are_remembered_over_a_restart(tmp_path: Path) -> None:
    first = await make(tmp_path)
    for name in ("a", "b"):
        await first.add(name, 4, 4)
    (await first.store.acquire(ref("a", 4))).use()
    await first.end()
    site = await make(tmp_path)
    assert await site.evict(3)
    assert (await site.present("a", 4), await site.present("b", 4)) == (4, 0)
    await site.end()


async def test_pins_are_durable_and_end_at_their_own_time_wherever_the_clock_goes(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    clock = ManualClock()
    pins = Pins(store, clock, Metrics("test"))
    now = clock.time()
    pin = await pins.add("s3://b", "r", ["k"], now + 3600, "the campaign")
    clock.shift(24 * 3600)
    assert pins.keys() == set() and pins.active() == []
    clock.shift(-48 * 3600)
    again = Pins(store, clock, Metrics("test"))
    await again.load()
    assert again.active() == [pin] and again.keys() == {"k"}
    clock.shift(24 * 3600)
    assert again.keys() == {"k"}
    await again.remove(pin.id)
    assert again.active() == []
    await store.close()


@pytest.mark.parametrize("day", [24 * 3600.0, -24 * 3600.0])
async def test_a_clock_that_is_moved_evicts_nothing_and_holds_nothing_up(tmp_path: Path, day: float) -> None:
    site = await make(tmp_path)
    pins = Pins(site.store, site.clock, Metrics("test"))
    pin = await pins.add("s3://b", "r", [ref("kept", 2).key], site.clock.time() + 3600, "a test")
    await site.add("kept", 2, 2)
    await site.add("cold", 4, 4)
    site.clock.shift(day)
    site.clock.advance(CHECK_SECONDS)
    await asyncio.wait([asyncio.create_task(site.store.blocking(lambda: None))])
    assert (await site.present("kept", 2), await site.present("cold", 4)) == (2, 4)
    site.claims.held |= pins.keys()
    assert await site.evict(10)
    kept = 0 if day > 0 else 2  # the clock is past the end of the pin, or before it
    assert (await site.present("kept", 2), await site.present("cold", 4)) == (kept, 0)
    await site.add("new", 5, 5)
    site.clock.shift(-day)
    assert pins.active() == [pin], "it ends at its own time"
    await site.end()


async def test_what_the_disk_does_not_give_back_is_absent_and_not_kept_there_again(tmp_path: Path) -> None:
    site = await make(tmp_path)
    cached = await site.add("part", 9, 3, keep=True)
    site.store.lost(cached, range(1, 2))
    assert list(cached.present) == [1, 0, 1, 0, 0, 0, 0, 0, 0]
    assert site.store.directories[0].used == 2 * CHUNK
    with pytest.raises(StoreFailed, match="give back"):
        site.store.reserve(cached, 1)
    site.store.release(cached)
    await site.end()
    again = await make(tmp_path)
    cached = await again.store.acquire(ref("part", 9))
    assert list(cached.present) == [1, 0, 1, 0, 0, 0, 0, 0, 0]
    await fill(again.store, cached, 1)
    await again.end()


async def test_what_a_crash_left_on_the_disk_without_rows_is_given_back_at_the_next_open(
    tmp_path: Path,
) -> None:
    first = await make(tmp_path)
    cached = await first.add("part", 9, 6, keep=True)
    gone = [(chunk, CHUNK) for chunk in (0, 2, 3, 5)]
    await first.store.blocking(first.store.directories[0].index.settle, cached.row, (), gone)
    os.pwrite(cached.fd, b"x" * 100, 7 * CHUNK)  # it was being filled
    os.posix_fallocate(cached.fd, 8 * CHUNK, CHUNK)  # as was this one, and no byte had come
    first.store.release(cached)
    await first.end()
    site = await make(tmp_path)
    assert on_disk(site.store, "part", 9) > 7 * CHUNK
    cached = await site.store.acquire(ref("part", 9))
    assert list(cached.present) == [0, 1, 0, 0, 1, 0, 0, 0, 0]
    assert on_disk(site.store, "part", 9) == 2 * CHUNK
    assert os.pread(cached.fd, 1, CHUNK) + os.pread(cached.fd, 1, 4 * CHUNK) == b"\2\5"
    await site.end()


async def test_what_was_cut_off_is_absent_before_a_fill_can_make_the_file_longer(tmp_path: Path) -> None:
    site = await make(tmp_path)
    cached = await site.add("part", 9, 4, keep=True)
    os.truncate(cached.path, CHUNK + 10)
    with pytest.raises(StoreFailed, match="cut short"):
        site.store.reserve(cached, 8)
    assert list(cached.present) == [1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert site.store.directories[0].used == CHUNK
    site.store.release(cached)
    await site.end()
    again = await make(tmp_path)
    cached = await again.store.acquire(ref("part", 9))
    assert not any(cached.present) and os.fstat(cached.fd).st_size == 9 * CHUNK
    await fill(again.store, cached, 8)
    await again.end()


async def test_a_read_that_comes_short_takes_all_that_was_cut_off_with_it(tmp_path: Path) -> None:
    site = await make(tmp_path)
    cached = await site.add("whole", 4, 4, keep=True)
    os.truncate(cached.path, CHUNK)
    site.store.lost(cached, range(3, 4))
    assert list(cached.present) == [1, 0, 0, 0] and not cached.complete
    site.store.release(cached)
    await site.end()


async def test_a_disk_that_does_not_tell_its_room_is_marked(tmp_path: Path) -> None:
    site = await make(tmp_path / "store")
    cached = await site.add("part", 9, 1, keep=True)
    directory = site.store.directories[0]
    there = directory.path
    directory.path = tmp_path / "gone"
    with pytest.raises(StoreFailed, match="cannot ask"):
        site.store.reserve(cached, 1)
    assert directory.state is State.FAILED
    directory.path = there
    site.store.release(cached)
    await site.end()
