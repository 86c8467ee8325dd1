"""Chunks from peers first, and from the origin where no peer has them in time.

`PeerSource` stands in front of the origins' own source and behind the same seam (agent/source.py). Whom to
ask it is told by a `Guide`, within a bounded time. As a child it takes bytes from its parents, one after the
other where one fails, each going on at the byte where the last one ended, and lets a unit through only when
it has the digest that its head made, which comes with it. As a head, or where no parent is left, it reads the
origin as if there were no peers, and makes the digests. Whatever peers do wrong costs a bounded time,
is counted, and leaves the peer out for a while; the errors that a fill sees are the origin's and the store's.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import OrderedDict
from collections.abc import Sequence

from agent.cache.whole import Stating
from agent.clock import Clock, ended
from agent.content import Extent, ObjectRef
from agent.errors import (
    HeadraceError,
    ObjectMissing,
    OriginMisbehaved,
    StoreError,
    VersionChanged,
)
from agent.metrics import Metrics
from agent.peers.courses import group_of
from agent.peers.digests import UnitDigests
from agent.peers.exchange_client import ExchangeClient
from agent.peers.guiding import Guide
from agent.peers.liveness import Liveness
from agent.peers.member import Peer
from agent.peers.messages import Reason
from agent.peers.owners import Elsewhere, SmallObjects
from agent.peers.paths import Path, Paths, PathSlower
from agent.peers.pulse import Intake
from agent.peers.queue import Breadth, Queue
from agent.peers.units import CheckedSink, MakingSink, Rest, UnitUnknown, UnitWrong
from agent.rate import Rate
from agent.source import Budget, Checksum, Sink, Urgency

log = logging.getLogger(__name__)

PARENTS = (
    8  # peers that are tried for a chunk before the origin is asked; time bounds them too (PEERS_WITHIN)
)
UNIT_WITHIN = 5.0  # seconds in which a peer brings a unit, on any of its streams
PEERS_WITHIN = 10.0  # seconds for all parents of a chunk while none of them brings a unit
ROUTES_WITHIN = 3.0  # seconds that what nobody waits for waits for its routes: a silent tracker and the next
# Times as long, where this agent's own link is slow and many share it, or where a head sends nothing of a
# chunk before all of it is proven.
GRACE = 4.0
RESTS = 256  # heads' digests of unfinished units that are kept for the next attempt


class _Rerouted(HeadraceError):
    """Another parent is planned: nobody's fault."""


class PeerSource:
    """A `ChunkSource` that asks peers before it asks `origin`."""

    def __init__(
        self,
        origin: Stating,
        guide: Guide,
        client: ExchangeClient,
        liveness: Liveness,
        digests: UnitDigests,
        clock: Clock,
        metrics: Metrics,
        small: SmallObjects | None = None,
        limit: Rate | None = None,
    ) -> None:
        """`digests` is told those of all units that come, `small` brings small objects from their owners, and
        `limit` is for what is taken from parents."""
        self._small = small
        # Chunks, by their object's key and their end, that come from the origin without a word to peers: who
        # warms by the swarm has agreed already on who fetches what.
        self.straight: set[tuple[str, int]] = set()
        self._limit = limit
        self._origin = origin
        self._guide = guide
        self._client = client
        self._liveness = liveness
        self._digests = digests
        self._clock = clock
        self._metrics = metrics
        self._rests: OrderedDict[tuple[str, int], Rest] = OrderedDict()
        self._paths = Paths(clock)
        self._queue = Queue(clock)
        self._breadths: dict[str, Breadth] = {}
        self.intake = Intake()

    def keep_only(self, names: frozenset[str]) -> None:
        """Forget how the paths of those do that are no members any more."""
        self._paths.keep_only(names)

    def budget(self, ref: ObjectRef) -> Budget:
        return self._origin.budget(ref)

    async def checksum(self, ref: ObjectRef) -> Checksum | None:
        """What the origin states of the object."""
        return await self._origin.checksum(ref)

    async def fetch(self, ref: ObjectRef, sink: Sink) -> None:
        """As the seam says; only the origin's errors and the store's are raised."""
        if sink.position == sink.end:
            return
        first = sink.urgency
        if self._small is not None and not sink.position and self._small.takes(ref):
            found = await self._small.fetch(ref)
            if isinstance(found, bytes):
                sink.write(memoryview(found))
                return
            if found is Elsewhere.ORIGIN:
                self._doubt(ref, sink)
                await self._origin.fetch(ref, sink)
                return
        # What the origin has begun it has to end, where only its end proves all of it.
        if (ref.key, sink.end) in self.straight or sink.unproven:
            await self._from_origin(ref, sink)
            return
        group = group_of(ref)
        with self._queue.under_way(group, sink):
            for may_leave in (True, False):
                await self._from_peers(ref, sink, first)
                if sink.position == sink.end:
                    return
                if self._guide.relays(ref, _left(sink)):
                    await self._queue.turn(group, sink, self._breadth(ref))
                if not await self._from_origin(ref, sink, may_leave):
                    return

    async def _from_peers(self, ref: ObjectRef, sink: Sink, urgency: Urgency) -> None:
        patience = self._origin.budget(ref).deadline / 4  # three parents leave the origin a quarter
        give_up = self._clock.monotonic() + self._grace(ref, sink) * min(PEERS_WITHIN, 2 * patience)
        tried: set[str] = set()
        had_turn = False
        while len(tried) < PARENTS:
            # Asked anew after each: where one has failed the guide may know another in its place.
            parents = await self._parents(ref, sink, min(ROUTES_WITHIN, patience))
            peer = next((one for one in parents if self._worth_asking(one, tried, urgency)), None)
            if peer is None:
                return
            if not had_turn:
                had_turn, asked = True, self._clock.monotonic()
                if await self._queue.turn(group_of(ref), sink):
                    give_up += self._clock.monotonic() - asked
                    continue
            tried.add(peer.name)
            before = sink.position
            error = await self._from_peer(peer, ref, sink, min(UNIT_WITHIN, patience), urgency)
            late = sink.position == before and self._clock.monotonic() >= give_up
            if error is None or isinstance(error, PathSlower) or late:
                return

    async def _parents(self, ref: ObjectRef, sink: Sink, within: float) -> Sequence[Peer]:
        """Whom to ask. A reader waits once for that, whatever nobody waits for a few times longer."""
        give_up = self._clock.monotonic() + within
        while (parents := await self._guide.parents(ref, _left(sink))) is None:
            if sink.urgency.awaited or self._clock.monotonic() >= give_up:
                self._metrics.peer_routes_late.inc()
                return ()
        return parents

    def _worth_asking(self, peer: Peer, tried: set[str], urgency: Urgency) -> bool:
        usable = peer.name not in tried and self._liveness.usable(peer.name)
        return usable and self._paths.worth_asking(peer.name, urgency)

    async def _from_peer(
        self, peer: Peer, ref: ObjectRef, sink: Sink, within: float, urgency: Urgency
    ) -> HeadraceError | TimeoutError | None:
        """Why the peer did not bring all that was missing; None where it did."""
        wanted = _left(sink)
        error: HeadraceError | TimeoutError | None = None
        if self._limit is not None:
            await self._limit.take(wanted.length, urgency.awaited)
        try:
            await self._receive(peer, ref, sink, within, urgency)
        except StoreError:
            raise
        except _Rerouted as rerouted:
            error = rerouted
        except PathSlower as slower:
            error = slower
            self._metrics.peer_paths_left.inc()
            self._paths.left(peer.name)
            log.info("a reader goes to the origin: %s", slower)
        except (HeadraceError, TimeoutError) as failure:
            error = failure
            self._fell_short(peer, ref, _left(sink), failure)
        else:
            self._liveness.answered(peer.name)
            self._guide.brought(ref, wanted, peer)
        self._metrics.peer_bytes_received.inc(sink.position - wanted.offset)
        return error

    async def _receive(self, peer: Peer, ref: ObjectRef, sink: Sink, within: float, urgency: Urgency) -> None:
        """As `Path.judge` and `Engine.receive` raise."""
        checked = CheckedSink(sink, ref.size, functools.partial(self._digests.put, ref.key))
        path = Path(self._paths, peer.name, self.budget(ref).name, checked, sink, urgency)
        receiving = asyncio.ensure_future(self._client.receive(peer, ref, checked))
        try:
            with self.intake.of(checked):
                while not receiving.done():
                    rerouted = self._guide.rerouted(ref, _left(sink))
                    await self._wait(receiving, rerouted, min(within, path.look_every))
                    path.look()
                    if not receiving.done():
                        if self._guide.left(ref, _left(sink), peer):
                            raise _Rerouted
                        path.judge(within, self._grace(ref, sink))
                receiving.result()
        finally:
            await _over(receiving)

    def _grace(self, ref: ObjectRef, sink: Sink) -> float:
        late = self.budget(ref).proven_late
        return GRACE if late or self._guide.slow(ref, _left(sink)) else 1.0

    async def _wait(
        self, receiving: asyncio.Future[None], rerouted: asyncio.Future[None], within: float
    ) -> None:
        """Wait for the end or for other routes, but no longer than `within` seconds."""
        try:
            async with self._clock.timeout(within):
                await asyncio.wait([receiving, rerouted], return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            pass

    def _fell_short(
        self, peer: Peer, ref: ObjectRef, missing: Extent, error: HeadraceError | TimeoutError
    ) -> None:
        reason = _reason(error)
        self._metrics.peer_failures[reason].inc()
        self._guide.failed(ref, missing, peer, reason)
        if isinstance(error, UnitWrong):
            rest = self._liveness.lied(peer.name)
        elif isinstance(error, ObjectMissing):
            return
        else:
            rest = self._liveness.failed(peer.name)
        log.warning("peer %s is left out for %.0f s: %s: %s", peer.name, rest, reason, error)

    async def _from_origin(self, ref: ObjectRef, sink: Sink, may_leave: bool = False) -> bool:
        """Whether the origin was left for parents: this agent was the head, and is slow."""
        wanted = _left(sink)
        key = (ref.key, sink.end)
        made = functools.partial(self._digests.put, ref.key)
        self._doubt(ref, sink)
        making = MakingSink(sink, ref.size, made, self._rests.pop(key, None))
        breadth, origin = self._breadth(ref), self.budget(ref).name
        breadth.began()
        self._paths.fetch_began(origin)
        began = self._clock.monotonic()
        try:
            with self.intake.of(making):
                left = await self._fetch(ref, making, may_leave and not sink.unproven)
        finally:
            self._keep_rest(key, making)
            count, seconds = sink.position - wanted.offset, self._clock.monotonic() - began
            breadth.ended(count, seconds)
            self._paths.fetch_ended(origin, count, seconds)
        if not left:
            self._guide.brought(ref, wanted, None)
        return left

    def _doubt(self, ref: ObjectRef, sink: Sink) -> None:
        if self.budget(ref).proven_late:
            sink.doubt()

    def _breadth(self, ref: ObjectRef) -> Breadth:
        return self._breadths.setdefault(self.budget(ref).name, Breadth())

    async def _fetch(self, ref: ObjectRef, making: MakingSink, may_leave: bool) -> bool:
        """Fetch from the origin; whether that was left for parents."""
        fetching = asyncio.ensure_future(self._origin.fetch(ref, making))
        try:
            while may_leave and not fetching.done():
                if self._guide.left(ref, _left(making), None):
                    return True  # it may be so since this waited for its turn
                rerouted = self._guide.rerouted(ref, _left(making))
                await asyncio.wait([fetching, rerouted], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait([fetching])
            fetching.result()
            return False
        finally:
            await _over(fetching)

    def _keep_rest(self, key: tuple[str, int], making: MakingSink) -> None:
        if making.position < making.end and (rest := making.rest) is not None:
            self._rests[key] = rest
            if len(self._rests) > RESTS:
                self._rests.popitem(last=False)


def _left(sink: Sink) -> Extent:
    return Extent(sink.position, sink.end - sink.position)


def _reason(error: HeadraceError | TimeoutError) -> Reason:
    if isinstance(error, (ObjectMissing, UnitUnknown)):
        return "absent"
    if isinstance(error, TimeoutError):
        return "slow"
    if isinstance(error, (UnitWrong, OriginMisbehaved, VersionChanged)):
        return "wrong"
    return "silent"


async def _over(work: asyncio.Future[None]) -> None:
    """End a piece of work; when this returns it is over, however often the waiting task is cancelled."""
    work.cancel()
    if await ended(work):
        raise asyncio.CancelledError
