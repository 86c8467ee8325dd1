"""Peers before the origin: over real sockets, with peers that do all they should not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.content import Extent, ObjectRef
from agent.errors import OriginUnavailable, StoreFull
from agent.metrics import Metrics
from agent.peers import paths
from agent.peers import source as source_module
from agent.peers.digests import UnitDigests
from agent.peers.exchange_client import ExchangeClient, PeerSilent
from agent.peers.liveness import Liveness
from agent.peers.member import Peer
from agent.peers.protocol import UNITS_HEADER
from agent.peers.queue import FEWEST
from agent.peers.secrets import Secrets
from agent.peers.source import PeerSource
from agent.peers.token import Tokens
from agent.peers.units import DIGEST, KIND, UNIT, unit_digest
from agent.source import Urgency
from agent.transfer.engine import Engine
from agent.transfer.landing import Landing
from tests.agent.peers.conftest import CHUNK, Serve, Served, random_bytes, secret_file
from tests.fakes.guide import MemoryGuide
from tests.fakes.raw_http import CLOSE, RESET, RawServer, head, partial
from tests.fakes.source import Gate, MemorySource
from tests.harness.s3 import free_ports
from tests.harness.sink import MemorySink
from tests.harness.units import answer

SIZE = 2 * CHUNK + 12345
REF = ObjectRef("s3://models/llama/weights", "etag-1", SIZE)
DATA = random_bytes(SIZE)
FIRST = Extent(0, CHUNK)


class LateSource(MemorySource):
    """An origin in memory that may prove its bytes late."""

    def late(self) -> None:
        """From now on its bytes are proven behind the last one."""
        self._budget = replace(self._budget, proven_late=True)


@dataclass
class Asking:
    """One agent that asks: its source, and what is behind it."""

    source: PeerSource
    origin: LateSource
    guide: MemoryGuide
    client: ExchangeClient
    liveness: Liveness
    digests: UnitDigests
    metrics: Metrics

    async def read(self, extent: Extent = FIRST, urgency: Urgency = Urgency.PREFETCH) -> bytes:
        sink = MemorySink(extent.offset, extent.end, urgency)
        async with asyncio.timeout(30):
            await self.source.fetch(REF, sink)
        return bytes(sink.data)

    def counted(self, reason: str) -> float:
        return float(self.metrics.peer_failures[reason]._value.get())

    @property
    def from_origin(self) -> int:
        return sum(extent.length for extent in self.origin.fetches)


@pytest.fixture
async def asking(tmp_path: Path) -> AsyncIterator[Asking]:
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        engine = Engine(4, clock)
        stack.push_async_callback(engine.close)
        client = ExchangeClient(Tokens(Secrets(secret_file(tmp_path), clock), clock, "asking"), engine)
        stack.push_async_callback(client.close)
        origin, guide, liveness = LateSource({REF.uri: DATA}), MemoryGuide(), Liveness(clock)
        metrics = Metrics()
        digests = UnitDigests()
        source = PeerSource(origin, guide, client, liveness, digests, clock, metrics)
        yield Asking(source, origin, guide, client, liveness, digests, metrics)


def peer(port: int) -> Peer:
    return Peer(f"127.0.0.1:{port}", f"127.0.0.1:{port}", "")


async def has(serve: Serve, name: str = "store") -> Served:
    served = await serve(name)
    await served.keep(REF, DATA)
    return served


async def test_what_a_peer_has_costs_no_byte_of_the_origin(asking: Asking, serve: Serve) -> None:
    served = await has(serve)
    asking.guide.parents_now = [peer(served.port)]
    assert await asking.read() == DATA[:CHUNK]
    assert await asking.read(Extent(2 * CHUNK, 12345)) == DATA[2 * CHUNK :]
    assert await asking.read(Extent(UNIT + 5, 7)) == DATA[UNIT + 5 : UNIT + 12]
    assert not asking.origin.fetches
    assert [told[2] for told in asking.guide.told] == [peer(served.port)] * 3


def known(digests: UnitDigests, extent: Extent = FIRST) -> bool:
    """Whether the digests of all units are known, and right."""
    units = range(extent.offset // UNIT, -(-extent.end // UNIT))
    return all(digests.get(REF.key, n) == unit_digest(DATA[n * UNIT : (n + 1) * UNIT]) for n in units)


async def test_without_a_peer_the_head_reads_the_origin_and_makes_the_digests(asking: Asking) -> None:
    assert await asking.read() == DATA[:CHUNK]
    assert asking.origin.fetches == [FIRST]
    assert known(asking.digests)
    assert asking.guide.told == [(REF.key, FIRST, None)]


async def test_a_head_that_is_cut_short_has_every_digest_in_the_end(asking: Asking) -> None:
    asking.origin.script(UNIT + 100, OriginUnavailable("gone"))
    sink = MemorySink(0, CHUNK)
    with pytest.raises(OriginUnavailable):
        await asking.source.fetch(REF, sink)
    await asking.source.fetch(REF, sink)
    assert bytes(sink.data) == DATA[:CHUNK]
    assert known(asking.digests)


UNITS = CHUNK // UNIT
SENT = UNIT + DIGEST  # bytes of a unit on the wire


def whole(data: bytes) -> bytes:
    return answer(data, 0, CHUNK)


def until(units: float) -> bytes:
    """The right answer up to so many units."""
    return whole(DATA)[: len(whole(DATA)) - int((UNITS - units) * SENT)]


def flipped(at: int) -> bytes:
    wrong = bytearray(whole(DATA))
    wrong[len(wrong) - UNITS * SENT + at] ^= 0x10
    return bytes(wrong)


UNITS_OF_OURS, SHORT = f"{UNITS_HEADER}: {KIND}", "Content-Length: 3"
BAD: dict[str, tuple[tuple[object, ...], str]] = {
    "flips a bit": ((flipped(2 * SENT + 99),), "wrong"),
    "flips a bit of a digest": ((flipped(3 * SENT - 1),), "wrong"),
    "sends no digests": ((partial(DATA, 0, CHUNK),), "absent"),
    "sends other units": ((answer(DATA, 0, CHUNK, kind=f"sha256/{UNIT}"),), "absent"),
    "stalls after the head": ((until(0)[:-100], threading.Event()), "silent"),
    # After a whole unit: a part of the next one is seen after 4 s only, when the third look finds it silent.
    "stalls in the middle": ((until(1), threading.Event()), "silent"),
    "answers 200 with everything": (
        (head("200 OK", UNITS_OF_OURS, f"Content-Length: {SIZE}"), DATA, CLOSE),
        "wrong",
    ),
    "answers another range": ((answer(DATA, UNIT, UNIT + CHUNK),), "wrong"),
    "says another size": (
        (head("206 Partial Content", UNITS_OF_OURS, f"Content-Range: bytes 0-{CHUNK - 1}/5"), CLOSE),
        "wrong",
    ),
    "says another length": (
        (
            head("206 Partial Content", UNITS_OF_OURS, f"Content-Range: bytes 0-{CHUNK - 1}/{SIZE}", SHORT),
            CLOSE,
        ),
        "wrong",
    ),
    "closes at once": ((CLOSE,), "silent"),
    "breaks off in the middle": ((until(1.5), RESET), "silent"),
    "says no HTTP": ((b"hello\r\n\r\n",), "wrong"),
    "redirects": ((head("302 Found", "Location: http://127.0.0.1:1/"), CLOSE), "silent"),
    "has it not": ((head("404 Not Found", "Content-Length: 0"), CLOSE), "absent"),
    "refuses the token": ((head("401 Unauthorized", "Content-Length: 0"), CLOSE), "silent"),
    "is overloaded": ((head("503 Service Unavailable", "Content-Length: 0"), CLOSE), "silent"),
    "says that the version changed": ((head("412 Precondition Failed", "Content-Length: 0"), CLOSE), "wrong"),
}


@pytest.mark.parametrize("fault", BAD)
async def test_a_bad_peer_costs_a_bounded_time_and_the_next_one_goes_on(
    asking: Asking, serve: Serve, fault: str
) -> None:
    said, reason = BAD[fault]
    served = await has(serve)
    with RawServer(said) as bad:
        asking.guide.parents_now = [peer(bad.port), peer(served.port)]
        begun = asyncio.get_running_loop().time()
        assert await asking.read() == DATA[:CHUNK]
        assert asyncio.get_running_loop().time() - begun < 6
        assert not asking.origin.fetches
        assert asking.guide.blamed == [(peer(bad.port), reason)]
        assert asking.counted(reason) == 1
        if fault != "has it not":
            assert not asking.liveness.usable(peer(bad.port).name)
            assert await asking.read(Extent(CHUNK, CHUNK)) == DATA[CHUNK : 2 * CHUNK]
            assert len(bad.requests) == 1


@pytest.mark.parametrize("fault", BAD)
async def test_with_bad_peers_only_the_origin_gives_the_rest(asking: Asking, fault: str) -> None:
    with RawServer(BAD[fault][0]) as bad:
        asking.guide.parents_now = [peer(bad.port)]
        assert await asking.read() == DATA[:CHUNK]
        (rest,) = asking.origin.fetches
        assert rest.end == CHUNK
        # A reset throws away what had come and was not read yet.
        right = {
            "flips a bit": {2 * UNIT},
            "flips a bit of a digest": {2 * UNIT},
            "stalls in the middle": {UNIT},
            "breaks off in the middle": {0, UNIT},
        }
        assert rest.offset in right.get(fault, {0})


async def test_a_peer_that_is_not_there_is_left_out(asking: Asking) -> None:
    (port,) = free_ports(1)
    asking.guide.parents_now = [peer(port)]
    assert await asking.read() == DATA[:CHUNK]
    assert asking.counted("silent") == 1
    assert asking.from_origin == CHUNK


async def test_a_peer_that_sends_byte_by_byte_is_too_slow(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "UNIT_WITHIN", 0.3)
    with RawServer((until(1.5), threading.Event())) as slow:
        asking.guide.parents_now = [peer(slow.port)]
        assert await asking.read() == DATA[:CHUNK]
    assert asking.counted("slow") == 1
    assert asking.from_origin == CHUNK - UNIT


@pytest.mark.parametrize("urgency", Urgency)
async def test_a_request_says_that_a_reader_waits_here_or_at_a_child(
    asking: Asking, urgency: Urgency
) -> None:
    with RawServer((whole(DATA),)) as parent:
        asking.guide.parents_now = [peer(parent.port)]
        assert await asking.read(urgency=urgency) == DATA[:CHUNK]
        (request,) = parent.requests
    waits = urgency in (Urgency.READER, Urgency.PEER)
    assert (b"\r\nHeadrace-Urgent: 1\r\n" in request) == waits
    assert not asking.origin.fetches


async def test_a_reader_goes_on_from_the_origin_where_its_path_is_slower_and_nobody_is_blamed(
    asking: Asking, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "JUDGED_AFTER", 0.2)
    monkeypatch.setattr(paths, "LOOK_FOR_READER", 0.1)
    assert await asking.read(Extent(2 * CHUNK, 12345)) == DATA[2 * CHUNK :]  # so the origin is known
    served = await has(serve)
    with RawServer((until(1.5), threading.Event())) as slow:
        asking.guide.parents_now = [peer(slow.port), peer(served.port)]
        assert await asking.read(urgency=Urgency.READER) == DATA[:CHUNK]
        assert asking.origin.fetches[1:] == [Extent(UNIT, CHUNK - UNIT)]
        assert asking.metrics.peer_paths_left._value.get() == 1
        assert not asking.guide.blamed
        assert asking.liveness.usable(peer(slow.port).name)
        assert await asking.read(Extent(CHUNK, CHUNK), Urgency.READER) == DATA[CHUNK : 2 * CHUNK]
        assert len(slow.requests) == 1  # a reader keeps off it for a while
        assert len(asking.origin.fetches) == 2


async def test_a_stream_from_a_parent_that_turns_out_slow_goes_on_at_the_byte_from_another(
    asking: Asking, serve: Serve
) -> None:
    served = await has(serve)
    loop = asyncio.get_running_loop()
    with RawServer((until(1.5), threading.Event())) as slow:

        class Telling(MemorySink):
            """Has the parent found slow as soon as something of it has come."""

            def write(self, data: memoryview) -> None:
                if not self.data:
                    loop.call_soon_threadsafe(
                        asking.guide.reroute, [peer(slow.port), peer(served.port)], [peer(slow.port)]
                    )
                super().write(data)

        asking.guide.parents_now = [peer(slow.port)]
        sink = Telling(0, CHUNK)
        await asyncio.wait_for(asking.source.fetch(REF, sink), 30)
        assert bytes(sink.data) == DATA[:CHUNK]
    assert not asking.origin.fetches
    assert not asking.guide.blamed
    assert asking.liveness.usable(peer(slow.port).name)
    assert asking.source.intake.total <= CHUNK + UNIT // 2


async def test_what_waited_for_its_turn_is_asked_of_the_parent_that_is_planned_by_then(
    asking: Asking, serve: Serve
) -> None:
    ref = ObjectRef("s3://models/llama/long", "etag-1", (FEWEST + 1) * CHUNK)
    data = random_bytes(ref.size)
    served = await serve()
    await served.keep(ref, data)
    sinks = [MemorySink(n * CHUNK, (n + 1) * CHUNK, Urgency.PRELOAD) for n in range(FEWEST + 1)]
    with RawServer(*[(threading.Event(),)] * (FEWEST + 1)) as silent:
        asking.guide.parents_now = [peer(silent.port)]
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            fetches = [group.create_task(asking.source.fetch(ref, sink)) for sink in sinks]
            await asyncio.sleep(0)
            asking.guide.parents_now = [peer(served.port)]
            await fetches[-1]
            for fetch in fetches[:-1]:
                fetch.cancel()
        assert len(silent.requests) == FEWEST
    assert bytes(sinks[-1].data) == data[-CHUNK:]
    assert asking.guide.told == [(ref.key, Extent(FEWEST * CHUNK, CHUNK), peer(served.port))]


async def test_a_head_that_turns_out_slow_has_the_rest_of_its_chunk_from_a_parent(
    asking: Asking, serve: Serve
) -> None:
    served = await has(serve)
    gate = Gate()
    asking.origin.script(UNIT + 5, gate)
    reading = asyncio.ensure_future(asking.read())
    await asyncio.wait_for(gate.reached.wait(), 10)
    asking.guide.reroute([peer(served.port)], [peer(1)])
    assert await asyncio.wait_for(reading, 30) == DATA[:CHUNK]
    assert asking.origin.fetches == [FIRST]
    assert [told[2] for told in asking.guide.told] == [peer(served.port)]


async def test_what_an_origin_that_proves_late_began_of_a_chunk_it_ends(asking: Asking, serve: Serve) -> None:
    served = await has(serve)
    asking.origin.late()
    gate = Gate()
    asking.origin.script(UNIT + 5, gate, OriginUnavailable("gone"))
    sink = MemorySink(0, CHUNK)
    reading = asyncio.ensure_future(asking.source.fetch(REF, sink))
    await asyncio.wait_for(gate.reached.wait(), 10)
    asking.guide.reroute([peer(served.port)], [peer(1)])
    gate.open.set()
    with pytest.raises(OriginUnavailable):
        await asyncio.wait_for(reading, 10)
    await asyncio.wait_for(asking.source.fetch(REF, sink), 10)
    assert bytes(sink.data) == DATA[:CHUNK]
    assert asking.origin.fetches == [FIRST, Extent(UNIT + 5, CHUNK - UNIT - 5)]


async def test_a_head_that_is_silent_until_its_chunk_is_proven_is_waited_for(
    asking: Asking, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "SILENT_WITHIN", 0.1)
    monkeypatch.setattr(paths, "LOOK_EVERY", 0.05)
    monkeypatch.setattr(source_module, "GRACE", 100.0)
    asking.origin.late()
    served = await serve()
    cached = await served.store.acquire(REF)
    cached.landings[0] = landing = Landing(cached.fd, cached.extent(0))
    landing.doubt()
    landing.write(memoryview(DATA[:CHUNK]))
    asking.guide.parents_now = [peer(served.port)]
    reading = asyncio.ensure_future(asking.read())
    done, _ = await asyncio.wait([reading], timeout=0.4)
    assert not done
    del cached.landings[0]
    await served.keep(REF, DATA, 0)
    for stream in landing.dismiss():
        stream.ready(memoryview(b""), CHUNK)
    assert await reading == DATA[:CHUNK]
    assert not asking.origin.fetches
    assert not asking.guide.blamed


@pytest.mark.parametrize("urgency", Urgency)
async def test_only_what_nobody_waits_for_waits_longer_for_its_routes(
    asking: Asking, serve: Serve, urgency: Urgency
) -> None:
    served = await has(serve)
    asking.guide.parents_now = [peer(served.port)]
    asking.guide.unknown = 3
    assert await asking.read(urgency=urgency) == DATA[:CHUNK]
    waits = urgency in (Urgency.READER, Urgency.PEER)
    assert asking.from_origin == (CHUNK if waits else 0)
    assert asking.metrics.peer_routes_late._value.get() == waits


async def test_routes_that_never_come_cost_a_bounded_time(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "ROUTES_WITHIN", 0.05)
    asking.guide.unknown = 1 << 60
    assert await asking.read() == DATA[:CHUNK]
    assert asking.from_origin == CHUNK
    assert asking.metrics.peer_routes_late._value.get() == 1


class FullSink(MemorySink):
    def write(self, data: memoryview) -> None:
        raise StoreFull("full")


async def test_an_error_of_the_store_is_no_fault_of_the_peer(asking: Asking, serve: Serve) -> None:
    served = await has(serve)
    asking.guide.parents_now = [peer(served.port)]
    with pytest.raises(StoreFull):
        await asking.source.fetch(REF, FullSink(0, CHUNK))
    assert not asking.guide.blamed


@pytest.mark.parametrize("units", [0.5, 1.5])
async def test_a_fetch_that_is_cancelled_touches_the_sink_no_more(asking: Asking, units: float) -> None:
    sink = MemorySink(0, CHUNK)
    held, whole_units = threading.Event(), int(units) * UNIT
    with RawServer((until(units), held, whole(DATA)[len(until(units)) :])) as server:
        asking.guide.parents_now = [peer(server.port)]
        fetching = asyncio.ensure_future(asking.source.fetch(REF, sink))
        await asyncio.to_thread(_until, lambda: bool(server.requests) and len(sink.data) == whole_units)
        fetching.cancel()
        await asyncio.wait([fetching])
        assert fetching.cancelled()
        held.set()  # the rest is sent, and the server waited for
    assert len(sink.data) == whole_units


def _until(holds: Callable[[], bool]) -> None:
    waited = threading.Event()
    for _ in range(1000):
        if holds():
            return
        waited.wait(0.01)
    raise AssertionError("it did not happen")


async def test_bytes_that_a_peer_still_receives_arrive_by_way_of_it(asking: Asking, serve: Serve) -> None:
    """Two agents want a chunk at once: the second takes it from the first while that reads the origin."""
    served = await serve()
    cached = await served.store.acquire(REF)
    landing = cached.landings[0] = Landing(cached.fd, cached.extent(0))
    asking.guide.parents_now = [peer(served.port)]
    first_origin, gate = LateSource({REF.uri: DATA}), Gate()
    first_origin.script(UNIT + 10, gate)
    head_source = PeerSource(
        first_origin,
        MemoryGuide(),
        asking.client,
        asking.liveness,
        served.digests,
        SystemClock(),
        asking.metrics,
    )
    filling = asyncio.ensure_future(head_source.fetch(REF, landing))
    sink = MemorySink(0, CHUNK)
    reading = asyncio.ensure_future(asking.source.fetch(REF, sink))
    await asyncio.wait_for(gate.reached.wait(), 10)
    await asyncio.to_thread(_until, lambda: len(sink.data) == UNIT)
    gate.open.set()
    await asyncio.wait_for(asyncio.gather(filling, reading), 20)
    assert bytes(sink.data) == DATA[:CHUNK]
    assert not asking.origin.fetches


async def test_a_call_reaches_its_handler_and_one_that_nobody_answers_ends_in_time(
    asking: Asking, serve: Serve
) -> None:
    async def echo(sender: str, body: bytes) -> bytes:
        return sender.encode() + body

    served = await serve(calls={"echo": echo})
    assert await asking.client.call(peer(served.port), "echo", b"!", 5.0) == b"asking!"
    assert await asking.client.call(peer(served.port), "echo", b"", 5.0) == b"asking"
    with pytest.raises(PeerSilent, match="404"):
        await asking.client.call(peer(served.port), "other", b"", 5.0)
    with RawServer((threading.Event(),)) as silent, pytest.raises(PeerSilent, match="within"):
        await asking.client.call(peer(silent.port), "echo", b"", 0.1)
    with pytest.raises(PeerSilent):
        await asking.client.call(peer(free_ports(1)[0]), "echo", b"", 5.0)
