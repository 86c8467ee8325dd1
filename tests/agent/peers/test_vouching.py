"""Digests for what is in the store already: made of the bytes that were recorded, and of no others."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.content import Extent, ObjectRef
from agent.errors import HeadraceError, VersionChanged
from agent.peers import courier
from agent.peers.digests import UnitDigests
from agent.peers.secrets import Secrets
from agent.peers.token import Tokens
from agent.peers.units import UNIT, length_with_digests, unit_digest
from agent.peers.vouching import Vouching
from agent.source import Budget, Urgency
from tests.agent.peers import test_urgent
from tests.agent.peers.conftest import CHUNK, Serve, random_bytes
from tests.fakes.source import Gate
from tests.harness.members import addresses, member
from tests.harness.units import without_digests

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


@pytest.mark.parametrize("proven", [True, False])
async def test_what_its_origin_proves_behind_the_last_byte_no_peer_gets_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proven: bool
) -> None:
    monkeypatch.setattr(courier, "LOOK_EVERY", 60.0)  # the end of the flight tells, not the next look
    chunk, ref = test_urgent.CHUNK, ObjectRef(REF.uri, REF.version, len(test_urgent.DATA))
    everybody, clock = addresses(2), SystemClock()
    budget = Budget("late", connections=4, bytes_in_flight=1 << 30, deadline=30.0, proven_late=True)
    data = {ref.uri: test_urgent.DATA}
    async with member(tmp_path, everybody, 0, data, chunk, swarm=False, budget=budget) as head:
        tokens = Tokens(Secrets(tmp_path / "peer-secret", clock), clock, everybody[1])
        began, arrived, over = Gate(), Gate(), list[HeadraceError | None]()
        head.origin.script(
            UNIT, began, chunk - UNIT, arrived, *([] if proven else [VersionChanged("another one")])
        )
        cached = await head.store.acquire(ref)
        assert head.filler.preload(cached, 0, head, over.append, Urgency.PREFETCH)
        async with asyncio.timeout(20):
            await began.reached.wait()
            wire = await test_urgent.asked(head, tokens, ref, 0, urgent=False)
            began.open.set()
            await arrived.reached.wait()
            assert cached.begin_read(Extent(0, chunk))  # the head's own readers have them
            cached.end_read(Extent(0, chunk))
            sent = asyncio.ensure_future(wire.reader.read(1))
            done, _ = await asyncio.wait([sent], timeout=0.2)
            assert not done
            arrived.open.set()
            first = await sent
            if proven:
                body = first + await wire.reader.readexactly(length_with_digests(Extent(0, chunk)) - 1)
                assert without_digests(body) == test_urgent.part(0)
            else:
                assert first == b""
        assert [type(error) for error in over] == ([type(None)] if proven else [VersionChanged])
        await wire.close()
        head.store.release(cached)
