"""Promotion: a dataset that is complete and verified is published as a bind mount of its own files.

The store makes a tree of hard links (agent/cache/trees.py), the holder mounts it read-only. From then on
neither has a part in what pods read. A tree has a lease, durable before the tree is made and ended after it
is gone; it ends with the last target. What was written under another boot id is checked first, in the
background, and the dataset goes through FUSE meanwhile: the publish after that finds it verified. Loop only.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar
from weakref import WeakValueDictionary

from agent.cache.directory import Directory
from agent.cache.index import Lease
from agent.cache.records import Whole
from agent.cache.store import Store
from agent.cache.trees import TreeDirectory, TreeFile
from agent.clock import Clock
from agent.content import Dataset, ObjectRef, narrow
from agent.errors import HolderError, StoreError
from agent.metrics import Metrics
from agent.mount.holder import HeldMount, Holder, HolderRefused
from agent.mount.order import MountRecord, Shown
from agent.mount.tree import ROOT, Tree

log = logging.getLogger(__name__)

T = TypeVar("T")

VERIFY_SECONDS = 2.0  # how long a publish, which has ten, waits for the check of whole objects


class Verifier(Protocol):
    """Checks objects against what their origins state (agent/cache/whole.py)."""

    async def unverified(self, directory: Directory, refs: Iterable[ObjectRef]) -> list[ObjectRef]: ...
    async def verify(self, directory: Directory, refs: Iterable[ObjectRef]) -> bool: ...


@dataclass(frozen=True, slots=True)
class Promoted:
    """A mount without FUSE: its name at the holder, and what it shows."""

    name: str
    shown: Shown
    directory: Directory
    files: int | None = None  # None where the listing is not known any more
    bytes: int | None = None


class Promotion:
    """The promoted mounts of this node."""

    def __init__(
        self,
        store: Store,
        holder: Holder,
        clock: Clock,
        metrics: Metrics,
        *,
        enabled: bool,
        whole: Verifier | None = None,
    ) -> None:
        """Where it is not `enabled`, nothing is promoted, and what a predecessor has promoted lives on.

        `whole` checks objects against what their origins state; without it what is received is believed.
        """
        self._store = store
        self._holder = holder
        self._clock = clock
        self._metrics = metrics
        self._enabled = enabled
        self._whole = whole
        self._promoted: dict[str, Promoted] = {}
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._verifying: dict[str, asyncio.Task[bool]] = {}
        self._tasks: set[asyncio.Task[object]] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._promoted

    def listing(self) -> list[Promoted]:
        return list(self._promoted.values())

    async def adopt(self, held: Iterable[HeldMount]) -> None:
        """Keep the trees that targets show, take all others away; to be called with what each claim tells."""
        mounts = {mount.mount: mount for mount in held if mount.kind == "tree"}
        bound = {name for name, mount in mounts.items() if mount.bound}
        for name in mounts.keys() - bound:
            try:
                await self._given_up(name)
            except HolderError as error:
                log.error("cannot take the mount %s away, which no target shows: %s", name, error)
        self._promoted = {}
        self._count()
        for directory, lease in await self._store.leases():
            if lease.tree in bound:
                await self._know(lease.tree, _shown(mounts[lease.tree], lease), directory)
            else:
                await self._drop(directory, lease.tree)
        for directory in self._store.directories:
            for name in await asyncio.to_thread(directory.trees.names):
                if name not in bound:
                    await self._drop(directory, name)
                elif name not in self._promoted:  # the index with its lease was lost; pods read on
                    await self._know(name, _shown(mounts[name]), directory)

    async def publish(self, shown: Shown, dataset: Dataset) -> Promoted | None:
        """The promoted mount of what is shown, `dataset` being that part; None where there can be none."""
        if not self._enabled:
            return None
        return await self._to_the_end(self._publish(shown, dataset))

    async def unmount(self, name: str) -> None:
        """Take a promoted mount and its tree away unless another target shows it. HolderError."""
        await self._to_the_end(self._unmount(name))

    async def close(self) -> None:
        """End what is under way; trees and mounts stay."""
        for task in self._verifying.values():
            task.cancel()
        tasks = {*self._tasks, *self._verifying.values()}
        if tasks:
            await asyncio.wait(tasks)

    async def _publish(self, shown: Shown, dataset: Dataset) -> Promoted | None:
        name = tree_name(shown)
        async with self._turn(name):
            try:
                promoted = self._promoted.get(name)
                if promoted is None:
                    return await self._promote(name, shown, dataset)
                # Again, because a holder that was restarted has lost the record, and may have let go of a
                # mount that nobody showed.
                await asyncio.to_thread(self._mount, promoted.directory, name, shown)
                return await self._know(name, shown, promoted.directory, dataset)
            except (StoreError, HolderError) as error:
                log.warning("%s is not promoted: %s", dataset.uri, error)
                return None

    async def _promote(self, name: str, shown: Shown, dataset: Dataset) -> Promoted | None:
        refs = [entry.ref for entry in dataset.entries]
        whole = await self._store.whole(refs)
        if whole is None:
            return None
        if not await self._verified(name, whole, refs):
            return None
        if not await self._given_up(name):
            return None  # targets show a tree that this agent does not know: it stays as it is
        directory = whole.directory
        lease = Lease(name, shown.uri, shown.revision, self._clock.time())
        try:
            await self._store.lease(directory, lease, [ref.key for ref in refs if ref.size])
            await asyncio.to_thread(self._make, directory, name, shown, dataset)
        except (StoreError, HolderError):
            await self._drop(directory, name)
            raise
        log.info("%s is promoted", dataset.uri)
        return await self._know(name, shown, directory, dataset)

    async def _know(
        self, name: str, shown: Shown, directory: Directory, dataset: Dataset | None = None
    ) -> Promoted:
        if dataset is None:
            whole = await self._store.load_dataset(shown.uri, shown.revision)
            dataset = None if whole is None else narrow(whole, shown.view)
        counts = (None, None) if dataset is None else (len(dataset.entries), dataset.size)
        promoted = self._promoted[name] = Promoted(name, shown, directory, *counts)
        self._count()
        return promoted

    def _make(self, directory: Directory, name: str, shown: Shown, dataset: Dataset) -> None:
        """(a thread)"""
        directory.trees.build(name, *contents(Tree(dataset)))
        self._mount(directory, name, shown)

    def _mount(self, directory: Directory, name: str, shown: Shown) -> None:
        root = directory.trees.open_root(name)
        try:  # the record has no credentials: nothing is fetched for a tree
            self._holder.tree(name, MountRecord(shown, kind="tree").to_dict(), root)
        finally:
            os.close(root)

    async def _unmount(self, name: str) -> None:
        async with self._turn(name):
            promoted = self._promoted.get(name)
            if promoted is not None and await self._given_up(name):
                del self._promoted[name]
                self._count()
                await self._drop(promoted.directory, name)

    async def _given_up(self, name: str) -> bool:
        """Whether the holder has no such mount any more; False where a target shows it."""
        try:
            await asyncio.to_thread(self._holder.unmount, name)
        except HolderRefused as error:
            if error.code == "bound":
                return False
            if error.code != "no-mount":
                raise
        return True

    async def _drop(self, directory: Directory, name: str) -> None:
        """Take a tree away, then its lease; what fails is tried again at the next start."""
        try:
            await asyncio.to_thread(directory.trees.remove, name)
            await self._store.end_lease(directory, name)
        except StoreError as error:
            log.warning("%s", error)

    def _count(self) -> None:
        self._metrics.promoted_mounts.set(len(self._promoted))

    async def _verified(self, name: str, whole: Whole, refs: Sequence[ObjectRef]) -> bool:
        """Whether all of the objects are verified. What is not is checked in the background; where only their
        origin's checksums are to be seen to, that is waited for a moment."""
        if not whole.unverified and (
            self._whole is None or not await self._whole.unverified(whole.directory, refs)
        ):
            return True
        task = self._verify(name, whole, refs)
        if whole.unverified:
            return False
        done, _ = await asyncio.wait([task], timeout=VERIFY_SECONDS)
        return bool(done) and not task.cancelled() and task.result()

    def _verify(self, name: str, whole: Whole, refs: Sequence[ObjectRef]) -> asyncio.Task[bool]:
        task = self._verifying.get(name)
        if task is None:
            task = self._verifying[name] = asyncio.create_task(self._check(whole, refs))
            task.add_done_callback(lambda _: self._verifying.pop(name, None))
        return task

    async def _check(self, whole: Whole, refs: Sequence[ObjectRef]) -> bool:
        """One object after another; opening checks its chunks (`Store.acquire`)."""
        for ref in whole.unverified:
            try:
                self._store.release(await self._store.acquire(ref))
            except StoreError as error:
                log.warning("%s cannot be checked: %s", ref.uri, error)
                return False
        return self._whole is None or await self._whole.verify(whole.directory, refs)

    def _turn(self, name: str) -> asyncio.Lock:
        return self._turns.setdefault(name, asyncio.Lock())

    async def _to_the_end(self, work: Coroutine[object, object, T]) -> T:
        """Half a promotion must not stay behind because the caller went away."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)


def tree_name(shown: Shown) -> str:
    """The name of the promoted mount, `t-...` where the FUSE mount of the same is `m-...`."""
    return f"t-{shown.name.removeprefix('m-')}"


def contents(tree: Tree) -> tuple[list[TreeDirectory], list[TreeFile]]:
    """What is to be made below a root so that it looks as the FUSE mount of this tree does."""
    directories, files = [TreeDirectory(b"", _root_time(tree))], []
    paths = {ROOT: b""}
    for ino in range(ROOT + 1, ROOT + len(tree)):
        node = tree.node(ino)
        assert node is not None
        above = paths[node.parent]
        path = above + b"/" + node.name if above else node.name
        if node.entry is None:
            paths[ino] = path
            directories.append(TreeDirectory(path, node.mtime_ns))
        else:
            files.append(TreeFile(path, node.entry.ref.key, node.size, node.mtime_ns))
    return directories, files


def _shown(mount: HeldMount, lease: Lease | None = None) -> Shown:
    """From the mount record, which a restarted holder may have lost."""
    try:
        return MountRecord.from_dict(mount.record).shown
    except HolderError:
        return Shown("", "") if lease is None else Shown(lease.uri, lease.revision)


def _root_time(tree: Tree) -> int:
    root = tree.node(ROOT)
    return 0 if root is None else root.mtime_ns
