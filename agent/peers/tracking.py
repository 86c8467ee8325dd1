"""The tracker as it answers its peers: a batch in, a reply out (agent/peers/wire.py)."""

from __future__ import annotations

import logging

from agent.peers.tracker import Tracker
from agent.peers.wire import (
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


class Tracking:
    """Serves one tracker to members. Used on the loop."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    async def call(self, sender: str, body: bytes) -> bytes:
        """A `Call` of the exchange. Raises BadRequest."""
        return self.answer(sender, parse_batch(body)).model_dump_json().encode()

    async def call_old(self, sender: str, body: bytes) -> bytes:
        """The same for agents that know of nobody's speed."""
        return old_reply(self.answer(sender, parse_batch(body)))

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
        if batch.fastest is not None:
            for name in tracker.speeds(sender, batch.fastest, batch.held_up_by):
                slow = tracker.is_slow(name)
                log.info("%s %s", name, "takes its bytes slowly: a leaf" if slow else "is slow no more")
        answers = [
            answer_as(tracker.ask(peer, span_of(span), count, frozenset(without)))
            for span, count, without in batch.asks
        ]
        digests = [digests_as(tracker.digests(key, after)) for key, after in batch.digests]
        again = [(span.key, span.number) for span in tracker.again(sender)]
        return Reply(renewal=renewal, answers=answers, digests=digests, again=again)
