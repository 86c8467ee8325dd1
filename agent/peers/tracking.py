"""The tracker as it answers its peers: a batch in, a reply out (agent/peers/wire.py)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping

from agent.clock import Clock
from agent.peers.tracker import GATHER_MOST, Tracker
from agent.peers.wire import (
    Batch,
    Reply,
    again_as,
    answer_as,
    parse_batch,
    peer_of,
    renewal_as,
    span_of,
    standing_of,
)

log = logging.getLogger(__name__)


class Tracking:
    """Serves one tracker to members. Used on the loop."""

    def __init__(self, tracker: Tracker, clock: Clock) -> None:
        self._tracker = tracker
        self._clock = clock
        # Given to each member that should ask again at once, and for what, without having said anything.
        self.push: Callable[[Mapping[str, list[tuple[str, int]]]], None] = _tell_nobody

    async def call(self, sender: str, body: bytes) -> bytes:
        """A `Call` of the exchange: who asks for a place hears when it has one. Raises BadRequest."""
        batch = parse_batch(body)
        reply = self.answer(sender, batch)
        until = self._clock.monotonic() + GATHER_MOST
        while 0 < (wait := _longest_wait(reply)) <= until - self._clock.monotonic():
            await self._clock.sleep(wait)
            later = self.answer(sender, Batch(zone=batch.zone, asks=batch.asks))
            reply = later.model_copy(update={"renewal": reply.renewal})
        return reply.model_dump_json().encode()

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
        if batch.fastest is not None:
            self._look_who_is_slow(tracker.speeds(sender, batch.fastest, batch.held_up_by))
        answers = [
            answer_as(tracker.ask(peer, span_of(span), count, frozenset(without)))
            for span, count, without in batch.asks
        ]
        return Reply(renewal=renewal, answers=answers, again=again_as(tracker.again(sender)))

    def _look_who_is_slow(self, changed: Collection[str]) -> None:
        """All have to ask again before one that is slow now goes to the end of the order."""
        for name in changed:
            slow = self._tracker.is_slow(name)
            log.info("%s %s", name, "takes its bytes slowly: a leaf" if slow else "is slow no more")
        if changed:
            again = {one.name: again_as(self._tracker.again(one.name)) for one in self._tracker.members()}
            self.push({name: spans for name, spans in again.items() if spans})


def _tell_nobody(again: Mapping[str, list[tuple[str, int]]]) -> None:
    """The members hear it with their next replies."""


def _longest_wait(reply: Reply) -> float:
    return max((answer.wait for answer in reply.answers), default=0.0)
