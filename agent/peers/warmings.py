"""Datasets that are brought into the store by the swarm, on request, and what became of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from agent.cache.store import Store
from agent.clock import Clock
from agent.content import Dataset
from agent.errors import BadRequest, HeadraceError, ObjectMissing
from agent.peers.swarming import Swarming

log = logging.getLogger(__name__)

Resolve = Callable[[str], Awaitable[Dataset]]

MOST = 64  # that are remembered; and no more are under way at a time
WAITED = 30.0  # seconds; who waits longer for an end asks again


@dataclass(eq=False, slots=True)
class SwarmWarming:
    """One dataset; `task` has ended when it is there, or cannot be had (`error`)."""

    id: str
    dataset: Dataset
    task: asyncio.Task[None]
    error: str = ""

    @property
    def state(self) -> str:
        if not self.task.done():
            return "running"
        return "failed" if self.error else "done"


class SwarmWarmings:
    """Those of one agent. Loop only."""

    def __init__(self, swarming: Swarming, store: Store, resolve: Resolve, clock: Clock) -> None:
        """`resolve` lists a URI at its origin with the agent's own credentials."""
        self._swarming = swarming
        self._store = store
        self._resolve = resolve
        self._clock = clock
        self._warmings: OrderedDict[str, SwarmWarming] = OrderedDict()

    async def begin(self, uri: str) -> SwarmWarming:
        """Warm a dataset as it is now; the same one twice is one. Raises OriginError, StoreError; BadRequest
        where too many are under way."""
        dataset = await self._resolve(uri)
        await self._store.save_dataset(dataset)
        running = [one for one in self._warmings.values() if one.state == "running"]
        for one in running:
            if (one.dataset.uri, one.dataset.revision) == (dataset.uri, dataset.revision):
                return one
        if len(running) >= MOST:
            raise BadRequest(f"{MOST} datasets are being warmed; wait for one of them")
        ended = [one for one in self._warmings.values() if one not in running]
        for one in ended[: max(0, len(self._warmings) - MOST + 1)]:
            del self._warmings[one.id]
        name = secrets.token_hex(8)
        task = asyncio.create_task(self._run(name, dataset))
        self._warmings[name] = SwarmWarming(name, dataset, task)
        return self._warmings[name]

    def all(self) -> list[SwarmWarming]:
        """The oldest first."""
        return list(self._warmings.values())

    async def ended(self, name: str) -> SwarmWarming:
        """Wait for the end of one, WAITED at most. Raises ObjectMissing."""
        if name not in self._warmings:
            raise ObjectMissing(f"there is no warming {name!r}")
        found = self._warmings[name]
        with contextlib.suppress(TimeoutError):
            async with self._clock.timeout(WAITED):
                await asyncio.wait([found.task])
        return found

    async def close(self) -> None:
        """End what is under way; what came of it stays."""
        running = [one for one in self._warmings.values() if one.state == "running"]
        for one in running:
            one.error = "the agent stops"
            one.task.cancel()
        if running:
            await asyncio.wait([one.task for one in running])

    async def _run(self, name: str, dataset: Dataset) -> None:
        try:
            await self._swarming.warm(entry.ref for entry in dataset.entries)
        except HeadraceError as error:
            self._warmings[name].error = str(error)
            log.warning("%s: not warmed: %s", dataset.uri, error)
        except Exception as error:
            self._warmings[name].error = f"internal error {type(error).__name__}"
            log.exception("%s: not warmed: a fault of this agent", dataset.uri)
