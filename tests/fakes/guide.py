"""The in-memory twin of `Guide` (agent/peers/guiding.py): the test says who the parents are."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from agent.content import Extent, ObjectRef
from agent.peers.member import Peer
from agent.peers.messages import Reason


class MemoryGuide:
    """`parents_now` are given to whoever asks, `unknown` times later."""

    def __init__(self, *parents: Peer) -> None:
        self.parents_now: Sequence[Peer] = parents
        self.unknown = 0  # times that whom to ask is not known in time
        self.told: list[tuple[str, Extent, Peer | None]] = []
        self.blamed: list[tuple[Peer, Reason]] = []
        self.slow_ones: set[str] = set()
        self.slow_itself = False
        self.relaying = False
        self._next: asyncio.Future[None] | None = None

    async def parents(self, ref: ObjectRef, extent: Extent) -> Sequence[Peer] | None:
        if self.unknown:
            self.unknown -= 1
            await asyncio.sleep(0)
            return None
        return self.parents_now

    def left(self, ref: ObjectRef, extent: Extent, peer: Peer | None) -> bool:
        return peer.name in self.slow_ones if peer is not None else bool(self.slow_ones and self.parents_now)

    def relays(self, ref: ObjectRef, extent: Extent) -> bool:
        return self.relaying

    def slow(self, ref: ObjectRef, extent: Extent) -> bool:
        return self.slow_itself

    def rerouted(self, ref: ObjectRef, extent: Extent) -> asyncio.Future[None]:
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        return self._next

    def reroute(self, parents: Sequence[Peer], slow: Sequence[Peer] = ()) -> None:
        """Give other parents to those who are on their way too; they leave those that are slow."""
        self.parents_now, self.slow_ones = parents, {peer.name for peer in slow}
        if self._next is not None:
            self._next.set_result(None)
            self._next = None

    def brought(self, ref: ObjectRef, extent: Extent, peer: Peer | None) -> None:
        self.told.append((ref.key, extent, peer))

    def failed(self, ref: ObjectRef, extent: Extent, peer: Peer, reason: Reason) -> None:
        self.blamed.append((peer, reason))
