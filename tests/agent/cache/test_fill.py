"""Fills through a real store, from a scripted source, on a clock that the test moves."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import TypeVar

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from agent.cache.fill import Filler
from agent.cache.objects import CachedObject
from agent.cache.setbacks import FIRST_BACKOFF, LAST_BACKOFF, SETBACK_SECONDS, backoff
from agent.config import OriginConfig
from agent.content import Extent, ObjectRef
from agent.errors import (
    AccessDenied,
    HeadraceError,
    ObjectMissing,
    OriginUnavailable,
    PatienceExhausted,
    StoreFailed,
    VersionChanged,
)
from agent.metrics import Metrics
from agent.origin.pacing import PacedOrigins
from agent.source import Budget, Urgency
from tests.agent.cache.conftest import CHUNK, TappedStore, open_store
from tests.fakes.clock import ManualClock
from tests.fakes.source import Gate, MemorySource

DATA = random.Random(5).randbytes(4 * CHUNK + 1000)
REF = ObjectRef("s3://bucket/object", "v1", len(DATA))
PATIENCE = 60.0
T = TypeVar("T")


async def within(work: Awaitable[T]) -> T:
    return await asyncio.wait_for(work, 10)


class Read:
    """A reader as the mount has it: straight from the piece that has all of it, else from the file."""

    def __init__(self, node: Node, offset: int, length: int) -> None:
        self.extent = Extent(offset, length)
        self.needs = self.extent.end
        self.deadline: float | None = None
        self.result: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._node = node

    def ready(self, data: memoryview, offset: int) -> None:
        start, end = self.extent.offset - offset, self.extent.end - offset
        if start >= 0 and end <= len(data):
            self.result.set_result(bytes(data[start:end]))
        else:
            self.resume()

    def resume(self) -> None:
        cached = self._node.cached
        if not cached.begin_read(self.extent):
            asyncio.get_running_loop().call_soon(self._node.filler.read, cached, self)
            return
        data = bytearray(len(self.expected))
        cached.read(self.extent, memoryview(data))
        self.result.set_result(bytes(data))
        cached.end_read(self.extent)

    def fail(self, error: HeadraceError) -> None:
        self.result.set_exception(error)

    @property
    def expected(self) -> bytes:
        return DATA[self.extent.offset : self.extent.end]


class Node:
    """A filler on a real store with one open object."""

    def __init__(self, store: TappedStore, source: MemorySource, cached: CachedObject, rate: int = 0) -> None:
        """`rate` is what the origin may give, bytes a second; 0 for all it can."""
        self.store = store
        self.source = source
        self.cached = cached
        self.clock = ManualClock()
        self.metrics = Metrics("test")
        settings = {"memory": OriginConfig(cluster_rate=rate << 20)} if rate else {}
        paced = PacedOrigins(source, settings, self.clock, random.Random(2))
        paced.members = lambda: 1 << 20
        self.filler = Filler(store, paced, self.clock, self.metrics, PATIENCE, random.Random(1))

    def read(self, offset: int, length: int) -> Read:
        read = Read(self, offset, length)
        self.filler.read(self.cached, read)
        return read

    async def flights_end(self, count: int = 1) -> None:
        for _ in range(count):
            await within(self.store.released.get())

    def fills(self) -> tuple[float, float, float]:
        """Fills that were done, failed and cancelled."""
        found = self.metrics.counters()
        name = 'headrace_fills_total{{result="{}"}}'
        done, failed, cancelled = (found.get(name.format(way), 0) for way in ("done", "failed", "cancelled"))
        return done, failed, cancelled


async def make_node(path: Path, capacity: int = 1 << 30, budget: Budget | None = None) -> Node:
    store = await open_store(path, capacity)
    return Node(store, MemorySource({REF.uri: DATA}, budget), await store.acquire(REF))


async def end(node: Node) -> None:
    await within(node.filler.close())
    assert node.source.running == 0
    await within(node.store.close())


@pytest.fixture
async def unhurried(tmp_path: Path) -> AsyncIterator[Node]:
    """A node whose requests may take longer than a reader's patience."""
    made = await make_node(tmp_path, budget=Budget("memory", 4, 1 << 30, deadline=2 * PATIENCE))
    yield made
    await end(made)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    made = await make_node(tmp_path)
    yield made
    await end(made)


async def test_many_readers_of_a_chunk_share_one_fetch(node: Node) -> None:
    gate = Gate()
    node.source.script(gate)
    reads = [node.read(offset, 500) for offset in range(0, CHUNK - 500, 1000)]
    await within(gate.reached.wait())
    reads += [node.read(0, CHUNK)]
    gate.open.set()
    for read in reads:
        assert await within(read.result) == read.expected
    assert node.source.fetches == [Extent(0, CHUNK)]
    await node.flights_end()
    assert node.fills() == (1, 0, 0)


async def test_readers_are_served_as_bytes_arrive_before_the_chunk_is_complete(node: Node) -> None:
    first, second = Gate(), Gate()
    node.source.script(1000, first, 2000, second)
    early, late = node.read(200, 800), node.read(900, 2000)
    assert await within(early.result) == early.expected
    assert not late.result.done() and not node.cached.present[0]
    first.open.set()
    assert await within(late.result) == late.expected
    again = node.read(100, 2900)
    assert await within(again.result) == again.expected, "what has arrived is read without waiting"
    assert not node.cached.present[0]
    second.open.set()
    await node.flights_end()
    assert node.cached.present[0]


async def test_present_bytes_and_reads_of_nothing_ask_the_source_for_nothing(node: Node) -> None:
    await within(node.read(0, 10).result)
    await node.flights_end()
    read = node.read(5, 100)
    assert await within(read.result) == read.expected
    assert await within(node.read(len(DATA), 100).result) == b""
    assert len(node.source.fetches) == 1


async def test_a_retry_goes_on_at_the_byte_where_the_last_attempt_ended(node: Node, tmp_path: Path) -> None:
    node.source.script(1000, OriginUnavailable("reset"))
    node.source.script(OriginUnavailable("reset"))
    node.source.script(500, OriginUnavailable("reset"))
    read = node.read(0, CHUNK)
    for _ in range(3):
        node.clock.advance(await node.clock.next_sleep())
    assert await within(read.result) == read.expected
    assert [extent.offset for extent in node.source.fetches] == [0, 1000, 1000, 1500]
    await node.flights_end()
    index = sqlite3.connect(tmp_path / "index.sqlite")
    assert index.execute("SELECT xxh3 FROM chunks").fetchall() == [(xxhash.xxh3_128(DATA[:CHUNK]).digest(),)]
    index.close()


async def test_retry_after_is_honoured(node: Node) -> None:
    node.source.script(OriginUnavailable("slow down", retry_after=7.0))
    read = node.read(0, 10)
    delay = await node.clock.next_sleep()
    assert 7.0 <= delay <= 7.0 + FIRST_BACKOFF
    node.clock.advance(delay)
    assert await within(read.result) == read.expected


async def test_a_source_that_sends_nothing_is_asked_again_after_a_pause(node: Node) -> None:
    node.source.script(100, OriginUnavailable("reset"))
    read = node.read(0, 200)
    assert await node.clock.next_sleep() > 0
    node.clock.advance(LAST_BACKOFF)
    assert await within(read.result) == read.expected


async def test_one_request_may_take_no_longer_than_its_deadline(tmp_path: Path) -> None:
    node = await make_node(tmp_path, budget=Budget("slow", 1, 1 << 30, deadline=30.0))
    gate = Gate()
    node.source.script(1000, gate)
    read = node.read(0, 2000)
    await within(gate.reached.wait())
    node.clock.advance(29.9)
    assert node.source.running == 1
    node.clock.advance(0.1)
    node.clock.advance(await node.clock.next_sleep())
    assert await within(read.result) == read.expected
    assert [extent.offset for extent in node.source.fetches] == [0, 1000]
    await end(node)


async def test_a_wait_for_the_clusters_rate_is_no_part_of_a_request(tmp_path: Path) -> None:
    store = await open_store(tmp_path, 1 << 30)
    source = MemorySource({REF.uri: DATA}, Budget("memory", 4, 1 << 30, deadline=30.0))
    node = Node(store, source, await store.acquire(REF), rate=CHUNK // 20)
    source.script()
    source.script(OriginUnavailable("reset"))  # it has a second attempt although it waited for a minute
    node.filler.prefetch(node.cached, range(3), object())
    ended = asyncio.ensure_future(node.flights_end(3))
    while not ended.done():
        slept = asyncio.ensure_future(node.clock.next_sleep())
        await asyncio.wait([ended, slept], return_when=asyncio.FIRST_COMPLETED)
        if slept.done():
            node.clock.advance(slept.result())
        slept.cancel()
    assert node.fills() == (3, 0, 0)
    assert node.metrics.counters()['headrace_errors_total{class="OriginUnavailable"}'] == 1
    await end(node)


async def test_an_outage_fails_a_reader_when_its_patience_ends_and_the_next_one_starts_anew(
    node: Node,
) -> None:
    node.source.outage = OriginUnavailable("no route")
    read = node.read(0, 10)
    waited = 0.0
    while waited < PATIENCE:
        waited += (delay := await node.clock.next_sleep())
        assert not read.result.done()
        node.clock.advance(delay)
    with pytest.raises(PatienceExhausted, match=r"waited 60 s.*no route"):
        await within(read.result)
    await node.flights_end()
    assert node.fills() == (0, 0, 1)
    asked = len(node.source.fetches)
    with pytest.raises(PatienceExhausted):
        await within(node.read(0, 10).result)
    assert len(node.source.fetches) == asked, "asked again at once, it gets the same answer without a wait"
    node.source.outage = None
    node.clock.advance(SETBACK_SECONDS)
    again = node.read(0, 10)
    assert await within(again.result) == again.expected


async def test_silence_fails_a_reader_when_its_patience_ends_and_the_fetch_is_cancelled(node: Node) -> None:
    gate = Gate()
    node.source.script(gate)
    read = node.read(0, 10)
    await within(gate.reached.wait())
    node.clock.advance(PATIENCE - 1)
    assert not read.result.done()
    node.clock.advance(1)
    with pytest.raises(PatienceExhausted):
        await within(read.result)
    await within(node.source.cancelled.wait())


async def test_a_reader_that_came_later_keeps_its_own_patience(
    unhurried: Node,
) -> None:
    node = unhurried
    gate = Gate()
    node.source.script(gate)
    first = node.read(0, 10)
    await within(gate.reached.wait())
    node.clock.advance(PATIENCE - 5)
    second = node.read(5, 10)
    node.clock.advance(5)
    with pytest.raises(PatienceExhausted):
        await within(first.result)
    gate.open.set()
    assert await within(second.result) == second.expected
    assert len(node.source.fetches) == 1


async def test_patience_counts_from_the_read_and_not_from_its_second_chunk(
    unhurried: Node,
) -> None:
    node = unhurried
    first, second = Gate(), Gate()
    node.source.script(first)
    node.source.script(second)
    read = node.read(CHUNK - 10, 20)
    await within(second.reached.wait())
    node.clock.advance(PATIENCE - 5)
    late = node.read(CHUNK, 10)
    first.open.set()
    await node.flights_end()
    node.clock.advance(5)
    with pytest.raises(PatienceExhausted):
        await within(read.result)
    assert not late.result.done()
    second.open.set()
    assert await within(late.result) == late.expected


@pytest.mark.parametrize("error", [VersionChanged("new"), AccessDenied("no"), ObjectMissing("gone")])
async def test_a_final_error_fails_every_reader_at_once(node: Node, error: HeadraceError) -> None:
    node.source.script(1000, error)
    served, *failed = node.read(0, 100), node.read(0, 2000), node.read(5000, 10)
    assert await within(served.result) == served.expected
    for read in failed:
        with pytest.raises(type(error)):
            await within(read.result)
    await node.flights_end()
    assert (len(node.source.fetches), node.fills()) == (1, (0, 1, 0))
    assert node.store.directories[0].used == 0
    assert not node.cached.landings


async def test_the_last_reader_that_leaves_ends_the_fetch(node: Node) -> None:
    gate = Gate()
    node.source.script(gate)
    one, two = node.read(0, 10), node.read(20, 10)
    await within(gate.reached.wait())
    node.filler.leave(one)
    gate.open.set()
    assert await within(two.result) == two.expected
    assert not one.result.done()
    await node.flights_end()
    held = Gate()
    node.source.script(held)
    three, four = node.read(CHUNK, 10), node.read(CHUNK, 10)
    await within(held.reached.wait())
    node.filler.leave(three)
    node.filler.leave(four)
    await within(node.source.cancelled.wait())
    await node.flights_end()
    assert (node.fills(), node.store.directories[0].used) == ((1, 0, 1), CHUNK)


async def test_a_reader_that_leaves_before_its_fetch_has_begun_harms_nobody(node: Node) -> None:
    node.filler.leave(node.read(0, 10))
    await node.flights_end()
    read = node.read(0, 10)
    assert await within(read.result) == read.expected


async def test_a_reader_that_comes_while_the_fetch_is_being_cancelled_gets_its_bytes(node: Node) -> None:
    gate = Gate()
    node.source.script(1000, gate)
    first = node.read(2000, 10)
    await within(gate.reached.wait())
    node.filler.leave(first)
    late = node.read(3000, 10)
    assert await within(late.result) == late.expected
    assert len(node.source.fetches) == 2


async def test_a_read_may_span_chunks(node: Node) -> None:
    for extent in (Extent(CHUNK - 10, 20), Extent(2 * CHUNK - 5, CHUNK + 10), Extent(0, len(DATA))):
        read = node.read(extent.offset, extent.length)
        assert await within(read.result) == read.expected
    assert sorted(extent.offset for extent in node.source.fetches) == [n * CHUNK for n in range(5)]


async def test_chunks_of_one_read_are_fetched_side_by_side(node: Node) -> None:
    gates = [Gate(), Gate()]
    for gate in gates:
        node.source.script(gate)
    read = node.read(CHUNK - 10, 20)
    for gate in reversed(gates):
        await within(gate.reached.wait())
        gate.open.set()
    assert await within(read.result) == read.expected


@pytest.mark.parametrize("way", ["leaves", "fails", "loses patience"])
async def test_nothing_is_fetched_any_more_for_a_reader_that_is_gone(node: Node, way: str) -> None:
    gates = [Gate(), Gate()]
    node.source.script(gates[0], AccessDenied("no"))
    node.source.script(gates[1])
    read = node.read(CHUNK - 10, 20)
    for gate in gates:
        await within(gate.reached.wait())
    if way == "leaves":
        node.filler.leave(read)
    elif way == "fails":
        gates[0].open.set()
    else:
        node.clock.advance(PATIENCE)
    await within(node.source.cancelled.wait())
    await node.flights_end(2)
    assert node.source.running == 0
    if way != "leaves":
        with pytest.raises(HeadraceError):
            await within(read.result)


async def test_prefetch_fills_without_a_reader_and_a_reader_joins_it(node: Node) -> None:
    gate = Gate()
    node.source.script(gate)
    node.filler.prefetch(node.cached, range(2), owner="file")
    await within(gate.reached.wait())
    read = node.read(100, 10)
    gate.open.set()
    assert await within(read.result) == read.expected
    await node.flights_end(2)
    assert (list(node.cached.present), len(node.source.fetches)) == ([1, 1, 0, 0, 0], 2)
    await within(node.read(2 * CHUNK, 10).result)
    await node.flights_end()
    assert node.metrics.counters()["headrace_prefetch_bytes_total"] == 2 * CHUNK, (
        "the third was read for itself"
    )


async def test_a_reader_that_leaves_a_prefetch_does_not_end_it(node: Node) -> None:
    gate = Gate()
    node.source.script(gate)
    node.filler.prefetch(node.cached, range(1), owner="file")
    read = node.read(0, 10)
    await within(gate.reached.wait())
    node.filler.leave(read)
    gate.open.set()
    await node.flights_end()
    assert node.cached.present[0]


async def test_what_is_only_queued_for_an_owner_that_is_gone_is_dropped(tmp_path: Path) -> None:
    node = await make_node(tmp_path, budget=Budget("narrow", 1, 1 << 30, 30.0))
    gate = Gate()
    node.source.script(gate)
    node.filler.prefetch(node.cached, range(4), owner="gone")
    node.filler.prefetch(node.cached, range(2, 3), owner="stays")
    await within(gate.reached.wait())
    node.filler.disown("gone")
    gate.open.set()
    await node.flights_end(4)
    assert list(node.cached.present) == [1, 0, 1, 0, 0]
    assert node.fills() == (2, 0, 2)
    await end(node)


async def test_a_reader_goes_before_what_was_queued_ahead_of_it(tmp_path: Path) -> None:
    node = await make_node(tmp_path, budget=Budget("narrow", 1, 1 << 30, 30.0))
    gate = Gate()
    node.source.script(gate)
    node.filler.prefetch(node.cached, range(4), owner="file")
    await within(gate.reached.wait())
    read = node.read(3 * CHUNK, 10)
    gate.open.set()
    assert await within(read.result) == read.expected
    await node.flights_end(4)
    assert [extent.offset // CHUNK for extent in node.source.fetches] == [0, 3, 1, 2]
    await end(node)


async def test_a_fetch_knows_who_wanted_its_chunk_when_it_began(tmp_path: Path) -> None:
    node = await make_node(tmp_path, budget=Budget("memory", 1, 1 << 30, deadline=30.0))
    gates = [Gate() for _ in range(4)]
    for gate in gates:
        node.source.script(gate)
    began = []
    node.filler.prefetch(node.cached, range(3), object())
    await within(gates[0].reached.wait())
    node.filler.prefetch(node.cached, range(2, 3), object(), Urgency.PEER)
    read = node.read(3 * CHUNK, 10)
    for gate in gates:
        await within(gate.reached.wait())
        began.append((node.source.fetches[-1].offset // CHUNK, node.source.urgencies[-1]))
        gate.open.set()
    assert began == [(0, Urgency.PREFETCH), (3, Urgency.READER), (2, Urgency.PEER), (1, Urgency.PREFETCH)]
    assert await within(read.result) == read.expected
    await end(node)


async def test_a_prefetch_that_gave_up_takes_no_patience_from_a_reader(node: Node) -> None:
    node.source.outage = OriginUnavailable("no route")
    node.filler.prefetch(node.cached, range(1), owner="file")
    while not node.fills()[1]:
        sleeping = asyncio.create_task(node.clock.next_sleep())
        ending = asyncio.create_task(node.flights_end())
        await within(asyncio.wait([sleeping, ending], return_when=asyncio.FIRST_COMPLETED))
        ending.cancel()
        sleeping.cancel()
        if sleeping.done() and not sleeping.cancelled():
            node.clock.advance(sleeping.result())
    asked = len(node.source.fetches)
    node.filler.prefetch(node.cached, range(1), owner="file")
    node.source.outage = None
    assert len(node.source.fetches) == asked, "prefetch itself waits for the setback's end"
    read = node.read(0, 10)
    assert await within(read.result) == read.expected


async def test_a_full_store_is_read_through_and_the_last_chunks_of_it_once(tmp_path: Path) -> None:
    node = await make_node(tmp_path, capacity=CHUNK)
    first = node.read(0, 10)
    assert await within(first.result) == first.expected
    await node.flights_end()
    for offset, length in ((CHUNK, 10), (CHUNK + 500, 2000), (2 * CHUNK - 100, 200), (CHUNK - 5, 10)):
        read = node.read(offset, length)
        assert await within(read.result) == read.expected
    await node.flights_end(2)
    assert len(node.source.fetches) == 3
    assert node.store.directories[0].used == CHUNK and sum(node.cached.present) == 1
    assert node.metrics.counters()["headrace_passing_bytes_total"] == 2 * CHUNK
    await end(node)


async def test_a_read_that_comes_back_to_a_fetch_that_is_failing_is_answered_once(node: Node) -> None:
    node.source.script(CHUNK, StoreFailed("refused"))  # the reader knows of its bytes by then
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    read = node.read(CHUNK - 100, 200)
    assert await within(read.result) == read.expected
    await node.flights_end(3)
    assert told == [] and node.fills()[1] == 1


async def test_a_fault_in_a_source_fails_the_read_and_is_not_swallowed(node: Node) -> None:
    seen: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context["exception"]))
    fault = ValueError("a bug")
    node.source.script(fault)
    with pytest.raises(StoreFailed, match="internal error"):
        await within(node.read(0, 10).result)
    await node.flights_end()
    assert seen == [fault]


async def test_closing_ends_every_flight_and_tells_no_reader(tmp_path: Path) -> None:
    node = await make_node(tmp_path, budget=Budget("narrow", 2, 1 << 30, 30.0))
    gate = Gate()
    node.source.script(gate)
    node.source.script(OriginUnavailable("reset"))
    reads = [node.read(chunk * CHUNK, 10) for chunk in range(3)]
    node.filler.prefetch(node.cached, range(3, 5), owner="file")
    await within(gate.reached.wait())
    await node.clock.next_sleep()
    await within(node.filler.close())
    assert node.source.running == 0
    reads.append(node.read(4 * CHUNK, 10))
    assert not any(read.result.done() for read in reads)
    assert node.fills() == (0, 0, 5)
    assert not node.cached.landings and node.store.directories[0].used == 0
    await within(node.store.close())


@given(
    attempt=st.integers(0, 10_000),
    retry_after=st.none() | st.floats(0, 1e9),
    deadline=st.floats(0.001, 600),
    seed=st.integers(0, 99),
)
def test_a_backoff_is_never_longer_than_the_deadline_and_never_shorter_than_asked_for_or_usual(
    attempt: int, retry_after: float | None, deadline: float, seed: int
) -> None:
    delay = backoff(attempt, retry_after, deadline, random.Random(seed))
    assert 0 <= delay <= deadline
    if retry_after is not None:
        assert delay >= min(retry_after, deadline)
        assert delay >= min(backoff(attempt, None, deadline, random.Random(seed)), deadline)
    else:
        assert delay <= LAST_BACKOFF
        assert delay >= min(deadline, FIRST_BACKOFF / 2)


async def test_a_chunk_that_the_swarm_writes_is_passed_through_for_its_readers_and_kept_by_nobody_else(
    node: Node,
) -> None:
    assert node.store.grant(node.cached, 0)
    assert not node.store.grant(node.cached, 0)
    read = node.read(0, 100)
    assert await within(read.result) == read.expected
    await node.flights_end()
    assert node.cached.granted == {0}
    assert not node.cached.present[0]
    node.filler.prefetch(node.cached, range(1), object())
    assert not node.filler.preload(node.cached, 0, object(), lambda error: None)
    assert not node.cached.landings
    node.store.take_back(node.cached, [0])
    assert not node.store.grant(node.cached, 0)  # before its bytes have gone
    await within(node.store.emptied(node.cached, 0))
    assert (node.store.directories[0].used, node.cached.granted) == (0, set())
    assert node.store.grant(node.cached, 0)


async def test_bytes_that_nothing_proved_behind_the_last_one_are_fetched_anew(tmp_path: Path) -> None:
    node = await make_node(tmp_path, budget=Budget("late", 4, 1 << 30, 30.0, proven_late=True))
    node.source.script(CHUNK, OriginUnavailable("not to be asked for the version"))
    over = list[HeadraceError | None]()
    assert node.filler.preload(node.cached, 0, node, over.append)
    await node.flights_end()
    assert [type(error) for error in over] == [OriginUnavailable]
    assert not node.cached.present[0]
    read = node.read(0, CHUNK)
    assert await within(read.result) == read.expected
    assert len(node.source.fetches) == 2
    await end(node)


async def test_what_passes_through_and_turns_out_to_be_another_version_is_not_kept(tmp_path: Path) -> None:
    node = await make_node(tmp_path, capacity=CHUNK)
    first = node.read(0, 10)
    assert await within(first.result) == first.expected
    await node.flights_end()
    node.source.script(CHUNK, VersionChanged("another one"))
    read = node.read(CHUNK, 10)
    assert await within(read.result) == read.expected  # as it arrived
    await node.flights_end()
    assert not node.cached.passing
    await end(node)
