"""Which revision a publish shows, and whether its identity may see it.

Every publish asks the origin, with the credentials that came along: the listing that they are given is the
proof of the right to read (DESIGN.md rule 14). Which identity was given which listing is remembered in the
store, so that an origin that is down need not be asked: for a volume that names its revision, or one that
says `on_origin_down = "last"`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from agent.cache.store import Store
from agent.content import Dataset, narrow
from agent.errors import ObjectMissing, OriginUnavailable, RevisionMissing
from agent.identity import Credentials
from agent.mount.order import MountOrder

log = logging.getLogger(__name__)

Resolve = Callable[[str, Credentials], Awaitable[Dataset]]


class Revisions:
    """Finds the dataset that an order is about. Loop only."""

    def __init__(self, resolve: Resolve, store: Store) -> None:
        """`resolve` lists a URI at its origin with the given credentials."""
        self._resolve = resolve
        self._store = store

    async def dataset(self, order: MountOrder) -> Dataset:
        """The whole dataset; its listing is durable. Raises OriginError, BadRequest, StoreError."""
        try:
            now = await self._resolve(order.uri, order.credentials)
        except OriginUnavailable as error:
            return await self._remembered(order, error)
        await self._store.save_dataset(now)
        await self._store.save_proof(order.uri, order.credentials.identity, now.revision)
        if order.revision in ("", now.revision):
            return now
        named = await self._store.load_dataset(order.uri, order.revision)
        if named is None:
            raise RevisionMissing(
                f"revision: {order.uri} has revision {now.revision} now, and the listing of"
                f" {order.revision} is not on this node; name the one that is there"
            )
        return named

    async def _remembered(self, order: MountOrder, error: OriginUnavailable) -> Dataset:
        """What the store knows, where the order allows it and its identity has once proven its right."""
        last = await self._store.proven(order.uri, order.credentials.identity)
        revision = order.revision or (last if order.on_origin_down == "last" else None)
        if revision and last:
            dataset = await self._store.load_dataset(order.uri, revision)
            if dataset is not None:
                log.warning("%s: published from the store, revision %s: %s", order.uri, revision, error)
                return dataset
        raise error


def part(dataset: Dataset, order: MountOrder) -> Dataset:
    """What a mount of this order shows. ObjectMissing where the view leaves nothing of the dataset."""
    shown = narrow(dataset, order.view)
    if shown is dataset or shown.entries or shown.directories:
        return shown
    view = order.view
    if not (view.include or view.exclude):
        raise ObjectMissing(f"subPath: {order.uri} has no directory {view.sub_path!r} with files in it")
    raise ObjectMissing(f"include, exclude: no file of {order.uri} is left; look at its listing")
