"""A dataset is filled in the background, a few chunks at a time, and a full store ends it."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from agent.cache.fill import Filler
from agent.cache.setbacks import LAST_RESPITE, SETBACK_SECONDS
from agent.cache.warm import AGAIN, WINDOW, Warming
from agent.content import ListedObject, ObjectRef, build_dataset
from agent.errors import AccessDenied, OriginUnavailable
from agent.metrics import Metrics
from agent.source import Budget
from tests.agent.cache.conftest import CHUNK, open_store
from tests.fakes.clock import ManualClock
from tests.fakes.source import Gate, MemorySource

FILES = {f"s3://b/{number}": bytes([number]) * (3 * CHUNK) for number in range(5)}
DATASET = build_dataset(
    "s3://b", [ListedObject(uri[7:], ObjectRef(uri, "v", len(data))) for uri, data in FILES.items()]
)


async def let_pass(clock: ManualClock) -> None:
    """Whoever sleeps has slept."""
    while True:
        clock.advance(await clock.next_sleep())


async def fill(path: Path, source: MemorySource, capacity: int = 1 << 30) -> int:
    """Warm the dataset to its end, however long it sleeps; how many bytes are there then."""
    store, clock = await open_store(path, capacity), ManualClock()
    filler = Filler(store, source, clock, Metrics(), 60.0, random.Random(1))
    warming = Warming(store, filler, DATASET)
    passing = asyncio.create_task(let_pass(clock))
    await asyncio.wait_for(warming.ended(), 10)
    passing.cancel()
    present = await store.present_bytes([entry.ref.key for entry in DATASET.entries])
    await filler.close()
    await store.close()
    return sum(present.values())


async def test_every_byte_comes_and_only_a_few_chunks_are_wanted_at_once(tmp_path: Path) -> None:
    source = MemorySource(FILES, Budget("memory", 100, 1 << 30, 30.0))
    gates = [Gate() for _ in range(15)]
    for gate in gates:
        source.script(gate)
    task = asyncio.create_task(fill(tmp_path / "store", source))
    for gate in gates[:WINDOW]:
        await asyncio.wait_for(gate.reached.wait(), 10)
    assert len(source.fetches) == WINDOW
    for gate in gates:
        gate.open.set()
    assert await task == 15 * CHUNK


async def test_a_full_store_ends_it(tmp_path: Path) -> None:
    assert await fill(tmp_path / "store", MemorySource(FILES), capacity=4 * CHUNK) == 4 * CHUNK


async def test_a_chunk_that_the_origin_could_not_give_is_tried_again_though_nobody_reads_it(
    tmp_path: Path,
) -> None:
    source = MemorySource(FILES, Budget("memory", 4, 1 << 30, 0.0))
    source.script(OriginUnavailable("no"))
    assert await fill(tmp_path / "store", source) == 15 * CHUNK
    assert len(source.fetches) == 16


async def test_a_chunk_that_cannot_be_had_at_all_is_passed_over(tmp_path: Path) -> None:
    source = MemorySource(FILES, Budget("memory", 4, 1 << 30, 0.0))
    source.script(AccessDenied("no"))
    assert await fill(tmp_path / "store", source) == 14 * CHUNK
    assert len(source.fetches) == 15


async def test_an_origin_that_stays_away_is_asked_a_few_times_with_longer_and_longer_rests(
    tmp_path: Path,
) -> None:
    store, clock = await open_store(tmp_path / "store"), ManualClock()
    source = MemorySource(FILES, Budget("memory", 4, 1 << 30, 0.0))
    source.outage = OriginUnavailable("no")
    filler = Filler(store, source, clock, Metrics(), 60.0, random.Random(1))
    warming = Warming(store, filler, DATASET)
    rests = []
    for _ in range(AGAIN):
        rests.append(await clock.next_sleep())
        clock.advance(rests[-1])
    await asyncio.wait_for(warming.ended(), 10)
    assert len(source.fetches) == 15 * (1 + AGAIN)
    assert rests[0] >= SETBACK_SECONDS and max(rests) <= LAST_RESPITE
    assert all(later > 2 * earlier for earlier, later in zip(rests, rests[2:5], strict=False))
    await filler.close()
    await store.close()


async def test_who_cancels_gets_no_more_chunks(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "store")
    source = MemorySource(FILES, Budget("memory", 2, 1 << 30, 30.0))
    gate = Gate()
    source.script(gate)
    filler = Filler(store, source, ManualClock(), Metrics(), 60.0, random.Random(1))
    warming = Warming(store, filler, DATASET)
    await asyncio.wait_for(gate.reached.wait(), 10)
    warming.cancel()
    gate.open.set()
    await asyncio.wait_for(warming.ended(), 10)
    assert len(source.fetches) < 15
    await filler.close()
    await store.close()
