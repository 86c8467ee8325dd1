"""Small objects from their owners, many in one request, before the relay and the origin are asked.

Each small object has an owner among the peers (agent/peers/placement.py), who reads it from the origin once
for all. What is wanted of one owner at the same time goes in one request: what fills ask for, and what they
are known to ask for soon (`foresee`). The owner itself first asks the next in rank for what that has: it was
the owner while this agent was away. The owner is its objects' head, so its digest counts as a head's does.

An answer is waited for `PATIENCE` seconds at the most. An owner that cannot have an object (it has not the
credentials that came with a mount) says so at once, and the relay is asked; one that is silent, or sends
wrong bytes, is left out for a while, and the origin is asked.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from agent.clock import Clock
from agent.content import ObjectRef
from agent.errors import BadRequest
from agent.metrics import Metrics
from agent.peers.discovery import Discovery
from agent.peers.exchange_client import CallUnknown, ExchangeClient, PeerSilent
from agent.peers.liveness import Liveness
from agent.peers.member import Peer
from agent.peers.placement import owners_of
from agent.peers.small import CALL, SMALL, Frame, State, batch_of, has_room_for, parse_answer, request_of
from agent.peers.tasks import Tasks
from agent.rate import Rate

log = logging.getLogger(__name__)

CALL_WITHIN = 3.0  # seconds for one answer; an owner that fetches answers within one
PATIENCE = 5.0  # seconds for an object: an owner that fetches is asked again until then
REQUESTS = 2  # to one owner at a time: what comes meanwhile goes in the next one
FORESEEN = 16 << 20  # bytes that may be asked for, or kept, before a fill asks for them
FORESEEN_FOR = 30.0  # seconds until they are given up
SLOT = 3  # hex digits of a key: 4,096 slots have an owner each, which hashing need not find for each object
OWNERS = 2  # that are asked for an object, where the first is gone
RANKS = 8  # owners of a slot that are known: so many peers may be left out at a time


class Elsewhere(enum.Enum):
    """Where to go for an object that its owner did not bring."""

    RELAY = "relay"
    ORIGIN = "origin"


@dataclass(eq=False, slots=True)
class _Wish:
    """An object that is asked for, or that has come and is not taken yet."""

    ref: ObjectRef
    asked: str
    fetch: bool  # whether that peer is to fetch it
    since: float
    result: asyncio.Future[bytes | Elsewhere]


@dataclass(eq=False, slots=True)
class _Queue:
    """What is wanted of one peer."""

    peer: Peer
    fetch: bool
    waiting: list[_Wish] = field(default_factory=list)
    requests: int = 0
    due: bool = False


class SmallObjects:
    """This agent as one that asks owners. Made and used on one loop."""

    def __init__(
        self,
        own: Peer,
        discovery: Discovery,
        liveness: Liveness,
        client: ExchangeClient,
        clock: Clock,
        metrics: Metrics,
        limit: Rate | None = None,
    ) -> None:
        """`limit` is for what owners bring."""
        self._limit = limit
        self._own = own
        self._discovery = discovery
        self._liveness = liveness
        self._client = client
        self._clock = clock
        self._metrics = metrics
        self._wishes: dict[str, _Wish] = {}
        self._foreseen = 0
        self._queues: dict[tuple[str, bool], _Queue] = {}
        self._owned: Counter[str] = Counter()
        self._ranks: dict[str, list[Peer]] = {}
        self._ranked_of: tuple[Peer, ...] = ()
        self._tasks = Tasks()

    async def close(self) -> None:
        """End all requests; what waits is told to go to the origin."""
        await self._tasks.close()

    def takes(self, ref: ObjectRef) -> bool:
        """Whether an object comes from an owner: not one of a node's own files, which others do not have."""
        small = 0 < ref.size <= SMALL and not ref.uri.startswith("file://")
        return small and bool(self._discovery.peers())

    def foresee(self, refs: Iterable[ObjectRef]) -> None:
        """These objects will be fetched soon: ask for them together, as far as there is room."""
        self._give_up_old()
        for ref in refs:
            if self.takes(ref) and ref.key not in self._wishes and self._foreseen + ref.size <= FORESEEN:
                self._wish(ref)

    async def fetch(self, ref: ObjectRef) -> bytes | Elsewhere:
        """The object's bytes from its owner, or where else to go. Never raises."""
        self._give_up_old()
        try:
            async with self._clock.timeout(PATIENCE):
                for _ in range(OWNERS):
                    wish = self._wishes.get(ref.key) or self._wish(ref)
                    if wish is None:
                        break
                    found = await self._taken(wish)
                    if found is not Elsewhere.ORIGIN or self._liveness.usable(wish.asked):
                        return found
        except TimeoutError:
            pass
        return Elsewhere.ORIGIN

    async def _taken(self, wish: _Wish) -> bytes | Elsewhere:
        try:
            return await asyncio.shield(wish.result)
        finally:
            self._forget(wish)

    def asks(self, key: str) -> bool:
        """Whether somebody else is asked to fetch this object for this agent now."""
        wish = self._wishes.get(key)
        return wish is not None and wish.fetch and not wish.result.done()

    @contextmanager
    def owning(self, keys: list[str]) -> Iterator[None]:
        """Meanwhile this agent is taken for the owner of these: it asks nobody to fetch them."""
        self._owned.update(keys)
        try:
            yield
        finally:
            self._owned -= Counter(keys)

    def _wish(self, ref: ObjectRef) -> _Wish | None:
        """Ask for an object; None where nobody is to be asked, or can be."""
        if not has_room_for(ref):
            return None
        usable = [peer for peer in self._ranked(ref.key) if self._usable(peer)]
        own = self._owned[ref.key] > 0 or not usable or usable[0].name == self._own.name
        asked = next((peer for peer in usable if peer.name != self._own.name), None)
        if asked is None:
            return None
        result: asyncio.Future[bytes | Elsewhere] = asyncio.get_running_loop().create_future()
        wish = _Wish(ref, asked.name, not own, self._clock.monotonic(), result)
        self._wishes[ref.key] = wish
        self._foreseen += ref.size
        queue = self._queues.setdefault((asked.name, wish.fetch), _Queue(asked, wish.fetch))
        queue.waiting.append(wish)
        self._send_soon(queue)
        return wish

    def _ranked(self, key: str) -> list[Peer]:
        peers = self._discovery.peers()
        if peers is not self._ranked_of:
            self._ranks, self._ranked_of = {}, peers
        slot = key[:SLOT]
        if slot not in self._ranks:
            self._ranks[slot] = owners_of(slot, [self._own, *peers], RANKS)
        return self._ranks[slot]

    def _usable(self, peer: Peer) -> bool:
        return peer.name == self._own.name or self._liveness.usable(peer.name)

    def _forget(self, wish: _Wish) -> None:
        if self._wishes.get(wish.ref.key) is wish:
            del self._wishes[wish.ref.key]
            self._foreseen -= wish.ref.size

    def _give_up_old(self) -> None:
        """Let go of what came, or was to come, and nobody asked for."""
        now = self._clock.monotonic()
        while self._wishes:
            oldest = next(iter(self._wishes.values()))
            if now - oldest.since < FORESEEN_FOR:
                return
            self._forget(oldest)

    def _send_soon(self, queue: _Queue) -> None:
        """Send once all that is wanted in this turn of the loop is there."""
        if not queue.due and queue.waiting and queue.requests < REQUESTS:
            queue.due = True
            asyncio.get_running_loop().call_soon(self._send, queue)

    def _send(self, queue: _Queue) -> None:
        queue.due = False
        while queue.waiting and queue.requests < REQUESTS:
            count = batch_of([wish.ref for wish in queue.waiting])
            batch, queue.waiting = queue.waiting[:count], queue.waiting[count:]
            queue.requests += 1
            self._tasks.spawn(self._ask(queue, batch))

    async def _ask(self, queue: _Queue, batch: list[_Wish]) -> None:
        again: list[_Wish] = []
        try:
            frames = await self._answer(queue, batch)
            give_up = self._clock.monotonic() - PATIENCE
            for wish in batch:
                found = self._judge(queue.peer, wish, frames.get(wish.ref.key))
                if found is not None:
                    _settle(wish, found)
                elif wish.since > give_up:
                    again.append(wish)
        finally:
            for wish in batch:
                if wish not in again:
                    _settle(wish, Elsewhere.ORIGIN)
            queue.requests -= 1
            queue.waiting += again
            self._send_soon(queue)

    async def _answer(self, queue: _Queue, batch: list[_Wish]) -> dict[str, Frame]:
        """The peer's answer; nothing from one that gives none, which is left out for a while
        unless it is of another version."""
        peer, body = queue.peer, request_of((wish.ref for wish in batch), fetch=queue.fetch)
        try:
            frames = parse_answer(await self._client.call(peer, CALL, body, CALL_WITHIN))
        except CallUnknown as error:
            log.info("small objects come from the origin: %s", error)
            return {}
        except (PeerSilent, BadRequest) as error:
            self._metrics.peer_failures["silent"].inc()
            rest = self._liveness.failed(peer.name)
            log.warning("peer %s is left out for %.0f s: small objects: %s", peer.name, rest, error)
            return {}
        self._liveness.answered(peer.name)
        if self._limit is not None:
            await self._limit.take(sum(len(frame.data) for frame in frames.values()))
        return frames

    def _judge(self, peer: Peer, wish: _Wish, frame: Frame | None) -> bytes | Elsewhere | None:
        """What a frame makes of a wish; None to ask again."""
        if frame is None:
            return Elsewhere.ORIGIN
        if frame.state is State.COMING:
            return None
        if frame.state is State.ABSENT:
            return Elsewhere.RELAY if wish.fetch else Elsewhere.ORIGIN
        if frame.right(wish.ref):
            self._metrics.peer_bytes_received.inc(len(frame.data))
            return frame.data
        self._metrics.peer_failures["wrong"].inc()
        rest = self._liveness.lied(peer.name)
        log.warning("peer %s is left out for %.0f s: wrong: %s", peer.name, rest, wish.ref.uri)
        return Elsewhere.ORIGIN


def _settle(wish: _Wish, found: bytes | Elsewhere) -> None:
    if not wish.result.done():
        wish.result.set_result(found)
