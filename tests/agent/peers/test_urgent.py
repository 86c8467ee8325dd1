"""A reader that jumps about, over whole agents and their ports: who goes first, who leaves a path."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from agent.cache.objects import CachedObject
from agent.clock import SystemClock
from agent.content import Extent, ObjectRef
from agent.errors import HeadraceError
from agent.peers import paths
from agent.peers.member import Peer
from agent.peers.placement import tracker_of
from agent.peers.protocol import URGENT_HEADER, object_target, range_header
from agent.peers.secrets import Secrets
from agent.peers.token import Tokens
from agent.peers.units import length_with_digests
from agent.source import Budget
from tests.agent.peers.conftest import random_bytes
from tests.agent.peers.test_exchange_server import Wire, get
from tests.fakes.rogue_peer import RoguePeer
from tests.fakes.source import Gate
from tests.harness.members import Member, addresses, member
from tests.harness.s3 import free_ports
from tests.harness.units import without_digests

CHUNK = 8 << 20
SENT = length_with_digests(Extent(0, CHUNK))
DATA = random_bytes(6 * CHUNK)
WITHIN = 20.0


class Read:
    """A reader (agent/cache/fill.py) of one extent."""

    def __init__(self, cached: CachedObject, extent: Extent) -> None:
        self.extent = extent
        self.needs = extent.end
        self.deadline: float | None = None
        self._cached = cached
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()

    def ready(self, data: memoryview, offset: int) -> None:
        self._loop.call_soon_threadsafe(self.resume)

    def resume(self) -> None:
        self._over.set_result(None)

    def fail(self, error: HeadraceError) -> None:
        self._over.set_exception(error)

    async def data(self) -> bytes:
        """The bytes, once they are there."""
        await asyncio.wait_for(self._over, WITHIN)
        return os.pread(self._cached.fd, self.extent.length, self.extent.offset)


async def read(agent: Member, ref: ObjectRef, chunk: int) -> bytes:
    """What a reader of the agent gets that jumps to a chunk."""
    cached = await agent.store.acquire(ref)
    try:
        reader = Read(cached, cached.extent(chunk))
        agent.filler.read(cached, reader)
        return await reader.data()
    finally:
        agent.store.release(cached)


def part(chunk: int) -> bytes:
    return DATA[chunk * CHUNK : (chunk + 1) * CHUNK]


def tracked_by(own: str, everybody: list[str], bucket: str) -> ObjectRef:
    """An object that this agent is the tracker of."""
    peers = [Peer(address, address) for address in everybody]
    for number in range(100):
        group = f"s3://{bucket}-{number}/model"
        found = tracker_of(group, peers)
        if found is not None and found.name == own:
            return ObjectRef(f"{group}/weights", "etag-1", len(DATA))
    raise AssertionError("no such bucket")


async def asked(parent: Member, tokens: Tokens, ref: ObjectRef, chunk: int, urgent: bool) -> Wire:
    """A child's request for a chunk that the parent has taken up: the head of its answer has come."""
    host, _, port = parent.address.rpartition(":")
    wire = Wire(*await asyncio.open_connection(host, int(port)))
    target = object_target(ref)
    headers = get(parent, tokens, ref, range_header(Extent(chunk * CHUNK, CHUNK)))
    await wire.ask("GET", target, headers | ({URGENT_HEADER: "1"} if urgent else {}))
    async with asyncio.timeout(WITHIN):
        assert (await wire.head()).status == 206
    return wire


async def test_what_a_childs_reader_waits_for_overtakes_what_is_queued_at_its_parent(tmp_path: Path) -> None:
    everybody = addresses(2)
    ref = tracked_by(everybody[0], everybody, "queued")
    budget = Budget("memory", connections=1, bytes_in_flight=1 << 30, deadline=30.0)
    async with member(tmp_path, everybody, 0, {ref.uri: DATA}, CHUNK, swarm=False, budget=budget) as parent:
        assert await read(parent, ref, 0) == part(0)
        clock = SystemClock()
        tokens = Tokens(Secrets(tmp_path / "peer-secret", clock), clock, everybody[1])
        gate = Gate()
        parent.origin.script(gate)
        order = [(1, False), (2, False), (3, False), (5, True), (3, True)]
        wires = [await asked(parent, tokens, ref, *order[0])]
        await asyncio.wait_for(gate.reached.wait(), WITHIN)
        wires += [await asked(parent, tokens, ref, chunk, urgent) for chunk, urgent in order[1:]]
        gate.open.set()
        async with asyncio.timeout(WITHIN):
            # At once: a stream that is not read holds up the others to the same peer for a while.
            bodies = await asyncio.gather(*(wire.reader.readexactly(SENT) for wire in wires))
        assert [without_digests(body) for body in bodies] == [part(chunk) for chunk, _ in order]
        assert [extent.offset // CHUNK for extent in parent.origin.fetches] == [0, 1, 5, 3, 2]
        for wire in wires:
            await wire.close()


async def test_a_reader_on_a_path_that_trickles_has_its_bytes_from_the_origin_and_the_parent_stays_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "JUDGED_AFTER", 0.3)
    monkeypatch.setattr(paths, "LOOK_FOR_READER", 0.1)
    monkeypatch.setattr(paths, "KEPT_OFF", 0.0)
    (port,) = free_ports(1)
    everybody = [*addresses(1), f"127.0.0.1:{port}"]
    other, ref = (tracked_by(everybody[0], everybody, bucket) for bucket in ("known", "slow"))
    async with member(tmp_path, everybody, 0, {ref.uri: DATA, other.uri: DATA}, CHUNK, swarm=False) as agent:
        with RoguePeer(port, tmp_path / "peer-secret", "trickles", everybody[:1]) as slow:
            assert await read(agent, other, 0) == part(0)  # so the origin is known
            slow.has({ref: DATA})
            assert await asyncio.to_thread(slow.known.wait, WITHIN)
            assert [await read(agent, ref, chunk) for chunk in (4, 1)] == [part(4), part(1)]
            assert slow.asked == 2
        assert agent.counted("headrace_peer_paths_left_total") == 2
        reasons = ("absent", "silent", "slow", "wrong")
        name = 'headrace_peer_failures_total{{reason="{}"}}'
        assert [agent.counted(name.format(reason)) for reason in reasons] == [0, 0, 0, 0]
        assert agent.origin_bytes == 3 * CHUNK
