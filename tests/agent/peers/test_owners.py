"""Small objects from their owners: in few requests, in a bounded time, from nobody who brings others."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from agent.cache.fill import Filler
from agent.clock import SystemClock
from agent.content import ObjectRef
from agent.errors import AccessDenied, VersionChanged
from agent.metrics import Metrics
from agent.peers import ownership as ownership_module
from agent.peers.exchange_client import ExchangeClient
from agent.peers.exchange_server import Call
from agent.peers.liveness import Liveness
from agent.peers.member import Peer
from agent.peers.owners import SLOT, Elsewhere, SmallObjects
from agent.peers.ownership import Ownership
from agent.peers.placement import owners_of
from agent.peers.secrets import Secrets
from agent.peers.small import (
    CALL,
    LONGEST_URI,
    LONGEST_VERSION,
    OLD_CALL,
    Frame,
    State,
    answer_of,
    parse_answer,
    parse_request,
    request_of,
)
from agent.peers.token import Tokens
from agent.source import Budget
from agent.transfer.engine import Engine
from tests.agent.peers.conftest import Serve, random_bytes, secret_file
from tests.fakes.discovery import MemoryDiscovery
from tests.fakes.source import Gate, MemorySource
from tests.harness.members import addresses, member
from tests.harness.s3 import free_ports

OWN = Peer("127.0.0.1:1", "127.0.0.1:1")
DATA = {f"s3://models/{number}.json": random_bytes(1000, number) for number in range(200)}
REFS = [ObjectRef(uri, "etag", len(data)) for uri, data in DATA.items()]


class Asking:
    """An agent that asks for small objects."""

    def __init__(self, tokens: Tokens, engine: Engine) -> None:
        clock = SystemClock()
        self.client = ExchangeClient(tokens, engine)
        self.discovery = MemoryDiscovery(OWN.address)
        self.liveness = Liveness(clock)
        self.metrics = Metrics()
        self.small = SmallObjects(OWN, self.discovery, self.liveness, self.client, clock, self.metrics)

    def owned_by(self, peer: Peer) -> list[ObjectRef]:
        peers = [OWN, *self.discovery.peers()]
        return [ref for ref in REFS if owners_of(ref.key[:SLOT], peers, 1) == [peer]]

    async def fetch(self, refs: Sequence[ObjectRef]) -> list[bytes | Elsewhere]:
        async with asyncio.timeout(20):
            return await asyncio.gather(*(self.small.fetch(ref) for ref in refs))


class Scripted:
    """An owner that has everything, and counts what it was asked for; `spoil` changes its answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[ObjectRef], bool]] = []
        self.spoil = False

    async def call(self, sender: str, body: bytes) -> bytes:
        refs, fetch = parse_request(body)
        self.asked.append((refs, fetch))
        frames = [Frame.of(ref.key, DATA[ref.uri]) for ref in refs]
        if self.spoil:
            frames = [Frame(one.key, one.state, one.data[::-1], one.digest) for one in frames]
        return answer_of(frames)


@pytest.fixture
async def asking(tmp_path: Path) -> AsyncIterator[Asking]:
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        engine = Engine(1, clock)
        stack.push_async_callback(engine.close)
        one = Asking(Tokens(Secrets(secret_file(tmp_path), clock), clock, OWN.name), engine)
        stack.push_async_callback(one.client.close)
        stack.push_async_callback(one.small.close)
        yield one


async def scripted(serve: Serve, asking: Asking) -> tuple[Scripted, Peer]:
    """The only peer of the asking agent."""
    owner = Scripted()
    served = await serve("owner", {CALL: owner.call})
    peer = Peer(served.address, served.address)
    asking.discovery.set([peer])
    return owner, peer


async def test_what_is_wanted_together_comes_in_one_request(serve: Serve, asking: Asking) -> None:
    owner, peer = await scripted(serve, asking)
    wanted = asking.owned_by(peer)
    assert len(wanted) > 50
    assert await asking.fetch(wanted) == [DATA[ref.uri] for ref in wanted]
    assert [(len(refs), fetch) for refs, fetch in owner.asked] == [(len(wanted), True)]


async def test_what_is_foreseen_comes_together_and_is_taken_one_by_one(serve: Serve, asking: Asking) -> None:
    owner, peer = await scripted(serve, asking)
    wanted = asking.owned_by(peer)
    asking.small.foresee(wanted)
    for ref in wanted:
        assert await asking.fetch([ref]) == [DATA[ref.uri]]
    assert len(owner.asked) == 1


async def test_an_object_whose_name_no_request_has_room_for_goes_to_the_origin_alone(
    serve: Serve, asking: Asking
) -> None:
    owner, peer = await scripted(serve, asking)
    wanted = asking.owned_by(peer)[:20]
    unnamed = [ObjectRef(f"https://h/{number}/" + "x" * LONGEST_URI, "etag", 1000) for number in range(10)]
    unnamed += [ObjectRef(f"https://h/{number}", "v" * (LONGEST_VERSION + 1), 1000) for number in range(10)]
    asking.small.foresee([*unnamed, *wanted])
    found = await asking.fetch([*unnamed, *wanted])
    assert found == [*[Elsewhere.ORIGIN] * 20, *(DATA[ref.uri] for ref in wanted)]
    assert [len(refs) for refs, _ in owner.asked] == [len(wanted)]


async def test_the_owner_asks_the_next_in_rank_for_what_that_has_and_then_the_origin(
    serve: Serve, asking: Asking
) -> None:
    owner, _ = await scripted(serve, asking)
    wanted = asking.owned_by(OWN)
    assert await asking.fetch(wanted) == [DATA[ref.uri] for ref in wanted]
    assert [fetch for _, fetch in owner.asked] == [False]


async def test_wrong_bytes_are_not_taken_and_their_sender_is_left_out(serve: Serve, asking: Asking) -> None:
    owner, peer = await scripted(serve, asking)
    owner.spoil = True
    first, *_ = asking.owned_by(peer)
    assert await asking.fetch([first]) == [Elsewhere.ORIGIN]
    assert not asking.liveness.usable(peer.name)
    assert asking.metrics.peer_failures["wrong"]._value.get() == 1


async def test_an_owner_of_another_version_is_left_in_peace(serve: Serve, asking: Asking) -> None:
    served = await serve("owner", {OLD_CALL: Scripted().call})
    peer = Peer(served.address, served.address)
    asking.discovery.set([peer])
    first, *_ = asking.owned_by(peer)
    assert await asking.fetch([first]) == [Elsewhere.ORIGIN]
    assert asking.liveness.usable(peer.name)
    assert not asking.metrics.peer_failures["silent"]._value.get()


async def test_an_owner_that_is_gone_is_left_out_and_the_next_one_asked(serve: Serve, asking: Asking) -> None:
    owner, peer = await scripted(serve, asking)
    gone = Peer(*[f"127.0.0.1:{free_ports(1)[0]}"] * 2)
    asking.discovery.set([gone, peer])
    peers = [OWN, gone, peer]
    wanted = [ref for ref in REFS if owners_of(ref.key[:SLOT], peers, 2) == [gone, peer]]
    assert await asking.fetch(wanted) == [DATA[ref.uri] for ref in wanted]
    assert not asking.liveness.usable(gone.name)
    assert [len(refs) for refs, _ in owner.asked] == [len(wanted)]


async def test_without_peers_and_for_files_of_the_node_nobody_is_asked(asking: Asking) -> None:
    assert not asking.small.takes(REFS[0])
    asking.discovery.set([Peer("x:1", "x:1")])
    assert asking.small.takes(REFS[0])
    assert not asking.small.takes(ObjectRef("file:///etc/hostname", "v", 10))
    assert not asking.small.takes(ObjectRef("s3://b/large", "v", 2 << 20))
    assert not asking.small.takes(ObjectRef("s3://b/empty", "v", 0))


async def test_an_owner_fetches_what_it_lacks_once_and_says_what_it_cannot_have(
    serve: Serve, asking: Asking
) -> None:
    calls: dict[str, Call] = {}
    served = await serve("owner", calls)
    origin, clock = MemorySource(DATA), SystemClock()
    filler = Filler(served.store, origin, clock, served.metrics, 30.0, random.Random(1))
    alone = MemoryDiscovery(served.address)
    own = Peer(served.address, served.address)
    small = SmallObjects(own, alone, Liveness(clock), asking.client, clock, served.metrics)
    ownership = Ownership(served.store, filler, small, clock, served.metrics)
    calls[CALL] = ownership.call
    asking.discovery.set([own])
    *wanted, denied = asking.owned_by(own)[:21]
    try:
        assert await asking.fetch(wanted) == [DATA[ref.uri] for ref in wanted]
        assert await asking.fetch(wanted) == [DATA[ref.uri] for ref in wanted]
        assert len(origin.fetches) == len(wanted)
        origin.outage = AccessDenied("no")
        assert await asking.fetch([*wanted[:2], denied]) == [
            *(DATA[ref.uri] for ref in wanted[:2]),
            Elsewhere.RELAY,
        ]
    finally:
        await filler.close()


async def test_an_owner_says_of_a_damaged_object_that_it_is_not_here(
    serve: Serve, asking: Asking, caplog: pytest.LogCaptureFixture
) -> None:
    calls: dict[str, Call] = {}
    served = await serve("owner", calls)
    filler = Filler(served.store, MemorySource(DATA), SystemClock(), served.metrics, 30.0, random.Random(1))
    own = Peer(served.address, served.address)
    ownership = Ownership(served.store, filler, asking.small, SystemClock(), served.metrics)
    calls[CALL] = ownership.call
    asking.discovery.set([own])
    right, wrong, *_ = asking.owned_by(own)
    await served.keep(right, DATA[right.uri])
    cached = await served.keep(wrong, DATA[wrong.uri])
    os.pwrite(cached.fd, b"damaged", 5)
    assert await asking.fetch([right, wrong]) == [DATA[right.uri], Elsewhere.RELAY]
    assert asking.liveness.usable(own.name)
    assert "damaged" in caplog.text
    await filler.close()


async def test_an_owner_says_of_bytes_that_are_not_proven_yet_that_they_are_coming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership_module, "ANSWER_WITHIN", 0.1)
    everybody, clock = addresses(2), SystemClock()
    data = {uri: DATA[uri] for uri in list(DATA)[:50]}
    budget = Budget("late", connections=64, bytes_in_flight=1 << 30, deadline=30.0, proven_late=True)
    async with member(tmp_path, everybody, 0, data, 1 << 20, swarm=False, budget=budget) as owner:
        own, other = (Peer(address, address) for address in everybody)
        ref = next(ref for ref in REFS[:50] if owners_of(ref.key[:SLOT], [own, other], 1) == [own])
        tokens = Tokens(Secrets(tmp_path / "peer-secret", clock), clock, everybody[1])
        engine = Engine(1, clock)
        client = ExchangeClient(tokens, engine)
        gate = Gate()
        owner.origin.script(1000, gate, VersionChanged("another one"))

        async def state() -> State:
            answer = await client.call(own, CALL, request_of([ref], fetch=True), 10.0)
            return parse_answer(answer)[ref.key].state

        assert await state() is State.COMING
        await asyncio.wait_for(gate.reached.wait(), 10)
        assert await state() is State.COMING
        gate.open.set()
        assert await state() is State.ABSENT
        await client.close()
        await engine.close()


async def test_two_that_take_each_other_for_the_owner_do_not_wait_for_each_other(
    serve: Serve, asking: Asking
) -> None:
    ownership: list[Ownership] = []
    answers: list[bytes] = []

    async def ask_back(sender: str, body: bytes) -> bytes:
        refs, _ = parse_request(body)
        answers.append(await ownership[0].call("the other one", body))
        return answer_of(Frame.of(ref.key, DATA[ref.uri]) for ref in refs)

    served = await serve("owner", {CALL: ask_back})
    filler = Filler(served.store, MemorySource(DATA), SystemClock(), served.metrics, 30.0, random.Random(1))
    ownership.append(Ownership(served.store, filler, asking.small, SystemClock(), served.metrics))
    peer = Peer(served.address, served.address)
    asking.discovery.set([peer])
    first, *_ = asking.owned_by(peer)
    assert await asking.fetch([first]) == [DATA[first.uri]]
    assert answers == [answer_of([Frame(first.key, State.ABSENT)])]
    await filler.close()
