"""A tracker as a member speaks with it: by the call that the tracker's agent knows.

Agents before `CALL` was there refuse what they do not know, as all do. They are told by `OLD_CALL` what they
know, and nothing of anybody's speed; they are tried again from time to time, since they are upgraded.
"""

from __future__ import annotations

from agent.peers.exchange_client import CallUnknown, ExchangeClient
from agent.peers.member import Peer
from agent.peers.wire import CALL, OLD_CALL, Batch, Reply, old_batch, parse_reply

CALL_WITHIN = 2.0  # seconds for a call that no reader waits for


class TrackerClient:
    """Asks trackers. Used on the loop."""

    def __init__(self, client: ExchangeClient) -> None:
        self._client = client
        self._older: set[str] = set()

    def try_all_again(self) -> None:
        """Some may have been upgraded."""
        self._older.clear()

    async def say(self, tracker: Peer, batch: Batch) -> Reply:
        """The tracker's reply. Raises PeerSilent, and BadRequest where it is none."""
        if tracker.name not in self._older:
            try:
                body = batch.model_dump_json().encode()
                return parse_reply(await self._client.call(tracker, CALL, body, CALL_WITHIN), batch)
            except CallUnknown:
                self._older.add(tracker.name)
        return parse_reply(await self._client.call(tracker, OLD_CALL, old_batch(batch), CALL_WITHIN), batch)
