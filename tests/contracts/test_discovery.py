"""What every discovery promises, checked on all of them (agent/peers/discovery.py, `Discovery`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import pytest

from agent.peers.discovery import RESOLVE_EVERY, Discovery, NamedPeers
from agent.peers.member import Peer
from tests.fakes.clock import ManualClock
from tests.fakes.discovery import MemoryDiscovery, ScriptedResolver

OWN, PORT = "10.1.0.17:7411", 7411
A, B, C = "10.1.0.18", "10.1.0.19", "10.1.0.20"


def peer(host: str) -> Peer:
    return Peer(f"{host}:{PORT}", f"{host}:{PORT}")


class Cluster(Protocol):
    """Somewhere with agents, which a discovery looks at."""

    discovery: Discovery

    async def become(self, hosts: Sequence[str]) -> None:
        """Let these be the agents; returns when the discovery can know."""


class MemoryCluster:
    def __init__(self) -> None:
        self.memory = MemoryDiscovery(OWN)
        self.discovery: Discovery = self.memory

    async def become(self, hosts: Sequence[str]) -> None:
        self.memory.set([peer(host) for host in hosts])


class DnsCluster:
    """One name with all addresses."""

    def __init__(self) -> None:
        self.clock, self.resolver = ManualClock(), ScriptedResolver()
        self.resolver.names["agents"] = ()
        named = NamedPeers(OWN, [("agents", PORT)], self.clock, self.resolver, every=True)
        named.start()
        self.discovery: Discovery = named

    async def become(self, hosts: Sequence[str]) -> None:
        await self.clock.next_sleep()
        self.resolver.names["agents"] = list(hosts)
        self.clock.advance(RESOLVE_EVERY)
        await self.clock.next_sleep()
        self.clock.advance(RESOLVE_EVERY)


class StaticCluster:
    """A list of names, some of which have no address at first."""

    def __init__(self) -> None:
        self.clock, self.resolver = ManualClock(), ScriptedResolver()
        self.names = ["one", "two", "three", "four"]
        targets = [(name, PORT) for name in self.names]
        named = NamedPeers(OWN, targets, self.clock, self.resolver, every=False)
        named.start()
        self.discovery: Discovery = named

    async def become(self, hosts: Sequence[str]) -> None:
        await self.clock.next_sleep()
        filled = [*hosts, *[OWN.partition(":")[0]] * 4][:4]
        self.resolver.names = {name: [host] for name, host in zip(self.names, filled, strict=True)}
        self.clock.advance(RESOLVE_EVERY)
        await self.clock.next_sleep()
        self.clock.advance(RESOLVE_EVERY)


@pytest.fixture(params=[MemoryCluster, DnsCluster, StaticCluster])
async def cluster(request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    made: Cluster = request.param()
    yield made
    await made.discovery.close()


async def test_nobody_is_known_at_first(cluster: Cluster) -> None:
    assert cluster.discovery.peers() == ()


async def test_the_others_are_known_each_once_and_in_order(cluster: Cluster) -> None:
    await cluster.become([C, A, B, A])
    assert cluster.discovery.peers() == (peer(A), peer(B), peer(C))


async def test_an_agent_is_no_peer_of_its_own(cluster: Cluster) -> None:
    await cluster.become([A, OWN.partition(":")[0]])
    assert cluster.discovery.peers() == (peer(A),)


async def test_a_waiter_is_told_when_somebody_comes_and_when_somebody_goes(cluster: Cluster) -> None:
    waiting = asyncio.ensure_future(cluster.discovery.changed(()))
    await cluster.become([A, B])
    assert await asyncio.wait_for(waiting, 10) == (peer(A), peer(B))
    waiting = asyncio.ensure_future(cluster.discovery.changed((peer(A), peer(B))))
    await cluster.become([B])
    assert await asyncio.wait_for(waiting, 10) == (peer(B),)


async def test_who_knows_other_peers_is_told_at_once(cluster: Cluster) -> None:
    await cluster.become([A])
    assert await asyncio.wait_for(cluster.discovery.changed((peer(B),)), 10) == (peer(A),)


async def test_a_waiter_may_go_away_and_others_are_told_all_the_same(cluster: Cluster) -> None:
    leaving = asyncio.ensure_future(cluster.discovery.changed(()))
    staying = asyncio.ensure_future(cluster.discovery.changed(()))
    await asyncio.sleep(0)
    leaving.cancel()
    await cluster.become([A])
    assert await asyncio.wait_for(staying, 10) == (peer(A),)
    assert leaving.cancelled()
