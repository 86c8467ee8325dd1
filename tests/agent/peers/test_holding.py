"""What one agent was asked to wait, its peers know: over real sockets."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.errors import BadRequest
from agent.peers.exchange_client import ExchangeClient
from agent.peers.holding import CALL, MOST_ORIGINS, Holding
from agent.peers.liveness import Liveness
from agent.peers.member import Peer
from agent.peers.secrets import Secrets
from agent.peers.token import Tokens
from agent.transfer.engine import Engine
from tests.agent.peers.conftest import Serve, secret_file
from tests.fakes.discovery import MemoryDiscovery
from tests.harness.s3 import free_ports


class Held:
    """Keeps what was told, and lets a test wait for it."""

    def __init__(self) -> None:
        self.all: list[tuple[str, float]] = []
        self.one = asyncio.Event()

    def told(self, origin: str, seconds: float) -> None:
        self.all.append((origin, seconds))
        self.one.set()


class Member:
    def __init__(self, client: ExchangeClient, own: str) -> None:
        clock = SystemClock()
        self.held = Held()
        self.discovery = MemoryDiscovery(own)
        self.holding = Holding(self.held, self.discovery, Liveness(clock), client, clock, random.Random(1))


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[ExchangeClient]:
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        engine = Engine(1, clock)
        stack.push_async_callback(engine.close)
        client = ExchangeClient(Tokens(Secrets(secret_file(tmp_path), clock), clock, "x:1"), engine)
        stack.push_async_callback(client.close)
        yield client


async def test_all_peers_are_told_also_where_one_of_them_is_gone(
    serve: Serve, client: ExchangeClient
) -> None:
    members = [Member(client, f"x:{number}") for number in range(3)]
    peers = [Peer(*[f"127.0.0.1:{free_ports(1)[0]}"] * 2)]
    for number, member in enumerate(members[1:]):
        served = await serve(f"store-{number}", {CALL: member.holding.call})
        peers.append(Peer(served.address, served.address))
    members[0].discovery.set(peers)
    members[0].holding.tell("s3://", 7.0)
    for member in members[1:]:
        await asyncio.wait_for(member.held.one.wait(), 20)
        assert member.held.all == [("s3://", 7.0)]
    await members[0].holding.close()


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"origin": "s3://", "seconds": -1}', b'{"origin": "s3://", "seconds": NaN}']
)
async def test_what_is_no_hold_is_refused(client: ExchangeClient, body: bytes) -> None:
    member = Member(client, "x:1")
    with pytest.raises(BadRequest):
        await member.holding.call("y:1", body)
    assert member.held.all == []


async def test_a_peer_that_names_many_origins_fills_no_memory(client: ExchangeClient) -> None:
    member = Member(client, "x:1")
    for number in range(MOST_ORIGINS):
        await member.holding.call("y:1", json.dumps({"origin": f"s3://{number}", "seconds": 1.0}).encode())
    with pytest.raises(BadRequest):
        await member.holding.call("y:1", b'{"origin": "s3://more", "seconds": 1.0}')
