"""The parts of `agent/peers` put together, as one member of the cluster; only where `[peers]` is there."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Protocol

from agent.cache.fill import Filler
from agent.cache.objects import CachedObject
from agent.cache.store import Store
from agent.cache.whole import Stating
from agent.clock import Clock
from agent.config import PeersConfig
from agent.content import Extent
from agent.metrics import Metrics
from agent.peers import holding, small
from agent.peers.courses import Courses
from agent.peers.digests import UnitDigests
from agent.peers.discovery import KnownHosts, NamedPeers, forget_the_gone, system_resolver
from agent.peers.exchange_client import ExchangeClient
from agent.peers.exchange_server import Exchange
from agent.peers.gathering import Services
from agent.peers.guide import RelayGuide
from agent.peers.holding import Holding, HoldOffs
from agent.peers.liveness import Liveness
from agent.peers.member import Peer
from agent.peers.owners import SmallObjects
from agent.peers.ownership import Ownership
from agent.peers.piece_hashes import PieceHashes
from agent.peers.pulse import Pulse
from agent.peers.secrets import Secrets
from agent.peers.source import PeerSource
from agent.peers.swarm_wire import CALL as SWARM_CALL
from agent.peers.swarming import Members, Swarming
from agent.peers.tasks import Tasks
from agent.peers.token import Tokens
from agent.peers.tracker import Tracker
from agent.peers.tracking import Tracking
from agent.peers.wire import AGAIN, CALL
from agent.rate import Rate
from agent.source import Urgency
from agent.transfer.engine import RECEIVERS, Engine

log = logging.getLogger(__name__)


class Paced(Protocol):
    """What asks the origins as fast as it may (agent/origin/pacing.py)."""

    @property
    def hold_offs(self) -> HoldOffs: ...

    @property
    def limited(self) -> bool: ...

    members: Callable[[], int]
    tell: Callable[[str, float], None]


class Cluster:
    """This agent among its peers. Made on the loop; `serve` before anything is fetched, then `close`."""

    def __init__(
        self,
        config: PeersConfig,
        zone: str,
        store: Store,
        origins: Stating,
        clock: Clock,
        metrics: Metrics,
        chunk_size: int,
    ) -> None:
        """Raises ConfigError where the secret file cannot be used."""
        own = Peer(config.own, config.own, zone)
        self._config = config
        self._store = store
        self._clock = clock
        self._metrics = metrics
        secrets = Secrets(config.secret_file, clock)
        self._tokens = Tokens(secrets, clock, own.name)
        self._engine = Engine(RECEIVERS, clock)
        client = ExchangeClient(self._tokens, self._engine)
        targets = config.targets
        resolver, every = system_resolver(config.own), config.discovery == "dns"
        self._discovery = NamedPeers(own.address, targets, clock, resolver, every=every)
        liveness = Liveness(clock)
        self._tracker = Tracker(clock)
        self._tracking = Tracking(self._tracker, clock)
        courses = Courses(chunk_size)
        self._guide = RelayGuide(own, self._discovery, liveness, client, self._tracking, courses, clock)
        upload, download = config.upload_limit, config.download_limit
        self._upload = Rate(clock, upload) if upload else None
        limit = Rate(clock, download) if download else None
        self._small = SmallObjects(own, self._discovery, liveness, client, clock, metrics, limit)
        self._digests = UnitDigests()
        self.source = PeerSource(
            origins,
            self._guide,
            client,
            liveness,
            self._digests,
            clock,
            metrics,
            small=self._small,
            limit=limit,
        )
        self._holding: Holding | None = None
        self._client = client
        self._liveness = liveness
        self._own = own
        self._secrets = secrets
        self._chunk_size = chunk_size
        self.swarming: Swarming | None = None
        self.swarm_port = 0  # where this agent is in the swarm
        self._stack = AsyncExitStack()

    def pace(self, origins: Paced) -> None:
        """Share the origins' budgets with the other agents; before `serve`."""
        discovery, liveness = self._discovery, self._liveness
        self._holding = Holding(
            origins.hold_offs, discovery, liveness, self._client, self._clock, random.Random()
        )
        origins.tell = self._holding.tell
        origins.members = self._live
        if origins.limited:
            self._tracker.run = 1  # each head has its part of the limit only: all are heads in turn

    async def serve(self, filler: Filler) -> None:
        """Listen to peers, look for them, and announce. Raises ConfigError."""
        store, clock, metrics, limit = self._store, self._clock, self._metrics, self._upload
        ownership = Ownership(store, filler, self._small, clock, metrics, limit)
        filler.foresee = self._small.foresee
        calls = {CALL: self._tracking.call, AGAIN: self._guide.called_again}
        calls |= {small.CALL: ownership.call, small.OLD_CALL: small.answer_old}
        if self._holding is not None:
            calls[holding.CALL] = self._holding.call
        if self._config.swarm:
            self.swarming = await self._in_swarm(filler)
            calls[SWARM_CALL] = self.swarming.call
        helper = _Helping(filler, self._guide)
        binary = frozenset({small.CALL, small.OLD_CALL})
        known = KnownHosts(self._discovery).has
        exchange = Exchange(
            store, self._tokens, clock, metrics, calls, self._digests, helper, limit, binary, known
        )
        await exchange.start(self._config.address)
        self._stack.push_async_callback(exchange.close)
        self._discovery.start()
        self._stack.push_async_callback(self._discovery.close)
        keepers = [self._liveness.keep_only, self.source.keep_only, exchange.outgoing.keep_only]
        forgetting = Tasks()
        forgetting.spawn(forget_the_gone(self._discovery, keepers))
        self._stack.push_async_callback(forgetting.close)
        self._guide.start()
        self._stack.push_async_callback(self._guide.close)
        upload = self._config.upload_limit
        pulse = Pulse(self.source.intake, exchange.outgoing, self._guide.receives, clock, upload)
        pulse.start()
        self._stack.push_async_callback(pulse.close)
        if self.swarming is not None:
            self.swarming.start()
            self._stack.push_async_callback(self.swarming.close)
        log.info("peers are served on %s", self._config.own)

    async def _in_swarm(self, filler: Filler) -> Swarming:
        from agent.peers.swarm import Swarm  # libtorrent is 8 MB that only who takes part shall load

        host, _ = self._config.address
        limits = self._config.upload_limit or 0, self._config.download_limit or 0
        swarm = await Swarm.start(host, self._config.swarm_port, limits)
        swarm.on_sent = self._metrics.swarm_sent.inc
        self._stack.push_async_callback(swarm.close)
        self.swarm_port = swarm.port
        log.info("the swarm is on port %d", swarm.port)
        services = Services(
            own=self._own,
            store=self._store,
            filler=filler,
            swarm=swarm,
            hashes=PieceHashes(self._store, self._clock),
            clock=self._clock,
            metrics=self._metrics,
            straight=self.source.straight,
            brought=lambda ref, extent: self._guide.brought(ref, extent, None),
        )
        members = Members(self._discovery, self._liveness, self._client, self._secrets)
        return Swarming(services, members, self._chunk_size)

    def _live(self) -> int:
        """How many agents there are that may be asked, this one among them."""
        return 1 + sum(self._liveness.usable(peer.name) for peer in self._discovery.peers())

    async def leave(self) -> None:
        """Serve no peer any more."""
        await self._stack.aclose()

    async def close(self) -> None:
        """Give back connections and threads, when nothing is fetched any more."""
        await self._stack.aclose()
        await self._small.close()
        if self._holding is not None:
            await self._holding.close()
        await self._client.close()
        await self._engine.close()


class _Helping:
    """What this agent does for its children (`Helper` of the exchange): fills chunks that they wait for."""

    def __init__(self, filler: Filler, guide: RelayGuide) -> None:
        self._filler = filler
        self._guide = guide

    def bring(self, cached: CachedObject, extent: Extent, owner: object, urgency: Urgency) -> None:
        if self._guide.takes_part(cached.ref):
            chunk = extent.offset // cached.chunk_size
            self._filler.prefetch(cached, range(chunk, chunk + 1), owner, urgency)

    def disown(self, owner: object) -> None:
        self._filler.disown(owner)
