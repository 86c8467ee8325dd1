"""Real swarms on loopback: libtorrent between two and three agents, each on an address of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from agent.content import ObjectRef
from tests.agent.peers.conftest import random_bytes
from tests.harness.members import Member, addresses, member

CHUNK = 2 << 20
SIZES = {"a": 9 * (1 << 20) + 4321, "b": 3 << 20, "c": 777}
DATA = {
    f"s3://models/swarm/{name}": random_bytes(size, seed) for seed, (name, size) in enumerate(SIZES.items())
}
REFS = [ObjectRef(uri, "etag-1", len(data)) for uri, data in DATA.items()]
TOTAL = sum(SIZES.values())
WITHIN = 30.0

Start = Callable[[int], Awaitable[Member]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts one of three agents."""
    known = addresses(3)
    async with AsyncExitStack() as stack:

        async def begin(number: int) -> Member:
            return await stack.enter_async_context(member(tmp_path, known, number, DATA, CHUNK))

        yield begin


async def warm(*members: Member) -> None:
    async with asyncio.timeout(WITHIN):
        await asyncio.gather(*(one.swarming.warm(REFS) for one in members))


async def keep_all(one: Member) -> None:
    for ref in REFS:
        await one.keep(ref, DATA[ref.uri])


async def has_all(one: Member) -> bool:
    return [await one.content(ref) for ref in REFS] == list(DATA.values())


async def test_what_another_has_comes_by_the_swarm_and_no_byte_of_it_from_the_origin(start: Start) -> None:
    first, second = await start(0), await start(1)
    await keep_all(first)
    await warm(second)
    assert await has_all(second)
    assert second.swarm_bytes == TOTAL
    assert first.origin_bytes == second.origin_bytes == 0


async def test_agents_that_warm_at_once_have_each_byte_of_the_origin_once(start: Start) -> None:
    members = [await start(number) for number in range(3)]
    await warm(*members)
    assert [await has_all(one) for one in members] == [True] * 3
    assert sum(one.origin_bytes for one in members) == TOTAL
    assert sum(one.swarm_bytes for one in members) > 0


async def test_two_that_have_halves_bring_a_third_the_whole(start: Start) -> None:
    first, second, third = [await start(number) for number in range(3)]
    for ref in REFS:
        count = -(-ref.size // CHUNK)
        await first.keep(ref, DATA[ref.uri], range(0, count, 2))
        await second.keep(ref, DATA[ref.uri], range(1, count, 2))
    await warm(third)
    assert await has_all(third)
    assert third.swarm_bytes == TOTAL
    assert not any(one.origin_bytes for one in (first, second, third))


async def test_an_agent_without_peers_warms_from_the_origin(start: Start) -> None:
    alone = await start(0)
    await warm(alone)
    assert await has_all(alone)
    assert (alone.origin_bytes, alone.swarm_bytes) == (TOTAL, 0)
