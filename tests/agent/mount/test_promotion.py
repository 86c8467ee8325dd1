"""Promotion with a real store and a real holder: what is made, kept, and taken away again."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import xxhash

from agent.cache.directory import StoreLimits
from agent.cache.index import Lease
from agent.cache.store import Store
from agent.content import Dataset, Entry, ObjectRef, View, narrow
from agent.metrics import Metrics
from agent.mount.holder import Holder
from agent.mount.order import Shown
from agent.mount.promotion import Promotion, contents, tree_name
from agent.mount.tree import Tree
from tests.csi.holding import HolderProcess, ask, entries_below, path_descriptor, running_holder
from tests.fakes.clock import ManualClock

CHUNK = 64 * 1024
REF = ObjectRef("s3://b/d/file", "v1", CHUNK + 7)
DATASET = Dataset("s3://b", (Entry("d/file", REF, 5), Entry("empty", ObjectRef("s3://b/empty", "v1", 0), 9)))
SHOWN = Shown(DATASET.uri, DATASET.revision)
NAME = tree_name(SHOWN)


@dataclass
class Site:
    """A holder, a store with DATASET complete, and the promotion of both."""

    holder: HolderProcess
    claim: Holder
    store: Store
    promotion: Promotion

    def mounted(self) -> bool:
        return self.holder.mounted_at(NAME) is not None

    def trees(self) -> list[str]:
        return self.store.directories[0].trees.names()

    def bind(self, target: Path, name: str = NAME) -> None:
        target.mkdir()
        command = self.holder.connect()
        with path_descriptor(target) as descriptor:
            ask(command, "bind", {"mount": name, "target": str(target)}, [descriptor])
        command.close()


async def complete(store: Store) -> None:
    cached = await store.acquire(REF)
    for chunk in (0, 1):
        extent = cached.extent(chunk)
        store.reserve(cached, chunk)
        os.pwrite(cached.fd, b"x" * extent.length, extent.offset)
        await store.record(cached, chunk, xxhash.xxh3_128_digest(b"x" * extent.length))
    store.release(cached)


@contextlib.asynccontextmanager
async def started(store_name: str = "store", *, enabled: bool = True) -> AsyncIterator[Site]:
    with running_holder() as holder:
        claim, table, _ = Holder.claim(holder.socket, "test")
        os.close(table.fd)
        store = await Store.open([holder.base / store_name], CHUNK, StoreLimits(1 << 30, 0), ManualClock())
        await complete(store)
        await store.save_dataset(DATASET)
        promotion = Promotion(store, claim, ManualClock(), Metrics(), enabled=enabled)
        site = Site(holder, claim, store, promotion)
        try:
            yield site
        finally:
            await promotion.close()
            await store.close()
            site.claim.close()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with started() as made:
        yield made


async def test_ten_publishes_at_once_make_one_mount_and_ten_unmounts_take_it_away(site: Site) -> None:
    found = await asyncio.gather(*(site.promotion.publish(SHOWN, DATASET) for _ in range(10)))
    assert found[0] is not None and all(promoted == found[0] for promoted in found)
    assert (found[0].name, found[0].files, found[0].bytes) == (NAME, 2, CHUNK + 7)
    assert site.mounted() and site.trees() == [NAME] and NAME in site.promotion
    assert await site.store.leased_keys() == {entry.ref.key for entry in DATASET.entries if entry.ref.size}
    await asyncio.gather(*(site.promotion.unmount(NAME) for _ in range(10)))
    assert not site.mounted() and site.trees() == [] and site.promotion.listing() == []
    assert await site.store.leases() == []


async def test_two_views_and_two_identities_are_mounts_of_their_own(site: Site) -> None:
    inner = replace(SHOWN, view=View("d"))
    others = [inner, replace(SHOWN, identity="another")]
    for shown in (SHOWN, *others):
        await site.promotion.publish(shown, narrow(DATASET, shown.view))
    assert len(site.trees()) == len(entries_below(site.holder.base)) == 3
    mount = site.holder.base / "run" / "mounts" / tree_name(inner)
    assert os.listdir(mount) == ["file"]


async def test_many_promotions_leave_no_descriptor(site: Site) -> None:
    shown = [replace(SHOWN, identity=str(number)) for number in range(30)]
    counts = []
    for _ in range(3):
        await asyncio.gather(*(site.promotion.publish(one, DATASET) for one in shown))
        assert len(site.promotion.listing()) == 30
        await asyncio.gather(*(site.promotion.unmount(tree_name(one)) for one in shown))
        counts.append((len(os.listdir("/proc/self/fd")), site.holder.descriptors()))
    assert counts[1] == counts[2]
    assert entries_below(site.holder.base) == [] and site.trees() == []


async def test_a_publish_beside_an_unmount_is_mounted(site: Site) -> None:
    for _ in range(5):
        await site.promotion.publish(SHOWN, DATASET)
        await asyncio.gather(site.promotion.unmount(NAME), site.promotion.publish(SHOWN, DATASET))
        assert site.mounted() is (NAME in site.promotion) is bool(site.trees())
    await site.promotion.publish(SHOWN, DATASET)
    assert site.mounted()


async def test_who_goes_away_leaves_no_half_promotion(site: Site) -> None:
    task = asyncio.create_task(site.promotion.publish(SHOWN, DATASET))
    await asyncio.wait([task], timeout=0)
    task.cancel()
    await site.promotion.close()
    assert site.mounted() and NAME in site.promotion


async def test_what_a_target_shows_stays(site: Site) -> None:
    await site.promotion.publish(SHOWN, DATASET)
    site.bind(site.holder.base / "target")
    await site.promotion.unmount(NAME)
    assert site.mounted() and site.trees() == [NAME]
    assert (site.holder.base / "target" / "d" / "file").read_bytes() == b"x" * (CHUNK + 7)


async def test_a_mount_that_the_holder_has_given_up_is_made_again(site: Site) -> None:
    await site.promotion.publish(SHOWN, DATASET)
    site.claim.unmount(NAME)
    assert not site.mounted()
    assert await site.promotion.publish(SHOWN, DATASET) is not None
    assert site.mounted()


async def test_what_the_holder_refuses_leaves_nothing_behind() -> None:
    async with started("a-store-that-the-holder-does-not-know") as site:
        assert await site.promotion.publish(SHOWN, DATASET) is None
        assert (site.trees(), await site.store.leases()) == ([], [])
        assert entries_below(site.holder.base) == []


async def test_what_cannot_be_linked_leaves_nothing_behind(site: Site) -> None:
    site.store.directories[0].file_of(REF.key).unlink()
    assert await site.promotion.publish(SHOWN, DATASET) is None
    assert (site.trees(), await site.store.leases()) == ([], [])


async def test_nothing_is_promoted_where_it_is_not_enabled() -> None:
    async with started(enabled=False) as site:
        assert await site.promotion.publish(SHOWN, DATASET) is None
        assert site.trees() == []


async def adopted(site: Site) -> Promotion:
    """The next agent's promotion, at the same holder."""
    site.claim.close()
    site.claim, table, held = Holder.claim(site.holder.socket, "test")
    os.close(table.fd)
    successor = Promotion(site.store, site.claim, ManualClock(), Metrics(), enabled=True)
    await successor.adopt(held)
    return successor


async def test_a_successor_keeps_what_is_bound(site: Site) -> None:
    await site.promotion.publish(SHOWN, DATASET)
    site.bind(site.holder.base / "target")
    successor = await adopted(site)
    (promoted,) = successor.listing()
    assert (promoted.name, promoted.shown, promoted.files) == (NAME, SHOWN, 2)
    assert await site.store.leased_keys()


async def test_a_successor_keeps_what_is_bound_also_where_its_lease_was_lost(site: Site) -> None:
    await site.promotion.publish(SHOWN, DATASET)
    site.bind(site.holder.base / "target")
    await site.store.end_lease(site.store.directories[0], NAME)
    successor = await adopted(site)
    assert [promoted.shown for promoted in successor.listing()] == [SHOWN]
    assert (site.holder.base / "target" / "d" / "file").exists()


async def test_a_publish_mends_a_record_that_a_restarted_holder_has_lost(site: Site) -> None:
    shown = replace(SHOWN, view=View("d"))
    await site.promotion.publish(shown, narrow(DATASET, shown.view))
    name = tree_name(shown)
    site.bind(site.holder.base / "target", name)
    site.claim.close()
    site.holder.kill()
    site.holder = HolderProcess(site.holder.base)
    successor = await adopted(site)
    assert [(promoted.name, promoted.shown.uri) for promoted in successor.listing()] == [(name, SHOWN.uri)]
    promoted = await successor.publish(shown, narrow(DATASET, shown.view))
    assert promoted is not None and (promoted.shown, promoted.files) == (shown, 1)
    site.holder.close()


async def test_a_successor_takes_away_what_nobody_shows(site: Site) -> None:
    await site.promotion.publish(SHOWN, DATASET)
    directory = site.store.directories[0]
    await site.store.lease(directory, Lease("t-without-a-tree", "s3://b", "r", 1.0), [])
    successor = await adopted(site)
    assert successor.listing() == [] and not site.mounted() and site.trees() == []
    assert await site.store.leases() == []


async def test_a_holder_that_ends_meanwhile_does_not_stop_a_successor(site: Site) -> None:
    await site.promotion.publish(SHOWN, DATASET)
    site.claim.close()
    claim, table, held = Holder.claim(site.holder.socket, "test")
    os.close(table.fd)
    site.claim = claim
    site.holder.kill()
    successor = Promotion(site.store, claim, ManualClock(), Metrics(), enabled=True)
    await successor.adopt(held)
    assert successor.listing() == [] and site.trees() == []


def test_a_tree_is_made_of_the_names_and_times_that_fuse_shows() -> None:
    directories, files = contents(Tree(DATASET))
    assert [(item.path, item.mtime_ns) for item in directories] == [(b"", 9), (b"d", 5)]
    assert [(item.path, item.size, item.mtime_ns) for item in files] == [
        (b"d/file", CHUNK + 7, 5),
        (b"empty", 0, 9),
    ]
