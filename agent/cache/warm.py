"""Filling a whole dataset in the background, a few chunks at a time and with the least urgency.

What is wanted at once is bounded here, not by the lanes: a dataset of a million chunks must neither queue a
million flights nor keep a million files open.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from agent.cache.fill import Filler
from agent.cache.store import Store
from agent.content import Dataset, Entry
from agent.errors import HeadraceError, StoreError

log = logging.getLogger(__name__)

WINDOW = 8  # chunks wanted at once: what keeps one origin's connections busy (agent/cache/prefetch.py)
AHEAD = 512  # objects that are told at once: 100 owners are asked for some five each


class Warming:
    """One dataset on its way into the store, from construction to its end or `cancel`. Loop only."""

    def __init__(self, store: Store, filler: Filler, dataset: Dataset) -> None:
        self._store = store
        self._filler = filler
        self._dataset = dataset
        self._room = asyncio.Semaphore(WINDOW)
        self._failed = 0
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
        for number, entry in enumerate(self._dataset.entries):
            if number % AHEAD == 0:
                await self._foresee(self._dataset.entries[number : number + AHEAD])
            try:
                await self._warm(entry)
            except StoreError as error:
                self._full = error
            if self._full is not None:
                log.warning("%s: the rest stays at the origin: %s", self._dataset.uri, self._full)
                return
        for _ in range(WINDOW):  # until the last ones have ended
            await self._room.acquire()
        if self._failed:
            log.warning("%s: %d chunks could not be filled ahead", self._dataset.uri, self._failed)

    async def _foresee(self, entries: Sequence[Entry]) -> None:
        """Tell what will be wanted soon, and is not here."""
        with contextlib.suppress(StoreError):
            present = await self._store.present_bytes([entry.ref.key for entry in entries])
            missing = [entry.ref for entry in entries if present.get(entry.ref.key, 0) < entry.ref.size]
            self._filler.foresee(missing)

    async def _warm(self, entry: Entry) -> None:
        cached = await self._store.acquire(entry.ref)
        cached.use()
        try:
            for chunk in range(len(cached.present)):
                await self._room.acquire()
                if self._full is not None or not self._filler.preload(cached, chunk, self, self._ended):
                    self._room.release()
        finally:
            self._store.release(cached)

    def _ended(self, error: HeadraceError | None) -> None:
        self._room.release()
        if isinstance(error, StoreError):
            self._full = error
        elif error is not None:
            self._failed += 1
