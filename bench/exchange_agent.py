"""One agent of the workload `exchange`, without mounts: store, fills, and its place among the peers.

A job as JSON on standard input. `serve` fills its store with the dataset from the origin, says so, and serves
peers until its input ends; `receive` fills its store from peers, and prints its reading (bench/child.py).
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.cache.directory import StoreLimits
from agent.cache.fill import Filler
from agent.cache.store import Store
from agent.cache.warm import Warming
from agent.clock import SystemClock
from agent.config import PeersConfig
from agent.content import Dataset
from agent.metrics import Metrics
from agent.origin.catalog import Origins
from agent.peers.cluster import Cluster
from agent.transfer.engine import Engine

CHUNK = 8 << 20
PATIENCE = 60.0
LIMIT = 120.0  # seconds for all of the dataset

Job = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Member:
    """The parts of one agent that this is about."""

    store: Store
    filler: Filler
    origins: Origins
    metrics: Metrics

    async def fill(self, dataset: Dataset) -> None:
        """Have all of a dataset in the store. Raises RuntimeError where that fails."""
        async with asyncio.timeout(LIMIT):
            await Warming(self.store, self.filler, dataset).ended()
        present = await self.store.present_bytes([entry.ref.key for entry in dataset.entries])
        if sum(present.values()) != dataset.size:
            raise RuntimeError("the dataset is not whole")


@asynccontextmanager
async def member(job: Job) -> AsyncIterator[Member]:
    """Start an agent that serves peers and asks them; end it in order."""
    clock, metrics = SystemClock(), Metrics()
    config = PeersConfig(
        listen=job["own"], discovery="static", addresses=job["addresses"], secret_file=Path(job["secret"])
    )
    async with AsyncExitStack() as stack:
        directory = Path(job["store"])
        store = await Store.open([directory], CHUNK, StoreLimits(None, 0), clock, metrics)
        stack.push_async_callback(store.close)
        engine = Engine(1, clock)
        stack.push_async_callback(engine.close)
        origins = Origins({}, engine, metrics)
        stack.push_async_callback(origins.close)
        cluster = Cluster(config, "", store, origins, clock, metrics, CHUNK)
        stack.push_async_callback(cluster.close)
        filler = Filler(store, cluster.source, clock, metrics, PATIENCE, random.Random())
        stack.push_async_callback(filler.close)
        await cluster.serve(filler)
        yield Member(store, filler, origins, metrics)


async def serve(job: Job) -> None:
    """Fill the store, and serve until the input ends."""
    async with member(job) as one:
        await one.fill(await one.origins.resolve(job["uri"]))
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


async def receive(job: Job) -> None:
    """Fill the store from the peers. Raises RuntimeError where the origin had to help."""
    async with member(job) as one:
        dataset = await one.origins.resolve(job["uri"])
        before, started = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
        await one.fill(dataset)
        seconds, usage = time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF)
        received = one.metrics.counters()['headrace_peer_bytes_total{direction="received"}']
        if received != dataset.size:
            raise RuntimeError(f"{received:.0f} of {dataset.size} bytes came from the peer")
    cpu = usage.ru_utime + usage.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"seconds": seconds, "size": dataset.size, "cpu_seconds": cpu}))


def main() -> None:
    """Do the job of the first line of standard input."""
    job: Job = json.loads(sys.stdin.readline())
    asyncio.run(serve(job) if job["way"] == "serve" else receive(job))


if __name__ == "__main__":
    main()
