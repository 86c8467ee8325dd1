"""Real swarms on loopback: libtorrent between two and three agents, each on an address of its own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import libtorrent
import pytest

from agent.clock import SystemClock
from agent.content import Dataset, ListedObject, ObjectRef, build_dataset
from agent.errors import StoreFailed
from agent.peers import gathering, joined, swarm
from agent.peers.metainfo import PIECE, Layout, mark_of, piece_hashes, sets_of
from agent.peers.swarm import Swarm, Torrent
from agent.peers.warmings import SwarmWarming, SwarmWarmings
from tests.agent.peers.conftest import random_bytes
from tests.fakes.source import Gate
from tests.harness.members import SECRET, Member, address_of, addresses, member

CHUNK = 2 << 20
SIZES = {"a": 9 * (1 << 20) + 4321, "b": 3 << 20, "c": 777}
DATA = {
    f"s3://models/swarm/{name}": random_bytes(size, seed) for seed, (name, size) in enumerate(SIZES.items())
}
REFS = [ObjectRef(uri, "etag-1", len(data)) for uri, data in DATA.items()]
TOTAL = sum(SIZES.values())
WITHIN = 30.0


class Members:
    """Agents that know each other, each started and stopped by its number."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._addresses = addresses(3)
        self._running: dict[int, AsyncExitStack] = {}

    async def start(self, number: int, zone: str = "") -> Member:
        stack = self._running[number] = AsyncExitStack()
        one = member(self._directory, self._addresses, number, DATA, CHUNK, zone=zone)
        return await stack.enter_async_context(one)

    async def stop(self, number: int) -> None:
        await self._running.pop(number).aclose()

    async def close(self) -> None:
        for number in list(self._running):
            await self.stop(number)


@pytest.fixture
async def members(tmp_path: Path) -> AsyncIterator[Members]:
    made = Members(tmp_path)
    yield made
    await made.close()


Start = Callable[[int], Awaitable[Member]]


@pytest.fixture
def start(members: Members) -> Start:
    """Starts one of three agents."""
    return members.start


async def warm(*members: Member) -> None:
    async with asyncio.timeout(WITHIN):
        await asyncio.gather(*(one.swarming.warm(REFS) for one in members))


def is_there_or_open(path: Path) -> bool:
    """Whether a file is there, or this process has it open without its name."""
    return path.exists() or any(str(path) in os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir())


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


async def test_agents_that_warm_at_once_share_the_reading_of_the_origin(start: Start) -> None:
    members = [await start(number) for number in range(3)]
    await warm(*members)
    assert [await has_all(one) for one in members] == [True] * 3
    # It is TOTAL but where a machine is so busy that agents do not hear of each other in time.
    assert TOTAL <= sum(one.origin_bytes for one in members) < 2 * TOTAL
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


async def test_what_the_own_zone_lacks_comes_from_another_one_in_the_background(
    members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, met = Torrent.connect, set[tuple[str, bool]]()

    def noted(torrent: Torrent, host: str, port: int, background: bool) -> bool:
        if host != address_of(2):  # by the third: it alone asks
            met.add((host, background))
        return connect(torrent, host, port, background)

    far, near, third = [await members.start(number, zone) for number, zone in enumerate("baa")]
    for ref in REFS:
        count = -(-ref.size // CHUNK)
        await near.keep(ref, DATA[ref.uri], range(0, count, 2))
        await far.keep(ref, DATA[ref.uri], range(1, count, 2))
    monkeypatch.setattr(Torrent, "connect", noted)
    await warm(third)
    assert await has_all(third)
    assert third.swarm_bytes == TOTAL
    assert met == {(address_of(0), True), (address_of(1), False)}


async def test_connections_within_a_zone_and_to_another_one_are_begun_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with outsider(tmp_path, "127.0.0.9") as (torrent, _):

        def asked(*ways: bool) -> list[bool]:
            return [torrent.connect(f"127.0.0.{2 + background}", 1, background) for background in ways]

        assert asked(False, False, True) == [True, True, False]
        assert asked(False, True) == [False, False]  # it is the other one's turn, in a moment
        monkeypatch.setattr(swarm, "BEGUN_WITHIN", 0.0)
        assert asked(False, True) == [False, True]
        monkeypatch.undo()
        assert asked(True, False, True) == [True, False, False]
        monkeypatch.setattr(swarm, "TURNED_WITHIN", 0.0)  # who had the turn has not come
        assert asked(True) == [True]


async def damage(one: Member, ref: ObjectRef, chunk: int) -> None:
    """Have the disk give back another byte than the one that was recorded."""
    cached = await one.store.acquire(ref)
    at = cached.extent(chunk).offset
    os.pwrite(cached.fd, bytes([DATA[ref.uri][at] ^ 1]), at)
    one.store.release(cached)


async def test_a_damaged_chunk_is_handed_on_by_nobody(start: Start) -> None:
    first, second, third = [await start(number) for number in range(3)]
    await keep_all(first)
    await damage(first, REFS[0], 1)
    await warm(second, third)
    assert [await has_all(one) for one in (second, third)] == [True, True]


async def make_unreadable(one: Member, ref: ObjectRef) -> None:
    """Have every read of an object's file fail."""
    cached = await one.store.acquire(ref)
    fd = os.open(cached.path, os.O_WRONLY)
    os.dup2(fd, cached.fd)
    os.close(fd)
    one.store.release(cached)


async def test_what_the_disk_of_the_only_one_that_has_it_does_not_give_back_comes_from_the_origin(
    start: Start,
) -> None:
    first, second = await start(0), await start(1)
    await keep_all(first)
    await make_unreadable(first, REFS[0])
    await warm(second)
    assert await has_all(second)
    assert second.origin_bytes == REFS[0].size


@pytest.mark.parametrize("others", [0, 1])
async def test_a_warming_ends_with_an_error_where_what_is_here_cannot_be_read(
    start: Start, others: int
) -> None:
    first, *rest = [await start(number) for number in range(1 + others)]
    await keep_all(first)
    await make_unreadable(first, REFS[0])
    for one in rest:
        await keep_all(one)
    with pytest.raises(StoreFailed, match="the disk did not give back"):
        await warm(first)


async def test_an_agent_without_peers_warms_from_the_origin(start: Start) -> None:
    alone = await start(0)
    await warm(alone)
    assert await has_all(alone)
    assert (alone.origin_bytes, alone.swarm_bytes) == (TOTAL, 0)


async def test_a_restarted_agent_goes_on_where_it_was_and_hashes_nothing_again(members: Members) -> None:
    first, second = await members.start(0), await members.start(1)
    await keep_all(first)
    await second.keep(REFS[0], DATA[REFS[0].uri], [0, 1])
    await warm(second)
    assert first.hashed + second.hashed >= TOTAL  # a chunk that both have may be hashed by both
    assert second.swarm_bytes == TOTAL - 2 * CHUNK
    for number in (0, 1):
        await members.stop(number)
    first, second, third = [await members.start(number) for number in range(3)]
    await warm(second, third)
    assert (second.swarm_bytes, third.swarm_bytes) == (0, TOTAL)
    assert (first.hashed, second.hashed, third.hashed) == (0, 0, 0)
    assert await has_all(third)


async def test_wrong_pieces_of_a_member_never_reach_the_index_and_it_is_left_out(members: Members) -> None:
    first, rogue = await members.start(0), await members.start(1)
    await keep_all(first)
    await warm(rogue)  # it knows every hash, and counts as having every byte
    await members.stop(0)
    for seed, ref in enumerate(REFS):
        cached = await rogue.store.acquire(ref)
        os.pwrite(cached.fd, random_bytes(ref.size, 100 + seed), 0)
        rogue.store.release(cached)
    third = await members.start(2)
    await warm(third)
    assert third.swarm_bytes == 0
    assert third.counted('headrace_peer_failures_total{reason="wrong"}') >= 1
    assert await has_all(third)
    assert third.origin_bytes == TOTAL


@pytest.mark.parametrize("host", ["127.0.0.9", "127.0.0.3"])  # an outsider's, and a member's
async def test_who_is_no_member_or_does_not_know_the_infohash_gets_no_handshake(
    members: Members, host: str
) -> None:
    first, second = await members.start(0), await members.start(1)
    await keep_all(first)
    await warm(second)  # both are in the swarm now
    assert first.torrents == second.torrents == 1
    port = first.cluster.swarm_port
    assert await answer_to(host, (address_of(0), port), HANDSHAKE + infohash()) == b""
    assert await answer_to(host, (address_of(0), port), HANDSHAKE + os.urandom(40)) == b""


HANDSHAKE = b"\x13BitTorrent protocol" + bytes(8)


def metainfo(layout: Layout) -> dict[bytes, object]:
    """The set's, as members make it."""
    hashes = {}
    for number, chunk in layout.chunks():
        extent = layout.extent(number, chunk)
        data = DATA[layout.refs[number].uri][extent.offset : extent.end]
        parts = [data[at : at + PIECE] for at in range(0, len(data), PIECE)]
        hashes[number, chunk] = b"".join(piece_hashes(parts, layout.padding(number, chunk)))
    return layout.info(hashes, mark_of(SECRET.encode(), layout.id))


def infohash() -> bytes:
    """What only members can make; here it is sent as no member does, without its encryption."""
    info = metainfo(Layout(sets_of(REFS)[0], CHUNK))
    return hashlib.sha1(libtorrent.bencode(cast(Any, info))).digest() + os.urandom(20)


class Came:
    """The pieces that came to somebody."""

    def __init__(self, pieces: int) -> None:
        self.missing = set(range(pieces))
        self.any = False
        self.all = asyncio.Event()

    def __call__(self, piece: int) -> None:
        self.any = True
        self.missing.discard(piece)
        if not self.missing:
            self.all.set()


@asynccontextmanager
async def outsider(directory: Path, host: str) -> AsyncIterator[tuple[Torrent, Came]]:
    """Somebody who knows all that a member knows, at an address."""
    layout = Layout(sets_of(REFS)[0], CHUNK)
    names = {file: f"{host}-{number}" for file, number in enumerate(layout.files()) if number is not None}
    own, came = await Swarm.start(host, 0), Came(layout.pieces)
    own.admit([address_of(0)])
    none, every = [False] * layout.pieces, [True] * layout.pieces
    paths = {file: directory / name for file, name in names.items()}
    yield own.add(metainfo(layout), paths, none, every, came), came
    await own.close()


@pytest.mark.parametrize("utp", [False, True])
async def test_an_outsider_who_knows_all_gets_nothing_where_a_member_gets_all(
    members: Members, tmp_path: Path, utp: bool
) -> None:
    first, second = await members.start(0), await members.start(1)
    await keep_all(first)
    await warm(second)
    port = first.cluster.swarm_port
    async with outsider(tmp_path, "127.0.0.9") as outside, outsider(tmp_path, address_of(2)) as inside:
        for torrent, _ in (outside, inside):
            assert torrent.connect(address_of(0), port, background=utp)
        await asyncio.wait_for(inside[1].all.wait(), WITHIN)
        assert not outside[1].any


async def answer_to(host: str, address: tuple[str, int], sent: bytes) -> bytes:
    """All that is answered to bytes sent from a host until the connection is closed."""
    async with asyncio.timeout(WITHIN):
        reader, writer = await asyncio.open_connection(*address, local_addr=(host, 0))
        try:
            writer.write(sent)
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def warming(one: Member, refs: Sequence[ObjectRef]) -> AsyncIterator[SwarmWarming]:
    """A dataset of these objects, as one asks for it at the admin API."""
    dataset = build_dataset("s3://models/", [ListedObject(str(at), ref) for at, ref in enumerate(refs)])

    async def resolve(uri: str) -> Dataset:
        return dataset

    warmings = SwarmWarmings(one.swarming, one.store, resolve, SystemClock())
    begun = await warmings.begin(dataset.uri)
    yield begun
    await asyncio.wait_for(warmings.ended(begun.id), WITHIN)
    await warmings.close()


async def test_a_warming_that_the_store_ends_is_not_done(start: Start) -> None:
    alone, gate = await start(0), Gate()
    await alone.keep(REFS[0], DATA[REFS[0].uri])
    alone.origin.script(0, gate)
    async with warming(alone, REFS) as one:
        await asyncio.wait_for(gate.reached.wait(), WITHIN)
        await alone.store.before_removal(REFS[0].key)  # as a repair does
    assert one.state == "failed"
    assert "ended before all of it was here" in one.error
    assert not await has_all(alone)
    gate.open.set()


async def test_a_warming_that_is_ended_as_it_begins_is_not_waited_for(start: Start) -> None:
    alone = await start(0)
    warming = asyncio.create_task(alone.swarming.warm(REFS))
    await asyncio.sleep(0)
    await alone.swarming.end(REFS[0].key)
    with pytest.raises(StoreFailed, match="ended before all of it was here"):
        await asyncio.wait_for(warming, WITHIN)


async def test_a_warming_of_what_the_store_took_away_meanwhile_is_not_done(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.peers.metainfo.MOST_OBJECTS", 1)  # of a set
    alone, gate = await start(0), Gate()
    first, second = sorted(REFS[:2], key=lambda ref: ref.key)
    await alone.keep(first, DATA[first.uri])
    alone.origin.script(0, gate)
    async with warming(alone, [first, second]) as one:
        await asyncio.wait_for(gate.reached.wait(), WITHIN)  # the first one is warm
        assert await alone.store.take_object(alone.store.directories[0], first.key) == first.size
        gate.open.set()
    assert (one.state, one.error) == ("failed", "the store took 1 objects away meanwhile; try again")


async def test_a_warming_that_a_fault_of_the_agent_ends_is_not_done(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(refs: object) -> list[Any]:
        raise ValueError("a fault of ours")

    monkeypatch.setattr(gathering, "objects_as", broken)
    async with warming(await start(0), REFS) as one:
        pass
    assert one.state == "failed"
    assert "internal error ValueError" in one.error
    assert any(record.exc_info for record in caplog.records)


async def test_a_warming_that_is_cut_off_by_the_end_of_the_agent_is_not_done(start: Start) -> None:
    alone, gate = await start(0), Gate()
    alone.origin.script(0, gate)
    dataset = build_dataset("s3://models/", [ListedObject("a", REFS[0])])

    async def resolve(uri: str) -> Dataset:
        return dataset

    warmings = SwarmWarmings(alone.swarming, alone.store, resolve, SystemClock())
    one = await warmings.begin(dataset.uri)
    await asyncio.wait_for(gate.reached.wait(), WITHIN)
    await warmings.close()
    assert (one.state, one.error) == ("failed", "the agent stops")
    gate.open.set()


async def test_a_set_with_a_name_that_no_word_has_room_for_is_filled_as_ever(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = ObjectRef("s3://models/" + "x" * 4096, "etag-1", SIZES["c"])
    monkeypatch.setitem(DATA, long.uri, DATA[REFS[2].uri])
    alone = await start(0)
    async with warming(alone, [*REFS, long]) as one:
        pass
    assert (one.state, one.error) == ("done", "")
    assert [await alone.content(ref) for ref in (*REFS, long)] == list(DATA.values())
    assert alone.swarming.claimed() == set()


async def test_eviction_ends_the_torrent_before_it_takes_the_bytes(members: Members) -> None:
    first, second = await members.start(0), await members.start(1)
    await keep_all(first)
    await warm(second)
    assert (first.torrents, second.torrents) == (1, 1)
    directory = second.store.directories[0]
    path = directory.file_of(REFS[0].key)
    assert await second.store.take_object(directory, REFS[0].key) == REFS[0].size
    assert second.torrents == 0
    assert not is_there_or_open(path)


async def test_chunks_that_are_evicted_end_the_torrent_of_one_that_has_a_part(members: Members) -> None:
    first, second = await members.start(0), await members.start(1)
    await first.keep(REFS[0], DATA[REFS[0].uri], [0, 1, 2])
    await warm(second)
    assert first.torrents == 1
    cached = await first.store.acquire(REFS[0])
    await first.store.take_chunks(REFS[0].key, [1])
    first.store.release(cached)
    assert first.torrents == 0
    assert [bool(there) for there in cached.present[:3]] == [True, False, True]


async def test_what_is_being_warmed_is_claimed_and_not_filled_by_others(
    members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joined, "STALL", 0.5)
    first, second = await members.start(0), await members.start(1)
    await keep_all(first)
    # The first knows the second as nobody: it lets it learn the hashes, and not into the swarm.
    in_swarm = asyncio.Event()

    def connected(*_: object, background: bool) -> bool:
        in_swarm.set()
        return True

    monkeypatch.setattr(Torrent, "connect", connected)
    warming = asyncio.create_task(warm(second))
    cached = await second.store.acquire(REFS[0])
    await asyncio.wait_for(in_swarm.wait(), WITHIN)
    assert cached.granted
    assert second.swarming.claimed() == {ref.key for ref in REFS}
    assert not second.filler.preload(cached, 0, object(), lambda error: None)
    with pytest.raises(StoreFailed, match="the swarm brings"):
        second.store.reserve(cached, 0)
    await warming
    assert await has_all(second)
    assert (second.swarm_bytes, cached.granted) == (0, set())
    second.store.release(cached)
    assert second.store.directories[0].used == TOTAL
