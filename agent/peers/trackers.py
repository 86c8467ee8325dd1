"""The trackers of this agent's groups: who they are now, and speaking with them.

Who is the tracker follows from the peers that are usable now; where that is this agent itself it is asked
without a request. One that does not answer is left out for a while, so that another one is the tracker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence

from agent.clock import Clock
from agent.errors import BadRequest
from agent.peers.discovery import Discovery
from agent.peers.exchange_client import ExchangeClient, PeerSilent
from agent.peers.liveness import Liveness
from agent.peers.member import Peer
from agent.peers.placement import tracker_of
from agent.peers.pulse import Pace
from agent.peers.tasks import Tasks, for_each
from agent.peers.tracking import Tracking
from agent.peers.wire import AGAIN, CALL, Batch, Reply, parse_reply, peer_of

log = logging.getLogger(__name__)

CALL_WITHIN = 2.0  # seconds for a call that no reader waits for

# Called with the spans, as the wire has them, that a tracker wants to be asked for again.
Again = Callable[[Sequence[tuple[str, int]]], None]


class Trackers:
    """This agent as a member that speaks with trackers. Made and used on one loop."""

    def __init__(
        self,
        own: Peer,
        discovery: Discovery,
        liveness: Liveness,
        client: ExchangeClient,
        tracking: Tracking,
        clock: Clock,
        again: Again,
    ) -> None:
        self.pace = Pace()
        self.gone = asyncio.Event()  # one does not answer: the next one has to hear where this agent stands
        self._own = own
        self._discovery = discovery
        self._liveness = liveness
        self._client = client
        self._tracking = tracking
        tracking.push = self._push
        self._clock = clock
        self._again = again
        self._tasks = Tasks()

    async def close(self) -> None:
        """Tell nobody any more."""
        await self._tasks.close()

    def of(self, group: str) -> Peer:
        """The tracker of a group."""
        usable = [peer for peer in self._discovery.peers() if self._liveness.usable(peer.name)]
        found = tracker_of(group, [self._own, *usable])
        assert found is not None
        return found

    async def say(self, tracker: Peer, batch: Batch) -> Reply | None:
        """The tracker's reply; None where there is none, which leaves that peer out for a while."""
        speed = {"fastest": self.pace.fastest, "held_up_by": self.pace.held_up_by}
        batch = batch.model_copy(update=speed)
        self.pace.told(self._clock.monotonic())
        try:
            if tracker.name == self._own.name:
                reply = self._tracking.answer(self._own.name, batch)
            else:
                body = batch.model_dump_json().encode()
                reply = parse_reply(await self._client.call(tracker, CALL, body, CALL_WITHIN), batch)
            self._again(reply.again)
            return reply
        except (PeerSilent, BadRequest) as error:
            self._lost(tracker, error)
            return None

    async def called_again(self, sender: str, body: bytes) -> bytes:
        """A `Call` of the exchange: a tracker wants to be asked again. Raises BadRequest."""
        self._again(parse_reply(body, Batch()).again)
        return b""

    def _push(self, again: Mapping[str, list[tuple[str, int]]]) -> None:
        """As the tracker of others: have them ask again at once."""
        self._again(again.get(self._own.name, []))
        others = [name for name in again if name != self._own.name]
        self._tasks.spawn(for_each(others, lambda name: self._call_again(name, again[name])))

    async def _call_again(self, name: str, spans: list[tuple[str, int]]) -> None:
        with contextlib.suppress(PeerSilent):  # it hears so with its next reply
            body = Reply(again=spans).model_dump_json().encode()
            await self._client.call(peer_of(name), AGAIN, body, CALL_WITHIN)

    def _lost(self, tracker: Peer, error: Exception) -> None:
        rest = self._liveness.failed(tracker.name)
        log.warning("tracker %s is left out for %.0f s: %s", tracker.name, rest, error)
        if tracker.name != self._own.name:
            self.gone.set()
