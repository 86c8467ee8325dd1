"""How fast the origins are asked: this agent's part of what the cluster may take, and what they ask to wait.

Stands before the origins. Each live agent takes its N-th part of an origin's `cluster_rate`, whole chunks at
a time: in a relay the heads then change from chunk to chunk (`limited`), so that a head has saved up for its
turn. An origin that answers with Retry-After is left alone by all of this agent's fetches until then, and the
other agents are told. What others tell is believed for `TOLD_MOST` seconds, and then for `DEAF` seconds not
again: an agent that lies slows a cluster down, and does not stop it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Mapping
from typing import Protocol

from agent.clock import Clock
from agent.config import OriginConfig
from agent.content import ObjectRef
from agent.errors import OriginUnavailable
from agent.rate import Rate
from agent.source import Budget, Checksum, ChunkSource, Sink

HEARD_MOST = 60.0  # seconds that an origin may put this agent off for
TOLD_MOST = 30.0
DEAF = 60.0
SPREAD = 0.5  # seconds over which those who have waited begin again
WORTH_TELLING = 0.5  # seconds
LOOK_EVERY = 0.25  # seconds between two looks whether a reader has come to wait for what waits for the rate


class HoldOffs:
    """Until when each origin is left alone. Pure state on a clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}
        self._deaf_until: dict[str, float] = {}

    def left(self, origin: str) -> float:
        """Seconds for which an origin is still left alone; 0 where it is not."""
        return max(0.0, self._until.get(origin, 0.0) - self._clock.monotonic())

    def heard(self, origin: str, seconds: float) -> bool:
        """The origin itself asked for this; whether the others should know."""
        until = self._clock.monotonic() + min(seconds, HEARD_MOST)
        news = until > self._until.get(origin, 0.0) + WORTH_TELLING
        self._until[origin] = max(until, self._until.get(origin, 0.0))
        return news

    def told(self, origin: str, seconds: float) -> None:
        """Another agent says that the origin asked for this."""
        now = self._clock.monotonic()
        if now >= self._deaf_until.get(origin, 0.0):
            until = now + min(seconds, TOLD_MOST)
            self._until[origin] = max(until, self._until.get(origin, 0.0))
            self._deaf_until[origin] = until + DEAF


class Stating(ChunkSource, Protocol):
    """What is paced: a source that knows what origins state."""

    async def checksum(self, ref: ObjectRef) -> Checksum | None: ...


class PacedOrigins:
    """A source (agent/source.py) that asks `origins` no faster than it may. Used on the loop."""

    def __init__(
        self, origins: Stating, settings: Mapping[str, OriginConfig], clock: Clock, rng: random.Random
    ) -> None:
        self._origins = origins
        self._clock = clock
        self._rng = rng
        self._whole = {name: float(one.cluster_rate) for name, one in settings.items() if one.cluster_rate}
        self._rates = {name: Rate(clock, rate) for name, rate in self._whole.items()}
        self.hold_offs = HoldOffs(clock)
        self.members: Callable[[], int] = lambda: 1  # live agents, this one among them
        self.tell: Callable[[str, float], None] = lambda origin, seconds: None

    @property
    def limited(self) -> bool:
        """Whether any origin has a `cluster_rate`."""
        return bool(self._rates)

    def budget(self, ref: ObjectRef) -> Budget:
        return self._origins.budget(ref)

    async def checksum(self, ref: ObjectRef) -> Checksum | None:
        return await self._origins.checksum(ref)

    async def fetch(self, ref: ObjectRef, sink: Sink) -> None:
        """As the seam says; waits first for as long as it must, and no deadline counts that."""
        budget = self.budget(ref)
        await self._wait(budget.name)
        if (rate := self._rates.get(budget.name)) is not None:
            rate.set(self._whole[budget.name] / max(1, self.members()))
            await self._take(rate, sink)
        asked = self._clock.monotonic()
        try:
            await self._ask(ref, sink, budget.deadline)
        except OriginUnavailable as error:
            error.took = self._clock.monotonic() - asked
            if error.retry_after and self.hold_offs.heard(budget.name, error.retry_after):
                self.tell(budget.name, error.retry_after)
            raise

    async def _ask(self, ref: ObjectRef, sink: Sink, deadline: float) -> None:
        try:
            async with self._clock.timeout(deadline):
                await self._origins.fetch(ref, sink)
        except TimeoutError:
            raise OriginUnavailable(f"{ref.uri}: no answer within {deadline:g} s") from None

    async def _take(self, rate: Rate, sink: Sink) -> None:
        """Wait for the rate: what a reader waits for goes first, also where he comes meanwhile."""
        count = sink.end - sink.position
        if not sink.urgency.awaited:
            taking = asyncio.ensure_future(rate.take(count))
            try:
                while not taking.done() and not sink.urgency.awaited:
                    with contextlib.suppress(TimeoutError):
                        async with self._clock.timeout(LOOK_EVERY):
                            await asyncio.wait([taking])
                if taking.done():
                    return
            finally:
                taking.cancel()
        await rate.take(count, urgent=True)

    async def _wait(self, name: str) -> None:
        while left := self.hold_offs.left(name):
            await self._clock.sleep(left + self._rng.uniform(0.0, SPREAD))
