"""Digests of objects, as their trackers learn them: followed for as long as they are wanted."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from agent.clock import Clock
from agent.peers.courses import Book
from agent.peers.member import Peer
from agent.peers.trackers import Trackers
from agent.peers.units import digests_name
from agent.peers.wire import Batch, Reply, units_of

AGAIN_AFTER = 0.05  # seconds, doubled each time that a tracker is asked for digests and does not answer
AGAIN_MOST = 2.0
FOLLOW_ON = 2.0  # seconds that digests are followed though nobody waits for one
LOOK_EVERY = 0.5  # seconds between two looks at who is the tracker now, by one who follows it


class Following:
    """Brings digests into books. Made and used on one loop."""

    def __init__(self, trackers: Trackers, zone: str, clock: Clock) -> None:
        """`zone` is this agent's."""
        self._trackers = trackers
        self._zone = zone
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Follow nobody any more."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def digest(self, key: str, book: Book, unit: int) -> bytes:
        """The digest of a unit, once it is known."""
        book.waiting += 1
        try:
            while unit not in book.units:
                self._begin(key, book)
                await book.changed.wait()
        finally:
            book.waiting -= 1
        return book.units[unit]

    def question(self, key: str, book: Book, tracker: Peer) -> Batch:
        """What asks a tracker for the digests that it has not told yet."""
        after = book.upto if book.tracker == tracker.name else 0
        return Batch(zone=self._zone, digests=[(digests_name(key), after)])

    def learn(self, book: Book, tracker: Peer, reply: Reply) -> None:
        """Take the answer to such a question."""
        found = reply.digests[0]
        book.upto, book.tracker = found.upto, tracker.name
        book.learn(units_of(found.units))

    def _begin(self, key: str, book: Book) -> None:
        if book.polling is None:
            book.polling = task = asyncio.create_task(self._poll(key, book))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _poll(self, key: str, book: Book) -> None:
        """Ask for digests once, and follow what the tracker learns for as long as somebody waits for some.

        Where a tracker does not answer the next one is asked soon: what has arrived waits for its digests.
        """
        pace = AGAIN_AFTER
        try:
            while True:
                tracker = self._trackers.of(book.group)
                reply = await self._trackers.say(tracker, self.question(key, book, tracker))
                if reply is None:
                    pace = min(2 * pace, AGAIN_MOST)
                else:
                    pace, waiting = reply.digests[0].pace, book.waiting
                    self.learn(book, tracker, reply)
                    if waiting:
                        await self._follow(tracker, key, book)
                await self._clock.sleep(pace)
                if not book.waiting:
                    return
        finally:
            book.polling = None

    async def _follow(self, tracker: Peer, key: str, book: Book) -> None:
        """Learn what the tracker learns, until nobody has waited for some time or another is the tracker."""
        waited = look = self._clock.monotonic()
        async with aclosing(self._trackers.follow(tracker, self.question(key, book, tracker))) as replies:
            async for reply in replies:
                now = self._clock.monotonic()
                waited = now if book.waiting else waited
                self.learn(book, tracker, reply)
                if now - waited >= FOLLOW_ON:
                    return
                if now >= look:
                    look = now + LOOK_EVERY
                    if self._trackers.of(book.group).name != tracker.name:
                        return
