"""Which files of one mount the kernel reads by itself: their generations and their backing ids.

One nodeid is never served both ways (FINDINGS.md): an even generation of an inode is served from the agent
and cached by the kernel, an odd one is always opened passthrough. A file changes over by getting the next
generation, when it becomes complete and when it stops being so. The loop owns all of this but the count of
lookups, which FUSE threads keep.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Iterator, Set

from agent.cache.objects import CachedObject
from agent.errors import HolderError, StoreError
from agent.mount.holder import Holder, HolderRefused
from agent.mount.operations import join, split

log = logging.getLogger(__name__)

# Without a holder no backing id is to be had; files are then served from the agent, and after these seconds
# the holder is asked again.
HOLD_OFF = 2.0
# Not tried again by this agent: a kernel or a disk that cannot once will not the next time.
NEVER = frozenset({"unsupported", "bad-file"})


class Passthrough:
    """The passthrough side of one mount. `generations` has every inode that left generation 0."""

    def __init__(
        self, mount: str, holder: Holder, loop: asyncio.AbstractEventLoop, known: dict[int, int]
    ) -> None:
        """`known` are the backing ids that the holder has for nodeids of this mount."""
        self.generations = _generations(known)
        self.backing = dict(known)
        self.unsure = set(known)  # those that a predecessor may have left open
        self._mount = mount
        self._holder = holder
        self._loop = loop
        self._allowed = False
        self._not_before = 0.0
        self._asking: dict[int, asyncio.Task[None]] = {}
        self._closing: dict[int, asyncio.Future[None]] = {}
        self._lookups: dict[int, int] = {}
        self._lookups_lock = threading.Lock()

    def allow(self, allowed: bool) -> None:
        """What the kernel agreed to in INIT."""
        self._allowed = allowed

    async def generation(self, ino: int, cached: CachedObject) -> int:
        """The generation under which a file is served now; it moves on where that has changed.

        To an odd one only with the backing id in hand: a kernel that is told ESTALE looks up once more and
        not twice, so an open that was sent on to a nodeid without an id would fail.
        """
        generation = self.generations.get(ino, 0)
        nodeid = join(ino, generation | 1)
        fit = cached.complete and self._allowed
        wanted = fit and (nodeid in self.backing or self._loop.time() >= self._not_before)
        if wanted and generation % 2 == 0:
            wanted = await self.backing_id(nodeid, cached) is not None
        if self.generations.get(ino, 0) == generation and wanted != bool(generation % 2):
            self.generations[ino] = generation + 1
        return self.generations.get(ino, 0)

    async def backing_id(self, nodeid: int, cached: CachedObject) -> int | None:
        """The id for a passthrough open; None where there is none now: the next generation is an even one.

        While a nodeid is open it must get the same id again (FINDINGS.md).
        """
        while nodeid not in self.backing:
            if closing := self._closing.get(nodeid):
                await asyncio.wait([closing])  # the holder would give the id that it is about to close
                continue
            try:
                await asyncio.shield(self._asked(nodeid, cached))
            except (HolderError, StoreError) as error:
                self._decline(nodeid, error)
                return None
        return self.backing[nodeid]

    def _asked(self, nodeid: int, cached: CachedObject) -> asyncio.Task[None]:
        """One question for all who open the file at once: an answer to a second could come before the id is
        closed and be kept after it."""
        task = self._asking.get(nodeid)
        if task is None:
            asking = self._ask(nodeid, cached, _whole_file(cached))
            task = self._asking[nodeid] = self._loop.create_task(asking)
            task.add_done_callback(lambda _: self._asking.pop(nodeid))
        return task

    async def _ask(self, nodeid: int, cached: CachedObject, file: tuple[int, int]) -> None:
        """Have an id of that file kept, unless a repair or eviction has taken it away before the answer."""
        backing = await asyncio.to_thread(self._ask_holder, nodeid, cached, file)
        self.backing[nodeid] = backing
        try:
            same = _whole_file(cached) == file
        except StoreError:
            same = False
        if not same:
            self._shut(nodeid)
            raise StoreError(f"{cached.path} was replaced meanwhile")

    async def let_go(self, inos: Set[int]) -> None:
        """Close the ids of files that leave the store: an id keeps an unlinked file on the disk, and a new
        file in its place is served under another generation, with an id of its own."""
        nodeids = {nodeid for nodeid in self._of(inos) if nodeid in self.backing}
        for ino, generation in map(split, nodeids):
            if self.generations.get(ino, 0) == generation:
                self.generations[ino] = generation + 1
        nodeids -= self.unsure  # a predecessor may have left them open: they go when the kernel forgets them
        for nodeid in nodeids:
            self._shut(nodeid)
        if closing := [self._closing[nodeid] for nodeid in nodeids if nodeid in self._closing]:
            await asyncio.wait(closing)

    def _of(self, inos: Set[int]) -> Iterator[int]:
        """The nodeids of files that may have a backing id."""
        for ino in inos:
            for generation in range(1, self.generations.get(ino, 0) + 2, 2):
                yield join(ino, generation)

    def told(self, nodeid: int) -> None:
        """The nodeid was opened or released: from here on its handles are known."""
        self.unsure.discard(nodeid)

    def looked_up(self, nodeid: int) -> None:
        """The kernel is about to learn this nodeid (FUSE threads)."""
        if split(nodeid)[1] % 2:
            with self._lookups_lock:
                self._lookups[nodeid] = self._lookups.get(nodeid, 0) + 1

    def forgotten(self, nodeid: int, count: int) -> None:
        """The kernel forgets lookups; after the last one the file need not stay open (FUSE threads)."""
        if split(nodeid)[1] % 2:
            with self._lookups_lock:
                left = self._lookups.pop(nodeid, 0) - count
                if left > 0:
                    self._lookups[nodeid] = left
                    return
            self._loop.call_soon_threadsafe(self._close, nodeid)

    def _decline(self, nodeid: int, error: HolderError | StoreError) -> None:
        ino, generation = split(nodeid)
        if self.generations.get(ino, 0) == generation:
            self.generations[ino] = generation + 1
        self._not_before = self._loop.time() + HOLD_OFF
        if isinstance(error, HolderRefused) and error.code in NEVER:
            self._allowed = False
            log.warning("%s: no passthrough from now on: %s", self._mount, error)
        else:
            log.warning("%s: no passthrough for the moment: %s", self._mount, error)

    def _ask_holder(self, nodeid: int, cached: CachedObject, file: tuple[int, int]) -> int:
        try:
            fd = cached.open_read_only()
        except OSError as error:
            raise StoreError(f"cannot open {cached.path}: {error.strerror}") from error
        try:
            if _identity(fd) != file:  # its number may stand for another file by now
                raise StoreError(f"{cached.path} was replaced meanwhile")
            return self._holder.backing_open(self._mount, nodeid, fd)
        finally:
            os.close(fd)

    def _close(self, nodeid: int) -> None:
        with self._lookups_lock:
            known_again = nodeid in self._lookups
        if nodeid in self._asking:
            return  # somebody is about to open it; the kernel forgets it again after that
        if not known_again:
            self.unsure.discard(nodeid)
        if not known_again:
            self._shut(nodeid)

    def _shut(self, nodeid: int) -> None:
        if self.backing.pop(nodeid, None) is not None:
            closing = self._loop.run_in_executor(None, self._tell_closed, nodeid)
            self._closing[nodeid] = closing
            closing.add_done_callback(lambda _: self._closing.pop(nodeid, None))

    def _tell_closed(self, nodeid: int) -> None:
        try:
            self._holder.backing_close(self._mount, nodeid)
        except HolderError as error:
            log.warning("%s: %s", self._mount, error)


def _whole_file(cached: CachedObject) -> tuple[int, int]:
    """Which file has all of the object now. StoreError where none has."""
    if not cached.complete:
        raise StoreError(f"{cached.path} is not complete any more")
    return _identity(cached.fd)


def _identity(fd: int) -> tuple[int, int]:
    try:
        status = os.fstat(fd)
    except OSError as error:
        raise StoreError(f"a file of the store was closed meanwhile: {error.strerror}") from error
    return status.st_dev, status.st_ino


def _generations(known: dict[int, int]) -> dict[int, int]:
    """The generation of each file that the holder has backing ids for: the highest."""
    generations: dict[int, int] = {}
    for nodeid in known:
        ino, generation = split(nodeid)
        generations[ino] = max(generation, generations.get(ino, 0))
    return generations
