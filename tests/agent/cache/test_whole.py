"""Whole objects against what their origin states, over a real store and a source in memory."""

from __future__ import annotations

import asyncio
import hashlib
import random
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.cache.fill import Filler
from agent.cache.repair import Repairs
from agent.cache.whole import SETTLED, WholeObjects
from agent.content import ObjectRef
from agent.errors import ChecksumDiffers, HeadraceError, OriginUnavailable
from agent.metrics import Metrics
from agent.source import Checksum
from tests.agent.cache.conftest import CHUNK, TappedStore, open_store
from tests.fakes.clock import ManualClock
from tests.fakes.source import MemorySource
from tests.harness.sink import MemorySink

DATA = random.Random(4).randbytes(2 * CHUNK + 5)
REF = ObjectRef("s3://bucket/object", "v1", len(DATA))
RIGHT = Checksum("sha256", hashlib.sha256(DATA).digest())
WRONG = Checksum("sha256", bytes(32))


class StatingSource(MemorySource):
    """Says `stated` of each object, or fails with it; `asked` counts."""

    stated: Checksum | HeadraceError | None = None
    asked = 0

    async def checksum(self, ref: ObjectRef) -> Checksum | None:
        self.asked += 1
        if isinstance(self.stated, HeadraceError):
            raise self.stated
        return self.stated


class Node:
    """A store whose fills go through the checks."""

    def __init__(self, store: TappedStore) -> None:
        self.store = store
        self.clock = ManualClock()
        self.metrics = Metrics()
        self.source = StatingSource({REF.uri: DATA})
        self.whole = WholeObjects(store, Repairs(store), self.source, self.clock, self.metrics)
        self.filler = Filler(store, self.whole, self.clock, self.metrics, 60.0, random.Random(1))

    async def fill(self) -> HeadraceError | None:
        """Fill what is absent, as warming does; the last error."""
        cached = await self.store.acquire(REF)
        errors: list[HeadraceError | None] = []
        for chunk in range(3):
            told = asyncio.Event()

            def tell(error: HeadraceError | None, told: asyncio.Event = told) -> None:
                errors.append(error)
                told.set()

            if self.filler.preload(cached, chunk, self, tell):
                await asyncio.wait_for(told.wait(), 10)
        self.store.release(cached)
        return errors[-1] if errors else None

    async def check(self) -> bool:
        return await asyncio.wait_for(self.whole.check(REF), 10)

    async def close(self) -> None:
        await self.filler.close()
        await self.whole.close()


@pytest.fixture
async def node(store: TappedStore) -> AsyncIterator[Node]:
    made = Node(store)
    await made.whole.start()
    yield made
    await made.close()


@pytest.mark.parametrize(
    "stated",
    [
        RIGHT,
        Checksum("sha1", hashlib.sha1(DATA).digest()),
        Checksum("crc32", zlib.crc32(DATA).to_bytes(4, "big")),
        Checksum("crc64nvme", b"?"),
        None,
    ],
)
async def test_what_is_right_or_unstated_is_verified_and_asked_about_once(
    node: Node, stated: Checksum | None
) -> None:
    node.source.stated = stated
    assert await node.fill() is None
    directory = node.store.directories[0]
    assert await node.check()
    assert await node.whole.unverified(directory, [REF]) == []
    asked = node.source.asked
    assert await node.whole.verify(directory, [REF])
    assert node.source.asked == asked


async def test_a_complete_object_is_checked_in_the_background(node: Node) -> None:
    node.source.stated = RIGHT
    await node.fill()
    directory = node.store.directories[0]
    for _ in range(100):
        if not await node.whole.unverified(directory, [REF]):
            break
        node.clock.advance(await node.clock.next_sleep())
    assert node.source.asked == 1


async def test_one_that_has_just_been_fetched_is_left_to_its_readers_first(node: Node) -> None:
    node.source.stated = RIGHT
    await node.fill()
    assert await node.clock.next_sleep() == SETTLED
    node.clock.advance(SETTLED / 2)
    await node.whole.fetch(REF, MemorySink(0, CHUNK))
    node.clock.advance(SETTLED / 2)
    assert await node.clock.next_sleep() == SETTLED / 2
    assert not node.source.asked


async def test_one_that_differs_is_fetched_again_once_and_then_refused(node: Node, tmp_path: Path) -> None:
    node.source.stated = WRONG
    await node.fill()
    assert not await node.check()
    cached = await node.store.acquire(REF)
    assert not any(cached.present) and node.store.directories[0].used == 0
    assert await node.fill() is None
    assert cached.complete and len(node.source.fetches) == 6
    assert not await node.check()
    assert not any(cached.present)
    node.clock.advance(10)
    refused = await node.fill()
    assert isinstance(refused, ChecksumDiffers) and "s3://bucket/object" in str(refused)
    assert len(node.source.fetches) == 6
    assert node.metrics.counters()['headrace_store_damage_total{kind="object"}'] == 2
    await node.close()
    later = Node(node.store)
    await later.whole.start()
    assert isinstance(await later.fill(), ChecksumDiffers)
    await later.close()


async def test_one_that_differs_once_is_right_the_second_time(node: Node) -> None:
    node.source.stated = WRONG
    await node.fill()
    assert not await node.check()
    node.source.stated = RIGHT
    await node.fill()
    assert await node.check()


async def test_an_origin_that_is_down_leaves_the_question_open(node: Node) -> None:
    node.source.stated = OriginUnavailable("down")
    await node.fill()
    assert not await node.check()
    node.source.stated = RIGHT
    assert await node.check()


async def test_a_verdict_goes_with_the_bytes_that_it_is_about(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    node = Node(store)
    node.source.stated = RIGHT
    await node.whole.start()
    await node.fill()
    assert await node.check()
    directory = store.directories[0]
    await store.on_index_thread(lambda: directory.index.settle(1, (), [(0, CHUNK)]))
    assert await node.whole.unverified(directory, [REF]) == [REF]
    await node.close()
    await store.close()
