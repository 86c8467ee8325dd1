"""All mounts of the node: made, found again after a restart of the agent, and taken away. Loop only."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
from collections.abc import Awaitable, Callable

from agent.content import Dataset
from agent.errors import BadRequest, HeadraceError, HolderError
from agent.mount.channel import Channel
from agent.mount.holder import HeldMount, HolderRefused
from agent.mount.inflight import RequestTable
from agent.mount.mounted import Mounted, Services
from agent.mount.negotiation import InitResult
from agent.mount.wire import WireError

log = logging.getLogger(__name__)

READ_AHEAD_KB = 4096  # measured: 128 (the default) reaches a third of it, 16384 is worse
INIT_SECONDS = 10.0  # the deadline of the kernel's INIT, which needs no one but the kernel

Resolve = Callable[[str], Awaitable[Dataset]]


class Mounts:
    """The mounts that this agent serves, one per dataset (URI and revision)."""

    def __init__(self, services: Services, table: RequestTable, resolve: Resolve) -> None:
        """`resolve` brings a dataset as its origin has it now."""
        self._services = services
        self._table = table
        self._resolve = resolve
        self._mounts: dict[str, Mounted] = {}
        self._making: dict[str, asyncio.Task[Mounted]] = {}

    async def adopt(self, held: list[HeldMount]) -> None:
        """Serve on what the holder kept, first of all the requests that a predecessor left unanswered."""
        for mount in held:
            try:
                if mount.bound:
                    await self._adopt(mount)
                else:  # it was unpublished while no agent was there to take it away
                    os.close(mount.fd)
                    await asyncio.to_thread(self._services.holder.unmount, mount.mount)
            except HeadraceError as error:
                log.error("cannot serve the mount %s again: %s", mount.mount, error)
                if mount.bound:
                    os.close(mount.fd)
        by_number = {mounted.channel.number: mounted for mounted in self._mounts.values()}
        for slot, number in self._table.left_over():
            found = by_number.get(number)
            if found is None:
                self._table.release(slot)
            else:
                found.serve(found.channel.recover(slot))
        for mounted in self._mounts.values():
            self._services.pool.add(mounted)

    async def mount(self, uri: str) -> Mounted:
        """Mount a dataset as its origin has it now; the mount that shows the same revision is shared."""
        dataset = await self._resolve(uri)
        await self._services.store.save_dataset(dataset)
        name = mount_name(dataset)
        if name in self._mounts:
            return self._mounts[name]
        task = self._making.get(name)
        if task is None:
            task = self._making[name] = asyncio.create_task(self._make(name, dataset))
            task.add_done_callback(lambda _: self._making.pop(name, None))
        return await asyncio.shield(task)

    async def unmount(self, name: str) -> None:
        """Take a mount away unless another target shows it. BadRequest where there is none; HolderError."""
        if name not in self._mounts:
            raise BadRequest(f"there is no mount {name!r}")
        try:
            await asyncio.to_thread(self._services.holder.unmount, name)
        except HolderRefused as error:
            if error.code != "bound":
                raise

    def listing(self) -> list[Mounted]:
        return list(self._mounts.values())

    def close(self) -> None:
        """Let go of every descriptor; the holder keeps the mounts. The pool must have been closed."""
        for mounted in self._mounts.values():
            mounted.close()
            mounted.channel.close()
        self._mounts.clear()

    async def _make(self, name: str, dataset: Dataset) -> Mounted:
        record = _record(dataset, None)
        held = await asyncio.to_thread(self._services.holder.mount, name, record)
        mounted = self._mounted(held, dataset, None)
        self._services.pool.add(mounted)
        try:
            init = await asyncio.wait_for(asyncio.shield(mounted.initialised), INIT_SECONDS)
            ready = self._services.holder.ready
            await asyncio.to_thread(ready, name, _record(dataset, init), READ_AHEAD_KB)
        except (HeadraceError, TimeoutError) as error:
            with contextlib.suppress(HolderRefused):
                await asyncio.to_thread(self._services.holder.unmount, name)
            if isinstance(error, TimeoutError):
                raise HolderError("the kernel did not answer the mount; look at dmesg") from error
            raise
        self._mounts[name] = mounted
        self._services.metrics.mounts.set(len(self._mounts))
        return mounted

    async def _adopt(self, held: HeldMount) -> None:
        uri, revision = str(held.record.get("uri")), str(held.record.get("revision"))
        dataset = await self._services.store.load_dataset(uri, revision)
        if dataset is None:
            dataset = await self._resolve(uri)
            if dataset.revision != revision:
                raise BadRequest(
                    f"{uri} has changed at the origin, and revision {revision} is not in the store"
                )
        init = _init_of(held.record)
        self._mounts[held.mount] = self._mounted(held, dataset, init)
        self._services.metrics.mounts.set(len(self._mounts))

    def _mounted(self, held: HeldMount, dataset: Dataset, init: InitResult | None) -> Mounted:
        channel = Channel(held.fd, held.number, self._table)
        return Mounted(held.mount, dataset, channel, self._services, init, held.backing, self._gone)

    def _gone(self, mounted: Mounted) -> None:
        mounted.close()
        mounted.channel.close()
        if self._mounts.get(mounted.name) is mounted:
            del self._mounts[mounted.name]
        self._services.metrics.mounts.set(len(self._mounts))


def mount_name(dataset: Dataset) -> str:
    """The name of a dataset's mount: the same for every agent, distinct for each URI and revision."""
    digest = hashlib.blake2b(f"{dataset.uri}\0{dataset.revision}".encode(), digest_size=12)
    return f"m-{digest.hexdigest()}"


def _record(dataset: Dataset, init: InitResult | None) -> dict[str, object]:
    return {
        "uri": dataset.uri,
        "revision": dataset.revision,
        "init": None if init is None else init.to_dict(),
    }


def _init_of(record: dict[str, object]) -> InitResult | None:
    found = record.get("init")
    if not isinstance(found, dict):
        return None
    try:
        return InitResult.from_dict(found)
    except (WireError, ValueError) as error:
        raise HolderError(f"the mount record is not readable: {error}") from error
