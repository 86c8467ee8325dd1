"""All mounts of the node: made, found again after a restart of the agent, and taken away. Loop only."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Set
from dataclasses import replace
from typing import Protocol

from agent.cache.warm import Warming
from agent.content import Dataset, narrow
from agent.errors import BadRequest, HeadraceError, HolderError
from agent.identity import Credentials
from agent.mount.channel import Channel
from agent.mount.holder import HeldMount, HolderRefused, InFlightTable
from agent.mount.inflight import RequestTable
from agent.mount.mounted import Mounted, Services
from agent.mount.negotiation import READ_AHEAD, InitResult
from agent.mount.order import EAGERNESS, MountOrder, MountRecord, Prefetch, Shown
from agent.mount.promotion import Promoted, Promotion
from agent.mount.revisions import Revisions, part

log = logging.getLogger(__name__)

RETIRED_FOR = 1.0  # seconds in which each thread's call with a descriptor that it had is over: none blocks
INIT_SECONDS = 10.0  # the deadline of the kernel's INIT, which needs no one but the kernel


class Grants(Protocol):
    """With which credentials the objects of a URI may be fetched (agent/origin/catalog.py)."""

    def grant(self, uri: str, credentials: Credentials) -> None: ...
    def revoke(self, uri: str, credentials: Credentials) -> Awaitable[None]: ...


class Mounts:
    """The mounts that this agent serves, one per URI, revision, view and identity."""

    def __init__(
        self,
        services: Services,
        table: RequestTable,
        revisions: Revisions,
        grants: Grants,
        promotion: Promotion,
    ) -> None:
        self._services = services
        self._table = table
        self._revisions = revisions
        self._grants = grants
        self._promotion = promotion
        self._mounts: dict[str, Mounted] = {}
        self._records: dict[str, MountRecord] = {}
        self._warming: dict[str, Warming] = {}
        self._tasks: set[asyncio.Future[None]] = set()
        self._making: dict[str, asyncio.Task[Mounted]] = {}
        services.store.before_removal = self._let_go

    async def adopt(self, held: list[HeldMount]) -> None:
        """Serve on what the holder kept, first of all the requests that a predecessor left unanswered."""
        await self._promotion.adopt(held)
        for mount in held:
            if mount.kind == "tree":
                continue
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

    async def mount(self, order: MountOrder) -> Mounted | Promoted:
        """Mount what is ordered; the mount that shows the same to the same identity is shared.

        What is complete and verified is promoted, also where a FUSE mount of it goes on for other targets.
        """
        whole = await self._revisions.dataset(order)
        shown = Shown(whole.uri, whole.revision, order.view, order.credentials.identity)
        promoted = await self._promotion.publish(shown, part(whole, order))
        if promoted is not None:
            return promoted
        mounted = self._mounts.get(shown.name) or await self._made(shown, whole, order)
        await self._raise_prefetch(mounted, order.prefetch)
        return mounted

    async def _made(self, shown: Shown, whole: Dataset, order: MountOrder) -> Mounted:
        task = self._making.get(shown.name)
        if task is None:
            record = MountRecord(shown, order.prefetch, order.credentials)
            task = asyncio.create_task(self._make(record, part(whole, order)))
            self._making[shown.name] = task
            task.add_done_callback(lambda _: self._making.pop(shown.name, None))
        return await asyncio.shield(task)

    async def _raise_prefetch(self, mounted: Mounted, wanted: Prefetch) -> None:
        """Targets that share a mount get the most that one of them asked for."""
        record = self._records.get(mounted.name)
        if record is None or EAGERNESS.index(wanted) <= EAGERNESS.index(record.prefetch):
            return
        record = replace(record, prefetch=wanted)
        self._know(mounted, record)
        await asyncio.to_thread(self._services.holder.record, mounted.name, record.to_dict())

    def _know(self, mounted: Mounted, record: MountRecord) -> None:
        """Keep what a mount is, and prefetch for it as its record says."""
        self._records[mounted.name] = record
        mounted.read_ahead = record.prefetch != "none"
        if record.prefetch == "all" and mounted.name not in self._warming:
            services = self._services
            self._warming[mounted.name] = Warming(services.store, services.filler, mounted.dataset)

    async def unmount(self, name: str) -> None:
        """Take a mount away unless another target shows it. BadRequest where there is none; HolderError."""
        if name in self._promotion:
            await self._promotion.unmount(name)
            return
        if name not in self._mounts:
            raise BadRequest(f"there is no mount {name!r}")
        try:
            await asyncio.to_thread(self._services.holder.unmount, name)
        except HolderRefused as error:
            if error.code != "bound":
                raise

    def use_table(self, table: InFlightTable) -> None:
        """Mounts made from now on use another in-flight table; the others keep theirs. HolderError."""
        self._table = RequestTable(table.fd, table.slots, table.slot_size)

    def served(self) -> list[Mounted]:
        """The mounts whose requests this agent answers."""
        return list(self._mounts.values())

    def listing(self) -> list[Mounted | Promoted]:
        return [*self._mounts.values(), *self._promotion.listing()]

    def mounted(self) -> Set[str]:
        """The keys of the objects that mounts show."""
        return set().union(*(mounted.keys for mounted in self._mounts.values()))

    def leased(self) -> Set[str]:
        """The keys of the objects that may be open passthrough since before this agent's life."""
        return set().union(*(mounted.leased() for mounted in self._mounts.values()))

    async def _let_go(self, key: str) -> None:
        for mounted in list(self._mounts.values()):
            await mounted.let_go(key)

    def record(self, name: str) -> MountRecord:
        """What a mount is. Raises HolderError where it has gone meanwhile."""
        if name not in self._records:
            raise HolderError("the mount was taken away meanwhile; try again")
        return self._records[name]

    def close(self) -> None:
        """Let go of every descriptor; the holder keeps the mounts. The pool must have been closed."""
        for warming in self._warming.values():
            warming.cancel()
        for mounted in self._mounts.values():
            mounted.close()
            os.close(mounted.channel.retire())
        self._mounts.clear()

    async def _make(self, record: MountRecord, dataset: Dataset) -> Mounted:
        name, holder = record.shown.name, self._services.holder
        await self._services.store.place(entry.ref for entry in dataset.entries)
        held = await asyncio.to_thread(holder.mount, name, record.to_dict())
        mounted = self._mounted(held, dataset, None)
        self._services.pool.add(mounted)
        try:
            init = await asyncio.wait_for(asyncio.shield(mounted.initialised), INIT_SECONDS)
            record = replace(record, init=init)
            await asyncio.to_thread(holder.ready, name, record.to_dict(), READ_AHEAD >> 10)
        except (HeadraceError, TimeoutError) as error:
            with contextlib.suppress(HolderRefused):
                await asyncio.to_thread(holder.unmount, name)
            if isinstance(error, TimeoutError):
                raise HolderError("the kernel did not answer the mount; look at dmesg") from error
            raise
        self._add(mounted, record)
        return mounted

    async def _adopt(self, held: HeldMount) -> None:
        record = MountRecord.from_dict(held.record)
        shown = record.shown
        order = MountOrder(shown.uri, shown.revision, credentials=record.credentials)
        whole = await self._services.store.load_dataset(shown.uri, shown.revision)
        if whole is None:
            whole = await self._revisions.dataset(order)
        dataset = narrow(whole, shown.view)
        await self._services.store.place(entry.ref for entry in dataset.entries)
        mounted = self._mounted(held, dataset, record.init)
        self._add(mounted, record)

    def _add(self, mounted: Mounted, record: MountRecord) -> None:
        self._mounts[mounted.name] = mounted
        self._grants.grant(record.shown.uri, record.credentials)
        self._know(mounted, record)
        self._services.metrics.mounts.set(len(self._mounts))

    def _mounted(self, held: HeldMount, dataset: Dataset, init: InitResult | None) -> Mounted:
        channel = Channel(held.fd, held.number, self._table)
        return Mounted(held.mount, dataset, channel, self._services, init, held.backing, self._gone)

    def _gone(self, mounted: Mounted) -> None:
        mounted.close()
        self._services.loop.call_later(RETIRED_FOR, os.close, mounted.channel.retire())
        if self._mounts.get(mounted.name) is mounted:
            del self._mounts[mounted.name]
            self._forget(self._records.pop(mounted.name))
        self._services.metrics.mounts.set(len(self._mounts))

    def _forget(self, record: MountRecord) -> None:
        warming = self._warming.pop(record.shown.name, None)
        if warming is not None:
            warming.cancel()
        task = asyncio.ensure_future(self._grants.revoke(record.shown.uri, record.credentials))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
