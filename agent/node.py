"""The agent put together: the parts are made, started and ended in order."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Set
from contextlib import AsyncExitStack
from dataclasses import dataclass

from agent.cache.directory import StoreLimits
from agent.cache.evictor import Evictor
from agent.cache.fill import Filler
from agent.cache.pins import Pins
from agent.cache.repair import Repairs
from agent.cache.scrub import Scrub
from agent.cache.store import Store
from agent.cache.whole import WholeObjects
from agent.clock import Clock
from agent.config import Config
from agent.control.api import application
from agent.control.server import serve_admin, serve_metrics
from agent.control.web import monitoring
from agent.controlled import Node
from agent.metrics import Metrics, build_version
from agent.mount.handover import Handover
from agent.mount.holder import Holder
from agent.mount.inflight import RequestTable
from agent.mount.mounted import Services
from agent.mount.mounts import Mounts
from agent.mount.pool import THREADS, Pool
from agent.mount.promotion import Promotion
from agent.mount.reads import Replies
from agent.mount.revisions import Revisions
from agent.mount.splicing import Pipes
from agent.origin.catalog import Origins
from agent.origin.pacing import PacedOrigins
from agent.peers.cluster import Cluster
from agent.peers.swarming import Swarming
from agent.peers.warmings import SwarmWarmings
from agent.transfer.engine import RECEIVERS, Engine

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Claims:
    """Who has a claim on what is in the store (agent/cache/evictor.py)."""

    mounts: Mounts
    pins: Pins
    swarming: Swarming | None
    filler: Filler

    def mounted(self) -> Set[str]:
        return self.mounts.mounted()

    def leased(self) -> Set[str]:
        warmed = self.swarming.claimed() if self.swarming is not None else set()
        return self.mounts.leased() | warmed

    def pinned(self) -> Set[str]:
        return self.pins.keys()

    def awaited(self, key: str) -> Set[int]:
        return self.filler.awaited(key)


def _both(
    first: Callable[[str], Awaitable[None]], then: Callable[[str], Awaitable[None]]
) -> Callable[[str], Awaitable[None]]:
    async def both(key: str) -> None:
        await first(key)
        await then(key)

    return both


async def run(config: Config, clock: Clock, stop: asyncio.Event) -> None:
    """Start the agent, serve until `stop`, end it in order. Raises ConfigError, StoreError, HolderError.

    What is unanswered at the end stays in the in-flight table for the successor.
    """
    loop = asyncio.get_running_loop()
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        limits = StoreLimits(
            config.store.capacity,
            config.store.reserve,
            config.store.high_watermark,
            config.store.low_watermark,
        )
        store = await Store.open(config.store.directories, config.store.chunk_size, limits, clock, metrics)
        stack.push_async_callback(store.close)
        engine = Engine(RECEIVERS, clock)
        stack.push_async_callback(engine.close)
        origins = Origins(config.origin, engine, metrics)
        stack.push_async_callback(origins.close)
        preparing = asyncio.create_task(origins.prepare())  # beside the claim, which waits for the holder
        stack.push_async_callback(asyncio.wait, [preparing])
        repairs = Repairs(store)
        paced = PacedOrigins(origins, config.origin, clock, random.Random())
        cluster = None
        if config.peers is not None:
            size = config.store.chunk_size
            cluster = Cluster(config.peers, config.node.zone, store, paced, clock, metrics, size)
            cluster.pace(paced)
            stack.push_async_callback(cluster.close)
        source = paced if cluster is None else cluster.source
        whole = WholeObjects(store, repairs, source, clock, metrics)
        scrub = Scrub(repairs, clock, metrics, config.store.scrub_rate)
        filler = Filler(store, whole, clock, metrics, config.mount.patience, random.Random())
        pins = Pins(store, clock, metrics)
        await pins.load()
        node = Node(config, clock, store, metrics, pins)
        monitored = monitoring(metrics, node.unready, node.degraded)
        runner = await serve_metrics(monitored, config.metrics.address)
        stack.push_async_callback(runner.cleanup)
        holder, shape, held = await asyncio.to_thread(
            Holder.claim, str(config.holder.socket), build_version()
        )
        stack.callback(holder.close)
        table = RequestTable(shape.fd, shape.slots, shape.slot_size)
        pipes = Pipes(2 * THREADS)  # receiving threads answer reads too, at times
        stack.callback(pipes.close)
        pool = Pool()
        services = Services(loop, store, filler, metrics, pool, holder, Replies(pipes))
        await whole.start()
        stack.push_async_callback(whole.close)
        enabled = config.mount.promote == "auto"
        promotion = Promotion(store, holder, clock, metrics, enabled=enabled, whole=whole)
        stack.push_async_callback(promotion.close)
        mounts = Mounts(services, table, Revisions(origins.resolve, store), origins, promotion)
        stack.callback(mounts.close)
        stack.push_async_callback(filler.close)
        stack.push_async_callback(asyncio.to_thread, pool.close)
        swarming, warmings = None, None
        if cluster is not None:
            await cluster.serve(filler)
            stack.push_async_callback(cluster.leave)
            swarming = cluster.swarming
        if swarming is not None:
            warmings = SwarmWarmings(swarming, store, origins.resolve, clock)
            stack.push_async_callback(warmings.close)
            store.before_removal = _both(swarming.end, store.before_removal)
            store.before_emptying = swarming.end
        await mounts.adopt(held)
        evictor = Evictor(store, Claims(mounts, pins, swarming, filler), clock, metrics)
        pins.on_removed = evictor.hope
        evictor.start()
        stack.push_async_callback(evictor.close)
        handover = Handover(holder, mounts, shape, clock, metrics)
        handover.start()
        stack.push_async_callback(handover.close)
        await node.serve(mounts, holder, warmings)
        scrub.start()
        stack.push_async_callback(scrub.close)
        runner = await serve_admin(application(node), config.admin.socket)
        stack.push_async_callback(runner.cleanup)
        log.info("ready: %d mounts, store %s", len(held), ", ".join(map(str, config.store.directories)))
        await stop.wait()
