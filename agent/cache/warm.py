"""Filling a whole dataset in the background, a few chunks at a time and with the least urgency.

What is wanted at once is bounded here, not by the lanes: a dataset of a million chunks must neither queue a
million flights nor keep a million files open.

A chunk that cannot be had now, since the origin is away for a while, is tried again when all others have been
wanted: nobody may ever read it, and then nothing else would bring it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
from collections.abc import Sequence

from agent.cache.fill import Filler
from agent.cache.store import Store
from agent.content import Dataset, Entry
from agent.errors import HeadraceError, OriginUnavailable, StoreError

log = logging.getLogger(__name__)

WINDOW = 8  # chunks wanted at once: what keeps one origin's connections busy (agent/cache/prefetch.py)
AHEAD = 512  # objects that are told at once: 100 owners are asked for some five each
AGAIN = 10  # times that what failed is tried again: over three to six minutes, and as long as that takes


class Warming:
    """One dataset on its way into the store, from construction to its end or `cancel`. Loop only."""

    def __init__(self, store: Store, filler: Filler, dataset: Dataset) -> None:
        self._store = store
        self._filler = filler
        self._dataset = dataset
        self._room = asyncio.Semaphore(WINDOW)
        self._failed = 0
        self._again: set[int] = set()  # entries of which a chunk failed that the origin may give later
        self._full: StoreError | None = None
        self._task = asyncio.create_task(self._run())

    def cancel(self) -> None:
        """Want nothing more; chunks that are arriving are kept."""
        self._task.cancel()
        self._filler.disown(self)

    async def ended(self) -> None:
        """Wait until nothing more is wanted, and what was wanted is there or cannot be had."""
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        wanted: Sequence[int] = range(len(self._dataset.entries))
        for attempt in itertools.count():
            self._failed = 0
            await self._want(wanted)
            if self._full is not None:
                log.warning("%s: the rest stays at the origin: %s", self._dataset.uri, self._full)
                return
            if self._failed:
                log.warning("%s: %d chunks could not be filled ahead", self._dataset.uri, self._failed)
            if not self._again or attempt == AGAIN:
                return
            await self._filler.rest(attempt)
            wanted, self._again = sorted(self._again), set()

    async def _want(self, numbers: Sequence[int]) -> None:
        """Have these entries filled, and wait until what was wanted is there or has failed."""
        entries = self._dataset.entries
        for at, number in enumerate(numbers):
            if at % AHEAD == 0:
                await self._foresee([entries[one] for one in numbers[at : at + AHEAD]])
            try:
                await self._warm(number, entries[number])
            except StoreError as error:
                self._full = error
            if self._full is not None:
                return
        for _ in range(WINDOW):  # until the last ones have ended
            await self._room.acquire()
        for _ in range(WINDOW):
            self._room.release()

    async def _foresee(self, entries: Sequence[Entry]) -> None:
        """Tell what will be wanted soon, and is not here."""
        with contextlib.suppress(StoreError):
            present = await self._store.present_bytes([entry.ref.key for entry in entries])
            missing = [entry.ref for entry in entries if present.get(entry.ref.key, 0) < entry.ref.size]
            self._filler.foresee(missing)

    async def _warm(self, number: int, entry: Entry) -> None:
        cached = await self._store.acquire(entry.ref)
        cached.use()
        ended = functools.partial(self._ended, number)
        try:
            for chunk in range(len(cached.present)):
                await self._room.acquire()
                if self._full is not None or not self._filler.preload(cached, chunk, self, ended):
                    self._room.release()
                    if not cached.present[chunk]:
                        self._again.add(number)
        finally:
            self._store.release(cached)

    def _ended(self, number: int, error: HeadraceError | None) -> None:
        self._room.release()
        if isinstance(error, StoreError):
            self._full = error
        elif error is not None:
            self._failed += 1
            if isinstance(error, OriginUnavailable):
                self._again.add(number)
