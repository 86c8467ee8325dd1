"""How fast bytes come in here and go out to children: looked at a few times a second, and to be told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from agent.clock import Clock
from agent.peers.drains import LOOK_EVERY, Look, Looks
from agent.peers.speeds import RECENT
from agent.source import Progress

TOLD_AGAIN = 0.3  # of the speed that was told: another by so much is told without waiting for a batch
TOLD_EVERY = RECENT / 2  # seconds: a tracker goes by what a member said for twice as long
ACTIVE_FOR = 3.0  # seconds after a chunk, or bytes of one, in which its tracker wants to know
MOST_HELD_UP_BY = 64  # children in one batch


class Intake:
    """Bytes that were received, those of transfers under way included. Used on the loop."""

    def __init__(self) -> None:
        self._over = 0
        self._sinks: dict[Progress, int] = {}  # where each began

    @contextmanager
    def of(self, sink: Progress) -> Iterator[None]:
        """Count what comes into a sink."""
        self._sinks[sink] = sink.position
        try:
            yield
        finally:
            self._over += sink.position - self._sinks.pop(sink)

    @property
    def under_way(self) -> bool:
        """Whether there are transfers."""
        return bool(self._sinks)

    @property
    def total(self) -> int:
        """All bytes until now."""
        return self._over + sum(sink.position - began for sink, began in self._sinks.items())


class Sending(Protocol):
    """What is sent (agent/peers/outgoing.py)."""

    def sent(self) -> dict[str, int]:
        """Bytes that each peer was sent in all."""

    def waiting(self) -> dict[str, int]:
        """Bytes that each peer asked for, that are here and not sent."""


class Pace:
    """What trackers are told of this agent's speed: with every batch, and at once where it changes.

    Who is short of bytes says so at each look: the answer tells whether they are to come from others.
    """

    def __init__(self) -> None:
        self.fastest: float | None = None
        self.held_up_by: list[str] = []
        self._told = 0.0
        self._told_at = float("-inf")
        self._active: dict[str, float] = {}  # groups, and when one of their chunks was last on its way

    def active(self, group: str, now: float) -> None:
        """A chunk of a group is asked for, on its way, or given to a child."""
        self._active[group] = now

    def seen(self, fastest: float, held_up_by: Sequence[str], short: bool, now: float) -> list[str]:
        """It is so now; the groups whose trackers should hear of it."""
        self.fastest, self.held_up_by = fastest, list(held_up_by[:MOST_HELD_UP_BY])
        news = held_up_by or short or abs(fastest - self._told) > TOLD_AGAIN * self._told
        if not news and now - self._told_at < TOLD_EVERY:
            return []
        self._active = {group: at for group, at in self._active.items() if now - at < ACTIVE_FOR}
        return list(self._active)

    def told(self, now: float) -> None:
        """It is told now."""
        self._told, self._told_at = self.fastest or 0.0, now


class Pulse:
    """Looks, and tells. Made and used on one loop."""

    def __init__(
        self,
        intake: Intake,
        sending: Sending,
        tell: Callable[[float, Sequence[str], bool], None],
        clock: Clock,
        limit: float | None = None,
    ) -> None:
        """`limit` is that of what is sent, bytes a second."""
        self._intake = intake
        self._sending = sending
        self._tell = tell
        self._clock = clock
        self._looks = Looks(limit)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._keep_looking())

    async def close(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _keep_looking(self) -> None:
        while True:
            await self._clock.sleep(LOOK_EVERY)
            now = self._clock.monotonic()
            self._looks.add(Look(now, self._intake.total, self._sending.sent(), self._sending.waiting()))
            fastest = self._looks.fastest
            if fastest is not None:
                # Who has all that it asked for receives nothing, and is not short of it.
                short = self._looks.short and self._intake.under_way
                self._tell(fastest, self._looks.held_up_by(), short)
