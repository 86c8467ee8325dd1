"""The seam between who fetches a chunk and who knows whom to ask for it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from agent.content import Extent, ObjectRef
from agent.peers.member import Peer
from agent.peers.messages import Reason


class Guide(Protocol):
    """Who knows whom to ask for what. Used on the loop."""

    async def parents(self, ref: ObjectRef, extent: Extent) -> Sequence[Peer] | None:
        """The peers to ask for these bytes, the best first; none where the origin is to be asked.

        Answers within as long as a reader may wait, None where it is not known by then, and never raises.
        """

    def left(self, ref: ObjectRef, extent: Extent, peer: Peer | None) -> bool:
        """Whether the bytes are to come from another parent, though this one, or the origin (None), does not
        fail."""

    def relays(self, ref: ObjectRef, extent: Extent) -> bool:
        """Whether this agent has a place in the relay of these bytes: others may wait for what it fetches."""

    def slow(self, ref: ObjectRef, extent: Extent) -> bool:
        """Whether this agent is the slow one: its few bytes a second come from many, some of them late."""

    def rerouted(self, ref: ObjectRef, extent: Extent) -> asyncio.Future[None]:
        """What is done when `left` and `parents` may say something else than now; nobody cancels it."""

    def brought(self, ref: ObjectRef, extent: Extent, peer: Peer | None) -> None:
        """The bytes are here, from a peer or from the origin (None)."""

    def failed(self, ref: ObjectRef, extent: Extent, peer: Peer, reason: Reason) -> None:
        """A parent did not bring the bytes (the reasons are those of agent/metrics.py)."""
