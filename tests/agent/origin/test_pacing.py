"""A cluster's rate in equal parts, and Retry-After for all fetches, however many agents lie about it."""

from __future__ import annotations

import asyncio
import random

import pytest

from agent.config import OriginConfig
from agent.content import ObjectRef
from agent.errors import OriginUnavailable
from agent.origin.pacing import DEAF, HEARD_MOST, LOOK_EVERY, SPREAD, TOLD_MOST, HoldOffs, PacedOrigins
from agent.source import Urgency
from tests.fakes.clock import ManualClock
from tests.fakes.source import MemorySource
from tests.harness.sink import MemorySink

MIB = 1 << 20
REF = ObjectRef("s3://models/weights", "v", MIB)


def paced(clock: ManualClock, **settings: OriginConfig) -> tuple[PacedOrigins, MemorySource]:
    origin = MemorySource({REF.uri: bytes(MIB)})
    return PacedOrigins(origin, settings, clock, random.Random(1)), origin


async def fetch(source: PacedOrigins) -> None:
    await source.fetch(REF, MemorySink(0, MIB))


async def test_an_agent_takes_its_part_of_the_clusters_rate() -> None:
    clock = ManualClock()
    source, origin = paced(clock, memory=OriginConfig(cluster_rate=MIB))
    source.members = lambda: 4
    assert source.limited
    await fetch(source)  # a quarter was saved, so three are owed: three seconds of a quarter
    second = asyncio.create_task(fetch(source))
    for _ in range(3):
        await clock.next_sleep()
        assert not second.done()
        clock.advance(1.0)
    await asyncio.wait_for(second, 10)
    assert len(origin.fetches) == 2


@pytest.mark.parametrize("comes_first", [True, False])
async def test_what_a_reader_waits_for_goes_before_all_prefetches_that_wait(comes_first: bool) -> None:
    clock = ManualClock()
    source, origin = paced(clock, memory=OriginConfig(cluster_rate=MIB))
    await fetch(source)
    await fetch(source)
    sinks = [MemorySink(0, MIB, Urgency.PREFETCH) for _ in range(4)]
    waiting = [asyncio.create_task(source.fetch(REF, sink)) for sink in sinks]
    await clock.next_sleep()
    if comes_first:
        sinks.append(MemorySink(0, MIB, Urgency.READER))
        waiting.append(asyncio.create_task(source.fetch(REF, sinks[-1])))
        await asyncio.sleep(0)
    else:
        sinks[-1].urgency = Urgency.READER  # he comes while it waits
    clock.advance(LOOK_EVERY)
    for _ in sinks:
        for _ in range(20):
            await asyncio.sleep(0)
        clock.advance(1.0)
    await asyncio.wait_for(asyncio.gather(*waiting), 10)
    assert origin.urgencies[2:].index(Urgency.READER) <= 1  # behind the one whose turn it was


async def test_without_a_rate_nothing_waits() -> None:
    source, origin = paced(ManualClock())
    assert not source.limited
    for _ in range(20):
        await fetch(source)
    assert len(origin.fetches) == 20


async def test_an_origin_that_asks_to_wait_is_left_alone_by_all_fetches_and_the_others_are_told() -> None:
    clock = ManualClock()
    source, origin = paced(clock)
    told: list[tuple[str, float]] = []
    source.tell = lambda name, seconds: told.append((name, seconds))
    origin.script(OriginUnavailable("slow down", 5.0))
    with pytest.raises(OriginUnavailable):
        await fetch(source)
    assert told == [("memory", 5.0)]
    waiting = asyncio.create_task(fetch(source))
    assert 5.0 <= await clock.next_sleep() <= 5.0 + SPREAD
    assert len(origin.fetches) == 1
    clock.advance(5.0 + SPREAD)
    await asyncio.wait_for(waiting, 10)
    assert len(origin.fetches) == 2


def test_what_the_origin_says_is_news_once_and_bounded() -> None:
    clock = ManualClock()
    held = HoldOffs(clock)
    assert held.heard("s3://", 5.0)
    assert not held.heard("s3://", 5.0)
    assert held.heard("s3://", 1e9)
    assert held.left("s3://") == HEARD_MOST
    assert held.left("hf://") == 0


def test_a_peer_that_lies_all_the_time_stops_an_agent_for_a_third_of_it_at_most() -> None:
    clock = ManualClock()
    held, stopped = HoldOffs(clock), 0
    for _ in range(1000):
        held.told("s3://", 1e9)
        stopped += held.left("s3://") > 0
        clock.advance(1.0)
    assert stopped <= 1000 * TOLD_MOST / (TOLD_MOST + DEAF) + TOLD_MOST
