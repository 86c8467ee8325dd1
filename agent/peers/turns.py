"""Whose bytes go next, of the streams to one peer: those that come first in the object. Used on the loop.

A peer asks for several chunks at once, the first ones the most. Sent side by side they would all come late,
and each hop of a chain would add the time of a unit at the speed of one stream among many: with eight of them
over a link of 200 Mbit/s a twelfth of a second, where the link carries a unit in a hundredth. So one stream
sends at a time, as much as it has, and the next one what time the first leaves. All agents have the same
order, so that a chunk passes down a chain at full speed. What a reader of the peer waits for goes first. No
stream is silent for long, since whoever waits for bytes takes a silent peer for a dead one.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from agent.clock import Clock

SILENT = 1.0  # seconds after which a stream has its turn although one of a lower rank has bytes


@dataclass(eq=False, slots=True)
class _Waiting:
    rank: int
    urgent: bool
    since: float
    turn: asyncio.Future[None]


@dataclass(slots=True)
class _Queue:
    """The streams to one peer that have bytes to send, beside the one that sends."""

    waiting: list[_Waiting] = field(default_factory=list)


class Turns:
    """The turns of all peers; each `take` that returns is followed by a `give`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._queues: dict[str, _Queue] = {}  # one where somebody sends

    async def take(self, peer: str, rank: int, urgent: bool = False) -> None:
        """Wait for the turn of a stream to `peer`; of those that wait the one of the lowest rank is next,
        an urgent one before the others."""
        queue = self._queues.get(peer)
        if queue is None:
            self._queues[peer] = _Queue()
            return
        one = _Waiting(rank, urgent, self._clock.monotonic(), asyncio.get_running_loop().create_future())
        queue.waiting.append(one)
        try:
            await one.turn
        except asyncio.CancelledError:
            if one in queue.waiting:
                queue.waiting.remove(one)
            else:
                self.give(peer)
            raise

    def give(self, peer: str) -> None:
        """The stream whose turn it was has sent a piece, or has ended."""
        queue = self._queues[peer]
        if not queue.waiting:
            del self._queues[peer]
            return
        oldest = min(queue.waiting, key=lambda one: one.since)
        late = self._clock.monotonic() - oldest.since >= SILENT
        chosen = oldest if late else min(queue.waiting, key=lambda one: (not one.urgent, one.rank))
        queue.waiting.remove(chosen)
        chosen.turn.set_result(None)
