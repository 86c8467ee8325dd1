"""Agents without mounts, several in one process: a store, its fills, an origin in memory, and peers.

Each has an address of its own on loopback, as nodes have.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import xxhash

from agent.cache.directory import StoreLimits
from agent.cache.fill import Filler
from agent.cache.store import Store
from agent.clock import SystemClock
from agent.config import PeersConfig
from agent.content import ObjectRef
from agent.metrics import Metrics
from agent.peers.cluster import Cluster
from agent.peers.swarming import Swarming
from agent.source import Budget
from tests.fakes.source import MemorySource
from tests.harness.s3 import free_ports

PATIENCE = 30.0
SECRET = "the-secret-of-the-tests-cluster-0123456789"


@dataclass(eq=False)
class Member:
    """One agent."""

    address: str
    store: Store
    filler: Filler
    origin: MemorySource
    metrics: Metrics
    cluster: Cluster

    @property
    def swarming(self) -> Swarming:
        assert self.cluster.swarming is not None
        return self.cluster.swarming

    @property
    def origin_bytes(self) -> int:
        """What it has had of the origin."""
        return sum(extent.length for extent in self.origin.fetches)

    def counted(self, name: str) -> float:
        """A metric, by its name and labels as the text format writes them."""
        return self.metrics.counters()[name]

    @property
    def swarm_bytes(self) -> float:
        """What came to it by the swarm."""
        return self.counted('headrace_swarm_bytes_total{direction="received"}')

    @property
    def hashed(self) -> float:
        """What of its store it hashed for the swarm."""
        return self.counted("headrace_swarm_hashed_bytes_total")

    @property
    def torrents(self) -> float:
        """How many torrents it is in."""
        return self.counted("headrace_swarm_torrents")

    async def keep(self, ref: ObjectRef, data: bytes, chunks: Sequence[int] | None = None) -> None:
        """Put an object into the store: these chunks of it, else all."""
        cached = await self.store.acquire(ref)
        for chunk in range(len(cached.present)) if chunks is None else chunks:
            extent = cached.extent(chunk)
            part = data[extent.offset : extent.end]
            self.store.reserve(cached, chunk)
            os.pwrite(cached.fd, part, extent.offset)
            await self.store.record(cached, chunk, xxhash.xxh3_128_digest(part))
        self.store.release(cached)

    async def content(self, ref: ObjectRef) -> bytes | None:
        """The object as the store has it; None where some of it is absent."""
        cached = await self.store.acquire(ref)
        try:
            return os.pread(cached.fd, ref.size, 0) if cached.complete else None
        finally:
            self.store.release(cached)


def address_of(number: int) -> str:
    """Where member `number` is: each has a host of its own."""
    return f"127.0.0.{number + 2}"


@asynccontextmanager
async def member(
    directory: Path,
    addresses: Sequence[str],
    number: int,
    data: Mapping[str, bytes],
    chunk_size: int,
    swarm: bool = True,
    budget: Budget | None = None,
    zone: str = "",
) -> AsyncIterator[Member]:
    """Start the agent with this number among the addresses; its store stays where it is.

    `budget` is the origin's, `zone` the agent's.
    """
    clock, metrics = SystemClock(), Metrics()
    secret = directory / "peer-secret"
    if not secret.exists():
        secret.write_text(SECRET + "\n")
        secret.chmod(0o600)
    path = directory / f"store-{number}"
    path.mkdir(mode=0o700, exist_ok=True)
    config = PeersConfig(
        listen=addresses[number],
        discovery="static",
        addresses=list(addresses),
        secret_file=secret,
        swarm=swarm,
    )
    async with AsyncExitStack() as stack:
        store = await Store.open([path], chunk_size, StoreLimits(None, 0), clock, metrics)
        stack.push_async_callback(store.close)
        origin = MemorySource(data, budget)
        cluster = Cluster(config, zone, store, origin, clock, metrics, chunk_size)
        stack.push_async_callback(cluster.close)
        filler = Filler(store, cluster.source, clock, metrics, PATIENCE, random.Random(1))
        stack.push_async_callback(filler.close)
        await cluster.serve(filler)
        stack.push_async_callback(cluster.leave)
        if cluster.swarming is not None:
            store.before_removal = store.before_emptying = cluster.swarming.end
        yield Member(addresses[number], store, filler, origin, metrics, cluster)


def addresses(count: int) -> list[str]:
    """Addresses with free ports."""
    return [f"{address_of(number)}:{port}" for number, port in enumerate(free_ports(count))]
