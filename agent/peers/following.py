"""Digests of objects, as their trackers learn them: followed for as long as they are wanted."""

from __future__ import annotations

from contextlib import aclosing

from agent.clock import Clock
from agent.peers.courses import Book
from agent.peers.member import Peer
from agent.peers.tasks import Tasks
from agent.peers.trackers import Trackers
from agent.peers.units import digests_name
from agent.peers.wire import Batch, Reply, units_of

AGAIN_AFTER = 0.05  # seconds, doubled each time that a tracker is asked for digests and does not answer
AGAIN_MOST = 2.0  # and no more than that
FOLLOW_ON = 2.0  # seconds that digests are followed after they were last wanted
LOOK_EVERY = 0.5  # seconds between two looks at who is the tracker now, by one who follows it


class Following:
    """Brings digests into books. Made and used on one loop."""

    def __init__(self, trackers: Trackers, zone: str, clock: Clock) -> None:
        """`zone` is this agent's."""
        self._trackers = trackers
        self._zone = zone
        self._clock = clock
        self._tasks = Tasks()

    async def close(self) -> None:
        """Follow nobody any more."""
        await self._tasks.close()

    def want(self, key: str, book: Book) -> None:
        """Have what the tracker knows and learns, from now on for some time."""
        book.wanted = self._clock.monotonic()
        if book.learning is None:
            book.learning = self._tasks.spawn(self._learn(key, book))

    async def digest(self, key: str, book: Book, unit: int) -> bytes:
        """The digest of a unit, once it is known."""
        book.waiting += 1
        try:
            while unit not in book.units:
                self.want(key, book)
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

    async def _learn(self, key: str, book: Book) -> None:
        """Follow what the tracker learns for as long as that is wanted. One that cannot be followed is asked
        once, and again and again while somebody waits.

        Where a tracker does not answer the next one is asked soon: what has arrived waits for its digests.
        """
        silent = AGAIN_AFTER
        try:
            while True:
                tracker = self._trackers.of(book.group)
                pace: float | None = AGAIN_AFTER
                if not await self._follow(tracker, key, book):
                    pace = await self._ask(tracker, key, book)
                silent = AGAIN_AFTER if pace else min(2 * silent, AGAIN_MOST)
                wanted = book.wanted
                await self._clock.sleep(pace or silent)
                if not book.waiting and book.wanted == wanted:
                    return
        finally:
            book.learning = None

    async def _follow(self, tracker: Peer, key: str, book: Book) -> bool:
        """Learn what the tracker learns, until nothing was wanted for some time or another is the tracker.

        Whether it said anything."""
        heard, look = False, self._clock.monotonic()
        async with aclosing(self._trackers.follow(tracker, self.question(key, book, tracker))) as replies:
            async for reply in replies:
                heard, now = True, self._clock.monotonic()
                self.learn(book, tracker, reply)
                if not book.waiting and now - book.wanted >= FOLLOW_ON:
                    break
                if now >= look:
                    look = now + LOOK_EVERY
                    if self._trackers.of(book.group).name != tracker.name:
                        break
        return heard

    async def _ask(self, tracker: Peer, key: str, book: Book) -> float | None:
        """Ask once; in how many seconds to ask again, None where the tracker does not answer."""
        if not self._trackers.answers(tracker):
            return None  # it was not followed because it is silent
        reply = await self._trackers.say(tracker, self.question(key, book, tracker))
        if reply is None:
            return None
        self.learn(book, tracker, reply)
        return reply.digests[0].pace
