"""The tracker as it answers its peers: a batch in, a reply out (agent/peers/wire.py)."""

from __future__ import annotations

from agent.peers.tracker import Tracker
from agent.peers.wire import (
    Batch,
    Reply,
    answer_as,
    digests_as,
    parse_batch,
    peer_of,
    renewal_as,
    span_of,
    standing_of,
    units_of,
)


class Tracking:
    """Serves one tracker to members. Used on the loop."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    async def call(self, sender: str, body: bytes) -> bytes:
        """A `Call` of the exchange. Raises BadRequest."""
        return self.answer(sender, parse_batch(body)).model_dump_json().encode()

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
        answers = [
            answer_as(tracker.ask(peer, span_of(span), count, frozenset(without)))
            for span, count, without in batch.asks
        ]
        digests = [digests_as(tracker.digests(key, after)) for key, after in batch.digests]
        return Reply(renewal=renewal, answers=answers, digests=digests)
