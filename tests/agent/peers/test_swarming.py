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
