"""Which file a backing id is of while the store replaces files: a real holder, a real store."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import pytest
import xxhash

from agent.cache.departure import IDLE_OBJECTS
from agent.cache.objects import CachedObject
from agent.cache.repair import Repairs
from agent.cache.store import Store
from agent.content import ObjectRef
from agent.mount.holder import Holder
from agent.mount.operations import join
from agent.mount.passthrough import Passthrough
from tests.agent.cache.conftest import CHUNK, open_store
from tests.csi.holding import HolderProcess, answer_one, running_holder

GOOD = b"g" * CHUNK
REF = ObjectRef("s3://b/k", "v", CHUNK)
INO = 2


class TappedHolder(Holder):
    """The real one; `files` has the inode that each id was asked for, `asked` is called in between."""

    files: dict[int, int]
    asked: Callable[[], object]

    def backing_open(self, mount: str, nodeid: int, fd: int) -> int:
        backing = super().backing_open(mount, nodeid, fd)
        self.files[nodeid] = os.fstat(fd).st_ino
        self.asked()
        return backing

    def backing_close(self, mount: str, nodeid: int) -> None:
        super().backing_close(mount, nodeid)
        self.files.pop(nodeid, None)


@dataclass
class Site:
    store: Store
    holder: TappedHolder
    passthrough: Passthrough

    async def fill(self) -> CachedObject:
        """The object, whole; it is held."""
        cached = await self.store.acquire(REF)
        self.store.reserve(cached, 0)
        os.pwrite(cached.fd, GOOD, 0)
        await self.store.record(cached, 0, xxhash.xxh3_128_digest(GOOD))
        return cached

    async def mend(self, cached: CachedObject) -> None:
        """Damage the object's file, repair it and fill it again."""
        with cached.path.open("r+b") as file:
            file.write(b"x")
        directory = self.store.directories[0]
        (one,) = await self.store.on_index_thread(lambda: directory.index.objects_after("", 10))
        assert await Repairs(self.store).repair(directory, one, [0]) == 1
        self.store.release(await self.fill())


@pytest.fixture
def process() -> Iterator[HolderProcess]:
    with running_holder() as running:
        yield running


@pytest.fixture
async def site(process: HolderProcess) -> AsyncIterator[Site]:
    holder, table, _ = TappedHolder.claim(process.socket, "test")
    assert isinstance(holder, TappedHolder)
    holder.files, holder.asked = {}, lambda: None
    held = holder.mount("m", {})
    answer_one(held.fd)
    store = await open_store(process.store / "cache")
    passthrough = Passthrough("m", holder, asyncio.get_running_loop(), {})
    passthrough.allow(True)

    async def let_go(key: str) -> None:
        assert key == REF.key
        await passthrough.let_go({INO})

    store.before_removal = let_go
    yield Site(store, holder, passthrough)
    await store.close()
    holder.close()
    os.close(held.fd)
    os.close(table.fd)


async def test_a_file_that_was_repaired_is_opened_under_the_next_generation_and_an_id_of_its_own(
    site: Site,
) -> None:
    cached = await site.fill()
    damaged = os.fstat(cached.fd).st_ino
    assert await site.passthrough.generation(INO, cached) == 1
    assert site.holder.files == {join(INO, 1): damaged}
    await site.mend(cached)
    assert cached.complete and not site.holder.files
    assert await site.passthrough.generation(INO, cached) == 3
    assert site.holder.files == {join(INO, 3): os.fstat(cached.fd).st_ino}
    assert os.fstat(cached.fd).st_ino != damaged
    site.store.release(cached)


async def test_an_id_that_a_repair_overtakes_is_not_kept(site: Site) -> None:
    cached = await site.fill()
    loop = asyncio.get_running_loop()

    def mend() -> None:
        site.holder.asked = lambda: None
        asyncio.run_coroutine_threadsafe(site.mend(cached), loop).result(20)

    site.holder.asked = mend
    assert await site.passthrough.generation(INO, cached) == 0
    assert not site.passthrough.backing
    await site.passthrough.let_go({INO})
    assert cached.complete and not site.passthrough.backing
    site.store.release(cached)


async def test_an_id_that_a_predecessor_may_have_left_open_is_not_given_again_after_a_repair(
    site: Site,
) -> None:
    cached = await site.fill()
    assert await site.passthrough.generation(INO, cached) == 1
    site.passthrough.unsure.add(join(INO, 1))
    await site.mend(cached)
    assert join(INO, 1) in site.holder.files  # the kernel may have it open
    site.passthrough.forgotten(join(INO, 1), 1)
    await asyncio.sleep(0)
    assert await site.passthrough.generation(INO, cached) == 3
    assert site.holder.files[join(INO, 3)] == os.fstat(cached.fd).st_ino
    site.store.release(cached)


async def test_no_id_is_asked_for_an_object_that_is_not_complete_any_more(site: Site) -> None:
    cached = await site.fill()
    cached.unpublish(0)
    assert await site.passthrough.backing_id(join(INO, 1), cached) is None
    assert not site.holder.files
    site.store.release(cached)


async def test_a_file_that_is_begun_anew_is_let_go_before_it_can_be_filled(site: Site) -> None:
    cached = await site.fill()
    assert await site.passthrough.generation(INO, cached) == 1
    os.truncate(cached.path, 10)
    site.store.release(cached)
    for number in range(IDLE_OBJECTS):  # until the object is closed
        site.store.release(await site.store.acquire(ObjectRef(f"s3://b/{number}", "v", 1)))
    assert site.store.peek(REF) is None
    cached = await site.fill()
    assert await site.passthrough.generation(INO, cached) == 3
    assert site.holder.files == {join(INO, 3): os.fstat(cached.fd).st_ino}
    site.store.release(cached)
