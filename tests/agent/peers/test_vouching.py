"""Digests for what is in the store already: made of the bytes that were recorded, and of no others."""

from __future__ import annotations

import os

import pytest

from agent.content import Extent, ObjectRef
from agent.peers.digests import UnitDigests
from agent.peers.units import UNIT, unit_digest
from agent.peers.vouching import Vouching
from tests.agent.peers.conftest import CHUNK, Serve, random_bytes

SIZE = CHUNK + 12345
REF = ObjectRef("s3://models/llama/weights", "etag-1", SIZE)
DATA = random_bytes(SIZE)


async def test_what_is_present_has_its_digests_and_what_is_not_has_none(serve: Serve) -> None:
    served = await serve()
    cached = await served.keep(REF, DATA, 1)
    digests = UnitDigests()
    assert await Vouching(served.store, digests).vouch(cached, Extent(0, SIZE))
    assert digests.get(REF.key, CHUNK // UNIT) == unit_digest(DATA[CHUNK:])
    assert digests.get(REF.key, 0) is None


async def test_digests_that_came_with_the_bytes_are_not_made_again(serve: Serve) -> None:
    served = await serve()
    cached = await served.keep(REF, DATA)
    digests = UnitDigests()
    digests.put(REF.key, CHUNK // UNIT, b"as it came in ok")
    vouching = Vouching(served.store, digests)
    os.pwrite(cached.fd, b"damaged", CHUNK)
    assert await vouching.vouch(cached, Extent(CHUNK, 12345))  # whoever receives it finds that out
    assert vouching.digest(cached, CHUNK // UNIT) == b"as it came in ok"


async def test_a_damaged_chunk_gets_no_digests_that_make_it_right(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    served = await serve()
    cached = await served.keep(REF, DATA)
    os.pwrite(cached.fd, b"damaged", 5)
    digests = UnitDigests()
    vouching = Vouching(served.store, digests)
    assert not await vouching.vouch(cached, Extent(0, UNIT))
    assert digests.get(REF.key, 0) is None
    assert "damaged" in caplog.text
    assert await vouching.vouch(cached, Extent(CHUNK, 12345))


async def test_a_unit_that_came_another_way_while_it_is_sent_has_its_digest_made(serve: Serve) -> None:
    served = await serve()
    cached = await served.keep(REF, DATA)
    digests = UnitDigests()
    assert Vouching(served.store, digests).digest(cached, 1) == unit_digest(DATA[UNIT : 2 * UNIT])
    assert digests.get(REF.key, 1) == unit_digest(DATA[UNIT : 2 * UNIT])
