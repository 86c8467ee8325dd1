"""A tracker as a member speaks with it: by the call that the tracker's agent knows.

Agents before `CALL` was there refuse what they do not know, as all do. They are told by `OLD_CALL` what they
know, and nothing of anybody's speed; they are tried again from time to time, since they are upgraded.
Digests are followed: a tracker that is asked for them twenty times a second by each of fifteen members does
little else. Where it cannot be followed it is asked from time to time (agent/peers/following.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing

from agent.peers.exchange_client import CallUnknown, ExchangeClient
from agent.peers.member import Peer
from agent.peers.wire import CALL, FOLLOW, OLD_CALL, Batch, Reply, old_batch, parse_reply

CALL_WITHIN = 2.0  # seconds for a call that no reader waits for
SILENT_FOR = 2.0  # seconds without a line, of which one comes every half second
FOLLOWED = 8  # books of one tracker at a time: each has a connection


class TrackerClient:
    """Asks trackers. Used on the loop."""

    def __init__(self, client: ExchangeClient) -> None:
        self._client = client
        self._older: set[str] = set()
        self._not_followed: set[str] = set()
        self._followed: Counter[str] = Counter()

    def try_all_again(self) -> None:
        """Some may have been upgraded."""
        self._older.clear()
        self._not_followed.clear()

    async def say(self, tracker: Peer, batch: Batch) -> Reply:
        """The tracker's reply. Raises PeerSilent, and BadRequest where it is none."""
        if tracker.name not in self._older:
            try:
                body = batch.model_dump_json().encode()
                return parse_reply(await self._client.call(tracker, CALL, body, CALL_WITHIN), batch)
            except CallUnknown:
                self._older.add(tracker.name)
        return parse_reply(await self._client.call(tracker, OLD_CALL, old_batch(batch), CALL_WITHIN), batch)

    async def follow(self, tracker: Peer, batch: Batch) -> AsyncGenerator[Reply, None]:
        """The replies to a batch that asks for one book of digests, as there is something new; none where
        this tracker cannot be followed now. Raises PeerSilent, and BadRequest where they are none."""
        if tracker.name in self._not_followed or self._followed[tracker.name] >= FOLLOWED:
            return
        self._followed[tracker.name] += 1
        body = batch.model_dump_json().encode()
        try:
            async with aclosing(self._client.follow(tracker, FOLLOW, body, SILENT_FOR)) as lines:
                async for line in lines:
                    yield parse_reply(line, batch)
        except CallUnknown:
            self._not_followed.add(tracker.name)
        finally:
            self._followed[tracker.name] -= 1
