"""The threads that send to peers: whose turn it is, and how a stream ends."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import Future
from contextlib import AsyncExitStack
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import pytest

from agent.cache.objects import CachedObject
from agent.content import Extent, ObjectRef
from agent.peers import courier
from agent.peers.courier import ARRIVED_WITHIN, SENT_WITHIN, SLICE, Courier
from agent.peers.outgoing import Outgoing
from agent.peers.turns import Stream
from agent.peers.units import DIGEST, UNIT, length_with_digests, unit_digest
from agent.rate import Rate
from agent.transfer.landing import Landing
from tests.agent.peers.conftest import CHUNK, Serve, random_bytes
from tests.fakes.clock import ManualClock
from tests.harness.units import with_digests, without_digests

SIZE = 8 * CHUNK
REF = ObjectRef("s3://models/llama/weights", "etag-1", SIZE)
DATA = random_bytes(SIZE)
WHOLE = length_with_digests(Extent(0, SIZE))


@dataclass(eq=False)
class Link:
    """One connection: the end that is sent to, and the transport of the other."""

    ours: socket.socket
    transport: asyncio.WriteTransport


def digest(cached: CachedObject, unit: int) -> bytes:
    """The digest of a unit of `DATA`."""
    return unit_digest(DATA[unit * UNIT : (unit + 1) * UNIT])


Open = Callable[[], Awaitable[Link]]


@pytest.fixture
async def link() -> AsyncIterator[Open]:
    """Opens connections; what is sent to them waits until somebody reads it."""
    async with AsyncExitStack() as stack:

        async def start() -> Link:
            ours, other = socket.socketpair()
            ours.setblocking(False)
            transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=other)
            stack.callback(ours.close)
            stack.callback(transport.abort)
            return Link(ours, transport)

        yield start


@pytest.fixture
async def cached(serve: Serve) -> CachedObject:
    return await (await serve()).keep(REF, DATA)


async def taken(end: socket.socket, count: int) -> bytes:
    data = bytearray()
    async with asyncio.timeout(20):
        while len(data) < count:
            part = await asyncio.get_running_loop().sock_recv(end, count - len(data))
            assert part
            data += part
    return bytes(data)


async def received(link: Link, count: int) -> bytes:
    return await taken(link.ours, count)


async def bytes_of(link: Link, extent: Extent) -> bytes:
    """The bytes of an extent, each unit of which comes with its digest."""
    return without_digests(await received(link, length_with_digests(extent)))


async def test_an_extent_is_sent_and_the_thread_serves_the_next_stream_too(
    cached: CachedObject, link: Open
) -> None:
    outgoing, one = Outgoing(ManualClock(), digest), await link()
    for extent in (Extent(UNIT, SIZE - UNIT), Extent(0, UNIT)):
        sending = asyncio.create_task(outgoing.send("peer", one.transport, cached, extent))
        assert await bytes_of(one, extent) == DATA[extent.offset : extent.end]
        assert await sending == extent.length
    await outgoing.close()


async def test_what_was_sent_to_who_is_no_member_any_more_is_forgotten(
    cached: CachedObject, link: Open
) -> None:
    outgoing, extent = Outgoing(ManualClock(), digest), Extent(0, UNIT)
    for name in ("stays", "goes"):
        one = await link()
        sending = asyncio.create_task(outgoing.send(name, one.transport, cached, extent))
        await bytes_of(one, extent)
        await sending
    outgoing.keep_only(frozenset({"stays"}))
    assert outgoing.sent() == {"stays": UNIT}
    await outgoing.close()


async def test_a_stream_that_is_given_up_ends_though_its_peer_takes_nothing(
    cached: CachedObject, link: Open
) -> None:
    outgoing, one, other = Outgoing(ManualClock(), digest), await link(), await link()
    tasks = [
        asyncio.create_task(outgoing.send("peer", to.transport, cached, Extent(0, SIZE)))
        for to in (one, other)
    ]
    await received(one, 1)
    for task in reversed(tasks):  # one that waits for its turn, one that has it
        task.cancel()
        await asyncio.wait([task], timeout=20)
        assert task.cancelled()
    await outgoing.close()
    assert cached.when_unread(range(8), lambda: None)


async def test_a_stream_that_is_not_read_holds_up_no_other_one_to_its_peer(
    cached: CachedObject, link: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courier, "LOOK_EVERY", 0.05)
    outgoing, one, other = Outgoing(ManualClock(), digest), await link(), await link()
    first = asyncio.create_task(outgoing.send("peer", one.transport, cached, Extent(0, SIZE)))
    assert await received(one, 1) == DATA[:1]
    second = asyncio.create_task(outgoing.send("peer", other.transport, cached, Extent(CHUNK, CHUNK)))
    assert await bytes_of(other, Extent(CHUNK, CHUNK)) == DATA[CHUNK : 2 * CHUNK]
    assert await second == CHUNK
    assert await received(one, WHOLE - 1) == with_digests(DATA)[1:]
    assert await first == SIZE
    await outgoing.close()


async def test_while_one_stream_waits_for_its_window_the_next_ones_are_sent(
    cached: CachedObject, link: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courier, "LOOK_EVERY", 60.0)  # the first one is not taken for one that is not read
    one, other, over = await link(), await link(), list[BaseException | None]()
    sender = courier.Courier(ManualClock(), digest)
    for to, extent in ((one, Extent(0, SIZE)), (other, Extent(CHUNK, CHUNK))):
        connection = to.transport.get_extra_info("socket").dup()
        sender.add(Stream(cached, extent, False, connection, to.transport.is_closing, over.append))
    thread = threading.Thread(target=sender.run)
    thread.start()
    # All of it, though the first one takes nothing and nobody looks again.
    assert await bytes_of(other, Extent(CHUNK, CHUNK)) == DATA[CHUNK : 2 * CHUNK]
    later, last = await link(), Extent(UNIT, CHUNK)
    connection = later.transport.get_extra_info("socket").dup()
    sender.add(Stream(cached, last, False, connection, later.transport.is_closing, over.append))
    assert await bytes_of(later, last) == DATA[UNIT : CHUNK + UNIT]
    assert await bytes_of(one, Extent(0, SIZE)) == DATA
    await asyncio.to_thread(thread.join, 20)
    assert over == [None, None, None]
    assert cached.when_unread(range(8), lambda: None)


async def test_a_peer_that_takes_nothing_is_cut_off(cached: CachedObject, link: Open) -> None:
    clock = ManualClock()
    outgoing, one = Outgoing(clock, digest), await link()
    sending = asyncio.create_task(outgoing.send("peer", one.transport, cached, Extent(0, SIZE)))
    await received(one, 1)
    clock.advance(SENT_WITHIN)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(sending), 20)
    await outgoing.close()


async def test_a_peer_that_takes_its_bytes_slowly_is_cut_off(cached: CachedObject, link: Open) -> None:
    clock = ManualClock()
    outgoing, one = Outgoing(clock, digest), await link()
    sending = asyncio.create_task(outgoing.send("peer", one.transport, cached, Extent(0, SIZE)))
    while not sending.done():
        taking = asyncio.create_task(received(one, 16384))
        await asyncio.wait([sending, taking], return_when=asyncio.FIRST_COMPLETED)
        clock.advance(SENT_WITHIN / 4)
        taking.cancel()
        await asyncio.wait([taking])
    with pytest.raises(TimeoutError):
        await sending
    await outgoing.close()


async def test_a_peer_that_closes_in_the_middle_ends_its_streams(cached: CachedObject, link: Open) -> None:
    outgoing, one, other = Outgoing(ManualClock(), digest), await link(), await link()
    sending = [
        asyncio.create_task(outgoing.send("peer", to.transport, cached, Extent(0, SIZE)))
        for to in (one, other)
    ]
    await received(one, 1)
    one.ours.close()
    assert await bytes_of(other, Extent(0, SIZE)) == DATA
    assert await sending[1] == SIZE
    with pytest.raises(OSError):
        await sending[0]
    await outgoing.close()
    assert cached.when_unread(range(8), lambda: None)


async def test_where_no_thread_can_be_started_the_stream_fails_and_the_next_one_may_work(
    cached: CachedObject, link: Open
) -> None:
    outgoing, one = Outgoing(ManualClock(), digest), await link()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", _no_more)
        with pytest.raises(OSError, match="no thread"):
            await outgoing.send("peer", one.transport, cached, Extent(0, UNIT))
    sending = asyncio.create_task(outgoing.send("peer", one.transport, cached, Extent(0, UNIT)))
    assert await bytes_of(one, Extent(0, UNIT)) == DATA[:UNIT]
    assert await sending == UNIT
    await outgoing.close()


def _no_more(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


async def test_what_arrives_is_sent_by_the_thread_that_receives_it_and_the_rest_by_the_streams_own(
    serve: Serve, link: Open
) -> None:
    cached = await (await serve()).store.acquire(REF)
    cached.landings[0] = landing = Landing(cached.fd, cached.extent(0))
    landing.write(memoryview(DATA[:UNIT]))
    outgoing, one = Outgoing(ManualClock(), digest), await link()
    sending = asyncio.create_task(outgoing.send("peer", one.transport, cached, Extent(0, CHUNK)))
    assert await bytes_of(one, Extent(0, UNIT)) == DATA[:UNIT]
    while not landing.awaited:  # noqa: ASYNC110 - a thread that comes to wait tells nobody
        await asyncio.sleep(0.001)
    landing.write(memoryview(DATA[UNIT : UNIT + 1000]))
    assert await received(one, 1000) == DATA[UNIT : UNIT + 1000]
    landing.write(memoryview(DATA[UNIT + 1000 : CHUNK]))  # more than the socket takes at once
    rest = with_digests(DATA[UNIT:CHUNK])[1000:]
    assert await received(one, len(rest)) == rest
    assert await sending == CHUNK
    await outgoing.close()


class FullOnce(socket.socket):
    """Takes `takes` bytes of a unit and its digest at first, and then no digest once."""

    takes = 0
    refused = False

    def sendmsg(self, buffers: Iterable[Any], *args: Any) -> int:
        if not self.takes:
            raise BlockingIOError
        return super().send(b"".join(buffers)[: self.takes])

    def send(self, *args: Any) -> int:
        if not self.refused:
            self.refused = True
            raise BlockingIOError
        return super().send(*args)


REST = UNIT - 1000


@pytest.mark.parametrize("takes", [0, 1, REST - 1, REST, REST + 1, REST + DIGEST])
async def test_what_its_socket_does_not_take_at_once_of_a_unit_and_its_digest_is_not_forgotten(
    serve: Serve, takes: int
) -> None:
    cached = await (await serve()).store.acquire(REF)
    cached.landings[0] = landing = Landing(cached.fd, cached.extent(0))
    landing.write(memoryview(DATA[:1000]))
    sender, over = Courier(ManualClock(), digest), list[BaseException | None]()
    ours, theirs = socket.socketpair()
    with ours:
        for end in (ours, theirs):
            end.setblocking(False)
        connection = FullOnce(fileno=theirs.detach())
        connection.setblocking(False)
        connection.takes = takes
        assert sender.add(Stream(cached, Extent(0, UNIT), False, connection, bool, over.append))
        thread = threading.Thread(target=sender.run, daemon=True)
        thread.start()
        while not landing.awaited:  # noqa: ASYNC110 - a thread that comes to wait tells nobody
            await asyncio.sleep(0.001)
        landing.write(memoryview(DATA[1000:UNIT]))
        assert await taken(ours, UNIT + DIGEST) == with_digests(DATA[:UNIT])
        await asyncio.to_thread(thread.join, 20)
    assert over == [None]


async def test_bytes_that_arrive_no_more_end_the_stream(serve: Serve, link: Open) -> None:
    clock = ManualClock()
    cached = await (await serve()).store.acquire(REF)
    cached.landings[0] = landing = Landing(cached.fd, cached.extent(0))
    landing.write(memoryview(DATA[:1000]))
    outgoing, one = Outgoing(clock, digest), await link()
    sending = asyncio.create_task(outgoing.send("peer", one.transport, cached, Extent(0, CHUNK)))
    assert await received(one, 1000) == DATA[:1000]
    while not landing.awaited:  # noqa: ASYNC110 - a thread that comes to wait tells nobody
        await asyncio.sleep(0.001)
    clock.advance(ARRIVED_WITHIN)
    assert await asyncio.wait_for(sending, 20) == 1000
    assert not landing.awaited
    await outgoing.close()


async def test_what_is_sent_keeps_to_the_limit_and_can_be_given_up_meanwhile(
    cached: CachedObject, link: Open
) -> None:
    clock = ManualClock()
    outgoing, one = Outgoing(clock, digest, Rate(clock, SLICE)), await link()
    sending = asyncio.create_task(outgoing.send("peer", one.transport, cached, Extent(0, SIZE)))
    # What was saved up, a second's, and one more.
    assert await bytes_of(one, Extent(0, 3 * SLICE)) == DATA[: 3 * SLICE]
    assert await clock.next_sleep() > 0
    with pytest.raises(BlockingIOError):
        one.ours.recv(1)
    clock.advance(1.0)
    assert await bytes_of(one, Extent(3 * SLICE, SLICE)) == DATA[3 * SLICE : 4 * SLICE]
    sending.cancel()
    await asyncio.wait([sending], timeout=20)
    assert sending.cancelled()
    await outgoing.close()


async def test_what_a_reader_waits_for_does_not_wait_for_what_the_limit_is_owed_by_others(
    cached: CachedObject,
) -> None:
    asked: SimpleQueue[tuple[bool, Future[None]]] = SimpleQueue()

    def pay(count: int, urgent: bool) -> Future[None]:
        owed = Future[None]()
        asked.put((urgent, owed))
        return owed

    sender = Courier(ManualClock(), digest, pay)
    thread = threading.Thread(target=sender.run, daemon=True)
    (one, ours), (other, theirs) = socket.socketpair(), socket.socketpair()
    with ours, theirs:
        streams = [
            Stream(cached, Extent(0, UNIT), urgent, end, gone=bool, ended=lambda _: None)
            for urgent, end in ((False, one), (True, other))
        ]
        assert sender.add(streams[0])
        thread.start()
        urgent, first = await asyncio.to_thread(asked.get, timeout=20)
        assert not urgent
        assert not sender.add(streams[1])  # it comes while the other one's bytes are not paid
        urgent, again = await asyncio.to_thread(asked.get, timeout=20)
        assert urgent
        assert first.cancelled()
        again.set_result(None)
        urgent, last = await asyncio.to_thread(asked.get, timeout=20)
        assert urgent
        last.set_result(None)
        await asyncio.to_thread(thread.join, 20)
    assert [stream.position for stream in streams] == [UNIT, UNIT]
