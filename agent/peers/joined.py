"""A set's torrent, and the chunks that the store has granted it.

The store grants what is missing: the torrent writes those chunks, into the store's own files, and nobody else
does. What is here already it has from the start. A chunk whose pieces have come is read back, checked once
more and recorded; what has not come when the torrent ends is given back. Loop only; threads read back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from agent.cache.store import Store
from agent.clock import Clock
from agent.content import Extent, ObjectRef
from agent.errors import StoreError, StoreFailed, StoreFull
from agent.metrics import Metrics
from agent.peers.held import At, Held
from agent.peers.member import host_of
from agent.peers.metainfo import Layout, mark_of, pieces_in
from agent.peers.piece_hashes import Hashes, made

if TYPE_CHECKING:
    from agent.peers.swarm import Swarm, Torrent

log = logging.getLogger(__name__)

# Seconds in which not a byte comes, before the rest is filled otherwise: where an agent has died with pieces
# that only it had, everybody waits so long.
STALL = 4.0
RECONNECT = 5.0  # seconds

Brought = Callable[[ObjectRef, Extent], None]


class Joined:
    """The part in one swarm, from construction to `leave`; `join` again makes another torrent."""

    def __init__(
        self,
        layout: Layout,
        held: Held,
        store: Store,
        swarm: Swarm,
        clock: Clock,
        metrics: Metrics,
        brought: Brought,
        zone: str,
    ) -> None:
        """`brought` is told of each chunk that came; `zone` is this agent's."""
        self._layout = layout
        self._zone = zone
        self._held = held
        self._store = store
        self._swarm = swarm
        self._clock = clock
        self._metrics = metrics
        self._brought = brought
        self.error: StoreError | None = None
        self._hashes: Hashes = {}
        self._granted: dict[At, int] = {}  # how many pieces are missing still
        self._chunk_of: list[At] = []  # by piece
        self._torrent: Torrent | None = None
        self._met: dict[str, tuple[int, float]] = {}
        self._taking: set[asyncio.Task[None]] = set()
        self._moved = 0.0
        self._received = 0

    @property
    def port(self) -> int:
        """Where this agent is in the swarm; 0 where it is not."""
        return self._swarm.port if self._torrent is not None else 0

    @property
    def waiting(self) -> bool:
        """Whether chunks are to come."""
        return bool(self._granted)

    def stalled(self) -> bool:
        """Whether nothing will come, as it looks."""
        torrent = self._torrent
        if torrent is None or torrent.fault or (torrent.wrong and not torrent.peers):
            return True
        if torrent.received > self._received:
            self._received, self._moved = torrent.received, self._clock.monotonic()
        return self._clock.monotonic() - self._moved > STALL

    async def grant(self) -> None:
        """Have the store grant what is missing; what it has no room for is left out."""
        for at in self._held.chunks():
            cached = self._held[at[0]]
            try:
                granted = self._store.grant(cached, at[1])
            except StoreFull:
                if not await self._store.make_room(cached, cached.extent(at[1]).length):
                    return
                granted = self._store.grant(cached, at[1])
            if granted:
                self._granted[at] = pieces_in(cached.extent(at[1]).length)

    def join(self, hashes: Hashes, secret: bytes) -> None:
        """Be in the swarm with what is here now; nothing happens where this agent is. Raises StoreFailed."""
        if self._torrent is not None:
            return
        if not self._held.paths():
            raise StoreFailed("nothing of the set is here any more")
        self._hashes = hashes
        self._chunk_of = [
            at for at in self._layout.chunks() for _ in range(pieces_in(self._layout.extent(*at).length))
        ]
        have = [self._held.has(at) for at in self._chunk_of]
        wanted = [at in self._granted for at in self._chunk_of]
        info = self._layout.info(hashes, mark_of(secret, self._layout.id))
        self._torrent = self._swarm.add(info, self._paths(), have, wanted, self._came)
        self._metrics.swarm_torrents.inc()
        self._met, self._received = {}, 0
        self._moved = self._clock.monotonic()

    def meet(self, address: str, port: int, zone: str) -> None:
        """Connect to the agent at `address`, once, and again after a while; in the background where it is in
        another zone."""
        now = self._clock.monotonic()
        known, when = self._met.get(address, (0, 0.0))
        if self._torrent is None or (known == port and now - when <= RECONNECT):
            return
        host = host_of(address)
        if self._torrent.connect(host, port, background=zone != self._zone):
            self._met[address] = (port, now)

    def look(self) -> None:
        """Have libtorrent say how far it is."""
        self._swarm.look()

    async def leave(self) -> None:
        """Leave the swarm, and give back to the store what did not come."""
        torrent, self._torrent = self._torrent, None
        gone = True
        if torrent is not None:
            gone = await torrent.remove()
            self._metrics.swarm_torrents.dec()
            self._metrics.peer_failures["wrong"].inc(torrent.wrong)
        await self.taken()
        back, self._granted = list(self._granted), {}
        for number, chunk in back if gone else ():
            self._store.take_back(self._held[number], [chunk])

    async def taken(self) -> None:
        """Wait until what has come is recorded."""
        if self._taking:
            await asyncio.wait(self._taking)

    def _paths(self) -> dict[int, Path]:
        """The torrent's files; those of which nothing is here are never opened."""
        known = self._held.paths()
        absent = next(iter(known.values())).parent / "absent"
        files = enumerate(self._layout.files())
        return {file: known.get(number, absent) for file, number in files if number is not None}

    def _came(self, piece: int) -> None:
        at = self._chunk_of[piece]
        self._moved = self._clock.monotonic()
        if at in self._granted:
            self._granted[at] -= 1
            if not self._granted[at]:
                task = asyncio.create_task(self._take(at))
                self._taking.add(task)
                task.add_done_callback(self._taking.discard)

    async def _take(self, at: At) -> None:
        """A chunk is there: check it as it is in the file, and record it."""
        cached, extent = self._held[at[0]], self._layout.extent(*at)
        padding, expected = self._layout.padding(*at), self._hashes[at]
        try:
            xxh3, hashes = await asyncio.to_thread(made, cached.fd, extent, padding)
            if hashes != expected:
                raise StoreFailed(f"{cached.path} does not have what was written there")
            await self._store.record(cached, at[1], xxh3)
        except OSError as error:
            self._failed(at, StoreFailed(f"cannot read {cached.path}: {error.strerror}"))
        except StoreFailed as error:
            self._failed(at, error)
        else:
            del self._granted[at]
            self._metrics.swarm_received.inc(extent.length)
            self._brought(cached.ref, extent)

    def _failed(self, at: At, error: StoreFailed) -> None:
        self.error = error
        self._store.failed(self._held[at[0]], error)
