"""When a member begins with its next chunk: a few at a time, and after what began before.

All members fill the same object in the same order. What begins too early takes its part of every link while
nobody needs it yet, and makes late what everybody waits for: with eight chunks on their way at the same time
a hop of a chain took a third of a second, with three a twentieth. Three fill a link from a parent. One
connection to an origin may be slow where a link is fast, so a head finds out how many of them are worth
having (`Breadth`). Only where members share what is read: an agent that is alone takes all it can get.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from agent.cache.prefetch import WINDOW
from agent.clock import Clock, Timer
from agent.source import Sink

FEWEST = 3  # one that ends, one that is in full flow, one that begins
MOST = WINDOW  # no more are wanted at a time
# Fetches for each of those side by side that are measured together. To try one more costs a chain a tenth of
# a second where the link is the limit: a part of that goes to what no child asks for yet. With half as many
# the end of a file of 32 chunks fell into it.
ROUND = 16
ROUNDS = 16  # after which another number is tried again
WORTH = 0.5  # of what one more would bring if all were limited by the origin, and none by this agent's link
LOOK_EVERY = 0.25  # seconds without a byte of what began before, and between two looks for that


class Breadth:
    """How many fetches from one origin are worth having side by side. Pure state."""

    def __init__(self) -> None:
        self.streams = FEWEST
        self._under_way = 0
        self._totals: dict[int, float] = {}  # bytes a second, by the number of streams
        self._bytes, self._seconds, self._fetches, self._rounds = 0, 0.0, 0, 0

    def began(self) -> None:
        """A fetch begins; `ended` has to follow."""
        self._under_way += 1

    def ended(self, count: int, seconds: float) -> None:
        """It brought so many bytes in so many seconds."""
        beside, self._under_way = self._under_way, self._under_way - 1
        if beside != self.streams or not count:
            return  # at the beginning or the end, or while a reader has one more
        self._bytes += count
        self._seconds += seconds
        self._fetches += 1
        if self._fetches == ROUND * beside:
            self._totals[beside] = beside * self._bytes / self._seconds
            self._turn_to(self._next())

    def _turn_to(self, streams: int) -> None:
        self.streams = streams
        self._bytes, self._seconds, self._fetches = 0, 0.0, 0

    def _next(self) -> int:
        now = self.streams
        self._rounds += 1
        if self._rounds == ROUNDS:
            self._rounds = 0
            self._totals = {now: self._totals[now]}
            return max(FEWEST, now - 1)
        if now > FEWEST and now - 1 in self._totals and not self._is_worth(now):
            return now - 1
        return now + 1 if now < MOST and (now + 1 not in self._totals or self._is_worth(now + 1)) else now

    def _is_worth(self, streams: int) -> bool:
        """Whether these bring more than one less, as far as both are known."""
        less = streams - 1
        return self._totals[streams] >= self._totals[less] * (1 + WORTH / less)


@dataclass(eq=False, slots=True)
class _Waiting:
    """Who waits for its turn, and what was seen of those before it."""

    group: str
    sink: Sink
    breadth: Breadth | None
    go: asyncio.Future[None]
    arrived: int  # a sum of positions
    at: float  # monotonic

    def begin(self) -> None:
        """Its turn has come."""
        if not self.go.done():
            self.go.set_result(None)


class Queue:
    """What is on its way to this agent, by group and in the order in which it began. Used on the loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._under_way: defaultdict[str, list[Sink]] = defaultdict(list)
        self._waiting: list[_Waiting] = []
        self._looking: Timer | None = None

    @contextlib.contextmanager
    def under_way(self, group: str, sink: Sink) -> Iterator[None]:
        """A fetch, from wherever."""
        self._under_way[group].append(sink)
        try:
            yield
        finally:
            self._under_way[group].remove(sink)
            if not self._under_way[group]:
                del self._under_way[group]
            for one in self._waiting:
                if one.group == group and self._has_turn(group, one.sink, one.breadth):
                    one.begin()

    async def turn(self, group: str, sink: Sink, breadth: Breadth | None = None) -> bool:
        """Wait until few enough of what began before `sink` are under way: as `breadth` has it, or FEWEST.

        Not while a reader waits for its bytes, nor for what brings none: it may wait for this agent. Whether
        it had to wait: whom to ask may be another one by then."""
        if self._has_turn(group, sink, breadth):
            return False
        go = asyncio.get_running_loop().create_future()
        waiting = _Waiting(group, sink, breadth, go, self._arrived(group, sink), self._clock.monotonic())
        self._waiting.append(waiting)
        self._look_later()
        try:
            await go
        finally:
            self._waiting.remove(waiting)
        return True

    def _look_later(self) -> None:
        """One timer for all, and no task that runs for nothing: some chunks wait all the time."""
        if self._looking is None:
            self._looking = self._clock.call_later(LOOK_EVERY, self._look)

    def _look(self) -> None:
        self._looking = None
        for one in self._waiting:
            if self._has_turn(one.group, one.sink, one.breadth) or self._stands_still(one):
                one.begin()
        if self._waiting:
            self._look_later()

    def _has_turn(self, group: str, sink: Sink, breadth: Breadth | None) -> bool:
        streams = breadth.streams if breadth is not None else FEWEST
        return sink.urgency.awaited or self._under_way[group].index(sink) < streams

    def _stands_still(self, waiting: _Waiting) -> bool:
        """Whether what began before has brought nothing for a while."""
        now, arrived = self._clock.monotonic(), self._arrived(waiting.group, waiting.sink)
        if arrived != waiting.arrived:
            waiting.arrived, waiting.at = arrived, now
        return now - waiting.at >= LOOK_EVERY

    def _arrived(self, group: str, sink: Sink) -> int:
        """Where all that began before `sink` stands."""
        sinks = self._under_way[group]
        return sum(one.position for one in sinks[: sinks.index(sink)])
