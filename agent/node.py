"""The agent put together: the parts are made, started and ended in order, and answered for."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack

from agent.cache.fill import Filler
from agent.cache.store import Store, StoreLimits
from agent.clock import Clock
from agent.config import Config
from agent.content import Dataset
from agent.control.api import application
from agent.control.server import serve_admin, serve_metrics
from agent.control.views import DatasetView, MountView, ObjectView, StatusView, StoreView, UnmappedView
from agent.control.web import monitoring
from agent.errors import HolderError, ObjectMissing
from agent.metrics import Metrics, build_version
from agent.mount.holder import Holder
from agent.mount.inflight import RequestTable
from agent.mount.mounted import Mounted, Services
from agent.mount.mounts import Mounts
from agent.mount.pool import Pool
from agent.mount.reads import Buffers
from agent.origin.catalog import Origins
from agent.transfer.engine import Engine

log = logging.getLogger(__name__)

RECEIVER_THREADS = 32  # two origins at their default of 16 connections


class Node:
    """The running agent (a `Controlled` of agent/control/api.py)."""

    def __init__(self, config: Config, clock: Clock, store: Store, metrics: Metrics) -> None:
        self._config = config
        self._clock = clock
        self._started = clock.monotonic()
        self._store = store
        self._metrics = metrics
        self._mounts: Mounts | None = None

    async def serve(self, mounts: Mounts) -> None:
        """From now on mounts are served."""
        self._mounts = mounts

    def unready(self) -> list[str]:
        """Why the agent cannot serve; nothing where it can."""
        return [] if self._mounts is not None else ["the mounts are not claimed from the holder yet"]

    async def status(self) -> StatusView:
        return StatusView(
            name=self._config.node.name,
            build=build_version(),
            uptime_seconds=self._clock.monotonic() - self._started,
            store=[
                StoreView(
                    directory=str(directory.path),
                    bytes=directory.used,
                    chunks=directory.chunks,
                    objects=directory.objects,
                    capacity=directory.capacity,
                    reserve=directory.reserve,
                )
                for directory in self._store.directories
            ],
            mounts=len(self.mounts()),
            ready=not self.unready(),
            reasons=self.unready(),
        )

    async def datasets(self) -> list[DatasetView]:
        mounted = {(mount.uri, mount.revision) for mount in self.mounts()}
        views = []
        for uri, revision in await self._store.datasets():
            dataset = await self._store.load_dataset(uri, revision)
            if dataset is not None:
                views.append(await self._dataset_view(dataset, (uri, revision) in mounted))
        return views

    async def objects(self, revision: str, after: str, limit: int) -> list[ObjectView]:
        dataset = await self._find(revision)
        entries = [entry for entry in dataset.entries if entry.path > after][:limit]
        present = await self._store.present_bytes([entry.ref.key for entry in entries])
        return [
            ObjectView(
                path=entry.path,
                uri=entry.ref.uri,
                version=entry.ref.version,
                size=entry.ref.size,
                bytes_present=present.get(entry.ref.key, 0),
            )
            for entry in entries
        ]

    async def mount(self, uri: str) -> MountView:
        return _mount_view(await self._claimed().mount(uri))

    async def unmount(self, mount: str) -> None:
        await self._claimed().unmount(mount)

    def mounts(self) -> Sequence[MountView]:
        return [] if self._mounts is None else [_mount_view(mount) for mount in self._mounts.listing()]

    def counters(self) -> dict[str, float]:
        return self._metrics.counters()

    def _claimed(self) -> Mounts:
        if self._mounts is None:
            raise HolderError("the mounts are not claimed from the holder yet; try again")
        return self._mounts

    async def _find(self, revision: str) -> Dataset:
        for uri, known in await self._store.datasets():
            if known == revision and (dataset := await self._store.load_dataset(uri, revision)) is not None:
                return dataset
        raise ObjectMissing(f"no dataset here has the revision {revision!r}")

    async def _dataset_view(self, dataset: Dataset, mounted: bool) -> DatasetView:
        present = await self._store.present_bytes([entry.ref.key for entry in dataset.entries])
        return DatasetView(
            uri=dataset.uri,
            revision=dataset.revision,
            files=len(dataset.entries),
            bytes=dataset.size,
            bytes_present=sum(present.values()),
            mounted=mounted,
            unmapped=[UnmappedView(key=item.key, reason=item.reason) for item in dataset.unmapped],
        )


def _mount_view(mounted: Mounted) -> MountView:
    return MountView(mount=mounted.name, uri=mounted.dataset.uri, revision=mounted.dataset.revision)


async def run(config: Config, clock: Clock, stop: asyncio.Event) -> None:
    """Start the agent, serve until `stop`, end it in order. Raises ConfigError, StoreError, HolderError.

    What is unanswered at the end stays in the in-flight table for the successor.
    """
    loop = asyncio.get_running_loop()
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        limits = StoreLimits(config.store.capacity, config.store.reserve)
        store = await Store.open(config.store.directories, config.store.chunk_size, limits, clock)
        stack.push_async_callback(store.close)
        engine = Engine(RECEIVER_THREADS, clock)
        stack.push_async_callback(engine.close)
        origins = Origins(config.origin, engine, metrics)
        stack.push_async_callback(origins.close)
        filler = Filler(store, origins, clock, metrics, config.mount.patience, random.Random())
        node = Node(config, clock, store, metrics)
        runner = await serve_metrics(monitoring(metrics, node.unready), config.metrics.address)
        stack.push_async_callback(runner.cleanup)
        holder, shape, held = await asyncio.to_thread(
            Holder.claim, str(config.holder.socket), build_version()
        )
        stack.callback(holder.close)
        table = RequestTable(shape.fd, shape.slots, shape.slot_size)
        os.close(shape.fd)
        pool = Pool()
        services = Services(loop, store, filler, metrics, pool, holder, Buffers())
        mounts = Mounts(services, table, origins.resolve)
        stack.callback(mounts.close)
        stack.push_async_callback(filler.close)
        stack.push_async_callback(asyncio.to_thread, pool.close)
        await mounts.adopt(held)
        await node.serve(mounts)
        runner = await serve_admin(application(node), config.admin.socket)
        stack.push_async_callback(runner.cleanup)
        log.info("ready: %d mounts, store %s", len(held), ", ".join(map(str, config.store.directories)))
        await stop.wait()
