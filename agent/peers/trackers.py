"""The trackers of this agent's groups: who they are now, and speaking with them.

Who is the tracker follows from the peers that are usable now; where that is this agent itself it is asked
without a request. One that does not answer is left out for a while, so that another one is the tracker.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from agent.clock import Clock
from agent.errors import BadRequest
from agent.peers.discovery import Discovery
from agent.peers.exchange_client import ExchangeClient, PeerSilent
from agent.peers.liveness import Liveness
from agent.peers.member import Peer
from agent.peers.placement import tracker_of
from agent.peers.pulse import Pace
from agent.peers.tracker_client import TrackerClient
from agent.peers.tracking import Tracking
from agent.peers.wire import Batch, Reply

log = logging.getLogger(__name__)

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
        self._client = TrackerClient(client)
        self._tracking = tracking
        self._clock = clock
        self._again = again

    def of(self, group: str) -> Peer:
        """The tracker of a group."""
        usable = [peer for peer in self._discovery.peers() if self._liveness.usable(peer.name)]
        found = tracker_of(group, [self._own, *usable])
        assert found is not None
        return found

    def answers(self, tracker: Peer) -> bool:
        """Whether a tracker is not left out."""
        return tracker.name == self._own.name or self._liveness.usable(tracker.name)

    def try_all_again(self) -> None:
        """Some of another version may have been upgraded."""
        self._client.try_all_again()

    async def say(self, tracker: Peer, batch: Batch) -> Reply | None:
        """The tracker's reply; None where there is none, which leaves that peer out for a while."""
        speed = {"fastest": self.pace.fastest, "held_up_by": self.pace.held_up_by}
        batch = batch.model_copy(update=speed)
        self.pace.told(self._clock.monotonic())
        try:
            if tracker.name == self._own.name:
                reply = self._tracking.answer(self._own.name, batch)
            else:
                reply = await self._client.say(tracker, batch)
            self._again(reply.again)
            return reply
        except (PeerSilent, BadRequest) as error:
            self._lost(tracker, error)
            return None

    async def follow(self, tracker: Peer, batch: Batch) -> AsyncGenerator[Reply, None]:
        """The replies to a batch that asks for one book of digests, as there is something new. It ends where
        the tracker cannot be followed, and where it is silent, which leaves that peer out for a while."""
        own = tracker.name == self._own.name
        replies = self._tracking.follow(tracker.name, batch) if own else self._client.follow(tracker, batch)
        try:
            async with aclosing(replies):
                async for reply in replies:
                    self._again(reply.again)
                    yield reply
        except (PeerSilent, BadRequest) as error:
            self._lost(tracker, error)

    def _lost(self, tracker: Peer, error: Exception) -> None:
        rest = self._liveness.failed(tracker.name)
        log.warning("tracker %s is left out for %.0f s: %s", tracker.name, rest, error)
        if tracker.name != self._own.name:
            self.gone.set()
