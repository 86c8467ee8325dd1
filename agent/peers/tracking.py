"""The tracker as it answers its peers: a batch in, a reply out (agent/peers/wire.py)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from agent.clock import Clock, Timer
from agent.errors import BadRequest
from agent.peers.tracker import GATHER_MOST, Tracker
from agent.peers.wire import (
    HEARTBEAT,
    Batch,
    Reply,
    answer_as,
    digests_as,
    old_reply,
    parse_batch,
    peer_of,
    renewal_as,
    span_of,
    standing_of,
    units_of,
)

log = logging.getLogger(__name__)

LINE_EVERY = 0.04  # seconds at least between two lines for one follower
LINES = 20_000.0  # a second, for all followers together: half a core


class Tracking:
    """Serves one tracker to members. Used on the loop."""

    def __init__(self, tracker: Tracker, clock: Clock) -> None:
        self._tracker = tracker
        self._clock = clock
        self._news = asyncio.Event()  # set, and another one made, where followers have something to be told
        self._followers = 0
        self._beats = 0
        self._beating: Timer | None = None

    async def call(self, sender: str, body: bytes) -> bytes:
        """A `Call` of the exchange: who asks for a place hears when it has one. Raises BadRequest."""
        batch = parse_batch(body)
        reply = self.answer(sender, batch)
        until = self._clock.monotonic() + GATHER_MOST
        while 0 < (wait := _longest_wait(reply)) <= until - self._clock.monotonic():
            await self._clock.sleep(wait)
            later = self.answer(sender, Batch(zone=batch.zone, asks=batch.asks, digests=batch.digests))
            reply = later.model_copy(update={"renewal": reply.renewal})
        return reply.model_dump_json().encode()

    async def call_old(self, sender: str, body: bytes) -> bytes:
        """The same for agents that know of nobody's speed."""
        return old_reply(self.answer(sender, parse_batch(body)))

    def call_follow(self, sender: str, body: bytes) -> AsyncGenerator[bytes, None]:
        """A `Stream` of the exchange. Raises BadRequest."""
        return self._lines(sender, parse_batch(body))

    async def _lines(self, sender: str, batch: Batch) -> AsyncGenerator[bytes, None]:
        async with aclosing(self.follow(sender, batch)) as replies:
            async for reply in replies:
                yield reply.model_dump_json().encode()

    async def follow(self, sender: str, batch: Batch) -> AsyncGenerator[Reply, None]:
        """What there is of one book of digests, and then what becomes known, for as long as it is taken.

        Raises BadRequest."""
        if len(batch.digests) != 1:
            raise BadRequest("one book of digests is followed at a time")
        reply = self.answer(sender, batch)
        ((book, _),) = batch.digests
        self._followers += 1
        if self._beating is None:
            self._beat()
        try:
            while True:
                yield reply
                await self._clock.sleep(max(LINE_EVERY, self._followers / LINES))
                reply = await self._next(sender, book, reply.digests[0].upto)
        finally:
            self._followers -= 1

    async def _next(self, sender: str, book: str, upto: int) -> Reply:
        """What is new, once there is something; nothing new at the next beat."""
        beats = self._beats
        while True:
            news, found = self._news, self._tracker.digests(book, upto)
            again = [(span.key, span.number) for span in self._tracker.again(sender)]
            if found.units or again or beats != self._beats:
                return Reply(digests=[digests_as(found)], again=again)
            await news.wait()

    def _beat(self) -> None:
        """One timer for all followers: each of them would need a new one for each line."""
        self._beats += 1
        self._tell_followers()
        self._beating = self._clock.call_later(HEARTBEAT, self._beat) if self._followers else None

    def _tell_followers(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def answer(self, sender: str, batch: Batch) -> Reply:
        """What the tracker says to a batch of the member `sender`. Raises BadRequest, having done a part."""
        peer, tracker = peer_of(sender, batch.zone), self._tracker
        renewal = None
        if batch.announce is not None:
            spans = {span_of(span): standing_of(has, place) for span, has, place in batch.announce}
            renewal = renewal_as(tracker.announce(peer, spans, batch.whole))
        for span, chunk, parent, reason in batch.failed:
            tracker.failed(sender, span_of(span), chunk, parent, reason)
        for span, bits in batch.done:
            tracker.done(sender, span_of(span), bits)
        for span in batch.released:
            tracker.release(sender, span_of(span))
        for key, units in batch.made:
            tracker.made(sender, key, units_of(units))
            self._tell_followers()
        if batch.fastest is not None:
            for name in tracker.speeds(sender, batch.fastest, batch.held_up_by):
                self._tell_followers()
                slow = tracker.is_slow(name)
                log.info("%s %s", name, "takes its bytes slowly: a leaf" if slow else "is slow no more")
        answers = [
            answer_as(tracker.ask(peer, span_of(span), count, frozenset(without)))
            for span, count, without in batch.asks
        ]
        digests = [digests_as(tracker.digests(key, after)) for key, after in batch.digests]
        again = [(span.key, span.number) for span in tracker.again(sender)]
        return Reply(renewal=renewal, answers=answers, digests=digests, again=again)


def _longest_wait(reply: Reply) -> float:
    return max((answer.wait for answer in reply.answers), default=0.0)
